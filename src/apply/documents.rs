//! The objects of a plain folder: what kustomize reads from the resources that Flux's generator lists.
//!
//! Every document must be an object with a kind and a name; one that is not is an error, as in Flux, because the
//! other choice, to leave it out, would delete from a cluster what a typing error hides. Lists are unfolded. The
//! same object twice is an error.

use std::{borrow::Cow, collections::HashSet, fs, path::Path};

use serde_json::Value;

use super::{
    object::{self, Id},
    render::RenderError,
    tree::{MAX_BYTES, Manifests},
    yaml::{self, Budget},
};

/// Reads the objects of all `manifests`, which lie below `folder`.
pub fn read(folder: &Path, manifests: &Manifests) -> Result<Vec<Value>, RenderError> {
    let mut budget = Budget::default();
    let mut left = MAX_BYTES;
    let mut objects = Vec::new();
    for path in &manifests.resources {
        let place = path.strip_prefix(folder).unwrap_or(path).display().to_string();
        let unreadable = |source| RenderError::Disk { path: path.clone(), source };
        let size = fs::metadata(path).map_err(unreadable)?.len();
        left = left.checked_sub(size).ok_or_else(|| RenderError::TooLarge {
            what: format!("the folder's manifests are larger than {} MiB together", MAX_BYTES >> 20),
        })?;
        let bytes = fs::read(path).map_err(unreadable)?;
        let text = String::from_utf8(bytes).map_err(|_| RenderError::Manifest {
            place: place.clone(),
            why: "it is not UTF-8".into(),
            hint: NOT_A_MANIFEST,
        })?;
        objects.extend(parse(&text, &place, &mut budget)?);
    }
    Ok(objects)
}

const NOT_A_MANIFEST: &str =
    "correct it or, if it is not meant for the cluster, keep it out by .sourceignore or a kustomization.yaml";

/// The objects of one file's text. `place` names the file in messages.
pub fn parse(text: &str, place: &str, budget: &mut Budget) -> Result<Vec<Value>, RenderError> {
    // kustomize takes Windows' line ends for line ends, also within text.
    let text = if text.contains("\r\n") { Cow::Owned(text.replace("\r\n", "\n")) } else { Cow::Borrowed(text) };
    let documents = yaml::documents(&text, budget).map_err(|source| RenderError::Yaml {
        place: place.to_owned(),
        source: Box::new(source),
        hint: NOT_A_MANIFEST,
    })?;
    let mut objects = Vec::new();
    for (line, document) in documents {
        unfold(document, &format!("{place}, line {line}"), &mut objects)?;
    }
    Ok(objects)
}

fn unfold(document: Value, place: &str, objects: &mut Vec<Value>) -> Result<(), RenderError> {
    let wrong =
        |why: &str| Err(RenderError::Manifest { place: place.to_owned(), why: why.to_owned(), hint: NOT_A_MANIFEST });
    let Value::Object(mut map) = document else {
        return wrong("it is not a Kubernetes object but a list or a single value");
    };
    if map.is_empty() {
        return Ok(());
    }
    let kind = map.get("kind").and_then(Value::as_str).unwrap_or_default();
    if kind.is_empty() {
        return wrong("it is not a Kubernetes object: it has no kind");
    }
    if kind.ends_with("List") {
        match map.remove("items") {
            Some(Value::Array(items)) => {
                for item in items {
                    unfold(item, place, objects)?;
                }
                return Ok(());
            }
            Some(Value::Null) => return Ok(()),
            Some(_) => return wrong("items of a list are not a list"),
            None => {}
        }
    }
    let mut object = Value::Object(map);
    annotations_to_text(&mut object);
    let id = Id::of(&object);
    if id.name.is_empty() {
        return wrong(&format!("{} has no metadata.name, or one that is not text", id.kind));
    }
    objects.push(object);
    Ok(())
}

/// What of annotations is not text by now is made text as kustomize does it: of a list's objects by their meaning, of what no text
/// can be an empty one.
fn annotations_to_text(object: &mut Value) {
    let annotations = object.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations"));
    for value in annotations.and_then(Value::as_object_mut).into_iter().flat_map(|map| map.values_mut()) {
        let text = match &*value {
            Value::String(_) => continue,
            Value::Array(_) | Value::Object(_) => String::new(),
            other => other.to_string(),
        };
        *value = text.into();
    }
}

/// An error if two objects are the same to kustomize.
pub fn refuse_duplicates(objects: &[Value]) -> Result<(), RenderError> {
    let mut seen = HashSet::new();
    for object in objects {
        let mut id = Id::of(object);
        let shown = id.clone();
        id.namespace = id.effective_namespace().to_owned();
        if !seen.insert(id) {
            return Err(RenderError::Duplicate { id: Box::new(shown) });
        }
    }
    Ok(())
}

/// Leaves out the objects that are meant for tools on the way, not for the cluster.
pub fn without_local(objects: &mut Vec<Value>) {
    objects.retain(|object| {
        object::annotation(object, "annotations", "config.kubernetes.io/local-config")
            .is_none_or(|value| value == "false")
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(text: &str) -> Result<Vec<String>, String> {
        let objects = parse(text, "f.yaml", &mut Budget::default()).map_err(|e| e.to_string())?;
        Ok(objects.iter().map(|o| Id::of(o).to_string()).collect())
    }

    #[test]
    fn unfolds_lists_and_skips_what_is_empty() {
        for (text, expected) in [
            ("", &[][..]),
            ("# only a comment\n", &[]),
            ("{}\n---\n~\n", &[]),
            ("kind: A\nmetadata: {name: a}\n---\nkind: B\nmetadata: {name: b, namespace: c}\n", &["A/a", "B/c/b"]),
            ("kind: List\nitems:\n- kind: A\n  metadata: {name: a}\n- kind: BList\n  items: []\n", &["A/a"]),
            ("kind: AList\nitems: null\n", &[]),
            ("kind: AccessList\nmetadata: {name: a}\n", &["AccessList/a"]),
            ("a: b\r\nkind: A\r\nmetadata:\r\n  name: a\r\n", &["A/a"]),
        ] {
            assert_eq!(names(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_an_object() {
        for (text, why) in [
            ("replicas: 1\n", "f.yaml, line 1: it is not a Kubernetes object: it has no kind"),
            ("- a\n", "f.yaml, line 1: it is not a Kubernetes object but"),
            ("kind: A\n", "f.yaml, line 1: A has no metadata.name"),
            ("kind: A\nmetadata: {name: 5}\n", "A has no metadata.name, or one that is not text"),
            ("kind: AList\nitems: {}\n", "items of a list are not a list"),
            ("kind: AList\nitems: [1]\n", "not a Kubernetes object"),
            ("a: [\n", "f.yaml"),
            ("{{ if .Values.a }}\na: b\n{{ end }}\n", "f.yaml"),
        ] {
            let error = names(text).unwrap_err();
            assert!(error.contains(why), "{error}");
            assert!(error.contains(".sourceignore"), "{error}");
        }
    }

    #[test]
    fn the_same_object_twice_is_an_error() {
        let object = |namespace: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": namespace}});
        assert!(refuse_duplicates(&[object(json!("x")), object(json!("y"))]).is_ok());
        assert!(refuse_duplicates(&[object(json!("default")), object(json!(null))]).is_err());
        let role = |namespace: &str| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "a", "namespace": namespace}});
        assert!(refuse_duplicates(&[role("x"), role("y")]).is_err());
    }
}
