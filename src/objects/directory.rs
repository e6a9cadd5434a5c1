//! Objects from a directory of YAML and JSON files (`--objects DIR`): no cluster needed.
//!
//! **Promise.** Every `*.yaml`, `*.yml` and `*.json` directly in DIR is read (folders are not entered, dotfiles are
//! passed over, links are followed), several documents a file. What the files declare is what is desired; the files
//! are never written. A document that cannot be used never stops the others: it is logged once, listed under `errors`,
//! and what it declared before stays as it was. The same kind, namespace and name twice: none is used, the last good
//! one stays. As long as a file holds a document of which it is not clear what it is about, nothing of that file is
//! taken for deleted.
//!
//! **Changes** are seen by inotify, and by looking at every file's stamp each 10 s where inotify sees nothing (a
//! link that is swapped above DIR, a network file system). A burst of events is one load.
//!
//! **Format.** One record an object, `<data>/objects/<kind>/<namespace>/<name>.json`: metadata with the generation, the
//! last good spec, and the status. Secrets are kept in memory only.
//!
//! **Concurrency.** Loads follow one another; statuses of different objects are written side by side, those of one object
//! one after the other.
//!
//! **After a crash** each record is the last one or the one before; a status that [`Backend::patch_status`] had
//! confirmed is there, also after a power cut. Documents removed meanwhile are told as deleted at the next start.

mod load;
pub(super) mod record;
mod scan;
mod watch;

use std::{
    collections::{BTreeMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

pub(super) use self::scan::is_named;
use self::{
    load::{Outcome, State},
    record::{Record, Records},
    scan::{Reading, Scanner},
    watch::Watch,
};
use super::{
    Backend, BackendError, BoxFuture, Change, ConfigMap, DocumentError, Event, Key, Listing, Object, References,
    SecretObject, ServiceAccount, Status, log_event,
    manifest::{Content, DependencyKind},
    shown::shown,
};
use crate::{blocking, digest::Digest};

/// Changes that wait for the reconciler.
const QUEUE: usize = 1024;

/// Records that are written at once: enough for a file system to put them into one commit.
const WRITERS: usize = 16;

/// The digests of all artifacts that kept statuses under `data` name, for a collection while no daemon runs.
///
/// # Errors
/// What the disk says.
pub fn kept_artifacts(data: &Path) -> std::io::Result<Vec<Digest>> {
    let records = Records::new(data).load()?;
    Ok(records.into_iter().filter_map(|(_, record)| record.status.artifact.map(|a| a.digest)).collect())
}

/// The objects of a directory. Dropping it ends the watching.
pub struct Directory {
    inner: Arc<Inner>,
    receiver: Mutex<Option<mpsc::Receiver<Change>>>,
    task: tokio::task::JoinHandle<()>,
}

struct Inner {
    path: PathBuf,
    records: Records,
    state: Mutex<State>,
    loader: tokio::sync::Mutex<Loader>,
    /// One writer at a time for each object: by the hash of its key.
    stripes: [tokio::sync::Mutex<()>; 64],
    sender: mpsc::Sender<Change>,
}

/// What only the one who loads needs.
#[derive(Default)]
struct Loader {
    scanner: Scanner,
    last: Option<Vec<Arc<Reading>>>,
    told: HashSet<String>,
    foreign: HashSet<(String, String)>,
}

impl Directory {
    /// Reads a directory's objects and the statuses kept under `data`, and begins to watch. When this returns,
    /// everything is loaded; the changes wait in [`Backend::changes`].
    ///
    /// # Errors
    /// [`BackendError::Unreadable`] if the directory or the kept statuses cannot be read.
    pub async fn open(path: &Path, data: &Path) -> Result<Self, BackendError> {
        Self::open_with(path, data, true).await
    }

    /// Without `watched`, only [`Directory::reload`] looks at the files again.
    async fn open_with(path: &Path, data: &Path, watched: bool) -> Result<Self, BackendError> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let inner = Arc::new(Inner {
            path: path.to_owned(),
            records: Records::new(data),
            state: Mutex::default(),
            loader: tokio::sync::Mutex::default(),
            stripes: std::array::from_fn(|_| tokio::sync::Mutex::new(())),
            sender,
        });
        // Watch before the first look, or a change between the two would wait for the poll.
        let watch = if watched { Some(Watch::start(path).await) } else { None };
        let records = inner.records.clone();
        let kept = blocking::io(move || records.load())
            .await
            .map_err(|source| BackendError::Unreadable { place: data.join("objects").display().to_string(), source })?;
        let changes = {
            let mut loader = inner.loader.lock().await;
            inner.load(&mut loader, kept.into_iter().collect(), true).await?
        };
        let task = tokio::spawn(inner.clone().run(changes, watch));
        Ok(Self { inner, receiver: Mutex::new(Some(receiver)), task })
    }

    /// Looks at the files now, and returns when every change has been put into the queue.
    ///
    /// # Errors
    /// [`BackendError::Unreadable`] if the directory cannot be listed; everything stays as it was then.
    pub async fn reload(&self) -> Result<(), BackendError> {
        self.inner.reload().await
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>, changes: Vec<Change>, watch: Option<Watch>) {
        {
            let _order = self.loader.lock().await;
            if !self.tell(changes).await {
                return;
            }
        }
        let Some(mut watch) = watch else { return };
        let mut failing = false;
        loop {
            tokio::select! {
                () = watch.changed() => {}
                () = self.sender.closed() => return,
            }
            watch.renew().await;
            match self.reload().await {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    tracing::error!(%error, "the objects stay as they were");
                }
                Err(_) => {}
            }
        }
    }

    async fn reload(self: &Arc<Self>) -> Result<(), BackendError> {
        let mut loader = self.loader.lock().await;
        let changes = self.load(&mut loader, BTreeMap::new(), false).await?;
        // Still under the loader's lock, so that changes of two loads do not mix.
        self.tell(changes).await;
        Ok(())
    }

    /// Whether somebody listens.
    async fn tell(&self, changes: Vec<Change>) -> bool {
        for change in changes {
            if self.sender.send(change).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn load(
        self: &Arc<Self>,
        loader: &mut Loader,
        records: BTreeMap<Key, Record>,
        first: bool,
    ) -> Result<Vec<Change>, BackendError> {
        let (path, mut scanner) = (self.path.clone(), std::mem::take(&mut loader.scanner));
        let (scanned, scanner) = blocking::io(move || (scanner.scan(&path), scanner)).await;
        loader.scanner = scanner;
        let readings = scanned.map_err(|source| {
            let place = self.path.display().to_string();
            let error = format!("cannot be read, so everything stays as it was: {source}");
            let mut state = self.state();
            state.errors.retain(|e| e.place != place);
            state.errors.push(DocumentError { place: place.clone(), error });
            loader.last = None;
            BackendError::Unreadable { place, source }
        })?;
        let unchanged = loader.last.as_ref().is_some_and(|last| {
            last.len() == readings.len() && last.iter().zip(&readings).all(|(a, b)| Arc::ptr_eq(a, b))
        });
        if unchanged {
            return Ok(Vec::new());
        }
        let outcome = load::apply(&mut self.state(), &readings, records, Timestamp::now(), first);
        loader.last = Some(readings);
        self.log(loader, &outcome);
        self.keep(outcome.written).await;
        Ok(outcome.changes)
    }

    /// Tells people what is new since the last load.
    fn log(&self, loader: &mut Loader, outcome: &Outcome) {
        for (version, kind) in &outcome.foreign {
            if loader.foreign.insert((version.clone(), kind.clone())) {
                let text = "documents of this kind are not Larder's and are ignored";
                // Whoever puts Flux's objects here may expect something to become of them.
                match version.contains(".toolkit.fluxcd.io/") {
                    true => tracing::warn!(api_version = version, kind, "{text}"),
                    false => tracing::info!(api_version = version, kind, "{text}"),
                }
            }
        }
        let mut told = HashSet::new();
        for warning in &outcome.warnings {
            if !loader.told.contains(warning) {
                tracing::warn!("{warning}");
            }
            told.insert(warning.clone());
        }
        for error in &self.state().errors {
            let text = format!("{}: {}", error.place, error.error);
            if !loader.told.contains(&text) {
                tracing::error!("{text}");
            }
            told.insert(text);
        }
        loader.told = told;
    }

    /// Writes the records of objects that changed.
    async fn keep(self: &Arc<Self>, keys: Vec<Key>) {
        // A record that has no durable one before it loses nothing if a power cut takes it: the documents are there.
        let fresh: Vec<(Key, Record)> = {
            let state = self.state();
            let known = keys.iter().filter_map(|key| Some((key, state.objects.get(key)?)));
            known.filter(|(_, k)| !k.durable).map(|(key, k)| (key.clone(), record_of(k, None))).collect()
        };
        let skip: HashSet<Key> = fresh.iter().map(|(key, _)| key.clone()).collect();
        let records = self.records.clone();
        let failed = blocking::io(move || {
            fresh.iter().fold(None, |failed, (key, record)| records.write(key, record, false).err().or(failed))
        })
        .await;
        let mut failure = failed.map(|source| source.to_string());
        let (mut writers, places) = (JoinSet::new(), Arc::new(Semaphore::new(WRITERS)));
        for key in keys.into_iter().filter(|key| !skip.contains(key)) {
            let (inner, places) = (self.clone(), places.clone());
            writers.spawn(async move {
                let _place = places.acquire_owned().await;
                inner.write(&key, None).await
            });
        }
        for written in writers.join_all().await {
            failure = written.err().map(|error| error.to_string()).or(failure);
        }
        if let Some(error) = failure {
            tracing::warn!(error, "a new generation could not be kept; it is with the object's next status");
        }
    }

    /// Writes an object's record, with another status if one is given; it is durable when this returns.
    async fn write(&self, key: &Key, status: Option<&Status>) -> Result<(), BackendError> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let _turn = self.stripes[hasher.finish() as usize % self.stripes.len()].lock().await;
        let record = {
            let state = self.state();
            match state.objects.get(key) {
                Some(known) if known.object.is_ours() => {
                    if known.durable && status.is_some_and(|s| *s == known.status) {
                        return Ok(());
                    }
                    record_of(known, status)
                }
                _ => return Ok(()),
            }
        };
        let (records, of) = (self.records.clone(), key.clone());
        let (written, record) = blocking::io(move || (records.write(&of, &record, true), record)).await;
        if let Some(known) = self.state().objects.get_mut(key) {
            known.durable = written.is_ok();
            // A full disk must not hide its own failure: what says nothing new of the artifact may be told undurably.
            let told = written.is_ok() || record.status.artifact == known.status.artifact;
            if status.is_some() && told {
                known.status = record.status;
                if let Err(error) = written {
                    tracing::warn!(%key, %error, "the status is told, but cannot be kept; a restart will not know of it");
                }
                return Ok(());
            }
        }
        written.map_err(|source| BackendError::Status { key: key.clone(), source })
    }

    async fn forget(&self, key: &Key) -> Result<(), BackendError> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let _turn = self.stripes[hasher.finish() as usize % self.stripes.len()].lock().await;
        // Declared anew meanwhile: the record is the new object's.
        if self.state().objects.get(key).is_some_and(|known| known.object.is_ours()) {
            return Ok(());
        }
        let (records, of) = (self.records.clone(), key.clone());
        blocking::io(move || records.remove(&of))
            .await
            .map_err(|source| BackendError::Status { key: key.clone(), source })
    }

    fn list(&self) -> Listing {
        let state = self.state();
        let write = |k: &load::Known| serde_json::value::to_raw_value(&shown(&k.object, &k.status));
        // Values of JSON, with text for keys, can always be written.
        let items = state.objects.values().filter_map(|k| write(k).ok()).collect();
        Listing { items, errors: state.errors.clone() }
    }
}

fn record_of(known: &load::Known, status: Option<&Status>) -> Record {
    Record {
        file: known.file.to_string(),
        metadata: known.object.metadata.clone(),
        spec: known.object.raw_spec.clone(),
        status: status.unwrap_or(&known.status).clone(),
    }
}

impl Inner {
    fn dependency<T>(
        &self,
        kind: DependencyKind,
        namespace: &str,
        name: &str,
        get: impl Fn(&Content) -> Option<T>,
    ) -> Option<T> {
        get(&self.state().dependencies.get(&(kind, namespace.into(), name.into()))?.0)
    }
}

impl References for Directory {
    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<SecretObject>>, BackendError>> {
        let found = self.inner.dependency(DependencyKind::Secret, namespace, name, |content| match content {
            Content::Secret(secret) => Some(secret.clone()),
            _ => None,
        });
        Box::pin(std::future::ready(Ok(found)))
    }

    fn service_account<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ServiceAccount>, BackendError>> {
        let found = self.inner.dependency(DependencyKind::ServiceAccount, namespace, name, |content| match content {
            Content::ServiceAccount(account) => Some(account.clone()),
            _ => None,
        });
        Box::pin(std::future::ready(Ok(found)))
    }

    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<ConfigMap>>, BackendError>> {
        let found = self.inner.dependency(DependencyKind::ConfigMap, namespace, name, |content| match content {
            Content::ConfigMap(map) => Some(map.clone()),
            _ => None,
        });
        Box::pin(std::future::ready(Ok(found)))
    }
}

impl Backend for Directory {
    fn changes(&self) -> mpsc::Receiver<Change> {
        let taken = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A second caller gets a receiver whose sender is gone: no changes, and no panic.
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    fn references(&self) -> &dyn References {
        self
    }

    fn forget<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(self.inner.forget(key))
    }

    fn patch_status<'a>(&'a self, key: &'a Key, status: &'a Status) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(self.inner.write(key, Some(status)))
    }

    fn event<'a>(&'a self, object: &'a Object, event: Event) -> BoxFuture<'a, ()> {
        log_event(&object.key, &event);
        Box::pin(std::future::ready(()))
    }

    fn is_gone<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool, BackendError>> {
        let state = self.inner.state();
        // A document that cannot be read may be the one about it.
        let gone = state.errors.is_empty() && !state.objects.get(key).is_some_and(|k| k.object.is_ours());
        Box::pin(std::future::ready(Ok(gone)))
    }

    fn show<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Option<Value>> {
        let shown = self.inner.state().objects.get(key).map(|k| shown(&k.object, &k.status));
        Box::pin(std::future::ready(shown))
    }

    fn list<'a>(&'a self) -> BoxFuture<'a, Listing> {
        Box::pin(std::future::ready(self.inner.list()))
    }
}

#[cfg(test)]
mod tests;
