//! What of a fill can be read: bytes in a file of the store, and, where the disk takes no more, in memory.
//!
//! Bytes on the disk are read from the file's mapping and cost no memory. From the byte on where the disk refused, a
//! fill is *passed through*: at most [`WINDOW`] bytes are kept, and the writer waits a moment for the slowest reader, and
//! for askers who are about to be readers ([`Coming`]), before it drops the oldest of them. A reader that is left behind
//! then ends, and its client asks again. After the fill's end what no reader can want any more goes, and with the last of it
//! the right to the memory.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit},
    time::{Instant, timeout},
};

use crate::store::Landing;

/// How much of a fill that is passed through is in memory. More than the 64 KiB that wait for the digest and than the
/// blobs that are verified before they are answered, so that these are always there whole.
pub(super) const WINDOW: usize = 2 << 20;
/// How long the writer waits for its slowest reader where the window is full.
const PATIENCE: Duration = Duration::from_secs(1);

/// Askers that were told of a fill and have not come to its bytes yet: without a word from them, a writer that is
/// faster than they are woken would drop the bytes that they came for.
#[derive(Default)]
pub(super) struct Coming {
    askers: AtomicUsize,
    /// The writer waits for space, or for these askers.
    space: Notify,
}

/// One of [`Coming`]; dropping it is to be a reader by now, or to have gone.
#[must_use]
pub(super) struct OnTheWay(Arc<Coming>);

impl Coming {
    pub fn announce(self: &Arc<Self>) -> OnTheWay {
        self.askers.fetch_add(1, Ordering::SeqCst);
        OnTheWay(Arc::clone(self))
    }

    fn any(&self) -> bool {
        self.askers.load(Ordering::SeqCst) > 0
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        self.0.askers.fetch_sub(1, Ordering::SeqCst);
        self.0.space.notify_one();
    }
}

/// The bytes of one fill.
pub(super) struct Source {
    pub size: u64,
    /// When there first was something to read.
    pub begun: Instant,
    file: Option<OnDisk>,
    memory: Mutex<Memory>,
    coming: Arc<Coming>,
}

struct OnDisk {
    landing: Landing,
    /// Empty where the file cannot be mapped.
    mapped: Bytes,
}

#[derive(Default)]
struct Memory {
    /// Where memory takes over from the disk; `None`: nowhere.
    from: Option<u64>,
    /// Where the first piece begins.
    start: u64,
    pieces: VecDeque<Bytes>,
    held: usize,
    /// What each reader wants next, by its number.
    positions: HashMap<u64, u64>,
    next_reader: u64,
    /// The right to the memory, while it may be needed.
    place: Option<OwnedSemaphorePermit>,
    /// Nothing more comes.
    ended: bool,
}

impl Memory {
    fn enter(&mut self, at: u64) -> u64 {
        self.next_reader += 1;
        self.positions.insert(self.next_reader, at);
        self.next_reader
    }

    /// Whether nothing was dropped yet.
    fn is_whole(&self) -> bool {
        self.from.is_none_or(|from| self.start == from)
    }

    /// Where the first piece begins when so many more bytes are in.
    fn start_with(&self, more: usize) -> u64 {
        let (mut held, mut start) = (self.held + more, self.start);
        for piece in &self.pieces {
            if held <= WINDOW {
                break;
            }
            held -= piece.len();
            start += piece.len() as u64;
        }
        start
    }

    /// Drops what nobody can want any more, once nothing more comes; whether somebody is `coming` who wants all of it.
    fn trim(&mut self, coming: bool) {
        if !self.ended || self.is_whole() && coming {
            return;
        }
        let readable = if self.is_whole() { 0 } else { self.start };
        let wanted = self.positions.values().filter(|at| **at >= readable).min().copied().unwrap_or(u64::MAX);
        while let Some(oldest) = self.pieces.front()
            && self.start + oldest.len() as u64 <= wanted
        {
            self.held -= oldest.len();
            self.start += oldest.len() as u64;
            self.pieces.pop_front();
        }
        if self.pieces.is_empty() {
            self.place = None;
        }
    }

    /// Whether dropping what lies before `start` takes it from somebody. Whom an earlier piece was taken from is lost
    /// already, and waiting for it would hold up all others for nothing.
    fn leaves_behind(&self, start: u64) -> bool {
        let readable = if self.is_whole() { 0 } else { self.start };
        self.positions.values().any(|at| (readable..start).contains(at))
    }
}

/// Ends a source that is in memory when it is dropped, however its fill ends.
pub(super) struct Ending(Arc<Source>);

impl Ending {
    pub fn of(source: &Arc<Source>) -> Self {
        Self(Arc::clone(source))
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A reader was left behind, or the disk cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes are not kept any longer.
    #[error("the disk is full, and these bytes have gone by")]
    Gone,
    /// The disk.
    #[error("what was written cannot be read")]
    Disk(#[source] io::Error),
}

impl Source {
    /// A source whose bytes go to a file.
    pub fn on_disk(size: u64, landing: Landing, coming: Arc<Coming>) -> Self {
        let mapped = landing.mapped(size).unwrap_or_default();
        Self { size, begun: Instant::now(), file: Some(OnDisk { landing, mapped }), memory: Mutex::default(), coming }
    }

    /// A source whose bytes pass through memory only, by the right of `place`.
    pub fn in_memory(size: u64, coming: Arc<Coming>, place: OwnedSemaphorePermit) -> Self {
        let memory = Memory { from: Some(0), place: Some(place), ..Memory::default() };
        Self { size, begun: Instant::now(), file: None, memory: Mutex::new(memory), coming }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From `offset` on the bytes are in memory only, by the right of `place`.
    pub fn overflow(&self, offset: u64, place: OwnedSemaphorePermit) {
        let mut memory = self.memory();
        memory.from = Some(offset);
        memory.start = offset;
        memory.place = Some(place);
    }

    /// Nothing more comes.
    fn end(&self) {
        let mut memory = self.memory();
        memory.ended = true;
        memory.trim(self.coming.any());
    }

    /// Whether a reader that comes now can have all of it.
    pub fn is_whole(&self) -> bool {
        self.memory().is_whole()
    }

    /// Whether some of it is in memory only.
    pub fn is_in_memory(&self) -> bool {
        self.memory().from.is_some()
    }

    /// Takes the next bytes into memory; waits a moment for readers that would be left behind.
    pub async fn push(&self, data: Bytes) {
        let full = |memory: &Memory| {
            let start = memory.start_with(data.len());
            start > memory.start && (memory.leaves_behind(start) || memory.is_whole() && self.coming.any())
        };
        let _ = timeout(PATIENCE, async {
            loop {
                let space = self.coming.space.notified();
                if !full(&self.memory()) {
                    return;
                }
                space.await;
            }
        })
        .await;
        let mut memory = self.memory();
        memory.held += data.len();
        memory.pieces.push_back(data);
        while memory.held > WINDOW
            && let Some(oldest) = memory.pieces.pop_front()
        {
            memory.held -= oldest.len();
            memory.start += oldest.len() as u64;
        }
    }

    /// A reader's number; it wants the first byte.
    pub fn enter(&self) -> u64 {
        self.memory().enter(0)
    }

    /// The number of a reader that wants what another wants.
    pub fn enter_beside(&self, reader: u64) -> u64 {
        let mut memory = self.memory();
        let at = memory.positions.get(&reader).copied().unwrap_or(0);
        memory.enter(at)
    }

    /// What a reader wants next.
    pub fn wants(&self, reader: u64, offset: u64) {
        let mut memory = self.memory();
        memory.positions.insert(reader, offset);
        if memory.from.is_some() {
            memory.trim(self.coming.any());
            drop(memory);
            self.coming.space.notify_one();
        }
    }

    /// A reader is gone.
    pub fn leave(&self, reader: u64) {
        let mut memory = self.memory();
        memory.positions.remove(&reader);
        memory.trim(self.coming.any());
        drop(memory);
        self.coming.space.notify_one();
    }

    /// Some of the bytes `offset..end`, at least one; all of them must have been written. Does not copy.
    pub fn piece(&self, offset: u64, end: u64) -> Result<Bytes, ReadError> {
        let memory = self.memory();
        let on_disk = memory.from.unwrap_or(u64::MAX);
        if offset < on_disk {
            drop(memory);
            let file = self.file.as_ref().ok_or(ReadError::Gone)?;
            let end = end.min(on_disk);
            if !file.mapped.is_empty() {
                return Ok(file.mapped.slice(offset as usize..end as usize));
            }
            let mut buffer = BytesMut::zeroed((end - offset).min(64 << 10) as usize);
            file.landing.read(offset, &mut buffer).map_err(ReadError::Disk)?;
            return Ok(buffer.freeze());
        }
        if offset < memory.start {
            return Err(ReadError::Gone);
        }
        let mut at = memory.start;
        for piece in &memory.pieces {
            let next = at + piece.len() as u64;
            if offset < next {
                let end = end.min(next);
                return Ok(piece.slice((offset - at) as usize..(end - at) as usize));
            }
            at = next;
        }
        Err(ReadError::Gone)
    }

    /// Copies the bytes from `offset` on out with pread; all of them must have been written.
    pub fn read(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<(), ReadError> {
        while !buffer.is_empty() {
            let on_disk = self.memory().from.unwrap_or(u64::MAX);
            let taken = if offset < on_disk {
                let file = self.file.as_ref().ok_or(ReadError::Gone)?;
                let length = (on_disk - offset).min(buffer.len() as u64) as usize;
                file.landing.read(offset, &mut buffer[..length]).map_err(ReadError::Disk)?;
                length
            } else {
                let piece = self.piece(offset, offset + buffer.len() as u64)?;
                buffer[..piece.len()].copy_from_slice(&piece);
                piece.len()
            };
            offset += taken as u64;
            buffer = &mut buffer[taken..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    const PIECE: usize = WINDOW / 4;

    fn source() -> (Source, Arc<Coming>) {
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        source_by(place)
    }

    fn source_by(place: OwnedSemaphorePermit) -> (Source, Arc<Coming>) {
        let coming = Arc::new(Coming::default());
        (Source::in_memory(100 * PIECE as u64, Arc::clone(&coming), place), coming)
    }

    /// Pushes a piece, if that needs no waiting.
    fn pushes(source: &Source) -> bool {
        let mut pushing = Box::pin(source.push(Bytes::from_static(&[0; PIECE])));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        pushing.as_mut().poll(&mut context).is_ready()
    }

    #[tokio::test]
    async fn the_writer_waits_for_who_is_on_the_way_and_who_reads_what_it_would_drop() {
        let (source, coming) = source();
        let on_the_way = coming.announce();
        assert!((0..4).all(|_| pushes(&source)), "the window has room");
        assert!(!pushes(&source), "an asker was told of it");
        let reader = source.enter();
        drop(on_the_way);
        assert!(!pushes(&source) && source.is_whole(), "it wants the first byte");
        let pushing = source.push(Bytes::from_static(&[0; PIECE]));
        let ((), ()) = tokio::join!(biased; pushing, async { source.wants(reader, PIECE as u64) });
        assert!(!source.is_whole());
        assert!(!pushes(&source), "it wants the second piece");
        source.leave(reader);
        assert!(pushes(&source), "nobody is there");
    }

    #[tokio::test]
    async fn a_long_piece_takes_the_place_of_none_that_a_reader_wants() {
        let (source, _) = source();
        // Small ones first: a long one would push out several.
        for _ in 0..PIECE / 1024 {
            source.push(Bytes::from_static(&[0; 1024])).await;
        }
        assert!((0..3).all(|_| pushes(&source)));
        let reader = source.enter();
        source.wants(reader, 1024);
        assert!(!pushes(&source), "it wants the second of them");
        source.wants(reader, PIECE as u64);
        assert!(pushes(&source));
        assert!(source.piece(PIECE as u64, PIECE as u64 + 1).is_ok());
    }

    #[tokio::test]
    async fn whoever_is_left_behind_already_holds_the_writer_up_no_more() {
        let (source, coming) = source();
        assert!((0..5).all(|_| pushes(&source)));
        // Neither a reader who wants what has gone by, nor an asker who comes after that.
        source.enter();
        let _late = coming.announce();
        assert!((0..20).all(|_| pushes(&source)));
        assert!(matches!(source.piece(0, 1), Err(ReadError::Gone)));
        let current = source.enter();
        source.wants(current, 21 * PIECE as u64);
        assert!(!pushes(&source));
    }

    #[tokio::test]
    async fn after_the_end_what_nobody_can_want_goes_and_the_right_to_the_memory_with_it() {
        let held = |source: &Source| source.memory().held / PIECE;
        let places = Arc::new(Semaphore::new(1));
        let (source, coming) = source_by(Arc::clone(&places).try_acquire_owned().unwrap());
        let source = Arc::new(source);
        let ending = Ending::of(&source);
        assert!((0..5).all(|_| pushes(&source)));
        let [behind, slow] = [source.enter(), source.enter()];
        source.wants(slow, 3 * PIECE as u64);
        assert_eq!(held(&source), 4, "more may come");
        drop(ending);
        assert_eq!((held(&source), places.available_permits()), (2, 0), "two pieces can be read yet");
        assert!(source.piece(3 * PIECE as u64, 4 * PIECE as u64).is_ok());
        let twin = source.enter_beside(slow);
        source.leave(slow);
        assert_eq!(held(&source), 2);
        source.wants(twin, 4 * PIECE as u64);
        assert_eq!((held(&source), places.available_permits()), (1, 0));
        source.leave(twin);
        assert_eq!((held(&source), places.available_permits()), (0, 1), "who is left behind holds nothing");
        source.leave(behind);
        drop((source, coming));
        // A small one, which is read only after its end.
        let (source, coming) = source_by(Arc::clone(&places).try_acquire_owned().unwrap());
        let source = Arc::new(source);
        let on_the_way = coming.announce();
        assert!(pushes(&source));
        drop(Ending::of(&source));
        assert_eq!(held(&source), 1, "somebody comes for it");
        let reader = source.enter();
        drop(on_the_way);
        assert!(source.piece(0, 1).is_ok());
        source.leave(reader);
        assert_eq!((held(&source), places.available_permits()), (0, 1));
    }
}
