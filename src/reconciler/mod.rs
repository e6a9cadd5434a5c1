//! From objects as desired to artifacts as served, without knowing where objects come from.
//!
//! One loop takes the backend's changes. A source object is admitted (its spec read, its Secrets looked up) and joins the
//! [`group`] of all objects that name the same thing the same way; the group's task probes, pulls and passes over its members
//! ([`source`]). A Kustomization has a task of its own ([`kustomization`]), woken by its source. Statuses are written by the
//! one place that also publishes, `Shared::conclude`, in the order: blob durable, URL fetchable, tree there, status kept. A
//! result whose object changed, was suspended or went meanwhile is dropped.
//!
//! After a crash nothing has to be repaired: statuses name artifacts that the store holds, and what was half done is done again.

pub mod backoff;
mod config;
mod credentials;
pub mod desired;
mod failure;
pub mod group;
pub mod helm;
pub mod kustomization;
mod probes;
mod replica;
mod retention;
pub mod source;
pub mod verification;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, watch};

use crate::{
    artifact::publish::Published,
    blocking,
    flight::Flight,
    metrics,
    objects::{Backend, BoxFuture, Change, Event, Key, Kind, Leadership, Object, Spec, Status},
    oci::Registry,
    pull::Puller,
    shutdown::Shutdown,
};
pub use config::{Config, Rendering};
use desired::{Desired, Refused};
use group::{Demand, Group, Groups};
use kustomization::Task;
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
    hosts: Mutex<HashMap<Registry, Arc<Semaphore>>>,
    synced: watch::Sender<bool>,
    /// Whether everything that statuses named at the start is here, or was tried for.
    filled: watch::Sender<bool>,
    builds: Flight<source::BuildKey, Result<Arc<source::Obtained>, Arc<failure::Failure>>>,
    probes: Probes,
}

#[derive(Default)]
struct State {
    objects: HashMap<Key, Entry>,
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
            filled: watch::Sender::new(*backend.leadership().borrow() == Leadership::Leading),
            backend,
            puller,
            published,
            config,
            shutdown,
            state: Mutex::default(),
            groups: Groups::default(),
            hosts: Mutex::default(),
            synced: watch::Sender::new(false),
            builds: Flight::default(),
        });
        let mut changes = shared.backend.changes();
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                () = shared.shutdown.wait() => break,
            };
            match change {
                None | Some(Change::Synced) => break,
                Some(Change::Applied(object, status)) => {
                    shared.adopt(object, *status).await;
                }
                Some(Change::Observed(key, status)) => replica::observed(&shared, &key, *status).await,
                Some(Change::Deleted(key)) => shared.remove(&key).await,
                Some(Change::Dependency(..)) => {}
            }
        }
        (Self(shared), changes)
    }

    /// Reconciles until the shutdown.
    pub async fn run(self, mut changes: tokio::sync::mpsc::Receiver<Change>) {
        let shared = self.0;
        let mut leadership = shared.leadership.clone();
        let now = leadership.borrow_and_update().clone();
        replica::turned(&shared, &now).await;
        shared.synced.send_replace(true);
        let filler = tokio::spawn(replica::fill(Arc::clone(&shared)));
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
                    replica::turned(&shared, &now).await;
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
                Some(Change::Synced) => {}
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
    pub fn roots(&self) -> Vec<crate::digest::Digest> {
        let state = self.0.lock();
        let mut roots = Vec::new();
        for entry in state.objects.values() {
            roots.extend(entry.status.artifact.as_ref().map(|a| a.digest));
            roots.extend(entry.retained.digests());
        }
        roots
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

    /// Whether this process is the one that writes.
    fn is_leading(&self) -> bool {
        *self.leadership.borrow() == Leadership::Leading
    }

    /// Returns when all objects that were there at the start are members of their groups: else the first of ten objects on
    /// one tag would be probed for alone.
    async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// A place among the passes for `registry`: a registry that hangs holds up only its own.
    async fn permit(&self, registry: &Registry) -> OwnedSemaphorePermit {
        let semaphore = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Semaphore::new(self.config.concurrency.max(1)));
            Arc::clone(hosts.entry(registry.clone()).or_insert_with(new))
        };
        match semaphore.acquire_owned().await {
            Ok(permit) => permit,
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }

    fn holds_something_for(&self, keys: &[Key]) -> bool {
        let state = self.lock();
        keys.iter().any(|key| state.objects.get(key).is_some_and(|e| e.status.artifact.is_some()))
    }

    /// Takes a new or changed object over, and publishes what its kept status names; whether it is new.
    async fn adopt(self: &Arc<Self>, object: Arc<Object>, status: Status) -> bool {
        let key = object.key.clone();
        let known = {
            let mut state = self.lock();
            match state.objects.get_mut(&key) {
                Some(entry) => {
                    entry.object = Arc::clone(&object);
                    entry.epoch += 1;
                    true
                }
                None => false,
            }
        };
        if known {
            return false;
        }
        let (status, retained) = source::republish(self, &object, status).await;
        let entry =
            Entry { object, status, desired: None, group: None, task: None, epoch: 0, gate: Arc::default(), retained };
        self.lock().objects.insert(key.clone(), entry);
        if !self.is_leading() && *self.synced.borrow() {
            let shared = Arc::clone(self);
            tokio::spawn(async move { replica::bring(&shared, &key).await });
        }
        true
    }

    /// Gives a new or changed object what it is due: its place in the schedule, or its end.
    async fn settle(self: &Arc<Self>, key: &Key) {
        let going = self.lock().objects.get(key).map(|e| e.object.metadata.deletion_timestamp.is_some());
        match going {
            Some(true) if self.is_leading() => self.remove(key).await,
            Some(false) => self.admit(key).await,
            _ => {}
        }
    }

    /// Reads an object's spec and Secrets, and gives it its place in the schedule.
    async fn admit(self: &Arc<Self>, key: &Key) {
        if !self.is_leading() {
            return;
        }
        let Some((object, epoch)) = self.lock().objects.get(key).map(|e| (Arc::clone(&e.object), e.epoch)) else {
            return;
        };
        if let Spec::Kustomization(_) = &object.spec {
            return kustomization::admit(self, key);
        }
        if object.is_suspended() {
            return self.withdraw(key);
        }
        let desired = match desired::read(self, &object).await {
            Ok(Some(desired)) => Arc::new(desired),
            // Not Larder's to reconcile, or static.
            Ok(None) => return self.withdraw(key),
            Err(refused) => {
                self.withdraw(key);
                return self.refuse(&object, refused).await;
            }
        };
        let requested = object.requested_at();
        let mut state = self.lock();
        let Some(entry) = state.objects.get_mut(key).filter(|e| e.epoch == epoch) else { return };
        let newly_requested = requested.is_some() && requested != entry.status.last_handled_reconcile_at.as_deref();
        let unchanged = entry.desired.as_ref() == Some(&desired)
            && entry.group.as_ref().is_some_and(|g| *g.route() == desired.route)
            && entry.status.observed_generation == object.metadata.generation;
        if unchanged && !newly_requested {
            return;
        }
        if let Some(group) = entry.group.take_if(|g| *g.route() != desired.route) {
            group.leave(key);
        }
        let demand = Demand { interval: desired.interval, timeout: desired.timeout };
        entry.group = Some(self.groups.join(self, &desired.route, key, demand, newly_requested));
        entry.desired = Some(desired);
    }

    /// Brings an artifact back that a client asked for and that is not held any more.
    fn heal(self: &Arc<Self>, path: &str) {
        let state = self.lock();
        let names = |e: &&Entry| e.status.artifact.as_ref().is_some_and(|a| a.path == path);
        let Some(entry) = state.objects.values().find(names) else { return };
        let key = entry.object.key.clone();
        if let Some(group) = &entry.group {
            group.wake_for(&key);
        } else if !self.is_leading() {
            let shared = Arc::clone(self);
            tokio::spawn(async move { replica::bring(&shared, &key).await });
        }
    }

    /// Takes an object out of the schedule; what is published stays.
    fn withdraw(&self, key: &Key) {
        let mut state = self.lock();
        if let Some(entry) = state.objects.get_mut(key) {
            entry.desired = None;
            if let Some(group) = entry.group.take() {
                group.leave(key);
            }
        }
    }

    /// Records why an object could not even be tried, and tries again later where that may help.
    async fn refuse(self: &Arc<Self>, object: &Arc<Object>, refused: Refused) {
        source::record_refusal(self, object, &refused).await;
        if let Some(delay) = refused.retry {
            let epoch = self.lock().objects.get(&object.key).map(|e| e.epoch);
            tokio::spawn(Self::admit_later(Arc::clone(self), object.key.clone(), epoch, delay));
        }
    }

    /// Boxed: it is spawned by what it calls.
    fn admit_later(self: Arc<Self>, key: Key, epoch: Option<u64>, delay: Duration) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.shutdown.wait() => return,
            }
            let same = self.lock().objects.get(&key).is_some_and(|e| Some(e.epoch) == epoch && e.group.is_none());
            if same {
                self.admit(&key).await;
            }
        })
    }

    /// Re-admits the charts of a HelmRepository, and wakes the Kustomizations of a source or Kustomization.
    async fn admit_dependants(self: &Arc<Self>, key: &Key) {
        if key.kind == Kind::HelmRepository {
            let charts: Vec<Key> = {
                let state = self.lock();
                let of_it = |e: &&Entry| match &e.object.spec {
                    Spec::HelmChart(spec) => {
                        *spec.source_ref.name == *key.name && e.object.key.namespace == key.namespace
                    }
                    _ => false,
                };
                state.objects.values().filter(of_it).map(|e| e.object.key.clone()).collect()
            };
            for chart in charts {
                self.admit(&chart).await;
            }
        }
        kustomization::wake_dependants(self, key);
    }

    async fn dependency_changed(self: &Arc<Self>, namespace: &str, name: &str) {
        tracing::debug!(namespace, name, "a Secret, ServiceAccount or ConfigMap changed");
        let keys: Vec<Key> = {
            let state = self.lock();
            let mine = |k: &&Key| *k.namespace == *namespace && k.kind != Kind::Kustomization;
            state.objects.keys().filter(mine).cloned().collect()
        };
        for key in keys {
            self.admit(&key).await;
        }
    }

    /// Forgets an object, and with it its artifacts, tree, rendered file and status.
    async fn remove(self: &Arc<Self>, key: &Key) {
        let gate = self.lock().objects.get(key).map(|e| Arc::clone(&e.gate));
        let _guard = match &gate {
            Some(gate) => Some(gate.lock().await),
            None => None,
        };
        let entry = self.lock().objects.remove(key);
        let known = entry.is_some();
        if let Some(entry) = entry {
            if let Some(group) = &entry.group {
                group.leave(key);
            }
            retention::drop_all(self, key, &entry.status, entry.retained).await;
            if let Some(applier) = &self.config.applier
                && key.kind == Kind::Kustomization
                && entry.object.metadata.deletion_timestamp.is_some()
            {
                // It goes when its objects are gone, which may last.
                tokio::spawn(kustomization::finalize(Arc::clone(self), applier.clone(), entry.object, entry.status));
                return;
            }
        }
        if key.kind == Kind::Kustomization {
            let file = kustomization::rendered_file(self.puller.store().root(), key);
            if let Err(error) = blocking::io(move || std::fs::remove_file(file)).await
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%key, %error, "cannot remove the rendered file");
            }
        }
        metrics::forget_object(key.kind.name(), &key.namespace, &key.name);
        if known {
            tracing::info!(%key, "deleted");
        }
        if let Err(error) = self.backend.forget(key).await {
            tracing::warn!(%key, %error, "cannot let the object go; it is tried again");
            tokio::spawn(Self::forget_later(Arc::clone(self), key.clone()));
        }
    }

    /// Until the backend has let an object go, its end is not complete.
    async fn forget_later(self: Arc<Self>, key: Key) {
        let mut backoff = backoff::Backoff::default();
        loop {
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = self.shutdown.wait() => return,
            }
            // Made anew meanwhile: it is another one's.
            if self.lock().objects.contains_key(&key) || self.backend.forget(&key).await.is_ok() {
                return;
            }
        }
    }

    /// Has another pass over an object come soon, because what the last one found could not be kept.
    fn again_later(self: Arc<Self>, key: Key, generation: i64) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(backoff::jittered(KEEP_AGAIN)) => {}
                () = self.shutdown.wait() => return,
            }
            let refused = {
                let state = self.lock();
                let Some(entry) = state.objects.get(&key) else { return };
                if entry.object.metadata.generation != generation {
                    return;
                }
                match (&entry.group, &entry.task) {
                    (Some(group), _) => group.wake_for(&key),
                    (_, Some(task)) => task.wake(),
                    _ => {}
                }
                entry.group.is_none() && entry.task.is_none()
            };
            if refused {
                self.admit(&key).await;
            }
        })
    }

    /// Keeps `status` for `object` unless it changed meanwhile; whether it was kept. Everything that the status names must be
    /// durable and fetchable before.
    async fn conclude(self: &Arc<Self>, object: &Arc<Object>, status: Status, events: Vec<Event>) -> bool {
        let key = &object.key;
        if !self.is_leading() {
            return false;
        }
        let Some(gate) = self.lock().objects.get(key).map(|e| Arc::clone(&e.gate)) else { return false };
        let _guard = gate.lock().await;
        let before = {
            let state = self.lock();
            match state.objects.get(key) {
                // Same life, same spec: a result for another generation is never published.
                Some(entry)
                    if Arc::ptr_eq(&entry.gate, &gate)
                        && entry.object.metadata.generation == object.metadata.generation =>
                {
                    entry.status.clone()
                }
                _ => return false,
            }
        };
        // Also where nothing changed: somebody else may have written it.
        if let Err(error) = self.backend.patch_status(key, &status).await {
            tracing::error!(%key, %error, "cannot keep the status; it is tried again");
            tokio::spawn(Self::again_later(Arc::clone(self), key.clone(), object.metadata.generation));
            return false;
        }
        if before != status {
            let mut state = self.lock();
            if let Some(entry) = state.objects.get_mut(key) {
                entry.retained.supersede(before.artifact.as_ref(), status.artifact.as_ref());
                entry.status = status.clone();
            }
            drop(state);
            if let Some(artifact) = &status.artifact {
                self.published.set_latest(&artifact.path);
            }
        }
        for event in events {
            self.backend.event(object, event).await;
        }
        let was = before.artifact.as_ref().map(|a| (&a.revision, &a.digest));
        let is = status.artifact.as_ref().map(|a| (&a.revision, &a.digest));
        // Of a Kustomization any change counts for those that depend on it; without a change nobody is woken, or two that
        // wait for each other would never sleep.
        if was != is || (key.kind == Kind::Kustomization && before != status) {
            kustomization::wake_dependants(self, key);
        }
        true
    }
}
