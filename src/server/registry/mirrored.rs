//! The mirrored repositories: a request of one, as the mirror's answer (contract section 3).
//!
//! Three ways lead here: `ns=` with any path, a path that begins with a configured upstream, and a listener that is
//! bound to one. All are read-only.

use std::{sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, LINK, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE},
    request::Parts,
};
use serde::Serialize;
use tokio::time::timeout;

use super::{Answer, VERSION, failure::Failure, refused_route};
use crate::{
    class::Class,
    digest::Digest,
    mirror::{Ask, BlobSource, CacheStatus, Caller, Content, Mirror, Miss, Upstream},
    oci::{Repository, Selector, error_body::ErrorCode, media_type},
    server::{
        body::Body,
        entity::{self, CACHE_STATUS, Role, Source},
        listener::Peer,
        query::Query,
        reply,
        route::{self, Route},
    },
};

const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// How long an answer waits for its first byte, which may lie far into a blob that is coming: so long a failure is a
/// status, and a client goes on to its next source with nothing to discard. containerd gives headers 30 s, and what goes
/// before this takes up to 9 s.
const FIRST_BYTE: Duration = Duration::from_secs(5);

/// How long a client that keeps an unfinished download is given nothing of a blob before its digest is right. It loses
/// no time by that: such a client begins to unpack when it has all of a blob, and what a source sends slowly goes out
/// fast afterwards. containerd's pull by the kubelet is given up after five minutes without progress, and proxies between
/// it and here mostly after one.
const WITHHELD: Duration = Duration::from_secs(45);
/// What the `User-Agent` of such clients begins with. containerd goes on behind the bytes that it has, in another pull
/// too, and has no way back from wrong ones: no pull of the blob succeeds until it lets them go. BuildKit keeps its
/// content as containerd does, and so may Docker.
const KEEP_UNFINISHED: [&str; 3] = ["containerd/", "buildkit/", "docker/"];

/// How a request of a mirrored repository was addressed.
pub(super) struct Addressed<'a> {
    pub upstream: &'a Arc<Upstream>,
    /// What the route is to be read from.
    pub path: Path<'a>,
    by: By,
}

/// The path of a mirrored request.
pub(super) enum Path<'a> {
    /// As it came.
    Whole(&'a str),
    /// Behind the upstream's prefix, without a slash at its begin.
    Below(&'a str),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Namespace,
    Prefix,
    Listener,
}

/// Which upstream a request is for: `Ok(None)` where it is for none, and so for a local repository.
pub(super) fn addressed<'a>(
    mirror: &'a Mirror,
    bound: Option<&'a Arc<Upstream>>,
    path: &'a str,
    query: &Query<'_>,
    reads: bool,
) -> Result<Option<Addressed<'a>>, Failure> {
    let unknown = || match reads {
        true => Failure::new(ErrorCode::NameUnknown, Class::NotFound).message("no such upstream is mirrored here"),
        false => Failure::method_not_allowed("GET, HEAD"),
    };
    if let Some(ns) = query.get("ns").map_err(|e| Failure::bad_request(e.to_string()))? {
        let upstream = mirror.named(ns).ok_or_else(unknown)?;
        if bound.is_some_and(|bound| !Arc::ptr_eq(bound, upstream)) {
            return Err(unknown());
        }
        return Ok(Some(Addressed { upstream, path: Path::Whole(path), by: By::Namespace }));
    }
    if let Some(upstream) = bound {
        return Ok(Some(Addressed { upstream, path: Path::Whole(path), by: By::Listener }));
    }
    let below = path.strip_prefix("/v2/").and_then(|rest| rest.split_once('/'));
    Ok(below.and_then(|(first, rest)| {
        let upstream = mirror.prefixed(first)?;
        Some(Addressed { upstream, path: Path::Below(rest), by: By::Prefix })
    }))
}

/// Answers a request of a mirrored repository.
pub(super) async fn answer(
    mirror: &Mirror,
    addressed: &Addressed<'_>,
    parts: &Parts,
    query: &Query<'_>,
    peer: Peer,
) -> Answer {
    let out = route_and_answer(mirror, addressed, parts, query, peer).await;
    if addressed.by != By::Namespace {
        return out;
    }
    // Failures are answers too.
    let mut out = out.unwrap_or_else(Failure::into_response);
    out.headers_mut().insert(OCI_NAMESPACE, addressed.upstream.namespace());
    Ok(out)
}

async fn route_and_answer(
    mirror: &Mirror,
    addressed: &Addressed<'_>,
    parts: &Parts,
    query: &Query<'_>,
    peer: Peer,
) -> Answer {
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    let route = match addressed.path {
        Path::Whole(path) => route::parse(path),
        Path::Below(path) => route::parse_below(path),
    };
    if !reads {
        return Err(Failure::method_not_allowed("GET, HEAD"));
    }
    let (name, what) = match route.map_err(|error| refused_route(error, reads))? {
        Route::Base => return Box::pin(door(mirror, addressed.upstream, parts, peer)).await,
        Route::Manifest(name, selector) => (name, What::Manifest(selector)),
        Route::Blob(name, digest) => (name, What::Blob(digest)),
        Route::Tags(name) => (name, What::Tags),
        Route::Referrers(name, digest) => (name, What::Referrers(digest)),
        Route::Catalog => {
            let failure = Failure::new(ErrorCode::Unsupported, Class::NotFound).status(StatusCode::NOT_FOUND);
            return Err(failure.message("an upstream's catalog is not mirrored"));
        }
        Route::Uploads(_) | Route::Upload(..) => {
            return Err(Failure::new(ErrorCode::BlobUploadUnknown, Class::NotFound));
        }
    };
    let ask = Ask {
        upstream: addressed.upstream,
        repository: addressed.upstream.repository(name.clone()),
        caller: caller(parts, peer),
    };
    // On the heap, but for what most requests are for: it is not to carry the room that all else would need.
    let (found, code) = match what {
        What::Blob(digest) => (blob(mirror, &ask, parts, digest).await, ErrorCode::BlobUnknown),
        What::Manifest(selector) => {
            (Box::pin(manifest(mirror, &ask, parts, &selector)).await, ErrorCode::ManifestUnknown)
        }
        What::Tags => (Box::pin(tags(mirror, &ask, addressed, query, &name)).await, ErrorCode::NameUnknown),
        What::Referrers(subject) => {
            let found = Box::pin(referrers(mirror, &ask, addressed, query, &name, subject)).await;
            (found, ErrorCode::ManifestUnknown)
        }
    };
    found.or_else(|miss| missed(miss, code))
}

fn caller(parts: &Parts, peer: Peer) -> Caller<'_> {
    Caller { authorization: parts.headers.get(AUTHORIZATION), private: peer.encrypted || peer.is_loopback() }
}

/// `GET /v2/` where one upstream is meant. In pass-through it answers as that does: skopeo, podman and Docker learn here
/// alone how to show who they are.
pub(super) async fn door(mirror: &Mirror, upstream: &Arc<Upstream>, parts: &Parts, peer: Peer) -> Answer {
    let mut out = match mirror.greet(upstream, caller(parts, peer)).await {
        Ok(()) => reply::bytes(StatusCode::OK, "application/json", "{}", None),
        Err(miss) => missed(miss, ErrorCode::Unauthorized)?,
    };
    out.headers_mut().insert(VERSION.0, VERSION.1);
    Ok(out)
}

type Found = Result<Response<Body>, Miss>;

enum What {
    Manifest(Selector),
    Blob(Digest),
    Tags,
    Referrers(Digest),
}

async fn manifest(mirror: &Mirror, ask: &Ask<'_>, parts: &Parts, selector: &Selector) -> Found {
    let found = mirror.manifest(ask, selector).await?;
    let by_digest = matches!(selector, Selector::Digest(_));
    let role = Role::Manifest { media_type: found.media_type.to_str().unwrap_or_default(), by_digest };
    let source = match found.content {
        Content::Held(blob) => Source::Blob(blob),
        Content::Bytes(bytes) => Source::Memory(found.digest, bytes),
    };
    Ok(with_status(entity::respond_from(&parts.method, &parts.headers, source, &role), found.status))
}

async fn blob(mirror: &Mirror, ask: &Ask<'_>, parts: &Parts, digest: Digest) -> Found {
    // Who has it already is answered like who asks for nothing more than its length.
    let bodiless = parts.method == Method::HEAD || entity::decides(&parts.headers, &digest);
    let found = mirror.blob(ask, &digest, bodiless).await?;
    let source = match found.source {
        BlobSource::Held(blob) => Source::Blob(blob),
        BlobSource::Filling(mut follower) => {
            if keeps_unfinished(&parts.headers) {
                follower.withhold(WITHHELD);
            }
            Source::Filling(follower)
        }
        BlobSource::Upstream => Source::Elsewhere(digest, found.size),
    };
    let coming = matches!(source, Source::Filling(_));
    let mut out = entity::respond_from(&parts.method, &parts.headers, source, &Role::Blob);
    // Past that the headers go out, and the body says what becomes of it.
    if coming && let Ok(Err(error)) = Box::pin(timeout(FIRST_BYTE, out.body_mut().ready())).await {
        return Err(mirror.ended(ask.upstream, &error));
    }
    Ok(with_status(out, found.status))
}

fn keeps_unfinished(headers: &HeaderMap) -> bool {
    let agent = headers.get(USER_AGENT).map_or(&b""[..], HeaderValue::as_bytes);
    KEEP_UNFINISHED.iter().any(|client| agent.starts_with(client.as_bytes()))
}

async fn tags(
    mirror: &Mirror,
    ask: &Ask<'_>,
    addressed: &Addressed<'_>,
    query: &Query<'_>,
    name: &Repository,
) -> Found {
    #[derive(Serialize)]
    struct Tags<'a> {
        name: &'a str,
        tags: Vec<&'a str>,
    }
    let found = mirror.tags(ask, &query.without("ns")).await?;
    let tags = found.page.tags.iter().map(|tag| tag.as_str()).collect();
    let mut out = reply::json(StatusCode::OK, &Tags { name: ask.repository.as_str(), tags }, None);
    if let Some(next) = &found.page.next {
        addressed.link(out.headers_mut(), &format!("{name}/tags/list"), next);
    }
    Ok(with_list_status(out, found.status))
}

async fn referrers(
    mirror: &Mirror,
    ask: &Ask<'_>,
    addressed: &Addressed<'_>,
    query: &Query<'_>,
    name: &Repository,
    subject: Digest,
) -> Found {
    let found = mirror.referrers(ask, &subject, &query.without("ns")).await?;
    let mut out = reply::bytes(StatusCode::OK, media_type::OCI_INDEX, found.page.index.clone(), None);
    out.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type::OCI_INDEX));
    if let Some(value) = found.page.filters_applied.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
        out.headers_mut().insert(OCI_FILTERS_APPLIED, value);
    }
    if let Some(next) = &found.page.next {
        addressed.link(out.headers_mut(), &format!("{name}/referrers/{subject}"), next);
    }
    Ok(with_list_status(out, found.status))
}

impl Addressed<'_> {
    /// `Link` to the next page, here: the upstream's query, our path.
    fn link(&self, headers: &mut HeaderMap, path: &str, query: &str) {
        let link = match self.by {
            By::Namespace => format!("</v2/{path}?{query}&ns={}>; rel=\"next\"", self.upstream.name()),
            By::Prefix => format!("</v2/{}/{path}?{query}>; rel=\"next\"", self.upstream.prefix()),
            By::Listener => format!("</v2/{path}?{query}>; rel=\"next\""),
        };
        if let Ok(value) = HeaderValue::try_from(link) {
            headers.insert(LINK, value);
        }
    }
}

/// With how the answer came about, where it is about content.
fn with_status(out: Response<Body>, status: CacheStatus) -> Response<Body> {
    // What is answered from what is held says so already.
    if status == CacheStatus::Hit || !out.headers().contains_key(CACHE_STATUS) {
        return out;
    }
    with_list_status(out, status)
}

fn with_list_status(mut out: Response<Body>, status: CacheStatus) -> Response<Body> {
    if let Ok(value) = HeaderValue::try_from(status.to_string()) {
        out.headers_mut().insert(CACHE_STATUS, value);
    }
    out
}

/// 404 where the upstream said no, 503 where it cannot be asked, its challenge in pass-through; never 429, 502 or 504,
/// which a container runtime takes as a reason to ask here again.
fn missed(miss: Miss, code: ErrorCode) -> Answer {
    let class = miss.class();
    match miss {
        Miss::NotFound { reason, .. } => Err(Failure::new(code, class).status(StatusCode::NOT_FOUND).message(&*reason)),
        Miss::Unavailable { reason, retry_after, .. } => {
            let mut out = Failure::new(ErrorCode::Unavailable, class).message(&*reason).into_response();
            if let Some(after) = retry_after {
                out.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
            }
            Ok(out)
        }
        Miss::Unauthorized { reason, challenges } => {
            let mut out = Failure::new(ErrorCode::Unauthorized, class).message(&*reason).into_response();
            for challenge in challenges.iter() {
                out.headers_mut().append(WWW_AUTHENTICATE, challenge.clone());
            }
            Ok(out)
        }
    }
}
