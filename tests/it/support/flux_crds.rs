//! The facts of Flux's own CRDs (`tests/data/flux-crds`), and the CRDs that they were taken from.
//!
//! A facts file has one line a path: where it stands, and as JSON all that a schema says there, descriptions aside.
//! Nothing else of a CRD is left out, so that a CRD can be made of its facts again.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use larder::objects::crd::DEFINITIONS;
use serde_json::{Value, json};

/// The minor version of Flux that Larder's CRDs are those of.
pub const CURRENT: &str = "2.9";

/// Those that it can be put beside.
pub const KNOWN: [&str; 4] = ["2.6", "2.7", "2.8", CURRENT];

/// Where the facts are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/flux-crds")
}

/// A CRD's facts, a line each.
pub fn facts(crd: &Value) -> String {
    let mut out = String::new();
    let mut line = |place: &str, fact: &Value| writeln!(out, "{place} = {fact}").expect("a string takes all");
    for (key, value) in crd["metadata"]["annotations"].as_object().into_iter().flatten() {
        // Which program has written the file is no fact of the API.
        if key != "controller-gen.kubebuilder.io/version" {
            line(&format!("annotation {key}"), value);
        }
    }
    for (key, value) in crd["spec"].as_object().expect("a spec").iter().filter(|(key, _)| *key != "versions") {
        line(key, value);
    }
    for version in crd["spec"]["versions"].as_array().expect("versions") {
        let name = version["name"].as_str().expect("a version's name");
        for (key, value) in version.as_object().expect("a version") {
            match key.as_str() {
                "name" | "schema" => {}
                "additionalPrinterColumns" => {
                    for column in value.as_array().expect("columns") {
                        let mut column = column.clone();
                        column.as_object_mut().expect("a column").remove("description");
                        line(&format!("{name} column"), &column);
                    }
                }
                _ => line(&format!("{name} {key}"), value),
            }
        }
        schema_facts(&version["schema"]["openAPIV3Schema"], &format!("{name} ."), &mut line);
    }
    out
}

fn schema_facts(schema: &Value, path: &str, line: &mut impl FnMut(&str, &Value)) {
    let mut node = schema.as_object().unwrap_or_else(|| panic!("{path}: {schema}")).clone();
    node.remove("description");
    let fields = node.remove("properties");
    let mut inner = Vec::new();
    for (key, sign) in [("items", "[]"), ("additionalProperties", "{}")] {
        if node.get(key).is_some_and(Value::is_object) {
            inner.push((sign, node.remove(key).expect("is there")));
        }
    }
    if let Some(Value::Array(required)) = node.get_mut("required") {
        required.sort_unstable_by(|a, b| a.as_str().cmp(&b.as_str()));
    }
    line(path, &Value::Object(node));
    for (name, field) in fields.as_ref().and_then(Value::as_object).into_iter().flatten() {
        schema_facts(field, &format!("{}.{name}", path.trim_end_matches('.')), line);
    }
    for (sign, schema) in inner {
        schema_facts(&schema, &format!("{path}{sign}"), line);
    }
}

/// A CRD made of its facts.
fn rebuilt(name: &str, text: &str) -> Value {
    let mut crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": name}, "spec": {"versions": []}});
    for line in text.lines() {
        let (place, fact) = line.split_once(" = ").unwrap_or_else(|| panic!("{line}"));
        let fact: Value = serde_json::from_str(fact).unwrap_or_else(|error| panic!("{line}: {error}"));
        let words: Vec<&str> = place.split(' ').collect();
        match words.as_slice() {
            ["annotation", key] => crd["metadata"]["annotations"][*key] = fact,
            [key] => crd["spec"][*key] = fact,
            [version, key] => {
                let versions = crd["spec"]["versions"].as_array_mut().expect("a list");
                if versions.last().is_none_or(|v| v["name"] != *version) {
                    versions.push(json!({"name": version, "schema": {"openAPIV3Schema": {}}}));
                }
                let this = versions.last_mut().expect("one");
                match (*key, key.strip_prefix('.')) {
                    ("column", _) => match &mut this["additionalPrinterColumns"] {
                        Value::Array(columns) => columns.push(fact),
                        none => *none = json!([fact]),
                    },
                    (_, Some(path)) => *at(&mut this["schema"]["openAPIV3Schema"], path) = fact,
                    (key, None) => this[key] = fact,
                }
            }
            _ => panic!("{line}"),
        }
    }
    crd
}

/// The node of a schema at a path such as `status.conditions[].type`.
fn at<'a>(mut schema: &'a mut Value, path: &str) -> &'a mut Value {
    for step in path.split('.').filter(|step| !step.is_empty()) {
        let (name, mut signs) = step.split_at(step.find(['[', '{']).unwrap_or(step.len()));
        schema = &mut schema["properties"][name];
        while let Some(sign) = signs.get(..2) {
            schema = &mut schema[if sign == "[]" { "items" } else { "additionalProperties" }];
            signs = &signs[2..];
        }
    }
    schema
}

/// Flux's CRDs of one minor version, as far as Larder has the kind.
pub fn flux(version: &str) -> Vec<Value> {
    let mut found: BTreeMap<String, Value> = BTreeMap::new();
    let folder = folder().join(version);
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("entry").path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        let text = std::fs::read_to_string(&path).expect("facts");
        let crd = rebuilt(&name, &text);
        assert_eq!(facts(&crd), text, "{}: does not survive", path.display());
        found.insert(name, crd);
    }
    DEFINITIONS.iter().filter_map(|definition| found.remove(&definition.name())).collect()
}

/// The lines that only one of two has.
pub fn difference(flux: &str, larder: &str) -> Vec<String> {
    let only = |these: &str, those: &str, sign: char| -> Vec<String> {
        these.lines().filter(|line| !those.lines().any(|other| other == *line)).map(|l| format!("{sign} {l}")).collect()
    };
    [only(flux, larder, '-'), only(larder, flux, '+')].concat()
}

/// What widening changes in the facts of one of Flux's CRDs.
pub fn widening(name: &str) -> Vec<String> {
    let facts: &[&str] = match name {
        "gitrepositories.source.toolkit.fluxcd.io" => &[
            r#"- v1 .spec.url = {"pattern":"^(http|https|ssh)://.*$","type":"string"}"#,
            r#"+ v1 .spec.url = {"pattern":"^(http|https|ssh|oci)://.*$","type":"string"}"#,
        ],
        "kustomizations.kustomize.toolkit.fluxcd.io" => {
            &[r#"+ v1 .spec.validation = {"enum":["none","client","server"],"type":"string"}"#]
        }
        _ => &[],
    };
    facts.iter().map(|fact| (*fact).to_owned()).collect()
}
