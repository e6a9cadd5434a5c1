//! The OCI specs' nouns as types: pure, bounded, no I/O.

pub mod descriptor;
pub mod error_body;
pub mod image_config;
pub mod manifest;
pub mod media_type;
pub mod reference;

pub use descriptor::{Descriptor, Platform};
pub use manifest::{Document, ImageManifest, Index, ManifestError};
pub use reference::{Reference, ReferenceError, Registry, Repository, Selector, Tag};
