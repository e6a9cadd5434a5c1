use std::io::{Read, Write};

use super::*;
use crate::unpack::{
    data::ReadAt,
    testing::{TarBuilder, gzip, manifests},
};

const CAP: Limits<'static> = Limits::in_memory(64 << 20);

/// Both ways in, which must agree.
fn both(layer: &[u8], limits: Limits<'_>) -> Result<(Vec<u8>, bool), DecompressError> {
    let whole = decompress(layer, limits);
    let streamed = decompress_reader(Trickle(layer), limits);
    match (whole, streamed) {
        (Ok(a), Ok(b)) => {
            let bytes = a.data.as_slice().unwrap().to_vec();
            assert!(bytes == b.data.as_slice().unwrap());
            assert_eq!((a.format, a.common_gzip), (b.format, b.common_gzip));
            Ok((bytes, a.common_gzip))
        }
        (Err(a), Err(b)) => {
            assert_eq!(a.to_string(), b.to_string());
            Err(a)
        }
        (a, b) => panic!("in memory {:?}, streamed {:?}", a.map(|d| d.data.size()), b.map(|d| d.data.size())),
    }
}

/// Gives few bytes at a time, so that every field straddles a read somewhere.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.0.len().min(buffer.len()).min(7001);
        self.0.read(&mut buffer[..len])
    }
}

/// A member with these optional fields.
fn member(flags: u8, fields: &[u8], data: &[u8]) -> Vec<u8> {
    let plain = gzip(data);
    let mut out = plain[..10].to_vec();
    out[3] = flags;
    out.extend_from_slice(fields);
    if flags & 2 != 0 {
        let sum = crc32fast::hash(&out) as u16;
        out.extend_from_slice(&sum.to_le_bytes());
    }
    out.extend_from_slice(&plain[10..]);
    out
}

#[test]
fn decodes_every_member_and_takes_only_zeros_after_them() {
    for len in [0, 1, 511, 60_000, 70_000, 3_000_000] {
        let data = manifests(len);
        let one = gzip(&data);
        assert!(both(&one, CAP).unwrap() == (data.clone(), true), "{len}");
        assert!(both(&[&one[..], &[0; 4097]].concat(), CAP).unwrap() == (data.clone(), true), "{len} and zeros");
        assert!(both(&[&one[..], &one].concat(), CAP).unwrap() == ([&data[..], &data].concat(), true), "{len} twice");
        for rest in [&b"x"[..], b"\0\0x", b"\x1f", b"\x1f\x8b\x08\x00", &one[..one.len() - 1], &one[1..]] {
            let error = both(&[&one[..], rest].concat(), CAP).unwrap_err();
            assert_eq!(error.class(), Class::Layer, "{len}, {} bytes after it: {error}", rest.len());
        }
    }
}

#[test]
fn sees_members_behind_an_end_whose_trailer_looks_right() {
    // The trailer of the last member is also right for the first, so that only the true end of the first gives it away.
    let data = manifests(200_000);
    let other = [&data[..], &[]].concat();
    let twice = [gzip(&data), gzip(&other)].concat();
    assert!(both(&twice, CAP).unwrap().0 == [&data[..], &data].concat());
    let mut junk = gzip(&data);
    let trailer = junk[junk.len() - 8..].to_vec();
    junk.extend_from_slice(b"not a member at all");
    junk.extend_from_slice(&trailer);
    assert_eq!(both(&junk, CAP).unwrap_err().class(), Class::Layer);
}

#[test]
fn refuses_damage_anywhere() {
    let data = manifests(150_000);
    let whole = gzip(&data);
    for cut in [2, 9, 10, 11, 1000, whole.len() - 9, whole.len() - 8, whole.len() - 1] {
        assert_eq!(both(&whole[..cut], CAP).unwrap_err().class(), Class::Layer, "cut at {cut}");
    }
    for at in (10..whole.len()).step_by(whole.len() / 40).chain(whole.len() - 8..whole.len()) {
        let mut bad = whole.clone();
        bad[at] ^= 0x10;
        assert_eq!(both(&bad, CAP).unwrap_err().class(), Class::Layer, "flipped at {at}");
    }
}

#[test]
fn refuses_a_match_that_reaches_before_the_start() {
    // A fixed-Huffman block: the literal 'a', then a match of length 3 at distance 4, and so on; only libdeflate sees
    // bytes there, those of the random block that is put in front of it.
    let mut bits = Bits::default();
    bits.put(0b1, 1);
    bits.put(0b01, 2);
    bits.huffman(0x30 + u32::from(b'a'), 8);
    for _ in 0..30_000 {
        bits.huffman(1, 7);
        bits.huffman(3, 5);
    }
    bits.huffman(0, 7);
    let deflate = bits.finish();
    let out_len = 1 + 3 * 30_000u32;
    let mut layer = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    layer.extend_from_slice(&deflate);
    layer.extend_from_slice(&[0; 4]);
    layer.extend_from_slice(&out_len.to_le_bytes());
    assert_eq!(
        both(&layer, CAP).unwrap_err().to_string(),
        "the gzip layer is damaged: a member holds invalid deflate data"
    );
}

#[derive(Default)]
struct Bits(Vec<u8>, u32, u32);

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        self.1 |= value << self.2;
        self.2 += count;
        while self.2 >= 8 {
            self.0.push(self.1 as u8);
            self.1 >>= 8;
            self.2 -= 8;
        }
    }

    /// Huffman codes come highest bit first.
    fn huffman(&mut self, code: u32, count: u32) {
        self.put(code.reverse_bits() >> (32 - count), count);
    }

    fn finish(mut self) -> Vec<u8> {
        self.put(0, 7);
        self.0
    }
}

#[test]
fn lies_about_the_length_cost_nothing() {
    let data = manifests(100_000);
    for (claim, len) in [(0u32, 100_000usize), (1, 100_000), (99_999, 100_000), (100_001, 100_000), (u32::MAX, 100_000)]
    {
        let mut lie = gzip(&data[..len]);
        let at = lie.len() - 4;
        lie[at..].copy_from_slice(&claim.to_le_bytes());
        let error = both(&lie, CAP).unwrap_err();
        assert_eq!(error.to_string(), "the gzip layer is damaged: a member does not match its checksum or length");
    }
    // In the extra field that states a member's length too.
    for claim in [0u32, 1, 30, 5000, u32::MAX] {
        let extra = [&[8, 0][..], b"LD", &[4, 0], &claim.to_le_bytes()].concat();
        assert!(both(&member(4, &extra, &data), CAP).unwrap() == (data.clone(), true), "{claim}");
    }
}

#[test]
fn takes_optional_fields_and_knows_which_not_every_reader_takes() {
    let data = manifests(80_000);
    let long = |n| [&vec![b'n'; n][..], &[0]].concat();
    for (flags, fields, common) in [
        (8, long(10), true),
        (8, long(511), true),
        (8, long(512), false),
        (16, long(600), false),
        (8 | 16, [long(3), long(4)].concat(), true),
        (4, vec![3, 0, 1, 2, 3], true),
        (1, vec![], true),
        (2, vec![], false),
        (4 | 8 | 2, [&[4, 0, b'X', b'Y', 0, 0][..], &long(5)].concat(), false),
    ] {
        assert!(both(&member(flags, &fields, &data), CAP).unwrap() == (data.clone(), common), "{flags}");
    }
    for (flags, fields) in [(0x20, vec![]), (8, long(70_000)), (8, vec![b'n'; 20])] {
        let layer = [&[0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255][..], &fields].concat();
        assert_eq!(both(&layer, CAP).unwrap_err().class(), Class::Layer, "{flags}");
    }
    let mut wrong_sum = member(2, &[], &data);
    wrong_sum[10] ^= 1;
    assert_eq!(both(&wrong_sum, CAP).unwrap_err().class(), Class::Layer);
}

/// L1: 10 GiB out of 10 MiB stops at the cap.
#[test]
fn stops_at_the_cap() {
    let zeros = gzip(&vec![0; 4 << 20]);
    let bomb: Vec<u8> = zeros.repeat(2500);
    let directory = tempfile::tempdir().unwrap();
    let store = crate::store::Store::open(directory.path()).unwrap();
    let limits = Limits { spool: Some(&store), ..Limits::in_memory(256 << 20) };
    let error = decompress(&bomb, limits).unwrap_err();
    assert!(matches!(error, DecompressError::TooLarge { cap } if cap == 256 << 20), "{error}");
    assert_eq!(error.class(), Class::Limit);
    let error = decompress_reader(&bomb[..], limits).unwrap_err();
    assert_eq!(error.class(), Class::Limit);
    assert_eq!(std::fs::read_dir(directory.path().join("spool")).unwrap().count(), 0);

    let data = manifests(100_000);
    for layer in [gzip(&data), zstd::bulk::compress(&data, 3).unwrap()] {
        assert!(both(&layer, Limits::in_memory(100_000)).unwrap().0 == data);
        assert_eq!(both(&layer, Limits::in_memory(99_999)).unwrap_err().class(), Class::Limit);
    }
}

#[test]
fn decodes_zstd_of_every_shape() {
    let data = manifests(300_000);
    let sized = zstd::bulk::compress(&data, 3).unwrap();
    let unsized_ = {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(&data).unwrap();
        encoder.finish().unwrap()
    };
    let skippable = [&0x184d_2a53u32.to_le_bytes()[..], &5u32.to_le_bytes(), b"12345"].concat();
    let empty = zstd::bulk::compress(b"", 3).unwrap();
    for (layer, times) in [
        (sized.clone(), 1),
        (unsized_.clone(), 1),
        ([&sized[..], &unsized_].concat(), 2),
        ([&skippable[..], &sized, &skippable, &sized].concat(), 2),
        ([&unsized_[..], &skippable].concat(), 1),
        ([&empty[..], &sized].concat(), 1),
    ] {
        assert!(both(&layer, CAP).unwrap() == (data.repeat(times), false));
    }
    for rest in
        [&b"\0"[..], b"\0\0\0\0\0\0", b"garbage", &sized[..4], &sized[..20], &sized[..sized.len() - 1], &skippable[..9]]
    {
        let error = both(&[&sized[..], rest].concat(), CAP).unwrap_err();
        assert_eq!(error.class(), Class::Layer, "{rest:?}: {error}");
    }
    let mut flipped = unsized_.clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    assert_eq!(both(&flipped, CAP).unwrap_err().class(), Class::Layer, "the checksum counts");
}

/// L5: refused by its header alone.
#[test]
fn refuses_windows_over_128_mib() {
    let frame = |descriptor: u8, rest: &[u8]| [&ZSTD_MAGIC.to_le_bytes()[..], &[descriptor], rest, &[1, 0, 0]].concat();
    // windowLog 31; windowLog 27 and an eighth; a single segment of 2 GiB.
    for (layer, window) in [
        (frame(0, &[(31 - 10) << 3]), 1u64 << 31),
        (frame(0, &[(27 - 10) << 3 | 1]), (1 << 27) + (1 << 24)),
        (frame(0x20 | 2 << 6, &(1u32 << 31).to_le_bytes()), 1 << 31),
    ] {
        let sound = zstd::bulk::compress(b"sound", 3).unwrap();
        for layer in [layer.clone(), [&sound[..], &layer].concat()] {
            let error = both(&layer, CAP).unwrap_err();
            assert!(matches!(error, DecompressError::Window { bytes } if bytes == window), "{error}");
            assert_eq!(error.class(), Class::Limit);
        }
    }
    // windowLog 27 itself is taken: an empty last block.
    assert_eq!(both(&frame(0, &[(27 - 10) << 3]), CAP).unwrap(), (vec![], false));
    let dictionary = frame(1, &[(20 - 10) << 3, 7]);
    assert_eq!(both(&dictionary, CAP).unwrap_err().class(), Class::Layer);
}

/// L6: what the bytes are counts, not what they are called.
#[test]
fn tells_formats_by_their_bytes() {
    let tar = TarBuilder::default().file("a", b"1").end();
    for (layer, format) in
        [(gzip(&tar), Format::Gzip), (zstd::bulk::compress(&tar, 3).unwrap(), Format::Zstd), (tar.clone(), Format::Tar)]
    {
        let read = decompress(&layer, CAP).unwrap();
        assert_eq!((read.format, read.data.as_slice().unwrap()), (format, &tar[..]));
        assert_eq!(both(&layer, CAP).unwrap().1, format == Format::Gzip);
    }
    for (layer, message) in [
        (&b""[..], "the layer is not gzip, zstd or tar: it is empty"),
        (b"\x7fELF\x02\x01\x01\0\0\0", "the layer is not gzip, zstd or tar: it begins with 7f454c4602010100"),
        (b"apiVersion: v1", "the layer is not gzip, zstd or tar: it begins with 61706956657273"),
    ] {
        let error = both(layer, CAP).unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}");
        assert_eq!(error.class(), Class::Layer);
    }
}

#[test]
fn hashes_what_comes_out_where_asked() {
    let data = manifests(100_000);
    let limits = Limits { diff_id: true, ..CAP };
    for layer in [gzip(&data), zstd::bulk::compress(&data, 3).unwrap()] {
        assert_eq!(decompress(&layer, limits).unwrap().diff_id, Some(Digest::sha256(&data)));
        assert_eq!(decompress_reader(&layer[..], limits).unwrap().diff_id, Some(Digest::sha256(&data)));
        assert_eq!(decompress(&layer, CAP).unwrap().diff_id, None);
    }
}

proptest::proptest! {
    #[test]
    fn never_panics_and_both_ways_agree(
        flips in proptest::collection::vec((0usize..5000, 0u8..255), 0..4),
        cut in 0usize..6000,
        kind in 0usize..3,
    ) {
        let data = manifests(90_000);
        let mut layer = match kind {
            0 => gzip(&data),
            1 => zstd::bulk::compress(&data, 3).unwrap(),
            _ => [gzip(&data[..70_000]), gzip(&data[70_000..])].concat(),
        };
        for (at, value) in flips {
            let len = layer.len();
            layer[at % len] ^= value;
        }
        layer.truncate(layer.len().saturating_sub(cut.saturating_sub(5000)));
        let limits = Limits::in_memory(1 << 20);
        let whole = decompress(&layer, limits).ok().map(|d| d.data.as_slice().unwrap().to_vec());
        let streamed = decompress_reader(&layer[..], limits).ok().map(|d| d.data.as_slice().unwrap().to_vec());
        proptest::prop_assert!(whole == streamed);
    }
}
