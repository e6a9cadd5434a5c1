//! gzip (RFC 1952), strictly: every member decoded, its checksum and length compared, and only zeros after the last.
//!
//! Two decoders. [`stream`] takes anything, member after member, with zlib-rs. [`whole`] is about three times as fast:
//! it gives libdeflate the whole input and an output buffer of the size that the input states, and answers `None`
//! whenever anything is unusual, so that [`stream`] decides. Both accept the same inputs.
//!
//! # How `whole` knows where a member ends
//! libdeflate's safe interface does not say how much input it took, so bytes behind an early end of the member would go
//! unseen, although every other reader decodes or refuses them. So the member is not decoded as it is: a stored block
//! of random bytes is put in front of its deflate data, and its trailer is replaced by the one which that longer output
//! must have, computed from the old trailer by combining CRCs. libdeflate compares the trailer where it finds the end
//! of the data; an end anywhere but right before the last eight bytes meets a trailer that nobody can have foreseen
//! (one chance in 2^32, and a length to match besides), and the decoding fails.
//!
//! The random block lengthens the window, so a distance that reaches before the true start would be accepted. Only the
//! first 32 KiB of output can hold one: they are decoded by zlib-rs as well, which refuses it, and compared.
//!
//! # Members whose length is stated
//! Larder's own encoder (`artifact::gzip`) states each member's length in an extra field (`LD`), so that members decode
//! in parallel. The statement is a hint: each member must end exactly there, or [`stream`] decides.

use std::{io::BufRead, num::Wrapping};

use flate2::{Decompress, FlushDecompress, Status};
use rayon::prelude::*;

use super::{
    data::{Data, Limits, MEMORY_BYTES, Sink, give_buffer, take_buffer},
    decompress::{DecompressError, fill},
};

/// The subfield of the extra field that states a member's length: four bytes, little-endian.
pub const LENGTH_SUBFIELD: [u8; 2] = *b"LD";

/// CRC32 and ISIZE.
const TRAILER: usize = 8;

/// A header's optional fields are taken up to this length each; real ones hold a file name.
const MAX_FIELD: usize = 64 << 10;

/// Go's reader refuses names and comments that do not fit 512 bytes, their zero included.
const COMMON_FIELD: usize = 512;

/// The window of deflate (RFC 1951): no match reaches further back.
const WINDOW: usize = 32 << 10;

/// Output up to this size goes through zlib-rs alone.
const SMALL: usize = 2 * WINDOW;

/// The random block in front: header of a stored block (RFC 1951, 3.2.4) and eight bytes.
const NONCE: usize = 8;
const STORED: usize = 5 + NONCE;

/// What a member's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    /// Its length in bytes.
    len: usize,
    /// Whether every common reader takes it.
    common: bool,
    /// The whole member's length, where stated.
    member_len: Option<u32>,
}

fn byte(reader: &mut impl BufRead, taken: &mut Vec<u8>) -> Result<u8, DecompressError> {
    let first = *fill(reader)?.first().ok_or_else(|| DecompressError::gzip("it ends inside a member's header"))?;
    reader.consume(1);
    taken.push(first);
    Ok(first)
}

/// Takes a member's header (RFC 1952, 2.3).
fn header(reader: &mut impl BufRead) -> Result<Header, DecompressError> {
    let mut taken = Vec::with_capacity(32);
    for _ in 0..10 {
        byte(reader, &mut taken)?;
    }
    if taken[..3] != [0x1f, 0x8b, 8] {
        return Err(DecompressError::gzip("a member's header is expected where there is none"));
    }
    let flags = taken[3];
    if flags & 0xe0 != 0 {
        return Err(DecompressError::gzip("a member's header uses reserved flags"));
    }
    let mut common = true;
    let mut member_len = None;
    if flags & 4 != 0 {
        let len = u16::from_le_bytes([byte(reader, &mut taken)?, byte(reader, &mut taken)?]);
        let start = taken.len();
        for _ in 0..len {
            byte(reader, &mut taken)?;
        }
        member_len = stated_length(&taken[start..]);
    }
    for flag in [8, 16] {
        if flags & flag != 0 {
            let start = taken.len();
            while byte(reader, &mut taken)? != 0 {
                if taken.len() - start > MAX_FIELD {
                    return Err(DecompressError::gzip("a member's header has an endless name or comment"));
                }
            }
            common &= taken.len() - start <= COMMON_FIELD;
        }
    }
    if flags & 2 != 0 {
        let sum = crc32fast::hash(&taken).to_le_bytes();
        if [byte(reader, &mut taken)?, byte(reader, &mut taken)?] != sum[..2] {
            return Err(DecompressError::gzip("a member's header does not match its checksum"));
        }
        common = false;
    }
    Ok(Header { len: taken.len(), common, member_len })
}

/// The length in an extra field's `LD` subfield (RFC 1952, 2.3.1.1).
fn stated_length(mut extra: &[u8]) -> Option<u32> {
    while let [id1, id2, len1, len2, rest @ ..] = extra {
        let len = usize::from(u16::from_le_bytes([*len1, *len2]));
        let (field, next) = rest.split_at_checked(len)?;
        if [*id1, *id2] == LENGTH_SUBFIELD {
            return field.try_into().ok().map(u32::from_le_bytes);
        }
        extra = next;
    }
    None
}

/// Decodes member after member. Answers whether every common reader takes the headers as they are.
pub(crate) fn stream(layer: &mut impl BufRead, sink: &mut Sink<'_>) -> Result<bool, DecompressError> {
    let mut inflate = Decompress::new(false);
    let mut out = vec![0; 128 << 10];
    let mut common = true;
    loop {
        common &= header(layer)?.common;
        inflate.reset(false);
        let mut crc = libdeflater::Crc::new();
        let mut size = Wrapping(0u32);
        loop {
            let piece = fill(layer)?;
            let end = piece.is_empty();
            let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
            let status = inflate
                .decompress(piece, &mut out, FlushDecompress::None)
                .map_err(|_| DecompressError::gzip("a member holds invalid deflate data"))?;
            layer.consume((inflate.total_in() - before_in) as usize);
            let written = &out[..(inflate.total_out() - before_out) as usize];
            crc.update(written);
            size += written.len() as u32;
            sink.write(written)?;
            match status {
                Status::StreamEnd => break,
                _ if end && written.is_empty() => return Err(DecompressError::gzip("it ends inside a member")),
                _ => {}
            }
        }
        let mut trailer = Vec::with_capacity(TRAILER);
        for _ in 0..TRAILER {
            byte(layer, &mut trailer).map_err(|_| DecompressError::gzip("it ends inside a member's trailer"))?;
        }
        if trailer[..4] != crc.sum().to_le_bytes() || trailer[4..] != size.0.to_le_bytes() {
            return Err(DecompressError::gzip("a member does not match its checksum or length"));
        }
        match fill(layer)?.first() {
            None => return Ok(common),
            Some(0) => return zeros(layer).map(|()| common),
            Some(0x1f) => {}
            Some(_) => return Err(DecompressError::gzip("something follows the last member")),
        }
    }
}

/// Only zeros to the end.
fn zeros(layer: &mut impl BufRead) -> Result<(), DecompressError> {
    loop {
        let piece = fill(layer)?;
        if piece.is_empty() {
            return Ok(());
        }
        if piece.iter().any(|b| *b != 0) {
            return Err(DecompressError::gzip("something follows the last member"));
        }
        let len = piece.len();
        layer.consume(len);
    }
}

/// A member whose place, and whose output's place, are known beforehand.
struct Member<'a> {
    /// The deflate data.
    data: &'a [u8],
    crc: u32,
    out_len: usize,
}

/// Cuts the layer into its members: one, or several of stated length. `None` where that is not possible.
fn members(layer: &[u8]) -> Option<Vec<Member<'_>>> {
    let mut members = Vec::new();
    let mut rest = layer;
    let mut total = 0usize;
    while !rest.is_empty() {
        let head = header(&mut &rest[..rest.len().min(1024)]).ok().filter(|h| h.common)?;
        let len = head.member_len.map_or(rest.len(), |len| len as usize);
        let (member, next) = rest.split_at_checked(len)?;
        let (data, trailer) = member.get(head.len..)?.split_last_chunk::<TRAILER>()?;
        let (crc, size) = trailer.split_first_chunk::<4>()?;
        let out_len = u32::from_le_bytes(size.try_into().ok()?) as usize;
        // Deflate cannot expand by more than 1032; a larger claim is a lie.
        if out_len > data.len().saturating_mul(1032) + 64 {
            return None;
        }
        total = total.checked_add(out_len).filter(|t| *t as u64 <= MEMORY_BYTES)?;
        members.push(Member { data, crc: u32::from_le_bytes(*crc), out_len });
        rest = next;
    }
    Some(members)
}

/// Decodes a layer in memory in one go; `None` asks for [`stream`].
pub(crate) fn whole(layer: &[u8], limits: Limits<'_>) -> Result<Option<Data>, DecompressError> {
    let Some(members) = members(layer) else { return Ok(None) };
    let total: usize = members.iter().map(|m| m.out_len).sum();
    if total as u64 > limits.bytes {
        return Ok(None);
    }
    if let [member] = &members[..]
        && member.out_len > SMALL
    {
        let mut buffer = take_buffer(NONCE + total);
        let decoded = libdeflate(member, &mut buffer[..NONCE + total]);
        return keep(buffer, NONCE, total, decoded, limits);
    }
    let mut buffer = take_buffer(total);
    let mut places = Vec::with_capacity(members.len());
    let mut rest = &mut buffer[..total];
    for member in &members {
        let (place, next) = rest.split_at_mut(member.out_len);
        places.push((member, place));
        rest = next;
    }
    let decode = |(member, place): (&Member<'_>, &mut [u8])| {
        if member.out_len <= SMALL {
            return zlib(member, place);
        }
        let mut own = take_buffer(NONCE + place.len());
        let decoded = libdeflate(member, &mut own[..NONCE + place.len()]);
        if decoded.is_some() {
            place.copy_from_slice(&own[NONCE..NONCE + place.len()]);
        }
        give_buffer(own);
        decoded
    };
    let decoded = if let [_] = &places[..] {
        places.into_iter().map(decode).collect::<Option<Vec<()>>>()
    } else {
        places.into_par_iter().map(decode).collect::<Option<Vec<()>>>()
    };
    keep(buffer, 0, total, decoded.map(|_| ()), limits)
}

fn keep(
    buffer: Vec<u8>,
    start: usize,
    len: usize,
    decoded: Option<()>,
    limits: Limits<'_>,
) -> Result<Option<Data>, DecompressError> {
    if decoded.is_none() {
        give_buffer(buffer);
        return Ok(None);
    }
    if let Some(shared) = limits.shared {
        shared.take(len as u64)?;
    }
    Ok(Some(Data::memory(buffer, start, len)))
}

/// Decodes a small member, which must end exactly where it should.
fn zlib(member: &Member<'_>, out: &mut [u8]) -> Option<()> {
    let mut inflate = Decompress::new(false);
    // One byte more than is wanted, so that a longer output shows.
    let mut own = vec![0; member.out_len + 1];
    let status = inflate.decompress(member.data, &mut own, FlushDecompress::Finish).ok()?;
    let ended = status == Status::StreamEnd
        && inflate.total_in() == member.data.len() as u64
        && inflate.total_out() == member.out_len as u64
        && libdeflater::crc32(&own[..member.out_len]) == member.crc;
    ended.then(|| out.copy_from_slice(&own[..member.out_len]))
}

/// Decodes a member into `out[NONCE..]`; the module's doc says how, and why it may be believed.
fn libdeflate(member: &Member<'_>, out: &mut [u8]) -> Option<()> {
    let mut nonce = [0; NONCE];
    rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty()).ok().filter(|n| *n == NONCE)?;
    let total = (NONCE + member.out_len) as u32;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&nonce);
    crc.combine(&crc32fast::Hasher::new_with_initial_len(member.crc, member.out_len as u64));

    const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let len = HEADER.len() + STORED + member.data.len() + TRAILER;
    let mut input = take_buffer(len);
    let parts: [&[u8]; 6] = [
        &HEADER,
        // BFINAL 0, BTYPE 00, LEN, NLEN.
        &[0, NONCE as u8, 0, !(NONCE as u8), 0xff],
        &nonce,
        member.data,
        &crc.finalize().to_le_bytes(),
        &total.to_le_bytes(),
    ];
    let mut at = 0;
    for part in parts {
        input[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    let decoded = DECODER.with_borrow_mut(|decoder| decoder.gzip_decompress(&input[..len], out));
    give_buffer(input);
    decoded.ok().filter(|n| *n == out.len())?;

    let mut inflate = Decompress::new(false);
    let mut start = [0; WINDOW];
    inflate.decompress(member.data, &mut start, FlushDecompress::None).ok()?;
    let len = inflate.total_out() as usize;
    (len == WINDOW && start == out[NONCE..NONCE + WINDOW]).then_some(())
}

thread_local! {
    static DECODER: std::cell::RefCell<libdeflater::Decompressor> =
        std::cell::RefCell::new(libdeflater::Decompressor::new());
}
