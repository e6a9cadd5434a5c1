//! The stages of the main job, each on its own: `cargo bench --bench larder`, or `cargo bench --bench larder -- unpack`.
//!
//! Content is kube-prometheus's from the corpus where there is one, else made, which is said.

#[path = "../support/http.rs"]
mod http;
#[path = "../support/programs.rs"]
mod programs;
#[path = "../support/mod.rs"]
mod support;

use std::{path::Path, sync::Arc, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group};
use larder::{
    artifact::{
        build::{self, Caps, Ignoring},
        publish::Published,
    },
    digest::Digest,
    oci::Document,
    pull::{Puller, Wanted, Way},
    registry::{self, Budget, Credentials, Endpoint, Transport},
    server::{Artifacts, Bound, Limits, serve},
    shutdown,
    store::{Blob, Durability, Store},
    unpack::{data, decompress::decompress, entries::Allowance, overlay},
};

use http::Client;
use programs::Daemon;
use support::{chosen, folder, gzip, kube_prometheus, noise, small_layer, tar_of};

/// The newest version as clients push it.
fn newest() -> Vec<u8> {
    gzip(&tar_of(kube_prometheus().last().expect("a version")))
}

fn keep(store: &Store, bytes: &[u8]) -> Blob {
    store.put(Digest::sha256(bytes), bytes, Durability::Soon).expect("kept")
}

/// Writing blobs: hashed, linked under their names; with the sync that a status waits for, and without.
fn ingest(c: &mut Criterion) {
    let folder = folder();
    let store = Store::open(&folder.join("store")).expect("a store");
    let mut group = c.benchmark_group("ingest");
    let mut seed = 0;
    for size in [4 << 10, 512 << 10, 8 << 20] {
        group.throughput(Throughput::Bytes(size as u64));
        group.sample_size(20);
        for (name, durability) in [("soon", Durability::Soon), ("now", Durability::Now)] {
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter_batched(
                    || {
                        seed += 1;
                        let bytes = noise(size, seed);
                        (Digest::sha256(&bytes), bytes)
                    },
                    |(digest, bytes)| store.put(digest, &bytes, durability).expect("kept"),
                    BatchSize::LargeInput,
                );
            });
        }
    }
}

/// From the layer's bytes to its index, in each of the formats; and to a tree on the disk.
fn unpack(c: &mut Criterion) {
    let versions = kube_prometheus();
    let tar = tar_of(versions.last().expect("a version"));
    let packed = gzip(&tar);
    let zstd = zstd::bulk::compress(&tar, 3).expect("zstd in memory");
    let mut group = c.benchmark_group("unpack");
    group.throughput(Throughput::Bytes(tar.len() as u64));
    for (name, layer) in [("gzip", &packed), ("zstd", &zstd), ("tar", &tar)] {
        group.bench_function(BenchmarkId::new("decompress", name), |b| {
            b.iter(|| decompress(layer, data::Limits::in_memory(256 << 20)).expect("a layer"));
        });
        group.bench_function(BenchmarkId::new("decompress and index", name), |b| {
            b.iter(|| {
                let allowance = Allowance::new(100_000);
                overlay::open(layer, data::Limits::in_memory(256 << 20), false, &allowance).expect("a layer")
            });
        });
    }
    let folder = folder();
    group.sample_size(20);
    let stores = std::cell::Cell::new(0);
    group.bench_function("tree into an empty store", |b| {
        b.iter_batched(
            || {
                stores.set(stores.get() + 1);
                let store = Store::open(&folder.join(stores.get().to_string())).expect("a store");
                let blob = keep(&store, &packed);
                (build::build(&store, &chosen(&packed), &[blob], Ignoring::AsFlux(None), Caps::default()), store)
            },
            |(built, store)| publish(&store, &built.expect("built"), "new"),
            BatchSize::LargeInput,
        );
    });
    let store = Store::open(&folder.join("filled")).expect("a store");
    let blob = keep(&store, &packed);
    let built =
        build::build(&store, &chosen(&packed), &[blob], Ignoring::AsFlux(None), Caps::default()).expect("built");
    publish(&store, &built, "first");
    let mut turn = 0;
    group.bench_function("tree whose files are in the store", |b| {
        b.iter(|| {
            turn += 1;
            publish(&store, &built, &format!("next-{turn}"))
        });
    });
}

fn publish(store: &Store, built: &build::Built, name: &str) {
    let writer = store.begin_tree("default", name, &built.digest().hex()).expect("a tree");
    built.tree.as_ref().expect("a tree").write_published(store, writer.contents()).expect("written");
    writer.publish().expect("published");
}

/// From a layer that is held to the artifact: the layer itself, or a rewrite because something in it is ignored.
fn artifact(c: &mut Criterion) {
    let layer = newest();
    let folder = folder();
    let store = Store::open(&folder.join("store")).expect("a store");
    let blob = keep(&store, &layer);
    let chosen = chosen(&layer);
    let mut group = c.benchmark_group("artifact");
    group.throughput(Throughput::Bytes(layer.len() as u64));
    // One of the two is in the corpus, the other among the made files.
    let ignored = Some("grafana-config.yaml\ndocument-0.yaml\n");
    for (name, ignore, through) in [("passed through", None, true), ("rewritten", ignored, false)] {
        group.sample_size(if through { 100 } else { 20 });
        group.bench_function(name, |b| {
            b.iter(|| {
                let built = build::build(
                    &store,
                    &chosen,
                    std::slice::from_ref(&blob),
                    Ignoring::AsFlux(ignore),
                    Caps::default(),
                )
                .expect("built");
                assert_eq!(built.passed_through, through);
            });
        });
    }
}

/// One request after the other on one connection to the artifact listener: with the client's part, so for comparing
/// two states of the code; for requests a second see `peers`.
fn serving(c: &mut Criterion) {
    let folder = folder();
    let store = Store::open(&folder.join("store")).expect("a store");
    let published = Published::default();
    let mut paths = Vec::new();
    for size in [4 << 10, 64 << 10, 512 << 10] {
        let blob = keep(&store, &noise(size, size as u64));
        let path = format!("ocirepository/default/app/{}.tar.gz", blob.digest().hex());
        published.insert(&path, blob.digest());
        paths.push((size, path));
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (trigger, shutdown) = shutdown::channel();
    let (address, server) = runtime.block_on(async {
        let bound = Bound::bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let address = bound.address();
        let handler = Arc::new(Artifacts::new(store.clone(), published));
        (address, tokio::spawn(serve(bound, handler, Limits::default(), shutdown)))
    });
    let mut client = Client::new(address.to_string());
    let mut group = c.benchmark_group("serve");
    for (size, path) in paths {
        let path = format!("/{path}");
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(BenchmarkId::new("GET", size), |b| b.iter(|| client.get(&path)));
        group.bench_function(BenchmarkId::new("HEAD", size), |b| {
            b.iter(|| assert_eq!(client.send("HEAD", &path, &[], &[]).status, 200));
        });
    }
    drop(client);
    trigger.begin();
    runtime.block_on(server).expect("the server");
}

/// From a registry on loopback into an empty store: tag, manifest, layer, each synced.
fn pull(c: &mut Criterion) {
    let folder = folder();
    let data = folder.join("registry");
    std::fs::create_dir(&data).expect("folder");
    let daemon = Daemon::start(&data, None);
    let mut client = Client::new(&daemon.registry);
    client.push_artifact("kp", "latest", &newest());
    client.push_artifact("small", "latest", &small_layer(1));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut group = c.benchmark_group("pull");
    group.sample_size(20);
    let stores = std::cell::Cell::new(0);
    for repository in ["small", "kp"] {
        let way = Arc::new(Way {
            endpoint: Endpoint {
                registry: daemon.registry.parse().expect("a registry"),
                transport: Transport { plain_http: true, allow_loopback: true, ..Transport::default() },
                credentials: Credentials::Anonymous,
            },
            repository: repository.parse().expect("a repository"),
        });
        group.bench_function(repository, |b| {
            b.iter_batched(
                || {
                    stores.set(stores.get() + 1);
                    let store = Store::open(&folder.join(stores.get().to_string())).expect("a store");
                    let client = registry::Client::new(registry::Config::default()).expect("a client");
                    Puller::new(store, client).expect("a puller")
                },
                |puller| runtime.block_on(pull_all(&puller, &way)),
                BatchSize::LargeInput,
            );
        });
    }
}

async fn pull_all(puller: &Puller, way: &Arc<Way>) {
    let budget = Budget::within(Duration::from_secs(60));
    let wanted = Wanted::Tag("latest".parse().expect("a tag"));
    let target = puller.resolve(way, &wanted, false, budget).await.expect("resolved");
    let pulled = puller.manifest(way, &target, budget).await.expect("the manifest");
    for layer in &pulled.manifest.layers {
        let (_blob, _lease) = puller.blob(way, layer, budget).await.expect("the layer");
    }
}

/// A daemon with its objects: from its ready line until all are Ready; and one more pass that finds nothing new.
fn reconcile(c: &mut Criterion) {
    const OBJECTS: usize = 50;
    let folder = folder();
    let upstream = folder.join("upstream");
    std::fs::create_dir(&upstream).expect("folder");
    let registry = Daemon::start(&upstream, None);
    let mut client = Client::new(&registry.registry);
    let documents: Vec<String> = (0..OBJECTS)
        .map(|n| {
            client.push_artifact(&format!("app-{n}"), "latest", &small_layer(n));
            object(n, &registry.registry)
        })
        .collect();
    let objects = folder.join("objects");
    std::fs::create_dir(&objects).expect("folder");
    std::fs::write(objects.join("objects.yaml"), documents.join("\n---\n")).expect("objects");
    let mut group = c.benchmark_group("reconcile");
    group.sample_size(10);
    let mut turn = 0;
    group.bench_function(BenchmarkId::new("first pass of objects", OBJECTS), |b| {
        b.iter_custom(|times| {
            (0..times)
                .map(|_| {
                    turn += 1;
                    let daemon = start(&folder, turn, &objects);
                    daemon.wait_ready(OBJECTS, Duration::from_millis(5));
                    daemon.ready.elapsed()
                })
                .sum()
        });
    });
    let daemon = start(&folder, 0, &objects);
    daemon.wait_ready(OBJECTS, Duration::from_millis(20));
    let mut admin = Client::new(&daemon.admin);
    group.sample_size(50);
    group.bench_function("a requested pass that finds nothing new", |b| {
        b.iter(|| {
            let path = "/v1/reconcile?kind=OCIRepository&namespace=default&name=o-0";
            let answer = admin.send("POST", path, &[], &[]);
            assert_eq!(answer.status, 200, "{}", answer.text());
        });
    });
}

fn start(folder: &Path, turn: u64, objects: &Path) -> Daemon {
    let data = folder.join(format!("data-{turn}"));
    std::fs::create_dir(&data).expect("folder");
    Daemon::start(&data, Some(objects))
}

fn object(number: usize, host: &str) -> String {
    serde_json::json!({
        "apiVersion": "source.toolkit.fluxcd.io/v1",
        "kind": "OCIRepository",
        "metadata": { "name": format!("o-{number}"), "namespace": "default" },
        "spec": {
            "url": format!("oci://{host}/app-{number}"),
            "insecure": true,
            "interval": "1h",
            "ref": { "tag": "latest" },
        },
    })
    .to_string()
}

/// Reading manifests that strangers wrote.
fn manifest(c: &mut Criterion) {
    let (_, bytes) = support::flux_artifact(&small_layer(1));
    c.bench_function("manifest/parse", |b| b.iter(|| Document::parse(&bytes, None).expect("a manifest")));
}

criterion_group! {
    name = stages;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = ingest, unpack, artifact, serving, pull, reconcile, manifest
}

fn main() {
    let _folders = support::Folders;
    stages();
    Criterion::default().configure_from_args().final_summary();
}
