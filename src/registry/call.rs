//! One request as a call makes it: attempts, authentication, redirects by hand, windows of silence after a 429.
//!
//! `perform` → attempts with backoff → `once` → 401 rounds → `follow` → redirects → `exchange` → one HTTP request.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, HOST, LOCATION, PROXY_AUTHORIZATION, RETRY_AFTER, USER_AGENT,
    },
    response::Parts,
};
use http_body_util::Full;
use tokio::time::timeout;

use super::{
    Budget, Credentials, Endpoint, Inner, address,
    auth::Known,
    body::Body,
    connect::{Connection, NO_CONNECTION, Profile, lock},
    error::RegistryError,
    target::Target,
};
use crate::{
    class::Class,
    metrics::{self, RequestKind},
    oci::{Repository, error_body},
};

/// How often a request is tried (R6).
const ATTEMPTS: u32 = 4;
/// How many redirects are followed (R16).
const MAX_REDIRECTS: usize = 10;
/// Where a 429 does not say how long, or says nonsense.
const DEFAULT_WINDOW: Duration = Duration::from_secs(60);
/// The longest silence that a 429 can ask for (R15).
const LONGEST_WINDOW: Duration = Duration::from_secs(3600);
/// Bytes a second below which an upload is given up.
const SLOWEST_UPLOAD: u64 = 16 << 10;
/// What the error says when a connection stood, and nothing usable came back over it.
const NO_ANSWER: &str = "the connection ended without a usable answer";

/// Calls to one endpoint share this: what the registry was seen to want. Never shared between transports or
/// credentials.
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) endpoint: Endpoint,
    pub(super) profile: Arc<Profile>,
    /// The host[:port] that serves the API.
    pub(super) authority: String,
    /// The metrics' label.
    pub(super) upstream: Arc<str>,
    pub(super) known: Mutex<Known>,
    /// Whether the registry's own address is a private one.
    pub(super) private: AtomicBool,
    windows: Mutex<HashMap<String, Window>>,
}

/// After a 429: silence until then.
#[derive(Clone, Copy)]
struct Window {
    until: Instant,
    probed: bool,
}

impl Session {
    pub(super) fn new(id: u64, endpoint: Endpoint, profile: Arc<Profile>) -> Self {
        Self {
            id,
            authority: endpoint.registry.api_authority(),
            upstream: endpoint.registry.to_string().into(),
            endpoint,
            profile,
            known: Mutex::default(),
            private: AtomicBool::new(false),
            windows: Mutex::default(),
        }
    }
}

/// A request to a registry's API.
pub(super) struct Call<'a> {
    pub(super) kind: RequestKind,
    pub(super) method: Method,
    /// On the registry: `/v2/…`.
    pub(super) path: String,
    /// Instead of `path`: where the registry itself sent us (an upload, the next page).
    pub(super) elsewhere: Option<Target>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) repository: &'a Repository,
    pub(super) push: bool,
    pub(super) budget: Budget,
    /// How many tokens this call has fetched.
    pub(super) tokens: AtomicU32,
    /// This call is the one that may ask inside a window.
    probing: AtomicBool,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        kind: RequestKind,
        method: Method,
        repository: &'a Repository,
        rest: std::fmt::Arguments<'_>,
        budget: Budget,
    ) -> Self {
        Self {
            push: kind == RequestKind::Push,
            kind,
            method,
            path: format!("/v2/{repository}/{rest}"),
            elsewhere: None,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            repository,
            budget,
            tokens: AtomicU32::new(0),
            probing: AtomicBool::new(false),
        }
    }

    /// The scope of the token specification that this call needs.
    pub(super) fn scope(&self) -> String {
        format!("repository:{}:{}", self.repository, if self.push { "pull,push" } else { "pull" })
    }
}

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
    /// Sends `call` until it is answered with a status that `accept` takes, at most [`ATTEMPTS`] times and within its
    /// budget. With `cap`, the body is read too, within the attempt.
    pub(super) async fn perform(
        &self,
        session: &Arc<Session>,
        call: &Call<'_>,
        accept: fn(StatusCode) -> bool,
        cap: Option<usize>,
    ) -> Result<(Parts, Body, Bytes), RegistryError> {
        let mut pause = self.config.retry_base;
        for attempt in 1.. {
            let error = match self.attempt(session, call, accept, cap).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if session.endpoint.transport.insecure
                && matches!(error, RegistryError::Unreachable { .. } | RegistryError::Handshake { .. })
            {
                lock(&session.profile.schemes).remove(&session.authority);
            }
            let delay = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
            if !error.is_transient() || attempt >= ATTEMPTS || Instant::now() + delay >= call.budget.deadline {
                return Err(error);
            }
            tracing::debug!(upstream = %session.upstream, attempt, %error, "trying again");
            tokio::time::sleep(delay).await;
            pause *= 3;
        }
        unreachable!("the loop above returns")
    }

    async fn attempt(
        &self,
        session: &Arc<Session>,
        call: &Call<'_>,
        accept: fn(StatusCode) -> bool,
        cap: Option<usize>,
    ) -> Result<(Parts, Body, Bytes), RegistryError> {
        let (parts, mut body) = self.once(session, call).await?;
        if !accept(parts.status) {
            return Err(refused(session, &call.method, parts.status, body).await);
        }
        if call.method == Method::GET {
            refuse_encoding(&parts.headers, body.target())?;
        }
        let bytes = match cap {
            Some(cap) => body.collect(cap).await?,
            None => Bytes::new(),
        };
        Ok((parts, body, bytes))
    }

    /// One attempt: the request, again with credentials where a 401 asks for them.
    async fn once(&self, session: &Arc<Session>, call: &Call<'_>) -> Result<(Parts, Body), RegistryError> {
        let base = self.base(session, call).await?;
        let target = match &call.elsewhere {
            Some(target) => target.clone(),
            None => Target { path_and_query: call.path.clone(), ..base.clone() },
        };
        let ours = target.same_origin(&base);
        loop {
            let mut headers = call.headers.clone();
            let authorization = if ours { self.authorization(session, call, &base).await? } else { None };
            if let Some(value) = &authorization {
                headers.insert(AUTHORIZATION, value.clone());
            }
            // What a spec names may be private; where a registry leads to may be so only if the registry is.
            let private = ours || session.private.load(Ordering::Relaxed);
            let send = Send { kind: call.kind, method: &call.method, headers, body: &call.body, private };
            let (parts, body) = self.follow(session, call, send, target.clone()).await?;
            let by_registry = ours && body.target().same_origin(&base);
            if parts.status == StatusCode::UNAUTHORIZED
                && by_registry
                && self.challenged(session, call, &parts.headers, authorization.as_ref()).await
            {
                body.discard().await;
                continue;
            }
            return Ok((parts, body));
        }
    }

    /// The registry's root, with the scheme that it is spoken to in.
    async fn base(&self, session: &Arc<Session>, call: &Call<'_>) -> Result<Target, RegistryError> {
        let transport = &session.endpoint.transport;
        let https = if transport.plain_http {
            false
        } else if transport.insecure {
            self.speaks_tls(session, call).await?
        } else {
            true
        };
        self.root(session, https)
    }

    fn root(&self, session: &Session, https: bool) -> Result<Target, RegistryError> {
        Target::of_authority(&session.authority, https, "/v2/".to_owned()).ok_or_else(|| RegistryError::Protocol {
            what: session.authority.clone(),
            why: "not a host and port that can be contacted".to_owned(),
        })
    }

    /// Settles what an `insecure` registry speaks, once: http is asked first, without credentials; TLS if the answer
    /// is not HTTP or says that a TLS port was addressed.
    async fn speaks_tls(&self, session: &Arc<Session>, call: &Call<'_>) -> Result<bool, RegistryError> {
        let cell = lock(&session.profile.schemes).entry(session.authority.clone()).or_default().clone();
        let mut settled = cell.lock().await;
        if let Some(tls) = *settled {
            return Ok(tls);
        }
        let target = self.root(session, false)?;
        let body = Bytes::new();
        let send = Send {
            kind: RequestKind::Ping,
            method: &Method::GET,
            headers: HeaderMap::new(),
            body: &body,
            private: true,
        };
        let tls = match self.exchange(session, call, &send, &target).await {
            Ok((parts, mut body, _)) => {
                let text = match parts.status {
                    StatusCode::BAD_REQUEST => body.collect(error_body::MAX_FOREIGN_BYTES).await.unwrap_or_default(),
                    _ => Bytes::new(),
                };
                body.discard().await;
                let to_tls = parts.status.is_redirection()
                    && location(&parts.headers)
                        .and_then(|location| target.join(&location))
                        .is_some_and(|to| to.https && to.host == target.host);
                to_tls || says_tls_port(&text)
            }
            Err(RegistryError::Unreachable { doing: NO_ANSWER, .. }) => true,
            // Port 80 is closed, and no port was named: 443 may be open.
            Err(
                RegistryError::Unreachable { doing: NO_CONNECTION, .. }
                | RegistryError::Timeout { waiting: "connecting", .. },
            ) if session.endpoint.registry.port().is_none() => true,
            // 429 is an HTTP answer.
            Err(RegistryError::RateLimited { .. }) => false,
            Err(error) => return Err(error),
        };
        *settled = Some(tls);
        Ok(tls)
    }

    /// Sends, and follows redirects: Authorization only to the first origin, https never to http, every address checked.
    pub(super) async fn follow(
        &self,
        session: &Arc<Session>,
        call: &Call<'_>,
        mut send: Send<'_>,
        mut target: Target,
    ) -> Result<(Parts, Body), RegistryError> {
        for _ in 0..=MAX_REDIRECTS {
            let (parts, body, peer) = self.exchange(session, call, &send, &target).await?;
            let follows = match parts.status.as_u16() {
                301..=303 => matches!(*send.method, Method::GET | Method::HEAD),
                307 | 308 => true,
                _ => false,
            };
            if !follows {
                return Ok((parts, body));
            }
            let next = location(&parts.headers).and_then(|location| target.join(&location)).ok_or_else(|| {
                RegistryError::Protocol {
                    what: target.to_string(),
                    why: "a redirect without a usable http or https Location".to_owned(),
                }
            })?;
            if target.https && !next.https {
                return Err(RegistryError::Forbidden {
                    what: target.to_string(),
                    why: format!("it redirects from https to {next}"),
                });
            }
            if !next.same_origin(&target) {
                send.headers.remove(AUTHORIZATION);
                send.private = peer.is_some_and(address::is_private);
            }
            body.discard().await;
            target = next;
        }
        Err(RegistryError::Protocol { what: target.to_string(), why: format!("more than {MAX_REDIRECTS} redirects") })
    }

    /// One HTTP request, on an idle connection or a new one; counted.
    async fn exchange(
        &self,
        session: &Arc<Session>,
        call: &Call<'_>,
        send: &Send<'_>,
        target: &Target,
    ) -> Result<(Parts, Body, Option<IpAddr>), RegistryError> {
        let host = target.host_and_port();
        enter(session, call, &host)?;
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
                        let after = close_window(session, &host, retry_after(&parts.headers, SystemTime::now()));
                        body.discard().await;
                        return Err(RegistryError::RateLimited { host, after });
                    }
                    // Only a probe's answer opens a window: others may have been under way when it was closed.
                    if call.probing.load(Ordering::Relaxed) {
                        lock(&session.windows).remove(&host);
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
        let request = request.body(Full::new(send.body.clone())).map_err(|error| Failure {
            error: RegistryError::Protocol { what: target.to_string(), why: error.to_string() },
            sent: false,
            broken: false,
        })?;
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
                Ok((parts, body))
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

/// Inside a window nothing is sent, but for one probe that somebody asked for.
fn enter(session: &Session, call: &Call<'_>, host: &str) -> Result<(), RegistryError> {
    let mut windows = lock(&session.windows);
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
fn close_window(session: &Session, host: &str, after: Duration) -> Duration {
    let mut windows = lock(&session.windows);
    let now = Instant::now();
    let before = windows.get(host).copied().filter(|window| window.until > now);
    let probed = before.is_some_and(|window| window.probed);
    let until = before.map_or(now + after, |window| window.until.max(now + after)).min(now + LONGEST_WINDOW);
    windows.insert(host.to_owned(), Window { until, probed });
    until - now
}

fn retry_after(headers: &HeaderMap, now: SystemTime) -> Duration {
    let text = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::trim).unwrap_or_default();
    let stated = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
    } else {
        httpdate::parse_http_date(text).ok().map(|date| date.duration_since(now).unwrap_or_default())
    };
    stated.map_or(DEFAULT_WINDOW, |stated| stated.clamp(Duration::from_secs(1), LONGEST_WINDOW))
}

fn location(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(LOCATION)?;
    std::str::from_utf8(value.as_bytes()).ok().map(str::to_owned)
}

/// The words of Go's, nginx's, Apache's and Envoy's answer to http on a TLS port.
fn says_tls_port(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body).to_ascii_lowercase();
    [
        "http request to an https server",
        "plain http request was sent to https port",
        "plain http to an ssl-enabled server",
    ]
    .iter()
    .any(|words| text.contains(words))
}

/// Larder asks for identity; bytes in another coding would not hash to their digest.
fn refuse_encoding(headers: &HeaderMap, target: &Target) -> Result<(), RegistryError> {
    match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"" | b"identity") => Ok(()),
        Some(_) => Err(RegistryError::Protocol {
            what: target.to_string(),
            why: "the answer has a Content-Encoding, though identity was asked for".to_owned(),
        }),
    }
}

/// The error for an answer that was not wanted, with what its body says.
pub(super) async fn refused(session: &Session, method: &Method, status: StatusCode, mut body: Body) -> RegistryError {
    let text = timeout(Duration::from_secs(5), body.collect(error_body::MAX_FOREIGN_BYTES)).await;
    let text = text.ok().and_then(Result::ok).unwrap_or_default();
    let mut summary =
        error_body::summary(&text).unwrap_or_else(|| status.canonical_reason().unwrap_or("unknown status").to_owned());
    // A server that echoes a credential must not get it into a log.
    let secret = match &session.endpoint.credentials {
        Credentials::Anonymous => None,
        Credentials::Basic { password, .. } => Some(password),
        Credentials::IdentityToken(token) | Credentials::RegistryToken(token) => Some(token),
    };
    if let Some(secret) = secret.map(|s| s.expose()).filter(|s| !s.is_empty() && summary.contains(s)) {
        summary = summary.replace(secret, "[redacted]");
    }
    RegistryError::Status { method: method.clone(), url: body.target().to_string(), status, summary }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_tls_port_is_told_by_its_usual_words() {
        for (body, yes) in [
            ("Client sent an HTTP request to an HTTPS server.\n", true),
            ("<center>The plain HTTP request was sent to HTTPS port</center>", true),
            ("Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />", true),
            ("bad request", false),
        ] {
            assert_eq!(says_tls_port(body.as_bytes()), yes, "{body}");
        }
    }
}
