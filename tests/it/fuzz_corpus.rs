//! Replays the fuzz targets' corpora: what the fuzzer found once, and a seed of each kind, on every test run.

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use std::path::Path;

#[test]
fn every_target_survives_its_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut wrong = Vec::new();
    for (name, run) in targets::ALL {
        let folder = corpus.join(name);
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("entry").path();
            let bytes = std::fs::read(&path).expect("corpus file");
            count += 1;
            // Every prefix too: a parser that reads past an end does so at one of them.
            let step = (bytes.len() / 64).max(1);
            for end in (0..bytes.len()).step_by(step).chain([bytes.len()]) {
                if std::panic::catch_unwind(|| run(&bytes[..end])).is_err() {
                    wrong.push(format!("{} cut at {end}", path.display()));
                }
            }
        }
        assert!(count >= 2, "{name} has {count} corpus files");
    }
    assert!(wrong.is_empty(), "targets panic on:\n{}", wrong.join("\n"));
}

#[test]
fn every_corpus_and_every_program_has_its_target() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut names: Vec<String> = targets::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    names.sort();
    let listed = |folder: &str| {
        let mut found: Vec<String> = std::fs::read_dir(fuzz.join(folder))
            .expect("folder")
            .map(|entry| entry.expect("entry").path().file_stem().expect("name").to_str().expect("UTF-8").to_owned())
            .collect();
        found.sort();
        found
    };
    assert_eq!(listed("corpus"), names);
    assert_eq!(listed("fuzz_targets"), names);
}
