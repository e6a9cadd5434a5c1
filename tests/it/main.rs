//! Integration tests of the library and the binary, in one binary.

mod fill;
mod fuzz_corpus;
mod hardening;
mod layering;
mod mirror;
mod registry;
mod server;
mod support;
