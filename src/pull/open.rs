//! From a digest to bytes that can be read: what is held, what is coming, or what has to be fetched; and whether this
//! asker may have it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::time::timeout_at;

use super::{
    Follower, PullError, Puller, Way,
    fill::{self, FillReader, Landed, Lane, Meta, Plan, STREAMED_FROM},
    grants::Standing,
    source::Source,
};
use crate::{
    blocking,
    digest::Digest,
    flight::fill::{End, Joined},
    oci::Descriptor,
    registry::{Budget, RegistryError},
    store::{Blob, Lease},
};

/// How often an asker begins anew, because a fill that it joined was lost or failed for somebody else's reason.
const ROUNDS: usize = 4;

/// A wish for a blob.
#[derive(Clone, Debug)]
pub struct Ask {
    /// How this asker reaches its upstream, and who it is.
    pub way: Arc<Way>,
    /// The blob.
    pub digest: Digest,
    /// Its size, where known. Else the upstream says.
    pub size: Option<u64>,
    /// The asker is known to have a right to the blob (a manifest that it may read names it). Else one HEAD of the blob,
    /// in its own repository and with its own credential, decides over what is held or coming already.
    pub entitled: bool,
    /// Who else may have the bytes, in the order in which to ask, where the asker's own upstream fails.
    pub further: Vec<Arc<Way>>,
    /// For how long after a fill began nothing of it is given out, unless it ends: what has come by then is verified
    /// before anybody sees a byte, and whoever asked meets wrong bytes as an error. It is no wait for who comes later,
    /// nor for what passes through memory.
    pub hold: Duration,
    /// Until when there must be something to answer: what it begins is not ended by that, since others may join it, but
    /// by a silence as long as [`Budget::silence`], twice. A reader's wait has that limit in any case.
    pub budget: Budget,
}

/// What of a blob can be read, now or soon.
#[derive(Clone, Debug)]
pub enum Opened {
    /// All of it.
    Held(Blob),
    /// It is coming, or it came and could not be kept.
    Filling(Follower),
}

/// What it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It was held, and the asker known to be entitled.
    Hit,
    /// The upstream was asked: for the blob, or whether this asker may have it.
    Miss,
    /// The upstream is asked for the blob, but it cannot be kept.
    Passed,
    /// Somebody else's fill was joined.
    Collapsed,
}

/// How waiting for a fill that was joined ended.
enum Waited {
    Here(Opened),
    /// Begin anew.
    Again(Option<Arc<PullError>>),
    /// Begin anew, alone: the bytes have gone by.
    Late,
}

impl Puller {
    /// The blob as this asker may have it: held, or as it comes. However many ask at once, and whatever their ways are, it
    /// is fetched once. A blob below [`STREAMED_FROM`] is waited for; of a larger one the upstream's headers are.
    ///
    /// For upstreams that the operator configured: a HEAD that they answer with 200 is believed.
    ///
    /// Errors: class NotFound where the upstream says so, where the asker has no right, and where the upstream gave wrong
    /// bytes under this digest in the last 30 s ([`PullError::Marked`]); else the upstream's, or the disk's.
    pub async fn open(&self, ask: &Ask) -> Result<(Opened, How), PullError> {
        let digest = ask.digest;
        let mut entitled = ask.entitled;
        let mut asked = false;
        let mut last = None;
        let mut lane = Lane::All;
        for _ in 0..ROUNDS {
            if let Some(blob) = self.held(digest).await? {
                if !entitled {
                    self.entitle(ask).await?;
                    asked = true;
                }
                return Ok((Opened::Held(blob), if asked { How::Miss } else { How::Hit }));
            }
            if ask.further.is_empty()
                && let Some(marked) = self.marked(&ask.way, digest)
            {
                return Err(marked);
            }
            let meta = || Meta::new(&ask.way, true);
            let (reader, coming, how) = match self.fills.board.join(&(lane.clone(), digest), meta) {
                Joined::First(writer, reader) => {
                    // A fill may have ended since we looked. Then there are rights to settle.
                    if self.held(digest).await?.is_some() {
                        continue;
                    }
                    let mut sources = vec![Arc::clone(&ask.way)];
                    sources.extend(ask.further.iter().cloned());
                    let coming = reader.meta().coming.announce();
                    self.begin(writer, Plan::new(digest, ask.size, sources, ask.budget));
                    (reader, coming, How::Miss)
                }
                Joined::Follow(reader) => {
                    // Whom the same upstream gives the same repository with the same credential has its answer there.
                    if !entitled && reader.meta().way != ask.way {
                        self.entitle(ask).await?;
                        entitled = true;
                        asked = true;
                    }
                    let coming = reader.meta().coming.announce();
                    (reader, coming, How::Collapsed)
                }
            };
            let waited = self.wait_for_begin(reader, ask).await;
            // It reads by now, or has gone.
            drop(coming);
            match waited? {
                Waited::Here(Opened::Filling(follower)) if follower.is_passed() => {
                    return Ok((Opened::Filling(follower), How::Passed));
                }
                Waited::Here(opened) => return Ok((opened, how)),
                Waited::Again(error) => last = error.or(last),
                Waited::Late => lane = self.alone(),
            }
        }
        Err(last.map_or(PullError::Lost(digest), unshared))
    }

    /// Whether a blob is on its way, for somebody.
    pub fn is_filling(&self, digest: &Digest) -> bool {
        self.fills.board.has(&(Lane::All, *digest))
    }

    /// Whether this asker's upstream has the blob for it, by one HEAD.
    async fn entitle(&self, ask: &Ask) -> Result<(), PullError> {
        let Way { endpoint, repository } = &*ask.way;
        match self.client.blob_length(endpoint, repository, ask.digest, ask.budget).await? {
            Some(_) => Ok(()),
            None => Err(PullError::NotThere {
                upstream: endpoint.registry.to_string(),
                repository: repository.clone(),
                digest: ask.digest,
            }),
        }
    }

    /// The error for an asker whose upstream gave wrong bytes for this digest a moment ago.
    pub(super) fn marked(&self, way: &Way, digest: Digest) -> Option<PullError> {
        let after = self.fills.marks.left(way, digest)?;
        Some(PullError::Marked { upstream: way.endpoint.registry.to_string(), digest, after })
    }

    /// Asks an upstream for a blob again at once, although it gave wrong bytes for it a moment ago; whether it had.
    pub fn forget_mark(&self, way: &Way, digest: Digest) -> bool {
        self.fills.marks.forget(way, digest)
    }

    fn alone(&self) -> Lane {
        Lane::One(self.fills.alone.fetch_add(1, Ordering::Relaxed))
    }

    fn begin(&self, writer: fill::FillWriter, plan: Plan) {
        tokio::spawn(fill::run(self.clone(), writer, plan));
    }

    async fn wait_for_begin(&self, mut reader: FillReader, ask: &Ask) -> Result<Waited, PullError> {
        enum Seen {
            Begun(Arc<Source>),
            Ended(End<Result<Landed, Arc<PullError>>>, Option<Arc<Source>>),
        }
        let deadline = ask.budget.deadline.into();
        let seen = reader.until(|view| match (view.end, view.source) {
            (Some(end), source) => Some(Seen::Ended(end.clone(), source.cloned())),
            (None, Some(source)) if source.size >= STREAMED_FROM => Some(Seen::Begun(Arc::clone(source))),
            _ => None,
        });
        let mut seen = timeout_at(deadline, seen).await;
        if let Ok(Seen::Begun(source)) = &seen {
            let held_back = reader.until(|view| match view.end {
                Some(end) => Some(Seen::Ended(end.clone(), view.source.cloned())),
                None => source.is_in_memory().then(|| Seen::Begun(Arc::clone(source))),
            });
            let until = source.begun.checked_add(ask.hold).map_or(deadline, |until| until.min(deadline));
            if let Ok(more) = timeout_at(until, held_back).await {
                seen = Ok(more);
            }
        }
        let Ok(seen) = seen else {
            if reader.meta().queued.load(Ordering::Relaxed) {
                return Err(PullError::Busy(ask.digest));
            }
            return Err(RegistryError::Timeout {
                what: format!("{} of {}", ask.digest, ask.way.repository),
                waiting: "before its first bytes had come",
            }
            .into());
        };
        let (source, kept) = match seen {
            Seen::Begun(source) => (source, None),
            Seen::Ended(End::Done(Ok(Landed { kept })), Some(source)) => (source, kept.ok()),
            Seen::Ended(End::Done(Err(error)), _) => {
                // Somebody else's way, or one that could not do without the disk, says nothing about ours.
                let ours = reader.meta().way == ask.way && reader.meta().streams;
                return if ours { Err(unshared(error)) } else { Ok(Waited::Again(Some(error))) };
            }
            Seen::Ended(..) => return Ok(Waited::Again(None)),
        };
        if let Some(expected) = ask.size.filter(|size| *size != source.size) {
            return Err(PullError::Size { digest: ask.digest, expected, actual: source.size });
        }
        if let Some(blob) = kept {
            return Ok(Waited::Here(Opened::Held(blob)));
        }
        let patience = ask.budget.silence.map(|silence| 2 * silence + Duration::from_secs(1));
        let follower = Follower::new(reader, source, ask.digest, patience);
        Ok(if follower.is_late() { Waited::Late } else { Waited::Here(Opened::Filling(follower)) })
    }

    /// A blob, held: the store's where this asker may have it, else fetched, once for all who ask at once and are known
    /// to the same registry. It survives a power loss.
    ///
    /// For ways that anybody may name: bytes that came another way are not given away for the word of a registry that
    /// never gave them itself ([`Standing::Unknown`]); it has to send them.
    pub async fn blob(
        &self,
        way: &Arc<Way>,
        descriptor: &Descriptor,
        budget: Budget,
    ) -> Result<(Blob, Lease), PullError> {
        let lease = self.store.lease(descriptor.digest);
        let blob = match timeout_at(budget.deadline.into(), self.blob_by(way, descriptor, budget)).await {
            Ok(blob) => blob?,
            Err(_) => {
                let what = format!("{} of {}", descriptor.digest, way.repository);
                return Err(RegistryError::Timeout { what, waiting: "before all of it had come" }.into());
            }
        };
        self.mark(way, descriptor.digest).await?;
        Ok((blob, lease))
    }

    async fn blob_by(&self, way: &Arc<Way>, descriptor: &Descriptor, budget: Budget) -> Result<Blob, PullError> {
        let digest = descriptor.digest;
        let mut last = None;
        for _ in 0..ROUNDS {
            let standing = self.standing(way, &digest);
            let held = self.held(digest).await?;
            let mut lane = Lane::All;
            if let Some(blob) = held {
                if standing == Standing::Granted
                    || standing == Standing::AskUpstream && self.has(way, digest, budget).await
                {
                    return self.durable(blob).await;
                }
                lane = Lane::Of(Arc::clone(way));
            }
            let meta = || Meta::new(way, false);
            let mut joined = self.fills.board.join(&(lane.clone(), digest), meta);
            if let Joined::Follow(reader) = &joined {
                let (ours, theirs) = (&way.endpoint, &reader.meta().way.endpoint);
                let same_registry = ours.registry == theirs.registry && ours.transport == theirs.transport;
                let may = reader.meta().way == *way
                    || standing == Standing::Granted
                    || (same_registry || standing == Standing::AskUpstream) && self.has(way, digest, budget).await;
                if !may {
                    lane = Lane::Of(Arc::clone(way));
                    joined = self.fills.board.join(&(lane.clone(), digest), meta);
                }
            }
            let mut reader = match joined {
                Joined::First(writer, reader) => {
                    // A fill may have ended since we looked. Then there are rights to settle.
                    if lane == Lane::All && self.held(digest).await?.is_some() {
                        continue;
                    }
                    self.begin(writer, Plan::new(digest, Some(descriptor.size), vec![Arc::clone(way)], budget));
                    reader
                }
                Joined::Follow(reader) => {
                    reader.meta().durable.store(true, Ordering::Relaxed);
                    reader
                }
            };
            let end = reader.until(|view| view.end.cloned()).await;
            match end {
                End::Done(Ok(Landed { kept: Ok(blob) })) if blob.len() == descriptor.size => {
                    return self.durable(blob).await;
                }
                End::Done(Ok(Landed { kept: Ok(blob) })) => {
                    return Err(PullError::Size { digest, expected: descriptor.size, actual: blob.len() });
                }
                End::Done(Ok(Landed { kept: Err(error) })) => return Err(unshared(error)),
                End::Done(Err(error)) if reader.meta().way == *way => return Err(unshared(error)),
                End::Done(Err(error)) => last = Some(error),
                End::Lost => {}
            }
        }
        Err(last.map_or(PullError::Lost(digest), unshared))
    }

    async fn has(&self, way: &Way, digest: Digest, budget: Budget) -> bool {
        self.client.has_blob(&way.endpoint, &way.repository, &digest, budget).await.unwrap_or(false)
    }

    async fn durable(&self, blob: Blob) -> Result<Blob, PullError> {
        let store = self.store.clone();
        Ok(blocking::io(move || store.make_durable(&blob).map(|()| blob)).await?)
    }
}

impl Plan {
    fn new(digest: Digest, size: Option<u64>, sources: Vec<Arc<Way>>, budget: Budget) -> Self {
        Self { digest, size, sources, time: budget.deadline.saturating_duration_since(Instant::now()), budget }
    }
}

/// The error itself for its only owner.
fn unshared(error: Arc<PullError>) -> PullError {
    Arc::try_unwrap(error).unwrap_or_else(PullError::Shared)
}
