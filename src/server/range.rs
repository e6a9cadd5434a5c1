//! Byte ranges (RFC 9110, section 14): which part of a blob a request wants.
//!
//! Pure. One range is served; a request for several gets the whole, which section 14.2 allows and which costs a
//! client nothing but bytes, where multipart answers cost every server its share of CVEs.

/// What a `Range` header asks for, of a representation whose length is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// All of it: no range, one in another unit, several ranges, or something that is not a range.
    Whole,
    /// The bytes from the first to the last, both counted: 206. `first <= last < length`.
    Part {
        /// The first byte's offset.
        first: u64,
        /// The last byte's offset.
        last: u64,
    },
    /// A range that selects nothing: 416.
    Unsatisfiable,
}

/// Parses the value of `Range` for a representation of `length` bytes.
///
/// A last byte before the first (`bytes=500-0`) is answered as unsatisfiable rather than ignored: the
/// distribution-spec's conformance suite expects 416.
pub fn select(value: &[u8], length: u64) -> Selection {
    let Some(equals) = value.iter().position(|b| *b == b'=') else { return Selection::Whole };
    let (unit, set) = (&value[..equals], &value[equals + 1..]);
    if !unit.eq_ignore_ascii_case(b"bytes") || set.contains(&b',') {
        return Selection::Whole;
    }
    let spec = set.trim_ascii();
    let Some(dash) = spec.iter().position(|b| *b == b'-') else { return Selection::Whole };
    let (first, last) = (&spec[..dash], &spec[dash + 1..]);
    match (number(first), number(last)) {
        (Number::Absent, Number::Value(suffix)) => match suffix {
            0 => Selection::Unsatisfiable,
            // "The entire representation is used", and it has no bytes to number.
            _ if length == 0 => Selection::Whole,
            _ => Selection::Part { first: length.saturating_sub(suffix), last: length - 1 },
        },
        (Number::Value(first), _) if first >= length && !matches!(number(last), Number::Bad) => {
            Selection::Unsatisfiable
        }
        (Number::Value(first), Number::Absent) => Selection::Part { first, last: length - 1 },
        (Number::Value(first), Number::Value(last)) if first > last => Selection::Unsatisfiable,
        (Number::Value(first), Number::Value(last)) => Selection::Part { first, last: last.min(length - 1) },
        _ => Selection::Whole,
    }
}

enum Number {
    Absent,
    /// Past `u64` it is `u64::MAX`, which is past every blob's end just as well.
    Value(u64),
    Bad,
}

fn number(digits: &[u8]) -> Number {
    if digits.is_empty() {
        return Number::Absent;
    }
    let mut value = 0u64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Number::Bad;
        }
        value = value.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    }
    Number::Value(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn part(first: u64, last: u64) -> Selection {
        Selection::Part { first, last }
    }

    #[test]
    fn selects_as_the_rfc_says() {
        use Selection::{Unsatisfiable, Whole};
        for (value, length, expected) in [
            ("bytes=0-0", 10, part(0, 0)),
            ("bytes=0-9", 10, part(0, 9)),
            ("bytes=2-5", 10, part(2, 5)),
            ("bytes=5-", 10, part(5, 9)),
            ("bytes=5-99", 10, part(5, 9)),
            ("bytes=9-9", 10, part(9, 9)),
            ("bytes=-1", 10, part(9, 9)),
            ("bytes=-10", 10, part(0, 9)),
            ("bytes=-99", 10, part(0, 9)),
            ("BYTES=1-2", 10, part(1, 2)),
            ("bytes= 1-2 ", 10, part(1, 2)),
            ("bytes=1-99999999999999999999999", 10, part(1, 9)),
            ("bytes=-99999999999999999999999", 10, part(0, 9)),
            // Nothing is there.
            ("bytes=10-", 10, Unsatisfiable),
            ("bytes=10-20", 10, Unsatisfiable),
            ("bytes=99999999999999999999999-", 10, Unsatisfiable),
            ("bytes=-0", 10, Unsatisfiable),
            ("bytes=500-0", 1000, Unsatisfiable),
            ("bytes=5-2", 10, Unsatisfiable),
            ("bytes=0-0", 0, Unsatisfiable),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-5", 0, Whole),
            // Not for us, or not a range.
            ("bytes=0-1,3-4", 10, Whole),
            ("bytes=0-1,", 10, Whole),
            ("items=0-1", 10, Whole),
            ("bytes 0-1", 10, Whole),
            ("bytes=", 10, Whole),
            ("bytes=-", 10, Whole),
            ("bytes=a-b", 10, Whole),
            ("bytes=1-b", 10, Whole),
            ("bytes=20-b", 10, Whole),
            ("bytes=+1-2", 10, Whole),
            ("bytes=1 -2", 10, Whole),
            ("bytes=1--2", 10, Whole),
            ("bytes=--2", 10, Whole),
            ("bytes=0x1-2", 10, Whole),
            ("", 10, Whole),
        ] {
            assert_eq!(select(value.as_bytes(), length), expected, "{value} of {length}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_selects_outside(value in proptest::collection::vec(proptest::num::u8::ANY, 0..40), length: u64) {
            if let Selection::Part { first, last } = select(&value, length) {
                proptest::prop_assert!(first <= last && last < length);
            }
        }

        #[test]
        fn agrees_with_itself_on_well_formed_ranges(first in 0u64..200, span in 0u64..200, length in 0u64..200) {
            let expected = if first >= length {
                Selection::Unsatisfiable
            } else {
                Selection::Part { first, last: (first + span).min(length - 1) }
            };
            let value = format!("bytes={first}-{}", first + span);
            proptest::prop_assert_eq!(select(value.as_bytes(), length), expected);
        }
    }
}
