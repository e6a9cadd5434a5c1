//! Configuration to test with: real versions of real repositories where a corpus is at hand (`LARDER_CORPUS` names its
//! folder; `../shared/corpus` is tried), else small versions made here.

use super::{announce, fixtures::Files, packed::read};

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
