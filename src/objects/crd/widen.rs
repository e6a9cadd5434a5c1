//! Flux's own CRDs, widened: a GitRepository's URL may begin with `oci://`, a Kustomization has `validation`. Nothing
//! is taken away, nothing else changed.
//!
//! Two forms. [`component`] is for Git, where what Flux applies is kept: a file for kustomize, with JSON patches of the
//! CRDs as Flux has had them since 2.0 (v1 is the first version of the list; where it is not, a patch fails by its
//! `test`). [`widen`] changes a CRD that was read from a cluster, of whatever form, and puts in every field that Larder
//! writes besides.

use serde_json::{Value, json};

use super::{
    Definition, VERSION,
    installed::{counts, missing, pattern_takes_oci},
};
use crate::objects::source::GIT_URL;

/// Why a CRD cannot be widened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WidenError {
    /// It has no v1.
    #[error("the CRD {crd} has no version {VERSION}: update Flux to 2.6 or later")]
    NoVersion {
        /// The CRD's name.
        crd: String,
    },
    /// A part of the schema is not what a schema is.
    #[error("the CRD {crd} has no field to put {field} into: is it Flux's?")]
    Foreign {
        /// The CRD's name.
        crd: String,
        /// What should be there.
        field: String,
    },
}

/// Widens a CRD that is one of `definition`'s. What was changed, in words; nothing where it was wide enough.
///
/// # Errors
/// If it is not Flux's, or too old.
pub fn widen(definition: &Definition, crd: &mut Value) -> Result<Vec<String>, WidenError> {
    let name = definition.name();
    let has_v1 = |crd: &Value| crd["spec"]["versions"].as_array().into_iter().flatten().any(|v| v["name"] == VERSION);
    if !has_v1(crd) {
        return Err(WidenError::NoVersion { crd: name });
    }
    let ours = definition.schema();
    let mut wanted = definition.written();
    if definition.kind == "Kustomization" {
        wanted["properties"]["spec"] = json!({"properties": {"validation": validation(&ours)}});
    }
    let mut changes: Vec<String> = missing(crd, &wanted).into_iter().map(|field| format!("has {field}")).collect();
    let preserves = crd["spec"]["preserveUnknownFields"] == true;
    for version in crd["spec"]["versions"].as_array_mut().into_iter().flatten().filter(|version| counts(version)) {
        let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") else {
            return Err(WidenError::Foreign { crd: name, field: "openAPIV3Schema".into() });
        };
        if definition.kind == "GitRepository" && !pattern_takes_oci(schema) {
            let pattern = &mut schema["properties"]["spec"]["properties"]["url"]["pattern"];
            *pattern = wider(pattern.as_str().unwrap_or_default()).into();
            changes.push("takes a spec.url that begins with oci://".into());
        }
        if !preserves {
            put(schema, &wanted, &ours).map_err(|field| WidenError::Foreign { crd: name.clone(), field })?;
        }
    }
    changes.dedup();
    Ok(changes)
}

/// A pattern that takes what the given one takes, and `oci://`.
fn wider(pattern: &str) -> String {
    if pattern == "^(http|https|ssh)://.*$" { GIT_URL.into() } else { format!("({pattern})|(^oci://.*$)") }
}

/// Puts each wanted field that a schema lacks into it, whole.
fn put(schema: &mut Value, wanted: &Value, ours: &Value) -> Result<(), String> {
    if schema["x-kubernetes-preserve-unknown-fields"] == true || *schema == true {
        return Ok(());
    }
    for (name, field) in wanted["properties"].as_object().into_iter().flatten() {
        let full = &ours["properties"][name];
        let object = schema.as_object_mut().ok_or_else(|| name.clone())?;
        let properties = object.entry("properties").or_insert_with(|| json!({}));
        match properties.as_object_mut().ok_or_else(|| name.clone())?.entry(name) {
            serde_json::map::Entry::Occupied(mut there) => put(there.get_mut(), field, full)?,
            serde_json::map::Entry::Vacant(place) => {
                // Whoever wrote such an object before did so without the field.
                let mut full = full.clone();
                full.as_object_mut().map(|map| map.remove("default"));
                place.insert(full);
            }
        }
    }
    if let Some(field) = wanted.get("additionalProperties") {
        let object = schema.as_object_mut().ok_or("additionalProperties")?;
        let inner = object.entry("additionalProperties").or_insert_with(|| ours["additionalProperties"].clone());
        put(inner, field, &ours["additionalProperties"])?;
    }
    if let (Some(field), Some(inner)) = (wanted.get("items"), schema.get_mut("items")) {
        put(inner, field, &ours["items"])?;
    }
    Ok(())
}

fn validation(kustomization: &Value) -> Value {
    kustomization["properties"]["spec"]["properties"]["validation"].clone()
}

/// A kustomize component that widens Flux's CRDs where they are kept as files.
pub fn component() -> Value {
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let first = json!({"op": "test", "path": "/spec/versions/0/name", "value": VERSION});
    let patches = super::DEFINITIONS.iter().filter_map(|definition| {
        let change = match definition.kind {
            "GitRepository" => json!({"op": "replace", "path": format!("{spec}/url/pattern"), "value": GIT_URL}),
            "Kustomization" => {
                json!({"op": "add", "path": format!("{spec}/validation"), "value": validation(&definition.schema())})
            }
            _ => return None,
        };
        // Each line is a JSON object, so the text is YAML of a list.
        let patch = format!("- {first}\n- {change}\n");
        let target = json!({
            "group": "apiextensions.k8s.io",
            "version": "v1",
            "kind": "CustomResourceDefinition",
            "name": definition.name(),
        });
        Some(json!({"target": target, "patch": patch}))
    });
    json!({
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "patches": patches.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::crd::{DEFINITIONS, installed::examine};

    fn definition(kind: &str) -> &'static Definition {
        const { &DEFINITIONS }.iter().find(|d| d.kind == kind).unwrap()
    }

    fn spec(crd: &mut Value) -> &mut serde_json::Map<String, Value> {
        crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties")
            .unwrap()
            .as_object_mut()
            .unwrap()
    }

    #[test]
    fn changes_nothing_that_is_wide_enough() {
        for definition in &DEFINITIONS {
            let mut crd = definition.crd();
            assert_eq!(widen(definition, &mut crd).unwrap(), [] as [&str; 0]);
            assert_eq!(crd, definition.crd());
        }
    }

    #[test]
    fn gives_flux_crds_what_larders_have_and_nothing_else() {
        let (git, kustomization) = (definition("GitRepository"), definition("Kustomization"));
        let mut crd = git.crd();
        spec(&mut crd)["url"]["pattern"] = "^(http|https|ssh)://.*$".into();
        assert_eq!(widen(git, &mut crd).unwrap(), ["takes a spec.url that begins with oci://"]);
        assert_eq!(crd, git.crd());

        let mut crd = kustomization.crd();
        spec(&mut crd).remove("validation");
        assert_eq!(widen(kustomization, &mut crd).unwrap(), ["has spec.validation"]);
        assert_eq!(crd, kustomization.crd());

        // A field of another's is kept, a pattern of another's widened.
        let mut crd = git.crd();
        spec(&mut crd)["url"]["pattern"] = "^https://git[.]example[.]com/".into();
        spec(&mut crd).insert("theirs".into(), json!({"type": "string"}));
        let before = crd.clone();
        widen(git, &mut crd).unwrap();
        assert_eq!(spec(&mut crd)["url"]["pattern"], "(^https://git[.]example[.]com/)|(^oci://.*$)",);
        assert!(examine(std::slice::from_ref(&crd)).git_takes_oci);
        spec(&mut crd)["url"] = before
            .clone()
            .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/url")
            .unwrap()
            .clone();
        assert_eq!(crd, before);
    }

    #[test]
    fn puts_in_what_larder_writes_in_each_version_that_counts() {
        let definition = definition("HelmChart");
        let mut crd = definition.crd();
        for (below, key) in
            [("/properties", "url"), ("/properties/artifact/properties/metadata", "additionalProperties")]
        {
            let place = format!("/spec/versions/0/schema/openAPIV3Schema/properties/status{below}");
            crd.pointer_mut(&place).unwrap().as_object_mut().unwrap().remove(key);
        }
        assert_eq!(widen(definition, &mut crd).unwrap(), ["has status.artifact.metadata", "has status.url"]);
        assert_eq!(crd, definition.crd());
        assert_eq!(examine(&[crd]).unfit, []);
    }

    #[test]
    fn what_is_no_crd_of_flux_is_refused() {
        let definition = definition("OCIRepository");
        let crd = definition.name();
        let mut old = definition.crd();
        old["spec"]["versions"][0]["name"] = "v1beta2".into();
        assert_eq!(widen(definition, &mut old), Err(WidenError::NoVersion { crd: crd.clone() }));
        for nothing in [Value::Null, json!([]), json!({"spec": {"versions": 3}})] {
            assert_eq!(widen(definition, &mut nothing.clone()), Err(WidenError::NoVersion { crd: crd.clone() }));
        }
        for (schema, field) in [
            (json!(3), "openAPIV3Schema"),
            (json!({"openAPIV3Schema": []}), "status"),
            (json!({"openAPIV3Schema": {"properties": 3}}), "status"),
        ] {
            let mut odd = json!({"spec": {"versions": [{"name": "v1", "schema": schema}]}});
            let error = WidenError::Foreign { crd: crd.clone(), field: field.into() };
            assert_eq!(widen(definition, &mut odd), Err(error), "{odd}");
        }
    }
}
