//! One request as a call makes it: attempts, authentication, redirects by hand.
//!
//! `perform` → attempts with backoff → `once` → 401 rounds → `follow` → redirects → `exchange` → one HTTP request.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{AUTHORIZATION, CONTENT_ENCODING, LOCATION},
    response::Parts,
};
use tokio::time::timeout;

use super::{
    Budget, Credentials, Endpoint, Inner, address,
    auth::Known,
    body::Body,
    connect::{NO_CONNECTION, Profile, lock},
    error::RegistryError,
    exchange::{NO_ANSWER, Send},
    hidden::Hidden,
    target::Target,
    windows::Windows,
};
use crate::{
    metrics::RequestKind,
    oci::{Repository, error_body},
};

/// How often a request is tried (R6).
const ATTEMPTS: u32 = 4;
/// How many redirects are followed (R16).
const MAX_REDIRECTS: usize = 10;

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
    /// Who asks: of a login, what it came to last.
    pub(super) credentials: Mutex<Arc<Credentials>>,
    /// Whether the registry's own address is a private one.
    pub(super) private: AtomicBool,
    pub(super) windows: Windows,
}

/// Longer than the longest window of silence, which a session holds.
pub(super) const SESSION_IDLE: Duration = Duration::from_secs(2 * 3600);
/// The same with a token that somebody brought, which comes to its end soon and is followed by another.
const TOKEN_IDLE: Duration = Duration::from_secs(10 * 60);
/// What a session takes beside its credential, roughly, in bytes.
const SESSION: usize = 1 << 10;

/// Keeps a session until nobody has used it for long enough.
pub(super) struct SessionLife;

impl SessionLife {
    fn idle(endpoint: &Endpoint) -> Option<Duration> {
        Some(match endpoint.credentials {
            Credentials::RegistryToken(_) => TOKEN_IDLE,
            _ => SESSION_IDLE,
        })
    }
}

impl moka::Expiry<Endpoint, Arc<Session>> for SessionLife {
    fn expire_after_create(&self, at: &Endpoint, _: &Arc<Session>, _: Instant) -> Option<Duration> {
        Self::idle(at)
    }

    fn expire_after_read(
        &self,
        at: &Endpoint,
        _: &Arc<Session>,
        _: Instant,
        _: Option<Duration>,
        _: Instant,
    ) -> Option<Duration> {
        Self::idle(at)
    }
}

/// The bytes of a session, roughly: its credential is in the key, in the session and in what it was settled to.
pub(super) fn session_weight(at: &Endpoint, _: &Arc<Session>) -> u32 {
    let credential = match &at.credentials {
        Credentials::Anonymous | Credentials::Login(_) => 0,
        Credentials::Basic { username, password } => username.len() + password.expose().len(),
        Credentials::IdentityToken(token) | Credentials::RegistryToken(token) => token.expose().len(),
    };
    u32::try_from(SESSION + 3 * credential).unwrap_or(u32::MAX)
}

impl Session {
    pub(super) fn new(id: u64, endpoint: Endpoint, profile: Arc<Profile>) -> Self {
        Self {
            id,
            authority: match &endpoint.transport.authority {
                Some(elsewhere) => elsewhere.to_string(),
                None => endpoint.registry.api_authority(),
            },
            upstream: endpoint.registry.to_string().into(),
            credentials: Mutex::new(Arc::new(endpoint.credentials.clone())),
            endpoint,
            profile,
            known: Mutex::default(),
            private: AtomicBool::new(false),
            windows: Windows::default(),
        }
    }

    /// Who asks: of a login, what it came to.
    pub(super) fn credentials(&self) -> Arc<Credentials> {
        lock(&self.credentials).clone()
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
    /// None where the registry itself is asked.
    pub(super) repository: Option<&'a Repository>,
    pub(super) push: bool,
    pub(super) budget: Budget,
    /// How many tokens this call has fetched.
    pub(super) tokens: AtomicU32,
    /// This call is the one that may ask inside a window.
    pub(super) probing: AtomicBool,
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
            repository: Some(repository),
            budget,
            tokens: AtomicU32::new(0),
            probing: AtomicBool::new(false),
        }
    }

    /// `GET /v2/` (distribution-spec 1.1, end-1).
    pub(super) fn base(budget: Budget) -> Self {
        Self {
            kind: RequestKind::Ping,
            method: Method::GET,
            path: "/v2/".to_owned(),
            elsewhere: None,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            repository: None,
            push: false,
            budget,
            tokens: AtomicU32::new(0),
            probing: AtomicBool::new(false),
        }
    }

    /// The scope of the token specification that this call needs; an empty one where it is about no repository.
    pub(super) fn scope(&self) -> String {
        let actions = if self.push { "pull,push" } else { "pull" };
        self.repository.map_or(String::new(), |repository| format!("repository:{repository}:{actions}"))
    }
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
            // On the heap: whoever waits for a registry would hold the room for all of it, called or not.
            let error = match Box::pin(self.attempt(session, call, accept, cap)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if session.endpoint.transport.insecure
                && matches!(error, RegistryError::Unreachable { .. } | RegistryError::Handshake { .. })
            {
                lock(&session.profile.schemes).remove(&session.authority);
            }
            let delay = pause.mul_f64(0.5 + fastrand::f64() / 2.0);
            let over = !error.is_transient() || attempt >= ATTEMPTS || Instant::now() + delay >= call.budget.deadline;
            if over && matches!(error, RegistryError::Realm { .. } | RegistryError::Token { .. }) {
                session.unlearn(&call.scope());
            }
            if over {
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
            return Err(refused(&session.credentials(), &call.method, parts.status, body).await);
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
            let authorization = if ours {
                self.log_in(session, call, &base).await?;
                self.authorization(session, call, &base).await?
            } else {
                None
            };
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
    pub(super) async fn base(&self, session: &Arc<Session>, call: &Call<'_>) -> Result<Target, RegistryError> {
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

    /// Sends, and follows redirects: Authorization and refresh tokens only to the first origin, https never to http, every
    /// address checked.
    pub(super) async fn follow(
        &self,
        session: &Arc<Session>,
        call: &Call<'_>,
        mut send: Send<'_>,
        mut target: Target,
    ) -> Result<(Parts, Body), RegistryError> {
        // Where it leads to may have been told by who was shown it.
        let shown = send.headers.get(AUTHORIZATION).cloned();
        for _ in 0..=MAX_REDIRECTS {
            let (parts, body, peer) = self.exchange(session, call, &send, &target).await?;
            let follows = match parts.status.as_u16() {
                301..=303 => matches!(*send.method, Method::GET | Method::HEAD),
                307 | 308 => true,
                _ => false,
            };
            if !follows {
                return Ok((parts, body.note_shown(shown)));
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
                // The body is a refresh token, and no header that could be left away.
                if send.kind == RequestKind::Token && !send.body.is_empty() {
                    return Err(RegistryError::Forbidden {
                        what: target.to_string(),
                        why: format!("it redirects a request that carries a credential to another host: {next}"),
                    });
                }
                send.headers.remove(AUTHORIZATION);
                send.private = peer.is_some_and(address::is_private);
            }
            body.discard().await;
            target = next;
        }
        Err(RegistryError::Protocol { what: target.to_string(), why: format!("more than {MAX_REDIRECTS} redirects") })
    }
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

/// The error for an answer that was not wanted, with what its body says, and nothing in it of who asked.
pub(super) async fn refused(
    credentials: &Credentials,
    method: &Method,
    status: StatusCode,
    mut body: Body,
) -> RegistryError {
    let text = timeout(Duration::from_secs(5), body.collect(error_body::MAX_FOREIGN_BYTES)).await;
    let text = text.ok().and_then(Result::ok).unwrap_or_default();
    let mut hidden = Hidden::default();
    hidden.credentials(credentials);
    body.shown().iter().for_each(|value| hidden.header(value));
    let summary = error_body::summary_of(&text, |said| hidden.out_of(said))
        .unwrap_or_else(|| status.canonical_reason().unwrap_or("unknown status").to_owned());
    RegistryError::Status { method: method.clone(), url: body.target().to_string(), status, summary }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sessions_of_long_credentials_are_few_and_those_of_tokens_short() {
        let endpoint = |credentials| Endpoint {
            registry: "r.example".parse().unwrap(),
            transport: crate::registry::Transport::default(),
            credentials,
        };
        let client = crate::registry::Client::new(crate::registry::Config::default()).unwrap();
        let token = |n: usize| {
            let long = format!("{n:08}{}", "x".repeat(8 << 10));
            endpoint(Credentials::RegistryToken(crate::secret::Secret::new(long)))
        };
        for n in 0..2_000 {
            client.0.session(&token(n)).await.unwrap();
        }
        client.0.sessions.run_pending_tasks().await;
        let kept = client.0.sessions.entry_count();
        assert!((100..700).contains(&kept), "{kept} of 25 KiB each in 16 MiB");
        let session = client.0.session(&endpoint(Credentials::Anonymous)).await.unwrap();
        for (at, idle) in [(endpoint(Credentials::Anonymous), SESSION_IDLE), (token(0), TOKEN_IDLE)] {
            use moka::Expiry as _;
            let now = Instant::now();
            assert_eq!(SessionLife.expire_after_create(&at, &session, now), Some(idle));
            assert_eq!(SessionLife.expire_after_read(&at, &session, now, None, now), Some(idle));
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
