//! What a client can do to a connection: hardening rows C4 and C5, smuggling, limits, draining.

use std::time::Duration;

use http::{Request, Response};
use larder::{
    metrics,
    server::{Handler, Limits, Peer, body::Body},
};
use tokio::sync::Notify;

use super::{Client, Running};

/// Answers every path with so many bytes as it says, `/wait` only when told to.
struct Echo {
    begun: std::sync::Arc<Notify>,
    go_on: std::sync::Arc<Notify>,
}

impl Handler for Echo {
    const LISTENER: metrics::Listener = metrics::Listener::Admin;

    async fn handle(&self, request: Request<hyper::body::Incoming>, _: Peer) -> Response<Body> {
        if request.uri().path() == "/wait" {
            self.begun.notify_one();
            self.go_on.notified().await;
        }
        let length: usize = request.uri().path()[1..].parse().unwrap_or(2);
        Response::new(Body::memory(vec![b'x'; length]))
    }
}

fn echo() -> Echo {
    Echo { begun: Default::default(), go_on: Default::default() }
}

fn quick() -> Limits {
    Limits {
        head: Duration::from_millis(300),
        idle: Duration::from_millis(600),
        stall: Duration::from_millis(600),
        ..Limits::default()
    }
}

const PLAIN: &[u8] = b"GET /2 HTTP/1.1\r\nhost: a\r\n\r\n";

async fn start(limits: Limits) -> Running {
    Running::start(echo(), limits)
}

#[tokio::test]
async fn requests_follow_one_another_on_a_connection_also_when_sent_at_once() {
    let running = start(Limits::default()).await;
    let mut client = running.connect().await;
    client.send(&PLAIN.repeat(3)).await;
    for _ in 0..3 {
        assert_eq!(client.reply(false).await.unwrap().text(), "xx");
    }
}

#[tokio::test]
async fn what_could_be_read_in_two_ways_is_refused() {
    let running = start(Limits::default()).await;
    for (head, expected) in [
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3, 4\r\n\r\nabcd", 400),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc", 400),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        ("GET / HTTP/1.1\r\nhost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", 400),
        ("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
        ("no http at all\r\n\r\n", 400),
    ] {
        let mut client = running.connect().await;
        client.send(head.as_bytes()).await;
        client.send(PLAIN).await;
        assert_eq!(client.reply(false).await.unwrap().status, expected, "{head:?}");
        // What follows is not taken for a request.
        assert!(client.reply(false).await.is_none(), "{head:?}");
    }
}

#[tokio::test]
async fn a_length_and_an_encoding_together_end_the_connection() {
    let running = start(Limits::default()).await;
    for head in [
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    ] {
        let mut client = running.connect().await;
        client.send(head.as_bytes()).await;
        client.send(PLAIN).await;
        // One answer (RFC 9112, section 6.1), and no second one to whatever was meant to be smuggled.
        assert!(client.reply(false).await.is_some(), "{head:?}");
        assert!(client.reply(false).await.is_none(), "{head:?}");
    }
}

#[tokio::test]
async fn heads_are_bounded() {
    let running = start(Limits::default()).await;
    let lines = |count: usize, length: usize| -> String {
        (0..count).map(|i| format!("x{i}: {}\r\n", "v".repeat(length))).collect()
    };
    for (head, expected) in [
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", lines(90, 100)), 200),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", lines(100, 1)), 431),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", lines(1, 9000)), 431),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", lines(9, 8000)), 431),
        (format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(9000)), 414),
    ] {
        let mut client = running.connect().await;
        client.send(head.as_bytes()).await;
        let status = client.reply(false).await.map(|reply| reply.status);
        assert_eq!(status, Some(expected), "{}…", &head[..60]);
    }
}

#[tokio::test]
async fn a_registry_refuses_in_the_words_of_its_api() {
    let disk = super::Scene::new();
    let running = Running::start(larder::server::Registry::new(disk.store.clone(), true), Limits::default());
    for (head, expected) in [
        (format!("GET /v2/ HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "v".repeat(9000)), 431),
        (format!("GET /v2/{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(9000)), 414),
        ("GET /v2/ HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".into(), 400),
        ("GET /v2/ HTTP/1.1\r\n\r\n".into(), 400),
    ] {
        let mut client = running.connect().await;
        client.send(head.as_bytes()).await;
        let reply = client.reply(false).await.expect("an answer");
        assert_eq!((reply.status, reply.code().as_str()), (expected, "UNSUPPORTED"), "{}", &head[..20]);
        assert_eq!(reply.header("content-type"), Some("application/json"));
    }
}

#[tokio::test]
async fn clients_that_send_nothing_drip_or_stay_idle_are_closed() {
    let running = start(quick()).await;
    let mut silent = running.connect().await;
    let mut dripping = running.connect().await;
    let mut idle = running.connect().await;
    idle.send(PLAIN).await;
    assert_eq!(idle.reply(false).await.unwrap().status, 200);
    let drip = async {
        loop {
            if tokio::io::AsyncWriteExt::write_all(&mut dripping.stream, b"x").await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(super::PATIENCE, drip).await.expect("a dripping head is cut off");
    assert!(silent.is_closed().await);
    assert!(idle.is_closed().await);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_closed_while_others_are_served() {
    let running = start(quick()).await;
    let mut stalled = running.connect().await;
    stalled.send(b"GET /67108864 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    // Only the server's end of this connection: it goes from waiting for the client to gone.
    let mut other = running.connect().await;
    let mut end = None;
    for _ in 0..2000 {
        assert_eq!(other.request("GET", "/2", &[], b"").await.status, 200);
        // A peek sees the reset behind unread bytes once the server has closed.
        if let Ok(Some(error)) = stalled.stream.take_error() {
            end = Some(error);
            break;
        }
        if sockets_to(&running, &stalled) == 0 {
            end = Some(std::io::ErrorKind::ConnectionReset.into());
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(end.is_some(), "the stalled connection is still held");
    assert!(stalled.reply(false).await.is_none(), "the answer must not be complete");
}

/// How many established sockets the server has towards this client, as the kernel lists them.
fn sockets_to(running: &Running, client: &Client) -> usize {
    let local = format!(":{:04X} ", running.address.port());
    let remote = format!(":{:04X} 01 ", client.stream.local_addr().unwrap().port());
    std::fs::read_to_string("/proc/net/tcp")
        .unwrap()
        .lines()
        .filter(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (own, other, state) = (fields.next(), fields.next(), fields.next());
            own.is_some_and(|a| format!("{a} ").ends_with(&local))
                && other.zip(state).is_some_and(|(a, s)| format!("{a} {s} ").ends_with(&remote))
        })
        .count()
}

#[tokio::test]
async fn past_the_cap_connections_wait_and_idle_ones_make_room() {
    let running = start(Limits { connections: 2, ..Limits::default() }).await;
    let mut first = running.connect().await;
    let mut second = running.connect().await;
    for client in [&mut first, &mut second] {
        assert_eq!(client.request("GET", "/2", &[], b"").await.status, 200);
    }
    let mut third = running.connect().await;
    assert_eq!(third.request("GET", "/2", &[], b"").await.status, 200);
}

#[tokio::test]
async fn draining_finishes_what_has_begun_and_takes_nothing_new() {
    let echo = echo();
    let (begun, go_on) = (echo.begun.clone(), echo.go_on.clone());
    let running = Running::start(echo, Limits::default());
    let address = running.address;
    let mut busy = running.connect().await;
    let mut idle = running.connect().await;
    assert_eq!(idle.request("GET", "/2", &[], b"").await.status, 200);
    busy.send(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await;
    begun.notified().await;
    running.begin_stop();
    assert!(idle.is_closed().await);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    go_on.notify_one();
    assert_eq!(busy.reply(false).await.unwrap().text(), "xx");
    assert!(busy.is_closed().await);
    running.stopped().await;
}

#[tokio::test]
async fn draining_ends_at_its_deadline() {
    let echo = echo();
    let begun = echo.begun.clone();
    let running = Running::start(echo, Limits { drain: Duration::from_millis(100), ..Limits::default() });
    let mut busy = running.connect().await;
    busy.send(b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await;
    begun.notified().await;
    running.stopped().await;
    assert!(busy.is_closed().await);
}
