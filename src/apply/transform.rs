//! What a generated kustomization does to the objects of a plain folder: `namespace` and `images`, as kustomize's
//! transformers do it (`api/filters/namespace`, `api/filters/nameref`, `api/filters/imagetag`), field by field.

use std::collections::{HashMap, HashSet};

use regex::Regex;
use serde_json::{Map, Value};

use super::{
    object::{self, Id, is_cluster_scoped},
    render::RenderError,
};
use crate::objects::kustomization::Image;

const RBAC: &str = "rbac.authorization.k8s.io";

/// Puts every object that can be into `namespace`, renames Namespaces to it, and sets the namespace where another
/// object is named: services of APIs and webhooks, subjects of role bindings.
pub fn set_namespace(objects: &mut [Value], namespace: &str) -> Result<(), RenderError> {
    let before: Vec<Id> = objects.iter().map(Id::of).collect();
    for (value, id) in objects.iter_mut().zip(&before) {
        let Some(map) = value.as_object_mut() else { continue };
        if !is_cluster_scoped(id) {
            object::mapping(map, "metadata").insert("namespace".into(), namespace.into());
        }
        match id.kind.as_str() {
            "Namespace" if id.group.is_empty() && id.version == "v1" => {
                object::mapping(map, "metadata").insert("name".into(), namespace.into());
            }
            "APIService" if id.group == "apiregistration.k8s.io" => {
                let service = object::mapping(object::mapping(map, "spec"), "service");
                service.insert("namespace".into(), namespace.into());
            }
            "CustomResourceDefinition" if id.group == "apiextensions.k8s.io" => {
                let service = value.pointer_mut("/spec/conversion/webhook/clientConfig/service");
                if let Some(field) = service.and_then(|s| s.get_mut("namespace")) {
                    *field = namespace.into();
                }
            }
            "RoleBinding" | "ClusterRoleBinding" => {
                for subject in mappings(map.get_mut("subjects")) {
                    if subject.get("name").is_some_and(|name| name == "default") {
                        subject.insert("namespace".into(), namespace.into());
                    }
                }
            }
            _ => {}
        }
    }
    follow(objects, &before, namespace)
}

/// References with a name and a namespace follow the objects that moved. A scalar reference is by name alone, and no
/// name that can be referred to has changed.
fn follow(objects: &mut [Value], before: &[Id], namespace: &str) -> Result<(), RenderError> {
    let mut origins: HashSet<&str> = HashSet::new();
    // kustomize does not look at a target's group here, only at its version and kind.
    let mut targets: HashMap<(&str, &str), Vec<&str>> = HashMap::new();
    for id in before.iter().filter(|id| !is_cluster_scoped(id)) {
        origins.insert(id.effective_namespace());
        if id.version == "v1" {
            targets.entry((&id.kind, &id.name)).or_default().push(id.effective_namespace());
        }
    }
    for (value, id) in objects.iter_mut().zip(before) {
        let Some(map) = value.as_object_mut() else { continue };
        let (references, kind): (Vec<_>, _) = match (id.group.as_str(), id.kind.as_str()) {
            (RBAC, "RoleBinding" | "ClusterRoleBinding") => {
                (mappings(map.get_mut("subjects")).collect(), "ServiceAccount")
            }
            ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration") => {
                let configs = mappings(map.get_mut("webhooks")).filter_map(|webhook| webhook.get_mut("clientConfig"));
                (configs.filter_map(|config| config.get_mut("service")?.as_object_mut()).collect(), "Service")
            }
            _ => continue,
        };
        for reference in references {
            let Some(name) = reference.get("name") else {
                return Err(RenderError::Manifest {
                    place: id.to_string(),
                    why: format!("a reference to a {kind} has no name"),
                    hint: "add it",
                });
            };
            let from = reference.get("namespace").and_then(Value::as_str);
            let homes = name.as_str().and_then(|name| targets.get(&(kind, name)));
            let found = homes.is_some_and(|homes| match from {
                None => true,
                Some(from) if origins.contains(from) => homes.contains(&from),
                Some(from) => from == namespace,
            });
            if found {
                reference.insert("namespace".into(), namespace.into());
            }
        }
    }
    Ok(())
}

fn mappings(list: Option<&mut Value>) -> impl Iterator<Item = &mut Map<String, Value>> {
    list.and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

/// Replaces the images that `images` name, one after the other, in every object but CRDs.
pub fn set_images(objects: &mut [Value], images: &[Image]) {
    for image in images {
        // kustomize puts the name into a regular expression as it stands; one that is none matches nothing.
        let pattern =
            format!("^{}(:[a-zA-Z0-9_.{{}}-]*)?(@[a-zA-Z0-9]+([.+_-][a-zA-Z0-9]+)*:[a-zA-Z0-9_.{{}}-]*)?$", image.name);
        let Ok(pattern) = Regex::new(&pattern) else { continue };
        let replace = |value: &mut Value| {
            if let Some(old) = value.as_str().filter(|old| pattern.is_match(old)) {
                *value = Value::String(replaced(old, image));
            }
        };
        for object in objects.iter_mut().filter(|o| o.get("kind").is_none_or(|k| k != "CustomResourceDefinition")) {
            in_containers(object, &replace);
            for spec in ["/spec", "/spec/template/spec"] {
                let volumes = object.pointer_mut(spec).and_then(|spec| spec.get_mut("volumes"));
                for volume in mappings(volumes) {
                    if let Some(reference) = volume.get_mut("image").and_then(|image| image.get_mut("reference")) {
                        replace(reference);
                    }
                }
            }
        }
    }
}

/// The `image` of every element of every list called `containers` or `initContainers`, wherever it is.
fn in_containers(value: &mut Value, replace: &impl Fn(&mut Value)) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                in_containers(value, replace);
                if matches!(name.as_str(), "containers" | "initContainers") {
                    for container in mappings(Some(value)) {
                        if let Some(image) = container.get_mut("image") {
                            replace(image);
                        }
                    }
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| in_containers(item, replace)),
        _ => {}
    }
}

/// Tag and digest both select a version, so either takes the place of both.
fn replaced(old: &str, image: &Image) -> String {
    let given = |field: &Option<String>| field.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
    let (name, mut tag, mut digest) = split(old);
    if image.new_tag.as_deref().is_some_and(|t| !t.is_empty()) || image.digest.as_deref().is_some_and(|d| !d.is_empty())
    {
        tag = given(&image.new_tag);
        digest = given(&image.digest);
    }
    let mut new = given(&image.new_name).unwrap_or(name);
    if let Some(tag) = tag {
        new.push(':');
        new.push_str(&tag);
    }
    if let Some(digest) = digest {
        new.push('@');
        new.push_str(&digest);
    }
    new
}

/// Name, tag and digest. A colon before the first slash belongs to a port.
fn split(image: &str) -> (String, Option<String>, Option<String>) {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.to_owned())),
        None => (image, None),
    };
    let path = rest.find('/').unwrap_or(0);
    match rest[path..].find(':') {
        Some(colon) => (rest[..path + colon].to_owned(), Some(rest[path + colon + 1..].to_owned()), digest),
        None => (rest.to_owned(), None, digest),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn image(name: &str, new_name: &str, new_tag: &str, digest: &str) -> Image {
        let text = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
        Image { name: name.into(), new_name: text(new_name), new_tag: text(new_tag), digest: text(digest) }
    }

    #[test]
    fn an_image_is_replaced_by_name_and_tag_and_digest_replace_each_other() {
        for (old, change, new) in [
            ("nginx", image("nginx", "", "1", ""), "nginx:1"),
            ("nginx:1.25.3", image("nginx", "", "2", ""), "nginx:2"),
            ("nginx:1@sha256:aa", image("nginx", "", "2", ""), "nginx:2"),
            ("nginx:1", image("nginx", "", "", "sha256:bb"), "nginx@sha256:bb"),
            ("nginx:1", image("nginx", "", "2", "sha256:bb"), "nginx:2@sha256:bb"),
            ("nginx:1@sha256:aa", image("nginx", "x.io:5000/n", "", ""), "x.io:5000/n:1@sha256:aa"),
            ("x.io:5000/n", image("x.io:5000/n", "", "2", ""), "x.io:5000/n:2"),
            ("x.io:5000/n:1", image("x.io:5000/n", "nginx", "", ""), "nginx:1"),
            ("my-nginx:1", image("nginx", "", "2", ""), "my-nginx:1"),
            ("nginx-x:1", image("nginx", "", "2", ""), "nginx-x:1"),
            ("ghcrXio/a:1", image("ghcr.io/a", "", "2", ""), "ghcrXio/a:2"),
            ("nginx:1", image("[", "", "2", ""), "nginx:1"),
        ] {
            let mut objects = [json!({"spec": {"containers": [{"image": old}, {"name": "no image"}, "odd"]}})];
            set_images(&mut objects, &[change]);
            assert_eq!(objects[0]["spec"]["containers"][0]["image"], new, "{old}");
        }
    }

    #[test]
    fn images_are_found_wherever_containers_are_but_not_in_crds() {
        let object = |kind: &str| {
            json!({"kind": kind, "deep": [{"initContainers": [{"image": "a:1"}]}], "image": "a:1",
                   "spec": {"volumes": [{"image": {"reference": "a:1"}}], "template": {"spec": {"containers": [{"image": "a"}]}}}})
        };
        let mut objects = [object("Thing"), object("CustomResourceDefinition")];
        set_images(&mut objects, &[image("a", "b", "2", ""), image("b", "", "3", "")]);
        assert_eq!(objects[1], object("CustomResourceDefinition"));
        assert_eq!(
            objects[0],
            json!({"kind": "Thing", "deep": [{"initContainers": [{"image": "b:3"}]}], "image": "a:1",
                   "spec": {"volumes": [{"image": {"reference": "b:3"}}], "template": {"spec": {"containers": [{"image": "b:3"}]}}}})
        );
    }

    #[test]
    fn a_namespace_goes_where_kustomize_puts_it() {
        let mut objects: Vec<Value> = serde_json::from_value(json!([
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sa", "namespace": "old"}},
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "old"}},
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "crb"},
             "subjects": [{"kind": "ServiceAccount", "name": "sa", "namespace": "old"},
                          {"kind": "ServiceAccount", "name": "sa", "namespace": "other"},
                          {"kind": "ServiceAccount", "name": "default", "namespace": "other"},
                          {"kind": "Group", "name": "sa"}]},
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook", "namespace": "old"}},
            {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
             "metadata": {"name": "w"}, "webhooks": [{"clientConfig": {"service": {"name": "hook", "namespace": "old"}}},
                                                      {"clientConfig": {"url": "https://a"}}]},
            {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.x"}},
            {"apiVersion": "example.org/v1", "kind": "Unknown", "metadata": {"name": "u"}}
        ]))
        .unwrap();
        set_namespace(&mut objects, "new").unwrap();
        assert_eq!(
            Value::Array(objects),
            json!([
                {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sa", "namespace": "new"}},
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "new"}},
                {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "crb"},
                 "subjects": [{"kind": "ServiceAccount", "name": "sa", "namespace": "new"},
                              {"kind": "ServiceAccount", "name": "sa", "namespace": "other"},
                              {"kind": "ServiceAccount", "name": "default", "namespace": "new"},
                              {"kind": "Group", "name": "sa", "namespace": "new"}]},
                {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hook", "namespace": "new"}},
                {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
                 "metadata": {"name": "w"}, "webhooks": [{"clientConfig": {"service": {"name": "hook", "namespace": "new"}}},
                                                          {"clientConfig": {"url": "https://a"}}]},
                {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.x"},
                 "spec": {"service": {"namespace": "new"}}},
                {"apiVersion": "example.org/v1", "kind": "Unknown", "metadata": {"name": "u", "namespace": "new"}}
            ])
        );
    }
}
