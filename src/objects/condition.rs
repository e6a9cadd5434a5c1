//! Kubernetes conditions (KEP-1623), and the summary that Flux makes of them.
//!
//! Flux keeps one condition for each thing that can be wrong or done, and derives `Ready` from them. Two polarities:
//! of `ArtifactInStorage` and `SourceVerified` True is good; of all others True is bad ("negative").

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest message that an API server keeps.
pub const MAX_MESSAGE: usize = 32 * 1024;

/// The types of conditions that Flux's kinds use.
pub mod kinds {
    /// The summary.
    pub const READY: &str = "Ready";
    /// A pass is under way or will come.
    pub const RECONCILING: &str = "Reconciling";
    /// Only a new spec, or a requested pass, helps.
    pub const STALLED: &str = "Stalled";
    /// The source could not be fetched.
    pub const FETCH_FAILED: &str = "FetchFailed";
    /// The artifact could not be stored.
    pub const STORAGE_OPERATION_FAILED: &str = "StorageOperationFailed";
    /// A chart could not be built.
    pub const BUILD_FAILED: &str = "BuildFailed";
    /// There is a newer revision than the artifact's.
    pub const ARTIFACT_OUTDATED: &str = "ArtifactOutdated";
    /// The artifact is the resolved revision's.
    pub const ARTIFACT_IN_STORAGE: &str = "ArtifactInStorage";
    /// The signature was checked.
    pub const SOURCE_VERIFIED: &str = "SourceVerified";
    /// A Kustomization's health checks.
    pub const HEALTHY: &str = "Healthy";
}

use kinds::{
    ARTIFACT_IN_STORAGE, ARTIFACT_OUTDATED, BUILD_FAILED, FETCH_FAILED, READY, RECONCILING, SOURCE_VERIFIED, STALLED,
    STORAGE_OPERATION_FAILED,
};

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

/// The pattern of a condition's type: a name, with a DNS subdomain before a `/` in front if need be.
const QUALIFIED_NAME: &str =
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$";

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["lastTransitionTime", "message", "reason", "status", "type"]))]
pub struct Condition {
    /// `Ready`, `FetchFailed`, …
    #[schemars(extend("maxLength" = 316, "pattern" = QUALIFIED_NAME))]
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    #[schemars(with = "String", extend("enum" = ["True", "False", "Unknown"]))]
    pub status: ConditionStatus,
    /// The generation it was judged for.
    #[schemars(extend("minimum" = 0))]
    #[serde(default)]
    pub observed_generation: i64,
    /// Since when the status is what it is, RFC 3339 in seconds, UTC.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// CamelCase word.
    #[schemars(extend("minLength" = 1, "maxLength" = 1024, "pattern" = "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"))]
    pub reason: String,
    /// Sentence.
    #[schemars(extend("maxLength" = MAX_MESSAGE))]
    #[serde(default)]
    pub message: String,
}

/// A time as Kubernetes writes it: RFC 3339, whole seconds, UTC.
pub fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A text fit for a condition: control characters (line ends aside) become spaces, at most [`MAX_MESSAGE`] bytes.
pub fn bounded_message(text: &str) -> String {
    let mut message = String::with_capacity(text.len().min(MAX_MESSAGE));
    for c in text.chars() {
        let c = if c.is_control() && c != '\n' { ' ' } else { c };
        if message.len() + c.len_utf8() > MAX_MESSAGE {
            break;
        }
        message.push(c);
    }
    message
}

/// What can be done with an object's list of conditions: `status.conditions.set(…)`.
pub trait Conditions {
    /// The condition of this type.
    fn find(&self, kind: &str) -> Option<&Condition>;

    /// Sets a condition. `lastTransitionTime` becomes `now` only if the status is another one than before; the
    /// message is bounded by [`bounded_message`]. The order of the list is the order of first appearance, `Ready` first.
    fn set(
        &mut self,
        kind: &str,
        status: ConditionStatus,
        reason: &str,
        message: &str,
        generation: i64,
        now: Timestamp,
    );

    /// Takes a condition away; whether it was there.
    fn delete(&mut self, kind: &str) -> bool;

    /// Whether the condition is there and True.
    fn is_true(&self, kind: &str) -> bool {
        self.find(kind).is_some_and(|c| c.status == ConditionStatus::True)
    }

    /// Whether the condition is there and False.
    fn is_false(&self, kind: &str) -> bool {
        self.find(kind).is_some_and(|c| c.status == ConditionStatus::False)
    }

    /// Sets `Ready` from the others, as Flux's sources do:
    ///
    /// 1. the first that says failure, in the order StorageOperationFailed, FetchFailed, BuildFailed,
    ///    ArtifactInStorage=False, SourceVerified=False, Stalled, makes it False with its reason and message;
    /// 2. else Reconciling=True makes it Unknown with Reconciling's;
    /// 3. else ArtifactOutdated=True makes it False with that one's;
    /// 4. else ArtifactInStorage=True makes it True with that one's (reason Succeeded);
    /// 5. else it is Unknown, Progressing.
    fn summarize_ready(&mut self, generation: i64, now: Timestamp);
}

impl Conditions for Vec<Condition> {
    fn find(&self, kind: &str) -> Option<&Condition> {
        self.iter().find(|c| c.kind == kind)
    }

    fn set(
        &mut self,
        kind: &str,
        status: ConditionStatus,
        reason: &str,
        message: &str,
        generation: i64,
        now: Timestamp,
    ) {
        let (reason, message) = (reason.to_owned(), bounded_message(message));
        if let Some(condition) = self.iter_mut().find(|c| c.kind == kind) {
            if condition.status != status {
                condition.status = status;
                condition.last_transition_time = rfc3339(now);
            }
            condition.reason = reason;
            condition.message = message;
            condition.observed_generation = generation;
            return;
        }
        let condition = Condition {
            kind: kind.to_owned(),
            status,
            observed_generation: generation,
            last_transition_time: rfc3339(now),
            reason,
            message,
        };
        if kind == READY { self.insert(0, condition) } else { self.push(condition) }
    }

    fn delete(&mut self, kind: &str) -> bool {
        let before = self.len();
        self.retain(|c| c.kind != kind);
        self.len() != before
    }

    fn summarize_ready(&mut self, generation: i64, now: Timestamp) {
        use ConditionStatus::{False, True, Unknown};
        // (type, the status that decides, what Ready becomes)
        const RULES: [(&str, ConditionStatus, ConditionStatus); 9] = [
            (STORAGE_OPERATION_FAILED, True, False),
            (FETCH_FAILED, True, False),
            (BUILD_FAILED, True, False),
            (ARTIFACT_IN_STORAGE, False, False),
            (SOURCE_VERIFIED, False, False),
            (STALLED, True, False),
            (RECONCILING, True, Unknown),
            (ARTIFACT_OUTDATED, True, False),
            (ARTIFACT_IN_STORAGE, True, True),
        ];
        let decided = RULES.iter().find_map(|&(kind, status, ready)| {
            let c = self.find(kind).filter(|c| c.status == status)?;
            Some((ready, c.reason.clone(), c.message.clone()))
        });
        let (ready, reason, message) =
            decided.unwrap_or_else(|| (Unknown, "Progressing".into(), "reconciliation in progress".into()));
        self.set(READY, ready, &reason, &message, generation, now);
    }
}

#[cfg(test)]
mod tests {
    use super::{ConditionStatus::*, *};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn keeps_the_transition_time_until_the_status_changes() {
        let mut list = Vec::new();
        list.set(FETCH_FAILED, True, "OCIArtifactPullFailed", "refused", 1, at(0));
        list.set(FETCH_FAILED, True, "AuthenticationFailed", "no secret", 2, at(60));
        let c = list.find(FETCH_FAILED).unwrap();
        assert_eq!(
            (c.last_transition_time.as_str(), c.reason.as_str(), c.message.as_str(), c.observed_generation),
            ("1970-01-01T00:00:00Z", "AuthenticationFailed", "no secret", 2)
        );
        list.set(FETCH_FAILED, Unknown, "X", "", 2, at(61));
        assert_eq!(list.find(FETCH_FAILED).unwrap().last_transition_time, "1970-01-01T00:01:01Z");
        assert!(!list.is_true(FETCH_FAILED));
        assert!(list.delete(FETCH_FAILED));
        assert!(!list.delete(FETCH_FAILED));
        assert_eq!(list, []);
    }

    #[test]
    fn ready_comes_first() {
        let mut list = Vec::new();
        list.set(RECONCILING, True, "Progressing", "building artifact", 1, at(0));
        list.set(READY, Unknown, "Progressing", "", 1, at(0));
        assert_eq!(list.iter().map(|c| c.kind.as_str()).collect::<Vec<_>>(), [READY, RECONCILING]);
    }

    #[test]
    fn bounds_messages_and_removes_control_characters() {
        let mut list = Vec::new();
        list.set(READY, False, "X", "a\x1b[31m\tb\nc\0", 1, at(0));
        assert_eq!(list.find(READY).unwrap().message, "a [31m b\nc ");
        // Three-byte characters do not divide the bound: it is kept, not crossed.
        assert_eq!(bounded_message(&"€".repeat(MAX_MESSAGE)).len(), MAX_MESSAGE - MAX_MESSAGE % 3);
    }

    /// Conditions as (type, status, reason) and the Ready that they make; the message of each is its type.
    type Row = (&'static [(&'static str, ConditionStatus, &'static str)], ConditionStatus, &'static str, &'static str);

    #[test]
    fn summarizes_as_flux_does() {
        let table: &[Row] = &[
            (&[], Unknown, "Progressing", "reconciliation in progress"),
            (&[(ARTIFACT_IN_STORAGE, True, "Succeeded")], True, "Succeeded", ARTIFACT_IN_STORAGE),
            (
                &[(ARTIFACT_IN_STORAGE, True, "Succeeded"), (SOURCE_VERIFIED, True, "Succeeded")],
                True,
                "Succeeded",
                ARTIFACT_IN_STORAGE,
            ),
            // A pass that handles drift.
            (
                &[
                    (ARTIFACT_IN_STORAGE, True, "Succeeded"),
                    (ARTIFACT_OUTDATED, True, "NewRevision"),
                    (RECONCILING, True, "Progressing"),
                ],
                Unknown,
                "Progressing",
                RECONCILING,
            ),
            (&[(RECONCILING, True, "Progressing")], Unknown, "Progressing", RECONCILING),
            (
                &[(ARTIFACT_OUTDATED, True, "NewRevision"), (ARTIFACT_IN_STORAGE, True, "Succeeded")],
                False,
                "NewRevision",
                ARTIFACT_OUTDATED,
            ),
            // A failure wins over the artifact that is still good, and over the retry that is announced.
            (
                &[
                    (RECONCILING, True, "ProgressingWithRetry"),
                    (ARTIFACT_IN_STORAGE, True, "Succeeded"),
                    (FETCH_FAILED, True, "OCIArtifactPullFailed"),
                ],
                False,
                "OCIArtifactPullFailed",
                FETCH_FAILED,
            ),
            (
                &[(FETCH_FAILED, True, "OCIArtifactPullFailed"), (STORAGE_OPERATION_FAILED, True, "InvalidPath")],
                False,
                "InvalidPath",
                STORAGE_OPERATION_FAILED,
            ),
            (&[(STALLED, True, "URLInvalid"), (FETCH_FAILED, True, "URLInvalid")], False, "URLInvalid", FETCH_FAILED),
            (&[(STALLED, True, "FeatureGateDisabled")], False, "FeatureGateDisabled", STALLED),
            (
                &[(ARTIFACT_IN_STORAGE, True, "Succeeded"), (SOURCE_VERIFIED, False, "VerificationError")],
                False,
                "VerificationError",
                SOURCE_VERIFIED,
            ),
            (&[(BUILD_FAILED, True, "ChartPullError")], False, "ChartPullError", BUILD_FAILED),
            (
                &[(FETCH_FAILED, False, "X"), (ARTIFACT_IN_STORAGE, True, "Succeeded")],
                True,
                "Succeeded",
                ARTIFACT_IN_STORAGE,
            ),
        ];
        for (conditions, status, reason, message) in table {
            let mut list = Vec::new();
            for (kind, status, reason) in *conditions {
                list.set(kind, *status, reason, kind, 3, at(0));
            }
            list.summarize_ready(4, at(9));
            let ready = list.find(READY).unwrap();
            assert_eq!(
                (ready.status, ready.reason.as_str(), ready.message.as_str(), ready.observed_generation),
                (*status, *reason, *message, 4),
                "{conditions:?}"
            );
        }
    }
}
