//! Leases: a value whose life keeps a blob from collection.
//!
//! Promise: from the moment a lease is taken until it is dropped, a collection removes no blob of that digest; what it
//! had removed before is seen as absent by the next `Store::get`. A lease that ends while a collection is under way
//! counts until that collection ends, so there is no gap between a lease and the status or link that follows it.
//! Leases live in memory only: nothing remains of them after a crash.

use super::Store;
use crate::digest::Digest;

/// Keeps one digest from collection while it lives; it may precede the data.
#[must_use]
pub struct Lease {
    store: Store,
    digest: Digest,
}

impl Store {
    /// Keeps `digest` from collection until the lease is dropped; it need not be held yet.
    pub fn lease(&self, digest: Digest) -> Lease {
        self.0.shards.lease(&digest);
        Lease { store: self.clone(), digest }
    }
}

impl Lease {
    /// What is kept.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        self.store.lease(self.digest)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.store.0.shards.release(&self.digest);
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease({})", self.digest)
    }
}
