//! `larder quickstart`: the whole story, with nothing else installed.

use crate::support::larder::run;

#[test]
fn quickstart_tells_the_whole_story_and_exits_0() {
    let root = tempfile::tempdir().expect("folder");
    let data = root.path().join("data");
    let told = run(root.path(), ["quickstart", "--data", data.to_str().expect("UTF-8")]);
    let said = format!("{}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert_eq!(told.status.code(), Some(0), "{said}");
    for part in ["my-app-config", "v1.0.0", "v1.0.1", "sha256:", "GitRepository", "OCIRepository", "Kustomization"] {
        assert!(said.contains(part), "no word of {part}:\n{said}");
    }
    let rendered = std::fs::read_dir(data.join("rendered")).expect("what was rendered stays in --data");
    assert_eq!(rendered.count(), 1);
    let verify = run(root.path(), ["store", "verify", "--data", data.to_str().expect("UTF-8")]);
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
    // Twice on one folder: what is held already is no obstacle.
    let again = run(root.path(), ["quickstart", "--data", data.to_str().expect("UTF-8")]);
    assert_eq!(again.status.code(), Some(0), "{}", String::from_utf8_lossy(&again.stderr));
}

#[test]
fn quickstart_fails_where_it_cannot_be_observed() {
    let root = tempfile::tempdir().expect("folder");
    std::fs::write(root.path().join("file"), "not a folder").expect("file");
    let told = run(root.path(), ["quickstart", "--data", root.path().join("file").to_str().expect("UTF-8")]);
    assert_eq!(told.status.code(), Some(1), "{}", String::from_utf8_lossy(&told.stdout));
    assert!(String::from_utf8_lossy(&told.stderr).contains("file"), "the message names the place");
}
