//! What Larder answers: the registry, artifact and admin listeners.
//!
//! A served request goes `listener` → `connection` (HTTP/1.1 or 2, over TLS or not) → a [`Handler`] (`registry`,
//! `artifacts`, `admin`) → the store → `entity`, which makes the answer of a blob → `body`, which hands the mapped bytes
//! to the connection. Nothing here asks an upstream.
//!
//! Handlers may be called from any number of connections at once. They keep nothing on disk themselves; what an upload
//! has brought so far is gone after a crash, and its client begins anew.

pub mod admin;
pub mod artifacts;
pub mod body;
pub mod conditional;
mod connection;
mod entity;
mod following;
pub mod listener;
pub mod orders;
mod pieces;
mod prepared;
pub mod query;
pub mod range;
pub mod registry;
mod reply;
pub mod route;
mod socket;
#[cfg(test)]
mod testing;
pub mod tls;
mod watch;
mod workers;

pub use admin::{Admin, Control, Refusal};
pub use artifacts::Artifacts;
pub use listener::{Bound, Handler, Limits, Peer, serve};
pub use orders::{Order, OrderFailure};
pub use registry::Registry;
pub use tls::{Tls, TlsError};
pub use workers::Workers;

use crate::{
    blocking,
    digest::Digest,
    store::{Blob, Store, StoreError},
};

/// The blob, if it is held: at once where it is open already, else from a thread that may wait for the disk.
async fn open(store: &Store, digest: &Digest) -> Result<Option<Blob>, StoreError> {
    if let Some(blob) = store.get_open(digest) {
        return Ok(Some(blob));
    }
    let (store, digest) = (store.clone(), *digest);
    blocking::io(move || store.get(&digest)).await
}
