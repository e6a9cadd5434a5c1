//! The pinned gzip encoder: equal input, equal bytes, on every machine and every version of one major.
//!
//! Format: one member for each [`CHUNK`] of input, so that members are compressed, and later decoded, in parallel; each
//! compressed by libdeflate at level 6. A member's header has no time, no name, OS 255, and an extra field `LD` with
//! the member's whole length in four bytes, little-endian (RFC 1952, 2.3.1.1; readers skip what they do not know).
//! Empty input is one empty member. Another chunk, level or encoder is a new major version.

use libdeflater::{CompressionLvl, Compressor};
use rayon::prelude::*;

use crate::unpack::gunzip::LENGTH_SUBFIELD;

/// How much input one member holds. A match reaches 32 KiB back, so cutting here costs about 0.3 % of the size.
pub const CHUNK: usize = 1 << 20;

const LEVEL: i32 = 6;

const HEADER: usize = 20;

/// Compresses what is written and hands it on in order.
pub struct GzipWriter<E, W: FnMut(&[u8]) -> Result<(), E>> {
    write: W,
    chunks: Vec<Vec<u8>>,
    batch: usize,
    written: bool,
}

impl<E, W: FnMut(&[u8]) -> Result<(), E>> GzipWriter<E, W> {
    /// A writer that hands compressed bytes to `write`.
    pub fn new(write: W) -> Self {
        // Memory is bounded by the batch, parallelism is not starved at its end.
        Self { write, chunks: Vec::new(), batch: 2 * rayon::current_num_threads(), written: false }
    }

    /// Takes the next bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), E> {
        while !bytes.is_empty() {
            let room = self.chunks.last().map_or(0, |c| CHUNK - c.len());
            if room == 0 {
                if self.chunks.len() == self.batch {
                    self.flush()?;
                }
                self.chunks.push(Vec::with_capacity(bytes.len().clamp(64 << 10, CHUNK)));
                continue;
            }
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            if let Some(chunk) = self.chunks.last_mut() {
                chunk.extend_from_slice(now);
            }
            bytes = later;
        }
        Ok(())
    }

    /// Compresses what is left.
    pub fn finish(mut self) -> Result<(), E> {
        if self.chunks.is_empty() && !self.written {
            self.chunks.push(Vec::new());
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), E> {
        let members: Vec<Vec<u8>> = self.chunks.par_iter().map(|chunk| member(chunk)).collect();
        self.chunks.clear();
        self.written = true;
        members.iter().try_for_each(|member| (self.write)(member))
    }
}

thread_local! {
    static COMPRESSOR: std::cell::RefCell<Compressor> = std::cell::RefCell::new(Compressor::new(
        CompressionLvl::new(LEVEL).unwrap_or_default(),
    ));
}

/// One member.
fn member(chunk: &[u8]) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    let len = COMPRESSOR.with_borrow_mut(|compressor| {
        out.resize(HEADER + compressor.deflate_compress_bound(chunk.len()), 0);
        match compressor.deflate_compress(chunk, &mut out[HEADER..]) {
            Ok(len) => len,
            Err(error) => unreachable!("the output has the size that the encoder asked for: {error}"),
        }
    });
    out.truncate(HEADER + len);
    out.extend_from_slice(&libdeflater::crc32(chunk).to_le_bytes());
    out.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
    let total = (out.len() as u32).to_le_bytes();
    out[..12].copy_from_slice(&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 8, 0]);
    out[12..14].copy_from_slice(&LENGTH_SUBFIELD);
    out[14..16].copy_from_slice(&[4, 0]);
    out[16..20].copy_from_slice(&total);
    out
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::{
        digest::Digest,
        unpack::decompress::{Limits, decompress},
    };

    fn gzip(input: &[u8], step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = GzipWriter::new(|bytes: &[u8]| {
            out.extend_from_slice(bytes);
            Ok::<(), Infallible>(())
        });
        for piece in input.chunks(step) {
            writer.write(piece).unwrap();
        }
        writer.finish().unwrap();
        out
    }

    #[test]
    fn bytes_depend_on_nothing_but_input() {
        let input: Vec<u8> = (0..9 * CHUNK as u64 + 12_345).map(|i| (i * i / 7 % 61) as u8).collect();
        let golden = gzip(&input, CHUNK);
        for (threads, step) in [(1, 511), (2, 1 << 20), (5, usize::MAX)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| gzip(&input, step)) == golden, "{threads} threads, pieces of {step}");
        }
        let read = decompress(&golden, Limits::in_memory(64 << 20)).unwrap();
        assert!(read.data.as_slice().unwrap() == input && read.common_gzip);
        let streamed: Vec<u8> = {
            use std::io::Read;
            let mut out = Vec::new();
            flate2::read::MultiGzDecoder::new(&golden[..]).read_to_end(&mut out).unwrap();
            out
        };
        assert!(streamed == input);
    }

    #[test]
    fn golden_digests() {
        for (input, digest) in [
            (Vec::new(), "sha256:828778051963f4960153c5ffb628c8a586e9a1f7bebc52f90e9e18861c0f8751"),
            (b"larder\n".repeat(300_000), "sha256:c5210e80219f173bdc56fe96a47a071e32fae5036063e8359f1022bec8ea63d1"),
        ] {
            assert_eq!(Digest::sha256(&gzip(&input, 1000)).to_string(), digest);
        }
    }
}
