//! Manifests and indexes (image-spec 1.1; docker image manifest 2, schema 2).

use std::collections::BTreeMap;

use super::descriptor::Descriptor;
use crate::class::Class;

/// The largest manifest taken, in bytes: 4 MiB, as distribution-spec 1.1 advises registries to allow at least.
pub const MAX_BYTES: usize = 4 << 20;

/// A parsed manifest or index.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// Why a manifest cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("todo")]
pub struct ManifestError;

impl ManifestError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        Class::Manifest
    }
}

impl Document {
    /// Parses `bytes`, which the server called `content_type`.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let _ = (bytes, content_type);
        todo!()
    }
}

impl Index {
    /// The child to use: linux/amd64, else as the contract says (section 6). The second value is a warning for the
    /// object's owner when another platform was taken.
    pub fn resolve(&self) -> Result<(&Descriptor, Option<String>), ManifestError> {
        todo!()
    }
}
