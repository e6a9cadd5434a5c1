//! A request's body: its bytes as they come, and what becomes of those that nobody wants.
//!
//! Many clients write the whole body before they look for an answer. Were the connection closed under them they would see
//! it broken, and never why: so who is refused is answered at once, and what is still on its way is read and thrown away,
//! within [`LINGER`], [`LINGER_SILENCE`] and [`LINGER_BYTES`] (RFC 9112, section 9.6). Who waits to be told to continue is
//! not; over HTTP/2 a stream ends without its connection.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode, Version, header::EXPECT, request::Parts};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, timeout, timeout_at};

use super::failure::Failure;
use crate::{class::Class, oci::error_body::ErrorCode, server::body::Body};

/// How long a client may be waited for until it has sent [`LEAST`] of a request's body.
const PATIENCE: Duration = Duration::from_secs(60);
/// What has to come in that time, in bytes: no network is so slow, and who drips bytes holds a connection's place for nothing.
const LEAST: u64 = 4 << 10;
/// How long the rest of a refused body is read: a gigabyte's way through a usual network, and half of what a shutdown waits.
const LINGER: Duration = Duration::from_secs(10);
/// How long for its next byte.
const LINGER_SILENCE: Duration = Duration::from_secs(2);
/// How much of it, in bytes.
const LINGER_BYTES: u64 = 1 << 30;

/// A request's body.
pub(super) struct Content {
    incoming: Incoming,
    state: State,
    version: Version,
    patience: Patience,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The client sends nothing before it is told to.
    Expecting,
    Coming,
    /// There is no more, or nothing more will come.
    Over,
}

impl Content {
    pub fn new(parts: &Parts, incoming: Incoming) -> Self {
        let state = match parts.headers.contains_key(EXPECT) {
            _ if incoming.is_end_stream() => State::Over,
            true => State::Expecting,
            false => State::Coming,
        };
        Self { incoming, state, version: parts.version, patience: Patience::default() }
    }

    /// The next bytes.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if self.state != State::Over {
            self.state = State::Coming;
        }
        loop {
            let invalid = Failure::new(ErrorCode::BlobUploadInvalid, Class::Client).close();
            let failure = match self.patience.wait(self.incoming.frame()).await {
                None => {
                    let failure = invalid.status(StatusCode::REQUEST_TIMEOUT);
                    failure.message(format!("less than {LEAST} bytes of the request's body came within {PATIENCE:?}"))
                }
                Some(None) => {
                    self.state = State::Over;
                    return Ok(None);
                }
                Some(Some(Err(error))) => invalid.message(format!("the request's body broke off: {error}")),
                Some(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        self.patience.came(data.len() as u64);
                        return Ok(Some(data));
                    }
                    Err(_) => continue,
                },
            };
            self.state = State::Over;
            return Err(failure);
        }
    }

    /// The answer to a request that is refused. With bytes of it unread, the connection is of no use any more.
    pub fn refused(self, failure: Failure) -> Response<Body> {
        if self.state == State::Over || self.incoming.is_end_stream() {
            return failure.into_response();
        }
        if self.state == State::Coming && self.version != Version::HTTP_2 {
            // The connection ends when this does.
            tokio::spawn(discard(self.incoming));
        }
        failure.close().into_response()
    }
}

/// How long somebody who sends too little is still waited for. What is done with the bytes meanwhile does not count.
struct Patience {
    left: Duration,
    came: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { left: PATIENCE, came: 0 }
    }
}

impl Patience {
    /// What `next` yields; `None` where that lasts too long.
    async fn wait<F: Future>(&mut self, next: F) -> Option<F::Output> {
        let begun = Instant::now();
        let yielded = timeout(self.left, next).await.ok();
        self.waited(begun.elapsed());
        yielded
    }

    fn waited(&mut self, long: Duration) {
        self.left = self.left.saturating_sub(long);
    }

    fn came(&mut self, bytes: u64) {
        self.came += bytes;
        if self.came >= LEAST {
            *self = Self::default();
        }
    }
}

/// Reads a body to its end, within the limits, and keeps nothing of it.
async fn discard(mut incoming: Incoming) {
    let deadline = Instant::now() + LINGER;
    let mut bytes = 0;
    while bytes < LINGER_BYTES {
        let wait = deadline.min(Instant::now() + LINGER_SILENCE);
        let Ok(Some(Ok(frame))) = timeout_at(wait, incoming.frame()).await else { return };
        bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_drips_bytes_is_waited_for_no_longer_than_who_sends_none() {
        let left = |seconds: u32, each: u64| {
            let mut patience = Patience::default();
            for _ in 0..seconds {
                patience.waited(Duration::from_secs(1));
                patience.came(each);
            }
            patience.left
        };
        assert_eq!(left(60, 0), Duration::ZERO);
        assert_eq!(left(60, 60), Duration::ZERO);
        assert!(left(600, 100) >= Duration::from_secs(15));
        assert_eq!(left(600, LEAST), PATIENCE);
    }

    #[tokio::test]
    async fn nothing_is_waited_for_when_the_time_is_over() {
        let mut patience = Patience { left: Duration::ZERO, came: 0 };
        assert!(patience.wait(std::future::pending::<()>()).await.is_none());
        assert!(Patience::default().wait(async {}).await.is_some());
    }
}
