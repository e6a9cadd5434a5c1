//! `larder migrate report`: what would differ, from a cluster and from files, with nothing written.

use std::{path::Path, process::Output};

use serde_json::{Value, json};

use crate::support::{
    api_server::{ApiServer, Call, Fault},
    kubernetes::{object, with},
    larder::{command, finish, run_json, write_objects},
};

fn objects() -> Vec<Value> {
    let sha = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let artifact = json!({ "digest": format!("sha256:{sha}"), "path": format!("ocirepository/default/app/sha256:{sha}.tar.gz"),
        "url": "http://source-controller/x", "revision": format!("v1@sha256:{sha}"), "lastUpdateTime": "2026-01-01T00:00:00Z",
        "size": 1 });
    let oci = |more: Value| with(json!({ "url": "oci://registry.example/app", "interval": "1m" }), "", more);
    let applies = |source: Value| json!({ "interval": "1m", "prune": true, "sourceRef": source });
    let mut app = object("OCIRepository", "app", oci(json!({})));
    app["status"] = json!({ "artifact": artifact, "observedGeneration": 1 });
    let mut release = object(
        "HelmRelease",
        "release",
        json!({ "interval": "1m", "chartRef": { "kind": "OCIRepository", "name": "app" } }),
    );
    release["apiVersion"] = json!("helm.toolkit.fluxcd.io/v2");
    let sops = json!({ "decryption": { "provider": "sops" }, "kubeConfig": { "secretRef": { "name": "s" } } });
    vec![
        app,
        object("OCIRepository", "new", oci(json!({}))),
        object("OCIRepository", "notation", oci(json!({ "verify": { "provider": "notation" } }))),
        object("GitRepository", "git", json!({ "url": "https://git.example/app", "interval": "1m" })),
        object("HelmRepository", "http", json!({ "url": "https://charts.example" })),
        object("Bucket", "bucket", json!({ "bucketName": "b", "endpoint": "h", "interval": "1m" })),
        object("Kustomization", "app", applies(json!({ "kind": "OCIRepository", "name": "app" }))),
        object("Kustomization", "git", applies(json!({ "kind": "GitRepository", "name": "git" }))),
        object("Kustomization", "sops", with(applies(json!({ "kind": "OCIRepository", "name": "app" })), "", sops)),
        release,
    ]
}

const VERDICTS: [(&str, &str, &str); 10] = [
    ("OCIRepository", "app", "differs"),
    ("OCIRepository", "new", "same"),
    ("OCIRepository", "notation", "refused"),
    ("GitRepository", "git", "not taken"),
    ("HelmRepository", "http", "not taken"),
    ("Kustomization", "app", "same"),
    ("Kustomization", "git", "not taken"),
    ("Kustomization", "sops", "refused"),
    ("Bucket", "bucket", "not taken"),
    ("HelmRelease", "release", "not taken"),
];

fn report(api: &ApiServer, root: &Path, flags: &[&str]) -> Output {
    let mut report = command(root);
    report.args(["migrate", "report"]).args(flags).env("KUBECONFIG", api.kubeconfig(root));
    finish(report)
}

fn verdicts(report: &Value) -> Vec<(String, String, String)> {
    let text = |line: &Value, field: &str| line[field].as_str().expect("text").to_owned();
    let lines = report["items"].as_array().expect("lines").iter();
    lines.map(|line| (text(line, "kind"), text(line, "name"), text(line, "verdict"))).collect()
}

fn expected() -> Vec<(String, String, String)> {
    VERDICTS.map(|(kind, name, verdict)| (kind.to_owned(), name.to_owned(), verdict.to_owned())).into()
}

#[test]
fn a_cluster_is_reported_by_lists_alone() {
    let root = tempfile::tempdir().expect("temporary folder");
    let api = ApiServer::start();
    objects().into_iter().for_each(|object| drop(api.put(object)));
    let printed = report(&api, root.path(), &["-o", "json"]);
    assert_eq!(printed.status.code(), Some(0), "{}", String::from_utf8_lossy(&printed.stderr));
    let found: Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    assert_eq!((verdicts(&found), &found["errors"]), (expected(), &json!([])));
    for line in found["items"].as_array().expect("lines") {
        assert_eq!(line["verdict"] == "same", line["why"] == json!([]), "{line}");
    }
    let table = report(&api, root.path(), &["--namespace", "default"]);
    let (text, counts) = (String::from_utf8_lossy(&table.stdout), String::from_utf8_lossy(&table.stderr));
    let header: Vec<&str> = text.lines().next().expect("a header").split_whitespace().collect();
    assert_eq!(header, ["KIND", "NAMESPACE/NAME", "VERDICT", "WHY"]);
    let sops = text.lines().find(|line| line.contains("default/sops")).expect("its line");
    assert!(sops.contains("nothing is decrypted here") && sops.contains("spec.kubeConfig"), "all reasons: {sops}");
    assert!(counts.contains("2 same, 1 differs, 5 not taken, 2 refused"), "{counts}");
    let calls = api.lines(|call| call.headers.contains_key("authorization"));
    assert!(
        !calls.is_empty() && calls.iter().all(|call| call.starts_with("list ") && !call.contains("secrets")),
        "{calls:?}"
    );
}

#[test]
fn what_is_never_contacted_is_refused_and_what_is_not_there_is_waited_for() {
    let root = tempfile::tempdir().expect("temporary folder");
    let api = ApiServer::start();
    let host = api.url().trim_start_matches("http://").to_owned();
    for (name, host) in [("api", &*host), ("local", "localhost:41500"), ("metadata", "169.254.169.254")] {
        api.put(object("OCIRepository", name, json!({ "url": format!("oci://{host}/app"), "interval": "1m" })));
    }
    let source = json!({ "kind": "OCIRepository", "name": "none" });
    api.put(object("Kustomization", "early", json!({ "interval": "1m", "prune": true, "sourceRef": source })));
    let printed = report(&api, root.path(), &["-o", "json"]);
    let found: Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    for line in found["items"].as_array().expect("lines") {
        let (verdict, says) = match line["kind"].as_str() {
            Some("Kustomization") => ("same", "is not there: Larder waits for it, as Flux does"),
            _ => ("refused", "must not be contacted"),
        };
        assert!(line["verdict"] == verdict && line["why"].to_string().contains(says), "{line}");
    }
    assert_eq!(found["items"].as_array().map(Vec::len), Some(4), "{found}");
}

#[test]
fn what_may_not_be_listed_makes_the_report_incomplete() {
    let root = tempfile::tempdir().expect("temporary folder");
    let api = ApiServer::start();
    objects().into_iter().for_each(|object| drop(api.put(object)));
    let releases = |call: &Call| call.is("list", "helmreleases");
    api.fault(releases, usize::MAX, Fault::message(403, "Forbidden", "may not list"));
    for flags in [&["-o", "json"][..], &[]] {
        let part = report(&api, root.path(), flags);
        let (out, said) = (String::from_utf8_lossy(&part.stdout), String::from_utf8_lossy(&part.stderr));
        assert_eq!(part.status.code(), Some(1), "{said}");
        assert!(said.contains("warning: helmreleases.helm.toolkit.fluxcd.io: may not list"), "{said}");
        assert!(said.contains("the report is incomplete: 1 of") && out.contains("OCIRepository"), "{said}{out}");
    }
    api.fault(|call| call.verb == "list", usize::MAX, Fault::message(403, "Forbidden", "may not list"));
    let nothing = report(&api, root.path(), &[]);
    let said = String::from_utf8_lossy(&nothing.stderr);
    assert_eq!(nothing.status.code(), Some(1), "{said}");
    assert!(said.contains("the report is incomplete: 7 of") && !said.contains("no objects"), "{said}");
}

#[test]
fn files_are_reported_without_a_cluster() {
    let root = tempfile::tempdir().expect("temporary folder");
    write_objects(root.path(), "all.yaml", &objects());
    let folder = root.path().join("objects");
    let found =
        run_json(root.path(), ["migrate", "report", "-o", "json", "--objects", folder.to_str().expect("UTF-8")]);
    assert_eq!(verdicts(&found), expected());
    let mut nowhere = command(root.path());
    nowhere.args(["migrate", "report"]);
    let failed = finish(nowhere);
    assert_eq!(failed.status.code(), Some(1));
    let why = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(why.contains("set KUBECONFIG to a file"), "{why}");
}
