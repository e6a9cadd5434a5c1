//! `larder push`, `pull`, `tag` and `list` against docker-registry, and what skopeo and umoci make of the result.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    docker_registry::{FLUX_CONFIG, FLUX_LAYER, OCI_MANIFEST},
    documents::World,
    need::need,
    support::{
        eventually,
        fixtures::{Files, files, files_below, files_in, gunzip, sha256, write_files},
        larder::{command, finish, run, run_json, stdout_of, text},
    },
};

fn example() -> Files {
    files(&[
        ("deployment.yaml", include_str!("user/deployment.yaml")),
        ("nested/deep/config.yaml", "kind: ConfigMap\n"),
        ("run.sh", "#!/bin/sh\n"),
        ("zebra.yaml", ""),
        ("Alpha.yaml", "a: 1\n"),
    ])
}

/// `larder push` of a folder, as JSON.
fn push(world: &World, folder: &Path, repository: &str, tag: &str, more: &[&str]) -> Value {
    let url = format!("oci://{}/{repository}:{tag}", world.host());
    let folder = folder.to_str().expect("UTF-8");
    let base = ["push", &url, "--path", folder, "--source", "https://example.com/x", "--revision", "main@sha1:1"];
    run_json(world.path(), base.iter().chain(&["--plain-http", "-o", "json"]).chain(more))
}

fn manifest_of(world: &World, repository: &str, reference: &str) -> (Value, String) {
    let answer = world.registry.send("GET", &format!("/v2/{repository}/manifests/{reference}"), "", b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    (answer.json(), sha256(&answer.body))
}

fn blob(world: &World, repository: &str, digest: &str) -> Vec<u8> {
    let answer = world.registry.send("GET", &format!("/v2/{repository}/blobs/{digest}"), "", b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.body
}

#[test]
fn a_push_is_flux_s_artifact_with_its_diff_ids() {
    need!("docker-registry");
    let world = World::new();
    let folder = world.path().join("app");
    write_files(&folder, &example());
    let said = push(&world, &folder, "team/app", "v1.0.0", &["-a", "org.example.owner=me"]);
    let (manifest, digest) = manifest_of(&world, "team/app", "v1.0.0");
    let repository = format!("{}/team/app", world.host());
    let url = format!("oci://{repository}@{digest}");
    assert_eq!(said, json!({ "url": url, "repository": repository, "tag": "v1.0.0", "digest": digest }));

    assert_eq!(manifest["schemaVersion"], 2);
    assert_eq!(manifest["mediaType"], OCI_MANIFEST);
    assert_eq!(manifest["config"]["mediaType"], FLUX_CONFIG);
    assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(1));
    assert_eq!(manifest["layers"][0]["mediaType"], FLUX_LAYER);
    let annotations = &manifest["annotations"];
    assert_eq!(annotations["org.opencontainers.image.source"], "https://example.com/x");
    assert_eq!(annotations["org.opencontainers.image.revision"], "main@sha1:1");
    assert_eq!(annotations["org.example.owner"], "me");
    assert_eq!(annotations["org.opencontainers.image.created"], "1970-01-01T00:00:00Z");

    let layer = blob(&world, "team/app", text(&manifest, "/layers/0/digest"));
    assert_eq!(files_in(&layer), example());
    let config = blob(&world, "team/app", text(&manifest, "/config/digest"));
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    assert_eq!(config["rootfs"], json!({ "type": "layers", "diff_ids": [sha256(&gunzip(&layer))] }));
}

#[test]
fn a_push_is_the_same_from_any_machine() {
    need!("docker-registry", "sh");
    let world = World::new();
    let content = example();
    let mut digests = Vec::new();
    for (number, (umask, zone, reverse)) in
        [("022", "UTC", false), ("077", "Pacific/Kiritimati", true), ("000", "America/St_Johns", false)]
            .iter()
            .enumerate()
    {
        let folder = world.path().join(format!("copy-{number}/deeper"));
        let mut paths: Vec<&String> = content.keys().collect();
        if *reverse {
            paths.reverse();
        }
        for path in paths {
            let file = folder.join(path);
            std::fs::create_dir_all(file.parent().expect("a parent")).expect("folder");
            std::fs::write(&file, &content[path]).expect("file");
            let execute = if path == "run.sh" { 0o111 } else { 0 };
            let mode = (0o666 | execute) & !u32::from_str_radix(umask, 8).expect("octal");
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("mode");
            let time =
                std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000 + number as u64);
            std::fs::File::options().append(true).open(&file).expect("file").set_modified(time).expect("time");
        }
        let url = format!("oci://{}/app:v{number}", world.host());
        let larder = command(world.path());
        let mut shell = Command::new("sh");
        shell.env_clear().env("HOME", world.path()).env("TZ", zone);
        shell.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")]).arg(larder.get_program());
        shell
            .args(["push", &url, "--plain-http", "--source", "s", "--revision", "r", "-o", "json", "--path"])
            .arg(&folder);
        let said: Value = serde_json::from_slice(&stdout_of(shell)).expect("JSON");
        digests.push(text(&said, "/digest").to_owned());
    }
    assert_eq!(digests, vec![digests[0].clone(); 3]);
    // Equal is not enough: an encoder or a default that changes must be noticed.
    let changed = world.path().join("changed");
    write_files(&changed, &files(&[("deployment.yaml", "other\n")]));
    assert_ne!(text(&push(&world, &changed, "app", "other", &[]), "/digest"), digests[0]);
}

#[test]
fn skopeo_and_umoci_see_what_was_pushed_as_an_image() {
    need!("docker-registry", "skopeo", "umoci");
    let world = World::new();
    let folder = world.path().join("app");
    write_files(&folder, &example());
    for compression in ["gzip", "zstd"] {
        let said = push(&world, &folder, "app", compression, &["--artifact", "image", "--compression", compression]);
        let image = format!("docker://{}/app:{compression}", world.host());
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["inspect", "--tls-verify=false", &image]);
        let seen: Value = serde_json::from_slice(&stdout_of(skopeo)).expect("JSON");
        assert_eq!(seen["Digest"], said["digest"], "{compression}");
        assert_eq!(seen["Layers"].as_array().map(Vec::len), Some(1), "{compression}");
    }
    let layout = format!("oci:{}:app", world.path().join("layout").display());
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--src-tls-verify=false"]);
    skopeo.args([format!("docker://{}/app:gzip", world.host()), layout]);
    stdout_of(skopeo);
    assert_eq!(files_below(&unpack(&world, "layout:app")), example());
}

/// `umoci unpack` of an image in a layout below the world's folder; gives its root.
fn unpack(world: &World, image: &str) -> PathBuf {
    let bundle = world.path().join("bundle");
    let mut umoci = Command::new("umoci");
    umoci.current_dir(world.path()).args(["unpack", "--rootless", "--image", image]).arg(&bundle);
    stdout_of(umoci);
    bundle.join("rootfs")
}

#[test]
fn a_pull_gives_back_what_was_pushed() {
    need!("docker-registry");
    let world = World::new();
    let folder = world.path().join("app");
    write_files(&folder, &example());
    for (tag, more) in [
        ("flux", &["--artifact", "flux"][..]),
        ("image", &["--artifact", "image"]),
        ("zstd", &["--compression", "zstd"]),
    ] {
        let said = push(&world, &folder, "app", tag, more);
        for (number, reference) in [format!(":{tag}"), format!("@{}", text(&said, "/digest"))].iter().enumerate() {
            let output = world.path().join(format!("out-{tag}-{number}"));
            let url = format!("oci://{}/app{reference}", world.host());
            let pulled = run(world.path(), ["pull", &url, "--plain-http", "--output", output.to_str().expect("UTF-8")]);
            assert!(pulled.status.success(), "{url}: {}", String::from_utf8_lossy(&pulled.stderr));
            assert_eq!(files_below(&output), example(), "{url}");
        }
    }
}

#[test]
fn a_pull_that_fails_leaves_no_trace() {
    need!("docker-registry");
    let world = World::new();
    let pushed = world.registry.push_files("app", "latest", &example());
    let file = world.registry.blob_file(&pushed.layer);
    let mut bytes = std::fs::read(&file).expect("the registry's file");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(&file, bytes).expect("damage");
    let outputs = world.path().join("outputs");
    std::fs::create_dir_all(outputs.join("held")).expect("folder");
    std::fs::write(outputs.join("held/mine"), "kept").expect("file");
    for (reference, output) in [(":latest", "new"), (":none", "new"), (":latest", "held")] {
        let url = format!("oci://{}/app{reference}", world.host());
        let path = outputs.join(output);
        let refused = run(world.path(), ["pull", &url, "--plain-http", "--output", path.to_str().expect("UTF-8")]);
        assert_eq!(refused.status.code(), Some(1), "{url}");
        assert!(!refused.stderr.is_empty(), "{url}: no reason given");
    }
    assert_eq!(files_below(&outputs), files(&[("held/mine", "kept")]));
    assert!(!outputs.join("new").exists());
}

#[test]
fn a_pull_replaces_what_a_pull_made_and_never_what_somebody_changed() {
    need!("docker-registry");
    let world = World::new();
    world.registry.push_files("app", "v1", &example());
    let output = world.path().join("out");
    let url = format!("oci://{}/app:v1", world.host());
    let pull = |more: &[&str]| {
        let mut words = vec!["pull", &url, "--plain-http", "--output", output.to_str().expect("UTF-8")];
        words.extend(more);
        run(world.path(), words)
    };
    // What a pull that was killed left behind: its store is nobody's.
    let litter = world.path().join(".larder-pull-killed");
    std::fs::create_dir_all(litter.join("store")).expect("folder");
    assert!(pull(&[]).status.success());
    assert!(!litter.exists(), "a killed pull's folder goes with the next one");
    assert!(pull(&[]).status.success(), "untouched, it is replaced");
    std::fs::write(output.join("mine"), "kept").expect("file");
    let refused = pull(&[]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("was changed since") && said.contains("--force"), "{said}");
    assert_eq!(std::fs::read(output.join("mine")).expect("still there"), b"kept");
    assert!(pull(&["--force"]).status.success());
    assert_eq!(files_below(&output), example());
    let first = example().into_keys().next().expect("a file");
    std::fs::remove_file(output.join(&first)).expect("removed");
    assert_eq!(pull(&[]).status.code(), Some(1), "a removal is a change");
}

#[test]
fn tag_moves_no_blob_and_list_shows_all_tags() {
    need!("docker-registry");
    let world = World::new();
    let folder = world.path().join("app");
    write_files(&folder, &example());
    let said = push(&world, &folder, "app", "v1", &[]);
    let blobs = || world.registry.count(&["/v2/app/blobs/"]);
    let before = blobs();
    let url = format!("oci://{}/app", world.host());
    let tagged = run(world.path(), ["tag", &format!("{url}:v1"), "stable", "v1.0", "--plain-http"]);
    assert!(tagged.status.success(), "{}", String::from_utf8_lossy(&tagged.stderr));
    for tag in ["stable", "v1.0"] {
        assert_eq!(manifest_of(&world, "app", tag).1, text(&said, "/digest"));
    }
    let listed = run_json(world.path(), ["list", &url, "--plain-http", "-o", "json"]);
    let mut rows: Vec<Value> = listed.as_array().expect("a list").clone();
    rows.sort_by_key(|row| row["tag"].to_string());
    let row = |tag: &str| json!({ "tag": tag, "digest": said["digest"], "source": "https://example.com/x", "revision": "main@sha1:1" });
    assert_eq!(rows, [row("stable"), row("v1"), row("v1.0")]);
    assert_eq!(blobs(), before, "no blob was asked for or moved");
    let mut table = command(world.path());
    table.args(["list", &url, "--plain-http"]);
    let table = String::from_utf8_lossy(&stdout_of(table)).into_owned();
    assert!(["stable", "v1.0", "main@sha1:1"].iter().all(|part| table.contains(part)), "{table}");
}

#[test]
fn the_embedded_registry_takes_pushes_and_serves_skopeo() {
    need!("skopeo");
    let root = tempfile::tempdir().expect("folder");
    let larder = crate::support::larder::Larder::start(root.path(), &[]);
    let folder = root.path().join("app");
    write_files(&folder, &example());
    let url = format!("oci://{}/my-app-config:v1.0.0", larder.registry_host());
    let path = folder.to_str().expect("UTF-8").to_owned();
    let said =
        run_json(root.path(), ["push", &url, "--path", &path, "--artifact", "image", "--plain-http", "-o", "json"]);
    let image = format!("docker://{}/my-app-config:v1.0.0", larder.registry_host());
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["inspect", "--tls-verify=false", &image]);
    let seen: Value = serde_json::from_slice(&stdout_of(skopeo)).expect("JSON");
    assert_eq!(seen["Digest"], said["digest"]);
    let layout = root.path().join("layout");
    let mut skopeo = Command::new("skopeo");
    skopeo.args([
        "--insecure-policy",
        "copy",
        "--src-tls-verify=false",
        &image,
        &format!("oci:{}:x", layout.display()),
    ]);
    stdout_of(skopeo);
    // And back, under another name, by a client that Larder did not write.
    let copy = format!("docker://{}/copied:v1", larder.registry_host());
    let mut skopeo = Command::new("skopeo");
    skopeo.args([
        "--insecure-policy",
        "copy",
        "--dest-tls-verify=false",
        &format!("oci:{}:x", layout.display()),
        &copy,
    ]);
    stdout_of(skopeo);
    let output = root.path().join("out");
    let url = format!("oci://{}/copied:v1", larder.registry_host());
    let pulled = run(root.path(), ["pull", &url, "--plain-http", "--output", output.to_str().expect("UTF-8")]);
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    assert_eq!(files_below(&output), example());
}

#[test]
fn wrong_usage_exits_2_and_failure_1() {
    need!("docker-registry");
    let world = World::new();
    let absent = format!("oci://{}/none:v1", world.host());
    for (arguments, code) in [
        (vec!["push"], 2),
        (vec!["no-such-command"], 2),
        (vec!["pull", &absent, "--no-such-flag"], 2),
        (vec!["pull", &absent, "--plain-http", "--output", "x"], 1),
        (vec!["tag", &absent, "v2", "--plain-http"], 1),
        (vec!["--help"], 0),
        (vec!["push", "--help"], 0),
    ] {
        let mut command = command(world.path());
        command.args(&arguments).current_dir(world.path());
        let output = finish(command);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    }
    // A second daemon on one folder names the first.
    let larder = crate::support::larder::Larder::start(world.path(), &[]);
    let mut second = command(world.path());
    second.args(["serve", "--registry-listen", "127.0.0.1:0", "--artifact-listen", "127.0.0.1:0"]);
    second.args(["--admin-listen", "127.0.0.1:0", "--data"]).arg(&larder.data);
    let refused = finish(second);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains(&larder.pid().to_string()), "the holder's process is named: {said}");
    eventually("the first to be alive still", || {
        (crate::support::http::get(&format!("{}/livez", larder.admin)).status == 200).then_some(()).ok_or(String::new())
    });
}
