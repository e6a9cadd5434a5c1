//! What a pass over a source came to, as conditions and events tell it (flux.md section 1.4).

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    Shared,
    desired::{Desired, Refused},
    failure::Failure,
    source::{claim, record},
    verification,
};
use crate::{
    blocking,
    objects::{
        Event, Object, Status,
        condition::{ConditionStatus, Conditions, kinds},
    },
};

/// What a failure has left of the artifact that a status names, for its message; nothing where it names none.
pub async fn remains(shared: &Shared, status: &Status) -> String {
    let Some(artifact) = &status.artifact else { return String::new() };
    let (store, digest, revision) = (shared.puller.store().clone(), artifact.digest, &artifact.revision);
    if !artifact.is_larders() {
        return format!(
            "; the artifact of revision '{revision}', which another controller stored, stays in the status"
        );
    }
    match blocking::io(move || store.has(&digest)).await {
        Ok(true) => format!("; the artifact of revision '{revision}' is still served"),
        _ => format!(
            "; the artifact of revision '{revision}' was lost here, and cannot be served before it is fetched again"
        ),
    }
}

/// Writes the conditions for a pass's result; `remains` as [`remains`] tells it.
pub fn judge(
    status: &mut Status,
    object: &Object,
    desired: &Desired,
    result: &Result<(), Failure>,
    remains: &str,
    now: Timestamp,
) {
    let generation = object.metadata.generation;
    let conditions = &mut status.conditions;
    match result {
        Ok(()) => {
            for gone in [
                kinds::FETCH_FAILED,
                kinds::STORAGE_OPERATION_FAILED,
                kinds::BUILD_FAILED,
                kinds::ARTIFACT_OUTDATED,
                kinds::RECONCILING,
                kinds::STALLED,
            ] {
                conditions.delete(gone);
            }
            let revision = status.artifact.as_ref().map(|a| a.revision.as_str()).unwrap_or_default();
            let (reason, message) = desired.stored(revision);
            conditions.set(kinds::ARTIFACT_IN_STORAGE, ConditionStatus::True, reason, &message, generation, now);
            status.observed_generation = generation;
        }
        Err(failure) => {
            clear_failures(conditions, failure.condition);
            let message = format!("{}{remains}", failure.message);
            if status.artifact.is_none() {
                conditions.delete(kinds::ARTIFACT_IN_STORAGE);
            }
            if failure.is_stalled() {
                conditions.delete(kinds::RECONCILING);
                conditions.set(kinds::STALLED, ConditionStatus::True, failure.reason, &message, generation, now);
                status.observed_generation = generation;
            } else {
                conditions.delete(kinds::STALLED);
                will_be_tried_again(conditions, generation, now);
            }
            verification::set_failed(conditions, failure.condition, failure.reason, &message, generation, now);
        }
    }
    conditions.summarize_ready(generation, now);
}

/// Takes away what earlier passes failed by, other than by `kept`.
fn clear_failures(conditions: &mut impl Conditions, kept: &str) {
    for failed in [kinds::FETCH_FAILED, kinds::STORAGE_OPERATION_FAILED, kinds::BUILD_FAILED] {
        if failed != kept {
            conditions.delete(failed);
        }
    }
}

fn will_be_tried_again(conditions: &mut impl Conditions, generation: i64, now: Timestamp) {
    let message = "reconciliation failed, will be tried again";
    conditions.set(kinds::RECONCILING, ConditionStatus::True, "ProgressingWithRetry", message, generation, now);
}

/// What people are told of a pass: a new artifact, a recovery, a failure that is new; nothing where nothing changed.
pub fn tell(before: &Status, after: &Status, desired: &Desired, result: &Result<(), Failure>) -> Vec<Event> {
    let failed = |s: &Status| {
        [kinds::FETCH_FAILED, kinds::STORAGE_OPERATION_FAILED, kinds::BUILD_FAILED]
            .iter()
            .any(|k| s.conditions.is_true(k))
            || s.conditions.is_false(kinds::SOURCE_VERIFIED)
    };
    match (result, &after.artifact) {
        (Ok(()), Some(artifact)) => {
            let is_new = before.artifact.as_ref().is_none_or(|old| old.digest != artifact.digest);
            if !is_new && !failed(before) {
                return Vec::new();
            }
            let mut message = format!("stored artifact with revision '{}' from '{}'", artifact.revision, desired.url);
            let origin = |key: &str| artifact.metadata.get(key);
            if let (Some(source), Some(revision)) =
                (origin("org.opencontainers.image.source"), origin("org.opencontainers.image.revision"))
            {
                message.push_str(&format!(", origin source '{source}', origin revision '{revision}'"));
            }
            let reason = if is_new { "NewArtifact" } else { "Succeeded" };
            vec![Event { normal: true, reason: reason.into(), message, class: None, origin: None }]
        }
        (Err(failure), _) => {
            let known = before.conditions.find(failure.condition);
            let after = after.conditions.find(failure.condition);
            let same = |a: &crate::objects::Condition| {
                known.is_some_and(|k| (&k.reason, &k.message) == (&a.reason, &a.message))
            };
            match after {
                Some(now) if !same(now) => {
                    vec![Event {
                        normal: false,
                        reason: failure.reason.into(),
                        message: now.message.clone(),
                        class: Some(failure.class),
                        origin: None,
                    }]
                }
                _ => Vec::new(),
            }
        }
        _ => Vec::new(),
    }
}

/// Records that an object could not even be tried.
pub async fn record_refusal(shared: &Arc<Shared>, object: &Arc<Object>, refused: &Refused) {
    let started = Instant::now();
    let Some(mut status) = shared.lock().objects.get(&object.key).map(|e| e.status.clone()) else { return };
    if !claim(shared, object).await {
        return;
    }
    let (generation, now) = (object.metadata.generation, Timestamp::now());
    if let Some(token) = object.requested_at() {
        status.last_handled_reconcile_at = Some(token.to_string());
    }
    let message = format!("{}{}", refused.message, remains(shared, &status).await);
    let conditions = &mut status.conditions;
    let new = conditions.find(refused.condition).is_none_or(|c| c.message != message || c.reason != refused.reason);
    clear_failures(conditions, refused.condition);
    verification::set_failed(conditions, refused.condition, refused.reason, &message, generation, now);
    if refused.is_stalled() {
        conditions.delete(kinds::RECONCILING);
        conditions.set(kinds::STALLED, ConditionStatus::True, refused.reason, &message, generation, now);
        status.observed_generation = generation;
    } else {
        conditions.delete(kinds::STALLED);
        will_be_tried_again(conditions, generation, now);
    }
    conditions.summarize_ready(generation, now);
    tracing::debug!(key = %object.key, class = %refused.class, reason = refused.reason, "{message}");
    let (reason, class) = (refused.reason.into(), Some(refused.class));
    let event = Event { normal: false, reason, message, class, origin: None };
    shared.conclude(object, status, if new { vec![event] } else { Vec::new() }).await;
    record(&object.key, Some(refused.class), started.elapsed());
}
