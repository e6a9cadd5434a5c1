//! Finds what is wrong in a configuration file, with line, name and the nearest name that is known.

use std::{collections::HashSet, fmt, path::Path};

use super::{Address, ByteSize, Config, Settings, Surroundings, UpstreamSettings, WatchKind};
use crate::{class::Class, mirror::UpstreamConfig, objects::Kind, oci, registry, server::registry::access::Subject};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The line in the file, from 1, where it is known.
    pub line: Option<usize>,
    /// What is wrong and what to do.
    pub message: String,
}

/// All that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    /// The file, if it is one.
    pub file: Option<String>,
    /// What is wrong, at least one.
    pub errors: Vec<ConfigError>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            match (&self.file, error.line) {
                (Some(file), Some(line)) => write!(f, "{file}:{line}: ")?,
                (Some(file), None) => write!(f, "{file}: ")?,
                (None, Some(line)) => write!(f, "line {line}: ")?,
                (None, None) => {}
            }
            f.write_str(&error.message)?;
        }
        Ok(())
    }
}

impl ConfigErrors {
    /// These.
    pub(super) fn new(errors: Vec<ConfigError>) -> Self {
        Self { file: None, errors }
    }

    /// The same, said of a file.
    pub fn of(mut self, file: &Path) -> Self {
        self.file = Some(file.display().to_string());
        self
    }

    /// Only other settings help.
    pub fn class(&self) -> Class {
        Class::Spec
    }
}

/// Checks a configuration file's text as `larder serve` would read it without any flag.
///
/// # Errors
/// Everything that is wrong; what shows only when all settings are read is told once they can be.
pub fn check(text: &str) -> Result<Config, ConfigErrors> {
    Config::resolve(Settings::default(), super::parse(text)?, &Surroundings::default())
}

/// The same, and whether everything that the configuration names is there and can be used. Reads only.
///
/// # Errors
/// Everything that is wrong with the text; once that can be read, with the settings and the files. Never a part of a
/// secret.
pub fn check_with_files(text: &str) -> Result<(), ConfigErrors> {
    let settings = super::parse(text)?;
    let mut errors = together(&settings);
    for error in super::files::errors(&Config::of(settings, &Surroundings::default())) {
        if !errors.contains(&error) {
            errors.push(error);
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(ConfigErrors::new(errors)) }
}

/// What no setting alone shows.
pub(super) fn together(settings: &Settings) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    let mut wrong = |message: String| errors.push(ConfigError { line: None, message });
    for (name, path) in [("data", &settings.data), ("objects", &settings.objects)] {
        if path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            wrong(format!("{name}: the path is empty: name a directory, or leave it out"));
        }
    }
    if settings.objects.is_some() && settings.kubernetes == Some(true) {
        wrong("objects and kubernetes exclude each other: the objects come from one of the two".into());
    }
    let clusters = [
        ("watchLabelSelector", settings.watch_label_selector.is_some()),
        ("watchKind", !settings.watch_kind.is_empty()),
        ("replicaAddress", settings.replica_address.is_some()),
        ("eventsAddr", settings.events_addr.is_some()),
    ];
    for (name, _) in clusters.iter().filter(|(_, set)| *set && settings.kubernetes != Some(true)) {
        wrong(format!("{name} is of effect only with kubernetes"));
    }
    if settings.external_artifacts == Some(true) && settings.objects.is_none() && settings.kubernetes != Some(true) {
        wrong("externalArtifacts needs objects or kubernetes, for where the sources come from".into());
    }
    if settings.external_artifacts == Some(true) {
        if settings.events_addr.is_some() {
            wrong(
                "eventsAddr and externalArtifacts exclude each other: events are about objects that Larder writes"
                    .into(),
            );
        }
        if settings.watch_kind.contains(&WatchKind(Kind::Kustomization)) {
            wrong("watchKind: with externalArtifacts Kustomizations stay Flux's; name kinds of sources only".into());
        }
    }
    let mut hosts = HashSet::new();
    for upstream in &settings.upstreams {
        if !hosts.insert(&upstream.host) {
            wrong(format!("upstreams: {} is there twice", upstream.host));
        }
        for rule in &upstream.tags {
            if let Err(error) = regex::Regex::new(&rule.pattern) {
                wrong(format!("upstreams: {}: tags: the pattern is no regular expression: {error}", upstream.host));
            }
        }
    }
    let mut flagged = HashSet::new();
    for upstream in &settings.upstream {
        if !flagged.insert(&upstream.host) {
            wrong(format!("upstream: {} is there twice", upstream.host));
        }
    }
    for listener in &settings.mirror_listen {
        if !hosts.contains(&listener.host) && !flagged.contains(&listener.host) {
            wrong(format!("mirrorListen: {} is no upstream; add it with upstream or upstreams", listener.host));
        }
    }
    let mut registries = HashSet::new();
    let [allow, deny] = [&settings.egress_allow, &settings.egress_deny]
        .map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>());
    let permits = |at: &oci::Registry| registry::permits(&allow, &deny, &[], at);
    for upstream in settings.upstreams.iter().filter(|upstream| !flagged.contains(&upstream.host)) {
        if let Err(error) = mirrored(upstream, &mut registries, permits) {
            wrong(format!("upstreams: {error}"));
        }
    }
    for flag in &settings.upstream {
        if let Err(error) =
            mirrored(&UpstreamSettings::new(flag.host.clone(), flag.url.clone()), &mut registries, permits)
        {
            wrong(format!("upstream: {error}"));
        }
    }
    addresses(settings, &mut wrong);
    if [settings.store_max_bytes, settings.store.max_bytes].contains(&Some(ByteSize(0))) {
        wrong("store: maxBytes: with 0 nothing is kept; leave it out for as much as the disk takes".into());
    }
    let registry = &settings.registry;
    if registry.htpasswd.is_none() && registry.token.is_none() {
        for rule in &registry.access {
            if rule.read.iter().chain(&rule.write).any(|subject| *subject != Subject::Anybody) {
                wrong(format!(
                    "registry: access: the rule for {} names users, but there are none: set htpasswd or token, or write \
                     anonymous, which is everybody",
                    rule.matches
                ));
            }
        }
    }
    errors
}

/// Two listeners cannot have one address: the second would fail to start.
fn addresses(settings: &Settings, wrong: &mut impl FnMut(String)) {
    let or_port = |address: &Option<Address>, port| address.clone().unwrap_or_else(|| Address::new("127.0.0.1", port));
    let mut all = vec![
        ("registryListen".to_owned(), or_port(&settings.registry_listen, 5000)),
        ("artifactListen".to_owned(), or_port(&settings.artifact_listen, 9790)),
        ("adminListen".to_owned(), or_port(&settings.admin_listen, 9440)),
    ];
    let own =
        settings.upstreams.iter().filter_map(|u| Some((format!("upstreams: {}: listen", u.host), u.listen.clone()?)));
    all.extend(own);
    all.extend(settings.mirror_listen.iter().map(|l| (format!("mirrorListen for {}", l.host), l.address.clone())));
    for (n, (name, address)) in all.iter().enumerate() {
        if let Some((other, _)) = all[..n].iter().find(|(_, before)| before.takes(address)) {
            wrong(format!("{name}: {address} is the address of {other} already; give each listener its own"));
        }
    }
}

/// Whether the mirror would take an upstream, as far as that can be told without reading the files that it names.
fn mirrored(
    settings: &UpstreamSettings,
    others: &mut HashSet<oci::Registry>,
    permits: impl FnOnce(&oci::Registry) -> Result<(), &'static str>,
) -> Result<(), String> {
    let registry: oci::Registry =
        settings.host.to_string().parse().map_err(|error| format!("{}: {error}", settings.host))?;
    if !others.insert(registry.clone()) {
        return match settings.host.to_string() == registry.to_string() {
            // That is told already.
            true => Ok(()),
            false => Err(format!("{} is another name for {registry}, which is there already", settings.host)),
        };
    }
    let config = UpstreamConfig {
        mode: settings.mode.into(),
        credentials: settings.credentials.clone(),
        ..UpstreamConfig::new(registry, settings.url.clone())
    };
    config.check().and_then(|()| config.check_place(permits)).map_err(|error| error.to_string())
}
