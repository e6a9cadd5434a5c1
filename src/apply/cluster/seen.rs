//! What is known of live objects: metadata as the API server shows it, and lists of it that all Kustomizations share.
//!
//! An object is as it was applied if its generation, labels and annotations are what they were then: the rest of its
//! metadata and its status are not what a Kustomization describes. Kinds without a generation show every change in their
//! resource version.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::Instant;

use super::api::{Api, CallError, Identity, Resource};
use crate::apply::{
    managers,
    marks::{Marks, OWNER_NAME},
};

/// How long a list that nobody asks for is kept.
const FORGET: Duration = Duration::from_secs(600);
/// How soon a list may begin after the end of the one before: whoever was served by that, and asks again, shares the next one
/// with those who have waited.
const GATHER: Duration = Duration::from_millis(50);

/// An object's metadata, as far as it counts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub resource_version: String,
    pub generation: i64,
    pub deletion_timestamp: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub managed_fields: Vec<Manager>,
}

/// Who manages fields of an object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Manager {
    pub manager: String,
    pub operation: String,
    pub subresource: String,
}

/// What is remembered of an object's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    uid: Box<str>,
    version: Box<str>,
    generation: i64,
    /// Of labels and annotations.
    hash: u64,
    /// The live object's opt-outs.
    pub marks: Marks,
    /// Whether somebody else's fields are to be taken over.
    pub untidy: bool,
}

impl From<&Metadata> for Seen {
    fn from(metadata: &Metadata) -> Self {
        let mut hasher = DefaultHasher::new();
        (&metadata.labels, &metadata.annotations).hash(&mut hasher);
        let removed = |field: &str, map: &BTreeMap<String, String>| map.keys().any(|k| managers::is_removed(field, k));
        Self {
            uid: metadata.uid.as_str().into(),
            version: metadata.resource_version.as_str().into(),
            generation: metadata.generation,
            hash: hasher.finish(),
            marks: Marks::live(&metadata.labels, &metadata.annotations),
            untidy: removed("labels", &metadata.labels)
                || removed("annotations", &metadata.annotations)
                || metadata
                    .managed_fields
                    .iter()
                    .any(|m| managers::is_taken_over(&m.manager, &m.operation, &m.subresource)),
        }
    }
}

impl Seen {
    /// Whether nothing happened to the object at all, not even to its status.
    pub fn is_same(&self, later: &Self) -> bool {
        self.uid == later.uid && self.version == later.version
    }

    /// Whether what a Kustomization describes is as it was. Other people's fields count if there were none.
    pub fn is_kept(&self, later: &Self) -> bool {
        let same = self.uid == later.uid && self.generation == later.generation && self.hash == later.hash;
        same && (self.generation > 0 || self.version == later.version) && (self.untidy || !later.untidy)
    }

    /// Whether applying changed the object that was `before`.
    pub fn changed(&self, before: Option<&Self>) -> bool {
        before.is_none_or(|before| !before.is_same(self))
    }
}

/// The objects of one kind that Kustomizations own, as they were at one time.
#[derive(Debug)]
pub struct Snapshot {
    begun: Instant,
    ended: Instant,
    objects: HashMap<(Box<str>, Box<str>), Seen>,
}

impl Snapshot {
    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Seen> {
        self.objects.get(&(namespace.into(), name.into()))
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    who: Identity,
    of: Arc<Resource>,
    namespace: String,
}

type Slot = Arc<tokio::sync::Mutex<Option<Arc<Snapshot>>>>;

/// Lists of metadata that all share: while one is made, whoever wants the same waits for it.
#[derive(Default)]
pub struct Snapshots {
    slots: Mutex<HashMap<Place, (Slot, Instant)>>,
}

impl Snapshots {
    /// The objects of a kind that carry an owner label, as they were at some time after `since`. As Larder itself, of the whole
    /// cluster; as somebody else, who may see less, of one namespace. `None` if this kind must not, or may not, be listed.
    pub async fn get(
        &self,
        api: &Api,
        who: &Identity,
        of: &Arc<Resource>,
        namespace: &str,
        since: Instant,
    ) -> Result<Option<Arc<Snapshot>>, CallError> {
        if of.is_secret() {
            return Ok(None);
        }
        let namespace = if who.is_own() { "" } else { namespace };
        let now = Instant::now();
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.retain(|_, (slot, used)| now.duration_since(*used) < FORGET || Arc::strong_count(slot) > 1);
            let place = Place { who: who.clone(), of: Arc::clone(of), namespace: namespace.to_owned() };
            let (slot, used) = slots.entry(place).or_insert_with(|| (Slot::default(), now));
            *used = now;
            Arc::clone(slot)
        };
        let mut held = slot.lock().await;
        if let Some(snapshot) = held.as_ref().filter(|s| s.begun >= since) {
            return Ok(Some(Arc::clone(snapshot)));
        }
        if let Some(before) = &*held {
            tokio::time::sleep_until(before.ended + GATHER).await;
        }
        let begun = Instant::now();
        let mut objects = HashMap::new();
        let keep = |metadata: Metadata| {
            let seen = Seen::from(&metadata);
            objects.insert((metadata.namespace.into(), metadata.name.into()), seen);
        };
        match api.list(who, of, namespace, OWNER_NAME, keep).await {
            Ok(()) => {}
            // A tenant may get what it may not list; a kind may know no lists.
            Err(CallError::Refused { code: 403..=405, .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
        let snapshot = Arc::new(Snapshot { begun, ended: Instant::now(), objects });
        *held = Some(Arc::clone(&snapshot));
        Ok(Some(snapshot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(generation: i64, version: &str) -> Metadata {
        Metadata {
            uid: "u".into(),
            resource_version: version.into(),
            generation,
            labels: [("a".to_owned(), "1".to_owned())].into(),
            ..Metadata::default()
        }
    }

    #[test]
    fn drift_is_a_change_of_what_a_kustomization_describes() {
        type Edit = fn(&mut Metadata);
        let later: [(Edit, bool, bool); 8] = [
            (|_| {}, true, true),
            // A new resource version alone: a status, or, without a generation, anything.
            (|m| m.resource_version = "8".into(), true, false),
            (|m| m.generation += 1, false, false),
            (|m| m.uid = "v".into(), false, false),
            (|m| drop(m.labels.insert("a".into(), "2".into())), false, false),
            (|m| drop(m.annotations.insert("b".into(), String::new())), false, false),
            (
                |m| {
                    m.managed_fields.push(Manager {
                        manager: "kubectl-edit".into(),
                        operation: "Update".into(),
                        ..Manager::default()
                    })
                },
                false,
                false,
            ),
            (
                |m| {
                    m.managed_fields.push(Manager {
                        manager: "hpa".into(),
                        operation: "Update".into(),
                        ..Manager::default()
                    })
                },
                true,
                true,
            ),
        ];
        for (nth, (edit, with_generation, without)) in later.into_iter().enumerate() {
            for (generation, kept) in [(1, with_generation), (0, without)] {
                let before = metadata(generation, "7");
                let mut after = before.clone();
                edit(&mut after);
                assert_eq!(Seen::from(&before).is_kept(&Seen::from(&after)), kept, "{nth} {generation}");
            }
        }
    }

    #[test]
    fn an_object_that_was_not_there_or_has_another_version_was_changed() {
        let (seven, eight) = (Seen::from(&metadata(1, "7")), Seen::from(&metadata(1, "8")));
        assert!(seven.changed(None) && eight.changed(Some(&seven)) && !seven.changed(Some(&seven)));
    }
}
