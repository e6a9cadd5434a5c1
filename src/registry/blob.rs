//! A blob's bytes, in order, each once, whatever the connection does.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE},
};
use tokio::time::timeout;

use super::{
    Budget, Client, Endpoint, Inner, Sink,
    body::Body,
    call::{Call, Session},
    error::RegistryError,
    manifest::stated_length,
    target::Target,
};
use crate::{
    digest::Digest,
    metrics::RequestKind,
    oci::{Descriptor, Repository},
};

/// How often a transfer that was cut goes on where it stopped (R3).
const MAX_RESUMES: u32 = 3;

fn is_content(status: StatusCode) -> bool {
    matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT)
}

/// A blob on its way here: GET requests that follow each other where the connection breaks, each going on at the byte
/// where the one before it stopped. Dropping it closes the connection.
pub struct Transfer {
    client: Client,
    session: Arc<Session>,
    repository: Repository,
    digest: Digest,
    size: u64,
    /// Bytes given out, those that were there at the beginning counted.
    offset: u64,
    body: Option<Body>,
    /// Bytes of the body that are known already: the server sent the whole where a rest was asked for.
    skip: u64,
    resumes: u32,
    /// Where the last resume began: one that brought nothing is not followed by another where time is short.
    resumed_at: Option<u64>,
    silence: Option<Duration>,
}

impl Transfer {
    pub(super) async fn open(
        client: &Client,
        at: &Endpoint,
        repository: &Repository,
        digest: Digest,
        size: Option<u64>,
        offset: u64,
        budget: Budget,
    ) -> Result<Self, RegistryError> {
        let session = client.0.session(at).await?;
        let (body, start, size) = client.0.content(&session, repository, digest, size, offset, budget).await?;
        Ok(Self {
            client: client.clone(),
            session,
            repository: repository.clone(),
            digest,
            size,
            offset,
            body: Some(body),
            skip: offset - start,
            resumes: 0,
            resumed_at: None,
            silence: budget.silence,
        })
    }

    /// The blob's length in bytes: as it was given, else as the server states it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the next bytes belong.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes, never none; `None` when all of the blob has been given out. After an error nothing more is to be
    /// had. Dropped before it is ready it has lost nothing.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let Some(body) = &mut self.body else {
                if self.offset == self.size {
                    return Ok(None);
                }
                self.resume().await?;
                continue;
            };
            let cut = match body.next_within(self.silence).await {
                Ok(Some(data)) => match self.take(data)? {
                    Some(data) => return Ok(Some(data)),
                    None => continue,
                },
                Ok(None) if self.offset == self.size => {
                    self.body = None;
                    return Ok(None);
                }
                Ok(None) => RegistryError::Unreachable {
                    what: format!("GET {}", body.target()),
                    doing: "the body ended early",
                    source: format!("{} of {} bytes came", self.offset, self.size).into(),
                },
                Err(error) => error,
            };
            self.body = None;
            let in_vain = self.silence.is_some() && self.resumed_at == Some(self.offset);
            if !cut.is_transient() || self.resumes == MAX_RESUMES || in_vain {
                return Err(cut);
            }
            let (upstream, offset) = (&self.session.upstream, self.offset);
            tracing::debug!(%upstream, digest = %self.digest, offset, error = %cut, "resuming");
        }
    }

    /// What is there without waiting.
    pub fn next_now(&mut self) -> Result<Option<Bytes>, RegistryError> {
        while let Some(body) = &mut self.body {
            match body.next_now() {
                Some(data) => {
                    if let Some(data) = self.take(data)? {
                        return Ok(Some(data));
                    }
                }
                None => break,
            }
        }
        Ok(None)
    }

    /// Counts bytes of the body; gives those that are new.
    fn take(&mut self, mut data: Bytes) -> Result<Option<Bytes>, RegistryError> {
        if self.skip > 0 {
            let known = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
            self.skip -= data.split_to(known).len() as u64;
            if data.is_empty() {
                return Ok(None);
            }
        }
        if data.len() as u64 > self.size - self.offset {
            let target = self.body.take().map(|body| body.target().to_string()).unwrap_or_default();
            return Err(RegistryError::Size {
                what: format!("GET {target}"),
                why: format!("the blob is longer than the {} bytes stated", self.size),
            });
        }
        self.offset += data.len() as u64;
        self.client.0.traffic.receive(data.len());
        Ok(Some(data))
    }

    async fn resume(&mut self) -> Result<(), RegistryError> {
        self.resumes += 1;
        self.resumed_at = Some(self.offset);
        let limit = self.silence.unwrap_or(self.client.0.config.response_timeout);
        let budget = Budget::within(limit);
        let (session, repository) = (&self.session, &self.repository);
        let begun = self.client.0.content(session, repository, self.digest, Some(self.size), self.offset, budget);
        let begun = match timeout(limit, begun).await {
            Ok(begun) => begun,
            Err(_) => Err(RegistryError::Timeout {
                what: session.endpoint.registry.to_string(),
                waiting: "for the rest of a blob",
            }),
        };
        let (body, start, _) = begun?;
        self.body = Some(body);
        self.skip = self.offset - start;
        Ok(())
    }
}

/// A whole blob into `sink`.
pub(super) async fn into_sink(
    client: &Client,
    at: &Endpoint,
    repository: &Repository,
    descriptor: &Descriptor,
    sink: &mut impl Sink,
    budget: Budget,
) -> Result<(), RegistryError> {
    let Descriptor { digest, size, .. } = descriptor;
    let mut transfer = Transfer::open(client, at, repository, *digest, Some(*size), 0, budget).await?;
    while let Some(data) = transfer.next().await? {
        sink.write(data).await.map_err(|source| RegistryError::Sink {
            what: format!("GET of {digest} from {}", transfer.session.upstream),
            source,
        })?;
    }
    Ok(())
}

/// A blob's length, however the registry can be brought to tell it.
pub(super) async fn length(
    client: &Client,
    at: &Endpoint,
    repository: &Repository,
    digest: Digest,
    budget: Budget,
) -> Result<Option<u64>, RegistryError> {
    let session = client.0.session(at).await?;
    let kind = RequestKind::BlobHead;
    let call = Call::new(kind, Method::HEAD, repository, format_args!("blobs/{digest}"), budget);
    let head = |status| matches!(status, StatusCode::OK | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
    let (parts, _, _) = client.0.perform(&session, &call, head, None).await?;
    if parts.status == StatusCode::OK
        && let Some(length) = stated_length(&parts.headers)
    {
        return Ok(Some(length));
    }
    match client.0.content(&session, repository, digest, None, 0, budget).await {
        Ok((_, _, length)) => Ok(Some(length)),
        Err(RegistryError::Status { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Inner {
    /// A GET of a blob from `offset` on: the answer's body, where in the blob it begins, and the blob's size.
    async fn content(
        &self,
        session: &Arc<Session>,
        repository: &Repository,
        digest: Digest,
        size: Option<u64>,
        offset: u64,
        budget: Budget,
    ) -> Result<(Body, u64, u64), RegistryError> {
        let mut call = Call::new(RequestKind::BlobGet, Method::GET, repository, format_args!("blobs/{digest}"), budget);
        if offset > 0 {
            call.headers.insert(RANGE, range_from(offset));
        }
        let (parts, body, _) = self.perform(session, &call, is_content, None).await?;
        let size = match size {
            Some(size) => size,
            None => stated_length(&parts.headers).filter(|_| parts.status == StatusCode::OK).ok_or_else(|| {
                RegistryError::Protocol {
                    what: format!("GET {}", body.target()),
                    why: "the answer does not state the blob's length".to_owned(),
                }
            })?,
        };
        if offset > size {
            return Err(RegistryError::Size {
                what: format!("GET {}", body.target()),
                why: format!("the blob has {size} bytes, {offset} were there already"),
            });
        }
        let start = begins_at(parts.status, &parts.headers, offset, size, body.target())?;
        Ok((body, start, size))
    }
}

fn range_from(offset: u64) -> HeaderValue {
    // Digits and a dash are fit for a header.
    HeaderValue::from_str(&format!("bytes={offset}-")).unwrap_or(HeaderValue::from_static("bytes=0-"))
}

/// Where in the blob the answer's body begins; refused before its first byte if its length cannot be right (R7).
fn begins_at(
    status: StatusCode,
    headers: &HeaderMap,
    offset: u64,
    size: u64,
    target: &Target,
) -> Result<u64, RegistryError> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::trim);
    let start = if status == StatusCode::OK {
        0
    } else {
        let wrong = || RegistryError::Protocol {
            what: format!("GET {target}"),
            why: format!("a 206 whose Content-Range is not bytes {offset}-{}/{size}", size.saturating_sub(1)),
        };
        let range = text(CONTENT_RANGE).and_then(|t| t.strip_prefix("bytes ")).ok_or_else(wrong)?;
        let (range, total) = range.split_once('/').ok_or_else(wrong)?;
        let (first, last) = range.split_once('-').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<u64>().ok();
        let fits = offset > 0
            && number(first) == Some(offset)
            && number(last).and_then(|last| last.checked_add(1)) == Some(size)
            && (total.trim() == "*" || number(total) == Some(size));
        if !fits {
            return Err(wrong());
        }
        offset
    };
    match text(CONTENT_LENGTH).map(str::parse::<u64>) {
        Some(Ok(length)) if length != size - start => Err(RegistryError::Size {
            what: format!("GET {target}"),
            why: format!("Content-Length is {length}, the descriptor asks for {}", size - start),
        }),
        _ => Ok(start),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_begins_where_it_was_asked_to_or_is_refused() {
        let target = Target::parse("https://r.example/v2/a/blobs/x").unwrap();
        for (status, offset, range, length, begins) in [
            (200, 0, None, Some("100"), Some(0)),
            (200, 0, None, None, Some(0)),
            (200, 0, None, Some("99"), None),
            (200, 0, None, Some("101"), None),
            (200, 40, None, Some("100"), Some(0)),
            (206, 40, Some("bytes 40-99/100"), Some("60"), Some(40)),
            (206, 40, Some("bytes 40-99/*"), None, Some(40)),
            (206, 40, Some("bytes 41-99/100"), None, None),
            (206, 40, Some("bytes 40-98/100"), None, None),
            (206, 40, Some("bytes 40-99/101"), None, None),
            (206, 40, Some("bytes 40-18446744073709551615/100"), None, None),
            (206, 40, Some("bytes 40-99/100"), Some("61"), None),
            (206, 40, None, None, None),
            (206, 0, Some("bytes 0-99/100"), None, None),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(range) = range {
                headers.insert(CONTENT_RANGE, HeaderValue::from_static(range));
            }
            if let Some(length) = length {
                headers.insert(CONTENT_LENGTH, HeaderValue::from_static(length));
            }
            let status = StatusCode::from_u16(status).unwrap();
            let result = begins_at(status, &headers, offset, 100, &target);
            assert_eq!(result.ok(), begins, "{status} {offset} {range:?} {length:?}");
        }
    }
}
