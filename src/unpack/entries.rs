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

use std::{
    fmt, io,
    sync::atomic::{AtomicU64, Ordering},
};

use self::{
    header::{checksum_matches, common_numbers, is_zero, number, octal, text},
    name::{Clean, Unclean, clean},
};
use super::{
    data::ReadAt,
    pax::{self, Extensions},
};
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
    let mut walk = Walk {
        tar,
        image,
        allowance,
        at: 0,
        root: false,
        index: Index { entries: Vec::new(), pass_through: Ok(()), dropped: 0 },
    };
    while walk.step()? {}
    let mut index = walk.index;
    check_tree(&mut index, image)?;
    Ok(index)
}

struct Walk<'a, T: ?Sized> {
    tar: &'a T,
    image: bool,
    allowance: &'a Allowance,
    at: u64,
    /// Whether there was an entry for the root.
    root: bool,
    index: Index,
}

impl<T: ReadAt + ?Sized> Walk<'_, T> {
    fn corrupt(&self, what: &'static str) -> EntriesError {
        EntriesError::Corrupt { offset: self.at, what }
    }

    /// Notes the first reason.
    fn rewrite(&mut self, entry: &[u8], why: &'static str) {
        if self.index.pass_through.is_ok() {
            self.index.pass_through = Err(Rewrite { entry: shown(entry), why });
        }
    }

    /// The block at `self.at`; `None` right at the archive's end.
    fn block(&self) -> Result<Option<[u8; BLOCK]>, EntriesError> {
        let left = self.tar.size().saturating_sub(self.at);
        if left == 0 {
            return Ok(None);
        }
        if left < BLOCK as u64 {
            return Err(self.corrupt("it ends inside a block"));
        }
        let bytes = self.tar.bytes_at(self.at, BLOCK).map_err(EntriesError::Read)?;
        Ok(bytes.first_chunk().copied())
    }

    /// Takes one entry with the headers before it; `false` at the archive's end.
    fn step(&mut self) -> Result<bool, EntriesError> {
        let mut extensions = Extensions::default();
        loop {
            let Some(block) = self.block()? else {
                if extensions.any() {
                    return Err(self.corrupt("it ends after a header that belongs to an entry"));
                }
                self.rewrite(b"", "the archive has no end marker");
                return Ok(false);
            };
            if is_zero(&block) {
                if extensions.any() {
                    return Err(self.corrupt("it ends after a header that belongs to an entry"));
                }
                self.end()?;
                return Ok(false);
            }
            if !checksum_matches(&block) {
                return Err(match self.at {
                    0 => EntriesError::NotTar,
                    _ => self.corrupt("a header does not match its checksum"),
                });
            }
            let size = number(&block[124..136]).map_err(|()| self.corrupt("an entry's size is not a number"))?;
            let start = self.at + BLOCK as u64;
            match block[156] {
                kind @ (b'x' | b'g' | b'L' | b'K') => {
                    if size > pax::MAX_BYTES {
                        return Err(EntriesError::Limit(format!(
                            "an extended header of {size} bytes at byte {}, the cap is {}",
                            self.at,
                            pax::MAX_BYTES
                        )));
                    }
                    // Global ones need no entry after them.
                    if kind == b'g' {
                        self.allowance.entry(0)?;
                    }
                    let end = self.data_end(start, size)?;
                    let body = self.tar.bytes_at(start, size as usize).map_err(EntriesError::Read)?;
                    let odd = extensions.take(kind, &body, self.at)?;
                    drop(body);
                    if let Some(why) = odd {
                        self.rewrite(b"", why);
                    }
                    self.at = end;
                }
                kind => {
                    self.entry(&block, kind, size, start, extensions)?;
                    return Ok(true);
                }
            }
        }
    }

    /// Where the block after an entry's data begins.
    fn data_end(&self, start: u64, len: u64) -> Result<u64, EntriesError> {
        start
            .checked_add(len)
            .and_then(|end| end.checked_next_multiple_of(BLOCK as u64))
            .filter(|end| *end <= self.tar.size())
            .ok_or_else(|| self.corrupt("it ends inside an entry's data"))
    }

    /// The end marker and what follows it.
    fn end(&mut self) -> Result<(), EntriesError> {
        self.at += BLOCK as u64;
        match self.block()? {
            None => self.rewrite(b"", "the archive's end marker is cut short"),
            // Go refuses this, GNU tar and Python stop here.
            Some(block) if !is_zero(&block) => return Err(self.corrupt("a lone block of zeros")),
            Some(_) => {}
        }
        while self.at < self.tar.size() {
            let len = (self.tar.size() - self.at).min(64 << 10);
            let rest = self.tar.bytes_at(self.at, len as usize).map_err(EntriesError::Read)?;
            let zero = is_zero(&rest);
            drop(rest);
            if !zero {
                self.rewrite(b"", "something follows the archive's end marker");
                break;
            }
            self.at += len;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        typeflag: u8,
        header_size: u64,
        start: u64,
        extensions: Extensions,
    ) -> Result<(), EntriesError> {
        let header_name = self.header_name(block)?;
        let name = extensions.path.as_deref().unwrap_or(&header_name);
        if name.len() > MAX_NAME {
            return Err(EntriesError::Limit(format!(
                "the name {:?} has {} bytes, the cap is {MAX_NAME}",
                shown(name),
                name.len()
            )));
        }
        self.allowance.entry(name.len())?;
        let size = extensions.size.unwrap_or(header_size);
        if size != header_size {
            self.rewrite(name, "has a PAX size that differs from its header's");
        }
        if !common_numbers(block) {
            self.rewrite(name, "has numbers in its header that not every reader takes");
        }
        let mode =
            octal(&block[100..108]).map_err(|()| EntriesError::refused(name, "its mode is not an octal number"))?;
        // A symlink, hard link, device, directory has no data in any reader that looks at its type; one that looks at
        // its size alone would read on somewhere else.
        if !matches!(typeflag, b'0' | 0 | b'7') && size != 0 {
            let why = if typeflag == b'S' { SPARSE } else { "it has data, which its type cannot have" };
            return Err(EntriesError::refused(name, why));
        }
        let end = self.data_end(start, size)?;
        let file = Kind::File { offset: start, len: size };
        let slash = name.ends_with(b"/");
        let kind = match typeflag {
            b'5' => Kind::Dir,
            // v7 had no type for directories.
            0 if slash && size == 0 => {
                self.rewrite(name, "is a directory in the notation of v7");
                Kind::Dir
            }
            b'0' | 0 if !slash => file,
            b'7' if !slash => {
                self.rewrite(name, "is a contiguous file");
                file
            }
            b'0' | 0 | b'7' => return Err(EntriesError::refused(name, "it is a file, yet its name ends with a slash")),
            b'2' => Kind::Dropped,
            b'1' if self.image => {
                let target = extensions.link.as_deref().unwrap_or_else(|| text(&block[157..257]));
                let target = clean(target).map_err(|why| {
                    EntriesError::refused(name, format!("it is a hard link to {:?}: {why}", shown(target)))
                })?;
                Kind::HardLink(target.path)
            }
            b'1' => return Err(EntriesError::refused(name, "it is a hard link, which an artifact cannot have")),
            b'3' | b'4' | b'6' | b's' if self.image => Kind::Dropped,
            b'3' | b'4' => return Err(EntriesError::refused(name, "it is a device, which an artifact cannot have")),
            b'6' => return Err(EntriesError::refused(name, "it is a fifo, which an artifact cannot have")),
            b's' => return Err(EntriesError::refused(name, "it is a socket, which an artifact cannot have")),
            b'S' => return Err(EntriesError::refused(name, SPARSE)),
            other => {
                return Err(EntriesError::refused(name, format!("its type {:?} is unknown", char::from(other))));
            }
        };
        self.at = end;
        if kind == Kind::Dropped {
            self.index.dropped += 1;
            self.rewrite(name, "is a symlink or a special file");
            // Its name leads nowhere; a bad one harms nobody. In an image it hides what lies below.
            if let Ok(Clean { path, .. }) = clean(name)
                && self.image
                && !path.is_empty()
            {
                self.index.entries.push(Entry { path, kind, mode: 0 });
            }
            return Ok(());
        }
        let cleaned = clean(name).map_err(|why| match why {
            Unclean::Limit(why) => EntriesError::Limit(format!("the name {:?} {why}", shown(name))),
            Unclean::Refused(why) => EntriesError::refused(name, why),
        })?;
        if !cleaned.as_written {
            self.rewrite(name, "is not a clean name");
        }
        if cleaned.path.chars().any(char::is_control) {
            self.rewrite(name, "has control characters in its name");
        }
        let type_bits = if kind == Kind::Dir { 0o040_000 } else { 0o100_000 };
        if mode & !0o7777 != 0 && mode & !0o7777 != type_bits {
            self.rewrite(name, "has a mode that names another type");
        }
        if mode & 0o7000 != 0 {
            self.rewrite(name, "is setuid, setgid or sticky");
        }
        if kind != Kind::Dir && mode & 0o400 == 0 {
            self.rewrite(name, "is not readable by its owner");
        }
        if cleaned.path.is_empty() {
            if kind != Kind::Dir {
                return Err(EntriesError::refused(name, "it names the root, yet is not a directory"));
            }
            if std::mem::replace(&mut self.root, true) {
                self.rewrite(name, "occurs more than once");
            }
            return Ok(());
        }
        self.index.entries.push(Entry { path: cleaned.path, kind, mode: (mode & 0o7777) as u32 });
        Ok(())
    }

    /// The name in the header itself.
    fn header_name(&mut self, block: &[u8; BLOCK]) -> Result<Vec<u8>, EntriesError> {
        let name = text(&block[..100]);
        let ustar = &block[257..263] == b"ustar\0";
        if !ustar {
            // Python takes a prefix from these formats too, the others do not.
            if !is_zero(&block[345..500]) {
                self.rewrite(name, "has a header that not every reader takes the same way");
            }
            return Ok(name.to_vec());
        }
        if &block[508..] == b"tar\0" {
            // star's format: the prefix is shorter, times follow it.
            if !is_zero(&block[476..508]) {
                return Err(EntriesError::refused(name, "its header is in star's format, which readers disagree on"));
            }
            self.rewrite(name, "has a header in star's format");
        }
        let prefix = text(&block[345..500]);
        if prefix.is_empty() {
            return Ok(name.to_vec());
        }
        Ok([prefix, b"/", name].concat())
    }
}

const SPARSE: &str = "sparse files are not supported";

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
