//! The data directory: one handle on its root, paths relative to it, and the few ways files come and go there.
//!
//! Every path below is made of constants, hex digits and checked names; lookups neither leave the root nor follow a
//! symbolic link (`openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, where the kernel or a seccomp filter has it
//! not: `O_NOFOLLOW`).

use std::{
    collections::HashSet,
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use super::StoreError;
use crate::digest::{Algorithm, Digest};

/// Locks; a panic elsewhere leaves data that is valid after every single statement here.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What tells that a file is still the one that was hashed: nobody can set ctime back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub size: u64,
    pub ino: u64,
    /// In nanoseconds since 1970.
    pub ctime: i64,
}

impl Identity {
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self::from_stat(&rustix::fs::fstat(file)?))
    }

    // The fields' types differ between architectures.
    #[allow(clippy::unnecessary_cast, clippy::cast_lossless)]
    pub fn from_stat(stat: &Stat) -> Self {
        Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            ino: stat.st_ino as u64,
            ctime: (stat.st_ctime as i64).wrapping_mul(1_000_000_000).wrapping_add(stat.st_ctime_nsec as i64),
        }
    }
}

/// Seconds since 1970 at which the file was last changed in content (`mtime`) and at all (`ctime`).
#[allow(clippy::unnecessary_cast)]
pub(super) fn times(stat: &Stat) -> (u64, u64) {
    let seconds = |s: i64| u64::try_from(s).unwrap_or(0);
    (seconds(stat.st_mtime as i64), seconds(stat.st_ctime as i64))
}

pub(super) fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

pub(super) fn blob_directory(digest: &Digest) -> String {
    format!("blobs/{}/{:02x}", digest.algorithm().name(), digest.bytes()[0])
}

pub(super) fn blob_path(digest: &Digest) -> String {
    format!("{}/{}", blob_directory(digest), digest.hex())
}

/// `<algorithm>-<hex>`: a digest as a file's name.
pub(super) fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}

pub(super) fn from_file_name(name: &str) -> Option<Digest> {
    name.replacen('-', ":", 1).parse().ok()
}

/// The blob that a file under `blobs/<algorithm>/<first>/` is, by its name.
pub(super) fn blob_named(algorithm: Algorithm, first: u8, name: &str) -> Option<Digest> {
    let digest: Digest = format!("{}:{name}", algorithm.name()).parse().ok()?;
    (digest.bytes()[0] == first).then_some(digest)
}

/// The data directory.
pub(super) struct Layout {
    root: PathBuf,
    dir: OwnedFd,
    openat2: AtomicBool,
    pub tmpfile: AtomicBool,
    /// Directories whose entry in their parent is known to be on the disk.
    anchored: Mutex<HashSet<String>>,
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = READ.union(OFlags::DIRECTORY);
const PRIVATE: Mode = Mode::RWXU;
const WRITABLE: Mode = Mode::RUSR.union(Mode::WUSR);

impl Layout {
    /// Opens `root`, making it (0700) where `create` says so.
    pub fn open(root: &Path, create: bool) -> Result<Self, StoreError> {
        use std::os::unix::fs::DirBuilderExt as _;
        if create {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(root)
                .map_err(|e| StoreError::io("create", root, e))?;
        }
        let dir =
            rustix::fs::openat(CWD, root, DIRECTORY, Mode::empty()).map_err(|e| StoreError::io("open", root, e))?;
        let root = std::path::absolute(root).map_err(|e| StoreError::io("open", root, e))?;
        let proc = Path::new("/proc/self/fd").is_dir();
        Ok(Self {
            root,
            dir,
            openat2: AtomicBool::new(true),
            tmpfile: AtomicBool::new(proc),
            anchored: Mutex::default(),
        })
    }

    /// Keeps others out of the data directory, where that can be done.
    pub fn make_private(&self) {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        if let Ok(meta) = std::fs::metadata(&self.root)
            && meta.permissions().mode() & 0o077 != 0
            && let Err(error) = rustix::fs::fchmod(&self.dir, PRIVATE)
            // Somebody else's that is shared with this process's group alone is so on purpose.
            && (meta.gid() != rustix::process::getegid().as_raw() || meta.permissions().mode() & 0o007 != 0)
        {
            tracing::warn!(path = %self.root.display(), %error, "the data directory is open to others");
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    pub fn absolute(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub fn error(&self, action: &'static str, path: &str, source: impl Into<io::Error>) -> StoreError {
        StoreError::io(action, self.absolute(path), source)
    }

    /// Opens below the root, through no symbolic link.
    pub fn open_at(&self, path: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<File> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if self.openat2.load(Ordering::Relaxed) {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            loop {
                match rustix::fs::openat2(&self.dir, path, flags, mode, resolve) {
                    Ok(fd) => return Ok(fd.into()),
                    Err(Errno::NOSYS | Errno::PERM) => break self.openat2.store(false, Ordering::Relaxed),
                    // A rename elsewhere raced with the lookup.
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(rustix::fs::openat(&self.dir, path, flags, mode)?.into())
    }

    /// Opens a file for reading; `None` where there is none.
    pub fn open_file(&self, path: &str) -> Result<Option<File>, StoreError> {
        // NONBLOCK: a fifo under this name must not hang the reader.
        match self.open_at(path, READ | OFlags::NONBLOCK, Mode::empty()) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.error("open", path, error)),
        }
    }

    pub fn open_dir(&self, path: &str) -> rustix::io::Result<File> {
        self.open_at(path, DIRECTORY, Mode::empty())
    }

    /// Reads a small file of our own whole; `None` where there is none.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(file) = self.open_file(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, 16 << 20), &mut bytes)
            .map_err(|e| self.error("read", path, e))?;
        Ok(Some(bytes))
    }

    pub fn stat(&self, path: &str) -> Result<Option<Stat>, StoreError> {
        match rustix::fs::statat(&self.dir, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(self.error("look at", path, error)),
        }
    }

    /// The names in a directory, without `.` and `..`; none where there is no directory.
    pub fn names(&self, path: &str) -> Result<Vec<String>, StoreError> {
        let error = |e| self.error("list", path, e);
        let dir = match self.open_dir(path) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            Err(e) => return Err(error(e)),
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir).map_err(error)? {
            let entry = entry.map_err(error)?;
            let name = entry.file_name().to_string_lossy();
            if name != "." && name != ".." {
                names.push(name.into_owned());
            }
        }
        Ok(names)
    }

    /// Makes a directory and those above it.
    pub fn make_dirs(&self, path: &str) -> rustix::io::Result<()> {
        match rustix::fs::mkdirat(&self.dir, path, PRIVATE) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(Errno::NOENT) => {
                let Some((parent, _)) = path.rsplit_once('/') else { return Err(Errno::NOENT) };
                self.make_dirs(parent)?;
                match rustix::fs::mkdirat(&self.dir, path, PRIVATE) {
                    Ok(()) | Err(Errno::EXIST) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a file; whether there was one.
    pub fn remove_file(&self, path: &str) -> Result<bool, StoreError> {
        match rustix::fs::unlinkat(&self.dir, path, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(self.error("remove", path, error)),
        }
    }

    /// Removes whatever has this name, with all below it.
    pub fn remove_all(&self, path: &str) -> Result<(), StoreError> {
        match rustix::fs::unlinkat(&self.dir, path, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(self.error("remove", path, error)),
        }
        if let Ok(dir) = self.open_dir(path) {
            // A tree may hold directories that forbid their own owner to change them.
            let _ = rustix::fs::fchmod(&dir, PRIVATE);
        }
        for name in self.names(path)? {
            self.remove_all(&format!("{path}/{name}"))?;
        }
        match rustix::fs::unlinkat(&self.dir, path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.error("remove", path, error)),
        }
    }

    pub fn rename(&self, from: &str, to: &str) -> rustix::io::Result<()> {
        rustix::fs::renameat(&self.dir, from, &self.dir, to)
    }

    /// Makes the names in a directory, and the directory's own, survive a power loss.
    pub fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.open_dir(path).and_then(rustix::fs::fsync)?;
        let mut below = path;
        loop {
            let parent = below.rsplit_once('/').map_or(".", |(parent, _)| parent);
            if below == "." || lock(&self.anchored).contains(below) {
                return Ok(());
            }
            self.open_dir(parent).and_then(rustix::fs::fsync)?;
            lock(&self.anchored).insert(below.to_string());
            below = parent;
        }
    }

    /// A file without a name yet. `spool/` is on the same file system as everything else below the root.
    pub fn temporary(&self) -> Result<Temporary, StoreError> {
        if self.tmpfile.load(Ordering::Relaxed) {
            match self.open_at("spool", OFlags::RDWR | OFlags::TMPFILE, WRITABLE) {
                Ok(file) => return Ok(Temporary { file, name: None, dir: None }),
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => self.tmpfile.store(false, Ordering::Relaxed),
                Err(error) => return Err(self.error("write in", "spool", error)),
            }
        }
        let name = format!("spool/{:016x}", fastrand::u64(..));
        let error = |e| self.error("create", &name, e);
        let file = self.open_at(&name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, WRITABLE).map_err(error)?;
        let dir = self.dir.try_clone().map_err(|e| self.error("open", "spool", e))?;
        Ok(Temporary { file, name: Some(name), dir: Some(dir) })
    }

    /// Gives a temporary file its name; `false` where that name is taken.
    pub fn link(&self, temporary: &mut Temporary, path: &str) -> rustix::io::Result<bool> {
        let once = |temporary: &Temporary| match &temporary.name {
            None => {
                let proc = format!("/proc/self/fd/{}", temporary.file.as_raw_fd());
                rustix::fs::linkat(CWD, proc, &self.dir, path, AtFlags::SYMLINK_FOLLOW)
            }
            Some(name) => rustix::fs::linkat(&self.dir, name, &self.dir, path, AtFlags::empty()),
        };
        let linked = match once(temporary) {
            Err(Errno::NOENT) => {
                self.make_dirs(path.rsplit_once('/').map_or(".", |(parent, _)| parent))?;
                once(temporary)
            }
            other => other,
        };
        match linked {
            Ok(()) => {
                temporary.forget_name();
                Ok(true)
            }
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts `bytes` under `path`, whole or not at all; `durable`: before this returns.
    pub fn write(&self, path: &str, bytes: &[u8], durable: bool) -> Result<(), StoreError> {
        let name = format!("spool/{:016x}", fastrand::u64(..));
        let create = || -> io::Result<()> {
            let file = self.open_at(&name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, WRITABLE)?;
            file.write_all_at(bytes, 0)?;
            if durable {
                rustix::fs::fsync(&file)?;
            }
            let parent = path.rsplit_once('/').map_or(".", |(parent, _)| parent);
            match self.rename(&name, path) {
                Err(Errno::NOENT) => {
                    self.make_dirs(parent)?;
                    self.rename(&name, path)?;
                }
                other => other?,
            }
            if durable { self.sync_dir(parent) } else { Ok(()) }
        };
        create().map_err(|e| {
            let _ = self.remove_file(&name);
            self.error("write", path, e)
        })
    }
}

/// A file that nobody else can see yet; dropping it leaves nothing.
pub(super) struct Temporary {
    pub file: File,
    /// Where the file system knows no unnamed files: its name under `spool/`.
    name: Option<String>,
    dir: Option<OwnedFd>,
}

impl Temporary {
    /// Removes the name under `spool/`.
    pub fn forget_name(&mut self) {
        if let (Some(name), Some(dir)) = (self.name.take(), self.dir.take()) {
            let _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.forget_name();
    }
}
