//! The way to a cluster.

use std::{net::SocketAddr, time::Duration};

use super::Surroundings;
use crate::{
    apply::cluster::Applier,
    config::Config,
    objects::cluster::{Cluster, Settings, SetupError},
};

/// How long a pass over a source may last before its status says that it is under way.
pub const MOMENT: Duration = Duration::from_secs(1);

/// Why there is no cluster to work on.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Nothing says where it is.
    #[error(
        "--kubernetes: there is no cluster to work on: set KUBECONFIG to a file, or run in a pod with a ServiceAccount's \
         token"
    )]
    Nowhere(#[source] Box<kube::config::InferConfigError>),
    /// Its address or certificates cannot be used.
    #[error("--kubernetes: the cluster's address or credentials cannot be used")]
    Client(#[source] Box<kube::Error>),
    /// It is not as it should be.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// The cluster of KUBECONFIG, or the one that this runs in; and what applies to it. `artifacts` is where this replica serves.
pub async fn connect(
    config: &Config,
    surroundings: &Surroundings,
    hostname: &str,
    artifacts: SocketAddr,
) -> Result<(Cluster, Applier), ClusterError> {
    let mut found = kube::Config::infer().await.map_err(|error| ClusterError::Nowhere(error.into()))?;
    // Calls are made again by those who know what may be made twice, and how long it is worth while.
    found.default_retry = false;
    let namespace = surroundings.pod_namespace.clone().unwrap_or_else(|| found.default_namespace.clone());
    let client = kube::Client::try_from(found).map_err(|error| ClusterError::Client(error.into()))?;
    let settings = Settings {
        kinds: config.watch_kinds.clone(),
        selector: config.watch_label_selector.clone(),
        namespace,
        identity: surroundings.pod_name.clone().unwrap_or_else(|| hostname.to_owned()),
        replica: match &config.replica_address {
            Some(address) => Some(format!("http://{address}")),
            None => (!artifacts.ip().is_unspecified()).then(|| format!("http://{artifacts}")),
        },
        events: config.events_addr.clone(),
    };
    let applier = Applier::new(client.clone());
    Ok((Cluster::open(client, settings).await?, applier))
}
