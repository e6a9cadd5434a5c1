//! Which bytes came to whom, so that knowing a digest is never enough to read what another's credential fetched.
//!
//! Two marks are kept for each blob that a pull fetched: one for exactly this way, credential and repository (they may read it again
//! without asking), and one for this way whatever the credential (the bytes are known to this registry by this way, so one
//! HEAD with the asker's own credential decides). A blob held for any other reason is fetched again: another registry, or
//! another way to the same one, may name a digest that it never had.
//!
//! A mirror keeps one for each blob and repository: the upstream gave the blob out of it, to whomever. A manifest that names
//! a blob is no such mark, since anybody may push one that names what others have.
//!
//! Marks lie in `grants/marks`, one after the other, 81 bytes each: 16 of a hash of who and what, one for the algorithm, 64 of
//! the digest. The hash is keyed with `grants/key`, so marks tell nothing about passwords. In memory a mark is its 16 bytes.
//! A file for each mark would cost an inode, which is most of what fetching a small blob costs.
//!
//! Marks are not synced, and a torn one at the end is dropped when they are read: a lost mark costs a request. Any number
//! of threads may mark and ask at once.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    digest::{Algorithm, Digest},
    oci::{Registry, Repository},
    registry::{Credentials, Endpoint},
};

/// Bytes of a mark in the file.
const RECORD: usize = 16 + 1 + 64;

/// The marks of one data directory; clones share them.
#[derive(Clone)]
pub struct Grants(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    key: [u8; 32],
    marks: Mutex<Marks>,
}

struct Marks {
    known: HashSet<[u8; 16]>,
    file: File,
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
                // A key that is missing or torn takes all marks with it: their hashes cannot be made again.
                let mut key = [0; 32];
                rustix::rand::getrandom(&mut key[..], rustix::rand::GetRandomFlags::empty())?;
                let temporary = directory.join("key.new");
                fs::write(&temporary, key)?;
                fs::rename(&temporary, &path)?;
                key
            }
        };
        let marks = Marks::open(&directory)?;
        Ok(Self(Arc::new(Inner { directory, key, marks: Mutex::new(marks) })))
    }

    /// Another key of the same secret, for another purpose.
    pub fn derived_key(&self, purpose: &str) -> [u8; 32] {
        *blake3::keyed_hash(&self.0.key, purpose.as_bytes()).as_bytes()
    }

    /// Records that `at` gave `digest` out of `repository`.
    pub fn mark(&self, at: &Endpoint, repository: &Repository, digest: &Digest) -> io::Result<()> {
        self.record(&[self.asker(at, repository, digest), self.way(at, digest)], digest)
    }

    /// Records that `at` has `digest`, whoever asks: the next one is let in by a HEAD.
    pub fn mark_way(&self, at: &Endpoint, digest: &Digest) -> io::Result<()> {
        self.record(&[self.way(at, digest)], digest)
    }

    /// Records that the upstream `registry` gave `digest` out of `repository`, to whomever.
    pub fn mark_repository(&self, registry: &Registry, repository: &Repository, digest: &Digest) -> io::Result<()> {
        self.record(&[self.repository(registry, repository, digest)], digest)
    }

    /// Whether that was recorded.
    pub fn has_repository(&self, registry: &Registry, repository: &Repository, digest: &Digest) -> bool {
        let mark = self.repository(registry, repository, digest);
        self.marks().known.contains(&mark)
    }

    fn record(&self, hashes: &[[u8; 16]], digest: &Digest) -> io::Result<()> {
        let mut marks = self.marks();
        let new: Vec<[u8; 16]> = hashes.iter().filter(|hash| !marks.known.contains(*hash)).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        let records: Vec<u8> = new.iter().flat_map(|hash| record(hash, digest)).collect();
        marks.file.write_all(&records)?;
        marks.known.extend(new);
        Ok(())
    }

    /// What is known about `digest` and this asker.
    pub fn standing(&self, at: &Endpoint, repository: &Repository, digest: &Digest) -> Standing {
        let (asker, way) = (self.asker(at, repository, digest), self.way(at, digest));
        let marks = self.marks();
        if marks.known.contains(&asker) {
            Standing::Granted
        } else if marks.known.contains(&way) {
            Standing::AskUpstream
        } else {
            Standing::Unknown
        }
    }

    /// Drops every mark whose blob is no longer `held`; how many.
    pub fn sweep(&self, held: impl Fn(&Digest) -> bool) -> io::Result<u64> {
        let mut marks = self.marks();
        let bytes = fs::read(self.0.directory.join("marks"))?;
        let (records, _) = bytes.as_chunks::<RECORD>();
        let kept: Vec<u8> = records.iter().filter(|r| named(r).is_some_and(|d| held(&d))).flatten().copied().collect();
        let dropped = (bytes.len() - kept.len()) / RECORD;
        if dropped > 0 {
            let temporary = self.0.directory.join("marks.new");
            fs::write(&temporary, &kept)?;
            fs::rename(&temporary, self.0.directory.join("marks"))?;
            *marks = Marks::open(&self.0.directory)?;
        }
        Ok(dropped as u64)
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.0.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Way, credential, repository and blob.
    fn asker(&self, at: &Endpoint, repository: &Repository, digest: &Digest) -> [u8; 16] {
        self.hash(&(at, repository.as_str(), digest))
    }

    /// Way and blob.
    fn way(&self, at: &Endpoint, digest: &Digest) -> [u8; 16] {
        self.hash(&(Endpoint { credentials: Credentials::Anonymous, ..at.clone() }, digest))
    }

    /// Registry, repository and blob.
    fn repository(&self, registry: &Registry, repository: &Repository, digest: &Digest) -> [u8; 16] {
        self.hash(&("repository", registry.to_string(), repository.as_str(), digest))
    }

    /// A hash of anything, keyed with this directory's key: it tells things apart and nothing about them.
    pub fn fingerprint(&self, what: &impl std::hash::Hash) -> [u8; 16] {
        self.hash(what)
    }

    fn hash(&self, what: &impl std::hash::Hash) -> [u8; 16] {
        let mut hasher = KeyedHasher(blake3::Hasher::new_keyed(&self.0.key));
        what.hash(&mut hasher);
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.0.finalize().as_bytes()[..16]);
        hash
    }
}

impl Marks {
    fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("marks");
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (records, torn) = bytes.as_chunks::<RECORD>();
        if !torn.is_empty() {
            file.set_len((bytes.len() - torn.len()) as u64)?;
        }
        let known = records.iter().filter_map(|r| r.first_chunk::<16>()).copied().collect();
        Ok(Self { known, file })
    }
}

fn record(hash: &[u8; 16], digest: &Digest) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..16].copy_from_slice(hash);
    record[16] = match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    };
    record[17..17 + digest.bytes().len()].copy_from_slice(digest.bytes());
    record
}

/// The blob that a record is about; `None` for a damaged record.
fn named(record: &[u8; RECORD]) -> Option<Digest> {
    let algorithm = match record[16] {
        1 => Algorithm::Sha256,
        2 => Algorithm::Sha512,
        _ => return None,
    };
    Digest::from_bytes(algorithm, record[17..].get(..Digest::of(algorithm, b"").bytes().len())?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{registry::Transport, secret::Secret};

    fn endpoint(password: &str) -> Endpoint {
        Endpoint {
            registry: "registry.example".parse().unwrap(),
            transport: Transport::default(),
            credentials: Credentials::Basic { username: "user".into(), password: Secret::new(password) },
        }
    }

    #[test]
    fn another_credential_or_repository_has_to_ask_and_another_way_knows_nothing() {
        let root = tempfile::tempdir().unwrap();
        let (a, b): (Repository, Repository) = ("a".parse().unwrap(), "b".parse().unwrap());
        let (one, other) = (Digest::sha256(b"1"), Digest::of(Algorithm::Sha512, b"2"));
        let elsewhere = Endpoint { registry: "other.example".parse().unwrap(), ..endpoint("x") };
        let grants = Grants::open(root.path()).unwrap();
        grants.mark(&endpoint("x"), &a, &one).unwrap();
        grants.mark(&endpoint("x"), &a, &other).unwrap();
        let check = |grants: &Grants| {
            assert_eq!(grants.standing(&endpoint("x"), &a, &one), Standing::Granted);
            assert_eq!(grants.standing(&endpoint("x"), &b, &one), Standing::AskUpstream);
            assert_eq!(grants.standing(&endpoint("y"), &a, &one), Standing::AskUpstream);
            assert_eq!(grants.standing(&elsewhere, &a, &one), Standing::Unknown);
        };
        check(&grants);
        drop(grants);
        // A crash in the middle of a mark costs that mark only.
        let path = root.path().join("grants/marks");
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend([7; 40]);
        fs::write(&path, bytes).unwrap();
        let grants = Grants::open(root.path()).unwrap();
        check(&grants);
        assert_eq!(grants.standing(&endpoint("x"), &a, &other), Standing::Granted);
        assert_eq!(grants.sweep(|digest| *digest == one).unwrap(), 2);
        check(&grants);
        assert_eq!(grants.standing(&endpoint("x"), &a, &other), Standing::Unknown);
        let registry = endpoint("x").registry;
        assert!(!grants.has_repository(&registry, &a, &one));
        grants.mark_repository(&registry, &a, &one).unwrap();
        let known = |repository: &Repository| grants.has_repository(&registry, repository, &one);
        assert_eq!((known(&a), known(&b), grants.has_repository(&elsewhere.registry, &a, &one)), (true, false, false));
        grants.mark(&endpoint("x"), &a, &other).unwrap();
        assert_eq!(Grants::open(root.path()).unwrap().standing(&endpoint("x"), &a, &other), Standing::Granted);
    }

    #[test]
    fn a_new_key_forgets_everything() {
        let root = tempfile::tempdir().unwrap();
        let (a, digest): (Repository, _) = ("a".parse().unwrap(), Digest::sha256(b"1"));
        Grants::open(root.path()).unwrap().mark(&endpoint("x"), &a, &digest).unwrap();
        fs::remove_file(root.path().join("grants/key")).unwrap();
        assert_eq!(Grants::open(root.path()).unwrap().standing(&endpoint("x"), &a, &digest), Standing::Unknown);
    }
}
