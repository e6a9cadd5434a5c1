//! What labels and annotations say about how an object is to be treated: Flux's opt-outs, and whose it is.

use std::collections::BTreeMap;

use serde_json::Value;

/// The prefix of all of them.
pub const PREFIX: &str = "kustomize.toolkit.fluxcd.io";
/// The owner label with the name of the Kustomization.
pub const OWNER_NAME: &str = "kustomize.toolkit.fluxcd.io/name";
/// The owner label with the namespace of the Kustomization.
pub const OWNER_NAMESPACE: &str = "kustomize.toolkit.fluxcd.io/namespace";

/// The opt-outs of one object, desired or live. Label or annotation, in any case, as in Flux.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// `reconcile: disabled` or `ssa: Ignore`: not applied, not deleted.
    pub skip: bool,
    /// `ssa: IfNotPresent`: applied only where there is none.
    pub if_not_present: bool,
    /// `ssa: Merge`: what others own stays theirs.
    pub merge: bool,
    /// `force: enabled`: recreated where a field cannot be changed.
    pub force: bool,
    /// `prune: disabled`: not deleted.
    pub keep: bool,
}

impl Marks {
    /// By a look-up of labels and annotations.
    fn by<'a>(get: impl Fn(&str) -> [Option<&'a str>; 2]) -> Self {
        let has = |name: &str, word: &str| {
            get(&format!("{PREFIX}/{name}")).into_iter().flatten().any(|value| value.eq_ignore_ascii_case(word))
        };
        Self {
            skip: has("reconcile", "disabled") || has("ssa", "Ignore"),
            if_not_present: has("ssa", "IfNotPresent"),
            merge: has("ssa", "Merge"),
            force: has("force", "enabled"),
            keep: has("prune", "disabled"),
        }
    }

    /// Of an object as it is desired.
    pub fn of(object: &Value) -> Self {
        Self::by(|key| ["labels", "annotations"].map(|field| object.get("metadata")?.get(field)?.get(key)?.as_str()))
    }

    /// Of a live object's labels and annotations.
    pub fn live(labels: &BTreeMap<String, String>, annotations: &BTreeMap<String, String>) -> Self {
        Self::by(|key| [labels, annotations].map(|map| map.get(key).map(String::as_str)))
    }

    /// Whether a live object must not be deleted.
    pub fn forbids_deletion(self) -> bool {
        self.keep || self.skip
    }
}

/// Whether an object's substitution is switched off. Unlike the others, this one is compared to the letter.
pub fn no_substitution(object: &Value) -> bool {
    ["labels", "annotations"].iter().any(|field| {
        object.get("metadata").and_then(|m| m.get(field)?.get("kustomize.toolkit.fluxcd.io/substitute"))
            == Some(&Value::from("disabled"))
    })
}

/// Whether a live object is labelled as this Kustomization's.
pub fn is_owned(labels: &BTreeMap<String, String>, namespace: &str, name: &str) -> bool {
    labels.get(OWNER_NAME).is_some_and(|n| n == name) && labels.get(OWNER_NAMESPACE).is_some_and(|n| n == namespace)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_opt_out_counts_as_label_and_as_annotation_in_any_case() {
        let skip = Marks { skip: true, ..Marks::default() };
        for (key, word, expected) in [
            ("reconcile", "disabled", skip),
            ("reconcile", "Disabled", skip),
            ("ssa", "Ignore", skip),
            ("ssa", "ignore", skip),
            ("ssa", "IfNotPresent", Marks { if_not_present: true, ..Marks::default() }),
            ("ssa", "merge", Marks { merge: true, ..Marks::default() }),
            ("force", "enabled", Marks { force: true, ..Marks::default() }),
            ("force", "Enabled", Marks { force: true, ..Marks::default() }),
            ("prune", "disabled", Marks { keep: true, ..Marks::default() }),
            ("reconcile", "enabled", Marks::default()),
            ("prune", "", Marks::default()),
            ("other", "disabled", Marks::default()),
        ] {
            let key = format!("{PREFIX}/{key}");
            for field in ["labels", "annotations"] {
                let object = json!({"metadata": {field: {key.as_str(): word}}});
                assert_eq!(Marks::of(&object), expected, "{object}");
            }
            let map = BTreeMap::from([(key, word.to_owned())]);
            assert_eq!(Marks::live(&map, &BTreeMap::new()), expected, "{map:?}");
            assert_eq!(Marks::live(&BTreeMap::new(), &map), expected, "{map:?}");
            assert_eq!(expected.forbids_deletion(), expected.keep || expected.skip);
        }
        assert_eq!(Marks::of(&json!({"metadata": {"labels": null}})), Marks::default());
    }

    #[test]
    fn substitution_is_switched_off_by_the_exact_word() {
        for (word, off) in [("disabled", true), ("Disabled", false), ("enabled", false)] {
            for field in ["labels", "annotations"] {
                let object = json!({"metadata": {field: {"kustomize.toolkit.fluxcd.io/substitute": word}}});
                assert_eq!(no_substitution(&object), off, "{object}");
            }
        }
    }

    #[test]
    fn an_object_is_owned_by_both_labels_or_not_at_all() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        for (pairs, owned) in [
            (&[(OWNER_NAME, "a"), (OWNER_NAMESPACE, "n")][..], true),
            (&[(OWNER_NAME, "a")], false),
            (&[(OWNER_NAMESPACE, "n")], false),
            (&[(OWNER_NAME, "b"), (OWNER_NAMESPACE, "n")], false),
            (&[(OWNER_NAME, "a"), (OWNER_NAMESPACE, "m")], false),
            (&[], false),
        ] {
            assert_eq!(is_owned(&labels(pairs), "n", "a"), owned, "{pairs:?}");
        }
    }
}
