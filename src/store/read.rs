//! The read path: from a digest to a verified, mapped blob; and what happens to a file that is not what its name says.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::atomic::Ordering};

use super::{
    Blob, Store, StoreError,
    gc::QUARANTINED_BYTES,
    layout::{Identity, blob_path, file_name, is_file, lock},
};
use crate::digest::{Digest, Hasher};

/// The last use of a blob that is open is noted in the journal when it is so many seconds later than what stands there:
/// one write a blob a minute, and what a crash loses of the order in which blobs are evicted.
pub(super) const NOTE_USE_EVERY: u32 = 60;

/// What hashing a file found.
pub(super) enum Found {
    /// It is what its name says.
    Right,
    /// It is not, or cannot be read: why.
    Wrong(String),
}

/// Hashes a file from its beginning to its end with pread.
pub(super) fn hash_file(file: &File, hasher: &mut impl FnMut(&[u8])) -> io::Result<u64> {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at) {
            Ok(0) => return Ok(at),
            Ok(n) => {
                hasher(&buffer[..n]);
                at += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether a blob's file has the bytes of its name.
pub(super) fn check_blob(file: &File, digest: &Digest) -> Found {
    let mut hasher = Hasher::new(digest.algorithm());
    match hash_file(file, &mut |data| hasher.update(data)) {
        Err(error) => Found::Wrong(format!("cannot be read: {error}")),
        Ok(size) => {
            let actual = hasher.finish();
            if actual == *digest { Found::Right } else { Found::Wrong(format!("its {size} bytes hash to {actual}")) }
        }
    }
}

impl Store {
    /// The blob, mapped, trusted or re-hashed first; `None` where it is not held (or was bad and is quarantined now).
    /// Blocks on the disk; on the hot path (blob opened before) one `fstat`.
    pub fn get(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        if let Some(blob) = self.0.handles.get(digest) {
            if blob.unchanged() {
                blob.use_at(self.now());
                return Ok(Some(blob));
            }
            self.0.handles.remove(digest, Some(&blob));
            if blob.is_suspect() {
                self.distrust(digest);
            }
        }
        let Some((file, id)) = self.open_blob(digest)? else { return Ok(None) };
        if self.trusts(digest, id) {
            return self.keep_open(digest, id, file).map(Some);
        }
        let stripe = usize::from(digest.bytes()[2]) % self.0.hashing.len();
        let _one_at_a_time = lock(&self.0.hashing[stripe]);
        self.get_checked(digest)
    }

    /// The blob, if it is open already and still the file that was found right: one `fstat` of an open file, which does
    /// not wait for the disk. For async code, which falls back on [`Store::get`] behind `blocking::io`.
    pub fn get_open(&self, digest: &Digest) -> Option<Blob> {
        let blob = self.0.handles.get(digest).filter(Blob::unchanged)?;
        blob.use_at(self.now());
        Some(blob)
    }

    /// Says that a blob's bytes were wrong or could not be read: it is closed, and the next to ask for it gets it only
    /// when it has been hashed again; what is wrong is put aside then, and answered as not held.
    pub fn distrust(&self, digest: &Digest) {
        self.0.handles.remove(digest, None);
        if self.writable().is_ok() {
            self.0.journal.distrust(&self.0.layout, digest);
        }
    }

    /// Seconds since 1970.
    pub(super) fn now(&self) -> u32 {
        #[cfg(test)]
        if let now @ 1.. = self.0.clock.load(Ordering::Relaxed) {
            return now;
        }
        // As the kernel last noted it: no look at the processor's clock.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        u32::try_from(now.tv_sec.max(0)).unwrap_or(u32::MAX)
    }

    /// Notes in the journal when open blobs were last used, where it is behind by `seconds` or more: what a restart
    /// knows of it.
    pub(super) fn note_uses(&self, seconds: u32) {
        for (digest, used) in self.0.handles.to_note(seconds) {
            self.0.journal.used(&self.0.layout, &digest, used);
        }
    }

    /// Whether a file of this name is there, unverified: one `stat`.
    pub fn has(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.0.layout.stat(&blob_path(digest))?.is_some_and(|stat| is_file(&stat)))
    }

    /// Makes a blob that is held survive a power loss before this returns, however it was written.
    pub fn make_durable(&self, blob: &Blob) -> Result<(), StoreError> {
        self.writable()?;
        let (inner, digest) = (&self.0, blob.digest());
        let durable = |r: super::journal::Record| r.boot == 0 && r.id == blob.identity();
        if inner.journal.lookup(&digest).is_some_and(durable) {
            return Ok(());
        }
        self.sync_file(blob.file(), &blob_path(&digest))?;
        self.sync_directory_of(&digest)?;
        inner.journal.settle(&inner.layout, &digest, blob.identity());
        Ok(())
    }

    pub(super) fn sync_file(&self, file: &File, path: &str) -> Result<(), StoreError> {
        let synced = rustix::fs::fsync(file);
        self.count_sync(synced.is_ok());
        synced.map_err(|e| self.0.layout.error("sync", path, e))
    }

    pub(super) fn sync_directory_of(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = super::layout::blob_directory(digest);
        let synced = self.0.layout.sync_dir(&path);
        self.count_sync(synced.is_ok());
        synced.map_err(|e| self.0.layout.error("sync", &path, e))
    }

    fn open_blob(&self, digest: &Digest) -> Result<Option<(File, Identity)>, StoreError> {
        let path = blob_path(digest);
        let Some(file) = self.0.layout.open_file(&path)? else { return Ok(None) };
        let stat = rustix::fs::fstat(&file).map_err(|e| self.0.layout.error("look at", &path, e))?;
        let id = Identity::from_stat(&stat);
        if is_file(&stat) {
            return Ok(Some((file, id)));
        }
        self.quarantine_blob(digest, id.ino, "is not a file");
        Ok(None)
    }

    fn trusts(&self, digest: &Digest, id: Identity) -> bool {
        let record = self.0.journal.lookup(digest);
        record.is_some_and(|r| r.id == id && (r.boot == 0 || r.boot == self.0.boot))
    }

    pub(super) fn keep_open(&self, digest: &Digest, id: Identity, file: File) -> Result<Blob, StoreError> {
        let blob = Blob::new(*digest, id, file).map_err(|e| self.0.layout.error("map", &blob_path(digest), e))?;
        blob.use_at(self.now());
        if let Some(closed) = self.0.handles.insert(blob.clone())
            && self.writable().is_ok()
        {
            if closed.is_suspect() {
                self.0.journal.distrust(&self.0.layout, &closed.digest());
            } else if let Some(used) = closed.to_note(NOTE_USE_EVERY) {
                self.0.journal.used(&self.0.layout, &closed.digest(), used);
            }
        }
        Ok(blob)
    }

    /// The slow way: hash, then trust.
    fn get_checked(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        // A file that changes while it is hashed is hashed again, twice at most.
        for _ in 0..3 {
            let Some((file, id)) = self.open_blob(digest)? else { return Ok(None) };
            // Another thread may have hashed it while this one waited.
            if !self.trusts(digest, id) {
                if let Found::Wrong(why) = check_blob(&file, digest) {
                    self.quarantine_blob(digest, id.ino, &why);
                    return Ok(None);
                }
                if Identity::of(&file).ok() != Some(id) {
                    continue;
                }
                if self.0.journal.lookup(digest).is_some_and(|r| r.id != id) {
                    // Somebody touched it: it may have been counted with another size.
                    self.0.shards.of_blob(digest).count = None;
                }
                if self.writable().is_ok() {
                    self.0.journal.trust(&self.0.layout, digest, id, self.0.boot);
                    self.add_pending(*digest, id);
                }
            }
            return self.keep_open(digest, id, file).map(Some);
        }
        tracing::warn!(%digest, "a blob's file keeps changing; it is not used");
        Ok(None)
    }

    /// Puts a bad blob's file aside, if the name still leads to that inode.
    pub(super) fn quarantine_blob(&self, digest: &Digest, ino: u64, why: &str) {
        self.0.handles.remove(digest, None);
        if self.writable().is_err() {
            return;
        }
        let mut shard = self.0.shards.of_blob(digest);
        if self.quarantine(&blob_path(digest), &file_name(digest), ino, why) {
            // What it was counted as is not known.
            shard.count = None;
            drop(shard);
            self.0.journal.distrust(&self.0.layout, digest);
        }
        if let Err(error) = self.clear_quarantine(0, QUARANTINED_BYTES) {
            tracing::warn!(%error, "what was put aside cannot be cleared");
        }
    }

    /// Moves `path` to `quarantine/` if it still is the inode `ino`; the caller holds the directory's lock.
    pub(super) fn quarantine(&self, path: &str, name: &str, ino: u64, why: &str) -> bool {
        let layout = &self.0.layout;
        match layout.stat(path) {
            Ok(Some(stat)) if Identity::from_stat(&stat).ino == ino => {}
            _ => return false,
        }
        let target = format!("quarantine/{name}.{:08x}", fastrand::u32(..));
        let moved = layout.make_dirs("quarantine").and_then(|()| layout.rename(path, &target));
        match moved {
            Ok(()) => {
                self.0.quarantined.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(path = %layout.absolute(path).display(), to = target, why, "put aside: not what its name says");
                true
            }
            Err(error) => {
                tracing::error!(path = %layout.absolute(path).display(), why, %error, "cannot be put aside: not what its name says");
                false
            }
        }
    }
}
