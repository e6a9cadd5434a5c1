//! Building the artifact.

use super::choose::Chosen;
use crate::{
    class::Class,
    digest::Digest,
    store::{Blob, Store},
};

/// Caps on what a layer may expand to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Decompressed bytes of one layer.
    pub layer_bytes: u64,
    /// Decompressed bytes of all layers of an image.
    pub total_bytes: u64,
    /// Entries of all layers.
    pub entries: u64,
}

/// Why no artifact could be built.
#[derive(Debug, thiserror::Error)]
#[error("todo")]
pub struct ArtifactError;

impl ArtifactError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        Class::Layer
    }
}

/// An artifact, held by the store.
pub struct Built {
    /// The blob that is served.
    pub blob: Blob,
    /// Whether it is the layer itself.
    pub passed_through: bool,
    /// Its contents, for the published tree and the renderer; `None` for `copy`.
    pub tree: Option<Tree>,
    /// Entries of an image left out: devices, fifos, sockets, symlinks.
    pub dropped: u64,
}

/// The artifact's contents in memory or in a spool: paths, modes, bytes.
pub struct Tree {}

impl Built {
    /// The artifact's digest.
    pub fn digest(&self) -> Digest {
        self.blob.digest()
    }
}

/// Builds the artifact from layers that the store holds; `ignore` is `spec.ignore`. Synchronous and parallel: run it
/// behind `blocking::cpu`.
pub fn build(
    store: &Store,
    chosen: &Chosen,
    layers: &[Blob],
    ignore: Option<&str>,
    caps: Caps,
) -> Result<Built, ArtifactError> {
    let _ = (store, chosen, layers, ignore, caps);
    todo!()
}
