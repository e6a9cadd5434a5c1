//! How long superseded artifacts stay: at least [`super::Config::retention`], and at least the newest
//! [`super::Config::retention_records`] of each object, so that whoever read a status a moment ago still finds its URL.
//! Their unpacked contents have no URL: they stay for the first of these two only.
//!
//! What is superseded is not written down: after a restart the trees on disk tell, and their time begins anew. Those that
//! are nobody's by then go ([`clear`]).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Entry, Shared};
use crate::{
    blocking,
    digest::{Algorithm, Digest},
    objects::{Artifact, Key, Kind, Status},
};

/// How often superseded artifacts are looked through.
const SWEEP: Duration = Duration::from_secs(5);

/// The superseded artifacts of one object, oldest first.
#[derive(Debug, Default)]
pub struct Retained(Vec<Superseded>);

#[derive(Debug, Clone)]
struct Superseded {
    path: String,
    digest: Digest,
    since: Instant,
    /// Its tree is gone; the artifact is kept as one of the records.
    without_tree: bool,
}

impl Retained {
    /// After a start: what lies beside the current artifact's tree.
    pub async fn found(shared: &Arc<Shared>, key: &Key, current: &Digest) -> Self {
        // Of a chart's path the version is not known any more.
        if key.kind == Kind::HelmChart {
            return Self::default();
        }
        let (store, asked, current) = (shared.puller.store().clone(), key.clone(), *current);
        let others = blocking::io(move || {
            let mut others = Vec::new();
            for hex in store.trees(&asked.namespace, &asked.name)? {
                let digest = hex::decode(&hex).ok().and_then(|b| Digest::from_bytes(Algorithm::Sha256, &b));
                if let Some(digest) = digest.filter(|d| *d != current)
                    && store.has(&digest)?
                {
                    others.push(digest);
                }
            }
            Ok::<_, crate::store::StoreError>(others)
        });
        let others = others.await.unwrap_or_else(|error| {
            tracing::warn!(%key, %error, "cannot list the superseded artifacts");
            Vec::new()
        });
        let since = Instant::now();
        let superseded = others.into_iter().map(|digest| Superseded {
            path: format!("{}/{}/{}/{}.tar.gz", key.kind.lower(), key.namespace, key.name, digest.hex()),
            digest,
            since,
            without_tree: false,
        });
        let retained = Self(superseded.collect());
        for old in &retained.0 {
            shared.published.insert(&old.path, old.digest);
        }
        retained
    }

    /// The digests kept.
    pub fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        self.0.iter().map(|s| s.digest)
    }

    /// `before` gave way to `after`.
    pub fn supersede(&mut self, before: Option<&Artifact>, after: Option<&Artifact>) {
        if let Some(after) = after {
            self.0.retain(|s| s.path != after.path);
        }
        if let Some(before) = before
            && after.is_none_or(|after| after.path != before.path)
        {
            self.hold(before);
        }
    }

    /// Keeps an artifact as if it had been current until now.
    pub fn hold(&mut self, artifact: &Artifact) {
        self.0.retain(|s| s.path != artifact.path);
        let (path, digest) = (artifact.path.clone(), artifact.digest);
        self.0.push(Superseded { path, digest, since: Instant::now(), without_tree: false });
    }

    /// Takes out what has been kept long enough.
    fn expire(&mut self, keep: Duration, records: usize) -> Vec<Superseded> {
        // The current artifact is one of the records.
        let excess = self.0.len().saturating_sub(records.saturating_sub(1));
        let expired = self.0[..excess].iter().take_while(|s| s.since.elapsed() >= keep).count();
        self.0.drain(..expired).collect()
    }

    /// What has been kept long enough for its tree to go, told once.
    fn bare(&mut self, keep: Duration) -> Vec<Superseded> {
        let old = self.0.iter_mut().filter(|s| !s.without_tree && s.since.elapsed() >= keep);
        old.map(|s| {
            s.without_tree = true;
            s.clone()
        })
        .collect()
    }
}

/// Takes superseded artifacts away as their time comes, until it is aborted.
pub async fn sweep(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        if shared.is_recalled() {
            // What seems superseded may be what the status names by now.
            continue;
        }
        let (mut expired, mut bare) = (Vec::new(), Vec::new());
        {
            let (keep, records) = (shared.config.retention, shared.config.retention_records);
            let mut state = shared.lock();
            for entry in state.objects.values_mut() {
                let with_key = |s| (entry.object.key.clone(), s);
                expired.extend(entry.retained.expire(keep, records).into_iter().map(with_key));
                bare.extend(entry.retained.bare(keep).into_iter().map(with_key));
            }
        }
        for (key, old) in expired {
            take_away(&shared, &key, &old.path, old.digest).await;
        }
        for (key, old) in bare {
            retire_tree(&shared, &key, old.digest).await;
        }
    }
}

/// After a start: takes the trees away that no status names, and that are not kept beside one; those of objects that went
/// while nobody looked, of a superseded chart, of an artifact that is not held. It is to be known what there is, and no
/// pass may be under way: it could be about to name one.
pub async fn clear(shared: &Arc<Shared>) {
    let store = shared.puller.store().clone();
    let found = blocking::io(move || {
        let mut found = Vec::new();
        for (namespace, name) in store.tree_folders()? {
            let digest = |hex: &String| Digest::from_bytes(Algorithm::Sha256, &hex::decode(hex).ok()?);
            found.extend(store.trees(&namespace, &name)?.iter().filter_map(digest).map(|digest| {
                // Which of the kinds that share the folder had it, nothing tells.
                (Key::new(Kind::OCIRepository, &namespace, &name), digest)
            }));
        }
        Ok::<_, crate::store::StoreError>(found)
    });
    match found.await {
        Ok(found) => {
            for (key, digest) in found {
                retire_tree(shared, &key, digest).await;
            }
        }
        Err(error) => tracing::warn!(%error, "cannot look for trees that are nobody's"),
    }
}

/// Takes everything of a deleted object away, at once.
pub async fn drop_all(shared: &Arc<Shared>, key: &Key, status: &Status, retained: Retained) {
    let current = status.artifact.iter().map(|a| (a.path.clone(), a.digest));
    for (path, digest) in current.chain(retained.0.into_iter().map(|s| (s.path, s.digest))) {
        take_away(shared, key, &path, digest).await;
    }
}

impl Entry {
    /// Whether a path is its current artifact's, or of one that is kept.
    fn names(&self, path: &str) -> bool {
        self.status.artifact.as_ref().is_some_and(|a| a.path == path) || self.retained.0.iter().any(|s| s.path == path)
    }
}

/// Takes an artifact of an object away, unless its status names it, or it is still kept beside that.
pub async fn take_away(shared: &Arc<Shared>, key: &Key, path: &str, digest: Digest) {
    {
        let state = shared.lock();
        if state.objects.get(key).is_none_or(|e| !e.names(path)) {
            shared.published.remove(path);
        }
    }
    retire_tree(shared, key, digest).await;
}

/// An artifact on its way into a status: its tree is nobody's to take away meanwhile.
pub struct Making {
    shared: Arc<Shared>,
    of: (Key, Digest),
}

impl Making {
    pub fn new(shared: &Arc<Shared>, key: &Key, digest: Digest) -> Self {
        let of = (key.clone(), digest);
        *shared.lock().making.entry(of.clone()).or_insert(0) += 1;
        Self { shared: Arc::clone(shared), of }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(count) = state.making.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                state.making.remove(&self.of);
            }
        }
    }
}

/// Takes a version's tree away. Objects of different kinds with one name share the folder: it stays as long as another
/// of them has it.
async fn retire_tree(shared: &Arc<Shared>, key: &Key, digest: Digest) {
    let named = {
        let state = shared.lock();
        let shares = |k: &Key| (&k.namespace, &k.name) == (&key.namespace, &key.name);
        state.making.keys().any(|(k, made)| shares(k) && *made == digest)
            || state.objects.values().any(|e| {
                shares(&e.object.key)
                    && (e.status.artifact.as_ref().is_some_and(|a| a.digest == digest)
                        || e.retained.0.iter().any(|s| s.digest == digest && !s.without_tree))
            })
    };
    if named {
        return;
    }
    let (store, of) = (shared.puller.store().clone(), key.clone());
    let gone = blocking::io(move || store.retire_tree(&of.namespace, &of.name, &digest.hex())).await;
    if let Err(error) = gone {
        tracing::warn!(%key, %digest, %error, "cannot take a superseded tree away");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(n: u8) -> Artifact {
        Artifact {
            digest: Digest::sha256(&[n]),
            path: format!("ocirepository/default/a/{n}.tar.gz"),
            url: String::new(),
            revision: String::new(),
            last_update_time: String::new(),
            size: 0,
            metadata: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn the_newest_two_stay_and_the_rest_goes_once_old_enough() {
        let mut retained = Retained::default();
        let [a, b, c, d] = [1, 2, 3, 4].map(artifact);
        for (before, after) in [(None, &a), (Some(&a), &b), (Some(&b), &c), (Some(&c), &d)] {
            retained.supersede(before, Some(after));
        }
        assert!(retained.expire(Duration::from_secs(60), 2).is_empty(), "too young");
        let gone = retained.expire(Duration::ZERO, 2);
        assert_eq!(gone.iter().map(|s| &s.path).collect::<Vec<_>>(), [&a.path, &b.path]);
        assert_eq!(retained.digests().collect::<Vec<_>>(), [c.digest]);
    }

    #[test]
    fn a_tree_goes_with_its_time_and_is_told_once() {
        let mut retained = Retained::default();
        let [a, b] = [1, 2].map(artifact);
        retained.supersede(Some(&a), Some(&b));
        assert!(retained.bare(Duration::from_secs(60)).is_empty(), "too young");
        assert_eq!(retained.bare(Duration::ZERO).iter().map(|s| s.digest).collect::<Vec<_>>(), [a.digest]);
        assert!(retained.bare(Duration::ZERO).is_empty());
        assert_eq!(retained.digests().collect::<Vec<_>>(), [a.digest], "its URL stays");
    }

    #[test]
    fn what_becomes_current_again_is_not_superseded() {
        let mut retained = Retained::default();
        let [a, b] = [1, 2].map(artifact);
        retained.supersede(Some(&a), Some(&b));
        retained.supersede(Some(&b), Some(&a));
        assert_eq!(retained.digests().collect::<Vec<_>>(), [b.digest]);
    }
}
