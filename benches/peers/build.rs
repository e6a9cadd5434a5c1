//! From a layer that is held to its artifact: beside the least that must be done, and beside `tar -xzf`.

use std::{path::Path, process::Command};

use larder::{
    artifact::build::{Caps, Ignoring, build},
    digest::Digest,
    store::{Blob, Durability, Store},
};

use crate::{
    Options,
    programs::find,
    support::{Files, chosen, folder, gzip, kube_prometheus, tar_of},
    table::{Ratio, Table, Target, Unit, timed},
};

pub fn run(options: &Options, table: &mut Table) {
    let versions = kube_prometheus();
    let newest: &Files = versions.last().expect("a version");
    let tar = tar_of(newest);
    let layer = gzip(&tar);
    table.note(format!(
        "the newest kube-prometheus layer has {} bytes as gzip, {} as tar, {} files",
        layer.len(),
        tar.len(),
        newest.len()
    ));
    let folder = folder();
    index_only(options, table, &folder, &layer, tar.len());
    with_tree(options, table, &folder, &layer);
}

fn held(store: &Store, layer: &[u8]) -> Blob {
    store.put(Digest::sha256(layer), layer, Durability::Soon).expect("kept")
}

fn index_only(options: &Options, table: &mut Table, folder: &Path, layer: &[u8], tar: usize) {
    let store = Store::open(&folder.join("index")).expect("a store");
    let blob = held(&store, layer);
    let chosen = chosen(layer);
    let mut output = vec![0; tar];
    let (mut larder, mut least) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds(101) {
        let (time, built) = timed(|| {
            let blob = store.get(&blob.digest()).expect("readable").expect("held");
            build(&store, &chosen, &[blob], Ignoring::AsFlux(None), Caps::default()).expect("built")
        });
        assert!(built.passed_through);
        larder.push(time);
        drop(built);
        let (time, ()) = timed(|| {
            let written = libdeflater::Decompressor::new().gzip_decompress(layer, &mut output).expect("gunzip");
            assert_eq!(written, tar);
            std::hint::black_box(Digest::sha256(layer));
        });
        least.push(time);
    }
    let what = "artifact of the newest kube-prometheus layer";
    let peer = ("libdeflate gunzip + sha256", &least[..]);
    table.compare(what, Unit::Milliseconds, &larder, peer, Ratio::LarderByPeer, Target::RatioAtMost(1.5));
}

fn with_tree(options: &Options, table: &mut Table, folder: &Path, layer: &[u8]) {
    if find("tar").is_none() {
        return table.skipped("artifact with its tree", "tar is not installed");
    }
    let packed = folder.join("layer.tar.gz");
    std::fs::write(&packed, layer).expect("the layer");
    let chosen = chosen(layer);
    let (mut fresh, mut again, mut tar) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..options.rounds(21) {
        let root = folder.join(format!("tree-{turn}"));
        let store = Store::open(&root).expect("a store");
        let blob = held(&store, layer);
        let publish = |name: &str| {
            let built = build(&store, &chosen, std::slice::from_ref(&blob), Ignoring::AsFlux(None), Caps::default())
                .expect("built");
            let writer = store.begin_tree("default", name, &built.digest().hex()).expect("a tree");
            built.tree.as_ref().expect("a tree").write_published(&store, writer.contents()).expect("written");
            writer.publish().expect("published")
        };
        fresh.push(timed(|| publish("first")).0);
        let target = folder.join(format!("tar-{turn}"));
        std::fs::create_dir(&target).expect("folder");
        let (time, status) = timed(|| Command::new("tar").arg("-xzf").arg(&packed).arg("-C").arg(&target).status());
        assert!(status.expect("tar runs").success());
        tar.push(time);
        again.push(timed(|| publish("second")).0);
    }
    for (what, figures) in
        [("… with its tree, into an empty store", &fresh), ("… with its tree, whose files are in the store", &again)]
    {
        let target = Target::RatioAtMost(0.5);
        table.compare(what, Unit::Milliseconds, figures, ("tar -xzf", &tar), Ratio::LarderByPeer, target);
    }
}
