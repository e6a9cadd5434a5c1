//! The spec's JSON error bodies (distribution-spec 1.1, "Error Codes"): `{"errors":[{"code","message","detail"}]}`.
//!
//! [`ErrorBody`] writes our own; [`summary`] reads anybody's, for a message. Pure values, bounded.

use http::StatusCode;
use serde::Serialize;
use serde_json::Value;

/// How much of a foreign body is read, in bytes.
pub const MAX_FOREIGN_BYTES: usize = 64 << 10;
/// The longest summary, in characters.
pub const MAX_SUMMARY_CHARS: usize = 300;

/// A code of the spec, or one of the two that distribution adds for failures of the server itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// code-1: no such blob in this repository.
    BlobUnknown,
    /// code-2: the upload cannot go on.
    BlobUploadInvalid,
    /// code-3: no such upload.
    BlobUploadUnknown,
    /// code-4: not the digest of the content, or not a digest.
    DigestInvalid,
    /// code-5: a manifest names a blob or manifest that is not there.
    ManifestBlobUnknown,
    /// code-6: the manifest cannot be used.
    ManifestInvalid,
    /// code-7: no such manifest in this repository.
    ManifestUnknown,
    /// code-8: not a repository name.
    NameInvalid,
    /// code-9: no such repository.
    NameUnknown,
    /// code-10: not the length of the content.
    SizeInvalid,
    /// code-11: credentials are needed.
    Unauthorized,
    /// code-12: the credentials do not suffice.
    Denied,
    /// code-13: not offered here.
    Unsupported,
    /// code-14: too many requests.
    TooManyRequests,
    /// The server failed.
    Unknown,
    /// The server cannot do it now.
    Unavailable,
}

impl ErrorCode {
    /// All, in the spec's order.
    pub const ALL: [Self; 16] = [
        Self::BlobUnknown,
        Self::BlobUploadInvalid,
        Self::BlobUploadUnknown,
        Self::DigestInvalid,
        Self::ManifestBlobUnknown,
        Self::ManifestInvalid,
        Self::ManifestUnknown,
        Self::NameInvalid,
        Self::NameUnknown,
        Self::SizeInvalid,
        Self::Unauthorized,
        Self::Denied,
        Self::Unsupported,
        Self::TooManyRequests,
        Self::Unknown,
        Self::Unavailable,
    ];

    /// The code as written in a body.
    pub const fn text(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unknown => "UNKNOWN",
            Self::Unavailable => "UNAVAILABLE",
        }
    }

    /// The status that goes with the code where the spec names no other for the occasion.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestBlobUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown => StatusCode::NOT_FOUND,
            Self::BlobUploadInvalid
            | Self::DigestInvalid
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::SizeInvalid => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// What it says where the occasion has nothing better.
    const fn default_message(self) -> &'static str {
        match self {
            Self::BlobUnknown => "blob unknown to registry",
            Self::BlobUploadInvalid => "blob upload invalid",
            Self::BlobUploadUnknown => "blob upload unknown to registry",
            Self::DigestInvalid => "provided digest did not match uploaded content",
            Self::ManifestBlobUnknown => "manifest references a manifest or blob unknown to registry",
            Self::ManifestInvalid => "manifest invalid",
            Self::ManifestUnknown => "manifest unknown to registry",
            Self::NameInvalid => "invalid repository name",
            Self::NameUnknown => "repository name not known to registry",
            Self::SizeInvalid => "provided length did not match content length",
            Self::Unauthorized => "authentication required",
            Self::Denied => "requested access to the resource is denied",
            Self::Unsupported => "the operation is unsupported",
            Self::TooManyRequests => "too many requests",
            Self::Unknown => "unknown error",
            Self::Unavailable => "service unavailable",
        }
    }
}

/// A body with one error, being built.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct ErrorBody {
    code: ErrorCode,
    message: Option<String>,
    detail: Option<Value>,
}

impl ErrorBody {
    /// A body that says `code` and what it commonly means.
    pub fn new(code: ErrorCode) -> Self {
        Self { code, message: None, detail: None }
    }

    /// With this message instead.
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }

    /// With this detail.
    pub fn detail(mut self, detail: impl Into<Value>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The code's status.
    pub fn status(&self) -> StatusCode {
        self.code.status()
    }

    /// The JSON.
    pub fn render(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Body<'a> {
            errors: [One<'a>; 1],
        }
        #[derive(Serialize)]
        struct One<'a> {
            code: &'static str,
            message: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            detail: Option<&'a Value>,
        }
        let message = self.message.as_deref().unwrap_or(self.code.default_message());
        let body = Body { errors: [One { code: self.code.text(), message, detail: self.detail.as_ref() }] };
        // Strings and values always serialise.
        serde_json::to_vec(&body).unwrap_or_default()
    }
}

/// What a foreign error body says, for a message: the first code and message, on one line, control characters escaped,
/// at most [`MAX_SUMMARY_CHARS`] characters. Besides the spec's form, those of token services (`error`,
/// `error_description`) and gateways (`message`, `details`) are read. `None` for anything else.
pub fn summary(body: &[u8]) -> Option<String> {
    summary_of(body, str::to_owned)
}

/// The same of what `told` makes of the text before its end is cut off.
pub fn summary_of(body: &[u8], told: impl FnOnce(&str) -> String) -> Option<String> {
    if body.len() > MAX_FOREIGN_BYTES {
        return None;
    }
    let value: Value = serde_json::from_slice(body).ok()?;
    let first = match value.get("errors") {
        Some(Value::Array(errors)) => errors.first()?,
        Some(Value::Object(_)) => value.get("errors")?,
        _ => &value,
    };
    let text = |key: &str| first.get(key).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
    let code = text("code").or_else(|| text("error"));
    let message = text("message").or_else(|| text("error_description")).or_else(|| text("details"));
    let line = match (code, message) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(one), None) | (None, Some(one)) => one.to_string(),
        (None, None) => first.as_str().map(str::trim).filter(|text| !text.is_empty())?.to_string(),
    };
    Some(one_line(&told(&line)))
}

/// Control characters and those that turn the direction of writing are escaped, the end is cut off.
fn one_line(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    let mut out = String::new();
    let mut length = 0;
    for c in text.chars() {
        let piece = if hidden(c) { c.escape_default().to_string() } else { c.to_string() };
        length += piece.chars().count();
        if length > MAX_SUMMARY_CHARS - 1 {
            out.push('…');
            break;
        }
        out.push_str(&piece);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn renders_the_specs_form() {
        let plain = ErrorBody::new(ErrorCode::ManifestUnknown);
        assert_eq!(plain.status(), 404);
        assert_eq!(
            String::from_utf8(plain.render()).unwrap(),
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown to registry"}]}"#
        );
        let full = ErrorBody::new(ErrorCode::Unavailable).message("upstream said \"401\"").detail("x");
        assert_eq!(full.status(), 503);
        assert_eq!(
            String::from_utf8(full.render()).unwrap(),
            r#"{"errors":[{"code":"UNAVAILABLE","message":"upstream said \"401\"","detail":"x"}]}"#
        );
    }

    #[test]
    fn reads_back_every_body_it_writes() {
        for code in ErrorCode::ALL {
            let want = format!("{}: {}", code.text(), code.default_message());
            assert_eq!(summary(&ErrorBody::new(code).render()), Some(want));
        }
    }

    #[test]
    fn summarises_foreign_bodies_on_one_short_line() {
        for (body, want) in [
            (r#"{"errors":[{"code":"DENIED","message":"no","detail":{"a":1}},{"code":"X"}]}"#, Some("DENIED: no")),
            (r#"{"errors":[{"code":"DENIED"}]}"#, Some("DENIED")),
            (r#"{"errors":[{"message":" a\nb\u0007\u202e "}]}"#, Some("a\\nb\\u{7}\\u{202e}")),
            (r#"{"errors":[{"code":7,"message":"m"}]}"#, Some("m")),
            (r#"{"errors":["plain"]}"#, Some("plain")),
            (r#"{"errors":{"code":"C","message":"m"}}"#, Some("C: m")),
            (r#"{"error":"invalid_grant","error_description":"expired"}"#, Some("invalid_grant: expired")),
            (r#"{"details":"incorrect username or password"}"#, Some("incorrect username or password")),
            (r#"{"message":"404 page not found"}"#, Some("404 page not found")),
            (r#"{"errors":[]}"#, None),
            (r#"{"errors":[{}]}"#, None),
            (r#"{"errors":null}"#, None),
            ("[]", None),
            ("", None),
            ("<html>", None),
            ("{", None),
        ] {
            assert_eq!(summary(body.as_bytes()).as_deref(), want, "{body}");
        }
        assert_eq!(summary(&[0xff, 0xfe]), None);
        let long = format!(r#"{{"message":"{}"}}"#, "é".repeat(1000));
        let line = summary(long.as_bytes()).unwrap();
        assert_eq!((line.chars().count(), line.ends_with('…')), (300, true));
        let exact = format!(r#"{{"message":"{}"}}"#, "a".repeat(299));
        assert_eq!(summary(exact.as_bytes()).unwrap(), "a".repeat(299));
        assert_eq!(summary(format!(r#"{{"message":"{}"}}"#, "a".repeat(MAX_FOREIGN_BYTES)).as_bytes()), None);
    }

    proptest! {
        #[test]
        fn a_summary_is_always_short_and_on_one_line(message in ".{0,400}") {
            let body = serde_json::json!({"errors": [{"code": "X", "message": message}]}).to_string();
            let line = summary(body.as_bytes()).unwrap();
            prop_assert!(line.chars().count() <= MAX_SUMMARY_CHARS);
            prop_assert!(!line.contains(char::is_control));
        }
    }
}
