//! Field managers: taking over the fields that kubectl, or Flux before server-side apply, set on an object.
//!
//! Server-side apply leaves alone what other managers own. What somebody set with kubectl on an object that a Kustomization
//! describes is drift, though: before the next apply these managers' fields are made the applier's own, so that applying
//! without them removes them.

use serde_json::{Map, Value, json};

/// The manager under which objects are applied: Flux's, so that either can go on where the other left off.
pub const MANAGER: &str = "kustomize-controller";

/// Annotations that are removed: kubectl's copy of what it applied, and Flux's own from before server-side apply.
const ANNOTATIONS: [&str; 3] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "kustomize.toolkit.fluxcd.io/checksum",
    "fluxcd.io/sync-checksum",
];

/// A label that is removed.
const LABEL: &str = "fluxcd.io/sync-gc-mark";

/// Whether the fields of this manager are taken over. Names are prefixes, as in Flux: `kubectl-edit` is kubectl too.
pub fn is_taken_over(manager: &str, operation: &str, subresource: &str) -> bool {
    let kubectl = manager.starts_with("kubectl") && matches!(operation, "Apply" | "Update");
    let earlier = operation == "Update" && (manager.starts_with("before-first-apply") || manager.starts_with(MANAGER));
    subresource.is_empty() && (kubectl || earlier)
}

/// Whether a label or annotation is removed from live objects.
pub fn is_removed(field: &str, key: &str) -> bool {
    match field {
        "annotations" => ANNOTATIONS.contains(&key),
        _ => key == LABEL,
    }
}

/// The JSON patch that takes over; `None` where there is nothing to do. `object` is a live object or its metadata alone.
/// It applies only to the version of the object that was looked at.
pub fn take_over(object: &Value) -> Option<Value> {
    let metadata = object.get("metadata")?;
    let mut patch = Vec::new();
    for field in ["annotations", "labels"] {
        for key in metadata.get(field).and_then(Value::as_object).into_iter().flat_map(Map::keys) {
            if is_removed(field, key) {
                let escaped = key.replace('~', "~0").replace('/', "~1");
                patch.push(json!({"op": "remove", "path": format!("/metadata/{field}/{escaped}")}));
            }
        }
    }
    if let Some(entries) = metadata.get("managedFields").and_then(Value::as_array).and_then(|list| merged(list)) {
        patch.push(json!({"op": "replace", "path": "/metadata/managedFields", "value": entries}));
    }
    if patch.is_empty() {
        return None;
    }
    let version = metadata.get("resourceVersion")?;
    patch.push(json!({"op": "replace", "path": "/metadata/resourceVersion", "value": version}));
    Some(Value::Array(patch))
}

fn text<'v>(entry: &'v Value, field: &str) -> &'v str {
    entry.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The entries with those that are taken over merged into the applier's own, which comes last; `None` if there are none.
fn merged(entries: &[Value]) -> Option<Vec<Value>> {
    let is_own = |e: &Value| {
        text(e, "manager") == MANAGER && text(e, "operation") == "Apply" && text(e, "subresource").is_empty()
    };
    let mut own = entries.iter().find(|e| is_own(e)).cloned();
    let mut rest = Vec::new();
    let mut taken = false;
    for entry in entries.iter().filter(|e| !is_own(e)) {
        if !is_taken_over(text(entry, "manager"), text(entry, "operation"), text(entry, "subresource")) {
            rest.push(entry.clone());
            continue;
        }
        taken = true;
        match &mut own {
            Some(own) => {
                if let Some(fields) = entry.get("fieldsV1") {
                    unite(&mut own["fieldsV1"], fields);
                }
            }
            None => {
                let mut first = entry.clone();
                first["manager"] = MANAGER.into();
                first["operation"] = "Apply".into();
                own = Some(first);
            }
        }
    }
    rest.extend(own);
    taken.then_some(rest)
}

/// The union of two sets of fields, each a tree of path elements.
fn unite(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (element, below) in from {
                unite(into.entry(element.clone()).or_insert_with(|| json!({})), below);
            }
        }
        (into @ Value::Null, from) => *into = from.clone(),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(manager: &str, operation: &str, fields: Value) -> Value {
        json!({"manager": manager, "operation": operation, "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields})
    }

    #[test]
    fn only_kubectl_and_what_was_before_apply_are_taken_over() {
        for (manager, operation, subresource, taken) in [
            ("kubectl", "Apply", "", true),
            ("kubectl", "Update", "", true),
            ("kubectl-edit", "Update", "", true),
            ("kubectl-client-side-apply", "Update", "", true),
            ("before-first-apply", "Update", "", true),
            ("before-first-apply", "Apply", "", false),
            ("kustomize-controller", "Update", "", true),
            ("kustomize-controller", "Apply", "", false),
            ("kubectl", "Update", "status", false),
            ("kube-controller-manager", "Update", "", false),
            ("helm", "Apply", "", false),
        ] {
            assert_eq!(is_taken_over(manager, operation, subresource), taken, "{manager} {operation} {subresource}");
        }
    }

    #[test]
    fn taking_over_unites_the_fields_and_names_the_version() {
        let object = json!({"metadata": {
            "resourceVersion": "7",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "kept": "1"},
            "labels": {"fluxcd.io/sync-gc-mark": "x"},
            "managedFields": [
                entry("kubectl-edit", "Update", json!({"f:data": {"f:b": {}, "f:c": {}}})),
                entry("kustomize-controller", "Apply", json!({"f:data": {"f:a": {}, "f:b": {}}})),
                entry("other", "Apply", json!({"f:data": {"f:o": {}}})),
                entry("kubectl", "Apply", json!({"f:metadata": {"f:labels": {"f:x": {}}}})),
            ],
        }});
        let own = entry(
            "kustomize-controller",
            "Apply",
            json!({"f:data": {"f:a": {}, "f:b": {}, "f:c": {}}, "f:metadata": {"f:labels": {"f:x": {}}}}),
        );
        assert_eq!(
            take_over(&object),
            Some(json!([
                {"op": "remove", "path": "/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration"},
                {"op": "remove", "path": "/metadata/labels/fluxcd.io~1sync-gc-mark"},
                {"op": "replace", "path": "/metadata/managedFields",
                 "value": [entry("other", "Apply", json!({"f:data": {"f:o": {}}})), own]},
                {"op": "replace", "path": "/metadata/resourceVersion", "value": "7"},
            ]))
        );
    }

    #[test]
    fn the_first_of_them_becomes_the_applier_where_it_has_no_entry() {
        let fields = json!({"f:spec": {"f:replicas": {}}});
        let object = |entries: Value| json!({"metadata": {"resourceVersion": "7", "managedFields": entries}});
        let patch = take_over(&object(json!([entry("before-first-apply", "Update", fields.clone())]))).unwrap();
        assert_eq!(patch[0]["value"], json!([entry("kustomize-controller", "Apply", fields.clone())]));
        assert_eq!(take_over(&object(json!([entry("kustomize-controller", "Apply", fields)]))), None);
        assert_eq!(take_over(&json!({"metadata": {"name": "a"}})), None);
    }
}
