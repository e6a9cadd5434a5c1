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
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Failure {
    /// The code with its usual status and message.
    pub fn new(code: ErrorCode, class: Class) -> Self {
        Self { body: ErrorBody::new(code), status: code.status(), class, headers: Vec::new() }
    }

    /// 400 for a request that is wrong in a way the spec has no code for.
    pub fn bad_request(message: String) -> Self {
        Self::new(ErrorCode::Unsupported, Class::Client).status(StatusCode::BAD_REQUEST).message(message)
    }

    /// 405.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        Self::new(ErrorCode::Unsupported, Class::Client).header((header::ALLOW, HeaderValue::from_static(allow)))
    }

    /// With this status instead of the code's usual one.
    pub fn status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// With this message.
    pub fn message(self, message: impl Into<String>) -> Self {
        Self { body: self.body.message(message), ..self }
    }

    /// And with this header.
    pub fn header(mut self, header: (HeaderName, HeaderValue)) -> Self {
        self.headers.push(header);
        self
    }

    /// And how many bytes of the upload have arrived, which are more, or less, than the client thinks.
    pub fn received(self, bytes: u64) -> Self {
        match HeaderValue::try_from(received_range(bytes)) {
            Ok(value) => self.header((header::RANGE, value)),
            Err(_) => self,
        }
    }

    /// And the client is asked for a user name and a password (RFC 7617). Never a Bearer challenge: clients take it for
    /// the address of a token service.
    pub fn challenge(self) -> Self {
        self.header((header::WWW_AUTHENTICATE, CHALLENGE))
    }

    /// And the connection ends: it is of no use any more, since part of the request was not read.
    pub fn close(self) -> Self {
        self.header((header::CONNECTION, HeaderValue::from_static("close")))
    }

    /// The answer.
    pub fn into_response(self) -> Response<Body> {
        let mut out = reply::bytes(self.status, "application/json", self.body.render(), Some(self.class));
        for (name, value) in self.headers {
            out.headers_mut().insert(name, value);
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
