//! One HTTP request and its answer, over an idle connection or a new one: counted, timed, and its 429 heeded.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode,
    header::{ACCEPT_ENCODING, AUTHORIZATION, HOST, PROXY_AUTHORIZATION, USER_AGENT},
    response::Parts,
};
use tokio::time::timeout;

use super::{
    Inner, address,
    body::Body,
    call::{Call, Session},
    connect::Connection,
    error::RegistryError,
    target::Target,
    traffic::Outgoing,
    windows::retry_after,
};
use crate::{
    class::Class,
    metrics::{self, RequestKind},
};

/// Bytes a second below which an upload is given up.
const SLOWEST_UPLOAD: u64 = 16 << 10;
/// What the error says when a connection stood, and nothing usable came back over it.
pub(super) const NO_ANSWER: &str = "the connection ended without a usable answer";

/// A request without its URL.
pub(super) struct Send<'a> {
    pub(super) kind: RequestKind,
    pub(super) method: &'a Method,
    pub(super) headers: HeaderMap,
    pub(super) body: &'a Bytes,
    /// Whether a private address may be contacted.
    pub(super) private: bool,
}

impl Inner {
    /// One HTTP request, on an idle connection or a new one; counted.
    pub(super) async fn exchange(
        &self,
        session: &Arc<Session>,
        call: &Call<'_>,
        send: &Send<'_>,
        target: &Target,
    ) -> Result<(Parts, Body, Option<IpAddr>), RegistryError> {
        let host = target.host_and_port();
        session.windows.enter(call, &host)?;
        let mut fresh = false;
        loop {
            let connection = match session.profile.connection(target, send.private, fresh).await {
                Ok(connection) => connection,
                Err(error) => {
                    if error.class() == Class::Net {
                        metrics::upstream_request(&session.upstream, send.kind, Some(Class::Net));
                    }
                    return Err(error);
                }
            };
            let (peer, reused) = (connection.peer, connection.reused);
            match self.send_over(connection, session, send, target).await {
                Ok((parts, body)) => {
                    let outcome = outcome(parts.status);
                    metrics::upstream_request(&session.upstream, send.kind, outcome);
                    if session.authority == host || session.authority == target.authority() {
                        session.private.store(peer.is_some_and(address::is_private), Ordering::Relaxed);
                    }
                    if outcome == Some(Class::Rate) {
                        let after = session.windows.close(&host, retry_after(&parts.headers, SystemTime::now()));
                        body.discard().await;
                        return Err(RegistryError::RateLimited { host, after });
                    }
                    // Only a probe's answer opens a window: others may have been under way when it was closed.
                    if call.probing.load(Ordering::Relaxed) {
                        session.windows.open(&host);
                    }
                    return Ok((parts, body, peer));
                }
                Err(failure) => {
                    if failure.sent {
                        metrics::upstream_request(&session.upstream, send.kind, Some(Class::Net));
                    }
                    // The server closed an idle connection just now: nothing was lost but the connection.
                    let again = !failure.sent || matches!(*send.method, Method::GET | Method::HEAD);
                    if reused && again && failure.broken {
                        fresh = true;
                        continue;
                    }
                    return Err(failure.error);
                }
            }
        }
    }

    async fn send_over(
        &self,
        mut connection: Connection,
        session: &Arc<Session>,
        send: &Send<'_>,
        target: &Target,
    ) -> Result<(Parts, Body), Failure> {
        let uri = match connection.forward {
            Some(_) => format!("{}://{}{}", target.scheme(), target.authority(), target.path_and_query),
            None => target.path_and_query.clone(),
        };
        let mut request = Request::builder().method(send.method).uri(uri).header(HOST, target.authority());
        if let Some(headers) = request.headers_mut() {
            headers.extend(send.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
            headers.insert(USER_AGENT, HeaderValue::from_static(super::USER_AGENT));
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if let Some(Some(value)) = &connection.forward {
                headers.insert(PROXY_AUTHORIZATION, value.clone());
            }
        }
        let counted = (send.kind == RequestKind::Push).then_some(&self.traffic);
        let request = request.body(Outgoing::new(send.body.clone(), counted)).map_err(|error| Failure {
            error: RegistryError::Protocol { what: target.to_string(), why: error.to_string() },
            sent: false,
            broken: false,
        })?;
        let shown: Vec<HeaderValue> =
            [AUTHORIZATION, PROXY_AUTHORIZATION].iter().filter_map(|n| request.headers().get(n).cloned()).collect();
        // The time to send a body comes on top, at the slowest speed that is taken for one.
        let sending = Duration::from_secs(send.body.len() as u64 / SLOWEST_UPLOAD);
        let limit = self.config.response_timeout + sending;
        let answer = timeout(limit, connection.sender.try_send_request(request)).await;
        match answer {
            Err(_) => Err(Failure {
                error: RegistryError::Timeout { what: target.to_string(), waiting: "for an answer" },
                sent: true,
                broken: false,
            }),
            Ok(Err(mut error)) => {
                let sent = error.take_message().is_none();
                let source = error.into_error();
                let error = if source.is_parse_too_large() {
                    RegistryError::Size { what: target.to_string(), why: "the response's head is too large".to_owned() }
                } else {
                    RegistryError::Unreachable { what: target.to_string(), doing: NO_ANSWER, source: source.into() }
                };
                Err(Failure { error, sent, broken: true })
            }
            Ok(Ok(response)) => {
                let (parts, incoming) = response.into_parts();
                let home = (session.profile.clone(), connection);
                let period = self.config.slow_period;
                let body = Body::new(incoming, home, target.clone(), period, session.upstream.clone());
                Ok((parts, body.note_shown(shown)))
            }
        }
    }
}

struct Failure {
    error: RegistryError,
    /// Some of the request may have reached the server.
    sent: bool,
    broken: bool,
}

fn outcome(status: StatusCode) -> Option<Class> {
    match status.as_u16() {
        ..=399 => None,
        401 | 403 | 407 => Some(Class::Auth),
        404 => Some(Class::NotFound),
        429 => Some(Class::Rate),
        408 | 500.. => Some(Class::Net),
        _ => Some(Class::Proto),
    }
}
