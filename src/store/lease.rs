//! Leases: a value whose life keeps a blob from collection.

use crate::digest::Digest;

/// Keeps one digest from collection while it lives; it may precede the data.
#[must_use]
pub struct Lease {
    digest: Digest,
}

impl Lease {
    /// What is kept.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}
