//! Content descriptors (image-spec 1.1, "Content Descriptors").

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::digest::{Algorithm, Digest};

/// The longest media type or artifact type, in bytes: 127 for each half (RFC 6838, section 4.2) and the slash.
pub const MAX_MEDIA_TYPE_BYTES: usize = 255;

/// What a manifest says of a blob: what it is, what it is called, how long it is.
///
/// Read from JSON, it is checked: `mediaType`, `digest` and `size` are there; the size is an integer from 0 to 2^63 - 1,
/// 0 exactly for the digest of nothing; no key stands twice. `urls` and `data` are ignored: content comes from the
/// registry and is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type as written.
    pub media_type: String,
    /// The blob's name.
    pub digest: Digest,
    /// The blob's length in bytes.
    pub size: u64,
    /// For an index's entries: what it runs on.
    pub platform: Option<Platform>,
    /// The artifact's type, where stated.
    pub artifact_type: Option<String>,
    /// Annotations, verbatim.
    pub annotations: BTreeMap<String, String>,
}

/// What an image runs on (image-spec 1.1, "Image Index").
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Platform {
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`, `windows`, …
    pub os: String,
    /// `v7`, …
    pub variant: Option<String>,
}

impl fmt::Display for Platform {
    /// `linux/arm/v7`, each part cut to 40 characters, control characters escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |text: &str| text.chars().take(40).collect::<String>().escape_debug().to_string();
        write!(f, "{}/{}", part(&self.os), part(&self.architecture))?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{}", part(variant)),
        }
    }
}

/// A descriptor as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default, deserialize_with = "annotations")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct WirePlatform {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
}

/// Reads a JSON object; serde alone would also take a list of the fields in their order.
fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct Object<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }

    deserializer.deserialize_map(Object(PhantomData))
}

impl<'de> Deserialize<'de> for Platform {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire: WirePlatform = object(deserializer)?;
        Ok(Self {
            architecture: wire.architecture.unwrap_or_default(),
            os: wire.os.unwrap_or_default(),
            variant: wire.variant.filter(|v| !v.is_empty()),
        })
    }
}

impl<'de> Deserialize<'de> for Descriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire: Wire = object(deserializer)?;
        media_type(&wire.media_type)?;
        if let Some(artifact_type) = wire.artifact_type.as_deref().filter(|t| !t.is_empty()) {
            media_type(artifact_type)?;
        }
        if i64::try_from(wire.size).is_err() {
            return Err(D::Error::custom(format_args!("size {} is beyond 2^63 - 1", wire.size)));
        }
        if is_of_nothing(&wire.digest) != (wire.size == 0) {
            return Err(D::Error::custom(format_args!("size {} does not go with digest {}", wire.size, wire.digest)));
        }
        Ok(Self {
            media_type: wire.media_type,
            digest: wire.digest,
            size: wire.size,
            platform: wire.platform,
            artifact_type: wire.artifact_type.filter(|t| !t.is_empty()),
            annotations: wire.annotations,
        })
    }
}

/// Whether a digest is that of the empty string.
fn is_of_nothing(digest: &Digest) -> bool {
    const SHA256: [u8; 4] = [0xe3, 0xb0, 0xc4, 0x42];
    const SHA512: [u8; 4] = [0xcf, 0x83, 0xe1, 0x35];
    // Hash only where the first bytes leave a doubt.
    let begins = match digest.algorithm() {
        Algorithm::Sha256 => SHA256,
        Algorithm::Sha512 => SHA512,
    };
    digest.bytes().starts_with(&begins) && Digest::of(digest.algorithm(), b"") == *digest
}

/// Refuses a media type that could not stand in a header.
fn media_type<E: Error>(text: &str) -> Result<(), E> {
    if text.is_empty() || text.len() > MAX_MEDIA_TYPE_BYTES || !text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
    {
        let start: String = text.chars().take(60).collect();
        return Err(E::custom(format_args!("{start:?} is not a media type")));
    }
    Ok(())
}

/// Annotations: absent and null are none, a key that stands twice is refused, as everywhere.
pub(super) fn annotations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    struct Annotations;

    impl<'de> Visitor<'de> for Annotations {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("annotations, an object of strings")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(BTreeMap::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut all = BTreeMap::new();
            while let Some((key, value)) = map.next_entry::<String, String>()? {
                let start: String = key.chars().take(60).collect();
                if all.insert(key, value).is_some() {
                    return Err(A::Error::custom(format_args!("annotation {start:?} stands twice")));
                }
            }
            Ok(all)
        }
    }

    deserializer.deserialize_any(Annotations)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const NOTHING512: &str = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";
    const SOME: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    /// Begins as the digest of nothing does.
    const CLOSE: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b856";

    fn parse(digest: &str, size: &str) -> Result<Descriptor, String> {
        let json = format!(r#"{{"mediaType":"a/b","digest":"{digest}","size":{size},"urls":["http://x/"]}}"#);
        serde_json::from_str(&json).map_err(|e| e.to_string())
    }

    #[test]
    fn sizes_are_integers_from_0_to_2_63_minus_1_and_0_is_for_nothing_alone() {
        for (digest, size, ok) in [
            (SOME, "2", true),
            (SOME, "9223372036854775807", true),
            (NOTHING, "0", true),
            (NOTHING512, "0", true),
            (CLOSE, "1", true),
            (CLOSE, "0", false),
            (SOME, "0", false),
            (NOTHING, "1", false),
            (NOTHING512, "1", false),
            (SOME, "-1", false),
            (SOME, "-0", false),
            (SOME, "9223372036854775808", false),
            (SOME, "18446744073709551616", false),
            (SOME, "1.5", false),
            (SOME, "2.0", false),
            (SOME, "2e0", false),
            (SOME, "\"12\"", false),
            (SOME, "null", false),
            (SOME, "true", false),
        ] {
            assert_eq!(parse(digest, size).is_ok(), ok, "{digest} {size}");
        }
    }

    #[test]
    fn refuses_digests_in_any_other_spelling() {
        let hex = &SOME[7..];
        for digest in [
            String::new(),
            "sha256:../../etc/passwd".to_string(),
            format!("sha256:{}", &hex[1..]),
            SOME.to_uppercase(),
            format!("sha256:{}", hex.to_uppercase()),
            "md5:d41d8cd98f00b204e9800998ecf8427e".to_string(),
        ] {
            assert!(parse(&digest, "2").is_err(), "{digest}");
        }
    }

    #[test]
    fn refuses_what_is_missing_doubled_or_no_media_type() {
        for json in [
            format!(r#"{{"digest":"{SOME}","size":2}}"#),
            r#"{"mediaType":"a/b","size":2}"#.to_string(),
            format!(r#"{{"mediaType":"a/b","digest":"{SOME}"}}"#),
            format!(r#"{{"mediaType":"","digest":"{SOME}","size":2}}"#),
            format!(r#"{{"mediaType":"a\nb","digest":"{SOME}","size":2}}"#),
            format!(r#"{{"mediaType":"a/b","digest":"{SOME}","size":2,"size":3}}"#),
            format!(r#"{{"mediaType":"a/b","digest":"{SOME}","size":2,"annotations":{{"k":"1","k":"2"}}}}"#),
            format!(r#"["a/b","{SOME}",2,null,null,null]"#),
            format!(r#"{{"mediaType":"a/b","digest":"{SOME}","size":2,"platform":["amd64","linux",null]}}"#),
            format!(r#"{{"mediaType":"a/b","digest":"{SOME}","size":2,"annotations":[]}}"#),
            format!(r#"{{"mediaType":"a/b","digest":"{SOME}","size":2,"annotations":{{"k":1}}}}"#),
        ] {
            assert!(serde_json::from_str::<Descriptor>(&json).is_err(), "{json}");
        }
    }

    #[test]
    fn takes_null_for_absent_and_keeps_annotations_verbatim() {
        let json = format!(
            r#"{{"mediaType":"a/b","digest":"{SOME}","size":2,"platform":null,"artifactType":null,"annotations":null}}"#
        );
        let plain: Descriptor = serde_json::from_str(&json).unwrap();
        assert_eq!((plain.platform, plain.artifact_type, plain.annotations.len()), (None, None, 0));
        let json = json.replace("\"annotations\":null", r#""annotations":{" k ":"\u0000v"}"#);
        let annotated: Descriptor = serde_json::from_str(&json).unwrap();
        assert_eq!(annotated.annotations, [(" k ".to_string(), "\0v".to_string())].into());
    }

    #[test]
    fn prints_platforms_short_and_escaped() {
        let platform = |os: &str, architecture: &str, variant: Option<&str>| {
            Platform { os: os.into(), architecture: architecture.into(), variant: variant.map(Into::into) }.to_string()
        };
        assert_eq!(platform("linux", "arm", Some("v7")), "linux/arm/v7");
        assert_eq!(platform("linux", "amd64", Some("")), "linux/amd64");
        assert_eq!(platform("a\nb", &"x".repeat(50), None), format!("a\\nb/{}", "x".repeat(40)));
    }
}
