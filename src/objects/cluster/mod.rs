//! Objects from a Kubernetes cluster (`--kubernetes`): Flux's own kinds, as they are.
//!
//! **Promise.** Only objects that are Larder's are touched: those of the watched kinds that the label selector names, of
//! GitRepositories those with an `oci://` URL; of one that has another URL now, what Larder wrote is taken back (`left`).
//! Of them only finalizers and statuses are written, and only by the replica that leads (by a Lease). A status is
//! written as what changed in it, so that fields of others stay. Secrets, ServiceAccounts and ConfigMaps are read one by
//! one, by name; they are never listed.
//!
//! **Calls.** One list and one watch a kind. A first pass costs a patch for the finalizer, one for the status and an event; a
//! pass without a change costs nothing. Secrets are remembered for ten seconds, so that a thousand objects with one Secret cost
//! one call.
//!
//! **Concurrency.** Changes are told in the order in which the API server tells them, kind by kind.
//!
//! **After a crash** nothing has to be remembered: the cluster has all of it. What was published is, for a start while the
//! API server is away (`kept`).

mod check;
mod events;
mod kept;
mod known;
mod lease;
mod left;
mod references;
mod watch;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Method, header};
use kube::api::DynamicObject;
use serde_json::Value;
use tokio::{
    sync::{Notify, mpsc, watch as channel},
    task::JoinHandle,
};

pub use self::{check::SetupError, events::Notifications};
use self::{events::EventSink, kept::Keeper, known::Known};
pub(super) use self::{known::read_status, write::difference};
use super::{
    Backend, BackendError, BoxFuture, Change, DocumentError, Event, Key, Kind, Leadership, Listing, Object, References,
    Status,
    api::{CallError, Calls, Identity, read, segment},
    shown::shown,
};
use crate::{blocking, class::chain};

/// Who writes, in `managedFields` and events.
pub const MANAGER: &str = "larder";
/// Flux's finalizer, so that Flux and Larder take over from each other.
const FINALIZER: &str = "finalizers.fluxcd.io";
/// Changes that wait for the reconciler.
const QUEUE: usize = 1024;
/// How long a start waits for the API server where it has something to serve without it.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon a cluster on which Larder cannot work is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// How to work on a cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The kinds that are reconciled.
    pub kinds: Vec<Kind>,
    /// Only objects with these labels.
    pub selector: Option<String>,
    /// Where the Lease is.
    pub namespace: String,
    /// This process among the replicas: the pod's name.
    pub identity: String,
    /// Where this replica's own artifacts are: `http://host:port`.
    pub replica: Option<String>,
    /// Flux's notification-controller.
    pub events: Option<Notifications>,
    /// The objects are not written at all: whether their CRDs keep what Larder writes does not matter, and somebody else
    /// keeps their statuses.
    pub only_read: bool,
    /// The data directory, where what is published is kept.
    pub data: PathBuf,
}

/// The objects of a cluster. Dropping it ends the watches, and gives the Lease back.
pub struct Cluster {
    inner: Arc<Inner>,
    receiver: Mutex<Option<mpsc::Receiver<Change>>>,
    tasks: Vec<JoinHandle<()>>,
    /// What ends in order.
    ending: tokio::sync::Mutex<Vec<JoinHandle<()>>>,
    stop: channel::Sender<bool>,
}

struct Inner {
    calls: Calls,
    /// What only the replica that leads may make.
    writes: Calls,
    client: kube::Client,
    settings: Settings,
    state: Mutex<State>,
    sender: mpsc::Sender<Change>,
    /// Kinds that have not been told whole yet.
    missing: AtomicUsize,
    leadership: channel::Receiver<Leadership>,
    events: EventSink,
    references: Mutex<references::Recent>,
    keeper: Option<Arc<Keeper>>,
    /// There is more in [`State::left`].
    leaving: Notify,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Known>,
    errors: BTreeMap<Key, DocumentError>,
    /// Objects that are not Larder's any more, and have what it wrote.
    left: BTreeSet<Key>,
}

impl Cluster {
    /// Looks at the CRDs and begins to watch. Waits for the API server as long as it is away, unless what is published is
    /// known without it.
    ///
    /// # Errors
    /// A CRD that would drop what Larder writes; labels that cannot be read; kept statuses that cannot be read.
    pub async fn open(client: kube::Client, settings: Settings) -> Result<Self, SetupError> {
        let began = tokio::time::Instant::now();
        let calls = Calls::new(client.clone());
        let (keeper, recalled) = match settings.only_read {
            true => (None, Vec::new()),
            false => {
                let (data, kinds) = (settings.data.clone(), settings.kinds.clone());
                let (keeper, recalled) = blocking::io(move || Keeper::open(&data, &kinds)).await?;
                (Some(Arc::new(keeper)), recalled)
            }
        };
        let is_set_up = if recalled.is_empty() && !settings.only_read {
            check::all(&calls, &settings).await?;
            true
        } else {
            let checked = tokio::time::timeout_at(began + PATIENCE, check::all(&calls, &settings)).await;
            checked.map_or(Ok(false), |checked| checked.map(|()| true))?
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        if !recalled.is_empty() {
            let told = recalled.iter().map(|known| (Arc::clone(&known.object), known.status.clone())).collect();
            let _ = sender.send(Change::Recalled(told)).await;
        }
        let objects = recalled.into_iter().map(|known| (known.object.key.clone(), known)).collect();
        let (leading, leadership) = channel::channel(Leadership::Leaderless);
        let (events, posting) = events::sink(calls.clone(), settings.events.clone(), &settings.identity);
        let inner = Arc::new(Inner {
            missing: AtomicUsize::new(settings.kinds.len()),
            writes: calls.while_leading(leadership.clone()),
            calls,
            client: client.clone(),
            settings,
            state: Mutex::new(State { objects, ..State::default() }),
            sender,
            leadership,
            events,
            references: Mutex::default(),
            keeper,
            leaving: Notify::new(),
        });
        let (stop, stopped) = channel::channel(false);
        let (set_up, mut may_stand) = channel::channel(is_set_up);
        let election = lease::Election::new(Calls::new(client), &inner.settings, leading, stopped.clone());
        let mut stop_early = stopped.clone();
        let standing = async move {
            tokio::select! {
                Ok(_) = may_stand.wait_for(|may| *may) => {}
                _ = stop_early.wait_for(|stop| *stop) => return,
            }
            election.run().await;
        };
        let mut ending = vec![tokio::spawn(standing)];
        if let Some(keeper) = &inner.keeper {
            ending.push(tokio::spawn(kept::keep(Arc::clone(&inner), Arc::clone(keeper), stopped)));
        }
        let tasks = vec![
            tokio::spawn(posting),
            tokio::spawn(left::take_back(Arc::clone(&inner))),
            tokio::spawn(work(Arc::clone(&inner), set_up)),
            tokio::spawn(away(Arc::clone(&inner), began)),
        ];
        Ok(Self { inner, receiver: Mutex::new(Some(receiver)), tasks, ending: tokio::sync::Mutex::new(ending), stop })
    }
}

/// Sets up what could not be before, and watches.
async fn work(inner: Arc<Inner>, set_up: channel::Sender<bool>) {
    let mut told = String::new();
    while !*set_up.borrow() {
        match check::all(&inner.calls, &inner.settings).await {
            Ok(()) => _ = set_up.send_replace(true),
            Err(error) => {
                // What is published stays served, so this is no reason to end.
                let error = chain(&error);
                if told != error {
                    tracing::error!("{error}; nothing is reconciled until that is mended");
                    told = error;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }
    let mut watches = tokio::task::JoinSet::new();
    for kind in inner.settings.kinds.clone() {
        watches.spawn(watch::follow(Arc::clone(&inner), kind));
    }
    while watches.join_next().await.is_some() {}
}

/// Says so if a start takes longer than whoever serves something wants to wait.
async fn away(inner: Arc<Inner>, began: tokio::time::Instant) {
    tokio::time::sleep_until(began + PATIENCE).await;
    if inner.missing.load(Ordering::Acquire) != 0 {
        inner.tell(Change::Away).await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tasks.iter().chain(self.ending.get_mut().iter()).for_each(JoinHandle::abort);
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn tell(&self, change: Change) {
        let _ = self.sender.send(change).await;
    }

    /// One kind has been told whole for the first time; after the last one, everything has.
    async fn told(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.tell(Change::Synced).await;
        }
    }

    /// An object, its status, or its absence is new.
    fn keep(&self, key: &Key) {
        if let Some(keeper) = &self.keeper {
            keeper.note(key);
        }
    }

    fn is_leading(&self) -> bool {
        *self.leadership.borrow() == Leadership::Leading
    }

    /// A document; `None` where there is none.
    async fn get(&self, path: &str) -> Result<Option<Value>, CallError> {
        let headers = [(header::ACCEPT, "application/json")];
        match self.calls.call(&Method::GET, path, &Identity::default(), &headers, &[]).await {
            Ok((_, body)) => read(&body).map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// An object that an API server shows, with its status.
///
/// # Errors
/// Its key where that much is clear, and what is wrong with it.
pub(super) fn read_object(kind: Kind, shown: DynamicObject) -> Result<(Arc<Object>, Status), (Key, String)> {
    known::read(kind, shown).map(|known| (known.object, known.status))
}

/// Where an object, or with an empty name all of a kind, is.
fn path(kind: Kind, namespace: &str, name: &str) -> String {
    let plural = kind.other_names()[0];
    format!("/apis/{}/v1/namespaces/{}/{plural}/{}", kind.group(), segment(namespace), segment(name))
}

impl BackendError {
    fn api(what: &str, of: &str, error: &CallError) -> Self {
        Self::Call { message: format!("cannot {what} {of}: {}", chain(error)), class: error.class() }
    }
}

impl Backend for Cluster {
    fn changes(&self) -> mpsc::Receiver<Change> {
        let taken = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A second caller gets a receiver whose sender is gone: no changes, and no panic.
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    fn leadership(&self) -> channel::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.stop.send_replace(true);
            for task in &mut *self.ending.lock().await {
                let _ = task.await;
            }
        })
    }

    fn has_replicas(&self) -> bool {
        true
    }

    fn references(&self) -> &dyn References {
        self
    }

    fn selector(&self) -> Option<&str> {
        self.inner.settings.selector.as_deref().filter(|selector| !selector.is_empty())
    }

    fn claim<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(write::claim(&self.inner, key))
    }

    fn forget<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(write::release(&self.inner, key))
    }

    fn patch_status<'a>(&'a self, key: &'a Key, status: &'a Status) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(write::status(&self.inner, key, status))
    }

    fn is_gone<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool, BackendError>> {
        Box::pin(async move {
            // A list, so that the selector counts; and so that a kind which may not be read is no kind without objects.
            let mut query =
                format!("{}?fieldSelector=metadata.name%3D{}", path(key.kind, &key.namespace, ""), segment(&key.name));
            if let Some(selector) = &self.inner.settings.selector {
                query.push_str(&format!("&labelSelector={}", segment(selector)));
            }
            let query = query.replacen("/?", "?", 1);
            let found =
                self.inner.get(&query).await.map_err(|e| BackendError::api("look for", &key.to_string(), &e))?;
            Ok(found.is_some_and(|list| list["items"].as_array().is_some_and(Vec::is_empty)))
        })
    }

    fn event<'a>(&'a self, object: &'a Object, event: Event) -> BoxFuture<'a, ()> {
        let status = self.inner.state().objects.get(&object.key).map(|known| known.status.clone());
        self.inner.events.send(object, status.as_ref(), event);
        Box::pin(std::future::ready(()))
    }

    fn show<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Option<Value>> {
        let shown = self.inner.state().objects.get(key).map(|known| shown(&known.object, &known.status));
        Box::pin(std::future::ready(shown))
    }

    fn list<'a>(&'a self) -> BoxFuture<'a, Listing> {
        let state = self.inner.state();
        let write = |known: &Known| serde_json::value::to_raw_value(&shown(&known.object, &known.status));
        // Values of JSON, with text for keys, can always be written.
        let items = state.objects.values().filter_map(|known| write(known).ok()).collect();
        let listing = Listing { items, errors: state.errors.values().cloned().collect() };
        Box::pin(std::future::ready(listing))
    }
}
