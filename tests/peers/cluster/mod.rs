//! A real Kubernetes API server as the peer.

pub mod env;

mod consumers;
mod crds;
mod itself;
mod scripted;
