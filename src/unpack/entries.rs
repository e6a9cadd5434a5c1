//! A strict index of a tar: what is in it, where, and whether it may be served as it is.
//!
//! An artifact that passes through is judged here and unpacked elsewhere, by Go's archive/tar, GNU tar or Python's
//! tarfile. So wherever those three may read a header differently, it is refused or at least not passed through: the
//! rewritten artifact has one reading only. The verdict follows the contract, section 6, word by word.
//!
//! Formats: v7, ustar, PAX (POSIX.1-2001) and GNU long names. Sparse files of any kind are refused. Names stay data:
//! nothing is ever opened by them here.

mod header;
mod name;
mod walk;

use std::{
    fmt, io,
    sync::atomic::{AtomicU64, Ordering},
};

use self::{
    header::{checksum_matches, is_zero},
    walk::Walk,
};
use super::data::ReadAt;
use crate::class::Class;

/// The length of a block.
pub const BLOCK: usize = 512;

/// The most entries of one artifact unless told otherwise.
pub const MAX_ENTRIES: u64 = 100_000;

/// The longest name in bytes: what Linux takes as a path (PATH_MAX, its zero included).
pub const MAX_NAME: usize = 4095;

/// The longest component of a name in bytes (NAME_MAX).
pub const MAX_COMPONENT: usize = 255;

/// The most components of a name.
pub const MAX_DEPTH: usize = 255;

/// The most bytes that all names of one artifact have, the directories that they imply included: what bounds the
/// memory of an index, and 160 bytes for each of [`MAX_ENTRIES`].
pub const MAX_NAMES: u64 = 16 << 20;

/// What the indexes of one artifact's layers may hold together; counted down by each.
#[derive(Debug)]
pub struct Allowance {
    cap: u64,
    entries: AtomicU64,
    names: AtomicU64,
}

impl Allowance {
    /// So many entries, and [`MAX_NAMES`] bytes of names.
    pub const fn new(entries: u64) -> Self {
        Self { cap: entries, entries: AtomicU64::new(entries), names: AtomicU64::new(MAX_NAMES) }
    }

    fn entry(&self, name: usize) -> Result<(), EntriesError> {
        let take = |left: &AtomicU64, n: u64| {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(n)).is_ok()
        };
        if !take(&self.entries, 1) {
            return Err(EntriesError::Limit(format!("more than {} entries", self.cap)));
        }
        if !take(&self.names, name as u64) {
            return Err(EntriesError::too_many_names());
        }
        Ok(())
    }
}

/// What an index is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// A container image's layer: hard links are kept, devices, fifos and sockets are left out. In an artifact they
    /// are errors.
    pub image: bool,
    /// The most entries, the ones that are left out included.
    pub entries: u64,
}

/// What lies under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A file, its bytes at `offset..offset + len` of the tar.
    File {
        /// Where its bytes begin.
        offset: u64,
        /// How many there are.
        len: u64,
    },
    /// A hard link of a container image's layer, to this cleaned name.
    HardLink(Box<str>),
    /// A symlink, device, fifo or socket, which is left out; in a container image it still hides what lower layers
    /// have under its name.
    Dropped,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The cleaned name: relative, no `.` or `..`, no slash at its end. Never empty: the root has no entry.
    pub path: Box<str>,
    /// What it is.
    pub kind: Kind,
    /// The permission bits, at most 07777.
    pub mode: u32,
}

/// Why a tar is not served as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// The entry, as written; empty where it is about the archive.
    pub entry: String,
    /// What of it.
    pub why: &'static str,
}

impl fmt::Display for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.entry.is_empty() { f.write_str(self.why) } else { write!(f, "{:?} {}", self.entry, self.why) }
    }
}

/// A tar's entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// In the archive's order, duplicates included.
    pub entries: Vec<Entry>,
    /// Whether the archive may be served as it is, ignore rules and the compression apart.
    pub pass_through: Result<(), Rewrite>,
    /// How many entries were left out.
    pub dropped: u64,
}

/// Why a tar cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EntriesError {
    /// Not a tar at all.
    #[error("what the layer holds is not a tar archive")]
    NotTar,
    /// Damaged or cut short.
    #[error("the tar archive is damaged at byte {offset}: {what}")]
    Corrupt {
        /// Where in the decompressed archive.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// An entry that must not be unpacked.
    #[error("the tar entry {entry:?} is refused: {why}")]
    Refused {
        /// The entry's name as written.
        entry: String,
        /// Why.
        why: String,
    },
    /// Over a cap.
    #[error("the tar archive is over a limit: {0}")]
    Limit(String),
    /// The decompressed bytes could not be read back.
    #[error("cannot read the decompressed layer back")]
    Read(#[source] io::Error),
}

impl EntriesError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::NotTar => Class::Layer,
            Self::Corrupt { .. } | Self::Refused { .. } => Class::Tar,
            Self::Limit(_) => Class::Limit,
            Self::Read(_) => Class::Disk,
        }
    }

    pub(crate) fn too_many_names() -> Self {
        Self::Limit(format!("the names have more than {MAX_NAMES} bytes together"))
    }

    pub(crate) fn refused(name: &[u8], why: impl Into<String>) -> Self {
        Self::Refused { entry: shown(name), why: why.into() }
    }
}

/// A name for a message: `Debug` formatting escapes it, here it is only made text and cut.
pub(crate) fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(&name[..name.len().min(300)]).into_owned();
    if name.len() > 300 { text + "…" } else { text }
}

/// Whether a block is a header with a right checksum, or the zeros of an empty archive.
pub fn is_header_or_end(block: &[u8; BLOCK]) -> bool {
    is_zero(block) || checksum_matches(block)
}

/// The index of the archive `tar`.
pub fn index(tar: &(impl ReadAt + ?Sized), rules: Rules) -> Result<Index, EntriesError> {
    index_within(tar, rules.image, &Allowance::new(rules.entries))
}

/// The index of one layer among several that share `allowance`; `image` as in [`Rules`].
pub fn index_within(tar: &(impl ReadAt + ?Sized), image: bool, allowance: &Allowance) -> Result<Index, EntriesError> {
    let mut index = Walk::new(tar, image, allowance).all()?;
    check_tree(&mut index, image)?;
    Ok(index)
}

/// Names against each other: duplicates are rewritten, a file that is also a parent is refused. In an image's layer
/// the last entry counts, whatever it replaces.
fn check_tree(index: &mut Index, image: bool) -> Result<(), EntriesError> {
    if image && index.pass_through.is_err() {
        return Ok(());
    }
    let mut order: Vec<&Entry> = index.entries.iter().collect();
    // Component by component, so that a file is right before what lies beneath it. Stable: the last duplicate counts.
    order.sort_by(|a, b| a.path.split('/').cmp(b.path.split('/')));
    let mut rewrite = None;
    for pair in order.windows(2) {
        let [first, second] = pair else { continue };
        if first.path == second.path {
            rewrite.get_or_insert(Rewrite { entry: shown(first.path.as_bytes()), why: "occurs more than once" });
        } else if matches!(first.kind, Kind::File { .. })
            && second.path.strip_prefix(&*first.path).is_some_and(|rest| rest.starts_with('/'))
        {
            if !image {
                let why = format!("it lies beneath {:?}, which is a file", shown(first.path.as_bytes()));
                return Err(EntriesError::refused(second.path.as_bytes(), why));
            }
            rewrite.get_or_insert(Rewrite { entry: shown(first.path.as_bytes()), why: "is a file and a parent" });
        }
    }
    if let (Some(rewrite), Ok(())) = (rewrite, &index.pass_through) {
        index.pass_through = Err(rewrite);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
