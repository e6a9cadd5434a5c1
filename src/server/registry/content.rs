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

/// How long a client may send no byte of a request's body.
const BODY_STALL: Duration = Duration::from_secs(60);
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
        Self { incoming, state, version: parts.version }
    }

    /// The next bytes.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if self.state != State::Over {
            self.state = State::Coming;
        }
        loop {
            let invalid = Failure::new(ErrorCode::BlobUploadInvalid, Class::Client).close();
            let failure = match timeout(BODY_STALL, self.incoming.frame()).await {
                Err(_) => {
                    let failure = invalid.status(StatusCode::REQUEST_TIMEOUT);
                    failure.message("no byte of the request's body came for a minute")
                }
                Ok(None) => {
                    self.state = State::Over;
                    return Ok(None);
                }
                Ok(Some(Err(error))) => invalid.message(format!("the request's body broke off: {error}")),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => return Ok(Some(data)),
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
