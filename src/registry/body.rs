//! The body of a response: read within limits, counted, and its connection kept when it ends.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    connect::{Connection, Profile},
    error::RegistryError,
    target::Target,
};
use crate::metrics;

/// A body slower than this for the whole of a watch's period is given up.
const SLOWEST: u64 = 1 << 10;

/// The speed below which, and the time after which, a transfer is given up.
pub(super) struct Watch {
    period: Duration,
    waited: Duration,
    got: u64,
}

impl Watch {
    pub(super) fn new(period: Duration) -> Self {
        Self { period, waited: Duration::ZERO, got: 0 }
    }

    /// Counts what came in the time it took; `false`: too slow. Only waiting for the server counts, so a slow receiver
    /// is not held against it.
    fn note(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.got += bytes as u64;
        if self.waited < self.period {
            return true;
        }
        let enough = self.got as f64 >= SLOWEST as f64 * self.waited.as_secs_f64();
        self.waited = Duration::ZERO;
        self.got = 0;
        enough
    }

    fn left(&self) -> Duration {
        self.period.saturating_sub(self.waited)
    }
}

/// A response's body. Dropped before its end, it closes the connection.
pub(super) struct Body {
    incoming: hyper::body::Incoming,
    home: Option<(Arc<Profile>, Connection)>,
    target: Target,
    watch: Watch,
    upstream: Arc<str>,
    /// The credentials that were sent for it, which it may repeat.
    shown: Vec<HeaderValue>,
    counted: u64,
    /// A frame that came while nobody waited for it, or the end.
    arrived: Option<Option<Result<Frame<Bytes>, hyper::Error>>>,
}

impl Body {
    pub(super) fn new(
        incoming: hyper::body::Incoming,
        home: (Arc<Profile>, Connection),
        target: Target,
        period: Duration,
        upstream: Arc<str>,
    ) -> Self {
        let (home, watch) = (Some(home), Watch::new(period));
        let mut body = Self { incoming, home, target, watch, upstream, shown: Vec::new(), counted: 0, arrived: None };
        if body.incoming.is_end_stream() {
            body.keep();
        }
        body
    }

    /// Where it came from, after redirects.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// The credentials that were sent for it.
    pub(super) fn shown(&self) -> &[HeaderValue] {
        &self.shown
    }

    /// These were sent for it, too.
    pub(super) fn note_shown(mut self, credentials: impl IntoIterator<Item = HeaderValue>) -> Self {
        self.shown.extend(credentials);
        self
    }

    fn keep(&mut self) {
        if let Some((profile, connection)) = self.home.take() {
            profile.keep(self.target.origin(), connection);
        }
    }

    /// The next bytes, never none; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        self.next_within(None).await
    }

    /// The same for somebody who waits for a byte no longer than `silence`.
    pub(super) async fn next_within(&mut self, silence: Option<Duration>) -> Result<Option<Bytes>, RegistryError> {
        let begun = Instant::now();
        loop {
            let start = Instant::now();
            let patience = silence.map_or(Duration::MAX, |silence| silence.saturating_sub(start - begun));
            let frame = match self.arrived.take() {
                Some(frame) => Ok(frame),
                None => timeout(self.watch.left().min(patience), self.incoming.frame()).await,
            };
            let bytes = match &frame {
                Ok(Some(Ok(frame))) => frame.data_ref().map_or(0, Bytes::len),
                _ => 0,
            };
            self.counted += bytes as u64;
            let fast_enough = self.watch.note(start.elapsed(), bytes);
            match frame {
                Ok(None) => {
                    self.keep();
                    return Ok(None);
                }
                Ok(Some(Err(error))) => {
                    self.home = None;
                    return Err(RegistryError::Unreachable {
                        what: self.target.to_string(),
                        doing: "the connection broke in the body",
                        source: error.into(),
                    });
                }
                Ok(Some(Ok(_))) | Err(_) if !fast_enough => {
                    self.home = None;
                    return Err(RegistryError::Timeout {
                        what: self.target.to_string(),
                        waiting: "in the body, which comes at less than 1 KiB/s",
                    });
                }
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    // Trailers say nothing that is used here.
                    _ => {}
                },
                Err(_) if silence.is_some_and(|silence| begun.elapsed() >= silence) => {
                    self.home = None;
                    return Err(RegistryError::Timeout {
                        what: self.target.to_string(),
                        waiting: "in the body, of which nothing more comes",
                    });
                }
                Err(_) => {}
            }
        }
    }

    /// The next bytes, if they are here already.
    pub(super) fn next_now(&mut self) -> Option<Bytes> {
        if self.arrived.is_none() {
            // Whoever waits next polls again, and is the one who is woken.
            let mut nobody = Context::from_waker(Waker::noop());
            self.arrived = match Pin::new(&mut self.incoming).poll_frame(&mut nobody) {
                Poll::Ready(frame) => Some(frame),
                Poll::Pending => None,
            };
        }
        match self.arrived.take() {
            Some(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) if !data.is_empty() => {
                    self.counted += data.len() as u64;
                    self.watch.note(Duration::ZERO, data.len());
                    Some(data)
                }
                _ => None,
            },
            // The end, or how it broke: for whoever waits.
            other => {
                self.arrived = other;
                None
            }
        }
    }

    /// All of it, at most `cap` bytes; one more is an error, and no more is read.
    pub(super) async fn collect(&mut self, cap: usize) -> Result<Bytes, RegistryError> {
        let too_large = |target: &Target| RegistryError::Size {
            what: target.to_string(),
            why: format!("the body is longer than {cap} bytes"),
        };
        let known = self.incoming.size_hint().exact();
        if known.is_some_and(|length| length > cap as u64) {
            return Err(too_large(&self.target));
        }
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        if known == Some(first.len() as u64) {
            // The usual small body: one frame, no copy. The next poll sees the end and keeps the connection.
            let rest = self.next().await?;
            debug_assert!(rest.is_none());
            return Ok(first);
        }
        let capacity = known.map_or(first.len() * 2, |length| length as usize);
        let mut all = BytesMut::with_capacity(capacity.min(cap).min(SMALL));
        let mut next = Some(first);
        let mut large = None;
        while let Some(data) = next {
            let len = all.len() + data.len();
            if len > cap {
                return Err(too_large(&self.target));
            }
            if len > SMALL && large.is_none() {
                // Whoever waits here has a deadline.
                large = LARGE.acquire().await.ok();
                all.reserve(capacity.min(cap).saturating_sub(all.len()));
            }
            all.extend_from_slice(&data);
            next = self.next().await?;
        }
        Ok(all.freeze())
    }

    /// Reads a short rest, so that the connection can be used again; a long or slow one is not worth it.
    pub(super) async fn discard(mut self) {
        const WORTH: usize = 16 << 10;
        let _ = timeout(Duration::from_secs(1), self.collect(WORTH)).await;
    }
}

/// Up to this many bytes a body may lie in memory whatever else does.
const SMALL: usize = 256 << 10;
/// Larger ones, which are rare, are read a few at a time: manifests are read whole, and have up to 4 MiB.
static LARGE: Semaphore = Semaphore::const_new(16);

impl Drop for Body {
    fn drop(&mut self) {
        if self.counted > 0 {
            metrics::upstream_bytes(&self.upstream, self.counted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_gives_up_only_after_a_whole_period_below_the_limit() {
        let second = Duration::from_secs(1);
        let mut watch = Watch::new(3 * second);
        assert!(watch.note(second, 10));
        assert!(watch.note(second, 10));
        assert!(watch.note(second, 3052), "3072 bytes in 3 s are enough");
        assert!(watch.note(second, 0));
        assert!(watch.note(second, 0));
        assert!(!watch.note(second, 3071));
    }
}
