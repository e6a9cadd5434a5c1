//! The memory of an upstream that does not answer at all. Finding that out costs whoever waits for it seconds, which
//! nobody has to spend again at once.
//!
//! That one question ran out of time says little: it may be one repository that hangs, or the host that a blob lies on,
//! or the token service. So the upstream's door is knocked at as well, by `GET /v2/` (distribution-spec 1.1, end-1), and
//! only where that brings no answer either is the upstream silent: for [`WINDOW`] nothing is sent to it. Then one question
//! goes through. Any answer, a 503 too, ends the silence at once; only that it does not answer prolongs it. A connection
//! that is refused is no silence: it costs nobody seconds, and an upstream that comes back is asked at once.

use std::{
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::timeout;

use super::{Inner, Miss, Upstream};
use crate::{
    class::Class,
    pull::PullError,
    registry::{Budget, Credentials, RegistryError},
};

/// For how many milliseconds a silent upstream is left alone: a good deal less than a kubelet's first pause between two
/// pulls (10 s), so that this costs no pull that would have come through.
pub(super) const WINDOW: u64 = 5_000;
/// How long before a question's time is over the door is knocked at: for that long it has to be silent, too.
const KNOCK: Duration = Duration::from_millis(1_500);

/// Since when an upstream is silent, as far as that matters.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// Until when nothing is sent to it; 0 while it talks.
    until: AtomicU64,
}

impl Silence {
    /// It did not answer.
    pub fn begin(&self, now: u64) {
        self.until.store(now.saturating_add(WINDOW), Ordering::Relaxed);
    }

    /// It answered.
    pub fn end(&self) {
        if self.until.load(Ordering::Relaxed) != 0 {
            self.until.store(0, Ordering::Relaxed);
        }
    }

    /// For how many milliseconds nothing is sent to it.
    pub fn left(&self, now: u64) -> u64 {
        let left = self.until.load(Ordering::Relaxed).saturating_sub(now);
        // A clock that was set back must not make it last.
        if left > WINDOW { 0 } else { left }
    }

    /// Whether a question may go out, else the milliseconds to wait. While it is silent one may in each window.
    pub fn enter(&self, now: u64) -> Result<(), u64> {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return Ok(());
        }
        match self.left(now) {
            0 => {}
            left => return Err(left),
        }
        match self.until.compare_exchange(until, now.saturating_add(WINDOW), Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) | Err(0) => Ok(()),
            Err(_) => Err(WINDOW),
        }
    }
}

impl Inner {
    /// Puts a question to an upstream, which has `patience` for it; unless the upstream was silent a moment ago.
    pub(super) fn put<T: Send>(
        &self,
        upstream: &Upstream,
        patience: Duration,
        question: impl Future<Output = Result<T, PullError>> + Send,
    ) -> impl Future<Output = Result<Result<T, PullError>, Miss>> + Send {
        // Held in two places of what follows, and each some KiB.
        self.put_boxed(upstream, patience, Box::pin(question))
    }

    async fn put_boxed<T>(
        &self,
        upstream: &Upstream,
        patience: Duration,
        mut question: Pin<Box<impl Future<Output = Result<T, PullError>>>>,
    ) -> Result<Result<T, PullError>, Miss> {
        let silence = &upstream.health.silence;
        silence.enter(self.clock.now()).map_err(unasked)?;
        let (answer, knocked) = match timeout(patience.saturating_sub(KNOCK), &mut question).await {
            Ok(answer) => (answer, None),
            Err(_) => {
                let mut knock = Box::pin(self.knock(upstream, KNOCK));
                tokio::select! {
                    biased;
                    answer = &mut question => (answer, Some(false)),
                    talks = &mut knock => (question.await, Some(talks)),
                }
            }
        };
        match &answer {
            Ok(_) => silence.end(),
            Err(error) if is_timeout(error) => {
                let talks = match knocked {
                    Some(talks) => talks,
                    None => Box::pin(self.knock(upstream, KNOCK)).await,
                };
                if talks {
                    silence.end();
                } else {
                    tracing::debug!(upstream = upstream.name(), "the upstream is silent");
                    silence.begin(self.clock.now());
                }
            }
            Err(error) if matches!(error.registry(), Some(RegistryError::Status { .. })) => silence.end(),
            Err(_) => {}
        }
        Ok(answer)
    }

    /// Whether the upstream answers at its door, whatever it says.
    async fn knock(&self, upstream: &Upstream, patience: Duration) -> bool {
        let endpoint = upstream.endpoint(Credentials::Anonymous);
        let answer = self.puller.greeting(&endpoint, None, Budget::within(patience)).await;
        !answer.is_err_and(|error| is_timeout(&error))
    }
}

/// Whether somebody did not answer: the upstream itself, or another whom the question led to.
pub(super) fn is_timeout(error: &PullError) -> bool {
    error.registry().is_some_and(RegistryError::is_timeout)
}

/// The answer to a question that was not put.
fn unasked(left: u64) -> Miss {
    let left = Duration::from_secs(left.div_ceil(1000));
    Miss::Unavailable {
        reason: format!("the upstream did not answer a moment ago; it is asked again in {} s", left.as_secs()).into(),
        class: Class::Net,
        status: None,
        retry_after: Some(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_it_lasts_one_question_goes_through_in_each_window() {
        let silence = Silence::default();
        let mut now = 10_000_000;
        assert_eq!((silence.enter(now), silence.left(now)), (Ok(()), 0), "it talks until it is found silent");
        silence.begin(now);
        for _ in 0..3 {
            assert_eq!(silence.enter(now), Err(WINDOW));
            assert_eq!(silence.enter(now + WINDOW - 1), Err(1));
            now += WINDOW;
            assert_eq!((silence.left(now), silence.enter(now)), (0, Ok(())));
        }
        silence.begin(now + 2_000);
        assert_eq!(silence.enter(now + WINDOW), Err(2_000), "the question's own end begins the window anew");
        silence.end();
        assert_eq!([silence.enter(now), silence.enter(now)], [Ok(()), Ok(())]);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_make_it_last() {
        let silence = Silence::default();
        silence.begin(10_000_000);
        assert_eq!(silence.enter(10_000_000 - 3_600_000), Ok(()));
        assert_eq!(silence.enter(10_000_000 - 3_600_000), Err(WINDOW));
    }

    #[test]
    fn a_question_that_was_not_put_is_a_failure_with_a_time_to_wait() {
        let miss = unasked(4_001);
        assert!(miss.is_failure() && miss.to_string().ends_with("in 5 s"), "{miss}");
        assert!(matches!(miss, Miss::Unavailable { retry_after: Some(after), .. } if after.as_secs() == 5));
    }
}
