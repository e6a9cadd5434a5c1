//! Artifacts from another replica: what it serves under a path, taken into the store under a digest known beforehand.
//!
//! Replicas are named by the Lease of the one that leads, not by objects, so the rules for upstreams' addresses do not bind
//! here; and nothing has to be trusted, since only the bytes that the digest names come to be held.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Puller;
use crate::{
    blocking,
    digest::Digest,
    store::{Durability, StoreError},
};

/// How long a connection, or the next bytes, may take.
const SILENCE: Duration = Duration::from_secs(10);
/// Bytes that are written to the disk at once.
const PIECE: usize = 1 << 20;

/// Why another replica's artifact did not come.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// Its address is none.
    #[error("{0:?} is not http://HOST:PORT")]
    Address(String),
    /// It cannot be reached, or broke off.
    #[error("cannot reach the replica")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It says something else.
    #[error("the replica answered {0}")]
    Answer(StatusCode),
    /// It says nothing.
    #[error("the replica said nothing for {} s", SILENCE.as_secs())]
    Silent,
    /// The disk, or other bytes than those of the digest.
    #[error(transparent)]
    Store(#[from] StoreError),
}

async fn in_time<T, E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    what: impl Future<Output = Result<T, E>>,
) -> Result<T, ReplicaError> {
    let done = tokio::time::timeout(SILENCE, what).await.map_err(|_| ReplicaError::Silent)?;
    done.map_err(|error| ReplicaError::Away(error.into()))
}

impl Puller {
    /// Takes the artifact at `path` (no leading slash) of the replica at `base` (`http://host:port`); it is durable then.
    ///
    /// # Errors
    /// Nothing is kept of what is not `size` bytes that hash to `digest`.
    pub async fn copy_from_replica(
        &self,
        base: &str,
        path: &str,
        digest: Digest,
        size: u64,
    ) -> Result<(), ReplicaError> {
        let wrong = || ReplicaError::Address(base.to_owned());
        let uri: http::Uri = base.parse().map_err(|_| wrong())?;
        let (Some("http"), Some(host), Some(authority)) = (uri.scheme_str(), uri.host(), uri.authority()) else {
            return Err(wrong());
        };
        let address = (host.trim_start_matches('[').trim_end_matches(']'), uri.port_u16().unwrap_or(80));
        let stream = in_time(TcpStream::connect(address)).await?;
        let (mut send, connection) = in_time(hyper::client::conn::http1::handshake(TokioIo::new(stream))).await?;
        let connection = tokio::spawn(connection);
        let request = Request::get(format!("/{path}"))
            .header(header::HOST, authority.as_str())
            .body(Empty::<Bytes>::new())
            .map_err(|_| wrong())?;
        let done = async {
            let answer = in_time(send.send_request(request)).await?;
            if answer.status() != StatusCode::OK {
                return Err(ReplicaError::Answer(answer.status()));
            }
            let store = self.store().clone();
            let mut ingest = blocking::io(move || store.ingest(digest, Some(size))).await?;
            let mut body = answer.into_body();
            let mut piece = Vec::new();
            loop {
                let frame = tokio::time::timeout(SILENCE, body.frame()).await.map_err(|_| ReplicaError::Silent)?;
                let last = frame.is_none();
                if let Some(frame) = frame {
                    let frame = frame.map_err(|error| ReplicaError::Away(error.into()))?;
                    piece.extend_from_slice(frame.data_ref().map(Bytes::as_ref).unwrap_or_default());
                }
                if last || piece.len() >= PIECE {
                    let bytes = std::mem::take(&mut piece);
                    ingest = blocking::io(move || {
                        ingest.write(&bytes)?;
                        Ok::<_, StoreError>(ingest)
                    })
                    .await?;
                }
                if last {
                    blocking::io(move || ingest.commit(Durability::Now)).await?;
                    return Ok(());
                }
            }
        };
        let result = done.await;
        connection.abort();
        result
    }
}
