//! A Kubernetes API server and its etcd, for one test: what envtest is to Go.
//!
//! The programs are those in `KUBEBUILDER_ASSETS`, `/usr/local/kubebuilder/bin` where that is not set. Nothing runs pods;
//! the controllers of Deployments, owners and namespaces run where [`Setup::controllers`] asks for them. All of it ends
//! with the [`Cluster`], or with the process of the tests, however that ends: each program is the child of a shell that
//! waits for the end of its standard input.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::KeyPair;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};

use crate::{
    docker_registry::free_port,
    support::{
        announce,
        certificates::Ca,
        eventually, http,
        larder::{self, stdout_of},
    },
};

/// Ends the test here, loudly, unless there is an API server to start. Never an error: where CI has the programs, it runs.
macro_rules! need_cluster {
    () => {
        if !$crate::cluster::env::is_here() {
            return;
        }
    };
}
pub(crate) use need_cluster;

/// The users that the API server knows, by their tokens; the first is the one that tests act as.
const USERS: [&str; 4] = ["admin", "larder", "flux", "nobody"];

/// What to start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup {
    /// Only `admin` may do everything; the others what the cluster's roles say.
    pub rbac: bool,
    /// Also the controllers of Deployments, ReplicaSets, namespaces and the garbage collector.
    pub controllers: bool,
}

/// A program that ends with its handle, or with this process.
#[must_use]
pub struct Program {
    shell: Child,
}

impl Program {
    fn start(program: &Path, arguments: &[String], log: &Path) -> Self {
        Self::start_with(program, arguments, &[], log)
    }

    fn start_with(program: &Path, arguments: &[String], environment: &[(&str, &str)], log: &Path) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(log).expect("log file");
        let shell = Command::new("sh")
            .args(["-c", r#""$@" </dev/null & child=$!; read -r _; kill -9 "$child"; wait"#, "sh"])
            .arg(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("log file"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run sh: {error}"));
        Self { shell }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// An API server; it ends when dropped.
pub struct Cluster {
    // Dropped in this order: those who ask before those who answer.
    controllers: Option<Program>,
    api: Mutex<Option<Program>>,
    _etcd: Program,
    port: u16,
    arguments: Vec<String>,
    ca: String,
    tls: Arc<ClientConfig>,
    folder: PathBuf,
}

/// Where the programs are.
pub fn assets() -> PathBuf {
    std::env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| "/usr/local/kubebuilder/bin".into(), PathBuf::from)
}

/// Whether there is an API server to start; says so where not.
pub fn is_here() -> bool {
    let missing: Vec<&str> =
        ["etcd", "kube-apiserver"].into_iter().filter(|program| !assets().join(program).is_file()).collect();
    if !missing.is_empty() {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        announce(&format!("SKIPPED: {test}: not in {}: {}", assets().display(), missing.join(", ")));
    }
    missing.is_empty()
}

/// Whether this optional program is there too (`kubectl`, `kube-controller-manager`, one of Flux's controllers).
pub fn has(program: &str) -> bool {
    let here = assets().join(program).is_file();
    if !here {
        announce(&format!("SKIPPED in part: not in {}: {program}", assets().display()));
    }
    here
}

impl Cluster {
    /// An API server in which everybody may do everything, with its files below `root`.
    pub fn start(root: &Path) -> Self {
        Self::start_with(root, Setup::default())
    }

    /// An API server so set up, ready, with the namespace `flux-system`.
    pub fn start_with(root: &Path, setup: Setup) -> Self {
        let folder = root.join("cluster");
        std::fs::create_dir_all(&folder).expect("folder");
        let ca = Ca::new();
        let identity = ca.issue(&["127.0.0.1", "localhost"]);
        let accounts = KeyPair::generate().expect("a key");
        let tokens: String = USERS
            .iter()
            .map(|user| {
                let group = if *user == "admin" || !setup.rbac { "system:masters" } else { "testers" };
                format!("{},{user},{user},{group}\n", token(user))
            })
            .collect();
        let policy = json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [{ "level": "Metadata", "users": ["larder"] }, { "level": "None" }] });
        for (file, text) in [
            ("server.pem", identity.certificate.as_str()),
            ("server.key", &identity.key),
            ("accounts.key", &accounts.serialize_pem()),
            ("accounts.pub", &accounts.public_key_pem()),
            ("tokens.csv", &tokens),
            ("audit.json", &policy.to_string()),
        ] {
            std::fs::write(folder.join(file), text).expect("a file");
        }
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).expect("a certificate")).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (etcd, etcd_port) = start_etcd(&folder);
        let arguments = api_arguments(&folder, etcd_port);
        let (port, tls, ca) = (free_port(), Arc::new(tls), ca.pem().to_owned());
        let mut cluster =
            Self { controllers: None, api: Mutex::new(None), _etcd: etcd, port, arguments, ca, tls, folder };
        cluster.resume();
        if setup.controllers {
            let config = cluster.kubeconfig("admin");
            let arguments = [
                format!("--kubeconfig={}", config.display()),
                "--controllers=deployment-controller,replicaset-controller,garbage-collector-controller,namespace-controller"
                    .to_owned(),
                "--leader-elect=false".to_owned(),
                "--secure-port=0".to_owned(),
            ];
            let program = assets().join("kube-controller-manager");
            cluster.controllers = Some(Program::start(&program, &arguments, &cluster.folder.join("controllers.log")));
        }
        cluster.create(
            "/api/v1/namespaces",
            &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "flux-system" } }),
        );
        cluster
    }

    /// Ends the API server; etcd keeps everything for [`Cluster::resume`], which comes back on the same port.
    pub fn stop(&self) {
        *self.api.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Starts the API server and waits until it is ready.
    pub fn resume(&self) {
        let mut arguments = self.arguments.clone();
        arguments.push(format!("--secure-port={}", self.port));
        let started = Program::start(&assets().join("kube-apiserver"), &arguments, &self.folder.join("api.log"));
        *self.api.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        eventually("the API server to be ready", || {
            let ready = self
                .try_send("GET", "/readyz", "", &Value::Null)
                .map_err(|error| format!("{error}: {}", self.log_of("api")))?;
            if ready.status == 200 { Ok(()) } else { Err(ready.text()) }
        });
        // The namespaces of the system are made after it is ready.
        eventually("the default namespace", || {
            let found = self.get("/api/v1/namespaces/default");
            if found.status == 200 { Ok(()) } else { Err(found.text()) }
        });
    }

    /// Host and port.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A kubeconfig of one of the users that the server knows: `admin`, `larder`, `flux`, `nobody`.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        assert!(USERS.contains(&user), "the API server does not know {user}");
        let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": format!("https://{}", self.host()),
                "certificate-authority-data": STANDARD.encode(&self.ca) } }],
            "users": [{ "name": user, "user": { "token": token(user) } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": user } }] });
        let file = self.folder.join(format!("{user}.kubeconfig"));
        std::fs::write(&file, config.to_string()).expect("the kubeconfig");
        file
    }

    /// The version that the server tells.
    pub fn version(&self) -> String {
        self.get("/version").json()["gitVersion"].as_str().unwrap_or_default().to_owned()
    }

    fn try_send(&self, method: &str, path: &str, kind: &str, body: &Value) -> std::io::Result<http::Response> {
        self.send_as("admin", method, path, &[("Content-Type", kind), ("Accept", "application/json")], body)
    }

    /// One request as one of the users.
    pub fn send_as(
        &self,
        user: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> std::io::Result<http::Response> {
        let bearer = format!("Bearer {}", token(user));
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .copied()
            .filter(|(_, value)| !value.is_empty())
            .chain([("Authorization", &*bearer)])
            .collect();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        http::send_tls(&self.tls, method, &format!("https://{}{path}", self.host()), &headers, body.as_bytes())
    }

    /// The answer to a request as `admin`; panics where nothing answers.
    pub fn send(&self, method: &str, path: &str, kind: &str, body: &Value) -> http::Response {
        self.try_send(method, path, kind, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}: {}", self.log_of("api")))
    }

    /// `GET` of a path.
    pub fn get(&self, path: &str) -> http::Response {
        self.send("GET", path, "", &Value::Null)
    }

    /// The object at a path, if it is there.
    pub fn object(&self, path: &str) -> Option<Value> {
        let answer = self.get(path);
        assert!([200, 404].contains(&answer.status), "{path}: {}", answer.text());
        (answer.status == 200).then(|| answer.json())
    }

    /// Creates an object in a collection; panics where it is refused.
    pub fn create(&self, collection: &str, object: &Value) -> Value {
        let answer = self.send("POST", collection, "application/json", object);
        assert_eq!(answer.status, 201, "{object}: {}", answer.text());
        answer.json()
    }

    /// A JSON merge patch of the object at a path; panics where it is refused.
    pub fn patch(&self, path: &str, patch: &Value) -> Value {
        let answer = self.send("PATCH", path, "application/merge-patch+json", patch);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// Deletes the object at a path; panics where it is refused.
    pub fn delete(&self, path: &str) {
        let answer = self.send("DELETE", path, "", &Value::Null);
        assert!([200, 202].contains(&answer.status), "{path}: {}", answer.text());
    }

    /// Waits until the object at a path is as `wanted` says.
    pub fn wait(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(path, || match self.object(path) {
            Some(object) if wanted(&object) => Ok(object),
            Some(object) => Err(object.to_string()),
            None => Err("it is not there".to_owned()),
        })
    }

    /// Waits until nothing is at a path.
    pub fn wait_gone(&self, path: &str) {
        eventually(&format!("{path} to go"), || self.object(path).map_or(Ok(()), |object| Err(object.to_string())));
    }

    /// `kubectl` as `admin`, with `input` for `-f -`; gives what it prints.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        let mut file = tempfile::NamedTempFile::new().expect("temporary file");
        file.write_all(input.as_bytes()).expect("temporary file");
        let mut command = Command::new(assets().join("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig("admin")).args(arguments);
        command.stdin(std::fs::File::open(file.path()).expect("temporary file"));
        String::from_utf8(stdout_of(command)).expect("UTF-8")
    }

    /// Creates CRDs and waits until they are served.
    pub fn install(&self, definitions: &[Value]) {
        const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let made: Vec<Value> = definitions.iter().map(|definition| self.create(CRDS, definition)).collect();
        for definition in made {
            let (group, names) = (&definition["spec"]["group"], &definition["spec"]["names"]);
            let served =
                definition["spec"]["versions"].as_array().into_iter().flatten().filter(|v| v["served"] == true);
            for version in served {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let path = format!("/apis/{}/{}/{}", text(group), text(&version["name"]), text(&names["plural"]));
                eventually(&path, || {
                    let answer = self.get(&path);
                    if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
                });
            }
        }
    }

    /// Installs the CRDs that the binary under test prints.
    pub fn install_larders(&self) {
        let list = larder::run_json(&self.folder, ["crds", "--output", "json"]);
        self.install(list["items"].as_array().expect("a List"));
    }

    /// Starts one of Flux's controllers outside of the cluster, as the user `flux`, with its artifacts at this host.
    pub fn controller(&self, program: &str, artifacts: &str) -> Program {
        self.controller_with(program, artifacts, &[])
    }

    /// The same with more flags.
    pub fn controller_with(&self, program: &str, artifacts: &str, flags: &[&str]) -> Program {
        let config = self.kubeconfig("flux").display().to_string();
        let arguments = ["--metrics-addr=127.0.0.1:0", "--health-addr=127.0.0.1:0", "--requeue-dependency=1s"];
        let environment = [
            ("KUBECONFIG", config.as_str()),
            ("RUNTIME_NAMESPACE", "flux-system"),
            ("SOURCE_CONTROLLER_LOCALHOST", artifacts.trim_start_matches("http://")),
        ];
        let log = self.folder.join(format!("{program}.log"));
        let arguments: Vec<String> = arguments.iter().chain(flags).map(|flag| (*flag).to_owned()).collect();
        Program::start_with(&assets().join(program), &arguments, &environment, &log)
    }

    /// The end of a program's log: `api`, `controllers`, or one of Flux's controllers.
    pub fn log_of(&self, program: &str) -> String {
        let text = std::fs::read(self.folder.join(format!("{program}.log"))).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// The calls of the user `larder` so far, as the server's audit log has them.
    pub fn audited(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.join("audit.log")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("an audit event")).collect()
    }
}

fn token(user: &str) -> String {
    format!("token-of-{user}")
}

fn start_etcd(folder: &Path) -> (Program, u16) {
    for _ in 0..5 {
        let (port, peers) = (free_port(), free_port());
        let (clients, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
        let log = folder.join("etcd.log");
        let arguments = [
            format!("--data-dir={}", folder.join(format!("etcd-{port}")).display()),
            format!("--listen-client-urls={clients}"),
            format!("--advertise-client-urls={clients}"),
            format!("--listen-peer-urls={peers}"),
            format!("--initial-advertise-peer-urls={peers}"),
            format!("--initial-cluster=default={peers}"),
            // Nothing here outlives its test.
            "--unsafe-no-fsync".to_owned(),
        ];
        let mut etcd = Program::start(&assets().join("etcd"), &arguments, &log);
        for _ in 0..400 {
            if http::send("GET", &format!("{clients}/health"), &[], b"").is_ok_and(|answer| answer.status == 200) {
                return (etcd, port);
            }
            if etcd.shell.try_wait().is_ok_and(|ended| ended.is_some()) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(25));
        }
    }
    panic!("etcd does not start: {}", std::fs::read_to_string(folder.join("etcd.log")).unwrap_or_default())
}

fn api_arguments(folder: &Path, etcd: u16) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    vec![
        format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--tls-cert-file={}", file("server.pem")),
        format!("--tls-private-key-file={}", file("server.key")),
        format!("--token-auth-file={}", file("tokens.csv")),
        format!("--service-account-signing-key-file={}", file("accounts.key")),
        format!("--service-account-key-file={}", file("accounts.pub")),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
        "--authorization-mode=RBAC".to_owned(),
        // Nothing makes the accounts that it would ask for.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        format!("--audit-policy-file={}", file("audit.json")),
        format!("--audit-log-path={}", file("audit.log")),
        "--audit-log-mode=blocking".to_owned(),
    ]
}
