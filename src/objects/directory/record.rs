//! What is kept of each object: `<data>/objects/<kind>/<namespace>/<name>.json`.
//!
//! A record is replaced as a whole: a temporary file beside it, fsync, rename, fsync of the folder. After a crash it is
//! the old one or the new one; temporary files that were left are removed when the records are read.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::objects::{Key, Kind, Metadata, Object, Spec, Status, schema::check_dns};

/// What is kept of an object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The file that declared it.
    pub file: String,
    /// As it was last told, `generation` included.
    pub metadata: Metadata,
    /// The spec as written.
    pub spec: Value,
    /// The status.
    #[serde(default)]
    pub status: Status,
}

impl Record {
    /// Of an object of a cluster.
    pub fn of_cluster(object: &Object, status: Status) -> Self {
        let file = String::new();
        Self { file, metadata: object.metadata.clone(), spec: object.raw_spec.clone(), status }
    }

    /// Whether it is of an object of a cluster, which no file declares.
    pub fn is_of_cluster(&self) -> bool {
        self.file.is_empty()
    }

    /// The object as it was last told; `spec` is its spec as its kind's type.
    pub fn object(&self, key: &Key, spec: Spec) -> Object {
        Object { key: key.clone(), metadata: self.metadata.clone(), spec, raw_spec: self.spec.clone() }
    }
}

/// The folder of all records.
#[derive(Clone, Debug)]
pub struct Records {
    root: PathBuf,
}

const TEMPORARY: &str = ".tmp-";

impl Records {
    /// The records under a data directory.
    pub fn new(data: &Path) -> Self {
        Self { root: data.join("objects") }
    }

    fn folder(&self, key: &Key) -> PathBuf {
        self.root.join(key.kind.lower()).join(&*key.namespace)
    }

    /// All records that can be read. One that cannot is passed over with a warning: its object begins anew.
    pub fn load(&self) -> io::Result<Vec<(Key, Record)>> {
        let mut records = Vec::new();
        for kind in Kind::ALL {
            for namespace in names(&self.root.join(kind.lower()))? {
                if check_dns(&namespace, false).is_err() {
                    continue;
                }
                let folder = self.root.join(kind.lower()).join(&namespace);
                for file in names(&folder)? {
                    let path = folder.join(&file);
                    if file.starts_with(TEMPORARY) {
                        let _ = fs::remove_file(&path);
                        continue;
                    }
                    let Some(name) = file.strip_suffix(".json").filter(|n| check_dns(n, true).is_ok()) else {
                        continue;
                    };
                    let read = fs::read(&path)?;
                    match serde_json::from_slice(&read) {
                        Ok(record) => records.push((Key::new(kind, &namespace, name), record)),
                        Err(error) => {
                            tracing::warn!(path = %path.display(), %error, "a kept status cannot be read; the object begins anew");
                        }
                    }
                }
            }
        }
        Ok(records)
    }

    /// Writes a record. With `durable` it survives a power cut when this returns; without, only a crash of Larder.
    pub fn write(&self, key: &Key, record: &Record, durable: bool) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let folder = self.folder(key);
        let bytes = serde_json::to_vec(record).map_err(io::Error::other)?;
        self.make(&folder, durable)?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = folder.join(format!("{TEMPORARY}{}-{count}", std::process::id()));
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(&bytes)?;
            if durable {
                file.sync_all()?;
            }
            fs::rename(&temporary, folder.join(format!("{}.json", key.name)))?;
            if durable { File::open(&folder)?.sync_all() } else { Ok(()) }
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Makes all records durable that were written without that.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(&self.root)?)?)
    }

    /// Makes a folder; its own names are as durable as what will lie in it.
    fn make(&self, folder: &Path, durable: bool) -> io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        if durable {
            let above = folder.ancestors().skip(1).take_while(|a| a.starts_with(&self.root));
            for parent in above.chain(self.root.parent()) {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// Removes a record, and nothing else: an empty folder stays.
    pub fn remove(&self, key: &Key) -> io::Result<()> {
        let folder = self.folder(key);
        match fs::remove_file(folder.join(format!("{}.json", key.name))) {
            Ok(()) => File::open(&folder)?.sync_all(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The names in a folder; none if it is not there.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keeps_replaces_and_removes() {
        let data = tempfile::tempdir().unwrap();
        let records = Records::new(data.path());
        assert_eq!(records.load().unwrap(), []);
        let key = Key::new(Kind::HelmChart, "apps", &"a".repeat(250));
        let mut record = Record {
            file: "a.yaml".into(),
            metadata: Metadata { generation: 3, ..Metadata::default() },
            spec: json!({"chart": "a"}),
            status: Status::default(),
        };
        for generation in [3, 4] {
            record.metadata.generation = generation;
            records.write(&key, &record, generation == 4).unwrap();
            assert_eq!(records.load().unwrap(), [(key.clone(), record.clone())]);
        }
        let folder = data.path().join("objects/helmchart/apps");
        fs::write(folder.join(".tmp-1-1"), "torn").unwrap();
        fs::write(folder.join("torn.json"), "{\"file").unwrap();
        assert_eq!(records.load().unwrap().len(), 1);
        assert!(!folder.join(".tmp-1-1").exists());
        records.remove(&key).unwrap();
        records.remove(&key).unwrap();
        assert_eq!(records.load().unwrap(), []);
    }
}
