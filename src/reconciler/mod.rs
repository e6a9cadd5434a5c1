//! From objects as desired to artifacts as served, without knowing where objects come from.
//!
//! One loop takes the backend's changes. A source object is admitted (its spec read, its Secrets looked up) and joins the
//! [`group`] of all objects that name the same thing the same way; the group's task probes, pulls and passes over its members
//! ([`source`]). A Kustomization has a task of its own ([`kustomization`]), woken by its source. Statuses are written by the
//! one place that also publishes, `Shared::conclude`, in the order: blob durable, URL fetchable, tree there, status kept. A
//! result whose object changed, was suspended or went meanwhile is dropped.
//!
//! After a crash nothing has to be repaired: statuses name artifacts that the store holds, and what was half done is done again.

mod admission;
pub mod backoff;
mod conclusion;
mod config;
mod credentials;
pub mod desired;
mod failure;
pub mod group;
pub mod helm;
pub mod kustomization;
mod lanes;
mod probes;
mod replica;
pub mod report;
mod retention;
pub mod source;
mod verdict;
pub mod verification;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::sync::{Mutex as AsyncMutex, watch};

use crate::{
    artifact::publish::Published,
    blocking,
    digest::Digest,
    flight::Flight,
    objects::{Backend, Change, Key, Kind, Leadership, Object, Status},
    oci::Registry,
    pull::Puller,
    shutdown::Shutdown,
};
pub use config::{Config, Rendering};
use desired::Desired;
use group::{Group, Groups};
use kustomization::Task;
use lanes::Lanes;
use probes::Probes;

/// How soon what could not be kept is tried again.
const KEEP_AGAIN: Duration = Duration::from_secs(5);

/// The reconciler; clones are handles on one.
#[derive(Clone)]
pub struct Reconciler(Arc<Shared>);

/// What all passes share.
pub struct Shared {
    backend: Arc<dyn Backend>,
    puller: Puller,
    published: Published,
    config: Config,
    shutdown: Shutdown,
    leadership: watch::Receiver<Leadership>,
    state: Mutex<State>,
    groups: Groups,
    hosts: Mutex<HashMap<Registry, Arc<Lanes>>>,
    synced: watch::Sender<bool>,
    /// Whether what is known is only what was kept of a cluster that has told nothing since the start: it is served, and
    /// nothing is done by it.
    recalled: AtomicBool,
    /// Whether everything that statuses named at the start is here, or was tried for.
    filled: watch::Sender<bool>,
    builds: Flight<source::BuildKey, Result<Arc<source::Obtained>, Arc<failure::Failure>>>,
    folders: kustomization::Folders,
    turns: kustomization::Turns,
    probes: Probes,
}

#[derive(Default)]
struct State {
    objects: HashMap<Key, Entry>,
    /// Artifacts that passes are about to name, and how many passes.
    making: HashMap<(Key, Digest), usize>,
}

struct Entry {
    object: Arc<Object>,
    status: Status,
    /// The spec's meaning, for source kinds that were admitted.
    desired: Option<Arc<Desired>>,
    /// The group that a source belongs to.
    group: Option<Arc<Group>>,
    /// The task of a Kustomization.
    task: Option<Task>,
    /// It is being deleted, and what it applied with it.
    ending: bool,
    /// Rises with every change, so that what was begun before it is dropped.
    epoch: u64,
    /// One writer of the kept status at a time: a pass that ends cannot bring back what was deleted meanwhile.
    gate: Arc<AsyncMutex<()>>,
    retained: retention::Retained,
}

/// Why a requested pass was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotDone {
    /// There is no such object.
    Unknown,
    /// It is suspended.
    Suspended,
    /// It lasted longer than `spec.timeout`.
    Timeout,
    /// Another replica leads.
    Elsewhere,
    /// No replica is known to lead.
    Leaderless,
}

impl Reconciler {
    /// Takes all objects that are there now from the backend and publishes what their kept statuses name; the passes begin
    /// with [`Reconciler::run`].
    pub async fn load(
        backend: Arc<dyn Backend>,
        puller: Puller,
        published: Published,
        config: Config,
        shutdown: Shutdown,
    ) -> (Self, tokio::sync::mpsc::Receiver<Change>) {
        let root = puller.store().root().to_path_buf();
        let shared = Arc::new(Shared {
            probes: blocking::io(move || Probes::load(&root)).await,
            leadership: backend.leadership(),
            // Where only this process serves, nobody is served better by waiting for it.
            filled: watch::Sender::new(!backend.has_replicas()),
            backend,
            puller,
            published,
            config,
            shutdown,
            state: Mutex::default(),
            groups: Groups::default(),
            hosts: Mutex::default(),
            synced: watch::Sender::new(false),
            recalled: AtomicBool::new(false),
            builds: Flight::default(),
            folders: kustomization::Folders::default(),
            turns: kustomization::Turns::default(),
        });
        let mut changes = shared.backend.changes();
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                () = shared.shutdown.wait() => break,
            };
            match change {
                None => break,
                Some(Change::Synced) => {
                    shared.recalled.store(false, Ordering::Release);
                    break;
                }
                Some(Change::Recalled(kept)) => {
                    shared.recalled.store(true, Ordering::Release);
                    for (object, status) in kept {
                        shared.adopt(object, status).await;
                    }
                }
                Some(Change::Away) if shared.is_recalled() => {
                    tracing::warn!("the API server tells nothing yet; what was published before is served meanwhile");
                    shared.published.set_partial(true);
                    break;
                }
                Some(Change::Away) => {}
                Some(Change::Applied(object, status)) => {
                    shared.adopt(object, *status).await;
                }
                Some(Change::Observed(key, status)) => replica::observed(&shared, &key, *status).await,
                Some(Change::Deleted(key)) => shared.remove(&key).await,
                Some(Change::Dependency(..)) => {}
            }
        }
        replica::has_all(&shared).await;
        (Self(shared), changes)
    }

    /// Reconciles until the shutdown.
    pub async fn run(self, mut changes: tokio::sync::mpsc::Receiver<Change>) {
        let shared = self.0;
        let mut leadership = shared.leadership.clone();
        let now = leadership.borrow_and_update().clone();
        if !shared.is_recalled() {
            retention::clear(&shared).await;
            replica::turned(&shared, &now).await;
            shared.synced.send_replace(true);
        }
        let mut filler = tokio::spawn(replica::fill(Arc::clone(&shared)));
        let sweeper = tokio::spawn(retention::sweep(Arc::clone(&shared)));
        let keeper = tokio::spawn(probes::keep(Arc::clone(&shared)));
        let mut missed = shared.published.missed();
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                Some(path) = missed.recv() => {
                    shared.heal(&path);
                    continue;
                }
                Ok(()) = leadership.changed() => {
                    let now = leadership.borrow_and_update().clone();
                    if !shared.is_recalled() {
                        replica::turned(&shared, &now).await;
                    }
                    continue;
                }
                () = shared.shutdown.wait() => break,
            };
            match change {
                None => break,
                Some(Change::Applied(object, status)) => {
                    let key = object.key.clone();
                    let new = shared.adopt(object, *status).await;
                    shared.settle(&key).await;
                    // Of a source that is known what counts is its artifact, which is told when it changes.
                    if new || key.kind == Kind::HelmRepository {
                        shared.admit_dependants(&key).await;
                    }
                }
                Some(Change::Observed(key, status)) => replica::observed(&shared, &key, *status).await,
                Some(Change::Deleted(key)) => {
                    shared.remove(&key).await;
                    shared.admit_dependants(&key).await;
                }
                Some(Change::Dependency(namespace, name)) => shared.dependency_changed(&namespace, &name).await,
                Some(Change::Synced) if shared.is_recalled() => {
                    shared.recalled.store(false, Ordering::Release);
                    shared.published.set_partial(false);
                    tracing::info!("the API server has told what there is");
                    let now = leadership.borrow_and_update().clone();
                    retention::clear(&shared).await;
                    replica::turned(&shared, &now).await;
                    shared.synced.send_replace(true);
                    filler.abort();
                    filler = tokio::spawn(replica::fill(Arc::clone(&shared)));
                }
                Some(Change::Synced | Change::Recalled(_) | Change::Away) => {}
            }
        }
        filler.abort();
        sweeper.abort();
        keeper.abort();
        probes::write(&shared).await;
        shared.backend.close().await;
    }

    /// A pass over `key` now; returns when it has ended.
    pub async fn reconcile(&self, key: &Key) -> Result<(), NotDone> {
        let shared = &self.0;
        let (object, timeout) = {
            let state = shared.lock();
            let entry = state.objects.get(key).ok_or(NotDone::Unknown)?;
            (Arc::clone(&entry.object), desired::timeout(&entry.object.spec))
        };
        if object.is_suspended() {
            return Err(NotDone::Suspended);
        }
        if !shared.is_leading() {
            let elsewhere = matches!(*shared.leadership.borrow(), Leadership::Following(_));
            return Err(if elsewhere { NotDone::Elsewhere } else { NotDone::Leaderless });
        }
        let pass = async {
            if key.kind != Kind::Kustomization {
                // What the Secrets say now counts, also where nobody tells of their change.
                shared.admit(key).await;
            }
            let done = {
                let state = shared.lock();
                state.objects.get(key).and_then(|entry| match (&entry.group, &entry.task) {
                    (Some(group), _) => Some(group.request(key)),
                    (_, Some(task)) => Some(task.request()),
                    // Nothing to probe: the admission was the pass.
                    _ => None,
                })
            };
            if let Some(done) = done {
                // An error means that the object changed or went; either way this pass is over.
                let _ = done.await;
            }
        };
        tokio::time::timeout(timeout, pass).await.map_err(|_| NotDone::Timeout)
    }

    /// The digests that must not be collected: of all artifacts that a status names or that are still fetchable.
    pub fn roots(&self) -> Vec<Digest> {
        let state = self.0.lock();
        let mut roots = Vec::new();
        for entry in state.objects.values() {
            roots.extend(entry.status.artifact.as_ref().map(|a| a.digest));
            roots.extend(entry.retained.digests());
        }
        roots
    }

    /// Whether it is known what all statuses name: before that nothing is garbage.
    pub fn knows_all(&self) -> bool {
        !self.0.is_recalled()
    }

    /// Whether what the statuses name can be served from here.
    pub fn is_filled(&self) -> bool {
        *self.0.filled.borrow()
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.0.backend
    }

    /// One object as the backend lists it.
    pub async fn shown(&self, key: &Key) -> Option<Value> {
        self.0.backend.show(key).await
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often an object has changed so far; `None` if it is gone, or going.
    fn epoch(&self, key: &Key) -> Option<u64> {
        let state = self.lock();
        let living = |e: &&Entry| e.object.metadata.deletion_timestamp.is_none();
        state.objects.get(key).filter(living).map(|entry| entry.epoch)
    }

    /// Whether this process is the one that writes, and knows enough for that.
    fn is_leading(&self) -> bool {
        *self.leadership.borrow() == Leadership::Leading && !self.is_recalled()
    }

    fn is_recalled(&self) -> bool {
        self.recalled.load(Ordering::Acquire)
    }

    /// What is added to a message that something is not there: it may be, and not be watched.
    fn selected(&self) -> String {
        let among = |selector| format!(" among the objects that --watch-label-selector '{selector}' selects");
        self.backend.selector().map(among).unwrap_or_default()
    }

    /// Returns when all objects that were there at the start are members of their groups: else the first of ten objects on
    /// one tag would be probed for alone.
    async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// The places among the turns for `registry`: one that hangs holds up only its own.
    fn lanes(&self, registry: &Registry) -> Arc<Lanes> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Lanes::new(self.config.concurrency));
        Arc::clone(hosts.entry(registry.clone()).or_insert_with(new))
    }

    fn holds_something_for(&self, keys: &[Key]) -> bool {
        let state = self.lock();
        keys.iter().any(|key| state.objects.get(key).is_some_and(|e| e.status.artifact.is_some()))
    }
}
