//! How long to wait: Flux's retry delays and interval jitter (flux.md section 1.8).

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(750);
const LAST: Duration = Duration::from_secs(15 * 60);
/// The shortest interval that is kept to.
const SHORTEST: Duration = Duration::from_secs(1);
/// When nothing is due by time.
pub const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Doubling delays from 750 ms to 15 min.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next delay, up to a quarter longer by chance, so that many who fail at once do not come back at once.
    pub fn next_delay(&mut self) -> Duration {
        let delay = FIRST.saturating_mul(1 << self.failures.min(20)).min(LAST);
        self.failures = self.failures.saturating_add(1);
        delay.mul_f64(1.0 + fastrand::f64() / 4.0)
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// An interval as it is kept to: a second at least, whoever asks for less. Without one (0, which requeues nothing in
/// Flux) there is no pass but for a change or a request.
pub fn periodic(interval: Duration) -> Option<Duration> {
    (!interval.is_zero()).then(|| interval.max(SHORTEST))
}

/// An interval, 5 % longer or shorter by chance (`--interval-jitter-percentage=5`).
pub fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.95 + fastrand::f64() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_interval_is_shorter_than_a_second_and_nothing_is_none() {
        let kept = |millis| periodic(Duration::from_millis(millis)).map(|interval| interval.as_millis());
        assert_eq!([0, 1, 999, 1_500].map(kept), [None, Some(1_000), Some(1_000), Some(1_500)]);
    }

    #[test]
    fn doubles_up_to_a_quarter_of_an_hour_and_begins_anew() {
        let mut backoff = Backoff::default();
        for expected in [750, 1_500, 3_000, 6_000] {
            let delay = backoff.next_delay().as_millis();
            assert!((expected..=expected * 5 / 4).contains(&delay), "{delay}");
        }
        for _ in 0..40 {
            assert!(backoff.next_delay() <= LAST.mul_f64(1.25));
        }
        backoff.reset();
        assert!(backoff.next_delay() < FIRST * 2);
    }
}
