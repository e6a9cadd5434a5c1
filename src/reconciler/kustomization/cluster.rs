//! A Kustomization on a cluster: applied, watched for drift, its objects deleted with it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::oneshot, time::Instant};

use super::{Blocked, Wanted, build, ends_elsewhere, hide, progress, timeout, turn::Turn};
use crate::{
    apply::{
        cluster::{Applier, ApplyError, Checks, Identity, Log, Owner, Task},
        inventory,
        object::Id,
        render::Validation,
        substitute::Variables,
    },
    class::{Class, chain},
    objects::{
        Artifact, ConditionStatus, Conditions, Event, Inventory, InventoryEntry, Key, KustomizationSpec, Object, Spec,
        Status, condition::kinds,
    },
    reconciler::Shared,
};

/// The oldest list that shows drift, as a part of the interval, and at most: many share one list, and a change is still undone
/// within an interval.
const AGE: (u32, Duration) = (10, Duration::from_secs(10));
/// How soon a deletion that failed is tried again, at first and at the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// How long objects that are applied keep the room that they were rendered in.
const HOLD: Duration = Duration::from_secs(30);

/// When the next look is due: early enough that, with the age of what is looked at, no change stays longer than the interval.
pub fn due(interval: Duration) -> Duration {
    interval.mul_f64(0.85 + 0.05 * fastrand::f64())
}

/// Brings the cluster to what the source has now. What was applied is in the status also where this fails.
pub async fn bring(
    shared: &Arc<Shared>,
    applier: &Applier,
    wanted: &Wanted<'_>,
    status: &mut Status,
    log: &mut Log,
) -> Result<(), Blocked> {
    let Wanted { asked, object, spec, artifact, variables } = *wanted;
    let validation = Validation::of(spec.validation.as_deref()).map_err(Blocked::Render)?;
    let owner = owner(&object.key);
    let inputs = fingerprint(object, artifact, variables);
    let requested = !asked.waiters.is_empty()
        || (object.requested_at().is_some() && object.requested_at() != status.last_handled_reconcile_at.as_deref());
    let generation = object.metadata.generation;
    let applied_before = status.conditions.is_true(kinds::READY)
        && status.observed_generation == generation
        && status.last_applied_revision.as_deref() == Some(&artifact.revision);
    let (watch, key, epoch) = (Arc::clone(shared), object.key.clone(), shared.epoch(&object.key));
    let may_write = move || watch.is_leading() && watch.epoch(&key).is_some();
    let (watch, key) = (Arc::clone(shared), object.key.clone());
    let go_on = move || watch.is_leading() && watch.epoch(&key) == epoch;
    let task = Task {
        who: Identity::of(&object.key.namespace, account(spec)),
        validation,
        force: spec.force,
        applied_before,
        may_write: &may_write,
    };
    let mut pass = applier.pass(&owner).await;
    if !may_write() {
        return Err(Blocked::Apply(ApplyError::Canceled));
    }
    // Who asks for a pass sees undone what was done before. Many who ask at once still share the list made after it.
    let now = Instant::now();
    let oldest = match asked.at.filter(|_| requested) {
        Some(at) => at,
        None => now.checked_sub((spec.interval.get() / AGE.0).min(AGE.1)).unwrap_or(now),
    };
    let settled = pass.is_settled(&task, &inputs, oldest).await.map_err(Blocked::Apply)?;
    if !settled || !applied_before {
        let (objects, turn) = build::to_objects(shared, wanted).await?;
        let applying = hold(turn);
        if status.inventory.is_none() {
            // Also what holds the object until its objects are gone: it has to be there before they are.
            progress(status, generation, &format!("Applying revision {}", artifact.revision));
            shared.conclude(object, status.clone(), Vec::new()).await;
        }
        let mut old = status.inventory.as_ref().map(|i| i.entries.clone()).unwrap_or_default();
        // A pass before this one may have come to its end after the spec changed, or not at all.
        inventory::merge(&mut old, pass.inventory());
        let applied = pass.apply(&task, &inputs, objects, log).await;
        drop(applying);
        match applied {
            Ok(entries) => {
                let stale = if spec.prune { inventory::stale(&old, &entries) } else { Vec::new() };
                let (survivors, pruned) = pass.prune(&task, &stale, log).await;
                let mut entries = entries;
                inventory::merge(&mut entries, survivors);
                status.inventory = Some(Inventory { entries });
                pruned.map_err(Blocked::Apply)?;
            }
            Err(error) => {
                let mut entries = old;
                inventory::merge(&mut entries, pass.inventory());
                status.inventory = Some(Inventory { entries });
                return Err(Blocked::Apply(error));
            }
        }
    }
    let named = spec.health_checks().map_err(|message| Blocked::refused("HealthCheckFailed", message))?;
    let checks = match (spec.wait, named.is_empty()) {
        (true, _) => Checks::All,
        (false, false) => Checks::Named(
            named
                .iter()
                .map(|c| {
                    let api_version = c.api_version.as_deref().filter(|v| !v.is_empty()).unwrap_or("apps/v1");
                    Id::new(api_version, &c.kind, c.namespace.as_deref().unwrap_or_default(), &c.name)
                })
                .collect(),
        ),
        (false, true) => {
            status.conditions.delete(kinds::HEALTHY);
            return Ok(());
        }
    };
    if !applied_before || !log.0.is_empty() {
        // What is applied has to be known before it is waited for: the wait may last, and the process may die.
        let mut waiting = status.clone();
        let message =
            format!("Running health checks for revision {} with a timeout of {:?}", artifact.revision, timeout(spec));
        progress(&mut waiting, generation, &message);
        waiting.conditions.set(
            kinds::HEALTHY,
            ConditionStatus::Unknown,
            "Progressing",
            &message,
            generation,
            Timestamp::now(),
        );
        shared.conclude(object, waiting, Vec::new()).await;
    }
    let result = pass.health(&task, checks, timeout(spec), &go_on).await;
    let now = Timestamp::now();
    match &result {
        Ok(()) => {
            status.conditions.set(
                kinds::HEALTHY,
                ConditionStatus::True,
                "Succeeded",
                "Health check passed",
                generation,
                now,
            );
        }
        Err(error) => {
            let (reason, message) = (error.reason(), hide(variables, chain(error)));
            status.conditions.set(kinds::HEALTHY, ConditionStatus::False, reason, &message, generation, now);
        }
    }
    result.map_err(Blocked::Apply)
}

/// Holds the room of objects while they are applied, as long as what is returned; but nobody waits long for a server that is
/// slow, when most of them are on it already.
fn hold(turn: Turn) -> oneshot::Sender<()> {
    let (applying, over) = oneshot::channel();
    tokio::spawn(async move {
        let _turn = turn;
        let _ = tokio::time::timeout(HOLD, over).await;
    });
    applying
}

/// What makes a pass come out as it does.
fn fingerprint(object: &Object, artifact: &Artifact, variables: Option<&Variables>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let mut add = |part: &str| {
        hasher.update(&part.len().to_le_bytes());
        hasher.update(part.as_bytes());
    };
    add(&object.metadata.uid);
    add(&object.metadata.generation.to_string());
    add(&artifact.digest.to_string());
    add(&artifact.revision);
    for (name, value) in variables.into_iter().flat_map(Variables::iter) {
        add(name);
        add(value);
    }
    *hasher.finalize().as_bytes()
}

fn account(spec: &KustomizationSpec) -> Option<&str> {
    spec.service_account_name.as_deref().filter(|name| !name.is_empty())
}

fn owner(key: &Key) -> Owner {
    Owner { namespace: Arc::clone(&key.namespace), name: Arc::clone(&key.name) }
}

/// What of a Kustomization that goes has to be deleted with it; `None` where its objects stay.
fn doomed<'a>(spec: &KustomizationSpec, status: &'a Status) -> Option<&'a [InventoryEntry]> {
    let deletes = match spec.deletion_policy.as_deref() {
        None | Some("" | "MirrorPrune") => spec.prune,
        Some("Delete" | "WaitForTermination") => true,
        Some(_) => false,
    };
    let entries = status.inventory.as_ref().map(|i| i.entries.as_slice()).unwrap_or_default();
    (deletes && !spec.suspend).then_some(entries)
}

/// Nothing is known any more of what was applied for a Kustomization that is gone.
pub fn forget(applier: &Applier, key: &Key) {
    applier.forget(&owner(key));
}

/// Begins to end a Kustomization that is being deleted, unless that is under way, or somebody else's to do.
pub async fn end(shared: &Arc<Shared>, applier: &Applier, object: &Arc<Object>, spec: &KustomizationSpec) {
    let key = &object.key;
    let status = {
        let mut state = shared.lock();
        let Some(entry) = state.objects.get_mut(key) else { return };
        // It ends after its pass, which writes nothing any more.
        entry.task = None;
        if entry.ending {
            return;
        }
        entry.ending = true;
        entry.status.clone()
    };
    let why = if ends_elsewhere(shared, object, spec, &status) {
        None
    } else if spec.is_remote() && doomed(spec, &status).is_some_and(|entries| !entries.is_empty()) {
        Some(
            "spec.kubeConfig: what was applied lies in another cluster, where nothing is deleted from here; let Flux's \
             kustomize-controller end this object, or set spec.deletionPolicy to Orphan",
        )
    } else {
        tokio::spawn(finalize(Arc::clone(shared), applier.clone(), key.clone(), object.metadata.uid.clone()));
        return;
    };
    if let Some(entry) = shared.lock().objects.get_mut(key) {
        entry.ending = false;
    }
    if let Some(message) = why {
        let (reason, message) = ("PruneFailed".into(), message.into());
        let event = Event { normal: false, reason, message, class: Some(Class::Spec), origin: None };
        shared.backend.event(object, event).await;
    }
}

/// An object that is still being deleted, as it and its status are now, if this process may end it.
fn going(shared: &Shared, key: &Key, uid: &str) -> Option<(Arc<Object>, Status)> {
    let leads = shared.is_leading();
    let mut state = shared.lock();
    let entry = state.objects.get_mut(key)?;
    let metadata = &entry.object.metadata;
    if metadata.uid != uid || metadata.deletion_timestamp.is_none() {
        return None;
    }
    // Whoever leads then begins anew.
    entry.ending = leads;
    leads.then(|| (Arc::clone(&entry.object), entry.status.clone()))
}

/// Deletes what a Kustomization applied that is being deleted, and lets it go then. Tries until it can, or may not any more;
/// its spec at that moment says what is deleted.
async fn finalize(shared: Arc<Shared>, applier: Applier, key: Key, uid: String) {
    let mut delay = RETRY.0;
    while let Some((object, status)) = going(&shared, &key, &uid) {
        let Spec::Kustomization(spec) = &object.spec else { return };
        let done = match doomed(spec, &status) {
            Some(entries) => delete(&shared, &applier, &object, spec, entries).await,
            None => true,
        };
        if done {
            if going(&shared, &key, &uid).is_some() {
                shared.remove(&key).await;
            }
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => delay = (delay * 2).min(RETRY.1),
            () = shared.shutdown.wait() => return,
        }
    }
}

/// Whether everything is deleted that can be.
async fn delete(
    shared: &Arc<Shared>,
    applier: &Applier,
    object: &Object,
    spec: &KustomizationSpec,
    entries: &[InventoryEntry],
) -> bool {
    let wait = (spec.deletion_policy.as_deref() == Some("WaitForTermination")).then(|| timeout(spec));
    let (watch, key, uid) = (Arc::clone(shared), object.key.clone(), object.metadata.uid.clone());
    let may_write = move || going(&watch, &key, &uid).is_some();
    let mut log = Log::default();
    let done = applier.remove_all(&owner(&object.key), account(spec), entries, wait, &may_write, &mut log).await;
    if !log.0.is_empty() {
        let message = log.0.join("\n");
        let event =
            Event { normal: true, reason: "ReconciliationSucceeded".into(), message, class: None, origin: None };
        shared.backend.event(object, event).await;
    }
    let Err(error) = done else { return true };
    let message = format!("pruning for deleted resource failed: {}", chain(&error));
    let (reason, class) = (error.reason().into(), Some(error.class()));
    let event = Event { normal: false, reason, message, class, origin: None };
    shared.backend.event(object, event).await;
    false
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_deleted_with_a_kustomization_is_what_its_policy_says() {
        let entry = InventoryEntry { id: "n_a__ConfigMap".into(), v: "v1".into() };
        let status = Status { inventory: Some(Inventory { entries: vec![entry] }), ..Status::default() };
        for (fields, deleted) in [
            (json!({"prune": true}), true),
            (json!({"prune": false}), false),
            (json!({"prune": true, "deletionPolicy": "MirrorPrune"}), true),
            (json!({"prune": false, "deletionPolicy": "MirrorPrune"}), false),
            (json!({"prune": false, "deletionPolicy": "Delete"}), true),
            (json!({"prune": false, "deletionPolicy": "WaitForTermination"}), true),
            (json!({"prune": true, "deletionPolicy": "Orphan"}), false),
            (json!({"prune": true, "suspend": true}), false),
            (json!({"prune": true, "suspend": true, "deletionPolicy": "Delete"}), false),
        ] {
            let mut spec = json!({"interval": "1m", "sourceRef": {"kind": "OCIRepository", "name": "a"}});
            spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let spec: KustomizationSpec = serde_json::from_value(spec).unwrap();
            assert_eq!(doomed(&spec, &status).map(<[_]>::len), deleted.then_some(1), "{fields}");
        }
    }

    #[test]
    fn a_look_is_due_early_enough_for_the_age_of_what_it_looks_at() {
        let interval = Duration::from_secs(60);
        for _ in 0..100 {
            assert!(due(interval) + interval / AGE.0 <= interval && due(interval) >= interval.mul_f64(0.8));
        }
    }
}
