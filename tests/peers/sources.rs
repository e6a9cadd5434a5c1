//! Which manifest and which layer a source takes, and what its status then says (Flux's own tests, as rows).

use serde_json::{Value, json};

use crate::{
    docker_registry::{Artifact, FLUX_LAYER, OCI_INDEX, Pushed},
    documents::{NAMESPACE, World},
    need::need,
    support::{
        fixtures::{files, files_below, files_in, gzip, hex_of, sha256, tar_of, zstd},
        http,
        larder::{condition_of, fetch_artifact, text},
    },
};

/// Pushes one artifact under each tag, each with other contents.
fn push_tags<'a>(world: &World, repository: &str, tags: &[&'a str]) -> std::collections::BTreeMap<&'a str, Pushed> {
    tags.iter().map(|tag| (*tag, world.registry.push_files(repository, tag, &files(&[("version", tag)])))).collect()
}

#[test]
fn references_resolve_as_in_flux() {
    need!("docker-registry");
    let world = World::new();
    let tags = ["latest", "6.1.4", "6.1.5", "6.1.6", "6.1.6-rc.1", "v6.2.0", "6.0", "nightly", "6.1.7-alpha.1"];
    let pushed = push_tags(&world, "app", &tags);
    let digest = |tag: &str| pushed[tag].digest.clone();
    // name, ref, the tag that is taken, whether the revision names it
    let rows: Vec<(&str, Value, &str, bool)> = vec![
        ("none", json!({}), "latest", true),
        ("tag", json!({ "tag": "nightly" }), "nightly", true),
        ("digest", json!({ "digest": digest("6.1.4") }), "6.1.4", false),
        ("range", json!({ "semver": ">= 6.1 <= 6.1.5" }), "6.1.5", true),
        ("highest", json!({ "semver": ">= 6.1.0" }), "v6.2.0", true),
        ("tilde", json!({ "semver": "6.1.x" }), "6.1.6", true),
        ("semver-beats-tag", json!({ "semver": "6.1.4", "tag": "nightly" }), "6.1.4", true),
        ("digest-beats-semver", json!({ "digest": digest("nightly"), "semver": "6.1.x" }), "nightly", false),
        ("filter", json!({ "semver": ">= 6.1.x-0", "semverFilter": ".*-rc.*" }), "6.1.6-rc.1", true),
        ("prerelease", json!({ "semver": ">= 6.1.7-0 < 6.2.0-0" }), "6.1.7-alpha.1", true),
    ];
    let objects: Vec<Value> = rows
        .iter()
        .map(|(name, reference, ..)| world.oci_repository(name, "app", json!({ "ref": reference })))
        .collect();
    world.write(&objects);
    let larder = world.serve(&[]);
    for (name, _, tag, named) in &rows {
        let object = larder.wait_ready("OCIRepository", NAMESPACE, name);
        let revision = if *named { format!("{tag}@{}", digest(tag)) } else { digest(tag) };
        assert_eq!(text(&object, "/status/artifact/revision"), revision, "{name}");
        assert_eq!(files_in(&fetch_artifact(&object)), files(&[("version", tag)]), "{name}");
        let ready = condition_of(&object, "Ready");
        assert_eq!(ready["reason"], "Succeeded", "{name}");
        assert_eq!(ready["message"], format!("stored artifact for digest '{revision}'"), "{name}");
        assert_eq!(condition_of(&object, "ArtifactInStorage")["status"], "True", "{name}");
        for absent in ["FetchFailed", "Reconciling", "Stalled", "ArtifactOutdated", "StorageOperationFailed"] {
            assert!(condition_of(&object, absent).is_null(), "{name} still has {absent}");
        }
    }
}

#[test]
fn what_cannot_be_resolved_fails_with_flux_s_reasons() {
    need!("docker-registry");
    let world = World::new();
    push_tags(&world, "app", &["1.0.0"]);
    let host = world.host();
    // name, url, spec, condition, reason, a part of the message
    let rows: Vec<(&str, String, Value, &str, &str, &str)> = vec![
        (
            "tag",
            "app".into(),
            json!({ "ref": { "tag": "no" } }),
            "FetchFailed",
            "OCIArtifactPullFailed",
            "MANIFEST_UNKNOWN",
        ),
        ("repository", "none".into(), json!({}), "FetchFailed", "OCIArtifactPullFailed", "none"),
        (
            "range",
            "app".into(),
            json!({ "ref": { "semver": "<= 0.1.0" } }),
            "FetchFailed",
            "ReadOperationFailed",
            "no match found for semver",
        ),
        (
            "filter",
            "app".into(),
            json!({ "ref": { "semver": ">= 0.0.x-0", "semverFilter": ".*-alpha.*" } }),
            "FetchFailed",
            "ReadOperationFailed",
            "no match found for semver",
        ),
        (
            "digest",
            "app".into(),
            json!({ "ref": { "digest": "invalid" } }),
            "FetchFailed",
            "OCIArtifactPullFailed",
            "invalid",
        ),
        (
            "layer",
            "app".into(),
            json!({ "ref": { "tag": "1.0.0" }, "layerSelector": { "mediaType": "application/none" } }),
            "FetchFailed",
            "OCIArtifactLayerOperationFailed",
            "application/none",
        ),
        ("url-tag", "app:1.0.0".into(), json!({}), "Stalled", "URLInvalid", "1.0.0"),
        ("url-digest", format!("app@{}", sha256(b"")), json!({}), "Stalled", "URLInvalid", ""),
        ("url-path", "App//x".into(), json!({}), "Stalled", "URLInvalid", ""),
    ];
    let objects: Vec<Value> =
        rows.iter().map(|(name, path, spec, ..)| world.oci_repository(name, path, spec.clone())).collect();
    world.write(&objects);
    let larder = world.serve(&[]);
    for (name, _, _, condition, reason, part) in &rows {
        let object = larder.wait_failed("OCIRepository", NAMESPACE, name, condition, reason);
        let message = text(condition_of(&object, "Ready"), "/message");
        assert!(message.contains(part), "{name}: {message}");
        assert!(object["status"].get("artifact").is_none(), "{name} has an artifact");
        let stalled = condition_of(&object, "Stalled")["status"] == "True";
        // Nothing but a new spec helps where the digest is none, so it may be Stalled too, though Flux goes on trying.
        assert!(stalled == (*condition == "Stalled") || *name == "digest", "{name}");
        if *condition == "Stalled" {
            assert_eq!(condition_of(&object, "FetchFailed")["reason"], *reason, "{name}");
            assert_eq!(object["status"]["observedGeneration"], 1, "{name}");
        }
    }
    assert_eq!(world.registry.count(&["App"]), 0, "an invalid URL leads to no request at {host}");
}

#[test]
fn a_status_tells_path_url_size_and_annotations() {
    need!("docker-registry");
    let world = World::new();
    let content = files(&[("a/b.yaml", "x: 1\n"), ("c.yaml", "y: 2\n")]);
    let pushed = world.registry.push_files("app", "latest", &content);
    world.write(&[world.oci_repository("app", "app", json!({}))]);
    let larder = world.serve(&[]);
    let object = larder.wait_ready("OCIRepository", NAMESPACE, "app");
    let hex = hex_of(&pushed.layer);
    assert_eq!(text(&object, "/status/artifact/digest"), pushed.layer, "the layer itself is the artifact");
    assert_eq!(text(&object, "/status/artifact/path"), format!("ocirepository/default/app/{hex}.tar.gz"));
    let url = format!("{}/ocirepository/default/app/{hex}.tar.gz", larder.artifacts);
    assert_eq!(text(&object, "/status/artifact/url"), url);
    let annotations = &object["status"]["artifact"]["metadata"];
    assert_eq!(annotations["org.opencontainers.image.source"], "https://example.com/configuration");
    assert_eq!(annotations["org.opencontainers.image.revision"], "main@sha1:0000000000000000000000000000000000000000");
    let bytes = fetch_artifact(&object);

    let whole = http::get(&url);
    assert_eq!(whole.header("content-type"), Some("application/gzip"));
    assert_eq!(whole.header("cache-control"), Some("public, max-age=31536000, immutable"));
    let etag = whole.header("etag").expect("ETag").to_owned();
    assert_eq!(etag, format!("\"{}\"", pushed.layer));
    let send = |method: &str, headers: &[(&str, &str)]| http::send(method, &url, headers, b"").expect("an answer");
    assert_eq!(send("GET", &[("If-None-Match", &etag)]).status, 304);
    let part = send("GET", &[("Range", "bytes=10-19")]);
    assert_eq!((part.status, part.body.as_slice()), (206, &bytes[10..20]));
    assert_eq!(part.header("content-range"), Some(format!("bytes 10-19/{}", bytes.len()).as_str()));
    let beyond = send("GET", &[("Range", &format!("bytes={}-", bytes.len()))]);
    assert_eq!(beyond.status, 416);
    let encoded = send("GET", &[("Accept-Encoding", "gzip, zstd")]);
    assert_eq!((encoded.header("content-encoding"), &encoded.body), (None, &bytes));
    let head = send("HEAD", &[]);
    assert_eq!(head.header("content-length"), Some(bytes.len().to_string().as_str()));
    assert_eq!(send("PUT", &[]).status, 405);
    assert_eq!(http::get(&format!("{}/", larder.artifacts)).status, 200);
    for outside in ["/ocirepository/default/app", "/ocirepository/", "/%2e%2e/..%2f%2fetc/passwd", "/lock", "//format"]
    {
        let answer = http::get(&format!("{}{outside}", larder.artifacts));
        assert!(matches!(answer.status, 400 | 404), "{outside}: {}", answer.status);
    }
    let latest = http::get(text(&object, "/status/url"));
    assert!(text(&object, "/status/url").ends_with("/latest.tar.gz"));
    assert_eq!(latest.status, 302);
    let target = latest.header("location").expect("Location");
    assert!(target.ends_with(&format!("{hex}.tar.gz")), "{target}");

    let folder = larder.data.join("source/default/app").join(hex);
    assert_eq!(files_below(&folder.join("contents")), content);
    assert_eq!(std::fs::read(folder.join("manifest.json")).expect("manifest.json"), pushed.manifest);
}

#[test]
fn layers_are_chosen_and_read_whatever_they_are_called() {
    need!("docker-registry");
    let world = World::new();
    let first = files(&[("first.yaml", "a: 1\n")]);
    let second = files(&[("second.yaml", "b: 2\n")]);
    let raw = b"just: text\n".to_vec();
    let mut artifact = Artifact::flux(gzip(&tar_of(&first)));
    artifact.layers.push(("application/second+zstd".to_owned(), zstd(&tar_of(&second))));
    artifact.layers.push(("application/raw".to_owned(), raw.clone()));
    let three = world.registry.push("three", "latest", &artifact);
    for (tag, layer) in [("zstd", zstd(&tar_of(&first))), ("plain", tar_of(&first)), ("text", raw.clone())] {
        world.registry.push("odd", tag, &Artifact::flux(layer));
    }
    let select =
        |media: &str, operation: &str| json!({ "layerSelector": { "mediaType": media, "operation": operation } });
    world.write(&[
        world.oci_repository("default", "three", json!({})),
        world.oci_repository("copy", "three", select(FLUX_LAYER, "copy")),
        world.oci_repository("second", "three", select("application/second+zstd", "extract")),
        world.oci_repository("raw", "three", select("application/raw", "copy")),
        world.oci_repository("zstd", "odd", json!({ "ref": { "tag": "zstd" } })),
        world.oci_repository("plain", "odd", json!({ "ref": { "tag": "plain" } })),
        world.oci_repository("text", "odd", json!({ "ref": { "tag": "text" } })),
    ]);
    let larder = world.serve(&[]);
    let artifact_of = |name: &str| {
        let object = larder.wait_ready("OCIRepository", NAMESPACE, name);
        (text(&object, "/status/artifact/digest").to_owned(), fetch_artifact(&object))
    };
    let (digest, bytes) = artifact_of("default");
    assert_eq!((digest, files_in(&bytes)), (three.layer.clone(), first.clone()));
    assert_eq!(artifact_of("copy").0, three.layer);
    assert_eq!(files_in(&artifact_of("second").1), second);
    assert_eq!(artifact_of("raw").1, raw);
    // A layer that is no gzip tar is rewritten as one, and equal contents give equal artifacts.
    let (from_zstd, bytes) = artifact_of("zstd");
    assert_eq!(files_in(&bytes), first);
    assert_eq!(artifact_of("plain").0, from_zstd);
    larder.wait_failed("OCIRepository", NAMESPACE, "text", "FetchFailed", "OCIArtifactLayerOperationFailed");
}

#[test]
fn an_index_resolves_to_its_linux_amd64_child() {
    need!("docker-registry");
    let world = World::new();
    let push = |text: &str| world.registry.push_files("app", text, &files(&[("for", text)]));
    let child = |pushed: &Pushed, os: &str, architecture: &str| {
        json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": pushed.manifest.len(),
                "digest": pushed.digest, "platform": { "os": os, "architecture": architecture } })
    };
    let (amd64, arm64, attestation) = (push("amd64"), push("arm64"), push("attestation"));
    let index = |children: &[Value]| {
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children }).to_string().into_bytes()
    };
    let unknown = child(&attestation, "unknown", "unknown");
    let full = index(&[unknown.clone(), child(&arm64, "linux", "arm64"), child(&amd64, "linux", "amd64")]);
    let full = world.registry.push_manifest("app", "full", OCI_INDEX, &full);
    let without = index(&[unknown.clone(), child(&arm64, "linux", "arm64")]);
    world.registry.push_manifest("app", "without", OCI_INDEX, &without);
    world.registry.push_manifest("app", "empty", OCI_INDEX, &index(&[unknown]));
    world.write(
        &["full", "without", "empty"].map(|tag| world.oci_repository(tag, "app", json!({ "ref": { "tag": tag } }))),
    );
    let larder = world.serve(&[]);
    let object = larder.wait_ready("OCIRepository", NAMESPACE, "full");
    assert_eq!(text(&object, "/status/artifact/revision"), format!("full@{full}"), "the index's digest, as in Flux");
    assert_eq!(files_in(&fetch_artifact(&object)), files(&[("for", "amd64")]));
    let object = larder.wait_ready("OCIRepository", NAMESPACE, "without");
    assert_eq!(files_in(&fetch_artifact(&object)), files(&[("for", "arm64")]), "configuration has no platform");
    larder.wait("OCIRepository", NAMESPACE, "empty", |object| condition_of(object, "FetchFailed")["status"] == "True");
}

#[test]
fn a_git_repository_with_an_oci_url_maps_its_ref() {
    need!("docker-registry");
    let world = World::new();
    let pushed = push_tags(&world, "app", &["latest", "v1.0.0", "1.2.3", "main", "release"]);
    let rows: Vec<(&str, Value, &str, bool)> = vec![
        ("none", json!({}), "latest", true),
        ("tag", json!({ "tag": "v1.0.0" }), "v1.0.0", true),
        ("commit", json!({ "commit": pushed["main"].digest }), "main", false),
        ("semver", json!({ "semver": "1.2.x" }), "1.2.3", true),
        ("branch", json!({ "branch": "main" }), "main", true),
        ("name-tag", json!({ "name": "refs/tags/v1.0.0" }), "v1.0.0", true),
        ("name-head", json!({ "name": "refs/heads/release" }), "release", true),
    ];
    let objects: Vec<Value> = rows
        .iter()
        .map(|(name, reference, ..)| world.git_repository(name, "app", json!({ "ref": reference })))
        .collect();
    world.write(&objects);
    let larder = world.serve(&["--insecure-registry", &world.host()]);
    for (name, _, tag, named) in &rows {
        let object = larder.wait_ready("GitRepository", NAMESPACE, name);
        let digest = &pushed[tag].digest;
        let revision = if *named { format!("{tag}@{digest}") } else { digest.clone() };
        assert_eq!(text(&object, "/status/artifact/revision"), revision, "{name}");
        let path = text(&object, "/status/artifact/path");
        assert!(path.starts_with(&format!("gitrepository/default/{name}/")), "{path}");
        fetch_artifact(&object);
    }
}

#[test]
fn ignore_rules_change_the_artifact_and_not_the_revision() {
    need!("docker-registry");
    let world = World::new();
    let content = files(&[("a.yaml", "a: 1\n"), ("b.yaml", "b: 1\n"), ("photo.jpg", "x"), (".github/ci.yml", "x")]);
    let pushed = world.registry.push_files("app", "latest", &content);
    world.write(&[world.oci_repository("app", "app", json!({}))]);
    let larder = world.serve(&[]);
    let first = larder.wait_ready("OCIRepository", NAMESPACE, "app");
    let kept = files(&[("a.yaml", "a: 1\n"), ("b.yaml", "b: 1\n")]);
    assert_eq!(files_in(&fetch_artifact(&first)), kept, "Flux's default rules drop the others");
    assert_ne!(text(&first, "/status/artifact/digest"), pushed.layer);

    let rules = "a.yaml\n";
    world.write(&[world.oci_repository("app", "app", json!({ "ignore": rules }))]);
    let second = larder.wait("OCIRepository", NAMESPACE, "app", |object| {
        crate::support::larder::is_ready(object) && object["status"]["observedIgnore"] == rules
    });
    assert_eq!(second["metadata"]["generation"], 2);
    let expected = files(&[("b.yaml", "b: 1\n"), ("photo.jpg", "x"), (".github/ci.yml", "x")]);
    assert_eq!(files_in(&fetch_artifact(&second)), expected, "own rules replace the defaults");
    assert_eq!(text(&second, "/status/artifact/revision"), text(&first, "/status/artifact/revision"));
    assert_eq!(world.registry.count(&["GET", "/blobs/", &pushed.layer]), 1, "the layer was held already");
    assert_eq!(fetch_artifact(&first).len(), first["status"]["artifact"]["size"], "old bytes under the old URL");
}
