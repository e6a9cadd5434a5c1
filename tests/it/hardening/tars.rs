//! The T rows: tars made to write elsewhere, or to cost too much.

use serde_json::json;

use super::{
    upstream::{LAYER, REPOSITORY, descriptor, manifest},
    world::{LAYER_OPERATION, NAMESPACE, Outcome, Row, World, fails, run_rows},
};
use crate::support::{
    eventually,
    fixtures::{Entry, Tar, files, gunzip, gzip, hex_of},
    larder::{fetch_artifact, text},
};

fn refused(name: &'static str, class: &'static str, says: impl Into<String>, tar: Vec<u8>) -> Row {
    let says = says.into();
    Row::new(name, move |up| {
        up.push_layer(&gzip(&tar));
        fails(LAYER_OPERATION, class, says.clone())
    })
    .keeps_layer()
}

fn taken(name: &'static str, wanted: &[(&str, &str)], tar: Vec<u8>) -> Row {
    let wanted = files(wanted);
    Row::new(name, move |up| {
        up.push_layer(&gzip(&tar));
        Outcome::Succeeds(wanted.clone())
    })
}

fn one(entry: Entry) -> Vec<u8> {
    Tar::default().entry(Entry::file("before", b"x")).entry(entry).end()
}

/// A file whose name only a PAX record can hold.
fn named(name: &str) -> Vec<u8> {
    Tar::default().entry(Entry::pax(b'x', &[("path", name)])).entry(Entry::file("short", b"x")).end()
}

#[test]
fn a_tar_that_reaches_out_is_refused_and_named() {
    let world = World::start(&[]);
    let outside = world.outside();
    let canary = format!("{outside}/canary.yaml");
    let rows = vec![
        refused("t1-parent", "tar", "../x", one(Entry::file("../x", b"evil"))),
        refused("t1-absolute", "tar", "/x", one(Entry::file("/x", b"evil"))),
        refused("t1-absolute-canary", "tar", canary.clone(), named(&canary)),
        refused("t1-parent-inside", "tar", "a/../../x", one(Entry::file("a/../../x", b"evil"))),
        refused("t1-only-parent", "tar", "..", one(Entry::file("..", b"evil"))),
        refused("t1-folder-parent", "tar", "..", one(Entry::folder(".."))),
        refused("t1-backslash", "tar", r"a\\..\\x", one(Entry::file(r"a\..\x", b"evil"))),
        refused("t1-nul", "tar", r"a\0b", named("a\0b")),
        refused("t1-empty", "tar", "\"\"", one(Entry::file("", b"evil"))),
        refused("t1-newline-escaped", "tar", r"..\nx/../../y", one(Entry::file("..\nx/../../y", b"evil"))),
        taken("t2-through-a-symlink", &[("d/f", "evil")], {
            let tar = Tar::default().entry(Entry::symlink("d", &outside));
            tar.entry(Entry::file("d/f", b"evil")).end()
        }),
        taken("t2-folder-through-a-symlink", &[("a", "x")], {
            let tar = Tar::default().entry(Entry::symlink("d", &outside));
            tar.entry(Entry::folder("d/.").mode(0o777)).entry(Entry::file("a", b"x")).end()
        }),
        taken("t2-symlink-over-a-file", &[("a", "x")], {
            let tar = Tar::default().entry(Entry::symlink("canary.yaml", &canary));
            tar.entry(Entry::file("a", b"x")).end()
        }),
        taken("t2-symlink-named-dot", &[("a", "x")], {
            Tar::default().entry(Entry::symlink(".", &outside)).entry(Entry::file("a", b"x")).end()
        }),
        taken("t2-symlink-named-slash", &[("a", "x")], {
            Tar::default().entry(Entry::symlink("/", &outside)).entry(Entry::file("a", b"x")).end()
        }),
        refused("t3-link-outside", "tar", "link", one(Entry::hard_link("link", "/etc/passwd"))),
        refused("t3-link-relative", "tar", "link", one(Entry::hard_link("link", "../outside/canary.yaml"))),
        refused("t3-link-within", "tar", "link", one(Entry::hard_link("link", "before"))),
        refused("t4-char", "tar", "dev", one(Entry::new(b'3', "dev", b""))),
        refused("t4-block", "tar", "dev", one(Entry::new(b'4', "dev", b""))),
        refused("t4-fifo", "tar", "fifo", one(Entry::new(b'6', "fifo", b""))),
        refused("t4-file-as-folder", "tar", "before", one(Entry::file("before/b", b"x"))),
        refused("t8-pax-without-end", "tar", "", {
            let entry = Entry::new(b'x', "PaxHeaders.0/x", b"99999 path=a\n");
            Tar::default().entry(entry).entry(Entry::file("a", b"x")).end()
        }),
        refused("t8-pax-no-number", "tar", "", {
            Tar::default().entry(Entry::new(b'x', "x", b"x path=a\n")).entry(Entry::file("a", b"x")).end()
        }),
        refused("t8-pax-over-1-mib", "limit", "", {
            let long = "v".repeat((1 << 20) + 1);
            Tar::default().entry(Entry::pax(b'x', &[("comment", &long)])).entry(Entry::file("a", b"x")).end()
        }),
        refused("t8-long-name-over-1-mib", "limit", "", {
            Tar::default().entry(Entry::gnu_long(b'L', &"n".repeat(1 << 20))).entry(Entry::file("a", b"x").gnu()).end()
        }),
        refused("t8-a-million-records", "limit", "", {
            let records = b"6 a=b\n".repeat(1_000_000);
            Tar::default().entry(Entry::new(b'x', "x", &records)).entry(Entry::file("a", b"x")).end()
        }),
        refused("t9-sparse", "tar", "sparse", one(Entry::new(b'S', "holes", b"").gnu())),
        refused("t9-sparse-pax", "tar", "sparse", {
            let pax =
                [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9223372036854775807")];
            Tar::default().entry(Entry::pax(b'x', &pax)).entry(Entry::file("holes", b"x")).end()
        }),
        refused("t9-eight-exbibytes", "tar", "", {
            // Base 256, as GNU writes sizes that octal cannot hold.
            let entry =
                Entry::file("huge", b"").raw(124, &[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
            Tar::default().entry(entry).end()
        }),
        refused("t10-entries", "limit", "100000", {
            let entry = Tar::default().entry(Entry::file("a", b"")).cut();
            Tar::default().bytes(&entry.repeat(100_001)).end()
        }),
        refused("t10-depth", "limit", "", named(&"d/".repeat(5000))),
        refused("t10-component", "limit", "", named(&"n".repeat(300))),
    ];
    run_rows(&world, rows);
    world.finish();
}

#[test]
fn odd_but_harmless_tars_are_served_with_plain_modes() {
    let world = World::start(&[]);
    let rows = vec![
        taken("t5-modes", &[("locked/x", "1"), ("program", "3"), ("setuid", "2")], {
            Tar::default()
                .entry(Entry::folder("locked").mode(0))
                .entry(Entry::file("locked/x", b"1").mode(0))
                .entry(Entry::pax(b'x', &[("SCHILY.xattr.security.capability", "\u{1}\u{2}")]))
                .entry(Entry::file("setuid", b"2").mode(0o7777).uid(1000))
                .entry(Entry::file("program", b"3").mode(0o755).uid(1000))
                .end()
        })
        .check(|_, world| {
            let object = world.larder.wait_ready("OCIRepository", NAMESPACE, "t5-modes");
            let plain = gunzip(&fetch_artifact(&object));
            for entry in tar::Archive::new(plain.as_slice()).entries().unwrap() {
                let mut entry = entry.unwrap();
                assert!(entry.pax_extensions().unwrap().is_none(), "attributes are dropped");
                let header = entry.header();
                let mode = header.mode().unwrap();
                assert!([0o600, 0o700, 0o750].contains(&mode), "{:?}: {mode:o}", entry.path());
                assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
            }
        }),
        taken("t6-duplicates", &[("a", "last")], {
            Tar::default().entry(Entry::file("a", b"first")).entry(Entry::file("a", b"last")).end()
        }),
        taken("t6-cases-and-forms", &[("A", "1"), ("a", "2"), ("e\u{301}", "3"), ("\u{e9}", "4")], {
            Tar::default()
                .entry(Entry::file("\u{e9}", "4".as_bytes()))
                .entry(Entry::file("a", b"2"))
                .entry(Entry::file("A", b"1"))
                .entry(Entry::file("e\u{301}", b"3"))
                .entry(Entry::file("a", b"2"))
                .end()
        })
        .check(|_, world| {
            let object = world.larder.wait_ready("OCIRepository", NAMESPACE, "t6-cases-and-forms");
            let plain = gunzip(&fetch_artifact(&object));
            let mut archive = tar::Archive::new(plain.as_slice());
            let names: Vec<Vec<u8>> =
                archive.entries().unwrap().map(|e| e.unwrap().path_bytes().into_owned()).collect();
            let mut sorted = names.clone();
            sorted.sort();
            assert_eq!(names, sorted, "in byte order");
        }),
        Row::new("t4-devices-of-an-image", |up| {
            // Of a container image a device is dropped and a hard link becomes a copy.
            let tar = Tar::default()
                .entry(Entry::new(b'3', "dev/null", b""))
                .entry(Entry::new(b'6', "fifo", b""))
                .entry(Entry::file("a", b"x"))
                .entry(Entry::hard_link("b", "a"))
                .end();
            let bytes = gzip(&tar);
            let layer = up.add_blob(REPOSITORY, &bytes);
            let config = json!({
                "architecture": "amd64", "os": "linux", "config": {},
                "rootfs": { "type": "layers", "diff_ids": [larder::digest::Digest::sha256(&tar).to_string()] },
            })
            .to_string();
            let mut document = manifest(&json!([descriptor(LAYER, &layer, bytes.len())]));
            document["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
            let digest = up.add_blob(REPOSITORY, config.as_bytes());
            document["config"] = descriptor("application/vnd.oci.image.config.v1+json", &digest, config.len());
            up.push_manifest(&document);
            Outcome::Succeeds(files(&[("a", "x"), ("b", "x")]))
        }),
    ];
    run_rows(&world, rows);
    // What was made of locked folders can be removed again.
    let object = world.larder.wait_ready("OCIRepository", NAMESPACE, "t5-modes");
    let tree = world.larder.data.join("source").join(NAMESPACE).join("t5-modes");
    assert!(tree.join(hex_of(text(&object, "/status/artifact/digest"))).is_dir());
    world.delete("t5-modes");
    world.larder.wait_gone("OCIRepository", NAMESPACE, "t5-modes");
    eventually("the trees of a deleted object to go", || if tree.exists() { Err(format!("{tree:?}")) } else { Ok(()) });
    world.finish();
}
