//! How many fills are under way at once: of all registries, and of one of them, so that one that hangs leaves room to the
//! others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::{Way, fill::Upstream};

/// Fills under way at once.
const AT_ONCE: usize = 256;
/// Those of one registry among them.
const OF_ONE: usize = 64;

pub(super) struct Places {
    all: Semaphore,
    /// Of the registries that somebody fills from, or waits to.
    of: Mutex<HashMap<Upstream, Arc<Semaphore>>>,
}

/// A fill's place; dropping it gives it to the next.
#[must_use]
pub(super) struct Place<'a> {
    _own: OwnedSemaphorePermit,
    _all: SemaphorePermit<'a>,
}

impl Default for Places {
    fn default() -> Self {
        Self { all: Semaphore::new(AT_ONCE), of: Mutex::default() }
    }
}

impl Places {
    /// Waits for a place among the fills from this way's registry, then for one among all: who waits for the former holds
    /// none of the latter.
    pub async fn take(&self, way: &Way) -> Option<Place<'_>> {
        let own = self.own(way).acquire_owned().await.ok()?;
        let all = self.all.acquire().await.ok()?;
        Some(Place { _own: own, _all: all })
    }

    fn own(&self, way: &Way) -> Arc<Semaphore> {
        let upstream = (way.endpoint.registry.clone(), way.endpoint.transport.clone());
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = of.get(&upstream) {
            return Arc::clone(own);
        }
        // Whoever holds a place or waits for one holds this, too.
        of.retain(|_, own| Arc::strong_count(own) > 1);
        Arc::clone(of.entry(upstream).or_insert_with(|| Arc::new(Semaphore::new(OF_ONE))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Credentials, Endpoint, Transport};

    fn way(registry: &str) -> Way {
        let endpoint = Endpoint {
            registry: registry.parse().unwrap(),
            transport: Transport::default(),
            credentials: Credentials::Anonymous,
        };
        Way { endpoint, repository: "a".parse().unwrap() }
    }

    /// A place, if it needs no waiting.
    fn take<'a>(places: &'a Places, way: &Way) -> Option<Place<'a>> {
        let mut taking = Box::pin(places.take(way));
        match taking.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(place) => place,
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn one_registry_takes_its_share_and_all_together_no_more_than_there_are() {
        let places = Places::default();
        let held: Vec<_> = (0..2 * OF_ONE).filter_map(|_| take(&places, &way("a.example"))).collect();
        assert_eq!(held.len(), OF_ONE);
        let names: Vec<String> = (0..AT_ONCE).map(|n| format!("r{n}.example")).collect();
        let others: Vec<_> = names.iter().filter_map(|name| take(&places, &way(name))).collect();
        assert_eq!(others.len(), AT_ONCE - OF_ONE);
        drop(held);
        assert!(take(&places, &way("a.example")).is_some());
        drop(others);
        assert!(take(&places, &way("b.example")).is_some());
        assert!(places.of.lock().unwrap().len() <= 2, "nobody fills from the others any more");
    }
}
