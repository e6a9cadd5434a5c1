//! A checked tree of files and directories: its nodes in order, its bytes still where they were decompressed to.
//!
//! Promise: a tree is written beneath a directory handle and nowhere else. Its names were cleaned when they were
//! indexed (no `..`, nothing absolute), it holds no links of any kind, and a directory is made before what lies in it.
//! Files are made by the store out of its shared pool ([`Tree::write_published`]) or plainly ([`Tree::write_plain`]).
//!
//! A tree may be read and written by many threads. Writing is not atomic: the directory it is written to is the
//! caller's, who lets it appear when it is complete.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    convert::Infallible,
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use cap_std::fs::{Dir, DirBuilder, DirBuilderExt, OpenOptions, OpenOptionsExt};
use rayon::prelude::*;

use super::{
    data::{Data, ReadAt},
    entries::{EntriesError, Entry, Kind, MAX_NAMES},
};
use crate::{
    class::Class,
    store::{Store, StoreError},
};

/// So many files are written by one task, so that its directory is opened once for them.
const FILES_PER_TASK: usize = 64;

/// One file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The cleaned name, relative to the root, which has no node.
    pub path: Box<str>,
    /// What it is.
    pub kind: NodeKind,
}

/// What lies under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Dir,
    /// A file.
    File {
        /// Whether anybody may execute it.
        executable: bool,
        /// Which layer its bytes are in.
        layer: u32,
        /// Where they begin.
        offset: u64,
        /// How many there are.
        len: u64,
    },
}

impl Node {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == NodeKind::Dir
    }

    /// Whether it is a file that anybody may execute.
    pub fn executable(&self) -> bool {
        matches!(self.kind, NodeKind::File { executable: true, .. })
    }

    /// How many bytes it has; none for a directory.
    pub fn len(&self) -> u64 {
        match self.kind {
            NodeKind::Dir => 0,
            NodeKind::File { len, .. } => len,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a tree could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The bytes of a file could not be read back.
    #[error("cannot read {path:?} back from the decompressed layer")]
    Read {
        /// The file's name in the tree.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file or directory could not be made.
    #[error("cannot write {path:?} to the tree: check the disk's space and rights")]
    Write {
        /// Its name in the tree.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The store could not make a file.
    #[error("cannot write {path:?} to the tree")]
    Store {
        /// The file's name in the tree.
        path: String,
        /// What the store said.
        #[source]
        source: Box<StoreError>,
    },
}

impl TreeError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Read { .. } | Self::Write { .. } => Class::Disk,
            Self::Store { source, .. } => source.class(),
        }
    }
}

/// An artifact's contents.
#[derive(Debug)]
pub struct Tree {
    layers: Vec<Data>,
    nodes: Vec<Node>,
}

impl Tree {
    /// A tree of these nodes, in byte order of their names, with every parent; their bytes are in `layers`.
    pub(crate) fn new(layers: Vec<Data>, nodes: Vec<Node>) -> Self {
        debug_assert!(nodes.is_sorted_by(|a, b| a.path < b.path));
        Self { layers, nodes }
    }

    /// All files and directories in byte order of their names; a directory comes before what lies in it.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node under a cleaned name.
    pub fn find(&self, path: &str) -> Option<&Node> {
        self.nodes.binary_search_by(|node| (*node.path).cmp(path)).ok().and_then(|i| self.nodes.get(i))
    }

    /// A file's bytes; none for a directory. Borrowed where the layer is in memory.
    pub fn content(&self, node: &Node) -> Result<Cow<'_, [u8]>, TreeError> {
        let NodeKind::File { layer, offset, len, .. } = node.kind else { return Ok(Cow::Borrowed(&[])) };
        let data = self.layers.get(layer as usize).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
        data.and_then(|data| data.bytes_at(offset, len as usize))
            .map_err(|source| TreeError::Read { path: node.path.to_string(), source })
    }

    /// How many bytes all files have together.
    pub fn logical_bytes(&self) -> u64 {
        self.nodes.iter().map(Node::len).sum()
    }

    /// Takes away the nodes at these ascending places, but not the directories that what stays lies in.
    pub(crate) fn remove(&mut self, places: &[usize]) {
        let mut places = places.iter().copied().peekable();
        let mut place = 0;
        self.nodes.retain(|_| {
            place += 1;
            places.next_if_eq(&(place - 1)).is_none()
        });
        // All of them were there before, so there is no cap to ask about.
        let Ok(parents) = missing_parents(&self.nodes, |_, _| Ok::<(), Infallible>(()));
        add_directories(&mut self.nodes, parents);
    }

    /// Writes the tree into the empty directory `dir`: files out of the store's pool, directories 0750.
    pub fn write_published(&self, store: &Store, dir: &Dir) -> Result<(), TreeError> {
        self.write(dir, 0o750, |content, node, dir, name| {
            store
                .link_file(content, node.executable(), dir, name)
                .map_err(|error| TreeError::Store { path: node.path.to_string(), source: Box::new(error) })
        })
    }

    /// Writes the tree into the empty directory `dir`: files 0644 or 0755, directories 0755, whatever the umask.
    pub fn write_plain(&self, dir: &Dir) -> Result<(), TreeError> {
        self.write(dir, 0o755, |content, node, dir, name| {
            let mode = if node.executable() { 0o755 } else { 0o644 };
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(mode);
            dir.open_with(name, &options)
                .map(cap_std::fs::File::into_std)
                .and_then(|mut file| {
                    file.write_all(content)?;
                    file.set_permissions(fs::Permissions::from_mode(mode))
                })
                .map_err(|source| TreeError::Write { path: node.path.to_string(), source })
        })
    }

    fn write(
        &self,
        root: &Dir,
        dir_mode: u32,
        write: impl Fn(&[u8], &Node, &Dir, &Path) -> Result<(), TreeError> + Sync,
    ) -> Result<(), TreeError> {
        let failed = |path: &str| {
            let path = path.to_string();
            move |source| TreeError::Write { path, source }
        };
        let mut builder = DirBuilder::new();
        builder.mode(dir_mode);
        let mode = rustix::fs::Mode::from_raw_mode(dir_mode);
        for node in self.nodes.iter().filter(|node| node.is_dir()) {
            let (parent, name) = split(&node.path);
            let parent = open(root, parent).map_err(failed(&node.path))?;
            let parent = parent.as_ref().unwrap_or(root);
            parent
                .create_dir_with(name, &builder)
                .and_then(|()| open(parent, name))
                // The umask had its say above.
                .and_then(|dir| Ok(rustix::fs::fchmod(dir.as_ref().unwrap_or(parent), mode)?))
                .map_err(failed(&node.path))?;
        }
        let mut files: Vec<&Node> = self.nodes.iter().filter(|node| !node.is_dir()).collect();
        files.sort_by_key(|node| split(&node.path).0);
        let tasks: Vec<&[&Node]> = files
            .chunk_by(|a, b| split(&a.path).0 == split(&b.path).0)
            .flat_map(|same_directory| same_directory.chunks(FILES_PER_TASK))
            .collect();
        tasks.into_par_iter().try_for_each(|task| {
            let Some(first) = task.first() else { return Ok(()) };
            let dir = open(root, split(&first.path).0).map_err(failed(&first.path))?;
            let dir = dir.as_ref().unwrap_or(root);
            task.iter().try_for_each(|node| {
                let name = Path::new(split(&node.path).1);
                write(&self.content(node)?, node, dir, name)
            })
        })
    }
}

/// The directory below `root`; `None` is the root itself. No link is followed on the way.
fn open(root: &Dir, path: &str) -> io::Result<Option<Dir>> {
    use rustix::{
        fs::{Mode, OFlags, ResolveFlags, openat, openat2},
        io::Errno,
    };
    if path.is_empty() {
        return Ok(None);
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    match openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
        Ok(dir) => return Ok(Some(Dir::from_std_file(dir.into()))),
        // Sandboxes that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let mut dir: Option<Dir> = None;
    for component in path.split('/') {
        let opened = openat(dir.as_ref().unwrap_or(root), component, flags, Mode::empty())?;
        dir = Some(Dir::from_std_file(opened.into()));
    }
    Ok(dir)
}

/// A name's directory and last component.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// The nodes of one layer's entries: the last of each name, all parents, in order. `layer` is its place.
pub(crate) fn nodes_of(entries: Vec<Entry>, layer: u32, most: u64) -> Result<Vec<Node>, EntriesError> {
    let mut nodes: Vec<Node> = entries
        .into_iter()
        .filter_map(|Entry { path, kind, mode }| {
            let kind = match kind {
                Kind::Dir => NodeKind::Dir,
                Kind::File { offset, len } => NodeKind::File { executable: mode & 0o111 != 0, layer, offset, len },
                // Where there are hard links, layers are merged.
                Kind::HardLink(_) | Kind::Dropped => return None,
            };
            Some(Node { path, kind })
        })
        .collect();
    // Stable and reversed twice: of equal names the last one is kept.
    if !nodes.is_sorted_by(|a, b| a.path < b.path) {
        nodes.reverse();
        nodes.sort_by(|a, b| a.path.cmp(&b.path));
        nodes.dedup_by(|a, b| a.path == b.path);
    }
    let there = nodes.len();
    let parents = missing_parents(&nodes, |count, names| {
        if (there + count) as u64 > most {
            let why = format!("more than {most} entries with the directories that their names imply");
            return Err(EntriesError::Limit(why));
        }
        if names > MAX_NAMES { Err(EntriesError::too_many_names()) } else { Ok(()) }
    })?;
    add_directories(&mut nodes, parents);
    Ok(nodes)
}

/// The directories that names imply and that are not there; `check` looks at their number and their names' bytes as
/// they grow.
fn missing_parents<E>(
    nodes: &[Node],
    mut check: impl FnMut(usize, u64) -> Result<(), E>,
) -> Result<BTreeSet<Box<str>>, E> {
    let mut missing = BTreeSet::<&str>::new();
    let mut names = 0;
    let mut last = "";
    for node in nodes {
        let mut parent = split(&node.path).0;
        if std::mem::replace(&mut last, parent) == parent {
            continue;
        }
        // What lies above one that was found missing before has been seen to then.
        while !parent.is_empty() && nodes.binary_search_by(|n| (*n.path).cmp(parent)).is_err() && missing.insert(parent)
        {
            names += parent.len() as u64;
            check(missing.len(), names)?;
            parent = split(parent).0;
        }
    }
    Ok(missing.into_iter().map(Box::from).collect())
}

fn add_directories(nodes: &mut Vec<Node>, directories: BTreeSet<Box<str>>) {
    if !directories.is_empty() {
        nodes.extend(directories.into_iter().map(|path| Node { path, kind: NodeKind::Dir }));
        nodes.sort_by(|a, b| a.path.cmp(&b.path));
    }
}

#[cfg(test)]
mod tests;
