//! How a replica stands to its cluster.

use prometheus_client::{metrics::family::Family, registry::Registry};

use super::{Bytes, Count, KINDS, Kind, METRICS};

/// Whether this replica leads, by the Lease.
pub fn leading(leads: bool) {
    METRICS.cluster.leading.set(u64::from(leads));
}

/// A list or watch of a kind's objects failed, and is tried again.
pub fn watch_failed(kind: &'static str) {
    METRICS.cluster.watch_failures.get_or_create(&Kind { kind }).inc();
}

/// What is shown of it.
pub(super) struct ClusterMetrics {
    leading: Bytes,
    watch_failures: Family<Kind, Count>,
}

impl ClusterMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let leading = Bytes::default();
        let help = "1 while this replica leads, and so writes to the cluster; 0 else, and where there is no cluster";
        registry.register("larder_leading", help, leading.clone());
        let watch_failures = Family::<Kind, Count>::default();
        let help = "Lists and watches of the cluster's objects that failed";
        registry.register("larder_watch_failures", help, watch_failures.clone());
        for kind in KINDS {
            watch_failures.get_or_create_owned(&Kind { kind });
        }
        Self { leading, watch_failures }
    }
}
