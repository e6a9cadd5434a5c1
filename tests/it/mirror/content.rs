//! What is answered: exact bytes, exact headers, one question to the upstream.

use std::time::Duration;

use larder::digest::Digest;

use super::{MANIFEST, Scene, cache_status, push};
use crate::support::registry::{Fault, Kind, of};

#[tokio::test]
async fn a_manifest_and_a_blob_come_once_and_with_every_header() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "a/b", "v1", b"the layer's bytes");
    for (path, digest, kind, content) in [
        ("a/b/manifests/v1".to_string(), image.digest, MANIFEST, image.manifest.as_slice()),
        (format!("a/b/blobs/{}", image.layer), image.layer, "application/octet-stream", &image.layer_bytes),
    ] {
        for (n, status) in ["larder; fwd=miss; stored", "larder; hit", "larder; hit"].iter().enumerate() {
            let method = if n == 2 { "HEAD" } else { "GET" };
            let headers = [("accept-encoding", "zstd;q=1.0, gzip;q=0.8")];
            let reply = scene.request(method, &path, &headers).await;
            assert_eq!(reply.status, 200, "{path} {}", reply.text());
            let body: &[u8] = if method == "HEAD" { b"" } else { content };
            assert_eq!(reply.body, body, "{path}");
            for (name, value) in [
                ("docker-content-digest", digest.to_string()),
                ("etag", format!("\"{digest}\"")),
                ("content-length", content.len().to_string()),
                ("accept-ranges", "bytes".into()),
                ("content-type", kind.into()),
                ("cache-status", status.to_string()),
            ] {
                assert_eq!(reply.header(name), Some(value.as_str()), "{path} {name} {n}");
            }
            assert_eq!(reply.header("content-encoding"), None);
        }
    }
    assert_eq!([Kind::ManifestGet, Kind::BlobGet, Kind::BlobHead].map(|kind| scene.asked(kind)), [1, 1, 0]);
}

#[tokio::test]
async fn a_digest_that_is_not_held_is_one_get() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    let reply = scene.get(&format!("a/manifests/{}", image.digest)).await;
    assert_eq!((reply.status, cache_status(&reply)), (200, "larder; fwd=miss; stored"));
    // The tag leads to what is held: a HEAD is enough, since a GET may be counted as a pull.
    let reply = scene.get("a/manifests/v1").await;
    assert_eq!((reply.status, cache_status(&reply)), (200, "larder; hit"));
    assert_eq!([Kind::ManifestHead, Kind::ManifestGet].map(|kind| scene.asked(kind)), [1, 1]);
}

#[tokio::test]
async fn two_hundred_clients_are_one_question() {
    let scene = Scene::new().await;
    let layer: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.to_le_bytes()).take(3_000_000).collect();
    let image = push(&scene.upstream, "a", "v1", &layer);
    let blob = format!("a/blobs/{}", image.layer);
    for (path, content) in [("a/manifests/v1".to_string(), &image.manifest), (blob, &image.layer_bytes)] {
        let asks = (0..200).map(|_| scene.get(&path));
        let mut statuses = std::collections::BTreeMap::new();
        for reply in futures_join(asks).await {
            assert_eq!((reply.status, &reply.body), (200, content), "{path}");
            *statuses.entry(cache_status(&reply).to_string()).or_insert(0) += 1;
        }
        assert_eq!(statuses.get("larder; fwd=miss; stored"), Some(&1), "{statuses:?}");
    }
    assert_eq!(scene.asked(Kind::ManifestGet), 1);
    assert_eq!(scene.asked(Kind::BlobGet), 1);
    assert_eq!(scene.asked(Kind::BlobHead), 0, "the manifest links it: nobody's right is in doubt");
}

/// Runs all futures at once, on this task.
async fn futures_join<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        let mut done = true;
        for (future, output) in &mut running {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => done = false,
                }
            }
        }
        if done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}

#[tokio::test]
async fn ranges_and_conditions_hold_on_a_fill_and_on_what_is_held() {
    let scene = Scene::new().await;
    let layer: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
    let image = push(&scene.upstream, "a", "v1", &layer);
    scene.get("a/manifests/v1").await;
    let path = format!("a/blobs/{}", image.layer);
    let etag = format!("\"{}\"", image.layer);
    let total = layer.len();
    for round in ["fill", "held"] {
        for (range, status, body, content_range) in [
            ("bytes=100-199", 206, &layer[100..200], format!("bytes 100-199/{total}")),
            ("bytes=1999990-", 206, &layer[1_999_990..], format!("bytes 1999990-1999999/{total}")),
            ("bytes=-5", 206, &layer[total - 5..], format!("bytes 1999995-1999999/{total}")),
            ("bytes=2000000-", 416, &[][..], format!("bytes */{total}")),
        ] {
            let reply = scene.request("GET", &path, &[("range", range)]).await;
            assert_eq!(
                (reply.status, reply.header("content-range")),
                (status, Some(&*content_range)),
                "{round} {range}"
            );
            if status == 206 {
                assert_eq!(reply.body, body, "{round} {range}");
            }
        }
        let reply = scene.request("GET", &path, &[("if-none-match", &etag)]).await;
        assert_eq!((reply.status, reply.header("etag")), (304, Some(&*etag)), "{round}");
    }
    assert_eq!(scene.asked(Kind::BlobGet), 1);
}

#[tokio::test]
async fn the_head_of_a_blob_that_is_not_held_fetches_nothing() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    let reply = scene.head(&format!("a/blobs/{}", image.layer)).await;
    assert_eq!((reply.status, reply.header("content-length")), (200, Some("5")));
    assert_eq!(reply.header("docker-content-digest"), Some(&*image.layer.to_string()));
    for (condition, status) in [("if-none-match", 304), ("if-match", 412)] {
        let etag = format!("\"{}\"", if status == 304 { image.layer } else { image.config });
        let reply = scene.request("GET", &format!("a/blobs/{}", image.layer), &[(condition, &etag)]).await;
        assert_eq!(reply.status, status, "{condition}");
    }
    assert_eq!(scene.asked(Kind::BlobGet), 0);
    let absent = Digest::sha256(b"absent");
    for method in ["HEAD", "GET"] {
        let reply = scene.request(method, &format!("a/blobs/{absent}"), &[]).await;
        assert_eq!(reply.status, 404, "{method}");
    }
    assert!(!scene.mirror.store().has(&image.layer).unwrap());
}

#[tokio::test]
async fn a_manifest_of_any_kind_is_passed_on_as_it_is() {
    let scene = Scene::new().await;
    // More children than are parsed: then each is asked for by itself.
    let child = push(&scene.upstream, "a", "child", b"layer");
    let children: Vec<String> = (0..10_000)
        .map(|n| {
            let digest =
                if n == 9_999 { child.digest } else { larder::digest::Digest::sha256(format!("{n}").as_bytes()) };
            format!(r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":7}}"#)
        })
        .collect();
    let many = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, children.join(","));
    for (tag, kind, body) in [
        ("many", "application/vnd.oci.image.index.v1+json", many.as_bytes()),
        ("one", "application/vnd.docker.distribution.manifest.v1+prettyjws", &br#"{"schemaVersion":1}"#[..]),
        ("two", "application/vnd.example.whatever+json", br#"{ "x" : 1 }"#),
        ("three", "application/vnd.oci.image.index.v1+json", br#"{"schemaVersion":2,"manifests":[]}"#),
    ] {
        let digest = scene.upstream.add_manifest("a", Some(tag), kind, body);
        for _ in 0..2 {
            let reply = scene.get(&format!("a/manifests/{tag}")).await;
            assert_eq!((reply.status, reply.header("content-type")), (200, Some(kind)), "{tag}");
            assert_eq!((reply.body.as_slice(), reply.header("etag")), (body, Some(&*format!("\"{digest}\""))), "{tag}");
        }
    }
    for path in [format!("manifests/{}", child.digest), format!("blobs/{}", child.layer)] {
        assert_eq!(scene.get(&format!("a/{path}")).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn wrong_bytes_reach_nobody_and_the_next_try_is_told_that_there_is_nothing() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    scene.get("a/manifests/v1").await;
    scene.upstream.fault(of(Kind::BlobGet), 1, Fault::Body(b"LAYER".to_vec()));
    let path = format!("a/blobs/{}", image.layer);
    for _ in 0..2 {
        let reply = scene.get(&path).await;
        assert_eq!((reply.status, reply.code().as_str()), (404, "BLOB_UNKNOWN"), "{}", reply.text());
    }
    assert_eq!(scene.asked(Kind::BlobGet), 1);
    let other = push(&scene.upstream, "a", "v2", b"other");
    scene.upstream.fault(of(Kind::ManifestGet), 1, Fault::Body(b"{\"schemaVersion\":2}".to_vec()));
    assert_eq!(scene.get(&format!("a/manifests/{}", other.digest)).await.status, 404);
}

#[tokio::test]
async fn a_blobs_length_is_its_manifests_whatever_the_upstream_states() {
    // Below and above the size from which a blob is passed on while it comes.
    for length in [1000, 1_500_000] {
        let layer: Vec<u8> = (0..length).map(|n: u32| (n / 7 + n) as u8).collect();
        for fault in [Fault::NoLength, Fault::Chunked] {
            let scene = Scene::new().await;
            let image = push(&scene.upstream, "a", "v1", &layer);
            scene.get("a/manifests/v1").await;
            scene.upstream.fault(of(Kind::BlobGet), 1, fault.clone());
            let reply = scene.get(&format!("a/blobs/{}", image.layer)).await;
            assert_eq!(reply.status, 200, "{fault:?}: {}", reply.text());
            assert_eq!(reply.header("content-length"), Some(length.to_string().as_str()), "{fault:?}");
            assert!(reply.body == layer, "{length} {fault:?}");
        }
        for stated in [length - 1, length + 1] {
            let scene = Scene::new().await;
            let image = push(&scene.upstream, "a", "v1", &layer);
            scene.get("a/manifests/v1").await;
            let stated = Some(stated.to_string());
            scene.upstream.fault(of(Kind::BlobGet), 1, Fault::Header("Content-Length", stated.clone()));
            let path = format!("a/blobs/{}", image.layer);
            let reply = scene.get(&path).await;
            assert_eq!((reply.status, reply.header("docker-content-digest")), (503, None), "{length} {stated:?}");
            // Nothing is lost: what is held is served, and the blob is asked for again.
            let reply = scene.get("a/manifests/v1").await;
            assert!((reply.status, &reply.body) == (200, &image.manifest));
            let reply = scene.get(&path).await;
            assert!(reply.status == 200 && reply.body == layer, "{length} {stated:?}: {}", reply.status);
        }
    }
}

#[tokio::test]
async fn whoever_has_got_no_byte_yet_is_told_of_a_failure_by_a_status() {
    let scene = Scene::new().await;
    let layer: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7 + n) as u8).collect();
    let image = push(&scene.upstream, "a", "v1", &layer);
    let path = format!("a/blobs/{}", image.layer);
    let half = layer.len() / 2;
    let (gate, open) = tokio::sync::watch::channel(false);
    let then = Box::new(Fault::Cut { after: half, reset: false });
    scene.upstream.fault(of(Kind::BlobGet), 1, Fault::Gate { after: half, open, then });
    scene.upstream.fault(of(Kind::BlobGet), usize::MAX, Fault::status(404));
    // The first is answered with what has come, the second wants what does not come, and others would keep wrong bytes
    // for good: they are given none before the digest is right.
    let mut first = scene.running.connect().await;
    let head = format!("GET /v2/{path}?ns=up.example HTTP/1.1\r\nhost: localhost\r\n\r\n");
    first.send(head.as_bytes()).await;
    let mut begun = [0];
    first.stream.peek(&mut begun).await.unwrap();
    let range = format!("bytes={}-", half + 1);
    let asks =
        [("range", range.as_str()), ("user-agent", "containerd/1.7.2"), ("user-agent", "docker/29.0.0 go/go1.25")].map(
            |header| {
                let path = &path;
                let scene = &scene;
                async move { scene.request("GET", path, &[header]).await }
            },
        );
    let (told, ()) = tokio::join!(futures_join(asks.into_iter()), async {
        // Were it over sooner than they ask, they would be told of it all the same.
        tokio::time::sleep(Duration::from_millis(400)).await;
        gate.send_replace(true);
    });
    assert!(first.reply(false).await.is_none(), "its answer had begun, and ends early");
    for reply in told {
        assert_eq!((reply.status, reply.header("content-range")), (404, None));
    }
}

#[tokio::test]
async fn tags_and_referrers_are_paged_under_our_own_paths() {
    let scene = Scene::new().await;
    for tag in ["v1", "v2", "v3"] {
        push(&scene.upstream, "a/b", tag, b"layer");
    }
    let index = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    for (base, query) in [("/v2/a/b", "&ns=up.example"), ("/v2/up.example/a/b", "")] {
        let reply = scene.running.get(&format!("{base}/tags/list?n=2{query}"), &[]).await;
        assert_eq!(reply.json(), serde_json::json!({"name": "a/b", "tags": ["v1", "v2"]}), "{base}");
        let link = reply.header("link").expect("a next page").to_string();
        let next = link.strip_prefix('<').and_then(|rest| rest.strip_suffix(">; rel=\"next\"")).expect("one link");
        let reply = scene.running.get(next, &[]).await;
        assert_eq!(reply.json(), serde_json::json!({"name": "a/b", "tags": ["v3"]}), "{next}");
        assert_eq!(reply.header("link"), None);
        let subject = Digest::sha256(b"subject");
        let target = format!("{base}/referrers/{subject}?artifactType=a%2Fb{query}");
        let reply = scene.running.get(&target, &[]).await;
        assert_eq!((reply.status, reply.body.as_slice()), (200, &index[..]), "{target}: {}", reply.text());
        assert_eq!(reply.header("content-type"), Some("application/vnd.oci.image.index.v1+json"));
    }
    assert_eq!(scene.get("nothing/tags/list").await.json()["tags"], serde_json::json!([]));
}
