//! Kustomizations without a cluster: rendered to `<data>/rendered/<namespace>/<name>.yaml`.
//!
//! Each has one task, woken by its source, its own change, a dependency, a request, or its interval. The file is replaced whole
//! or not at all; the status is kept after it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{Shared, backoff::jittered};
use crate::{
    apply::render::{self, RenderError, Rendered},
    artifact::build::{self, ArtifactError, Caps, Ignoring},
    blocking,
    class::{Class, chain},
    digest::Digest,
    metrics,
    objects::{
        Artifact, Event, Inventory, Key, Kind, KustomizationSpec, Object, Spec, Status,
        condition::{ConditionStatus, Conditions, kinds},
    },
    store::Store,
};

/// How soon a missing source or dependency is looked for again (`--requeue-dependency`).
const REQUEUE_DEPENDENCY: Duration = Duration::from_secs(30);
/// The shortest default timeout, and what the default leaves of the interval.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(30);

/// A Kustomization's task; dropping it ends the task after its pass.
pub struct Task(mpsc::UnboundedSender<Option<oneshot::Sender<()>>>);

impl Task {
    /// Asks for a pass; the receiver hears of its end.
    pub fn request(&self) -> oneshot::Receiver<()> {
        let (send, receive) = oneshot::channel();
        let _ = self.0.send(Some(send));
        receive
    }

    fn wake(&self) {
        let _ = self.0.send(None);
    }
}

/// Where a Kustomization is rendered to.
pub fn rendered_file(root: &Path, key: &Key) -> PathBuf {
    root.join("rendered").join(&*key.namespace).join(format!("{}.yaml", key.name))
}

/// `spec.timeout`: the interval less 30 s if absent, at least 30 s.
pub fn timeout(spec: &KustomizationSpec) -> Duration {
    match &spec.timeout {
        Some(timeout) => timeout.get(),
        None => spec.interval.get().saturating_sub(TIMEOUT_MARGIN).max(TIMEOUT_MARGIN),
    }
}

/// Gives a new or changed Kustomization its task, or a pass.
pub fn admit(shared: &Arc<Shared>, key: &Key) {
    let mut state = shared.lock();
    let Some(entry) = state.objects.get_mut(key) else { return };
    match &entry.task {
        Some(task) => task.wake(),
        None => {
            let (send, receive) = mpsc::unbounded_channel();
            entry.task = Some(Task(send));
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

async fn run(shared: Arc<Shared>, key: Key, mut wakes: mpsc::UnboundedReceiver<Option<oneshot::Sender<()>>>) {
    shared.synced().await;
    let mut waiters = Vec::new();
    loop {
        while let Ok(wake) = wakes.try_recv() {
            waiters.extend(wake);
        }
        let due = Instant::now() + pass(&shared, &key).await;
        for waiter in waiters.drain(..) {
            let _ = waiter.send(());
        }
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            wake = wakes.recv() => match wake {
                Some(waiter) => waiters.extend(waiter),
                None => return,
            },
            () = shared.shutdown.wait() => return,
        }
    }
}

/// Why there is nothing new to show.
enum Blocked {
    /// The source has nothing yet, or another Kustomization is not ready: looked at again soon.
    Waiting { reason: &'static str, message: String },
    /// The artifact cannot be unpacked.
    Artifact(ArtifactError),
    /// Rendering failed.
    Render(RenderError),
    /// The file could not be written.
    Write(std::io::Error),
    /// It lasted too long.
    Timeout(Duration),
}

impl Blocked {
    fn class(&self) -> Class {
        match self {
            Self::Waiting { .. } => Class::NotFound,
            Self::Artifact(e) => e.class(),
            Self::Render(e) => e.class(),
            Self::Write(_) => Class::Disk,
            Self::Timeout(_) => Class::Limit,
        }
    }
}

/// One pass; how long until the next.
async fn pass(shared: &Arc<Shared>, key: &Key) -> Duration {
    let started = Instant::now();
    let Some((object, before)) = shared.lock().objects.get(key).map(|e| (Arc::clone(&e.object), e.status.clone()))
    else {
        return REQUEUE_DEPENDENCY;
    };
    let Spec::Kustomization(spec) = &object.spec else { return REQUEUE_DEPENDENCY };
    let interval = jittered(spec.interval.get());
    if spec.suspend {
        return interval;
    }
    let mut status = before.clone();
    let result = bring(shared, &object, spec, &mut status).await;
    let events = judge(&mut status, &before, &object, &result);
    let class = result.as_ref().err().map(Blocked::class);
    shared.conclude(&object, status, events).await;
    metrics::reconciled(key.kind.name(), &key.namespace, &key.name, class, started.elapsed().as_secs_f64());
    match result {
        Ok(_) => interval,
        Err(Blocked::Waiting { .. }) => REQUEUE_DEPENDENCY.min(interval),
        Err(_) => spec.retry_interval.as_ref().map_or(interval, |retry| jittered(retry.get())),
    }
}

/// Renders what the source has now; the artifact that was rendered.
async fn bring(
    shared: &Arc<Shared>,
    object: &Arc<Object>,
    spec: &KustomizationSpec,
    status: &mut Status,
) -> Result<Artifact, Blocked> {
    let artifact = source(shared, object, spec)?;
    dependencies(shared, object, spec, &artifact)?;
    status.last_attempted_revision = Some(artifact.revision.clone());
    let (of, rendering) = (Arc::clone(object), shared.config.rendering.clone());
    let (store, digest, caps) = (shared.puller.store().clone(), artifact.digest, shared.config.caps);
    let (limit, late) = (timeout(spec), Arc::new(AtomicBool::new(false)));
    let too_late = Arc::clone(&late);
    let work = blocking::io(move || {
        let Spec::Kustomization(spec) = &of.spec else { unreachable!("only Kustomizations come here") };
        // Out of the verified blob: the published tree is for others to read, and nobody hashes it first.
        let folder = unpack(&store, &digest, caps)?;
        let rendered = render::render(&render::Request {
            name: &of.key.name,
            namespace: &of.key.namespace,
            spec,
            root: folder.path().to_path_buf(),
            scratch: store.root().join("spool"),
            program: rendering.program,
            search: rendering.search,
            launcher: rendering.launcher,
        })
        .map_err(Blocked::Render)?;
        if !too_late.load(Ordering::SeqCst) {
            write(&rendered_file(store.root(), &of.key), &rendered).map_err(Blocked::Write)?;
        }
        Ok(rendered)
    });
    let rendered = tokio::time::timeout(limit, work).await.map_err(|_| {
        late.store(true, Ordering::SeqCst);
        Blocked::Timeout(limit)
    })??;
    status.inventory = Some(Inventory { entries: rendered.inventory });
    status.last_applied_revision = Some(artifact.revision.clone());
    status.last_applied_origin_revision = artifact.metadata.get("org.opencontainers.image.revision").cloned();
    Ok(artifact)
}

/// The source's artifact.
fn source(shared: &Arc<Shared>, object: &Object, spec: &KustomizationSpec) -> Result<Artifact, Blocked> {
    let reference = &spec.source_ref;
    let namespace = reference.namespace.as_deref().unwrap_or(&object.key.namespace);
    let waiting = |message: String| Blocked::Waiting { reason: "ArtifactFailed", message };
    let kind =
        Kind::find(&reference.kind).filter(|k| matches!(k, Kind::OCIRepository | Kind::GitRepository)).ok_or_else(
            || waiting(format!("source kind {:?} is not one of OCIRepository and GitRepository", reference.kind)),
        )?;
    let key = Key::new(kind, namespace, &reference.name);
    let state = shared.lock();
    let entry = state.objects.get(&key).ok_or_else(|| waiting(format!("Source '{key}' not found")))?;
    entry
        .status
        .artifact
        .clone()
        .ok_or_else(|| waiting(format!("Source artifact not found, retrying in {}s", REQUEUE_DEPENDENCY.as_secs())))
}

/// Whether all of `dependsOn` is Ready, for the same revision where the source is the same.
fn dependencies(
    shared: &Arc<Shared>,
    object: &Object,
    spec: &KustomizationSpec,
    artifact: &Artifact,
) -> Result<(), Blocked> {
    let state = shared.lock();
    for dependency in &spec.depends_on {
        let namespace = dependency.namespace.as_deref().unwrap_or(&object.key.namespace);
        let key = Key::new(Kind::Kustomization, namespace, &dependency.name);
        let waiting = |what: &str| Blocked::Waiting {
            reason: "DependencyNotReady",
            message: format!("dependency '{namespace}/{}' {what}", dependency.name),
        };
        let entry = state.objects.get(&key).ok_or_else(|| waiting("not found"))?;
        let Spec::Kustomization(theirs) = &entry.object.spec else { return Err(waiting("is not a Kustomization")) };
        let status = &entry.status;
        let ready =
            status.conditions.is_true(kinds::READY) && status.observed_generation == entry.object.metadata.generation;
        if !ready {
            return Err(waiting("is not ready"));
        }
        let same_source = takes_from(object, spec, &source_key(&entry.object, theirs));
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

/// The artifact's contents in a folder of their own, which goes with the value.
fn unpack(store: &Store, digest: &Digest, caps: Caps) -> Result<tempfile::TempDir, Blocked> {
    let gone = || Blocked::Waiting { reason: "ArtifactFailed", message: format!("artifact {digest} is not held now") };
    let blob = store.get(digest).map_err(|e| Blocked::Artifact(e.into()))?.ok_or_else(gone)?;
    let unpacked = build::unpack(&[blob], false, Ignoring::Nothing, caps, Some(store));
    let unpacked = unpacked.map_err(|e| Blocked::Artifact(e.of(&[*digest])))?;
    let folder = tempfile::Builder::new().prefix("render-").tempdir_in(store.root().join("spool"));
    let folder = folder.map_err(Blocked::Write)?;
    let opened = cap_std::fs::Dir::open_ambient_dir(folder.path(), cap_std::ambient_authority());
    unpacked.tree.write_plain(&opened.map_err(Blocked::Write)?).map_err(|e| Blocked::Artifact(e.into()))?;
    Ok(folder)
}

/// Replaces the file unless it says the same.
fn write(path: &Path, rendered: &Rendered) -> std::io::Result<()> {
    if std::fs::read(path).is_ok_and(|now| now == rendered.yaml.as_bytes()) {
        return Ok(());
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    std::io::Write::write_all(&mut file, rendered.yaml.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    std::fs::File::open(directory)?.sync_all()
}

fn judge(status: &mut Status, before: &Status, object: &Object, result: &Result<Artifact, Blocked>) -> Vec<Event> {
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
            let event = Event { normal: true, reason: "ReconciliationSucceeded".into(), message, class: None };
            return if is_new { vec![event] } else { Vec::new() };
        }
        Err(Blocked::Waiting { reason, message }) => (*reason, message.clone(), false),
        Err(Blocked::Artifact(error)) => ("ArtifactFailed", chain(error), false),
        Err(Blocked::Render(error)) => (error.reason(), chain(error), error.is_stalled()),
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
    if known.is_some_and(|k| k.reason == reason && k.message == message) {
        return Vec::new();
    }
    // Waiting is how every start begins, and no warning.
    let normal = matches!(result, Err(Blocked::Waiting { .. }));
    let class = result.as_ref().err().map(Blocked::class);
    vec![Event { normal, reason: reason.into(), message, class }]
}
