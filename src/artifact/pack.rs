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

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs, io,
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{build::Caps, gzip::GzipWriter};
use crate::{
    class::Class,
    digest::{Algorithm, Digest, Hasher},
    oci::{Descriptor, media_type},
    unpack::{
        entries::{BLOCK, MAX_DEPTH, MAX_NAME},
        source_ignore::{self, IgnoreError, IgnoreRules},
        tar_writer::{self, Modes, What},
    },
};

/// The name that standard input gets.
pub const STDIN_NAME: &str = "manifests.yaml";

/// The time that configs and manifests state unless an annotation says otherwise.
pub const CREATED: &str = "1970-01-01T00:00:00Z";

const ANNOTATION_CREATED: &str = "org.opencontainers.image.created";
const ANNOTATION_SOURCE: &str = "org.opencontainers.image.source";
const ANNOTATION_REVISION: &str = "org.opencontainers.image.revision";

const FLUX_LAYER_ZSTD: &str = "application/vnd.cncf.flux.content.v1.tar+zstd";

/// What `flux push` ignores besides version control files (flux.md section 2, step 11); a `.sourceignore` may take it
/// back.
const EXTENSIONS: &str = "*.jpg\n*.jpeg\n*.gif\n*.png\n*.wmv\n*.flv\n*.tar.gz\n*.zip\n";

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

    let content = collect(input, options.caps)?;
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
        files: content.entries.iter().filter(|entry| !entry.is_dir).count() as u64,
        left_out: content.left_out,
    })
}

/// What goes into the layer: names in byte order.
struct Content<'a> {
    /// Whether there is an entry for the root.
    root: bool,
    entries: Vec<Entry<'a>>,
    left_out: u64,
    caps: Caps,
}

struct Entry<'a> {
    path: String,
    is_dir: bool,
    executable: bool,
    from: Bytes<'a>,
}

/// Where a file's bytes come from.
enum Bytes<'a> {
    Disk(PathBuf),
    Memory(&'a [u8]),
}

fn collect(input: Input<'_>, caps: Caps) -> Result<Content<'_>, PackError> {
    let file = |path: String, executable, from| Content {
        root: false,
        entries: vec![Entry { path, is_dir: false, executable, from }],
        left_out: 0,
        caps,
    };
    let path = match input {
        Input::Stdin(bytes) => return Ok(file(STDIN_NAME.to_string(), false, Bytes::Memory(bytes))),
        Input::Path(path) => path,
    };
    // What the user names is followed, what lies beneath is not.
    let metadata = fs::metadata(path).map_err(|source| PackError::Read { path: path.into(), source })?;
    if metadata.is_file() {
        // `.` and `..` at the end of a path have no name, but are no files either.
        let name = path.file_name().ok_or_else(|| PackError::NotAFile(path.into()))?;
        let name = checked_name("", name, path)?;
        return Ok(file(name, metadata.mode() & 0o111 != 0, Bytes::Disk(path.into())));
    }
    if !metadata.is_dir() {
        return Err(PackError::NotAFile(path.into()));
    }
    let mut content = Content { root: true, entries: Vec::new(), left_out: 0, caps };
    walk(path, &mut content)?;
    content.entries.sort_by(|a, b| a.path.cmp(&b.path));
    let rules = ignore_rules(&content)?;
    let mut keep = Vec::with_capacity(content.entries.len());
    for entry in content.entries {
        if !rules.excludes(&entry.path, entry.is_dir)? {
            keep.push(entry);
        }
    }
    content.entries = keep;
    with_parents(&mut content.entries);
    if let Some(entry) = content.entries.iter().find(|e| bad_name(&e.path).is_some()) {
        let why = bad_name(&entry.path).unwrap_or_default();
        return Err(PackError::Name { path: entry.path.clone().into(), why });
    }
    if content.entries.len() as u64 >= caps.entries {
        return Err(PackError::TooMuch(format!("more than {} files and directories", caps.entries)));
    }
    Ok(content)
}

/// Everything beneath `root`. A `.git` directory is never looked into: version control files are always left out, and
/// it may hold more files than all the rest.
fn walk(root: &Path, content: &mut Content<'_>) -> Result<(), PackError> {
    // Ignored files count towards this bound too; it only keeps a mistaken `--path /` from running for hours.
    let most = content.caps.entries.saturating_mul(10);
    let mut directories = vec![(root.to_path_buf(), String::new())];
    while let Some((directory, prefix)) = directories.pop() {
        let failed = |source| PackError::Read { path: directory.clone(), source };
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let from = entry.path();
            let metadata = entry.metadata().map_err(|source| PackError::Read { path: from.clone(), source })?;
            if !metadata.is_dir() && !metadata.is_file() {
                content.left_out += 1;
                continue;
            }
            if metadata.is_dir() && entry.file_name() == ".git" {
                continue;
            }
            let path = checked_name(&prefix, &entry.file_name(), &from)?;
            if metadata.is_dir() {
                directories.push((from.clone(), path.clone()));
            }
            content.entries.push(Entry {
                path,
                is_dir: metadata.is_dir(),
                executable: metadata.is_file() && metadata.mode() & 0o111 != 0,
                from: Bytes::Disk(from),
            });
            if content.entries.len() as u64 > most {
                return Err(PackError::TooMuch(format!("more than {most} files and directories to look at")));
            }
        }
    }
    Ok(())
}

fn checked_name(prefix: &str, name: &std::ffi::OsStr, from: &Path) -> Result<String, PackError> {
    let name = name.to_str().ok_or_else(|| PackError::Name { path: from.into(), why: "its name is not UTF-8" })?;
    Ok(if prefix.is_empty() { name.to_string() } else { format!("{prefix}/{name}") })
}

/// Why a name would be refused or rewritten where it is unpacked.
fn bad_name(path: &str) -> Option<&'static str> {
    if path.contains('\\') {
        Some("its name has a backslash")
    } else if path.chars().any(char::is_control) {
        Some("its name has control characters")
    } else if path.len() > MAX_NAME || path.split('/').count() > MAX_DEPTH {
        Some("its name is too long or too deep")
    } else {
        None
    }
}

/// Directories whose own entry was ignored, yet not all that lies in them, are needed all the same.
fn with_parents(entries: &mut Vec<Entry<'_>>) {
    let mut missing = std::collections::BTreeSet::new();
    for entry in entries.iter() {
        let mut path = entry.path.as_str();
        while let Some((parent, _)) = path.rsplit_once('/') {
            if entries.binary_search_by(|e| e.path.as_str().cmp(parent)).is_ok() || !missing.insert(parent.to_string())
            {
                break;
            }
            path = parent;
        }
    }
    if !missing.is_empty() {
        let made = missing.into_iter();
        let made = made.map(|path| Entry { path, is_dir: true, executable: false, from: Bytes::Memory(&[]) });
        entries.extend(made);
        entries.sort_by(|a, b| a.path.cmp(&b.path));
    }
}

fn ignore_rules(content: &Content<'_>) -> Result<IgnoreRules, PackError> {
    let mut files = vec![("", EXTENSIONS.as_bytes().to_vec())];
    for entry in content.entries.iter().filter(|entry| !entry.is_dir) {
        let (directory, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
        if name == source_ignore::FILE_NAME {
            files.push((directory, read(entry, source_ignore::MAX_TEXT_BYTES as u64)?));
        }
    }
    Ok(IgnoreRules::build(files.iter().map(|(directory, text)| (directory, text.as_slice())), None)?)
}

/// A file's bytes, at most `most`.
fn read(entry: &Entry<'_>, most: u64) -> Result<Vec<u8>, PackError> {
    let path = match &entry.from {
        Bytes::Memory(bytes) => return Ok(bytes.to_vec()),
        Bytes::Disk(path) => path,
    };
    let failed = |source| PackError::Read { path: path.clone(), source };
    let mut options = fs::OpenOptions::new();
    // A single file may be named through a link; what was found by the walk was none a moment ago. A fifo that takes
    // its place must not block.
    options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
    let file = options.open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(PackError::NotAFile(path.clone()));
    }
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(PackError::TooMuch(format!("with {} the layer has more than the cap in bytes", path.display())));
    }
    Ok(bytes)
}

/// Hands the tar to `write`, piece by piece.
fn write_tar(content: &Content<'_>, mut write: impl FnMut(&[u8])) -> Result<(), PackError> {
    let mut buffer = Vec::new();
    if content.root {
        tar_writer::header(&mut buffer, ".", What::Dir, Modes::PUSHED);
    }
    let mut left = content.caps.layer_bytes.saturating_sub(4 * BLOCK as u64);
    for entry in &content.entries {
        let bytes = if entry.is_dir { Vec::new() } else { read(entry, left)? };
        let len = bytes.len() as u64;
        let what = if entry.is_dir { What::Dir } else { What::File { executable: entry.executable, len } };
        let before = buffer.len();
        tar_writer::header(&mut buffer, &entry.path, what, Modes::PUSHED);
        let used = (buffer.len() - before) as u64 + len.next_multiple_of(BLOCK as u64);
        left = left.checked_sub(used).ok_or_else(|| {
            PackError::TooMuch(format!("the layer has more than the cap of {} bytes", content.caps.layer_bytes))
        })?;
        write(&buffer);
        buffer.clear();
        write(&bytes);
        tar_writer::pad(&mut buffer, len);
    }
    buffer.extend_from_slice(&tar_writer::END);
    write(&buffer);
    Ok(())
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
            write_tar(content, |bytes| {
                hasher.update(bytes);
                let Ok(()) = gzip.write(bytes);
            })?;
            let Ok(()) = gzip.finish();
            layer
        }
        Compression::Zstd => {
            let mut tar = Vec::new();
            write_tar(content, |bytes| tar.extend_from_slice(bytes))?;
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
