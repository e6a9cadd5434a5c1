//! What a patch makes of an object.

use serde_json::{Value, json};

/// JSON merge patch (RFC 7386).
pub fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let map = target.as_object_mut().expect("made one above");
    for (key, value) in patch {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// JSON patch (RFC 6902): add, replace, remove and test.
pub fn steps(object: &mut Value, patch: &Value) -> Result<(), String> {
    for step in patch.as_array().ok_or("a JSON patch is a list")? {
        let path = step["path"].as_str().ok_or("a step without a path")?;
        let (parent, key) = path.rsplit_once('/').ok_or("a path that does not start with /")?;
        let key = key.replace("~1", "/").replace("~0", "~");
        let operation = step["op"].as_str().unwrap_or_default();
        if operation == "test" {
            if object.pointer(path).unwrap_or(&Value::Null) != &step["value"] {
                return Err(format!("testing value {path} failed"));
            }
            continue;
        }
        let parent = object.pointer_mut(parent).ok_or_else(|| format!("{path}: its parent is not there"))?;
        match (operation, parent) {
            ("add", Value::Object(map)) => drop(map.insert(key, step["value"].clone())),
            ("replace", Value::Object(map)) if map.contains_key(&key) => drop(map.insert(key, step["value"].clone())),
            ("remove", Value::Object(map)) if map.contains_key(&key) => drop(map.remove(&key)),
            ("add", Value::Array(list)) if key == "-" => list.push(step["value"].clone()),
            (_, Value::Array(list)) => {
                let index = key.parse().ok().filter(|index| *index < list.len() + usize::from(operation == "add"));
                let index = index.ok_or_else(|| format!("{path}: no such place"))?;
                match operation {
                    "add" => list.insert(index, step["value"].clone()),
                    "replace" => list[index] = step["value"].clone(),
                    "remove" => drop(list.remove(index)),
                    other => return Err(format!("{other} is not played here")),
                }
            }
            (other, _) => return Err(format!("{other} {path}: not there")),
        }
    }
    Ok(())
}
