//! A daemon on a real API server: the behaviours that CI always runs on the scripted one.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{
    cluster::env::{Cluster, Setup, is_here},
    support::{
        http,
        kubernetes::{Kubernetes, shown},
    },
};

/// A cluster with Larder's CRDs.
struct Real {
    cluster: Cluster,
    _root: tempfile::TempDir,
}

fn real() -> Option<Real> {
    if !is_here() {
        return None;
    }
    let root = tempfile::tempdir().expect("temporary folder");
    let cluster = Cluster::start_with(root.path(), Setup { rbac: false, controllers: true });
    cluster.install_larders();
    Some(Real { cluster, _root: root })
}

impl Kubernetes for Real {
    fn kubeconfig(&self, _: &Path) -> PathBuf {
        self.cluster.kubeconfig("larder")
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: &Value) -> http::Response {
        self.cluster.send(method, path, kind, body)
    }

    fn calls(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let audited = self.cluster.audited();
        let counts = |event: &&Value| {
            let of = &event["objectRef"];
            !of.is_null() && of["resource"] != "leases" && !text(&event["requestURI"]).contains("dryRun=")
        };
        let line = |event: &Value| {
            let of = &event["objectRef"];
            shown(
                &text(&event["verb"]),
                &text(&of["resource"]),
                &text(&of["subresource"]),
                &text(&of["namespace"]),
                &text(&of["name"]),
            )
        };
        audited.iter().filter(counts).map(line).collect()
    }

    fn is_real(&self) -> bool {
        true
    }

    fn go_away(&self) {
        self.cluster.stop();
    }

    fn come_back(&self) {
        self.cluster.resume();
    }
}

crate::behaviours!(real());
