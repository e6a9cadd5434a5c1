//! Bounds on what is cached: a byte budget, and headroom on the disk.
//!
//! Promise: what is cached, with what is being written, never exceeds [`Bounds::max_bytes`] by more than one blob, and
//! is not written where less than the headroom would stay free. Cached is what has another source: every blob but
//! those that a local repository links; what was pushed here has none, so it is not counted and never evicted. Room is
//! made before a blob is written: the least recently used go first (ties by digest), one larger than the whole budget
//! before all others, and none that a root, a link, a pin or a lease names, or that somebody reads just now. Nothing
//! goes for one that would not fit the disk even then. Where that is not enough, one blob over the budget is admitted, and the next refused with [`StoreError::NoRoom`]. A disk
//! that is full all the same is answered in the same way: what was set aside for a look goes, and shared files that no
//! tree links to, others are evicted, and what failed is tried once more.
//!
//! How it stays safe while others write: a round of evictions raises the same flag as a collection (gc.rs) before it
//! reads what is named, so whatever is named after that was leased meanwhile, and stays. Evicting unlinks: who has the
//! blob open reads on. Killed at any moment it has removed some of the cache and nothing else.
//!
//! When a blob was last used stands in its open handle, in seconds, and once a minute in the journal; a hit takes no
//! lock for it. Candidates are found by listing the directories beside the journal, the first time that room is
//! needed; `CANDIDATES` at a time are remembered, so a round costs no listing as long as some are left. Rounds wait
//! for each other; hits wait for none.

mod named;
mod room;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant},
};

use super::{
    Store, StoreError,
    gc::{Names, Round},
    journal::{LastPage, Record},
    layout::{Identity, blob_named, blob_path, is_file, lock, times},
    quota::Quota,
    read::NOTE_USE_EVERY,
    shards::{blob_shard, directory},
};
use crate::{
    digest::Digest,
    metrics::{self, Eviction as Why},
};

use named::Named;
pub(super) use room::Room;

/// The setting of the byte budget, as messages name it.
pub(super) const MAX_BYTES: &str = "store.maxBytes";
const HEADROOM_BYTES: &str = "store.headroomBytes";

/// The headroom unless it is set: a twentieth of the file system, and at most this. Enough for the journal of a file
/// system and for what pushes and objects write until an operator has seen the alert.
const MOST_HEADROOM: u64 = 512 << 20;
/// How many candidates are remembered: 80 bytes each.
const CANDIDATES: usize = 8192;
/// After a look through everything that took this long or longer, the next one waits twenty times as long.
const LONG: Duration = Duration::from_millis(100);
/// What is evicted at least when the disk is full: less would not pay the round.
const LEAST: u64 = 256 << 10;
/// How many blobs are evicted when there are no inodes left.
const LEAST_FILES: u64 = 64;

/// How much may be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of cached blobs; no limit if absent.
    pub max_bytes: Option<u64>,
    /// Bytes of the disk that stay free; if absent a twentieth of the file system, at most 512 MiB.
    pub headroom_bytes: Option<u64>,
}

/// What was evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

type Roots = Box<dyn Fn() -> Vec<Digest> + Send + Sync>;

/// How long not to look through everything again.
fn pause_after(took: Duration) -> Option<Duration> {
    (took >= LONG).then(|| took * 20)
}

struct Limits {
    max: Option<u64>,
    headroom: u64,
    roots: Roots,
}

#[derive(Default)]
pub(super) struct Eviction {
    limits: RwLock<Option<Arc<Limits>>>,
    quota: Quota,
    named: Mutex<Option<Named>>,
    /// Held for the length of a round.
    queue: Mutex<Queue>,
    /// When the shared files may be looked through again.
    files_not_before: Mutex<Option<Instant>>,
}

/// Candidates, the first to go first.
#[derive(Default)]
struct Queue {
    next: BTreeSet<Candidate>,
    /// What the last listing left out comes after this; `None` where it left nothing out.
    after: Option<Candidate>,
    /// When a listing may be made again.
    not_before: Option<Instant>,
}

/// Last use in seconds since 1970, and who; what may not stay at all has 0.
type Candidate = (u32, Digest);

/// What a round must bring.
#[derive(Clone, Copy, Default)]
struct Lack {
    bytes: u64,
    files: u64,
}

impl Store {
    /// From now on what is cached is bounded. `roots` gives, whenever room is needed, every digest that a status
    /// names; it must not wait for anybody who calls the store. Nothing is evicted before this is called.
    pub fn bind(
        &self,
        bounds: Bounds,
        roots: impl Fn() -> Vec<Digest> + Send + Sync + 'static,
    ) -> Result<(), StoreError> {
        self.writable()?;
        let headroom = match bounds.headroom_bytes {
            Some(bytes) => bytes,
            None => (self.disk()?.total / 20).min(MOST_HEADROOM),
        };
        metrics::store_bounds(bounds.max_bytes, headroom);
        let limits = Limits { max: bounds.max_bytes, headroom, roots: Box::new(roots) };
        *self.0.eviction.limits.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Arc::new(limits));
        Ok(())
    }

    /// Ends the bounds; what gave the roots is let go.
    pub(super) fn unbind(&self) {
        *self.0.eviction.limits.write().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }

    fn limits(&self) -> Option<Arc<Limits>> {
        self.0.eviction.limits.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Brings what is cached back within its bounds, and notes for a restart what was used when. To be called every
    /// few seconds, from a thread that may wait: the first call counts what is held.
    pub fn trim(&self) -> Result<Evicted, StoreError> {
        self.writable()?;
        self.note_uses(NOTE_USE_EVERY);
        let Some(limits) = self.limits() else { return Ok(Evicted::default()) };
        let mut evicted = Evicted::default();
        if let Some(max) = limits.max {
            evicted = self.evict_over_budget(&limits, max, 0)?;
        }
        self.evict_for_headroom(&limits, 0)?;
        Ok(evicted)
    }

    /// Bytes of blobs that could be fetched again: what the byte budget counts, whether there is one or not. The first call
    /// counts as [`Store::usage`]'s does, and reads what links name; so does the next one after a link was deleted.
    pub fn cached_bytes(&self) -> Result<u64, StoreError> {
        let mut held = 0;
        for index in 0..512 {
            held += self.0.shards.count(&self.0.layout, index)?.bytes;
        }
        Ok(held.saturating_sub(self.with_named(|named| named.bytes)?))
    }

    fn evict_over_budget(&self, limits: &Limits, max: u64, size: u64) -> Result<Evicted, StoreError> {
        self.evict(limits, Why::Budget, || {
            let taken = self.0.eviction.quota.taken(|| self.cached_bytes())?;
            let bytes = taken.saturating_add(size).saturating_sub(max);
            // A little more, so that not every blob needs a round: nothing below 8 MiB, else under 1 %.
            Ok(Lack { bytes: if bytes > 0 { bytes + (max >> 7 & !0xffff) } else { 0 }, files: 0 })
        })
    }

    /// Evicts until `size` bytes fit above the headroom; how many bytes are missing still.
    fn evict_for_headroom(&self, limits: &Limits, size: u64) -> Result<u64, StoreError> {
        let lack = || Ok(limits.headroom.saturating_add(size).saturating_sub(self.disk()?.free));
        if limits.headroom == 0 || lack()? == 0 {
            return Ok(0);
        }
        self.clear_unused()?;
        self.evict(limits, Why::Headroom, || {
            let bytes = lack()?;
            // What can never fit is not worth emptying the cache for; the headroom itself is.
            let within_reach = size == 0 || bytes <= self.evictable_bytes(limits)?;
            Ok(Lack { bytes: if within_reach { bytes } else { bytes.saturating_sub(size) }, files: 0 })
        })?;
        lack()
    }

    /// No more than this can be evicted: what is cached but for the content that a status names. Pins, leases and
    /// readers may hold some of it nevertheless.
    fn evictable_bytes(&self, limits: &Limits) -> Result<u64, StoreError> {
        let mut roots = (limits.roots)();
        roots.sort_unstable();
        roots.dedup();
        let mut stay = 0;
        for digest in roots {
            if !self.is_local(&digest)? {
                stay += self.0.journal.lookup(&digest).map_or(0, |record| record.id.size);
            }
        }
        Ok(self.cached_bytes()?.saturating_sub(stay))
    }

    /// One round: evicts until what `lack` says, at its beginning, is there, or nothing more may go.
    fn evict(
        &self,
        limits: &Limits,
        why: Why,
        lack: impl FnOnce() -> Result<Lack, StoreError>,
    ) -> Result<Evicted, StoreError> {
        let mut queue = lock(&self.0.eviction.queue);
        // Another round may have made the room while this one waited.
        let lack = lack()?;
        let mut evicted = Evicted::default();
        let enough = |e: &Evicted| e.bytes >= lack.bytes && e.blobs >= lack.files;
        if enough(&evicted) {
            return Ok(evicted);
        }
        let _round = Round::begin(self);
        let mut roots = Names::default();
        roots.extend((limits.roots)());
        let mut stay = Vec::new();
        let mut listed = false;
        let ended = loop {
            if enough(&evicted) {
                break Ok(());
            }
            let Some(candidate) = queue.next.pop_first() else {
                match self.list_more(&mut queue, limits.max, &mut listed) {
                    Ok(true) => continue,
                    Ok(false) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            match self.evict_one(candidate, &roots, limits.max) {
                Ok(Fate::Evicted(bytes)) => {
                    evicted.blobs += 1;
                    evicted.bytes += bytes;
                }
                Ok(Fate::Stays) => stay.push(candidate),
                Ok(Fate::UsedSince(at)) => {
                    // Past the end of what was listed the next listing finds it.
                    if queue.after.is_none_or(|after| at < after) {
                        queue.next.insert(at);
                    }
                }
                Ok(Fate::Gone) => {}
                Err(error) => break Err(error),
            }
        };
        // What stayed this time may go the next.
        queue.next.extend(stay);
        drop(queue);
        if evicted.blobs > 0 {
            metrics::evicted(why, evicted.blobs, evicted.bytes);
            tracing::debug!(blobs = evicted.blobs, bytes = evicted.bytes, ?why, "evicted the least recently used");
        }
        ended.map(|()| evicted)
    }

    fn evict_one(&self, (key, digest): Candidate, roots: &Names, max: Option<u64>) -> Result<Fate, StoreError> {
        if roots.contains(&digest)
            || self.0.shards.of_blob(&digest).is_kept(&digest)
            || self.with_named(|named| named.contains(&digest))?
        {
            return Ok(Fate::Stays);
        }
        let open = self.0.handles.peek(&digest, |blob| (blob.used(), blob.in_use()));
        if open.is_some_and(|(_, in_use)| in_use) {
            return Ok(Fate::Stays);
        }
        let record = self.0.journal.lookup(&digest);
        let seen = record.map_or(0, |r| r.seen).max(open.map_or(0, |(used, _)| used));
        if key != 0 && seen > key && !is_giant(record.as_ref(), max) {
            return Ok(Fate::UsedSince((seen, digest)));
        }
        let path = blob_path(&digest);
        let mut shard = self.0.shards.of_blob(&digest);
        if shard.is_kept(&digest) {
            return Ok(Fate::Stays);
        }
        let Some(stat) = self.0.layout.stat(&path)?.filter(is_file) else { return Ok(Fate::Gone) };
        let id = Identity::from_stat(&stat);
        if !self.0.layout.remove_file(&path)? {
            return Ok(Fate::Gone);
        }
        match record {
            Some(record) if record.id == id => shard.removed(id.size),
            // Changed behind our back, or never looked at: what it was counted as is not known for sure.
            _ => shard.count = None,
        }
        drop(shard);
        self.0.journal.forget(&self.0.layout, &digest);
        self.0.handles.remove(&digest, None);
        Ok(Fate::Evicted(id.size))
    }

    /// Finds more candidates; `false` where there are none that were not looked at in this round.
    fn list_more(&self, queue: &mut Queue, max: Option<u64>, listed: &mut bool) -> Result<bool, StoreError> {
        let start = Instant::now();
        // From where the last listing of this round ended, else from the beginning: others may have come before it.
        let after = match (*listed, queue.after) {
            (true, None) => return Ok(false),
            (true, after) => after,
            (false, _) if queue.not_before.is_some_and(|at| start < at) => return Ok(false),
            (false, _) => None,
        };
        *listed = true;
        self.note_uses(1);
        queue.after = None;
        for index in 0..512 {
            let (algorithm, first) = blob_shard(index);
            let names = self.0.layout.names(&directory(index))?;
            let mut digests: Vec<_> = names.iter().filter_map(|name| blob_named(algorithm, first, name)).collect();
            digests.sort_unstable();
            let mut page = LastPage::none();
            for digest in digests {
                let record = self.0.journal.lookup_next(&mut page, &digest);
                let seen = match record {
                    _ if is_giant(record.as_ref(), max) => 0,
                    Some(record) if record.seen > 0 => record.seen,
                    // Never read since it was written.
                    _ => match self.0.layout.stat(&blob_path(&digest))? {
                        Some(stat) => u32::try_from(times(&stat).0).unwrap_or(u32::MAX),
                        None => continue,
                    },
                };
                let candidate = (seen, digest);
                if after.is_some_and(|after| candidate <= after) {
                    continue;
                }
                queue.next.insert(candidate);
                if queue.next.len() > CANDIDATES {
                    queue.next.pop_last();
                    queue.after = queue.next.last().copied();
                }
            }
        }
        if queue.next.is_empty() {
            queue.not_before = pause_after(start.elapsed()).map(|pause| Instant::now() + pause);
        }
        Ok(!queue.next.is_empty())
    }
}

/// What became of a candidate.
enum Fate {
    Evicted(u64),
    /// Named, leased or being read.
    Stays,
    UsedSince(Candidate),
    Gone,
}

/// Whether a blob is larger than the whole budget: it goes before all others, not all others for it.
fn is_giant(record: Option<&Record>, max: Option<u64>) -> bool {
    record.zip(max).is_some_and(|(record, max)| record.id.size > max)
}

#[cfg(test)]
mod tests;
