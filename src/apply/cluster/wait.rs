//! Waiting for objects to be healthy, or gone.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    Inner, Task,
    api::{CallError, Identity, Resource},
    error::ApplyError,
    pass::Pass,
};
use crate::{
    apply::{
        health::{Health, health},
        object::Id,
    },
    class::chain,
};

/// The longest time between two looks: Flux's is 5 s.
const ROUND: Duration = Duration::from_secs(3);

/// Whose health counts.
pub enum Checks {
    /// Of everything that was applied.
    All,
    /// Of these.
    Named(Vec<Id>),
}

/// An object that is waited for.
struct Awaited {
    id: Id,
    of: Option<Arc<Resource>>,
    passing: bool,
    last: (Health, String),
}

impl Pass {
    /// Waits until all are healthy; at once where all were and nothing changed since. `go_on` says whether the wait still
    /// makes sense.
    pub async fn health(
        &mut self,
        task: &Task<'_>,
        checks: Checks,
        limit: Duration,
        go_on: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<(), ApplyError> {
        let all = matches!(checks, Checks::All);
        let ids: Vec<Id> = match checks {
            Checks::All if self.memory.healthy => return Ok(()),
            Checks::All => self.memory.objects.values().filter(|k| !k.skipped).map(|k| k.id.clone()).collect(),
            Checks::Named(ids) => ids,
        };
        // A Kustomization that waits for itself would wait for ever.
        let own = |id: &Id| {
            id.kind == "Kustomization" && *id.name == *self.owner.name && *id.namespace == *self.owner.namespace
        };
        let ids: Vec<Id> = ids.into_iter().filter(|id| !own(id)).collect();
        self.wait(task, &ids, limit, go_on).await?;
        // Of a few named ones it says nothing.
        self.memory.healthy |= all;
        Ok(())
    }

    pub(super) async fn wait(
        &self,
        task: &Task<'_>,
        ids: &[Id],
        limit: Duration,
        go_on: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<(), ApplyError> {
        let known = |id: &Id| self.memory.objects.get(&crate::apply::inventory::entry(id).id);
        let awaited = ids.iter().map(|id| Awaited {
            id: id.clone(),
            of: known(id).map(|k| Arc::clone(&k.of)),
            passing: known(id).is_some_and(|k| k.passing),
            last: (Health::Unknown, "not looked at yet".into()),
        });
        let mut pending: Vec<Awaited> = awaited.collect();
        let deadline = Instant::now() + limit;
        let mut delay = Duration::from_millis(100);
        loop {
            for one in &mut pending {
                one.last = self.inner.healthy(&task.who, one).await;
            }
            pending.retain(|one| one.last.0 != Health::Current);
            if pending.is_empty() {
                return Ok(());
            }
            // What has failed does not get well, and nothing else is left to wait for.
            let hopeless = pending.iter().all(|one| one.last.0 == Health::Failed);
            let timed_out = Instant::now() + delay > deadline;
            if hopeless || timed_out {
                return Err(ApplyError::Unhealthy {
                    timed_out: !hopeless,
                    unhealthy: pending.iter().map(Awaited::show).collect(),
                });
            }
            tokio::time::sleep(delay).await;
            if !go_on() {
                return Err(ApplyError::Canceled);
            }
            delay = (delay * 2).min(ROUND);
        }
    }
}

impl Awaited {
    fn show(&self) -> String {
        let (health, why) = &self.last;
        format!("{} status: '{}': {why}", self.id, health.word())
    }
}

impl Inner {
    async fn healthy(&self, who: &Identity, one: &mut Awaited) -> (Health, String) {
        match self.fetch(who, one).await {
            Ok(Some(object)) => health(&object, Timestamp::now()),
            Ok(None) if one.passing => (Health::Current, "the Job is done and gone".into()),
            Ok(None) => (Health::NotFound, "Resource not found".into()),
            Err(error) => (Health::Unknown, chain(&error)),
        }
    }

    async fn fetch(&self, who: &Identity, one: &mut Awaited) -> Result<Option<Value>, CallError> {
        let id = &one.id;
        let of = match &one.of {
            Some(of) => Arc::clone(of),
            None => match self.kinds.find(&self.api, &id.group, &id.version, &id.kind).await? {
                Some(of) => one.of.insert(of).clone(),
                None => return Ok(None),
            },
        };
        match self.api.object(who, &of, &id.namespace, &id.name).await {
            // Perhaps it is served another way than it was: looked for again at the next look.
            Err(error) if error.is_unserved() => {
                self.kinds.forget(&of.group);
                one.of = None;
                Ok(None)
            }
            found => found,
        }
    }
}
