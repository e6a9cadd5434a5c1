//! Who may use the local repositories, over the wire (contract section 2, `registry: {htpasswd, token, access}`).

use std::path::PathBuf;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use larder::{
    digest::Digest,
    oci::media_type::OCI_MANIFEST,
    server::{
        Limits, Registry,
        registry::access::{Access, Config, Rule},
    },
};

use super::{Reply, Running, Scene};

const TOKEN: &str = "t0ken-of-the-builder";

fn line(user: &str) -> String {
    format!("{user}:{}\n", bcrypt::hash(format!("{user}-pw"), 4).unwrap())
}

fn rule(matches: &str, read: &[&str], write: &[&str]) -> Rule {
    let subjects = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
    Rule { repositories: matches.parse().unwrap(), read: subjects(read), write: subjects(write) }
}

struct World {
    scene: Scene,
    running: Running,
    htpasswd: PathBuf,
}

/// A registry with alice, bob and carol, a token, and these rules.
fn start(rules: Vec<Rule>) -> World {
    let scene = Scene::new();
    let (htpasswd, token) = (scene.directory.path().join("htpasswd"), scene.directory.path().join("token"));
    // A guess of slow's password costs 16 times one of the others'.
    let slow = format!("slow:{}\n", bcrypt::hash("x", 8).unwrap());
    std::fs::write(&htpasswd, line("alice") + &line("bob") + &line("carol") + &slow).unwrap();
    std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    let config = Config { htpasswd: Some(htpasswd.clone()), token: Some(token), rules };
    let registry = Registry::new(scene.store.clone(), true).with_access(Access::open(config).unwrap());
    World { running: Running::start(registry, Limits::default()), scene, htpasswd }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

impl World {
    /// As a user with the right password, as the token's holder, or as nobody (`""`).
    async fn ask(&self, who: &str, method: &str, path: &str, body: &[u8]) -> Reply {
        let value = match who {
            "" => return self.running.request(method, path, &[], body).await,
            "token" => format!("Bearer {TOKEN}"),
            user => basic(user, &format!("{user}-pw")),
        };
        let headers = [("authorization", value.as_str()), ("content-type", OCI_MANIFEST)];
        self.running.request(method, path, &headers, body).await
    }

    async fn push(&self, who: &str, repository: &str) -> (Digest, Digest) {
        let config = Digest::sha256(b"{}");
        let path = format!("/v2/{repository}/blobs/uploads/?digest={config}");
        assert_eq!(self.ask(who, "POST", &path, b"{}").await.status, 201, "{who} {repository}");
        let manifest = manifest(config);
        let path = format!("/v2/{repository}/manifests/v1");
        assert_eq!(self.ask(who, "PUT", &path, manifest.as_bytes()).await.status, 201, "{who} {repository}");
        (config, Digest::sha256(manifest.as_bytes()))
    }
}

fn manifest(config: Digest) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[]}}"#
    )
}

/// What a client can tell two answers apart by.
fn seen(reply: &Reply) -> (u16, Vec<(String, String)>, String) {
    let headers = reply.headers.iter().filter(|(name, _)| name != "date").cloned().collect();
    (reply.status, headers, reply.text())
}

#[tokio::test]
async fn credentials_are_asked_for_and_checked() {
    let world = start(Vec::new());
    let (_, digest) = world.push("alice", "a").await;
    for (header, status) in [
        (None, 401),
        (Some(basic("alice", "alice-pw")), 200),
        (Some(basic("alice", "bob-pw")), 401),
        (Some(basic("nobody", "alice-pw")), 401),
        (Some(basic("", "")), 401),
        (Some(basic("token", TOKEN)), 200),
        (Some(basic("alice", TOKEN)), 401),
        (Some(format!("Bearer {TOKEN}")), 200),
        (Some(format!("bearer {TOKEN}")), 200),
        (Some(format!("Bearer {TOKEN}x")), 401),
        (Some("Bearer".into()), 401),
        (Some("Basic !".into()), 401),
        (Some("Digest a=b".into()), 401),
    ] {
        for path in ["/v2/", "/v2/a/manifests/v1", "/v2/_catalog", "/v2/a/tags/list"] {
            let headers: Vec<_> = header.iter().map(|value| ("authorization", value.as_str())).collect();
            let reply = world.running.get(path, &headers).await;
            assert_eq!(reply.status, status, "{header:?} {path}: {}", reply.text());
            let challenge = reply.header("www-authenticate");
            assert_eq!(challenge, (status == 401).then_some(r#"Basic realm="Larder", charset="UTF-8""#), "{path}");
            if status == 401 {
                assert_eq!(reply.code(), "UNAUTHORIZED");
            }
            if path == "/v2/" {
                assert_eq!(reply.header("docker-distribution-api-version"), Some("registry/2.0"));
            }
        }
    }
    let twice = [("authorization", &*basic("alice", "alice-pw")), ("authorization", &*basic("bob", "bob-pw"))];
    assert_eq!(world.running.get("/v2/", &twice).await.status, 401, "which of two it is nobody can know");
    assert_eq!(world.ask("", "HEAD", &format!("/v2/a/manifests/{digest}"), b"").await.status, 401);
    world.running.stopped().await;
}

#[tokio::test]
async fn each_may_do_what_the_first_rule_that_matches_says() {
    let world = start(vec![
        rule("team/secret", &[], &["alice"]),
        rule("team/*", &["bob"], &["alice"]),
        rule("public/*", &["anonymous"], &["token"]),
    ]);
    for (who, repository) in [("alice", "team/secret"), ("alice", "team/app"), ("token", "public/app")] {
        world.push(who, repository).await;
    }
    // Reading, pushing a manifest, beginning an upload, deleting a tag that is not there.
    for (who, repository, read, write) in [
        ("alice", "team/secret", 200, None),
        ("alice", "team/app", 200, None),
        ("alice", "public/app", 200, Some(403)),
        ("bob", "team/secret", 404, Some(403)),
        ("bob", "team/app", 200, Some(403)),
        ("carol", "team/app", 404, Some(403)),
        ("token", "public/app", 200, None),
        ("token", "team/app", 404, Some(403)),
        ("", "public/app", 200, Some(401)),
        ("", "team/app", 401, Some(401)),
        ("", "nothing/here", 401, Some(401)),
        ("alice", "nothing/here", 404, Some(403)),
    ] {
        let path = |rest: &str| format!("/v2/{repository}/{rest}");
        let config = Digest::sha256(b"{}");
        for rest in ["manifests/v1".into(), format!("blobs/{config}"), "tags/list".to_string()] {
            assert_eq!(world.ask(who, "GET", &path(&rest), b"").await.status, read, "{who} {repository} {rest}");
        }
        for (method, rest, body, allowed) in [
            ("PUT", "manifests/v1", manifest(config), 201),
            ("POST", "blobs/uploads/", String::new(), 202),
            ("DELETE", "manifests/absent", String::new(), 404),
        ] {
            let reply = world.ask(who, method, &path(rest), body.as_bytes()).await;
            assert_eq!(reply.status, write.unwrap_or(allowed), "{who} {method} {repository} {rest}");
        }
    }
    let catalog = async |who: &str| world.ask(who, "GET", "/v2/_catalog", b"").await.json()["repositories"].clone();
    for (who, expected) in [
        ("alice", &["public/app", "team/app", "team/secret"][..]),
        ("bob", &["public/app", "team/app"]),
        ("carol", &["public/app"]),
        ("", &["public/app"]),
    ] {
        assert_eq!(catalog(who).await, serde_json::json!(expected), "{who}");
    }
}

#[tokio::test]
async fn what_may_not_be_read_answers_as_what_is_not_there() {
    let world = start(vec![rule("team/*", &[], &["alice"])]);
    let (config, digest) = world.push("alice", "team/app").await;
    for who in ["bob", ""] {
        for rest in [
            "manifests/v1".to_string(),
            format!("manifests/{digest}"),
            format!("blobs/{config}"),
            format!("referrers/{digest}"),
            format!("referrers/{digest}?artifactType=a"),
            "tags/list".to_string(),
            "tags/list?n=x".to_string(),
            "blobs/uploads/".to_string(),
        ] {
            for method in ["GET", "HEAD", "POST", "PUT", "DELETE"] {
                let [there, absent, elsewhere] = [
                    world.ask(who, method, &format!("/v2/team/app/{rest}"), b"").await,
                    world.ask(who, method, &format!("/v2/team/nil/{rest}"), b"").await,
                    world.ask(who, method, &format!("/v2/other/x/{rest}"), b"").await,
                ];
                let renamed = |reply: &Reply| {
                    let (status, headers, text) = seen(reply);
                    (status, headers, text.replace("team/app", "R").replace("team/nil", "R").replace("other/x", "R"))
                };
                assert_eq!(renamed(&there), renamed(&absent), "{who:?} {method} {rest}");
                // Lengths differ with the name's alone: the three have equally long names but this one.
                assert_eq!(there.status, elsewhere.status, "{who:?} {method} {rest}");
            }
        }
    }
}

#[tokio::test]
async fn a_blob_is_mounted_only_from_where_the_caller_may_read_it() {
    let world =
        start(vec![rule("alice/*", &[], &["alice"]), rule("bob/*", &[], &["bob"]), rule("all/*", &["*"], &["alice"])]);
    let (config, _) = world.push("alice", "alice/app").await;
    let mount = async |who: &str, query: &str| {
        let path = format!("/v2/{who}/new/blobs/uploads/?mount={config}{query}");
        world.ask(who, "POST", &path, b"").await.status
    };
    for query in ["", "&from=alice/app", "&from=nothing/here"] {
        assert_eq!(mount("bob", query).await, 202, "{query}");
    }
    let hidden = world.ask("bob", "GET", &format!("/v2/bob/new/blobs/{config}"), b"").await;
    assert_eq!(hidden.code(), "BLOB_UNKNOWN");
    assert_eq!(mount("alice", "").await, 201);
    world.push("alice", "all/app").await;
    for query in ["&from=alice/app", "&from=all/app", ""] {
        assert_eq!(mount("bob", query).await, if query == "&from=alice/app" { 202 } else { 201 }, "{query}");
    }
}

#[tokio::test]
async fn an_upload_is_its_users_alone() {
    let world = start(Vec::new());
    let upload = world.ask("alice", "POST", "/v2/a/blobs/uploads/", b"").await.header("location").unwrap().to_string();
    let digest = Digest::sha256(b"content");
    let end = format!("{upload}?digest={digest}");
    for (who, status) in [("bob", 404), ("token", 404), ("", 401)] {
        for (method, path) in [("GET", &upload), ("PATCH", &upload), ("PUT", &end), ("DELETE", &upload)] {
            assert_eq!(world.ask(who, method, path, b"").await.status, status, "{who} {method}");
        }
    }
    assert_eq!(world.ask("alice", "PATCH", &upload, b"content").await.status, 202);
    assert_eq!(world.ask("alice", "PUT", &end, b"").await.status, 201);
}

#[tokio::test]
async fn a_user_who_is_taken_away_is_refused_and_a_new_one_let_in() {
    let world = start(Vec::new());
    assert_eq!(world.ask("alice", "GET", "/v2/", b"").await.status, 200);
    assert_eq!(world.ask("dave", "GET", "/v2/", b"").await.status, 401);
    std::fs::write(&world.htpasswd, line("dave")).unwrap();
    // The file is looked at once a second, when somebody asks.
    let mut asked = 0;
    while world.ask("alice", "GET", "/v2/", b"").await.status == 200 {
        asked += 1;
        assert!(asked < 1000, "a change is seen");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(world.ask("dave", "GET", "/v2/", b"").await.status, 200);
    assert_eq!(world.ask("bob", "GET", "/v2/", b"").await.status, 401);
}

#[tokio::test]
async fn guesses_are_refused_with_503_past_a_bound_and_users_go_on_meanwhile() {
    let world = start(Vec::new());
    world.push("alice", "a").await;
    let mut guesses = Vec::new();
    for n in 0..200 {
        let mut client = world.running.connect().await;
        guesses.push(tokio::spawn(async move {
            let value = basic("slow", &n.to_string());
            let reply = client.request("GET", "/v2/", &[("authorization", &value)], b"").await;
            if reply.status == 503 {
                assert_eq!((reply.code().as_str(), reply.header("retry-after")), ("UNAVAILABLE", Some("5")));
            }
            reply.status
        }));
    }
    assert_eq!(
        world.ask("alice", "GET", "/v2/a/manifests/v1", b"").await.status,
        200,
        "who was known waits for nobody"
    );
    let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
    for guess in guesses {
        *statuses.entry(guess.await.unwrap()).or_default() += 1;
    }
    assert_eq!(statuses.keys().copied().collect::<Vec<_>>(), [401, 503]);
}

#[tokio::test]
async fn a_push_that_is_refused_is_not_read() {
    let world = start(Vec::new());
    let mut client = world.running.connect().await;
    client.send(b"PUT /v2/a/manifests/v1 HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n").await;
    let reply = client.reply(false).await.unwrap();
    assert_eq!((reply.status, reply.header("connection")), (401, Some("close")));
    assert!(client.is_closed().await);
    assert_eq!(world.scene.store.local_repositories().unwrap(), []);
}
