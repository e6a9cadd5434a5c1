//! Kustomizations: applied to the cluster, or without one rendered to `<data>/rendered/<namespace>/<name>.yaml`.
//!
//! Each has one task, woken by its source, its own change, a dependency, a request, or its interval. A file is replaced whole
//! or not at all; the status is kept after it. Objects are applied by [`apply::cluster`](crate::apply::cluster).

mod build;
mod cluster;
mod refusal;
mod time;
mod turn;
mod wake;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::mpsc, time::Instant};

use super::{
    Shared,
    backoff::{Backoff, NEVER, jittered, periodic},
};
use crate::{
    apply::{
        cluster::{ApplyError, Log},
        render::RenderError,
        substitute::{Derived, Variables},
    },
    artifact::build::ArtifactError,
    class::{Class, chain},
    metrics,
    objects::{
        Artifact, BackendError, Event, Inventory, Key, Kind, KustomizationSpec, Object, Spec, Status,
        condition::{ConditionStatus, Conditions, kinds},
    },
};
pub use build::{Folders, rendered_file};
pub use cluster::{end, forget};
pub use refusal::examine;
pub use time::timeout;
pub use turn::Turns;
pub use wake::Task;
use wake::{Asked, Wake};

/// How soon a missing source or dependency is looked for again (`--requeue-dependency`).
const REQUEUE_DEPENDENCY: Duration = Duration::from_secs(30);
/// How long a first pass waits for a source that is on its way.
const PATIENCE: Duration = Duration::from_secs(2);
/// How soon a pass follows one that was given up.
const AFTER_CANCEL: Duration = Duration::from_secs(1);
/// Gives a new or changed Kustomization its task, or a pass.
pub fn admit(shared: &Arc<Shared>, key: &Key) {
    let mut state = shared.lock();
    // What is being deleted is not brought up any more.
    let living = |e: &&mut super::Entry| e.object.metadata.deletion_timestamp.is_none();
    let Some(entry) = state.objects.get_mut(key).filter(living) else { return };
    match &entry.task {
        Some(task) => task.wake(),
        None => {
            let (task, receive) = Task::new();
            entry.task = Some(task);
            tokio::spawn(run(Arc::clone(shared), key.clone(), receive));
        }
    }
}

/// Wakes the Kustomizations that take from `key`, or depend on it.
pub fn wake_dependants(shared: &Arc<Shared>, key: &Key) {
    let state = shared.lock();
    for entry in state.objects.values() {
        if let (Spec::Kustomization(spec), Some(task)) = (&entry.object.spec, &entry.task)
            && takes_from(&entry.object, spec, key)
        {
            task.wake();
        }
    }
}

fn takes_from(object: &Object, spec: &KustomizationSpec, key: &Key) -> bool {
    let namespace = |named: &Option<String>| named.clone().unwrap_or_else(|| object.key.namespace.to_string());
    if key.kind == Kind::Kustomization {
        return *key != object.key
            && spec.depends_on.iter().any(|d| *d.name == *key.name && *namespace(&d.namespace) == *key.namespace);
    }
    let source = &spec.source_ref;
    source.kind == key.kind.name() && *source.name == *key.name && *namespace(&source.namespace) == *key.namespace
}

async fn run(shared: Arc<Shared>, key: Key, mut wakes: mpsc::UnboundedReceiver<Wake>) {
    shared.synced().await;
    let (mut asked, derived) = (Asked::default(), Derived::default());
    if awaits_source(&shared, &key) {
        // Its artifact wakes. Sources come first then, and nobody has to read of a wait that is over in a moment.
        match tokio::time::timeout(PATIENCE, wakes.recv()).await {
            Ok(Some(wake)) => asked.take(wake),
            Ok(None) => return,
            Err(_) => {}
        }
    }
    let mut backoff = Backoff::default();
    loop {
        while let Ok(wake) = wakes.try_recv() {
            asked.take(wake);
        }
        // Boxed, so that a Kustomization that waits does not hold the room of one that is brought up.
        let due = Instant::now() + Box::pin(pass(&shared, &key, &asked, &derived, &mut backoff)).await;
        asked.answer();
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            wake = wakes.recv() => match wake {
                Some(wake) => asked.take(wake),
                None => return,
            },
            () = shared.shutdown.wait() => return,
        }
    }
}

/// Whether the source is there, has no artifact yet, and nothing is known to be wrong with it.
fn awaits_source(shared: &Shared, key: &Key) -> bool {
    let state = shared.lock();
    let Some(object) = state.objects.get(key).map(|entry| &entry.object) else { return false };
    let Spec::Kustomization(spec) = &object.spec else { return false };
    let on_its_way = |e: &super::Entry| {
        let ready = e.status.conditions.find(kinds::READY);
        e.status.artifact.is_none() && ready.is_none_or(|c| c.status == ConditionStatus::Unknown)
    };
    state.objects.get(&source_key(object, spec)).is_some_and(|e| !e.object.is_suspended() && on_its_way(e))
}

/// What is to be brought up.
struct Wanted<'a> {
    asked: &'a Asked,
    object: &'a Arc<Object>,
    spec: &'a KustomizationSpec,
    artifact: &'a Artifact,
    variables: Option<&'a Variables>,
}

/// Why there is nothing new to show.
enum Blocked {
    /// The source has nothing yet, or another Kustomization is not ready: looked at again soon.
    Waiting { reason: &'static str, message: String },
    /// The artifact cannot be unpacked.
    Artifact(ArtifactError),
    /// The spec asks for what is not done, or not allowed: stalled.
    Refused { reason: &'static str, message: String },
    /// What variables come from is missing or cannot be read.
    Variables { message: String, class: Class },
    /// Rendering failed.
    Render(RenderError),
    /// The cluster is not as it should be.
    Apply(ApplyError),
    /// The file could not be written.
    Write(std::io::Error),
    /// It lasted too long.
    Timeout(Duration),
}

impl Blocked {
    fn refused(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Refused { reason, message: message.into() }
    }

    fn class(&self) -> Class {
        match self {
            Self::Waiting { .. } => Class::NotFound,
            Self::Refused { .. } => Class::Spec,
            Self::Variables { class, .. } => *class,
            Self::Apply(e) => e.class(),
            Self::Artifact(e) => e.class(),
            Self::Render(e) => e.class(),
            Self::Write(_) => Class::Disk,
            Self::Timeout(_) => Class::Limit,
        }
    }
}

/// One pass; how long until the next. `derived` is what the one before made of Secrets' values.
async fn pass(shared: &Arc<Shared>, key: &Key, asked: &Asked, derived: &Derived, backoff: &mut Backoff) -> Duration {
    let started = Instant::now();
    let Some((object, before)) = shared.lock().objects.get(key).map(|e| (Arc::clone(&e.object), e.status.clone()))
    else {
        return REQUEUE_DEPENDENCY;
    };
    let Spec::Kustomization(spec) = &object.spec else { return REQUEUE_DEPENDENCY };
    let interval = periodic(spec.interval.get()).map(|interval| match shared.config.applier {
        Some(_) => cluster::due(interval),
        None => jittered(interval),
    });
    if spec.suspend || is_anothers(shared, &object, spec) {
        return interval.unwrap_or(NEVER);
    }
    if let Err(error) = shared.backend.claim(key).await {
        tracing::warn!(%key, %error, "cannot hold the object; it is tried again");
        return super::KEEP_AGAIN;
    }
    let mut status = before.clone();
    let (mut log, mut variables) = (Log::default(), Variables::new(derived));
    let result = bring(shared, asked, &object, spec, &mut status, &mut log, &mut variables).await;
    let is_tried = |artifact: &Artifact| status.last_attempted_revision.as_ref() == Some(&artifact.revision);
    let tried = source(shared, &object, spec).ok().filter(is_tried);
    let hide = |message: String| variables.hide(&message);
    let events = judge(&mut status, &before, &object, &result, &log, &hide, tried.as_ref());
    let class = result.as_ref().err().map(Blocked::class);
    shared.conclude(&object, status, events).await;
    metrics::reconciled(key.kind.name(), &key.namespace, &key.name, class, started.elapsed().as_secs_f64());
    let retry = spec.retry_interval.as_ref().and_then(|retry| periodic(retry.get())).map(jittered);
    let soon = interval.map_or(REQUEUE_DEPENDENCY, |interval| REQUEUE_DEPENDENCY.min(interval));
    match result {
        Ok(_) => {
            backoff.reset();
            interval.unwrap_or(NEVER)
        }
        Err(Blocked::Waiting { .. }) => soon,
        // Something newer is there already, or somebody else's turn.
        Err(Blocked::Apply(ApplyError::Canceled)) => AFTER_CANCEL,
        // It is asked by then what the kind is served as.
        Err(Blocked::Apply(error)) if error.unserved().is_some() => soon,
        Err(Blocked::Refused { .. }) => retry.or(interval).unwrap_or(NEVER),
        Err(_) => retry.or(interval).unwrap_or_else(|| backoff.next_delay()),
    }
}

/// Whether its source is not held here, so that it is left to Flux's kustomize-controller, as `larder migrate report` says:
/// on a cluster a GitRepository that is not known here may well be one of Git. It wakes this when it becomes Larder's.
fn is_anothers(shared: &Shared, object: &Object, spec: &KustomizationSpec) -> bool {
    shared.backend.has_replicas()
        && match held(&spec.source_ref.kind) {
            None => true,
            Some(Kind::GitRepository) => !shared.lock().objects.contains_key(&source_key(object, spec)),
            Some(_) => false,
        }
}

/// Whether the end of an object is for Flux's kustomize-controller. A GitRepository may go before the Kustomizations that take
/// from it: the revision says then whether it was one of an image.
fn ends_elsewhere(shared: &Shared, object: &Object, spec: &KustomizationSpec, status: &Status) -> bool {
    if held(&spec.source_ref.kind).is_none() {
        return true;
    }
    let of_image = |revision: &str| revision.contains("@sha256:") || revision.contains("@sha512:");
    is_anothers(shared, object, spec)
        && match status.last_attempted_revision.as_ref().or(status.last_applied_revision.as_ref()) {
            Some(revision) => !of_image(revision) && !revision.starts_with("sha256:"),
            // Nothing was tried yet; or the inventory alone is left of whoever applied it.
            None => status.inventory.as_ref().is_some_and(|inventory| !inventory.entries.is_empty()),
        }
}

/// Takes over the status of a Kustomization that Flux reconciles, for those that depend on it; whether it is one.
pub fn observe_anothers(shared: &Arc<Shared>, key: &Key, status: &Status) -> bool {
    let Some(object) = shared.lock().objects.get(key).map(|e| Arc::clone(&e.object)) else { return false };
    let Spec::Kustomization(spec) = &object.spec else { return false };
    if !is_anothers(shared, &object, spec) {
        return false;
    }
    if let Some(entry) = shared.lock().objects.get_mut(key) {
        entry.status = status.clone();
    }
    wake_dependants(shared, key);
    true
}

/// A message without what the variables have from Secrets.
fn hide(variables: Option<&Variables>, message: String) -> String {
    match variables {
        Some(variables) => variables.hide(&message),
        None => message,
    }
}

/// Brings up what the source has now; the artifact that it was.
async fn bring(
    shared: &Arc<Shared>,
    asked: &Asked,
    object: &Arc<Object>,
    spec: &KustomizationSpec,
    status: &mut Status,
    log: &mut Log,
    variables: &mut Variables,
) -> Result<Artifact, Blocked> {
    refusal::refuse(object, spec, shared.config.cross_namespace_references)?;
    let artifact = source(shared, object, spec)?;
    dependencies(shared, object, spec, &artifact).await?;
    status.last_attempted_revision = Some(artifact.revision.clone());
    let replaces = self::variables(shared, object, spec, variables).await?;
    let wanted = Wanted { asked, object, spec, artifact: &artifact, variables: replaces.then_some(&*variables) };
    match &shared.config.applier {
        Some(applier) => {
            cluster::bring(shared, applier, &wanted, status, log).await?;
        }
        None => {
            let entries = build::to_file(shared, &wanted).await?;
            status.inventory = Some(Inventory { entries });
        }
    }
    status.last_applied_revision = Some(artifact.revision.clone());
    status.last_applied_origin_revision = origin(&artifact);
    Ok(artifact)
}

/// The kind of a source, if it is one that is held here.
fn held(kind: &str) -> Option<Kind> {
    Kind::find(kind).filter(|kind| matches!(kind, Kind::OCIRepository | Kind::GitRepository))
}

/// Sets what `spec.postBuild` replaces; whether anything is replaced.
async fn variables(
    shared: &Arc<Shared>,
    object: &Object,
    spec: &KustomizationSpec,
    variables: &mut Variables,
) -> Result<bool, Blocked> {
    let Some(wanted) = spec.post_build().map_err(|message| Blocked::refused("BuildFailed", message))? else {
        variables.begin();
        return Ok(false);
    };
    let namespace = &object.key.namespace;
    for from in wanted.substitute_from.iter().flatten() {
        let failed = |why: &str, class| {
            let message = format!("substitute from '{}/{}' error: {why}", from.kind, from.name);
            Blocked::Variables { message, class }
        };
        let away = |error: BackendError| failed(&chain(&error), error.class());
        let found = match from.kind.as_str() {
            "ConfigMap" => match shared.backend.references().config_map(namespace, &from.name).await.map_err(away)? {
                Some(map) => {
                    map.data.iter().for_each(|(name, value)| variables.set(name, value));
                    true
                }
                None => false,
            },
            "Secret" => match shared.backend.references().secret(namespace, &from.name).await.map_err(away)? {
                Some(secret) => {
                    secret.data.iter().for_each(|(name, value)| variables.set_secret(name, value));
                    true
                }
                None => false,
            },
            _ => return Err(failed("only a ConfigMap or a Secret holds variables", Class::Spec)),
        };
        if !found && from.optional != Some(true) {
            return Err(failed(&format!("not found in namespace '{namespace}'"), Class::NotFound));
        }
    }
    wanted.substitute.iter().flatten().for_each(|(name, value)| variables.set(name, value));
    let always = wanted.substitute_strategy.as_deref() == Some("Always");
    Ok(always || !variables.is_empty())
}

/// Says in the status that a pass is under way.
fn progress(status: &mut Status, generation: i64, message: &str) {
    let now = jiff::Timestamp::now();
    status.conditions.set(kinds::RECONCILING, ConditionStatus::True, "Progressing", message, generation, now);
    let ready = "Reconciliation in progress";
    status.conditions.set(kinds::READY, ConditionStatus::Unknown, "Progressing", ready, generation, now);
}

/// The source's artifact.
fn source(shared: &Arc<Shared>, object: &Object, spec: &KustomizationSpec) -> Result<Artifact, Blocked> {
    let reference = &spec.source_ref;
    let namespace = reference.namespace.as_deref().unwrap_or(&object.key.namespace);
    let waiting = |message: String| Blocked::Waiting { reason: "ArtifactFailed", message };
    let kind = held(&reference.kind).ok_or_else(|| {
        waiting(format!("source kind {:?} is not one of OCIRepository and GitRepository", reference.kind))
    })?;
    let key = Key::new(kind, namespace, &reference.name);
    let state = shared.lock();
    let entry =
        state.objects.get(&key).ok_or_else(|| waiting(format!("Source '{key}' not found{}", shared.selected())))?;
    entry
        .status
        .artifact
        .clone()
        .ok_or_else(|| waiting(format!("Source artifact not found, retrying in {}s", REQUEUE_DEPENDENCY.as_secs())))
}

/// Whether all of `dependsOn` is Ready, for the same revision where the source is the same. One that is not watched here, since
/// another shard has it, is asked for.
async fn dependencies(
    shared: &Arc<Shared>,
    object: &Object,
    spec: &KustomizationSpec,
    artifact: &Artifact,
) -> Result<(), Blocked> {
    for dependency in &spec.depends_on {
        let namespace = dependency.namespace.as_deref().unwrap_or(&object.key.namespace);
        let key = Key::new(Kind::Kustomization, namespace, &dependency.name);
        let waiting = |what: &str| Blocked::Waiting {
            reason: "DependencyNotReady",
            message: format!("dependency '{namespace}/{}' {what}", dependency.name),
        };
        let known = shared.lock().objects.get(&key).map(|e| (Arc::clone(&e.object), e.status.clone()));
        let found = match known {
            Some(known) => Some(known),
            None => {
                shared.backend.references().object(&key).await.map_err(|e| waiting(&format!("is not known: {e}")))?
            }
        };
        let (theirs, status) = found.ok_or_else(|| waiting("not found"))?;
        let Spec::Kustomization(their_spec) = &theirs.spec else { return Err(waiting("is not a Kustomization")) };
        let ready = status.conditions.is_true(kinds::READY) && status.observed_generation == theirs.metadata.generation;
        if !ready {
            return Err(waiting("is not ready"));
        }
        let same_source = takes_from(object, spec, &source_key(&theirs, their_spec));
        if same_source && status.last_applied_revision.as_deref() != Some(&artifact.revision) {
            return Err(waiting("revision is not up to date"));
        }
    }
    Ok(())
}

fn source_key(object: &Object, spec: &KustomizationSpec) -> Key {
    let namespace = spec.source_ref.namespace.as_deref().unwrap_or(&object.key.namespace);
    let kind = Kind::find(&spec.source_ref.kind).unwrap_or(Kind::OCIRepository);
    Key::new(kind, namespace, &spec.source_ref.name)
}

fn judge(
    status: &mut Status,
    before: &Status,
    object: &Object,
    result: &Result<Artifact, Blocked>,
    log: &Log,
    hide: &dyn Fn(String) -> String,
    tried: Option<&Artifact>,
) -> Vec<Event> {
    let (generation, now) = (object.metadata.generation, Timestamp::now());
    if let Some(token) = object.requested_at() {
        status.last_handled_reconcile_at = Some(token.to_string());
    }
    let conditions = &mut status.conditions;
    let (reason, message, stalled) = match result {
        Ok(artifact) => {
            conditions.delete(kinds::RECONCILING);
            conditions.delete(kinds::STALLED);
            let message = format!("Applied revision: {}", artifact.revision);
            conditions.set(kinds::READY, ConditionStatus::True, "ReconciliationSucceeded", &message, generation, now);
            status.observed_generation = generation;
            let is_new = before.last_applied_revision != status.last_applied_revision
                || before.inventory != status.inventory
                || !before.conditions.is_true(kinds::READY);
            let is_new = is_new || !log.0.is_empty();
            let message = with_log(message, log);
            let reason = "ReconciliationSucceeded".into();
            let event = Event { normal: true, reason, message, class: None, origin: origin(artifact) };
            return if is_new { vec![event] } else { Vec::new() };
        }
        Err(Blocked::Waiting { reason, message }) => (*reason, message.clone(), false),
        Err(Blocked::Refused { reason, message }) => (*reason, message.clone(), true),
        Err(Blocked::Variables { message, .. }) => ("BuildFailed", message.clone(), false),
        Err(Blocked::Apply(error)) => (error.reason(), with_log(hide(chain(error)), log), false),
        Err(Blocked::Artifact(error)) => ("ArtifactFailed", chain(error), false),
        Err(Blocked::Render(error)) => (error.reason(), hide(chain(error)), error.is_stalled()),
        Err(Blocked::Write(error)) => {
            ("ReconciliationFailed", format!("cannot write the rendered file: {error}"), false)
        }
        Err(Blocked::Timeout(limit)) => {
            ("BuildFailed", format!("rendering lasted longer than spec.timeout ({limit:?})"), false)
        }
    };
    if stalled {
        conditions.delete(kinds::RECONCILING);
        conditions.set(kinds::STALLED, ConditionStatus::True, reason, &message, generation, now);
        status.observed_generation = generation;
    } else {
        conditions.delete(kinds::STALLED);
        let retrying = "reconciliation failed, will be tried again";
        conditions.set(kinds::RECONCILING, ConditionStatus::True, "ProgressingWithRetry", retrying, generation, now);
    }
    conditions.set(kinds::READY, ConditionStatus::False, reason, &message, generation, now);
    let known = before.conditions.find(kinds::READY);
    // Of each revision it is told, also where the reason is the same: a commit of its own may wait for it.
    let is_tried = before.last_attempted_revision == status.last_attempted_revision;
    if is_tried && known.is_some_and(|k| k.reason == reason && k.message == message) {
        return Vec::new();
    }
    // Waiting is how every start begins, and no warning.
    let normal = matches!(result, Err(Blocked::Waiting { .. }));
    let class = result.as_ref().err().map(Blocked::class);
    vec![Event { normal, reason: reason.into(), message, class, origin: tried.and_then(origin) }]
}

/// The revision of what an artifact was made from: of Git, mostly.
fn origin(artifact: &Artifact) -> Option<String> {
    artifact.metadata.get("org.opencontainers.image.revision").cloned()
}

/// What was done before it failed belongs to the message.
fn with_log(message: String, log: &Log) -> String {
    std::iter::once(&message).chain(&log.0).map(String::as_str).collect::<Vec<_>>().join("\n")
}
