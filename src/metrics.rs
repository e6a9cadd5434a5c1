//! Every metric that Larder shows, declared once: name, labels, unit, meaning. Process-wide, as a scrape is.

use crate::class::Class;

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

/// One HTTP request was sent to `upstream` (host[:port]); `outcome` is `None` for ok.
pub fn upstream_request(upstream: &str, kind: RequestKind, outcome: Option<Class>) {
    let _ = (upstream, kind, outcome);
}

/// `bytes` of body came from `upstream`.
pub fn upstream_bytes(upstream: &str, bytes: u64) {
    let _ = (upstream, bytes);
}

/// A request was answered with `bytes` of body.
pub fn served(listener: Listener, outcome: Option<Class>, bytes: u64) {
    let _ = (listener, outcome, bytes);
}

/// A pass over an object ended.
pub fn reconciled(kind: &'static str, namespace: &str, name: &str, outcome: Option<Class>, seconds: f64) {
    let _ = (kind, namespace, name, outcome, seconds);
}

/// An object is gone: its own series go too.
pub fn forget_object(kind: &'static str, namespace: &str, name: &str) {
    let _ = (kind, namespace, name);
}
