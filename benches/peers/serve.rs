//! Serving, beside nginx with sendfile and its cache of open files, and beside docker-registry.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    Options, guarded,
    http::Client,
    programs::{Daemon, DockerRegistry, Nginx, find},
    support::{folder, noise},
    table::{Ratio, Table, Target, Unit, milliseconds},
};

/// Size, its name, wrk's connections, what is to be reached.
pub const SIZES: [(usize, &str, u32, f64); 4] = [
    (4 << 10, "4 KB", 32, 1.25),
    (64 << 10, "64 KB", 32, 1.2),
    (512 << 10, "512 KB", 32, 1.1),
    (32 << 20, "32 MB", 4, 1.5),
];
/// How many blobs of 32 MB are read from a cold page cache.
const COLD: u64 = 8;

pub fn run(options: &Options, table: &mut Table) {
    if find("nginx").is_none() || find("wrk").is_none() {
        return table.skipped("serving beside nginx", "nginx and wrk are not both installed");
    }
    let folder = folder();
    let content = Content::make(&folder);
    {
        let daemon = Daemon::start(&content.data, Some(&content.objects));
        let Some(nginx) = Nginx::start(&folder.join("nginx"), &content.root) else { return };
        daemon.wait_ready(SIZES.len(), Duration::from_millis(100));
        for (size, name, connections, wanted) in SIZES {
            let place = &content.places[&size.to_string()];
            let larder = format!("http://{}/{}", daemon.artifacts, place.artifact);
            let blob = format!("http://{}/v2/bench/blobs/{}", daemon.registry, place.digest);
            let other = format!("http://{}/{size}", nginx.host);
            let (mut artifacts, mut blobs, mut others) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..options.rounds(5) {
                artifacts.push(wrk(&larder, connections));
                others.push(wrk(&other, connections));
                blobs.push(wrk(&blob, connections));
            }
            for (what, figures) in [("artifact", &artifacts), ("blob", &blobs)] {
                let what = format!("GET {what} {name}, {connections} connections");
                let target = Target::RatioAtLeast(wanted);
                table.compare(&what, Unit::PerSecond, figures, ("nginx", &others), Ratio::LarderByPeer, target);
            }
        }
    }
    tls(options, table, &folder, &content);
    registry(options, table, &folder, &content);
    guarded::run(options, table, &folder, &content);
}

/// The same two when what is asked for is not in memory.
pub fn run_cold(options: &Options, table: &mut Table) {
    if find("nginx").is_none() {
        return table.skipped("a cold page cache beside nginx", "nginx is not installed");
    }
    let folder = folder();
    let content = Content::make(&folder);
    cold(options, table, &folder, &content);
}

/// Over TLS 1.3; both take the first cipher of wrk's list, AES-256-GCM.
fn tls(options: &Options, table: &mut Table, folder: &Path, content: &Content) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).expect("a certificate");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a key");
    let config = folder.join("tls.yaml");
    let settings = json!({ "registry": { "tls": { "cert": &cert, "key": &key } } });
    std::fs::write(&config, settings.to_string()).expect("a configuration");
    let daemon = Daemon::start_with(&content.data, None, Some(&config));
    let Some(nginx) = Nginx::start_with(&folder.join("nginx-tls"), &content.root, Some((&cert, &key))) else { return };
    for (size, name, connections, _) in SIZES {
        let blob = format!("https://{}/v2/bench/blobs/{}", daemon.registry, content.places[&size.to_string()].digest);
        let other = format!("https://{}/{size}", nginx.host);
        let (mut blobs, mut others) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds(5) {
            blobs.push(wrk(&blob, connections));
            others.push(wrk(&other, connections));
        }
        let what = format!("GET blob {name} over TLS, {connections} connections");
        let target = Target::RatioAtLeast(1.2);
        table.compare(&what, Unit::PerSecond, &blobs, ("nginx", &others), Ratio::LarderByPeer, target);
    }
}

/// Beside docker-registry, which looks at its storage for every request.
fn registry(options: &Options, table: &mut Table, folder: &Path, content: &Content) {
    let Some(peer) = DockerRegistry::start(&folder.join("docker-registry")) else {
        return table.skipped("serving beside docker-registry", "docker-registry is not installed");
    };
    let (size, name, connections, _) = SIZES[0];
    let digest = Client::new(&peer.host).push_artifact("bench", "4k", &noise(size, size as u64));
    assert_eq!(digest, content.places[&size.to_string()].digest);
    let daemon = Daemon::start(&content.data, None);
    let (mut blobs, mut others) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds(5) {
        blobs.push(wrk(&format!("http://{}/v2/bench/blobs/{digest}", daemon.registry), connections));
        others.push(wrk(&format!("http://{}/v2/bench/blobs/{digest}", peer.host), connections));
    }
    let what = format!("GET blob {name}, {connections} connections, beside docker-registry");
    let target = Target::RatioAtLeast(60.0);
    table.compare(&what, Unit::PerSecond, &blobs, ("docker-registry", &others), Ratio::LarderByPeer, target);
}

/// The same bytes as blobs and artifacts of a daemon, and as files for nginx.
pub struct Content {
    /// The daemon's data.
    pub data: PathBuf,
    objects: PathBuf,
    /// nginx's files, by their size, and cold ones.
    pub root: PathBuf,
    /// By the file's name.
    pub places: BTreeMap<String, Place>,
}

/// Where something is to be had of the daemon.
pub struct Place {
    artifact: String,
    /// Of the blob, in the repository `bench`.
    pub digest: String,
}

impl Content {
    fn make(folder: &Path) -> Self {
        let (data, objects, root) = (folder.join("data"), folder.join("objects"), folder.join("root"));
        for made in [&data, &objects, &root] {
            std::fs::create_dir(made).expect("folder");
        }
        let daemon = Daemon::start(&data, Some(&objects));
        let mut client = Client::new(&daemon.registry);
        let mut places = BTreeMap::new();
        let mut documents = Vec::new();
        let cold = (0..COLD).map(|n| (32 << 20, format!("cold-{n}"), 100 + n));
        let warm = SIZES.iter().map(|(size, ..)| (*size, size.to_string(), *size as u64));
        for (size, name, seed) in warm.chain(cold) {
            let bytes = noise(size, seed);
            std::fs::write(root.join(&name), &bytes).expect("a file for nginx");
            let digest = client.push_artifact("bench", &name, &bytes);
            if !name.starts_with("cold") {
                documents.push(json!({
                    "apiVersion": "source.toolkit.fluxcd.io/v1",
                    "kind": "OCIRepository",
                    "metadata": { "name": format!("s{name}"), "namespace": "default" },
                    "spec": {
                        "url": format!("oci://{}/bench", daemon.registry),
                        "insecure": true,
                        "interval": "1h",
                        "ref": { "tag": name },
                        "layerSelector": { "operation": "copy" },
                    },
                }));
            }
            places.insert(name, Place { artifact: String::new(), digest });
        }
        let text: Vec<String> = documents.iter().map(ToString::to_string).collect();
        std::fs::write(objects.join("objects.yaml"), text.join("\n---\n")).expect("objects");
        for object in daemon.wait_ready(SIZES.len(), Duration::from_millis(100)) {
            let name = object["metadata"]["name"].as_str().and_then(|n| n.strip_prefix('s')).expect("a name");
            let path = object["status"]["artifact"]["path"].as_str().expect("a path");
            places.get_mut(name).expect("known").artifact = path.to_owned();
        }
        Self { data, objects, root, places }
    }
}

/// Requests a second over one second, as wrk counts them.
pub fn wrk(url: &str, connections: u32) -> f64 {
    wrk_with(url, connections, None)
}

/// The same, each request with this header line.
pub fn wrk_with(url: &str, connections: u32, header: Option<&str>) -> f64 {
    let mut command = Command::new("wrk");
    command.args(["-t1", &format!("-c{connections}"), "-d1s"]);
    if let Some(header) = header {
        command.args(["-H", header]);
    }
    let output = command.arg(url).output().expect("wrk runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{url}: {text}");
    let line = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    line.and_then(|figure| figure.trim().parse().ok()).unwrap_or_else(|| panic!("{url}: {text}"))
}

/// Large blobs that are in no page cache, by four clients, while a fifth asks for a small one that is.
fn cold(options: &Options, table: &mut Table, folder: &Path, content: &Content) {
    let small = SIZES[0].0.to_string();
    let (mut larder, mut nginx, mut larder_worst, mut nginx_worst) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds(5) {
        forget(&content.data.join("blobs"));
        let daemon = Daemon::start(&content.data, None);
        let blob = |name: &str| format!("/v2/bench/blobs/{}", content.places[name].digest);
        let (time, worst) = fetch_cold(&daemon.registry, &blob, &small);
        larder.push(time);
        larder_worst.push(worst);
        drop(daemon);
        forget(&content.root);
        let Some(server) = Nginx::start(&folder.join("nginx"), &content.root) else { return };
        let (time, worst) = fetch_cold(&server.host, &|name: &str| format!("/{name}"), &small);
        nginx.push(time);
        nginx_worst.push(worst);
    }
    let what = format!("{COLD} cold blobs of 32 MB, 4 connections");
    let target = Target::RatioAtMost(1.0);
    table.compare(&what, Unit::Milliseconds, &larder, ("nginx", &nginx), Ratio::LarderByPeer, target);
    let what = "slowest of the warm 4 KB GETs meanwhile";
    table.compare(what, Unit::Milliseconds, &larder_worst, ("nginx", &nginx_worst), Ratio::LarderByPeer, Target::None);
}

/// The time for all cold ones, and the longest that a warm one took meanwhile, in ms.
fn fetch_cold(host: &str, path: &(dyn Fn(&str) -> String + Sync), small: &str) -> (f64, f64) {
    let done = AtomicBool::new(false);
    Client::new(host).get(&path(small));
    std::thread::scope(|scope| {
        let begin = Instant::now();
        let clients: Vec<_> = (0..4)
            .map(|first| {
                scope.spawn(move || {
                    let mut client = Client::new(host);
                    for n in (first..COLD).step_by(4) {
                        assert_eq!(client.get(&path(&format!("cold-{n}"))).len(), 32 << 20);
                    }
                })
            })
            .collect();
        let watcher = scope.spawn(|| {
            let mut client = Client::new(host);
            let mut worst = 0f64;
            while !done.load(Ordering::Relaxed) {
                let begin = Instant::now();
                client.get(&path(small));
                worst = worst.max(milliseconds(begin.elapsed()));
                std::thread::sleep(Duration::from_millis(1));
            }
            worst
        });
        for client in clients {
            client.join().expect("a client");
        }
        let time = milliseconds(begin.elapsed());
        done.store(true, Ordering::Relaxed);
        (time, watcher.join().expect("the watcher"))
    })
}

/// Takes all files below a folder out of the page cache; nobody may have them mapped.
fn forget(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            forget(&path);
        } else {
            let file = File::open(&path).expect("a file");
            file.sync_all().expect("synced");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("fadvise");
        }
    }
}
