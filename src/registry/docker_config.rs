//! Credentials from a Docker config (`config.json`, `.dockerconfigjson` of a Secret), chosen as the kubelet does: the
//! key with the longest matching path wins; a host may have `*` within its labels.
//!
//! Malformed input is an error that says where, never what: the content is secret.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use base64::Engine as _;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Credentials;
use crate::{
    blocking,
    oci::{Registry, Repository},
    secret::Secret,
};

/// The largest config, in bytes: a Kubernetes Secret holds no more.
const MAX_BYTES: u64 = 1 << 20;
/// How long a credential helper may take at most.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);
/// The key of Docker Hub in every Docker config, and its name for credential helpers.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// A parsed Docker config.
#[derive(Clone, Debug, Default)]
pub struct DockerConfig {
    entries: Vec<Entry>,
    /// Helper by host.
    helpers: HashMap<String, String>,
    /// The helper for all others.
    store: Option<String>,
}

#[derive(Clone, Debug)]
struct Entry {
    key: Key,
    credentials: Credentials,
}

/// A key of `auths`, in one spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    host: String,
    port: Option<String>,
    /// Without slashes at its ends; often empty.
    path: String,
}

/// Why a Docker config cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DockerConfigError {
    /// Not JSON, or not of this shape.
    #[error("the Docker config is not valid: {problem} at line {line}, column {column}")]
    Malformed {
        /// What kind of problem.
        problem: &'static str,
        /// Where.
        line: usize,
        /// Where.
        column: usize,
    },
    /// An `auth` that does not decode, and nothing in its place.
    #[error(
        "the Docker config's entry {number} under auths has an auth that is not base64 of user:password, and no username and password"
    )]
    Auth {
        /// Counted from 1.
        number: usize,
    },
    /// Larger than a Secret can be.
    #[error("the Docker config is longer than 1 MiB")]
    TooLarge,
    /// The file cannot be read.
    #[error("it cannot be read")]
    Read(#[source] std::io::Error),
    /// A credential helper failed.
    #[error("credential helper docker-credential-{name}: {why}")]
    Helper {
        /// Its name behind `docker-credential-`.
        name: String,
        /// What it did; never its output.
        why: String,
    },
}

/// A text that may be absent, null or empty: all the same.
#[derive(Default)]
struct Text(Option<Secret>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<Secret>::deserialize(deserializer)?;
        Ok(Self(text.filter(|t| !t.expose().is_empty())))
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: Option<Auths>,
    #[serde(default, rename = "credHelpers")]
    cred_helpers: Option<HashMap<String, String>>,
    #[serde(default, rename = "credsStore")]
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
struct RawEntry {
    #[serde(default)]
    auth: Text,
    #[serde(default)]
    username: Text,
    #[serde(default)]
    password: Text,
    #[serde(default)]
    identitytoken: Text,
    #[serde(default)]
    registrytoken: Text,
}

/// `auths` in the order written, so that errors can count.
struct Auths(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for Auths {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Auths;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of registries")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Auths, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, entry)) = map.next_entry::<String, Option<RawEntry>>()? {
                    entries.push((key, entry.unwrap_or_default()));
                }
                Ok(Auths(entries))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Parses a Docker config.
pub fn parse(bytes: &[u8]) -> Result<DockerConfig, DockerConfigError> {
    let file: File = read(bytes)?;
    let helpers = file.cred_helpers.unwrap_or_default().into_iter();
    Ok(DockerConfig {
        entries: entries(file.auths)?,
        helpers: helpers.map(|(host, helper)| (Key::parse(&host).authority(), helper)).collect(),
        store: file.creds_store.filter(|name| !name.is_empty()),
    })
}

/// Parses the older `.dockercfg`, which is what a config has under `auths`.
pub fn parse_legacy(bytes: &[u8]) -> Result<DockerConfig, DockerConfigError> {
    Ok(DockerConfig { entries: entries(read(bytes)?)?, ..DockerConfig::default() })
}

fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, DockerConfigError> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(DockerConfigError::TooLarge);
    }
    serde_json::from_slice(bytes).map_err(|error| {
        let problem = match error.classify() {
            serde_json::error::Category::Syntax => "not JSON",
            serde_json::error::Category::Eof => "unexpected end",
            _ => "a value of an unexpected type",
        };
        DockerConfigError::Malformed { problem, line: error.line(), column: error.column() }
    })
}

fn entries(auths: Option<Auths>) -> Result<Vec<Entry>, DockerConfigError> {
    let mut entries = Vec::new();
    for (index, (key, raw)) in auths.map(|a| a.0).unwrap_or_default().into_iter().enumerate() {
        if let Some(credentials) = credentials(raw).map_err(|()| DockerConfigError::Auth { number: index + 1 })? {
            entries.push(Entry { key: Key::parse(&key), credentials });
        }
    }
    Ok(entries)
}

fn credentials(raw: RawEntry) -> Result<Option<Credentials>, ()> {
    if let Some(token) = raw.registrytoken.0 {
        return Ok(Some(Credentials::RegistryToken(token)));
    }
    if let Some(token) = raw.identitytoken.0 {
        return Ok(Some(Credentials::IdentityToken(token)));
    }
    let decoded = raw.auth.0.as_ref().map(|auth| decode(auth.expose()));
    match (decoded, raw.username.0, raw.password.0) {
        (Some(Some((username, password))), ..) => Ok(Some(basic(username, password))),
        (_, Some(username), password) => Ok(Some(basic(username.expose().to_owned(), password.unwrap_or_default()))),
        (Some(None), None, _) => Err(()),
        (None, None, _) => Ok(None),
    }
}

/// A user called `<token>` carries an identity token in the place of the password, as credential helpers do.
fn basic(username: String, password: Secret) -> Credentials {
    if username == "<token>" {
        return Credentials::IdentityToken(password);
    }
    Credentials::Basic { username, password }
}

fn decode(auth: &str) -> Option<(String, Secret)> {
    let config = base64::engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent);
    let engine = base64::engine::GeneralPurpose::new(&base64::alphabet::STANDARD, config);
    let bytes = engine.decode(auth.trim()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    // Docker pads with NUL.
    let password = password.trim_end_matches('\0');
    (!username.is_empty()).then(|| (username.to_owned(), Secret::new(password)))
}

impl Key {
    fn parse(text: &str) -> Self {
        let text = text.trim().to_ascii_lowercase();
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(&text);
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => {
                (host, Some(port.to_owned()).filter(|port| !port.is_empty()))
            }
            _ => (authority, None),
        };
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io",
            host => host,
        };
        let path = path.trim_matches('/');
        let path = match path {
            "v1" | "v2" => "",
            path => path.strip_prefix("v2/").or_else(|| path.strip_prefix("v1/")).unwrap_or(path),
        };
        Self { host: host.to_owned(), port, path: path.trim_matches('/').to_owned() }
    }

    fn authority(&self) -> String {
        match &self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }

    /// How well the key fits: `None` not at all, else more is better.
    fn fits(&self, wanted: &Self) -> Option<(usize, bool)> {
        let exact = self.host == wanted.host;
        let host_fits = exact || self.host.contains('*') && glob_host(&self.host, &wanted.host);
        if !host_fits || self.port != wanted.port {
            return None;
        }
        let within = self.path.is_empty()
            || wanted.path.strip_prefix(&self.path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        within.then_some((self.path.len(), exact))
    }
}

/// `*` stands for any characters of one label.
fn glob_host(pattern: &str, host: &str) -> bool {
    let (patterns, labels): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), host.split('.').collect());
    patterns.len() == labels.len() && patterns.iter().zip(&labels).all(|(pattern, label)| glob_label(pattern, label))
}

fn glob_label(pattern: &str, label: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = label.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

impl DockerConfig {
    /// The credentials under `auths` for a repository; anonymous where none fits.
    pub fn lookup(&self, registry: &Registry, repository: &Repository) -> Credentials {
        let mut wanted = Key::parse(&registry.to_string());
        wanted.path = repository.as_str().to_ascii_lowercase();
        let fitting = self.entries.iter().filter_map(|entry| entry.key.fits(&wanted).map(|fit| (fit, entry)));
        // Of equals the first, so that an object's own Secret precedes its service account's.
        let best = fitting.reduce(|best, next| if next.0 > best.0 { next } else { best });
        best.map_or(Credentials::Anonymous, |(_, entry)| entry.credentials.clone())
    }

    /// Whether there are credentials under `auths` for any repository of a registry.
    pub fn names(&self, registry: &Registry) -> bool {
        let wanted = Key::parse(&registry.to_string());
        self.entries.iter().any(|entry| Key { path: String::new(), ..entry.key.clone() }.fits(&wanted).is_some())
    }

    /// Adds another config's entries behind these.
    pub fn merge(&mut self, other: Self) {
        self.entries.extend(other.entries);
        for (host, helper) in other.helpers {
            self.helpers.entry(host).or_insert(helper);
        }
        self.store = self.store.take().or(other.store);
    }

    /// Where it is: `$DOCKER_CONFIG/config.json`, else `<home>/.docker/config.json`.
    pub fn path(docker_config: Option<&Path>, home: Option<&Path>) -> Option<PathBuf> {
        match (docker_config, home) {
            (Some(folder), _) => Some(folder.join("config.json")),
            (None, Some(home)) => Some(home.join(".docker").join("config.json")),
            (None, None) => None,
        }
    }

    /// Reads a config; one that is missing is empty.
    pub async fn load(path: &Path) -> Result<Self, DockerConfigError> {
        let path = path.to_path_buf();
        let read = blocking::io(move || {
            use std::io::Read as _;
            let mut bytes = Vec::new();
            std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        match read.await {
            Ok(bytes) => parse(&bytes),
            Err(error) if error_is_absence(&error) => Ok(Self::default()),
            Err(error) => Err(DockerConfigError::Read(error)),
        }
    }

    /// As [`lookup`](Self::lookup), but a credential helper named for the registry is run first, for no longer than
    /// `patience`. For the command line: a daemon runs no helpers.
    pub async fn lookup_with_helpers(
        &self,
        registry: &Registry,
        repository: &Repository,
        patience: Duration,
    ) -> Result<Credentials, DockerConfigError> {
        let key = Key::parse(&registry.to_string());
        let own = self.helpers.get(&key.authority());
        if let Some(helper) = own.or(self.store.as_ref()) {
            let server = if key.host == "docker.io" { DOCKER_HUB.to_owned() } else { key.authority() };
            if let Some(credentials) = run_helper(helper, &server, patience.min(HELPER_TIMEOUT)).await? {
                return Ok(credentials);
            }
        }
        Ok(self.lookup(registry, repository))
    }
}

fn error_is_absence(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// Runs `docker-credential-<name> get`; `None` where it has nothing for `server`.
async fn run_helper(name: &str, server: &str, patience: Duration) -> Result<Option<Credentials>, DockerConfigError> {
    let failed = |why: String| DockerConfigError::Helper { name: name.chars().take(64).collect(), why };
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(valid) {
        return Err(failed("its name holds characters that no helper has".to_owned()));
    }
    let run = async {
        let mut child = tokio::process::Command::new(format!("docker-credential-{name}"))
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A helper that has read enough may close its end.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_BYTES).read_to_end(&mut output).await?;
        }
        let status = child.wait().await?;
        Ok::<_, std::io::Error>((status, output))
    };
    let (status, output) = match tokio::time::timeout(patience, run).await {
        Err(_) => return Err(failed(format!("no answer within {} s", patience.as_secs_f64()))),
        Ok(Err(error)) => return Err(failed(format!("cannot be run: {error}"))),
        Ok(Ok(ended)) => ended,
    };
    if !status.success() {
        let text = String::from_utf8_lossy(&output);
        // The one answer of the helpers' protocol that is no failure.
        if text.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(format!("it ended with {status}")));
    }
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Username")]
        username: String,
        #[serde(rename = "Secret")]
        secret: Secret,
    }
    let answer: Answer = serde_json::from_slice(&output).map_err(|_| failed("its answer is not JSON".to_owned()))?;
    if answer.username.is_empty() {
        return Ok(None);
    }
    Ok(Some(basic(answer.username, answer.secret)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(credentials: &Credentials) -> String {
        match credentials {
            Credentials::Anonymous => "-".to_owned(),
            Credentials::Basic { username, password } => format!("{username}:{}", password.expose()),
            Credentials::IdentityToken(token) => format!("identity {}", token.expose()),
            Credentials::RegistryToken(token) => format!("registry {}", token.expose()),
            Credentials::Login(login) => format!("{login:?}"),
        }
    }

    fn find(config: &str, registry: &str, repository: &str) -> String {
        let config = parse(config.as_bytes()).unwrap();
        user(&config.lookup(&registry.parse().unwrap(), &repository.parse().unwrap()))
    }

    #[test]
    fn takes_every_spelling_of_a_key() {
        for (key, registry, found) in [
            ("https://index.docker.io/v1/", "docker.io", true),
            ("index.docker.io", "docker.io", true),
            ("docker.io", "docker.io", true),
            ("ghcr.io", "ghcr.io", true),
            ("https://ghcr.io", "ghcr.io", true),
            ("https://GHCR.io/v2/", "ghcr.io", true),
            ("http://127.0.0.1:5000/", "127.0.0.1:5000", true),
            ("127.0.0.1:5000", "127.0.0.1:5001", false),
            ("ghcr.io", "evil-ghcr.io", false),
            ("ghcr.io", "ghcr.io.evil.example", false),
            ("*.example.com", "registry.example.com", true),
            ("*.example.com", "a.registry.example.com", false),
            ("r*y.example.com", "registry.example.com", true),
            ("[::1]:5000", "[::1]:5000", true),
        ] {
            let config = format!(r#"{{"auths":{{"{key}":{{"username":"u","password":"p"}}}}}}"#);
            let expected = if found { "u:p" } else { "-" };
            assert_eq!(find(&config, registry, "a/b"), expected, "{key} {registry}");
        }
    }

    #[test]
    fn the_longest_path_wins() {
        let config = r#"{"auths":{
            "ghcr.io":{"username":"host","password":""},
            "ghcr.io/team":{"username":"team","password":""},
            "ghcr.io/team/app":{"username":"app","password":""},
            "*.io":{"username":"glob","password":""}}}"#;
        for (repository, expected) in [
            ("other/x", "host:"),
            ("team/x", "team:"),
            ("team/app", "app:"),
            ("team/app/x", "app:"),
            ("teams/x", "host:"),
        ] {
            assert_eq!(find(config, "ghcr.io", repository), expected, "{repository}");
        }
        assert_eq!(find(config, "quay.io", "a/b"), "glob:");
    }

    #[test]
    fn an_older_config_has_its_entries_at_the_top() {
        let config = parse_legacy(br#"{"ghcr.io":{"auth":"dXNlcjpwYXNz"},"quay.io":null}"#).unwrap();
        let found = config.lookup(&"ghcr.io".parse().unwrap(), &"a/b".parse().unwrap());
        assert_eq!(found, basic("user".to_owned(), Secret::new("pass")));
        assert!(parse_legacy(br#"{"ghcr.io":{"auth":"?"}}"#).is_err());
        assert!(parse_legacy(b"[]").is_err());
    }

    #[test]
    fn credentials_are_chosen_as_docker_does() {
        for (entry, expected) in [
            (r#"{"auth":"dXNlcjpwYTpzcw=="}"#, "user:pa:ss"),
            (r#"{"auth":"dXNlcjpwYXNz","username":"other","password":"x"}"#, "user:pass"),
            (
                r#"{"auth":"YOUR_BASE64_ENCODED_AUTH_STRING","username":"your-username","password":"your-password","email":"e"}"#,
                "your-username:your-password",
            ),
            (r#"{"auth":"","username":"u","password":"p"}"#, "u:p"),
            (r#"{"auth":null,"username":"u","password":"p"}"#, "u:p"),
            (r#"{"identitytoken":"t","auth":"PHRva2VuPjo="}"#, "identity t"),
            (r#"{"registrytoken":"r"}"#, "registry r"),
            (r#"{}"#, "-"),
            ("null", "-"),
        ] {
            assert_eq!(find(&format!(r#"{{"auths":{{"r.example":{entry}}}}}"#), "r.example", "a"), expected, "{entry}");
        }
    }

    #[test]
    fn malformed_configs_are_refused_without_their_content() {
        for config in [
            r#"{"auths":{"r.example":{"password":["hunter2"]}}}"#,
            r#"{"auths":{"r.example":{"auth":"hunter2!"}}}"#,
            r#"{"auths":{"hunter2":"hunter2"}}"#,
            r#"{"auths":"hunter2"}"#,
            r#"hunter2"#,
            r#"{"auths":{"hunter2"#,
            "",
            "\u{0}\u{1}",
        ] {
            let error = parse(config.as_bytes()).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        assert!(parse(b"{}").is_ok());
        assert!(parse(br#"{"auths":null,"credHelpers":null}"#).is_ok());
    }

    #[tokio::test]
    async fn helpers_are_named_safely() {
        for name in ["../x", "a/b", "", "a b", "$(x)"] {
            let error = run_helper(name, "r.example", HELPER_TIMEOUT).await.unwrap_err();
            assert!(matches!(error, DockerConfigError::Helper { .. }), "{name}: {error}");
        }
    }

    #[tokio::test]
    async fn a_missing_file_is_an_empty_config() {
        let folder = tempfile::tempdir().unwrap();
        let (home, none) = (folder.path(), DockerConfig::path(None, None));
        assert_eq!((none, DockerConfig::path(None, Some(home))), (None, Some(home.join(".docker/config.json"))));
        let path = DockerConfig::path(Some(folder.path()), Some(Path::new("/elsewhere"))).unwrap();
        let config = DockerConfig::load(&path).await.unwrap();
        assert_eq!(config.lookup(&"r.example".parse().unwrap(), &"a".parse().unwrap()), Credentials::Anonymous);
        std::fs::write(folder.path().join("config.json"), r#"{"auths":{"r.example":{"auth":"dTpw"}}}"#).unwrap();
        let config = DockerConfig::load(&path).await.unwrap();
        assert_eq!(user(&config.lookup(&"r.example".parse().unwrap(), &"a".parse().unwrap())), "u:p");
    }

    proptest::proptest! {
        #[test]
        fn parse_never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
