//! A mirrored registry: what it is called, where it is, who may read it, and how long its answers are good.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::HeaderValue;
use regex::Regex;

use super::{
    clock::{lasts, millis},
    silence::Silence,
    told::Told,
};
use crate::{
    blocking,
    class::Class,
    oci::{Registry, Repository, Tag},
    registry::{
        Credentials, Endpoint, Transport,
        docker_config::{DockerConfig, DockerConfigError, parse as parse_docker_config},
    },
};

/// Who may read what an upstream holds (hardening.md section 5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Everybody, what the upstream shows to everybody.
    #[default]
    Public,
    /// Each with its own credential, which is checked at the upstream.
    PassThrough,
    /// Everybody, what the upstream shows to the operator's credential.
    Shared,
}

/// A mirrored registry as configured.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// What `ns=` carries.
    pub registry: Registry,
    /// Where it is: `http(s)://HOST[:PORT]`; `https://` and its name if absent.
    pub url: Option<String>,
    /// Who may read.
    pub mode: Mode,
    /// A Docker config with the credential of mode shared: under the registry's name, else under that in the URL.
    pub credentials: Option<PathBuf>,
    /// Further certificate authorities, PEM.
    pub ca: Option<Arc<str>>,
    /// How long a tag's digest is good.
    pub tag_ttl: Duration,
    /// How long an absence is good.
    pub negative_ttl: Duration,
    /// How long a tag's digest is good beyond its time while the upstream fails.
    pub stale_if_error: Duration,
    /// Tags whose digest is good for another time; the first pattern that matches counts.
    pub tags: Vec<(Regex, Duration)>,
    /// Which repositories are mirrored, one pattern for the whole name; all where there is none.
    pub repositories: Vec<Regex>,
}

impl UpstreamConfig {
    /// One with the contract's defaults.
    pub fn new(registry: Registry, url: Option<String>) -> Self {
        Self {
            registry,
            url,
            mode: Mode::Public,
            credentials: None,
            ca: None,
            tag_ttl: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(30),
            stale_if_error: Duration::from_secs(24 * 3600),
            tags: Vec::new(),
            repositories: Vec::new(),
        }
    }
}

impl UpstreamConfig {
    /// Whether this can be an upstream, as far as that can be told without reading the files that it names.
    pub fn check(&self) -> Result<(), UpstreamError> {
        Upstream::new(0, self.clone()).map(drop)
    }

    /// Whether it may be asked by these rules about addresses, as far as its text tells.
    pub fn check_place(
        &self,
        permits: impl FnOnce(&Registry) -> Result<(), &'static str>,
    ) -> Result<(), UpstreamError> {
        let at = self.url.as_deref().and_then(parse_url).map_or_else(|| self.registry.clone(), |(_, at)| at);
        permits(&at).map_err(|why| UpstreamError::Place { registry: self.registry.clone(), at, why })
    }

    /// Whether the file of mode shared has a credential for this upstream, by whichever of its names. Blocks on the disk.
    ///
    /// # Errors
    /// It cannot be read, is no Docker configuration, or has no entry for it.
    pub fn check_credentials(&self) -> Result<(), CredentialsError> {
        let Some(path) = &self.credentials else { return Ok(()) };
        let (_, config) = read_credentials(path, None)?;
        let at = self.url.as_deref().and_then(parse_url).map(|(_, at)| at).filter(|at| *at != self.registry);
        if config.names(&self.registry) || at.as_ref().is_some_and(|at| config.names(at)) {
            return Ok(());
        }
        Err(CredentialsError::NoEntry { path: path.clone(), host: self.registry.clone(), at })
    }
}

/// Why an upstream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Not a URL of a registry. It is not repeated: it may hold a password.
    #[error("upstream {0}: its url is not http://HOST[:PORT] or https://HOST[:PORT]")]
    Url(Registry),
    /// It is where nothing may be asked.
    #[error("upstream {registry}: {at} cannot be asked: {why}")]
    Place {
        /// Which.
        registry: Registry,
        /// The host that its URL names.
        at: Registry,
        /// The rule.
        why: &'static str,
    },
    /// Mode shared without a credential, or a credential in another mode.
    #[error("upstream {registry}: {why}")]
    Credentials {
        /// Which.
        registry: Registry,
        /// What to do.
        why: &'static str,
    },
}

impl UpstreamError {
    /// Only another configuration helps.
    pub fn class(&self) -> Class {
        Class::Spec
    }
}

/// A mirrored registry.
#[derive(Debug)]
pub struct Upstream {
    number: usize,
    config: UpstreamConfig,
    /// First part of a path that leads here.
    prefix: String,
    /// What `ns=` usually carries.
    name: String,
    /// The same as a header.
    namespace: HeaderValue,
    transport: Transport,
    /// The host that the URL names.
    at: Option<Registry>,
    shared: Option<SharedCredentials>,
    pub(super) health: Health,
}

impl Upstream {
    /// The one of this number in the configuration.
    pub(super) fn new(number: usize, config: UpstreamConfig) -> Result<Self, UpstreamError> {
        let registry = &config.registry;
        let wrong = |why| Err(UpstreamError::Credentials { registry: registry.clone(), why });
        match (config.mode, &config.credentials) {
            (Mode::Shared, None) => {
                return wrong("mode shared needs credentials: name a Docker configuration file that has them");
            }
            (Mode::Public | Mode::PassThrough, Some(_)) => {
                return wrong("credentials are used in mode shared only: set mode: shared, or remove them");
            }
            _ => {}
        }
        let (plain_http, at) = match &config.url {
            None => (false, None),
            Some(url) => {
                let (plain, at) = parse_url(url).ok_or_else(|| UpstreamError::Url(registry.clone()))?;
                (plain, Some(at))
            }
        };
        let loopback = at.as_ref().unwrap_or(registry).is_loopback_literal();
        let elsewhere = at.as_ref().map(Registry::api_authority).filter(|at| *at != registry.api_authority());
        let transport = Transport {
            ca: config.ca.clone(),
            plain_http,
            allow_loopback: loopback,
            authority: elsewhere.map(Into::into),
            ..Transport::default()
        };
        Ok(Self {
            number,
            prefix: registry.to_string().replace(':', "_"),
            name: registry.to_string(),
            // A registry's name has nothing that a header could not carry.
            namespace: HeaderValue::try_from(registry.to_string()).unwrap_or(HeaderValue::from_static("")),
            shared: config.credentials.clone().map(SharedCredentials::new),
            transport,
            at,
            health: Health::default(),
            config,
        })
    }

    /// Its place in the configuration.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// What `ns=` carries.
    pub fn registry(&self) -> &Registry {
        &self.config.registry
    }

    /// The same as text.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `OCI-Namespace`.
    pub fn namespace(&self) -> HeaderValue {
        self.namespace.clone()
    }

    /// The first part of a path that leads here: the name, `:` written `_`.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Who may read.
    pub fn mode(&self) -> Mode {
        self.config.mode
    }

    /// The repository that a client means by `name`: Docker Hub's official images have a name of one part, and lie
    /// below `library/`.
    pub fn repository(&self, name: Repository) -> Repository {
        if !self.config.registry.is_docker_hub() || name.as_str().contains('/') {
            return name;
        }
        format!("library/{name}").parse().unwrap_or(name)
    }

    /// Whether the repository is one of those that are mirrored.
    pub(super) fn mirrors(&self, name: &Repository) -> bool {
        let patterns = &self.config.repositories;
        patterns.is_empty() || patterns.iter().any(|pattern| pattern.is_match(name.as_str()))
    }

    /// For how many milliseconds a tag's digest is good.
    pub(super) fn tag_ttl(&self, tag: &Tag) -> u64 {
        let rule = self.config.tags.iter().find(|(pattern, _)| pattern.is_match(tag.as_str()));
        millis(rule.map_or(self.config.tag_ttl, |(_, ttl)| *ttl))
    }

    /// How long a tag's digest is good that no pattern names.
    pub(super) fn default_tag_ttl(&self) -> Duration {
        self.config.tag_ttl
    }

    /// For how many milliseconds an absence is good.
    pub(super) fn negative_ttl(&self) -> u64 {
        millis(self.config.negative_ttl)
    }

    /// For how many milliseconds beyond its time a tag's digest is good while the upstream fails.
    pub(super) fn stale_if_error(&self) -> u64 {
        millis(self.config.stale_if_error)
    }

    /// How `credentials` reach it.
    pub(super) fn endpoint(&self, credentials: Credentials) -> Endpoint {
        Endpoint { registry: self.config.registry.clone(), transport: self.transport.clone(), credentials }
    }

    /// Whether a URL is one of the registry itself, and not of a host that it led to.
    pub(super) fn is_own(&self, url: &str) -> bool {
        let scheme = if self.transport.plain_http { "http" } else { "https" };
        let authority = self.at.as_ref().unwrap_or(&self.config.registry).api_authority();
        origin(url) == origin(&format!("{scheme}://{authority}"))
    }

    /// The operator's credential for a repository.
    pub(super) async fn shared_credentials(&self, repository: &Repository) -> Result<Credentials, CredentialsError> {
        let Some(shared) = &self.shared else { return Ok(Credentials::Anonymous) };
        let config = shared.read().await?;
        Ok(match (config.lookup(&self.config.registry, repository), &self.at) {
            (Credentials::Anonymous, Some(at)) => config.lookup(at, repository),
            (found, _) => found,
        })
    }
}

/// `http(s)://HOST[:PORT]`, perhaps with a slash: whether it is plain http, and the host.
fn parse_url(url: &str) -> Option<(bool, Registry)> {
    let (plain, rest) = match url.strip_prefix("https://") {
        Some(rest) => (false, rest),
        None => (true, url.strip_prefix("http://")?),
    };
    Some((plain, rest.strip_suffix('/').unwrap_or(rest).parse().ok()?))
}

/// A URL's scheme, and its host with a port that is not the scheme's own.
fn origin(url: &str) -> Option<(&str, String)> {
    let (scheme, rest) = url.split_once("://")?;
    let mut authority = rest.split('/').next()?.to_ascii_lowercase();
    let own = if scheme == "https" { ":443" } else { ":80" };
    if authority.ends_with(own) {
        authority.truncate(authority.len() - own.len());
    }
    Some((scheme, authority))
}

/// Why the operator's credential is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("cannot read the credentials of mode shared from {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its content.
    #[error("the credentials of mode shared in {path}")]
    Parse {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: DockerConfigError,
    },
    /// None of its entries is for the upstream: it would be asked as nobody.
    #[error(
        "the credentials of mode shared in {path} have no entry under auths for {host}{}",
        .at.as_ref().map_or_else(String::new, |at| format!(", nor for {at}"))
    )]
    NoEntry {
        /// Where.
        path: PathBuf,
        /// The upstream's name.
        host: Registry,
        /// The host that its URL names, if that is another.
        at: Option<Registry>,
    },
}

/// A Docker config that is read again when its file changes.
#[derive(Debug)]
struct SharedCredentials {
    path: PathBuf,
    read: Mutex<Option<(Version, Arc<DockerConfig>)>>,
}

/// What tells one version of a file from another: a rename gives another inode, a write another time.
type Version = (u64, u64, Option<std::time::SystemTime>);

impl SharedCredentials {
    fn new(path: PathBuf) -> Self {
        Self { path, read: Mutex::default() }
    }

    async fn read(&self) -> Result<Arc<DockerConfig>, CredentialsError> {
        let before = self.read.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let path = self.path.clone();
        let read = blocking::io(move || read_credentials(&path, before)).await?;
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some(read.clone());
        Ok(read.1)
    }
}

fn read_credentials(
    path: &Path,
    before: Option<(Version, Arc<DockerConfig>)>,
) -> Result<(Version, Arc<DockerConfig>), CredentialsError> {
    use std::os::unix::fs::MetadataExt as _;
    let wrong = |source| CredentialsError::Read { path: path.to_path_buf(), source };
    let meta = std::fs::metadata(path).map_err(wrong)?;
    let version = (meta.ino(), meta.len(), meta.modified().ok());
    if let Some(before) = before.filter(|(known, _)| *known == version) {
        return Ok(before);
    }
    let bytes = std::fs::read(path).map_err(wrong)?;
    let config =
        parse_docker_config(&bytes).map_err(|source| CredentialsError::Parse { path: path.to_path_buf(), source })?;
    Ok((version, Arc::new(config)))
}

/// Whether an upstream answers. While it does not, what is held is served without waiting for it, and one question at
/// a time, ever more seldom, finds out when it does again.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Failures in a row.
    failures: AtomicU32,
    /// When the next question may be put on behalf of nobody.
    next: AtomicU64,
    /// When it last failed.
    last: AtomicU64,
    /// Whether it is left alone for now, because it does not answer at all.
    pub silence: Silence,
    /// What was logged of it lately.
    pub told: Told,
}

/// The pause after the first failure, in milliseconds; doubled each time.
const FIRST_PAUSE: u64 = 1_000;
/// The longest pause: for so long what is stale is shown after the upstream is back.
const LONGEST_PAUSE: u64 = 5_000;

impl Health {
    /// It answered, whatever it said.
    pub fn worked(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        self.silence.end();
    }

    /// It failed.
    pub fn failed(&self, now: u64) {
        self.last.store(now, Ordering::Relaxed);
        let before = self.failures.fetch_add(1, Ordering::Relaxed).min(8);
        self.next.store(now.saturating_add((FIRST_PAUSE << before).min(LONGEST_PAUSE)), Ordering::Relaxed);
    }

    /// Whether its last answer was a failure.
    pub fn is_failing(&self) -> bool {
        self.failures.load(Ordering::Relaxed) != 0
    }

    /// Whether it failed a moment ago. Of a failure from before that nobody knows whether it lasts.
    pub fn failed_lately(&self, now: u64) -> bool {
        self.is_failing() && lasts(self.last.load(Ordering::Relaxed), LONGEST_PAUSE, now)
    }

    /// While it fails: whether to ask it once more; at most one caller in each pause is told so.
    pub fn may_probe(&self, now: u64) -> bool {
        // The turn must not go to a question that is not put.
        if self.silence.left(now) > 0 {
            return false;
        }
        let next = self.next.load(Ordering::Relaxed);
        // A clock that was set back must not end probing.
        let due = next <= now || next - now > LONGEST_PAUSE;
        due && self.next.compare_exchange(next, now + LONGEST_PAUSE, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(registry: &str, url: Option<&str>) -> Result<Upstream, UpstreamError> {
        Upstream::new(0, UpstreamConfig::new(registry.parse().unwrap(), url.map(Into::into)))
    }

    #[test]
    fn an_upstream_is_where_its_url_says_else_where_its_name_leads() {
        for (registry, url, authority, plain, loopback, prefix) in [
            ("docker.io", None, None, false, false, "docker.io"),
            ("docker.io", Some("https://registry-1.docker.io"), None, false, false, "docker.io"),
            ("docker.io", Some("http://127.0.0.1:7000/"), Some("127.0.0.1:7000"), true, true, "docker.io"),
            ("ghcr.io", Some("https://mirror.example:8443"), Some("mirror.example:8443"), false, false, "ghcr.io"),
            ("127.0.0.1:5000", Some("http://127.0.0.1:5000"), None, true, true, "127.0.0.1_5000"),
            ("127.0.0.1:5000", None, None, false, true, "127.0.0.1_5000"),
        ] {
            let made = upstream(registry, url).unwrap();
            assert_eq!(made.transport.authority.as_deref(), authority, "{registry} {url:?}");
            assert_eq!((made.transport.plain_http, made.transport.allow_loopback), (plain, loopback));
            assert_eq!((made.prefix(), made.name()), (prefix, registry));
        }
        for url in ["", "ghcr.io", "ftp://a", "https://", "https://a/b", "https://u@a", "https://a?x", "http://0x7f.1"]
        {
            assert!(matches!(upstream("ghcr.io", Some(url)), Err(UpstreamError::Url(_))), "{url}");
        }
    }

    #[test]
    fn a_credential_and_mode_shared_go_together() {
        let base = || UpstreamConfig::new("ghcr.io".parse().unwrap(), None);
        let file = Some(PathBuf::from("/x"));
        for (mode, credentials, good) in [
            (Mode::Public, None, true),
            (Mode::PassThrough, None, true),
            (Mode::Shared, file.clone(), true),
            (Mode::Shared, None, false),
            (Mode::Public, file.clone(), false),
            (Mode::PassThrough, file, false),
        ] {
            let made = Upstream::new(0, UpstreamConfig { mode, credentials: credentials.clone(), ..base() });
            assert_eq!(made.is_ok(), good, "{mode:?} {credentials:?}");
        }
    }

    #[test]
    fn official_images_lie_below_library() {
        for (registry, name, expected) in [
            ("docker.io", "nginx", "library/nginx"),
            ("docker.io", "library/nginx", "library/nginx"),
            ("docker.io", "a/b", "a/b"),
            ("ghcr.io", "nginx", "nginx"),
        ] {
            let repository = upstream(registry, None).unwrap().repository(name.parse().unwrap());
            assert_eq!(repository.as_str(), expected, "{registry} {name}");
        }
    }

    #[test]
    fn the_first_pattern_that_matches_decides_for_a_tag() {
        let rule = |pattern: &str, seconds| (Regex::new(pattern).unwrap(), Duration::from_secs(seconds));
        let config = UpstreamConfig {
            tags: vec![rule("^v[0-9]", 3600), rule("^(latest|v1)$", 5)],
            ..UpstreamConfig::new("ghcr.io".parse().unwrap(), None)
        };
        let upstream = Upstream::new(0, config).unwrap();
        for (tag, ttl) in [("v1", 3_600_000), ("latest", 5000), ("latest2", 60_000)] {
            assert_eq!(upstream.tag_ttl(&tag.parse().unwrap()), ttl, "{tag}");
        }
    }

    #[test]
    fn a_registrys_own_urls_are_told_from_those_it_leads_to() {
        for (registry, url, asked, own) in [
            ("docker.io", None, "https://registry-1.docker.io/v2/a/blobs/x", true),
            ("docker.io", None, "https://Registry-1.docker.io:443/v2/a", true),
            ("docker.io", None, "https://production.cloudflare.docker.com/x", false),
            ("docker.io", None, "http://registry-1.docker.io/v2/a", false),
            ("up.example", Some("http://127.0.0.1:7000"), "http://127.0.0.1:7000/v2/a", true),
            ("up.example", Some("http://127.0.0.1:7000"), "http://127.0.0.1:7001/v2/a", false),
            ("up.example", Some("http://127.0.0.1:7000"), "https://up.example/v2/a", false),
        ] {
            assert_eq!(upstream(registry, url).unwrap().is_own(asked), own, "{registry} {asked}");
        }
    }

    #[test]
    fn while_it_fails_one_at_a_time_may_probe_ever_more_seldom() {
        let health = Health::default();
        assert!(!health.is_failing());
        let mut now = 10_000_000;
        for pause in [1000, 2000, 4000, 5000, 5000] {
            health.failed(now);
            assert!(health.is_failing() && health.failed_lately(now) && health.failed_lately(now + LONGEST_PAUSE - 1));
            assert!(!health.failed_lately(now + LONGEST_PAUSE));
            assert!(!health.may_probe(now + pause - 1), "{pause}");
            assert!(health.may_probe(now + pause), "{pause}");
            assert!(!health.may_probe(now + pause), "only one");
            now += pause;
        }
        health.worked();
        assert!(!health.is_failing() && !health.failed_lately(now));
        health.failed(now);
        assert!(health.may_probe(now - 3_600_000), "the clock was set back");
    }

    #[test]
    fn the_turn_to_probe_is_kept_until_silence_is_over_and_an_answer_ends_both() {
        let health = Health::default();
        let now = 10_000_000;
        health.failed(now);
        health.silence.begin(now);
        assert!(!health.may_probe(now + 4_999), "due since 2 s, but nothing is sent");
        assert!(health.may_probe(now + 5_000));
        health.worked();
        assert!(!health.is_failing() && health.silence.enter(now) == Ok(()));
    }

    #[tokio::test]
    async fn a_shared_credential_is_found_by_the_name_and_else_by_the_urls() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("config.json");
        let entry = |key: &str, user: &str| format!(r#""{key}":{{"username":"{user}","password":"p"}}"#);
        let (host, at) = (entry("shared.test", "host"), entry("http://127.0.0.1:15500", "at"));
        let url = Some("http://127.0.0.1:15500");
        let nor = "for shared.test, nor for 127.0.0.1:15500";
        for (url, entries, found) in [
            (url, format!("{host},{at}"), Ok("host")),
            (url, at.clone(), Ok("at")),
            (url, entry("127.0.0.1:15500/team", "at"), Ok("at")),
            (url, format!("{},{at}", entry("shared.test/other", "host")), Ok("at")),
            (url, String::new(), Err(nor)),
            (url, entry("127.0.0.1", "at"), Err(nor)),
            (url, r#""shared.test":{}"#.into(), Err(nor)),
            (None, at, Err("for shared.test")),
            (Some("https://shared.test"), String::new(), Err("for shared.test")),
        ] {
            std::fs::write(&path, format!(r#"{{"auths":{{{entries}}}}}"#)).unwrap();
            let config = UpstreamConfig {
                mode: Mode::Shared,
                credentials: Some(path.clone()),
                ..UpstreamConfig::new("shared.test".parse().unwrap(), url.map(Into::into))
            };
            let checked = config.check_credentials().map_err(|error| error.to_string());
            let upstream = Upstream::new(0, config).unwrap();
            let got = upstream.shared_credentials(&"team/a".parse().unwrap()).await.unwrap();
            match (found, got) {
                (Ok(user), Credentials::Basic { username, .. }) => {
                    assert_eq!((checked, username.as_str()), (Ok(()), user), "{entries}");
                }
                (Err(end), Credentials::Anonymous) => {
                    let said = checked.unwrap_err();
                    assert!(said.ends_with(end) && said.contains(path.to_str().unwrap()), "{said}");
                }
                (_, other) => panic!("{entries}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn changed_credentials_are_read_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("config.json");
        let config = UpstreamConfig {
            mode: Mode::Shared,
            credentials: Some(path.clone()),
            ..UpstreamConfig::new("ghcr.io".parse().unwrap(), None)
        };
        let upstream = Upstream::new(0, config).unwrap();
        let name = "a".parse().unwrap();
        assert!(matches!(upstream.shared_credentials(&name).await, Err(CredentialsError::Read { .. })));
        for (n, user) in ["one", "other"].iter().enumerate() {
            let text = format!(r#"{{"auths":{{"ghcr.io":{{"username":"{user}","password":"p"}}}}}}"#);
            let beside = root.path().join(n.to_string());
            std::fs::write(&beside, text).unwrap();
            std::fs::rename(&beside, &path).unwrap();
            match upstream.shared_credentials(&name).await.unwrap() {
                Credentials::Basic { username, .. } => assert_eq!(username, *user),
                other => panic!("{other:?}"),
            }
        }
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(upstream.shared_credentials(&name).await, Err(CredentialsError::Parse { .. })));
    }
}
