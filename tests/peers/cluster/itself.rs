//! The harness: what it promises to the other tests.

use serde_json::{Value, json};

use crate::cluster::env::{Cluster, Setup, has, need_cluster};

const MAPS: &str = "/api/v1/namespaces/flux-system/configmaps";

fn config_map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "a": "1" } })
}

#[test]
fn an_api_server_that_was_away_comes_back_with_all_it_had() {
    need_cluster!();
    let root = tempfile::tempdir().expect("temporary folder");
    let cluster = Cluster::start(root.path());
    cluster.create(MAPS, &config_map("kept"));
    cluster.patch(&format!("{MAPS}/kept"), &json!({ "data": { "b": "2" } }));
    cluster.stop();
    cluster.send_as("admin", "GET", "/readyz", &[], &Value::Null).expect_err("it is stopped");
    cluster.resume();
    assert_eq!(cluster.object(&format!("{MAPS}/kept")).expect("kept")["data"], json!({ "a": "1", "b": "2" }));
    cluster.delete(&format!("{MAPS}/kept"));
    cluster.wait_gone(&format!("{MAPS}/kept"));
    assert!(cluster.version().starts_with("v1."), "{}", cluster.version());
}

#[test]
fn roles_bind_the_users_and_the_audit_log_has_their_calls() {
    need_cluster!();
    let root = tempfile::tempdir().expect("temporary folder");
    let cluster = Cluster::start_with(root.path(), Setup { rbac: true, controllers: false });
    cluster.create(MAPS, &config_map("seen"));
    let path = format!("{MAPS}/seen");
    let read = |user| cluster.send_as(user, "GET", &path, &[], &Value::Null).expect("an answer").status;
    assert_eq!((read("admin"), read("larder"), read("nobody")), (200, 403, 403));
    let calls = cluster.audited();
    let calls: Vec<(&Value, &Value)> =
        calls.iter().map(|call| (&call["verb"], &call["responseStatus"]["code"])).collect();
    assert_eq!(calls, [(&json!("get"), &json!(403))], "larder's, and nobody else's");
}

#[test]
fn the_controllers_make_what_deployments_own_and_collect_it() {
    need_cluster!();
    if !has("kube-controller-manager") || !has("kubectl") {
        return;
    }
    let root = tempfile::tempdir().expect("temporary folder");
    let cluster = Cluster::start_with(root.path(), Setup { rbac: false, controllers: true });
    let deployment =
        cluster.kubectl(&["create", "deployment", "app", "--image=app:1", "--dry-run=client", "-o", "json"], "");
    assert!(cluster.kubectl(&["apply", "-f", "-"], &deployment).contains("created"));
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    let made = cluster.wait(sets, |list| list["items"].as_array().is_some_and(|items| !items.is_empty()));
    assert_eq!(made["items"][0]["metadata"]["ownerReferences"][0]["name"], "app");
    cluster.delete("/apis/apps/v1/namespaces/default/deployments/app");
    cluster.wait(sets, |list| list["items"].as_array().is_some_and(Vec::is_empty));
}
