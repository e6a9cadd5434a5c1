//! Which files have been hashed, and found right, as they are now: a cache of trust.
//!
//! Promise: a lookup costs one `pread` of 4 KiB whatever the number of blobs, and no memory. Losing the file, or
//! finding any part of it torn, costs re-hashing, never content; so nothing here is ever synced, and no failure to
//! write here fails anything else.
//!
//! Format of `journal`: a page of header (`larder-j`, version, log2 of the number of buckets, crc32), then buckets
//! of 4 KiB, each 64 slots of 64 bytes. A digest's bucket is its leading bits. A slot, little endian:
//! `digest's first 20 bytes | algorithm (0: empty) | 3 zero | size u64 | inode u64 | ctime ns i64 | boot u64 |
//! last used or referenced u32 (seconds since 1970) | crc32 of the former`. `boot` is 0 where the content is known to be on
//! the disk, else it tells the boot in which it was written: after another boot it may be lost or torn. When a bucket
//! is full the table doubles: each bucket splits into two, streamed to a new file that takes the old one's name.
//! In the largest table a full bucket forgets a slot instead.
//!
//! Concurrency: readers share, writers exclude each other; only one process writes (the store's lock), others may
//! read and at worst see a torn slot.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{PoisonError, RwLock},
};

use rustix::fs::{Mode, OFlags};

use super::layout::{Identity, Layout};
use crate::digest::{Algorithm, Digest};

const PAGE: usize = 4096;
const SLOT: usize = 64;
const MAGIC: &[u8; 8] = b"larder-j";
const VERSION: u32 = 1;
/// 16 KiB to begin with: a store on a few MiB must not spend them here.
const FIRST_BITS: u32 = 2;
/// 4 Mi slots, 256 MiB of file: several times the largest store planned for.
const MAX_BITS: u32 = 16;

/// What is known of a file under a digest's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The file that was hashed; `size`, `ino` and `ctime` all zero where none was.
    pub id: Identity,
    /// 0: on the disk for sure; else the boot in which it was written or hashed.
    pub boot: u64,
    /// When it was last used, or found referenced by a collection, in seconds since 1970; 0 for never.
    pub seen: u32,
}

/// The journal; without a file it remembers nothing.
pub(super) struct Journal(RwLock<Option<Table>>);

struct Table {
    file: File,
    bits: u32,
}

type Page = [u8; PAGE];

/// The page that was read last.
pub(super) struct LastPage {
    /// The width of the table that it was of, and its bucket.
    at: Option<(u32, u64)>,
    page: Page,
}

impl LastPage {
    pub fn none() -> Self {
        Self { at: None, page: [0; PAGE] }
    }
}

fn key(digest: &Digest) -> [u8; 21] {
    let mut key = [0; 21];
    key[..20].copy_from_slice(&digest.bytes()[..20]);
    key[20] = match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    };
    key
}

/// The bucket of a key: its leading bits.
fn bucket(key: &[u8], bits: u32) -> u64 {
    u64::from(u32::from_be_bytes([key[0], key[1], key[2], key[3]]) >> (32 - bits))
}

fn encode(key: &[u8; 21], record: &Record) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    slot[..21].copy_from_slice(key);
    slot[24..32].copy_from_slice(&record.id.size.to_le_bytes());
    slot[32..40].copy_from_slice(&record.id.ino.to_le_bytes());
    slot[40..48].copy_from_slice(&record.id.ctime.to_le_bytes());
    slot[48..56].copy_from_slice(&record.boot.to_le_bytes());
    slot[56..60].copy_from_slice(&record.seen.to_le_bytes());
    let crc = crc32fast::hash(&slot[..60]);
    slot[60..].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn eight(slot: &[u8], at: usize) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&slot[at..at + 8]);
    bytes
}

fn four(slot: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([slot[at], slot[at + 1], slot[at + 2], slot[at + 3]])
}

/// Whether the slot holds a record; an empty or torn one does not.
fn valid(slot: &[u8]) -> bool {
    slot[20] != 0 && crc32fast::hash(&slot[..60]) == four(slot, 60)
}

fn decode(slot: &[u8]) -> Record {
    Record {
        id: Identity {
            size: u64::from_le_bytes(eight(slot, 24)),
            ino: u64::from_le_bytes(eight(slot, 32)),
            ctime: i64::from_le_bytes(eight(slot, 40)),
        },
        boot: u64::from_le_bytes(eight(slot, 48)),
        seen: four(slot, 56),
    }
}

impl Table {
    fn create(layout: &Layout, name: &str, bits: u32) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC;
        let file = layout.open_at(name, flags, Mode::RUSR | Mode::WUSR)?;
        let mut header = [0; SLOT];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&bits.to_le_bytes());
        let crc = crc32fast::hash(&header[..16]);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&header, 0)?;
        file.set_len((PAGE as u64) * ((1 << bits) + 1))?;
        Ok(Self { file, bits })
    }

    fn open(file: File) -> Option<Self> {
        let mut header = [0; SLOT];
        file.read_exact_at(&mut header, 0).ok()?;
        let bits = four(&header, 12);
        let good = header[..8] == *MAGIC
            && four(&header, 8) == VERSION
            && four(&header, 16) == crc32fast::hash(&header[..16])
            && (FIRST_BITS..=MAX_BITS).contains(&bits)
            && file.metadata().ok()?.len() == (PAGE as u64) * ((1 << bits) + 1);
        good.then_some(Self { file, bits })
    }

    fn offset(bucket: u64) -> u64 {
        (bucket + 1) * PAGE as u64
    }

    fn page(&self, bucket: u64) -> io::Result<Page> {
        let mut page = [0; PAGE];
        self.file.read_exact_at(&mut page, Self::offset(bucket))?;
        Ok(page)
    }

    /// Twice the buckets under a new file, which then takes the name.
    fn grown(&self, layout: &Layout) -> io::Result<Self> {
        let wider = Self::create(layout, "journal.new", self.bits + 1)?;
        for old in 0..1u64 << self.bits {
            let page = self.page(old)?;
            let mut halves = [[0; PAGE]; 2];
            let mut used = [0; 2];
            for slot in page.chunks_exact(SLOT).filter(|slot| valid(slot)) {
                let half = usize::from(bucket(slot, wider.bits) & 1 == 1);
                halves[half][used[half]..used[half] + SLOT].copy_from_slice(slot);
                used[half] += SLOT;
            }
            for half in 0..2 {
                if used[half] > 0 {
                    let offset = Self::offset(old * 2 + half as u64);
                    wider.file.write_all_at(&halves[half][..used[half]], offset)?;
                }
            }
        }
        layout.rename("journal.new", "journal")?;
        Ok(wider)
    }
}

impl Journal {
    /// Opens `journal`, or begins a new one where it is missing or torn.
    pub fn open(layout: &Layout) -> Self {
        let _ = layout.remove_file("journal.new");
        let held = layout.open_at("journal", OFlags::RDWR, Mode::empty()).ok().and_then(Table::open);
        let table = held.or_else(|| {
            let _ = layout.remove_all("journal");
            Table::create(layout, "journal", FIRST_BITS)
                .inspect_err(|error| tracing::warn!(%error, "no journal: blobs are hashed again after each start"))
                .ok()
        });
        Self(RwLock::new(table))
    }

    /// Opens what there is for lookups only.
    pub fn open_read_only(layout: &Layout) -> Self {
        Self(RwLock::new(layout.open_at("journal", OFlags::RDONLY, Mode::empty()).ok().and_then(Table::open)))
    }

    /// What is known of a digest's file.
    pub fn lookup(&self, digest: &Digest) -> Option<Record> {
        let key = key(digest);
        let guard = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let table = guard.as_ref()?;
        let page = table.page(bucket(&key, table.bits)).ok()?;
        page.chunks_exact(SLOT).find(|slot| slot[..21] == key && valid(slot)).map(decode)
    }

    /// [`Journal::lookup`] for many digests in ascending order: neighbours share a page.
    pub fn lookup_next(&self, last: &mut LastPage, digest: &Digest) -> Option<Record> {
        let key = key(digest);
        let guard = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let table = guard.as_ref()?;
        let at = (table.bits, bucket(&key, table.bits));
        if last.at != Some(at) {
            last.at = None;
            last.page = table.page(at.1).ok()?;
            last.at = Some(at);
        }
        last.page.chunks_exact(SLOT).find(|slot| slot[..21] == key && valid(slot)).map(decode)
    }

    /// Changes what is known of a digest's file; `None` forgets it.
    pub fn update(&self, layout: &Layout, digest: &Digest, change: impl FnOnce(Option<Record>) -> Option<Record>) {
        let key = key(digest);
        let mut guard = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(table) = guard.as_mut() else { return };
        let result = (|| -> io::Result<()> {
            let mut page = table.page(bucket(&key, table.bits))?;
            let held = page.chunks_exact(SLOT).position(|slot| slot[..21] == key && valid(slot));
            let old = held.map(|i| decode(&page[i * SLOT..][..SLOT]));
            let new = change(old);
            if new == old {
                return Ok(());
            }
            let mut at = held;
            let bytes = match &new {
                Some(record) => encode(&key, record),
                None => [0; SLOT],
            };
            while at.is_none() && new.is_some() {
                at = page.chunks_exact(SLOT).position(|slot| !valid(slot));
                if at.is_none() {
                    if table.bits == MAX_BITS {
                        at = Some(usize::from(key[19]) % (PAGE / SLOT));
                    } else {
                        *table = table.grown(layout)?;
                        page = table.page(bucket(&key, table.bits))?;
                    }
                }
            }
            match at {
                Some(i) => table.file.write_all_at(&bytes, Table::offset(bucket(&key, table.bits)) + (i * SLOT) as u64),
                None => Ok(()),
            }
        })();
        if let Err(error) = result {
            tracing::debug!(%digest, %error, "a blob's trust could not be noted: it is hashed again when next opened");
        }
    }

    /// The content under this name was found right, as the file `id`; `boot` 0 when it is known to be on the disk.
    pub fn trust(&self, layout: &Layout, digest: &Digest, id: Identity, boot: u64) {
        self.update(layout, digest, |old| Some(Record { id, boot, seen: old.map_or(0, |o| o.seen) }));
    }

    /// What is on the disk now for sure, if it is still the file `id`.
    pub fn settle(&self, layout: &Layout, digest: &Digest, id: Identity) {
        self.update(layout, digest, |old| old.map(|o| if o.id == id { Record { boot: 0, ..o } } else { o }));
    }

    /// Forgets a digest.
    pub fn forget(&self, layout: &Layout, digest: &Digest) {
        self.update(layout, digest, |_| None);
    }

    /// The digest was used, or a collection found it referenced, at `now` in seconds since 1970.
    pub fn touch(&self, layout: &Layout, digest: &Digest, now: u32) {
        let nothing = Record { id: Identity { size: 0, ino: 0, ctime: 0 }, boot: 1, seen: 0 };
        self.update(layout, digest, |old| {
            let old = old.unwrap_or(nothing);
            Some(Record { seen: old.seen.max(now), ..old })
        });
    }

    /// The digest was used at `now`; nothing where nothing else is known of it.
    pub fn used(&self, layout: &Layout, digest: &Digest, now: u32) {
        self.update(layout, digest, |old| old.map(|o| Record { seen: o.seen.max(now), ..o }));
    }

    /// Whatever is said of the digest's file no longer holds; when it was last used does.
    pub fn distrust(&self, layout: &Layout, digest: &Digest) {
        let nothing = Identity { size: 0, ino: 0, ctime: 0 };
        self.update(layout, digest, |old| old.map(|o| Record { id: nothing, boot: 1, seen: o.seen }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> Identity {
        Identity { size: n, ino: n + 1, ctime: n as i64 + 2 }
    }

    fn digest(n: u64) -> Digest {
        let algorithm = if n.is_multiple_of(3) { Algorithm::Sha512 } else { Algorithm::Sha256 };
        Digest::of(algorithm, &n.to_le_bytes())
    }

    #[test]
    fn remembers_through_growth_and_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path(), true).unwrap();
        let journal = Journal::open(&layout);
        for n in 0..5000 {
            journal.trust(&layout, &digest(n), id(n), 7);
        }
        let mut sorted: Vec<_> = (0..5000).map(digest).collect();
        sorted.sort();
        let mut last = LastPage::none();
        for digest in sorted {
            assert_eq!(journal.lookup_next(&mut last, &digest), journal.lookup(&digest));
        }
        for n in 0..5000 {
            match n % 4 {
                0 => journal.forget(&layout, &digest(n)),
                1 => journal.settle(&layout, &digest(n), id(n)),
                2 => journal.settle(&layout, &digest(n), id(n + 1)),
                _ => journal.touch(&layout, &digest(n), 9),
            }
        }
        for journal in [journal, Journal::open_read_only(&layout), Journal::open(&layout)] {
            for n in 0..5000 {
                let expected = match n % 4 {
                    0 => None,
                    1 => Some(Record { id: id(n), boot: 0, seen: 0 }),
                    2 => Some(Record { id: id(n), boot: 7, seen: 0 }),
                    _ => Some(Record { id: id(n), boot: 7, seen: 9 }),
                };
                assert_eq!(journal.lookup(&digest(n)), expected, "{n}");
            }
        }
        assert!(!dir.path().join("journal.new").exists());
    }

    #[test]
    fn a_torn_slot_is_no_record_and_a_torn_header_is_no_journal() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path(), true).unwrap();
        let journal = Journal::open(&layout);
        journal.trust(&layout, &digest(1), id(1), 7);
        let path = dir.path().join("journal");
        let good = std::fs::read(&path).unwrap();
        let used: Vec<usize> = (SLOT..good.len()).filter(|i| good[*i] != 0).collect();
        assert!(used.len() > 20);
        for i in used {
            let mut torn = good.clone();
            torn[i] ^= 1;
            std::fs::write(&path, &torn).unwrap();
            assert_eq!(Journal::open(&layout).lookup(&digest(1)), None, "byte {i}");
        }
        for i in 0..20 {
            let mut torn = good.clone();
            torn[i] ^= 1;
            std::fs::write(&path, &torn).unwrap();
            assert_eq!(Journal::open(&layout).lookup(&digest(1)), None, "byte {i}");
        }
        for length in [0, 63, 64, good.len() - 1] {
            std::fs::write(&path, &good[..length]).unwrap();
            let journal = Journal::open(&layout);
            assert_eq!(journal.lookup(&digest(1)), None, "length {length}");
            journal.trust(&layout, &digest(1), id(1), 7);
            assert!(journal.lookup(&digest(1)).is_some());
        }
    }

    #[test]
    fn a_full_bucket_of_the_largest_table_forgets_instead_of_failing() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::open(dir.path(), true).unwrap();
        drop(Table::create(&layout, "journal", MAX_BITS).unwrap());
        let journal = Journal::open(&layout);
        let crowd: Vec<Digest> = (0..200u8)
            .map(|n| {
                let mut hash = [0; 32];
                hash[10] = n;
                hash[19] = n;
                Digest::from_bytes(Algorithm::Sha256, &hash).unwrap()
            })
            .collect();
        for (n, digest) in crowd.iter().enumerate() {
            journal.trust(&layout, digest, id(n as u64), 7);
            assert_eq!(journal.lookup(digest).map(|r| r.id), Some(id(n as u64)));
        }
        assert_eq!(crowd.iter().filter(|d| journal.lookup(d).is_some()).count(), 64);
    }
}
