//! TLS: what is agreed on, who gets in, and what happens to those who speak something else.

use std::{sync::Arc, time::Duration};

use larder::{
    digest::Digest,
    server::{Artifacts, Bound, Limits, Tls, tls::Files},
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{PATIENCE, Running, Scene};
use crate::support::certificates::{Ca, Identity};

/// Cuts a blob's file, as somebody with our rights could.
pub fn cut(scene: &Scene, digest: &Digest, length: u64) {
    let hex = digest.hex();
    let path = scene.directory.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
}

fn files(folder: &std::path::Path, identity: &Identity, clients: Option<&Ca>) -> Files {
    let write = |name: &str, content: &str| {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    Files {
        cert: write("cert.pem", &identity.certificate),
        key: write("key.pem", &identity.key),
        client_ca: clients.map(|ca| write("clients.pem", ca.pem())),
    }
}

struct Served {
    scene: Scene,
    running: Running,
    ca: Ca,
    content: Vec<u8>,
    digest: Digest,
}

/// A blob at `/a`, over TLS.
fn serve(clients: Option<&Ca>, limits: Limits) -> Served {
    serve_bytes(clients, limits, 2_500_001)
}

fn serve_bytes(clients: Option<&Ca>, limits: Limits, length: u32) -> Served {
    let scene = Scene::new();
    let ca = Ca::new();
    let tls = Tls::load(files(scene.directory.path(), &ca.issue(&["127.0.0.1"]), clients)).unwrap();
    let content: Vec<u8> = (0..length).map(|n| (n / 5) as u8).collect();
    let digest = scene.put(&content);
    let published = larder::artifact::publish::Published::default();
    published.insert("a", digest);
    let bound = Bound::bind("127.0.0.1:0".parse().unwrap()).unwrap().with_tls(tls);
    let running = Running::serve(bound, Artifacts::new(scene.store.clone(), published), limits);
    Served { scene, running, ca, content, digest }
}

async fn connect(
    served: &Served,
    identity: Option<&Identity>,
    versions: &[&'static rustls::SupportedProtocolVersion],
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(served.ca.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(served.running.address).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

/// All that comes until the end; an end without TLS's own is an error, with what came before it.
async fn answer(stream: &mut TlsStream<TcpStream>) -> (Vec<u8>, std::io::Result<()>) {
    let mut bytes = Vec::new();
    let result = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("an end");
    (bytes, result.map(drop))
}

fn body(answer: &[u8]) -> &[u8] {
    let head = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
    &answer[head + 4..]
}

#[tokio::test]
async fn both_versions_of_tls_and_of_http_give_the_same_bytes() {
    let served = serve(None, Limits::default());
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut stream = connect(&served, None, &[version], &[b"http/1.1"]).await.unwrap();
        stream.write_all(GET).await.unwrap();
        let (bytes, end) = answer(&mut stream).await;
        end.unwrap();
        assert!(body(&bytes) == served.content);
        let stream = connect(&served, None, &[version], &[b"h2", b"http/1.1"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut send, connection) = hyper::client::conn::http2::handshake(
            hyper_util::rt::TokioExecutor::new(),
            hyper_util::rt::TokioIo::new(stream),
        )
        .await
        .unwrap();
        tokio::spawn(connection);
        let request = http::Request::get(format!("https://{}/a", served.running.address));
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
        let answer = send.send_request(request).await.unwrap();
        let bytes = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        assert!(bytes == served.content);
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_of_the_authority_gets_no_answer() {
    let clients = Ca::new();
    let served = serve(Some(&clients), Limits::default());
    for (identity, expected) in [
        (Some(clients.issue(&["client"])), true),
        (None, false),
        (Some(Ca::new().issue(&["client"])), false),
        (Some(clients.issue_expired(&["client"])), false),
    ] {
        // With TLS 1.3 a client learns of a refusal only when it reads.
        let got = match connect(&served, identity.as_ref(), &[&rustls::version::TLS13], &[]).await {
            Err(_) => Vec::new(),
            Ok(mut stream) => {
                let _ = stream.write_all(GET).await;
                answer(&mut stream).await.0
            }
        };
        assert_eq!(!got.is_empty(), expected);
    }
}

#[tokio::test]
async fn a_blob_whose_file_is_cut_ends_its_answer_and_nothing_else() {
    // More than the sockets' buffers take: what is not yet copied when the file is cut cannot be sent.
    let served = serve_bytes(None, Limits::default(), 32 << 20);
    let mut stream = connect(&served, None, &[&rustls::version::TLS13], &[]).await.unwrap();
    stream.write_all(GET).await.unwrap();
    let mut first = vec![0; 1000];
    stream.read_exact(&mut first).await.unwrap();
    cut(&served.scene, &served.digest, 100_000);
    let (rest, end) = answer(&mut stream).await;
    // Without the end that TLS has of its own: nobody takes this for the whole.
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    let whole = [first, rest].concat();
    let sent = body(&whole);
    assert!(sent.len() < served.content.len() && sent == &served.content[..sent.len()]);
    // The next one finds the file wrong before its first byte, and the daemon lives.
    let mut stream = connect(&served, None, &[&rustls::version::TLS13], &[]).await.unwrap();
    stream.write_all(GET).await.unwrap();
    assert!(answer(&mut stream).await.0.starts_with(b"HTTP/1.1 503 "));
}

#[tokio::test]
async fn who_speaks_http_to_it_is_told_so_and_who_speaks_tls_to_a_plain_port_gets_no_tls() {
    let served = serve(None, Limits::default());
    let mut plain = served.running.connect().await;
    plain.send(b"GET /v2/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut said = String::new();
    tokio::time::timeout(PATIENCE, plain.stream.read_to_string(&mut said)).await.expect("an end").unwrap();
    assert!(said.starts_with("HTTP/1.0 400 Bad Request\r\n"), "{said}");
    assert!(said.ends_with("\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"), "{said}");

    let plain = Running::start(Artifacts::new(served.scene.store.clone(), Default::default()), Limits::default());
    let other = Served { running: plain, ..serve(None, Limits::default()) };
    assert!(connect(&other, None, &[&rustls::version::TLS13], &[]).await.is_err());
}

#[tokio::test]
async fn slow_handshakes_end_with_the_limit_of_a_head_and_hold_nobody_up() {
    let limits = Limits { head: Duration::from_millis(300), ..Limits::default() };
    let served = serve(None, limits);
    let mut slow = Vec::new();
    for begin in [&b""[..], &[22], &[22, 3, 1, 2, 0, 1, 0, 1, 252]] {
        let mut client = served.running.connect().await;
        client.send(begin).await;
        slow.push(client);
    }
    let mut stream = connect(&served, None, &[&rustls::version::TLS13], &[]).await.unwrap();
    stream.write_all(GET).await.unwrap();
    assert!(body(&answer(&mut stream).await.0) == served.content);
    for client in &mut slow {
        assert!(client.is_closed().await);
    }
}
