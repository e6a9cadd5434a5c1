use super::*;
use crate::unpack::{
    decompress::decompress,
    entries::index,
    testing::{ARTIFACT, Header, TarBuilder, gzip, indexed, manifests},
};

fn tar() -> TarBuilder {
    TarBuilder::default()
}

fn unpacked(layers: &[Vec<u8>], image: bool, ignore: Option<&str>) -> Result<Unpacked, ArtifactError> {
    let digests: Vec<_> = layers.iter().map(|l| Digest::sha256(l)).collect();
    unpack(layers, image, Ignoring::AsFlux(ignore), Caps::default(), None).map_err(|e| e.of(&digests))
}

fn rewritten(tree: &Tree) -> Vec<u8> {
    let mut out = Vec::new();
    rewrite(tree, |bytes| {
        out.extend_from_slice(bytes);
        Ok(())
    })
    .unwrap();
    out
}

fn names(tree: &Tree) -> Vec<&str> {
    tree.nodes().iter().map(|n| &*n.path).collect()
}

#[test]
fn passes_through_only_one_sound_gzip_layer() {
    let sound = tar().dir("d").file("d/f.yaml", b"x").end();
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).unwrap();
    for (layers, image, expected) in [
        (vec![gzip(&sound)], false, Ok(())),
        (vec![gzip(&sound)], true, Ok(())),
        (vec![[gzip(&sound[..700]), gzip(&sound[700..]), vec![0; 100]].concat()], false, Ok(())),
        (vec![sound.clone()], false, Err("the layer is not gzip")),
        (vec![zstd(&sound)], false, Err("the layer is not gzip")),
        (vec![gzip(&sound), gzip(&sound)], true, Err("there is more than one layer")),
        (vec![gzip(&tar().file("d/.wh.f", b"").end())], true, Err("the layer has whiteouts")),
        (vec![gzip(&tar().file("d/.wh.f", b"").end())], false, Ok(())),
        (vec![gzip(&tar().link(b'2', "l", "x").end())], false, Err("is a symlink or a special file")),
        (vec![gzip(&tar().file("a", b"").file("a", b"").end())], false, Err("occurs more than once")),
        (vec![gzip(&tar().file("a", b"").link(b'1', "b", "a").end())], true, Err("is a hard link")),
    ] {
        let unpacked = unpacked(&layers, image, None).unwrap();
        assert_eq!(unpacked.pass_through.map_err(|r| r.why), expected);
    }
}

#[test]
fn a_hard_link_of_an_image_of_one_layer_becomes_a_copy() {
    let linked = unpacked(&[gzip(&tar().file("a", b"x").link(b'1', "d/b", "a").end())], true, None).unwrap();
    assert_eq!(names(&linked.tree), ["a", "d", "d/b"]);
    let copies = gzip(&tar().file("a", b"x").dir("d").file("d/b", b"x").end());
    assert!(rewritten(&linked.tree) == rewritten(&unpacked(&[copies], true, None).unwrap().tree));
    let error = unpacked(&[gzip(&tar().link(b'1', "b", "nope").end())], true, None).unwrap_err();
    assert!(error.to_string().contains("which is no earlier file"), "{error}");
}

#[test]
fn names_the_layer_that_cannot_be_used() {
    let bad = gzip(&tar().file("../x", b"").end());
    let error = unpacked(&[gzip(&tar().end()), bad.clone()], true, None).unwrap_err();
    let digest = Digest::sha256(&bad);
    assert_eq!(
        error.to_string(),
        format!("layer {digest}: the tar entry \"../x\" is refused: its name has a component ..")
    );
    assert_eq!(error.class(), Class::Tar);
}

/// T5, T6, T12: what is written depends on the tree alone, in Flux's modes.
#[test]
fn rewrites_are_sorted_normalised_and_equal_for_equal_trees() {
    let one = tar()
        .link(b'2', "dropped", "/etc/passwd")
        .raw(Header::new("z", b'0', 1).mode(0o6777), b"1")
        .raw(Header::new("secret", b'5', 0).mode(0), b"")
        .file("A", b"2")
        .file("a", b"old")
        .file("a", b"3")
        .file("\u{e9}", b"4")
        .file("e\u{301}", b"5")
        .pax(&[("SCHILY.xattr.security.capability", "x"), ("uname", "root")])
        .file("d/f", b"6")
        .end();
    let other = tar()
        .dir("d")
        .file("d/f", b"6")
        .file("e\u{301}", b"5")
        .file("\u{e9}", b"4")
        .file("a", b"3")
        .file("A", b"2")
        .dir("secret")
        .executable("z", b"1")
        .end();
    let unpack_one = unpacked(&[gzip(&one)], false, None).unwrap();
    assert_eq!(unpack_one.dropped, 1);
    let artifact = rewritten(&unpack_one.tree);
    assert_eq!(
        Digest::sha256(&artifact).to_string(),
        "sha256:44f91944e08fb6e902198d6277618143b8c3c763cac74cc13e925f7185a2bbee"
    );
    let other = unpacked(&[zstd::bulk::compress(&other, 1).unwrap()], false, None).unwrap();
    assert!(rewritten(&other.tree) == artifact);

    let tar = decompress(&artifact, Limits::in_memory(1 << 20)).unwrap();
    let tar = tar.data.as_slice().unwrap();
    let mut archive = ::tar::Archive::new(tar);
    let entries: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
            assert_eq!((header.username().unwrap(), header.groupname().unwrap()), (Some(""), Some("")));
            (entry.path().unwrap().display().to_string(), header.mode().unwrap())
        })
        .collect();
    let expected = [
        (".", 0o750),
        ("A", 0o600),
        ("a", 0o600),
        ("d", 0o750),
        ("d/f", 0o600),
        ("e\u{301}", 0o600),
        ("secret", 0o750),
        ("z", 0o700),
        ("\u{e9}", 0o600),
    ];
    assert_eq!(entries, expected.map(|(name, mode)| (name.to_string(), mode)));
}

#[test]
fn a_rewrite_would_itself_pass_through() {
    let long = format!("{}/{}", "directory".repeat(20), "name".repeat(40));
    let tree = tar().dir("d").file("d/f", &manifests(3_000_000)).pax(&[("path", &long)]).file("x", b"long");
    let tree = tree.link(b'2', "l", "x").file("\u{fc}ber/\u{1f980}", b"").end();
    let first = unpacked(&[gzip(&tree)], false, None).unwrap();
    assert!(first.pass_through.is_err());
    let artifact = rewritten(&first.tree);
    let second = unpacked(std::slice::from_ref(&artifact), false, None).unwrap();
    assert_eq!(second.pass_through, Ok(()));
    assert_eq!(names(&second.tree), names(&first.tree));
    assert!(rewritten(&second.tree) == artifact);
}

#[test]
fn an_empty_tree_is_an_archive_of_its_root() {
    let unpacked = unpacked(&[tar().end()], false, None).unwrap();
    let artifact = rewritten(&unpacked.tree);
    let tar = decompress(&artifact, Limits::in_memory(1 << 20)).unwrap();
    assert_eq!(tar.data.as_slice().unwrap().len(), 3 * 512);
    assert!(indexed(tar.data.as_slice().unwrap()).entries.is_empty());
}

#[test]
fn ignore_rules_force_a_rewrite_only_where_they_match() {
    let archive = |ignore: &str| {
        let t =
            tar().file("a.yaml", b"1").file("b.txt", b"2").dir("sub").file("sub/b.txt", b"3").file("sub/c.yaml", b"4");
        if ignore.is_empty() { t.end() } else { t.file("sub/.sourceignore", ignore.as_bytes()).end() }
    };
    for (in_tree, spec, expected, passes) in [
        ("", None, vec!["a.yaml", "b.txt", "sub", "sub/b.txt", "sub/c.yaml"], true),
        ("", Some("*.md"), vec!["a.yaml", "b.txt", "sub", "sub/b.txt", "sub/c.yaml"], true),
        ("", Some("*.txt"), vec!["a.yaml", "sub", "sub/c.yaml"], false),
        ("*.txt\n", None, vec!["a.yaml", "b.txt", "sub", "sub/.sourceignore", "sub/c.yaml"], false),
        ("", Some("/*\n!/sub\n"), vec!["sub", "sub/b.txt", "sub/c.yaml"], false),
    ] {
        let unpacked = unpacked(&[gzip(&archive(in_tree))], false, spec).unwrap();
        assert_eq!(names(&unpacked.tree), expected, "{in_tree:?} {spec:?}");
        assert_eq!(unpacked.pass_through.is_ok(), passes, "{in_tree:?} {spec:?}");
    }
}

#[test]
fn vcs_files_go_by_default() {
    let archive = tar().dir(".git").file(".git/config", b"").file(".git/.sourceignore", b"!*").file("f", b"").end();
    let unpacked = unpacked(&[gzip(&archive)], false, None).unwrap();
    assert_eq!(names(&unpacked.tree), ["f"]);
    assert!(unpacked.pass_through.is_err());
}

#[test]
fn caps_hold_for_all_layers_together() {
    let layer = gzip(&tar().file("f", &[1; 10_000]).end());
    let caps = Caps { total_bytes: 25_000, ..Caps::default() };
    let layers = |n| vec![layer.clone(); n];
    assert!(unpack(&layers(2), true, Ignoring::AsFlux(None), caps, None).is_ok());
    let error = unpack(&layers(3), true, Ignoring::AsFlux(None), caps, None).unwrap_err().of(&[Digest::sha256(b""); 3]);
    assert_eq!(error.class(), Class::Limit);
    let error = unpacked(&[gzip(&tar().file(".sourceignore", &[b'#'; (1 << 20) + 1]).end())], false, None).unwrap_err();
    assert_eq!(error.class(), Class::Limit);
}

#[test]
fn large_layers_go_through_the_spool() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let content = manifests(20 << 20);
    let layer = gzip(&tar().file("big", &content).executable("small", b"x").end());
    let unpacked = unpack(&[layer], false, Ignoring::Nothing, Caps::default(), Some(&store)).unwrap();
    assert_eq!(unpacked.pass_through, Ok(()));
    assert_eq!(unpacked.tree.logical_bytes(), content.len() as u64 + 1);
    let node = unpacked.tree.find("big").unwrap();
    assert!(*unpacked.tree.content(node).unwrap() == content);
    let artifact = rewritten(&unpacked.tree);
    let tar = decompress(&artifact, Limits::in_memory(64 << 20)).unwrap();
    assert_eq!(index(&tar.data, ARTIFACT).unwrap().entries.len(), 2);
}

/// The figure to aim by: at most 1.5 times libdeflate's gunzip and sha256 of the layer. Run with
/// `cargo test --release --lib artifact::build::tests::measure -- --ignored --nocapture`; `LARDER_TEST_LAYER` names a
/// layer, else one of the size of kube-prometheus is made up.
#[test]
#[ignore = "a measurement"]
fn measure() {
    let layer = match std::env::var_os("LARDER_TEST_LAYER") {
        Some(path) => std::fs::read(path).unwrap(),
        None => gzip(&(0..95).fold(tar(), |t, i| t.file(&format!("manifests/{i}.yaml"), &manifests(60_000))).end()),
    };
    // The limit is that of one member, whatever the layer has.
    let data = decompress(&layer, Limits::in_memory(64 << 20)).unwrap();
    let out_len = data.data.as_slice().unwrap().len();
    let single = gzip(data.data.as_slice().unwrap());
    let mut out = vec![0; out_len];
    let mut decoder = libdeflater::Decompressor::new();
    let best = |f: &mut dyn FnMut()| {
        (0..100)
            .map(|_| {
                let start = std::time::Instant::now();
                f();
                start.elapsed()
            })
            .min()
            .unwrap()
    };
    let limit = best(&mut || {
        decoder.gzip_decompress(&single, &mut out).unwrap();
        std::hint::black_box(Digest::sha256(&layer));
    });
    let layers = [layer.clone()];
    let ours = best(&mut || {
        let unpacked = unpack(&layers, false, Ignoring::AsFlux(Some("*.md\n/docs\n")), Caps::default(), None).unwrap();
        assert_eq!(unpacked.pass_through, Ok(()));
    });
    let decompressed = best(&mut || drop(decompress(&layer, Limits::in_memory(64 << 20)).unwrap()));
    let tree = unpack(&layers, false, Ignoring::Nothing, Caps::default(), None).unwrap().tree;
    let rewriting = best(&mut || drop(rewritten(&tree)));
    let directory = tempfile::tempdir().unwrap();
    let mut n = 0;
    let writing = best(&mut || {
        n += 1;
        let path = directory.path().join(n.to_string());
        std::fs::create_dir(&path).unwrap();
        tree.write_plain(&cap_std::fs::Dir::open_ambient_dir(path, cap_std::ambient_authority()).unwrap()).unwrap();
    });
    println!("rewritten in {rewriting:?}, written as plain files in {writing:?}");
    println!(
        "layer of {} bytes, {out_len} decompressed: gunzip + sha256 {limit:?}, unpack {ours:?} (decompress {decompressed:?}), ratio {:.2}",
        layer.len(),
        ours.as_secs_f64() / limit.as_secs_f64()
    );
}

fn chosen(layers: &[Vec<u8>], image: bool, copy: bool) -> Chosen {
    let layers = layers.iter().map(|bytes| crate::oci::Descriptor {
        media_type: "application/octet-stream".into(),
        digest: Digest::sha256(bytes),
        size: bytes.len() as u64,
        platform: None,
        artifact_type: None,
        annotations: Default::default(),
    });
    Chosen { layers: layers.collect(), image, copy, chart: false }
}

fn built(store: &Store, layers: &[Vec<u8>], image: bool, copy: bool) -> Result<Built, ArtifactError> {
    let blobs = layers.iter().map(|l| store.put(Digest::sha256(l), l, Durability::Soon).unwrap());
    build(store, &chosen(layers, image, copy), &blobs.collect::<Vec<_>>(), Ignoring::AsFlux(None), Caps::default())
}

#[test]
fn the_layer_itself_is_the_artifact_and_is_kept_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let layer = gzip(&tar().dir("d").file("d/f", b"x").executable("d/x", b"y").end());
    let artifact = built(&store, std::slice::from_ref(&layer), false, false).unwrap();
    assert!(artifact.passed_through);
    assert_eq!(artifact.digest(), Digest::sha256(&layer));
    assert_eq!(store.usage().unwrap().blobs.count, 1);

    let copied = built(&store, &[b"not a tar".to_vec()], false, true).unwrap();
    assert!(copied.passed_through && copied.tree.is_none());
    assert_eq!(copied.digest(), Digest::sha256(b"not a tar"));

    let none = build(&store, &chosen(&[layer], false, false), &[], Ignoring::Nothing, Caps::default());
    assert_eq!(none.err().unwrap().class(), Class::Layer);
}

#[test]
fn a_rewritten_artifact_is_a_blob_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let layers = [tar().dir("d").file("d/f", b"x").file("d/g", b"y").end(), gzip(&tar().file("d/.wh.f", b"").end())];
    let artifact = built(&store, &layers, true, false).unwrap();
    assert!(!artifact.passed_through);
    assert_eq!(store.usage().unwrap().blobs.count, 3);
    let bytes = artifact.blob.to_vec().unwrap();
    assert_eq!(Digest::sha256(&bytes), artifact.digest());
    let again = unpacked(&[bytes], false, None).unwrap();
    assert_eq!(names(&again.tree), ["d", "d/g"]);
    assert_eq!(built(&store, &layers, true, false).unwrap().digest(), artifact.digest());
}

#[test]
fn published_files_are_shared_and_read_only() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let layer = gzip(&tar().file("d/f", b"same").executable("d/x", b"same").file("g", b"same").dir("e").end());
    let tree = built(&store, &[layer], false, false).unwrap().tree.unwrap();
    assert_eq!(tree.logical_bytes(), 12);
    let out = tempfile::tempdir_in(directory.path()).unwrap();
    let dir = cap_std::fs::Dir::open_ambient_dir(out.path(), cap_std::ambient_authority()).unwrap();
    tree.write_published(&store, &dir).unwrap();
    let mode = |name: &str| std::fs::symlink_metadata(out.path().join(name)).unwrap().mode();
    let modes = ["d", "d/f", "d/x", "e", "g"].map(mode);
    assert_eq!(modes, [0o040_750, 0o100_400, 0o100_500, 0o040_750, 0o100_400]);
    assert_eq!(store.usage().unwrap().files.count, 2, "one for each mode");
    assert_eq!(std::fs::read(out.path().join("d/x")).unwrap(), b"same");
}
