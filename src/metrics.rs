//! Every metric that Larder shows, declared once: name, labels, unit, meaning. Process-wide, as a scrape is.
//!
//! Functions here may be called from any thread. Those on the path of every served request ([`served`]) cost two
//! relaxed atomic additions and no look-up; the others take a short lock, never across a wait. Values begin at zero
//! with the process, as Prometheus expects of counters, and label sets that are known beforehand are shown from the
//! first scrape on, so that a rate over them has a start.
//!
//! Names carry their unit; the suffix `_total` of counters is added by the encoder.

mod cluster;
mod store;

use std::{
    collections::HashSet,
    fmt::Write as _,
    sync::{LazyLock, Mutex, PoisonError, RwLock, atomic::AtomicU64},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets_range},
    },
    registry::Registry,
};

use crate::class::Class;

use cluster::ClusterMetrics;
pub use cluster::{leading, watch_failed};
use store::StoreMetrics;
pub use store::{Eviction, evicted, scrub_oldest, scrubbed, store_bounds, store_cached, store_health};

/// How many values the label `upstream` takes; every further one is shown as [`OTHER`] (contract section 5), so that
/// objects which name ever new hosts cannot grow the scrape without bound.
pub const MAX_UPSTREAMS: usize = 256;

/// The value of `upstream` past [`MAX_UPSTREAMS`].
pub const OTHER: &str = "other";

/// The values of the label `kind` of passes over objects: Flux's names, as `objects::Kind` has them.
pub const KINDS: [&str; 5] = ["OCIRepository", "GitRepository", "HelmRepository", "HelmChart", "Kustomization"];

/// The label value of success.
const OK: &str = "ok";

/// Which listener served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Listener {
    /// `registry`
    Registry,
    /// `artifacts`
    Artifacts,
    /// `admin`
    Admin,
}

impl Listener {
    /// All of them, in the order of their numbers.
    const ALL: [Self; 3] = [Self::Registry, Self::Artifacts, Self::Admin];

    /// The label's value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Artifacts => "artifacts",
            Self::Admin => "admin",
        }
    }
}

/// What was asked of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// `ping`
    Ping,
    /// `token`
    Token,
    /// `manifest_head`
    ManifestHead,
    /// `manifest_get`
    ManifestGet,
    /// `blob_head`
    BlobHead,
    /// `blob_get`
    BlobGet,
    /// `tags`
    Tags,
    /// `referrers`
    Referrers,
    /// `push`: uploads and manifest PUTs of `larder push`
    Push,
}

impl RequestKind {
    /// The label's value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Token => "token",
            Self::ManifestHead => "manifest_head",
            Self::ManifestGet => "manifest_get",
            Self::BlobHead => "blob_head",
            Self::BlobGet => "blob_get",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Push => "push",
        }
    }
}

/// One HTTP request was sent to `upstream` (`host[:port]`); `outcome` is `None` for ok.
pub fn upstream_request(upstream: &str, kind: RequestKind, outcome: Option<Class>) {
    METRICS.upstream_request(upstream, kind, outcome);
}

/// `bytes` of body came from `upstream`.
pub fn upstream_bytes(upstream: &str, bytes: u64) {
    METRICS.upstream_bytes(upstream, bytes);
}

/// A request was answered with `bytes` of body.
pub fn served(listener: Listener, outcome: Option<Class>, bytes: u64) {
    METRICS.served(listener, outcome, bytes);
}

/// A pass over an object ended.
pub fn reconciled(kind: &'static str, namespace: &str, name: &str, outcome: Option<Class>, seconds: f64) {
    METRICS.reconciled(kind, namespace, name, outcome, seconds);
}

/// An object is gone: its own series go too.
pub fn forget_object(kind: &'static str, namespace: &str, name: &str) {
    METRICS.forget_object(kind, namespace, name);
}

/// What the store keeps now: bytes under `blobs/`, bytes under `files/`, and what they stand for were nothing shared.
pub fn store_bytes(blobs: u64, files: u64, logical: u64) {
    METRICS.store_bytes(blobs, files, logical);
}

/// The two text formats that Prometheus asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `text/plain; version=0.0.4`: families of counters are named as their samples are.
    Prometheus,
    /// `application/openmetrics-text; version=1.0.0`: ends with `# EOF`.
    OpenMetrics,
}

impl Format {
    /// The format for a request's `Accept` header: OpenMetrics only where it is asked for by name.
    pub fn negotiate(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    /// The answer's `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Everything, as text.
pub fn encode(format: Format) -> String {
    METRICS.encode(format)
}

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// The label values of `outcome` after `ok`, by the number of the class.
const CLASSES: [Class; 15] = [
    Class::Net,
    Class::Rate,
    Class::Disk,
    Class::Auth,
    Class::NotFound,
    Class::Proto,
    Class::Digest,
    Class::Size,
    Class::Manifest,
    Class::Layer,
    Class::Tar,
    Class::Limit,
    Class::Spec,
    Class::Policy,
    Class::Client,
];

/// `ok`, or the class's own word.
fn outcome_label(outcome: Option<Class>) -> &'static str {
    outcome.map_or(OK, Class::label)
}

/// 0 for ok, else 1 + the class's number.
fn outcome_index(outcome: Option<Class>) -> usize {
    outcome.map_or(0, |class| 1 + class as usize)
}

/// A family whose label sets are not known beforehand. The encoder leaves out what has no sample yet, so its first
/// lines are written here then: a scrape shows every family from the start.
struct Late {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
}

const UPSTREAM_REQUESTS: Late = Late {
    name: "larder_upstream_requests",
    kind: "counter",
    help: "HTTP requests sent to a registry or its token service, retries and redirects too",
};
const UPSTREAM_BYTES: Late =
    Late { name: "larder_upstream_bytes", kind: "counter", help: "Bytes of response bodies that came from a registry" };
const GOTK_DURATION: Late = Late {
    name: "gotk_reconcile_duration_seconds",
    kind: "histogram",
    help: "The duration in seconds of a GitOps Toolkit resource reconciliation",
};

type Count = Counter<u64, AtomicU64>;
type Bytes = Gauge<u64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamRequest {
    upstream: String,
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Upstream {
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Served {
    listener: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServedBytes {
    listener: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindOutcome {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Object {
    kind: &'static str,
    name: String,
    namespace: String,
}

/// Flux's buckets of `gotk_reconcile_duration_seconds`: ten, from 10 ms to 30 minutes, each the same multiple of the
/// last (flux.md section 1.9).
fn duration_histogram() -> Histogram {
    Histogram::new(exponential_buckets_range(0.010, 1800.0, 10))
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

fn histograms<L: Clone + Eq + std::hash::Hash>() -> Histograms<L> {
    Family::new_with_constructor(duration_histogram as fn() -> Histogram)
}

struct Metrics {
    registry: RwLock<Registry>,
    upstreams: Mutex<HashSet<String>>,
    upstream_requests: Family<UpstreamRequest, Count>,
    upstream_bytes: Family<Upstream, Count>,
    /// By listener, then by [`outcome_index`].
    served: [[Count; CLASSES.len() + 1]; 3],
    served_bytes: [Count; 3],
    blob_bytes: Bytes,
    file_bytes: Bytes,
    logical_bytes: Bytes,
    store: StoreMetrics,
    cluster: ClusterMetrics,
    reconciles: Family<KindOutcome, Count>,
    durations: Histograms<Kind>,
    gotk_durations: Histograms<Object>,
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::default();
        let upstream_requests = Family::<UpstreamRequest, Count>::default();
        registry.register(UPSTREAM_REQUESTS.name, UPSTREAM_REQUESTS.help, upstream_requests.clone());
        let upstream_bytes = Family::<Upstream, Count>::default();
        registry.register(UPSTREAM_BYTES.name, UPSTREAM_BYTES.help, upstream_bytes.clone());
        let served = Family::<Served, Count>::default();
        registry.register("larder_served_requests", "Requests answered", served.clone());
        let served_bytes = Family::<ServedBytes, Count>::default();
        registry.register("larder_served_bytes", "Bytes of response bodies sent", served_bytes.clone());
        let store = Family::<Kind, Bytes>::default();
        registry.register("larder_store_bytes", "Bytes kept, each content once", store.clone());
        let logical_bytes = Bytes::default();
        registry.register(
            "larder_store_logical_bytes",
            "Bytes that published trees and links stand for, were nothing shared",
            logical_bytes.clone(),
        );
        let store_metrics = StoreMetrics::register(&mut registry);
        let cluster = ClusterMetrics::register(&mut registry);
        let reconciles = Family::<KindOutcome, Count>::default();
        registry.register("larder_reconcile", "Passes over objects that ended", reconciles.clone());
        let durations = histograms::<Kind>();
        registry.register("larder_reconcile_duration_seconds", "Length of a pass over an object", durations.clone());
        let gotk_durations = histograms::<Object>();
        registry.register(GOTK_DURATION.name, GOTK_DURATION.help, gotk_durations.clone());
        for kind in KINDS {
            reconciles.get_or_create_owned(&KindOutcome { kind, outcome: OK });
            durations.get_or_create_owned(&Kind { kind });
        }
        let outcomes: [&str; CLASSES.len() + 1] =
            std::array::from_fn(|i| if i == 0 { OK } else { CLASSES[i - 1].label() });
        Self {
            registry: RwLock::new(registry),
            upstreams: Mutex::default(),
            upstream_requests,
            upstream_bytes,
            served: Listener::ALL.map(|listener| {
                outcomes.map(|outcome| served.get_or_create_owned(&Served { listener: listener.label(), outcome }))
            }),
            served_bytes: Listener::ALL
                .map(|listener| served_bytes.get_or_create_owned(&ServedBytes { listener: listener.label() })),
            blob_bytes: store.get_or_create_owned(&Kind { kind: "blob" }),
            file_bytes: store.get_or_create_owned(&Kind { kind: "file" }),
            logical_bytes,
            store: store_metrics,
            cluster,
            reconciles,
            durations,
            gotk_durations,
        }
    }

    /// `upstream`, or [`OTHER`] where there are too many.
    fn upstream_label(&self, upstream: &str) -> String {
        let mut known = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(upstream) {
            if known.len() >= MAX_UPSTREAMS {
                return OTHER.to_string();
            }
            known.insert(upstream.to_string());
        }
        upstream.to_string()
    }

    fn upstream_request(&self, upstream: &str, kind: RequestKind, outcome: Option<Class>) {
        let upstream = self.upstream_label(upstream);
        let labels = UpstreamRequest { upstream, kind: kind.label(), outcome: outcome_label(outcome) };
        self.upstream_requests.get_or_create(&labels).inc();
    }

    fn upstream_bytes(&self, upstream: &str, bytes: u64) {
        self.upstream_bytes.get_or_create(&Upstream { upstream: self.upstream_label(upstream) }).inc_by(bytes);
    }

    fn served(&self, listener: Listener, outcome: Option<Class>, bytes: u64) {
        self.served[listener as usize][outcome_index(outcome)].inc();
        self.served_bytes[listener as usize].inc_by(bytes);
    }

    fn reconciled(&self, kind: &'static str, namespace: &str, name: &str, outcome: Option<Class>, seconds: f64) {
        self.reconciles.get_or_create(&KindOutcome { kind, outcome: outcome_label(outcome) }).inc();
        self.durations.get_or_create(&Kind { kind }).observe(seconds);
        let object = Object { kind, name: name.to_string(), namespace: namespace.to_string() };
        self.gotk_durations.get_or_create(&object).observe(seconds);
    }

    fn forget_object(&self, kind: &'static str, namespace: &str, name: &str) {
        self.gotk_durations.remove(&Object { kind, name: name.to_string(), namespace: namespace.to_string() });
    }

    fn store_bytes(&self, blobs: u64, files: u64, logical: u64) {
        self.blob_bytes.set(blobs);
        self.file_bytes.set(files);
        self.logical_bytes.set(logical);
    }

    fn encode(&self, format: Format) -> String {
        let mut open_metrics = String::new();
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String does not fail.
        let _ = text::encode_registry(&mut open_metrics, &registry);
        for Late { name, kind, help } in [UPSTREAM_REQUESTS, UPSTREAM_BYTES, GOTK_DURATION] {
            let line = format!("# TYPE {name} {kind}\n");
            if !open_metrics.contains(&line) {
                let _ = write!(open_metrics, "# HELP {name} {help}.\n{line}");
            }
        }
        let _ = text::encode_eof(&mut open_metrics);
        match format {
            Format::OpenMetrics => open_metrics,
            Format::Prometheus => to_prometheus(&open_metrics),
        }
    }
}

/// Rewrites the few lines in which the older text format differs: a counter's HELP and TYPE carry the samples' name,
/// and there is no end mark.
fn to_prometheus(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len() + 256);
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        if line == "# EOF" {
            continue;
        }
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
            continue;
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, text)) = help.take().filter(|(of, _)| *of == name) {
                let _ = writeln!(out, "# HELP {name}{suffix} {text}");
            }
            let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
            continue;
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(text: &str, line: &str) -> bool {
        text.lines().any(|l| l == line)
    }

    #[test]
    fn classes_are_listed_by_number() {
        for (i, class) in CLASSES.into_iter().enumerate() {
            assert_eq!(class as usize, i);
            assert_eq!(outcome_index(Some(class)), i + 1);
        }
        for (i, listener) in Listener::ALL.into_iter().enumerate() {
            assert_eq!(listener as usize, i);
        }
    }

    #[test]
    fn every_family_is_shown_before_its_first_sample() {
        let text = Metrics::new().encode(Format::Prometheus);
        for (name, kind) in [
            ("larder_upstream_requests_total", "counter"),
            ("larder_upstream_bytes_total", "counter"),
            ("larder_served_requests_total", "counter"),
            ("larder_served_bytes_total", "counter"),
            ("larder_store_bytes", "gauge"),
            ("larder_store_logical_bytes", "gauge"),
            ("larder_reconcile_total", "counter"),
            ("larder_reconcile_duration_seconds", "histogram"),
            ("gotk_reconcile_duration_seconds", "histogram"),
        ] {
            assert!(has(&text, &format!("# TYPE {name} {kind}")), "{name}:\n{text}");
        }
        assert_eq!(text.matches("# TYPE gotk_reconcile_duration_seconds ").count(), 1);
        assert!(has(&text, "larder_served_requests_total{listener=\"artifacts\",outcome=\"ok\"} 0"));
        assert!(has(&text, "larder_reconcile_total{kind=\"OCIRepository\",outcome=\"ok\"} 0"));
    }

    #[test]
    fn samples_carry_the_contracts_labels() {
        let metrics = Metrics::new();
        metrics.upstream_request("127.0.0.1:5000", RequestKind::ManifestHead, None);
        metrics.upstream_request("127.0.0.1:5000", RequestKind::BlobGet, Some(Class::NotFound));
        metrics.upstream_bytes("127.0.0.1:5000", 17);
        metrics.served(Listener::Registry, None, 10);
        metrics.served(Listener::Registry, Some(Class::Client), 2);
        metrics.store_bytes(1, 2, 3);
        metrics.reconciled("OCIRepository", "ns", "a", Some(Class::Net), 0.02);
        let text = metrics.encode(Format::Prometheus);
        assert_eq!(text.matches("# TYPE gotk_reconcile_duration_seconds ").count(), 1);
        for line in [
            "larder_upstream_requests_total{upstream=\"127.0.0.1:5000\",kind=\"manifest_head\",outcome=\"ok\"} 1",
            "larder_upstream_requests_total{upstream=\"127.0.0.1:5000\",kind=\"blob_get\",outcome=\"notfound\"} 1",
            "larder_upstream_bytes_total{upstream=\"127.0.0.1:5000\"} 17",
            "larder_served_requests_total{listener=\"registry\",outcome=\"ok\"} 1",
            "larder_served_requests_total{listener=\"registry\",outcome=\"client\"} 1",
            "larder_served_bytes_total{listener=\"registry\"} 12",
            "larder_store_bytes{kind=\"blob\"} 1",
            "larder_store_bytes{kind=\"file\"} 2",
            "larder_store_logical_bytes 3",
            "larder_reconcile_total{kind=\"OCIRepository\",outcome=\"net\"} 1",
            "larder_reconcile_duration_seconds_count{kind=\"OCIRepository\"} 1",
            "gotk_reconcile_duration_seconds_count{kind=\"OCIRepository\",name=\"a\",namespace=\"ns\"} 1",
        ] {
            assert!(has(&text, line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn buckets_are_fluxs() {
        let metrics = Metrics::new();
        metrics.reconciled("OCIRepository", "ns", "a", None, 0.005);
        let text = metrics.encode(Format::Prometheus);
        let bounds: Vec<f64> = text
            .lines()
            .filter(|l| l.starts_with("gotk_reconcile_duration_seconds_bucket"))
            .filter_map(|l| l.split("le=\"").nth(1)?.split('"').next()?.parse().ok())
            .filter(|bound: &f64| bound.is_finite())
            .collect();
        assert_eq!(bounds.len(), 10);
        assert!((bounds[0] - 0.01).abs() < 1e-9 && (bounds[9] - 1800.0).abs() < 1e-6, "{bounds:?}");
    }

    #[test]
    fn a_forgotten_object_takes_its_series_along() {
        let metrics = Metrics::new();
        metrics.reconciled("OCIRepository", "ns", "a", None, 0.005);
        metrics.forget_object("OCIRepository", "ns", "a");
        assert!(!metrics.encode(Format::Prometheus).contains("name=\"a\""));
    }

    #[test]
    fn upstreams_past_the_cap_are_other() {
        let metrics = Metrics::new();
        for i in 0..MAX_UPSTREAMS + 10 {
            metrics.upstream_request(&format!("h{i}"), RequestKind::Ping, None);
        }
        metrics.upstream_request("h0", RequestKind::Ping, None);
        let text = metrics.encode(Format::Prometheus);
        assert!(has(&text, "larder_upstream_requests_total{upstream=\"other\",kind=\"ping\",outcome=\"ok\"} 10"));
        assert!(has(&text, "larder_upstream_requests_total{upstream=\"h0\",kind=\"ping\",outcome=\"ok\"} 2"));
        assert!(!text.contains("upstream=\"h256\""));
    }

    #[test]
    fn only_open_metrics_has_an_end_mark() {
        let metrics = Metrics::new();
        let open = metrics.encode(Format::OpenMetrics);
        assert!(open.ends_with("# EOF\n"));
        assert!(has(&open, "# TYPE larder_served_requests counter"));
        assert!(!metrics.encode(Format::Prometheus).contains("# EOF"));
        assert_eq!(Format::negotiate(None), Format::Prometheus);
        assert_eq!(Format::negotiate(Some("text/html")), Format::Prometheus);
        assert_eq!(
            Format::negotiate(Some("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2")),
            Format::OpenMetrics
        );
    }
}
