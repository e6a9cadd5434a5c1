//! Which bytes came to whom, so that knowing a digest is never enough to read what another's credential fetched.
//!
//! Two marks are kept for each blob fetched, as empty files `grants/<who>/<algorithm>-<hex>`: one for exactly this way,
//! credential and repository (they may read it again without asking), and one for this way whatever the credential (the
//! bytes are known to this registry by this way, so one HEAD with the asker's own credential decides). A blob held for any
//! other reason is fetched again: another registry, or another way to the same one, may name a digest that it never had.
//!
//! `<who>` is a hash under a key that lies in the same directory, so names tell nothing about passwords. Marks are not
//! synced: a lost one costs a request. Any number of threads may mark and ask at once.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    digest::Digest,
    oci::Repository,
    registry::{Credentials, Endpoint},
};

/// The marks of one data directory.
#[derive(Clone)]
pub struct Grants {
    directory: PathBuf,
    key: [u8; 32],
}

/// What is known about a held blob and an asker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// This way, credential and repository fetched it before.
    Granted,
    /// This way did, with another credential or in another repository.
    AskUpstream,
    /// Nothing: fetch it.
    Unknown,
}

impl Grants {
    /// The marks beneath `<root>/grants`; makes the key where there is none.
    pub fn open(root: &Path) -> io::Result<Self> {
        let directory = root.join("grants");
        fs::create_dir_all(&directory)?;
        let path = directory.join("key");
        let key = match fs::read(&path).map(<[u8; 32]>::try_from) {
            Ok(Ok(key)) => key,
            _ => {
                // A key that is missing or torn takes all marks with it: their names cannot be made again.
                let mut key = [0; 32];
                rustix::rand::getrandom(&mut key[..], rustix::rand::GetRandomFlags::empty())?;
                let temporary = directory.join("key.new");
                fs::write(&temporary, key)?;
                fs::rename(&temporary, &path)?;
                key
            }
        };
        Ok(Self { directory, key })
    }

    /// Records that `at` gave `digest` out of `repository`.
    pub fn mark(&self, at: &Endpoint, repository: &Repository, digest: &Digest) -> io::Result<()> {
        for who in [self.asker(at, repository), self.way(at)] {
            let directory = self.directory.join(who);
            let path = directory.join(file_name(digest));
            match fs::File::create(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir_all(&directory)?;
                    fs::File::create(&path)?;
                }
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// What is known about `digest` and this asker.
    pub fn standing(&self, at: &Endpoint, repository: &Repository, digest: &Digest) -> Standing {
        let has = |who: String| self.directory.join(who).join(file_name(digest)).exists();
        if has(self.asker(at, repository)) {
            Standing::Granted
        } else if has(self.way(at)) {
            Standing::AskUpstream
        } else {
            Standing::Unknown
        }
    }

    /// Drops every mark whose blob is no longer `held`.
    pub fn sweep(&self, held: impl Fn(&Digest) -> bool) -> io::Result<u64> {
        let mut dropped = 0;
        for who in fs::read_dir(&self.directory)? {
            let who = who?.path();
            if !who.is_dir() {
                continue;
            }
            for mark in fs::read_dir(&who)? {
                let mark = mark?;
                let digest = mark.file_name().to_str().and_then(|n| n.replacen('-', ":", 1).parse().ok());
                if !digest.is_some_and(|d| held(&d)) {
                    fs::remove_file(mark.path())?;
                    dropped += 1;
                }
            }
        }
        Ok(dropped)
    }

    /// Way, credential and repository.
    fn asker(&self, at: &Endpoint, repository: &Repository) -> String {
        self.name(&(at, repository.as_str()))
    }

    /// The way alone.
    fn way(&self, at: &Endpoint) -> String {
        self.name(&Endpoint { credentials: Credentials::Anonymous, ..at.clone() })
    }

    fn name(&self, what: &impl std::hash::Hash) -> String {
        let mut hasher = KeyedHasher(blake3::Hasher::new_keyed(&self.key));
        what.hash(&mut hasher);
        hasher.0.finalize().to_hex().to_string()
    }
}

fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}

/// Feeds `Hash` into keyed blake3.
struct KeyedHasher(blake3::Hasher);

impl std::hash::Hasher for KeyedHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}
