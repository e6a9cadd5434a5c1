//! Many versions and many objects: nothing stored twice, nothing asked twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    path::Path,
};

use serde_json::{Value, json};

use crate::{
    documents::{NAMESPACE, World},
    need::need,
    support::{
        corpus, eventually,
        fixtures::{files, files_below, hex_of, sha256},
        larder::{is_ready, run_json, text},
    },
};

/// Bytes below a folder, hard links counted once.
fn bytes_below(root: &Path) -> u64 {
    fn walk(at: &Path, seen: &mut BTreeMap<u64, u64>) {
        for entry in std::fs::read_dir(at).expect("listable") {
            let entry = entry.expect("entry");
            let about = entry.metadata().expect("metadata");
            if about.is_dir() {
                walk(&entry.path(), seen);
            } else {
                seen.insert(about.ino(), about.len());
            }
        }
    }
    let mut seen = BTreeMap::new();
    walk(root, &mut seen);
    seen.values().sum()
}

#[test]
fn sixty_versions_are_stored_once_to_the_byte() {
    need!("docker-registry");
    let world = World::new();
    let source = corpus::versions("kube-prometheus", 60);
    assert_eq!(source.versions.len(), 60);
    // Every blob and file that there is, by its content.
    let mut blobs = BTreeMap::new();
    let mut contents = BTreeMap::new();
    let mut logical = 0;
    let mut objects = Vec::new();
    let mut layers = Vec::new();
    for (number, version) in source.versions.iter().enumerate() {
        let tag = format!("v{number}");
        let layer = crate::support::fixtures::gzip(&crate::support::fixtures::tar_of(version));
        let size = layer.len() as u64;
        let pushed = world.registry.push("kp", &tag, &crate::docker_registry::Artifact::flux(layer));
        blobs.insert(pushed.digest.clone(), pushed.manifest.len() as u64);
        blobs.insert(pushed.layer.clone(), size);
        for bytes in version.values() {
            contents.insert(sha256(bytes), bytes.len() as u64);
            logical += bytes.len() as u64;
        }
        objects.push(world.oci_repository(&tag, "kp", json!({ "ref": { "tag": tag } })));
        layers.push(pushed.layer);
    }
    world.write(&objects);
    let larder = world.serve(&[]);
    eventually("60 objects Ready", || all_ready(&larder.listing(), 60));
    let blob_bytes: u64 = blobs.values().sum();
    let file_bytes: u64 = contents.values().sum();
    assert!(file_bytes * 2 < logical, "the versions share most of their files");
    assert_eq!(larder.metric("larder_store_bytes", &[("kind", "blob")]), blob_bytes);
    assert_eq!(larder.metric("larder_store_bytes", &[("kind", "file")]), file_bytes);
    assert_eq!(bytes_below(&larder.data.join("blobs")), blob_bytes, "as the disk has it");
    assert_eq!(bytes_below(&larder.data.join("files")), file_bytes, "as the disk has it");
    let data = larder.data.to_str().expect("UTF-8").to_owned();
    let info = run_json(world.path(), ["store", "info", "--data", &data, "-o", "json"]);
    assert_eq!(info["blobs"], json!({ "count": blobs.len(), "bytes": blob_bytes }));
    assert_eq!(info["files"], json!({ "count": contents.len(), "bytes": file_bytes }));
    assert_eq!(info["physical"], blob_bytes + file_bytes);
    for (number, version) in source.versions.iter().enumerate() {
        let object = larder.object("OCIRepository", NAMESPACE, &format!("v{number}")).expect("listed");
        assert_eq!(text(&object, "/status/artifact/digest"), layers[number]);
        let tree = larder.data.join(format!("source/default/v{number}/{}/contents", hex_of(&layers[number])));
        assert!(files_below(&tree) == *version, "version {number} differs on disk");
    }
}

fn all_ready(listing: &Value, count: usize) -> Result<(), String> {
    let items = listing["items"].as_array().expect("items");
    let ready = items.iter().filter(|object| is_ready(object)).count();
    if ready == count {
        return Ok(());
    }
    let why = items.iter().find(|object| !is_ready(object)).map(|object| object["status"].to_string());
    Err(format!("{ready} of {count} Ready; one that is not: {}", why.unwrap_or_default()))
}

#[test]
fn a_thousand_objects_on_a_hundred_references_ask_a_hundred_times() {
    need!("docker-registry");
    let world = World::new();
    let mut layers = BTreeSet::new();
    for number in 0..100 {
        let content = files(&[("shared.yaml", "same: everywhere\n"), ("own.yaml", &format!("number: {number}\n"))]);
        layers.insert(world.registry.push_files(&format!("app-{number}"), "latest", &content).layer);
    }
    assert_eq!(layers.len(), 100);
    let objects: Vec<Value> = (0..1000)
        .map(|number| {
            let repository = format!("app-{}", number % 100);
            world.oci_repository(&format!("o-{number}"), &repository, json!({ "interval": "5s" }))
        })
        .collect();
    let pushes = world.registry.requests().len();
    world.write(&objects);
    let larder = world.serve(&[]);
    eventually("1000 objects Ready", || all_ready(&larder.listing(), 1000));
    let upstream = world.host();
    let sent = |kind: &str| larder.metric("larder_upstream_requests_total", &[("upstream", &upstream), ("kind", kind)]);
    assert_eq!((sent("manifest_get"), sent("blob_get"), sent("token")), (100, 100, 0));
    let pings = sent("ping");
    assert!(pings <= 2, "{pings} pings: one settles http or TLS, one more where the answer was no HTTP");
    // Two intervals later each reference was probed about twice, by one HEAD for its ten objects, and by nothing else.
    let heads = |requests: &[String]| {
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        requests
            .iter()
            .filter(|line| line.starts_with("HEAD "))
            .for_each(|line| *count.entry(line.clone()).or_default() += 1);
        count
    };
    let begin = world.registry.requests().len();
    let since = eventually("two intervals of probes", || {
        let requests = world.registry.requests();
        let total: usize = heads(&requests[begin..]).values().sum();
        if total >= 200 { Ok(requests) } else { Err(format!("{total} probes")) }
    });
    let probes = heads(&since[begin..]);
    assert_eq!(probes.len(), 100, "every reference is probed");
    for (request, count) in &probes {
        assert!((1..=4).contains(count), "{count} times {request} while the mean is 2");
    }
    let others: Vec<&String> = since[pushes..].iter().filter(|line| !line.starts_with("HEAD ")).collect();
    assert_eq!(others.len() as u64, 200 + pings, "besides probes, each manifest and layer once: {others:?}");
}
