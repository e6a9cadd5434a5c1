//! Decompressed bytes: in memory while they are few, in an unnamed file of the store else.
//!
//! Buffers are reused: a finished [`Data`] gives its memory back to a small pool, since faulting in fresh pages for a
//! layer of 5.7 MB costs about a fifth of inflating it. The pool keeps at most [`POOL_BYTES`]; what is larger goes back
//! to the system. Nothing of a former user is ever visible: a `Data` shows only the bytes that its own decoder wrote.
//!
//! Everything here may be read from many threads at once. A spool has no name, so a crash leaves nothing of it.

use std::{
    borrow::Cow,
    fmt, io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

use super::decompress::DecompressError;
use crate::{
    digest::{Algorithm, Digest, Hasher},
    store::{Scratch, Spool, Store, StoreError},
};

/// Decompressed bytes up to this length stay in memory: what a configuration layer needs, and what libdeflate's
/// whole-buffer decoder is used for.
pub const MEMORY_BYTES: u64 = 16 << 20;

/// How much memory the pool keeps for the next layer.
const POOL_BYTES: usize = 16 << 20;

/// The most buffers the pool keeps.
const POOL_BUFFERS: usize = 8;

/// Pieces of a spool up to this length are copied out, larger ones shown where they are mapped.
const COPY_BYTES: usize = 64 << 10;

static POOL: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// A buffer of at least `len` bytes, with whatever was in it before.
pub(crate) fn take_buffer(len: usize) -> Vec<u8> {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    // The smallest that is large enough, so that small layers do not take the large buffers.
    let best = pool.iter().enumerate().filter(|(_, b)| b.len() >= len).min_by_key(|(_, b)| b.len()).map(|(i, _)| i);
    let mut buffer = best.map(|i| pool.swap_remove(i)).unwrap_or_default();
    drop(pool);
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    buffer
}

/// Gives a buffer back.
pub(crate) fn give_buffer(buffer: Vec<u8>) {
    if buffer.is_empty() || buffer.capacity() > POOL_BYTES {
        return;
    }
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    while pool.len() >= POOL_BUFFERS || pool.iter().map(Vec::capacity).sum::<usize>() + buffer.capacity() > POOL_BYTES {
        pool.swap_remove(0);
    }
    pool.push(buffer);
}

/// Bytes that can be read at any place.
pub trait ReadAt {
    /// How many there are.
    fn size(&self) -> u64;

    /// `len` bytes from `offset` on; an error of kind `UnexpectedEof` where they are not there.
    fn bytes_at(&self, offset: u64, len: usize) -> io::Result<Cow<'_, [u8]>>;
}

fn slice_at(data: &[u8], offset: u64, len: usize) -> io::Result<Cow<'_, [u8]>> {
    usize::try_from(offset)
        .ok()
        .and_then(|start| data.get(start..start.checked_add(len)?))
        .map(Cow::Borrowed)
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

impl ReadAt for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn bytes_at(&self, offset: u64, len: usize) -> io::Result<Cow<'_, [u8]>> {
        slice_at(self, offset, len)
    }
}

/// Decompressed bytes.
pub struct Data(Inner);

enum Inner {
    /// `buffer[start..start + len]`.
    Memory { buffer: Vec<u8>, start: usize, len: usize },
    /// An unnamed file, and its mapping.
    Spool { spool: Spool, mapped: Bytes },
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Data({} bytes)", self.size())
    }
}

impl Data {
    /// The part `start..start + len` of `buffer`, which goes to the pool in the end.
    pub(crate) fn memory(buffer: Vec<u8>, start: usize, len: usize) -> Self {
        debug_assert!(start + len <= buffer.len());
        Self(Inner::Memory { buffer, start, len })
    }

    /// The bytes, where they are in memory.
    pub fn as_slice(&self) -> Option<&[u8]> {
        match &self.0 {
            Inner::Memory { buffer, start, len } => buffer.get(*start..start + len),
            Inner::Spool { .. } => None,
        }
    }

    /// The sha256 of all bytes: the layer's diff_id (image-spec 1.1, "Layer DiffID").
    pub fn sha256(&self) -> io::Result<Digest> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut offset = 0;
        while offset < self.size() {
            let piece = self.bytes_at(offset, (self.size() - offset).min(1 << 20) as usize)?;
            hasher.update(&piece);
            offset += piece.len() as u64;
        }
        Ok(hasher.finish())
    }
}

impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        Self::memory(bytes, 0, len)
    }
}

impl ReadAt for Data {
    fn size(&self) -> u64 {
        match &self.0 {
            Inner::Memory { len, .. } => *len as u64,
            Inner::Spool { spool, .. } => spool.len(),
        }
    }

    fn bytes_at(&self, offset: u64, len: usize) -> io::Result<Cow<'_, [u8]>> {
        match &self.0 {
            Inner::Memory { .. } => slice_at(self.as_slice().unwrap_or_default(), offset, len),
            Inner::Spool { spool, mapped } => {
                let range = offset..offset.checked_add(len as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
                if range.end > spool.len() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if len <= COPY_BYTES {
                    let mut bytes = vec![0; len];
                    spool.read(offset, &mut bytes)?;
                    return Ok(Cow::Owned(bytes));
                }
                spool.warm(range)?;
                slice_at(mapped, offset, len)
            }
        }
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if let Inner::Memory { buffer, .. } = &mut self.0 {
            give_buffer(std::mem::take(buffer));
        }
    }
}

/// What a decompression may use.
#[derive(Clone, Copy)]
pub struct Limits<'a> {
    /// The most bytes that may come out.
    pub bytes: u64,
    /// What all layers of one image may share; counted down by each.
    pub shared: Option<&'a Budget>,
    /// Where output over [`MEMORY_BYTES`] goes, as an unnamed file; `None` keeps it in memory.
    pub spool: Option<&'a Store>,
    /// Whether to hash the output.
    pub diff_id: bool,
}

impl Limits<'_> {
    /// At most `bytes`, all in memory.
    pub const fn in_memory(bytes: u64) -> Self {
        Self { bytes, shared: None, spool: None, diff_id: false }
    }
}

/// Bytes that several decompressions share.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    left: AtomicU64,
}

impl Budget {
    /// `total` bytes.
    pub const fn new(total: u64) -> Self {
        Self { total, left: AtomicU64::new(total) }
    }

    /// Takes `bytes` away; an error that names the total where they are not left.
    pub fn take(&self, bytes: u64) -> Result<(), DecompressError> {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes))
            .map(|_| ())
            .map_err(|_| DecompressError::TotalTooLarge { cap: self.total })
    }
}

fn spool_failed(error: StoreError) -> DecompressError {
    DecompressError::Spool(Box::new(error))
}

/// Takes decompressed bytes as they come, and stops at the cap.
pub(crate) struct Sink<'a> {
    limits: Limits<'a>,
    memory: Vec<u8>,
    /// How much of `memory` is ours; the rest is a former user's.
    filled: usize,
    scratch: Option<Scratch>,
    len: u64,
    hasher: Option<Hasher>,
}

impl<'a> Sink<'a> {
    /// An empty sink that expects about `hint` bytes.
    pub(crate) fn new(limits: Limits<'a>, hint: u64) -> Self {
        Self {
            memory: take_buffer(hint.min(MEMORY_BYTES).min(limits.bytes) as usize),
            filled: 0,
            scratch: None,
            len: 0,
            hasher: limits.diff_id.then(|| Hasher::new(Algorithm::Sha256)),
            limits,
        }
    }

    /// Takes the next bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), DecompressError> {
        self.len += bytes.len() as u64;
        if self.len > self.limits.bytes {
            return Err(DecompressError::TooLarge { cap: self.limits.bytes });
        }
        if let Some(shared) = self.limits.shared {
            shared.take(bytes.len() as u64)?;
        }
        if self.scratch.is_none()
            && self.len > MEMORY_BYTES
            && let Some(store) = self.limits.spool
        {
            let mut scratch = store.scratch().map_err(spool_failed)?;
            scratch.write(&self.memory[..self.filled]).map_err(spool_failed)?;
            give_buffer(std::mem::take(&mut self.memory));
            self.scratch = Some(scratch);
        }
        if let Some(scratch) = &mut self.scratch {
            return scratch.write(bytes).map_err(spool_failed);
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        let end = self.filled + bytes.len();
        if end > self.memory.len() {
            // Doubled, but never past the cap by more than one piece.
            let grown = end.max(self.memory.len().saturating_mul(2).min(self.limits.bytes as usize)).max(64 << 10);
            self.memory.resize(grown, 0);
        }
        self.memory[self.filled..end].copy_from_slice(bytes);
        self.filled = end;
        Ok(())
    }

    /// All bytes, and their sha256 where it was asked for.
    pub(crate) fn finish(mut self) -> Result<(Data, Option<Digest>), DecompressError> {
        if let Some(scratch) = self.scratch.take() {
            // The store hashes what it is given.
            let (spool, diff_id) = scratch.into_spool().map_err(spool_failed)?;
            let mapped = spool.mapped();
            return Ok((Data(Inner::Spool { spool, mapped }), self.limits.diff_id.then_some(diff_id)));
        }
        let data = Data::memory(std::mem::take(&mut self.memory), 0, self.filled);
        Ok((data, self.hasher.take().map(Hasher::finish)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spools_past_the_memory_bound_and_reads_back_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let limits = Limits { spool: Some(&store), diff_id: true, ..Limits::in_memory(64 << 20) };
        let piece: Vec<u8> = (0..1_000_003u32).map(|i| (i % 251) as u8).collect();
        let mut sink = Sink::new(limits, 0);
        for _ in 0..20 {
            sink.write(&piece).unwrap();
        }
        let (data, diff_id) = sink.finish().unwrap();
        assert_eq!(data.size(), 20 * piece.len() as u64);
        assert!(data.as_slice().is_none());
        assert_eq!(data.bytes_at(19 * piece.len() as u64, piece.len()).unwrap(), piece);
        assert_eq!(data.bytes_at(data.size() - 1, 2).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(diff_id.unwrap(), data.sha256().unwrap());
        assert_eq!(diff_id.unwrap(), Digest::sha256(&piece.repeat(20)));
        assert_eq!(&*data.bytes_at(17, 100).unwrap(), &piece[17..117]);
        assert_eq!(std::fs::read_dir(directory.path().join("spool")).unwrap().count(), 0, "a spool has no name");
        assert_eq!(store.usage().unwrap().blobs.count, 0);
    }

    #[test]
    fn a_reused_buffer_shows_nothing_of_its_former_user() {
        drop(Data::from(vec![0xaa; 300_000]));
        let mut sink = Sink::new(Limits::in_memory(1 << 20), 250_000);
        sink.write(b"short").unwrap();
        let (data, _) = sink.finish().unwrap();
        assert_eq!(data.as_slice().unwrap(), b"short");
        assert_eq!(data.bytes_at(0, 6).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_budget_is_shared_and_names_its_total() {
        let budget = Budget::new(10);
        let limits = Limits { shared: Some(&budget), ..Limits::in_memory(100) };
        let mut first = Sink::new(limits, 0);
        let mut second = Sink::new(limits, 0);
        first.write(&[0; 6]).unwrap();
        assert!(matches!(second.write(&[0; 5]), Err(DecompressError::TotalTooLarge { cap: 10 })));
        assert!(matches!(Sink::new(Limits::in_memory(3), 0).write(&[0; 4]), Err(DecompressError::TooLarge { cap: 3 })));
    }
}
