//! Filling: the one task that fetches a blob into the store, whoever reads it meanwhile.
//!
//! **Promise.** One fill at a time for a digest in this process (but see below), whatever the number of askers; it
//! outlives the one who began it and is never slowed by a slow reader. Nothing gets its name in the store, and the
//! blob's last [`HELD_BACK`] bytes reach nobody, before size and digest are right; of a blob below [`STREAMED_FROM`]
//! nothing does, nor of a larger one while its askers wait for the digest ([`Ask::hold`](super::Ask::hold)).
//!
//! **Sources.** An upstream that dies or falls silent is asked once more for the rest (the client does that, by Range);
//! then the next source goes on at that byte, the hash being kept. Wrong bytes end the fill, nothing is kept, and the
//! sources that gave them are marked for `MARKED_FOR`.
//!
//! **Nobody there.** A fill that nobody has read for `GRACE` is given up, unless half of it has come or no more than
//! `WORTH_FINISHING` are left.
//!
//! **Disk full.** A fill that streams goes on without the disk (`source`); what cannot be kept is passed
//! on all the same, and verified. Askers that come too late for the bytes in memory are filled for alone: so are, also
//! with room on the disk, those who may not share ([`Puller::blob`]).
//!
//! **Memory.** A fill holds two batches of `BATCH`; so many are under way and no more (`places`), the others wait. Of those
//! that go on in memory there are `IN_MEMORY_AT_ONCE` at most, each counted until nobody can read its bytes any more.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    PullError, Puller, Way,
    places::Places,
    source::{Coming, Ending, Source},
};
use crate::{
    blocking,
    class::Class,
    digest::{Digest, Hasher},
    flight::fill::{Board, Reader, Writer},
    oci::Registry,
    registry::{Budget, Transfer, Transport},
    store::{Blob, Durability, Ingest, StoreError},
};

/// From this size on a blob is answered while it comes; a smaller one when it is there.
pub const STREAMED_FROM: u64 = 1 << 20;
/// The bytes at a blob's end that wait for its digest.
pub const HELD_BACK: u64 = 64 << 10;
/// Bytes that are written and hashed at once, if so many are there.
const BATCH: usize = 256 << 10;
/// Fills at once that go on without the disk, and so in memory.
const IN_MEMORY_AT_ONCE: usize = 32;
/// How long a fill goes on with nobody there.
const GRACE: Duration = Duration::from_secs(3);
/// With no more than this left a fill is finished, whether anybody is there or not.
const WORTH_FINISHING: u64 = 8 << 20;
/// How long a source that gave wrong bytes for a digest is not asked for it.
const MARKED_FOR: Duration = Duration::from_secs(30);
/// How many such marks are kept.
const MAX_MARKS: usize = 4096;

/// Whom a fill is for: everybody, or one asker alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    All,
    Of(Arc<Way>),
    One(u64),
}

/// What the first asker tells the others.
pub(super) struct Meta {
    /// Its way.
    pub way: Arc<Way>,
    /// It goes on where the disk is full.
    pub streams: bool,
    /// Somebody needs the blob to survive a power loss.
    pub durable: AtomicBool,
    /// It waits for other fills to end.
    pub queued: AtomicBool,
    /// Who is about to read it.
    pub coming: Arc<Coming>,
}

impl Meta {
    /// What an asker for what streams (or for a blob that must last) tells.
    pub fn new(way: &Arc<Way>, streams: bool) -> Self {
        let (durable, queued) = (AtomicBool::new(!streams), AtomicBool::new(true));
        Self { way: Arc::clone(way), streams, durable, queued, coming: Arc::default() }
    }
}

/// A blob whose bytes were right.
#[derive(Clone, Debug)]
pub(super) struct Landed {
    /// It, or why it could not be kept.
    pub kept: Result<Blob, Arc<PullError>>,
}

type Outcome = Result<Landed, Arc<PullError>>;
pub(super) type FillReader = Reader<Meta, Source, Outcome>;
pub(super) type FillWriter = Writer<(Lane, Digest), Meta, Source, Outcome>;

/// What all fills share.
pub(super) struct Fills {
    pub board: Board<(Lane, Digest), Meta, Source, Outcome>,
    pub marks: Marks,
    places: Places,
    memory: Arc<Semaphore>,
    pub alone: AtomicU64,
}

impl Default for Fills {
    fn default() -> Self {
        Self {
            board: Board::default(),
            marks: Marks::default(),
            places: Places::default(),
            memory: Arc::new(Semaphore::new(IN_MEMORY_AT_ONCE)),
            alone: AtomicU64::new(0),
        }
    }
}

/// Which server is meant by a way, whoever asks.
pub(super) type Upstream = (Registry, Transport);

/// Sources that gave wrong bytes for a digest a moment ago, or broke off for good in the middle of it.
#[derive(Default)]
pub(super) struct Marks(Mutex<HashMap<(Upstream, Digest), Instant>>);

impl Marks {
    fn key(way: &Way, digest: Digest) -> (Upstream, Digest) {
        ((way.endpoint.registry.clone(), way.endpoint.transport.clone()), digest)
    }

    fn set(&self, way: &Way, digest: Digest) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if marks.len() >= MAX_MARKS {
            marks.retain(|_, until| *until > now);
        }
        if marks.len() < MAX_MARKS {
            marks.insert(Self::key(way, digest), now + MARKED_FOR);
        }
    }

    /// For how long this source is not asked for `digest`.
    pub fn left(&self, way: &Way, digest: Digest) -> Option<Duration> {
        let marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.is_empty() {
            return None;
        }
        let until = marks.get(&Self::key(way, digest))?;
        until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Asks this source again; whether it was marked.
    pub fn forget(&self, way: &Way, digest: Digest) -> bool {
        let until = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&Self::key(way, digest));
        until.is_some_and(|until| until > Instant::now())
    }
}

/// What a fill needs to know.
pub(super) struct Plan {
    pub digest: Digest,
    pub size: Option<u64>,
    /// In the order in which they are asked.
    pub sources: Vec<Arc<Way>>,
    /// For each source, counted anew.
    pub time: Duration,
    pub budget: Budget,
}

/// Runs a fill to its end, with nobody waiting for this future itself.
pub(super) async fn run(puller: Puller, writer: FillWriter, plan: Plan) {
    let progress = AtomicU64::new(0);
    let size = AtomicU64::new(u64::MAX);
    let outcome = {
        let filling = fill(&puller, &writer, &plan, &progress, &size);
        let deserted = async {
            loop {
                writer.until_read(false).await;
                if timeout(GRACE, writer.until_read(true)).await.is_ok() {
                    continue;
                }
                let (came, size) = (progress.load(Ordering::Relaxed), size.load(Ordering::Relaxed));
                let wanted = came >= size / 2 || size - came <= WORTH_FINISHING;
                if !wanted && writer.abandon() {
                    return came;
                }
                if wanted {
                    writer.until_read(true).await;
                }
            }
        };
        tokio::select! {
            biased;
            outcome = filling => outcome,
            came = deserted => {
                tracing::debug!(digest = %plan.digest, came, "a fill that nobody wants any more is given up");
                return;
            }
        }
    };
    if let Err(error) = &outcome {
        tracing::debug!(digest = %plan.digest, class = %error.class(), error = %crate::class::chain(error), "a fill failed");
    }
    writer.finish(outcome.map_err(Arc::new));
}

async fn fill(
    puller: &Puller,
    writer: &FillWriter,
    plan: &Plan,
    progress: &AtomicU64,
    size: &AtomicU64,
) -> Result<Landed, PullError> {
    let fills = &puller.fills;
    let Some(_place) = fills.places.take(&writer.meta().way).await else { return Err(PullError::Lost(plan.digest)) };
    writer.meta().queued.store(false, Ordering::Relaxed);
    let mut keeping: Option<Keeping> = None;
    let mut failure = None;
    let mut asked: Vec<&Arc<Way>> = Vec::new();
    for way in &plan.sources {
        // A reconcile has an interval to wait out as it is, and tells what it met.
        if writer.meta().streams && fills.marks.left(way, plan.digest).is_some() {
            continue;
        }
        let offset = keeping.as_ref().map_or(0, |k| k.offset);
        let known = keeping.as_ref().map(|k| k.source.size).or(plan.size);
        let budget = Budget { deadline: Instant::now() + plan.time, ..plan.budget };
        let transfer =
            puller.client.open_blob(&way.endpoint, &way.repository, plan.digest, known, offset, budget).await;
        let mut transfer = match transfer {
            Ok(transfer) => transfer,
            Err(error) => {
                // What the first source said is what the asker has to know.
                failure.get_or_insert(error);
                continue;
            }
        };
        asked.push(way);
        let keeping = match &mut keeping {
            Some(keeping) => keeping,
            None => {
                size.store(transfer.size(), Ordering::Relaxed);
                keeping.insert(Keeping::begin(puller, writer, plan.digest, transfer.size()).await?)
            }
        };
        match keeping.take_all(writer, &mut transfer, progress).await? {
            Ok(()) => {
                failure = None;
                break;
            }
            Err(error) => failure = Some(error),
        }
    }
    if let Some(error) = failure {
        // Clients have begun to read, or were answered after a while of waiting for that, and come back for the rest at
        // once: they must go on to their next source then, not find the same silence here until they give up.
        let silent = error.is_timeout();
        if keeping.is_some_and(|keeping| keeping.offset > 0 || silent) && size.load(Ordering::Relaxed) >= STREAMED_FROM
        {
            for way in asked {
                fills.marks.set(way, plan.digest);
            }
        }
        return Err(error.into());
    }
    let Some(keeping) = keeping else {
        let way = &writer.meta().way;
        return Err(puller.marked(way, plan.digest).unwrap_or(PullError::Lost(plan.digest)));
    };
    let landed = keeping.finish(writer.meta()).await;
    match &landed {
        Ok(_) => {
            let (grants, ways, digest) = (puller.grants.clone(), plan.sources[..1].to_vec(), plan.digest);
            // Without the mark the reconciler fetches it once more.
            let _ = blocking::io(move || ways.iter().try_for_each(|way| grants.mark_way(&way.endpoint, &digest))).await;
        }
        Err(error) if error.class() == Class::Digest => {
            for way in asked {
                fills.marks.set(way, plan.digest);
            }
            tracing::warn!(digest = %plan.digest, upstream = %writer.meta().way.endpoint.registry, %error, "an upstream sent wrong bytes");
        }
        Err(_) => {}
    }
    landed
}

/// Where the bytes go.
struct Keeping<'a> {
    puller: &'a Puller,
    digest: Digest,
    source: Arc<Source>,
    offset: u64,
    sink: Sink,
}

enum Sink {
    Disk(Ingest),
    /// Nothing is kept; the hash still has to be right.
    Through {
        hasher: Hasher,
        why: Arc<PullError>,
        ending: Ending,
    },
    /// In between, and after a failure.
    Nothing,
}

impl<'a> Keeping<'a> {
    async fn begin(puller: &'a Puller, writer: &FillWriter, digest: Digest, size: u64) -> Result<Self, PullError> {
        let store = puller.store.clone();
        let streams = writer.meta().streams;
        let (coming, through) = (Arc::clone(&writer.meta().coming), Arc::clone(&writer.meta().coming));
        let begun = blocking::io(move || {
            if streams && store.health().degraded {
                return Err(StoreError::Degraded { root: store.root().to_path_buf() });
            }
            let ingest = store.ingest(digest, Some(size))?;
            let landing = ingest.landing()?;
            Ok((Source::on_disk(size, landing, coming), ingest))
        })
        .await;
        let (source, sink) = match begun {
            Ok((source, ingest)) => (Arc::new(source), Sink::Disk(ingest)),
            Err(error) if streams && error.class() == Class::Disk => {
                let Some(place) = pass_through(puller, writer.meta(), &error).await else { return Err(error.into()) };
                let source = Arc::new(Source::in_memory(size, through, place));
                let sink = Sink::through(&source, Hasher::new(digest.algorithm()), error);
                (source, sink)
            }
            Err(error) => return Err(error.into()),
        };
        writer.begin(Arc::clone(&source));
        Ok(Self { puller, digest, source, offset: 0, sink })
    }

    /// All that comes of `transfer`. The outer error ends the fill, the inner one this source.
    async fn take_all(
        &mut self,
        writer: &FillWriter,
        transfer: &mut Transfer,
        progress: &AtomicU64,
    ) -> Result<Result<(), crate::registry::RegistryError>, PullError> {
        let mut next = gather(transfer).await;
        loop {
            let batch = match next {
                Ok(batch) if batch.is_empty() => return Ok(Ok(())),
                Ok(batch) => batch,
                Err(error) => return Ok(Err(error)),
            };
            let (written, gathered) = tokio::join!(self.write(writer, batch), gather(transfer));
            written?;
            progress.store(self.offset, Ordering::Relaxed);
            next = gathered;
        }
    }

    /// Takes the next bytes, and lets them be read: not only when more have come, which may be late.
    async fn write(&mut self, writer: &FillWriter, batch: Vec<Bytes>) -> Result<(), PullError> {
        let length: u64 = batch.iter().map(|data| data.len() as u64).sum();
        match std::mem::replace(&mut self.sink, Sink::Nothing) {
            Sink::Disk(mut ingest) => {
                let (written, batch) = blocking::io(move || {
                    let written = batch.iter().try_for_each(|data| ingest.write(data));
                    (written.map(|()| ingest), batch)
                })
                .await;
                match written {
                    Ok(ingest) => self.sink = Sink::Disk(ingest),
                    Err(error) if writer.meta().streams && error.class() == Class::Disk => {
                        self.overflow(writer, error, batch).await?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Sink::Through { mut hasher, why, ending } => {
                for data in batch {
                    hasher.update(&data);
                    self.source.push(data).await;
                }
                self.sink = Sink::Through { hasher, why, ending };
            }
            Sink::Nothing => return Err(PullError::Lost(self.digest)),
        }
        self.offset += length;
        if self.source.size >= STREAMED_FROM {
            writer.reach(self.offset.min(self.source.size - HELD_BACK));
        }
        Ok(())
    }

    /// The disk takes no more: hashes what it has taken again, and goes on in memory.
    async fn overflow(&mut self, writer: &FillWriter, error: StoreError, batch: Vec<Bytes>) -> Result<(), PullError> {
        let (source, digest, end) = (Arc::clone(&self.source), self.digest, self.offset);
        let hasher = blocking::io(move || {
            let mut hasher = Hasher::new(digest.algorithm());
            let mut buffer = vec![0; BATCH];
            let mut at = 0;
            while at < end {
                let wanted = buffer.len().min((end - at) as usize);
                source.read(at, &mut buffer[..wanted])?;
                hasher.update(&buffer[..wanted]);
                at += wanted as u64;
            }
            Ok::<_, super::source::ReadError>(hasher)
        })
        .await;
        let Ok(mut hasher) = hasher else { return Err(error.into()) };
        let Some(place) = pass_through(self.puller, writer.meta(), &error).await else { return Err(error.into()) };
        self.source.overflow(self.offset, place);
        // Askers who wait for the digest must not: what memory has goes by. They are on their way, so the bytes wait.
        writer.begin(Arc::clone(&self.source));
        for data in &batch {
            hasher.update(data);
        }
        self.sink = Sink::through(&self.source, hasher, error);
        for data in batch {
            self.source.push(data).await;
        }
        Ok(())
    }

    /// Compares the digest, and gives the blob its name.
    async fn finish(self, meta: &Meta) -> Result<Landed, PullError> {
        match self.sink {
            Sink::Disk(ingest) => {
                let durability = if meta.durable.load(Ordering::Relaxed) { Durability::Now } else { Durability::Soon };
                match blocking::io(move || ingest.commit(durability)).await {
                    Ok(blob) => Ok(Landed { kept: Ok(blob) }),
                    // The digest is compared before the disk is asked for a name.
                    Err(error) if error.class() == Class::Disk => Ok(Landed { kept: Err(Arc::new(error.into())) }),
                    Err(error) => Err(error.into()),
                }
            }
            Sink::Through { hasher, why, .. } => {
                let actual = hasher.finish();
                if actual != self.digest {
                    return Err(StoreError::WrongDigest { expected: self.digest, actual: Box::new(actual) }.into());
                }
                Ok(Landed { kept: Err(why) })
            }
            Sink::Nothing => Err(PullError::Lost(self.digest)),
        }
    }
}

impl Sink {
    fn through(source: &Arc<Source>, hasher: Hasher, why: StoreError) -> Self {
        Self::Through { hasher, why: Arc::new(why.into()), ending: Ending::of(source) }
    }
}

/// Waits for a place among those that go on without the disk.
async fn pass_through(puller: &Puller, meta: &Meta, why: &StoreError) -> Option<OwnedSemaphorePermit> {
    tracing::warn!(error = %crate::class::chain(why), "a blob is passed through without being kept");
    meta.queued.store(true, Ordering::Relaxed);
    let place = Arc::clone(&puller.fills.memory).acquire_owned().await;
    meta.queued.store(false, Ordering::Relaxed);
    place.ok()
}

/// The next bytes, and what else is there already; nothing at the end.
async fn gather(transfer: &mut Transfer) -> Result<Vec<Bytes>, crate::registry::RegistryError> {
    let mut batch = Vec::new();
    let Some(first) = transfer.next().await? else { return Ok(batch) };
    let mut gathered = first.len();
    batch.push(first);
    while gathered < BATCH
        && let Some(data) = transfer.next_now()?
    {
        gathered += data.len();
        batch.push(data);
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        flight::fill::Joined,
        pull::{Ask, How, Opened},
        registry::{Client, Config, Credentials, Endpoint},
        store::Store,
    };

    /// Longer than any test.
    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn an_asker_that_waits_for_the_digest_is_woken_where_the_disk_fills_up_before_a_byte_has_gone_by() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let puller = Puller::new(store.clone(), Client::new(Config::default()).unwrap()).unwrap();
        let endpoint = Endpoint {
            registry: "r.example".parse().unwrap(),
            transport: Transport::default(),
            credentials: Credentials::Anonymous,
        };
        let way = Arc::new(Way { endpoint, repository: "a/b".parse().unwrap() });
        let piece = Bytes::from(vec![7; super::super::source::WINDOW / 2]);
        let (digest, size) = (Digest::sha256(b"a blob"), 5 * piece.len() as u64);

        let key = (Lane::All, digest);
        let Joined::First(writer, _first) = puller.fills.board.join(&key, || Meta::new(&way, true)) else {
            panic!("nobody was at it")
        };
        let mut keeping = Keeping::begin(&puller, &writer, digest, size).await.unwrap();
        keeping.write(&writer, vec![piece.clone()]).await.unwrap();
        let ask = Ask {
            way,
            digest,
            size: None,
            entitled: true,
            further: Vec::new(),
            hold: HOUR,
            budget: Budget::within(HOUR),
        };
        let mut opening = Box::pin(puller.open(&ask));
        let joined = async {
            while writer.readers() < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            biased;
            opened = &mut opening => panic!("{opened:?} before the end"),
            () = joined => {}
        }
        let full = StoreError::Degraded { root: root.path().to_path_buf() };
        keeping.overflow(&writer, full, vec![piece.clone()]).await.unwrap();
        // As `write` does after it.
        keeping.offset += piece.len() as u64;
        // More than memory holds: they have to wait for the asker.
        let writing = async {
            for _ in 0..2 {
                keeping.write(&writer, vec![piece.clone()]).await.unwrap();
            }
        };
        let reading = async {
            let (opened, how) = opening.await.unwrap();
            assert_eq!(how, How::Passed);
            let Opened::Filling(mut follower) = opened else { panic!("{opened:?}") };
            let mut all = Vec::new();
            while all.len() < 4 * piece.len() {
                let at = all.len() as u64;
                let readable = follower.readable(at).await.unwrap();
                all.extend_from_slice(&follower.piece(at, readable).unwrap());
            }
            all
        };
        let (all, ()) = tokio::join!(reading, writing);
        assert!(all.len() == 4 * piece.len() && all.iter().all(|byte| *byte == 7));
    }
}
