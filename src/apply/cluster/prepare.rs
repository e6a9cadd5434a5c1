//! From a rendered object to the body that is applied: what the API server would trip over is put right, as Flux does.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use super::api::Resource;
use crate::apply::object::{self, Id};

/// Where objects without a namespace go whose kind has one: where kubectl puts them, and what kustomize takes them to mean.
const DEFAULT_NAMESPACE: &str = "default";

/// `object` as it is applied, and its id with the namespace that it has on the server.
pub fn prepare(of: &Resource, mut id: Id, mut object: Value) -> (Id, Value) {
    let Some(map) = object.as_object_mut() else { return (id, object) };
    // kstatus needs a definition's status; nobody else's is ours to say.
    if id.kind != "CustomResourceDefinition" {
        map.remove("status");
    }
    let metadata = object::mapping(map, "metadata");
    for field in ["creationTimestamp", "managedFields", "resourceVersion", "uid", "generation", "selfLink"] {
        metadata.remove(field);
    }
    if !of.namespaced {
        metadata.remove("namespace");
        id.namespace = String::new();
    } else if id.namespace.is_empty() {
        id.namespace = DEFAULT_NAMESPACE.into();
        metadata.insert("namespace".into(), DEFAULT_NAMESPACE.into());
    }
    match (id.group.as_str(), id.kind.as_str()) {
        ("", "Secret") => encode(map),
        ("", "Service") => default_protocols(object.pointer_mut("/spec/ports")),
        ("", "Pod") => containers(object.pointer_mut("/spec/containers")),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet") | ("batch", "Job") => {
            containers(object.pointer_mut("/spec/template/spec/containers"));
        }
        ("batch", "CronJob") => containers(object.pointer_mut("/spec/jobTemplate/spec/template/spec/containers")),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            without_bad_bundle(object.pointer_mut("/spec/conversion/webhook/clientConfig"));
        }
        _ => {}
    }
    (id, object)
}

/// `stringData` into `data`: applied as it is, a key that goes from it would stay in the Secret.
fn encode(secret: &mut Map<String, Value>) {
    let Some(Value::Object(texts)) = secret.remove("stringData") else { return };
    let data = object::mapping(secret, "data");
    for (key, value) in texts {
        let encoded = match &value {
            Value::String(text) => STANDARD.encode(text).into(),
            // Not text: for the server to refuse.
            _ => value,
        };
        data.insert(key, encoded);
    }
}

/// A port's protocol is a part of its key in the list, also where it is left to the default.
fn default_protocols(ports: Option<&mut Value>) {
    for port in ports.and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        if port.get("protocol").is_none_or(|p| p.is_null() || p == "") {
            port.insert("protocol".into(), "TCP".into());
        }
    }
}

fn containers(list: Option<&mut Value>) {
    for container in list.and_then(Value::as_array_mut).into_iter().flatten() {
        default_protocols(container.get_mut("ports"));
    }
}

/// A placeholder for what cert-manager injects would be refused.
fn without_bad_bundle(config: Option<&mut Value>) {
    let Some(config) = config.and_then(Value::as_object_mut) else { return };
    let bundle = config.get("caBundle").and_then(Value::as_str).map(|text| STANDARD.decode(text).unwrap_or_default());
    let marker = b"-----BEGIN CERTIFICATE-----";
    if bundle.is_some_and(|pem| !pem.windows(marker.len()).any(|part| part == marker)) {
        config.remove("caBundle");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn prepared(namespaced: bool, object: Value) -> (String, Value) {
        let id = Id::of(&object);
        let of = Resource {
            group: id.group.clone(),
            version: id.version.clone(),
            kind: id.kind.clone(),
            plural: "things".into(),
            namespaced,
        };
        let (id, object) = prepare(&of, id, object);
        (id.namespace, object)
    }

    #[test]
    fn the_namespace_is_the_one_that_the_server_sees() {
        for (namespaced, given, seen) in [
            (true, json!({"name": "a"}), Some("default")),
            (true, json!({"name": "a", "namespace": "n"}), Some("n")),
            (false, json!({"name": "a", "namespace": "n"}), None),
            (false, json!({"name": "a"}), None),
        ] {
            let (namespace, object) =
                prepared(namespaced, json!({"apiVersion": "x/v1", "kind": "T", "metadata": given}));
            assert_eq!(namespace, seen.unwrap_or_default());
            assert_eq!(object["metadata"].get("namespace"), seen.map(Value::from).as_ref());
        }
    }

    #[test]
    fn what_the_server_writes_is_left_out() {
        let object = |kind: &str| {
            json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": kind, "status": {"a": 1},
                   "metadata": {"name": "a", "creationTimestamp": null, "uid": "u", "managedFields": [], "labels": {"l": "1"}}})
        };
        let (_, other) = prepared(false, object("Other"));
        assert_eq!(other["metadata"], json!({"name": "a", "labels": {"l": "1"}}));
        assert!(other.get("status").is_none());
        assert!(prepared(false, object("CustomResourceDefinition")).1.get("status").is_some());
    }

    #[test]
    fn known_kinds_are_put_right() {
        let meta = json!({"name": "a", "namespace": "n"});
        let ports = json!([{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]);
        let whole = json!([{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 53, "protocol": "UDP"}]);
        for (api, kind, path) in [
            ("v1", "Pod", "/spec"),
            ("apps/v1", "Deployment", "/spec/template/spec"),
            ("batch/v1", "CronJob", "/spec/jobTemplate/spec/template/spec"),
        ] {
            let mut object = json!({"apiVersion": api, "kind": kind, "metadata": meta});
            let mut at = &mut object;
            for part in path[1..].split('/') {
                at[part] = json!({});
                at = at.get_mut(part).unwrap();
            }
            at["containers"] = json!([{"name": "c", "ports": ports}]);
            let (_, object) = prepared(true, object);
            assert_eq!(object.pointer(&format!("{path}/containers/0/ports")), Some(&whole), "{kind}");
        }
        let service =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"port": 1}]}});
        assert_eq!(prepared(true, service).1["spec"]["ports"], json!([{"port": 1, "protocol": "TCP"}]));
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta,
                            "data": {"a": "eA==", "b": "eQ=="}, "stringData": {"a": "text"}});
        let (_, secret) = prepared(true, secret);
        assert_eq!(secret["data"], json!({"a": "dGV4dA==", "b": "eQ=="}));
        assert!(secret.get("stringData").is_none());
        for (bundle, kept) in [("Cg==", false), ("LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t", true)] {
            let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "a"},
                             "spec": {"conversion": {"webhook": {"clientConfig": {"caBundle": bundle}}}}});
            let (_, crd) = prepared(false, crd);
            assert_eq!(crd.pointer("/spec/conversion/webhook/clientConfig/caBundle").is_some(), kept);
        }
    }
}
