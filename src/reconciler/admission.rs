//! What becomes of an object that comes, changes or asks again: its place in the schedule.

use std::{sync::Arc, time::Duration};

use super::{
    Entry, Shared,
    desired::{self, Refused},
    group::Demand,
    kustomization, replica, source, verdict,
};
use crate::objects::{BoxFuture, Key, Kind, Object, Spec, Status};

impl Shared {
    /// Takes a new or changed object over, and publishes what its kept status names; whether it is new.
    pub(super) async fn adopt(self: &Arc<Self>, object: Arc<Object>, status: Status) -> bool {
        let key = object.key.clone();
        let known = {
            let mut state = self.lock();
            match state.objects.get_mut(&key) {
                Some(entry) => {
                    entry.object = Arc::clone(&object);
                    entry.epoch += 1;
                    true
                }
                None => false,
            }
        };
        if known {
            // Both may have changed since the last look.
            replica::observed(self, &key, status).await;
            return false;
        }
        let (status, retained) = source::republish(self, &object, status).await;
        let entry = Entry {
            object,
            status,
            desired: None,
            group: None,
            task: None,
            ending: false,
            epoch: 0,
            gate: Arc::default(),
            retained,
        };
        self.lock().objects.insert(key.clone(), entry);
        if !self.is_leading() && *self.synced.borrow() {
            let shared = Arc::clone(self);
            tokio::spawn(async move { replica::bring(&shared, &key).await });
        }
        true
    }

    /// Gives a new or changed object what it is due: its place in the schedule, or its end.
    pub(super) async fn settle(self: &Arc<Self>, key: &Key) {
        let going = self.lock().objects.get(key).map(|e| e.object.metadata.deletion_timestamp.is_some());
        match going {
            Some(true) if self.is_leading() => self.end(key).await,
            Some(false) => self.admit(key).await,
            _ => {}
        }
    }

    /// Reads an object's spec and Secrets, and gives it its place in the schedule.
    pub(super) async fn admit(self: &Arc<Self>, key: &Key) {
        if !self.is_leading() {
            return;
        }
        let Some((object, epoch)) = self.lock().objects.get(key).map(|e| (Arc::clone(&e.object), e.epoch)) else {
            return;
        };
        if let Spec::Kustomization(_) = &object.spec {
            return kustomization::admit(self, key);
        }
        if object.is_suspended() {
            return self.withdraw(key);
        }
        let desired = match desired::read(self, &object).await {
            Ok(Some(desired)) => Arc::new(desired),
            // Not Larder's to reconcile, or static.
            Ok(None) => return self.withdraw(key),
            Err(refused) => {
                self.withdraw(key);
                return self.refuse(&object, refused).await;
            }
        };
        let requested = object.requested_at();
        let mut state = self.lock();
        let Some(entry) = state.objects.get_mut(key).filter(|e| e.epoch == epoch) else { return };
        let newly_requested = requested.is_some() && requested != entry.status.last_handled_reconcile_at.as_deref();
        let unchanged = entry.desired.as_ref() == Some(&desired)
            && entry.group.as_ref().is_some_and(|g| *g.route() == desired.route)
            && entry.status.observed_generation == object.metadata.generation;
        if unchanged && !newly_requested {
            return;
        }
        if let Some(group) = entry.group.take_if(|g| *g.route() != desired.route) {
            group.leave(key);
        }
        let demand = Demand { interval: desired.interval, timeout: desired.timeout };
        entry.group = Some(self.groups.join(self, &desired.route, key, demand, newly_requested));
        entry.desired = Some(desired);
    }

    /// Brings an artifact back that a client asked for and that is not held any more.
    pub(super) fn heal(self: &Arc<Self>, path: &str) {
        let state = self.lock();
        let names = |e: &&Entry| e.status.artifact.as_ref().is_some_and(|a| a.path == path);
        let Some(entry) = state.objects.values().find(names) else { return };
        let key = entry.object.key.clone();
        if let Some(group) = &entry.group {
            group.wake_for(&key);
        } else if !self.is_leading() {
            let shared = Arc::clone(self);
            tokio::spawn(async move { replica::bring(&shared, &key).await });
        }
    }

    /// Takes an object out of the schedule; what is published stays.
    pub(super) fn withdraw(&self, key: &Key) {
        let mut state = self.lock();
        if let Some(entry) = state.objects.get_mut(key) {
            entry.desired = None;
            if let Some(group) = entry.group.take() {
                group.leave(key);
            }
        }
    }

    /// Records why an object could not even be tried, and tries again later where that may help.
    pub(super) async fn refuse(self: &Arc<Self>, object: &Arc<Object>, refused: Refused) {
        verdict::record_refusal(self, object, &refused).await;
        if let Some(delay) = refused.retry {
            let epoch = self.lock().objects.get(&object.key).map(|e| e.epoch);
            tokio::spawn(Self::admit_later(Arc::clone(self), object.key.clone(), epoch, delay));
        }
    }

    /// Boxed: it is spawned by what it calls.
    pub(super) fn admit_later(
        self: Arc<Self>,
        key: Key,
        epoch: Option<u64>,
        delay: Duration,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.shutdown.wait() => return,
            }
            let same = self.lock().objects.get(&key).is_some_and(|e| Some(e.epoch) == epoch && e.group.is_none());
            if same {
                self.admit(&key).await;
            }
        })
    }

    /// Re-admits the charts of a HelmRepository, and wakes the Kustomizations of a source or Kustomization.
    pub(super) async fn admit_dependants(self: &Arc<Self>, key: &Key) {
        if key.kind == Kind::HelmRepository {
            let charts: Vec<Key> = {
                let state = self.lock();
                let of_it = |e: &&Entry| match &e.object.spec {
                    Spec::HelmChart(spec) => {
                        *spec.source_ref.name == *key.name && e.object.key.namespace == key.namespace
                    }
                    _ => false,
                };
                state.objects.values().filter(of_it).map(|e| e.object.key.clone()).collect()
            };
            for chart in charts {
                self.admit(&chart).await;
            }
        }
        kustomization::wake_dependants(self, key);
    }

    pub(super) async fn dependency_changed(self: &Arc<Self>, namespace: &str, name: &str) {
        tracing::debug!(namespace, name, "a Secret, ServiceAccount or ConfigMap changed");
        let keys: Vec<Key> = {
            let state = self.lock();
            let mine = |k: &&Key| *k.namespace == *namespace && k.kind != Kind::Kustomization;
            state.objects.keys().filter(mine).cloned().collect()
        };
        for key in keys {
            self.admit(&key).await;
        }
    }
}
