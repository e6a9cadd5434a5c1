//! What may be signatures of a manifest, fetched where cosign puts it: bundles that refer to it, and the layers of the
//! manifest under a tag made of its digest.
//!
//! Everything comes the same way as the content itself, by digest, verified, bounded: at most [`MAX_PIECES`] pieces of at
//! most [`MAX_BYTES`] each. What is beyond the bounds, missing or not what its descriptor says is passed on as
//! [`Evidence::Unusable`], so that a refusal tells of it: one bad referrer, which anybody who may push can add, must not
//! hide a good one. Only an answer that leaves open what there is (the network, a refusal) is an error.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use tokio::task::JoinSet;

use super::{PullError, Puller, RawManifest, Way};
use crate::{
    blocking,
    class::{Class, chain},
    digest::Digest,
    oci::{Descriptor, Document, ImageManifest, Selector, media_type},
    registry::Budget,
    trust::{BUNDLE, Evidence, PREDICATE_ANNOTATION, SIGNATURE_ANNOTATION, SIGNED, not_a_signature},
};

/// The most pieces that are looked at, in each of the two places.
pub const MAX_PIECES: usize = 64;
/// The most bytes of a payload or bundle. One that cosign makes has some 8 KiB.
pub const MAX_BYTES: u64 = 256 << 10;
/// The most pages of referrers.
const MAX_PAGES: usize = 8;
/// Pieces fetched at once.
const AT_ONCE: usize = 8;

/// The query for bundles; a `+` in a query would be a space.
const BUNDLES: &str = "artifactType=application%2Fvnd.dev.sigstore.bundle.v0.3%2Bjson";

impl Puller {
    /// The Sigstore bundles among what refers to `digest`, by the referrers API or its fallback tag.
    pub async fn bundles(&self, way: &Arc<Way>, digest: Digest, budget: Budget) -> Result<Vec<Evidence>, PullError> {
        let (referrers, left) = self.referring(way, &digest, budget).await?;
        let fetch = |referrer: Descriptor| {
            let (puller, way) = (self.clone(), Arc::clone(way));
            async move { puller.bundle(&way, &referrer, budget).await }
        };
        let mut found = in_order(referrers, fetch).await?;
        found.extend(left);
        Ok(found)
    }

    /// The descriptors of referrers that are bundles and may be signatures; and what is said of the others.
    async fn referring(
        &self,
        way: &Arc<Way>,
        digest: &Digest,
        budget: Budget,
    ) -> Result<(Vec<Descriptor>, Vec<Evidence>), PullError> {
        let (mut found, mut others) = (Vec::new(), BTreeSet::new());
        let mut query = BUNDLES.to_owned();
        for _ in 0..MAX_PAGES {
            let page = self.referrers(way, digest, &query, budget).await?;
            let wrong = |source| PullError::Manifest { digest: *digest, source };
            let listed = match Document::parse(&page.index, Some(media_type::OCI_INDEX)).map_err(wrong)? {
                Document::Index(index) => index.manifests,
                Document::Image(_) => Vec::new(),
            };
            // A registry may not filter.
            for referrer in listed.into_iter().filter(|referrer| referrer.artifact_type.as_deref() == Some(BUNDLE)) {
                // What the annotation tells beforehand needs no request. It proves nothing: what counts is what the
                // signature is over.
                match referrer.annotations.get(PREDICATE_ANNOTATION) {
                    Some(kind) if kind != SIGNED => drop(others.insert(not_a_signature(kind))),
                    _ => found.push(referrer),
                }
            }
            match page.next {
                Some(next) if found.len() <= MAX_PIECES => query = next,
                _ => break,
            }
        }
        let left = left_out("referrers", &mut found);
        Ok((found, left.into_iter().chain(others.into_iter().map(Evidence::Unusable)).collect()))
    }

    async fn bundle(&self, way: &Arc<Way>, referrer: &Descriptor, budget: Budget) -> Result<Evidence, PullError> {
        let named = |why: String| Evidence::Unusable(format!("the referrer {} {why}", referrer.digest));
        let manifest = match self.raw_manifest(way, &Selector::Digest(referrer.digest), budget).await {
            Ok(manifest) => manifest,
            Err(error) if is_conclusive(&error) => return Ok(named(format!("cannot be used: {}", chain(&error)))),
            Err(error) => return Err(error),
        };
        let layers = image(&manifest).map(|image| image.layers.as_slice()).unwrap_or_default();
        let [layer] = layers else { return Ok(named(format!("has {} layers, a bundle's has one", layers.len()))) };
        Ok(match self.content(way, layer, budget).await? {
            Ok(bundle) => Evidence::Bundle(bundle.into()),
            Err(why) => named(why),
        })
    }

    /// The layers of the manifest under the tag `sha256-<hex>.sig`; none where there is no such tag.
    pub async fn signature_layers(
        &self,
        way: &Arc<Way>,
        digest: Digest,
        budget: Budget,
    ) -> Result<Vec<Evidence>, PullError> {
        let tag = format!("{}-{}.sig", digest.algorithm().name(), digest.hex());
        // A digest of the longer algorithm makes no tag.
        let Ok(parsed) = tag.parse() else { return Ok(Vec::new()) };
        let manifest = match self.raw_manifest(way, &Selector::Tag(parsed), budget).await {
            Ok(manifest) => manifest,
            Err(error) if error.class() == Class::NotFound => return Ok(Vec::new()),
            Err(error) if is_conclusive(&error) => {
                return Ok(vec![Evidence::Unusable(format!("the tag {tag} cannot be used: {}", chain(&error)))]);
            }
            Err(error) => return Err(error),
        };
        let Some(image) = image(&manifest) else {
            return Ok(vec![Evidence::Unusable(format!("the tag {tag} names no manifest with layers"))]);
        };
        let signed = |layer: &&Descriptor| layer.annotations.contains_key(SIGNATURE_ANNOTATION);
        let mut layers: Vec<Descriptor> = image.layers.iter().filter(signed).cloned().collect();
        let left = left_out("layers with signatures", &mut layers);
        let fetch = |layer: Descriptor| {
            let (puller, way) = (self.clone(), Arc::clone(way));
            async move {
                Ok(match puller.content(&way, &layer, budget).await? {
                    Ok(payload) => Evidence::Layer { payload: payload.into(), annotations: layer.annotations },
                    Err(why) => Evidence::Unusable(format!("the signature {} {why}", layer.digest)),
                })
            }
        };
        let mut found = in_order(layers, fetch).await?;
        found.extend(left);
        Ok(found)
    }

    /// A small blob's bytes; the text says what is wrong with it.
    async fn content(
        &self,
        way: &Arc<Way>,
        descriptor: &Descriptor,
        budget: Budget,
    ) -> Result<Result<Vec<u8>, String>, PullError> {
        if descriptor.size > MAX_BYTES {
            return Ok(Err(format!("has {} bytes, at most {MAX_BYTES} are taken", descriptor.size)));
        }
        let (blob, _lease) = match self.blob(way, descriptor, budget).await {
            Ok(fetched) => fetched,
            Err(error) if is_conclusive(&error) => return Ok(Err(format!("cannot be used: {}", chain(&error)))),
            Err(error) => return Err(error),
        };
        Ok(Ok(blocking::io(move || blob.to_vec()).await.map_err(PullError::Evidence)?))
    }
}

fn image(manifest: &RawManifest) -> Option<&ImageManifest> {
    match manifest.document.as_deref() {
        Some(Document::Image(image)) => Some(image),
        _ => None,
    }
}

/// Whether an error says what is there (nothing, or nothing that can be used), and not only that it could not be seen.
fn is_conclusive(error: &PullError) -> bool {
    matches!(error.class(), Class::NotFound | Class::Digest | Class::Size | Class::Manifest | Class::Limit)
}

/// Cuts a list to [`MAX_PIECES`], and says so.
fn left_out(what: &str, pieces: &mut Vec<Descriptor>) -> Option<Evidence> {
    let too_many = pieces.len() > MAX_PIECES;
    pieces.truncate(MAX_PIECES);
    too_many.then(|| Evidence::Unusable(format!("there are more {what}, and only {MAX_PIECES} are looked at")))
}

/// Fetches each of `pieces`, some at once; the results are in the order of the pieces.
async fn in_order<F>(pieces: Vec<Descriptor>, fetch: impl Fn(Descriptor) -> F) -> Result<Vec<Evidence>, PullError>
where
    F: Future<Output = Result<Evidence, PullError>> + Send + 'static,
{
    let mut waiting: VecDeque<(usize, Descriptor)> = pieces.into_iter().enumerate().collect();
    let (mut fetching, mut found) = (JoinSet::new(), Vec::new());
    loop {
        while fetching.len() < AT_ONCE
            && let Some((n, piece)) = waiting.pop_front()
        {
            let fetched = fetch(piece);
            fetching.spawn(async move { (n, fetched.await) });
        }
        match fetching.join_next().await {
            None => break,
            Some(Ok((n, fetched))) => found.push((n, fetched?)),
            // A panic goes on here; nothing is cancelled before this returns.
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    found.sort_by_key(|(n, _)| *n);
    Ok(found.into_iter().map(|(_, evidence)| evidence).collect())
}
