//! Reading a blob while it comes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::{
    PullError,
    fill::{FillReader, Landed},
    source::{ReadError, Source},
};
use crate::{class::Class, digest::Digest, flight::fill::End, store::Blob};

/// How many may read a fill for bytes to be withheld from some: more, who got all of it at its end alone, would fill the
/// network then, and had left it idle before.
const WITHHELD_AT_ONCE: usize = 8;

/// One who reads a blob while it is filled; clones read on their own. While one lives, the fill is wanted.
pub struct Follower {
    reader: FillReader,
    source: Arc<Source>,
    digest: Digest,
    number: u64,
    patience: Option<Duration>,
    /// Until then it gets nothing before the digest is right.
    withheld: Option<Instant>,
}

/// Why a fill gives no more.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The upstream died, or nothing comes any more. What was read so far is as good as it was: end the answer early
    /// but in order, so that the client resumes.
    #[error("the blob ends early")]
    Cut(#[source] Arc<PullError>),
    /// The bytes are not those of the digest: break the answer off.
    #[error("the blob's bytes are wrong")]
    Wrong(#[source] Arc<PullError>),
    /// The reader fell behind a fill that is not kept, or the disk failed: end as for [`FillError::Cut`].
    #[error("the blob cannot be read on")]
    Read(#[from] ReadError),
}

impl FillError {
    /// Whether bytes that were handed out already may be wrong, so that the client must not go on with them.
    pub fn is_wrong(&self) -> bool {
        matches!(self, Self::Wrong(_))
    }

    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Cut(e) | Self::Wrong(e) => e.class(),
            Self::Read(_) => Class::Disk,
        }
    }

    /// What ended the fill; `None` where this reader alone cannot go on.
    pub fn cause(&self) -> Option<&PullError> {
        match self {
            Self::Cut(e) | Self::Wrong(e) => Some(e),
            Self::Read(_) => None,
        }
    }

    pub(super) fn of(error: Arc<PullError>) -> Self {
        match error.class() {
            Class::Digest | Class::Size => Self::Wrong(error),
            _ => Self::Cut(error),
        }
    }
}

impl Follower {
    pub(super) fn new(reader: FillReader, source: Arc<Source>, digest: Digest, patience: Option<Duration>) -> Self {
        let number = source.enter();
        Self { reader, source, digest, number, patience, withheld: None }
    }

    /// Whether bytes that it would begin with are gone.
    pub(super) fn is_late(&self) -> bool {
        !self.source.is_whole()
    }

    /// Whether the blob cannot be kept.
    pub(super) fn is_passed(&self) -> bool {
        self.source.is_in_memory()
    }

    /// The blob's name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The blob's length in bytes.
    pub fn size(&self) -> u64 {
        self.source.size
    }

    /// For so long after the fill began this reader gets no byte before the digest is right. But where many read, or
    /// where the blob passes through memory, which would not hold it meanwhile, it gets what there is. A fill that fails
    /// before that is [`FillError::Cut`], whatever came.
    pub fn withhold(&mut self, time: Duration) {
        self.withheld = self.source.begun.checked_add(time);
    }

    fn silent_at(&self) -> Option<Instant> {
        Instant::now().checked_add(self.patience?)
    }

    fn withheld_until(&self) -> Option<Instant> {
        let withheld = self.withheld.filter(|until| *until > Instant::now())?;
        let waits = self.reader.readers() <= WITHHELD_AT_ONCE && !self.source.is_in_memory();
        waits.then_some(withheld)
    }

    /// Waits until bytes from `offset` on may be handed out, and says up to where (exclusive; the blob's size at its
    /// end). The blob's last 64 KiB may be so only when the digest is right. Dropped before it is ready it has lost
    /// nothing.
    pub async fn readable(&mut self, offset: u64) -> Result<u64, FillError> {
        let size = self.source.size;
        if offset >= size {
            return Ok(size);
        }
        self.source.wants(self.number, offset);
        let mut seen = None;
        let mut silent_at = self.silent_at();
        loop {
            let withheld = self.withheld_until();
            let gives = |reached| withheld.is_none() && reached > offset;
            let change = self.reader.until(|view| match view.end {
                Some(End::Done(Ok(_))) => Some(Ok(size)),
                Some(End::Done(Err(error))) if !gives(view.reached) => Some(Err(Arc::clone(error))),
                Some(End::Lost) if !gives(view.reached) => Some(Err(Arc::new(PullError::Lost(self.digest)))),
                // A change without enough in it is a sign of life.
                _ if gives(view.reached) || seen.is_none_or(|seen| view.reached > seen) => Some(Ok(view.reached)),
                _ => None,
            });
            let until = [withheld, silent_at].into_iter().flatten().min();
            let reached = match until {
                None => change.await,
                Some(until) => match timeout_at(until, change).await {
                    Ok(reached) => reached,
                    Err(_) if withheld == Some(until) => continue,
                    Err(_) => Err(Arc::new(PullError::Silent(self.patience.unwrap_or_default(), self.digest))),
                },
            };
            let reached = reached.map_err(if withheld.is_some() { FillError::Cut } else { FillError::of })?;
            if reached == size || gives(reached) {
                return Ok(reached);
            }
            seen = Some(reached);
            silent_at = self.silent_at();
        }
    }

    /// Some of the bytes `offset..end`, at least one of them, without a copy; `end` is at most what
    /// [`Follower::readable`] gave. They may lie in a mapping: for a socket's write(2).
    pub fn piece(&self, offset: u64, end: u64) -> Result<Bytes, FillError> {
        Ok(self.source.piece(offset, end)?)
    }

    /// Copies the bytes from `offset` on out with pread, which may wait for the disk; they must be readable.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FillError> {
        Ok(self.source.read(offset, buffer)?)
    }

    /// Waits for the end: the blob, or why it could not be kept though it was right.
    pub async fn finished(&mut self) -> Result<Result<Blob, Arc<PullError>>, FillError> {
        self.reader
            .until(|view| match view.end? {
                End::Done(Ok(Landed { kept })) => Some(Ok(kept.clone())),
                End::Done(Err(error)) => Some(Err(FillError::of(Arc::clone(error)))),
                End::Lost => Some(Err(FillError::Cut(Arc::new(PullError::Lost(self.digest))))),
            })
            .await
    }
}

impl Clone for Follower {
    fn clone(&self) -> Self {
        Self {
            reader: self.reader.clone(),
            source: Arc::clone(&self.source),
            digest: self.digest,
            number: self.source.enter_beside(self.number),
            patience: self.patience,
            withheld: self.withheld,
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.source.leave(self.number);
    }
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower").field("digest", &self.digest).field("size", &self.size()).finish_non_exhaustive()
    }
}
