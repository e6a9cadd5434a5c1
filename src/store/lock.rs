//! Who has the store open, and in which format it is.
//!
//! `lock` is held with flock(2) as long as the process lives and says in JSON who that is. `format` is two lines,
//! `format <number>` and `larder <version that wrote it>`. Formats: 1, the only one so far.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::{StoreError, layout::Layout};

/// The format that this version writes.
pub(super) const FORMAT: u32 = 1;

/// What a data directory has from its first start on.
pub(super) const FOLDERS: [&str; 9] =
    ["blobs", "files", "links", "grants", "objects", "source", "rendered", "spool", "quarantine"];

/// How long a lock may outlive its holder.
const CHILDREN: Duration = Duration::from_secs(2);

/// The process that has a store open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its admin listener, where it has one: `HOST:PORT`.
    pub admin: Option<String>,
}

impl Holder {
    /// Who has the store at `root` open just now; `None` where nobody has, or where it cannot be read.
    pub fn of(root: &Path) -> Option<Self> {
        let file = File::open(root.join("lock")).ok()?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) => Self::read(&file),
            _ => None,
        }
    }

    /// Whether it is another process than this one, and there is one of that number.
    fn is_another(&self) -> bool {
        let id = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        self.pid != std::process::id()
            && id.is_some_and(|id| rustix::process::test_kill_process(id) != Err(Errno::SRCH))
    }

    fn read(file: &File) -> Option<Self> {
        let mut bytes = [0; 1024];
        let n = file.read_at(&mut bytes, 0).ok()?;
        serde_json::from_slice(&bytes[..n]).ok()
    }

    /// Overwrites the text in place, padded, so that a reader sees the old or the new one.
    pub(super) fn write(&self, file: &File) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.resize(text.len().max(511), b' ');
        text.push(b'\n');
        file.write_all_at(&text, 0)
    }
}

/// Takes the lock. A process that ends while it starts a program leaves its lock to that child until the program runs, so
/// one whose holder is gone is waited for.
pub(super) fn acquire(layout: &Layout) -> Result<File, StoreError> {
    let mode = Mode::RUSR | Mode::WUSR;
    let file =
        layout.open_at("lock", OFlags::RDWR | OFlags::CREATE, mode).map_err(|e| layout.error("open", "lock", e))?;
    let began = Instant::now();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(layout.error("lock", "lock", error)),
        }
        let holder = Holder::read(&file);
        if began.elapsed() > CHILDREN || holder.as_ref().is_none_or(Holder::is_another) {
            return Err(StoreError::Locked {
                root: layout.root().to_path_buf(),
                pid: holder.as_ref().map(|h| h.pid),
                admin: holder.and_then(|h| h.admin),
            });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Holder { pid: std::process::id(), admin: None }.write(&file).map_err(|e| layout.error("write", "lock", e))?;
    Ok(file)
}

/// Refuses a directory that holds somebody else's files: the store removes what it does not know. Where there is no
/// `format`, nothing may lie there but what a first start that was cut short leaves.
pub(super) fn check_ours(layout: &Layout) -> Result<(), StoreError> {
    if layout.stat("format")?.is_some() {
        return Ok(());
    }
    let foreign = |name: String| Err(StoreError::Foreign { root: layout.root().to_path_buf(), name });
    let is_temporary = |name: &str| name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit());
    for name in layout.names(".")? {
        match &*name {
            "lock" | "lost+found" => {}
            folder if FOLDERS.contains(&folder) => {
                let inside = layout.names(folder)?;
                if let Some(file) = inside.into_iter().find(|file| folder != "spool" || !is_temporary(file)) {
                    return foreign(format!("{folder}/{file}"));
                }
            }
            _ => return foreign(name),
        }
    }
    Ok(())
}

/// Checks the format, and writes it where there is none yet and `create`.
pub(super) fn check_format(layout: &Layout, create: bool) -> Result<(), StoreError> {
    let Some(bytes) = layout.read("format")? else {
        if create {
            layout.write(
                "format",
                format!("format {FORMAT}\nlarder {}\n", env!("CARGO_PKG_VERSION")).as_bytes(),
                true,
            )?;
        }
        return Ok(());
    };
    let wrong = || StoreError::Format { path: layout.absolute("format") };
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong())?;
    let mut lines = text.lines();
    let found: u32 = lines.next().and_then(|l| l.strip_prefix("format ")?.parse().ok()).ok_or_else(wrong)?;
    let version = lines.next().unwrap_or("an unknown version").to_string();
    match found {
        FORMAT => Ok(()),
        0 => Err(wrong()),
        _ => Err(StoreError::NewerFormat { root: layout.root().to_path_buf(), found, version }),
    }
}
