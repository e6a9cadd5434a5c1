//! Contract section 4, and hardening rows C1, C2, D5.

use larder::{artifact::publish::Published, digest::Digest, server::Artifacts, server::Limits};

use super::{Running, Scene};

struct Served {
    scene: Scene,
    published: Published,
    running: Running,
    path: String,
    digest: Digest,
}

const CONTENT: &[u8] = b"0123456789";

async fn served(content: &[u8]) -> Served {
    let scene = Scene::new();
    let digest = scene.put(content);
    let path = format!("ocirepository/default/app/{}.tar.gz", digest.hex());
    let published = Published::default();
    published.insert(&path, digest);
    published.set_latest(&path);
    let running = Running::start(Artifacts::new(scene.store.clone(), published.clone()), Limits::default());
    Served { scene, published, running, path: format!("/{path}"), digest }
}

#[tokio::test]
async fn an_artifact_comes_with_the_contracts_headers() {
    let s = served(CONTENT).await;
    let etag = format!("\"{}\"", s.digest);
    let mut client = s.running.connect().await;
    for (method, accept) in [("GET", "identity"), ("GET", "gzip"), ("HEAD", "gzip")] {
        let reply = client.request(method, &s.path, &[("accept-encoding", accept)], b"").await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.body, if method == "GET" { CONTENT } else { b"" });
        for (name, value) in [
            ("content-type", Some("application/gzip")),
            ("content-length", Some("10")),
            ("etag", Some(etag.as_str())),
            ("cache-control", Some("public, max-age=31536000, immutable")),
            ("accept-ranges", Some("bytes")),
            ("content-encoding", None),
            ("transfer-encoding", None),
        ] {
            assert_eq!(reply.header(name), value, "{name}");
        }
        assert!(reply.header("date").is_some());
    }
}

#[tokio::test]
async fn ranges_and_conditions_follow_the_rfc() {
    let s = served(CONTENT).await;
    let etag = format!("\"{}\"", s.digest);
    let weak = format!("W/{etag}");
    let mut client = s.running.connect().await;
    /// Headers, status, body, `Content-Range`.
    type Case<'a> = (&'a [(&'a str, &'a str)], u16, &'a str, Option<&'a str>);
    let cases: &[Case<'_>] = &[
        (&[("range", "bytes=2-4")], 206, "234", Some("bytes 2-4/10")),
        (&[("range", "bytes=8-")], 206, "89", Some("bytes 8-9/10")),
        (&[("range", "bytes=-3")], 206, "789", Some("bytes 7-9/10")),
        (&[("range", "bytes=5-999")], 206, "56789", Some("bytes 5-9/10")),
        (&[("range", "bytes=0-1,4-5")], 200, "0123456789", None),
        (&[("range", "lines=0-1")], 200, "0123456789", None),
        (&[("range", "bytes=2-4"), ("if-range", &etag)], 206, "234", Some("bytes 2-4/10")),
        (&[("range", "bytes=2-4"), ("if-range", &weak)], 200, "0123456789", None),
        (&[("range", "bytes=2-4"), ("if-range", "\"other\"")], 200, "0123456789", None),
        (&[("if-none-match", &etag)], 304, "", None),
        (&[("if-none-match", &weak)], 304, "", None),
        (&[("if-none-match", "*")], 304, "", None),
        (&[("if-none-match", "\"other\"")], 200, "0123456789", None),
        (&[("if-none-match", &etag), ("range", "bytes=2-4")], 304, "", None),
        (&[("if-match", &etag)], 200, "0123456789", None),
    ];
    for (headers, status, body, range) in cases {
        let reply = client.request("GET", &s.path, headers, b"").await;
        assert_eq!(reply.status, *status, "{headers:?}");
        assert_eq!(reply.text(), *body, "{headers:?}");
        assert_eq!(reply.header("content-range"), *range, "{headers:?}");
        assert_eq!(reply.header("etag"), Some(etag.as_str()), "{headers:?}");
    }
    for range in ["bytes=10-", "bytes=500-0", "bytes=-0"] {
        let reply = client.request("GET", &s.path, &[("range", range)], b"").await;
        assert_eq!((reply.status, reply.header("content-range")), (416, Some("bytes */10")), "{range}");
    }
    let reply = client.request("GET", &s.path, &[("if-match", "\"other\"")], b"").await;
    assert_eq!(reply.status, 412);
    let reply = client.request("HEAD", &s.path, &[("range", "bytes=2-4")], b"").await;
    assert_eq!((reply.status, reply.header("content-length")), (200, Some("10")));
}

#[tokio::test]
async fn latest_leads_to_the_current_one_and_is_not_cached() {
    let s = served(CONTENT).await;
    let reply = s.running.get("/ocirepository/default/app/latest.tar.gz", &[]).await;
    assert_eq!(reply.status, 302);
    assert_eq!(reply.header("location"), s.path.rsplit('/').next());
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_eq!(s.running.get("/ocirepository/default/other/latest.tar.gz", &[]).await.status, 404);
}

#[tokio::test]
async fn nothing_else_can_be_reached() {
    let s = served(CONTENT).await;
    assert_eq!(s.running.get("/", &[]).await.status, 200);
    let hex = s.digest.hex();
    for target in [
        "/%2e%2e/..%2f%2fetc/passwd".to_string(),
        "/../../etc/passwd".to_string(),
        format!("{}%00", s.path),
        format!("/{}", s.path),
        format!("{}/", s.path),
        s.path.replace("/default/", "/default//"),
        s.path.replace("/default/", "/./default/"),
        "/ocirepository".to_string(),
        "/ocirepository/default/app/".to_string(),
        format!("/blobs/sha256/{}/{hex}", &hex[..2]),
        "/format".to_string(),
        format!("/{}", "a".repeat(6000)),
    ] {
        let reply = s.running.get(&target, &[]).await;
        assert!(matches!(reply.status, 400 | 404), "{target}: {}", reply.status);
        assert!(!reply.text().contains("tar.gz"), "{target}: {}", reply.text());
    }
    for method in ["PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
        for target in [s.path.as_str(), "/", "/other"] {
            let reply = s.running.request(method, target, &[], b"").await;
            assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")), "{method} {target}");
        }
    }
}

#[tokio::test]
async fn known_but_not_here_is_503_and_unknown_is_404() {
    let s = served(CONTENT).await;
    s.published.insert("ocirepository/default/gone/x.tar.gz", Digest::sha256(b"nowhere"));
    let reply = s.running.get("/ocirepository/default/gone/x.tar.gz", &[]).await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")));
    s.published.remove("ocirepository/default/gone/x.tar.gz");
    assert_eq!(s.running.get("/ocirepository/default/gone/x.tar.gz", &[]).await.status, 404);
}

fn large() -> Vec<u8> {
    (0..24u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_artifact_arrives_byte_for_byte_whole_and_in_part() {
    let content = large();
    let s = served(&content).await;
    let mut client = s.running.connect().await;
    let reply = client.request("GET", &s.path, &[], b"").await;
    assert_eq!(Digest::sha256(&reply.body), s.digest);
    let reply = client.request("GET", &s.path, &[("range", "bytes=1048575-20000001")], b"").await;
    assert_eq!(reply.status, 206);
    assert!(reply.body == content[1_048_575..=20_000_001]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_while_an_answer_is_in_flight_ends_it_short_and_nothing_else() {
    let content = large();
    let s = served(&content).await;
    let small = s.scene.put(b"small");
    s.published.insert("ocirepository/default/small/x.tar.gz", small);
    let mut client = s.running.connect().await;
    client.send(format!("GET {} HTTP/1.1\r\nhost: localhost\r\n\r\n", s.path).as_bytes()).await;
    // The answer has begun, and fills the socket.
    client.stream.readable().await.unwrap();
    let hex = s.digest.hex();
    let file = s.scene.directory.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
    let mut permissions = std::fs::metadata(&file).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    std::fs::set_permissions(&file, permissions).unwrap();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(0).unwrap();
    assert!(client.reply(false).await.is_none(), "the answer must not look complete");
    assert_eq!(s.running.get("/ocirepository/default/small/x.tar.gz", &[]).await.text(), "small");
    // The next request finds the damage before the first byte.
    assert_eq!(s.running.get(&s.path, &[]).await.status, 503);
}
