//! One Kustomization's objects brought onto the cluster.
//!
//! An object is applied if its text is not the one that was applied last, or if the live object is not as it was left then.
//! Everything else costs no call but its share of the lists. In each of Flux's stages the server is asked about all objects
//! that are to be applied before the first of them is, unless `spec.validation` says otherwise; the objects then go one after
//! the other, in order.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{sync::OwnedMutexGuard, task::JoinSet, time::Instant};

use super::{
    Inner, Owner, Task,
    api::{Applied, CallError, Identity, Resource},
    error::ApplyError,
    prepare::prepare,
    seen::Seen,
};
use crate::{
    apply::{inventory, managers, marks::Marks, object::Id, order, render::Validation},
    objects::InventoryEntry,
};

/// How long the definitions of a stage may take to be ready.
const STAGE: Duration = Duration::from_secs(60);
/// How long an object that is recreated may take to go.
const GONE: Duration = Duration::from_secs(60);
/// How long a kind may take to be served after its definition is established.
const SERVED: Duration = Duration::from_secs(10);
/// The oldest list that the first pass of a process looks at.
const RECENT: Duration = Duration::from_secs(10);
/// How often a take-over is tried that somebody else's write comes before.
const TAKE_OVERS: usize = 5;

/// What is remembered of a Kustomization between passes. Lost with the process: then everything is applied once more.
#[derive(Default)]
pub struct Memory {
    /// What the last complete pass was made from.
    pub(super) inputs: Option<[u8; 32]>,
    /// By the inventory's id.
    pub(super) objects: HashMap<String, Remembered>,
    /// When the last of them was applied.
    pub(super) applied: Option<Instant>,
    /// Whether all were healthy as they are remembered.
    pub(super) healthy: bool,
}

/// One applied object.
pub(super) struct Remembered {
    pub id: Id,
    pub of: Arc<Resource>,
    /// Of the body that was applied.
    hash: [u8; 32],
    /// As it was then; `None` if it was passed over and there was none.
    seen: Option<Seen>,
    /// Passed over for an opt-out.
    pub skipped: bool,
    /// A Job that goes by itself when it is done.
    pub passing: bool,
    /// Whether the live object is as it was.
    kept: bool,
}

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// There was none.
    Created,
    /// It was another.
    Configured,
    /// Deleted.
    Deleted,
}

impl Action {
    const fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Deleted => "deleted",
        }
    }
}

/// What was done, a line an object as Flux's events have it: `Deployment/ns/name created`.
#[derive(Clone, Debug, Default)]
pub struct Log(pub Vec<String>);

impl Log {
    pub(super) fn add(&mut self, id: &Id, action: Action) {
        self.0.push(format!("{id} {}", action.word()));
    }
}

/// An object on its way.
struct Item {
    id: Id,
    of: Arc<Resource>,
    body: Arc<[u8]>,
    hash: [u8; 32],
    marks: Marks,
    passing: bool,
}

/// What is known of the live object before it is applied.
enum Look {
    Absent,
    Present(Seen),
}

/// A pass over one Kustomization, alone with it.
pub struct Pass {
    pub(super) inner: Arc<Inner>,
    pub(super) owner: Owner,
    pub(super) memory: OwnedMutexGuard<Memory>,
}

impl Pass {
    /// Whether the cluster is as the last complete pass from the same inputs left it, as far as lists show that are not older than
    /// `oldest`. Objects that are not are applied by the next [`Pass::apply`].
    pub async fn is_settled(
        &mut self,
        task: &Task<'_>,
        inputs: &[u8; 32],
        oldest: Instant,
    ) -> Result<bool, ApplyError> {
        let complete = self.memory.inputs.as_ref() == Some(inputs);
        let kept = self.look_again(task, oldest).await?;
        Ok(complete && kept)
    }

    /// Compares what is remembered with what is there.
    async fn look_again(&mut self, task: &Task<'_>, oldest: Instant) -> Result<bool, ApplyError> {
        // A list from before the last write would show that write as somebody's.
        let since = self.memory.applied.map_or(oldest, |applied| applied.max(oldest));
        let (inner, who) = (Arc::clone(&self.inner), &task.who);
        let mut all = true;
        let memory = &mut *self.memory;
        for known in memory.objects.values_mut() {
            let Id { namespace, name, .. } = &known.id;
            let failed = |source| ApplyError::call(&known.id, "query", source);
            let listed = inner.snapshots.get(&inner.api, who, &known.of, namespace, since).await.map_err(failed)?;
            let mut now = listed.as_ref().and_then(|snapshot| snapshot.get(namespace, name).cloned());
            // What is not ours by its labels is in no list.
            if now.is_none() && (listed.is_none() || (known.skipped && known.seen.is_some())) {
                let found = inner.api.metadata(who, &known.of, namespace, name).await;
                now = match found {
                    // It is looked for again where it is applied.
                    Err(error) if error.is_unserved() => {
                        inner.kinds.forget(&known.of.group);
                        None
                    }
                    found => found.map_err(failed)?.as_ref().map(Seen::from),
                };
            }
            known.kept = match (&known.seen, &now) {
                (Some(seen), Some(now)) => {
                    memory.healthy &= seen.is_same(now);
                    seen.is_kept(now)
                }
                (None, None) => true,
                // A finished Job that is gone by itself is applied again, as Flux does.
                _ => false,
            };
            if known.kept && now.is_some() {
                known.seen = now;
            }
            all &= known.kept;
        }
        Ok(all)
    }

    /// Applies objects, which are in order. What was done is in the log also if an error ends it; what is on the cluster
    /// then, [`Pass::inventory`] says.
    pub async fn apply(
        &mut self,
        task: &Task<'_>,
        inputs: &[u8; 32],
        objects: Vec<(Id, Value)>,
        log: &mut Log,
    ) -> Result<Vec<InventoryEntry>, ApplyError> {
        self.memory.inputs = None;
        let definitions: Vec<(String, String)> = objects.iter().filter_map(|(id, o)| defined(id, o)).collect();
        let namespaces: Vec<String> =
            objects.iter().filter(|(id, _)| id.kind == "Namespace").map(|(id, _)| id.name.clone()).collect();
        if task.validation == Validation::Server {
            let asked = self.ask(task, &objects, &definitions, &namespaces).await;
            asked.inspect_err(|error| self.inner.kinds.doubt(error))?;
        }
        let mut entries = Vec::with_capacity(objects.len());
        let mut stages: [Vec<(Id, Value)>; 3] = Default::default();
        for (id, object) in objects {
            stages[usize::from(order::stage(&id))].push((id, object));
        }
        for (nth, stage) in stages.into_iter().enumerate() {
            let mut items = Vec::with_capacity(stage.len());
            for (id, object) in stage {
                items.push(self.item(id, object, &definitions).await?);
            }
            entries.extend(items.iter().map(|item| inventory::entry(&item.id)));
            let applied = self.stage(task, items, log).await;
            let applied = applied.inspect_err(|error| self.inner.kinds.doubt(error))?;
            if nth < 2 && !applied.is_empty() {
                self.wait(task, &applied, STAGE, &|| true).await?;
            }
        }
        let current: std::collections::HashSet<&str> = entries.iter().map(|e| e.id.as_str()).collect();
        self.memory.objects.retain(|id, _| current.contains(id.as_str()));
        self.memory.inputs = Some(*inputs);
        Ok(entries)
    }

    /// What of the last attempt is on the cluster.
    pub fn inventory(&self) -> Vec<InventoryEntry> {
        self.memory.objects.values().map(|known| inventory::entry(&known.id)).collect()
    }

    async fn item(&self, id: Id, object: Value, definitions: &[(String, String)]) -> Result<Item, ApplyError> {
        // Its definition may have been applied a moment ago.
        let awaited = definitions.iter().any(|(group, kind)| *group == id.group && *kind == id.kind);
        let deadline = Instant::now() + if awaited { SERVED } else { Duration::ZERO };
        let of = loop {
            let found = self.inner.kinds.find(&self.inner.api, &id.group, &id.version, &id.kind).await;
            match found.map_err(|source| ApplyError::call(&id, "discovery", source))? {
                Some(of) => break of,
                None if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(250)).await,
                None => return Err(ApplyError::UnknownKind { id: Box::new(id) }),
            }
        };
        let marks = Marks::of(&object);
        let passing = id.kind == "Job" && object.pointer("/spec/ttlSecondsAfterFinished").is_some_and(|v| !v.is_null());
        let (id, object) = prepare(&of, id, object);
        let body: Arc<[u8]> = object.to_string().into_bytes().into();
        let hash = *blake3::hash(&body).as_bytes();
        Ok(Item { id, of, body, hash, marks, passing })
    }

    /// Asks the server about all objects before the first is applied. What lies in a namespace, or is of a kind, that comes
    /// with them cannot be asked about yet.
    async fn ask(
        &self,
        task: &Task<'_>,
        objects: &[(Id, Value)],
        definitions: &[(String, String)],
        namespaces: &[String],
    ) -> Result<(), ApplyError> {
        for (id, object) in objects {
            let comes = definitions.iter().any(|(group, kind)| *group == id.group && *kind == id.kind);
            let item = match self.item(id.clone(), object.clone(), &[]).await {
                Err(ApplyError::UnknownKind { .. }) if comes => continue,
                other => other?,
            };
            if item.marks.skip {
                continue;
            }
            let asked = self.call_apply(task, &item, true).await;
            match asked {
                Err(error) if error.is_not_found() && namespaces.contains(&item.id.namespace) => {}
                Err(error) if error.is_immutable() && (task.force || item.marks.force) => {}
                Err(error) => return Err(ApplyError::dry_run(&item.id, error)),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Applies what has to be applied of one stage; the ids of those objects.
    async fn stage(&mut self, task: &Task<'_>, items: Vec<Item>, log: &mut Log) -> Result<Vec<Id>, ApplyError> {
        let mut todo = Vec::new();
        for item in items {
            let key = inventory::entry(&item.id).id;
            match self.memory.objects.get(&key) {
                Some(known) if known.kept && known.hash == item.hash && known.of == item.of => {}
                _ => todo.push((key, item)),
            }
        }
        let ask = task.validation == Validation::Staged && !task.applied_before && todo.len() > 1;
        let looks = self.looks(task, &todo, ask).await?;
        let mut applied = Vec::new();
        for ((key, item), look) in todo.into_iter().zip(looks) {
            let live = match &look {
                Look::Present(seen) => Some(seen),
                Look::Absent => None,
            };
            let skipped = item.marks.skip
                || live.is_some_and(|seen| seen.marks.skip)
                || (item.marks.if_not_present && live.is_some());
            let seen = if skipped {
                live.cloned()
            } else {
                let seen = self.bring(task, &item, live).await?;
                if seen.changed(live) {
                    log.add(&item.id, if live.is_some() { Action::Configured } else { Action::Created });
                }
                applied.push(item.id.clone());
                self.memory.healthy = false;
                Some(seen)
            };
            self.memory.applied = Some(Instant::now());
            let known = Remembered {
                id: item.id,
                of: item.of,
                hash: item.hash,
                seen,
                skipped,
                passing: item.passing,
                kept: true,
            };
            self.memory.objects.insert(key, known);
        }
        Ok(applied)
    }

    /// Looks at the live objects: by asking what applying them would do, or by their metadata.
    async fn looks(&self, task: &Task<'_>, todo: &[(String, Item)], ask: bool) -> Result<Vec<Look>, ApplyError> {
        let mut looks: Vec<Option<Look>> = Vec::new();
        looks.resize_with(todo.len(), || None);
        let mut calls = JoinSet::new();
        for (nth, (_, item)) in todo.iter().enumerate() {
            let (inner, who, item) = (Arc::clone(&self.inner), task.who.clone(), item.shared());
            if item.marks.skip {
                looks[nth] = Some(Look::Absent);
                continue;
            }
            let (force, applied_before) = (task.force, task.applied_before);
            calls.spawn(async move { (nth, inner.look(&who, &item, ask, force, applied_before).await) });
        }
        while let Some(done) = calls.join_next().await {
            match done {
                Ok((nth, look)) => looks[nth] = Some(look?),
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        Ok(looks.into_iter().map(|look| look.unwrap_or(Look::Absent)).collect())
    }

    async fn call_apply(&self, task: &Task<'_>, item: &Item, dry: bool) -> Result<Applied, CallError> {
        let Id { namespace, name, .. } = &item.id;
        self.inner.api.apply(&task.who, &item.of, namespace, name, &item.body, dry).await
    }

    /// Applies one object; as it is then.
    async fn bring(&self, task: &Task<'_>, item: &Item, live: Option<&Seen>) -> Result<Seen, ApplyError> {
        if !(task.may_write)() {
            return Err(ApplyError::Canceled);
        }
        let merges = item.marks.merge || live.is_some_and(|seen| seen.marks.merge);
        if live.is_some_and(|seen| seen.untidy) && !merges {
            self.take_over(task, item).await?;
        }
        let failed = |source| ApplyError::call(&item.id, "apply", source);
        let seen = Seen::from(&self.apply_or_recreate(task, item, live).await?.metadata);
        if !seen.untidy || merges {
            return Ok(seen);
        }
        // An object without managers gets one for all that was there before, and only now.
        self.take_over(task, item).await?;
        let again = self.call_apply(task, item, false).await.map_err(failed)?;
        Ok(Seen::from(&again.metadata))
    }

    async fn apply_or_recreate(
        &self,
        task: &Task<'_>,
        item: &Item,
        live: Option<&Seen>,
    ) -> Result<Applied, ApplyError> {
        let failed = |source| ApplyError::call(&item.id, "apply", source);
        match self.call_apply(task, item, false).await {
            Err(error) if error.is_immutable() && live.is_some() => {
                if !(task.force || item.marks.force || live.is_some_and(|seen| seen.marks.force)) {
                    return Err(failed(error));
                }
                // A conflict with somebody else's write, or a quota's, passes: only what stays refused is made anew.
                match self.call_apply(task, item, true).await {
                    Err(error) if error.is_immutable() => {}
                    Err(error) => return Err(failed(error)),
                    Ok(_) => return self.call_apply(task, item, false).await.map_err(failed),
                }
                self.inner.remove(task, item).await?;
                if !(task.may_write)() {
                    return Err(ApplyError::Canceled);
                }
                self.call_apply(task, item, false).await.map_err(failed)
            }
            other => other.map_err(failed),
        }
    }

    /// Makes the applier the manager of what kubectl and the like set, so that applying removes it.
    async fn take_over(&self, task: &Task<'_>, item: &Item) -> Result<(), ApplyError> {
        let Id { namespace, name, .. } = &item.id;
        let failed = |source| ApplyError::call(&item.id, "metadata.managedFields cleanup", source);
        for attempt in 1.. {
            let found = self.inner.api.managers(&task.who, &item.of, namespace, name).await.map_err(failed)?;
            let Some(patch) = found.as_ref().and_then(managers::take_over) else { return Ok(()) };
            match self.inner.api.patch(&task.who, &item.of, namespace, name, &patch).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) if error.is_conflict() && attempt < TAKE_OVERS => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }
}

/// The group and kind that a definition defines.
fn defined(id: &Id, object: &Value) -> Option<(String, String)> {
    if id.kind != "CustomResourceDefinition" {
        return None;
    }
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    Some((text("/spec/group")?, text("/spec/names/kind")?))
}

impl Item {
    fn shared(&self) -> Self {
        Self {
            id: self.id.clone(),
            of: Arc::clone(&self.of),
            body: Arc::clone(&self.body),
            hash: self.hash,
            marks: self.marks,
            passing: self.passing,
        }
    }
}

impl Inner {
    /// Looks at one live object. With `ask`, the server says what applying would come to: also whether it would take it.
    async fn look(
        &self,
        who: &Identity,
        item: &Item,
        ask: bool,
        force: bool,
        applied_before: bool,
    ) -> Result<Look, ApplyError> {
        let Id { namespace, name, .. } = &item.id;
        let query = |source| ApplyError::call(&item.id, "query", source);
        // Applied before this process was: the lists that drift is seen by show it.
        if applied_before {
            let now = Instant::now();
            let since = now.checked_sub(RECENT).unwrap_or(now);
            let listed = self.snapshots.get(&self.api, who, &item.of, namespace, since).await;
            if let Some(seen) = listed.map_err(query)?.and_then(|s| s.get(namespace, name).cloned()) {
                return Ok(Look::Present(seen));
            }
        }
        if ask {
            match self.api.apply(who, &item.of, namespace, name, &item.body, true).await {
                Ok(applied) if applied.created => return Ok(Look::Absent),
                Ok(applied) => return Ok(Look::Present(Seen::from(&applied.metadata))),
                // The object alone says whether it may be recreated.
                Err(error) if error.is_immutable() => {
                    let found = self.api.metadata(who, &item.of, namespace, name).await.map_err(query)?;
                    let seen = found.as_ref().map(Seen::from);
                    let marks = seen.as_ref().map(|s| s.marks).unwrap_or_default();
                    let passed_over = marks.skip || (item.marks.if_not_present && seen.is_some());
                    return match seen {
                        Some(seen) if passed_over || force || item.marks.force || marks.force => {
                            Ok(Look::Present(seen))
                        }
                        _ => Err(ApplyError::dry_run(&item.id, error)),
                    };
                }
                Err(error) => return Err(ApplyError::dry_run(&item.id, error)),
            }
        }
        let found = self.api.metadata(who, &item.of, namespace, name).await.map_err(query)?;
        Ok(found.as_ref().map_or(Look::Absent, |metadata| Look::Present(Seen::from(metadata))))
    }

    /// Deletes an object that is made anew, and waits until it is gone.
    async fn remove(&self, task: &Task<'_>, item: &Item) -> Result<(), ApplyError> {
        let (who, Id { namespace, name, .. }) = (&task.who, &item.id);
        let failed = |source| ApplyError::call(&item.id, "delete (immutable field detected)", source);
        let deadline = Instant::now() + GONE;
        let mut delay = Duration::from_millis(100);
        while let Some(found) = self.api.metadata(who, &item.of, namespace, name).await.map_err(failed)? {
            if Instant::now() >= deadline {
                return Err(ApplyError::StillThere { id: Box::new(item.id.clone()), seconds: GONE.as_secs() });
            }
            if found.deletion_timestamp.is_none() {
                match self.api.delete(who, &item.of, namespace, name, &found).await {
                    Err(error) if !error.is_conflict() => return Err(failed(error)),
                    _ => continue,
                }
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(2));
        }
        Ok(())
    }
}
