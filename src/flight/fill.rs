//! One fill for one key, which many read while it is written.
//!
//! Whoever joins a key first gets the [`Writer`], and with it the duty to fill; everybody gets a [`Reader`]. A writer
//! says three things, in this order: [`Writer::begin`] (what there is to read, and where), [`Writer::reach`] (how far it
//! may be read), [`Writer::finish`] (how it ended). Readers wait for what they need and never hold a writer up.
//!
//! A fill is on the board from its first joiner until its end. A writer that is dropped without a word leaves
//! [`End::Lost`] behind: its readers join again, and one of them fills. A writer that nobody reads from any more may
//! [`Writer::abandon`] its fill: that and a join exclude each other, so nobody ever joins what is given up.
//!
//! Nothing here does I/O, waits on a clock or knows what is filled; every method but the waiting ones ends at once, and
//! the one lock of a fill is held for a few instructions (waking aside, which happens without it).

use std::{
    collections::HashMap,
    future::poll_fn,
    hash::Hash,
    sync::{Arc, PoisonError},
    task::{Poll, Waker},
};

use super::sync::Mutex;

/// The fills under way, by key; clones share them. `M` is what the first joiner tells the others, `S` what there is to
/// read, `R` how it ended.
pub struct Board<K, M, S, R>(Fills<K, M, S, R>);

type Fills<K, M, S, R> = Arc<Mutex<HashMap<K, Arc<Shared<M, S, R>>>>>;

impl<K, M, S, R> Clone for Board<K, M, S, R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, M, S, R> Default for Board<K, M, S, R> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(HashMap::new())))
    }
}

struct Shared<M, S, R> {
    meta: M,
    state: Mutex<State<S, R>>,
}

struct State<S, R> {
    source: Option<Arc<S>>,
    reached: u64,
    end: Option<End<R>>,
    readers: usize,
    /// Readers that wait, by their number.
    waiting: HashMap<u64, Waker>,
    next_reader: u64,
    /// The writer, while it waits for readers to come or go.
    writer: Option<Waker>,
}

/// How a fill ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End<R> {
    /// As its writer says.
    Done(R),
    /// The writer is gone without a word: join again.
    Lost,
}

/// A fill as it is at one moment.
pub struct View<'a, S, R> {
    /// What there is to read, once the fill has begun.
    pub source: Option<&'a Arc<S>>,
    /// How far it may be read.
    pub reached: u64,
    /// How it ended, if it has.
    pub end: Option<&'a End<R>>,
}

/// What joining a key gave.
#[must_use]
pub enum Joined<K: Hash + Eq, M, S, R> {
    /// Nobody was at it: fill.
    First(Writer<K, M, S, R>, Reader<M, S, R>),
    /// Somebody is.
    Follow(Reader<M, S, R>),
}

/// The duty to fill.
#[must_use]
pub struct Writer<K: Hash + Eq, M, S, R> {
    fills: Fills<K, M, S, R>,
    key: K,
    shared: Arc<Shared<M, S, R>>,
}

/// One who reads what is filled. Dropping it is leaving.
pub struct Reader<M, S, R> {
    shared: Arc<Shared<M, S, R>>,
    number: u64,
}

fn hold<T>(mutex: &Mutex<T>) -> impl std::ops::DerefMut<Target = T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Hash + Eq + Clone, M, S, R> Board<K, M, S, R> {
    /// Joins the fill for `key`, or begins it with `meta`.
    pub fn join(&self, key: &K, meta: impl FnOnce() -> M) -> Joined<K, M, S, R> {
        let mut fills = hold(&self.0);
        if let Some(shared) = fills.get(key) {
            return Joined::Follow(Reader::new(shared));
        }
        let state = State {
            source: None,
            reached: 0,
            end: None,
            readers: 0,
            waiting: HashMap::new(),
            next_reader: 0,
            writer: None,
        };
        let shared = Arc::new(Shared { meta: meta(), state: Mutex::new(state) });
        fills.insert(key.clone(), Arc::clone(&shared));
        let reader = Reader::new(&shared);
        Joined::First(Writer { fills: Arc::clone(&self.0), key: key.clone(), shared }, reader)
    }

    /// Joins the fill for `key` if there is one and `fits` says so of what its first joiner told.
    pub fn follow(&self, key: &K, fits: impl FnOnce(&M) -> bool) -> Option<Reader<M, S, R>> {
        let fills = hold(&self.0);
        fills.get(key).filter(|shared| fits(&shared.meta)).map(Reader::new)
    }

    /// Whether there is a fill for `key`.
    pub fn has(&self, key: &K) -> bool {
        hold(&self.0).contains_key(key)
    }

    /// How many fills are under way.
    pub fn len(&self) -> usize {
        hold(&self.0).len()
    }

    /// Whether none is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<M, S, R> Shared<M, S, R> {
    /// Changes the state, then wakes those who wait for a change.
    fn change(&self, change: impl FnOnce(&mut State<S, R>)) {
        let waiting = {
            let mut state = hold(&self.state);
            change(&mut state);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_values().for_each(Waker::wake);
    }
}

impl<K: Hash + Eq, M, S, R> Writer<K, M, S, R> {
    /// What the first joiner told.
    pub fn meta(&self) -> &M {
        &self.shared.meta
    }

    /// There is something to read now, from offset 0; a second call replaces it.
    pub fn begin(&self, source: Arc<S>) {
        self.shared.change(|state| state.source = Some(source));
    }

    /// The bytes before `offset` may be read; never goes back.
    pub fn reach(&self, offset: u64) {
        self.shared.change(|state| state.reached = state.reached.max(offset));
    }

    /// How many read.
    pub fn readers(&self) -> usize {
        hold(&self.shared.state).readers
    }

    /// Waits until somebody reads (`true`), or nobody does.
    pub async fn until_read(&self, read: bool) {
        poll_fn(|context| {
            let mut state = hold(&self.shared.state);
            if (state.readers > 0) == read {
                return Poll::Ready(());
            }
            state.writer = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Ends the fill. Whoever joins from now on begins another.
    pub fn finish(self, end: R) {
        self.leave(&mut hold(&self.fills));
        self.shared.change(|state| state.end = Some(End::Done(end)));
    }

    /// Takes the fill off the board if nobody reads it; `false`: somebody does, and it has to go on.
    #[must_use]
    pub fn abandon(&self) -> bool {
        let mut fills = hold(&self.fills);
        // Joining takes the board's lock: from here on nobody comes.
        let deserted = self.readers() == 0;
        if deserted {
            self.leave(&mut fills);
        }
        deserted
    }

    /// Takes this fill, and no other that has its key by now, off the board.
    fn leave(&self, fills: &mut HashMap<K, Arc<Shared<M, S, R>>>) {
        if fills.get(&self.key).is_some_and(|shared| Arc::ptr_eq(shared, &self.shared)) {
            fills.remove(&self.key);
        }
    }
}

impl<K: Hash + Eq, M, S, R> Drop for Writer<K, M, S, R> {
    fn drop(&mut self) {
        // First, so that those who are woken below do not find this fill again.
        self.leave(&mut hold(&self.fills));
        self.shared.change(|state| {
            state.end.get_or_insert(End::Lost);
        });
    }
}

impl<M, S, R> Reader<M, S, R> {
    fn new(shared: &Arc<Shared<M, S, R>>) -> Self {
        let (number, writer) = {
            let mut state = hold(&shared.state);
            state.readers += 1;
            state.next_reader += 1;
            (state.next_reader, state.writer.take())
        };
        // Under the board's lock, which no waker takes: it only schedules a task.
        if let Some(writer) = writer {
            writer.wake();
        }
        Self { shared: Arc::clone(shared), number }
    }

    /// What the first joiner told.
    pub fn meta(&self) -> &M {
        &self.shared.meta
    }

    /// How many read.
    pub fn readers(&self) -> usize {
        hold(&self.shared.state).readers
    }

    /// The fill as it is now.
    pub fn look<T>(&self, what: impl FnOnce(View<'_, S, R>) -> T) -> T {
        let state = hold(&self.shared.state);
        what(View { source: state.source.as_ref(), reached: state.reached, end: state.end.as_ref() })
    }

    /// Waits until `what` finds what it looks for. It is called under the fill's lock, at every change.
    pub async fn until<T>(&mut self, mut what: impl FnMut(View<'_, S, R>) -> Option<T>) -> T {
        poll_fn(|context| {
            let mut state = hold(&self.shared.state);
            let view = View { source: state.source.as_ref(), reached: state.reached, end: state.end.as_ref() };
            if let Some(found) = what(view) {
                return Poll::Ready(found);
            }
            state.waiting.insert(self.number, context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl<M, S, R> Clone for Reader<M, S, R> {
    fn clone(&self) -> Self {
        Self::new(&self.shared)
    }
}

impl<M, S, R> Drop for Reader<M, S, R> {
    fn drop(&mut self) {
        let writer = {
            let mut state = hold(&self.shared.state);
            state.readers -= 1;
            state.waiting.remove(&self.number);
            if state.readers == 0 { state.writer.take() } else { None }
        };
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}
