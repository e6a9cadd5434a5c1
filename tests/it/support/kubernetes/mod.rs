//! A daemon on a cluster: what it does, written once and shown on the scripted API server, where CI always runs it, and on a
//! real one.

pub mod kills;
pub mod kustomizations;
pub mod outage;
pub mod producer;
pub mod references;
pub mod replicas;
pub mod sources;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    api_server::{ApiServer, Break, Call, Fault},
    eventually,
    fixtures::{Files, gzip, tar_of},
    http,
    larder::{Larder, condition_of},
    registry::Options,
    upstream::{CONFIG, LAYER, MANIFEST, Upstream, descriptor},
};

pub const NAMESPACE: &str = "default";

/// An API server, whichever it is.
pub trait Kubernetes {
    /// The kubeconfig for Larder.
    fn kubeconfig(&self, folder: &Path) -> PathBuf;
    /// One call as somebody else who may do everything.
    fn send(&self, method: &str, path: &str, kind: &str, body: &Value) -> http::Response;
    /// Larder's calls so far but those about its Lease, a line each: `patch ocirepositories/status default/app`. A server-side
    /// apply is a patch; names of events are left out.
    fn calls(&self) -> Vec<String>;
    /// Whether what it runs on makes Deployments come alive, collects garbage, and such; and whether it holds objects
    /// against schemas.
    fn is_real(&self) -> bool;
    /// From now on Larder gets no answer.
    fn go_away(&self);
    /// It answers again, with all that it had.
    fn come_back(&self);

    fn get(&self, path: &str) -> Option<Value> {
        let answer = self.send("GET", path, "", &Value::Null);
        assert!([200, 404].contains(&answer.status), "{path}: {}", answer.text());
        (answer.status == 200).then(|| answer.json())
    }

    /// Creates an object.
    fn create(&self, object: &Value) {
        let answer = self.send("POST", &collection(object), "application/json", object);
        assert_eq!(answer.status, 201, "{object}: {}", answer.text());
    }

    /// A JSON merge patch.
    fn patch(&self, path: &str, patch: &Value) -> Value {
        let answer = self.send("PATCH", path, "application/merge-patch+json", patch);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    fn delete(&self, path: &str) {
        let answer = self.send("DELETE", path, "", &Value::Null);
        assert!([200, 202].contains(&answer.status), "{path}: {}", answer.text());
    }

    fn writes(&self) -> Vec<String> {
        let writes = |line: &String| ["create", "update", "patch", "delete"].iter().any(|verb| line.starts_with(verb));
        self.calls().into_iter().filter(writes).collect()
    }

    /// The object once it is as `wanted` says.
    fn wait(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value
    where
        Self: Sized,
    {
        eventually(path, || match self.get(path) {
            Some(object) if wanted(&object) => Ok(object),
            Some(object) => Err(object.to_string()),
            None => Err("it is not there".to_owned()),
        })
    }

    fn wait_gone(&self, path: &str)
    where
        Self: Sized,
    {
        eventually(&format!("{path} to go"), || self.get(path).map_or(Ok(()), |object| Err(object.to_string())));
    }

    /// The events about an object: type and reason, oldest first.
    fn events(&self, kind: &str, name: &str) -> Vec<(String, String, String)> {
        let all = self.get(&format!("/api/v1/namespaces/{NAMESPACE}/events")).expect("events");
        let mut found: Vec<&Value> = all["items"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|e| e["involvedObject"]["kind"] == kind && e["involvedObject"]["name"] == name)
            .collect();
        found.sort_by_key(|e| e["metadata"]["name"].as_str().map(str::to_owned));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        found.iter().map(|e| (text(&e["type"]), text(&e["reason"]), text(&e["message"]))).collect()
    }
}

/// The scripted API server.
pub struct Scripted(pub ApiServer);

impl Kubernetes for Scripted {
    fn kubeconfig(&self, folder: &Path) -> PathBuf {
        self.0.kubeconfig(folder)
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: &Value) -> http::Response {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let headers: Vec<(&str, &str)> =
            [("Content-Type", kind)].into_iter().filter(|(_, kind)| !kind.is_empty()).collect();
        let url = format!("{}{path}", self.0.url());
        http::send(method, &url, &headers, body.as_bytes()).unwrap_or_else(|error| panic!("{method} {url}: {error}"))
    }

    fn calls(&self) -> Vec<String> {
        let larders = |call: &&Call| call.headers.contains_key("authorization") && !call.resource.is_empty();
        let calls = self.0.calls();
        calls.iter().filter(larders).filter(|call| call.resource != "leases" && !call.is_dry_run()).map(line).collect()
    }

    fn is_real(&self) -> bool {
        false
    }

    fn go_away(&self) {
        self.0.fault(|call| call.headers.contains_key("authorization"), usize::MAX, Fault::Close);
        self.0.break_watches(Break::Cut);
    }

    fn come_back(&self) {
        self.0.behave();
    }
}

fn line(call: &Call) -> String {
    let verb = if call.verb == "apply" { "patch" } else { &call.verb };
    shown(verb, &call.resource, &call.subresource, &call.namespace, &call.name)
}

/// A call as [`Kubernetes::calls`] shows it.
pub fn shown(verb: &str, resource: &str, subresource: &str, namespace: &str, name: &str) -> String {
    let slash = if subresource.is_empty() { "" } else { "/" };
    let name = if resource == "events" { "" } else { name };
    let place = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
    format!("{verb} {resource}{slash}{subresource} {place}").trim_end().to_owned()
}

fn plural(kind: &str) -> String {
    match kind {
        "OCIRepository" => "ocirepositories".into(),
        "GitRepository" => "gitrepositories".into(),
        "HelmRepository" => "helmrepositories".into(),
        _ => format!("{}s", kind.to_lowercase()),
    }
}

/// Where an object's kind is.
pub fn collection(object: &Value) -> String {
    let version = object["apiVersion"].as_str().expect("apiVersion");
    let root = if version.contains('/') { "/apis" } else { "/api" };
    let plural = plural(object["kind"].as_str().expect("kind"));
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{root}/{version}/namespaces/{namespace}/{plural}"),
        None => format!("{root}/{version}/{plural}"),
    }
}

/// Where an object is.
pub fn path_of(object: &Value) -> String {
    format!("{}/{}", collection(object), object["metadata"]["name"].as_str().expect("name"))
}

/// One of Flux's objects in [`NAMESPACE`].
pub fn object(kind: &str, name: &str, spec: Value) -> Value {
    let group = if kind == "Kustomization" { "kustomize" } else { "source" };
    json!({ "apiVersion": format!("{group}.toolkit.fluxcd.io/v1"), "kind": kind,
        "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec })
}

/// With these fields over those that are there.
pub fn with(mut object: Value, pointer: &str, fields: Value) -> Value {
    let place = object.pointer_mut(pointer).expect("a place").as_object_mut().expect("a mapping");
    place.extend(fields.as_object().expect("fields").clone());
    object
}

/// The next event that comes to a notification-controller, which takes it.
pub fn notification(listener: &std::net::TcpListener) -> Value {
    use std::io::{Read as _, Write as _};
    let (mut stream, _) = listener.accept().expect("a notification");
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let n = stream.read(&mut piece).expect("a request");
        request.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && let Ok(body) = serde_json::from_str::<Value>(body)
        {
            stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").expect("an answer");
            return body;
        }
        assert_ne!(n, 0, "{text}");
    }
}

/// An API server, a registry, and a folder for daemons.
pub struct Stage<'a, K> {
    pub api: &'a K,
    pub registry: Upstream,
    root: TempDir,
}

impl<'a, K: Kubernetes> Stage<'a, K> {
    pub fn new(api: &'a K) -> Self {
        Self::with_registry(api, Options::default())
    }

    pub fn with_registry(api: &'a K, options: Options) -> Self {
        Self { api, registry: Upstream::start_with(options), root: tempfile::tempdir().expect("temporary folder") }
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A folder of one of several daemons.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.root.path().join(name);
        std::fs::create_dir_all(&folder).expect("folder");
        folder
    }

    /// Starts a daemon.
    pub fn serve(&self, flags: &[&str]) -> Larder {
        self.serve_in("one", flags)
    }

    /// Starts the daemon of a folder.
    pub fn serve_in(&self, name: &str, flags: &[&str]) -> Larder {
        let folder = self.folder(name);
        let config = self.api.kubeconfig(&folder);
        let host = self.registry.authority();
        let mut all = vec!["--kubernetes", "--insecure-registry", &host];
        all.extend_from_slice(flags);
        let environment =
            [("KUBECONFIG", config.to_str().expect("UTF-8")), ("POD_NAME", name), ("POD_NAMESPACE", NAMESPACE)];
        Larder::start_with(&folder, &all, &environment)
    }

    /// An artifact of these files; its manifest's digest.
    pub fn push(&self, repository: &str, tag: &str, files: &Files) -> String {
        self.push_annotated(repository, tag, files, json!({}))
    }

    /// An artifact of these files, with annotations.
    pub fn push_annotated(&self, repository: &str, tag: &str, files: &Files, annotations: Value) -> String {
        let bytes = gzip(&tar_of(files));
        let layer = self.registry.add_blob(repository, &bytes);
        let config = self.registry.add_blob(repository, b"{}");
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &config, 2),
            "layers": [descriptor(LAYER, &layer, bytes.len())], "annotations": annotations });
        self.registry.add_manifest(repository, Some(tag), MANIFEST, manifest.to_string().as_bytes()).to_string()
    }

    /// `oci://HOST/REPOSITORY`.
    pub fn url(&self, repository: &str) -> String {
        format!("oci://{}/{repository}", self.registry.authority())
    }

    /// An OCIRepository of a repository, with more in its spec.
    pub fn oci_repository(&self, name: &str, repository: &str, spec: Value) -> Value {
        let plain = json!({ "url": self.url(repository), "interval": "1h", "insecure": true });
        with(object("OCIRepository", name, plain), "/spec", spec)
    }

    /// A pass, asked for by the annotation; gives the object when it has ended.
    pub fn request(&self, path: &str, token: &str) -> Value {
        let patch = json!({ "metadata": { "annotations": { "reconcile.fluxcd.io/requestedAt": token } } });
        self.api.patch(path, &patch);
        self.api.wait(path, |object| object["status"]["lastHandledReconcileAt"] == token)
    }

    /// The object once it is Ready at its generation.
    pub fn ready(&self, path: &str) -> Value {
        self.api.wait(path, super::larder::is_ready)
    }

    /// The object once a condition says why it failed.
    pub fn failed(&self, path: &str, condition: &str, reason: &str) -> Value {
        self.api.wait(path, |object| {
            let failed = condition_of(object, condition);
            failed["reason"] == reason && condition_of(object, "Ready")["status"] == "False"
        })
    }
}

/// Makes a test of each behaviour: `$api` is what makes an API server, or ends the test.
#[macro_export]
macro_rules! behaviours {
    ($api:expr) => {
        $crate::behaviours! { $api;
            sources {
                a_first_pass_costs_three_writes_and_one_without_a_change_none,
                a_request_is_honoured_and_a_new_revision_told,
                a_new_generation_is_observed_and_ignore_rules_make_another_artifact,
                what_is_deleted_goes_with_its_artifact_also_suspended,
                what_is_not_larders_is_left_strictly_alone,
                a_git_repository_with_an_oci_url_is_a_source,
                a_git_repository_that_leaves_oci_is_let_go,
                secrets_are_read_by_name_and_what_they_lack_is_told,
                a_service_accounts_pull_secrets_count,
                a_failure_takes_nothing_away_and_its_end_is_told,
                a_spec_that_cannot_be_stalls_and_costs_no_request,
                the_api_server_is_no_registry,
                a_pass_that_lasts_says_so_meanwhile,
                what_flux_stored_is_taken_over_in_one_write,
                charts_come_through_both_kinds,
                events_go_to_the_notification_controller_too,
            }
            references {
                references_lead_where_fluxs_do,
                certificates_come_from_secrets,
                a_proxy_comes_from_a_secret,
                records_are_kept_as_told_and_the_url_follows_the_host,
                what_is_lost_on_disk_comes_back,
                signatures_decide_what_is_published,
                versions_of_charts_are_chosen_as_helm_does,
            }
            kustomizations {
                the_users_documents_end_with_the_deployment,
                what_is_no_longer_there_is_pruned_and_an_empty_artifact_prunes_all,
                what_was_applied_in_a_version_that_is_served_no_more_is_pruned,
                what_was_applied_in_a_version_that_then_goes_is_pruned_and_ended,
                an_edit_is_undone_within_an_interval_and_looking_is_cheap,
                who_asks_for_a_pass_sees_undone_what_was_edited_before,
                what_takes_from_fluxs_sources_is_left_to_flux,
                sources_and_dependencies_are_waited_for,
                variables_come_from_the_spec_config_maps_and_secrets,
                what_was_applied_and_what_failed_is_told_of_each_commit,
                other_namespaces_can_be_forbidden,
                what_is_suspended_rests_and_its_objects_stay_when_it_is_deleted,
                what_another_owns_or_opts_out_is_kept,
            }
            producer {
                files_are_published_in_two_writes_and_without_a_change_in_none,
                what_goes_from_the_files_goes_from_the_cluster_also_while_larder_is_down,
                labelled_objects_are_only_read,
                a_namespace_that_is_missing_is_told_and_waited_for,
                sources_of_two_kinds_with_one_name_have_two,
                a_failure_is_told_with_a_producers_reason_and_takes_nothing_away,
                what_others_change_is_put_right_and_what_is_not_larders_is_left_alone,
                replicas_that_publish_have_one_leader_and_all_serve,
            }
            replicas {
                every_replica_serves_and_the_second_leads_when_the_first_is_killed,
                a_replica_without_a_leader_to_ask_makes_the_artifact_from_the_registry,
                an_update_of_all_replicas_leaves_nobody_without_an_artifact,
                a_follower_writes_nothing,
            }
            kills {
                whenever_the_leader_is_killed_the_other_leads_and_nothing_is_lost,
            }
            outage {
                a_start_without_the_api_server_serves_what_was_published,
                a_first_start_is_live_while_it_waits_for_the_api_server,
                what_a_producer_published_is_served_at_a_start_without_the_api_server,
            }
        }
    };
    ($api:expr; $($module:ident { $($name:ident),* $(,)? })*) => {$(
        mod $module {
            use super::*;
            $(
                #[test]
                fn $name() {
                    if let Some(api) = $api {
                        $crate::support::kubernetes::$module::$name(&api);
                    }
                }
            )*
        }
    )*};
}
