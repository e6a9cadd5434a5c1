//! Sources on a cluster.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Kubernetes, NAMESPACE, Stage, notification, object, path_of, with};
use crate::support::{
    eventually,
    fixtures::{Files, files, files_in, sha256},
    http,
    larder::{condition_of, fetch_artifact, is_ready, text},
    registry::{Auth, Fault, Kind, Options, of},
};

fn app(version: &str) -> Files {
    files(&[("deploy.yaml", version)])
}

/// Writes about an object of a kind.
fn writes_of(api: &impl Kubernetes, name: &str) -> Vec<String> {
    let about = |line: &String| line.ends_with(&format!("/{name}")) || line.starts_with("create events");
    api.writes().into_iter().filter(about).collect()
}

/// Nothing happens for a moment: to be used where something must not.
fn a_moment() {
    std::thread::sleep(Duration::from_millis(700));
}

pub fn a_first_pass_costs_three_writes_and_one_without_a_change_none(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let digest = stage.push("team/app", "latest", &app("1"));
    let source = stage.oci_repository("app", "team/app", json!({ "interval": "2s" }));
    api.create(&source);
    let larder = stage.serve(&[]);
    let path = path_of(&source);
    let ready = stage.ready(&path);
    let writes =
        ["patch ocirepositories default/app", "patch ocirepositories/status default/app", "create events default/"];
    eventually("the event", || if api.writes().len() >= 3 { Ok(()) } else { Err(format!("{:?}", api.writes())) });
    assert_eq!(api.writes(), writes);
    assert_eq!(ready["metadata"]["finalizers"], json!(["finalizers.fluxcd.io"]));
    assert_eq!(text(&ready, "/status/artifact/revision"), format!("latest@{digest}"));
    assert_eq!(files_in(&fetch_artifact(&ready)), app("1"));
    assert_eq!(condition_of(&ready, "Ready")["message"], format!("stored artifact for digest 'latest@{digest}'"));
    let events = api.events("OCIRepository", "app");
    let message = format!("stored artifact with revision 'latest@{digest}' from '{}'", stage.url("team/app"));
    assert_eq!(events, [("Normal".into(), "NewArtifact".into(), message)]);
    let probes = stage.registry.count(Kind::ManifestHead);
    eventually("two more probes", || {
        let now = stage.registry.count(Kind::ManifestHead);
        if now >= probes + 2 { Ok(()) } else { Err(now.to_string()) }
    });
    assert_eq!(api.writes(), writes, "a pass without a change writes nothing");
    assert!(api.calls().iter().all(|call| !call.contains("secrets")), "no Secret is named: {:?}", api.calls());
    assert!(larder.metric("larder_reconcile_total", &[("kind", "OCIRepository"), ("outcome", "ok")]) >= 3);
    let shown = larder.object("OCIRepository", NAMESPACE, "app").expect("it is shown");
    assert_eq!(shown["status"], ready["status"]);
    assert_eq!(larder.stop(), Some(0));
}

pub fn a_request_is_honoured_and_a_new_revision_told(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &app("1"));
    let source = stage.oci_repository("app", "team/app", json!({}));
    api.create(&source);
    let _larder = stage.serve(&[]);
    let path = path_of(&source);
    let first = stage.ready(&path);
    eventually("the event", || if api.writes().len() >= 3 { Ok(()) } else { Err(format!("{:?}", api.writes())) });
    let before = api.writes().len();
    let asked = stage.request(&path, "now");
    assert_eq!(asked["status"]["artifact"], first["status"]["artifact"]);
    assert_eq!(api.writes()[before..], ["patch ocirepositories/status default/app"], "only that it was handled");
    let digest = stage.push("team/app", "latest", &app("2"));
    let second = stage.request(&path, "again");
    assert_eq!(text(&second, "/status/artifact/revision"), format!("latest@{digest}"));
    assert_eq!(files_in(&fetch_artifact(&second)), app("2"));
    assert_eq!(files_in(&fetch_artifact(&first)), app("1"), "the superseded one is served for a while");
    eventually("the second event", || {
        let events = api.events("OCIRepository", "app");
        if events.len() == 2 { Ok(()) } else { Err(format!("{events:?}")) }
    });
}

pub fn a_new_generation_is_observed_and_ignore_rules_make_another_artifact(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &files(&[("a.yaml", "a"), ("foo.txt", "foo")]));
    let source = stage.oci_repository("app", "team/app", json!({}));
    api.create(&source);
    let _larder = stage.serve(&[]);
    let path = path_of(&source);
    let first = stage.ready(&path);
    api.patch(&path, &json!({ "spec": { "ignore": "foo.txt" } }));
    let second = api.wait(&path, |o| is_ready(o) && o["status"]["observedIgnore"] == "foo.txt");
    assert_ne!(second["status"]["artifact"]["digest"], first["status"]["artifact"]["digest"]);
    assert_eq!(second["status"]["artifact"]["revision"], first["status"]["artifact"]["revision"]);
    assert_eq!(files_in(&fetch_artifact(&second)), files(&[("a.yaml", "a")]));
    api.patch(&path, &json!({ "spec": { "ignore": null } }));
    let third = api.wait(&path, |o| is_ready(o) && o["status"].get("observedIgnore").is_none());
    assert_eq!(third["status"]["artifact"]["digest"], first["status"]["artifact"]["digest"]);
    let selector = json!({ "mediaType": "application/vnd.none", "operation": "copy" });
    api.patch(&path, &json!({ "spec": { "layerSelector": selector } }));
    let failed = stage.failed(&path, "FetchFailed", "OCIArtifactLayerOperationFailed");
    assert_eq!(failed["status"]["artifact"], third["status"]["artifact"]);
    assert_ne!(failed["status"]["observedGeneration"], failed["metadata"]["generation"], "it will be tried again");
}

pub fn what_is_deleted_goes_with_its_artifact_also_suspended(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &app("1"));
    let sources = ["app", "resting"].map(|name| stage.oci_repository(name, "team/app", json!({})));
    sources.iter().for_each(|source| api.create(source));
    let larder = stage.serve(&[]);
    let [app, resting] = sources.map(|source| path_of(&source));
    let urls = [&app, &resting].map(|path| text(&stage.ready(path), "/status/artifact/url").to_owned());
    api.patch(&resting, &json!({ "spec": { "suspend": true } }));
    eventually("the suspension", || {
        let object = larder.object("OCIRepository", NAMESPACE, "resting").expect("it is there");
        if object["spec"]["suspend"] == true { Ok(()) } else { Err(object.to_string()) }
    });
    assert_eq!(http::get(&urls[1]).status, 200, "what is suspended is served");
    for (path, url) in [&app, &resting].into_iter().zip(&urls) {
        api.delete(path);
        api.wait_gone(path);
        assert_eq!(http::get(url).status, 404, "{url}");
    }
    larder.wait_gone("OCIRepository", NAMESPACE, "app");
}

pub fn what_is_not_larders_is_left_strictly_alone(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &app("1"));
    let label = |object: Value| with(object, "/metadata", json!({ "labels": { "sharding.fluxcd.io/key": "larder" } }));
    let git = object("GitRepository", "git", json!({ "url": "https://git.example.com/a", "interval": "1m" }));
    let index = object("HelmRepository", "index", json!({ "url": "https://charts.example.com", "interval": "1m" }));
    let theirs = stage.oci_repository("theirs", "team/app", json!({}));
    let ours = stage.oci_repository("ours", "team/app", json!({}));
    let spec = json!({ "chart": "c", "interval": "1m", "sourceRef": { "kind": "HelmRepository", "name": "index" } });
    let chart =
        with(label(object("HelmChart", "chart", spec)), "/metadata", json!({ "finalizers": ["finalizers.fluxcd.io"] }));
    for object in [label(git), label(index), chart.clone(), theirs.clone(), label(ours.clone())] {
        api.create(&object);
    }
    let larder = stage.serve(&["--watch-label-selector", "sharding.fluxcd.io/key=larder"]);
    stage.ready(&path_of(&ours));
    a_moment();
    let foreign: Vec<String> =
        api.writes().into_iter().filter(|line| !line.ends_with("/ours") && !line.contains("events")).collect();
    assert_eq!(foreign, [] as [String; 0]);
    assert_eq!(api.events("HelmChart", "chart"), [], "its HelmRepository is one over HTTP");
    api.delete(&path_of(&chart));
    a_moment();
    let going = api.get(&path_of(&chart)).expect("Flux's source-controller ends it");
    assert_eq!(going["metadata"]["finalizers"], json!(["finalizers.fluxcd.io"]));
    api.patch(&path_of(&chart), &json!({ "metadata": { "finalizers": null } }));
    // Its label comes and goes, and with it Larder; the finalizer stays for whoever looks after it then.
    api.patch(&path_of(&theirs), &json!({ "metadata": { "labels": { "sharding.fluxcd.io/key": "larder" } } }));
    stage.ready(&path_of(&theirs));
    api.patch(&path_of(&theirs), &json!({ "metadata": { "labels": null } }));
    larder.wait_gone("OCIRepository", NAMESPACE, "theirs");
    let left = api.get(&path_of(&theirs)).expect("it stays");
    assert_eq!(left["metadata"]["finalizers"], json!(["finalizers.fluxcd.io"]));
    assert!(left["status"]["artifact"].is_object(), "and its status, until another one writes it");
}

pub fn a_git_repository_with_an_oci_url_is_a_source(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let digest = stage.push("team/app", "v1.0.0", &app("1"));
    let source = object(
        "GitRepository",
        "my-app-oci",
        json!({ "url": stage.url("team/app"), "interval": "1m", "ref": { "tag": "v1.0.0" } }),
    );
    api.create(&source);
    let _larder = stage.serve(&[]);
    let ready = stage.ready(&path_of(&source));
    assert_eq!(text(&ready, "/status/artifact/revision"), format!("v1.0.0@{digest}"));
    assert!(text(&ready, "/status/artifact/path").starts_with("gitrepository/default/my-app-oci/"));
    assert_eq!(files_in(&fetch_artifact(&ready)), app("1"));
    // Someone makes it a real one: it is not Larder's any more.
    api.patch(&path_of(&source), &json!({ "spec": { "url": "https://git.example.com/a" } }));
    eventually("the artifact to go", || match http::get(text(&ready, "/status/artifact/url")).status {
        404 => Ok(()),
        status => Err(status.to_string()),
    });
}

pub fn a_git_repository_that_leaves_oci_is_let_go(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &app("1"));
    let elsewhere = "https://git.example.com/a";
    let git = |name: &str, url: &str| {
        object("GitRepository", name, json!({ "url": url, "interval": "1h", "ref": { "tag": "latest" } }))
    };
    let url = stage.url("team/app");
    let (changed, going) = (git("changed", &url), git("going", &url));
    api.create(&changed);
    api.create(&going);
    // Flux's own has the same finalizer.
    let fluxs = with(git("fluxs", elsewhere), "/metadata", json!({ "finalizers": ["finalizers.fluxcd.io"] }));
    api.create(&fluxs);
    let commit = "0123456789012345678901234567890123456789";
    let file = format!("gitrepository/default/fluxs/{commit}.tar.gz");
    let artifact = json!({ "digest": sha256(b"as Flux packs it"), "lastUpdateTime": "2026-01-02T03:04:05Z",
        "path": file, "revision": format!("main@sha1:{commit}"), "size": 16, "url": format!("http://source/{file}") });
    let theirs = api.patch(&format!("{}/status", path_of(&fluxs)), &json!({ "status": { "artifact": artifact } }));
    let larder = stage.serve(&[]);
    stage.ready(&path_of(&changed));
    stage.ready(&path_of(&going));
    api.patch(&path_of(&changed), &json!({ "spec": { "url": elsewhere } }));
    api.wait(&path_of(&changed), |object| {
        let finalizers = object["metadata"]["finalizers"].as_array();
        finalizers.is_none_or(Vec::is_empty)
            && object["status"]["artifact"].is_null()
            && object["status"]["conditions"].is_null()
    });
    let log = larder.log();
    assert!(log.contains("what was written of it is taken back"), "{log}");
    assert_eq!(larder.stop(), Some(0));
    // Another changes and is deleted while nobody looks.
    api.patch(&path_of(&going), &json!({ "spec": { "url": elsewhere } }));
    api.delete(&path_of(&going));
    assert!(api.get(&path_of(&going)).is_some(), "its finalizer holds it");
    let before = api.writes().len();
    let _larder = stage.serve(&[]);
    api.wait_gone(&path_of(&going));
    a_moment();
    assert_eq!(api.writes()[before..], ["patch gitrepositories default/going"], "the others are left alone");
    assert_eq!(api.get(&path_of(&fluxs)).expect("it stays"), theirs);
}

pub fn secrets_are_read_by_name_and_what_they_lack_is_told(api: &impl Kubernetes) {
    let auth = Auth::Basic("user", "right");
    let stage = Stage::with_registry(api, Options { auth, ..Options::default() });
    stage.push("team/app", "latest", &app("1"));
    let path = {
        let source = stage.oci_repository("app", "team/app", json!({ "interval": "1s" }));
        api.create(&source);
        path_of(&source)
    };
    let _larder = stage.serve(&[]);
    // The registry's own no, as in Flux.
    stage.failed(&path, "FetchFailed", "OCIArtifactPullFailed");
    api.patch(&path, &json!({ "spec": { "secretRef": { "name": "creds" } } }));
    let failed = stage.failed(&path, "FetchFailed", "AuthenticationFailed");
    assert_eq!(condition_of(&failed, "Reconciling")["reason"], "ProgressingWithRetry");
    let secret = |password: &str| {
        let auths = json!({ "auths": { stage.registry.authority(): { "username": "user", "password": password } } });
        json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
            "metadata": { "name": "creds", "namespace": NAMESPACE }, "stringData": { ".dockerconfigjson": auths.to_string() } })
    };
    let wrong = secret("canary-wrong");
    api.create(&if api.is_real() { wrong } else { encoded(wrong) });
    stage.request(&path, "1");
    stage.failed(&path, "FetchFailed", "OCIArtifactPullFailed");
    let right = secret("right");
    let right = if api.is_real() { right } else { encoded(right) };
    // A Secret that changes is seen within a moment, though nobody watches it.
    api.patch(
        "/api/v1/namespaces/default/secrets/creds",
        &json!({ "data": right["data"], "stringData": right["stringData"] }),
    );
    let ready = stage.ready(&path);
    assert_eq!(files_in(&fetch_artifact(&ready)), app("1"));
    let asked: Vec<String> = api.calls().into_iter().filter(|call| call.contains("secrets")).collect();
    assert!(!asked.is_empty() && asked.iter().all(|call| call == "get secrets default/creds"), "{asked:?}");
    assert!(!ready.to_string().contains("canary"), "{ready}");
}

/// `stringData` as `data`, which an API server makes of it and the scripted one does not.
fn encoded(mut secret: Value) -> Value {
    use base64::Engine as _;
    let text = secret["stringData"].take();
    let pairs = text.as_object().expect("stringData").iter().map(|(key, value)| {
        let value = value.as_str().expect("text");
        (key.clone(), Value::from(base64::engine::general_purpose::STANDARD.encode(value)))
    });
    secret["data"] = pairs.collect::<serde_json::Map<_, _>>().into();
    secret.as_object_mut().expect("a mapping").remove("stringData");
    secret
}

pub fn a_service_accounts_pull_secrets_count(api: &impl Kubernetes) {
    let auth = Auth::Basic("user", "right");
    let stage = Stage::with_registry(api, Options { auth, ..Options::default() });
    stage.push("team/app", "latest", &app("1"));
    let auths = json!({ "auths": { stage.registry.authority(): { "username": "user", "password": "right" } } });
    api.create(&encoded(json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": { "name": "pull", "namespace": NAMESPACE }, "stringData": { ".dockerconfigjson": auths.to_string() } })));
    api.create(&with(
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "puller", "namespace": NAMESPACE } }),
        "",
        json!({ "imagePullSecrets": [{ "name": "pull" }] }),
    ));
    let source = stage.oci_repository("app", "team/app", json!({ "serviceAccountName": "puller" }));
    api.create(&source);
    let _larder = stage.serve(&[]);
    stage.ready(&path_of(&source));
}

pub fn a_failure_takes_nothing_away_and_its_end_is_told(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &app("1"));
    let source = stage.oci_repository("app", "team/app", json!({}));
    api.create(&source);
    let larder = stage.serve(&[]);
    let path = path_of(&source);
    let first = stage.ready(&path);
    stage.registry.fault(|_| true, 1_000, Fault::status(403));
    stage.request(&path, "1");
    let failed = stage.failed(&path, "FetchFailed", "OCIArtifactPullFailed");
    assert_eq!(failed["status"]["artifact"], first["status"]["artifact"]);
    assert_eq!(condition_of(&failed, "Reconciling")["reason"], "ProgressingWithRetry");
    fetch_artifact(&failed);
    let before = api.writes().len();
    stage.request(&path, "2");
    eventually("the second failure", || {
        let done = larder.metric("larder_reconcile_total", &[("outcome", "auth")]);
        if done >= 2 { Ok(()) } else { Err(done.to_string()) }
    });
    assert_eq!(api.writes()[before..], ["patch ocirepositories/status default/app"], "the same failure is no news");
    stage.registry.heal();
    stage.request(&path, "3");
    let ready = stage.ready(&path);
    assert!(condition_of(&ready, "FetchFailed").is_null() && condition_of(&ready, "Reconciling").is_null());
    eventually("its end to be told", || {
        let events: Vec<String> = api.events("OCIRepository", "app").into_iter().map(|e| e.1).collect();
        if events == ["NewArtifact", "OCIArtifactPullFailed", "Succeeded"] {
            Ok(())
        } else {
            Err(format!("{events:?}"))
        }
    });
}

pub fn a_spec_that_cannot_be_stalls_and_costs_no_request(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let source = stage.oci_repository("app", "team/app:tag", json!({}));
    api.create(&source);
    let _larder = stage.serve(&[]);
    let path = path_of(&source);
    let failed = stage.failed(&path, "FetchFailed", "URLInvalid");
    assert_eq!(condition_of(&failed, "Stalled")["status"], "True");
    assert_eq!(failed["status"]["observedGeneration"], failed["metadata"]["generation"]);
    assert!(condition_of(&failed, "Reconciling").is_null());
    assert_eq!(stage.registry.requests(), 0);
    stage.push("team/app", "latest", &app("1"));
    api.patch(&path, &json!({ "spec": { "url": stage.url("team/app") } }));
    let ready = stage.ready(&path);
    assert!(condition_of(&ready, "Stalled").is_null());
}

pub fn the_api_server_is_no_registry(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let config = std::fs::read_to_string(api.kubeconfig(stage.root())).expect("the kubeconfig");
    let config: Value = serde_json::from_str(&config).expect("JSON");
    let server = text(&config, "/clusters/0/cluster/server");
    let (_, host) = server.split_once("://").expect("a URL");
    let (_, port) = host.rsplit_once(':').expect("a port");
    stage.push("team/app", "latest", &app("1"));
    // The registry is beside it, on another port.
    let plain = stage.oci_repository("plain", "team/app", json!({}));
    api.create(&plain);
    let named = [host.to_owned(), format!("127.0.0.2:{port}"), format!("[::ffff:127.0.0.1]:{port}")];
    let paths = named.iter().enumerate().map(|(n, host)| {
        let source = stage.oci_repository(&format!("api-{n}"), "x", json!({ "url": format!("oci://{host}/api/v1") }));
        api.create(&source);
        path_of(&source)
    });
    let paths: Vec<String> = paths.collect();
    let _larder = stage.serve(&[]);
    for path in &paths {
        let failed = stage.failed(path, "FetchFailed", "URLInvalid");
        let stalled = condition_of(&failed, "Stalled");
        assert!(text(stalled, "/message").contains("the Kubernetes API server is never contacted"), "{stalled}");
    }
    stage.ready(&path_of(&plain));
}

pub fn a_pass_that_lasts_says_so_meanwhile(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &app("1"));
    let slow = || Fault::Delay(Duration::from_secs(3));
    stage.registry.fault(of(Kind::BlobGet), 1, slow());
    let source = stage.oci_repository("app", "team/app", json!({}));
    api.create(&source);
    let _larder = stage.serve(&[]);
    let path = path_of(&source);
    let under_way = api.wait(&path, |object| condition_of(object, "Reconciling")["status"] == "True");
    assert_eq!(condition_of(&under_way, "Reconciling")["reason"], "Progressing");
    assert_eq!(condition_of(&under_way, "Ready")["status"], "Unknown");
    let ready = stage.ready(&path);
    assert!(condition_of(&ready, "Reconciling").is_null());
    assert_eq!(writes_of(api, "app").iter().filter(|line| line.contains("/status")).count(), 2);
}

pub fn what_flux_stored_is_taken_over_in_one_write(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let digest = stage.push("team/app", "latest", &app("1"));
    let source = stage.oci_repository("app", "team/app", json!({}));
    api.create(&with(source.clone(), "/metadata", json!({ "finalizers": ["finalizers.fluxcd.io"] })));
    let path = path_of(&source);
    let revision = format!("latest@{digest}");
    let file = format!("ocirepository/default/app/{digest}.tar.gz");
    let time = "2026-01-02T03:04:05Z";
    let condition = |kind: &str| {
        json!({ "type": kind, "status": "True", "reason": "Succeeded", "message": "stored artifact",
            "observedGeneration": 1, "lastTransitionTime": time })
    };
    let fluxes = json!({
        "observedGeneration": 1, "conditions": [condition("Ready"), condition("ArtifactInStorage")],
        "url": "http://source-controller.flux-system.svc.cluster.local./ocirepository/default/app/latest.tar.gz",
        "artifact": { "digest": sha256(b"as Flux packs it"), "lastUpdateTime": time, "path": file, "revision": revision,
            "size": 16, "url": format!("http://source-controller.flux-system.svc.cluster.local./{file}") },
    });
    api.patch(&format!("{path}/status"), &json!({ "status": fluxes }));
    stage.registry.fault(|_| true, 1_000, Fault::status(403));
    let _larder = stage.serve(&[]);
    let failed = stage.failed(&path, "FetchFailed", "OCIArtifactPullFailed");
    assert_eq!(failed["status"]["artifact"], fluxes["artifact"], "Flux's stays until there is another one");
    stage.registry.heal();
    let before = api.writes().len();
    stage.request(&path, "1");
    let ready = stage.ready(&path);
    assert_eq!(text(&ready, "/status/artifact/revision"), revision, "so nothing is applied anew");
    assert_eq!(files_in(&fetch_artifact(&ready)), app("1"));
    assert_eq!(api.writes()[before..].iter().filter(|line| line.contains("/status")).count(), 1);
    assert!(api.writes().iter().all(|line| line != "patch ocirepositories default/app"), "it has its finalizer");
}

pub fn charts_come_through_both_kinds(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let chart = files(&[
        ("podinfo/Chart.yaml", "apiVersion: v2\nname: podinfo\nversion: 6.1.0\n"),
        ("podinfo/values.yaml", "a: 1\n"),
    ]);
    let bytes = crate::support::fixtures::gzip(&crate::support::fixtures::tar_of(&chart));
    let layer = stage.registry.add_blob("charts/podinfo", &bytes);
    let config = stage.registry.add_blob("charts/podinfo", b"{}");
    let manifest = json!({ "schemaVersion": 2, "mediaType": crate::support::upstream::MANIFEST,
        "config": { "mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": config.to_string(), "size": 2 },
        "layers": [{ "mediaType": "application/vnd.cncf.helm.chart.content.v1.tar+gzip", "digest": layer.to_string(), "size": bytes.len() }] });
    stage.registry.add_manifest(
        "charts/podinfo",
        Some("6.1.0"),
        crate::support::upstream::MANIFEST,
        manifest.to_string().as_bytes(),
    );
    let repository = object(
        "HelmRepository",
        "charts",
        json!({ "type": "oci", "url": stage.url("charts"), "insecure": true, "interval": "1m" }),
    );
    let reference = json!({ "kind": "HelmRepository", "name": "charts" });
    let wanted = object(
        "HelmChart",
        "podinfo",
        json!({ "chart": "podinfo", "version": "6.x", "interval": "1m", "sourceRef": reference }),
    );
    let direct = stage.oci_repository(
        "podinfo",
        "charts/podinfo",
        json!({ "ref": { "semver": "6.x" },
        "layerSelector": { "mediaType": "application/vnd.cncf.helm.chart.content.v1.tar+gzip", "operation": "copy" } }),
    );
    for object in [&repository, &wanted, &direct] {
        api.create(object);
    }
    let _larder = stage.serve(&[]);
    let ready = stage.ready(&path_of(&wanted));
    assert_eq!(text(&ready, "/status/artifact/revision"), "6.1.0");
    assert_eq!(fetch_artifact(&ready), bytes);
    let ready = stage.ready(&path_of(&direct));
    assert!(text(&ready, "/status/artifact/revision").starts_with("6.1.0@sha256:"));
    assert_eq!(fetch_artifact(&ready), bytes);
    assert!(
        api.writes().iter().all(|line| !line.contains("helmrepositories")),
        "a HelmRepository of type oci is static"
    );
    api.delete(&path_of(&wanted));
    api.wait_gone(&path_of(&wanted));
}

pub fn events_go_to_the_notification_controller_too(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &app("1"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let got = std::thread::spawn(move || notification(&listener));
    let source = stage.oci_repository("app", "team/app", json!({}));
    api.create(&with(source, "/metadata", json!({ "annotations": { "event.toolkit.fluxcd.io/team": "a" } })));
    let _larder = stage.serve(&["--events-addr", &format!("http://{address}/")]);
    let event = got.join().expect("no panic");
    let wanted = ["OCIRepository", "default", "app"];
    let involved = &event["involvedObject"];
    assert_eq!(["kind", "namespace", "name"].map(|field| involved[field].as_str().unwrap_or_default()), wanted);
    assert_eq!((&event["severity"], &event["reason"]), (&json!("info"), &json!("NewArtifact")));
    assert_eq!(event["metadata"]["event.toolkit.fluxcd.io/team"], "a");
    assert!(event["metadata"]["source.toolkit.fluxcd.io/revision"].as_str().is_some_and(|r| r.starts_with("latest@")));
    assert_eq!((&event["reportingController"], &event["reportingInstance"]), (&json!("larder"), &json!("one")));
}
