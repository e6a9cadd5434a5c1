//! The content-addressed store: every blob once, never a wrong byte.

pub mod blob;
pub mod files;
pub mod ingest;
pub mod lease;
pub mod links;

use std::path::Path;
use std::sync::Arc;

pub use blob::Blob;
pub use ingest::{Durability, Ingest, Scratch};
pub use lease::Lease;

use crate::{class::Class, digest::Digest};

/// A handle on the store; clones share it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {}

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
#[error("todo")]
pub struct StoreError;

impl StoreError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        Class::Disk
    }
}

/// How much is kept, and what it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Under `blobs/`.
    pub blobs: Count,
    /// Under `files/`.
    pub files: Count,
    /// Bytes that the published trees and links stand for, were nothing shared.
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

impl Store {
    /// Opens (or makes) the store at `root` for this process alone. Blocks on the disk. No scan.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let _ = root;
        todo!()
    }

    /// The data directory.
    pub fn root(&self) -> &Path {
        todo!()
    }

    /// The blob, mapped, trusted or re-hashed first; `None` where it is not held (or was bad and is quarantined now).
    /// Blocks on the disk; on the hot path (blob opened before) one `fstat`.
    pub fn get(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let _ = digest;
        todo!()
    }

    /// Begins writing a blob whose digest is known, and its size where known.
    pub fn ingest(&self, digest: Digest, size: Option<u64>) -> Result<Ingest, StoreError> {
        let _ = (digest, size);
        todo!()
    }

    /// Begins writing something whose digest (sha256) will be known at its end.
    pub fn scratch(&self) -> Result<Scratch, StoreError> {
        todo!()
    }

    /// Keeps `digest` from collection until the lease is dropped; it need not be held yet.
    pub fn lease(&self, digest: Digest) -> Lease {
        let _ = digest;
        todo!()
    }
}
