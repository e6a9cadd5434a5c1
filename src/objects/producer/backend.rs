//! The producer as a backend: what it is around, with what is published.

use std::sync::PoisonError;

use serde_json::{Value, value::RawValue};
use tokio::sync::{mpsc, watch};

use super::Producer;
use crate::objects::{
    Backend, BackendError, BoxFuture, Change, Event, Key, Leadership, Listing, Object, References, Status,
};

impl Backend for Producer {
    fn changes(&self) -> mpsc::Receiver<Change> {
        let taken = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A second caller gets a receiver whose sender is gone: no changes, and no panic.
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.backend.leadership()
    }

    fn has_replicas(&self) -> bool {
        self.inner.backend.has_replicas()
    }

    fn references(&self) -> &dyn References {
        self.inner.backend.references()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.stop.send_replace(true);
        self.inner.backend.close()
    }

    fn claim<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), BackendError>> {
        self.inner.backend.claim(key)
    }

    fn forget<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(self.inner.forget(key))
    }

    fn is_gone<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool, BackendError>> {
        self.inner.backend.is_gone(key)
    }

    fn patch_status<'a>(&'a self, key: &'a Key, status: &'a Status) -> BoxFuture<'a, Result<(), BackendError>> {
        Box::pin(self.inner.patch_status(key, status))
    }

    fn event<'a>(&'a self, object: &'a Object, event: Event) -> BoxFuture<'a, ()> {
        self.inner.backend.event(object, event)
    }

    fn show<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Option<Value>> {
        Box::pin(async move { self.inner.backend.show(key).await.map(|shown| self.inner.with_failure(shown)) })
    }

    fn list<'a>(&'a self) -> BoxFuture<'a, Listing> {
        Box::pin(async move {
            let mut listing = self.inner.backend.list().await;
            if !self.inner.state().failures.is_empty() {
                for item in &mut listing.items {
                    let Ok(shown) = serde_json::from_str(item.get()) else { continue };
                    let shown: Result<Box<RawValue>, _> =
                        serde_json::value::to_raw_value(&self.inner.with_failure(shown));
                    shown.into_iter().for_each(|shown| *item = shown);
                }
            }
            listing
        })
    }
}
