//! Room for a writer: within the bounds before it begins, and on a disk that turns out to be full.

use std::time::Instant;

use super::{HEADROOM_BYTES, LEAST, LEAST_FILES, Lack, MAX_BYTES, Queue, Why, pause_after};
use crate::store::{Store, StoreError, layout::lock, quota::Admit};

/// Bytes set aside for a writer; given back when dropped.
pub(in crate::store) struct Room {
    store: Store,
    size: u64,
    /// What it is for is larger than the whole budget.
    giant: bool,
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.size > 0 {
            self.store.0.eviction.quota.release(self.size);
        }
        if self.giant {
            // It goes before those that are remembered.
            *lock(&self.store.0.eviction.queue) = Queue::default();
        }
    }
}

impl Room {
    /// Sets aside `size` bytes more, evicting others where that is needed.
    pub fn grow(&mut self, size: u64) -> Result<(), StoreError> {
        self.take(size, Admit::OneOver)
    }

    fn take(&mut self, size: u64, admit: Admit) -> Result<(), StoreError> {
        let store = self.store.clone();
        let Some(limits) = store.limits() else { return Ok(()) };
        let no_room =
            |setting, limit| Err(StoreError::NoRoom { setting, limit, size, root: store.root().to_path_buf() });
        if let Some(max) = limits.max {
            let quota = &store.0.eviction.quota;
            let used = || store.cached_bytes();
            if !quota.reserve(size, max, Admit::Fitting, used)? {
                // What can never fit is not worth emptying the cache for.
                store.evict_over_budget(&limits, max, if size > max { 0 } else { size })?;
                if !quota.reserve(size, max, admit, used)? {
                    return no_room(MAX_BYTES, max);
                }
            }
            self.size += size;
            self.giant |= self.size > max;
        }
        if store.evict_for_headroom(&limits, size)? > 0 && admit != Admit::Always {
            return no_room(HEADROOM_BYTES, limits.headroom);
        }
        Ok(())
    }
}

impl Store {
    /// Sets aside `size` bytes for a writer.
    pub(in crate::store) fn reserve(&self, size: u64, admit: Admit) -> Result<Room, StoreError> {
        let mut room = Room { store: self.clone(), size: 0, giant: false };
        room.take(size, admit)?;
        Ok(room)
    }

    /// Runs `write`; where the disk is full, makes room for `size` bytes and runs it once more.
    pub(in crate::store) fn with_room<T>(
        &self,
        size: u64,
        mut write: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match write() {
            Err(StoreError::Full { .. }) if self.make_room(size) => write(),
            other => other,
        }
    }

    /// The disk is full: whether there is more room now.
    pub(in crate::store) fn make_room(&self, size: u64) -> bool {
        let made = || -> Result<bool, StoreError> {
            let cleared = self.clear_unused()?;
            let Some(limits) = self.limits() else { return Ok(cleared > 0) };
            let evicted = self.evict(&limits, Why::Full, || {
                let disk = self.disk()?;
                let bytes = match size.checked_sub(disk.free) {
                    // It would not fit even then.
                    Some(missing) if missing > self.evictable_bytes(&limits)? => 0,
                    Some(missing) => missing.max(LEAST),
                    // There would have been room: a quota, or holes too small.
                    None => size.max(LEAST),
                };
                Ok(if disk.no_inodes { Lack { bytes: 0, files: LEAST_FILES } } else { Lack { bytes, files: 0 } })
            })?;
            Ok(cleared > 0 || evicted.blobs > 0)
        };
        made().unwrap_or_else(|error| {
            tracing::warn!(%error, "the disk is full, and no room can be made");
            false
        })
    }

    /// Removes what nobody would miss: what was put aside for a look, and shared files that no tree links to; bytes.
    pub(super) fn clear_unused(&self) -> Result<u64, StoreError> {
        let cleared = self.clear_quarantine(0, 0)?;
        let mut not_before = lock(&self.0.eviction.files_not_before);
        let start = Instant::now();
        if not_before.is_some_and(|at| start < at) {
            return Ok(cleared);
        }
        let files = self.collect_unused_files()?.bytes;
        *not_before = pause_after(start.elapsed()).map(|pause| Instant::now() + pause);
        Ok(cleared + files)
    }

    pub(super) fn disk(&self) -> Result<Disk, StoreError> {
        let error = |e| self.0.layout.error("look at the file system of", ".", e);
        let stat = rustix::fs::fstatvfs(self.0.layout.dir()).map_err(error)?;
        Ok(Disk {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            no_inodes: stat.f_files > 0 && stat.f_favail == 0,
        })
    }
}

/// The file system's own figures.
pub(super) struct Disk {
    pub total: u64,
    pub free: u64,
    no_inodes: bool,
}
