//! Why nothing was pulled.

use std::{sync::Arc, time::Duration};

use super::MAX_INDEX_DEPTH;
use crate::{
    class::Class,
    digest::Digest,
    oci::{ManifestError, Repository, version::VersionError},
    registry::RegistryError,
    store::StoreError,
};

/// Why nothing was pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry, or the way to it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The registry, while it was asked for its tags.
    #[error("cannot list the tags: {0}")]
    Tags(#[source] RegistryError),
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The marks of who fetched what.
    #[error("cannot keep the mark of a fetched blob: {0}")]
    Grants(#[source] std::io::Error),
    /// A signature that was fetched and cannot be read from the disk.
    #[error("cannot read a signature: {0}")]
    Evidence(#[source] std::io::Error),
    /// The manifest.
    #[error("manifest {digest}: {source}")]
    Manifest {
        /// Whose.
        digest: Digest,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// Indexes within indexes.
    #[error("manifest {0}: indexes nest deeper than {MAX_INDEX_DEPTH}")]
    TooDeep(Digest),
    /// The tags, or the range of versions.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// The upstream says that this repository has no such blob, or not for this asker.
    #[error("{repository} at {upstream} has no {digest} for this asker")]
    NotThere {
        /// The upstream.
        upstream: String,
        /// The repository.
        repository: Repository,
        /// The blob.
        digest: Digest,
    },
    /// The upstream sent wrong bytes for this blob a moment ago.
    #[error(
        "{upstream} broke off in the middle of {digest} a moment ago, or sent other bytes; it is asked again in {} s",
        .after.as_secs().max(1)
    )]
    Marked {
        /// The upstream.
        upstream: String,
        /// The blob.
        digest: Digest,
        /// When it is asked again, from now.
        after: Duration,
    },
    /// The upstream's blob has another size than the asker was told.
    #[error("{digest} has {actual} bytes, {expected} were promised")]
    Size {
        /// The blob.
        digest: Digest,
        /// As the asker was told.
        expected: u64,
        /// As the upstream says.
        actual: u64,
    },
    /// Nothing came for too long.
    #[error("{}: nothing has come for {} s", .1, .0.as_secs())]
    Silent(Duration, Digest),
    /// So many other blobs are being fetched that its turn did not come.
    #[error("the turn of {0} did not come: too many blobs are being fetched at once")]
    Busy(Digest),
    /// The task that fetched it is gone, as when the process ends.
    #[error("the fetch of {0} was given up")]
    Lost(Digest),
    /// What another asker met who fetched the same blob.
    #[error("{0}")]
    Shared(Arc<PullError>),
}

impl PullError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Registry(e) | Self::Tags(e) => e.class(),
            Self::Store(e) => e.class(),
            Self::Grants(_) | Self::Evidence(_) => Class::Disk,
            Self::Manifest { source, .. } => source.class(),
            Self::TooDeep(_) | Self::Busy(_) => Class::Limit,
            Self::Version(e) => e.class(),
            Self::NotThere { .. } | Self::Marked { .. } => Class::NotFound,
            Self::Size { .. } => Class::Size,
            Self::Silent(..) | Self::Lost(_) => Class::Net,
            Self::Shared(e) => e.class(),
        }
    }

    /// Whether it is no answer, but what is remembered of one.
    pub fn is_remembered(&self) -> bool {
        match self {
            Self::Marked { .. } => true,
            Self::Shared(e) => e.is_remembered(),
            _ => false,
        }
    }

    /// The registry's own error, where that is what it is.
    pub fn registry(&self) -> Option<&RegistryError> {
        match self {
            Self::Registry(e) | Self::Tags(e) => Some(e),
            Self::Shared(e) => e.registry(),
            _ => None,
        }
    }
}
