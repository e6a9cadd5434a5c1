//! Secrets, ServiceAccounts and ConfigMaps of a cluster: read one by one, by name, when they are wanted.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use http::{Method, header};
use serde_json::{Value, json};

use super::{Cluster, Inner};
use crate::{
    class::Class,
    objects::{
        BackendError, BoxFuture, ConfigMap, Key, References, SecretObject, ServiceAccount, WithStatus,
        api::{CallError, Identity, read, segment},
        manifest::{self, Content, Declared},
    },
    secret::Secret,
};

/// How long what was read counts as current.
const FRESH: Duration = Duration::from_secs(10);
/// How long a ServiceAccount's token is good: as short as an API server allows; it is exchanged at once.
const TOKEN_LIFE: Duration = Duration::from_secs(600);

/// What was read a moment ago: kind, namespace, name; when, what.
pub type Recent = HashMap<(Reference, String, String), (Instant, Content)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    Secret,
    ServiceAccount,
    ConfigMap,
}

impl Reference {
    const fn plural(self) -> &'static str {
        match self {
            Self::Secret => "secrets",
            Self::ServiceAccount => "serviceaccounts",
            Self::ConfigMap => "configmaps",
        }
    }
}

impl Inner {
    /// What an object refers to, as it is now or was a moment ago.
    async fn reference(&self, kind: Reference, namespace: &str, name: &str) -> Result<Option<Content>, BackendError> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        {
            let mut known = self.references.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|_, (since, _)| since.elapsed() < FRESH);
            if let Some((_, content)) = known.get(&key) {
                return Ok(Some(content.clone()));
            }
        }
        let path = format!("/api/v1/namespaces/{}/{}/{}", segment(namespace), kind.plural(), segment(name));
        let Some(mut found) = self.get(&path).await.map_err(|e| BackendError::api("read", kind.plural(), &e))? else {
            return Ok(None);
        };
        if let Some(of) = found.as_object_mut() {
            let name = match kind {
                Reference::Secret => "Secret",
                Reference::ServiceAccount => "ServiceAccount",
                Reference::ConfigMap => "ConfigMap",
            };
            of.insert("kind".into(), name.into());
            of.insert("apiVersion".into(), "v1".into());
        }
        match manifest::read(&found).pop() {
            Some((_, Declared::Item { content, .. })) => {
                let mut known = self.references.lock().unwrap_or_else(PoisonError::into_inner);
                known.insert(key, (Instant::now(), content.clone()));
                Ok(Some(content))
            }
            Some((_, Declared::Faulty { error, .. })) => {
                let class = if kind == Reference::ConfigMap { Class::Spec } else { Class::Auth };
                Err(BackendError::Call { message: error, class })
            }
            _ => Err(BackendError::Api("the API server's answer is something else".into())),
        }
    }

    /// A fresh token of a ServiceAccount (TokenRequest, `authentication.k8s.io/v1`); `None` where there is no such account.
    async fn token(&self, namespace: &str, name: &str, audiences: &[String]) -> Result<Option<Secret>, BackendError> {
        let path = format!("/api/v1/namespaces/{}/serviceaccounts/{}/token", segment(namespace), segment(name));
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": audiences, "expirationSeconds": TOKEN_LIFE.as_secs()},
        });
        let headers = [(header::ACCEPT, "application/json"), (header::CONTENT_TYPE, "application/json")];
        let body = request.to_string();
        let issued = self.calls.call(&Method::POST, &path, &Identity::default(), &headers, body.as_bytes()).await;
        let failed = |error: CallError| BackendError::api("get a token of", "the ServiceAccount", &error);
        match issued {
            Ok((_, body)) => {
                let answer: Value = read(&body).map_err(failed)?;
                match answer["status"]["token"].as_str() {
                    Some(token) => Ok(Some(Secret::new(token))),
                    None => Err(BackendError::Api("the API server's answer holds no token".into())),
                }
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

impl References for Cluster {
    fn are_told(&self) -> bool {
        false
    }

    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<SecretObject>>, BackendError>> {
        Box::pin(async move {
            let found = self.inner.reference(Reference::Secret, namespace, name).await?;
            Ok(found.and_then(|content| match content {
                Content::Secret(secret) => Some(secret),
                _ => None,
            }))
        })
    }

    fn service_account<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ServiceAccount>, BackendError>> {
        Box::pin(async move {
            let found = self.inner.reference(Reference::ServiceAccount, namespace, name).await?;
            Ok(found.and_then(|content| match content {
                Content::ServiceAccount(account) => Some(account),
                _ => None,
            }))
        })
    }

    fn service_account_token<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<Secret>, BackendError>> {
        Box::pin(self.inner.token(namespace, name, audiences))
    }

    fn object<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<WithStatus>, BackendError>> {
        Box::pin(async move {
            let path = super::path(key.kind, &key.namespace, &key.name);
            let found = self.inner.get(&path).await.map_err(|e| BackendError::api("read", &key.to_string(), &e))?;
            let shown = found.map(serde_json::from_value).transpose();
            let shown = shown.map_err(|e| BackendError::Api(format!("cannot read {key}: {e}")))?;
            let read = shown.map(|shown| super::read_object(key.kind, shown)).transpose();
            read.map_err(|(key, why)| BackendError::Api(format!("cannot read {key}: {why}")))
        })
    }

    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<ConfigMap>>, BackendError>> {
        Box::pin(async move {
            let found = self.inner.reference(Reference::ConfigMap, namespace, name).await?;
            Ok(found.and_then(|content| match content {
                Content::ConfigMap(map) => Some(map),
                _ => None,
            }))
        })
    }
}
