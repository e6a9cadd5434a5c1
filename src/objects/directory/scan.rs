//! Reads the documents of a directory, and only the files that changed since the last time.

use std::{
    collections::HashMap,
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::objects::{
    documents::{MAX_FILE, parse_documents},
    manifest::{self, Declared},
};

/// What tells two states of a file apart without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(m: &Metadata) -> Self {
        Self {
            device: m.dev(),
            inode: m.ino(),
            size: m.size(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        }
    }

    /// Whether a later write would surely give another stamp: clocks of file systems are coarse, so a file that
    /// changed just before it was read is read once more.
    fn is_settled(&self, read_at: SystemTime) -> bool {
        let changed = u64::try_from(self.changed.0.max(self.modified.0)).unwrap_or(0);
        read_at
            .duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(changed))
            .is_ok_and(|age| age > Duration::from_secs(2))
    }
}

/// One thing that a file declares, and where.
#[derive(Debug)]
pub(super) struct Entry {
    /// `apps.yaml, document 2, item 1, line 7`
    pub place: String,
    /// What.
    pub declared: Declared,
}

/// What a file declares.
#[derive(Debug)]
pub(super) struct Reading {
    /// Its name in the directory.
    pub file: Arc<str>,
    /// In the file's order.
    pub entries: Vec<Entry>,
}

/// The files of a directory as they were last read.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    cache: HashMap<String, (Stamp, Arc<Reading>)>,
}

/// Whether a file's name is one that is read: no dotfile, and one of the three endings.
pub fn is_named(name: &str) -> bool {
    !name.starts_with('.') && [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending))
}

/// Where `..data` points: the kubelet swaps this link to change all files of a mounted ConfigMap or Secret at once.
fn generation_of(directory: &Path) -> Option<PathBuf> {
    std::fs::read_link(directory.join("..data")).ok()
}

impl Scanner {
    /// All files of a directory, sorted by name. Folders in it are not entered. An error only if the directory itself
    /// cannot be listed; a file that cannot be read is a faulty entry.
    pub fn scan(&mut self, directory: &Path) -> io::Result<Vec<Arc<Reading>>> {
        // Files of two generations must not be mixed; a directory that never rests is read as it is.
        for _ in 0..4 {
            let before = generation_of(directory);
            let readings = self.scan_once(directory)?;
            if generation_of(directory) == before {
                return Ok(readings);
            }
        }
        self.scan_once(directory)
    }

    fn scan_once(&mut self, directory: &Path) -> io::Result<Vec<Arc<Reading>>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            // A name that is not UTF-8 cannot be told apart in a message; its ending is looked at all the same.
            let name = entry?.file_name().to_string_lossy().into_owned();
            if is_named(&name) {
                names.push(name);
            }
        }
        names.sort_unstable();
        let mut readings = Vec::with_capacity(names.len());
        let mut cache = HashMap::with_capacity(names.len());
        for name in names {
            let path = directory.join(&name);
            // Follows symlinks. A FIFO or device would block an open.
            let reading = match std::fs::metadata(&path) {
                Ok(m) if !m.is_file() => continue,
                Ok(m) => match self.cache.remove(&name) {
                    Some((stamp, reading)) if stamp == Stamp::of(&m) => {
                        cache.insert(name.clone(), (stamp, reading.clone()));
                        readings.push(reading);
                        continue;
                    }
                    _ => read_file(&path, &name),
                },
                // Removed between the listing and now.
                Err(error) if error.kind() == io::ErrorKind::NotFound && std::fs::symlink_metadata(&path).is_err() => {
                    continue;
                }
                Err(error) => Err(error),
            };
            let reading = match reading {
                Ok((stamp, reading)) => {
                    if let Some(stamp) = stamp {
                        cache.insert(name, (stamp, reading.clone()));
                    }
                    reading
                }
                Err(error) => Arc::new(unreadable(&name, &error)),
            };
            readings.push(reading);
        }
        self.cache = cache;
        Ok(readings)
    }
}

fn unreadable(name: &str, error: &io::Error) -> Reading {
    let declared = Declared::Faulty { identity: None, error: format!("cannot be read: {error}") };
    Reading { file: name.into(), entries: vec![Entry { place: shown(name), declared }] }
}

/// A file's name, fit for a message.
fn shown(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Reads a file, with the stamp under which it may be remembered.
fn read_file(path: &Path, name: &str) -> io::Result<(Option<Stamp>, Arc<Reading>)> {
    let read_at = SystemTime::now();
    let file = File::open(path)?;
    let before = Stamp::of(&file.metadata()?);
    let mut bytes = Vec::new();
    // One byte more than is allowed: enough for the parser to refuse it.
    (&file).take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    let after = Stamp::of(&file.metadata()?);
    let entries = parse_documents(&bytes)
        .into_iter()
        .flat_map(|document| {
            let place = |item: Option<usize>, line: Option<usize>| {
                let mut place = format!("{}, document {}", shown(name), document.index);
                if let Some(item) = item {
                    place += &format!(", item {item}");
                }
                if let Some(line) = line {
                    place += &format!(", line {line}");
                }
                place
            };
            match &document.value {
                Ok(value) => manifest::read(value)
                    .into_iter()
                    .map(|(item, declared)| Entry { place: place(item, Some(document.line)), declared })
                    .collect::<Vec<_>>(),
                Err(fault) => {
                    let declared = Declared::Faulty { identity: None, error: fault.message.clone() };
                    vec![Entry { place: place(None, fault.line), declared }]
                }
            }
        })
        .collect();
    let stamp = (before == after && after.is_settled(read_at)).then_some(after);
    Ok((stamp, Arc::new(Reading { file: name.into(), entries })))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(scanner: &mut Scanner, directory: &Path) -> Vec<String> {
        scanner.scan(directory).unwrap().iter().map(|r| r.file.to_string()).collect()
    }

    #[test]
    fn reads_manifests_and_follows_links_and_enters_no_folder() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["b.yaml", "a.yml", "c.json", ".hidden.yaml", "notes.txt", "d.yaml~", "e.YAML"] {
            std::fs::write(at(name), "").unwrap();
        }
        std::fs::create_dir(at("folder.yaml")).unwrap();
        std::fs::create_dir(at("..gen1")).unwrap();
        std::fs::write(at("..gen1/f.yaml"), "").unwrap();
        symlink("..gen1", at("..data")).unwrap();
        symlink("..data/f.yaml", at("f.yaml")).unwrap();
        let mut scanner = Scanner::default();
        assert_eq!(names(&mut scanner, dir.path()), ["a.yml", "b.yaml", "c.json", "f.yaml"]);
    }

    #[test]
    fn a_dangling_link_is_an_error_and_no_absence() {
        let dir = tempfile::tempdir().unwrap();
        symlink("nowhere", dir.path().join("a.yaml")).unwrap();
        let readings = Scanner::default().scan(dir.path()).unwrap();
        assert!(matches!(&readings[0].entries[0].declared, Declared::Faulty { identity: None, .. }));
    }

    #[test]
    fn remembers_only_what_has_settled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        std::fs::write(&path, "a: 1").unwrap();
        let mut scanner = Scanner::default();
        scanner.scan(dir.path()).unwrap();
        assert!(scanner.cache.is_empty(), "just written: a second write might leave the stamp as it is");
        let m = std::fs::metadata(&path).unwrap();
        let stamp = Stamp::of(&m);
        assert!(!stamp.is_settled(SystemTime::now()));
        assert!(stamp.is_settled(SystemTime::now() + Duration::from_secs(10)));
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let error = Scanner::default().scan(Path::new("/nonexistent/larder")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
