//! What would become of objects under Larder, judged by their specs and statuses alone: for `larder migrate report`.
//!
//! It asks the functions by which passes refuse a spec, so it cannot differ from them. Pure; no Secret is looked at, and
//! nothing is asked of a registry: what only a pull shows is not told.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use super::{
    desired::{self, Refused},
    kustomization,
};
use crate::{
    objects::{
        Artifact, Key, Kind, Object, Spec, Status,
        survey::{Found, Item, by_key},
    },
    oci::Registry,
};

/// What becomes of an object, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Verdict {
    /// The same as under Flux.
    #[serde(rename = "same")]
    Same,
    /// Larder reconciles it, and something is otherwise.
    #[serde(rename = "differs")]
    Differs,
    /// Larder leaves it alone: it stays Flux's.
    #[serde(rename = "not taken")]
    NotTaken,
    /// Larder would take it, and tell in its status that it cannot.
    #[serde(rename = "refused")]
    Refused,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Same, Self::Differs, Self::NotTaken, Self::Refused];

    /// The word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Differs => "differs",
            Self::NotTaken => "not taken",
            Self::Refused => "refused",
        }
    }
}

/// What becomes of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// In one word.
    pub verdict: Verdict,
    /// Why; where it is the same, at most what it waits for.
    pub why: Vec<String>,
}

type Judged = (Verdict, Vec<String>);

/// What objects are judged by.
struct Known<'a> {
    all: BTreeMap<Key, Arc<Object>>,
    permits: &'a dyn Fn(&Registry) -> Result<(), &'static str>,
}

impl Known<'_> {
    /// Whether there is anything to fetch for an object.
    fn examine(&self, object: &Object) -> Result<bool, Refused> {
        desired::examine(object, |key| self.all.get(key).map(Arc::clone), self.permits)
    }
}

/// Judges all objects, in their order. `permits` knows which registries must not be contacted.
pub fn judge(items: &[Item], permits: &dyn Fn(&Registry) -> Result<(), &'static str>) -> Vec<Line> {
    let known = Known { all: by_key(items), permits };
    let line = |item: &Item| {
        let (verdict, why) = match &item.found {
            Found::Other(spec) => (Verdict::NotTaken, vec![other(item, spec, &known)]),
            Found::Unreadable(error) => (Verdict::Refused, vec![error.clone()]),
            Found::Read(object, status) => match &object.spec {
                Spec::Kustomization(_) => applied(object, &known.all),
                _ => source(object, status, &known),
            },
        };
        let (kind, namespace, name) = (item.kind.clone(), item.namespace.clone(), item.name.clone());
        Line { kind, namespace, name, verdict, why }
    };
    items.iter().map(line).collect()
}

fn other(item: &Item, spec: &serde_json::Value, known: &Known<'_>) -> String {
    if item.kind != "HelmRelease" {
        return "stays Flux's: Larder has no such kind".into();
    }
    // With a `chart` helm-controller makes a HelmChart, in the namespace of what that comes from.
    let (reference, through) = match &spec["chartRef"] {
        serde_json::Value::Null => (&spec["chart"]["spec"]["sourceRef"], "the HelmChart that it makes from "),
        reference => (reference, ""),
    };
    let text = |field: &str| reference[field].as_str();
    let (Some(kind), Some(name)) = (text("kind"), text("name")) else {
        return "stays Flux's: helm-controller finds its chart, if it names any".into();
    };
    let namespace = text("namespace").unwrap_or(&item.namespace);
    let from = format!("{through}{kind} {namespace}/{name}");
    let object = Kind::find(kind).and_then(|kind| known.all.get(&Key::new(kind, namespace, name)));
    match object {
        Some(object) if is_held(object, !through.is_empty(), known) => {
            format!("stays Flux's: helm-controller takes the artifact of {from} from Larder as from Flux")
        }
        Some(_) => format!("stays Flux's, with its chart: {from} needs source-controller"),
        None if kind == "ExternalArtifact" => {
            format!("stays Flux's: helm-controller takes the artifact of {from} from whoever publishes it")
        }
        None => format!("stays Flux's: {from} is not there, or not Larder's"),
    }
}

/// Whether a release's chart is fetched by Larder: from this object, or from the HelmChart that is made from it.
fn is_held(object: &Object, through_a_chart: bool, known: &Known<'_>) -> bool {
    match object.key.kind {
        Kind::HelmRepository => through_a_chart && object.is_ours(),
        Kind::OCIRepository | Kind::HelmChart if !through_a_chart => known.examine(object).is_ok_and(|held| held),
        _ => false,
    }
}

fn source(object: &Object, status: &Status, known: &Known<'_>) -> Judged {
    let not_taken = |why: &str| (Verdict::NotTaken, vec![format!("stays Flux's: {why}")]);
    match &object.spec {
        Spec::GitRepository(_) if !object.is_ours() => return not_taken("its URL is not oci://"),
        Spec::HelmRepository(_) if !object.is_ours() => return not_taken("its type is not oci"),
        // It is static, and has no status of either.
        Spec::HelmRepository(_) => return (Verdict::Same, Vec::new()),
        _ => {}
    }
    match known.examine(object) {
        Err(refused) => (Verdict::Refused, vec![refused.message]),
        Ok(false) => not_taken("its HelmRepository's type is not oci"),
        Ok(true) => match &status.artifact {
            Some(artifact) if !artifact.is_larders() => (Verdict::Differs, vec![moves(artifact, object.key.kind)]),
            _ => (Verdict::Same, Vec::new()),
        },
    }
}

/// What an artifact that Flux made becomes.
fn moves(artifact: &Artifact, kind: Kind) -> String {
    let what = if kind == Kind::HelmChart { "version" } else { "revision" };
    format!(
        "the artifact's digest and URL change once; its {what} stays {:?}, so nothing is applied anew",
        artifact.revision
    )
}

fn applied(object: &Object, all: &BTreeMap<Key, Arc<Object>>) -> Judged {
    match kustomization::examine(object) {
        Err(why) => return (Verdict::Refused, why),
        Ok(None) => {}
        Ok(Some(source)) => {
            let why = match all.get(&source) {
                Some(source) if source.is_ours() => return (Verdict::Same, Vec::new()),
                Some(_) => format!("its source {source} stays Flux's"),
                None if source.kind == Kind::OCIRepository => {
                    let why = format!("its source {source} is not there: Larder waits for it, as Flux does");
                    return (Verdict::Same, vec![why]);
                }
                None => format!("its source {source} is not there"),
            };
            let why = format!("{why}: leave it to kustomize-controller");
            return (Verdict::NotTaken, vec![why]);
        }
    }
    let Spec::Kustomization(spec) = &object.spec else { return (Verdict::Same, Vec::new()) };
    let why = format!(
        "its source is of kind {}, which Larder does not hold: leave it to kustomize-controller",
        spec.source_ref.kind
    );
    (Verdict::NotTaken, vec![why])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::objects::{Metadata, manifest::typed_spec};

    fn item(kind: Kind, name: &str, spec: Value, status: Value) -> Item {
        let key = Key::new(kind, "default", name);
        let typed = typed_spec(kind, &spec).unwrap();
        let object = Object { key, metadata: Metadata::default(), spec: typed, raw_spec: spec };
        let status = serde_json::from_value(status).unwrap();
        let found = Found::Read(Arc::new(object), Box::new(status));
        Item { kind: kind.name().into(), namespace: "default".into(), name: name.into(), found }
    }

    #[test]
    fn each_object_has_its_verdict_and_a_reason() {
        use Kind::{GitRepository, HelmChart, HelmRepository, Kustomization, OCIRepository};
        use Verdict::{Differs, NotTaken, Refused, Same};
        let sha = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let artifact = |file: &str| {
            json!({"artifact": {"digest": format!("sha256:{sha}"), "path": format!("ocirepository/default/a/{file}"),
                "url": "http://h/p", "revision": format!("v1@sha256:{sha}"), "lastUpdateTime": "2026-01-01T00:00:00Z"}})
        };
        let (flux, larder) = (artifact(&format!("sha256:{sha}.tar.gz")), artifact(&format!("{sha}.tar.gz")));
        let none = || json!({});
        let oci = |more: Value| {
            let mut spec = json!({"url": "oci://h.example/r", "interval": "1m"});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        let chart = |source: Value| json!({"chart": "c", "interval": "1m", "sourceRef": source});
        let applies = |more: Value| {
            let mut spec =
                json!({"interval": "1m", "prune": true, "sourceRef": {"kind": "OCIRepository", "name": "plain"}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        let from = |kind: &str, name: &str| json!({"sourceRef": {"kind": kind, "name": name}});
        let release = |spec: Value| Item {
            kind: "HelmRelease".into(),
            namespace: "default".into(),
            name: "r".into(),
            found: Found::Other(spec),
        };
        let through = |kind: &str, name: &str| json!({"chart": {"spec": {"sourceRef": {"kind": kind, "name": name}}}});
        let table: Vec<(Item, Verdict, &str)> = vec![
            (item(OCIRepository, "plain", oci(none()), none()), Same, ""),
            (item(OCIRepository, "larders", oci(none()), larder), Same, ""),
            (
                item(OCIRepository, "fluxs", oci(none()), flux),
                Differs,
                "digest and URL change once; its revision stays \"v1@",
            ),
            (item(OCIRepository, "url", oci(json!({"url": "oci://h.example/r:v1"})), none()), Refused, "spec.url: "),
            (
                item(OCIRepository, "ref", oci(json!({"ref": {"digest": "sha256:0"}})), none()),
                Refused,
                "spec.ref.digest: ",
            ),
            (
                item(OCIRepository, "notation", oci(json!({"verify": {"provider": "notation"}})), none()),
                Refused,
                "notation",
            ),
            (
                item(OCIRepository, "keyless", oci(json!({"verify": {"provider": "cosign"}})), none()),
                Refused,
                "trustedRootSecretRef",
            ),
            (
                item(
                    OCIRepository,
                    "keys",
                    oci(json!({"verify": {"provider": "cosign", "secretRef": {"name": "k"}}})),
                    none(),
                ),
                Same,
                "",
            ),
            (
                item(OCIRepository, "cloud", oci(json!({"provider": "none-such"})), none()),
                Refused,
                "spec.provider: none-such",
            ),
            (
                item(OCIRepository, "named", oci(json!({"provider": "none-such", "secretRef": {"name": "s"}})), none()),
                Same,
                "",
            ),
            (
                item(GitRepository, "git", json!({"url": "https://h/r", "interval": "1m"}), none()),
                NotTaken,
                "not oci://",
            ),
            (item(GitRepository, "git-oci", json!({"url": "oci://h.example/r", "interval": "1m"}), none()), Same, ""),
            (item(HelmRepository, "http", json!({"url": "https://h/charts"}), none()), NotTaken, "type is not oci"),
            (item(HelmRepository, "charts", json!({"url": "oci://h.example/charts", "type": "oci"}), none()), Same, ""),
            (item(HelmChart, "c1", chart(json!({"kind": "HelmRepository", "name": "charts"})), none()), Same, ""),
            (
                item(HelmChart, "c2", chart(json!({"kind": "HelmRepository", "name": "http"})), none()),
                NotTaken,
                "HelmRepository's",
            ),
            (
                item(HelmChart, "c3", chart(json!({"kind": "GitRepository", "name": "git"})), none()),
                Refused,
                "not from a GitRepository",
            ),
            (
                item(HelmChart, "c4", chart(json!({"kind": "HelmRepository", "name": "gone"})), none()),
                Refused,
                "not found",
            ),
            (item(Kustomization, "k", applies(none()), none()), Same, ""),
            (
                item(Kustomization, "remote", applies(json!({"kubeConfig": {"secretRef": {"name": "s"}}})), none()),
                Refused,
                "spec.kubeConfig",
            ),
            (
                item(Kustomization, "sops", applies(json!({"decryption": {"provider": "sops"}})), none()),
                Refused,
                "spec.decryption",
            ),
            (
                item(
                    Kustomization,
                    "cel",
                    applies(json!({"healthCheckExprs": [{"apiVersion": "v1", "kind": "A", "current": "true"}]})),
                    none(),
                ),
                Refused,
                "CEL",
            ),
            (
                item(
                    Kustomization,
                    "expr",
                    applies(json!({"dependsOn": [{"name": "k", "readyExpr": "true"}]})),
                    none(),
                ),
                Refused,
                "CEL",
            ),
            (
                item(Kustomization, "ignore", applies(json!({"ignore": [{"paths": ["/spec"]}]})), none()),
                Refused,
                "spec.ignore",
            ),
            (
                item(Kustomization, "vars", applies(json!({"postBuild": {"substitute": []}})), none()),
                Refused,
                "spec.postBuild",
            ),
            (item(Kustomization, "bucket", applies(from("Bucket", "b")), none()), NotTaken, "of kind Bucket"),
            (item(Kustomization, "of-git", applies(from("GitRepository", "git")), none()), NotTaken, "stays Flux's"),
            (item(Kustomization, "of-git-oci", applies(from("GitRepository", "git-oci")), none()), Same, ""),
            (
                item(Kustomization, "of-none", applies(from("OCIRepository", "none")), none()),
                Same,
                "Larder waits for it",
            ),
            (
                item(Kustomization, "of-no-git", applies(from("GitRepository", "none")), none()),
                NotTaken,
                "is not there",
            ),
            (
                item(OCIRepository, "local", oci(json!({"url": "oci://localhost:41500/r"})), none()),
                Refused,
                "must not be contacted",
            ),
            (
                item(OCIRepository, "metadata", oci(json!({"url": "oci://169.254.169.254/r"})), none()),
                Refused,
                "must not be contacted",
            ),
            (
                item(OCIRepository, "service", oci(json!({"url": "oci://kubernetes.default.svc/r"})), none()),
                Refused,
                "must not be contacted",
            ),
            (
                item(OCIRepository, "api", oci(json!({"url": "oci://10.1.2.3:6443/r"})), none()),
                Refused,
                "must not be contacted",
            ),
            (item(OCIRepository, "beside-api", oci(json!({"url": "oci://10.1.2.3:5000/r"})), none()), Same, ""),
            (item(OCIRepository, "loopback", oci(json!({"url": "oci://127.0.0.1:5000/r"})), none()), Same, ""),
            (
                Item {
                    kind: "Bucket".into(),
                    namespace: "default".into(),
                    name: "b".into(),
                    found: Found::Other(json!({})),
                },
                NotTaken,
                "no such kind",
            ),
            (
                release(json!({"chartRef": {"kind": "OCIRepository", "name": "plain"}})),
                NotTaken,
                "takes the artifact of OCIRepository default/plain from Larder",
            ),
            (
                release(json!({"chartRef": {"kind": "OCIRepository", "name": "url"}})),
                NotTaken,
                "needs source-controller",
            ),
            (
                release(json!({"chartRef": {"kind": "HelmChart", "name": "c1"}})),
                NotTaken,
                "HelmChart default/c1 from Larder",
            ),
            (release(json!({"chartRef": {"kind": "HelmChart", "name": "c2"}})), NotTaken, "needs source-controller"),
            (
                release(json!({"chartRef": {"kind": "OCIRepository", "name": "plain", "namespace": "other"}})),
                NotTaken,
                "OCIRepository other/plain is not there",
            ),
            (release(through("HelmRepository", "charts")), NotTaken, "HelmRepository default/charts from Larder"),
            (
                release(through("HelmRepository", "http")),
                NotTaken,
                "HelmRepository default/http needs source-controller",
            ),
            (release(through("GitRepository", "git-oci")), NotTaken, "needs source-controller"),
            (release(through("Bucket", "b")), NotTaken, "Bucket default/b is not there, or not Larder's"),
            (release(json!({})), NotTaken, "if it names any"),
            (
                Item {
                    kind: "OCIRepository".into(),
                    namespace: "default".into(),
                    name: "torn".into(),
                    found: Found::Unreadable("spec: wrong".into()),
                },
                Refused,
                "spec: wrong",
            ),
        ];
        let items: Vec<Item> = table.iter().map(|(item, ..)| item.clone()).collect();
        let server = ["10.1.2.3:6443".to_owned()];
        let permits = |registry: &Registry| crate::registry::permits(&[], &[], &server, registry);
        for (line, (_, verdict, part)) in judge(&items, &permits).iter().zip(&table) {
            assert_eq!(line.verdict, *verdict, "{line:?}");
            let why = line.why.join("; ");
            assert!(why.contains(part) && (part.is_empty() == why.is_empty()), "{line:?}");
        }
    }
}
