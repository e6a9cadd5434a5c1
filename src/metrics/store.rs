//! The store's metrics, beside the bytes it keeps.

use prometheus_client::{encoding::EncodeLabelSet, metrics::family::Family, registry::Registry};

use super::{Bytes, Count, METRICS};

/// Why blobs were evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Eviction {
    /// `budget`: store.maxBytes
    Budget,
    /// `headroom`: store.headroomBytes
    Headroom,
    /// `full`: the disk had no room for what was being written
    Full,
}

impl Eviction {
    /// All of them, in the order of their numbers.
    const ALL: [Self; 3] = [Self::Budget, Self::Headroom, Self::Full];

    /// The label's value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::Headroom => "headroom",
            Self::Full => "full",
        }
    }
}

/// The store's bounds in bytes; without a byte budget it is shown as 0.
pub fn store_bounds(max_bytes: Option<u64>, headroom: u64) {
    METRICS.store.max_bytes.set(max_bytes.unwrap_or(0));
    METRICS.store.headroom_bytes.set(headroom);
}

/// Bytes of what could be fetched again now, which a byte budget counts.
pub fn store_cached(bytes: u64) {
    METRICS.store.cached_bytes.set(bytes);
}

/// Blobs were evicted.
pub fn evicted(why: Eviction, blobs: u64, bytes: u64) {
    METRICS.store.evicted[why as usize].inc_by(blobs);
    METRICS.store.evicted_bytes[why as usize].inc_by(bytes);
}

/// The slow check read so many bytes; `bad` of the files were not what their names say.
pub fn scrubbed(bytes: u64, bad: u64) {
    METRICS.store.scrubbed_bytes.inc_by(bytes);
    METRICS.store.scrub_bad.inc_by(bad);
}

/// How long ago the byte was checked that waits longest for the slow check.
pub fn scrub_oldest(seconds: u64) {
    METRICS.store.scrub_oldest.set(seconds);
}

/// How the store fares: blobs and files put aside since the start, and whether it has stopped keeping.
pub fn store_health(quarantined: u64, degraded: bool) {
    METRICS.store.quarantined.set(quarantined);
    METRICS.store.degraded.set(u64::from(degraded));
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// The store's own, beside the bytes it keeps.
pub(super) struct StoreMetrics {
    max_bytes: Bytes,
    headroom_bytes: Bytes,
    cached_bytes: Bytes,
    /// By the number of the reason.
    evicted: [Count; 3],
    evicted_bytes: [Count; 3],
    scrubbed_bytes: Count,
    scrub_bad: Count,
    scrub_oldest: Bytes,
    quarantined: Bytes,
    degraded: Bytes,
}

impl StoreMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let mut gauge = |name: &str, help: &str| {
            let gauge = Bytes::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let max_bytes = gauge("larder_store_max_bytes", "The byte budget of what is cached; 0 for none");
        let headroom_bytes = gauge("larder_store_headroom_bytes", "Bytes of the disk that stay free");
        let cached_bytes =
            gauge("larder_store_cached_bytes", "Bytes of blobs that could be fetched again: what a byte budget counts");
        let scrub_oldest = gauge(
            "larder_store_scrub_oldest_seconds",
            "How long ago the byte was checked that waits longest for the slow check of everything",
        );
        let quarantined = gauge("larder_store_quarantined", "Blobs and files put aside since the start");
        let degraded = gauge("larder_store_degraded", "1 while syncs fail and nothing new should be kept");
        let evicted = Family::<Reason, Count>::default();
        registry.register("larder_store_evicted", "Blobs evicted", evicted.clone());
        let evicted_bytes = Family::<Reason, Count>::default();
        registry.register("larder_store_evicted_bytes", "Bytes of the blobs evicted", evicted_bytes.clone());
        let scrubbed_bytes = Count::default();
        registry.register("larder_store_scrubbed_bytes", "Bytes read by the slow check", scrubbed_bytes.clone());
        let scrub_bad = Count::default();
        registry.register(
            "larder_store_scrub_bad",
            "Blobs and files that the slow check found wrong",
            scrub_bad.clone(),
        );
        let reasons = |family: &Family<Reason, Count>| {
            Eviction::ALL.map(|why| family.get_or_create_owned(&Reason { reason: why.label() }))
        };
        Self {
            max_bytes,
            headroom_bytes,
            cached_bytes,
            evicted: reasons(&evicted),
            evicted_bytes: reasons(&evicted_bytes),
            scrubbed_bytes,
            scrub_bad,
            scrub_oldest,
            quarantined,
            degraded,
        }
    }
}
