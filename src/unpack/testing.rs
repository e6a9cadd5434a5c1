//! Tars for tests, built byte by byte, so that they may be wrong in any way.

use super::entries::{Index, Rules, index};

/// A tar being built.
#[derive(Clone, Default)]
pub struct TarBuilder(pub Vec<u8>);

/// A header that can be bent.
#[derive(Clone)]
pub struct Header(pub [u8; 512]);

impl Header {
    pub fn new(name: &str, typeflag: u8, size: u64) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(if typeflag == b'5' { 0o755 } else { 0o644 });
        header.set_uid(1000);
        header.set_gid(1000);
        header.set_mtime(1_700_000_000);
        let mut block = *header.as_bytes();
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[156] = typeflag;
        Self(block).sum()
    }

    pub fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self.sum()
    }

    pub fn mode(self, mode: u32) -> Self {
        self.put(100, format!("{mode:07o}\0").as_bytes())
    }

    pub fn gnu(self) -> Self {
        self.put(257, b"ustar  \0")
    }

    fn sum(mut self) -> Self {
        self.0[148..156].copy_from_slice(b"        ");
        let sum: u32 = self.0.iter().map(|b| u32::from(*b)).sum();
        self.0[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self
    }
}

impl TarBuilder {
    pub fn raw(mut self, header: Header, data: &[u8]) -> Self {
        self.0.extend_from_slice(&header.0);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(Header::new(name, b'0', data.len() as u64), data)
    }

    pub fn executable(self, name: &str, data: &[u8]) -> Self {
        self.raw(Header::new(name, b'0', data.len() as u64).mode(0o755), data)
    }

    pub fn dir(self, name: &str) -> Self {
        self.raw(Header::new(name, b'5', 0), b"")
    }

    pub fn link(self, typeflag: u8, name: &str, target: &str) -> Self {
        self.raw(Header::new(name, typeflag, 0).put(157, target.as_bytes()), b"")
    }

    /// A header of extended type with `body`.
    pub fn extended(self, typeflag: u8, body: &[u8]) -> Self {
        self.raw(Header::new("extended", typeflag, body.len() as u64), body)
    }

    pub fn pax(self, records: &[(&str, &str)]) -> Self {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.extended(b'x', &body)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A PAX record.
pub fn record(key: &str, value: &str) -> Vec<u8> {
    (1..).map(|len| format!("{len} {key}={value}\n")).find(|r| r.starts_with(&format!("{} ", r.len()))).unwrap().into()
}

/// One plain gzip member.
pub fn gzip(data: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// An artifact's index that must be there.
pub fn indexed(tar: &[u8]) -> Index {
    index(tar, ARTIFACT).unwrap()
}

pub const ARTIFACT: Rules = Rules { image: false, entries: 100_000 };
pub const IMAGE: Rules = Rules { image: true, entries: 100_000 };

/// Text that compresses about as well as manifests do.
pub fn manifests(len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 200);
    let mut n = 0u64;
    while out.len() < len {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(
            format!("  - name: metric-{:x}\n    expr: sum(rate(x{}[5m]))\n", n >> 40, n >> 60).as_bytes(),
        );
    }
    out.truncate(len);
    out
}
