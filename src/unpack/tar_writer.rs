//! Tars that depend on nothing but their content: sorted by the caller, no owner, no time, modes by rule.
//!
//! Format: ustar headers; a name that is longer than 100 bytes or not ASCII goes into a PAX record before its header,
//! which Go's archive/tar, GNU tar and Python's tarfile all read the same way. Directories have no slash at the end of
//! their name, as in Flux's artifacts. The golden digests in the tests pin the bytes: they belong to the product's
//! promise of equal digests within a major version.

use super::entries::BLOCK;

/// The modes that entries get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    /// Directories.
    pub dir: u32,
    /// Files.
    pub file: u32,
    /// Files that anybody may execute.
    pub executable: u32,
}

impl Modes {
    /// What Flux gives the entries of its artifacts.
    pub const ARTIFACT: Self = Self { dir: 0o750, file: 0o600, executable: 0o700 };
    /// What `larder push` gives the entries of its layers.
    pub const PUSHED: Self = Self { dir: 0o755, file: 0o644, executable: 0o755 };
}

/// What is written under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Dir,
    /// A file.
    File {
        /// Whether it may be executed.
        executable: bool,
        /// Its length in bytes.
        len: u64,
    },
}

/// Appends the header of an entry to `out`.
pub fn header(out: &mut Vec<u8>, path: &str, what: What, modes: Modes) {
    let (typeflag, mode, size) = match what {
        What::Dir => (b'5', modes.dir, 0),
        What::File { executable: true, len } => (b'0', modes.executable, len),
        What::File { executable: false, len } => (b'0', modes.file, len),
    };
    if path.len() <= 100 && path.is_ascii() {
        out.extend_from_slice(&block(path.as_bytes(), typeflag, mode, size));
        return;
    }
    let record = record("path", path);
    out.extend_from_slice(&block(b"././@PaxHeader", b'x', 0o644, record.len() as u64));
    out.extend_from_slice(&record);
    pad(out, record.len() as u64);
    // Only readers without PAX see this name.
    let short: Vec<u8> = path.bytes().map(|b| if b.is_ascii() { b } else { b'_' }).take(100).collect();
    let short = short.strip_suffix(b"/").unwrap_or(&short);
    out.extend_from_slice(&block(short, typeflag, mode, size));
}

/// Appends the zeros that follow `len` bytes of data.
pub fn pad(out: &mut Vec<u8>, len: u64) {
    let over = (len % BLOCK as u64) as usize;
    if over > 0 {
        out.resize(out.len() + BLOCK - over, 0);
    }
}

/// What ends an archive: two blocks of zeros.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// A PAX record; its length counts its own digits.
fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let mut len = rest.len();
    while len != rest.len() + len.to_string().len() {
        len = rest.len() + len.to_string().len();
    }
    format!("{len}{rest}").into_bytes()
}

fn block(name: &[u8], typeflag: u8, mode: u32, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{size:011o}").as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[typeflag]);
    put(257, b"ustar\x0000");
    put(329, b"0000000");
    put(337, b"0000000");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
