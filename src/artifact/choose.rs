//! Which layers make the artifact.

use crate::oci::{Descriptor, ImageManifest};

/// What an object says about layers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Choice {
    /// `layerSelector.mediaType`.
    pub media_type: Option<String>,
    /// `layerSelector.operation: copy`.
    pub copy: bool,
    /// All layers of a container image as one tree (a GitRepository with `oci://`, `larder pull`, or annotated
    /// `larder.dev/layers: all`).
    pub all_layers_of_images: bool,
}

/// The layers chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The layers, base first; one unless `image`.
    pub layers: Vec<Descriptor>,
    /// A container image's layers: whiteouts and image rules apply.
    pub image: bool,
    /// The blob is the artifact, whatever it holds.
    pub copy: bool,
    /// A Helm chart's layer.
    pub chart: bool,
}

/// Chooses (contract section 6, "Which layers").
pub fn choose(manifest: &ImageManifest, choice: &Choice) -> Result<Chosen, super::build::ArtifactError> {
    let _ = (manifest, choice);
    todo!()
}
