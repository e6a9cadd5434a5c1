//! Which repository holds what: tags, manifests and blobs of local repositories; and pins.
//!
//! ```text
//! links/local/<repository>/_manifests/<algorithm>-<hex>   JSON: ManifestRecord
//! links/local/<repository>/_tags/<tag>                    the manifest's digest
//! links/local/<repository>/_blobs/<algorithm>-<hex>       empty
//! links/local/<repository>/_referrers/<subject>/<manifest>  empty
//! links/local/<repository>/_deleted/<algorithm>-<hex>     empty: it came by a push and was deleted
//! links/pins/<blake3 of the pin's name>                   JSON: the name and its digests
//! ```
//! A repository's path nests as it is written: its components never begin with `_` (distribution-spec 1.1), so
//! `a`, `a/b` and the reserved names cannot meet. What is pushed has no other source: each file is written to
//! `spool/`, synced, renamed and its directory synced before the call returns, so a crash leaves the old or the new
//! state of each file. A tag is written after its manifest and removed before it. Any number of threads may call this;
//! writers of one repository wait for each other.

use std::{collections::BTreeMap, io, sync::MutexGuard};

use serde::{Deserialize, Serialize};

use super::{
    Store, StoreError,
    layout::{Identity, blob_path, file_name, from_file_name, lock},
};
use crate::{
    digest::Digest,
    oci::{Repository, Tag},
};

/// The links of one local repository.
pub struct LocalRepository<'a> {
    store: &'a Store,
    name: String,
}

/// What is remembered of a manifest beside its bytes: enough for collection and for the referrers API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestRecord {
    /// The media type it was pushed with.
    pub media_type: String,
    /// The manifest's length in bytes.
    pub size: u64,
    /// Config, layers, or an index's manifests: what it keeps from collection.
    pub refers_to: Vec<Digest>,
    /// The manifest that it says something about. It does not keep that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Digest>,
    /// Its artifact type, or its config's media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Its annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(flatten)]
    record: ManifestRecord,
    /// The bytes that it stands for: its own and those of the blobs it refers to.
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Pin {
    name: String,
    digests: Vec<Digest>,
}

const LOCAL: &str = "links/local";

/// Which blobs are named here, and by what.
#[derive(Default)]
pub(super) struct Linked {
    /// Manifests of local repositories and what they refer to: kept, and there is no other source.
    pub local: Vec<Digest>,
    /// Blobs that came by a push, with a manifest or not yet: no other source either, but kept for a while only.
    pub pushed: Vec<Digest>,
    /// What was pushed and then deleted: kept for a while only, unless something names it.
    pub deleted: Vec<Digest>,
    /// Kept by a pin, whatever their source.
    pub pinned: Vec<Digest>,
}

fn pin_path(name: &str) -> String {
    format!("links/pins/{}", blake3::hash(name.as_bytes()).to_hex())
}

impl Store {
    /// The links of a local repository (which need not exist yet).
    pub fn local(&self, name: &Repository) -> LocalRepository<'_> {
        self.local_named(name.as_str())
    }

    pub(super) fn local_named(&self, name: &str) -> LocalRepository<'_> {
        LocalRepository { store: self, name: name.to_string() }
    }

    /// The names of all local repositories, sorted.
    pub fn local_repositories(&self) -> Result<Vec<Repository>, StoreError> {
        let names = self.local_names()?;
        // A name that does not parse was not written here.
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    pub(super) fn local_names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        let mut open = vec![String::new()];
        while let Some(name) = open.pop() {
            let (mut reserved, mut below) = (false, Vec::new());
            for child in self.0.layout.names(&format!("{LOCAL}/{name}"))? {
                if child.starts_with('_') {
                    reserved = true;
                } else {
                    below.push(if name.is_empty() { child } else { format!("{name}/{child}") });
                }
            }
            open.append(&mut below);
            if reserved && !name.is_empty() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Keeps digests from collection under a name (a reference), in place of what that name kept before.
    pub fn pin(&self, name: &str, digests: &[Digest]) -> Result<(), StoreError> {
        self.writable()?;
        let _leases: Vec<_> = digests.iter().map(|d| self.lease(*d)).collect();
        let path = pin_path(name);
        let pin = Pin { name: name.to_string(), digests: digests.to_vec() };
        let text = serde_json::to_vec(&pin).map_err(|e| self.0.layout.error("write", &path, io::Error::from(e)))?;
        self.with_room(0, || self.0.layout.write(&path, &text, true))?;
        // What the name kept before may go now.
        self.forget_named();
        Ok(())
    }

    /// Ends a pin; whether there was one.
    pub fn unpin(&self, name: &str) -> Result<bool, StoreError> {
        self.writable()?;
        let there = self.0.layout.remove_file(&pin_path(name))?;
        self.forget_named();
        Ok(there)
    }

    /// All pins and what they keep, sorted by name.
    pub fn pins(&self) -> Result<Vec<(String, Vec<Digest>)>, StoreError> {
        let mut pins = Vec::new();
        for name in self.0.layout.names("links/pins")? {
            let path = format!("links/pins/{name}");
            if let Some(bytes) = self.0.layout.read(&path)? {
                let pin: Pin = serde_json::from_slice(&bytes)
                    .map_err(|e| self.0.layout.error("read", &path, io::Error::from(e)))?;
                pins.push((pin.name, pin.digests));
            }
        }
        pins.sort();
        Ok(pins)
    }

    /// The bytes that all local repositories' manifests stand for.
    pub(super) fn link_bytes(&self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for name in self.local_names()? {
            let repository = self.local_named(&name);
            for digest in repository.manifests()? {
                bytes += repository.stored(&digest)?.map_or(0, |s| s.bytes);
            }
        }
        Ok(bytes)
    }

    /// Everything that links and pins keep. An unreadable record is an error: better no collection than a wrong one.
    pub(super) fn linked(&self) -> Result<Linked, StoreError> {
        let mut linked = Linked::default();
        for name in self.local_names()? {
            let repository = self.local_named(&name);
            linked.pushed.extend(repository.digests("_blobs")?);
            linked.deleted.extend(repository.digests("_deleted")?);
            for digest in repository.manifests()? {
                linked.local.push(digest);
                linked.local.extend(repository.stored(&digest)?.into_iter().flat_map(|s| s.record.refers_to));
            }
        }
        linked.pinned.extend(self.pins()?.into_iter().flat_map(|(_, digests)| digests));
        Ok(linked)
    }

    /// Every manifest recorded, with its repository.
    pub(super) fn linked_manifests(&self) -> Result<Vec<(String, Digest)>, StoreError> {
        let mut all = Vec::new();
        for name in self.local_names()? {
            let manifests = self.local_named(&name).manifests()?;
            all.extend(manifests.into_iter().map(|digest| (name.clone(), digest)));
        }
        Ok(all)
    }

    /// Removes the links of blobs that are not held any longer.
    pub(super) fn unlink_absent(&self) -> Result<(), StoreError> {
        for name in self.local_names()? {
            let repository = self.local_named(&name);
            for folder in ["_blobs", "_deleted"] {
                for digest in repository.digests(folder)? {
                    let _writer = repository.write()?;
                    if !self.has(&digest)? {
                        self.0.layout.remove_file(&repository.path(&format!("{folder}/{}", file_name(&digest))))?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl LocalRepository<'_> {
    /// Links a blob that the store holds to this repository, so that it may be read through it. The caller's lease on
    /// it lasts from before it was looked up, or written, until this returns.
    pub fn link_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let _writer = self.write()?;
        let path = self.path(&format!("_blobs/{}", file_name(digest)));
        if self.store.0.layout.stat(&path)?.is_some() {
            return Ok(());
        }
        self.store.with_room(0, || self.store.0.layout.write(&path, b"", true))?;
        self.store.note_local([*digest]);
        Ok(())
    }

    /// Whether the blob may be read through this repository.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.store.0.layout.stat(&self.path(&format!("_blobs/{}", file_name(digest))))?.is_some())
    }

    /// Forgets that the blob may be read through this repository; whether it might. The blob itself stays until it is
    /// collected.
    pub fn delete_blob(&self, digest: &Digest) -> Result<bool, StoreError> {
        let _writer = self.write()?;
        if self.has_blob(digest)? {
            self.note_deleted(digest);
        }
        let there = self.remove(&format!("_blobs/{}", file_name(digest)))?;
        self.store.forget_named();
        Ok(there)
    }

    /// Notes that what is about to be deleted came by a push, so that it is collected as soon as such content is
    /// (contract section 6). A note that stands without need only hastens the collection of what nothing names; one
    /// that cannot be written, as on a full disk, must not keep anything from being deleted.
    fn note_deleted(&self, digest: &Digest) {
        let path = self.path(&format!("_deleted/{}", file_name(digest)));
        if let Err(error) = self.store.0.layout.write(&path, b"", false) {
            tracing::debug!(%error, %digest, "deleted content is collected later than usual");
        }
    }

    /// Records a manifest that the store holds, its media type, and what it refers to (for collection and referrers).
    pub fn put_manifest(&self, digest: &Digest, media_type: &str, refers_to: &[Digest]) -> Result<(), StoreError> {
        let size = self.size(digest)?;
        let (media_type, refers_to) = (media_type.to_string(), refers_to.to_vec());
        self.put_manifest_record(digest, ManifestRecord { media_type, size, refers_to, ..ManifestRecord::default() })
    }

    /// The same with everything that the referrers API tells. Lease what the manifest refers to before checking that
    /// it is held, until this returns.
    pub fn put_manifest_record(&self, digest: &Digest, record: ManifestRecord) -> Result<(), StoreError> {
        self.put_manifest_tagged(digest, record, &[])
    }

    /// The same, with these tags pointed at it: whoever deletes it meanwhile does so before or after both.
    pub fn put_manifest_tagged(&self, digest: &Digest, record: ManifestRecord, tags: &[Tag]) -> Result<(), StoreError> {
        let _writer = self.write()?;
        self.record_manifest(digest, record)?;
        tags.iter().try_for_each(|tag| self.point(tag, digest))
    }

    fn record_manifest(&self, digest: &Digest, record: ManifestRecord) -> Result<(), StoreError> {
        let _leases: Vec<_> = record.refers_to.iter().chain([digest]).map(|d| self.store.lease(*d)).collect();
        let layout = &self.store.0.layout;
        let path = self.path(&format!("_manifests/{}", file_name(digest)));
        let mut bytes = record.size;
        for child in &record.refers_to {
            bytes += self.size(child)?;
        }
        let subject = record.subject;
        let named: Vec<_> = record.refers_to.iter().chain([digest]).copied().collect();
        let text = serde_json::to_vec(&Stored { record, bytes })
            .map_err(|e| layout.error("write", &path, io::Error::from(e)))?;
        self.store.change_logical(|| {
            let before = self.stored(digest)?.map_or(0, |s| s.bytes);
            self.store.with_room(0, || layout.write(&path, &text, true))?;
            Ok(((), bytes, before))
        })?;
        self.store.note_local(named);
        match subject {
            Some(subject) => {
                let entry = self.path(&format!("_referrers/{}/{}", file_name(&subject), file_name(digest)));
                self.store.with_room(0, || layout.write(&entry, b"", true))
            }
            None => Ok(()),
        }
    }

    /// The media type of a manifest recorded here.
    pub fn manifest(&self, digest: &Digest) -> Result<Option<String>, StoreError> {
        Ok(self.manifest_record(digest)?.map(|r| r.media_type))
    }

    /// All that is remembered of a manifest recorded here.
    pub fn manifest_record(&self, digest: &Digest) -> Result<Option<ManifestRecord>, StoreError> {
        Ok(self.stored(digest)?.map(|s| s.record))
    }

    /// The manifests recorded here, tagged or not, sorted.
    pub fn manifests(&self) -> Result<Vec<Digest>, StoreError> {
        self.digests("_manifests")
    }

    /// The manifests recorded here whose subject is `subject`, sorted by digest.
    pub fn referrers(&self, subject: &Digest) -> Result<Vec<(Digest, ManifestRecord)>, StoreError> {
        let mut found = Vec::new();
        for digest in self.digests(&format!("_referrers/{}", file_name(subject)))? {
            // A crash may have left an entry whose manifest is gone, or was put again with another subject.
            if let Some(record) = self.manifest_record(&digest)?
                && record.subject.as_ref() == Some(subject)
            {
                found.push((digest, record));
            }
        }
        Ok(found)
    }

    /// Forgets a manifest and every tag that names it.
    pub fn delete_manifest(&self, digest: &Digest) -> Result<bool, StoreError> {
        let _writer = self.write()?;
        let Some(stored) = self.stored(digest)? else { return Ok(false) };
        self.note_deleted(digest);
        for tag in self.tag_names()? {
            if self.tag_named(&tag)? == Some(*digest) {
                self.remove(&format!("_tags/{tag}"))?;
            }
        }
        if let Some(subject) = stored.record.subject {
            self.remove(&format!("_referrers/{}/{}", file_name(&subject), file_name(digest)))?;
        }
        let there = self.store.change_logical(|| {
            let there = self.remove(&format!("_manifests/{}", file_name(digest)))?;
            Ok((there, 0, stored.bytes))
        })?;
        self.store.forget_named();
        Ok(there)
    }

    /// Points a tag at a manifest recorded here.
    pub fn set_tag(&self, tag: &Tag, digest: &Digest) -> Result<(), StoreError> {
        let _writer = self.write()?;
        if self.stored(digest)?.is_none() {
            return Err(StoreError::NoManifest { repository: self.name.clone(), digest: *digest });
        }
        self.point(tag, digest)
    }

    fn point(&self, tag: &Tag, digest: &Digest) -> Result<(), StoreError> {
        let path = self.tag_path(tag.as_str())?;
        self.store.with_room(0, || self.store.0.layout.write(&path, format!("{digest}\n").as_bytes(), true))
    }

    /// What a tag points at.
    pub fn tag(&self, tag: &Tag) -> Result<Option<Digest>, StoreError> {
        self.tag_named(tag.as_str())
    }

    /// Forgets a tag.
    pub fn delete_tag(&self, tag: &Tag) -> Result<bool, StoreError> {
        let _writer = self.write()?;
        self.tag_path(tag.as_str())?;
        self.remove(&format!("_tags/{tag}"))
    }

    /// All tags in byte order.
    pub fn tags(&self) -> Result<Vec<Tag>, StoreError> {
        Ok(self.tag_names()?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn tag_names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = self.store.0.layout.names(&self.path("_tags"))?;
        names.sort_unstable();
        Ok(names)
    }

    fn tag_named(&self, tag: &str) -> Result<Option<Digest>, StoreError> {
        let path = self.tag_path(tag)?;
        let Some(bytes) = self.store.0.layout.read(&path)? else { return Ok(None) };
        let wrong =
            |why: String| self.store.0.layout.error("read", &path, io::Error::new(io::ErrorKind::InvalidData, why));
        let text = std::str::from_utf8(&bytes).map_err(|e| wrong(e.to_string()))?;
        text.trim_end().parse().map(Some).map_err(|e: crate::digest::DigestError| wrong(e.to_string()))
    }

    fn tag_path(&self, tag: &str) -> Result<String, StoreError> {
        if tag.is_empty() || tag.starts_with('.') || tag.contains(['/', '\0']) {
            return Err(StoreError::name("tag", tag));
        }
        Ok(self.path(&format!("_tags/{tag}")))
    }

    fn path(&self, below: &str) -> String {
        format!("{LOCAL}/{}/{below}", self.name)
    }

    /// The right to change this repository.
    fn write(&self) -> Result<MutexGuard<'_, ()>, StoreError> {
        self.store.writable()?;
        // The type Repository promises more; paths are worth a second look.
        if self.name.split('/').any(|c| c.is_empty() || c.starts_with(['_', '.']) || c.contains('\0')) {
            return Err(StoreError::name("repository", &self.name));
        }
        let stripe = usize::from(blake3::hash(self.name.as_bytes()).as_bytes()[0]) % self.store.0.links.len();
        Ok(lock(&self.store.0.links[stripe]))
    }

    fn remove(&self, below: &str) -> Result<bool, StoreError> {
        let (layout, path) = (&self.store.0.layout, self.path(below));
        let there = layout.remove_file(&path)?;
        if there {
            let parent = path.rsplit_once('/').map_or(".", |(parent, _)| parent);
            layout.sync_dir(parent).map_err(|e| layout.error("sync", parent, e))?;
        }
        Ok(there)
    }

    fn digests(&self, below: &str) -> Result<Vec<Digest>, StoreError> {
        let names = self.store.0.layout.names(&self.path(below))?;
        let mut digests: Vec<Digest> = names.iter().filter_map(|n| from_file_name(n)).collect();
        digests.sort_unstable();
        Ok(digests)
    }

    fn stored(&self, digest: &Digest) -> Result<Option<Stored>, StoreError> {
        let path = self.path(&format!("_manifests/{}", file_name(digest)));
        let Some(bytes) = self.store.0.layout.read(&path)? else { return Ok(None) };
        let stored = serde_json::from_slice(&bytes);
        stored.map(Some).map_err(|e| self.store.0.layout.error("read", &path, io::Error::from(e)))
    }

    /// The size of a blob that is held, else 0.
    fn size(&self, digest: &Digest) -> Result<u64, StoreError> {
        Ok(self.store.0.layout.stat(&blob_path(digest))?.map_or(0, |s| Identity::from_stat(&s).size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Durability, tests::store};

    fn put(store: &Store, content: &[u8]) -> Digest {
        store.put(Digest::sha256(content), content, Durability::Soon).unwrap().digest()
    }

    #[test]
    fn tags_go_round_in_byte_order_and_die_with_their_manifest() {
        let (root, mut store) = store();
        let (one, two) = (put(&store, b"one"), put(&store, b"two"));
        let name: Repository = "a/b".parse().unwrap();
        let tag = |t: &str| t.parse::<Tag>().unwrap();
        for reopened in [false, true] {
            if reopened {
                drop(store);
                store = Store::open(root.path()).unwrap();
            }
            let repository = store.local(&name);
            let missing = repository.set_tag(&tag("x"), &Digest::sha256(b"none")).unwrap_err();
            assert_eq!(missing.class(), crate::class::Class::NotFound);
            repository.put_manifest(&one, "m/one", &[]).unwrap();
            repository.put_manifest(&two, "m/two", &[one]).unwrap();
            for (t, digest) in [("v10", one), ("v2", two), ("V3", one), ("_x", two), ("v2", one)] {
                repository.set_tag(&tag(t), &digest).unwrap();
            }
            assert_eq!(repository.tags().unwrap(), ["V3", "_x", "v10", "v2"].map(tag));
            assert_eq!(repository.tag(&tag("v2")).unwrap(), Some(one));
            assert_eq!(repository.tag(&tag("v3")).unwrap(), None);
            assert_eq!(repository.manifest(&two).unwrap().as_deref(), Some("m/two"));
            assert!(repository.delete_tag(&tag("v10")).unwrap());
            assert!(!repository.delete_tag(&tag("v10")).unwrap());
            assert!(repository.delete_manifest(&one).unwrap());
            assert!(!repository.delete_manifest(&one).unwrap());
            assert_eq!(repository.tags().unwrap(), ["_x"].map(tag));
            assert_eq!(repository.manifest(&one).unwrap(), None);
        }
    }

    #[test]
    fn nested_repositories_do_not_meet() {
        let (_root, store) = store();
        let digest = put(&store, b"one");
        for name in ["a/b", "a", "a/b/tags", "b"] {
            store.local(&name.parse().unwrap()).link_blob(&digest).unwrap();
        }
        let names = store.local_repositories().unwrap();
        assert_eq!(names.iter().map(Repository::as_str).collect::<Vec<_>>(), ["a", "a/b", "a/b/tags", "b"]);
        assert!(!store.local(&"a/c".parse().unwrap()).has_blob(&digest).unwrap());
        let a = store.local(&"a".parse().unwrap());
        assert!(a.delete_blob(&digest).unwrap());
        assert!(!a.delete_blob(&digest).unwrap());
        assert!(!a.has_blob(&digest).unwrap());
        assert!(store.local(&"a/b".parse().unwrap()).has_blob(&digest).unwrap());
        for bad in ["a/_tags", "..", "a//b", "", "a/../b"] {
            assert!(matches!(store.local_named(bad).link_blob(&digest), Err(StoreError::Name { .. })), "{bad}");
        }
    }

    #[test]
    fn referrers_are_those_whose_record_names_the_subject() {
        let (_root, store) = store();
        let (subject, one, two) = (put(&store, b"subject"), put(&store, b"one"), put(&store, b"two"));
        let repository = store.local_named("a");
        let record = |subject| ManifestRecord {
            media_type: "m".into(),
            size: 3,
            subject,
            artifact_type: Some("t".into()),
            annotations: [("k".to_string(), "v".to_string())].into(),
            ..ManifestRecord::default()
        };
        repository.put_manifest_record(&one, record(Some(subject))).unwrap();
        repository.put_manifest_record(&two, record(Some(subject))).unwrap();
        let mut expected = vec![(one, record(Some(subject))), (two, record(Some(subject)))];
        expected.sort_by_key(|(d, _)| *d);
        assert_eq!(repository.referrers(&subject).unwrap(), expected);
        repository.delete_manifest(&one).unwrap();
        repository.put_manifest_record(&two, record(None)).unwrap();
        assert_eq!(repository.referrers(&subject).unwrap(), []);
    }

    #[test]
    fn what_manifests_stand_for_is_counted_and_uncounted() {
        let (_root, store) = store();
        let (layer, manifest) = (put(&store, &[1; 100]), put(&store, b"manifest"));
        let repository = store.local_named("a");
        repository.put_manifest(&manifest, "m", &[layer]).unwrap();
        assert_eq!(store.usage().unwrap().logical, 108);
        store.local_named("b").put_manifest(&manifest, "m", &[layer]).unwrap();
        repository.put_manifest(&manifest, "m", &[layer]).unwrap();
        assert_eq!(store.usage().unwrap().logical, 216);
        repository.delete_manifest(&manifest).unwrap();
        assert_eq!(store.usage().unwrap().logical, 108);
        assert_eq!(store.usage().unwrap().physical, 108);
    }

    #[test]
    fn pins_are_replaced_and_ended_by_name() {
        let (_root, store) = store();
        let (one, two) = (Digest::sha256(b"one"), Digest::sha256(b"two"));
        store.pin("ghcr.io/a/b:v1", &[one]).unwrap();
        store.pin("../x", &[one, two]).unwrap();
        store.pin("ghcr.io/a/b:v1", &[two]).unwrap();
        let pins = store.pins().unwrap();
        assert_eq!(pins, [("../x".to_string(), vec![one, two]), ("ghcr.io/a/b:v1".to_string(), vec![two])]);
        assert!(store.unpin("../x").unwrap());
        assert!(!store.unpin("../x").unwrap());
        assert_eq!(store.pins().unwrap().len(), 1);
    }

    #[test]
    fn a_manifest_that_is_deleted_while_it_is_put_has_its_tag_or_is_gone() {
        let (_root, store) = store();
        let digest = put(&store, b"m");
        let name = "a".parse().unwrap();
        let tags = ["t".parse().unwrap()];
        std::thread::scope(|scope| {
            let deleting =
                scope.spawn(|| (0..300).filter(|_| store.local(&name).delete_manifest(&digest).unwrap()).count());
            for _ in 0..300 {
                let record = ManifestRecord { media_type: "m".into(), size: 1, ..ManifestRecord::default() };
                store.local(&name).put_manifest_tagged(&digest, record, &tags).unwrap();
            }
            deleting.join().unwrap();
        });
        let local = store.local(&name);
        assert_eq!(local.tag(&tags[0]).unwrap().is_some(), local.manifest(&digest).unwrap().is_some());
    }
}
