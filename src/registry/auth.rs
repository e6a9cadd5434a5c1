//! Who may have credentials, and tokens (Docker's token specification; OAuth2 for identity tokens).
//!
//! A token belongs to one session (registry, transport, credentials), realm, service and set of scopes. It is fetched
//! once however many calls want it, kept for 80 % of its life, and forgotten when a registry refuses it.

use std::{
    collections::BTreeSet,
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

/// What is known of a session's registry after its first 401.
#[derive(Default)]
pub(super) struct Known {
    pub(super) method: Option<Scheme>,
    /// Further scopes that a challenge named for a scope of ours.
    extra: std::collections::HashMap<String, BTreeSet<String>>,
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
        let method = lock(&session.known).method.clone();
        match method {
            None => Ok(None),
            Some(Scheme::Basic) => match &*credentials {
                Credentials::Basic { username, password } => {
                    basic(username, password).map(Some).ok_or_else(|| unusable("credentials"))
                }
                _ => Ok(None),
            },
            Some(Scheme::Bearer { realm, service }) => {
                let key = token_key(session, call, realm, service);
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
        let (before, news) = {
            let mut known = lock(&session.known);
            let before = known.method.replace(wanted.clone());
            let mut news = before.as_ref() != Some(&wanted);
            if let Some(scopes) = bearer.and_then(|b| b.get("scope")) {
                // A few repositories' worth; what is forgotten costs one 401.
                if known.extra.len() >= 4096 {
                    known.extra.clear();
                }
                let extra = known.extra.entry(call.scope()).or_default();
                for scope in scopes.split(' ').filter(|s| !s.is_empty() && s.len() <= 512).take(8) {
                    if scope != call.scope() && extra.len() < 8 {
                        news |= extra.insert(scope.to_owned());
                    }
                }
            }
            (before, news)
        };
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
        let key = token_key(session, call, realm, service);
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
        let fetch = self.fetch_token(session, call, &realm, &key);
        let waiting = Unlearned(session);
        let token = self.tokens.try_get_with_by_ref(&key, fetch).await;
        std::mem::forget(waiting);
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
            return Err(call::refused(session, &method, parts.status, body).await);
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

/// A token service that has not answered. Dropped when the call's time is over, it makes the next one ask the registry
/// itself, which may name a better service by then; after an answer or an error that is `perform`'s to decide.
struct Unlearned<'a>(&'a Session);

impl Drop for Unlearned<'_> {
    fn drop(&mut self) {
        lock(&self.0.known).method = None;
    }
}

fn token_key(session: &Session, call: &Call<'_>, realm: String, service: Option<String>) -> TokenKey {
    let scope = call.scope();
    let mut scopes: BTreeSet<String> = lock(&session.known).extra.get(&scope).cloned().unwrap_or_default();
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
