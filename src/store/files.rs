//! Files shared between published trees, named by the blake3 of their bytes.
//!
//! `files/ab/<blake3>` (0400) and `files/ab/<blake3>-x` (0500). A tree's file is a reflink of the pool's where the
//! file system can, else a hard link, else, when the inode has all the links it can have, a copy. The pool's file is
//! compared with the content byte by byte each time it is used, so a damaged one never reaches another tree: it is
//! put aside and written anew. A crash leaves complete files that no tree links to; the collection takes those.
//! Any number of threads may call this.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Component, Path},
    sync::atomic::Ordering,
};

use cap_std::fs::Dir;
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};

use super::{
    Store, StoreError,
    layout::{Identity, is_file},
};

/// One file to be made from the pool.
#[derive(Clone, Copy)]
pub struct PoolFile<'a> {
    /// Its bytes.
    pub content: &'a [u8],
    /// Whether it may be executed.
    pub executable: bool,
    /// The directory it appears in.
    pub dir: &'a Dir,
    /// Its name there, one component.
    pub name: &'a Path,
}

/// What came of trying to make a tree's file from the pool's.
enum Shared {
    Done,
    /// The pool's name is gone meanwhile.
    Gone,
}

fn mode(executable: bool) -> Mode {
    if executable { Mode::RUSR | Mode::XUSR } else { Mode::RUSR }
}

/// Whether the file has exactly these bytes; a file that cannot be read has not.
fn same(file: &File, content: &[u8]) -> bool {
    let mut buffer = [0; 64 * 1024];
    for (i, chunk) in content.chunks(buffer.len()).enumerate() {
        let buffer = &mut buffer[..chunk.len()];
        if file.read_exact_at(buffer, (i * 64 * 1024) as u64).is_err() || buffer != chunk {
            return false;
        }
    }
    true
}

impl Store {
    /// Makes `name` in the directory `dir` a read-only file with `content`, shared with every other tree that has
    /// the same content and mode (reflink, else hard link, else copy). `name` must be one component and not be taken.
    pub fn link_file(&self, content: &[u8], executable: bool, dir: &Dir, name: &Path) -> Result<(), StoreError> {
        self.writable()?;
        let mut components = name.components();
        if !matches!((components.next(), components.next()), (Some(Component::Normal(n)), None) if n == name.as_os_str())
        {
            return Err(StoreError::name("file", &name.to_string_lossy()));
        }
        let hash = blake3::hash(content);
        let hex = hash.to_hex();
        let file_name = if executable { format!("{hex}-x") } else { hex.to_string() };
        let path = format!("files/{}/{file_name}", &hex[..2]);
        let first = hash.as_bytes()[0];
        for _ in 0..8 {
            let pool = match self.0.layout.open_file(&path)? {
                Some(file) => {
                    let stat = rustix::fs::fstat(&file).map_err(|e| self.0.layout.error("look at", &path, e))?;
                    let id = Identity::from_stat(&stat);
                    if !is_file(&stat) || id.size != content.len() as u64 || !same(&file, content) {
                        let mut shard = self.0.shards.of_file(first);
                        if !self.quarantine(&path, &file_name, id.ino, "a shared file with other bytes")
                            && self.0.layout.stat(&path)?.is_some_and(|s| Identity::from_stat(&s).ino == id.ino)
                        {
                            break;
                        }
                        shard.count = None;
                        continue;
                    }
                    if stat.st_mode & 0o7777 != mode(executable).bits() {
                        let _ = rustix::fs::fchmod(&file, mode(executable));
                    }
                    file
                }
                None => match self.add_to_pool(content, executable, &path, first)? {
                    Some(file) => file,
                    None => continue,
                },
            };
            match self.share(&pool, &path, content, executable, dir, name) {
                Ok(Shared::Done) => return Ok(()),
                Ok(Shared::Gone) => {}
                Err(error) => return Err(StoreError::io("create", name, error)),
            }
        }
        Err(self.0.layout.error("share", &path, io::Error::other("the file keeps changing")))
    }

    /// [`Store::link_file`] for many files at once, in parallel: run it behind `blocking::cpu`. Ends at the first
    /// failure.
    pub fn link_files(&self, files: &[PoolFile<'_>]) -> Result<(), StoreError> {
        use rayon::prelude::*;
        files.par_iter().try_for_each(|f| self.link_file(f.content, f.executable, f.dir, f.name))
    }

    /// Writes a new file of the pool; `None` where somebody else has just done so.
    fn add_to_pool(&self, content: &[u8], executable: bool, path: &str, first: u8) -> Result<Option<File>, StoreError> {
        let layout = &self.0.layout;
        let mut file = self.with_room(0, || layout.temporary())?;
        self.with_room(content.len() as u64, || {
            file.file.write_all_at(content, 0).map_err(|e| layout.error("write", path, e))
        })?;
        rustix::fs::fchmod(&file.file, mode(executable)).map_err(|e| layout.error("protect", path, e))?;
        let mut shard = self.0.shards.of_file(first);
        if !layout.link(&mut file, path).map_err(|e| layout.error("link", path, e))? {
            return Ok(None);
        }
        shard.added(content.len() as u64);
        drop(shard);
        self.0.pending_bytes.fetch_add(content.len() as u64, Ordering::Relaxed);
        file.file.try_clone().map(Some).map_err(|e| layout.error("open", path, e))
    }

    fn share(
        &self,
        pool: &File,
        path: &str,
        content: &[u8],
        executable: bool,
        dir: &Dir,
        name: &Path,
    ) -> rustix::io::Result<Shared> {
        if !content.is_empty()
            && self.0.reflink.load(Ordering::Relaxed) != 2
            && create(dir, name, executable, |file| rustix::fs::ioctl_ficlone(file, pool), &self.0.reflink)?
        {
            return Ok(Shared::Done);
        }
        match rustix::fs::linkat(self.0.layout.dir(), path, dir, name, AtFlags::empty()) {
            Ok(()) => Ok(Shared::Done),
            // The tree's own directory may be what is gone.
            Err(Errno::NOENT) if dir.exists(".") => Ok(Shared::Gone),
            Err(Errno::MLINK | Errno::XDEV) => {
                copy(dir, name, executable, content)?;
                Ok(Shared::Done)
            }
            Err(error) => Err(error),
        }
    }
}

fn open_new(dir: &Dir, name: &Path) -> rustix::io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// A reflink; `false`, and nothing left, where the file system cannot.
fn create(
    dir: &Dir,
    name: &Path,
    executable: bool,
    clone: impl FnOnce(&File) -> rustix::io::Result<()>,
    known: &std::sync::atomic::AtomicU8,
) -> rustix::io::Result<bool> {
    let file = open_new(dir, name)?;
    match clone(&file) {
        Ok(()) => {
            known.store(1, Ordering::Relaxed);
            rustix::fs::fchmod(&file, mode(executable))?;
            Ok(true)
        }
        Err(error) => {
            rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
            // Anything else may be a matter of this one file.
            if matches!(error, Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS | Errno::INVAL) {
                known.store(2, Ordering::Relaxed);
            }
            Ok(false)
        }
    }
}

fn copy(dir: &Dir, name: &Path, executable: bool, content: &[u8]) -> rustix::io::Result<()> {
    let file = open_new(dir, name)?;
    let written = file.write_all_at(content, 0).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
    if let Err(error) = written.and_then(|()| rustix::fs::fchmod(&file, mode(executable))) {
        let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
        return Err(error);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Count;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    fn fixture() -> (tempfile::TempDir, Store, Dir) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        std::fs::create_dir(root.path().join("tree")).unwrap();
        let dir = Dir::open_ambient_dir(root.path().join("tree"), cap_std::ambient_authority()).unwrap();
        (root, store, dir)
    }

    fn pool(root: &Path, content: &[u8], suffix: &str) -> std::path::PathBuf {
        let hex = blake3::hash(content).to_hex();
        root.join(format!("files/{}/{hex}{suffix}", &hex[..2]))
    }

    #[test]
    fn equal_files_of_equal_mode_are_one_inode_and_counted_once() {
        let (root, store, dir) = fixture();
        store.usage().unwrap();
        for (name, executable) in [("a", false), ("b", false), ("c", true), ("d", true)] {
            store.link_file(b"content", executable, &dir, Path::new(name)).unwrap();
        }
        store.link_file(b"", false, &dir, Path::new("empty")).unwrap();
        let meta = |name: &str| std::fs::metadata(root.path().join("tree").join(name)).unwrap();
        assert_eq!(meta("a").permissions().mode() & 0o7777, 0o400);
        assert_eq!(meta("c").permissions().mode() & 0o7777, 0o500);
        if store.0.reflink.load(Ordering::Relaxed) == 2 {
            assert_eq!(meta("a").ino(), meta("b").ino());
            assert_eq!(meta("c").ino(), meta("d").ino());
        }
        assert_ne!(meta("a").ino(), meta("c").ino());
        assert_eq!(std::fs::read(root.path().join("tree/d")).unwrap(), b"content");
        assert_eq!(store.usage().unwrap().files, Count { count: 3, bytes: 14 });
    }

    #[test]
    fn a_damaged_pool_file_is_put_aside_and_written_anew() {
        for damage in [&b"cOntent"[..], b"", b"content+", b"c"] {
            let (root, store, dir) = fixture();
            store.link_file(b"content", false, &dir, Path::new("a")).unwrap();
            store.usage().unwrap();
            let path = pool(root.path(), b"content", "");
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, damage).unwrap();
            store.link_file(b"content", false, &dir, Path::new("b")).unwrap();
            assert_eq!(std::fs::read(root.path().join("tree/b")).unwrap(), b"content");
            assert_eq!(std::fs::read(&path).unwrap(), b"content");
            assert_eq!(store.health().quarantined, 1);
            assert_eq!(store.usage().unwrap().files, Count { count: 1, bytes: 7 });
        }
    }

    #[test]
    fn only_a_single_new_name_is_taken() {
        let (_root, store, dir) = fixture();
        for name in ["", ".", "..", "a/b", "/a", "a/", "./a"] {
            let error = store.link_file(b"x", false, &dir, Path::new(name)).unwrap_err();
            assert!(matches!(error, StoreError::Name { .. }), "{name}: {error}");
        }
        store.link_file(b"x", false, &dir, Path::new("a")).unwrap();
        assert!(store.link_file(b"y", false, &dir, Path::new("a")).is_err());
        assert_eq!(dir.read("a").unwrap(), b"x");
    }

    #[test]
    fn a_copy_has_the_mode_of_a_link() {
        let (root, _store, dir) = fixture();
        copy(&dir, Path::new("a"), true, b"content").unwrap();
        let path = root.path().join("tree/a");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o500);
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
    }

    #[test]
    fn many_at_once_give_the_same_as_one_by_one() {
        let (root, store, dir) = fixture();
        let contents: Vec<Vec<u8>> = (0..100u32).map(|n| vec![(n % 7) as u8; 1000]).collect();
        let names: Vec<String> = (0..100).map(|n| format!("f{n}")).collect();
        let files: Vec<PoolFile<'_>> = contents
            .iter()
            .zip(&names)
            .map(|(content, name)| PoolFile { content, executable: false, dir: &dir, name: Path::new(name) })
            .collect();
        store.link_files(&files).unwrap();
        for (content, name) in contents.iter().zip(&names) {
            assert_eq!(&std::fs::read(root.path().join("tree").join(name)).unwrap(), content);
        }
        assert_eq!(store.usage().unwrap().files, Count { count: 7, bytes: 7000 });
    }
}
