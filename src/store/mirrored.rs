//! Which mirrored repository holds what: manifests with what they refer to, and where tags led when they were last
//! asked about.
//!
//! ```text
//! links/mirror/<upstream>/<repository>/_manifests/<algorithm>-<hex>   JSON: MirroredManifest
//! links/mirror/<upstream>/<repository>/_tags/<tag>                    JSON: MirroredTag
//! ```
//! `<upstream>` is the registry as it is named, `:` written `_`, which no host has. Everything here can be asked of
//! its upstream again, so nothing is synced: a record that a power loss tore reads as absent. Each file is written
//! beside its place and renamed, so a crash of the process leaves the old or the new one. Any number of threads may
//! call this; of two that write one record the later one counts.

use serde::{Deserialize, Serialize};

use super::{
    Store, StoreError,
    layout::{file_name, from_file_name},
};
use crate::{
    digest::Digest,
    oci::{Registry, Repository, Tag},
};

const MIRROR: &str = "links/mirror";

/// The links of one repository of one upstream.
pub struct MirroredRepository<'a> {
    store: &'a Store,
    path: String,
}

/// What is remembered of a mirrored manifest beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MirroredManifest {
    /// The Content-Type that the upstream gave it.
    pub media_type: String,
    /// What it names: config, layers, or an index's manifests. What an image names may be read through the repository.
    pub refers_to: Vec<Digest>,
}

/// Where a tag led.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MirroredTag {
    /// To which manifest.
    pub digest: Digest,
    /// When the upstream last said so, in milliseconds since 1970.
    pub checked: u64,
}

/// All that is remembered of one repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MirroredLinks {
    /// Its manifests.
    pub manifests: Vec<(Digest, MirroredManifest)>,
    /// Its tags.
    pub tags: Vec<(Tag, MirroredTag)>,
}

fn directory(upstream: &Registry) -> String {
    upstream.to_string().replace(':', "_")
}

impl Store {
    /// The links of a repository of an upstream (which need not exist yet).
    pub fn mirrored(&self, upstream: &Registry, name: &Repository) -> MirroredRepository<'_> {
        MirroredRepository { store: self, path: format!("{MIRROR}/{}/{name}", directory(upstream)) }
    }

    /// Every digest that a mirrored manifest names, and the manifests' own, some more than once: what is cached for
    /// its upstream, and may be fetched from there again.
    pub fn mirrored_digests(&self) -> Result<Vec<Digest>, StoreError> {
        let mut all = Vec::new();
        self.each_mirrored(|repository| {
            for (digest, manifest) in repository.load()?.manifests {
                all.push(digest);
                all.extend(manifest.refers_to);
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// Forgets manifests whose bytes are not held any longer, and tags that lead to such.
    pub(super) fn forget_absent_mirrored(&self) -> Result<(), StoreError> {
        self.each_mirrored(|repository| {
            let links = repository.load()?;
            let layout = &self.0.layout;
            for (digest, _) in links.manifests {
                if !self.has(&digest)? {
                    layout.remove_file(&repository.manifest_path(&digest))?;
                }
            }
            for (tag, to) in links.tags {
                if !self.has(&to.digest)? {
                    layout.remove_file(&repository.tag_path(&tag))?;
                }
            }
            Ok(())
        })
    }

    fn each_mirrored(
        &self,
        mut f: impl FnMut(&MirroredRepository<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut open: Vec<String> = vec![MIRROR.to_string()];
        while let Some(path) = open.pop() {
            let mut reserved = false;
            for child in self.0.layout.names(&path)? {
                match child.starts_with('_') {
                    true => reserved = true,
                    false => open.push(format!("{path}/{child}")),
                }
            }
            if reserved {
                f(&MirroredRepository { store: self, path })?;
            }
        }
        Ok(())
    }
}

impl MirroredRepository<'_> {
    /// All that is remembered. What cannot be read is left out.
    pub fn load(&self) -> Result<MirroredLinks, StoreError> {
        let layout = &self.store.0.layout;
        let mut links = MirroredLinks::default();
        for name in layout.names(&format!("{}/_manifests", self.path))? {
            let Some(digest) = from_file_name(&name) else { continue };
            if let Some(manifest) = self.read(&self.manifest_path(&digest))? {
                links.manifests.push((digest, manifest));
            }
        }
        for name in layout.names(&format!("{}/_tags", self.path))? {
            let Ok(tag) = name.parse::<Tag>() else { continue };
            if let Some(to) = self.read(&self.tag_path(&tag))? {
                links.tags.push((tag, to));
            }
        }
        Ok(links)
    }

    /// Remembers a manifest. Lease it from before it is stored until this returns.
    pub fn put_manifest(&self, digest: &Digest, manifest: &MirroredManifest) -> Result<(), StoreError> {
        self.write(&self.manifest_path(digest), manifest)
    }

    /// Forgets a manifest, and with it what was readable through it.
    pub fn delete_manifest(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.store.writable()?;
        self.store.0.layout.remove_file(&self.manifest_path(digest))
    }

    /// Remembers where a tag leads.
    pub fn set_tag(&self, tag: &Tag, to: &MirroredTag) -> Result<(), StoreError> {
        self.write(&self.tag_path(tag), to)
    }

    /// Forgets a tag; whether it was remembered.
    pub fn delete_tag(&self, tag: &Tag) -> Result<bool, StoreError> {
        self.store.writable()?;
        self.store.0.layout.remove_file(&self.tag_path(tag))
    }

    fn manifest_path(&self, digest: &Digest) -> String {
        format!("{}/_manifests/{}", self.path, file_name(digest))
    }

    fn tag_path(&self, tag: &Tag) -> String {
        format!("{}/_tags/{tag}", self.path)
    }

    fn write(&self, path: &str, record: &impl Serialize) -> Result<(), StoreError> {
        self.store.writable()?;
        let layout = &self.store.0.layout;
        let text = serde_json::to_vec(record).map_err(|e| layout.error("write", path, std::io::Error::from(e)))?;
        layout.write(path, &text, false)
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.store.0.layout.read(path)? else { return Ok(None) };
        match serde_json::from_slice(&bytes) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                tracing::debug!(path, %error, "a record of the mirror cannot be read and counts as absent");
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Durability, tests::store};

    fn manifest(refers_to: &[Digest]) -> MirroredManifest {
        MirroredManifest { media_type: "m".into(), refers_to: refers_to.to_vec() }
    }

    #[test]
    fn links_survive_a_restart_and_belong_to_one_repository_of_one_upstream() {
        let (root, store) = store();
        let upstream: Registry = "127.0.0.1:5000".parse().unwrap();
        let (a, nested): (Repository, Repository) = ("a".parse().unwrap(), "a/b".parse().unwrap());
        let (one, layer) = (Digest::sha256(b"one"), Digest::sha256(b"layer"));
        let tag: Tag = "v1".parse().unwrap();
        let to = MirroredTag { digest: one, checked: 7 };
        store.mirrored(&upstream, &a).put_manifest(&one, &manifest(&[layer])).unwrap();
        store.mirrored(&upstream, &nested).set_tag(&tag, &to).unwrap();
        drop(store);
        let store = Store::open(root.path()).unwrap();
        let links = store.mirrored(&upstream, &a).load().unwrap();
        assert_eq!(links, MirroredLinks { manifests: vec![(one, manifest(&[layer]))], tags: vec![] });
        let links = store.mirrored(&upstream, &nested).load().unwrap();
        assert_eq!(links, MirroredLinks { manifests: vec![], tags: vec![(tag.clone(), to)] });
        let elsewhere: Registry = "127.0.0.1:5001".parse().unwrap();
        assert_eq!(store.mirrored(&elsewhere, &a).load().unwrap(), MirroredLinks::default());
        assert_eq!(store.mirrored_digests().unwrap(), [one, layer]);
        assert!(store.mirrored(&upstream, &nested).delete_tag(&tag).unwrap());
        assert!(!store.mirrored(&upstream, &nested).delete_tag(&tag).unwrap());
    }

    #[test]
    fn a_torn_record_counts_as_absent() {
        let (root, store) = store();
        let upstream: Registry = "ghcr.io".parse().unwrap();
        let name: Repository = "a".parse().unwrap();
        let one = Digest::sha256(b"one");
        store.mirrored(&upstream, &name).put_manifest(&one, &manifest(&[])).unwrap();
        let path = root.path().join("links/mirror/ghcr.io/a/_manifests").join(file_name(&one));
        for torn in [&b""[..], b"{", b"{\"mediaType\":1}", &[0xff; 40]] {
            std::fs::write(&path, torn).unwrap();
            assert_eq!(store.mirrored(&upstream, &name).load().unwrap(), MirroredLinks::default());
        }
    }

    #[test]
    fn what_is_not_held_any_longer_is_forgotten() {
        let (_root, store) = store();
        let upstream: Registry = "ghcr.io".parse().unwrap();
        let repository = store.mirrored(&upstream, &"a".parse().unwrap());
        let held = store.put(Digest::sha256(b"held"), b"held", Durability::Soon).unwrap().digest();
        let gone = Digest::sha256(b"gone");
        for (tag, digest) in [("held", held), ("gone", gone)] {
            repository.put_manifest(&digest, &manifest(&[])).unwrap();
            repository.set_tag(&tag.parse().unwrap(), &MirroredTag { digest, checked: 1 }).unwrap();
        }
        store.forget_absent_mirrored().unwrap();
        let links = repository.load().unwrap();
        assert_eq!(links.manifests, [(held, manifest(&[]))]);
        assert_eq!(links.tags, [("held".parse().unwrap(), MirroredTag { digest: held, checked: 1 })]);
    }
}
