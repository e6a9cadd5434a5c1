use super::*;
use crate::unpack::testing::{ARTIFACT, Header, IMAGE, TarBuilder, gzip, indexed, record};

fn tar() -> TarBuilder {
    TarBuilder::default()
}

fn paths(index: &Index) -> Vec<&str> {
    index.entries.iter().map(|e| &*e.path).collect()
}

fn why(tar: &[u8]) -> Option<&'static str> {
    indexed(tar).pass_through.err().map(|r| r.why)
}

#[test]
fn passes_what_the_contract_lets_pass() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    for (what, archive, names) in [
        ("files and directories", tar().dir("d/").file("d/f", b"x").file("g", b"").end(), vec!["d", "d/f", "g"]),
        ("a root and names with ./", tar().dir("./").dir("./d/").file("./d/f", b"x").end(), vec!["d", "d/f"]),
        ("a directory without a slash", tar().dir("d").end(), vec!["d"]),
        ("no entry for a directory", tar().file("d/f", b"x").end(), vec!["d/f"]),
        ("any order", tar().file("b", b"").file("a", b"").dir(".").end(), vec!["b", "a"]),
        (
            "other modes",
            tar().raw(Header::new("f", b'0', 0).mode(0o400), b"").raw(Header::new("d", b'5', 0).mode(0), b"").end(),
            vec!["f", "d"],
        ),
        ("a mode with its type", tar().raw(Header::new("f", b'0', 0).mode(0o100_644), b"").end(), vec!["f"]),
        ("GNU headers", tar().raw(Header::new("f", b'0', 1).gnu(), b"x").end(), vec!["f"]),
        ("v7 files", tar().raw(Header::new("f", 0, 1).put(257, &[0; 8]).put(329, &[0; 16]), b"x").end(), vec!["f"]),
        (
            "PAX path, mtime and equal size",
            tar().pax(&[("path", &long), ("mtime", "1700000000.123456789"), ("size", "3")]).file("short", b"abc").end(),
            vec![&long],
        ),
        ("a GNU long name", tar().extended(b'L', format!("{long}\0").as_bytes()).file("short", b"").end(), vec![&long]),
        (
            "a ustar prefix",
            tar().raw(Header::new("f", b'0', 0).put(345, b"some/prefix"), b"").end(),
            vec!["some/prefix/f"],
        ),
        (
            "names that only look alike",
            tar().file("A", b"").file("a", b"").file("\u{e9}", b"").file("e\u{301}", b"").end(),
            vec!["A", "a", "\u{e9}", "e\u{301}"],
        ),
        (
            "a file whose name begins like another",
            tar().file("a", b"").file("a.b", b"").file("a-b/c", b"").end(),
            vec!["a", "a.b", "a-b/c"],
        ),
        ("zeros after the end", [tar().file("f", b"").end(), vec![0; 9216]].concat(), vec!["f"]),
        ("nothing at all", tar().end(), vec![]),
    ] {
        let index = indexed(&archive);
        assert_eq!(index.pass_through, Ok(()), "{what}");
        assert_eq!(paths(&index), names, "{what}");
        assert_eq!(index.dropped, 0, "{what}");
    }
}

#[test]
fn gives_kinds_modes_and_places() {
    let archive = tar().dir("d").executable("d/x", b"run").end();
    let index = indexed(&archive);
    assert_eq!(index.entries[0], Entry { path: "d".into(), kind: Kind::Dir, mode: 0o755 });
    assert_eq!(index.entries[1], Entry { path: "d/x".into(), kind: Kind::File { offset: 1024, len: 3 }, mode: 0o755 });
    assert_eq!(&archive[1024..1027], b"run");
}

#[test]
fn rewrites_what_the_contract_does_not_let_pass() {
    for (expected, archive, names) in [
        ("is setuid, setgid or sticky", tar().raw(Header::new("f", b'0', 0).mode(0o4755), b"").end(), vec!["f"]),
        ("is setuid, setgid or sticky", tar().raw(Header::new("d", b'5', 0).mode(0o7777), b"").end(), vec!["d"]),
        ("is not readable by its owner", tar().raw(Header::new("f", b'0', 0).mode(0o277), b"").end(), vec!["f"]),
        (
            "has a mode that names another type",
            tar().raw(Header::new("f", b'0', 0).mode(0o040_755), b"").end(),
            vec!["f"],
        ),
        ("is not a clean name", tar().file("a//b", b"").end(), vec!["a/b"]),
        ("is not a clean name", tar().file("a/./b", b"").end(), vec!["a/b"]),
        ("is not a clean name", tar().file("././b", b"").end(), vec!["b"]),
        ("has control characters in its name", tar().file("a\nb", b"").end(), vec!["a\nb"]),
        ("has control characters in its name", tar().file("a\u{85}b", b"").end(), vec!["a\u{85}b"]),
        ("occurs more than once", tar().file("a", b"1").file("a", b"2").end(), vec!["a", "a"]),
        ("occurs more than once", tar().file("a", b"1").file("./a", b"2").end(), vec!["a", "a"]),
        ("occurs more than once", tar().dir("a").dir("a/").end(), vec!["a", "a"]),
        ("occurs more than once", tar().dir(".").dir("./").end(), vec![]),
        ("is a symlink or a special file", tar().link(b'2', "l", "/etc").file("f", b"").end(), vec!["f"]),
        ("is a contiguous file", tar().raw(Header::new("f", b'7', 1), b"x").end(), vec!["f"]),
        ("is a directory in the notation of v7", tar().raw(Header::new("d/", 0, 0), b"").end(), vec!["d"]),
        (
            "the archive has a global header",
            tar().extended(b'g', &record("comment", "0123abc")).file("f", b"").end(),
            vec!["f"],
        ),
        (
            "has a PAX size that differs from its header's",
            tar().pax(&[("size", "2")]).raw(Header::new("f", b'0', 0), b"ab").end(),
            vec!["f"],
        ),
        (
            "the archive has PAX records besides path, mtime and size",
            tar().pax(&[("SCHILY.xattr.security.capability", "x")]).file("f", b"").end(),
            vec!["f"],
        ),
        (
            "the archive has PAX records besides path, mtime and size",
            tar().pax(&[("uid", "1000")]).file("f", b"").end(),
            vec!["f"],
        ),
        (
            "the archive has PAX records besides path, mtime and size",
            tar().pax(&[("mtime", "1e9")]).file("f", b"").end(),
            vec!["f"],
        ),
        (
            "the archive has a padded GNU long name",
            tar().extended(b'L', b"name\0\0\0").file("f", b"").end(),
            vec!["name"],
        ),
        (
            "has a header that not every reader takes the same way",
            tar().raw(Header::new("f", b'0', 0).gnu().put(345, b"14000000000"), b"").end(),
            vec!["f"],
        ),
        (
            "has a header in star's format",
            tar().raw(Header::new("f", b'0', 0).put(508, b"tar\0"), b"").end(),
            vec!["f"],
        ),
        (
            "has numbers in its header that not every reader takes",
            tar().raw(Header::new("f", b'0', 0).put(108, b"0x3e8\0\0\0"), b"").end(),
            vec!["f"],
        ),
        ("the archive has no end marker", tar().file("f", b"").0, vec!["f"]),
        ("the archive has no end marker", vec![], vec![]),
        ("the archive's end marker is cut short", [tar().file("f", b"").0, vec![0; 512]].concat(), vec!["f"]),
        ("something follows the archive's end marker", [tar().file("f", b"").end(), vec![1; 512]].concat(), vec!["f"]),
    ] {
        let index = indexed(&archive);
        assert_eq!(index.pass_through.as_ref().map_err(|r| r.why), Err(expected));
        assert_eq!(paths(&index), names, "{expected}");
    }
}

/// T1, T3, T4, T8, T9 and headers that readers disagree on.
#[test]
fn refuses_and_names_the_entry() {
    let sparse = Header::new("f", b'S', 0).gnu();
    let pax_sparse = |key: &str| tar().pax(&[(key, "1")]).file("f", b"").end();
    for (message, archive) in [
        (r#"the tar entry "../x" is refused: its name has a component .."#, tar().file("../x", b"").end()),
        (r#"the tar entry "/x" is refused: its name is absolute"#, tar().file("/x", b"").end()),
        (r#"the tar entry "/" is refused: its name is absolute"#, tar().dir("/").end()),
        (r#"the tar entry "a/../../x" is refused: its name has a component .."#, tar().file("a/../../x", b"").end()),
        (r#"the tar entry "a/../x" is refused: its name has a component .."#, tar().file("a/../x", b"").end()),
        (r#"the tar entry ".." is refused: its name has a component .."#, tar().dir("..").end()),
        (r#"the tar entry "a\\..\\x" is refused: its name has a backslash"#, tar().file("a\\..\\x", b"").end()),
        (r#"the tar entry "" is refused: its name is empty"#, tar().file("", b"").end()),
        (r#"the tar entry "/\u{1b}[2J" is refused: its name is absolute"#, tar().file("/\u{1b}[2J", b"").end()),
        (
            r#"the tar entry "a\0b" is refused: a PAX header has an empty name or one with a zero byte"#,
            tar().pax(&[("path", "a\0b")]).file("f", b"").end(),
        ),
        (
            r#"the tar entry "�" is refused: its name is not UTF-8"#,
            tar().raw(Header::new("f", b'0', 0).put(0, &[0xff]), b"").end(),
        ),
        (r#"the tar entry "." is refused: it names the root, yet is not a directory"#, tar().file(".", b"").end()),
        (r#"the tar entry "d/" is refused: it is a file, yet its name ends with a slash"#, tar().file("d/", b"").end()),
        (
            r#"the tar entry "d/" is refused: it is a file, yet its name ends with a slash"#,
            tar().raw(Header::new("d/", 0, 1), b"x").end(),
        ),
        (
            r#"the tar entry "d" is refused: it has data, which its type cannot have"#,
            tar().raw(Header::new("d", b'5', 1), b"x").end(),
        ),
        (
            r#"the tar entry "l" is refused: it has data, which its type cannot have"#,
            tar().raw(Header::new("l", b'2', 1), b"x").end(),
        ),
        (
            r#"the tar entry "l" is refused: it is a hard link, which an artifact cannot have"#,
            tar().file("a", b"").link(b'1', "l", "a").end(),
        ),
        (
            r#"the tar entry "l" is refused: it is a hard link, which an artifact cannot have"#,
            tar().link(b'1', "l", "/canary").end(),
        ),
        (
            r#"the tar entry "c" is refused: it is a device, which an artifact cannot have"#,
            tar().link(b'3', "c", "").end(),
        ),
        (
            r#"the tar entry "b" is refused: it is a device, which an artifact cannot have"#,
            tar().link(b'4', "b", "").end(),
        ),
        (
            r#"the tar entry "p" is refused: it is a fifo, which an artifact cannot have"#,
            tar().link(b'6', "p", "").end(),
        ),
        (
            r#"the tar entry "s" is refused: it is a socket, which an artifact cannot have"#,
            tar().link(b's', "s", "").end(),
        ),
        (r#"the tar entry "v" is refused: its type 'V' is unknown"#, tar().link(b'V', "v", "").end()),
        (
            r#"the tar entry "a/b" is refused: it lies beneath "a", which is a file"#,
            tar().file("a", b"").file("a/b", b"").end(),
        ),
        (
            r#"the tar entry "a/b/c" is refused: it lies beneath "a", which is a file"#,
            tar().file("a/b/c", b"").file("a-x", b"").file("a", b"").end(),
        ),
        (r#"the tar entry "f" is refused: sparse files are not supported"#, tar().raw(sparse, b"").end()),
        (
            r#"the tar entry "GNU.sparse.major" is refused: sparse files are not supported"#,
            pax_sparse("GNU.sparse.major"),
        ),
        (r#"the tar entry "GNU.sparse.map" is refused: sparse files are not supported"#, pax_sparse("GNU.sparse.map")),
        (
            r#"the tar entry "path" is refused: a global header sets it for all entries"#,
            tar().extended(b'g', &record("path", "x")).file("f", b"").end(),
        ),
        (
            r#"the tar entry "path" is refused: a PAX header has this record twice"#,
            tar().pax(&[("path", "a"), ("path", "b")]).file("f", b"").end(),
        ),
        (
            r#"the tar entry "f" is refused: its mode is not an octal number"#,
            tar().raw(Header::new("f", b'0', 0).put(100, b"rw-r--r-"), b"").end(),
        ),
        (
            r#"the tar entry "f" is refused: its header is in star's format, which readers disagree on"#,
            tar().raw(Header::new("f", b'0', 0).put(476, b"14000000000 ").put(508, b"tar\0"), b"").end(),
        ),
        (
            "the tar archive is damaged at byte 0: a PAX record is malformed",
            tar().extended(b'x', b"12 path=a\n").file("f", b"").end(),
        ),
        (
            "the tar archive is damaged at byte 0: a PAX record is malformed",
            tar().extended(b'x', b"10 path=ab").file("f", b"").end(),
        ),
        (
            "the tar archive is damaged at byte 0: a PAX record is malformed",
            tar().extended(b'x', b"-1 path=a\n").file("f", b"").end(),
        ),
        (
            "the tar archive is damaged at byte 0: a PAX record is malformed",
            tar().extended(b'x', b"+9 path=a\n").file("f", b"").end(),
        ),
        (
            "the tar archive is damaged at byte 0: a PAX record is malformed",
            tar().extended(b'x', b"99999999999999999999 path=a\n").file("f", b"").end(),
        ),
        (
            "the tar archive is damaged at byte 0: a PAX record is malformed",
            tar().extended(b'x', b"4 =\n").file("f", b"").end(),
        ),
        (
            "the tar archive is damaged at byte 0: a PAX record is malformed",
            tar().extended(b'x', b"9 path=a\n\0\0").file("f", b"").end(),
        ),
        (
            "the tar archive is damaged at byte 0: a PAX size is not a number",
            tar().pax(&[("size", "-1")]).file("f", b"").end(),
        ),
        (
            "the tar archive is damaged at byte 1024: an entry has two extended headers of one type",
            tar().pax(&[("mtime", "1")]).pax(&[("mtime", "1")]).file("f", b"").end(),
        ),
        (
            "the tar archive is damaged at byte 1024: an entry has a PAX name and a GNU name",
            tar().pax(&[("path", "a")]).extended(b'L', b"b\0").file("f", b"").end(),
        ),
        (
            "the tar archive is damaged at byte 0: a GNU long name is empty or goes on after its zero",
            tar().extended(b'L', b"a\0b").file("f", b"").end(),
        ),
        (
            "the tar archive is damaged at byte 1024: it ends after a header that belongs to an entry",
            tar().pax(&[("path", "a")]).end(),
        ),
        (
            "the tar archive is damaged at byte 1024: it ends after a header that belongs to an entry",
            tar().pax(&[("path", "a")]).0,
        ),
        (
            "the tar archive is damaged at byte 512: a lone block of zeros",
            [&[0; 512][..], &tar().file("f", b"").end()].concat(),
        ),
        (
            "the tar archive is damaged at byte 0: an entry's size is not a number",
            tar().raw(Header::new("f", b'0', 0).put(124, b"0000000001x\0"), b"").end(),
        ),
        (
            "the tar archive is damaged at byte 0: an entry's size is not a number",
            tar().raw(Header::new("f", b'0', 0).put(124, &[0xff; 12]), b"").end(),
        ),
        (
            "the tar archive is damaged at byte 0: it ends inside an entry's data",
            tar()
                .raw(Header::new("f", b'0', 0).put(124, &[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255]), b"")
                .end(),
        ),
        ("the tar archive is damaged at byte 0: it ends inside an entry's data", {
            let mut t = tar().file("f", &[1; 600]).0;
            t.truncate(1024);
            t
        }),
        ("what the layer holds is not a tar archive", gzip(&[1; 2000]).into_iter().cycle().take(1024).collect()),
        ("the tar archive is damaged at byte 512: a header does not match its checksum", {
            let mut t = tar().file("a", b"").file("b", b"").end();
            t[512] = b'c';
            t
        }),
        ("the tar archive is damaged at byte 512: it ends inside a block", {
            let mut t = tar().file("a", b"").file("b", b"").0;
            t.truncate(700);
            t
        }),
    ] {
        let error = index(&archive[..], ARTIFACT).unwrap_err();
        assert_eq!(error.to_string(), message);
        let class = if matches!(error, EntriesError::NotTar) { Class::Layer } else { Class::Tar };
        assert_eq!(error.class(), class, "{message}");
    }
}

/// T8, T10.
#[test]
fn caps_entries_names_depth_and_headers() {
    let deep = |n: usize| vec!["d"; n].join("/");
    let named = |name: &str| tar().pax(&[("path", name)]).file("f", b"").end();
    let many = |n: usize| (0..n).fold(tar(), |t, i| t.file(&format!("f{i}"), b"")).end();
    let caps = |entries| Rules { entries, ..ARTIFACT };
    let records: String = (0..1001).map(|i| String::from_utf8(record(&format!("k{i}"), "v")).unwrap()).collect();
    for (archive, rules, message) in [
        (named(&deep(255)), ARTIFACT, None),
        (named(&deep(256)), ARTIFACT, Some("has 256 components, the cap is 255")),
        (named(&deep(2000)), ARTIFACT, Some("has 2000 components, the cap is 255")),
        (named(&deep(5000)), ARTIFACT, Some("has 9999 bytes, the cap is 4095")),
        (named(&"c".repeat(255)), ARTIFACT, None),
        (named(&"c".repeat(256)), ARTIFACT, Some("has a component of 256 bytes, the cap is 255")),
        (many(10), caps(10), None),
        (many(11), caps(10), Some("more than 10 entries")),
        (tar().pax(&[("path", "a")]).file("f", b"").end(), caps(1), None),
        (tar().extended(b'g', b"").extended(b'g', b"").end(), caps(1), Some("more than 1 entries")),
        (tar().extended(b'x', records.as_bytes()).file("f", b"").end(), ARTIFACT, Some("more than 1000 PAX records")),
        (
            tar().raw(Header::new("x", b'x', (1 << 20) + 1), &[b' '; (1 << 20) + 1]).end(),
            ARTIFACT,
            Some("an extended header of 1048577 bytes"),
        ),
        (
            tar().raw(Header::new("x", b'L', (1 << 20) + 1), &[b'a'; (1 << 20) + 1]).end(),
            ARTIFACT,
            Some("an extended header of 1048577 bytes"),
        ),
    ] {
        match (index(&archive[..], rules), message) {
            (Ok(index), None) => assert_eq!(index.pass_through, Ok(())),
            (Err(error), Some(message)) => {
                assert!(error.to_string().contains(message), "{error}");
                assert_eq!(error.class(), Class::Limit, "{error}");
            }
            (other, message) => panic!("{message:?}: {other:?}"),
        }
    }
}

/// T10: a million empty entries are not even counted to the end.
#[test]
fn stops_counting_at_the_cap() {
    let one = tar().file("f", b"").0;
    let archive = one.repeat(100_001);
    let error = index(&archive[..], ARTIFACT).unwrap_err();
    assert_eq!(error.to_string(), "the tar archive is over a limit: more than 100000 entries");
}

#[test]
fn layers_share_what_they_may_hold() {
    let allowance = Allowance::new(3);
    let two = tar().file("a", b"").file("b", b"").end();
    assert!(index_within(&two[..], true, &allowance).is_ok());
    let error = index_within(&two[..], true, &allowance).unwrap_err();
    assert_eq!(error.to_string(), "the tar archive is over a limit: more than 3 entries");

    let name = format!("{}/{}", ["d"; 100].join("/"), "f".repeat(200));
    let one = tar().pax(&[("path", &name)]).file("f", b"").0;
    let fits = MAX_NAMES as usize / name.len();
    assert!(index(&one.repeat(fits)[..], ARTIFACT).is_ok());
    let error = index(&one.repeat(fits + 1)[..], ARTIFACT).unwrap_err();
    assert_eq!(error.class(), Class::Limit, "{error}");
}

/// T2.
#[test]
fn drops_symlinks_of_any_name() {
    let archive = tar()
        .link(b'2', "d", "/canary")
        .file("d/f", b"x")
        .raw(Header::new("d/.", b'5', 0).mode(0o777), b"")
        .link(b'2', ".", "/")
        .link(b'2', "/", "/")
        .link(b'2', "../../x", "y")
        .end();
    let index = indexed(&archive);
    assert_eq!(paths(&index), ["d/f", "d"]);
    assert_eq!(index.dropped, 4);
    assert_eq!(why(&archive), Some("is a symlink or a special file"));
}

#[test]
fn keeps_hard_links_and_drops_special_files_of_images() {
    let archive = tar()
        .file("a", b"x")
        .link(b'1', "b", "./a")
        .link(b'3', "null", "")
        .link(b'6', "pipe", "")
        .link(b'2', "s", "a")
        .end();
    let index = index(&archive[..], IMAGE).unwrap();
    let kinds: Vec<_> = index.entries.iter().map(|e| (&*e.path, e.kind.clone())).collect();
    assert_eq!(
        kinds,
        [
            ("a", Kind::File { offset: 512, len: 1 }),
            ("b", Kind::HardLink("a".into())),
            ("null", Kind::Dropped),
            ("pipe", Kind::Dropped),
            ("s", Kind::Dropped),
        ]
    );
    assert_eq!(index.dropped, 3);
    assert!(index.pass_through.is_err());
    for target in ["/canary", "../canary", ""] {
        let archive = tar().link(b'1', "l", target).end();
        let error = super::index(&archive[..], IMAGE).unwrap_err();
        assert!(error.to_string().starts_with(r#"the tar entry "l" is refused: it is a hard link to "#), "{error}");
    }
    let archive = tar().file("a", b"x").link(b'1', "b", "a").end();
    let index = super::index(&archive[..], IMAGE).unwrap();
    assert_eq!(index.pass_through.map_err(|r| (r.entry, r.why)), Err(("b".to_owned(), "is a hard link")));
    let archive = tar().file("a", b"").file("a/b", b"").end();
    assert!(super::index(&archive[..], IMAGE).unwrap().pass_through.is_err(), "images replace, they do not refuse");
}

#[test]
fn takes_checksums_of_both_signs() {
    let mut header = Header::new("é", b'0', 0);
    assert!(is_header_or_end(&header.0));
    let signed: i32 =
        header.0.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { i32::from(*b as i8) }).sum();
    header.0[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
    assert!(is_header_or_end(&header.0));
    header.0[150] ^= 1;
    assert!(!is_header_or_end(&header.0));
    assert!(is_header_or_end(&[0; 512]));
}

proptest::proptest! {
    #[test]
    fn never_panics_and_stays_inside(
        flips in proptest::collection::vec((0usize..6000, 0u8..=255), 1..12),
        cut in 0usize..6000,
        image in proptest::bool::ANY,
    ) {
        let mut archive = tar()
            .dir("d").file("d/f", &[7; 700]).pax(&[("path", "long"), ("mtime", "1")]).file("x", b"y")
            .extended(b'L', b"gnu\0").file("z", b"").link(b'1', "h", "d/f").end();
        for (at, value) in flips {
            let len = archive.len();
            archive[at % len] = value;
        }
        archive.truncate(archive.len().saturating_sub(cut / 4));
        if let Ok(index) = index(&archive[..], Rules { image, entries: 100 }) {
            for entry in index.entries {
                proptest::prop_assert!(!entry.path.is_empty() && !entry.path.starts_with('/'));
                proptest::prop_assert!(entry.path.split('/').all(|c| !matches!(c, "" | "." | "..")));
                if let Kind::File { offset, len } = entry.kind {
                    proptest::prop_assert!(offset + len <= archive.len() as u64);
                }
            }
        }
    }
}
