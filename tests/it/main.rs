//! Integration tests of the library and the binary, in one binary.

mod api_server;
mod cloud;
mod commands;
mod crds;
mod deploy;
mod fill;
mod fuzz_corpus;
mod hardening;
mod kubernetes;
mod layering;
mod migrate;
mod mirror;
mod mirror_setup;
mod overtaken;
mod registry;
mod server;
mod signatures;
mod support;
