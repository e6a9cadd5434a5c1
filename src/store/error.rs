//! Why the store could not do it.

use std::{io, path::PathBuf};

use rustix::io::Errno;

use crate::{class::Class, digest::Digest};

/// Why the store could not do it. The sources hold what the system said.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No space, no inodes or no quota left. Nothing was kept of what was being written.
    #[error("the disk is full: cannot {action} {}: free space there, or lower the store's byte budget", .path.display())]
    Full {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It may not be kept: what is kept already fills what may be taken, and none of it may go.
    #[error("no room for {size} bytes below {}: {setting} is {limit} bytes, and nothing that is kept may go now; {}", .root.display(), advice(.setting))]
    NoRoom {
        /// The setting that stands in the way.
        setting: &'static str,
        /// Its value in bytes.
        limit: u64,
        /// What was to be kept, in bytes.
        size: u64,
        /// The data directory.
        root: PathBuf,
    },
    /// The file system refuses every write.
    #[error("the file system is read-only: cannot {action} {}: mount it writable", .path.display())]
    ReadOnlyFileSystem {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Any other failure of the disk or of the process's rights on it.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Syncs keep failing: nothing new is kept until one succeeds.
    #[error("the disk under {} fails to sync: nothing new is kept there", .root.display())]
    Degraded {
        /// The data directory.
        root: PathBuf,
    },
    /// Another process has the store open.
    #[error("the store {} is in use by {}: stop that process, or talk to it through its admin listener", .root.display(), holder(*.pid, .admin.as_deref()))]
    Locked {
        /// The data directory.
        root: PathBuf,
        /// The holder's process id, where it could be read.
        pid: Option<u32>,
        /// The holder's admin listener, where it has one.
        admin: Option<String>,
    },
    /// A newer Larder wrote it.
    #[error("the store {} has format {found}, written by {version}; this is larder {} and knows format {}: run that version or a newer one", .root.display(), env!("CARGO_PKG_VERSION"), super::lock::FORMAT)]
    NewerFormat {
        /// The data directory.
        root: PathBuf,
        /// The format's number.
        found: u32,
        /// Who wrote it.
        version: String,
    },
    /// The `format` file says nothing that can be read.
    #[error("{} does not name a store's format: is this a Larder data directory?", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The directory is somebody else's.
    #[error("{} is not empty and no data directory of Larder's: it holds {name}; name a new or an empty directory", .root.display())]
    Foreign {
        /// The directory.
        root: PathBuf,
        /// What lies there, beneath it.
        name: String,
    },
    /// The store was opened for reading only, and this would write.
    #[error("the store {} is open for reading only", .root.display())]
    OpenedReadOnly {
        /// The data directory.
        root: PathBuf,
    },
    /// More bytes came than were promised.
    #[error("{digest} has more than the {size} bytes promised")]
    TooLong {
        /// The blob.
        digest: Digest,
        /// Its promised size in bytes.
        size: u64,
    },
    /// Fewer bytes came than were promised.
    #[error("{digest} has {actual} bytes, {size} were promised")]
    TooShort {
        /// The blob.
        digest: Digest,
        /// Its promised size in bytes.
        size: u64,
        /// What came.
        actual: u64,
    },
    /// The bytes are not those of the name.
    #[error("the bytes hash to {actual}, not to {expected}")]
    WrongDigest {
        /// The name.
        expected: Digest,
        /// What the bytes hash to.
        actual: Box<Digest>,
    },
    /// What is held under this name turns bad again and again.
    #[error("{digest} cannot be kept: what was linked is gone or changed at once; something else writes to {}", .root.display())]
    Unstable {
        /// The blob.
        digest: Digest,
        /// The data directory.
        root: PathBuf,
    },
    /// A name that cannot be a path component here.
    #[error("{name:?} cannot be the name of a {what}")]
    Name {
        /// What it should have named.
        what: &'static str,
        /// The name, at most 100 characters of it.
        name: String,
    },
    /// A tag was to be pointed at a manifest that the repository has not.
    #[error("repository {repository} has no manifest {digest}")]
    NoManifest {
        /// The local repository.
        repository: String,
        /// The manifest.
        digest: Digest,
    },
}

fn advice(setting: &str) -> &'static str {
    match setting {
        super::evict::MAX_BYTES => "raise it, or unpin something",
        _ => "free space on the disk, or lower it",
    }
}

fn holder(pid: Option<u32>, admin: Option<&str>) -> String {
    let pid = pid.map_or_else(|| "another process".to_string(), |pid| format!("process {pid}"));
    match admin {
        Some(admin) => format!("{pid} (admin listener {admin})"),
        None => pid,
    }
}

impl StoreError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Full { .. }
            | Self::NoRoom { .. }
            | Self::ReadOnlyFileSystem { .. }
            | Self::Io { .. }
            | Self::Degraded { .. }
            | Self::Unstable { .. } => Class::Disk,
            Self::Locked { .. }
            | Self::NewerFormat { .. }
            | Self::Format { .. }
            | Self::Foreign { .. }
            | Self::OpenedReadOnly { .. } => Class::Policy,
            Self::TooLong { .. } | Self::TooShort { .. } => Class::Size,
            Self::WrongDigest { .. } => Class::Digest,
            Self::Name { .. } => Class::Client,
            Self::NoManifest { .. } => Class::NotFound,
        }
    }

    /// Whether there is no room, on the disk or within the store's bounds: a push answers 507 then, a served miss goes
    /// through uncached.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::NoRoom { .. })
    }

    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.into(), source.into());
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::Full { action, path, source },
            Some(Errno::ROFS) => Self::ReadOnlyFileSystem { action, path, source },
            _ => Self::Io { action, path, source },
        }
    }

    pub(super) fn name(what: &'static str, name: &str) -> Self {
        Self::Name { what, name: name.chars().take(100).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_s_word_decides_the_variant_and_every_variant_of_the_disk_has_its_class() {
        for (errno, full, read_only) in [
            (Errno::NOSPC, true, false),
            (Errno::DQUOT, true, false),
            (Errno::ROFS, false, true),
            (Errno::IO, false, false),
        ] {
            let error = StoreError::io("write", "/x", errno);
            assert_eq!(error.is_full(), full, "{errno}");
            assert_eq!(matches!(error, StoreError::ReadOnlyFileSystem { .. }), read_only, "{errno}");
            assert_eq!(error.class(), Class::Disk);
        }
    }

    #[test]
    fn no_room_says_which_setting_and_what_to_do() {
        for (setting, advice) in [(super::super::evict::MAX_BYTES, "raise it"), ("store.headroomBytes", "lower it")] {
            let error = StoreError::NoRoom { setting, limit: 10, size: 11, root: "/data".into() };
            assert!(error.is_full());
            assert_eq!(error.class(), Class::Disk);
            let text = error.to_string();
            assert!(text.contains(setting) && text.contains(advice) && text.contains("11 bytes"), "{text}");
        }
    }

    #[test]
    fn the_holder_is_named() {
        let error = StoreError::Locked { root: "/data".into(), pid: Some(7), admin: Some("127.0.0.1:9440".into()) };
        assert!(error.to_string().contains("process 7 (admin listener 127.0.0.1:9440)"), "{error}");
    }
}
