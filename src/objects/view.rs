//! One view of the two kinds of source that name an OCI artifact, so that whoever reconciles them sees no difference.

use std::time::Duration;

use super::{
    GitRepositorySpec, Object, OciRepositorySpec, Spec,
    source::{GitReference, LayerSelector, LocalReference, OciReference, Verification},
};

/// Asks for a pass when its value changes: an opaque token.
pub const REQUESTED_AT: &str = "reconcile.fluxcd.io/requestedAt";

/// `all`: an OCIRepository takes all layers of a container image, not only the first.
pub const LAYERS: &str = "larder.dev/layers";

/// The time of one pass where the spec names none (the CRD's default).
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Which manifest of a repository a source wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// This one. Not parsed: a wrong digest is found at reconcile, as in Flux.
    Digest(String),
    /// The highest version in a range.
    Semver {
        /// The range, as Masterminds' library reads it.
        range: String,
        /// An RE2 expression that a tag must match.
        filter: Option<String>,
    },
    /// What the tag points to.
    Tag(String),
}

/// A field that is there and not empty: Go's `omitempty` makes no difference between the two.
fn given(field: &Option<String>) -> Option<&String> {
    field.as_ref().filter(|f| !f.is_empty())
}

impl Default for Wanted {
    fn default() -> Self {
        Self::Tag("latest".into())
    }
}

impl OciReference {
    /// Digest over semver over tag; none means `latest`.
    pub fn wanted(&self) -> Wanted {
        if let Some(digest) = given(&self.digest) {
            Wanted::Digest(digest.clone())
        } else if let Some(range) = given(&self.semver) {
            Wanted::Semver { range: range.clone(), filter: given(&self.semver_filter).cloned() }
        } else {
            given(&self.tag).cloned().map_or_else(Wanted::default, Wanted::Tag)
        }
    }
}

impl GitReference {
    /// Commit over digest over semver over tag over name over branch; none means `latest`.
    ///
    /// A commit is a digest here: one that is none (a Git hash) stays one, so that it fails and is not passed over.
    /// A tag that is written as a digest counts as one, since no tag may hold a colon.
    pub fn wanted(&self) -> Wanted {
        if let Some(digest) = given(&self.commit).or(given(&self.digest)) {
            return Wanted::Digest(digest.clone());
        }
        if let Some(range) = given(&self.semver) {
            return Wanted::Semver { range: range.clone(), filter: None };
        }
        let tag = given(&self.tag).map(String::as_str).or_else(|| {
            let name = given(&self.name)?.as_str();
            Some(name.strip_prefix("refs/tags/").or_else(|| name.strip_prefix("refs/heads/")).unwrap_or(name))
        });
        match tag.or(given(&self.branch).map(String::as_str)) {
            Some(tag) if tag.starts_with("sha256:") || tag.starts_with("sha512:") => Wanted::Digest(tag.into()),
            Some(tag) => Wanted::Tag(tag.into()),
            None => Wanted::default(),
        }
    }
}

impl OciRepositorySpec {
    /// For one pass.
    pub fn timeout(&self) -> Duration {
        self.timeout.as_ref().map_or(DEFAULT_TIMEOUT, |t| t.get())
    }

    /// Which manifest.
    pub fn wanted(&self) -> Wanted {
        self.reference.as_ref().map_or_else(Wanted::default, OciReference::wanted)
    }
}

impl GitRepositorySpec {
    /// For one pass.
    pub fn timeout(&self) -> Duration {
        self.timeout.as_ref().map_or(DEFAULT_TIMEOUT, |t| t.get())
    }

    /// Which manifest.
    pub fn wanted(&self) -> Wanted {
        self.reference.as_ref().map_or_else(Wanted::default, GitReference::wanted)
    }
}

/// An OCIRepository, or a GitRepository with an `oci://` URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceView<'a> {
    /// `oci://…`, not parsed.
    pub url: &'a str,
    /// Which manifest.
    pub wanted: Wanted,
    /// Which layer, if one is chosen.
    pub layer_selector: Option<&'a LayerSelector>,
    /// All layers of a container image, with whiteouts, as one tree.
    pub all_layers: bool,
    /// The Secret with the credentials.
    pub secret: Option<&'a str>,
    /// The Secret with a CA and a client certificate.
    pub cert_secret: Option<&'a str>,
    /// The Secret with the proxy.
    pub proxy_secret: Option<&'a str>,
    /// The ServiceAccount whose imagePullSecrets count.
    pub service_account: Option<&'a str>,
    /// Plain http, or TLS without verification. Always false for a GitRepository, which has no such field.
    pub insecure: bool,
    /// gitignore text; absent is not the same as empty.
    pub ignore: Option<&'a str>,
    /// How often.
    pub interval: Duration,
    /// For one pass.
    pub timeout: Duration,
    /// Leave it alone.
    pub suspend: bool,
    /// Signatures.
    pub verify: Option<&'a Verification>,
    /// `generic`, or a cloud's.
    pub provider: &'a str,
}

fn name(reference: &Option<LocalReference>) -> Option<&str> {
    reference.as_ref().map(|r| r.name.as_str()).filter(|n| !n.is_empty())
}

fn text(field: &Option<String>) -> Option<&str> {
    given(field).map(String::as_str)
}

/// The source in an object; `None` if it is of another kind, or a GitRepository without an `oci://` URL.
pub fn as_source(object: &Object) -> Option<SourceView<'_>> {
    match &object.spec {
        Spec::OciRepository(spec) => Some(SourceView {
            url: &spec.url,
            wanted: spec.wanted(),
            layer_selector: spec.layer_selector.as_ref(),
            all_layers: object.metadata.annotations.get(LAYERS).is_some_and(|v| v == "all"),
            secret: name(&spec.secret_ref),
            cert_secret: name(&spec.cert_secret_ref),
            proxy_secret: name(&spec.proxy_secret_ref),
            service_account: text(&spec.service_account_name),
            insecure: spec.insecure,
            ignore: spec.ignore.as_deref(),
            interval: spec.interval.get(),
            timeout: spec.timeout(),
            suspend: spec.suspend,
            verify: spec.verify.as_ref(),
            provider: text(&spec.provider).unwrap_or("generic"),
        }),
        Spec::GitRepository(spec) if spec.url.starts_with("oci://") => Some(SourceView {
            url: &spec.url,
            wanted: spec.wanted(),
            layer_selector: None,
            all_layers: true,
            secret: name(&spec.secret_ref),
            // Git's convention: `ca.crt` lies beside the credentials, in the same Secret.
            cert_secret: None,
            proxy_secret: name(&spec.proxy_secret_ref),
            service_account: text(&spec.service_account_name),
            insecure: false,
            ignore: spec.ignore.as_deref(),
            interval: spec.interval.get(),
            timeout: spec.timeout(),
            suspend: spec.suspend,
            verify: None,
            provider: text(&spec.provider).unwrap_or("generic"),
        }),
        _ => None,
    }
}

impl Spec {
    /// Whether it is Larder's: a GitRepository without an `oci://` URL and a HelmRepository of another type than `oci`
    /// are left strictly alone.
    pub fn is_ours(&self) -> bool {
        match self {
            Self::GitRepository(spec) => spec.url.starts_with("oci://"),
            Self::HelmRepository(spec) => spec.kind.as_deref() == Some("oci"),
            _ => true,
        }
    }
}

impl Object {
    /// The token of the last requested pass.
    pub fn requested_at(&self) -> Option<&str> {
        self.metadata.annotations.get(REQUESTED_AT).map(String::as_str).filter(|v| !v.is_empty())
    }

    /// Whether the object is Larder's, see [`Spec::is_ours`].
    pub fn is_ours(&self) -> bool {
        self.spec.is_ours()
    }

    /// `spec.suspend`.
    pub fn is_suspended(&self) -> bool {
        match &self.spec {
            Spec::OciRepository(spec) => spec.suspend,
            Spec::GitRepository(spec) => spec.suspend,
            Spec::HelmRepository(spec) => spec.suspend,
            Spec::HelmChart(spec) => spec.suspend,
            Spec::Kustomization(spec) => spec.suspend,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::objects::{Key, Kind, Metadata};

    #[test]
    fn maps_references_in_flux_order() {
        let sha = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let semver = |range: &str| Wanted::Semver { range: range.into(), filter: None };
        let tag = |t: &str| Wanted::Tag(t.into());
        let digest = |d: &str| Wanted::Digest(d.into());
        let table: &[(Value, Wanted)] = &[
            (json!({}), tag("latest")),
            (json!({"tag": ""}), tag("latest")),
            (json!({"tag": "v1.0.0"}), tag("v1.0.0")),
            (json!({"tag": sha}), digest(sha)),
            (json!({"digest": sha, "tag": "v1"}), digest(sha)),
            (json!({"commit": sha, "semver": "1.x"}), digest(sha)),
            (json!({"commit": "6dcd4ce", "tag": "v1"}), digest("6dcd4ce")),
            (json!({"semver": "1.x", "tag": "v1"}), semver("1.x")),
            (json!({"tag": "v1", "name": "refs/tags/v2"}), tag("v1")),
            (json!({"name": "refs/tags/v2", "branch": "main"}), tag("v2")),
            (json!({"name": "refs/heads/main"}), tag("main")),
            (json!({"branch": "main"}), tag("main")),
        ];
        for (reference, wanted) in table {
            let parsed: GitReference = serde_json::from_value(reference.clone()).unwrap();
            assert_eq!(parsed.wanted(), *wanted, "{reference}");
        }
        let table: &[(Value, Wanted)] = &[
            (json!({}), tag("latest")),
            (json!({"digest": "d", "semver": "1.x", "tag": "v1"}), digest("d")),
            (
                json!({"semver": "1.x", "semverFilter": ".*-rc.*", "tag": "v1"}),
                Wanted::Semver { range: "1.x".into(), filter: Some(".*-rc.*".into()) },
            ),
            (json!({"tag": "v1"}), tag("v1")),
        ];
        for (reference, wanted) in table {
            let parsed: OciReference = serde_json::from_value(reference.clone()).unwrap();
            assert_eq!(parsed.wanted(), *wanted, "{reference}");
        }
    }

    fn object(spec: Spec) -> Object {
        Object {
            key: Key::new(Kind::GitRepository, "default", "a"),
            metadata: Metadata::default(),
            spec,
            raw_spec: Value::Null,
        }
    }

    #[test]
    fn sees_both_kinds_of_source_alike_and_no_other() {
        let git = |url: &str| {
            object(Spec::GitRepository(
                serde_json::from_value(json!({"url": url, "interval": "1m", "secretRef": {"name": "s"}})).unwrap(),
            ))
        };
        let ours = git("oci://h/r");
        let view = as_source(&ours).unwrap();
        assert_eq!((view.url, view.secret, view.timeout), ("oci://h/r", Some("s"), Duration::from_secs(60)));
        assert!(view.all_layers && ours.is_ours());
        let other = git("https://h/r");
        assert_eq!(as_source(&other), None);
        assert!(!other.is_ours());

        let mut oci = object(Spec::OciRepository(
            serde_json::from_value(json!({"url": "oci://h/r", "interval": "1m", "timeout": "5s", "insecure": true}))
                .unwrap(),
        ));
        let view = as_source(&oci).unwrap();
        assert_eq!((view.timeout, view.insecure, view.all_layers), (Duration::from_secs(5), true, false));
        assert_eq!(oci.requested_at(), None);
        oci.metadata.annotations =
            [(LAYERS.to_string(), "all".to_string()), (REQUESTED_AT.to_string(), "now".to_string())].into();
        assert!(as_source(&oci).unwrap().all_layers);
        assert_eq!(oci.requested_at(), Some("now"));
    }
}
