//! How passes and objects end: the one place where statuses are kept, and where what an object left behind goes.

use std::sync::Arc;

use super::{KEEP_AGAIN, Shared, backoff, desired, kustomization, retention};
use crate::{
    blocking, metrics,
    objects::{Artifact, BoxFuture, Event, HelmChartSpec, Key, Kind, Object, Spec, Status},
};

impl Shared {
    /// Ends an object that is being deleted, as far as that is Larder's to do.
    pub(super) async fn end(self: &Arc<Self>, key: &Key) {
        let Some(object) = self.lock().objects.get(key).map(|e| Arc::clone(&e.object)) else { return };
        match &object.spec {
            Spec::Kustomization(spec) => {
                let Some(applier) = &self.config.applier else { return self.remove(key).await };
                kustomization::end(self, applier, &object, spec).await;
            }
            Spec::HelmChart(spec) => {
                // Else source-controller's, which has something to clear away.
                if !self.is_anothers(&object, spec).await {
                    self.remove(key).await;
                }
            }
            _ => self.remove(key).await,
        }
    }

    /// Whether a chart is source-controller's: what is in its status tells, or else the kind of its repository.
    async fn is_anothers(&self, object: &Object, spec: &HelmChartSpec) -> bool {
        let larders = {
            let state = self.lock();
            state.objects.get(&object.key).and_then(|e| e.status.artifact.as_ref()).map(Artifact::is_larders)
        };
        match larders {
            Some(larders) => !larders,
            None => desired::is_of_anothers(self, object, spec).await,
        }
    }

    /// Forgets an object, and with it its artifacts, tree, rendered file and status.
    pub(super) async fn remove(self: &Arc<Self>, key: &Key) {
        let gate = self.lock().objects.get(key).map(|e| Arc::clone(&e.gate));
        let _guard = match &gate {
            Some(gate) => Some(gate.lock().await),
            None => None,
        };
        let entry = self.lock().objects.remove(key);
        let known = entry.is_some();
        if let Some(entry) = entry {
            if let Some(group) = &entry.group {
                group.leave(key);
            }
            retention::drop_all(self, key, &entry.status, entry.retained).await;
        }
        if key.kind == Kind::Kustomization {
            if let Some(applier) = &self.config.applier {
                kustomization::forget(applier, key);
            }
            let file = kustomization::rendered_file(self.puller.store().root(), key);
            if let Err(error) = blocking::io(move || std::fs::remove_file(file)).await
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%key, %error, "cannot remove the rendered file");
            }
        }
        metrics::forget_object(key.kind.name(), &key.namespace, &key.name);
        if known {
            tracing::info!(%key, "deleted");
        }
        if let Err(error) = self.backend.forget(key).await {
            tracing::warn!(%key, %error, "cannot let the object go; it is tried again");
            tokio::spawn(Self::forget_later(Arc::clone(self), key.clone()));
        }
    }

    /// Until the backend has let an object go, its end is not complete.
    pub(super) async fn forget_later(self: Arc<Self>, key: Key) {
        let mut backoff = backoff::Backoff::default();
        loop {
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = self.shutdown.wait() => return,
            }
            // Made anew meanwhile: it is another one's.
            if self.lock().objects.contains_key(&key) || self.backend.forget(&key).await.is_ok() {
                return;
            }
        }
    }

    /// Has another pass over an object come soon, because what the last one found could not be kept.
    pub(super) fn again_later(self: Arc<Self>, key: Key, generation: i64) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(backoff::jittered(KEEP_AGAIN)) => {}
                () = self.shutdown.wait() => return,
            }
            let refused = {
                let state = self.lock();
                let Some(entry) = state.objects.get(&key) else { return };
                if entry.object.metadata.generation != generation {
                    return;
                }
                match (&entry.group, &entry.task) {
                    (Some(group), _) => group.wake_for(&key),
                    (_, Some(task)) => task.wake(),
                    _ => {}
                }
                entry.group.is_none() && entry.task.is_none()
            };
            if refused {
                self.admit(&key).await;
            }
        })
    }

    /// Keeps `status` for `object` unless it changed meanwhile; whether it was kept. Everything that the status names must be
    /// durable and fetchable before.
    pub(super) async fn conclude(self: &Arc<Self>, object: &Arc<Object>, status: Status, events: Vec<Event>) -> bool {
        let key = &object.key;
        if !self.is_leading() {
            return false;
        }
        let Some(gate) = self.lock().objects.get(key).map(|e| Arc::clone(&e.gate)) else { return false };
        let _guard = gate.lock().await;
        let (before, current) = {
            let state = self.lock();
            match state.objects.get(key) {
                Some(entry) if Arc::ptr_eq(&entry.gate, &gate) => {
                    (entry.status.clone(), entry.object.metadata.generation == object.metadata.generation)
                }
                _ => return false,
            }
        };
        if !current {
            // A result for another spec is never published. But what is on the cluster has to be known, to be pruned.
            let inventory = status.inventory;
            if key.kind == Kind::Kustomization && inventory.is_some() && inventory != before.inventory {
                let status = Status { inventory, ..before };
                match self.backend.patch_status(key, &status).await {
                    Ok(()) => _ = self.lock().objects.get_mut(key).map(|entry| entry.status = status),
                    Err(error) => {
                        tracing::warn!(%key, %error, "cannot keep the inventory of a pass that was overtaken")
                    }
                }
            }
            return false;
        }
        // Also where nothing changed: somebody else may have written it.
        if let Err(error) = self.backend.patch_status(key, &status).await {
            tracing::error!(%key, %error, "cannot keep the status; it is tried again");
            if let Some(entry) = self.lock().objects.get_mut(key) {
                // Whoever failed to say so may have kept it: what it names stays fetchable.
                let current = entry.status.artifact.as_ref().map(|a| a.path.clone());
                let made = status.artifact.as_ref().filter(|made| Some(&made.path) != current.as_ref());
                made.into_iter().for_each(|made| entry.retained.hold(made));
            }
            tokio::spawn(Self::again_later(Arc::clone(self), key.clone(), object.metadata.generation));
            return false;
        }
        if before != status {
            let mut state = self.lock();
            if let Some(entry) = state.objects.get_mut(key) {
                entry.retained.supersede(before.artifact.as_ref(), status.artifact.as_ref());
                entry.status = status.clone();
            }
            if let Some(artifact) = status.artifact.as_ref().filter(|a| a.is_larders()) {
                // Under the lock: a pass that was overtaken may take the path away which this one names again.
                self.published.insert(&artifact.path, artifact.digest);
                self.published.set_latest(&artifact.path);
            }
        }
        for event in events {
            self.backend.event(object, event).await;
        }
        let was = before.artifact.as_ref().map(|a| (&a.revision, &a.digest));
        let is = status.artifact.as_ref().map(|a| (&a.revision, &a.digest));
        // Of a Kustomization any change counts for those that depend on it; without a change nobody is woken, or two that
        // wait for each other would never sleep.
        if was != is || (key.kind == Kind::Kustomization && before != status) {
            kustomization::wake_dependants(self, key);
        }
        true
    }
}
