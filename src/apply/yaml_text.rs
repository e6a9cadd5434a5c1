//! One YAML document as a JSON value, and back: for values files, and for what commands print.

use serde_json::Value;

use super::{
    emit,
    yaml::{self, Budget},
};

/// Reads a text of at most one document; an empty one is null. Aliases and nesting are bounded.
///
/// # Errors
/// What is wrong and where, for a person.
pub fn read(text: &str) -> Result<Value, String> {
    let mut documents = yaml::documents(text, &mut Budget::default()).map_err(|e| e.to_string())?;
    match documents.len() {
        0 => Ok(Value::Null),
        1 => Ok(documents.remove(0).1),
        n => Err(format!("has {n} documents where one is expected")),
    }
}

/// Reads all documents of a text; empty ones are null. Aliases and nesting are bounded.
///
/// # Errors
/// What is wrong and where, for a person.
pub fn read_all(text: &str) -> Result<Vec<Value>, String> {
    let documents = yaml::documents(text, &mut Budget::default()).map_err(|e| e.to_string())?;
    Ok(documents.into_iter().map(|(_, value)| value).collect())
}

/// Writes a value as a document that every YAML reader takes for the same.
pub fn write(value: &Value) -> String {
    emit::documents([value])
}

/// Writes values as documents, `---` between them.
pub fn write_all(values: &[Value]) -> String {
    emit::documents(values)
}
