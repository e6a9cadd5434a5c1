//! Reads the corpus of real configuration: `LARDER_CORPUS` names its folder; `../shared/corpus` is tried. Tests and benches
//! share it.

use std::{collections::BTreeMap, path::PathBuf};

/// One version of a configuration: names and contents.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The versions of the corpus's `name`, oldest first; `None` where there is no corpus.
pub fn read(name: &str) -> Option<Vec<Files>> {
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
