//! What tests stand on: a registry with scripted faults, proxies, certificates.

pub mod certificates;
pub mod proxy;
pub mod registry;
