//! What is known of one mirrored repository, in memory: its manifests, what may be read through them, its tags.
//!
//! Read from the store's links when the repository is first asked for, changed together with them. A lookup takes a
//! read lock for as long as it takes to copy a few words.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::HeaderValue;

use super::{
    clock::lasts,
    readers::{Hash, Readers},
    upstream::Upstream,
};
use crate::{
    digest::Digest,
    oci::{Repository, Tag, media_type},
    store::{MirroredLinks, MirroredManifest, MirroredTag, Store, StoreError},
};

/// A tag's time of checking is written to the disk again when it is this much newer than what is there, so that a
/// restart knows it well enough and a busy tag costs no write a minute.
const SAVE_EVERY: u64 = 5 * 60_000;
/// So many manifests more than twice those that were read from the disk, and the disk is read again.
const MAX_NEW: usize = 1024;
/// How many repositories of one upstream are kept in memory; past it those that nobody is using now are read again.
const MAX_REPOSITORIES: usize = 4096;

/// One repository of one upstream.
pub(super) struct Mirrored {
    pub upstream: Arc<Upstream>,
    pub name: Repository,
    /// Everybody, as a reader of this repository.
    pub everybody: Hash,
    manifests: RwLock<HashMap<Digest, HeaderValue>>,
    /// What image manifests name. Not what an index names: those are manifests, which the upstream is asked for each by
    /// itself, since not every upstream looks whether it has what an index names.
    children: RwLock<HashMap<Digest, Link>>,
    /// How many manifests it had when it was last read from the disk.
    loaded: AtomicUsize,
    tags: RwLock<HashMap<Tag, Known>>,
    /// How the upstream asked here who it is, when it last did.
    challenge: RwLock<Option<Arc<[HeaderValue]>>>,
}

/// What makes a digest one of a repository's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// An image manifest obtained here that names it, or is it.
    pub manifest: Digest,
    /// The upstream gave it out of this repository. Being named is not enough: not every upstream looks whether it has
    /// what an image manifest names, and none does for a layer that lies elsewhere; so anybody may push one that names
    /// what others have.
    pub given: bool,
}

/// Where a tag led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub digest: Digest,
    pub checked: u64,
    /// The time of checking that the disk knows.
    saved: u64,
}

impl Known {
    /// For how many seconds it has been past its time.
    pub fn overdue(&self, ttl: u64, now: u64) -> u64 {
        now.saturating_sub(self.checked.saturating_add(ttl)) / 1000
    }

    pub fn is_fresh(&self, ttl: u64, now: u64) -> bool {
        lasts(self.checked, ttl, now)
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Manifests with their media types, and what those of images name.
fn linked(records: Vec<(Digest, MirroredManifest)>) -> (HashMap<Digest, HeaderValue>, HashMap<Digest, Link>) {
    let (mut manifests, mut children) = (HashMap::new(), HashMap::new());
    for (digest, manifest) in records {
        let Ok(media_type) = HeaderValue::try_from(manifest.media_type) else { continue };
        if is_image(&media_type) {
            let link = Link { manifest: digest, given: false };
            children.extend(manifest.refers_to.into_iter().map(|child| (child, link)));
        }
        manifests.insert(digest, media_type);
    }
    (manifests, children)
}

fn is_image(media_type: &HeaderValue) -> bool {
    media_type.to_str().is_ok_and(media_type::is_manifest)
}

impl Mirrored {
    fn new(upstream: Arc<Upstream>, name: Repository, links: MirroredLinks, readers: &Readers) -> Self {
        let everybody = readers.hash(&[b"everybody", upstream.name().as_bytes(), name.as_str().as_bytes()]);
        let (manifests, children) = linked(links.manifests);
        let known = |to: MirroredTag| Known { digest: to.digest, checked: to.checked, saved: to.checked };
        let tags = links.tags.into_iter().map(|(tag, to)| (tag, known(to))).collect();
        Self {
            upstream,
            name,
            everybody,
            loaded: AtomicUsize::new(manifests.len()),
            manifests: RwLock::new(manifests),
            children: RwLock::new(children),
            tags: RwLock::new(tags),
            challenge: RwLock::default(),
        }
    }

    /// The media type of a manifest that was obtained under this repository.
    pub fn manifest(&self, digest: &Digest) -> Option<HeaderValue> {
        read(&self.manifests).get(digest).cloned()
    }

    /// What links the digest to this repository.
    pub fn linked(&self, digest: &Digest) -> Option<Link> {
        if read(&self.manifests).contains_key(digest) {
            return Some(Link { manifest: *digest, given: true });
        }
        read(&self.children).get(digest).copied()
    }

    /// Remembers, in memory, that the upstream gave the digest out of this repository.
    pub fn note_given(&self, digest: &Digest) {
        if let Some(link) = write(&self.children).get_mut(digest) {
            link.given = true;
        }
    }

    /// Remembers how the upstream asks who it is.
    pub fn note_challenge(&self, challenges: &Arc<[HeaderValue]>) {
        *write(&self.challenge) = Some(Arc::clone(challenges));
    }

    /// How the upstream asked who it is.
    pub fn challenge(&self) -> Option<Arc<[HeaderValue]>> {
        read(&self.challenge).clone()
    }

    /// Where the tag led when it was last asked about.
    pub fn tag(&self, tag: &Tag) -> Option<Known> {
        read(&self.tags).get(tag).copied()
    }

    /// Remembers a manifest; blocks on the disk.
    pub fn put_manifest(
        &self,
        store: &Store,
        digest: &Digest,
        media_type: HeaderValue,
        refers_to: Vec<Digest>,
    ) -> Result<(), StoreError> {
        let text = media_type.to_str().unwrap_or_default().to_string();
        let record = MirroredManifest { media_type: text, refers_to };
        store.mirrored(self.upstream.registry(), &self.name).put_manifest(digest, &record)?;
        // What may be read is known before the manifest that names it.
        if is_image(&media_type) {
            let mut children = write(&self.children);
            for child in record.refers_to {
                children.entry(child).or_insert(Link { manifest: *digest, given: false }).manifest = *digest;
            }
        }
        let count = {
            let mut manifests = write(&self.manifests);
            manifests.insert(*digest, media_type);
            manifests.len()
        };
        if count > 2 * self.loaded.load(Ordering::Relaxed) + MAX_NEW {
            // The disk has no more of those whose bytes are gone. What another writes meanwhile costs a question.
            let (manifests, children) = linked(store.mirrored(self.upstream.registry(), &self.name).load()?.manifests);
            self.loaded.store(manifests.len(), Ordering::Relaxed);
            *write(&self.children) = children;
            *write(&self.manifests) = manifests;
        }
        Ok(())
    }

    /// Remembers where a tag leads; whether the disk should know it ([`Mirrored::save_tag`]).
    pub fn set_tag(&self, tag: &Tag, digest: Digest, now: u64) -> bool {
        let mut tags = write(&self.tags);
        match tags.get_mut(tag) {
            Some(known) => {
                let save = known.digest != digest || !lasts(known.saved, SAVE_EVERY, now);
                *known = Known { digest, checked: now, saved: if save { now } else { known.saved } };
                save
            }
            None => {
                tags.insert(tag.clone(), Known { digest, checked: now, saved: now });
                true
            }
        }
    }

    /// Writes down what is known of a tag; blocks on the disk.
    pub fn save_tag(&self, store: &Store, tag: &Tag) -> Result<(), StoreError> {
        let links = store.mirrored(self.upstream.registry(), &self.name);
        match self.tag(tag) {
            Some(known) => links.set_tag(tag, &MirroredTag { digest: known.digest, checked: known.checked }),
            None => links.delete_tag(tag).map(drop),
        }
    }

    /// Forgets a tag; whether it was known. [`Mirrored::save_tag`] makes it last.
    pub fn forget_tag(&self, tag: &Tag) -> bool {
        write(&self.tags).remove(tag).is_some()
    }
}

/// The repositories of one upstream that were asked for.
#[derive(Default)]
pub(super) struct Repositories(RwLock<HashMap<Repository, Arc<Mirrored>>>);

impl Repositories {
    /// The repository, if it was asked for before.
    pub fn get(&self, name: &Repository) -> Option<Arc<Mirrored>> {
        read(&self.0).get(name).cloned()
    }

    /// The repository, read from the disk if need be.
    pub fn open(
        &self,
        upstream: &Arc<Upstream>,
        name: &Repository,
        store: &Store,
        readers: &Readers,
    ) -> Result<Arc<Mirrored>, StoreError> {
        let links = store.mirrored(upstream.registry(), name).load()?;
        let fresh = Arc::new(Mirrored::new(Arc::clone(upstream), name.clone(), links, readers));
        let mut open = write(&self.0);
        if open.len() >= MAX_REPOSITORIES {
            // Whoever holds one goes on with it; another copy must not come to be beside it.
            open.retain(|_, mirrored| Arc::strong_count(mirrored) > 1);
        }
        Ok(Arc::clone(open.entry(name.clone()).or_insert(fresh)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::upstream::UpstreamConfig;

    struct Scene {
        root: tempfile::TempDir,
        store: Store,
        readers: Readers,
        upstream: Arc<Upstream>,
    }

    impl Scene {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let store = Store::open(&root.path().join("data")).unwrap();
            let readers = Readers::open(root.path(), [1; 32]).unwrap();
            let config = UpstreamConfig::new("ghcr.io".parse().unwrap(), None);
            Self { root, store, readers, upstream: Arc::new(Upstream::new(0, config).unwrap()) }
        }

        fn open(&self) -> Arc<Mirrored> {
            let name = "a/b".parse().unwrap();
            Repositories::default().open(&self.upstream, &name, &self.store, &self.readers).unwrap()
        }
    }

    #[test]
    fn what_a_manifest_names_is_linked_also_after_a_restart() {
        let scene = Scene::new();
        let [one, two, layer, shared] = ["1", "2", "3", "4"].map(|text| Digest::sha256(text.as_bytes()));
        let repository = scene.open();
        let kind = || HeaderValue::from_static(media_type::OCI_MANIFEST);
        let index = Digest::sha256(b"index");
        repository.put_manifest(&scene.store, &one, kind(), vec![layer, shared]).unwrap();
        repository.put_manifest(&scene.store, &two, kind(), vec![shared]).unwrap();
        let of_index = HeaderValue::from_static(media_type::OCI_INDEX);
        let child = Digest::sha256(b"child");
        repository.put_manifest(&scene.store, &index, of_index, vec![one, child]).unwrap();
        for repository in [repository, scene.open()] {
            assert_eq!(repository.manifest(&one), Some(kind()));
            assert_eq!(repository.manifest(&layer), None);
            let linked = |digest: &Digest| repository.linked(digest).map(|link| (link.manifest, link.given));
            assert_eq!(linked(&layer), Some((one, false)));
            assert_eq!(linked(&one), Some((one, true)));
            assert!(linked(&shared).is_some());
            assert_eq!(linked(&Digest::sha256(b"other")), None);
            assert_eq!((linked(&index), linked(&child)), (Some((index, true)), None));
            repository.note_given(&shared);
            repository.put_manifest(&scene.store, &one, kind(), vec![layer, shared]).unwrap();
            assert_eq!((linked(&shared), linked(&layer)), (Some((one, true)), Some((one, false))));
        }
        drop(scene.root);
    }

    #[test]
    fn what_is_no_longer_on_the_disk_does_not_pile_up_in_memory() {
        let scene = Scene::new();
        let repository = scene.open();
        let kind = || HeaderValue::from_static(media_type::OCI_MANIFEST);
        let digest = |n: usize| Digest::sha256(n.to_string().as_bytes());
        // None of them is held.
        for n in 0..=MAX_NEW {
            assert!(repository.manifest(&digest(0)).is_some() || n == 0, "{n}");
            if n == MAX_NEW {
                scene.store.collect(Vec::new, std::time::Duration::ZERO).unwrap();
            }
            repository.put_manifest(&scene.store, &digest(n), kind(), vec![digest(n + 10_000)]).unwrap();
        }
        assert_eq!((repository.manifest(&digest(0)), repository.linked(&digest(10_000))), (None, None));
        assert!(repository.manifest(&digest(MAX_NEW)).is_some(), "the disk has it");
    }

    #[test]
    fn a_tag_is_written_down_when_it_moves_or_its_time_of_checking_is_long_past() {
        let scene = Scene::new();
        let [one, two] = ["1", "2"].map(|text| Digest::sha256(text.as_bytes()));
        let tag: Tag = "v1".parse().unwrap();
        let repository = scene.open();
        for (digest, now, save) in [
            (one, 1000, true),
            (one, 1000 + SAVE_EVERY - 1, false),
            (one, 1000 + SAVE_EVERY, true),
            (two, 2000 + SAVE_EVERY, true),
            (two, 0, true),
        ] {
            assert_eq!(repository.set_tag(&tag, digest, now), save, "{now}");
            let known = repository.tag(&tag).unwrap();
            assert_eq!((known.digest, known.checked), (digest, now));
        }
        repository.save_tag(&scene.store, &tag).unwrap();
        assert_eq!(scene.open().tag(&tag).unwrap().digest, two);
        assert!(repository.forget_tag(&tag));
        assert!(!repository.forget_tag(&tag));
        repository.save_tag(&scene.store, &tag).unwrap();
        assert_eq!(scene.open().tag(&tag), None);
    }

    #[test]
    fn a_tag_is_overdue_by_whole_seconds() {
        let known = Known { digest: Digest::sha256(b""), checked: 10_000, saved: 0 };
        for (now, fresh, overdue) in
            [(10_000, true, 0), (69_999, true, 0), (70_000, false, 0), (100_500, false, 30), (9_999, false, 0)]
        {
            assert_eq!((known.is_fresh(60_000, now), known.overdue(60_000, now)), (fresh, overdue), "{now}");
        }
    }
}
