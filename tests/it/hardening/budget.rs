//! Bounds of the disk, seen from outside: versions come and go, and what is kept stays within its budget.

use larder::digest::Digest;
use serde_json::{Value, json};

use super::{
    disk::{Tmpfs, noise},
    upstream::Upstream,
    world::{NAMESPACE, World, is_root, object},
};
use crate::support::{
    fixtures::{files, files_in},
    http,
    larder::{fetch_artifact, is_ready},
};

const KIND: &str = "OCIRepository";
/// A superseded artifact is let go at once.
const SHORT: [&str; 4] = ["--artifact-retention-ttl", "0s", "--artifact-retention-records", "1"];

/// Pushes one version after the other; each becomes Ready and is served.
fn versions(world: &World, name: &str, count: u64, size: usize, after: impl Fn()) {
    let up = Upstream::start();
    let mut last = Value::Null;
    for version in 0..count {
        let wanted = files(&[("content", &noise(version, size))]);
        up.push_files(&wanted);
        if version == 0 {
            world.apply(&object(KIND, NAMESPACE, name, &up.url(), &json!({})));
        } else {
            world.larder.reconcile(KIND, NAMESPACE, name);
        }
        let now = world.larder.wait(KIND, NAMESPACE, name, |object| {
            is_ready(object) && object["status"]["artifact"]["digest"] != last["status"]["artifact"]["digest"]
        });
        assert_eq!(files_in(&fetch_artifact(&now)), wanted, "version {version}");
        last = now;
        after();
    }
}

#[test]
fn what_is_cached_stays_within_its_budget_and_one_blob() {
    const BUDGET: u64 = 300_000;
    let world = World::start(&[&["--store-max-bytes", "300kB"][..], &SHORT].concat());
    let kept = || world.larder.metric("larder_store_bytes", &[("kind", "blob")]);
    // Letters and digits: about three quarters of it when compressed.
    versions(&world, "app", 20, 60_000, || assert!(kept() <= BUDGET + 60_000, "{}", kept()));
    assert_eq!(world.larder.metric("larder_store_max_bytes", &[]), BUDGET);
    assert!(world.larder.metric("larder_store_evicted_total", &[("reason", "budget")]) >= 10);
    assert!(kept() > BUDGET / 2, "{}: no more goes than has to", kept());
    world.finish();
}

#[test]
fn what_is_cached_is_told_at_once_and_without_a_budget_too() {
    let world = World::start(&[]);
    let shown = || {
        let kept = world.larder.metric("larder_store_bytes", &[("kind", "blob")]);
        (world.larder.metric("larder_store_cached_bytes", &[]), kept)
    };
    versions(&world, "app", 2, 10_000, || {
        let (cached, kept) = shown();
        assert!(cached == kept && cached > 5_000, "{cached} {kept}");
    });
    let (cached, kept) = shown();
    // What is pushed has no other source.
    let digest = Digest::sha256(&[7; 5000]);
    let target = format!("{}/v2/mine/blobs/uploads/?digest={digest}", world.larder.registry);
    assert_eq!(http::send("POST", &target, &[], &[7; 5000]).unwrap().status, 201);
    assert_eq!(shown(), (cached, kept + 5000));
    world.finish();
}

#[test]
fn a_small_disk_takes_any_number_of_versions_without_a_budget() {
    if !is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let disk = Tmpfs::mount(&root.path().join("data"));
    let world = World::start_in(root, &[], &SHORT);
    // Four MiB of disk, ten MiB of blobs and their trees.
    versions(&world, "app", 12, 500_000, || {});
    world.finish();
    drop(disk);
}
