//! How far a transfer is, for whoever waits for it.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::Client;

/// What a client has moved. It tells how far a transfer is where there is one at a time, as in a command.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Client {
    /// What it has moved.
    pub fn traffic(&self) -> &Traffic {
        &self.0.traffic
    }
}

impl Traffic {
    /// Bytes of blobs that have come since the client was made, each once.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes of the last upload that its connection has taken; one that is tried again begins at 0.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn receive(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// How much of an upload is handed to the connection at a time.
const PIECE: usize = 64 << 10;

/// A request's body. An upload's is counted, and so handed out in pieces.
pub(super) struct Outgoing {
    rest: Bytes,
    counted: Option<Arc<Traffic>>,
}

impl Outgoing {
    pub(super) fn new(body: Bytes, counted: Option<&Arc<Traffic>>) -> Self {
        if let Some(traffic) = counted {
            traffic.sent.store(0, Ordering::Relaxed);
        }
        Self { rest: body, counted: counted.cloned() }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = match &this.counted {
            Some(traffic) => {
                let piece = this.rest.split_to(PIECE.min(this.rest.len()));
                traffic.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                piece
            }
            None => std::mem::take(&mut this.rest),
        };
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
