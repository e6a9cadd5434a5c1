//! The API server is away while a daemon starts.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Kubernetes, NAMESPACE, Stage, path_of, with};
use crate::support::{
    eventually,
    fixtures::{files, files_in, sha256},
    http,
    larder::{Larder, fetch_artifact, run, text},
};

/// What is served where a status says.
fn at(larder: &Larder, object: &Value) -> http::Response {
    http::get(&format!("{}/{}", larder.artifacts, text(object, "/status/artifact/path")))
}

/// Until what a status names is kept: that is a moment later.
fn kept(larder: &Larder, object: &Value) {
    let name = text(object, "/metadata/name");
    let record = larder.data.join(format!("objects/ocirepository/default/{name}.json"));
    eventually("the record", || {
        let record = std::fs::read_to_string(&record).unwrap_or_default();
        if record.contains(text(object, "/status/artifact/digest")) { Ok(()) } else { Err(record) }
    });
}

fn is_served(larder: &Larder, object: &Value) {
    let answer = at(larder, object);
    assert_eq!((answer.status, sha256(&answer.body)), (200, text(object, "/status/artifact/digest").to_owned()));
}

pub fn a_start_without_the_api_server_serves_what_was_published(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let sources = ["app", "gone", "again"].map(|name| {
        let repository = format!("team/{name}");
        stage.push(&repository, "latest", &files(&[("a.yaml", "1")]));
        stage.oci_repository(name, &repository, json!({}))
    });
    sources.iter().for_each(|source| api.create(source));
    let larder = stage.serve(&[]);
    let first = stage.ready(&path_of(&sources[0]));
    let [gone, again] = [1, 2].map(|n| stage.ready(&path_of(&sources[n])));
    let digest = stage.push("team/app", "latest", &files(&[("a.yaml", "2")]));
    let app = stage.request(&path_of(&sources[0]), "1");
    [&app, &gone, &again].into_iter().for_each(|object| kept(&larder, object));
    larder.kill();
    // Two go while nobody looks, and one of them is made anew.
    for source in &sources[1..] {
        api.patch(&path_of(source), &json!({ "metadata": { "finalizers": null } }));
        api.delete(&path_of(source));
        api.wait_gone(&path_of(source));
    }
    api.create(&with(sources[2].clone(), "/spec", json!({ "suspend": true })));
    let asked = stage.registry.requests();
    api.go_away();
    let began = Instant::now();
    let larder = stage.serve(&[]);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(http::get(&format!("{}/readyz", larder.admin)).status, 200);
    [&app, &first, &gone, &again].into_iter().for_each(|object| is_served(&larder, object));
    let latest = http::get(&format!("{}/ocirepository/default/app/latest.tar.gz", larder.artifacts));
    let hex = text(&app, "/status/artifact/digest").trim_start_matches("sha256:").to_owned();
    assert_eq!((latest.status, latest.header("location")), (302, Some(&*format!("{hex}.tar.gz"))));
    // What a status may name by now is another thing than what none names.
    let unknown = format!("{}/ocirepository/default/new/{hex}.tar.gz", larder.artifacts);
    let answer = http::get(&unknown);
    assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true));
    let collected = http::send("POST", &format!("{}/v1/store/gc", larder.admin), &[], b"").expect("an answer");
    assert_ne!(collected.status, 200, "nothing is garbage before it is known what is named: {}", collected.text());
    let refused = larder.reconcile("OCIRepository", NAMESPACE, "app");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("no replica is known to lead"), "{}", refused.text());
    assert_eq!(larder.metric("larder_leading", &[]), 0);
    assert_eq!(larder.object("OCIRepository", NAMESPACE, "app").expect("it is shown")["status"], app["status"]);
    assert_eq!(stage.registry.requests(), asked, "nothing is asked for that is held");
    api.come_back();
    for (path, object) in [("gone", &gone), ("again", &again)] {
        eventually(&format!("{path} to go"), || match at(&larder, object).status {
            404 => Ok(()),
            status => Err(status.to_string()),
        });
    }
    eventually("what is not there to be known", || match http::get(&unknown).status {
        404 => Ok(()),
        status => Err(status.to_string()),
    });
    is_served(&larder, &app);
    larder.wait_gone("OCIRepository", NAMESPACE, "gone");
    let newest = stage.push("team/app", "latest", &files(&[("a.yaml", "3")]));
    let third = stage.request(&path_of(&sources[0]), "2");
    assert_eq!(text(&third, "/status/artifact/revision"), format!("latest@{newest}"));
    assert_eq!(files_in(&fetch_artifact(&third))["a.yaml"], b"3");
    assert_eq!(larder.metric("larder_leading", &[]), 1);
    assert_ne!(newest, digest);
    let data = larder.data.clone();
    assert!(!data.join("objects/ocirepository/default/gone.json").exists());
    assert_eq!(larder.stop(), Some(0));
    let verified = run(stage.root(), ["store", "verify", "--data", data.to_str().expect("UTF-8")]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

pub fn a_first_start_is_live_while_it_waits_for_the_api_server(api: &(impl Kubernetes + Sync)) {
    let stage = Stage::new(api);
    let source = stage.oci_repository("app", "team/app", json!({}));
    stage.push("team/app", "latest", &files(&[("a.yaml", "1")]));
    api.create(&source);
    api.go_away();
    let lock = stage.folder("one").join("data/lock");
    let admin = std::thread::scope(|scope| {
        let starting = scope.spawn(|| stage.serve(&[]));
        let admin = eventually("an admin address", || {
            let text = std::fs::read_to_string(&lock).unwrap_or_default();
            let holder: Value = serde_json::from_str(&text).map_err(|e| format!("{text:?}: {e}"))?;
            Ok(format!("http://{}", holder["admin"].as_str().ok_or_else(|| text.clone())?))
        });
        let statuses = |targets: &[&str]| targets.iter().map(|t| http::get(&format!("{admin}{t}")).status).collect();
        let found: Vec<u16> = statuses(&["/livez", "/metrics", "/readyz", "/v1/objects"]);
        assert_eq!(found, [200, 200, 503, 503]);
        let asked = http::get(&format!("{admin}/v1/objects"));
        assert!(asked.text().contains("is starting"), "{}", asked.text());
        assert!(!starting.is_finished());
        api.come_back();
        let larder = starting.join().expect("it starts");
        assert_eq!(larder.admin, admin);
        assert_eq!(http::get(&format!("{admin}/readyz")).status, 200);
        stage.ready(&path_of(&source));
        admin
    });
    assert!(http::send("GET", &format!("{admin}/livez"), &[], b"").is_err(), "it ended");
}

pub fn what_a_producer_published_is_served_at_a_start_without_the_api_server(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &files(&[("a.yaml", "1")]));
    let labels = json!({ "labels": { "larder.dev/publish": "true" } });
    let sources = ["app", "gone"]
        .map(|name| with(stage.oci_repository(name, "team/app", json!({})), "/metadata", labels.clone()));
    sources.iter().for_each(|source| api.create(source));
    let flags = [
        "--external-artifacts",
        "--watch-label-selector",
        "larder.dev/publish=true",
        "--artifact-advertise",
        "l.example",
    ];
    let external =
        |name: &str| format!("/apis/source.toolkit.fluxcd.io/v1/namespaces/{NAMESPACE}/externalartifacts/{name}");
    let larder = stage.serve(&flags);
    let [app, gone] =
        ["app", "gone"].map(|name| api.wait(&external(name), |object| !object["status"]["artifact"].is_null()));
    larder.kill();
    api.delete(&path_of(&sources[1]));
    api.wait_gone(&path_of(&sources[1]));
    api.go_away();
    let larder = stage.serve(&flags);
    [&app, &gone].into_iter().for_each(|object| is_served(&larder, object));
    api.come_back();
    eventually("what went to go", || match at(&larder, &gone).status {
        404 => Ok(()),
        status => Err(status.to_string()),
    });
    is_served(&larder, &app);
    stage.push("team/app", "latest", &files(&[("a.yaml", "2")]));
    eventually("a pass", || match larder.reconcile("OCIRepository", NAMESPACE, "app").status {
        200 => Ok(()),
        status => Err(status.to_string()),
    });
    let newer = api.wait(&external("app"), |object| object["status"]["artifact"] != app["status"]["artifact"]);
    is_served(&larder, &newer);
}
