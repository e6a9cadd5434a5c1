//! What the artifact listener may serve: the paths that a status names or named until a moment ago.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::digest::Digest;

/// The published paths; clones share them. Nothing else can be reached through the artifact listener.
#[derive(Clone, Default)]
pub struct Published(Arc<Inner>);

#[derive(Default)]
struct Inner {
    maps: RwLock<Maps>,
    missed: Mutex<Option<UnboundedSender<String>>>,
    partial: AtomicBool,
}

#[derive(Default)]
struct Maps {
    /// `<kind>/<namespace>/<name>/<file>` → the blob.
    artifacts: HashMap<String, Digest>,
    /// `<kind>/<namespace>/<name>` → the current path.
    latest: HashMap<String, String>,
}

impl Published {
    /// From now on every path whose blob turns out not to be held is told here, for somebody to bring it back.
    pub fn missed(&self) -> UnboundedReceiver<String> {
        let (send, receive) = unbounded_channel();
        *self.0.missed.lock().unwrap_or_else(PoisonError::into_inner) = Some(send);
        receive
    }

    /// A client asked for `path`, and its blob is not held.
    pub fn miss(&self, path: &str) {
        if let Some(missed) = &*self.0.missed.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = missed.send(path.to_string());
        }
    }

    /// Says whether statuses may name more than is published here.
    pub fn set_partial(&self, partial: bool) {
        self.0.partial.store(partial, Ordering::Release);
    }

    /// Whether a path that is not published may be one that a status names.
    pub fn is_partial(&self) -> bool {
        self.0.partial.load(Ordering::Acquire)
    }

    /// Makes `path` fetchable.
    pub fn insert(&self, path: &str, digest: Digest) {
        self.write().artifacts.insert(path.to_string(), digest);
    }

    /// Makes `path` the newest of its object: `latest.tar.gz` leads there.
    pub fn set_latest(&self, path: &str) {
        if let Some((directory, _)) = path.rsplit_once('/') {
            self.write().latest.insert(directory.to_string(), path.to_string());
        }
    }

    /// Takes `path` away.
    pub fn remove(&self, path: &str) {
        let mut maps = self.write();
        maps.artifacts.remove(path);
        if let Some((directory, _)) = path.rsplit_once('/')
            && maps.latest.get(directory).is_some_and(|p| p == path)
        {
            maps.latest.remove(directory);
        }
    }

    /// The blob behind a path (no leading slash).
    pub fn get(&self, path: &str) -> Option<Digest> {
        self.0.maps.read().unwrap_or_else(PoisonError::into_inner).artifacts.get(path).copied()
    }

    /// The newest path of `<kind>/<namespace>/<name>`.
    pub fn latest(&self, directory: &str) -> Option<String> {
        self.0.maps.read().unwrap_or_else(PoisonError::into_inner).latest.get(directory).cloned()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Maps> {
        self.0.maps.write().unwrap_or_else(PoisonError::into_inner)
    }
}
