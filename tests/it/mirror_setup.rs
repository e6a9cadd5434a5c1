//! `larder mirror install|uninstall|check|print` as the binary does them: files, output and exit codes.

use std::{fs, path::Path, process::Output};

use serde_json::Value;

use crate::{
    mirror::push,
    support::{
        http,
        larder::{Larder, run, run_json},
        registry::{Kind, ScriptedRegistry},
        upstream::{INDEX, MANIFEST, Upstream},
    },
};

const QUAY: &str = "quay.io=https://quay.io";

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn mirror(root: &Path, words: &[&str]) -> Output {
    run(root, [&["mirror"], words].concat())
}

#[test]
fn install_writes_a_file_for_each_upstream_and_uninstall_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("larder.yaml");
    let certs = root.path().join("certs.d");
    let (config_path, dir) = (config.to_str().unwrap(), certs.to_str().unwrap());
    fs::write(&config, "upstreams: [{host: docker.io}, {host: '127.0.0.1:5001', url: 'http://127.0.0.1:5001'}]\n")
        .unwrap();
    let install = ["install", "--config", config_path, "--dir", dir];
    for _ in 0..2 {
        let done = mirror(root.path(), &install);
        assert_eq!(done.status.code(), Some(0), "{}", text(&done));
    }
    let hub = fs::read_to_string(certs.join("docker.io/hosts.toml")).unwrap();
    assert!(hub.contains("server = \"https://registry-1.docker.io\"\n"), "{hub}");
    assert!(hub.contains("[host.\"http://127.0.0.1:5000\"]\n  capabilities = [\"pull\", \"resolve\"]\n"), "{hub}");
    let other = fs::read_to_string(certs.join("127.0.0.1_5001_/hosts.toml")).unwrap();
    assert!(other.contains("server = \"http://127.0.0.1:5001\"\n"), "{other}");

    fs::write(&config, "upstreams: [{host: docker.io}]\n").unwrap();
    let mut json = install.to_vec();
    json.extend(["-o", "json"]);
    let done: Value = run_json(root.path(), [&["mirror"], &json[..]].concat());
    let outcomes: Vec<&str> = done.as_array().unwrap().iter().map(|d| d["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["unchanged", "removed"]);
    assert!(!certs.join("127.0.0.1_5001_").exists());

    let done = mirror(root.path(), &["uninstall", "--dir", dir]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done));
    assert_eq!(fs::read_dir(&certs).unwrap().count(), 0);
}

#[test]
fn install_leaves_a_file_of_anothers_making_alone_and_says_so() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("quay.io/hosts.toml");
    fs::create_dir(file.parent().unwrap()).unwrap();
    fs::write(&file, "server = \"https://mine.example\"\n").unwrap();
    let dir = root.path().to_str().unwrap();
    let install = ["install", "--upstream", QUAY, "--dir", dir];
    let done = mirror(root.path(), &install);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done).contains("quay.io/hosts.toml") && text(&done).contains("--force"), "{}", text(&done));
    assert_eq!(fs::read_to_string(&file).unwrap(), "server = \"https://mine.example\"\n");
    let done = mirror(root.path(), &[&install[..], &["--force"]].concat());
    assert_eq!(done.status.code(), Some(0), "{}", text(&done));
    assert_ne!(fs::read_to_string(&file).unwrap(), "server = \"https://mine.example\"\n");
    assert_eq!(mirror(root.path(), &["uninstall", "--dir", dir]).status.code(), Some(0));
    assert_eq!(fs::read_to_string(&file).unwrap(), "server = \"https://mine.example\"\n");
}

#[test]
fn what_cannot_be_meant_is_a_wrong_use() {
    let root = tempfile::tempdir().unwrap();
    for words in [
        &["install"][..],
        &["install", "--upstream", QUAY, "--registry-listen", "127.0.0.1:0"],
        &["install", "--upstream", QUAY, "--ca", "/etc/ca.pem"],
        &["check", "--upstream", QUAY, "--image", "ghcr.io/a/b:v1"],
        &["print", "nerdctl", "--upstream", QUAY],
        &["forget", "quay.io/a/b"],
        &["prefetch", "quay.io/a/b:v1", "--platform", "linux"],
        &["pin", "quay.io/a/b:v1", "--remove", "--platform", "linux/amd64"],
    ] {
        let done = mirror(root.path(), words);
        assert_eq!(done.status.code(), Some(2), "{words:?}: {}", text(&done));
    }
}

#[test]
fn check_tells_what_keeps_clients_from_the_mirror() {
    let root = tempfile::tempdir().unwrap();
    let upstream = Upstream::start();
    let larder = Larder::start(root.path(), &["--upstream", &format!("quay.io={}", upstream.origin())]);
    let admin = larder.admin.trim_start_matches("http://");
    let config = root.path().join("larder.yaml");
    let yaml = |registry: &str| {
        format!("upstreams: [{{host: quay.io}}]\nregistryListen: '{registry}'\nadminListen: '{admin}'\n")
    };
    fs::write(&config, yaml(larder.registry_host())).unwrap();
    let certs = root.path().join("certs.d");
    let socket = root.path().join("no.sock");
    let common = ["--config", config.to_str().unwrap(), "--dir", certs.to_str().unwrap()];
    let check = [&["check"], &common[..], &["--containerd-socket", socket.to_str().unwrap()]].concat();
    let refused = |part: &str| {
        let done = mirror(root.path(), &check);
        assert_eq!(done.status.code(), Some(1), "{}", text(&done));
        assert!(text(&done).contains("the mirror is not being called"), "{}", text(&done));
        assert!(text(&done).contains(part), "{part}: {}", text(&done));
    };
    refused("larder mirror install");
    assert_eq!(mirror(root.path(), &[&["install"], &common[..]].concat()).status.code(), Some(0));
    let done = mirror(root.path(), &check);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done));
    let report = run_json(root.path(), [&["mirror"], &check[..], &["-o", "json"]].concat());
    let results: Vec<&str> =
        report["checks"].as_array().unwrap().iter().map(|c| c["result"].as_str().unwrap()).collect();
    assert_eq!((report["ok"].clone(), results), (Value::Bool(true), vec!["good", "good", "good", "skipped"]));
    assert_eq!(upstream.count(Kind::Tags), 1, "what is no is remembered");

    // A containerd that runs and does not read the folder.
    fs::write(&socket, "").unwrap();
    let toml = root.path().join("config.toml");
    fs::write(&toml, "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/elsewhere\"\n")
        .unwrap();
    let with = [&check[..], &["--containerd-config", toml.to_str().unwrap()]].concat();
    let done = mirror(root.path(), &with);
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done).contains("/elsewhere"), "{}", text(&done));
    fs::write(
        &toml,
        format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = {certs:?}\n"),
    )
    .unwrap();
    let done = mirror(root.path(), &with);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done));
    fs::remove_file(&socket).unwrap();

    // The daemon answers, and nobody answers it. What it was told before would do for a while.
    upstream.stop();
    fs::write(&config, yaml(larder.registry_host()).replace("quay.io", "quay.io, repositories: ['team/*']")).unwrap();
    let done = mirror(root.path(), &check);
    assert_eq!(done.status.code(), Some(1), "{}", text(&done));
    assert!(text(&done).contains("fails: quay.io, asked by the mirror: "), "{}", text(&done));
    assert!(text(&done).contains("503 Service Unavailable: the upstream cannot be reached"), "{}", text(&done));

    // Another program has the port.
    fs::write(&config, yaml(larder.artifacts.trim_start_matches("http://"))).unwrap();
    assert_eq!(mirror(root.path(), &[&["install"], &common[..]].concat()).status.code(), Some(0));
    refused("the mirror, asked for quay.io");
    fs::write(&config, yaml(larder.registry_host())).unwrap();
    assert_eq!(mirror(root.path(), &[&["install"], &common[..]].concat()).status.code(), Some(0));
    drop(larder);
    refused("is `larder serve` running?");
}

#[test]
fn print_gives_what_other_clients_need() {
    let root = tempfile::tempdir().unwrap();
    let hub = ["--upstream", "docker.io=https://registry-1.docker.io"];
    let listen = ["--mirror-listen", "127.0.0.1:5001=docker.io"];
    let done = mirror(root.path(), &[&["print", "podman"], &hub[..]].concat());
    assert!(text(&done).contains("location = \"127.0.0.1:5000/docker.io\"\ninsecure = true\n"), "{}", text(&done));
    let json = run_json(root.path(), [&["mirror", "print", "podman", "-o", "json"], &hub[..]].concat());
    let mirrors = serde_json::json!([{"location": "127.0.0.1:5000/docker.io", "insecure": true}]);
    assert_eq!((&json["registry"][0]["prefix"], &json["registry"][0]["mirror"]), (&"docker.io".into(), &mirrors));
    let daemon = run_json(root.path(), [&["mirror", "print", "docker"], &hub[..], &listen].concat());
    assert_eq!(daemon, serde_json::json!({"registry-mirrors": ["http://127.0.0.1:5001"]}));
    let done = mirror(root.path(), &[&["print", "docker"], &hub[..]].concat());
    assert_eq!(done.status.code(), Some(1));
    assert!(text(&done).contains("--mirror-listen 127.0.0.1:5001=docker.io"), "{}", text(&done));
}

#[test]
fn an_order_for_what_is_not_mirrored_fails_and_says_so() {
    let root = tempfile::tempdir().unwrap();
    let larder = Larder::start(root.path(), &[]);
    for words in [&["forget"][..], &["prefetch"], &["pin"], &["pin", "--remove"]] {
        let done = mirror(root.path(), &[words, &["quay.io/a/b:v1", "--server", &larder.admin]].concat());
        assert_eq!(done.status.code(), Some(1), "{words:?}: {}", text(&done));
        assert!(text(&done).contains("quay.io is no upstream"), "{words:?}: {}", text(&done));
    }
}

/// A platform that an image does not have is told with those that it has.
fn order_platforms(root: &Path, admin: &str) {
    let order = |platform: &str| {
        let words = ["prefetch", "up.example/platforms:v1", "--server", admin, "--platform", platform];
        mirror(root, &words)
    };
    let done = order("linux/riscv64");
    assert_eq!(done.status.code(), Some(1), "{}", text(&done));
    let says = "has no image for linux/riscv64; it has linux/arm64, linux/s390x";
    assert!(text(&done).contains(says), "{}", text(&done));
}

#[tokio::test]
async fn an_image_fetched_ahead_is_served_without_asking_and_a_forgotten_tag_is_asked_for_again() {
    let root = tempfile::tempdir().unwrap();
    let upstream = ScriptedRegistry::start().await;
    let image = push(&upstream, "a/b", "v1", b"the layer");
    let child = |architecture: &str| {
        serde_json::json!({"mediaType": MANIFEST, "digest": image.digest.to_string(),
        "size": image.manifest.len(), "platform": {"os": "linux", "architecture": architecture}})
    };
    let index =
        serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [child("arm64"), child("s390x")]});
    upstream.add_manifest("platforms", Some("v1"), INDEX, index.to_string().as_bytes());
    let (at, flag) = (root.path().to_path_buf(), format!("up.example={}", upstream.origin()));
    let (larder, image) = tokio::task::spawn_blocking(move || {
        // The tag's time is long, so that only forgetting ends it.
        let larder = Larder::start(&at, &["--upstream", &flag, "--tag-ttl", "1h"]);
        let order = |words: &[&str]| {
            let all = [&["mirror"], words, &["up.example/a/b:v1", "--server", &larder.admin, "-o", "json"]].concat();
            run_json(&at, all)
        };
        let held = order(&["prefetch"]);
        order_platforms(&at, &larder.admin);
        assert_eq!((&held["manifests"], &held["blobs"]), (&1.into(), &2.into()));
        assert_eq!(held["digest"], image.digest.to_string());
        assert_eq!(held["fetched"], held["bytes"]);
        assert_eq!(order(&["pin"])["fetched"], 0);
        for path in ["manifests/v1".to_owned(), format!("blobs/{}", image.config), format!("blobs/{}", image.layer)] {
            let reply = http::get(&format!("{}/v2/a/b/{path}?ns=up.example", larder.registry));
            assert_eq!((reply.status, reply.header("cache-status")), (200, Some("larder; hit")), "{path}");
        }
        assert_eq!(order(&["pin", "--remove"])["removed"], true);
        assert_eq!(order(&["pin", "--remove"])["removed"], false);
        // Whatever else has the default port of the admin listener on this machine is not asked.
        let config = at.join("larder.yaml");
        std::fs::write(&config, format!("adminListen: {}\n", larder.admin.trim_start_matches("http://"))).unwrap();
        let config = config.to_str().unwrap();
        let listen = ["--registry-listen", larder.registry_host(), "--dir"];
        let check = [&["check", "--config", config, "--upstream", &flag], &listen[..]].concat();
        let install = [&["install", "--upstream", &flag], &listen[..]].concat();
        let certs = at.join("certs.d");
        let end = [certs.to_str().unwrap(), "--image", "up.example/a/b:v1", "--containerd-socket", "/nonexistent"];
        assert_eq!(mirror(&at, &[&install[..], &end[..1]].concat()).status.code(), Some(0));
        let done = mirror(&at, &[&check[..], &end[..]].concat());
        assert_eq!(done.status.code(), Some(0), "{}", text(&done));
        assert!(text(&done).contains("manifest and config came, larder; hit"), "{}", text(&done));
        (larder, image)
    })
    .await
    .unwrap();
    assert_eq!([Kind::ManifestHead, Kind::ManifestGet, Kind::BlobGet].map(|kind| upstream.count(kind)), [2, 2, 2]);
    let at = root.path().to_path_buf();
    tokio::task::spawn_blocking(move || {
        let forget = ["mirror", "forget", "up.example/a/b:v1", "--server", &larder.admin, "-o", "json"];
        assert_eq!(run_json(&at, forget)["forgotten"], true);
        let reply = http::get(&format!("{}/v2/a/b/manifests/v1?ns=up.example", larder.registry));
        assert_eq!(reply.body, image.manifest);
    })
    .await
    .unwrap();
    assert_eq!([Kind::ManifestHead, Kind::ManifestGet].map(|kind| upstream.count(kind)), [3, 2]);
}

#[tokio::test]
async fn what_has_no_room_in_the_budget_is_told_with_the_setting() {
    let root = tempfile::tempdir().unwrap();
    let upstream = ScriptedRegistry::start().await;
    push(&upstream, "a/b", "v1", b"the layer");
    let (at, flag) = (root.path().to_path_buf(), format!("up.example={}", upstream.origin()));
    tokio::task::spawn_blocking(move || {
        let larder = Larder::start(&at, &["--upstream", &flag, "--store-max-bytes", "100"]);
        let done = mirror(&at, &["pin", "up.example/a/b:v1", "--server", &larder.admin]);
        assert_eq!(done.status.code(), Some(1), "{}", text(&done));
        let says = "store.maxBytes is 100 bytes, and nothing that is kept may go now; raise it, or unpin something";
        assert!(text(&done).contains(says) && !text(&done).contains("disk is full"), "{}", text(&done));
    })
    .await
    .unwrap();
}

#[test]
fn the_sample_of_a_node_is_valid_and_its_hosts_toml_is_what_install_writes() {
    let root = tempfile::tempdir().unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/mirror/larder.yaml");
    let checked = run(root.path(), ["config", "check", config]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked));
    let certs = root.path().join("certs.d");
    let done = mirror(root.path(), &["install", "--config", config, "--dir", certs.to_str().unwrap()]);
    assert_eq!(done.status.code(), Some(0), "{}", text(&done));
    let written = fs::read_to_string(certs.join("docker.io/hosts.toml")).unwrap();
    assert_eq!(written, include_str!("../../deploy/mirror/hosts.toml"));
}
