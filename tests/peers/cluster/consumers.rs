//! Flux's own kustomize-controller and helm-controller, outside of the cluster, against the artifacts that Larder serves.
//!
//! Larder reconciles the sources of the cluster; everything is applied by Flux.

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    cluster::env::{Cluster, Program, has, need_cluster},
    docker_registry::Artifact,
    documents::{NAMESPACE, World, helm_repository, kustomization},
    need::need,
    support::{
        announce, corpus, eventually,
        fixtures::{Files, files, gzip, tar_of},
        larder::{Larder, condition_of, is_ready, text},
    },
};

const SOURCES: &str = "/apis/source.toolkit.fluxcd.io/v1/namespaces/default";
const KUSTOMIZATIONS: &str = "/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/default/kustomizations";
const RELEASES: &str = "/apis/helm.toolkit.fluxcd.io/v2/namespaces/default/helmreleases";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// A registry, an API server with all kinds that Flux's controllers want, and a Larder.
struct Stage {
    world: World,
    cluster: Cluster,
    _root: TempDir,
}

/// A kind that only has to be there, with no schema.
fn bare(group: &str, version: &str, kind: &str, plural: &str) -> Value {
    let open = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": { "group": group, "scope": "Namespaced",
            "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List") },
            "versions": [{ "name": version, "served": true, "storage": true, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": open, "status": open } } } }] } })
}

impl Stage {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("temporary folder");
        let cluster = Cluster::start(root.path());
        cluster.install_larders();
        cluster.install(&[
            bare("source.toolkit.fluxcd.io", "v1", "Bucket", "buckets"),
            bare("helm.toolkit.fluxcd.io", "v2", "HelmRelease", "helmreleases"),
        ]);
        Self { world: World::new(), cluster, _root: root }
    }

    /// A Larder that reconciles the cluster's sources; Flux's controllers apply.
    fn larder(&self, flags: &[&str]) -> Larder {
        let config = self.cluster.kubeconfig("larder").display().to_string();
        let mut all = vec!["--kubernetes", "--watch-kind", "OCIRepository,GitRepository,HelmRepository,HelmChart"];
        all.extend_from_slice(flags);
        let environment = [("KUBECONFIG", config.as_str()), ("POD_NAMESPACE", "flux-system")];
        Larder::start_with(self.world.path(), &all, &environment)
    }

    /// Creates a source and waits until Larder has made its artifact; its path.
    fn source(&self, plural: &str, object: &Value) -> String {
        self.cluster.create(&format!("{SOURCES}/{plural}"), object);
        let path = format!("{SOURCES}/{plural}/{}", text(object, "/metadata/name"));
        self.cluster.wait(&path, is_ready);
        path
    }

    /// Waits until what a controller of Flux reconciles is Ready.
    fn ready(&self, path: &str, controller: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(path, || match self.cluster.object(path) {
            Some(object) if is_ready(&object) && wanted(&object) => Ok(object),
            Some(object) => Err(format!("{}\n{}", object["status"], self.cluster.log_of(controller))),
            None => Err("it is not there".to_owned()),
        })
    }

    fn controller(&self, name: &str, larder: &Larder) -> Program {
        self.cluster.controller(name, &larder.artifacts)
    }
}

/// Two successive releases of podinfo; none without the corpus.
fn podinfo() -> Option<[Files; 2]> {
    let source = corpus::versions("podinfo", 2);
    if !source.real {
        announce("SKIPPED: this wants podinfo's manifests and chart");
        return None;
    }
    source.versions.try_into().ok()
}

fn image(deployment: &Value) -> &str {
    text(deployment, "/spec/template/spec/containers/0/image")
}

#[test]
fn kustomize_controller_applies_podinfo_from_both_kinds_of_source() {
    need!("docker-registry");
    need_cluster!();
    let Some([old, new]) = podinfo().filter(|_| has("kustomize-controller")) else { return };
    let stage = Stage::new();
    let first = stage.world.registry.push_files("podinfo", "latest", &old);
    let larder = stage.larder(&["--insecure-registry", &stage.world.host()]);
    let source = stage.source("ocirepositories", &stage.world.oci_repository("podinfo", "podinfo", json!({})));
    let git = json!({ "ref": { "tag": "latest" } });
    stage.source("gitrepositories", &stage.world.git_repository("podinfo-git", "podinfo", git));
    let _controller = stage.controller("kustomize-controller", &larder);

    let spec = json!({ "path": "./kustomize", "targetNamespace": "default" });
    stage.cluster.create(KUSTOMIZATIONS, &kustomization("podinfo", "podinfo", spec.clone()));
    let path = format!("{KUSTOMIZATIONS}/podinfo");
    let revision = format!("latest@{}", first.digest);
    let applied =
        stage.ready(&path, "kustomize-controller", |object| object["status"]["lastAppliedRevision"] == revision);
    assert_eq!(condition_of(&applied, "Ready")["reason"], "ReconciliationSucceeded");
    let deployment = stage.cluster.object(&format!("{DEPLOYMENTS}/podinfo")).expect("applied");
    let before = image(&deployment).to_owned();

    let second = stage.world.registry.push_files("podinfo", "latest", &new);
    let asked = json!({ "metadata": { "annotations": { "reconcile.fluxcd.io/requestedAt": "now" } } });
    stage.cluster.patch(&source, &asked);
    let revision = format!("latest@{}", second.digest);
    stage.ready(&path, "kustomize-controller", |object| object["status"]["lastAppliedRevision"] == revision);
    let deployment = stage.cluster.object(&format!("{DEPLOYMENTS}/podinfo")).expect("applied");
    assert_ne!(image(&deployment), before, "the next release is applied");

    // The same tree as a GitRepository, once the first has taken its objects away.
    stage.cluster.delete(&path);
    stage.cluster.wait_gone(&format!("{DEPLOYMENTS}/podinfo"));
    let mut from_git = kustomization("from-git", "podinfo-git", spec);
    from_git["spec"]["sourceRef"]["kind"] = json!("GitRepository");
    stage.cluster.create(KUSTOMIZATIONS, &from_git);
    stage.ready(&format!("{KUSTOMIZATIONS}/from-git"), "kustomize-controller", |_| true);
    stage.cluster.wait(&format!("{DEPLOYMENTS}/podinfo"), |_| true);
}

/// Pushes the chart of a release as `helm push` does; gives its version.
fn push_chart(world: &World, release: &Files) -> String {
    let files: Files = release
        .iter()
        .filter_map(|(name, bytes)| Some((name.strip_prefix("charts/")?.to_owned(), bytes.clone())))
        .collect();
    let about = String::from_utf8_lossy(&files["podinfo/Chart.yaml"]).into_owned();
    let about: Value = serde_saphyr::from_str(&about).expect("Chart.yaml");
    let version = text(&about, "/version").to_owned();
    let artifact = Artifact {
        config_type: "application/vnd.cncf.helm.config.v1+json".to_owned(),
        config: about.to_string().into_bytes(),
        layers: vec![("application/vnd.cncf.helm.chart.content.v1.tar+gzip".to_owned(), gzip(&tar_of(&files)))],
        annotations: json!({ "org.opencontainers.image.title": "podinfo" }),
    };
    world.registry.push("charts/podinfo", &version, &artifact);
    version
}

#[test]
fn helm_controller_installs_podinfo_from_an_oci_repository_and_from_a_helm_chart() {
    need!("docker-registry");
    need_cluster!();
    let Some([old, new]) = podinfo().filter(|_| has("helm-controller")) else { return };
    let stage = Stage::new();
    let (first, second) = (push_chart(&stage.world, &old), push_chart(&stage.world, &new));
    let charts = format!("oci://{}/charts", stage.world.host());
    let tag = |version: &str| json!({ "ref": { "tag": version } });
    let whole = stage.world.oci_repository("whole", "charts/podinfo", tag(&first));
    let mut layer = stage.world.oci_repository("layer", "charts/podinfo", tag(&first));
    layer["spec"]["layerSelector"] =
        json!({ "mediaType": "application/vnd.cncf.helm.chart.content.v1.tar+gzip", "operation": "copy" });
    let repository = helm_repository("charts", &charts, json!({ "insecure": true }));
    let larder = stage.larder(&[]);
    stage.source("ocirepositories", &whole);
    stage.source("ocirepositories", &layer);
    stage.cluster.create(&format!("{SOURCES}/helmrepositories"), &repository);
    let _controller = stage.controller("helm-controller", &larder);

    let release = |name: &str, more: Value| {
        // Nothing runs its pods, so nothing waits for them.
        let mut spec =
            json!({ "interval": "1h", "install": { "disableWait": true }, "upgrade": { "disableWait": true } });
        spec.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        let metadata = json!({ "name": name, "namespace": NAMESPACE });
        let object = json!({ "apiVersion": "helm.toolkit.fluxcd.io/v2", "kind": "HelmRelease", "metadata": metadata, "spec": spec });
        stage.cluster.create(RELEASES, &object);
        format!("{RELEASES}/{name}")
    };
    let installed = |path: &str, version: &str| {
        let object = stage.ready(path, "helm-controller", |_| true);
        // With an OCIRepository the start of its digest stands behind the version.
        let release = text(&object, "/status/history/0/chartVersion");
        assert_eq!(release.split('+').next(), Some(version), "{path}");
    };
    for source in ["whole", "layer"] {
        let path = release(source, json!({ "chartRef": { "kind": "OCIRepository", "name": source } }));
        installed(&path, &first);
        stage.cluster.wait(&format!("{DEPLOYMENTS}/{source}-podinfo"), |_| true);
    }
    let reference = json!({ "kind": "HelmRepository", "name": "charts" });
    let spec = json!({ "chart": { "spec": { "chart": "podinfo", "version": second, "sourceRef": reference } } });
    let path = release("by-chart", spec);
    // The controller makes the HelmChart, and Larder its artifact.
    stage.cluster.wait(&format!("{SOURCES}/helmcharts/default-by-chart"), is_ready);
    installed(&path, &second);
    let deployment = stage.cluster.wait(&format!("{DEPLOYMENTS}/by-chart-podinfo"), |_| true);
    assert!(image(&deployment).ends_with(&second), "{}", image(&deployment));
}

#[test]
fn kustomize_controller_applies_from_what_is_published_of_files() {
    need!("docker-registry");
    need_cluster!();
    if !has("kustomize-controller") {
        return;
    }
    let stage = Stage::new();
    let maps = "/api/v1/namespaces/default/configmaps";
    let content = |value: &str| {
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "made", "namespace": NAMESPACE },
            "data": { "k": value } });
        files(&[("map.yaml", &map.to_string())])
    };
    let first = stage.world.registry.push_files("app", "latest", &content("1"));
    stage.world.write(&[stage.world.oci_repository("app", "app", json!({}))]);
    let config = stage.cluster.kubeconfig("larder");
    let objects = stage.world.path().join("objects");
    let flags = ["--objects", objects.to_str().expect("UTF-8"), "--external-artifacts"];
    let environment = [("KUBECONFIG", config.to_str().expect("UTF-8"))];
    let larder = Larder::start_with(stage.world.path(), &flags, &environment);
    let gate = ["--feature-gates=ExternalArtifact=true"];
    let _controller = stage.cluster.controller_with("kustomize-controller", &larder.artifacts, &gate);

    let source = json!({ "sourceRef": { "kind": "ExternalArtifact", "name": "app" } });
    stage.cluster.create(KUSTOMIZATIONS, &kustomization("app", "app", source));
    let path = format!("{KUSTOMIZATIONS}/app");
    let applied = |revision: String| {
        stage.ready(&path, "kustomize-controller", |object| object["status"]["lastAppliedRevision"] == revision)
    };
    applied(format!("latest@{}", first.digest));
    assert_eq!(stage.cluster.object(&format!("{maps}/made")).expect("applied")["data"]["k"], "1");
    let second = stage.world.registry.push_files("app", "latest", &content("2"));
    assert_eq!(larder.reconcile("OCIRepository", NAMESPACE, "app").status, 200);
    applied(format!("latest@{}", second.digest));
    assert_eq!(stage.cluster.object(&format!("{maps}/made")).expect("applied")["data"]["k"], "2");
    let written = stage.cluster.audited();
    let writes = written.iter().filter(|call| !["get", "list", "watch"].contains(&text(call, "/verb")));
    let mut writes: Vec<&str> = writes.map(|call| text(call, "/objectRef/resource")).collect();
    writes.dedup();
    assert_eq!(writes, ["externalartifacts"], "nothing of Flux's is written by Larder");
}
