//! One Kubernetes object as a JSON value: what it is called, and the edits that need no schema.

use std::fmt;

use serde_json::{Map, Value};

use crate::objects::InventoryEntry;

/// What an object is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// API group, empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Namespace; empty where none is set.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Id {
    /// An id from its parts, `api_version` as in the object.
    pub fn new(api_version: &str, kind: &str, namespace: &str, name: &str) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Self {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The id that `object` carries now; what is missing or not text is empty.
    pub fn of(object: &Value) -> Self {
        let meta = |name| object.get("metadata").and_then(|m| m.get(name));
        Self::new(text(object.get("apiVersion")), text(object.get("kind")), text(meta("namespace")), text(meta("name")))
    }

    /// `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The namespace that kustomize compares by: all objects that no namespace holds are in one of their own, and
    /// those without a namespace in `default`.
    pub fn effective_namespace(&self) -> &str {
        if is_cluster_scoped(self) {
            "_non_namespaceable_"
        } else if self.namespace.is_empty() {
            "default"
        } else {
            &self.namespace
        }
    }

    /// The entry in Flux's inventory: a namespace that the API server would ignore is not in it, and a colon cannot stand in the name of anything but RBAC objects, where it is
    /// written `__`.
    pub fn inventory_entry(&self) -> InventoryEntry {
        let rbac = self.group == "rbac.authorization.k8s.io"
            && matches!(self.kind.as_str(), "Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding");
        let name = if rbac { self.name.replace(':', "__") } else { self.name.clone() };
        let namespace = if is_cluster_scoped(self) { "" } else { &self.namespace };
        InventoryEntry { id: format!("{namespace}_{name}_{}_{}", self.group, self.kind), v: self.version.clone() }
    }
}

/// As Flux's messages name objects: `Deployment/podinfo/backend`.
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "/{}", self.namespace)?;
        }
        write!(f, "/{}", self.name)
    }
}

fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or_default()
}

/// Whether kustomize is certain that no namespace holds objects of this kind. The table is its own
/// (`precomputedIsNamespaceScoped`), with the versions it knows; a kind that it does not know has namespaces.
pub fn is_cluster_scoped(id: &Id) -> bool {
    matches!(
        (id.group.as_str(), id.version.as_str(), id.kind.as_str()),
        ("", "v1", "ComponentStatus" | "Namespace" | "Node" | "NodeProxyOptions" | "PersistentVolume")
            | (
                "admissionregistration.k8s.io",
                "v1",
                "MutatingWebhookConfiguration"
                    | "ValidatingWebhookConfiguration"
                    | "ValidatingAdmissionPolicy"
                    | "ValidatingAdmissionPolicyBinding"
            )
            | (
                "admissionregistration.k8s.io",
                "v1beta1",
                "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration"
            )
            | ("apiextensions.k8s.io", "v1" | "v1beta1", "CustomResourceDefinition")
            | ("apiregistration.k8s.io", "v1" | "v1beta1", "APIService")
            | ("certificates.k8s.io", "v1" | "v1beta1", "CertificateSigningRequest")
            | ("flowcontrol.apiserver.k8s.io", "v1beta1", "FlowSchema" | "PriorityLevelConfiguration")
            | ("networking.k8s.io", "v1" | "v1beta1", "IngressClass")
            | ("node.k8s.io", "v1" | "v1beta1", "RuntimeClass")
            | ("policy", "v1beta1", "PodSecurityPolicy")
            | ("rbac.authorization.k8s.io", "v1" | "v1beta1", "ClusterRole" | "ClusterRoleBinding")
            | ("scheduling.k8s.io", "v1" | "v1beta1", "PriorityClass")
            | ("storage.k8s.io", "v1", "CSIDriver" | "CSINode" | "StorageClass" | "VolumeAttachment")
            | ("storage.k8s.io", "v1beta1", "CSIDriver" | "StorageClass" | "VolumeAttachment" | "CSINode")
    )
}

/// Sets `metadata.<field>.<key>` for every pair; a field that is not a mapping gives way.
pub fn set_metadata<'a>(object: &mut Value, field: &str, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let mut pairs = pairs.into_iter().peekable();
    if pairs.peek().is_none() {
        return;
    }
    let Some(object) = object.as_object_mut() else {
        return;
    };
    let metadata = mapping(object, "metadata");
    let field = mapping(metadata, field);
    for (key, value) in pairs {
        field.insert(key.into(), value.into());
    }
}

/// Makes text of labels that are none: the API server takes no others.
pub fn labels_to_text(object: &mut Value) {
    let labels = object.get_mut("metadata").and_then(|metadata| metadata.get_mut("labels"));
    for value in labels.and_then(Value::as_object_mut).into_iter().flat_map(|map| map.values_mut()) {
        match value {
            Value::Bool(_) | Value::Number(_) => *value = value.to_string().into(),
            Value::Null => *value = "".into(),
            _ => {}
        }
    }
}

/// The mapping under `name`, made where there is none.
pub fn mapping<'v>(parent: &'v mut Map<String, Value>, name: &str) -> &'v mut Map<String, Value> {
    let value = parent.entry(name).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was made a mapping just now"),
    }
}

/// A label or annotation, as text.
pub fn annotation<'v>(object: &'v Value, field: &str, key: &str) -> Option<&'v str> {
    object.get("metadata")?.get(field)?.get(key)?.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_inventory_entry_is_written_as_flux_writes_it() {
        for (api, kind, namespace, name, id, v) in [
            ("v1", "Namespace", "", "a", "_a__Namespace", "v1"),
            ("apps/v1", "Deployment", "b", "a", "b_a_apps_Deployment", "v1"),
            (
                "rbac.authorization.k8s.io/v1",
                "ClusterRole",
                "",
                "system:a",
                "_system__a_rbac.authorization.k8s.io_ClusterRole",
                "v1",
            ),
            ("x.io/v1beta2", "Thing", "b", "a:b", "b_a:b_x.io_Thing", "v1beta2"),
            ("v1", "Namespace", "b", "a", "_a__Namespace", "v1"),
        ] {
            let entry = Id::new(api, kind, namespace, name).inventory_entry();
            assert_eq!((entry.id.as_str(), entry.v.as_str()), (id, v));
        }
    }

    #[test]
    fn metadata_is_set_and_what_was_there_stays() {
        let mut object = json!({"metadata": {"labels": {"a": "1", "b": "2"}, "annotations": null}});
        set_metadata(&mut object, "labels", [("b", "3"), ("c", "4")]);
        set_metadata(&mut object, "annotations", [("x", "y")]);
        set_metadata(&mut object, "other", []);
        assert_eq!(object, json!({"metadata": {"labels": {"a": "1", "b": "3", "c": "4"}, "annotations": {"x": "y"}}}));
    }
}
