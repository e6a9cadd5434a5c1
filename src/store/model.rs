//! Any interleaving of puts, gets, damage, collections and restarts gives the right bytes or nothing, and what nobody
//! has damaged or let go is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use proptest::prelude::*;

use super::{Count, Durability, Lease, Store, layout::blob_path, tests::damage};
use crate::digest::{Algorithm, Digest};

#[derive(Clone, Debug)]
enum Step {
    Put { blob: usize, now: bool },
    PutWrong { blob: usize },
    Abandon { blob: usize },
    Get { blob: usize },
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
        6 => blob.clone().prop_map(|blob| Step::Get { blob }),
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

fn run(steps: Vec<Step>) {
    let root = tempfile::tempdir().unwrap();
    let mut boot = 11;
    let mut store = Store::open_in_boot(root.path(), boot).unwrap();
    let mut disk = Disk::new();
    let mut roots = BTreeSet::new();
    let mut leases: BTreeMap<usize, Lease> = BTreeMap::new();
    let path = |blob| root.path().join(blob_path(&digest(blob)));
    for step in steps {
        match step {
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
                let mut ingest = store.ingest(digest(blob), None).unwrap();
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
                store = Store::open_in_boot(root.path(), boot).unwrap();
            }
            Step::Root { blob, named } => {
                if named {
                    roots.insert(blob);
                } else {
                    roots.remove(&blob);
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
                store.collect(|| roots.iter().map(|blob| digest(*blob)), Duration::ZERO).unwrap();
                disk.retain(|blob, _| roots.contains(blob) || leases.contains_key(blob));
            }
            Step::Usage => {
                // Sizes changed behind the store's back are known only to a new listing.
                if disk.iter().all(|(blob, bytes)| bytes.len() == content(*blob).len()) {
                    let bytes = disk.values().map(|b| b.len() as u64).sum();
                    assert_eq!(store.usage().unwrap().blobs, Count { count: disk.len() as u64, bytes });
                }
            }
            Step::Verify { repair } => {
                let report = store.verify(|_| {}, repair).unwrap();
                let bad = |(blob, bytes): &(&usize, &Vec<u8>)| **bytes != content(**blob);
                assert_eq!(report.problems.len(), disk.iter().filter(bad).count());
                if repair {
                    disk.retain(|blob, bytes| *bytes == content(*blob));
                }
            }
            Step::Sync => store.sync_pending().unwrap(),
            Step::LoseJournal => {
                drop(std::mem::take(&mut leases));
                drop(store);
                let _ = fs::remove_file(root.path().join("journal"));
                store = Store::open_in_boot(root.path(), boot).unwrap();
            }
            Step::Restart { orderly, power } => {
                if orderly {
                    store.close().unwrap();
                }
                drop(std::mem::take(&mut leases));
                drop(store);
                if power {
                    boot += 2;
                }
                store = Store::open_in_boot(root.path(), boot).unwrap();
            }
        }
    }
    for blob in 0..BLOBS {
        let got = store.get(&digest(blob)).unwrap().map(|b| b.to_vec().unwrap());
        assert_eq!(got, disk.get(&blob).filter(|b| **b == content(blob)).cloned(), "blob {blob} at the end");
    }
    assert_eq!(fs::read_dir(root.path().join("spool")).unwrap().count(), 0);
}

fn change(disk: &mut Disk, path: &std::path::Path, blob: usize, change: impl Fn(&mut Vec<u8>)) {
    if let Some(bytes) = disk.get_mut(&blob) {
        change(bytes);
        damage(path, change);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_gives_the_right_bytes_or_nothing(steps in steps()) {
        run(steps);
    }
}
