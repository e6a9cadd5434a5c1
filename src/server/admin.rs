//! The admin listener (contract section 5): probes, metrics, the objects and their statuses, requests to act.
//!
//! Probes and metrics answer everybody. What is under `/v1/` answers on a loopback address, or to whoever has the
//! token where one is set; a set token is asked for on every address, as loopback is no boundary on a node where pods
//! use the host's network (hardening.md section 5). A POST has to come from here: its Host must be this listener's
//! address, an IP literal or localhost, and its Origin, where a browser sends one, the same host; so a web page that
//! the operator looks at can cause nothing, whatever name it makes resolve to 127.0.0.1. A DELETE likewise; and for what
//! is under `/v1/` a GET too, so that such a page reads nothing.
//!
//! Errors are `{"error":"…","class":"…"}`. Nothing here ever shows a Secret: what [`Control`] lists is shown as it is.

use std::{
    io::Cursor,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

use async_compression::{Level, tokio::bufread::GzipEncoder};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, HOST, ORIGIN, VARY,
        WWW_AUTHENTICATE,
    },
};
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::Value;

use super::{
    body::Body,
    listener::{Handler, Peer},
    orders::{self, Order, OrderFailure},
    query::Query,
    reply,
};
use crate::{
    blocking,
    class::Class,
    metrics,
    objects::{BoxFuture, Key, Kind, Listing},
    secret::Secret,
    store::Store,
};

/// What the admin listener may ask of the node.
pub trait Control: Send + Sync + 'static {
    /// Listeners accept and statuses are loaded.
    fn ready(&self) -> bool;
    /// For `GET /v1/objects`.
    fn list(&self) -> BoxFuture<'_, Listing>;
    /// For `POST /v1/reconcile`: the object as `list` shows it, after a pass.
    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Value, Refusal>>;
    /// For `POST /v1/store/gc`: collects now; what went.
    fn collect(&self) -> BoxFuture<'_, Result<Value, String>>;
    /// For `POST /v1/forget`, `/v1/prefetch`, `/v1/pin` and `DELETE /v1/pin`: what came of it.
    fn order(&self, order: Order) -> BoxFuture<'_, Result<Value, OrderFailure>>;
}

/// Why a reconcile was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 404
    Unknown,
    /// 409
    Suspended,
    /// 504
    Timeout,
    /// 503
    Elsewhere,
    /// 503
    Leaderless,
}

/// Below this many bytes a body is not worth compressing: it fits one packet.
const COMPRESS_FROM: usize = 1400;

/// Serves the node's inside to its operators.
pub struct Admin {
    /// Empty while the node starts.
    control: OnceLock<Arc<dyn Control>>,
    store: Store,
    address: SocketAddr,
    /// Hashed, so that comparing takes the same time whatever the token.
    token: Option<blake3::Hash>,
}

/// An answer that is an error.
struct Failure {
    status: StatusCode,
    class: Class,
    message: String,
}

type Answer = Result<Response<Body>, Failure>;

impl Failure {
    fn new(status: StatusCode, class: Class, message: impl Into<String>) -> Self {
        Self { status, class, message: message.into() }
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Class::Client, message)
    }

    fn into_response(self) -> Response<Body> {
        #[derive(Serialize)]
        struct Error<'a> {
            error: &'a str,
            class: &'a str,
        }
        let body = Error { error: &self.message, class: self.class.label() };
        let mut out = reply::json(self.status, &body, Some(self.class));
        if self.status == StatusCode::UNAUTHORIZED {
            out.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        out
    }
}

impl Admin {
    /// Serves on `address`, which decides what it shows to whom; `token` is the content of `--admin-token-file`.
    /// Until [`Admin::started`] the process is live and not ready, and what needs the node is answered with 503.
    pub fn new(store: Store, address: SocketAddr, token: Option<&Secret>) -> Self {
        let token = token.map(|token| blake3::hash(token.expose().trim().as_bytes()));
        Self { control: OnceLock::new(), store, address, token }
    }

    /// The node has started; once.
    pub fn started(&self, control: Arc<dyn Control>) {
        let _ = self.control.set(control);
    }

    fn control(&self) -> Result<&Arc<dyn Control>, Failure> {
        let why = "Larder is starting; the log says what it waits for";
        self.control.get().ok_or_else(|| Failure::new(StatusCode::SERVICE_UNAVAILABLE, Class::Net, why))
    }

    async fn route(&self, request: &Request<Incoming>) -> Answer {
        let headers = request.headers();
        match request.uri().path() {
            "/" => {
                reads(request)?;
                authorize(self.token.as_ref(), self.address.ip(), headers)?;
                Ok(reply::text(StatusCode::OK, "Larder: /livez /readyz /metrics /v1/objects /v1/store", None))
            }
            "/livez" | "/healthz" => {
                reads(request)?;
                Ok(reply::text(StatusCode::OK, "ok", None))
            }
            "/readyz" => {
                reads(request)?;
                Ok(match self.control.get().is_some_and(|control| control.ready()) {
                    true => reply::text(StatusCode::OK, "ok", None),
                    false => reply::text(StatusCode::SERVICE_UNAVAILABLE, "not ready", Some(Class::Disk)),
                })
            }
            "/metrics" => {
                reads(request)?;
                self.metrics(headers).await
            }
            path if path.starts_with("/v1/") => {
                authorize(self.token.as_ref(), self.address.ip(), headers)?;
                self.check_from_here(request)?;
                self.v1(request, path).await
            }
            _ => Err(Failure::new(StatusCode::NOT_FOUND, Class::NotFound, "there is no such resource")),
        }
    }

    async fn v1(&self, request: &Request<Incoming>, path: &str) -> Answer {
        match path {
            "/v1/objects" => {
                reads(request)?;
                let listing = self.control()?.list().await;
                let body = blocking::cpu(move || serde_json::to_vec(&listing)).await;
                let body = body.map_err(|e| {
                    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, Class::Proto, format!("cannot write the list: {e}"))
                })?;
                Ok(compressed("application/json", body.into(), request.headers()))
            }
            "/v1/store" => {
                reads(request)?;
                Ok(reply::json(StatusCode::OK, &self.usage().await?, None))
            }
            "/v1/store/gc" => {
                writes(request)?;
                match self.control()?.collect().await {
                    Ok(collected) => Ok(reply::json(StatusCode::OK, &collected, None)),
                    Err(why) => Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, Class::Disk, why)),
                }
            }
            "/v1/reconcile" => {
                writes(request)?;
                let key = key(request.uri().query())?;
                let refuse = |status, class, why| Err(Failure::new(status, class, format!("{key} {why}")));
                match self.control()?.reconcile(&key).await {
                    Ok(object) => Ok(reply::json(StatusCode::OK, &object, None)),
                    Err(Refusal::Unknown) => refuse(
                        StatusCode::NOT_FOUND,
                        Class::NotFound,
                        "is none of the objects reconciled here: it is not there, or not for Larder (a GitRepository without an oci:// url)",
                    ),
                    Err(Refusal::Suspended) => {
                        refuse(StatusCode::CONFLICT, Class::Client, "is suspended: set spec.suspend to false first")
                    }
                    Err(Refusal::Elsewhere) => refuse(
                        StatusCode::SERVICE_UNAVAILABLE,
                        Class::Net,
                        "is reconciled by another replica, which leads: ask that one, or annotate the object with \
                         reconcile.fluxcd.io/requestedAt",
                    ),
                    Err(Refusal::Leaderless) => refuse(
                        StatusCode::SERVICE_UNAVAILABLE,
                        Class::Net,
                        "is reconciled by nobody now: no replica is known to lead. After a leader's end another one \
                         leads within 20 s; if none does, the API server is away or the Lease may not be written, and \
                         the log says so",
                    ),
                    Err(Refusal::Timeout) => {
                        refuse(StatusCode::GATEWAY_TIMEOUT, Class::Net, "was not reconciled within its spec.timeout")
                    }
                }
            }
            path if orders::methods(path).is_some() => {
                if path != "/v1/pin" || request.method() != Method::DELETE {
                    writes(request)?;
                }
                let order = orders::parse(request.method(), path, request.uri().query());
                match self.control()?.order(order.map_err(Failure::bad_request)?).await {
                    Ok(done) => Ok(reply::json(StatusCode::OK, &done, None)),
                    Err(failure) => Err(Failure::new(orders::status(failure.class), failure.class, failure.message)),
                }
            }
            _ => Err(Failure::new(StatusCode::NOT_FOUND, Class::NotFound, "there is no such resource")),
        }
    }

    async fn usage(&self) -> Result<crate::store::Usage, Failure> {
        let store = self.store.clone();
        blocking::io(move || store.usage()).await.map_err(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot tell what the store keeps");
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, error.class(), "the store cannot be counted now")
        })
    }

    async fn metrics(&self, headers: &HeaderMap) -> Answer {
        // A store that cannot be counted must not hide everything else; it shows the last values.
        if let Ok(usage) = self.usage().await {
            metrics::store_bytes(usage.blobs.bytes, usage.files.bytes, usage.logical);
        }
        let store = self.store.clone();
        match blocking::io(move || store.cached_bytes()).await {
            Ok(bytes) => metrics::store_cached(bytes),
            Err(error) => tracing::warn!(%error, "cannot tell how much of the store is cached"),
        }
        let health = self.store.health();
        metrics::store_health(health.quarantined, health.degraded);
        let format = metrics::Format::negotiate(headers.get(ACCEPT).and_then(|value| value.to_str().ok()));
        let text = blocking::cpu(move || metrics::encode(format)).await;
        Ok(compressed(format.content_type(), text.into(), headers))
    }

    fn check_from_here(&self, request: &Request<Incoming>) -> Result<(), Failure> {
        // HTTP/2 has it in the target, and HTTP/1.1 goes by the target where that is a whole URL (RFC 9112, section 3.2.2).
        let host = match request.uri().authority() {
            Some(authority) => authority.as_str(),
            None => request.headers().get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default(),
        };
        check_origin(host, request.headers(), self.address, self.token.is_some())
    }
}

impl Handler for Admin {
    const LISTENER: metrics::Listener = metrics::Listener::Admin;

    async fn handle(&self, request: Request<Incoming>, _: Peer) -> Response<Body> {
        let mut out = match self.route(&request).await {
            Ok(out) => out,
            Err(failure) if failure.status == StatusCode::METHOD_NOT_ALLOWED => {
                let allow = match request.uri().path() {
                    "/v1/reconcile" | "/v1/store/gc" => "POST",
                    path => orders::methods(path).unwrap_or("GET, HEAD"),
                };
                reply::method_not_allowed(failure.into_response(), allow)
            }
            Err(failure) => failure.into_response(),
        };
        out.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        out
    }
}

fn writes(request: &Request<Incoming>) -> Result<(), Failure> {
    match *request.method() {
        Method::POST => Ok(()),
        _ => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, Class::Client, "only POST")),
    }
}

fn reads(request: &Request<Incoming>) -> Result<(), Failure> {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, Class::Client, "only GET and HEAD")),
    }
}

/// Whether `/v1/` answers: to the token where one is set, else on loopback only.
fn authorize(token: Option<&blake3::Hash>, address: IpAddr, headers: &HeaderMap) -> Result<(), Failure> {
    let Some(token) = token else {
        return if address.is_loopback() {
            Ok(())
        } else {
            let why = "on an address that is not loopback this needs a token: start Larder with --admin-token-file";
            Err(Failure::new(StatusCode::FORBIDDEN, Class::Policy, why))
        };
    };
    let given = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked(7));
    match given {
        // Comparing hashes takes the same time wherever they differ, and blake3's own comparison does too.
        Some((scheme, given))
            if scheme.eq_ignore_ascii_case(b"bearer ") && blake3::hash(given.trim_ascii()) == *token =>
        {
            Ok(())
        }
        _ => Err(Failure::new(StatusCode::UNAUTHORIZED, Class::Auth, "this needs the token of --admin-token-file")),
    }
}

/// Whether a request comes from here: see the module's documentation. Behind a token any Host will do, as no web page
/// knows the token.
fn check_origin(host: &str, headers: &HeaderMap, address: SocketAddr, token: bool) -> Result<(), Failure> {
    let refuse = |why: &str| Err(Failure::new(StatusCode::FORBIDDEN, Class::Policy, why));
    if !token && !is_own(host, address) {
        return refuse("the Host header does not name this listener: use its address or localhost");
    }
    let mut origins = headers.get_all(ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (None, _) => Ok(()),
        (Some(origin), None) => {
            let origin = origin.to_str().unwrap_or_default();
            let same = ["http://", "https://"]
                .iter()
                .any(|scheme| origin.strip_prefix(scheme).is_some_and(|rest| rest.eq_ignore_ascii_case(host)));
            if same { Ok(()) } else { refuse("the Origin header is another site's") }
        }
        (Some(_), Some(_)) => refuse("there is more than one Origin header"),
    }
}

/// Whether a Host is an IP literal or localhost, with this listener's port (or the scheme's own, where it has none).
fn is_own(host: &str, address: SocketAddr) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) => (name, port),
            None => return false,
        },
        None => host.find(':').map_or((host, ""), |colon| host.split_at(colon)),
    };
    let port_fits = match port.strip_prefix(':') {
        // A forwarded port may be another one than ours, and an IP literal cannot be made to resolve to anything.
        Some(port) => port.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    let own_name = name.eq_ignore_ascii_case("localhost") && address.ip().is_loopback();
    port_fits && (own_name || name.parse::<IpAddr>().is_ok())
}

/// The object that `?kind=&namespace=&name=` names.
fn key(query: Option<&str>) -> Result<Key, Failure> {
    let bad = |e: super::query::QueryError| Failure::bad_request(e.to_string());
    let query = Query::parse(query).map_err(bad)?;
    let kind = query.get("kind").map_err(bad)?.unwrap_or_default();
    let Some(kind) = Kind::find(kind) else {
        return Err(Failure::bad_request(format!("kind {kind:?} is not one of {}", Kind::names())));
    };
    let namespace = query.get("namespace").map_err(bad)?.filter(|ns| !ns.is_empty()).unwrap_or("default");
    match query.get("name").map_err(bad)? {
        Some(name) if !name.is_empty() => Ok(Key::new(kind, namespace, name)),
        _ => Err(Failure::bad_request("the query names no object: ?kind=&namespace=&name=")),
    }
}

/// A 200 whose body is compressed where the client takes that and it pays.
fn compressed(content_type: &'static str, body: Bytes, request: &HeaderMap) -> Response<Body> {
    let compress = body.len() >= COMPRESS_FROM && accepts_gzip(request);
    let mut out = reply::bytes(StatusCode::OK, content_type, body.clone(), None);
    out.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
    if compress {
        out.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        out.headers_mut().remove(CONTENT_LENGTH);
        *out.body_mut() = Body::reader(GzipEncoder::with_quality(Cursor::new(body), Level::Fastest));
    }
    out
}

/// Whether `Accept-Encoding` takes gzip (RFC 9110, section 12.5.3): named, or by `*`, with a weight that is not zero.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let mut any = false;
    for value in headers.get_all(ACCEPT_ENCODING) {
        for coding in value.to_str().unwrap_or_default().split(',') {
            let mut parts = coding.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let refused = parts.any(|p| {
                let weight = p.strip_prefix("q=").or_else(|| p.strip_prefix("Q="));
                weight.is_some_and(|w| w.parse::<f32>().is_ok_and(|w| w <= 0.0))
            });
            if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
                return !refused;
            }
            any |= name == "*" && !refused;
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::headers;

    #[test]
    fn a_request_has_to_come_from_here() {
        let address: SocketAddr = "127.0.0.1:9440".parse().unwrap();
        for (lines, allowed) in [
            (&[("host", "127.0.0.1:9440")][..], true),
            (&[("host", "localhost:9440")][..], true),
            (&[("host", "LOCALHOST")][..], true),
            (&[("host", "[::1]:9440")][..], true),
            (&[("host", "10.0.0.7:9440")][..], true),
            (&[("host", "localhost:9440"), ("origin", "http://localhost:9440")][..], true),
            (&[][..], false),
            (&[("host", "")][..], false),
            (&[("host", "evil.example:9440")][..], false),
            (&[("host", "evil.example")][..], false),
            (&[("host", "localhost.evil.example:9440")][..], false),
            (&[("host", "127.0.0.1.evil.example")][..], false),
            (&[("host", "127.0.0.1:x")][..], false),
            (&[("host", "[::1")][..], false),
            (&[("host", "[::1]x")][..], false),
            (&[("host", "localhost:9440"), ("origin", "http://evil.example")][..], false),
            (&[("host", "localhost:9440"), ("origin", "http://localhost:9441")][..], false),
            (&[("host", "localhost:9440"), ("origin", "null")][..], false),
            (&[("host", "localhost:9440"), ("origin", "http://localhost:9440"), ("origin", "http://x")][..], false),
        ] {
            let host = lines.iter().find(|(name, _)| *name == "host").map_or("", |(_, host)| host);
            assert_eq!(check_origin(host, &headers(lines), address, false).is_ok(), allowed, "{lines:?}");
        }
        let service = "larder.flux-system.svc:9440";
        assert!(check_origin(service, &headers(&[]), address, true).is_ok());
        let page = headers(&[("origin", "http://evil.example")]);
        assert!(check_origin(service, &page, address, true).is_err());
    }

    #[test]
    fn what_is_not_for_everybody_needs_loopback_or_the_token() {
        let token = blake3::hash(b"s3cret");
        let (loopback, any): (IpAddr, IpAddr) = ("127.0.0.1".parse().unwrap(), "0.0.0.0".parse().unwrap());
        let status = |token: Option<&blake3::Hash>, address, lines: &[(&'static str, &'static str)]| {
            authorize(token, address, &headers(lines)).err().map(|failure| failure.status.as_u16())
        };
        assert_eq!(status(None, loopback, &[]), None);
        assert_eq!(status(None, any, &[]), Some(403));
        assert_eq!(status(None, any, &[("authorization", "Bearer s3cret")]), Some(403));
        for address in [loopback, any] {
            assert_eq!(status(Some(&token), address, &[]), Some(401));
            assert_eq!(status(Some(&token), address, &[("authorization", "Bearer s3cret")]), None);
            assert_eq!(status(Some(&token), address, &[("authorization", "bearer s3cret")]), None);
            for wrong in ["Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "Bearer", "Bearer ", "s3cret"] {
                assert_eq!(status(Some(&token), address, &[("authorization", wrong)]), Some(401), "{wrong}");
            }
        }
    }

    #[test]
    fn the_object_is_named_by_kind_namespace_and_name() {
        let ok = |query: &str| key(Some(query)).ok().map(|key| key.to_string());
        for (query, expected) in [
            ("kind=OCIRepository&namespace=ns&name=a", Some("OCIRepository/ns/a")),
            ("kind=ocirepositories&namespace=ns&name=a", Some("OCIRepository/ns/a")),
            ("kind=ks&name=a", Some("Kustomization/default/a")),
            ("kind=ks&namespace=&name=a", Some("Kustomization/default/a")),
            ("kind=ks", None),
            ("kind=ks&name=", None),
            ("kind=Deployment&name=a", None),
            ("name=a", None),
            ("kind=ks&name=a&name=b", None),
        ] {
            assert_eq!(ok(query).as_deref(), expected, "{query}");
        }
        let failure = key(Some("kind=Deployment&name=a")).err().unwrap();
        assert_eq!(failure.status, StatusCode::BAD_REQUEST);
        for kind in Kind::ALL {
            assert!(failure.message.contains(kind.name()), "{}", failure.message);
            assert!(failure.message.contains(kind.other_names()[1]), "{}", failure.message);
        }
    }

    #[test]
    fn gzip_is_used_only_where_it_is_taken() {
        for (value, expected) in [
            ("gzip", true),
            ("gzip, deflate", true),
            ("br;q=1.0, GZIP;q=0.5", true),
            ("*", true),
            ("*;q=0.1", true),
            ("gzip;q=0", false),
            ("gzip; q=0.0", false),
            ("*;q=0", false),
            ("*, gzip;q=0", false),
            ("identity", false),
            ("", false),
        ] {
            assert_eq!(accepts_gzip(&headers(&[("accept-encoding", value)])), expected, "{value}");
        }
        assert!(!accepts_gzip(&headers(&[])));
    }
}
