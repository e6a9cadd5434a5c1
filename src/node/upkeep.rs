//! What keeps the store in shape while it serves: its bounds, and the slow check of everything.

use std::{
    ops::ControlFlow,
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    time::{Duration, Instant},
};

use crate::{blocking, class, shutdown::Shutdown, store::Store};

/// How often what is cached is brought back within its bounds; each writer makes its own room before that.
const TRIM: Duration = Duration::from_secs(5);
/// How long after the start the slow check begins: a restart has better things to do.
const SETTLE: Duration = Duration::from_secs(60);
/// How often it looks whether something is due.
const LOOK: Duration = Duration::from_secs(600);
/// Added to the nice value of the thread that checks; the disk's scheduler goes by it too.
const NICE: i32 = 19;

/// Keeps what is cached within its bounds.
pub(super) async fn trim(store: Store, shutdown: Shutdown) {
    loop {
        let trimming = store.clone();
        match blocking::io(move || trimming.trim()).await {
            Ok(evicted) if evicted.blobs > 0 => {
                tracing::info!(blobs = evicted.blobs, bytes = evicted.bytes, "evicted what was over the byte budget");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(error = class::chain(&error), "what is cached cannot be bounded now"),
        }
        tokio::select! {
            () = tokio::time::sleep(TRIM) => {}
            () = shutdown.wait() => return,
        }
    }
}

/// Checks everything about once a week, at `rate` bytes a second, on a thread of its own; 0 is never.
pub(super) async fn scrub(store: Store, rate: u64, shutdown: Shutdown) {
    if rate == 0 {
        return;
    }
    // Dropping this end wakes and ends the thread.
    let (alive, stop) = sync_channel(0);
    let thread = std::thread::Builder::new().name("scrub".into()).spawn(move || scrub_thread(&store, rate, &stop));
    let thread = match thread {
        Ok(thread) => thread,
        Err(error) => return tracing::error!(%error, "nothing checks what is kept: no thread for it"),
    };
    shutdown.wait().await;
    drop::<std::sync::mpsc::SyncSender<()>>(alive);
    if blocking::io(move || thread.join()).await.is_err() {
        tracing::error!("the slow check of what is kept has panicked");
    }
}

fn scrub_thread(store: &Store, rate: u64, stop: &Receiver<()>) {
    // Of this thread alone, as Linux has it.
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "the slow check runs at everybody's priority");
    }
    let mut wait = SETTLE;
    while sleep(stop, wait).is_continue() {
        let mut pace = Pace { rate, since: Instant::now(), read: 0 };
        match store.scrub(&mut |bytes| pace.wait(bytes, stop)) {
            Ok(found) if found.bad > 0 => {
                tracing::warn!(
                    files = found.files,
                    bytes = found.bytes,
                    bad = found.bad,
                    "the slow check found damage"
                );
            }
            Ok(found) => tracing::debug!(files = found.files, bytes = found.bytes, "checked what was due"),
            Err(error) => tracing::warn!(error = class::chain(&error), "the slow check was broken off"),
        }
        wait = LOOK;
    }
}

/// Waits; breaks when it is time to stop.
fn sleep(stop: &Receiver<()>, time: Duration) -> ControlFlow<()> {
    match stop.recv_timeout(time) {
        Err(RecvTimeoutError::Timeout) => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    }
}

/// So many bytes a second.
struct Pace {
    rate: u64,
    since: Instant,
    read: u64,
}

impl Pace {
    fn wait(&mut self, bytes: u64, stop: &Receiver<()>) -> ControlFlow<()> {
        self.read += bytes;
        let ahead = self.ahead(self.since.elapsed());
        sleep(stop, ahead)
    }

    /// How long until the bytes read are no more than the rate allows.
    fn ahead(&self, elapsed: Duration) -> Duration {
        let due = u128::from(self.read) * 1_000_000_000 / u128::from(self.rate);
        Duration::from_nanos(u64::try_from(due).unwrap_or(u64::MAX)).saturating_sub(elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_the_rate_whatever_the_pieces() {
        for (rate, read, elapsed, ahead) in [
            (20_000_000, 20_000_000, 0, 1_000),
            (20_000_000, 20_000_000, 400, 600),
            (20_000_000, 20_000_000, 1_000, 0),
            (20_000_000, 256 << 10, 5_000, 0),
            (1, 3, 0, 3_000),
        ] {
            let pace = Pace { rate, since: Instant::now(), read };
            assert_eq!(pace.ahead(Duration::from_millis(elapsed)), Duration::from_millis(ahead), "{read} at {rate}");
        }
    }

    #[test]
    fn a_dropped_sender_ends_every_wait() {
        let (alive, stop) = sync_channel(0);
        assert!(sleep(&stop, Duration::ZERO).is_continue());
        drop::<std::sync::mpsc::SyncSender<()>>(alive);
        assert!(sleep(&stop, Duration::from_secs(3600)).is_break());
        let mut pace = Pace { rate: 1, since: Instant::now(), read: 0 };
        assert!(pace.wait(3600, &stop).is_break());
    }

    #[tokio::test]
    async fn the_check_ends_with_the_daemon_and_a_rate_of_nothing_never_begins() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let (trigger, shutdown) = crate::shutdown::channel();
        scrub(store.clone(), 0, shutdown.clone()).await;
        let running = tokio::spawn(scrub(store, 1, shutdown));
        trigger.begin();
        running.await.unwrap();
    }
}
