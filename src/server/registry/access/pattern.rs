//! Patterns of repository names.

use std::{fmt, str::FromStr};

/// A repository's name in which `*` stands for any characters, slashes among them, or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// The longest pattern, in bytes: as long as a name can be.
const MAX_BYTES: usize = 255;

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing, or more than a name can have.
    #[error("a pattern of repositories has 1 to {MAX_BYTES} characters, this has {0}")]
    Length(usize),
    /// It could match no name.
    #[error(
        "{0:?} matches no repository: names have a to z, 0 to 9, '.', '_', '-' and '/', and do not begin or end with '/'; '*' is any part of one"
    )]
    Name(String),
}

impl Pattern {
    /// Whether it matches the whole name.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        // There is always a first part.
        let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            // The first place is as good as any: whatever follows can only have more room.
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() || text.len() > MAX_BYTES {
            return Err(PatternError::Length(text.chars().count()));
        }
        let character = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'/' | b'*');
        if !text.bytes().all(character) || text.starts_with('/') || text.ends_with('/') || text.contains("//") {
            return Err(PatternError::Name(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_is_any_part_of_a_name() {
        for (pattern, name, expected) in [
            ("a", "a", true),
            ("a", "a/b", false),
            ("a", "b", false),
            ("*", "a", true),
            ("*", "a/b/c", true),
            ("a/*", "a/b", true),
            ("a/*", "a/b/c", true),
            ("a/*", "a", false),
            ("a/*", "ab", false),
            ("*/a", "x/y/a", true),
            ("*/a", "a", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*ab*", "xaab", true),
            ("*ab", "abxab", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("**", "a", true),
        ] {
            assert_eq!(pattern.parse::<Pattern>().unwrap().matches(name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn what_can_match_no_name_is_refused() {
        for bad in ["", "/a", "a/", "a//b", "A", "a b", "a?", "a:b", "é", "a\n", &"a".repeat(256)] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_regular_expression(pattern in "[ab/*]{1,8}", name in "[ab/]{1,10}") {
            if let Ok(parsed) = pattern.parse::<Pattern>() {
                let whole = regex::Regex::new(&format!("^{}$", pattern.replace('*', ".*"))).unwrap();
                prop_assert_eq!(parsed.matches(&name), whole.is_match(&name));
            }
        }
    }
}
