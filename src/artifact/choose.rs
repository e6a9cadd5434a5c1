//! Which layers make the artifact (contract section 6, "Which layers"; flux.md section 2, step 10).

use super::build::ArtifactError;
use crate::oci::{Descriptor, ImageManifest, media_type};

/// A Helm chart's signature, which may come before the chart.
const HELM_PROVENANCE: &str = "application/vnd.cncf.helm.chart.provenance.v1.prov";

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

impl Choice {
    /// What `layerSelector` says; an empty media type or operation counts as none. Any operation but `extract` and
    /// `copy` is an error of the spec.
    pub fn from_selector(media_type: Option<&str>, operation: Option<&str>) -> Result<Self, ArtifactError> {
        let copy = match operation {
            None | Some("" | "extract") => false,
            Some("copy") => true,
            Some(other) => return Err(ArtifactError::Operation(other.to_string())),
        };
        let media_type = media_type.filter(|m| !m.is_empty()).map(str::to_string);
        Ok(Self { media_type, copy, all_layers_of_images: false })
    }
}

/// The layers chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The layers, base first; one unless all layers of a container image were asked for.
    pub layers: Vec<Descriptor>,
    /// A container image's layers: whiteouts and image rules apply.
    pub image: bool,
    /// The blob is the artifact, whatever it holds.
    pub copy: bool,
    /// A Helm chart's layer.
    pub chart: bool,
}

/// Chooses (contract section 6, "Which layers").
pub fn choose(manifest: &ImageManifest, choice: &Choice) -> Result<Chosen, ArtifactError> {
    let layers = &manifest.layers;
    let Some(first) = layers.first() else { return Err(ArtifactError::NoLayers) };
    let image = media_type::is_container_image_config(&manifest.config.media_type);
    let with_type = |wanted: &str| layers.iter().find(|layer| layer.media_type == wanted);
    let one = |layer: &Descriptor, chart| Chosen { layers: vec![layer.clone()], image, copy: choice.copy, chart };

    if let Some(wanted) = &choice.media_type {
        let layer = with_type(wanted).ok_or_else(|| ArtifactError::NoSuchLayer { media_type: wanted.clone() })?;
        return Ok(one(layer, wanted == media_type::HELM_LAYER));
    }
    if let Some(layer) = with_type(media_type::HELM_LAYER) {
        return Ok(one(layer, true));
    }
    if media_type::is_helm_config(&manifest.config.media_type) {
        // Charts from before the chart layer had its own media type.
        let chart = layers.iter().find(|layer| layer.media_type != HELM_PROVENANCE);
        let chart =
            chart.ok_or_else(|| ArtifactError::NoSuchLayer { media_type: media_type::HELM_LAYER.to_string() })?;
        return Ok(one(chart, true));
    }
    if image && choice.all_layers_of_images && !choice.copy {
        return Ok(Chosen { layers: layers.clone(), image, copy: false, chart: false });
    }
    Ok(one(first, false))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{class::Class, digest::Digest, oci::media_type::*};

    fn descriptor(media_type: &str, content: &str) -> Descriptor {
        Descriptor {
            media_type: media_type.into(),
            digest: Digest::sha256(content.as_bytes()),
            size: 1,
            platform: None,
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }

    fn manifest(config: &str, layers: &[&str]) -> ImageManifest {
        ImageManifest {
            media_type: OCI_MANIFEST.into(),
            artifact_type: None,
            config: descriptor(config, "config"),
            layers: layers.iter().enumerate().map(|(i, m)| descriptor(m, &i.to_string())).collect(),
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    #[test]
    fn chooses_as_the_contract_says() {
        let all = Choice { all_layers_of_images: true, ..Choice::default() };
        let select = |m: &str, copy| Choice { media_type: Some(m.into()), copy, all_layers_of_images: false };
        // config, layers, choice → which, image, copy, chart
        for (config, layers, choice, which, flags) in [
            (FLUX_CONFIG, &[FLUX_LAYER, LAYER][..], Choice::default(), &[0][..], (false, false, false)),
            (FLUX_CONFIG, &[FLUX_LAYER, LAYER], all.clone(), &[0], (false, false, false)),
            (OCI_CONFIG, &[LAYER, LAYER], Choice::default(), &[0], (true, false, false)),
            (OCI_CONFIG, &[LAYER, LAYER], all.clone(), &[0, 1], (true, false, false)),
            (DOCKER_CONFIG, &[LAYER, LAYER], all.clone(), &[0, 1], (true, false, false)),
            (OCI_CONFIG, &[LAYER, LAYER], Choice { copy: true, ..all.clone() }, &[0], (true, true, false)),
            (HELM_CONFIG, &[HELM_PROVENANCE, HELM_LAYER], Choice::default(), &[1], (false, false, true)),
            (HELM_CONFIG, &[HELM_PROVENANCE, "application/tar+gzip"], all.clone(), &[1], (false, false, true)),
            ("application/json", &[LAYER, HELM_LAYER], Choice::default(), &[1], (false, false, true)),
            (HELM_CONFIG, &[HELM_PROVENANCE, HELM_LAYER], select(HELM_LAYER, true), &[1], (false, true, true)),
            (HELM_CONFIG, &[HELM_PROVENANCE, HELM_LAYER], select(HELM_PROVENANCE, true), &[0], (false, true, false)),
            (OCI_CONFIG, &[LAYER, FLUX_LAYER], select(FLUX_LAYER, false), &[1], (true, false, false)),
        ] {
            let manifest = manifest(config, layers);
            let chosen = choose(&manifest, &choice).unwrap();
            let expected: Vec<_> = which.iter().map(|i| manifest.layers[*i].clone()).collect();
            assert_eq!(chosen.layers, expected, "{config} {layers:?} {choice:?}");
            assert_eq!((chosen.image, chosen.copy, chosen.chart), flags, "{config} {layers:?} {choice:?}");
        }
    }

    #[test]
    fn says_which_layer_is_missing_in_fluxs_words() {
        let choice = Choice { media_type: Some("application/x".into()), ..Choice::default() };
        let error = choose(&manifest(FLUX_CONFIG, &[FLUX_LAYER]), &choice).unwrap_err();
        assert!(
            error.to_string().contains("failed to find layer with media type 'application/x' in artifact"),
            "{error}"
        );
        assert_eq!(error.class(), Class::Layer);
        let error = choose(&manifest(FLUX_CONFIG, &[]), &Choice::default()).unwrap_err();
        assert_eq!(error.class(), Class::Layer);
        let error = choose(&manifest(HELM_CONFIG, &[HELM_PROVENANCE]), &Choice::default()).unwrap_err();
        assert_eq!(error.class(), Class::Layer);
    }

    #[test]
    fn knows_two_operations() {
        let copy = |operation| Choice::from_selector(Some(""), operation).map(|c| c.copy);
        assert!(!copy(None).unwrap() && !copy(Some("")).unwrap() && !copy(Some("extract")).unwrap());
        assert!(copy(Some("copy")).unwrap());
        assert_eq!(copy(Some("Copy")).unwrap_err().class(), Class::Spec);
        assert_eq!(Choice::from_selector(Some(""), None).unwrap(), Choice::default());
    }
}
