//! The client of upstream registries against a registry that misbehaves as told (the R rows, M1, M7, O4, O12).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use larder::{
    class::Class,
    digest::Digest,
    oci::{Descriptor, Repository, Selector},
    registry::{
        Budget, Client, Config, Credentials, Endpoint, Proxy, ProxyEnvironment, RegistryError, Sink, SinkError,
        Transport,
    },
    secret::Secret,
};

use crate::support::{
    certificates::{self, Ca},
    proxy::TestProxy,
    registry::{Auth, Fault, Kind, Options, ScriptedRegistry, Seen, of},
};

const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;
const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

fn quick() -> Config {
    Config { retry_base: Duration::from_millis(1), ..Config::default() }
}

fn client() -> Client {
    Client::new(quick()).unwrap()
}

fn endpoint(authority: &str) -> Endpoint {
    Endpoint {
        registry: authority.parse().unwrap(),
        transport: Transport { plain_http: true, allow_loopback: true, ..Transport::default() },
        credentials: Credentials::Anonymous,
    }
}

fn at(registry: &ScriptedRegistry) -> Endpoint {
    endpoint(&registry.authority())
}

fn with_user(registry: &ScriptedRegistry, user: &str, password: &str) -> Endpoint {
    let credentials = Credentials::Basic { username: user.to_owned(), password: Secret::new(password) };
    Endpoint { credentials, ..at(registry) }
}

fn budget() -> Budget {
    Budget::within(Duration::from_secs(20))
}

fn repository() -> Repository {
    "team/app".parse().unwrap()
}

fn tag() -> Selector {
    Selector::Tag("v1".parse().unwrap())
}

fn descriptor(digest: Digest, size: usize) -> Descriptor {
    Descriptor {
        media_type: "application/octet-stream".to_owned(),
        digest,
        size: size as u64,
        platform: None,
        artifact_type: None,
        annotations: Default::default(),
    }
}

#[derive(Default)]
struct Collect(Vec<u8>);

impl Sink for Collect {
    async fn write(&mut self, data: Bytes) -> Result<(), SinkError> {
        self.0.extend_from_slice(&data);
        Ok(())
    }
}

async fn head(client: &Client, at: &Endpoint) -> Result<Digest, RegistryError> {
    client.resolve(at, &repository(), &tag(), budget()).await.map(|resolved| resolved.digest)
}

async fn get(client: &Client, at: &Endpoint) -> Result<Bytes, RegistryError> {
    client.manifest(at, &repository(), &tag(), budget()).await.map(|manifest| manifest.bytes)
}

async fn blob(client: &Client, at: &Endpoint, descriptor: &Descriptor) -> (Result<(), RegistryError>, Vec<u8>) {
    let mut sink = Collect::default();
    let result = client.blob(at, &repository(), descriptor, &mut sink, budget()).await;
    (result, sink.0)
}

async fn registry() -> ScriptedRegistry {
    with_options(Options::default()).await
}

async fn with_options(options: Options) -> ScriptedRegistry {
    let registry = ScriptedRegistry::start_with(options).await;
    registry.add_manifest("team/app", Some("v1"), MEDIA_TYPE, MANIFEST);
    registry
}

fn tokens(user: Option<(&'static str, &'static str)>) -> Auth {
    Auth::Token { user, realm: None, expires_in: None }
}

/// Some bytes in which every offset can be told from its neighbours.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn class<T: std::fmt::Debug>(result: Result<T, RegistryError>) -> Class {
    result.unwrap_err().class()
}

/// The error with its sources, as a log shows it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[tokio::test]
async fn reads_manifests_blobs_and_tags_over_one_connection_without_a_ping() {
    let registry = registry().await;
    let content = bytes(100_000);
    let digest = registry.add_blob("team/app", &content);
    let (client, at) = (client(), at(&registry));
    assert_eq!(head(&client, &at).await.unwrap(), Digest::sha256(MANIFEST));
    let manifest = client.manifest(&at, &repository(), &tag(), budget()).await.unwrap();
    assert_eq!(manifest.bytes, MANIFEST);
    assert_eq!(manifest.digest, Digest::sha256(MANIFEST));
    assert_eq!(manifest.content_type.as_deref(), Some(MEDIA_TYPE));
    let (result, got) = blob(&client, &at, &descriptor(digest, content.len())).await;
    result.unwrap();
    assert!(got == content);
    let tags = client.tags(&at, &repository(), budget()).await.unwrap();
    assert_eq!(tags, ["v1".parse().unwrap()]);
    assert_eq!((registry.requests(), registry.count(Kind::Ping), registry.connections()), (4, 0, 1));
    let seen = registry.seen();
    assert!(seen.iter().all(|s| s.connection == 0));
    assert!(seen.iter().all(|s| s.header("user-agent").is_some_and(|v| v.starts_with("larder/"))));
    assert!(seen.iter().all(|s| s.header("accept-encoding") == Some("identity")));
}

#[tokio::test]
async fn a_closed_port_is_net_and_quick() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let authority = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = head(&Client::new(Config::default()).unwrap(), &endpoint(&authority)).await.unwrap_err();
    assert_eq!(error.class(), Class::Net);
    assert!(!error.is_authentication_setup());
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn silence_ends_with_the_budget() {
    let registry = registry().await;
    registry.fault(|_| true, 1, Fault::Hang);
    let deadline = Instant::now() + Duration::from_millis(200);
    let result = client().resolve(&at(&registry), &repository(), &tag(), Budget::until(deadline)).await;
    assert_eq!(class(result), Class::Net);
    assert_eq!(registry.requests(), 1);
}

#[tokio::test]
async fn a_body_that_stalls_is_resumed_at_most_three_times() {
    let registry = registry().await;
    let content = bytes(5000);
    let descriptor = descriptor(registry.add_blob("team/app", &content), content.len());
    let client = Client::new(Config { slow_period: Duration::from_millis(50), ..quick() }).unwrap();
    registry.fault(of(Kind::BlobGet), 3, Fault::Stall { after: 1000 });
    let (result, got) = blob(&client, &at(&registry), &descriptor).await;
    result.unwrap();
    assert!(got == content);
    let ranges: Vec<_> = registry.seen_of(Kind::BlobGet).iter().map(|s| s.header("range").map(str::to_owned)).collect();
    let range = |from: usize| Some(format!("bytes={from}-"));
    assert_eq!(ranges, [None, range(1000), range(2000), range(3000)]);

    registry.fault(of(Kind::BlobGet), 9, Fault::Stall { after: 100 });
    let (result, _) = blob(&client, &at(&registry), &descriptor).await;
    assert_eq!(class(result), Class::Net);
    assert_eq!(registry.count(Kind::BlobGet), 8);
}

#[tokio::test]
async fn a_cut_body_is_resumed_to_the_exact_bytes() {
    for (name, second) in [
        ("206", None),
        ("200 in spite of Range", Some(Fault::IgnoreRange)),
        ("206, cut again", Some(Fault::Cut { after: 10, reset: false })),
        ("503, then 206", Some(Fault::status(503))),
    ] {
        for reset in [true, false] {
            let registry = registry().await;
            let content = bytes(200_000);
            let descriptor = descriptor(registry.add_blob("team/app", &content), content.len());
            registry.fault(of(Kind::BlobGet), 1, Fault::Cut { after: 100_000, reset });
            if let Some(second) = second.clone() {
                registry.fault(of(Kind::BlobGet), 1, second);
            }
            let client = client();
            let (result, got) = blob(&client, &at(&registry), &descriptor).await;
            result.unwrap();
            assert!(got == content, "{name} {reset}");
            assert_eq!(client.traffic().received(), 200_000, "{name} {reset}: each byte counts once");
        }
    }
}

#[tokio::test]
async fn a_resume_with_another_range_is_refused() {
    let registry = registry().await;
    let content = bytes(1000);
    let descriptor = descriptor(registry.add_blob("team/app", &content), content.len());
    registry.fault(of(Kind::BlobGet), 1, Fault::Cut { after: 500, reset: false });
    registry.fault(of(Kind::BlobGet), 1, Fault::Header("Content-Range", Some("bytes 400-999/1000".to_owned())));
    let (result, got) = blob(&client(), &at(&registry), &descriptor).await;
    assert_eq!(class(result), Class::Proto);
    assert!(content.starts_with(&got));
}

#[tokio::test]
async fn server_errors_are_tried_four_times() {
    for status in [408, 500, 502, 503, 504] {
        let registry = registry().await;
        registry.fault(|_| true, 3, Fault::status(status));
        get(&client(), &at(&registry)).await.unwrap();
        assert_eq!(registry.requests(), 4, "{status}");
        registry.fault(|_| true, 9, Fault::status(status));
        let error = get(&client(), &at(&registry)).await.unwrap_err();
        assert_eq!(error.class(), Class::Net, "{status}");
        assert_eq!(registry.requests(), 8, "{status}");
    }
    for status in [400, 403, 404, 410, 416, 501] {
        let registry = registry().await;
        registry.fault(|_| true, 9, Fault::status(status));
        get(&client(), &at(&registry)).await.unwrap_err();
        assert_eq!(registry.requests(), 1, "{status}");
    }
}

#[tokio::test]
async fn a_length_that_cannot_be_right_is_refused_before_the_body() {
    let registry = registry().await;
    let content = bytes(1000);
    let digest = registry.add_blob("team/app", &content);
    for size in [1001, 999, 0] {
        let (result, got) = blob(&client(), &at(&registry), &descriptor(digest, size)).await;
        assert_eq!(class(result), Class::Size, "{size}");
        assert!(got.is_empty(), "{size}");
    }
    assert_eq!(registry.count(Kind::BlobGet), 3);
}

#[tokio::test]
async fn an_endless_body_stops_at_the_size() {
    let registry = registry().await;
    let digest = registry.add_blob("team/app", b"x");
    registry.fault(of(Kind::BlobGet), 1, Fault::Endless);
    let (result, got) = blob(&client(), &at(&registry), &descriptor(digest, 100_000)).await;
    assert_eq!(class(result), Class::Size);
    assert!(got.len() <= 100_000, "{}", got.len());
    assert_eq!(registry.count(Kind::BlobGet), 1);
}

#[tokio::test]
async fn a_body_without_length_is_taken() {
    let registry = registry().await;
    let content = bytes(50_000);
    let descriptor = descriptor(registry.add_blob("team/app", &content), content.len());
    for fault in [Fault::NoLength, Fault::Chunked] {
        registry.fault(of(Kind::BlobGet), 1, fault.clone());
        let (result, got) = blob(&client(), &at(&registry), &descriptor).await;
        result.unwrap();
        assert!(got == content, "{fault:?}");
    }
}

#[tokio::test]
async fn wrong_bytes_and_wrong_statements_are_digest_errors() {
    let registry = registry().await;
    let (client, at) = (client(), at(&registry));
    let other = Digest::sha256(b"other").to_string();
    let digest = Selector::Digest(Digest::sha256(MANIFEST));
    registry.fault(|_| true, 1, Fault::Header("Docker-Content-Digest", Some(other.clone())));
    assert_eq!(class(get(&client, &at).await), Class::Digest);
    registry.fault(|_| true, 1, Fault::Header("Docker-Content-Digest", Some(other)));
    assert_eq!(class(client.resolve(&at, &repository(), &digest, budget()).await), Class::Digest);
    registry.fault(|_| true, 1, Fault::Body(b"{}".to_vec()));
    assert_eq!(class(client.manifest(&at, &repository(), &digest, budget()).await), Class::Digest);
    registry.fault(|_| true, 1, Fault::Header("Docker-Content-Digest", Some("md5:x".to_owned())));
    assert_eq!(class(get(&client, &at).await), Class::Proto);
    registry.fault(|_| true, 1, Fault::Header("Docker-Content-Digest", None));
    assert_eq!(get(&client, &at).await.unwrap(), MANIFEST);
    registry.fault(|_| true, 1, Fault::Header("Docker-Content-Digest", None));
    assert!(matches!(head(&client, &at).await, Err(RegistryError::NoDigest { .. })));
    assert_eq!(registry.requests(), 6, "none of these is tried again");
}

#[tokio::test]
async fn a_manifest_stops_at_four_mebibytes() {
    let registry = registry().await;
    let (client, at) = (client(), at(&registry));
    let most = vec![b' '; 4 << 20];
    registry.add_manifest("team/app", Some("v1"), MEDIA_TYPE, &most);
    assert_eq!(get(&client, &at).await.unwrap().len(), 4 << 20);
    registry.add_manifest("team/app", Some("v1"), MEDIA_TYPE, &vec![b' '; (4 << 20) + 1]);
    assert_eq!(class(get(&client, &at).await), Class::Size);
    registry.fault(|_| true, 2, Fault::Endless);
    assert_eq!(class(get(&client, &at).await), Class::Size);
}

#[tokio::test]
async fn errors_say_what_the_registry_said() {
    let registry = registry().await;
    let missing = Selector::Tag("none".parse().unwrap());
    let error = client().manifest(&at(&registry), &repository(), &missing, budget()).await.unwrap_err();
    let url = format!("http://{}/v2/team/app/manifests/none", registry.authority());
    assert_eq!(error.to_string(), format!("GET {url}: 404 MANIFEST_UNKNOWN: manifest unknown"));
    assert_eq!((error.class(), error.is_authentication_setup()), (Class::NotFound, false));
    let error = client().resolve(&at(&registry), &repository(), &missing, budget()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("HEAD {url}: 404 Not Found"));
}

#[tokio::test]
async fn an_encoded_body_is_refused() {
    let registry = registry().await;
    registry.fault(|_| true, 1, Fault::Header("Content-Encoding", Some("gzip".to_owned())));
    assert_eq!(class(get(&client(), &at(&registry)).await), Class::Proto);
}

#[tokio::test]
async fn what_is_not_http_or_has_endless_headers_is_refused() {
    let registry = registry().await;
    let mut endless = b"HTTP/1.1 200 OK\r\n".to_vec();
    endless.extend_from_slice(format!("X: {}\r\n\r\n", "x".repeat(200_000)).as_bytes());
    registry.fault(|_| true, 1, Fault::Raw(endless));
    assert_eq!(class(get(&client(), &at(&registry)).await), Class::Size);
    registry.fault(|_| true, 4, Fault::Raw(b"SSH-2.0-OpenSSH\r\n".to_vec()));
    assert_eq!(class(get(&client(), &at(&registry)).await), Class::Net);
}

#[tokio::test]
async fn an_idle_connection_that_the_server_closed_costs_no_attempt() {
    let registry = registry().await;
    let (client, at) = (client(), at(&registry));
    get(&client, &at).await.unwrap();
    registry.fault(|_| true, 1, Fault::Close);
    registry.fault(|_| true, 3, Fault::status(503));
    get(&client, &at).await.unwrap();
    assert_eq!(registry.requests(), 1 + 1 + 3 + 1);
}

#[tokio::test]
async fn urls_of_a_descriptor_are_not_contacted() {
    // M7: a Descriptor has no place for `urls`; the blob comes from the registry, whatever its media type.
    let registry = registry().await;
    let digest = registry.add_blob("team/app", b"layer");
    let mut descriptor = descriptor(digest, 5);
    descriptor.media_type = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".to_owned();
    let (result, got) = blob(&client(), &at(&registry), &descriptor).await;
    result.unwrap();
    assert_eq!(got, b"layer");
    assert_eq!(registry.count(Kind::BlobGet), 1);
}

// Tokens and credentials

#[tokio::test]
async fn one_token_serves_many_calls() {
    let registry = with_options(Options { auth: tokens(None), ..Options::default() }).await;
    let digest = registry.add_blob("team/app", b"blob");
    let (client, at) = (client(), at(&registry));
    let mut all = tokio::task::JoinSet::new();
    head(&client, &at).await.unwrap();
    for _ in 0..20 {
        let (client, at) = (client.clone(), at.clone());
        all.spawn(async move {
            get(&client, &at).await.unwrap();
            blob(&client, &at, &descriptor(digest, 4)).await.0.unwrap();
        });
    }
    all.join_all().await;
    assert_eq!(registry.count(Kind::Token), 1);
    assert_eq!(registry.count(Kind::ManifestHead), 2, "one 401, then none");
    assert_eq!((registry.count(Kind::ManifestGet), registry.count(Kind::BlobGet)), (20, 20));
    let query = registry.seen_of(Kind::Token)[0].query.clone();
    assert_eq!(query, "service=scripted&scope=repository%3Ateam%2Fapp%3Apull");
}

#[tokio::test]
async fn a_token_is_fetched_once_however_many_wait_for_it() {
    let registry = with_options(Options { auth: tokens(None), ..Options::default() }).await;
    registry.fault(of(Kind::Token), 9, Fault::Delay(Duration::from_millis(50)));
    let (client, at) = (client(), at(&registry));
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (client, at) = (client.clone(), at.clone());
        all.spawn(async move { get(&client, &at).await.unwrap() });
    }
    all.join_all().await;
    assert_eq!(registry.count(Kind::Token), 1);
}

#[tokio::test]
async fn credentials_do_not_share_tokens() {
    let registry = with_options(Options { auth: tokens(Some(("user", "right"))), ..Options::default() }).await;
    let client = client();
    get(&client, &with_user(&registry, "user", "right")).await.unwrap();
    let wrong = get(&client, &with_user(&registry, "user", "wrong")).await.unwrap_err();
    assert_eq!((wrong.class(), wrong.is_authentication_setup()), (Class::Auth, true));
    let nobody = get(&client, &at(&registry)).await.unwrap_err();
    assert_eq!(nobody.class(), Class::Auth);
    assert_eq!(registry.count(Kind::Token), 3);
    assert!(!chain(&wrong).contains("wrong\""), "{}", chain(&wrong));
}

#[tokio::test]
async fn identity_and_registry_tokens_are_used_as_what_they_are() {
    let registry = with_options(Options { auth: tokens(Some(("-", "refresh me"))), ..Options::default() }).await;
    let identity = Endpoint { credentials: Credentials::IdentityToken(Secret::new("refresh me")), ..at(&registry) };
    get(&client(), &identity).await.unwrap();
    assert_eq!(registry.seen_of(Kind::Token)[0].method, "POST");
    let before = registry.requests();
    let given = Endpoint { credentials: Credentials::RegistryToken(Secret::new("given")), ..at(&registry) };
    let error = get(&client(), &given).await.unwrap_err();
    assert_eq!((error.class(), error.is_authentication_setup()), (Class::Auth, false));
    assert_eq!(registry.requests(), before + 1);
    assert_eq!(registry.seen().last().unwrap().header("authorization"), Some("Bearer given"));
}

#[tokio::test]
async fn what_a_server_was_sent_is_not_repeated() {
    // Longer than what is told of an answer.
    let long = format!("S3cr3t Passw0rd/{}", "0123456789".repeat(60));
    let basic = |password: &str| Credentials::Basic { username: "user".into(), password: Secret::new(password) };
    for (credentials, auth, echoes) in [
        (basic("S3cr3tPassw0rd"), Auth::Basic("user", "S3cr3tPassw0rd"), Kind::ManifestGet),
        (basic(&long), Auth::Basic("user", long.clone().leak()), Kind::ManifestGet),
        (basic("S3cr3tPassw0rd"), tokens(Some(("user", "S3cr3tPassw0rd"))), Kind::Token),
        (basic("S3cr3tPassw0rd"), tokens(Some(("user", "S3cr3tPassw0rd"))), Kind::ManifestGet),
        (Credentials::IdentityToken(Secret::new(&*long)), tokens(Some(("-", long.clone().leak()))), Kind::Token),
        (Credentials::IdentityToken(Secret::new(&*long)), tokens(Some(("-", long.leak()))), Kind::ManifestGet),
        (Credentials::RegistryToken(Secret::new("S3cr3tToken")), Auth::None, Kind::ManifestGet),
        (Credentials::Anonymous, tokens(None), Kind::ManifestGet),
    ] {
        let registry = with_options(Options { auth, ..Options::default() }).await;
        let shown =
            move |seen: &Seen| seen.kind == echoes && (seen.header("authorization").is_some() || !seen.body.is_empty());
        registry.fault(shown, 9, Fault::Echo(403));
        let error = get(&client(), &Endpoint { credentials, ..at(&registry) }).await.unwrap_err();
        let said = chain(&error);
        assert!(said.contains("403 DENIED: you sent ") && said.contains("[redacted]"), "{said}");
        for part in ["S3cr3t", "Passw0rd", "dXNlcjpTM2NyM3Q", "token-"] {
            assert!(!said.contains(part), "{part}: {said}");
        }
    }
}

#[tokio::test]
async fn basic_is_sent_only_after_it_was_asked_for_and_then_at_once() {
    let registry = with_options(Options { auth: Auth::Basic("user", "pass"), ..Options::default() }).await;
    let client = client();
    let user = with_user(&registry, "user", "pass");
    get(&client, &user).await.unwrap();
    get(&client, &user).await.unwrap();
    let sent: Vec<bool> = registry.seen().iter().map(|s| s.header("authorization").is_some()).collect();
    assert_eq!(sent, [false, true, true]);
    for (at, requests) in [(with_user(&registry, "user", "wrong"), 2), (at(&registry), 1)] {
        let before = registry.requests();
        let error = get(&client, &at).await.unwrap_err();
        assert_eq!((error.class(), error.is_authentication_setup()), (Class::Auth, false));
        assert_eq!(registry.requests() - before, requests);
    }
}

#[tokio::test]
async fn bearer_is_preferred_to_basic() {
    let registry = with_options(Options { auth: tokens(Some(("user", "pass"))), ..Options::default() }).await;
    let both = format!(r#"Basic realm="x", Bearer realm="{}/token",service="s""#, registry.origin());
    registry.fault(of(Kind::ManifestGet), 1, Fault::challenge(both));
    get(&client(), &with_user(&registry, "user", "pass")).await.unwrap();
    assert_eq!(registry.count(Kind::Token), 1);
}

#[tokio::test]
async fn a_revoked_token_is_replaced_once() {
    let registry = with_options(Options { auth: tokens(None), ..Options::default() }).await;
    let (client, at) = (client(), at(&registry));
    get(&client, &at).await.unwrap();
    registry.revoke_tokens();
    get(&client, &at).await.unwrap();
    assert_eq!(registry.count(Kind::Token), 2);
}

#[tokio::test]
async fn a_token_that_is_never_accepted_ends_after_two() {
    let registry = with_options(Options { auth: tokens(None), ..Options::default() }).await;
    let challenge =
        format!(r#"Bearer realm="{}/token",service="s",scope="repository:team/app:pull""#, registry.origin());
    registry.fault(of(Kind::ManifestGet), 99, Fault::challenge(challenge));
    let error = get(&client(), &at(&registry)).await.unwrap_err();
    assert_eq!((error.class(), error.is_authentication_setup()), (Class::Auth, false));
    assert_eq!(registry.count(Kind::Token), 2);
}

#[tokio::test]
async fn a_useless_token_answer_is_a_failure_of_authentication() {
    let huge = format!(r#"{{"token":"{}"}}"#, "x".repeat(2 << 20));
    for (name, fault, class) in [
        ("no token", Fault::Body(b"{}".to_vec()), Class::Proto),
        ("empty token", Fault::Body(br#"{"token":""}"#.to_vec()), Class::Proto),
        ("line break", Fault::Body(br#"{"token":"a\r\nX: y"}"#.to_vec()), Class::Proto),
        ("not JSON", Fault::Body(b"<html>".to_vec()), Class::Proto),
        ("huge", Fault::Body(huge.into_bytes()), Class::Size),
        ("endless", Fault::Endless, Class::Size),
        ("401", Fault::status(401), Class::Auth),
        ("404", Fault::status(404), Class::NotFound),
    ] {
        let registry = with_options(Options { auth: tokens(None), ..Options::default() }).await;
        registry.fault(of(Kind::Token), 9, fault);
        let error = get(&client(), &at(&registry)).await.unwrap_err();
        assert_eq!((error.class(), error.is_authentication_setup()), (class, true), "{name}: {}", chain(&error));
        assert_eq!(registry.count(Kind::Token), 1, "{name}");
    }
}

#[tokio::test]
async fn access_token_and_a_short_life_are_understood() {
    let registry = with_options(Options { auth: tokens(None), ..Options::default() }).await;
    registry.fault(of(Kind::Token), 1, Fault::Body(br#"{"access_token":"other","expires_in":"soon"}"#.to_vec()));
    let error = get(&client(), &at(&registry)).await;
    // The registry does not know that token, and a second one of its own is good.
    error.unwrap();
    let tokens: Vec<_> =
        registry.seen_of(Kind::ManifestGet).iter().map(|s| s.header("authorization").map(str::to_owned)).collect();
    assert_eq!(tokens[1].as_deref(), Some("Bearer other"));
}

#[tokio::test]
async fn after_a_token_service_that_hangs_the_registry_is_asked_itself_what_it_wants() {
    let registry = with_options(Options { auth: tokens(None), ..Options::default() }).await;
    let (client, at) = (client(), at(&registry));
    registry.fault(of(Kind::Token), 1, Fault::Hang);
    let short = Budget::within(Duration::from_millis(200));
    let hung = client.manifest(&at, &repository(), &tag(), short).await;
    assert_eq!(class(hung), Class::Net);
    get(&client, &at).await.unwrap();
    let sent: Vec<_> =
        registry.seen_of(Kind::ManifestGet).iter().map(|seen| seen.header("authorization").is_some()).collect();
    assert_eq!(sent, [false, false, true], "what it wanted before is not taken for granted");
}

#[tokio::test]
async fn what_one_repository_wants_is_asked_of_no_other() {
    let answer = |status, body: &str| Fault::Answer { status, headers: Vec::new(), body: body.to_owned() };
    for (name, answer) in [
        ("hangs", Fault::Hang),
        ("has no token", answer(200, "{}")),
        ("refuses", answer(401, "no")),
        ("gives one", answer(200, r#"{"token":"t"}"#)),
    ] {
        let registry = registry().await;
        registry.add_manifest("closed", Some("v1"), MEDIA_TYPE, MANIFEST);
        let challenge = Fault::challenge(format!(r#"Bearer realm="{}/token",service="s""#, registry.origin()));
        let closed = |s: &Seen| s.path.starts_with("/v2/closed/") && s.header("authorization").is_none();
        registry.fault(closed, 99, challenge);
        let (open, gate) = tokio::sync::watch::channel(false);
        registry.fault(of(Kind::Token), 99, Fault::Gate { after: 0, open: gate, then: Box::new(answer) });
        let (client, at) = (client(), at(&registry));
        let asking = tokio::spawn({
            let (client, at) = (client.clone(), at.clone());
            let short = Budget::within(Duration::from_secs(3));
            async move { client.manifest(&at, &"closed".parse().unwrap(), &tag(), short).await.map(drop) }
        });
        while registry.count(Kind::Token) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let quickly = || tokio::time::timeout(Duration::from_secs(2), get(&client, &at));
        quickly().await.unwrap().unwrap();
        open.send(true).unwrap();
        assert_eq!(asking.await.unwrap().is_ok(), name == "gives one", "{name}");
        quickly().await.unwrap().unwrap();
        let ours: Vec<_> = registry.seen().into_iter().filter(|s| s.path.starts_with("/v2/team/app/")).collect();
        assert_eq!(ours.len(), 2, "{name}");
        assert!(ours.iter().all(|s| s.header("authorization").is_none()), "{name}");
        assert!(registry.seen_of(Kind::Token).iter().all(|s| s.query.contains("repository%3Aclosed%3Apull")), "{name}");
    }
}

#[tokio::test]
async fn each_repository_pays_for_its_challenge_once() {
    let registry = with_options(Options { auth: tokens(None), ..Options::default() }).await;
    let (client, at) = (client(), at(&registry));
    let repositories: Vec<Repository> = (0..5).map(|number| format!("team/{number}").parse().unwrap()).collect();
    for repository in &repositories {
        registry.add_manifest(repository.as_str(), Some("v1"), MEDIA_TYPE, MANIFEST);
    }
    for round in 1..=3 {
        for repository in &repositories {
            client.resolve(&at, repository, &tag(), budget()).await.unwrap();
        }
        assert_eq!((registry.count(Kind::ManifestHead), registry.count(Kind::Token)), (5 + 5 * round, 5), "{round}");
    }
}

#[tokio::test]
async fn credentials_go_to_no_other_realm() {
    let honeypot = with_options(Options { auth: tokens(None), ..Options::default() }).await;
    let port = honeypot.address.port();
    // 127.0.0.2 is another host, not another port of the same one.
    let elsewhere =
        ScriptedRegistry::start_at("127.0.0.2:0", Options { auth: tokens(None), ..Options::default() }).await;
    for realm in [
        format!("http://{}/token", elsewhere.authority()),
        "http://169.254.169.254/token".to_owned(),
        "https://auth.evil.example/token".to_owned(),
        format!("ftp://127.0.0.1:{port}/token"),
        "not a url".to_owned(),
    ] {
        let registry = with_options(Options {
            auth: Auth::Token { user: None, realm: Some(realm.clone()), expires_in: None },
            ..Options::default()
        })
        .await;
        let error = get(&client(), &with_user(&registry, "user", "hunter2")).await.unwrap_err();
        assert_eq!(
            (error.class(), error.is_authentication_setup()),
            (Class::Policy, true),
            "{realm}: {}",
            chain(&error)
        );
        assert!(!chain(&error).contains("hunter2"));
        assert_eq!((registry.requests(), elsewhere.connections(), honeypot.connections()), (1, 0, 0), "{realm}");
    }
}

#[tokio::test]
async fn a_realm_is_followed_where_token_realms_lists_it_or_nobody_asks() {
    let elsewhere =
        ScriptedRegistry::start_at("127.0.0.2:0", Options { auth: tokens(None), ..Options::default() }).await;
    let realm = format!("http://{}/token", elsewhere.authority());
    let auth = Auth::Token { user: None, realm: Some(realm), expires_in: None };
    let registry = with_options(Options { auth, ..Options::default() }).await;
    // Its tokens are not known here, so the call fails in the end; what counts is who was asked with what.
    let _ = get(&client(), &at(&registry)).await;
    assert!(elsewhere.count(Kind::Token) > 0);
    assert!(elsewhere.seen().iter().all(|s| s.header("authorization").is_none()));
    let before = elsewhere.requests();
    let token_realms = vec!["127.0.0.2".to_owned()];
    let client = Client::new(Config { token_realms, ..quick() }).unwrap();
    let _ = get(&client, &with_user(&registry, "user", "pass")).await;
    assert!(elsewhere.requests() > before);
    assert!(elsewhere.seen()[before..].iter().all(|s| s.header("authorization").is_some()));
}

#[tokio::test]
async fn an_anonymous_realm_on_a_metadata_address_is_refused() {
    let auth = Auth::Token { user: None, realm: Some("http://169.254.169.254/token".to_owned()), expires_in: None };
    let registry = with_options(Options { auth, ..Options::default() }).await;
    let error = get(&client(), &at(&registry)).await.unwrap_err();
    assert_eq!((error.class(), error.is_authentication_setup()), (Class::Policy, true));
}

// 429

#[tokio::test]
async fn after_429_nothing_is_sent_but_one_probe() {
    let registry = registry().await;
    let (client, at) = (client(), at(&registry));
    registry.fault(|_| true, 9, Fault::too_many("3600"));
    let error = get(&client, &at).await.unwrap_err();
    assert_eq!(error.class(), Class::Rate);
    assert!(error.retry_after().is_some_and(|after| after > Duration::from_secs(3590)));
    for _ in 0..3 {
        assert_eq!(class(head(&client, &at).await), Class::Rate);
    }
    assert_eq!(registry.requests(), 1);
    let requested = || Budget { requested: true, ..budget() };
    for _ in 0..3 {
        assert_eq!(class(client.resolve(&at, &repository(), &tag(), requested()).await), Class::Rate);
    }
    assert_eq!(registry.requests(), 2, "one probe in a window");
    // Another registry is none of its business.
    let other = self::registry().await;
    get(&client, &self::at(&other)).await.unwrap();
}

#[tokio::test]
async fn a_probe_that_succeeds_opens_the_window() {
    let registry = with_options(Options { auth: tokens(None), ..Options::default() }).await;
    let (client, at) = (client(), at(&registry));
    registry.fault(|_| true, 1, Fault::too_many("junk"));
    let error = get(&client, &at).await.unwrap_err();
    assert!(
        error.retry_after().is_some_and(|after| after > Duration::from_secs(50) && after <= Duration::from_secs(60))
    );
    client.manifest(&at, &repository(), &tag(), Budget { requested: true, ..budget() }).await.unwrap();
    get(&client, &at).await.unwrap();
}

// Redirects

#[tokio::test]
async fn redirects_are_followed_without_authorization_and_with_range() {
    let registry = with_options(Options { auth: Auth::Basic("user", "pass"), ..Options::default() }).await;
    let cdn = ScriptedRegistry::start().await;
    let content = bytes(1000);
    let digest = registry.add_blob("team/app", &content);
    cdn.add_blob("team/app", &content);
    let to = format!("{}/v2/team/app/blobs/{digest}?X-Signature=secret", cdn.origin());
    registry.fault(|s: &Seen| s.kind == Kind::BlobGet && s.header("authorization").is_some(), 9, Fault::redirect(to));
    cdn.fault(of(Kind::BlobGet), 1, Fault::Cut { after: 400, reset: false });
    let (result, got) = blob(&client(), &with_user(&registry, "user", "pass"), &descriptor(digest, 1000)).await;
    result.unwrap();
    assert!(got == content);
    let seen = cdn.seen();
    assert!(seen.iter().all(|s| s.header("authorization").is_none()));
    let ranges: Vec<_> = seen.iter().map(|s| s.header("range")).collect();
    assert_eq!(ranges, [None, Some("bytes=400-")]);
    cdn.fault(|_| true, 9, Fault::status(403));
    let (result, _) = blob(&client(), &with_user(&registry, "user", "pass"), &descriptor(digest, 1000)).await;
    let error = result.unwrap_err();
    assert!(!chain(&error).contains("secret"), "{}", chain(&error));
}

#[tokio::test]
async fn the_eleventh_redirect_is_refused() {
    for (hops, ok) in [(10, true), (11, false)] {
        let registry = registry().await;
        registry.fault(|_| true, hops, Fault::redirect("/v2/team/app/manifests/v1"));
        let result = get(&client(), &at(&registry)).await;
        assert_eq!(result.is_ok(), ok, "{hops}");
        if let Err(error) = result {
            assert_eq!(error.class(), Class::Proto);
        }
        assert_eq!(registry.requests(), 11);
    }
}

#[tokio::test]
async fn redirects_to_forbidden_addresses_make_no_connection() {
    let registry = registry().await;
    for location in [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:169.254.169.254]/",
        "http://0.0.0.0/",
        "http://kubernetes.default.svc/",
        "http://10.96.0.1/",
    ] {
        let client = Client::new(Config { api_servers: vec!["10.96.0.1".to_owned()], ..quick() }).unwrap();
        registry.fault(|_| true, 1, Fault::redirect(location));
        let error = get(&client, &at(&registry)).await.unwrap_err();
        assert_eq!(error.class(), Class::Policy, "{location}: {}", chain(&error));
    }
    for location in ["ftp://x/", "", "http://user:pass@127.0.0.1/"] {
        registry.heal();
        registry.fault(|_| true, 99, Fault::redirect(location));
        assert_eq!(class(get(&client(), &at(&registry)).await), Class::Proto, "{location}");
    }
}

// Addresses

#[tokio::test]
async fn loopback_needs_permission() {
    let registry = registry().await;
    let mut at = at(&registry);
    at.transport.allow_loopback = false;
    let error = get(&client(), &at).await.unwrap_err();
    assert_eq!((error.class(), error.is_authentication_setup()), (Class::Policy, false));
    let mut by_name = endpoint(&format!("localhost:{}", registry.address.port()));
    by_name.transport.allow_loopback = false;
    assert_eq!(class(get(&client(), &by_name).await), Class::Policy);
    assert_eq!(registry.connections(), 0);

    let allowed = Client::new(Config { egress_allow: vec!["127.0.0.0/8".to_owned()], ..quick() }).unwrap();
    get(&allowed, &at).await.unwrap();
    let denied = Client::new(Config { egress_deny: vec!["127.0.0.1/32".to_owned()], ..quick() }).unwrap();
    assert_eq!(class(get(&denied, &self::at(&registry)).await), Class::Policy);
}

#[tokio::test]
async fn a_permission_does_not_leak_through_an_idle_connection() {
    let registry = registry().await;
    let client = client();
    get(&client, &at(&registry)).await.unwrap();
    let mut at = at(&registry);
    at.transport.allow_loopback = false;
    assert_eq!(class(get(&client, &at).await), Class::Policy);
    assert_eq!(registry.requests(), 1);
}

#[tokio::test]
async fn bad_configuration_is_refused_at_once() {
    for config in [
        Config { egress_allow: vec!["localhost".to_owned()], ..quick() },
        Config { egress_deny: vec!["10.0.0.0/40".to_owned()], ..quick() },
    ] {
        assert_eq!(Client::new(config).err().unwrap().class(), Class::Spec);
    }
}

// TLS

fn tls(registry: &ScriptedRegistry, ca: Option<&str>) -> Endpoint {
    let transport = Transport { ca: ca.map(Arc::from), allow_loopback: true, ..Transport::default() };
    Endpoint { transport, ..at(registry) }
}

async fn tls_registry(identity: &certificates::Identity, clients: Option<&Ca>) -> ScriptedRegistry {
    with_options(Options { tls: Some(certificates::server(identity, clients)), ..Options::default() }).await
}

#[tokio::test]
async fn its_own_ca_is_added_and_nothing_else_gets_in() {
    let ca = Ca::new();
    let registry = tls_registry(&ca.issue(&["127.0.0.1"]), None).await;
    let client = client();
    get(&client, &tls(&registry, Some(ca.pem()))).await.unwrap();
    for (name, at) in [("another CA", tls(&registry, Some(Ca::new().pem()))), ("the system's", tls(&registry, None))] {
        let error = get(&client, &at).await.unwrap_err();
        // A machine without any CA certificates says so before it connects.
        assert!(matches!(error.class(), Class::Net | Class::Auth), "{name}: {}", chain(&error));
    }
    let wrong = tls_registry(&ca.issue(&["registry.example"]), None).await;
    let expired = tls_registry(&ca.issue_expired(&["127.0.0.1"]), None).await;
    for registry in [&wrong, &expired] {
        let error = get(&client, &tls(registry, Some(ca.pem()))).await.unwrap_err();
        assert!(matches!(error, RegistryError::Handshake { .. }), "{}", chain(&error));
        assert_eq!((error.class(), error.is_authentication_setup()), (Class::Net, false));
        assert_eq!((registry.requests(), registry.connections()), (0, 1));
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_taken_where_it_is_the_one_that_was_given() {
    let own = certificates::self_signed(&["127.0.0.1"]);
    let registry = tls_registry(&own, None).await;
    let client = client();
    get(&client, &tls(&registry, Some(&own.certificate))).await.unwrap();
    let other = certificates::self_signed(&["127.0.0.1"]);
    get(&client, &tls(&registry, Some(&format!("{}{}", other.certificate, own.certificate)))).await.unwrap();

    let wrong = certificates::self_signed(&["registry.example"]);
    let expired = certificates::self_signed_expired(&["127.0.0.1"]);
    let (wrong_registry, expired_registry) = (tls_registry(&wrong, None).await, tls_registry(&expired, None).await);
    // Whoever holds the certificate, which everybody is shown, but not its key.
    let stolen = certificates::server_without_its_key(&own, &other);
    let thief = with_options(Options { tls: Some(stolen), ..Options::default() }).await;
    for (name, registry, given) in [
        ("another of the same name", &registry, &other),
        ("for another name", &wrong_registry, &wrong),
        ("expired", &expired_registry, &expired),
        ("with another key", &thief, &own),
    ] {
        let error = get(&client, &tls(registry, Some(&given.certificate))).await.unwrap_err();
        assert!(matches!(error, RegistryError::Handshake { .. }), "{name}: {}", chain(&error));
        assert_eq!((registry.requests(), name), (if name.starts_with("another") { 2 } else { 0 }, name));
    }
}

#[tokio::test]
async fn tls_never_becomes_cleartext() {
    let ca = Ca::new();
    let registry = registry().await;
    let error = get(&client(), &tls(&registry, Some(ca.pem()))).await.unwrap_err();
    assert_eq!(error.class(), Class::Net);
    assert_eq!(registry.requests(), 0);
}

#[tokio::test]
async fn https_is_not_redirected_to_http() {
    let ca = Ca::new();
    let registry = tls_registry(&ca.issue(&["127.0.0.1"]), None).await;
    let plain = self::registry().await;
    registry.fault(|_| true, 1, Fault::redirect(format!("{}/v2/", plain.origin())));
    assert_eq!(class(get(&client(), &tls(&registry, Some(ca.pem()))).await), Class::Policy);
    registry.fault(|_| true, 1, Fault::redirect(format!("http://{}/v2/", registry.authority())));
    assert_eq!(class(get(&client(), &tls(&registry, Some(ca.pem()))).await), Class::Policy);
    assert_eq!(plain.connections(), 0);
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_checked_beforehand() {
    let ca = Ca::new();
    let registry = tls_registry(&ca.issue(&["127.0.0.1"]), Some(&ca)).await;
    let (mine, other) = (ca.issue(&["client"]), ca.issue(&["client"]));
    let with = |certificate: &str, key: &str| {
        let mut at = tls(&registry, Some(ca.pem()));
        at.transport.client_certificate = Some((certificate.into(), Arc::new(Secret::new(key))));
        at
    };
    let client = client();
    get(&client, &with(&mine.certificate, &mine.key)).await.unwrap();
    assert_eq!(class(get(&client, &tls(&registry, Some(ca.pem()))).await), Class::Net);
    let before = registry.connections();
    for (certificate, key) in [
        (&mine.certificate, &other.key),
        (&mine.certificate, &mine.certificate),
        (&mine.key, &mine.key),
        (&String::new(), &mine.key),
    ] {
        let error = get(&client, &with(certificate, key)).await.unwrap_err();
        assert_eq!((error.class(), error.is_authentication_setup()), (Class::Auth, true), "{error}");
        assert!(!error.to_string().contains("PRIVATE"));
    }
    assert_eq!(registry.connections(), before);
}

#[tokio::test]
async fn a_garbage_ca_is_refused_whatever_the_scheme() {
    let registry = registry().await;
    for ca in [
        "garbage",
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n!!\n",
    ] {
        for plain_http in [true, false] {
            let mut at = tls(&registry, Some(ca));
            at.transport.plain_http = plain_http;
            let error = get(&client(), &at).await.unwrap_err();
            assert_eq!((error.class(), error.is_authentication_setup()), (Class::Auth, true), "{ca} {error}");
        }
    }
    assert_eq!(registry.connections(), 0);
}

// insecure

fn insecure(registry: &ScriptedRegistry) -> Endpoint {
    let transport = Transport { insecure: true, allow_loopback: true, ..Transport::default() };
    Endpoint { transport, ..with_user(registry, "user", "pass") }
}

#[tokio::test]
async fn insecure_settles_http_or_tls_once_and_without_credentials() {
    let ca = Ca::new();
    let auth = Auth::Basic("user", "pass");
    let plain = with_options(Options { auth: auth.clone(), ..Options::default() }).await;
    let client = client();
    get(&client, &insecure(&plain)).await.unwrap();
    get(&client, &insecure(&plain)).await.unwrap();
    let kinds: Vec<_> = plain.seen().iter().map(|s| (s.kind, s.header("authorization").is_some())).collect();
    let get_with = |sent| (Kind::ManifestGet, sent);
    assert_eq!(kinds, [(Kind::Ping, false), get_with(false), get_with(true), get_with(true)]);

    let tls = Some(certificates::server(&ca.issue(&["another.example"]), None));
    let secure = with_options(Options { auth, tls }).await;
    get(&client, &insecure(&secure)).await.unwrap();
    get(&client, &insecure(&secure)).await.unwrap();
    assert_eq!((secure.count(Kind::Ping), secure.connections()), (0, 2), "one attempt in http, one connection in TLS");
}

#[tokio::test]
async fn insecure_believes_a_server_that_says_it_speaks_tls() {
    let registry = registry().await;
    for body in ["Client sent an HTTP request to an HTTPS server.\n", "The plain HTTP request was sent to HTTPS port"] {
        let answer = Fault::Answer { status: 400, headers: Vec::new(), body: body.to_owned() };
        registry.fault(of(Kind::Ping), 1, answer);
        assert_eq!(class(get(&client(), &insecure(&registry)).await), Class::Net);
        assert_eq!(registry.count(Kind::ManifestGet), 0);
    }
}

#[tokio::test]
async fn insecure_with_a_ca_of_its_own_still_verifies() {
    let ca = Ca::new();
    let registry = tls_registry(&ca.issue(&["127.0.0.1"]), None).await;
    let mut at = insecure(&registry);
    at.transport.ca = Some(Ca::new().pem().into());
    assert_eq!(class(get(&client(), &at).await), Class::Net);
    at.transport.ca = Some(ca.pem().into());
    get(&client(), &at).await.unwrap();
}

#[tokio::test]
async fn skip_tls_verify_takes_any_certificate() {
    let registry = tls_registry(&Ca::new().issue(&["another.example"]), None).await;
    let mut at = tls(&registry, None);
    at.transport.skip_tls_verify = true;
    get(&client(), &at).await.unwrap();
    assert_eq!(registry.requests(), 1);
}

// Proxies

fn through(at: Endpoint, scheme: &str, proxy: &TestProxy, user: Option<(&str, &str)>) -> Endpoint {
    let credentials = user.map(|(user, password)| (user.to_owned(), Secret::new(password)));
    let proxy = Some(Proxy { address: format!("{scheme}://{}", proxy.address), credentials });
    Endpoint { transport: Transport { proxy, ..at.transport.clone() }, ..at }
}

#[tokio::test]
async fn http_proxies_forward_http_and_tunnel_https() {
    let ca = Ca::new();
    let plain = registry().await;
    let secure = tls_registry(&ca.issue(&["127.0.0.1"]), None).await;
    let proxy = TestProxy::http(Some("Basic dXNlcjpwYXNz")).await;
    let client = client();
    let user = Some(("user", "pass"));
    get(&client, &through(at(&plain), "http", &proxy, user)).await.unwrap();
    get(&client, &through(tls(&secure, Some(ca.pem())), "http", &proxy, user)).await.unwrap();
    let asked = [
        format!("GET http://{}/v2/team/app/manifests/v1", plain.authority()),
        format!("CONNECT {}", secure.authority()),
    ];
    assert_eq!(proxy.asked(), asked);
    assert!(plain.seen()[0].header("authorization").is_none());

    let error = get(&client, &through(tls(&secure, Some(ca.pem())), "http", &proxy, None)).await.unwrap_err();
    assert_eq!((error.class(), error.is_authentication_setup()), (Class::Auth, true), "{error}");
}

#[tokio::test]
async fn socks5_proxies_are_used_with_and_without_a_user() {
    let ca = Ca::new();
    let secure = tls_registry(&ca.issue(&["127.0.0.1"]), None).await;
    let client = client();
    let open = TestProxy::socks5(None).await;
    get(&client, &through(tls(&secure, Some(ca.pem())), "socks5", &open, None)).await.unwrap();
    assert_eq!(open.asked(), [format!("socks5 {} -", secure.authority())]);

    let closed = TestProxy::socks5(Some("user:pass")).await;
    get(&client, &through(tls(&secure, Some(ca.pem())), "socks5", &closed, Some(("user", "pass")))).await.unwrap();
    assert_eq!(closed.asked(), [format!("socks5 {} user:pass", secure.authority())]);
    for user in [None, Some(("user", "wrong"))] {
        let error = get(&client, &through(tls(&secure, Some(ca.pem())), "socks5", &closed, user)).await.unwrap_err();
        assert!(error.is_authentication_setup(), "{error}");
    }
}

#[tokio::test]
async fn a_proxy_is_bound_by_the_address_rules() {
    let registry = registry().await;
    let proxy = TestProxy::http(None).await;
    // The target is permitted by name of its network, the proxy is not.
    let mut at = through(endpoint("registry.example:80"), "http", &proxy, None);
    at.transport.allow_loopback = false;
    assert_eq!(class(get(&client(), &at).await), Class::Policy);
    // The proxy is permitted, the target is not.
    let mut at = through(endpoint("169.254.169.254:80"), "http", &proxy, None);
    at.transport.allow_loopback = true;
    assert_eq!(class(get(&client(), &at).await), Class::Policy);
    assert_eq!((proxy.asked(), registry.connections()), (vec![], 0));
}

#[tokio::test]
async fn a_proxy_address_that_is_none_is_a_failure_of_setup() {
    let registry = registry().await;
    for address in ["", "proxy", "gopher://127.0.0.1:70", "http://a b/"] {
        let mut at = at(&registry);
        at.transport.proxy = Some(Proxy { address: address.to_owned(), credentials: None });
        let error = get(&client(), &at).await.unwrap_err();
        assert_eq!((error.class(), error.is_authentication_setup()), (Class::Auth, true), "{address}");
    }
    assert_eq!(registry.connections(), 0);
}

#[tokio::test]
async fn the_environments_proxy_serves_all_but_loopback() {
    let registry = registry().await;
    let proxy = TestProxy::http(None).await;
    let address = format!("http://{}", proxy.address);
    let proxies = ProxyEnvironment::read(|name| (name == "HTTP_PROXY").then(|| address.clone()));
    let client = Client::new(Config { proxies, ..quick() }).unwrap();
    get(&client, &at(&registry)).await.unwrap();
    assert!(proxy.asked().is_empty());
    let named = endpoint(&format!("registry.invalid:{}", registry.address.port()));
    get(&client, &named).await.unwrap();
    assert_eq!(proxy.asked().len(), 1);
}

// Separation

#[tokio::test]
async fn an_object_of_its_own_transport_shares_nothing() {
    // O12: the path of one lies; the other, honest one, asks for itself.
    let registry = registry().await;
    let liar = self::registry().await;
    liar.add_manifest("team/app", Some("v1"), MEDIA_TYPE, b"lie");
    let lying_proxy = TestProxy::http(None).await;
    let client = client();
    liar.fault(|_| true, 1, Fault::too_many("3600"));
    let lied = through(at(&liar), "http", &lying_proxy, None);
    assert_eq!(class(get(&client, &lied).await), Class::Rate);
    get(&client, &at(&liar)).await.unwrap();
    get(&client, &at(&registry)).await.unwrap();
}

// Tags

#[tokio::test]
async fn tags_are_read_through_all_pages_of_the_same_server() {
    let registry = ScriptedRegistry::start().await;
    for number in 0..2500 {
        registry.add_manifest("team/app", Some(&format!("v{number:04}")), MEDIA_TYPE, MANIFEST);
    }
    let (client, at) = (client(), at(&registry));
    let tags = client.tags(&at, &repository(), budget()).await.unwrap();
    assert_eq!((tags.len(), tags[2499].as_str()), (2500, "v2499"));
    assert_eq!(registry.count(Kind::Tags), 3);

    let other = ScriptedRegistry::start().await;
    let elsewhere = format!(r#"<{}/v2/team/app/tags/list>; rel="next""#, other.origin());
    registry.fault(of(Kind::Tags), 1, Fault::Header("Link", Some(elsewhere)));
    assert_eq!(class(client.tags(&at, &repository(), budget()).await), Class::Proto);
    assert_eq!(other.connections(), 0);

    registry.heal();
    let forever = r#"</v2/team/app/tags/list?n=1>; rel="next""#.to_owned();
    registry.fault(of(Kind::Tags), 1000, Fault::Header("Link", Some(forever)));
    let before = registry.count(Kind::Tags);
    assert_eq!(class(client.tags(&at, &repository(), budget()).await), Class::Limit);
    assert_eq!(registry.count(Kind::Tags) - before, 100);
}

// Pushes

#[tokio::test]
async fn pushes_blobs_once_and_manifests() {
    let user = Some(("user", "pass"));
    let registry = ScriptedRegistry::start_with(Options { auth: tokens(user), ..Options::default() }).await;
    let (client, at) = (client(), with_user(&registry, "user", "pass"));
    let content = Bytes::from(bytes(100_000));
    let digest = Digest::sha256(&content);
    assert!(!client.has_blob(&at, &repository(), &digest, budget()).await.unwrap());
    registry.fault(|s: &Seen| s.method == "PUT", 1, Fault::status(503));
    client.push_blob(&at, &repository(), &digest, content.clone(), budget()).await.unwrap();
    assert!(registry.blob("team/app", &digest).unwrap() == content);
    assert_eq!(client.traffic().sent(), 100_000, "of the second PUT");
    assert!(client.has_blob(&at, &repository(), &digest, budget()).await.unwrap());
    let before = registry.count(Kind::Push);
    client.push_blob(&at, &repository(), &digest, content, budget()).await.unwrap();
    assert_eq!(registry.count(Kind::Push), before);
    let manifest = Bytes::from_static(MANIFEST);
    client.push_manifest(&at, &repository(), &tag(), MEDIA_TYPE, manifest.clone(), budget()).await.unwrap();
    assert_eq!(registry.manifest("team/app", "v1").unwrap(), MANIFEST);
    assert_eq!(registry.count(Kind::Token), 2, "one to read, one to push");

    let other = Digest::sha256(b"other").to_string();
    registry.fault(|s: &Seen| s.method == "PUT", 1, Fault::Header("Docker-Content-Digest", Some(other)));
    let result = client.push_manifest(&at, &repository(), &tag(), MEDIA_TYPE, manifest, budget()).await;
    assert_eq!(class(result), Class::Digest);
}

#[tokio::test]
async fn a_sink_that_refuses_ends_the_transfer() {
    struct Full;
    impl Sink for Full {
        async fn write(&mut self, _: Bytes) -> Result<(), SinkError> {
            Err("disk full".into())
        }
    }
    let registry = registry().await;
    let digest = registry.add_blob("team/app", b"blob");
    let result = client().blob(&at(&registry), &repository(), &descriptor(digest, 4), &mut Full, budget()).await;
    assert_eq!(class(result), Class::Disk);
    assert_eq!(registry.count(Kind::BlobGet), 1);
}
