//! `larder crds` on an API server: its own CRDs lose no field, Flux's are widened by the documented commands.

use larder::{
    apply::yaml_text,
    objects::crd::{DEFINITIONS, Definition},
};
use serde_json::{Value, json};

use crate::{
    cluster::env::{Cluster, has, need_cluster},
    support::{
        eventually,
        flux_crds::{KNOWN, difference, facts, flux, widening},
        larder::{command, stdout_of},
    },
};

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// What stands in for a field of which the schema's type alone makes no good value.
const PICKED: [(&str, &str); 5] = [
    ("spec.url", "oci://registry.example.com/app"),
    // With `serviceAccountName`, a GitRepository's must be azure or aws.
    ("spec.provider", "azure"),
    ("status.artifact.digest", "sha256:0123"),
    ("status.includedArtifacts.digest", "sha256:0123"),
    ("status.conditions.type", "Ready"),
];

/// A value with every field that a schema has, but one of two that exclude each other.
fn full(schema: &Value, path: &str) -> Value {
    if let Some((_, value)) = PICKED.iter().find(|(place, _)| *place == path) {
        return (*value).into();
    }
    match schema["type"].as_str() {
        Some("object") => {
            let fields = schema["properties"].as_object().into_iter().flatten();
            let mut value: serde_json::Map<String, Value> = fields
                .filter(|(name, _)| !(path == "spec.kubeConfig" && *name == "configMapRef"))
                .map(|(name, field)| (name.clone(), full(field, &format!("{path}.{name}"))))
                .collect();
            if schema["additionalProperties"].is_object() {
                value.insert("key".into(), full(&schema["additionalProperties"], path));
            }
            value.into()
        }
        Some("array") => json!([full(&schema["items"], path)]),
        Some("boolean") => true.into(),
        Some("integer") => 7.into(),
        Some("string") => match (&schema["enum"][0], schema["format"].as_str(), schema["pattern"].as_str()) {
            (Value::String(first), _, _) => first.as_str().into(),
            (_, Some("date-time"), _) => "2026-11-01T00:00:00Z".into(),
            (_, _, Some(pattern)) if pattern.contains("ms|s|m") => "1m30s".into(),
            _ => "text".into(),
        },
        other => panic!("{path}: {other:?}"),
    }
}

/// Installs CRDs, or puts them in the place of those that are installed, as an upgrade does.
fn install(cluster: &Cluster, crds: &[Value]) {
    for crd in crds {
        let path = format!("{CRDS}/{}", crd["metadata"]["name"].as_str().expect("a name"));
        if cluster.object(&path).is_some() {
            cluster.patch(&path, crd);
        } else {
            cluster.create(CRDS, crd);
        }
    }
    for crd in crds {
        let name = crd["metadata"]["name"].as_str().expect("a name");
        cluster.wait(&format!("{CRDS}/{name}"), |crd| {
            let conditions = crd["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|c| c["type"] == "Established" && c["status"] == "True")
        });
    }
}

#[test]
fn no_field_of_larders_crds_is_pruned() {
    need_cluster!();
    let root = tempfile::tempdir().expect("temporary folder");
    let cluster = Cluster::start(root.path());
    let crds: Vec<Value> = DEFINITIONS.iter().map(Definition::crd).collect();
    install(&cluster, &crds);
    for crd in &crds {
        let (group, names) = (crd["spec"]["group"].as_str().expect("group"), &crd["spec"]["names"]);
        let collection =
            format!("/apis/{group}/v1/namespaces/flux-system/{}", names["plural"].as_str().expect("plural"));
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
        let (spec, status) = (full(&schema["spec"], "spec"), full(&schema["status"], "status"));
        let object = json!({ "apiVersion": format!("{group}/v1"), "kind": names["kind"],
            "metadata": { "name": "full" }, "spec": spec });
        let made = cluster.create(&format!("{collection}?fieldValidation=Strict"), &object);
        let before = &schema["status"]["default"];
        assert_eq!(&made["status"], before, "{}", names["kind"]);
        cluster.patch(&format!("{collection}/full/status?fieldValidation=Strict"), &json!({ "status": status }));
        let read = cluster.object(&format!("{collection}/full")).expect("it was made");
        assert_eq!((&read["spec"], &read["status"]), (&spec, &status), "{}", names["kind"]);
    }
}

/// The user's documents: an `oci://` GitRepository, and a Kustomization with `validation`.
const DOCUMENTS: [(&str, &str); 2] = [
    (
        "/apis/source.toolkit.fluxcd.io/v1/namespaces/flux-system/gitrepositories",
        include_str!("../user/oci-source.yaml"),
    ),
    (
        "/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/flux-system/kustomizations",
        include_str!("../user/kustomization.yaml"),
    ),
];

/// The status and the message of the answer to a creation that is not carried out.
fn try_create(cluster: &Cluster, (collection, text): (&str, &str)) -> (u16, String) {
    let document = yaml_text::read(text).expect("YAML");
    let path = format!("{collection}?fieldValidation=Strict&dryRun=All");
    let answer = cluster.send("POST", &path, "application/json", &document);
    (answer.status, answer.json()["message"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn flux_crds_are_widened_by_one_command() {
    need_cluster!();
    if !has("kubectl") {
        return;
    }
    let root = tempfile::tempdir().expect("temporary folder");
    let cluster = Cluster::start(root.path());
    for version in KNOWN {
        let crds = flux(version);
        install(&cluster, &crds);
        let refusals = [r#"spec.url: Invalid value: "#, r#"unknown field "spec.validation""#];
        for (document, refusal) in DOCUMENTS.into_iter().zip(refusals) {
            // An API server serves a new CRD a moment after it says so.
            eventually("Flux's CRDs", || match try_create(&cluster, document) {
                (400.., text) if text.contains(refusal) => Ok(()),
                (status, text) => Err(format!("{version}: {status} {text}")),
            });
        }

        let before = cluster.kubectl(&["get", "crd", "-o", "json"], "");
        let file = root.path().join("installed.json");
        std::fs::write(&file, &before).expect("write");
        let mut larder = command(root.path());
        larder.args(["crds", "--patch"]).arg(&file);
        let widened = String::from_utf8(stdout_of(larder)).expect("text");
        let replaced = cluster.kubectl(&["replace", "-f", "-"], &widened);
        assert_eq!(replaced.matches(" replaced").count(), crds.len(), "{version}: {replaced}");

        let before: Value = serde_json::from_str(&before).expect("JSON");
        for crd in before["items"].as_array().expect("items") {
            let name = crd["metadata"]["name"].as_str().expect("a name");
            let now = cluster.object(&format!("{CRDS}/{name}")).expect("it is installed");
            assert_eq!(difference(&facts(crd), &facts(&now)), widening(name), "{version}");
        }
        for document in DOCUMENTS {
            eventually("the wider CRDs", || match try_create(&cluster, document) {
                (201, _) => Ok(()),
                (status, text) => Err(format!("{version}: {status} {text}")),
            });
        }
    }
}
