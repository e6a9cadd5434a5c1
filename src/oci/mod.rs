//! The OCI specs' nouns as types: pure, bounded, no I/O.
//!
//! Everything here turns foreign text or bytes into typed values or refuses it with an error that says why; nothing
//! panics, nothing allocates more than a small multiple of its input, and nothing keeps state, so any thread may call
//! anything. What has been parsed is not checked again elsewhere.

pub mod descriptor;
pub mod error_body;
#[cfg(test)]
pub(crate) mod golden;
pub mod image_config;
pub mod manifest;
pub mod media_type;
pub mod reference;
pub mod version;

pub use descriptor::{Descriptor, Platform};
pub use error_body::{ErrorBody, ErrorCode};
pub use image_config::ImageConfig;
pub use manifest::{Document, ImageManifest, Index, ManifestError, Resolution};
pub use reference::{Reference, ReferenceError, Registry, Repository, Selector, Tag};
pub use version::{TagPolicy, VersionError};
