//! Which resources there are, what a path asks for, and the documents of discovery.

use serde_json::{Value, json};

/// A resource that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub namespaced: bool,
    /// Whether `status` is a subresource; such kinds also count generations.
    pub status: bool,
}

impl Resource {
    /// `apps/v1`, or `v1` in the core.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Whether Kubernetes itself has it: such an object may be updated without saying which version was read.
    pub fn is_built_in(&self) -> bool {
        !self.group.contains('.') || self.group.ends_with(".k8s.io")
    }
}

/// Group and version, kind, plural, namespaced, with status.
const ROWS: [(&str, &str, &str, &str, bool, bool); 44] = [
    ("", "v1", "Namespace", "namespaces", false, true),
    ("", "v1", "ConfigMap", "configmaps", true, false),
    ("", "v1", "Secret", "secrets", true, false),
    ("", "v1", "Service", "services", true, true),
    ("", "v1", "ServiceAccount", "serviceaccounts", true, false),
    ("", "v1", "Event", "events", true, false),
    ("", "v1", "Pod", "pods", true, true),
    ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", true, true),
    ("", "v1", "Endpoints", "endpoints", true, false),
    ("", "v1", "LimitRange", "limitranges", true, false),
    ("", "v1", "ResourceQuota", "resourcequotas", true, true),
    ("apps", "v1", "Deployment", "deployments", true, true),
    ("apps", "v1", "StatefulSet", "statefulsets", true, true),
    ("apps", "v1", "DaemonSet", "daemonsets", true, true),
    ("apps", "v1", "ReplicaSet", "replicasets", true, true),
    ("batch", "v1", "Job", "jobs", true, true),
    ("batch", "v1", "CronJob", "cronjobs", true, true),
    ("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", true, true),
    ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", true, true),
    ("networking.k8s.io", "v1", "Ingress", "ingresses", true, true),
    ("networking.k8s.io", "v1", "IngressClass", "ingressclasses", false, false),
    ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", true, false),
    ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true, false),
    ("rbac.authorization.k8s.io", "v1", "Role", "roles", true, false),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", true, false),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", false, false),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", false, false),
    ("coordination.k8s.io", "v1", "Lease", "leases", true, false),
    ("events.k8s.io", "v1", "Event", "events", true, false),
    ("storage.k8s.io", "v1", "StorageClass", "storageclasses", false, false),
    ("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", false, false),
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", false, true),
    ("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", false, false),
    ("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews", false, false),
    ("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews", false, false),
    ("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", false, false),
    ("source.toolkit.fluxcd.io", "v1", "OCIRepository", "ocirepositories", true, true),
    ("source.toolkit.fluxcd.io", "v1", "GitRepository", "gitrepositories", true, true),
    ("source.toolkit.fluxcd.io", "v1", "HelmRepository", "helmrepositories", true, true),
    ("source.toolkit.fluxcd.io", "v1", "HelmChart", "helmcharts", true, true),
    ("source.toolkit.fluxcd.io", "v1", "Bucket", "buckets", true, true),
    ("source.toolkit.fluxcd.io", "v1", "ExternalArtifact", "externalartifacts", true, true),
    ("kustomize.toolkit.fluxcd.io", "v1", "Kustomization", "kustomizations", true, true),
    ("helm.toolkit.fluxcd.io", "v2", "HelmRelease", "helmreleases", true, true),
];

/// The resources that are served from the start.
pub fn resources() -> Vec<Resource> {
    ROWS.iter()
        .map(|&(group, version, kind, plural, namespaced, status)| Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            namespaced,
            status,
        })
        .collect()
}

/// The resources that a CustomResourceDefinition serves, one a version.
pub fn of_definition(definition: &Value) -> Vec<Resource> {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let versions = spec["versions"].as_array().into_iter().flatten().filter(|version| version["served"] == true);
    versions
        .map(|version| Resource {
            group: text(&spec["group"]),
            version: text(&version["name"]),
            kind: text(&spec["names"]["kind"]),
            plural: text(&spec["names"]["plural"]),
            namespaced: spec["scope"] == "Namespaced",
            status: version["subresources"]["status"].is_object(),
        })
        .collect()
}

/// What a path of a resource names; empty is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub namespace: String,
    pub name: String,
    pub subresource: String,
}

/// Takes a path apart; none where it names no resource.
pub fn target(path: &str) -> Option<Target> {
    let parts: Vec<String> = path.trim_matches('/').split('/').map(unescape).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", _, "status" | "finalize"] => ("", rest),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        _ => ("", rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, "", ""),
        [plural, name] => (*plural, *name, ""),
        [plural, name, subresource] => (*plural, *name, *subresource),
        _ => return None,
    };
    Some(Target {
        group: group.to_owned(),
        version: version.to_owned(),
        plural: plural.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource: subresource.to_owned(),
    })
}

/// Undoes percent-encoding; in a query `+` is a space, which the callers see to.
pub fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let hex: String = [bytes.next(), bytes.next()].into_iter().flatten().map(char::from).collect();
            out.push(u8::from_str_radix(&hex, 16).unwrap_or(b'?'));
        } else {
            out.push(byte);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A document of discovery, of the version or of health; none where the path names none. `aggregated`: the client accepts
/// the newer form.
pub fn document(path: &str, resources: &[Resource], aggregated: bool) -> Option<Value> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["version"] => Some(json!({ "major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "linux/amd64" })),
        ["readyz" | "livez" | "healthz"] => Some(json!("ok")),
        ["api"] if aggregated => Some(aggregate(resources, |group| group.is_empty())),
        ["apis"] if aggregated => Some(aggregate(resources, |group| !group.is_empty())),
        ["api"] => Some(json!({ "kind": "APIVersions", "versions": ["v1"] })),
        ["apis"] => {
            let groups: Vec<Value> =
                groups(resources).iter().filter(|g| !g.is_empty()).map(|g| group(resources, g)).collect();
            Some(json!({ "apiVersion": "v1", "kind": "APIGroupList", "groups": groups }))
        }
        ["api", version] => list(resources, "", version),
        ["apis", name] => resources.iter().any(|r| r.group == *name).then(|| group(resources, name)),
        ["apis", name, version] => list(resources, name, version),
        _ => None,
    }
}

fn groups(resources: &[Resource]) -> Vec<&str> {
    let mut groups: Vec<&str> = resources.iter().map(|r| r.group.as_str()).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn versions<'a>(resources: &'a [Resource], group: &str) -> Vec<&'a str> {
    let mut versions: Vec<&str> = resources.iter().filter(|r| r.group == group).map(|r| r.version.as_str()).collect();
    versions.dedup();
    versions
}

fn group(resources: &[Resource], name: &str) -> Value {
    let all: Vec<Value> = versions(resources, name)
        .iter()
        .map(|version| json!({ "groupVersion": format!("{name}/{version}"), "version": version }))
        .collect();
    json!({ "apiVersion": "v1", "kind": "APIGroup", "name": name, "versions": all, "preferredVersion": all[0] })
}

const VERBS: [&str; 7] = ["create", "delete", "get", "list", "patch", "update", "watch"];

fn list(resources: &[Resource], group: &str, version: &str) -> Option<Value> {
    let mut all = Vec::new();
    for r in resources.iter().filter(|r| r.group == group && r.version == version) {
        all.push(json!({ "name": r.plural, "singularName": r.kind.to_lowercase(), "namespaced": r.namespaced,
            "kind": r.kind, "verbs": VERBS }));
        if r.status {
            all.push(json!({ "name": format!("{}/status", r.plural), "singularName": "", "namespaced": r.namespaced,
                "kind": r.kind, "verbs": ["get", "patch", "update"] }));
        }
    }
    let of = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!all.is_empty())
        .then(|| json!({ "apiVersion": "v1", "kind": "APIResourceList", "groupVersion": of, "resources": all }))
}

fn aggregate(resources: &[Resource], which: impl Fn(&str) -> bool) -> Value {
    let items: Vec<Value> = groups(resources)
        .into_iter()
        .filter(|group| which(group))
        .map(|group| {
            let versions: Vec<Value> = versions(resources, group)
                .into_iter()
                .map(|version| {
                    let all: Vec<Value> = resources
                        .iter()
                        .filter(|r| r.group == group && r.version == version)
                        .map(|r| {
                            let kind = json!({ "group": r.group, "version": r.version, "kind": r.kind });
                            let status = json!([{ "subresource": "status", "responseKind": kind,
                                "verbs": ["get", "patch", "update"] }]);
                            json!({ "resource": r.plural, "singularResource": r.kind.to_lowercase(),
                                "scope": if r.namespaced { "Namespaced" } else { "Cluster" }, "responseKind": kind,
                                "verbs": VERBS, "subresources": if r.status { status } else { json!([]) } })
                        })
                        .collect();
                    json!({ "version": version, "freshness": "Current", "resources": all })
                })
                .collect();
            json!({ "metadata": { "name": group }, "versions": versions })
        })
        .collect();
    json!({ "apiVersion": "apidiscovery.k8s.io/v2", "kind": "APIGroupDiscoveryList", "metadata": {}, "items": items })
}

#[test]
fn a_path_names_its_resource() {
    let rows = [
        ("/api/v1/namespaces", ["", "v1", "namespaces", "", "", ""]),
        ("/api/v1/namespaces/a", ["", "v1", "namespaces", "", "a", ""]),
        ("/api/v1/namespaces/a/status", ["", "v1", "namespaces", "", "a", "status"]),
        ("/api/v1/namespaces/a/secrets", ["", "v1", "secrets", "a", "", ""]),
        ("/api/v1/secrets", ["", "v1", "secrets", "", "", ""]),
        ("/apis/apps/v1/namespaces/a/deployments/b/status", ["apps", "v1", "deployments", "a", "b", "status"]),
        ("/apis/x.io/v1/clusterroles/a%3Ab", ["x.io", "v1", "clusterroles", "", "a:b", ""]),
    ];
    for (path, [group, version, plural, namespace, name, subresource]) in rows {
        let found = target(path).expect(path);
        assert_eq!(
            [found.group, found.version, found.plural, found.namespace, found.name, found.subresource],
            [group, version, plural, namespace, name, subresource],
            "{path}"
        );
    }
    assert_eq!((target("/version"), target("/apis/apps/v1"), target("/apis")), (None, None, None));
}
