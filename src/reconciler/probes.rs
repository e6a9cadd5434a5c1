//! What the last probe of each route found, kept across restarts, so that a restart asks the network for nothing that it
//! holds (contract section 6): a route whose last probe is younger than its interval waits for the rest of it.
//!
//! The file `objects/probes.json` is a cache. It is written a moment after it changed and at an orderly end, as a whole and
//! without a sync; a lost or unreadable one costs one probe for each route. Routes are told apart by a hash keyed with the
//! data directory's own key, so the file tells nothing about credentials.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{Shared, group::Route};
use crate::{
    blocking,
    digest::Digest,
    oci::Tag,
    pull::{Target, grants::Grants},
};

/// From a change to its writing, for a few routes; many take longer, since each writing takes them all.
const WRITE_AFTER: Duration = Duration::from_millis(500);
/// Longer for each route.
const PER_ROUTE: Duration = Duration::from_millis(5);
/// At most this.
const WRITE_BY: Duration = Duration::from_secs(10);

/// The kept probes.
pub struct Probes {
    path: PathBuf,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    /// As read at the start; taken out by the groups that come to be.
    kept: HashMap<String, Found>,
    /// Of this run.
    found: HashMap<String, Found>,
    dirty: bool,
}

/// What a probe found.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Found {
    /// When it was sent, seconds since 1970.
    at: u64,
    /// The tag that was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag: Option<Tag>,
    /// Where it led.
    digest: Digest,
}

impl Probes {
    /// Those kept beneath the data directory `root`.
    pub fn load(root: &Path) -> Self {
        let path = root.join("objects/probes.json");
        let kept = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "what was probed before cannot be read; everything is probed again");
                HashMap::new()
            }),
            Err(_) => HashMap::new(),
        };
        Self { path, inner: Mutex::new(Inner { kept, ..Inner::default() }), changed: Notify::new() }
    }

    /// What the process before this one found for `route`, and how long ago; once.
    pub fn take(&self, grants: &Grants, route: &Route) -> Option<(Target, Duration)> {
        let key = hex::encode(grants.fingerprint(route));
        let mut inner = self.lock();
        let found = inner.kept.remove(&key)?;
        let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(found.at)).ok()?;
        inner.found.insert(key, found.clone());
        Some((Target::known(found.tag, found.digest), age))
    }

    /// Notes what a probe of `route` has just found; `None` for a failure, after which a restart probes at once.
    pub fn note(&self, grants: &Grants, route: &Route, target: Option<&Target>) {
        let key = hex::encode(grants.fingerprint(route));
        let mut inner = self.lock();
        match target {
            Some(target) => {
                let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                inner.found.insert(key, Found { at, tag: target.tag.clone(), digest: target.digest });
            }
            None => drop(inner.found.remove(&key)),
        }
        inner.dirty = true;
        drop(inner);
        self.changed.notify_one();
    }

    /// Returns when it is time to [`Probes::write`].
    async fn due(&self) {
        self.changed.notified().await;
        let routes = u32::try_from(self.lock().found.len()).unwrap_or(u32::MAX);
        tokio::time::sleep((WRITE_AFTER + PER_ROUTE.saturating_mul(routes)).min(WRITE_BY)).await;
    }

    /// Writes what has changed. Blocks on the disk.
    fn write(&self) -> io::Result<()> {
        let bytes = {
            let mut inner = self.lock();
            if !std::mem::take(&mut inner.dirty) {
                return Ok(());
            }
            serde_json::to_vec(&inner.found).map_err(io::Error::other)?
        };
        let temporary = self.path.with_extension("json.new");
        // As all files of Larder's: for nobody else.
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&bytes)?;
        fs::rename(&temporary, &self.path)
    }

    /// Forgets a route that no object names any more.
    pub fn forget(&self, grants: &Grants, route: &Route) {
        let mut inner = self.lock();
        inner.dirty |= inner.found.remove(&hex::encode(grants.fingerprint(route))).is_some();
        drop(inner);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what has changed, a moment after it did, until it is aborted.
pub async fn keep(shared: Arc<Shared>) {
    loop {
        shared.probes.due().await;
        write(&shared).await;
    }
}

/// Writes what has changed.
pub async fn write(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    if let Err(error) = blocking::io(move || shared.probes.write()).await {
        tracing::warn!(%error, "cannot keep what was probed; a restart now probes everything again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pull::{Wanted, Way},
        registry::{Credentials, Endpoint, Transport},
    };

    fn route(repository: &str) -> Route {
        let endpoint = Endpoint {
            registry: "registry.example".parse().unwrap(),
            transport: Transport::default(),
            credentials: Credentials::default(),
        };
        let way = Arc::new(Way { endpoint, repository: repository.parse().unwrap() });
        Route { way, wanted: Wanted::Tag("v1".parse().unwrap()) }
    }

    #[test]
    fn a_success_is_kept_and_a_failure_or_a_forgotten_route_is_not() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("objects")).unwrap();
        let grants = Grants::open(root.path()).unwrap();
        let probes = Probes::load(root.path());
        let target = Target::known(Some("v1".parse().unwrap()), Digest::sha256(b"1"));
        for name in ["a", "b", "c"] {
            probes.note(&grants, &route(name), Some(&target));
        }
        probes.note(&grants, &route("b"), None);
        probes.forget(&grants, &route("c"));
        probes.write().unwrap();

        let probes = Probes::load(root.path());
        let (found, age) = probes.take(&grants, &route("a")).unwrap();
        assert_eq!((found.tag, found.digest), (target.tag, target.digest));
        assert!(age < Duration::from_secs(60), "{age:?}");
        assert!(probes.take(&grants, &route("a")).is_none(), "a second group probes for itself");
        assert!(probes.take(&grants, &route("b")).is_none());
        assert!(probes.take(&grants, &route("c")).is_none());
    }

    #[test]
    fn a_file_that_cannot_be_read_and_a_time_to_come_count_as_nothing() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("objects")).unwrap();
        let grants = Grants::open(root.path()).unwrap();
        let path = root.path().join("objects/probes.json");
        fs::write(&path, "{").unwrap();
        assert!(Probes::load(root.path()).take(&grants, &route("a")).is_none());
        let key = hex::encode(grants.fingerprint(&route("a")));
        let digest = Digest::sha256(b"1");
        fs::write(&path, format!(r#"{{"{key}":{{"at":99999999999,"digest":"{digest}"}}}}"#)).unwrap();
        assert!(Probes::load(root.path()).take(&grants, &route("a")).is_none());
    }
}
