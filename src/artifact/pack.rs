//! Packing a directory, file or standard input for `larder push`.
//!
//! Promise: equal content gives equal bytes, whatever the machine, umask, time zone, owner, times or walk order: the
//! layer, the config and the manifest depend only on names, contents, the executable bit, and the options. The layer
//! satisfies the pass-through rule, so that it is its own artifact wherever it is pulled.
//!
//! Format: a tar by [`crate::unpack::tar_writer`] (root `.` first, names in byte order, files 0644 or 0755, directories
//! 0755), gzip by [`super::gzip`] or one zstd frame; an image config with `rootfs.diff_ids`; an OCI image manifest.
//! Left out: version control files, images and archives (as `flux push` does), what `.sourceignore` files say, symlinks
//! and special files (counted). Nothing is written anywhere.

mod content;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use self::content::Content;
pub use self::content::STDIN_NAME;
use super::{build::Caps, gzip::GzipWriter};
use crate::{
    class::Class,
    digest::{Algorithm, Digest, Hasher},
    oci::{Descriptor, media_type},
    unpack::source_ignore::IgnoreError,
};

/// The time that configs and manifests state unless an annotation says otherwise.
pub const CREATED: &str = "1970-01-01T00:00:00Z";

const ANNOTATION_CREATED: &str = "org.opencontainers.image.created";
const ANNOTATION_SOURCE: &str = "org.opencontainers.image.source";
const ANNOTATION_REVISION: &str = "org.opencontainers.image.revision";

const FLUX_LAYER_ZSTD: &str = "application/vnd.cncf.flux.content.v1.tar+zstd";

/// Part of the product's promise of equal digests within a major version, with the version of zstd in the lock file.
const ZSTD_LEVEL: i32 = 9;

/// What is packed.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A directory or a file.
    Path(&'a Path),
    /// What came by standard input: one YAML file.
    Stdin(&'a [u8]),
}

/// What it is packed as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ArtifactKind {
    /// Flux's artifact.
    #[default]
    Flux,
    /// A plain OCI image, which Argo CD and image volumes take.
    Image,
}

/// How the layer is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    /// gzip, by the pinned encoder.
    #[default]
    Gzip,
    /// zstd.
    Zstd,
}

/// How to pack.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What as.
    pub kind: ArtifactKind,
    /// How compressed.
    pub compression: Compression,
    /// `--source`.
    pub source: Option<String>,
    /// `--revision`.
    pub revision: Option<String>,
    /// `-a k=v`; these count over the ones that are set here.
    pub annotations: BTreeMap<String, String>,
    /// What may be packed; the same as what may be unpacked.
    pub caps: Caps,
}

/// What is to be pushed.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The layer's bytes.
    pub layer: Vec<u8>,
    /// The layer as the manifest describes it.
    pub layer_descriptor: Descriptor,
    /// The sha256 of the tar in it.
    pub diff_id: Digest,
    /// The config's bytes (JSON).
    pub config: Vec<u8>,
    /// The config as the manifest describes it.
    pub config_descriptor: Descriptor,
    /// The manifest's bytes (JSON).
    pub manifest: Vec<u8>,
    /// The manifest's digest.
    pub manifest_digest: Digest,
    /// How many files the layer has.
    pub files: u64,
    /// Symlinks and special files left out.
    pub left_out: u64,
}

/// Why it could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file or directory could not be read.
    #[error("cannot read {}: check that it exists and may be read", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Neither a directory nor a file.
    #[error("{} is neither a directory nor a file", .0.display())]
    NotAFile(PathBuf),
    /// A name that readers would refuse or understand differently.
    #[error("{path:?} cannot be packed: {why}; rename it or list it in .sourceignore")]
    Name {
        /// The name.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More than may be unpacked.
    #[error("there is too much to pack: {0}")]
    TooMuch(String),
    /// Its ignore files cannot be used.
    #[error(transparent)]
    Ignore(#[from] IgnoreError),
    /// The layer could not be compressed.
    #[error("cannot compress the layer")]
    Compress(#[source] io::Error),
    /// The config or manifest could not be written as JSON.
    #[error("cannot write the manifest")]
    Json(#[source] serde_json::Error),
    /// The annotation is no time.
    #[error("annotation {ANNOTATION_CREATED}={0:?} is not an RFC 3339 time like {CREATED}")]
    Created(String),
}

impl PackError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Read { .. } | Self::Compress(_) => Class::Disk,
            Self::NotAFile(_) | Self::Created(_) | Self::Json(_) => Class::Client,
            Self::Name { .. } => Class::Tar,
            Self::TooMuch(_) => Class::Limit,
            Self::Ignore(error) => error.class(),
        }
    }
}

/// Packs `input`. Blocks on the disk and computes.
pub fn pack(input: Input<'_>, options: &Options) -> Result<Packed, PackError> {
    let mut annotations = BTreeMap::from([(ANNOTATION_CREATED.to_string(), CREATED.to_string())]);
    annotations.extend(options.source.iter().map(|s| (ANNOTATION_SOURCE.to_string(), s.clone())));
    annotations.extend(options.revision.iter().map(|r| (ANNOTATION_REVISION.to_string(), r.clone())));
    annotations.extend(options.annotations.clone());
    let created = annotations.get(ANNOTATION_CREATED).cloned().unwrap_or_default();
    if created.parse::<jiff::Timestamp>().is_err() {
        return Err(PackError::Created(created));
    }

    let content = Content::collect(input, options.caps)?;
    let (layer, diff_id) = compress(&content, options)?;
    let (config_type, layer_type) = match (options.kind, options.compression) {
        (ArtifactKind::Flux, Compression::Gzip) => (media_type::FLUX_CONFIG, media_type::FLUX_LAYER),
        (ArtifactKind::Flux, Compression::Zstd) => (media_type::FLUX_CONFIG, FLUX_LAYER_ZSTD),
        (ArtifactKind::Image, Compression::Gzip) => (media_type::OCI_CONFIG, media_type::OCI_LAYER_GZIP),
        (ArtifactKind::Image, Compression::Zstd) => (media_type::OCI_CONFIG, media_type::OCI_LAYER_ZSTD),
    };
    let (architecture, os) = match options.kind {
        // As go-containerregistry writes the config of an empty image, which Flux starts from.
        ArtifactKind::Flux => ("", ""),
        ArtifactKind::Image => ("amd64", "linux"),
    };
    let config = json(&Config {
        architecture,
        config: Empty {},
        created: &created,
        os,
        rootfs: RootFs { diff_ids: [diff_id], kind: "layers" },
    })?;
    let config_descriptor = describe(config_type, &config);
    let layer_descriptor = describe(layer_type, &layer);
    let manifest = json(&Manifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST,
        config: (&config_descriptor).into(),
        layers: [(&layer_descriptor).into()],
        annotations: &annotations,
    })?;
    Ok(Packed {
        manifest_digest: Digest::sha256(&manifest),
        manifest,
        config,
        config_descriptor,
        layer,
        layer_descriptor,
        diff_id,
        files: content.files(),
        left_out: content.left_out(),
    })
}

fn compress(content: &Content<'_>, options: &Options) -> Result<(Vec<u8>, Digest), PackError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let layer = match options.compression {
        Compression::Gzip => {
            let mut layer = Vec::new();
            let mut gzip = GzipWriter::new(|bytes: &[u8]| {
                layer.extend_from_slice(bytes);
                Ok::<(), Infallible>(())
            });
            content.write_tar(|bytes| {
                hasher.update(bytes);
                let Ok(()) = gzip.write(bytes);
            })?;
            let Ok(()) = gzip.finish();
            layer
        }
        Compression::Zstd => {
            let mut tar = Vec::new();
            content.write_tar(|bytes| tar.extend_from_slice(bytes))?;
            hasher.update(&tar);
            // One thread, no checksum, the content's size in the frame: the same bytes everywhere.
            zstd::bulk::compress(&tar, ZSTD_LEVEL).map_err(PackError::Compress)?
        }
    };
    Ok((layer, hasher.finish()))
}

fn describe(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_string(),
        digest: Digest::sha256(bytes),
        size: bytes.len() as u64,
        platform: None,
        artifact_type: None,
        annotations: BTreeMap::new(),
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, PackError> {
    serde_json::to_vec(value).map_err(PackError::Json)
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
struct Config<'a> {
    architecture: &'a str,
    config: Empty,
    created: &'a str,
    os: &'a str,
    rootfs: RootFs<'a>,
}

#[derive(Serialize)]
struct RootFs<'a> {
    diff_ids: [Digest; 1],
    #[serde(rename = "type")]
    kind: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u8,
    media_type: &'a str,
    config: Described<'a>,
    layers: [Described<'a>; 1],
    annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Described<'a> {
    media_type: &'a str,
    digest: Digest,
    size: u64,
}

impl<'a> From<&'a Descriptor> for Described<'a> {
    fn from(descriptor: &'a Descriptor) -> Self {
        Self { media_type: &descriptor.media_type, digest: descriptor.digest, size: descriptor.size }
    }
}

#[cfg(test)]
mod tests;
