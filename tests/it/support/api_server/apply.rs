//! Who owns which field, and what an apply makes of an object.
//!
//! Fields are paths of keys; a list is one field. `metadata.managedFields` of the kept object is the only record.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::patch;

type Path = Vec<String>;
type Fields = BTreeSet<Path>;

/// Who owns fields: the manager, whether by applying, and through which subresource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    pub manager: String,
    pub applies: bool,
    pub subresource: String,
}

/// A field that another owns and has set to something else.
#[derive(Debug, PartialEq, Eq)]
pub struct Conflict {
    pub manager: String,
    pub field: String,
}

/// Metadata that nobody owns.
const UNOWNED: [&str; 9] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
];

/// The fields of an object that can be owned.
fn fields(object: &Value) -> Fields {
    let mut out = Fields::new();
    for (key, value) in object.as_object().into_iter().flatten() {
        match key.as_str() {
            "apiVersion" | "kind" => {}
            "metadata" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    if !UNOWNED.contains(&name.as_str()) {
                        collect(value, vec![key.clone(), name.clone()], &mut out);
                    }
                }
            }
            _ => collect(value, vec![key.clone()], &mut out),
        }
    }
    out
}

fn collect(value: &Value, path: Path, out: &mut Fields) {
    match value.as_object().filter(|map| !map.is_empty()) {
        None => drop(out.insert(path)),
        Some(map) => {
            for (key, value) in map {
                collect(value, [path.as_slice(), std::slice::from_ref(key)].concat(), out);
            }
        }
    }
}

fn to_v1(fields: &Fields) -> Value {
    let mut root = Map::new();
    for path in fields {
        let mut at = &mut root;
        for key in path {
            let entry = at.entry(format!("f:{key}")).or_insert_with(|| json!({}));
            at = entry.as_object_mut().expect("only objects are put here");
        }
    }
    Value::Object(root)
}

fn from_v1(value: &Value, path: Path, out: &mut Fields) {
    let inner: Vec<(&str, &Value)> = value
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.strip_prefix("f:")?, value)))
        .collect();
    if inner.is_empty() && !path.is_empty() {
        out.insert(path);
        return;
    }
    for (key, value) in inner {
        from_v1(value, [path.as_slice(), &[key.to_owned()]].concat(), out);
    }
}

fn owners(object: &Value) -> BTreeMap<Owner, Fields> {
    let mut out = BTreeMap::new();
    for entry in object["metadata"]["managedFields"].as_array().into_iter().flatten() {
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let owner = Owner {
            manager: text("manager"),
            applies: entry["operation"] == "Apply",
            subresource: text("subresource"),
        };
        let mut fields = Fields::new();
        from_v1(&entry["fieldsV1"], Vec::new(), &mut fields);
        out.insert(owner, fields);
    }
    out
}

/// Writes the record; an owner whose fields are as they were keeps its time.
fn write_owners(object: &mut Value, owners: &BTreeMap<Owner, Fields>, before: &Value, now: &str) {
    let version = object["apiVersion"].clone();
    let old: Vec<Value> = before["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let entries: Vec<Value> = owners
        .iter()
        .filter(|(_, fields)| !fields.is_empty())
        .map(|(owner, fields)| {
            let mut entry = json!({ "manager": owner.manager, "apiVersion": version, "fieldsType": "FieldsV1",
                "operation": if owner.applies { "Apply" } else { "Update" }, "fieldsV1": to_v1(fields), "time": now });
            if !owner.subresource.is_empty() {
                entry["subresource"] = json!(owner.subresource);
            }
            let same = |o: &&Value| {
                ["manager", "operation", "fieldsV1", "subresource"].iter().all(|key| o.get(*key) == entry.get(*key))
            };
            old.iter().find(same).cloned().unwrap_or(entry)
        })
        .collect();
    let metadata = object["metadata"].as_object_mut().expect("an object has metadata");
    if entries.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), Value::Array(entries));
    }
}

fn at<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, key| value.get(key))
}

/// Whether one path is the other or leads to it.
fn meets(a: &[String], b: &[String]) -> bool {
    a.iter().zip(b).all(|(a, b)| a == b)
}

/// Whether setting `mine` to what `config` has there sets `theirs` too. An empty map takes nothing of what is in it.
fn takes(mine: &[String], theirs: &[String], config: &Value) -> bool {
    mine == theirs || theirs.starts_with(mine) && !at(config, mine).is_some_and(Value::is_object)
}

/// What `owner` applying `config` makes of `before` (null where there is nothing yet).
pub fn apply(before: &Value, config: &Value, owner: &Owner, force: bool, now: &str) -> Result<Value, Vec<Conflict>> {
    let mut owned = owners(before);
    let wanted = fields(config);
    let mut conflicts = Vec::new();
    for (other, theirs) in owned.iter_mut().filter(|(other, _)| *other != owner) {
        let lost: Vec<Path> = theirs
            .iter()
            .filter(|path| wanted.iter().any(|mine| takes(mine, path, config) && at(config, mine) != at(before, mine)))
            .cloned()
            .collect();
        for path in lost {
            if !force {
                conflicts.push(Conflict { manager: other.manager.clone(), field: format!(".{}", path.join(".")) });
            }
            theirs.remove(&path);
        }
    }
    if !conflicts.is_empty() {
        return Err(conflicts);
    }
    let mut after = if before.is_null() { json!({}) } else { before.clone() };
    let mut config = config.clone();
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| key == "name" || key == "namespace" || !UNOWNED.contains(&key.as_str()));
    }
    patch::merge(&mut after, &config);
    let no_longer: Vec<Path> =
        owned.get(owner).into_iter().flatten().filter(|p| !wanted.contains(*p)).cloned().collect();
    owned.insert(owner.clone(), wanted);
    for path in no_longer {
        if !owned.values().flatten().any(|other| other.starts_with(&path)) {
            remove(&mut after, &path);
        }
    }
    write_owners(&mut after, &owned, before, now);
    Ok(after)
}

/// Removes a field and the maps that it leaves empty.
fn remove(object: &mut Value, path: &[String]) {
    let (Some(map), Some((key, rest))) = (object.as_object_mut(), path.split_first()) else { return };
    if rest.is_empty() {
        map.remove(key);
        return;
    }
    if let Some(inner) = map.get_mut(key) {
        remove(inner, rest);
        if inner.as_object().is_some_and(Map::is_empty) && key != "metadata" {
            map.remove(key);
        }
    }
}

/// Notes that `owner` has changed `before` (null where there was nothing) into `after` without applying. Owners that
/// `after` itself names otherwise than `before` did, stay as named.
pub fn changed(before: &Value, after: &mut Value, owner: &Owner, now: &str) {
    let told = after["metadata"].get("managedFields").cloned();
    if told.is_some() && told.as_ref() != before["metadata"].get("managedFields") {
        // The one who clears owners sends a single empty entry.
        let kept: Vec<Value> = told
            .iter()
            .flat_map(|t| t.as_array())
            .flatten()
            .filter(|entry| entry["manager"].is_string())
            .cloned()
            .collect();
        after["metadata"]["managedFields"] = Value::Array(kept);
        if after["metadata"]["managedFields"].as_array().is_some_and(Vec::is_empty) {
            after["metadata"].as_object_mut().expect("indexed above").remove("managedFields");
        }
        return;
    }
    let mut owned = owners(before);
    let there = fields(after);
    let new: Fields = there.iter().filter(|path| at(after, path) != at(before, path)).cloned().collect();
    for theirs in owned.values_mut() {
        theirs.retain(|path| there.iter().any(|p| meets(p, path)) && !new.iter().any(|p| path.starts_with(p)));
    }
    owned.entry(owner.clone()).or_default().extend(new);
    write_owners(after, &owned, before, now);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(manager: &str) -> Owner {
        Owner { manager: manager.to_owned(), applies: true, subresource: String::new() }
    }

    fn object(spec: Value) -> Value {
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": spec })
    }

    #[test]
    fn what_is_no_longer_applied_goes_unless_another_owns_it() {
        let one = apply(&Value::Null, &object(json!({ "a": "1", "b": "2" })), &by("x"), false, "t1").unwrap();
        let two = apply(&one, &object(json!({ "b": "2", "c": "3" })), &by("y"), false, "t2").unwrap();
        assert_eq!(two["data"], json!({ "a": "1", "b": "2", "c": "3" }));
        let three = apply(&two, &object(json!({})), &by("x"), false, "t3").unwrap();
        assert_eq!(three["data"], json!({ "b": "2", "c": "3" }), "b is y's too");
        assert_eq!(owners(&three).len(), 2, "x has the map itself: {three}");
    }

    #[test]
    fn another_owners_value_is_a_conflict_unless_forced() {
        let one = apply(&Value::Null, &object(json!({ "a": "1" })), &by("x"), false, "t1").unwrap();
        let conflict = Conflict { manager: "x".to_owned(), field: ".data.a".to_owned() };
        assert_eq!(apply(&one, &object(json!({ "a": "2" })), &by("y"), false, "t2").unwrap_err(), [conflict]);
        let forced = apply(&one, &object(json!({ "a": "2" })), &by("y"), true, "t2").unwrap();
        assert_eq!(forced["data"]["a"], "2");
        let names: Vec<&Value> =
            forced["metadata"]["managedFields"].as_array().unwrap().iter().map(|entry| &entry["manager"]).collect();
        assert_eq!(names, ["y"], "x has lost all it had");
        apply(&one, &object(json!({ "a": "1" })), &by("y"), false, "t2").expect("the same value is shared");
    }

    #[test]
    fn an_unchanged_apply_changes_nothing_at_all() {
        let one = apply(&Value::Null, &object(json!({ "a": "1" })), &by("x"), false, "t1").unwrap();
        assert_eq!(apply(&one, &object(json!({ "a": "1" })), &by("x"), false, "t2").unwrap(), one);
    }

    #[test]
    fn an_edit_takes_what_it_changes() {
        let one = apply(&Value::Null, &object(json!({ "a": "1", "b": "2" })), &by("x"), false, "t1").unwrap();
        let mut two = one.clone();
        two["data"]["a"] = json!("9");
        let editor = Owner { manager: "kubectl-edit".to_owned(), applies: false, subresource: String::new() };
        changed(&one, &mut two, &editor, "t2");
        let owned = owners(&two);
        assert_eq!(owned[&by("x")], Fields::from([vec!["data".to_owned(), "b".to_owned()]]));
        assert_eq!(owned[&editor], Fields::from([vec!["data".to_owned(), "a".to_owned()]]));
    }
}
