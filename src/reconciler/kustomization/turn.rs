//! Whose turn it is to render: as many at once as fit into memory together.
//!
//! What a rendering takes at most is known by the size of the YAML that it reads. Small ones run side by side within one budget,
//! large ones within another and on one thread, so one after the other, and no small one waits behind them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::blocking;

/// Objects take this times the bytes of their YAML, at most: a key with a number for a value is 14 bytes of YAML, and 220 of memory.
const FACTOR: u64 = 16;
/// What the nodes of YAML take that may be read at most ([`Budget`](crate::apply::render)), whatever the size of the text.
const NODES: u64 = 128 << 20;
/// YAML up to this is small.
const SMALL: u64 = 512 << 10;
/// What small ones may take together, and large ones.
const BUDGETS: (u64, u64) = (64 << 20, 128 << 20);
/// Budgets are counted in these.
const UNIT: u64 = 1 << 10;

/// Hands out turns.
pub struct Turns {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// The thread of large ones.
    thread: Arc<Semaphore>,
}

/// A part of a budget, as long as it is held; and of a large one the thread, until it is rendered.
pub struct Turn {
    _room: OwnedSemaphorePermit,
    thread: Option<OwnedSemaphorePermit>,
}

impl Turn {
    /// Renders by `f`, which may block. What comes out has the room that comes with it.
    pub async fn render<T: Send + 'static, E: Send + 'static>(
        mut self,
        f: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<(T, Self), E> {
        let is_large = self.thread.is_some();
        let work = move || {
            let done = f();
            self.thread = None;
            done.map(|done| (done, self))
        };
        if is_large { blocking::alone(work).await } else { blocking::io(work).await }
    }
}

impl Default for Turns {
    fn default() -> Self {
        let of = |budget: u64| Arc::new(Semaphore::new(units(budget) as usize));
        Self { small: of(BUDGETS.0), large: of(BUDGETS.1), thread: Arc::new(Semaphore::new(1)) }
    }
}

impl Turns {
    /// Waits until there is room for a rendering that reads `size` bytes of YAML. One that needs more than there is has all of
    /// it.
    pub async fn take(&self, size: u64) -> Turn {
        let needed = size.saturating_mul(FACTOR).min(size.saturating_mul(3).saturating_add(NODES));
        let is_large = size > SMALL;
        let (lane, budget) = if is_large { (&self.large, BUDGETS.1) } else { (&self.small, BUDGETS.0) };
        let room = acquire(lane, units(needed.min(budget))).await;
        let thread = if is_large { Some(acquire(&self.thread, 1).await) } else { None };
        Turn { _room: room, thread }
    }
}

async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> OwnedSemaphorePermit {
    match Arc::clone(semaphore).acquire_many_owned(permits).await {
        Ok(permit) => permit,
        Err(_) => unreachable!("the semaphore is never closed"),
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn large_ones_come_one_after_the_other_and_small_ones_beside_them() {
        let turns = Turns::default();
        let now = |size| tokio::time::timeout(Duration::from_millis(50), turns.take(size));
        let first = now(6_700_000).await.expect("room");
        assert!(now(6_700_000).await.is_err());
        let small: Vec<Turn> = futures_util::future::join_all((0..100).map(|_| now(20 << 10)))
            .await
            .into_iter()
            .map(|t| t.expect("room"))
            .collect();
        assert!(now(512 << 10).await.is_ok());
        drop(first);
        let all = now(u64::MAX).await.expect("one that is larger than the budget has all of it");
        assert!(now((512 << 10) + 1).await.is_err());
        assert!(now(0).await.is_ok());
        drop((small, all));
        let first = now(1 << 20).await.expect("room");
        assert!(now(1 << 20).await.is_err(), "there is room, but one thread");
        let (thread, first) = first.render(|| Ok::<_, ()>(std::thread::current().id())).await.unwrap();
        let second = now(1 << 20).await.expect("the first is rendered");
        let (same, second) = second.render(|| Ok::<_, ()>(std::thread::current().id())).await.unwrap();
        assert_eq!(thread, same);
        drop((first, second));
        assert!(now(6_700_000).await.is_ok());
    }
}
