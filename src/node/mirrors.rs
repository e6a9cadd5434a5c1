//! From the configuration to the mirror and the listeners that are bound to one upstream each.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use super::{NodeError, bind};
use crate::{
    blocking,
    config::{Config, HostPort, UpstreamSettings},
    mirror::{Clock, CredentialsError, Mirror, MirrorError, Upstream, UpstreamConfig},
    oci,
    pull::Puller,
    server::{Bound, Tls, Workers, registry::access::Pattern},
};

/// Why the upstreams cannot be mirrored as configured.
#[derive(Debug, thiserror::Error)]
pub enum MirrorSetupError {
    /// A host that no reference can name.
    #[error("upstream {host}: {source}")]
    Host {
        /// As configured.
        host: HostPort,
        /// Why.
        #[source]
        source: oci::ReferenceError,
    },
    /// Certificate authorities that cannot be read.
    #[error("upstream {host}: cannot read the certificate authorities from {path}", path = .path.display())]
    Ca {
        /// Whose.
        host: HostPort,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A pattern that is no regular expression.
    #[error("upstream {host}: the pattern {pattern:?} of its tags or repositories")]
    Pattern {
        /// Whose.
        host: HostPort,
        /// As configured.
        pattern: String,
        /// Why.
        #[source]
        source: regex::Error,
    },
    /// The file of mode shared has no entry for the upstream.
    #[error("upstream {host}")]
    Credentials {
        /// Whose.
        host: HostPort,
        /// Why.
        #[source]
        source: CredentialsError,
    },
    /// A listener for an upstream that is none.
    #[error("a mirror listener is for {0}, which is no upstream; add it with --upstream or under upstreams")]
    Listener(HostPort),
    /// What the mirror itself says.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

/// A listener for one upstream.
pub(super) struct MirrorListener {
    pub bound: Bound,
    pub upstream: Arc<Upstream>,
}

impl MirrorListener {
    /// On these threads, and with the registry listener's certificate.
    pub fn like(self, workers: &Arc<Workers>, tls: Option<&Tls>) -> Self {
        let bound = self.bound.with_workers(Arc::clone(workers));
        let bound = match tls {
            Some(tls) => bound.with_tls(tls.clone()),
            None => bound,
        };
        Self { bound, ..self }
    }

    /// The upstream's name, and the address.
    pub fn shown(&self) -> (String, SocketAddr) {
        (self.upstream.name().to_string(), self.bound.address())
    }
}

/// The mirror, where upstreams are configured, and its listeners, bound.
pub(super) async fn set_up(
    config: &Config,
    puller: &Puller,
) -> Result<Option<(Mirror, Vec<MirrorListener>)>, NodeError> {
    if config.upstreams.is_empty() {
        return Ok(None);
    }
    let settings: Result<Vec<UpstreamConfig>, _> =
        config.upstreams.iter().map(|upstream| upstream_config(config, upstream)).collect();
    let (puller, settings) = (puller.clone(), settings?);
    let mirror = blocking::io(move || Mirror::new(puller, settings, Clock::system()));
    let mirror = mirror.await.map_err(MirrorSetupError::Mirror)?;
    let own = config.upstreams.iter().filter_map(|upstream| Some((upstream.listen.as_ref()?, &upstream.host)));
    let mut listeners = Vec::new();
    for (address, host) in own.chain(config.mirror_listen.iter().map(|listen| (&listen.address, &listen.host))) {
        let upstream = host.to_string().parse().ok().and_then(|registry| mirror.of(&registry));
        let upstream = Arc::clone(upstream.ok_or_else(|| MirrorSetupError::Listener(host.clone()))?);
        listeners.push(MirrorListener { bound: bind(address).await?, upstream });
    }
    Ok(Some((mirror, listeners)))
}

fn upstream_config(config: &Config, settings: &UpstreamSettings) -> Result<UpstreamConfig, MirrorSetupError> {
    let host = || settings.host.clone();
    let registry = settings.host.to_string().parse();
    let registry = registry.map_err(|source| MirrorSetupError::Host { host: host(), source })?;
    let ca = match &settings.ca {
        Some(path) => {
            let read = std::fs::read_to_string(path);
            let read = read.map_err(|source| MirrorSetupError::Ca { host: host(), path: path.clone(), source });
            Some(read?.into())
        }
        None => None,
    };
    let mut tags = Vec::new();
    for rule in &settings.tags {
        let pattern = regex::Regex::new(&rule.pattern);
        let wrong = |source| MirrorSetupError::Pattern { host: host(), pattern: rule.pattern.clone(), source };
        tags.push((pattern.map_err(wrong)?, rule.ttl.get()));
    }
    // A pattern's characters mean themselves, `*` aside.
    let whole = |pattern: &Pattern| format!("^{}$", regex::escape(&pattern.to_string()).replace(r"\*", ".*"));
    let mut repositories = Vec::new();
    for pattern in &settings.repositories {
        let wrong = |source| MirrorSetupError::Pattern { host: host(), pattern: pattern.to_string(), source };
        repositories.push(regex::Regex::new(&whole(pattern)).map_err(wrong)?);
    }
    let defaults = UpstreamConfig::new(registry, settings.url.clone());
    let upstream = UpstreamConfig {
        mode: settings.mode.into(),
        credentials: settings.credentials.clone(),
        ca,
        tag_ttl: settings.tag_ttl.as_ref().unwrap_or(&config.tag_ttl).get(),
        negative_ttl: settings.negative_ttl.as_ref().unwrap_or(&config.negative_ttl).get(),
        stale_if_error: settings.stale_if_error.as_ref().map_or(defaults.stale_if_error, |limit| limit.get()),
        tags,
        repositories,
        ..defaults
    };
    match upstream.check_credentials() {
        Err(source @ CredentialsError::NoEntry { .. }) => Err(MirrorSetupError::Credentials { host: host(), source }),
        // A file that cannot be used yet may come: it is read again with each question.
        _ => Ok(upstream),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_refused_where_the_credential_is_somebody_elses() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("config.json");
        let text = format!(
            "upstreams: [{{host: shared.test, url: 'http://127.0.0.1:15500', mode: shared, credentials: {}}}]\n",
            file.display()
        );
        let config = crate::config::check(&text).unwrap();
        let made = || upstream_config(&config, &config.upstreams[0]).map(drop);
        made().unwrap();
        for (name, good) in [("127.0.0.1:15500", true), ("shared.test", true), ("other.test", false)] {
            let entry = format!(r#"{{"auths":{{"{name}":{{"username":"u","password":"p"}}}}}}"#);
            std::fs::write(&file, entry).unwrap();
            assert_eq!(made().is_ok(), good, "{name}");
        }
        let said = crate::class::chain(&made().unwrap_err()).to_string();
        let file = file.display().to_string();
        for part in [&*file, "upstream shared.test", "127.0.0.1:15500"] {
            assert!(said.contains(part), "{said}");
        }
    }
}
