use std::os::unix::fs::MetadataExt;

use super::*;
use crate::unpack::testing::{TarBuilder, indexed};

fn tree(tar: Vec<u8>) -> Tree {
    let entries = indexed(&tar).entries;
    let nodes = nodes_of(entries, 0, 1000).unwrap();
    Tree::new(vec![Data::from(tar)], nodes)
}

#[test]
fn the_last_duplicate_counts_and_parents_are_implied() {
    let tar = TarBuilder::default()
        .file("z", b"1")
        .file("a/b/c", b"22")
        .file("z", b"333")
        .dir("k")
        .file("k", b"4")
        .file("l", b"")
        .dir("l")
        .executable("a-b", b"x")
        .end();
    let tree = tree(tar);
    let names: Vec<_> = tree.nodes().iter().map(|n| (&*n.path, n.is_dir(), n.len())).collect();
    assert_eq!(
        names,
        [
            ("a", true, 0),
            ("a-b", false, 1),
            ("a/b", true, 0),
            ("a/b/c", false, 2),
            ("k", false, 1),
            ("l", true, 0),
            ("z", false, 3)
        ]
    );
    assert_eq!(&*tree.content(tree.find("z").unwrap()).unwrap(), b"333");
    assert_eq!(tree.logical_bytes(), 7);
    assert!(tree.find("a-b").unwrap().executable() && !tree.find("z").unwrap().executable());
    assert!(tree.find("b").is_none());
}

#[test]
fn implied_directories_count_against_the_cap() {
    let tar = TarBuilder::default().file(&["d"; 40].join("/"), b"").end();
    let entries = || indexed(&tar).entries;
    assert_eq!(nodes_of(entries(), 0, 40).unwrap().len(), 40);
    assert_eq!(nodes_of(entries(), 0, 39).unwrap_err().class(), Class::Limit);
}

#[test]
fn removing_keeps_the_directories_that_are_needed() {
    let mut tree = tree(TarBuilder::default().dir("a").dir("a/b").file("a/b/c", b"").dir("d").file("d/e", b"").end());
    tree.remove(&[0, 1, 3, 4]);
    let names: Vec<_> = tree.nodes().iter().map(|n| &*n.path).collect();
    assert_eq!(names, ["a", "a/b", "a/b/c"]);
}

#[test]
fn writes_plain_trees_with_fixed_modes() {
    let mut tar = TarBuilder::default().executable("bin/run", b"#!").file("deep/er/f", b"content");
    for i in 0..200 {
        tar = tar.file(&format!("many/{i}"), i.to_string().as_bytes());
    }
    let tree = tree(tar.dir("empty").end());
    let directory = tempfile::tempdir().unwrap();
    let dir = Dir::open_ambient_dir(directory.path(), cap_std::ambient_authority()).unwrap();
    tree.write_plain(&dir).unwrap();
    let mode = |name: &str| fs::symlink_metadata(directory.path().join(name)).unwrap().mode();
    for (name, expected) in [
        ("bin", 0o040_755),
        ("bin/run", 0o100_755),
        ("deep/er", 0o040_755),
        ("deep/er/f", 0o100_644),
        ("empty", 0o040_755),
    ] {
        assert_eq!(mode(name), expected, "{name}");
    }
    for node in tree.nodes().iter().filter(|n| !n.is_dir()) {
        assert_eq!(fs::read(directory.path().join(&*node.path)).unwrap(), &*tree.content(node).unwrap());
    }
    assert_eq!(fs::read_dir(directory.path().join("many")).unwrap().count(), 200);
    // Not into a directory that has something in it.
    let error = tree.write_plain(&dir).unwrap_err();
    assert!(error.to_string().starts_with("cannot write \"bin\" to the tree"), "{error}");
}

#[test]
fn never_writes_through_a_link() {
    let outside = tempfile::tempdir().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let dir = Dir::open_ambient_dir(directory.path(), cap_std::ambient_authority()).unwrap();
    std::os::unix::fs::symlink(outside.path(), directory.path().join("d")).unwrap();
    assert!(open(&dir, "d").is_err());
    let tree = tree(TarBuilder::default().file("d/f", b"x").end());
    assert!(tree.write_plain(&dir).is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}
