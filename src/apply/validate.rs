//! What is checked on rendered objects, and what they must not be.

use std::collections::HashSet;

use serde_json::Value;

use super::{
    object::{self, Id},
    render::RenderError,
};

/// How strictly `spec.validation` wants objects to be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// They parse.
    None,
    /// Their apiVersion, kind and name are valid and there are no duplicates.
    Client,
    /// The same, and the API server would take all of them before the first is applied.
    Server,
    /// Where the spec says nothing: as [`Validation::Client`], and on a cluster, as Flux does, every stage has to pass the
    /// API server before the first object of it is applied.
    Staged,
}

impl Validation {
    /// From the spec.
    pub fn of(spec: Option<&str>) -> Result<Self, RenderError> {
        match spec {
            Some("none") => Ok(Self::None),
            None | Some("") => Ok(Self::Staged),
            Some("client") => Ok(Self::Client),
            Some("server") => Ok(Self::Server),
            Some(other) => Err(RenderError::UnknownValidation { value: other.chars().take(40).collect() }),
        }
    }
}

/// Whether `object` is encrypted by SOPS. Flux looks at Secrets only; any other object that was encrypted would be
/// applied with its ciphertext.
pub fn is_encrypted(object: &Value) -> bool {
    let disabled = object::annotation(object, "annotations", "kustomize.toolkit.fluxcd.io/decrypt")
        .is_some_and(|value| value.eq_ignore_ascii_case("disabled"));
    let encrypted = match object.get("sops") {
        None => false,
        Some(sops) => {
            let secret = object.get("kind").is_some_and(|k| k == "Secret");
            secret || sops.get("mac").is_some() || sops.get("encrypted_regex").is_some()
        }
    };
    encrypted && !disabled
}

/// Checks one object after the other, then that none is there twice.
pub fn check(objects: &[Value]) -> Result<(), RenderError> {
    let mut seen = HashSet::new();
    for object in objects {
        let id = Id::of(object);
        if let Some(why) = fault(&id) {
            return Err(RenderError::Invalid { id: Box::new(id), why });
        }
        if !seen.insert((id.group.clone(), id.kind.clone(), id.namespace.clone(), id.name.clone())) {
            return Err(RenderError::Invalid { id: Box::new(id), why: "it is there twice".into() });
        }
    }
    Ok(())
}

fn fault(id: &Id) -> Option<String> {
    if !id.group.is_empty() && !is_subdomain(&id.group) {
        return Some(format!("the group of apiVersion {:?} is not a DNS name", id.api_version()));
    }
    if !is_label(&id.version) {
        return Some(format!("the version of apiVersion {:?} is not a DNS label", id.api_version()));
    }
    let letters = id.kind.bytes().all(|b| b.is_ascii_alphanumeric());
    if !letters || !id.kind.starts_with(|c: char| c.is_ascii_alphabetic()) || id.kind.len() > 63 {
        return Some(format!("its kind {:?} is not a word of letters and digits", id.kind));
    }
    // RBAC, and OpenShift's own kinds after it, name objects freely, since a name there may stand for a user.
    let free = id.group == "rbac.authorization.k8s.io" || id.group.ends_with(".openshift.io");
    if free {
        if matches!(id.name.as_str(), "." | "..") || id.name.contains(['/', '%']) {
            return Some(format!("its name {:?} is . or .. or contains / or %", id.name));
        }
    } else if !is_subdomain(&id.name) {
        return Some(format!(
            "its name {:?} is not a DNS name (lower-case letters, digits, - and ., at most 253)",
            id.name
        ));
    }
    if !id.namespace.is_empty() && !is_label(&id.namespace) {
        return Some(format!("its namespace {:?} is not a DNS label", id.namespace));
    }
    None
}

/// RFC 1123, as Kubernetes checks it.
fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_subdomain(text: &str) -> bool {
    // In a subdomain Kubernetes bounds the whole, not the parts.
    let part = |part: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    (1..=253).contains(&text.len()) && text.split('.').all(part)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_checked_by_kind() {
        let rbac = "rbac.authorization.k8s.io/v1";
        for (api, kind, namespace, name, valid) in [
            ("v1", "ConfigMap", "default", "a.b-c1", true),
            ("v1", "ConfigMap", "", "A", false),
            ("v1", "ConfigMap", "", "a_b", false),
            ("v1", "ConfigMap", "", "-a", false),
            ("v1", "ConfigMap", "", "a..b", false),
            ("v1", "ConfigMap", "a.b", "a", false),
            ("v1", "ConfigMap", "", &"a".repeat(253), true),
            ("v1", "ConfigMap", "", &"a".repeat(254), false),
            (rbac, "ClusterRole", "", "system:a/b", false),
            (rbac, "ClusterRole", "", "system:A_b", true),
            (rbac, "ClusterRole", "", "..", false),
            ("Example.org/v1", "A", "", "a", false),
            ("example.org/V1", "A", "", "a", false),
            ("a/b/c", "A", "", "a", false),
            ("v1", "Config-Map", "", "a", false),
            ("v1", "1A", "", "a", false),
        ] {
            assert_eq!(fault(&Id::new(api, kind, namespace, name)).is_none(), valid, "{api} {kind} {name}");
        }
    }

    #[test]
    fn the_same_object_in_two_versions_is_there_twice() {
        let object = |api: &str| json!({"apiVersion": api, "kind": "Ingress", "metadata": {"name": "a"}});
        assert!(check(&[object("networking.k8s.io/v1"), object("extensions/v1beta1")]).is_ok());
        let error = check(&[object("networking.k8s.io/v1"), object("networking.k8s.io/v1beta1")]).unwrap_err();
        assert_eq!(error.reason(), "ValidationFailed");
        assert!(error.to_string().contains("Ingress/a"), "{error}");
    }

    #[test]
    fn an_object_with_the_mark_of_sops_is_encrypted() {
        for (object, encrypted) in [
            (json!({"kind": "Secret", "sops": {}}), true),
            (json!({"kind": "ConfigMap", "sops": {"mac": "ENC[…]"}}), true),
            (json!({"kind": "Thing", "sops": "a field of its own"}), false),
            (json!({"kind": "Secret", "data": {"sops": "x"}}), false),
            (
                json!({"kind": "Secret", "sops": {}, "metadata": {"annotations": {"kustomize.toolkit.fluxcd.io/decrypt": "Disabled"}}}),
                false,
            ),
        ] {
            assert_eq!(is_encrypted(&object), encrypted, "{object}");
        }
    }

    #[test]
    fn validation_has_three_words() {
        for (word, expected) in [
            (None, Validation::Staged),
            (Some(""), Validation::Staged),
            (Some("none"), Validation::None),
            (Some("client"), Validation::Client),
            (Some("server"), Validation::Server),
        ] {
            assert_eq!(Validation::of(word).unwrap(), expected);
        }
        let error = Validation::of(Some("strict")).unwrap_err();
        assert!(error.is_stalled() && error.reason() == "ValidationFailed", "{error}");
    }
}
