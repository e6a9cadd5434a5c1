//! The mirror over loopback, in front of a scripted upstream that counts what it is asked.

mod access;
mod content;
mod daemon;
mod failing;
mod routes;
mod tags;

use std::{sync::Arc, time::Duration};

use larder::{
    digest::Digest,
    mirror::{Clock, Mirror, Mode, UpstreamConfig},
    pull::Puller,
    registry::{self, Client},
    server::{Limits, Registry},
    store::Store,
};

use crate::{
    server::{Reply, Running},
    support::registry::{Kind, Options, ScriptedRegistry},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image of one config and one layer.
pub struct Image {
    pub manifest: Vec<u8>,
    pub digest: Digest,
    pub config: Digest,
    pub layer: Digest,
    pub layer_bytes: Vec<u8>,
}

/// Puts an image into a repository of the upstream.
pub fn push(upstream: &ScriptedRegistry, repository: &str, tag: &str, layer: &[u8]) -> Image {
    let config_bytes = format!("{{\"of\":\"{tag}\"}}");
    let config = upstream.add_blob(repository, config_bytes.as_bytes());
    let layer_digest = upstream.add_blob(repository, layer);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{layer_digest}","size":{}}}]}}"#,
        config_bytes.len(),
        layer.len()
    );
    let digest = upstream.add_manifest(repository, Some(tag), MANIFEST, manifest.as_bytes());
    Image { manifest: manifest.into_bytes(), digest, config, layer: layer_digest, layer_bytes: layer.to_vec() }
}

/// A mirror, and what it mirrors under the name `up.example`.
pub struct Scene {
    pub upstream: ScriptedRegistry,
    pub clock: Clock,
    pub mirror: Mirror,
    pub running: Running,
    pub root: tempfile::TempDir,
}

impl Scene {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With another configuration of the upstream.
    pub async fn with(change: impl FnOnce(&mut UpstreamConfig)) -> Self {
        Self::of(ScriptedRegistry::start().await, change).await
    }

    /// In front of an upstream that asks who it is.
    pub async fn guarded(options: Options, mode: Mode) -> Self {
        Self::of(ScriptedRegistry::start_with(options).await, |config| config.mode = mode).await
    }

    pub async fn of(upstream: ScriptedRegistry, change: impl FnOnce(&mut UpstreamConfig)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let clock = Clock::standing();
        let mut config = UpstreamConfig::new("up.example".parse().unwrap(), Some(upstream.origin().to_string()));
        change(&mut config);
        let mirror = mirror(root.path(), vec![config], clock.clone());
        let running = serve(&mirror);
        Self { upstream, clock, mirror, running, root }
    }

    /// The same data, read again by another process's like; the upstream is gone.
    pub async fn restarted_without_upstream(self, change: impl FnOnce(&mut UpstreamConfig)) -> Self {
        let Self { upstream, clock, mirror: old, running, root } = self;
        running.stopped().await;
        let url = upstream.origin().to_string();
        drop((old, upstream));
        let mut config = UpstreamConfig::new("up.example".parse().unwrap(), Some(url));
        change(&mut config);
        // The store is free when all that came from it is gone.
        let mirror = loop {
            match Store::open(&root.path().join("data")) {
                Ok(store) => break mirror_on(store, vec![config], clock.clone()),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let running = serve(&mirror);
        Self { upstream: ScriptedRegistry::start().await, clock, mirror, running, root }
    }

    /// The same with nothing held, and with another upstream under the name `other.example`.
    pub async fn beside(self, other: &ScriptedRegistry) -> Self {
        let root = tempfile::tempdir().unwrap();
        let config = |name: &str, of: &ScriptedRegistry| {
            UpstreamConfig::new(name.parse().unwrap(), Some(of.origin().to_string()))
        };
        let upstreams = vec![config("up.example", &self.upstream), config("other.example", other)];
        let mirror = mirror(root.path(), upstreams, self.clock.clone());
        let running = serve(&mirror);
        Self { mirror, running, root, ..self }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.request("GET", path, &[]).await
    }

    pub async fn head(&self, path: &str) -> Reply {
        self.request("HEAD", path, &[]).await
    }

    /// A request for `path` below `/v2/`, with `ns=up.example`.
    pub async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let separator = if path.contains('?') { '&' } else { '?' };
        let target = format!("/v2/{path}{separator}ns=up.example");
        self.running.request(method, &target, headers, b"").await
    }

    /// How often the upstream was asked since the last call, by kind.
    pub fn asked(&self, kind: Kind) -> usize {
        self.upstream.count(kind)
    }

    pub fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }
}

pub fn mirror(root: &std::path::Path, upstreams: Vec<UpstreamConfig>, clock: Clock) -> Mirror {
    mirror_on(Store::open(&root.join("data")).unwrap(), upstreams, clock)
}

fn mirror_on(store: Store, upstreams: Vec<UpstreamConfig>, clock: Clock) -> Mirror {
    let config = registry::Config { retry_base: Duration::from_millis(1), ..registry::Config::default() };
    let puller = Puller::new(store, Client::new(config).unwrap()).unwrap();
    Mirror::new(puller, upstreams, clock).unwrap()
}

pub fn serve(mirror: &Mirror) -> Running {
    let handler = Registry::new(mirror.store().clone(), false).with_mirror(mirror.clone());
    Running::start(handler, Limits::default())
}

/// A listener for the first upstream alone.
pub fn serve_bound(mirror: &Mirror) -> Running {
    let upstream = Arc::clone(mirror.upstreams().next().unwrap());
    Running::start(Registry::new(mirror.store().clone(), false).bound_to(mirror.clone(), upstream), Limits::default())
}

/// What the answer says about where it came from.
pub fn cache_status(reply: &Reply) -> &str {
    reply.header("cache-status").unwrap_or("")
}
