//! Small answers: a status, a few words, and the class for the metric.

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
};
use serde::Serialize;

use super::body::Body;
use crate::class::Class;

/// How long a client should wait before it asks again for what is not here yet, in seconds.
const RETRY_SECONDS: &str = "5";

/// An answer with this body and its length.
pub(super) fn bytes(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
    class: Option<Class>,
) -> Response<Body> {
    let body = body.into();
    let length = body.len() as u64;
    let mut out = Response::new(match class {
        Some(class) => Body::memory(body).outcome(class),
        None => Body::memory(body),
    });
    *out.status_mut() = status;
    out.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    out.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    out
}

/// An answer with one line of text.
pub(super) fn text(status: StatusCode, line: &str, class: Option<Class>) -> Response<Body> {
    bytes(status, "text/plain; charset=utf-8", format!("{line}\n"), class)
}

/// An answer with a JSON document.
pub(super) fn json(status: StatusCode, value: &impl Serialize, class: Option<Class>) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(body) => bytes(status, "application/json", body, class),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string(), Some(Class::Proto)),
    }
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut out = Response::new(Body::empty());
    *out.status_mut() = status;
    if status != StatusCode::NO_CONTENT {
        out.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    out
}

/// 405, with the methods that there are.
pub(super) fn method_not_allowed(mut response: Response<Body>, allow: &'static str) -> Response<Body> {
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// The answer, with the wish that the client come back.
pub(super) fn retry_later(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(RETRY_SECONDS));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
