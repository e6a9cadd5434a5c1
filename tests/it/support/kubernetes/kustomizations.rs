//! Kustomizations on a cluster.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Kubernetes, NAMESPACE, Stage, notification, object, path_of, with};
use crate::support::{
    eventually,
    fixtures::{Files, files},
    larder::{condition_of, is_ready},
};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// A ConfigMap's document.
fn map(name: &str, value: &str) -> String {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": NAMESPACE }, "data": { "k": value } })
        .to_string()
}

fn maps(named: &[(&str, &str)]) -> Files {
    named.iter().map(|(name, value)| (format!("{name}.yaml"), map(name, value).into_bytes())).collect()
}

fn kustomization(name: &str, spec: Value) -> Value {
    let plain = json!({ "interval": "1m", "path": "./", "prune": true, "sourceRef": { "kind": "OCIRepository", "name": "app" } });
    with(object("Kustomization", name, plain), "/spec", spec)
}

/// A source `app` with these files.
fn source<K: Kubernetes>(stage: &Stage<'_, K>, content: &Files) -> String {
    stage.push("team/app", "latest", content);
    let source = stage.oci_repository("app", "team/app", json!({}));
    stage.api.create(&source);
    path_of(&source)
}

fn applied<K: Kubernetes>(stage: &Stage<'_, K>, path: &str, revision: &str) -> Value {
    stage.api.wait(path, |object| is_ready(object) && object["status"]["lastAppliedRevision"] == revision)
}

pub fn the_users_documents_end_with_the_deployment(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let deployment = |image: &str| {
        let labels = json!({ "app": "my-app" });
        let pod =
            json!({ "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "app", "image": image }] } });
        let document = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "my-app", "namespace": NAMESPACE },
            "spec": { "replicas": 1, "selector": { "matchLabels": labels }, "template": pod } });
        files(&[("deployment.yaml", &document.to_string())])
    };
    let digest = stage.push("you/my-app-config", "v1.0.0", &deployment("nginx:1"));
    let spec = json!({ "interval": "1m", "url": stage.url("you/my-app-config"), "ref": { "tag": "v1.0.0" } });
    let git = object("GitRepository", "my-app-oci", spec);
    let spec = json!({ "interval": "5m", "sourceRef": { "kind": "GitRepository", "name": "my-app-oci" }, "path": "./",
        "prune": true, "validation": "client" });
    let wanted = object("Kustomization", "my-app-kustomization", spec);
    api.create(&git);
    api.create(&wanted);
    let _larder = stage.serve(&[]);
    let path = path_of(&wanted);
    let done = applied(&stage, &path, &format!("v1.0.0@{digest}"));
    assert_eq!(condition_of(&done, "Ready")["message"], format!("Applied revision: v1.0.0@{digest}"));
    assert_eq!(done["status"]["inventory"]["entries"], json!([{ "id": "default_my-app_apps_Deployment", "v": "v1" }]));
    let made = api.get(&format!("{DEPLOYMENTS}/my-app")).expect("applied");
    assert_eq!(made["metadata"]["labels"]["kustomize.toolkit.fluxcd.io/name"], "my-app-kustomization");
    let managers = made["metadata"]["managedFields"].to_string();
    assert!(managers.contains("\"kustomize-controller\""), "{managers}");
    let digest = stage.push("you/my-app-config", "v1.0.1", &deployment("nginx:2"));
    api.patch(&path_of(&git), &json!({ "spec": { "ref": { "tag": "v1.0.1" } } }));
    applied(&stage, &path, &format!("v1.0.1@{digest}"));
    let made = api.get(&format!("{DEPLOYMENTS}/my-app")).expect("applied");
    assert_eq!(made["spec"]["template"]["spec"]["containers"][0]["image"], "nginx:2");
    api.delete(&path);
    api.wait_gone(&path);
    api.wait_gone(&format!("{DEPLOYMENTS}/my-app"));
}

pub fn what_is_no_longer_there_is_pruned_and_an_empty_artifact_prunes_all(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let origin = source(&stage, &maps(&[("a", "1"), ("b", "1")]));
    let (pruning, keeping) = (kustomization("pruning", json!({})), path_of(&kustomization("pruning", json!({}))));
    api.create(&pruning);
    let _larder = stage.serve(&[]);
    stage.ready(&keeping);
    let digest = stage.push("team/app", "latest", &maps(&[("a", "2")]));
    stage.request(&origin, "1");
    applied(&stage, &keeping, &format!("latest@{digest}"));
    assert_eq!(api.get(&format!("{MAPS}/a")).expect("applied")["data"]["k"], "2");
    api.wait_gone(&format!("{MAPS}/b"));
    let digest = stage.push("team/app", "latest", &files(&[("notes.txt", "nothing to apply")]));
    stage.request(&origin, "2");
    let done = applied(&stage, &keeping, &format!("latest@{digest}"));
    api.wait_gone(&format!("{MAPS}/a"));
    assert_eq!(done["status"]["inventory"]["entries"], json!([]));
    let digest = stage.push("team/app", "latest", &maps(&[("a", "3")]));
    stage.request(&origin, "3");
    applied(&stage, &keeping, &format!("latest@{digest}"));
    assert_eq!(api.get(&format!("{MAPS}/a")).expect("restored")["data"]["k"], "3");
    // Without prune, what goes from the source stays.
    api.patch(&keeping, &json!({ "spec": { "prune": false } }));
    stage.ready(&keeping);
    let digest = stage.push("team/app", "latest", &maps(&[("c", "1")]));
    stage.request(&origin, "4");
    applied(&stage, &keeping, &format!("latest@{digest}"));
    api.delete(&keeping);
    api.wait_gone(&keeping);
    for name in ["a", "c"] {
        assert!(api.get(&format!("{MAPS}/{name}")).is_some(), "{name} stays");
    }
}

pub fn what_was_applied_in_a_version_that_is_served_no_more_is_pruned(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    source(&stage, &maps(&[("a", "1")]));
    let owner =
        json!({ "kustomize.toolkit.fluxcd.io/name": "app", "kustomize.toolkit.fluxcd.io/namespace": NAMESPACE });
    let labels = json!({ "app": "old" });
    let pod = json!({ "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "a", "image": "a" }] } });
    api.create(
        &json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "old", "namespace": NAMESPACE,
        "labels": owner }, "spec": { "replicas": 0, "selector": { "matchLabels": labels }, "template": pod } }),
    );
    let wanted = kustomization("app", json!({}));
    let path = path_of(&wanted);
    api.create(&wanted);
    let inventory = json!({ "entries": [{ "id": "default_old_apps_Deployment", "v": "v1beta2" }] });
    api.patch(&format!("{path}/status"), &json!({ "status": { "inventory": inventory } }));
    let _larder = stage.serve(&[]);
    let ready = stage.ready(&path);
    assert_eq!(ready["status"]["inventory"]["entries"], json!([{ "id": "default_a__ConfigMap", "v": "v1" }]));
    api.wait_gone(&format!("{DEPLOYMENTS}/old"));
}

pub fn what_was_applied_in_a_version_that_then_goes_is_pruned_and_ended(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let open = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let versions = |old: bool| {
        json!([{ "name": "v1beta1", "served": old, "storage": false, "schema": { "openAPIV3Schema": open } },
            { "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": open } }])
    };
    let definition = json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "gadgets.larder.example.com" },
        "spec": { "group": "larder.example.com", "scope": "Namespaced", "versions": versions(true),
            "names": { "kind": "Gadget", "listKind": "GadgetList", "plural": "gadgets", "singular": "gadget" } } });
    api.create(&definition);
    let all = |version: &str| format!("/apis/larder.example.com/{version}/namespaces/{NAMESPACE}/gadgets");
    eventually("both versions to be served", || {
        let served = ["v1beta1", "v1"].map(|version| api.get(&all(version)).is_some());
        if served == [true, true] { Ok(()) } else { Err(format!("{served:?}")) }
    });
    let gadget = |name: &str| {
        json!({ "apiVersion": "larder.example.com/v1beta1", "kind": "Gadget",
            "metadata": { "name": name, "namespace": NAMESPACE }, "spec": { "k": "1" } })
        .to_string()
    };
    let kept = map("a", "1");
    let both =
        [("pruned/a.yaml", kept.clone()), ("pruned/b.yaml", gadget("pruned")), ("ended/b.yaml", gadget("ended"))];
    let origin = source(&stage, &both.into_iter().map(|(path, text)| (path.to_owned(), text.into_bytes())).collect());
    let ours = ["pruned", "ended"].map(|name| kustomization(name, json!({ "path": format!("./{name}") })));
    ours.iter().for_each(|wanted| api.create(wanted));
    let [pruned, ended] = ours.map(|wanted| path_of(&wanted));
    let larder = stage.serve(&[]);
    for path in [&pruned, &ended] {
        stage.ready(path);
    }
    let place = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gadgets.larder.example.com";
    api.patch(place, &json!({ "spec": { "versions": versions(false) } }));
    eventually(
        "the old version to go",
        || if api.get(&all("v1beta1")).is_none() { Ok(()) } else { Err("there".into()) },
    );
    // What goes has to be found as it is served by then.
    api.delete(&ended);
    api.wait_gone(&ended);
    assert!(api.get(&format!("{}/ended", all("v1"))).is_none());
    let digest = stage.push("team/app", "latest", &files(&[("pruned/a.yaml", &kept), ("ended/none", "")]));
    stage.request(&origin, "1");
    applied(&stage, &pruned, &format!("latest@{digest}"));
    assert!(api.get(&format!("{}/pruned", all("v1"))).is_none());
    // And what comes in the new one is applied, though the kind was known as another.
    let new = gadget("new").replace("v1beta1", "v1");
    let digest = stage.push("team/app", "latest", &files(&[("pruned/a.yaml", &kept), ("pruned/b.yaml", &new)]));
    stage.request(&origin, "2");
    applied(&stage, &pruned, &format!("latest@{digest}"));
    assert!(api.get(&format!("{}/new", all("v1"))).is_some());
    drop(larder);
}

pub fn an_edit_is_undone_within_an_interval_and_looking_is_cheap(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    source(&stage, &maps(&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "1"), ("e", "1")]));
    let wanted = kustomization("app", json!({ "interval": "4s" }));
    api.create(&wanted);
    let larder = stage.serve(&[]);
    stage.ready(&path_of(&wanted));
    let passes = || larder.metric("larder_reconcile_total", &[("kind", "Kustomization"), ("outcome", "ok")]);
    let (before, calls) = (passes(), api.calls().len());
    eventually("three passes", || if passes() >= before + 3 { Ok(()) } else { Err(passes().to_string()) });
    let asked = api.calls()[calls..].to_vec();
    assert!(asked.iter().all(|call| call == "list configmaps"), "{asked:?}");
    assert!(asked.len() <= 4, "{asked:?}");
    api.patch(&format!("{MAPS}/c?fieldManager=kubectl-edit"), &json!({ "data": { "k": "edited" } }));
    let edited = std::time::Instant::now();
    api.wait(&format!("{MAPS}/c"), |map| map["data"]["k"] == "1");
    assert!(edited.elapsed() < Duration::from_secs(8), "{:?}", edited.elapsed());
    api.delete(&format!("{MAPS}/d"));
    api.wait(&format!("{MAPS}/d"), |map| map["data"]["k"] == "1");
    eventually("what was done to be told", || {
        let events = api.events("Kustomization", "app");
        if events.iter().any(|e| e.2.contains("ConfigMap/default/c configured")) {
            Ok(())
        } else {
            Err(format!("{events:?}"))
        }
    });
}

pub fn who_asks_for_a_pass_sees_undone_what_was_edited_before(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    source(&stage, &maps(&[("a", "1"), ("b", "1")]));
    let wanted = kustomization("app", json!({ "interval": "1h" }));
    let (path, map) = (path_of(&wanted), format!("{MAPS}/a"));
    api.create(&wanted);
    let larder = stage.serve(&[]);
    stage.ready(&path);
    for round in ["first", "second"] {
        // A look without a change leaves a list, which is older than the edit.
        assert_eq!(larder.reconcile("Kustomization", NAMESPACE, "app").status, 200);
        api.patch(&format!("{map}?fieldManager=kubectl-edit"), &json!({ "data": { "k": round } }));
        assert_eq!(larder.reconcile("Kustomization", NAMESPACE, "app").status, 200);
        assert_eq!(api.get(&map).expect("the map")["data"]["k"], "1", "{round}");
        api.patch(&format!("{map}?fieldManager=kubectl-edit"), &json!({ "data": { "k": round } }));
        stage.request(&path, round);
        assert_eq!(api.get(&map).expect("the map")["data"]["k"], "1", "{round}, by annotation");
    }
}

pub fn what_takes_from_fluxs_sources_is_left_to_flux(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let git = object("GitRepository", "git", json!({ "url": "https://git.example.com/a", "interval": "1m" }));
    let from = |kind: &str| {
        let source = json!({ "kind": kind, "name": "git" });
        kustomization(&format!("from-{}", kind.to_lowercase()), json!({ "sourceRef": source }))
    };
    let fluxs = ["GitRepository", "Bucket", "ExternalArtifact"].map(from);
    api.create(&git);
    fluxs.iter().for_each(|wanted| api.create(wanted));
    source(&stage, &maps(&[("a", "1")]));
    let ours = kustomization("app", json!({}));
    api.create(&ours);
    let larder = stage.serve(&[]);
    stage.ready(&path_of(&ours));
    for wanted in &fluxs {
        let name = wanted["metadata"]["name"].as_str().expect("a name");
        assert_eq!(larder.reconcile("Kustomization", NAMESPACE, name).status, 200);
        let left = api.get(&path_of(wanted)).expect("still there");
        assert!(left["metadata"]["finalizers"].is_null() && left["status"]["conditions"].is_null(), "{left}");
        assert_eq!(api.events("Kustomization", name), [], "{name}");
    }
    // Its end is Flux's too: whoever else let it go would leave on the cluster what it applied.
    let going = path_of(&fluxs[1]);
    let finalizers = json!(["finalizers.fluxcd.io"]);
    api.patch(&going, &json!({ "metadata": { "finalizers": finalizers } }));
    api.delete(&going);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(api.get(&going).expect("held")["metadata"]["finalizers"], finalizers);
    api.patch(&going, &json!({ "metadata": { "finalizers": null } }));
    api.wait_gone(&going);
    // It is Larder's as soon as its source is.
    api.delete(&path_of(&git));
    let url = stage.oci_repository("git", "team/app", json!({}))["spec"]["url"].clone();
    let oci = json!({ "url": url, "interval": "1m", "ref": { "tag": "latest" } });
    api.create(&object("GitRepository", "git", oci));
    let failed = stage.api.wait(&path_of(&fluxs[0]), |o| !condition_of(o, "Ready").is_null());
    assert!(failed["metadata"]["finalizers"].is_array(), "{failed}");
}

pub fn sources_and_dependencies_are_waited_for(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let first = kustomization("first", json!({}));
    let second = kustomization("second", json!({ "dependsOn": [{ "name": "first" }] }));
    let (first_path, second_path) = (path_of(&first), path_of(&second));
    api.create(&second);
    let _larder = stage.serve(&[]);
    let failed = api.wait(&second_path, |o| condition_of(o, "Ready")["reason"] == "ArtifactFailed");
    assert!(condition_of(&failed, "Ready")["message"].as_str().is_some_and(|m| m.contains("not found")));
    source(&stage, &maps(&[("a", "1")]));
    api.wait(&second_path, |o| condition_of(o, "Ready")["reason"] == "DependencyNotReady");
    assert!(api.get(&format!("{MAPS}/a")).is_none());
    api.create(&first);
    stage.ready(&first_path);
    stage.ready(&second_path);
    api.patch(&first_path, &json!({ "spec": { "path": "./none" } }));
    let failed = api.wait(&first_path, |o| condition_of(o, "Ready")["reason"] == "ArtifactFailed");
    assert!(
        condition_of(&failed, "Ready")["message"].as_str().is_some_and(|m| m.contains("path not found")),
        "{failed}"
    );
}

pub fn variables_come_from_the_spec_config_maps_and_secrets(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    source(&stage, &maps(&[("a", "${greeting:=hi} ${name} ${key}")]));
    let plain = |kind: &str, name: &str, data: Value| json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name, "namespace": NAMESPACE }, "data": data });
    api.create(&plain("ConfigMap", "vars", json!({ "name": "world" })));
    api.create(&plain("Secret", "vars", json!({ "key": "b3Blbg==" })));
    let from = json!([{ "kind": "ConfigMap", "name": "vars" }, { "kind": "Secret", "name": "vars" },
        { "kind": "Secret", "name": "absent", "optional": true }]);
    let wanted =
        kustomization("app", json!({ "postBuild": { "substitute": { "unused": "1" }, "substituteFrom": from } }));
    api.create(&wanted);
    let _larder = stage.serve(&[]);
    stage.ready(&path_of(&wanted));
    assert_eq!(api.get(&format!("{MAPS}/a")).expect("applied")["data"]["k"], "hi world open");
}

pub fn what_was_applied_and_what_failed_is_told_of_each_commit(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let commits = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (all, of_commits) = (std::sync::Arc::clone(&told), std::sync::Arc::clone(&commits));
    std::thread::spawn(move || {
        loop {
            let event = notification(&listener);
            // One that waits for its source has tried nothing yet.
            let tried = event["metadata"].get("kustomize.toolkit.fluxcd.io/revision").is_some();
            if event["metadata"].get("kustomize.toolkit.fluxcd.io/commit_status").is_some() {
                of_commits.lock().expect("no panic").push(event);
            } else if event["involvedObject"]["kind"] == "Kustomization" && tried {
                all.lock().expect("no panic").push(event);
            }
        }
    });
    let commit = |name: &str| json!({ "org.opencontainers.image.revision": format!("main@sha1:{name}") });
    let (good, bad) = (maps(&[("a", "1")]), files(&[("a.yaml", "a: [")]));
    stage.push_annotated("team/app", "latest", &good, commit("first"));
    let source = stage.oci_repository("app", "team/app", json!({}));
    api.create(&source);
    let wanted = kustomization("app", json!({}));
    api.create(&wanted);
    let larder = stage.serve(&["--events-addr", &format!("http://{address}/")]);
    let group = "kustomize.toolkit.fluxcd.io";
    let expect = |count: usize, severity: &str, name: &str| {
        eventually("the event", || {
            let told = told.lock().expect("no panic");
            if told.len() >= count { Ok(()) } else { Err(format!("{told:?}")) }
        });
        let told = told.lock().expect("no panic");
        let last = told.last().expect("an event");
        assert_eq!(told.len(), count, "{told:?}");
        assert_eq!(last["severity"], severity, "{last}");
        assert_eq!(last["metadata"][format!("{group}/originRevision")], format!("main@sha1:{name}"), "{last}");
        assert!(last["metadata"][format!("{group}/revision")].as_str().is_some_and(|r| r.starts_with("latest@")));
    };
    expect(1, "info", "first");
    let rounds =
        [(&bad, "error", "second"), (&bad, "error", "third"), (&good, "info", "fourth"), (&good, "info", "fifth")];
    for (nth, (content, severity, name)) in rounds.into_iter().enumerate() {
        stage.push_annotated("team/app", "latest", content, commit(name));
        stage.request(&path_of(&source), name);
        expect(nth + 2, severity, name);
        // A pass without news is none.
        assert_eq!(larder.reconcile("Kustomization", NAMESPACE, "app").status, 200);
        assert_eq!(larder.reconcile("Kustomization", NAMESPACE, "app").status, 200);
        std::thread::sleep(Duration::from_millis(300));
        expect(nth + 2, severity, name);
    }
    // Of what went well the commit is told by one event more, which is not for people.
    let commits = commits.lock().expect("no panic");
    let names = commits.iter().map(|event| {
        let metadata = &event["metadata"];
        assert_eq!(
            (&event["severity"], &metadata[format!("{group}/commit_status")]),
            (&json!("info"), &json!("update"))
        );
        metadata[format!("{group}/originRevision")].as_str().expect("text").trim_start_matches("main@sha1:")
    });
    assert_eq!(names.collect::<Vec<_>>(), ["first", "fourth", "fifth"]);
}

pub fn other_namespaces_can_be_forbidden(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let reference = json!({ "kind": "OCIRepository", "name": "app", "namespace": "flux-system" });
    let wanted = kustomization("app", json!({ "sourceRef": reference }));
    api.create(&wanted);
    let _larder = stage.serve(&["--no-cross-namespace-refs"]);
    let failed = api.wait(&path_of(&wanted), |o| condition_of(o, "Ready")["reason"] == "AccessDenied");
    assert_eq!(condition_of(&failed, "Stalled")["status"], "True");
}

pub fn what_is_suspended_rests_and_its_objects_stay_when_it_is_deleted(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let origin = source(&stage, &maps(&[("a", "1")]));
    let wanted = kustomization("app", json!({}));
    let path = path_of(&wanted);
    api.create(&wanted);
    let larder = stage.serve(&[]);
    stage.ready(&path);
    api.patch(&path, &json!({ "spec": { "suspend": true } }));
    // Kinds are watched side by side: the source's news must not come before this.
    eventually("the reconciler to know that it is suspended", || {
        let answer = larder.reconcile("Kustomization", NAMESPACE, "app");
        if answer.status == 409 { Ok(()) } else { Err(answer.text()) }
    });
    stage.push("team/app", "latest", &maps(&[("a", "2")]));
    stage.request(&origin, "1");
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(api.get(&format!("{MAPS}/a")).expect("applied")["data"]["k"], "1");
    api.delete(&path);
    api.wait_gone(&path);
    assert!(api.get(&format!("{MAPS}/a")).is_some());
}

pub fn what_another_owns_or_opts_out_is_kept(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let mut content = maps(&[("a", "1"), ("theirs", "1")]);
    let marked = |name: &str, key: &str, word: &str| {
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": NAMESPACE,
            "annotations": { format!("kustomize.toolkit.fluxcd.io/{key}"): word } }, "data": { "k": "1" } })
        .to_string()
        .into_bytes()
    };
    content.insert("kept.yaml".into(), marked("kept", "prune", "disabled"));
    content.insert("once.yaml".into(), marked("once", "ssa", "IfNotPresent"));
    content.insert("ignored.yaml".into(), marked("ignored", "ssa", "Ignore"));
    let origin = source(&stage, &content);
    let wanted = kustomization("app", json!({}));
    api.create(&wanted);
    let _larder = stage.serve(&[]);
    stage.ready(&path_of(&wanted));
    assert!(api.get(&format!("{MAPS}/ignored")).is_none());
    let other = json!({ "metadata": { "labels": { "kustomize.toolkit.fluxcd.io/name": "another" } } });
    api.patch(&format!("{MAPS}/theirs"), &other);
    let digest = stage.push("team/app", "latest", &maps(&[("a", "1")]));
    stage.request(&origin, "1");
    applied(&stage, &path_of(&wanted), &format!("latest@{digest}"));
    api.wait_gone(&format!("{MAPS}/once"));
    for name in ["kept", "theirs", "a"] {
        assert!(api.get(&format!("{MAPS}/{name}")).is_some(), "{name}");
    }
}
