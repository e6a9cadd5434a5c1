//! Conditional requests (RFC 9110, section 13) on content that has a strong entity tag and no date.
//!
//! Pure. `If-Modified-Since` and `If-Unmodified-Since` are not looked at: a blob has no date, and section 13.2.2 has
//! them ignored then.

use http::{
    HeaderMap, HeaderName,
    header::{IF_MATCH, IF_NONE_MATCH, IF_RANGE},
};

/// What the conditions of a request come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer as if there were none.
    Proceed,
    /// 304: the client has it.
    NotModified,
    /// 412: the client expected something else.
    Failed,
}

/// Evaluates `If-Match`, then `If-None-Match`, for a GET or HEAD of the representation whose tag is `etag` (strong,
/// with its quotes), in the order of section 13.2.2.
pub fn evaluate(headers: &HeaderMap, etag: &[u8]) -> Verdict {
    if present(headers, &IF_MATCH) && !any(headers, &IF_MATCH, etag, strong) {
        return Verdict::Failed;
    }
    if any(headers, &IF_NONE_MATCH, etag, weak) {
        return Verdict::NotModified;
    }
    Verdict::Proceed
}

/// Whether a request has any of the conditions that [`evaluate`] looks at.
pub fn has_any(headers: &HeaderMap) -> bool {
    present(headers, &IF_MATCH) || present(headers, &IF_NONE_MATCH)
}

/// Whether a `Range` in this request counts: no `If-Range`, or one that holds exactly this strong tag (a date never
/// counts, as there is none to compare it with).
pub fn range_counts(headers: &HeaderMap, etag: &[u8]) -> bool {
    match headers.get(IF_RANGE) {
        None => true,
        Some(value) => strong(value.as_bytes().trim_ascii(), etag),
    }
}

fn present(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.contains_key(name)
}

/// Whether `*` or one of the listed tags stands for `etag`.
fn any(headers: &HeaderMap, name: &HeaderName, etag: &[u8], same: fn(&[u8], &[u8]) -> bool) -> bool {
    headers.get_all(name).iter().any(|value| {
        let value = value.as_bytes().trim_ascii();
        value == b"*" || tags(value).any(|tag| same(tag, etag))
    })
}

/// The tags of a list, each with its quotes and `W/`. A tag may hold commas, so quotes are followed; the first thing
/// that is not a tag ends the list.
fn tags(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        while let [b' ' | b'\t' | b',', tail @ ..] = rest {
            rest = tail;
        }
        let prefix = if rest.starts_with(b"W/") { 2 } else { 0 };
        let quoted = rest.get(prefix..)?.strip_prefix(b"\"")?;
        let end = prefix + 1 + quoted.iter().position(|b| *b == b'"')? + 1;
        let (tag, tail) = rest.split_at(end);
        rest = tail;
        Some(tag)
    })
}

/// Strong comparison (section 8.8.3.2): equal, and neither weak.
fn strong(tag: &[u8], etag: &[u8]) -> bool {
    tag == etag && !tag.starts_with(b"W/")
}

/// Weak comparison: equal but for `W/`.
fn weak(tag: &[u8], etag: &[u8]) -> bool {
    tag.strip_prefix(b"W/").unwrap_or(tag) == etag
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::headers;

    #[test]
    fn verdicts_follow_the_rfc() {
        use Verdict::{Failed, NotModified, Proceed};
        for (lines, expected) in [
            (&[][..], Proceed),
            (&[("if-none-match", "\"a\"")][..], NotModified),
            (&[("if-none-match", "W/\"a\"")][..], NotModified),
            (&[("if-none-match", "*")][..], NotModified),
            (&[("if-none-match", " * ")][..], NotModified),
            (&[("if-none-match", "\"b\", \"a\"")][..], NotModified),
            (&[("if-none-match", "\"b,\"  ,,W/\"a\"")][..], NotModified),
            (&[("if-none-match", "\"b\""), ("if-none-match", "\"a\"")][..], NotModified),
            (&[("if-none-match", "\"b\"")][..], Proceed),
            (&[("if-none-match", "a")][..], Proceed),
            (&[("if-none-match", "\"a")][..], Proceed),
            (&[("if-none-match", "")][..], Proceed),
            (&[("if-none-match", "\"x\"a\"")][..], Proceed),
            (&[("if-match", "\"a\"")][..], Proceed),
            (&[("if-match", "*")][..], Proceed),
            (&[("if-match", "\"b\", \"a\"")][..], Proceed),
            (&[("if-match", "W/\"a\"")][..], Failed),
            (&[("if-match", "\"b\"")][..], Failed),
            (&[("if-match", "")][..], Failed),
            (&[("if-match", "\"b\""), ("if-none-match", "\"a\"")][..], Failed),
            (&[("if-match", "\"a\""), ("if-none-match", "\"a\"")][..], NotModified),
            (&[("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")][..], Proceed),
        ] {
            assert_eq!(evaluate(&headers(lines), b"\"a\""), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_range_counts_only_for_the_very_same_content() {
        for (lines, expected) in [
            (&[][..], true),
            (&[("if-range", "\"a\"")][..], true),
            (&[("if-range", "W/\"a\"")][..], false),
            (&[("if-range", "\"b\"")][..], false),
            (&[("if-range", "*")][..], false),
            (&[("if-range", "Sun, 06 Nov 1994 08:49:37 GMT")][..], false),
        ] {
            assert_eq!(range_counts(&headers(lines), b"\"a\""), expected, "{lines:?}");
        }
    }
}
