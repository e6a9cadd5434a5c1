//! The one way content enters the store from a registry: for the commands, the reconciler and served misses alike.
//!
//! A pull goes downwards only: resolve once to a digest, fetch the manifest by that digest, choose what of it is needed,
//! fetch each blob into the store, where its name appears only when size and digest are right. Whatever the store holds is
//! not fetched again by an asker who got it the same way before ([`grants`]); blobs that several askers with the same way and
//! credential want at once are fetched once. After a crash what was complete is held, and the rest is fetched again.

mod challenges;
mod error;
pub mod evidence;
pub mod fill;
mod follow;
pub mod grants;
mod open;
mod places;
mod raw;
mod replica;
mod source;

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::{
    blocking,
    class::Class,
    digest::Digest,
    flight::Flight,
    oci::{
        Document, ImageManifest, Registry, Repository, Selector, Tag,
        version::{TagPolicy, select_chart},
    },
    registry::{
        Budget, Client, Credentials, Endpoint, FetchedManifest, Transport,
        login::{Account, LoginError, Provider},
    },
    store::{Blob, Durability, Lease, Store},
};
pub use error::PullError;
use fill::Fills;
pub use follow::{FillError, Follower};
use grants::{Grants, Standing};
pub use open::{Ask, How, Opened};
pub use raw::{Probed, RawManifest};
pub use replica::ReplicaError;
pub use source::ReadError;

/// How deep indexes may nest: an index in an index is the deepest (hardening.md section 2, M4).
const MAX_INDEX_DEPTH: usize = 2;

/// Pulls; clones share what is under way.
#[derive(Clone)]
pub struct Puller {
    store: Store,
    client: Client,
    grants: Grants,
    fills: Arc<Fills>,
    manifests: Flight<(Arc<Way>, Selector), Result<RawManifest, Arc<PullError>>>,
}

/// What makes two askers the same to a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    /// How to reach the registry, and who asks.
    pub endpoint: Endpoint,
    /// The repository.
    pub repository: Repository,
}

/// Which manifest is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Exactly this one; never looked up.
    Digest(Digest),
    /// Whatever the tag names.
    Tag(Tag),
    /// The highest version among the tags.
    Version {
        /// The range.
        range: String,
        /// An expression that a tag must match.
        filter: Option<String>,
        /// The tags are a Helm chart's: `_` in them stands for `+`.
        chart: bool,
    },
    /// A chart by its version: the very version, else the highest in the range.
    Chart(String),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(digest) => digest.fmt(f),
            Self::Tag(tag) => write!(f, "tag {tag}"),
            Self::Version { range, .. } => write!(f, "semver {range}"),
            Self::Chart(version) => write!(f, "version {version}"),
        }
    }
}

/// Where a reference leads now.
#[derive(Clone, Debug)]
pub struct Target {
    /// The tag that was used; `None` for a digest.
    pub tag: Option<Tag>,
    /// The manifest's digest, as the registry gave it for the tag (an index's, if it is one).
    pub digest: Digest,
    /// The manifest itself, where finding out took a GET.
    fetched: Option<FetchedManifest>,
}

impl Target {
    /// Where a reference was found to lead before.
    pub fn known(tag: Option<Tag>, digest: Digest) -> Self {
        Self { tag, digest, fetched: None }
    }

    /// The same without the manifest's bytes, which need not be kept once the store has them.
    pub fn without_bytes(self) -> Self {
        Self { fetched: None, ..self }
    }
}

/// A manifest to use, held by the store.
#[derive(Clone)]
pub struct PulledManifest {
    /// The digest of the image manifest used (a child's, if the target was an index).
    pub digest: Digest,
    /// It, parsed.
    pub manifest: ImageManifest,
    /// Its exact bytes.
    pub bytes: Bytes,
    /// What the object's owner should know: another platform was taken.
    pub warning: Option<String>,
    /// Keeps the manifests from collection.
    pub leases: Arc<Vec<Lease>>,
}

impl Puller {
    /// A puller into `store` through `client`.
    pub fn new(store: Store, client: Client) -> Result<Self, PullError> {
        let grants = Grants::open(store.root()).map_err(PullError::Grants)?;
        Ok(Self { store, client, grants, fills: Arc::default(), manifests: Flight::default() })
    }

    /// The store that is pulled into.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The marks of who fetched what.
    pub fn grants(&self) -> &Grants {
        &self.grants
    }

    /// Whether a registry of this name may be contacted at all, as far as the name tells; else why not.
    pub fn permits(&self, registry: &Registry) -> Result<(), &'static str> {
        self.client.permits(registry)
    }

    /// Credentials that log in at a cloud's registry; see [`Client::login`].
    pub fn login(
        &self,
        provider: Provider,
        account: Option<Account>,
        registry: &Registry,
        transport: &Transport,
    ) -> Result<Credentials, LoginError> {
        self.client.login(provider, account, registry, transport)
    }

    /// Finds out where `wanted` leads. With something `held` for it a HEAD asks whether it moved, and a GET only if that
    /// fails otherwise than by the network, a rate limit or a rule; with nothing held a GET asks at once.
    pub async fn resolve(&self, way: &Way, wanted: &Wanted, held: bool, budget: Budget) -> Result<Target, PullError> {
        let tag = match wanted {
            Wanted::Digest(digest) => return Ok(Target { tag: None, digest: *digest, fetched: None }),
            Wanted::Tag(tag) => tag.clone(),
            Wanted::Version { range, filter, chart } => {
                // Before the registry is asked: a range that cannot be read needs no list.
                let policy = TagPolicy::new(range, filter.as_deref(), *chart)?;
                let tags = self.tags(way, budget).await?;
                policy.select(&tags)?.clone()
            }
            Wanted::Chart(version) => select_chart(&self.tags(way, budget).await?, version)?.clone(),
        };
        let selector = Selector::Tag(tag);
        if held {
            match self.client.resolve(&way.endpoint, &way.repository, &selector, budget).await {
                Ok(found) => return Ok(Target { tag: tag_of(selector), digest: found.digest, fetched: None }),
                Err(error) if is_final(&error) => return Err(error.into()),
                // Some registries answer a HEAD wrongly or not at all, and pull-through caches fill only on a GET.
                Err(_) => {}
            }
        }
        let fetched = self.client.manifest(&way.endpoint, &way.repository, &selector, budget).await?;
        Ok(Target { tag: tag_of(selector), digest: fetched.digest, fetched: Some(fetched) })
    }

    async fn tags(&self, way: &Way, budget: Budget) -> Result<Vec<Tag>, PullError> {
        self.client.tags(&way.endpoint, &way.repository, budget).await.map_err(PullError::Tags)
    }

    /// The image manifest that `target` leads to: the store's, or fetched by digest; of an index the child for
    /// linux/amd64, as the contract says.
    pub async fn manifest(&self, way: &Way, target: &Target, budget: Budget) -> Result<PulledManifest, PullError> {
        let mut leases = vec![self.store.lease(target.digest)];
        let mut warning = None;
        let mut digest = target.digest;
        let (mut bytes, mut document) = self.document(way, digest, target.fetched.clone(), budget).await?;
        for _ in 0..=MAX_INDEX_DEPTH {
            let index = match document {
                Document::Image(manifest) => {
                    return Ok(PulledManifest { digest, manifest, bytes, warning, leases: Arc::new(leases) });
                }
                Document::Index(index) => index,
            };
            let wrong = |source| PullError::Manifest { digest, source };
            let resolution = index.resolve().map_err(wrong)?;
            let child = resolution.descriptor().digest;
            leases.push(self.store.lease(child));
            let (child_bytes, child_document) = self.document(way, child, None, budget).await?;
            if let Document::Image(manifest) = &child_document {
                warning = index.settle(resolution, manifest).map_err(wrong)?;
            }
            (digest, bytes, document) = (child, child_bytes, child_document);
        }
        Err(PullError::TooDeep(target.digest))
    }

    /// A manifest or index by digest, parsed and held.
    async fn document(
        &self,
        way: &Way,
        digest: Digest,
        fetched: Option<FetchedManifest>,
        budget: Budget,
    ) -> Result<(Bytes, Document), PullError> {
        let parse = |bytes: &[u8], kind: Option<&str>| {
            Document::parse(bytes, kind).map_err(|source| PullError::Manifest { digest, source })
        };
        if fetched.is_none()
            && self.standing(way, &digest) == Standing::Granted
            && let Some(blob) = self.held(digest).await?
        {
            let bytes = blocking::io(move || blob.to_vec()).await.map_err(PullError::Grants)?;
            let document = parse(&bytes, None)?;
            return Ok((bytes.into(), document));
        }
        let fetched = match fetched {
            Some(fetched) => fetched,
            None => {
                let selector = Selector::Digest(digest);
                self.client.manifest(&way.endpoint, &way.repository, &selector, budget).await?
            }
        };
        let document = parse(&fetched.bytes, fetched.content_type.as_deref())?;
        let (store, bytes) = (self.store.clone(), fetched.bytes.clone());
        blocking::io(move || store.put(digest, &bytes, Durability::Now)).await?;
        self.mark(way, digest).await?;
        Ok((fetched.bytes, document))
    }

    async fn held(&self, digest: Digest) -> Result<Option<Blob>, PullError> {
        let store = self.store.clone();
        Ok(blocking::io(move || store.get(&digest)).await?)
    }

    /// In memory: no trip to the disk.
    fn standing(&self, way: &Way, digest: &Digest) -> Standing {
        self.grants.standing(&way.endpoint, &way.repository, digest)
    }

    async fn mark(&self, way: &Way, digest: Digest) -> Result<(), PullError> {
        if self.standing(way, &digest) == Standing::Granted {
            return Ok(());
        }
        let (grants, way) = (self.grants.clone(), way.clone());
        blocking::io(move || grants.mark(&way.endpoint, &way.repository, &digest)).await.map_err(PullError::Grants)
    }
}

/// Whether a HEAD's failure would be a GET's, too.
fn is_final(error: &crate::registry::RegistryError) -> bool {
    matches!(error.class(), Class::Net | Class::Rate | Class::Policy) || error.is_unauthenticated()
}

fn tag_of(selector: Selector) -> Option<Tag> {
    match selector {
        Selector::Tag(tag) => Some(tag),
        Selector::Digest(_) => None,
    }
}
