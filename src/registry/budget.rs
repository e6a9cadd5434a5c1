//! How long a call may last.

use std::time::{Duration, Instant};

/// One call's budget.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// When it must have ended.
    pub deadline: Instant,
    /// A reconcile that somebody asked for: may probe once inside a 429 window.
    pub requested: bool,
    /// For a blob's body: after so long without a byte the transfer goes on over another connection, once, which has as
    /// long. `None`: the client's own limits, which are for those who have time.
    pub silence: Option<Duration>,
}

impl Budget {
    /// Ends at `deadline`.
    pub fn until(deadline: Instant) -> Self {
        Self { deadline, requested: false, silence: None }
    }

    /// Ends after `time`, counted from now.
    pub fn within(time: Duration) -> Self {
        Self::until(Instant::now() + time)
    }

    /// The same for what somebody asked for by hand, or not.
    pub fn requested(self, requested: bool) -> Self {
        Self { requested, ..self }
    }

    /// The same for somebody who does not put up with a longer silence.
    pub fn silence(self, silence: Duration) -> Self {
        Self { silence: Some(silence), ..self }
    }
}
