//! Kubernetes conditions (KEP-1623).

use serde::{Deserialize, Serialize};

/// A condition's three-valued status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// It is being found out.
    Unknown,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `Ready`, `FetchFailed`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// The generation it was judged for.
    #[serde(default)]
    pub observed_generation: i64,
    /// Since when the status is what it is, RFC 3339 in seconds, UTC.
    pub last_transition_time: String,
    /// CamelCase word.
    pub reason: String,
    /// Sentence.
    #[serde(default)]
    pub message: String,
}
