//! Writing blobs: hash while writing, compare, then the name appears.
//!
//! The bytes go to a file without a name (`O_TMPFILE`; where the file system has none of that, a file in `spool/`
//! that nobody else opens and the next start removes). Only when size and digest are right is it made read-only and
//! linked under its name; a crash at any point before leaves nothing, and after it a complete file, which is hashed
//! again before it is served unless it is known to be on the disk.
//!
//! Sync calls run under no lock, so the file system joins those of concurrent writers into one flush.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use bytes::Bytes;
use rustix::{
    fs::{FallocateFlags, Mode},
    io::Errno,
};

use super::{
    Blob, Lease, Store, StoreError,
    blob::Mapped,
    evict::Room,
    layout::{Identity, Temporary, blob_path},
    quota::Admit,
};
use crate::digest::{Algorithm, Digest, Hasher};

/// When a blob must survive a power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before `commit` returns: what a status will name (hardening.md section 3, class A).
    Now,
    /// Soon, by a background pass (class B).
    Soon,
}

/// A blob being written under a digest known beforehand. Dropping it leaves nothing.
#[must_use]
pub struct Ingest {
    store: Store,
    lease: Lease,
    size: Option<u64>,
    draft: Draft,
    /// Room within the byte budget; `None` for what does not count against it.
    room: Option<Room>,
}

/// A blob being written whose digest comes at the end. Dropping it leaves nothing.
#[must_use]
pub struct Scratch {
    store: Store,
    draft: Draft,
}

/// What has been written of a blob so far, for readers that follow its writer: unverified until it is committed.
/// It stays readable whatever becomes of the writer.
#[derive(Clone)]
pub struct Landing(Arc<File>);

impl Landing {
    /// Reads bytes that the writer has taken already; past those it is `UnexpectedEof`.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    /// The file mapped, at its `length` to be, for a socket's write(2). Only what the writer has taken already may be
    /// looked at, or sent.
    pub fn mapped(&self, length: u64) -> io::Result<Bytes> {
        Ok(Mapped::new(self.0.try_clone()?, length)?.bytes().clone())
    }
}

struct Draft {
    file: Temporary,
    hasher: Hasher,
    offset: u64,
}

/// Reserving less than this costs more than it tells.
const RESERVE_FROM: u64 = 128 * 1024;

impl Draft {
    fn new(store: &Store, algorithm: Algorithm) -> Result<Self, StoreError> {
        store.writable()?;
        let file = store.with_room(0, || store.0.layout.temporary())?;
        Ok(Self { file, hasher: Hasher::new(algorithm), offset: 0 })
    }

    /// Reserves space for the whole, so that a full disk is found here.
    fn reserve(&self, store: &Store, size: u64) -> Result<(), StoreError> {
        store.with_room(size, || match rustix::fs::fallocate(&self.file.file, FallocateFlags::KEEP_SIZE, 0, size) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(error) => Err(store.0.layout.error("reserve space in", "spool", error)),
        })
    }

    fn write(&mut self, store: &Store, data: &[u8]) -> Result<(), StoreError> {
        store.with_room(data.len() as u64, || {
            let written = self.file.file.write_all_at(data, self.offset);
            written.map_err(|e| store.0.layout.error("write in", "spool", e))
        })?;
        self.hasher.update(data);
        self.offset += data.len() as u64;
        Ok(())
    }

    fn landing(&self, store: &Store) -> Result<Landing, StoreError> {
        let file = self.file.file.try_clone().map_err(|e| store.0.layout.error("open", "spool", e))?;
        Ok(Landing(Arc::new(file)))
    }
}

impl Store {
    /// Begins writing a blob whose digest is known, and its size where known, and that could be fetched again: it counts
    /// against the byte budget, for which others may be evicted. Room is made and reserved at once, so that a full disk
    /// is found here. The digest is leased until the ingest ends.
    pub fn ingest(&self, digest: Digest, size: Option<u64>) -> Result<Ingest, StoreError> {
        let lease = self.lease(digest);
        let room = self.reserve(size.unwrap_or(0), Admit::OneOver)?;
        Ok(Ingest { room: Some(room), ..self.begin(lease, size)? })
    }

    /// Begins writing a blob that is pushed or imported here. It has no other source, so no budget counts it.
    pub fn receive(&self, digest: Digest, size: Option<u64>) -> Result<Ingest, StoreError> {
        self.begin(self.lease(digest), size)
    }

    fn begin(&self, lease: Lease, size: Option<u64>) -> Result<Ingest, StoreError> {
        let draft = Draft::new(self, lease.digest().algorithm())?;
        if let Some(size) = size.filter(|size| *size >= RESERVE_FROM) {
            draft.reserve(self, size)?;
        }
        Ok(Ingest { store: self.clone(), lease, size, draft, room: None })
    }

    /// Begins writing something whose digest (sha256) will be known at its end.
    pub fn scratch(&self) -> Result<Scratch, StoreError> {
        Ok(Scratch { store: self.clone(), draft: Draft::new(self, Algorithm::Sha256)? })
    }

    /// Writes a blob that is in memory. Others may be evicted for it, but no budget refuses it.
    pub fn put(&self, digest: Digest, bytes: &[u8], durability: Durability) -> Result<Blob, StoreError> {
        let (lease, size) = (self.lease(digest), bytes.len() as u64);
        let room = self.reserve(size, Admit::Always)?;
        let mut ingest = Ingest { room: Some(room), ..self.begin(lease, Some(size))? };
        ingest.write(bytes)?;
        ingest.commit(durability)
    }

    /// Links a complete file under its digest, which has been compared already.
    fn publish(
        &self,
        file: &mut Temporary,
        digest: &Digest,
        size: u64,
        durability: Durability,
    ) -> Result<Blob, StoreError> {
        let (inner, path) = (&self.0, blob_path(digest));
        let error = |action, e: Errno| inner.layout.error(action, &path, e);
        rustix::fs::fchmod(&file.file, Mode::RUSR | Mode::RGRP | Mode::ROTH).map_err(|e| error("protect", e))?;
        let mut retried = false;
        // Whoever else writes the same bytes, or puts a bad file aside, may come in between; not for ever.
        for _ in 0..8 {
            let mut shard = inner.shards.of_blob(digest);
            let linked = inner.layout.link(file, &path);
            if linked == Err(Errno::NOSPC) && !retried {
                drop(shard);
                retried = true;
                self.make_room(0);
                continue;
            }
            let linked = linked.map_err(|e| error("link", e))?;
            if linked {
                shard.added(size);
            }
            drop(shard);
            if !linked {
                // Another writer won, or something bad lies there: the read path tells.
                if let Some(blob) = self.get(digest)? {
                    if durability == Durability::Now {
                        self.make_durable(&blob)?;
                        // Whoever linked it takes it away again where its own sync failed.
                        if !self.leads_to(digest, blob.identity()) {
                            continue;
                        }
                    }
                    return Ok(blob);
                }
                continue;
            }
            // ctime only now: linking changed it.
            let id = Identity::of(&file.file).map_err(|e| inner.layout.error("look at", &path, e))?;
            match durability {
                Durability::Now => {
                    // After linking: one commit of the file system's journal then has the bytes and the name, and the
                    // directory's sync finds nothing left to do. What a power loss leaves before that is not trusted.
                    let synced = self.sync_file(&file.file, &path);
                    if let Err(error) = synced.and_then(|()| self.sync_directory_of(digest)) {
                        self.drop_blob(digest, id);
                        return Err(error);
                    }
                    inner.journal.trust(&inner.layout, digest, id, 0);
                }
                Durability::Soon => {
                    inner.journal.trust(&inner.layout, digest, id, inner.boot);
                    self.add_pending(*digest, id);
                }
            }
            // A handle that can only read: the one that wrote is closed.
            return match inner.layout.open_file(&path)? {
                Some(file) if Identity::of(&file).ok() == Some(id) => self.keep_open(digest, id, file),
                _ => self.get(digest)?.ok_or_else(|| self.unstable(digest)),
            };
        }
        Err(self.unstable(digest))
    }

    fn unstable(&self, digest: &Digest) -> StoreError {
        StoreError::Unstable { digest: *digest, root: self.root().to_path_buf() }
    }

    /// Whether the name still leads to that file.
    fn leads_to(&self, digest: &Digest, id: Identity) -> bool {
        let stat = self.0.layout.stat(&blob_path(digest)).ok().flatten();
        stat.is_some_and(|stat| Identity::from_stat(&stat).ino == id.ino)
    }

    /// Takes away a file that was just linked and may not be on the disk.
    fn drop_blob(&self, digest: &Digest, id: Identity) {
        let inner = &self.0;
        let path = blob_path(digest);
        let mut shard = inner.shards.of_blob(digest);
        if self.leads_to(digest, id) && inner.layout.remove_file(&path).unwrap_or(false) {
            shard.removed(id.size);
        }
        drop(shard);
        inner.journal.forget(&inner.layout, digest);
        inner.handles.remove(digest, None);
    }
}

impl Ingest {
    /// Its name to be.
    pub fn digest(&self) -> Digest {
        self.lease.digest()
    }

    /// Takes the next bytes. Fails with class Size past `size`.
    pub fn write(&mut self, data: &[u8]) -> Result<(), StoreError> {
        if let Some(size) = self.size
            && data.len() as u64 > size - self.draft.offset
        {
            return Err(StoreError::TooLong { digest: self.digest(), size });
        }
        if let (None, Some(room)) = (self.size, &mut self.room) {
            room.grow(data.len() as u64)?;
        }
        self.draft.write(&self.store, data)
    }

    /// How many bytes have been taken.
    pub fn offset(&self) -> u64 {
        self.draft.offset
    }

    /// A view for readers that follow the writer.
    pub fn landing(&self) -> Result<Landing, StoreError> {
        self.draft.landing(&self.store)
    }

    /// Compares size, then digest; links the name. Where the blob is held already, that one is checked and returned.
    pub fn commit(self, durability: Durability) -> Result<Blob, StoreError> {
        // The room is given back at the end: by then the blob is counted.
        let Self { store, lease, size, draft: Draft { mut file, hasher, offset }, room: _room } = self;
        let digest = lease.digest();
        if let Some(size) = size
            && offset < size
        {
            return Err(StoreError::TooShort { digest, size, actual: offset });
        }
        let actual = hasher.finish();
        if actual != digest {
            return Err(StoreError::WrongDigest { expected: digest, actual: Box::new(actual) });
        }
        store.publish(&mut file, &digest, offset, durability)
    }
}

impl Scratch {
    /// Takes the next bytes.
    pub fn write(&mut self, data: &[u8]) -> Result<(), StoreError> {
        self.draft.write(&self.store, data)
    }

    /// How many bytes have been taken.
    pub fn offset(&self) -> u64 {
        self.draft.offset
    }

    /// Links the blob under its digest. It could be made again, so the byte budget counts it, but does not refuse it.
    pub fn commit(self, durability: Durability) -> Result<Blob, StoreError> {
        let Self { store, draft: Draft { mut file, hasher, offset } } = self;
        let digest = hasher.finish();
        let _lease = store.lease(digest);
        let _room = store.reserve(offset, Admit::Always)?;
        store.publish(&mut file, &digest, offset, durability)
    }

    /// Links the blob under the digest that its sender says it has, if it has it (a sha512 is computed only here). It has
    /// no other source, so no budget counts it.
    pub fn commit_as(self, expected: &Digest, durability: Durability) -> Result<Blob, StoreError> {
        let Self { store, draft: Draft { mut file, hasher, offset } } = self;
        let actual = match expected.algorithm() {
            Algorithm::Sha256 => hasher.finish(),
            algorithm => {
                let mut hasher = Hasher::new(algorithm);
                super::read::hash_file(&file.file, &mut |data| hasher.update(data))
                    .map_err(|e| store.0.layout.error("read", "spool", e))?;
                hasher.finish()
            }
        };
        if actual != *expected {
            return Err(StoreError::WrongDigest { expected: *expected, actual: Box::new(actual) });
        }
        let _lease = store.lease(*expected);
        store.publish(&mut file, expected, offset, durability)
    }

    /// Keeps what was written as a file that never gets a name and goes when the value is dropped: for what is too
    /// large for memory (a decompressed tar). Also gives its sha256, which was computed while writing.
    pub fn into_spool(self) -> Result<(Spool, Digest), StoreError> {
        let Self { store, draft: Draft { mut file, hasher, offset } } = self;
        file.forget_name();
        let open = file.file.try_clone().map_err(|e| store.0.layout.error("open", "spool", e))?;
        let mapped = Mapped::new(open, offset).map_err(|e| store.0.layout.error("map", "spool", e))?;
        Ok((Spool(Arc::new(mapped)), hasher.finish()))
    }
}

/// Bytes in a file without a name; clones share it.
#[derive(Clone)]
pub struct Spool(Arc<Mapped>);

impl Spool {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.0.length()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes out with pread.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, buffer)
    }

    /// A reader over pread, from the start.
    pub fn reader(&self) -> impl Read + Send + 'static {
        SpoolReader { spool: self.clone(), at: 0 }
    }

    /// The mapping. Nobody else can reach the file, so only a failing disk can make a page unreadable: call
    /// [`Spool::warm`] for a range before user space looks at it, or use [`Spool::read`].
    pub fn mapped(&self) -> Bytes {
        self.0.bytes().clone()
    }

    /// Brings a range into memory; an error means that it cannot be read.
    pub fn warm(&self, range: std::ops::Range<u64>) -> io::Result<()> {
        self.0.warm(range)
    }
}

struct SpoolReader {
    spool: Spool,
    at: u64,
}

impl Read for SpoolReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.spool.0.read_some(self.at, buffer)?;
        self.at += n as u64;
        Ok(n)
    }
}
