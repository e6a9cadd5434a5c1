//! ExternalArtifact (`source.toolkit.fluxcd.io/v1`): an artifact that anybody may publish for Flux's consumers (RFC-0012).
//!
//! Not one of the [`Kind`](super::Kind)s: nothing is reconciled from it, it is only written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Artifact, Condition, source::SourceReference};

/// The kind's name.
pub const KIND: &str = "ExternalArtifact";

/// The plural.
pub const PLURAL: &str = "externalartifacts";

/// Spec of an ExternalArtifact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalArtifactSpec {
    /// The object that the artifact was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ref: Option<SourceReference>,
}

/// Status of an ExternalArtifact: it has no `observedGeneration`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalArtifactStatus {
    /// The artifact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Artifact>,
    /// Conditions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
