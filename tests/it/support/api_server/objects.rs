//! The objects, their versions, and what each write makes of them.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    apply::{self, Owner},
    failure, patch,
    path::{self, Resource},
};

/// Group, plural, namespace, name.
pub type Id = (String, String, String, String);

/// A change, for those who watch.
pub struct Entry {
    pub version: u64,
    pub id: Id,
    pub before: Option<Value>,
    /// None: it is gone.
    pub after: Option<Value>,
}

/// A refusal: the status code and the `Status`.
pub type Refusal = (u16, Value);

/// Who writes, and how.
#[derive(Clone, Debug, Default)]
pub struct By {
    pub manager: String,
    pub dry_run: bool,
    pub force: bool,
    pub status_only: bool,
    /// Its owners are written already.
    pub applied: bool,
}

impl By {
    fn owner(&self, applies: bool) -> Owner {
        let subresource = if self.status_only { "status".to_owned() } else { String::new() };
        Owner { manager: self.manager.clone(), applies, subresource }
    }
}

/// All objects.
pub struct Objects {
    pub resources: Vec<Resource>,
    kept: BTreeMap<Id, Value>,
    pub version: u64,
    pub log: Vec<Entry>,
    /// What came before this version is forgotten.
    pub compacted: u64,
    made: u64,
}

impl Objects {
    pub fn new() -> Self {
        let resources = path::resources();
        Self { resources, kept: BTreeMap::new(), version: 1, log: Vec::new(), compacted: 0, made: 0 }
    }

    pub fn serve(&mut self, resource: Resource) {
        let same =
            |r: &Resource| (&r.group, &r.version, &r.plural) == (&resource.group, &resource.version, &resource.plural);
        self.resources.retain(|r| !same(r));
        self.resources.push(resource);
    }

    pub fn withdraw(&mut self, plural: &str) {
        self.resources.retain(|r| r.plural != plural);
    }

    pub fn compact(&mut self) {
        self.compacted = self.version;
        self.log.clear();
    }

    /// The resource of a path.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<Resource> {
        self.resources.iter().find(|r| r.group == group && r.version == version && r.plural == plural).cloned()
    }

    /// The resource of a kind, with or without its group (`Kind`, `Kind.group`).
    fn of_name(&self, kind: &str) -> Resource {
        let (kind, group) = kind.split_once('.').map_or((kind, None), |(kind, group)| (kind, Some(group)));
        let found = self.resources.iter().find(|r| r.kind == kind && group.is_none_or(|group| r.group == group));
        found.unwrap_or_else(|| panic!("no kind {kind} is served")).clone()
    }

    fn of_object(&self, object: &Value) -> Resource {
        let found = self.resources.iter().find(|r| r.kind == object["kind"] && r.api_version() == object["apiVersion"]);
        found.unwrap_or_else(|| panic!("no kind {} in {} is served", object["kind"], object["apiVersion"])).clone()
    }

    pub fn named(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.kept.get(&id_of(&self.of_name(kind), namespace, name)).cloned()
    }

    pub fn of_kind(&self, kind: &str) -> Vec<Value> {
        self.all(&self.of_name(kind), "").cloned().collect()
    }

    /// The objects of a resource, in a namespace or in all.
    pub fn all<'a>(&'a self, resource: &Resource, namespace: &str) -> impl Iterator<Item = &'a Value> {
        let (group, plural, namespace) = (resource.group.clone(), resource.plural.clone(), namespace.to_owned());
        let of = move |id: &Id| id.0 == group && id.1 == plural && (namespace.is_empty() || id.2 == namespace);
        self.kept.iter().filter(move |(id, _)| of(id)).map(|(_, object)| object)
    }

    pub fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Value, Refusal> {
        self.kept.get(&id_of(resource, namespace, name)).cloned().ok_or_else(|| not_found(resource, name))
    }

    pub fn put(&mut self, mut object: Value) -> Value {
        let resource = self.of_object(&object);
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        if resource.namespaced && !self.has_namespace(&namespace) {
            self.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } }));
        }
        let id = id_of(&resource, &namespace, &name);
        let before = self.kept.get(&id).cloned();
        prepare(&resource, &mut object);
        self.keep(&resource, id, before, object, &By { manager: "test".to_owned(), ..By::default() }, true)
    }

    pub fn edit(&mut self, kind: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) -> Value {
        let resource = self.of_name(kind);
        let id = id_of(&resource, namespace, name);
        let before = self.kept.get(&id).cloned().unwrap_or_else(|| panic!("no {kind} {namespace}/{name}"));
        let mut after = before.clone();
        change(&mut after);
        self.keep(&resource, id, Some(before), after, &By { manager: "kubectl-edit".to_owned(), ..By::default() }, true)
    }

    pub fn delete_named(&mut self, kind: &str, namespace: &str, name: &str) {
        let resource = self.of_name(kind);
        if let Err((_, status)) = self.delete(&resource, namespace, name, &Value::Null, false) {
            panic!("{status}");
        }
    }

    fn has_namespace(&self, name: &str) -> bool {
        self.kept.contains_key(&(String::new(), "namespaces".to_owned(), String::new(), name.to_owned()))
    }

    pub fn create(
        &mut self,
        resource: &Resource,
        namespace: &str,
        mut object: Value,
        by: &By,
    ) -> Result<Value, Refusal> {
        if !object["metadata"].is_object() {
            return Err(bad("the object has no metadata"));
        }
        if object["metadata"]["name"].is_null()
            && let Some(prefix) = object["metadata"]["generateName"].as_str()
        {
            let name = format!("{prefix}{:05}", self.made);
            object["metadata"]["name"] = json!(name);
        }
        let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned) else { return Err(bad("no name")) };
        if resource.namespaced {
            object["metadata"]["namespace"] = json!(namespace);
            if !self.has_namespace(namespace) {
                return Err((404, failure(404, "NotFound", &format!("namespaces {namespace:?} not found"))));
            }
        }
        let id = id_of(resource, namespace, &name);
        if self.kept.contains_key(&id) {
            return Err((409, failure(409, "AlreadyExists", &format!("{} {name:?} already exists", resource.plural))));
        }
        prepare(resource, &mut object);
        if resource.status {
            object.as_object_mut().expect("it has metadata").remove("status");
        }
        Ok(self.keep(resource, id, None, object, by, false))
    }

    /// Replaces an object (or, with `status_only`, its status) by what was sent.
    pub fn update(
        &mut self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        object: Value,
        by: &By,
    ) -> Result<Value, Refusal> {
        let before = self.get(resource, namespace, name)?;
        let sent = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if sent.is_empty() && (!resource.is_built_in() || resource.plural == "leases") {
            let why = "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update";
            return Err((422, failure(422, "Invalid", why)));
        }
        self.change(resource, namespace, name, before, object, by)
    }

    /// A patch of the given content type.
    pub fn patch(
        &mut self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        (content_type, sent): (&str, &Value),
        by: &By,
    ) -> Result<Value, Refusal> {
        let before = self.get(resource, namespace, name)?;
        let mut after = before.clone();
        match content_type {
            "application/merge-patch+json" | "application/strategic-merge-patch+json" => patch::merge(&mut after, sent),
            "application/json-patch+json" => {
                patch::steps(&mut after, sent).map_err(|why| (422, failure(422, "Invalid", &why)))?
            }
            other => return Err((415, failure(415, "UnsupportedMediaType", other))),
        }
        self.change(resource, namespace, name, before, after, by)
    }

    /// Server-side apply; the flag says whether it made the object.
    pub fn apply(
        &mut self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        config: &Value,
        by: &By,
    ) -> Result<(Value, bool), Refusal> {
        if by.manager.is_empty() {
            let why = "fieldManager: Required value: is required for apply patch";
            return Err((422, failure(422, "Invalid", why)));
        }
        if !config["metadata"]["managedFields"].is_null() {
            return Err(bad("metadata.managedFields must be nil"));
        }
        if config["kind"] != resource.kind || config["apiVersion"] != resource.api_version() {
            return Err(bad("the object is of another kind than the path"));
        }
        let before = self.kept.get(&id_of(resource, namespace, name)).cloned();
        if before.is_none() && by.status_only {
            return Err(not_found(resource, name));
        }
        let mut config = config.clone();
        prepare(resource, &mut config);
        if by.status_only {
            config.as_object_mut().expect("it has a kind").retain(|key, _| key != "spec" && key != "metadata");
        } else if resource.status {
            config.as_object_mut().expect("it has a kind").remove("status");
        }
        let old = before.as_ref().unwrap_or(&Value::Null);
        let mut after = apply::apply(old, &config, &by.owner(true), by.force, &now()).map_err(|conflicts| {
            let fields: Vec<String> =
                conflicts.iter().map(|c| format!("conflict with {:?}: {}", c.manager, c.field)).collect();
            let many = format!("Apply failed with {} conflicts: {}", fields.len(), fields.join("; "));
            let mut status = failure(409, "Conflict", &many);
            status["details"]["causes"] = conflicts
                .iter()
                .map(|c| {
                    json!({ "reason": "FieldManagerConflict", "field": c.field,
                    "message": format!("conflict with {:?}", c.manager) })
                })
                .collect();
            (409, status)
        })?;
        let by = &By { applied: true, ..by.clone() };
        match before {
            None => {
                after["metadata"]["name"] = json!(name);
                self.create(resource, namespace, after, by).map(|object| (object, true))
            }
            Some(before) => self.change(resource, namespace, name, before, after, by).map(|object| (object, false)),
        }
    }

    /// What updates and patches share: locks, what a client may not change, the subresource.
    fn change(
        &mut self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        before: Value,
        mut after: Value,
        by: &By,
    ) -> Result<Value, Refusal> {
        if !after["metadata"].is_object() {
            return Err(bad("the object has no metadata"));
        }
        for (key, what) in [
            ("resourceVersion", "the object has been modified; please apply your changes to the latest version"),
            ("uid", "Precondition failed: UID in precondition does not match"),
        ] {
            let sent = &after["metadata"][key];
            if !sent.is_null() && sent != "" && *sent != before["metadata"][key] {
                let message = format!("Operation cannot be fulfilled on {} {name:?}: {what}", resource.plural);
                return Err((409, failure(409, "Conflict", &message)));
            }
        }
        if by.status_only {
            let (status, owners) = (after["status"].take(), after["metadata"]["managedFields"].take());
            after = before.clone();
            after.as_object_mut().expect("it has metadata").remove("status");
            if !status.is_null() {
                after["status"] = status;
            }
            if !owners.is_null() {
                after["metadata"]["managedFields"] = owners;
            }
        } else {
            prepare(resource, &mut after);
            let object = after.as_object_mut().expect("it has metadata");
            if resource.status {
                object.remove("status");
                object.extend(before.get("status").map(|status| ("status".to_owned(), status.clone())));
            }
            let metadata = after["metadata"].as_object_mut().expect("seen above");
            for key in ["uid", "creationTimestamp", "generation", "deletionTimestamp", "name", "namespace"] {
                metadata.remove(key);
                metadata.extend(before["metadata"].get(key).map(|value| (key.to_owned(), value.clone())));
            }
        }
        Ok(self.keep(resource, id_of(resource, namespace, name), Some(before), after, by, false))
    }

    /// Keeps `after` with what the server itself writes; nothing happens where nothing differs, or for a dry run.
    fn keep(
        &mut self,
        resource: &Resource,
        id: Id,
        before: Option<Value>,
        mut after: Value,
        by: &By,
        as_is: bool,
    ) -> Value {
        let old = before.clone().unwrap_or(Value::Null);
        if !by.applied {
            apply::changed(&old, &mut after, &by.owner(false), &now());
        }
        after["metadata"]["name"] = json!(id.3);
        after["apiVersion"] = json!(resource.api_version());
        after["kind"] = json!(resource.kind);
        let counts = resource.status;
        match &before {
            None => {
                self.made += u64::from(!by.dry_run);
                after["metadata"]["uid"] = json!(format!("00000000-0000-4000-8000-{:012}", self.made));
                after["metadata"]["creationTimestamp"] = json!(now());
                if counts {
                    after["metadata"]["generation"] = json!(1);
                }
                if resource.group.ends_with(".toolkit.fluxcd.io") && after.get("status").is_none() {
                    after["status"] = json!({ "observedGeneration": -1 });
                }
            }
            Some(before) => {
                let metadata = &mut after["metadata"];
                for key in ["uid", "creationTimestamp", "generation", "resourceVersion"] {
                    metadata[key] = before["metadata"][key].clone();
                }
                metadata.as_object_mut().expect("indexed").retain(|_, value| !value.is_null());
                if after == *before {
                    return after;
                }
                let spec = |object: &Value| {
                    let mut object = object.as_object().cloned().unwrap_or_default();
                    object.retain(|key, _| !["metadata", "status", "apiVersion", "kind"].contains(&key.as_str()));
                    object
                };
                let deleted = after["metadata"]["deletionTimestamp"] != before["metadata"]["deletionTimestamp"];
                if counts && (deleted || spec(&after) != spec(before)) {
                    after["metadata"]["generation"] = json!(before["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
                }
            }
        }
        if resource.plural == "customresourcedefinitions" && !as_is {
            after["status"]["conditions"] = json!([{ "type": "Established", "status": "True" },
                { "type": "NamesAccepted", "status": "True" }]);
        }
        if by.dry_run {
            return after;
        }
        if resource.plural == "customresourcedefinitions" {
            let of = &after["spec"];
            self.resources.retain(|r| of["group"] != r.group.as_str() || of["names"]["plural"] != r.plural.as_str());
            path::of_definition(&after).into_iter().for_each(|resource| self.serve(resource));
        }
        self.version += 1;
        after["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let finalizers = after["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
        let gone = after["metadata"]["deletionTimestamp"].is_string() && !finalizers;
        if gone {
            self.kept.remove(&id);
        } else {
            self.kept.insert(id.clone(), after.clone());
        }
        self.log.push(Entry { version: self.version, id, before, after: (!gone).then(|| after.clone()) });
        after
    }

    /// Deletes, or marks for deletion where there are finalizers. Gives the object where it stays, else a `Status`.
    pub fn delete(
        &mut self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        options: &Value,
        dry_run: bool,
    ) -> Result<Value, Refusal> {
        let before = self.get(resource, namespace, name)?;
        for key in ["uid", "resourceVersion"] {
            let wanted = &options["preconditions"][key];
            if !wanted.is_null() && *wanted != before["metadata"][key] {
                let message = format!("Precondition failed: {key} in precondition does not match");
                return Err((409, failure(409, "Conflict", &message)));
            }
        }
        let by = By { dry_run, ..By::default() };
        if before["metadata"]["deletionTimestamp"].is_string() {
            return Ok(before);
        }
        let mut after = before.clone();
        after["metadata"]["deletionTimestamp"] = json!(now());
        let after = self.keep(resource, id_of(resource, namespace, name), Some(before), after, &by, false);
        if after["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty()) {
            return Ok(after);
        }
        let details = json!({ "name": name, "group": resource.group, "kind": resource.plural,
            "uid": after["metadata"]["uid"] });
        Ok(json!({ "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "details": details }))
    }
}

/// What the server does to an object that is sent: empty maps of metadata are none, text of a Secret is encoded.
fn prepare(resource: &Resource, object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        let empty = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
        metadata.retain(|key, value| !(["labels", "annotations"].contains(&key.as_str()) && empty(value)));
    }
    if resource.plural == "secrets"
        && resource.group.is_empty()
        && let Some(Value::Object(texts)) = object.as_object_mut().and_then(|secret| secret.remove("stringData"))
    {
        for (key, text) in texts {
            object["data"][key] = json!(STANDARD.encode(text.as_str().unwrap_or_default()));
        }
    }
}

pub fn id_of(resource: &Resource, namespace: &str, name: &str) -> Id {
    let namespace = if resource.namespaced { namespace } else { "" };
    (resource.group.clone(), resource.plural.clone(), namespace.to_owned(), name.to_owned())
}

pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn bad(why: &str) -> Refusal {
    (400, failure(400, "BadRequest", why))
}

fn not_found(resource: &Resource, name: &str) -> Refusal {
    let of = if resource.group.is_empty() {
        resource.plural.clone()
    } else {
        format!("{}.{}", resource.plural, resource.group)
    };
    let mut status = failure(404, "NotFound", &format!("{of} {name:?} not found"));
    status["details"] = json!({ "name": name, "group": resource.group, "kind": resource.plural });
    (404, status)
}
