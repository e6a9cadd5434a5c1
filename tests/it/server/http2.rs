//! HTTP/2 without TLS: begun with its preface, under the same limits; hardening row C7, with frames made by hand.

use std::{sync::Arc, time::Duration};

use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use larder::{
    metrics,
    server::{Handler, Limits, Peer, body::Body},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
};

use super::{PATIENCE, Running, Scene};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `/wait` never answers; anything else says the host and how it was asked.
struct Named(Arc<Notify>);

impl Handler for Named {
    const LISTENER: metrics::Listener = metrics::Listener::Admin;

    async fn handle(&self, request: Request<hyper::body::Incoming>, peer: Peer) -> Response<Body> {
        if request.uri().path() == "/wait" {
            self.0.notify_one();
            std::future::pending::<()>().await;
        }
        if let Ok(length) = request.uri().path()[1..].parse::<usize>() {
            return Response::new(Body::memory(vec![b'x'; length]));
        }
        let host = request.headers().get("host").map_or("", |host| host.to_str().unwrap());
        Response::new(Body::memory(format!("{:?} {host} {}", request.version(), peer.encrypted)))
    }
}

fn start(limits: Limits) -> Running {
    Running::start(Named(Arc::default()), limits)
}

async fn client(running: &Running) -> hyper::client::conn::http2::SendRequest<Empty<bytes::Bytes>> {
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    send
}

fn get(uri: String) -> Request<Empty<bytes::Bytes>> {
    Request::get(uri).body(Empty::new()).unwrap()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A line of a head, as a literal that is not to be indexed (RFC 7541, section 6.2.2).
fn line(name: &str, value: &str) -> Vec<u8> {
    assert!(name.len() < 127 && value.len() < 127);
    let mut out = vec![0, name.len() as u8];
    out.extend(name.bytes());
    out.push(value.len() as u8);
    out.extend(value.bytes());
    out
}

fn head(method: &str, path: &str) -> Vec<u8> {
    [line(":method", method), line(":scheme", "http"), line(":path", path), line(":authority", "a")].concat()
}

/// A connection whose frames are made by hand.
async fn raw(running: &Running) -> TcpStream {
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    stream
}

/// Sends until the other side ends; the types of the frames that came, each with its stream and its payload.
async fn frames(stream: TcpStream, sent: Vec<u8>) -> Vec<(u8, u32, Vec<u8>)> {
    let (mut read, mut write) = stream.into_split();
    // Whoever is cut off cannot send on: that is not this test's failure.
    let sender = tokio::spawn(async move {
        let _ = write.write_all(&sent).await;
        write
    });
    let mut bytes = Vec::new();
    let all = async {
        let mut piece = vec![0; 64 << 10];
        while let Ok(length @ 1..) = read.read(&mut piece).await {
            bytes.extend_from_slice(&piece[..length]);
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("the connection ends");
    sender.abort();
    let mut found = Vec::new();
    let mut rest = &bytes[..];
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        let Some(payload) = rest.get(9..9 + length) else { break };
        let stream = u32::from_be_bytes([rest[5], rest[6], rest[7], rest[8]]);
        found.push((rest[3], stream, payload.to_vec()));
        rest = &rest[9 + length..];
    }
    found
}

#[tokio::test]
async fn the_preface_settles_it_however_it_is_cut_and_the_handler_sees_the_host() {
    let running = start(Limits::default());
    let mut client = client(&running).await;
    let answer = client.send_request(get(format!("http://{}/x", running.address))).await.unwrap();
    let said = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(said, format!("HTTP/2.0 {} false", running.address));
    // In pieces, and what only begins like it.
    let mut cut = TcpStream::connect(running.address).await.unwrap();
    cut.set_nodelay(true).unwrap();
    for piece in [&PREFACE[..1], &PREFACE[1..3], &PREFACE[3..20], &PREFACE[20..]] {
        cut.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    cut.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    let mut first = [0; 9];
    cut.read_exact(&mut first).await.unwrap();
    assert_eq!(first[3], SETTINGS);
    let mut other = running.connect().await;
    other.send(b"PROPFIND /x HTTP/1.1\r\nhost: b\r\n\r\n").await;
    assert_eq!(other.reply(false).await.unwrap().text(), "HTTP/1.1 b false");
}

#[tokio::test]
async fn many_answers_share_a_connection() {
    let running = start(Limits::default());
    let client = client(&running).await;
    let requests = (0..300usize).map(|n| {
        let mut client = client.clone();
        let request = get(format!("http://{}/{}", running.address, n * 1000));
        tokio::spawn(async move {
            client.ready().await.unwrap();
            let answer = client.send_request(request).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), n * 1000);
        })
    });
    for request in requests.collect::<Vec<_>>() {
        request.await.unwrap();
    }
}

#[tokio::test]
async fn blobs_arrive_whole_and_one_whose_file_is_cut_ends_short() {
    let scene = Scene::new();
    let content: Vec<u8> = (0..3_000_100u32).map(|n| (n / 9) as u8).collect();
    let digest = scene.put(&content);
    let published = larder::artifact::publish::Published::default();
    published.insert("a", digest);
    let running = Running::start(larder::server::Artifacts::new(scene.store.clone(), published), Limits::default());
    let mut client = client(&running).await;
    let uri = format!("http://{}/a", running.address);
    let answer = client.send_request(get(uri.clone())).await.unwrap();
    assert!(answer.into_body().collect().await.unwrap().to_bytes() == content);
    let answer = client.send_request(get(uri)).await.unwrap();
    super::tls::cut(&scene, &digest, 1_500_000);
    assert!(answer.into_body().collect().await.is_err());
}

#[tokio::test]
async fn what_could_be_read_in_two_ways_is_refused_here_too() {
    let running = start(Limits::default());
    let request = |head: Vec<u8>, flags: u8, body: Vec<u8>| {
        [frame(HEADERS, END_HEADERS | flags, 1, &head), body, frame(GOAWAY, 0, 0, &[0; 8])].concat()
    };
    for (what, sent) in [
        (
            "transfer-encoding",
            request([head("GET", "/1"), line("transfer-encoding", "chunked")].concat(), END_STREAM, vec![]),
        ),
        ("connection", request([head("GET", "/1"), line("connection", "close")].concat(), END_STREAM, vec![])),
        (
            "length",
            request([head("POST", "/1"), line("content-length", "3")].concat(), 0, frame(DATA, END_STREAM, 1, b"four")),
        ),
        ("another host", request([head("GET", "/1"), line("host", "b")].concat(), END_STREAM, vec![])),
        ("a body", request(head("GET", "/1"), 0, frame(DATA, END_STREAM, 1, b"x"))),
    ] {
        let found = frames(raw(&running).await, sent).await;
        // Static table, index 12 and beyond: `:status` 400 is literal or indexed as 12 (RFC 7541, appendix A).
        let refused = found.iter().any(|(kind, stream, payload)| {
            *stream == 1 && (*kind == RESET || (*kind == HEADERS && payload.first() == Some(&0x8c)))
        });
        assert!(refused || found.iter().any(|(kind, ..)| *kind == GOAWAY && what == "length"), "{what}: {found:?}");
        let answered = found.iter().any(|(kind, _, payload)| *kind == HEADERS && payload.first() == Some(&0x88));
        assert!(!answered, "{what}");
    }
}

#[tokio::test]
async fn floods_end_in_goaway_and_a_closed_connection() {
    let running = start(Limits::default());
    let resets = |path: &str, count: u32| -> Vec<u8> {
        (0..count)
            .flat_map(|n| {
                let stream = 2 * n + 1;
                let mut pair = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head("GET", path));
                pair.extend(frame(RESET, 0, stream, &8u32.to_be_bytes()));
                pair
            })
            .collect()
    };
    let continued = {
        let mut sent = frame(HEADERS, END_STREAM, 1, &head("GET", "/1"));
        for n in 0..100_000 {
            sent.extend(frame(CONTINUATION, 0, 1, &line("x", &n.to_string())));
        }
        sent
    };
    // One long line is put into the table, then named again and again.
    let bomb = {
        let mut block = head("GET", "/1");
        block.extend([0x40, 1, b'x', 127, 0xd9, 0x1e]);
        block.extend(vec![b'v'; 127 + 0x59 + (0x1e << 7)]);
        block.extend(vec![0xbe; 12_000]);
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)
    };
    for (what, sent, closes) in [
        ("rapid resets", resets("/wait", 100_000), true),
        ("continuation", continued, true),
        ("a head that unfolds to 48 MB", bomb, false),
    ] {
        let stream = raw(&running).await;
        if closes {
            let found = frames(stream, sent).await;
            assert!(found.iter().any(|(kind, ..)| *kind == GOAWAY), "{what}: {:?}", found.last());
        } else {
            let mut sent = sent;
            sent.extend(frame(GOAWAY, 0, 0, &[0; 8]));
            let found = frames(stream, sent).await;
            let answered = found.iter().any(|(kind, _, payload)| *kind == HEADERS && payload.first() == Some(&0x88));
            assert!(!answered, "{what}: {found:?}");
        }
    }
    // Others are served meanwhile and after.
    assert_eq!(running.get("/2", &[]).await.status, 200);
}

#[tokio::test]
async fn time_limits_hold_for_heads_idle_connections_and_shut_windows() {
    let limits = Limits {
        head: Duration::from_millis(300),
        idle: Duration::from_millis(600),
        stall: Duration::from_millis(600),
        ..Limits::default()
    };
    let running = start(limits);
    let silent = raw(&running).await;
    let half = raw(&running).await;
    let idle = raw(&running).await;
    let shut = raw(&running).await;
    let (silent, half, idle, shut) = tokio::join!(
        frames(silent, Vec::new()),
        frames(half, frame(HEADERS, 0, 1, &head("GET", "/1"))),
        frames(idle, frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("GET", "/2"))),
        // The connection's window is 64 KiB, and nobody opens it.
        frames(shut, frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("GET", "/1000000"))),
    );
    for quiet in [silent, half] {
        assert!(!quiet.iter().any(|(kind, ..)| matches!(*kind, HEADERS | DATA)));
    }
    let bytes = |found: &[(u8, u32, Vec<u8>)]| -> usize {
        found.iter().filter(|(kind, ..)| *kind == DATA).map(|(.., payload)| payload.len()).sum()
    };
    assert_eq!(bytes(&idle), 2);
    assert_eq!(bytes(&shut), 65_535);
}

#[tokio::test]
async fn draining_lets_what_has_begun_end() {
    let waits = Arc::new(Notify::new());
    let running =
        Running::start(Named(Arc::clone(&waits)), Limits { drain: Duration::from_millis(200), ..Limits::default() });
    let mut client = client(&running).await;
    let answer = client.send_request(get(format!("http://{}/5000000", running.address))).await.unwrap();
    running.begin_stop();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 5_000_000);
    running.stopped().await;
}
