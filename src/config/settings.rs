//! Every setting, once: flag, environment variable, key, help and schema.

use std::{num::NonZeroU16, path::PathBuf};

use clap::Args;
use schemars::JsonSchema;
use serde::Deserialize;

use super::values::{
    Address, Advertise, ByteSize, Cidr, FeatureGate, HostPort, MirrorListen, ReplicaAddress, UpstreamFlag, WatchKind,
};
use crate::{
    mirror,
    objects::{FluxDuration, cluster::Notifications},
    server::registry::access::{Pattern, Subject},
    telemetry::LogFormat,
};

/// The settings of `larder serve`. Absent ones have their default.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Configuration file, YAML: every flag is a key in camelCase, and there are some more (`larder config schema`).
    #[arg(long, value_name = "FILE", env = "LARDER_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Where everything is kept [default: /var/lib/larder as root, else larder in the user's data folder].
    #[arg(long, value_name = "DIR", env = "LARDER_DATA")]
    pub data: Option<PathBuf>,

    /// Address of the registry listener; port 0 is any free one [default: 127.0.0.1:5000].
    #[arg(long, value_name = "ADDR", env = "LARDER_REGISTRY_LISTEN")]
    pub registry_listen: Option<Address>,

    /// Address of the artifact listener [default: 127.0.0.1:9790].
    #[arg(long, value_name = "ADDR", env = "LARDER_ARTIFACT_LISTEN")]
    pub artifact_listen: Option<Address>,

    /// Address of the admin listener: health, metrics, objects [default: 127.0.0.1:9440].
    #[arg(long, value_name = "ADDR", env = "LARDER_ADMIN_LISTEN")]
    pub admin_listen: Option<Address>,

    /// How the artifact listener is named in the URLs of statuses [default: the address it listens on].
    #[arg(long, value_name = "HOST[:PORT]|URL", env = "LARDER_ARTIFACT_ADVERTISE")]
    pub artifact_advertise: Option<Advertise>,

    /// Reconcile the objects in this directory's *.yaml, *.yml and *.json; no cluster needed.
    #[arg(long, value_name = "DIR", env = "LARDER_OBJECTS")]
    pub objects: Option<PathBuf>,

    /// Reconcile the cluster's objects: the cluster of KUBECONFIG, or the one that this runs in.
    #[arg(long, value_name = "BOOL", env = "LARDER_KUBERNETES", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub kubernetes: Option<bool>,

    /// Only objects of the cluster with these labels are Larder's, as in sharding.fluxcd.io/key=larder.
    #[arg(long, value_name = "SELECTOR", env = "LARDER_WATCH_LABEL_SELECTOR")]
    pub watch_label_selector: Option<String>,

    /// Which of the cluster's kinds are reconciled (repeatable) [default: all].
    #[arg(long, value_name = "KIND", env = "LARDER_WATCH_KIND", value_delimiter = ',')]
    pub watch_kind: Vec<WatchKind>,

    /// Where the other replicas reach this one's artifact listener [default: the address it listens on].
    #[arg(long, value_name = "HOST:PORT", env = "LARDER_REPLICA_ADDRESS")]
    pub replica_address: Option<ReplicaAddress>,

    /// Flux's notification-controller, which is told of events, as in <http://notification-controller.flux-system>.
    #[arg(long, value_name = "URL", env = "LARDER_EVENTS_ADDR")]
    #[schemars(with = "Option<String>")]
    pub events_addr: Option<Notifications>,

    /// Forbid Kustomizations to name sources and dependencies of other namespaces [default: false].
    #[arg(long, value_name = "BOOL", env = "LARDER_NO_CROSS_NAMESPACE_REFS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub no_cross_namespace_refs: Option<bool>,

    /// Publish artifacts as ExternalArtifacts in the cluster, and write nothing else there [default: false].
    #[arg(long, value_name = "BOOL", env = "LARDER_EXTERNAL_ARTIFACTS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub external_artifacts: Option<bool>,

    /// Mirror the registry HOST, which is at URL (repeatable; HOST is what ns= carries).
    #[arg(long, value_name = "HOST=URL", env = "LARDER_UPSTREAM", value_delimiter = ',')]
    pub upstream: Vec<UpstreamFlag>,

    /// A listener for one upstream, for clients that know no mirrors (repeatable).
    #[arg(long, value_name = "ADDR=HOST", env = "LARDER_MIRROR_LISTEN", value_delimiter = ',')]
    pub mirror_listen: Vec<MirrorListen>,

    /// Allow plain http with this registry, for kinds that have no insecure field (repeatable).
    #[arg(long, value_name = "HOST[:PORT]", env = "LARDER_INSECURE_REGISTRY", value_delimiter = ',')]
    pub insecure_registry: Vec<HostPort>,

    /// Whether objects may say insecure: true [default: true].
    #[arg(long, value_name = "BOOL", env = "LARDER_INSECURE_ALLOW_HTTP", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure_allow_http: Option<bool>,

    /// Addresses that may be contacted although a rule forbids them (repeatable).
    #[arg(long, value_name = "CIDR", env = "LARDER_EGRESS_ALLOW", value_delimiter = ',')]
    pub egress_allow: Vec<Cidr>,

    /// Addresses that must not be contacted (repeatable).
    #[arg(long, value_name = "CIDR", env = "LARDER_EGRESS_DENY", value_delimiter = ',')]
    pub egress_deny: Vec<Cidr>,

    /// Token services that get credentials although a registry on another domain names them (repeatable).
    #[arg(long, value_name = "HOST[:PORT]", env = "LARDER_TOKEN_REALMS", value_delimiter = ',')]
    pub token_realms: Vec<HostPort>,

    /// Switch a feature that is off by default (repeatable): ObjectLevelWorkloadIdentity=true lets spec.serviceAccountName log
    /// in at a cloud.
    #[arg(long, value_name = "NAME=BOOL", env = "LARDER_FEATURE_GATES", value_delimiter = ',')]
    pub feature_gates: Vec<FeatureGate>,

    /// Byte budget of what is cached; short for store.maxBytes [default: none].
    #[arg(long, value_name = "SIZE", env = "LARDER_STORE_MAX_BYTES")]
    pub store_max_bytes: Option<ByteSize>,

    /// How long a tag's digest is good without asking again [default: 60s].
    #[arg(long, value_name = "DURATION", env = "LARDER_TAG_TTL")]
    #[serde(alias = "tagTTL")]
    pub tag_ttl: Option<FluxDuration>,

    /// How long an answer that something is absent is good [default: 30s].
    #[arg(long, value_name = "DURATION", env = "LARDER_NEGATIVE_TTL")]
    #[serde(alias = "negativeTTL")]
    pub negative_ttl: Option<FluxDuration>,

    /// How many objects are reconciled at once [default: 16].
    #[arg(long, value_name = "N", env = "LARDER_CONCURRENCY")]
    pub concurrency: Option<NonZeroU16>,

    /// How long a superseded artifact is served at least, and its unpacked contents kept [default: 60s].
    #[arg(long, value_name = "DURATION", env = "LARDER_ARTIFACT_RETENTION_TTL")]
    pub artifact_retention_ttl: Option<FluxDuration>,

    /// How many artifacts of one object are served at least, the current one among them [default: 2].
    #[arg(long, value_name = "N", env = "LARDER_ARTIFACT_RETENTION_RECORDS")]
    pub artifact_retention_records: Option<NonZeroU16>,

    /// File with the token that the admin listener asks for where it is not on loopback.
    #[arg(long, value_name = "FILE", env = "LARDER_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// The kustomize (5 or later) or kubectl (1.27 or later) to run [default: looked for on PATH].
    #[arg(long, value_name = "FILE", env = "LARDER_KUSTOMIZE_PROGRAM")]
    pub kustomize_program: Option<PathBuf>,

    /// How logs are written to stderr [default: text].
    #[arg(long, value_name = "FORMAT", env = "LARDER_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,

    /// The store.
    #[arg(skip)]
    pub store: StoreSettings,

    /// Mirrored registries.
    #[arg(skip)]
    pub upstreams: Vec<UpstreamSettings>,

    /// The registry listener.
    #[arg(skip)]
    pub registry: RegistrySettings,
}

impl Settings {
    /// These, and where they say nothing, the others. Lists are not merged: one that is given replaces the other.
    pub fn over(self, other: Self) -> Self {
        fn list<T>(first: Vec<T>, second: Vec<T>) -> Vec<T> {
            if first.is_empty() { second } else { first }
        }
        Self {
            config: self.config.or(other.config),
            data: self.data.or(other.data),
            registry_listen: self.registry_listen.or(other.registry_listen),
            artifact_listen: self.artifact_listen.or(other.artifact_listen),
            admin_listen: self.admin_listen.or(other.admin_listen),
            artifact_advertise: self.artifact_advertise.or(other.artifact_advertise),
            objects: self.objects.or(other.objects),
            kubernetes: self.kubernetes.or(other.kubernetes),
            watch_label_selector: self.watch_label_selector.or(other.watch_label_selector),
            watch_kind: list(self.watch_kind, other.watch_kind),
            replica_address: self.replica_address.or(other.replica_address),
            events_addr: self.events_addr.or(other.events_addr),
            no_cross_namespace_refs: self.no_cross_namespace_refs.or(other.no_cross_namespace_refs),
            external_artifacts: self.external_artifacts.or(other.external_artifacts),
            upstream: list(self.upstream, other.upstream),
            mirror_listen: list(self.mirror_listen, other.mirror_listen),
            insecure_registry: list(self.insecure_registry, other.insecure_registry),
            insecure_allow_http: self.insecure_allow_http.or(other.insecure_allow_http),
            egress_allow: list(self.egress_allow, other.egress_allow),
            egress_deny: list(self.egress_deny, other.egress_deny),
            token_realms: list(self.token_realms, other.token_realms),
            feature_gates: list(self.feature_gates, other.feature_gates),
            store_max_bytes: self.store_max_bytes.or(other.store_max_bytes),
            tag_ttl: self.tag_ttl.or(other.tag_ttl),
            negative_ttl: self.negative_ttl.or(other.negative_ttl),
            concurrency: self.concurrency.or(other.concurrency),
            artifact_retention_ttl: self.artifact_retention_ttl.or(other.artifact_retention_ttl),
            artifact_retention_records: self.artifact_retention_records.or(other.artifact_retention_records),
            admin_token_file: self.admin_token_file.or(other.admin_token_file),
            kustomize_program: self.kustomize_program.or(other.kustomize_program),
            log_format: self.log_format.or(other.log_format),
            store: StoreSettings {
                max_bytes: self.store.max_bytes.or(other.store.max_bytes),
                headroom_bytes: self.store.headroom_bytes.or(other.store.headroom_bytes),
                scrub_bytes_per_second: self.store.scrub_bytes_per_second.or(other.store.scrub_bytes_per_second),
            },
            upstreams: list(self.upstreams, other.upstreams),
            registry: if self.registry == RegistrySettings::default() { other.registry } else { self.registry },
        }
    }
}

/// `store`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StoreSettings {
    /// Byte budget of what is cached: the least recently used goes. Pushed content is not counted. None by default.
    pub max_bytes: Option<ByteSize>,
    /// Bytes of the disk that stay free: what is cached makes way. By default a twentieth of the disk, at most 512MiB.
    pub headroom_bytes: Option<ByteSize>,
    /// How fast everything is read and checked about once a week, in bytes a second; 20MB by default, 0 is never.
    pub scrub_bytes_per_second: Option<ByteSize>,
}

/// Who may read what an upstream holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UpstreamMode {
    /// Everybody, what the upstream shows to everybody.
    #[default]
    Public,
    /// Each with its own credential.
    PassThrough,
    /// Everybody, with the credential given here.
    Shared,
}

impl From<UpstreamMode> for mirror::Mode {
    fn from(mode: UpstreamMode) -> Self {
        match mode {
            UpstreamMode::Public => Self::Public,
            UpstreamMode::PassThrough => Self::PassThrough,
            UpstreamMode::Shared => Self::Shared,
        }
    }
}

/// One of `upstreams`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpstreamSettings {
    /// What `ns=` carries.
    pub host: HostPort,
    /// Where to ask; `https://HOST` if absent.
    #[serde(default)]
    pub url: Option<String>,
    /// Who may read.
    #[serde(default)]
    pub mode: UpstreamMode,
    /// A Docker configuration file with the credential of mode shared.
    #[serde(default)]
    pub credentials: Option<PathBuf>,
    /// Which repositories are mirrored, `*` for any part of a name, slashes included; all if there is none. In mode
    /// shared these are what every workload may read.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub repositories: Vec<Pattern>,
    /// A file with further certificate authorities, PEM.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// How long a tag's digest is good without asking again; 60s.
    #[serde(default, rename = "tagTTL")]
    pub tag_ttl: Option<FluxDuration>,
    /// How long an answer that something is absent is good; 30s.
    #[serde(default, rename = "negativeTTL")]
    pub negative_ttl: Option<FluxDuration>,
    /// How long what is cached is good while the upstream fails; 24h.
    #[serde(default)]
    pub stale_if_error: Option<FluxDuration>,
    /// Tags that change more or less often.
    #[serde(default)]
    pub tags: Vec<TagRule>,
    /// A listener for this upstream alone.
    #[serde(default)]
    pub listen: Option<Address>,
}

impl UpstreamSettings {
    /// One with defaults.
    pub fn new(host: HostPort, url: String) -> Self {
        Self {
            host,
            url: Some(url),
            mode: UpstreamMode::Public,
            credentials: None,
            repositories: Vec::new(),
            ca: None,
            tag_ttl: None,
            negative_ttl: None,
            stale_if_error: None,
            tags: Vec::new(),
            listen: None,
        }
    }
}

/// One of an upstream's `tags`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TagRule {
    /// A regular expression that the tag must match.
    pub pattern: String,
    /// How long its digest is good.
    pub ttl: FluxDuration,
}

/// `registry`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RegistrySettings {
    /// Serve https.
    pub tls: Option<TlsSettings>,
    /// Users and passwords, as `htpasswd -B` writes them; read again when it changes.
    pub htpasswd: Option<PathBuf>,
    /// A file with a token that is let in, as a bearer token or as the password of user `token`; read again when it
    /// changes.
    pub token: Option<PathBuf>,
    /// Who may do what with local repositories; the first that matches counts, and what none matches nobody may use. With
    /// users and without rules every user may do everything; without both everybody may read, and this machine write.
    pub access: Vec<AccessRule>,
    /// Whether repositories of its own accept pushes; by default only while no upstream is configured.
    pub local_repositories: Option<bool>,
}

/// `registry.tls`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsSettings {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Authorities of the clients' certificates, PEM; none are asked for if absent.
    #[serde(default, rename = "clientCA")]
    pub client_ca: Option<PathBuf>,
}

/// One of `registry.access`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessRule {
    /// Repositories, `*` for any part, slashes included.
    #[serde(rename = "match")]
    #[schemars(with = "String")]
    pub matches: Pattern,
    /// Who may read: names of users, `*` for every user, `anonymous` for everybody, `token` for the token's holder.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub read: Vec<Subject>,
    /// Who may write, and read.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub write: Vec<Subject>,
}
