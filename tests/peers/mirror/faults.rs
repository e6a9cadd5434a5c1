//! With its fallback on, containerd's pull that succeeds without Larder succeeds with it: killed, without disk, before a
//! source that falls silent; wrong bytes from the source cost one pull at most.

use std::{
    io::Write as _,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

use super::{containerd::Containerd, image, mirror_from};
use crate::{
    docker_registry::{Artifact, DockerRegistry, OCI_MANIFEST},
    need::need,
    support::{
        announce, eventually,
        fixtures::sha256,
        http,
        larder::Larder,
        registry::{Fault, Kind, ScriptedRegistry, Seen, of},
    },
};

/// Of each layer's file: enough that its blob is passed on while it comes, and that containerd writes a part of it.
const LENGTH: usize = 4_000_000;
/// Where the source stops: more than containerd collects before it writes, less than a layer.
const PART: usize = 2 << 20;

/// A registry, a source with the same content that misbehaves as told, a mirror of that source, and a containerd that
/// asks first the mirror, then the registry.
struct Scene {
    containerd: Containerd,
    larder: Option<Larder>,
    source: ScriptedRegistry,
    registry: DockerRegistry,
    artifact: Artifact,
    hosts: PathBuf,
    /// What the source runs on.
    _runtime: Runtime,
}

impl Scene {
    fn set(root: &Path) -> Self {
        let registry = DockerRegistry::start(&root.join("registry"));
        let artifact = image(LENGTH);
        let pushed = registry.push("team/app", "v1", &artifact);
        let runtime = Runtime::new().expect("runtime");
        let source = runtime.block_on(ScriptedRegistry::start());
        source.add_blob("team/app", &artifact.config);
        for (_, bytes) in &artifact.layers {
            source.add_blob("team/app", bytes);
        }
        source.add_manifest("team/app", Some("v1"), OCI_MANIFEST, &pushed.manifest);
        let larder = Some(mirror_from(root, &registry, source.origin()));
        let containerd = Containerd::start(&root.join("containerd"));
        let hosts = root.join("certs.d");
        Self { containerd, larder, source, registry, artifact, hosts, _runtime: runtime }
    }

    fn larder(&self) -> &Larder {
        self.larder.as_ref().expect("not killed yet")
    }

    fn image(&self) -> String {
        format!("{}/team/app:v1", self.registry.host())
    }

    fn pull(&self) -> Result<(), String> {
        self.containerd.pull(&self.hosts, &self.image(), &[])
    }

    /// Of the layer with that number.
    fn digest(&self, layer: usize) -> String {
        sha256(&self.artifact.layers[layer].1)
    }

    fn blob_url(&self, layer: usize) -> String {
        let host = self.registry.host();
        format!("{}/v2/team/app/blobs/{}?ns={host}", self.larder().registry, self.digest(layer))
    }

    /// Another who reads a layer from the mirror, for as long as this lives.
    fn read_beside(&self, layer: usize) -> TcpStream {
        let url = self.blob_url(layer);
        let (host, path) = url.trim_start_matches("http://").split_once('/').expect("a path");
        let mut stream = TcpStream::connect(host).expect("the mirror");
        write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n").expect("a request");
        stream
    }

    /// Waits until the mirror has asked the source for a blob.
    fn until_asked(&self) {
        eventually("the source's first blob", || {
            if self.source.count(Kind::BlobGet) > 0 { Ok(()) } else { Err("none is asked for".to_owned()) }
        });
    }

    fn assert_pulled(&self) {
        for (layer, (_, bytes)) in self.artifact.layers.iter().enumerate() {
            assert!(self.containerd.blob(&self.digest(layer)).as_ref() == Some(bytes), "layer {layer}");
        }
    }
}

#[test]
fn a_pull_succeeds_when_the_mirror_is_killed_in_its_middle() {
    need!("containerd", "ctr", "docker-registry");
    let root = tempfile::tempdir().expect("folder");
    let mut scene = Scene::set(root.path());
    // So that its middle lasts until the kill.
    scene.source.fault(of(Kind::BlobGet), usize::MAX, Fault::Stall { after: PART });
    // From a few containerd's bytes would be withheld until the digest is right.
    let _others: Vec<TcpStream> = (0..8).map(|_| scene.read_beside(0)).collect();
    scene.until_asked();
    let larder = scene.larder.take().expect("running");
    thread::scope(|scope| {
        let pull = scope.spawn(|| scene.pull());
        eventually("containerd's first bytes", || {
            if scene.containerd.has_part_of(&scene.digest(0)) { Ok(()) } else { Err("nothing written".to_owned()) }
        });
        assert_eq!(scene.registry.count(&["GET /v2/team/app/blobs/"]), 0, "they came by the mirror");
        larder.kill();
        pull.join().expect("the pull's thread").expect("the pull");
    });
    scene.assert_pulled();
}

#[test]
fn a_pull_succeeds_when_the_source_falls_silent_and_the_body_ends_within_ten_seconds() {
    need!("containerd", "ctr", "docker-registry");
    let root = tempfile::tempdir().expect("folder");
    let scene = Scene::set(root.path());
    // And stays silent when it is asked for the rest.
    let rest = |seen: &Seen| seen.kind == Kind::BlobGet && seen.header("range").is_some();
    scene.source.fault(rest, usize::MAX, Fault::Hang);
    scene.source.fault(of(Kind::BlobGet), usize::MAX, Fault::Stall { after: PART });
    thread::scope(|scope| {
        let pull = scope.spawn(|| scene.pull());
        let begun = Instant::now();
        // An answer that says so, or a body cut short: either lets a client go on.
        let answer = http::send("GET", &scene.blob_url(0), &[], b"");
        let took = begun.elapsed();
        assert!(
            answer.as_ref().map_or(true, |answer| answer.status == 404 || answer.status >= 500),
            "{:?}",
            answer.map(|a| a.status)
        );
        assert!(took < Duration::from_secs(10), "{took:?}");
        pull.join().expect("the pull's thread").expect("the pull");
    });
    scene.assert_pulled();
}

#[test]
fn wrong_bytes_cost_one_pull_at_most_and_are_never_kept() {
    need!("containerd", "ctr", "docker-registry");
    let root = tempfile::tempdir().expect("folder");
    let scene = Scene::set(root.path());
    let bad = scene.digest(0);
    let mut bytes = scene.artifact.layers[0].1.clone();
    // Among the last 64 KiB, which nobody gets before the digest is right, however slowly they come.
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    let wrong = bytes.clone();
    scene.source.fault(
        move |seen| seen.kind == Kind::BlobGet && seen.path.ends_with(&bad),
        usize::MAX,
        Fault::Body(bytes),
    );
    if let Err(why) = scene.pull() {
        announce(&format!("the pull of wrong bytes failed, as it may: {}", why.lines().last().unwrap_or_default()));
    }
    assert!(scene.source.count(Kind::BlobGet) > 0, "the mirror was asked");
    scene.pull().expect("the next pull");
    scene.assert_pulled();
    if let Ok(answer) = http::send("GET", &scene.blob_url(0), &[], b"") {
        assert!(answer.status != 200 || answer.body == scene.artifact.layers[0].1, "wrong bytes, whole");
    }
    let kept = files_below(&scene.larder().data);
    assert!(!kept.is_empty() && kept.iter().all(|file| *file != wrong), "wrong bytes are kept");
}

/// A blob's first byte: whoever gets it keeps it, and containerd's next pull goes on behind it. So it gets none before
/// the digest is right, however slowly the blob comes: the pull itself finds its way.
#[test]
fn a_wrong_first_byte_costs_no_pull_however_slowly_it_comes() {
    need!("containerd", "ctr", "docker-registry");
    let root = tempfile::tempdir().expect("folder");
    let scene = Scene::set(root.path());
    let bad = scene.digest(0);
    let mut bytes = scene.artifact.layers[0].1.clone();
    bytes[0] ^= 1;
    let (gate, open) = tokio::sync::watch::channel(false);
    let of_it = move |seen: &Seen| seen.kind == Kind::BlobGet && seen.path.ends_with(&bad);
    scene.source.fault(of_it, 1, Fault::Gate { after: PART, open, then: Box::new(Fault::Body(bytes)) });
    thread::scope(|scope| {
        let pull = scope.spawn(|| scene.pull());
        scene.until_asked();
        // Other clients would have them by then.
        thread::sleep(Duration::from_secs(2));
        assert!(!scene.containerd.has_part_of(&scene.digest(0)), "it was given unverified bytes");
        gate.send_replace(true);
        pull.join().expect("the pull's thread").expect("the pull");
    });
    scene.assert_pulled();
}

#[test]
fn a_pull_succeeds_when_the_mirror_is_out_of_disk() {
    need!("containerd", "ctr", "docker-registry", "mount");
    if !rustix::process::geteuid().is_root() {
        announce("SKIPPED: a_pull_succeeds_when_the_mirror_is_out_of_disk: only root mounts a small file system");
        return;
    }
    let root = tempfile::tempdir().expect("folder");
    let data = Tmpfs::mount(&root.path().join("data"));
    let scene = Scene::set(root.path());
    let full = std::fs::write(data.0.join("ballast"), vec![1; 8 << 20]).expect_err("more than there is room for");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    scene.pull().expect("the pull");
    scene.assert_pulled();
    assert!(scene.source.count(Kind::BlobGet) > 0, "the mirror was asked");
}

/// A small file system, gone when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir_all(at).expect("folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m,mode=0700", "larder-test"]).arg(at);
        assert!(mount.status().expect("mount runs").success());
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The bytes of every file below a folder, unless it has just gone.
fn files_below(folder: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let below = entries.flat_map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files_below(&entry.path()),
        Ok(kind) if kind.is_file() => std::fs::read(entry.path()).into_iter().collect(),
        _ => Vec::new(),
    });
    below.collect()
}
