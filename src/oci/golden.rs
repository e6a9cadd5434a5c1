//! Reads the golden tables that tests compare with: their fields are quoted as Go's `%q` quotes.

/// The bytes that a quoted field stands for.
pub(crate) fn unquote(field: &str) -> Vec<u8> {
    let mut rest = field.strip_prefix('"').and_then(|f| f.strip_suffix('"')).expect("a quoted field");
    let mut out = Vec::new();
    while let Some((plain, escape)) = rest.split_once('\\') {
        out.extend(plain.bytes());
        let kind = escape.chars().next().expect("an escape");
        let hex = |n: usize| u32::from_str_radix(&escape[1..=n], 16).expect("hex digits");
        let taken = match kind {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        match kind {
            'x' => out.push(hex(2) as u8),
            'u' | 'U' => out.extend(char::from_u32(hex(taken)).expect("a character").to_string().bytes()),
            'a' => out.push(7),
            'b' => out.push(8),
            'f' => out.push(12),
            'n' => out.push(b'\n'),
            'r' => out.push(b'\r'),
            't' => out.push(b'\t'),
            'v' => out.push(11),
            '\\' | '"' => out.push(kind as u8),
            other => panic!("unknown escape {other:?}"),
        }
        rest = &escape[1 + taken..];
    }
    out.extend(rest.bytes());
    out
}

/// The same where it must be text.
pub(crate) fn unquote_text(field: &str) -> String {
    String::from_utf8(unquote(field)).expect("text")
}
