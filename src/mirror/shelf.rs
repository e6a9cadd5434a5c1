//! Lists over a restart: the last good answer to each question for one, as they are shown while the upstream is down.
//!
//! ```text
//! grants/lists/<key, 32 hex digits>   a keyed hash of the rest in 32 hex digits, a line feed, the list as JSON
//! ```
//! The key is a keyed hash of reader, repository and query, so a name tells nothing. Files are replaced by rename, without
//! a sync: one that is torn, or of another key, is one that is not there. What is kept is bounded: past [`MAX_BYTES`] all
//! go, and a list longer than [`MAX_LIST`] is not kept. Any number of threads at once; all of it blocks on the disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::readers::{Hash, Readers};

/// How many bytes of lists are kept.
const MAX_BYTES: u64 = 32 << 20;
/// The longest list kept, in bytes: a page of 1,000 tags as long as tags can be has half of it.
const MAX_LIST: usize = 256 << 10;
/// What a file costs beside its bytes, so that a mass of small ones is bounded too.
const FILE: u64 = 4 << 10;

/// A list as it is kept.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// When the upstream said so.
    pub when: u64,
    /// The query of the next page.
    pub next: Option<String>,
    pub list: KeptList,
}

/// What it lists.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum KeptList {
    Tags(Vec<String>),
    Referrers { index: String, filters: Option<String> },
}

/// The lists of one data directory.
pub(super) struct Shelf {
    folder: PathBuf,
    /// How many bytes there are, once somebody has looked.
    bytes: Mutex<Option<u64>>,
}

impl Shelf {
    /// The one beneath `<root>/grants`.
    pub fn of(root: &Path) -> Self {
        Self { folder: root.join("grants/lists"), bytes: Mutex::default() }
    }

    /// What is kept under a key.
    pub fn get(&self, key: &Hash, readers: &Readers) -> Option<Kept> {
        let bytes = fs::read(self.path(key)).ok()?;
        let (said, rest) = bytes.split_at_checked(33)?;
        (said == check(rest, readers).as_bytes()).then(|| serde_json::from_slice(rest).ok()).flatten()
    }

    /// Keeps a list.
    pub fn put(&self, key: &Hash, kept: &Kept, readers: &Readers) -> io::Result<()> {
        let rest = serde_json::to_vec(kept)?;
        if rest.len() > MAX_LIST {
            return self.remove(key);
        }
        let mut total = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all(&self.folder)?;
        let before = match *total {
            Some(bytes) => bytes,
            None => self.measure()?,
        };
        let more = rest.len() as u64 + FILE;
        if before + more > MAX_BYTES {
            fs::remove_dir_all(&self.folder)?;
            fs::create_dir(&self.folder)?;
            *total = Some(more);
        } else {
            // A list in place of another counts twice until the next start: too much, never too little.
            *total = Some(before + more);
        }
        let (path, beside) = (self.path(key), self.folder.join("new"));
        fs::write(&beside, [check(&rest, readers).into_bytes(), rest].concat())?;
        fs::rename(beside, path)
    }

    /// Forgets the list under a key.
    pub fn remove(&self, key: &Hash) -> io::Result<()> {
        absent_is_fine(fs::remove_file(self.path(key)))
    }

    /// Forgets all lists.
    pub fn clear(&self) -> io::Result<()> {
        let mut total = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        *total = Some(0);
        absent_is_fine(fs::remove_dir_all(&self.folder))
    }

    fn path(&self, key: &Hash) -> PathBuf {
        self.folder.join(hex::encode(key))
    }

    fn measure(&self) -> io::Result<u64> {
        fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.metadata()?.len() + FILE)).sum()
    }
}

fn check(rest: &[u8], readers: &Readers) -> String {
    format!("{}\n", hex::encode(readers.hash(&[b"kept list", rest])))
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_there_until_it_is_torn_changed_removed_or_too_much() {
        let root = tempfile::tempdir().unwrap();
        let readers = Readers::open(root.path(), [1; 32]).unwrap();
        let shelf = Shelf::of(root.path());
        let list = |length: usize| Kept { when: 7, next: None, list: KeptList::Tags(vec!["v".repeat(length)]) };
        let (key, other) = ([1; 16], [2; 16]);
        assert_eq!(shelf.get(&key, &readers), None);
        shelf.put(&key, &list(1), &readers).unwrap();
        assert_eq!(Shelf::of(root.path()).get(&key, &readers), Some(list(1)));
        let path = root.path().join("grants/lists").join(hex::encode(key));
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..20], &whole[..whole.len() - 1], &[&whole[..], b" "].concat(), b""] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(shelf.get(&key, &readers), None);
        }
        shelf.put(&key, &list(2), &readers).unwrap();
        shelf.put(&other, &list(3), &readers).unwrap();
        shelf.put(&key, &list(MAX_LIST), &readers).unwrap();
        assert_eq!(shelf.get(&key, &readers), None, "one that is too long takes the one before with it");
        assert_eq!(shelf.get(&other, &readers), Some(list(3)));
        shelf.remove(&other).unwrap();
        shelf.remove(&other).unwrap();
        assert_eq!(shelf.get(&other, &readers), None);
        for n in 0..200u8 {
            shelf.put(&[n; 16], &list(MAX_LIST - 100), &readers).unwrap();
            assert!(shelf.measure().unwrap() <= MAX_BYTES + FILE);
        }
        assert!(shelf.get(&[199; 16], &readers).is_some());
        shelf.clear().unwrap();
        assert_eq!(shelf.get(&[199; 16], &readers), None);
    }
}
