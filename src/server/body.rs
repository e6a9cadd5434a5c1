//! What follows the headers of an answer.
//!
//! A blob goes out as slices of its mapping, straight into the socket's `writev`: no copy in user space. Its pages
//! have to be in memory by then, or the write waits for the disk and with it the worker and every connection on it.
//! So a blob is handed over in windows: a window that is in the page cache goes at once; one that is not is read in
//! on a blocking thread first, while the window before it is being sent.
//!
//! A blob that is still coming goes out as it comes ([`Body::following`]). If its upstream dies, the body ends early and
//! in order: what was handed over is flushed, then HTTP/1.1 closes the connection (FIN), HTTP/2 ends the stream
//! (END_STREAM short of Content-Length), so that clients that resume do. If its bytes were wrong, the body ends with an
//! error: hyper resets the HTTP/2 stream, and on HTTP/1.1 the connection ends as it is.
//!
//! Where user space reads what is sent (TLS, HTTP/2), a blob goes out as copies made with pread, which can fail where a
//! mapping can only kill: in small pieces, each made when the connection has room for it, in buffers that are used again.
//!
//! Whatever a body is, dropping it counts the request ([`metrics::served`]) with the bytes that were handed over.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, ReadBuf};

use super::{
    following::Following,
    pieces,
    prepared::{self, WINDOW},
    watch::Activity,
};
use crate::{
    blocking,
    class::Class,
    metrics,
    pull::{FillError, Follower},
    store::Blob,
};

/// The largest piece of a compressed body, in bytes: how much is compressed between two looks at the socket.
const COMPRESSED_PIECE: usize = 16 << 10;

/// The body of an answer.
pub struct Body {
    inner: Inner,
    /// What the outcome was, for the metric; `None` is ok.
    outcome: Option<Class>,
    /// Bytes handed over.
    sent: u64,
    /// Who counts it; `None` until the listener takes it.
    account: Option<Account>,
}

struct Account {
    listener: metrics::Listener,
    activity: Arc<Activity>,
}

enum Inner {
    Empty,
    Memory(Bytes),
    Blob(BlobBody),
    Following(Following),
    Reader(Pin<Box<dyn AsyncRead + Send>>),
}

impl Body {
    /// Nothing.
    pub fn empty() -> Self {
        Self::new(Inner::Empty)
    }

    /// Bytes in memory.
    pub fn memory(bytes: impl Into<Bytes>) -> Self {
        Self::new(Inner::Memory(bytes.into()))
    }

    /// The bytes `start..end` of a blob; both at most its length.
    pub fn blob(blob: Blob, start: u64, end: u64) -> Self {
        let bytes = blob.mapped();
        Self::new(Inner::Blob(BlobBody { blob, bytes, at: start, end, warm: start, warming: None, pieces: None }))
    }

    /// The bytes `start..end` of a blob that is coming; both at most its length.
    pub fn following(follower: Follower, start: u64, end: u64) -> Self {
        Self::new(Inner::Following(Following::new(follower, start, end)))
    }

    /// Whatever `reader` yields, of unknown length.
    pub fn reader(reader: impl AsyncRead + Send + 'static) -> Self {
        Self::new(Inner::Reader(Box::pin(reader)))
    }

    fn new(inner: Inner) -> Self {
        Self { inner, outcome: None, sent: 0, account: None }
    }

    /// Waits until there is a first byte, where it is still to come. An error may be answered with a status as long as
    /// nothing of the body has been sent. Dropped before it is ready it has lost nothing.
    pub(super) async fn ready(&mut self) -> Result<(), FillError> {
        match &mut self.inner {
            Inner::Following(following) => following.ready().await,
            Inner::Empty | Inner::Memory(_) | Inner::Blob(_) | Inner::Reader(_) => Ok(()),
        }
    }

    /// With this outcome in the metric.
    pub fn outcome(mut self, class: Class) -> Self {
        self.outcome = Some(class);
        self
    }

    /// The connection takes the body: from here on it counts. With `pieces` blobs are copied, so many bytes at a time.
    pub(super) fn account(&mut self, listener: metrics::Listener, activity: Arc<Activity>, pieces: Option<usize>) {
        let pieces = pieces.map(|bytes| bytes as u64);
        match &mut self.inner {
            Inner::Blob(blob) => blob.pieces = pieces,
            Inner::Following(following) => following.copy_in(pieces),
            Inner::Empty | Inner::Memory(_) | Inner::Reader(_) => {}
        }
        activity.answer_begun();
        self.account = Some(Account { listener, activity });
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(Account { listener, activity }) = &self.account {
            metrics::served(*listener, self.outcome, self.sent);
            activity.answer_done();
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        let piece = match &mut this.inner {
            Inner::Empty => return Poll::Ready(None),
            Inner::Memory(bytes) => {
                let bytes = std::mem::take(bytes);
                this.inner = Inner::Empty;
                if bytes.is_empty() {
                    return Poll::Ready(None);
                }
                Ok(bytes)
            }
            Inner::Blob(blob) => match std::task::ready!(blob.poll_piece(cx)) {
                Some(piece) => piece,
                None => return Poll::Ready(None),
            },
            Inner::Following(following) => {
                // Over HTTP/2 an end waits its turn behind what was handed over, and what the whole connection's socket
                // waits for would say nothing of this stream.
                let waits = || {
                    let activity = this.account.as_ref().map(|account| &account.activity);
                    activity.is_some_and(|activity| activity.is_waiting() && !activity.is_shared())
                };
                match std::task::ready!(following.poll_piece(cx, waits)) {
                    Some(piece) => piece.map_err(|error| {
                        this.outcome = Some(error.class());
                        io::Error::other(error)
                    }),
                    None => {
                        this.outcome = following.cut().or(this.outcome);
                        return Poll::Ready(None);
                    }
                }
            }
            Inner::Reader(reader) => {
                let mut piece = vec![0; COMPRESSED_PIECE];
                let mut buffer = ReadBuf::new(&mut piece);
                match std::task::ready!(reader.as_mut().poll_read(cx, &mut buffer)) {
                    Ok(()) if buffer.filled().is_empty() => return Poll::Ready(None),
                    Ok(()) => {
                        let length = buffer.filled().len();
                        piece.truncate(length);
                        Ok(Bytes::from(piece))
                    }
                    Err(error) => Err(error),
                }
            }
        };
        match &piece {
            Ok(bytes) => this.sent += bytes.len() as u64,
            Err(_) => this.outcome = this.outcome.or(Some(Class::Disk)),
        }
        Poll::Ready(Some(piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Empty => true,
            Inner::Memory(bytes) => bytes.is_empty(),
            Inner::Blob(blob) => blob.at >= blob.end,
            Inner::Following(following) => following.left() == 0,
            Inner::Reader(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Memory(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Blob(blob) => SizeHint::with_exact(blob.end.saturating_sub(blob.at)),
            Inner::Following(following) => SizeHint::with_exact(following.left()),
            Inner::Reader(_) => SizeHint::default(),
        }
    }
}

struct BlobBody {
    blob: Blob,
    bytes: Bytes,
    at: u64,
    end: u64,
    /// Up to here the pages are known to be in memory.
    warm: u64,
    /// Reads pages in, up to the offset beside it.
    warming: Option<(u64, Warming)>,
    /// The longest copy; `None` where the mapping itself goes out.
    pieces: Option<u64>,
}

type Warming = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

impl BlobBody {
    /// The next piece, as soon as its pages are in memory: a window of the mapping, or a copy of less.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.at >= self.end {
            return Poll::Ready(None);
        }
        let window = self.end.min(window_end(self.at));
        // Windows are multiples of all lengths of pieces, which begin at multiples of theirs.
        let stop = self.pieces.map_or(window, |length| window.min((self.at / length + 1) * length));
        if self.warm < stop {
            self.begin_warming(window);
        }
        if let Some((until, warming)) = &mut self.warming {
            let until = *until;
            match warming.as_mut().poll(cx) {
                // Bytes already known to be there do not wait for those that are not.
                Poll::Pending if self.warm < stop => return Poll::Pending,
                Poll::Pending => {}
                Poll::Ready(done) => {
                    self.warming = None;
                    if let Err(error) = done {
                        self.tell(&error);
                        return Poll::Ready(Some(Err(error)));
                    }
                    self.warm = until;
                }
            }
        }
        let piece = match self.pieces {
            None => Ok(self.bytes.slice(self.at as usize..stop as usize)),
            Some(_) => pieces::fill((stop - self.at) as usize, |buffer| self.blob.read(self.at, buffer)),
        };
        if let Err(error) = &piece {
            self.tell(error);
        }
        self.at = stop;
        if self.at < self.end {
            // Now, so that the disk works while this window is being sent.
            self.begin_warming(self.end.min(window_end(self.at)));
        }
        Poll::Ready(Some(piece))
    }

    fn tell(&self, error: &io::Error) {
        tracing::warn!(digest = %self.blob.digest(), %error, "a blob cannot be read; its answer ends here");
    }

    /// Sees to it that the pages up to `stop` come into memory.
    fn begin_warming(&mut self, stop: u64) {
        if self.warming.is_some() || self.warm >= stop {
            return;
        }
        if prepared::is_resident(&self.blob, self.warm, stop) {
            self.warm = stop;
            return;
        }
        let (blob, range) = (self.blob.clone(), self.warm..stop);
        self.warming = Some((stop, Box::pin(blocking::io(move || blob.warm(range)))));
    }
}

/// Where the window that `at` lies in ends: windows begin at multiples of their length, wherever a range begins.
fn window_end(at: u64) -> u64 {
    (at / WINDOW + 1) * WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn memory_is_sent_once_and_its_length_is_known() {
        let body = Body::memory("hello");
        assert_eq!(body.size_hint().exact(), Some(5));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
        assert!(Body::empty().is_end_stream());
        assert!(Body::memory("").is_end_stream());
    }

    #[tokio::test]
    async fn a_blob_is_sent_in_windows_that_begin_at_multiples_of_their_length() {
        let directory = tempfile::tempdir().unwrap();
        let store = crate::store::Store::open(directory.path()).unwrap();
        let content: Vec<u8> = (0..2 * WINDOW + 5).map(|i| (i / 7) as u8).collect();
        let digest = crate::digest::Digest::sha256(&content);
        let blob = store.put(digest, &content, crate::store::Durability::Soon).unwrap();
        let length = blob.len();
        for (start, end, pieces) in [
            (0, length, &[WINDOW, WINDOW, 5][..]),
            (0, 1, &[1]),
            (WINDOW - 1, WINDOW + 1, &[1, 1]),
            (WINDOW, length, &[WINDOW, 5]),
            (length - 1, length, &[1]),
            (7, 7, &[]),
        ] {
            let mut body = Body::blob(blob.clone(), start, end);
            assert_eq!(body.size_hint().exact(), Some(end - start));
            let (mut sent, mut lengths) = (Vec::new(), Vec::new());
            while let Some(frame) = body.frame().await {
                let data = frame.unwrap().into_data().unwrap();
                lengths.push(data.len() as u64);
                sent.extend_from_slice(&data);
            }
            assert_eq!(lengths, pieces, "{start}..{end}");
            assert!(sent == content[start as usize..end as usize], "{start}..{end}");
        }
    }

    #[tokio::test]
    async fn copies_are_made_in_pieces_and_fail_where_the_file_has_become_shorter() {
        let directory = tempfile::tempdir().unwrap();
        let store = crate::store::Store::open(directory.path()).unwrap();
        let content: Vec<u8> = (0..WINDOW + 100_000).map(|i| (i / 7) as u8).collect();
        let digest = crate::digest::Digest::sha256(&content);
        let blob = store.put(digest, &content, crate::store::Durability::Soon).unwrap();
        let copied = |start, end| {
            let mut body = Body::blob(blob.clone(), start, end);
            body.account(metrics::Listener::Admin, Arc::default(), Some(32 << 10));
            body
        };
        let length = blob.len();
        for (start, end) in [(0, length), (0, 1), (5, 40_000), (WINDOW - 1, WINDOW + 1), (length, length)] {
            let mut body = copied(start, end);
            let mut sent = Vec::new();
            while let Some(frame) = body.frame().await {
                let data = frame.unwrap().into_data().unwrap();
                assert!(data.len() <= 32 << 10);
                sent.extend_from_slice(&data);
            }
            assert!(sent == content[start as usize..end as usize], "{start}..{end}");
        }
        let mut body = copied(0, length);
        body.frame().await.unwrap().unwrap();
        let hex = digest.hex();
        let path = directory.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&path, permissions).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(40_000).unwrap();
        let mut failed = false;
        while let Some(frame) = body.frame().await {
            failed |= frame.is_err();
            if failed {
                break;
            }
        }
        assert!(failed);
    }

    #[tokio::test]
    async fn a_reader_is_sent_to_its_end() {
        let text = "x".repeat(3 * COMPRESSED_PIECE + 7);
        let body = Body::reader(io::Cursor::new(text.clone()));
        assert_eq!(body.size_hint().exact(), None);
        assert_eq!(body.collect().await.unwrap().to_bytes(), text);
    }
}
