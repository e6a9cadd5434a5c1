//! Who may have credentials, and tokens (Docker's token specification; OAuth2 for identity tokens).
//!
//! A token belongs to one session (registry, transport, credentials), realm, service and set of scopes. It is fetched
//! once however many calls want it, kept for 80 % of its life, and forgotten when a registry refuses it.
//!
//! What a registry wants is learnt for each scope (a repository, to pull or to push) from its first 401: a challenge says
//! nothing about other repositories of that registry, which may be open to all. So each repository costs one 401, once,
//! and a token service that fails or hangs is met only by the repositories that name it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use base64::Engine as _;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE},
};

use super::{
    Credentials, Inner,
    call::{self, Call, Session},
    challenge::{self, Challenge},
    connect::lock,
    error::RegistryError,
    exchange::Send,
    login::ACR_USER,
    target::{Target, encode_component, literal},
};
use crate::{metrics::RequestKind, secret::Secret};

/// The largest answer of a token service.
const MAX_TOKEN_BODY: usize = 1 << 20;
/// A token's life where its service states none (distribution's token specification).
const DEFAULT_LIFE: u64 = 60;
/// No token is kept longer than this.
const LONGEST_LIFE: u64 = 24 * 3600;
/// How many tokens one call may fetch.
const MAX_TOKENS: u32 = 2;

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    session: u64,
    realm: String,
    service: Option<String>,
    scopes: Vec<String>,
}

/// A token as its header's value, and for how long to keep it.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    pub(super) keep: Duration,
}

/// What a session's registry was seen to want, by scope.
#[derive(Default)]
pub(super) struct Known {
    scopes: HashMap<String, Wanted>,
    /// The length of all texts in it.
    bytes: usize,
}

/// What a registry wants for one scope.
#[derive(Clone)]
struct Wanted {
    method: Scheme,
    /// Further scopes that a challenge named.
    extra: BTreeSet<String>,
}

impl Known {
    /// Some 40 000 repositories of an honest registry, and a bound on what another can have kept; what is forgotten costs
    /// a 401.
    const MAX_BYTES: usize = 8 << 20;
    /// What an entry takes beside its texts.
    const ENTRY: usize = 128;

    fn get(&self, scope: &str) -> Option<Wanted> {
        self.scopes.get(scope).cloned()
    }

    /// Takes in a challenge that names `scopes`; what was wanted for `scope` before, and whether this is news.
    fn learn(&mut self, scope: &str, method: &Scheme, scopes: &str) -> (Option<Scheme>, bool) {
        let mut wanted = Wanted { method: method.clone(), extra: BTreeSet::new() };
        let before = self.remove(scope);
        if let Some(before) = &before {
            wanted.extra.clone_from(&before.extra);
        }
        for also in scopes.split(' ').filter(|s| !s.is_empty() && s.len() <= 512 && *s != scope).take(8) {
            if wanted.extra.len() < 8 {
                wanted.extra.insert(also.to_owned());
            }
        }
        let news = before.as_ref().is_none_or(|b| b.method != wanted.method || b.extra != wanted.extra);
        let size = wanted.size(scope);
        if self.bytes + size > Self::MAX_BYTES {
            *self = Self::default();
        }
        self.bytes += size;
        self.scopes.insert(scope.to_owned(), wanted);
        (before.map(|before| before.method), news)
    }

    fn remove(&mut self, scope: &str) -> Option<Wanted> {
        let wanted = self.scopes.remove(scope)?;
        self.bytes -= wanted.size(scope);
        Some(wanted)
    }
}

impl Wanted {
    fn size(&self, scope: &str) -> usize {
        let method = match &self.method {
            Scheme::Basic => 0,
            Scheme::Bearer { realm, service } => realm.len() + service.as_ref().map_or(0, String::len),
        };
        Known::ENTRY + scope.len() + method + self.extra.iter().map(|scope| Known::ENTRY + scope.len()).sum::<usize>()
    }
}

impl Session {
    /// The next call for `scope` asks the registry itself, which may name a better token service, or want none, by then.
    pub(super) fn unlearn(&self, scope: &str) {
        lock(&self.known).remove(scope);
    }
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn basic(username: &str, password: &Secret) -> Option<HeaderValue> {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{}", password.expose()));
    sensitive(&format!("Basic {pair}"))
}

fn unusable(what: &'static str) -> RegistryError {
    super::error::SetupError { what, why: "it holds characters that no header may have".to_owned() }.into()
}

impl Inner {
    /// The Authorization for a call's next request: what the registry is known to want.
    pub(super) async fn authorization(
        &self,
        session: &Arc<Session>,
        call: &Call<'_>,
        base: &Target,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let credentials = session.credentials();
        if let Credentials::RegistryToken(token) = &*credentials {
            let header = sensitive(&format!("Bearer {}", token.expose()));
            return header.map(Some).ok_or_else(|| unusable("registry token"));
        }
        let scope = call.scope();
        let Some(Wanted { method, extra }) = lock(&session.known).get(&scope) else { return Ok(None) };
        match method {
            Scheme::Basic => match &*credentials {
                Credentials::Basic { username, password } => {
                    basic(username, password).map(Some).ok_or_else(|| unusable("credentials"))
                }
                _ => Ok(None),
            },
            Scheme::Bearer { realm, service } => {
                let key = token_key(session, scope, extra, realm, service);
                self.token(session, call, base, key).await.map(Some)
            }
        }
    }

    /// Takes in a 401: learns what is wanted, forgets the token that was refused. `false`: nothing more to try.
    pub(super) async fn challenged(
        &self,
        session: &Session,
        call: &Call<'_>,
        headers: &HeaderMap,
        sent: Option<&HeaderValue>,
    ) -> bool {
        let credentials = session.credentials();
        if matches!(*credentials, Credentials::RegistryToken(_)) {
            return false;
        }
        let mut challenges: Vec<Challenge> = Vec::new();
        for value in headers.get_all(WWW_AUTHENTICATE).iter().take(8) {
            if let Ok(text) = std::str::from_utf8(value.as_bytes()) {
                challenges.extend(challenge::parse(text));
            }
        }
        let bearer = challenges.iter().find(|c| c.scheme == "bearer" && c.get("realm").is_some());
        let wanted = match bearer {
            Some(bearer) => Scheme::Bearer {
                realm: bearer.get("realm").unwrap_or_default().to_owned(),
                service: bearer.get("service").map(str::to_owned),
            },
            None if challenges.iter().any(|c| c.scheme == "basic")
                && matches!(*credentials, Credentials::Basic { .. }) =>
            {
                Scheme::Basic
            }
            None => return false,
        };
        let scope = call.scope();
        let scopes = bearer.and_then(|b| b.get("scope")).unwrap_or_default();
        let (before, news) = lock(&session.known).learn(&scope, &wanted, scopes);
        if sent.is_none() || news {
            return call.tokens.load(Ordering::Relaxed) < MAX_TOKENS;
        }
        // The same again: a Basic pair stays wrong, unless a login gives another; a token may have been revoked or expired
        // early.
        let Some(Scheme::Bearer { realm, service }) = before else {
            self.log_out(session).await;
            let login = matches!(session.endpoint.credentials, Credentials::Login(_));
            return login && call.tokens.fetch_add(1, Ordering::Relaxed) < MAX_TOKENS;
        };
        let extra = lock(&session.known).get(&scope).map(|wanted| wanted.extra).unwrap_or_default();
        let key = token_key(session, scope, extra, realm, service);
        // Another call may have replaced the refused token already.
        if self.tokens.get(&key).await.is_some_and(|token| Some(&token.header) == sent) {
            self.tokens.invalidate(&key).await;
        }
        call.tokens.load(Ordering::Relaxed) < MAX_TOKENS
    }

    async fn token(
        &self,
        session: &Arc<Session>,
        call: &Call<'_>,
        base: &Target,
        key: TokenKey,
    ) -> Result<HeaderValue, RegistryError> {
        let realm = match Target::parse(&key.realm) {
            Some(realm) => realm,
            None => {
                return Err(RegistryError::Realm {
                    registry: session.upstream.to_string(),
                    realm: "that cannot be read".to_owned(),
                    why: "its realm is not an http or https URL",
                });
            }
        };
        self.check_realm(session, &realm, base)?;
        let fetch = Box::pin(self.fetch_token(session, call, &realm, &key));
        let mut waiting = Unlearned { session, scope: Some(call.scope()) };
        let token = self.tokens.try_get_with_by_ref(&key, fetch).await;
        waiting.scope = None;
        match token {
            Ok(token) => Ok(token.header),
            Err(source) => Err(RegistryError::Token { realm: realm.to_string(), source }),
        }
    }

    /// Credentials go to the registry's own token service only (R12).
    fn check_realm(&self, session: &Session, realm: &Target, base: &Target) -> Result<(), RegistryError> {
        let refuse =
            |why| Err(RegistryError::Realm { registry: session.upstream.to_string(), realm: realm.to_string(), why });
        if !realm.https && base.https {
            return refuse("it is not https");
        }
        if session.endpoint.credentials == Credentials::Anonymous {
            return Ok(());
        }
        let registry = session.endpoint.registry.host().trim_matches(['[', ']']);
        if related(registry, &realm.host) || related(&base.host, &realm.host) {
            return Ok(());
        }
        if self.is_token_realm(&realm.host, &realm.host_and_port()) {
            return Ok(());
        }
        refuse("it is on another domain; tokenRealms may permit it")
    }

    /// Whether `tokenRealms` lists a host, by its name alone or with its port.
    pub(super) fn is_token_realm(&self, host: &str, host_and_port: &str) -> bool {
        let is = |listed: &String| listed.eq_ignore_ascii_case(host) || listed.eq_ignore_ascii_case(host_and_port);
        self.config.token_realms.iter().any(is)
    }

    async fn fetch_token(
        &self,
        session: &Arc<Session>,
        call: &Call<'_>,
        realm: &Target,
        key: &TokenKey,
    ) -> Result<Token, RegistryError> {
        let what = || realm.to_string();
        let credentials = session.credentials();
        let refresh = match &*credentials {
            Credentials::IdentityToken(token) => Some(token),
            // By convention the password is a refresh token. Not every service that stands in for ACR's takes it as one.
            Credentials::Basic { username, password } if username == ACR_USER => Some(password),
            _ => None,
        };
        let mut answer = None;
        for refresh in refresh.into_iter().map(Some).chain([None]) {
            let (method, headers, body, target) = token_request(&credentials, refresh, realm, key)?;
            // The registry names this host, so it may be private only where the registry is.
            let private = session.private.load(Ordering::Relaxed);
            let send = Send { kind: RequestKind::Token, method: &method, headers, body: &body, private };
            let (parts, body) = self.follow(session, call, send, target).await?;
            if parts.status == StatusCode::OK {
                answer = Some(body);
                break;
            }
            let unknown = matches!(parts.status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED);
            if refresh.is_some() && unknown && matches!(*credentials, Credentials::Basic { .. }) {
                body.discard().await;
                continue;
            }
            if parts.status == StatusCode::UNAUTHORIZED {
                self.log_out(session).await;
            }
            return Err(call::refused(&credentials, &method, parts.status, body).await);
        }
        let Some(mut answer) = answer else { unreachable!("the last request has no refresh token") };
        let bytes = answer.collect(MAX_TOKEN_BODY).await?;
        call.tokens.fetch_add(1, Ordering::Relaxed);
        #[derive(serde::Deserialize)]
        struct Answer {
            token: Option<Secret>,
            access_token: Option<Secret>,
            expires_in: Option<serde_json::Value>,
        }
        let protocol = |why: &str| RegistryError::Protocol { what: what(), why: why.to_owned() };
        // serde_json's own message may quote the token.
        let answer: Answer =
            serde_json::from_slice(&bytes).map_err(|_| protocol("the token service's answer is not its JSON"))?;
        let token = [answer.token, answer.access_token]
            .into_iter()
            .flatten()
            .find(|token| !token.expose().is_empty())
            .ok_or_else(|| protocol("the token service's answer has neither token nor access_token"))?;
        let header = sensitive(&format!("Bearer {}", token.expose()))
            .ok_or_else(|| protocol("the token holds characters that no header may have"))?;
        let life = answer.expires_in.and_then(|v| v.as_f64()).filter(|life| *life >= 1.0);
        let life = life.map_or(DEFAULT_LIFE, |life| life as u64).min(LONGEST_LIFE);
        Ok(Token { header, keep: Duration::from_secs(life) * 4 / 5 })
    }
}

/// How a token service is asked: with a refresh token by a form (OAuth2), else by a query with what pair there is.
fn token_request(
    credentials: &Credentials,
    refresh: Option<&Secret>,
    realm: &Target,
    key: &TokenKey,
) -> Result<(Method, HeaderMap, Bytes, Target), RegistryError> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let mut target = realm.clone();
    if let Some(token) = refresh {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let body = format!(
            "grant_type=refresh_token&refresh_token={}&client_id=larder&service={}&scope={}",
            encode_component(token.expose()),
            encode_component(key.service.as_deref().unwrap_or_default()),
            encode_component(&key.scopes.join(" ")),
        );
        return Ok((Method::POST, headers, body.into(), target));
    }
    if let Credentials::Basic { username, password } = credentials {
        headers.insert(AUTHORIZATION, basic(username, password).ok_or_else(|| unusable("credentials"))?);
    }
    let mut parameters: Vec<String> = Vec::new();
    parameters.extend(key.service.iter().map(|service| format!("service={}", encode_component(service))));
    parameters.extend(key.scopes.iter().map(|scope| format!("scope={}", encode_component(scope))));
    let separator = if target.path_and_query.contains('?') { '&' } else { '?' };
    target.path_and_query.push(separator);
    target.path_and_query.push_str(&parameters.join("&"));
    Ok((Method::GET, headers, Bytes::new(), target))
}

/// A token service that has not answered. Dropped when the call's time is over, it makes the next one for the same scope
/// ask the registry itself; after an answer or an error that is `perform`'s to decide.
struct Unlearned<'a> {
    session: &'a Session,
    scope: Option<String>,
}

impl Drop for Unlearned<'_> {
    fn drop(&mut self) {
        if let Some(scope) = &self.scope {
            self.session.unlearn(scope);
        }
    }
}

fn token_key(
    session: &Session,
    scope: String,
    mut scopes: BTreeSet<String>,
    realm: String,
    service: Option<String>,
) -> TokenKey {
    scopes.insert(scope);
    TokenKey { session: session.id, realm, service, scopes: scopes.into_iter().collect() }
}

/// Public suffixes of two labels, the common ones: below them a registrable domain has three.
const TWO_LABEL_SUFFIXES: &[&str] = &[
    "ac", "co", "com", "edu", "gov", "go", "net", "ne", "or", "org", "gob", "gouv", "nom", "id", "ltd", "plc", "me",
    "sch", "mil", "ad", "ed", "gr", "lg", "govt", "gen", "geek", "iwi", "kiwi", "asn", "nic", "firm", "ind", "res",
    "web", "art",
];

/// Domains below which strangers register names, at various depths: a host there is related to itself only.
const SHARED_DOMAINS: &[&str] = &[
    "amazonaws.com",
    "amazonaws.com.cn",
    "appspot.com",
    "azurecr.io",
    "azurefd.net",
    "azurewebsites.net",
    "blogspot.com",
    "cloudapp.net",
    "cloudfront.net",
    "cluster.local",
    "ddns.net",
    "deno.dev",
    "digitaloceanspaces.com",
    "duckdns.org",
    "dyndns.org",
    "firebaseapp.com",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "herokuapp.com",
    "netlify.app",
    "ngrok-free.app",
    "ngrok.app",
    "ngrok.io",
    "nip.io",
    "no-ip.org",
    "ondigitalocean.app",
    "onrender.com",
    "pages.dev",
    "r2.dev",
    "railway.app",
    "run.app",
    "sslip.io",
    "trycloudflare.com",
    "vercel.app",
    "web.app",
    "windows.net",
    "workers.dev",
];

/// Whether two hosts are one, or of one registrable domain. A heuristic on the safe side: where it does not know,
/// `tokenRealms` helps.
fn related(one: &str, other: &str) -> bool {
    let (one, other) = (one.trim_end_matches('.'), other.trim_end_matches('.'));
    if one.eq_ignore_ascii_case(other) {
        return true;
    }
    if literal(one).is_some() || literal(other).is_some() {
        return false;
    }
    match (registrable(one), registrable(other)) {
        (Some(one), Some(other)) => one.eq_ignore_ascii_case(other),
        _ => false,
    }
}

fn registrable(host: &str) -> Option<&str> {
    let dots: Vec<usize> = host.rmatch_indices('.').map(|(at, _)| at).collect();
    let last = |labels: usize| match dots.get(labels - 1) {
        Some(at) => Some(&host[at + 1..]),
        None if dots.len() + 1 == labels => Some(host),
        None => None,
    };
    if SHARED_DOMAINS
        .iter()
        .any(|shared| host.strip_suffix(shared).is_some_and(|head| head.ends_with('.') || head.is_empty()))
    {
        return None;
    }
    let mut labels = host.rsplit('.');
    let (top, second) = (labels.next()?, labels.next()?);
    if top.len() == 2 && TWO_LABEL_SUFFIXES.contains(&second) { last(3) } else { last(2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_bounded_however_many_repositories_a_registry_challenges_for() {
        let mut known = Known::default();
        let method = Scheme::Bearer { realm: "x".repeat(60_000), service: None };
        for number in 0..1000 {
            let scope = format!("repository:{number}:pull");
            let (before, news) = known.learn(&scope, &method, "repository:also:pull");
            assert!(before.is_none() && news, "{number}");
            assert_eq!(known.get(&scope).map(|wanted| wanted.extra.len()), Some(1));
            assert!(!known.learn(&scope, &method, "").1, "what was named before stays");
            assert_eq!(known.bytes, known.scopes.iter().map(|(scope, wanted)| wanted.size(scope)).sum::<usize>());
            assert!(known.bytes <= Known::MAX_BYTES);
        }
        assert!((1..1000).contains(&known.scopes.len()));
    }

    #[test]
    fn realms_are_related_by_registrable_domain_only() {
        for (registry, realm, yes) in [
            ("docker.io", "auth.docker.io", true),
            ("registry-1.docker.io", "auth.docker.io", true),
            ("ghcr.io", "ghcr.io", true),
            ("lscr.io", "ghcr.io", false),
            ("registry.gitlab.com", "gitlab.com", true),
            ("registry.example.co.uk", "auth.example.co.uk", true),
            ("a.co.uk", "b.co.uk", false),
            ("co.uk", "b.co.uk", false),
            ("a.github.io", "b.github.io", false),
            ("a.azurecr.io", "b.azurecr.io", false),
            ("a.svc.cluster.local", "b.svc.cluster.local", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("10.0.0.1", "11.0.0.1", false),
            ("localhost", "localhost", true),
            ("a", "b", false),
            ("evil-docker.io", "docker.io", false),
            ("docker.io.evil.example", "auth.docker.io", false),
        ] {
            assert_eq!(related(registry, realm), yes, "{registry} {realm}");
        }
    }
}
