//! Every interleaving, as far as a random scheduler finds them, of writers, evictions and collections: the files that
//! decide who stays are compiled here once more, over the scheduler's locks.

// These are the very files of the store; not all of what they offer is used here.
#![allow(dead_code, unused_imports, clippy::duplicate_mod)]

use super::{Count, layout};

mod sync {
    pub use shuttle::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    };

    pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().expect("no test panics with a lock")
    }
}

#[path = "quota.rs"]
mod quota;
#[path = "shards.rs"]
mod shards;

use std::collections::BTreeSet;

use quota::{Admit, Quota};
use shards::Shards;
use shuttle::{
    sync::{Arc, Mutex},
    thread,
};
use sync::lock;

use crate::digest::Digest;

/// How many schedules each test tries.
const SCHEDULES: usize = 1000;

fn digest(n: u8) -> Digest {
    Digest::sha256(&[n])
}

/// A store of names only: what lies in a directory, what statuses name.
#[derive(Default)]
struct Model {
    shards: Option<Shards>,
    disk: Mutex<BTreeSet<Digest>>,
    roots: Mutex<BTreeSet<Digest>>,
}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self { shards: Some(Shards::new()), ..Self::default() })
    }

    fn shards(&self) -> &Shards {
        self.shards.as_ref().expect("made with it")
    }

    /// As a pull does it: lease, look up or write, name it in a status, let the lease go.
    fn publish(&self, digest: Digest) {
        self.shards().lease(&digest);
        let held = lock(&self.disk).contains(&digest);
        if !held {
            let _shard = self.shards().of_blob(&digest);
            lock(&self.disk).insert(digest);
        }
        lock(&self.roots).insert(digest);
        self.shards().release(&digest);
    }

    /// As a round of evictions, or a collection, does it.
    fn round(&self, candidates: &[Digest]) {
        self.shards().begin_round();
        let roots = lock(&self.roots).clone();
        for digest in candidates {
            if roots.contains(digest) {
                continue;
            }
            let shard = self.shards().of_blob(digest);
            if !shard.is_kept(digest) {
                lock(&self.disk).remove(digest);
            }
        }
        self.shards().end_round();
    }
}

#[test]
fn what_a_status_names_is_held_whatever_evictions_and_collections_run() {
    shuttle::check_random(
        || {
            let model = Model::new();
            let (one, two) = (digest(1), digest(2));
            lock(&model.disk).insert(one);
            let mut threads = Vec::new();
            for blob in [one, two] {
                let model = Arc::clone(&model);
                threads.push(thread::spawn(move || model.publish(blob)));
            }
            for _ in 0..2 {
                let model = Arc::clone(&model);
                threads.push(thread::spawn(move || model.round(&[one, two])));
            }
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(*lock(&model.disk), *lock(&model.roots));
        },
        SCHEDULES,
    );
}

#[test]
fn a_lease_is_kept_from_its_first_moment_to_its_last() {
    shuttle::check_random(
        || {
            let model = Model::new();
            let blob = digest(1);
            lock(&model.disk).insert(blob);
            model.shards().lease(&blob);
            let evicting = {
                let model = Arc::clone(&model);
                thread::spawn(move || model.round(&[blob]))
            };
            let other = {
                let model = Arc::clone(&model);
                thread::spawn(move || {
                    model.shards().lease(&blob);
                    model.shards().release(&blob);
                })
            };
            assert!(lock(&model.disk).contains(&blob));
            evicting.join().unwrap();
            other.join().unwrap();
            assert!(lock(&model.disk).contains(&blob));
            model.shards().release(&blob);
            model.round(&[blob]);
            assert!(!lock(&model.disk).contains(&blob));
        },
        SCHEDULES,
    );
}

#[test]
fn writers_at_once_exceed_the_budget_by_one_blob_at_most() {
    const LIMIT: u64 = 100;
    const SIZE: u64 = 40;
    shuttle::check_random(
        || {
            let quota = Arc::new(Quota::default());
            let used = Arc::new(Mutex::new(0u64));
            let threads: Vec<_> = (0..4)
                .map(|n| {
                    let (quota, used) = (Arc::clone(&quota), Arc::clone(&used));
                    thread::spawn(move || {
                        let kept = || Ok::<_, ()>(*lock(&used));
                        if !quota.reserve(SIZE, LIMIT, Admit::Fitting, kept).unwrap() {
                            // As an eviction does it.
                            let mut used = lock(&used);
                            *used -= SIZE.min(*used);
                            drop(used);
                            if !quota.reserve(SIZE, LIMIT, Admit::OneOver, kept).unwrap() {
                                return;
                            }
                        }
                        if n != 0 {
                            *lock(&used) += SIZE;
                        }
                        assert!(*lock(&used) <= LIMIT + SIZE);
                        quota.release(SIZE);
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            let used = *lock(&used);
            assert!(used <= LIMIT + SIZE, "{used}");
            assert_eq!(quota.taken(|| Ok::<_, ()>(used)).unwrap(), used);
        },
        SCHEDULES,
    );
}
