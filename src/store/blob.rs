//! A blob's bytes, mapped.

use bytes::Bytes;

use crate::digest::Digest;

/// A held blob: verified, mapped, kept alive (also when it is unlinked meanwhile) as long as this lives.
#[derive(Clone)]
pub struct Blob {
    digest: Digest,
    bytes: Bytes,
}

impl Blob {
    /// Its name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The mapping, for a socket's write(2): a page that cannot be read ends the write, not the process.
    /// Slices share it.
    pub fn mapped(&self) -> Bytes {
        self.bytes.clone()
    }

    /// Copies `range` out with pread: for readers in user space (TLS, hashing, unpacking).
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let _ = (offset, buffer);
        todo!()
    }

    /// The whole blob copied into memory with pread; for bounded, small blobs (configs, config layers).
    pub fn to_vec(&self) -> std::io::Result<Vec<u8>> {
        todo!()
    }

    /// A reader over pread, from the start.
    pub fn reader(&self) -> impl std::io::Read + Send + 'static {
        std::io::empty()
    }
}
