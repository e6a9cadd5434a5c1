//! One lock for each directory of blobs (algorithm and first byte) and of shared files (first byte): under it names
//! appear and disappear, are counted, and are kept from collection.

use std::collections::{HashMap, HashSet};

use super::{
    Count,
    layout::{Identity, Layout, is_file},
    sync::{AtomicUsize, Mutex, MutexGuard, Ordering, lock},
};
use crate::{
    digest::{Algorithm, Digest},
    store::StoreError,
};

/// Directories: 256 of sha256, 256 of sha512, 256 of shared files.
pub(super) const SHARDS: usize = 768;

/// What is known of one directory.
#[derive(Default)]
pub(super) struct Shard {
    /// What the directory holds; `None` until somebody asks.
    pub count: Option<Count>,
    leases: HashMap<Digest, u32>,
    /// Leased, and perhaps released, since a round under way began.
    kept: HashSet<Digest>,
}

impl Shard {
    pub fn added(&mut self, bytes: u64) {
        if let Some(count) = &mut self.count {
            count.count += 1;
            count.bytes += bytes;
        }
    }

    pub fn removed(&mut self, bytes: u64) {
        self.count = self
            .count
            .take()
            .and_then(|c| Some(Count { count: c.count.checked_sub(1)?, bytes: c.bytes.checked_sub(bytes)? }));
    }

    pub fn is_kept(&self, digest: &Digest) -> bool {
        self.leases.contains_key(digest) || self.kept.contains(digest)
    }
}

/// A directory's state at the last orderly end: valid as long as its mtime is the same.
#[derive(Clone, Copy, Default)]
struct Saved {
    count: Count,
    mtime: i64,
}

pub(super) struct Shards {
    shards: Vec<Mutex<Shard>>,
    saved: Mutex<Vec<Saved>>,
    /// Collections and evictions under way.
    rounds: AtomicUsize,
    /// Rounds begin and end one after the other.
    turn: Mutex<()>,
}

/// The directory of a shard.
pub(super) fn directory(index: usize) -> String {
    match index / 256 {
        0 => format!("blobs/sha256/{:02x}", index % 256),
        1 => format!("blobs/sha512/{:02x}", index % 256),
        _ => format!("files/{:02x}", index % 256),
    }
}

/// The algorithm and first byte of a directory of blobs.
pub(super) fn blob_shard(index: usize) -> (Algorithm, u8) {
    (if index < 256 { Algorithm::Sha256 } else { Algorithm::Sha512 }, (index % 256) as u8)
}

fn blob_index(digest: &Digest) -> usize {
    usize::from(digest.bytes()[0])
        + match digest.algorithm() {
            Algorithm::Sha256 => 0,
            Algorithm::Sha512 => 256,
        }
}

#[allow(clippy::unnecessary_cast)]
fn mtime(layout: &Layout, path: &str) -> Option<i64> {
    let stat = layout.stat(path).ok().flatten()?;
    Some((stat.st_mtime as i64).wrapping_mul(1_000_000_000).wrapping_add(stat.st_mtime_nsec as i64))
}

impl Shards {
    pub fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            saved: Mutex::default(),
            rounds: AtomicUsize::new(0),
            turn: Mutex::default(),
        }
    }

    pub fn of_blob(&self, digest: &Digest) -> MutexGuard<'_, Shard> {
        lock(&self.shards[blob_index(digest)])
    }

    pub fn of_file(&self, first: u8) -> MutexGuard<'_, Shard> {
        lock(&self.shards[512 + usize::from(first)])
    }

    /// What directory `index` holds; lists it the first time.
    pub fn count(&self, layout: &Layout, index: usize) -> Result<Count, StoreError> {
        let mut shard = lock(&self.shards[index]);
        if let Some(count) = shard.count {
            return Ok(count);
        }
        let path = directory(index);
        let saved = lock(&self.saved).get(index).copied();
        let count = match saved {
            Some(saved) if mtime(layout, &path).unwrap_or(0) == saved.mtime => saved.count,
            _ => {
                let mut count = Count::default();
                for name in layout.names(&path)? {
                    if let Some(stat) = layout.stat(&format!("{path}/{name}"))?
                        && is_file(&stat)
                    {
                        count.count += 1;
                        count.bytes += Identity::from_stat(&stat).size;
                    }
                }
                count
            }
        };
        shard.count = Some(count);
        Ok(count)
    }

    pub fn lease(&self, digest: &Digest) {
        let mut shard = self.of_blob(digest);
        *shard.leases.entry(*digest).or_default() += 1;
        self.keep(&mut shard, digest);
    }

    pub fn release(&self, digest: &Digest) {
        let mut shard = self.of_blob(digest);
        // A status may have come to name it while the lease lived, after the collection read the statuses.
        self.keep(&mut shard, digest);
        if let Some(n) = shard.leases.get_mut(digest) {
            *n -= 1;
            if *n == 0 {
                shard.leases.remove(digest);
            }
        }
    }

    fn keep(&self, shard: &mut Shard, digest: &Digest) {
        if self.rounds.load(Ordering::SeqCst) > 0 {
            shard.kept.insert(*digest);
        }
    }

    /// Begins a round of removals: from now on whatever is leased, if only for a moment, is kept until its `end_round`.
    pub fn begin_round(&self) {
        let _turn = lock(&self.turn);
        self.rounds.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends a round. What was kept is forgotten when no other is under way; none can begin meanwhile.
    pub fn end_round(&self) {
        let _turn = lock(&self.turn);
        if self.rounds.fetch_sub(1, Ordering::SeqCst) == 1 {
            for shard in &self.shards[..512] {
                let mut shard = lock(shard);
                if !shard.kept.is_empty() {
                    shard.kept = HashSet::new();
                }
            }
        }
    }

    /// The counts as bytes, for the next start: `count, bytes, mtime` of each directory known, then crc32.
    pub fn save(&self, layout: &Layout) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SHARDS * 24 + 4);
        for (index, shard) in self.shards.iter().enumerate() {
            let shard = lock(shard);
            let saved = match shard.count {
                Some(count) => Saved { count, mtime: mtime(layout, &directory(index)).unwrap_or(0) },
                None => lock(&self.saved).get(index).copied().unwrap_or(Saved { mtime: -1, ..Saved::default() }),
            };
            bytes.extend_from_slice(&saved.count.count.to_le_bytes());
            bytes.extend_from_slice(&saved.count.bytes.to_le_bytes());
            bytes.extend_from_slice(&saved.mtime.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// Takes what `save` gave; anything else is ignored.
    pub fn restore(&self, bytes: &[u8]) {
        let Some((body, crc)) = bytes.split_last_chunk::<4>() else { return };
        if body.len() != SHARDS * 24 || u32::from_le_bytes(*crc) != crc32fast::hash(body) {
            return;
        }
        let number = |chunk: &[u8], at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&chunk[at..at + 8]);
            u64::from_le_bytes(eight)
        };
        *lock(&self.saved) = body
            .chunks_exact(24)
            .map(|c| Saved {
                count: Count { count: number(c, 0), bytes: number(c, 8) },
                mtime: number(c, 16).cast_signed(),
            })
            .collect();
    }
}
