//! Kustomizations without a cluster: what is rendered, in which order, with which status; kubectl's own build as the peer.

use std::{collections::BTreeSet, process::Command};

use serde_json::{Value, json};

use crate::{
    documents::{NAMESPACE, World, kustomization},
    need::{self, need},
    support::{
        corpus,
        fixtures::{Files, files},
        larder::{Larder, condition_of, stdout_of, text},
    },
};

fn rendered(larder: &Larder, name: &str) -> String {
    std::fs::read_to_string(larder.data.join(format!("rendered/default/{name}.yaml"))).expect("a rendered file")
}

/// The documents of a YAML stream, by a reader that keeps nothing but lines: kind and name of each.
fn kinds_and_names(text: &str) -> Vec<(String, String)> {
    text.split("\n---\n")
        .filter(|document| !document.trim().is_empty())
        .map(|document| {
            let value: Value = serde_saphyr::from_str(document.trim_start_matches("---\n")).expect("YAML");
            (value["kind"].as_str().unwrap_or_default().to_owned(), text_of(&value, "/metadata/name"))
        })
        .collect()
}

fn text_of(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn manifest(version: &str, kind: &str, name: &str, more: &str) -> String {
    format!("apiVersion: {version}\nkind: {kind}\nmetadata:\n  name: {name}\n{more}")
}

fn plain_folder() -> Files {
    let deployment =
        "spec:\n  template:\n    spec:\n      containers:\n      - name: app\n        image: nginx:1.25.3\n";
    files(&[
        ("app/deployment.yaml", &manifest("apps/v1", "Deployment", "app", deployment)),
        ("app/config.yml", &manifest("v1", "ConfigMap", "settings", "data:\n  a: b\n")),
        ("app/deeper/service.yaml", &manifest("v1", "Service", "app", "spec:\n  ports: []\n")),
        ("app/namespace.yaml", &manifest("v1", "Namespace", "shop", "")),
        ("app/notes.txt", "not a manifest\n"),
        ("empty/notes.txt", "nothing to apply\n"),
        ("broken/bad.yaml", &manifest("v1", "ConfigMap", "Bad_Name", "")),
        ("twice/a.yaml", &manifest("v1", "ConfigMap", "same", "")),
        ("twice/b.yaml", &manifest("v1", "ConfigMap", "same", "")),
        ("sealed/secret.yaml", &manifest("v1", "Secret", "sealed", "sops:\n  version: 3.9.0\n  mac: x\n")),
    ])
}

#[test]
fn a_plain_folder_is_rendered_in_apply_order_with_its_labels() {
    need!("docker-registry");
    let world = World::new();
    let pushed = world.registry.push_files("app", "latest", &plain_folder());
    let spec = json!({ "path": "./app", "validation": "client", "targetNamespace": "shop",
        "commonMetadata": { "labels": { "team": "blue" }, "annotations": { "note": "yes" } },
        "images": [{ "name": "nginx", "newName": "mirror.example.com/nginx", "newTag": "1.27.0" }] });
    world.write(&[world.oci_repository("app", "app", json!({})), kustomization("ks", "app", spec)]);
    let larder = world.serve(&[]);
    let object = larder.wait_ready("Kustomization", NAMESPACE, "ks");
    let file = rendered(&larder, "ks");
    let order: Vec<String> = kinds_and_names(&file).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(order, ["Namespace", "ConfigMap", "Service", "Deployment"], "{file}");
    for document in file.split("\n---\n") {
        let value: Value = serde_saphyr::from_str(document.trim_start_matches("---\n")).expect("YAML");
        let labels = &value["metadata"]["labels"];
        assert_eq!(labels["kustomize.toolkit.fluxcd.io/name"], "ks", "{value}");
        assert_eq!(labels["kustomize.toolkit.fluxcd.io/namespace"], "default", "{value}");
        assert_eq!((&labels["team"], &value["metadata"]["annotations"]["note"]), (&json!("blue"), &json!("yes")));
        if value["kind"] != "Namespace" {
            assert_eq!(value["metadata"]["namespace"], "shop", "{value}");
        }
    }
    assert!(file.contains("mirror.example.com/nginx:1.27.0"), "{file}");

    let revision = format!("latest@{}", pushed.digest);
    for field in ["lastAppliedRevision", "lastAttemptedRevision"] {
        assert_eq!(object["status"][field], revision.as_str(), "{field}");
    }
    assert_eq!(object["status"]["lastAppliedOriginRevision"], "main@sha1:0000000000000000000000000000000000000000");
    let ready = condition_of(&object, "Ready");
    assert_eq!(ready["reason"], "ReconciliationSucceeded");
    assert_eq!(ready["message"], format!("Applied revision: {revision}"));
    let entries = object["status"]["inventory"]["entries"].as_array().expect("inventory");
    let ids: BTreeSet<String> = entries.iter().map(|entry| text_of(entry, "/id")).collect();
    let wanted = ["_shop__Namespace", "shop_settings__ConfigMap", "shop_app__Service", "shop_app_apps_Deployment"];
    assert_eq!(ids, wanted.iter().map(|id| (*id).to_owned()).collect());
}

#[test]
fn builds_that_must_fail_say_why_and_leave_the_last_good_file() {
    need!("docker-registry");
    let world = World::new();
    world.registry.push_files("app", "latest", &plain_folder());
    // name, spec, a part of the message
    let rows = [
        ("client-name", json!({ "path": "./broken", "validation": "client" }), "Bad_Name"),
        ("client-twice", json!({ "path": "./twice", "validation": "client" }), "same"),
        ("sealed", json!({ "path": "./sealed" }), "sops"),
        ("absent", json!({ "path": "./none" }), "path"),
        ("outside", json!({ "path": "../../../etc" }), "path"),
    ];
    let mut objects = vec![world.oci_repository("app", "app", json!({}))];
    objects.extend(rows.iter().map(|(name, spec, _)| kustomization(name, "app", spec.clone())));
    objects.push(kustomization("server", "app", json!({ "path": "./app", "validation": "server" })));
    objects.push(kustomization("empty", "app", json!({ "path": "./empty" })));
    objects.push(kustomization("orphan", "no-such-source", json!({})));
    objects.push(kustomization("turns", "app", json!({ "path": "./app" })));
    world.write(&objects);
    let larder = world.serve(&[]);
    for (name, _, part) in &rows {
        // Before its source is there a Kustomization says so; what counts is what it says in the end.
        let object = larder.wait("Kustomization", NAMESPACE, name, |object| {
            let ready = condition_of(object, "Ready");
            let message = ready["message"].as_str().unwrap_or_default().to_lowercase();
            ready["status"] == "False"
                && ["BuildFailed", "ValidationFailed", "ArtifactFailed"].iter().any(|reason| ready["reason"] == *reason)
                && message.contains(&part.to_lowercase())
        });
        let reason = text(condition_of(&object, "Ready"), "/reason");
        assert_eq!(reason == "ArtifactFailed", *part == "path", "{name}: {reason}");
        assert!(!larder.data.join(format!("rendered/default/{name}.yaml")).exists(), "{name} was rendered");
    }
    let object = larder.wait_failed("Kustomization", NAMESPACE, "server", "Stalled", "ValidationFailed");
    assert!(text(condition_of(&object, "Ready"), "/message").contains("cluster"), "{object}");
    let orphan = larder.wait("Kustomization", NAMESPACE, "orphan", |object| {
        condition_of(object, "Ready")["reason"] == "ArtifactFailed"
    });
    assert_eq!(condition_of(&orphan, "Ready")["status"], "False");
    larder.wait_ready("Kustomization", NAMESPACE, "empty");
    assert_eq!(rendered(&larder, "empty"), "", "nothing to apply is an empty file");

    larder.wait_ready("Kustomization", NAMESPACE, "turns");
    let good = rendered(&larder, "turns");
    let applied =
        larder.object("Kustomization", NAMESPACE, "turns").expect("there")["status"]["lastAppliedRevision"].clone();
    let mut bad = plain_folder();
    bad.insert("app/config.yml".to_owned(), b"kind: [".to_vec());
    world.registry.push_files("app", "latest", &bad);
    larder.reconcile("OCIRepository", NAMESPACE, "app");
    let object = larder
        .wait("Kustomization", NAMESPACE, "turns", |object| condition_of(object, "Ready")["reason"] == "BuildFailed");
    assert_eq!(object["status"]["lastAppliedRevision"], applied);
    assert_eq!(rendered(&larder, "turns"), good);

    // A deleted document takes its rendered file with it.
    world.write(&objects[..1]);
    larder.wait_gone("Kustomization", NAMESPACE, "turns");
    crate::support::eventually("the rendered file to go", || {
        let there = larder.data.join("rendered/default/turns.yaml").exists();
        (!there).then_some(()).ok_or_else(|| "it is there".to_owned())
    });
}

#[test]
fn a_kustomization_yaml_is_built_as_kubectl_builds_it() {
    need!("docker-registry");
    let Some(program) = need::kustomize() else {
        need::all_of(&["kubectl"]);
        return;
    };
    let world = World::new();
    let source = corpus::versions("podinfo", 1);
    let (content, path) = if source.real {
        (source.versions.into_iter().next().expect("one"), "kustomize")
    } else {
        let mut content = plain_folder();
        let list = "resources:\n- deployment.yaml\n- config.yml\nnamePrefix: pre-\nconfigMapGenerator:\n- name: made\n  literals: [a=b]\n";
        content.insert("app/kustomization.yaml".to_owned(), list.as_bytes().to_vec());
        (content, "app")
    };
    world.registry.push_files("app", "latest", &content);
    let spec = json!({ "path": path, "patches": [{ "target": { "kind": "Deployment" },
        "patch": "- op: add\n  path: /spec/replicas\n  value: 7\n" }] });
    world.write(&[world.oci_repository("app", "app", json!({})), kustomization("ks", "app", spec)]);
    let larder = world.serve(&["--kustomize-program", program.to_str().expect("UTF-8")]);
    larder.wait_ready("Kustomization", NAMESPACE, "ks");
    let file = rendered(&larder, "ks");
    assert!(file.contains("replicas: 7"), "{file}");

    let folder = world.path().join("by-hand");
    crate::support::fixtures::write_files(&folder, &content);
    let mut build = Command::new(&program);
    build.arg(if program.ends_with("kustomize") { "build" } else { "kustomize" }).arg(folder.join(path));
    let by_hand = String::from_utf8(stdout_of(build)).expect("UTF-8");
    let set = |text: &str| kinds_and_names(text).into_iter().collect::<BTreeSet<_>>();
    assert_eq!(set(&file), set(&by_hand));
    assert!(!set(&file).is_empty());
}

#[test]
fn remote_bases_are_refused() {
    need!("docker-registry");
    let Some(program) = need::kustomize() else {
        need::all_of(&["kubectl"]);
        return;
    };
    let world = World::new();
    let honeypot = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    honeypot.set_nonblocking(true).expect("nonblocking");
    let at = honeypot.local_addr().expect("address");
    let remote = |base: String| format!("resources:\n- {base}\n");
    let content = files(&[
        ("http/kustomization.yaml", &remote(format!("http://{at}/base.yaml"))),
        ("git/kustomization.yaml", &remote(format!("git::http://{at}/repo.git?ref=main"))),
        ("outside/kustomization.yaml", &remote("../../../../../../etc/hosts".to_owned())),
    ]);
    world.registry.push_files("app", "latest", &content);
    let names = ["http", "git", "outside"];
    let mut objects = vec![world.oci_repository("app", "app", json!({}))];
    objects.extend(names.map(|name| kustomization(name, "app", json!({ "path": name }))));
    world.write(&objects);
    let larder = world.serve(&["--kustomize-program", program.to_str().expect("UTF-8")]);
    for name in names {
        larder.wait("Kustomization", NAMESPACE, name, |object| {
            condition_of(object, "Ready")["status"] == "False"
                && condition_of(object, "Ready")["reason"] == "BuildFailed"
        });
    }
    assert!(honeypot.accept().is_err(), "something connected to the honeypot");
}
