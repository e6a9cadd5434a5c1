//! Whose turn it is to render: as many at once as fit into memory together.
//!
//! What a rendering takes at most is known by the size of the YAML that it reads. Small ones run side by side within one budget,
//! large ones within another, so one after the other mostly, and no small one waits behind them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
}

/// A part of a budget, as long as it is held.
pub struct Turn(#[allow(dead_code)] OwnedSemaphorePermit);

impl Default for Turns {
    fn default() -> Self {
        let of = |budget: u64| Arc::new(Semaphore::new(units(budget) as usize));
        Self { small: of(BUDGETS.0), large: of(BUDGETS.1) }
    }
}

impl Turns {
    /// Waits until there is room for a rendering that reads `size` bytes of YAML. One that needs more than there is has all of
    /// it.
    pub async fn take(&self, size: u64) -> Turn {
        let needed = size.saturating_mul(FACTOR).min(size.saturating_mul(3).saturating_add(NODES));
        let (lane, budget) = if size <= SMALL { (&self.small, BUDGETS.0) } else { (&self.large, BUDGETS.1) };
        match Arc::clone(lane).acquire_many_owned(units(needed.min(budget))).await {
            Ok(permit) => Turn(permit),
            Err(_) => unreachable!("the semaphore is never closed"),
        }
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
        assert!(now(6_700_000).await.is_ok());
    }
}
