//! Which of the distribution API's resources a path names (distribution-spec 1.1, "Endpoints").
//!
//! Pure, and panic-free on any input. A path is taken as it came: neither repository names nor digests nor tags hold
//! a character that would have to be escaped, so an escape is a second spelling of something and is refused, as are
//! empty and dotted components. Every part becomes a typed value here; no code after this looks at the text again.

use std::{fmt, str::FromStr};

use crate::{
    digest::{Digest, DigestError},
    oci::{Repository, Selector},
};

/// The longest path taken, in bytes.
pub const MAX_PATH: usize = 4 << 10;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// end-1: whether this is a registry.
    Base,
    /// The repositories' names.
    Catalog,
    /// end-8: the tags of a repository.
    Tags(Repository),
    /// end-3, 7, 9: a manifest.
    Manifest(Repository, Selector),
    /// end-2, 10: a blob.
    Blob(Repository, Digest),
    /// end-4, 11: where uploads begin.
    Uploads(Repository),
    /// end-5, 6, 13, 14: an upload.
    Upload(Repository, UploadId),
    /// end-12: what refers to a manifest.
    Referrers(Repository, Digest),
}

/// The name of an upload: 128 random bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UploadId([u8; 16]);

/// Why a path names nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Not one of the API's paths.
    #[error("there is no such resource")]
    Unknown,
    /// Longer than [`MAX_PATH`].
    #[error("the path is longer than {MAX_PATH} bytes")]
    TooLong,
    /// Escapes, empty or dotted components, control characters.
    #[error("the path has an escape, an empty or dotted component, or a control character")]
    Spelling,
    /// Not a repository's name.
    #[error("not a repository name")]
    Name,
    /// Not a digest.
    #[error("not a digest")]
    Digest(#[source] DigestError),
    /// Neither a tag nor a digest.
    #[error("not a tag")]
    Tag(Repository),
    /// Not an upload's name.
    #[error("no such upload")]
    Upload,
}

impl UploadId {
    /// A new one, not to be guessed.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        // The generator is seeded from the system, and a name is not a secret between users of one listener.
        fastrand::fill(&mut bytes);
        Self(bytes)
    }
}

impl FromStr for UploadId {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, RouteError> {
        let mut bytes = [0; 16];
        let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !lower || hex::decode_to_slice(text, &mut bytes).is_err() {
            return Err(RouteError::Upload);
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Finds the resource of a request's path.
pub fn parse(path: &str) -> Result<Route, RouteError> {
    if path.len() > MAX_PATH {
        return Err(RouteError::TooLong);
    }
    let Some(rest) = path.strip_prefix("/v2") else { return Err(RouteError::Unknown) };
    let rest = match rest.strip_prefix('/') {
        Some(rest) => rest,
        None if rest.is_empty() => return Ok(Route::Base),
        None => return Err(RouteError::Unknown),
    };
    if rest.is_empty() {
        return Ok(Route::Base);
    }
    if rest == "_catalog" {
        return Ok(Route::Catalog);
    }
    parse_below(rest)
}

/// The same of what follows `/v2/`, or, in a mirror's path, `/v2/<upstream>/`: a resource of a repository.
pub fn parse_below(rest: &str) -> Result<Route, RouteError> {
    if rest.len() > MAX_PATH {
        return Err(RouteError::TooLong);
    }
    if let Some(name) = rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads")) {
        return Ok(Route::Uploads(repository(name)?));
    }
    if !rest.bytes().all(|b| b.is_ascii_graphic() && b != b'%')
        || rest.split('/').any(|part| matches!(part, "" | "." | ".."))
    {
        return Err(RouteError::Spelling);
    }
    let Some((before, last)) = rest.rsplit_once('/') else { return Err(RouteError::Unknown) };
    let Some((name, word)) = before.rsplit_once('/') else { return Err(RouteError::Unknown) };
    match word {
        "tags" if last == "list" => Ok(Route::Tags(repository(name)?)),
        "manifests" => {
            let name = repository(name)?;
            if last.contains(':') {
                return Ok(Route::Manifest(name, Selector::Digest(digest(last)?)));
            }
            match last.parse() {
                Ok(tag) => Ok(Route::Manifest(name, Selector::Tag(tag))),
                Err(_) => Err(RouteError::Tag(name)),
            }
        }
        "blobs" => Ok(Route::Blob(repository(name)?, digest(last)?)),
        "referrers" => Ok(Route::Referrers(repository(name)?, digest(last)?)),
        "uploads" => match name.strip_suffix("/blobs") {
            Some(name) => Ok(Route::Upload(repository(name)?, last.parse()?)),
            None => Err(RouteError::Unknown),
        },
        _ => Err(RouteError::Unknown),
    }
}

fn repository(name: &str) -> Result<Repository, RouteError> {
    name.parse().map_err(|_| RouteError::Name)
}

fn digest(text: &str) -> Result<Digest, RouteError> {
    text.parse().map_err(RouteError::Digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn name(text: &str) -> Repository {
        text.parse().unwrap()
    }

    #[test]
    fn finds_every_endpoint() {
        let digest = Digest::sha256(b"");
        let id = UploadId([7; 16]);
        for (path, route) in [
            ("/v2".to_string(), Route::Base),
            ("/v2/".to_string(), Route::Base),
            ("/v2/_catalog".to_string(), Route::Catalog),
            ("/v2/a/tags/list".to_string(), Route::Tags(name("a"))),
            ("/v2/a/b/tags/list".to_string(), Route::Tags(name("a/b"))),
            (
                "/v2/a/b/manifests/v1.0.0_x-Y".to_string(),
                Route::Manifest(name("a/b"), Selector::Tag("v1.0.0_x-Y".parse().unwrap())),
            ),
            (format!("/v2/a/manifests/sha256:{HEX}"), Route::Manifest(name("a"), Selector::Digest(digest))),
            (format!("/v2/a/blobs/sha256:{HEX}"), Route::Blob(name("a"), digest)),
            (format!("/v2/a/referrers/sha256:{HEX}"), Route::Referrers(name("a"), digest)),
            ("/v2/a/b/c/blobs/uploads/".to_string(), Route::Uploads(name("a/b/c"))),
            ("/v2/a/blobs/uploads".to_string(), Route::Uploads(name("a"))),
            (format!("/v2/a/blobs/uploads/{id}"), Route::Upload(name("a"), id)),
            // Names that are words of the API elsewhere.
            ("/v2/tags/tags/list".to_string(), Route::Tags(name("tags"))),
            (format!("/v2/blobs/blobs/blobs/sha256:{HEX}"), Route::Blob(name("blobs/blobs"), digest)),
        ] {
            assert_eq!(parse(&path), Ok(route), "{path}");
        }
    }

    #[test]
    fn refuses_every_other_path() {
        use RouteError::{Name, Spelling, Tag, TooLong, Unknown, Upload};
        for (path, error) in [
            ("".to_string(), Unknown),
            ("/".to_string(), Unknown),
            ("*".to_string(), Unknown),
            ("/v3/".to_string(), Unknown),
            ("/v2x".to_string(), Unknown),
            ("/v2/a".to_string(), Unknown),
            ("/v2/a/b".to_string(), Unknown),
            ("/v2/a/tags/other".to_string(), Unknown),
            (format!("/v2/manifests/sha256:{HEX}"), Unknown),
            ("//v2/".to_string(), Unknown),
            ("/v2//a/tags/list".to_string(), Spelling),
            ("/v2/a/../b/tags/list".to_string(), Spelling),
            ("/v2/a/./tags/list".to_string(), Spelling),
            ("/v2/a/tags/list/".to_string(), Spelling),
            ("/v2/a/%2e%2e/tags/list".to_string(), Spelling),
            ("/v2/%2e%2e/..%2f%2fetc/passwd".to_string(), Spelling),
            (format!("/v2/a/blobs/sha256%3A{HEX}"), Spelling),
            ("/v2/a/manifests/v1%00".to_string(), Spelling),
            ("/v2/a/manifests/v1\0".to_string(), Spelling),
            ("/v2/é/tags/list".to_string(), Spelling),
            ("/v2/A/tags/list".to_string(), Name),
            ("/v2/a../tags/list".to_string(), Name),
            ("/v2//blobs/uploads/".to_string(), Name),
            ("/v2/../blobs/uploads/".to_string(), Name),
            ("/v2/a/manifests/.INVALID_MANIFEST_NAME".to_string(), Tag(name("a"))),
            ("/v2/a/blobs/uploads/x".to_string(), Upload),
            (format!("/v2/a/blobs/uploads/{}", "0A".repeat(16)), Upload),
            (format!("/v2/{}/tags/list", "a".repeat(5000)), TooLong),
        ] {
            assert_eq!(parse(&path), Err(error), "{path}");
        }
        for bad in ["sha256:../../etc/passwd", "sha256:00", "md5:00", ":", "sha256:"] {
            let path = format!("/v2/a/blobs/{bad}");
            let refused = matches!(parse(&path), Err(RouteError::Digest(_) | Spelling | Unknown | Name));
            assert!(refused, "{path}");
        }
        assert!(matches!(parse("/v2/a/manifests/sha256:00"), Err(RouteError::Digest(_))));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(path in "(/v2)?(/|[a-z]|%|\\.|:|blobs|uploads|manifests|tags|list|sha256|\\PC){0,20}") {
            let _ = parse(&path);
        }
    }
}
