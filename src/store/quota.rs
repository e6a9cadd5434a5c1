//! Who may add how many bytes to what is cached.
//!
//! Promise: whatever writers run at once, what is kept and what is reserved never exceed the limit by more than the
//! one blob that was admitted last. A reservation is given back only after the blob that it was for has been counted,
//! so no byte is ever missing from the sum; for a moment it may stand there twice.

use super::sync::{Mutex, lock};

/// Bytes promised to writers.
#[derive(Default)]
pub(super) struct Quota {
    reserved: Mutex<u64>,
}

/// How strictly the limit is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admit {
    /// Only what fits.
    Fitting,
    /// Also the one blob that exceeds the limit, if it is not exceeded yet.
    OneOver,
    /// Whatever comes.
    Always,
}

impl Quota {
    /// Reserves `size` bytes under `limit`, where `used` says how many are kept; `false` where there is no room.
    pub fn reserve<E>(
        &self,
        size: u64,
        limit: u64,
        admit: Admit,
        used: impl FnOnce() -> Result<u64, E>,
    ) -> Result<bool, E> {
        let mut reserved = lock(&self.reserved);
        let taken = used()?.saturating_add(*reserved);
        let room = match admit {
            Admit::Fitting => taken.saturating_add(size) <= limit,
            Admit::OneOver => taken <= limit,
            Admit::Always => true,
        };
        if room {
            *reserved += size;
        }
        Ok(room)
    }

    /// Gives a reservation back: the blob is counted by now, or will not come.
    pub fn release(&self, size: u64) {
        let mut reserved = lock(&self.reserved);
        *reserved = reserved.saturating_sub(size);
    }

    /// What is kept and promised.
    pub fn taken<E>(&self, used: impl FnOnce() -> Result<u64, E>) -> Result<u64, E> {
        let reserved = lock(&self.reserved);
        Ok(used()?.saturating_add(*reserved))
    }
}
