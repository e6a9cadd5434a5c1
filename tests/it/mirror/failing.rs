//! While the upstream fails, what is held is served; what is not is 503, never an answer that makes a client hammer.

use std::time::{Duration, Instant};

use larder::mirror::Mode;

use super::{Scene, cache_status, push};
use crate::support::registry::{Auth, Fault, Kind, Options, ScriptedRegistry, Seen, of};

fn everything(_: &Seen) -> bool {
    true
}

#[tokio::test]
async fn a_tag_past_its_time_is_served_stale_whatever_the_upstream_answers() {
    for fault in [Fault::too_many("3600"), Fault::status(500), Fault::status(502), Fault::status(503), Fault::Close] {
        let scene = Scene::new().await;
        let image = push(&scene.upstream, "a", "v1", b"layer");
        scene.get("a/manifests/v1").await;
        scene.get(&format!("a/blobs/{}", image.layer)).await;
        scene.upstream.fault(everything, usize::MAX, fault.clone());
        // Longer than the tag's time and than the reader's right.
        scene.pass(360);
        let reply = scene.get("a/manifests/v1").await;
        assert_eq!((reply.status, &reply.body), (200, &image.manifest), "{fault:?}");
        let said = match fault {
            Fault::Answer { status, .. } => format!("; fwd-status={status}"),
            _ => String::new(),
        };
        assert_eq!(cache_status(&reply), format!("larder; fwd=stale{said}"), "{fault:?}");
        // From here on it is known to be down, and nobody waits for it.
        let reply = scene.get("a/manifests/v1").await;
        assert_eq!((reply.status, cache_status(&reply)), (200, "larder; hit; ttl=-300"), "{fault:?}");
        for path in [format!("a/manifests/{}", image.digest), format!("a/blobs/{}", image.layer)] {
            let reply = scene.get(&path).await;
            assert_eq!((reply.status, cache_status(&reply)), (200, "larder; hit"), "{fault:?} {path}");
        }
        // What is not held cannot be served: 503 and a while to wait.
        for path in ["a/manifests/v2".to_string(), "b/manifests/v1".into(), format!("a/blobs/{}", image.config)] {
            let reply = scene.get(&path).await;
            assert_eq!((reply.status, reply.code().as_str()), (503, "UNAVAILABLE"), "{fault:?} {path}");
            assert!(reply.header("retry-after").is_some());
        }
        // The limit, and not a second longer.
        scene.pass(24 * 3600 - 301);
        assert_eq!(scene.get("a/manifests/v1").await.status, 200, "{fault:?}");
        scene.pass(1);
        assert_eq!(scene.get("a/manifests/v1").await.status, 503, "{fault:?}");
        assert_eq!(scene.get(&format!("a/manifests/{}", image.digest)).await.status, 200, "content has no age");
    }
}

#[tokio::test]
async fn lists_outlive_a_restart_with_the_upstream_down_and_not_what_it_took_back() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    push(&scene.upstream, "b", "v1", b"layer");
    let index = r#"{"schemaVersion":2,"manifests":[]}"#;
    let answer = Fault::Answer { status: 200, headers: Vec::new(), body: index.into() };
    scene.upstream.fault(|seen| seen.path.contains("/referrers/"), usize::MAX, answer);
    let referrers = format!("a/referrers/{}", image.digest);
    for path in ["a/tags/list", "b/tags/list", &referrers] {
        assert_eq!(cache_status(&scene.get(path).await), "larder; fwd=miss; stored", "{path}");
    }
    scene.upstream.fault(|seen| seen.path.starts_with("/v2/b/"), usize::MAX, Fault::status(401));
    scene.pass(60);
    assert_eq!(scene.get("b/tags/list").await.status, 404);
    let scene = scene.restarted_without_upstream(|_| {}).await;
    for (later, status, cached) in
        [(0, 200, "larder; fwd=stale"), (1, 200, "larder; hit; ttl=-1"), (24 * 3600 - 2, 200, ""), (2, 503, "")]
    {
        scene.pass(later);
        let (tags, of) = (scene.get("a/tags/list").await, scene.get(&referrers).await);
        assert_eq!((tags.status, of.status), (status, status), "{later}");
        if status == 200 {
            assert_eq!((tags.json()["tags"].to_string(), of.text()), (r#"["v1"]"#.into(), index.into()));
        }
        assert!(cache_status(&tags).starts_with(cached), "{later}: {}", cache_status(&tags));
        assert_eq!(scene.get("b/tags/list").await.status, 503, "it was taken back");
    }
}

#[tokio::test]
async fn the_upstream_is_asked_again_in_the_background_and_believed_when_it_is_back() {
    let scene = Scene::new().await;
    push(&scene.upstream, "a", "v1", b"one");
    scene.get("a/manifests/v1").await;
    scene.upstream.fault(everything, usize::MAX, Fault::status(500));
    scene.pass(60);
    scene.get("a/manifests/v1").await;
    scene.upstream.heal();
    let second = push(&scene.upstream, "a", "v1", b"two");
    let asked = scene.upstream.requests();
    for _ in 0..5 {
        scene.get("a/manifests/v1").await;
    }
    assert_eq!(scene.upstream.requests(), asked, "not so soon");
    scene.pass(2);
    let end = Instant::now() + Duration::from_secs(60);
    while scene.get("a/manifests/v1").await.body != second.manifest {
        assert!(Instant::now() < end, "the new tag is never seen");
        tokio::task::yield_now().await;
    }
    assert_eq!(scene.upstream.requests(), asked + 2, "one HEAD, one GET");
}

#[tokio::test]
async fn a_failure_of_long_ago_shows_nobody_a_stale_tag_unasked() {
    let scene = Scene::new().await;
    push(&scene.upstream, "a", "v1", b"one");
    scene.get("a/manifests/v1").await;
    scene.upstream.fault(everything, usize::MAX, Fault::status(500));
    scene.pass(60);
    assert_eq!(cache_status(&scene.get("a/manifests/v1").await), "larder; fwd=stale; fwd-status=500");
    scene.upstream.heal();
    let second = push(&scene.upstream, "a", "v1", b"two");
    scene.pass(3600);
    // Who comes while it is asked has its answer, too.
    scene.upstream.fault(of(Kind::ManifestHead), 1, Fault::Delay(Duration::from_millis(300)));
    let (path, asked) = ("a/manifests/v1", scene.upstream.requests());
    let (one, other) = tokio::join!(scene.get(path), async {
        while scene.upstream.requests() == asked {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        scene.get(path).await
    });
    assert_eq!([one.body, other.body], [second.manifest.clone(), second.manifest]);
}

#[tokio::test]
async fn a_429_is_heeded_and_never_passed_on() {
    let scene = Scene::new().await;
    push(&scene.upstream, "a", "v1", b"layer");
    scene.upstream.fault(everything, usize::MAX, Fault::too_many("3600"));
    for _ in 0..5 {
        let reply = scene.get("a/manifests/v1").await;
        assert_eq!(reply.status, 503);
        assert!(reply.text().contains("upstream said 429"), "{}", reply.text());
    }
    assert_eq!(scene.upstream.requests(), 1, "the window is heeded");
}

#[tokio::test]
async fn nobody_at_the_upstreams_address_is_503_within_two_seconds() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    let scene = scene.restarted_without_upstream(|_| {}).await;
    for path in ["a/manifests/v1".to_string(), format!("a/blobs/{}", image.layer), "a/tags/list".into()] {
        let begin = Instant::now();
        let reply = scene.get(&path).await;
        assert_eq!((reply.status, reply.code().as_str()), (503, "UNAVAILABLE"), "{path}");
        // The four attempts of this test's client take milliseconds; the point is that nothing waits for a time-out.
        assert!(begin.elapsed() < Duration::from_secs(9), "{path}");
    }
}

#[tokio::test]
async fn with_the_upstream_gone_before_the_start_everything_held_is_served() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "a/b", "v1", b"layer");
    for path in ["manifests/v1".to_string(), format!("blobs/{}", image.config), format!("blobs/{}", image.layer)] {
        assert_eq!(scene.get(&format!("a/b/{path}")).await.status, 200);
    }
    let mut scene = scene.restarted_without_upstream(|_| {}).await;
    for (later, status) in [(0, "larder; hit"), (400, "larder; fwd=stale")] {
        scene.pass(later);
        let reply = scene.get("a/b/manifests/v1").await;
        assert_eq!((reply.status, cache_status(&reply), &reply.body), (200, status, &image.manifest));
        for (digest, path) in [(image.digest, "manifests"), (image.config, "blobs"), (image.layer, "blobs")] {
            for method in ["GET", "HEAD"] {
                let reply = scene.request(method, &format!("a/b/{path}/{digest}"), &[]).await;
                assert_eq!((reply.status, cache_status(&reply)), (200, "larder; hit"), "{method} {digest} {later}");
            }
        }
        scene = scene.restarted_without_upstream(|_| {}).await;
    }
}

#[tokio::test]
async fn a_registry_whose_head_is_broken_is_asked_by_get() {
    for fault in [Fault::status(404), Fault::status(405), Fault::Header("Docker-Content-Digest", None)] {
        let scene = Scene::new().await;
        let image = push(&scene.upstream, "a", "v1", b"layer");
        scene.upstream.fault(of(Kind::ManifestHead), usize::MAX, fault.clone());
        scene.upstream.fault(of(Kind::BlobHead), usize::MAX, Fault::status(404));
        for method in ["HEAD", "GET"] {
            let reply = scene.request(method, "a/manifests/v1", &[]).await;
            assert_eq!(reply.status, 200, "{fault:?} {}", reply.text());
            assert_eq!(reply.header("docker-content-digest"), Some(&*image.digest.to_string()));
        }
        assert_eq!(scene.head(&format!("a/blobs/{}", image.layer)).await.status, 200);
        assert_eq!(scene.asked(Kind::ManifestGet), 1, "{fault:?}");
    }
}

/// How often an upstream that is asked for one thing is asked: once, and at its door.
const ASKED: usize = 2;

#[tokio::test]
async fn a_silent_upstream_costs_one_request_its_time_and_the_others_nothing() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    let other = ScriptedRegistry::start().await;
    push(&other, "a", "v1", b"layer");
    let scene = scene.beside(&other).await;
    scene.upstream.fault(everything, usize::MAX, Fault::Hang);
    let begin = Instant::now();
    assert_eq!(scene.get("a/manifests/v1").await.status, 503);
    assert!((8..10).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    assert_eq!(scene.upstream.requests(), ASKED);
    let begin = Instant::now();
    for n in 0..5 {
        let paths = [format!("a/manifests/t{n}"), format!("r{n}/tags/list"), format!("a/blobs/{}", image.layer)];
        for path in paths {
            let reply = scene.get(&path).await;
            assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")), "{path}");
            assert!(reply.text().contains("did not answer a moment ago"), "{}", reply.text());
        }
        assert_eq!(scene.head(&format!("a/blobs/{}", image.config)).await.status, 503);
    }
    assert_eq!(scene.running.get("/v2/a/manifests/v1?ns=other.example", &[]).await.status, 200, "another is another");
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert_eq!(scene.upstream.requests(), ASKED, "nothing is sent meanwhile");
    // The window's one question, and what is told to those who come while it waits.
    scene.pass(5);
    let begin = Instant::now();
    let blob = format!("a/blobs/{}", image.layer);
    let (asks, told) = tokio::join!(scene.get("a/manifests/v1"), async {
        while scene.upstream.requests() == ASKED {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let told = scene.get(&blob).await;
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
        // It talks again while that question waits in vain: so the door answers, and nobody else has to wait.
        scene.upstream.heal();
        told
    });
    assert_eq!((asks.status, told.status), (503, 503));
    assert_eq!(scene.get(&blob).await.body, image.layer_bytes);
    assert_eq!(scene.get("a/manifests/v1").await.body, image.manifest);
}

#[tokio::test]
async fn one_thing_that_hangs_does_not_make_an_upstream_silent() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = format!("http://{}/blob", nobody.local_addr().unwrap());
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}/blob", listener.local_addr().unwrap())
    };
    let at = |digest: String| move |seen: &Seen| seen.path.ends_with(&digest);
    scene.upstream.fault(at(image.layer.to_string()), usize::MAX, Fault::redirect(elsewhere));
    scene.upstream.fault(at("v2".into()), usize::MAX, Fault::Hang);
    scene.upstream.fault(at(image.config.to_string()), usize::MAX, Fault::redirect(closed));
    let paths = [format!("a/blobs/{}", image.config), format!("a/blobs/{}", image.layer), "a/manifests/v2".to_owned()];
    let [refused, silent, hangs] = paths.each_ref().map(|path| scene.get(path));
    let statuses = tokio::join!(refused, silent, hangs);
    assert_eq!([statuses.0.status, statuses.1.status, statuses.2.status], [503; 3]);
    // Nor does it cost the next request that time.
    let (begin, asked) = (Instant::now(), scene.upstream.requests());
    assert_eq!(scene.get(&paths[1]).await.status, 503);
    assert!(begin.elapsed() < Duration::from_secs(4) && scene.upstream.requests() == asked, "{:?}", begin.elapsed());
    assert_eq!(scene.get("a/manifests/v1").await.status, 200);
    assert_eq!(scene.get("b/manifests/v1").await.status, 404, "it is asked");
    scene.upstream.heal();
    scene.pass(5);
    assert_eq!(scene.get(&paths[1]).await.body, image.layer_bytes);
}

#[tokio::test]
async fn a_token_services_404_takes_nothing_back() {
    let auth = Auth::Token { user: None, realm: None, expires_in: None };
    let scene = Scene::guarded(Options { auth, tls: None }, Mode::Public).await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    assert_eq!(scene.get("a/manifests/v1").await.status, 200);
    scene.upstream.fault(of(Kind::Token), usize::MAX, Fault::status(404));
    scene.upstream.revoke_tokens();
    scene.pass(360);
    let reply = scene.get("a/manifests/v1").await;
    assert_eq!((reply.status, &reply.body), (200, &image.manifest), "{}", reply.text());
    assert_eq!(cache_status(&reply), "larder; fwd=stale; fwd-status=404");
    let other = scene.get("a/manifests/v2").await;
    assert_eq!(other.status, 503);
    assert!(other.text().contains("the upstream's token service said 404"), "{}", other.text());
    // Nothing was taken back, and nothing is remembered as absent.
    scene.upstream.heal();
    scene.upstream.fault(everything, usize::MAX, Fault::status(503));
    scene.pass(360);
    assert_eq!(scene.get("a/manifests/v1").await.body, image.manifest);
}
