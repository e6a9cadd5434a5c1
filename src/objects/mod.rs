//! The objects that Larder reconciles: Flux's own kinds, typed, with one status; where they come from is a
//! [`Backend`]'s business. The types are also what the CRDs are made of ([`crd`]).

pub mod api;
pub mod cluster;
pub mod condition;
pub mod crd;
pub mod directory;
pub mod documents;
pub mod duration;
pub mod external_artifact;
pub mod kustomization;
pub mod manifest;
pub mod producer;
pub mod schema;
mod shown;
pub mod source;
pub mod status;
pub mod survey;
pub mod view;

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

pub use cluster::Cluster;
pub use condition::{Condition, ConditionStatus, Conditions};
pub use directory::{Directory, kept_artifacts};
pub use duration::FluxDuration;
pub use kustomization::KustomizationSpec;
pub use producer::Producer;
pub use source::{GitRepositorySpec, HelmChartSpec, HelmRepositorySpec, OciRepositorySpec};
pub use status::{Artifact, Inventory, InventoryEntry, Status};
pub use view::{SourceView, Wanted, as_source};

use crate::{class::Class, secret::Secret};

/// The kinds that Larder reconciles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// `source.toolkit.fluxcd.io/v1` OCIRepository.
    OCIRepository,
    /// `source.toolkit.fluxcd.io/v1` GitRepository, with an `oci://` URL only.
    GitRepository,
    /// `source.toolkit.fluxcd.io/v1` HelmRepository, `type: oci`.
    HelmRepository,
    /// `source.toolkit.fluxcd.io/v1` HelmChart.
    HelmChart,
    /// `kustomize.toolkit.fluxcd.io/v1` Kustomization.
    Kustomization,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::OCIRepository, Self::GitRepository, Self::HelmRepository, Self::HelmChart, Self::Kustomization];

    /// The kind's name, as in `kind:`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OCIRepository => "OCIRepository",
            Self::GitRepository => "GitRepository",
            Self::HelmRepository => "HelmRepository",
            Self::HelmChart => "HelmChart",
            Self::Kustomization => "Kustomization",
        }
    }

    /// The plural, and then the short names, as in the CRD.
    pub const fn other_names(self) -> &'static [&'static str] {
        match self {
            Self::OCIRepository => &["ocirepositories", "ocirepo"],
            Self::GitRepository => &["gitrepositories", "gitrepo"],
            Self::HelmRepository => &["helmrepositories", "helmrepo"],
            Self::HelmChart => &["helmcharts", "hc"],
            Self::Kustomization => &["kustomizations", "ks"],
        }
    }

    /// The API group.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Kustomization => "kustomize.toolkit.fluxcd.io",
            _ => "source.toolkit.fluxcd.io",
        }
    }

    /// Finds a kind by its name, plural or a short name, whatever the case.
    pub fn find(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        Self::ALL.into_iter().find(|k| k.lower() == text || k.other_names().contains(&text.as_str()))
    }

    /// What [`Kind::find`] takes, for people: each name with its short one.
    pub fn names() -> String {
        let with_short = |kind: &Self| match kind.other_names() {
            [_, short, ..] => format!("{kind} ({short})"),
            _ => kind.to_string(),
        };
        Self::ALL.iter().map(with_short).collect::<Vec<_>>().join(", ")
    }

    /// The name in lower case, as in artifact paths.
    pub fn lower(self) -> String {
        self.name().to_ascii_lowercase()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an object is called. Clones are cheap.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace: a DNS label.
    pub namespace: Arc<str>,
    /// Its name: a DNS subdomain.
    pub name: Arc<str>,
}

impl Key {
    /// A key from its parts.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

/// The part of an object's metadata that counts here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Unique id, where there is a cluster.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Rises with every change of the spec.
    pub generation: i64,
    /// When it was made, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    /// Since when it is being deleted, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Finalizers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
}

/// A kind's spec.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// Of an OCIRepository.
    OciRepository(OciRepositorySpec),
    /// Of a GitRepository.
    GitRepository(GitRepositorySpec),
    /// Of a HelmRepository.
    HelmRepository(HelmRepositorySpec),
    /// Of a HelmChart.
    HelmChart(HelmChartSpec),
    /// Of a Kustomization.
    Kustomization(Box<KustomizationSpec>),
}

/// One object, as desired.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// What it is called.
    pub key: Key,
    /// Its metadata; `generation` is always set (from 1).
    pub metadata: Metadata,
    /// The spec, typed.
    pub spec: Spec,
    /// The spec as written, for `/v1/objects`: unknown fields are kept.
    pub raw_spec: Value,
}

/// A Secret's data, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretObject {
    /// `type`.
    pub kind: String,
    /// `data` and `stringData`, decoded, as text (values that are not UTF-8 are left out).
    pub data: BTreeMap<String, Secret>,
}

/// The part of a ServiceAccount that counts here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceAccount {
    /// `imagePullSecrets[].name`.
    pub image_pull_secrets: Vec<String>,
    /// `metadata.annotations`: what it stands for in a cloud.
    pub annotations: BTreeMap<String, String>,
}

/// A ConfigMap's data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigMap {
    /// `data`, verbatim.
    pub data: BTreeMap<String, String>,
}

/// What became of an object, as its backend saw it.
#[derive(Clone, Debug)]
pub enum Change {
    /// New or changed (also only its annotations); the last status that was kept for it.
    Applied(Arc<Object>, Box<Status>),
    /// Gone. In a cluster an object that is being deleted is told as [`Change::Applied`] with its deletion's time first.
    Deleted(Key),
    /// Another replica wrote the status of an object that is otherwise as it was.
    Observed(Key, Box<Status>),
    /// What this process kept of a cluster's objects, before the cluster has told of any: the first change, if at all. What
    /// of it is not so any more is told by the changes up to [`Change::Synced`].
    Recalled(Vec<(Arc<Object>, Status)>),
    /// The cluster does not tell what there is for now. What was recalled counts until it does.
    Away,
    /// A Secret, ServiceAccount or ConfigMap changed: `namespace`, `name`.
    Dependency(Arc<str>, Arc<str>),
    /// Everything that was there at the start has been told.
    Synced,
}

/// An event for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Normal, else Warning.
    pub normal: bool,
    /// CamelCase word.
    pub reason: String,
    /// Sentence.
    pub message: String,
    /// The class of failure that it tells of.
    pub class: Option<Class>,
    /// Kustomization: the origin revision of what was tried, if it is not that of what was applied.
    pub origin: Option<String>,
}

/// An event where only the log is told of it.
fn log_event(key: &Key, event: &Event) {
    let Event { normal, reason, message, class, origin: _ } = event;
    if *normal {
        tracing::info!(%key, reason, "{message}");
    } else {
        tracing::warn!(%key, reason, class = class.map(tracing::field::display), "{message}");
    }
}

/// A future that a dyn trait can return.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a backend could not do it.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The status could not be kept.
    #[error("cannot keep the status of {key}: {source}")]
    Status {
        /// Whose.
        key: Key,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The objects could not be read at all.
    #[error("cannot read the objects in {place}: {source}")]
    Unreadable {
        /// Where.
        place: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The cluster's API refused or is away.
    #[error("{0}")]
    Api(String),
    /// A call to the cluster's API failed, or gave what cannot be used.
    #[error("{message}")]
    Call {
        /// What could not be done, and why.
        message: String,
        /// The class of failure.
        class: Class,
    },
}

impl BackendError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Status { .. } | Self::Unreadable { .. } => Class::Disk,
            Self::Api(_) => Class::Net,
            Self::Call { class, .. } => *class,
        }
    }
}

/// Whether this process is the one that writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// It is.
    Leading,
    /// Another one is; where its artifacts are (`http://host:port`), if it says.
    Following(Option<String>),
    /// Nobody is known to be.
    Leaderless,
}

/// An object with its status.
pub type WithStatus = (Arc<Object>, Status);

/// What objects refer to: Secrets, ServiceAccounts and ConfigMaps of their own namespaces.
pub trait References: Send + Sync {
    /// Whether their changes are told ([`Change::Dependency`]); else they are asked for again in every pass.
    fn are_told(&self) -> bool {
        true
    }
    /// A Secret by name.
    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<SecretObject>>, BackendError>>;
    /// A ServiceAccount by name.
    fn service_account<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ServiceAccount>, BackendError>>;
    /// A fresh token of a ServiceAccount for `audiences` (TokenRequest); `None` where there is no such ServiceAccount. Only a
    /// cluster issues any.
    fn service_account_token<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<Secret>, BackendError>> {
        let _ = (namespace, name, audiences);
        Box::pin(async {
            Err(BackendError::Api("there is no cluster here that issues tokens of ServiceAccounts".into()))
        })
    }
    /// An object of a watched kind that may be another process's to reconcile, and so is in no [`Change`].
    fn object<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<WithStatus>, BackendError>> {
        let _ = key;
        Box::pin(async { Ok(None) })
    }
    /// A ConfigMap by name.
    fn config_map<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<ConfigMap>>, BackendError>> {
        let _ = (namespace, name);
        Box::pin(async { Ok(None) })
    }
}

/// Where objects come from and their statuses go: a directory or a cluster.
pub trait Backend: Send + Sync + 'static {
    /// The changes, from the first object on. Called once.
    fn changes(&self) -> tokio::sync::mpsc::Receiver<Change>;
    /// Whether this process writes, as it changes.
    fn leadership(&self) -> tokio::sync::watch::Receiver<Leadership> {
        tokio::sync::watch::channel(Leadership::Leading).1
    }
    /// Whether other processes may serve what this one does.
    fn has_replicas(&self) -> bool {
        false
    }
    /// What objects refer to.
    fn references(&self) -> &dyn References;
    /// Which labels alone are watched (`--watch-label-selector`).
    fn selector(&self) -> Option<&str> {
        None
    }
    /// Gives back, at an orderly end, what another process would wait for.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
    /// Holds an object back from vanishing before [`Backend::forget`]; to be called before anything is made for it.
    fn claim<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), BackendError>> {
        let _ = key;
        Box::pin(async { Ok(()) })
    }
    /// Says that everything that an object left behind is gone, after a [`Change::Deleted`]: what the backend kept
    /// of it goes too. Of no effect for an object that is there.
    fn forget<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), BackendError>> {
        let _ = key;
        Box::pin(async { Ok(()) })
    }
    /// Whether an object is surely not there any more: asked before what others see of one is taken away that nobody has
    /// told the end of.
    fn is_gone<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<bool, BackendError>> {
        let _ = key;
        Box::pin(async { Ok(false) })
    }
    /// Keeps a status; it is durable when this returns. Of no effect for an object that is gone.
    fn patch_status<'a>(&'a self, key: &'a Key, status: &'a Status) -> BoxFuture<'a, Result<(), BackendError>>;
    /// Tells people.
    fn event<'a>(&'a self, object: &'a Object, event: Event) -> BoxFuture<'a, ()>;
    /// One object with its kept status, as [`Backend::list`] shows it.
    fn show<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Option<Value>>;
    /// All objects with their kept statuses as Kubernetes would show them, sorted by kind, namespace, name, and the errors of
    /// documents that could not be read.
    fn list<'a>(&'a self) -> BoxFuture<'a, Listing>;
}

/// What `GET /v1/objects` shows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Listing {
    /// The objects, each written already: as values a thousand of them would take ten times the memory.
    pub items: Vec<Box<RawValue>>,
    /// Documents that could not be used: where and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<DocumentError>,
}

impl Listing {
    /// The objects as values.
    pub fn values(&self) -> Vec<Value> {
        self.items.iter().filter_map(|item| serde_json::from_str(item.get()).ok()).collect()
    }
}

/// A document that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DocumentError {
    /// File name, document number from 1, and the line where it is known: `apps.yaml, document 2, line 7`.
    pub place: String,
    /// What is wrong and what to do.
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn kinds_are_the_ones_that_metrics_show_from_the_start() {
        assert_eq!(Kind::ALL.map(Kind::name), crate::metrics::KINDS);
    }
}
