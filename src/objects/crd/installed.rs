//! What the CRDs that a cluster has do to what Larder writes, and which objects they take.
//!
//! An API server drops, without a word, each field that a CRD's schema does not have: on a write by the schema of the
//! version that is written, and on a read by that of the version that is stored. A status of which a part is dropped
//! would be written again in every pass, and say less than it should.

use regex::Regex;
use serde_json::Value;

use super::{DEFINITIONS, Definition, VERSION};

/// Why Larder must not work on a kind with the CRD that is installed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Another version of Flux than Larder stands in for.
    #[error(
        "the installed CRD {crd} does not serve {VERSION}, the version that Larder uses: update Flux to 2.6 or later, \
         or, without Flux, apply `larder crds`"
    )]
    NotServed {
        /// The CRD's name.
        crd: String,
    },
    /// Without the subresource a status cannot be written by itself.
    #[error(
        "the installed CRD {crd} has no status subresource in {VERSION}: install Flux's CRD, or that of `larder crds`"
    )]
    NoStatus {
        /// The CRD's name.
        crd: String,
    },
    /// It would drop what Larder writes.
    #[error(
        "the installed CRD {crd} would drop {}, which Larder writes: widen it with \
         `kubectl get crd {crd} -o json | larder crds --patch - | kubectl replace -f -`",
        .fields.join(", ")
    )]
    Prunes {
        /// The CRD's name.
        crd: String,
        /// The topmost fields that are not there: `status.history`, `status.artifact.metadata`.
        fields: Vec<String>,
    },
}

/// What a cluster's CRDs are good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Those that Larder must not work with.
    pub unfit: Vec<Unfit>,
    /// Those of [`DEFINITIONS`] that are not installed, by name.
    pub absent: Vec<String>,
    /// A GitRepository's URL may begin with `oci://`: else there can be none that is Larder's.
    pub git_takes_oci: bool,
    /// A Kustomization may have `validation`: else it is dropped from documents that have it.
    pub takes_validation: bool,
}

/// Looks at the CRDs that a cluster has. Others than those of [`DEFINITIONS`] may be among them.
pub fn examine(crds: &[Value]) -> Installed {
    let mut installed =
        Installed { unfit: Vec::new(), absent: Vec::new(), git_takes_oci: false, takes_validation: false };
    for definition in &DEFINITIONS {
        let name = definition.name();
        let Some(crd) = crds.iter().find(|crd| crd["metadata"]["name"] == *name) else {
            installed.absent.push(name);
            continue;
        };
        installed.unfit.extend(unfit(definition, crd));
        match definition.kind {
            "GitRepository" => installed.git_takes_oci = takes_oci(crd),
            "Kustomization" => {
                let validation = serde_json::json!({"properties": {"spec": {"properties": {"validation": {}}}}});
                installed.takes_validation = served(crd).is_some() && missing(crd, &validation).is_empty();
            }
            _ => {}
        }
    }
    installed
}

fn unfit(definition: &Definition, crd: &Value) -> Option<Unfit> {
    let name = definition.name();
    let Some(version) = served(crd) else { return Some(Unfit::NotServed { crd: name }) };
    if version["subresources"].get("status").is_none_or(Value::is_null) {
        return Some(Unfit::NoStatus { crd: name });
    }
    let fields = missing(crd, &definition.written());
    (!fields.is_empty()).then_some(Unfit::Prunes { crd: name, fields })
}

fn versions(crd: &Value) -> impl Iterator<Item = &Value> {
    crd["spec"]["versions"].as_array().into_iter().flatten()
}

fn served(crd: &Value) -> Option<&Value> {
    versions(crd).find(|version| version["name"] == VERSION && version["served"] == true)
}

/// Whether a version's schema decides what stays of what Larder writes.
pub(super) fn counts(version: &Value) -> bool {
    version["name"] == VERSION || version["storage"] == true
}

/// The topmost of the wanted fields that a CRD would drop, sorted.
pub(super) fn missing(crd: &Value, wanted: &Value) -> Vec<String> {
    if crd["spec"]["preserveUnknownFields"] == true {
        return Vec::new();
    }
    let mut fields = Vec::new();
    for version in versions(crd).filter(|version| counts(version)) {
        compare(&version["schema"]["openAPIV3Schema"], wanted, String::new(), &mut fields);
    }
    fields.sort_unstable();
    fields.dedup();
    fields
}

fn compare(schema: &Value, wanted: &Value, path: String, missing: &mut Vec<String>) {
    if schema["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    for (name, field) in wanted["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let any = schema.get("additionalProperties").filter(|any| **any != false);
        match schema["properties"].get(name).or(any) {
            // `additionalProperties: true` takes whatever comes.
            Some(Value::Bool(_)) => {}
            Some(inner) => compare(inner, field, path, missing),
            None => missing.push(path),
        }
    }
    if let Some(field) = wanted.get("additionalProperties") {
        match schema.get("additionalProperties") {
            Some(Value::Bool(true)) => {}
            Some(inner @ Value::Object(_)) => compare(inner, field, path.clone(), missing),
            _ => missing.push(path.clone()),
        }
    }
    if let (Some(field), Some(inner)) = (wanted.get("items"), schema.get("items")) {
        compare(inner, field, path, missing);
    }
}

/// Whether v1 takes a URL that begins with `oci://`.
pub(super) fn takes_oci(crd: &Value) -> bool {
    served(crd).is_some_and(|version| pattern_takes_oci(&version["schema"]["openAPIV3Schema"]))
}

pub(super) fn pattern_takes_oci(schema: &Value) -> bool {
    match &schema["properties"]["spec"]["properties"]["url"]["pattern"] {
        Value::String(pattern) => Regex::new(pattern).is_ok_and(|p| p.is_match("oci://registry.example.com/app")),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ours() -> Vec<Value> {
        DEFINITIONS.iter().map(Definition::crd).collect()
    }

    fn named(kind: &str) -> Value {
        DEFINITIONS.iter().find(|d| d.kind == kind).unwrap().crd()
    }

    #[test]
    fn larders_own_take_everything() {
        assert_eq!(
            examine(&ours()),
            Installed { unfit: vec![], absent: vec![], git_takes_oci: true, takes_validation: true }
        );
        let others = json!({"metadata": {"name": "buckets.source.toolkit.fluxcd.io"}});
        let none = examine(&[others, Value::Null]);
        assert_eq!(none.absent, DEFINITIONS.iter().map(Definition::name).collect::<Vec<_>>());
        assert_eq!((none.unfit, none.git_takes_oci, none.takes_validation), (vec![], false, false));
    }

    const STATUS: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/status";

    /// Takes away what stands at a pointer below a CRD's first version's status.
    fn without(crd: &mut Value, below: &str, key: &str) {
        let place = crd.pointer_mut(&format!("{STATUS}{below}")).unwrap_or_else(|| panic!("{below}"));
        assert!(place.as_object_mut().unwrap().remove(key).is_some(), "{below}/{key}");
    }

    /// Kind, what is taken away (below which pointer, which key), the fields that are missed.
    type Row = (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);

    #[test]
    fn names_each_field_that_would_be_dropped() {
        let table: &[Row] = &[
            ("OCIRepository", &[("/properties", "observedLayerSelector")], &["status.observedLayerSelector"]),
            (
                "OCIRepository",
                &[("/properties", "url"), ("/properties/artifact/properties", "size")],
                &["status.artifact.size", "status.url"],
            ),
            // A map that takes no values, and a list's items.
            (
                "HelmChart",
                &[("/properties/artifact/properties/metadata", "additionalProperties")],
                &["status.artifact.metadata"],
            ),
            (
                "Kustomization",
                &[("/properties/inventory/properties/entries/items/properties", "v")],
                &["status.inventory.entries.v"],
            ),
            // What Larder does not write may be missing.
            ("GitRepository", &[("/properties", "includedArtifacts")], &[]),
            ("HelmRepository", &[("/properties", "artifact")], &[]),
            ("Kustomization", &[("/properties", "history")], &[]),
            // ExternalArtifacts are made by Larder, so their spec counts too.
            ("ExternalArtifact", &[("/properties", "artifact")], &["status.artifact"]),
        ];
        for (kind, taken, expected) in table {
            let mut crd = named(kind);
            for (below, key) in *taken {
                without(&mut crd, below, key);
            }
            let found = examine(&[crd]).unfit;
            let expected = (!expected.is_empty()).then(|| Unfit::Prunes {
                crd: DEFINITIONS.iter().find(|d| d.kind == *kind).unwrap().name(),
                fields: expected.iter().map(|f| (*f).to_owned()).collect(),
            });
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{kind} {taken:?}");
        }
    }

    #[test]
    fn the_stored_version_counts_too_and_no_third_one() {
        let mut crd = named("OCIRepository");
        let mut old = crd["spec"]["versions"][0].clone();
        old["name"] = "v1beta2".into();
        crd["spec"]["versions"].as_array_mut().unwrap().push(old);
        crd["spec"]["versions"][1]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
            .as_object_mut()
            .unwrap()
            .remove("url");
        crd["spec"]["versions"][1]["storage"] = false.into();
        assert_eq!(examine(std::slice::from_ref(&crd)).unfit, []);
        crd["spec"]["versions"][0]["storage"] = false.into();
        crd["spec"]["versions"][1]["storage"] = true.into();
        let name = "ocirepositories.source.toolkit.fluxcd.io".to_owned();
        assert_eq!(
            examine(std::slice::from_ref(&crd)).unfit,
            [Unfit::Prunes { crd: name.clone(), fields: vec!["status.url".into()] }]
        );
        crd["spec"]["versions"][0]["served"] = false.into();
        assert_eq!(examine(&[crd]).unfit, [Unfit::NotServed { crd: name.clone() }]);
        let mut crd = named("OCIRepository");
        crd["spec"]["versions"][0]["subresources"] = json!({});
        assert_eq!(examine(&[crd]).unfit, [Unfit::NoStatus { crd: name }]);
    }

    #[test]
    fn a_schema_that_keeps_unknown_fields_drops_nothing() {
        let mut crd = named("OCIRepository");
        without(&mut crd, "/properties", "artifact");
        let all = json!({"spec": {"preserveUnknownFields": true}});
        let mut kept = crd.clone();
        kept["spec"]["preserveUnknownFields"] = all["spec"]["preserveUnknownFields"].clone();
        assert_eq!(examine(&[kept]).unfit, []);
        *crd.pointer_mut(STATUS).unwrap() = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        assert_eq!(examine(&[crd]).unfit, []);
    }

    #[test]
    fn says_whether_a_git_repository_may_be_an_image() {
        for (pattern, takes) in [
            (json!("^(http|https|ssh)://.*$"), false),
            (json!("^(http|https|ssh|oci)://.*$"), true),
            (json!("^(oci|https)://.*$"), true),
            (json!("("), false),
            (Value::Null, true),
        ] {
            let mut crd = named("GitRepository");
            *crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/url/pattern")
                .unwrap() = pattern.clone();
            assert_eq!(examine(&[crd]).git_takes_oci, takes, "{pattern}");
        }
        let mut crd = named("Kustomization");
        crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties")
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove("validation");
        let installed = examine(&[crd]);
        assert_eq!((installed.takes_validation, installed.unfit), (false, vec![]));
    }

    #[test]
    fn the_refusal_names_crd_field_and_what_to_do() {
        let unfit = Unfit::Prunes { crd: "a.b".into(), fields: vec!["status.url".into(), "status.x".into()] };
        assert_eq!(
            unfit.to_string(),
            "the installed CRD a.b would drop status.url, status.x, which Larder writes: widen it with \
             `kubectl get crd a.b -o json | larder crds --patch - | kubectl replace -f -`"
        );
    }
}
