//! One flight for one key: of all who ask at once, one works and the others wait for what comes of it.
//!
//! Two kinds: [`Flight`] for a result that is had whole or not at all, and [`fill`] for bytes that are read while they
//! come, by a writer of its own that outlives the one who began it. Below is the first.
//!
//! The first asker leads: it does the work inside its own future. Whoever asks for the same key meanwhile follows and
//! gets a clone of the leader's result. A leader that is dropped half-way (its caller gave up) never strands its
//! followers: one of them leads in its place, with its own work. Results are not kept: the next asker after the end
//! begins a new flight.

pub mod fill;
#[cfg(test)]
mod interleavings;
mod sync;

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

type Flights<K, V> = Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>;

/// Flights by key; clones share them.
pub struct Flight<K, V>(Flights<K, V>);

impl<K, V> Clone for Flight<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for Flight<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// Takes the key away when the leader ends, however it ends.
struct Leader<K: Hash + Eq, V> {
    flights: Flights<K, V>,
    key: K,
    result: watch::Sender<Option<V>>,
}

impl<K: Hash + Eq, V> Drop for Leader<K, V> {
    fn drop(&mut self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

enum Role<K: Hash + Eq, V> {
    Lead(Leader<K, V>),
    Follow(watch::Receiver<Option<V>>),
}

impl<K: Hash + Eq + Clone, V: Clone> Flight<K, V> {
    /// The result of `work` for `key`: this caller's, or that of whoever is at it already.
    pub async fn run<F: Future<Output = V>>(&self, key: K, work: impl FnOnce() -> F) -> V {
        loop {
            match self.role(&key) {
                Role::Lead(leader) => {
                    let value = work().await;
                    leader.result.send_replace(Some(value.clone()));
                    return value;
                }
                Role::Follow(mut result) => {
                    // An error means that the leader is gone without a result: ask again, perhaps to lead.
                    if let Ok(value) = result.wait_for(Option::is_some).await
                        && let Some(value) = value.as_ref()
                    {
                        return value.clone();
                    }
                }
            }
        }
    }

    fn role(&self, key: &K) -> Role<K, V> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(result) = flights.get(key) {
            return Role::Follow(result.clone());
        }
        let (send, receive) = watch::channel(None);
        flights.insert(key.clone(), receive);
        Role::Lead(Leader { flights: Arc::clone(&self.0), key: key.clone(), result: send })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_askers_one_worker() {
        let flight = Flight::default();
        let runs = AtomicUsize::new(0);
        let (open, gate) = watch::channel(false);
        let ask = |n: usize| {
            let (flight, runs, mut gate) = (flight.clone(), &runs, gate.clone());
            async move {
                flight
                    .run("k", || async move {
                        runs.fetch_add(1, Ordering::Relaxed);
                        gate.wait_for(|open| *open).await.unwrap();
                        n
                    })
                    .await
            }
        };
        let (a, b, c, ()) = tokio::join!(ask(1), ask(2), ask(3), async {
            open.send_replace(true);
        });
        assert_eq!((a, b, c), (1, 1, 1));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        assert_eq!(flight.run("k", || async { 9 }).await, 9, "a result is not kept");
    }

    #[tokio::test]
    async fn a_lost_leader_is_replaced() {
        let flight = Flight::<_, u8>::default();
        let mut lost = Box::pin(flight.run("k", std::future::pending));
        assert!(poll_once(&mut lost).await.is_none());
        let mut follower = Box::pin(flight.run("k", || async { 2 }));
        assert!(poll_once(&mut follower).await.is_none());
        drop(lost);
        assert_eq!(follower.await, 2);
    }

    /// Polls once.
    async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
                std::task::Poll::Ready(value) => Some(value),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
