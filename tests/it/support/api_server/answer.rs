//! From a request to its answer.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::{Request, Response, body::Incoming};
use serde_json::{Value, json};

use super::{
    Call, Fault, State, failure,
    objects::{By, Refusal, now},
    path::{self, Resource, Target},
    watch::{self, News, Selector, Shown},
};

type Answer = Response<Either<Full<Bytes>, watch::Stream>>;

/// Answers a request; an error ends the connection.
pub async fn answer(state: Arc<State>, request: Request<Incoming>) -> io::Result<Answer> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers: BTreeMap<String, String> =
        head.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
    let query: BTreeMap<String, String> = head
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('=').or((!pair.is_empty()).then_some((pair, ""))))
        .map(|(key, value)| (key.to_owned(), path::unescape(&value.replace('+', " "))))
        .collect();
    let body: Value = if body.is_empty() {
        Value::Null
    } else {
        let yaml = || serde_saphyr::from_str(&String::from_utf8_lossy(&body)).ok();
        serde_json::from_slice(&body).ok().or_else(yaml).unwrap_or(Value::Null)
    };
    let target = path::target(head.uri.path()).unwrap_or_default();
    let watching = query.get("watch").is_some_and(|value| value == "true" || value == "1");
    let applies = headers.get("content-type").is_some_and(|kind| kind.starts_with("application/apply-patch"));
    let verb = match head.method.as_str() {
        method if target.plural.is_empty() => method,
        "GET" if watching => "watch",
        "GET" if target.name.is_empty() => "list",
        "GET" => "get",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" if applies => "apply",
        "PATCH" => "patch",
        "DELETE" => "delete",
        other => other,
    };
    let named = body["metadata"]["name"].as_str().filter(|_| verb == "create" && target.name.is_empty());
    let call = Call {
        verb: verb.to_owned(),
        path: head.uri.path().to_owned(),
        group: target.group.clone(),
        version: target.version.clone(),
        resource: target.plural.clone(),
        subresource: target.subresource.clone(),
        namespace: target.namespace.clone(),
        name: named.unwrap_or(&target.name).to_owned(),
        query,
        headers,
        body,
        status: 0,
    };
    let (number, fault) = {
        let mut content = state.content();
        content.calls.push(call.clone());
        let number = content.calls.len() - 1;
        let rule = content.rules.iter_mut().find(|rule| rule.left > 0 && (rule.when)(&call));
        let fault = rule.map(|rule| {
            rule.left -= 1;
            rule.fault.clone()
        });
        (number, fault)
    };
    let right = || carry_out(&state, &target, &call);
    let closed = || io::Error::other("closed, as the test asked");
    let answer = match fault {
        None => right(),
        Some(Fault::Answer { status, headers, body }) => {
            let mut answer = plain(status, &body);
            for (name, value) in headers {
                answer.headers_mut().insert(name, value.parse().expect("a header's value"));
            }
            answer
        }
        Some(Fault::AfterIt { status, body }) => {
            right();
            plain(status, &body)
        }
        Some(Fault::Close) => return Err(closed()),
        Some(Fault::CloseAfterIt) => {
            right();
            return Err(closed());
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Delay(time)) => {
            tokio::time::sleep(time).await;
            right()
        }
    };
    // The calls may have been forgotten meanwhile.
    if let Some(noted) = state.content().calls.get_mut(number).filter(|noted| noted.path == call.path) {
        noted.status = answer.status().as_u16();
    }
    Ok(answer)
}

fn plain(status: u16, body: &Value) -> Answer {
    let answer = Response::builder().status(status).header("content-type", "application/json");
    answer.body(Either::Left(Full::new(body.to_string().into()))).expect("a status and a constant header")
}

fn carry_out(state: &Arc<State>, target: &Target, call: &Call) -> Answer {
    match outcome(state, target, call) {
        Ok(answer) => answer,
        Err((status, body)) => plain(status, &body),
    }
}

fn outcome(state: &Arc<State>, target: &Target, call: &Call) -> Result<Answer, Refusal> {
    let mut content = state.content();
    let objects = &mut content.objects;
    let accept = call.headers.get("accept").map_or("", String::as_str);
    if let Some(document) = path::document(&call.path, &objects.resources, accept.contains("g=apidiscovery.k8s.io")) {
        return Ok(plain(200, &document));
    }
    let not_served = || (404, failure(404, "NotFound", "the server could not find the requested resource"));
    let Some(resource) = objects.resource(&target.group, &target.version, &target.plural) else {
        let answer = Response::builder().status(404).header("content-type", "text/plain; charset=utf-8");
        return Ok(answer.body(Either::Left(Full::from("404 page not found\n"))).expect("a constant header"));
    };
    if let Some(answer) = review(&resource, target, call) {
        return Ok(plain(201, &answer));
    }
    let by = By {
        manager: manager(call),
        dry_run: call.is_dry_run(),
        force: call.query.get("force").is_some_and(|force| force == "true"),
        status_only: target.subresource == "status",
        applied: false,
    };
    if !(target.subresource.is_empty() || by.status_only && resource.status) {
        return Err(not_served());
    }
    let show = shown(&resource, accept);
    let (namespace, name) = (target.namespace.as_str(), target.name.as_str());
    let (code, object) = match call.verb.as_str() {
        "get" => (200, objects.get(&resource, namespace, name)?),
        "list" => return Ok(plain(200, &list(objects, &resource, target, call, &show)?)),
        "watch" => {
            let from = call.query.get("resourceVersion").filter(|version| !version.is_empty() && *version != "0");
            let from = from.and_then(|version| version.parse().ok());
            if let Some(gone) = watch::too_old(objects.compacted, from) {
                return Err((410, gone));
            }
            let is = |key: &str| call.query.get(key).is_some_and(|value| value == "true");
            let seconds = call.query.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(1800);
            let mut selector = call.query.clone();
            if !name.is_empty() {
                selector.insert("fieldSelector".to_owned(), format!("metadata.name={name}"));
            }
            let asked = watch::Asked {
                resource,
                namespace: namespace.to_owned(),
                selector: Selector::of(&selector),
                from: from.filter(|_| !is("sendInitialEvents")),
                bookmarks: is("allowWatchBookmarks"),
                initial: is("sendInitialEvents"),
                end: Duration::from_secs(seconds),
                show,
            };
            drop(content);
            let stream = watch::start(state.clone(), asked);
            let answer = Response::builder().header("content-type", "application/json");
            return Ok(answer.body(Either::Right(stream)).expect("a constant header"));
        }
        "create" => (201, objects.create(&resource, namespace, call.body.clone(), &by)?),
        "update" => (200, objects.update(&resource, namespace, name, call.body.clone(), &by)?),
        "patch" => {
            let kind =
                call.headers.get("content-type").map_or("", String::as_str).split(';').next().unwrap_or_default();
            (200, objects.patch(&resource, namespace, name, (kind, &call.body), &by)?)
        }
        "apply" => {
            let (object, made) = objects.apply(&resource, namespace, name, &call.body, &by)?;
            (if made { 201 } else { 200 }, object)
        }
        "delete" if !name.is_empty() => (200, objects.delete(&resource, namespace, name, &call.body, by.dry_run)?),
        _ => return Err((405, failure(405, "MethodNotAllowed", "the server does not allow this method"))),
    };
    drop(content);
    state.tell(News::Changed);
    Ok(plain(code, &show(&object)))
}

/// The manager of the fields that a call writes: the one it names, or the client's program, as Kubernetes has it.
fn manager(call: &Call) -> String {
    let agent = || call.headers.get("user-agent").and_then(|agent| agent.split('/').next()).unwrap_or("unknown");
    match call.query.get("fieldManager") {
        Some(named) => named.clone(),
        None if call.verb == "apply" => String::new(),
        None => agent().to_owned(),
    }
}

/// Shows an object in the version of the path, or only its metadata where that is asked for.
fn shown(resource: &Resource, accept: &str) -> Shown {
    let (version, metadata_only) = (resource.api_version(), accept.contains("as=PartialObjectMetadata"));
    Arc::new(move |object| {
        if metadata_only {
            return json!({ "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": object["metadata"] });
        }
        let mut object = object.clone();
        if object["apiVersion"].is_string() {
            object["apiVersion"] = json!(version);
        }
        object
    })
}

fn list(
    objects: &super::objects::Objects,
    resource: &Resource,
    target: &Target,
    call: &Call,
    show: &Shown,
) -> Result<Value, Refusal> {
    let selector = Selector::of(&call.query);
    let mut items: Vec<Value> =
        objects.all(resource, &target.namespace).filter(|object| selector.picks(object)).map(|o| show(o)).collect();
    let number = |key: &str| call.query.get(key).and_then(|text| text.parse::<usize>().ok()).unwrap_or_default();
    let (limit, start) = (number("limit"), number("continue"));
    let mut metadata = json!({ "resourceVersion": objects.version.to_string() });
    items.drain(..start.min(items.len()));
    if limit > 0 && items.len() > limit {
        metadata["continue"] = json!((start + limit).to_string());
        metadata["remainingItemCount"] = json!(items.len() - limit);
        items.truncate(limit);
    }
    let (version, kind) = match call.is_metadata_only() {
        true => ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList".to_owned()),
        false => (resource.api_version(), format!("{}List", resource.kind)),
    };
    if resource.is_built_in() && !call.is_metadata_only() {
        // As Kubernetes does: what the list says is not said again.
        let named = items.iter_mut().filter_map(Value::as_object_mut);
        named.for_each(|item| item.retain(|key, _| key != "apiVersion" && key != "kind"));
    }
    Ok(json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "items": items }))
}

/// The answer to what is asked by a create that keeps nothing: reviews of access (everything is allowed; a test denies by
/// a fault), and tokens of service accounts.
fn review(resource: &Resource, target: &Target, call: &Call) -> Option<Value> {
    let mut answer = call.body.clone();
    if call.verb != "create" || !answer.is_object() {
        return None;
    }
    match (resource.plural.as_str(), target.subresource.as_str()) {
        ("serviceaccounts", "token") => {
            let seconds = answer["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
            let end = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
            answer["status"] = json!({ "token": format!("token-of-{}-{}", target.namespace, target.name),
                "expirationTimestamp": end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string() });
        }
        ("tokenreviews", _) => answer["status"] = json!({ "authenticated": true }),
        ("selfsubjectrulesreviews", _) => {
            let all = json!([{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }]);
            answer["status"] = json!({ "resourceRules": all, "nonResourceRules": [], "incomplete": false });
        }
        (plural, _) if plural.ends_with("accessreviews") => answer["status"] = json!({ "allowed": true }),
        _ => return None,
    }
    answer["metadata"]["creationTimestamp"] = json!(now());
    Some(answer)
}
