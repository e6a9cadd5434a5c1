//! Ending well: one signal that everything which must stop listens to.
//!
//! [`channel`] gives a [`Trigger`] and a [`Shutdown`]; clones of the latter go to listeners, loops and tasks, which
//! finish what they have begun and return. Dropping the trigger is the signal too, so nothing outlives its owner.
//! [`on_signals`] ties the trigger to SIGTERM and SIGINT and tells when draining has taken long enough.

use std::{io, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// How long draining may take before the process ends anyway. Below Kubernetes' default grace period of 30 s.
pub const DRAIN: Duration = Duration::from_secs(25);

/// The sending end. Dropping it begins the shutdown, as [`Trigger::begin`] does.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// The receiving end; clones are cheap and all see the same signal.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// A new signal, not yet given.
pub fn channel() -> (Trigger, Shutdown) {
    let (send, receive) = watch::channel(false);
    (Trigger(send), Shutdown(receive))
}

impl Trigger {
    /// Gives the signal. A second time changes nothing.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Whether the signal has been given.
    pub fn begun(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Returns once the signal has been given; at once if it was before.
    pub async fn wait(&self) {
        // An error means that the trigger is gone, which is the signal too.
        let _ = self.0.clone().wait_for(|begun| *begun).await;
    }
}

/// Why draining was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forced {
    /// A second SIGTERM or SIGINT came.
    SecondSignal,
    /// Draining took longer than it may.
    Deadline,
}

/// SIGTERM and SIGINT, caught from the moment this exists.
#[derive(Debug)]
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    /// Catches the signals from now on. Needs a running tokio runtime.
    pub fn catch() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits for the first signal, begins the shutdown, and returns only if draining has to be cut short: at a second
/// signal or `deadline` after the first. The caller runs this beside the work and ends when either is done.
pub async fn on_signals(mut signals: Signals, trigger: &Trigger, deadline: Duration) -> Forced {
    signals.next().await;
    tracing::info!("draining; a second signal ends it at once");
    trigger.begin();
    tokio::select! {
        () = signals.next() => Forced::SecondSignal,
        () = tokio::time::sleep(deadline) => Forced::Deadline,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_clone_sees_the_signal_before_and_after() {
        let (trigger, shutdown) = channel();
        let early = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.wait().await }
        });
        assert!(!shutdown.begun());
        trigger.begin();
        trigger.begin();
        early.await.unwrap();
        shutdown.wait().await;
        assert!(shutdown.begun());
    }

    #[tokio::test]
    async fn a_dropped_trigger_is_the_signal() {
        let (trigger, shutdown) = channel();
        drop(trigger);
        shutdown.wait().await;
        assert!(shutdown.begun());
    }
}
