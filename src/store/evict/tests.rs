use std::sync::atomic::Ordering;

use super::*;
use crate::store::{Count, Durability, quota::Admit, tests::store};

const NONE: fn() -> Vec<Digest> = Vec::new;
const START: u32 = 1_000_000_000;

fn content(n: u8, size: usize) -> Vec<u8> {
    vec![n; size]
}

fn digest(n: u8, size: usize) -> Digest {
    Digest::sha256(&content(n, size))
}

fn at(store: &Store, now: u32) {
    store.0.clock.store(now, Ordering::Relaxed);
}

/// As a fill does it; `None` where there is no room.
fn fill(store: &Store, n: u8, size: usize) -> Option<Digest> {
    let content = content(n, size);
    let mut ingest = match store.ingest(Digest::sha256(&content), Some(size as u64)) {
        Ok(ingest) => ingest,
        Err(error) => {
            assert!(matches!(error, StoreError::NoRoom { .. }), "{error}");
            assert!(error.is_full());
            return None;
        }
    };
    ingest.write(&content).unwrap();
    Some(ingest.commit(Durability::Soon).unwrap().digest())
}

fn bound(store: &Store, max: u64) {
    store.bind(Bounds { max_bytes: Some(max), headroom_bytes: Some(0) }, NONE).unwrap();
}

fn held(store: &Store, blobs: &[Digest]) -> Vec<bool> {
    blobs.iter().map(|digest| store.has(digest).unwrap()).collect()
}

#[test]
fn the_least_recently_used_goes_first_and_never_more_than_needed() {
    let (_root, store) = store();
    bound(&store, 1000);
    let mut blobs = Vec::new();
    for n in 0..4u8 {
        at(&store, START + u32::from(n));
        blobs.push(fill(&store, n, 250).unwrap());
    }
    assert_eq!(held(&store, &blobs), [true; 4]);
    // Used again: the oldest is another now.
    at(&store, START + 10);
    assert!(store.get(&blobs[0]).unwrap().is_some());
    at(&store, START + 11);
    assert!(store.get_open(&blobs[2]).is_some());
    at(&store, START + 12);
    blobs.push(fill(&store, 4, 250).unwrap());
    assert_eq!(held(&store, &blobs), [true, false, true, true, true]);
    at(&store, START + 13);
    blobs.push(fill(&store, 5, 500).unwrap());
    assert_eq!(held(&store, &blobs), [false, false, true, false, true, true]);
    assert_eq!(store.usage().unwrap().blobs, Count { count: 3, bytes: 1000 });
}

#[test]
fn the_order_of_use_outlives_the_process() {
    for orderly in [true, false] {
        let (root, store) = store();
        let mut blobs = Vec::new();
        for n in 0..4u8 {
            at(&store, START + u32::from(n) * 100);
            blobs.push(fill(&store, n, 250).unwrap());
        }
        at(&store, START + 1000);
        store.get(&blobs[0]).unwrap().unwrap();
        if orderly {
            store.close().unwrap();
        } else {
            store.trim().unwrap();
        }
        drop(store);
        let store = Store::open(root.path()).unwrap();
        at(&store, START + 2000);
        bound(&store, 1000);
        fill(&store, 4, 250).unwrap();
        assert_eq!(held(&store, &blobs), [true, false, true, true], "orderly {orderly}");
    }
}

#[test]
fn a_pull_five_times_the_budget_succeeds_and_stays_within_it() {
    let (_root, store) = store();
    bound(&store, 200_000);
    for n in 0..100u8 {
        at(&store, START + u32::from(n));
        fill(&store, n, 10_000).unwrap();
        let bytes = store.usage().unwrap().blobs.bytes;
        assert!(bytes <= 200_000, "{bytes}");
    }
    // Only the last twenty.
    assert_eq!(store.usage().unwrap().blobs, Count { count: 20, bytes: 200_000 });
    assert!(store.has(&digest(80, 10_000)).unwrap() && !store.has(&digest(79, 10_000)).unwrap());
}

#[test]
fn what_is_named_leased_pinned_pushed_or_being_read_stays() {
    let (_root, store) = store();
    let [root, leased, pinned, pushed, referred, manifest, open, rest] = [0, 1, 2, 3, 4, 5, 6, 7].map(|n| {
        at(&store, START + u32::from(n));
        fill(&store, n, 100).unwrap()
    });
    store.bind(Bounds { max_bytes: Some(550), headroom_bytes: Some(0) }, move || vec![root]).unwrap();
    let lease = store.lease(leased);
    store.pin("p", &[pinned]).unwrap();
    store.local_named("a").link_blob(&pushed).unwrap();
    store.local_named("a").put_manifest(&manifest, "m", &[referred]).unwrap();
    let reading = store.get_open(&open).unwrap();
    // Eight blobs, of which three are pushed and do not count: 500 bytes.
    assert_eq!(store.trim().unwrap(), Evicted::default());
    at(&store, START + 20);
    fill(&store, 9, 500).unwrap();
    let all = [root, leased, pinned, pushed, referred, manifest, open, rest];
    assert_eq!(held(&store, &all), [true, true, true, true, true, true, true, false]);
    // One blob over the budget was admitted; it is the first to go for the next.
    fill(&store, 10, 100).unwrap();
    assert!(!store.has(&digest(9, 500)).unwrap());
    assert_eq!(reading.to_vec().unwrap(), content(6, 100));
    drop(reading);
    drop(lease);
    store.unpin("p").unwrap();
    at(&store, START + 30);
    fill(&store, 11, 400).unwrap();
    assert_eq!(held(&store, &all), [true, false, false, true, true, true, false, false]);
}

#[test]
fn one_blob_over_the_budget_is_admitted_and_the_next_refused() {
    let (_root, store) = store();
    let kept = fill(&store, 0, 900).unwrap();
    store.bind(Bounds { max_bytes: Some(1000), headroom_bytes: Some(0) }, move || vec![kept]).unwrap();
    let first = store.ingest(digest(1, 300), Some(300)).unwrap();
    assert_eq!(fill(&store, 2, 300), None);
    // What is not written after all gives its room back.
    drop(first);
    assert!(fill(&store, 2, 300).is_some());
    // A status's artifact is kept nevertheless: what is in memory already is written without asking.
    store.put(digest(3, 50), &content(3, 50), Durability::Now).unwrap();
}

#[test]
fn a_blob_of_unknown_size_is_counted_as_it_grows() {
    let (_root, store) = store();
    let kept = fill(&store, 0, 900).unwrap();
    store.bind(Bounds { max_bytes: Some(1000), headroom_bytes: Some(0) }, move || vec![kept]).unwrap();
    let mut ingest = store.ingest(digest(1, 300), None).unwrap();
    ingest.write(&[1; 100]).unwrap();
    ingest.write(&[1; 100]).unwrap();
    assert!(matches!(ingest.write(&[1; 100]), Err(StoreError::NoRoom { setting: MAX_BYTES, .. })));
    drop(ingest);
    assert!(fill(&store, 2, 100).is_some());
}

#[test]
fn one_larger_than_the_budget_goes_before_all_others() {
    let (_root, store) = store();
    bound(&store, 1000);
    let mut small = Vec::new();
    for n in 0..4u8 {
        at(&store, START + u32::from(n));
        small.push(fill(&store, n, 200).unwrap());
    }
    at(&store, START + 10);
    let giant = fill(&store, 9, 5000).unwrap();
    assert_eq!(held(&store, &small), [true; 4]);
    assert!(store.get(&giant).unwrap().is_some());
    assert_eq!(store.trim().unwrap(), Evicted { blobs: 1, bytes: 5000 });
    assert_eq!(held(&store, &small), [true; 4]);
}

#[test]
fn pushes_are_neither_counted_nor_refused() {
    let (_root, store) = store();
    bound(&store, 1000);
    let cached = fill(&store, 0, 900).unwrap();
    for n in 1..10u8 {
        let content = content(n, 500);
        let digest = Digest::sha256(&content);
        let _lease = store.lease(digest);
        let mut ingest = store.receive(digest, Some(500)).unwrap();
        ingest.write(&content).unwrap();
        ingest.commit(Durability::Now).unwrap();
        store.local_named("a").link_blob(&digest).unwrap();
    }
    assert_eq!(store.cached_bytes().unwrap(), 900);
    assert_eq!(store.trim().unwrap(), Evicted::default());
    assert!(store.has(&cached).unwrap());
    // What its owner deletes is cached content like any other from then on.
    store.local_named("a").delete_blob(&digest(1, 500)).unwrap();
    assert_eq!(store.cached_bytes().unwrap(), 1400);
    assert_eq!(store.trim().unwrap().blobs, 1);
}

#[test]
fn more_than_are_remembered_are_found_in_the_same_order() {
    let (_root, store) = store();
    let count = CANDIDATES as u32 + 500;
    let shards = store.root().join("blobs/sha256");
    let mut blobs = Vec::new();
    for n in 0..count {
        let content = n.to_le_bytes();
        let digest = Digest::sha256(&content);
        let directory = shards.join(&digest.hex()[..2]);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(digest.hex()), content).unwrap();
        store.0.journal.touch(&store.0.layout, &digest, START + n);
        blobs.push(digest);
    }
    bound(&store, 40);
    assert_eq!(store.trim().unwrap(), Evicted { blobs: u64::from(count) - 10, bytes: u64::from(count - 10) * 4 });
    let left: Vec<u32> = (0..count).filter(|n| store.has(&blobs[*n as usize]).unwrap()).collect();
    assert_eq!(left, (count - 10..count).collect::<Vec<_>>());
}

#[test]
fn headroom_that_the_disk_has_not_keeps_nothing_and_takes_nothing() {
    let (_root, store) = store();
    let cached = fill(&store, 0, 100).unwrap();
    store.bind(Bounds { max_bytes: None, headroom_bytes: Some(u64::MAX / 2) }, NONE).unwrap();
    assert_eq!(fill(&store, 1, 100), None);
    assert!(!store.has(&cached).unwrap());
    // A push has no other source: only the disk itself refuses it.
    drop(store.receive(digest(2, 100), Some(100)).unwrap());
}

#[test]
fn nothing_goes_for_a_blob_that_would_not_fit_the_disk_even_then() {
    let (_root, store) = store();
    let [small, large, root] = [fill(&store, 0, 100), fill(&store, 1, 1 << 20), fill(&store, 2, 8 << 20)];
    let root = root.unwrap();
    store.bind(Bounds { max_bytes: None, headroom_bytes: Some(1) }, move || vec![root, root]).unwrap();
    // The disk is no test's alone, so what is asked for lies well past it, or its end is where the bound says.
    let disk = store.disk().unwrap();
    let digest = Digest::sha256(b"too large");
    for size in [disk.total * 2, disk.free + (64 << 20)] {
        let refused = store.ingest(digest, Some(size)).map(drop).unwrap_err();
        assert!(matches!(refused, StoreError::NoRoom { setting: HEADROOM_BYTES, .. }), "{refused}");
        // A push finds a full disk instead.
        assert!(!store.make_room(size));
        assert_eq!(held(&store, &[small.unwrap(), large.unwrap(), root]), [true; 3], "{size}");
    }
    let limits = store.limits().unwrap();
    assert_eq!(store.evictable_bytes(&limits).unwrap(), 100 + (1 << 20), "a status names the rest");
}

#[test]
fn without_bounds_nothing_is_evicted() {
    let (_root, store) = store();
    let cached = fill(&store, 0, 100).unwrap();
    assert_eq!(store.trim().unwrap(), Evicted::default());
    assert!(!store.make_room(1));
    bound(&store, 10);
    store.close().unwrap();
    assert_eq!(store.trim().unwrap(), Evicted::default());
    assert!(store.has(&cached).unwrap());
}

#[test]
fn a_full_disk_evicts_and_the_write_is_tried_once_more() {
    let (_root, store) = store();
    let full = || StoreError::io("write", "/x", rustix::io::Errno::NOSPC);
    store.bind(Bounds { max_bytes: None, headroom_bytes: Some(0) }, NONE).unwrap();
    let mut tries = 0;
    let mut never = || -> Result<(), StoreError> {
        tries += 1;
        Err(full())
    };
    // Nothing to evict: once.
    assert!(store.with_room(100, &mut never).unwrap_err().is_full());
    let cached = fill(&store, 0, 100).unwrap();
    // Something: once more, and not for ever.
    assert!(store.with_room(100, &mut never).unwrap_err().is_full());
    assert_eq!(tries, 3);
    assert!(!store.has(&cached).unwrap());
    fill(&store, 0, 100).unwrap();
    let mut first = true;
    let second = store.with_room(100, || if std::mem::take(&mut first) { Err(full()) } else { Ok(7) });
    assert_eq!(second.unwrap(), 7);
}

#[test]
fn what_nobody_would_miss_goes_before_what_is_cached() {
    let (root, store) = store();
    let tree = store.begin_tree("default", "app", "ab").unwrap();
    store.link_file(b"unused", false, tree.contents(), std::path::Path::new("f")).unwrap();
    drop(tree);
    assert!(store.make_room(1));
    assert_eq!(store.usage().unwrap().files, Count::default());
    store.bind(Bounds { max_bytes: None, headroom_bytes: Some(0) }, NONE).unwrap();
    std::fs::write(root.path().join("quarantine/sha256-x"), [0; 1000]).unwrap();
    assert!(store.make_room(1));
    assert_eq!(std::fs::read_dir(root.path().join("quarantine")).unwrap().count(), 0);
}

#[test]
fn the_limit_is_exceeded_by_one_blob_at_most() {
    let quota = Quota::default();
    let reserve = |size, admit, used: u64| quota.reserve::<()>(size, 100, admit, || Ok(used)).unwrap();
    for (size, admit, used, room) in [
        (40, Admit::Fitting, 60, true),
        (1, Admit::Fitting, 60, false),
        (30, Admit::OneOver, 60, true),
        (1, Admit::OneOver, 60, false),
        (0, Admit::OneOver, 31, false),
        (5, Admit::OneOver, 30, true),
        (500, Admit::Always, 60, true),
        (u64::MAX, Admit::Fitting, 0, false),
    ] {
        assert_eq!(reserve(size, admit, used), room, "{size} {admit:?} {used}");
    }
    quota.release(40 + 30 + 5);
    assert_eq!(quota.taken::<()>(|| Ok(7)).unwrap(), 507);
    quota.release(u64::MAX);
    assert_eq!(quota.taken::<()>(|| Ok(7)).unwrap(), 7);
}
