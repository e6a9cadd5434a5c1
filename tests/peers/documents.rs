//! The documents that tests put into a folder of objects, and the world they are put into.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    docker_registry::DockerRegistry,
    support::larder::{Larder, write_objects},
};

/// The namespace of documents that a test makes.
pub const NAMESPACE: &str = "default";

/// A folder of its own and an open docker-registry.
pub struct World {
    /// The registry.
    pub registry: DockerRegistry,
    root: TempDir,
}

impl World {
    /// A new one.
    pub fn new() -> Self {
        let root = tempfile::tempdir().expect("temporary folder");
        Self { registry: DockerRegistry::start(&root.path().join("registry")), root }
    }

    /// The folder: `data`, `objects`, `larder.log`, `registry`.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Host and port of the registry.
    pub fn host(&self) -> String {
        self.registry.host()
    }

    /// Replaces the documents.
    pub fn write(&self, objects: &[Value]) {
        write_objects(self.path(), "objects.yaml", objects);
    }

    /// `larder serve --objects` on this folder.
    pub fn serve(&self, flags: &[&str]) -> Larder {
        Larder::reconciling(self.path(), flags)
    }

    /// An OCIRepository of this registry, `insecure`, looked at every hour, with `spec` on top.
    pub fn oci_repository(&self, name: &str, repository: &str, spec: Value) -> Value {
        oci_repository(name, &format!("oci://{}/{repository}", self.host()), merged(json!({ "insecure": true }), spec))
    }

    /// A GitRepository of this registry, looked at every hour, with `spec` on top; the daemon wants `--insecure-registry`.
    pub fn git_repository(&self, name: &str, repository: &str, spec: Value) -> Value {
        let url = format!("oci://{}/{repository}", self.host());
        document(SOURCE, "GitRepository", name, merged(json!({ "interval": "1h", "url": url }), spec))
    }
}

const SOURCE: &str = "source.toolkit.fluxcd.io/v1";

/// An OCIRepository, looked at every hour, with `spec` on top.
pub fn oci_repository(name: &str, url: &str, spec: Value) -> Value {
    document(SOURCE, "OCIRepository", name, merged(json!({ "interval": "1h", "url": url }), spec))
}

/// A HelmRepository of type oci.
pub fn helm_repository(name: &str, url: &str, spec: Value) -> Value {
    let base = json!({ "interval": "1h", "type": "oci", "url": url });
    document(SOURCE, "HelmRepository", name, merged(base, spec))
}

/// A HelmChart of a HelmRepository.
pub fn helm_chart(name: &str, repository: &str, chart: &str, version: &str) -> Value {
    let source = json!({ "kind": "HelmRepository", "name": repository });
    let spec = json!({ "interval": "1h", "chart": chart, "version": version, "sourceRef": source });
    document(SOURCE, "HelmChart", name, spec)
}

/// A Kustomization of an OCIRepository, with `spec` on top.
pub fn kustomization(name: &str, source: &str, spec: Value) -> Value {
    let source = json!({ "kind": "OCIRepository", "name": source });
    let base = json!({ "interval": "1h", "prune": true, "path": "./", "sourceRef": source });
    document("kustomize.toolkit.fluxcd.io/v1", "Kustomization", name, merged(base, spec))
}

/// A Secret from texts.
pub fn secret(name: &str, kind: &str, data: &[(&str, &str)]) -> Value {
    let data: serde_json::Map<String, Value> =
        data.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    json!({ "apiVersion": "v1", "kind": "Secret", "type": kind, "stringData": data,
            "metadata": { "name": name, "namespace": NAMESPACE } })
}

/// A Docker config for one registry.
pub fn docker_config(host: &str, user: &str, password: &str) -> String {
    json!({ "auths": { host: { "username": user, "password": password } } }).to_string()
}

/// A Secret with a Docker config for one registry.
pub fn docker_secret(name: &str, host: &str, user: &str, password: &str) -> Value {
    secret(name, "kubernetes.io/dockerconfigjson", &[(".dockerconfigjson", &docker_config(host, user, password))])
}

/// `object` with an annotation.
pub fn annotated(mut object: Value, key: &str, value: &str) -> Value {
    object["metadata"]["annotations"][key] = json!(value);
    object
}

fn document(version: &str, kind: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": version, "kind": kind, "spec": spec, "metadata": { "name": name, "namespace": NAMESPACE } })
}

fn merged(mut base: Value, top: Value) -> Value {
    let top = top.as_object().expect("a map").clone();
    base.as_object_mut().expect("a map").extend(top);
    base
}
