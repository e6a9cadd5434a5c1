//! Several replicas on one cluster.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Kubernetes, NAMESPACE, Stage, path_of};
use crate::support::{
    eventually,
    fixtures::{files, files_in, sha256},
    http,
    larder::{Larder, fetch_artifact, run, text},
};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases/larder-leader-election";

pub fn holder(api: &impl Kubernetes) -> String {
    let lease = api.get(LEASE);
    lease.and_then(|lease| Some(lease["spec"]["holderIdentity"].as_str()?.to_owned())).unwrap_or_default()
}

fn led_by(api: &impl Kubernetes, name: &str) {
    eventually(&format!("{name} to lead"), || {
        let holder = holder(api);
        if holder.starts_with(&format!("{name}_")) { Ok(()) } else { Err(holder) }
    });
}

/// What a replica serves where the status says.
pub fn at(larder: &Larder, object: &Value) -> http::Response {
    http::get(&format!("{}/{}", larder.artifacts, text(object, "/status/artifact/path")))
}

pub fn filled(larder: &Larder) {
    eventually("the replica to be ready", || {
        let answer = http::get(&format!("{}/readyz", larder.admin));
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    });
}

pub fn every_replica_serves_and_the_second_leads_when_the_first_is_killed(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &files(&[("a.yaml", "1")]));
    let sources = ["app", "copied"].map(|name| stage.oci_repository(name, "team/app", json!({})));
    sources.iter().for_each(|source| api.create(source));
    // A symlink in the layer, so that one of the artifacts is rewritten.
    api.patch(&path_of(&sources[1]), &json!({ "spec": { "ignore": "none-such\n!a.yaml" } }));
    let one = stage.serve_in("one", &[]);
    led_by(api, "one");
    let app = stage.ready(&path_of(&sources[0]));
    stage.ready(&path_of(&sources[1]));
    let asked = stage.registry.requests();
    let two = stage.serve_in("two", &[]);
    filled(&two);
    let answer = at(&two, &app);
    assert_eq!((answer.status, sha256(&answer.body)), (200, text(&app, "/status/artifact/digest").to_owned()));
    assert_eq!(stage.registry.requests(), asked, "a replica takes from the leader");
    // What is new later is taken over, too.
    stage.push("team/app", "latest", &files(&[("a.yaml", "2")]));
    let newer = stage.request(&path_of(&sources[0]), "1");
    eventually("the second replica to have it", || {
        let answer = at(&two, &newer);
        if answer.status == 200 { Ok(()) } else { Err(answer.status.to_string()) }
    });
    let writes = api.writes().len();
    let ended = Instant::now();
    let artifacts = one.artifacts.clone();
    one.kill();
    assert_eq!(at(&two, &newer).status, 200, "artifacts stay reachable");
    led_by(api, "two");
    let took = ended.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    let taken = stage.request(&path_of(&sources[0]), "2");
    let time = "/status/artifact/lastUpdateTime";
    assert_eq!(text(&taken, time), text(&newer, time), "who leads now has made nothing anew");
    let pulled = two.metric("larder_upstream_requests_total", &[("kind", "blob_get")]);
    assert_eq!(pulled, 0, "it holds what the leader had");
    stage.push("team/app", "latest", &files(&[("a.yaml", "3")]));
    let third = stage.request(&path_of(&sources[0]), "3");
    assert_eq!(files_in(&fetch_artifact(&third))["a.yaml"], b"3");
    assert!(!text(&third, "/status/artifact/url").starts_with(&artifacts));
    let statuses = api.writes()[writes..].iter().filter(|line| line.ends_with("/status default/app")).count();
    assert!(statuses <= 4, "its own address, the new revision, two tokens: {:?}", &api.writes()[writes..]);
    let data = two.data.clone();
    assert_eq!(two.stop(), Some(0));
    eventually("the Lease to be given back", || {
        let holder = holder(api);
        if holder.is_empty() { Ok(()) } else { Err(holder) }
    });
    let verified = run(stage.root(), ["store", "verify", "--data", data.to_str().expect("UTF-8")]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

pub fn a_replica_without_a_leader_to_ask_makes_the_artifact_from_the_registry(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &files(&[("a.yaml", "1"), ("b.txt", "b")]));
    let source = stage.oci_repository("app", "team/app", json!({ "ignore": "b.txt" }));
    api.create(&source);
    // Its own address leads nowhere for others.
    let one = stage.serve_in("one", &["--replica-address", "127.0.0.1:1"]);
    let app = stage.ready(&path_of(&source));
    let two = stage.serve_in("two", &[]);
    filled(&two);
    let answer = at(&two, &app);
    assert_eq!((answer.status, sha256(&answer.body)), (200, text(&app, "/status/artifact/digest").to_owned()));
    drop(one);
}

pub fn an_update_of_all_replicas_leaves_nobody_without_an_artifact(api: &(impl Kubernetes + Sync)) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &files(&[("a.yaml", "1")]));
    let source = stage.oci_repository("app", "team/app", json!({}));
    api.create(&source);
    let mut one = stage.serve_in("one", &[]);
    let app = stage.ready(&path_of(&source));
    let mut two = stage.serve_in("two", &[]);
    filled(&two);
    let (path, digest) =
        (text(&app, "/status/artifact/path").to_owned(), text(&app, "/status/artifact/digest").to_owned());
    // As a Service does: whoever is ready is asked.
    let ready = std::sync::Mutex::new(vec![one.artifacts.clone(), two.artifacts.clone()]);
    let (end, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            while !end.load(Ordering::SeqCst) {
                let at = {
                    let ready = ready.lock().expect("no panic");
                    ready[asked.fetch_add(1, Ordering::SeqCst) % ready.len()].clone()
                };
                let answer = http::send("GET", &format!("{at}/{path}"), &[], b"");
                // One that ends at this moment is out of the Service by now.
                if ready.lock().expect("no panic").contains(&at) {
                    let answer = answer.unwrap_or_else(|error| panic!("{at}: {error}"));
                    let log = || {
                        let of = |name: &str| std::fs::read_to_string(stage.folder(name).join("larder.log"));
                        ["one", "two"].map(|name| of(name).unwrap_or_default()).join("\n")
                    };
                    assert_eq!(answer.status, 200, "{at}: {}\n{}", answer.text(), log());
                    assert_eq!(sha256(&answer.body), digest);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        for name in ["two", "one"] {
            let old = if name == "two" { &mut two } else { &mut one };
            ready.lock().expect("no panic").retain(|at| *at != old.artifacts);
            let data = old.data.clone();
            let replaced = std::mem::replace(old, stage.serve_in("spare", &["--watch-label-selector", "none=such"]));
            assert_eq!(replaced.stop(), Some(0));
            // A new pod with an empty disk.
            std::fs::remove_dir_all(data).expect("the old disk");
            let new = stage.serve_in(name, &[]);
            filled(&new);
            ready.lock().expect("no panic").push(new.artifacts.clone());
            *old = new;
            std::fs::remove_dir_all(stage.folder("spare")).expect("the spare's folder");
        }
        end.store(true, Ordering::SeqCst);
        client.join().expect("every answer was right");
    });
    assert_ne!(asked.load(Ordering::SeqCst), 0);
    assert_eq!(api.get(&path_of(&source)).expect("there")["status"]["artifact"]["digest"], digest);
}

pub fn a_follower_writes_nothing(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &files(&[("a.yaml", "1")]));
    let far = "2999-01-01T00:00:00.000000Z";
    api.create(&json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": "larder-leader-election", "namespace": NAMESPACE },
        "spec": { "holderIdentity": "somebody", "leaseDurationSeconds": 3600, "renewTime": far, "acquireTime": far } }));
    let source = stage.oci_repository("app", "team/app", json!({ "interval": "1s" }));
    api.create(&source);
    let larder = stage.serve(&[]);
    larder.wait("OCIRepository", NAMESPACE, "app", |_| true);
    std::thread::sleep(Duration::from_secs(3));
    let refused = larder.reconcile("OCIRepository", NAMESPACE, "app");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("by another replica, which leads"), "{}", refused.text());
    assert_eq!(larder.metric("larder_leading", &[]), 0);
    assert_eq!((api.writes(), stage.registry.requests()), (Vec::new(), 0));
    api.delete(LEASE);
    stage.ready(&path_of(&source));
}
