//! The built binary against the programs its users have: docker-registry, skopeo, umoci, buildah, podman, kubectl and
//! the tar readers of Python, GNU and Go, all on loopback.
//!
//! A test whose peers are missing says `SKIPPED: …` on standard error and passes; with `LARDER_REQUIRE_PEERS=1` it fails.

#[path = "../it/support/mod.rs"]
mod support;

mod cluster;
mod credentials;
mod docker_registry;
mod documents;
mod helm;
mod images;
mod kustomizations;
mod lifecycle;
mod mirror;
mod need;
mod packaging;
mod quickstart;
mod scale;
mod sources;
mod tars;
