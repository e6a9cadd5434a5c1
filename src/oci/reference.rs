//! References: `[oci://]HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`, and the parts of them.
//!
//! A value of one of these types is valid and written in one way only: hosts in lower case, IP addresses canonical,
//! `docker.io` under that name. Repository names and tags follow distribution-spec 1.1 ("Pulling manifests"), names
//! without a host follow docker: a first part without a dot or colon that is not `localhost` belongs to `docker.io`, and
//! a name of one part there is `library/…`. Errors never repeat what might be a password: nothing around an `@` is
//! echoed.
//!
//! Pure values without state; every parser is linear in its input and never panics.

mod registry;

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use self::registry::is_numeric_label;
pub use self::registry::{DOCKER_HUB, DOCKER_HUB_API, MAX_HOST_BYTES, Registry};
use crate::{
    class::Class,
    digest::{Digest, DigestError},
};

/// The longest repository name, in bytes: what clients keep to, as distribution-spec 1.1 notes.
pub const MAX_REPOSITORY_BYTES: usize = 255;
/// The longest tag, in bytes (distribution-spec 1.1).
pub const MAX_TAG_BYTES: usize = 128;
/// The longest reference looked at, in bytes: the longest parts of all, `oci://` and room for slashes.
pub const MAX_REFERENCE_BYTES: usize = 1024;

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
pub enum ReferenceError {
    /// Nothing there.
    #[error("the reference is empty: write oci://HOST/REPOSITORY")]
    Empty,
    /// Too long to be one.
    #[error("the reference has {0} bytes, at most {MAX_REFERENCE_BYTES} make sense")]
    TooLong(usize),
    /// An object's `url` without `oci://`, or another scheme.
    #[error("URL must be in format 'oci://<domain>/<org>/<repo>'")]
    Scheme,
    /// Spaces, control characters or anything outside ASCII.
    #[error("a reference has only printable ASCII characters; this has one that is not at byte {0}")]
    Character(usize),
    /// A query or a fragment.
    #[error("a reference has no {0:?} part: remove it and what follows")]
    QueryOrFragment(char),
    /// `user:password@host`, or an `@` without a digest behind it.
    #[error(
        "what follows '@' is not a digest (sha256:… or sha512:…), and credentials do not belong in a reference: \
         give them through a Secret, the Docker config or --creds"
    )]
    UserInfo,
    /// A tag in an object's `url`.
    #[error("URL must not contain a tag; remove ':{0}' and set it in spec.ref.tag")]
    TagInUrl(String),
    /// A digest in an object's `url`.
    #[error("URL must not contain a digest; remove '@{0}' and set it in spec.ref.digest")]
    DigestInUrl(Digest),
    /// A host that is none.
    #[error("{host:?} is not a host name: {reason}")]
    Host {
        /// The host, cut short.
        host: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An IPv4 address in a spelling that different programs read differently.
    #[error(
        "{0:?} is a number or an IP address in an odd spelling: write four decimal numbers such as 127.0.0.1 \
         (a Docker Hub name goes after docker.io/)"
    )]
    OddAddress(String),
    /// A port that is none.
    #[error("the port of host {host:?} is not a number from 1 to 65535")]
    Port {
        /// The host, cut short.
        host: String,
    },
    /// A registry, but no repository.
    #[error("{0:?} names a registry but no repository: write {0}/REPOSITORY (for Docker Hub docker.io/library/NAME)")]
    NoRepository(String),
    /// A repository name outside the grammar.
    #[error("{name:?} is not a repository name: {reason}")]
    Repository {
        /// The name, cut short.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A tag outside the grammar.
    #[error(
        "{0:?} is not a tag: up to {MAX_TAG_BYTES} letters, digits, '_', '.' and '-', not beginning with '.' or '-'"
    )]
    Tag(String),
    /// A digest that is none.
    #[error("the reference's digest is wrong")]
    Digest(#[source] DigestError),
}

impl ReferenceError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        Class::Spec
    }
}

/// At most 100 characters of a foreign text, for a message.
fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

macro_rules! text_type {
    ($name:ident) => {
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        serde_as_text!($name);
    };
}

macro_rules! serde_as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text_type!(Repository);
text_type!(Tag);
serde_as_text!(Registry);
serde_as_text!(Selector);
serde_as_text!(Reference);

impl FromStr for Repository {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let wrong = |reason| Err(ReferenceError::Repository { name: short(text), reason });
        if text.is_empty() {
            return wrong("it is empty");
        }
        if text.len() > MAX_REPOSITORY_BYTES {
            return wrong("it is longer than 255 characters");
        }
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return wrong("it must be in lower case");
        }
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if !text.bytes().all(|b| alphanumeric(b) || matches!(b, b'.' | b'_' | b'-' | b'/')) {
            return wrong("it may hold lower-case letters, digits, '.', '_', '-' and '/'");
        }
        for part in text.split('/') {
            if !part.starts_with(|c: char| c.is_ascii_alphanumeric())
                || !part.ends_with(|c: char| c.is_ascii_alphanumeric())
            {
                return wrong("each part between slashes begins and ends with a letter or digit");
            }
            let separators = part.split(|c: char| c.is_ascii_alphanumeric());
            if !separators.into_iter().all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-')) {
                return wrong("between letters and digits stand one '.', one or two '_', or any number of '-'");
            }
        }
        Ok(Self(text.to_string()))
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let first = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let fits = text.len() <= MAX_TAG_BYTES
            && text.bytes().next().is_some_and(first)
            && text.bytes().all(|b| first(b) || b == b'.' || b == b'-');
        if fits { Ok(Self(text.to_string())) } else { Err(ReferenceError::Tag(short(text))) }
    }
}

impl Repository {
    /// The repository `name` below this one, as a chart lies below its HelmRepository.
    pub fn join(&self, name: &str) -> Result<Self, ReferenceError> {
        format!("{}/{name}", self.0).parse()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl FromStr for Selector {
    type Err = ReferenceError;

    /// A digest has a colon, a tag never.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.contains(':') {
            text.parse().map(Self::Digest).map_err(ReferenceError::Digest)
        } else {
            text.parse().map(Self::Tag)
        }
    }
}

impl fmt::Display for Reference {
    /// `HOST[:PORT]/REPOSITORY[:TAG|@DIGEST]`, which [`Reference::parse`] takes back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.selector {
            None => Ok(()),
            Some(Selector::Tag(tag)) => write!(f, ":{tag}"),
            Some(Selector::Digest(digest)) => write!(f, "@{digest}"),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

/// A reference split, its parts not yet looked at except that none of them hides userinfo.
struct Split<'a> {
    name: &'a str,
    tag: Option<&'a str>,
    digest: Option<Digest>,
}

fn split(text: &str) -> Result<Split<'_>, ReferenceError> {
    if text.is_empty() {
        return Err(ReferenceError::Empty);
    }
    if text.len() > MAX_REFERENCE_BYTES {
        return Err(ReferenceError::TooLong(text.len()));
    }
    if let Some(at) = text.bytes().position(|b| !b.is_ascii_graphic()) {
        return Err(ReferenceError::Character(at));
    }
    let (text, digest) = match text.rsplit_once('@') {
        None => (text, None),
        Some((name, digest)) => {
            // A password may hold anything, also something like a digest: whatever else has an '@' is not repeated.
            let looks_right = digest.starts_with("sha256:") || digest.starts_with("sha512:");
            if !looks_right || digest.contains('/') || name.contains('@') {
                return Err(ReferenceError::UserInfo);
            }
            (name, Some(digest.parse().map_err(ReferenceError::Digest)?))
        }
    };
    if let Some(c) = text.chars().find(|c| matches!(c, '?' | '#')) {
        return Err(ReferenceError::QueryOrFragment(c));
    }
    // A colon after the last slash begins a tag; before it, a port.
    let start = text.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match text[start..].find(':') {
        // `[::1]` alone, or `localhost:5000`, is a registry; see `named`.
        Some(_) if start == 0 && text.starts_with('[') => (text, None),
        Some(colon) => (&text[..start + colon], Some(&text[start + colon + 1..])),
        None => (text, None),
    };
    Ok(Split { name, tag, digest })
}

/// The registry and the repository that a name stands for.
fn named(name: &str) -> Result<(Registry, Repository), ReferenceError> {
    let looks_like_host = |part: &str| part.contains(['.', ':', '[']) || part.eq_ignore_ascii_case("localhost");
    match name.split_once('/') {
        None if looks_like_host(name) => Err(ReferenceError::NoRepository(short(name))),
        None => Ok((Registry::docker_hub(), hub_repository(name)?)),
        Some((first, rest)) if first.is_empty() || looks_like_host(first) => {
            let registry: Registry = first.parse()?;
            if rest.is_empty() {
                return Err(ReferenceError::NoRepository(short(first)));
            }
            let repository = if registry.is_docker_hub() { hub_repository(rest)? } else { rest.parse()? };
            Ok((registry, repository))
        }
        // Some programs would take this first part for an address.
        Some((first, _)) if is_numeric_label(first) => Err(ReferenceError::OddAddress(short(first))),
        Some(_) => Ok((Registry::docker_hub(), name.parse()?)),
    }
}

fn hub_repository(name: &str) -> Result<Repository, ReferenceError> {
    if name.contains('/') { name.parse() } else { format!("library/{name}").parse() }
}

impl Reference {
    /// Parses a reference as commands take it: `oci://` in front is optional; with a tag and a digest the digest counts
    /// (the tag must still be one).
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let text = text.strip_prefix("oci://").unwrap_or(text);
        if !text.contains('@') && text.contains("://") {
            return Err(ReferenceError::Scheme);
        }
        let Split { name, tag, digest } = split(text)?;
        let (registry, repository) = named(name)?;
        let tag = tag.map(Tag::from_str).transpose()?;
        let selector = digest.map(Selector::Digest).or(tag.map(Selector::Tag));
        Ok(Self { registry, repository, selector })
    }

    /// Parses the `url` of an object: `oci://` is required, a tag or digest is refused (flux.md section 1.1, O1).
    /// Trailing slashes are dropped, as Flux does with a HelmRepository's.
    pub fn parse_object_url(url: &str) -> Result<Self, ReferenceError> {
        let text = url.strip_prefix("oci://").ok_or(ReferenceError::Scheme)?;
        let Split { name, tag, digest } = split(text.trim_end_matches('/'))?;
        if let Some(digest) = digest {
            return Err(ReferenceError::DigestInUrl(digest));
        }
        if let Some(tag) = tag {
            // `localhost:5000` and `[::1]:5000` are registries; only a number can be meant as a port.
            let port = !name.contains('/') && !tag.is_empty() && tag.bytes().all(|b| b.is_ascii_digit());
            return Err(if port {
                ReferenceError::NoRepository(short(text.trim_end_matches('/')))
            } else {
                ReferenceError::TagInUrl(short(tag))
            });
        }
        let (registry, repository) = named(name)?;
        Ok(Self { registry, repository, selector: None })
    }

    /// The repository of a HelmChart: `chart` below its HelmRepository's `url`, which may be a registry alone.
    pub fn parse_chart_url(url: &str, chart: &str) -> Result<Self, ReferenceError> {
        let url = url.trim_end_matches('/');
        // Checked alone, so that it cannot bring a tag or a host of its own.
        let chart: Repository = chart.parse()?;
        Self::parse_object_url(&format!("{url}/{chart}"))
    }

    /// As an object's `url` names it: `oci://HOST[:PORT]/REPOSITORY`.
    pub fn object_url(&self) -> String {
        format!("oci://{}/{}", self.registry, self.repository)
    }
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
