//! A daemon on the scripted API server. The same behaviours run on a real one in `tests/peers/cluster`.

use serde_json::json;

use crate::support::{
    api_server::{ApiServer, Call, Fault},
    eventually, http,
    kubernetes::{Kubernetes as _, Scripted, Stage, path_of},
    larder::{Larder, condition_of, fetch_artifact, is_ready, write_objects},
    registry::{self, Auth, Options, Seen},
    services::Services,
};

crate::behaviours!(Some(Scripted(ApiServer::start())));

/// O10: conflicts, server errors, watches that are gone, an API that is away.
#[test]
fn an_api_that_fails_costs_nothing_that_is_served_and_statuses_converge() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    let content = crate::support::fixtures::files(&[("a.yaml", "1")]);
    stage.push("team/app", "latest", &content);
    let source = stage.oci_repository("app", "team/app", json!({}));
    let path = path_of(&source);
    api.create(&source);
    let status = |call: &Call| call.is("patch", "ocirepositories/status");
    api.0.fault(|call| call.is("patch", "ocirepositories"), 1, Fault::status(409, "Conflict"));
    api.0.fault(status, 1, Fault::status(409, "Conflict"));
    api.0.fault(status, 2, Fault::status(500, "InternalError"));
    api.0.fault(status, 1, Fault::CloseAfterIt);
    let larder = stage.serve(&[]);
    let first = stage.ready(&path);
    fetch_artifact(&first);
    // A minute's outage, in which the registry moves on.
    let larders = |call: &Call| call.headers.contains_key("authorization");
    api.0.fault(larders, usize::MAX, Fault::status(503, "ServiceUnavailable"));
    api.0.break_watches(crate::support::api_server::Break::Cut);
    let digest = stage.push("team/app", "latest", &crate::support::fixtures::files(&[("a.yaml", "2")]));
    let answer = larder.reconcile("OCIRepository", "default", "app");
    assert_eq!(answer.status, 200, "{}", answer.text());
    fetch_artifact(&first);
    api.0.compact();
    api.0.behave();
    let ready = api.wait(&path, |object| {
        is_ready(object) && object["status"]["artifact"]["revision"] == format!("latest@{digest}")
    });
    fetch_artifact(&ready);
    fetch_artifact(&first);
}

#[test]
fn a_crd_that_would_drop_what_is_written_keeps_larder_from_starting() {
    let api = ApiServer::start();
    let root = tempfile::tempdir().expect("temporary folder");
    let list = crate::support::larder::run_json(root.path(), ["crds", "--output", "json"]);
    for mut crd in list["items"].as_array().expect("a list").clone() {
        if crd["metadata"]["name"] == "ocirepositories.source.toolkit.fluxcd.io" {
            let status = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/status/properties");
            status.expect("its status").as_object_mut().expect("fields").remove("observedIgnore");
        }
        api.put(crd);
    }
    let config = api.kubeconfig(root.path());
    let environment = [("KUBECONFIG", config.to_str().expect("UTF-8"))];
    let Err((status, log)) = Larder::launch(root.path(), &[], &["--kubernetes"], &environment) else {
        panic!("it starts")
    };
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("ocirepositories.source.toolkit.fluxcd.io would drop status.observedIgnore"), "{log}");
    // Where that kind is not watched, it does not matter.
    let flags = ["--kubernetes", "--watch-kind", "GitRepository"];
    let larder = Larder::start_with(root.path(), &flags, &environment);
    eventually("the watch", || if api.watching("gitrepositories") == 1 { Ok(()) } else { Err(String::new()) });
    assert_eq!(api.watching("ocirepositories"), 0);
    eventually("it to be ready", || match http::get(&format!("{}/readyz", larder.admin)) {
        answer if answer.status == 200 => Ok(()),
        answer => Err(answer.text()),
    });
}

#[test]
fn a_crd_that_became_unfit_meanwhile_takes_nothing_away() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    stage.push("team/app", "latest", &crate::support::fixtures::files(&[("a.yaml", "1")]));
    let source = stage.oci_repository("app", "team/app", json!({}));
    api.create(&source);
    let larder = stage.serve(&[]);
    let ready = stage.ready(&path_of(&source));
    assert_eq!(larder.stop(), Some(0));
    api.go_away();
    let larder = stage.serve(&[]);
    let list = crate::support::larder::run_json(stage.root(), ["crds", "--output", "json"]);
    let mut unfit = list["items"].as_array().expect("a list").clone();
    unfit.retain(|crd| crd["metadata"]["name"] == "ocirepositories.source.toolkit.fluxcd.io");
    let fit = unfit[0].clone();
    let status = unfit[0].pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/status/properties");
    status.expect("its status").as_object_mut().expect("fields").remove("observedIgnore");
    api.0.put(unfit.remove(0));
    api.come_back();
    eventually("it to say so", || {
        let log = larder.log();
        let told = log.contains("would drop status.observedIgnore") && log.contains("nothing is reconciled until");
        if told { Ok(()) } else { Err(log) }
    });
    let path = ready["status"]["artifact"]["path"].as_str().expect("a path");
    assert_eq!(http::get(&format!("{}/{path}", larder.artifacts)).status, 200);
    api.0.put(fit);
    stage.request(&path_of(&source), "1");
}

#[test]
fn labels_that_nobody_can_read_and_rights_that_are_missing_are_told_once() {
    let api = ApiServer::start();
    let root = tempfile::tempdir().expect("temporary folder");
    let config = api.kubeconfig(root.path());
    let environment = [("KUBECONFIG", config.to_str().expect("UTF-8"))];
    let selected = |call: &Call| call.query.contains_key("labelSelector");
    api.fault(selected, 1, Fault::message(400, "BadRequest", "unable to parse requirement"));
    let flags = ["--kubernetes", "--watch-label-selector", "a=,,b"];
    let Err((status, log)) = Larder::launch(root.path(), &[], &flags, &environment) else { panic!("it starts") };
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("--watch-label-selector \"a=,,b\": unable to parse requirement"), "{log}");
    api.fault(|call| call.is("list", "ocirepositories"), usize::MAX, Fault::message(403, "Forbidden", "may not list"));
    let larder = Larder::start_with(root.path(), &["--kubernetes"], &environment);
    eventually("three tries", || {
        let tries = api.lines(|call| call.is("list", "ocirepositories")).len();
        if tries >= 4 { Ok(()) } else { Err(tries.to_string()) }
    });
    let log = larder.log();
    assert_eq!(log.matches("cannot watch").count(), 1, "{log}");
    assert!(log.contains("may not list") && !log.contains("watching again"), "{log}");
    assert!(larder.metric("larder_watch_failures_total", &[("kind", "OCIRepository")]) >= 3);
    assert_eq!(larder.metric("larder_watch_failures_total", &[("kind", "HelmChart")]), 0);
    api.behave();
    eventually("the watch", || if larder.log().contains("watching again") { Ok(()) } else { Err(larder.log()) });
    let agents: Vec<_> = api.calls().iter().map(|call| call.headers.get("user-agent").cloned()).collect();
    assert!(agents.iter().all(|agent| agent.as_deref().is_some_and(|a| a.starts_with("larder/"))), "{agents:?}");
}

#[test]
fn without_a_cluster_it_says_what_is_missing_and_while_one_is_away_it_waits() {
    let root = tempfile::tempdir().expect("temporary folder");
    let Err((status, log)) = Larder::launch(root.path(), &[], &["--kubernetes"], &[]) else { panic!("it starts") };
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("set KUBECONFIG to a file, or run in a pod"), "{log}");
    let api = Scripted(ApiServer::start());
    api.0.fault(|_| true, usize::MAX, Fault::status(503, "ServiceUnavailable"));
    let stage = Stage::new(&api);
    let larder = std::thread::scope(|scope| {
        let starting = scope.spawn(|| stage.serve(&[]));
        let log = stage.folder("one").join("larder.log");
        eventually("it to say so", || {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            if log.contains("the API server is away") { Ok(()) } else { Err(log) }
        });
        api.0.behave();
        starting.join().expect("it starts")
    });
    assert_eq!(larder.listing(), json!({ "items": [] }));
}

#[test]
fn addresses_that_are_none_are_wrong_usage() {
    let root = tempfile::tempdir().expect("temporary folder");
    for (flags, why) in [
        (["--replica-address", "nonsense"], "\"nonsense\" is not HOST:PORT"),
        (["--replica-address", "h:0"], "is not HOST:PORT"),
        (["--replica-address", "user:canary@h:1"], "must not have a user or password"),
        (["--events-addr", "garbage"], "\"garbage\" is not http://HOST[:PORT][/PATH]"),
        (["--events-addr", "https://h/"], "is not http://HOST[:PORT][/PATH]"),
        (["--events-addr", "http://user:canary@h/"], "takes no user or password"),
    ] {
        let Err((status, log)) = Larder::launch(root.path(), &[], &flags, &[]) else { panic!("it starts") };
        assert_eq!(status.code(), Some(2), "{flags:?}: {log}");
        assert!(log.contains(why), "{flags:?}: {log}");
    }
}

#[test]
fn a_secret_that_cannot_be_read_is_a_matter_of_credentials() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    stage.push("team/app", "latest", &crate::support::fixtures::files(&[("a.yaml", "a: ${a}")]));
    api.create(&stage.oci_repository("app", "team/app", json!({})));
    api.create(&json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "vars", "namespace": "default" },
        "data": { "a": 5 } }));
    let from = json!({ "substituteFrom": [{ "kind": "Secret", "name": "vars" }] });
    let source = json!({ "kind": "OCIRepository", "name": "app" });
    let spec = json!({ "interval": "1m", "prune": true, "sourceRef": source, "postBuild": from });
    api.create(&crate::support::kubernetes::object("Kustomization", "app", spec));
    let larder = stage.serve(&[]);
    eventually("the pass", || {
        let passes = larder.metric("larder_reconcile_total", &[("kind", "Kustomization"), ("outcome", "auth")]);
        if passes > 0 { Ok(()) } else { Err(larder.listing().to_string()) }
    });
    assert_eq!(larder.metric("larder_reconcile_total", &[("kind", "Kustomization"), ("outcome", "net")]), 0);
}

#[test]
fn what_the_server_quotes_of_a_secret_is_shown_to_nobody() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: a, namespace: default }\ndata: { k: \"${key}\" }\n";
    stage.push("team/app", "latest", &crate::support::fixtures::files(&[("a.yaml", map)]));
    api.create(&stage.oci_repository("app", "team/app", json!({})));
    api.create(&json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "vars", "namespace": "default" },
        "data": { "key": "Y2FuYXJ5LXZhbHVl" } }));
    let said = "failed to create typed patch object (default/a; v1, Kind=ConfigMap): .data.k: expected something else than \
        &value.valueUnstructured{Value:\"canary-value\"}";
    let refusal = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": said, "code": 500 });
    let applies = |call: &Call| call.verb == "apply" && call.path.contains("/configmaps/a");
    api.0.fault(applies, usize::MAX, Fault::Answer { status: 500, headers: Vec::new(), body: refusal });
    let spec = json!({ "interval": "1h", "prune": true, "sourceRef": { "kind": "OCIRepository", "name": "app" },
        "postBuild": { "substituteFrom": [{ "kind": "Secret", "name": "vars" }] } });
    let wanted = crate::support::kubernetes::object("Kustomization", "app", spec);
    api.create(&wanted);
    let larder = stage.serve(&[]);
    let failed = stage.failed(&path_of(&wanted), "Ready", "ReconciliationFailed");
    let message = condition_of(&failed, "Ready")["message"].to_string();
    assert!(message.contains("failed to create typed patch object") && message.contains("[redacted]"), "{message}");
    let log = std::fs::read_to_string(stage.folder("one").join("larder.log")).expect("a log");
    let listing = larder.listing().to_string();
    for (what, text) in [("the log", log), ("the object", failed.to_string()), ("the listing", listing)] {
        assert!(!text.contains("canary-value"), "{what}: {text}");
    }
    // What does not fit its schema will not fit it a moment later.
    assert_eq!(api.0.calls().iter().filter(|call| applies(call)).count(), 1);
}

#[test]
fn a_producer_logs_in_as_the_service_account_that_a_source_names() {
    const USER: &str = "00000000-0000-0000-0000-000000000000";
    let api = Scripted(ApiServer::start());
    let auth = Auth::Token { user: Some((USER, "refresh")), realm: None, expires_in: None };
    let stage = Stage::with_registry(&api, Options { auth, ..Options::default() });
    let refresh = json!({ "refresh_token": "refresh" }).to_string();
    let exchange = |seen: &Seen| seen.path == "/oauth2/exchange";
    let answer = registry::Fault::Answer { status: 200, headers: Vec::new(), body: refresh };
    stage.registry.fault(exchange, usize::MAX, answer);
    stage.push("team/app", "latest", &crate::support::fixtures::files(&[("a.yaml", "1")]));
    let services = Services::start(|asked| match asked.field("client_assertion").as_deref() {
        Some("of-puller") => (200, json!({ "access_token": "access", "expires_in": 3600 }).to_string()),
        _ => (401, json!({ "error": "invalid_client" }).to_string()),
    });
    api.create(&json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "puller",
        "namespace": "default", "annotations": { "azure.workload.identity/client-id": "client",
        "azure.workload.identity/tenant-id": "tenant" } } }));
    let issued =
        json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "status": { "token": "of-puller" } });
    let asks = |call: &Call| call.path.ends_with("/namespaces/default/serviceaccounts/puller/token");
    api.0.fault(asks, usize::MAX, Fault::Answer { status: 201, headers: Vec::new(), body: issued });
    let spec = json!({ "provider": "azure", "serviceAccountName": "puller" });
    let mut source = stage.oci_repository("app", "team/app", spec);
    source["metadata"]["labels"] = json!({ "larder.dev/publish": "true" });
    api.create(&source);
    let folder = stage.folder("one");
    let config = api.0.kubeconfig(&folder);
    let host = stage.registry.authority();
    let flags = [
        "--kubernetes",
        "--external-artifacts",
        "--watch-label-selector",
        "larder.dev/publish=true",
        "--insecure-registry",
        &host,
        "--feature-gates",
        "ObjectLevelWorkloadIdentity=true",
    ];
    let origin = services.origin();
    let environment = [
        ("KUBECONFIG", config.to_str().expect("UTF-8")),
        ("POD_NAMESPACE", "default"),
        ("AZURE_AUTHORITY_HOST", &origin),
    ];
    let larder = Larder::start_with(&folder, &flags, &environment);
    let path = "/apis/source.toolkit.fluxcd.io/v1/namespaces/default/externalartifacts/app";
    let made = api.wait(path, |object| !object["status"]["artifact"].is_null());
    let served = format!("{}/{}", larder.artifacts, made["status"]["artifact"]["path"].as_str().expect("a path"));
    assert_eq!(http::get(&served).status, 200);
}

#[test]
fn what_is_published_stays_served_while_the_api_is_away_and_is_brought_up_to_date_after() {
    let api = Scripted(ApiServer::start());
    let stage = Stage::new(&api);
    let content = |text: &str| crate::support::fixtures::files(&[("a.yaml", text)]);
    stage.push("team/app", "latest", &content("1"));
    let folder = stage.folder("one");
    write_objects(&folder, "app.yaml", &[stage.oci_repository("app", "team/app", json!({ "interval": "1s" }))]);
    let (config, objects) = (api.0.kubeconfig(&folder), folder.join("objects"));
    let flags = [
        "--objects",
        objects.to_str().expect("UTF-8"),
        "--external-artifacts",
        "--artifact-advertise",
        "larder.example",
        "--artifact-retention-ttl",
        "0s",
        "--artifact-retention-records",
        "1",
    ];
    let environment = [("KUBECONFIG", config.to_str().expect("UTF-8"))];
    let larder = Larder::start_with(&folder, &flags, &environment);
    let path = "/apis/source.toolkit.fluxcd.io/v1/namespaces/default/externalartifacts/app";
    let first = api.wait(path, |object| !object["status"]["artifact"].is_null());
    assert_eq!(larder.stop(), Some(0));
    // It begins while nothing answers, and the registry has moved on.
    api.0.fault(
        |call| call.headers.contains_key("authorization"),
        usize::MAX,
        Fault::status(503, "ServiceUnavailable"),
    );
    let digest = stage.push("team/app", "latest", &content("2"));
    let larder = Larder::start_with(&folder, &flags, &environment);
    let served = |object: &serde_json::Value| {
        let path = object["status"]["artifact"]["path"].as_str().expect("a path");
        assert_eq!(http::get(&format!("{}/{path}", larder.artifacts)).status, 200);
    };
    served(&first);
    eventually("the new artifact to be known", || {
        let object = larder.object("OCIRepository", "default", "app").expect("shown");
        if object["status"]["artifact"]["revision"] == format!("latest@{digest}") {
            Ok(())
        } else {
            Err(object.to_string())
        }
    });
    std::thread::sleep(std::time::Duration::from_secs(2));
    served(&first);
    api.0.behave();
    let second = api.wait(path, |object| object["status"]["artifact"]["revision"] == format!("latest@{digest}"));
    served(&second);
    let ready = larder.wait_ready("OCIRepository", "default", "app");
    assert_eq!(ready["status"]["artifact"], second["status"]["artifact"]);
}
