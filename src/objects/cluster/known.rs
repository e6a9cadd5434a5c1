//! An object as the API server last showed it.

use std::{collections::BTreeMap, sync::Arc};

use kube::api::DynamicObject;
use serde_json::Value;

use super::FINALIZER;
use crate::objects::{Key, Kind, Metadata, Object, Status, manifest, schema};

/// What is kept of an object.
pub struct Known {
    /// As desired.
    pub object: Arc<Object>,
    /// As the server has it.
    pub status: Status,
    /// `metadata.resourceVersion`.
    pub version: String,
}

impl Known {
    /// Whether it is held until Larder or Flux lets it go.
    pub fn is_claimed(&self) -> bool {
        self.object.metadata.finalizers.iter().any(|f| f == FINALIZER)
    }

    /// Whether it is being deleted.
    pub fn is_going(&self) -> bool {
        self.object.metadata.deletion_timestamp.is_some()
    }

    /// Whether another look at it is older than this one. Versions that are no numbers tell nothing.
    pub fn is_newer_than(&self, version: &str) -> bool {
        match (self.version.parse::<u64>(), version.parse::<u64>()) {
            (Ok(mine), Ok(other)) => mine > other,
            _ => false,
        }
    }
}

/// Reads what the API server shows.
///
/// # Errors
/// Its key where that much is clear, and what is wrong with it.
pub fn read(kind: Kind, shown: DynamicObject) -> Result<Known, (Key, String)> {
    let DynamicObject { metadata: meta, mut data, .. } = shown;
    let (name, namespace) = (meta.name.unwrap_or_default(), meta.namespace.unwrap_or_default());
    let key = Key::new(kind, &namespace, &name);
    let mut part = |name: &str| data.get_mut(name).map(Value::take).unwrap_or(Value::Null);
    let (raw_spec, status) = (schema::without_nulls(part("spec")), part("status"));
    let time = |time: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        time.and_then(|t| serde_json::to_value(t).ok()?.as_str().map(str::to_owned))
    };
    let metadata = Metadata {
        name,
        namespace,
        uid: meta.uid.unwrap_or_default(),
        generation: meta.generation.unwrap_or(1),
        creation_timestamp: time(meta.creation_timestamp),
        deletion_timestamp: time(meta.deletion_timestamp),
        labels: meta.labels.unwrap_or_default(),
        annotations: told(meta.annotations.unwrap_or_default()),
        finalizers: meta.finalizers.unwrap_or_default(),
    };
    let spec = match manifest::typed_spec(kind, &raw_spec) {
        Ok(spec) => spec,
        Err(error) => return Err((key, error)),
    };
    let status = read_status(&key, status);
    let object = Arc::new(Object { key, metadata, spec, raw_spec });
    Ok(Known { object, status, version: meta.resource_version.unwrap_or_default() })
}

/// Without the copy of the whole object that `kubectl apply` leaves.
fn told(mut annotations: BTreeMap<String, String>) -> BTreeMap<String, String> {
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    annotations
}

/// A status, by whomever; what of it Larder could not have written is as if it were not there.
pub fn read_status(key: &Key, mut status: Value) -> Status {
    if status.is_null() {
        return Status::default();
    }
    if let Ok(status) = serde_json::from_value(status.clone()) {
        return status;
    }
    for field in ["artifact", "conditions", "inventory"] {
        if let Some(fields) = status.as_object_mut() {
            tracing::debug!(%key, field, "a part of the status that cannot be read counts as absent");
            fields.remove(field);
        }
        if let Ok(status) = serde_json::from_value(status.clone()) {
            return status;
        }
    }
    Status::default()
}
