//! What an operator does with the mirror: forget, fetch ahead, keep from eviction.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use super::{Ask, BlobSource, Caller, Content, Inner, ManifestAnswer, Mirror, Miss, Upstream};
use crate::{
    blocking,
    class::{Class, chain},
    digest::Digest,
    oci::{Descriptor, Document, Reference, Registry, Repository, Selector, media_type},
    pull::{FillError, PullError, Way},
    registry::Credentials,
    store::{Durability, Lease, StoreError},
};

/// How many blobs of one image are fetched at once: as many as containerd does.
const AT_ONCE: usize = 3;
/// The most manifests of one image: an index and its children, twice over.
const MAX_MANIFESTS: usize = 2000;

/// Which of an index's images are fetched ahead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Platforms {
    /// This machine's.
    #[default]
    Own,
    /// These, as `os/architecture[/variant]`.
    These(Vec<String>),
    /// All of them.
    All,
}

impl Platforms {
    /// Whether an index's child is wanted. What states no platform is.
    fn want(&self, child: &Descriptor) -> bool {
        let Some(platform) = &child.platform else { return true };
        let platform = platform.to_string();
        self.named().is_none_or(|wanted| wanted.iter().any(|wanted| is_of(&platform, wanted)))
    }

    /// Which they are; `None` for all.
    fn named(&self) -> Option<Vec<String>> {
        match self {
            Self::All => None,
            Self::Own => Some(vec![format!("linux/{}", own_architecture())]),
            Self::These(wanted) => Some(wanted.clone()),
        }
    }
}

/// Whether a platform is the one that is wanted, or a variant of it.
fn is_of(platform: &str, wanted: &str) -> bool {
    platform.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What an image's indexes offer.
#[derive(Default)]
struct Offer {
    platforms: BTreeSet<String>,
    /// One of their images states no platform, so it may be any.
    unstated: bool,
}

impl Offer {
    fn add(&mut self, child: &Descriptor) {
        match &child.platform {
            Some(platform) if platform.os == "unknown" => {}
            Some(platform) => drop(self.platforms.insert(platform.to_string())),
            // An index among them tells itself.
            None => self.unstated |= media_type::is_manifest(&child.media_type),
        }
    }

    /// A platform that is wanted and not offered; `None` also where no index was met.
    fn lacks(&self, platforms: &Platforms) -> Option<String> {
        if self.platforms.is_empty() || self.unstated {
            return None;
        }
        platforms.named()?.into_iter().find(|wanted| !self.platforms.iter().any(|platform| is_of(platform, wanted)))
    }
}

/// This machine's architecture, as images call it (Go's names).
fn own_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// What is held of an image now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Prefetched {
    /// The digest that the reference led to.
    pub digest: Digest,
    /// Manifests and indexes.
    pub manifests: u64,
    /// Configs and layers.
    pub blobs: u64,
    /// The bytes of all of them.
    pub bytes: u64,
    /// How many of these bytes had to be fetched.
    pub fetched: u64,
}

/// Why it cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// The reference names no upstream of this mirror.
    #[error("{0} is no upstream of this mirror")]
    Upstream(Registry),
    /// The reference has neither tag nor digest.
    #[error("{0} has neither a tag nor a digest")]
    Selector(Box<Reference>),
    /// The upstream.
    #[error("{what}: {miss}")]
    Miss {
        /// What was asked for.
        what: String,
        /// What came of it.
        miss: Miss,
    },
    /// A blob that broke off.
    #[error("{digest} broke off")]
    Fill {
        /// Which.
        digest: Digest,
        /// Why.
        #[source]
        source: FillError,
    },
    /// It is right but could not be kept, as where the disk or the budget is full.
    #[error("{digest} could not be kept{}", .why.as_ref().map_or_else(see_log, |why| format!(": {}", chain(why))))]
    NotKept {
        /// Which.
        digest: Digest,
        /// Why.
        why: Option<Arc<PullError>>,
    },
    /// The image is not to be had for this platform.
    #[error("{digest} has no image for {wanted}; it has {}", .offered.join(", "))]
    Platform {
        /// Its index.
        digest: Digest,
        /// What was asked for.
        wanted: String,
        /// What there is.
        offered: Vec<String>,
    },
    /// More manifests than any image has.
    #[error("{0} has more than {MAX_MANIFESTS} manifests")]
    TooMany(Digest),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn see_log() -> String {
    "; Larder's log says why".into()
}

impl OperateError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Upstream(_) | Self::Platform { .. } => Class::NotFound,
            Self::Selector(_) => Class::Client,
            Self::Miss { miss, .. } => miss.class(),
            Self::Fill { source, .. } => source.class(),
            Self::NotKept { .. } => Class::Disk,
            Self::TooMany(_) => Class::Limit,
            Self::Store(error) => error.class(),
        }
    }
}

/// What an image is made of; the leases keep it while it is gathered.
#[derive(Default)]
struct Gathered {
    digests: BTreeSet<Digest>,
    leases: Vec<Lease>,
    manifests: u64,
    blobs: u64,
    bytes: u64,
    fetched: u64,
}

impl Mirror {
    /// Forgets where a tag leads, and that anything was said no to; the next request asks the upstream. For a digest
    /// only the latter: content does not change. Whether there was anything to forget.
    pub async fn forget(&self, reference: &Reference) -> Result<bool, OperateError> {
        let (upstream, name, selector) = self.target(reference)?;
        let inner = &self.0;
        let miss = |miss| OperateError::Miss { what: reference.to_string(), miss };
        let repository = inner.repository(upstream, &name).await.map_err(miss)?;
        let what = match &selector {
            Selector::Digest(digest) => inner.what(&repository, b"blob", &digest.to_string()),
            Selector::Tag(_) => inner.what(&repository, b"list", "tags"),
        };
        let mut there = inner.negatives.forget(&inner.what_manifest(&repository, &selector));
        there |= inner.negatives.forget(&what);
        if let Selector::Digest(digest) = selector {
            let way = Way { endpoint: upstream.endpoint(Credentials::Anonymous), repository: name };
            there |= inner.puller.forget_mark(&way, digest);
        }
        let clearing = Arc::clone(inner);
        blocking::io(move || clearing.lists.clear()).await;
        if let Selector::Tag(tag) = &selector {
            there |= inner.forget_tag(&repository, tag).await;
        }
        Ok(there)
    }

    /// Fetches an image ahead of those who will want it: its manifests, configs and layers for these platforms.
    pub async fn prefetch(&self, reference: &Reference, platforms: &Platforms) -> Result<Prefetched, OperateError> {
        let (digest, gathered) = self.gather(reference, platforms).await?;
        Ok(gathered.report(digest))
    }

    /// Keeps an image from eviction, under its reference; fetches what is missing of it first. A tag that moves on
    /// later does not move the pin: pin it again.
    pub async fn pin(&self, reference: &Reference, platforms: &Platforms) -> Result<Prefetched, OperateError> {
        let (digest, gathered) = self.gather(reference, platforms).await?;
        let (store, name) = (self.0.store.clone(), reference.to_string());
        let digests: Vec<Digest> = gathered.digests.iter().copied().collect();
        blocking::io(move || store.pin(&name, &digests)).await?;
        Ok(gathered.report(digest))
    }

    /// Ends a pin; whether there was one.
    pub async fn unpin(&self, reference: &Reference) -> Result<bool, OperateError> {
        let (store, name) = (self.0.store.clone(), reference.to_string());
        Ok(blocking::io(move || store.unpin(&name)).await?)
    }

    fn target(&self, reference: &Reference) -> Result<(&Arc<Upstream>, Repository, Selector), OperateError> {
        let upstream =
            self.of(&reference.registry).ok_or_else(|| OperateError::Upstream(reference.registry.clone()))?;
        let selector = reference.selector.clone().ok_or_else(|| OperateError::Selector(Box::new(reference.clone())))?;
        Ok((upstream, upstream.repository(reference.repository.clone()), selector))
    }

    async fn gather(&self, reference: &Reference, platforms: &Platforms) -> Result<(Digest, Gathered), OperateError> {
        let (upstream, repository, selector) = self.target(reference)?;
        // As anybody, or with the operator's credential.
        let caller = Caller { authorization: None, private: true };
        let ask = Ask { upstream, repository, caller };
        let mut gathered = Gathered::default();
        let mut open = vec![selector];
        let mut first = None;
        let mut seen = HashSet::new();
        let mut blobs = Vec::new();
        let mut offer = Offer::default();
        while let Some(selector) = open.pop() {
            let what = || format!("{}/{}:{selector}", ask.upstream.name(), ask.repository);
            let answer =
                self.manifest(&ask, &selector).await.map_err(|miss| OperateError::Miss { what: what(), miss })?;
            let digest = *first.get_or_insert(answer.digest);
            if !seen.insert(answer.digest) {
                continue;
            }
            if seen.len() > MAX_MANIFESTS {
                return Err(OperateError::TooMany(digest));
            }
            gathered.leases.push(self.0.store.lease(answer.digest));
            let bytes = gathered.manifest(&self.0, &answer).await?;
            match Document::parse(&bytes, answer.media_type.to_str().ok()) {
                Ok(Document::Index(index)) => {
                    index.manifests.iter().for_each(|child| offer.add(child));
                    let wanted = index.manifests.iter().filter(|child| platforms.want(child));
                    let (manifests, others): (Vec<_>, Vec<_>) =
                        wanted.partition(|child| is_document(&child.media_type));
                    open.extend(manifests.into_iter().map(|child| Selector::Digest(child.digest)));
                    blobs.extend(others.into_iter().map(|child| child.digest));
                }
                Ok(Document::Image(image)) => {
                    blobs.push(image.config.digest);
                    blobs.extend(image.layers.iter().map(|layer| layer.digest));
                }
                Err(error) => tracing::debug!(%digest, %error, "what this manifest names is not fetched ahead"),
            }
        }
        let digest = first.ok_or_else(|| OperateError::Selector(Box::new(reference.clone())))?;
        if let Some(wanted) = offer.lacks(platforms) {
            let offered = offer.platforms.into_iter().collect();
            return Err(OperateError::Platform { digest, wanted, offered });
        }
        blobs.sort_unstable();
        blobs.dedup();
        gathered.leases.extend(blobs.iter().map(|digest| self.0.store.lease(*digest)));
        self.fetch_all(&ask, blobs, &mut gathered).await?;
        Ok((digest, gathered))
    }

    /// Fetches blobs, a few at a time.
    async fn fetch_all(&self, ask: &Ask<'_>, blobs: Vec<Digest>, gathered: &mut Gathered) -> Result<(), OperateError> {
        let mut fetching = tokio::task::JoinSet::new();
        let mut left = blobs.into_iter();
        loop {
            while fetching.len() < AT_ONCE
                && let Some(digest) = left.next()
            {
                let (mirror, upstream, repository) = (self.clone(), Arc::clone(ask.upstream), ask.repository.clone());
                fetching.spawn(async move {
                    let caller = Caller { authorization: None, private: true };
                    let ask = Ask { upstream: &upstream, repository, caller };
                    mirror.fetch_one(&ask, digest).await.map(|sizes| (digest, sizes))
                });
            }
            match fetching.join_next().await {
                None => return Ok(()),
                Some(Ok(Ok((digest, (size, fetched))))) => {
                    gathered.digests.insert(digest);
                    gathered.blobs += 1;
                    gathered.bytes += size;
                    gathered.fetched += fetched;
                }
                Some(Ok(Err(error))) => return Err(error),
                Some(Err(ended)) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
                Some(Err(_)) => return Ok(()),
            }
        }
    }

    /// A blob, held at the end: its size, and how much of it had to be fetched.
    async fn fetch_one(&self, ask: &Ask<'_>, digest: Digest) -> Result<(u64, u64), OperateError> {
        let blob = self.blob(ask, &digest, false).await;
        let blob = blob.map_err(|miss| OperateError::Miss { what: digest.to_string(), miss })?;
        let fetched = if blob.status == super::CacheStatus::Hit { 0 } else { blob.size };
        match blob.source {
            BlobSource::Held(_) => Ok((blob.size, fetched)),
            BlobSource::Upstream => Err(OperateError::NotKept { digest, why: None }),
            BlobSource::Filling(mut follower) => {
                let kept = follower.finished().await.map_err(|source| OperateError::Fill { digest, source })?;
                kept.map_err(|why| OperateError::NotKept { digest, why: Some(why) })?;
                Ok((blob.size, fetched))
            }
        }
    }
}

fn is_document(media_type: &str) -> bool {
    media_type::is_manifest(media_type) || media_type::is_index(media_type)
}

impl Gathered {
    async fn manifest(&mut self, inner: &Inner, answer: &ManifestAnswer) -> Result<bytes::Bytes, OperateError> {
        let digest = answer.digest;
        let bytes = match &answer.content {
            // It could not be kept: the store says why.
            Content::Bytes(bytes) => {
                let (store, bytes) = (inner.store.clone(), bytes.clone());
                let kept = blocking::io(move || store.put(digest, &bytes, Durability::Soon).map(|_| bytes)).await;
                kept.map_err(|why| OperateError::NotKept { digest, why: Some(Arc::new(why.into())) })?
            }
            Content::Held(blob) => {
                let blob = blob.clone();
                let read = blocking::io(move || blob.to_vec()).await;
                read.map_err(|_| OperateError::NotKept { digest, why: None })?.into()
            }
        };
        if answer.sent {
            self.fetched += bytes.len() as u64;
        }
        self.digests.insert(digest);
        self.manifests += 1;
        self.bytes += bytes.len() as u64;
        Ok(bytes)
    }

    fn report(self, digest: Digest) -> Prefetched {
        Prefetched { digest, manifests: self.manifests, blobs: self.blobs, bytes: self.bytes, fetched: self.fetched }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Platform;

    fn child(platform: Option<(&str, &str, Option<&str>)>) -> Descriptor {
        Descriptor {
            media_type: media_type::OCI_MANIFEST.into(),
            digest: Digest::sha256(b"x"),
            size: 1,
            platform: platform.map(|(os, architecture, variant)| Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: variant.map(Into::into),
            }),
            artifact_type: None,
            annotations: Default::default(),
        }
    }

    #[test]
    fn platforms_are_chosen_as_asked() {
        let own = own_architecture();
        let these = Platforms::These(vec!["linux/arm".into(), "windows/amd64".into()]);
        for (platforms, platform, wanted) in [
            (&Platforms::All, Some(("windows", "amd64", None)), true),
            (&Platforms::Own, Some(("linux", own, None)), true),
            (&Platforms::Own, Some(("linux", own, Some("v8"))), true),
            (&Platforms::Own, Some(("windows", own, None)), false),
            (&Platforms::Own, Some(("linux", "s390y", None)), false),
            (&Platforms::Own, Some(("unknown", "unknown", None)), false),
            (&Platforms::Own, None, true),
            (&these, Some(("linux", "arm", Some("v7"))), true),
            (&these, Some(("linux", "arm64", None)), false),
            (&these, Some(("windows", "amd64", None)), true),
        ] {
            assert_eq!(platforms.want(&child(platform)), wanted, "{platforms:?} {platform:?}");
        }
    }

    #[test]
    fn a_platform_that_is_not_offered_is_told() {
        let offer = |platforms: &[Option<(&str, &str, Option<&str>)>]| {
            let mut offer = Offer::default();
            platforms.iter().for_each(|platform| offer.add(&child(*platform)));
            offer
        };
        let these = |names: &[&str]| Platforms::These(names.iter().map(|name| (*name).to_owned()).collect());
        let (arm, windows) = (Some(("linux", "arm", Some("v7"))), Some(("windows", "amd64", None)));
        let statement = Some(("unknown", "unknown", None));
        for (offered, platforms, lacks) in [
            (&[arm, windows, statement][..], these(&["linux/arm", "windows/amd64"]), None),
            (&[arm, windows], these(&["linux/arm/v7"]), None),
            (&[arm, windows], these(&["windows/amd64", "linux/ar"]), Some("linux/ar")),
            (&[arm, statement], these(&["unknown/unknown"]), Some("unknown/unknown")),
            (&[arm, windows], Platforms::All, None),
            (&[arm, None], these(&["linux/s390x"]), None),
            (&[], these(&["linux/s390x"]), None),
        ] {
            assert_eq!(offer(offered).lacks(&platforms).as_deref(), lacks, "{platforms:?}");
        }
        let own = offer(&[windows]).lacks(&Platforms::Own);
        assert_eq!(own, Some(format!("linux/{}", own_architecture())));
    }
}
