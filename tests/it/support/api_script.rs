//! One script of API calls, played to the scripted server and to a real one: what each answers, made comparable.

use serde_json::{Value, json};

use super::{eventually, http};

/// What a step was answered: its label, the status code, and what the answer says.
pub type Line = (String, u16, Value);

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const STEPS: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// What Kubernetes 1.36 answered. `LARDER_RECORD=1` with the test of a real API server writes it anew.
pub const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/api_script.json");

/// The lines of [`RECORD`].
pub fn recorded() -> Vec<Line> {
    let text = std::fs::read_to_string(RECORD).unwrap_or_else(|error| panic!("{RECORD}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{RECORD}: {error}"))
}

/// Where the lines of two servers differ, for people.
pub fn differences((one, left): (&str, &[Line]), (other, right): (&str, &[Line])) -> Vec<String> {
    let shown = |line: Option<&Line>| {
        line.map_or("nothing".to_owned(), |(label, status, body)| format!("{label}: {status} {body}"))
    };
    (0..left.len().max(right.len()))
        .filter(|&index| left.get(index) != right.get(index))
        .map(|index| format!("{one}: {}\n{other}: {}", shown(left.get(index)), shown(right.get(index))))
        .collect()
}

/// Sends a request: method, path, headers, body.
pub type Send<'a> = dyn Fn(&str, &str, &[(&str, &str)], &Value) -> http::Response + 'a;

/// Sends to a server that speaks plain HTTP.
pub fn over_http(base: &str) -> impl Fn(&str, &str, &[(&str, &str)], &Value) -> http::Response + use<> {
    let base = base.to_owned();
    move |method, path, headers, body| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let url = format!("{base}{path}");
        http::send(method, &url, headers, body.as_bytes()).unwrap_or_else(|error| panic!("{method} {url}: {error}"))
    }
}

struct Player<'a> {
    send: &'a Send<'a>,
    lines: Vec<Line>,
}

impl Player<'_> {
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> http::Response {
        (self.send)(method, path, headers, body)
    }

    fn step(&mut self, label: &str, method: &str, path: &str, kind: &str, body: Value) -> Value {
        let accept = if kind.contains(";as=") { kind } else { JSON };
        let kind = if kind.contains(";as=") { JSON } else { kind };
        let answer =
            self.send(method, path, &[("Content-Type", kind), ("Accept", accept), ("User-Agent", "player/1")], &body);
        let value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        self.lines.push((label.to_owned(), answer.status, comparable(&value)));
        value
    }

    fn get(&mut self, label: &str, path: &str) -> Value {
        self.step(label, "GET", path, JSON, Value::Null)
    }

    /// A watch of one second: the type and name of each event.
    fn watch(&mut self, label: &str, path: &str) {
        let answer =
            self.send("GET", &format!("{path}&watch=true&timeoutSeconds=1"), &[("Accept", JSON)], &Value::Null);
        let text = answer.text();
        let events = text.lines().map(|line| {
            let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let metadata = &event["object"]["metadata"];
            json!([event["type"], metadata["name"], metadata["annotations"]])
        });
        self.lines.push((label.to_owned(), answer.status, events.collect()));
    }

    fn note(&mut self, label: &str, value: Value) {
        self.lines.push((label.to_owned(), 0, value));
    }
}

/// An answer without what differs from server to server. Of a failure the reason counts, not the words.
fn comparable(answer: &Value) -> Value {
    let mut answer = answer.clone();
    if answer["kind"] == "Status" {
        return json!([answer["status"], answer["reason"]]);
    }
    if let Some(items) = answer.get_mut("items").and_then(Value::as_array_mut) {
        let items: Vec<Value> = items.iter().map(comparable).collect();
        let more = !answer["metadata"]["continue"].as_str().unwrap_or_default().is_empty();
        return json!({ "kind": answer["kind"], "items": items, "more": more });
    }
    if let Some(metadata) = answer.get_mut("metadata").and_then(Value::as_object_mut) {
        let owners = metadata.remove("managedFields").unwrap_or_default();
        let mut owners: Vec<String> = owners
            .as_array()
            .into_iter()
            .flatten()
            .map(|o| format!("{} {} {}", o["manager"], o["operation"], o["subresource"]))
            .collect();
        owners.sort();
        for key in ["uid", "resourceVersion", "creationTimestamp", "deletionGracePeriodSeconds"] {
            metadata.remove(key);
        }
        if metadata.contains_key("deletionTimestamp") {
            metadata.insert("deletionTimestamp".to_owned(), json!("set"));
        }
        metadata.insert("managedFields".to_owned(), json!(owners));
    }
    answer
}

fn config_map(name: &str, data: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data })
}

fn widget(name: &str, more: Value) -> Value {
    let mut widget = json!({ "apiVersion": "play.example.com/v1", "kind": "Widget", "metadata": { "name": name } });
    widget.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
    widget
}

fn version_of(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()
}

/// Plays the script to an API that must not have met it before.
pub fn play(send: &Send<'_>) -> Vec<Line> {
    let p = &mut Player { send, lines: Vec::new() };
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "play" } });
    p.send("POST", "/api/v1/namespaces", &[("Content-Type", JSON)], &namespace);
    let open = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let definition = json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "widgets.play.example.com" },
        "spec": { "group": "play.example.com", "scope": "Namespaced",
            "names": { "kind": "Widget", "plural": "widgets", "singular": "widget" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": open, "status": open } } } }] } });
    p.send("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &[("Content-Type", JSON)], &definition);
    eventually("the CRD to be served", || {
        let answer = p.send("GET", "/apis/play.example.com/v1/namespaces/play/widgets", &[], &Value::Null);
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    });
    plain_objects(p);
    applies(p);
    subresources(p);
    deletions(p);
    lists_and_watches(p);
    others(p);
    std::mem::take(&mut p.lines)
}

const MAPS: &str = "/api/v1/namespaces/play/configmaps";
const WIDGETS: &str = "/apis/play.example.com/v1/namespaces/play/widgets";

fn plain_objects(p: &mut Player<'_>) {
    p.step("create in no namespace", "POST", "/api/v1/namespaces/none/configmaps", JSON, config_map("a", json!({})));
    let a = &format!("{MAPS}/a");
    let first = p.step("create", "POST", MAPS, JSON, config_map("a", json!({ "a": "1" })));
    p.step("create again", "POST", MAPS, JSON, config_map("a", json!({})));
    p.get("get", a);
    p.get("get what is not there", &format!("{MAPS}/b"));
    p.step("get metadata", "GET", a, METADATA, Value::Null);
    p.step("update without a version", "PUT", a, JSON, config_map("a", json!({ "a": "2" })));
    let mut stale = first.clone();
    stale["data"]["a"] = json!("3");
    p.step("update a stale version", "PUT", a, JSON, stale);
    p.step("update what is not there", "PUT", &format!("{MAPS}/b"), JSON, config_map("b", json!({})));
    p.step("merge", "PATCH", a, MERGE, json!({ "data": { "b": "1" }, "metadata": { "labels": { "x": "1" } } }));
    let before = p.step("merge a removal", "PATCH", a, MERGE, json!({ "data": { "a": null } }));
    let after = p.step("merge nothing new", "PATCH", a, MERGE, json!({ "data": { "b": "1" } }));
    p.note("the version stays", json!(version_of(&before) == version_of(&after)));
    let stale = json!({ "metadata": { "resourceVersion": version_of(&first) }, "data": { "b": "2" } });
    p.step("merge onto a stale version", "PATCH", a, MERGE, stale);
    p.step("merge what is not there", "PATCH", &format!("{MAPS}/b"), MERGE, json!({}));
    let steps = json!([{ "op": "test", "path": "/data/b", "value": "1" }, { "op": "add", "path": "/data/c", "value": "1" },
        { "op": "replace", "path": "/data/b", "value": "2" }]);
    p.step("steps", "PATCH", a, STEPS, steps);
    p.step("a test that fails", "PATCH", a, STEPS, json!([{ "op": "test", "path": "/data/b", "value": "1" }]));
    p.step("a step to nowhere", "PATCH", a, STEPS, json!([{ "op": "remove", "path": "/data/none" }]));
    p.step("dry run", "PATCH", &format!("{a}?dryRun=All"), MERGE, json!({ "data": { "d": "1" } }));
    p.get("nothing came of it", a);
    let again = config_map("dry", json!({ "a": "1" }));
    p.step("dry create", "POST", &format!("{MAPS}?dryRun=All"), JSON, again);
    p.get("nothing came of that", &format!("{MAPS}/dry"));
    p.step("a patch of no kind", "PATCH", a, "text/plain", json!({}));
}

fn applies(p: &mut Player<'_>) {
    let by = |manager: &str| format!("{MAPS}/applied?fieldManager={manager}");
    let made = p.step("apply", "PATCH", &by("x"), APPLY, config_map("applied", json!({ "a": "1", "b": "1" })));
    let same = p.step("apply again", "PATCH", &by("x"), APPLY, config_map("applied", json!({ "a": "1", "b": "1" })));
    p.note("the version stays", json!(version_of(&made) == version_of(&same)));
    p.step("apply a change", "PATCH", &by("x"), APPLY, config_map("applied", json!({ "a": "2", "b": "1" })));
    p.step("apply without a manager", "PATCH", &format!("{MAPS}/applied"), APPLY, config_map("applied", json!({})));
    p.step("a conflict", "PATCH", &by("y"), APPLY, config_map("applied", json!({ "a": "3" })));
    p.step("the same value", "PATCH", &by("y"), APPLY, config_map("applied", json!({ "b": "1", "c": "1" })));
    p.step("by force", "PATCH", &format!("{}&force=true", by("z")), APPLY, config_map("applied", json!({ "a": "3" })));
    p.step("no longer applied", "PATCH", &by("x"), APPLY, config_map("applied", json!({})));
    p.step("the last owner leaves", "PATCH", &by("y"), APPLY, config_map("applied", json!({ "c": "1" })));
    let dry = format!("{}&dryRun=All", by("y"));
    p.step("apply dry", "PATCH", &dry, APPLY, config_map("applied", json!({ "e": "1" })));
    p.get("as it is", &format!("{MAPS}/applied"));
    p.step("an edit", "PATCH", &by("editor"), MERGE, json!({ "data": { "c": "9", "f": "1" } }));
    p.step(
        "drift is undone",
        "PATCH",
        &format!("{}&force=true", by("y")),
        APPLY,
        config_map("applied", json!({ "c": "1" })),
    );
    p.step("apply another kind", "PATCH", &by("x"), APPLY, widget("applied", json!({})));
    let mut owned = config_map("applied", json!({}));
    owned["metadata"]["managedFields"] = json!([{ "manager": "x" }]);
    p.step("apply owners", "PATCH", &by("x"), APPLY, owned);
    let nobody = json!([{ "op": "replace", "path": "/metadata/managedFields", "value": [{}] }]);
    p.step("owners are cleared", "PATCH", &format!("{MAPS}/applied"), STEPS, nobody);
}

fn subresources(p: &mut Player<'_>) {
    let w = &format!("{WIDGETS}/w");
    let status = &format!("{w}/status");
    let spec = json!({ "spec": { "a": 1 }, "status": { "x": 1 } });
    let first = p.step("a status is not created", "POST", WIDGETS, JSON, widget("w", spec));
    p.step("generations count the spec", "PATCH", w, MERGE, json!({ "spec": { "a": 2 }, "status": { "x": 2 } }));
    p.step("and not metadata", "PATCH", w, MERGE, json!({ "metadata": { "annotations": { "a": "b" } } }));
    p.step("nor the status", "PATCH", status, MERGE, json!({ "status": { "x": 3 }, "spec": { "a": 9 } }));
    p.get("get the status", status);
    p.step(
        "apply a status",
        "PATCH",
        &format!("{status}?fieldManager=x"),
        APPLY,
        widget("w", json!({ "status": { "y": 1 } })),
    );
    p.step("update without a version", "PUT", w, JSON, widget("w", json!({ "spec": { "a": 5 } })));
    let stale = json!({ "metadata": { "resourceVersion": version_of(&first) }, "status": { "x": 9 } });
    p.step("a stale status", "PATCH", status, MERGE, stale);
    let mut now = p.get("get", w);
    now["status"] = json!({ "x": 4 });
    p.step("update the status", "PUT", status, JSON, now.clone());
    p.step("the version was used", "PUT", status, JSON, now);
    p.step("of what is not there", "PATCH", &format!("{WIDGETS}/none/status"), MERGE, json!({ "status": {} }));
    p.step(
        "applied to what is not there",
        "PATCH",
        &format!("{WIDGETS}/none/status?fieldManager=x"),
        APPLY,
        widget("none", json!({ "status": {} })),
    );
    p.step("no such subresource", "PATCH", &format!("{MAPS}/a/status"), MERGE, json!({}));
    p.step(
        "apply beside a status",
        "PATCH",
        &format!("{w}?fieldManager=x"),
        APPLY,
        widget("w", json!({ "spec": { "b": 1 } })),
    );
}

fn deletions(p: &mut Player<'_>) {
    let w = &format!("{WIDGETS}/w");
    p.step("a finalizer", "PATCH", w, MERGE, json!({ "metadata": { "finalizers": ["play.example.com/x"] } }));
    let wrong = json!({ "preconditions": { "uid": "11111111-0000-4000-8000-000000000000" } });
    p.step("another was meant", "DELETE", w, JSON, wrong);
    p.step("delete dry", "DELETE", &format!("{w}?dryRun=All"), JSON, Value::Null);
    p.step("delete", "DELETE", w, JSON, json!({ "propagationPolicy": "Background" }));
    p.step("delete again", "DELETE", w, JSON, Value::Null);
    p.get("it is held", w);
    p.step("create meanwhile", "POST", WIDGETS, JSON, widget("w", json!({})));
    p.step("its status can be told", "PATCH", &format!("{w}/status"), MERGE, json!({ "status": { "z": 1 } }));
    p.step("let it go", "PATCH", w, MERGE, json!({ "metadata": { "finalizers": null } }));
    p.get("it is gone", w);
    p.step("delete what is not there", "DELETE", w, JSON, Value::Null);
    p.step("delete without finalizers", "DELETE", &format!("{MAPS}/applied"), JSON, Value::Null);
}

fn lists_and_watches(p: &mut Player<'_>) {
    let list = p.get("an empty list", WIDGETS);
    let from = version_of(&list);
    for (name, labels) in [("a", json!({ "x": "1" })), ("b", json!({ "x": "2" })), ("c", json!({}))] {
        let mut object = widget(name, json!({ "spec": {} }));
        object["metadata"]["labels"] = labels;
        p.step("create", "POST", WIDGETS, JSON, object);
    }
    p.get("by label", &format!("{WIDGETS}?labelSelector=x%3D1"));
    p.get("by labels", &format!("{WIDGETS}?labelSelector=x%20in%20(1,2),x!%3D1"));
    p.get("without a label", &format!("{WIDGETS}?labelSelector=!x"));
    p.get("by name", &format!("{WIDGETS}?fieldSelector=metadata.name%3Db"));
    p.get("all namespaces", "/apis/play.example.com/v1/widgets");
    p.get("a page", &format!("{WIDGETS}?limit=2"));
    p.step("metadata", "GET", WIDGETS, METADATA_LIST, Value::Null);
    p.step(
        "a label changes",
        "PATCH",
        &format!("{WIDGETS}/a"),
        MERGE,
        json!({ "metadata": { "labels": { "x": "2" } } }),
    );
    p.step("delete", "DELETE", &format!("{WIDGETS}/b"), JSON, Value::Null);
    p.watch("watch", &format!("{WIDGETS}?resourceVersion={from}"));
    p.watch("watch a label", &format!("{WIDGETS}?resourceVersion={from}&labelSelector=x%3D1"));
    p.watch("watch another", &format!("{WIDGETS}?resourceVersion={from}&labelSelector=x%3D2"));
    p.watch("watch from now", &format!("{WIDGETS}?a=b"));
    p.watch("watch one", &format!("{WIDGETS}?resourceVersion={from}&fieldSelector=metadata.name%3Dc"));
    p.watch(
        "a list by watching",
        &format!("{WIDGETS}?sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"),
    );
    p.get("no such kind", "/apis/play.example.com/v1/namespaces/play/gadgets");
    p.get("no such group", "/apis/none.example.com/v1/gadgets");
}

fn others(p: &mut Player<'_>) {
    let leases = "/apis/coordination.k8s.io/v1/namespaces/play/leases";
    let lease = |holder: &str| {
        json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "l" }, "spec": { "holderIdentity": holder, "leaseDurationSeconds": 15 } })
    };
    let mut first = p.step("create a lease", "POST", leases, JSON, lease("a"));
    p.step("update without a version", "PUT", &format!("{leases}/l"), JSON, lease("b"));
    first["spec"]["holderIdentity"] = json!("c");
    p.step("update a lease", "PUT", &format!("{leases}/l"), JSON, first.clone());
    p.step("too late", "PUT", &format!("{leases}/l"), JSON, first);
    let texts = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "type": "Opaque",
        "stringData": { "k": "v" } });
    p.step("a secret's texts", "POST", "/api/v1/namespaces/play/secrets", JSON, texts);
    p.get("by type", "/api/v1/namespaces/play/secrets?fieldSelector=type%3DOpaque");
    let event = json!({ "apiVersion": "v1", "kind": "Event", "metadata": { "name": "e.1" }, "type": "Normal", "reason": "R",
        "message": "m", "involvedObject": { "kind": "ConfigMap", "namespace": "play", "name": "a" } });
    let answer = p.send("POST", "/api/v1/namespaces/play/events", &[("Content-Type", JSON)], &event);
    p.note("an event", json!([answer.status, answer.json()["involvedObject"]]));
    let access = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": { "verb": "get", "resource": "secrets", "namespace": "play" } } });
    let answer =
        p.send("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &[("Content-Type", JSON)], &access);
    p.note("a review", json!([answer.status, answer.json()["status"]["allowed"]]));
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "sa" } });
    p.step("an account", "POST", "/api/v1/namespaces/play/serviceaccounts", JSON, account);
    let request =
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "audiences": [] } });
    let token = "/api/v1/namespaces/play/serviceaccounts/sa/token";
    let answer = p.send("POST", token, &[("Content-Type", JSON)], &request);
    p.note("a token", json!([answer.status, answer.json()["status"]["token"].is_string()]));
    for (path, what) in
        [("/apis/apps/v1", "deployments"), ("/api/v1", "secrets"), ("/apis/play.example.com/v1", "widgets")]
    {
        let list = p.send("GET", path, &[("Accept", JSON)], &Value::Null).json();
        let found = list["resources"].as_array().into_iter().flatten().find(|r| r["name"] == what).cloned();
        let found = found.unwrap_or_default();
        p.note(
            path,
            json!([list["kind"], list["groupVersion"], found["kind"], found["namespaced"], found["singularName"]]),
        );
    }
}
