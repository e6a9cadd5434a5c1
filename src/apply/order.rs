//! The order in which objects are applied: Flux's, from fluxcd/pkg `ssa/sort.go` and `ApplyAllStaged`.
//!
//! Three stages (definitions, classes, the rest), in each the known kinds first, then the others by group and kind,
//! webhooks last; equal kinds by namespace and name.

use super::object::Id;

/// Kinds that come first, in this order.
const FIRST: [&str; 23] = [
    "CustomResourceDefinition",
    "Namespace",
    "ClusterRole",
    "ClusterClass",
    "RuntimeClass",
    "PriorityClass",
    "StorageClass",
    "VolumeSnapshotClass",
    "IngressClass",
    "GatewayClass",
    "ClusterRoleBinding",
    "ResourceQuota",
    "ServiceAccount",
    "Role",
    "RoleBinding",
    "ConfigMap",
    "Secret",
    "Service",
    "LimitRange",
    "Deployment",
    "StatefulSet",
    "CronJob",
    "PodDisruptionBudget",
];

/// Kinds that come last, in this order.
const LAST: [&str; 2] = ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"];

/// What objects are sorted by.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key<'a>(u8, Place, &'a str, &'a str, &'a str, &'a str);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    First(usize),
    Any,
    Last(usize),
}

/// The key of the object that `id` names.
pub fn key(id: &Id) -> Key<'_> {
    let place = match (FIRST.iter().position(|k| *k == id.kind), LAST.iter().position(|k| *k == id.kind)) {
        (Some(nth), _) => Place::First(nth),
        (None, Some(nth)) => Place::Last(nth),
        (None, None) => Place::Any,
    };
    Key(stage(id), place, &id.group, &id.kind, &id.namespace, &id.name)
}

/// The stage in which an object is applied: definitions, namespaces and cluster roles, then classes, then the rest.
pub fn stage(id: &Id) -> u8 {
    let is = |group: &str, kind: &str| id.group == group && id.kind.eq_ignore_ascii_case(kind);
    if is("apiextensions.k8s.io", "CustomResourceDefinition")
        || (is("", "Namespace") && id.version == "v1")
        || is("rbac.authorization.k8s.io", "ClusterRole")
    {
        0
    } else if id.kind.ends_with("Class") {
        1
    } else {
        2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_in_stages_then_kinds_then_names() {
        let expected = [
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", "z"),
            ("v1", "Namespace", "", "a"),
            ("v1", "Namespace", "", "b"),
            ("rbac.authorization.k8s.io/v1", "ClusterRole", "", "a"),
            ("storage.k8s.io/v1", "StorageClass", "", "a"),
            ("networking.k8s.io/v1", "IngressClass", "", "a"),
            ("example.org/v1", "MyClass", "", "a"),
            ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "", "a"),
            ("v1", "ServiceAccount", "a", "b"),
            ("v1", "ServiceAccount", "b", "a"),
            ("v1", "ConfigMap", "a", "a"),
            ("v1", "Secret", "a", "a"),
            ("v1", "Service", "a", "a"),
            ("serving.knative.dev/v1", "Service", "a", "a"),
            ("apps/v1", "Deployment", "a", "a"),
            ("v1", "Pod", "a", "a"),
            ("apps/v1", "DaemonSet", "a", "a"),
            ("networking.k8s.io/v1", "Ingress", "a", "a"),
            ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", "", "a"),
            ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", "", "a"),
        ]
        .map(|(api, kind, namespace, name)| Id::new(api, kind, namespace, name));
        let mut sorted = expected.clone();
        sorted.reverse();
        sorted.sort_by(|a, b| key(a).cmp(&key(b)));
        assert_eq!(sorted, expected);
    }
}
