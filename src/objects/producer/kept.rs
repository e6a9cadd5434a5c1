//! Objects of a cluster that are only read: their statuses are kept here, as those of a directory's objects are.
//!
//! **Promise.** Nothing of the objects is written: no finalizer, no status, no event. What others write into their statuses is
//! not looked at. An object that cannot be read at a start, or all of them while the API server is away, count as they were
//! kept, until the cluster says that they are gone.
//!
//! **Format.** As in [`Directory`](super::super::Directory): `<data>/objects/<kind>/<namespace>/<name>.json`.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::{
    blocking,
    objects::{
        Backend, BackendError, BoxFuture, Change, Event, Key, Leadership, Listing, Object, References, Status,
        directory::record::{Record, Records},
        log_event, manifest,
        shown::shown,
    },
};

/// Changes that wait for the reconciler.
const QUEUE: usize = 1024;

/// A cluster's objects with statuses of this process's own. Dropping it ends the watching.
pub struct Kept {
    inner: Arc<Inner>,
    receiver: Mutex<Option<mpsc::Receiver<Change>>>,
    task: tokio::task::JoinHandle<()>,
}

struct Inner {
    backend: Arc<dyn Backend>,
    records: Records,
    state: Mutex<BTreeMap<Key, Known>>,
    /// One writer at a time for each object: by the hash of its key.
    stripes: [tokio::sync::Mutex<()>; 16],
}

struct Known {
    object: Arc<Object>,
    status: Status,
    /// There is a record of exactly this.
    kept: bool,
}

impl Kept {
    /// Reads the statuses kept under `data`, and begins to take the backend's changes.
    ///
    /// # Errors
    /// [`BackendError::Unreadable`] if the kept statuses cannot be read.
    pub async fn open(backend: Arc<dyn Backend>, data: &Path) -> Result<Self, BackendError> {
        let records = Records::new(data);
        let loading = records.clone();
        let kept = blocking::io(move || loading.load())
            .await
            .map_err(|source| BackendError::Unreadable { place: data.join("objects").display().to_string(), source })?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let changes = backend.changes();
        let stripes = std::array::from_fn(|_| tokio::sync::Mutex::new(()));
        let inner = Arc::new(Inner { backend, records, state: Mutex::default(), stripes });
        let kept: BTreeMap<Key, Record> = kept.into_iter().collect();
        let recalled = inner.recall(&kept);
        if !recalled.is_empty() {
            let _ = sender.send(Change::Recalled(recalled)).await;
        }
        let task = tokio::spawn(Arc::clone(&inner).forward(changes, kept, sender));
        Ok(Self { inner, receiver: Mutex::new(Some(receiver)), task })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, BTreeMap<Key, Known>> {
        // Nothing that holds the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn turn(&self, key: &Key) -> tokio::sync::MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        self.stripes[hasher.finish() as usize % self.stripes.len()].lock().await
    }

    async fn forward(
        self: Arc<Self>,
        mut changes: mpsc::Receiver<Change>,
        mut records: BTreeMap<Key, Record>,
        sender: mpsc::Sender<Change>,
    ) {
        while let Some(change) = changes.recv().await {
            let change = match change {
                Change::Applied(object, _) => {
                    let kept = records.get(&object.key);
                    if kept.is_some_and(|record| record.is_of_cluster() && record.metadata.uid != object.metadata.uid)
                        && sender.send(Change::Deleted(object.key.clone())).await.is_err()
                    {
                        return;
                    }
                    self.applied(object, &mut records)
                }
                Change::Observed(..) => continue,
                Change::Deleted(key) => {
                    self.state().remove(&key);
                    Change::Deleted(key)
                }
                Change::Synced => {
                    for (key, record) in std::mem::take(&mut records) {
                        let change = self.unseen(key, record).await;
                        if sender.send(change).await.is_err() {
                            return;
                        }
                    }
                    Change::Synced
                }
                change @ (Change::Dependency(..) | Change::Recalled(_) | Change::Away) => change,
            };
            if sender.send(change).await.is_err() {
                return;
            }
        }
    }

    /// What the records tell before the cluster does.
    fn recall(&self, records: &BTreeMap<Key, Record>) -> Vec<(Arc<Object>, Status)> {
        let mut state = self.state();
        let mut recalled = Vec::new();
        for (key, record) in records.iter().filter(|(_, record)| record.is_of_cluster()) {
            let Ok(spec) = manifest::typed_spec(key.kind, &record.spec) else { continue };
            let object = Arc::new(record.object(key, spec));
            let known = Known { object: Arc::clone(&object), status: record.status.clone(), kept: true };
            state.insert(key.clone(), known);
            recalled.push((object, record.status.clone()));
        }
        recalled
    }

    fn applied(&self, object: Arc<Object>, records: &mut BTreeMap<Key, Record>) -> Change {
        let key = object.key.clone();
        // One that was made anew under the name begins with nothing.
        let record = records.remove(&key).filter(|record| record.metadata.uid == object.metadata.uid);
        let mut state = self.state();
        let before = state.remove(&key).filter(|known| known.object.metadata.uid == object.metadata.uid);
        let (status, kept) = match (before, record) {
            (Some(known), _) => (known.status, false),
            (None, Some(record)) => {
                let same = record.metadata == object.metadata;
                (record.status, same)
            }
            (None, None) => (Status::default(), false),
        };
        state.insert(key, Known { object: Arc::clone(&object), status: status.clone(), kept });
        Change::Applied(object, Box::new(status))
    }

    /// What becomes of an object that was kept and is not told.
    async fn unseen(&self, key: Key, record: Record) -> Change {
        let gone = |key| {
            self.state().remove(&key);
            Change::Deleted(key)
        };
        let Ok(spec) = manifest::typed_spec(key.kind, &record.spec) else { return gone(key) };
        match self.backend.is_gone(&key).await {
            Ok(true) => return gone(key),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%key, %error, "whether the object is still there is not known; it stays as it was")
            }
        }
        let object = Arc::new(record.object(&key, spec));
        let known = Known { object: Arc::clone(&object), status: record.status.clone(), kept: true };
        self.state().insert(object.key.clone(), known);
        Change::Applied(object, Box::new(record.status))
    }

    async fn keep(&self, key: &Key, status: &Status) -> Result<(), BackendError> {
        let _turn = self.turn(key).await;
        let record = match self.state().get(key) {
            Some(known) if known.kept && known.status == *status => return Ok(()),
            Some(known) => Record::of_cluster(&known.object, status.clone()),
            None => return Ok(()),
        };
        let (records, of) = (self.records.clone(), key.clone());
        let (written, record) = blocking::io(move || (records.write(&of, &record, true), record)).await;
        let mut state = self.state();
        let Some(known) = state.get_mut(key).filter(|k| k.object.metadata.uid == record.metadata.uid) else {
            return Ok(());
        };
        known.kept = written.is_ok() && known.object.metadata == record.metadata;
        // A full disk must not hide its own failure: what says nothing new of the artifact may be told undurably.
        let told = written.is_ok() || record.status.artifact == known.status.artifact;
        if told {
            known.status = record.status;
            if let Err(error) = &written {
                tracing::warn!(%key, %error, "the status is told, but cannot be kept; a restart will not know of it");
            }
            return Ok(());
        }
        written.map_err(|source| BackendError::Status { key: key.clone(), source })
    }

    async fn forget(&self, key: &Key) -> Result<(), BackendError> {
        let _turn = self.turn(key).await;
        // Made anew meanwhile: the record is the new object's.
        let lives = |known: &Known| known.object.metadata.deletion_timestamp.is_none();
        if self.state().get(key).is_some_and(lives) {
            return Ok(());
        }
        let (records, of) = (self.records.clone(), key.clone());
        blocking::io(move || records.remove(&of))
            .await
            .map_err(|source| BackendError::Status { key: key.clone(), source })
    }
}

impl Backend for Kept {
    fn changes(&self) -> mpsc::Receiver<Change> {
        let taken = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A second caller gets a receiver whose sender is gone: no changes, and no panic.
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.backend.leadership()
    }

    fn has_replicas(&self) -> bool {
        self.inner.backend.has_replicas()
    }

    fn references(&self) -> &dyn References {
        self.inner.backend.references()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.backend.close()
    }

    fn forget<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(self.inner.forget(key))
    }

    fn is_gone<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool, BackendError>> {
        self.inner.backend.is_gone(key)
    }

    fn patch_status<'a>(&'a self, key: &'a Key, status: &'a Status) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(self.inner.keep(key, status))
    }

    fn event<'a>(&'a self, object: &'a Object, event: Event) -> BoxFuture<'a, ()> {
        log_event(&object.key, &event);
        Box::pin(std::future::ready(()))
    }

    fn show<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Option<Value>> {
        let shown = self.inner.state().get(key).map(|known| shown(&known.object, &known.status));
        Box::pin(std::future::ready(shown))
    }

    fn list<'a>(&'a self) -> BoxFuture<'a, Listing> {
        Box::pin(async move {
            let errors = self.inner.backend.list().await.errors;
            let state = self.inner.state();
            let write = |known: &Known| serde_json::value::to_raw_value(&shown(&known.object, &known.status));
            // Values of JSON, with text for keys, can always be written.
            Listing { items: state.values().filter_map(|known| write(known).ok()).collect(), errors }
        })
    }
}
