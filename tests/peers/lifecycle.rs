//! What happens to an object and its artifact over time: updates, outages, restarts, suspension, deletion, damage.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::{
    documents::{NAMESPACE, World, annotated},
    need::need,
    support::{
        eventually,
        fixtures::{files, files_in, hex_of},
        http,
        larder::{condition_of, fetch_artifact, is_ready, text},
    },
};

const REQUESTED_AT: &str = "reconcile.fluxcd.io/requestedAt";

fn revision(object: &Value) -> &str {
    object["status"]["artifact"]["revision"].as_str().unwrap_or_default()
}

#[test]
fn a_moved_tag_is_taken_and_the_old_artifact_stays_for_a_while() {
    need!("docker-registry");
    let world = World::new();
    world.registry.push_files("app", "v1", &files(&[("shared.yaml", "same"), ("v.yaml", "1")]));
    world.write(&[world.oci_repository("app", "app", json!({ "ref": { "tag": "v1" } }))]);
    let larder = world.serve(&[]);
    let before = larder.wait_ready("OCIRepository", NAMESPACE, "app");

    let moved = files(&[("shared.yaml", "same"), ("v.yaml", "2")]);
    let second = world.registry.push_files("app", "v1", &moved);
    let answer = larder.reconcile("OCIRepository", NAMESPACE, "app");
    assert_eq!(answer.status, 200);
    let after = answer.json();
    assert!(is_ready(&after), "{after}");
    assert_eq!(revision(&after), format!("v1@{}", second.digest));
    assert_eq!(files_in(&fetch_artifact(&after)), moved);
    fetch_artifact(&before);
    assert!(larder.data.join("source/default/app").join(hex_of(&second.layer)).join("contents/v.yaml").is_file());
    let latest = http::get(text(&after, "/status/url"));
    assert!(latest.header("location").is_some_and(|to| to.contains(hex_of(&second.layer))), "{latest:?}");
}

#[test]
fn an_interval_notices_a_moved_tag_without_being_asked() {
    need!("docker-registry");
    let world = World::new();
    world.registry.push_files("app", "latest", &files(&[("v", "1")]));
    world.write(&[world.oci_repository("app", "app", json!({ "interval": "1s" }))]);
    let larder = world.serve(&[]);
    larder.wait_ready("OCIRepository", NAMESPACE, "app");
    let second = world.registry.push_files("app", "latest", &files(&[("v", "2")]));
    larder.wait("OCIRepository", NAMESPACE, "app", |object| revision(object) == format!("latest@{}", second.digest));
}

#[test]
fn the_same_revision_is_probed_but_not_pulled_again() {
    need!("docker-registry");
    let world = World::new();
    let pushed = world.registry.push_files("app", "latest", &files(&[("v", "1")]));
    world.write(&[world.oci_repository("app", "app", json!({}))]);
    let larder = world.serve(&[]);
    let first = larder.wait_ready("OCIRepository", NAMESPACE, "app");
    for _ in 0..3 {
        assert_eq!(larder.reconcile("OCIRepository", NAMESPACE, "app").status, 200);
    }
    let again = larder.wait_ready("OCIRepository", NAMESPACE, "app");
    assert_eq!(first["status"]["artifact"], again["status"]["artifact"]);
    eventually("three probes in the registry's log", || match world.registry.count(&["HEAD /v2/app/manifests/"]) {
        3 => Ok(()),
        count => Err(format!("{count} HEADs: {:?}", world.registry.requests())),
    });
    assert_eq!(world.registry.count(&["GET /v2/app/manifests/"]), 1);
    assert_eq!(world.registry.count(&["GET /v2/app/blobs/", &pushed.layer]), 1);
    let upstream = world.host();
    let sent = |kind: &str| larder.metric("larder_upstream_requests_total", &[("upstream", &upstream), ("kind", kind)]);
    assert_eq!((sent("manifest_head"), sent("manifest_get"), sent("blob_get"), sent("token")), (3, 1, 1, 0));
}

#[test]
fn requested_at_is_handled_once_and_copied() {
    need!("docker-registry");
    let world = World::new();
    world.registry.push_files("app", "latest", &files(&[("v", "1")]));
    let object = world.oci_repository("app", "app", json!({}));
    world.write(std::slice::from_ref(&object));
    let larder = world.serve(&[]);
    larder.wait_ready("OCIRepository", NAMESPACE, "app");
    let second = world.registry.push_files("app", "latest", &files(&[("v", "2")]));
    world.write(&[annotated(object.clone(), REQUESTED_AT, "now")]);
    let handled = |token: &'static str| {
        larder.wait("OCIRepository", NAMESPACE, "app", |object| object["status"]["lastHandledReconcileAt"] == token)
    };
    let after = handled("now");
    assert_eq!(revision(&after), format!("latest@{}", second.digest));
    assert_eq!(after["metadata"]["generation"], 1, "an annotation is no new spec");
    // The token is copied also where the pass fails.
    world.registry.send("DELETE", &format!("/v2/app/manifests/{}", second.digest), "", b"");
    world.write(&[annotated(object, REQUESTED_AT, "later")]);
    let after = handled("later");
    assert_eq!(condition_of(&after, "FetchFailed")["reason"], "OCIArtifactPullFailed");
    fetch_artifact(&after);
}

#[test]
fn a_suspended_object_is_served_and_asks_nothing() {
    need!("docker-registry");
    let world = World::new();
    world.registry.push_files("app", "latest", &files(&[("v", "1")]));
    let spec = |suspend: bool| world.oci_repository("app", "app", json!({ "suspend": suspend, "interval": "1s" }));
    world.write(&[spec(false)]);
    let larder = world.serve(&[]);
    let first = larder.wait_ready("OCIRepository", NAMESPACE, "app");
    world.write(&[spec(true)]);
    eventually("a suspended object to refuse a pass", || {
        match larder.reconcile("OCIRepository", NAMESPACE, "app").status {
            409 => Ok(()),
            status => Err(status.to_string()),
        }
    });
    assert_eq!(larder.object("OCIRepository", NAMESPACE, "app").expect("listed")["spec"]["suspend"], true);
    world.registry.push_files("app", "latest", &files(&[("v", "2")]));
    let asked = world.registry.count(&["/v2/app/manifests/"]);
    // Three intervals: the time itself is what is tested.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(world.registry.count(&["/v2/app/manifests/"]) <= asked + 1, "at most the probe that was on its way");
    let held = larder.object("OCIRepository", NAMESPACE, "app").expect("still there");
    assert_eq!(held["status"]["artifact"], first["status"]["artifact"]);
    fetch_artifact(&held);

    world.write(&[]);
    larder.wait_gone("OCIRepository", NAMESPACE, "app");
    let url = text(&first, "/status/artifact/url");
    eventually("the artifact of a deleted object to go", || match http::get(url).status {
        404 => Ok(()),
        status => Err(format!("{status} from {url}")),
    });
    eventually("its folder to go", || match larder.data.join("source/default/app").exists() {
        false => Ok(()),
        true => Err("source/default/app is there".to_owned()),
    });
}

#[test]
fn an_outage_takes_nothing_away_also_across_a_restart() {
    need!("docker-registry");
    let mut world = World::new();
    world.registry.push_files("app", "latest", &files(&[("v", "1")]));
    world.write(&[world.oci_repository("app", "app", json!({}))]);
    let larder = world.serve(&[]);
    let first = larder.wait_ready("OCIRepository", NAMESPACE, "app");
    world.registry.stop();

    let failed = larder.reconcile("OCIRepository", NAMESPACE, "app").json();
    assert_eq!(condition_of(&failed, "FetchFailed")["reason"], "OCIArtifactPullFailed", "{failed}");
    assert_eq!(condition_of(&failed, "Ready")["status"], "False");
    assert_eq!(failed["status"]["artifact"], first["status"]["artifact"]);
    let bytes = fetch_artifact(&failed);
    let ready = http::get(&format!("{}/readyz", larder.admin));
    assert_eq!(ready.status, 200, "ready whatever the registry does");

    assert_eq!(larder.stop(), Some(0));
    let larder = world.serve(&[]);
    let held = larder.object("OCIRepository", NAMESPACE, "app").expect("statuses are loaded when ready");
    let artifact = |object: &Value, field: &str| object["status"]["artifact"][field].clone();
    for field in ["digest", "path", "revision", "lastUpdateTime", "size", "metadata"] {
        assert_eq!(artifact(&held, field), artifact(&first, field), "{field}");
    }
    let held = larder.wait("OCIRepository", NAMESPACE, "app", |object| {
        text(object, "/status/artifact/url").starts_with(&larder.artifacts)
    });
    assert_eq!(fetch_artifact(&held), bytes);

    let second = {
        world.registry.resume();
        world.registry.push_files("app", "latest", &files(&[("v", "2")]))
    };
    larder.reconcile("OCIRepository", NAMESPACE, "app");
    let after = larder.wait_ready("OCIRepository", NAMESPACE, "app");
    assert_eq!(revision(&after), format!("latest@{}", second.digest));
    assert!(condition_of(&after, "FetchFailed").is_null());
}

#[test]
fn a_restart_asks_nothing_of_a_registry_that_it_has_asked() {
    need!("docker-registry");
    let world = World::new();
    world.registry.push_files("app", "latest", &files(&[("v", "1")]));
    world.write(&[world.oci_repository("app", "app", json!({}))]);
    let larder = world.serve(&[]);
    let first = larder.wait_ready("OCIRepository", NAMESPACE, "app");
    assert_eq!(larder.stop(), Some(0));
    let asked = |world: &World| world.registry.count(&["GET /v2/", "HEAD /v2/"]);
    let before = asked(&world);

    let larder = world.serve(&["--artifact-advertise", "artifacts.example.com:8080"]);
    let again = larder.wait("OCIRepository", NAMESPACE, "app", |object| {
        is_ready(object) && text(object, "/status/artifact/url").contains("artifacts.example.com")
    });
    let path = text(&first, "/status/artifact/path");
    assert_eq!(text(&again, "/status/artifact/url"), format!("http://artifacts.example.com:8080/{path}"));
    assert!(text(&again, "/status/url").starts_with("http://artifacts.example.com:8080/ocirepository/default/app/"));
    assert_eq!(again["status"]["artifact"]["digest"], first["status"]["artifact"]["digest"]);
    assert_eq!(again["metadata"]["generation"], first["metadata"]["generation"]);
    assert_eq!(http::get(&format!("{}/{path}", larder.artifacts)).status, 200);
    eventually("the pass after the restart", || {
        let passes = larder.metric("larder_reconcile_total", &[("kind", "OCIRepository"), ("outcome", "ok")]);
        if passes > 0 { Ok(()) } else { Err("no pass yet".to_owned()) }
    });
    assert_eq!(asked(&world), before, "the network is asked for nothing that is held");
    let second = world.registry.push_files("app", "latest", &files(&[("v", "2")]));
    larder.reconcile("OCIRepository", NAMESPACE, "app");
    let after = larder.object("OCIRepository", NAMESPACE, "app").expect("it is there");
    assert_eq!(revision(&after), format!("latest@{}", second.digest), "but what is requested is probed");
}

#[test]
fn a_damaged_blob_is_never_served_and_comes_back() {
    need!("docker-registry");
    let world = World::new();
    let content = files(&[("v", &"some text\n".repeat(1000))]);
    let pushed = world.registry.push_files("app", "latest", &content);
    world.write(&[world.oci_repository("app", "app", json!({ "interval": "1s" }))]);
    let larder = world.serve(&[]);
    let object = larder.wait_ready("OCIRepository", NAMESPACE, "app");
    let hex = hex_of(&pushed.layer);
    let blob = larder.data.join("blobs/sha256").join(&hex[..2]).join(hex);
    let good = std::fs::read(&blob).expect("the blob lies where the design says");
    let damage = |how: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(&blob).expect("blob");
        how(&mut bytes);
        std::fs::set_permissions(&blob, PermissionsExt::from_mode(0o644)).expect("mode");
        std::fs::write(&blob, bytes).expect("damage");
    };
    let url = text(&object, "/status/artifact/url").to_owned();
    let come_back = |url: &str| {
        eventually("the blob to come back", || {
            let Ok(answer) = http::send("GET", url, &[], b"") else { return Err("cut short".to_owned()) };
            if answer.status != 200 {
                return Err(answer.status.to_string());
            }
            assert_eq!(answer.body, good, "a wrong byte was served");
            Ok(())
        });
    };
    // While it runs, and while it is stopped.
    damage(&|bytes| bytes[20] ^= 1);
    come_back(&url);
    damage(&|bytes| bytes.truncate(0));
    come_back(&url);
    larder.kill();
    damage(&|bytes| bytes.push(0));
    let larder = world.serve(&[]);
    come_back(&url.replace(url.split('/').nth(2).expect("authority"), larder.artifacts.trim_start_matches("http://")));
    assert_eq!(larder.stop(), Some(0));
    let verify = crate::support::larder::run(
        world.path(),
        ["store".as_ref(), "verify".as_ref(), "--data".as_ref(), world.path().join("data").as_os_str()],
    );
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
}

#[test]
fn a_bad_document_does_not_stop_the_others() {
    need!("docker-registry");
    let world = World::new();
    world.registry.push_files("app", "latest", &files(&[("v", "1")]));
    world.write(&[world.oci_repository("good", "app", json!({}))]);
    std::fs::write(world.path().join("objects/bad.yaml"), "kind: OCIRepository\nspec: [\n").expect("file");
    std::fs::write(world.path().join("objects/.hidden.yaml"), "also: [bad").expect("file");
    let larder = world.serve(&[]);
    larder.wait_ready("OCIRepository", NAMESPACE, "good");
    let listing = larder.listing();
    let errors = listing["errors"].as_array().expect("errors");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].to_string().contains("bad.yaml"), "{errors:?}");

    // The same name twice: both refused, the last good one stays.
    let twin = world.oci_repository("good", "app", json!({ "ref": { "tag": "other" } }));
    std::fs::write(world.path().join("objects/twin.yaml"), twin.to_string()).expect("file");
    eventually("both to be refused", || {
        let listing = larder.listing();
        let errors = listing["errors"].to_string();
        (errors.contains("twin.yaml") && errors.contains("objects.yaml")).then_some(()).ok_or(errors)
    });
    let kept = larder.object("OCIRepository", NAMESPACE, "good").expect("kept");
    assert!(kept["spec"].get("ref").is_none_or(|reference| reference["tag"] == "latest"), "{kept}");
    fetch_artifact(&kept);
}
