//! What can go wrong at, or on the way to, a registry; one variant for each thing a caller can do about it.

use std::{sync::Arc, time::Duration};

use http::{Method, StatusCode};

use super::{SinkError, exchange::NO_ANSWER, login::Provider};
use crate::{class::Class, digest::Digest};

type Source = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong at, or on the way to, a registry. URLs in messages carry neither query nor userinfo; no message
/// carries a credential.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The client's own configuration is wrong.
    #[error("egress rules: {what}")]
    Config {
        /// What is wrong with it.
        what: String,
    },
    /// TLS material or a proxy that cannot be used: nothing was sent.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A rule about addresses or redirects forbids it: nothing was sent there.
    #[error("{what}: {why}")]
    Forbidden {
        /// What was to be contacted.
        what: String,
        /// The rule.
        why: String,
    },
    /// The registry names a token service that must not see these credentials.
    #[error("the registry {registry} names the token service {realm}, which must not have its credentials: {why}")]
    Realm {
        /// The registry.
        registry: String,
        /// The token service's URL, without its query.
        realm: String,
        /// Why, and what to do.
        why: &'static str,
    },
    /// No token was to be had.
    #[error("no token from {realm}")]
    Token {
        /// The token service's URL, without its query.
        realm: String,
        /// Why.
        #[source]
        source: Arc<RegistryError>,
    },
    /// No login at the registry's cloud.
    #[error("failed to get credential from {provider} for {registry}")]
    Login {
        /// The cloud.
        provider: Provider,
        /// The registry.
        registry: String,
        /// Why.
        #[source]
        source: Arc<RegistryError>,
    },
    /// Not reached, or the connection broke.
    #[error("{what}: {doing}")]
    Unreachable {
        /// The request, or the address.
        what: String,
        /// What failed.
        doing: &'static str,
        /// Why.
        #[source]
        source: Source,
    },
    /// The TLS handshake failed.
    #[error("{what}: TLS handshake failed")]
    Handshake {
        /// The request.
        what: String,
        /// Why.
        #[source]
        source: Source,
    },
    /// A limit of time ran out.
    #[error("{what}: timed out {waiting}")]
    Timeout {
        /// The request.
        what: String,
        /// Waiting for what.
        waiting: &'static str,
    },
    /// The server's own answer is an error.
    #[error("{method} {url}: {} {summary}", .status.as_u16())]
    Status {
        /// The request's method.
        method: Method,
        /// The request's URL, without its query.
        url: String,
        /// The status.
        status: StatusCode,
        /// The spec's error codes and messages, or the start of the body, or the status's usual name.
        summary: String,
    },
    /// The server asks for fewer requests (429), now or a moment ago; nothing is sent before `after`.
    #[error("{host} asks for fewer requests (429): next one in {} s", .after.as_secs().max(1))]
    RateLimited {
        /// The server.
        host: String,
        /// How long to wait from now.
        after: Duration,
    },
    /// The server breaks its protocol.
    #[error("{what}: {why}")]
    Protocol {
        /// The request.
        what: String,
        /// What it did.
        why: String,
    },
    /// A HEAD without Docker-Content-Digest: a GET can still tell.
    #[error("{what}: the answer carries no Docker-Content-Digest")]
    NoDigest {
        /// The request.
        what: String,
    },
    /// A size over a bound, or not the one that was promised.
    #[error("{what}: {why}")]
    Size {
        /// The request.
        what: String,
        /// Which bound.
        why: String,
    },
    /// More entries or pages than are taken.
    #[error("{what}: {why}")]
    Limit {
        /// The request.
        what: String,
        /// Which limit.
        why: String,
    },
    /// Bytes, or a statement about them, that do not match a digest.
    #[error("{what}: {told} is {actual}, not {expected}")]
    Digest {
        /// The request.
        what: String,
        /// What was compared.
        told: &'static str,
        /// What it had to be.
        expected: Box<Digest>,
        /// What it is.
        actual: Box<Digest>,
    },
    /// The receiver of the bytes refused them.
    #[error("{what}: the bytes cannot be kept")]
    Sink {
        /// The request.
        what: String,
        /// Why.
        #[source]
        source: SinkError,
    },
}

/// TLS material or a proxy that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct SetupError {
    /// Which material.
    pub(super) what: &'static str,
    /// What is wrong with it; never its content.
    pub(super) why: String,
}

impl RegistryError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Config { .. } => Class::Spec,
            Self::Setup(_) => Class::Auth,
            Self::Forbidden { .. } | Self::Realm { .. } => Class::Policy,
            Self::Token { source, .. } => source.class(),
            // What a token service refuses is the identity, by whatever status it says so.
            Self::Login { source, .. } => match source.class() {
                class @ (Class::Net | Class::Rate | Class::Policy) => class,
                _ => Class::Auth,
            },
            Self::Unreachable { .. } | Self::Handshake { .. } | Self::Timeout { .. } => Class::Net,
            Self::Status { status, .. } => match status.as_u16() {
                401 | 403 | 407 => Class::Auth,
                404 => Class::NotFound,
                408 | 500.. => Class::Net,
                429 => Class::Rate,
                _ => Class::Proto,
            },
            Self::RateLimited { .. } => Class::Rate,
            Self::Protocol { .. } | Self::NoDigest { .. } => Class::Proto,
            Self::Size { .. } => Class::Size,
            Self::Limit { .. } => Class::Limit,
            Self::Digest { .. } => Class::Digest,
            Self::Sink { .. } => Class::Disk,
        }
    }

    /// Whether it failed at who asks, so that asking in another way (GET instead of HEAD) only costs two tokens more.
    pub fn is_unauthenticated(&self) -> bool {
        matches!(self, Self::Status { status, .. } if status.as_u16() == 401) || self.is_authentication_setup()
    }

    /// Whether this failed before the registry itself answered for lack of usable credentials, TLS material, proxy or
    /// token (Flux's AuthenticationFailed), as opposed to the registry's own refusal (OCIArtifactPullFailed) or a
    /// network that is down.
    pub fn is_authentication_setup(&self) -> bool {
        match self {
            Self::Setup(_) | Self::Realm { .. } | Self::Login { .. } => true,
            Self::Token { source, .. } => !matches!(
                **source,
                Self::Unreachable { .. } | Self::Handshake { .. } | Self::Timeout { .. } | Self::RateLimited { .. }
            ),
            _ => false,
        }
    }

    /// Whether somebody did not answer in its time.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Token { source, .. } | Self::Login { source, .. } => source.is_timeout(),
            _ => false,
        }
    }

    /// Whether this is how a server that speaks TLS takes plain http: with 400, or by ending the connection.
    pub fn may_be_http_to_tls(&self) -> bool {
        match self {
            Self::Status { status, url, .. } => status.as_u16() == 400 && url.starts_with("http://"),
            Self::Unreachable { doing, what, .. } => *doing == NO_ANSWER && what.starts_with("http://"),
            _ => false,
        }
    }

    /// For class Rate: when to ask again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { after, .. } => Some(*after),
            Self::Token { source, .. } | Self::Login { source, .. } => source.retry_after(),
            _ => None,
        }
    }

    /// Whether the same request may succeed in a moment.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Timeout { .. } => true,
            Self::Status { status, .. } => matches!(status.as_u16(), 408 | 500 | 502 | 503 | 504),
            Self::Token { source, .. } | Self::Login { source, .. } => source.is_transient(),
            _ => false,
        }
    }
}
