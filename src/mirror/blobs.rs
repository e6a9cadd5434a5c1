//! Blobs: whom a held one may be shown to, and the fills of those that are not held.

use std::sync::Arc;

use super::{
    Ask, CacheStatus, IMPATIENCE, Inner, Mirror, Miss, PATIENCE,
    reader::Reader,
    readers::Hash,
    repository::Mirrored,
    silence::{WINDOW, is_timeout},
};
use crate::{
    blocking,
    class::{Class, chain},
    digest::Digest,
    oci::{Document, Selector},
    pull::{self, Follower, How, Opened, PullError},
    registry::{Budget, RegistryError},
    store::Blob,
};

/// How long an upstream may send nothing of a blob before it is asked for the rest, and again before the answer ends:
/// 10 s in all (mirror.md section 2, row 17).
const SILENCE: std::time::Duration = std::time::Duration::from_millis(4_500);

/// For how long after a fill began nothing of it is given out, unless it ends. What a node's own network brings in that
/// time, 25 MB at 100 MB/s, is verified before any client sees a byte of it: wrong bytes are a status then. The fill does
/// not wait meanwhile, and a quarter of a second's bytes go out at once after it, so that a pull takes no longer.
const HOLD: std::time::Duration = std::time::Duration::from_millis(250);

/// A blob to answer with.
#[derive(Debug)]
pub struct BlobAnswer {
    /// Its length in bytes.
    pub size: u64,
    /// Its bytes.
    pub source: BlobSource,
    /// How it came.
    pub status: CacheStatus,
}

/// Where a blob's bytes are.
#[derive(Debug)]
pub enum BlobSource {
    /// Held by the store.
    Held(Blob),
    /// On their way.
    Filling(Follower),
    /// At the upstream; nobody asked for them.
    Upstream,
}

/// What a request for a blob found out before any question.
#[derive(Clone, Copy)]
struct Standing {
    /// A manifest obtained in the repository that names it.
    linked: Option<Digest>,
    /// The upstream gave it out of the repository.
    given: bool,
    /// The reader may read the repository now.
    entered: bool,
    /// The mark for this blob alone.
    alone: Hash,
    /// The reader may have it now.
    granted: bool,
    /// The reader was shown it before, if perhaps not lately.
    known: bool,
    /// The reader may have it while the upstream cannot be asked.
    offline: bool,
}

impl Mirror {
    /// A blob. With `head` its bytes are not wanted, and not fetched.
    pub async fn blob(&self, ask: &Ask<'_>, digest: &Digest, head: bool) -> Result<BlobAnswer, Miss> {
        let inner = &self.0;
        let (repository, reader) = inner.enter(ask).await?;
        let now = inner.clock.now();
        let granted = inner.readers.get(&reader.id).is_some_and(|mark| mark.is_fresh(now));
        if granted
            && repository.linked(digest).is_some_and(|link| link.given)
            && let Some(blob) = inner.held(digest).await?
        {
            return Ok(held(blob, CacheStatus::Hit));
        }
        // On the heap: most requests end above, and none is to carry the room for what follows.
        let asked = Box::pin(inner.ask_blob(&repository, &reader, digest, head)).await;
        asked.map_err(|miss| inner.who_asks(&repository, &reader, miss))
    }
}

fn held(blob: Blob, status: CacheStatus) -> BlobAnswer {
    BlobAnswer { size: blob.len(), source: BlobSource::Held(blob), status }
}

impl Inner {
    fn standing(&self, repository: &Mirrored, reader: &Reader, digest: &Digest, now: u64) -> Standing {
        let link = repository.linked(digest);
        let given = link.is_some_and(|link| link.given || self.was_given(repository, digest));
        let of_repository = self.readers.get(&reader.id);
        let alone = reader.blob(&self.readers, digest);
        let refused = self.readers.get(&reader.refused(&self.readers));
        let single = self.readers.get(&alone).filter(|mark| refused.is_none_or(|refused| mark.when > refused.when));
        let marks = [of_repository.filter(|_| given), single];
        let any = |test: &dyn Fn(super::readers::Mark) -> bool| marks.into_iter().flatten().any(test);
        Standing {
            linked: link.map(|link| link.manifest),
            given,
            entered: of_repository.is_some_and(|mark| mark.is_fresh(now)),
            alone,
            granted: any(&|mark| mark.is_fresh(now)),
            known: any(&|_| true),
            offline: any(&|mark| reader.may_read_offline(mark, now)),
        }
    }

    /// Whether the upstream gave the blob out of the repository before this process began.
    fn was_given(&self, repository: &Mirrored, digest: &Digest) -> bool {
        let registry = repository.upstream.registry();
        let was = self.puller.grants().has_repository(registry, &repository.name, digest);
        if was {
            repository.note_given(digest);
        }
        was
    }

    /// The upstream gave the blob out of the repository to this reader.
    async fn give(self: &Arc<Self>, repository: &Arc<Mirrored>, reader: &Reader, digest: Digest, standing: Standing) {
        if standing.linked.is_some() && !standing.given {
            repository.note_given(&digest);
            let (inner, repository) = (Arc::clone(self), Arc::clone(repository));
            let mark = move || {
                let registry = repository.upstream.registry();
                inner.puller.grants().mark_repository(registry, &repository.name, &digest)
            };
            if let Err(error) = blocking::io(mark).await {
                tracing::warn!(%error, "a grant is not kept over a restart");
            }
        }
        if standing.linked.is_none() || !standing.entered {
            self.grant(standing.alone, reader).await;
        }
    }

    async fn ask_blob(
        self: &Arc<Self>,
        repository: &Arc<Mirrored>,
        reader: &Reader,
        digest: &Digest,
        head: bool,
    ) -> Result<BlobAnswer, Miss> {
        let now = self.clock.now();
        let standing = self.standing(repository, reader, digest, now);
        let what = self.what(repository, b"blob", &digest.to_string());
        if let Some(blob) = self.held(digest).await? {
            if standing.granted {
                return Ok(held(blob, CacheStatus::Hit));
            }
            if let Some(miss) = self.negatives.get(&what, &reader.id, now) {
                return Err(miss);
            }
            let health = &repository.upstream.health;
            if standing.offline && health.is_failing() && !health.may_probe(now) {
                return Ok(held(blob, CacheStatus::Hit));
            }
            let settled = self.settle(repository, reader, digest, &standing, what).await;
            return match settled {
                Ok(()) if standing.known => Ok(held(blob, CacheStatus::Hit)),
                // As if it had been fetched: whether it was held is not this reader's to know.
                Ok(()) => Ok(held(blob, CacheStatus::Stored)),
                Err(miss) if miss.is_failure() && standing.offline => Ok(held(blob, CacheStatus::Hit)),
                Err(miss) => Err(miss),
            };
        }
        if let Some(miss) = self.negatives.get(&what, &reader.id, now) {
            return Err(miss);
        }
        if head {
            let size = self.length(repository, reader, digest, standing, what).await?;
            return Ok(BlobAnswer { size, source: BlobSource::Upstream, status: CacheStatus::Miss });
        }
        self.fill(repository, reader, digest, &standing, what).await
    }

    /// Asks the upstream whether this reader may have a blob that is held: by the manifest that names it, where the
    /// upstream gave it out of this repository, else by the blob itself.
    async fn settle(
        self: &Arc<Self>,
        repository: &Arc<Mirrored>,
        reader: &Reader,
        digest: &Digest,
        standing: &Standing,
        what: Hash,
    ) -> Result<(), Miss> {
        let Some(manifest) = standing.linked.filter(|_| standing.given) else {
            return self.length(repository, reader, digest, *standing, what).await.map(drop);
        };
        let selector = Selector::Digest(manifest);
        let what = self.what_manifest(repository, &selector);
        if let Some(miss) = self.negatives.get(&what, &reader.id, self.clock.now()) {
            return Err(miss);
        }
        let patience = if standing.offline { IMPATIENCE } else { PATIENCE };
        let key = self.readers.hash(&[b"settle", &reader.id, manifest.to_string().as_bytes()]);
        let (inner, repository, reader) = (Arc::clone(self), Arc::clone(repository), reader.clone());
        let probe = || async move { inner.probe(&repository, &reader, &selector, patience).await.map(drop) };
        let (result, _) = self.settles.run(key, probe).await;
        result.unwrap_or_else(|| Err(Miss::here("the question to the upstream failed", Class::Limit)))
    }

    /// The length of a blob as the upstream gives it to this reader, which is also a grant for it.
    async fn length(
        self: &Arc<Self>,
        repository: &Arc<Mirrored>,
        reader: &Reader,
        digest: &Digest,
        standing: Standing,
        what: Hash,
    ) -> Result<u64, Miss> {
        let key = self.readers.hash(&[b"length", &standing.alone]);
        let (inner, repository, reader, digest) = (Arc::clone(self), Arc::clone(repository), reader.clone(), *digest);
        let ask = || async move {
            let way = inner.way(&repository, &reader).await?;
            let question = inner.puller.blob_length(&way, digest, Budget::within(PATIENCE));
            match inner.put(&repository.upstream, PATIENCE, question).await? {
                Ok(Some(size)) => {
                    repository.upstream.health.worked();
                    inner.give(&repository, &reader, digest, standing).await;
                    Ok(size)
                }
                Ok(None) => {
                    let miss = Miss::not_found("upstream said 404");
                    let span = repository.upstream.negative_ttl();
                    inner.negatives.put(what, reader.id, &miss, span, inner.clock.now());
                    Err(miss)
                }
                Err(error) => Err(inner.blob_refused(&repository, &reader, what, &error).await),
            }
        };
        let (result, _) = self.lengths.run(key, ask).await;
        result.unwrap_or_else(|| Err(Miss::here("the question to the upstream failed", Class::Limit)))
    }

    /// A blob's size by the manifest that names it, where that is held. An upstream need not state a length then, and
    /// one that states another is refused before any of its bytes (hardening.md section 2, R7 and R9).
    async fn stated_size(&self, repository: &Mirrored, digest: &Digest, standing: &Standing) -> Option<u64> {
        let manifest = standing.linked.filter(|manifest| manifest != digest)?;
        let media_type = repository.manifest(&manifest)?;
        // Whatever fails here: the upstream's word will do.
        let blob = self.held(&manifest).await.ok()??;
        let bytes = blocking::io(move || blob.to_vec()).await.ok()?;
        let document = Document::parse(&bytes, media_type.to_str().ok()).ok()?;
        super::manifests::descriptors(&document).find(|named| named.digest == *digest).map(|named| named.size)
    }

    /// Fetches a blob that is not held, or joins those who do.
    async fn fill(
        self: &Arc<Self>,
        repository: &Arc<Mirrored>,
        reader: &Reader,
        digest: &Digest,
        standing: &Standing,
        what: Hash,
    ) -> Result<BlobAnswer, Miss> {
        let wish = pull::Ask {
            way: self.way(repository, reader).await?,
            digest: *digest,
            size: self.stated_size(repository, digest, standing).await,
            entitled: standing.granted,
            further: Vec::new(),
            hold: HOLD,
            budget: Budget::within(PATIENCE).silence(SILENCE),
        };
        // What is on its way to somebody else need not be asked for.
        let opened = match standing.granted && self.puller.is_filling(digest) {
            true => self.puller.open(&wish).await,
            false => self.put(&repository.upstream, PATIENCE, self.puller.open(&wish)).await?,
        };
        match opened {
            Ok((opened, how)) => {
                repository.upstream.health.worked();
                if !standing.granted {
                    self.give(repository, reader, *digest, *standing).await;
                }
                let status = match how {
                    How::Hit if standing.known => CacheStatus::Hit,
                    How::Hit | How::Miss => CacheStatus::Stored,
                    How::Collapsed => CacheStatus::Collapsed,
                    How::Passed => CacheStatus::Miss,
                };
                Ok(match opened {
                    Opened::Held(blob) => held(blob, status),
                    Opened::Filling(follower) => {
                        BlobAnswer { size: follower.size(), source: BlobSource::Filling(follower), status }
                    }
                })
            }
            Err(error) => {
                tracing::debug!(%digest, error = chain(&error), "a blob cannot be filled");
                let miss = self.blob_refused(repository, reader, what, &error).await;
                // One that hangs while its upstream talks: not each request is to wait that long for it.
                if is_timeout(&error) {
                    self.negatives.put(what, reader.id, &miss, WINDOW, self.clock.now());
                }
                Err(miss)
            }
        }
    }

    /// What the upstream's failure or refusal means for a blob. The 401 or 403 of a host that the upstream led to, such
    /// as its storage, says nothing about who may read the repository: it is remembered of this blob alone.
    async fn blob_refused(
        self: &Arc<Self>,
        repository: &Arc<Mirrored>,
        reader: &Reader,
        what: Hash,
        error: &PullError,
    ) -> Miss {
        let upstream = &repository.upstream;
        let miss = Miss::from(error);
        let elsewhere = matches!(error.registry(), Some(RegistryError::Status { url, .. }) if !upstream.is_own(url));
        if !elsewhere || !miss.is_denial() {
            return self.refused(repository, reader, what, false, error).await;
        }
        tracing::debug!(upstream = upstream.name(), repository = %repository.name, error = chain(error), "a blob is refused where the upstream led to");
        upstream.health.worked();
        self.negatives.put(what, reader.id, &miss, upstream.negative_ttl(), self.clock.now());
        miss
    }
}
