//! A container image's layers as one tree (image-spec 1.1, "Image Layer Filesystem Changeset").
//!
//! Layers are decompressed, hashed and indexed in parallel, each on its own; then their entries are laid over each
//! other in order. A whiteout (`.wh.<name>`) takes a name of lower layers away, an opaque whiteout (`.wh..wh..opq`)
//! all that a directory had there; both concern lower layers only, wherever in their layer they stand. A file replaces
//! a directory and what was in it, and the other way round. A hard link to a file that is there becomes a copy of it,
//! which counts against the caps. Symlinks, devices, fifos and sockets are left out, yet hide what was under their name.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    io::Read,
    sync::OnceLock,
};

use super::{
    data::{Budget, Data, Limits, MEMORY_BYTES, take_buffer},
    decompress::{DecompressError, Decompressed, decompress, decompress_reader},
    entries::{Allowance, EntriesError, Index, Kind, MAX_NAMES, index_within},
    tree::{Node, NodeKind},
};
use crate::{class::Class, digest::Digest, store::Blob};

const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";
/// What aufs kept for itself; never part of a tree.
const AUFS: &str = ".wh..wh.";

/// Where a layer's bytes come from.
pub trait Source: Sync {
    /// How many there are.
    fn size(&self) -> u64;
    /// All of them, in memory; asked only where they are few.
    fn whole(&self) -> io::Result<Data>;
    /// A reader from the start.
    fn reader(&self) -> impl Read + '_;
}

impl Source for Blob {
    fn size(&self) -> u64 {
        self.len()
    }

    fn whole(&self) -> io::Result<Data> {
        let len = usize::try_from(self.len()).map_err(io::Error::other)?;
        let mut buffer = take_buffer(len);
        self.read(0, &mut buffer[..len])?;
        Ok(Data::memory(buffer, 0, len))
    }

    fn reader(&self) -> impl Read + '_ {
        Blob::reader(self)
    }
}

impl Source for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn whole(&self) -> io::Result<Data> {
        let mut buffer = take_buffer(self.len());
        buffer[..self.len()].copy_from_slice(self);
        Ok(Data::memory(buffer, 0, self.len()))
    }

    fn reader(&self) -> impl Read + '_ {
        self
    }
}

impl Source for Vec<u8> {
    fn size(&self) -> u64 {
        self.as_slice().size()
    }

    fn whole(&self) -> io::Result<Data> {
        self.as_slice().whole()
    }

    fn reader(&self) -> impl Read + '_ {
        self.as_slice()
    }
}

/// Why a layer, or the layers together, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It could not be decompressed.
    #[error(transparent)]
    Decompress(#[from] DecompressError),
    /// What came out could not be indexed.
    #[error(transparent)]
    Entries(#[from] EntriesError),
    /// The image's config promises another content.
    #[error("the layer's content has digest {}, the image's config says {}", .0.actual, .0.expected)]
    DiffId(Box<WrongDiffId>),
}

/// A layer's content and what the image's config says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongDiffId {
    /// From `rootfs.diff_ids`.
    pub expected: Digest,
    /// Of the decompressed bytes.
    pub actual: Digest,
}

impl LayerError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Decompress(error) => error.class(),
            Self::Entries(error) => error.class(),
            Self::DiffId(_) => Class::Digest,
        }
    }
}

/// A layer, decompressed and indexed.
#[derive(Debug)]
pub struct Layer {
    /// The tar and how it was packed.
    pub unpacked: Decompressed,
    /// Its entries.
    pub index: Index,
}

/// Decompresses, hashes (where asked) and indexes one layer.
pub fn open<S: Source + ?Sized>(
    source: &S,
    limits: Limits<'_>,
    image: bool,
    allowance: &Allowance,
) -> Result<Layer, LayerError> {
    let unpacked = if source.size() <= MEMORY_BYTES {
        decompress(source.whole().map_err(DecompressError::Read)?.as_slice().unwrap_or_default(), limits)?
    } else {
        decompress_reader(source.reader(), limits)?
    };
    let index = index_within(&unpacked.data, image, allowance)?;
    Ok(Layer { unpacked, index })
}

/// [`open`] for all layers, in parallel. `diff_ids` are compared where there are any. A failure comes with the place
/// of the layer that failed.
pub fn open_all<S: Source>(
    sources: &[S],
    diff_ids: &[Digest],
    limits: Limits<'_>,
    image: bool,
    allowance: &Allowance,
) -> Result<Vec<Layer>, (usize, LayerError)> {
    let open = |(place, source): (usize, &S)| {
        let expected = diff_ids.get(place).copied();
        let limits = Limits { diff_id: limits.diff_id || expected.is_some(), ..limits };
        let layer = open(source, limits, image, allowance).map_err(|error| (place, error))?;
        match (expected, layer.unpacked.diff_id) {
            (Some(expected), Some(actual)) if expected != actual => {
                Err((place, LayerError::DiffId(Box::new(WrongDiffId { expected, actual }))))
            }
            _ => Ok(layer),
        }
    };
    match sources {
        // No reason to leave this thread.
        [one] => open((0, one)).map(|layer| vec![layer]),
        _ => {
            // The largest first and one at a time, so that none of them is left over for one thread at the end.
            let mut order: Vec<usize> = (0..sources.len()).collect();
            order.sort_by_key(|place| std::cmp::Reverse(sources.get(*place).map(Source::size)));
            let opened: Vec<OnceLock<_>> = sources.iter().map(|_| OnceLock::new()).collect();
            let open = &open;
            rayon::scope_fifo(|scope| {
                for place in order {
                    if let (Some(source), Some(slot)) = (sources.get(place), opened.get(place)) {
                        scope.spawn_fifo(move |_| drop(slot.set(open((place, source)))));
                    }
                }
            });
            opened.into_iter().filter_map(OnceLock::into_inner).collect()
        }
    }
}

/// The layers as one tree.
#[derive(Debug)]
pub struct Merged {
    /// In byte order of their names, with every parent.
    pub nodes: Vec<Node>,
    /// Entries left out.
    pub dropped: u64,
}

/// Whether an index has whiteouts, so that its layer is not a tree as it stands.
pub fn has_whiteouts(index: &Index) -> bool {
    index.entries.iter().any(|entry| split(&entry.path).1.starts_with(WHITEOUT))
}

/// Lays the layers over each other, base first. Copies of hard-linked files are taken from `budget`; the tree has at
/// most `most` nodes.
pub fn merge<'a>(
    indexes: impl IntoIterator<Item = &'a Index>,
    budget: &Budget,
    most: u64,
) -> Result<Merged, LayerError> {
    let mut tree = Overlay { nodes: BTreeMap::new(), most, names: 0 };
    let mut dropped = 0;
    let mut left_out = HashSet::<&str>::new();
    for (layer, index) in indexes.into_iter().enumerate() {
        dropped += index.dropped;
        for entry in &index.entries {
            let (directory, name) = split(&entry.path);
            if name == OPAQUE {
                tree.remove_beneath(directory);
            } else if let Some(hidden) = name.strip_prefix(WHITEOUT)
                && !name.starts_with(AUFS)
            {
                if matches!(hidden, "" | "." | "..") {
                    let why = "it is a whiteout of nothing";
                    return Err(EntriesError::refused(entry.path.as_bytes(), why).into());
                }
                let hidden = if directory.is_empty() { hidden.to_string() } else { format!("{directory}/{hidden}") };
                tree.remove(&hidden);
            }
        }
        for entry in &index.entries {
            // Also what lies beneath a directory with such a name.
            if entry.path.split('/').any(|component| component.starts_with(WHITEOUT)) {
                continue;
            }
            let kind = match &entry.kind {
                Kind::Dir => NodeKind::Dir,
                Kind::File { offset, len } => NodeKind::File {
                    executable: entry.mode & 0o111 != 0,
                    layer: layer as u32,
                    offset: *offset,
                    len: *len,
                },
                Kind::HardLink(target) => match tree.nodes.get(target) {
                    Some(file @ NodeKind::File { len, .. }) => {
                        budget.take(*len).map_err(LayerError::Decompress)?;
                        *file
                    }
                    // A link to a symlink or device that was left out is left out as well.
                    _ if left_out.contains(&**target) => {
                        left_out.insert(&entry.path);
                        dropped += 1;
                        tree.remove(&entry.path);
                        continue;
                    }
                    _ => {
                        let why = format!("it is a hard link to {target:?}, which is no earlier file");
                        return Err(EntriesError::refused(entry.path.as_bytes(), why).into());
                    }
                },
                Kind::Dropped => {
                    left_out.insert(&entry.path);
                    tree.remove(&entry.path);
                    continue;
                }
            };
            tree.put(&entry.path, kind)?;
        }
    }
    let nodes = tree.nodes.into_iter().map(|(path, kind)| Node { path, kind }).collect();
    Ok(Merged { nodes, dropped })
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Every node's parents are there, as directories.
struct Overlay {
    nodes: BTreeMap<Box<str>, NodeKind>,
    most: u64,
    /// Bytes of all names that were ever put in.
    names: u64,
}

impl Overlay {
    /// Takes away all that lies beneath a directory; `""` is the root.
    fn remove_beneath(&mut self, directory: &str) {
        if directory.is_empty() {
            self.nodes.clear();
            return;
        }
        let from: Box<str> = format!("{directory}/").into();
        // '0' is the byte after '/'.
        let to: Box<str> = format!("{directory}0").into();
        let beneath: Vec<Box<str>> = self.nodes.range(from..to).map(|(path, _)| path.clone()).collect();
        for path in beneath {
            self.nodes.remove(&path);
        }
    }

    /// Takes away a name and all that lies beneath it.
    fn remove(&mut self, path: &str) {
        if let Some(NodeKind::Dir) = self.nodes.remove(path) {
            self.remove_beneath(path);
        }
    }

    fn put(&mut self, path: &str, kind: NodeKind) -> Result<(), EntriesError> {
        let mut parent = split(path).0;
        let mut made = Vec::new();
        while !parent.is_empty() && self.nodes.get(parent) != Some(&NodeKind::Dir) {
            made.push(parent);
            parent = split(parent).0;
        }
        for directory in made {
            self.names += directory.len() as u64;
            self.nodes.insert(directory.into(), NodeKind::Dir);
        }
        if kind != NodeKind::Dir {
            self.remove(path);
        }
        self.names += path.len() as u64;
        self.nodes.insert(path.into(), kind);
        if self.names > 2 * MAX_NAMES {
            return Err(EntriesError::too_many_names());
        }
        if self.nodes.len() as u64 > self.most {
            return Err(EntriesError::Limit(format!("more than {} files and directories", self.most)));
        }
        Ok(())
    }
}

/// What the layers were decompressed to, in their order.
pub fn into_data(layers: Vec<Layer>) -> Vec<Data> {
    layers.into_iter().map(|layer| layer.unpacked.data).collect()
}

#[cfg(test)]
mod tests;
