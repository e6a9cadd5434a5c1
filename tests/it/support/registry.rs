//! A registry on loopback that holds its repositories in memory, notes every request, and misbehaves as told.
//!
//! ```ignore
//! let registry = ScriptedRegistry::start().await;
//! let digest = registry.add_blob("a/b", b"bytes");
//! registry.fault(of(Kind::BlobGet), 1, Fault::Cut { after: 3, reset: true });
//! // … the client under test …
//! assert_eq!(registry.count(Kind::BlobGet), 2);
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::Engine as _;
use larder::digest::Digest;
use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ping,
    Token,
    ManifestHead,
    ManifestGet,
    BlobHead,
    BlobGet,
    Tags,
    Push,
    Other,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub kind: Kind,
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Which connection it came over, counted from 0.
    pub connection: usize,
}

impl Seen {
    /// A header's value; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn parameter(&self, name: &str) -> Option<String> {
        parameter(&self.query, name)
    }
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(n, _)| *n == name).map(|(_, value)| unescape(value)).next()
}

fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let hex: String = [bytes.next(), bytes.next()].into_iter().flatten().map(char::from).collect();
            out.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
        } else {
            out.push(byte);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What to do instead of, or with, the right answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer.
    Answer { status: u16, headers: Vec<(&'static str, String)>, body: String },
    /// This status, and an error that repeats what was sent: the Authorization, what it means, and the body.
    Echo(u16),
    /// Reads the request, then says nothing.
    Hang,
    /// Closes without an answer.
    Close,
    /// These bytes, then closes.
    Raw(Vec<u8>),
    /// The right head, `after` bytes of the body, then the connection ends; with `reset` by RST.
    Cut { after: usize, reset: bool },
    /// The right head, `after` bytes of the body, then nothing more.
    Stall { after: usize },
    /// The right answer, later.
    Delay(Duration),
    /// The right answer with this header instead, or without it.
    Header(&'static str, Option<String>),
    /// The right head for this body.
    Body(Vec<u8>),
    /// A chunked body without end.
    Endless,
    /// The right body, chunked.
    Chunked,
    /// The right body, ended by closing.
    NoLength,
    /// The whole blob in spite of Range.
    IgnoreRange,
    /// As the other, but after so many bytes of the body nothing, until somebody sends `true` (or is gone).
    Gate { after: usize, open: tokio::sync::watch::Receiver<bool>, then: Box<Fault> },
}

impl Fault {
    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: String::new() }
    }

    pub fn redirect(location: impl Into<String>) -> Self {
        Self::Answer { status: 307, headers: vec![("Location", location.into())], body: String::new() }
    }

    pub fn too_many(retry_after: &str) -> Self {
        Self::Answer { status: 429, headers: vec![("Retry-After", retry_after.to_owned())], body: String::new() }
    }

    pub fn challenge(value: impl Into<String>) -> Self {
        Self::Answer { status: 401, headers: vec![("WWW-Authenticate", value.into())], body: String::new() }
    }
}

/// Who gets in.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    /// Everybody.
    #[default]
    None,
    /// Basic with this user and password.
    Basic(&'static str, &'static str),
    /// A token for the repository, from `/token` here or at `realm`. With `user`, only for them: by Basic, or by a
    /// refresh token that is the password.
    Token { user: Option<(&'static str, &'static str)>, realm: Option<String>, expires_in: Option<u64> },
}

/// How to start a registry.
#[derive(Clone, Default)]
pub struct Options {
    pub tls: Option<Arc<rustls::ServerConfig>>,
    pub auth: Auth,
}

type When = Box<dyn Fn(&Seen) -> bool + Send + Sync>;

/// Matches requests of one kind.
pub fn of(kind: Kind) -> impl Fn(&Seen) -> bool + Send + Sync + 'static {
    move |seen| seen.kind == kind
}

struct Rule {
    when: When,
    left: usize,
    fault: Fault,
}

#[derive(Default)]
struct Repository {
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, (String, Vec<u8>)>,
    tags: BTreeMap<String, String>,
}

#[derive(Default)]
struct Content {
    repositories: HashMap<String, Repository>,
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    /// Scopes by token.
    tokens: HashMap<String, String>,
    uploads: usize,
    /// Knows the referrers API.
    referrers: bool,
}

struct State {
    content: Mutex<Content>,
    connections: AtomicUsize,
    auth: Auth,
    origin: String,
}

/// The registry; it stops when dropped.
pub struct ScriptedRegistry {
    pub address: SocketAddr,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

impl Drop for ScriptedRegistry {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl ScriptedRegistry {
    /// Plain http, open to all.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    pub async fn start_with(options: Options) -> Self {
        Self::start_at("127.0.0.1:0", options).await
    }

    /// On an address of the test's choice.
    pub async fn start_at(address: &str, options: Options) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let state = Arc::new(State {
            content: Mutex::default(),
            connections: AtomicUsize::new(0),
            auth: options.auth,
            origin: format!("{scheme}://{address}"),
        });
        let shared = state.clone();
        let acceptor = options.tls.map(TlsAcceptor::from);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, acceptor) = (shared.clone(), acceptor.clone());
                let number = state.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    let stream = match acceptor {
                        None => Ok(Io::Plain(stream)),
                        Some(acceptor) => acceptor.accept(stream).await.map(|s| Io::Tls(Box::new(s))),
                    };
                    if let Ok(mut stream) = stream {
                        let _ = serve(&mut stream, &state, number).await;
                    }
                });
            }
        });
        Self { address, state, accepting }
    }

    /// `host:port`
    pub fn authority(&self) -> String {
        self.address.to_string()
    }

    /// `http://host:port` or `https://host:port`
    pub fn origin(&self) -> &str {
        &self.state.origin
    }

    pub fn add_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        self.with(|content| {
            let repository = content.repositories.entry(repository.to_owned()).or_default();
            repository.blobs.insert(digest.to_string(), bytes.to_vec());
        });
        digest
    }

    /// Adds a manifest's bytes under their digest and, where given, a tag.
    pub fn add_manifest(&self, repository: &str, tag: Option<&str>, media_type: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        self.with(|content| {
            let repository = content.repositories.entry(repository.to_owned()).or_default();
            repository.manifests.insert(digest.to_string(), (media_type.to_owned(), bytes.to_vec()));
            if let Some(tag) = tag {
                repository.tags.insert(tag.to_owned(), digest.to_string());
            }
        });
        digest
    }

    /// Answers the referrers API from now on, without filtering, as a registry may.
    pub fn know_referrers(&self) {
        self.with(|content| content.referrers = true);
    }

    /// Takes a tag away; what it named stays.
    pub fn remove_tag(&self, repository: &str, tag: &str) {
        self.with(|content| content.repositories.get_mut(repository).map(|r| r.tags.remove(tag)));
    }

    /// What a repository holds under a digest.
    pub fn blob(&self, repository: &str, digest: &Digest) -> Option<Vec<u8>> {
        self.with(|content| content.repositories.get(repository)?.blobs.get(&digest.to_string()).cloned())
    }

    /// What a tag names.
    pub fn manifest(&self, repository: &str, tag: &str) -> Option<Vec<u8>> {
        self.with(|content| {
            let repository = content.repositories.get(repository)?;
            repository.manifests.get(repository.tags.get(tag)?).map(|(_, bytes)| bytes.clone())
        })
    }

    /// The digests of all manifests of a repository.
    pub fn manifests(&self, repository: &str) -> Vec<String> {
        self.with(|content| {
            content.repositories.get(repository).map_or(Vec::new(), |r| r.manifests.keys().cloned().collect())
        })
    }

    /// The next `times` requests that match are answered with `fault`; of several rules the oldest counts.
    pub fn fault(&self, when: impl Fn(&Seen) -> bool + Send + Sync + 'static, times: usize, fault: Fault) {
        self.with(|content| content.rules.push(Rule { when: Box::new(when), left: times, fault }));
    }

    /// Forgets all faults.
    pub fn heal(&self) {
        self.with(|content| content.rules.clear());
    }

    /// Tokens issued so far are refused from now on.
    pub fn revoke_tokens(&self) {
        self.with(|content| content.tokens.clear());
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.with(|content| content.seen.clone())
    }

    pub fn seen_of(&self, kind: Kind) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.kind == kind).collect()
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.with(|content| content.seen.iter().filter(|seen| seen.kind == kind).count())
    }

    pub fn requests(&self) -> usize {
        self.with(|content| content.seen.len())
    }

    /// Connections accepted so far, also those over which nothing came.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    fn with<T>(&self, f: impl FnOnce(&mut Content) -> T) -> T {
        f(&mut self.state.content.lock().unwrap())
    }
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    async fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read_buf(buffer).await,
            Self::Tls(stream) => stream.read_buf(buffer).await,
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    fn reset_on_close(&self) {
        let _ = match self {
            Self::Plain(stream) => stream.set_zero_linger(),
            Self::Tls(stream) => stream.get_ref().0.set_zero_linger(),
        };
    }

    async fn shutdown(&mut self) {
        let _ = match self {
            Self::Plain(stream) => stream.shutdown().await,
            Self::Tls(stream) => stream.shutdown().await,
        };
    }
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Reply {
    fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn error(status: u16, code: &str, message: &str) -> Self {
        let body = format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#).into_bytes();
        Self { status, headers: vec![("Content-Type", "application/json".to_owned())], body }
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self.headers.push((name, value.into()));
        self
    }
}

async fn serve(io: &mut Io, state: &State, connection: usize) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let head_end = loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if io.read(&mut buffer).await? == 0 {
                return Ok(());
            }
            // Not a method: TLS, most likely.
            if !buffer[0].is_ascii_uppercase() {
                return io.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
            }
        };
        let Some(mut seen) = parse(&buffer[..head_end], connection) else {
            return io.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        };
        buffer.drain(..head_end);
        let length = seen.header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
        while buffer.len() < length {
            if io.read(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        seen.body = buffer.drain(..length).collect();
        let (reply, fault) = {
            let mut content = state.content.lock().unwrap();
            content.seen.push(seen.clone());
            let rule = content.rules.iter_mut().find(|rule| rule.left > 0 && (rule.when)(&seen));
            let fault = rule.map(|rule| {
                rule.left -= 1;
                rule.fault.clone()
            });
            if matches!(fault, Some(Fault::IgnoreRange)) {
                seen.headers.retain(|(name, _)| name != "range");
            }
            (answer(&seen, &mut content, state), fault)
        };
        if !write_reply(io, &seen, reply, fault).await? {
            return Ok(());
        }
    }
}

fn parse(head: &[u8], connection: usize) -> Option<Seen> {
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    words.next()?.strip_prefix("HTTP/1.")?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let head_only = method == "HEAD";
    let reads = head_only || method == "GET";
    let kind = match path {
        "/v2/" | "/v2" => Kind::Ping,
        "/token" => Kind::Token,
        _ if !path.starts_with("/v2/") => Kind::Other,
        _ if !reads => Kind::Push,
        _ if path.contains("/manifests/") && head_only => Kind::ManifestHead,
        _ if path.contains("/manifests/") => Kind::ManifestGet,
        _ if path.contains("/blobs/") && head_only => Kind::BlobHead,
        _ if path.contains("/blobs/") => Kind::BlobGet,
        _ if path.ends_with("/tags/list") => Kind::Tags,
        _ => Kind::Other,
    };
    Some(Seen { kind, method, path: path.to_owned(), query: query.to_owned(), headers, body: Vec::new(), connection })
}

/// The right answer.
fn answer(seen: &Seen, content: &mut Content, state: &State) -> Reply {
    let auth = &state.auth;
    if seen.kind == Kind::Token {
        return token(seen, content, auth);
    }
    let Some(path) = seen.path.strip_prefix("/v2/") else {
        return Reply::error(404, "NOT_FOUND", "no such path");
    };
    let parts = ["/manifests/", "/blobs/", "/tags/", "/referrers/"];
    let split = parts.iter().find_map(|s| path.split_once(s).map(|(r, x)| (r, *s, x)));
    let (repository, what, rest) = split.unwrap_or(("", "", path));
    if let Some(refusal) = authenticate(seen, content, auth, repository, state) {
        return refusal;
    }
    if seen.kind == Kind::Ping {
        return Reply::new(200);
    }
    let knows_referrers = content.referrers;
    let stored = content.repositories.entry(repository.to_owned()).or_default();
    match (seen.method.as_str(), what) {
        ("GET" | "HEAD", "/manifests/") => {
            let digest = stored.tags.get(rest).cloned().unwrap_or(rest.to_owned());
            match stored.manifests.get(&digest) {
                None => Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
                Some((media_type, bytes)) => Reply { status: 200, headers: Vec::new(), body: bytes.clone() }
                    .header("Content-Type", media_type)
                    .header("Docker-Content-Digest", digest),
            }
        }
        ("GET" | "HEAD", "/blobs/") => match stored.blobs.get(rest) {
            None => Reply::error(404, "BLOB_UNKNOWN", "blob unknown"),
            Some(bytes) => ranged(seen, bytes).header("Docker-Content-Digest", rest),
        },
        ("GET", "/referrers/") if knows_referrers => referrers(rest, stored),
        // As a registry that does not know that API.
        ("GET", "/referrers/") => Reply::error(404, "NOT_FOUND", "no such path"),
        ("GET", "/tags/") => tags(seen, repository, stored),
        ("PUT", "/manifests/") => {
            let digest = Digest::sha256(&seen.body).to_string();
            let media_type = seen.header("content-type").unwrap_or_default().to_owned();
            stored.manifests.insert(digest.clone(), (media_type, seen.body.clone()));
            if !rest.contains(':') {
                stored.tags.insert(rest.to_owned(), digest.clone());
            }
            Reply::new(201).header("Docker-Content-Digest", digest)
        }
        ("POST", "/blobs/") => {
            content.uploads += 1;
            Reply::new(202).header("Location", format!("/v2/{repository}/blobs/uploads/{}?state=x", content.uploads))
        }
        ("PUT", "/blobs/") => {
            let digest = Digest::sha256(&seen.body).to_string();
            if seen.parameter("digest").as_deref() != Some(digest.as_str()) {
                return Reply::error(400, "DIGEST_INVALID", "the digest is another");
            }
            stored.blobs.insert(digest.clone(), seen.body.clone());
            Reply::new(201).header("Docker-Content-Digest", digest)
        }
        _ => Reply::error(405, "UNSUPPORTED", "not here"),
    }
}

fn ranged(seen: &Seen, bytes: &[u8]) -> Reply {
    let octets = |status, body: &[u8]| {
        Reply { status, headers: Vec::new(), body: body.to_vec() }.header("Content-Type", "application/octet-stream")
    };
    let range = seen.header("range").and_then(|r| r.strip_prefix("bytes=")).and_then(|r| r.split_once('-'));
    match range {
        None => octets(200, bytes),
        Some((first, _)) => match first.parse::<usize>() {
            Ok(first) if first < bytes.len() => octets(206, &bytes[first..])
                .header("Content-Range", format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len())),
            _ => Reply::new(416),
        },
    }
}

fn tags(seen: &Seen, name: &str, stored: &Repository) -> Reply {
    let count = seen.parameter("n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let last = seen.parameter("last").unwrap_or_default();
    let mut after: Vec<&String> = stored.tags.keys().filter(|tag| **tag > last).collect();
    let more = after.len() > count;
    after.truncate(count);
    let list: Vec<String> = after.iter().map(|tag| format!("\"{tag}\"")).collect();
    let body = format!(r#"{{"name":"{name}","tags":[{}]}}"#, list.join(",")).into_bytes();
    let reply = Reply { status: 200, headers: Vec::new(), body };
    match after.last() {
        Some(last) if more => {
            reply.header("Link", format!(r#"</v2/{name}/tags/list?last={last}&n={count}>; rel="next""#))
        }
        _ => reply,
    }
}

fn referrers(subject: &str, stored: &Repository) -> Reply {
    let mut found = Vec::new();
    for (digest, (media_type, bytes)) in &stored.manifests {
        let Ok(manifest) = serde_json::from_slice::<serde_json::Value>(bytes) else { continue };
        if manifest["subject"]["digest"] == subject {
            found.push(serde_json::json!({
                "mediaType": media_type,
                "digest": digest,
                "size": bytes.len(),
                "artifactType": manifest["artifactType"],
                "annotations": manifest["annotations"],
            }));
        }
    }
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": found,
    });
    Reply { status: 200, headers: Vec::new(), body: index.to_string().into_bytes() }
        .header("Content-Type", "application/vnd.oci.image.index.v1+json")
}

fn pair(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn authenticate(seen: &Seen, content: &Content, auth: &Auth, repository: &str, state: &State) -> Option<Reply> {
    let sent = seen.header("authorization");
    let refuse = |challenge: String| {
        Some(Reply::error(401, "UNAUTHORIZED", "authentication required").header("WWW-Authenticate", challenge))
    };
    match auth {
        Auth::None => None,
        Auth::Basic(user, password) if sent == Some(&pair(user, password)) => None,
        Auth::Basic(..) => refuse(r#"Basic realm="scripted""#.to_owned()),
        Auth::Token { realm, .. } => {
            let action = if matches!(seen.method.as_str(), "GET" | "HEAD") { "pull" } else { "push" };
            let scopes = sent.and_then(|s| s.strip_prefix("Bearer ")).and_then(|token| content.tokens.get(token));
            let prefix = format!("repository:{repository}:");
            let granted = scopes.is_some_and(|scopes| {
                scopes.split(' ').filter_map(|s| s.strip_prefix(&prefix)).any(|a| a.split(',').any(|a| a == action))
            });
            if granted {
                return None;
            }
            let realm = realm.clone().unwrap_or_else(|| format!("{}/token", state.origin));
            let scope = format!("{prefix}{}", if action == "pull" { "pull" } else { "pull,push" });
            refuse(format!(r#"Bearer realm="{realm}",service="scripted",scope="{scope}""#))
        }
    }
}

fn token(seen: &Seen, content: &mut Content, auth: &Auth) -> Reply {
    let Auth::Token { user, expires_in, .. } = auth else { return Reply::error(404, "NOT_FOUND", "no token service") };
    let body = String::from_utf8_lossy(&seen.body).into_owned();
    let form = seen.method == "POST";
    let entitled = match user {
        None => true,
        Some((_, password)) if form => parameter(&body, "refresh_token").as_deref() == Some(password),
        Some((user, password)) => seen.header("authorization") == Some(&pair(user, password)),
    };
    if !entitled {
        return Reply::error(401, "UNAUTHORIZED", "wrong credentials");
    }
    let text = if form { &body } else { &seen.query };
    let scopes: Vec<String> = text.split('&').filter_map(|p| p.strip_prefix("scope=")).map(unescape).collect();
    let token = format!("token-{}", content.seen.len());
    content.tokens.insert(token.clone(), scopes.join(" "));
    let life = expires_in.map_or(String::new(), |seconds| format!(r#","expires_in":{seconds}"#));
    Reply { status: 200, headers: Vec::new(), body: format!(r#"{{"token":"{token}"{life}}}"#).into_bytes() }
}

/// Writes what is to be written; `false`: the connection ends.
async fn write_reply(io: &mut Io, seen: &Seen, mut reply: Reply, fault: Option<Fault>) -> io::Result<bool> {
    let mut length = true;
    let mut send = usize::MAX;
    let mut after = After::Keep;
    let (fault, gate) = match fault {
        Some(Fault::Gate { after, open, then }) => (Some(*then), Some((after, open))),
        fault => (fault, None),
    };
    match fault {
        None | Some(Fault::IgnoreRange) => {}
        Some(Fault::Answer { status, headers, body }) => {
            reply = Reply { status, headers, body: body.into_bytes() };
        }
        Some(Fault::Echo(status)) => {
            let sent = seen.header("authorization").unwrap_or_default();
            let pair = sent
                .strip_prefix("Basic ")
                .and_then(|pair| base64::engine::general_purpose::STANDARD.decode(pair).ok())
                .unwrap_or_default();
            let (pair, body) = (String::from_utf8_lossy(&pair), String::from_utf8_lossy(&seen.body));
            let said = format!("you sent {sent} which is {pair} and {body}");
            let body = serde_json::json!({ "errors": [{ "code": "DENIED", "message": said }] }).to_string();
            reply = Reply { status, headers: Vec::new(), body: body.into_bytes() };
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Close) => return Ok(false),
        Some(Fault::Raw(bytes)) => {
            io.write(&bytes).await?;
            io.shutdown().await;
            return Ok(false);
        }
        Some(Fault::Cut { after: bytes, reset }) => {
            send = bytes;
            after = if reset { After::Reset } else { After::Close };
        }
        Some(Fault::Stall { after: bytes }) => {
            send = bytes;
            after = After::Stall;
        }
        Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
        Some(Fault::Header(name, value)) => {
            reply.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
            length &= !name.eq_ignore_ascii_case("content-length");
            if let Some(value) = value {
                reply.headers.push((name, value));
            }
        }
        Some(Fault::Body(bytes)) => reply.body = bytes,
        Some(Fault::Endless) => {
            io.write(&head(&reply, None, true)).await?;
            let chunk = [b'x'; 1024];
            loop {
                io.write(b"400\r\n").await?;
                io.write(&chunk).await?;
                io.write(b"\r\n").await?;
            }
        }
        Some(Fault::Chunked) => {
            io.write(&head(&reply, None, true)).await?;
            for part in reply.body.chunks(1000) {
                io.write(format!("{:x}\r\n", part.len()).as_bytes()).await?;
                io.write(part).await?;
                io.write(b"\r\n").await?;
            }
            io.write(b"0\r\n\r\n").await?;
            return Ok(true);
        }
        Some(Fault::NoLength) => {
            length = false;
            after = After::Close;
        }
        Some(Fault::Gate { .. }) => panic!("a gate behind a gate"),
    }
    let mut bytes = head(&reply, length.then_some(reply.body.len()), false);
    if seen.method != "HEAD" {
        let body = &reply.body[..send.min(reply.body.len())];
        let (first, rest) = body.split_at(gate.as_ref().map_or(body.len(), |(after, _)| *after));
        bytes.extend_from_slice(first);
        if let Some((_, mut open)) = gate {
            io.write(&bytes).await?;
            let _ = open.wait_for(|open| *open).await;
            bytes.clear();
        }
        bytes.extend_from_slice(rest);
    }
    io.write(&bytes).await?;
    match after {
        After::Keep => Ok(true),
        After::Close => {
            io.shutdown().await;
            Ok(false)
        }
        After::Reset => {
            io.reset_on_close();
            Ok(false)
        }
        After::Stall => std::future::pending().await,
    }
}

enum After {
    Keep,
    Close,
    Reset,
    Stall,
}

fn head(reply: &Reply, length: Option<usize>, chunked: bool) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} Scripted\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(length) = length {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    if chunked {
        head.push_str("Transfer-Encoding: chunked\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}
