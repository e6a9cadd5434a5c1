//! The fields of a header block, read strictly.

use super::BLOCK;

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// POSIX sums bytes as unsigned, some old writers as signed; every reader takes both.
pub fn checksum_matches(block: &[u8; BLOCK]) -> bool {
    let Ok(stated) = octal(&block[148..156]) else { return false };
    let mut unsigned = 8 * u64::from(b' ');
    let mut high = 0u64;
    for byte in block[..148].iter().chain(&block[156..]) {
        unsigned += u64::from(*byte);
        high += u64::from(*byte >> 7);
    }
    stated == unsigned || Some(stated) == unsigned.checked_sub(high * 256)
}

/// A number in octal: spaces, digits, then only spaces and zeros; all blank is 0. Stricter than any of the readers.
pub fn octal(field: &[u8]) -> Result<u64, ()> {
    let start = field.iter().position(|b| *b != b' ').unwrap_or(field.len());
    let digits = field[start..].iter().take_while(|b| (b'0'..=b'7').contains(*b)).count();
    let (digits, rest) = field[start..].split_at(digits);
    if rest.iter().any(|b| *b != 0 && *b != b' ') {
        return Err(());
    }
    // At most 12 digits in any field: 36 bits.
    Ok(digits.iter().fold(0, |n, d| n << 3 | u64::from(d - b'0')))
}

/// A number in octal, or positive in base 256 with the one first byte that all readers know.
pub fn number(field: &[u8]) -> Result<u64, ()> {
    let [0x80, rest @ ..] = field else { return octal(field) };
    let (high, low) = rest.split_at(rest.len().saturating_sub(8));
    if !is_zero(high) {
        return Err(());
    }
    let value = low.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
    if value > i64::MAX as u64 { Err(()) } else { Ok(value) }
}

/// Up to the first zero.
pub fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
}

/// Whether the numbers that do not matter here (ids, time, devices) are such that every reader takes them.
pub fn common_numbers(block: &[u8; BLOCK]) -> bool {
    let signed = |field: &[u8]| number(field).is_ok() || field.iter().take(4).all(|b| *b == 0xff);
    let has_devices = &block[257..262] == b"ustar";
    signed(&block[108..116])
        && signed(&block[116..124])
        && signed(&block[136..148])
        && (!has_devices || number(&block[329..337]).is_ok() && number(&block[337..345]).is_ok())
}
