//! A listener: accepts connections, speaks HTTP/1.1 on them, holds everybody to the limits, and drains at the end.
//!
//! A [`Handler`] sees requests that are whole, bounded and unambiguous, one at a time per connection; everything that a
//! client can do to a connection before that is dealt with here. Limits are kept by `watch`, without a clock on the
//! path of a request. When places or file descriptors run out, accepting pauses: clients wait in the kernel's queue,
//! idle connections make room, nothing is dropped and nothing spins (hardening.md, row D7).
//!
//! Answers go out with `writev` from where the bytes lie. That matters beyond speed: a blob's pages must be touched by
//! the kernel only, which turns a page that cannot be read into an error of the write. A transport that reads its
//! input in user space (TLS) must copy blobs with pread instead; it belongs where [`serve`] makes the stream.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{Method, Request, Response, StatusCode, Version, header};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
};

use super::{
    body::Body,
    reply,
    watch::{Activity, Verdict, Watchdog},
};
use crate::{class::Class, metrics, shutdown::Shutdown};

/// The longest request target taken, in bytes: 414 past it.
const MAX_TARGET: usize = 8 << 10;
/// The longest header line taken, in bytes: 431 past it.
const MAX_HEADER_LINE: usize = 8 << 10;
/// The largest request head taken, in bytes: 431 past it.
const MAX_HEAD: usize = 64 << 10;
/// The most header lines taken: 431 past it.
const MAX_HEADERS: usize = 100;
/// How much of a request's body is buffered before it is read, in bytes.
const MAX_BUFFER: usize = 256 << 10;
/// How many connections wait in the kernel's queue to be accepted.
const BACKLOG: u32 = 1024;
/// How long accepting pauses when the process has no file descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address; an IPv4 address is one also where it came to a socket of IPv6.
    pub address: IpAddr,
    /// The connection is encrypted.
    pub encrypted: bool,
}

impl Peer {
    /// It is a process of this machine, or somebody whom this machine lets pass for one (hardening.md section 5.5).
    pub fn is_loopback(self) -> bool {
        self.address.is_loopback()
    }
}

/// Answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Which listener this is, for the metrics.
    const LISTENER: metrics::Listener;

    /// Answers one request. Dropping the future (the client went away) must leave nothing half done.
    fn handle(&self, request: Request<Incoming>, peer: Peer) -> impl Future<Output = Response<Body>> + Send;
}

/// What a listener allows.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a client may take to send the head of a request, from the connection's begin or the head's first byte.
    pub head: Duration,
    /// How long a connection may be idle between requests.
    pub idle: Duration,
    /// How long a client may take no byte of an answer.
    pub stall: Duration,
    /// How many connections there may be at once.
    pub connections: usize,
    /// How long connections may go on after the shutdown began.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // Every listener leaves most descriptors to the others, to the store and to upstream connections.
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1024);
        Self {
            head: Duration::from_secs(30),
            // Longer than Go's clients keep theirs (90 s), so that they are the ones who close.
            idle: Duration::from_secs(95),
            stall: Duration::from_secs(60),
            connections: usize::try_from(files / 4).unwrap_or(usize::MAX).clamp(8, 4096),
            drain: Duration::from_secs(20),
        }
    }
}

impl Limits {
    /// How often connections are looked at: often enough for the shortest limit.
    pub(super) fn tick(&self) -> Duration {
        let shortest = self.head.min(self.idle).min(self.stall);
        (shortest / 30).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }
}

/// An address that accepts connections, not yet served.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; is it in use, or not an address of this machine?")]
pub struct BindError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

impl Bound {
    /// Begins to listen on `address`; port 0 takes a free one. Needs a running tokio runtime.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let bind = || -> io::Result<Self> {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // So that a restart need not wait for the connections of the process before.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let listener = socket.listen(BACKLOG)?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        bind().map_err(|source| BindError { address, source })
    }

    /// The address, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Serves until the shutdown, then until all connections have ended or `limits.drain` is over.
pub async fn serve<H: Handler>(bound: Bound, handler: Arc<H>, limits: Limits, shutdown: Shutdown) {
    let watchdog = Arc::new(Watchdog::default());
    let places = Arc::new(Semaphore::new(limits.connections));
    let accept = accept(&bound.listener, &handler, &limits, &watchdog, &places);
    tokio::select! {
        () = shutdown.wait() => {}
        () = accept => {}
        () = watchdog.run(&limits) => {}
    }
    drop(bound);
    watchdog.tell_all(Verdict::Drain);
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    let drained = async {
        let _ = places.acquire_many(all).await;
    };
    tokio::select! {
        () = drained => return,
        () = tokio::time::sleep(limits.drain) => {}
        () = watchdog.run(&limits) => {}
    }
    tracing::warn!(listener = H::LISTENER.label(), "connections did not end in time and are cut off");
    watchdog.tell_all(Verdict::Close);
    let _ = places.acquire_many(all).await;
}

async fn accept<H: Handler>(
    listener: &TcpListener,
    handler: &Arc<H>,
    limits: &Limits,
    watchdog: &Arc<Watchdog>,
    places: &Arc<Semaphore>,
) {
    let mut warned: Option<Instant> = None;
    let mut warn = move |what: &str, error: Option<&io::Error>| {
        if warned.is_none_or(|at| at.elapsed() > Duration::from_secs(10)) {
            warned = Some(Instant::now());
            tracing::warn!(listener = H::LISTENER.label(), error = error.map(tracing::field::display), "{what}");
        }
    };
    loop {
        let place = match Arc::clone(places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                warn("as many connections as are allowed; new ones wait", None);
                wait_for_place(places, watchdog, limits).await
            }
        };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if is_shortage(&error) => {
                warn("no file descriptor or memory for a new connection; accepting pauses", Some(&error));
                watchdog.press();
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            // The client is gone already, or the network says something about it: the next one is not concerned.
            Err(error) => {
                tracing::debug!(listener = H::LISTENER.label(), %error, "a connection failed before it was accepted");
                continue;
            }
        };
        let activity = Arc::new(Activity::default());
        watchdog.watch(Arc::clone(&activity));
        let handler = Arc::clone(handler);
        tokio::spawn(async move {
            let peer = Peer { address: from.ip().to_canonical(), encrypted: false };
            connection(stream, peer, handler, &activity).await;
            activity.end();
            drop(place);
        });
    }
}

/// Waits until a connection ends, asking idle ones to.
async fn wait_for_place(
    places: &Arc<Semaphore>,
    watchdog: &Watchdog,
    limits: &Limits,
) -> tokio::sync::OwnedSemaphorePermit {
    let mut place = pin!(Arc::clone(places).acquire_owned());
    loop {
        watchdog.press();
        match tokio::time::timeout(limits.tick(), place.as_mut()).await {
            Ok(Ok(place)) => return place,
            // Nobody closes the semaphore.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => {}
        }
    }
}

/// Whether accepting failed because this process or machine has run out of something, which passes.
fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

/// What the requests of one connection share, so that a request touches no counter that other connections touch.
struct Shared<H> {
    handler: Arc<H>,
    peer: Peer,
    activity: Arc<Activity>,
}

/// Serves one connection to its end.
async fn connection<H: Handler>(stream: TcpStream, peer: Peer, handler: Arc<H>, activity: &Arc<Activity>) {
    // Answers are written whole; waiting for more to send only delays them.
    let _ = stream.set_nodelay(true);
    let shared = Arc::new(Shared { handler, peer, activity: Arc::clone(activity) });
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = Arc::clone(&shared);
        shared.activity.request_begun();
        async move { Ok::<_, std::convert::Infallible>(respond(&shared, request).await) }
    });
    let io = TokioIo::new(Watched { stream, activity: Arc::clone(activity) });
    let mut connection = pin!(
        http1::Builder::new()
            // `watch` keeps this limit for all connections with one timer.
            .header_read_timeout(None)
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEAD)
            .max_buf_size(MAX_BUFFER)
            // The mapping must reach writev as it is: see the module's documentation.
            .writev(true)
            .serve_connection(io, service)
    );
    let mut registered = false;
    let mut draining = false;
    let result = std::future::poll_fn(|cx| {
        if !registered {
            activity.register(cx.waker());
            registered = true;
        }
        match activity.verdict() {
            Verdict::Live => {}
            Verdict::Drain if draining => {}
            Verdict::Drain => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            Verdict::Close => return Poll::Ready(Ok(())),
        }
        connection.as_mut().poll(cx)
    })
    .await;
    if let Err(error) = result {
        // A client's doing as a rule: it went away, or sent something that is not HTTP.
        tracing::debug!(
            listener = H::LISTENER.label(),
            error = &error as &dyn std::error::Error,
            "a connection ended early"
        );
    }
}

async fn respond<H: Handler>(shared: &Shared<H>, request: Request<Incoming>) -> Response<Body> {
    let mut response = match refuse(&request) {
        None => shared.handler.handle(request, shared.peer).await,
        Some(status) => {
            let mut response = reply::text(status, status.canonical_reason().unwrap_or_default(), Some(Class::Client));
            // What follows on the connection is not to be trusted to be a request.
            response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            response
        }
    };
    response.body_mut().account(H::LISTENER, Arc::clone(&shared.activity));
    response
}

/// What no handler has to see. hyper has refused by now what cannot be parsed, disagreeing lengths, and a
/// Transfer-Encoding that does not end in chunked; it closes the connection after a request that had both a length
/// and an encoding (RFC 9112, section 6.1).
fn refuse(request: &Request<Incoming>) -> Option<StatusCode> {
    let headers = request.headers();
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if target > MAX_TARGET {
        return Some(StatusCode::URI_TOO_LONG);
    }
    if headers.iter().any(|(name, value)| name.as_str().len() + value.len() > MAX_HEADER_LINE) {
        return Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    if request.version() == Version::HTTP_11 {
        // RFC 9112, section 3.2: exactly one.
        let mut hosts = headers.get_all(header::HOST).iter();
        if hosts.next().is_none() || hosts.next().is_some() {
            return Some(StatusCode::BAD_REQUEST);
        }
    }
    // A GET with a body is of no use but to those who hope that somebody in between overlooks the body.
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if reads && !request.body().is_end_stream() {
        return Some(StatusCode::BAD_REQUEST);
    }
    None
}

/// A socket that tells the watchdog what it does.
struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl Watched {
    fn note(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(Ok(bytes)) => self.activity.written(*bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.activity.write_waits(),
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let read = buffer.filled().len() - before;
        if read > 0 {
            self.activity.read(read);
        }
        result
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buffer);
        self.note(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        self.note(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
