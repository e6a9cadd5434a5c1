//! The configuration of `larder serve`.
//!
//! Each setting is declared once, as a field of [`Settings`]: its flag, its environment variable, its key in the file,
//! its text in `--help` and in the JSON schema come from there. A flag goes before the environment, that before the
//! file, that before the default. The environment is read by the command line only; nothing below this module does.

mod check;
mod files;
mod settings;
mod values;
mod yaml;

use std::path::{Path, PathBuf};

pub use check::{ConfigError, ConfigErrors, check, check_with_files};
pub use files::cannot_run;
pub use settings::{
    AccessRule, RegistrySettings, Settings, StoreSettings, TagRule, TlsSettings, UpstreamMode, UpstreamSettings,
};
pub use values::{
    Address, Advertise, ByteSize, Cidr, Feature, FeatureGate, HostPort, MirrorListen, ReplicaAddress, UpstreamFlag,
    WatchKind,
};

use crate::{
    objects::{FluxDuration, Kind, cluster::Notifications},
    server::registry::access,
    telemetry::LogFormat,
};

/// What is served, from where, and how much.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where everything is kept.
    pub data: PathBuf,
    /// The registry listener.
    pub registry_listen: Address,
    /// The artifact listener.
    pub artifact_listen: Address,
    /// The admin listener.
    pub admin_listen: Address,
    /// How the artifact listener is named in statuses; its own address if absent.
    pub artifact_advertise: Option<Advertise>,
    /// The directory of objects.
    pub objects: Option<PathBuf>,
    /// Reconcile the cluster's objects.
    pub kubernetes: bool,
    /// Only objects with these labels.
    pub watch_label_selector: Option<String>,
    /// The kinds that are reconciled, each once.
    pub watch_kinds: Vec<Kind>,
    /// Where the other replicas reach this one's artifact listener.
    pub replica_address: Option<ReplicaAddress>,
    /// Flux's notification-controller.
    pub events_addr: Option<Notifications>,
    /// Whether a Kustomization may name a source or a dependency of another namespace.
    pub cross_namespace_references: bool,
    /// Publish ExternalArtifacts, and write nothing else to the cluster.
    pub external_artifacts: bool,
    /// Mirrored registries, those of the flags last.
    pub upstreams: Vec<UpstreamSettings>,
    /// Listeners for one upstream each.
    pub mirror_listen: Vec<MirrorListen>,
    /// Registries that may be spoken to in plain http.
    pub insecure_registries: Vec<HostPort>,
    /// Whether objects may say `insecure: true`.
    pub insecure_allow_http: bool,
    /// Addresses that may be contacted against the rules.
    pub egress_allow: Vec<Cidr>,
    /// Addresses that may not be contacted.
    pub egress_deny: Vec<Cidr>,
    /// Token services that registries may name on other domains.
    pub token_realms: Vec<HostPort>,
    /// Features that are switched on or off; of one that is named twice the last counts.
    pub feature_gates: Vec<FeatureGate>,
    /// The byte budget of what is cached; none if absent.
    pub store_max_bytes: Option<ByteSize>,
    /// Bytes of the disk that stay free; a twentieth, at most 512 MiB, if absent.
    pub store_headroom_bytes: Option<ByteSize>,
    /// How fast everything is checked, in bytes a second; 0 is never.
    pub store_scrub_bytes_per_second: ByteSize,
    /// How long a tag's digest is good.
    pub tag_ttl: FluxDuration,
    /// How long an absence is good.
    pub negative_ttl: FluxDuration,
    /// Reconciles at once.
    pub concurrency: usize,
    /// How long a superseded artifact is served at least.
    pub artifact_retention_ttl: FluxDuration,
    /// How many artifacts of one object are kept, the current one among them.
    pub artifact_retention_records: usize,
    /// The file with the admin listener's token.
    pub admin_token_file: Option<PathBuf>,
    /// The `kustomize` or `kubectl` to run; looked for on PATH if absent.
    pub kustomize_program: Option<PathBuf>,
    /// How logs are written.
    pub log_format: LogFormat,
    /// The registry listener's own settings.
    pub registry: RegistrySettings,
}

/// What the command line found out about its surroundings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Whether it runs as root.
    pub root: bool,
    /// `XDG_DATA_HOME`.
    pub xdg_data_home: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// The working directory.
    pub directory: Option<PathBuf>,
}

impl Surroundings {
    /// Where data is kept unless it is said: `/var/lib/larder` for root, else `larder` in the user's data folder
    /// (XDG Base Directory: an absolute `$XDG_DATA_HOME`, else `~/.local/share`).
    pub fn data(&self) -> PathBuf {
        if self.root {
            return "/var/lib/larder".into();
        }
        let absolute = |path: &Option<PathBuf>| path.clone().filter(|p| p.is_absolute());
        absolute(&self.xdg_data_home)
            .or_else(|| absolute(&self.home).map(|home| home.join(".local/share")))
            .map_or_else(|| "/var/lib/larder".into(), |base| base.join("larder"))
    }
}

impl Config {
    /// What flags (with the environment) and file together make.
    ///
    /// # Errors
    /// What each setting alone does not show: a mirror listener for an upstream that is none, a HOST twice, and such.
    pub fn resolve(flags: Settings, file: Settings, surroundings: &Surroundings) -> Result<Self, ConfigErrors> {
        let settings = flags.over(file);
        let wrong = check::together(&settings);
        if wrong.is_empty() { Ok(Self::of(settings, surroundings)) } else { Err(ConfigErrors::new(wrong)) }
    }

    /// What settings make, right or not.
    fn of(settings: Settings, surroundings: &Surroundings) -> Self {
        let mut upstreams = settings.upstreams;
        for flag in settings.upstream {
            upstreams.retain(|u| u.host != flag.host);
            upstreams.push(UpstreamSettings::new(flag.host, flag.url));
        }
        let address = |port| Address::new("127.0.0.1", port);
        // It runs in a directory of its own.
        let program = settings.kustomize_program.map(|program| match &surroundings.directory {
            Some(directory) => directory.join(program),
            None => program,
        });
        Self {
            data: settings.data.unwrap_or_else(|| surroundings.data()),
            registry_listen: settings.registry_listen.unwrap_or_else(|| address(5000)),
            artifact_listen: settings.artifact_listen.unwrap_or_else(|| address(9790)),
            admin_listen: settings.admin_listen.unwrap_or_else(|| address(9440)),
            artifact_advertise: settings.artifact_advertise,
            objects: settings.objects,
            kubernetes: settings.kubernetes.unwrap_or(false),
            watch_label_selector: settings.watch_label_selector,
            watch_kinds: watch_kinds(&settings.watch_kind, settings.external_artifacts == Some(true)),
            replica_address: settings.replica_address,
            events_addr: settings.events_addr,
            cross_namespace_references: !settings.no_cross_namespace_refs.unwrap_or(false),
            external_artifacts: settings.external_artifacts.unwrap_or(false),
            upstreams,
            mirror_listen: settings.mirror_listen,
            insecure_registries: settings.insecure_registry,
            insecure_allow_http: settings.insecure_allow_http.unwrap_or(true),
            egress_allow: settings.egress_allow,
            egress_deny: settings.egress_deny,
            token_realms: settings.token_realms,
            feature_gates: settings.feature_gates,
            store_max_bytes: settings.store_max_bytes.or(settings.store.max_bytes),
            store_headroom_bytes: settings.store.headroom_bytes,
            store_scrub_bytes_per_second: settings.store.scrub_bytes_per_second.unwrap_or(ByteSize(20_000_000)),
            tag_ttl: settings.tag_ttl.unwrap_or_else(|| FluxDuration::from_secs(60)),
            negative_ttl: settings.negative_ttl.unwrap_or_else(|| FluxDuration::from_secs(30)),
            concurrency: settings.concurrency.map_or(16, |n| n.get().into()),
            artifact_retention_ttl: settings.artifact_retention_ttl.unwrap_or_else(|| FluxDuration::from_secs(60)),
            artifact_retention_records: settings.artifact_retention_records.map_or(2, |n| n.get().into()),
            admin_token_file: settings.admin_token_file,
            kustomize_program: program,
            log_format: settings.log_format.unwrap_or_default(),
            registry: settings.registry,
        }
    }

    /// Whether a feature is switched on.
    pub fn is_on(&self, feature: Feature) -> bool {
        self.feature_gates.iter().rev().find(|gate| gate.feature == feature).is_some_and(|gate| gate.on)
    }

    /// Who may use them.
    pub fn access(&self) -> access::Config {
        let RegistrySettings { htpasswd, token, access, .. } = self.registry.clone();
        let rule = |rule: AccessRule| access::Rule { repositories: rule.matches, read: rule.read, write: rule.write };
        access::Config { htpasswd, token, rules: access.into_iter().map(rule).collect() }
    }

    /// Whether repositories of its own accept pushes: as told, else only while no upstream is configured.
    pub fn local_repositories(&self) -> bool {
        self.registry.local_repositories.unwrap_or(self.upstreams.is_empty())
    }

    /// The base of all artifact URLs, without a slash at its end: as advertised, else the address on which the
    /// artifact listener really listens, `0.0.0.0` and `::` being replaced by the machine's name.
    pub fn artifact_base(&self, listening: std::net::SocketAddr, hostname: &str) -> String {
        match &self.artifact_advertise {
            Some(advertise) => advertise.base(),
            None if listening.ip().is_unspecified() => format!("http://{hostname}:{}", listening.port()),
            None => format!("http://{listening}"),
        }
    }
}

/// Each once; a chart needs its HelmRepository. Where artifacts are only published, no Kustomization is applied.
fn watch_kinds(named: &[WatchKind], only_publishes: bool) -> Vec<Kind> {
    let named = |kind: Kind| named.is_empty() || named.contains(&WatchKind(kind));
    let needed = |kind: Kind| named(kind) || (kind == Kind::HelmRepository && named(Kind::HelmChart));
    let applied = |kind: Kind| kind == Kind::Kustomization && only_publishes;
    Kind::ALL.into_iter().filter(|kind| needed(*kind) && !applied(*kind)).collect()
}

/// The JSON schema of the configuration file, for `larder config schema`.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Settings).to_value();
    // What the reader takes by another spelling too, which the generator does not tell of.
    if let Some(properties) = schema["properties"].as_object_mut() {
        for (name, alias) in [("tagTtl", "tagTTL"), ("negativeTtl", "negativeTTL")] {
            let property = properties[name].clone();
            properties.insert(alias.to_owned(), property);
        }
    }
    schema
}

/// Reads a configuration file's text; `name` is for messages.
///
/// # Errors
/// Everything that [`check`] finds.
pub fn parse_file(name: &Path, text: &str) -> Result<Settings, ConfigErrors> {
    parse(text).map_err(|errors| errors.of(name))
}

fn parse(text: &str) -> Result<Settings, ConfigErrors> {
    yaml::parse(text).map_err(ConfigErrors::new)
}

#[cfg(test)]
mod tests;
