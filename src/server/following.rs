//! The body of a blob that is still coming.
//!
//! What may be handed out goes at once, at most a window at a time, without a copy over plain HTTP/1.1; then the body waits
//! for more. It holds nothing in memory, so a thousand slow readers cost nothing but their sockets.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;

use super::{pieces, prepared::WINDOW};
use crate::{
    class::Class,
    pull::{FillError, Follower},
};

/// Bytes of a blob that is coming.
pub(super) struct Following {
    state: State,
    at: u64,
    end: u64,
    /// Up to here the bytes may be handed out.
    readable: u64,
    /// The longest copy; `None` where pieces go out without one.
    pieces: Option<u64>,
}

type Waiting = Pin<Box<dyn Future<Output = (Follower, Result<u64, FillError>)> + Send>>;

enum State {
    Here(Follower),
    Waiting(Waiting),
    /// It ends early; `flushed`: what was handed over before has had its turn at the socket.
    Cut {
        class: Class,
        flushed: bool,
    },
}

impl Following {
    pub fn new(follower: Follower, start: u64, end: u64) -> Self {
        Self { state: State::Here(follower), at: start, end, readable: 0, pieces: None }
    }

    /// Copies, so many bytes at a time, for whoever reads what is sent in user space.
    pub fn copy_in(&mut self, pieces: Option<u64>) {
        self.pieces = pieces;
    }

    /// How many bytes are still to come.
    pub fn left(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    /// Why it ended before its end, if it did.
    pub fn cut(&self) -> Option<Class> {
        match self.state {
            State::Cut { class, .. } => Some(class),
            _ => None,
        }
    }

    /// Waits until there is a byte to hand out. Dropped before it is ready it has lost nothing.
    pub async fn ready(&mut self) -> Result<(), FillError> {
        if let State::Here(follower) = &mut self.state
            && self.at < self.end
        {
            self.readable = follower.readable(self.at).await?;
        }
        Ok(())
    }

    /// The next piece; an error only where what was handed out may be wrong. `waits` says whether the socket has not yet
    /// taken all that it was given.
    pub fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        waits: impl Fn() -> bool,
    ) -> Poll<Option<Result<Bytes, FillError>>> {
        loop {
            if self.at >= self.end {
                return Poll::Ready(None);
            }
            let failure = match &mut self.state {
                State::Cut { flushed, .. } => {
                    // hyper drops what it has not written yet when a body ends short of its length. It writes when a body
                    // has nothing to give, and asks the body again when the socket has taken everything.
                    if !std::mem::replace(flushed, true) {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    return if waits() { Poll::Pending } else { Poll::Ready(None) };
                }
                State::Here(follower) if self.at < self.readable => {
                    let stop = self.readable.min(self.end).min((self.at / WINDOW + 1) * WINDOW);
                    let piece = match self.pieces {
                        None => follower.piece(self.at, stop),
                        Some(length) => {
                            let stop = stop.min((self.at / length + 1) * length);
                            pieces::fill((stop - self.at) as usize, |buffer| follower.read(self.at, buffer))
                        }
                    };
                    match piece {
                        Ok(piece) => {
                            self.at += piece.len() as u64;
                            return Poll::Ready(Some(Ok(piece)));
                        }
                        Err(error) => error,
                    }
                }
                State::Here(_) => {
                    let at = self.at;
                    let here = State::Cut { class: Class::Net, flushed: true };
                    if let State::Here(mut follower) = std::mem::replace(&mut self.state, here) {
                        self.state = State::Waiting(Box::pin(async move {
                            let readable = follower.readable(at).await;
                            (follower, readable)
                        }));
                    }
                    continue;
                }
                State::Waiting(waiting) => {
                    let (follower, readable) = std::task::ready!(waiting.as_mut().poll(cx));
                    self.state = State::Here(follower);
                    match readable {
                        Ok(readable) => {
                            self.readable = readable;
                            continue;
                        }
                        Err(error) => error,
                    }
                }
            };
            let class = failure.class();
            self.state = State::Cut { class, flushed: false };
            if failure.is_wrong() {
                return Poll::Ready(Some(Err(failure)));
            }
            tracing::debug!(%class, error = %crate::class::chain(&failure), "an answer ends early");
        }
    }
}
