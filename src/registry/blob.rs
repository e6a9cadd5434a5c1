//! A blob's bytes, in order, each once, whatever the connection does.

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE},
};

use super::{Budget, Endpoint, Inner, Sink, call::Call, error::RegistryError, target::Target};
use crate::{
    metrics::RequestKind,
    oci::{Descriptor, Repository},
};

/// How often a transfer that was cut goes on where it stopped (R3).
const MAX_RESUMES: u32 = 3;

fn is_content(status: StatusCode) -> bool {
    matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT)
}

impl Inner {
    pub(super) async fn blob(
        &self,
        at: &Endpoint,
        repository: &Repository,
        descriptor: &Descriptor,
        sink: &mut impl Sink,
        budget: Budget,
    ) -> Result<(), RegistryError> {
        let session = self.session(at).await?;
        let digest = descriptor.digest;
        let mut call = Call::new(RequestKind::BlobGet, Method::GET, repository, format_args!("blobs/{digest}"), budget);
        let mut offset = 0;
        let mut resumes = 0;
        loop {
            if offset > 0 {
                let range = HeaderValue::from_str(&format!("bytes={offset}-"));
                call.headers.insert(RANGE, range.unwrap_or(HeaderValue::from_static("bytes=0-")));
            }
            let (parts, mut body, _) = self.perform(&session, &call, is_content, None).await?;
            let start = begins_at(parts.status, &parts.headers, offset, descriptor.size, body.target())?;
            let mut skip = offset - start;
            let cut = loop {
                match body.next().await {
                    Ok(Some(mut data)) => {
                        if skip > 0 {
                            let known = usize::try_from(skip).unwrap_or(usize::MAX).min(data.len());
                            skip -= data.split_to(known).len() as u64;
                            if data.is_empty() {
                                continue;
                            }
                        }
                        if data.len() as u64 > descriptor.size - offset {
                            return Err(RegistryError::Size {
                                what: format!("GET {}", body.target()),
                                why: format!("the blob is longer than the {} bytes of its descriptor", descriptor.size),
                            });
                        }
                        offset += data.len() as u64;
                        let what = || format!("GET {}", body.target());
                        sink.write(data).await.map_err(|source| RegistryError::Sink { what: what(), source })?;
                    }
                    Ok(None) if offset == descriptor.size => return Ok(()),
                    Ok(None) => {
                        break RegistryError::Unreachable {
                            what: format!("GET {}", body.target()),
                            doing: "the body ended early",
                            source: format!("{offset} of {} bytes came", descriptor.size).into(),
                        };
                    }
                    Err(error) => break error,
                }
            };
            if !cut.is_transient() || resumes == MAX_RESUMES {
                return Err(cut);
            }
            resumes += 1;
            tracing::debug!(upstream = %session.upstream, digest = %descriptor.digest, offset, error = %cut, "resuming");
        }
    }
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
