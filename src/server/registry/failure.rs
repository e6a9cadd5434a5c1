//! What this listener answers when it does not do what was asked: the spec's error body, a status, a class.

use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use crate::{
    class::Class,
    oci::error_body::{ErrorBody, ErrorCode},
    server::{body::Body, reply},
    store::StoreError,
};

const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"Larder\", charset=\"UTF-8\"");

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct Failure {
    body: ErrorBody,
    status: StatusCode,
    class: Class,
    allow: Option<&'static str>,
    /// `Range` of an upload that is further, or less far, than the client thinks.
    received: Option<u64>,
    /// Whether the client is asked for credentials.
    challenge: bool,
    header: Option<(HeaderName, HeaderValue)>,
    /// Whether the connection is of no use any more: part of the request was not read.
    close: bool,
}

impl Failure {
    /// The code with its usual status and message.
    pub fn new(code: ErrorCode, class: Class) -> Self {
        let body = ErrorBody::new(code);
        let status = code.status();
        Self { body, status, class, allow: None, received: None, challenge: false, header: None, close: false }
    }

    /// 400 for a request that is wrong in a way the spec has no code for.
    pub fn bad_request(message: String) -> Self {
        Self::new(ErrorCode::Unsupported, Class::Client).status(StatusCode::BAD_REQUEST).message(message)
    }

    /// 405.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        Self { allow: Some(allow), ..Self::new(ErrorCode::Unsupported, Class::Client) }
    }

    /// With this status instead of the code's usual one.
    pub fn status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// With this message.
    pub fn message(self, message: impl Into<String>) -> Self {
        Self { body: self.body.message(message), ..self }
    }

    /// And how many bytes of the upload have arrived.
    pub fn received(self, bytes: u64) -> Self {
        Self { received: Some(bytes), ..self }
    }

    /// And the client is asked for a user name and a password (RFC 7617). Never a Bearer challenge: clients take it for
    /// the address of a token service.
    pub fn challenge(self) -> Self {
        Self { challenge: true, ..self }
    }

    /// And with this header.
    pub fn header(self, header: (HeaderName, HeaderValue)) -> Self {
        Self { header: Some(header), ..self }
    }

    /// And the connection ends.
    pub fn close(self) -> Self {
        Self { close: true, ..self }
    }

    /// The answer.
    pub fn into_response(self) -> Response<Body> {
        let mut out = reply::bytes(self.status, "application/json", self.body.render(), Some(self.class));
        if let Some(allow) = self.allow {
            out = reply::method_not_allowed(out, allow);
        }
        if let Some(value) = self.received.and_then(|n| HeaderValue::try_from(received_range(n)).ok()) {
            out.headers_mut().insert(header::RANGE, value);
        }
        if self.challenge {
            out.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
        }
        if let Some((name, value)) = self.header {
            out.headers_mut().insert(name, value);
        }
        if self.close {
            out.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE { reply::retry_later(out) } else { out }
    }
}

/// How far an upload is, as the API writes it: `0-<last byte>`; an empty one is `0-0` by custom.
pub(super) fn received_range(bytes: u64) -> String {
    format!("0-{}", bytes.saturating_sub(1))
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let class = error.class();
        let failure = match class {
            Class::Size => Self::new(ErrorCode::SizeInvalid, class),
            Class::Digest => Self::new(ErrorCode::DigestInvalid, class),
            Class::NotFound => Self::new(ErrorCode::ManifestUnknown, class),
            Class::Client => Self::new(ErrorCode::NameInvalid, class),
            _ => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the store refused a request");
                let status = match error.is_full() {
                    true => StatusCode::INSUFFICIENT_STORAGE,
                    false => StatusCode::SERVICE_UNAVAILABLE,
                };
                // Where the store lies on the disk is the operator's business: it stands in the log.
                let message = match error.is_full() {
                    true => "the registry's disk is full",
                    false => "the registry's store cannot do it now",
                };
                return Self::new(ErrorCode::Unavailable, class).status(status).message(message);
            }
        };
        failure.message(error.to_string())
    }
}
