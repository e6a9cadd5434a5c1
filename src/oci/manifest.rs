//! Manifests and indexes (image-spec 1.1; docker image manifest 2, schema 2).
//!
//! Taken: OCI image manifests (also those of artifacts, which state an `artifactType`), OCI indexes, docker's schema 2
//! manifests and manifest lists. What a document is, its `mediaType` says; else the Content-Type it came with; else its
//! shape. Where two of these speak they must agree, and a document that could be read as two things is refused
//! (GHSA-mc8v-mgrf-8f4m). A key that Larder reads may stand only once; other keys are ignored.
//!
//! Pure functions on bytes that have been verified against their digest; bounded by [`MAX_BYTES`], [`MAX_LAYERS`] and
//! [`MAX_CHILDREN`], nesting by the JSON parser (128).

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};

use super::{
    descriptor::{Descriptor, annotations},
    media_type::{self, is_container_image_config, is_helm_config, is_index, is_manifest},
};
use crate::class::Class;

/// The largest manifest taken, in bytes: 4 MiB, as distribution-spec 1.1 advises registries to allow at least.
pub const MAX_BYTES: usize = 4 << 20;
/// The most layers of a manifest: four times the 127 that overlay-based runtimes can stack.
pub const MAX_LAYERS: usize = 512;
/// The most children of an index.
pub const MAX_CHILDREN: usize = 1000;
/// How deep indexes may nest before a manifest: an index, and an index in it. For whoever follows [`Index::resolve`].
pub const MAX_INDEX_DEPTH: usize = 2;

/// A parsed manifest or index.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "made once a pull and taken apart at once; boxes would only get in the way"
)]
pub enum Document {
    /// An image or artifact manifest.
    Image(ImageManifest),
    /// An index or manifest list.
    Index(Index),
}

/// An image or artifact manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageManifest {
    /// The media type: stated in the body, else by Content-Type.
    pub media_type: String,
    /// The artifact's type, where stated.
    pub artifact_type: Option<String>,
    /// The config blob.
    pub config: Descriptor,
    /// The layers, base first.
    pub layers: Vec<Descriptor>,
    /// What this manifest refers to.
    pub subject: Option<Descriptor>,
    /// Annotations, verbatim.
    pub annotations: BTreeMap<String, String>,
}

/// An index or manifest list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// The media type: stated in the body, else by Content-Type.
    pub media_type: String,
    /// The artifact's type, where stated.
    pub artifact_type: Option<String>,
    /// The children.
    pub manifests: Vec<Descriptor>,
    /// What this index refers to.
    pub subject: Option<Descriptor>,
    /// Annotations, verbatim.
    pub annotations: BTreeMap<String, String>,
}

/// The child of an index to use, and on what condition. The text is a warning for the object's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution<'a> {
    /// linux/amd64.
    Exact(&'a Descriptor),
    /// Another platform's, but the only one there is.
    Only(&'a Descriptor, String),
    /// Another platform's and not the only one: good unless it turns out to be a container image's, for whose config
    /// the platform matters. [`Index::settle`] decides when the child has been fetched.
    IfNotImage(&'a Descriptor, String),
}

impl<'a> Resolution<'a> {
    /// The child to fetch.
    pub fn descriptor(&self) -> &'a Descriptor {
        match self {
            Self::Exact(child) | Self::Only(child, _) | Self::IfNotImage(child, _) => child,
        }
    }
}

/// Why a manifest cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Over [`MAX_BYTES`].
    #[error("the manifest has {0} bytes, at most {MAX_BYTES} are taken")]
    TooLarge(usize),
    /// A web page.
    #[error(
        "the registry answered with a web page instead of a manifest: is the address that of the registry's API, and \
         is no login page or proxy in between?"
    )]
    Html,
    /// Not JSON, or not of a manifest's form.
    #[error("the manifest cannot be read: {0}")]
    Json(String),
    /// The old docker format.
    #[error("docker image manifest schema 1 is not supported: push the image again with a current client")]
    Schema1,
    /// Not version 2 of the format.
    #[error("schemaVersion is {}, it must be 2", .0.map_or("missing".to_string(), |v| v.to_string()))]
    SchemaVersion(Option<u64>),
    /// A type that is not a manifest's or index's.
    #[error("media type {0:?} is not that of a manifest or index that Larder reads")]
    MediaType(String),
    /// Body and header disagree.
    #[error("the manifest says that it is {body:?}, the registry's Content-Type that it is {header:?}")]
    Disagree {
        /// `mediaType`, cut short.
        body: String,
        /// Content-Type, cut short.
        header: String,
    },
    /// A document that could be read as two things, or whose media type says something else than its form.
    #[error("{kind} must not have {field:?}: it could be read in two ways")]
    Ambiguous {
        /// What it is.
        kind: &'static str,
        /// What it has that it must not.
        field: &'static str,
    },
    /// Something required is not there.
    #[error("{kind} has no {field:?}")]
    Missing {
        /// What it is, or seems to be.
        kind: &'static str,
        /// What it lacks.
        field: &'static str,
    },
    /// More layers or children than are taken.
    #[error("{field:?} has {count} entries, at most {cap} are taken")]
    TooMany {
        /// `layers` or `manifests`.
        field: &'static str,
        /// How many there are.
        count: usize,
        /// How many are taken.
        cap: usize,
    },
    /// An index without a child to use.
    #[error("the index has no manifest for linux/amd64; it has {0}")]
    NoPlatform(String),
}

impl ManifestError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::TooLarge(_) => Class::Size,
            Self::TooMany { .. } => Class::Limit,
            _ => Class::Manifest,
        }
    }
}

/// A foreign text for a message: at most 200 characters, control characters escaped.
pub(super) fn printable(text: &str) -> String {
    let start: String = text.chars().take(200).collect();
    start.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// A list of which at most `CAP` + 1 entries are kept; the rest is counted.
struct Capped<T, const CAP: usize> {
    kept: Vec<T>,
    count: usize,
}

impl<'de, T: Deserialize<'de>, const CAP: usize> Deserialize<'de> for Capped<T, CAP> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const CAP: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const CAP: usize> Visitor<'de> for Items<T, CAP> {
            type Value = Capped<T, CAP>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut kept = Vec::new();
                while kept.len() < CAP
                    && let Some(item) = seq.next_element()?
                {
                    kept.push(item);
                }
                let mut count = kept.len();
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Capped { kept, count })
            }
        }

        deserializer.deserialize_seq(Items(PhantomData))
    }
}

impl<T, const CAP: usize> Capped<T, CAP> {
    fn all(self, field: &'static str) -> Result<Vec<T>, ManifestError> {
        if self.count > CAP {
            return Err(ManifestError::TooMany { field, count: self.count, cap: CAP });
        }
        Ok(self.kept)
    }
}

/// Every form at once.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Capped<Descriptor, MAX_LAYERS>>,
    manifests: Option<Capped<Descriptor, MAX_CHILDREN>>,
    subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "annotations")]
    annotations: BTreeMap<String, String>,
    fs_layers: Option<IgnoredAny>,
    history: Option<IgnoredAny>,
}

/// What a Content-Type says: nothing, or a media type.
fn stated(content_type: Option<&str>) -> Option<&str> {
    let bare = content_type?.split(';').next().unwrap_or_default().trim();
    let silent = ["", "application/json", "application/octet-stream", "text/plain"];
    if silent.iter().any(|s| bare.eq_ignore_ascii_case(s)) { None } else { Some(bare) }
}

const MANIFEST: &str = "an image manifest";
const INDEX: &str = "an index";

impl Document {
    /// Parses `bytes`, which the server called `content_type`.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_BYTES {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        let header = stated(content_type);
        let first = bytes.iter().find(|b| !b.is_ascii_whitespace());
        if first == Some(&b'<')
            || header
                .is_some_and(|h| h.eq_ignore_ascii_case("text/html") || h.eq_ignore_ascii_case("application/xhtml+xml"))
        {
            return Err(ManifestError::Html);
        }
        let schema1 = |t: &str| matches!(t, media_type::DOCKER_SCHEMA1 | media_type::DOCKER_SCHEMA1_SIGNED);
        if header.is_some_and(schema1) {
            return Err(ManifestError::Schema1);
        }
        // A list would be read as the fields in their order; JSON's own source is not kept since it may repeat megabytes.
        if first != Some(&b'{') {
            return Err(ManifestError::Json("it is not a JSON object".to_string()));
        }
        let wire: Wire = serde_json::from_slice(bytes).map_err(|e| ManifestError::Json(printable(&e.to_string())))?;
        let body = wire.media_type.as_deref().filter(|t| !t.is_empty());
        if wire.schema_version == Some(1) || body.is_some_and(schema1) {
            return Err(ManifestError::Schema1);
        }
        if wire.schema_version != Some(2) {
            return Err(ManifestError::SchemaVersion(wire.schema_version));
        }
        let media_type = match (body, header) {
            (Some(body), Some(header)) if body != header => {
                return Err(ManifestError::Disagree { body: printable(body), header: printable(header) });
            }
            (Some(stated), _) | (None, Some(stated)) => stated.to_string(),
            (None, None) if wire.manifests.is_some() => media_type::OCI_INDEX.to_string(),
            (None, None) => media_type::OCI_MANIFEST.to_string(),
        };
        if is_index(&media_type) {
            wire.index(media_type).map(Self::Index)
        } else if is_manifest(&media_type) {
            wire.image(media_type).map(Self::Image)
        } else {
            Err(ManifestError::MediaType(printable(&media_type)))
        }
    }

    /// The media type: stated in the body, else by Content-Type.
    pub fn media_type(&self) -> &str {
        match self {
            Self::Image(image) => &image.media_type,
            Self::Index(index) => &index.media_type,
        }
    }

    /// Annotations, verbatim.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Image(image) => &image.annotations,
            Self::Index(index) => &index.annotations,
        }
    }

    /// What this document refers to.
    pub fn subject(&self) -> Option<&Descriptor> {
        match self {
            Self::Image(image) => image.subject.as_ref(),
            Self::Index(index) => index.subject.as_ref(),
        }
    }
}

impl Wire {
    fn refuse(kind: &'static str, fields: &[(&'static str, bool)]) -> Result<(), ManifestError> {
        match fields.iter().find(|(_, present)| *present) {
            Some((field, _)) => Err(ManifestError::Ambiguous { kind, field }),
            None => Ok(()),
        }
    }

    fn index(self, media_type: String) -> Result<Index, ManifestError> {
        let foreign = [
            ("layers", self.layers.is_some()),
            ("config", self.config.is_some()),
            ("fsLayers", self.fs_layers.is_some()),
            ("history", self.history.is_some()),
        ];
        Self::refuse(INDEX, &foreign)?;
        let manifests = self.manifests.ok_or(ManifestError::Missing { kind: INDEX, field: "manifests" })?;
        Ok(Index {
            media_type,
            artifact_type: self.artifact_type.filter(|t| !t.is_empty()),
            manifests: manifests.all("manifests")?,
            subject: self.subject,
            annotations: self.annotations,
        })
    }

    fn image(self, media_type: String) -> Result<ImageManifest, ManifestError> {
        let foreign = [
            ("manifests", self.manifests.is_some()),
            ("fsLayers", self.fs_layers.is_some()),
            ("history", self.history.is_some()),
        ];
        Self::refuse(MANIFEST, &foreign)?;
        let missing = |field| ManifestError::Missing { kind: MANIFEST, field };
        Ok(ImageManifest {
            media_type,
            artifact_type: self.artifact_type.filter(|t| !t.is_empty()),
            config: self.config.ok_or_else(|| missing("config"))?,
            layers: self.layers.ok_or_else(|| missing("layers"))?.all("layers")?,
            subject: self.subject,
            annotations: self.annotations,
        })
    }
}

impl ImageManifest {
    /// Whether this is a container image: something whose layers make one root filesystem.
    pub fn is_container_image(&self) -> bool {
        is_container_image_config(&self.config.media_type)
    }

    /// Whether this is a Helm chart.
    pub fn is_helm_chart(&self) -> bool {
        is_helm_config(&self.config.media_type)
    }
}

impl Index {
    /// The child to use: linux/amd64, else as the contract says (section 6).
    ///
    /// Entries of platform unknown/unknown, those marked as attestations, and those that are neither manifests nor
    /// indexes do not count. Without linux/amd64 the candidate is the first linux entry, else the first that states no
    /// platform.
    pub fn resolve(&self) -> Result<Resolution<'_>, ManifestError> {
        let counting: Vec<&Descriptor> = self.counting().collect();
        let is = |child: &Descriptor, os: &str| child.platform.as_ref().is_some_and(|p| p.os == os);
        let amd64 = |child: &Descriptor| child.platform.as_ref().is_some_and(|p| p.architecture == "amd64");
        if let Some(child) = counting.iter().find(|c| is(c, "linux") && amd64(c)) {
            return Ok(Resolution::Exact(child));
        }
        let unstated = |child: &Descriptor| child.platform.as_ref().is_none_or(|p| p.os.is_empty());
        let candidate = counting.iter().find(|c| is(c, "linux")).or_else(|| counting.iter().find(|c| unstated(c)));
        let Some(child) = candidate else { return Err(self.no_platform()) };
        let taken = if unstated(child) { "one without a platform".to_string() } else { platform(child) };
        let warning = format!("the index has no manifest for linux/amd64; taken: {taken} ({})", child.digest);
        Ok(if counting.len() == 1 { Resolution::Only(child, warning) } else { Resolution::IfNotImage(child, warning) })
    }

    /// Whether `child`, fetched for `resolution`, may be used; if so, with which warning.
    pub fn settle(&self, resolution: Resolution<'_>, child: &ImageManifest) -> Result<Option<String>, ManifestError> {
        match resolution {
            Resolution::Exact(_) => Ok(None),
            Resolution::IfNotImage(..) if child.is_container_image() => Err(self.no_platform()),
            Resolution::Only(_, warning) | Resolution::IfNotImage(_, warning) => Ok(Some(warning)),
        }
    }

    fn counting(&self) -> impl Iterator<Item = &Descriptor> {
        self.manifests.iter().filter(|child| {
            let unknown = child.platform.as_ref().is_some_and(|p| p.os == "unknown" && p.architecture == "unknown");
            let attests =
                child.annotations.get("vnd.docker.reference.type").is_some_and(|t| t == "attestation-manifest");
            !unknown && !attests && (is_manifest(&child.media_type) || is_index(&child.media_type))
        })
    }

    /// The error that lists what there is, at most ten of it.
    fn no_platform(&self) -> ManifestError {
        let there: Vec<String> = self.counting().map(platform).collect();
        let mut list = there.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
        if there.len() > 10 {
            list.push_str(&format!(" and {} more", there.len() - 10));
        }
        ManifestError::NoPlatform(if list.is_empty() { "none at all".to_string() } else { list })
    }
}

fn platform(child: &Descriptor) -> String {
    child.platform.as_ref().map_or("no platform stated".to_string(), ToString::to_string)
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
