//! From a document to what it means: one of Flux's objects, a Secret, ServiceAccount or ConfigMap, or nothing of ours.
//!
//! Everything that an API server would refuse is refused here with the field's path; what Flux finds only when it
//! reconciles (a tag in the URL, a digest that is none) is left to the reconciler.

use std::{collections::BTreeMap, sync::Arc};

use base64::Engine as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{ConfigMap, Key, Kind, Metadata, SecretObject, ServiceAccount, Spec, schema};
use crate::secret::Secret;

/// Most problems of one document that are told.
const MAX_PROBLEMS: usize = 8;

/// The kinds that objects refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DependencyKind {
    /// `v1` Secret.
    Secret,
    /// `v1` ServiceAccount.
    ServiceAccount,
    /// `v1` ConfigMap.
    ConfigMap,
}

/// What a document is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Identity {
    /// One of Flux's objects.
    Object(Key),
    /// Something that objects refer to: kind, namespace, name.
    Dependency(DependencyKind, Arc<str>, Arc<str>),
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Object(key) => key.fmt(f),
            Self::Dependency(kind, namespace, name) => write!(f, "{kind:?}/{namespace}/{name}"),
        }
    }
}

/// What a document says.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// One of Flux's objects.
    Object {
        /// Name, namespace, labels, annotations; the rest is the backend's.
        metadata: Metadata,
        /// Typed.
        spec: Box<Spec>,
        /// As written, without nulls.
        raw_spec: Value,
    },
    /// A Secret.
    Secret(Arc<SecretObject>),
    /// A ServiceAccount.
    ServiceAccount(ServiceAccount),
    /// A ConfigMap.
    ConfigMap(Arc<ConfigMap>),
}

/// One thing that a document declares.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly every value is of the largest variant")]
pub enum Declared {
    /// This.
    Item {
        /// What it is about.
        identity: Identity,
        /// What it says.
        content: Content,
        /// What nobody reads, or what an API server would not have taken.
        warnings: Vec<String>,
    },
    /// Something that cannot be used.
    Faulty {
        /// What it is about, if that much is clear.
        identity: Option<Identity>,
        /// Why.
        error: String,
    },
    /// A kind that is not Larder's: `apiVersion`, `kind`.
    Foreign(String, String),
}

/// What a document declares: one thing, or all items of a `List`, each with its number from 1.
pub fn read(document: &Value) -> Vec<(Option<usize>, Declared)> {
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default();
    match document.get("items") {
        Some(Value::Array(items)) if kind.ends_with("List") => {
            // Typed lists may leave the kind to the list.
            let of = kind.strip_suffix("List").filter(|k| !k.is_empty());
            let version = document.get("apiVersion").and_then(Value::as_str).filter(|_| of.is_some());
            items.iter().enumerate().map(|(i, item)| (Some(i + 1), read_one(item, of, version))).collect()
        }
        _ => vec![(None, read_one(document, None, None))],
    }
}

fn faulty(identity: Option<Identity>, error: impl Into<String>) -> Declared {
    Declared::Faulty { identity, error: error.into() }
}

fn problems(list: &[String]) -> String {
    let mut text = list.iter().take(MAX_PROBLEMS).cloned().collect::<Vec<_>>().join("; ");
    if list.len() > MAX_PROBLEMS {
        text += &format!("; and {} more", list.len() - MAX_PROBLEMS);
    }
    text
}

/// Flux's kinds of the groups of ours that Larder does not reconcile.
const NOT_OURS: &[&str] = &["Bucket", "ExternalArtifact"];

/// A foreign word, fit for a message.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

fn read_one(document: &Value, list_kind: Option<&str>, list_version: Option<&str>) -> Declared {
    let Value::Object(map) = document else {
        return faulty(None, "not a Kubernetes object: a mapping with apiVersion, kind and metadata is wanted");
    };
    let text = |field: &str| map.get(field).and_then(Value::as_str).filter(|t| !t.is_empty());
    let Some(kind) = text("kind").or(list_kind) else {
        return faulty(None, "kind: required, as in `kind: OCIRepository`");
    };
    let Some(version) = text("apiVersion").or(list_version) else {
        return faulty(None, "apiVersion: required, as in `apiVersion: source.toolkit.fluxcd.io/v1`");
    };
    let dependency = match (version, kind) {
        ("v1", "Secret") => Some(DependencyKind::Secret),
        ("v1", "ServiceAccount") => Some(DependencyKind::ServiceAccount),
        ("v1", "ConfigMap") => Some(DependencyKind::ConfigMap),
        _ => None,
    };
    let ours = Kind::ALL.into_iter().find(|k| k.name() == kind);
    // The file that `kustomize` reads has a Kustomization of its own.
    let foreign = version.starts_with("kustomize.config.k8s.io/");
    let group = version.split_once('/').map(|(group, _)| group).unwrap_or_default();
    if ours.is_none() && Kind::ALL.iter().any(|k| k.group() == group) && !NOT_OURS.contains(&kind) {
        let known = Kind::ALL.iter().filter(|k| k.group() == group).map(|k| k.name());
        let known: Vec<_> = known.collect();
        return faulty(None, format!("kind: {group} has no {:?}; it has {}", short(kind), known.join(", ")));
    }
    if dependency.is_none() && (ours.is_none() || foreign) {
        return Declared::Foreign(short(version), short(kind));
    }

    let empty = Value::Object(Default::default());
    let metadata = map.get("metadata").cloned().map_or_else(|| empty.clone(), schema::without_nulls);
    let wrong = schema::check_metadata(&metadata);
    if !wrong.is_empty() {
        return faulty(None, problems(&wrong));
    }
    let field = |name: &str| metadata.get(name).and_then(Value::as_str).unwrap_or_default();
    let (name, namespace) = (field("name"), Some(field("namespace")).filter(|n| !n.is_empty()).unwrap_or("default"));
    if let Err(error) = schema::check_dns(namespace, false) {
        return faulty(None, format!("metadata.namespace: {error}"));
    }
    if let Err(error) = schema::check_dns(name, true) {
        return faulty(None, format!("metadata.name: {error}"));
    }

    if let Some(kind) = dependency {
        let identity = Identity::Dependency(kind, namespace.into(), name.into());
        let mut warnings = Vec::new();
        let content = match kind {
            DependencyKind::Secret => read_secret(document, &mut warnings),
            DependencyKind::ServiceAccount => read_service_account(document, &metadata),
            DependencyKind::ConfigMap => read_config_map(document),
        };
        return match content {
            Ok(content) => Declared::Item { identity, content, warnings },
            Err(error) => faulty(Some(identity), error),
        };
    }

    let Some(kind) = ours else { return Declared::Foreign(short(version), short(kind)) };
    let identity = Identity::Object(Key::new(kind, namespace, name));
    let good = version
        .split_once('/')
        .is_some_and(|(group, v)| group == kind.group() && matches!(v, "v1" | "v1beta1" | "v1beta2"));
    if !good {
        let error = format!("apiVersion: a {kind} is of {}/v1, not of {:?}", kind.group(), short(version));
        return faulty(Some(identity), error);
    }
    let raw_spec = map.get("spec").cloned().map_or(empty, schema::without_nulls);
    let mut findings = schema::check_spec(kind, &raw_spec);
    // A URL of another form becomes the object's own condition (URLInvalid), which people look at sooner than at a list.
    findings
        .problems
        .retain(|p| kind != Kind::OCIRepository || !(p.starts_with("spec.url: ") && p.contains(" match ")));
    if !findings.problems.is_empty() {
        return faulty(Some(identity), problems(&findings.problems));
    }
    let spec = match typed_spec(kind, &raw_spec) {
        Ok(spec) => Box::new(spec),
        Err(error) => return faulty(Some(identity), error),
    };
    let metadata = Metadata {
        name: name.into(),
        namespace: namespace.into(),
        labels: strings(&metadata, "labels"),
        annotations: strings(&metadata, "annotations"),
        ..Metadata::default()
    };
    // Fields of an object that is left alone are others' business.
    let unknown = findings.unknown.iter().map(|path| format!("{path}: unknown, not used"));
    let unread = findings.unread.iter().map(|path| format!("{path}: Larder does not use it"));
    let warnings = unknown.chain(unread).filter(|_| spec.is_ours()).collect();
    Declared::Item { identity, content: Content::Object { metadata, spec, raw_spec }, warnings }
}

/// The pairs of a mapping in `metadata`, which has met its schema.
fn strings(metadata: &Value, field: &str) -> BTreeMap<String, String> {
    let pairs = metadata.get(field).and_then(Value::as_object).into_iter().flatten();
    pairs.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}

/// A spec as its kind's type.
pub fn typed_spec(kind: Kind, raw: &Value) -> Result<Spec, String> {
    fn parse<T: DeserializeOwned>(raw: &Value) -> Result<T, String> {
        // The schema has been met, so what is left is a number too large, and such: nothing of it is repeated.
        T::deserialize(raw).map_err(|_| "spec: has a value that is out of range".into())
    }
    let spec = match kind {
        Kind::OCIRepository => Spec::OciRepository(parse(raw)?),
        Kind::GitRepository => Spec::GitRepository(parse(raw)?),
        Kind::HelmRepository => {
            let spec: super::HelmRepositorySpec = parse(raw)?;
            if spec.kind.as_deref() == Some("oci") && !spec.url.starts_with("oci://") {
                return Err("spec.url: must begin with oci:// where spec.type is oci".into());
            }
            Spec::HelmRepository(spec)
        }
        Kind::HelmChart => Spec::HelmChart(parse(raw)?),
        Kind::Kustomization => Spec::Kustomization(Box::new(parse(raw)?)),
    };
    Ok(spec)
}

/// A mapping of strings; the error names the key, never the value.
fn string_map<'a>(document: &'a Value, field: &str) -> Result<Vec<(&'a str, &'a str)>, String> {
    match document.get(field) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Object(map)) => map
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| match v.as_str() {
                Some(text) => Ok((k.as_str(), text)),
                None => Err(format!("{field}.{}: must be a string; put it in quotes", short(k))),
            })
            .collect(),
        Some(_) => Err(format!("{field}: must be a mapping of strings")),
    }
}

/// Base64 as an API server takes it: the standard alphabet, padded, line ends ignored; and text at last.
fn decode(value: &str) -> Option<String> {
    let packed: Vec<u8> = value.bytes().filter(|b| !matches!(b, b'\n' | b'\r')).collect();
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(packed).ok()?).ok()
}

fn read_secret(document: &Value, warnings: &mut Vec<String>) -> Result<Content, String> {
    let mut data = BTreeMap::new();
    for (key, value) in string_map(document, "data")? {
        let text = decode(value).unwrap_or_else(|| {
            warnings.push(format!(
                "data.{}: is not base64 of a text, so it is taken as it is; an API server would refuse it: use stringData",
                short(key)
            ));
            value.to_owned()
        });
        data.insert(key.to_owned(), Secret::new(text));
    }
    for (key, value) in string_map(document, "stringData")? {
        data.insert(key.to_owned(), Secret::new(value));
    }
    // An API server makes every Secret without a type Opaque. In a file what it has may say what it is.
    let unnamed = if data.contains_key(".dockerconfigjson") { "kubernetes.io/dockerconfigjson" } else { "Opaque" };
    let kind = document.get("type").and_then(Value::as_str).unwrap_or(unnamed).to_owned();
    Ok(Content::Secret(Arc::new(SecretObject { kind, data })))
}

fn read_service_account(document: &Value, metadata: &Value) -> Result<Content, String> {
    let image_pull_secrets = match document.get("imagePullSecrets") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.get("name").and_then(Value::as_str).map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or("imagePullSecrets: each must be a mapping with a name")?,
        Some(_) => return Err("imagePullSecrets: must be a list".into()),
    };
    let annotations = strings(metadata, "annotations");
    Ok(Content::ServiceAccount(ServiceAccount { image_pull_secrets, annotations }))
}

fn read_config_map(document: &Value) -> Result<Content, String> {
    let data = string_map(document, "data")?.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    Ok(Content::ConfigMap(Arc::new(ConfigMap { data })))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(document: Value) -> Declared {
        let mut read = read(&document);
        assert_eq!(read.len(), 1);
        read.remove(0).1
    }

    fn object(version: &str, kind: &str, metadata: Value, spec: Value) -> Value {
        json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})
    }

    #[test]
    fn tells_what_is_wrong_and_what_it_concerns() {
        let spec = || json!({"url": "oci://h/r", "interval": "1m"});
        let key = || Some(Identity::Object(Key::new(Kind::OCIRepository, "default", "a")));
        let v1 = "source.toolkit.fluxcd.io/v1";
        let table = [
            (json!(3), None, "not a Kubernetes object: a mapping with apiVersion, kind and metadata is wanted"),
            (json!({"apiVersion": v1}), None, "kind: required, as in `kind: OCIRepository`"),
            (
                json!({"kind": "OCIRepository"}),
                None,
                "apiVersion: required, as in `apiVersion: source.toolkit.fluxcd.io/v1`",
            ),
            (object(v1, "OCIRepository", json!({}), spec()), None, "metadata.name: required"),
            (
                object(v1, "OCIRepository", json!({"name": "../a"}), spec()),
                None,
                "metadata.name: \"../a\" must be at most 250 of a-z, 0-9, '-', '.', and begin and end with a letter or digit",
            ),
            (
                object(v1, "OCIRepository", json!({"name": "a", "namespace": "a.b"}), spec()),
                None,
                "metadata.namespace: \"a.b\" must be at most 63 of a-z, 0-9, '-', and begin and end with a letter or digit",
            ),
            (
                object(v1, "OCIRepository", json!({"name": "a"}), json!({"url": "oci://h/r"})),
                key(),
                "spec.interval: required",
            ),
            (
                object("kustomize.toolkit.fluxcd.io/v1", "OCIRepository", json!({"name": "a"}), spec()),
                key(),
                "apiVersion: a OCIRepository is of source.toolkit.fluxcd.io/v1, not of \"kustomize.toolkit.fluxcd.io/v1\"",
            ),
            (
                object("source.toolkit.fluxcd.io/v2", "OCIRepository", json!({"name": "a"}), spec()),
                key(),
                "apiVersion: a OCIRepository is of source.toolkit.fluxcd.io/v1, not of \"source.toolkit.fluxcd.io/v2\"",
            ),
            (
                object(v1, "HelmRepository", json!({"name": "a"}), json!({"url": "https://h/r", "type": "oci"})),
                Some(Identity::Object(Key::new(Kind::HelmRepository, "default", "a"))),
                "spec.url: must begin with oci:// where spec.type is oci",
            ),
            (
                object(v1, "OCIRepositry", json!({"name": "a"}), spec()),
                None,
                "kind: source.toolkit.fluxcd.io has no \"OCIRepositry\"; it has OCIRepository, GitRepository, HelmRepository, HelmChart",
            ),
        ];
        for (document, identity, error) in table {
            assert_eq!(one(document.clone()), Declared::Faulty { identity, error: error.into() }, "{document}");
        }
    }

    #[test]
    fn accepts_older_versions_and_passes_over_foreign_kinds() {
        for version in ["v1", "v1beta1", "v1beta2"] {
            let document = object(
                &format!("source.toolkit.fluxcd.io/{version}"),
                "OCIRepository",
                json!({"name": "a", "namespace": null, "labels": null}),
                json!({"url": "oci://h/r", "interval": "1m", "ref": null}),
            );
            let Declared::Item { identity, content, warnings } = one(document) else { panic!("{version}") };
            assert_eq!(identity, Identity::Object(Key::new(Kind::OCIRepository, "default", "a")));
            assert_eq!(warnings, [] as [&str; 0]);
            let Content::Object { raw_spec, .. } = content else { panic!() };
            assert_eq!(raw_spec, json!({"url": "oci://h/r", "interval": "1m"}));
        }
        for (version, kind) in [
            ("source.toolkit.fluxcd.io/v1", "Bucket"),
            ("helm.toolkit.fluxcd.io/v2", "HelmRelease"),
            ("apps/v1", "Deployment"),
            ("v1", "Namespace"),
            ("kustomize.config.k8s.io/v1beta1", "Kustomization"),
        ] {
            assert_eq!(
                one(json!({"apiVersion": version, "kind": kind})),
                Declared::Foreign(version.into(), kind.into())
            );
        }
    }

    #[test]
    fn unfolds_lists() {
        let account = |name: &str| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [account("a"), 3, account("b")]});
        let read: Vec<_> = read(&list).into_iter().map(|(i, d)| (i, matches!(d, Declared::Item { .. }))).collect();
        assert_eq!(read, [(Some(1), true), (Some(2), false), (Some(3), true)]);
        let typed = json!({"apiVersion": "v1", "kind": "ConfigMapList", "items": [{"metadata": {"name": "a"}}]});
        assert!(matches!(super::read(&typed)[0].1, Declared::Item { .. }));
        let empty = json!({"apiVersion": "v1", "kind": "List", "items": []});
        assert_eq!(super::read(&empty), []);
    }

    #[test]
    fn takes_secrets_in_base64_and_in_plain_text() {
        let document = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "immutable": true,
            "type": "kubernetes.io/dockerconfigjson",
            "data": {"a": "aHVudGVy\nMg==", ".dockerconfigjson": "{\"auths\": {}}\n", "b": "old", "c": null},
            "stringData": {"b": "new"}});
        let Declared::Item { content: Content::Secret(secret), warnings, .. } = one(document) else { panic!() };
        let data: Vec<_> = secret.data.iter().map(|(k, v)| (k.as_str(), v.expose())).collect();
        assert_eq!(data, [(".dockerconfigjson", "{\"auths\": {}}\n"), ("a", "hunter2"), ("b", "new")]);
        assert_eq!(secret.kind, "kubernetes.io/dockerconfigjson");
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].starts_with("data..dockerconfigjson: is not base64"), "{warnings:?}");

        let wrong = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"pin": 123456}});
        let Declared::Faulty { identity: Some(_), error } = one(wrong) else { panic!() };
        assert_eq!(error, "data.pin: must be a string; put it in quotes");
    }

    #[test]
    fn warns_of_unknown_fields_and_keeps_them() {
        let document = object(
            "source.toolkit.fluxcd.io/v1",
            "GitRepository",
            json!({"name": "a"}),
            json!({"url": "oci://h/r", "interval": "1m", "recurseSubmodules": true}),
        );
        let Declared::Item { content: Content::Object { raw_spec, .. }, warnings, .. } = one(document) else {
            panic!()
        };
        assert_eq!(warnings, ["spec.recurseSubmodules: Larder does not use it"]);
        assert_eq!(raw_spec["recurseSubmodules"], true);
        // What is left alone is not commented upon.
        let document = object(
            "source.toolkit.fluxcd.io/v1",
            "GitRepository",
            json!({"name": "a"}),
            json!({"url": "https://h/r", "interval": "1m", "recurseSubmodules": true}),
        );
        let Declared::Item { warnings, .. } = one(document) else { panic!() };
        assert_eq!(warnings, [] as [&str; 0]);
    }
}
