//! A blob's bytes, mapped.
//!
//! # Safety of the mapping
//! This file holds the crate's only `unsafe`: mapping a file. A mapping is sound as long as nobody changes the
//! file under it and every page can be read. What stands for that here:
//! - Blobs are ours: below a directory of mode 0700, mode 0444, written completely before they get a name, never
//!   opened for writing again, never truncated, only unlinked; an unlinked file's pages stay.
//! - The length is read from the open file just before it is mapped, and compared with what was hashed.
//! - Somebody else with our rights, or the disk, may break this all the same. No typed view is ever laid over the
//!   bytes, so a changed byte is a wrong byte and nothing worse: it is found when the next request compares the file's
//!   identity. A page that is gone cannot be touched safely in user space (SIGBUS); so a mapping goes to a socket's
//!   write(2) only, where the kernel answers EFAULT, and [`Blob::read`], [`Blob::to_vec`] and [`Blob::reader`] are
//!   what user space reads with: pread, whose errors are values.

use std::{
    any::Any,
    fs::File,
    io::{self, Read},
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use rustix::io::ReadWriteFlags;

use super::layout::Identity;
use crate::digest::Digest;

/// A held blob: verified, mapped, kept alive (also when it is unlinked meanwhile) as long as this lives. Clones share
/// everything.
#[derive(Clone)]
pub struct Blob(Arc<Held>);

struct Held {
    digest: Digest,
    id: Identity,
    mapped: Mapped,
    /// When it was last handed out, in seconds since 1970.
    used: AtomicU32,
    /// The same as the journal knows it.
    noted: AtomicU32,
    /// A part of it could not be read.
    suspect: AtomicBool,
    extension: OnceLock<Box<dyn Any + Send + Sync>>,
}

/// An open file and its mapping.
pub(super) struct Mapped {
    file: File,
    length: u64,
    /// The mapping; nothing for an empty file, which cannot be mapped.
    bytes: Bytes,
}

impl Mapped {
    /// Maps the whole of a file of `length` bytes.
    #[allow(unsafe_code)]
    pub fn new(file: File, length: u64) -> io::Result<Self> {
        if length == 0 {
            return Ok(Self { file, length, bytes: Bytes::new() });
        }
        let size = usize::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        // SAFETY: the file is the store's own and never written to again; the module's documentation argues it, and
        // what happens where somebody else breaks it.
        let map = unsafe { memmap2::MmapOptions::new().len(size).map(&file) }?;
        Ok(Self { file, length, bytes: Bytes::from_owner(map) })
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    pub fn read_some(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(offset);
        let wanted = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        match self.file.read_at(&mut buffer[..wanted], offset)? {
            0 => Err(too_short()),
            n => Ok(n),
        }
    }

    fn clamp(&self, range: Range<u64>) -> Range<u64> {
        range.start.min(self.length)..range.end.min(self.length)
    }

    /// Reads without a copy and without the lock of the process's mappings, which a thread that populates a mapping may
    /// hold while it waits for the disk.
    pub fn warm(&self, range: Range<u64>) -> io::Result<()> {
        let range = self.clamp(range);
        let nowhere = nowhere()?;
        let mut at = range.start;
        while at < range.end {
            let left = (range.end - at) as usize;
            if rustix::fs::sendfile(nowhere, &self.file, Some(&mut at), left)? == 0 {
                return Err(too_short());
            }
        }
        Ok(())
    }

    pub fn is_resident(&self, range: Range<u64>) -> bool {
        is_resident(&self.file, self.clamp(range))
    }
}

/// `/dev/null`, for pages that are only to be in memory.
fn nowhere() -> io::Result<&'static File> {
    static NOWHERE: OnceLock<File> = OnceLock::new();
    if let Some(file) = NOWHERE.get() {
        return Ok(file);
    }
    let file = File::options().write(true).open("/dev/null")?;
    Ok(NOWHERE.get_or_init(|| file))
}

fn too_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than it was when it was opened")
}

/// Whether a range of a file is, by a sample of its pages, in the page cache.
pub(super) fn is_resident(file: &File, range: Range<u64>) -> bool {
    if range.is_empty() {
        return true;
    }
    let step = ((range.end - range.start) / 16).max(4096);
    let mut at = range.start;
    loop {
        let mut byte = [0];
        let mut buffers = [io::IoSliceMut::new(&mut byte)];
        if rustix::io::preadv2(file, &mut buffers, at, ReadWriteFlags::NOWAIT) != Ok(1) {
            return false;
        }
        if at == range.end - 1 {
            return true;
        }
        at = (at + step).min(range.end - 1);
    }
}

impl Blob {
    pub(super) fn new(digest: Digest, id: Identity, file: File) -> io::Result<Self> {
        let mapped = Mapped::new(file, id.size)?;
        Ok(Self(Arc::new(Held {
            digest,
            id,
            mapped,
            used: AtomicU32::new(0),
            noted: AtomicU32::new(0),
            suspect: AtomicBool::new(false),
            extension: OnceLock::new(),
        })))
    }

    /// It is handed out at `now`, in seconds since 1970.
    pub(super) fn use_at(&self, now: u32) {
        // The line is shared by all who serve this blob: written once a second at most.
        if self.0.used.load(Relaxed) < now {
            self.0.used.store(now, Relaxed);
        }
    }

    /// When it was last handed out.
    pub(super) fn used(&self) -> u32 {
        self.0.used.load(Relaxed)
    }

    /// The last use, where the journal is behind by `seconds` or more; it counts as noted then.
    pub(super) fn to_note(&self, seconds: u32) -> Option<u32> {
        let used = self.used();
        let behind = used > 0 && used.saturating_sub(self.0.noted.load(Relaxed)) >= seconds.max(1);
        behind.then(|| self.0.noted.store(used, Relaxed)).map(|()| used)
    }

    /// Whether somebody beside the store's own table of open blobs has it.
    pub(super) fn in_use(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Whether some of it could not be read.
    pub(super) fn is_suspect(&self) -> bool {
        self.0.suspect.load(Relaxed)
    }

    /// Says that what was read of it was wrong or could not be read: the next to ask the store for it gets it only
    /// when it has been hashed again. Errors of this type's own methods say so by themselves.
    pub fn distrust(&self) {
        self.0.suspect.store(true, Relaxed);
    }

    fn watched<T>(&self, read: io::Result<T>) -> io::Result<T> {
        read.inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.distrust();
            }
        })
    }

    pub(super) fn identity(&self) -> Identity {
        self.0.id
    }

    pub(super) fn file(&self) -> &File {
        &self.0.mapped.file
    }

    /// Whether the open file is still, by size, inode and ctime, the one that was found right, and could be read.
    pub(super) fn unchanged(&self) -> bool {
        !self.is_suspect() && Identity::of(self.file()).is_ok_and(|id| id == self.0.id)
    }

    /// Its name.
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.0.id.size
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The mapping, for a socket's write(2): a page that cannot be read ends the write, not the process.
    /// Slices share it.
    pub fn mapped(&self) -> Bytes {
        self.0.mapped.bytes.clone()
    }

    /// Copies `range` out with pread: for readers in user space (TLS, hashing, unpacking). A file that has become
    /// shorter is `UnexpectedEof`, a failing disk its own error.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.watched(self.0.mapped.read(offset, buffer))
    }

    /// The whole blob copied into memory with pread; for bounded, small blobs (configs, config layers).
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut bytes = vec![0; length];
        self.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// A reader over pread, from the start. It ends at the blob's length; a file that has become shorter is
    /// `UnexpectedEof`, never an early end.
    pub fn reader(&self) -> impl Read + Send + 'static {
        Reader { blob: self.clone(), at: 0 }
    }

    /// Brings `range` into the page cache, blocking until it is there: run it behind `blocking::io`
    /// before slices of [`Blob::mapped`] go to a socket. An error means that the range cannot be read.
    pub fn warm(&self, range: Range<u64>) -> io::Result<()> {
        self.watched(self.0.mapped.warm(range))
    }

    /// Whether `range` is, by a sample of at most 18 of its pages, in the page cache, so that a write from the mapping
    /// will not wait for the disk. Never blocks; costs under a microsecond a sample.
    pub fn is_resident(&self, range: Range<u64>) -> bool {
        self.0.mapped.is_resident(range)
    }

    /// Something computed once from this blob and kept as long as it is open (the server's header values). The first
    /// call decides the type; `None` where another type was put here first.
    pub fn extension<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Option<&T> {
        self.0.extension.get_or_init(|| Box::new(make())).downcast_ref()
    }
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blob").field("digest", &self.0.digest).field("len", &self.len()).finish()
    }
}

struct Reader {
    blob: Blob,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.blob.watched(self.blob.0.mapped.read_some(self.at, buffer))?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(content: &[u8]) -> (tempfile::NamedTempFile, Blob) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let open = File::open(file.path()).unwrap();
        let blob = Blob::new(Digest::sha256(content), Identity::of(&open).unwrap(), open).unwrap();
        (file, blob)
    }

    #[test]
    fn every_way_of_reading_gives_the_same_bytes() {
        for length in [0usize, 1, 4096, 100_001] {
            let content: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let (_file, blob) = blob(&content);
            assert_eq!(blob.len(), length as u64);
            assert_eq!(blob.mapped(), content);
            assert_eq!(blob.to_vec().unwrap(), content);
            let mut read = Vec::new();
            blob.reader().read_to_end(&mut read).unwrap();
            assert_eq!(read, content);
            blob.warm(0..u64::MAX).unwrap();
            assert!(blob.is_resident(0..u64::MAX));
        }
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error_and_never_an_early_end() {
        let (file, blob) = blob(&vec![7; 100_000]);
        assert!(blob.unchanged());
        file.as_file().set_len(10).unwrap();
        assert!(!blob.unchanged());
        assert_eq!(blob.to_vec().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(blob.reader().read_to_end(&mut Vec::new()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(blob.warm(50_000..100_000).is_err());
        assert!(blob.is_suspect());
        // The mapping in a socket's write: an error, not a signal.
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let error = rustix::io::write(&socket, &blob.mapped()[50_000..50_001]).unwrap_err();
        assert_eq!(error, rustix::io::Errno::FAULT);
    }

    #[test]
    fn a_read_beyond_its_end_makes_a_blob_suspect_and_a_good_one_does_not() {
        let (file, blob) = blob(&[7; 5000]);
        blob.read(0, &mut [0; 5000]).unwrap();
        blob.warm(0..5000).unwrap();
        assert!(!blob.is_suspect() && blob.unchanged());
        file.as_file().set_len(10).unwrap();
        assert!(blob.read(0, &mut [0; 100]).is_err());
        assert!(blob.is_suspect());
    }

    #[test]
    fn uses_are_noted_only_when_the_journal_is_behind() {
        let (_file, blob) = blob(b"x");
        assert_eq!(blob.to_note(0), None);
        for (now, seconds, noted) in [(100, 60, Some(100)), (130, 60, None), (130, 0, Some(130)), (120, 0, None)] {
            blob.use_at(now);
            assert_eq!(blob.to_note(seconds), noted, "{now}");
        }
    }

    #[test]
    fn slices_outlive_the_blob_and_its_name() {
        let (file, blob) = blob(b"content");
        let slice = blob.mapped().slice(3..);
        file.close().unwrap();
        drop(blob);
        assert_eq!(slice, &b"tent"[..]);
    }

    #[test]
    fn an_extension_is_made_once_and_typed() {
        let (_file, blob) = blob(b"x");
        assert_eq!(blob.extension(|| 1u32), Some(&1));
        assert_eq!(blob.clone().extension(|| 2u32), Some(&1));
        assert_eq!(blob.extension(|| "other"), None);
    }
}
