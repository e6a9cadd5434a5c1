//! The inventory of a Kustomization in Flux's format: what was applied, so that what is no longer wanted can be deleted.
//!
//! One entry an object, `<namespace>_<name>_<group>_<kind>` and the version. Names of RBAC objects may hold a colon, which
//! is written `__`.

use std::collections::HashSet;

use super::{object::Id, order};
use crate::objects::InventoryEntry;

/// The object that an entry names; `None` if it is not in the format.
pub fn id(entry: &InventoryEntry) -> Option<Id> {
    let (namespace, rest) = entry.id.split_once('_')?;
    let (rest, kind) = rest.rsplit_once('_')?;
    let (name, group) = rest.rsplit_once('_')?;
    if name.is_empty() || kind.is_empty() || entry.v.is_empty() {
        return None;
    }
    Some(Id {
        group: group.into(),
        version: entry.v.clone(),
        kind: kind.into(),
        namespace: namespace.into(),
        name: name.replace("__", ":"),
    })
}

/// The entry for an object whose scope is known.
pub fn entry(id: &Id) -> InventoryEntry {
    let rbac = id.group == "rbac.authorization.k8s.io"
        && matches!(id.kind.as_str(), "Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding");
    let name = if rbac { id.name.replace(':', "__") } else { id.name.clone() };
    InventoryEntry { id: format!("{}_{name}_{}_{}", id.namespace, id.group, id.kind), v: id.version.clone() }
}

/// What `old` has and `new` has not, in the order of deletion: the reverse of the order of applying. The version does not
/// count: an object that is applied in another version is the same object.
pub fn stale(old: &[InventoryEntry], new: &[InventoryEntry]) -> Vec<Id> {
    let kept: HashSet<&str> = new.iter().map(|e| e.id.as_str()).collect();
    let mut stale: Vec<Id> = old.iter().filter(|e| !kept.contains(e.id.as_str())).filter_map(id).collect();
    stale.sort_by(|a, b| order::key(b).cmp(&order::key(a)));
    stale.dedup();
    stale
}

/// Adds the entries of `more` that are not there yet.
pub fn merge(entries: &mut Vec<InventoryEntry>, more: impl IntoIterator<Item = InventoryEntry>) {
    let mut known: HashSet<String> = entries.iter().map(|e| e.id.clone()).collect();
    entries.extend(more.into_iter().filter(|e| known.insert(e.id.clone())));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(id: &str, v: &str) -> InventoryEntry {
        InventoryEntry { id: id.into(), v: v.into() }
    }

    #[test]
    fn entries_are_read_as_they_are_written() {
        for (text, v, api, kind, namespace, name) in [
            ("_a__Namespace", "v1", "v1", "Namespace", "", "a"),
            ("b_a_apps_Deployment", "v1", "apps/v1", "Deployment", "b", "a"),
            ("b_a.b-c_x.io_Thing", "v1beta2", "x.io/v1beta2", "Thing", "b", "a.b-c"),
            (
                "_system__a_rbac.authorization.k8s.io_ClusterRole",
                "v1",
                "rbac.authorization.k8s.io/v1",
                "ClusterRole",
                "",
                "system:a",
            ),
        ] {
            let expected = Id::new(api, kind, namespace, name);
            assert_eq!(id(&written(text, v)), Some(expected.clone()), "{text}");
            assert_eq!(entry(&expected), written(text, v));
        }
        for text in ["", "a", "a_b", "a_b_c", "a__c_d", "a_b_c_"] {
            assert_eq!(id(&written(text, "v1")), None, "{text}");
        }
        assert_eq!(id(&written("b_a_apps_Deployment", "")), None);
    }

    #[test]
    fn what_is_stale_goes_in_reverse_order_whatever_its_version() {
        let old = [
            written("_n__Namespace", "v1"),
            written("n_c__ConfigMap", "v1"),
            written("n_d_apps_Deployment", "v1beta1"),
            written("n_x_x.io_Thing", "v1"),
            written("n_gone_apps_Deployment", "v1"),
            written("damaged", "v1"),
        ];
        let new = [written("n_d_apps_Deployment", "v1")];
        let names: Vec<String> = stale(&old, &new).iter().map(Id::to_string).collect();
        assert_eq!(names, ["Thing/n/x", "Deployment/n/gone", "ConfigMap/n/c", "Namespace/n"]);
        assert!(stale(&new, &new).is_empty());
    }

    #[test]
    fn merging_keeps_what_is_there() {
        let mut entries = vec![written("n_d_apps_Deployment", "v1")];
        merge(&mut entries, [written("n_d_apps_Deployment", "v1beta1"), written("n_c__ConfigMap", "v1")]);
        assert_eq!(entries, [written("n_d_apps_Deployment", "v1"), written("n_c__ConfigMap", "v1")]);
    }
}
