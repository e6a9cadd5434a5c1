//! Where a request goes: an absolute http or https URL in its parts, parsed strictly, shown without its query.

use std::{fmt, net::IpAddr};

use http::Uri;

/// An absolute http or https URL. Its `Display` leaves out the query: presigned URLs carry their credential there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) https: bool,
    /// Lower case; an IPv6 literal without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Begins with a slash.
    pub(super) path_and_query: String,
}

/// Which server: what connections, redirects and credentials are decided by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub(super) https: bool,
    pub(super) host: String,
    pub(super) port: u16,
}

impl Target {
    /// Parses an absolute URL. `None` for another scheme, userinfo, no host, or characters that no URL has.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.split('#').next().unwrap_or_default();
        let uri: Uri = escape(text).parse().ok()?;
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') {
            return None;
        }
        let (host, port) = split_authority(authority.as_str(), https)?;
        let path_and_query = match uri.path_and_query().map(|p| p.as_str()) {
            None | Some("") => "/".to_owned(),
            Some(p) if p.starts_with('/') => p.to_owned(),
            Some(p) => format!("/{p}"),
        };
        Some(Self { https, host, port, path_and_query })
    }

    /// The API of the server at `authority` (`host`, `host:port`, `[v6]:port`).
    pub(super) fn of_authority(authority: &str, https: bool, path_and_query: String) -> Option<Self> {
        let (host, port) = split_authority(authority, https)?;
        Some(Self { https, host, port, path_and_query })
    }

    /// Resolves a `Location` or a Link's target against this URL (RFC 3986, section 5.2).
    pub(super) fn join(&self, reference: &str) -> Option<Self> {
        let reference = reference.trim().split('#').next().unwrap_or_default();
        let scheme_end = reference.find(':').filter(|at| !reference[..*at].contains(['/', '?']));
        if scheme_end.is_some() {
            return Self::parse(reference);
        }
        if reference.starts_with("//") {
            return Self::parse(&format!("{}:{reference}", self.scheme()));
        }
        let path = self.path();
        let joined = if reference.is_empty() {
            self.path_and_query.clone()
        } else if reference.starts_with('/') {
            reference.to_owned()
        } else if reference.starts_with('?') {
            format!("{path}{reference}")
        } else {
            let folder = path.rfind('/').map_or("", |at| &path[..at]);
            format!("{folder}/{reference}")
        };
        let escaped = escape(&joined);
        let (path, query) = match escaped.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (escaped.as_str(), None),
        };
        let mut path_and_query = without_dots(path);
        if let Some(query) = query {
            path_and_query.push('?');
            path_and_query.push_str(query);
        }
        let _: http::uri::PathAndQuery = path_and_query.parse().ok()?;
        Some(Self { path_and_query, ..self.clone() })
    }

    pub(super) fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    pub(super) fn path(&self) -> &str {
        self.path_and_query.split('?').next().unwrap_or_default()
    }

    pub(super) fn query(&self) -> &str {
        self.path_and_query.split_once('?').map_or("", |(_, query)| query)
    }

    pub(super) fn origin(&self) -> Origin {
        Origin { https: self.https, host: self.host.clone(), port: self.port }
    }

    pub(super) fn same_origin(&self, other: &Self) -> bool {
        self.https == other.https && self.port == other.port && self.host == other.host
    }

    /// For the Host header and CONNECT: with the port where it is not the scheme's own.
    pub(super) fn authority(&self) -> String {
        let default = if self.https { 443 } else { 80 };
        if self.port == default { bracketed(&self.host) } else { self.host_and_port() }
    }

    pub(super) fn host_and_port(&self) -> String {
        format!("{}:{}", bracketed(&self.host), self.port)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.authority(), self.path())
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// Splits `host[:port]`; brackets go, the case too.
pub(super) fn split_authority(authority: &str, https: bool) -> Option<(String, u16)> {
    let default = if https { 443 } else { 80 };
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        match rest {
            "" => (host, None),
            rest => (host, Some(rest.strip_prefix(':')?)),
        }
    } else {
        match authority.split_once(':') {
            None => (authority, None),
            Some((host, port)) => (host, Some(port)),
        }
    };
    let port = match port {
        None | Some("") => default,
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => port.parse().ok().filter(|p| *p != 0)?,
        Some(_) => return None,
    };
    if host.is_empty() || host.len() > 253 {
        return None;
    }
    Some((host.to_ascii_lowercase(), port))
}

/// The address that `host` spells, where it is a literal in the usual spelling.
pub(super) fn literal(host: &str) -> Option<IpAddr> {
    host.parse().ok()
}

/// Percent-encodes what a URL must not contain but servers send all the same (spaces, quotes, UTF-8).
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            0x21..=0x7e if !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}') => {
                out.push(char::from(byte));
            }
            _ => {
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    out
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Percent-encodes a value for a query or a form: everything but RFC 3986's unreserved characters.
pub(super) fn encode_component(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    out
}

/// RFC 3986, section 5.2.4.
fn without_dots(path: &str) -> String {
    if !path.contains("/.") {
        return path.to_owned();
    }
    let mut kept: Vec<&str> = Vec::new();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    for (index, part) in parts.iter().enumerate() {
        let last = index + 1 == parts.len();
        match *part {
            "." | ".." => {
                if *part == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            part => kept.push(part),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_absolute_urls_and_shows_them_without_their_query() {
        for (text, shown) in [
            ("https://Example.com/a/b?sig=secret#frag", "https://example.com/a/b"),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5000/"),
            ("https://[::1]:8443/v2/", "https://[::1]:8443/v2/"),
            ("https://example.com:443/x", "https://example.com/x"),
            ("https://example.com/a b", "https://example.com/a%20b"),
        ] {
            assert_eq!(Target::parse(text).unwrap().to_string(), shown, "{text}");
        }
        for text in [
            "",
            "example.com",
            "ftp://example.com/",
            "https://user:pw@example.com/",
            "https://:5/",
            "http://a:0/",
            "http://a:99999/",
        ] {
            assert_eq!(Target::parse(text), None, "{text}");
        }
    }

    #[test]
    fn joins_locations_as_rfc_3986_does() {
        let base = Target::parse("https://example.com/v2/a/blobs/x?y=1").unwrap();
        for (reference, url) in [
            ("/other?q=1", "https://example.com/other?q=1"),
            ("next?q=1", "https://example.com/v2/a/blobs/next?q=1"),
            ("../up", "https://example.com/v2/a/up"),
            ("../../../../../etc", "https://example.com/etc"),
            ("?n=2", "https://example.com/v2/a/blobs/x?n=2"),
            ("//cdn.example.net/z", "https://cdn.example.net/z"),
            ("http://example.com:8080/z", "http://example.com:8080/z"),
        ] {
            assert_eq!(base.join(reference), Target::parse(url), "{reference}");
        }
        assert_eq!(base.join("ftp://example.com/"), None);
        assert_eq!(base.join("https://u:p@example.com/"), None);
    }

    #[test]
    fn encodes_components() {
        assert_eq!(encode_component("repository:a/b:pull,push"), "repository%3Aa%2Fb%3Apull%2Cpush");
    }
}
