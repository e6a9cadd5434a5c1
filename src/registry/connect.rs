//! Connections: resolve, check every address, connect to a checked one only, through a proxy where one is named; and
//! the idle ones of a transport profile, kept for the next request.
//!
//! Profiles never share: an object's own CA, proxy or `insecure` cannot reach another object's connections (O12).
//! Any number of calls use a profile at once. Idle connections close after [`IDLE`].

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use http::HeaderValue;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OnceCell,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    Proxy, ProxyEnvironment, Transport,
    address::{Permission, Rules},
    error::{RegistryError, SetupError},
    proxy::{self, Kind, ProxyError, Route},
    target::{Origin, Target, literal},
    tls::Material,
    traffic::Outgoing,
};
use crate::blocking;

/// How long a connection is kept without use: under the 60 s after which many servers close theirs.
const IDLE: Duration = Duration::from_secs(50);
/// How many idle connections to one server are kept: twice the default concurrency.
const MAX_IDLE: usize = 32;
/// How long a name is looked up of which only what it leads to counts, not whether it can be reached.
const LOOKUP: Duration = Duration::from_secs(2);
/// The next address of a name is tried this long after the former (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// What the error says when no address could be connected to.
pub(super) const NO_CONNECTION: &str = "cannot connect";
/// The largest response head.
const MAX_HEAD: usize = 64 << 10;
/// The most response header fields.
const MAX_HEADERS: usize = 128;

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
type BoxStream = Pin<Box<dyn Stream>>;

/// One connection, ready for a request.
pub(super) struct Connection {
    pub(super) sender: SendRequest<Outgoing>,
    /// The target's own address; behind a proxy, what is known of it here.
    pub(super) peer: Option<IpAddr>,
    /// Requests go out in absolute form, with this Proxy-Authorization.
    pub(super) forward: Option<Option<HeaderValue>>,
    /// It has carried a request before, so the server may have closed it meanwhile.
    pub(super) reused: bool,
}

/// Limits of time that all profiles share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Looking up a name and connecting.
    pub(super) connect: Duration,
    /// The handshakes together; and from a request to the head of its response.
    pub(super) response: Duration,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// Everything that connections under one [`Transport`] share.
pub(super) struct Profile {
    pub(super) allow_loopback: bool,
    /// A login's: it may reach the addresses that give an identity.
    allow_identity: bool,
    rules: Arc<Rules>,
    environment: Arc<ProxyEnvironment>,
    proxy: Option<Route>,
    material: Arc<Material>,
    tls: OnceCell<Arc<ClientConfig>>,
    proxy_tls: OnceCell<Arc<ClientConfig>>,
    limits: Limits,
    idle: Arc<Mutex<Pool>>,
    /// Which of http and https an `insecure` registry speaks, once it was asked.
    pub(super) schemes: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<bool>>>>>,
}

#[derive(Default)]
struct Pool {
    by_origin: HashMap<Origin, Vec<Idle>>,
    /// A task is waiting to close what grows old.
    swept: bool,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Profile {
    pub(super) fn new(
        transport: &Transport,
        rules: Arc<Rules>,
        environment: Arc<ProxyEnvironment>,
        limits: Limits,
    ) -> Result<Self, SetupError> {
        Ok(Self {
            allow_loopback: transport.allow_loopback,
            allow_identity: false,
            rules,
            environment,
            proxy: transport.proxy.as_ref().map(Route::parse).transpose()?,
            material: Arc::new(Material::of(transport)?),
            tls: OnceCell::new(),
            proxy_tls: OnceCell::new(),
            limits,
            idle: Arc::default(),
            schemes: Mutex::default(),
        })
    }

    /// The same for a login that asks where clouds give a workload its identity.
    pub(super) fn for_metadata(self) -> Self {
        Self { allow_identity: true, ..self }
    }

    /// A connection to `target`: an idle one, unless `fresh`, else a new one. `private`: whether a private address may
    /// be contacted.
    pub(super) async fn connection(
        &self,
        target: &Target,
        private: bool,
        fresh: bool,
    ) -> Result<Connection, RegistryError> {
        let permission = Permission { loopback: self.allow_loopback, private, identity: self.allow_identity };
        let origin = target.origin();
        if !fresh {
            while let Some(mut idle) = self.take_idle(&origin) {
                // The rules are asked anew: the same server may be named by a spec and by a public registry's redirect.
                if let Some(address) = idle.peer {
                    self.check(target, address, permission, &[])?;
                }
                if idle.sender.ready().await.is_ok() {
                    idle.reused = true;
                    return Ok(idle);
                }
            }
        }
        // A server that accepts and then says nothing has the time that an answer has.
        match timeout(self.limits.response, self.connect(target, permission)).await {
            Ok(result) => result,
            Err(_) => Err(RegistryError::Timeout { what: target.to_string(), waiting: "in the handshake" }),
        }
    }

    fn take_idle(&self, origin: &Origin) -> Option<Connection> {
        let mut pool = lock(&self.idle);
        let list = pool.by_origin.get_mut(origin)?;
        while let Some(idle) = list.pop() {
            if idle.since.elapsed() < IDLE && !idle.connection.sender.is_closed() {
                return Some(idle.connection);
            }
        }
        None
    }

    /// Keeps a connection whose response was read to its end.
    pub(super) fn keep(&self, origin: Origin, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let mut pool = lock(&self.idle);
        let list = pool.by_origin.entry(origin).or_default();
        if list.len() >= MAX_IDLE {
            return;
        }
        list.push(Idle { connection, since: Instant::now() });
        if !pool.swept {
            pool.swept = true;
            tokio::spawn(sweep(Arc::downgrade(&self.idle)));
        }
    }

    /// Where the names of API servers lead that are asked at this port.
    async fn api_addresses(&self, port: u16) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for name in self.rules.api_names(port) {
            let found = timeout(LOOKUP, tokio::net::lookup_host((name, port))).await;
            addresses.extend(found.ok().and_then(Result::ok).into_iter().flatten().map(|found| found.ip()));
        }
        addresses
    }

    fn check(
        &self,
        target: &Target,
        address: IpAddr,
        permission: Permission,
        api: &[IpAddr],
    ) -> Result<(), RegistryError> {
        self.rules.check(address, target.port, permission, api).map_err(|why| RegistryError::Forbidden {
            what: target.to_string(),
            why: match literal(&target.host) {
                Some(_) => why.to_owned(),
                None => format!("{} is {address}: {why}", target.host),
            },
        })
    }

    async fn connect(&self, target: &Target, permission: Permission) -> Result<Connection, RegistryError> {
        let environment;
        let route = match &self.proxy {
            Some(route) => Some((route, permission.loopback)),
            None => match self.environment.for_target(target) {
                None => None,
                Some(proxy) => {
                    environment = Route::parse(proxy)?;
                    Some((&environment, names_loopback(proxy)))
                }
            },
        };
        let (stream, peer, forward) = match route {
            None => {
                let (stream, peer) = self.dial(target, permission).await?;
                (Box::pin(stream) as BoxStream, Some(peer), None)
            }
            Some((route, loopback)) => {
                let peer = self.check_behind_proxy(target, permission).await?;
                let (stream, forward) = self.through(route, target, loopback).await?;
                (stream, peer, forward)
            }
        };
        let stream = if target.https { self.secure(stream, target).await? } else { stream };
        let mut builder = Builder::new();
        builder.max_headers(MAX_HEADERS).max_header_size(MAX_HEAD).max_buf_size(4 * MAX_HEAD);
        let (sender, connection) = builder
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable_because(target, NO_CONNECTION, error))?;
        tokio::spawn(async move {
            // Its errors reach the request that it carries.
            let _ = connection.await;
        });
        Ok(Connection { sender, peer, forward, reused: false })
    }

    async fn through(
        &self,
        route: &Route,
        target: &Target,
        loopback: bool,
    ) -> Result<(BoxStream, Option<Option<HeaderValue>>), RegistryError> {
        let address = Target {
            https: route.kind == Kind::Https,
            host: route.host.clone(),
            port: route.port,
            path_and_query: "/".to_owned(),
        };
        let permission = Permission { loopback, private: true, identity: false };
        let (stream, _) = self.dial(&address, permission).await?;
        let mut stream: BoxStream = Box::pin(stream);
        if route.kind == Kind::Https {
            let config = self.config(&self.proxy_tls, Material::for_proxies).await?;
            stream = handshake(config, stream, &address).await?;
        }
        match route.kind {
            Kind::Http | Kind::Https if !target.https => return Ok((stream, Some(route.authorization()))),
            Kind::Http | Kind::Https => proxy::connect(&mut stream, route, target).await,
            Kind::Socks5 => proxy::socks5(&mut stream, route, target).await,
        }
        .map_err(|error| match error {
            ProxyError::Credentials => SetupError { what: "proxy", why: error.to_string() }.into(),
            error => unreachable_because(target, "cannot connect through the proxy", error),
        })?;
        Ok((stream, None))
    }

    /// The proxy connects, and resolves names, itself; what can be known here of the target is checked all the same.
    async fn check_behind_proxy(
        &self,
        target: &Target,
        permission: Permission,
    ) -> Result<Option<IpAddr>, RegistryError> {
        let api = self.api_addresses(target.port).await;
        if let Some(address) = literal(&target.host) {
            return self.check(target, address, permission, &api).map(|()| Some(address));
        }
        let found = timeout(LOOKUP, tokio::net::lookup_host((target.host.as_str(), target.port))).await;
        let found: Vec<_> = found.ok().and_then(Result::ok).into_iter().flatten().map(|a| a.ip()).collect();
        self.check_name(target, &found)?;
        found.iter().try_for_each(|address| self.check(target, *address, permission, &api))?;
        Ok(found.first().copied())
    }

    fn check_name(&self, target: &Target, found: &[IpAddr]) -> Result<(), RegistryError> {
        let explicit = !found.is_empty() && found.iter().all(|address| self.rules.allows_explicitly(*address));
        if self.rules.names_api_server(&target.host, target.port) && !explicit {
            return Err(RegistryError::Forbidden {
                what: target.to_string(),
                why: "the Kubernetes API server is never contacted (--egress-allow may permit its address)".to_owned(),
            });
        }
        Ok(())
    }

    async fn dial(&self, target: &Target, permission: Permission) -> Result<(TcpStream, IpAddr), RegistryError> {
        match timeout(self.limits.connect, self.resolve_and_open(target, permission)).await {
            Ok(result) => result,
            Err(_) => Err(RegistryError::Timeout { what: target.to_string(), waiting: "connecting" }),
        }
    }

    /// Resolves, checks, and connects to a checked address.
    async fn resolve_and_open(
        &self,
        target: &Target,
        permission: Permission,
    ) -> Result<(TcpStream, IpAddr), RegistryError> {
        let (host, port) = (target.host.as_str(), target.port);
        if let Some(address) = literal(host) {
            self.check(target, address, permission, &self.api_addresses(port).await)?;
            let stream = open(SocketAddr::new(address, port)).await;
            return stream.map(|s| (s, address)).map_err(|error| unreachable_because(target, NO_CONNECTION, error));
        }
        // Side by side: nobody waits for one name longer because of the other.
        let (api, found) = tokio::join!(self.api_addresses(port), tokio::net::lookup_host((host, port)));
        let found: Vec<SocketAddr> = match found {
            Ok(found) => found.collect(),
            Err(error) => {
                self.check_name(target, &[])?;
                return Err(unreachable_because(target, "its host cannot be looked up", error));
            }
        };
        self.check_name(target, &found.iter().map(SocketAddr::ip).collect::<Vec<_>>())?;
        let mut refusal = None;
        let mut usable = Vec::with_capacity(found.len());
        for address in found {
            match self.check(target, address.ip(), permission, &api) {
                Ok(()) => usable.push(address),
                Err(error) => refusal = Some(error),
            }
        }
        if usable.is_empty() {
            return Err(refusal.unwrap_or_else(|| {
                unreachable_because(target, "its host cannot be looked up", io::Error::from(io::ErrorKind::NotFound))
            }));
        }
        race(interleave(usable)).await.map_err(|error| unreachable_because(target, NO_CONNECTION, error))
    }

    async fn secure(&self, stream: BoxStream, target: &Target) -> Result<BoxStream, RegistryError> {
        let config = self.config(&self.tls, Material::for_registries).await?;
        handshake(config, stream, target).await
    }

    /// Built once: reading the system's certificates takes milliseconds and blocks.
    async fn config(
        &self,
        cell: &OnceCell<Arc<ClientConfig>>,
        build: fn(&Material) -> Result<Arc<ClientConfig>, SetupError>,
    ) -> Result<Arc<ClientConfig>, RegistryError> {
        let material = self.material.clone();
        let config = cell.get_or_try_init(|| blocking::io(move || build(&material))).await?;
        Ok(config.clone())
    }
}

/// A proxy that the process's own environment names by a loopback address is the operator's, like an `--upstream`.
fn names_loopback(proxy: &Proxy) -> bool {
    Route::parse(proxy).ok().and_then(|route| literal(&route.host)).is_some_and(|address| address.is_loopback())
}

async fn handshake(config: Arc<ClientConfig>, stream: BoxStream, target: &Target) -> Result<BoxStream, RegistryError> {
    let failed = |source| RegistryError::Handshake { what: target.to_string(), source };
    let name = ServerName::try_from(target.host.clone()).map_err(|error| failed(error.into()))?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| match error.kind() {
        // rustls's own errors: a certificate or a protocol that will be no better in a moment.
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => failed(error.into()),
        _ => unreachable_because(target, "the TLS handshake broke off", error),
    })?;
    Ok(Box::pin(stream))
}

fn unreachable_because(
    target: &Target,
    doing: &'static str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> RegistryError {
    RegistryError::Unreachable { what: target.to_string(), doing, source: source.into() }
}

async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Alternates families, the resolver's first choice first (RFC 8305, section 4).
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv6) else { return addresses };
    let (one, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|a| a.is_ipv6() == first);
    let mut other = other.into_iter();
    let mut out = Vec::with_capacity(one.len());
    for address in one {
        out.push(address);
        out.extend(other.next());
    }
    out.extend(other);
    out
}

/// The first connection that stands; a further address joins when one fails, or takes its time.
async fn race(addresses: Vec<SocketAddr>) -> io::Result<(TcpStream, IpAddr)> {
    let mut waiting = addresses.into_iter();
    let mut tries: JoinSet<io::Result<(TcpStream, IpAddr)>> = JoinSet::new();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    loop {
        if let Some(address) = waiting.next() {
            tries.spawn(async move { open(address).await.map(|stream| (stream, address.ip())) });
        } else if tries.is_empty() {
            return Err(last);
        }
        let ended = if waiting.len() > 0 {
            match timeout(ATTEMPT_DELAY, tries.join_next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            }
        } else {
            tries.join_next().await
        };
        match ended {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(error))) => last = error,
            Some(Err(_)) | None => {}
        }
    }
}

/// Closes idle connections when they grow old; ends with the last of them.
async fn sweep(pool: Weak<Mutex<Pool>>) {
    loop {
        tokio::time::sleep(IDLE / 2).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut pool = lock(&pool);
        pool.by_origin.retain(|_, list| {
            list.retain(|idle| idle.since.elapsed() < IDLE && !idle.connection.sender.is_closed());
            !list.is_empty()
        });
        if pool.by_origin.is_empty() {
            pool.swept = false;
            return;
        }
    }
}
