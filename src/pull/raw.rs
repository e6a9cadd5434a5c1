//! What a mirror passes on as the upstream has it: manifests of any kind, tags, referrers.

use std::sync::Arc;

use bytes::Bytes;

use super::{PullError, Puller, Way};
use crate::{
    blocking,
    class::Class,
    digest::Digest,
    oci::{Document, ManifestError, Selector},
    registry::{Budget, FetchedManifest, Page, Referrers, lists_manifests},
    store::Durability,
};

/// A manifest as the upstream sent it, verified against its digest, whatever its kind.
#[derive(Clone, Debug)]
pub struct RawManifest {
    /// Its digest.
    pub digest: Digest,
    /// The upstream's Content-Type, without parameters; `None` where it stated none.
    pub media_type: Option<String>,
    /// Its exact bytes.
    pub bytes: Bytes,
    /// What it says, for its links; `None` for a kind that Larder cannot read.
    pub document: Option<Arc<Document>>,
    /// Whether the store has it now; not where the disk is full.
    pub kept: bool,
}

/// Where a tag or digest leads now.
#[derive(Clone, Debug)]
pub struct Probed {
    /// The manifest's digest.
    pub digest: Digest,
    /// Its media type, where stated.
    pub media_type: Option<String>,
    /// Its length in bytes, where stated.
    pub length: Option<u64>,
    /// The manifest itself, where finding out took a GET.
    pub manifest: Option<RawManifest>,
}

impl Puller {
    /// GET of a manifest by tag or digest: any kind, nothing reduced to a platform, verified and kept. Those who ask for
    /// the same by the same way at once share one request.
    ///
    /// What is no manifest at all (a login page, no JSON object) is an error of class Manifest.
    pub async fn raw_manifest(
        &self,
        way: &Arc<Way>,
        selector: &Selector,
        budget: Budget,
    ) -> Result<RawManifest, PullError> {
        let key = (Arc::clone(way), selector.clone());
        let fetch = || async { self.fetch_manifest(way, selector, budget).await.map_err(Arc::new) };
        self.manifests.run(key, fetch).await.map_err(|e| Arc::try_unwrap(e).unwrap_or_else(PullError::Shared))
    }

    async fn fetch_manifest(&self, way: &Way, selector: &Selector, budget: Budget) -> Result<RawManifest, PullError> {
        let fetched = self.client.any_manifest(&way.endpoint, &way.repository, selector, budget).await?;
        let FetchedManifest { digest, content_type, bytes } = fetched;
        let document = match Document::parse(&bytes, content_type.as_deref()) {
            Ok(document) => Some(Arc::new(document)),
            Err(source @ (ManifestError::Html | ManifestError::Json(_) | ManifestError::TooLarge(_))) => {
                return Err(PullError::Manifest { digest, source });
            }
            // For its reader to judge.
            Err(_) => None,
        };
        let (store, content) = (self.store.clone(), bytes.clone());
        let kept = match blocking::io(move || store.put(digest, &content, Durability::Soon)).await {
            Ok(_) => true,
            Err(error) if error.class() == Class::Disk => {
                tracing::warn!(%digest, error = %crate::class::chain(&error), "a manifest is passed through without being kept");
                false
            }
            Err(error) => return Err(error.into()),
        };
        Ok(RawManifest { digest, media_type: content_type, bytes, document, kept })
    }

    /// Where a tag or digest leads now, by HEAD; by GET where that fails otherwise than by the network, a rate limit or a
    /// rule, since some registries answer a HEAD wrongly or not at all. Not shared between askers.
    pub async fn probe(&self, way: &Arc<Way>, selector: &Selector, budget: Budget) -> Result<Probed, PullError> {
        match self.client.resolve_any(&way.endpoint, &way.repository, selector, budget).await {
            Ok(found) => {
                Ok(Probed { digest: found.digest, media_type: found.media_type, length: found.length, manifest: None })
            }
            Err(error) if super::is_final(&error) => Err(error.into()),
            Err(_) => {
                let manifest = self.raw_manifest(way, selector, budget).await?;
                Ok(Probed {
                    digest: manifest.digest,
                    media_type: manifest.media_type.clone(),
                    length: Some(manifest.bytes.len() as u64),
                    manifest: Some(manifest),
                })
            }
        }
    }

    /// The length of a blob that the upstream has in this repository for this asker; `None`: it has none. By HEAD, and by
    /// a GET that ends after its headers where a HEAD is refused or not known.
    pub async fn blob_length(&self, way: &Way, digest: Digest, budget: Budget) -> Result<Option<u64>, PullError> {
        Ok(self.client.blob_length(&way.endpoint, &way.repository, digest, budget).await?)
    }

    /// A page of tags as the upstream gives it. `query` is the client's own (`n`, `last`), or what [`Page::next`] said:
    /// some upstreams page by a cursor of theirs.
    pub async fn tags_page(&self, way: &Way, query: &str, budget: Budget) -> Result<Page, PullError> {
        let page = self.client.tags_page(&way.endpoint, &way.repository, query, budget).await;
        page.map_err(PullError::Tags)
    }

    /// What refers to `subject`: the upstream's index as it is, filters applied or not as it says. From an upstream without
    /// that API the index under the fallback tag, unfiltered; where there is none, an empty one.
    pub async fn referrers(
        &self,
        way: &Arc<Way>,
        subject: &Digest,
        query: &str,
        budget: Budget,
    ) -> Result<Referrers, PullError> {
        let Way { endpoint, repository } = &**way;
        let refused = match self.client.referrers(endpoint, repository, subject, query, budget).await {
            // By the specification 404; registries older than it may refuse the path as they refuse any they do not know.
            Err(error) if matches!(error.class(), Class::NotFound | Class::Proto) => error,
            answer => return Ok(answer?),
        };
        // distribution-spec 1.1, "Referrers tag schema".
        let tag: String = subject.to_string().replace(':', "-").chars().take(7 + 64).collect();
        let Ok(tag) = tag.parse() else { return Err(refused.into()) };
        let index = match self.client.any_manifest(endpoint, repository, &Selector::Tag(tag), budget).await {
            Ok(fetched) if lists_manifests(&fetched.bytes) => fetched.bytes,
            Ok(_) => return Err(refused.into()),
            Err(error) if error.class() == Class::NotFound => Bytes::from_static(EMPTY_INDEX),
            Err(error) => return Err(error.into()),
        };
        Ok(Referrers { index, filters_applied: None, next: None })
    }
}

const EMPTY_INDEX: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
