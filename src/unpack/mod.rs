//! From a layer's bytes to a checked index of its entries, and from that to a tree. Synchronous; see `blocking`.

pub mod decompress;
pub mod entries;
pub mod overlay;
pub mod source_ignore;
pub mod tree;
