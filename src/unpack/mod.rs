//! From a layer's bytes to a checked index of its entries, and from that to a tree. Synchronous; see `blocking`.

pub mod data;
pub mod decompress;
pub mod entries;
pub mod gunzip;
pub mod overlay;
pub mod pax;
pub mod source_ignore;
pub mod tar_writer;
pub mod tree;

#[cfg(test)]
pub(crate) mod testing;
