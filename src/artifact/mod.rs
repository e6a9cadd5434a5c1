//! From a manifest and its layers to the artifact that is served: the layer itself where nothing has to change, else a
//! deterministic rewrite; and its published tree.

pub mod build;
pub mod choose;
pub mod gzip;
pub mod pack;
pub mod publish;
