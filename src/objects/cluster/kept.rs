//! What was published, on this disk, for a start while the API server is away.
//!
//! **Promise.** Every source that is known has a record of how it was last seen or written, a moment later. The records are
//! told at a start before anything else is known, so that what they name is served at once; then the cluster's lists put
//! right what is not so any more. They are never the truth: without them a start waits for the API server.
//!
//! **Format.** As in [`Directory`](super::super::Directory): `<data>/objects/<kind>/<namespace>/<name>.json`, without a file.
//!
//! **After a crash** a record may be older than the status. What was published since then lies beside it as a tree, and is
//! found by that. Only a change of an artifact is made durable: what else a power cut takes is seen again.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, watch};

use super::{Inner, known::Known};
use crate::{
    blocking,
    digest::Digest,
    objects::{
        Key, Kind,
        directory::record::{Record, Records},
        manifest,
    },
};

/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(200);
/// How soon what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Writes records.
pub struct Keeper {
    records: Records,
    changed: Mutex<BTreeSet<Key>>,
    wake: Notify,
    /// The artifact that each record names.
    named: Mutex<HashMap<Key, Option<Digest>>>,
}

impl Keeper {
    /// The records under `data`, and what they say of objects of these kinds.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open(data: &Path, kinds: &[Kind]) -> io::Result<(Self, Vec<Known>)> {
        let records = Records::new(data);
        let (mut recalled, mut stale, mut named) = (Vec::new(), BTreeSet::new(), HashMap::new());
        for (key, record) in records.load()?.into_iter().filter(|(_, record)| record.is_of_cluster()) {
            let spec = manifest::typed_spec(key.kind, &record.spec);
            match spec.ok().filter(|_| kinds.contains(&key.kind) && is_kept(key.kind)) {
                Some(spec) => {
                    named.insert(key.clone(), record.status.artifact.as_ref().map(|a| a.digest));
                    let object = Arc::new(record.object(&key, spec));
                    recalled.push(Known { object, status: record.status, version: String::new() });
                }
                None => _ = stale.insert(key),
            }
        }
        let keeper = Self { records, changed: Mutex::new(stale), wake: Notify::new(), named: Mutex::new(named) };
        Ok((keeper, recalled))
    }

    /// An object, its status, or its absence is new.
    pub fn note(&self, key: &Key) {
        if is_kept(key.kind) {
            self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
            self.wake.notify_one();
        }
    }

    fn take(&self) -> BTreeSet<Key> {
        std::mem::take(&mut self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes what changed; what could not be written stays changed.
    fn write(&self, changes: Vec<(Key, Option<Record>)>) -> io::Result<()> {
        let (mut failed, mut is_new) = (None, false);
        for (key, record) in changes {
            let names = record.as_ref().map(|record| record.status.artifact.as_ref().map(|a| a.digest));
            let written = match &record {
                Some(record) => self.records.write(&key, record, false),
                None => self.records.remove(&key),
            };
            if let Err(error) = written {
                failed = Some(error);
                self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
                continue;
            }
            let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
            match names {
                Some(names) => is_new |= named.insert(key, names) != Some(names) && names.is_some(),
                None => _ = named.remove(&key),
            }
        }
        if is_new {
            self.records.sync()?;
        }
        failed.map_or(Ok(()), Err)
    }
}

/// A Kustomization has no artifact, and its inventory may be long.
fn is_kept(kind: Kind) -> bool {
    kind != Kind::Kustomization
}

/// Keeps records of what changes, until it is told to stop; everything is written then.
pub async fn keep(inner: Arc<Inner>, keeper: Arc<Keeper>, mut stop: watch::Receiver<bool>) {
    let mut failing = false;
    loop {
        let stopped = tokio::select! {
            () = keeper.wake.notified() => false,
            _ = stop.wait_for(|stop| *stop) => true,
        };
        if !stopped {
            tokio::time::sleep(GATHER).await;
        }
        let keys = keeper.take();
        let changes: Vec<(Key, Option<Record>)> = {
            let state = inner.state();
            let record = |known: &Known| Record::of_cluster(&known.object, known.status.clone());
            keys.into_iter().map(|key| (key.clone(), state.objects.get(&key).map(record))).collect()
        };
        let writing = Arc::clone(&keeper);
        match blocking::io(move || writing.write(changes)).await {
            Ok(()) => failing = false,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "what is published cannot be kept for a start without the API server; it is tried again");
                }
                if !stopped {
                    tokio::time::sleep(RETRY).await;
                    keeper.wake.notify_one();
                }
            }
        }
        if stopped {
            return;
        }
    }
}
