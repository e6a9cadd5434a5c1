//! Whether a live object is what its spec asks for: the rules of kstatus with the exceptions that Flux makes (a Job is
//! Current when it has completed).
//!
//! A pure function of the object's JSON, the current time aside (a Pod may stay unscheduled for 15 s before it has failed).

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// How long a Pod may be without a node before that is a failure.
const SCHEDULE_WINDOW: SignedDuration = SignedDuration::from_secs(15);

/// What kstatus says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// As the spec asks for.
    Current,
    /// On the way.
    InProgress,
    /// It will not get there by itself.
    Failed,
    /// Being deleted.
    Terminating,
    /// Not there.
    NotFound,
    /// It could not be found out.
    Unknown,
}

impl Health {
    /// kstatus' word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Current => "Current",
            Self::InProgress => "InProgress",
            Self::Failed => "Failed",
            Self::Terminating => "Terminating",
            Self::NotFound => "NotFound",
            Self::Unknown => "Unknown",
        }
    }
}

/// A verdict and why, for people.
pub type Verdict = (Health, String);

fn current(why: impl Into<String>) -> Verdict {
    (Health::Current, why.into())
}

fn progress(why: impl Into<String>) -> Verdict {
    (Health::InProgress, why.into())
}

fn failed(why: impl Into<String>) -> Verdict {
    (Health::Failed, why.into())
}

/// The health of an object as the API server shows it at `now`.
pub fn health(object: &Value, now: Timestamp) -> Verdict {
    if object.pointer("/metadata/deletionTimestamp").is_some_and(|v| !v.is_null()) {
        return (Health::Terminating, "Resource scheduled for deletion".into());
    }
    let (generation, observed) =
        (int(object, "/metadata/generation", -1), object.pointer("/status/observedGeneration").and_then(Value::as_i64));
    if let Some(observed) = observed
        && generation != -1
        && generation != observed
    {
        let kind = text(object, "/kind", "");
        return progress(format!("{kind} generation is {generation}, but latest observed generation is {observed}"));
    }
    for condition in conditions(object) {
        match (condition.kind, condition.status) {
            ("Reconciling", "True") => return progress(condition.message),
            ("Stalled", "True") => return failed(condition.message),
            _ => {}
        }
    }
    let api_version = text(object, "/apiVersion", "");
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    match (group, text(object, "/kind", "")) {
        ("", "Service") => service(object),
        ("", "Pod") => pod(object, now),
        ("", "Secret" | "ConfigMap") | ("batch", "CronJob") => current("Resource is always ready"),
        ("", "PersistentVolumeClaim") => match text(object, "/status/phase", "unknown") {
            "Bound" => current("PVC is Bound"),
            phase => progress(format!("PVC is not Bound. phase: {phase}")),
        },
        ("apps", "StatefulSet") => stateful_set(object),
        ("apps" | "extensions", "DaemonSet") => daemon_set(object),
        ("apps" | "extensions", "Deployment") => deployment(object),
        ("apps" | "extensions", "ReplicaSet") => replica_set(object),
        ("policy", "PodDisruptionBudget") => current("AllowedDisruptions has been computed."),
        ("batch", "Job") => job(object),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition(object),
        _ => generic(object),
    }
}

struct Condition<'v> {
    kind: &'v str,
    status: &'v str,
    reason: &'v str,
    message: &'v str,
}

fn conditions(object: &Value) -> impl Iterator<Item = Condition<'_>> {
    let list = object.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    list.map(|c| Condition {
        kind: text(c, "/type", ""),
        status: text(c, "/status", ""),
        reason: text(c, "/reason", ""),
        message: text(c, "/message", ""),
    })
}

fn text<'v>(value: &'v Value, pointer: &str, default: &'v str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or(default)
}

fn int(value: &Value, pointer: &str, default: i64) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or(default)
}

fn generic(object: &Value) -> Verdict {
    match conditions(object).find(|c| c.kind == "Ready") {
        Some(Condition { status: "True", .. }) => current("Resource is Ready"),
        Some(Condition { status: "False" | "Unknown", message, .. }) => progress(message),
        _ => current("Resource is current"),
    }
}

fn service(object: &Value) -> Verdict {
    if text(object, "/spec/type", "ClusterIP") == "LoadBalancer" && text(object, "/spec/clusterIP", "").is_empty() {
        return progress("ClusterIP not set. Service type: LoadBalancer");
    }
    current("Service is ready")
}

fn pod(object: &Value, now: Timestamp) -> Verdict {
    let is = |kind: &str, status: &str| conditions(object).find(|c| c.kind == kind && c.status == status);
    match text(object, "/status/phase", "") {
        "Succeeded" => current("Pod has completed successfully"),
        "Failed" => current("Pod has completed, but not successfully"),
        "Running" => {
            if is("Ready", "True").is_some() {
                return current("Pod is Ready");
            }
            let containers = object.pointer("/status/containerStatuses").and_then(Value::as_array);
            let looping: Vec<&str> = containers
                .into_iter()
                .flatten()
                .filter(|c| text(c, "/state/waiting/reason", "") == "CrashLoopBackOff")
                .map(|c| text(c, "/name", ""))
                .collect();
            if looping.is_empty() {
                return progress("Pod is running but is not Ready");
            }
            failed(format!("Containers in CrashLoop state: {}", looping.join(",")))
        }
        "Pending" => {
            if is("PodScheduled", "False").is_none_or(|c| c.reason != "Unschedulable") {
                return progress("Pod is in the Pending phase");
            }
            let created = text(object, "/metadata/creationTimestamp", "").parse::<Timestamp>();
            if created.is_ok_and(|created| now.duration_since(created) < SCHEDULE_WINDOW) {
                return progress("Pod has not been scheduled");
            }
            failed("Pod could not be scheduled")
        }
        "" => progress("Pod phase not available"),
        phase => (Health::Unknown, format!("unknown phase {phase}")),
    }
}

/// The first of `rows` whose count is short of what is wanted: `Ready: 1/3`.
fn short(rows: &[(&str, i64, i64)]) -> Option<Verdict> {
    let row = rows.iter().find(|(_, have, want)| have < want);
    row.map(|(what, have, want)| progress(format!("{what}: {have}/{want}")))
}

fn excess(have: i64, want: i64) -> Option<Verdict> {
    (have > want).then(|| progress(format!("Pending termination: {}", have - want)))
}

fn stateful_set(object: &Value) -> Verdict {
    if text(object, "/spec/updateStrategy/type", "") == "OnDelete" {
        return current("StatefulSet is using the ondelete update strategy");
    }
    let wanted = int(object, "/spec/replicas", 1);
    let status = |field: &str| int(object, &format!("/status/{field}"), 0);
    let (replicas, updated) = (status("replicas"), status("updatedReplicas"));
    let partition = int(object, "/spec/updateStrategy/rollingUpdate/partition", -1);
    let found = short(&[("Replicas", replicas, wanted), ("Ready", status("readyReplicas"), wanted)]);
    if let Some(verdict) = found.or_else(|| excess(replicas, wanted)) {
        return verdict;
    }
    if partition != -1 {
        return short(&[("updated", updated, wanted - partition)])
            .unwrap_or_else(|| current(format!("Partition rollout complete. updated: {updated}")));
    }
    if let Some(verdict) = short(&[("current", status("currentReplicas"), wanted)]) {
        return verdict;
    }
    if text(object, "/status/currentRevision", "") != text(object, "/status/updateRevision", "") {
        return progress("Waiting for updated revision to match current");
    }
    current(format!("All replicas scheduled as expected. Replicas: {replicas}"))
}

fn daemon_set(object: &Value) -> Verdict {
    for (pointer, what) in
        [("/metadata/generation", "metadata.generation"), ("/status/observedGeneration", "status.observedGeneration")]
    {
        if object.pointer(pointer).and_then(Value::as_i64).is_none() {
            return progress(format!("DaemonSet {what} not found"));
        }
    }
    let wanted = int(object, "/status/desiredNumberScheduled", -1);
    if wanted == -1 {
        return progress("Missing .status.desiredNumberScheduled");
    }
    let status = |field: &str| int(object, &format!("/status/{field}"), 0);
    short(&[
        ("Current", status("currentNumberScheduled"), wanted),
        ("Updated", status("updatedNumberScheduled"), wanted),
        ("Available", status("numberAvailable"), wanted),
        ("Ready", status("numberReady"), wanted),
    ])
    .unwrap_or_else(|| current(format!("All replicas scheduled as expected. Replicas: {wanted}")))
}

fn deployment(object: &Value) -> Verdict {
    // Without a deadline the controller never says that the rollout is over; the API's marker for none is the largest i32.
    let deadline = int(object, "/spec/progressDeadlineSeconds", i64::from(i32::MAX));
    let mut rolled_out = deadline == i64::from(i32::MAX);
    let mut available = false;
    for condition in conditions(object) {
        match (condition.kind, condition.status, condition.reason) {
            ("Progressing", _, "ProgressDeadlineExceeded") => return failed("Progress deadline exceeded"),
            ("Progressing", "True", "NewReplicaSetAvailable") => rolled_out = true,
            ("Available", "True", _) => available = true,
            _ => {}
        }
    }
    let wanted = int(object, "/spec/replicas", 1);
    let status = |field: &str| int(object, &format!("/status/{field}"), 0);
    let (replicas, updated) = (status("replicas"), status("updatedReplicas"));
    let found = short(&[("Replicas", replicas, wanted), ("Updated", updated, wanted)])
        .or_else(|| excess(replicas, wanted))
        .or_else(|| {
            short(&[("Available", status("availableReplicas"), updated), ("Ready", status("readyReplicas"), wanted)])
        });
    match found {
        Some(verdict) => verdict,
        None if !rolled_out => progress("ReplicaSet not Available"),
        None if !available => progress("Deployment not Available"),
        None => current(format!("Deployment is available. Replicas: {replicas}")),
    }
}

fn replica_set(object: &Value) -> Verdict {
    if conditions(object).any(|c| c.kind == "ReplicaFailure" && c.status == "True") {
        return progress("Replica Failure condition. Check Pods");
    }
    let wanted = int(object, "/spec/replicas", 1);
    let status = |field: &str| int(object, &format!("/status/{field}"), 0);
    let replicas = status("replicas");
    short(&[
        ("Labelled", status("fullyLabeledReplicas"), wanted),
        ("Available", status("availableReplicas"), wanted),
        ("Ready", status("readyReplicas"), wanted),
    ])
    .or_else(|| excess(replicas, wanted))
    .unwrap_or_else(|| current(format!("ReplicaSet is available. Replicas: {replicas}")))
}

fn job(object: &Value) -> Verdict {
    if object.pointer("/spec/suspend").and_then(Value::as_bool) == Some(true) {
        return current("Job is suspended");
    }
    let parallelism = int(object, "/spec/parallelism", 1);
    let completions = int(object, "/spec/completions", parallelism);
    let status = |field: &str| int(object, &format!("/status/{field}"), 0);
    for condition in conditions(object) {
        match (condition.kind, condition.status) {
            ("Complete", "True") => {
                return current(format!("Job Completed. succeeded: {}/{completions}", status("succeeded")));
            }
            ("Failed", "True") => return failed(format!("Job Failed. failed: {}/{completions}", status("failed"))),
            _ => {}
        }
    }
    if text(object, "/status/startTime", "").is_empty() {
        return progress(format!("Job not started. active: 0/{parallelism}"));
    }
    progress(format!(
        "Job in progress. success:{}, active: {}, failed: {}",
        status("succeeded"),
        status("active"),
        status("failed")
    ))
}

fn definition(object: &Value) -> Verdict {
    for condition in conditions(object) {
        match (condition.kind, condition.status) {
            ("NamesAccepted", "False") => return failed(condition.message),
            ("Established", "False") if condition.reason != "Installing" => return failed(condition.message),
            ("Established", "True") => return current("CRD is established"),
            _ => {}
        }
    }
    progress("Install in progress")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(api: &str, kind: &str, rest: Value) -> Health {
        let mut object = json!({"apiVersion": api, "kind": kind, "metadata": {"name": "a"}});
        for (field, value) in rest.as_object().unwrap() {
            object[field] = value.clone();
        }
        health(&object, "2026-01-01T00:00:20Z".parse().unwrap()).0
    }

    fn condition(kind: &str, status: &str, reason: &str) -> Value {
        json!({"type": kind, "status": status, "reason": reason, "message": "m"})
    }

    use Health::{Current, Failed, InProgress, Terminating, Unknown};

    #[test]
    fn what_holds_for_every_kind_comes_first() {
        let deployment = |rest: Value| at("apps/v1", "Deployment", rest);
        let table = [
            (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), Terminating),
            (json!({"metadata": {"generation": 2}, "status": {"observedGeneration": 1}}), InProgress),
            (json!({"status": {"conditions": [condition("Reconciling", "True", "")]}}), InProgress),
            (json!({"status": {"conditions": [condition("Stalled", "True", "")]}}), Failed),
        ];
        for (rest, expected) in table {
            assert_eq!(deployment(rest.clone()), expected, "{rest}");
            assert_eq!(at("x.io/v1", "Thing", rest.clone()), expected, "{rest}");
        }
    }

    #[test]
    fn an_unknown_kind_is_current_unless_it_says_otherwise() {
        let thing = |rest: Value| at("x.io/v1", "Thing", rest);
        assert_eq!(thing(json!({})), Current);
        assert_eq!(thing(json!({"metadata": {"generation": 3}})), Current);
        for (status, expected) in [("True", Current), ("False", InProgress), ("Unknown", InProgress)] {
            assert_eq!(thing(json!({"status": {"conditions": [condition("Ready", status, "")]}})), expected);
        }
    }

    #[test]
    fn workloads_are_current_when_all_their_pods_are() {
        let full = json!({"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 2,
                          "currentReplicas": 2, "fullyLabeledReplicas": 2, "observedGeneration": 1});
        let with = |pairs: &[(&str, Value)]| {
            let mut status = full.clone();
            for (field, value) in pairs {
                status[*field] = value.clone();
            }
            json!({"metadata": {"generation": 1}, "spec": {"replicas": 2, "progressDeadlineSeconds": 600}, "status": status})
        };
        let done =
            json!([condition("Progressing", "True", "NewReplicaSetAvailable"), condition("Available", "True", "")]);
        let deployment = [
            (with(&[("conditions", done.clone())]), Current),
            (with(&[]), InProgress),
            (with(&[("conditions", json!([condition("Available", "True", "")]))]), InProgress),
            (with(&[("conditions", json!([condition("Progressing", "True", "NewReplicaSetAvailable")]))]), InProgress),
            (with(&[("conditions", json!([condition("Progressing", "False", "ProgressDeadlineExceeded")]))]), Failed),
            (with(&[("conditions", done.clone()), ("replicas", json!(1))]), InProgress),
            (with(&[("conditions", done.clone()), ("updatedReplicas", json!(1))]), InProgress),
            (with(&[("conditions", done.clone()), ("replicas", json!(3))]), InProgress),
            (with(&[("conditions", done.clone()), ("availableReplicas", json!(1))]), InProgress),
            (with(&[("conditions", done), ("readyReplicas", json!(1))]), InProgress),
        ];
        for (object, expected) in deployment {
            assert_eq!(at("apps/v1", "Deployment", object.clone()), expected, "{object}");
        }
        let replica_set = [
            (with(&[]), Current),
            (with(&[("conditions", json!([condition("ReplicaFailure", "True", "")]))]), InProgress),
            (with(&[("fullyLabeledReplicas", json!(1))]), InProgress),
            (with(&[("replicas", json!(3))]), InProgress),
        ];
        for (object, expected) in replica_set {
            assert_eq!(at("apps/v1", "ReplicaSet", object.clone()), expected, "{object}");
        }
        let mut partition = with(&[("updatedReplicas", json!(1)), ("updateRevision", json!("b"))]);
        partition["spec"]["updateStrategy"] = json!({"rollingUpdate": {"partition": 1}});
        let mut on_delete = with(&[("readyReplicas", json!(0))]);
        on_delete["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
        let stateful_set = [
            (with(&[]), Current),
            (with(&[("currentRevision", json!("a")), ("updateRevision", json!("b"))]), InProgress),
            (with(&[("readyReplicas", json!(1))]), InProgress),
            (with(&[("currentReplicas", json!(1))]), InProgress),
            (partition, Current),
            (on_delete, Current),
        ];
        for (object, expected) in stateful_set {
            assert_eq!(at("apps/v1", "StatefulSet", object.clone()), expected, "{object}");
        }
        let daemon =
            |status: Value| at("apps/v1", "DaemonSet", json!({"metadata": {"generation": 1}, "status": status}));
        let full = json!({"observedGeneration": 1, "desiredNumberScheduled": 1, "currentNumberScheduled": 1,
                          "updatedNumberScheduled": 1, "numberAvailable": 1, "numberReady": 1});
        assert_eq!(daemon(full.clone()), Current);
        for field in full.as_object().unwrap().keys() {
            let mut less = full.clone();
            less.as_object_mut().unwrap().remove(field);
            assert_eq!(daemon(less), InProgress, "{field}");
        }
    }

    #[test]
    fn a_job_is_current_when_it_has_completed() {
        let job = |rest: Value| at("batch/v1", "Job", rest);
        assert_eq!(job(json!({})), InProgress);
        assert_eq!(job(json!({"status": {"startTime": "t", "active": 1}})), InProgress);
        assert_eq!(job(json!({"spec": {"suspend": true}})), Current);
        assert_eq!(job(json!({"status": {"conditions": [condition("Complete", "True", "")]}})), Current);
        assert_eq!(job(json!({"status": {"conditions": [condition("Failed", "True", "")]}})), Failed);
    }

    #[test]
    fn pods_volumes_services_and_definitions_have_rules_of_their_own() {
        let pod = |status: Value, created: &str| {
            at("v1", "Pod", json!({"metadata": {"creationTimestamp": created}, "status": status}))
        };
        let pending = json!({"phase": "Pending", "conditions": [condition("PodScheduled", "False", "Unschedulable")]});
        let looping = json!({"phase": "Running", "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
        let long_ago = "2026-01-01T00:00:00Z";
        for (status, created, expected) in [
            (json!({}), long_ago, InProgress),
            (json!({"phase": "Odd"}), long_ago, Unknown),
            (json!({"phase": "Pending"}), long_ago, InProgress),
            (pending.clone(), long_ago, Failed),
            (pending, "2026-01-01T00:00:10Z", InProgress),
            (json!({"phase": "Running"}), long_ago, InProgress),
            (json!({"phase": "Running", "conditions": [condition("Ready", "True", "")]}), long_ago, Current),
            (looping, long_ago, Failed),
            (json!({"phase": "Succeeded"}), long_ago, Current),
            (json!({"phase": "Failed"}), long_ago, Current),
        ] {
            assert_eq!(pod(status.clone(), created), expected, "{status}");
        }
        let claim = |phase: &str| at("v1", "PersistentVolumeClaim", json!({"status": {"phase": phase}}));
        assert_eq!((claim("Bound"), claim("Pending")), (Current, InProgress));
        assert_eq!(at("v1", "Service", json!({"spec": {"type": "LoadBalancer"}})), InProgress);
        assert_eq!(at("v1", "Service", json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1"}})), Current);
        // Another group's Service has none of these rules.
        assert_eq!(at("serving.knative.dev/v1", "Service", json!({"spec": {"type": "LoadBalancer"}})), Current);
        let crd = |conditions: Value| {
            at("apiextensions.k8s.io/v1", "CustomResourceDefinition", json!({"status": {"conditions": conditions}}))
        };
        assert_eq!(crd(json!([])), InProgress);
        assert_eq!(crd(json!([condition("Established", "False", "Installing")])), InProgress);
        assert_eq!(crd(json!([condition("Established", "True", "")])), Current);
        assert_eq!(crd(json!([condition("NamesAccepted", "False", "")])), Failed);
    }
}
