//! Objects on a cluster that change, end, or are made anew while something is done for them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    api_server::{ApiServer, Call, Fault},
    eventually,
    fixtures::Files,
    kubernetes::{Kubernetes as _, NAMESPACE, Scripted, Stage, object, path_of, with},
    larder::{Larder, condition_of, fetch_artifact, is_ready},
    registry,
};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> String {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": NAMESPACE }, "data": { "k": "v" } })
        .to_string()
}

fn maps(paths: &[&str]) -> Files {
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    paths.iter().map(|path| (format!("{path}.yaml"), map(&name(path)).into_bytes())).collect()
}

fn kustomization(name: &str, spec: Value) -> Value {
    let plain = json!({ "interval": "1m", "path": "./", "prune": true, "sourceRef": { "kind": "OCIRepository", "name": "app" } });
    with(object("Kustomization", name, plain), "/spec", spec)
}

fn source(stage: &Stage<'_, Scripted>, content: &Files) {
    stage.push("team/app", "latest", content);
    stage.api.create(&stage.oci_repository("app", "team/app", json!({})));
}

fn deletes_maps(call: &Call) -> bool {
    call.verb == "delete" && call.resource == "configmaps" && call.headers.contains_key("authorization")
}

/// A daemon that tries in vain to delete what a Kustomization applied, which is being deleted.
fn stuck(stage: &Stage<'_, Scripted>, wanted: &Value) -> Larder {
    source(stage, &maps(&["a"]));
    let (api, path) = (stage.api, path_of(wanted));
    api.create(wanted);
    let larder = stage.serve(&[]);
    stage.ready(&path);
    api.0.fault(deletes_maps, usize::MAX, Fault::status(403, "Forbidden"));
    api.delete(&path);
    eventually("a deletion that fails", || {
        if api.0.calls().iter().any(deletes_maps) { Ok(()) } else { Err(format!("{:?}", api.writes())) }
    });
    larder
}

#[test]
fn an_end_that_is_stuck_touches_nothing_of_the_object_made_anew() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    let wanted = kustomization("app", json!({}));
    let path = path_of(&wanted);
    let _larder = stuck(&stage, &wanted);
    // Somebody loses patience.
    api.patch(&path, &json!({ "metadata": { "finalizers": null } }));
    api.wait_gone(&path);
    api.create(&wanted);
    stage.ready(&path);
    api.0.behave();
    let made = api.get(&format!("{MAPS}/a")).expect("applied");
    api.0.forget_calls();
    // Longer than until the next two tries.
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(api.0.calls().iter().filter(|call| deletes_maps(call)).count(), 0);
    assert_eq!(api.get(&format!("{MAPS}/a")).expect("still there")["metadata"]["uid"], made["metadata"]["uid"]);
    assert!(is_ready(&api.get(&path).expect("still there")));
}

#[test]
fn an_end_goes_by_what_the_spec_says_by_then() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    let wanted = kustomization("app", json!({}));
    let path = path_of(&wanted);
    let _larder = stuck(&stage, &wanted);
    api.patch(&path, &json!({ "spec": { "deletionPolicy": "Orphan" } }));
    api.wait_gone(&path);
    api.0.behave();
    std::thread::sleep(Duration::from_secs(3));
    assert!(api.get(&format!("{MAPS}/a")).is_some());
}

#[test]
fn what_was_applied_elsewhere_is_not_taken_for_deleted() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    source(&stage, &maps(&["a"]));
    let remote = json!({ "kubeConfig": { "secretRef": { "name": "other" } } });
    let mut wanted = kustomization("app", remote);
    wanted["metadata"]["finalizers"] = json!(["finalizers.fluxcd.io"]);
    wanted["status"] = json!({ "inventory": { "entries": [{ "id": "default_a__ConfigMap", "v": "v1" }] } });
    api.0.put(wanted.clone());
    let path = path_of(&wanted);
    let _larder = stage.serve(&[]);
    stage.failed(&path, "Stalled", "ReconciliationFailed");
    api.delete(&path);
    eventually("it to say so", || {
        let events = api.events("Kustomization", "app");
        let told = events.iter().any(|(_, reason, message)| reason == "PruneFailed" && message.contains("kubeConfig"));
        if told { Ok(()) } else { Err(format!("{events:?}")) }
    });
    assert_eq!(api.get(&path).expect("held")["metadata"]["finalizers"], json!(["finalizers.fluxcd.io"]));
    api.patch(&path, &json!({ "spec": { "deletionPolicy": "Orphan" } }));
    api.wait_gone(&path);
}

#[test]
fn a_spec_that_changes_while_it_is_applied_leaves_nothing_behind() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    source(&stage, &maps(&["one/a", "one/b", "two/c"]));
    let slow = |call: &Call| call.verb == "apply" && call.name == "b" && !call.is_dry_run();
    api.0.fault(slow, 1, Fault::Delay(Duration::from_secs(2)));
    let wanted = kustomization("app", json!({ "path": "./one" }));
    let path = path_of(&wanted);
    api.create(&wanted);
    let _larder = stage.serve(&[]);
    api.wait(&format!("{MAPS}/a"), |_| true);
    api.patch(&path, &json!({ "spec": { "path": "./two" } }));
    let ready = stage.ready(&path);
    assert_eq!(ready["status"]["inventory"]["entries"], json!([{ "id": "default_c__ConfigMap", "v": "v1" }]));
    for name in ["a", "b"] {
        api.wait_gone(&format!("{MAPS}/{name}"));
    }
}

#[test]
fn a_request_is_answered_by_a_probe_that_was_sent_after_it() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    stage.push("team/app", "latest", &maps(&["a"]));
    let source = stage.oci_repository("app", "team/app", json!({}));
    let path = path_of(&source);
    api.create(&source);
    let larder = stage.serve(&[]);
    stage.ready(&path);
    let heads = || stage.registry.seen().iter().filter(|seen| seen.method == "HEAD").count();
    let before = heads();
    stage.registry.fault(|seen| seen.method == "HEAD", 1, registry::Fault::Delay(Duration::from_secs(3)));
    std::thread::scope(|scope| {
        scope.spawn(|| larder.reconcile("OCIRepository", NAMESPACE, "app"));
        let under_way = || if heads() > before { Ok(()) } else { Err(heads().to_string()) };
        eventually("a probe", under_way);
        let digest = stage.push("team/app", "latest", &maps(&["b"]));
        let answered = stage.request(&path, "now");
        assert_eq!(answered["status"]["artifact"]["revision"], format!("latest@{digest}"));
        assert!(heads() > before + 1, "by the probe that was under way");
    });
}

#[test]
fn a_copied_layer_that_flux_stored_is_served_from_here_also_where_it_is_held_already() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    let digest = stage.push("team/app", "latest", &maps(&["a"]));
    let copy = json!({ "layerSelector": { "operation": "copy" } });
    let first = stage.oci_repository("first", "team/app", copy.clone());
    let mut second = stage.oci_repository("second", "team/app", copy.clone());
    api.create(&first);
    let larder = stage.serve(&[]);
    let layer = stage.ready(&path_of(&first))["status"]["artifact"]["digest"].clone();
    drop(larder);
    let file = format!("ocirepository/default/second/{}.tar.gz", layer.as_str().expect("a digest"));
    let condition = |kind: &str| {
        json!({ "type": kind, "status": "True", "reason": "Succeeded", "message": "stored artifact",
            "observedGeneration": 1, "lastTransitionTime": "2026-01-02T03:04:05Z" })
    };
    second["metadata"]["finalizers"] = json!(["finalizers.fluxcd.io"]);
    second["status"] = json!({ "observedGeneration": 1, "conditions": [condition("Ready"), condition("ArtifactInStorage")],
        "observedLayerSelector": copy["layerSelector"],
        "artifact": { "digest": layer, "lastUpdateTime": "2026-01-02T03:04:05Z", "path": file, "size": 16,
            "revision": format!("latest@{digest}"), "url": format!("http://source-controller.example/{file}") } });
    api.0.put(second.clone());
    let _larder = stage.serve(&[]);
    let taken = api.wait(&path_of(&second), |object| {
        object["status"]["artifact"]["url"].as_str().is_some_and(|url| !url.contains("source-controller"))
    });
    fetch_artifact(&taken);
}

#[test]
fn a_conflict_is_no_reason_to_make_an_object_anew() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    source(&stage, &maps(&["a"]));
    let wanted = kustomization("app", json!({ "force": true, "interval": "1h", "retryInterval": "1s" }));
    let path = path_of(&wanted);
    api.create(&wanted);
    let _larder = stage.serve(&[]);
    stage.ready(&path);
    let uid = api.get(&format!("{MAPS}/a")).expect("applied")["metadata"]["uid"].clone();
    let applies = |call: &Call| call.verb == "apply" && call.name == "a" && !call.is_dry_run();
    api.0.fault(applies, 1, Fault::message(409, "Conflict", "the object has been modified"));
    api.patch(&format!("{MAPS}/a"), &json!({ "data": { "k": "edited" } }));
    stage.request(&path, "1");
    stage.ready(&path);
    let now = api.get(&format!("{MAPS}/a")).expect("still there");
    assert_eq!((&now["data"]["k"], &now["metadata"]["uid"]), (&json!("v"), &uid));
    assert_eq!(api.0.calls().iter().filter(|call| deletes_maps(call)).count(), 0);
}

#[test]
fn a_dependency_of_another_shard_is_asked_for() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    let labels = json!({ "sharding.fluxcd.io/key": "larder" });
    stage.push("team/app", "latest", &maps(&["a"]));
    api.create(&with(stage.oci_repository("app", "team/app", json!({})), "/metadata", json!({ "labels": labels })));
    let mut other = kustomization("other", json!({ "sourceRef": { "kind": "GitRepository", "name": "git" } }));
    let ready = |status: &str| {
        json!([{ "type": "Ready", "status": status, "reason": "ReconciliationSucceeded", "message": "",
            "observedGeneration": 1, "lastTransitionTime": "2026-01-02T03:04:05Z" }])
    };
    other["status"] = json!({ "observedGeneration": 1, "conditions": ready("False") });
    let other = api.0.put(other);
    let wanted = kustomization("app", json!({ "dependsOn": [{ "name": "other" }], "interval": "1s" }));
    let wanted = with(wanted, "/metadata", json!({ "labels": labels }));
    api.create(&wanted);
    let _larder = stage.serve(&["--watch-label-selector", "sharding.fluxcd.io/key=larder"]);
    let waiting = stage.failed(&path_of(&wanted), "Ready", "DependencyNotReady");
    assert!(
        condition_of(&waiting, "Ready")["message"].as_str().is_some_and(|m| m.ends_with("is not ready")),
        "{waiting}"
    );
    api.patch(&format!("{}/status", path_of(&other)), &json!({ "status": { "conditions": ready("True") } }));
    stage.ready(&path_of(&wanted));
}

#[test]
fn a_source_that_the_selector_leaves_out_is_not_said_to_be_missing() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    source(&stage, &maps(&["a"]));
    let labels = json!({ "labels": { "sharding.fluxcd.io/key": "larder" } });
    let wanted = with(kustomization("app", json!({})), "/metadata", labels);
    api.create(&wanted);
    let _larder = stage.serve(&["--watch-label-selector", "sharding.fluxcd.io/key=larder"]);
    let waiting = stage.failed(&path_of(&wanted), "Ready", "ArtifactFailed");
    assert_eq!(
        condition_of(&waiting, "Ready")["message"],
        "Source 'OCIRepository/default/app' not found among the objects that --watch-label-selector \
         'sharding.fluxcd.io/key=larder' selects"
    );
}

#[test]
fn what_this_version_does_not_do_is_said_and_no_expression_is_called_wrong() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    source(&stage, &maps(&["a"]));
    let rows = [
        ("exprs", json!({ "healthCheckExprs": [{ "apiVersion": "v1", "kind": "A", "current": "true" }] }), "CEL"),
        ("ready", json!({ "dependsOn": [{ "name": "x", "readyExpr": "true" }] }), "CEL"),
        ("remote", json!({ "kubeConfig": { "secretRef": { "name": "s" } } }), "spec.kubeConfig"),
        ("sops", json!({ "decryption": { "provider": "sops" } }), "spec.decryption"),
    ];
    rows.iter().for_each(|(name, spec, _)| api.create(&kustomization(name, spec.clone())));
    let _larder = stage.serve(&[]);
    for (name, _, says) in rows {
        let stalled = |object: &Value| condition_of(object, "Stalled")["status"] == "True";
        let found = api.wait(&path_of(&kustomization(name, json!({}))), stalled);
        let condition = condition_of(&found, "Stalled");
        assert!(condition["message"].as_str().is_some_and(|message| message.contains(says)), "{condition}");
        assert_ne!(condition["reason"], "InvalidCELExpression", "{condition}");
    }
}

#[test]
fn what_is_healthy_by_name_is_not_all_that_there_is() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    let mut content = maps(&["a"]);
    let labels = json!({ "app": "b" });
    let deployment = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "b", "namespace": NAMESPACE },
        "spec": { "replicas": 1, "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels },
            "spec": { "containers": [{ "name": "b", "image": "b" }] } } } });
    content.insert("b.yaml".into(), deployment.to_string().into_bytes());
    source(&stage, &content);
    let checks = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "a", "namespace": NAMESPACE }]);
    let wanted = kustomization("app", json!({ "healthChecks": checks, "timeout": "2s" }));
    let path = path_of(&wanted);
    api.create(&wanted);
    let _larder = stage.serve(&[]);
    stage.ready(&path);
    api.patch(&path, &json!({ "spec": { "healthChecks": null, "wait": true } }));
    stage.failed(&path, "Healthy", "HealthCheckFailed");
}
