//! The slow check of everything: each blob and shared file is read and hashed again about once a week.
//!
//! Promise: what [`Store::scrub`] passes over has the bytes of its name, or is put aside; the next to ask for it is
//! answered as if it were not held, and it is fetched again. What was pushed here cannot be fetched again: that is said
//! loudly. Read at the pace of the caller, without moving others' pages out of the page cache: what was not there
//! before is dropped from it again. A page that is in the page cache is read from there, so decay of the medium under
//! it is found only when it has left. May run beside everything else; only one scrub runs at a time.
//!
//! `scrub` (JSON) holds when each of the 768 directories was last passed, in seconds since 1970, and the last name passed
//! in the one under way, which is the one that waits longest. It is a cache: where it is lost, all is checked again.

use std::{fs::File, io, num::NonZeroU64, ops::ControlFlow, os::unix::fs::FileExt as _, sync::Mutex, time::Duration};

use rustix::fs::Advice;
use serde::{Deserialize, Serialize};

use super::{
    Store, StoreError,
    blob::is_resident,
    layout::{Identity, blob_named, is_file, lock, times},
    shards::{SHARDS, blob_shard, directory},
    verify::shared_named,
};
use crate::{
    digest::{Digest, Hasher},
    metrics,
};

/// A directory is passed again when its last pass began so long ago; a pass over all may then take a day, so that no
/// byte waits for more than a week.
const AGAIN_AFTER: Duration = Duration::from_secs(6 * 24 * 60 * 60);
const FILE: &str = "scrub";
/// So much is read between two looks at the pace and at the page cache.
const CHUNK: usize = 256 << 10;
/// How far it has come is written down whenever so much has been read.
const NOTE_EVERY: u64 = 256 << 20;

/// How far the check has come; `None` until it is asked for.
#[derive(Default)]
pub(super) struct Scrubbing(Mutex<Option<State>>);

#[derive(Serialize, Deserialize)]
struct State {
    /// When the last pass over each directory began.
    checked: Vec<u32>,
    /// The last name passed in the directory whose turn it is.
    at: Option<String>,
}

/// What a scrub found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Blobs and files read.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them are not what their names say.
    pub bad: u64,
    /// Whether all that was due is done.
    pub done: bool,
}

/// Says, after so many bytes were read, whether to go on; waits as long as the pace wants.
pub type Pace<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

enum Checked {
    Right,
    Wrong,
    Stopped,
}

impl Store {
    /// Checks every directory that is due, the one that waits longest first, until `pace` ends it.
    pub fn scrub(&self, pace: Pace<'_>) -> Result<Scrubbed, StoreError> {
        self.writable()?;
        let mut state = lock(&self.0.scrub.0);
        let state = state.get_or_insert_with(|| self.read_scrub());
        let mut sum = Scrubbed::default();
        loop {
            let now = self.now();
            let Some((index, since)) = state.next() else { return Ok(sum) };
            metrics::scrub_oldest(u64::from(now.saturating_sub(since.max(self.born()))));
            if u64::from(now.saturating_sub(since)) < AGAIN_AFTER.as_secs() {
                sum.done = true;
                return Ok(sum);
            }
            let before = sum.bytes;
            if self.scrub_directory(index, state, &mut sum, pace)?.is_break() {
                self.write_scrub(state);
                return Ok(sum);
            }
            state.checked[index] = now;
            state.at = None;
            // Not for every empty directory; after the last one in any case.
            let due = state.next().is_some_and(|(_, s)| u64::from(now.saturating_sub(s)) >= AGAIN_AFTER.as_secs());
            if sum.bytes > before || !due {
                self.write_scrub(state);
            }
        }
    }

    fn scrub_directory(
        &self,
        index: usize,
        state: &mut State,
        sum: &mut Scrubbed,
        pace: Pace<'_>,
    ) -> Result<ControlFlow<()>, StoreError> {
        let mut names = self.0.layout.names(&directory(index))?;
        names.sort_unstable();
        let mut unnoted = 0;
        for name in names {
            if state.at.as_ref().is_some_and(|at| name <= *at) {
                continue;
            }
            let mut read = 0;
            let checked = self.scrub_one(index, &name, &mut |bytes| {
                read += bytes;
                pace(bytes)
            })?;
            sum.bytes += read;
            let bad = match checked {
                None => continue,
                Some(Checked::Stopped) => {
                    metrics::scrubbed(read, 0);
                    return Ok(ControlFlow::Break(()));
                }
                Some(Checked::Right) => 0,
                Some(Checked::Wrong) => 1,
            };
            sum.files += 1;
            sum.bad += bad;
            metrics::scrubbed(read, bad);
            state.at = Some(name);
            unnoted += read;
            if unnoted >= NOTE_EVERY {
                unnoted = 0;
                self.write_scrub(state);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Checks one file; `None` for what is gone meanwhile or is none of ours.
    fn scrub_one(&self, index: usize, name: &str, pace: Pace<'_>) -> Result<Option<Checked>, StoreError> {
        let path = format!("{}/{name}", directory(index));
        let Ok(Some(file)) = self.0.layout.open_file(&path) else { return Ok(None) };
        let stat = rustix::fs::fstat(&file).map_err(|e| self.0.layout.error("look at", &path, e))?;
        if !is_file(&stat) {
            // The read path and `verify` see to those.
            return Ok(None);
        }
        let first = (index % 256) as u8;
        let blob = (index < 512).then(|| blob_named(blob_shard(index).0, first, name)).flatten();
        let mut hasher = match blob {
            Some(digest) => Sum::Blob(Box::new(Hasher::new(digest.algorithm())), digest),
            None => match shared_named(first, name) {
                Some(hash) if index >= 512 => Sum::Shared(Box::default(), hash),
                _ => return Ok(None),
            },
        };
        let why = match read_quietly(&file, pace, &mut |data| hasher.update(data)) {
            Ok(ControlFlow::Break(())) => return Ok(Some(Checked::Stopped)),
            Ok(ControlFlow::Continue(size)) => match hasher.finish() {
                None => return Ok(Some(Checked::Right)),
                Some(actual) => format!("its {size} bytes hash to {actual}"),
            },
            Err(error) => format!("cannot be read: {error}"),
        };
        let ino = Identity::from_stat(&stat).ino;
        match blob {
            Some(digest) => {
                let local = self.is_local(&digest)?;
                self.quarantine_blob(&digest, ino, &why);
                if local {
                    tracing::error!(%digest, why, "pushed content is damaged, and there is no other source: push it again");
                }
            }
            None => {
                let mut shard = self.0.shards.of_file(first);
                if self.quarantine(&path, name, ino, &why) {
                    shard.count = None;
                }
            }
        }
        Ok(Some(Checked::Wrong))
    }

    /// When the store was made: nothing in it is older.
    fn born(&self) -> u32 {
        let stat = self.0.layout.stat("format").ok().flatten();
        stat.map_or(0, |stat| u32::try_from(times(&stat).0).unwrap_or(u32::MAX))
    }

    fn read_scrub(&self) -> State {
        let bytes = self.0.layout.read(FILE).ok().flatten();
        let state = bytes.and_then(|bytes| serde_json::from_slice::<State>(&bytes).ok());
        state
            .filter(|state| state.checked.len() == SHARDS)
            .unwrap_or_else(|| State { checked: vec![0; SHARDS], at: None })
    }

    fn write_scrub(&self, state: &State) {
        let written = serde_json::to_vec(state).map_err(|e| self.0.layout.error("write", FILE, io::Error::from(e)));
        if let Err(error) = written.and_then(|text| self.0.layout.write(FILE, &text, false)) {
            tracing::debug!(%error, "how far the check has come could not be noted: after a restart some is checked again");
        }
    }
}

impl State {
    /// The directory whose turn it is, and when it had its last.
    fn next(&self) -> Option<(usize, u32)> {
        self.checked.iter().copied().enumerate().min_by_key(|(_, since)| *since)
    }
}

/// What a file's bytes should hash to.
enum Sum {
    Blob(Box<Hasher>, Digest),
    Shared(Box<blake3::Hasher>, blake3::Hash),
}

impl Sum {
    fn update(&mut self, data: &[u8]) {
        match self {
            Self::Blob(hasher, _) => hasher.update(data),
            Self::Shared(hasher, _) => {
                hasher.update(data);
            }
        }
    }

    /// What they hash to instead.
    fn finish(self) -> Option<String> {
        match self {
            Self::Blob(hasher, named) => Some(hasher.finish()).filter(|actual| *actual != named).map(|d| d.to_string()),
            Self::Shared(hasher, named) => {
                Some(hasher.finalize()).filter(|actual| *actual != named).map(|h| h.to_hex().to_string())
            }
        }
    }
}

/// Reads a file to its end, and leaves the page cache as it was; how many bytes there were.
fn read_quietly(file: &File, pace: Pace<'_>, sink: &mut dyn FnMut(&[u8])) -> io::Result<ControlFlow<(), u64>> {
    // Else the kernel reads ahead, past what is dropped again.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::Random);
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let resident = is_resident(file, at..at + 1);
        let read = match file.read_at(&mut buffer, at) {
            Ok(0) => return Ok(ControlFlow::Continue(at)),
            Ok(read) => read as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if !resident {
            let _ = rustix::fs::fadvise(file, at, NonZeroU64::new(read), Advice::DontNeed);
        }
        sink(&buffer[..read as usize]);
        at += read;
        if pace(read).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        Durability,
        tests::{damage, store},
    };
    use std::path::Path;

    const START: u32 = 2_000_000_000;
    const DAY: u32 = 24 * 60 * 60;

    fn on(_: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn at(store: &Store, now: u32) {
        store.0.clock.store(now, std::sync::atomic::Ordering::Relaxed);
    }

    fn put(store: &Store, content: &[u8]) -> Digest {
        store.put(Digest::sha256(content), content, Durability::Soon).unwrap().digest()
    }

    #[test]
    fn what_decayed_in_silence_is_put_aside_and_the_rest_is_left() {
        let (root, store) = store();
        at(&store, START);
        let (good, bad) = (put(&store, &[1; 300_000]), put(&store, &[2; 300_000]));
        let tree = store.begin_tree("default", "app", "ab").unwrap();
        store.link_file(b"shared", false, tree.contents(), Path::new("f")).unwrap();
        let shared = store.usage().unwrap().files;
        damage(&root.path().join(crate::store::layout::blob_path(&bad)), |bytes| bytes[299_999] ^= 1);
        let found = store.scrub(&mut on).unwrap();
        let all = Scrubbed { files: 2 + shared.count, bytes: 600_000 + shared.bytes, bad: 1, done: true };
        assert_eq!(found, all);
        assert_eq!(store.health().quarantined, 1);
        assert!(store.get(&bad).unwrap().is_none());
        assert!(store.get(&good).unwrap().is_some());
        assert_eq!(store.usage().unwrap().blobs.count, 1);
        // All was passed: nothing is due for six days.
        at(&store, START + 6 * DAY - 1);
        assert_eq!(store.scrub(&mut on).unwrap(), Scrubbed { done: true, ..Scrubbed::default() });
        at(&store, START + 6 * DAY);
        assert_eq!(store.scrub(&mut on).unwrap().files, 1 + shared.count);
    }

    #[test]
    fn a_check_that_is_stopped_goes_on_where_it_was_also_in_the_next_process() {
        let (root, mut store) = store();
        for n in 0..20u8 {
            put(&store, &[n; 1000]);
        }
        let (mut files, mut rounds) = (0, 0);
        loop {
            at(&store, START + rounds);
            let mut left = 3;
            let found = store.scrub(&mut |_| {
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            let found = found.unwrap();
            files += found.files;
            rounds += 1;
            if found.done {
                break;
            }
            // The third was read, but the pace ended it before it was compared.
            assert_eq!(found.files, 2);
            drop(store);
            store = Store::open(root.path()).unwrap();
        }
        assert_eq!((files, rounds), (20, 10));
    }

    #[test]
    fn a_lost_or_torn_note_costs_checking_again_and_nothing_else() {
        let (root, store) = store();
        at(&store, START);
        put(&store, b"x");
        assert_eq!(store.scrub(&mut on).unwrap().files, 1);
        drop(store);
        for torn in [&b""[..], b"{", br#"{"checked":[1,2],"at":null}"#] {
            std::fs::write(root.path().join(FILE), torn).unwrap();
            let store = Store::open(root.path()).unwrap();
            at(&store, START);
            assert_eq!(store.scrub(&mut on).unwrap().files, 1);
        }
    }

    #[test]
    fn pages_that_were_not_in_memory_are_not_afterwards() {
        let root = tempfile::tempdir().unwrap();
        let file = File::create_new(root.path().join("f")).unwrap();
        file.write_all_at(&vec![7; 2 << 20], 0).unwrap();
        file.sync_all().unwrap();
        let file = File::open(root.path().join("f")).unwrap();
        // Looking for a page makes the kernel read ahead otherwise.
        rustix::fs::fadvise(&file, 0, None, Advice::Random).unwrap();
        let size = ControlFlow::Continue(2 << 20);
        // The kernel takes it for advice: beside other work it keeps a page now and then.
        let mut gone = false;
        for _ in 0..20 {
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
            if is_resident(&file, 0..2 << 20) {
                eprintln!("this file system keeps its files in memory");
                return;
            }
            assert_eq!(read_quietly(&file, &mut on, &mut |_| {}).unwrap(), size);
            gone |= !is_resident(&file, 0..1) && !is_resident(&file, (1 << 20)..(1 << 20) + 1);
        }
        assert!(gone);
        let mut buffer = vec![0; 2 << 20];
        file.read_exact_at(&mut buffer, 0).unwrap();
        assert_eq!(read_quietly(&file, &mut on, &mut |_| {}).unwrap(), size);
        assert!(is_resident(&file, 0..2 << 20));
    }
}
