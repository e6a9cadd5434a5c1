//! The client of an upstream registry: one outbound path with its own redirects, address rules, budgets and retries.
//!
//! **Promise.** Nothing is sent to an address that the rules forbid; credentials go to the registry they belong to or
//! to its token service; every answer is bounded in size and time; a manifest is verified against its digest before it
//! is returned; no message carries a credential.
//!
//! **Protocol.** OCI distribution-spec 1.1 over HTTP/1.1, Docker's token specification. A request is sent without a
//! ping first; a 401 is learnt from once for each repository. Failures of class Net are tried again, at most four times
//! and within the call's [`Budget`]; a 429 closes the endpoint until the time it states.
//!
//! **Concurrency.** Any number of calls at once; clones share connections, tokens and windows of silence. Endpoints
//! that differ in transport or credentials share nothing. A call that is dropped closes its connection.
//!
//! **After a crash** nothing remains: all state is in memory.
//!
//! The map: [`Client`] → `manifest`, `blob`, `push` (the API's calls) → `call` (attempts, 401, redirects) →
//! `auth` (realms, tokens), `exchange` (one HTTP request, windows of silence) and `connect` (addresses, proxies, TLS, idle
//! connections). [`docker_config`] finds the credentials, [`login`] gets them from a cloud.

mod address;
mod auth;
mod blob;
mod body;
mod call;
pub mod challenge;
mod connect;
pub mod docker_config;
mod error;
mod exchange;
mod given;
pub mod login;
mod manifest;
mod proxy;
mod push;
mod target;
mod tls;
mod wants;
mod windows;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use moka::future::Cache;

use self::{
    address::Rules,
    auth::{Token, TokenKey},
    call::Session,
    connect::{Limits, Profile},
};
pub use self::{
    address::permits_by_name,
    blob::Transfer,
    docker_config::DockerConfig,
    error::{RegistryError, SetupError},
    given::Given,
    manifest::{Page, Referrers, lists_manifests},
    proxy::ProxyEnvironment,
    wants::Greeting,
};
use crate::{
    digest::Digest,
    oci::{Descriptor, Registry, Repository, Selector, Tag},
    secret::Secret,
};

const USER_AGENT: &str = concat!("larder/", env!("CARGO_PKG_VERSION"));

/// How to reach one registry and who asks: everything that decides which answers it gives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The registry as named.
    pub registry: Registry,
    /// TLS, proxy, plain http.
    pub transport: Transport,
    /// Who asks.
    pub credentials: Credentials,
}

/// How connections to a registry are made.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Transport {
    /// Further CA certificates, PEM; added to the system's.
    pub ca: Option<Arc<str>>,
    /// Client certificate chain and key, PEM.
    pub client_certificate: Option<(Arc<str>, Arc<Secret>)>,
    /// Through which proxy. `None`: the environment's.
    pub proxy: Option<Proxy>,
    /// Flux's `insecure`: plain http, or TLS without verification (contract section 2).
    pub insecure: bool,
    /// Plain http, given outright (`--plain-http`).
    pub plain_http: bool,
    /// TLS without verification, given outright (`--insecure-skip-tls-verify`).
    pub skip_tls_verify: bool,
    /// Loopback is permitted for this registry, its realm and its redirects: the object's own url, an `--upstream`
    /// or an `--insecure-registry` names a loopback IP literal.
    pub allow_loopback: bool,
    /// `host[:port]` that answers the API, where that is another than the registry's name tells.
    pub authority: Option<Arc<str>>,
}

/// A proxy: http, https or socks5.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proxy {
    /// `http://host:port`, `https://host:port`, `socks5://host:port`; without userinfo.
    pub address: String,
    /// User and password.
    pub credentials: Option<(String, Secret)>,
}

/// Who asks a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// User and password: sent as Basic, or to the token service.
    Basic {
        /// User.
        username: String,
        /// Password.
        password: Secret,
    },
    /// An OAuth2 refresh token (`identitytoken` of a Docker config).
    IdentityToken(Secret),
    /// A token for the registry itself (`registrytoken` of a Docker config).
    RegistryToken(Secret),
    /// Whatever a login at the registry's cloud gives, renewed before it expires.
    Login(Arc<login::Login>),
}

/// What a HEAD of a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The manifest's digest as the registry states it.
    pub digest: Digest,
    /// Its media type, where stated.
    pub media_type: Option<String>,
    /// Its length in bytes, where stated.
    pub length: Option<u64>,
}

/// A manifest's exact bytes, verified against `digest`.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    /// The digest of `bytes`.
    pub digest: Digest,
    /// Content-Type without parameters, where stated.
    pub content_type: Option<String>,
    /// The exact bytes.
    pub bytes: Bytes,
}

/// Where a blob's bytes go. Errors of the sink end the transfer.
pub trait Sink: Send {
    /// Takes the next bytes, in order, each once (a resumed transfer goes on where it was cut).
    fn write(&mut self, data: Bytes) -> impl Future<Output = Result<(), SinkError>> + Send;
}

/// The sink refused: full disk, too many bytes.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// The address rules, and what else an installation decides for all registries.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--egress-allow`, CIDRs.
    pub egress_allow: Vec<String>,
    /// `--egress-deny`, CIDRs.
    pub egress_deny: Vec<String>,
    /// `tokenRealms`: hosts, with or without port, that get credentials although a registry on another domain names them.
    pub token_realms: Vec<String>,
    /// API servers, never contacted: HOST:PORT, or HOST for every port of it.
    pub api_servers: Vec<String>,
    /// The environment's proxies, for transports that name none.
    pub proxies: ProxyEnvironment,
    /// Identities for logins at clouds.
    pub login: login::Config,
    /// Looking up a name and connecting; 10 s.
    pub connect_timeout: Duration,
    /// Handshakes, and from a request to the head of its response; 60 s, the default of an object's `timeout`, so that
    /// the budget decides. A server that is silent is not asked again sooner.
    pub response_timeout: Duration,
    /// A body below 1 KiB/s for this long is given up; 30 s (R3).
    pub slow_period: Duration,
    /// The pause before the second attempt, tripled each time, with up to half of it taken off at random; 100 ms, so
    /// that four attempts at a closed port end within 2 s (R1).
    pub retry_base: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            egress_allow: Vec::new(),
            egress_deny: Vec::new(),
            token_realms: Vec::new(),
            api_servers: Vec::new(),
            proxies: ProxyEnvironment::default(),
            login: login::Config::default(),
            connect_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(60),
            slow_period: Duration::from_secs(30),
            retry_base: Duration::from_millis(100),
        }
    }
}

/// The client; clones share connections, tokens and limits.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    config: Config,
    rules: Arc<Rules>,
    environment: Arc<ProxyEnvironment>,
    profiles: Cache<Transport, Arc<Profile>>,
    sessions: Cache<Endpoint, Arc<Session>>,
    tokens: Cache<TokenKey, Token>,
    logins: login::Logins,
    next_session: AtomicU64,
}

/// How many transports and tokens are remembered, and how many bytes of sessions; what is forgotten costs a handshake or a 401.
const MAX_PROFILES: u64 = 1024;
const MAX_SESSION_BYTES: u64 = 16 << 20;
const MAX_TOKENS: u64 = 65_536;

/// Keeps each token for as long as it says.
struct TokenLife;

impl moka::Expiry<TokenKey, Token> for TokenLife {
    fn expire_after_create(&self, _: &TokenKey, token: &Token, _: Instant) -> Option<Duration> {
        Some(token.keep)
    }
}

/// One call's budget.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// When it must have ended.
    pub deadline: Instant,
    /// A reconcile that somebody asked for: may probe once inside a 429 window.
    pub requested: bool,
    /// For a blob's body: after so long without a byte the transfer goes on over another connection, once, which has as
    /// long. `None`: the client's own limits, which are for those who have time.
    pub silence: Option<Duration>,
}

impl Budget {
    /// Ends at `deadline`.
    pub fn until(deadline: Instant) -> Self {
        Self { deadline, requested: false, silence: None }
    }

    /// Ends after `time`, counted from now.
    pub fn within(time: Duration) -> Self {
        Self::until(Instant::now() + time)
    }

    /// The same for what somebody asked for by hand, or not.
    pub fn requested(self, requested: bool) -> Self {
        Self { requested, ..self }
    }

    /// The same for somebody who does not put up with a longer silence.
    pub fn silence(self, silence: Duration) -> Self {
        Self { silence: Some(silence), ..self }
    }
}

impl Client {
    /// A client under these rules.
    pub fn new(config: Config) -> Result<Self, RegistryError> {
        let rules = Rules::new(&config.egress_allow, &config.egress_deny, &config.api_servers)?;
        Ok(Self(Arc::new(Inner {
            rules: Arc::new(rules),
            environment: Arc::new(config.proxies.clone()),
            profiles: Cache::builder().max_capacity(MAX_PROFILES).time_to_idle(call::SESSION_IDLE).build(),
            sessions: Cache::builder()
                .max_capacity(MAX_SESSION_BYTES)
                .weigher(call::session_weight)
                .expire_after(call::SessionLife)
                .build(),
            tokens: Cache::builder().max_capacity(MAX_TOKENS).expire_after(TokenLife).build(),
            logins: login::Logins::new(config.login.clone()),
            next_session: AtomicU64::new(0),
            config,
        })))
    }

    /// Whether a registry of this name may be contacted, as far as its name alone tells: an address is held against the
    /// rules, and names that lead to this machine or to the API server are known. Other names are judged when they are
    /// looked up, at each connection.
    pub fn permits(&self, registry: &Registry) -> Result<(), &'static str> {
        self.0.rules.check_name(registry)
    }

    /// HEAD of a manifest. A registry that does not state the digest is [`RegistryError::NoDigest`]: a GET can tell.
    pub async fn resolve(
        &self,
        at: &Endpoint,
        repository: &Repository,
        what: &Selector,
        budget: Budget,
    ) -> Result<Resolved, RegistryError> {
        within(budget, at, self.0.resolve(at, repository, what, manifest::MANIFESTS, budget)).await
    }

    /// The same of a manifest of any kind.
    pub async fn resolve_any(
        &self,
        at: &Endpoint,
        repository: &Repository,
        what: &Selector,
        budget: Budget,
    ) -> Result<Resolved, RegistryError> {
        within(budget, at, self.0.resolve(at, repository, what, manifest::ANY_MANIFEST, budget)).await
    }

    /// GET of a manifest: at most 4 MiB, hashed; compared with a digest selector, with Docker-Content-Digest where sent.
    pub async fn manifest(
        &self,
        at: &Endpoint,
        repository: &Repository,
        what: &Selector,
        budget: Budget,
    ) -> Result<FetchedManifest, RegistryError> {
        within(budget, at, self.0.manifest(at, repository, what, manifest::MANIFESTS, budget)).await
    }

    /// GET of a blob into `sink`; resumes by Range at most three times. Takes no byte beyond `descriptor.size`. The
    /// digest is the sink's to compare.
    pub async fn blob(
        &self,
        at: &Endpoint,
        repository: &Repository,
        descriptor: &Descriptor,
        sink: &mut impl Sink,
        budget: Budget,
    ) -> Result<(), RegistryError> {
        within(budget, at, blob::into_sink(self, at, repository, descriptor, sink, budget)).await
    }

    /// The same of a manifest of any kind, for whoever only passes it on: the server chooses what to send.
    pub async fn any_manifest(
        &self,
        at: &Endpoint,
        repository: &Repository,
        what: &Selector,
        budget: Budget,
    ) -> Result<FetchedManifest, RegistryError> {
        within(budget, at, self.0.manifest(at, repository, what, manifest::ANY_MANIFEST, budget)).await
    }

    /// Begins the GET of a blob, from `offset` on; returns when the answer's head agrees with `size`, or tells it. Only
    /// until then the budget's deadline counts. Takes no byte beyond the size; the digest is the caller's to compare.
    pub async fn open_blob(
        &self,
        at: &Endpoint,
        repository: &Repository,
        digest: Digest,
        size: Option<u64>,
        offset: u64,
        budget: Budget,
    ) -> Result<Transfer, RegistryError> {
        within(budget, at, Transfer::open(self, at, repository, digest, size, offset, budget)).await
    }

    /// One page of tags, as the registry gives it; `query` is what the asker put after the `?`, or what
    /// [`Page::next`] said.
    pub async fn tags_page(
        &self,
        at: &Endpoint,
        repository: &Repository,
        query: &str,
        budget: Budget,
    ) -> Result<Page, RegistryError> {
        within(budget, at, self.0.tags_page(at, repository, query, budget)).await
    }

    /// What refers to a manifest, one page; `query` as in [`Client::tags_page`]. A registry without that API answers
    /// class NotFound.
    pub async fn referrers(
        &self,
        at: &Endpoint,
        repository: &Repository,
        subject: &Digest,
        query: &str,
        budget: Budget,
    ) -> Result<Referrers, RegistryError> {
        within(budget, at, self.0.referrers(at, repository, subject, query, budget)).await
    }

    /// All tags, through all pages (at most 10 000 tags).
    pub async fn tags(
        &self,
        at: &Endpoint,
        repository: &Repository,
        budget: Budget,
    ) -> Result<Vec<Tag>, RegistryError> {
        within(budget, at, self.0.tags(at, repository, budget)).await
    }

    /// A blob's length, where the repository has it: by HEAD, and by a GET that ends after its headers where a HEAD is
    /// answered with 404 or 405, as by caches that fill only on a GET, or without a length.
    pub async fn blob_length(
        &self,
        at: &Endpoint,
        repository: &Repository,
        digest: Digest,
        budget: Budget,
    ) -> Result<Option<u64>, RegistryError> {
        within(budget, at, blob::length(self, at, repository, digest, budget)).await
    }

    /// HEAD of a blob.
    pub async fn has_blob(
        &self,
        at: &Endpoint,
        repository: &Repository,
        digest: &Digest,
        budget: Budget,
    ) -> Result<bool, RegistryError> {
        within(budget, at, self.0.has_blob(at, repository, digest, false, budget)).await
    }

    /// Uploads a blob (POST, then one PUT), unless the registry has it.
    pub async fn push_blob(
        &self,
        at: &Endpoint,
        repository: &Repository,
        digest: &Digest,
        data: Bytes,
        budget: Budget,
    ) -> Result<(), RegistryError> {
        within(budget, at, self.0.push_blob(at, repository, digest, data, budget)).await
    }

    /// PUT of a manifest under a tag or its digest.
    pub async fn push_manifest(
        &self,
        at: &Endpoint,
        repository: &Repository,
        what: &Selector,
        media_type: &str,
        data: Bytes,
        budget: Budget,
    ) -> Result<(), RegistryError> {
        within(budget, at, self.0.push_manifest(at, repository, what, media_type, data, budget)).await
    }
}

/// The one place where a call's deadline ends it, whatever it is waiting for.
async fn within<T>(
    budget: Budget,
    at: &Endpoint,
    call: impl Future<Output = Result<T, RegistryError>>,
) -> Result<T, RegistryError> {
    match tokio::time::timeout_at(budget.deadline.into(), call).await {
        Ok(result) => result,
        Err(_) => {
            Err(RegistryError::Timeout { what: at.registry.to_string(), waiting: "before the whole answer had come" })
        }
    }
}

impl Inner {
    /// The shared state of calls to `at`.
    async fn session(&self, at: &Endpoint) -> Result<Arc<Session>, RegistryError> {
        if let Some(session) = self.sessions.get(at).await {
            return Ok(session);
        }
        let made = self.sessions.try_get_with_by_ref(at, async {
            let limits = self.limits();
            let profile = self.profiles.try_get_with_by_ref(&at.transport, async {
                Profile::new(&at.transport, self.rules.clone(), self.environment.clone(), limits).map(Arc::new)
            });
            let profile = profile.await.map_err(|error| SetupError::clone(&error))?;
            Ok::<_, SetupError>(Arc::new(Session::new(self.next_id(), at.clone(), profile)))
        });
        made.await.map_err(|error| SetupError::clone(&error).into())
    }

    fn limits(&self) -> Limits {
        Limits { connect: self.config.connect_timeout, response: self.config.response_timeout }
    }

    fn next_id(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::Relaxed)
    }
}
