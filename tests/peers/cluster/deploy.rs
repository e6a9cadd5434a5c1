//! `deploy/` on a real API server: everything is taken without a word, and the rights are those that are meant.

use std::{path::Path, process::Command};

use serde_json::{Value, json};

use crate::{
    cluster::env::{Cluster, Setup, assets, has, need_cluster},
    need,
    support::larder::{finish, stdout_of},
};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
/// The controller's account.
const LARDER: &str = "system:serviceaccount:larder-system:larder";

/// What can be installed.
const INSTALLATIONS: [&str; 9] =
    ["sources", "full", "tenants", "controller", "beside-flux", "producer", "mirror", "mirror-metrics", "monitoring"];

/// The kinds of the Prometheus Operator that `monitoring` needs, without their schemas.
fn operators() -> Vec<Value> {
    let kinds = [("podmonitors", "podmonitor", "PodMonitor"), ("prometheusrules", "prometheusrule", "PrometheusRule")];
    let crd = |(plural, singular, kind): (&str, &str, &str)| {
        json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{plural}.monitoring.coreos.com") },
            "spec": { "group": "monitoring.coreos.com", "scope": "Namespaced",
                "names": { "plural": plural, "singular": singular, "kind": kind, "listKind": format!("{kind}List") },
                "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }] } })
    };
    kinds.map(crd).into()
}

/// `kubectl` as `admin`; what it prints, and what it complains about.
fn kubectl(cluster: &Cluster, arguments: &[&str]) -> (String, String) {
    let mut command = Command::new(assets().join("kubectl"));
    command.arg("--kubeconfig").arg(cluster.kubeconfig("admin")).args(arguments);
    let output = finish(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn can(cluster: &Cluster, question: &[&str]) -> bool {
    let (answer, complaint) =
        kubectl(cluster, &[&["auth", "can-i", "--quiet=false", "--as", LARDER], question].concat());
    match answer.lines().last() {
        Some("yes") => true,
        Some("no") => false,
        _ => panic!("{question:?}: {answer} {complaint}"),
    }
}

#[test]
fn every_installation_builds_from_what_is_there_and_runs_the_image_that_is_set() {
    let Some(program) = need::kustomize() else {
        need::all_of(&["kubectl"]);
        return;
    };
    let kubectl = program.file_name().is_some_and(|name| name.to_string_lossy().contains("kubectl"));
    let root = tempfile::tempdir().expect("temporary folder");
    for overlay in INSTALLATIONS {
        // By a relative path: kustomize takes no other.
        let up = "../".repeat(root.path().canonicalize().expect("a path").components().count());
        let outer = json!({ "resources": [format!("{up}{}", format!("{DEPLOY}/{overlay}").trim_start_matches('/'))],
            "images": [{ "name": "larder", "newName": "registry.example.com/larder", "newTag": "v1" }] });
        std::fs::write(root.path().join("kustomization.yaml"), outer.to_string()).expect("a file");
        let mut command = Command::new(&program);
        command.arg(if kubectl { "kustomize" } else { "build" }).arg(root.path().canonicalize().expect("a path"));
        let built = String::from_utf8(stdout_of(command)).expect("UTF-8");
        let images: Vec<&str> =
            built.lines().filter_map(|line| line.trim_start_matches([' ', '-']).strip_prefix("image: ")).collect();
        let expected = match overlay {
            "monitoring" => 0,
            "mirror" | "mirror-metrics" => 2,
            _ => 1,
        };
        assert_eq!(images, vec!["registry.example.com/larder:v1"; expected], "{overlay}");
        let crds = built.matches("kind: CustomResourceDefinition").count();
        assert_eq!(crds > 0, ["sources", "full", "tenants"].contains(&overlay), "{overlay}");
    }
}

#[test]
fn every_installation_is_taken_without_a_warning() {
    need_cluster!();
    if !has("kubectl") {
        return;
    }
    let root = tempfile::tempdir().expect("temporary folder");
    let cluster = Cluster::start(root.path());
    cluster.install(&operators());
    // The namespaces have to be there before the server looks at what is in them.
    for overlay in INSTALLATIONS {
        let folder = Path::new(DEPLOY).join(overlay);
        let folder = folder.to_str().expect("UTF-8");
        let (said, complaint) = kubectl(&cluster, &["apply", "--validate=strict", "-k", folder]);
        assert_eq!(complaint, "", "{overlay}: {said}");
    }
}

#[test]
fn larder_may_do_what_it_needs_and_no_more() {
    need_cluster!();
    if !has("kubectl") {
        return;
    }
    let root = tempfile::tempdir().expect("temporary folder");
    let cluster = Cluster::start_with(root.path(), Setup { rbac: true, controllers: false });
    let apply = |overlay: &str| {
        let folder = format!("{DEPLOY}/{overlay}");
        let (_, complaint) = kubectl(&cluster, &["apply", "-k", &folder]);
        assert_eq!(complaint, "", "{overlay}");
    };
    let bind = |role: &str, namespace: &str| {
        let role = ["--clusterrole", role, "--serviceaccount", "larder-system:larder"];
        let (_, complaint) =
            kubectl(&cluster, &[&["create", "rolebinding", "larder", "--namespace", namespace], &role[..]].concat());
        assert_eq!(complaint, "", "{role:?}");
    };
    let everywhere = |verb, what| can(&cluster, &[verb, what, "--all-namespaces"]);
    let within = |namespace, verb, what| can(&cluster, &[verb, what, "--namespace", namespace]);

    apply("sources");
    let sources = "ocirepositories.source.toolkit.fluxcd.io";
    for verb in ["get", "list", "watch", "patch"] {
        assert!(everywhere(verb, sources), "{verb}");
    }
    assert!(can(&cluster, &["patch", sources, "--subresource=status", "--all-namespaces"]));
    assert!(everywhere("create", "events"));
    assert!(within("larder-system", "update", "leases") && !within("flux-system", "update", "leases"));
    for (verb, what) in [("create", sources), ("delete", sources), ("get", "secrets"), ("list", "secrets")] {
        assert!(!everywhere(verb, what), "{verb} {what}");
    }
    bind("larder-references", "flux-system");
    assert!(within("flux-system", "get", "secrets") && within("flux-system", "get", "serviceaccounts"));
    assert!(!within("flux-system", "list", "secrets") && !within("flux-system", "watch", "secrets"));
    assert!(!within("default", "get", "secrets"));

    apply("tenants");
    let kustomizations = "kustomizations.kustomize.toolkit.fluxcd.io";
    assert!(everywhere("watch", kustomizations) && everywhere("patch", kustomizations));
    bind("larder-tenant", "default");
    assert!(
        within("default", "impersonate", "serviceaccounts") && !within("flux-system", "impersonate", "serviceaccounts")
    );
    assert!(within("default", "get", "configmaps") && !within("default", "create", "deployments.apps"));

    apply("full");
    assert!(within("default", "create", "deployments.apps"));
}

#[test]
fn a_producer_may_write_external_artifacts_and_nothing_else() {
    need_cluster!();
    if !has("kubectl") {
        return;
    }
    let root = tempfile::tempdir().expect("temporary folder");
    let cluster = Cluster::start_with(root.path(), Setup { rbac: true, controllers: false });
    cluster.install_larders();
    let (_, complaint) = kubectl(&cluster, &["apply", "-k", &format!("{DEPLOY}/producer")]);
    assert_eq!(complaint, "");
    let listed = format!("--as={LARDER}");
    let (rights, _) =
        kubectl(&cluster, &["auth", "can-i", "--list", "--no-headers", "--namespace", "flux-system", &listed]);
    let of_flux: Vec<Vec<&str>> = rights
        .lines()
        .filter(|line| line.contains("toolkit.fluxcd.io") || line.contains("secrets") || line.contains("events"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    for right in &of_flux {
        let written = right.join(" ").contains("[patch]") || right.join(" ").contains("create");
        assert!(!written || right[0].starts_with("externalartifacts"), "{right:?}");
    }
    assert_eq!(of_flux.len(), 6, "{rights}");
    for verb in ["get", "list", "watch", "create", "patch", "delete"] {
        assert!(can(&cluster, &[verb, "externalartifacts.source.toolkit.fluxcd.io", "--all-namespaces"]), "{verb}");
    }
}
