//! How much is kept, and what it stands for.
//!
//! Counts are kept for each directory of blobs and files under its lock, exact to the byte from the moment the
//! directory was first listed; an orderly end notes them in `counters` with each directory's mtime, and a count is
//! taken from there only while that mtime is the directory's.

use super::{Store, StoreError, layout::lock, shards::SHARDS};

/// How much is kept, and what it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Under `blobs/`.
    pub blobs: Count,
    /// Under `files/`.
    pub files: Count,
    /// What would be kept for the published trees and the local repositories' manifests were nothing shared: for each
    /// tree the sizes of its files, of its manifest and of its artifact; for each manifest of a local repository its own
    /// size and those of the blobs it refers to. What is only cached is not in it.
    pub logical: u64,
    /// Bytes kept: `blobs.bytes + files.bytes`.
    pub physical: u64,
}

/// A number of things and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Count {
    /// How many.
    pub count: u64,
    /// Their sizes' sum.
    pub bytes: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.bytes += other.bytes;
    }
}

impl Store {
    /// How much is kept. The first call lists every directory that was not counted yet (about 2 s for a million
    /// blobs); from then on it costs a few microseconds and is exact to the byte.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage::default();
        for index in 0..SHARDS {
            let count = self.0.shards.count(&self.0.layout, index)?;
            if index < 512 { usage.blobs += count } else { usage.files += count }
        }
        let mut logical = lock(&self.0.logical);
        usage.logical = match *logical {
            Some(bytes) => bytes,
            None => *logical.insert(self.tree_bytes()? + self.link_bytes()?),
        };
        usage.physical = usage.blobs.bytes + usage.files.bytes;
        Ok(usage)
    }

    /// Runs `change`, which gives how many bytes stand for more and for less afterwards, so that a first `usage`
    /// counts either before or after it.
    pub(super) fn change_logical<T>(
        &self,
        change: impl FnOnce() -> Result<(T, u64, u64), StoreError>,
    ) -> Result<T, StoreError> {
        let mut logical = lock(&self.0.logical);
        let (value, more, less) = change()?;
        if let Some(bytes) = logical.as_mut() {
            *bytes = bytes.saturating_add(more).saturating_sub(less);
        }
        Ok(value)
    }
}
