use super::*;
use crate::unpack::{
    entries::MAX_ENTRIES,
    testing::{Header, IMAGE, TarBuilder, gzip},
    tree::Tree,
};

fn tar() -> TarBuilder {
    TarBuilder::default()
}

const LIMITS: Limits<'static> = Limits::in_memory(1 << 20);

/// The tree of these layers: names, and contents of files (`x:` before what may be executed); and how many were dropped.
fn tree(layers: &[Vec<u8>]) -> Result<(Vec<String>, u64), LayerError> {
    let opened = open_all(layers, &[], LIMITS, IMAGE).map_err(|(_, error)| error)?;
    let merged = merge(opened.iter().map(|l| &l.index), &Budget::new(100), MAX_ENTRIES)?;
    let dropped = merged.dropped;
    let tree = Tree::new(into_data(opened), merged.nodes);
    let shown = tree.nodes().iter().map(|node| {
        let content = String::from_utf8(tree.content(node).unwrap().into_owned()).unwrap();
        let x = if node.executable() { "x:" } else { "" };
        if node.is_dir() { format!("{}/", node.path) } else { format!("{}={x}{content}", node.path) }
    });
    Ok((shown.collect(), dropped))
}

#[test]
fn lays_layers_over_each_other() {
    let base =
        || tar().dir("d").file("d/a", b"1").file("d/b", b"2").dir("d/s").file("d/s/c", b"3").file("e", b"4").end();
    for (what, layers, expected) in [
        (
            "a new file",
            vec![base(), tar().executable("d/n", b"5").end()],
            vec!["d/", "d/a=1", "d/b=2", "d/n=x:5", "d/s/", "d/s/c=3", "e=4"],
        ),
        (
            "a changed file",
            vec![base(), tar().file("d/a", b"9").end()],
            vec!["d/", "d/a=9", "d/b=2", "d/s/", "d/s/c=3", "e=4"],
        ),
        (
            "a whiteout of a file",
            vec![base(), tar().file("d/.wh.a", b"").end()],
            vec!["d/", "d/b=2", "d/s/", "d/s/c=3", "e=4"],
        ),
        (
            "a whiteout of a directory",
            vec![base(), tar().file("d/.wh.s", b"").end()],
            vec!["d/", "d/a=1", "d/b=2", "e=4"],
        ),
        ("a whiteout at the root", vec![base(), tar().file(".wh.d", b"").end()], vec!["e=4"]),
        (
            "a whiteout of nothing that is there",
            vec![base(), tar().file(".wh.zzz", b"").end()],
            vec!["d/", "d/a=1", "d/b=2", "d/s/", "d/s/c=3", "e=4"],
        ),
        (
            "a whiteout after its own layer's file",
            vec![base(), tar().file("d/a", b"8").file("d/.wh.a", b"").end()],
            vec!["d/", "d/a=8", "d/b=2", "d/s/", "d/s/c=3", "e=4"],
        ),
        ("a whiteout in the first layer", vec![tar().file("a", b"1").file(".wh.a", b"").end()], vec!["a=1"]),
        (
            "an opaque directory",
            vec![base(), tar().dir("d").file("d/.wh..wh..opq", b"").file("d/n", b"5").end()],
            vec!["d/", "d/n=5", "e=4"],
        ),
        (
            "an opaque directory, marked last",
            vec![base(), tar().file("d/n", b"5").file("d/.wh..wh..opq", b"").end()],
            vec!["d/", "d/n=5", "e=4"],
        ),
        ("an opaque root", vec![base(), tar().file(".wh..wh..opq", b"").file("n", b"5").end()], vec!["n=5"]),
        (
            "aufs's own files",
            vec![base(), tar().dir(".wh..wh.plnk").file(".wh..wh.plnk/1", b"").file(".wh..wh.aufs", b"").end()],
            vec!["d/", "d/a=1", "d/b=2", "d/s/", "d/s/c=3", "e=4"],
        ),
        ("a file over a directory", vec![base(), tar().file("d", b"5").end()], vec!["d=5", "e=4"]),
        (
            "a directory over a file",
            vec![base(), tar().dir("e").file("e/f", b"5").end()],
            vec!["d/", "d/a=1", "d/b=2", "d/s/", "d/s/c=3", "e/", "e/f=5"],
        ),
        (
            "an implied directory over a file",
            vec![base(), tar().file("e/g/f", b"5").end()],
            vec!["d/", "d/a=1", "d/b=2", "d/s/", "d/s/c=3", "e/", "e/g/", "e/g/f=5"],
        ),
        (
            "a directory over itself",
            vec![base(), tar().dir("d").end()],
            vec!["d/", "d/a=1", "d/b=2", "d/s/", "d/s/c=3", "e=4"],
        ),
        (
            "names that only begin alike",
            vec![
                tar().file("d-x", b"1").file("d/a", b"2").file("d0", b"3").file("d.y", b"4").end(),
                tar().file(".wh.d", b"").end(),
            ],
            vec!["d-x=1", "d.y=4", "d0=3"],
        ),
        (
            "three layers",
            vec![base(), tar().file(".wh.d", b"").end(), tar().file("d/a", b"7").end()],
            vec!["d/", "d/a=7", "e=4"],
        ),
        (
            "layers of other formats",
            vec![gzip(&base()), zstd::bulk::compress(&tar().file("e", b"5").end(), 3).unwrap()],
            vec!["d/", "d/a=1", "d/b=2", "d/s/", "d/s/c=3", "e=5"],
        ),
        ("a hard link", vec![tar().executable("a", b"1").link(b'1', "b", "a").end()], vec!["a=x:1", "b=x:1"]),
        (
            "a hard link to a lower layer",
            vec![base(), tar().link(b'1', "h", "d/a").end()],
            vec!["d/", "d/a=1", "d/b=2", "d/s/", "d/s/c=3", "e=4", "h=1"],
        ),
    ] {
        assert_eq!(tree(&layers).unwrap(), (expected.iter().map(|s| s.to_string()).collect(), 0), "{what}");
    }
}

#[test]
fn what_is_left_out_hides_what_lies_below() {
    let base = tar().dir("bin").file("bin/sh", b"1").file("dev", b"2").end();
    let upper = tar()
        .link(b'2', "bin", "usr/bin")
        .link(b'3', "dev", "")
        .link(b'1', "hard", "bin")
        .file("usr/bin/sh", b"3")
        .end();
    let (names, dropped) = tree(&[base, upper]).unwrap();
    assert_eq!(names, ["usr/", "usr/bin/", "usr/bin/sh=3"]);
    assert_eq!(dropped, 3);
}

#[test]
fn refuses_links_to_what_is_not_there_and_whiteouts_of_nothing() {
    for (archive, message) in [
        (
            tar().link(b'1', "l", "gone").end(),
            r#"the tar entry "l" is refused: it is a hard link to "gone", which is no earlier file"#,
        ),
        (
            tar().link(b'1', "l", "later").file("later", b"").end(),
            r#"the tar entry "l" is refused: it is a hard link to "later", which is no earlier file"#,
        ),
        (
            tar().dir("d").link(b'1', "l", "d").end(),
            r#"the tar entry "l" is refused: it is a hard link to "d", which is no earlier file"#,
        ),
        (tar().file("d/.wh.", b"").end(), r#"the tar entry "d/.wh." is refused: it is a whiteout of nothing"#),
        (tar().file("d/.wh...", b"").end(), r#"the tar entry "d/.wh..." is refused: it is a whiteout of nothing"#),
        (tar().file("d/.wh..", b"").end(), r#"the tar entry "d/.wh.." is refused: it is a whiteout of nothing"#),
    ] {
        let error = tree(&[archive]).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.class(), Class::Tar);
    }
}

#[test]
fn copies_and_implied_directories_count_against_the_caps() {
    let archive = tar().file("a", &[b'x'; 40]).link(b'1', "b", "a").link(b'1', "c", "a").end();
    assert_eq!(tree(std::slice::from_ref(&archive)).unwrap().0.len(), 3);
    let error = tree(&[archive, tar().link(b'1', "d", "a").end()]).unwrap_err();
    assert_eq!(error.class(), Class::Limit, "{error}");

    let deep = tar().file("d/".repeat(40).trim_end_matches('/'), b"").end();
    let opened = open_all(&[deep], &[], LIMITS, IMAGE).unwrap();
    let merged = |most| merge(opened.iter().map(|l| &l.index), &Budget::new(1), most);
    assert_eq!(merged(40).unwrap().nodes.len(), 40);
    assert_eq!(merged(39).unwrap_err().class(), Class::Limit);
}

#[test]
fn names_the_layer_that_failed_and_compares_diff_ids() {
    let good = tar().file("a", b"1").end();
    let (place, error) = open_all(&[good.clone(), vec![1; 600]], &[], LIMITS, IMAGE).unwrap_err();
    assert_eq!((place, error.class()), (1, Class::Layer));
    let ids = [Digest::sha256(&good), Digest::sha256(&good)];
    assert_eq!(open_all(&[good.clone(), gzip(&good)], &ids, LIMITS, IMAGE).unwrap().len(), 2);
    let (place, error) = open_all(&[good, gzip(&tar().end())], &ids, LIMITS, IMAGE).unwrap_err();
    assert_eq!((place, error.class()), (1, Class::Digest));
}

#[test]
fn sees_whiteouts() {
    let has = |archive: Vec<u8>| has_whiteouts(&open(&archive, LIMITS, IMAGE).unwrap().index);
    assert!(has(tar().raw(Header::new("d/.wh.x", b'0', 0), b"").end()));
    assert!(!has(tar().file("d/wh.x", b"").end()));
}
