//! What both bench programs need: content to measure with, and a folder to measure in.
#![allow(dead_code)]

use std::{collections::BTreeMap, io::Write as _, path::PathBuf, sync::Mutex};

use larder::{artifact::choose::Chosen, digest::Digest, oci::Descriptor};
use rayon::prelude::*;

#[path = "../../tests/it/support/packed.rs"]
mod packed;

pub use packed::Files;

/// The versions of kube-prometheus, oldest first: the corpus's (`LARDER_CORPUS`, else `../shared/corpus`), else as many
/// made ones of about the same size, which is said.
pub fn kube_prometheus() -> Vec<Files> {
    packed::read("kube-prometheus").unwrap_or_else(|| {
        eprintln!("no corpus (LARDER_CORPUS): made versions stand in for kube-prometheus");
        (0..60).map(made).collect()
    })
}

/// 95 documents with 5.5 MB together, of which a tenth changes with every version.
fn made(version: usize) -> Files {
    (0..95)
        .map(|file| {
            let stamp = if file % 10 == version % 10 { version } else { 0 };
            let lines = if file < 5 { 18_000 } else { 400 };
            let text: String = (0..lines)
                .map(|line| format!("  - expr: rate(metric_{file}_{}[{stamp}m])\n", line * 7919 % 9973))
                .collect();
            (format!("document-{file}.yaml"), format!("groups:\n{text}").into_bytes())
        })
        .collect()
}

/// A layer as a Flux artifact's manifest names it.
pub fn descriptor(layer: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.cncf.flux.content.v1.tar+gzip".into(),
        digest: Digest::sha256(layer),
        size: layer.len() as u64,
        platform: None,
        artifact_type: None,
        annotations: BTreeMap::new(),
    }
}

/// That layer as the choice of an object that names nothing.
pub fn chosen(layer: &[u8]) -> Chosen {
    Chosen { layers: vec![descriptor(layer)], image: false, copy: false, chart: false }
}

/// The files as a plain tar.
pub fn tar_of(files: &Files) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content.as_slice()).expect("tar in memory");
    }
    builder.into_inner().expect("tar in memory")
}

/// Packed as clients do it: gzip -6.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).expect("gzip in memory");
    encoder.finish().expect("gzip in memory")
}

/// So many bytes that do not compress, the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// A small configuration of its own, as a gzip layer.
pub fn small_layer(number: usize) -> Vec<u8> {
    let deployment = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: app-{number}\nspec:\n  replicas: 2\n  selector:\n    \
         matchLabels:\n      app: app-{number}\n  template:\n    metadata:\n      labels:\n        app: app-{number}\n    \
         spec:\n      containers:\n        - name: app\n          image: registry.example.com/app:{number}\n"
    );
    let settings =
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: app-{number}\ndata:\n  n: \"{number}\"\n");
    gzip(&tar_of(&BTreeMap::from([
        ("deployment.yaml".to_owned(), deployment.into_bytes()),
        ("settings.yaml".to_owned(), settings.into_bytes()),
    ])))
}

/// A Flux artifact of one layer: config and manifest.
pub fn flux_artifact(layer: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let config = b"{}".to_vec();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.cncf.flux.config.v1+json",
            "digest": Digest::sha256(&config).to_string(),
            "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.cncf.flux.content.v1.tar+gzip",
            "digest": Digest::sha256(layer).to_string(),
            "size": layer.len(),
        }],
    });
    (config, serde_json::to_vec(&manifest).expect("JSON"))
}

/// A folder for one group: in `LARDER_BENCH_DIR`, else on the disk that the build is on, for that of `/tmp` may be memory.
///
/// It is removed when the process ends ([`Folders`]), not before: for five minutes ext4 goes around inodes that were
/// deleted, one by one, and who makes files meanwhile pays for it.
pub fn folder() -> PathBuf {
    folder_in(bench_root())
}

/// A folder in memory where the system has one, else as [`folder`]: for a client whose own disk is not what is measured.
pub fn memory() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    folder_in(if memory.is_dir() { memory } else { bench_root() })
}

fn bench_root() -> PathBuf {
    let root = std::env::var_os("LARDER_BENCH_DIR").map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    std::fs::create_dir_all(&root).expect("the folder for temporary files");
    root
}

fn folder_in(root: PathBuf) -> PathBuf {
    let made = tempfile::Builder::new().prefix("bench-").tempdir_in(root).expect("a temporary folder").keep();
    MADE.lock().expect("the list of folders").push(made.clone());
    made
}

static MADE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes the folders when dropped.
pub struct Folders;

impl Drop for Folders {
    fn drop(&mut self) {
        let made = std::mem::take(&mut *MADE.lock().expect("the list of folders"));
        let below = made.iter().filter_map(|made| made.read_dir().ok()).flatten().flatten();
        let below: Vec<PathBuf> = below.map(|entry| entry.path()).collect();
        below.par_iter().for_each(|path| {
            let _ = std::fs::remove_dir_all(path);
        });
        for made in made {
            let _ = std::fs::remove_dir_all(made);
        }
    }
}
