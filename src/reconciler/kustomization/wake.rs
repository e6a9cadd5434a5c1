//! What asks for a Kustomization's passes.

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

/// A Kustomization's task; dropping it ends the task after its pass.
pub struct Task(mpsc::UnboundedSender<Wake>);

/// When a pass was asked for, and who wants to hear of its end.
pub struct Wake(Instant, Option<oneshot::Sender<()>>);

impl Task {
    /// A task's end of it, and what the task hears.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Wake>) {
        let (send, receive) = mpsc::unbounded_channel();
        (Self(send), receive)
    }

    /// Asks for a pass over what is on the cluster now; the receiver hears of its end.
    pub fn request(&self) -> oneshot::Receiver<()> {
        let (send, receive) = oneshot::channel();
        let _ = self.0.send(Wake(Instant::now(), Some(send)));
        receive
    }

    /// Asks for a pass.
    pub fn wake(&self) {
        let _ = self.0.send(Wake(Instant::now(), None));
    }
}

/// What asked for a pass, since the one before.
#[derive(Default)]
pub struct Asked {
    /// The last time.
    pub at: Option<Instant>,
    /// Who wants to hear of the pass's end.
    pub waiters: Vec<oneshot::Sender<()>>,
}

impl Asked {
    /// One more.
    pub fn take(&mut self, Wake(at, waiter): Wake) {
        self.at = Some(at);
        self.waiters.extend(waiter);
    }

    /// The pass is over.
    pub fn answer(&mut self) {
        self.at = None;
        for waiter in self.waiters.drain(..) {
            let _ = waiter.send(());
        }
    }
}
