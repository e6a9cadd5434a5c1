//! A rollout: many clients of one node's mirror pull one image at once, from an upstream that sends 10 MB/s, with and
//! without `larder mirror prefetch` ahead of it.

use std::{collections::HashMap, process::Command, sync::Arc, time::Duration};

use larder::digest::Digest;
use serde_json::json;

use crate::{
    Options,
    http::Client,
    programs::{Daemon, larder, run as run_program},
    pulls::mirror,
    support::{folder, noise},
    table::{Ratio, Table, Target, Unit, timed},
    upstream::Upstream,
};

const CLIENTS: usize = 20;
const LINK: f64 = 10e6;
const LAYERS: usize = 8;
const LAYER: usize = 2 << 20;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub fn run(options: &Options, table: &mut Table) {
    let rounds = options.rounds(5);
    // Two for each turn: one that nobody prepared for, one that is prefetched.
    let images: Vec<Image> = (0..2 * rounds).map(Image::make).collect();
    let content = images.iter().flat_map(Image::content).collect();
    let upstream = Upstream::start(content, LINK, Duration::ZERO);
    let daemon = mirror(&folder(), "larder", &upstream.host);
    let (mut colds, mut prefetches, mut prefetched, mut warms) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut asked = 0;
    for pair in images.chunks(2) {
        colds.push(rollout(&daemon, &pair[0]));
        upstream.asked();
        prefetches.push(pair[1].prefetch(&daemon));
        let (gets, _) = upstream.asked();
        assert_eq!(gets as usize, LAYERS + 1, "every blob once");
        prefetched.push(rollout(&daemon, &pair[1]));
        warms.push(rollout(&daemon, &pair[1]));
        asked += upstream.asked().0;
    }
    let what = format!("{CLIENTS} clients pull an image of {LAYERS} × 2 MiB, 10 MB/s, prefetched");
    let peer = ("the same again, warm", &warms[..]);
    table.compare(&what, Unit::Milliseconds, &prefetched, peer, Ratio::LarderByPeer, Target::RatioAtMost(1.1));
    table.figure("… GETs of the upstream", Unit::Count, asked as f64, Target::AtMost(0.0));
    let peer = ("nobody prefetched", &colds[..]);
    table.compare("… what is gained", Unit::Milliseconds, &prefetched, peer, Ratio::PeerByLarder, Target::None);
    let peer = ("nobody prefetched", &colds[..]);
    table.compare(
        "… larder mirror prefetch itself",
        Unit::Milliseconds,
        &prefetches,
        peer,
        Ratio::LarderByPeer,
        Target::None,
    );
}

/// An image in a repository of its own.
struct Image {
    repository: String,
    manifest: Arc<Vec<u8>>,
    /// Config and layers.
    blobs: Vec<(Digest, Arc<Vec<u8>>)>,
}

impl Image {
    fn make(number: usize) -> Self {
        let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] },
            "created": format!("1970-01-01T00:00:{number:02}Z") });
        let layers = (0..LAYERS).map(|layer| noise(LAYER, (7000 + number * LAYERS + layer) as u64));
        let blobs: Vec<(Digest, Arc<Vec<u8>>)> = std::iter::once(config.to_string().into_bytes())
            .chain(layers)
            .map(|bytes| (Digest::sha256(&bytes), Arc::new(bytes)))
            .collect();
        let named = |kind: &str, (digest, bytes): &(Digest, Arc<Vec<u8>>)| json!({ "mediaType": kind, "digest": digest.to_string(), "size": bytes.len() });
        let layers: Vec<_> =
            blobs[1..].iter().map(|blob| named("application/vnd.oci.image.layer.v1.tar+gzip", blob)).collect();
        let config = named("application/vnd.oci.image.config.v1+json", &blobs[0]);
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        Self { repository: format!("rollout-{number}"), manifest: Arc::new(manifest.to_string().into_bytes()), blobs }
    }

    fn content(&self) -> HashMap<String, (String, Arc<Vec<u8>>)> {
        let path = |rest: &str| format!("/v2/{}/{rest}", self.repository);
        let manifest = || (MANIFEST.to_owned(), Arc::clone(&self.manifest));
        let blobs = self.blobs.iter().map(|(digest, bytes)| {
            (path(&format!("blobs/{digest}")), ("application/octet-stream".to_owned(), Arc::clone(bytes)))
        });
        let by_digest = path(&format!("manifests/{}", Digest::sha256(&self.manifest)));
        blobs.chain([(path("manifests/latest"), manifest()), (by_digest, manifest())]).collect()
    }

    /// The milliseconds of `larder mirror prefetch`.
    fn prefetch(&self, daemon: &Daemon) -> f64 {
        let mut command = Command::new(larder());
        command.args(["mirror", "prefetch", &format!("upstream.example/{}:latest", self.repository)]);
        command.args(["--server", &format!("http://{}", daemon.admin)]);
        let (time, done) = timed(|| run_program(&mut command));
        done.unwrap_or_else(|why| panic!("{why}"));
        time
    }

    /// What a container runtime asks for, in its order, on one connection; every byte is compared.
    fn pull(&self, host: &str) {
        let mut client = Client::new(host);
        let path = |rest: &str| format!("/v2/{}/{rest}?ns=upstream.example", self.repository);
        let resolved = client.send("HEAD", &path("manifests/latest"), &[("Accept", MANIFEST)], &[]);
        assert_eq!(resolved.status, 200, "{}", resolved.text());
        let digest = resolved.header("docker-content-digest").expect("Docker-Content-Digest").to_owned();
        assert_eq!(client.get(&path(&format!("manifests/{digest}"))), *self.manifest);
        for (digest, bytes) in &self.blobs {
            assert!(client.get(&path(&format!("blobs/{digest}"))) == **bytes, "other bytes of {digest}");
        }
    }
}

/// The milliseconds until all clients have all of it.
fn rollout(daemon: &Daemon, image: &Image) -> f64 {
    let clients = || {
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| image.pull(&daemon.registry));
            }
        });
    };
    timed(clients).0
}
