//! From what the files declare to what is desired: duplicates, faults, the last good state, and the changes against it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use serde_json::Value;

use super::{
    record::Record,
    scan::{Entry, Reading},
};
use crate::objects::{
    Change, DocumentError, Key, Metadata, Object, Spec, Status,
    condition::rfc3339,
    manifest::{self, Content, Declared, DependencyKind, Identity},
};

/// What a Secret, ServiceAccount or ConfigMap is called.
pub(super) type DependencyKey = (DependencyKind, Arc<str>, Arc<str>);

/// An object that is desired, and what is kept of it.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// As desired; the last good state of it.
    pub object: Arc<Object>,
    /// As kept.
    pub status: Status,
    /// The file that declares it.
    pub file: Arc<str>,
    /// There is a record that would survive a power cut: only one such may take its place.
    pub durable: bool,
}

/// All that is desired.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Flux's objects.
    pub objects: BTreeMap<Key, Known>,
    /// What they refer to, and the file that declares it.
    pub dependencies: BTreeMap<DependencyKey, (Content, Arc<str>)>,
    /// Documents that could not be used.
    pub errors: Vec<DocumentError>,
}

/// What one load did.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// To be told.
    pub changes: Vec<Change>,
    /// Objects whose record has to be written.
    pub written: Vec<Key>,
    /// Documents that an API server would not have taken as they are, and fields that nobody reads.
    pub warnings: BTreeSet<String>,
    /// Kinds that are not Larder's.
    pub foreign: HashSet<(String, String)>,
}

/// What the files declare, sorted out.
#[derive(Default)]
struct Declarations<'a> {
    /// Declared exactly once, and usable.
    good: BTreeMap<&'a Identity, (&'a Content, &'a Arc<str>)>,
    /// Declared, but not usable: the last good state stays.
    held: HashSet<&'a Identity>,
    /// Files with a document of which it is not even clear what it is about: nothing of them is taken for deleted.
    blind: HashSet<&'a str>,
    errors: Vec<DocumentError>,
}

fn sort_out<'a>(readings: &'a [Arc<Reading>], outcome: &mut Outcome) -> Declarations<'a> {
    let mut all: HashMap<&Identity, Vec<(&Entry, &Arc<str>)>> = HashMap::new();
    let mut sorted = Declarations::default();
    for reading in readings {
        for entry in &reading.entries {
            match &entry.declared {
                Declared::Item { identity, warnings, .. } => {
                    all.entry(identity).or_default().push((entry, &reading.file));
                    outcome.warnings.extend(warnings.iter().map(|w| format!("{}: {identity}: {w}", entry.place)));
                }
                Declared::Faulty { identity, error } => {
                    match identity {
                        Some(identity) => all.entry(identity).or_default().push((entry, &reading.file)),
                        None => _ = sorted.blind.insert(&*reading.file),
                    }
                    let error = identity.as_ref().map_or_else(|| error.clone(), |i| format!("{i}: {error}"));
                    sorted.errors.push(DocumentError { place: entry.place.clone(), error });
                }
                Declared::Foreign(version, kind) => _ = outcome.foreign.insert((version.clone(), kind.clone())),
            }
        }
    }
    for (identity, entries) in all {
        match entries.as_slice() {
            [(Entry { declared: Declared::Item { content, .. }, .. }, file)] => {
                sorted.good.insert(identity, (content, file));
            }
            [_] => _ = sorted.held.insert(identity),
            several => {
                sorted.held.insert(identity);
                for (entry, _) in several {
                    let others: Vec<_> =
                        several.iter().map(|(e, _)| e.place.as_str()).filter(|p| *p != entry.place).collect();
                    sorted.errors.push(DocumentError {
                        place: entry.place.clone(),
                        error: format!(
                            "{identity} is declared more than once, also in {}: none of them is used, what was there \
                             before stays; remove all but one",
                            others.join(" and ")
                        ),
                    });
                }
            }
        }
    }
    sorted.errors.sort_by(|a, b| (&a.place, &a.error).cmp(&(&b.place, &b.error)));
    sorted
}

/// A made-up id that stays the same as long as the object's name does.
fn uid_of(key: &Key) -> String {
    let hex = blake3::hash(key.to_string().as_bytes()).to_hex();
    let h = hex.as_str();
    // The form of a version 8 UUID (RFC 9562: "custom"), variant 10xx.
    format!("{}-{}-8{}-a{}-{}", &h[..8], &h[8..12], &h[13..16], &h[17..20], &h[20..32])
}

/// Brings the state to what the files declare.
///
/// `records` is what was kept before the start, and empty for every later load: a record without a document is a
/// deletion that nobody saw.
pub(super) fn apply(
    state: &mut State,
    readings: &[Arc<Reading>],
    mut records: BTreeMap<Key, Record>,
    now: Timestamp,
    first: bool,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut declared = sort_out(readings, &mut outcome);
    state.errors = std::mem::take(&mut declared.errors);

    let held = |identity: &Identity, file: &str| declared.held.contains(identity) || declared.blind.contains(file);
    let mut changes = Vec::new();

    // Gone.
    state.objects.retain(|key, known| {
        let identity = Identity::Object(key.clone());
        let stays = declared.good.contains_key(&identity) || held(&identity, &known.file);
        if !stays && known.object.is_ours() {
            changes.push(Change::Deleted(key.clone()));
        }
        stays
    });
    let mut gone_dependencies = Vec::new();
    state.dependencies.retain(|(kind, namespace, name), (_, file)| {
        let identity = Identity::Dependency(*kind, namespace.clone(), name.clone());
        let stays = declared.good.contains_key(&identity) || held(&identity, file);
        if !stays {
            gone_dependencies.push(Change::Dependency(namespace.clone(), name.clone()));
        }
        stays
    });
    changes.append(&mut gone_dependencies);

    // There.
    let mut applied = Vec::new();
    for (identity, (content, file)) in &declared.good {
        match (identity, content) {
            (Identity::Object(key), Content::Object { metadata, spec, raw_spec }) => {
                let record = records.remove(key);
                let former = state.objects.remove(key).or_else(|| {
                    // A kept spec that this version cannot read: the status and the count go on all the same.
                    let record = record.as_ref()?;
                    Some(revive(key, record, manifest::typed_spec(key.kind, &record.spec).unwrap_or((**spec).clone())))
                });
                let new = next(key, former.as_ref(), metadata, spec, raw_spec, file, now);
                let changed = former.as_ref().is_none_or(|f| f.object != new.object);
                let was_ours = former.as_ref().is_some_and(|f| f.object.is_ours());
                if new.object.is_ours() {
                    if changed || first {
                        applied.push(Change::Applied(new.object.clone(), Box::new(new.status.clone())));
                    }
                    if changed || former.is_some_and(|f| f.file != new.file) {
                        outcome.written.push(key.clone());
                    }
                } else if was_ours {
                    changes.push(Change::Deleted(key.clone()));
                }
                state.objects.insert(key.clone(), new);
            }
            (Identity::Dependency(kind, namespace, name), content) => {
                let new = ((*content).clone(), (*file).clone());
                let former = state.dependencies.insert((*kind, namespace.clone(), name.clone()), new);
                if !first && former.is_none_or(|(f, _)| f != **content) {
                    changes.push(Change::Dependency(namespace.clone(), name.clone()));
                }
            }
            (Identity::Object(_), _) => {}
        }
    }

    // Kept before the start, and not declared now.
    for (key, record) in records {
        let identity = Identity::Object(key.clone());
        let kept = manifest::typed_spec(key.kind, &record.spec).ok().filter(|_| held(&identity, &record.file));
        match kept {
            Some(spec) => {
                let known = revive(&key, &record, spec);
                applied.push(Change::Applied(known.object.clone(), Box::new(known.status.clone())));
                state.objects.insert(key, known);
            }
            None => changes.push(Change::Deleted(key)),
        }
    }
    changes.append(&mut applied);
    if first {
        changes.push(Change::Synced);
    }
    outcome.changes = changes;
    outcome
}

/// What a record says was desired.
fn revive(key: &Key, record: &Record, spec: Spec) -> Known {
    Known {
        object: Arc::new(record.object(key, spec)),
        status: record.status.clone(),
        file: record.file.as_str().into(),
        durable: true,
    }
}

/// The object as it is declared now, its generation and status taken on from the former one.
fn next(
    key: &Key,
    former: Option<&Known>,
    metadata: &Metadata,
    spec: &Spec,
    raw_spec: &Value,
    file: &Arc<str>,
    now: Timestamp,
) -> Known {
    let (generation, created) = match former {
        Some(f) => {
            let same = f.object.raw_spec == *raw_spec;
            let generation = f.object.metadata.generation + i64::from(!same);
            (generation, f.object.metadata.creation_timestamp.clone())
        }
        None => (1, None),
    };
    let metadata = Metadata {
        uid: uid_of(key),
        generation,
        creation_timestamp: created.or_else(|| Some(rfc3339(now))),
        ..metadata.clone()
    };
    let object = Object { key: key.clone(), metadata, spec: spec.clone(), raw_spec: raw_spec.clone() };
    let ours = object.is_ours();
    Known {
        object: Arc::new(object),
        // What is not Larder's has no status from it.
        status: former.filter(|f| ours && f.object.is_ours()).map(|f| f.status.clone()).unwrap_or_default(),
        file: file.clone(),
        durable: former.is_some_and(|f| f.durable),
    }
}
