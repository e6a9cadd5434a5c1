//! The way to a cluster.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use http::{HeaderValue, header::USER_AGENT};

use super::{NodeError, Nothing, Surroundings};
use crate::{
    apply::cluster::Applier,
    blocking,
    config::Config,
    objects::{
        Backend, Directory, DocumentError, Producer,
        api::CallError,
        cluster::{Cluster, Settings, SetupError},
        producer::{self, Kept},
        survey,
    },
    reconciler::report,
    registry,
};

/// How long a pass over a source may last before its status says that it is under way.
pub const MOMENT: Duration = Duration::from_secs(1);

/// How long a connection to the API server may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Why there is no cluster to work on.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Nothing says where it is.
    #[error("there is no cluster to work on: set KUBECONFIG to a file, or run in a pod with a ServiceAccount's token")]
    Nowhere(#[source] Box<kube::config::InferConfigError>),
    /// Its address or certificates cannot be used.
    #[error("the cluster's address or credentials cannot be used")]
    Client(#[source] Box<kube::Error>),
    /// It is not as it should be.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// Where the objects come from, and what is done about them in a cluster.
pub struct Objects {
    /// The objects.
    pub backend: Arc<dyn Backend>,
    /// What applies Kustomizations.
    pub applier: Option<Applier>,
    /// What publishes artifacts; it is to be told when they can be fetched.
    pub producer: Option<Arc<Producer>>,
    /// Host and port of the cluster's API server.
    pub api_server: Option<String>,
}

/// The way to a cluster.
struct Way {
    client: kube::Client,
    /// For what Larder keeps there.
    namespace: String,
    /// Host and port.
    api_server: Option<String>,
}

/// The objects of a directory, of a cluster, or none. `artifacts` is where this replica serves.
pub async fn objects(
    config: &Config,
    surroundings: &Surroundings,
    hostname: &str,
    artifacts: SocketAddr,
) -> Result<Objects, NodeError> {
    if config.kubernetes && !config.external_artifacts {
        let way = client(surroundings).await?;
        let (client, api_server) = (way.client.clone(), way.api_server.clone());
        let backend = Arc::new(cluster(way, config, surroundings, hostname, artifacts).await?);
        let applier = Some(Applier::new(client, backend.leadership()));
        return Ok(Objects { backend, applier, producer: None, api_server });
    }
    let sources: Arc<dyn Backend> = match &config.objects {
        _ if config.kubernetes => {
            let way = client(surroundings).await?;
            let cluster = cluster(way, config, surroundings, hostname, artifacts).await?;
            Arc::new(Kept::open(Arc::new(cluster), &config.data).await?)
        }
        Some(directory) => Arc::new(Directory::open(directory, &config.data).await?),
        None => Arc::new(Nothing),
    };
    if !config.external_artifacts {
        return Ok(Objects { backend: sources, applier: None, producer: None, api_server: None });
    }
    let Way { client, api_server, .. } = client(surroundings).await?;
    let settings = producer::Settings { producer: name(config, hostname).await, owned: config.kubernetes };
    let producer = Arc::new(Producer::new(sources, client, settings));
    let backend = Arc::clone(&producer) as Arc<dyn Backend>;
    Ok(Objects { backend, applier: None, producer: Some(producer), api_server })
}

/// Which producer this is, for as long as its sources come from the same place: a label's value.
async fn name(config: &Config, hostname: &str) -> String {
    let sources = match &config.objects {
        Some(directory) => {
            let directory = directory.clone();
            let whole = blocking::io(move || directory.canonicalize().unwrap_or(directory)).await;
            format!("{hostname}\0{}", whole.display())
        }
        // All replicas of a shard are one.
        None => config.watch_label_selector.clone().unwrap_or_default(),
    };
    let hash = blake3::hash(sources.as_bytes()).to_hex();
    format!("{}-{}", if config.kubernetes { "cluster" } else { "files" }, &hash[..16])
}

/// What would become of the objects of a directory, or of the cluster of KUBECONFIG, under Larder.
///
/// # Errors
/// Where they cannot be read at all.
pub async fn migration_report(objects: Option<&Path>) -> Result<MigrationReport, ReportError> {
    let (survey, api_server) = match objects {
        Some(directory) => {
            let (directory, shown) = (directory.to_owned(), directory.display().to_string());
            let read = blocking::io(move || survey::of_directory(&directory)).await;
            (read.map_err(|source| ReportError::Directory { place: shown, source })?, None)
        }
        None => {
            let way = connect().await?;
            (survey::of_cluster(way.client).await.map_err(ReportError::Away)?, way.api_server)
        }
    };
    let api_servers = Vec::from_iter(api_server);
    let permits = |registry: &_| registry::permits(&[], &[], &api_servers, registry);
    Ok(MigrationReport { lines: report::judge(&survey.items, &permits), errors: survey.errors })
}

/// What [`migration_report`] found.
#[derive(Clone, Debug)]
pub struct MigrationReport {
    /// An object a line.
    pub lines: Vec<report::Line>,
    /// What could not be read.
    pub errors: Vec<DocumentError>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The directory.
    #[error("cannot read the objects in {place}")]
    Directory {
        /// Which.
        place: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The way to the cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The API server.
    #[error("cannot list the cluster's objects")]
    Away(#[source] CallError),
}

/// The way to the cluster of KUBECONFIG, or to the one that this runs in.
async fn client(surroundings: &Surroundings) -> Result<Way, ClusterError> {
    let way = connect().await?;
    Ok(Way { namespace: surroundings.pod_namespace.clone().unwrap_or(way.namespace), ..way })
}

async fn connect() -> Result<Way, ClusterError> {
    let mut found = kube::Config::infer().await.map_err(|error| ClusterError::Nowhere(error.into()))?;
    // Calls are made again by those who know what may be made twice, and how long it is worth while.
    found.default_retry = false;
    // Long before anybody's patience with a start ends, so that the log says what it waits for.
    found.connect_timeout = Some(CONNECT);
    found.headers.push((USER_AGENT, HeaderValue::from_static(concat!("larder/", env!("CARGO_PKG_VERSION")))));
    let namespace = found.default_namespace.clone();
    let default = if found.cluster_url.scheme_str() == Some("http") { 80 } else { 443 };
    let port = found.cluster_url.port_u16().unwrap_or(default);
    let api_server = found.cluster_url.host().map(|host| format!("{host}:{port}"));
    let client = kube::Client::try_from(found).map_err(|error| ClusterError::Client(error.into()))?;
    Ok(Way { client, namespace, api_server })
}

async fn cluster(
    Way { client, namespace, .. }: Way,
    config: &Config,
    surroundings: &Surroundings,
    hostname: &str,
    artifacts: SocketAddr,
) -> Result<Cluster, ClusterError> {
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
        only_read: config.external_artifacts,
        data: config.data.clone(),
    };
    Ok(Cluster::open(client, settings).await?)
}
