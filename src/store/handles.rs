//! Blobs kept open: the hot path's memory. Bounded by the process's limit on open files; a blob that leaves only has
//! to be opened again.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Mutex,
};

use super::{Blob, layout::lock};
use crate::digest::Digest;

/// Digests are hashes already: eight bytes of them spread as well as any.
#[derive(Default)]
pub(super) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut first = [0; 8];
        let n = bytes.len().min(8);
        first[..n].copy_from_slice(&bytes[..n]);
        self.0 = self.0.rotate_left(5) ^ u64::from_le_bytes(first);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Map = HashMap<Digest, Entry, BuildHasherDefault<DigestHasher>>;

struct Entry {
    blob: Blob,
    used: u64,
}

#[derive(Default)]
struct Shard {
    map: Map,
    clock: u64,
}

pub(super) struct Handles {
    shards: Vec<Mutex<Shard>>,
    /// At most so many in each shard.
    each: usize,
}

impl Handles {
    /// A quarter of the process's open files, at most 1024.
    pub fn new() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(4096);
        Self::with_capacity(usize::try_from(limit / 4).unwrap_or(1024).min(1024))
    }

    pub fn with_capacity(capacity: usize) -> Self {
        let shards = (capacity / 4).clamp(1, 16);
        Self { shards: (0..shards).map(|_| Mutex::default()).collect(), each: (capacity / shards).max(1) }
    }

    fn shard(&self, digest: &Digest) -> &Mutex<Shard> {
        &self.shards[usize::from(digest.bytes()[1]) % self.shards.len()]
    }

    pub fn get(&self, digest: &Digest) -> Option<Blob> {
        let mut shard = lock(self.shard(digest));
        shard.clock += 1;
        let now = shard.clock;
        let entry = shard.map.get_mut(digest)?;
        entry.used = now;
        Some(entry.blob.clone())
    }

    /// The blob, if it is open, without counting that as a use.
    pub fn peek<T>(&self, digest: &Digest, look: impl FnOnce(&Blob) -> T) -> Option<T> {
        lock(self.shard(digest)).map.get(digest).map(|e| look(&e.blob))
    }

    /// The blobs whose last use the journal has not, by `seconds` or more, with that use.
    pub fn to_note(&self, seconds: u32) -> Vec<(Digest, u32)> {
        let mut uses = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            uses.extend(shard.map.iter().filter_map(|(d, e)| Some((*d, e.blob.to_note(seconds)?))));
        }
        uses
    }

    /// Keeps a blob open; the one that had to be closed for it, if any.
    #[must_use]
    pub fn insert(&self, blob: Blob) -> Option<Blob> {
        let mut shard = lock(self.shard(&blob.digest()));
        shard.clock += 1;
        let used = shard.clock;
        let mut out = None;
        if shard.map.len() >= self.each && !shard.map.contains_key(&blob.digest()) {
            let oldest = shard.map.iter().min_by_key(|(_, e)| e.used).map(|(d, _)| *d);
            out = oldest.and_then(|d| shard.map.remove(&d));
        }
        let old = shard.map.insert(blob.digest(), Entry { blob, used });
        drop(shard);
        // Unmapping takes its time; not under the lock.
        drop(old);
        out.map(|e| e.blob)
    }

    /// Closes the blob, unless it has been opened afresh since `blob`.
    pub fn remove(&self, digest: &Digest, blob: Option<&Blob>) {
        let mut shard = lock(self.shard(digest));
        let same = shard.map.get(digest).is_some_and(|e| blob.is_none_or(|b| b.identity() == e.blob.identity()));
        let old = if same { shard.map.remove(digest) } else { None };
        drop(shard);
        drop(old);
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| lock(s).map.len()).sum()
    }
}
