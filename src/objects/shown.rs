//! Objects as an API server would show them.

use serde_json::{Value, json};

use super::{Object, Spec, Status, schema};

/// An object as an API server would show it; a URL without the user and password that somebody put into it.
pub fn shown(object: &Object, status: &Status) -> Value {
    let kind = object.key.kind;
    let mut spec = schema::with_defaults(kind, &object.raw_spec);
    if let Some(Value::String(url)) = spec.get_mut("url") {
        *url = without_userinfo(url);
    }
    let mut item = json!({
        "apiVersion": format!("{}/v1", kind.group()),
        "kind": kind.name(),
        "metadata": object.metadata,
        "spec": spec,
    });
    // A HelmRepository of type oci is static: Flux gives it no status either.
    if object.is_ours() && !matches!(object.spec, Spec::HelmRepository(_)) {
        item["status"] = json!(status);
    }
    item
}

fn without_userinfo(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    let authority = rest.find('/').unwrap_or(rest.len());
    match rest[..authority].rfind('@') {
        Some(at) => format!("{scheme}://***{}", &rest[at..]),
        None => url.into(),
    }
}
