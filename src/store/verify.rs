//! Verification: every byte that is kept is hashed again, whatever the journal says.
//!
//! May run beside everything else, also in a process of its own on a store opened for reading only. It changes nothing
//! unless asked to repair, which puts bad files aside. What is removed while it runs is no problem.

use std::{fs::File, path::PathBuf, sync::atomic::AtomicU64, sync::atomic::Ordering};

use rayon::prelude::*;

use super::{
    Store, StoreError,
    layout::{Identity, blob_named, is_file},
    read::{Found, check_blob, hash_file},
    shards::{SHARDS, blob_shard, directory},
};

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Blobs and shared files hashed.
    pub checked: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is wrong, sorted by path; empty if nothing is.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
    /// Whether it has been put aside.
    pub repaired: bool,
}

/// How far a verification has come: hashed so far, of all directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Blobs and files hashed.
    pub checked: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Directories done.
    pub directories: usize,
    /// All directories.
    pub of: usize,
}

struct Sums {
    checked: AtomicU64,
    bytes: AtomicU64,
}

impl Store {
    /// Hashes all blobs and shared files on rayon's pool; calls `progress` after each of 768 directories. With
    /// `repair`, bad files are put aside. Also reports manifests of local repositories whose bytes are missing.
    pub fn verify(&self, mut progress: impl FnMut(Progress), repair: bool) -> Result<Report, StoreError> {
        if repair {
            self.writable()?;
        }
        let sums = Sums { checked: AtomicU64::new(0), bytes: AtomicU64::new(0) };
        let mut problems = Vec::new();
        for index in 0..SHARDS {
            let names = self.0.layout.names(&directory(index))?;
            let found: Vec<Option<Problem>> = names
                .par_iter()
                .map(|name| self.verify_one(index, name, repair, &sums))
                .collect::<Result<_, StoreError>>()?;
            problems.extend(found.into_iter().flatten());
            progress(Progress {
                checked: sums.checked.load(Ordering::Relaxed),
                bytes: sums.bytes.load(Ordering::Relaxed),
                directories: index + 1,
                of: SHARDS,
            });
        }
        self.verify_links(&mut problems)?;
        problems.sort();
        Ok(Report { checked: sums.checked.into_inner(), bytes: sums.bytes.into_inner(), problems })
    }

    fn verify_one(&self, index: usize, name: &str, repair: bool, sums: &Sums) -> Result<Option<Problem>, StoreError> {
        let path = format!("{}/{name}", directory(index));
        let problem = |what: String, repaired| Some(Problem { path: self.0.layout.absolute(&path), what, repaired });
        let file = match self.0.layout.open_file(&path) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(None),
            Err(error) => {
                let why = std::error::Error::source(&error).map_or_else(String::new, ToString::to_string);
                return Ok(problem(format!("cannot be opened: {why}"), false));
            }
        };
        let stat = rustix::fs::fstat(&file).map_err(|e| self.0.layout.error("look at", &path, e))?;
        let id = Identity::from_stat(&stat);
        sums.checked.fetch_add(1, Ordering::Relaxed);
        sums.bytes.fetch_add(id.size, Ordering::Relaxed);
        if index < 512 {
            let (algorithm, first) = blob_shard(index);
            let Some(digest) = blob_named(algorithm, first, name) else {
                return Ok(problem("no blob has such a name here".to_string(), false));
            };
            let found = if is_file(&stat) { check_blob(&file, &digest) } else { Found::Wrong("is not a file".into()) };
            let Found::Wrong(why) = found else { return Ok(None) };
            if repair {
                self.quarantine_blob(&digest, id.ino, &why);
            }
            return Ok(problem(why, repair && self.replaced(&path, id)?));
        }
        let Some(why) = check_shared(&file, is_file(&stat), (index % 256) as u8, name) else { return Ok(None) };
        if repair {
            let mut shard = self.0.shards.of_file((index % 256) as u8);
            if self.quarantine(&path, name, id.ino, &why) {
                shard.count = None;
            }
        }
        Ok(problem(why, repair && self.replaced(&path, id)?))
    }

    /// Whether the name leads to that file no longer.
    fn replaced(&self, path: &str, id: Identity) -> Result<bool, StoreError> {
        Ok(self.0.layout.stat(path)?.is_none_or(|s| Identity::from_stat(&s).ino != id.ino))
    }

    fn verify_links(&self, problems: &mut Vec<Problem>) -> Result<(), StoreError> {
        for (repository, digest) in self.linked_manifests()? {
            if !self.has(&digest)? {
                let path = self.root().join("links/local").join(&repository);
                problems.push(Problem { path, what: format!("its manifest {digest} is missing"), repaired: false });
            }
        }
        Ok(())
    }
}

/// The hash that a shared file's name says it has.
pub(super) fn shared_named(first: u8, name: &str) -> Option<blake3::Hash> {
    let hex = name.strip_suffix("-x").unwrap_or(name);
    blake3::Hash::from_hex(hex).ok().filter(|h| h.as_bytes()[0] == first && h.to_hex().as_str() == hex)
}

/// What is wrong with a shared file, if anything.
fn check_shared(file: &File, is_file: bool, first: u8, name: &str) -> Option<String> {
    let Some(named) = shared_named(first, name) else {
        return Some("no shared file has such a name here".to_string());
    };
    if !is_file {
        return Some("is not a file".to_string());
    }
    let mut hasher = blake3::Hasher::new();
    match hash_file(file, &mut |data| {
        hasher.update(data);
    }) {
        Err(error) => Some(format!("cannot be read: {error}")),
        Ok(size) => {
            let actual = hasher.finalize();
            (actual != named).then(|| format!("its {size} bytes hash to {}", actual.to_hex()))
        }
    }
}
