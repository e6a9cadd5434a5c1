//! The status of every kind in one type: each kind uses the fields that its CRD has.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, source::LayerSelector};
use crate::digest::Digest;

/// `status.artifact`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    /// The digest of the bytes behind `url`.
    #[schemars(with = "String", extend("pattern" = "^[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+$"))]
    pub digest: Digest,
    /// Below the artifact listener's root.
    pub path: String,
    /// Where to fetch it.
    pub url: String,
    /// `<tag>@<digest of the manifest>`, or the digest alone; a chart's version.
    pub revision: String,
    /// When it became current, RFC 3339.
    #[schemars(extend("format" = "date-time"))]
    pub last_update_time: String,
    /// Bytes.
    #[schemars(with = "i64")]
    #[serde(default)]
    pub size: u64,
    /// The manifest's annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl Artifact {
    /// Whether Larder made it: Flux names the file by the manifest's digest, Larder by the artifact's own.
    pub fn is_larders(&self) -> bool {
        let file = self.path.rsplit('/').next().unwrap_or_default();
        let hex = self.digest.hex();
        file.strip_suffix(".tar.gz").is_some_and(|stem| *stem == *hex)
            || file.strip_suffix(".tgz").is_some_and(|stem| stem.ends_with(&hex[..12]))
    }
}

/// `status.inventory` of a Kustomization.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Inventory {
    /// What was applied.
    pub entries: Vec<InventoryEntry>,
}

/// One applied object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct InventoryEntry {
    /// `<namespace>_<name>_<group>_<kind>`.
    pub id: String,
    /// Version.
    pub v: String,
}

/// A status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// The generation that the last finished pass saw; -1 before the first.
    pub observed_generation: i64,
    /// Conditions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Where the newest artifact is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The artifact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Artifact>,
    /// `spec.ignore` of the artifact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_ignore: Option<String>,
    /// `spec.layerSelector` of the artifact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_layer_selector: Option<LayerSelector>,
    /// The last `requestedAt` that was handled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_reconcile_at: Option<String>,
    /// HelmChart: the source's revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_source_artifact_revision: Option<String>,
    /// HelmChart: the chart's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_chart_name: Option<String>,
    /// HelmChart: the values files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_values_files: Option<Vec<String>>,
    /// Kustomization: the last revision that was applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_applied_revision: Option<String>,
    /// Kustomization: the last revision that was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_attempted_revision: Option<String>,
    /// Kustomization: the origin revision of what was applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_applied_origin_revision: Option<String>,
    /// Kustomization: what was applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Inventory>,
}

impl Status {
    /// Names Larder's artifact by the address that it has now (`advertise`, without a slash at its end); whether it had another.
    pub fn readdress(&mut self, advertise: &str) -> bool {
        let Some(artifact) = self.artifact.as_mut().filter(|artifact| artifact.is_larders()) else { return false };
        let url = format!("{advertise}/{}", artifact.path);
        if artifact.url == url {
            return false;
        }
        artifact.url = url;
        if let (Some(latest), Some((directory, _))) = (&mut self.url, artifact.path.rsplit_once('/')) {
            *latest = format!("{advertise}/{directory}/latest.tar.gz");
        }
        true
    }
}

impl Default for Status {
    fn default() -> Self {
        Self {
            observed_generation: -1,
            conditions: Vec::new(),
            url: None,
            artifact: None,
            observed_ignore: None,
            observed_layer_selector: None,
            last_handled_reconcile_at: None,
            observed_source_artifact_revision: None,
            observed_chart_name: None,
            observed_values_files: None,
            last_applied_revision: None,
            last_attempted_revision: None,
            last_applied_origin_revision: None,
            inventory: None,
        }
    }
}
