//! The admin listener (contract section 5).

use serde_json::Value;

use crate::objects::{BoxFuture, Key, Listing};

/// What the admin listener may ask of the node.
pub trait Control: Send + Sync + 'static {
    /// Listeners accept and statuses are loaded.
    fn ready(&self) -> bool;
    /// For `GET /v1/objects`.
    fn list(&self) -> BoxFuture<'_, Listing>;
    /// For `POST /v1/reconcile`: the object as `list` shows it, after a pass.
    fn reconcile<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Value, Refusal>>;
    /// For `POST /v1/store/gc`: collects now; what went.
    fn collect(&self) -> BoxFuture<'_, Result<Value, String>>;
}

/// Why a reconcile was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 404
    Unknown,
    /// 409
    Suspended,
    /// 504
    Timeout,
}
