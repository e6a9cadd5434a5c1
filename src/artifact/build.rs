//! Building the artifact.
//!
//! Promise: what is served has one reading. Either it is the layer itself, judged entry by entry to be read the same by
//! every consumer ([`crate::unpack::entries`]), or it is a rewrite that depends on nothing but the tree: entries in
//! byte order with the root (`.`) first and every directory, Flux's modes, no owner, no time, the pinned encoder of
//! [`super::gzip`]. A layer passes through iff it is the only one, gzip, judged so, and no ignore rule matches.
//!
//! Any number of builds may run at once; each spools output over 16 MiB to an unnamed file and keeps the rest in
//! memory. A crash leaves nothing: the rewritten blob appears only when it is complete and on the disk.

use std::{borrow::Cow, collections::BTreeMap};

use super::{choose::Chosen, gzip::GzipWriter};
pub use crate::unpack::tree::{Node, NodeKind, Tree, TreeError};
use crate::{
    class::Class,
    digest::Digest,
    store::{Blob, Durability, Store, StoreError},
    unpack::{
        decompress::{Budget, Format, Limits},
        entries::{EntriesError, MAX_ENTRIES, Rewrite, Rules},
        overlay::{self, LayerError, Source},
        source_ignore::{self, IgnoreError, IgnoreRules},
        tar_writer::{self, Modes, What},
        tree,
    },
};

/// Caps on what a layer may expand to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Decompressed bytes of one layer.
    pub layer_bytes: u64,
    /// Decompressed bytes of all layers of an image, copies of hard-linked files included.
    pub total_bytes: u64,
    /// Entries of one layer, and of the tree that all make.
    pub entries: u64,
}

impl Default for Caps {
    /// 256 MiB a layer (hardening.md, L1), 1 GiB an image, 100,000 entries.
    fn default() -> Self {
        Self { layer_bytes: 256 << 20, total_bytes: 1 << 30, entries: MAX_ENTRIES }
    }
}

/// Why no artifact could be built.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The manifest has no layer of the media type that was asked for.
    #[error("failed to find layer with media type '{media_type}' in artifact")]
    NoSuchLayer {
        /// What was asked for.
        media_type: String,
    },
    /// The manifest has no layers at all.
    #[error("the manifest has no layers, so there is nothing to make an artifact of")]
    NoLayers,
    /// The caller gave another number of blobs than layers were chosen.
    #[error("{held} of the {chosen} layers of the artifact are held")]
    Incomplete {
        /// How many blobs there are.
        held: usize,
        /// How many there should be.
        chosen: usize,
    },
    /// `layerSelector.operation` is neither `extract` nor `copy`.
    #[error("layer operation {0:?} is not supported: use extract or copy")]
    Operation(String),
    /// A layer cannot be used.
    #[error("layer {digest}: {source}")]
    Layer {
        /// Which one.
        digest: Digest,
        /// Why.
        source: Box<LayerError>,
    },
    /// The layers cannot be laid over each other.
    #[error("the image's layers do not make a tree: {0}")]
    Merge(#[source] Box<LayerError>),
    /// The artifact's ignore files or `spec.ignore` cannot be used.
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
    /// The tree cannot be read back.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The rewritten artifact cannot be kept.
    #[error("cannot keep the rewritten artifact: {0}")]
    Store(#[source] Box<StoreError>),
}

impl ArtifactError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::NoSuchLayer { .. } | Self::NoLayers | Self::Incomplete { .. } => Class::Layer,
            Self::Operation(_) => Class::Spec,
            Self::Layer { source, .. } | Self::Merge(source) => source.class(),
            Self::Ignore(error) => error.class(),
            Self::Tree(error) => error.class(),
            Self::Store(error) => error.class(),
        }
    }
}

impl From<StoreError> for ArtifactError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
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
    /// Entries left out: symlinks; of an image also devices, fifos, sockets.
    pub dropped: u64,
}

impl Built {
    /// The artifact's digest.
    pub fn digest(&self) -> Digest {
        self.blob.digest()
    }
}

/// Whether files are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignoring<'a> {
    /// Everything counts: what `larder pull` and charts want.
    Nothing,
    /// As Flux ignores: `.sourceignore` files and this `spec.ignore`, else the defaults.
    AsFlux(Option<&'a str>),
}

/// Builds the artifact from layers that the store holds. Synchronous and parallel: run it behind `blocking::cpu`.
pub fn build(
    store: &Store,
    chosen: &Chosen,
    layers: &[Blob],
    ignoring: Ignoring<'_>,
    caps: Caps,
) -> Result<Built, ArtifactError> {
    if layers.len() != chosen.layers.len() {
        return Err(ArtifactError::Incomplete { held: layers.len(), chosen: chosen.layers.len() });
    }
    let Some(first) = layers.first() else { return Err(ArtifactError::NoLayers) };
    if chosen.copy {
        return Ok(Built { blob: first.clone(), passed_through: true, tree: None, dropped: 0 });
    }
    let digests: Vec<Digest> = layers.iter().map(Blob::digest).collect();
    let unpacked = unpack(layers, chosen.image, ignoring, caps, Some(store)).map_err(|error| error.of(&digests))?;
    let blob = match &unpacked.pass_through {
        Ok(()) => first.clone(),
        Err(why) => {
            tracing::debug!(layer = %first.digest(), %why, "the artifact is rewritten");
            let mut scratch = store.scratch()?;
            rewrite(&unpacked.tree, |bytes| scratch.write(bytes).map_err(ArtifactError::from))?;
            scratch.commit(Durability::Now)?
        }
    };
    let passed_through = unpacked.pass_through.is_ok();
    Ok(Built { blob, passed_through, tree: Some(unpacked.tree), dropped: unpacked.dropped })
}

/// Layers, unpacked: what [`build`] makes of them before it writes anything.
#[derive(Debug)]
pub struct Unpacked {
    /// The artifact's contents, ignored ones taken out.
    pub tree: Tree,
    /// Whether the layer may be the artifact.
    pub pass_through: Result<(), Rewrite>,
    /// Entries left out.
    pub dropped: u64,
}

/// Why layers could not be unpacked, and which one it was.
#[derive(Debug)]
pub enum UnpackError {
    /// The layer at this place.
    Layer(usize, LayerError),
    /// All of them together.
    Other(ArtifactError),
}

impl UnpackError {
    /// The error, with the digest of the layer it is about out of `layers`.
    pub fn of(self, layers: &[Digest]) -> ArtifactError {
        match self {
            Self::Layer(place, source) => match layers.get(place) {
                Some(digest) => ArtifactError::Layer { digest: *digest, source: Box::new(source) },
                None => ArtifactError::Merge(Box::new(source)),
            },
            Self::Other(error) => error,
        }
    }
}

impl From<ArtifactError> for UnpackError {
    fn from(error: ArtifactError) -> Self {
        Self::Other(error)
    }
}

/// Unpacks layers, base first, into a tree, and says whether the layer may pass through. `image`: the rules for
/// container images. Output over 16 MiB a layer goes into `spool`, or stays in memory where there is none.
pub fn unpack<S: Source>(
    layers: &[S],
    image: bool,
    ignoring: Ignoring<'_>,
    caps: Caps,
    spool: Option<&Store>,
) -> Result<Unpacked, UnpackError> {
    let budget = Budget::new(caps.total_bytes);
    let limits = Limits { bytes: caps.layer_bytes, shared: Some(&budget), spool, diff_id: false };
    let rules = Rules { image, entries: caps.entries };
    let opened = overlay::open_all(layers, &[], limits, rules).map_err(|(n, error)| UnpackError::Layer(n, error))?;
    let merge_failed = |error| UnpackError::Other(ArtifactError::Merge(Box::new(error)));
    let too_many = |error: EntriesError| UnpackError::Layer(0, error.into());
    let no = |why| Err(Rewrite { entry: String::new(), why });

    let mut pass_through = match &opened[..] {
        [one] if one.unpacked.format != Format::Gzip => no("the layer is not gzip"),
        [one] if !one.unpacked.common_gzip => no("the layer's gzip header is one that not every reader takes"),
        [one] if image && overlay::has_whiteouts(&one.index) => no("the layer has whiteouts"),
        [one] => one.index.pass_through.clone(),
        _ => no("there is more than one layer"),
    };
    let (nodes, dropped, data) = if image && pass_through.is_err() {
        let merged = overlay::merge(opened.iter().map(|l| &l.index), &budget, caps.entries).map_err(merge_failed)?;
        (merged.nodes, merged.dropped, overlay::into_data(opened))
    } else {
        let mut data = Vec::new();
        let mut nodes = Vec::new();
        let mut dropped = 0;
        for layer in opened {
            dropped += layer.index.dropped;
            nodes = tree::nodes_of(layer.index.entries, data.len() as u32, caps.entries).map_err(too_many)?;
            data.push(layer.unpacked.data);
        }
        (nodes, dropped, data)
    };
    let mut tree = Tree::new(data, nodes);
    if let Ignoring::AsFlux(spec) = ignoring {
        let ignored = ignored(&tree, spec)?;
        if let Some(first) = ignored.first().and_then(|place| tree.nodes().get(*place)) {
            if pass_through.is_ok() {
                pass_through = Err(Rewrite { entry: first.path.to_string(), why: "is ignored" });
            }
            tree.remove(&ignored);
        }
    }
    Ok(Unpacked { tree, pass_through, dropped })
}

/// The places of the nodes that are ignored.
fn ignored(tree: &Tree, spec: Option<&str>) -> Result<Vec<usize>, ArtifactError> {
    let rules = ignore_rules(tree, spec)?;
    let mut ignored = Vec::new();
    for (place, node) in tree.nodes().iter().enumerate() {
        if rules.excludes(&*node.path, node.is_dir())? {
            ignored.push(place);
        }
    }
    Ok(ignored)
}

/// All `.sourceignore` files of the tree, then `spec.ignore` (flux.md section 2, step 11).
fn ignore_rules(tree: &Tree, spec: Option<&str>) -> Result<IgnoreRules, ArtifactError> {
    let mut files = Vec::new();
    for node in tree.nodes().iter().filter(|node| !node.is_dir()) {
        let (directory, name) = node.path.rsplit_once('/').unwrap_or(("", &node.path));
        if name == source_ignore::FILE_NAME {
            if node.len() > source_ignore::MAX_TEXT_BYTES as u64 {
                return Err(IgnoreError::TooLong(usize::try_from(node.len()).unwrap_or(usize::MAX)).into());
            }
            files.push((directory, tree.content(node)?));
        }
    }
    Ok(IgnoreRules::build(files.iter().map(|(directory, text)| (directory, &**text)), spec)?)
}

/// Writes a tree as the artifact that every consumer reads the same way: a gzip tar by the module's rules.
pub fn rewrite(tree: &Tree, write: impl FnMut(&[u8]) -> Result<(), ArtifactError>) -> Result<(), ArtifactError> {
    rewrite_with(tree, &BTreeMap::new(), write)
}

/// As [`rewrite`], with other contents for some files; those that the tree has not are left out.
pub fn rewrite_with(
    tree: &Tree,
    replaced: &BTreeMap<String, Vec<u8>>,
    write: impl FnMut(&[u8]) -> Result<(), ArtifactError>,
) -> Result<(), ArtifactError> {
    let mut gzip = GzipWriter::new(write);
    let mut buffer = Vec::with_capacity(4 << 10);
    tar_writer::header(&mut buffer, ".", What::Dir, Modes::ARTIFACT);
    for node in tree.nodes() {
        let content = match replaced.get(&*node.path) {
            Some(content) => Cow::Borrowed(&content[..]),
            None => tree.content(node)?,
        };
        let len = content.len() as u64;
        let what = match node.kind {
            NodeKind::Dir => What::Dir,
            NodeKind::File { executable, .. } => What::File { executable, len },
        };
        tar_writer::header(&mut buffer, &node.path, what, Modes::ARTIFACT);
        gzip.write(&buffer)?;
        buffer.clear();
        gzip.write(&content)?;
        tar_writer::pad(&mut buffer, len);
    }
    buffer.extend_from_slice(&tar_writer::END);
    gzip.write(&buffer)?;
    gzip.finish()
}

#[cfg(test)]
mod tests;
