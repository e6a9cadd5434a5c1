//! Content descriptors (image-spec 1.1, "Content Descriptors").

use std::collections::BTreeMap;

use crate::digest::Digest;

/// What a manifest says of a blob: what it is, what it is called, how long it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type as written.
    pub media_type: String,
    /// The blob's name.
    pub digest: Digest,
    /// The blob's length in bytes.
    pub size: u64,
    /// For an index's entries: what it runs on.
    pub platform: Option<Platform>,
    /// The artifact's type, where stated.
    pub artifact_type: Option<String>,
    /// Annotations, verbatim.
    pub annotations: BTreeMap<String, String>,
}

/// What an image runs on (image-spec 1.1, "Image Index").
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Platform {
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`, `windows`, …
    pub os: String,
    /// `v7`, …
    pub variant: Option<String>,
}
