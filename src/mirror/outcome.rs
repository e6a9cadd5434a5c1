//! What a request of a mirrored repository comes to: where the content came from, or why there is none.

use std::{fmt, sync::Arc, time::Duration};

use http::HeaderValue;

use crate::{
    class::Class,
    pull::{FillError, PullError},
    registry::RegistryError,
};

/// How an answer came about, as `Cache-Status` tells it (RFC 9211; contract section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    /// Held, and the caller had been granted it before.
    Hit,
    /// Held, and past its time by so many seconds: the upstream is known to be down and was not asked.
    HitStale(u64),
    /// The upstream was asked; what it has is held now.
    Stored,
    /// Somebody else's question to the upstream answered this one too.
    Collapsed,
    /// The upstream was asked, and nothing was kept of its answer.
    Miss,
    /// Past its time; the upstream was asked and failed: with this status, if it answered at all.
    Stale(Option<u16>),
}

impl fmt::Display for CacheStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hit => f.write_str("larder; hit"),
            Self::HitStale(seconds) => write!(f, "larder; hit; ttl=-{seconds}"),
            Self::Stored => f.write_str("larder; fwd=miss; stored"),
            Self::Collapsed => f.write_str("larder; fwd=miss; collapsed"),
            Self::Miss => f.write_str("larder; fwd=miss"),
            Self::Stale(Some(status)) => write!(f, "larder; fwd=stale; fwd-status={status}"),
            Self::Stale(None) => f.write_str("larder; fwd=stale"),
        }
    }
}

/// Why there is nothing to answer with.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Miss {
    /// The upstream says that there is no such thing, or does not show it to this caller.
    #[error("{reason}")]
    NotFound {
        /// For the client and the log.
        reason: Arc<str>,
        /// The class of failure.
        class: Class,
    },
    /// The upstream wants to know who asks; only in pass-through.
    #[error("{reason}")]
    Unauthorized {
        /// For the client and the log.
        reason: Arc<str>,
        /// The upstream's own `WWW-Authenticate`.
        challenges: Arc<[HeaderValue]>,
    },
    /// The upstream, or the way to it, fails; nothing is known.
    #[error("{reason}")]
    Unavailable {
        /// For the client and the log.
        reason: Arc<str>,
        /// The class of failure.
        class: Class,
        /// What the upstream answered, if it did.
        status: Option<u16>,
        /// When to ask again, where the upstream said so.
        retry_after: Option<Duration>,
    },
}

impl Miss {
    /// There is no such thing as far as the caller may know.
    pub(super) fn not_found(reason: impl Into<Arc<str>>) -> Self {
        Self::NotFound { reason: reason.into(), class: Class::NotFound }
    }

    /// Larder itself cannot do it now.
    pub(super) fn here(reason: impl Into<Arc<str>>, class: Class) -> Self {
        Self::Unavailable { reason: reason.into(), class, status: None, retry_after: None }
    }

    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::NotFound { class, .. } | Self::Unavailable { class, .. } => *class,
            Self::Unauthorized { .. } => Class::Auth,
        }
    }

    /// The upstream asks who it is, in its own words.
    pub(super) fn unauthorized(reason: impl Into<Arc<str>>, challenges: &Arc<[HeaderValue]>) -> Self {
        Self::Unauthorized { reason: reason.into(), challenges: Arc::clone(challenges) }
    }

    /// Whether the upstream failed, rather than said no: what is held may be served then.
    pub(super) fn is_failure(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether the upstream did not let this caller in.
    pub(super) fn is_denial(&self) -> bool {
        self.class() == Class::Auth
    }

    /// How a stale answer in its place is marked.
    pub(super) fn as_stale(&self) -> CacheStatus {
        match self {
            Self::Unavailable { status, .. } => CacheStatus::Stale(*status),
            _ => CacheStatus::Stale(None),
        }
    }
}

impl From<&PullError> for Miss {
    fn from(error: &PullError) -> Self {
        let class = error.class();
        let Some(cause) = error.registry() else {
            return match class {
                // In the same words whether the bytes are held or not.
                _ if matches!(error, PullError::NotThere { .. }) => Self::not_found("upstream said 404"),
                // Where the store lies is the operator's business: it stands in the log.
                Class::Disk => Self::here("the mirror's store cannot do it now", class),
                // The negative mark of wrong bytes: not here, so that the client goes on to its next source.
                Class::NotFound | Class::Digest => Self::NotFound { reason: error.to_string().into(), class },
                _ => Self::here(crate::class::chain(error), class),
            };
        };
        let said = status_of(cause);
        let reason: Arc<str> = match said {
            Some((status, by)) => format!("{by} said {status}").into(),
            None => without_names(cause).into(),
        };
        // What the token service says is no word about what was asked for, unless it refuses who asks.
        let by_token_service = matches!(cause, RegistryError::Token { .. }) && class != Class::Auth;
        match (class, said) {
            (Class::Net | Class::Rate | Class::Disk | Class::Policy, _) => Self::Unavailable {
                reason,
                class,
                status: said.map(|(status, _)| status),
                retry_after: cause.retry_after(),
            },
            (_, Some((status, _))) if by_token_service => {
                Self::Unavailable { reason, class: Class::Proto, status: Some(status), retry_after: None }
            }
            (_, Some((400 | 401 | 403 | 404 | 410, _))) | (Class::Digest, _) => Self::NotFound { reason, class },
            _ => Self::Unavailable { reason, class, status: None, retry_after: None },
        }
    }
}

impl From<&FillError> for Miss {
    fn from(error: &FillError) -> Self {
        match error.cause() {
            Some(cause) => cause.into(),
            // This reader fell behind, or the disk failed under it.
            None => Self::here("the mirror's store cannot do it now", error.class()),
        }
    }
}

/// Why there was no answer, without what was asked for: a URL here would name what else is held, to those who may not
/// know of it (hardening rules, row C9). The whole of it stands in the log.
fn without_names(error: &RegistryError) -> String {
    match error {
        RegistryError::Unreachable { doing, source, .. } => {
            format!("the upstream cannot be reached: {doing}: {}", crate::class::chain(source.as_ref()))
        }
        RegistryError::Handshake { source, .. } => {
            format!("TLS handshake with the upstream failed: {}", crate::class::chain(source.as_ref()))
        }
        RegistryError::Timeout { waiting, .. } => format!("the upstream timed out {waiting}"),
        other => {
            let what = match other.class() {
                Class::Policy => "neither the upstream nor where it leads may be asked",
                _ => "the upstream's answer cannot be used",
            };
            match rule(other) {
                Some(why) => format!("{what} ({}): {why}", other.class()),
                None => format!("{what} ({}); Larder's log says more", other.class()),
            }
        }
    }
}

/// What an answer breaks, where that names no place.
fn rule(error: &RegistryError) -> Option<&str> {
    let why = match error {
        RegistryError::Forbidden { why, .. }
        | RegistryError::Protocol { why, .. }
        | RegistryError::Size { why, .. }
        | RegistryError::Limit { why, .. } => why,
        RegistryError::Realm { why, .. } => *why,
        RegistryError::NoDigest { .. } => "it carries no Docker-Content-Digest",
        RegistryError::Token { source, .. } => return rule(source),
        _ => return None,
    };
    (!why.contains("://")).then_some(why)
}

/// The status of the upstream's, or its token service's, own answer.
fn status_of(error: &RegistryError) -> Option<(u16, &'static str)> {
    match error {
        RegistryError::Status { status, .. } => Some((status.as_u16(), "upstream")),
        RegistryError::RateLimited { .. } => Some((429, "upstream")),
        RegistryError::Token { source, .. } => {
            status_of(source).map(|(status, _)| (status, "the upstream's token service"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};

    use super::*;

    fn status(status: u16) -> RegistryError {
        RegistryError::Status {
            method: Method::GET,
            url: "https://r.example/v2/a/manifests/v1".into(),
            status: StatusCode::from_u16(status).unwrap(),
            summary: "x".into(),
        }
    }

    #[test]
    fn cache_status_has_the_contracts_forms() {
        for (status, text) in [
            (CacheStatus::Hit, "larder; hit"),
            (CacheStatus::HitStale(30), "larder; hit; ttl=-30"),
            (CacheStatus::Stored, "larder; fwd=miss; stored"),
            (CacheStatus::Collapsed, "larder; fwd=miss; collapsed"),
            (CacheStatus::Miss, "larder; fwd=miss"),
            (CacheStatus::Stale(Some(503)), "larder; fwd=stale; fwd-status=503"),
            (CacheStatus::Stale(None), "larder; fwd=stale"),
        ] {
            assert_eq!(status.to_string(), text);
        }
    }

    #[test]
    fn the_upstreams_no_is_404_and_its_failure_503() {
        for (answer, found, says) in [
            (404, false, "upstream said 404"),
            (401, false, "upstream said 401"),
            (403, false, "upstream said 403"),
            (400, false, "upstream said 400"),
            (410, false, "upstream said 410"),
            (418, true, "upstream said 418"),
            (408, true, "upstream said 408"),
            (500, true, "upstream said 500"),
            (502, true, "upstream said 502"),
        ] {
            let miss = Miss::from(&PullError::Registry(status(answer)));
            assert_eq!((miss.is_failure(), miss.to_string().as_str()), (found, says));
            let token = RegistryError::Token { realm: "https://r.example/t".into(), source: Arc::new(status(answer)) };
            let miss = Miss::from(&PullError::Registry(token));
            // It may refuse who asks, but knows nothing of what is there.
            assert_eq!(miss.is_failure(), !matches!(answer, 401 | 403), "{answer}");
            assert_eq!(miss.is_denial(), matches!(answer, 401 | 403), "{answer}");
            assert_eq!(miss.to_string(), format!("the {}", says.replace("upstream", "upstream's token service")));
        }
        let limited = RegistryError::RateLimited { host: "r.example".into(), after: Duration::from_secs(7) };
        let miss = Miss::from(&PullError::Registry(limited));
        assert_eq!(miss.as_stale(), CacheStatus::Stale(Some(429)));
        assert!(matches!(miss, Miss::Unavailable { class: Class::Rate, retry_after: Some(_), .. }));
        let timeout = RegistryError::Timeout { what: "r.example".into(), waiting: "for an answer" };
        let miss = Miss::from(&PullError::Registry(timeout));
        assert_eq!((miss.is_failure(), miss.as_stale()), (true, CacheStatus::Stale(None)));
        let why = "loopback is not contacted";
        for (why, told) in [
            (why.into(), format!("neither the upstream nor where it leads may be asked (policy): {why}")),
            (
                "it redirects from https to http://other.example/v2/secret".to_owned(),
                "neither the upstream nor where it leads may be asked (policy); Larder's log says more".into(),
            ),
        ] {
            let forbidden = || RegistryError::Forbidden { what: "https://r.example/v2/a".into(), why: why.clone() };
            assert_eq!(Miss::from(&PullError::Registry(forbidden())).to_string(), told);
            let token = RegistryError::Token { realm: "https://r.example/t".into(), source: Arc::new(forbidden()) };
            assert_eq!(Miss::from(&PullError::Registry(token)).to_string(), told);
        }
        let none = RegistryError::NoDigest { what: "HEAD https://r.example/v2/a".into() };
        let told = "the upstream's answer cannot be used (proto): it carries no Docker-Content-Digest";
        assert_eq!(Miss::from(&PullError::Registry(none)).to_string(), told);
        assert!(Miss::from(&PullError::Registry(status(401))).is_denial());
        assert!(!Miss::from(&PullError::Registry(status(404))).is_denial());
    }
}
