//! The node-local mirror: what clients pull through, and what is decided for them (contract section 3; hardening.md
//! section 5; mirror.md).
//!
//! # Promises
//! - Only configured upstreams are contacted, whatever a request names.
//! - Content is served to whom its upstream shows it: a repository to everybody while the upstream shows it to
//!   everybody, or to a credential while the upstream takes that; for five minutes without asking again. A blob is
//!   readable through a repository only where an image obtained there names it, or the upstream says that it has it
//!   there. Knowing a digest grants nothing.
//! - A tag's digest is asked for once in its time (`tagTTL`), with a HEAD, however many clients want it; a manifest is
//!   fetched only where its bytes are not held, and once for all who want it at once.
//! - An upstream that does not answer at all is left alone for 5 s at a time (`silence`): who would ask it has an answer
//!   at once.
//! - While an upstream fails, what is held is served: digests without limit, tags for `staleIfError` beyond their time,
//!   to whom the upstream had shown them. It never turns into an answer that makes a client ask again and again.
//! - Where an upstream says no, the answer is the same whether the content is held or not.
//!
//! # Shape
//! A request names an [`Upstream`] and a repository, and comes as a [`Caller`]. What is fresh is answered from memory
//! and the open blob: two look-ups under read locks. Everything else goes through one question to the upstream for all
//! who ask the same (`once`). `repository` knows manifests, links and tags, `readers` who may read, `negatives`
//! what was said no to a moment ago, `greeting` what an upstream's door says, `upstream` how an upstream fares.
//!
//! Any number of callers at once. Marks of readers, links and tags are on disk, unsynced: after a crash what is lost
//! costs a question.

mod blobs;
mod clock;
mod greeting;
mod lists;
mod manifests;
mod negatives;
mod once;
mod operate;
mod outcome;
mod reader;
mod readers;
mod repository;
mod shelf;
mod silence;
mod told;
mod upstream;

use std::{io, sync::Arc, time::Duration};

pub use self::{
    blobs::{BlobAnswer, BlobSource},
    clock::Clock,
    lists::{ReferrersAnswer, TagsAnswer},
    manifests::ManifestAnswer,
    operate::{OperateError, Platforms, Prefetched},
    outcome::{CacheStatus, Miss},
    reader::Caller,
    upstream::{CredentialsError, Mode, Upstream, UpstreamConfig, UpstreamError},
};
use self::{
    manifests::Fetched,
    negatives::Negatives,
    once::Once,
    reader::{Reader, Who},
    readers::{Hash, Mark, Readers},
    repository::{Mirrored, Repositories},
};
use http::HeaderValue;

use crate::{
    blocking,
    class::{Class, chain},
    digest::Digest,
    oci::{Registry, Repository, Selector},
    pull::{FillError, PullError, Puller, Way},
    registry::{Budget, Credentials},
    store::{Blob, Store},
};

/// How long an upstream may take for a question on which a client waits: 503 at 10 s (hardening.md, R2).
const PATIENCE: Duration = Duration::from_secs(9);
/// The same where there is something to serve meanwhile.
const IMPATIENCE: Duration = Duration::from_secs(4);

/// The mirror; clones share it.
#[derive(Clone)]
pub struct Mirror(Arc<Inner>);

struct Inner {
    puller: Puller,
    store: Store,
    clock: Clock,
    sites: Vec<Site>,
    readers: Readers,
    negatives: Negatives,
    checks: Once<Hash, Result<Fetched, Miss>>,
    fetches: Once<Hash, Result<Fetched, Miss>>,
    settles: Once<Hash, Result<(), Miss>>,
    lengths: Once<Hash, Result<u64, Miss>>,
    lists: lists::Lists,
    greetings: Once<Hash, Result<(), Miss>>,
}

/// An upstream and what was asked of it.
struct Site {
    upstream: Arc<Upstream>,
    repositories: Repositories,
    door: greeting::Door,
}

/// What a request asks of the mirror: whose, what, and who asks.
#[derive(Clone)]
pub struct Ask<'a> {
    /// The upstream.
    pub upstream: &'a Arc<Upstream>,
    /// The repository there.
    pub repository: Repository,
    /// Who asks.
    pub caller: Caller<'a>,
}

/// Why there can be no mirror.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// An upstream's configuration.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// One upstream twice.
    #[error("upstream {0} is configured twice")]
    Twice(Registry),
    /// The marks of readers.
    #[error("cannot open the marks of who may read")]
    Readers(#[source] io::Error),
}

impl MirrorError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Upstream(error) => error.class(),
            Self::Twice(_) => Class::Spec,
            Self::Readers(_) => Class::Disk,
        }
    }
}

/// The bytes of an answer.
#[derive(Clone)]
pub enum Content {
    /// Held by the store.
    Held(Blob),
    /// In memory, verified; the store need not hold it.
    Bytes(bytes::Bytes),
}

impl Mirror {
    /// The mirror of `upstreams`, which keeps what it fetches through `puller`. Blocks on the disk.
    pub fn new(puller: Puller, upstreams: Vec<UpstreamConfig>, clock: Clock) -> Result<Self, MirrorError> {
        let store = puller.store().clone();
        let key = puller.grants().derived_key("larder mirror readers");
        let lists = lists::Lists::of(store.root());
        let readers = Readers::open(store.root(), key).map_err(MirrorError::Readers)?;
        let mut sites: Vec<Site> = Vec::new();
        for config in upstreams {
            let upstream = Upstream::new(sites.len(), config)?;
            if sites.iter().any(|site| site.upstream.registry() == upstream.registry()) {
                return Err(MirrorError::Twice(upstream.registry().clone()));
            }
            let (repositories, door) = (Repositories::default(), greeting::Door::default());
            sites.push(Site { upstream: Arc::new(upstream), repositories, door });
        }
        Ok(Self(Arc::new(Inner {
            puller,
            store,
            clock,
            sites,
            readers,
            negatives: Negatives::default(),
            checks: Once::default(),
            fetches: Once::default(),
            settles: Once::default(),
            lengths: Once::default(),
            lists,
            greetings: Once::default(),
        })))
    }

    /// The upstreams, in the order of the configuration.
    pub fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.0.sites.iter().map(|site| &site.upstream)
    }

    /// The upstream, where there is one alone.
    pub fn only(&self) -> Option<&Arc<Upstream>> {
        match &*self.0.sites {
            [site] => Some(&site.upstream),
            _ => None,
        }
    }

    /// The upstream that `ns=` names; another spelling of a registry's name is the same registry.
    pub fn named(&self, ns: &str) -> Option<&Arc<Upstream>> {
        self.upstreams().find(|upstream| upstream.name() == ns).or_else(|| self.of(&ns.parse().ok()?))
    }

    /// The upstream that is this registry.
    pub fn of(&self, registry: &Registry) -> Option<&Arc<Upstream>> {
        self.upstreams().find(|upstream| upstream.registry() == registry)
    }

    /// The upstream that a path's first part names.
    pub fn prefixed(&self, first: &str) -> Option<&Arc<Upstream>> {
        self.upstreams().find(|upstream| upstream.prefix() == first)
    }

    /// Why a blob that was coming has ended, for one who has nothing of it yet.
    pub fn ended(&self, upstream: &Upstream, error: &FillError) -> Miss {
        let miss = Miss::from(error);
        if let Some(cause) = error.cause().filter(|_| miss.is_failure()) {
            self.0.tell(upstream, &miss, cause);
        }
        miss
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.0.store
    }
}

impl Inner {
    /// The repository and the reader of a request, from memory where the repository was asked for before.
    async fn enter(self: &Arc<Self>, ask: &Ask<'_>) -> Result<(Arc<Mirrored>, Reader), Miss> {
        let upstream = ask.upstream;
        if upstream.mode() == Mode::PassThrough && !ask.caller.private {
            return Err(Miss::NotFound {
                reason: "pass-through answers on loopback and over TLS only".into(),
                class: Class::Policy,
            });
        }
        if !upstream.mirrors(&ask.repository) {
            return Err(Miss::NotFound {
                reason: "this repository is not among those of the upstream that are mirrored".into(),
                class: Class::Policy,
            });
        }
        let repository = self.repository(upstream, &ask.repository).await?;
        let reader = Reader::of(ask.caller, &repository, &self.readers);
        Ok((repository, reader))
    }

    async fn repository(self: &Arc<Self>, upstream: &Arc<Upstream>, name: &Repository) -> Result<Arc<Mirrored>, Miss> {
        let Some(site) = self.sites.get(upstream.number()) else {
            return Err(Miss::not_found("no such upstream"));
        };
        if let Some(repository) = site.repositories.get(name) {
            return Ok(repository);
        }
        let (inner, upstream, name) = (Arc::clone(self), Arc::clone(upstream), name.clone());
        blocking::io(move || {
            let site = &inner.sites[upstream.number()];
            site.repositories.open(&upstream, &name, &inner.store, &inner.readers)
        })
        .await
        .map_err(|error| self.broken("the links of a mirrored repository cannot be read", &error))
    }

    /// The blob, if it is held.
    async fn held(&self, digest: &Digest) -> Result<Option<Blob>, Miss> {
        if let Some(blob) = self.store.get_open(digest) {
            return Ok(Some(blob));
        }
        let (store, digest) = (self.store.clone(), *digest);
        let held = blocking::io(move || store.get(&digest)).await;
        held.map_err(|error| self.broken("the store refused to open a blob", &error))
    }

    /// How to ask the upstream for this reader.
    async fn way(&self, repository: &Mirrored, reader: &Reader) -> Result<Arc<Way>, Miss> {
        let credentials = match &reader.who {
            Who::Everybody => Credentials::Anonymous,
            Who::Own(own) => own.clone(),
            Who::Operator => {
                let shared = repository.upstream.shared_credentials(&repository.name).await;
                shared.map_err(|error| {
                    tracing::warn!(upstream = repository.upstream.name(), error = chain(&error), class = %Class::Auth, "the operator's credential cannot be used");
                    Miss::here("the mirror's own credential cannot be read", Class::Auth)
                })?
            }
        };
        let endpoint = repository.upstream.endpoint(credentials);
        Ok(Arc::new(Way { endpoint, repository: repository.name.clone() }))
    }

    /// The upstream showed `mark`'s subject to its reader.
    async fn grant(self: &Arc<Self>, id: Hash, reader: &Reader) {
        let of_repository = id == reader.id && !matches!(reader.who, Who::Own(_));
        self.mark(id, reader.mark(self.clock.now()).of_repository(of_repository)).await;
    }

    async fn mark(self: &Arc<Self>, id: Hash, mark: Mark) {
        let inner = Arc::clone(self);
        if let Err(error) = blocking::io(move || inner.readers.set(id, mark)).await {
            tracing::warn!(%error, "a grant is not kept over a restart");
        }
    }

    /// The upstream does not show the repository to this reader any longer.
    async fn end(self: &Arc<Self>, reader: &Reader, now: u64) {
        let (inner, reader) = (Arc::clone(self), reader.clone());
        let ended = blocking::io(move || {
            // Whoever asks for names at random makes as many of these: they must not push repositories' marks out.
            let refused = Mark { when: now, until: u64::MAX }.of_repository(false);
            inner.readers.set(reader.refused(&inner.readers), refused)?;
            inner.readers.end(&reader.id)
        });
        if let Err(error) = ended.await {
            tracing::warn!(%error, "the end of a grant is not kept over a restart");
        }
    }

    /// What the upstream's failure or refusal means for the caller; what it means for others is noted.
    ///
    /// `known`: it had shown this before, so that a 404 says something about the repository.
    async fn refused(
        self: &Arc<Self>,
        repository: &Arc<Mirrored>,
        reader: &Reader,
        what: Hash,
        known: bool,
        error: &PullError,
    ) -> Miss {
        let mut miss = Miss::from(error);
        let (upstream, now) = (&repository.upstream, self.clock.now());
        if matches!(error.class(), Class::Net | Class::Rate) {
            if !upstream.health.is_failing() {
                tracing::warn!(upstream = upstream.name(), repository = %repository.name, error = chain(error), class = %error.class(), "the upstream fails; what is held is served meanwhile");
            }
            upstream.health.failed(now);
        } else if error.registry().is_some() {
            upstream.health.worked();
        }
        tracing::debug!(upstream = upstream.name(), repository = %repository.name, error = chain(error), class = %error.class(), "miss");
        if miss.is_failure() {
            self.tell(upstream, &miss, error);
            return miss;
        }
        if miss.is_denial() || (known && miss.class() == Class::NotFound) {
            self.end(reader, now).await;
        }
        if upstream.mode() == Mode::PassThrough && miss.is_denial() {
            miss = self.challenge(repository, miss).await;
        }
        // What is remembered already must not last longer for being told.
        if !error.is_remembered() {
            self.negatives.put(what, reader.id, &miss, upstream.negative_ttl(), now);
        }
        miss
    }

    /// Logs why an upstream's answer is of no use. Of one that fails that is told when it begins.
    fn tell(&self, upstream: &Upstream, miss: &Miss, error: &PullError) {
        let class = error.class();
        if !matches!(class, Class::Net | Class::Rate | Class::Disk)
            && upstream.health.told.is_news(&miss.to_string(), self.clock.now())
        {
            let (upstream, error) = (upstream.name(), chain(error));
            tracing::warn!(upstream, error, %class, "what is asked of the upstream is answered with 503");
        }
    }

    /// A refusal with the upstream's own challenge, where it has one.
    async fn challenge(&self, repository: &Mirrored, miss: Miss) -> Miss {
        let endpoint = repository.upstream.endpoint(Credentials::Anonymous);
        let way = Way { endpoint, repository: repository.name.clone() };
        match self.puller.challenges(&way, Budget::within(IMPATIENCE)).await {
            Ok(challenges) if !challenges.is_empty() => {
                let challenges: Arc<[HeaderValue]> = challenges.into();
                repository.note_challenge(&challenges);
                Miss::Unauthorized { reason: miss.to_string().into(), challenges }
            }
            _ => miss,
        }
    }

    /// What a selector of a repository is remembered under.
    fn what(&self, repository: &Mirrored, kind: &[u8], name: &str) -> Hash {
        self.readers.hash(&[kind, &repository.everybody, name.as_bytes()])
    }

    fn what_manifest(&self, repository: &Mirrored, selector: &Selector) -> Hash {
        self.what(repository, b"manifest", &selector.to_string())
    }

    /// A failure of Larder's own, told to the log in full and to the client in general.
    fn broken(&self, what: &'static str, error: &crate::store::StoreError) -> Miss {
        tracing::warn!(error = chain(error), class = %error.class(), "{what}");
        Miss::here("the mirror's store cannot do it now", error.class())
    }
}
