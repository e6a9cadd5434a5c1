//! Go's `filepath.Match` on Unix, on bytes: `*`, `?`, `[a-z]`, `[^a-z]`, `\`. Where it is stricter or laxer than other
//! globs, this is too (`[!a]` does not negate, `[]a]` is no class, a broken class is found only when it is reached),
//! since what an ignore rule leaves out decides an artifact's bytes.

use super::Meter;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// The pattern is malformed.
    BadPattern,
    /// The budget is spent.
    Spent,
}

/// Whether all of `name` matches `pattern`. Linear in the product of the two lengths, and metered: a step for each
/// character of the pattern each time it is looked at.
pub(super) fn matches(mut pattern: &[u8], mut name: &[u8], meter: &mut Meter) -> Result<bool, NoAnswer> {
    'pattern: while !pattern.is_empty() {
        let (star, chunk, rest) = scan_chunk(pattern, meter)?;
        pattern = rest;
        if star && chunk.is_empty() {
            // A trailing star takes the rest, within the segment.
            return Ok(!name.contains(&b'/'));
        }
        if let Some(left) = match_chunk(chunk, name, meter)?
            && (left.is_empty() || !pattern.is_empty())
        {
            name = left;
            continue;
        }
        if star {
            for at in 0..name.len() {
                if name[at] == b'/' {
                    break;
                }
                if let Some(left) = match_chunk(chunk, &name[at + 1..], meter)? {
                    if pattern.is_empty() && !left.is_empty() {
                        continue;
                    }
                    name = left;
                    continue 'pattern;
                }
            }
        }
        return Ok(false);
    }
    Ok(name.is_empty())
}

/// Splits off the next part without a star, and whether a star stands before it.
fn scan_chunk<'p>(mut pattern: &'p [u8], meter: &mut Meter) -> Result<(bool, &'p [u8], &'p [u8]), NoAnswer> {
    let mut star = false;
    while let [b'*', rest @ ..] = pattern {
        pattern = rest;
        star = true;
        meter.take(1)?;
    }
    let mut in_class = false;
    let mut at = 0;
    while at < pattern.len() {
        meter.take(1)?;
        match pattern[at] {
            b'\\' if at + 1 < pattern.len() => at += 1,
            b'[' => in_class = true,
            b']' => in_class = false,
            b'*' if !in_class => break,
            _ => {}
        }
        at += 1;
    }
    Ok((star, &pattern[..at], &pattern[at..]))
}

/// What is left of `text` after `chunk`, if it begins with it. After a mismatch the chunk is read on, for its errors.
fn match_chunk<'t>(mut chunk: &[u8], mut text: &'t [u8], meter: &mut Meter) -> Result<Option<&'t [u8]>, NoAnswer> {
    let mut failed = false;
    while let [first, rest @ ..] = chunk {
        meter.take(1)?;
        failed = failed || text.is_empty();
        match first {
            b'[' => {
                let mut c = 0;
                if !failed {
                    let (char, length) = decode(text);
                    c = char;
                    text = &text[length..];
                }
                let (matched, after) = class(rest, c, meter)?;
                chunk = after;
                failed = failed || !matched;
            }
            b'?' => {
                if !failed {
                    failed = text[0] == b'/';
                    text = &text[decode(text).1..];
                }
                chunk = rest;
            }
            _ => {
                let (literal, after) = match (first, rest) {
                    (b'\\', []) => return Err(NoAnswer::BadPattern),
                    (b'\\', [escaped, after @ ..]) => (escaped, after),
                    _ => (first, rest),
                };
                if !failed {
                    failed = *literal != text[0];
                    text = &text[1..];
                }
                chunk = after;
            }
        }
    }
    Ok(if failed { None } else { Some(text) })
}

/// Reads a class behind its `[`: whether `c` is in it, and what follows.
fn class<'p>(mut chunk: &'p [u8], c: u32, meter: &mut Meter) -> Result<(bool, &'p [u8]), NoAnswer> {
    let mut negated = false;
    if let [b'^', rest @ ..] = chunk {
        negated = true;
        chunk = rest;
    }
    let mut matched = false;
    let mut ranges = 0;
    loop {
        meter.take(1)?;
        if let [b']', rest @ ..] = chunk
            && ranges > 0
        {
            return Ok((matched != negated, rest));
        }
        let (low, rest) = class_char(chunk)?;
        chunk = rest;
        let mut high = low;
        if let [b'-', rest @ ..] = chunk {
            (high, chunk) = class_char(rest)?;
        }
        matched = matched || (low <= c && c <= high);
        ranges += 1;
    }
}

/// One end of a range. Something must follow it, if only the `]`.
fn class_char(chunk: &[u8]) -> Result<(u32, &[u8]), NoAnswer> {
    let chunk = match chunk {
        [] | [b'-' | b']', ..] | [b'\\'] => return Err(NoAnswer::BadPattern),
        [b'\\', rest @ ..] => rest,
        _ => chunk,
    };
    let (c, length) = decode(chunk);
    let rest = &chunk[length..];
    if (c == INVALID && length == 1) || rest.is_empty() {
        return Err(NoAnswer::BadPattern);
    }
    Ok((c, rest))
}

/// What Go's decoder gives for bytes that are not UTF-8, each alone.
const INVALID: u32 = 0xfffd;

/// The first character of a text that is not empty, and its length.
fn decode(text: &[u8]) -> (u32, usize) {
    let length = match text.first() {
        Some(0..=0x7f) => return (u32::from(text[0]), 1),
        Some(0xc0..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xff) => 4,
        _ => return (INVALID, 1),
    };
    let char = text.get(..length).and_then(|bytes| std::str::from_utf8(bytes).ok()).and_then(|s| s.chars().next());
    char.map_or((INVALID, 1), |c| (u32::from(c), length))
}
