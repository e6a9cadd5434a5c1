//! Artifacts published as ExternalArtifacts, with nothing else written.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};

use super::{Kubernetes, NAMESPACE, Stage, object, path_of, with};
use crate::support::{
    eventually,
    fixtures::{Files, files, files_in},
    http,
    larder::{Larder, condition_of, fetch_artifact, text, write_objects},
    registry::{Fault, Kind, of},
};

const EXTERNAL: &str = "/apis/source.toolkit.fluxcd.io/v1/namespaces/default/externalartifacts";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases";

fn app(version: &str) -> Files {
    files(&[("deploy.yaml", version)])
}

fn at(name: &str) -> String {
    format!("{EXTERNAL}/{name}")
}

/// The first writes of an ExternalArtifact.
fn published(name: &str) -> [String; 2] {
    ["externalartifacts", "externalartifacts/status"].map(|what| format!("patch {what} {NAMESPACE}/{name}"))
}

/// Every write but these two kinds, which are none.
fn others(api: &impl Kubernetes) -> Vec<String> {
    let mut writes = api.writes();
    writes.retain(|line| line.split(' ').nth(1).is_none_or(|what| !what.starts_with("externalartifacts")));
    writes
}

impl<K: Kubernetes> Stage<'_, K> {
    /// A daemon with the documents of its folder.
    fn publish(&self, name: &str, flags: &[&str]) -> Larder {
        let folder: PathBuf = self.folder(name);
        let config = self.api.kubeconfig(&folder);
        let (objects, host) = (folder.join("objects"), self.registry.authority());
        std::fs::create_dir_all(&objects).expect("folder");
        let mut all =
            vec!["--objects", objects.to_str().expect("UTF-8"), "--external-artifacts", "--insecure-registry", &host];
        all.extend_from_slice(flags);
        let environment = [("KUBECONFIG", config.to_str().expect("UTF-8"))];
        Larder::start_with(&folder, &all, &environment)
    }

    fn write(&self, documents: &[Value]) {
        write_objects(&self.folder("one"), "objects.yaml", documents);
    }

    /// The ExternalArtifact once it names this revision and is Ready.
    fn external(&self, name: &str, revision: &str) -> Value {
        self.api.wait(&at(name), |object| {
            object["status"]["artifact"]["revision"] == revision && condition_of(object, "Ready")["status"] == "True"
        })
    }
}

pub fn files_are_published_in_two_writes_and_without_a_change_in_none(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let digest = stage.push("team/app", "latest", &app("1"));
    stage.write(&[stage.oci_repository("app", "team/app", json!({ "interval": "1s" }))]);
    let larder = stage.publish("one", &[]);
    let made = stage.external("app", &format!("latest@{digest}"));
    let source = json!({ "apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "OCIRepository", "name": "app", "namespace": NAMESPACE });
    assert_eq!(made["spec"], json!({ "sourceRef": source }));
    assert_eq!(made["metadata"]["labels"]["app.kubernetes.io/managed-by"], "larder");
    assert_eq!(made["metadata"].get("ownerReferences"), None, "its source is in no cluster");
    let managers: Vec<&Value> =
        made["metadata"]["managedFields"].as_array().into_iter().flatten().map(|m| &m["manager"]).collect();
    assert!(managers.iter().all(|manager| *manager == "larder") && !managers.is_empty(), "{managers:?}");
    let ready = condition_of(&made, "Ready");
    assert_eq!((&ready["reason"], &ready["observedGeneration"]), (&json!("Succeeded"), &json!(1)), "{ready}");
    assert_eq!(made["status"]["conditions"].as_array().map(Vec::len), Some(1));
    assert_eq!(files_in(&fetch_artifact(&made)), app("1"));
    let shown = larder.wait_ready("OCIRepository", NAMESPACE, "app");
    assert_eq!(shown["status"]["artifact"], made["status"]["artifact"]);
    let probes = stage.registry.count(Kind::ManifestHead);
    eventually("three more probes", || {
        let now = stage.registry.count(Kind::ManifestHead);
        if now >= probes + 3 { Ok(()) } else { Err(now.to_string()) }
    });
    assert_eq!(api.writes(), published("app"));
    let digest = stage.push("team/app", "latest", &app("2"));
    let newer = stage.external("app", &format!("latest@{digest}"));
    assert_eq!(files_in(&fetch_artifact(&newer)), app("2"));
    assert_eq!(files_in(&fetch_artifact(&made)), app("1"), "the superseded one is served for a while");
    assert_eq!(newer["metadata"]["generation"], 1);
    assert_eq!(api.writes()[2..], [published("app")[1].clone()]);
    assert_eq!(api.get(LEASES).expect("a list")["items"], json!([]), "one process has nobody to agree with");
    // A restart writes nothing and asks for nothing that is held.
    stage.write(&[stage.oci_repository("app", "team/app", json!({}))]);
    larder.wait("OCIRepository", NAMESPACE, "app", |o| o["status"]["observedGeneration"] == 2);
    let pulled = stage.registry.count(Kind::ManifestGet);
    assert_eq!(larder.stop(), Some(0));
    let before = api.writes().len();
    let larder = stage.publish("one", &["--artifact-advertise", "larder.example:80"]);
    let moved =
        api.wait(&at("app"), |o| o["status"]["artifact"]["url"].as_str().is_some_and(|u| u.contains("larder.example")));
    assert_eq!(moved["status"]["artifact"]["digest"], newer["status"]["artifact"]["digest"]);
    assert_eq!(api.writes()[before..], [published("app")[1].clone()], "only where it is now");
    assert_eq!(stage.registry.count(Kind::ManifestGet), pulled);
    assert_eq!(larder.stop(), Some(0));
}

pub fn what_goes_from_the_files_goes_from_the_cluster_also_while_larder_is_down(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let digest = stage.push("team/app", "latest", &app("1"));
    let revision = format!("latest@{digest}");
    let source = |name: &str| stage.oci_repository(name, "team/app", json!({}));
    stage.write(&["a", "b", "c"].map(source));
    let larder = stage.publish("one", &[]);
    let made = ["a", "b", "c"].map(|name| stage.external(name, &revision));
    stage.write(&["b", "c"].map(source));
    api.wait_gone(&at("a"));
    eventually("the artifact to go", || match http::get(text(&made[0], "/status/artifact/url")).status {
        404 => Ok(()),
        status => Err(status.to_string()),
    });
    assert_eq!(larder.stop(), Some(0));
    stage.write(&["c"].map(source));
    let data = stage.folder("one").join("data");
    let larder = stage.publish("one", &[]);
    api.wait_gone(&at("b"));
    assert!(api.get(&at("c")).is_some());
    eventually("its record to go", || {
        let record = data.join("objects/ocirepository/default/b.json");
        if record.exists() { Err("it is there".to_owned()) } else { Ok(()) }
    });
    // Also with the records lost, and never what another Larder made.
    stage.write(&["c", "d"].map(source));
    stage.external("d", &revision);
    let foreign = with(
        made[0].clone(),
        "/metadata",
        json!({ "name": "foreign", "resourceVersion": null, "uid": null, "managedFields": null }),
    );
    let foreign = with(foreign, "/metadata/labels", json!({ "larder.dev/producer": "files-0000" }));
    api.create(&foreign);
    assert_eq!(larder.stop(), Some(0));
    std::fs::remove_dir_all(&data).expect("the disk");
    stage.write(&["c"].map(source));
    let _larder = stage.publish("one", &[]);
    api.wait_gone(&at("d"));
    assert!(api.get(&at("c")).is_some() && api.get(&at("foreign")).is_some());
    assert_eq!(others(api), Vec::<String>::new());
}

pub fn labelled_objects_are_only_read(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let digest = stage.push("team/app", "latest", &app("1"));
    let revision = format!("latest@{digest}");
    let labelled = |name: &str| {
        with(
            stage.oci_repository(name, "team/app", json!({})),
            "/metadata",
            json!({ "labels": { "larder.dev/publish": "true" } }),
        )
    };
    let sources = [labelled("app"), labelled("leaving"), stage.oci_repository("other", "team/app", json!({}))];
    sources.iter().for_each(|source| api.create(source));
    let spec = json!({ "interval": "1h", "prune": true, "path": "./", "sourceRef": { "kind": "OCIRepository", "name": "app" } });
    let labels = json!({ "labels": { "larder.dev/publish": "true" } });
    let kustomization = with(object("Kustomization", "app", spec), "/metadata", labels);
    api.create(&kustomization);
    let before = sources.clone().map(|source| api.get(&path_of(&source)).expect("there"));
    // Advertised as a Service is: where it listens may change with a restart.
    let flags = [
        "--external-artifacts",
        "--watch-label-selector",
        "larder.dev/publish=true",
        "--artifact-advertise",
        "larder.example",
    ];
    let larder = stage.serve(&flags);
    let made = stage.external("app", &revision);
    let fetched = |larder: &Larder| {
        let answer = http::get(&format!("{}/{}", larder.artifacts, text(&made, "/status/artifact/path")));
        assert_eq!(answer.status, 200, "{}", answer.text());
        files_in(&answer.body)
    };
    assert_eq!(fetched(&larder), app("1"));
    let owner = json!([{ "apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "OCIRepository", "name": "app",
        "uid": before[0]["metadata"]["uid"] }]);
    assert_eq!(made["metadata"]["ownerReferences"], owner);
    stage.external("leaving", &revision);
    let shown = larder.wait_ready("OCIRepository", NAMESPACE, "app");
    assert_eq!(shown["status"]["artifact"], made["status"]["artifact"], "its own status, kept here");
    assert_eq!(larder.object("Kustomization", NAMESPACE, "app"), None);
    // A restart asks for nothing that is held, and writes nothing.
    let data = larder.data.clone();
    assert!(data.join("objects/ocirepository/default/app.json").exists());
    let (asked, writes) = (stage.registry.count(Kind::ManifestGet), api.writes().len());
    assert_eq!(larder.stop(), Some(0));
    let larder = stage.serve(&flags);
    larder.wait_ready("OCIRepository", NAMESPACE, "app");
    assert_eq!(larder.reconcile("OCIRepository", NAMESPACE, "app").status, 200);
    assert_eq!((stage.registry.count(Kind::ManifestGet), api.writes().len()), (asked, writes));
    assert_eq!(fetched(&larder), app("1"));
    // One that loses its label is no source any more; one that goes takes what was made of it along.
    api.patch(&path_of(&sources[1]), &json!({ "metadata": { "labels": null } }));
    api.wait_gone(&at("leaving"));
    let after = sources.clone().map(|source| api.get(&path_of(&source)).expect("there"));
    assert_eq!((&after[0], &after[2]), (&before[0], &before[2]), "nothing of them is written");
    assert_eq!(after[1]["status"], before[1]["status"]);
    api.delete(&path_of(&sources[0]));
    api.wait_gone(&at("app"));
    assert_eq!(others(api), Vec::<String>::new());
    assert_eq!(api.events("OCIRepository", "app"), []);
}

pub fn a_namespace_that_is_missing_is_told_and_waited_for(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &app("1"));
    let source = with(stage.oci_repository("app", "team/app", json!({})), "/metadata", json!({ "namespace": "team" }));
    stage.write(&[source, stage.oci_repository("app", "team/app", json!({}))]);
    let larder = stage.publish("one", &[]);
    let told =
        larder.wait("OCIRepository", "team", "app", |o| condition_of(o, "Ready")["reason"] == "NamespaceNotFound");
    let message = condition_of(&told, "Ready")["message"].clone();
    assert_eq!(
        message,
        "cannot publish ExternalArtifact team/app: there is no namespace team; it is published once there is"
    );
    larder.wait_ready("OCIRepository", NAMESPACE, "app");
    let probes = stage.registry.requests();
    api.create(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "team" } }));
    let path = at("app").replace("/default/", "/team/");
    let made = api.wait(&path, |object| condition_of(object, "Ready")["status"] == "True");
    assert_eq!(files_in(&fetch_artifact(&made)), app("1"));
    larder.wait_ready("OCIRepository", "team", "app");
    assert_eq!(stage.registry.requests(), probes, "the registry is not asked for that");
    let log = larder.log();
    assert_eq!(log.matches("there is no namespace team").count(), 1, "{log}");
}

pub fn sources_of_two_kinds_with_one_name_have_two(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let [oci, git] = ["oci", "git"].map(|name| stage.push(&format!("team/{name}"), "latest", &app(name)));
    let spec = json!({ "interval": "1h", "url": stage.url("team/git") });
    stage.write(&[stage.oci_repository("app", "team/oci", json!({})), object("GitRepository", "app", spec)]);
    let larder = stage.publish("one", &[]);
    let first = stage.external("app", &format!("latest@{oci}"));
    let second = stage.external("app-gitrepository", &format!("latest@{git}"));
    assert_eq!(first["spec"]["sourceRef"]["kind"], "OCIRepository");
    assert_eq!(
        (&second["spec"]["sourceRef"]["kind"], &second["spec"]["sourceRef"]["name"]),
        (&json!("GitRepository"), &json!("app"))
    );
    // What is there keeps its name.
    let spec = json!({ "interval": "1h", "url": stage.url("team/git") });
    stage.write(&[object("GitRepository", "app", spec)]);
    api.wait_gone(&at("app"));
    larder.wait_ready("GitRepository", NAMESPACE, "app");
    assert_eq!(larder.stop(), Some(0));
    let _larder = stage.publish("one", &[]);
    stage.external("app-gitrepository", &format!("latest@{git}"));
    assert!(api.get(&at("app")).is_none());
}

pub fn a_failure_is_told_with_a_producers_reason_and_takes_nothing_away(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let digest = stage.push("team/app", "latest", &app("1"));
    stage.write(&[stage.oci_repository("app", "team/app", json!({ "interval": "1s" }))]);
    let _larder = stage.publish("one", &[]);
    let made = stage.external("app", &format!("latest@{digest}"));
    stage.registry.fault(of(Kind::ManifestHead), usize::MAX, Fault::status(503));
    let failed = api.wait(&at("app"), |object| condition_of(object, "Ready")["status"] == "False");
    assert_eq!(condition_of(&failed, "Ready")["reason"], "FetchFailed");
    assert_eq!(failed["status"]["artifact"], made["status"]["artifact"]);
    fetch_artifact(&failed);
    stage.registry.heal();
    stage.external("app", &format!("latest@{digest}"));
}

pub fn what_others_change_is_put_right_and_what_is_not_larders_is_left_alone(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let digest = stage.push("team/app", "latest", &app("1"));
    let revision = format!("latest@{digest}");
    api.create(&with(
        object("ExternalArtifact", "taken", json!({})),
        "/metadata",
        json!({ "labels": { "by": "somebody" } }),
    ));
    let theirs = api.get(&at("taken"));
    stage.write(&["app", "taken"].map(|name| stage.oci_repository(name, "team/app", json!({}))));
    let larder = stage.publish("one", &[]);
    let made = stage.external("app", &revision);
    let told = larder.wait("OCIRepository", NAMESPACE, "taken", |o| condition_of(o, "Ready")["reason"] == "NameTaken");
    assert!(condition_of(&told, "Ready")["message"].as_str().is_some_and(|m| m.contains("one that is not Larder's")));
    assert_eq!(api.get(&at("taken")), theirs);
    api.delete(&at("app"));
    let anew =
        api.wait(&at("app"), |o| o["metadata"]["uid"] != made["metadata"]["uid"] && !o["status"]["artifact"].is_null());
    assert_eq!(anew["status"]["artifact"], made["status"]["artifact"]);
    api.patch(&at("app"), &json!({ "spec": { "sourceRef": { "name": "elsewhere" } } }));
    let spec = made["spec"].clone();
    api.wait(&at("app"), |o| o["spec"] == spec);
    let wrong = json!({ "status": { "artifact": { "revision": "v0@sha256:00" } } });
    api.patch(&format!("{}/status", at("app")), &wrong);
    stage.external("app", &revision);
    // What was taken is published once the name is free.
    api.delete(&at("taken"));
    stage.external("taken", &revision);
    // Another Larder that takes a name over keeps it: no two write in turns.
    let writes = api.writes().len();
    api.patch(&at("app"), &json!({ "metadata": { "labels": { "larder.dev/producer": "files-other" } } }));
    larder.wait("OCIRepository", NAMESPACE, "app", |o| condition_of(o, "Ready")["reason"] == "NameTaken");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(api.writes().len(), writes);
}

pub fn replicas_that_publish_have_one_leader_and_all_serve(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &app("1"));
    let source = stage.oci_repository("app", "team/app", json!({ "interval": "1s" }));
    api.create(&source);
    let one = stage.serve_in("one", &["--external-artifacts"]);
    let made = api.wait(&at("app"), |object| condition_of(object, "Ready")["status"] == "True");
    let asked = stage.registry.count(Kind::ManifestGet);
    let two = stage.serve_in("two", &["--external-artifacts"]);
    let served = |larder: &Larder, object: &Value| {
        let answer = http::get(&format!("{}/{}", larder.artifacts, text(object, "/status/artifact/path")));
        (answer.status == 200).then(|| files_in(&answer.body))
    };
    let serves = |larder: &Larder, object: &Value, content: &Files| {
        eventually("the replica to serve", || match served(larder, object) {
            Some(found) if found == *content => Ok(()),
            found => Err(format!("{found:?}")),
        });
    };
    serves(&two, &made, &app("1"));
    assert_eq!(stage.registry.count(Kind::ManifestGet), asked, "it takes from the leader");
    let digest = stage.push("team/app", "latest", &app("2"));
    let newer = stage.external("app", &format!("latest@{digest}"));
    serves(&two, &newer, &app("2"));
    assert_eq!(
        two.object("OCIRepository", NAMESPACE, "app").expect("shown")["status"]["artifact"],
        newer["status"]["artifact"]
    );
    let writes = api.writes().len();
    one.kill();
    let digest = stage.push("team/app", "latest", &app("3"));
    let third = stage.external("app", &format!("latest@{digest}"));
    assert_eq!(files_in(&fetch_artifact(&third)), app("3"));
    let after = &api.writes()[writes..];
    assert!(after.len() <= 2 && after.iter().all(|line| *line == published("app")[1]), "{after:?}");
    assert_eq!(others(api), Vec::<String>::new());
}
