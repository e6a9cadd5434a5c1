//! A Kubernetes API server and its etcd, to measure controllers on. Nothing runs pods.
//!
//! The programs are those in `KUBEBUILDER_ASSETS`, `/usr/local/kubebuilder/bin` where that is not set. Authorization is off.
//! Controllers call as users whom the server takes for ServiceAccounts, so its priority and fairness treats them as it would in
//! a cluster, and its audit log has their calls.

use std::{
    collections::BTreeMap,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    pin::pin,
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::TryStreamExt as _;
use http::Request;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::JoinSet};

use super::programs::{Running, free_port, larder};

#[path = "../../tests/it/support/certificates.rs"]
#[allow(dead_code)]
mod certificates;

/// The users that the server knows, by their tokens: the one that benches act as, and those whose calls are counted.
const USERS: [(&str, &str); 3] =
    [("admin", "system:masters"), ("larder", "system:serviceaccounts"), ("flux", "system:serviceaccounts")];
/// How many objects are created at once.
const AT_ONCE: usize = 16;
/// How long a program may take to start.
const START: Duration = Duration::from_secs(60);

/// Where a program is that tests on clusters want, if it is there.
pub fn asset(program: &str) -> Option<PathBuf> {
    let folder =
        std::env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| "/usr/local/kubebuilder/bin".into(), PathBuf::from);
    Some(folder.join(program)).filter(|file| file.is_file())
}

/// An API server; it and all that it holds go with the value.
pub struct ApiServer {
    api: Running,
    etcd: Running,
    folder: PathBuf,
    port: u16,
    ca: String,
    runtime: Runtime,
    client: Client,
}

/// A call from the audit log.
pub struct Call {
    /// `get`, `list`, `watch`, `create`, `patch`, …
    pub verb: String,
    /// As in paths.
    pub resource: String,
}

impl Call {
    /// Whether it changes something.
    pub fn writes(&self) -> bool {
        !matches!(&*self.verb, "get" | "list" | "watch")
    }
}

/// Calls by verb and resource, for people.
pub fn counted(calls: &[Call]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for call in calls {
        *counts.entry(format!("{} {}", call.verb, call.resource)).or_default() += 1;
    }
    counts.iter().map(|(what, count)| format!("{what}: {count}")).collect::<Vec<_>>().join(", ")
}

impl ApiServer {
    /// Starts it with Larder's CRDs and the kinds beside them that Flux's controllers wait for; its files lie in `folder`.
    pub fn start(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("folder");
        let ca = certificates::Ca::new();
        let identity = ca.issue(&["127.0.0.1"]);
        let accounts = rcgen::KeyPair::generate().expect("a key");
        let tokens: String =
            USERS.iter().map(|(user, group)| format!("{},{user},{user},{group}\n", token(user))).collect();
        let policy = json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [{ "level": "None", "users": ["admin"] }, { "level": "Metadata", "users": ["larder", "flux"] }, { "level": "None" }] });
        for (file, text) in [
            ("server.pem", identity.certificate.as_str()),
            ("server.key", &identity.key),
            ("accounts.key", &accounts.serialize_pem()),
            ("accounts.pub", &accounts.public_key_pem()),
            ("tokens.csv", &tokens),
            ("audit.json", &policy.to_string()),
            ("audit.log", ""),
        ] {
            std::fs::write(folder.join(file), text).expect("a file");
        }
        let (etcd, clients) = start_etcd(folder);
        let port = free_port();
        let file = |name: &str| folder.join(name).display().to_string();
        let arguments = [
            format!("--etcd-servers={clients}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", file("server.pem")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--token-auth-file={}", file("tokens.csv")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            format!("--service-account-key-file={}", file("accounts.pub")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--authorization-mode=AlwaysAllow".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            format!("--audit-policy-file={}", file("audit.json")),
            format!("--audit-log-path={}", file("audit.log")),
            "--audit-log-mode=blocking".to_owned(),
        ];
        let api = launch(&asset("kube-apiserver").expect("kube-apiserver"), &arguments, &[], &folder.join("api.log"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let config = kubeconfig(port, ca.pem(), "admin");
        let client = runtime.block_on(async {
            let config = kube::config::Kubeconfig::from_yaml(&config.to_string()).expect("a kubeconfig");
            let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.expect("a way");
            Client::try_from(config).expect("a client")
        });
        let server = Self { api, etcd, folder: folder.to_owned(), port, ca: ca.pem().to_owned(), runtime, client };
        // The namespaces of the system are made after it is ready.
        for path in ["/readyz", "/api/v1/namespaces/default"] {
            server.wait_for(path);
        }
        server.install();
        server
    }

    fn wait_for(&self, path: &str) {
        let begin = Instant::now();
        while let Err(error) = self.runtime.block_on(send(&self.client, "GET", path, "", &Value::Null)) {
            assert!(begin.elapsed() < START, "{path}: {error}: see {}", self.folder.join("api.log").display());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn install(&self) {
        let output = Command::new(larder()).args(["crds", "--output", "json"]).output().expect("larder runs");
        let list: Value = serde_json::from_slice(&output.stdout).expect("a List");
        let mut definitions = list["items"].as_array().expect("a List").clone();
        let open = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        definitions.push(json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": { "name": "buckets.source.toolkit.fluxcd.io" },
            "spec": { "group": "source.toolkit.fluxcd.io", "scope": "Namespaced",
                "names": { "kind": "Bucket", "plural": "buckets", "singular": "bucket", "listKind": "BucketList" },
                "versions": [{ "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                    "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": open, "status": open } } } }] } }));
        let paths: Vec<String> = definitions
            .iter()
            .flat_map(|definition| {
                let spec = &definition["spec"];
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let served = spec["versions"].as_array().into_iter().flatten().filter(|v| v["served"] == true);
                let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
                served.map(|v| format!("/apis/{group}/{}/{plural}", text(&v["name"]))).collect::<Vec<_>>()
            })
            .collect();
        self.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definitions);
        paths.iter().for_each(|path| self.wait_for(path));
    }

    /// Creates objects in a collection.
    pub fn create(&self, collection: &str, objects: Vec<Value>) {
        self.runtime.block_on(async {
            let mut creating = JoinSet::new();
            for object in objects {
                while creating.len() >= AT_ONCE {
                    creating.join_next().await.expect("one").expect("no panic");
                }
                let (client, collection) = (self.client.clone(), collection.to_owned());
                creating.spawn(async move {
                    let created = send(&client, "POST", &collection, "application/json", &object).await;
                    created.unwrap_or_else(|error| panic!("{object}: {error}"));
                });
            }
            while let Some(done) = creating.join_next().await {
                done.expect("no panic");
            }
        });
    }

    /// A JSON merge patch of the object at a path.
    pub fn patch(&self, path: &str, patch: &Value) {
        let patched = send(&self.client, "PATCH", path, "application/merge-patch+json", patch);
        self.runtime.block_on(patched).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// Asks for a pass over the object at a path, as `flux reconcile` does.
    pub fn request(&self, path: &str, token: &str) {
        self.patch(path, &json!({ "metadata": { "annotations": { "reconcile.fluxcd.io/requestedAt": token } } }));
    }

    /// A kubeconfig of `larder` or `flux`.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        let file = self.folder.join(format!("{user}.kubeconfig"));
        std::fs::write(&file, kubeconfig(self.port, &self.ca, user).to_string()).expect("the kubeconfig");
        file
    }

    /// Where the audit log ends now.
    pub fn now(&self) -> u64 {
        std::fs::metadata(self.folder.join("audit.log")).expect("the audit log").len()
    }

    /// The controllers' calls since then, but for those about Leases, which go on for ever.
    pub fn calls(&self, since: u64) -> Vec<Call> {
        let mut file = std::fs::File::open(self.folder.join("audit.log")).expect("the audit log");
        file.seek(SeekFrom::Start(since)).expect("the audit log");
        let mut text = String::new();
        file.read_to_string(&mut text).expect("the audit log");
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        // The last line may be on its way.
        let lines = text.rsplit_once('\n').map_or("", |(lines, _)| lines).lines();
        let events = lines.map(|line| serde_json::from_str::<Value>(line).expect("an audit event"));
        let calls =
            events.map(|event| Call { verb: word(&event["verb"]), resource: word(&event["objectRef"]["resource"]) });
        calls.filter(|call| call.resource != "leases").collect()
    }

    /// Waits until the controllers have made no call for a moment: events, for instance, go out after what they tell of.
    pub fn wait_quiet(&self) {
        let begin = Instant::now();
        let mut size = self.now();
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = self.now();
            if now == size || begin.elapsed() > START {
                return;
            }
            size = now;
        }
    }

    /// Follows a kind of Flux by a watch, which costs the server less than looking again and again.
    pub fn watch(&self, group: &str, kind: &str, plural: &str) -> Watched {
        let resource = ApiResource {
            group: group.into(),
            version: "v1".into(),
            api_version: format!("{group}/v1"),
            kind: kind.into(),
            plural: plural.into(),
        };
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let objects = Objects::default();
        let told = Arc::clone(&objects);
        let task = self.runtime.spawn(async move {
            let mut stream = pin!(watcher(api, watcher::Config::default()).default_backoff());
            loop {
                match stream.try_next().await {
                    Ok(Some(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) => {
                        let name = object.metadata.name.clone().unwrap_or_default();
                        lock(&told)
                            .insert(name, json!({ "metadata": object.metadata, "status": object.data["status"] }));
                    }
                    Ok(None) => return,
                    _ => {}
                }
            }
        });
        Watched { objects, task }
    }

    /// Starts one of Flux's controllers.
    pub fn controller(&self, program: &str, arguments: &[String]) -> Running {
        let config = self.kubeconfig("flux").display().to_string();
        let environment = [("KUBECONFIG", config.as_str()), ("RUNTIME_NAMESPACE", "default")];
        let file = asset(program).unwrap_or_else(|| panic!("{program} is not there"));
        launch(&file, arguments, &environment, &self.folder.join(format!("{program}.log")))
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // Nothing of it is wanted any more, so nobody waits for its watches to end.
        let _ = self.api.0.kill();
        let _ = self.etcd.0.kill();
    }
}

type Objects = Arc<Mutex<BTreeMap<String, Value>>>;

fn lock(objects: &Objects) -> MutexGuard<'_, BTreeMap<String, Value>> {
    objects.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The objects of a kind as they are now.
pub struct Watched {
    objects: Objects,
    task: tokio::task::JoinHandle<()>,
}

impl Watched {
    /// Waits until so many objects are as `wanted` says; gives the moment.
    pub fn wait(&self, count: usize, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Instant {
        let begin = Instant::now();
        loop {
            let (found, other) = {
                let objects = lock(&self.objects);
                let other = objects.values().find(|object| !wanted(object)).map(|other| other["status"].to_string());
                (objects.values().filter(|object| wanted(object)).count(), other)
            };
            if found >= count {
                return Instant::now();
            }
            assert!(begin.elapsed() < limit, "{found} of {count} after {limit:?}; one that is not: {other:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One field of an object.
    pub fn text(&self, name: &str, pointer: &str) -> String {
        let objects = lock(&self.objects);
        let found = objects.get(name).and_then(|object| object.pointer(pointer)?.as_str());
        found.unwrap_or_default().to_owned()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether an object is Ready, as of its newest spec.
pub fn is_ready(object: &Value) -> bool {
    let ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
    let status = &object["status"];
    status["observedGeneration"] == object["metadata"]["generation"]
        && status["conditions"].as_array().is_some_and(|conditions| conditions.iter().any(ready))
}

fn token(user: &str) -> String {
    format!("token-of-{user}")
}

fn kubeconfig(port: u16, ca: &str, user: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{ "name": "bench", "cluster": { "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority-data": STANDARD.encode(ca) } }],
        "users": [{ "name": user, "user": { "token": token(user) } }],
        "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": user } }] })
}

async fn send(client: &Client, method: &str, path: &str, kind: &str, body: &Value) -> Result<String, kube::Error> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let mut request = Request::builder().method(method).uri(path);
    if !kind.is_empty() {
        request = request.header("Content-Type", kind);
    }
    client.request_text(request.body(body).expect("a request")).await
}

fn launch(program: &Path, arguments: &[String], environment: &[(&str, &str)], log: &Path) -> Running {
    let log = std::fs::File::options().create(true).append(true).open(log).expect("a log");
    let child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn();
    Running(child.unwrap_or_else(|error| panic!("{}: {error}", program.display())))
}

/// Starts etcd; where clients reach it.
fn start_etcd(folder: &Path) -> (Running, String) {
    let (port, peers) = (free_port(), format!("http://127.0.0.1:{}", free_port()));
    let clients = format!("http://127.0.0.1:{port}");
    let arguments = [
        format!("--data-dir={}", folder.join("etcd").display()),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
        // Nothing here outlives its bench, and the disk is not what is measured.
        "--unsafe-no-fsync".to_owned(),
    ];
    let etcd = launch(&asset("etcd").expect("etcd"), &arguments, &[], &folder.join("etcd.log"));
    super::programs::wait_for_port(port);
    (etcd, clients)
}
