//! Objects of a Kustomization on a real API server: applied, drift undone, pruned, made anew, and what each step costs.

use larder::{
    apply::{
        cluster::{Applier, ApplyError, Checks, Identity, Log, Owner, Task},
        inventory,
        object::Id,
        render::Validation,
    },
    objects::{InventoryEntry, Leadership},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{sync::watch, time::Instant};

use crate::cluster::env::{Cluster, need_cluster};

const MAPS: &str = "/api/v1/namespaces/apps/configmaps";

/// One Kustomization at the applier.
struct Apps {
    applier: Applier,
    owner: Owner,
    validation: Validation,
    force: bool,
    runtime: tokio::runtime::Runtime,
}

impl Apps {
    fn of(cluster: &Cluster) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let config = kube::config::Kubeconfig::read_from(cluster.kubeconfig("larder")).expect("a kubeconfig");
        let client = runtime.block_on(async {
            let config =
                kube::Config::from_custom_kubeconfig(config, &Default::default()).await.expect("a configuration");
            kube::Client::try_from(config).expect("a client")
        });
        let owner = Owner { namespace: "flux-system".into(), name: "apps".into() };
        Self {
            applier: Applier::new(client, watch::channel(Leadership::Leading).1),
            owner,
            validation: Validation::Staged,
            force: false,
            runtime,
        }
    }

    fn task(&self) -> Task<'static> {
        Task {
            who: Identity::default(),
            validation: self.validation,
            force: self.force,
            applied_before: false,
            may_write: &|| true,
        }
    }

    fn settled(&self) -> bool {
        self.runtime.block_on(async {
            let mut pass = self.applier.pass(&self.owner).await;
            pass.is_settled(&self.task(), &[1; 32], Instant::now()).await.expect("an answer")
        })
    }

    /// What was done, and the inventory.
    fn apply(&self, objects: &[Value]) -> Result<(Vec<String>, Vec<InventoryEntry>), ApplyError> {
        let named = objects.iter().map(|object| {
            let mut object = object.clone();
            let labels = &mut object["metadata"]["labels"];
            labels["kustomize.toolkit.fluxcd.io/name"] = json!("apps");
            labels["kustomize.toolkit.fluxcd.io/namespace"] = json!("flux-system");
            (Id::of(&object), object)
        });
        let (named, mut log): (Vec<_>, _) = (named.collect(), Log::default());
        self.runtime.block_on(async {
            let mut pass = self.applier.pass(&self.owner).await;
            pass.is_settled(&self.task(), &[1; 32], Instant::now()).await?;
            let entries = pass.apply(&self.task(), &[1; 32], named, &mut log).await?;
            pass.health(&self.task(), Checks::All, Duration::from_secs(30), &|| true).await?;
            Ok((log.0, entries))
        })
    }

    fn remove(&self, entries: &[InventoryEntry]) -> Vec<String> {
        let mut log = Log::default();
        let removed = self.applier.remove_all(&self.owner, None, entries, None, &|| true, &mut log);
        self.runtime.block_on(removed).expect("removed");
        log.0
    }
}

fn namespace() -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "apps" } })
}

fn map(name: &str, data: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": "apps" }, "data": data })
}

fn crd() -> Value {
    json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": { "name": "things.example.org" },
        "spec": { "group": "example.org", "scope": "Namespaced", "names": { "plural": "things", "kind": "Thing" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }] } })
}

fn thing() -> Value {
    json!({ "apiVersion": "example.org/v1", "kind": "Thing", "metadata": { "name": "t", "namespace": "apps" }, "spec": { "a": 1 } })
}

/// Verb and path of each of the applier's calls after the first `from`.
fn calls(cluster: &Cluster, from: usize) -> Vec<String> {
    let shown =
        |call: &Value| format!("{} {}", call["verb"].as_str().unwrap_or(""), call["requestURI"].as_str().unwrap_or(""));
    cluster.audited().iter().skip(from).map(shown).collect()
}

#[test]
fn what_is_applied_stays_as_it_is_and_a_pass_without_a_change_costs_one_list_a_kind() {
    need_cluster!();
    let root = tempfile::tempdir().expect("temporary folder");
    let cluster = Cluster::start(root.path());
    let apps = Apps::of(&cluster);
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s", "namespace": "apps" }, "stringData": { "k": "v" } });
    let objects = [crd(), namespace(), map("a", json!({ "x": "1" })), map("b", json!({})), secret, thing()];
    let (log, entries) = apps.apply(&objects).expect("applied");
    assert_eq!(
        log,
        [
            "CustomResourceDefinition/things.example.org created",
            "Namespace/apps created",
            "ConfigMap/apps/a created",
            "ConfigMap/apps/b created",
            "Secret/apps/s created",
            "Thing/apps/t created",
        ]
    );
    assert_eq!(entries[5].id, "apps_t_example.org_Thing");
    assert_eq!(cluster.object("/api/v1/namespaces/apps/secrets/s").expect("made")["data"], json!({ "k": "dg==" }));

    let before = cluster.audited().len();
    assert!(apps.settled());
    let costs = calls(&cluster, before);
    assert_eq!(costs.len(), 5, "{costs:?}");
    assert_eq!(
        costs.iter().filter(|call| call.contains("/secrets")).collect::<Vec<_>>(),
        ["get /api/v1/namespaces/apps/secrets/s"]
    );

    // What kubectl edit does: a value changed, another one added, a label, a deletion.
    let edit = |path: &str, patch: Value| {
        let kind = "application/merge-patch+json";
        assert_eq!(cluster.send("PATCH", &format!("{path}?fieldManager=kubectl-edit"), kind, &patch).status, 200);
    };
    edit(&format!("{MAPS}/a"), json!({ "data": { "x": "2", "y": "3" } }));
    edit("/apis/example.org/v1/namespaces/apps/things/t", json!({ "metadata": { "labels": { "extra": "1" } } }));
    cluster.delete(&format!("{MAPS}/b"));
    assert!(!apps.settled());
    let before = cluster.audited().len();
    let (log, _) = apps.apply(&objects).expect("applied");
    assert_eq!(log, ["ConfigMap/apps/a configured", "ConfigMap/apps/b created", "Thing/apps/t configured"]);
    assert!(calls(&cluster, before).iter().all(|call| !call.contains("/secrets?")), "Secrets are never listed");
    assert_eq!(cluster.object(&format!("{MAPS}/a")).expect("there")["data"], json!({ "x": "1" }));
    let labels = &cluster.object("/apis/example.org/v1/namespaces/apps/things/t").expect("there")["metadata"]["labels"];
    assert!(labels.get("extra").is_none(), "{labels}");
    assert!(apps.settled());

    // Another writer's field is its own; a status is nobody's drift.
    let kind = "application/merge-patch+json";
    cluster.send("PATCH", &format!("{MAPS}/a?fieldManager=somebody"), kind, &json!({ "data": { "theirs": "1" } }));
    let (log, _) = apps.apply(&objects).expect("applied");
    assert_eq!(log, Vec::<String>::new());
    assert!(apps.settled());
    // What has no namespace goes where kubectl would put it.
    let mut homeless = map("d", json!({}));
    homeless["metadata"]["namespace"].take();
    let (log, entries) = apps.apply(&[namespace(), homeless]).expect("applied");
    assert_eq!(log, ["ConfigMap/default/d created"]);
    assert_eq!(entries[1].id, "default_d__ConfigMap");
}

#[test]
fn only_what_is_ours_is_deleted_and_in_reverse_order() {
    need_cluster!();
    let root = tempfile::tempdir().expect("temporary folder");
    let cluster = Cluster::start(root.path());
    let apps = Apps::of(&cluster);
    let marked = |name: &str, key: &str, word: &str| {
        let mut object = map(name, json!({}));
        object["metadata"]["annotations"] = json!({ format!("kustomize.toolkit.fluxcd.io/{key}"): word });
        object
    };
    let objects = [
        namespace(),
        map("a", json!({})),
        marked("keep", "prune", "disabled"),
        marked("ignored", "ssa", "Ignore"),
        marked("once", "ssa", "IfNotPresent"),
        map("other", json!({})),
    ];
    let (log, entries) = apps.apply(&objects).expect("applied");
    assert!(!log.iter().any(|line| line.contains("ignored")), "{log:?}");
    assert_eq!(entries.len(), 6);
    let owner = json!({ "metadata": { "labels": { "kustomize.toolkit.fluxcd.io/name": "somebody" } } });
    cluster.patch(&format!("{MAPS}/other"), &owner);
    cluster.patch(&format!("{MAPS}/once"), &json!({ "data": { "mine": "1" } }));
    assert_eq!(inventory::stale(&entries, &[]).len(), 6);
    let log = apps.remove(&entries);
    assert_eq!(log, ["ConfigMap/apps/once deleted", "ConfigMap/apps/a deleted", "Namespace/apps deleted"]);
    for (name, there) in [("keep", true), ("other", true), ("a", false), ("once", false), ("ignored", false)] {
        assert_eq!(cluster.object(&format!("{MAPS}/{name}")).is_some(), there, "{name}");
    }
}

#[test]
fn nothing_of_a_stage_is_applied_that_the_server_refuses_and_force_makes_anew() {
    need_cluster!();
    let root = tempfile::tempdir().expect("temporary folder");
    let cluster = Cluster::start(root.path());
    let mut apps = Apps::of(&cluster);
    let mut fixed = map("fixed", json!({ "a": "1" }));
    fixed["immutable"] = json!(true);
    let wrong = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "w", "namespace": "apps" }, "spec": { "ports": [{ "port": 99999 }] } });
    let refused = apps.apply(&[namespace(), fixed.clone(), wrong.clone()]).expect_err("the port is none");
    assert!(refused.to_string().starts_with("Service/apps/w dry-run failed (Invalid): "), "{refused}");
    assert_eq!(refused.reason(), "ReconciliationFailed");
    assert!(cluster.object(&format!("{MAPS}/fixed")).is_none(), "its stage was not begun");

    apps.validation = Validation::Server;
    let unknown = apps.apply(&[namespace(), thing()]).expect_err("nobody knows the kind");
    assert!(unknown.to_string().contains("no matches for kind \"Thing\""), "{unknown}");

    apps.validation = Validation::None;
    apps.apply(&[namespace(), fixed.clone()]).expect("applied");
    fixed["data"]["a"] = json!("2");
    let refused = apps.apply(&[namespace(), fixed.clone()]).expect_err("it is immutable");
    assert!(refused.to_string().starts_with("ConfigMap/apps/fixed apply failed"), "{refused}");
    apps.force = true;
    assert_eq!(apps.apply(&[namespace(), fixed]).expect("made anew").0, ["ConfigMap/apps/fixed configured"]);
    assert_eq!(cluster.object(&format!("{MAPS}/fixed")).expect("there")["data"], json!({ "a": "2" }));
}
