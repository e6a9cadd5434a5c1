//! Who may read: the three modes, and that what is held looks like what is not to those who may not.

use base64::Engine as _;
use larder::mirror::Mode;

use super::{MANIFEST, Scene, cache_status, push, serve_bound};
use crate::{
    server::{Client, Reply},
    support::{
        registry::{Auth, Fault, Kind, Options, ScriptedRegistry, Seen, of},
        upstream::INDEX,
    },
};

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// Everything of an answer but its date.
fn shown(reply: &Reply) -> (u16, Vec<(String, String)>, String) {
    let headers = reply.headers.iter().filter(|(name, _)| name != "date").cloned().collect();
    (reply.status, headers, reply.text())
}

fn token() -> Options {
    Options { auth: Auth::Token { user: Some(("u", "pw")), realm: None, expires_in: None }, tls: None }
}

fn in_repository(name: &'static str) -> impl Fn(&Seen) -> bool + Send + Sync + 'static {
    move |seen| seen.path.starts_with(&format!("/v2/{name}/"))
}

#[tokio::test]
async fn in_public_mode_what_the_upstream_hides_is_404_whether_it_is_held_or_not() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "private/a", "v1", b"the secret layer");
    push(&scene.upstream, "public/b", "v1", b"the public layer");
    // While it is public it is fetched.
    for path in ["manifests/v1".to_string(), format!("blobs/{}", image.layer)] {
        assert_eq!(scene.get(&format!("private/a/{path}")).await.status, 200);
    }
    scene.get("public/b/manifests/v1").await;
    // Knowing its digest gives nothing through another repository.
    let absent = larder::digest::Digest::sha256(b"absent");
    let held = scene.get(&format!("public/b/blobs/{}", image.layer)).await;
    let missing = scene.get(&format!("public/b/blobs/{absent}")).await;
    assert_eq!((held.status, shown(&held)), (404, shown(&missing)));
    let held = scene.get(&format!("public/b/manifests/{}", image.digest)).await;
    let missing = scene.get(&format!("public/b/manifests/{absent}")).await;
    assert_eq!((held.status, shown(&held)), (404, shown(&missing)));
    // Then it is hidden, which is seen five minutes later.
    scene.upstream.fault(in_repository("private/a"), usize::MAX, Fault::status(401));
    scene.pass(299);
    assert_eq!(scene.get(&format!("private/a/blobs/{}", image.layer)).await.status, 200);
    scene.pass(1);
    for method in ["GET", "HEAD"] {
        let held = scene.request(method, &format!("private/a/blobs/{}", image.layer), &[]).await;
        let missing = scene.request(method, &format!("private/a/blobs/{absent}"), &[]).await;
        assert_eq!((held.status, shown(&held)), (404, shown(&missing)), "{method}");
        let held = scene.request(method, &format!("private/a/manifests/{}", image.digest), &[]).await;
        let missing = scene.request(method, &format!("private/a/manifests/{absent}"), &[]).await;
        assert_eq!((held.status, shown(&held)), (404, shown(&missing)), "{method}");
        // No credential of the client's goes anywhere, and none is asked for.
        let bearer = scene.request(method, "private/a/manifests/v1", &[("authorization", "Bearer x")]).await;
        assert_eq!((bearer.status, bearer.header("www-authenticate")), (404, None));
    }
    assert!(scene.upstream.seen().iter().all(|seen| seen.header("authorization") != Some("Bearer x")));
}

#[tokio::test]
async fn a_private_upstream_in_public_mode_is_404_and_says_why() {
    let scene = Scene::guarded(Options { auth: Auth::Basic("u", "pw"), tls: None }, Mode::Public).await;
    push(&scene.upstream, "a", "v1", b"layer");
    let reply = scene.get("a/manifests/v1").await;
    assert_eq!((reply.status, reply.header("www-authenticate")), (404, None));
    assert!(reply.text().contains("upstream said 401"), "{}", reply.text());
}

#[tokio::test]
async fn in_pass_through_the_upstreams_challenge_is_relayed_and_its_token_taken() {
    let scene = Scene::guarded(token(), Mode::PassThrough).await;
    let image = push(&scene.upstream, "a/b", "v1", b"layer");
    let path = "a/b/manifests/v1";
    let reply = scene.head(path).await;
    let realm = format!("{}/token", scene.upstream.origin());
    let challenge = format!(r#"Bearer realm="{realm}",service="scripted",scope="repository:a/b:pull""#);
    assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some(&*challenge)));
    // As a client does: a token from the upstream's own service.
    let token = token_for(&scene, "a/b").await;
    let bearer = [("authorization", token.as_str())];
    let reply = scene.request("GET", path, &bearer).await;
    assert_eq!((reply.status, &reply.body), (200, &image.manifest));
    assert_eq!(cache_status(&reply), "larder; fwd=miss; stored");
    let blob = format!("a/b/blobs/{}", image.layer);
    let reply = scene.request("GET", &blob, &bearer).await;
    assert_eq!((reply.status, &reply.body), (200, &image.layer_bytes));
    let asked = scene.upstream.requests();
    for path in [path, &blob] {
        let reply = scene.request("GET", path, &bearer).await;
        assert_eq!((reply.status, cache_status(&reply)), (200, "larder; hit"), "{path}");
    }
    assert_eq!(scene.upstream.requests(), asked, "a grant is good for a while");
    // Another token has to be asked about once, and is told nothing of what is held.
    let other = token_for(&scene, "a/b").await;
    assert_ne!(other, token);
    let reply = scene.request("GET", &blob, &[("authorization", &other)]).await;
    assert_eq!((reply.status, cache_status(&reply)), (200, "larder; fwd=miss; stored"));
    assert_eq!(scene.asked(Kind::BlobGet), 1);
    // One for another repository, a wrong one and none are refused.
    let elsewhere = token_for(&scene, "c").await;
    let absent = format!("a/b/blobs/{}", larder::digest::Digest::sha256(b"absent"));
    for headers in [&[("authorization", elsewhere.as_str())][..], &[("authorization", "Bearer wrong")], &[]] {
        let held = scene.request("GET", &blob, headers).await;
        let missing = scene.request("GET", &absent, headers).await;
        assert_eq!((held.status, shown(&held)), (401, shown(&missing)), "{headers:?}");
    }
    // Revoked: five minutes later it is over.
    scene.upstream.revoke_tokens();
    scene.pass(300);
    let reply = scene.request("GET", &blob, &bearer).await;
    assert_eq!(reply.status, 401);
    let log: String = std::fs::read(scene.root.path().join("data/grants/readers"))
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap();
    assert!(!log.contains("token-"), "nothing of a token is kept");
}

/// A token for a repository, as its `Authorization`; the scripted service gives it to whoever has the password.
async fn token_for(scene: &Scene, repository: &str) -> String {
    let scope = repository.replace('/', "%2F");
    let target = format!("/token?service=scripted&scope=repository%3A{scope}%3Apull");
    let authorization = basic("u", "pw");
    let mut client = Client::to(scene.upstream.address).await;
    let answer = client.request("GET", &target, &[("authorization", &authorization)], b"").await;
    format!("Bearer {}", answer.json()["token"].as_str().unwrap())
}

#[tokio::test]
async fn pass_through_by_basic_and_with_the_upstream_down_for_an_hour() {
    let options = Options { auth: Auth::Basic("u", "pw"), tls: None };
    let scene = Scene::guarded(options, Mode::PassThrough).await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    let (right, wrong) = (basic("u", "pw"), basic("u", "no"));
    let path = "a/manifests/v1";
    assert_eq!(scene.get(path).await.header("www-authenticate"), Some(r#"Basic realm="scripted""#));
    assert_eq!(scene.request("GET", path, &[("authorization", &wrong)]).await.status, 401);
    assert_eq!(scene.request("GET", path, &[("authorization", &right)]).await.body, image.manifest);
    let scene = scene.restarted_without_upstream(|config| config.mode = Mode::PassThrough).await;
    for (later, status) in [(0, 200), (299, 200), (3600, 200), (1, 503)] {
        scene.pass(later);
        let reply = scene.request("GET", path, &[("authorization", &right)]).await;
        assert_eq!(reply.status, status, "{later}");
        for headers in [&[("authorization", wrong.as_str())][..], &[]] {
            assert_eq!(scene.request("GET", path, headers).await.status, 503, "never a new grant");
        }
    }
}

#[tokio::test]
async fn at_the_door_of_a_pass_through_upstream_its_own_challenge_stands() {
    let scene = Scene::guarded(token(), Mode::PassThrough).await;
    let bound = serve_bound(&scene.mirror);
    let realm = format!("{}/token", scene.upstream.origin());
    let challenge = format!(r#"Bearer realm="{realm}",service="scripted",scope="repository::pull""#);
    let doors = [(&bound, "/v2/"), (&bound, "/v2/?ns=up.example"), (&scene.running, "/v2/?ns=up.example")];
    // The only upstream there is, and no repositories of its own.
    let doors = [&doors[..], &[(&scene.running, "/v2/")]].concat();
    for (running, target) in &doors {
        let reply = running.get(target, &[]).await;
        assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some(&*challenge)), "{target}");
        assert_eq!(reply.header("docker-distribution-api-version"), Some("registry/2.0"));
        assert_eq!(reply.code(), "UNAUTHORIZED");
    }
    assert_eq!(scene.asked(Kind::Ping), 1, "its answer is good for a while");
    // What the upstream takes is welcome, what it refuses is not.
    let token = token_for(&scene, "").await;
    for _ in 0..2 {
        for (value, status) in [(&*token, 200), ("Bearer wrong", 401), (&basic("u", "no"), 401), ("Digest x", 401)] {
            let reply = bound.get("/v2/", &[("authorization", value)]).await;
            assert_eq!(reply.status, status, "{value}");
            let challenged = reply.header("www-authenticate");
            assert_eq!(challenged, (status == 401).then_some(&*challenge), "{value}");
        }
    }
    assert_eq!(scene.asked(Kind::Ping), 4);
    // While it is down its last word is good, and whoever shows something is not turned away.
    scene.upstream.fault(|_| true, usize::MAX, Fault::status(503));
    scene.pass(300);
    assert_eq!(bound.get("/v2/", &[]).await.header("www-authenticate"), Some(&*challenge));
    assert_eq!(bound.get("/v2/", &[("authorization", "Bearer wrong")]).await.status, 200);
    bound.stopped().await;
    let scene = scene.restarted_without_upstream(|config| config.mode = Mode::PassThrough).await;
    assert_eq!(scene.get("").await.status, 200, "nothing is known of it");
}

#[tokio::test]
async fn a_public_upstreams_door_is_open_and_nobody_is_asked() {
    let scene = Scene::guarded(token(), Mode::Public).await;
    let bound = serve_bound(&scene.mirror);
    for headers in [&[][..], &[("authorization", "Bearer wrong")]] {
        assert_eq!(bound.get("/v2/", headers).await.status, 200);
        assert_eq!(scene.request("GET", "", headers).await.status, 200);
    }
    assert_eq!(scene.upstream.connections(), 0);
}

#[tokio::test]
async fn while_the_upstream_is_down_whoever_was_let_in_is_asked_to_show_it() {
    let options = Options { auth: Auth::Basic("u", "pw"), tls: None };
    let scene = Scene::guarded(options, Mode::PassThrough).await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    let right = basic("u", "pw");
    let blob = format!("a/blobs/{}", image.layer);
    assert_eq!(scene.get("a/manifests/v1").await.status, 401);
    for path in ["a/manifests/v1", &blob] {
        assert_eq!(scene.request("GET", path, &[("authorization", &right)]).await.status, 200);
    }
    scene.upstream.fault(|_| true, usize::MAX, Fault::status(503));
    scene.pass(600);
    let absent = format!("a/blobs/{}", larder::digest::Digest::sha256(b"absent"));
    for (path, status) in [("a/manifests/v1", 200), (&blob, 200), (&absent, 503), ("a/manifests/v2", 503)] {
        let reply = scene.get(path).await;
        assert_eq!(
            (reply.status, reply.header("www-authenticate")),
            (401, Some(r#"Basic realm="scripted""#)),
            "{path}"
        );
        assert_eq!(scene.request("GET", path, &[("authorization", &right)]).await.status, status, "{path}");
        let wrong = scene.request("GET", path, &[("authorization", &basic("u", "no"))]).await;
        assert_eq!(wrong.status, 503, "{path}");
    }
}

#[tokio::test]
async fn in_shared_mode_the_operators_credential_reads_for_everybody() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("config.json");
    let write = |password: &str| {
        let auth = basic("u", password).replace("Basic ", "");
        let beside = root.path().join(password);
        std::fs::write(&beside, format!(r#"{{"auths":{{"up.example":{{"auth":"{auth}"}}}}}}"#)).unwrap();
        std::fs::rename(beside, &file).unwrap();
    };
    write("old");
    let options = Options { auth: Auth::Basic("u", "pw"), tls: None };
    let upstream = ScriptedRegistry::start_with(options).await;
    let scene = Scene::of(upstream, |config| {
        config.mode = Mode::Shared;
        config.credentials = Some(file.clone());
    })
    .await;
    push(&scene.upstream, "a", "v1", b"layer");
    let reply = scene.get("a/manifests/v1").await;
    assert_eq!((reply.status, reply.header("www-authenticate")), (404, None), "{}", reply.text());
    write("pw");
    scene.pass(30);
    assert_eq!(scene.get("a/manifests/v1").await.status, 200);
    assert_eq!(cache_status(&scene.get("a/manifests/v1").await), "larder; hit");
}

#[tokio::test]
async fn what_is_not_among_the_repositories_that_are_mirrored_is_404_and_nobody_is_asked() {
    let upstream = ScriptedRegistry::start().await;
    let scene = Scene::of(upstream, |config| config.repositories = vec!["^team/.*$".parse().unwrap()]).await;
    let image = push(&scene.upstream, "team/app", "v1", b"layer");
    push(&scene.upstream, "other", "v1", b"layer");
    for path in ["manifests/v1".to_string(), format!("blobs/{}", image.layer), "tags/list".into()] {
        assert_eq!(scene.get(&format!("team/app/{path}")).await.status, 200);
        assert_eq!(scene.get(&format!("other/{path}")).await.status, 404);
    }
    assert!(scene.upstream.seen().iter().all(|seen| seen.path.starts_with("/v2/team/app/")));
}

#[tokio::test]
async fn a_blob_asked_for_by_itself_is_hidden_with_its_repository_also_while_the_upstream_is_down() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    let path = format!("a/blobs/{}", image.layer);
    for status in ["larder; fwd=miss; stored", "larder; hit"] {
        let reply = scene.get(&path).await;
        assert_eq!((reply.status, cache_status(&reply)), (200, status), "no manifest names it here yet");
    }
    scene.pass(300);
    assert_eq!((scene.get(&path).await.status, scene.asked(Kind::BlobHead)), (200, 1), "the blob itself is asked for");
    scene.upstream.fault(|_| true, usize::MAX, Fault::status(401));
    scene.pass(300);
    assert_eq!(scene.get(&path).await.status, 404);
    scene.upstream.heal();
    scene.upstream.fault(|_| true, usize::MAX, Fault::status(503));
    scene.pass(30);
    assert_eq!(scene.get(&path).await.status, 503);
}

#[tokio::test]
async fn the_end_of_a_public_repository_survives_a_restart_and_an_outage() {
    let scene = Scene::new().await;
    push(&scene.upstream, "a", "v1", b"layer");
    scene.get("a/manifests/v1").await;
    scene.upstream.fault(|_| true, usize::MAX, Fault::status(403));
    scene.pass(300);
    assert_eq!(scene.get("a/manifests/v1").await.status, 404);
    let scene = scene.restarted_without_upstream(|_| {}).await;
    assert_eq!(scene.get("a/manifests/v1").await.status, 503, "what was taken back is not served while it is down");
}

#[tokio::test]
async fn what_a_layer_or_an_index_names_gives_nothing_of_another_repository_away() {
    let scene = Scene::new().await;
    let secret = push(&scene.upstream, "private/a", "v1", b"the secret layer");
    for path in ["manifests/v1".to_string(), format!("blobs/{}", secret.layer)] {
        assert_eq!(scene.get(&format!("private/a/{path}")).await.status, 200);
    }
    scene.upstream.fault(in_repository("private/a"), usize::MAX, Fault::status(401));
    // A layer whose bytes are a manifest that names what is private.
    let disguised = String::from_utf8(secret.manifest.clone()).unwrap() + " ";
    let evil = push(&scene.upstream, "evil/app", "v1", disguised.as_bytes());
    for path in ["manifests/v1".to_string(), format!("blobs/{}", evil.layer)] {
        assert_eq!(scene.get(&format!("evil/app/{path}")).await.status, 200);
    }
    assert_eq!(scene.get(&format!("evil/app/manifests/{}", evil.layer)).await.status, 404);
    assert_eq!(scene.get(&format!("evil/app/blobs/{}", secret.layer)).await.status, 404);
    // An index, at an upstream that does not look whether it has what that names.
    let own = push(&scene.upstream, "evil/app", "own", b"a layer of its own");
    assert_eq!(scene.get("evil/app/manifests/own").await.status, 200);
    let index = |children: &[&super::Image]| {
        let children: Vec<_> = children
            .iter()
            .map(|child| format!(r#"{{"mediaType":"{MANIFEST}","digest":"{}","size":7}}"#, child.digest))
            .collect();
        format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#, children.join(","))
    };
    let names_both = index(&[&secret, &own]);
    for repository in ["evil/app", "evil/other"] {
        scene.upstream.add_manifest(repository, Some("all"), INDEX, names_both.as_bytes());
        assert_eq!(scene.get(&format!("{repository}/manifests/all")).await.status, 200);
        for what in ["manifests", "blobs"] {
            let path = format!("{repository}/{what}/{}", secret.digest);
            assert_eq!(scene.get(&path).await.status, 404, "{path}");
        }
    }
    // What is held and named is asked for once where it was not obtained, and then is like any other.
    let (heads, gets) = (scene.asked(Kind::ManifestHead), scene.asked(Kind::ManifestGet));
    scene.upstream.add_manifest("evil/other", None, MANIFEST, &own.manifest);
    for status in ["larder; fwd=miss; stored", "larder; hit"] {
        let reply = scene.get(&format!("evil/other/manifests/{}", own.digest)).await;
        assert_eq!((reply.status, cache_status(&reply)), (200, status));
    }
    assert_eq!((scene.asked(Kind::ManifestHead), scene.asked(Kind::ManifestGet)), (heads + 1, gets));
}

/// An image manifest that names a layer which its repository does not have.
fn names(layer: &super::Image) -> String {
    let config = larder::digest::Digest::sha256(b"{}");
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip","digest":"{}","size":{}}}]}}"#,
        layer.layer,
        layer.layer_bytes.len()
    )
}

#[tokio::test]
async fn what_an_image_manifest_names_is_the_repositorys_only_where_the_upstream_gives_it() {
    let scene = Scene::new().await;
    let layer: Vec<u8> = (0..2_000_000u32).map(|n| (n * 7) as u8).collect();
    let secret = push(&scene.upstream, "private/a", "v1", &layer);
    let secret_blob = format!("private/a/blobs/{}", secret.layer);
    assert_eq!(scene.get("private/a/manifests/v1").await.status, 200);
    scene.upstream.add_manifest("evil/app", Some("v1"), MANIFEST, names(&secret).as_bytes());
    assert_eq!(scene.get("evil/app/manifests/v1").await.status, 200);
    let evil_blob = format!("evil/app/blobs/{}", secret.layer);
    // On its way to those who may have it.
    let (open, gate) = tokio::sync::watch::channel(false);
    let gate = Fault::Gate { after: 1_500_000, open: gate, then: Box::new(Fault::Delay(Default::default())) };
    scene.upstream.fault(of(Kind::BlobGet), 1, gate);
    let (theirs, ()) = tokio::join!(scene.get(&secret_blob), async {
        while scene.asked(Kind::BlobGet) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        for method in ["GET", "HEAD"] {
            assert_eq!(scene.request(method, &evil_blob, &[]).await.status, 404, "{method}");
        }
        open.send(true).unwrap();
    });
    assert_eq!((theirs.status, theirs.body.len()), (200, layer.len()));
    // Held.
    scene.pass(60);
    for method in ["GET", "HEAD"] {
        assert_eq!(scene.request(method, &evil_blob, &[]).await.status, 404, "{method}");
    }
    // Where the upstream has it, one HEAD tells, also for what comes after a restart with the upstream down.
    let other = push(&scene.upstream, "public/b", "v1", &layer);
    assert_eq!(scene.get("public/b/manifests/v1").await.status, 200);
    let (heads, gets) = (scene.asked(Kind::BlobHead), scene.asked(Kind::BlobGet));
    let other_blob = format!("public/b/blobs/{}", other.layer);
    for status in ["larder; fwd=miss; stored", "larder; hit"] {
        let reply = scene.get(&other_blob).await;
        assert_eq!((reply.status, cache_status(&reply)), (200, status));
    }
    assert_eq!((scene.asked(Kind::BlobHead), scene.asked(Kind::BlobGet)), (heads + 1, gets));
    let scene = scene.restarted_without_upstream(|_| {}).await;
    for (path, status) in [(&other_blob, 200), (&secret_blob, 200), (&evil_blob, 404)] {
        let reply = scene.get(path).await;
        assert_eq!((reply.status == 200, path), (status == 200, path), "{}", reply.text());
    }
}

#[tokio::test]
async fn a_manifest_that_just_came_is_answered_from_the_disk() {
    let scene = Scene::new().await;
    push(&scene.upstream, "a", "v1", b"layer");
    let upstream = scene.mirror.named("up.example").unwrap();
    let caller = larder::mirror::Caller { authorization: None, private: true };
    let ask = larder::mirror::Ask { upstream, repository: "a".parse().unwrap(), caller };
    let found = scene.mirror.manifest(&ask, &"v1".parse().map(larder::oci::Selector::Tag).unwrap()).await.unwrap();
    assert!(matches!(found.content, larder::mirror::Content::Held(_)));
}

#[tokio::test]
async fn a_large_blob_that_is_held_is_no_manifest() {
    let scene = Scene::new().await;
    let bytes = vec![b' '; (4 << 20) + 1];
    let layer = scene.upstream.add_blob("a", &bytes);
    assert_eq!(scene.get(&format!("a/blobs/{layer}")).await.status, 200);
    // Whatever the upstream says of it by HEAD.
    let headers = vec![("Docker-Content-Digest", layer.to_string()), ("Content-Type", MANIFEST.to_owned())];
    let fault = Fault::Answer { status: 200, headers, body: String::new() };
    scene.upstream.fault(of(Kind::ManifestHead), 1, fault);
    assert_eq!(scene.get(&format!("a/manifests/{layer}")).await.status, 404);
    assert_eq!((scene.asked(Kind::ManifestHead), scene.asked(Kind::ManifestGet)), (1, 1));
}

#[tokio::test]
async fn what_is_held_of_a_repository_that_was_hidden_is_asked_for_once_in_a_while() {
    let scene = Scene::new().await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    let path = format!("a/blobs/{}", image.layer);
    for path in ["a/manifests/v1", &path] {
        assert_eq!(scene.get(path).await.status, 200);
    }
    scene.upstream.fault(|_| true, usize::MAX, Fault::status(401));
    scene.pass(300);
    assert_eq!(scene.get(&path).await.status, 404);
    let asked = scene.upstream.requests();
    for _ in 0..5 {
        assert_eq!(scene.get(&path).await.status, 404);
    }
    assert_eq!(scene.upstream.requests(), asked);
}

#[tokio::test]
async fn a_refusal_of_the_upstreams_storage_takes_nothing_back() {
    for mode in [Mode::Public, Mode::PassThrough] {
        let (scene, storage) = (Scene::with(|config| config.mode = mode).await, ScriptedRegistry::start().await);
        let image = push(&scene.upstream, "a", "v1", b"layer");
        for path in ["a/manifests/v1".to_owned(), format!("a/blobs/{}", image.config)] {
            assert_eq!(scene.get(&path).await.status, 200);
        }
        let elsewhere = format!("{}/blob", storage.origin());
        scene.upstream.fault(of(Kind::BlobGet), usize::MAX, Fault::redirect(elsewhere));
        storage.fault(|_| true, usize::MAX, Fault::status(403));
        let blob = format!("a/blobs/{}", image.layer);
        for _ in 0..3 {
            let reply = scene.get(&blob).await;
            assert_eq!((reply.status, reply.header("www-authenticate")), (404, None), "{}", reply.text());
            assert!(reply.text().contains("upstream said 403"), "{}", reply.text());
        }
        assert_eq!(storage.requests(), 1, "it is remembered");
        let asked = scene.upstream.requests();
        for path in ["a/manifests/v1".to_owned(), format!("a/blobs/{}", image.config)] {
            assert_eq!(cache_status(&scene.get(&path).await), "larder; hit", "{path}");
        }
        assert_eq!(scene.upstream.requests(), asked);
    }
}

#[tokio::test]
async fn a_refresh_token_goes_nowhere_that_the_token_service_leads_to() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("config.json");
    std::fs::write(&file, r#"{"auths":{"up.example":{"identitytoken":"pw"}}}"#).unwrap();
    let (upstream, other) = (ScriptedRegistry::start_with(token()).await, ScriptedRegistry::start().await);
    let scene = Scene::of(upstream, |config| {
        config.mode = Mode::Shared;
        config.credentials = Some(file.clone());
    })
    .await;
    let image = push(&scene.upstream, "a", "v1", b"layer");
    let elsewhere = format!("{}/token", other.origin());
    scene.upstream.fault(|seen| seen.method == "POST", 1, Fault::redirect(elsewhere));
    assert_eq!(scene.get("a/manifests/v1").await.status, 503);
    assert_eq!(other.requests(), 0);
    // On the service itself it may go on.
    scene.upstream.fault(|seen| seen.method == "POST", 1, Fault::redirect("/token?again"));
    assert_eq!(scene.get("a/manifests/v1").await.body, image.manifest);
}
