//! Notices that a directory may have changed: by inotify, and by the clock where inotify sees nothing.
//!
//! A burst of events is one change, and too many changes are told rather than one too few: whoever is told looks himself.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher, event::AccessKind, event::AccessMode};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use crate::blocking;

/// How often the files' stamps are looked at, whatever inotify says: 1,000 files take about 2 ms.
const POLL: Duration = Duration::from_secs(10);

/// How long nothing must happen before files are read: an editor or `kubectl cp` writes in several steps.
const QUIET: Duration = Duration::from_millis(75);

/// How long a burst may put off reading.
const LONGEST_BURST: Duration = Duration::from_secs(1);

/// A watch on what lies at a path. Dropping it ends the watching.
pub(super) struct Watch {
    path: PathBuf,
    signal: Arc<Notify>,
    inotify: Inotify,
}

impl Watch {
    pub(super) async fn start(path: &Path) -> Self {
        let (path, signal) = (path.to_owned(), Arc::new(Notify::new()));
        let inotify = Inotify::start(path.clone(), signal.clone()).await;
        Self { path, signal, inotify }
    }

    /// Returns when a burst of events has ended or was long enough, or after [`POLL`].
    pub(super) async fn changed(&self) {
        if timeout(POLL, self.signal.notified()).await.is_err() {
            return;
        }
        let begun = Instant::now();
        while begun.elapsed() < LONGEST_BURST && timeout(QUIET, self.signal.notified()).await.is_ok() {}
    }

    /// Watches what lies at the path now, if it is another directory than before or could not be watched.
    pub(super) async fn renew(&mut self) {
        let path = self.path.clone();
        if self.inotify.watcher.is_none() || self.inotify.identity != blocking::io(move || identity(&path)).await {
            self.inotify = Inotify::start(self.path.clone(), self.signal.clone()).await;
        }
    }
}

/// Watches one directory, which may have been replaced by another of the same name since.
struct Inotify {
    identity: Option<(u64, u64)>,
    watcher: Option<RecommendedWatcher>,
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

impl Inotify {
    async fn start(path: PathBuf, signal: Arc<Notify>) -> Self {
        blocking::io(move || Self::start_blocking(&path, signal)).await
    }

    fn start_blocking(path: &Path, signal: Arc<Notify>) -> Self {
        let identity = identity(path);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading makes events too.
            let ours = matches!(&event, Ok(e) if matches!(e.kind, EventKind::Access(a)
                if a != AccessKind::Close(AccessMode::Write)));
            if !ours {
                signal.notify_one();
            }
        })
        .and_then(|mut watcher| watcher.watch(path, RecursiveMode::NonRecursive).map(|()| watcher));
        let watcher = watcher
            .inspect_err(|error| {
                tracing::warn!(path = %path.display(), %error, seconds = POLL.as_secs(),
                    "the directory cannot be watched; it is looked at at intervals");
            })
            .ok();
        Self { identity, watcher }
    }
}
