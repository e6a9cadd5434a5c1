//! A small blocking HTTP/1.1 client that keeps its connection.
#![allow(dead_code)]

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

/// A connection to one server.
pub struct Client {
    host: String,
    stream: Option<BufReader<TcpStream>>,
}

/// An answer.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    /// To `host:port`; connects with the first request.
    pub fn new(host: impl Into<String>) -> Self {
        Self { host: host.into(), stream: None }
    }

    /// A GET of `path`; anything but 200 is a fault of the measurement.
    pub fn get(&mut self, path: &str) -> Vec<u8> {
        let answer = self.send("GET", path, &[], &[]);
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.text());
        answer.body
    }

    /// Sends a request and reads its answer. A connection that the server has closed is opened again once.
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let again = self.stream.is_some();
        match self.try_send(method, path, headers, body) {
            Ok(answer) => answer,
            Err(_) if again => {
                self.stream = None;
                self.try_send(method, path, headers, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
            }
            Err(error) => panic!("{method} {path}: {error}"),
        }
    }

    fn try_send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = TcpStream::connect(&self.host)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(Duration::from_secs(60)))?;
                self.stream.insert(BufReader::with_capacity(256 << 10, stream))
            }
        };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n", self.host, body.len());
        if method == "GET" {
            head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.host);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        stream.get_mut().write_all(&request)?;
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let mut answer = Answer { status, headers: Vec::new(), body: Vec::new() };
        loop {
            line.clear();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            answer.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        if method == "HEAD" || matches!(status, 204 | 304) {
            return Ok(answer);
        }
        if answer.header("transfer-encoding").is_some() {
            loop {
                line.clear();
                stream.read_line(&mut line)?;
                let size = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
                stream.take(size).read_to_end(&mut answer.body)?;
                line.clear();
                stream.read_line(&mut line)?;
                if size == 0 {
                    break;
                }
            }
        } else {
            let size: u64 = answer.header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
            answer.body.reserve(size as usize);
            if stream.take(size).read_to_end(&mut answer.body)? as u64 != size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(answer)
    }

    /// Pushes a blob in one piece; gives its digest.
    pub fn push_blob(&mut self, repository: &str, bytes: &[u8]) -> String {
        let digest = larder::digest::Digest::sha256(bytes).to_string();
        let begun = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], &[]);
        assert_eq!(begun.status, 202, "{}", begun.text());
        let location = begun.header("location").expect("Location");
        let path = match location.strip_prefix("http://") {
            Some(rest) => &rest[rest.find('/').expect("a path")..],
            None => location,
        };
        let mark = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{mark}digest={digest}");
        let done = self.send("PUT", &path, &[("Content-Type", "application/octet-stream")], bytes);
        assert_eq!(done.status, 201, "{}", done.text());
        digest
    }

    /// Pushes a Flux artifact of one layer; gives the layer's digest.
    pub fn push_artifact(&mut self, repository: &str, tag: &str, layer: &[u8]) -> String {
        let (config, manifest) = super::support::flux_artifact(layer);
        self.push_blob(repository, &config);
        let digest = self.push_blob(repository, layer);
        let kind = [("Content-Type", "application/vnd.oci.image.manifest.v1+json")];
        let done = self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), &kind, &manifest);
        assert_eq!(done.status, 201, "{}", done.text());
        digest
    }
}
