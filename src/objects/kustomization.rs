//! The spec of a Kustomization (`kustomize.toolkit.fluxcd.io/v1`, and `validation` of v1beta1).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FluxDuration, source::SourceReference};

/// Labels and annotations for every object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CommonMetadata {
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// One entry of `spec.images`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Image {
    /// The name to replace.
    pub name: String,
    /// The new name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_name: Option<String>,
    /// The new tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_tag: Option<String>,
    /// The new digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// Spec of a Kustomization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["interval", "prune", "sourceRef"]))]
pub struct KustomizationSpec {
    /// The source.
    pub source_ref: SourceReference,
    /// How often.
    pub interval: FluxDuration,
    /// After a failure; `interval` if absent.
    #[serde(default)]
    pub retry_interval: Option<FluxDuration>,
    /// For one pass; `interval` less 30 s if absent, at least 30 s.
    #[serde(default)]
    pub timeout: Option<FluxDuration>,
    /// Where in the artifact.
    #[serde(default)]
    pub path: Option<String>,
    /// Delete what is no longer there.
    #[serde(default)]
    pub prune: bool,
    /// `none`, `client`, `server`.
    #[schemars(extend("enum" = ["none", "client", "server"]))]
    #[serde(default)]
    pub validation: Option<String>,
    /// Namespace for every namespaced object.
    #[schemars(extend("minLength" = 1, "maxLength" = 63))]
    #[serde(default)]
    pub target_namespace: Option<String>,
    /// Labels and annotations for every object.
    #[serde(default)]
    pub common_metadata: Option<CommonMetadata>,
    /// Name prefix for every object.
    #[schemars(extend("minLength" = 1, "maxLength" = 200))]
    #[serde(default)]
    pub name_prefix: Option<String>,
    /// Name suffix for every object.
    #[schemars(extend("minLength" = 1, "maxLength" = 200))]
    #[serde(default)]
    pub name_suffix: Option<String>,
    /// Image replacements.
    #[serde(default)]
    pub images: Vec<Image>,
    /// Kustomize patches, verbatim.
    #[serde(default)]
    pub patches: Vec<Value>,
    /// Kustomize components.
    #[serde(default)]
    pub components: Vec<String>,
    /// Ignore components that do not exist.
    #[serde(default)]
    pub ignore_missing_components: bool,
    /// Kustomize buildMetadata.
    #[serde(default)]
    pub build_metadata: Vec<String>,
    /// Variable substitution.
    #[serde(default)]
    pub post_build: Option<Value>,
    /// SOPS.
    #[serde(default)]
    pub decryption: Option<Value>,
    /// Kustomizations that must be Ready first.
    #[serde(default)]
    pub depends_on: Vec<SourceOptional>,
    /// Recreate on immutable fields.
    #[serde(default)]
    pub force: bool,
    /// Wait for everything to be ready.
    #[serde(default)]
    pub wait: bool,
    /// Health checks, verbatim.
    #[serde(default)]
    pub health_checks: Vec<Value>,
    /// Health check expressions, verbatim.
    #[serde(default)]
    pub health_check_exprs: Vec<Value>,
    /// Whose rights to use.
    #[serde(default)]
    pub service_account_name: Option<String>,
    /// A remote cluster.
    #[serde(default)]
    pub kube_config: Option<Value>,
    /// What becomes of the objects when this goes.
    #[schemars(extend("enum" = ["MirrorPrune", "Delete", "WaitForTermination", "Orphan"]))]
    #[serde(default)]
    pub deletion_policy: Option<String>,
    /// Leave it alone.
    #[serde(default)]
    pub suspend: bool,
}

/// `{name, namespace}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceOptional {
    /// Name.
    pub name: String,
    /// Namespace; the object's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// CEL expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_expr: Option<String>,
}
