//! The CustomResourceDefinitions of the kinds that Larder reconciles or writes, generated from their Rust types.
//!
//! They are Flux's: the same fields, also those that Larder does not read (an API server must prune nothing), the same
//! defaults, patterns, rules, columns and names. Two things are wider: a GitRepository's URL may begin with `oci://`, and
//! a Kustomization has `validation`. `tests/data/flux-crds` holds the facts of Flux's own, and a test compares.
//!
//! Only v1 is there: it is the only version that Flux's CRDs have stored or served since 2.8. A cluster in which an
//! older Flux left objects in another version has Flux's CRDs, which are not replaced but widened ([`widen`]); what they
//! do to what Larder writes is told by [`installed`].
//!
//! Pure: nothing here talks to a cluster.

pub mod installed;
pub mod structural;
pub mod widen;

use serde_json::{Value, json};

use self::structural::{add_unread, only, published, structural};
use super::{
    GitRepositorySpec, HelmChartSpec, HelmRepositorySpec, Kind, KustomizationSpec, OciRepositorySpec, Status,
    external_artifact::{self, ExternalArtifactSpec, ExternalArtifactStatus},
    kustomization::{History, KustomizationUnread},
    source::{GitRepositoryStatusUnread, GitRepositoryUnread, HelmRepositoryUnread},
};

/// The only version that is stored and served.
pub const VERSION: &str = "v1";

/// One printer column: its name and where it comes from.
type Column = (&'static str, &'static str);

const URL: Column = ("URL", ".spec.url");
const AGE: Column = ("Age", ".metadata.creationTimestamp");
const READY: Column = ("Ready", r#".status.conditions[?(@.type=="Ready")].status"#);
const STATUS: Column = ("Status", r#".status.conditions[?(@.type=="Ready")].message"#);

/// One CRD.
#[derive(Debug)]
pub struct Definition {
    /// `kind`.
    pub kind: &'static str,
    /// The plural, in lower case.
    pub plural: &'static str,
    /// The short names.
    pub short_names: &'static [&'static str],
    /// The API group.
    pub group: &'static str,
    description: &'static str,
    /// The category beside `all` and `fluxcd`.
    category: &'static str,
    columns: &'static [Column],
    spec: fn() -> Value,
    status: fn() -> Value,
    /// The fields of the status that Larder writes. Of a HelmRepository it writes none.
    written: &'static [&'static str],
    /// Before the first pass, `observedGeneration` is -1.
    counts_generations: bool,
}

const fn kind(
    kind: Kind,
    description: &'static str,
    columns: &'static [Column],
    spec: fn() -> Value,
    status: fn() -> Value,
    written: &'static [&'static str],
) -> Definition {
    let [plural, short_names @ ..] = kind.other_names() else { panic!("every kind has a plural") };
    let category = match kind {
        Kind::Kustomization => "fluxcd-appliers",
        _ => "fluxcd-sources",
    };
    let (group, kind) = (kind.group(), kind.name());
    Definition {
        kind,
        plural,
        short_names,
        group,
        description,
        category,
        columns,
        spec,
        status,
        written,
        counts_generations: true,
    }
}

/// All of them, in the order in which they are printed.
pub const DEFINITIONS: [Definition; 6] = [
    kind(
        Kind::OCIRepository,
        "A tag, range of versions or digest in an OCI repository, as a source of manifests or of a chart.",
        &[URL, READY, STATUS, AGE],
        || spec_schema(Kind::OCIRepository),
        || status(OCI_STATUS),
        OCI_STATUS,
    ),
    kind(
        Kind::GitRepository,
        "A Git repository; or, where the URL begins with oci://, an image of manifests in an OCI repository.",
        &[URL, AGE, READY, STATUS],
        || spec_schema(Kind::GitRepository),
        || with(status(GIT_STATUS), structural::<GitRepositoryStatusUnread>()),
        GIT_STATUS,
    ),
    kind(
        Kind::HelmRepository,
        "A Helm repository, or a place in an OCI registry below which charts are.",
        &[URL, AGE, READY, STATUS],
        || spec_schema(Kind::HelmRepository),
        || status(&["observedGeneration", "conditions", "artifact", "url", "lastHandledReconcileAt"]),
        &[],
    ),
    kind(
        Kind::HelmChart,
        "A chart, taken from a HelmRepository.",
        &[
            ("Chart", ".spec.chart"),
            ("Version", ".spec.version"),
            ("Source Kind", ".spec.sourceRef.kind"),
            ("Source Name", ".spec.sourceRef.name"),
            AGE,
            READY,
            STATUS,
        ],
        || spec_schema(Kind::HelmChart),
        || status(CHART_STATUS),
        CHART_STATUS,
    ),
    Definition {
        kind: external_artifact::KIND,
        plural: external_artifact::PLURAL,
        short_names: &["ea"],
        group: Kind::OCIRepository.group(),
        description: "An artifact that a controller other than Flux's publishes.",
        category: "fluxcd-sources",
        columns: &[AGE, READY, STATUS, ("Source", ".spec.sourceRef.name")],
        spec: || structural::<ExternalArtifactSpec>(),
        status: || structural::<ExternalArtifactStatus>(),
        written: &["artifact", "conditions"],
        counts_generations: false,
    },
    kind(
        Kind::Kustomization,
        "Manifests of a source, applied and kept as they are there.",
        &[AGE, READY, STATUS],
        || spec_schema(Kind::Kustomization),
        || with(status(KUSTOMIZATION_STATUS), structural::<History>()),
        KUSTOMIZATION_STATUS,
    ),
];

const OCI_STATUS: &[&str] = &[
    "observedGeneration",
    "conditions",
    "url",
    "artifact",
    "observedIgnore",
    "observedLayerSelector",
    "lastHandledReconcileAt",
];
const GIT_STATUS: &[&str] =
    &["observedGeneration", "conditions", "artifact", "observedIgnore", "lastHandledReconcileAt"];
const CHART_STATUS: &[&str] = &[
    "observedGeneration",
    "conditions",
    "url",
    "artifact",
    "lastHandledReconcileAt",
    "observedSourceArtifactRevision",
    "observedChartName",
    "observedValuesFiles",
];
const KUSTOMIZATION_STATUS: &[&str] = &[
    "observedGeneration",
    "conditions",
    "lastHandledReconcileAt",
    "lastAppliedRevision",
    "lastAttemptedRevision",
    "lastAppliedOriginRevision",
    "inventory",
];

fn status(fields: &[&str]) -> Value {
    let mut schema = structural::<Status>();
    only(&mut schema, fields);
    schema
}

fn with(mut schema: Value, unread: Value) -> Value {
    add_unread(&mut schema, unread);
    schema
}

/// The schema of a kind's spec, with the marks that [`mod@structural`] tells of.
pub fn spec_schema(kind: Kind) -> Value {
    match kind {
        Kind::OCIRepository => structural::<OciRepositorySpec>(),
        Kind::GitRepository => with(structural::<GitRepositorySpec>(), structural::<GitRepositoryUnread>()),
        Kind::HelmRepository => with(structural::<HelmRepositorySpec>(), structural::<HelmRepositoryUnread>()),
        Kind::HelmChart => structural::<HelmChartSpec>(),
        Kind::Kustomization => with(structural::<KustomizationSpec>(), structural::<KustomizationUnread>()),
    }
}

impl Definition {
    /// The definition with this `metadata.name`, such as `ocirepositories.source.toolkit.fluxcd.io`.
    pub fn named(name: &str) -> Option<&'static Self> {
        const { &DEFINITIONS }.iter().find(|definition| definition.name() == name)
    }

    /// `metadata.name`.
    pub fn name(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }

    /// The CRD.
    pub fn crd(&self) -> Value {
        let mut names = json!({
            "kind": self.kind,
            "listKind": format!("{}List", self.kind),
            "plural": self.plural,
            "singular": self.kind.to_ascii_lowercase(),
            "categories": ["all", "fluxcd", self.category],
        });
        if !self.short_names.is_empty() {
            names["shortNames"] = self.short_names.into();
        }
        let columns = self.columns.iter().map(|column| {
            let (name, path) = *column;
            json!({"name": name, "jsonPath": path, "type": if *column == AGE { "date" } else { "string" }})
        });
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": self.name(),
                // What is substituted in a Kustomization's manifests must not be in this one: patterns have `$`.
                "annotations": {"kustomize.toolkit.fluxcd.io/substitute": "disabled"},
            },
            "spec": {
                "group": self.group,
                "names": names,
                "scope": "Namespaced",
                "versions": [{
                    "name": VERSION,
                    "served": true,
                    "storage": true,
                    "additionalPrinterColumns": columns.collect::<Vec<_>>(),
                    "schema": {"openAPIV3Schema": self.schema()},
                    "subresources": {"status": {}},
                }],
            },
        })
    }

    fn schema(&self) -> Value {
        let mut status = (self.status)();
        if self.counts_generations {
            status["default"] = json!({"observedGeneration": -1});
        }
        published(json!({
            "type": "object",
            "description": self.description,
            "properties": {
                "apiVersion": {"type": "string", "description": "Group and version of the object."},
                "kind": {"type": "string", "description": "Kind of the object."},
                "metadata": {"type": "object"},
                "spec": (self.spec)(),
                "status": status,
            },
        }))
    }

    /// The schema of what Larder writes to objects of this kind, `metadata` aside.
    fn written(&self) -> Value {
        let mut schema = self.schema();
        only(&mut schema["properties"]["status"], self.written);
        // Larder makes ExternalArtifacts, all other objects are their owners'.
        let parts: &[&str] = if self.kind == external_artifact::KIND { &["spec", "status"] } else { &["status"] };
        only(&mut schema, parts);
        schema
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The keys that a structural schema of a CRD may have.
    const KEYS: &[&str] = &[
        "type",
        "format",
        "description",
        "default",
        "enum",
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "required",
        "properties",
        "items",
        "additionalProperties",
        "x-kubernetes-validations",
    ];

    fn check(schema: &Value, path: &str, wrong: &mut Vec<String>) {
        let map = schema.as_object().unwrap_or_else(|| panic!("{path}: {schema}"));
        wrong.extend(map.keys().filter(|key| !KEYS.contains(&key.as_str())).map(|key| format!("{path}: {key}")));
        if !schema["type"].is_string() {
            wrong.push(format!("{path}: type {}", schema["type"]));
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            check(field, &format!("{path}.{name}"), wrong);
        }
        for name in ["items", "additionalProperties"] {
            if let Some(inner) = map.get(name) {
                check(inner, &format!("{path}.{name}"), wrong);
            }
        }
    }

    #[test]
    fn every_schema_is_structural() {
        let mut wrong = Vec::new();
        for definition in &DEFINITIONS {
            check(&definition.schema(), definition.kind, &mut wrong);
        }
        assert_eq!(wrong, [] as [String; 0]);
    }

    #[test]
    fn every_field_of_the_status_is_some_kinds() {
        let all = structural::<Status>();
        let all: BTreeSet<&str> = all["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        let written: BTreeSet<&str> = DEFINITIONS.iter().flat_map(|d| d.written).copied().collect();
        assert_eq!(all, written);
        for definition in &DEFINITIONS {
            let written = definition.written();
            for field in definition.written {
                assert!(
                    written["properties"]["status"]["properties"][field].is_object(),
                    "{} {field}",
                    definition.kind
                );
            }
        }
    }

    #[test]
    fn what_is_read_from_files_only_is_in_no_crd() {
        let schema = spec_schema(Kind::GitRepository);
        assert!(schema["properties"]["ref"]["properties"]["digest"].is_object());
        let crd = Definition::named("gitrepositories.source.toolkit.fluxcd.io").unwrap().schema();
        let reference = &crd["properties"]["spec"]["properties"]["ref"]["properties"];
        assert!(reference["tag"].is_object() && reference["digest"].is_null());
    }
}
