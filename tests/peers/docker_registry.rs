//! Debian's docker-registry (CNCF distribution 2.8) as a peer, and pushing to it without Larder's help.

use std::{
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

use serde_json::{Value, json};

use crate::support::{
    eventually,
    fixtures::{self, Files, gzip, sha256, tar_of},
    http,
    larder::stdout_of,
};

/// Media types as the specs and Flux write them; on purpose not the crate's own constants.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Flux's artifact config.
pub const FLUX_CONFIG: &str = "application/vnd.cncf.flux.config.v1+json";
/// Flux's artifact layer.
pub const FLUX_LAYER: &str = "application/vnd.cncf.flux.content.v1.tar+gzip";

/// How a registry is set up.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// User and password that it wants (Basic).
    pub user: Option<(String, String)>,
    /// Certificate and key, PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The CA whose client certificates it wants.
    pub client_ca: Option<PathBuf>,
}

/// A running docker-registry; ended when dropped. Its storage stays below its folder, so it can be started again.
pub struct DockerRegistry {
    child: Child,
    folder: PathBuf,
    port: u16,
    setup: Setup,
}

impl DockerRegistry {
    /// An open registry without TLS, its storage below `root`.
    pub fn start(root: &Path) -> Self {
        Self::start_with(root, Setup::default())
    }

    /// A registry so set up, its storage below `root`: several over one `root` share it.
    pub fn start_with(root: &Path, setup: Setup) -> Self {
        std::fs::create_dir_all(root).expect("folder");
        // Somebody else may take the port between its choice and its use.
        for _ in 0..10 {
            let port = free_port();
            if let Some(child) = launch(root, port, &setup) {
                return Self { child, folder: root.to_owned(), port, setup };
            }
        }
        panic!("docker-registry does not start; its logs are in {}", root.display())
    }

    /// Host and port.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The file that holds a blob's bytes.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = fixtures::hex_of(digest);
        self.folder.join(format!("storage/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    /// Ends it; the port stays its own for [`DockerRegistry::resume`].
    pub fn stop(&mut self) {
        end(&mut self.child);
    }

    /// Starts it again on the same port and storage.
    pub fn resume(&mut self) {
        self.child = launch(&self.folder, self.port, &self.setup)
            .unwrap_or_else(|| panic!("docker-registry does not come back: {}", read_log(&self.folder, self.port)));
    }

    /// The requests that it has answered so far, as `METHOD /path`, without queries; its own ones (from tests' pushes) too.
    pub fn requests(&self) -> Vec<String> {
        read_log(&self.folder, self.port)
            .lines()
            .filter_map(|line| line.split_once("] \"")?.1.split_once(" HTTP/"))
            .map(|(request, _)| request.split('?').next().unwrap_or_default().to_owned())
            .collect()
    }

    /// How many requests it has answered so far whose `METHOD /path` holds all of `parts`.
    pub fn count(&self, parts: &[&str]) -> usize {
        self.requests().iter().filter(|request| parts.iter().all(|part| request.contains(part))).count()
    }

    /// The answer to a request of its API.
    pub fn send(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> http::Response {
        assert!(self.setup.tls.is_none(), "this client speaks no TLS: start a plain registry over the same folder");
        let url = if path.starts_with("http") { path.to_owned() } else { format!("http://{}{path}", self.host()) };
        // Without it an OCI manifest is answered as 404.
        let accept = format!("{OCI_MANIFEST}, {OCI_INDEX}, */*");
        let mut headers = vec![("Content-Type", content_type), ("Accept", &accept)];
        let basic = self.setup.user.as_ref().map(|(user, password)| basic(user, password));
        if let Some(basic) = &basic {
            headers.push(("Authorization", basic));
        }
        http::send(method, &url, &headers, body).unwrap_or_else(|error| panic!("{method} {url}: {error}"))
    }

    /// Pushes a blob in one piece; gives its digest.
    pub fn push_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        let begun = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"");
        assert_eq!(begun.status, 202, "{}", begun.text());
        let location = begun.header("location").expect("Location");
        let mark = if location.contains('?') { '&' } else { '?' };
        let done = self.send("PUT", &format!("{location}{mark}digest={digest}"), "application/octet-stream", bytes);
        assert_eq!(done.status, 201, "{}", done.text());
        digest
    }

    /// Pushes a manifest; gives its digest.
    pub fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> String {
        let done = self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), media_type, bytes);
        assert_eq!(done.status, 201, "{}", done.text());
        sha256(bytes)
    }

    /// Pushes an artifact as `artifact` describes it.
    pub fn push(&self, repository: &str, tag: &str, artifact: &Artifact) -> Pushed {
        let config = self.push_blob(repository, &artifact.config);
        let layers: Vec<Value> = artifact
            .layers
            .iter()
            .map(|(media_type, bytes)| {
                let digest = self.push_blob(repository, bytes);
                json!({ "mediaType": media_type, "size": bytes.len(), "digest": digest })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": artifact.config_type, "size": artifact.config.len(), "digest": config },
            "layers": layers,
            "annotations": artifact.annotations,
        });
        let bytes = manifest.to_string().into_bytes();
        let digest = self.push_manifest(repository, tag, OCI_MANIFEST, &bytes);
        let layer = artifact.layers.first().map(|(_, bytes)| sha256(bytes)).unwrap_or_default();
        Pushed { digest, manifest: bytes, layer }
    }

    /// Packs `files` as Flux's CLI does and pushes them.
    pub fn push_files(&self, repository: &str, tag: &str, files: &Files) -> Pushed {
        self.push(repository, tag, &Artifact::flux(gzip(&tar_of(files))))
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// What was pushed.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// The manifest's digest.
    pub digest: String,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The first layer's digest.
    pub layer: String,
}

/// An artifact to push.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The config's media type.
    pub config_type: String,
    /// The config.
    pub config: Vec<u8>,
    /// Media type and bytes of each layer.
    pub layers: Vec<(String, Vec<u8>)>,
    /// The manifest's annotations.
    pub annotations: Value,
}

impl Artifact {
    /// Flux's media types around one layer, with the annotations for source and revision.
    pub fn flux(layer: Vec<u8>) -> Self {
        Self {
            config_type: FLUX_CONFIG.to_owned(),
            config: b"{}".to_vec(),
            layers: vec![(FLUX_LAYER.to_owned(), layer)],
            annotations: json!({
                "org.opencontainers.image.source": "https://example.com/configuration",
                "org.opencontainers.image.revision": "main@sha1:0000000000000000000000000000000000000000",
            }),
        }
    }
}

/// The value of an `Authorization` header.
pub fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// A port that nothing listens on, below the range from which connections take theirs, each only once in this process.
/// A port that nobody listens on now.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id() % 11_000;
    loop {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(20_000 + (start + step) % 12_000).expect("below 32000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Starts a registry and waits until it answers; `None` where it ends at once.
fn launch(root: &Path, port: u16, setup: &Setup) -> Option<Child> {
    let mut listen = json!({ "addr": format!("127.0.0.1:{port}") });
    if let Some((certificate, key)) = &setup.tls {
        listen["tls"] = json!({ "certificate": certificate, "key": key });
        if let Some(ca) = &setup.client_ca {
            listen["tls"]["clientcas"] = json!([ca]);
        }
    }
    let mut config = json!({
        "version": 0.1,
        "log": { "level": "error", "accesslog": { "disabled": false } },
        "storage": { "filesystem": { "rootdirectory": root.join("storage") }, "delete": { "enabled": true } },
        "http": listen,
    });
    if let Some((user, password)) = &setup.user {
        let mut htpasswd = Command::new("htpasswd");
        // The cheapest bcrypt: it is computed again for every request.
        htpasswd.args(["-nbB", "-C", "4", user, password]);
        let file = root.join("htpasswd");
        std::fs::write(&file, stdout_of(htpasswd)).expect("htpasswd");
        config["auth"] = json!({ "htpasswd": { "realm": "peers", "path": file } });
    }
    let file = root.join(format!("registry-{port}.yml"));
    std::fs::write(&file, config.to_string()).expect("configuration");
    let log = std::fs::File::options().create(true).append(true).open(log_file(root, port)).expect("log");
    // `timeout` ends it also where this process could not.
    let mut child = Command::new("timeout")
        .args(["600", "docker-registry", "serve"])
        .arg(&file)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("log"))
        .stderr(log)
        .spawn()
        .expect("timeout runs");
    let up = eventually("docker-registry", || {
        if child.try_wait().expect("our own child").is_some() {
            return Ok(false);
        }
        TcpStream::connect(("127.0.0.1", port)).map(|_| true).map_err(|error| error.to_string())
    });
    up.then_some(child)
}

fn end(child: &mut Child) {
    // SIGTERM, since `timeout` passes that on.
    let _ = rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM);
    let _ = child.wait();
}

fn log_file(root: &Path, port: u16) -> PathBuf {
    root.join(format!("access-{port}.log"))
}

fn read_log(root: &Path, port: u16) -> String {
    String::from_utf8_lossy(&std::fs::read(log_file(root, port)).unwrap_or_default()).into_owned()
}

#[test]
fn what_is_pushed_comes_back_also_after_a_restart() {
    crate::need::need!("docker-registry", "htpasswd");
    let root = tempfile::tempdir().expect("folder");
    let user = Some(("user".to_owned(), "password".to_owned()));
    let mut registry = DockerRegistry::start_with(root.path(), Setup { user, ..Setup::default() });
    let pushed = registry.push_files("team/app", "v1", &fixtures::files(&[("a", "b")]));
    let path = format!("/v2/team/app/manifests/{}", pushed.digest);
    assert_eq!(registry.send("GET", &path, "", b"").body, pushed.manifest);
    assert_eq!(http::get(&format!("http://{}{path}", registry.host())).status, 401);
    registry.stop();
    assert!(http::send("GET", &format!("http://{}{path}", registry.host()), &[], b"").is_err());
    registry.resume();
    assert_eq!(registry.send("GET", &path, "", b"").body, pushed.manifest);
    assert!(std::fs::read(registry.blob_file(&pushed.layer)).is_ok());
    eventually("three GETs in its log", || match registry.count(&[&format!("GET {path}")]) {
        3 => Ok(()),
        count => Err(format!("{count}: {:?}", registry.requests())),
    });
}
