//! A listener: accepts connections, has HTTP spoken on them, holds everybody to the limits, and drains at the end.
//!
//! A [`Handler`] sees requests that are whole, bounded and unambiguous; everything that a
//! client can do to a connection before that is dealt with here and in `connection`. Limits are kept by `watch`, without a clock on the
//! path of a request. When places or file descriptors run out, accepting pauses: clients wait in the kernel's queue,
//! idle connections and those that have asked nothing for a while make room, no request is dropped and nothing spins
//! (hardening.md, rows C4 and D7).
//!
//! A listener may speak TLS ([`Bound::with_tls`]), and may hand its connections to threads of their own
//! ([`Bound::with_workers`]). What is spoken on a connection is settled in `connection`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::Semaphore,
};

use super::{
    body::Body,
    connection, reply,
    tls::Tls,
    watch::{Activity, Verdict, Watchdog},
    workers::Workers,
};
use crate::{class::Class, metrics, shutdown::Shutdown};

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

    /// The answer to a request that is refused before it is handled: a client's mistake, in the words of this listener.
    fn refuse(status: StatusCode) -> Response<Body> {
        reply::text(status, status.canonical_reason().unwrap_or_default(), Some(Class::Client))
    }
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
    /// How long a client may take to send the head of a request while others wait for its place.
    pub(super) fn haste(&self) -> Duration {
        self.head / 10
    }

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
    tls: Option<Tls>,
    workers: Option<Arc<Workers>>,
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
            Ok(Self { listener, address, tls: None, workers: None })
        };
        bind().map_err(|source| BindError { address, source })
    }

    /// Speaks TLS on its connections.
    pub fn with_tls(self, tls: Tls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// Serves its connections on these threads instead of those of the runtime that [`serve`] runs on.
    pub fn with_workers(self, workers: Arc<Workers>) -> Self {
        Self { workers: Some(workers), ..self }
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
    let accept = accept(&bound, &handler, &limits, &watchdog, &places);
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
    bound: &Bound,
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
        let (stream, from) = match bound.listener.accept().await {
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
        let tls = bound.tls.clone();
        let peer = Peer { address: from.ip().to_canonical(), encrypted: tls.is_some() };
        // Answers are written whole; waiting for more to send only delays them.
        let _ = stream.set_nodelay(true);
        let Some(workers) = &bound.workers else {
            tokio::spawn(async move {
                connection::run(stream, tls, peer, handler, &activity).await;
                activity.end();
                drop(place);
            });
            continue;
        };
        // The socket leaves this runtime for the one of its thread.
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => {
                activity.end();
                tracing::debug!(listener = H::LISTENER.label(), %error, "a connection could not be handed over");
                continue;
            }
        };
        workers.spawn(move || async move {
            match tokio::net::TcpStream::from_std(stream) {
                Ok(stream) => connection::run(stream, tls, peer, handler, &activity).await,
                Err(error) => {
                    tracing::debug!(listener = H::LISTENER.label(), %error, "a connection could not be taken over");
                }
            }
            activity.end();
            drop(place);
        });
    }
}

/// Waits until a connection ends, asking those to that do nothing.
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
