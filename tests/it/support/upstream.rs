//! A scripted registry with a runtime of its own, so that it can be taken away with all its connections.

use std::ops::Deref;

use larder::digest::Digest;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{
    fixtures::{Files, gzip, tar_of},
    registry::{Options, ScriptedRegistry},
};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.cncf.flux.config.v1+json";
pub const LAYER: &str = "application/vnd.cncf.flux.content.v1.tar+gzip";
/// The repository that everything is in.
pub const REPOSITORY: &str = "team/app";

pub struct Upstream {
    registry: ScriptedRegistry,
    runtime: Option<Runtime>,
}

impl Deref for Upstream {
    type Target = ScriptedRegistry;

    fn deref(&self) -> &ScriptedRegistry {
        &self.registry
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What was pushed.
#[derive(Clone, Debug)]
pub struct Pushed {
    pub manifest: Digest,
    pub layer: Digest,
}

impl Upstream {
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    pub fn start_with(options: Options) -> Self {
        Self::start_at("127.0.0.1:0", options)
    }

    pub fn start_at(address: &str, options: Options) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let registry = runtime.block_on(ScriptedRegistry::start_at(address, options));
        Self { registry, runtime: Some(runtime) }
    }

    /// Ends it: connections break, and nobody listens any more when this returns.
    pub fn stop(mut self) -> String {
        let address = self.authority();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(std::time::Duration::from_secs(5));
        }
        address
    }

    pub fn url(&self) -> String {
        format!("oci://{}/{REPOSITORY}", self.authority())
    }

    /// A Flux artifact of these files under `latest`.
    pub fn push_files(&self, files: &Files) -> Pushed {
        self.push_layer(&gzip(&tar_of(files)))
    }

    /// A Flux artifact whose layer is these bytes, under `latest`.
    pub fn push_layer(&self, bytes: &[u8]) -> Pushed {
        let layer = self.add_blob(REPOSITORY, bytes);
        let manifest = self.push_manifest(&manifest(&json!([descriptor(LAYER, &layer, bytes.len())])));
        Pushed { manifest, layer }
    }

    /// A manifest, its config held, under `latest`.
    pub fn push_manifest(&self, document: &Value) -> Digest {
        self.push_document(document, MANIFEST)
    }

    /// Any document under `latest`.
    pub fn push_document(&self, document: &Value, media_type: &str) -> Digest {
        self.add_blob(REPOSITORY, b"{}");
        self.add_manifest(REPOSITORY, Some("latest"), media_type, document.to_string().as_bytes())
    }
}

pub fn descriptor(media_type: &str, digest: &Digest, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}

/// A Flux manifest of `layers`.
pub fn manifest(layers: &Value) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &Digest::sha256(b"{}"), 2),
        "layers": layers,
    })
}
