//! A request's query: `a=b&c=d`, percent-decoded, every name at most once where it matters.

use std::borrow::Cow;

/// The most pairs that are looked at.
const MAX_PAIRS: usize = 32;

/// The pairs of a query, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

/// Why a query cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// More pairs than any request needs.
    #[error("the query has more than {MAX_PAIRS} parameters")]
    TooMany,
    /// `%` without two hex digits, bytes that are not UTF-8, or a control character.
    #[error("the query has an escape that does not decode to text")]
    Escape,
    /// One name twice: two readers could read it in two ways.
    #[error("the query has the parameter {0:?} more than once")]
    Twice(&'static str),
}

impl<'a> Query<'a> {
    /// Parses what follows the `?`.
    pub fn parse(query: Option<&'a str>) -> Result<Self, QueryError> {
        let mut pairs = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == MAX_PAIRS {
                return Err(QueryError::TooMany);
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((decode(name)?, decode(value)?));
        }
        Ok(Self(pairs))
    }

    /// The value of `name`, where it is there.
    pub fn get(&self, name: &'static str) -> Result<Option<&str>, QueryError> {
        let mut values = self.0.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_ref());
        let first = values.next();
        if values.next().is_some() { Err(QueryError::Twice(name)) } else { Ok(first) }
    }

    /// Every value of `name`, in their order: for what may be there more than once.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_ref())
    }

    /// The query again, encoded, without `name`.
    pub fn without(&self, name: &str) -> String {
        let mut out = String::new();
        for (n, value) in self.0.iter().filter(|(n, _)| n != name) {
            if !out.is_empty() {
                out.push('&');
            }
            encode(n, &mut out);
            out.push('=');
            encode(value, &mut out);
        }
        out
    }

    /// Whether `name` is there at all.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }
}

/// Everything but RFC 3986's unreserved characters as `%XX`.
fn encode(text: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

fn decode(text: &str) -> Result<Cow<'_, str>, QueryError> {
    if !text.bytes().any(|b| matches!(b, b'%' | b'+')) {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'%' => {
                let [high, low, tail @ ..] = rest else { return Err(QueryError::Escape) };
                let digit = |b: &u8| char::from(*b).to_digit(16);
                let (Some(high), Some(low)) = (digit(high), digit(low)) else { return Err(QueryError::Escape) };
                out.push((high * 16 + low) as u8);
                rest = tail;
            }
            b'+' => out.push(b' '),
            other => out.push(*other),
        }
    }
    let text = String::from_utf8(out).map_err(|_| QueryError::Escape)?;
    if text.chars().any(char::is_control) { Err(QueryError::Escape) } else { Ok(Cow::Owned(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded() {
        let query = Query::parse(Some("digest=sha256%3Aab&n=5&&empty&x=a+b%20c&é=1")).unwrap();
        assert_eq!(query.get("digest"), Ok(Some("sha256:ab")));
        assert_eq!(query.get("n"), Ok(Some("5")));
        assert_eq!(query.get("empty"), Ok(Some("")));
        assert_eq!(query.get("x"), Ok(Some("a b c")));
        assert_eq!(query.get("absent"), Ok(None));
        let tags = Query::parse(Some("tag=a&n=1&tag=b%2Dc")).unwrap();
        assert_eq!(tags.all("tag").collect::<Vec<_>>(), ["a", "b-c"]);
        assert!(Query::parse(None).unwrap().get("n").unwrap().is_none());
    }

    #[test]
    fn a_query_is_written_again_without_what_is_not_for_others() {
        for (query, rest) in [
            ("ns=docker.io&n=5&last=v1", "n=5&last=v1"),
            ("artifactType=a%2Fb+c&ns=x", "artifactType=a%2Fb%20c"),
            ("ns=a", ""),
            ("n", "n="),
            ("x=%C3%A9%26%3D", "x=%C3%A9%26%3D"),
        ] {
            assert_eq!(Query::parse(Some(query)).unwrap().without("ns"), rest, "{query}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        assert_eq!(Query::parse(Some("ns=a&ns=b")).unwrap().get("ns"), Err(QueryError::Twice("ns")));
        assert_eq!(Query::parse(Some("ns=a&n%73=b")).unwrap().get("ns"), Err(QueryError::Twice("ns")));
        for bad in ["a=%", "a=%0", "a=%zz", "a=%ff", "a=%0d%0a", "a=%00", "%=1"] {
            assert_eq!(Query::parse(Some(bad)), Err(QueryError::Escape), "{bad}");
        }
        assert_eq!(Query::parse(Some(&"a=1&".repeat(33))), Err(QueryError::TooMany));
    }
}
