//! All objects of Flux's kinds as they are now, from a cluster or from files: looked at once, and never written.
//!
//! Of a cluster each kind is listed; nothing is watched, no Secret is read. Of a directory the files are read that
//! [`Directory`](super::Directory) would read.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
};

use http::{Method, header};
use kube::api::DynamicObject;
use serde::Deserialize;
use serde_json::Value;

use super::{
    DocumentError, Key, Kind, Metadata, Object, Status,
    api::{CallError, Calls, Identity, read, segment},
    cluster::{read_object, read_status},
    directory::is_named,
    documents::{MAX_FILE, parse_documents},
    manifest::{self, Content, Declared},
};
use crate::class::chain;

/// Objects a page of a list.
const PAGE: usize = 500;

/// Flux's kinds that Larder does not reconcile, and that take part in what it does: group, version, plural, kind.
const OTHERS: [(&str, &str, &str, &str); 2] = [
    ("source.toolkit.fluxcd.io", "v1", "buckets", "Bucket"),
    ("helm.toolkit.fluxcd.io", "v2", "helmreleases", "HelmRelease"),
];

/// What is known of an object.
#[derive(Clone, Debug)]
pub enum Found {
    /// One of a kind of Larder's, with its status.
    Read(Arc<Object>, Box<Status>),
    /// One that cannot be read: why.
    Unreadable(String),
    /// One of a kind that is not Larder's, with its spec.
    Other(Value),
}

/// One object.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What is known of it.
    pub found: Found,
}

/// All objects, sorted by kind, namespace and name.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// The objects.
    pub items: Vec<Item>,
    /// Kinds that could not be listed, and documents that could not be read.
    pub errors: Vec<DocumentError>,
}

impl Survey {
    fn sorted(mut self) -> Self {
        let order = |kind: &str| Kind::ALL.iter().position(|k| k.name() == kind).unwrap_or(Kind::ALL.len());
        self.items.sort_by(|a, b| {
            (order(&a.kind), &a.kind, &a.namespace, &a.name).cmp(&(order(&b.kind), &b.kind, &b.namespace, &b.name))
        });
        self
    }

    fn add(&mut self, kind: &str, namespace: &str, name: &str, found: Found) {
        let (kind, namespace, name) = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        self.items.push(Item { kind, namespace, name, found });
    }
}

/// Lists a cluster's objects. A kind that is not installed has none; one that may not be listed is an error of its own.
///
/// # Errors
/// The first failure, where the API server is away.
pub async fn of_cluster(client: kube::Client) -> Result<Survey, CallError> {
    let calls = Calls::new(client);
    let mut survey = Survey::default();
    for kind in Kind::ALL {
        for object in list(&calls, &mut survey, kind.group(), "v1", kind.other_names()[0]).await? {
            let Ok(object) = serde_json::from_value::<DynamicObject>(object) else { continue };
            let (key, found) = match read_object(kind, object) {
                Ok((object, status)) => (object.key.clone(), Found::Read(object, Box::new(status))),
                Err((key, error)) => (key, Found::Unreadable(error)),
            };
            survey.add(kind.name(), &key.namespace, &key.name, found);
        }
    }
    for (group, version, plural, kind) in OTHERS {
        for mut object in list(&calls, &mut survey, group, version, plural).await? {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
            let (namespace, name) = (text("namespace"), text("name"));
            survey.add(kind, &namespace, &name, Found::Other(object["spec"].take()));
        }
    }
    Ok(survey.sorted())
}

async fn list(
    calls: &Calls,
    survey: &mut Survey,
    group: &str,
    version: &str,
    plural: &str,
) -> Result<Vec<Value>, CallError> {
    #[derive(Deserialize)]
    struct Page {
        #[serde(default)]
        metadata: Next,
        #[serde(default)]
        items: Vec<Value>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Next {
        r#continue: String,
    }
    let headers = [(header::ACCEPT, "application/json")];
    let (mut items, mut next) = (Vec::new(), String::new());
    loop {
        let path = format!("/apis/{group}/{version}/{plural}?limit={PAGE}&continue={}", segment(&next));
        let page: Page = match calls.call(&Method::GET, &path, &Identity::default(), &headers, &[]).await {
            Ok((_, body)) => read(&body)?,
            Err(error) if error.is_not_found() => return Ok(items),
            Err(error @ CallError::Refused { code: 401 | 403, .. }) => {
                survey.errors.push(DocumentError { place: format!("{plural}.{group}"), error: chain(&error) });
                return Ok(items);
            }
            Err(error) => return Err(error),
        };
        items.extend(page.items);
        next = page.metadata.r#continue;
        if next.is_empty() {
            return Ok(items);
        }
    }
}

/// Reads the objects in a directory's files.
///
/// # Errors
/// What the file system says of the directory, or of one of the files.
pub fn of_directory(directory: &Path) -> io::Result<Survey> {
    let mut survey = Survey::default();
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        names.extend(entry?.file_name().to_str().filter(|name| is_named(name)).map(str::to_owned));
    }
    names.sort_unstable();
    for name in names {
        let file = std::fs::File::open(directory.join(&name))?;
        if file.metadata()?.is_dir() {
            continue;
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
        for document in parse_documents(&bytes) {
            let place = format!("{name}, document {}", document.index);
            match document.value {
                Ok(value) => value_of(&mut survey, &place, value),
                Err(error) => survey.errors.push(DocumentError { place, error: error.to_string() }),
            }
        }
    }
    Ok(survey.sorted())
}

fn value_of(survey: &mut Survey, place: &str, mut value: Value) {
    if let Some(items) = value.get_mut("items").and_then(Value::as_array_mut) {
        for item in std::mem::take(items) {
            value_of(survey, place, item);
        }
        return;
    }
    let kind = value["kind"].as_str().unwrap_or_default().to_owned();
    let group = value["apiVersion"].as_str().and_then(|version| version.split_once('/')).map_or("", |(group, _)| group);
    if OTHERS.iter().any(|other| (other.0, other.3) == (group, &*kind)) {
        let text = |field: &str| value["metadata"][field].as_str().map(str::to_owned);
        let (namespace, name) =
            (text("namespace").unwrap_or_else(|| "default".into()), text("name").unwrap_or_default());
        let spec = value["spec"].take();
        return survey.add(&kind, &namespace, &name, Found::Other(spec));
    }
    if !Kind::ALL.iter().any(|k| k.name() == kind && k.group() == group) {
        return;
    }
    let status = value["status"].take();
    let uid = value["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    for (_, declared) in manifest::read(&value) {
        match declared {
            Declared::Item { identity: manifest::Identity::Object(key), content, .. } => {
                let Content::Object { metadata, spec, raw_spec } = content else { continue };
                let status = read_status(&key, status.clone());
                let metadata = Metadata { uid: uid.clone(), generation: 1, ..metadata };
                let object = Arc::new(Object { key: key.clone(), metadata, spec: *spec, raw_spec });
                survey.add(key.kind.name(), &key.namespace, &key.name, Found::Read(object, Box::new(status)));
            }
            Declared::Faulty { identity: Some(manifest::Identity::Object(key)), error } => {
                survey.add(key.kind.name(), &key.namespace, &key.name, Found::Unreadable(error));
            }
            Declared::Faulty { error, .. } => survey.errors.push(DocumentError { place: place.to_owned(), error }),
            _ => {}
        }
    }
}

/// The objects of Larder's kinds that could be read, by their keys.
pub fn by_key(items: &[Item]) -> BTreeMap<Key, Arc<Object>> {
    let read = items.iter().filter_map(|item| match &item.found {
        Found::Read(object, _) => Some((object.key.clone(), Arc::clone(object))),
        _ => None,
    });
    read.collect()
}
