//! The whole daemon as configured: by flags, by a file, over a restart.

use std::path::Path;

use serde_json::json;

use super::push;
use crate::support::{
    certificates, http,
    larder::{Larder, command, finish},
    registry::{Fault, Kind, ScriptedRegistry, of},
};

/// Runs blocking code beside the scripted upstream, which needs the runtime.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(f).await.unwrap()
}

#[tokio::test]
async fn flags_make_a_mirror_which_serves_over_a_restart_with_its_upstream_stopped() {
    let root = tempfile::tempdir().unwrap();
    let upstream = ScriptedRegistry::start().await;
    let image = push(&upstream, "a/b", "v1", b"the layer");
    let url = upstream.origin().to_string();
    let at = root.path().to_path_buf();
    let (manifest, layer) = (image.manifest.clone(), image.layer);
    blocking(move || {
        let larder = start(&at, &url);
        let bound = larder.mirrors["up.example"].clone();
        for base in [format!("{}/v2/up.example", larder.registry), format!("{bound}/v2")] {
            assert_eq!(http::get(&format!("{base}/a/b/manifests/v1")).body, manifest, "{base}");
            assert_eq!(http::get(&format!("{base}/a/b/blobs/{layer}")).body, b"the layer", "{base}");
        }
        let counted = |kind| {
            let labels = [("upstream", "up.example"), ("kind", kind), ("outcome", "ok")];
            larder.metric("larder_upstream_requests_total", &labels)
        };
        assert_eq!(["manifest_head", "manifest_get", "blob_get"].map(counted), [1, 1, 1]);
        assert_eq!(http::send("POST", &format!("{bound}/v2/a/blobs/uploads/"), &[], b"").unwrap().status, 405);
        assert_eq!(http::get(&format!("{}/v2/other/manifests/v1", larder.registry)).status, 404);
        assert_eq!(larder.stop(), Some(0));
    })
    .await;
    assert_eq!(upstream.count(Kind::BlobGet), 1);
    let (at, url) = (root.path().to_path_buf(), upstream.origin().to_string());
    drop(upstream);
    blocking(move || {
        let larder = start(&at, &url);
        let reply = http::get(&format!("{}/v2/a/b/manifests/v1?ns=up.example", larder.registry));
        assert_eq!((reply.status, reply.body), (200, image.manifest));
        let reply = http::get(&format!("{}/v2/a/b/blobs/{}?ns=up.example", larder.registry, image.layer));
        assert_eq!((reply.status, reply.header("cache-status")), (200, Some("larder; hit")));
    })
    .await;
}

fn start(root: &Path, url: &str) -> Larder {
    let upstream = format!("up.example={url}");
    Larder::start(root, &["--upstream", &upstream, "--mirror-listen", "127.0.0.1:0=up.example"])
}

#[tokio::test]
async fn a_file_says_all_of_it_and_what_is_wrong_with_it_is_told() {
    let root = tempfile::tempdir().unwrap();
    let upstream = ScriptedRegistry::start().await;
    push(&upstream, "library/a", "v1", b"layer");
    let url = upstream.origin().to_string();
    let at = root.path().to_path_buf();
    blocking(move || {
        let path = at.join("larder.yaml");
        let write = |upstreams: serde_json::Value| {
            std::fs::write(&path, json!({ "upstreams": upstreams }).to_string()).unwrap();
        };
        write(json!([{
            "host": "docker.io", "url": url, "mode": "public", "tagTTL": "1h", "negativeTTL": "5s",
            "staleIfError": "48h", "tags": [{"pattern": "^latest$", "ttl": "10s"}], "listen": "127.0.0.1:0",
        }]));
        let config = path.to_str().unwrap();
        let larder = Larder::start(&at, &["--config", config]);
        assert_eq!(http::get(&format!("{}/v2/a/manifests/v1", larder.mirrors["docker.io"])).status, 200);
        drop(larder);
        for (upstreams, says) in [
            (json!([{"host": "ghcr.io", "url": "https://ghcr.io/x"}]), "its url is not"),
            (json!([{"host": "ghcr.io", "mode": "shared"}]), "mode shared needs credentials"),
            (json!([{"host": "ghcr.io", "ca": "/nowhere"}]), "/nowhere"),
            (json!([{"host": "docker.io"}, {"host": "index.docker.io"}]), "another name"),
        ] {
            write(upstreams);
            let mut serve = command(&at);
            serve.args(["serve", "--config", config, "--data"]).arg(at.join("other"));
            for listener in ["--registry-listen", "--artifact-listen", "--admin-listen"] {
                serve.args([listener, "127.0.0.1:0"]);
            }
            let output = finish(serve);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && text.contains(says), "{says}: {text}");
        }
    })
    .await;
}

#[tokio::test]
async fn the_listener_of_one_upstream_has_the_registry_listeners_certificate() {
    let root = tempfile::tempdir().unwrap();
    let upstream = ScriptedRegistry::start().await;
    let image = push(&upstream, "team/app", "v1", b"layer");
    push(&upstream, "other", "v1", b"layer");
    let (at, url) = (root.path().to_path_buf(), upstream.origin().to_string());
    blocking(move || {
        let ca = certificates::Ca::new();
        let identity = ca.issue(&["127.0.0.1"]);
        let place = |name: &str| at.join(name).display().to_string();
        for (name, text) in [("ca", ca.pem()), ("cert", &identity.certificate), ("key", &identity.key)] {
            std::fs::write(at.join(name), text).unwrap();
        }
        let config = json!({
            "registry": { "tls": { "cert": place("cert"), "key": place("key") } },
            "upstreams": [{ "host": "up.example", "url": url, "listen": "127.0.0.1:0", "repositories": ["team/*"] }],
        });
        std::fs::write(at.join("larder.yaml"), config.to_string()).unwrap();
        let larder = Larder::start(&at, &["--config", &place("larder.yaml")]);
        let host = larder.mirrors["up.example"].rsplit('/').next().unwrap().to_owned();
        let ca = place("ca");
        let pull = |repository: &str, more: &[&str]| {
            let reference = format!("oci://{host}/{repository}:v1");
            finish({
                let mut list = command(&at);
                list.args(["list", reference.trim_end_matches(":v1")]).args(more);
                list
            })
        };
        let listed = pull("team/app", &["--ca", &ca, "-o", "json"]);
        let text = String::from_utf8_lossy(&[listed.stdout, listed.stderr].concat()).into_owned();
        assert!(text.contains(&image.digest.to_string()), "{text}");
        assert!(!pull("other", &["--ca", &ca]).status.success(), "it is not mirrored");
        let plain = pull("team/app", &["--plain-http"]);
        assert!(!plain.status.success(), "{}", String::from_utf8_lossy(&plain.stdout));
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_used_is_told_to_who_asks_and_once_to_the_log() {
    let root = tempfile::tempdir().unwrap();
    let upstream = ScriptedRegistry::start().await;
    for tag in ["v1", "v2"] {
        push(&upstream, "a/b", tag, tag.as_bytes());
    }
    for kind in [Kind::ManifestGet, Kind::Tags] {
        upstream.fault(of(kind), usize::MAX, Fault::Header("Content-Encoding", Some("gzip".into())));
    }
    let (at, url) = (root.path().to_path_buf(), upstream.origin().to_string());
    blocking(move || {
        let larder = start(&at, &url);
        let why = "cannot be used (proto): the answer has a Content-Encoding, though identity was asked for";
        for tag in ["v1", "v1", "v2"] {
            let reply = http::get(&format!("{}/v2/a/b/manifests/{tag}?ns=up.example", larder.registry));
            assert_eq!(reply.status, 503);
            assert!(reply.text().contains(why), "{}", reply.text());
        }
        let mut check = command(&at);
        let upstream = format!("up.example={url}");
        check.args(["mirror", "check", "--upstream", &upstream, "--registry-listen", larder.registry_host()]);
        check.args(["--containerd-socket", "/nonexistent", "--dir"]).arg(at.join("certs.d"));
        let checked = finish(check);
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(text.contains("503 Service Unavailable: ") && text.contains(why), "{text}");
        let log = larder.log();
        let told: Vec<&str> = log.lines().filter(|line| line.contains("is answered with 503")).collect();
        assert!(told.len() == 1 && told[0].contains("WARN") && told[0].contains("/v2/a/b/manifests/"), "{log}");
    })
    .await;
}

#[test]
fn config_check_opens_what_a_file_names_and_tells_it_to_programs_too() {
    let root = tempfile::tempdir().unwrap();
    let config = root.path().join("larder.yaml");
    std::fs::write(&config, "registry: {htpasswd: /nowhere/users}\n").unwrap();
    let check = |more: &[&str]| {
        let mut check = command(root.path());
        check.args(["config", "check"]).arg(&config).args(more);
        finish(check)
    };
    let plain = check(&[]);
    assert_eq!(plain.status.code(), Some(1));
    let text = String::from_utf8_lossy(&plain.stderr);
    assert!(text.contains("registry.htpasswd from /nowhere/users"), "{text}");
    let output = check(&["-o", "json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &found["valid"]), (Some(1), &false.into()));
    assert!(found["errors"][0]["message"].as_str().unwrap().contains("/nowhere/users"), "{found}");
    std::fs::write(&config, "concurrency: 2\n").unwrap();
    let output = check(&["-o", "json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &found["valid"], &found["errors"]), (Some(0), &true.into(), &json!([])));
}

#[test]
fn the_readmes_example_is_a_configuration() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let section = readme.split("\n## ").find(|section| section.starts_with("Mirror\n")).expect("the section");
    let yaml = section.split("```").find_map(|block| block.strip_prefix("yaml\n")).expect("the example");
    let config = larder::config::check(yaml).unwrap();
    let hosts: Vec<String> = config.upstreams.iter().map(|upstream| upstream.host.to_string()).collect();
    assert_eq!(hosts, ["docker.io", "ghcr.io", "registry.example.com:5000"]);
}
