//! A real Kubernetes API server as the peer.

pub mod env;

mod itself;
mod scripted;
