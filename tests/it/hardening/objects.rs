//! The O rows: objects and Secrets that are wrong, or change at a bad moment.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    upstream::{REPOSITORY, Upstream},
    world::{AUTHENTICATION, NAMESPACE, Outcome, PULL, Row, SECRET, World, object, run_rows},
};
use crate::support::{
    certificates::Ca,
    eventually,
    fixtures::{Entry, Tar, files, files_in, gzip, tar_of},
    http,
    larder::{condition_of, fetch_artifact, is_ready, text},
    registry::{Fault, Kind, Options, of},
};

const KIND: &str = "OCIRepository";

fn stalled(world: &World, name: &str, reason: &str) -> Value {
    let object = world.larder.wait_failed(KIND, NAMESPACE, name, "FetchFailed", reason);
    let stalled = condition_of(&object, "Stalled");
    assert_eq!((&stalled["status"], &stalled["reason"]), (&json!("True"), &json!(reason)), "{name}");
    assert_eq!(object["status"]["observedGeneration"], object["metadata"]["generation"], "{name}");
    object
}

#[test]
fn addresses_that_are_wrong_or_forbidden_are_never_contacted() {
    let world = World::start(&[]);
    let up = Upstream::start();
    up.push_files(&files(&[("a", "b")]));
    let (host, port) = (up.authority(), up.address.port());
    let long = "h".repeat(4096);
    let wrong = [
        ("o1-tag", format!("oci://{host}/{REPOSITORY}:latest"), "spec"),
        ("o1-digest", format!("oci://{host}/{REPOSITORY}@sha256:{}", "a".repeat(64)), "spec"),
        ("o1-userinfo", format!("oci://user:{SECRET}@{host}/{REPOSITORY}"), "spec"),
        ("o1-fragment", format!("oci://{host}/{REPOSITORY}#x"), "spec"),
        ("o1-query", format!("oci://{host}/{REPOSITORY}?x=y"), "spec"),
        ("o1-parent", format!("oci://{host}/../{REPOSITORY}"), "spec"),
        ("o1-long-host", format!("oci://{long}/{REPOSITORY}"), "spec"),
        ("o1-no-repository", format!("oci://{host}/"), "spec"),
        ("o1-port", format!("oci://127.0.0.1:99999/{REPOSITORY}"), "spec"),
        ("o2-metadata", format!("oci://169.254.169.254/{REPOSITORY}"), "policy"),
        ("o2-metadata-in-ipv6", format!("oci://[::ffff:169.254.169.254]/{REPOSITORY}"), "policy"),
        ("o2-hexadecimal", format!("oci://0x7f.1:{port}/{REPOSITORY}"), "spec"),
        ("o2-octal", format!("oci://0177.0.0.1:{port}/{REPOSITORY}"), "spec"),
        ("o2-decimal", format!("oci://2130706433:{port}/{REPOSITORY}"), "spec"),
        ("o2-short", format!("oci://127.1:{port}/{REPOSITORY}"), "spec"),
        ("o2-localhost", format!("oci://localhost:{port}/{REPOSITORY}"), "policy"),
        ("o2-below-localhost", format!("oci://x.localhost:{port}/{REPOSITORY}"), "policy"),
        ("o2-denied", format!("oci://{}/{REPOSITORY}", world.honeypot.address), "policy"),
        ("o2-api-server", format!("oci://kubernetes.default.svc/{REPOSITORY}"), "policy"),
        ("o2-api-server-full", format!("oci://kubernetes.default.svc.cluster.local/{REPOSITORY}"), "policy"),
    ];
    for (name, url, _) in &wrong {
        world.apply(&object(KIND, NAMESPACE, name, url, &json!({})));
    }
    let mut failed = Vec::new();
    for (name, url, class) in &wrong {
        let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let object = stalled(&world, name, "URLInvalid");
            assert!(object["status"]["artifact"].is_null());
        }));
        let logged = world.classes().get(&format!("{KIND}/{NAMESPACE}/{name}")).cloned();
        if judged.is_err() || logged.as_deref() != Some(*class) {
            failed.push(format!("{name} ({}): {logged:?}, not {class}", &url[..url.len().min(80)]));
        }
    }
    // What is no oci:// at all is no document of ours, and never the reason to skip the others.
    world.apply(&object(KIND, NAMESPACE, "o1-http", &format!("http://{host}/{REPOSITORY}"), &json!({})));
    eventually("o1-http to be refused", || {
        let listing = world.larder.listing();
        let stalled = world
            .larder
            .object(KIND, NAMESPACE, "o1-http")
            .map(|object| condition_of(&object, "Stalled")["status"] == "True");
        let told = listing["errors"].to_string().contains("o1-http");
        if told || stalled == Some(true) { Ok(()) } else { Err(listing["errors"].to_string()) }
    });
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(up.connections(), 0);
    // The secret in a url is the user's own spec, which is shown as it stands; no message and no log repeats it.
    world.delete("o1-userinfo");
    world.larder.wait_gone(KIND, NAMESPACE, "o1-userinfo");
    world.finish();
}

#[test]
fn secrets_that_are_wrong_fail_their_object_alone() {
    let world = World::start(&[]);
    let ca = Ca::new();
    let tls = || Options {
        tls: Some(crate::support::certificates::server(&ca.issue(&["127.0.0.1"]), None)),
        ..Options::default()
    };
    world.apply_secret("ca", "Opaque", &json!({ "ca.crt": ca.pem() }));
    world.apply_secret("wrong-type", "Opaque", &json!({ "other": SECRET }));
    world.apply_secret("opaque", "Opaque", &json!({ ".dockerconfigjson": "{\"auths\":{}}" }));
    world.apply_secret(
        "malformed",
        "kubernetes.io/dockerconfigjson",
        &json!({ ".dockerconfigjson": format!("{{\"auths\":{{\"x\":{{\"auth\":\"{SECRET}") }),
    );
    world.apply_secret(
        "bad-auth",
        "kubernetes.io/dockerconfigjson",
        &json!({ ".dockerconfigjson": json!({ "auths": { "127.0.0.1": { "auth": SECRET } } }).to_string() }),
    );
    world.apply_secret(
        "garbage-ca",
        "Opaque",
        &json!({ "ca.crt": format!("-----BEGIN CERTIFICATE-----\n{SECRET}\n-----END CERTIFICATE-----\n") }),
    );
    let (one, other) = (ca.issue(&["a.example"]), ca.issue(&["b.example"]));
    world.apply_secret("mismatch", "Opaque", &json!({ "tls.crt": one.certificate, "tls.key": other.key }));
    world.apply_secret("no-key", "Opaque", &json!({ "tls.crt": one.certificate }));
    world.apply_secret("proxy-without-address", "Opaque", &json!({ "password": SECRET }));
    let cases: Vec<(&str, Value, &str)> = vec![
        ("o3-missing", json!({ "secretRef": { "name": "absent" } }), "'rows/absent' not found"),
        ("o3-wrong-type", json!({ "secretRef": { "name": "wrong-type" } }), "rows/wrong-type"),
        ("o3-opaque", json!({ "secretRef": { "name": "opaque" } }), "has to be kubernetes.io/dockerconfigjson"),
        ("o3-malformed", json!({ "secretRef": { "name": "malformed" } }), "rows/malformed"),
        ("o3-bad-auth", json!({ "secretRef": { "name": "bad-auth" } }), "rows/bad-auth"),
        ("o3-other-namespace", json!({ "secretRef": { "name": "ns/other" } }), "ns/other"),
        ("o3-no-account", json!({ "serviceAccountName": "absent" }), "'rows/absent' not found"),
        ("o3-proxy", json!({ "proxySecretRef": { "name": "proxy-without-address" } }), "rows/proxy-without-address"),
        ("o4-garbage-ca", json!({ "certSecretRef": { "name": "garbage-ca" } }), ""),
        ("o4-mismatch", json!({ "certSecretRef": { "name": "mismatch" } }), ""),
        ("o4-no-key", json!({ "certSecretRef": { "name": "no-key" } }), "rows/no-key"),
        ("o4-missing", json!({ "certSecretRef": { "name": "absent" } }), "'rows/absent' not found"),
    ];
    let mut before = Vec::new();
    let mut ups = Vec::new();
    for (name, ..) in &cases {
        let up = Upstream::start_with(tls());
        up.push_files(&files(&[("a", name)]));
        world.apply(&object(
            KIND,
            NAMESPACE,
            name,
            &up.url(),
            &json!({ "insecure": false, "certSecretRef": { "name": "ca" } }),
        ));
        ups.push(up);
    }
    for (name, ..) in &cases {
        let object = world.larder.wait_ready(KIND, NAMESPACE, name);
        let bytes = fetch_artifact(&object);
        before.push((object["status"]["artifact"].clone(), bytes));
    }
    let counted = world.outcomes("auth");
    let mut asked = Vec::new();
    for ((name, spec, _), up) in cases.iter().zip(&ups) {
        let mut full = json!({ "insecure": false, "certSecretRef": { "name": "ca" } });
        for (key, value) in spec.as_object().unwrap() {
            full[key] = value.clone();
        }
        asked.push(up.requests());
        world.apply(&object(KIND, NAMESPACE, name, &up.url(), &full));
    }
    for (n, (name, _, says)) in cases.iter().enumerate() {
        let object = world.larder.wait_failed(KIND, NAMESPACE, name, "FetchFailed", AUTHENTICATION);
        let message = text(condition_of(&object, "FetchFailed"), "/message").to_owned();
        assert!(message.contains(says), "{name}: {message}");
        assert_eq!(object["status"]["artifact"], before[n].0, "{name}: U1");
        assert!(fetch_artifact(&object) == before[n].1, "{name}: U1");
        assert_eq!(ups[n].requests(), asked[n], "{name}: nothing was sent");
        assert_eq!(
            world.classes().get(&format!("{KIND}/{NAMESPACE}/{name}")).map(String::as_str),
            Some("auth"),
            "{name}"
        );
    }
    assert!(world.outcomes("auth") >= counted + cases.len() as u64);
    world.finish();
}

#[test]
fn a_change_during_a_fetch_never_publishes_what_is_stale() {
    let world = World::start(&[]);
    let slow = |up: &Upstream| up.fault(of(Kind::BlobGet), 1, Fault::Delay(Duration::from_millis(1500)));
    let fetching = |up: &Upstream, before: usize| {
        eventually("the blob to be asked for", || match up.count(Kind::BlobGet) {
            n if n > before => Ok(()),
            n => Err(n.to_string()),
        });
    };
    // The spec changes.
    let up = Upstream::start();
    up.push_files(&files(&[("tag", "old")]));
    up.push_files(&files(&[("tag", "new")]));
    let spec = |tag: &str| object(KIND, NAMESPACE, "changes", &up.url(), &json!({ "ref": { "tag": tag } }));
    let manifest = up.manifest(REPOSITORY, "latest").unwrap();
    up.add_manifest(REPOSITORY, Some("new"), super::upstream::MANIFEST, &manifest);
    up.push_files(&files(&[("tag", "old")]));
    let manifest = up.manifest(REPOSITORY, "latest").unwrap();
    up.add_manifest(REPOSITORY, Some("old"), super::upstream::MANIFEST, &manifest);
    slow(&up);
    world.apply(&spec("old"));
    fetching(&up, 0);
    world.apply(&spec("new"));
    let object_ready = world.larder.wait(KIND, NAMESPACE, "changes", |object| {
        if let Some(revision) = object["status"]["artifact"]["revision"].as_str() {
            assert!(object["metadata"]["generation"] == 1 || revision.starts_with("new@"), "{object}");
        }
        is_ready(object) && object["metadata"]["generation"] == 2
    });
    assert_eq!(files_in(&fetch_artifact(&object_ready)), files(&[("tag", "new")]));
    // Longer than the delay: the pass over the first generation ends in vain.
    std::thread::sleep(Duration::from_millis(1600));
    let object_later = world.larder.object(KIND, NAMESPACE, "changes").unwrap();
    assert_eq!(object_later["status"]["artifact"], object_ready["status"]["artifact"]);

    // It is suspended.
    let up = Upstream::start();
    up.push_files(&files(&[("v", "1")]));
    let spec =
        |suspend: bool| object(KIND, NAMESPACE, "sleeps", &up.url(), &json!({ "suspend": suspend, "interval": "1s" }));
    world.apply(&spec(false));
    let first = world.larder.wait_ready(KIND, NAMESPACE, "sleeps");
    let blobs = up.count(Kind::BlobGet);
    slow(&up);
    up.push_files(&files(&[("v", "2")]));
    fetching(&up, blobs);
    world.apply(&spec(true));
    world.larder.wait(KIND, NAMESPACE, "sleeps", |object| object["spec"]["suspend"] == true);
    std::thread::sleep(Duration::from_millis(1600));
    let asked = up.requests();
    std::thread::sleep(Duration::from_millis(1300));
    assert_eq!(up.requests(), asked, "no requests while suspended");
    let suspended = world.larder.object(KIND, NAMESPACE, "sleeps").unwrap();
    assert_eq!(suspended["status"]["artifact"], first["status"]["artifact"], "the fetch was of another generation");
    fetch_artifact(&suspended);

    // It is deleted.
    let up = Upstream::start();
    up.push_files(&files(&[("v", "1")]));
    world.apply(&object(KIND, NAMESPACE, "goes", &up.url(), &json!({ "interval": "1s" })));
    let first = world.larder.wait_ready(KIND, NAMESPACE, "goes");
    let blobs = up.count(Kind::BlobGet);
    slow(&up);
    up.push_files(&files(&[("v", "2")]));
    fetching(&up, blobs);
    world.delete("goes");
    world.larder.wait_gone(KIND, NAMESPACE, "goes");
    std::thread::sleep(Duration::from_millis(1600));
    assert!(world.larder.object(KIND, NAMESPACE, "goes").is_none());
    let url = text(&first, "/status/artifact/url");
    let folder = url.rsplit_once('/').unwrap().0;
    let second = larder::digest::Digest::sha256(&gzip(&tar_of(&files(&[("v", "2")]))));
    for url in [url.to_owned(), format!("{folder}/{}.tar.gz", second.hex()), format!("{folder}/latest.tar.gz")] {
        eventually("404", || match http::get(&url).status {
            404 => Ok(()),
            status => Err(format!("{status} from {url}")),
        });
    }
    for left in ["source/rows/goes", "objects/ocirepository/rows/goes.json"] {
        assert!(!world.larder.data.join(left).exists(), "{left}");
    }
    world.finish();
}

#[test]
fn content_that_is_a_trap_to_others_is_stored_as_it_is() {
    let world = World::start(&[]);
    let mut bomb = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
    for (before, name) in ('a'..'j').zip('b'..='j') {
        let aliases = vec![format!("*{before}"); 9].join(",");
        writeln!(bomb, "{name}: &{name} [{aliases}]").unwrap();
    }
    let patterns: String = (0..100_000).map(|n| format!("**/a*{n}*b*/**/c?[a-z]*\n")).collect();
    let many: Vec<(String, String)> = (0..2000).map(|n| (format!("a{n}b/x/caz{n}"), String::new())).collect();
    let wanted = files(&[("bomb.yaml", &bomb)]);
    let rows = vec![
        Row::new("o8-alias-bomb", {
            let wanted = wanted.clone();
            move |up| {
                up.push_files(&wanted);
                Outcome::Succeeds(wanted.clone())
            }
        }),
        Row::new("o8-patterns", move |up| {
            let mut tar = Tar::default().entry(Entry::file(".sourceignore", patterns.as_bytes()));
            for (name, content) in &many {
                tar = tar.entry(Entry::file(name, content.as_bytes()));
            }
            up.push_layer(&gzip(&tar.end()));
            super::world::fails(super::world::LAYER_OPERATION, "limit", "")
        })
        .keeps_layer(),
    ];
    // A pass of 20 s would hide the cap of 5 s; the canary is asked meanwhile.
    run_rows(&world, rows);
    // Whoever reads the bomb fails alone, and at once.
    let up = Upstream::start();
    up.push_files(&wanted);
    world.apply(&object(KIND, NAMESPACE, "bomb", &up.url(), &json!({})));
    world.larder.wait_ready(KIND, NAMESPACE, "bomb");
    world.apply(&json!({
        "apiVersion": "kustomize.toolkit.fluxcd.io/v1", "kind": "Kustomization",
        "metadata": { "name": "bomb-rendered", "namespace": NAMESPACE },
        "spec": { "interval": "10m", "path": "./", "prune": true, "sourceRef": { "kind": KIND, "name": "bomb" } },
    }));
    let object = world
        .larder
        .wait("Kustomization", NAMESPACE, "bomb-rendered", |object| condition_of(object, "Ready")["status"] == "False");
    assert_eq!(condition_of(&object, "Ready")["reason"], "BuildFailed");
    world.finish();
}

#[test]
fn objects_whose_registry_hangs_or_lies_hold_up_no_others() {
    let world = World::start(&[]);
    let good = Upstream::start();
    good.push_files(&files(&[("good", "content")]));
    let bad: Vec<Upstream> = (0..10).map(|_| Upstream::start()).collect();
    let entry = Tar::default().entry(Entry::file("a", b"")).cut();
    let many = gzip(&Tar::default().bytes(&entry.repeat(100_001)).end());
    let bomb = gzip(&vec![0; 64 << 20]).repeat(160);
    for (n, up) in bad.iter().enumerate() {
        match n {
            0..6 => up.fault(|_| true, usize::MAX, Fault::Hang),
            6..8 => drop(up.push_layer(&many)),
            _ => drop(up.push_layer(&bomb)),
        }
        world.apply(&object(KIND, NAMESPACE, &format!("bad-{n}"), &up.url(), &json!({ "timeout": "50s" })));
    }
    eventually("all that hang to hang", || {
        if bad[..6].iter().all(|up| up.requests() > 0) { Ok(()) } else { Err("not yet".into()) }
    });
    let names: Vec<String> = (0..190).map(|n| format!("good-{n}")).collect();
    let all: Vec<Value> = names
        .iter()
        .map(|name| object(KIND, NAMESPACE, name, &good.url(), &json!({ "ignore": format!("# {name}") })))
        .collect();
    crate::support::larder::write_objects(world.root(), "good.yaml", &all);
    for name in &names {
        world.larder.wait_ready(KIND, NAMESPACE, name);
    }
    world.canary_reconciles();
    for n in 0..6 {
        let object = world.larder.object(KIND, NAMESPACE, &format!("bad-{n}")).unwrap();
        assert_ne!(condition_of(&object, "Ready")["status"], "True");
    }
    for n in 6..10 {
        world.larder.wait_failed(
            KIND,
            NAMESPACE,
            &format!("bad-{n}"),
            "FetchFailed",
            "OCIArtifactLayerOperationFailed",
        );
    }
    world.finish();
}

#[test]
fn references_that_hang_hold_up_no_other_of_their_registry() {
    let world = World::start(&[]);
    let shared = Upstream::start();
    shared.push_files(&files(&[("good", "content")]));
    shared.fault(|seen| seen.path.starts_with("/v2/hangs-"), usize::MAX, Fault::Hang);
    let asked = |what: &str| shared.seen().iter().filter(|seen| seen.path.starts_with(what)).count();
    let hanging = || asked("/v2/hangs-");
    let all: Vec<Value> = (0..40)
        .map(|n| {
            let url = format!("oci://{}/hangs-{n}", shared.authority());
            object(KIND, NAMESPACE, &format!("hangs-{n}"), &url, &json!({ "timeout": "8s", "interval": "1s" }))
        })
        .collect();
    crate::support::larder::write_objects(world.root(), "hanging.yaml", &all);
    eventually("as many to hang as ask at once", || if hanging() >= 16 { Ok(()) } else { Err("not yet".into()) });
    let begun = Instant::now();
    world.apply(&object(KIND, "others", "good", &shared.url(), &json!({ "interval": "1s" })));
    world.larder.wait_ready(KIND, "others", "good");
    assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
    // Over the time when all of them fail, and begin anew.
    let probes = || asked(&format!("/v2/{REPOSITORY}/manifests/"));
    let (before, begun) = (probes(), Instant::now());
    std::thread::sleep(Duration::from_secs(16));
    let (sent, due) = (probes() - before, begun.elapsed().as_secs_f64());
    assert!(sent as f64 >= due / 1.2, "{sent} probes in {due} s");
    assert!(hanging() > 40, "those that hang were asked for again");
    world.finish();
}

#[test]
fn an_object_whose_way_lies_shares_nothing_with_the_honest_one() {
    let world = World::start(&[]);
    let honest = Upstream::start();
    let wanted = files(&[("honest", "content")]);
    let pushed = honest.push_files(&wanted);
    // A proxy of the liar's own, which answers everything with another manifest under the honest one's digest.
    let liar = Upstream::start();
    let other = super::upstream::manifest(&json!([])).to_string();
    let raw = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nDocker-Content-Digest: {}\r\nContent-Length: {}\r\n\r\n{other}",
        super::upstream::MANIFEST,
        pushed.manifest,
        other.len()
    );
    liar.fault(|_| true, usize::MAX, Fault::Raw(raw.into_bytes()));
    world.apply_secret("proxy", "Opaque", &json!({ "address": liar.origin() }));
    let through = json!({ "proxySecretRef": { "name": "proxy" } });
    world.apply(&object(KIND, NAMESPACE, "o12-liar", &honest.url(), &through));
    let object_of_liar = world
        .larder
        .wait(KIND, NAMESPACE, "o12-liar", |object| condition_of(object, "FetchFailed")["status"] == "True");
    assert_eq!(condition_of(&object_of_liar, "FetchFailed")["reason"], "OCIArtifactPullFailed");
    assert_eq!(world.classes()[&format!("{KIND}/{NAMESPACE}/o12-liar")], "digest");
    assert!(liar.requests() > 0);
    world.apply(&object(KIND, NAMESPACE, "o12-honest", &honest.url(), &json!({})));
    let object_of_honest = world.larder.wait_ready(KIND, NAMESPACE, "o12-honest");
    assert_eq!(files_in(&fetch_artifact(&object_of_honest)), wanted);
    // And in the other order: what the honest one fetched is not the liar's for knowing its digest.
    assert_eq!(honest.count(Kind::BlobGet), 1);
    world.larder.reconcile(KIND, NAMESPACE, "o12-liar");
    let object_of_liar = world.larder.object(KIND, NAMESPACE, "o12-liar").unwrap();
    assert!(object_of_liar["status"]["artifact"].is_null(), "{object_of_liar}");
    world.finish();
}

#[test]
fn an_object_with_a_shorter_interval_hastens_the_probes_that_it_shares() {
    let world = World::start(&[]);
    let shared = Upstream::start();
    let first = files(&[("version", "1")]);
    shared.push_files(&first);
    world.apply(&object(KIND, NAMESPACE, "hourly", &shared.url(), &json!({ "interval": "1h" })));
    world.larder.wait_ready(KIND, NAMESPACE, "hourly");
    let sent = shared.requests();
    world.apply(&object(KIND, NAMESPACE, "hasty", &shared.url(), &json!({ "interval": "1s" })));
    world.larder.wait_ready(KIND, NAMESPACE, "hasty");
    let second = files(&[("version", "2")]);
    shared.push_files(&second);
    for name in ["hasty", "hourly"] {
        world.larder.wait(KIND, NAMESPACE, name, |object| {
            !object["status"]["artifact"].is_null() && files_in(&fetch_artifact(object)) == second
        });
    }
    assert!(shared.requests() > sent);
    world.finish();
}

#[test]
fn an_interval_of_nothing_is_no_schedule_and_none_is_shorter_than_a_second() {
    let world = World::start(&[]);
    let [never, hasty, missing] = [(); 3].map(|()| Upstream::start());
    never.push_files(&files(&[("map.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n")]));
    hasty.push_files(&files(&[("version", "1")]));
    let sources = [("never", &never, "0s"), ("hasty", &hasty, "1ms"), ("missing", &missing, "0s")];
    for (name, upstream, interval) in &sources {
        world.apply(&object(KIND, NAMESPACE, name, &upstream.url(), &json!({ "interval": interval })));
    }
    let rendered = [
        ("ks-never", json!({ "interval": "0s", "path": "./" })),
        ("ks-fails", json!({ "interval": "0s", "path": "./none" })),
        ("ks-hasty", json!({ "interval": "1h", "retryInterval": "1ms", "path": "./none" })),
        ("ks-no-retry", json!({ "interval": "1h", "retryInterval": "0s", "path": "./none" })),
    ];
    for (name, spec) in &rendered {
        let mut spec = spec.clone();
        spec["prune"] = json!(true);
        spec["sourceRef"] = json!({ "kind": KIND, "name": "never" });
        world.apply(&json!({ "apiVersion": "kustomize.toolkit.fluxcd.io/v1", "kind": "Kustomization",
            "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec }));
    }
    for name in ["never", "hasty"] {
        world.larder.wait_ready(KIND, NAMESPACE, name);
    }
    world.larder.wait_failed(KIND, NAMESPACE, "missing", "FetchFailed", PULL);
    for (name, _) in &rendered[1..] {
        let failed = |object: &Value| condition_of(object, "Ready")["reason"] == "ArtifactFailed";
        world.larder.wait("Kustomization", NAMESPACE, name, failed);
    }
    world.larder.wait_ready("Kustomization", NAMESPACE, "ks-never");
    let passes = || world.larder.metric("larder_reconcile_total", &[("kind", "Kustomization")]);
    let (sent, passed) = (sources.map(|(_, upstream, _)| upstream.requests()), passes());
    std::thread::sleep(Duration::from_secs(4));
    let sent: Vec<usize> =
        sources.iter().zip(sent).map(|((_, upstream, _), before)| upstream.requests() - before).collect();
    assert_eq!(sent[0], 0, "{sent:?}");
    assert!((2..=5).contains(&sent[1]), "{sent:?}");
    assert!((1..=8).contains(&sent[2]), "after 0.75, 1.5 and 3 s: {sent:?}");
    let passed = passes() - passed;
    assert!((3..=9).contains(&passed), "{passed}");
    let before = never.requests();
    assert_eq!(world.larder.reconcile(KIND, NAMESPACE, "never").status, 200);
    assert!(never.requests() > before, "a request is honoured all the same");
    world.finish();
}

#[test]
fn what_went_while_nobody_looked_leaves_no_tree() {
    let upstream = Upstream::start();
    upstream.push_files(&files(&[("version", "1")]));
    let root = tempfile::tempdir().unwrap();
    let write = |file: &str, object: &Value| {
        crate::support::larder::write_objects(root.path(), file, std::slice::from_ref(object));
    };
    for name in ["stays", "goes"] {
        write(&format!("{name}.yaml"), &object(KIND, NAMESPACE, name, &upstream.url(), &json!({})));
    }
    let larder = crate::support::larder::Larder::reconciling(root.path(), &[]);
    for name in ["stays", "goes"] {
        larder.wait_ready(KIND, NAMESPACE, name);
    }
    let folder = |name: &str| larder.data.join("source").join(NAMESPACE).join(name);
    let (goes, stays) = (folder("goes"), folder("stays"));
    let kept: Vec<_> = std::fs::read_dir(&stays).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(goes.is_dir() && kept.len() == 1);
    assert_eq!(larder.stop(), Some(0));
    std::fs::remove_file(root.path().join("objects/goes.yaml")).unwrap();
    // Of an artifact that is not held any more.
    let stray = stays.join("ab".repeat(32));
    std::fs::create_dir_all(stray.join("contents/below")).unwrap();
    let larder = crate::support::larder::Larder::reconciling(root.path(), &[]);
    eventually("the trees to go", || {
        let left: Vec<_> = [&goes, &stray].into_iter().filter(|path| path.exists()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    assert!(kept[0].join("contents/version").is_file());
    fetch_artifact(&larder.wait_ready(KIND, NAMESPACE, "stays"));
    assert_eq!(larder.stop(), Some(0));
    super::world::verify(root.path());
}

#[test]
fn a_registry_that_no_name_service_knows_is_tried_again() {
    let world = World::start(&[]);
    // RFC 6761, section 6.4: nobody knows a name below `invalid`.
    world.apply(&object(KIND, NAMESPACE, "r1-unknown", "oci://registry.invalid/app", &json!({ "insecure": false })));
    let failed = world.larder.wait_failed(KIND, NAMESPACE, "r1-unknown", "FetchFailed", "OCIArtifactPullFailed");
    assert!(text(condition_of(&failed, "FetchFailed"), "/message").contains("registry.invalid"), "{failed}");
    assert_eq!(condition_of(&failed, "Reconciling")["reason"], "ProgressingWithRetry");
    assert_eq!(world.classes()[&format!("{KIND}/{NAMESPACE}/r1-unknown")], "net");
    world.finish();
}

#[test]
fn insecure_where_it_is_forbidden_stalls_without_a_request() {
    let upstream = Upstream::start();
    upstream.push_files(&files(&[("version", "1")]));
    let root = tempfile::tempdir().unwrap();
    let spec = json!({ "insecure": true });
    crate::support::larder::write_objects(
        root.path(),
        "o4.yaml",
        &[object(KIND, NAMESPACE, "o4-insecure", &upstream.url(), &spec)],
    );
    let larder = crate::support::larder::Larder::reconciling(root.path(), &["--insecure-allow-http=false"]);
    let stalled = larder.wait(KIND, NAMESPACE, "o4-insecure", |o| condition_of(o, "Stalled")["status"] == "True");
    assert_eq!(condition_of(&stalled, "FetchFailed")["reason"], "InsecureConnectionsDisallowed", "{stalled}");
    assert_eq!(upstream.requests(), 0);
}
