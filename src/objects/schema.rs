//! Holds a spec against its kind's schema, as an API server would: types, required fields, patterns, enumerations.
//!
//! The schemas are the CRDs' ([`crd`]). Of what they use this is understood: `type`, `properties`,
//! `additionalProperties`, `items`, `required`, `enum`, `pattern`, `minLength`, `maxLength`, `default`. Rules in CEL
//! are an API server's alone.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{LazyLock, Mutex, PoisonError},
};

use regex::Regex;
use schemars::JsonSchema;
use serde_json::{Map, Value};

use super::{
    Kind,
    crd::{
        self,
        structural::{UNREAD, structural},
    },
};

/// The part of `metadata` that is read.
#[derive(JsonSchema)]
#[schemars(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct MetadataSchema {
    name: String,
    namespace: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

static METADATA: LazyLock<Value> = LazyLock::new(structural::<MetadataSchema>);
static SPECS: LazyLock<[Value; 5]> = LazyLock::new(|| Kind::ALL.map(crd::spec_schema));

/// The schema of a kind's spec.
pub fn spec_schema(kind: Kind) -> &'static Value {
    &SPECS[kind as usize]
}

/// What was found in a value: `problems` make it unusable, `unknown` and `unread` name fields of no effect.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// `spec.interval: required`.
    pub problems: Vec<String>,
    /// `spec.intervall`: no kind of Flux's has them.
    pub unknown: Vec<String>,
    /// `spec.recurseSubmodules`: Flux reads them, Larder does not.
    pub unread: Vec<String>,
}

/// Holds `metadata` against what Kubernetes wants of it. Unknown fields of it are nobody's business here.
pub fn check_metadata(metadata: &Value) -> Vec<String> {
    let mut findings = Findings::default();
    check(&METADATA, metadata, "metadata", &mut findings);
    findings.problems
}

/// Holds a spec against its kind's schema.
pub fn check_spec(kind: Kind, spec: &Value) -> Findings {
    let mut findings = Findings::default();
    check(spec_schema(kind), spec, "spec", &mut findings);
    findings
}

/// The spec with the CRD's defaults in it, as an API server shows it.
pub fn with_defaults(kind: Kind, spec: &Value) -> Value {
    let mut spec = spec.clone();
    fill(spec_schema(kind), &mut spec);
    spec
}

/// Takes every `null` out of the objects in a value: an API server does the same before it applies defaults.
pub fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

fn fill(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, field) in properties(schema) {
                if let Some(value) = map.get_mut(name) {
                    fill(field, value);
                } else if let Some(default) = field.get("default") {
                    map.insert(name.clone(), default.clone());
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| fill(schema, item));
            }
        }
        _ => {}
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

fn check(schema: &Value, value: &Value, path: &str, findings: &mut Findings) {
    let Some(wanted) = schema.get("type").and_then(Value::as_str) else { return };
    if !has_type(value, wanted) {
        let wanted = match wanted {
            "object" => "a mapping",
            "array" => "a list",
            "boolean" => "true or false",
            "string" => "a string",
            "integer" => "a whole number",
            _ => "something else",
        };
        let help = match value {
            Value::Bool(_) | Value::Number(_) if wanted == "a string" => "; put it in quotes",
            _ => "",
        };
        findings.problems.push(format!("{path}: must be {wanted}, is {}{help}", type_name(value)));
        return;
    }
    match value {
        Value::Object(map) => check_object(schema, map, path, findings),
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                check(schema.get("items").unwrap_or(&Value::Null), item, &format!("{path}[{i}]"), findings);
            }
        }
        Value::String(text) => check_string(schema, text, path, findings),
        _ => {}
    }
}

fn check_object(schema: &Value, map: &Map<String, Value>, path: &str, findings: &mut Findings) {
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        // An API server fills in defaults before it looks.
        if !map.contains_key(name) && schema["properties"][name].get("default").is_none() {
            findings.problems.push(format!("{path}.{name}: required"));
        }
    }
    for (name, value) in map {
        let path = || format!("{path}.{}", name.chars().filter(|c| !c.is_control()).take(100).collect::<String>());
        if let Some(field) = schema.get("properties").and_then(|p| p.get(name)) {
            if field.get(UNREAD).is_some() {
                findings.unread.push(path());
            }
            check(field, value, &path(), findings);
        } else if let Some(any) = schema.get("additionalProperties") {
            check(any, value, &path(), findings);
        } else {
            findings.unknown.push(path());
        }
    }
}

/// Whether a text matches; each pattern is compiled once.
fn matches(pattern: &str, text: &str) -> bool {
    static COMPILED: LazyLock<Mutex<HashMap<String, Option<Regex>>>> = LazyLock::new(Mutex::default);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if !compiled.contains_key(pattern) {
        compiled.insert(pattern.to_string(), Regex::new(pattern).ok());
    }
    compiled.get(pattern).and_then(Option::as_ref).is_some_and(|p| p.is_match(text))
}

fn check_string(schema: &Value, text: &str, path: &str, findings: &mut Findings) {
    // URLs are the one place in a spec where a password may stand by mistake.
    let shown =
        if text.contains("://") { String::new() } else { format!("{:?} ", text.chars().take(80).collect::<String>()) };
    let characters = text.chars().count() as u64;
    let bound = |name| schema.get(name).and_then(Value::as_u64);
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.iter().any(|a| a.as_str() == Some(text))
    {
        let allowed: Vec<_> = allowed.iter().filter_map(Value::as_str).collect();
        findings.problems.push(format!("{path}: {shown}is none of {}", allowed.join(", ")));
    }
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
        // Every pattern is a constant of ours; one that does not compile would not be known to be met.
        && !matches(pattern, text)
    {
        findings.problems.push(format!("{path}: {shown}does not match {pattern}"));
    }
    if bound("minLength").is_some_and(|least| characters < least) {
        findings.problems.push(format!("{path}: must not be empty"));
    }
    if let Some(most) = bound("maxLength").filter(|most| characters > *most) {
        findings.problems.push(format!("{path}: has {characters} characters, at most {most} are allowed"));
    }
}

/// Why a text is no DNS-1123 label (63 characters; what a namespace is) or subdomain (253; what most names are).
pub fn check_dns(text: &str, subdomain: bool) -> Result<(), String> {
    let label = |l: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        !l.is_empty()
            && l.bytes().all(|b| inner(b) || b == b'-')
            && l.bytes().next().is_some_and(inner)
            && l.bytes().next_back().is_some_and(inner)
    };
    let (most, good) = if subdomain {
        // Five characters less than Kubernetes has: `<name>.json` must be a file's name.
        (250, text.split('.').all(label))
    } else {
        (63, label(text))
    };
    if good && text.len() <= most {
        return Ok(());
    }
    let dots = if subdomain { ", '.'" } else { "" };
    Err(format!(
        "{:?} must be at most {most} of a-z, 0-9, '-'{dots}, and begin and end with a letter or digit",
        text.chars().take(80).collect::<String>()
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::OciRepositorySpec;

    #[test]
    fn finds_what_an_api_server_would() {
        let table: &[(Kind, Value, &[&str])] = &[
            (Kind::OCIRepository, json!({"url": "oci://h/r", "interval": "1m"}), &[]),
            (Kind::OCIRepository, json!({}), &["spec.interval: required", "spec.url: required"]),
            (Kind::OCIRepository, json!([]), &["spec: must be a mapping, is a list"]),
            (
                Kind::OCIRepository,
                json!({"url": "https://u:hunter2@h/r", "interval": "5"}),
                &[
                    r#"spec.interval: "5" does not match ^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"#,
                    "spec.url: does not match ^oci://.*$",
                ],
            ),
            (
                Kind::OCIRepository,
                json!({"url": "oci://h/r", "interval": "1h", "timeout": "1h", "ref": {"tag": 1.0}, "insecure": "yes",
                    "layerSelector": {"operation": "unpack"}, "provider": "ibm", "verify": {"provider": "gpg"}}),
                &[
                    "spec.insecure: must be true or false, is a string",
                    r#"spec.layerSelector.operation: "unpack" is none of extract, copy"#,
                    r#"spec.provider: "ibm" is none of generic, aws, azure, gcp"#,
                    "spec.ref.tag: must be a string, is a number; put it in quotes",
                    r#"spec.timeout: "1h" does not match ^([0-9]+(\.[0-9]+)?(ms|s|m))+$"#,
                    r#"spec.verify.provider: "gpg" is none of cosign, notation"#,
                ],
            ),
            (Kind::GitRepository, json!({"url": "oci://h/r", "interval": "1m"}), &[]),
            (Kind::GitRepository, json!({"url": "ssh://h/r", "interval": "1m"}), &[]),
            (
                Kind::GitRepository,
                json!({"url": "file:///etc", "interval": "1m"}),
                &["spec.url: does not match ^(http|https|ssh|oci)://.*$"],
            ),
            (Kind::HelmRepository, json!({"url": "oci://h/r", "type": "oci"}), &[]),
            (
                Kind::HelmRepository,
                json!({"url": "oci://h/r", "type": "OCI"}),
                &[r#"spec.type: "OCI" is none of default, oci"#],
            ),
            (
                Kind::HelmChart,
                json!({"chart": "a", "interval": "1m", "sourceRef": {"kind": "HelmRepository"}, "reconcileStrategy": "x"}),
                &[r#"spec.reconcileStrategy: "x" is none of ChartVersion, Revision"#, "spec.sourceRef.name: required"],
            ),
            (
                Kind::Kustomization,
                json!({"interval": "1m", "validation": "strict", "deletionPolicy": "Keep", "targetNamespace": "",
                    "sourceRef": {"kind": "GitRepository", "name": "a"}, "patches": [{"patch": "x", "target": 3}],
                    "healthChecks": "no", "commonMetadata": {"labels": {"a": true}}}),
                &[
                    "spec.prune: required",
                    "spec.commonMetadata.labels.a: must be a string, is a boolean; put it in quotes",
                    r#"spec.deletionPolicy: "Keep" is none of MirrorPrune, Delete, WaitForTermination, Orphan"#,
                    "spec.healthChecks: must be a list, is a string",
                    "spec.patches[0].target: must be a mapping, is a number",
                    "spec.targetNamespace: must not be empty",
                    r#"spec.validation: "strict" is none of none, client, server"#,
                ],
            ),
        ];
        for (kind, spec, problems) in table {
            let findings = check_spec(*kind, spec);
            assert_eq!(findings.problems, *problems, "{kind} {spec}");
            assert_eq!(findings.unknown, [] as [&str; 0], "{kind} {spec}");
        }
    }

    #[test]
    fn names_unknown_fields_at_any_depth() {
        let spec = json!({"url": "oci://h/r", "interval": "1m", "urll": 1, "ref": {"Tag": "x"},
            "verify": {"matchOIDCIdentity": [{"issuer": "a", "subject": "b", "extra": 1}]}});
        let findings = check_spec(Kind::OCIRepository, &spec);
        assert_eq!(findings.problems, [] as [&str; 0]);
        assert_eq!(findings.unknown, ["spec.ref.Tag", "spec.urll", "spec.verify.matchOIDCIdentity[0].extra"]);
        let spec = json!({"url": "oci://h/r", "interval": "1m", "recurseSubmodules": true, "include": [{"repo": 1}]});
        let findings = check_spec(Kind::GitRepository, &spec);
        assert_eq!(findings.unread, ["spec.include", "spec.recurseSubmodules"]);
        assert_eq!(findings.unknown, ["spec.include[0].repo"]);
        assert_eq!(findings.problems, ["spec.include[0].repository: required"]);
    }

    #[test]
    fn fills_in_the_defaults_of_the_crds_and_no_others() {
        let table = [
            (
                Kind::OCIRepository,
                json!({"url": "oci://h/r", "interval": "1m", "verify": {}, "x": 1}),
                json!({"url": "oci://h/r", "interval": "1m", "timeout": "60s", "provider": "generic",
                    "verify": {"provider": "cosign"}, "x": 1}),
            ),
            (Kind::GitRepository, json!({"timeout": "5s"}), json!({"timeout": "5s"})),
            (Kind::HelmRepository, json!({"type": "oci"}), json!({"type": "oci", "provider": "generic"})),
            (
                Kind::HelmChart,
                json!({"chart": "a"}),
                json!({"chart": "a", "version": "*", "reconcileStrategy": "ChartVersion"}),
            ),
            (Kind::Kustomization, json!({"prune": true}), json!({"prune": true, "force": false})),
        ];
        for (kind, spec, expected) in table {
            assert_eq!(with_defaults(kind, &spec), expected, "{kind}");
        }
    }

    #[test]
    fn every_type_that_passes_its_schema_deserializes() {
        let spec = json!({"url": "oci://h/r", "interval": "1m", "ref": {}, "layerSelector": {}, "verify": {}});
        assert_eq!(check_spec(Kind::OCIRepository, &spec), Findings::default());
        assert!(serde_json::from_value::<OciRepositorySpec>(spec).is_ok());
    }

    #[test]
    fn names_become_paths_only_if_they_are_dns_names() {
        for (text, label, subdomain) in [
            ("a", true, true),
            ("my-app-oci", true, true),
            ("a.b", false, true),
            (&"a".repeat(63), true, true),
            (&"a".repeat(64), false, true),
            (&"a".repeat(251), false, false),
            ("", false, false),
            (".", false, false),
            ("..", false, false),
            ("../x", false, false),
            ("a/b", false, false),
            ("-a", false, false),
            ("a-", false, false),
            ("a..b", false, false),
            ("A", false, false),
            ("a\0", false, false),
            ("é", false, false),
        ] {
            assert_eq!((check_dns(text, false).is_ok(), check_dns(text, true).is_ok()), (label, subdomain), "{text:?}");
        }
    }

    #[test]
    fn metadata_is_checked_too() {
        assert_eq!(
            check_metadata(&json!({"labels": {"a": 1}, "other": []})),
            ["metadata.name: required", "metadata.labels.a: must be a string, is a number; put it in quotes",]
        );
    }
}
