//! Manifests and tags: fresh from memory, else by one question to the upstream for all who ask.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderValue;

use super::{
    Ask, CacheStatus, Content, Inner, Mirror, Miss, Mode,
    reader::Reader,
    repository::{Known, Mirrored},
};
use super::{IMPATIENCE, PATIENCE};
use crate::{
    blocking,
    class::{Class, chain},
    digest::Digest,
    oci::{Descriptor, Document, Selector, Tag, manifest},
    pull::{Probed, RawManifest},
    registry::Budget,
    store::Blob,
};

/// A manifest to answer with.
pub struct ManifestAnswer {
    /// Its digest.
    pub digest: Digest,
    /// The upstream's Content-Type.
    pub media_type: HeaderValue,
    /// Its exact bytes.
    pub content: Content,
    /// Whether the upstream sent them just now.
    pub sent: bool,
    /// How it came.
    pub status: CacheStatus,
}

/// What a question to the upstream brought.
#[derive(Clone)]
pub(super) struct Fetched {
    digest: Digest,
    media_type: HeaderValue,
    /// The bytes, unless the store had them.
    bytes: Option<Bytes>,
    /// It had been obtained in this repository before.
    obtained: bool,
    /// The store has them now.
    kept: bool,
    /// The question was one that others had put already.
    collapsed: bool,
}

impl Mirror {
    /// A manifest by tag or digest.
    pub async fn manifest(&self, ask: &Ask<'_>, selector: &Selector) -> Result<ManifestAnswer, Miss> {
        let inner = &self.0;
        let (repository, reader) = inner.enter(ask).await?;
        let now = inner.clock.now();
        let mark = inner.readers.get(&reader.id);
        let granted = mark.is_some_and(|mark| mark.is_fresh(now));
        if granted
            && let Some(digest) = fresh_digest(&repository, selector, now)
            && let Some(media_type) = repository.manifest(&digest)
            && let Some(blob) = inner.held(&digest).await?
        {
            let (content, status) = (Content::Held(blob), CacheStatus::Hit);
            return Ok(ManifestAnswer { digest, media_type, content, sent: false, status });
        }
        let asked = inner.ask_manifest(&repository, &reader, selector, granted).await;
        asked.map_err(|miss| inner.who_asks(&repository, &reader, miss))
    }
}

/// The digest that needs no question: the one that was asked for, or that of a tag within its time.
fn fresh_digest(repository: &Mirrored, selector: &Selector, now: u64) -> Option<Digest> {
    match selector {
        Selector::Digest(digest) => Some(*digest),
        Selector::Tag(tag) => fresh_tag(repository, tag, now).map(|known| known.digest),
    }
}

fn fresh_tag(repository: &Mirrored, tag: &Tag, now: u64) -> Option<Known> {
    repository.tag(tag).filter(|known| known.is_fresh(repository.upstream.tag_ttl(tag), now))
}

impl Inner {
    /// A manifest that cannot be answered from memory at once.
    async fn ask_manifest(
        self: &Arc<Self>,
        repository: &Arc<Mirrored>,
        reader: &Reader,
        selector: &Selector,
        granted: bool,
    ) -> Result<ManifestAnswer, Miss> {
        let now = self.clock.now();
        let what = self.what_manifest(repository, selector);
        if let Some(miss) = self.negatives.get(&what, &reader.id, now) {
            return Err(miss);
        }
        // Whether the answer may say `hit`: only for what this reader had been shown before.
        let shown = self.readers.get(&reader.id).is_some();
        let fallback = self.fallback(repository, reader, selector).await?;
        let health = &repository.upstream.health;
        let key = self.readers.hash(&[b"check", &reader.id, selector.to_string().as_bytes()]);
        if let Some(stale) = &fallback
            && health.is_failing()
        {
            let asks = health.may_probe(now);
            // Where it failed long ago, whoever asks it waits for the answer, and who wants the same waits too: what is
            // held may be as old as that.
            if health.failed_lately(now) || !asks && !self.checks.has(&key) {
                if asks {
                    self.checks.begin(key, || self.check(repository, reader, selector, granted, IMPATIENCE));
                }
                let status = match stale.overdue {
                    0 => CacheStatus::Hit,
                    seconds => CacheStatus::HitStale(seconds),
                };
                return Ok(stale.answer(status));
            }
        }
        let patience = if fallback.is_some() { IMPATIENCE } else { PATIENCE };
        let check = || self.check(repository, reader, selector, granted, patience);
        let (result, began) = self.checks.run(key, check).await;
        let result = result.unwrap_or_else(|| Err(Miss::here("the question to the upstream failed", Class::Limit)));
        let fetched = match (result, fallback) {
            (Ok(fetched), _) => fetched,
            (Err(miss), Some(stale)) if miss.is_failure() => {
                let status = if stale.overdue == 0 { CacheStatus::Hit } else { miss.as_stale() };
                return Ok(stale.answer(status));
            }
            (Err(miss), _) => return Err(miss),
        };
        let Fetched { digest, media_type, bytes, obtained, kept, collapsed } = fetched;
        if let Some(bytes) = bytes {
            let status = match began && !collapsed {
                true if kept => CacheStatus::Stored,
                true => CacheStatus::Miss,
                false => CacheStatus::Collapsed,
            };
            // A slow reader must not keep them in memory.
            let blob = if kept { self.held(&digest).await.ok().flatten() } else { None };
            let content = blob.map_or(Content::Bytes(bytes), Content::Held);
            return Ok(ManifestAnswer { digest, media_type, content, sent: true, status });
        }
        let status = if shown && obtained { CacheStatus::Hit } else { CacheStatus::Stored };
        match self.held(&digest).await? {
            Some(blob) => Ok(ManifestAnswer { digest, media_type, content: Content::Held(blob), sent: false, status }),
            // Evicted, or found damaged, since a moment ago.
            None => Err(Miss::here("the manifest was lost just now", Class::Disk)),
        }
    }

    /// What may be served should the upstream fail.
    async fn fallback(
        self: &Arc<Self>,
        repository: &Mirrored,
        reader: &Reader,
        selector: &Selector,
    ) -> Result<Option<Fallback>, Miss> {
        let now = self.clock.now();
        let allowed = self.readers.get(&reader.id).is_some_and(|mark| reader.may_read_offline(mark, now));
        if !allowed {
            return Ok(None);
        }
        let (digest, overdue) = match selector {
            Selector::Digest(digest) => (*digest, 0),
            Selector::Tag(tag) => {
                let ttl = repository.upstream.tag_ttl(tag);
                let limit = ttl.saturating_add(repository.upstream.stale_if_error());
                match repository.tag(tag).filter(|known| known.is_fresh(limit, now)) {
                    Some(known) if known.is_fresh(ttl, now) => (known.digest, 0),
                    Some(known) => (known.digest, known.overdue(ttl, now).max(1)),
                    None => return Ok(None),
                }
            }
        };
        let Some(media_type) = repository.manifest(&digest) else { return Ok(None) };
        let blob = self.held(&digest).await?;
        Ok(blob.map(|blob| Fallback { digest, media_type, content: Content::Held(blob), overdue }))
    }

    /// Asks the upstream: where the selector leads, whether this reader may read it, and for its bytes if they are not
    /// held. Notes what it learns.
    fn check(
        self: &Arc<Self>,
        repository: &Arc<Mirrored>,
        reader: &Reader,
        selector: &Selector,
        granted: bool,
        patience: Duration,
    ) -> impl Future<Output = Result<Fetched, Miss>> + Send + 'static {
        let (inner, repository) = (Arc::clone(self), Arc::clone(repository));
        let (reader, selector) = (reader.clone(), selector.clone());
        async move {
            let deadline = tokio::time::Instant::now() + patience;
            let (digest, found) = match &selector {
                Selector::Digest(digest) if granted && repository.manifest(digest).is_some() => (*digest, None),
                // Its GET is the question, and the answer is good for everybody who asks the same way. What is held
                // without having been obtained here is asked for by HEAD, also where a manifest names it: a layer's
                // bytes may look like a manifest, and then name what is not this repository's.
                Selector::Digest(digest)
                    if (granted || repository.upstream.mode() != Mode::PassThrough)
                        && inner.held(digest).await?.is_none() =>
                {
                    (*digest, None)
                }
                Selector::Tag(tag) if granted && fresh_tag(&repository, tag, inner.clock.now()).is_some() => {
                    let known = fresh_tag(&repository, tag, inner.clock.now());
                    let digest = known.map(|known| known.digest);
                    (digest.ok_or_else(|| Miss::not_found("the tag was forgotten just now"))?, None)
                }
                _ => {
                    let mut found = inner.probe(&repository, &reader, &selector, patience).await?;
                    if let Some(raw) = found.manifest.take() {
                        let fetched = inner.keep(&repository, raw).await;
                        if let Selector::Tag(tag) = &selector {
                            inner.note_tag(&repository, tag, fetched.digest).await;
                        }
                        return Ok(fetched);
                    }
                    (found.digest, Some(found))
                }
            };
            let left = deadline.saturating_duration_since(tokio::time::Instant::now()).max(Duration::from_secs(1));
            let fetched = inner.content(&repository, &reader, digest, found.as_ref(), left).await;
            if let Selector::Tag(tag) = &selector {
                match &fetched {
                    Ok(_) => inner.note_tag(&repository, tag, digest).await,
                    // Said of the digest: who asks for the tag again asks for that.
                    Err(_) => {
                        let of = inner.what_manifest(&repository, &Selector::Digest(digest));
                        let what = inner.what_manifest(&repository, &selector);
                        inner.negatives.extend(&of, what, &reader.id, inner.clock.now());
                    }
                }
            }
            fetched
        }
    }

    /// A HEAD with the reader's own credential: its success is the grant.
    pub(super) async fn probe(
        self: &Arc<Self>,
        repository: &Arc<Mirrored>,
        reader: &Reader,
        selector: &Selector,
        patience: Duration,
    ) -> Result<Probed, Miss> {
        let way = self.way(repository, reader).await?;
        let question = self.puller.probe(&way, selector, Budget::within(patience));
        match self.put(&repository.upstream, patience, question).await? {
            Ok(found) => {
                repository.upstream.health.worked();
                self.grant(reader.id, reader).await;
                Ok(found)
            }
            Err(error) => {
                let known = match selector {
                    Selector::Tag(tag) => repository.tag(tag).is_some(),
                    Selector::Digest(digest) => repository.manifest(digest).is_some(),
                };
                let what = self.what_manifest(repository, selector);
                let miss = self.refused(repository, reader, what, known, &error).await;
                if let (Selector::Tag(tag), Miss::NotFound { class: Class::NotFound, .. }) = (selector, &miss) {
                    self.forget_tag(repository, tag).await;
                }
                Err(miss)
            }
        }
    }

    /// The bytes of a manifest that this reader may read: held and obtained here before, held and `found` here just now,
    /// or to be fetched.
    async fn content(
        self: &Arc<Self>,
        repository: &Arc<Mirrored>,
        reader: &Reader,
        digest: Digest,
        found: Option<&Probed>,
        patience: Duration,
    ) -> Result<Fetched, Miss> {
        if let Some(blob) = self.held(&digest).await? {
            let known = repository.manifest(&digest);
            let obtained = known.is_some();
            let media_type = match (known, found) {
                (None, Some(found)) => self.link_held(repository, digest, found.media_type.as_deref(), blob).await?,
                (known, _) => known,
            };
            if let Some(media_type) = media_type {
                return Ok(Fetched { digest, media_type, bytes: None, obtained, kept: true, collapsed: false });
            }
        }
        let what = self.what_manifest(repository, &Selector::Digest(digest));
        if let Some(miss) = self.negatives.get(&what, &reader.id, self.clock.now()) {
            return Err(miss);
        }
        // Where each asks as himself, what one is refused says nothing to another.
        let of: &[u8] = match repository.upstream.mode() {
            Mode::PassThrough => &reader.id,
            _ => &repository.everybody,
        };
        let key = self.readers.hash(&[b"fetch", of, digest.to_string().as_bytes()]);
        let (result, began) = self.fetches.run(key, || self.fetch(repository, reader, digest, patience)).await;
        let result = result.unwrap_or_else(|| Err(Miss::here("fetching the manifest failed", Class::Limit)));
        result.map(|fetched| Fetched { collapsed: !began, ..fetched })
    }

    fn fetch(
        self: &Arc<Self>,
        repository: &Arc<Mirrored>,
        reader: &Reader,
        digest: Digest,
        patience: Duration,
    ) -> impl Future<Output = Result<Fetched, Miss>> + Send + 'static {
        let (inner, repository, reader) = (Arc::clone(self), Arc::clone(repository), reader.clone());
        async move {
            let _lease = inner.store.lease(digest);
            let way = inner.way(&repository, &reader).await?;
            let selector = Selector::Digest(digest);
            let question = inner.puller.raw_manifest(&way, &selector, Budget::within(patience));
            match inner.put(&repository.upstream, patience, question).await? {
                Ok(raw) => {
                    repository.upstream.health.worked();
                    inner.grant(reader.id, &reader).await;
                    Ok(inner.keep(&repository, raw).await)
                }
                Err(error) => {
                    let what = inner.what_manifest(&repository, &selector);
                    let known = repository.manifest(&digest).is_some();
                    Err(inner.refused(&repository, &reader, what, known, &error).await)
                }
            }
        }
    }

    /// Records a manifest that came.
    async fn keep(self: &Arc<Self>, repository: &Arc<Mirrored>, raw: RawManifest) -> Fetched {
        let RawManifest { digest, media_type, bytes, document, kept } = raw;
        let stated = media_type.or_else(|| document.as_ref().map(|document| document.media_type().to_string()));
        let media_type = stated.and_then(|text| HeaderValue::try_from(text).ok());
        let media_type = media_type.unwrap_or(HeaderValue::from_static("application/json"));
        // Passed on as it is, whatever it is: what a kind that cannot be read names is asked for one by one.
        let refers_to = document.map_or(Vec::new(), |document| named(&document));
        self.link(repository, digest, media_type.clone(), refers_to).await;
        Fetched { digest, media_type, bytes: Some(bytes), obtained: false, kept, collapsed: false }
    }

    /// Records what a manifest that is held is, by its upstream's Content-Type or by itself, and what it names; `None`
    /// where it is none that Larder can read.
    async fn link_held(
        self: &Arc<Self>,
        repository: &Arc<Mirrored>,
        digest: Digest,
        stated: Option<&str>,
        blob: Blob,
    ) -> Result<Option<HeaderValue>, Miss> {
        if blob.len() > manifest::MAX_BYTES as u64 {
            return Ok(None);
        }
        let read = blocking::io(move || blob.to_vec()).await;
        let bytes = read.map_err(|error| Miss::here(error.to_string(), Class::Disk))?;
        let Ok(document) = Document::parse(&bytes, stated) else { return Ok(None) };
        let media_type = HeaderValue::from_str(stated.unwrap_or(document.media_type()));
        let Ok(media_type) = media_type else { return Ok(None) };
        self.link(repository, digest, media_type.clone(), named(&document)).await;
        Ok(Some(media_type))
    }

    async fn link(
        self: &Arc<Self>,
        repository: &Arc<Mirrored>,
        digest: Digest,
        media_type: HeaderValue,
        refers_to: Vec<Digest>,
    ) {
        let (inner, repository) = (Arc::clone(self), Arc::clone(repository));
        let put = blocking::io(move || repository.put_manifest(&inner.store, &digest, media_type, refers_to)).await;
        if let Err(error) = put {
            tracing::warn!(%digest, error = chain(&error), class = %error.class(), "a manifest's links are not kept");
        }
    }

    async fn note_tag(self: &Arc<Self>, repository: &Arc<Mirrored>, tag: &Tag, digest: Digest) {
        if repository.set_tag(tag, digest, self.clock.now()) {
            self.save_tag(repository, tag).await;
        }
    }

    pub(super) async fn forget_tag(self: &Arc<Self>, repository: &Arc<Mirrored>, tag: &Tag) -> bool {
        let there = repository.forget_tag(tag);
        if there {
            self.save_tag(repository, tag).await;
        }
        there
    }

    async fn save_tag(self: &Arc<Self>, repository: &Arc<Mirrored>, tag: &Tag) {
        let (inner, repository, tag) = (Arc::clone(self), Arc::clone(repository), tag.clone());
        if let Err(error) = blocking::io(move || repository.save_tag(&inner.store, &tag)).await {
            tracing::warn!(error = chain(&error), class = %error.class(), "a tag is not kept over a restart");
        }
    }
}

/// What a manifest names, and as what.
pub(super) fn descriptors(document: &Document) -> impl Iterator<Item = &Descriptor> {
    let (image, index) = match document {
        Document::Image(image) => (Some(image), None),
        Document::Index(index) => (None, Some(index)),
    };
    let of_image = image.into_iter().flat_map(|image| image.layers.iter().chain([&image.config]));
    of_image.chain(index.into_iter().flat_map(|index| &index.manifests))
}

/// What a manifest names, each once.
fn named(document: &Document) -> Vec<Digest> {
    let mut digests: Vec<Digest> = descriptors(document).map(|descriptor| descriptor.digest).collect();
    digests.sort_unstable();
    digests.dedup();
    digests
}

/// Something held that the reader had been shown.
struct Fallback {
    digest: Digest,
    media_type: HeaderValue,
    content: Content,
    /// Past its time by so many seconds.
    overdue: u64,
}

impl Fallback {
    fn answer(&self, status: CacheStatus) -> ManifestAnswer {
        ManifestAnswer {
            digest: self.digest,
            media_type: self.media_type.clone(),
            content: self.content.clone(),
            sent: false,
            status,
        }
    }
}
