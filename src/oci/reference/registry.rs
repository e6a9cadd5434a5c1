//! A registry's name: host and port, one spelling for each, none that two programs read differently.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use super::{ReferenceError, short};

/// The name that all of Docker Hub's hosts go by.
pub const DOCKER_HUB: &str = "docker.io";
/// The host that answers Docker Hub's API.
pub const DOCKER_HUB_API: &str = "registry-1.docker.io";
/// The longest host, in bytes (RFC 1035, section 2.3.4, without the root's dot).
pub const MAX_HOST_BYTES: usize = 253;

/// A registry as it is named: `docker.io`, `ghcr.io`, `127.0.0.1:5000`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Registry {
    host: String,
    port: Option<u16>,
}

impl Registry {
    /// The host without its port, as named: lower case; an IPv6 literal in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, where named.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Docker Hub.
    pub fn docker_hub() -> Self {
        Self { host: DOCKER_HUB.to_string(), port: None }
    }

    /// Whether this is Docker Hub.
    pub fn is_docker_hub(&self) -> bool {
        self.host == DOCKER_HUB && self.port.is_none()
    }

    /// The `host[:port]` that answers the API: `docker.io` is served by `registry-1.docker.io`.
    pub fn api_authority(&self) -> String {
        if self.is_docker_hub() { DOCKER_HUB_API.to_string() } else { self.to_string() }
    }

    /// The address, if the host is one and not a name.
    pub fn ip_literal(&self) -> Option<IpAddr> {
        match self.host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(v6) => v6.parse().ok().map(IpAddr::V6),
            None => self.host.parse().ok().map(IpAddr::V4),
        }
    }

    /// Whether the host is a loopback address, written as an address (`localhost` is a name). An IPv4 address mapped
    /// into IPv6 counts as what it reaches.
    pub fn is_loopback_literal(&self) -> bool {
        self.ip_literal().is_some_and(|ip| ip.to_canonical().is_loopback())
    }
}

/// Whether programs that read hosts as URLs do (WHATWG URL, "ends in a number checker") would take `label` for a number.
pub(super) fn is_numeric_label(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    let digits = label.bytes().all(|b| b.is_ascii_digit());
    hex.map_or(digits && !label.is_empty(), |hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

impl FromStr for Registry {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.contains('@') {
            return Err(ReferenceError::UserInfo);
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(inner) => {
                let wrong = |reason| ReferenceError::Host { host: short(text), reason };
                let (address, rest) = inner.split_once(']').ok_or_else(|| wrong("the bracket is not closed"))?;
                let address: Ipv6Addr =
                    address.parse().map_err(|_| wrong("in brackets stands an IPv6 address without a zone"))?;
                let port = match rest.strip_prefix(':') {
                    Some(port) => Some(port),
                    None if rest.is_empty() => None,
                    None => return Err(wrong("only a port may follow the bracket")),
                };
                (format!("[{address}]"), port)
            }
            None => match text.split_once(':') {
                Some((host, port)) => (checked_host(host)?, Some(port)),
                None => (checked_host(text)?, None),
            },
        };
        let port = match port {
            None => None,
            Some(text) => {
                let digits = text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
                let number = text.parse::<u16>().ok().filter(|n| digits && *n != 0);
                Some(number.ok_or_else(|| ReferenceError::Port { host: short(&host) })?)
            }
        };
        // Only the default port says nothing; Docker Hub on another one is another server.
        let hub = matches!(host.as_str(), DOCKER_HUB | "index.docker.io" | DOCKER_HUB_API);
        if hub && matches!(port, None | Some(443)) {
            return Ok(Self::docker_hub());
        }
        Ok(Self { host, port })
    }
}

fn checked_host(text: &str) -> Result<String, ReferenceError> {
    let host = text.to_ascii_lowercase();
    let wrong = |reason| ReferenceError::Host { host: short(text), reason };
    if host.is_empty() {
        return Err(wrong("it is empty"));
    }
    if host.len() > MAX_HOST_BYTES {
        return Err(wrong("it is longer than 253 characters"));
    }
    for label in host.split('.') {
        if label.is_empty() {
            return Err(wrong("a part between dots is empty"));
        }
        if label.len() > 63 {
            return Err(wrong("a part between dots is longer than 63 characters"));
        }
        if !label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Err(wrong("it may hold letters, digits, '-' and '.'"));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(wrong("a part between dots begins or ends with '-'"));
        }
    }
    if host.rsplit('.').next().is_some_and(is_numeric_label) && host.parse::<Ipv4Addr>().is_err() {
        return Err(ReferenceError::OddAddress(short(text)));
    }
    Ok(host)
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}
