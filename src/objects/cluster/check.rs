//! What is looked at before anything is watched: whether the CRDs keep all that Larder writes.

use std::time::Duration;

use http::{Method, header};
use serde_json::Value;

use super::Settings;
use crate::{
    class::chain,
    objects::{
        Kind,
        api::{CallError, Calls, Identity, read, segment},
        crd::{DEFINITIONS, installed},
    },
};

/// How soon an API server that is away is asked again, at first and at the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// Why Larder does not work on this cluster.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// CRDs that would drop what is written.
    #[error("{}", .0.join("\n"))]
    Crds(Vec<String>),
    /// Labels that no API server can read.
    #[error("--watch-label-selector {selector:?}: {source}; write for example sharding.fluxcd.io/key=larder")]
    Selector {
        /// As configured.
        selector: String,
        /// What the API server says.
        #[source]
        source: CallError,
    },
    /// What was kept of the cluster's objects.
    #[error("cannot read what was published: {0}")]
    Kept(#[from] std::io::Error),
}

/// Looks at everything.
pub async fn all(calls: &Calls, settings: &Settings) -> Result<(), SetupError> {
    crds(calls, if settings.only_read { &[] } else { &settings.kinds }).await?;
    match &settings.selector {
        Some(labels) => selector(calls, &settings.kinds, labels).await,
        None => Ok(()),
    }
}

/// Whether a kind is surely not installed: a list that is not found may also come from an API server that only begins.
pub async fn is_absent(calls: &Calls, kind: Kind) -> bool {
    let Some(definition) = DEFINITIONS.iter().find(|d| d.kind == kind.name()) else { return false };
    matches!(wait_for(calls, &definition.name()).await, Ok(None))
}

/// Refuses CRDs of these kinds that would drop what Larder writes, and tells of those that are not there.
async fn crds(calls: &Calls, kinds: &[Kind]) -> Result<(), SetupError> {
    let mut found = Vec::new();
    for definition in DEFINITIONS.iter().filter(|d| kinds.iter().any(|kind| kind.name() == d.kind)) {
        match wait_for(calls, &definition.name()).await {
            Ok(crd) => found.extend(crd),
            Err(error) if error.is_forbidden() => {
                tracing::warn!(
                    error = chain(&error),
                    "may not look at the CRDs, so whether they keep what is written is not known"
                );
                return Ok(());
            }
            Err(error) => return Err(SetupError::Crds(vec![format!("cannot look at the CRDs: {}", chain(&error))])),
        }
    }
    let state = installed::examine(&found);
    if !state.unfit.is_empty() {
        return Err(SetupError::Crds(state.unfit.iter().map(ToString::to_string).collect()));
    }
    for definition in &DEFINITIONS {
        let name = definition.name();
        let watched = kinds.iter().any(|kind| kind.name() == definition.kind);
        if watched && state.absent.contains(&name) {
            tracing::warn!(
                crd = name,
                "not installed, so there are no objects of this kind yet; `larder crds` prints it"
            );
        }
    }
    if kinds.contains(&Kind::GitRepository) && !state.git_takes_oci && found.iter().any(is_git) {
        tracing::info!(
            "the installed CRD takes no GitRepository with an oci:// URL; `larder crds --patch` says how to widen it"
        );
    }
    Ok(())
}

/// Refuses a label selector that the API server cannot read.
async fn selector(calls: &Calls, kinds: &[Kind], selector: &str) -> Result<(), SetupError> {
    let Some(kind) = kinds.first() else { return Ok(()) };
    let path =
        format!("/apis/{}/v1/{}?limit=1&labelSelector={}", kind.group(), kind.other_names()[0], segment(selector));
    let headers = [(header::ACCEPT, "application/json")];
    match calls.call(&Method::GET, &path, &Identity::default(), &headers, &[]).await {
        Err(source @ CallError::Refused { code: 400, .. }) => {
            Err(SetupError::Selector { selector: selector.to_owned(), source })
        }
        // Anything else is told by the watches.
        _ => Ok(()),
    }
}

fn is_git(crd: &Value) -> bool {
    crd["spec"]["names"]["kind"] == Kind::GitRepository.name()
}

/// The CRD of this name, if there is one; waits while the API server is away.
async fn wait_for(calls: &Calls, name: &str) -> Result<Option<Value>, CallError> {
    let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
    let mut delay = RETRY.0;
    loop {
        let headers = [(header::ACCEPT, "application/json")];
        match calls.call(&Method::GET, &path, &Identity::default(), &headers, &[]).await {
            Ok((_, body)) => return read(&body).map(Some),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) if error.is_transient() => {
                tracing::warn!(error = chain(&error), "the API server is away; it is asked again in {delay:?}");
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY.1);
    }
}
