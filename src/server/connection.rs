//! One connection: what is spoken on it, and what its requests have to be before a handler sees them.
//!
//! HTTP/1.1, or HTTP/2 where TLS has agreed on it (ALPN `h2`) or the client begins with its preface (RFC 9113, section
//! 3.3). Both have the same limits, kept by `watch`, and the same [`Handler`], which sees requests that are whole,
//! bounded and unambiguous: one at a time over HTTP/1.1, [`MAX_STREAMS`] at most over HTTP/2.
//!
//! Over plain HTTP/1.1 answers go out with `writev` from where the bytes lie. That matters beyond speed: a blob's pages
//! must be touched by the kernel only, which turns a page that cannot be read into an error of the write. TLS reads its
//! input in user space, and so does HTTP/2 with the small ends of its frames: there a body is told to copy blobs with
//! pread, in pieces that bound what a reader who takes nothing costs.

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use super::{
    body::Body,
    listener::{Handler, Peer},
    socket::{Stream, Watched},
    tls::Tls,
    watch::{Activity, Verdict},
};

/// The longest request target taken, in bytes: 414 past it.
const MAX_TARGET: usize = 8 << 10;
/// The longest header line taken, in bytes: 431 past it.
const MAX_HEADER_LINE: usize = 8 << 10;
/// The largest request head taken, in bytes: 431 past it. (hyper takes 100 header lines at most, 431 past it.)
const MAX_HEAD: usize = 64 << 10;
/// The most header lines taken over HTTP/2, as many as hyper takes over HTTP/1.1.
const MAX_HEADERS: usize = 100;
/// How much of a request's body is buffered before it is read, in bytes.
const MAX_BUFFER: usize = 256 << 10;
/// The same over TLS, where it also bounds how much of an answer waits to be encrypted.
const MAX_BUFFER_TLS: usize = MAX_HEAD;
/// A blob's pieces over TLS: two of its records, so that one write of the socket takes several, and a reader who takes
/// nothing holds two pieces and as much encrypted.
const PIECE_TLS: usize = 32 << 10;
/// A blob's pieces over HTTP/2, where each stream may hold two: one frame.
const PIECE_HTTP2: usize = 16 << 10;
/// Requests at once on an HTTP/2 connection: RFC 9113, section 6.5.2, recommends no fewer.
const MAX_STREAMS: u32 = 100;
/// How much a request's body may be ahead of who reads it, in bytes: HTTP/2's windows, of a stream and of a connection.
const WINDOW_STREAM: u32 = 256 << 10;
const WINDOW_CONNECTION: u32 = 1 << 20;
/// Streams that a client has reset before they were looked at: more of them end the connection (CVE-2023-44487).
const MAX_RESET_EARLY: usize = 20;
/// Streams that were reset because the client broke the rules: more of them end the connection.
const MAX_RESET_LOCALLY: usize = 64;
/// What begins an HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The content type of a TLS handshake (RFC 8446, section 5.1): what begins a TLS connection.
const TLS_HANDSHAKE: u8 = 22;
/// To whom speaks HTTP to a TLS port, in the words that Go's servers use, which clients look for.
const NOT_TLS: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n\
    Client sent an HTTP request to an HTTPS server.\n";

/// What the requests of one connection share, so that a request touches no counter that other connections touch.
struct Shared<H> {
    handler: Arc<H>,
    peer: Peer,
    activity: Arc<Activity>,
    /// In what pieces blobs are copied; `None` where they go out as they are mapped.
    pieces: Option<usize>,
}

/// What a connection turned out to be.
enum Spoken {
    Http1(Stream),
    Http2(Stream),
    Nothing,
}

/// Serves one connection to its end.
pub(super) async fn run<H: Handler>(
    stream: TcpStream,
    tls: Option<Tls>,
    peer: Peer,
    handler: Arc<H>,
    activity: &Arc<Activity>,
) {
    let stream = Watched::new(stream, Arc::clone(activity));
    let result = match until_told(activity, open(stream, tls)).await {
        None | Some(Ok(Spoken::Nothing)) => return,
        Some(Err(error)) => Err(error.into()),
        Some(Ok(Spoken::Http1(stream))) => {
            let pieces = peer.encrypted.then_some(PIECE_TLS);
            let shared = Arc::new(Shared { handler, peer, activity: Arc::clone(activity), pieces });
            http1(stream, shared).await
        }
        Some(Ok(Spoken::Http2(stream))) => {
            activity.is_http2();
            let pieces = Some(PIECE_HTTP2);
            let shared = Arc::new(Shared { handler, peer, activity: Arc::clone(activity), pieces });
            http2(stream, shared).await
        }
    };
    if let Err(error) = result {
        // A client's doing as a rule: it went away, or sent something that is not HTTP.
        tracing::debug!(listener = H::LISTENER.label(), error = &*error, "a connection ended early");
    }
}

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Finds out what is spoken. The time for that counts as the first request's head.
async fn open(mut stream: Watched, tls: Option<Tls>) -> io::Result<Spoken> {
    let Some(tls) = tls else {
        let http2 = stream.begins_with(PREFACE).await?;
        let stream = Stream::Plain(stream);
        return Ok(if http2 { Spoken::Http2(stream) } else { Spoken::Http1(stream) });
    };
    match stream.first_byte().await? {
        Some(TLS_HANDSHAKE) => {}
        Some(first) if first.is_ascii_uppercase() => {
            stream.write_all(NOT_TLS).await?;
            stream.shutdown().await?;
            return Ok(Spoken::Nothing);
        }
        _ => return Ok(Spoken::Nothing),
    }
    let stream = tls.accept(stream).await?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let stream = Stream::Tls(Box::new(stream));
    Ok(if http2 { Spoken::Http2(stream) } else { Spoken::Http1(stream) })
}

/// Runs a future of this connection's task until the connection is told to do anything but go on.
async fn until_told<F: Future>(activity: &Activity, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut registered = false;
    std::future::poll_fn(|cx| {
        if !registered {
            activity.register(cx.waker());
            registered = true;
        }
        if activity.verdict() != Verdict::Live {
            return Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

async fn http1<H: Handler>(stream: Stream, shared: Arc<Shared<H>>) -> Ended {
    let activity = Arc::clone(&shared.activity);
    let buffer = if shared.peer.encrypted { MAX_BUFFER_TLS } else { MAX_BUFFER };
    let connection = http1::Builder::new()
        // `watch` keeps this limit for all connections with one timer.
        .header_read_timeout(None)
        // No `max_headers`: hyper's own limit is 100 lines too, and costs no allocation a request.
        .max_header_size(MAX_HEAD)
        .max_buf_size(buffer)
        // The mapping must reach writev as it is: see the module's documentation.
        .writev(true)
        .serve_connection(TokioIo::new(stream), service(shared));
    drive(&activity, connection, |connection| connection.graceful_shutdown()).await
}

async fn http2<H: Handler>(stream: Stream, shared: Arc<Shared<H>>) -> Ended {
    let activity = Arc::clone(&shared.activity);
    // No keep-alive pings: `watch` ends connections on which nothing moves, with one timer for all.
    let connection = http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESET_EARLY)
        .max_local_error_reset_streams(MAX_RESET_LOCALLY)
        .max_header_list_size(MAX_HEAD as u32)
        .initial_stream_window_size(WINDOW_STREAM)
        .initial_connection_window_size(WINDOW_CONNECTION)
        .max_send_buf_size(2 * PIECE_HTTP2)
        .serve_connection(TokioIo::new(stream), service(shared));
    drive(&activity, connection, |connection| connection.graceful_shutdown()).await
}

fn service<H: Handler>(
    shared: Arc<Shared<H>>,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = Response<Body>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
> {
    service_fn(move |request: Request<Incoming>| {
        let begun = Begun::new(&shared.activity);
        let shared = Arc::clone(&shared);
        async move { Ok(respond(&shared, request, begun).await) }
    })
}

/// Drives a connection to its end, which is to come soon where it is told so.
async fn drive<C>(activity: &Activity, connection: C, finish: impl Fn(Pin<&mut C>)) -> Ended
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let mut connection = pin!(connection);
    let mut draining = false;
    std::future::poll_fn(|cx: &mut Context<'_>| {
        match activity.verdict() {
            Verdict::Live => {}
            Verdict::Drain if draining => {}
            Verdict::Drain => {
                draining = true;
                finish(connection.as_mut());
            }
            Verdict::Close => return Poll::Ready(Ok(())),
        }
        connection.as_mut().poll(cx).map_err(Into::into)
    })
    .await
}

/// A request whose head is complete, until its answer takes over the count of it. Over HTTP/2 a client may give it up.
struct Begun {
    activity: Arc<Activity>,
    answered: bool,
}

impl Begun {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.request_begun();
        Self { activity: Arc::clone(activity), answered: false }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.answered {
            self.activity.request_given_up();
        }
    }
}

async fn respond<H: Handler>(shared: &Shared<H>, mut request: Request<Incoming>, mut begun: Begun) -> Response<Body> {
    let http2 = request.version() == Version::HTTP_2;
    if http2 {
        name_the_host(&mut request);
    }
    let mut response = match refuse(&request) {
        None => shared.handler.handle(request, shared.peer).await,
        Some(status) => {
            let mut response = H::refuse(status);
            if !http2 {
                // What follows on the connection is not to be trusted to be a request.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    };
    begun.answered = true;
    response.body_mut().account(H::LISTENER, Arc::clone(&shared.activity), shared.pieces);
    response
}

/// Handlers find the host where HTTP/1.1 has it.
fn name_the_host(request: &mut Request<Incoming>) {
    let host = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host
        && !request.headers().contains_key(header::HOST)
    {
        request.headers_mut().insert(header::HOST, host);
    }
}

/// What no handler has to see. hyper has refused by now what cannot be parsed, disagreeing lengths, and a
/// Transfer-Encoding that does not end in chunked; it closes the connection after a request that had both a length
/// and an encoding (RFC 9112, section 6.1). Over HTTP/2 it resets what has a header of HTTP/1.1's connections, and
/// what has more or less data than its length says (RFC 9113, sections 8.2.2 and 8.1.1).
fn refuse(request: &Request<Incoming>) -> Option<StatusCode> {
    let headers = request.headers();
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if target > MAX_TARGET {
        return Some(StatusCode::URI_TOO_LONG);
    }
    let lines = headers.len();
    if lines > MAX_HEADERS || headers.iter().any(|(name, value)| name.as_str().len() + value.len() > MAX_HEADER_LINE) {
        return Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    if request.version() != Version::HTTP_10 {
        // RFC 9112, section 3.2, and RFC 9113, section 8.3.1: exactly one.
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return Some(StatusCode::BAD_REQUEST) };
        if host.as_bytes().iter().any(|byte| byte.is_ascii_whitespace() || b"/?#@\\".contains(byte)) {
            return Some(StatusCode::BAD_REQUEST);
        }
        let named = request.uri().authority().filter(|_| request.version() == Version::HTTP_2);
        if named.is_some_and(|authority| !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes())) {
            return Some(StatusCode::BAD_REQUEST);
        }
    }
    // RFC 9112, section 6.1: no other coding is understood, and what is inside one would be taken for the content.
    let coding = headers.get(header::TRANSFER_ENCODING);
    if coding.is_some_and(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked")) {
        return Some(StatusCode::NOT_IMPLEMENTED);
    }
    // A GET with a body is of no use but to those who hope that somebody in between overlooks the body.
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if reads && !request.body().is_end_stream() {
        return Some(StatusCode::BAD_REQUEST);
    }
    None
}
