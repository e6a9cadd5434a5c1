//! Tars, well-formed and hostile, and their compressed forms, made byte for byte so that a test knows what it sends.

use std::{collections::BTreeMap, io::Write};

use sha2::{Digest as _, Sha256};

/// A folder's files by path.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Files from pairs of path and text.
pub fn files(pairs: &[(&str, &str)]) -> Files {
    pairs.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect()
}

/// `sha256:<hex>` of `bytes`.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The hexadecimal part of `<algorithm>:<hex>`.
pub fn hex_of(digest: &str) -> &str {
    digest.split_once(':').expect("algorithm and hex").1
}

/// One gzip member without name or time.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).expect("a Vec takes all");
    out.finish().expect("a Vec takes all")
}

/// `bytes` cut at `cuts`, each part a gzip member of its own, one after the other (RFC 1952 section 2.2).
pub fn gzip_members(bytes: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut bounds = vec![0];
    bounds.extend_from_slice(cuts);
    bounds.push(bytes.len());
    bounds.windows(2).flat_map(|pair| gzip(&bytes[pair[0]..pair[1]])).collect()
}

/// One zstd frame.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).expect("a Vec takes all")
}

/// The decompressed bytes of all gzip members of `bytes`.
pub fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    std::io::copy(&mut flate2::read::MultiGzDecoder::new(bytes), &mut out).expect("gzip");
    out
}

/// The tar that a packager makes of `files`: every folder above a file first, sorted, modes 0755 and 0644, no times.
pub fn tar_of(files: &Files) -> Vec<u8> {
    let mut tar = Tar::default();
    let mut folders = std::collections::BTreeSet::new();
    for (path, bytes) in files {
        for (end, _) in path.match_indices('/') {
            if folders.insert(&path[..end]) {
                tar = tar.entry(Entry::folder(&path[..end]));
            }
        }
        tar = tar.entry(Entry::file(path, bytes));
    }
    tar.end()
}

/// The regular files in the gzip tar `bytes`; a leading `./` is dropped.
pub fn files_in(bytes: &[u8]) -> Files {
    let plain = gunzip(bytes);
    let mut found = Files::new();
    for entry in tar::Archive::new(plain.as_slice()).entries().expect("tar") {
        let mut entry = entry.expect("tar entry");
        if entry.header().entry_type().is_file() {
            let path = String::from_utf8(entry.path_bytes().into_owned()).expect("UTF-8 name");
            let mut content = Vec::new();
            std::io::copy(&mut entry, &mut content).expect("tar content");
            found.insert(path.trim_start_matches("./").to_owned(), content);
        }
    }
    found
}

/// The regular files below `root`; other kinds of file, symlinks too, are shown by a word for their kind.
pub fn files_below(root: &std::path::Path) -> Files {
    fn walk(root: &std::path::Path, at: &std::path::Path, found: &mut Files) {
        for entry in std::fs::read_dir(at).unwrap_or_else(|error| panic!("cannot list {}: {error}", at.display())) {
            let entry = entry.expect("directory entry");
            let kind = entry.file_type().expect("file type");
            let path = entry.path();
            if kind.is_dir() {
                walk(root, &path, found);
                continue;
            }
            let name = path.strip_prefix(root).expect("below root").to_str().expect("UTF-8 name").to_owned();
            let content = if kind.is_file() { std::fs::read(&path).expect("readable") } else { b"(special)".to_vec() };
            found.insert(name, content);
        }
    }
    let mut found = Files::new();
    walk(root, root, &mut found);
    found
}

/// Writes `files` below `root`.
pub fn write_files(root: &std::path::Path, files: &Files) {
    for (path, bytes) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("folder");
        std::fs::write(path, bytes).expect("file");
    }
}

/// One entry of a tar, its header field by field; nothing is checked.
#[derive(Clone, Debug)]
pub struct Entry {
    name: Vec<u8>,
    kind: u8,
    mode: u32,
    size: Option<u64>,
    link: Vec<u8>,
    uid: u64,
    mtime: u64,
    magic: [u8; 8],
    content: Vec<u8>,
    raw: Vec<(usize, Vec<u8>)>,
}

impl Entry {
    /// An entry with the type flag `kind`, POSIX magic, mode 0644.
    pub fn new(kind: u8, name: &str, content: &[u8]) -> Self {
        Self {
            name: name.as_bytes().to_vec(),
            kind,
            mode: 0o644,
            size: None,
            link: Vec::new(),
            uid: 0,
            mtime: 0,
            magic: *b"ustar\x0000",
            content: content.to_vec(),
            raw: Vec::new(),
        }
    }

    /// A regular file.
    pub fn file(name: &str, content: &[u8]) -> Self {
        Self::new(b'0', name, content)
    }

    /// A directory, its name ending in a slash.
    pub fn folder(name: &str) -> Self {
        Self::new(b'5', &format!("{name}/"), b"").mode(0o755)
    }

    /// A symbolic link.
    pub fn symlink(name: &str, target: &str) -> Self {
        Self::new(b'2', name, b"").link(target)
    }

    /// A hard link.
    pub fn hard_link(name: &str, target: &str) -> Self {
        Self::new(b'1', name, b"").link(target)
    }

    /// A PAX header for the next entry (`x`) or all after it (`g`), its records well-formed.
    pub fn pax(kind: u8, records: &[(&str, &str)]) -> Self {
        let content: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        Self::new(kind, "PaxHeaders.0/x", &content)
    }

    /// GNU's long name (`L`) or long link target (`K`) for the next entry.
    pub fn gnu_long(kind: u8, name: &str) -> Self {
        let mut content = name.as_bytes().to_vec();
        content.push(0);
        Self::new(kind, "././@LongLink", &content).gnu()
    }

    /// Its mode.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Its owner.
    pub fn uid(mut self, uid: u64) -> Self {
        self.uid = uid;
        self
    }

    /// Its time, in seconds.
    pub fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    /// The size that the header states, whatever the content is.
    pub fn stated_size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    /// Its link target.
    pub fn link(mut self, target: &str) -> Self {
        self.link = target.as_bytes().to_vec();
        self
    }

    /// GNU's magic instead of POSIX's.
    pub fn gnu(mut self) -> Self {
        self.magic = *b"ustar  \0";
        self
    }

    /// No magic at all: the format of Unix version 7.
    pub fn v7(mut self) -> Self {
        self.magic = [0; 8];
        self
    }

    /// Puts `bytes` at `offset` of the header, after all else but the checksum.
    pub fn raw(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.raw.push((offset, bytes.to_vec()));
        self
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut header = [0_u8; 512];
        let mut put = |offset: usize, limit: usize, bytes: &[u8]| {
            assert!(bytes.len() <= limit, "{bytes:?} does not fit its field of {limit} bytes");
            header[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0, 100, &self.name);
        put(100, 8, format!("{:07o}", self.mode).as_bytes());
        put(108, 8, format!("{:07o}", self.uid).as_bytes());
        put(116, 8, b"0000000");
        put(124, 12, format!("{:011o}", self.size.unwrap_or(self.content.len() as u64)).as_bytes());
        put(136, 12, format!("{:011o}", self.mtime).as_bytes());
        put(156, 1, &[self.kind]);
        put(157, 100, &self.link);
        put(257, 8, &self.magic);
        for (offset, bytes) in &self.raw {
            put(*offset, 512 - offset, bytes);
        }
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(&self.content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
}

/// One PAX record, `<length> <key>=<value>\n`, its length counting itself.
pub fn pax_record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n").into_bytes()
}

/// A tar under construction.
#[derive(Clone, Debug, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    /// Appends an entry.
    pub fn entry(mut self, entry: Entry) -> Self {
        entry.write(&mut self.0);
        self
    }

    /// Appends bytes as they are.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The tar so far, without an end.
    pub fn cut(self) -> Vec<u8> {
        self.0
    }

    /// The tar with its end: two blocks of zeros.
    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

#[test]
fn the_builder_makes_tars_that_the_reader_reads_back() {
    let wanted = files(&[("a/b/c.yaml", "x: 1\n"), ("a/d.yaml", ""), ("e.yaml", &"y".repeat(1025))]);
    assert_eq!(files_in(&gzip(&tar_of(&wanted))), wanted);
    assert_eq!(files_in(&gzip_members(&tar_of(&wanted), &[7, 512, 513])), wanted);
    let name = "n".repeat(300);
    let long = Tar::default().entry(Entry::gnu_long(b'L', &name)).entry(Entry::file("short", b"z").gnu()).end();
    assert_eq!(files_in(&gzip(&long)), files(&[(&name, "z")]));
    let pax = Tar::default().entry(Entry::pax(b'x', &[("path", &name)])).entry(Entry::file("short", b"z")).end();
    assert_eq!(files_in(&gzip(&pax)), files(&[(&name, "z")]));
}

#[test]
fn a_pax_record_counts_its_own_length() {
    assert_eq!(pax_record("a", "b"), b"6 a=b\n");
    assert_eq!(pax_record("abc", "d"), b"8 abc=d\n");
    assert_eq!(pax_record("abcd", "e"), b"9 abcd=e\n");
    assert_eq!(pax_record("abcde", "f"), b"11 abcde=f\n");
}
