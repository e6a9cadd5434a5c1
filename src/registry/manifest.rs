//! Manifests and tags.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LINK},
};

use super::{
    Budget, Endpoint, FetchedManifest, Inner, Resolved,
    call::{Call, Session},
    error::RegistryError,
    target::{Target, escape},
};
use crate::{
    blocking,
    digest::{Algorithm, Digest},
    metrics::RequestKind,
    oci::{Repository, Selector, Tag, manifest::MAX_BYTES, media_type},
};

/// Every kind of manifest that Larder reads, in one header: docker-registry answers 404 to others.
pub(super) const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";
/// Those first, then whatever there is: for a manifest that is passed on as it is.
pub(super) const ANY_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.artifact.manifest.v1+json, */*";
const OCI_FILTERS_APPLIED: &str = "oci-filters-applied";
const DOCKER_CONTENT_DIGEST: &str = "docker-content-digest";
/// Below this a hash takes less time than the way to another thread.
const HASH_INLINE: usize = 64 << 10;

/// The most tags that are listed, the most pages, and a page's longest body.
const MAX_TAGS: usize = 10_000;
const MAX_PAGES: usize = 100;
const MAX_PAGE_BODY: usize = 4 << 20;

fn is_ok(status: StatusCode) -> bool {
    status == StatusCode::OK
}

/// Docker-Content-Digest, typed.
pub(super) fn stated_digest(headers: &HeaderMap, target: &Target) -> Result<Option<Digest>, RegistryError> {
    let Some(value) = headers.get(DOCKER_CONTENT_DIGEST) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    parsed.map(Some).ok_or_else(|| RegistryError::Protocol {
        what: target.to_string(),
        why: "its Docker-Content-Digest is not a digest".to_owned(),
    })
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let text = text.split(';').next().unwrap_or_default().trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Content-Length, as a HEAD's answer states it too.
pub(super) fn stated_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

async fn hash(algorithm: Algorithm, bytes: &Bytes) -> Digest {
    if bytes.len() < HASH_INLINE {
        return Digest::of(algorithm, bytes);
    }
    let bytes = bytes.clone();
    blocking::cpu(move || Digest::of(algorithm, &bytes)).await
}

impl Inner {
    pub(super) async fn resolve(
        &self,
        at: &Endpoint,
        repository: &Repository,
        what: &Selector,
        accept: &'static str,
        budget: Budget,
    ) -> Result<Resolved, RegistryError> {
        let session = self.session(at).await?;
        let kind = RequestKind::ManifestHead;
        let mut call = Call::new(kind, Method::HEAD, repository, format_args!("manifests/{what}"), budget);
        call.headers.insert(ACCEPT, HeaderValue::from_static(accept));
        let (parts, body, _) = self.perform(&session, &call, is_ok, None).await?;
        let target = body.target();
        let Some(digest) = stated_digest(&parts.headers, target)? else {
            return Err(RegistryError::NoDigest { what: format!("HEAD {target}") });
        };
        if let Selector::Digest(expected) = what
            && expected.algorithm() == digest.algorithm()
            && *expected != digest
        {
            return Err(RegistryError::Digest {
                what: format!("HEAD {target}"),
                told: "Docker-Content-Digest",
                expected: Box::new(*expected),
                actual: Box::new(digest),
            });
        }
        let length = stated_length(&parts.headers);
        Ok(Resolved { digest, media_type: content_type(&parts.headers), length })
    }

    pub(super) async fn manifest(
        &self,
        at: &Endpoint,
        repository: &Repository,
        what: &Selector,
        accept: &'static str,
        budget: Budget,
    ) -> Result<FetchedManifest, RegistryError> {
        let session = self.session(at).await?;
        let kind = RequestKind::ManifestGet;
        let mut call = Call::new(kind, Method::GET, repository, format_args!("manifests/{what}"), budget);
        call.headers.insert(ACCEPT, HeaderValue::from_static(accept));
        let (parts, body, bytes) = self.perform(&session, &call, is_ok, Some(MAX_BYTES)).await?;
        let target = body.target();
        let differs = |told, expected: Digest, actual: Digest| RegistryError::Digest {
            what: format!("GET {target}"),
            told,
            expected: Box::new(expected),
            actual: Box::new(actual),
        };
        let stated = stated_digest(&parts.headers, target)?;
        let algorithm = match what {
            Selector::Digest(digest) => digest.algorithm(),
            Selector::Tag(_) => stated.map_or(Algorithm::Sha256, |digest| digest.algorithm()),
        };
        let digest = hash(algorithm, &bytes).await;
        if let Selector::Digest(expected) = what
            && digest != *expected
        {
            return Err(differs("the manifest's digest", *expected, digest));
        }
        if let Some(stated) = stated {
            let actual = if stated.algorithm() == algorithm { digest } else { hash(stated.algorithm(), &bytes).await };
            if actual != stated {
                return Err(differs("Docker-Content-Digest", actual, stated));
            }
        }
        Ok(FetchedManifest { digest, content_type: content_type(&parts.headers), bytes })
    }

    pub(super) async fn tags(
        &self,
        at: &Endpoint,
        repository: &Repository,
        budget: Budget,
    ) -> Result<Vec<Tag>, RegistryError> {
        let session = self.session(at).await?;
        let mut call = Call::new(RequestKind::Tags, Method::GET, repository, format_args!("tags/list?n=1000"), budget);
        let mut seen = HashSet::new();
        let mut tags: Vec<Tag> = Vec::new();
        for _ in 0..MAX_PAGES {
            let (target, headers, bytes) = self.page(&session, &call).await?;
            for tag in listed_tags(&target, &bytes)? {
                if seen.insert(tag.clone()) {
                    tags.push(tag);
                }
            }
            if tags.len() > MAX_TAGS {
                return Err(RegistryError::Limit {
                    what: format!("GET {target}"),
                    why: format!("the repository has more than {MAX_TAGS} tags; name one, or a digest"),
                });
            }
            let Some(next) = next_target(&headers, &target)? else { return Ok(tags) };
            call.elsewhere = Some(next);
        }
        Err(RegistryError::Limit {
            what: format!("GET {}{}", session.authority, call.path),
            why: format!("more than {MAX_PAGES} pages of tags"),
        })
    }

    pub(super) async fn tags_page(
        &self,
        at: &Endpoint,
        repository: &Repository,
        query: &str,
        budget: Budget,
    ) -> Result<Page, RegistryError> {
        let session = self.session(at).await?;
        let path = with_query("tags/list", query);
        let call = Call::new(RequestKind::Tags, Method::GET, repository, format_args!("{path}"), budget);
        let (target, headers, bytes) = self.page(&session, &call).await?;
        let next = next_target(&headers, &target)?;
        Ok(Page { tags: listed_tags(&target, &bytes)?, next: next.map(|next| next.query().to_owned()) })
    }

    pub(super) async fn referrers(
        &self,
        at: &Endpoint,
        repository: &Repository,
        subject: &Digest,
        query: &str,
        budget: Budget,
    ) -> Result<Referrers, RegistryError> {
        let session = self.session(at).await?;
        let path = with_query(&format!("referrers/{subject}"), query);
        let mut call = Call::new(RequestKind::Referrers, Method::GET, repository, format_args!("{path}"), budget);
        call.headers.insert(ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX));
        let (target, headers, index) = self.page(&session, &call).await?;
        if !lists_manifests(&index) {
            return Err(RegistryError::Protocol {
                what: format!("GET {target}"),
                why: "the answer is not an index of manifests".to_owned(),
            });
        }
        let next = next_target(&headers, &target)?;
        let filters = headers.get(OCI_FILTERS_APPLIED).and_then(|value| value.to_str().ok());
        Ok(Referrers {
            index,
            filters_applied: filters.map(str::to_owned),
            next: next.map(|next| next.query().to_owned()),
        })
    }

    async fn page(&self, session: &Arc<Session>, call: &Call<'_>) -> Result<(Target, HeaderMap, Bytes), RegistryError> {
        let (parts, body, bytes) = self.perform(session, call, is_ok, Some(MAX_PAGE_BODY)).await?;
        Ok((body.target().clone(), parts.headers, bytes))
    }
}

/// One page of tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The tags, in the registry's order.
    pub tags: Vec<Tag>,
    /// The query that asks for the next page, where there is one.
    pub next: Option<String>,
}

/// One page of what refers to a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrers {
    /// The index, as the registry sent it; what [`lists_manifests`] finds in it is all that is known of it.
    pub index: Bytes,
    /// `OCI-Filters-Applied`, where sent.
    pub filters_applied: Option<String>,
    /// The query that asks for the next page, where there is one.
    pub next: Option<String>,
}

fn with_query(path: &str, query: &str) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", escape(query)) }
}

/// Whether `body` is an index at least in its outline: an object with a list of `manifests`. What answers every path with
/// a page of its own, as some proxies do, is told by it.
pub fn lists_manifests(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Outline {
        #[serde(rename = "manifests")]
        _manifests: Option<Vec<serde::de::IgnoredAny>>,
    }
    // A list that is left out or null is an empty one, as those write it who leave out what is empty.
    body.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<Outline>(body).is_ok()
}

/// What is no tag cannot be asked for either, and is left out.
fn listed_tags(target: &Target, body: &[u8]) -> Result<Vec<Tag>, RegistryError> {
    #[derive(serde::Deserialize)]
    struct List {
        tags: Option<Vec<String>>,
    }
    let list: List = serde_json::from_slice(body).map_err(|_| RegistryError::Protocol {
        what: format!("GET {target}"),
        why: "the answer is not a list of tags".to_owned(),
    })?;
    Ok(list.tags.unwrap_or_default().iter().filter_map(|text| text.parse().ok()).collect())
}

/// Where the next page is: nowhere else than where this one was.
fn next_target(headers: &HeaderMap, target: &Target) -> Result<Option<Target>, RegistryError> {
    let Some(next) = next_page(headers) else { return Ok(None) };
    match target.join(&next).filter(|next| next.same_origin(target)) {
        Some(next) => Ok(Some(next)),
        None => Err(RegistryError::Protocol {
            what: format!("GET {target}"),
            why: "the next page is on another server".to_owned(),
        }),
    }
}

/// The target of `Link: <…>; rel="next"` (RFC 8288).
fn next_page(headers: &HeaderMap) -> Option<String> {
    for value in headers.get_all(LINK) {
        let text = std::str::from_utf8(value.as_bytes()).ok()?;
        let mut rest = text;
        while let Some((_, after)) = rest.split_once('<') {
            let (target, after) = after.split_once('>')?;
            let parameters = after.split(",<").next().and_then(|p| p.split(", <").next()).unwrap_or_default();
            let is_next = parameters.split(';').any(|parameter| {
                parameter.split_once('=').is_some_and(|(name, value)| {
                    name.trim().eq_ignore_ascii_case("rel")
                        && value.trim().trim_matches('"').split(' ').any(|rel| rel.eq_ignore_ascii_case("next"))
                })
            });
            if is_next {
                return Some(target.to_owned());
            }
            rest = after;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_next_page() {
        for (link, next) in [
            (r#"</v2/a/tags/list?last=b&n=2>; rel="next""#, Some("/v2/a/tags/list?last=b&n=2")),
            (r#"<https://r.example/x>; rel=next"#, Some("https://r.example/x")),
            (r#"</p>; rel="prev", </n>; rel="next""#, Some("/n")),
            (r#"</p>; rel="prev""#, None),
            (r#"</unfinished"#, None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(LINK, HeaderValue::from_static(link));
            assert_eq!(next_page(&headers).as_deref(), next, "{link}");
        }
    }
}
