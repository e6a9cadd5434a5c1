//! References: `[oci://]HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`, and the parts of them.

use crate::digest::Digest;

/// A registry as it is named: `docker.io`, `ghcr.io`, `127.0.0.1:5000`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Registry {
    host: String,
    port: Option<u16>,
}

/// A repository's name (distribution-spec 1.1, "Pulling manifests").
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(String);

/// A tag (distribution-spec 1.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

/// Which manifest of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Selector {
    /// By a name that may move.
    Tag(Tag),
    /// By the content itself.
    Digest(Digest),
}

/// A registry, a repository in it, and a manifest in that.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The registry.
    pub registry: Registry,
    /// The repository.
    pub repository: Repository,
    /// The manifest; `None` where the text named none.
    pub selector: Option<Selector>,
}

/// Why a text is not a reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("todo")]
pub struct ReferenceError;

impl Registry {
    /// The host without its port, as named: lower case; an IPv6 literal in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, where named.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The host[:port] that answers the API: `docker.io` is served by `registry-1.docker.io`.
    pub fn api_authority(&self) -> String {
        todo!()
    }
}

impl std::str::FromStr for Registry {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let _ = text;
        todo!()
    }
}

impl std::fmt::Display for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

macro_rules! text_type {
    ($name:ident) => {
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl std::str::FromStr for $name {
            type Err = ReferenceError;
            fn from_str(text: &str) -> Result<Self, ReferenceError> {
                let _ = text;
                todo!()
            }
        }
    };
}
text_type!(Repository);
text_type!(Tag);

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl Reference {
    /// Parses a reference as commands take it: `oci://` in front is optional; with a tag and a digest the digest counts.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let _ = text;
        todo!()
    }

    /// Parses the `url` of an object: `oci://` is required, a tag or digest is refused (flux.md section 1.1, O1).
    pub fn parse_object_url(text: &str) -> Result<Self, ReferenceError> {
        let _ = text;
        todo!()
    }
}
