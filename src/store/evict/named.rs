//! What links and pins name: read once from the disk, then told of everything new, so that a round of evictions need
//! not read a large repository again. Who links something holds its lease until it is told here, and a round counts
//! what is leased meanwhile as named: so nothing falls between.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::BuildHasherDefault,
};

use crate::{
    digest::Digest,
    store::{
        Store, StoreError,
        gc::Names,
        handles::DigestHasher,
        layout::{Identity, blob_path, lock},
        links::Linked,
    },
};

/// What links and pins name. Read once, then told of everything new.
pub(in crate::store) struct Named {
    /// Content without another source, and its size.
    local: HashMap<[u8; 16], u64, BuildHasherDefault<DigestHasher>>,
    /// The sum of those sizes.
    pub bytes: u64,
    pinned: Names,
}

impl Named {
    pub fn contains(&self, digest: &Digest) -> bool {
        self.local.contains_key(&Names::short(digest)) || self.pinned.contains(digest)
    }

    fn add(&mut self, store: &Store, digest: &Digest) -> Result<(), StoreError> {
        if let Entry::Vacant(entry) = self.local.entry(Names::short(digest)) {
            let size = store.0.layout.stat(&blob_path(digest))?.map_or(0, |stat| Identity::from_stat(&stat).size);
            entry.insert(size);
            self.bytes += size;
        }
        Ok(())
    }
}

impl Store {
    /// Looks at what links and pins name.
    pub(super) fn with_named<T>(&self, look: impl FnOnce(&Named) -> T) -> Result<T, StoreError> {
        // Who links something meanwhile waits, and then adds it.
        let mut named = lock(&self.0.eviction.named);
        let named = match &mut *named {
            Some(named) => named,
            None => {
                // What was deleted here may be had again where it is also cached: it is as evictable as that.
                let Linked { local, pushed, pinned, deleted: _ } = self.linked()?;
                let mut read = Named { local: HashMap::default(), bytes: 0, pinned: Names::default() };
                read.pinned.extend(pinned);
                for digest in local.iter().chain(&pushed) {
                    read.add(self, digest)?;
                }
                named.insert(read)
            }
        };
        Ok(look(named))
    }

    /// Whether it has no other source.
    pub(in crate::store) fn is_local(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.with_named(|named| named.local.contains_key(&Names::short(digest)))
    }

    /// These have no other source from now on. Their leases last until this returns.
    pub(in crate::store) fn note_local(&self, digests: impl IntoIterator<Item = Digest>) {
        let mut named = lock(&self.0.eviction.named);
        if let Some(known) = named.as_mut()
            && let Err(error) = digests.into_iter().try_for_each(|digest| known.add(self, &digest))
        {
            tracing::debug!(%error, "what links name is read again");
            *named = None;
        }
    }

    /// Something that links or pins named is named no longer, or by others.
    pub(in crate::store) fn forget_named(&self) {
        *lock(&self.0.eviction.named) = None;
    }
}
