//! Which connections have had long enough.
//!
//! Every connection owns an [`Activity`]: a few numbers that its reads, writes and requests bump, without a clock and
//! without a lock. One task a listener, the [`Watchdog`], looks at all of them a few times within the shortest limit
//! and tells a connection to end by setting its verdict and waking it. So limits cost a connection's own path a
//! handful of relaxed stores, and a thousand idle connections one pass over a list.
//!
//! What is limited (hardening.md, rows C4 and C5): the time from the first byte of a request's head to its last (or
//! from the connection's begin), the idle time between requests, and the time for which a client takes no byte of an
//! answer. Over HTTP/2 the first request's head has that limit, later ones that of an idle connection. A request's body
//! is timed where it is read; how long an answer takes to compute is the handler's business.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
    time::{Duration, Instant},
};

use super::listener::Limits;

/// So many requests may be given up before it matters how many were not.
const MAX_GIVEN_UP: u32 = 100;

/// What a connection is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Verdict {
    /// Go on.
    Live = 0,
    /// Finish what has begun, take no new request.
    Drain = 1,
    /// End now.
    Close = 2,
}

/// What a connection does, as its own task and the watchdog share it.
#[derive(Default)]
pub(super) struct Activity {
    /// Bytes read since the connection began.
    received: AtomicU64,
    /// `received` when the last request was done: more than that is the head of the next.
    received_before: AtomicU64,
    /// Bytes written since the connection began.
    sent: AtomicU64,
    /// A write waits for the client.
    write_waits: AtomicBool,
    /// Requests whose head was complete, and those whose answer was handed over.
    begun: AtomicU32,
    done: AtomicU32,
    /// Answers under way: what is asked for is known, the body not yet handed over.
    answering: AtomicU32,
    /// Requests that the client gave up before they were answered.
    given_up: AtomicU32,
    /// Requests share the connection (HTTP/2): bytes that come in need not be a head.
    shared: AtomicBool,
    /// The connection is over.
    ended: AtomicBool,
    verdict: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

impl Activity {
    pub fn read(&self, bytes: usize) {
        self.received.store(self.received.load(Relaxed) + bytes as u64, Relaxed);
    }

    pub fn written(&self, bytes: usize) {
        self.sent.store(self.sent.load(Relaxed) + bytes as u64, Relaxed);
        if self.write_waits.load(Relaxed) {
            self.write_waits.store(false, Relaxed);
        }
    }

    pub fn write_waits(&self) {
        self.write_waits.store(true, Relaxed);
    }

    /// Whether a write waits for the client.
    pub fn is_waiting(&self) -> bool {
        self.write_waits.load(Relaxed)
    }

    pub fn request_begun(&self) {
        self.begun.fetch_add(1, Relaxed);
    }

    pub fn answer_begun(&self) {
        self.answering.fetch_add(1, Relaxed);
    }

    /// The answer has been handed over whole, or has been dropped.
    pub fn answer_done(&self) {
        self.answering.fetch_sub(1, Relaxed);
        self.request_done();
    }

    /// The client gave the request up before there was an answer. Who keeps doing that lets us work for nothing
    /// (CVE-2023-44487): the connection takes no more of it.
    pub fn request_given_up(&self) {
        self.request_done();
        let given_up = self.given_up.fetch_add(1, Relaxed) + 1;
        if given_up > MAX_GIVEN_UP && given_up > self.done.load(Relaxed) / 2 {
            // A client that is told to go may take its time, but not to go on with it.
            self.tell(if given_up > 10 * MAX_GIVEN_UP { Verdict::Close } else { Verdict::Drain });
        }
    }

    fn request_done(&self) {
        self.received_before.store(self.received.load(Relaxed), Relaxed);
        self.done.fetch_add(1, Relaxed);
    }

    /// The connection speaks HTTP/2.
    pub fn is_http2(&self) {
        self.shared.store(true, Relaxed);
    }

    /// Whether requests share the connection.
    pub fn is_shared(&self) -> bool {
        self.shared.load(Relaxed)
    }

    pub fn end(&self) {
        self.ended.store(true, Relaxed);
    }

    pub fn verdict(&self) -> Verdict {
        match self.verdict.load(Relaxed) {
            0 => Verdict::Live,
            1 => Verdict::Drain,
            _ => Verdict::Close,
        }
    }

    /// Who is to be woken when the verdict changes: the task that drives the connection, which stays the same.
    pub fn register(&self, waker: &Waker) {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
    }

    fn tell(&self, verdict: Verdict) {
        if self.verdict.fetch_max(verdict as u8, Relaxed) < verdict as u8
            && let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner)
        {
            waker.wake_by_ref();
        }
    }
}

/// What a connection is doing, as far as limits care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing has come yet.
    Fresh,
    /// Between requests (the number of those done).
    Idle(u32),
    /// A head is coming in.
    Head(u32),
    /// A request is being answered.
    Busy,
    /// An answer waits for the client; so many bytes are out.
    Stalled(u64),
}

struct Entry {
    activity: Arc<Activity>,
    phase: Phase,
    since: Instant,
}

/// The connections of one listener.
#[derive(Default)]
pub(super) struct Watchdog {
    entries: Mutex<Vec<Entry>>,
    /// Set when connections have to wait for a free place: idle ones, and those that ask nothing, then make room.
    pressed: AtomicBool,
}

impl Watchdog {
    /// Takes a new connection under watch.
    pub fn watch(&self, activity: Arc<Activity>) {
        let entry = Entry { activity, phase: Phase::Fresh, since: Instant::now() };
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    /// Asks idle connections, and those that ask nothing, to make room.
    pub fn press(&self) {
        self.pressed.store(true, Relaxed);
    }

    /// Tells all connections.
    pub fn tell_all(&self, verdict: Verdict) {
        for entry in self.entries.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            entry.activity.tell(verdict);
        }
    }

    /// Looks at all connections, every `limits.tick()`, for ever.
    pub async fn run(&self, limits: &Limits) {
        let mut ticks = tokio::time::interval(limits.tick());
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look(limits, Instant::now());
        }
    }

    fn look(&self, limits: &Limits, now: Instant) {
        let pressed = self.pressed.swap(false, Relaxed);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain_mut(|entry| {
            if entry.activity.ended.load(Relaxed) {
                return false;
            }
            let phase = phase(&entry.activity);
            if phase != entry.phase {
                // A stall that is followed by another one after progress begins anew, as its byte count differs.
                entry.phase = phase;
                entry.since = now;
            }
            entry.activity.tell(judge(phase, now.saturating_duration_since(entry.since), limits, pressed));
            true
        });
    }
}

fn phase(activity: &Activity) -> Phase {
    if activity.write_waits.load(Relaxed) {
        return Phase::Stalled(activity.sent.load(Relaxed));
    }
    let (begun, done) = (activity.begun.load(Relaxed), activity.done.load(Relaxed));
    let shared = activity.shared.load(Relaxed);
    if begun != done {
        // A client of HTTP/2 may stop an answer without stopping the socket, by not opening its window.
        let waits = shared && activity.answering.load(Relaxed) > 0;
        if waits { Phase::Stalled(activity.sent.load(Relaxed)) } else { Phase::Busy }
    } else if done == 0 {
        // From the connection's begin on: nobody gets longer by sending nothing first.
        Phase::Fresh
    } else if shared {
        // What comes in between may be a window or a ping. A head that drips does not begin the time anew.
        Phase::Idle(done)
    } else if activity.received.load(Relaxed) != activity.received_before.load(Relaxed) {
        Phase::Head(done)
    } else {
        Phase::Idle(done)
    }
}

/// A head has to be complete within its limit, so a tick is taken off: it began up to a tick before it was seen.
fn judge(phase: Phase, lasted: Duration, limits: &Limits, pressed: bool) -> Verdict {
    let over = match phase {
        // Where others wait for the place: who has something to ask has asked by then.
        Phase::Fresh | Phase::Head(_) if pressed && lasted >= limits.haste() => true,
        Phase::Fresh | Phase::Head(_) => lasted + limits.tick() >= limits.head,
        Phase::Idle(_) if pressed && lasted >= limits.tick() => return Verdict::Drain,
        Phase::Idle(_) => lasted >= limits.idle,
        Phase::Busy => false,
        Phase::Stalled(_) => lasted >= limits.stall,
    };
    if over { Verdict::Close } else { Verdict::Live }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            head: Duration::from_secs(30),
            idle: Duration::from_secs(90),
            stall: Duration::from_secs(60),
            ..Limits::default()
        }
    }

    /// Plays seconds, with something done in each, and says in which one the verdict came.
    fn closed_at(play: impl Fn(u64, &Activity), pressed: impl Fn(u64) -> bool) -> Option<(u64, Verdict)> {
        let limits = limits();
        assert_eq!(limits.tick(), Duration::from_secs(1));
        let dog = Watchdog::default();
        let activity = Arc::new(Activity::default());
        dog.watch(Arc::clone(&activity));
        let start = Instant::now();
        for second in 0..400 {
            play(second, &activity);
            if pressed(second) {
                dog.press();
            }
            dog.look(&limits, start + Duration::from_secs(second));
            if activity.verdict() != Verdict::Live {
                return Some((second, activity.verdict()));
            }
        }
        None
    }

    fn never(_: u64) -> bool {
        false
    }

    #[test]
    fn a_connection_that_sends_nothing_or_drips_its_head_ends_within_thirty_seconds() {
        assert_eq!(closed_at(|_, _| {}, never).unwrap().1, Verdict::Close);
        assert!(closed_at(|_, _| {}, never).unwrap().0 <= 30);
        assert!(closed_at(|_, a| a.read(1), never).unwrap().0 <= 30);
    }

    #[test]
    fn the_head_of_a_later_request_has_the_same_limit() {
        let (at, verdict) = closed_at(
            |second, a| match second {
                0 => {
                    a.read(100);
                    a.request_begun();
                    a.written(100);
                    a.request_done();
                }
                1..=49 => {}
                _ => a.read(1),
            },
            never,
        )
        .unwrap();
        assert_eq!(verdict, Verdict::Close);
        assert!((75..=80).contains(&at), "{at}");
    }

    #[test]
    fn an_idle_connection_stays_for_its_limit_and_requests_renew_it() {
        let request = |a: &Activity| {
            a.read(10);
            a.request_begun();
            a.written(10);
            a.request_done();
        };
        let (at, _) = closed_at(
            |second, a| {
                if second <= 100 && second % 50 == 0 {
                    request(a)
                }
            },
            never,
        )
        .unwrap();
        assert_eq!(at, 190);
    }

    #[test]
    fn a_reader_that_takes_nothing_is_closed_and_a_slow_one_is_not() {
        let begin = |second, a: &Activity| {
            if second == 0 {
                a.read(10);
                a.request_begun();
                a.written(1000);
                a.write_waits();
            }
        };
        assert_eq!(closed_at(begin, never), Some((60, Verdict::Close)));
        let slow = |second: u64, a: &Activity| {
            begin(second, a);
            if second % 59 == 58 {
                a.written(1);
                a.write_waits();
            }
        };
        assert_eq!(closed_at(slow, never), None);
    }

    #[test]
    fn over_http2_a_shut_window_is_a_stall_and_stray_bytes_are_no_head() {
        let begin = |second, a: &Activity| {
            a.is_http2();
            if second == 0 {
                a.read(10);
                a.request_begun();
                a.answer_begun();
                a.written(1000);
            }
        };
        assert_eq!(closed_at(begin, never), Some((60, Verdict::Close)));
        let moving = |second: u64, a: &Activity| {
            begin(second, a);
            a.written(1);
        };
        assert_eq!(closed_at(moving, never), None);
        let pings = |second: u64, a: &Activity| {
            begin(second, a);
            if second == 0 {
                a.answer_done();
            }
            a.read(17);
        };
        assert_eq!(closed_at(pings, never), Some((90, Verdict::Close)));
    }

    #[test]
    fn who_gives_up_request_after_request_is_told_to_go() {
        let resets = |each: u32, done: u32| {
            let activity = Activity::default();
            for _ in 0..done {
                activity.request_begun();
                activity.answer_begun();
                activity.answer_done();
            }
            for _ in 0..each {
                activity.request_begun();
                activity.request_given_up();
            }
            activity.verdict()
        };
        assert_eq!(resets(100, 0), Verdict::Live);
        assert_eq!(resets(101, 0), Verdict::Drain);
        assert_eq!(resets(150, 1000), Verdict::Live);
        assert_eq!(resets(1001, 0), Verdict::Close);
    }

    #[test]
    fn a_request_that_is_being_answered_is_left_alone() {
        assert_eq!(
            closed_at(
                |second, a| if second == 0 {
                    a.read(10);
                    a.request_begun();
                },
                |_| true
            ),
            None
        );
    }

    #[test]
    fn under_pressure_idle_connections_make_room() {
        let (at, verdict) = closed_at(
            |second, a| {
                if second == 0 {
                    a.read(10);
                    a.request_begun();
                    a.request_done();
                }
            },
            |second| second >= 5,
        )
        .unwrap();
        assert_eq!((at, verdict), (5, Verdict::Drain));
    }

    #[test]
    fn under_pressure_who_asks_nothing_makes_room_and_who_is_answered_stays() {
        for bytes in [0, 1] {
            let (at, verdict) = closed_at(|_, a| a.read(bytes), |second| second >= 5).unwrap();
            assert_eq!((at, verdict), (5, Verdict::Close), "{bytes}");
        }
        let busy = |second, a: &Activity| {
            if second == 0 {
                a.read(10);
                a.request_begun();
            }
        };
        assert_eq!(closed_at(busy, |_| true), None);
        assert_eq!(closed_at(|_, a| a.read(1), |second| second == 1), closed_at(|_, a| a.read(1), never), "too soon");
    }

    #[test]
    fn an_ended_connection_is_forgotten() {
        let dog = Watchdog::default();
        let activity = Arc::new(Activity::default());
        dog.watch(Arc::clone(&activity));
        activity.end();
        dog.look(&limits(), Instant::now());
        assert!(dog.entries.lock().unwrap().is_empty());
    }
}
