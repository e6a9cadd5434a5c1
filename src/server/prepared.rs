//! What the server keeps with an open blob: headers that depend on the blob alone, and what it lately found of the
//! blob in the page cache. It goes when the blob is closed.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use http::HeaderMap;

use crate::store::Blob;

/// How much of a blob is handed to a connection at a time, in bytes. Large enough that the bookkeeping of a window
/// disappears beside copying it into the socket; small enough that a cold one is read in a few milliseconds.
pub(super) const WINDOW: u64 = 1 << 20;

/// For how many seconds a window that was found in the page cache is taken to be there still. Looking costs up to 17
/// system calls a window, more than all else that a request of 64 KiB costs; and a page that goes in between delays
/// one worker once.
const TRUSTED_SECONDS: u32 = 1;

/// Kept with an open blob.
pub(super) struct Prepared {
    /// Of a 200 on the artifact listener.
    pub artifact: OnceLock<HeaderMap>,
    /// Of a 200 for a blob of a repository.
    pub blob: OnceLock<HeaderMap>,
    /// Of a 200 for a manifest named by its digest, and the media type it has there.
    pub manifest: OnceLock<(Box<[u8]>, HeaderMap)>,
    /// For each window when it was last found in the page cache whole: seconds of [`now`], 0 for never.
    resident: Box<[AtomicU32]>,
}

impl Prepared {
    /// What is kept with `blob`; `None` where somebody else uses the place.
    pub fn of(blob: &Blob) -> Option<&Self> {
        blob.extension(|| {
            let windows = blob.len().div_ceil(WINDOW);
            Self {
                artifact: OnceLock::new(),
                blob: OnceLock::new(),
                manifest: OnceLock::new(),
                resident: (0..windows).map(|_| AtomicU32::new(0)).collect(),
            }
        })
    }
}

/// Whether the bytes `start..end`, which lie in one window, are in the page cache, as far as was seen within the last
/// second. Never waits for the disk.
pub(super) fn is_resident(blob: &Blob, start: u64, end: u64) -> bool {
    let stamp = usize::try_from(start / WINDOW).ok().and_then(|i| Prepared::of(blob)?.resident.get(i));
    let Some(stamp) = stamp else { return blob.is_resident(start..end) };
    let (seen, now) = (stamp.load(Relaxed), now());
    if seen != 0 && now.saturating_sub(seen) <= TRUSTED_SECONDS {
        return true;
    }
    if !blob.is_resident(start..end) {
        return false;
    }
    let whole = start.is_multiple_of(WINDOW) && (end.is_multiple_of(WINDOW) || end == blob.len());
    if whole {
        stamp.store(now, Relaxed);
    }
    true
}

/// Seconds since the machine started, at least 1, as the kernel last noted them: no look at the processor's clock.
fn now() -> u32 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    u32::try_from(time.tv_sec).unwrap_or(u32::MAX).max(1)
}
