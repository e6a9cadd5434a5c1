//! What the installation decides for all objects.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use crate::{
    apply::{cluster::Applier, confine::Launcher},
    artifact::build::Caps,
    oci::Registry,
};

/// What the reconciler is told by the installation.
#[derive(Clone, Debug)]
pub struct Config {
    /// In front of every artifact's path: `http://host:port`, without a slash at the end.
    pub advertise: String,
    /// How many passes at most are under way for one registry; those that wait for it do not count.
    pub concurrency: usize,
    /// Registries (`host[:port]` as named) that may be spoken to over plain http, for kinds that have no `insecure` field.
    pub insecure_registries: Vec<Registry>,
    /// Whether objects may say `insecure: true`.
    pub insecure_allowed: bool,
    /// Whether a ServiceAccount that an object names may log in at a cloud (gate ObjectLevelWorkloadIdentity).
    pub object_level_identity: bool,
    /// How long a superseded artifact stays fetchable at least.
    pub retention: Duration,
    /// How many artifacts of an object, the current one included, stay fetchable at least.
    pub retention_records: usize,
    /// Caps on what layers may expand to.
    pub caps: Caps,
    /// How long a pass over a source may last before its status says that it is under way; never, if absent.
    pub progress_after: Option<Duration>,
    /// What renders Kustomizations that this process does not render itself.
    pub rendering: Rendering,
    /// What applies Kustomizations; without it they are rendered to files.
    pub applier: Option<Applier>,
    /// Whether a Kustomization may name a source or a dependency of another namespace.
    pub cross_namespace_references: bool,
}

/// What renders Kustomizations that this process does not render itself.
#[derive(Clone, Debug)]
pub struct Rendering {
    /// `--kustomize-program`.
    pub program: Option<PathBuf>,
    /// PATH, to look for a program in where none is named.
    pub search: Option<OsString>,
    /// How this program starts itself again to confine that one.
    pub launcher: Launcher,
}
