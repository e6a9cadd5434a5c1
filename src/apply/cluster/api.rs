//! Calls to the API server: paths, bodies, what comes back, which failures are tried again.
//!
//! Objects are written as JSON and read as metadata alone wherever that is enough: the server then sends no Secret's data,
//! and a list of a thousand objects is small.

use std::{fmt, sync::Arc, time::Duration};

use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::seen::Metadata;
use crate::{apply::managers::MANAGER, class::Class};

/// How many calls are under way at once.
const CONCURRENCY: usize = 32;
/// How long a call may take: as long as an API server itself gives a request.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often a call is made that fails for a while.
const ATTEMPTS: u32 = 4;
/// The largest answer that is read: a page of metadata is about 2 MB.
const MAX_ANSWER: usize = 64 << 20;
/// Objects in one page of a list.
const PAGE: usize = 1000;

const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server says no.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// Kubernetes' word for it; may be empty.
        reason: String,
        /// Its sentence.
        message: String,
    },
    /// No answer.
    #[error("the API server cannot be reached")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An answer that is none.
    #[error("the API server's answer cannot be read")]
    Unreadable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl CallError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Refused { code: 401 | 403, .. } => Class::Auth,
            Self::Refused { code: 404 | 410, .. } => Class::NotFound,
            Self::Refused { code: 429, .. } => Class::Rate,
            Self::Refused { code: 500.., .. } | Self::Away(_) => Class::Net,
            Self::Refused { .. } => Class::Layer,
            Self::Unreadable(_) => Class::Proto,
        }
    }

    /// Whether there is no such object, or nothing like it.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }

    /// Whether the object changed meanwhile.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { code: 409, .. })
    }

    /// Whether the caller may not do this.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused { code: 403, .. })
    }

    /// Whether a field cannot be changed, as kubectl and Flux judge it: by the code, or by the words of a webhook.
    pub fn is_immutable(&self) -> bool {
        match self {
            Self::Refused { code, message, .. } => {
                matches!(code, 409 | 422) || message.contains("is immutable") || message.contains("immutable field")
            }
            _ => false,
        }
    }

    fn is_transient(&self) -> bool {
        matches!(self, Self::Refused { code: 429 | 500 | 502 | 503 | 504, .. } | Self::Away(_))
    }
}

/// As whom a call is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity(Option<Arc<str>>);

impl Identity {
    /// A ServiceAccount, or, without one, Larder itself.
    pub fn of(namespace: &str, account: Option<&str>) -> Self {
        Self(account.map(|name| format!("system:serviceaccount:{namespace}:{name}").into()))
    }

    /// Whether it is Larder itself.
    pub fn is_own(&self) -> bool {
        self.0.is_none()
    }
}

/// A kind as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resource {
    /// API group, empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// As in paths.
    pub plural: String,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
}

impl Resource {
    /// The path of a collection, or of all of them.
    fn collection(&self, namespace: &str) -> String {
        let mut path = match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        if self.namespaced && !namespace.is_empty() {
            path.push_str("/namespaces/");
            path.push_str(&segment(namespace));
        }
        path.push('/');
        path.push_str(&self.plural);
        path
    }

    fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/{}", self.collection(namespace), segment(name))
    }

    /// Whether it is the kind of Secrets, which are never listed.
    pub fn is_secret(&self) -> bool {
        self.group.is_empty() && self.kind == "Secret"
    }
}

/// A name in a path: RBAC names hold colons and more.
fn segment(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// What applying came to.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Whether there was none before.
    pub created: bool,
    /// As it is now.
    pub metadata: Metadata,
}

/// The way to the API server; clones share it.
#[derive(Clone)]
pub struct Api {
    client: kube::Client,
    permits: Arc<Semaphore>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Api")
    }
}

impl Api {
    pub fn new(client: kube::Client) -> Self {
        Self { client, permits: Arc::new(Semaphore::new(CONCURRENCY)) }
    }

    /// One call, made again while it fails for a while. Everything that is called through here may be made twice.
    async fn call(
        &self,
        method: &Method,
        path: &str,
        who: &Identity,
        headers: &[(header::HeaderName, &str)],
        body: &[u8],
    ) -> Result<(StatusCode, Vec<u8>), CallError> {
        let mut delay = Duration::from_millis(200);
        let mut attempt = 1;
        loop {
            let result = self.once(method, path, who, headers, body).await;
            match result {
                Err(error) if error.is_transient() && attempt < ATTEMPTS => {
                    tracing::debug!(%method, path, error = crate::class::chain(&error), "a call to the API server is made again");
                }
                other => return other,
            }
            tokio::time::sleep(delay).await;
            delay *= 3;
            attempt += 1;
        }
    }

    async fn once(
        &self,
        method: &Method,
        path: &str,
        who: &Identity,
        headers: &[(header::HeaderName, &str)],
        body: &[u8],
    ) -> Result<(StatusCode, Vec<u8>), CallError> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        if let Some(user) = &who.0 {
            request = request.header("Impersonate-User", &**user);
        }
        let request = request.body(Body::from(body.to_vec())).map_err(|e| CallError::Unreadable(e.into()))?;
        let exchange = async {
            let Ok(_permit) = self.permits.acquire().await else { unreachable!("the semaphore is never closed") };
            let response = self.client.send(request).await.map_err(|e| CallError::Away(e.into()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(CallError::Away)?;
            Ok((status, body.to_bytes().to_vec()))
        };
        let (status, body) = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|e| CallError::Away(e.into()))??;
        if status.is_success() { Ok((status, body)) } else { Err(refusal(status, &body)) }
    }

    /// A document, as Larder itself.
    pub async fn document<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        let headers = [(header::ACCEPT, "application/json")];
        let (_, body) = self.call(&Method::GET, path, &Identity::default(), &headers, &[]).await?;
        read(&body)
    }

    /// A whole object; `None` if there is none.
    pub async fn object(
        &self,
        who: &Identity,
        of: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, CallError> {
        self.get(who, &of.object(namespace, name), "application/json").await
    }

    /// An object's metadata; `None` if there is none.
    pub async fn metadata(
        &self,
        who: &Identity,
        of: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Metadata>, CallError> {
        let found: Option<Partial> = self.get(who, &of.object(namespace, name), METADATA).await?;
        Ok(found.map(|partial| partial.metadata))
    }

    /// An object's metadata with all that managers own, as JSON.
    pub async fn managers(
        &self,
        who: &Identity,
        of: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, CallError> {
        self.get(who, &of.object(namespace, name), METADATA).await
    }

    async fn get<T: DeserializeOwned>(&self, who: &Identity, path: &str, accept: &str) -> Result<Option<T>, CallError> {
        match self.call(&Method::GET, path, who, &[(header::ACCEPT, accept)], &[]).await {
            Ok((_, body)) => read(&body).map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The metadata of all objects with a label, in one namespace or, where it is empty, in all.
    pub async fn list(
        &self,
        who: &Identity,
        of: &Resource,
        namespace: &str,
        label: &str,
        mut each: impl FnMut(Metadata),
    ) -> Result<(), CallError> {
        let mut token = String::new();
        loop {
            let path = format!("{}?labelSelector={}&limit={PAGE}{token}", of.collection(namespace), segment(label));
            let (_, body) = self.call(&Method::GET, &path, who, &[(header::ACCEPT, METADATA_LIST)], &[]).await?;
            let page: Page = read(&body)?;
            page.items.into_iter().for_each(|partial| each(partial.metadata));
            match page.metadata.r#continue {
                Some(next) if !next.is_empty() => token = format!("&continue={}", segment(&next)),
                _ => return Ok(()),
            }
        }
    }

    /// Server-side apply, with force: conflicts are ours to win.
    pub async fn apply(
        &self,
        who: &Identity,
        of: &Resource,
        namespace: &str,
        name: &str,
        body: &[u8],
        dry_run: bool,
    ) -> Result<Applied, CallError> {
        let dry = if dry_run { "&dryRun=All" } else { "" };
        let path = format!("{}?fieldManager={MANAGER}&force=true{dry}", of.object(namespace, name));
        let headers = [(header::ACCEPT, METADATA), (header::CONTENT_TYPE, "application/apply-patch+yaml")];
        let (status, body) = self.call(&Method::PATCH, &path, who, &headers, body).await?;
        let partial: Partial = read(&body)?;
        Ok(Applied { created: status == StatusCode::CREATED, metadata: partial.metadata })
    }

    /// A JSON patch.
    pub async fn patch(
        &self,
        who: &Identity,
        of: &Resource,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<(), CallError> {
        let path = format!("{}?fieldManager={MANAGER}", of.object(namespace, name));
        let headers = [(header::ACCEPT, METADATA), (header::CONTENT_TYPE, "application/json-patch+json")];
        self.call(&Method::PATCH, &path, who, &headers, patch.to_string().as_bytes()).await.map(drop)
    }

    /// Deletes exactly the object that was looked at, and what it owns in the background. That it is gone is no error.
    pub async fn delete(
        &self,
        who: &Identity,
        of: &Resource,
        namespace: &str,
        name: &str,
        seen: &Metadata,
    ) -> Result<(), CallError> {
        let options = json!({
            "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background",
            "preconditions": {"uid": seen.uid, "resourceVersion": seen.resource_version},
        });
        let headers = [(header::ACCEPT, METADATA), (header::CONTENT_TYPE, "application/json")];
        let path = of.object(namespace, name);
        match self.call(&Method::DELETE, &path, who, &headers, options.to_string().as_bytes()).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, CallError> {
    serde_json::from_slice(body).map_err(|e| CallError::Unreadable(e.into()))
}

#[derive(Deserialize)]
struct Partial {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(default)]
    items: Vec<Partial>,
}

#[derive(Default, Deserialize)]
struct PageMetadata {
    #[serde(default)]
    r#continue: Option<String>,
}

/// A `Status`, or whatever a proxy says.
fn refusal(status: StatusCode, body: &[u8]) -> CallError {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Said {
        reason: String,
        message: String,
    }
    let said: Said = serde_json::from_slice(body).unwrap_or_default();
    let message = if said.message.is_empty() { status.to_string() } else { said.message };
    CallError::Refused { code: status.as_u16(), reason: said.reason, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        let resource = |group: &str, plural: &str, namespaced| Resource {
            group: group.into(),
            version: "v1".into(),
            kind: "K".into(),
            plural: plural.into(),
            namespaced,
        };
        for (of, namespace, name, path) in [
            (resource("", "configmaps", true), "n", "a", "/api/v1/namespaces/n/configmaps/a"),
            (resource("apps", "deployments", true), "n", "a.b", "/apis/apps/v1/namespaces/n/deployments/a.b"),
            (resource("", "namespaces", false), "", "a", "/api/v1/namespaces/a"),
            (
                resource("rbac.authorization.k8s.io", "clusterroles", false),
                "ignored",
                "system:a/../b",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Aa%2F..%2Fb",
            ),
        ] {
            assert_eq!(of.object(namespace, name), path);
        }
        assert_eq!(resource("", "configmaps", true).collection(""), "/api/v1/configmaps");
    }

    #[test]
    fn refusals_are_judged_by_code_and_words() {
        let refused = |code: u16, message: &str| {
            let body = json!({"reason": "R", "message": message}).to_string();
            refusal(StatusCode::from_u16(code).unwrap(), body.as_bytes())
        };
        for (code, message, immutable, class) in [
            (422, "spec.selector: Invalid value: field is immutable", true, Class::Layer),
            (409, "the object has been modified", true, Class::Layer),
            (400, "admission webhook denied: immutable field", true, Class::Layer),
            (400, "unknown field", false, Class::Layer),
            (403, "forbidden", false, Class::Auth),
            (404, "not found", false, Class::NotFound),
            (429, "too many", false, Class::Rate),
            (503, "not ready", false, Class::Net),
        ] {
            let error = refused(code, message);
            assert_eq!((error.is_immutable(), error.class()), (immutable, class), "{error}");
            assert_eq!(error.to_string(), message);
        }
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, b"<html>").to_string(), "502 Bad Gateway");
    }

    #[test]
    fn an_account_is_a_user_of_its_namespace() {
        assert!(Identity::of("n", None).is_own());
        assert_eq!(Identity::of("n", Some("a")).0.as_deref(), Some("system:serviceaccount:n:a"));
    }
}
