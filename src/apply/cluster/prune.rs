//! Deleting what is no longer wanted. Only what carries our owner labels goes, and only the very object that was looked at.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Inner, Owner, Task,
    api::{CallError, Identity, Resource},
    error::ApplyError,
    pass::{Action, Log, Pass},
    seen::Metadata,
};
use crate::{
    apply::{
        inventory,
        marks::{self, Marks},
        object::Id,
    },
    objects::InventoryEntry,
};

/// How often a deletion is tried that somebody else's write comes before.
const ATTEMPTS: usize = 5;
/// How often it is asked what a kind is served as, and how long after the first two times: the API server stops to serve a
/// version a moment before it stops to list it.
const ASKS: (usize, Duration) = (4, Duration::from_millis(500));

impl Pass {
    /// Deletes objects in their order. What could not be deleted comes back, to be kept in the inventory, with the reasons.
    pub async fn prune(
        &self,
        task: &Task<'_>,
        stale: &[Id],
        log: &mut Log,
    ) -> (Vec<InventoryEntry>, Result<(), ApplyError>) {
        let mut survivors = Vec::new();
        let mut failed = Vec::new();
        for id in stale {
            if !(task.may_write)() {
                survivors.push(inventory::entry(id));
                failed.push(ApplyError::Canceled);
                continue;
            }
            match self.inner.prune(&task.who, &self.owner, id).await {
                Ok(true) => log.add(id, Action::Deleted),
                Ok(false) => {}
                Err(error) => {
                    survivors.push(inventory::entry(id));
                    failed.push(error);
                }
            }
        }
        let result = if failed.is_empty() { Ok(()) } else { Err(ApplyError::Prune { failed }) };
        (survivors, result)
    }

    /// Waits until objects are gone, at most `limit`; whether they are.
    pub async fn gone(&self, who: &Identity, ids: &[Id], limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        for id in ids {
            loop {
                match self.inner.live(who, id).await {
                    Ok(None) => break,
                    _ if Instant::now() >= deadline => return false,
                    _ => tokio::time::sleep(Duration::from_secs(1)).await,
                }
            }
        }
        true
    }
}

impl Inner {
    /// An object of an inventory by its kind as it is served now; `None` if there is none. What has no definition any more has no
    /// objects either.
    async fn live(&self, who: &Identity, id: &Id) -> Result<Option<(Arc<Resource>, Metadata)>, CallError> {
        for ask in 1.. {
            let Some(of) = self.kinds.find_any(&self.api, id).await? else { break };
            match self.api.metadata(who, &of, &id.namespace, &id.name).await {
                Err(error) if error.is_unserved() && ask < ASKS.0 => {
                    self.kinds.forget(&of.group);
                    if ask > 1 {
                        tokio::time::sleep(ASKS.1).await;
                    }
                }
                found => return Ok(found?.map(|live| (of, live))),
            }
        }
        Ok(None)
    }

    /// Deletes one object if it is ours to delete; whether it was there and is deleted.
    async fn prune(self: &Arc<Self>, who: &Identity, owner: &Owner, id: &Id) -> Result<bool, ApplyError> {
        for attempt in 1.. {
            let found = self.live(who, id).await.map_err(|source| ApplyError::call(id, "query", source))?;
            let Some((of, live)) = found else { return Ok(false) };
            let ours = marks::is_owned(&live.labels, &owner.namespace, &owner.name);
            if !ours
                || Marks::live(&live.labels, &live.annotations).forbids_deletion()
                || live.deletion_timestamp.is_some()
            {
                return Ok(false);
            }
            match self.api.delete(who, &of, &id.namespace, &id.name, &live).await {
                Ok(()) => return Ok(true),
                // It changed since: perhaps it is not ours any more.
                Err(error) if error.is_conflict() && attempt < ATTEMPTS => {}
                Err(error) => return Err(ApplyError::call(id, "delete", error)),
            }
        }
        Ok(false)
    }
}
