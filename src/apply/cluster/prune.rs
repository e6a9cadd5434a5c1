//! Deleting what is no longer wanted. Only what carries our owner labels goes, and only the very object that was looked at.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Inner, Owner, Task,
    api::Identity,
    error::ApplyError,
    pass::{Action, Log, Pass},
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
                let there = match self.inner.kinds.find_any(&self.inner.api, id).await {
                    Ok(Some(of)) => self.inner.api.metadata(who, &of, &id.namespace, &id.name).await,
                    Ok(None) => Ok(None),
                    Err(error) => Err(error),
                };
                match there {
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
    /// Deletes one object if it is ours to delete; whether it was there and is deleted.
    async fn prune(self: &Arc<Self>, who: &Identity, owner: &Owner, id: &Id) -> Result<bool, ApplyError> {
        let found = self.kinds.find_any(&self.api, id).await;
        // What has no definition any more has no objects either.
        let Some(of) = found.map_err(|source| ApplyError::call(id, "discovery", source))? else { return Ok(false) };
        for attempt in 1.. {
            let found = self.api.metadata(who, &of, &id.namespace, &id.name).await;
            let Some(live) = found.map_err(|source| ApplyError::call(id, "query", source))? else { return Ok(false) };
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
