//! Configuration to test with: real versions of real repositories where a corpus is at hand (`LARDER_CORPUS` names its
//! folder; `../shared/corpus` is tried), else small versions made here.

use std::{collections::BTreeMap, path::PathBuf};

use super::{announce, fixtures::Files};

/// Successive versions of one configuration, oldest first.
pub struct Versions {
    /// The versions.
    pub versions: Vec<Files>,
    /// Whether they come from the corpus.
    pub real: bool,
}

/// The last `count` versions of the corpus's `name`, or made ones. Says which on standard error.
pub fn versions(name: &str, count: usize) -> Versions {
    match read(name) {
        Some(mut versions) => {
            let skip = versions.len().saturating_sub(count);
            Versions { versions: versions.split_off(skip), real: true }
        }
        None => {
            announce(&format!("no corpus (LARDER_CORPUS): made versions stand in for {name}"));
            Versions { versions: (0..count).map(made).collect(), real: false }
        }
    }
}

fn read(name: &str) -> Option<Vec<Files>> {
    let folder = std::env::var_os("LARDER_CORPUS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/corpus")), PathBuf::from);
    let packed = std::fs::read(folder.join(format!("{name}.tar.zst"))).ok()?;
    let mut decoder = zstd::Decoder::new(packed.as_slice()).expect("zstd");
    decoder.window_log_max(27).expect("a window of 128 MiB");
    let mut versions: BTreeMap<String, Files> = BTreeMap::new();
    for entry in tar::Archive::new(decoder).entries().expect("tar") {
        let mut entry = entry.expect("tar entry");
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = String::from_utf8(entry.path_bytes().into_owned()).expect("UTF-8 name");
        let mut parts = path.splitn(3, '/');
        let (Some(_), Some(version), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
            panic!("{path} in the corpus is not NAME/VERSION/FILE")
        };
        let mut content = Vec::new();
        std::io::copy(&mut entry, &mut content).expect("content");
        versions.entry(version.to_owned()).or_default().insert(rest.to_owned(), content);
    }
    Some(versions.into_values().collect())
}

/// Version `number`: 24 documents of a few KB, of which two change with every version and one more with every tenth.
fn made(number: usize) -> Files {
    (0..24)
        .map(|file| {
            let stamp = match file {
                0 | 1 => number,
                2 => number / 10,
                _ => 0,
            };
            let data: String = (0..64).map(|line| format!("  key-{line}: value {file} {line} {stamp}\n")).collect();
            let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: made-{file}\ndata:\n{data}");
            (format!("manifests/made-{file}.yaml"), text.into_bytes())
        })
        .collect()
}
