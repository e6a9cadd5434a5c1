//! The composition root: builds a daemon from its configuration, starts it, and drains it.
//!
//! Start-up order: the store (its lock is what keeps a second process out), the objects with their kept statuses, the
//! artifacts that these name, then the listeners; the admin listener alone comes before the objects, as a cluster may
//! be waited for. So nothing that a status names is ever answered with 404, and no upstream is asked before the daemon is
//! ready. Drain order: listeners stop accepting and end what is under way, passes stop, the store is synced and its
//! counters noted.

mod cluster;
mod logins;
mod mirrors;
mod orders;
mod surroundings;
mod upkeep;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{sync::mpsc, task::JoinSet};

use self::mirrors::MirrorListener;
pub use self::{
    cluster::{ClusterError, MigrationReport, ReportError, migration_report},
    mirrors::MirrorSetupError,
    surroundings::Surroundings,
};
use crate::{
    apply::confine::Launcher,
    artifact::{build::Caps, publish::Published},
    blocking,
    config::{Address, Config, Feature, HostPort},
    mirror::Mirror,
    objects::{
        Backend, BackendError, BoxFuture, Change, Event, Key, Listing, Object, References, SecretObject,
        ServiceAccount, Status,
    },
    oci,
    pull::{PullError, Puller},
    reconciler::{self, NotDone, Reconciler, Rendering},
    registry::{self, Client, ProxyEnvironment, RegistryError, login},
    server::{
        Admin, Artifacts, Bound, Control, Handler, Limits, Order, OrderFailure, Refusal, Registry, Tls, TlsError,
        Workers,
        listener::BindError,
        registry::access::{self, Access},
        serve, tls,
    },
    shutdown::Shutdown,
    store::{Bounds, Store, StoreError, UNREFERENCED_FOR},
};

/// How often what was written without a sync is made durable.
const SYNC: Duration = Duration::from_secs(5);
/// As long as less than this waits to be synced, [`SYNC`] decides when.
const SYNC_BYTES: u64 = 64 << 20;
/// How often garbage is collected.
const COLLECT: Duration = Duration::from_secs(3_600);

/// A running daemon.
pub struct Node {
    store: Store,
    registry: SocketAddr,
    artifacts: SocketAddr,
    admin: SocketAddr,
    /// Listeners for one upstream each, by its name.
    mirrors: Vec<(String, SocketAddr)>,
    shutdown: Shutdown,
    serving: tokio::sync::Mutex<JoinSet<()>>,
    /// The threads that serve connections; they end with the daemon.
    _workers: Arc<Workers>,
}

/// Why a daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The objects.
    #[error(transparent)]
    Objects(#[from] BackendError),
    /// An address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// An address that names nothing here.
    #[error("cannot listen on {address}: {reason}; write IP:PORT, or a host name that this machine has")]
    Address {
        /// As configured.
        address: String,
        /// Why.
        reason: String,
    },
    /// The registry listener's certificate.
    #[error("registry.tls cannot be used")]
    Tls(#[source] TlsError),
    /// The threads that serve.
    #[error("cannot start threads to serve connections")]
    Workers(#[source] std::io::Error),
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The shutdown began before everything was there.
    #[error("ended before it was ready")]
    Stopped,
    /// The mirrored upstreams.
    #[error(transparent)]
    Mirror(#[from] MirrorSetupError),
    /// The rules for upstreams.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The registry's users.
    #[error(transparent)]
    Access(#[from] access::FileError),
    /// What is kept about pulls.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The admin token.
    #[error("cannot read the admin token from {path}: {source}")]
    AdminToken {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Node {
    /// Starts a daemon; when this returns, every listener accepts.
    pub async fn start(config: Config, surroundings: Surroundings, shutdown: Shutdown) -> Result<Self, NodeError> {
        let root = config.data.clone();
        let store = blocking::io(move || Store::open(&root)).await?;
        let workers = Arc::new(Workers::start().map_err(NodeError::Workers)?);
        let bind = async |address| Ok::<_, NodeError>(bind(address).await?.with_workers(Arc::clone(&workers)));
        let registry = bind(&config.registry_listen).await?;
        let artifacts = bind(&config.artifact_listen).await?;
        let admin = bind(&config.admin_listen).await?;
        let users = config.access();
        let access = blocking::io(move || Access::open(users)).await?;
        let tls = load_tls(&config).await?;
        let registry = match &tls {
            Some(tls) => registry.with_tls(tls.clone()),
            None => registry,
        };
        let admin_token = match &config.admin_token_file {
            Some(path) => Some(read_token(path)?),
            None => None,
        };
        let mut serving = JoinSet::new();
        // The process is live whatever it waits for, and ready at the end.
        let (admin, bound) = (admin.address(), admin);
        let face = Arc::new(Admin::new(store.clone(), admin, admin_token.as_ref()));
        listen(&mut serving, bound, Arc::clone(&face), &shutdown);
        store.set_admin_address(Some(&admin.to_string()))?;
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let cluster::Objects { backend, applier, producer, api_server } = tokio::select! {
            objects = cluster::objects(&config, &surroundings, &hostname, artifacts.address()) => objects?,
            () = shutdown.wait() => return Err(NodeError::Stopped),
        };
        let login = logins::of(&backend, surroundings.identities);
        let api_servers = api_server.into_iter().chain(surroundings.api_server).collect();
        let client = Client::new(client_config(&config, surroundings.proxies, login, api_servers))?;
        let puller = Puller::new(store.clone(), client)?;
        let (mirror, mirrors) = mirrors::set_up(&config, &puller).await?.unzip();
        let mirrors = mirrors.unwrap_or_default().into_iter().map(|listener| listener.like(&workers, tls.as_ref()));
        let mirrors: Vec<MirrorListener> = mirrors.collect();
        let published = Published::default();
        let mut insecure_registries: Vec<_> = config.insecure_registries.iter().filter_map(as_registry).collect();
        if tls.is_none() {
            // The embedded registry speaks plain http then, and everybody who may write objects here may know it.
            insecure_registries.extend(registry.address().to_string().parse::<oci::Registry>());
        }
        let reconciling = reconciler::Config {
            advertise: config.artifact_base(artifacts.address(), &hostname),
            concurrency: config.concurrency,
            insecure_registries,
            insecure_allowed: config.insecure_allow_http,
            object_level_identity: config.is_on(Feature::ObjectLevelWorkloadIdentity),
            retention: config.artifact_retention_ttl.get(),
            retention_records: config.artifact_retention_records,
            caps: Caps::default(),
            rendering: Rendering {
                program: config.kustomize_program.clone(),
                search: surroundings.search,
                launcher: Launcher::own(surroundings.program),
            },
            progress_after: applier.is_some().then_some(cluster::MOMENT),
            applier,
            cross_namespace_references: config.cross_namespace_references,
        };
        let (reconciler, changes) =
            Reconciler::load(backend, puller.clone(), published.clone(), reconciling, shutdown.clone()).await;
        if shutdown.begun() {
            return Err(NodeError::Stopped);
        }
        let control = Controls { reconciler: reconciler.clone(), store: store.clone(), puller, mirror: mirror.clone() };
        let control = Arc::new(control);
        let shown = mirrors.iter().map(MirrorListener::shown).collect();
        let (registry_at, artifacts_at) = (registry.address(), artifacts.address());
        let mut local = Registry::new(store.clone(), config.local_repositories()).with_access(access);
        if let Some(mirror) = &mirror {
            local = local.with_mirror(mirror.clone());
            for MirrorListener { bound, upstream } in mirrors {
                let handler = Registry::new(store.clone(), false).bound_to(mirror.clone(), upstream);
                listen(&mut serving, bound, Arc::new(handler), &shutdown);
            }
        }
        listen(&mut serving, registry, Arc::new(local), &shutdown);
        listen(&mut serving, artifacts, Arc::new(Artifacts::new(store.clone(), published)), &shutdown);
        let bounds = Bounds {
            max_bytes: config.store_max_bytes.map(|size| size.0),
            headroom_bytes: config.store_headroom_bytes.map(|size| size.0),
        };
        let named = reconciler.clone();
        store.bind(bounds, move || named.roots())?;
        if let Some(tls) = tls {
            serving.spawn(tls.follow(shutdown.clone()));
        }
        serving.spawn(reconciler.run(changes));
        serving.spawn(upkeep::trim(store.clone(), shutdown.clone()));
        serving.spawn(upkeep::scrub(store.clone(), config.store_scrub_bytes_per_second.0, shutdown.clone()));
        serving.spawn(sync(store.clone(), shutdown.clone()));
        serving.spawn(collect(Arc::clone(&control), shutdown.clone()));
        if let Some(producer) = producer {
            producer.begin();
        }
        face.started(control);
        tracing::info!(registry = %registry_at, artifacts = %artifacts_at, %admin, "ready");
        Ok(Self {
            store,
            registry: registry_at,
            artifacts: artifacts_at,
            admin,
            mirrors: shown,
            shutdown,
            serving: tokio::sync::Mutex::new(serving),
            _workers: workers,
        })
    }

    /// The one line of JSON that says so on stdout; `ready` stands first.
    pub fn ready_line(&self) -> String {
        let (registry, artifacts, admin) = (self.registry, self.artifacts, self.admin);
        let mut line = format!(r#"{{"ready":true,"registry":"{registry}","artifacts":"{artifacts}","admin":"{admin}"#);
        // Names of registries and addresses hold nothing that JSON would have to escape.
        for (n, (upstream, address)) in self.mirrors.iter().enumerate() {
            line.push_str(if n == 0 { r#"","mirrors":{""# } else { r#"",""# });
            line.push_str(&format!(r#"{upstream}":"{address}"#));
        }
        line.push_str(if self.mirrors.is_empty() { r#""}"# } else { r#""}}"# });
        line
    }

    /// The registry listener's address.
    pub fn registry(&self) -> SocketAddr {
        self.registry
    }

    /// The artifact listener's address.
    pub fn artifacts(&self) -> SocketAddr {
        self.artifacts
    }

    /// The admin listener's address.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        self.store.root()
    }

    /// Returns when the shutdown begins.
    pub async fn shutdown_begun(&self) {
        self.shutdown.wait().await;
    }

    /// Returns when the shutdown has begun and everything has ended; the store is closed then.
    pub async fn drained(&self) {
        let mut serving = self.serving.lock().await;
        while let Some(ended) = serving.join_next().await {
            if let Err(error) = ended {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        let store = self.store.clone();
        if let Err(error) = blocking::io(move || store.close()).await {
            tracing::warn!(%error, "the store could not be closed; the next start verifies more");
        }
    }
}

fn read_token(path: &Path) -> Result<crate::secret::Secret, NodeError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| NodeError::AdminToken { path: path.display().to_string(), source })?;
    Ok(crate::secret::Secret::new(text.trim()))
}

/// Listens on the first of a name's addresses that can be.
async fn bind(address: &Address) -> Result<Bound, NodeError> {
    let wrong = |reason: String| NodeError::Address { address: address.to_string(), reason };
    let found = tokio::net::lookup_host(address.to_string()).await.map_err(|e| wrong(e.to_string()))?;
    let mut last = None;
    for candidate in found {
        match Bound::bind(candidate) {
            Ok(bound) => return Ok(bound),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| wrong("it has no address".into()), NodeError::Bind))
}

/// The registry listener's TLS, where it is to have any.
async fn load_tls(config: &Config) -> Result<Option<Tls>, NodeError> {
    let Some(settings) = config.registry.tls.clone() else { return Ok(None) };
    let files = tls::Files { cert: settings.cert, key: settings.key, client_ca: settings.client_ca };
    blocking::io(move || Tls::load(files)).await.map(Some).map_err(NodeError::Tls)
}

fn as_registry(host: &HostPort) -> Option<oci::Registry> {
    host.to_string().parse().ok()
}

fn client_config(
    config: &Config,
    proxies: ProxyEnvironment,
    login: login::Config,
    api_servers: Vec<String>,
) -> registry::Config {
    registry::Config {
        egress_allow: config.egress_allow.iter().map(ToString::to_string).collect(),
        egress_deny: config.egress_deny.iter().map(ToString::to_string).collect(),
        token_realms: config.token_realms.iter().map(ToString::to_string).collect(),
        api_servers,
        proxies,
        login,
        ..registry::Config::default()
    }
}

fn listen<H: Handler>(serving: &mut JoinSet<()>, bound: Bound, handler: Arc<H>, shutdown: &Shutdown) {
    serving.spawn(serve(bound, handler, Limits::default(), shutdown.clone()));
}

/// Makes what was written durable, every few seconds or 64 MiB.
async fn sync(store: Store, shutdown: Shutdown) {
    let mut since = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
            () = shutdown.wait() => return,
        }
        if since.elapsed() < SYNC && store.pending_bytes() < SYNC_BYTES {
            continue;
        }
        let syncing = store.clone();
        if let Err(error) = blocking::io(move || syncing.sync_pending()).await {
            tracing::error!(%error, "what was written last may not survive a power loss; it is hashed before it is served");
        }
        since = tokio::time::Instant::now();
    }
}

/// Collects garbage every hour.
async fn collect(control: Arc<Controls>, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(COLLECT) => {}
            () = shutdown.wait() => return,
        }
        match control.collect().await {
            Ok(collected) => tracing::info!(%collected, "collected garbage"),
            Err(error) => tracing::warn!(error, "cannot collect garbage; the next try is in an hour"),
        }
    }
}

/// What the admin listener may ask.
struct Controls {
    reconciler: Reconciler,
    store: Store,
    puller: Puller,
    mirror: Option<Mirror>,
}

impl Control for Controls {
    fn ready(&self) -> bool {
        // It is asked through a listener that was bound after the statuses were loaded.
        self.reconciler.is_filled()
    }

    fn list(&self) -> BoxFuture<'_, Listing> {
        self.reconciler.backend().list()
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Value, Refusal>> {
        Box::pin(async move {
            self.reconciler.reconcile(key).await.map_err(|not_done| match not_done {
                NotDone::Unknown => Refusal::Unknown,
                NotDone::Suspended => Refusal::Suspended,
                NotDone::Timeout => Refusal::Timeout,
                NotDone::Elsewhere => Refusal::Elsewhere,
                NotDone::Leaderless => Refusal::Leaderless,
            })?;
            self.reconciler.shown(key).await.ok_or(Refusal::Unknown)
        })
    }

    fn collect(&self) -> BoxFuture<'_, Result<Value, String>> {
        Box::pin(async move {
            if !self.reconciler.knows_all() {
                return Err("what the cluster's statuses name is not known while the API server is away".to_owned());
            }
            let (store, reconciler, grants) =
                (self.store.clone(), self.reconciler.clone(), self.puller.grants().clone());
            let collected = blocking::io(move || {
                let collected = store.collect(|| reconciler.roots(), UNREFERENCED_FOR).map_err(|e| e.to_string())?;
                let held = |digest: &_| store.has(digest).unwrap_or(true);
                grants.sweep(held).map_err(|e| format!("cannot sweep the marks of fetched blobs: {e}"))?;
                Ok::<_, String>(collected)
            });
            serde_json::to_value(collected.await?).map_err(|e| e.to_string())
        })
    }

    fn order(&self, order: Order) -> BoxFuture<'_, Result<Value, OrderFailure>> {
        Box::pin(orders::carry_out(self.mirror.as_ref(), order))
    }
}

/// No objects at all: a daemon that only serves its registry.
struct Nothing;

impl References for Nothing {
    fn secret<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Option<Arc<SecretObject>>, BackendError>> {
        Box::pin(async { Ok(None) })
    }

    fn service_account<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Option<ServiceAccount>, BackendError>> {
        Box::pin(async { Ok(None) })
    }
}

impl Backend for Nothing {
    fn changes(&self) -> mpsc::Receiver<Change> {
        let (send, receive) = mpsc::channel(1);
        tokio::spawn(async move {
            let _ = send.send(Change::Synced).await;
            send.closed().await;
        });
        receive
    }

    fn references(&self) -> &dyn References {
        self
    }

    fn patch_status<'a>(&'a self, _: &'a Key, _: &'a Status) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(async { Ok(()) })
    }

    fn event<'a>(&'a self, _: &'a Object, _: Event) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    fn show<'a>(&'a self, _: &'a Key) -> BoxFuture<'a, Option<Value>> {
        Box::pin(async { None })
    }

    fn list<'a>(&'a self) -> BoxFuture<'a, Listing> {
        Box::pin(async { Listing::default() })
    }
}
