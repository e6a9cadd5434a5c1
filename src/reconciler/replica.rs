//! Replicas: one leads and writes, all serve.
//!
//! A replica that follows reconciles nothing. It takes each artifact that a status names from the leader, or makes it from
//! the registry as the leader did: artifacts are content-addressed, so it is the same one or none. What it has not got yet is
//! answered with 503, and fetched. It is ready once everything that the statuses named at its start is here or was tried for.

use std::{sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::Instant};

use super::{Entry, Shared, desired, kustomization, lanes::Work, source};
use crate::{
    blocking,
    class::chain,
    digest::Digest,
    objects::{Artifact, Key, Leadership, Status},
    pull::Target,
    registry::Budget,
};

/// How many artifacts are taken from another replica at once.
const AT_ONCE: usize = 8;
/// How long it may take until it is known who leads.
const ELECTION: Duration = Duration::from_secs(20);
/// How long a start may wait for artifacts before it counts as ready all the same.
const FILL: Duration = Duration::from_secs(60);

/// Goes along with who leads, until the shutdown.
pub async fn turned(shared: &Arc<Shared>, leadership: &Leadership) {
    let keys: Vec<Key> = shared.lock().objects.keys().cloned().collect();
    match leadership {
        Leadership::Leading => {
            for key in keys {
                shared.settle(&key).await;
            }
        }
        Leadership::Following(_) | Leadership::Leaderless => {
            if let Some(applier) = &shared.config.applier {
                applier.forget_all();
            }
            for key in &keys {
                shared.withdraw(key);
                if let Some(entry) = shared.lock().objects.get_mut(key) {
                    // It ends after its pass, which writes nothing any more.
                    entry.task = None;
                }
            }
        }
    }
}

/// Takes over a status that the leader wrote.
pub async fn observed(shared: &Arc<Shared>, key: &Key, status: Status) {
    if shared.is_leading() {
        // Of what is reconciled here it is an echo, or somebody else's: what is right is written with the next pass.
        kustomization::observe_anothers(shared, key, &status);
        return;
    }
    let artifact = {
        let mut state = shared.lock();
        let Some(entry) = state.objects.get_mut(key) else { return };
        let before = std::mem::replace(&mut entry.status, status);
        let artifact = entry.status.artifact.clone().filter(Artifact::is_larders);
        let was = before.artifact.filter(Artifact::is_larders);
        entry.retained.supersede(was.as_ref(), artifact.as_ref());
        artifact
    };
    let Some(artifact) = artifact else { return };
    shared.published.insert(&artifact.path, artifact.digest);
    shared.published.set_latest(&artifact.path);
    if *shared.synced.borrow() {
        let (shared, key) = (Arc::clone(shared), key.clone());
        tokio::spawn(async move { bring(&shared, &key).await });
    }
}

/// Whether everything is here that statuses name; then this replica is ready, as nobody has to be asked for anything.
pub async fn has_all(shared: &Arc<Shared>) -> bool {
    let all = missing(shared).await.is_empty();
    if all {
        shared.filled.send_replace(true);
    }
    all
}

/// Brings everything here that statuses name, and then says that this replica is ready.
pub async fn fill(shared: Arc<Shared>) {
    let began = Instant::now();
    if has_all(&shared).await {
        return;
    }
    let mut leadership = shared.leadership.clone();
    let known = |l: &Leadership| *l != Leadership::Leaderless;
    let _ = tokio::time::timeout(ELECTION, leadership.wait_for(known)).await;
    let keys = missing(&shared).await;
    let filling = async {
        let mut under_way = JoinSet::new();
        for key in keys {
            while under_way.len() >= AT_ONCE {
                under_way.join_next().await;
            }
            let shared = Arc::clone(&shared);
            under_way.spawn(async move { bring(&shared, &key).await });
        }
        while under_way.join_next().await.is_some() {}
    };
    if tokio::time::timeout(FILL.saturating_sub(began.elapsed()), filling).await.is_err() {
        tracing::warn!("some artifacts are not here yet; they are fetched when they are asked for");
    }
    shared.filled.send_replace(true);
}

/// The objects whose statuses name an artifact that is not here.
async fn missing(shared: &Arc<Shared>) -> Vec<Key> {
    let named: Vec<(Key, Digest)> = {
        let state = shared.lock();
        let artifact = |e: &Entry| e.status.artifact.as_ref().filter(|a| a.is_larders()).map(|a| a.digest);
        state.objects.iter().filter_map(|(key, entry)| Some((key.clone(), artifact(entry)?))).collect()
    };
    let store = shared.puller.store().clone();
    blocking::io(move || {
        let is_missing = |(_, digest): &(Key, Digest)| !store.has(digest).unwrap_or(false);
        named.into_iter().filter(is_missing).map(|(key, _)| key).collect()
    })
    .await
}

/// Brings the artifact here that an object's status names, unless it is.
pub async fn bring(shared: &Arc<Shared>, key: &Key) {
    let Some(artifact) = shared.lock().objects.get(key).and_then(|e| e.status.artifact.clone()) else { return };
    if !artifact.is_larders() {
        return;
    }
    let (store, digest) = (shared.puller.store().clone(), artifact.digest);
    if blocking::io(move || store.has(&digest)).await.unwrap_or(false) {
        return;
    }
    let leader = match &*shared.leadership.borrow() {
        Leadership::Following(leader) => leader.clone(),
        Leadership::Leading | Leadership::Leaderless => None,
    };
    if let Some(leader) = leader {
        let _lease = shared.puller.store().lease(digest);
        match shared.puller.copy_from_replica(&leader, &artifact.path, digest, artifact.size).await {
            Ok(()) => return tracing::debug!(%key, %digest, leader, "took an artifact from the leader"),
            Err(error) => {
                tracing::info!(%key, %digest, leader, error = chain(&error), "the leader does not give the artifact; it is made from the registry");
            }
        }
    }
    if let Err(error) = Box::pin(make(shared, key, &artifact)).await {
        tracing::warn!(%key, %digest, error, "an artifact that the status names is not here yet");
    }
}

/// Makes an artifact from the registry, as whoever wrote the status did.
async fn make(shared: &Arc<Shared>, key: &Key, artifact: &Artifact) -> Result<(), String> {
    let (object, status) = {
        let state = shared.lock();
        let entry = state.objects.get(key).ok_or("the object is gone")?;
        (Arc::clone(&entry.object), entry.status.clone())
    };
    let desired = desired::read(shared, &object).await.map_err(|refused| refused.message)?;
    let desired = desired.ok_or("there is nothing to fetch for it")?;
    // A chart's revision is its version alone.
    let revision = status.observed_source_artifact_revision.as_deref().unwrap_or(&artifact.revision);
    let (tag, digest) = match revision.rsplit_once('@') {
        Some((tag, digest)) => (tag.parse().ok(), digest),
        None => (None, revision),
    };
    let digest = digest.parse().map_err(|_| format!("the revision {revision:?} names no digest"))?;
    let budget = Budget::until((Instant::now() + desired.timeout).into_std());
    let mut place = shared.lanes(&desired.route.way.endpoint.registry).enter(false).await;
    let target = Target::known(tag, digest);
    let made = place.hold(Work::Pull, Box::pin(source::obtain(shared, &desired, &target, budget))).await;
    let made = made.map_err(|f| f.message.clone())?;
    if made.digest() != artifact.digest {
        return Err(format!("what the registry has makes another one now: {}", made.digest()));
    }
    Ok(())
}
