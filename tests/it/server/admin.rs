//! Contract section 5.

use std::{io::Read as _, net::SocketAddr, sync::Arc};

use larder::{
    class::Class,
    objects::{BoxFuture, Key, Listing},
    secret::Secret,
    server::{Admin, Bound, Control, Limits, Order, OrderFailure, Refusal},
};
use serde_json::{Value, json};

use super::{Running, Scene};

struct Node {
    ready: bool,
}

impl Control for Node {
    fn ready(&self) -> bool {
        self.ready
    }

    fn list(&self) -> BoxFuture<'_, Listing> {
        let items = (0..100)
            .map(|i| json!({"kind": "OCIRepository", "metadata": {"name": format!("o{i}")}}))
            .map(|item| serde_json::value::to_raw_value(&item).unwrap())
            .collect();
        Box::pin(async move { Listing { items, errors: Vec::new() } })
    }

    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Value, Refusal>> {
        let answer = match &*key.name {
            "known" => Ok(json!({"kind": key.kind.name(), "metadata": {"name": "known"}})),
            "suspended" => Err(Refusal::Suspended),
            "slow" => Err(Refusal::Timeout),
            _ => Err(Refusal::Unknown),
        };
        Box::pin(async move { answer })
    }

    fn collect(&self) -> BoxFuture<'_, Result<Value, String>> {
        Box::pin(async { Ok(json!({"blobs": 0})) })
    }

    fn order(&self, order: Order) -> BoxFuture<'_, Result<Value, OrderFailure>> {
        let answer = match order.reference.repository.as_str() {
            "known" => Ok(json!({"order": format!("{:?}", order.what)})),
            _ => Err(OrderFailure { class: Class::NotFound, message: "the upstream said 404".into() }),
        };
        Box::pin(async move { answer })
    }
}

fn start(scene: &Scene, address: &str, ready: bool, token: Option<&str>) -> Running {
    let bound = Bound::bind(address.parse().unwrap()).unwrap();
    let at = bound.address();
    let token = token.map(Secret::new);
    let admin = Admin::new(scene.store.clone(), at, token.as_ref());
    admin.started(Arc::new(Node { ready }));
    let mut running = Running::serve(bound, admin, Limits::default());
    running.address = SocketAddr::new([127, 0, 0, 1].into(), at.port());
    running
}

#[tokio::test]
async fn probes_metrics_objects_and_store_answer() {
    let scene = Scene::new();
    scene.put(b"12345");
    let running = start(&scene, "127.0.0.1:0", true, None);
    for target in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(running.get(target, &[]).await.status, 200, "{target}");
    }
    let metrics = running.get("/metrics", &[]).await;
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(metrics.text().contains("larder_served_requests_total{listener=\"admin\",outcome=\"ok\"}"));
    assert!(metrics.text().lines().any(|line| line.starts_with("larder_store_bytes{kind=\"blob\"} ")));
    let open = running.get("/metrics", &[("accept", "application/openmetrics-text")]).await;
    assert!(open.text().ends_with("# EOF\n"));
    let objects = running.get("/v1/objects", &[]).await;
    assert_eq!(objects.json()["items"].as_array().unwrap().len(), 100);
    let zipped = running.get("/v1/objects", &[("accept-encoding", "gzip")]).await;
    assert_eq!(zipped.header("content-encoding"), Some("gzip"));
    let mut unzipped = Vec::new();
    flate2::read::GzDecoder::new(&zipped.body[..]).read_to_end(&mut unzipped).unwrap();
    assert_eq!(unzipped, objects.body);
    let store = running.get("/v1/store", &[]).await.json();
    assert_eq!(store["blobs"], json!({"count": 1, "bytes": 5}));
    assert_eq!(store["files"], json!({"count": 0, "bytes": 0}));
    assert_eq!(store["physical"], json!(5));
    assert!(store["logical"].is_u64());
}

#[tokio::test]
async fn readiness_is_the_nodes() {
    let scene = Scene::new();
    let running = start(&scene, "127.0.0.1:0", false, None);
    assert_eq!(running.get("/readyz", &[]).await.status, 503);
    assert_eq!(running.get("/livez", &[]).await.status, 200);
}

#[tokio::test]
async fn a_reconcile_answers_with_the_object_or_why_not() {
    let scene = Scene::new();
    let running = start(&scene, "127.0.0.1:0", true, None);
    for (query, status) in [
        ("kind=OCIRepository&namespace=ns&name=known", 200),
        ("kind=ocirepo&namespace=ns&name=known", 200),
        ("kind=OCIRepository&namespace=ns&name=other", 404),
        ("kind=OCIRepository&namespace=ns&name=suspended", 409),
        ("kind=OCIRepository&namespace=ns&name=slow", 504),
        ("kind=Deployment&namespace=ns&name=known", 400),
        ("kind=OCIRepository&namespace=ns", 400),
        ("", 400),
    ] {
        let reply = running.request("POST", &format!("/v1/reconcile?{query}"), &[], b"").await;
        assert_eq!(reply.status, status, "{query}");
        let body = reply.json();
        if status == 200 {
            assert_eq!(body["metadata"]["name"], "known");
        } else {
            assert!(body["error"].is_string() && body["class"].is_string(), "{body}");
        }
    }
    assert_eq!(running.request("POST", "/v1/store/gc", &[], b"").await.json(), json!({"blobs": 0}));
}

#[tokio::test]
async fn an_order_for_an_image_is_passed_on() {
    let scene = Scene::new();
    let running = start(&scene, "127.0.0.1:0", true, None);
    for (method, target, status, order) in [
        ("POST", "/v1/forget?ref=ghcr.io/known:v1", 200, "Forget"),
        ("POST", "/v1/prefetch?ref=ghcr.io/known:v1", 200, "Prefetch(Own)"),
        ("POST", "/v1/pin?ref=ghcr.io/known:v1&platform=all", 200, "Pin(All)"),
        ("DELETE", "/v1/pin?ref=ghcr.io/known:v1", 200, "Unpin"),
        ("POST", "/v1/pin?ref=ghcr.io/other:v1", 404, ""),
        ("POST", "/v1/pin?ref=ghcr.io/known", 400, ""),
        ("POST", "/v1/pin", 400, ""),
    ] {
        let reply = running.request(method, target, &[], b"").await;
        assert_eq!(reply.status, status, "{method} {target}");
        if status == 200 {
            assert_eq!(reply.json()["order"], order, "{method} {target}");
        } else {
            assert!(reply.json()["error"].is_string(), "{method} {target}");
        }
    }
}

#[tokio::test]
async fn a_request_has_to_come_from_here() {
    let scene = Scene::new();
    let running = start(&scene, "127.0.0.1:0", true, None);
    let target = "/v1/reconcile?kind=OCIRepository&name=known";
    for (headers, status) in [
        (&[("host", "evil.example")][..], 403),
        (&[("host", "localhost"), ("origin", "http://evil.example")][..], 403),
        (&[("host", "localhost"), ("origin", "http://localhost")][..], 200),
        (&[("host", "127.0.0.1:9440")][..], 200),
    ] {
        assert_eq!(running.request("POST", target, headers, b"").await.status, status, "{headers:?}");
        for read in ["/v1/objects", "/v1/store"] {
            assert_eq!(running.get(read, headers).await.status, status, "{read} {headers:?}");
        }
        assert_eq!(running.get("/metrics", headers).await.status, 200, "probes and metrics are for everybody");
    }
    let evil = [("host", "evil.example")];
    for method in ["POST", "DELETE"] {
        assert_eq!(running.request(method, "/v1/pin?ref=ghcr.io/known:v1", &evil, b"").await.status, 403, "{method}");
    }
    for (method, target, allow) in [
        ("GET", target, "POST"),
        ("POST", "/v1/objects", "GET, HEAD"),
        ("DELETE", "/metrics", "GET, HEAD"),
        ("DELETE", "/v1/forget?ref=ghcr.io/known:v1", "POST"),
        ("GET", "/v1/pin?ref=ghcr.io/known:v1", "POST, DELETE"),
    ] {
        let reply = running.request(method, target, &[], b"").await;
        assert_eq!((reply.status, reply.header("allow")), (405, Some(allow)), "{method} {target}");
    }
}

#[tokio::test]
async fn off_loopback_only_probes_and_metrics_answer_without_the_token() {
    let scene = Scene::new();
    let open = start(&scene, "0.0.0.0:0", true, None);
    let guarded = start(&scene, "0.0.0.0:0", true, Some("s3cret\n"));
    for target in ["/livez", "/readyz", "/healthz", "/metrics"] {
        assert_eq!(open.get(target, &[]).await.status, 200, "{target}");
        assert_eq!(guarded.get(target, &[]).await.status, 200, "{target}");
    }
    for target in ["/v1/objects", "/v1/store", "/v1/other"] {
        assert_eq!(open.get(target, &[]).await.status, 403, "{target}");
        assert_eq!(guarded.get(target, &[]).await.status, 401, "{target}");
    }
    let token = [("authorization", "Bearer s3cret")];
    assert_eq!(guarded.get("/v1/objects", &token).await.status, 200);
    assert_eq!(guarded.get("/v1/objects", &[("authorization", "Bearer wrong")]).await.status, 401);
}
