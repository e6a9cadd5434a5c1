//! From a Rust type to a structural schema, the form that CustomResourceDefinitions take: everything inlined, one type
//! a value, no `null`, no `anyOf`.
//!
//! What `schemars` derives also tells what serde does with an absent field; of that nothing stays. A CRD's own default
//! is written `x-default` on the field and becomes `default` here. Two marks of ours stay for [`schema`](crate::objects::schema)
//! to read and are taken out by [`published`]: [`FILE_ONLY`] and [`UNREAD`].

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value};

/// On a field that documents from a directory may have, and Flux's CRD has not.
pub const FILE_ONLY: &str = "x-larder-file-only";

/// On a field that Flux's CRD has and Larder does not read.
pub const UNREAD: &str = "x-larder-unread";

/// A type's structural schema, with our marks.
pub fn structural<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| {
        s.inline_subschemas = true;
        s.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    normalise(&mut schema);
    schema
}

fn normalise(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    map.remove("title");
    map.remove("default");
    if let Some(default) = map.remove("x-default") {
        map.insert("default".into(), default);
    }
    // An optional type: either `type: [object, "null"]` or `anyOf: [{…}, {type: "null"}]`.
    if let Some(Value::Array(types)) = map.get_mut("type") {
        types.retain(|t| t != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            map.insert("type".into(), one);
        }
    }
    if let Some(Value::Array(mut options)) = map.remove("anyOf") {
        options.retain(|option| option["type"] != "null");
        // A type that is really one of several has no structural schema; the comparison with Flux's would show it.
        if let [Value::Object(one)] = options.as_mut_slice() {
            for (key, value) in std::mem::take(one) {
                map.entry(key).or_insert(value);
            }
        }
    }
    if let Some(Value::String(text)) = map.get_mut("description") {
        *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    if let Some(Value::Array(required)) = map.get_mut("required") {
        required.sort_unstable_by(|a, b| a.as_str().cmp(&b.as_str()));
    }
    children(map).for_each(normalise);
}

fn children(map: &mut Map<String, Value>) -> impl Iterator<Item = &mut Value> {
    map.iter_mut().flat_map(|(key, value)| match (key.as_str(), value) {
        ("properties", Value::Object(fields)) => fields.values_mut().collect(),
        ("items" | "additionalProperties", value) => vec![value],
        _ => Vec::new(),
    })
}

/// Puts the fields of a schema into another one, each marked as [`UNREAD`].
pub fn add_unread(schema: &mut Value, unread: Value) {
    let Value::Object(mut unread) = unread else { return };
    let Some(Value::Object(fields)) = unread.remove("properties") else { return };
    for (name, mut field) in fields {
        field[UNREAD] = true.into();
        schema["properties"][name] = field;
    }
}

/// Leaves only some of a schema's fields.
pub fn only(schema: &mut Value, fields: &[&str]) {
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.retain(|name, _| fields.contains(&name.as_str()));
    }
    schema.as_object_mut().and_then(|map| map.remove("required"));
}

/// The schema as a CRD shows it: without the fields of documents from a directory, and without our marks.
pub fn published(mut schema: Value) -> Value {
    strip(&mut schema);
    schema
}

fn strip(schema: &mut Value) {
    let Value::Object(map) = schema else { return };
    map.remove(UNREAD);
    if let Some(Value::Object(fields)) = map.get_mut("properties") {
        fields.retain(|_, field| field.get(FILE_ONLY).is_none());
    }
    children(map).for_each(strip);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;

    /// An inner thing,
    /// on two lines.
    #[derive(Debug, Serialize, Deserialize, JsonSchema)]
    struct Inner {
        name: String,
    }

    #[derive(Debug, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "camelCase")]
    struct Outer {
        /// Text.
        some_text: Option<String>,
        inner: Option<Inner>,
        #[schemars(extend("x-default" = false))]
        #[serde(default)]
        flag: bool,
        #[serde(default)]
        plain: bool,
        #[schemars(extend("enum" = ["a", "b"]))]
        word: Option<String>,
        map: BTreeMap<String, Vec<Inner>>,
        #[schemars(extend("x-larder-file-only" = true))]
        here: Option<String>,
    }

    #[test]
    fn is_structural_whatever_serde_does_with_absent_fields() {
        let inner = json!({"type": "object", "description": "An inner thing, on two lines.", "required": ["name"],
            "properties": {"name": {"type": "string"}}});
        let schema = structural::<Outer>();
        assert_eq!(schema["properties"]["here"], json!({"type": "string", "x-larder-file-only": true}));
        assert_eq!(
            published(schema),
            json!({"type": "object", "required": ["map"], "properties": {
                "someText": {"type": "string", "description": "Text."},
                "inner": inner,
                "flag": {"type": "boolean", "default": false},
                "plain": {"type": "boolean"},
                "word": {"type": "string", "enum": ["a", "b"]},
                "map": {"type": "object", "additionalProperties": {"type": "array", "items": inner}},
            }})
        );
    }

    #[test]
    fn fields_are_added_and_left_out() {
        let mut schema = structural::<Inner>();
        add_unread(&mut schema, structural::<Outer>());
        only(&mut schema, &["name", "plain"]);
        assert_eq!(
            schema["properties"],
            json!({"name": {"type": "string"}, "plain": {"type": "boolean", "x-larder-unread": true}})
        );
        assert_eq!(published(schema)["properties"]["plain"], json!({"type": "boolean"}));
    }
}
