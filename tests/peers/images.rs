//! The user's story with the user's tools: an image built from a Dockerfile by buildah or podman, pushed, and named by the
//! user's own documents.

use std::{path::Path, process::Command};

use crate::{
    documents::World,
    need::{all_of, find, need},
    support::{
        fixtures::{files, files_below, files_in, write_files},
        larder::{fetch_artifact, run, stdout_of, text},
    },
};

const SOURCE: &str = include_str!("user/oci-source.yaml");
const KUSTOMIZATION: &str = include_str!("user/kustomization.yaml");
const DEPLOYMENT: &str = include_str!("user/deployment.yaml");

/// Builds `folder/Dockerfile` with `program` and pushes the image; nothing leaves this machine.
fn build_and_push(program: &str, folder: &Path, to: &str) {
    let place = folder.parent().expect("a parent");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(program);
        command.arg("--root").arg(place.join("containers")).arg("--runroot").arg(place.join("containers-run"));
        command.args(["--storage-driver", "vfs"]).args(arguments).current_dir(folder);
        stdout_of(command);
    };
    run(&["build", "--isolation", "chroot", "-t", "localhost/app:build", "."]);
    run(&["push", "--tls-verify=false", "localhost/app:build", &format!("docker://{to}")]);
}

#[test]
fn the_user_s_documents_work_on_an_image_built_from_a_dockerfile() {
    need!("docker-registry");
    let Some(program) = ["buildah", "podman"].into_iter().find(|program| find(program).is_some()) else {
        all_of(&["buildah"]);
        return;
    };
    let world = World::new();
    let build = world.path().join("build");
    write_files(&build, &files(&[("my-app-config/deployment.yaml", DEPLOYMENT)]));
    std::fs::write(build.join("Dockerfile"), "FROM scratch\nCOPY my-app-config /\n").expect("Dockerfile");
    let name = format!("{}/your-dockerhub-username/my-app-config", world.host());
    build_and_push(program, &build, &format!("{name}:v1.0.0"));

    let objects = world.path().join("objects");
    std::fs::create_dir(&objects).expect("folder");
    let source = |tag: &str| {
        let text = SOURCE.replace("oci://your-dockerhub-username/my-app-config", &format!("oci://{name}"));
        assert_ne!(text, SOURCE);
        std::fs::write(objects.join("oci-source.yaml"), text.replace("v1.0.0", tag)).expect("file");
    };
    source("v1.0.0");
    std::fs::write(objects.join("kustomization.yaml"), KUSTOMIZATION).expect("file");
    let larder = world.serve(&["--insecure-registry", &world.host()]);
    let object = larder.wait_ready("GitRepository", "flux-system", "my-app-oci");
    assert_eq!(files_in(&fetch_artifact(&object)), files(&[("deployment.yaml", DEPLOYMENT)]));
    assert!(text(&object, "/status/artifact/revision").starts_with("v1.0.0@sha256:"));
    let hex = text(&object, "/status/artifact/digest").trim_start_matches("sha256:").to_owned();
    let kept = larder.data.join("source/flux-system/my-app-oci").join(hex);
    assert_eq!(files_below(&kept.join("contents")), files(&[("deployment.yaml", DEPLOYMENT)]));
    assert!(kept.join("manifest.json").is_file());

    let applied = larder.wait_ready("Kustomization", "flux-system", "my-app-kustomization");
    assert_eq!(applied["status"]["lastAppliedRevision"], object["status"]["artifact"]["revision"]);
    let file = larder.data.join("rendered/flux-system/my-app-kustomization.yaml");
    let rendered = std::fs::read_to_string(&file).expect("rendered");
    assert!(rendered.contains("nginx:1.25.3") && rendered.contains("kustomize.toolkit.fluxcd.io/name"), "{rendered}");

    // A new tag in the source is pulled, unpacked, applied.
    std::fs::write(build.join("my-app-config/deployment.yaml"), DEPLOYMENT.replace("1.25.3", "1.27.0")).expect("file");
    build_and_push(program, &build, &format!("{name}:v1.0.1"));
    source("v1.0.1");
    let applied = larder.wait("Kustomization", "flux-system", "my-app-kustomization", |object| {
        object["status"]["lastAppliedRevision"].as_str().is_some_and(|revision| revision.starts_with("v1.0.1@"))
    });
    assert!(std::fs::read_to_string(&file).expect("rendered").contains("nginx:1.27.0"), "{applied}");
}

#[test]
fn an_image_on_a_base_is_one_tree_for_larder_and_for_umoci() {
    need!("docker-registry", "buildah", "skopeo", "umoci");
    let world = World::new();
    let build = world.path().join("build");
    write_files(
        &build,
        &files(&[("base/keep", "1"), ("base/gone", "2"), ("base/changed", "old"), ("top/changed", "new")]),
    );
    std::fs::write(build.join("Dockerfile"), "FROM scratch\nCOPY base /app\n").expect("Dockerfile");
    let base = format!("{}/base:v1", world.host());
    build_and_push("buildah", &build, &base);
    // The second layer by umoci, since a RUN would need a root filesystem that can run.
    let layout = world.path().join("layout");
    let image = format!("{}:app", layout.display());
    let shell = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(world.path());
        stdout_of(command);
    };
    let copy = ["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"];
    shell("skopeo", &[&copy[..], &[&format!("docker://{base}"), &format!("oci:{image}")]].concat());
    shell("umoci", &["unpack", "--rootless", "--image", &image, "bundle"]);
    let app = world.path().join("bundle/rootfs/app");
    std::fs::remove_file(app.join("gone")).expect("there");
    std::fs::write(app.join("changed"), "new").expect("file");
    shell("umoci", &["repack", "--image", &image, "bundle"]);
    let name = format!("{}/layered", world.host());
    shell("skopeo", &[&copy[..], &[&format!("oci:{image}"), &format!("docker://{name}:v1")]].concat());
    shell("umoci", &["unpack", "--rootless", "--image", &image, "check"]);
    let wanted = files(&[("app/changed", "new"), ("app/keep", "1")]);
    assert_eq!(files_below(&world.path().join("check/rootfs")), wanted);

    let output = world.path().join("pulled");
    let url = format!("oci://{name}:v1");
    let pulled = run(world.path(), ["pull", &url, "--plain-http", "--output", output.to_str().expect("UTF-8")]);
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    assert_eq!(files_below(&output), wanted);
    let reference = serde_json::json!({ "ref": { "tag": "v1" } });
    world.write(&[
        world.git_repository("tree", "layered", reference.clone()),
        world.oci_repository("first", "layered", reference),
    ]);
    let larder = world.serve(&["--insecure-registry", &world.host()]);
    assert_eq!(files_in(&fetch_artifact(&larder.wait_ready("GitRepository", "default", "tree"))), wanted);
    let first = files(&[("app/changed", "old"), ("app/gone", "2"), ("app/keep", "1")]);
    let object = larder.wait_ready("OCIRepository", "default", "first");
    assert_eq!(files_in(&fetch_artifact(&object)), first, "an OCIRepository takes the first layer, as in Flux");
}
