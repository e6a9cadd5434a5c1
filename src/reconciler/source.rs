//! One pass over the members of a group: from what the probe found to a served artifact and a status that says so.
//!
//! Conditions and reasons are Flux's (flux.md section 1.4). A failure never takes an artifact away: it stays in the status and is
//! served, and the message says so; of one that was lost it says that.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{task::JoinSet, time::Instant};

use super::{
    Shared,
    desired::Desired,
    failure::Failure,
    group::{Outcome, Route},
    helm, kustomization,
    retention::{self, Making},
    verdict,
    verification::{self, Signatures},
};
use crate::{
    artifact::{
        build::{self, ArtifactError, Built, Ignoring},
        choose::{self, Choice, Chosen},
    },
    blocking,
    class::{Class, chain},
    digest::Digest,
    metrics,
    objects::{
        Artifact, Event, Key, Object, Status,
        condition::{ConditionStatus, Conditions, kinds, rfc3339},
    },
    pull::{PullError, PulledManifest, Target, Way},
    registry::Budget,
    store::{Lease, StoreError},
};

/// How many members of one group are worked on at once, when the work is more than a glance.
const AT_ONCE: usize = 4;

/// What two members must have in common to share a built artifact.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BuildKey {
    way: Arc<Way>,
    digest: Digest,
    choice: Choice,
    ignore: Option<String>,
    /// As a chart, and with which values.
    chart: Option<Option<helm::Values>>,
}

/// An artifact with what it was made from.
pub struct Obtained {
    built: Built,
    manifest: PulledManifest,
    chart: Option<helm::Chart>,
    /// Keeps the layers and the artifact from collection until a status names what was made of them.
    _leases: Vec<Lease>,
}

impl Obtained {
    /// The artifact's digest.
    pub fn digest(&self) -> Digest {
        self.built.digest()
    }
}

/// Passes over `members`, each with the request that this answers; the failure that decides when to come back, if there was one.
pub async fn pass_over(
    shared: &Arc<Shared>,
    route: &Route,
    members: Vec<(Key, Option<String>)>,
    outcome: &Outcome,
    budget: Budget,
    started: Instant,
) -> Option<Box<Failure>> {
    let mut worst: Option<Box<Failure>> = None;
    // What is tried again soonest decides.
    let rank = |f: &Failure| (f.class.retry() == crate::class::Retry::Backoff, f.is_verification());
    let mut note = |failure: Option<Failure>| {
        if let Some(failure) = failure
            && worst.as_ref().is_none_or(|w| rank(&failure) >= rank(w))
        {
            worst = Some(Box::new(failure));
        }
    };
    let signatures = Arc::new(Signatures::default());
    let mut working = JoinSet::new();
    for (key, token) in members {
        let (shared, route, outcome) = (Arc::clone(shared), route.clone(), outcome.clone());
        let signatures = Arc::clone(&signatures);
        while working.len() >= AT_ONCE {
            note(working.join_next().await.and_then(|joined| joined.unwrap_or_else(resume)));
        }
        working.spawn(async move { pass(&shared, &route, (&key, token), outcome, &signatures, budget, started).await });
    }
    while let Some(joined) = working.join_next().await {
        note(joined.unwrap_or_else(resume));
    }
    worst
}

/// A panic in a pass goes on here; passes are never cancelled.
fn resume<T>(error: tokio::task::JoinError) -> T {
    std::panic::resume_unwind(error.into_panic())
}

async fn pass(
    shared: &Arc<Shared>,
    route: &Route,
    (key, token): (&Key, Option<String>),
    outcome: Outcome,
    signatures: &Signatures,
    budget: Budget,
    started: Instant,
) -> Option<Failure> {
    let (object, desired, before) = {
        let state = shared.lock();
        let entry = state.objects.get(key)?;
        let desired = entry.desired.clone().filter(|d| d.route == *route)?;
        (Arc::clone(&entry.object), desired, entry.status.clone())
    };
    if !claim(shared, &object).await {
        return None;
    }
    let mut status = before.clone();
    let mut warning = None;
    let mut made = None;
    if desired.policy.is_none() {
        status.conditions.delete(kinds::SOURCE_VERIFIED);
    }
    let result = match &outcome {
        Err(error) => Err(Failure::pulling(error, &route.wanted, desired.chart.is_some())),
        Ok(target) => {
            let bringing = async {
                let budget =
                    Box::pin(verification::verify(shared, &object, &desired, target, &mut status, signatures, budget))
                        .await?;
                Box::pin(bring(shared, &object, &desired, target, &mut status, budget)).await
            };
            telling(shared, &object, &before, bringing).await.map(|brought| {
                warning = brought.as_ref().and_then(|made| made.obtained.manifest.warning.clone());
                made = brought;
            })
        }
    };
    // Another replica, or a start before this one, may have had another address.
    status.readdress(&shared.config.advertise);
    let now = Timestamp::now();
    let remains = if result.is_err() { verdict::remains(shared, &status).await } else { String::new() };
    if token.is_some() {
        status.last_handled_reconcile_at = token;
    }
    verdict::judge(&mut status, &object, &desired, &result, &remains, now);
    let mut events = verdict::tell(&before, &status, &desired, &result);
    events.extend(warning.map(|message| Event {
        normal: false,
        reason: "PlatformMismatch".into(),
        message,
        class: None,
        origin: None,
    }));
    let failure = result.err();
    if let Some(failure) = &failure {
        tracing::debug!(%key, class = %failure.class, reason = failure.reason, "{}", failure.message);
    }
    let artifact = status.artifact.clone();
    if shared.conclude(&object, status, events).await {
        let named = |a: &Option<Artifact>| a.as_ref().map(|a| (a.revision.clone(), a.digest));
        if made.is_some() && named(&before.artifact) == named(&artifact) {
            // The status is as before, but what was lost is here again, and somebody may wait for it.
            kustomization::wake_dependants(shared, key);
        }
    } else if let Some(artifact) = artifact {
        // Changed, suspended or gone meanwhile: what no status names is not served.
        drop(made);
        retention::take_away(shared, key, &artifact.path, artifact.digest).await;
    }
    record(key, failure.as_ref().map(|f| f.class), started.elapsed());
    failure
}

/// Holds the object back from vanishing, before anything is made for it; whether it is held.
pub async fn claim(shared: &Arc<Shared>, object: &Arc<Object>) -> bool {
    let claimed = shared.backend.claim(&object.key).await;
    if let Err(error) = &claimed {
        tracing::warn!(key = %object.key, %error, "cannot hold the object; it is tried again");
        tokio::spawn(Shared::again_later(Arc::clone(shared), object.key.clone(), object.metadata.generation));
    }
    claimed.is_ok()
}

/// Does the work, and says in the status that it is under way where it takes longer than a moment.
async fn telling<T>(shared: &Arc<Shared>, object: &Arc<Object>, before: &Status, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let Some(moment) = shared.config.progress_after else { return work.await };
    tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(moment) => {}
    }
    let mut status = before.clone();
    let (generation, now) = (object.metadata.generation, Timestamp::now());
    let message = match before.observed_generation {
        -1 => "building artifact".to_owned(),
        seen if seen != generation => format!("processing object: new generation {seen} -> {generation}"),
        _ => "building artifact".to_owned(),
    };
    let conditions = &mut status.conditions;
    conditions.set(kinds::RECONCILING, ConditionStatus::True, "Progressing", &message, generation, now);
    conditions.summarize_ready(generation, now);
    shared.conclude(object, status, Vec::new()).await;
    work.await
}

/// Counts a pass.
pub fn record(key: &Key, class: Option<Class>, took: Duration) {
    metrics::reconciled(key.kind.name(), &key.namespace, &key.name, class, took.as_secs_f64());
}

/// Makes the artifact for `target` current in `status`, unless it is already; what was made, to be held until the status is
/// kept.
async fn bring(
    shared: &Arc<Shared>,
    object: &Object,
    desired: &Desired,
    target: &Target,
    status: &mut Status,
    budget: Budget,
) -> Result<Option<Made>, Failure> {
    let is_current = desired.is_current(status, target);
    let before = status.artifact.clone();
    if let Some(artifact) = &status.artifact {
        let (store, digest, key) = (shared.puller.store().clone(), artifact.digest, object.key.clone());
        // What was taken from another replica has no tree; that one is not worth a pull by whoever leads next.
        let may_lack_tree = shared.backend.has_replicas();
        let held = blocking::io(move || {
            let (hex, held) = (digest.hex(), store.get(&digest)?.is_some());
            let published = held
                && (store.tree_is_sound(&key.namespace, &key.name, &hex)?
                    || (may_lack_tree && !store.trees(&key.namespace, &key.name)?.contains(&hex)));
            Ok::<_, StoreError>((held, published))
        });
        let (held, published) = held.await.map_err(|e| Failure::storing(&e))?;
        let is_larders = artifact.is_larders();
        if !held && is_larders {
            // Its path stays known, and is answered with 503 until it is here again: the kept status names it.
            tracing::warn!(key = %object.key, digest = %artifact.digest, "the artifact disappeared from storage");
            status.artifact = None;
        }
        // One that another controller stored is not served here, though the layer may be held.
        if published && is_current && is_larders {
            return Ok(None);
        }
    }
    if !is_current && status.artifact.is_some() {
        let message = format!("new revision '{}' for '{}'", desired.revision(target), desired.url);
        let (generation, now) = (object.metadata.generation, Timestamp::now());
        let conditions = &mut status.conditions;
        conditions.set(kinds::ARTIFACT_OUTDATED, ConditionStatus::True, "NewRevision", &message, generation, now);
    }
    let obtained = obtain(shared, desired, target, budget).await.map_err(|f| (*f).clone())?;
    let revision = match &obtained.chart {
        Some(chart) => chart.version.clone(),
        None => desired.revision(target),
    };
    let digest = obtained.built.digest();
    let path = desired.path(&object.key, &digest, obtained.chart.as_ref());
    let making = Making::new(shared, &object.key, digest);
    shared.published.insert(&path, digest);
    publish_tree(shared, &object.key, &obtained).await?;
    let as_before =
        before.filter(|before| before.path == path && before.digest == digest && before.revision == revision);
    let artifact = Artifact {
        digest,
        url: format!("{}/{path}", shared.config.advertise),
        path,
        revision,
        // Made anew it is no update, and nobody's write.
        last_update_time: as_before.map_or_else(|| rfc3339(Timestamp::now()), |before| before.last_update_time),
        size: obtained.built.blob.len(),
        metadata: obtained.manifest.manifest.annotations.clone(),
    };
    status.artifact = Some(artifact);
    desired.observe(status, &object.key, target, obtained.chart.as_ref(), &shared.config.advertise);
    Ok(Some(Made { obtained, _making: making }))
}

/// What a pass made, held until the status that names it is kept: nothing else keeps it from collection.
struct Made {
    obtained: Arc<Obtained>,
    _making: Making,
}

/// The artifact, built once for all members that want the same at once.
pub async fn obtain(
    shared: &Arc<Shared>,
    desired: &Desired,
    target: &Target,
    budget: Budget,
) -> Result<Arc<Obtained>, Arc<Failure>> {
    let key = BuildKey {
        way: Arc::clone(&desired.route.way),
        digest: target.digest,
        choice: desired.choice.clone(),
        ignore: desired.ignore.clone(),
        chart: desired.chart.as_ref().map(|c| c.values.clone()),
    };
    shared
        .builds
        .run(key, || async { make(shared, desired, target, budget).await.map(Arc::new).map_err(Arc::new) })
        .await
}

async fn make(shared: &Arc<Shared>, desired: &Desired, target: &Target, budget: Budget) -> Result<Obtained, Failure> {
    let (way, wanted) = (&desired.route.way, &desired.route.wanted);
    let pulling = |e: PullError| Failure::pulling(&e, wanted, desired.chart.is_some());
    let manifest = shared.puller.manifest(way, target, budget).await.map_err(pulling)?;
    let chosen: Chosen = choose::choose(&manifest.manifest, &desired.choice)
        .map_err(|e| Failure::building(&e, desired.chart.is_some()))?;
    let mut layers = Vec::new();
    let mut leases = Vec::new();
    let mut fetching = JoinSet::new();
    for (n, layer) in chosen.layers.iter().cloned().enumerate() {
        let (puller, way) = (shared.puller.clone(), Arc::clone(way));
        while fetching.len() >= AT_ONCE {
            collect(fetching.join_next().await, &mut layers, &mut leases).map_err(pulling)?;
        }
        fetching.spawn(async move { (n, puller.blob(&way, &layer, budget).await) });
    }
    while let Some(joined) = fetching.join_next().await {
        collect(Some(joined), &mut layers, &mut leases).map_err(pulling)?;
    }
    layers.sort_by_key(|(n, _)| *n);
    let layers: Vec<_> = layers.into_iter().map(|(_, blob)| blob).collect();
    let (store, caps, ignore) = (shared.puller.store().clone(), shared.config.caps, desired.ignore.clone());
    let (built, chart) = match &desired.chart {
        None => {
            let building = move || -> Result<Built, ArtifactError> {
                let mut built = build::build(&store, &chosen, &layers, Ignoring::AsFlux(ignore.as_deref()), caps)?;
                if built.tree.is_none() {
                    // A copied layer is served whatever it holds; where it can be unpacked, its contents are shown too.
                    let unpacked = build::unpack(&layers, false, Ignoring::Nothing, caps, Some(&store));
                    built.tree = unpacked.ok().map(|u| u.tree);
                }
                Ok(built)
            };
            (blocking::cpu(building).await.map_err(|e| Failure::building(&e, desired.chart.is_some()))?, None)
        }
        Some(wanted) => {
            let wanted = wanted.clone();
            let (built, chart) = blocking::cpu(move || helm::build(&store, &chosen, &layers, &wanted, caps)).await?;
            (built, Some(chart))
        }
    };
    leases.push(shared.puller.store().lease(built.digest()));
    Ok(Obtained { built, manifest, chart, _leases: leases })
}

type Fetched = (usize, Result<(crate::store::Blob, Lease), PullError>);

fn collect(
    joined: Option<Result<Fetched, tokio::task::JoinError>>,
    layers: &mut Vec<(usize, crate::store::Blob)>,
    leases: &mut Vec<Lease>,
) -> Result<(), PullError> {
    if let Some(joined) = joined {
        let (n, fetched) = joined.unwrap_or_else(resume);
        let (blob, lease) = fetched?;
        layers.push((n, blob));
        leases.push(lease);
    }
    Ok(())
}

/// Publishes `source/<namespace>/<name>/<hex>/`.
async fn publish_tree(shared: &Arc<Shared>, key: &Key, obtained: &Arc<Obtained>) -> Result<(), Failure> {
    let (store, key, obtained) = (shared.puller.store().clone(), key.clone(), Arc::clone(obtained));
    let written = blocking::io(move || {
        let hex = obtained.built.digest().hex();
        let mut tree = store.begin_tree(&key.namespace, &key.name, &hex)?;
        tree.write_manifest(&obtained.manifest.bytes)?;
        tree.add_bytes(obtained.built.blob.len());
        if let Some(contents) = &obtained.built.tree {
            contents.write_published(&store, tree.contents())?;
            tree.add_bytes(contents.logical_bytes());
        }
        tree.publish()?;
        Ok::<_, ArtifactError>(())
    });
    written.await.map_err(|e| {
        let message = format!("failed to publish the artifact's contents: {}", chain(&e));
        Failure::new(kinds::STORAGE_OPERATION_FAILED, "ArchiveOperationFailed", e.class(), message)
    })
}

/// Makes what a kept status names fetchable again after a start, under the address of this start.
pub async fn republish(shared: &Arc<Shared>, object: &Object, mut status: Status) -> (Status, retention::Retained) {
    let key = &object.key;
    let Some(artifact) = status.artifact.as_ref().filter(|a| a.is_larders()) else {
        return (status, retention::Retained::default());
    };
    shared.published.insert(&artifact.path, artifact.digest);
    shared.published.set_latest(&artifact.path);
    let current = artifact.digest;
    if shared.is_leading()
        && status.readdress(&shared.config.advertise)
        && let Err(error) = shared.backend.patch_status(key, &status).await
    {
        tracing::error!(%key, %error, "cannot keep the status");
    }
    let retained = retention::Retained::found(shared, key, &current).await;
    (status, retained)
}
