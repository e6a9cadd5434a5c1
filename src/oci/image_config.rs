//! Image configs (image-spec 1.1, "Image Configuration"): the little of them that Larder needs. Everything else in them
//! is ignored.
//!
//! A pure function on bytes that have been verified against their digest; bounded by [`MAX_BYTES`] and the layer cap.

use serde::Deserialize;

use super::manifest::{MAX_LAYERS, printable};
use crate::{class::Class, digest::Digest};

/// The largest config read, in bytes: 8 MiB; real ones have a few kilobytes, history and labels included.
pub const MAX_BYTES: usize = 8 << 20;

/// What an image's config says of its layers and platform.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// `amd64`, …; empty where not stated.
    pub architecture: String,
    /// `linux`, …; empty where not stated.
    pub os: String,
    /// When it was made, RFC 3339 as written.
    pub created: Option<String>,
    /// The digests of the uncompressed layers, base first.
    pub diff_ids: Vec<Digest>,
}

/// Why an image config cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageConfigError {
    /// Over [`MAX_BYTES`].
    #[error("the image config has {0} bytes, at most {MAX_BYTES} are taken")]
    TooLarge(usize),
    /// Not JSON, or not of a config's form.
    #[error("the image config cannot be read: {0}")]
    Json(String),
    /// More layers than are taken.
    #[error("the image config names {0} layers, at most {MAX_LAYERS} are taken")]
    TooManyLayers(usize),
}

impl ImageConfigError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::TooLarge(_) => Class::Size,
            Self::Json(_) => Class::Manifest,
            Self::TooManyLayers(_) => Class::Limit,
        }
    }
}

#[derive(Deserialize)]
struct Wire {
    architecture: Option<String>,
    os: Option<String>,
    created: Option<String>,
    rootfs: Option<RootFs>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<Digest>>,
}

impl ImageConfig {
    /// Parses a config blob.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageConfigError> {
        if bytes.len() > MAX_BYTES {
            return Err(ImageConfigError::TooLarge(bytes.len()));
        }
        if bytes.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            return Err(ImageConfigError::Json("it is not a JSON object".to_string()));
        }
        // JSON's own error is not kept as a source: it may repeat megabytes of the input.
        let wire: Wire =
            serde_json::from_slice(bytes).map_err(|e| ImageConfigError::Json(printable(&e.to_string())))?;
        let diff_ids = wire.rootfs.and_then(|r| r.diff_ids).unwrap_or_default();
        if diff_ids.len() > MAX_LAYERS {
            return Err(ImageConfigError::TooManyLayers(diff_ids.len()));
        }
        Ok(Self {
            architecture: wire.architecture.unwrap_or_default(),
            os: wire.os.unwrap_or_default(),
            created: wire.created,
            diff_ids,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    #[test]
    fn reads_platform_and_layers_and_ignores_the_rest() {
        let json = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2026-01-02T03:04:05Z","config":{{"Cmd":["x"]}},
                "rootfs":{{"type":"layers","diff_ids":["{A}","{A}"]}},"history":[{{"created_by":"y"}}]}}"#
        );
        let digest: Digest = A.parse().unwrap();
        assert_eq!(
            ImageConfig::parse(json.as_bytes()),
            Ok(ImageConfig {
                architecture: "amd64".into(),
                os: "linux".into(),
                created: Some("2026-01-02T03:04:05Z".into()),
                diff_ids: vec![digest, digest],
            })
        );
        for sparse in ["{}", r#"{"rootfs":null}"#, r#"{"rootfs":{}}"#, r#"{"rootfs":{"diff_ids":null}}"#] {
            assert_eq!(ImageConfig::parse(sparse.as_bytes()), Ok(ImageConfig::default()), "{sparse}");
        }
    }

    #[test]
    fn refuses_what_is_too_long_or_no_config() {
        for (json, class) in [
            (String::new(), Class::Manifest),
            ("[\"amd64\",\"linux\",null,null]".to_string(), Class::Manifest),
            ("{".to_string(), Class::Manifest),
            (r#"{"os":1}"#.to_string(), Class::Manifest),
            (r#"{"os":"a","os":"b"}"#.to_string(), Class::Manifest),
            (r#"{"rootfs":{"diff_ids":["sha256:../x"]}}"#.to_string(), Class::Manifest),
            (format!(r#"{{"rootfs":{{"diff_ids":[{}]}}}}"#, vec![format!("\"{A}\""); 513].join(",")), Class::Limit),
            (format!("{{{}", " ".repeat(MAX_BYTES)), Class::Size),
        ] {
            let error = ImageConfig::parse(json.as_bytes()).unwrap_err();
            assert_eq!(error.class(), class, "{error}");
            assert!(error.to_string().len() < 400, "{error}");
        }
    }
}
