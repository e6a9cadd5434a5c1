//! Three ways lead to an upstream, and none to anything else.

use larder::mirror::{Clock, UpstreamConfig};

use super::{Scene, mirror, push, serve, serve_bound};
use crate::support::registry::{Kind, ScriptedRegistry};

#[tokio::test]
async fn one_image_by_namespace_prefix_and_listener() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "a/b", "v1", b"layer");
    let bound = serve_bound(&scene.mirror);
    for (running, base, query) in [
        (&scene.running, "/v2/a/b", "?ns=up.example"),
        (&scene.running, "/v2/up.example/a/b", ""),
        (&bound, "/v2/a/b", ""),
        (&bound, "/v2/a/b", "?ns=up.example"),
    ] {
        for (path, content) in [
            ("manifests/v1".to_string(), &image.manifest),
            (format!("manifests/{}", image.digest), &image.manifest),
            (format!("blobs/{}", image.layer), &image.layer_bytes),
        ] {
            let target = format!("{base}/{path}{query}");
            let reply = running.get(&target, &[]).await;
            assert_eq!((reply.status, &reply.body), (200, content), "{target}");
            let namespace = (!query.is_empty()).then_some("up.example");
            assert_eq!(reply.header("oci-namespace"), namespace, "{target}");
        }
        let reply = running.get(&format!("/v2/{query}"), &[]).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "{}"), "{base}{query}");
    }
    assert_eq!((scene.asked(Kind::ManifestGet), scene.asked(Kind::BlobGet)), (1, 1));
}

#[tokio::test]
async fn docker_hub_has_its_library_whoever_forgets_it() {
    let upstream = ScriptedRegistry::start().await;
    push(&upstream, "library/nginx", "v1", b"layer");
    let root = tempfile::tempdir().unwrap();
    let config = UpstreamConfig::new("docker.io".parse().unwrap(), Some(upstream.origin().into()));
    let mirror = mirror(root.path(), vec![config], Clock::system());
    let (running, bound) = (serve(&mirror), serve_bound(&mirror));
    for (running, target) in [
        (&running, "/v2/library/nginx/manifests/v1?ns=docker.io"),
        (&running, "/v2/docker.io/nginx/manifests/v1"),
        (&running, "/v2/docker.io/library/nginx/manifests/v1"),
        (&bound, "/v2/nginx/manifests/v1"),
        (&bound, "/v2/library/nginx/manifests/v1"),
    ] {
        assert_eq!(running.get(target, &[]).await.status, 200, "{target}");
    }
    assert_eq!(upstream.count(Kind::ManifestGet), 1);
    assert!(upstream.seen().iter().all(|seen| seen.path.starts_with("/v2/library/nginx/")));
}

#[tokio::test]
async fn what_is_no_configured_upstream_is_refused_and_nobody_contacted() {
    let scene = Scene::new().await;
    push(&scene.upstream, "a", "v1", b"layer");
    let honeypot = ScriptedRegistry::start().await;
    let elsewhere = honeypot.authority();
    for (target, statuses) in [
        (format!("/v2/a/manifests/v1?ns={elsewhere}"), &[404][..]),
        (format!("/v2/a/manifests/v1?ns=http://{elsewhere}"), &[404, 400]),
        ("/v2/a/manifests/v1?ns=169.254.169.254".into(), &[404]),
        ("/v2/a/manifests/v1?ns=".into(), &[404]),
        ("/v2/a/manifests/v1?ns=up.example&ns=up.example".into(), &[400]),
        ("/v2/a/manifests/v1?ns=up.example&n%73=up.example".into(), &[400]),
        ("/v2/a/manifests/v1?ns=up.example%0d%0aHost:%20x".into(), &[400]),
        ("/v2/a/manifests/v1?ns=up.example%00".into(), &[400]),
        (format!("/v2/a/manifests/v1?ns=user@{elsewhere}"), &[404, 400]),
        (format!("/v2/{}/a/manifests/v1", elsewhere.replace(':', "_")), &[404]),
        ("/v2/a/manifests/v1".into(), &[404]),
        ("/v2/up.example/a/../a/manifests/v1".into(), &[400]),
        ("/v2/up.example/a/manifests/%2e%2e".into(), &[400]),
        ("/v2/up.example/_catalog".into(), &[404]),
        ("/v2/_catalog?ns=up.example".into(), &[404]),
        ("/v2/up.example//a/manifests/v1".into(), &[400]),
    ] {
        let reply = scene.running.get(&target, &[("host", &elsewhere)]).await;
        assert!(statuses.contains(&reply.status), "{target}: {} {}", reply.status, reply.text());
        assert!(!reply.code().is_empty(), "{target}");
    }
    assert_eq!((scene.upstream.connections(), honeypot.connections()), (0, 0));
}

#[tokio::test]
async fn mirrored_repositories_are_read_only() {
    let scene = Scene::new().await;
    let digest = larder::digest::Digest::sha256(b"x");
    for (method, path) in [
        ("PUT", "a/manifests/v1".to_string()),
        ("DELETE", "a/manifests/v1".into()),
        ("POST", "a/blobs/uploads/".into()),
        ("PATCH", "a/blobs/uploads/00000000000000000000000000000000".into()),
        ("DELETE", format!("a/blobs/{digest}")),
        ("POST", "a/tags/list".into()),
    ] {
        let namespaces = ["up.example", "other.example"].map(|ns| format!("/v2/{path}?ns={ns}"));
        for target in namespaces.into_iter().chain([format!("/v2/up.example/{path}")]) {
            let reply = scene.running.request(method, &target, &[], b"").await;
            assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")), "{method} {target}");
        }
    }
    assert_eq!(scene.upstream.connections(), 0);
}
