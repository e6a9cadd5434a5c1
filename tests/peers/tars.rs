//! A layer that passes through is judged by Larder and unpacked by somebody else. So, for well-formed and hostile tars:
//! what Larder publishes as a tree is what Python's tarfile, GNU tar and Go's archive/tar find in the artifact it serves.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    docker_registry::Artifact,
    documents::{NAMESPACE, World},
    need::{find, need},
    support::{
        announce,
        fixtures::{Entry, Files, Tar, files, files_below, gzip, gzip_members, hex_of, sha256, tar_of},
        larder::{condition_of, fetch_artifact, stdout_of, text},
    },
};

/// What must become of a layer.
#[derive(Clone, Debug)]
enum Expect {
    /// It is the artifact itself, with these files.
    Same(Files),
    /// The artifact is another tar, with these files.
    Rewritten(Files),
    /// OCIArtifactLayerOperationFailed.
    Refused,
    /// Refused or rewritten, but never passed through: its readers differ.
    NotSame,
    /// Anything, so long as all readers agree.
    Agreed,
}

fn one() -> Files {
    files(&[("a.yaml", "x: 1\n")])
}

fn a() -> Entry {
    Entry::file("a.yaml", b"x: 1\n")
}

fn tar(entries: impl IntoIterator<Item = Entry>) -> Vec<u8> {
    gzip(&entries.into_iter().fold(Tar::default(), Tar::entry).end())
}

fn cases() -> Vec<(&'static str, Vec<u8>, Expect)> {
    use Expect::{Agreed, NotSame, Refused, Rewritten, Same};
    let deep = files(&[("a/b/c.yaml", "1"), ("a/d.yaml", "2"), ("e.yaml", "")]);
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
    let long_files = files(&[(&long, "x: 1\n")]);
    let short = || Entry::file("short", b"x: 1\n");
    let with_b = |text: &str| files(&[("a.yaml", "x: 1\n"), ("b", text)]);
    let sparse = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "4096")];
    let plain = tar_of(&deep);
    let mut trailing = gzip(&tar_of(&one()));
    trailing.extend_from_slice(b"not gzip");
    let mut after_end = tar_of(&one());
    after_end.extend_from_slice(&tar_of(&files(&[("hidden.yaml", "y: 2\n")])));
    let mut padded = tar_of(&one());
    padded.resize(10_240, 0);
    let mut flipped = tar_of(&one());
    flipped[0] ^= 1;
    vec![
        ("folders", gzip(&plain), Same(deep.clone())),
        ("members", gzip_members(&plain, &[100, 512, 700]), Same(deep)),
        ("dot-slash", tar([Entry::folder("."), Entry::file("./a.yaml", b"x: 1\n")]), Same(one())),
        ("odd-modes", tar([a().mode(0o751).uid(1000).mtime(1_700_000_000)]), Same(one())),
        ("unsorted", tar([Entry::file("b", b"2"), a()]), Same(with_b("2"))),
        ("padded", gzip(&padded), Same(one())),
        ("case", tar([a(), Entry::file("A.yaml", b"y")]), Same(files(&[("a.yaml", "x: 1\n"), ("A.yaml", "y")]))),
        ("pax-path", tar([Entry::pax(b'x', &[("path", &long)]), short()]), Same(long_files.clone())),
        ("pax-times", tar([Entry::pax(b'x', &[("mtime", "1700000000.5"), ("size", "5")]), a()]), Same(one())),
        ("gnu", tar([a().gnu()]), Same(one())),
        ("gnu-long", tar([Entry::gnu_long(b'L', &long), short().gnu()]), Agreed),
        ("prefix", tar([short().raw(345, b"folder")]), Agreed),
        ("v7", tar([a().v7().raw(156, b"\0")]), Agreed),
        ("v7-folder", tar([Entry::new(0, "folder/", b"").v7(), a()]), Agreed),
        ("base-256", tar([a().raw(124, b"\x80\0\0\0\0\0\0\0\0\0\0\x05")]), Agreed),
        ("empty", tar([]), Agreed),
        ("no-end", gzip(&Tar::default().entry(a()).cut()), Agreed),
        ("one-zero-block", gzip(&Tar::default().entry(a()).bytes(&[0; 512]).cut()), Agreed),
        ("zero-block-inside", gzip(&Tar::default().entry(a()).bytes(&[0; 512]).entry(short()).end()), Agreed),
        ("setuid", tar([a().mode(0o4755)]), Rewritten(one())),
        ("sticky", tar([Entry::folder("d").mode(0o1777), a()]), Rewritten(one())),
        ("unreadable", tar([a().mode(0)]), Rewritten(one())),
        ("symlink", tar([a(), Entry::symlink("l", "/canary")]), Rewritten(one())),
        (
            "symlink-folder",
            tar([Entry::symlink("d", "/canary"), Entry::file("d/f", b"y")]),
            Rewritten(files(&[("d/f", "y")])),
        ),
        ("duplicate", tar([a(), Entry::file("b", b"old"), Entry::file("b", b"new")]), Rewritten(with_b("new"))),
        ("xattr", tar([Entry::pax(b'x', &[("SCHILY.xattr.security.capability", "x")]), a()]), Rewritten(one())),
        ("comment", tar([Entry::pax(b'x', &[("comment", "hello")]), a()]), Rewritten(one())),
        ("global-comment", tar([Entry::pax(b'g', &[("comment", "hello")]), a()]), NotSame),
        ("global-path", tar([Entry::pax(b'g', &[("path", "other")]), a(), short()]), NotSame),
        ("pax-size", tar([Entry::pax(b'x', &[("size", "3")]), a()]), NotSame),
        ("pax-twice", tar([Entry::pax(b'x', &[("path", "p")]), Entry::pax(b'x', &[("path", "q")]), short()]), NotSame),
        ("contiguous", tar([Entry::new(b'7', "a.yaml", b"x: 1\n")]), NotSame),
        ("unknown-type", tar([a(), Entry::new(b'Z', "z", b"y")]), NotSame),
        ("file-with-slash", tar([Entry::file("b/", b"y"), a()]), NotSame),
        ("folder-with-content", tar([Entry::new(b'5', "d/", b"y"), a()]), NotSame),
        ("unclean", tar([Entry::file("a//b/./c", b"y")]), NotSame),
        ("control", tar([Entry::file("a\nb", b"y")]), NotSame),
        ("second-tar", gzip(&after_end), NotSame),
        ("gzip-garbage", trailing, NotSame),
        ("parent", tar([Entry::file("../x", b"y")]), Refused),
        ("parent-inside", tar([Entry::file("a/../../x", b"y")]), Refused),
        ("only-parent", tar([Entry::folder("..")]), Refused),
        ("absolute", tar([Entry::file("/canary/x", b"y")]), Refused),
        ("backslash", tar([Entry::file("a\\..\\x", b"y")]), Refused),
        ("no-name", tar([Entry::file("", b"y")]), Refused),
        ("pax-parent", tar([Entry::pax(b'x', &[("path", "../x")]), short()]), Refused),
        ("hard-link", tar([a(), Entry::hard_link("l", "a.yaml")]), Refused),
        ("hard-link-out", tar([Entry::hard_link("l", "/etc/hostname")]), Refused),
        ("fifo", tar([a(), Entry::new(b'6', "p", b"")]), Refused),
        ("character-device", tar([a(), Entry::new(b'3', "c", b"")]), Refused),
        ("block-device", tar([a(), Entry::new(b'4', "b", b"")]), Refused),
        ("file-as-folder", tar([Entry::file("a", b"1"), Entry::file("a/b", b"2")]), Refused),
        ("sparse-gnu", tar([Entry::new(b'S', "s", b"").gnu()]), Refused),
        ("sparse-pax", tar([Entry::pax(b'x', &sparse), Entry::file("s", &[b'0'; 512])]), Refused),
        ("pax-malformed", tar([Entry::new(b'x', "PaxHeaders.0/x", b"99 path=x\n"), short()]), Refused),
        ("pax-large", tar([Entry::pax(b'x', &[("path", &"p".repeat(2 << 20))]), short()]), Refused),
        ("long-component", tar([Entry::gnu_long(b'L', &"n".repeat(300)), short().gnu()]), Refused),
        ("truncated", gzip(&Tar::default().entry(a().stated_size(5000)).cut()), Refused),
        ("huge-size", tar([a().stated_size(0o77_777_777_777)]), Refused),
        ("checksum", gzip(&flipped), Refused),
        ("cut-gzip", gzip(&plain)[..60].to_vec(), Refused),
    ]
}

#[test]
fn what_may_pass_through_is_the_same_to_every_reader() {
    need!("python3", "tar");
    let root = tempfile::tempdir().expect("folder");
    let readers = Readers::new(root.path());
    for (name, layer, expect) in cases() {
        if let Expect::Same(files) = expect {
            let wanted: Listing =
                files.iter().map(|(path, bytes)| (path.clone(), sha256(bytes)[7..].to_owned())).collect();
            for (reader, found) in readers.read(name, &layer) {
                assert_eq!(found, wanted, "{reader} reads {name} differently");
            }
        }
    }
}

#[test]
fn every_reader_finds_in_an_artifact_what_larder_published() {
    need!("docker-registry", "python3", "tar");
    let world = World::new();
    let cases = cases();
    let mut objects = Vec::new();
    for (name, layer, _) in &cases {
        world.registry.push("tars", name, &Artifact::flux(layer.clone()));
        objects.push(world.oci_repository(name, "tars", json!({ "ref": { "tag": name } })));
    }
    world.write(&objects);
    let readers = Readers::new(world.path());
    let larder = world.serve(&[]);
    let mut wrong = Vec::new();
    for (name, layer, expect) in &cases {
        let object = larder.wait("OCIRepository", NAMESPACE, name, |object| {
            condition_of(object, "Ready")["status"] == "True" || condition_of(object, "FetchFailed")["status"] == "True"
        });
        if let Err(why) = judge(&larder.data, &readers, name, layer, expect, &object) {
            wrong.push(format!("{name}: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} layers went wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(!Path::new("/canary").exists());
}

/// Compares what became of one layer with what was expected, and the readers with each other.
fn judge(
    data: &Path,
    readers: &Readers,
    name: &str,
    layer: &[u8],
    expect: &Expect,
    object: &Value,
) -> Result<(), String> {
    let failed = condition_of(object, "FetchFailed");
    if failed["status"] == "True" {
        if failed["reason"] != "OCIArtifactLayerOperationFailed" {
            return Err(format!("refused with {failed}"));
        }
        return match expect {
            Expect::Refused | Expect::NotSame | Expect::Agreed => Ok(()),
            Expect::Same(_) | Expect::Rewritten(_) => Err(format!("refused: {}", failed["message"])),
        };
    }
    let artifact = fetch_artifact(object);
    let digest = text(object, "/status/artifact/digest");
    let same = digest == sha256(layer);
    let tree = files_below(&data.join("source/default").join(name).join(hex_of(digest)).join("contents"));
    match expect {
        Expect::Refused => return Err("accepted".to_owned()),
        Expect::NotSame if same => return Err("passed through".to_owned()),
        Expect::Same(_) if !same => return Err("rewritten".to_owned()),
        Expect::Rewritten(_) if same => return Err("passed through".to_owned()),
        Expect::Same(files) | Expect::Rewritten(files) if *files != tree => {
            return Err(format!("published {:?} instead of {:?}", tree.keys(), files.keys()));
        }
        _ => {}
    }
    let published = tree.iter().map(|(path, bytes)| (path.clone(), sha256(bytes)[7..].to_owned())).collect();
    for (reader, found) in readers.read(name, &artifact) {
        if found != published {
            return Err(format!("{reader} finds {found:?}, published is {published:?}"));
        }
    }
    Ok(())
}

type Listing = BTreeMap<String, String>;

/// The other readers of tars.
struct Readers {
    folder: PathBuf,
    go: Option<PathBuf>,
}

impl Readers {
    fn new(root: &Path) -> Self {
        let folder = root.join("readers");
        std::fs::create_dir(&folder).expect("folder");
        std::fs::write(folder.join("entries.py"), include_str!("tar_entries.py")).expect("file");
        std::fs::write(folder.join("entries.go"), include_str!("tar_entries.go")).expect("file");
        let go = find("go").map(|program| {
            let mut build = Command::new(program);
            build.args(["build", "-o", "go-entries", "entries.go"]).current_dir(&folder);
            // Nothing is fetched: the program needs the standard library alone.
            build.env("GOFLAGS", "-mod=mod").env("GOPROXY", "off").env("GOTOOLCHAIN", "local");
            stdout_of(build);
            folder.join("go-entries")
        });
        if go.is_none() {
            announce("SKIPPED: Go's archive/tar is not compared: no go on PATH");
        }
        Self { folder, go }
    }

    /// What each reader finds: regular files by name, with the hash of their content.
    fn read(&self, name: &str, artifact: &[u8]) -> Vec<(&'static str, Listing)> {
        let file = self.folder.join(format!("{name}.tar.gz"));
        std::fs::write(&file, artifact).expect("file");
        let mut python = Command::new("python3");
        python.arg(self.folder.join("entries.py")).arg(&file);
        let mut found = vec![("Python", listed(&stdout_of(python)))];
        if let Some(program) = &self.go {
            let mut go = Command::new(program);
            go.arg(&file);
            found.push(("Go", listed(&stdout_of(go))));
        }
        let folder = self.folder.join(name);
        std::fs::create_dir(&folder).expect("folder");
        let mut gnu = Command::new("tar");
        gnu.args(["--no-same-owner", "--no-same-permissions", "-xzf"]).arg(&file).arg("-C").arg(&folder);
        stdout_of(gnu);
        let hashes = files_below(&folder).into_iter().map(|(path, bytes)| (path, sha256(&bytes)[7..].to_owned()));
        found.push(("GNU tar", hashes.collect()));
        found
    }
}

fn listed(json: &[u8]) -> Listing {
    let found: BTreeMap<String, (String, String)> = serde_json::from_slice(json).expect("JSON");
    found.into_iter().map(|(name, (kind, value))| (name, if kind == "file" { value } else { kind })).collect()
}
