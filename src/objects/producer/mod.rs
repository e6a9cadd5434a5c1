//! Artifacts published as ExternalArtifacts (`--external-artifacts`, RFC-0012): Flux's controllers consume them, and nothing
//! else in the cluster is written.
//!
//! **Promise.** Each source with an artifact has one ExternalArtifact of its namespace and name (`wanted::name_of` tells
//! the exception), which says what the source's kept status says, and is written after that status is kept; so what it names
//! is durable and can be fetched. It goes when its source goes, also one that went while nobody looked. Only what this Larder
//! made, by its label, is ever deleted; what is not Larder's is never written. Nothing is written where nothing changed, and
//! what others change is put right.
//!
//! A source whose artifact changes while the cluster cannot be written keeps its former status for the reconciler, which
//! keeps the former artifact and tries again: what the cluster names stays served. All else that cannot be written is tried
//! again here, and shown in the source's `Ready` meanwhile.
//!
//! **Concurrency.** Where several replicas are ([`Kept`] over a cluster), the one that leads writes. The others serve what the
//! ExternalArtifacts name.
//!
//! **After a crash** nothing has to be repaired: what is there is compared with what is kept.

mod backend;
mod forward;
mod kept;
mod wanted;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

pub use self::kept::Kept;
use self::{
    wanted::{KINDS, Live, Name, Source, Wanted, name_of},
    write::Failure,
};
use super::{
    Artifact, Backend, BackendError, BoxFuture, Change, Condition, ConditionStatus, Conditions as _, Key, Leadership,
    Status, api::Calls, condition::kinds,
};
use crate::digest::Digest;

/// Changes that wait for the reconciler.
const QUEUE: usize = 1024;
/// How soon what could not be written is tried again, at first and at the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// How long a pass waits at a start for what is there to be known.
const LISTING: Duration = Duration::from_secs(5);

/// What is wrong where the kind is not served.
const NO_KIND: &str =
    "the cluster has no ExternalArtifacts: install Flux 2.7 or later, or the CRDs that `larder crds` prints";

/// How to publish.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which Larder this is: a label's value.
    pub producer: String,
    /// The sources are objects of the same cluster: they own what is made of them, and other replicas may write.
    pub owned: bool,
}

/// What is known of the ExternalArtifacts in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Listed {
    NotYet,
    /// They may not be listed.
    Refused(String),
    All,
}

/// A backend whose artifacts are published. Dropping it ends that.
pub struct Producer {
    inner: Arc<Inner>,
    receiver: Mutex<Option<mpsc::Receiver<Change>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

struct Inner {
    backend: Arc<dyn Backend>,
    calls: Calls,
    settings: Settings,
    state: Mutex<State>,
    listed: watch::Sender<Listed>,
    /// What is served may be told: the listeners accept.
    begun: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    /// One writer at a time for all that may want a name: by its hash.
    stripes: [tokio::sync::Mutex<()>; 64],
}

#[derive(Default)]
struct State {
    sources: BTreeMap<Key, Source>,
    live: BTreeMap<Name, Live>,
    /// What the cluster names, as far as is known before it was listed: what was kept.
    assumed: HashMap<Key, Digest>,
    failures: HashMap<Key, Failure>,
    /// What was written since the start: who finds another Larder's label there then has lost it.
    written: BTreeSet<Name>,
    /// The uids of those that were deleted: the answer to a write of just before may come after that was told.
    gone: HashMap<Name, String>,
    /// Keys with a task that writes, and whether it has to look once more.
    under_way: HashMap<Key, bool>,
}

impl State {
    /// The ExternalArtifacts of a source.
    fn of(&self, key: &Key) -> impl Iterator<Item = (&Name, &Live)> {
        // All that a source's can be called stand behind its own name.
        let from = (Arc::clone(&key.namespace), Arc::clone(&key.name));
        self.live
            .range(from..)
            .take_while(|((namespace, name), _)| *namespace == key.namespace && name.starts_with(&*key.name))
            .filter(|(_, live)| live.is_larders() && live.source().as_ref() == Some(key))
    }

    /// The sources that want this name.
    fn wanting(&self, (namespace, name): &Name) -> Vec<Key> {
        let named = KINDS.into_iter().flat_map(|kind| {
            let plain = name.strip_suffix(&*kind.lower()).and_then(|name| name.strip_suffix('-'));
            [Some(&**name), plain].into_iter().flatten().map(move |name| Key::new(kind, namespace, name))
        });
        let living = |key: &Key| self.sources.get(key).is_some_and(|source| !source.going);
        named.filter(|key| living(key) && name_of(key, &self.sources, &self.live) == *name).collect()
    }

    fn artifact_of(&self, key: &Key) -> Option<Artifact> {
        self.of(key).find_map(|(_, live)| live.status.artifact.clone())
    }
}

impl Producer {
    /// Publishes what a backend's sources have. [`Producer::begin`] says when.
    pub fn new(backend: Arc<dyn Backend>, client: kube::Client, settings: Settings) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let changes = backend.changes();
        let inner = Arc::new(Inner {
            backend,
            calls: Calls::new(client.clone()),
            settings,
            state: Mutex::default(),
            listed: watch::Sender::new(Listed::NotYet),
            begun: watch::Sender::new(false),
            stop: watch::Sender::new(false),
            stripes: std::array::from_fn(|_| tokio::sync::Mutex::new(())),
        });
        let tasks = vec![
            tokio::spawn(forward::changes(Arc::clone(&inner), changes, sender.clone())),
            tokio::spawn(forward::live(Arc::clone(&inner), client, sender)),
            tokio::spawn(forward::turns(Arc::clone(&inner))),
        ];
        Self { inner, receiver: Mutex::new(Some(receiver)), tasks }
    }

    /// From now on what the statuses name can be fetched, so it may be told.
    pub fn begin(&self) {
        self.inner.begun.send_replace(true);
        self.inner.look_at_all();
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.inner.stop.send_replace(true);
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_leading(&self) -> bool {
        *self.backend.leadership().borrow() == Leadership::Leading
    }

    /// Whether now is a time to write.
    ///
    /// # Errors
    /// What keeps it from ever being one.
    fn may_write(&self) -> Result<bool, Failure> {
        match &*self.listed.borrow() {
            Listed::NotYet => return Ok(false),
            Listed::Refused(why) => return Err(Failure { reason: "AccessDenied", message: why.clone() }),
            Listed::All => {}
        }
        Ok(*self.begun.borrow() && !*self.stop.borrow() && self.is_leading())
    }

    /// Looks at every source and at every ExternalArtifact of this Larder.
    fn look_at_all(self: &Arc<Self>) {
        let keys: BTreeSet<Key> = {
            let state = self.state();
            let made = state.live.values().filter(|live| live.is_of(&self.settings.producer)).filter_map(Live::source);
            state.sources.keys().cloned().chain(made).collect()
        };
        for key in keys {
            self.look_at(key);
        }
    }

    /// Has what a source wants written, until it is.
    fn look_at(self: &Arc<Self>, key: Key) {
        if let Some(again) = self.state().under_way.get_mut(&key) {
            *again = true;
            return;
        }
        self.state().under_way.insert(key.clone(), false);
        let (inner, mut stop) = (Arc::clone(self), self.stop.subscribe());
        tokio::spawn(async move {
            let mut delay = RETRY.0;
            loop {
                let written = inner.bring(&key, false).await;
                {
                    let mut state = inner.state();
                    if state.under_way.get_mut(&key).is_some_and(std::mem::take) {
                        continue;
                    }
                    if written.is_ok() {
                        state.under_way.remove(&key);
                        return;
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(delay) => delay = (delay * 2).min(RETRY.1),
                    _ = stop.wait_for(|stop| *stop) => return,
                }
            }
        });
    }

    /// Brings what is published of a source to what it has now; whether that was done, or is not to be done now. `gone`: that
    /// the source is gone is certain.
    async fn bring(&self, key: &Key, gone: bool) -> Result<bool, Failure> {
        let done = match self.may_write() {
            Ok(true) => self.write(key, gone).await,
            Ok(false) => return Ok(false),
            Err(failure) => Err(failure),
        };
        let mut state = self.state();
        match &done {
            Ok(()) => {
                if state.failures.remove(key).is_some() {
                    tracing::info!(%key, "published");
                }
            }
            Err(failure) => {
                if state.failures.insert(key.clone(), failure.clone()).as_ref() != Some(failure) {
                    tracing::error!(%key, reason = failure.reason, "{failure}; it is tried again");
                }
            }
        }
        done.map(|()| true)
    }

    async fn write(&self, key: &Key, gone: bool) -> Result<(), Failure> {
        let mut hasher = DefaultHasher::new();
        (&key.namespace, &key.name).hash(&mut hasher);
        let _turn = self.stripes[hasher.finish() as usize % self.stripes.len()].lock().await;
        let Settings { producer, owned } = &self.settings;
        let (there, going, plan) = {
            let state = self.state();
            let source = state.sources.get(key);
            let going = source.is_some_and(|source| source.going);
            let plan = source.filter(|_| !going).map(|source| {
                let name: Name = (Arc::clone(&key.namespace), name_of(key, &state.sources, &state.live));
                let wanted = Wanted::of(key, source, &name.1, producer, *owned);
                (state.live.get(&name).cloned(), name, wanted)
            });
            // One that somebody made name this source is put right and not deleted.
            let there = state.of(key).filter(|(name, live)| live.is_of(producer) && state.wanting(name).is_empty());
            (there.map(|(name, live)| (name.clone(), live.clone())).collect::<Vec<_>>(), going, plan)
        };
        match plan {
            Some((live, name, Some(wanted))) => {
                let other = live.as_ref().filter(|live| live.is_larders()).and_then(Live::source).filter(|s| s != key);
                if let Some(other) = other.filter(|other| self.state().sources.contains_key(other)) {
                    let message = format!("cannot publish ExternalArtifact {}/{}: it is {other}'s", name.0, name.1);
                    return Err(Failure { reason: "NameTaken", message });
                }
                let lost = live.as_ref().is_some_and(|live| live.is_larders() && !live.is_of(producer));
                if lost && self.state().written.contains(&name) {
                    let message = format!(
                        "cannot publish ExternalArtifact {}/{}: another Larder publishes it; give one of the two other sources",
                        name.0, name.1
                    );
                    return Err(Failure { reason: "NameTaken", message });
                }
                let live = write::bring(&self.calls, &name, live, &wanted).await?;
                self.state().written.insert(name.clone());
                self.note(name, live);
            }
            // It has nothing yet: what was published before, if anything, stays.
            Some((_, _, None)) => {}
            None if there.is_empty() => {}
            None => {
                if !gone && !going && !self.is_gone(key).await? {
                    return Ok(());
                }
                for (name, live) in there {
                    write::delete(&self.calls, &name, &live).await?;
                    tracing::info!(%key, name = %format_args!("{}/{}", name.0, name.1), "took the ExternalArtifact away");
                    self.state().live.remove(&name);
                }
            }
        }
        Ok(())
    }

    async fn is_gone(&self, key: &Key) -> Result<bool, Failure> {
        let failed = |error: BackendError| Failure { reason: "PublishingFailed", message: error.to_string() };
        self.backend.is_gone(key).await.map_err(failed)
    }

    /// Keeps in mind what the server has now.
    fn note(&self, name: Name, live: Live) {
        let mut state = self.state();
        if state.gone.get(&name) == Some(&live.uid) {
            return;
        }
        match state.live.get(&name) {
            Some(known) if known.is_newer_than(&live.version) => {}
            _ => drop(state.live.insert(name, live)),
        }
    }

    async fn patch_status(self: &Arc<Self>, key: &Key, status: &Status) -> Result<(), BackendError> {
        self.backend.patch_status(key, status).await?;
        if !KINDS.contains(&key.kind) {
            return Ok(());
        }
        let named = {
            let mut state = self.state();
            let Some(source) = state.sources.get_mut(key) else { return Ok(()) };
            source.status = status.clone();
            state.artifact_of(key).map(|a| a.digest).or_else(|| state.assumed.get(key).copied())
        };
        // What the cluster names must not go before the cluster names the next.
        let replaces = named.is_some() && named != status.artifact.as_ref().map(|a| a.digest);
        if replaces && *self.listed.borrow() == Listed::NotYet && *self.begun.borrow() {
            let mut listed = self.listed.subscribe();
            let _ = tokio::time::timeout(LISTING, listed.wait_for(|listed| *listed != Listed::NotYet)).await;
        }
        let failed = match self.bring(key, false).await {
            Ok(true) => return Ok(()),
            Ok(false) => "the cluster cannot be written now".to_owned(),
            Err(failure) => failure.to_string(),
        };
        if replaces {
            return Err(BackendError::Api(failed));
        }
        self.look_at(key.clone());
        Ok(())
    }

    async fn forget(self: &Arc<Self>, key: &Key) -> Result<(), BackendError> {
        if !*self.begun.borrow() && KINDS.contains(&key.kind) {
            // It went while nobody looked: its record goes after what is published of it, which comes later.
            tokio::spawn(Self::forget_later(Arc::clone(self), key.clone()));
            return Ok(());
        }
        if KINDS.contains(&key.kind) {
            // Made anew meanwhile: what is published is the new one's.
            let lives = self.state().sources.get(key).is_some_and(|source| !source.going);
            if !lives && self.is_leading() {
                match self.bring(key, true).await {
                    Ok(true) => {}
                    Ok(false) => {
                        return Err(BackendError::Api(format!("the ExternalArtifact of {key} is still there")));
                    }
                    Err(failure) => return Err(BackendError::Api(failure.message)),
                }
            }
            if !lives {
                let mut state = self.state();
                state.failures.remove(key);
                state.assumed.remove(key);
            }
        }
        self.backend.forget(key).await
    }

    /// Boxed: it is spawned by what it calls.
    fn forget_later(self: Arc<Self>, key: Key) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let (mut begun, mut listed, mut stop) =
                (self.begun.subscribe(), self.listed.subscribe(), self.stop.subscribe());
            let trying = async {
                let _ = begun.wait_for(|begun| *begun).await;
                let _ = listed.wait_for(|listed| *listed != Listed::NotYet).await;
                let mut delay = RETRY.0;
                while self.forget(&key).await.is_err() {
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(RETRY.1);
                }
            };
            tokio::select! {
                () = trying => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        })
    }

    /// An object as it is listed, with what keeps it from being published.
    fn with_failure(&self, mut shown: Value) -> Value {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &shown["metadata"];
        let kind = shown["kind"].as_str().and_then(super::Kind::find);
        let key = kind.map(|kind| Key::new(kind, &text(&metadata["namespace"]), &text(&metadata["name"])));
        let failure = key.and_then(|key| self.state().failures.get(&key).cloned());
        if let Some(Failure { reason, message }) = failure {
            let generation = metadata["generation"].as_i64().unwrap_or_default();
            let conditions = shown["status"]["conditions"].take();
            let mut conditions: Vec<Condition> = serde_json::from_value(conditions).unwrap_or_default();
            conditions.set(kinds::READY, ConditionStatus::False, reason, &message, generation, Timestamp::now());
            shown["status"]["conditions"] = serde_json::json!(conditions);
        }
        shown
    }
}
