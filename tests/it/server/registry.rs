//! Contract section 3, as far as local repositories go.

use std::time::Duration;

use larder::{
    digest::{Algorithm, Digest},
    oci::media_type::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST},
    server::{Limits, Registry},
};
use serde_json::{Value, json};

use super::{Client, Reply, Running, Scene};

fn start() -> (Scene, Running) {
    let scene = Scene::new();
    let running = Running::start(Registry::new(scene.store.clone(), true), Limits::default());
    (scene, running)
}

async fn push_blob(running: &Running, repository: &str, content: &[u8]) -> Digest {
    let digest = Digest::sha256(content);
    let target = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
    let reply = running.request("POST", &target, &[], content).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(reply.header("location"), Some(format!("/v2/{repository}/blobs/{digest}").as_str()));
    digest
}

fn manifest(config: &[u8], layers: &[&[u8]]) -> Value {
    let descriptor = |media_type: &str, content: &[u8]| json!({"mediaType": media_type, "digest": Digest::sha256(content), "size": content.len()});
    let layers: Vec<_> =
        layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer)).collect();
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(OCI_CONFIG, config), "layers": layers})
}

async fn put_manifest(running: &Running, repository: &str, reference: &str, document: &Value) -> (Reply, Digest) {
    let media_type = document["mediaType"].as_str().unwrap();
    let bytes = serde_json::to_vec(document).unwrap();
    let target = format!("/v2/{repository}/manifests/{reference}");
    let reply = running.request("PUT", &target, &[("content-type", media_type)], &bytes).await;
    (reply, Digest::sha256(&bytes))
}

#[tokio::test]
async fn what_is_pushed_comes_back_with_the_contracts_headers() {
    let (_scene, running) = start();
    assert_eq!(running.get("/v2/", &[]).await.status, 200);
    let (config, layer) = (b"{}", b"layer");
    let config_digest = push_blob(&running, "a/b", config).await;
    push_blob(&running, "a/b", layer).await;
    let document = manifest(config, &[layer]);
    let (reply, digest) = put_manifest(&running, "a/b", "v1", &document).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(reply.header("docker-content-digest"), Some(digest.to_string().as_str()));
    let bytes = serde_json::to_vec(&document).unwrap();
    for (target, of, content, media_type) in [
        ("/v2/a/b/manifests/v1".to_string(), digest, &bytes[..], OCI_MANIFEST),
        (format!("/v2/a/b/manifests/{digest}"), digest, &bytes[..], OCI_MANIFEST),
        (format!("/v2/a/b/blobs/{config_digest}"), config_digest, &config[..], "application/octet-stream"),
    ] {
        for method in ["GET", "HEAD"] {
            let reply = running.request(method, &target, &[("accept-encoding", "gzip")], b"").await;
            assert_eq!(reply.status, 200, "{target}");
            assert_eq!(reply.body, if method == "GET" { content } else { b"" }, "{target}");
            let (length, etag) = (content.len().to_string(), format!("\"{of}\""));
            for (name, value) in [
                ("content-type", Some(media_type)),
                ("content-length", Some(length.as_str())),
                ("docker-content-digest", Some(of.to_string().as_str())),
                ("etag", Some(etag.as_str())),
                ("accept-ranges", Some("bytes")),
                ("cache-status", Some("larder; hit")),
                ("content-encoding", None),
            ] {
                assert_eq!(reply.header(name), value, "{method} {target}: {name}");
            }
        }
    }
    let reply = running.get(&format!("/v2/a/b/blobs/{config_digest}"), &[("range", "bytes=500-0")]).await;
    assert_eq!(reply.status, 416);
    let reply = running.get(&format!("/v2/a/b/blobs/{config_digest}"), &[("range", "bytes=1-1")]).await;
    assert_eq!((reply.status, reply.text().as_str()), (206, "}"));
    let twice = [("range", "bytes=0-0"), ("range", "bytes=1-1")];
    let reply = running.get(&format!("/v2/a/b/blobs/{config_digest}"), &twice).await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "{}"), "two ranges are the whole");
}

#[tokio::test]
async fn a_blob_can_be_sent_in_chunks_and_its_state_asked_for() {
    let (_scene, running) = start();
    let content: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
    for algorithm in Algorithm::ALL {
        let digest = Digest::of(algorithm, &content);
        let reply = running.request("POST", "/v2/a/blobs/uploads/", &[], b"").await;
        assert_eq!(reply.status, 202);
        let upload = reply.header("location").unwrap().to_string();
        assert!(upload.starts_with("/v2/a/blobs/uploads/"));
        let (first, rest) = content.split_at(2_000_000);
        let (middle, last) = rest.split_at(500_000);
        let reply = running.request("PATCH", &upload, &[("content-range", "0-1999999")], first).await;
        assert_eq!((reply.status, reply.header("range")), (202, Some("0-1999999")));
        // Out of order: refused, and the state told.
        let reply = running.request("PATCH", &upload, &[("content-range", "2000001-2500000")], middle).await;
        assert_eq!((reply.status, reply.header("range")), (416, Some("0-1999999")));
        let reply = running.get(&upload, &[]).await;
        assert_eq!((reply.status, reply.header("range")), (204, Some("0-1999999")));
        let reply = running.request("PATCH", &upload, &[], middle).await;
        assert_eq!((reply.status, reply.header("range")), (202, Some("0-2499999")));
        // Not of this repository.
        assert_eq!(running.get(&upload.replace("/a/", "/b/"), &[]).await.code(), "BLOB_UPLOAD_UNKNOWN");
        let escaped = digest.to_string().replace(':', "%3A");
        let headers = [("content-range", "2500000-2999999")];
        let reply = running.request("PUT", &format!("{upload}?digest={escaped}"), &headers, last).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        assert!(running.get(&format!("/v2/a/blobs/{digest}"), &[]).await.body == content);
        // It is over.
        assert_eq!(running.get(&upload, &[]).await.status, 404);
    }
}

#[tokio::test]
async fn an_upload_that_broke_off_goes_on_where_it_was() {
    let (_scene, running) = start();
    let reply = running.request("POST", "/v2/a/blobs/uploads/", &[], b"").await;
    let upload = reply.header("location").unwrap().to_string();
    let mut client = running.connect().await;
    let head = format!("PATCH {upload} HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n01234");
    client.send(head.as_bytes()).await;
    drop(client);
    let mut range = String::new();
    for _ in 0..1000 {
        range = running.get(&upload, &[]).await.header("range").unwrap().to_string();
        if range == "0-4" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(range, "0-4");
    let digest = Digest::sha256(b"0123456789");
    // The request that broke off may still hold the upload for a moment.
    let mut reply = running.request("PUT", &format!("{upload}?digest={digest}"), &[], b"56789").await;
    while reply.status == 409 {
        reply = running.request("PUT", &format!("{upload}?digest={digest}"), &[], b"56789").await;
    }
    assert_eq!(reply.status, 201, "{}", reply.text());
}

#[tokio::test]
async fn wrong_bytes_are_never_kept() {
    let (_scene, running) = start();
    let wrong = Digest::sha256(b"other");
    let reply = running.request("POST", &format!("/v2/a/blobs/uploads/?digest={wrong}"), &[], b"bytes").await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "DIGEST_INVALID"));
    let reply = running.request("POST", "/v2/a/blobs/uploads/", &[], b"").await;
    let upload = reply.header("location").unwrap().to_string();
    let reply = running.request("PUT", &format!("{upload}?digest={wrong}"), &[], b"bytes").await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "DIGEST_INVALID"));
    for digest in [wrong, Digest::sha256(b"bytes")] {
        assert_eq!(running.get(&format!("/v2/a/blobs/{digest}"), &[]).await.code(), "BLOB_UNKNOWN");
    }
    for bad in ["", "?digest=", "?digest=md5:00", "?digest=sha256:../../etc/passwd"] {
        let reply = running.request("POST", "/v2/a/blobs/uploads/", &[], b"").await;
        let upload = reply.header("location").unwrap().to_string();
        let reply = running.request("PUT", &format!("{upload}{bad}"), &[], b"bytes").await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "DIGEST_INVALID"), "{bad}");
    }
}

#[tokio::test]
async fn a_blob_is_readable_only_where_it_was_pushed_or_mounted() {
    let (_scene, running) = start();
    let digest = push_blob(&running, "a", b"content").await;
    assert_eq!(running.get(&format!("/v2/b/blobs/{digest}"), &[]).await.code(), "BLOB_UNKNOWN");
    // From where it is not: the client is asked to upload.
    let other = Digest::sha256(b"other");
    for query in [
        format!("mount={digest}&from=c"),
        format!("mount={digest}&from=/"),
        format!("mount={other}&from=a"),
        format!("mount={other}"),
    ] {
        let reply = running.request("POST", &format!("/v2/b/blobs/uploads/?{query}"), &[], b"").await;
        assert_eq!(reply.status, 202, "{query}");
    }
    for (to, query) in [("b", format!("mount={digest}&from=a")), ("d", format!("mount={digest}"))] {
        let reply = running.request("POST", &format!("/v2/{to}/blobs/uploads/?{query}"), &[], b"").await;
        assert_eq!(reply.status, 201, "{query}");
        assert_eq!(reply.header("location"), Some(format!("/v2/{to}/blobs/{digest}").as_str()));
        assert_eq!(reply.header("docker-content-digest"), Some(digest.to_string().as_str()));
    }
    assert_eq!(running.get(&format!("/v2/d/blobs/{digest}"), &[]).await.text(), "content");
    assert_eq!(running.get(&format!("/v2/b/blobs/{digest}"), &[]).await.text(), "content");
    let reply = running.request("DELETE", &format!("/v2/b/blobs/{digest}"), &[], b"").await;
    assert_eq!(reply.status, 202);
    assert_eq!(running.get(&format!("/v2/b/blobs/{digest}"), &[]).await.status, 404);
    assert_eq!(running.request("DELETE", &format!("/v2/b/blobs/{digest}"), &[], b"").await.status, 404);
    assert_eq!(running.get(&format!("/v2/a/blobs/{digest}"), &[]).await.status, 200);
}

#[tokio::test]
async fn large_manifests_are_taken_a_few_at_a_time() {
    let (_scene, running) = start();
    push_blob(&running, "a", b"{}").await;
    let mut large = manifest(b"{}", &[]);
    large["annotations"] = json!({ "x": "y".repeat(100 << 10) });
    let bytes = serde_json::to_vec(&large).unwrap();
    let head = |tag: usize| {
        let length = bytes.len();
        format!(
            "PUT /v2/a/manifests/t{tag} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {OCI_MANIFEST}\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut clients = Vec::new();
    for tag in 0..17 {
        let mut client = Client::to(running.address).await;
        client.send(head(tag).as_bytes()).await;
        client.send(&bytes[..90 << 10]).await;
        clients.push(client);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // All turns are taken: the last one waits for one, and a small one does not.
    let mut last = clients.pop().unwrap();
    last.send(&bytes[90 << 10..]).await;
    assert!(tokio::time::timeout(Duration::from_millis(300), last.reply(false)).await.is_err());
    assert_eq!(put_manifest(&running, "a", "small", &manifest(b"{}", &[])).await.0.status, 201);
    drop(clients.pop());
    assert_eq!(last.reply(false).await.unwrap().status, 201);
    for mut client in clients {
        client.send(&bytes[90 << 10..]).await;
        assert_eq!(client.reply(false).await.unwrap().status, 201);
    }
}

#[tokio::test]
async fn manifests_are_checked_before_they_are_kept() {
    let (_scene, running) = start();
    push_blob(&running, "a", b"{}").await;
    let (reply, _) = put_manifest(&running, "a", "v1", &manifest(b"{}", &[b"missing"])).await;
    assert_eq!((reply.status, reply.code().as_str()), (404, "MANIFEST_BLOB_UNKNOWN"));
    let good = manifest(b"{}", &[]);
    let other = Digest::sha256(b"other").to_string();
    let (reply, _) = put_manifest(&running, "a", &other, &good).await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "DIGEST_INVALID"));
    for (body, status) in
        [(&b"{}"[..], 400), (b"not json", 400), (b"", 400), (br#"{"schemaVersion":1,"fsLayers":[],"history":[]}"#, 400)]
    {
        let headers = [("content-type", OCI_MANIFEST)];
        let reply = running.request("PUT", "/v2/a/manifests/v1", &headers, body).await;
        assert_eq!((reply.status, reply.code().as_str()), (status, "MANIFEST_INVALID"));
    }
    let large = vec![b' '; (4 << 20) + 1];
    let reply = running.request("PUT", "/v2/a/manifests/v1", &[("content-type", OCI_MANIFEST)], &large).await;
    assert_eq!((reply.status, reply.code().as_str()), (413, "MANIFEST_INVALID"));
    assert_eq!(running.get("/v2/a/manifests/v1", &[]).await.code(), "MANIFEST_UNKNOWN");
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": OCI_MANIFEST, "digest": Digest::sha256(&serde_json::to_vec(&good).unwrap()), "size": 10}]});
    assert_eq!(put_manifest(&running, "a", "i", &index).await.0.status, 201, "an index may be sparse");
    assert_eq!(running.get("/v2/a/manifests/i", &[]).await.header("content-type"), Some(OCI_INDEX));
}

#[tokio::test]
async fn an_index_without_all_its_children_is_kept_and_neither_shows_nor_keeps_what_others_hold() {
    let (scene, running) = start();
    for repository in ["a", "other"] {
        push_blob(&running, repository, b"{}").await;
    }
    let [here, elsewhere] = [
        manifest(b"{}", &[]),
        json!({"annotations": {"n": "1"}, "schemaVersion": 2,
        "mediaType": OCI_MANIFEST, "config": manifest(b"{}", &[])["config"], "layers": []}),
    ];
    let (_, child) = put_manifest(&running, "a", "v1", &here).await;
    let (reply, missing) = put_manifest(&running, "other", "v1", &elsewhere).await;
    assert_eq!(reply.status, 201);
    let blob = push_blob(&running, "a", b"named by nothing but the index").await;
    let child_of = |digest: &Digest| json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 10});
    let nowhere = Digest::sha256(b"nowhere");
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [child_of(&child), child_of(&missing), child_of(&nowhere), child_of(&blob)]});
    let (reply, digest) = put_manifest(&running, "a", "i", &index).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(running.get(&format!("/v2/a/manifests/{digest}"), &[]).await.body, serde_json::to_vec(&index).unwrap());
    let show = async || {
        let mut statuses = Vec::new();
        for digest in [&child, &missing, &nowhere] {
            statuses.push(running.get(&format!("/v2/a/manifests/{digest}"), &[]).await.status);
        }
        statuses
    };
    assert_eq!(show().await, [200, 404, 404], "being named gives nobody what another repository holds");
    let record = scene.store.local(&"a".parse().unwrap()).manifest_record(&digest).unwrap().unwrap();
    let mut kept = vec![child, blob];
    kept.sort();
    assert_eq!(record.refers_to, kept);
    // What the other repository lets go of is collected, though the index names it.
    let target = format!("/v2/other/manifests/{missing}");
    assert_eq!(running.request("DELETE", &target, &[], b"").await.status, 202);
    let collected = scene.store.collect(Vec::new, Duration::ZERO).unwrap();
    assert_eq!((collected.blobs, scene.store.has(&missing).unwrap()), (1, false));
    assert!([child, blob, digest].iter().all(|digest| scene.store.has(digest).unwrap()));
    // It comes at last, and stays.
    assert_eq!(put_manifest(&running, "a", "late", &elsewhere).await.0.status, 201);
    assert_eq!(scene.store.collect(Vec::new, Duration::ZERO).unwrap().blobs, 0);
    assert_eq!(show().await, [200, 200, 404]);
}

#[tokio::test]
async fn a_manifest_is_pushed_under_several_tags_and_the_digest_that_is_named() {
    let (_scene, running) = start();
    push_blob(&running, "a", b"{}").await;
    let document = manifest(b"{}", &[]);
    let bytes = serde_json::to_vec(&document).unwrap();
    let digests = Algorithm::ALL.map(|algorithm| Digest::of(algorithm, &bytes));
    let [sha256, sha512] = &digests;
    for (reference, status, tags, digest) in [
        (format!("{sha256}?tag=v1&tag=v1.0&tag=v1"), 201, Some("v1, v1.0, v1"), Some(sha256)),
        (format!("{sha512}?tag=x"), 201, Some("x"), Some(sha512)),
        (format!("y?digest={sha512}"), 201, None, Some(sha512)),
        (format!("z?tag=z2&digest={sha256}"), 201, Some("z2"), Some(sha256)),
        (format!("{sha256}?digest={sha256}"), 201, None, Some(sha256)),
        (format!("{sha256}?digest={sha512}"), 400, None, None),
        (format!("{sha256}?tag=good&tag=.bad"), 400, None, None),
        (format!("w?digest={}", Digest::sha256(b"other")), 400, None, None),
        ("w?digest=md5:00".to_string(), 400, None, None),
    ] {
        let (reply, _) = put_manifest(&running, "a", &reference, &document).await;
        assert_eq!((reply.status, reply.header("oci-tag")), (status, tags), "{reference}: {}", reply.text());
        let shown = digest.map(ToString::to_string);
        assert_eq!(reply.header("docker-content-digest"), shown.as_deref(), "{reference}");
    }
    for (tag, digest) in [("v1", sha256), ("v1.0", sha256), ("x", sha512), ("y", sha512), ("z", sha256), ("z2", sha256)]
    {
        let reply = running.get(&format!("/v2/a/manifests/{tag}"), &[]).await;
        assert_eq!(reply.header("docker-content-digest"), Some(digest.to_string().as_str()), "{tag}");
        assert_eq!(reply.body, bytes);
    }
    let listed = running.get("/v2/a/tags/list", &[]).await.json();
    assert_eq!(listed["tags"], json!(["v1", "v1.0", "x", "y", "z", "z2"]), "what was refused left nothing");
}

#[tokio::test]
async fn a_manifest_names_only_what_its_own_repository_holds() {
    let (scene, running) = start();
    push_blob(&running, "a", b"{}").await;
    let layer = push_blob(&running, "other", b"layer").await;
    let document = manifest(b"{}", &[b"layer"]);
    assert_eq!(put_manifest(&running, "a", "v1", &document).await.0.code(), "MANIFEST_BLOB_UNKNOWN");
    let path = format!("/v2/a/blobs/uploads/?mount={layer}&from=other");
    assert_eq!(running.request("POST", &path, &[], b"").await.status, 201);
    // Linked, but gone: taken away by hand, or because it was damaged.
    let hex = layer.hex();
    let file = scene.directory.path().join(format!("blobs/sha256/{}/{hex}", &hex[..2]));
    let aside = scene.directory.path().join("aside");
    std::fs::rename(&file, &aside).unwrap();
    assert_eq!(put_manifest(&running, "a", "v1", &document).await.0.code(), "MANIFEST_BLOB_UNKNOWN");
    std::fs::rename(&aside, &file).unwrap();
    assert_eq!(put_manifest(&running, "a", "v1", &document).await.0.status, 201);
}

#[tokio::test]
async fn who_sends_a_whole_body_before_looking_sees_why_it_is_refused() {
    let (_scene, running) = start();
    let session = running.request("POST", "/v2/a/blobs/uploads/", &[], b"").await;
    let session = session.header("location").unwrap().to_owned();
    // More than both sockets' buffers hold.
    let body = vec![b' '; 32 << 20];
    for (method, target, status) in [
        ("POST", "/v2/a/blobs/uploads/?digest=md5:1".to_owned(), 400),
        ("POST", "/v2/a/blobs/uploads/?digest-algorithm=md5".to_owned(), 400),
        ("PUT", format!("{session}?digest=sha256:1"), 400),
        ("PUT", "/v2/a/blobs/uploads/00000000-0000-0000-0000-000000000000".to_owned(), 404),
        ("PUT", "/v2/a/manifests/v1".to_owned(), 413),
        ("PUT", "/v2/a/manifests/v1?ns=docker.io".to_owned(), 405),
        ("DELETE", "/v2/a/blobs/uploads/".to_owned(), 405),
    ] {
        let reply = running.request(method, &target, &[], &body).await;
        assert_eq!((reply.status, reply.header("connection")), (status, Some("close")), "{method} {target}");
        let mut asking = running.connect().await;
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 33554432\r\n\r\n"
        );
        asking.send(head.as_bytes()).await;
        if status != 413 {
            assert_eq!(asking.reply(false).await.unwrap().status, status, "it is not told to go on: {method} {target}");
            assert!(asking.is_closed().await);
        }
    }
}

#[tokio::test]
async fn an_upload_says_early_which_digest_it_will_have() {
    let (_scene, running) = start();
    for (query, status) in [
        ("digest-algorithm=sha512", 202),
        ("digest-algorithm=sha256", 202),
        ("digest-algorithm=md5", 400),
        ("digest-algorithm=", 400),
    ] {
        let reply = running.request("POST", &format!("/v2/a/blobs/uploads/?{query}"), &[], b"").await;
        assert_eq!(reply.status, status, "{query}");
    }
}

#[tokio::test]
async fn tags_are_listed_in_pages_and_deleted_with_their_manifest() {
    let (_scene, running) = start();
    assert_eq!(running.get("/v2/a/tags/list", &[]).await.code(), "NAME_UNKNOWN");
    push_blob(&running, "a", b"{}").await;
    let document = manifest(b"{}", &[]);
    let mut digest = None;
    for tag in ["c", "a", "b", "latest"] {
        let (reply, of) = put_manifest(&running, "a", tag, &document).await;
        assert_eq!(reply.status, 201);
        digest = Some(of);
    }
    let reply = running.get("/v2/a/tags/list", &[]).await;
    assert_eq!(reply.json(), json!({"name": "a", "tags": ["a", "b", "c", "latest"]}));
    let reply = running.get("/v2/a/tags/list?n=2", &[]).await;
    assert_eq!(reply.json()["tags"], json!(["a", "b"]));
    assert_eq!(reply.header("link"), Some("</v2/a/tags/list?n=2&last=b>; rel=\"next\""));
    let reply = running.get("/v2/a/tags/list?n=2&last=b", &[]).await;
    assert_eq!((&reply.json()["tags"], reply.header("link")), (&json!(["c", "latest"]), None));
    assert_eq!(running.get("/v2/_catalog", &[]).await.json(), json!({"repositories": ["a"]}));
    assert_eq!(running.request("DELETE", "/v2/a/manifests/c", &[], b"").await.status, 202);
    assert_eq!(running.request("DELETE", "/v2/a/manifests/c", &[], b"").await.status, 404);
    assert_eq!(running.get("/v2/a/manifests/c", &[]).await.status, 404);
    assert_eq!(running.get("/v2/a/manifests/a", &[]).await.status, 200);
    let target = format!("/v2/a/manifests/{}", digest.unwrap());
    assert_eq!(running.request("DELETE", &target, &[], b"").await.status, 202);
    assert_eq!(running.get("/v2/a/manifests/a", &[]).await.status, 404);
    assert_eq!(running.get(&target, &[]).await.status, 404);
}

#[tokio::test]
async fn what_refers_to_a_manifest_is_listed() {
    let (_scene, running) = start();
    push_blob(&running, "a", b"{}").await;
    let subject = Digest::sha256(b"not here, which is allowed");
    let mut document = manifest(b"{}", &[]);
    document["subject"] = json!({"mediaType": OCI_MANIFEST, "digest": subject, "size": 3});
    document["artifactType"] = json!("application/x");
    document["annotations"] = json!({"k": "v"});
    let (reply, digest) = put_manifest(&running, "a", "v1", &document).await;
    assert_eq!(reply.status, 201);
    assert_eq!(reply.header("oci-subject"), Some(subject.to_string().as_str()));
    let size = serde_json::to_vec(&document).unwrap().len();
    let entry = json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size,
        "artifactType": "application/x", "annotations": {"k": "v"}});
    let target = format!("/v2/a/referrers/{subject}");
    let reply = running.get(&target, &[]).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some(OCI_INDEX)));
    assert_eq!(reply.json()["manifests"], json!([entry]));
    let reply = running.get(&format!("{target}?artifactType=application%2Fy"), &[]).await;
    assert_eq!(reply.header("oci-filters-applied"), Some("artifactType"));
    assert_eq!(reply.json()["manifests"], json!([]));
}

#[tokio::test]
async fn other_paths_methods_and_namespaces_are_refused() {
    let (_scene, running) = start();
    let digest = Digest::sha256(b"");
    for (method, target, status) in [
        ("GET", "/v2/a/blobs/sha256:00".to_string(), 400),
        ("GET", "/v2/a/manifests/.INVALID_MANIFEST_NAME".to_string(), 404),
        ("GET", "/v2/A/tags/list".to_string(), 400),
        ("GET", "/v2/%2e%2e/..%2f%2fetc/passwd".to_string(), 400),
        ("GET", "/v2/a/b".to_string(), 404),
        ("GET", "/".to_string(), 404),
        ("GET", format!("/v2/{}", "a/".repeat(3000)), 404),
        ("POST", "/v2/".to_string(), 405),
        ("PUT", "/v2/a/tags/list".to_string(), 405),
        ("PUT", format!("/v2/a/blobs/{digest}"), 405),
        ("POST", "/v2/a/manifests/v1".to_string(), 405),
        ("GET", "/v2/a/blobs/uploads/".to_string(), 405),
        ("TRACE", format!("/v2/a/blobs/{digest}"), 405),
        ("GET", "/v2/a/tags/list?n=x".to_string(), 400),
        // No upstream is configured, so none is contacted.
        ("GET", format!("/v2/a/blobs/{digest}?ns=docker.io"), 404),
        ("GET", format!("/v2/a/blobs/{digest}?ns=169.254.169.254"), 404),
        ("GET", format!("/v2/a/blobs/{digest}?ns=a&ns=b"), 400),
        ("GET", format!("/v2/a/blobs/{digest}?ns=a%0d%0ab"), 400),
        ("POST", "/v2/a/blobs/uploads/?ns=docker.io".to_string(), 405),
        ("PUT", "/v2/a/manifests/v1?ns=docker.io".to_string(), 405),
    ] {
        let reply = running.request(method, &target, &[], b"").await;
        assert_eq!(reply.status, status, "{method} {target}");
        assert!(!reply.code().is_empty(), "{method} {target}");
        assert_eq!(reply.header("allow").is_some(), status == 405, "{method} {target}");
    }
}

#[tokio::test]
async fn without_local_repositories_nothing_is_known_and_nothing_written() {
    let scene = Scene::new();
    let running = Running::start(Registry::new(scene.store.clone(), false), Limits::default());
    assert_eq!(running.get("/v2/", &[]).await.status, 200);
    assert_eq!(running.get("/v2/a/tags/list", &[]).await.status, 404);
    assert_eq!(running.request("POST", "/v2/a/blobs/uploads/", &[], b"").await.status, 405);
}
