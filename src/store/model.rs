//! Any interleaving of puts, gets, damage, evictions, collections and restarts gives the right bytes or nothing, what
//! nobody has damaged or let go is there, and what is cached stays within the budget.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use proptest::prelude::*;

use super::{Bounds, Count, Durability, Lease, Store, StoreError, layout::blob_path, tests::damage};
use crate::digest::{Algorithm, Digest};

#[derive(Clone, Debug)]
enum Step {
    Put { blob: usize, now: bool },
    PutWrong { blob: usize },
    Abandon { blob: usize },
    Fill { blob: usize },
    Get { blob: usize },
    Bound { max: Option<u64> },
    Trim,
    Push { blob: usize, linked: bool },
    Scrub,
    Flip { blob: usize, at: usize },
    Truncate { blob: usize, to: usize },
    Grow { blob: usize },
    Touch { blob: usize },
    Remove { blob: usize },
    Root { blob: usize, named: bool },
    Lease { blob: usize, held: bool },
    Collect,
    Usage,
    Verify { repair: bool },
    Sync,
    LoseJournal,
    Restart { orderly: bool, power: bool },
}

const BLOBS: usize = 6;

fn content(blob: usize) -> Vec<u8> {
    vec![b'a' + blob as u8; [0, 1, 100, 4096, 5000, 70_000][blob]]
}

fn digest(blob: usize) -> Digest {
    let algorithm = if blob == 3 { Algorithm::Sha512 } else { Algorithm::Sha256 };
    Digest::of(algorithm, &content(blob))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let blob = 0..BLOBS;
    let step = prop_oneof![
        6 => (blob.clone(), any::<bool>()).prop_map(|(blob, now)| Step::Put { blob, now }),
        1 => blob.clone().prop_map(|blob| Step::PutWrong { blob }),
        1 => blob.clone().prop_map(|blob| Step::Abandon { blob }),
        4 => blob.clone().prop_map(|blob| Step::Fill { blob }),
        6 => blob.clone().prop_map(|blob| Step::Get { blob }),
        2 => prop_oneof![Just(None), (0u64..90_000).prop_map(Some)].prop_map(|max| Step::Bound { max }),
        1 => Just(Step::Trim),
        2 => (blob.clone(), any::<bool>()).prop_map(|(blob, linked)| Step::Push { blob, linked }),
        1 => Just(Step::Scrub),
        2 => (blob.clone(), any::<usize>()).prop_map(|(blob, at)| Step::Flip { blob, at }),
        2 => (blob.clone(), any::<usize>()).prop_map(|(blob, to)| Step::Truncate { blob, to }),
        2 => blob.clone().prop_map(|blob| Step::Grow { blob }),
        1 => blob.clone().prop_map(|blob| Step::Touch { blob }),
        1 => blob.clone().prop_map(|blob| Step::Remove { blob }),
        2 => (blob.clone(), any::<bool>()).prop_map(|(blob, named)| Step::Root { blob, named }),
        2 => (blob, any::<bool>()).prop_map(|(blob, held)| Step::Lease { blob, held }),
        2 => Just(Step::Collect),
        1 => Just(Step::Usage),
        1 => any::<bool>().prop_map(|repair| Step::Verify { repair }),
        1 => Just(Step::Sync),
        1 => Just(Step::LoseJournal),
        2 => any::<(bool, bool)>().prop_map(|(orderly, power)| Step::Restart { orderly, power }),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What lies under a blob's name.
type Disk = BTreeMap<usize, Vec<u8>>;

/// What a store has to be told anew after each start.
struct Process {
    boot: u64,
    now: u32,
    max: Option<u64>,
    roots: Arc<Mutex<BTreeSet<usize>>>,
}

impl Process {
    fn open(&self, root: &Path) -> Store {
        let store = Store::open_in_boot(root, self.boot).unwrap();
        store.0.clock.store(self.now, Ordering::Relaxed);
        self.bind(&store);
        store
    }

    fn bind(&self, store: &Store) {
        let roots = Arc::clone(&self.roots);
        let named = move || roots.lock().unwrap().iter().map(|blob| digest(*blob)).collect();
        match self.max {
            Some(max) => store.bind(Bounds { max_bytes: Some(max), headroom_bytes: Some(0) }, named).unwrap(),
            None => store.unbind(),
        }
    }
}

const WEEK: u32 = 7 * 24 * 60 * 60;

fn run(steps: Vec<Step>) {
    let root = tempfile::tempdir().unwrap();
    let roots = Arc::new(Mutex::new(BTreeSet::new()));
    let mut process = Process { boot: 11, now: 2_000_000_000, max: None, roots: Arc::clone(&roots) };
    let mut store = process.open(root.path());
    let mut disk = Disk::new();
    let mut local = BTreeSet::new();
    let mut leases: BTreeMap<usize, Lease> = BTreeMap::new();
    let path = |blob| root.path().join(blob_path(&digest(blob)));
    let right = |disk: &Disk| disk.iter().all(|(blob, bytes)| bytes.len() == content(*blob).len());
    for step in steps {
        process.now += 1;
        store.0.clock.store(process.now, Ordering::Relaxed);
        let trimmed = matches!(step, Step::Trim | Step::Fill { .. });
        match step {
            Step::Fill { blob } => {
                let filled = store.ingest(digest(blob), Some(content(blob).len() as u64)).and_then(|mut ingest| {
                    ingest.write(&content(blob))?;
                    ingest.commit(Durability::Soon)
                });
                match filled {
                    Ok(filled) => {
                        assert_eq!(filled.to_vec().unwrap(), content(blob));
                        disk.insert(blob, content(blob));
                    }
                    Err(error) => assert!(matches!(error, StoreError::NoRoom { .. }), "{error}"),
                }
            }
            Step::Bound { max } => {
                process.max = max;
                process.bind(&store);
            }
            Step::Trim => {
                store.trim().unwrap();
            }
            Step::Push { blob, linked } => {
                let repository = store.local_named("a");
                if linked {
                    let lease = store.lease(digest(blob));
                    let mut ingest = store.receive(lease.digest(), None).unwrap();
                    ingest.write(&content(blob)).unwrap();
                    ingest.commit(Durability::Now).unwrap();
                    repository.put_manifest(&lease.digest(), "m", &[]).unwrap();
                    disk.insert(blob, content(blob));
                    local.insert(blob);
                } else {
                    assert_eq!(repository.delete_manifest(&digest(blob)).unwrap(), local.remove(&blob));
                }
            }
            Step::Scrub => {
                process.now += WEEK;
                store.0.clock.store(process.now, Ordering::Relaxed);
                let found = store.scrub(&mut |_| std::ops::ControlFlow::Continue(())).unwrap();
                let bad = disk.iter().filter(|(blob, bytes)| **bytes != content(**blob)).count();
                assert_eq!((found.files, found.bad, found.done), (disk.len() as u64, bad as u64, true));
                disk.retain(|blob, bytes| *bytes == content(*blob));
            }
            Step::Put { blob, now } => {
                let durability = if now { Durability::Now } else { Durability::Soon };
                let put = store.put(digest(blob), &content(blob), durability).unwrap();
                assert_eq!(put.to_vec().unwrap(), content(blob));
                disk.insert(blob, content(blob));
            }
            Step::PutWrong { blob } => {
                let mut wrong = content(blob);
                wrong.push(0);
                assert!(store.put(digest(blob), &wrong, Durability::Soon).is_err());
            }
            Step::Abandon { blob } => {
                let mut ingest = store.receive(digest(blob), None).unwrap();
                ingest.write(&content(blob)).unwrap();
            }
            Step::Get { blob } => {
                let got = store.get(&digest(blob)).unwrap();
                let right = disk.get(&blob) == Some(&content(blob));
                assert_eq!(got.is_some(), right, "blob {blob}");
                if let Some(got) = got {
                    assert_eq!(got.to_vec().unwrap(), content(blob));
                    assert_eq!(got.mapped(), content(blob));
                } else {
                    disk.remove(&blob);
                }
            }
            Step::Flip { blob, at } => change(&mut disk, &path(blob), blob, |b| {
                if let Some(n) = at.checked_rem(b.len()) {
                    b[n] ^= 1;
                }
            }),
            Step::Truncate { blob, to } => change(&mut disk, &path(blob), blob, |b| {
                b.truncate(to.checked_rem(b.len()).unwrap_or(0));
            }),
            Step::Grow { blob } => change(&mut disk, &path(blob), blob, |b| b.push(0)),
            Step::Touch { blob } => change(&mut disk, &path(blob), blob, |_| {}),
            Step::Remove { blob } => {
                if disk.remove(&blob).is_some() {
                    fs::remove_file(path(blob)).unwrap();
                }
                // Behind the store's back its counts may be off; only a new listing tells.
                drop(std::mem::take(&mut leases));
                drop(store);
                let _ = fs::remove_file(root.path().join("counters"));
                store = process.open(root.path());
            }
            Step::Root { blob, named } => {
                if named {
                    roots.lock().unwrap().insert(blob);
                } else {
                    roots.lock().unwrap().remove(&blob);
                }
            }
            Step::Lease { blob, held } => {
                if held {
                    leases.insert(blob, store.lease(digest(blob)));
                } else {
                    leases.remove(&blob);
                }
            }
            Step::Collect => {
                let roots = roots.lock().unwrap().clone();
                store.collect(|| roots.iter().map(|blob| digest(*blob)), Duration::ZERO).unwrap();
                disk.retain(|blob, _| roots.contains(blob) || leases.contains_key(blob) || local.contains(blob));
            }
            Step::Usage => {
                // Sizes changed behind the store's back are known only to a new listing.
                if right(&disk) {
                    let bytes = disk.values().map(|b| b.len() as u64).sum();
                    assert_eq!(store.usage().unwrap().blobs, Count { count: disk.len() as u64, bytes });
                }
            }
            Step::Verify { repair } => {
                let report = store.verify(|_| {}, repair).unwrap();
                let bad = |(blob, bytes): &(&usize, &Vec<u8>)| **bytes != content(**blob);
                // A pushed manifest that was put aside is missing, too.
                let gone = |blob: &&usize| disk.get(blob).is_none_or(|b| repair && *b != content(**blob));
                let missing = local.iter().filter(gone).count();
                assert_eq!(report.problems.len(), disk.iter().filter(bad).count() + missing);
                if repair {
                    disk.retain(|blob, bytes| *bytes == content(*blob));
                }
            }
            Step::Sync => store.sync_pending().unwrap(),
            Step::LoseJournal => {
                drop(std::mem::take(&mut leases));
                drop(store);
                let _ = fs::remove_file(root.path().join("journal"));
                store = process.open(root.path());
            }
            Step::Restart { orderly, power } => {
                if orderly {
                    store.close().unwrap();
                }
                drop(std::mem::take(&mut leases));
                drop(store);
                if power {
                    process.boot += 2;
                }
                store = process.open(root.path());
            }
        }
        // What has gone without being told to was evicted, and nobody had named it.
        let kept =
            |blob: &usize| roots.lock().unwrap().contains(blob) || leases.contains_key(blob) || local.contains(blob);
        disk.retain(|blob, _| {
            let held = path(*blob).exists();
            assert!(held || (process.max.is_some() && !kept(blob)), "blob {blob} is gone");
            held
        });
        if let Some(max) = process.max
            && trimmed
            && right(&disk)
        {
            let size = |only: &dyn Fn(&usize) -> bool| -> u64 {
                disk.iter().filter(|(blob, _)| !local.contains(blob) && only(blob)).map(|(_, b)| b.len() as u64).sum()
            };
            let (cached, named, largest) = (size(&|_| true), size(&kept), 70_000);
            assert!(cached <= max.max(named) + largest, "{cached} cached, {named} of it named, under {max}");
        }
    }
    for blob in 0..BLOBS {
        let got = store.get(&digest(blob)).unwrap().map(|b| b.to_vec().unwrap());
        assert_eq!(got, disk.get(&blob).filter(|b| **b == content(blob)).cloned(), "blob {blob} at the end");
    }
    assert_eq!(fs::read_dir(root.path().join("spool")).unwrap().count(), 0);
}

fn change(disk: &mut Disk, path: &Path, blob: usize, change: impl Fn(&mut Vec<u8>)) {
    if let Some(bytes) = disk.get_mut(&blob) {
        change(bytes);
        damage(path, change);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_gives_the_right_bytes_or_nothing(steps in steps()) {
        run(steps);
    }
}
