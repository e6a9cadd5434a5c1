//! `larder crds` against the facts of Flux's own CRDs (`tests/data/flux-crds`): the same, but for two widenings.
//!
//! A facts file has one line a path: where it stands, and as JSON all that a schema says there, descriptions aside.
//! Nothing else of a CRD is left out, so that a CRD can be made of its facts again.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use larder::objects::crd::{
    DEFINITIONS, Definition,
    installed::{Unfit, examine},
};
use serde_json::{Value, json};

use crate::support::larder::{command, run, run_json, stdout_of};

/// The minor version of Flux that Larder's CRDs are those of.
const CURRENT: &str = "2.9";

/// Those that it can be put beside.
const KNOWN: [&str; 4] = ["2.6", "2.7", "2.8", CURRENT];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/flux-crds")
}

/// A CRD's facts, a line each.
fn facts(crd: &Value) -> String {
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
fn flux(version: &str) -> Vec<Value> {
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
fn difference(flux: &str, larder: &str) -> Vec<String> {
    let only = |these: &str, those: &str, sign: char| -> Vec<String> {
        these.lines().filter(|line| !those.lines().any(|other| other == *line)).map(|l| format!("{sign} {l}")).collect()
    };
    [only(flux, larder, '-'), only(larder, flux, '+')].concat()
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("tempdir")
}

#[test]
fn the_crds_are_flux_own_but_for_two_widenings() {
    let home = home();
    let printed = run_json(home.path(), ["crds", "-o", "json"]);
    let flux = flux(CURRENT);
    let printed = printed["items"].as_array().expect("a list");
    assert_eq!(
        printed.iter().map(|crd| &crd["metadata"]["name"]).collect::<Vec<_>>(),
        flux.iter().map(|crd| &crd["metadata"]["name"]).collect::<Vec<_>>()
    );
    let mut wider = Vec::new();
    for (flux, larder) in flux.iter().zip(printed) {
        let (theirs, ours) = (facts(flux), facts(larder));
        wider.extend(difference(&theirs, &ours));
        // Not only the same lines, but in the same order: columns have one.
        let shared = |one: &str, other: &str| -> Vec<String> {
            one.lines().filter(|line| other.lines().any(|l| l == *line)).map(str::to_owned).collect()
        };
        assert_eq!(shared(&theirs, &ours), shared(&ours, &theirs));
    }
    assert_eq!(
        wider,
        [
            r#"- v1 .spec.url = {"pattern":"^(http|https|ssh)://.*$","type":"string"}"#,
            r#"+ v1 .spec.url = {"pattern":"^(http|https|ssh|oci)://.*$","type":"string"}"#,
            r#"+ v1 .spec.validation = {"enum":["none","client","server"],"type":"string"}"#,
        ]
    );
}

#[test]
fn every_field_has_a_description() {
    fn check(schema: &Value, path: &str, without: &mut Vec<String>) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            // `metadata` is described by Kubernetes itself.
            if !field["description"].is_string() && name != "metadata" {
                without.push(path.clone());
            }
            check(field, &path, without);
            check(&field["items"], &path, without);
        }
    }
    let mut without = Vec::new();
    for crd in DEFINITIONS.iter().map(Definition::crd) {
        let name = crd["spec"]["names"]["kind"].as_str().expect("kind").to_owned();
        check(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &name, &mut without);
    }
    // Larder writes these two under one description.
    without.retain(|path| !["spec", "status"].contains(&path.rsplit('.').next().expect("one part")));
    assert_eq!(without, [] as [String; 0]);
}

/// Applies a JSON patch of `test`, `add` and `replace`.
fn patch(document: &mut Value, operations: &Value) -> Result<(), String> {
    for operation in operations.as_array().expect("a list") {
        let path = operation["path"].as_str().expect("a path");
        let value = operation["value"].clone();
        match operation["op"].as_str().expect("an op") {
            "test" if document.pointer(path) == Some(&value) => {}
            "test" => return Err(format!("{path} is not {value}")),
            "replace" => *document.pointer_mut(path).ok_or_else(|| format!("no {path}"))? = value,
            "add" => {
                let (parent, name) = path.rsplit_once('/').expect("a slash");
                let parent = document.pointer_mut(parent).ok_or_else(|| format!("no {parent}"))?;
                parent.as_object_mut().expect("an object").insert(name.into(), value);
            }
            other => panic!("{other}"),
        }
    }
    Ok(())
}

/// What widening changes in the facts of one of Flux's CRDs.
fn widening(name: &str) -> Vec<String> {
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

#[test]
fn the_component_widens_the_crds_of_every_minor_version_that_is_known() {
    let home = home();
    let component = run_json(home.path(), ["crds", "--patch", "-o", "json"]);
    let patches: BTreeMap<&str, Value> = component["patches"]
        .as_array()
        .expect("patches")
        .iter()
        .map(|patch| {
            let operations: Vec<Value> = patch["patch"]
                .as_str()
                .expect("text")
                .lines()
                .map(|line| serde_json::from_str(line.strip_prefix("- ").expect("an item")).expect("JSON"))
                .collect();
            (patch["target"]["name"].as_str().expect("a target"), operations.into())
        })
        .collect();
    assert_eq!(
        patches.keys().copied().collect::<Vec<_>>(),
        ["gitrepositories.source.toolkit.fluxcd.io", "kustomizations.kustomize.toolkit.fluxcd.io"]
    );
    for version in KNOWN {
        for crd in flux(version) {
            let name = crd["metadata"]["name"].as_str().expect("a name");
            let Some(operations) = patches.get(name) else { continue };
            // Twice is as once.
            let mut patched = crd.clone();
            for _ in 0..2 {
                patch(&mut patched, operations).unwrap_or_else(|error| panic!("{version} {name}: {error}"));
            }
            assert_eq!(difference(&facts(&crd), &facts(&patched)), widening(name), "{version}");
        }
    }
    // A CRD of another form is not patched at a wrong place.
    let mut other = json!({"spec": {"versions": [{"name": "v1beta2"}]}});
    for operations in patches.values() {
        assert!(patch(&mut other, operations).is_err());
    }
}

#[test]
fn installed_crds_are_widened_without_losing_a_field() {
    let home = home();
    for version in KNOWN {
        let crds = flux(version);
        let before = examine(&crds);
        assert_eq!((before.git_takes_oci, before.takes_validation), (false, false), "{version}");
        assert_eq!(before.unfit, [] as [Unfit; 0], "{version}");
        let absent: &[&str] = if version == "2.6" { &["externalartifacts.source.toolkit.fluxcd.io"] } else { &[] };
        assert_eq!(before.absent, absent, "{version}");

        // As `kubectl get crd -o json` gives them, between others.
        let mut items = crds.clone();
        items.insert(1, json!({"kind": "CustomResourceDefinition", "metadata": {"name": "others.example.com"}}));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let mut larder = command(home.path());
        let file = home.path().join("installed.json");
        std::fs::write(&file, list.to_string()).expect("write");
        larder.args(["crds", "-o", "json", "--patch"]).arg(&file);
        let widened: Value = serde_json::from_slice(&stdout_of(larder)).expect("JSON");
        let widened = widened["items"].as_array().expect("items");
        assert_eq!(widened.len(), crds.len(), "{version}");
        for (before, after) in crds.iter().zip(widened) {
            let name = before["metadata"]["name"].as_str().expect("name");
            assert_eq!(difference(&facts(before), &facts(after)), widening(name), "{version} {name}");
        }
        let after = examine(widened);
        assert_eq!((after.git_takes_oci, after.takes_validation, after.unfit), (true, true, vec![]), "{version}");
    }
}

#[test]
fn yaml_and_json_say_the_same_and_either_is_read() {
    let home = home();
    let printed = run_json(home.path(), ["crds", "-o", "json"]);
    let yaml = run(home.path(), ["crds"]);
    assert!(yaml.status.success());
    let yaml = String::from_utf8(yaml.stdout).expect("text");
    let documents = larder::apply::yaml_text::read_all(&yaml).expect("YAML");
    assert_eq!(json!(documents), printed["items"]);

    // Larder's own are wide enough: they come back as they went in, through the standard input.
    let mut larder = command(home.path());
    larder.args(["crds", "--patch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = larder.spawn().expect("larder");
    child.stdin.take().expect("piped").write_all(yaml.as_bytes()).expect("write");
    let output = child.wait_with_output().expect("output");
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).expect("text"), yaml);
}

#[test]
fn says_what_it_cannot_widen() {
    let home = home();
    let file = home.path().join("crds");
    let table = [
        ("a: [", "is neither YAML nor JSON: line "),
        (
            "kind: ConfigMap\nmetadata: {name: a}\n",
            "has none of Flux's CRDs: ocirepositories.source.toolkit.fluxcd.io, ",
        ),
        (
            "kind: CustomResourceDefinition\nmetadata: {name: helmcharts.source.toolkit.fluxcd.io}\n",
            "the CRD helmcharts.source.toolkit.fluxcd.io has no version v1: update Flux to 2.6 or later",
        ),
    ];
    for (text, message) in table {
        std::fs::write(&file, text).expect("write");
        let output = run(home.path(), ["crds".as_ref(), "--patch".as_ref(), file.as_os_str()]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{text}: {error}");
        assert!(error.contains(message), "{text}: {error}");
    }
}

/// Writes the facts of the CRDs in the folder `FLUX_CRDS` (`*.yaml`, as in `config/crd/bases` of Flux's repositories)
/// to `tests/data/flux-crds/$FLUX_VERSION`.
#[test]
#[ignore = "writes the facts anew: FLUX_CRDS=FOLDER FLUX_VERSION=2.9 cargo test --test it -- --ignored crds::refresh"]
fn refresh() {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let target = folder().join(variable("FLUX_VERSION"));
    std::fs::create_dir_all(&target).expect("folder");
    for entry in std::fs::read_dir(variable("FLUX_CRDS")).expect("FLUX_CRDS") {
        let path = entry.expect("entry").path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a file");
        for crd in larder::apply::yaml_text::read_all(&text).expect("YAML") {
            let name = crd["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if Definition::named(&name).is_some() {
                std::fs::write(target.join(format!("{name}.txt")), facts(&crd)).expect("write");
            }
        }
    }
}
