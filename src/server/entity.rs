//! A blob as the answer to a GET or HEAD: 200, 206, 304, 412 or 416.
//!
//! Headers that depend on the blob alone are made once and kept with the open blob; an answer clones them. The entity
//! tag is the digest, so it is strong, and equal wherever the content is equal. Never a `Content-Encoding`: Go's
//! clients would decode it unasked, and the digest would fail (contract section 4).

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, RANGE},
};

use bytes::Bytes;

use super::{
    body::Body,
    conditional::{self, Verdict},
    prepared::Prepared,
    range::{self, Selection},
    reply,
};
use crate::{
    class::Class,
    digest::Digest,
    oci::error_body::{ErrorBody, ErrorCode},
    pull::Follower,
    store::Blob,
};

/// `Docker-Content-Digest` (distribution-spec 1.1).
pub(super) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// `Cache-Status` (RFC 9211).
pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Content whose name is its digest does not change under that name.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");
/// The same, also for shared caches: what the artifact listener has is there for everybody.
const PUBLIC_IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// A name that may move: ask again each time.
const REVALIDATE: HeaderValue = HeaderValue::from_static("no-cache");
/// RFC 9211: answered from what is held.
const HIT: HeaderValue = HeaderValue::from_static("larder; hit");

/// As what a blob is served.
#[derive(Clone, Debug)]
pub(super) enum Role<'a> {
    /// A published artifact.
    Artifact,
    /// A blob of a repository.
    Blob,
    /// A manifest of a repository.
    Manifest {
        /// Its media type.
        media_type: &'a str,
        /// It was named by its digest, not by a tag.
        by_digest: bool,
    },
}

/// Where the bytes of an answer are.
#[derive(Debug)]
pub(super) enum Source {
    /// In the store.
    Blob(Blob),
    /// On their way into it.
    Filling(Follower),
    /// In memory, and what their digest is.
    Memory(Digest, Bytes),
    /// Not here: only their digest and length are known, which is all that a HEAD asks for.
    Elsewhere(Digest, u64),
}

impl Source {
    fn digest(&self) -> Digest {
        match self {
            Self::Blob(blob) => blob.digest(),
            Self::Filling(follower) => follower.digest(),
            Self::Memory(digest, _) | Self::Elsewhere(digest, _) => *digest,
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Blob(blob) => blob.len(),
            Self::Filling(follower) => follower.size(),
            Self::Memory(_, bytes) => bytes.len() as u64,
            Self::Elsewhere(_, length) => *length,
        }
    }

    /// The bytes `start..end`; both at most the length.
    fn body(self, start: u64, end: u64) -> Body {
        match self {
            Self::Blob(blob) => Body::blob(blob, start, end),
            Self::Filling(follower) => Body::following(follower, start, end),
            // A length in memory fits.
            Self::Memory(_, bytes) => Body::memory(bytes.slice(start as usize..end as usize)),
            Self::Elsewhere(..) => Body::empty(),
        }
    }
}

/// The headers of a 200 for `source` as `role`.
fn headers(source: &Source, role: &Role<'_>) -> HeaderMap {
    let prepared = match source {
        Source::Blob(blob) => Prepared::of(blob),
        _ => None,
    };
    match (prepared, role) {
        (Some(prepared), Role::Artifact) => prepared.artifact.get_or_init(|| make(source, role)).clone(),
        (Some(prepared), Role::Blob) => prepared.blob.get_or_init(|| make(source, role)).clone(),
        (Some(prepared), Role::Manifest { media_type, by_digest }) => {
            let (kind, headers) = prepared.manifest.get_or_init(|| {
                let role = Role::Manifest { media_type, by_digest: true };
                (media_type.as_bytes().into(), make(source, &role))
            });
            // Two repositories may call one manifest by two media types.
            if **kind != *media_type.as_bytes() {
                return make(source, role);
            }
            let mut headers = headers.clone();
            if !by_digest {
                headers.insert(CACHE_CONTROL, REVALIDATE);
            }
            headers
        }
        (None, _) => make(source, role),
    }
}

/// Whether the conditions of a request decide its answer, so that none of the entity's bytes are in it.
pub fn decides(request: &HeaderMap, digest: &Digest) -> bool {
    conditional::has_any(request)
        && conditional::evaluate(request, etag(digest).as_bytes()) != conditional::Verdict::Proceed
}

/// The entity tag of what has this digest.
fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

fn make(source: &Source, role: &Role<'_>) -> HeaderMap {
    let digest = source.digest();
    let mut headers = HeaderMap::with_capacity(8);
    // A digest has no character that a header could not carry.
    let value = |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""));
    headers.insert(ETAG, value(etag(&digest)));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(source.len()));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    match role {
        Role::Artifact => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/gzip"));
            headers.insert(CACHE_CONTROL, PUBLIC_IMMUTABLE);
        }
        Role::Blob => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            headers.insert(CACHE_CONTROL, IMMUTABLE);
        }
        Role::Manifest { media_type, by_digest } => {
            let media_type = HeaderValue::from_str(media_type);
            headers.insert(CONTENT_TYPE, media_type.unwrap_or(HeaderValue::from_static("application/json")));
            headers.insert(CACHE_CONTROL, if *by_digest { IMMUTABLE } else { REVALIDATE });
        }
    }
    if !matches!(role, Role::Artifact) {
        headers.insert(DOCKER_CONTENT_DIGEST, value(digest.to_string()));
        headers.insert(CACHE_STATUS, HIT);
    }
    headers
}

/// Answers a GET or HEAD for `blob`, with the request's conditions and range.
pub(super) fn respond(method: &Method, request: &HeaderMap, blob: Blob, role: &Role<'_>) -> Response<Body> {
    respond_from(method, request, Source::Blob(blob), role)
}

/// The same, wherever the bytes are.
pub(super) fn respond_from(method: &Method, request: &HeaderMap, source: Source, role: &Role<'_>) -> Response<Body> {
    let headers = headers(&source, role);
    let etag = headers.get(ETAG).map_or(&b""[..], |v| v.as_bytes());
    match conditional::evaluate(request, etag) {
        Verdict::Proceed => {}
        Verdict::NotModified => {
            let mut out = Response::new(Body::empty());
            *out.status_mut() = StatusCode::NOT_MODIFIED;
            *out.headers_mut() = headers;
            // Of the content, only what lets a cache find and renew its copy (RFC 9110, section 15.4.5).
            out.headers_mut().remove(CONTENT_LENGTH);
            out.headers_mut().remove(CONTENT_TYPE);
            return out;
        }
        Verdict::Failed => {
            let status = StatusCode::PRECONDITION_FAILED;
            return refuse(role, status, "the content is not the one named in If-Match");
        }
    }
    let length = source.len();
    let mut ranges = request.get_all(RANGE).iter();
    let selection = match ranges.next().filter(|_| ranges.next().is_none()) {
        // RFC 9110, section 14.2: only a GET has ranges. Two of them are not one of them: the whole.
        Some(value) if method == Method::GET && conditional::range_counts(request, etag) => {
            range::select(value.as_bytes(), length)
        }
        _ => Selection::Whole,
    };
    let (status, start, end) = match selection {
        Selection::Whole => (StatusCode::OK, 0, length),
        Selection::Part { first, last } => (StatusCode::PARTIAL_CONTENT, first, last + 1),
        Selection::Unsatisfiable => {
            let message = format!("the range selects none of the {length} bytes");
            let mut out = refuse(role, StatusCode::RANGE_NOT_SATISFIABLE, &message);
            if let Ok(value) = HeaderValue::try_from(format!("bytes */{length}")) {
                out.headers_mut().insert(CONTENT_RANGE, value);
            }
            return out;
        }
    };
    let body = if method == Method::HEAD { Body::empty() } else { source.body(start, end) };
    let mut out = Response::new(body);
    *out.status_mut() = status;
    *out.headers_mut() = headers;
    if status == StatusCode::PARTIAL_CONTENT {
        out.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(end - start));
        if let Ok(value) = HeaderValue::try_from(format!("bytes {start}-{}/{length}", end - 1)) {
            out.headers_mut().insert(CONTENT_RANGE, value);
        }
    }
    out
}

/// An error in the words of who is asked: the distribution API has bodies of its own.
fn refuse(role: &Role<'_>, status: StatusCode, message: &str) -> Response<Body> {
    match role {
        Role::Artifact => reply::text(status, message, Some(Class::Client)),
        Role::Blob | Role::Manifest { .. } => {
            let body = ErrorBody::new(ErrorCode::Unsupported).message(message);
            reply::bytes(status, "application/json", body.render(), Some(Class::Client))
        }
    }
}
