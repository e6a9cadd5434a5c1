//! From an artifact's contents to the documents that a Kustomization stands for.
//!
//! **Promise.** The objects are those that Flux's kustomize-controller would apply for the same spec and the same
//! files: built as kustomize builds them, variables replaced, labelled with their owner, in apply order. What cannot be
//! done here (decryption, without a cluster a server's dry-run) is refused with its name, never left out in silence.
//! Equal input gives equal bytes, whichever program built it.
//!
//! **Two ways.** A plain folder, with at most `targetNamespace`, `commonMetadata` and `images`, is rendered in this
//! process. A kustomization file, patches, components, a prefix or suffix, and `buildMetadata` go through kustomize
//! as a program, in a working copy and confined ([`confine`](super::confine)).
//!
//! **What is left out.** Objects that opt out of being applied (`kustomize.toolkit.fluxcd.io/reconcile: disabled` or
//! `ssa: Ignore`, as label or annotation) are not in the file; as in Flux, they keep their entry in the inventory, so
//! that nothing deletes them.
//!
//! **Bounds.** 64 MiB of manifests and of output, a million YAML nodes with aliases expanded, nesting of 128, what
//! [`substitute`](super::substitute) says of variables, and for the program 30 s of CPU, `spec.timeout` (else 60 s) of time, 1 GiB of memory.
//!
//! **Concurrency.** Any number of calls at once; each works in a folder of its own below `scratch` and removes it.
//! After a crash that folder remains, for the owner of `scratch` to clear at the next start.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

pub use super::validate::Validation;
use super::{
    confine::Launcher,
    documents, emit, marks,
    object::{self, Id},
    order, overlay,
    program::ProgramError,
    substitute::{SubstituteError, Variables, Work, substitute},
    transform, tree, validate,
    yaml::{self, Budget, YamlError},
};
use crate::{
    class::Class,
    objects::{InventoryEntry, KustomizationSpec},
};

/// What to render.
pub struct Request<'a> {
    /// Name of the Kustomization.
    pub name: &'a str,
    /// Namespace of the Kustomization.
    pub namespace: &'a str,
    /// Its spec.
    pub spec: &'a KustomizationSpec,
    /// The artifact's contents: a directory of read-only files, without symlinks, that nobody changes meanwhile.
    pub root: PathBuf,
    /// What `spec.postBuild` replaces; `None` where nothing is replaced.
    pub variables: Option<&'a Variables>,
    /// A directory of this process for temporary files.
    pub scratch: PathBuf,
    /// `--kustomize-program`, else found on PATH.
    pub program: Option<PathBuf>,
    /// The value of PATH, to look for a program in where none is named.
    pub search: Option<OsString>,
    /// How to start this program again for the confined part: `Launcher::own(std::env::current_exe()?)`.
    pub launcher: Launcher,
    /// Whether nobody waits for it any more; asked on the way.
    pub given_up: &'a dyn Fn() -> bool,
}

impl Request<'_> {
    fn go_on(&self) -> Result<(), RenderError> {
        if (self.given_up)() { Err(RenderError::GivenUp) } else { Ok(()) }
    }
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// YAML documents in apply order, `---` between them; empty where there is nothing.
    pub yaml: String,
    /// One entry an object, in the same order, those that opt out of being applied included.
    pub inventory: Vec<InventoryEntry>,
}

/// Why nothing came out.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The artifact has no such path.
    #[error("kustomization path not found: stat {path}: {source}")]
    PathNotFound {
        /// `spec.path`.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The path leads to a file.
    #[error("kustomization path {path} is a file; spec.path must name a folder of the artifact")]
    NotAFolder {
        /// `spec.path`.
        path: String,
    },
    /// The spec asks for something that is not done here.
    #[error("spec.{field} is not supported here: {why}")]
    Unsupported {
        /// The field of the spec.
        field: &'static str,
        /// Why, and what to do instead.
        why: &'static str,
    },
    /// `validation: server` without a server.
    #[error("spec.validation is server, a dry-run in a cluster, and this renders without one: use client or none")]
    NeedsCluster,
    /// A word that `validation` does not have.
    #[error("spec.validation {value:?} is not one of none, client, server")]
    UnknownValidation {
        /// The word.
        value: String,
    },
    /// The spec's own field is malformed.
    #[error("spec.{field}: {why}")]
    Field {
        /// The field of the spec.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A file is not YAML, or too much of it.
    #[error("failed to decode Kubernetes YAML from {place}: {source}; {hint}")]
    Yaml {
        /// The file.
        place: String,
        /// Why.
        #[source]
        source: Box<YamlError>,
        /// What to do.
        hint: &'static str,
    },
    /// A document is YAML, but not an object.
    #[error("failed to decode Kubernetes YAML from {place}: {why}; {hint}")]
    Manifest {
        /// The file and line, or the object.
        place: String,
        /// Why.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// An object is there twice.
    #[error("may not add resource with an already registered id: {id} ({}); remove one of the two", .id.api_version())]
    Duplicate {
        /// Which.
        id: Box<Id>,
    },
    /// An object is encrypted.
    #[error("{id} is SOPS encrypted, and nothing is decrypted here; ship it decrypted, or create it by other means")]
    Encrypted {
        /// Which.
        id: Box<Id>,
    },
    /// A variable's name is none.
    #[error("variable name {name:?} is invalid: letters, digits and _, not beginning with a digit")]
    Variable {
        /// The name.
        name: String,
    },
    /// The variables cannot be replaced.
    #[error("post build failed for {id}: {source}")]
    Substitution {
        /// In which object.
        id: Box<Id>,
        /// Why.
        #[source]
        source: SubstituteError,
    },
    /// What replacing the variables made is not an object any more.
    #[error("post build failed for {id}: with its variables replaced it is no longer one YAML mapping{why}")]
    Substituted {
        /// In which object.
        id: Box<Id>,
        /// More, where it is known. Never a value.
        why: String,
    },
    /// An object fails the client's checks.
    #[error("{id} is invalid: {why}")]
    Invalid {
        /// Which.
        id: Box<Id>,
        /// Why.
        why: String,
    },
    /// A kustomization is not one.
    #[error("{file} is not a kustomization: {why}")]
    Kustomization {
        /// The file, relative to the artifact's root.
        file: String,
        /// Why.
        why: String,
    },
    /// A kustomization refers to the network.
    #[error(
        "{file}: {field} refers to {entry:?}, and remote bases are not allowed: put a copy of it into the artifact"
    )]
    Remote {
        /// The file, relative to the artifact's root.
        file: String,
        /// The field.
        field: String,
        /// The reference, without credentials.
        entry: String,
    },
    /// A kustomization refers to a file outside the artifact.
    #[error("{file}: {field} refers to {entry:?}, which is outside the artifact: put a copy of it into the artifact")]
    Outside {
        /// The file, relative to the artifact's root.
        file: String,
        /// The field.
        field: String,
        /// The path.
        entry: String,
    },
    /// Over a bound.
    #[error("{what}: more than is rendered here")]
    TooLarge {
        /// What is too large.
        what: String,
    },
    /// Its time is over, or its Kustomization went.
    #[error("rendering was given up")]
    GivenUp,
    /// The program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The local disk.
    #[error("{}: {source}", .path.display())]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl RenderError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::PathNotFound { .. } => Class::NotFound,
            Self::Unsupported { .. } | Self::NeedsCluster | Self::UnknownValidation { .. } | Self::Field { .. } => {
                Class::Spec
            }
            Self::Yaml { source, .. } if source.is_limit() => Class::Limit,
            Self::Substitution { source, .. } if source.is_limit() => Class::Limit,
            Self::NotAFolder { .. }
            | Self::Yaml { .. }
            | Self::Manifest { .. }
            | Self::Duplicate { .. }
            | Self::Encrypted { .. }
            | Self::Variable { .. }
            | Self::Substitution { .. }
            | Self::Substituted { .. }
            | Self::Invalid { .. }
            | Self::Kustomization { .. } => Class::Layer,
            Self::Remote { .. } | Self::Outside { .. } => Class::Policy,
            Self::TooLarge { .. } | Self::GivenUp => Class::Limit,
            Self::Program(error) => error.class(),
            Self::Disk { .. } => Class::Disk,
        }
    }

    /// The condition's reason: ArtifactFailed, BuildFailed, ValidationFailed.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::PathNotFound { .. } => "ArtifactFailed",
            Self::NeedsCluster | Self::UnknownValidation { .. } | Self::Invalid { .. } => "ValidationFailed",
            _ => "BuildFailed",
        }
    }

    /// Whether only another spec helps.
    pub fn is_stalled(&self) -> bool {
        self.class() == Class::Spec
    }
}

/// Renders to a text. Synchronous: run it behind `blocking::io`.
///
/// # Errors
/// What is wrong with the spec or the artifact; also `validation: server`, which needs a server.
pub fn render(request: &Request<'_>) -> Result<Rendered, RenderError> {
    if Validation::of(request.spec.validation.as_deref())? == Validation::Server {
        return Err(RenderError::NeedsCluster);
    }
    let objects = objects(request)?;
    Ok(Rendered {
        yaml: emit::documents(objects.iter().map(|(_, object)| object).filter(|o| !marks::Marks::of(o).skip)),
        inventory: objects.iter().map(|(id, _)| id.inventory_entry()).collect(),
    })
}

/// The objects in apply order, labelled with their owner, those that opt out of being applied included. Synchronous: run it
/// behind `blocking::io`.
///
/// # Errors
/// What is wrong with the spec or the artifact.
pub fn objects(request: &Request<'_>) -> Result<Vec<(Id, Value)>, RenderError> {
    let spec = request.spec;
    let validation = Validation::of(spec.validation.as_deref())?;
    refuse_unsupported(spec)?;

    let path = spec.path.as_deref().unwrap_or_default();
    let folder = tree::secure_join(&request.root, path);
    let metadata = fs::metadata(&folder).map_err(|source| RenderError::PathNotFound { path: shown(path), source })?;
    if !metadata.is_dir() {
        return Err(RenderError::NotAFolder { path: shown(path) });
    }

    request.go_on()?;
    let mut objects = build(request, &folder)?;
    refuse_unnamed(&objects)?;
    // Flux applies no kustomization, whatever file it is in.
    objects.retain(|object| {
        let id = Id::of(object);
        !(id.group == "kustomize.config.k8s.io" && id.kind.eq_ignore_ascii_case("kustomization"))
    });
    if let Some(object) = objects.iter().find(|object| validate::is_encrypted(object)) {
        return Err(RenderError::Encrypted { id: Box::new(Id::of(object)) });
    }
    if let Some(variables) = request.variables {
        replace_variables(&mut objects, variables, request)?;
        refuse_unnamed(&objects)?;
    }
    request.go_on()?;
    for object in &mut objects {
        label(object, request);
    }
    if validation != Validation::None {
        validate::check(&objects)?;
    }
    let mut named: Vec<(Id, Value)> = objects.into_iter().map(|object| (Id::of(&object), object)).collect();
    named.sort_by(|a, b| order::key(&a.0).cmp(&order::key(&b.0)));
    Ok(named)
}

fn refuse_unnamed(objects: &[Value]) -> Result<(), RenderError> {
    let unnamed = |id: &Id| id.version.is_empty() || id.kind.is_empty() || id.name.is_empty();
    match objects.iter().map(Id::of).find(unnamed) {
        None => Ok(()),
        Some(id) => Err(RenderError::Manifest {
            place: id.to_string(),
            why: "apiVersion, kind or metadata.name is missing or not text".into(),
            hint: "add it",
        }),
    }
}

/// Replaces the variables in each object's text, as Flux does.
fn replace_variables(objects: &mut [Value], variables: &Variables, request: &Request<'_>) -> Result<(), RenderError> {
    // Whoever was given up must not touch what is remembered: another has begun.
    request.go_on()?;
    variables.begin();
    if let Some(name) = variables.bad_name() {
        return Err(RenderError::Variable { name: name.chars().take(80).collect() });
    }
    let (mut budget, mut work) = (Budget::default(), Work::new(request.given_up));
    for object in objects.iter_mut().filter(|object| !marks::no_substitution(object)) {
        request.go_on()?;
        let id = || Box::new(Id::of(object));
        let text = emit::template(object);
        if !text.contains('$') {
            continue;
        }
        let text =
            substitute(&text, variables, &mut work).map_err(|source| RenderError::Substitution { id: id(), source })?;
        // The reason of a syntax error may quote a value.
        let mut found = yaml::documents(&text, &mut budget).map_err(|error| RenderError::Substituted {
            id: id(),
            why: format!(" (line {} of its YAML)", error.line),
        })?;
        match (found.pop(), found.is_empty()) {
            (Some((_, value)), true) if value.is_object() => *object = value,
            _ => return Err(RenderError::Substituted { id: id(), why: String::new() }),
        }
    }
    Ok(())
}

/// Which time a build may take: Flux's default is the interval, which says nothing about builds.
pub fn build_time(spec: &KustomizationSpec) -> Duration {
    spec.timeout.as_ref().map_or(Duration::from_secs(60), |timeout| timeout.get())
}

fn shown(path: &str) -> String {
    path.chars().take(200).collect()
}

/// Refuses fields that must not be passed over in silence.
///
/// # Errors
/// [`RenderError::Unsupported`], with the field.
pub fn refuse_unsupported(spec: &KustomizationSpec) -> Result<(), RenderError> {
    if spec.decryption.is_some() {
        return Err(RenderError::Unsupported {
            field: "decryption",
            why: "nothing is decrypted here; ship the objects decrypted and remove the field",
        });
    }
    Ok(())
}

/// How many bytes of YAML a rendering of `path` below `root` reads, at least nearly: a kustomization may take from all of the
/// artifact. Synchronous: run it behind `blocking::io`.
pub fn input(root: &Path, path: &str) -> u64 {
    let folder = tree::secure_join(root, path);
    let whole = tree::kustomization_file(&folder).is_some();
    tree::yaml_bytes(if whole { root } else { &folder })
}

/// The objects as kustomize gives them, before labels and order.
pub(super) fn build(request: &Request<'_>, folder: &Path) -> Result<Vec<Value>, RenderError> {
    let spec = request.spec;
    let given = |field: &Option<String>| field.as_deref().is_some_and(|text| !text.is_empty());
    let asks = !spec.patches.is_empty()
        || !spec.components.is_empty()
        || !spec.build_metadata.is_empty()
        || given(&spec.name_prefix)
        || given(&spec.name_suffix);
    if tree::kustomization_file(folder).is_some() {
        return overlay::build(request, folder, None);
    }
    let manifests = tree::manifests(folder)?;
    if asks || manifests.has_kustomization {
        return overlay::build(request, folder, Some(&manifests));
    }
    let mut objects = documents::read(folder, &manifests)?;
    // `none` asks only that everything parses.
    let unchecked = spec.validation.as_deref() == Some("none");
    if !unchecked {
        documents::refuse_duplicates(&objects)?;
    }
    if let Some(namespace) = spec.target_namespace.as_deref().filter(|text| !text.is_empty()) {
        transform::set_namespace(&mut objects, namespace)?;
        if !unchecked {
            documents::refuse_duplicates(&objects)?;
        }
    }
    transform::set_images(&mut objects, &overlay::merged_images(spec));
    documents::without_local(&mut objects);
    Ok(objects)
}

/// Labels as text, owner labels, then the common metadata, which wins as in Flux.
fn label(object: &mut Value, request: &Request<'_>) {
    object::labels_to_text(object);
    object::set_metadata(
        object,
        "labels",
        [
            ("kustomize.toolkit.fluxcd.io/name", request.name),
            ("kustomize.toolkit.fluxcd.io/namespace", request.namespace),
        ],
    );
    if let Some(common) = &request.spec.common_metadata {
        for (field, pairs) in [("labels", &common.labels), ("annotations", &common.annotations)] {
            object::set_metadata(object, field, pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        }
    }
}
