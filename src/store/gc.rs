//! Collection: what nothing names goes.
//!
//! Promise: a blob that a root, a link (a local repository's manifest, or what it refers to), a pin or a lease names is
//! not removed, and neither is one that something named within the time given; nothing is scanned twice, and nobody
//! waits for it: one blob's directory is locked for one removal at a time. How it stays safe while others write: first
//! a flag goes up, from which moment each digest leased, however briefly, counts as named until the end; only then
//! are roots and links read. So whatever is named after that reading was leased while the flag was up, if its writer
//! holds a lease from before it looks the blob up until its name is recorded. Killed at any moment it has removed some
//! garbage and nothing else.
//!
//! When a blob was last named is noted in the journal at each collection, to the hour, and when it was last used, to the
//! minute; where that is lost the time of its writing counts. The time that a shared file lost its last tree is its ctime.

use std::{
    collections::HashSet,
    hash::BuildHasherDefault,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    Store, StoreError,
    handles::DigestHasher,
    layout::{Identity, blob_named, blob_path, is_file, lock, times},
    shards::{SHARDS, blob_shard, directory},
};
use crate::digest::Digest;

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Collected {
    /// Blobs.
    pub blobs: u64,
    /// Shared files that no tree linked to.
    pub files: u64,
    /// The bytes of both.
    pub bytes: u64,
}

/// How long pushed content without a manifest is kept (contract section 6).
pub const PUSHED_FOR: Duration = Duration::from_secs(2 * 60 * 60);
/// How long anything else that nothing names is kept (contract section 6).
pub const UNREFERENCED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// How long what was found wrong is kept for a look.
const QUARANTINED_FOR: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How much of what was found wrong is kept for a look: the newest of it.
pub(super) const QUARANTINED_BYTES: u64 = 256 << 20;
/// Notes of "named just now" are this coarse: one write a blob an hour.
const NOTE_EVERY: u32 = 60 * 60;

/// Sixteen bytes of each digest: enough to tell them apart, and a million take 32 MiB; two that collide are both kept.
#[derive(Default)]
pub(super) struct Names(HashSet<[u8; 16], BuildHasherDefault<DigestHasher>>);

impl Names {
    pub fn short(digest: &Digest) -> [u8; 16] {
        let mut short = [0; 16];
        short.copy_from_slice(&digest.bytes()[..16]);
        short
    }

    pub fn contains(&self, digest: &Digest) -> bool {
        self.0.contains(&Self::short(digest))
    }
}

impl Extend<Digest> for Names {
    fn extend<T: IntoIterator<Item = Digest>>(&mut self, digests: T) {
        self.0.extend(digests.into_iter().map(|d| Self::short(&d)));
    }
}

struct Limits {
    now: u64,
    unreferenced: u64,
    pushed: u64,
}

/// A round of removals: raises the flag, and lowers it also when the round fails.
pub(super) struct Round<'a>(&'a Store);

impl<'a> Round<'a> {
    pub fn begin(store: &'a Store) -> Self {
        store.0.shards.begin_round();
        Self(store)
    }
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        self.0.0.shards.end_round();
    }
}

impl Store {
    /// Removes the blobs and shared files that nothing has named for `unreferenced_for` (usually
    /// [`UNREFERENCED_FOR`]; pushed blobs that no manifest refers to: for [`PUSHED_FOR`], if that is less), and what
    /// crashed writers left. `roots` is called once, after the point from which leases count to the end; it gives
    /// every digest that a status names. Collections wait for each other, nothing else waits for them.
    pub fn collect<R: IntoIterator<Item = Digest>>(
        &self,
        roots: impl FnOnce() -> R,
        unreferenced_for: Duration,
    ) -> Result<Collected, StoreError> {
        self.collect_at(roots, unreferenced_for, SystemTime::now())
    }

    pub(super) fn collect_at<R: IntoIterator<Item = Digest>>(
        &self,
        roots: impl FnOnce() -> R,
        unreferenced_for: Duration,
        now: SystemTime,
    ) -> Result<Collected, StoreError> {
        self.writable()?;
        let _alone = lock(&self.0.collection);
        self.note_uses(1);
        let _round = Round::begin(self);
        let mut named = Names::default();
        named.extend(roots());
        let linked = self.linked()?;
        named.extend(linked.local);
        named.extend(linked.pinned);
        // What is cached goes when the room is needed (`evict`), not because nobody asked for it today.
        named.extend(self.mirrored_digests()?);
        let mut pushed = Names::default();
        pushed.extend(linked.pushed);
        pushed.extend(linked.deleted);
        let limits = Limits {
            now: now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            unreferenced: unreferenced_for.as_secs(),
            pushed: unreferenced_for.min(PUSHED_FOR).as_secs(),
        };
        let mut collected = Collected::default();
        for index in 0..512 {
            self.collect_blobs(index, &named, &pushed, &limits, &mut collected)?;
        }
        for index in 512..SHARDS {
            self.collect_files(index, &limits, &mut collected)?;
        }
        self.unlink_absent()?;
        self.forget_absent_mirrored()?;
        self.forget_named();
        self.remove_all_leftovers()?;
        self.clear_quarantine(limits.now, QUARANTINED_BYTES)?;
        Ok(collected)
    }

    /// Removes from `quarantine/` what lies there too long by `now`, and the oldest of it until at most `bytes` are
    /// left; how many bytes went.
    pub(super) fn clear_quarantine(&self, now: u64, bytes: u64) -> Result<u64, StoreError> {
        let mut held = Vec::new();
        for name in self.0.layout.names("quarantine")? {
            let path = format!("quarantine/{name}");
            if let Some(stat) = self.0.layout.stat(&path)? {
                held.push((times(&stat).1, path, Identity::from_stat(&stat).size));
            }
        }
        held.sort_unstable();
        let (mut left, mut gone) = (held.iter().map(|(_, _, size)| size).sum::<u64>(), 0);
        for (since, path, size) in held {
            if left > bytes || now.saturating_sub(since) > QUARANTINED_FOR.as_secs() {
                self.0.layout.remove_all(&path)?;
                left -= size;
                gone += size;
            }
        }
        Ok(gone)
    }

    fn collect_blobs(
        &self,
        index: usize,
        named: &Names,
        pushed: &Names,
        limits: &Limits,
        collected: &mut Collected,
    ) -> Result<(), StoreError> {
        let (algorithm, first) = blob_shard(index);
        let now = u32::try_from(limits.now).unwrap_or(u32::MAX);
        for name in self.0.layout.names(&directory(index))? {
            // Another name is nothing of ours; verify reports it.
            let Some(digest) = blob_named(algorithm, first, &name) else { continue };
            let record = self.0.journal.lookup(&digest);
            let seen = record.map_or(0, |r| r.seen);
            if named.contains(&digest) || self.0.shards.of_blob(&digest).is_kept(&digest) {
                if seen.saturating_add(NOTE_EVERY) <= now {
                    self.0.journal.touch(&self.0.layout, &digest, now);
                }
                continue;
            }
            let limit = if pushed.contains(&digest) { limits.pushed } else { limits.unreferenced };
            let path = blob_path(&digest);
            let mut shard = self.0.shards.of_blob(&digest);
            let Some(stat) = self.0.layout.stat(&path)? else { continue };
            let last = times(&stat).0.max(u64::from(seen));
            if shard.is_kept(&digest) || limits.now.saturating_sub(last) < limit || !is_file(&stat) {
                continue;
            }
            let id = Identity::from_stat(&stat);
            if self.0.layout.remove_file(&path)? {
                match record {
                    Some(record) if record.id == id => shard.removed(id.size),
                    // Changed behind our back: what it was counted as is not known.
                    _ => shard.count = None,
                }
                drop(shard);
                self.0.journal.forget(&self.0.layout, &digest);
                self.0.handles.remove(&digest, None);
                collected.blobs += 1;
                collected.bytes += id.size;
            }
        }
        Ok(())
    }

    /// Removes the shared files that no tree links to now, however lately one did: for a disk that is full.
    pub(super) fn collect_unused_files(&self) -> Result<Collected, StoreError> {
        let limits = Limits { now: 0, unreferenced: 0, pushed: 0 };
        let mut collected = Collected::default();
        for index in 512..SHARDS {
            self.collect_files(index, &limits, &mut collected)?;
        }
        Ok(collected)
    }

    fn collect_files(&self, index: usize, limits: &Limits, collected: &mut Collected) -> Result<(), StoreError> {
        let directory = directory(index);
        let first = (index % 256) as u8;
        for name in self.0.layout.names(&directory)? {
            let path = format!("{directory}/{name}");
            let mut shard = self.0.shards.of_file(first);
            let Some(stat) = self.0.layout.stat(&path)? else { continue };
            let unused = stat.st_nlink == 1 && is_file(&stat);
            if !unused || limits.now.saturating_sub(times(&stat).1) < limits.unreferenced {
                continue;
            }
            let size = Identity::from_stat(&stat).size;
            if self.0.layout.remove_file(&path)? {
                shard.removed(size);
                collected.files += 1;
                collected.bytes += size;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Count, Durability, tests::store};
    use std::path::Path;

    const HOUR: Duration = Duration::from_secs(60 * 60);
    const NONE: fn() -> Vec<Digest> = Vec::new;

    fn put(store: &Store, content: &[u8]) -> Digest {
        store.put(Digest::sha256(content), content, Durability::Soon).unwrap().digest()
    }

    #[test]
    fn what_is_named_stays_and_the_rest_goes_to_the_byte() {
        let (_root, store) = store();
        let [root, layer, manifest, pinned, leased, garbage] =
            [&b"root"[..], b"layer", b"manifest", b"pinned", b"leased", b"garbage"].map(|c| put(&store, c));
        let repository = store.local_named("a");
        repository.put_manifest(&manifest, "m", &[layer]).unwrap();
        store.pin("p", &[pinned]).unwrap();
        let lease = store.lease(leased);
        store.usage().unwrap();
        let collected = store.collect(|| [root], Duration::ZERO).unwrap();
        assert_eq!(collected, Collected { blobs: 1, files: 0, bytes: 7 });
        assert!(store.get(&garbage).unwrap().is_none());
        assert_eq!(store.usage().unwrap().blobs, Count { count: 5, bytes: 4 + 5 + 8 + 6 + 6 });

        drop(lease);
        store.unpin("p").unwrap();
        repository.delete_manifest(&manifest).unwrap();
        let collected = store.collect(|| [root], Duration::ZERO).unwrap();
        assert_eq!(collected, Collected { blobs: 4, files: 0, bytes: 5 + 8 + 6 + 6 });
        assert_eq!(store.get(&root).unwrap().unwrap().to_vec().unwrap(), b"root");
    }

    #[test]
    fn the_time_counts_from_the_last_collection_that_found_it_named() {
        let (_root, store) = store();
        let digest = put(&store, b"x");
        let start = SystemTime::now() + HOUR * 2;
        let at = |hours: u32| start + HOUR * hours;
        store.collect_at(|| [digest], HOUR * 24, at(100)).unwrap();
        assert_eq!(store.collect_at(NONE, HOUR * 24, at(123)).unwrap().blobs, 0);
        assert_eq!(store.collect_at(NONE, HOUR * 24, at(124)).unwrap().blobs, 1);
    }

    #[test]
    fn pushed_blobs_without_a_manifest_go_after_two_hours_with_their_links() {
        let (_root, store) = store();
        let (pushed, cached) = (put(&store, b"pushed"), put(&store, b"cached"));
        let repository = store.local_named("a");
        repository.link_blob(&pushed).unwrap();
        let now = SystemTime::now();
        assert_eq!(store.collect_at(NONE, UNREFERENCED_FOR, now + HOUR).unwrap(), Collected::default());
        assert_eq!(store.collect_at(NONE, UNREFERENCED_FOR, now + HOUR * 3).unwrap().blobs, 1);
        assert!(!repository.has_blob(&pushed).unwrap());
        assert!(store.get(&cached).unwrap().is_some());
    }

    #[test]
    fn what_was_pushed_and_deleted_goes_after_two_hours_and_leaves_no_note() {
        let (root, store) = store();
        let [config, manifest, cached] = [&b"config"[..], b"manifest", b"cached"].map(|c| put(&store, c));
        let repository = store.local_named("a");
        repository.link_blob(&config).unwrap();
        repository.put_manifest(&manifest, "m", &[config]).unwrap();
        let now = SystemTime::now();
        assert_eq!(store.collect_at(NONE, UNREFERENCED_FOR, now + HOUR * 3).unwrap().blobs, 0, "untagged, but there");
        assert!(repository.delete_manifest(&manifest).unwrap() && repository.delete_blob(&config).unwrap());
        assert_eq!(store.collect_at(NONE, UNREFERENCED_FOR, now + HOUR * 4).unwrap(), Collected::default());
        assert_eq!(store.collect_at(NONE, UNREFERENCED_FOR, now + HOUR * 6).unwrap().blobs, 2);
        assert!(store.get(&cached).unwrap().is_some());
        let notes = root.path().join("links/local/a/_deleted");
        assert_eq!(std::fs::read_dir(notes).unwrap().count(), 0);
    }

    #[test]
    fn what_is_leased_while_a_collection_runs_stays_also_after_its_release() {
        let (_root, store) = store();
        let (before, during) = (put(&store, b"before"), put(&store, b"during"));
        let lease = store.lease(before);
        let roots = || {
            // As a pull does: lease, look up, name it in a status, release; the statuses were read before that.
            drop(store.lease(during));
            drop(lease);
            NONE()
        };
        assert_eq!(store.collect(roots, Duration::ZERO).unwrap(), Collected::default());
        assert_eq!(store.collect(NONE, Duration::ZERO).unwrap().blobs, 2);
    }

    #[test]
    fn a_shared_file_goes_only_when_no_tree_links_to_it() {
        let (_root, store) = store();
        let tree = store.begin_tree("default", "app", "ab").unwrap();
        store.link_file(b"content", false, tree.contents(), Path::new("f")).unwrap();
        tree.publish().unwrap();
        let kept = store.collect(NONE, Duration::ZERO).unwrap();
        // On a file system that shares extents the pool's file is not needed.
        if store.0.reflink.load(std::sync::atomic::Ordering::Relaxed) == 2 {
            assert_eq!(kept, Collected::default());
            store.retire_tree("default", "app", "ab").unwrap();
            assert_eq!(store.collect(NONE, HOUR).unwrap(), Collected::default());
            let gone = store.collect(NONE, Duration::ZERO).unwrap();
            assert_eq!(gone, Collected { blobs: 0, files: 1, bytes: 7 });
            assert_eq!(store.usage().unwrap().files, Count::default());
        }
    }

    #[test]
    fn a_collection_beside_writers_takes_nothing_that_they_hold() {
        let (_root, store) = store();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3u8)
                .map(|thread| {
                    let store = &store;
                    scope.spawn(move || {
                        for n in 0..150u8 {
                            let content = [n % 10, thread % 2];
                            let lease = store.lease(Digest::sha256(&content));
                            let blob = store.put(lease.digest(), &content, Durability::Soon).unwrap();
                            assert_eq!(blob.to_vec().unwrap(), content);
                            assert_eq!(store.get(&lease.digest()).unwrap().unwrap().mapped(), &content[..]);
                        }
                    })
                })
                .collect();
            let collector = scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    store.collect(NONE, Duration::ZERO).unwrap();
                }
            });
            for writer in writers {
                writer.join().unwrap();
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            collector.join().unwrap();
        });
        store.collect(NONE, Duration::ZERO).unwrap();
        assert_eq!(store.usage().unwrap().blobs, Count::default());
    }
}
