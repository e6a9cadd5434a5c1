//! Asking a running daemon: its admin listener.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use super::usage;

/// The most that an answer may hold.
const MAX_ANSWER: usize = 256 << 20;

/// Flags of a command that asks the daemon.
#[derive(Debug, clap::Args)]
pub struct Server {
    /// The daemon's admin listener
    #[arg(long, value_name = "URL", env = "LARDER_SERVER", default_value = "http://127.0.0.1:9440")]
    server: String,
    /// A file with the daemon's admin token, for a listener that is not on loopback
    #[arg(long, value_name = "FILE", env = "LARDER_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<std::path::PathBuf>,
}

impl Server {
    /// The daemon at `address` (host:port).
    pub fn at(address: &str) -> Self {
        Self { server: format!("http://{address}"), admin_token_file: None }
    }

    /// Sends a request without a body; the status and the JSON of the answer.
    pub async fn ask(&self, method: Method, path: &str, patience: Duration) -> anyhow::Result<(StatusCode, Value)> {
        let asked = tokio::time::timeout(patience, self.send(method, path)).await;
        asked.with_context(|| format!("{} did not answer within {} s", self.server, patience.as_secs()))?
    }

    /// How many bytes the daemon has received from an upstream since it began.
    pub async fn upstream_bytes(&self, registry: &str, patience: Duration) -> anyhow::Result<u64> {
        let (status, text) = fetch(&format!("{}/metrics", self.server.trim_end_matches('/')), patience).await?;
        let sample = format!("larder_upstream_bytes_total{{upstream=\"{registry}\"}} ");
        let text = std::str::from_utf8(&text).ok().filter(|_| status == StatusCode::OK).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(&*sample));
        Ok(line.and_then(|number| number.parse().ok()).unwrap_or_default())
    }

    async fn send(&self, method: Method, path: &str) -> anyhow::Result<(StatusCode, Value)> {
        let token = match &self.admin_token_file {
            Some(file) => {
                Some(std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?)
            }
            None => None,
        };
        let server = self.server.trim_end_matches('/');
        if !server.starts_with("http://") {
            return Err(usage(format!("--server {server}: write http://HOST:PORT, the daemon speaks plain http")));
        }
        let (status, body) =
            request(method, &format!("{server}{path}"), token.as_deref()).await.with_context(|| {
                format!("cannot ask the daemon at {server}: is `larder serve` running, and is this its --admin-listen?")
            })?;
        let value = serde_json::from_slice(&body)
            .with_context(|| format!("{server} answered {status}, but not with JSON: is it a larder?"))?;
        Ok((status, value))
    }
}

/// GETs a URL of the daemon's.
pub async fn fetch(url: &str, patience: Duration) -> anyhow::Result<(StatusCode, Bytes)> {
    let fetched = tokio::time::timeout(patience, request(Method::GET, url, None)).await;
    fetched.with_context(|| format!("{url} did not answer within {} s", patience.as_secs()))?
}

async fn request(method: Method, url: &str, token: Option<&str>) -> anyhow::Result<(StatusCode, Bytes)> {
    let Some(rest) = url.strip_prefix("http://") else {
        bail!("{url}: write http://HOST:PORT, the daemon speaks plain http");
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let stream = tokio::net::TcpStream::connect(authority).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, authority);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.trim()));
    }
    let response = sender.send_request(request.body(Full::<Bytes>::default())?).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|e| anyhow::anyhow!("the answer broke off: {e}"))?.to_bytes();
    Ok((status, body))
}

/// The message of an error answer.
pub fn message(value: &Value) -> &str {
    value["error"].as_str().unwrap_or("it does not say why")
}
