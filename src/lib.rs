//! Larder: a content-addressed cache and artifact server for configuration that travels as OCI images.

pub mod apply;
pub mod artifact;
pub mod blocking;
pub mod class;
pub mod config;
pub mod digest;
pub mod flight;
pub mod metrics;
pub mod node;
pub mod objects;
pub mod oci;
pub mod pull;
pub mod reconciler;
pub mod registry;
pub mod secret;
pub mod server;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod unpack;

pub mod cli;
