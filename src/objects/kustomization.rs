//! The spec of a Kustomization (`kustomize.toolkit.fluxcd.io/v1`, and `validation` of v1beta1).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    FluxDuration,
    source::{LocalReference, SourceReference},
};

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
#[schemars(extend("required" = ["name"]))]
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
    #[schemars(with = "KustomizationSource")]
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
    #[schemars(with = "Vec<Patch>")]
    #[serde(default)]
    pub patches: Vec<Value>,
    /// Kustomize components.
    #[serde(default)]
    pub components: Vec<String>,
    /// Ignore components that do not exist.
    #[serde(default)]
    pub ignore_missing_components: bool,
    /// Kustomize buildMetadata.
    #[schemars(with = "Vec<BuildMetadata>")]
    #[serde(default)]
    pub build_metadata: Vec<String>,
    /// Variable substitution.
    #[schemars(with = "Option<PostBuild>")]
    #[serde(default)]
    pub post_build: Option<Value>,
    /// SOPS.
    #[schemars(with = "Option<Decryption>")]
    #[serde(default)]
    pub decryption: Option<Value>,
    /// Kustomizations that must be Ready first.
    #[serde(default)]
    pub depends_on: Vec<SourceOptional>,
    /// Recreate on immutable fields.
    #[schemars(extend("x-default" = false))]
    #[serde(default)]
    pub force: bool,
    /// Wait for everything to be ready.
    #[serde(default)]
    pub wait: bool,
    /// Health checks, verbatim.
    #[schemars(with = "Vec<HealthCheck>")]
    #[serde(default)]
    pub health_checks: Vec<Value>,
    /// Health check expressions, verbatim.
    #[schemars(with = "Vec<HealthCheckExpression>")]
    #[serde(default)]
    pub health_check_exprs: Vec<Value>,
    /// Whose rights to use.
    #[serde(default)]
    pub service_account_name: Option<String>,
    /// A remote cluster.
    #[schemars(with = "Option<KubeConfig>")]
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

impl KustomizationSpec {
    /// `spec.postBuild`, if it is there.
    ///
    /// # Errors
    /// What is malformed.
    pub fn post_build(&self) -> Result<Option<PostBuild>, String> {
        let Some(value) = self.post_build.as_ref().filter(|v| !v.is_null()) else { return Ok(None) };
        PostBuild::deserialize(value).map(Some).map_err(|error| format!("spec.postBuild: {error}"))
    }

    /// `spec.healthChecks`.
    ///
    /// # Errors
    /// What is malformed.
    pub fn health_checks(&self) -> Result<Vec<HealthCheck>, String> {
        let read = |value: &Value| HealthCheck::deserialize(value).map_err(|e| format!("spec.healthChecks: {e}"));
        self.health_checks.iter().map(read).collect()
    }

    /// Whether it applies to another cluster than the one it lies in.
    pub fn is_remote(&self) -> bool {
        self.kube_config.as_ref().is_some_and(|value| !value.is_null())
    }
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

/// The schema of `spec.sourceRef`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct KustomizationSource {
    /// Group and version.
    api_version: Option<String>,
    /// Kind.
    #[schemars(extend("enum" = ["OCIRepository", "GitRepository", "Bucket", "ExternalArtifact"]))]
    kind: String,
    /// Name.
    name: String,
    /// Namespace; the object's own if absent.
    namespace: Option<String>,
}

/// The schema of what picks objects; absent parts pick all.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct Selector {
    /// API group.
    group: Option<String>,
    /// API version.
    version: Option<String>,
    /// Kind.
    kind: Option<String>,
    /// Name.
    name: Option<String>,
    /// Namespace.
    namespace: Option<String>,
    /// Labels, as in a Kubernetes list call.
    label_selector: Option<String>,
    /// Annotations, written as labels are.
    annotation_selector: Option<String>,
}

/// The schema of one entry of `spec.patches`.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct Patch {
    /// A strategic merge patch, or a list of JSON patch operations, as text.
    patch: String,
    /// What to patch.
    target: Option<Selector>,
}

/// `spec.postBuild`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostBuild {
    /// Variables and their values.
    pub substitute: Option<BTreeMap<String, String>>,
    /// ConfigMaps and Secrets of variables; of a name that comes twice the later value counts.
    pub substitute_from: Option<Vec<SubstituteFrom>>,
    /// Whether to substitute where no variable is given.
    #[schemars(extend("enum" = ["WithVariables", "Always"]))]
    pub substitute_strategy: Option<String>,
}

/// One entry of `spec.postBuild.substituteFrom`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct SubstituteFrom {
    /// `Secret` or `ConfigMap`.
    #[schemars(extend("enum" = ["Secret", "ConfigMap"]))]
    pub kind: String,
    /// Name.
    #[schemars(extend("minLength" = 1, "maxLength" = 253))]
    pub name: String,
    /// It need not exist.
    #[schemars(extend("x-default" = false))]
    pub optional: Option<bool>,
}

/// The schema of one entry of `spec.buildMetadata`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
enum BuildMetadata {
    OriginAnnotations,
    TransformerAnnotations,
}

/// The schema of `spec.decryption`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct Decryption {
    /// `sops`.
    #[schemars(extend("enum" = ["sops"]))]
    provider: String,
    /// Keys.
    secret_ref: Option<LocalReference>,
    /// Whose identity a key service sees.
    service_account_name: Option<String>,
}

/// One entry of `spec.healthChecks`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// Group and version.
    pub api_version: Option<String>,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace; the object's own if absent.
    pub namespace: Option<String>,
}

/// The schema of one entry of `spec.healthCheckExprs`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct HealthCheckExpression {
    /// Group and version of the objects.
    api_version: String,
    /// Kind of the objects.
    kind: Option<String>,
    /// CEL expression: the object is as it should be.
    current: String,
    /// CEL expression: it is on its way.
    in_progress: Option<String>,
    /// CEL expression: it has failed.
    failed: Option<String>,
}

/// The schema of `spec.kubeConfig`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.configMapRef) || has(self.secretRef)", "message": ONE_KUBE_CONFIG},
    {"rule": "!has(self.configMapRef) || !has(self.secretRef)", "message": ONE_KUBE_CONFIG},
]))]
#[expect(dead_code, reason = "only its schema is used")]
struct KubeConfig {
    /// A ConfigMap that says how to sign in at the cluster.
    config_map_ref: Option<LocalReference>,
    /// A Secret with a kubeconfig file.
    secret_ref: Option<KeyReference>,
}

const ONE_KUBE_CONFIG: &str =
    "exactly one of spec.kubeConfig.configMapRef or spec.kubeConfig.secretRef must be specified";

/// The schema of `{name, key}`.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct KeyReference {
    /// Name.
    name: String,
    /// Which of its keys.
    key: Option<String>,
}

/// What Flux's Kustomization has besides.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub struct KustomizationUnread {
    /// Fields that are left as they are in the cluster.
    ignore: Option<Vec<IgnoreRule>>,
}

/// The schema of one entry of `spec.ignore`.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct IgnoreRule {
    /// JSON pointers.
    paths: Vec<String>,
    /// Of which objects.
    target: Option<Selector>,
}

/// What the status of Flux's Kustomization has besides.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub struct History {
    /// What was applied when, the newest first.
    history: Option<Vec<Snapshot>>,
}

/// One entry of `status.history`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct Snapshot {
    /// The digest of what was applied.
    digest: String,
    /// When it was first applied.
    #[schemars(extend("format" = "date-time"))]
    first_reconciled: String,
    /// When it was last applied.
    #[schemars(extend("format" = "date-time"))]
    last_reconciled: String,
    /// How long that took.
    last_reconciled_duration: String,
    /// What came of it.
    last_reconciled_status: String,
    /// How often it was applied.
    total_reconciliations: i64,
    /// What else is known of it.
    metadata: Option<BTreeMap<String, String>>,
}
