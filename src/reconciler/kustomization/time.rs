//! How long a pass may take.

use std::time::Duration;

use crate::objects::KustomizationSpec;

/// The shortest default timeout, and what the default leaves of the interval.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(30);

/// `spec.timeout`: the interval less 30 s if absent, at least 30 s.
pub fn timeout(spec: &KustomizationSpec) -> Duration {
    match &spec.timeout {
        Some(timeout) => timeout.get(),
        None => spec.interval.get().saturating_sub(TIMEOUT_MARGIN).max(TIMEOUT_MARGIN),
    }
}
