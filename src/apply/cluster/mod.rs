//! Objects of Kustomizations on a cluster: applied, watched for drift, deleted, waited for.
//!
//! **Promise.** As Flux's kustomize-controller: server-side apply with force under its field manager, in its stages, with its
//! owner labels, opt-outs and inventory, so that either adopts what the other applied. What somebody changes by hand is
//! undone at the next pass. Nothing is deleted that does not carry the owner labels at that moment.
//!
//! **Calls.** A pass in which nothing changed costs no call of its own: drift shows in lists of metadata by owner label, one
//! a kind, shared by all Kustomizations. Secrets are never listed; each costs one call for its metadata. As a ServiceAccount
//! lists are of its namespaces; where they are forbidden, each object costs a call.
//!
//! **Concurrency.** Passes over different Kustomizations run side by side, those over one after another.
//!
//! **After a crash** nothing is remembered: every object is applied once more, which the server answers with what it has.
//! Objects that were applied but are in no status yet are found again by the next pass over the same revision.

mod api;
mod error;
mod kinds;
mod pass;
mod prepare;
mod prune;
mod seen;
mod wait;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

pub use api::{CallError, Identity};
pub use error::ApplyError;
pub use pass::{Log, Pass};
pub use wait::Checks;

use self::{
    api::{Api, Resource},
    kinds::Kinds,
    pass::Memory,
    seen::Snapshots,
};
use super::{inventory, object::Id, render::Validation};
use crate::objects::{InventoryEntry, Leadership};

/// A Kustomization, as its owner labels name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// How a pass applies.
pub struct Task<'a> {
    /// As whom.
    pub who: Identity,
    /// What is asked of the server before anything is applied.
    pub validation: Validation,
    /// Whether objects whose fields cannot be changed are made anew.
    pub force: bool,
    /// Whether the status says that this very revision and spec were applied already: nothing has to be asked before then.
    pub applied_before: bool,
    /// Whether this process may still write: asked before each write that is not undone by the next pass.
    pub may_write: &'a (dyn Fn() -> bool + Send + Sync),
}

impl Task<'_> {
    /// What a deletion needs.
    fn deleting<'a>(who: Identity, may_write: &'a (dyn Fn() -> bool + Send + Sync)) -> Task<'a> {
        Task { who, validation: Validation::None, force: false, applied_before: false, may_write }
    }
}

/// Applies objects to one cluster; clones share what is known of it.
#[derive(Clone)]
pub struct Applier(Arc<Inner>);

impl fmt::Debug for Applier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Applier")
    }
}

struct Inner {
    api: Api,
    kinds: Kinds,
    snapshots: Snapshots,
    memories: Mutex<HashMap<Owner, Arc<tokio::sync::Mutex<Memory>>>>,
}

impl Applier {
    /// Applies with this client, as long as this process leads. The client should have no rate limit of its own: the server's
    /// priority and fairness decides.
    pub fn new(client: kube::Client, leadership: watch::Receiver<Leadership>) -> Self {
        Self(Arc::new(Inner {
            api: Api::new(client, leadership),
            kinds: Kinds::default(),
            snapshots: Snapshots::default(),
            memories: Mutex::default(),
        }))
    }

    /// Begins a pass; waits until the one before it is over.
    pub async fn pass(&self, owner: &Owner) -> Pass {
        let memory = {
            let mut memories = self.0.memories.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(memories.entry(owner.clone()).or_default())
        };
        Pass { inner: Arc::clone(&self.0), owner: owner.clone(), memory: memory.lock_owned().await }
    }

    /// Forgets a Kustomization that is gone.
    pub fn forget(&self, owner: &Owner) {
        self.0.memories.lock().unwrap_or_else(PoisonError::into_inner).remove(owner);
    }

    /// Forgets all: another replica applies from now on.
    pub fn forget_all(&self) {
        self.0.memories.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Deletes everything that a Kustomization applied: its inventory, and what a pass of this process applied beyond it.
    /// With `wait`, until it is gone or that time is over. An account that is gone deletes nothing, and that is no error.
    ///
    /// # Errors
    /// What could not be deleted, and why; the rest is.
    pub async fn remove_all(
        &self,
        owner: &Owner,
        account: Option<&str>,
        entries: &[InventoryEntry],
        wait: Option<Duration>,
        may_write: &(dyn Fn() -> bool + Send + Sync),
        log: &mut Log,
    ) -> Result<(), ApplyError> {
        let pass = self.pass(owner).await;
        let mut all = entries.to_vec();
        inventory::merge(&mut all, pass.inventory());
        let stale = inventory::stale(&all, &[]);
        if let Some(name) = account
            && !stale.is_empty()
            && !self.has_account(owner, name).await?
        {
            tracing::warn!(
                namespace = &*owner.namespace,
                kustomization = &*owner.name,
                account = name,
                "the account to impersonate is gone; nothing is deleted"
            );
            return Ok(());
        }
        let task = Task::deleting(Identity::of(&owner.namespace, account), may_write);
        let (_, result) = pass.prune(&task, &stale, log).await;
        result?;
        if let Some(limit) = wait
            && !pass.gone(&task.who, &stale, limit).await
        {
            tracing::warn!(
                namespace = &*owner.namespace,
                kustomization = &*owner.name,
                ?limit,
                "deleted objects are still there after spec.timeout; they are not waited for any longer"
            );
        }
        Ok(())
    }

    async fn has_account(&self, owner: &Owner, name: &str) -> Result<bool, ApplyError> {
        let accounts = Resource {
            group: String::new(),
            version: "v1".into(),
            kind: "ServiceAccount".into(),
            plural: "serviceaccounts".into(),
            namespaced: true,
        };
        let found = self.0.api.metadata(&Identity::default(), &accounts, &owner.namespace, name).await;
        let id = Id::new("v1", "ServiceAccount", &owner.namespace, name);
        Ok(found.map_err(|source| ApplyError::call(&id, "query", source))?.is_some())
    }
}
