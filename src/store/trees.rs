//! Published trees: `source/<namespace>/<name>/<hex>/{contents/,manifest.json}`.
//!
//! A tree is written in `source/<namespace>/<name>/.tmp-…` and appears by one rename, complete. Its record,
//! `links/trees/<namespace>/<name>/<hex>` (JSON: the bytes that the tree stands for, in which boot it was written, and
//! as which of that boot's trees), comes right after. `links/settled` says up to which tree each boot's are known to be
//! on the disk: one line for any number of trees. A tree without a record, or with one of another boot that was never
//! known to be on the disk, is not sound and is replaced when it is published again. What a
//! crash leaves under `.tmp-…` goes when the same object's next tree is begun, or by a collection. Taking a tree away
//! leaves its files in the pool until a collection. Any number of threads may call this.

use std::{collections::BTreeMap, io, path::PathBuf, sync::atomic::Ordering};

use cap_std::fs::Dir;
use rustix::{fs::Mode, io::Errno};
use serde::{Deserialize, Serialize};

use super::{
    Store, StoreError,
    layout::{Layout, lock},
};

/// A tree being written. Dropping it leaves nothing.
#[must_use]
pub struct TreeWriter {
    store: Store,
    key: Key,
    temporary: String,
    contents: Dir,
    bytes: u64,
    done: bool,
}

#[derive(Serialize, Deserialize)]
struct Record {
    bytes: u64,
    boot: u64,
    #[serde(default)]
    serial: u64,
}

/// Up to which tree those of each boot are on the disk.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Settled(BTreeMap<u64, u64>);

const SETTLED: &str = "links/settled";

impl Settled {
    /// Up to which tree those of `boot` are on the disk; 0 for none.
    pub(super) fn up_to(&self, boot: u64) -> u64 {
        self.0.get(&boot).copied().unwrap_or(0)
    }
}

/// Of no boot: never sound.
const NO_BOOT: u64 = 1;

#[derive(Clone)]
struct Key {
    /// `<namespace>/<name>`
    object: String,
    hex: String,
}

impl Key {
    fn new(namespace: &str, name: &str, hex: &str) -> Result<Self, StoreError> {
        if hex.is_empty() || hex.len() > 128 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(StoreError::name("tree", hex));
        }
        Ok(Self { object: object(namespace, name)?, hex: hex.to_string() })
    }

    fn directory(&self) -> String {
        format!("source/{}", self.object)
    }

    fn path(&self) -> String {
        format!("source/{}/{}", self.object, self.hex)
    }

    fn id(&self) -> String {
        format!("{}/{}", self.object, self.hex)
    }
}

fn record_path(id: &str) -> String {
    format!("links/trees/{id}")
}

fn component(what: &'static str, name: &str) -> Result<(), StoreError> {
    let bad = |c: char| c == '/' || c == '\\' || c.is_control();
    if name.is_empty() || name.len() > 253 || name.starts_with('.') || name.contains(bad) {
        return Err(StoreError::name(what, name));
    }
    Ok(())
}

fn object(namespace: &str, name: &str) -> Result<String, StoreError> {
    component("namespace", namespace)?;
    component("object", name)?;
    Ok(format!("{namespace}/{name}"))
}

impl Store {
    /// Begins the tree of an object's version; `hex` is the hex of its artifact's digest.
    pub fn begin_tree(&self, namespace: &str, name: &str, hex: &str) -> Result<TreeWriter, StoreError> {
        self.writable()?;
        let key = Key::new(namespace, name, hex)?;
        let layout = &self.0.layout;
        let temporary = format!("{}/.tmp-{:016x}", key.directory(), fastrand::u64(..));
        {
            // Under this lock no other thread takes the object's emptied directory away.
            let mut active = lock(&self.0.trees);
            let contents = format!("{temporary}/contents");
            layout.make_dirs(&contents).map_err(|e| layout.error("create", &contents, e))?;
            active.insert(temporary.clone());
        }
        self.remove_leftovers(&key.directory())?;
        let contents = match layout.open_dir(&format!("{temporary}/contents")) {
            Ok(dir) => Dir::from_std_file(dir),
            Err(error) => {
                lock(&self.0.trees).remove(&temporary);
                return Err(layout.error("open", &temporary, error));
            }
        };
        Ok(TreeWriter { store: self.clone(), key, temporary, contents, bytes: 0, done: false })
    }

    /// Takes a version's tree away; whether there was one.
    pub fn retire_tree(&self, namespace: &str, name: &str, hex: &str) -> Result<bool, StoreError> {
        self.writable()?;
        let key = Key::new(namespace, name, hex)?;
        let layout = &self.0.layout;
        let gone = format!("{}/.tmp-{:016x}", key.directory(), fastrand::u64(..));
        let there = self.change_logical(|| {
            let bytes = self.tree_record(&key.id())?.map_or(0, |r| r.bytes);
            match layout.rename(&key.path(), &gone) {
                Ok(()) => {}
                Err(Errno::NOENT) => return Ok((false, 0, 0)),
                Err(error) => return Err(layout.error("remove", &key.path(), error)),
            }
            layout.remove_file(&record_path(&key.id()))?;
            Ok((true, 0, bytes))
        })?;
        layout.remove_all(&gone)?;
        let _alone = lock(&self.0.trees);
        // Only where empty: these fail otherwise, which is what is wanted.
        for prefix in ["source/", "links/trees/"] {
            let mut path = format!("{prefix}{}", key.object);
            while path.len() > prefix.len() {
                if rustix::fs::unlinkat(layout.dir(), &path, rustix::fs::AtFlags::REMOVEDIR).is_err() {
                    break;
                }
                path.truncate(path.rfind('/').unwrap_or(0));
            }
        }
        Ok(there)
    }

    /// The versions of an object whose trees are published, sorted.
    pub fn trees(&self, namespace: &str, name: &str) -> Result<Vec<String>, StoreError> {
        let mut names = self.0.layout.names(&format!("source/{}", object(namespace, name)?))?;
        names.retain(|n| Key::new(namespace, name, n).is_ok());
        names.sort();
        Ok(names)
    }

    /// The namespaces and names that trees are published under, of whatever objects.
    pub fn tree_folders(&self) -> Result<Vec<(String, String)>, StoreError> {
        let layout = &self.0.layout;
        let mut folders = Vec::new();
        for namespace in layout.names("source")? {
            let names = layout.names(&format!("source/{namespace}"))?;
            folders.extend(names.into_iter().map(|name| (namespace.clone(), name)));
        }
        folders.retain(|(namespace, name)| object(namespace, name).is_ok());
        Ok(folders)
    }

    /// Where a version's tree is, or will be.
    pub fn tree_path(&self, namespace: &str, name: &str, hex: &str) -> Result<PathBuf, StoreError> {
        Ok(self.0.layout.absolute(&Key::new(namespace, name, hex)?.path()))
    }

    /// Whether a version's tree is published and was not written shortly before a power loss. One that is not sound
    /// is to be built and published again.
    pub fn tree_is_sound(&self, namespace: &str, name: &str, hex: &str) -> Result<bool, StoreError> {
        self.is_sound(&Key::new(namespace, name, hex)?)
    }

    fn is_sound(&self, key: &Key) -> Result<bool, StoreError> {
        let record = self.tree_record(&key.id())?;
        let settled = |r: &Record| r.serial <= lock(&self.0.settled).up_to(r.boot);
        let good = record.is_some_and(|r| r.boot == self.0.boot || settled(&r));
        Ok(good && self.0.layout.stat(&key.path())?.is_some())
    }

    /// What is known to be on the disk; nothing where that cannot be read, which costs publishing anew.
    pub(super) fn read_settled(layout: &Layout) -> Settled {
        let bytes = layout.read(SETTLED).ok().flatten();
        bytes.and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default()
    }

    /// The last tree whose name has appeared; whatever is synced after this is asked, is at least up to it.
    pub(super) fn last_tree(&self) -> u64 {
        self.0.tree_serial.load(Ordering::SeqCst)
    }

    /// All trees of this boot up to `serial` are on the disk.
    pub(super) fn settle_trees(&self, serial: u64) {
        let mut settled = lock(&self.0.settled);
        settled.0.insert(self.0.boot, serial);
        let written = serde_json::to_vec(&*settled).map_err(io::Error::from);
        let written = written.map_err(|e| self.0.layout.error("write", SETTLED, e));
        if let Err(error) = written.and_then(|text| self.0.layout.write(SETTLED, &text, false)) {
            tracing::debug!(%error, "the trees' state could not be noted: after a power loss they are built again");
        }
    }

    fn tree_record(&self, id: &str) -> Result<Option<Record>, StoreError> {
        let bytes = self.0.layout.read(&record_path(id))?;
        Ok(bytes.and_then(|b| serde_json::from_slice(&b).ok()))
    }

    fn write_record(&self, id: &str, record: &Record) -> Result<(), StoreError> {
        let path = record_path(id);
        let text = serde_json::to_vec(record).map_err(|e| self.0.layout.error("write", &path, io::Error::from(e)))?;
        self.0.layout.write(&path, &text, false)
    }

    fn remark(&self, id: &str, boot: u64) {
        if let Ok(Some(record)) = self.tree_record(id)
            && let Err(error) = self.write_record(id, &Record { boot, ..record })
        {
            tracing::debug!(tree = id, %error, "a tree's state could not be noted: after a power loss it is built again");
        }
    }

    /// The tree may not be on the disk, and nothing will bring it there.
    pub(super) fn distrust_tree(&self, id: &str) {
        let _logical = lock(&self.0.logical);
        self.remark(id, NO_BOOT);
    }

    /// The bytes that all published trees stand for.
    pub(super) fn tree_bytes(&self) -> Result<u64, StoreError> {
        let layout = &self.0.layout;
        let mut bytes = 0;
        for namespace in layout.names("links/trees")? {
            for name in layout.names(&format!("links/trees/{namespace}"))? {
                for hex in layout.names(&format!("links/trees/{namespace}/{name}"))? {
                    let id = format!("{namespace}/{name}/{hex}");
                    if layout.stat(&format!("source/{id}"))?.is_some() {
                        bytes += self.tree_record(&id)?.map_or(0, |r| r.bytes);
                    }
                }
            }
        }
        Ok(bytes)
    }

    /// Removes what crashed writers left in an object's directory.
    fn remove_leftovers(&self, directory: &str) -> Result<u64, StoreError> {
        let mut removed = 0;
        for name in self.0.layout.names(directory)? {
            let path = format!("{directory}/{name}");
            if name.starts_with(".tmp-") && !lock(&self.0.trees).contains(&path) {
                self.0.layout.remove_all(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// The same in every object's directory; how many.
    pub(super) fn remove_all_leftovers(&self) -> Result<u64, StoreError> {
        let mut removed = 0;
        for namespace in self.0.layout.names("source")? {
            for name in self.0.layout.names(&format!("source/{namespace}"))? {
                removed += self.remove_leftovers(&format!("source/{namespace}/{name}"))?;
            }
        }
        Ok(removed)
    }
}

impl TreeWriter {
    /// The directory to fill: files with [`Store::link_file`], directories 0700.
    pub fn contents(&self) -> &Dir {
        &self.contents
    }

    /// Writes `manifest.json`, the exact bytes of the manifest used, read-only.
    pub fn write_manifest(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let (layout, path) = (&self.store.0.layout, format!("{}/manifest.json", self.temporary));
        layout.write(&path, bytes, false)?;
        rustix::fs::chmodat(layout.dir(), &path, Mode::RUSR, rustix::fs::AtFlags::empty())
            .map_err(|e| layout.error("make read-only", &path, e))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Says that the tree stands for so many bytes more: its files, and its artifact.
    pub fn add_bytes(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Lets the tree appear. Where this version's tree is published already, and sound, that one
    /// stays, with this manifest.
    pub fn publish(mut self) -> Result<PathBuf, StoreError> {
        let store = self.store.clone();
        let layout = &store.0.layout;
        let path = self.key.path();
        let old = format!("{}/.tmp-{:016x}", self.key.directory(), fastrand::u64(..));
        let published = store.change_logical(|| {
            if store.is_sound(&self.key)? {
                // Another manifest may lead to the same artifact: the newest is the one used.
                let (new, there) = (format!("{}/manifest.json", self.temporary), format!("{path}/manifest.json"));
                match layout.rename(&new, &there) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(layout.error("replace", &there, error)),
                }
                return Ok((false, 0, 0));
            }
            let before = match store.tree_record(&self.key.id())? {
                Some(record) if layout.stat(&path)?.is_some() => record.bytes,
                _ => 0,
            };
            match layout.rename(&path, &old) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(layout.error("replace", &path, error)),
            }
            layout.rename(&self.temporary, &path).map_err(|e| layout.error("publish", &path, e))?;
            // After the rename: a sync that is known to cover this number covers the tree.
            let serial = store.0.tree_serial.fetch_add(1, Ordering::SeqCst) + 1;
            store.write_record(&self.key.id(), &Record { bytes: self.bytes, boot: store.0.boot, serial })?;
            Ok((true, self.bytes, before))
        })?;
        if published {
            self.done = true;
            lock(&store.0.trees).remove(&self.temporary);
            lock(&store.0.pending).trees.push(self.key.id());
            layout.remove_all(&old)?;
        }
        Ok(layout.absolute(&path))
    }
}

impl Drop for TreeWriter {
    fn drop(&mut self) {
        if !self.done {
            if let Err(error) = self.store.0.layout.remove_all(&self.temporary) {
                tracing::warn!(%error, "an unfinished tree stays until its object's next one or a collection");
            }
            lock(&self.store.0.trees).remove(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::fs::PermissionsExt as _, path::Path};

    fn write(store: &Store, hex: &str, content: &[u8]) -> TreeWriter {
        let mut tree = store.begin_tree("default", "app", hex).unwrap();
        tree.write_manifest(b"{}").unwrap();
        tree.contents().create_dir("d").unwrap();
        let dir = tree.contents().open_dir("d").unwrap();
        store.link_file(content, false, &dir, Path::new("f")).unwrap();
        tree.add_bytes(content.len() as u64);
        tree
    }

    #[test]
    fn a_tree_appears_whole_and_goes_whole() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        assert_eq!(store.usage().unwrap().logical, 0);
        let tree = write(&store, "ab", b"content");
        assert_eq!(store.trees("default", "app").unwrap(), Vec::<String>::new());
        let path = tree.publish().unwrap();
        assert_eq!(path, root.path().join("source/default/app/ab"));
        assert_eq!(std::fs::read(path.join("contents/d/f")).unwrap(), b"content");
        assert_eq!(std::fs::read(path.join("manifest.json")).unwrap(), b"{}");
        let mode = std::fs::metadata(path.join("manifest.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o222, 0, "{mode:o}");
        assert!(store.tree_is_sound("default", "app", "ab").unwrap());
        write(&store, "cd", b"content").publish().unwrap();
        drop(write(&store, "ef", b"other"));
        assert_eq!(store.trees("default", "app").unwrap(), ["ab", "cd"]);
        assert_eq!(std::fs::read_dir(root.path().join("source/default/app")).unwrap().count(), 2);
        assert_eq!(store.usage().unwrap().logical, 18);
        assert!(store.retire_tree("default", "app", "ab").unwrap());
        assert!(!store.retire_tree("default", "app", "ab").unwrap());
        assert_eq!(store.usage().unwrap().logical, 9);
        assert!(store.retire_tree("default", "app", "cd").unwrap());
        assert!(!root.path().join("source/default").exists());
        assert_eq!(store.usage().unwrap().logical, 0);
    }

    #[test]
    fn a_published_tree_stays_unless_a_power_loss_may_have_torn_it() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open_in_boot(root.path(), 11).unwrap();
        write(&store, "ab", b"one").publish().unwrap();
        write(&store, "ab", b"two").publish().unwrap();
        let file = root.path().join("source/default/app/ab/contents/d/f");
        assert_eq!(std::fs::read(&file).unwrap(), b"one");
        drop(store);

        let store = Store::open_in_boot(root.path(), 13).unwrap();
        assert!(!store.tree_is_sound("default", "app", "ab").unwrap());
        write(&store, "ab", b"three").publish().unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"three");
        assert_eq!(store.usage().unwrap().logical, 7);
        store.sync_pending().unwrap();
        drop(store);

        let store = Store::open_in_boot(root.path(), 15).unwrap();
        assert!(store.tree_is_sound("default", "app", "ab").unwrap());
        assert_eq!(store.usage().unwrap().logical, 7);
    }

    #[test]
    fn what_a_crashed_writer_left_goes_with_the_next_tree_or_a_collection() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let leftover = root.path().join("source/default/app/.tmp-0/contents/d");
        for next in [true, false] {
            std::fs::create_dir_all(&leftover).unwrap();
            std::fs::write(leftover.join("f"), b"x").unwrap();
            let other = store.begin_tree("default", "other", "ab").unwrap();
            if next {
                drop(store.begin_tree("default", "app", "ab").unwrap());
            } else {
                store.collect(Vec::new, std::time::Duration::MAX).unwrap();
            }
            assert!(!leftover.exists(), "{next}");
            other.publish().unwrap();
            store.retire_tree("default", "other", "ab").unwrap();
        }
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        for (namespace, name, hex) in [
            ("..", "a", "ab"),
            ("a", "..", "ab"),
            ("a/b", "c", "ab"),
            ("", "a", "ab"),
            (".a", "b", "ab"),
            ("a", "b\0", "ab"),
            ("a", "b", ""),
            ("a", "b", "AB"),
            ("a", "b", "../ab"),
            ("a", "b", ".tmp-0"),
        ] {
            assert!(store.begin_tree(namespace, name, hex).is_err(), "{namespace} {name} {hex}");
            assert!(store.retire_tree(namespace, name, hex).is_err(), "{namespace} {name} {hex}");
        }
    }
}
