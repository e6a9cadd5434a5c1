//! The listeners over loopback, spoken to with raw bytes, so that a test sees exactly what goes over the wire.

mod access;
mod admin;
mod artifacts;
mod connections;
mod http2;
mod registry;
mod tls;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use larder::{
    digest::Digest,
    server::{Bound, Handler, Limits},
    shutdown::{self, Trigger},
    store::{Durability, Store},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};

/// Longer than anything here takes: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store in a directory of its own.
pub struct Scene {
    pub directory: tempfile::TempDir,
    pub store: Store,
}

impl Scene {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        Self { directory, store }
    }

    pub fn put(&self, content: &[u8]) -> Digest {
        let digest = Digest::sha256(content);
        self.store.put(digest, content, Durability::Soon).unwrap();
        digest
    }
}

/// A listener that is being served until this is dropped or stopped.
pub struct Running {
    pub address: SocketAddr,
    trigger: Trigger,
    task: JoinHandle<()>,
}

impl Running {
    pub fn start<H: Handler>(handler: H, limits: Limits) -> Self {
        let bound = Bound::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self::serve(bound, handler, limits)
    }

    pub fn serve<H: Handler>(bound: Bound, handler: H, limits: Limits) -> Self {
        let address = bound.address();
        let (trigger, shutdown) = shutdown::channel();
        let task = tokio::spawn(larder::server::serve(bound, Arc::new(handler), limits, shutdown));
        Self { address, trigger, task }
    }

    pub fn begin_stop(&self) {
        self.trigger.begin();
    }

    pub async fn stopped(self) {
        self.trigger.begin();
        tokio::time::timeout(PATIENCE, self.task).await.expect("the listener drains").unwrap();
    }

    pub async fn connect(&self) -> Client {
        Client::to(self.address).await
    }

    /// One request on a connection of its own.
    pub async fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut client = self.connect().await;
        client.request(method, target, headers, body).await
    }

    pub async fn get(&self, target: &str, headers: &[(&str, &str)]) -> Reply {
        self.request("GET", target, headers, b"").await
    }
}

/// One connection.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer as it came.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The code of a registry's error body.
    pub fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap_or_default().to_string()
    }
}

impl Client {
    pub async fn to(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub async fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += "host: localhost\r\n";
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() || !matches!(method, "GET" | "HEAD") {
            head += &format!("content-length: {}\r\n", body.len());
        }
        head += "\r\n";
        self.send(head.as_bytes()).await;
        self.send(body).await;
        self.reply(method == "HEAD").await.expect("an answer")
    }

    /// The next answer; `None` where the connection ends before its end.
    pub async fn reply(&mut self, head_only: bool) -> Option<Reply> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if !self.more().await {
                return None;
            }
        };
        let head = String::from_utf8(self.buffer[..end].to_vec()).unwrap();
        self.buffer.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(": ").unwrap_or((line.trim_end_matches(':'), "")))
            .map(|(name, value)| (name.to_lowercase(), value.to_string()))
            .collect();
        let mut reply = Reply { status, headers, body: Vec::new() };
        if head_only || matches!(status, 204 | 304) {
            return Some(reply);
        }
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                let line = loop {
                    if let Some(at) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                        break at;
                    }
                    if !self.more().await {
                        return None;
                    }
                };
                let size = usize::from_str_radix(std::str::from_utf8(&self.buffer[..line]).unwrap(), 16).unwrap();
                self.buffer.drain(..line + 2);
                while self.buffer.len() < size + 2 {
                    if !self.more().await {
                        return None;
                    }
                }
                reply.body.extend(self.buffer.drain(..size));
                self.buffer.drain(..2);
                if size == 0 {
                    return Some(reply);
                }
            }
        }
        let length: usize = reply.header("content-length").expect("a length").parse().unwrap();
        while self.buffer.len() < length {
            if !self.more().await {
                return None;
            }
        }
        reply.body = self.buffer.drain(..length).collect();
        Some(reply)
    }

    /// Whether the other side ends the connection, having sent nothing more.
    pub async fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && !self.more().await
    }

    async fn more(&mut self) -> bool {
        let mut piece = vec![0; 64 << 10];
        match tokio::time::timeout(PATIENCE, self.stream.read(&mut piece)).await.expect("bytes or an end") {
            Ok(n) if n > 0 => {
                self.buffer.extend_from_slice(&piece[..n]);
                true
            }
            _ => false,
        }
    }
}
