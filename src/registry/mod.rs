//! The client of an upstream registry: one outbound path with its own redirects, address rules, budgets and retries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::{
    class::Class,
    digest::Digest,
    oci::{Descriptor, Registry, Repository, Selector, Tag},
    secret::Secret,
};

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
}

/// What a HEAD of a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The manifest's digest as the registry states it.
    pub digest: Digest,
    /// Its media type, where stated.
    pub media_type: Option<String>,
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

/// What went wrong at, or on the way to, a registry.
#[derive(Debug, thiserror::Error)]
#[error("todo")]
pub struct RegistryError;

impl RegistryError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        Class::Net
    }

    /// Whether this failed before the registry itself answered for lack of usable credentials, TLS material, proxy or
    /// token (Flux's AuthenticationFailed), as opposed to the registry's own refusal (OCIArtifactPullFailed).
    pub fn is_authentication_setup(&self) -> bool {
        false
    }

    /// For class Rate: when to ask again.
    pub fn retry_after(&self) -> Option<Duration> {
        None
    }
}

/// The address rules, and what else an installation decides for all registries.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `--egress-allow`, CIDRs.
    pub egress_allow: Vec<String>,
    /// `--egress-deny`, CIDRs.
    pub egress_deny: Vec<String>,
    /// `tokenRealms`: hosts that may be realms for credentials of another host: (registry, realm host).
    pub token_realms: Vec<(String, String)>,
}

/// The client; clones share connections, tokens and limits.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {}

/// One call's budget.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// When it must have ended.
    pub deadline: Instant,
    /// A reconcile that somebody asked for: may probe once inside a 429 window.
    pub requested: bool,
}

impl Client {
    /// A client under these rules.
    pub fn new(config: Config) -> Result<Self, RegistryError> {
        let _ = config;
        todo!()
    }

    /// HEAD of a manifest.
    pub async fn resolve(
        &self,
        at: &Endpoint,
        repository: &Repository,
        what: &Selector,
        budget: Budget,
    ) -> Result<Resolved, RegistryError> {
        let _ = (at, repository, what, budget);
        todo!()
    }

    /// GET of a manifest: at most 4 MiB, hashed; compared with a digest selector, with Docker-Content-Digest where sent.
    pub async fn manifest(
        &self,
        at: &Endpoint,
        repository: &Repository,
        what: &Selector,
        budget: Budget,
    ) -> Result<FetchedManifest, RegistryError> {
        let _ = (at, repository, what, budget);
        todo!()
    }

    /// GET of a blob into `sink`; resumes by Range at most three times. Stops at `descriptor.size` + 1. The digest is the sink's
    /// to compare.
    pub async fn blob(
        &self,
        at: &Endpoint,
        repository: &Repository,
        descriptor: &Descriptor,
        sink: &mut impl Sink,
        budget: Budget,
    ) -> Result<(), RegistryError> {
        let _ = (at, repository, descriptor, sink, budget);
        todo!()
    }

    /// All tags, through all pages (at most 10 000 tags).
    pub async fn tags(
        &self,
        at: &Endpoint,
        repository: &Repository,
        budget: Budget,
    ) -> Result<Vec<Tag>, RegistryError> {
        let _ = (at, repository, budget);
        todo!()
    }

    /// HEAD of a blob.
    pub async fn has_blob(
        &self,
        at: &Endpoint,
        repository: &Repository,
        digest: &Digest,
        budget: Budget,
    ) -> Result<bool, RegistryError> {
        let _ = (at, repository, digest, budget);
        todo!()
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
        let _ = (at, repository, digest, data, budget);
        todo!()
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
        let _ = (at, repository, what, media_type, data, budget);
        todo!()
    }
}
