//! What the environment says, read in one place.

use std::{ffi::OsString, path::PathBuf};

use crate::registry::{ProxyEnvironment, login};

/// What a daemon must know of the process around it, which only the command line reads.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// PATH.
    pub search: Option<OsString>,
    /// This program.
    pub program: PathBuf,
    /// The environment's proxies.
    pub proxies: ProxyEnvironment,
    /// `KUBERNETES_SERVICE_HOST`: the API server of the cluster that this runs in.
    pub api_server: Option<String>,
    /// `POD_NAMESPACE`.
    pub pod_namespace: Option<String>,
    /// `POD_NAME`.
    pub pod_name: Option<String>,
    /// This process's identities in clouds.
    pub identities: login::Environment,
}

impl Surroundings {
    /// This process's.
    pub fn of_this_process() -> std::io::Result<Self> {
        Ok(Self {
            search: std::env::var_os("PATH"),
            program: std::env::current_exe()?,
            proxies: ProxyEnvironment::read(|name| std::env::var(name).ok()),
            api_server: std::env::var("KUBERNETES_SERVICE_HOST").ok().map(bracketed),
            pod_namespace: std::env::var("POD_NAMESPACE").ok(),
            pod_name: std::env::var("POD_NAME").ok(),
            identities: login::Environment::read(|name| std::env::var(name).ok()),
        })
    }
}

/// An address as it stands in a URL.
fn bracketed(host: String) -> String {
    if host.contains(':') { format!("[{host}]") } else { host }
}
