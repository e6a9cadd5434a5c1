//! Calls about ExternalArtifacts.

use http::{Method, header};
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::wanted::{Live, Name, Wanted};
use crate::objects::{
    api::{CallError, Calls, Identity, read, segment},
    cluster::{MANAGER, difference},
    external_artifact::PLURAL,
};

/// How often something is written anew that others write at that moment.
const ATTEMPTS: usize = 3;

/// Why an artifact is not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// CamelCase word, for a condition.
    pub reason: &'static str,
    /// What is wrong, where, and what to do.
    pub message: String,
}

impl Failure {
    fn call(name: &Name, error: &CallError) -> Self {
        let (namespace, name) = name;
        let of = format!("cannot publish ExternalArtifact {namespace}/{name}");
        let said = crate::class::chain(error);
        let (reason, message) = match error {
            // `namespaces "x" not found`, against the absence of the kind.
            CallError::Refused { code: 404, message, .. } if message.contains("namespaces \"") => {
                ("NamespaceNotFound", format!("{of}: there is no namespace {namespace}; it is published once there is"))
            }
            CallError::Refused { code: 404, .. } => ("KindNotFound", format!("{of}: {}", super::NO_KIND)),
            CallError::Refused { code: 401 | 403, .. } => ("AccessDenied", format!("{of}: {said}")),
            _ => ("PublishingFailed", format!("{of}: {said}")),
        };
        Self { reason, message }
    }
}

fn path((namespace, name): &Name) -> String {
    format!("/apis/source.toolkit.fluxcd.io/v1/namespaces/{}/{PLURAL}/{}", segment(namespace), segment(name))
}

async fn send(calls: &Calls, method: &Method, path: &str, kind: &str, body: &Value) -> Result<Live, CallError> {
    let headers = [(header::ACCEPT, "application/json"), (header::CONTENT_TYPE, kind)];
    let headers = if body.is_null() { &headers[..1] } else { &headers[..] };
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (_, body) = calls.call(method, path, &Identity::default(), headers, body.as_bytes()).await?;
    Ok(Live::read(read::<DynamicObject>(&body)?).1)
}

/// Brings an ExternalArtifact to what is wanted; what is there then. Nothing is written that is as it should be.
pub async fn bring(calls: &Calls, name: &Name, live: Option<Live>, wanted: &Wanted) -> Result<Live, Failure> {
    let failed = |error: CallError| Failure::call(name, &error);
    let path = path(name);
    let mut live = match live {
        Some(live) => live,
        // What is not labelled is not watched; what is somebody else's is not taken.
        None => match send(calls, &Method::GET, &path, "", &Value::Null).await {
            Ok(live) if !live.is_larders() => {
                let (namespace, name) = name;
                let message = format!(
                    "cannot publish ExternalArtifact {namespace}/{name}: there is one that is not Larder's; delete it, \
                     or name the source otherwise"
                );
                return Err(Failure { reason: "NameTaken", message });
            }
            Ok(live) => live,
            Err(error) if error.is_not_found() => Live::default(),
            Err(error) => return Err(failed(error)),
        },
    };
    for attempt in 1.. {
        if !wanted.is_applied(&live) {
            let apply = format!("{path}?fieldManager={MANAGER}&force=true");
            live = send(calls, &Method::PATCH, &apply, "application/apply-patch+yaml", &wanted.config)
                .await
                .map_err(failed)?;
        }
        let value = |status| serde_json::to_value(status).unwrap_or_default();
        let Some(changed) = difference(&value(&live.status), &value(&wanted.status(&live))) else { return Ok(live) };
        let patch = format!("{path}/status?fieldManager={MANAGER}");
        let body = json!({"metadata": {"uid": live.uid}, "status": changed});
        match send(calls, &Method::PATCH, &patch, "application/merge-patch+json", &body).await {
            Ok(written) => return Ok(written),
            // Deleted or made anew at that moment.
            Err(error) if (error.is_not_found() || error.is_conflict()) && attempt < ATTEMPTS => {
                live = match send(calls, &Method::GET, &path, "", &Value::Null).await {
                    Ok(live) => live,
                    Err(error) if error.is_not_found() => Live::default(),
                    Err(error) => return Err(failed(error)),
                };
            }
            Err(error) => return Err(failed(error)),
        }
    }
    unreachable!("it returns after the last attempt")
}

/// Deletes this very ExternalArtifact. Of no effect where it is gone.
pub async fn delete(calls: &Calls, name: &Name, live: &Live) -> Result<(), Failure> {
    let headers = [(header::ACCEPT, "application/json"), (header::CONTENT_TYPE, "application/json")];
    let body = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": live.uid}}).to_string();
    match calls.call(&Method::DELETE, &path(name), &Identity::default(), &headers, body.as_bytes()).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => {
            let message =
                format!("cannot delete ExternalArtifact {}/{}: {}", name.0, name.1, crate::class::chain(&error));
            Err(Failure { reason: "PublishingFailed", message })
        }
    }
}
