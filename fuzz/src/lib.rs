//! Fuzz targets for every parser that reads foreign bytes.
//!
//! `cargo fuzz run <target>` searches, `tests/it/fuzz_corpus.rs` replays `corpus/<target>/` on stable.

pub mod targets;
