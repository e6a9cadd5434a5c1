//! What Larder answers: the registry, artifact and admin listeners.

pub mod admin;
pub mod artifacts;
pub mod conditional;
pub mod listener;
pub mod range;
pub mod registry;
