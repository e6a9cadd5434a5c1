//! `Authorization` as clients send it: Basic (RFC 7617) or Bearer (RFC 6750).

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use crate::secret::Secret;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// A user and a password.
    Basic {
        /// Has no colon and no control character.
        user: String,
        /// Has no control character.
        password: Secret,
    },
    /// A token.
    Bearer(Secret),
}

/// Padding may be absent: some clients leave it out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads a header's value; `None` for another scheme, or for what does not decode to text without control characters
/// (RFC 7617, section 2).
pub fn parse(header: &[u8]) -> Option<Credentials> {
    let text = std::str::from_utf8(header).ok()?;
    let (scheme, value) = text.split_once(' ')?;
    let value = value.trim_matches(' ');
    if scheme.eq_ignore_ascii_case("bearer") {
        let token = !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic());
        return token.then(|| Credentials::Bearer(Secret::new(value)));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64.decode(value).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    if decoded.chars().any(char::is_control) {
        return None;
    }
    Some(Credentials::Basic { user: user.to_owned(), password: Secret::new(password) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Basic { user: user.into(), password: Secret::new(password) })
    }

    #[test]
    fn reads_what_clients_send_and_nothing_else() {
        for (header, expected) in [
            ("Basic YWxpY2U6cGE6c3M=", basic("alice", "pa:ss")),
            ("basic  YWxpY2U6cGE6c3M= ", basic("alice", "pa:ss")),
            ("BASIC YWxpY2U6cGE6c3M", basic("alice", "pa:ss")),
            ("Basic Og==", basic("", "")),
            ("Basic w6k6w6k=", basic("é", "é")),
            ("Bearer abc.def", Some(Credentials::Bearer(Secret::new("abc.def")))),
            ("bearer x", Some(Credentials::Bearer(Secret::new("x")))),
            ("Bearer ", None),
            ("Bearer a b", None),
            ("Bearer", None),
            ("Basic", None),
            ("Basic ", None),
            ("Basic YWxpY2U=", None),
            ("Basic !!!!", None),
            ("Basic YTpiCg==", None),
            ("Basic /zr/", None),
            ("Digest username=\"a\"", None),
            ("", None),
        ] {
            assert_eq!(parse(header.as_bytes()), expected, "{header:?}");
        }
        assert_eq!(parse(b"Basic \xff"), None);
    }
}
