//! One login as it is carried out: requests to token services, each over the client's own path, and what they answer.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use base64::Engine as _;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Account, Grant, Login, Provider};
use crate::{
    blocking,
    metrics::RequestKind,
    oci::error_body,
    registry::{
        Credentials, Endpoint, Inner, ProxyEnvironment, Transport,
        call::{Call, Session},
        connect::Profile,
        error::{RegistryError, SetupError},
        exchange::Send,
        hidden::Hidden,
        target::{Target, encode_component, literal},
    },
    secret::Secret,
};

/// The largest answer of a token service.
const MAX_ANSWER: usize = 1 << 20;
/// The largest file with a token or a configuration.
const MAX_FILE: u64 = 1 << 20;
/// Secrets shorter than this are no tokens, and words of a message.
const SHORTEST_SECRET: usize = 8;

/// What one login is carried out with.
#[derive(Clone, Copy)]
pub(super) struct Exchange<'a> {
    pub(super) inner: &'a Inner,
    pub(super) session: &'a Arc<Session>,
    pub(super) call: &'a Call<'a>,
    /// The registry's root.
    pub(super) base: &'a Target,
    pub(super) login: &'a Login,
}

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// The registry itself, in the way that the object asks for.
    Registry,
    /// A token service of the cloud, or the one that the environment names instead.
    Service,
    /// The metadata server, or an agent beside it; never through a proxy.
    Metadata,
}

/// A request to a token service.
pub(super) struct Ask<'a> {
    at: At,
    method: Method,
    url: Target,
    headers: HeaderMap,
    body: Bytes,
    /// What an answer must not repeat to anybody.
    secrets: Vec<&'a Secret>,
}

impl<'a> Ask<'a> {
    pub(super) fn new(at: At, method: Method, url: Target) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        Self { at, method, url, headers, body: Bytes::new(), secrets: Vec::new() }
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Sends a header whose value nobody sees.
    pub(super) fn secret_header(mut self, name: HeaderName, value: String) -> Result<Self, RegistryError> {
        let mut value = HeaderValue::try_from(value)
            .map_err(|_| setup("login", "a token holds characters that no header may have"))?;
        value.set_sensitive(true);
        self.headers.insert(name, value);
        Ok(self)
    }

    pub(super) fn body(mut self, media_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        self.body = body.into();
        self
    }

    pub(super) fn form(self, fields: &[(&str, &str)]) -> Self {
        let pairs: Vec<String> =
            fields.iter().map(|(name, value)| format!("{name}={}", encode_component(value))).collect();
        self.body("application/x-www-form-urlencoded", pairs.join("&"))
    }

    pub(super) fn hides(mut self, secret: &'a Secret) -> Self {
        self.secrets.push(secret);
        self
    }
}

/// What cannot be used of the login's own material.
pub(super) fn setup(what: &'static str, why: impl Into<String>) -> RegistryError {
    SetupError { what, why: why.into() }.into()
}

/// A URL that the environment names.
pub(super) fn named_url(variable: &'static str, text: &str) -> Result<Target, RegistryError> {
    Target::parse(text).ok_or_else(|| setup(variable, "not an http or https URL"))
}

/// A URL made of parts that were checked before.
pub(super) fn own_url(text: &str) -> Result<Target, RegistryError> {
    Target::parse(text).ok_or_else(|| setup("login", format!("{text} is not a URL")))
}

/// `url` with `path` below it.
pub(super) fn below(url: &Target, path: &str) -> Target {
    let path_and_query = format!("{}/{}", url.path().trim_end_matches('/'), path.trim_start_matches('/'));
    Target { path_and_query, ..url.clone() }
}

impl Exchange<'_> {
    /// The whole login.
    pub(super) async fn run(self) -> Result<Grant, RegistryError> {
        tracing::debug!(provider = %self.login.provider, registry = %self.login.registry, "logging in");
        match self.login.provider {
            #[cfg(feature = "aws")]
            Provider::Aws => super::aws::log_in(self).await,
            #[cfg(feature = "azure")]
            Provider::Azure => super::azure::log_in(self).await,
            #[cfg(feature = "gcp")]
            Provider::Gcp => super::gcp::log_in(self).await,
            #[cfg(not(all(feature = "aws", feature = "azure", feature = "gcp")))]
            provider => Err(setup("login", super::LoginError::NotBuiltIn(provider).to_string())),
        }
    }

    /// A token of the account for `audience`.
    pub(super) async fn account_token(&self, account: &Account, audience: &str) -> Result<Secret, RegistryError> {
        let Some(accounts) = &self.inner.logins.config.accounts else {
            return Err(setup("serviceAccountName", "there is no cluster here that issues tokens of ServiceAccounts"));
        };
        let audiences = [audience.to_owned()];
        match accounts.token(&account.namespace, &account.name, &audiences).await {
            Ok(Some(token)) => Ok(token),
            Ok(None) => Err(setup("serviceAccountName", format!("{account} not found"))),
            Err(error) => Err(setup("serviceAccountName", format!("no token of {account}: {error}"))),
        }
    }

    /// Sends a request; the body of the answer, if that is 200.
    pub(super) async fn ask(&self, ask: Ask<'_>) -> Result<Bytes, RegistryError> {
        let session = self.session_for(&ask).await?;
        let send = Send {
            kind: RequestKind::Token,
            method: &ask.method,
            headers: ask.headers,
            body: &ask.body,
            // The cloud's services have private addresses inside its networks.
            private: true,
        };
        let (parts, mut body, _) = self.inner.exchange(&session, self.call, &send, &ask.url).await?;
        if parts.status == StatusCode::OK {
            return body.collect(MAX_ANSWER).await;
        }
        let text = body.collect(error_body::MAX_FOREIGN_BYTES).await.unwrap_or_default();
        let mut hidden = Hidden::default();
        ask.secrets.iter().map(|secret| secret.expose()).filter(|s| s.len() >= SHORTEST_SECRET).for_each(|secret| {
            hidden.secret(secret);
        });
        body.shown().iter().for_each(|value| hidden.header(value));
        hidden.whole(&String::from_utf8_lossy(&ask.body));
        let summary = summary(&text, |said| hidden.out_of(said))
            .unwrap_or_else(|| parts.status.canonical_reason().unwrap_or("unknown status").to_owned());
        Err(RegistryError::Status { method: ask.method, url: ask.url.to_string(), status: parts.status, summary })
    }

    /// The same, with JSON as its answer.
    pub(super) async fn ask_json<T: DeserializeOwned>(&self, ask: Ask<'_>) -> Result<T, RegistryError> {
        let what = ask.url.to_string();
        let body = self.ask(ask).await?;
        // serde_json's own message may quote the token.
        serde_json::from_slice(&body)
            .map_err(|_| RegistryError::Protocol { what, why: "not the JSON that was asked for".to_owned() })
    }

    async fn session_for(&self, ask: &Ask<'_>) -> Result<Arc<Session>, RegistryError> {
        let registry = match ask.at {
            At::Registry => return Ok(self.session.clone()),
            At::Service | At::Metadata => ask.url.authority().parse(),
        };
        let registry = registry.map_err(|error| setup("login", format!("{}: {error}", ask.url)))?;
        let address = literal(&ask.url.host);
        let transport = Transport {
            // Whose proxy it is may be anybody: it sees nothing in clear text.
            proxy: self.session.endpoint.transport.proxy.clone().filter(|_| ask.at == At::Service && ask.url.https),
            // What the operator names on this machine is the operator's, as an `--upstream` is.
            allow_loopback: address.is_some_and(|address| address.is_loopback()),
            ..Transport::default()
        };
        let endpoint = Endpoint { registry, transport, credentials: Credentials::Anonymous };
        if ask.at == At::Service {
            return self.inner.session(&endpoint).await;
        }
        let profile = match self.inner.logins.metadata.get() {
            Some(profile) => profile.clone(),
            None => {
                let transport = Transport { allow_loopback: true, ..Transport::default() };
                let (rules, environment) = (self.inner.rules.clone(), Arc::new(ProxyEnvironment::default()));
                let profile = Profile::new(&transport, rules, environment, self.inner.limits())?.for_metadata();
                self.inner.logins.metadata.get_or_init(|| Arc::new(profile)).clone()
            }
        };
        Ok(Arc::new(Session::new(self.inner.next_id(), endpoint, profile)))
    }
}

/// A file with a token, without the white space around it. Read each time: it is replaced before it expires.
pub(super) async fn read_token(what: &'static str, path: &Path) -> Result<Secret, RegistryError> {
    let text = read_file(what, path).await?;
    let token = text.expose().trim();
    if token.is_empty() { Err(setup(what, format!("{} is empty", path.display()))) } else { Ok(Secret::new(token)) }
}

/// A file of text, at most [`MAX_FILE`].
pub(super) async fn read_file(what: &'static str, path: &Path) -> Result<Secret, RegistryError> {
    let named = path.to_owned();
    let read = move || {
        if std::fs::metadata(&named)?.len() > MAX_FILE {
            return Err(std::io::Error::other("it is larger than 1 MiB"));
        }
        std::fs::read_to_string(&named)
    };
    let text = blocking::io(read).await;
    text.map(Secret::new).map_err(|error| setup(what, format!("cannot read {}: {error}", path.display())))
}

/// How long from now until `at`; nothing where that is past.
pub(super) fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
}

/// When a JWT expires, by its own word.
pub(super) fn expiry_of_jwt(token: &Secret) -> Option<Timestamp> {
    let claims = token.expose().split('.').nth(1)?;
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    Timestamp::from_second(claims.get("exp")?.as_f64()? as i64).ok()
}

/// What the clouds' error bodies say, as `told` tells it: JSON of AWS, Entra ID and Google, XML of STS; else as any
/// registry's.
fn summary(body: &[u8], told: impl FnOnce(&str) -> String) -> Option<String> {
    let said = match serde_json::from_slice::<Value>(body) {
        Ok(value) => {
            let at = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
            let first = |pointers: &[&str]| pointers.iter().find_map(|pointer| at(pointer)).map(str::to_owned);
            let code = first(&["/__type", "/error/status", "/error", "/code", "/Code"]);
            let message = first(&["/error_description", "/error/message", "/message", "/Message"]);
            join(code, message)
        }
        Err(_) => {
            let text = String::from_utf8_lossy(body);
            join(element(&text, "Code").map(str::to_owned), element(&text, "Message").map(str::to_owned))
        }
    };
    let Some(said) = said else { return error_body::summary_of(body, told) };
    Some(
        told(&said).chars().map(|c| if c.is_control() { ' ' } else { c }).take(error_body::MAX_SUMMARY_CHARS).collect(),
    )
}

fn join(code: Option<String>, message: Option<String>) -> Option<String> {
    match (code, message) {
        (Some(code), Some(message)) => Some(format!("{code}: {message}")),
        (code, message) => code.or(message),
    }
}

/// The text of the first XML element of that name that has no attributes; enough for what STS answers.
pub(super) fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inside, _) = rest.split_once(&format!("</{name}>"))?;
    Some(inside.trim())
}

/// Whether a host is this machine, or one of the link-local addresses at which clouds give workloads their identity.
pub(super) fn is_local_service(host: &str) -> bool {
    let address: Option<IpAddr> = literal(host);
    address.is_some_and(|a| a.is_loopback() || crate::registry::address::gives_identity(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_in_each_clouds_own_words() {
        for (body, said) in [
            (
                r#"{"error":"invalid_client","error_description":"AADSTS700016: no such application\r\nTrace"}"#,
                "invalid_client: AADSTS700016: no such application  Trace",
            ),
            (
                r#"{"__type":"AccessDeniedException","message":"not authorized"}"#,
                "AccessDeniedException: not authorized",
            ),
            (
                r#"{"error":{"code":403,"message":"denied on resource","status":"PERMISSION_DENIED"}}"#,
                "PERMISSION_DENIED: denied on resource",
            ),
            (r#"{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}"#, "UNAUTHORIZED: no"),
            (
                "<ErrorResponse><Error><Type>Sender</Type><Code>InvalidIdentityToken</Code><Message>No provider</Message></Error></ErrorResponse>",
                "InvalidIdentityToken: No provider",
            ),
        ] {
            assert_eq!(summary(body.as_bytes(), str::to_owned).as_deref(), Some(said), "{body}");
        }
    }

    #[test]
    fn a_jwt_tells_its_own_end() {
        use base64::Engine as _;
        let part = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"exp":1700000000,"x":1}"#);
        let token = Secret::new(format!("h.{part}.s"));
        assert_eq!(expiry_of_jwt(&token), Timestamp::from_second(1_700_000_000).ok());
        assert_eq!(expiry_of_jwt(&Secret::new("opaque")), None);
    }
}
