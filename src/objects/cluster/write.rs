//! The two things that are written of an object: its finalizer and its status.

use std::sync::Arc;

use http::{Method, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{FINALIZER, Inner, MANAGER, known, left, path};
use crate::objects::{
    BackendError, Key, Status,
    api::{CallError, Identity, read},
};

/// The answer to a write: nothing but metadata is asked for.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
/// How often a finalizer is written beside others who write the object at that moment.
const ATTEMPTS: usize = 5;

#[derive(Deserialize)]
struct Partial {
    metadata: Written,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Written {
    resource_version: String,
    finalizers: Vec<String>,
}

async fn patch(inner: &Inner, path: &str, body: &Value) -> Result<Written, CallError> {
    let headers = [(header::ACCEPT, METADATA), (header::CONTENT_TYPE, "application/merge-patch+json")];
    let path = format!("{path}?fieldManager={MANAGER}");
    let (_, body) =
        inner.writes.call(&Method::PATCH, &path, &Identity::default(), &headers, body.to_string().as_bytes()).await?;
    read::<Partial>(&body).map(|partial| partial.metadata)
}

fn not_leading() -> BackendError {
    BackendError::Api("another replica leads now".into())
}

/// Holds an object until it is released. Of no effect for one that is gone or going.
pub async fn claim(inner: &Inner, key: &Key) -> Result<(), BackendError> {
    let add = |finalizers: &mut Vec<String>| finalizers.push(FINALIZER.into());
    let wanted = |claimed: bool, going: bool| !claimed && !going;
    finalizers(inner, key, wanted, add).await
}

/// Lets an object go that is being deleted.
pub async fn release(inner: &Inner, key: &Key) -> Result<(), BackendError> {
    let remove = |finalizers: &mut Vec<String>| finalizers.retain(|f| f != FINALIZER);
    let wanted = |claimed: bool, going: bool| claimed && going;
    finalizers(inner, key, wanted, remove).await
}

/// Changes an object's finalizers where `wanted` (whether Larder's is among them, whether it is being deleted) says so. The
/// whole list is written, so it holds only for the version that was looked at.
async fn finalizers(
    inner: &Inner,
    key: &Key,
    wanted: impl Fn(bool, bool) -> bool,
    change: impl Fn(&mut Vec<String>),
) -> Result<(), BackendError> {
    let path = path(key.kind, &key.namespace, &key.name);
    let mut seen = {
        let state = inner.state();
        let Some(known) = state.objects.get(key).filter(|k| wanted(k.is_claimed(), k.is_going())) else {
            return Ok(());
        };
        (known.object.metadata.finalizers.clone(), known.version.clone())
    };
    for _ in 0..ATTEMPTS {
        if !inner.is_leading() {
            return Err(not_leading());
        }
        change(&mut seen.0);
        let body = json!({"metadata": {"finalizers": seen.0, "resourceVersion": seen.1}});
        match patch(inner, &path, &body).await {
            Ok(written) => {
                note(inner, key, written);
                return Ok(());
            }
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(BackendError::api("write the finalizer of", &key.to_string(), &error)),
        }
        let found = inner.get(&path).await.map_err(|e| BackendError::api("read", &key.to_string(), &e))?;
        let Some(mut found) = found else { return Ok(()) };
        let going = found["metadata"]["deletionTimestamp"].is_string();
        let now: Written = serde_json::from_value(found["metadata"].take()).unwrap_or_default();
        if !wanted(now.finalizers.iter().any(|f| f == FINALIZER), going) {
            return Ok(());
        }
        seen = (now.finalizers, now.resource_version);
    }
    Err(BackendError::Api(format!("cannot write the finalizer of {key}: others write it all the time")))
}

/// Keeps in mind what the server has now.
fn note(inner: &Inner, key: &Key, written: Written) {
    let mut state = inner.state();
    if let Some(known) = state.objects.get_mut(key)
        && !known.is_newer_than(&written.resource_version)
    {
        Arc::make_mut(&mut known.object).metadata.finalizers = written.finalizers;
        known.version = written.resource_version;
    }
}

/// Writes what is new in a status. Of no effect for an object that is gone.
pub async fn status(inner: &Inner, key: &Key, status: &Status) -> Result<(), BackendError> {
    if !inner.is_leading() {
        return Err(not_leading());
    }
    let (before, uid) = {
        let state = inner.state();
        let Some(known) = state.objects.get(key) else { return Ok(()) };
        (known.status.clone(), known.object.metadata.uid.clone())
    };
    let Some(changed) = difference(&value(&before), &value(status)) else { return Ok(()) };
    // By its uid: one that was made anew under the name meanwhile begins with nothing.
    let body = json!({"metadata": {"uid": uid}, "status": changed});
    let whole = path(key.kind, &key.namespace, &key.name);
    let path = format!("{whole}/status");
    for _ in 0..ATTEMPTS {
        match patch(inner, &path, &body).await {
            Ok(written) => {
                let mut state = inner.state();
                if let Some(known) = state.objects.get_mut(key)
                    && known.object.metadata.uid == uid
                {
                    known.status = status.clone();
                    inner.keep(key);
                    if !known.is_newer_than(&written.resource_version) {
                        known.version = written.resource_version;
                    }
                }
                return Ok(());
            }
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(BackendError::api("write the status of", &key.to_string(), &error)),
        }
        // Made anew under its name, or only written by somebody else at that moment.
        let found = inner.get(&whole).await.map_err(|e| BackendError::api("read", &key.to_string(), &e))?;
        if found.is_none_or(|found| found["metadata"]["uid"] != *uid) {
            return Ok(());
        }
    }
    Err(BackendError::Api(format!("cannot write the status of {key}: others write it all the time")))
}

/// Takes back what was written of an object that is not Larder's any more: its finalizer, and then its status, by which
/// it is known until then that there is something to take back. Whether there was.
pub async fn take_back(inner: &Inner, key: &Key) -> Result<bool, BackendError> {
    let whole = path(key.kind, &key.namespace, &key.name);
    let mut done = false;
    for _ in 0..ATTEMPTS {
        if !inner.is_leading() {
            return Err(not_leading());
        }
        let found = inner.get(&whole).await.map_err(|e| BackendError::api("read", &key.to_string(), &e))?;
        let Some(Ok(shown)) = found.map(serde_json::from_value) else { return Ok(done) };
        let Ok(seen) = known::read(key.kind, shown) else { return Ok(done) };
        if !left::is_left(&seen) {
            return Ok(done);
        }
        // It holds for what was looked at: an artifact that somebody else stored meanwhile is theirs, as the finalizer.
        let version = &seen.version;
        let (path, body, is_last) = if seen.is_claimed() {
            let rest: Vec<&String> = seen.object.metadata.finalizers.iter().filter(|f| *f != FINALIZER).collect();
            (whole.clone(), json!({"metadata": {"finalizers": rest, "resourceVersion": version}}), false)
        } else {
            let without = difference(&value(&seen.status), &value(&Status::default()));
            let body = json!({"metadata": {"resourceVersion": version}, "status": without});
            (format!("{whole}/status"), body, true)
        };
        match patch(inner, &path, &body).await {
            Ok(_) if is_last => return Ok(true),
            Ok(_) => done = true,
            Err(error) if error.is_not_found() => return Ok(done),
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(BackendError::api("let go", &key.to_string(), &error)),
        }
    }
    Err(BackendError::Api(format!("cannot let {key} go: others write it all the time")))
}

fn value(status: &Status) -> Value {
    serde_json::to_value(status).unwrap_or(Value::Null)
}

/// A JSON merge patch (RFC 7396) from one value to another, if they differ.
pub fn difference(before: &Value, after: &Value) -> Option<Value> {
    match (before, after) {
        _ if before == after => None,
        (Value::Object(before), Value::Object(after)) => {
            let mut patch: Map<String, Value> = Map::new();
            for (name, value) in after {
                match before.get(name) {
                    Some(old) => patch.extend(difference(old, value).map(|changed| (name.clone(), changed))),
                    None => drop(patch.insert(name.clone(), value.clone())),
                }
            }
            for name in before.keys().filter(|name| !after.contains_key(*name)) {
                patch.insert(name.clone(), Value::Null);
            }
            Some(Value::Object(patch))
        }
        _ => Some(after.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_holds_what_changed_and_nothing_else() {
        for (before, after, patch) in [
            (json!({"a": 1}), json!({"a": 1}), None),
            (json!({"a": 1, "b": 2}), json!({"a": 1, "b": 3}), Some(json!({"b": 3}))),
            (json!({"a": 1, "b": 2}), json!({"a": 1}), Some(json!({"b": null}))),
            (json!({}), json!({"a": {"x": 1}}), Some(json!({"a": {"x": 1}}))),
            (
                json!({"a": {"x": 1, "y": 2, "m": {"k": "v"}}}),
                json!({"a": {"x": 1, "y": 3, "m": {}}}),
                Some(json!({"a": {"y": 3, "m": {"k": null}}})),
            ),
            (json!({"l": [1, 2]}), json!({"l": [2]}), Some(json!({"l": [2]}))),
            (json!({"a": {"x": 1}}), json!({"a": "x"}), Some(json!({"a": "x"}))),
        ] {
            assert_eq!(difference(&before, &after), patch, "{before} {after}");
        }
    }
}
