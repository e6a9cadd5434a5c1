//! Who may read what: marks that an upstream let somebody read, kept on disk.
//!
//! A mark says that at a certain time an upstream showed a repository (or one blob of it) to somebody: to everybody,
//! or to whoever presents one credential. It is 16 bytes of a keyed hash of all that, so the file tells nothing about
//! credentials; its key derives from `grants/key`.
//!
//! ```text
//! grants/readers   records of 40 bytes: hash (16), when (8), until (8), check (8); numbers little-endian,
//!                  milliseconds since 1970; the last record of a hash counts, `until` 0 ends it; an odd `until` is
//!                  that of a mark about a whole repository and everybody
//! ```
//! Records are appended without a sync; one that is torn or does not check ends what is read, and the file is written
//! anew without dead records when it is opened and whenever these are the most of it. A lost mark costs one request to
//! the upstream. Any number of threads may ask and mark at once.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
};

use super::clock::lasts;

/// Bytes of a record.
const RECORD: usize = 40;
/// The most marks that are kept; past it half of them go.
const MAX_MARKS: usize = 65_536;
/// Fewer dead records than this are not worth a new file.
const MIN_DEAD: usize = 4096;

/// The hash of who and what.
pub(super) type Hash = [u8; 16];

/// The marks of one data directory.
pub(super) struct Readers {
    path: PathBuf,
    key: [u8; 32],
    marks: RwLock<HashMap<Hash, Mark>>,
    file: Mutex<Log>,
}

/// When the upstream said yes, and until when that is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub when: u64,
    pub until: u64,
}

impl Mark {
    /// Whether it is good now.
    pub fn is_fresh(self, now: u64) -> bool {
        lasts(self.when, self.until.saturating_sub(self.when), now)
    }

    /// The same, told as one about a whole repository and everybody, or as another. Those are few, and while an upstream
    /// is down nothing can take their place.
    pub fn of_repository(self, yes: bool) -> Self {
        // Never longer than it was.
        Self { until: if yes { self.until.saturating_sub(1) | 1 } else { self.until & !1 }, ..self }
    }

    /// Whether it should stay when others go.
    fn stays(self) -> bool {
        self.until & 1 == 1
    }

    /// Whether it is good now or ran out less than `grace` milliseconds ago.
    pub fn is_within(self, grace: u64, now: u64) -> bool {
        lasts(self.when, self.until.saturating_sub(self.when).saturating_add(grace), now)
    }
}

struct Log {
    file: File,
    records: usize,
}

impl Readers {
    /// The marks beneath `<root>/grants`, with `key` for their hashes.
    pub fn open(root: &Path, key: [u8; 32]) -> io::Result<Self> {
        let directory = root.join("grants");
        fs::create_dir_all(&directory)?;
        let path = directory.join("readers");
        let marks = read(&path, &key)?;
        let log = rewrite(&path, &key, &marks)?;
        Ok(Self { path, key, marks: RwLock::new(marks), file: Mutex::new(log) })
    }

    /// The hash of the parts, each told from its neighbours by its length.
    pub fn hash(&self, parts: &[&[u8]]) -> Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        hash
    }

    /// The mark, fresh or not.
    pub fn get(&self, hash: &Hash) -> Option<Mark> {
        self.marks.read().unwrap_or_else(PoisonError::into_inner).get(hash).copied()
    }

    /// Sets a mark. Blocks on the disk.
    pub fn set(&self, hash: Hash, mark: Mark) -> io::Result<()> {
        {
            let mut marks = self.marks.write().unwrap_or_else(PoisonError::into_inner);
            if marks.len() >= MAX_MARKS && !marks.contains_key(&hash) {
                drop_half(&mut marks);
            }
            marks.insert(hash, mark);
        }
        self.append(&hash, mark)
    }

    /// Ends a mark; whether there was one. Blocks on the disk.
    pub fn end(&self, hash: &Hash) -> io::Result<bool> {
        let there = self.marks.write().unwrap_or_else(PoisonError::into_inner).remove(hash).is_some();
        if there {
            self.append(hash, Mark { when: 0, until: 0 })?;
        }
        Ok(there)
    }

    fn append(&self, hash: &Hash, mark: Mark) -> io::Result<()> {
        let mut log = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.marks.read().unwrap_or_else(PoisonError::into_inner).len();
        if log.records > 2 * live + MIN_DEAD {
            let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner).clone();
            *log = rewrite(&self.path, &self.key, &marks)?;
        }
        log.file.write_all(&record(&self.key, hash, mark))?;
        log.records += 1;
        Ok(())
    }
}

/// Drops half of the marks: the oldest, and those that should stay after all others.
fn drop_half(marks: &mut HashMap<Hash, Mark>) {
    let mut ages: Vec<(bool, u64)> = marks.values().map(|mark| (mark.stays(), mark.when)).collect();
    let middle = ages.len() / 2;
    let (_, median, _) = ages.select_nth_unstable(middle);
    let median = *median;
    marks.retain(|_, mark| (mark.stays(), mark.when) > median);
}

fn record(key: &[u8; 32], hash: &Hash, mark: Mark) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..16].copy_from_slice(hash);
    record[16..24].copy_from_slice(&mark.when.to_le_bytes());
    record[24..32].copy_from_slice(&mark.until.to_le_bytes());
    let check = blake3::keyed_hash(key, &record[..32]);
    record[32..].copy_from_slice(&check.as_bytes()[..8]);
    record
}

fn read(path: &Path, key: &[u8; 32]) -> io::Result<HashMap<Hash, Mark>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    let mut marks = HashMap::new();
    let (records, _) = bytes.as_chunks::<RECORD>();
    for bytes in records {
        let number = |at: usize| bytes[at..].first_chunk::<8>().map_or(0, |eight| u64::from_le_bytes(*eight));
        let Some(hash) = bytes.first_chunk::<16>() else { break };
        let mark = Mark { when: number(16), until: number(24) };
        if *bytes != record(key, hash, mark) {
            break;
        }
        if mark.until == 0 {
            marks.remove(hash);
        } else {
            marks.insert(*hash, mark);
        }
    }
    Ok(marks)
}

fn rewrite(path: &Path, key: &[u8; 32], marks: &HashMap<Hash, Mark>) -> io::Result<Log> {
    let bytes: Vec<u8> = marks.iter().flat_map(|(hash, mark)| record(key, hash, *mark)).collect();
    let temporary = path.with_extension("new");
    fs::write(&temporary, &bytes)?;
    fs::rename(&temporary, path)?;
    let file = OpenOptions::new().append(true).open(path)?;
    Ok(Log { file, records: marks.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn mark(when: u64) -> Mark {
        Mark { when, until: when + 300 }
    }

    #[test]
    fn a_mark_is_good_for_its_time_and_no_longer_nor_before_it_was_made() {
        for (now, fresh, within) in
            [(99, false, false), (100, true, true), (399, true, true), (400, false, true), (450, false, false)]
        {
            assert_eq!(mark(100).is_fresh(now), fresh, "{now}");
            assert_eq!(mark(100).is_within(50, now), within, "{now}");
        }
    }

    #[test]
    fn parts_are_told_apart_by_their_lengths() {
        let root = tempfile::tempdir().unwrap();
        let readers = Readers::open(root.path(), KEY).unwrap();
        assert_ne!(readers.hash(&[b"ab", b"c"]), readers.hash(&[b"a", b"bc"]));
        assert_ne!(readers.hash(&[b"a"]), readers.hash(&[b"a", b""]));
        assert_eq!(readers.hash(&[b"a", b"b"]), readers.hash(&[b"a", b"b"]));
    }

    #[test]
    fn marks_survive_a_restart_ended_ones_do_not_and_a_torn_one_costs_itself_only() {
        let root = tempfile::tempdir().unwrap();
        let readers = Readers::open(root.path(), KEY).unwrap();
        let [a, b, c] = [b"a", b"b", b"c"].map(|part| readers.hash(&[part]));
        readers.set(a, mark(1)).unwrap();
        readers.set(b, mark(2)).unwrap();
        readers.set(c, mark(3)).unwrap();
        readers.set(a, mark(4)).unwrap();
        assert!(readers.end(&b).unwrap());
        assert!(!readers.end(&b).unwrap());
        drop(readers);
        let path = root.path().join("grants/readers");
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend([1; 25]);
        fs::write(&path, bytes).unwrap();
        let readers = Readers::open(root.path(), KEY).unwrap();
        assert_eq!([a, b, c].map(|hash| readers.get(&hash)), [Some(mark(4)), None, Some(mark(3))]);
        assert_eq!(fs::metadata(&path).unwrap().len(), 2 * RECORD as u64, "dead records are gone");
        drop(readers);
        assert_eq!(Readers::open(root.path(), [8; 32]).unwrap().get(&a), None, "another key knows nothing");
    }

    #[test]
    fn dead_records_do_not_pile_up() {
        let root = tempfile::tempdir().unwrap();
        let readers = Readers::open(root.path(), KEY).unwrap();
        let hash = readers.hash(&[b"a"]);
        for n in 0..3 * MIN_DEAD as u64 {
            readers.set(hash, mark(n)).unwrap();
        }
        let length = fs::metadata(root.path().join("grants/readers")).unwrap().len();
        assert!(length <= (MIN_DEAD as u64 + 8) * RECORD as u64, "{length}");
        assert_eq!(readers.get(&hash), Some(mark(3 * MIN_DEAD as u64 - 1)));
    }

    #[test]
    fn past_the_most_marks_the_older_half_goes_and_repositories_last() {
        let left = |repositories: &[u64]| {
            let of_repository = |n: u64| mark(n).of_repository(repositories.contains(&n));
            let mut marks: HashMap<Hash, Mark> = (0..10).map(|n| ([n as u8; 16], of_repository(n))).collect();
            drop_half(&mut marks);
            let mut left: Vec<u64> = marks.values().map(|m| m.when).collect();
            left.sort_unstable();
            left
        };
        assert_eq!(left(&[]), [6, 7, 8, 9]);
        assert_eq!(left(&[0, 1]), [0, 1, 8, 9]);
        assert_eq!(left(&[0, 1, 2, 3, 4, 5, 6, 7]), [4, 5, 6, 7]);
    }
}
