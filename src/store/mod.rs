//! The content-addressed store: every blob once, never a wrong byte.
//!
//! # Promises
//! - What [`Store::get`] returns had, before this call's return, the bytes of its name: it was hashed, and by size,
//!   inode and ctime is still the file that was hashed; after a power loss it is hashed again unless it was known to
//!   be on the disk. Anything else under that name goes to `quarantine/`, and the answer is `None`: fetch it again.
//!   Out of reach: a writer as mighty as we are who also forges ctime, and a medium that decays in silence; only
//!   [`Store::verify`] finds those.
//! - A blob appears under its name complete or not at all, whenever the process or the machine dies.
//! - Opening reads no directory of blobs, whatever their number.
//! - A collection removes nothing that a root, a link, a pin or a lease names.
//! - What is cached stays within the byte budget, plus one blob at most, and the disk keeps its headroom: the least
//!   recently used goes, but nothing that has no other source and nothing that is named, leased or being sent.
//!
//! # On disk
//! ```text
//! format  lock                      which format; who has it open           (lock.rs)
//! blobs/{sha256,sha512}/ab/<hex>    the blobs, 0444; their names are the only index
//! files/ab/<blake3>[-x]             files shared between trees, 0400/0500   (files.rs)
//! source/<ns>/<name>/<hex>/         published trees                         (trees.rs)
//! links/                            repositories, pins, trees' sizes        (links.rs, mirrored.rs, trees.rs)
//! journal                           which blobs are trusted: a cache        (journal.rs)
//! counters                          what was counted at the last orderly end: a cache
//! spool/                            what is being written; emptied at start
//! scrub                             how far the slow check of everything has come: a cache      (scrub.rs)
//! quarantine/                       what was found wrong, kept 7 days for a look
//! grants/  objects/  rendered/      other modules'
//! ```
//!
//! # Concurrency
//! One process writes (flock on `lock`); others may read with [`Store::open_read_only`]. Within the process everything
//! may be called from any number of threads; all of it blocks on the disk, so from async code only behind
//! `blocking::io`. There is no lock over more than one directory of blobs, and none is held while hashing or syncing.

pub mod blob;
mod error;
pub mod evict;
pub mod files;
pub mod gc;
mod handles;
pub mod ingest;
mod journal;
mod layout;
pub mod lease;
pub mod links;
mod lock;
pub mod mirrored;
mod quota;
mod read;
pub mod scrub;
mod shards;
mod sync;
pub mod trees;
mod usage;
pub mod verify;

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod model;

use std::{
    collections::HashSet,
    fs::File,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
};

pub use blob::Blob;
pub use error::StoreError;
pub use evict::{Bounds, Evicted};
pub use files::PoolFile;
pub use gc::{Collected, UNREFERENCED_FOR};
pub use ingest::{Durability, Ingest, Landing, Scratch, Spool};
pub use lease::Lease;
pub use links::{LocalRepository, ManifestRecord};
pub use lock::Holder;
pub use mirrored::{MirroredLinks, MirroredManifest, MirroredRepository, MirroredTag};
pub use trees::TreeWriter;
pub use usage::{Count, Usage};
pub use verify::{Problem, Progress, Report};

use crate::digest::Digest;
use handles::Handles;
use journal::Journal;
use layout::{Identity, Layout, lock as hold};
use shards::Shards;

/// A handle on the store; clones share it. The store is given back to others when the last one, and the last lease,
/// ingest or tree writer that came from it, is dropped.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    layout: Layout,
    /// The locked file; `None` when opened for reading only.
    lock: Option<Mutex<File>>,
    /// This boot of the machine, never 0.
    boot: u64,
    journal: Journal,
    handles: Handles,
    shards: Shards,
    /// One hashes, others who want the same blob wait for it.
    hashing: Vec<Mutex<()>>,
    pending: Mutex<Pending>,
    pending_bytes: AtomicU64,
    /// Trees' and links' bytes; `None` until somebody asks.
    logical: Mutex<Option<u64>>,
    /// Trees published in this boot.
    tree_serial: AtomicU64,
    settled: Mutex<trees::Settled>,
    /// Temporary trees in use by this process.
    trees: Mutex<HashSet<String>>,
    /// Writers of one repository's links wait for each other.
    links: Vec<Mutex<()>>,
    collection: Mutex<()>,
    eviction: evict::Eviction,
    scrub: scrub::Scrubbing,
    #[cfg(test)]
    clock: AtomicU32,
    /// Whether the file system can share extents: 0 unknown, 1 yes, 2 no.
    reflink: AtomicU8,
    sync_errors: AtomicU64,
    sync_errors_in_a_row: AtomicU32,
    quarantined: AtomicU64,
}

/// Written, but perhaps not on the disk yet.
#[derive(Default)]
struct Pending {
    blobs: Vec<(Digest, Identity)>,
    trees: Vec<String>,
}

/// How the store fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Health {
    /// Three syncs in a row have failed: nothing new should be kept until one succeeds.
    pub degraded: bool,
    /// Syncs that failed since the start.
    pub sync_errors: u64,
    /// Blobs and shared files found wrong, and put aside, since the start.
    pub quarantined: u64,
}

/// Syncs that fail in a row before the store counts as degraded (hardening rules, section 3.6).
const DEGRADED_AFTER: u32 = 3;

impl Store {
    /// Opens (or makes) the store at `root` for this process alone. Blocks on the disk. No scan.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_in_boot(root, this_boot())
    }

    fn open_in_boot(root: &Path, boot: u64) -> Result<Self, StoreError> {
        let layout = Layout::open(root, true)?;
        lock::check_ours(&layout)?;
        layout.make_private();
        let file = lock::acquire(&layout)?;
        // Before anything is written: a newer format's files are not ours to touch.
        lock::check_format(&layout, false)?;
        for name in lock::FOLDERS {
            layout.make_dirs(name).map_err(|e| layout.error("create", name, e))?;
        }
        lock::check_format(&layout, true)?;
        for name in layout.names("spool")? {
            layout.remove_all(&format!("spool/{name}"))?;
        }
        let journal = Journal::open(&layout);
        let store = Self::assemble(layout, Some(Mutex::new(file)), boot, journal);
        if let Ok(Some(bytes)) = store.0.layout.read("counters") {
            store.0.shards.restore(&bytes);
            store.0.layout.remove_file("counters")?;
        }
        Ok(store)
    }

    /// Opens the store at `root` to look at it, whoever else has it open. Takes no lock and writes nothing: what would
    /// have to be put aside is only not returned.
    pub fn open_read_only(root: &Path) -> Result<Self, StoreError> {
        let layout = Layout::open(root, false)?;
        lock::check_format(&layout, false)?;
        let journal = Journal::open_read_only(&layout);
        Ok(Self::assemble(layout, None, this_boot(), journal))
    }

    fn assemble(layout: Layout, lock: Option<Mutex<File>>, boot: u64, journal: Journal) -> Self {
        let settled = Self::read_settled(&layout);
        Self(Arc::new(Inner {
            // A process before this one may have left trees of this boot beyond that; any sync from now on covers them.
            tree_serial: AtomicU64::new(settled.up_to(boot)),
            settled: Mutex::new(settled),
            layout,
            lock,
            boot,
            journal,
            handles: Handles::new(),
            shards: Shards::new(),
            hashing: (0..64).map(|_| Mutex::default()).collect(),
            pending: Mutex::default(),
            pending_bytes: AtomicU64::new(0),
            logical: Mutex::new(None),
            trees: Mutex::default(),
            links: (0..16).map(|_| Mutex::default()).collect(),
            collection: Mutex::default(),
            eviction: evict::Eviction::default(),
            scrub: scrub::Scrubbing::default(),
            #[cfg(test)]
            clock: AtomicU32::new(0),
            reflink: AtomicU8::new(0),
            sync_errors: AtomicU64::new(0),
            sync_errors_in_a_row: AtomicU32::new(0),
            quarantined: AtomicU64::new(0),
        }))
    }

    /// The data directory, absolute.
    pub fn root(&self) -> &Path {
        self.0.layout.root()
    }

    /// Tells other processes (`larder store gc`) at which address this one's admin listener answers.
    pub fn set_admin_address(&self, address: Option<&str>) -> Result<(), StoreError> {
        let Some(file) = &self.0.lock else { return Err(self.read_only()) };
        let holder = Holder { pid: std::process::id(), admin: address.map(str::to_string) };
        holder.write(&hold(file)).map_err(|e| self.0.layout.error("write", "lock", e))
    }

    /// Makes everything written so far survive a power loss, and notes what was counted so that the next process need
    /// not. For an orderly end; the store can be used on, but is not bounded any longer. Without it nothing is lost.
    pub fn close(&self) -> Result<(), StoreError> {
        self.writable()?;
        self.unbind();
        self.note_uses(0);
        self.sync_pending()?;
        let counters = self.0.shards.save(&self.0.layout);
        self.0.layout.write("counters", &counters, false)
    }

    /// Bytes written with [`Durability::Soon`] since the last [`Store::sync_pending`].
    pub fn pending_bytes(&self) -> u64 {
        self.0.pending_bytes.load(Ordering::Relaxed)
    }

    /// Makes what was written with [`Durability::Soon`], and the trees published, survive a power loss: one syncfs.
    /// To be called every 5 s, or 64 MiB of [`Store::pending_bytes`]. Where it fails, none of that batch is trusted
    /// any longer: each blob is hashed again before it is served.
    pub fn sync_pending(&self) -> Result<(), StoreError> {
        let inner = &self.0;
        let pending = std::mem::take(&mut *hold(&inner.pending));
        inner.pending_bytes.store(0, Ordering::Relaxed);
        if pending.blobs.is_empty() && pending.trees.is_empty() {
            return Ok(());
        }
        let last_tree = self.last_tree();
        let synced = rustix::fs::syncfs(inner.layout.dir());
        self.count_sync(synced.is_ok());
        match synced {
            Ok(()) => {
                for (digest, id) in pending.blobs {
                    inner.journal.settle(&inner.layout, &digest, id);
                }
                if !pending.trees.is_empty() {
                    self.settle_trees(last_tree);
                }
                Ok(())
            }
            Err(error) => {
                for (digest, _) in pending.blobs {
                    inner.journal.forget(&inner.layout, &digest);
                    inner.handles.remove(&digest, None);
                }
                for tree in pending.trees {
                    self.distrust_tree(&tree);
                }
                Err(inner.layout.error("sync", ".", error))
            }
        }
    }

    /// How the store fares: what keeps content asks before it keeps more.
    pub fn health(&self) -> Health {
        let inner = &self.0;
        Health {
            degraded: inner.sync_errors_in_a_row.load(Ordering::Relaxed) >= DEGRADED_AFTER,
            sync_errors: inner.sync_errors.load(Ordering::Relaxed),
            quarantined: inner.quarantined.load(Ordering::Relaxed),
        }
    }

    fn count_sync(&self, good: bool) {
        if good {
            self.0.sync_errors_in_a_row.store(0, Ordering::Relaxed);
        } else {
            self.0.sync_errors.fetch_add(1, Ordering::Relaxed);
            self.0.sync_errors_in_a_row.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn add_pending(&self, digest: Digest, id: Identity) {
        hold(&self.0.pending).blobs.push((digest, id));
        self.0.pending_bytes.fetch_add(id.size, Ordering::Relaxed);
    }

    fn read_only(&self) -> StoreError {
        StoreError::OpenedReadOnly { root: self.root().to_path_buf() }
    }

    fn writable(&self) -> Result<(), StoreError> {
        if self.0.lock.is_some() { Ok(()) } else { Err(self.read_only()) }
    }
}

/// Tells this boot of the machine from every other; never 0. Where the kernel does not say, every start counts as one.
fn this_boot() -> u64 {
    let id = std::fs::read("/proc/sys/kernel/random/boot_id");
    let hash = id.map_or_else(
        |_| fastrand::u64(..),
        |id| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&blake3::hash(&id).as_bytes()[..8]);
            u64::from_le_bytes(eight)
        },
    );
    hash | 1
}

#[cfg(test)]
mod tests;
