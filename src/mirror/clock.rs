//! The time that freshness and grants are reckoned in: milliseconds since 1970, since both outlive the process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Tells the time; clones agree.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicU64>>);

impl Clock {
    /// The machine's.
    pub fn system() -> Self {
        Self(None)
    }

    /// One that stands still at the machine's present time until it is [advanced](Self::advance): for tests.
    pub fn standing() -> Self {
        Self(Some(Arc::new(AtomicU64::new(Self::system().now()))))
    }

    /// Moves a standing clock on; does nothing to the machine's.
    pub fn advance(&self, by: Duration) {
        if let Some(standing) = &self.0 {
            standing.fetch_add(millis(by), Ordering::Relaxed);
        }
    }

    /// Milliseconds since 1970.
    pub fn now(&self) -> u64 {
        match &self.0 {
            Some(standing) => standing.load(Ordering::Relaxed),
            None => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis),
        }
    }
}

/// A span in milliseconds.
pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Whether what began at `begin` and lasts `span` milliseconds is under way at `now`. A begin in the future means that
/// the clock was set back: nothing is known then.
pub(super) fn lasts(begin: u64, span: u64, now: u64) -> bool {
    now.checked_sub(begin).is_some_and(|age| age < span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_neither_begins_in_the_future_nor_lasts_beyond_its_end() {
        for (begin, span, now, expected) in [
            (10, 5, 9, false),
            (10, 5, 10, true),
            (10, 5, 14, true),
            (10, 5, 15, false),
            (10, 0, 10, false),
            (10, u64::MAX, u64::MAX, true),
        ] {
            assert_eq!(lasts(begin, span, now), expected, "{begin} {span} {now}");
        }
    }

    #[test]
    fn a_standing_clock_moves_only_when_told() {
        let clock = Clock::standing();
        let (other, before) = (clock.clone(), clock.now());
        clock.advance(Duration::from_secs(3));
        assert_eq!(other.now(), before + 3000);
    }
}
