//! The specs of the source kinds (`source.toolkit.fluxcd.io/v1`). Field by field as Flux's CRDs have them.
//!
//! The JSON schemas that these types carry are the CRDs' own patterns, enumerations and defaults (`x-default`, see
//! [`structural`](super::crd::structural)): documents from a directory are held against them (`schema.rs`), so that a
//! file and an API server refuse the same things; and the CRDs are made of them (`crd`). Fields that Flux has and
//! Larder does not read are in the `…Unread` types, which are schemas and nothing else.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Artifact, FluxDuration};

/// The pattern of every `timeout` of a source: hours are not allowed.
const TIMEOUT: &str = r"^([0-9]+(\.[0-9]+)?(ms|s|m))+$";

/// The pattern of a GitRepository's URL: Flux's, and `oci`.
pub const GIT_URL: &str = "^(http|https|ssh|oci)://.*$";

/// The rule of Flux's GitRepository about `serviceAccountName`, in CEL.
const GIT_IDENTITY: &str =
    "!has(self.serviceAccountName) || (has(self.provider) && (self.provider == 'azure' || self.provider == 'aws'))";

/// `{name}`: something in the object's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct LocalReference {
    /// Its name.
    pub name: String,
}

/// `spec.ref` of an OCIRepository: digest over semver over tag; none means `latest`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OciReference {
    /// A digest.
    pub digest: Option<String>,
    /// A range of versions.
    pub semver: Option<String>,
    /// An RE2 expression that a tag must match, for `semver`.
    pub semver_filter: Option<String>,
    /// A tag.
    pub tag: Option<String>,
}

/// `spec.layerSelector`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LayerSelector {
    /// The first layer of exactly this media type; empty or absent: the first layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// `extract` (also when absent) or `copy`.
    #[schemars(extend("enum" = ["extract", "copy"]))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
}

/// `spec.verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["provider"]))]
pub struct Verification {
    /// `cosign` or `notation`.
    #[schemars(extend("enum" = ["cosign", "notation"], "x-default" = "cosign"))]
    pub provider: Option<String>,
    /// Keys.
    pub secret_ref: Option<LocalReference>,
    /// Identities for keyless verification.
    #[serde(rename = "matchOIDCIdentity")]
    pub match_oidc_identity: Vec<OidcIdentity>,
    /// A Sigstore trusted root.
    pub trusted_root_secret_ref: Option<LocalReference>,
}

/// One identity of keyless verification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["issuer", "subject"]))]
pub struct OidcIdentity {
    /// RE2 expression.
    pub issuer: String,
    /// RE2 expression.
    pub subject: String,
}

/// Spec of an OCIRepository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OciRepositorySpec {
    /// `oci://…`, without tag or digest.
    #[schemars(extend("pattern" = "^oci://.*$"))]
    pub url: String,
    /// Which manifest.
    #[serde(rename = "ref", default)]
    pub reference: Option<OciReference>,
    /// Which layer.
    #[serde(default)]
    pub layer_selector: Option<LayerSelector>,
    /// `generic`, `aws`, `azure`, `gcp`.
    #[schemars(extend("enum" = ["generic", "aws", "azure", "gcp"], "x-default" = "generic"))]
    #[serde(default)]
    pub provider: Option<String>,
    /// A dockerconfigjson Secret.
    #[serde(default)]
    pub secret_ref: Option<LocalReference>,
    /// Whose imagePullSecrets count.
    #[serde(default)]
    pub service_account_name: Option<String>,
    /// `ca.crt`, `tls.crt`, `tls.key`.
    #[serde(default)]
    pub cert_secret_ref: Option<LocalReference>,
    /// `address`, `username`, `password`.
    #[serde(default)]
    pub proxy_secret_ref: Option<LocalReference>,
    /// Signatures.
    #[serde(default)]
    pub verify: Option<Verification>,
    /// How often.
    pub interval: FluxDuration,
    /// For one pass; 60 s.
    #[schemars(extend("pattern" = TIMEOUT, "x-default" = "60s"))]
    #[serde(default)]
    pub timeout: Option<FluxDuration>,
    /// gitignore text; absent is not the same as empty.
    #[serde(default)]
    pub ignore: Option<String>,
    /// Plain http, or TLS without verification.
    #[serde(default)]
    pub insecure: bool,
    /// Leave it alone.
    #[serde(default)]
    pub suspend: bool,
}

/// `spec.ref` of a GitRepository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GitReference {
    /// With `oci://`: a tag.
    pub branch: Option<String>,
    /// A tag.
    pub tag: Option<String>,
    /// A range of versions.
    pub semver: Option<String>,
    /// `refs/tags/x` or `refs/heads/x`: a tag.
    pub name: Option<String>,
    /// With `oci://`: a digest.
    pub commit: Option<String>,
    /// A digest outright, in documents from a directory: Flux's CRD has no such field.
    #[schemars(extend("x-larder-file-only" = true))]
    pub digest: Option<String>,
}

/// Spec of a GitRepository. Only those with an `oci://` URL are Larder's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": GIT_IDENTITY,
    "message": "serviceAccountName can only be set when provider is 'azure' or 'aws'"
}]))]
pub struct GitRepositorySpec {
    /// `oci://…`.
    #[schemars(extend("pattern" = GIT_URL))]
    pub url: String,
    /// Which manifest.
    #[serde(rename = "ref", default)]
    pub reference: Option<GitReference>,
    /// A dockerconfigjson Secret, or one with `username` and `password` (and `ca.crt`).
    #[serde(default)]
    pub secret_ref: Option<LocalReference>,
    /// A proxy Secret.
    #[serde(default)]
    pub proxy_secret_ref: Option<LocalReference>,
    /// Whose imagePullSecrets count.
    #[serde(default)]
    pub service_account_name: Option<String>,
    /// `generic`, `aws`, `azure`, `github`.
    #[schemars(extend("enum" = ["generic", "aws", "azure", "github"]))]
    #[serde(default)]
    pub provider: Option<String>,
    /// How often.
    pub interval: FluxDuration,
    /// For one pass; 60 s.
    #[schemars(extend("pattern" = TIMEOUT, "x-default" = "60s"))]
    #[serde(default)]
    pub timeout: Option<FluxDuration>,
    /// gitignore text.
    #[serde(default)]
    pub ignore: Option<String>,
    /// Leave it alone.
    #[serde(default)]
    pub suspend: bool,
}

/// What Flux's GitRepository has besides: of no effect with `oci://`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
pub struct GitRepositoryUnread {
    /// Clone submodules too.
    recurse_submodules: Option<bool>,
    /// The only directories to check out.
    sparse_checkout: Option<Vec<String>>,
    /// Other GitRepositories whose artifacts are put into this one's.
    include: Option<Vec<GitInclude>>,
    /// Signatures of commits and tags.
    verify: Option<GitVerification>,
}

/// What the status of Flux's GitRepository has besides.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
pub struct GitRepositoryStatusUnread {
    /// The artifacts that were put into this one's.
    included_artifacts: Option<Vec<Artifact>>,
    /// `spec.include` of the artifact.
    observed_include: Option<Vec<GitInclude>>,
    /// `spec.recurseSubmodules` of the artifact.
    observed_recurse_submodules: Option<bool>,
    /// `spec.sparseCheckout` of the artifact.
    observed_sparse_checkout: Option<Vec<String>>,
    /// `spec.verify.mode` of the artifact.
    source_verification_mode: Option<String>,
}

/// One entry of a GitRepository's `spec.include`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct GitInclude {
    /// The GitRepository.
    repository: LocalReference,
    /// The path in its artifact.
    from_path: Option<String>,
    /// The path in this one's.
    to_path: Option<String>,
}

/// A GitRepository's `spec.verify`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct GitVerification {
    /// Which of the commit and the tag must be signed.
    #[schemars(extend("enum" = ["head", "HEAD", "Tag", "TagAndHEAD"], "x-default" = "HEAD"))]
    mode: Option<String>,
    /// The public keys.
    secret_ref: LocalReference,
}

/// Spec of a HelmRepository. Only `type: oci` is Larder's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HelmRepositorySpec {
    /// `oci://…`.
    #[schemars(extend("pattern" = "^(http|https|oci)://.*$"))]
    pub url: String,
    /// `oci` or `default`.
    #[schemars(extend("enum" = ["default", "oci"]))]
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
    /// dockerconfigjson, or `username` and `password`; legacy TLS keys.
    #[serde(default)]
    pub secret_ref: Option<LocalReference>,
    /// `ca.crt`, `tls.crt`, `tls.key`.
    #[serde(default)]
    pub cert_secret_ref: Option<LocalReference>,
    /// Cloud provider.
    #[schemars(extend("enum" = ["generic", "aws", "azure", "gcp"], "x-default" = "generic"))]
    #[serde(default)]
    pub provider: Option<String>,
    /// Of no effect for OCI.
    #[serde(default)]
    pub interval: Option<FluxDuration>,
    /// For one pass; 60 s.
    #[schemars(extend("pattern" = TIMEOUT))]
    #[serde(default)]
    pub timeout: Option<FluxDuration>,
    /// Plain http, or TLS without verification.
    #[serde(default)]
    pub insecure: bool,
    /// Of no effect for OCI.
    #[serde(default)]
    pub pass_credentials: bool,
    /// Leave it alone.
    #[serde(default)]
    pub suspend: bool,
}

/// What Flux's HelmRepository has besides: of no effect for OCI.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
pub struct HelmRepositoryUnread {
    /// Who may use it from other namespaces.
    access_from: Option<AccessFrom>,
}

/// A HelmRepository's `spec.accessFrom`.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct AccessFrom {
    /// Namespaces by their labels; any of these will do.
    namespace_selectors: Vec<NamespaceSelector>,
}

/// Namespaces by their labels.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct NamespaceSelector {
    /// All of these; none matches every namespace.
    match_labels: Option<BTreeMap<String, String>>,
}

/// `{kind, name, namespace}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceReference {
    /// Group and version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace; the object's own if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// The schema of a HelmChart's `spec.sourceRef`: always of its own namespace.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct ChartSource {
    /// Group and version.
    api_version: Option<String>,
    /// Kind.
    #[schemars(extend("enum" = ["HelmRepository", "GitRepository", "Bucket"]))]
    kind: String,
    /// Name.
    name: String,
}

/// The schema of a HelmChart's `spec.verify`, which has no trusted root.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct ChartVerification {
    /// `cosign` or `notation`.
    #[schemars(extend("enum" = ["cosign", "notation"], "x-default" = "cosign"))]
    provider: String,
    /// Keys.
    secret_ref: Option<LocalReference>,
    /// Identities for keyless verification.
    #[schemars(rename = "matchOIDCIdentity")]
    match_oidc_identity: Option<Vec<OidcIdentity>>,
}

/// Spec of a HelmChart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.verify) || self.sourceRef.kind == 'HelmRepository'",
    "message": "spec.verify is only supported when spec.sourceRef.kind is 'HelmRepository'"
}]))]
pub struct HelmChartSpec {
    /// The chart's name in the repository.
    pub chart: String,
    /// A version or a range; `*`.
    #[schemars(extend("x-default" = "*"))]
    #[serde(default)]
    pub version: Option<String>,
    /// The HelmRepository.
    #[schemars(with = "ChartSource")]
    pub source_ref: SourceReference,
    /// How often.
    pub interval: FluxDuration,
    /// `ChartVersion` or `Revision`.
    #[schemars(extend("enum" = ["ChartVersion", "Revision"], "x-default" = "ChartVersion"))]
    #[serde(default)]
    pub reconcile_strategy: Option<String>,
    /// Values files of the chart, merged into its `values.yaml`.
    #[serde(default)]
    pub values_files: Vec<String>,
    /// Leave out values files that do not exist.
    #[serde(default)]
    pub ignore_missing_values_files: bool,
    /// Signatures.
    #[schemars(with = "Option<ChartVerification>")]
    #[serde(default)]
    pub verify: Option<Verification>,
    /// Leave it alone.
    #[serde(default)]
    pub suspend: bool,
}
