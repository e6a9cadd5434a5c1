//! Writing blobs: hash while writing, compare, then the name appears.

use super::{Blob, StoreError};
use crate::digest::Hasher;

/// When a blob must survive a power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before `commit` returns: what a status will name (hardening.md section 3, class A).
    Now,
    /// Soon, by a background pass (class B).
    Soon,
}

/// A blob being written under a digest known beforehand. Dropping it leaves nothing.
#[must_use]
pub struct Ingest {}

impl Ingest {
    /// Takes the next bytes. Fails with class Size past `size`.
    pub fn write(&mut self, data: &[u8]) -> Result<(), StoreError> {
        let _ = data;
        todo!()
    }

    /// How many bytes have been taken.
    pub fn offset(&self) -> u64 {
        todo!()
    }

    /// Compares size, then digest; links the name.
    pub fn commit(self, durability: Durability) -> Result<Blob, StoreError> {
        let _ = durability;
        todo!()
    }
}

/// A blob being written whose digest comes at the end. Dropping it leaves nothing.
#[must_use]
pub struct Scratch {
    #[allow(dead_code)]
    hasher: Hasher,
}

impl Scratch {
    /// Takes the next bytes.
    pub fn write(&mut self, data: &[u8]) -> Result<(), StoreError> {
        let _ = data;
        todo!()
    }

    /// Links the blob under its digest.
    pub fn commit(self, durability: Durability) -> Result<Blob, StoreError> {
        let _ = durability;
        todo!()
    }
}
