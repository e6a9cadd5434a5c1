//! What goes into the layer: found, named and judged, then written as a tar.
//!
//! Names are the ones that every reader takes the same way; anything else is refused here, where the user can rename it,
//! and not where it is unpacked. What is not an ignore file is read when its turn in the tar has come, so that one file
//! at a time is in memory.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{Input, PackError};
use crate::{
    artifact::build::Caps,
    unpack::{
        entries::{BLOCK, MAX_DEPTH, MAX_NAME},
        source_ignore::{self, IgnoreRules},
        tar_writer::{self, Modes, What},
    },
};

/// The name that standard input gets.
pub const STDIN_NAME: &str = "manifests.yaml";

/// What `flux push` ignores besides version control files (flux.md section 2, step 11); a `.sourceignore` may take it
/// back.
const EXTENSIONS: &str = "*.jpg\n*.jpeg\n*.gif\n*.png\n*.wmv\n*.flv\n*.tar.gz\n*.zip\n";

/// What goes into the layer: names in byte order.
pub(super) struct Content<'a> {
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

impl<'a> Content<'a> {
    /// Looks at `input` and at the ignore files in it; of the others it reads nothing yet.
    pub(super) fn collect(input: Input<'a>, caps: Caps) -> Result<Self, PackError> {
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

    /// How many files there are.
    pub(super) fn files(&self) -> u64 {
        self.entries.iter().filter(|entry| !entry.is_dir).count() as u64
    }

    /// How many symlinks and special files were left out.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Hands the tar to `write`, piece by piece.
    pub(super) fn write_tar(&self, mut write: impl FnMut(&[u8])) -> Result<(), PackError> {
        let mut buffer = Vec::new();
        if self.root {
            tar_writer::header(&mut buffer, ".", What::Dir, Modes::PUSHED);
        }
        let mut left = self.caps.layer_bytes.saturating_sub(4 * BLOCK as u64);
        for entry in &self.entries {
            let bytes = if entry.is_dir { Vec::new() } else { read(entry, left)? };
            let len = bytes.len() as u64;
            let what = if entry.is_dir { What::Dir } else { What::File { executable: entry.executable, len } };
            let before = buffer.len();
            tar_writer::header(&mut buffer, &entry.path, what, Modes::PUSHED);
            let used = (buffer.len() - before) as u64 + len.next_multiple_of(BLOCK as u64);
            left = left.checked_sub(used).ok_or_else(|| {
                PackError::TooMuch(format!("the layer has more than the cap of {} bytes", self.caps.layer_bytes))
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

fn checked_name(prefix: &str, name: &OsStr, from: &Path) -> Result<String, PackError> {
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
    let mut missing = BTreeSet::new();
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
