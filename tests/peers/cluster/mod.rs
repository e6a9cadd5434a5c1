//! A real Kubernetes API server as the peer.

pub mod env;

mod applying;
mod behaviours;
mod consumers;
mod deploy;
mod itself;
mod scripted;
