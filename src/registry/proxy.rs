//! Proxies: which one a request takes, and the handshakes of HTTP CONNECT (RFC 9110, 9.3.6) and SOCKS5 (RFC 1928,
//! RFC 1929).

use std::{io, net::IpAddr};

use base64::Engine as _;
use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{
    Proxy,
    address::Cidr,
    error::SetupError,
    target::{Target, literal, split_authority},
};
use crate::secret::Secret;

/// The proxies that the environment names, read once by the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyEnvironment {
    /// For http.
    pub http: Option<Proxy>,
    /// For https.
    pub https: Option<Proxy>,
    /// Hosts, domains, addresses and networks that need none, separated by commas; `*` for all.
    pub no_proxy: String,
}

impl ProxyEnvironment {
    /// Reads `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in lower case first, through `variable`.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| {
            variable(&name.to_ascii_lowercase()).or_else(|| variable(name)).filter(|value| !value.trim().is_empty())
        };
        let all = get("ALL_PROXY");
        let proxy = |name: &str| get(name).or_else(|| all.clone()).map(|text| from_url(&text));
        Self { http: proxy("HTTP_PROXY"), https: proxy("HTTPS_PROXY"), no_proxy: get("NO_PROXY").unwrap_or_default() }
    }

    /// The proxy for `target`, if any. Loopback never takes one.
    pub(super) fn for_target(&self, target: &Target) -> Option<&Proxy> {
        let proxy = if target.https { self.https.as_ref() } else { self.http.as_ref() }?;
        let loopback = match literal(&target.host) {
            Some(address) => address.is_loopback(),
            None => target.host == "localhost" || target.host.ends_with(".localhost"),
        };
        (!loopback && !self.excepts(target)).then_some(proxy)
    }

    fn excepts(&self, target: &Target) -> bool {
        let address: Option<IpAddr> = literal(&target.host);
        self.no_proxy.split(',').map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
            if entry == "*" {
                return true;
            }
            if let (Some(cidr), Some(address)) = (Cidr::parse(entry), address) {
                return cidr.contains(address);
            }
            let entry = entry.to_ascii_lowercase();
            let (name, port) = match entry.rsplit_once(':') {
                Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, port.parse::<u16>().ok()),
                _ => (entry.as_str(), None),
            };
            let name = name.trim_start_matches("*.").trim_start_matches('.');
            let matches = target.host == name
                || target.host.strip_suffix(name).is_some_and(|head| head.ends_with('.') && !name.is_empty());
            matches && port.is_none_or(|port| port == target.port)
        })
    }
}

/// `[scheme://][user:password@]host:port`, as the environment's variables have it.
fn from_url(text: &str) -> Proxy {
    let text = text.trim();
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let rest = rest.split('/').next().unwrap_or_default();
    let (credentials, authority) = match rest.rsplit_once('@') {
        None => (None, rest),
        Some((userinfo, authority)) => {
            let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
            (Some((unescape(user), Secret::new(unescape(password)))), authority)
        }
    };
    Proxy { address: format!("{scheme}://{authority}"), credentials }
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// How a proxy is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Http,
    Https,
    Socks5,
}

/// A proxy's address, parsed.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) kind: Kind,
    pub(super) host: String,
    pub(super) port: u16,
    credentials: Option<(String, Secret)>,
}

impl Route {
    pub(super) fn parse(proxy: &Proxy) -> Result<Self, SetupError> {
        // The address is not quoted: it may hold a password in spite of the rules.
        let bad = |why: &str| SetupError { what: "proxy address", why: why.to_owned() };
        let (scheme, rest) = proxy.address.trim().split_once("://").ok_or_else(|| {
            bad("must be http://host:port, https://host:port or socks5://host:port, and has no scheme")
        })?;
        let (kind, default) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Kind::Http, 80),
            "https" => (Kind::Https, 443),
            "socks5" | "socks5h" => (Kind::Socks5, 1080),
            _ => return Err(bad("the scheme must be http, https or socks5")),
        };
        let mut credentials = proxy.credentials.clone();
        let rest = rest.trim_end_matches('/');
        let authority = match rest.rsplit_once('@') {
            None => rest,
            Some((_, authority)) => {
                let inline = from_url(&proxy.address).credentials;
                credentials = credentials.or(inline);
                authority
            }
        };
        let (host, mut port) = split_authority(authority, false)
            .filter(|(host, _)| !host.contains(['/', '?', '#', ' ']))
            .ok_or_else(|| bad("host and port are not usable"))?;
        if port == 80 && !authority.ends_with(":80") {
            port = default;
        }
        if kind == Kind::Socks5
            && credentials.as_ref().is_some_and(|(u, p)| u.is_empty() || u.len() > 255 || p.expose().len() > 255)
        {
            return Err(bad("SOCKS5 takes a user and a password of 1 to 255 bytes"));
        }
        Ok(Self { kind, host, port, credentials })
    }

    /// The value of Proxy-Authorization.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        let (user, password) = self.credentials.as_ref()?;
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{}", password.expose()));
        let mut value = HeaderValue::from_str(&format!("Basic {pair}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

/// What a proxy answered instead of a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("the proxy refuses the credentials, or wants some")]
    Credentials,
    #[error("the proxy answered {0}")]
    Refused(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Asks an HTTP proxy for a tunnel to `target`.
pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    route: &Route,
    target: &Target,
) -> Result<(), ProxyError> {
    const MAX_HEAD: usize = 16 << 10;
    let authority = target.host_and_port();
    let mut request =
        format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: {}\r\n", super::USER_AGENT);
    if let Some(value) = route.authorization().as_ref().and_then(|v| v.to_str().ok()) {
        request.push_str("Proxy-Authorization: ");
        request.push_str(value);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::with_capacity(256);
    // Byte by byte, so that nothing behind the head is swallowed; the kernel has it all, and it is short.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return Err(ProxyError::Refused("an endless header".to_owned()));
        }
        head.push(stream.read_u8().await?);
    }
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let status = line.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5)).unwrap_or_default();
    match status {
        [b'2', ..] => Ok(()),
        b"407" => Err(ProxyError::Credentials),
        _ => Err(ProxyError::Refused(String::from_utf8_lossy(line).chars().take(80).collect())),
    }
}

/// Asks a SOCKS5 proxy for a connection to `target`; a name is resolved by the proxy.
pub(super) async fn socks5<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    route: &Route,
    target: &Target,
) -> Result<(), ProxyError> {
    let methods: &[u8] = if route.credentials.is_some() { &[5, 2, 0, 2] } else { &[5, 1, 0] };
    stream.write_all(methods).await?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await?;
    match (chosen, &route.credentials) {
        ([5, 0], _) => {}
        ([5, 2], Some((user, password))) => {
            let password = password.expose();
            let mut message = vec![1];
            for text in [user.as_str(), password] {
                message.push(u8::try_from(text.len()).map_err(|_| ProxyError::Credentials)?);
                message.extend_from_slice(text.as_bytes());
            }
            stream.write_all(&message).await?;
            let mut answer = [0; 2];
            stream.read_exact(&mut answer).await?;
            if answer[1] != 0 {
                return Err(ProxyError::Credentials);
            }
        }
        ([5, 0xff], _) | ([5, 2], None) => return Err(ProxyError::Credentials),
        _ => return Err(ProxyError::Refused("something that is not SOCKS5".to_owned())),
    }
    let mut request = vec![5, 1, 0];
    match literal(&target.host) {
        Some(IpAddr::V4(address)) => {
            request.push(1);
            request.extend_from_slice(&address.octets());
        }
        Some(IpAddr::V6(address)) => {
            request.push(4);
            request.extend_from_slice(&address.octets());
        }
        None => {
            request.push(3);
            let length = u8::try_from(target.host.len())
                .map_err(|_| ProxyError::Refused("nothing: the host's name is too long for SOCKS5".to_owned()))?;
            request.push(length);
            request.extend_from_slice(target.host.as_bytes());
        }
    }
    request.extend_from_slice(&target.port.to_be_bytes());
    stream.write_all(&request).await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    if answer[0] != 5 || answer[1] != 0 {
        const REPLIES: [&str; 9] = [
            "success",
            "general failure",
            "connection not allowed",
            "network unreachable",
            "host unreachable",
            "connection refused",
            "TTL expired",
            "command not supported",
            "address type not supported",
        ];
        let reply = REPLIES.get(usize::from(answer[1])).copied().unwrap_or("an unknown code");
        return Err(ProxyError::Refused(reply.to_owned()));
    }
    let bound = match answer[3] {
        1 => 4,
        4 => 16,
        3 => usize::from(stream.read_u8().await?),
        _ => return Err(ProxyError::Refused("an unknown address type".to_owned())),
    };
    let mut rest = [0; 257];
    stream.read_exact(&mut rest[..bound + 2]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_names_a_proxy_except_for_loopback_and_no_proxy() {
        let environment = ProxyEnvironment::read(|name| {
            Some(match name {
                "http_proxy" => "http://plain.example:3128".to_owned(),
                "HTTPS_PROXY" => "socks5://us%40er:p%3Aw@tls.example:1080/".to_owned(),
                "no_proxy" => "internal.example, .svc,10.0.0.0/8, exact.example:8443".to_owned(),
                _ => return None,
            })
        });
        let tls = Proxy {
            address: "socks5://tls.example:1080".to_owned(),
            credentials: Some(("us@er".to_owned(), Secret::new("p:w"))),
        };
        let plain = Proxy { address: "http://plain.example:3128".to_owned(), credentials: None };
        for (url, proxy) in [
            ("https://ghcr.io/", Some(&tls)),
            ("http://ghcr.io/", Some(&plain)),
            ("https://127.0.0.1:5000/", None),
            ("https://[::1]/", None),
            ("https://localhost/", None),
            ("https://internal.example/", None),
            ("https://a.internal.example/", None),
            ("https://notinternal.example/", Some(&tls)),
            ("https://x.svc/", None),
            ("https://10.2.3.4/", None),
            ("https://11.2.3.4/", Some(&tls)),
            ("https://exact.example:8443/", None),
            ("https://exact.example/", Some(&tls)),
        ] {
            assert_eq!(environment.for_target(&Target::parse(url).unwrap()), proxy, "{url}");
        }
    }

    #[test]
    fn proxy_addresses_are_parsed_and_never_quoted() {
        for (address, parsed) in [
            ("http://proxy.example:3128", Some((Kind::Http, "proxy.example", 3128))),
            ("http://proxy.example", Some((Kind::Http, "proxy.example", 80))),
            ("https://proxy.example", Some((Kind::Https, "proxy.example", 443))),
            ("socks5://[::1]:9", Some((Kind::Socks5, "::1", 9))),
            ("proxy.example:3128", None),
            ("ftp://proxy.example", None),
            ("http://", None),
            ("http://hunter2/x y:1", None),
        ] {
            let route = Route::parse(&Proxy { address: address.to_owned(), credentials: None });
            match (route, parsed) {
                (Ok(route), Some((kind, host, port))) => {
                    assert_eq!((route.kind, route.host.as_str(), route.port), (kind, host, port), "{address}");
                }
                (Err(error), None) => assert!(!error.to_string().contains("hunter2"), "{error}"),
                (route, _) => panic!("{address}: {route:?}"),
            }
        }
    }
}
