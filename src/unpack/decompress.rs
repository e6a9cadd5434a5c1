//! From a layer's bytes to the tar in it. gzip, zstd and plain tar are told apart by their bytes, never by a media type.
//!
//! What comes out is bounded before it is written: bytes by [`Limits`], zstd windows by [`WINDOW_BYTES`]. Everything in
//! the input is decoded and checked: every gzip member and zstd frame, their checksums, and what follows the last one
//! (zeros after gzip, nothing after zstd). Sizes that the input states of itself are hints; a lie costs time, not memory.
//!
//! Any number of threads may decompress at once; a zstd window over 8 MiB is held by one of them at a time.

use std::{
    borrow::Cow,
    io::{self, BufRead, BufReader, Read},
    sync::{Mutex, PoisonError},
};

pub use super::data::{Budget, Limits};
use super::{
    data::{Data, MEMORY_BYTES, Sink, give_buffer, take_buffer},
    entries, gunzip,
};
use crate::{class::Class, digest::Digest, store::StoreError};

/// The largest zstd window taken: 128 MiB, zstd's own default (windowLog 27).
pub const WINDOW_BYTES: u64 = 1 << 27;

/// zstd windows up to this size are decoded by any number of threads at once, larger ones one at a time, so that they
/// cost at most [`WINDOW_BYTES`] together.
const WIDE_WINDOW_BYTES: u64 = 8 << 20;

static WIDE_WINDOW: Mutex<()> = Mutex::new(());

const ZSTD_MAGIC: u32 = 0xfd2f_b528;

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// gzip (RFC 1952).
    Gzip,
    /// zstd (RFC 8878).
    Zstd,
    /// Not compressed.
    Tar,
}

/// Why a layer could not be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum DecompressError {
    /// None of the three formats.
    #[error("the layer is not gzip, zstd or tar: {0}")]
    Format(String),
    /// Damaged, cut short, or followed by something else.
    #[error("the {format} layer is damaged: {what}")]
    Corrupt {
        /// gzip or zstd.
        format: &'static str,
        /// What is wrong, and where.
        what: Cow<'static, str>,
    },
    /// More came out than allowed.
    #[error("the layer expands to more than {cap} bytes, the cap for one layer")]
    TooLarge {
        /// The cap in bytes.
        cap: u64,
    },
    /// More came out of all layers than allowed.
    #[error("the layers together expand to more than {cap} bytes, the cap for one artifact")]
    TotalTooLarge {
        /// The cap in bytes.
        cap: u64,
    },
    /// A zstd frame that needs too much memory.
    #[error("the zstd layer needs a window of {bytes} bytes, the cap is {WINDOW_BYTES}")]
    Window {
        /// The window that the frame states.
        bytes: u64,
    },
    /// The layer could not be read.
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    /// The output could not be kept.
    #[error("cannot keep the decompressed layer")]
    Spool(#[source] Box<StoreError>),
}

impl DecompressError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Format(_) | Self::Corrupt { .. } => Class::Layer,
            Self::TooLarge { .. } | Self::TotalTooLarge { .. } | Self::Window { .. } => Class::Limit,
            Self::Read(_) => Class::Disk,
            Self::Spool(error) => error.class(),
        }
    }

    pub(crate) fn gzip(what: impl Into<Cow<'static, str>>) -> Self {
        Self::Corrupt { format: "gzip", what: what.into() }
    }

    fn zstd(what: impl Into<Cow<'static, str>>) -> Self {
        Self::Corrupt { format: "zstd", what: what.into() }
    }
}

/// A decompressed layer.
#[derive(Debug)]
pub struct Decompressed {
    /// How it was packed.
    pub format: Format,
    /// The tar.
    pub data: Data,
    /// Whether every common gzip reader takes the framing as it is; `false` for other formats.
    pub common_gzip: bool,
    /// The sha256 of the tar, where it was asked for.
    pub diff_id: Option<Digest>,
}

/// Tells the format from a layer's first 512 bytes (or all, where there are fewer).
pub fn sniff(head: &[u8]) -> Result<Format, DecompressError> {
    if let [0x1f, 0x8b, ..] = head {
        return Ok(Format::Gzip);
    }
    if let Some(magic) = head.first_chunk().map(|m| u32::from_le_bytes(*m))
        && (magic == ZSTD_MAGIC || is_skippable(magic))
    {
        return Ok(Format::Zstd);
    }
    match head.first_chunk() {
        Some(block) if entries::is_header_or_end(block) => Ok(Format::Tar),
        _ if head.is_empty() => Err(DecompressError::Format("it is empty".into())),
        _ => Err(DecompressError::Format(format!("it begins with {}", hex::encode(&head[..head.len().min(8)])))),
    }
}

/// Decompresses a layer that is in memory.
pub fn decompress(layer: &[u8], limits: Limits<'_>) -> Result<Decompressed, DecompressError> {
    let format = sniff(&layer[..layer.len().min(512)])?;
    match format {
        Format::Gzip => {
            if let Some(data) = gunzip::whole(layer, limits)? {
                return finish_whole(format, data, limits);
            }
        }
        Format::Zstd => {
            if let Some(data) = unzstd_whole(layer, limits)? {
                return finish_whole(format, data, limits);
            }
        }
        Format::Tar => {}
    }
    decompress_as(format, layer, layer.len() as u64, limits)
}

/// Decompresses a layer as it is read.
pub fn decompress_reader(layer: impl Read, limits: Limits<'_>) -> Result<Decompressed, DecompressError> {
    let mut layer = BufReader::with_capacity(256 << 10, layer);
    let head = peek(&mut layer, 512)?;
    let format = sniff(head.get_ref())?;
    decompress_as(format, head.chain(layer), MEMORY_BYTES, limits)
}

fn finish_whole(format: Format, data: Data, limits: Limits<'_>) -> Result<Decompressed, DecompressError> {
    let diff_id = if limits.diff_id { Some(data.sha256().map_err(DecompressError::Read)?) } else { None };
    Ok(Decompressed { format, data, common_gzip: format == Format::Gzip, diff_id })
}

fn decompress_as(
    format: Format,
    mut layer: impl BufRead,
    hint: u64,
    limits: Limits<'_>,
) -> Result<Decompressed, DecompressError> {
    let mut sink = Sink::new(limits, hint.saturating_mul(4).min(1 << 20));
    let mut common_gzip = false;
    match format {
        Format::Gzip => common_gzip = gunzip::stream(&mut layer, &mut sink)?,
        Format::Zstd => unzstd(&mut layer, &mut sink)?,
        Format::Tar => loop {
            let piece = fill(&mut layer)?;
            if piece.is_empty() {
                break;
            }
            let len = piece.len();
            sink.write(piece)?;
            layer.consume(len);
        },
    }
    let (data, diff_id) = sink.finish()?;
    Ok(Decompressed { format, data, common_gzip, diff_id })
}

/// `fill_buf`, gone on with after an interrupt.
pub(crate) fn fill<R: BufRead + ?Sized>(reader: &mut R) -> Result<&[u8], DecompressError> {
    loop {
        match reader.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(DecompressError::Read(error)),
        }
    }
    // Asked twice because a borrow cannot leave a loop; the second answer is the buffer that is full already.
    reader.fill_buf().map_err(DecompressError::Read)
}

/// Takes up to `len` bytes, fewer only at the end.
fn peek(reader: &mut impl Read, len: usize) -> Result<io::Cursor<Vec<u8>>, DecompressError> {
    let mut head = Vec::with_capacity(len);
    reader.take(len as u64).read_to_end(&mut head).map_err(DecompressError::Read)?;
    Ok(io::Cursor::new(head))
}

/// RFC 8878, 3.1.2.
const fn is_skippable(magic: u32) -> bool {
    magic & 0xffff_fff0 == 0x184d_2a50
}

/// What a frame's header states (RFC 8878, 3.1.1.1).
struct Frame {
    window: u64,
    content: Option<u64>,
}

/// How many bytes the header has that begins with these five.
fn frame_header_len(start: &[u8; 5]) -> usize {
    let descriptor = start[4];
    let single_segment = descriptor & 0x20 != 0;
    let content = match descriptor >> 6 {
        0 => usize::from(single_segment),
        n => 1 << n,
    };
    5 + usize::from(!single_segment) + [0, 1, 2, 4][usize::from(descriptor & 3)] + content
}

/// Reads a frame's header and refuses what must not be decoded. `header` has exactly the header's length.
fn frame(header: &[u8]) -> Result<Frame, DecompressError> {
    let cut = || DecompressError::zstd("it ends inside a frame's header");
    let descriptor = *header.get(4).ok_or_else(cut)?;
    let single_segment = descriptor & 0x20 != 0;
    let mut at = 5;
    let mut window = 0;
    if !single_segment {
        let byte = *header.get(5).ok_or_else(cut)?;
        let base = 1u64 << (10 + (byte >> 3));
        window = base + base / 8 * u64::from(byte & 7);
        at += 1;
    }
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    if header.get(at..at + dictionary).ok_or_else(cut)?.iter().any(|b| *b != 0) {
        return Err(DecompressError::zstd("it needs a dictionary, which no layer may"));
    }
    let field = &header[at + dictionary..];
    let mut bytes = [0; 8];
    bytes.get_mut(..field.len()).ok_or_else(cut)?.copy_from_slice(field);
    let content = match field.len() {
        0 => None,
        // RFC 8878, 3.1.1.1.4: the two-byte form counts from 256.
        2 => Some(u64::from_le_bytes(bytes) + 256),
        _ => Some(u64::from_le_bytes(bytes)),
    };
    if single_segment {
        window = content.unwrap_or(0);
    }
    if window > WINDOW_BYTES {
        return Err(DecompressError::Window { bytes: window });
    }
    Ok(Frame { window, content })
}

/// Decodes in one go where every frame states its size and they are few bytes together; `None` asks for streaming.
fn unzstd_whole(layer: &[u8], limits: Limits<'_>) -> Result<Option<Data>, DecompressError> {
    let mut rest = layer;
    let mut total = 0u64;
    while let Some(start) = rest.first_chunk::<5>() {
        let magic = u32::from_le_bytes([start[0], start[1], start[2], start[3]]);
        if magic == ZSTD_MAGIC {
            let header = rest.get(..frame_header_len(start)).unwrap_or(rest);
            let Some(content) = frame(header)?.content else { return Ok(None) };
            total = total.saturating_add(content);
        } else if !is_skippable(magic) {
            return Ok(None);
        }
        match zstd::zstd_safe::find_frame_compressed_size(rest) {
            Ok(len) if len > 0 && len <= rest.len() => rest = &rest[len..],
            _ => return Ok(None),
        }
    }
    if !rest.is_empty() || total > MEMORY_BYTES || total > limits.bytes {
        return Ok(None);
    }
    let mut buffer = take_buffer(total as usize);
    let decoded = zstd::bulk::Decompressor::new()
        .and_then(|mut decoder| decoder.decompress_to_buffer(layer, &mut buffer[..total as usize]));
    match decoded {
        Ok(len) if len as u64 == total => {
            if let Some(shared) = limits.shared {
                shared.take(total)?;
            }
            Ok(Some(Data::memory(buffer, 0, len)))
        }
        _ => {
            give_buffer(buffer);
            Ok(None)
        }
    }
}

/// Decodes frame after frame.
fn unzstd(layer: &mut impl BufRead, sink: &mut Sink<'_>) -> Result<(), DecompressError> {
    let mut first = true;
    loop {
        let start = peek(layer, 5)?.into_inner();
        if start.is_empty() && !first {
            return Ok(());
        }
        let Some(head) = start.first_chunk::<5>() else {
            return Err(DecompressError::zstd("it ends inside a frame's header"));
        };
        let magic = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        if is_skippable(magic) {
            let mut size = vec![head[4]];
            size.extend(peek(layer, 3)?.into_inner());
            let size = size.first_chunk().map(|s| u32::from_le_bytes(*s)).unwrap_or(u32::MAX);
            skip(layer, u64::from(size))?;
        } else if magic == ZSTD_MAGIC {
            let mut header = start.clone();
            header.extend(peek(layer, frame_header_len(head) - 5)?.into_inner());
            let window = frame(&header)?.window;
            let _alone =
                (window > WIDE_WINDOW_BYTES).then(|| WIDE_WINDOW.lock().unwrap_or_else(PoisonError::into_inner));
            unzstd_frame(&header, layer, sink)?;
        } else {
            return Err(DecompressError::zstd("something that is not a frame follows the last frame"));
        }
        first = false;
    }
}

fn skip(layer: &mut impl BufRead, mut len: u64) -> Result<(), DecompressError> {
    while len > 0 {
        let piece = fill(layer)?.len() as u64;
        if piece == 0 {
            return Err(DecompressError::zstd("it ends inside a skippable frame"));
        }
        let step = piece.min(len);
        layer.consume(step as usize);
        len -= step;
    }
    Ok(())
}

/// Decodes one frame whose header has been taken.
fn unzstd_frame(header: &[u8], layer: &mut impl BufRead, sink: &mut Sink<'_>) -> Result<(), DecompressError> {
    use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};
    let failed = |error: io::Error| DecompressError::zstd(error.to_string());
    let mut decoder = Decoder::new().map_err(failed)?;
    decoder.set_parameter(DParameter::WindowLogMax(27)).map_err(failed)?;
    let mut out = vec![0; 128 << 10];
    let mut input = InBuffer::around(header);
    while input.pos < input.src.len() {
        decoder.run(&mut input, &mut OutBuffer::around(&mut out[..])).map_err(failed)?;
    }
    loop {
        let piece = fill(layer)?;
        let end = piece.is_empty();
        let mut input = InBuffer::around(piece);
        let mut output = OutBuffer::around(&mut out[..]);
        let left = decoder.run(&mut input, &mut output).map_err(failed)?;
        let (taken, written) = (input.pos, output.pos());
        layer.consume(taken);
        sink.write(&out[..written])?;
        if left == 0 {
            return Ok(());
        }
        if end && written == 0 {
            return Err(DecompressError::zstd("it ends inside a frame"));
        }
    }
}

#[cfg(test)]
mod tests;
