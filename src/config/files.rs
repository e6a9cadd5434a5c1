//! Opens the files that a configuration names, as `larder serve` would: what is missing or malformed, setting by setting.
//! Reads only.

use std::path::Path;

use super::{Config, ConfigError, ConfigErrors};
use crate::{
    class::chain,
    mirror::UpstreamConfig,
    server::{Tls, registry::access, tls},
};

/// Whether everything that the configuration names is there and can be used.
///
/// # Errors
/// Every file that cannot be; never a part of a secret.
pub fn check_files(config: &Config) -> Result<(), ConfigErrors> {
    let mut found = Vec::new();
    registry(config, &mut found);
    for upstream in &config.upstreams {
        let of = |setting: &str| format!("upstreams: {}: {setting}", upstream.host);
        if let Some(Err(error)) = upstream.ca.as_deref().map(tls::authorities) {
            found.push(format!("{}: {}", of("ca"), chain(&error)));
        }
        // A host that is none is told with the settings.
        let Ok(host) = upstream.host.to_string().parse() else { continue };
        let credentials = upstream.credentials.clone();
        let mirrored = UpstreamConfig { credentials, ..UpstreamConfig::new(host, upstream.url.clone()) };
        if let Err(error) = mirrored.check_credentials() {
            found.push(format!("{}: {}", of("credentials"), chain(&error)));
        }
    }
    if let Some(path) = &config.admin_token_file {
        match std::fs::read_to_string(path) {
            Err(error) => found.push(format!("adminTokenFile: cannot read {}: {error}", path.display())),
            Ok(text) if text.trim().is_empty() => {
                found.push(format!("adminTokenFile: {} holds no token", path.display()));
            }
            Ok(_) => {}
        }
    }
    if let Some(path) = config.kustomize_program.as_deref().filter(|path| !path.is_file()) {
        found.push(format!("kustomizeProgram: {} is not a file", path.display()));
    }
    headroom(config, &mut found);
    if found.is_empty() {
        return Ok(());
    }
    Err(ConfigErrors::new(found.into_iter().map(|message| ConfigError { line: None, message }).collect()))
}

fn registry(config: &Config, found: &mut Vec<String>) {
    let access::Config { htpasswd, token, .. } = config.access();
    let alone = |htpasswd, token| access::Config { htpasswd, token, rules: Vec::new() };
    for users in [alone(htpasswd, None), alone(None, token)] {
        if let Err(error) = access::Access::open(users) {
            found.push(chain(&error).to_string());
        }
    }
    let Some(settings) = &config.registry.tls else { return };
    let files =
        [("cert", Some(&settings.cert)), ("key", Some(&settings.key)), ("clientCA", settings.client_ca.as_ref())];
    let before = found.len();
    for (setting, path) in files {
        if let Some(Err(error)) = path.map(std::fs::File::open)
            && let Some(path) = path
        {
            found.push(format!("registry.tls.{setting}: cannot read {}: {error}", path.display()));
        }
    }
    if found.len() > before {
        return;
    }
    let files =
        tls::Files { cert: settings.cert.clone(), key: settings.key.clone(), client_ca: settings.client_ca.clone() };
    if let Err(error) = Tls::load(files) {
        found.push(format!("registry.tls: {}", chain(&error)));
    }
}

/// More headroom than the disk has room leaves nothing for what is cached.
fn headroom(config: &Config, found: &mut Vec<String>) {
    let Some(headroom) = config.store_headroom_bytes else { return };
    let there = config.data.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let Ok(disk) = rustix::fs::statvfs(there) else { return };
    let size = disk.f_blocks.saturating_mul(disk.f_frsize);
    if headroom.0 >= size {
        found.push(format!(
            "store: headroomBytes: {} bytes are to stay free of a disk that has {size} ({}): nothing would be cached",
            headroom.0,
            there.display()
        ));
    }
}
