//! The C rows that the artifact and the registry listener have today.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use serde_json::json;

use super::{
    upstream::Upstream,
    world::{NAMESPACE, World, object},
};
use crate::support::{
    fixtures::files,
    http,
    larder::{fetch_artifact, text},
};

/// Sends raw bytes and gives the status of the answer, 0 if the connection just ends, with all that came.
fn raw(listener: &str, request: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(listener.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), answer)
}

fn ask(listener: &str, method: &str, target: &str) -> (u16, String) {
    let host = listener.trim_start_matches("http://");
    raw(listener, format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
}

#[test]
fn no_path_and_no_method_reach_what_is_not_published() {
    let world = World::start(&[]);
    let up = Upstream::start();
    up.push_files(&files(&[("a", "b")]));
    world.apply(&object("OCIRepository", NAMESPACE, "app", &up.url(), &json!({})));
    let ready = world.larder.wait_ready("OCIRepository", NAMESPACE, "app");
    let path = format!("/{}", text(&ready, "/status/artifact/path"));
    let blobs = world.blobs();
    let long = format!("/{}", "a/".repeat(3000));
    let longer = format!("/{}", "a".repeat(100_000));
    let folder = path.rsplit_once('/').unwrap().0.to_owned();
    let odd = [
        "/%2e%2e/..%2f%2fetc/passwd".to_owned(),
        "/../../etc/passwd".into(),
        "//etc/passwd".into(),
        "/%00".into(),
        format!("{path}%00"),
        format!("/.{path}"),
        format!("{folder}/../../rows/app/../../../format"),
        format!("/{path}"),
        format!("{path}/"),
        format!("{folder}/"),
        folder.clone(),
        "/ocirepository/".into(),
        "/format".into(),
        "/grants/key".into(),
        "/objects/ocirepository/rows/app.json".into(),
        format!("/blobs/{}", text(&ready, "/status/artifact/digest")),
        long,
        "/\u{e9}".into(),
        "/a b".into(),
        "/%zz".into(),
        "*".into(),
        "http://169.254.169.254/latest".into(),
    ];
    let registry = [
        "/v2/../etc/passwd",
        "/v2/a/blobs/sha256:../../../format",
        "/v2/a/manifests/..%2f..%2fformat",
        "/v2/%2e%2e/manifests/x",
        "/v2/a/blobs/sha256:ABC",
        "/v2//manifests/x",
        "/v2/_larder/x",
        "/v2/A/manifests/latest",
        "/v2/a/manifests/%00",
    ];
    let artifacts = odd.iter().map(|target| (&world.larder.artifacts, target.as_str()));
    let targets = artifacts.chain(registry.iter().map(|target| (&world.larder.registry, *target)));
    for (listener, target) in targets {
        for method in ["GET", "HEAD"] {
            let (status, answer) = ask(listener, method, target);
            let shown = &target[..target.floor_char_boundary(60)];
            assert!([400, 404].contains(&status), "C1: {method} {shown}: {answer}");
            assert!(!answer.contains("root:") && !answer.contains("app.json"), "C1: {shown}: {answer}");
        }
    }
    for listener in [&world.larder.artifacts, &world.larder.registry] {
        let (status, answer) = ask(listener, "GET", &longer);
        assert!([400, 404, 414, 431].contains(&status), "C1: {}", &answer[..answer.len().min(200)]);
    }
    for method in ["PUT", "POST", "DELETE", "TRACE", "PATCH", "CONNECT", "OPTIONS"] {
        let (status, answer) = ask(&world.larder.artifacts, method, &path);
        // CONNECT has no path as its target.
        assert!(status == 405 || (method == "CONNECT" && status == 400), "C2: {method}: {answer}");
    }
    let (status, answer) = ask(&world.larder.artifacts, "GET", "/");
    assert_eq!(status, 200);
    assert!(!answer.contains("ocirepository"), "C2: a listing: {answer}");

    // C11: no upstream is configured, so no ns= leads anywhere.
    let honeypot = &world.honeypot.address;
    for query in [
        "ns=unknown.example".to_owned(),
        "ns=docker.io&ns=ghcr.io".into(),
        "ns=a%0d%0aHost:%20b".into(),
        format!("ns={honeypot}"),
        "ns=169.254.169.254".into(),
        "ns=".into(),
        "ns=%00".into(),
    ] {
        for target in [
            format!("/v2/team/app/manifests/latest?{query}"),
            format!("/v2/team/app/blobs/sha256:{}?{query}", "a".repeat(64)),
        ] {
            let (status, answer) = ask(&world.larder.registry, "GET", &target);
            assert!([400, 404].contains(&status), "C11: {target}: {answer}");
        }
        let (status, answer) = ask(&world.larder.registry, "POST", &format!("/v2/team/app/blobs/uploads/?{query}"));
        assert!([400, 404, 405].contains(&status), "C11: a write with {query}: {answer}");
    }
    let spoofed =
        format!("GET /v2/team/app/manifests/latest HTTP/1.1\r\nHost: {honeypot}\r\nConnection: close\r\n\r\n");
    assert_eq!(raw(&world.larder.registry, spoofed.as_bytes()).0, 404, "C11");
    assert_eq!(world.blobs(), blobs, "U2");
    assert_eq!(fetch_artifact(&ready).len(), ready["status"]["artifact"]["size"].as_u64().unwrap() as usize);
    assert!(
        world.larder.metric("larder_served_requests_total", &[("listener", "artifacts"), ("outcome", "client")]) > 0
    );
    world.finish();
}

#[test]
fn clients_that_only_hold_connections_hold_up_nobody() {
    // C4 and C5 in their first second; that they are closed in the end is in tests/it/server/connections.rs.
    let world = World::start(&[]);
    let up = Upstream::start();
    up.push_files(&files(&[("large", &"0123456789abcdef".repeat(1 << 16))]));
    world.apply(&object("OCIRepository", NAMESPACE, "app", &up.url(), &json!({})));
    let ready = world.larder.wait_ready("OCIRepository", NAMESPACE, "app");
    let path = format!("/{}", text(&ready, "/status/artifact/path"));
    let mut held = Vec::new();
    for listener in [&world.larder.artifacts, &world.larder.registry] {
        let address = listener.trim_start_matches("http://");
        for n in 0..200 {
            let mut stream = TcpStream::connect(address).unwrap();
            match n % 3 {
                0 => {}
                1 => stream.write_all(b"GET ").unwrap(),
                _ => stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).unwrap(),
            }
            held.push(stream);
        }
    }
    for _ in 0..5 {
        fetch_artifact(&ready);
        assert_eq!(http::get(&format!("{}/v2/", world.larder.registry)).status, 200);
    }
    world.canary_reconciles();
    drop(held);
    world.finish();
}
