//! Opens the files that a configuration names, as `larder serve` would: what is missing or malformed, setting by setting.
//! Reads only.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::{Config, ConfigError};
use crate::{
    class::chain,
    mirror::UpstreamConfig,
    server::{Tls, registry::access, tls},
};

/// Of what the configuration names, all that is not there or cannot be used; never a part of a secret.
pub(super) fn errors(config: &Config) -> Vec<ConfigError> {
    let mut found = Vec::new();
    directories(config, &mut found);
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
        match fs::read_to_string(path) {
            Err(error) => found.push(format!("adminTokenFile: cannot read {}: {error}", path.display())),
            Ok(text) if text.trim().is_empty() => {
                found.push(format!("adminTokenFile: {} holds no token", path.display()));
            }
            Ok(_) => {}
        }
    }
    if let Some(why) = config.kustomize_program.as_deref().and_then(cannot_run) {
        found.push(format!("kustomizeProgram: {why}"));
    }
    headroom(config, &mut found);
    found.into_iter().map(|message| ConfigError { line: None, message }).collect()
}

/// Why a program cannot be run, if so.
pub fn cannot_run(program: &Path) -> Option<String> {
    let shown = program.display();
    match fs::metadata(program) {
        Err(error) => Some(format!("cannot find {shown}: {error}")),
        Ok(metadata) if !metadata.is_file() => Some(format!("{shown} is not a file")),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => {
            Some(format!("{shown} cannot be executed: chmod +x makes it a program, if it is one"))
        }
        Ok(_) => None,
    }
}

/// The data's is made where it is not there yet, the objects' is not.
fn directories(config: &Config, found: &mut Vec<String>) {
    if let Some(path) = config.data.ancestors().find(|path| path.exists()).filter(|path| !path.is_dir()) {
        found.push(format!("data: {} is not a directory", path.display()));
    }
    let objects = config.objects.as_deref().filter(|path| !path.as_os_str().is_empty());
    if let Some(Err(error)) = objects.map(fs::read_dir)
        && let Some(path) = objects
    {
        found.push(format!("objects: cannot read the objects in {}: {error}", path.display()));
    }
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
        if let Some(Err(error)) = path.map(fs::File::open)
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
