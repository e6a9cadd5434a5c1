//! One daemon with its canaries, and rows run against it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::TcpListener,
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::upstream::{Pushed, REPOSITORY, Upstream};
use crate::support::{
    announce, eventually,
    fixtures::{Files, files, files_below, files_in, sha256, write_files},
    http,
    larder::{Larder, condition_of, fetch_artifact, is_ready, run, text, write_objects},
};

/// Stands in every Secret of these tests and must never be told.
pub const SECRET: &str = "canary-Pa55w0rd-that-nobody-sees";
/// Where the rows' objects are.
pub const NAMESPACE: &str = "rows";
/// No row may take more anonymous memory than this (hardening.md section 6, promise 5).
const MAX_RSS: u64 = 256 << 20;

pub struct World {
    pub larder: Larder,
    /// An address that `--egress-deny` forbids; nobody may connect to it.
    pub honeypot: Honeypot,
    canary: Upstream,
    canary_version: AtomicUsize,
    outside: Files,
    fds: usize,
    root: TempDir,
}

/// Listens and never accepts: whoever connected is still in the queue.
pub struct Honeypot {
    listener: TcpListener,
    pub address: String,
}

impl Honeypot {
    fn new() -> Self {
        // 127.0.0.3 is another host than 127.0.0.1 to a client, and this machine to the kernel.
        let listener = TcpListener::bind("127.0.0.3:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        Self { listener, address }
    }

    pub fn check(&self) {
        let accepted = self.listener.accept();
        assert!(accepted.is_err(), "U8: the honeypot saw {accepted:?}");
    }
}

impl World {
    pub fn start(flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), &[], flags)
    }

    pub fn start_in(root: TempDir, wrapper: &[&str], flags: &[&str]) -> Self {
        let outside = files(&[("canary.yaml", "untouched"), ("below/canary.yaml", "untouched too")]);
        write_files(&root.path().join("outside"), &outside);
        let canary = Upstream::start();
        canary.push_files(&files(&[("version", "0")]));
        write_objects(
            root.path(),
            "canary.yaml",
            &[object("OCIRepository", "canary", "canary", &canary.url(), &json!({}))],
        );
        let objects = root.path().join("objects");
        let mut all = vec!["--objects", objects.to_str().unwrap(), "--egress-deny", "127.0.0.3/32"];
        all.extend_from_slice(&["--log-format", "json"]);
        all.extend_from_slice(flags);
        let larder = Larder::launch(root.path(), wrapper, &all, &[("LARDER_LOG", "trace,mio=info,notify=info")])
            .unwrap_or_else(|(_, why)| panic!("{why}"));
        larder.wait_ready("OCIRepository", "canary", "canary");
        let fds = descriptors(larder.pid()).len();
        Self { larder, honeypot: Honeypot::new(), canary, canary_version: AtomicUsize::new(0), outside, fds, root }
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Where archives try to write: a folder outside the store.
    pub fn outside(&self) -> String {
        self.root.path().join("outside").to_str().unwrap().to_owned()
    }

    /// Writes the object's file, one file an object.
    pub fn apply(&self, object: &Value) {
        write_objects(self.root(), &format!("{}.yaml", text(object, "/metadata/name")), std::slice::from_ref(object));
    }

    pub fn delete(&self, name: &str) {
        std::fs::remove_file(self.root().join("objects").join(format!("{name}.yaml"))).unwrap();
    }

    /// A Secret in the rows' namespace.
    pub fn apply_secret(&self, name: &str, kind: &str, data: &Value) {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Secret", "type": kind,
            "metadata": { "name": name, "namespace": NAMESPACE }, "stringData": data,
        }));
    }

    /// U4: an object in another namespace takes a new version at once.
    pub fn canary_reconciles(&self) {
        let version = self.canary_version.fetch_add(1, Ordering::SeqCst) + 1;
        let wanted = files(&[("version", &version.to_string())]);
        let pushed = self.canary.push_files(&wanted);
        let answer = self.larder.reconcile("OCIRepository", "canary", "canary");
        assert_eq!(answer.status, 200, "U4: {}", answer.text());
        let object = answer.json();
        assert!(is_ready(&object), "U4: {object}");
        assert_eq!(text(&object, "/status/artifact/revision"), format!("latest@{}", pushed.manifest), "U4");
        assert_eq!(files_in(&fetch_artifact(&object)), wanted, "U4");
    }

    /// The digests of all blobs that have their final name.
    pub fn blobs(&self) -> BTreeSet<String> {
        blobs_below(&self.larder.data)
    }

    /// The class that the daemon logged for each object, the latest.
    pub fn classes(&self) -> BTreeMap<String, String> {
        let lines = self.larder.log();
        let logged = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        logged
            .filter_map(|line| {
                let (key, class) = (line.get("key")?.as_str()?, line.get("class")?.as_str()?);
                Some((key.to_owned(), class.to_owned()))
            })
            .collect()
    }

    /// Passes of `kind` that ended with `outcome`.
    pub fn outcomes(&self, outcome: &str) -> u64 {
        self.larder.metric("larder_reconcile_total", &[("outcome", outcome)])
    }

    /// U3 and U5 to U9, and an orderly end, and a clean store.
    pub fn finish(mut self) {
        assert_eq!(self.larder.ended(), None, "U9");
        assert_eq!(http::get(&format!("{}/readyz", self.larder.admin)).status, 200, "U9");
        self.canary_reconciles();
        self.honeypot.check();
        assert_eq!(files_below(&self.root().join("outside")), self.outside, "U6");
        let pid = self.larder.pid();
        let data = self.larder.data.clone();
        eventually("U3: no temporary file", || {
            let spool: Vec<_> = std::fs::read_dir(data.join("spool")).unwrap().collect();
            let unnamed: Vec<_> =
                descriptors(pid).into_iter().filter(|to| to.contains("(deleted)") && to.contains("/spool/")).collect();
            if spool.is_empty() && unnamed.is_empty() { Ok(()) } else { Err(format!("{spool:?}, {unnamed:?}")) }
        });
        // Idle connections to each row's registry may stay, of which there are far fewer than this.
        eventually("U5: no descriptor is lost", || {
            let left: Vec<_> = descriptors(pid)
                .into_iter()
                .filter(|to| !to.starts_with("socket:") && !to.contains("/blobs/"))
                .collect();
            if left.len() <= self.fds + 8 { Ok(()) } else { Err(format!("{left:?}")) }
        });
        let memory = peak_memory(pid);
        assert!(memory < MAX_RSS, "U5: {memory} bytes");
        self.check_secrecy();
        assert_eq!(quarantined(&data), Vec::<String>::new(), "nothing of this was damage");
        let home = self.root;
        assert_eq!(self.larder.stop(), Some(0));
        verify(home.path());
    }

    /// U7
    pub fn check_secrecy(&self) {
        use base64::Engine as _;
        let mut told = vec![
            ("the log".to_owned(), self.larder.log()),
            ("the metrics".to_owned(), http::get(&format!("{}/metrics", self.larder.admin)).text()),
            ("the listing".to_owned(), self.larder.listing().to_string()),
        ];
        for (name, content) in files_below(&self.larder.data.join("objects")) {
            told.push((name, String::from_utf8_lossy(&content).into_owned()));
        }
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("user:{SECRET}"));
        for (place, said) in told {
            for secret in [SECRET, &pair] {
                if let Some(at) = said.find(secret) {
                    panic!("U7: {place}: …{}…", &said[said.floor_char_boundary(at.saturating_sub(300))..at]);
                }
            }
        }
    }
}

/// `larder store verify` finds nothing.
pub fn verify(root: &Path) {
    let data = root.join("data");
    let out = run(root, ["store", "verify", "--data", data.to_str().unwrap(), "-o", "json"]);
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(0), "store verify: {said}");
}

/// What lies in `quarantine/`.
pub fn quarantined(data: &Path) -> Vec<String> {
    files_below(&data.join("quarantine")).into_keys().collect()
}

pub fn blobs_below(data: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let folder = data.join("blobs/sha256");
    // A daemon that was killed early has not made it yet.
    let all = if folder.exists() { files_below(&folder) } else { Files::new() };
    for (path, content) in all {
        let hex = path.rsplit('/').next().unwrap();
        assert_eq!(sha256(&content), format!("sha256:{hex}"), "U2: wrong bytes under a final name");
        found.insert(format!("sha256:{hex}"));
    }
    found
}

/// What the process's descriptors lead to.
pub fn descriptors(pid: u32) -> Vec<String> {
    let all = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    all.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|to| to.to_string_lossy().into_owned())
        .collect()
}

/// Anonymous memory, in bytes: now, for the kernel keeps no peak of it alone.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// A source object of `latest`, or of what `spec` says instead.
pub fn object(kind: &str, namespace: &str, name: &str, url: &str, spec: &Value) -> Value {
    let mut full = json!({ "url": url, "interval": "10m", "timeout": "20s", "insecure": true });
    for (key, value) in spec.as_object().unwrap() {
        full[key] = value.clone();
    }
    json!({
        "apiVersion": "source.toolkit.fluxcd.io/v1", "kind": kind,
        "metadata": { "name": name, "namespace": namespace }, "spec": full,
    })
}

/// Whether a tool that a test needs is there; where it is not: said loudly, and a failure if LARDER_REQUIRE_PEERS is 1.
pub fn has_tool(name: &str) -> bool {
    let there = Command::new(name).arg("--version").output().is_ok();
    missing_unless(there, &format!("{name} is not installed"))
}

/// Whether this is root, who may mount.
pub fn is_root() -> bool {
    missing_unless(rustix::process::geteuid().is_root(), "only root may mount")
}

fn missing_unless(there: bool, what: &str) -> bool {
    if !there {
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        assert!(std::env::var_os("LARDER_REQUIRE_PEERS").is_none_or(|value| value != "1"), "{test}: {what}");
        announce(&format!("SKIPPED {test}: {what}"));
    }
    there
}

pub const PULL: &str = "OCIArtifactPullFailed";
pub const LAYER_OPERATION: &str = "OCIArtifactLayerOperationFailed";
pub const AUTHENTICATION: &str = "AuthenticationFailed";

/// What a row must come to.
pub enum Outcome {
    /// FetchFailed and Ready=False with this reason, this class, and a message with these words.
    Fails { reason: &'static str, class: &'static str, says: String },
    /// The new artifact has these files.
    Succeeds(Files),
}

pub fn fails(reason: &'static str, class: &'static str, says: impl Into<String>) -> Outcome {
    Outcome::Fails { reason, class, says: says.into() }
}

type Act = Box<dyn Fn(&mut Upstream) -> Outcome + Send + Sync>;
type Check = Box<dyn Fn(&Upstream, &World) + Send + Sync>;

/// One row: an object that is Ready, then its registry turns.
pub struct Row {
    name: &'static str,
    upstream: Upstream,
    spec: Value,
    act: Act,
    check: Option<Check>,
    /// The layer is what it says, so it is kept though nothing can be made of it.
    keeps_layer: bool,
    /// Of an index, what was good on the way is kept.
    keeps_manifests: bool,
}

impl Row {
    pub fn new(name: &'static str, act: impl Fn(&mut Upstream) -> Outcome + Send + Sync + 'static) -> Self {
        let upstream = Upstream::start();
        Self {
            name,
            upstream,
            spec: json!({}),
            act: Box::new(act),
            check: None,
            keeps_layer: false,
            keeps_manifests: false,
        }
    }

    /// Against another registry than one in plain http that is open to all.
    pub fn with(mut self, upstream: Upstream) -> Self {
        self.upstream = upstream;
        self
    }

    /// With more in `spec`.
    pub fn spec(mut self, spec: Value) -> Self {
        self.spec = spec;
        self
    }

    /// And this must be so afterwards.
    pub fn check(mut self, check: impl Fn(&Upstream, &World) + Send + Sync + 'static) -> Self {
        self.check = Some(Box::new(check));
        self
    }

    pub fn keeps_manifests(mut self) -> Self {
        self.keeps_manifests = true;
        self
    }

    pub fn keeps_layer(mut self) -> Self {
        self.keeps_layer = true;
        self
    }
}

/// Runs the rows side by side: all objects Ready with a good artifact, then all registries turn bad, then good again.
pub fn run_rows(world: &World, rows: Vec<Row>) {
    let kind = "OCIRepository";
    let mut good = Vec::new();
    for row in &rows {
        let pushed = row.upstream.push_files(&files(&[("good", row.name)]));
        world.apply(&object(kind, NAMESPACE, row.name, &row.upstream.url(), &row.spec));
        good.push(pushed);
    }
    let before: Vec<(Value, Vec<u8>)> = rows
        .iter()
        .map(|row| {
            let object = world.larder.wait_ready(kind, NAMESPACE, row.name);
            let bytes = fetch_artifact(&object);
            (object["status"]["artifact"].clone(), bytes)
        })
        .collect();
    let blobs_before = world.blobs();
    let all = [
        "net", "rate", "disk", "auth", "notfound", "proto", "digest", "size", "manifest", "layer", "tar", "limit",
        "spec", "policy", "client",
    ];
    let counted: BTreeMap<&str, u64> = all.iter().map(|class| (*class, world.outcomes(class))).collect();

    let mut rows = rows;
    let outcomes: Vec<Outcome> = rows.iter_mut().map(|row| (row.act)(&mut row.upstream)).collect();
    let mut allowed: BTreeSet<String> = BTreeSet::new();
    std::thread::scope(|scope| {
        for row in &rows {
            // Where the pass lasts as long as `spec.timeout` this answers 504 as well as 200.
            scope.spawn(|| world.larder.reconcile(kind, NAMESPACE, row.name));
        }
        world.canary_reconciles();
    });
    let mut wrong = Vec::new();
    for (n, row) in rows.iter().enumerate() {
        let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            judge(world, row, &outcomes[n], &before[n], &good[n]);
            if let Some(check) = &row.check {
                check(&row.upstream, world);
            }
        }));
        if judged.is_err() {
            wrong.push(row.name);
        }
        if row.keeps_manifests {
            allowed.extend(row.upstream.manifests(REPOSITORY));
        }
        if let Some(manifest) = row.upstream.manifest(REPOSITORY, "latest") {
            allowed.insert(sha256(&manifest));
            if let Ok(manifest) = serde_json::from_slice::<Value>(&manifest)
                && (row.keeps_layer || matches!(outcomes[n], Outcome::Succeeds(_)))
            {
                let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
                allowed.extend(layers.iter().filter_map(|layer| layer["digest"].as_str().map(str::to_owned)));
            }
        }
        if let Outcome::Succeeds(_) = outcomes[n]
            && let Some(object) = world.larder.object(kind, NAMESPACE, row.name)
        {
            allowed.insert(text(&object, "/status/artifact/digest").to_owned());
            allowed.insert(text(&object, "/status/artifact/revision").rsplit('@').next().unwrap().to_owned());
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows are wrong (see above): {wrong:?}", wrong.len(), rows.len());

    let classes = world.classes();
    let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
    for (row, outcome) in rows.iter().zip(&outcomes) {
        if let Outcome::Fails { class, .. } = outcome {
            let logged = classes.get(&format!("{kind}/{NAMESPACE}/{}", row.name)).map(String::as_str);
            assert_eq!(logged, Some(*class), "{}: the class in the log", row.name);
            *expected.entry(class).or_default() += 1;
        }
    }
    for class in all {
        let more = world.outcomes(class) - counted[class];
        let least = expected.get(class).copied().unwrap_or(0);
        assert!(
            more >= least && (more == 0) == (least == 0),
            "larder_reconcile_total of {class}: {more}, for {least} rows"
        );
    }
    let canaries: BTreeSet<String> = world.canary_blobs();
    let new: Vec<String> = world
        .blobs()
        .difference(&blobs_before)
        .filter(|name| !allowed.contains(*name) && !canaries.contains(*name))
        .cloned()
        .collect();
    assert_eq!(new, Vec::<String>::new(), "U2: new names in the store");

    let wanted = files(&[("good", "again")]);
    std::thread::scope(|scope| {
        for row in &rows {
            row.upstream.heal();
            let pushed = row.upstream.push_files(&wanted);
            let wanted = &wanted;
            scope.spawn(move || {
                world.larder.reconcile(kind, NAMESPACE, row.name);
                let revision = format!("latest@{}", pushed.manifest);
                let is = |object: &Value| is_ready(object) && object["status"]["artifact"]["revision"] == revision;
                if row.spec.get("ref").is_none() && !row.is_gone() {
                    let object = world.larder.wait(kind, NAMESPACE, row.name, is);
                    assert_eq!(files_in(&fetch_artifact(&object)), *wanted, "{}", row.name);
                }
            });
        }
    });
    world.honeypot.check();
}

impl Row {
    /// Whether nothing at its address can make it good again: a 429 window, an address that is closed.
    fn is_gone(&self) -> bool {
        self.name.contains("gone") || self.name.contains("429")
    }
}

impl World {
    fn canary_blobs(&self) -> BTreeSet<String> {
        let last = self.canary_version.load(Ordering::SeqCst);
        let mut all = BTreeSet::new();
        for version in 0..=last {
            let pushed: Pushed = Upstream::start().push_files(&files(&[("version", &version.to_string())]));
            all.extend([pushed.manifest.to_string(), pushed.layer.to_string()]);
        }
        all
    }
}

fn judge(world: &World, row: &Row, outcome: &Outcome, before: &(Value, Vec<u8>), good: &Pushed) {
    let kind = "OCIRepository";
    match outcome {
        Outcome::Fails { reason, says, .. } => {
            let object = world
                .larder
                .wait(kind, NAMESPACE, row.name, |object| condition_of(object, "FetchFailed")["status"] == "True");
            let failed = condition_of(&object, "FetchFailed");
            let ready = condition_of(&object, "Ready");
            let message = text(failed, "/message");
            assert_eq!(failed["reason"], *reason, "{}: {message}", row.name);
            assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!(reason)), "{}", row.name);
            assert!(message.contains(says.as_str()), "{}: {says:?} is not in {message:?}", row.name);
            assert!(
                message.contains(&format!("'latest@{}' is still served", good.manifest)),
                "{}: {message:?}",
                row.name
            );
            assert_eq!(object["status"]["artifact"], before.0, "{}: U1", row.name);
            assert!(fetch_artifact(&object) == before.1, "{}: U1", row.name);
        }
        Outcome::Succeeds(wanted) => {
            let object = world.larder.wait(kind, NAMESPACE, row.name, |object| {
                is_ready(object) && object["status"]["artifact"]["revision"] != before.0["revision"]
            });
            assert_eq!(files_in(&fetch_artifact(&object)), *wanted, "{}", row.name);
        }
    }
}
