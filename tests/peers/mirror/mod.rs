//! The mirror between real clients and a real registry: containerd by `hosts.toml` as `larder mirror install` writes it,
//! skopeo by path prefix and by a listener of one upstream.

mod containerd;
mod faults;

use std::{path::Path, process::Command};

use serde_json::json;

use self::containerd::Containerd;
use crate::{
    docker_registry::{Artifact, DockerRegistry, Pushed, Setup},
    need::need,
    support::{
        fixtures::{files, gzip, sha256, tar_of},
        larder::{Larder, finish, run, stdout_of},
    },
};

/// A container image of three layers, each with a file of so many bytes that hardly compress.
fn image(length: usize) -> Artifact {
    let mut noise = fastrand::Rng::with_seed(7);
    let tars: Vec<Vec<u8>> = (0..3)
        .map(|n| {
            let text: String = (0..length).map(|_| noise.alphanumeric()).collect();
            tar_of(&files(&[(&*format!("file-{n}"), &*text)]))
        })
        .collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": tars.iter().map(|tar| sha256(tar)).collect::<Vec<_>>() },
    });
    let layer = |tar: &Vec<u8>| ("application/vnd.oci.image.layer.v1.tar+gzip".to_owned(), gzip(tar));
    Artifact {
        config_type: "application/vnd.oci.image.config.v1+json".into(),
        config: config.to_string().into_bytes(),
        layers: tars.iter().map(layer).collect(),
        annotations: json!({}),
    }
}

fn push_image(registry: &DockerRegistry, repository: &str, tag: &str) -> Pushed {
    registry.push(repository, tag, &image(300_000))
}

/// A mirror of `registry`, and the folder that `larder mirror install` wrote for it.
fn mirror(root: &Path, registry: &DockerRegistry) -> Larder {
    mirror_from(root, registry, &format!("http://{}", registry.host()))
}

/// Like [`mirror`], where the mirror finds the registry's content at `url`, and its clients the registry itself.
fn mirror_from(root: &Path, registry: &DockerRegistry, url: &str) -> Larder {
    let host = registry.host();
    let bound = format!("127.0.0.1:0={host}");
    let larder = Larder::start(root, &["--upstream", &format!("{host}={url}"), "--mirror-listen", &bound]);
    let certs = root.join("certs.d");
    let dir = certs.to_str().expect("UTF-8");
    let upstream = format!("{host}=http://{host}");
    let words =
        ["mirror", "install", "--upstream", &upstream, "--registry-listen", larder.registry_host(), "--dir", dir];
    let done = run(root, words);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    larder
}

/// How many blobs the mirror fetched from the registry.
fn fetched(larder: &Larder, registry: &DockerRegistry) -> u64 {
    let host = registry.host();
    larder.metric("larder_upstream_requests_total", &[("upstream", &host), ("kind", "blob_get"), ("outcome", "ok")])
}

/// How often the registry was asked for a blob's bytes.
fn blob_gets(registry: &DockerRegistry) -> usize {
    registry.count(&["GET /v2/team/app/blobs/"])
}

fn skopeo(source: &str, folder: &Path) -> Command {
    let mut command = Command::new("skopeo");
    command.args(["copy", "--src-tls-verify=false", &format!("docker://{source}")]);
    command.arg(format!("dir:{}", folder.display()));
    command
}

#[test]
fn containerd_pulls_through_the_mirror_and_again_with_the_registry_stopped() {
    need!("containerd", "ctr", "docker-registry");
    let root = tempfile::tempdir().expect("folder");
    let mut registry = DockerRegistry::start(&root.path().join("registry"));
    push_image(&registry, "team/app", "v1");
    let before = blob_gets(&registry);
    let larder = mirror(root.path(), &registry);
    let containerd = Containerd::start(&root.path().join("containerd"));
    let image = format!("{}/team/app:v1", registry.host());
    let hosts = root.path().join("certs.d");
    containerd.pull(&hosts, &image, &[]).expect("the first pull");
    assert_eq!(fetched(&larder, &registry), 4);
    assert_eq!(blob_gets(&registry) - before, 4, "{:?}", registry.requests());
    containerd.forget(&image);
    registry.stop();
    containerd.pull(&hosts, &image, &[]).expect("the pull from what is held");
}

#[test]
fn containerd_goes_on_to_the_registry_when_the_mirror_is_killed() {
    need!("containerd", "ctr", "docker-registry");
    let root = tempfile::tempdir().expect("folder");
    let registry = DockerRegistry::start(&root.path().join("registry"));
    push_image(&registry, "team/app", "v1");
    let before = blob_gets(&registry);
    drop(mirror(root.path(), &registry));
    let containerd = Containerd::start(&root.path().join("containerd"));
    let image = format!("{}/team/app:v1", registry.host());
    containerd.pull(&root.path().join("certs.d"), &image, &[]).expect("the pull past the mirror");
    assert_eq!(blob_gets(&registry) - before, 4);
}

#[test]
fn what_only_a_credential_may_read_is_pulled_past_a_public_mirror() {
    need!("containerd", "ctr", "docker-registry", "htpasswd");
    let root = tempfile::tempdir().expect("folder");
    let user = Some(("user".to_owned(), "password".to_owned()));
    let registry = DockerRegistry::start_with(&root.path().join("registry"), Setup { user, ..Setup::default() });
    push_image(&registry, "team/app", "v1");
    let larder = mirror(root.path(), &registry);
    let containerd = Containerd::start(&root.path().join("containerd"));
    let image = format!("{}/team/app:v1", registry.host());
    let hosts = root.path().join("certs.d");
    assert!(containerd.pull(&hosts, &image, &[]).is_err(), "nobody may read it without a credential");
    containerd.pull(&hosts, &image, &["--user", "user:password"]).expect("the pull past the mirror");
    assert_eq!(fetched(&larder, &registry), 0);
}

#[test]
fn what_a_credential_may_read_is_pulled_through_a_mirror_that_passes_it_on() {
    need!("containerd", "ctr", "docker-registry", "htpasswd");
    let root = tempfile::tempdir().expect("folder");
    let user = Some(("user".to_owned(), "password".to_owned()));
    let registry = DockerRegistry::start_with(&root.path().join("registry"), Setup { user, ..Setup::default() });
    push_image(&registry, "team/app", "v1");
    let config = root.path().join("larder.yaml");
    let host = registry.host();
    let upstreams = json!([{ "host": host, "url": format!("http://{host}"), "mode": "passThrough" }]);
    std::fs::write(&config, json!({ "upstreams": upstreams }).to_string()).expect("configuration");
    let larder = Larder::start(root.path(), &["--config", config.to_str().expect("UTF-8")]);
    let hosts = root.path().join("certs.d");
    let (file, dir) = (config.to_str().expect("UTF-8"), hosts.to_str().expect("UTF-8"));
    let words = ["mirror", "install", "--config", file, "--registry-listen", larder.registry_host(), "--dir", dir];
    assert!(run(root.path(), words).status.success());
    let containerd = Containerd::start(&root.path().join("containerd"));
    let image = format!("{host}/team/app:v1");
    containerd.pull(&hosts, &image, &["--user", "user:password"]).expect("the pull");
    assert_eq!(fetched(&larder, &registry), 4);
    containerd.forget(&image);
    assert!(containerd.pull(&hosts, &image, &["--user", "user:wrong"]).is_err());
}

#[test]
fn skopeo_and_podman_show_their_credential_to_the_listener_of_an_upstream_that_asks_for_one() {
    need!("skopeo", "podman", "docker-registry", "htpasswd");
    let root = tempfile::tempdir().expect("folder");
    let user = Some(("user".to_owned(), "password".to_owned()));
    let registry = DockerRegistry::start_with(&root.path().join("registry"), Setup { user, ..Setup::default() });
    let pushed = push_image(&registry, "team/app", "v1");
    let before = blob_gets(&registry);
    let (config, host) = (root.path().join("larder.yaml"), registry.host());
    let yaml = |listen: &str| {
        let url = format!("http://{host}");
        json!({ "upstreams": [{ "host": host, "url": url, "mode": "passThrough", "listen": listen }] }).to_string()
    };
    std::fs::write(&config, yaml("127.0.0.1:0")).expect("configuration");
    let file = config.to_str().expect("UTF-8");
    let larder = Larder::start(root.path(), &["--config", file]);
    let bound = larder.mirrors[&host].trim_start_matches("http://").to_owned();

    let copy = |credentials: &[&str], folder: &str| {
        let mut command = skopeo(&format!("{bound}/team/app:v1"), &root.path().join(folder));
        command.args(credentials).env("HOME", root.path());
        finish(command)
    };
    assert!(!copy(&[], "none").status.success(), "nobody may read it without a credential");
    assert!(!copy(&["--src-creds", "user:wrong"], "wrong").status.success());
    let done = copy(&["--src-creds", "user:password"], "right");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let manifest = std::fs::read(root.path().join("right/manifest.json")).expect("manifest");
    assert_eq!(sha256(&manifest), pushed.digest);

    // podman by the name of the registry itself, and what `print podman` says; its login is for the mirror's host.
    std::fs::write(&config, yaml(&bound)).expect("configuration");
    let words = ["mirror", "print", "podman", "--config", file, "--registry-listen", larder.registry_host()];
    let conf = root.path().join("registries.conf");
    std::fs::write(&conf, run(root.path(), words).stdout).expect("registries.conf");
    let auth = root.path().join("auth.json");
    let podman = |words: &[&str]| {
        let mut podman = Command::new("podman");
        podman.arg("--root").arg(root.path().join("storage")).arg("--runroot").arg(root.path().join("run"));
        podman.args(["--storage-driver", "vfs"]).args(words).arg("--authfile").arg(&auth);
        podman.env("CONTAINERS_REGISTRIES_CONF", &conf).env("HOME", root.path());
        finish(podman)
    };
    let login = ["login", "--tls-verify=false", "--username", "user", &bound, "--password"];
    assert!(!podman(&[&login[..], &["wrong"]].concat()).status.success());
    let done = podman(&[&login[..], &["password"]].concat());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let done = podman(&["pull", "--quiet", &format!("{host}/team/app:v1")]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(blob_gets(&registry) - before, 4, "each blob once, for skopeo and podman together");
}

#[test]
fn skopeo_copies_by_path_and_by_the_listener_of_one_upstream() {
    need!("skopeo", "docker-registry");
    let root = tempfile::tempdir().expect("folder");
    let mut registry = DockerRegistry::start(&root.path().join("registry"));
    let pushed = push_image(&registry, "team/app", "v1");
    let before = blob_gets(&registry);
    let larder = mirror(root.path(), &registry);
    let prefix = registry.host().replace(':', "_");
    let bound = larder.mirrors[&registry.host()].trim_start_matches("http://").to_owned();
    stdout_of(skopeo(&format!("{}/{prefix}/team/app:v1", larder.registry_host()), &root.path().join("one")));
    registry.stop();
    stdout_of(skopeo(&format!("{bound}/team/app:v1"), &root.path().join("two")));
    for folder in ["one", "two"] {
        let manifest = std::fs::read(root.path().join(folder).join("manifest.json")).expect("manifest");
        assert_eq!(sha256(&manifest), pushed.digest, "{folder}");
    }
    assert_eq!(blob_gets(&registry) - before, 4);
}

#[test]
fn podman_takes_the_mirror_as_printed_for_it() {
    need!("podman", "docker-registry");
    let root = tempfile::tempdir().expect("folder");
    let mut registry = DockerRegistry::start(&root.path().join("registry"));
    push_image(&registry, "team/app", "v1");
    let larder = mirror(root.path(), &registry);
    let upstream = format!("{host}=http://{host}", host = registry.host());
    let words = ["mirror", "print", "podman", "--upstream", &upstream, "--registry-listen", larder.registry_host()];
    let conf = root.path().join("registries.conf");
    std::fs::write(&conf, run(root.path(), words).stdout).expect("registries.conf");
    let image = format!("{}/team/app:v1", registry.host());
    let pull = |storage: &str| {
        let mut podman = Command::new("podman");
        podman.arg("--root").arg(root.path().join(storage)).arg("--runroot").arg(root.path().join("run"));
        podman.args(["--storage-driver", "vfs", "pull", "--quiet", &image]);
        podman.env("CONTAINERS_REGISTRIES_CONF", &conf).env("HOME", root.path());
        finish(podman)
    };
    let first = pull("one");
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert_eq!(fetched(&larder, &registry), 4);
    registry.stop();
    let second = pull("two");
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
}
