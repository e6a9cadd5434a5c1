//! Kubernetes' API on loopback, played from a set of objects in memory: every call is noted, and it fails as told.
//!
//! ```ignore
//! let api = ApiServer::start();
//! api.put(json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s", "namespace": "default" } }));
//! api.fault(|call| call.is("patch", "ocirepositories/status"), 1, Fault::status(409, "Conflict"));
//! // … the client under test, given `api.kubeconfig(folder)` …
//! assert_eq!(api.writes(), ["patch ocirepositories.source.toolkit.fluxcd.io/status default/app"]);
//! ```
//!
//! What it does as Kubernetes does: discovery (both forms), get, list (selectors, pages, metadata only), watch (selectors,
//! bookmarks, initial events, 410), create, update, the four kinds of patch, server-side apply with owners and conflicts, the
//! status subresource, generations, optimistic locking, dry runs, finalizers, namespaces that must be there. What it does
//! not: schemas (nothing is validated, defaulted or pruned), admission, authorisation, garbage collection, conversion beyond
//! the name of the version; lists are atomic in every patch, and a strategic merge is taken for a JSON merge. Nothing runs
//! in it: no Deployment comes alive unless a test writes its status.

mod answer;
mod apply;
mod objects;
mod patch;
mod path;
mod watch;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::broadcast};

use objects::Objects;
pub use path::Resource;
pub use watch::Break;

/// A call as it came, and how it was answered.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `apply`, `delete`; of other paths the method.
    pub verb: String,
    /// The path, undecoded.
    pub path: String,
    /// API group; empty is the core.
    pub group: String,
    /// Version of the group.
    pub version: String,
    /// The plural; empty where the path names no resource.
    pub resource: String,
    /// The subresource, or empty.
    pub subresource: String,
    /// The namespace, or empty.
    pub namespace: String,
    /// The name, or empty; of a create the one in the body.
    pub name: String,
    /// The query, decoded.
    pub query: BTreeMap<String, String>,
    /// The headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body, JSON or YAML; null where there was none.
    pub body: Value,
    /// The status of the answer; 0 while there is none.
    pub status: u16,
}

impl Call {
    /// Whether it was this verb on this resource (`plural`, or `plural/subresource`).
    pub fn is(&self, verb: &str, resource: &str) -> bool {
        self.verb == verb && resource == self.slashed()
    }

    /// Whether it could change something (dry runs and reviews of access do not).
    pub fn is_write(&self) -> bool {
        ["create", "update", "patch", "apply", "delete"].contains(&self.verb.as_str())
            && !self.is_dry_run()
            && !self.resource.ends_with("reviews")
    }

    /// Whether it was sent with `dryRun`.
    pub fn is_dry_run(&self) -> bool {
        self.query.contains_key("dryRun") || self.body["dryRun"].is_array()
    }

    /// Whether only metadata was asked for.
    pub fn is_metadata_only(&self) -> bool {
        self.headers.get("accept").is_some_and(|accept| accept.contains("as=PartialObjectMetadata"))
    }

    fn slashed(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

/// `patch ocirepositories.source.toolkit.fluxcd.io/status default/app`, with `(metadata)`, `(dry run)` and `(as …)` behind.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.resource.is_empty() {
            return write!(f, "{} {}", self.verb, self.path);
        }
        write!(f, "{} {}", self.verb, self.resource)?;
        for (mark, text) in [(".", &self.group), ("/", &self.subresource)] {
            if !text.is_empty() {
                write!(f, "{mark}{text}")?;
            }
        }
        match (self.namespace.as_str(), self.name.as_str()) {
            ("", "") => {}
            ("", name) => write!(f, " {name}")?,
            (namespace, "") => write!(f, " {namespace}/")?,
            (namespace, name) => write!(f, " {namespace}/{name}")?,
        }
        if self.is_metadata_only() {
            f.write_str(" (metadata)")?;
        }
        if self.is_dry_run() {
            f.write_str(" (dry run)")?;
        }
        self.headers.get("impersonate-user").map_or(Ok(()), |user| write!(f, " (as {user})"))
    }
}

/// What to do instead of, or with, the right answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer.
    Answer { status: u16, headers: Vec<(&'static str, String)>, body: Value },
    /// The call is carried out, and this answer given instead of the right one.
    AfterIt { status: u16, body: Value },
    /// Closes without an answer; the call is not carried out.
    Close,
    /// The call is carried out, and the connection closed without an answer.
    CloseAfterIt,
    /// Says nothing; the call is not carried out.
    Hang,
    /// The right answer, later.
    Delay(Duration),
}

impl Fault {
    /// A `Status` of failure with this code and reason.
    pub fn status(code: u16, reason: &str) -> Self {
        Self::Answer { status: code, headers: Vec::new(), body: failure(code, reason, "as the test asked") }
    }

    /// A `Status` of failure with a message that the client may have to show.
    pub fn message(code: u16, reason: &str, message: &str) -> Self {
        Self::Answer { status: code, headers: Vec::new(), body: failure(code, reason, message) }
    }

    /// 429 with `Retry-After` in seconds, as priority and fairness answers.
    pub fn too_many(retry_after: u32) -> Self {
        let headers = vec![("Retry-After", retry_after.to_string())];
        Self::Answer { status: 429, headers, body: failure(429, "TooManyRequests", "too many requests") }
    }
}

/// A `Status` of failure.
fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": message })
}

struct Rule {
    when: Box<dyn Fn(&Call) -> bool + Send + Sync>,
    left: usize,
    fault: Fault,
}

struct Content {
    objects: Objects,
    rules: Vec<Rule>,
    calls: Vec<Call>,
    /// Watches under way, by plural.
    watching: BTreeMap<String, usize>,
}

struct State {
    content: Mutex<Content>,
    /// Told after every change, and when watches are to do something.
    news: broadcast::Sender<watch::News>,
}

impl State {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().expect("a test that panicked with the lock has failed already")
    }

    fn tell(&self, news: watch::News) {
        // Nobody may be watching.
        let _ = self.news.send(news);
    }
}

/// The server; it stops when dropped.
pub struct ApiServer {
    /// Where it listens, plain HTTP.
    pub address: SocketAddr,
    state: Arc<State>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl ApiServer {
    /// A server on a free port with the built-in kinds, Flux's, and the namespaces `default`, `flux-system`, `kube-system`.
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("api-server")
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let content =
            Content { objects: Objects::new(), rules: Vec::new(), calls: Vec::new(), watching: BTreeMap::new() };
        let state = Arc::new(State { content: Mutex::new(content), news: broadcast::channel(1024).0 });
        let serving = state.clone();
        runtime.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let state = serving.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| answer::answer(state.clone(), request));
                    // An error here is a connection that a fault, or the client, has ended.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        let server = Self { address, state, runtime: Some(runtime) };
        for name in ["default", "flux-system", "kube-system"] {
            server.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }));
        }
        server
    }

    /// `http://127.0.0.1:…`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig that names this server into `folder`.
    pub fn kubeconfig(&self, folder: &Path) -> PathBuf {
        let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": self.url() } }],
            "users": [{ "name": "test", "user": { "token": "a-token-of-the-test" } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }] });
        let file = folder.join("kubeconfig");
        std::fs::write(&file, config.to_string()).expect("the kubeconfig");
        file
    }

    /// Serves another kind. (A CustomResourceDefinition that comes in does the same.)
    pub fn serve_kind(&self, resource: Resource) {
        self.state.content().objects.serve(resource);
    }

    /// Serves this plural no longer, as a cluster without that CRD.
    pub fn withdraw_kind(&self, plural: &str) {
        self.state.content().objects.withdraw(plural);
    }

    /// Keeps an object as it is given, status included, whatever was there; its namespace is made where it is not. Gives it
    /// as it is kept.
    pub fn put(&self, object: Value) -> Value {
        let kept = self.state.content().objects.put(object);
        self.state.tell(watch::News::Changed);
        kept
    }

    /// Changes an object as another client does who owns what it changes as `kubectl-edit`; panics where it is not there.
    pub fn edit(&self, kind: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) -> Value {
        let kept = self.state.content().objects.edit(kind, namespace, name, change);
        self.state.tell(watch::News::Changed);
        kept
    }

    /// Deletes an object as another client does: finalizers hold it.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        self.state.content().objects.delete_named(kind, namespace, name);
        self.state.tell(watch::News::Changed);
    }

    /// The object, if it is there. `kind` may carry its group: `Event.events.k8s.io`.
    pub fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state.content().objects.named(kind, namespace, name)
    }

    /// All objects of a kind, by namespace and name.
    pub fn objects(&self, kind: &str) -> Vec<Value> {
        self.state.content().objects.of_kind(kind)
    }

    /// Every call so far, in the order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.state.content().calls.clone()
    }

    /// The calls that `which` picks, each as one line.
    pub fn lines(&self, which: impl Fn(&Call) -> bool) -> Vec<String> {
        self.state.content().calls.iter().filter(|call| which(call)).map(Call::to_string).collect()
    }

    /// The calls that could change something, each as one line.
    pub fn writes(&self) -> Vec<String> {
        self.lines(Call::is_write)
    }

    /// Forgets the calls so far.
    pub fn forget_calls(&self) {
        self.state.content().calls.clear();
    }

    /// The next `times` calls that `when` picks meet this fault.
    pub fn fault(&self, when: impl Fn(&Call) -> bool + Send + Sync + 'static, times: usize, fault: Fault) {
        self.state.content().rules.push(Rule { when: Box::new(when), left: times, fault });
    }

    /// Ends all faults.
    pub fn behave(&self) {
        self.state.content().rules.clear();
    }

    /// How many watches of this plural are under way.
    pub fn watching(&self, plural: &str) -> usize {
        self.state.content().watching.get(plural).copied().unwrap_or_default()
    }

    /// Sends a bookmark over every watch that allows it.
    pub fn bookmark(&self) {
        self.state.tell(watch::News::Bookmark);
    }

    /// Ends every watch under way.
    pub fn break_watches(&self, how: Break) {
        self.state.tell(watch::News::Break(how));
    }

    /// Forgets the history: a watch from any version before now is 410 Gone.
    pub fn compact(&self) {
        self.state.content().objects.compact();
    }
}
