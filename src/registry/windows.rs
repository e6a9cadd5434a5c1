//! Windows of silence: after a host has answered 429, nothing is sent to it until the time it stated.
//!
//! One request may go through all the same, if somebody asked for it by hand: its answer opens the window, or prolongs
//! it.

use std::{
    collections::HashMap,
    sync::{Mutex, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, header::RETRY_AFTER};

use super::{call::Call, connect::lock, error::RegistryError};

/// Where a 429 does not say how long, or says nonsense.
const DEFAULT_WINDOW: Duration = Duration::from_secs(60);
/// The longest silence that a 429 can ask for (R15).
const LONGEST_WINDOW: Duration = Duration::from_secs(3600);

/// The closed windows of one endpoint's hosts, the token service's among them.
#[derive(Default)]
pub(super) struct Windows(Mutex<HashMap<String, Window>>);

/// After a 429: silence until then.
#[derive(Clone, Copy)]
struct Window {
    until: Instant,
    probed: bool,
}

impl Windows {
    /// Inside a window nothing is sent, but for one probe that somebody asked for.
    pub(super) fn enter(&self, call: &Call<'_>, host: &str) -> Result<(), RegistryError> {
        let mut windows = lock(&self.0);
        let Some(window) = windows.get_mut(host) else { return Ok(()) };
        let now = Instant::now();
        if window.until <= now {
            windows.remove(host);
            return Ok(());
        }
        if call.probing.load(Ordering::Relaxed) {
            return Ok(());
        }
        if call.budget.requested && !window.probed {
            window.probed = true;
            call.probing.store(true, Ordering::Relaxed);
            return Ok(());
        }
        Err(RegistryError::RateLimited { host: host.to_owned(), after: window.until - now })
    }

    /// Begins or prolongs a window; what it still had to run is not shortened. A probe's 429 does not grant another probe.
    pub(super) fn close(&self, host: &str, after: Duration) -> Duration {
        let mut windows = lock(&self.0);
        let now = Instant::now();
        let before = windows.get(host).copied().filter(|window| window.until > now);
        let probed = before.is_some_and(|window| window.probed);
        let until = before.map_or(now + after, |window| window.until.max(now + after)).min(now + LONGEST_WINDOW);
        windows.insert(host.to_owned(), Window { until, probed });
        until - now
    }

    /// Ends a window before its time.
    pub(super) fn open(&self, host: &str) {
        lock(&self.0).remove(host);
    }
}

/// How long a 429 asks for silence.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Duration {
    let text = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::trim).unwrap_or_default();
    let stated = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
    } else {
        httpdate::parse_http_date(text).ok().map(|date| date.duration_since(now).unwrap_or_default())
    };
    stated.map_or(DEFAULT_WINDOW, |stated| stated.clamp(Duration::from_secs(1), LONGEST_WINDOW))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn retry_after_is_read_in_both_forms_and_bounded() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, seconds) in [
            (Some("7"), 7),
            (Some("0"), 1),
            (Some("3600"), 3600),
            (Some("99999999999999999999999"), 3600),
            (Some("Sun, 06 Nov 1994 08:50:37 GMT"), 60),
            (Some("Sun, 06 Nov 1994 08:00:00 GMT"), 1),
            (Some("soon"), 60),
            (Some("-5"), 60),
            (Some(""), 60),
            (None, 60),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(text) = text {
                headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
            }
            assert_eq!(retry_after(&headers, now), Duration::from_secs(seconds), "{text:?}");
        }
    }
}
