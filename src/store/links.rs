//! Which repository holds what: tags, manifests and blobs of local repositories, and of mirrored ones.

use super::{Store, StoreError};
use crate::{
    digest::Digest,
    oci::{Repository, Tag},
};

/// The links of one local repository.
pub struct LocalRepository<'a> {
    #[allow(dead_code)]
    store: &'a Store,
    #[allow(dead_code)]
    name: Repository,
}

impl Store {
    /// The links of a local repository (which need not exist yet).
    pub fn local(&self, name: &Repository) -> LocalRepository<'_> {
        LocalRepository { store: self, name: name.clone() }
    }

    /// The names of all local repositories, sorted.
    pub fn local_repositories(&self) -> Result<Vec<Repository>, StoreError> {
        todo!()
    }
}

impl LocalRepository<'_> {
    /// Links a blob that the store holds to this repository, so that it may be read through it.
    pub fn link_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let _ = digest;
        todo!()
    }

    /// Whether the blob may be read through this repository.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        let _ = digest;
        todo!()
    }

    /// Records a manifest that the store holds, its media type, and what it refers to (for collection and referrers).
    pub fn put_manifest(&self, digest: &Digest, media_type: &str, refers_to: &[Digest]) -> Result<(), StoreError> {
        let _ = (digest, media_type, refers_to);
        todo!()
    }

    /// The media type of a manifest recorded here.
    pub fn manifest(&self, digest: &Digest) -> Result<Option<String>, StoreError> {
        let _ = digest;
        todo!()
    }

    /// Forgets a manifest and every tag that names it.
    pub fn delete_manifest(&self, digest: &Digest) -> Result<bool, StoreError> {
        let _ = digest;
        todo!()
    }

    /// Points a tag at a manifest recorded here.
    pub fn set_tag(&self, tag: &Tag, digest: &Digest) -> Result<(), StoreError> {
        let _ = (tag, digest);
        todo!()
    }

    /// What a tag points at.
    pub fn tag(&self, tag: &Tag) -> Result<Option<Digest>, StoreError> {
        let _ = tag;
        todo!()
    }

    /// Forgets a tag.
    pub fn delete_tag(&self, tag: &Tag) -> Result<bool, StoreError> {
        let _ = tag;
        todo!()
    }

    /// All tags in byte order.
    pub fn tags(&self) -> Result<Vec<Tag>, StoreError> {
        todo!()
    }
}
