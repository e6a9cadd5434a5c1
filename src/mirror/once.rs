//! One piece of work for one key, whoever asks for it meanwhile, and whether or not they stay to see its end.
//!
//! Unlike a [`Flight`](crate::flight::Flight) the work belongs to no asker: it runs in a task of its own, so a client
//! that goes away costs the others nothing, and a question to an upstream is not put twice because of it.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

type Running<K, V> = Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>;

/// Work under way, by key.
pub(super) struct Once<K, V>(Running<K, V>);

impl<K, V> Default for Once<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// Takes the key away when the work ends, however it ends.
struct Entry<K: Hash + Eq, V> {
    running: Running<K, V>,
    key: K,
}

impl<K: Hash + Eq, V> Drop for Entry<K, V> {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl<K, V> Once<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The result of the work for `key`: `work` is begun unless some is under way. Also whether this call began it.
    /// `None` where the work panicked.
    pub async fn run<F>(&self, key: K, work: impl FnOnce() -> F) -> (Option<V>, bool)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (mut result, began) = self.begin(key, work);
        let value = match result.wait_for(Option::is_some).await {
            Ok(value) => value.clone(),
            Err(_) => None,
        };
        (value, began)
    }

    /// Whether work for `key` is under way.
    pub fn has(&self, key: &K) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }

    /// Begins the work unless some is under way, and waits for nothing.
    pub fn begin<F>(&self, key: K, work: impl FnOnce() -> F) -> (watch::Receiver<Option<V>>, bool)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(result) = running.get(&key) {
            return (result.clone(), false);
        }
        let (send, receive) = watch::channel(None);
        running.insert(key.clone(), receive.clone());
        drop(running);
        let entry = Entry { running: Arc::clone(&self.0), key };
        let work = work();
        tokio::spawn(async move {
            let value = work.await;
            // Gone from the list first: whoever asks from here on asks anew.
            drop(entry);
            send.send_replace(Some(value));
        });
        (receive, true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_askers_one_work_which_outlives_whoever_began_it() {
        let once = Once::<_, usize>::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let (open, gate) = watch::channel(false);
        let work = || {
            let (runs, mut gate) = (Arc::clone(&runs), gate.clone());
            move || async move {
                let run = runs.fetch_add(1, Ordering::Relaxed);
                let _ = gate.wait_for(|open| *open).await;
                run
            }
        };
        // The first asker goes away.
        let first = tokio::time::timeout(std::time::Duration::from_millis(1), once.run("k", work())).await;
        assert!(first.is_err());
        let (a, b, ()) = tokio::join!(once.run("k", work()), once.run("k", work()), async {
            open.send_replace(true);
        });
        assert_eq!((a, b), ((Some(0), false), (Some(0), false)));
        assert_eq!(once.run("k", work()).await, (Some(1), true), "a result is not kept");
    }

    #[tokio::test]
    async fn work_that_panics_leaves_nobody_waiting() {
        let once = Once::<_, ()>::default();
        let (value, began) = once.run("k", || async { panic!("on purpose") }).await;
        assert_eq!((value, began), (None, true));
        assert_eq!(once.run("k", || async {}).await, (Some(()), true));
    }
}
