//! Manifests, their tags, and what refers to them (distribution-spec 1.1, "Pushing manifests", "Listing referrers").

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, StatusCode,
    header::{CONTENT_TYPE, LOCATION},
    request::Parts,
};
use serde::Serialize;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout, timeout_at},
};

use super::{Answer, Registry, content::Content, failure::Failure, only_reads, uploads::parse_digest};
use crate::{
    blocking,
    class::Class,
    digest::{Algorithm, Digest},
    oci::{Descriptor, Document, Repository, Selector, Tag, error_body::ErrorCode, manifest, media_type},
    server::{
        entity::{self, DOCKER_CONTENT_DIGEST, Role},
        query::Query,
        reply,
    },
    store::{Durability, LocalRepository, ManifestRecord, Store},
};

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// Up to this many bytes a manifest may lie in memory whatever else does.
const SMALL: usize = 64 << 10;
/// How long a larger one may wait for its turn, and then take.
const TURN: Duration = Duration::from_secs(60);
/// Whose turn it is.
pub(super) struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        Self(Semaphore::new(16))
    }
}

/// The turn of a large manifest, and until when it lasts.
struct Turn<'a> {
    until: Instant,
    _place: SemaphorePermit<'a>,
}

impl Turns {
    async fn next(&self) -> Result<Turn<'_>, Failure> {
        match timeout(TURN, self.0.acquire()).await {
            Ok(Ok(place)) => Ok(Turn { until: Instant::now() + TURN, _place: place }),
            _ => {
                let failure = Failure::new(ErrorCode::Unavailable, Class::Limit).close();
                let message = format!("too many manifests of more than {SMALL} bytes are on their way; try again");
                Err(failure.message(message))
            }
        }
    }
}

/// The next bytes of a manifest.
async fn next_within(turn: Option<&Turn<'_>>, body: &mut Content) -> Result<Option<Bytes>, Failure> {
    let Some(Turn { until, .. }) = turn else { return body.next().await };
    timeout_at(*until, body.next()).await.unwrap_or_else(|_| {
        let failure = Failure::new(ErrorCode::ManifestInvalid, Class::Client).close();
        let message = format!("a manifest of more than {SMALL} bytes did not come within {TURN:?}");
        Err(failure.status(StatusCode::REQUEST_TIMEOUT).message(message))
    })
}

impl Registry {
    /// A manifest by its tag or digest.
    pub(super) async fn manifest(
        &self,
        parts: &Parts,
        query: &Query<'_>,
        body: &mut Content,
        repository: Repository,
        selector: Selector,
    ) -> Answer {
        match parts.method {
            Method::GET | Method::HEAD => self.get_manifest(parts, repository, selector).await,
            Method::PUT => self.put_manifest(parts, query, body, repository, selector).await,
            Method::DELETE => self.delete_manifest(repository, selector).await,
            _ => Err(Failure::method_not_allowed("GET, HEAD, PUT, DELETE")),
        }
    }

    async fn get_manifest(&self, parts: &Parts, repository: Repository, selector: Selector) -> Answer {
        let by_digest = matches!(selector, Selector::Digest(_));
        let store = self.store.clone();
        let found = blocking::io(move || {
            let local = store.local(&repository);
            let digest = match selector {
                Selector::Digest(digest) => Some(digest),
                Selector::Tag(tag) => local.tag(&tag)?,
            };
            let Some(digest) = digest else { return Ok::<_, Failure>(None) };
            let Some(media_type) = local.manifest(&digest)? else { return Ok(None) };
            Ok(store.get(&digest)?.map(|blob| (blob, media_type)))
        })
        .await?;
        let Some((blob, media_type)) = found else { return Err(unknown()) };
        let role = Role::Manifest { media_type: &media_type, by_digest };
        Ok(entity::respond(&parts.method, &parts.headers, blob, &role))
    }

    async fn put_manifest(
        &self,
        parts: &Parts,
        query: &Query<'_>,
        body: &mut Content,
        repository: Repository,
        selector: Selector,
    ) -> Answer {
        let named = Named::parse(selector, query)?;
        let mut bytes = Vec::new();
        let mut turn = None;
        while let Some(data) = next_within(turn.as_ref(), body).await? {
            if bytes.len() + data.len() > SMALL && turn.is_none() {
                turn = Some(self.turns.next().await?);
            }
            if bytes.len() + data.len() > manifest::MAX_BYTES {
                let failure = Failure::new(ErrorCode::ManifestInvalid, Class::Size);
                let message = format!("a manifest has at most {} bytes", manifest::MAX_BYTES);
                return Err(failure.status(StatusCode::PAYLOAD_TOO_LARGE).message(message));
            }
            bytes.extend_from_slice(&data);
        }
        let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let document = Document::parse(&bytes, content_type)
            .map_err(|error| Failure::new(ErrorCode::ManifestInvalid, error.class()).message(error.to_string()))?;
        let algorithm = named.digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let digest = Digest::of(algorithm, &bytes);
        if let Some(wanted) = named.digest
            && wanted != digest
        {
            let message = format!("the manifest's bytes hash to {digest}, not to {wanted}");
            return Err(Failure::new(ErrorCode::DigestInvalid, Class::Digest).message(message));
        }
        let Named { tags, listed, .. } = named;
        let store = self.store.clone();
        let name = repository.clone();
        let subject = blocking::io(move || keep(&store, &name, &tags, digest, &bytes, document)).await?;
        let mut out = reply::empty(StatusCode::CREATED);
        let subject = subject.map(|subject| (OCI_SUBJECT, subject.to_string()));
        let headers =
            [(LOCATION, format!("/v2/{repository}/manifests/{digest}")), (DOCKER_CONTENT_DIGEST, digest.to_string())];
        let listed = (!listed.is_empty()).then_some((OCI_TAG, listed));
        for (name, value) in headers.into_iter().chain(subject).chain(listed) {
            if let Ok(value) = HeaderValue::try_from(value) {
                out.headers_mut().insert(name, value);
            }
        }
        Ok(out)
    }

    async fn delete_manifest(&self, repository: Repository, selector: Selector) -> Answer {
        let store = self.store.clone();
        let there = blocking::io(move || {
            let local = store.local(&repository);
            match selector {
                Selector::Tag(tag) => local.delete_tag(&tag),
                Selector::Digest(digest) => local.delete_manifest(&digest),
            }
        })
        .await?;
        if there { Ok(reply::empty(StatusCode::ACCEPTED)) } else { Err(unknown()) }
    }

    /// The manifests whose subject is `subject`, as an index; of one artifact type where the query names one.
    pub(super) async fn referrers(
        &self,
        parts: &Parts,
        query: &Query<'_>,
        repository: Repository,
        subject: Digest,
        readable: bool,
    ) -> Answer {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Index {
            schema_version: u8,
            media_type: &'static str,
            manifests: Vec<Referrer>,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Referrer {
            media_type: String,
            digest: Digest,
            size: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            artifact_type: Option<String>,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            annotations: BTreeMap<String, String>,
        }
        only_reads(parts)?;
        let wanted = query.get("artifactType").map_err(|e| Failure::bad_request(e.to_string()))?;
        let store = self.store.clone();
        let found = match readable {
            true => blocking::io(move || store.local(&repository).referrers(&subject)).await?,
            // As where there is no such repository.
            false => Vec::new(),
        };
        let manifests = found
            .into_iter()
            .filter(|(_, record)| wanted.is_none() || record.artifact_type.as_deref() == wanted)
            .map(|(digest, record)| Referrer {
                media_type: record.media_type,
                digest,
                size: record.size,
                artifact_type: record.artifact_type,
                annotations: record.annotations,
            })
            .collect();
        let index = Index { schema_version: 2, media_type: media_type::OCI_INDEX, manifests };
        let mut out = reply::json(StatusCode::OK, &index, None);
        out.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type::OCI_INDEX));
        if wanted.is_some() {
            out.headers_mut().insert(OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
        }
        Ok(out)
    }
}

pub(super) fn unknown() -> Failure {
    Failure::new(ErrorCode::ManifestUnknown, Class::NotFound)
}

/// Under which names a manifest is pushed: the path's, and those of the query (`digest`, and any number of `tag`).
struct Named {
    digest: Option<Digest>,
    tags: Vec<Tag>,
    /// The query's tags, as `OCI-Tag` answers them.
    listed: String,
}

impl Named {
    fn parse(selector: Selector, query: &Query<'_>) -> Result<Self, Failure> {
        let bad = |message: String| Failure::new(ErrorCode::ManifestInvalid, Class::Client).message(message);
        let mut digest = match query.get("digest").map_err(|e| bad(e.to_string()))? {
            Some(digest) => Some(parse_digest(digest)?),
            None => None,
        };
        let mut tags = Vec::new();
        match selector {
            Selector::Tag(tag) => tags.push(tag),
            Selector::Digest(named) => match digest {
                Some(other) if other != named => return Err(bad(format!("{named} and {other} cannot both be right"))),
                _ => digest = Some(named),
            },
        }
        let mut listed: Vec<&str> = Vec::new();
        for text in query.all("tag") {
            let tag: Tag = text.parse().map_err(|_| bad(format!("{text:?} is not a tag")))?;
            listed.push(text);
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
        Ok(Self { digest, tags, listed: listed.join(", ") })
    }
}

/// Stores a manifest, records it, and points the tag at it; what it is about, where it is about something.
fn keep(
    store: &Store,
    repository: &Repository,
    tags: &[Tag],
    digest: Digest,
    bytes: &[u8],
    document: Document,
) -> Result<Option<Digest>, Failure> {
    let local = store.local(repository);
    let children: &[Descriptor] = match &document {
        Document::Image(image) => &image.layers,
        Document::Index(index) => &index.manifests,
    };
    // From before it is looked for until it is referred to, nothing of it may be collected.
    let config = match &document {
        Document::Image(image) => Some(&image.config),
        Document::Index(_) => None,
    };
    let named = || config.into_iter().chain(children);
    let _leases: Vec<_> = named().map(|d| store.lease(d.digest)).chain([store.lease(digest)]).collect();
    let mut refers_to = Vec::new();
    for descriptor in named() {
        // A link may outlive its blob: until the next collection, or where a damaged one was taken away.
        if is_here(&local, &document, descriptor)? && store.has(&descriptor.digest)? {
            refers_to.push(descriptor.digest);
        } else if !may_be_missing(&document, descriptor) {
            let failure = Failure::new(ErrorCode::ManifestBlobUnknown, Class::NotFound);
            let message = format!("{} is not in repository {repository}: push it first", descriptor.digest);
            return Err(failure.message(message));
        }
    }
    refers_to.sort();
    refers_to.dedup();
    let size = bytes.len() as u64;
    let record = match document {
        Document::Image(image) => ManifestRecord {
            media_type: image.media_type,
            size,
            refers_to,
            subject: image.subject.map(|subject| subject.digest),
            // distribution-spec 1.1, "Listing Referrers": the config's type stands in.
            artifact_type: image.artifact_type.or(Some(image.config.media_type)),
            annotations: image.annotations,
        },
        Document::Index(index) => ManifestRecord {
            media_type: index.media_type,
            size,
            refers_to,
            subject: index.subject.map(|subject| subject.digest),
            artifact_type: index.artifact_type,
            annotations: index.annotations,
        },
    };
    let subject = record.subject;
    store.put(digest, bytes, Durability::Now)?;
    local.put_manifest_tagged(&digest, record, tags)?;
    Ok(subject)
}

/// Whether what a manifest names is in the repository: for an index as a manifest, or else as a blob.
fn is_here(local: &LocalRepository<'_>, document: &Document, descriptor: &Descriptor) -> Result<bool, Failure> {
    Ok(match document {
        Document::Image(_) => local.has_blob(&descriptor.digest)?,
        Document::Index(_) => local.manifest(&descriptor.digest)?.is_some() || local.has_blob(&descriptor.digest)?,
    })
}

/// Whether a manifest is good without it. A registry may refuse what names something that is not there
/// (distribution-spec 1.1, "Pushing Manifests"). An index is taken all the same: a copy of some of its platforms keeps
/// its digest, and so its signatures. What is missing is not referred to: nothing that others hold is kept, or may be
/// read, for being named; a child that comes later has a record of its own. An image without a layer runs nowhere;
/// layers that must not be distributed are not pushed (image-spec 1.1, "Non-Distributable Layers").
fn may_be_missing(document: &Document, named: &Descriptor) -> bool {
    let media_type = &named.media_type;
    matches!(document, Document::Index(_))
        || media_type.starts_with("application/vnd.oci.image.layer.nondistributable.v1.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_image_only_layers_that_must_not_be_distributed_may_be_missing() {
        let image = Document::parse(br#"{"schemaVersion":2,"config":{"mediaType":"a/b","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#, Some(media_type::OCI_MANIFEST)).unwrap();
        let index = Document::parse(br#"{"schemaVersion":2,"manifests":[]}"#, Some(media_type::OCI_INDEX)).unwrap();
        for (media_type, expected) in [
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", true),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", true),
            ("application/vnd.oci.image.layer.v1.tar+gzip", false),
            (media_type::OCI_CONFIG, false),
            ("", false),
        ] {
            let named = Descriptor {
                media_type: media_type.into(),
                digest: Digest::sha256(b"x"),
                size: 1,
                platform: None,
                artifact_type: None,
                annotations: BTreeMap::new(),
            };
            assert_eq!(may_be_missing(&image, &named), expected, "{media_type}");
            assert!(may_be_missing(&index, &named), "{media_type}");
        }
    }
}
