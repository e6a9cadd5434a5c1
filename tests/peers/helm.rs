//! Charts as Helm OCI artifacts: `HelmRepository` of type oci with `HelmChart`, and an `OCIRepository` of a chart.

use serde_json::json;

use crate::{
    docker_registry::{Artifact, Pushed},
    documents::{NAMESPACE, World, helm_chart, helm_repository},
    need::need,
    support::{
        corpus,
        fixtures::{Files, files, gzip, hex_of, tar_of},
        larder::{condition_of, fetch_artifact, text},
    },
};

const HELM_CONFIG: &str = "application/vnd.cncf.helm.config.v1+json";
const HELM_LAYER: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
const PROVENANCE: &str = "application/vnd.cncf.helm.chart.provenance.v1.prov";

/// A chart's files as `helm package` puts them: below a folder with the chart's name, Chart.yaml first read by its version.
fn chart(version: &str, template: &str) -> Files {
    let about = format!("apiVersion: v2\nname: podinfo\nversion: {version}\n");
    files(&[
        ("podinfo/Chart.yaml", &about),
        ("podinfo/values.yaml", "replicas: 1\n"),
        ("podinfo/templates/service.yaml", template),
    ])
}

/// Pushes a chart as `helm push` does: `+` in the version is `_` in the tag.
fn push_chart(world: &World, version: &str, files: &Files) -> Pushed {
    let config = json!({ "name": "podinfo", "version": version, "apiVersion": "v2" });
    let artifact = Artifact {
        config_type: HELM_CONFIG.to_owned(),
        config: config.to_string().into_bytes(),
        layers: vec![(HELM_LAYER.to_owned(), gzip(&tar_of(files)))],
        annotations: json!({ "org.opencontainers.image.title": "podinfo" }),
    };
    world.registry.push("charts/podinfo", &version.replace('+', "_"), &artifact)
}

#[test]
fn chart_versions_resolve_as_in_flux() {
    need!("docker-registry");
    let world = World::new();
    let versions = ["0.1.0", "0.10.0", "0.2.0", "1.0.0", "1.1.0-rc.1", "6.2.1+ref.1234567", "6.2.0"];
    let pushed: Vec<(&str, Pushed)> =
        versions.iter().map(|version| (*version, push_chart(&world, version, &chart(version, version)))).collect();
    let rows = [
        ("exact", "0.2.0", "0.2.0"),
        ("minor", "0.*", "0.10.0"),
        ("range", ">= 0.1.0 < 1.0.0", "0.10.0"),
        ("any", "*", "6.2.1+ref.1234567"),
        ("empty", "", "6.2.1+ref.1234567"),
        ("prerelease", ">= 1.0.0-0 < 2.0.0", "1.1.0-rc.1"),
    ];
    let url = format!("oci://{}/charts", world.host());
    let mut objects = vec![helm_repository("charts", &url, json!({ "insecure": true }))];
    objects.extend(rows.iter().map(|(name, version, _)| helm_chart(name, "charts", "podinfo", version)));
    objects.push(helm_chart("none", "charts", "podinfo", "> 7.0.0"));
    objects.push(helm_chart("absent", "charts", "absent", "1.0.0"));
    objects.push(helm_chart("orphan", "no-such-repository", "podinfo", "*"));
    objects.push(helm_chart("misnamed", "charts", "Pod Info", "*"));
    let mut without_values = helm_chart("valueless", "charts", "podinfo", "0.1.0");
    without_values["spec"]["valuesFiles"] = json!(["values.yaml", "values-prod.yaml"]);
    objects.push(without_values);
    world.write(&objects);
    let larder = world.serve(&[]);
    for (name, _, version) in rows {
        let object = larder.wait_ready("HelmChart", NAMESPACE, name);
        let layer = &pushed.iter().find(|(pushed, _)| *pushed == version).expect("pushed").1.layer;
        assert_eq!(text(&object, "/status/artifact/revision"), version, "{name}");
        assert_eq!(text(&object, "/status/artifact/digest"), layer, "{name}: the chart as it was pushed");
        let path = format!("helmchart/default/{name}/podinfo-{version}-{}.tgz", &hex_of(layer)[..12]);
        assert_eq!(text(&object, "/status/artifact/path"), path);
        assert_eq!(text(&object, "/status/observedChartName"), "podinfo");
        assert_eq!(condition_of(&object, "ArtifactInStorage")["reason"], "ChartPullSucceeded", "{name}");
        fetch_artifact(&object);
    }
    // An exact version lists no tags; all others may share one list.
    for (name, condition, reason) in [
        ("none", "BuildFailed", "ChartPullError"),
        ("absent", "BuildFailed", "ChartPullError"),
        ("orphan", "FetchFailed", "SourceUnavailable"),
        ("misnamed", "BuildFailed", "InvalidChartReference"),
        ("valueless", "BuildFailed", "ValuesFilesError"),
    ] {
        let object = larder.wait("HelmChart", NAMESPACE, name, |object| {
            let failed = condition_of(object, condition);
            failed["status"] == "True"
                && failed["reason"] == reason
                && condition_of(object, "Ready")["status"] == "False"
        });
        // Only another spec helps the last two.
        let stalled = matches!(reason, "InvalidChartReference" | "ValuesFilesError");
        assert_eq!(condition_of(&object, "Stalled")["status"] == "True", stalled, "{object}");
    }
    let repository = larder.object("HelmRepository", NAMESPACE, "charts").expect("listed");
    assert!(repository["status"].get("artifact").is_none(), "a HelmRepository of type oci has no artifact");
}

#[test]
fn a_chart_of_the_corpus_comes_through_both_kinds() {
    need!("docker-registry");
    let world = World::new();
    let source = corpus::versions("podinfo", 1);
    let files: Files = if source.real {
        let own = |(path, bytes): (&String, &Vec<u8>)| Some((path.strip_prefix("charts/")?.to_owned(), bytes.clone()));
        source.versions[0].iter().filter_map(own).collect()
    } else {
        chart("1.2.3", "kind: Service\n")
    };
    let about = String::from_utf8_lossy(&files["podinfo/Chart.yaml"]).into_owned();
    let version = about.lines().find_map(|line| line.strip_prefix("version: ")).expect("a version").trim().to_owned();
    let pushed = push_chart(&world, &version, &files);
    let url = format!("oci://{}/charts", world.host());
    let copy = json!({ "ref": { "tag": version }, "layerSelector": { "mediaType": HELM_LAYER, "operation": "copy" } });
    world.write(&[
        helm_repository("charts", &url, json!({ "insecure": true })),
        helm_chart("chart", "charts", "podinfo", &version),
        world.oci_repository("copy", "charts/podinfo", copy),
    ]);
    let larder = world.serve(&[]);
    let object = larder.wait_ready("HelmChart", NAMESPACE, "chart");
    assert_eq!(text(&object, "/status/artifact/digest"), pushed.layer);
    assert_eq!(text(&object, "/status/artifact/revision"), version);
    let bytes = fetch_artifact(&object);
    let object = larder.wait_ready("OCIRepository", NAMESPACE, "copy");
    // helm-controller reads the version out of this.
    assert_eq!(text(&object, "/status/artifact/revision"), format!("{version}@{}", pushed.digest));
    assert_eq!(fetch_artifact(&object), bytes);
    assert_eq!(world.registry.count(&["GET", "/blobs/", &pushed.layer]), 1, "one pull for both");
    assert_eq!(world.registry.count(&["GET", "/tags/list"]), 0, "an exact version lists no tags");
}

#[test]
fn a_chart_layer_is_found_behind_its_provenance() {
    need!("docker-registry");
    let world = World::new();
    let artifact = Artifact {
        config_type: HELM_CONFIG.to_owned(),
        config: json!({ "name": "podinfo", "version": "1.0.0", "apiVersion": "v2" }).to_string().into_bytes(),
        layers: vec![
            (PROVENANCE.to_owned(), b"-----BEGIN PGP SIGNED MESSAGE-----\n".to_vec()),
            (HELM_LAYER.to_owned(), gzip(&tar_of(&chart("1.0.0", "x")))),
        ],
        annotations: json!({}),
    };
    world.registry.push("charts/podinfo", "1.0.0", &artifact);
    world.write(&[world.oci_repository("app", "charts/podinfo", json!({ "ref": { "semver": "1.x" } }))]);
    let larder = world.serve(&[]);
    let object = larder.wait_ready("OCIRepository", NAMESPACE, "app");
    let found = crate::support::fixtures::files_in(&fetch_artifact(&object));
    assert_eq!(found, chart("1.0.0", "x"));
}
