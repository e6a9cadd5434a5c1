//! From an artifact's contents to the documents that a Kustomization stands for.

use std::path::PathBuf;

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
    /// A directory of this process for temporary files.
    pub scratch: PathBuf,
    /// `--kustomize-program`, else found on PATH.
    pub program: Option<PathBuf>,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// YAML documents in apply order, `---` between them; empty where there is nothing.
    pub yaml: String,
    /// One entry an object, in the same order.
    pub inventory: Vec<InventoryEntry>,
}

/// Why nothing came out.
#[derive(Debug, thiserror::Error)]
#[error("todo")]
pub struct RenderError;

impl RenderError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        Class::Spec
    }

    /// The condition's reason: ArtifactFailed, BuildFailed, ValidationFailed, …
    pub fn reason(&self) -> &'static str {
        "BuildFailed"
    }

    /// Whether only another spec helps.
    pub fn is_stalled(&self) -> bool {
        false
    }
}

/// Renders. Synchronous: run it behind `blocking::io`.
pub fn render(request: &Request<'_>) -> Result<Rendered, RenderError> {
    let _ = request;
    todo!()
}
