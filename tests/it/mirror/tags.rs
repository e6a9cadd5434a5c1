//! Tags: asked about once in their time, forgotten on demand, and a no is remembered for a little while.

use std::time::Duration;

use larder::oci::Reference;

use super::{Scene, cache_status, push};
use crate::support::registry::{Fault, Kind, of};

#[tokio::test]
async fn a_tag_is_asked_about_once_in_its_time() {
    let scene = Scene::with(|config| {
        config.tags = vec![(regex::Regex::new("^v").unwrap(), Duration::from_secs(3600))];
    })
    .await;
    let first = push(&scene.upstream, "a", "latest", b"one");
    push(&scene.upstream, "a", "v1", b"one");
    for tag in ["latest", "v1"] {
        assert_eq!(scene.get(&format!("a/manifests/{tag}")).await.status, 200);
    }
    let (heads, gets) = (scene.asked(Kind::ManifestHead), scene.asked(Kind::ManifestGet));
    let second = push(&scene.upstream, "a", "latest", b"two");
    // Within its time nobody asks, whatever happens there.
    scene.pass(59);
    for _ in 0..3 {
        let reply = scene.head("a/manifests/latest").await;
        assert_eq!(reply.header("docker-content-digest"), Some(&*first.digest.to_string()));
    }
    assert_eq!(scene.asked(Kind::ManifestHead), heads);
    // Past it one HEAD finds the new digest, and one GET fetches it.
    scene.pass(1);
    for _ in 0..3 {
        let reply = scene.get("a/manifests/latest").await;
        assert_eq!((reply.status, &reply.body), (200, &second.manifest));
    }
    assert_eq!((scene.asked(Kind::ManifestHead), scene.asked(Kind::ManifestGet)), (heads + 1, gets + 1));
    // And one that has not moved costs a HEAD alone.
    scene.pass(60);
    assert_eq!(cache_status(&scene.get("a/manifests/latest").await), "larder; hit");
    assert_eq!((scene.asked(Kind::ManifestHead), scene.asked(Kind::ManifestGet)), (heads + 2, gets + 1));
    // The other tag's pattern gives it an hour; the reader's right is asked for every five minutes.
    scene.get("a/manifests/v1").await;
    assert_eq!(scene.asked(Kind::ManifestHead), heads + 2);
}

#[tokio::test]
async fn a_forgotten_tag_is_asked_about_at_once() {
    let scene = Scene::new().await;
    push(&scene.upstream, "a", "v1", b"one");
    let reference: Reference = "up.example/a:v1".parse().unwrap();
    assert!(!scene.mirror.forget(&reference).await.unwrap(), "nothing was known");
    scene.get("a/manifests/v1").await;
    let second = push(&scene.upstream, "a", "v1", b"two");
    assert!(scene.mirror.forget(&reference).await.unwrap());
    assert_eq!(scene.get("a/manifests/v1").await.body, second.manifest);
    // Absence is forgotten, too.
    let missing: Reference = "up.example/a:v2".parse().unwrap();
    assert_eq!(scene.get("a/manifests/v2").await.status, 404);
    push(&scene.upstream, "a", "v2", b"two");
    assert_eq!(scene.get("a/manifests/v2").await.status, 404);
    assert!(scene.mirror.forget(&missing).await.unwrap());
    assert_eq!(scene.get("a/manifests/v2").await.status, 200);
    for wrong in ["other.example/a:v1", "up.example/a"] {
        assert!(scene.mirror.forget(&wrong.parse().unwrap()).await.is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn a_no_is_remembered_for_its_time() {
    let scene = Scene::new().await;
    for _ in 0..3 {
        let reply = scene.get("a/manifests/v1").await;
        assert_eq!((reply.status, reply.code().as_str()), (404, "MANIFEST_UNKNOWN"));
        assert!(reply.text().contains("upstream said 404"), "{}", reply.text());
    }
    let asked = scene.upstream.requests();
    push(&scene.upstream, "a", "v1", b"layer");
    scene.pass(29);
    assert_eq!(scene.get("a/manifests/v1").await.status, 404);
    assert_eq!(scene.upstream.requests(), asked);
    scene.pass(1);
    assert_eq!(scene.get("a/manifests/v1").await.status, 200);
}

#[tokio::test]
async fn a_tag_that_is_gone_upstream_is_gone_here() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    scene.get("a/manifests/v1").await;
    scene.upstream.remove_tag("a", "v1");
    scene.pass(60);
    assert_eq!(scene.get("a/manifests/v1").await.status, 404);
    // Its content is not: the upstream still has that.
    assert_eq!(scene.get(&format!("a/manifests/{}", image.digest)).await.status, 200);
}

#[tokio::test]
async fn a_no_to_what_a_tag_leads_to_is_a_no_to_the_tag_for_as_long() {
    for fault in [Fault::status(404), Fault::status(403), Fault::Body(b"{\"schemaVersion\":2}".to_vec())] {
        let scene = Scene::new().await;
        let image = push(&scene.upstream, "a", "v1", b"layer");
        scene.upstream.fault(of(Kind::ManifestGet), usize::MAX, fault.clone());
        for path in ["a/manifests/v1".to_owned(), format!("a/manifests/{}", image.digest)] {
            for _ in 0..3 {
                assert_eq!(scene.get(&path).await.status, 404, "{fault:?} {path}");
            }
        }
        assert_eq!((scene.asked(Kind::ManifestHead), scene.asked(Kind::ManifestGet)), (1, 1), "{fault:?}");
        scene.upstream.heal();
        scene.pass(29);
        assert_eq!(scene.get("a/manifests/v1").await.status, 404, "{fault:?}");
        let reference: Reference = "up.example/a:v1".parse().unwrap();
        assert!(scene.mirror.forget(&reference).await.unwrap());
        assert_eq!(scene.get("a/manifests/v1").await.body, image.manifest, "{fault:?}");
    }
}

#[tokio::test]
async fn wrong_bytes_are_forgotten_on_demand_and_remembered_once() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    scene.get("a/manifests/v1").await;
    scene.upstream.fault(of(Kind::BlobGet), 1, Fault::Body(b"LAYER".to_vec()));
    let path = format!("a/blobs/{}", image.layer);
    assert_eq!(scene.get(&path).await.status, 404);
    // The no is past its time; the mark, by the machine's clock, is not, and says how long it lasts.
    scene.pass(30);
    let first = scene.get(&path).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let second = scene.get(&path).await;
    assert_eq!((first.status, second.status), (404, 404));
    assert!(first.text() != second.text() && second.text().contains("asked again in"), "{}", second.text());
    let reference: Reference = format!("up.example/a@{}", image.layer).parse().unwrap();
    assert!(scene.mirror.forget(&reference).await.unwrap());
    assert_eq!(scene.get(&path).await.body, image.layer_bytes);
    assert!(!scene.mirror.forget(&reference).await.unwrap(), "there is nothing to forget");
}
