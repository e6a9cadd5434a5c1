//! What a plain YAML scalar means.
//!
//! The rules are those of go-yaml v3, which kustomize reads with, so that what is rendered here is what Flux would
//! apply: `yes` and `on` are text, `0644` and `0o644` are octal, `12_000` is a number, a date becomes a point in
//! time and is written as one (RFC 3339), a number too large for a float is text.

use serde_json::{Number, Value};

/// What a plain scalar turned out to be.
#[derive(Debug, PartialEq)]
pub enum Plain {
    /// A value.
    Value(Value),
    /// `<<`, which as a key merges another mapping.
    Merge,
    /// `.inf` or `.nan`, which JSON, and so Kubernetes, has no word for.
    NotFinite,
}

/// The meaning of a plain scalar without a tag.
pub fn plain(text: &str) -> Plain {
    Plain::Value(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => return Plain::NotFinite,
        "<<" => return Plain::Merge,
        _ => number_or_date(text).unwrap_or_else(|| Value::String(text.to_owned())),
    })
}

fn number_or_date(text: &str) -> Option<Value> {
    match text.as_bytes()[0] {
        b'.' => float(text),
        b'+' | b'-' | b'0'..=b'9' => {
            if let Some(time) = timestamp(text) {
                return Some(Value::String(time));
            }
            let digits = text.replace('_', "");
            integer(&digits).or_else(|| float(&digits))
        }
        _ => None,
    }
}

/// As Go's `ParseInt(text, 0, 64)`, then `ParseUint`.
fn integer(text: &str) -> Option<Value> {
    let (negative, signed, rest) = match text.as_bytes().first()? {
        b'-' => (true, true, &text[1..]),
        b'+' => (false, true, &text[1..]),
        _ => (false, false, text),
    };
    let (radix, digits) = match rest.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &rest[2..]),
        [b'0', b'b' | b'B', ..] => (2, &rest[2..]),
        [b'0', b'o' | b'O', ..] => (8, &rest[2..]),
        [b'0', _, ..] => (8, &rest[1..]),
        _ => (10, rest),
    };
    // `from_str_radix` would take another sign.
    if !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let size = u64::from_str_radix(digits, radix).ok()?;
    if negative {
        return 0i64.checked_sub_unsigned(size).map(Value::from);
    }
    match i64::try_from(size) {
        Ok(value) => Some(Value::from(value)),
        Err(_) => (!signed).then(|| Value::from(size)),
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`; a value that fits an integer becomes one, as it does when
/// Go writes it as JSON and reads it back.
fn float(text: &str) -> Option<Value> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let all_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let well_formed = match mantissa.split_once('.') {
        Some((whole, part)) => all_digits(whole) && all_digits(part) && !(whole.is_empty() && part.is_empty()),
        None => !mantissa.is_empty() && all_digits(mantissa),
    };
    if !well_formed || exponent.is_some_and(|e| e.is_empty() || !all_digits(e)) {
        return None;
    }
    from_float(text.parse().ok()?)
}

/// A JSON number for `value`; `None` where JSON has none.
pub fn from_float(value: f64) -> Option<Value> {
    // 2^63 is exact as a float; everything below it converts without loss of the integral value.
    if value.fract() == 0.0 && value.abs() < 9_223_372_036_854_775_808.0 {
        return Some(Value::from(value as i64));
    }
    Number::from_f64(value).map(Value::Number)
}

/// go-yaml's four formats: a date alone, with `T` or `t` and a zone, or with a space and no zone. RFC 3339 comes out.
fn timestamp(text: &str) -> Option<String> {
    let mut at = Cursor(text);
    let year = at.digits(4, 4)?;
    at.skip('-')?;
    let month = at.digits(1, 2)?;
    at.skip('-')?;
    let day = at.digits(1, 2)?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days).contains(&day) {
        return None;
    }
    let date = format!("{year:04}-{month:02}-{day:02}");
    let Some(separator) = at.0.chars().next() else {
        return Some(format!("{date}T00:00:00Z"));
    };
    if !matches!(separator, 'T' | 't' | ' ') {
        return None;
    }
    at.skip(separator)?;
    let hour = at.digits(1, 2)?;
    at.skip(':')?;
    let minute = at.digits(1, 2)?;
    at.skip(':')?;
    let second = at.digits(1, 2)?;
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut fraction = String::new();
    if let Some(rest) = at.0.strip_prefix('.') {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if end == 0 {
            return None;
        }
        fraction = rest[..end.min(9)].trim_end_matches('0').to_owned();
        if !fraction.is_empty() {
            fraction.insert(0, '.');
        }
        at.0 = &rest[end..];
    }
    let zone = match (separator, at.0) {
        (' ', "") | ('T' | 't', "Z") => "Z".to_owned(),
        (' ', _) => return None,
        (_, zone) => {
            let mut at = Cursor(zone);
            let sign = at.0.chars().next().filter(|c| matches!(c, '+' | '-'))?;
            at.skip(sign)?;
            let hours = at.digits(2, 2)?;
            at.skip(':')?;
            let minutes = at.digits(2, 2)?;
            if !at.0.is_empty() || hours > 24 || minutes > 60 {
                return None;
            }
            if hours == 0 && minutes == 0 { "Z".to_owned() } else { zone.to_owned() }
        }
    };
    Some(format!("{date}T{hour:02}:{minute:02}:{second:02}{fraction}{zone}"))
}

struct Cursor<'a>(&'a str);

impl Cursor<'_> {
    fn digits(&mut self, least: usize, most: usize) -> Option<u32> {
        let found = self.0.bytes().take(most).take_while(u8::is_ascii_digit).count();
        if found < least {
            return None;
        }
        let (digits, rest) = self.0.split_at(found);
        self.0 = rest;
        digits.parse().ok()
    }

    fn skip(&mut self, expected: char) -> Option<()> {
        self.0 = self.0.strip_prefix(expected)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plain_scalar_means_what_kustomize_takes_it_for() {
        // Each row as `kubectl kustomize` 1.37 printed it.
        for (text, value) in [
            ("yes", json!("yes")),
            ("On", json!("On")),
            ("y", json!("y")),
            ("TRUE", json!(true)),
            ("~", json!(null)),
            ("", json!(null)),
            ("0644", json!(420)),
            ("0o644", json!(420)),
            ("089", json!(89)),
            ("0_7", json!(7)),
            ("0o9", json!("0o9")),
            ("0x1F", json!(31)),
            ("0b101", json!(5)),
            ("-0b11", json!(-3)),
            ("0x1.8p1", json!("0x1.8p1")),
            ("+12", json!(12)),
            ("-0", json!(0)),
            ("12_000", json!(12000)),
            ("1__2", json!(12)),
            ("1_000.5", json!(1000.5)),
            ("1:30", json!("1:30")),
            ("1e3", json!(1000)),
            ("1.", json!(1)),
            (".5", json!(0.5)),
            ("5.e3", json!(5000)),
            ("1.10", json!(1.1)),
            ("1.25.3", json!("1.25.3")),
            ("0.1e-7", json!(1e-8)),
            ("1e400", json!("1e400")),
            (".inf1", json!(".inf1")),
            ("-", json!("-")),
            ("+-1", json!("+-1")),
            ("0x", json!("0x")),
            ("0x+1", json!("0x+1")),
            ("9007199254740993", json!(9007199254740993i64)),
            ("18446744073709551615", json!(18446744073709551615u64)),
            ("18446744073709551616", json!(18446744073709551616f64)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("2001-01-01", json!("2001-01-01T00:00:00Z")),
            ("2024-1-5", json!("2024-01-05T00:00:00Z")),
            ("2024-1-5 10:11:12.50", json!("2024-01-05T10:11:12.5Z")),
            ("2024-01-05t10:11:12Z", json!("2024-01-05T10:11:12Z")),
            ("2024-01-05T1:2:3Z", json!("2024-01-05T01:02:03Z")),
            ("2024-01-05T10:11:12+02:00", json!("2024-01-05T10:11:12+02:00")),
            ("2024-13-05", json!("2024-13-05")),
            ("2023-02-29", json!("2023-02-29")),
            ("2024-01-05 10:11:12 +2", json!("2024-01-05 10:11:12 +2")),
            ("02024-01-05", json!("02024-01-05")),
        ] {
            assert_eq!(plain(text), Plain::Value(value), "{text}");
        }
        assert_eq!(plain("<<"), Plain::Merge);
        assert_eq!(plain("-.inf"), Plain::NotFinite);
    }
}
