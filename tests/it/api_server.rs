//! The scripted API server itself. That a real one answers the same script with the same lines, `tests/peers/cluster` shows.

use serde_json::{Value, json};

use crate::support::{
    api_script::{self, over_http},
    api_server::{ApiServer, Break, Call, Fault},
    eventually, http,
};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": "default" } })
}

#[test]
fn the_script_is_answered_as_kubernetes_answered_it() {
    let api = ApiServer::start();
    let played = api_script::play(&over_http(&api.url()));
    let recorded = api_script::recorded();
    let differ: Vec<String> = api_script::differences(("Kubernetes", &recorded), ("the scripted server", &played));
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

#[test]
fn calls_are_noted_and_fail_as_told() {
    let api = ApiServer::start();
    let send = over_http(&format!("{}{MAPS}", api.url()));
    let json = [("Content-Type", "application/json")];
    api.fault(|call| call.is("create", "configmaps"), 1, Fault::status(409, "Conflict"));
    assert_eq!(send("POST", "", &json, &map("a")).status, 409);
    assert_eq!(send("POST", "", &json, &map("a")).status, 201, "one fault was asked for");
    api.fault(|call| call.is("create", "configmaps"), 1, Fault::CloseAfterIt);
    http::send("POST", &format!("{}{MAPS}", api.url()), &json, map("b").to_string().as_bytes())
        .expect_err("it is closed");
    assert!(api.object("ConfigMap", "default", "b").is_some(), "and yet it was carried out");
    api.fault(Call::is_write, 9, Fault::too_many(7));
    let refused = send("DELETE", "/a", &[], &Value::Null);
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("7")));
    api.behave();
    let dry = [("Content-Type", "application/merge-patch+json"), ("Impersonate-User", "them")];
    send("PATCH", "/a?dryRun=All", &dry, &json!({ "data": { "x": "1" } }));
    let metadata = [("Accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")];
    send("GET", "?labelSelector=x", &metadata, &Value::Null);
    let wanted = [
        "create configmaps default/a",
        "create configmaps default/a",
        "create configmaps default/b",
        "delete configmaps default/a",
        "patch configmaps default/a (dry run) (as them)",
        "list configmaps default/ (metadata)",
    ];
    assert_eq!(api.lines(|_| true), wanted);
    assert_eq!(api.writes(), wanted[..4]);
    let codes: Vec<u16> = api.calls().iter().map(|call| call.status).collect();
    assert_eq!(codes, [409, 201, 0, 429, 200, 200]);
}

#[test]
fn watches_break_as_told_and_the_forgotten_is_gone() {
    let api = ApiServer::start();
    let url = format!("{}{MAPS}?watch=true&allowWatchBookmarks=true", api.url());
    // How it breaks, and the last event that the client sees; none: the body ends in the middle.
    for (how, last) in [(Break::Gone, Some("ERROR")), (Break::End, Some("BOOKMARK")), (Break::Cut, None)] {
        let watched = url.clone();
        let watch = std::thread::spawn(move || http::send("GET", &watched, &[], b""));
        eventually("the watch", || if api.watching("configmaps") == 1 { Ok(()) } else { Err(String::new()) });
        api.put(map("a"));
        api.edit("ConfigMap", "default", "a", |object| object["data"]["x"] = json!(format!("{how:?}")));
        api.bookmark();
        api.break_watches(how);
        let answer = watch.join().expect("no panic");
        match (last, answer) {
            (Some(last), Ok(answer)) => {
                let text = answer.text();
                let last_line: Value = serde_json::from_str(text.lines().last().expect("events")).expect("JSON");
                assert_eq!(last_line["type"], last, "{text}");
                assert!(text.contains("\"MODIFIED\"") || text.contains("\"ADDED\""), "{text}");
            }
            (None, Err(_)) => {}
            (last, answer) => panic!("{how:?}: {last:?}, {answer:?}"),
        }
        eventually("the watch's end", || if api.watching("configmaps") == 0 { Ok(()) } else { Err(String::new()) });
    }
    api.compact();
    assert_eq!(http::get(&format!("{url}&resourceVersion=2")).status, 410);
}
