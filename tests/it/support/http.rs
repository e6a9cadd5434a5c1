//! A small blocking HTTP/1.1 client for loopback: one request a connection, whole bodies, nothing decoded but chunks.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

/// A response, its body complete.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers as sent, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The header's value, if it was sent; the first if it was sent often.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text, for messages.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}), status {}: {}", self.status, self.text()))
    }
}

/// GET of an `http://` URL; panics where nothing answers.
pub fn get(url: &str) -> Response {
    send("GET", url, &[], b"").unwrap_or_else(|error| panic!("GET {url}: {error}"))
}

/// One request to an `http://` URL. An error: no connection, or the connection ended before the response did.
pub fn send(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Response> {
    let rest = url.strip_prefix("http://").unwrap_or_else(|| panic!("{url} is not http"));
    let (authority, _) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    exchange(&mut connect(authority)?, method, rest, headers, body)
}

/// One request to an `https://` URL of an address.
pub fn send_tls(
    tls: &Arc<rustls::ClientConfig>,
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    let rest = url.strip_prefix("https://").unwrap_or_else(|| panic!("{url} is not https"));
    let (authority, _) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).to_owned();
    let name = host.try_into().map_err(std::io::Error::other)?;
    let connection = rustls::ClientConnection::new(tls.clone(), name).map_err(std::io::Error::other)?;
    exchange(&mut rustls::StreamOwned::new(connection, connect(authority)?), method, rest, headers, body)
}

fn connect(authority: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(authority)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    Ok(stream)
}

/// One request over a fresh connection; `place` is authority and path.
fn exchange(
    stream: &mut (impl Read + Write),
    method: &str,
    place: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    let (authority, path) = place.split_at(place.find('/').unwrap_or(place.len()));
    let mut head = format!(
        "{method} {} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nContent-Length: {}\r\n",
        if path.is_empty() { "/" } else { path },
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    // A server that has refused already may close before it has read the body; its answer counts.
    let written = stream.write_all(body).and_then(|()| stream.flush());
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes)
        && bytes.is_empty()
    {
        return Err(error);
    }
    if bytes.is_empty() {
        written?;
    }
    parse(method, &bytes)
}

fn parse(method: &str, bytes: &[u8]) -> std::io::Result<Response> {
    let bad = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(|| bad("no end of the headers"))?;
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| bad("headers that are not text"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut response = Response { status: status.ok_or_else(|| bad("no status"))?, headers, body: Vec::new() };
    let body = &bytes[end + 4..];
    let empty = method == "HEAD" || matches!(response.status, 204 | 304);
    response.body = if empty {
        Vec::new()
    } else if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        unchunk(body).ok_or_else(|| bad("the chunks end too early"))?
    } else if let Some(length) = response.header("content-length") {
        let length: usize = length.parse().map_err(|_| bad("a Content-Length that is no number"))?;
        if body.len() != length {
            return Err(bad(&format!("{} of {length} bytes arrived", body.len())));
        }
        body.to_vec()
    } else {
        body.to_vec()
    };
    Ok(response)
}

fn unchunk(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let line = body.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&body[..line]).ok()?.split(';').next()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        body = &body[line + 2..];
        if size == 0 {
            return Some(out);
        }
        out.extend_from_slice(body.get(..size)?);
        body = body.get(size + 2..)?;
    }
}

#[test]
fn a_body_that_ends_early_is_an_error() {
    assert_eq!(parse("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").unwrap().body, b"abc");
    assert!(parse("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab").is_err());
    assert!(parse("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").is_err());
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
    assert_eq!(parse("GET", chunked).unwrap().body, b"abcd");
    assert_eq!(parse("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n").unwrap().body, b"");
}
