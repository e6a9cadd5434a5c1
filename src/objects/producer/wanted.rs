//! What an ExternalArtifact is to look like, and what it is called. Pure.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use crate::objects::{
    Artifact, Conditions as _, Key, Kind, Status,
    condition::{ConditionStatus, kinds},
    external_artifact::{ExternalArtifactSpec, ExternalArtifactStatus, KIND},
    source::SourceReference,
};

/// Who manages it, as Kubernetes' recommended labels say it.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "larder");
/// Which Larder: one takes away only what it made itself.
pub const PRODUCER: &str = "larder.dev/producer";

/// The kinds whose artifacts are published, in the order in which they get a name that several want.
pub const KINDS: [Kind; 3] = [Kind::OCIRepository, Kind::GitRepository, Kind::HelmChart];

/// A namespace and a name.
pub type Name = (Arc<str>, Arc<str>);

/// A source as it was last told.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its uid in the cluster.
    pub uid: String,
    /// It is being deleted.
    pub going: bool,
    /// Its kept status.
    pub status: Status,
}

/// An ExternalArtifact as the API server last showed it.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.ownerReferences`.
    pub owners: Vec<Value>,
    /// The spec.
    pub spec: ExternalArtifactSpec,
    /// The status.
    pub status: ExternalArtifactStatus,
}

impl Live {
    /// Reads what the API server shows; parts that Larder could not have written count as absent.
    pub fn read(shown: DynamicObject) -> (Name, Self) {
        let DynamicObject { metadata: meta, mut data, .. } = shown;
        let mut part = |name: &str| data.get_mut(name).map(Value::take).unwrap_or_default();
        let (spec, status) = (part("spec"), part("status"));
        let owners = serde_json::to_value(meta.owner_references.unwrap_or_default()).unwrap_or_default();
        let name = (meta.namespace.unwrap_or_default().into(), meta.name.unwrap_or_default().into());
        let live = Self {
            version: meta.resource_version.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
            generation: meta.generation.unwrap_or(1),
            labels: meta.labels.unwrap_or_default(),
            owners: owners.as_array().cloned().unwrap_or_default(),
            spec: serde_json::from_value(spec).unwrap_or_default(),
            status: serde_json::from_value(status).unwrap_or_default(),
        };
        (name, live)
    }

    /// Whether a Larder made it.
    pub fn is_larders(&self) -> bool {
        self.labels.get(MANAGED_BY.0).is_some_and(|v| v == MANAGED_BY.1)
    }

    /// Whether this Larder made it.
    pub fn is_of(&self, producer: &str) -> bool {
        self.is_larders() && self.labels.get(PRODUCER).is_some_and(|v| v == producer)
    }

    /// The source that it names.
    pub fn source(&self) -> Option<Key> {
        let of = self.spec.source_ref.as_ref()?;
        Some(Key::new(Kind::find(&of.kind)?, of.namespace.as_deref()?, &of.name))
    }

    /// Whether another look at it is older than this one. Versions that are no numbers tell nothing.
    pub fn is_newer_than(&self, version: &str) -> bool {
        match (self.version.parse::<u64>(), version.parse::<u64>()) {
            (Ok(mine), Ok(other)) => mine > other,
            _ => false,
        }
    }
}

/// What is to be there.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Labels, owner and spec: what is applied.
    pub config: Value,
    labels: [(&'static str, String); 2],
    owner: Option<Value>,
    spec: ExternalArtifactSpec,
    artifact: Artifact,
    ready: Option<(ConditionStatus, &'static str, String)>,
}

impl Wanted {
    /// What a source wants published; nothing while it has no artifact. `owned`: the source is in the cluster too.
    pub fn of(key: &Key, source: &Source, name: &str, producer: &str, owned: bool) -> Option<Self> {
        let artifact = source.status.artifact.clone().filter(Artifact::is_larders)?;
        let version = format!("{}/v1", key.kind.group());
        let labels = [(MANAGED_BY.0, MANAGED_BY.1.to_owned()), (PRODUCER, producer.to_owned())];
        let spec = ExternalArtifactSpec {
            source_ref: Some(SourceReference {
                api_version: Some(version.clone()),
                kind: key.kind.name().into(),
                name: key.name.to_string(),
                namespace: Some(key.namespace.to_string()),
            }),
        };
        let owner = (owned && !source.uid.is_empty())
            .then(|| json!({"apiVersion": version, "kind": key.kind.name(), "name": *key.name, "uid": source.uid}));
        let mut metadata = json!({
            "name": name, "namespace": *key.namespace,
            "labels": BTreeMap::from(labels.clone()),
        });
        if let Some(owner) = &owner {
            metadata["ownerReferences"] = json!([owner]);
        }
        let config =
            json!({ "apiVersion": "source.toolkit.fluxcd.io/v1", "kind": KIND, "metadata": metadata, "spec": spec });
        let ready = readiness(&source.status);
        Some(Self { config, labels, owner, spec, artifact, ready })
    }

    /// Whether everything but the status is as it should be.
    pub fn is_applied(&self, live: &Live) -> bool {
        let labelled = self.labels.iter().all(|(name, value)| live.labels.get(*name) == Some(value));
        let is_owner =
            |owner: &Value| live.owners.iter().any(|o| o["uid"] == owner["uid"] && o["name"] == owner["name"]);
        labelled && live.spec == self.spec && self.owner.as_ref().is_none_or(is_owner)
    }

    /// The status over the one that is there: times stay where nothing turned.
    pub fn status(&self, live: &Live) -> ExternalArtifactStatus {
        let mut conditions = live.status.conditions.clone();
        conditions.retain(|condition| condition.kind == kinds::READY);
        if let Some((status, reason, message)) = &self.ready {
            conditions.set(kinds::READY, *status, reason, message, live.generation, Timestamp::now());
        }
        ExternalArtifactStatus { artifact: Some(self.artifact.clone()), conditions }
    }
}

/// Ready with the reasons that RFC-0012 has for producers; nothing new while it is not known.
fn readiness(status: &Status) -> Option<(ConditionStatus, &'static str, String)> {
    let ready = status.conditions.find(kinds::READY)?;
    let reason = match ready.status {
        ConditionStatus::Unknown => return None,
        ConditionStatus::True => "Succeeded",
        ConditionStatus::False if status.conditions.is_true(kinds::STORAGE_OPERATION_FAILED) => {
            "StorageOperationFailed"
        }
        ConditionStatus::False
            if status.conditions.is_false(kinds::SOURCE_VERIFIED) || ready.reason.contains("Verification") =>
        {
            "VerificationFailed"
        }
        ConditionStatus::False => "FetchFailed",
    };
    Some((ready.status, reason, ready.message.clone()))
}

/// What a source's ExternalArtifact is called: as the source, unless another source is published under that name or comes
/// before it in [`KINDS`]; then `<name>-<kind in lower case>`. One that is there keeps its name: consumers find under a name
/// what they found before.
pub fn name_of(key: &Key, sources: &BTreeMap<Key, Source>, live: &BTreeMap<Name, Live>) -> Arc<str> {
    let plain = Arc::clone(&key.name);
    let other: Arc<str> = format!("{}-{}", key.name, key.kind.lower()).into();
    let at = |name: &Arc<str>| live.get(&(Arc::clone(&key.namespace), Arc::clone(name))).filter(|l| l.is_larders());
    for name in [&plain, &other] {
        if at(name).and_then(Live::source).as_ref() == Some(key) {
            return Arc::clone(name);
        }
    }
    let taken = at(&plain).and_then(Live::source).is_some_and(|source| sources.contains_key(&source));
    let before = KINDS.into_iter().take_while(|kind| *kind != key.kind);
    let yields = before.into_iter().any(|kind| {
        let twin = Key { kind, ..key.clone() };
        sources.get(&twin).is_some_and(|source| !source.going)
    });
    if taken || yields { other } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Condition;

    fn source(status: Status) -> Source {
        Source { uid: "u".into(), going: false, status }
    }

    fn live(key: &Key) -> Live {
        let of = SourceReference {
            api_version: None,
            kind: key.kind.name().into(),
            name: key.name.to_string(),
            namespace: Some(key.namespace.to_string()),
        };
        Live {
            labels: [(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned())].into(),
            spec: ExternalArtifactSpec { source_ref: Some(of) },
            ..Live::default()
        }
    }

    #[test]
    fn a_name_is_the_sources_unless_two_kinds_share_it_and_never_changes() {
        use Kind::{GitRepository, HelmChart, OCIRepository};
        let key = |kind| Key::new(kind, "n", "app");
        // Who is asked, which sources there are, who has the plain name and who the other, and what the answer is.
        type Row = (Kind, &'static [Kind], Option<Kind>, Option<Kind>, &'static str);
        let table: &[Row] = &[
            (OCIRepository, &[OCIRepository], None, None, "app"),
            (GitRepository, &[GitRepository], None, None, "app"),
            (HelmChart, &[HelmChart], None, None, "app"),
            (OCIRepository, &[OCIRepository, GitRepository, HelmChart], None, None, "app"),
            (GitRepository, &[OCIRepository, GitRepository], None, None, "app-gitrepository"),
            (HelmChart, &[GitRepository, HelmChart], None, None, "app-helmchart"),
            // Who was first keeps it.
            (OCIRepository, &[OCIRepository, GitRepository], Some(GitRepository), None, "app-ocirepository"),
            (GitRepository, &[OCIRepository, GitRepository], Some(GitRepository), None, "app"),
            (GitRepository, &[GitRepository], None, Some(GitRepository), "app-gitrepository"),
            // One whose source is gone holds no name.
            (OCIRepository, &[OCIRepository], Some(GitRepository), None, "app"),
        ];
        for (of, there, plain, other, name) in table {
            let sources = there.iter().map(|kind| (key(*kind), source(Status::default()))).collect();
            let mut all = BTreeMap::new();
            if let Some(kind) = plain {
                all.insert(("n".into(), "app".into()), live(&key(*kind)));
            }
            if let Some(kind) = other {
                all.insert(("n".into(), format!("app-{}", kind.lower()).into()), live(&key(*kind)));
            }
            assert_eq!(&*name_of(&key(*of), &sources, &all), *name, "{of} among {there:?}, {plain:?}, {other:?}");
        }
    }

    #[test]
    fn reasons_are_those_of_producers() {
        use ConditionStatus::{False, True, Unknown};
        let condition = |kind: &str, status, reason: &str| Condition {
            kind: kind.into(),
            status,
            observed_generation: 1,
            last_transition_time: String::new(),
            reason: reason.into(),
            message: "m".into(),
        };
        for (conditions, expected) in [
            (vec![], None),
            (vec![condition(kinds::READY, Unknown, "Progressing")], None),
            (vec![condition(kinds::READY, True, "ChartPullSucceeded")], Some((True, "Succeeded"))),
            (
                vec![
                    condition(kinds::READY, False, "OCIArtifactPullFailed"),
                    condition(kinds::FETCH_FAILED, True, "OCIArtifactPullFailed"),
                ],
                Some((False, "FetchFailed")),
            ),
            (
                vec![
                    condition(kinds::READY, False, "DirCreationFailed"),
                    condition(kinds::STORAGE_OPERATION_FAILED, True, "DirCreationFailed"),
                ],
                Some((False, "StorageOperationFailed")),
            ),
            (vec![condition(kinds::READY, False, "VerificationError")], Some((False, "VerificationFailed"))),
            (
                vec![
                    condition(kinds::READY, False, "InvalidSignature"),
                    condition(kinds::SOURCE_VERIFIED, False, "InvalidSignature"),
                ],
                Some((False, "VerificationFailed")),
            ),
        ] {
            let found = readiness(&Status { conditions: conditions.clone(), ..Status::default() });
            let found = found.map(|(status, reason, _)| (status, reason));
            assert_eq!(found, expected, "{conditions:?}");
        }
    }
}
