//! Choosing a tag by a range of versions, as Flux does.
//!
//! The meaning of a range is that of Masterminds/semver v3, which Flux hands `ref.semver` to: `=`, `!=`, `>`, `<`, `>=`,
//! `<=`, `~`, `^`; hyphen ranges; `x`, `X` and `*` as wildcards; partial versions; comma or space for "and", `||` for
//! "or". A pre-release matches only where the same "and" group names a pre-release itself (`>=6.1.x-0`). Where the two
//! differ from the semver specification (leading zeros and a leading `v` are taken, `>11` leaves out 11.1.0), they
//! differ here too: `version_golden.txt`, written by that library, holds 250 hand-picked and 600 random cases.
//!
//! Pure values without state; every parser is bounded by the length of its input and never panics.

use std::{cmp::Ordering, fmt, str::FromStr, sync::LazyLock};

use regex::Regex;

use super::reference::Tag;
use crate::class::Class;

/// The longest range taken, in bytes, as in Masterminds/semver.
pub const MAX_RANGE_BYTES: usize = 512;
/// The most alternatives (`||`) of a range, as in Masterminds/semver.
pub const MAX_RANGE_GROUPS: usize = 32;
/// The longest version taken, in bytes, as in Masterminds/semver.
pub const MAX_VERSION_BYTES: usize = 256;
/// The longest `semverFilter` taken, in bytes; the compiled form is bounded by the regex crate's own limit.
pub const MAX_FILTER_BYTES: usize = 4096;

/// Why no tag was chosen.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum VersionError {
    /// Not a version.
    #[error("{0:?} is not a semantic version such as 1.2.3 or v1.2.3-rc.1")]
    Version(String),
    /// Not a range.
    #[error("semver '{range}' parse error: {reason}")]
    Range {
        /// The range, at most [`MAX_RANGE_BYTES`] of it.
        range: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Not a regular expression.
    #[error("semverFilter {filter:?} is not a regular expression")]
    Filter {
        /// The filter, cut short.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: regex::Error,
    },
    /// A filter beyond [`MAX_FILTER_BYTES`].
    #[error("semverFilter is longer than {MAX_FILTER_BYTES} bytes")]
    FilterTooLong,
    /// No tag matches. The text is Flux's.
    #[error("no match found for semver: {0}")]
    NoMatch(String),
}

impl VersionError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Version(_) | Self::Range { .. } | Self::Filter { .. } | Self::FilterTooLong => Class::Spec,
            Self::NoMatch(_) => Class::NotFound,
        }
    }
}

/// A version, read as leniently as Masterminds' `NewVersion`: a leading `v`, missing parts and leading zeros are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// First number.
    pub major: u64,
    /// Second number.
    pub minor: u64,
    /// Third number.
    pub patch: u64,
    /// What follows `-`; empty for a release.
    pub pre: String,
    /// What follows `+`; without effect on the order.
    pub build: String,
}

/// One version in a range, wildcards and all.
const CONSTRAINT_VERSION: &str = concat!(
    r"v?([0-9|xX*]+)(\.[0-9|xX*]+)?(\.[0-9|xX*]+)?",
    r"(-([0-9A-Za-z\-]+(\.[0-9A-Za-z\-]+)*))?(\+([0-9A-Za-z\-]+(\.[0-9A-Za-z\-]+)*))?"
);
const OPERATORS: &str = r"=||!=|>|<|>=|=>|<=|=<|~|~>|\^";
/// Go's `\s`; Rust's also has vertical tab and all of Unicode's.
const SPACE: &str = r"[\t\n\f\r ]";

/// A fixed pattern: that it compiles is a matter of the tests.
fn fixed(pattern: &str) -> Regex {
    let pattern = pattern.replace("CV", CONSTRAINT_VERSION).replace("OP", OPERATORS).replace("_", SPACE);
    Regex::new(&pattern).expect("the pattern is fixed")
}

static VERSION: LazyLock<Regex> = LazyLock::new(|| {
    fixed(concat!(
        r"^v?([0-9]+)(?:\.([0-9]+))?(?:\.([0-9]+))?",
        r"(?:-([0-9A-Za-z\-]+(?:\.[0-9A-Za-z\-]+)*))?(?:\+([0-9A-Za-z\-]+(?:\.[0-9A-Za-z\-]+)*))?$"
    ))
});
static CONSTRAINT: LazyLock<Regex> = LazyLock::new(|| fixed("^_*(OP)_*(CV)_*$"));
static HYPHEN: LazyLock<Regex> = LazyLock::new(|| fixed("_*(CV)_+-_+(CV)_*"));
static FIND: LazyLock<Regex> = LazyLock::new(|| fixed("(OP)_*(CV)"));
static VALID: LazyLock<Regex> = LazyLock::new(|| fixed("^(_*(OP)_*(CV)_*)((?:_+|,_*)(OP)_*(CV)_*)*$"));

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let wrong = || VersionError::Version(text.chars().take(MAX_VERSION_BYTES).collect());
        if text.len() > MAX_VERSION_BYTES {
            return Err(wrong());
        }
        let parts = VERSION.captures(text).ok_or_else(wrong)?;
        let part = |n| parts.get(n).map_or("", |m| m.as_str());
        let number = |n| match part(n) {
            "" => Ok(0),
            digits => digits.parse::<u64>().map_err(|_| wrong()),
        };
        let leading_zero = |id: &str| id.len() > 1 && id.starts_with('0') && id.bytes().all(|b| b.is_ascii_digit());
        if part(4).split('.').any(leading_zero) {
            return Err(wrong());
        }
        Ok(Self {
            major: number(1)?,
            minor: number(2)?,
            patch: number(3)?,
            pre: part(4).to_string(),
            build: part(5).to_string(),
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)?;
        if !self.pre.is_empty() {
            write!(f, "-{}", self.pre)?;
        }
        if !self.build.is_empty() {
            write!(f, "+{}", self.build)?;
        }
        Ok(())
    }
}

impl Version {
    /// Reads a tag as Flux does: only tags of at least three dot-separated parts are versions.
    pub fn of_tag(text: &str) -> Option<Self> {
        if text.splitn(3, '.').count() < 3 {
            return None;
        }
        text.parse().ok()
    }

    /// Which of the two comes first (semver 2.0.0, clause 11); build metadata has no say.
    pub fn precedence(&self, other: &Self) -> Ordering {
        let numbers = |v: &Self| (v.major, v.minor, v.patch);
        numbers(self).cmp(&numbers(other)).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => compare_pre(&self.pre, &other.pre),
        })
    }
}

fn compare_pre(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        let (x, y) = match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(x), Some(y)) => (x, y),
        };
        // A number too long for 64 bits is compared as text, as in Masterminds/semver.
        let order = match (x.parse::<u64>(), y.parse::<u64>()) {
            (Ok(x), Ok(y)) => x.cmp(&y),
            (Ok(_), Err(_)) => Ordering::Less,
            (Err(_), Ok(_)) => Ordering::Greater,
            (Err(_), Err(_)) => x.cmp(y),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Greater,
    Less,
    GreaterEqual,
    LessEqual,
    Tilde,
    Caret,
}

/// One comparison of a range.
#[derive(Clone, Debug)]
struct Comparator {
    operator: Operator,
    version: Version,
    /// A part is missing or a wildcard; which one, the next two say (neither: the major).
    partial: bool,
    any_minor: bool,
    any_patch: bool,
}

/// Comparators that must all hold.
#[derive(Clone, Debug)]
struct Group {
    all: Vec<Comparator>,
    /// One of them names a pre-release: pre-releases count.
    pre: bool,
}

/// A range of versions.
#[derive(Clone, Debug)]
pub struct Range {
    any: Vec<Group>,
    text: String,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Range {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let wrong = |reason: String| VersionError::Range {
            range: text.chars().take(MAX_RANGE_BYTES).collect::<String>().escape_debug().to_string(),
            reason,
        };
        if text.len() > MAX_RANGE_BYTES {
            return Err(wrong(format!("longer than {MAX_RANGE_BYTES} bytes")));
        }
        let plain = without_hyphens(text);
        if plain.split("||").count() > MAX_RANGE_GROUPS {
            return Err(wrong(format!("more than {MAX_RANGE_GROUPS} alternatives")));
        }
        let mut any = Vec::new();
        for part in plain.split("||") {
            let improper = || wrong(format!("improper constraint: {part:?}; write for example \">=1.2.0 <2.0.0\""));
            if !VALID.is_match(part) {
                return Err(improper());
            }
            let all: Option<Vec<_>> = FIND.find_iter(part).map(|m| Comparator::parse(m.as_str())).collect();
            let all = all.filter(|all| !all.is_empty()).ok_or_else(improper)?;
            let pre = all.iter().any(|c| !c.version.pre.is_empty());
            any.push(Group { all, pre });
        }
        Ok(Self { any, text: text.to_string() })
    }
}

/// `1.2 - 1.4` written as `>= 1.2, <= 1.4 `.
fn without_hyphens(text: &str) -> String {
    let mut out = text.to_string();
    for found in HYPHEN.captures_iter(text) {
        if let (Some(whole), Some(low), Some(high)) = (found.get(0), found.get(1), found.get(11)) {
            out = out.replacen(whole.as_str(), &format!(">= {}, <= {} ", low.as_str(), high.as_str()), 1);
        }
    }
    out
}

impl Range {
    /// Whether `version` lies in the range.
    pub fn matches(&self, version: &Version) -> bool {
        let release = version.pre.is_empty();
        self.any.iter().any(|group| (release || group.pre) && group.all.iter().all(|c| c.matches(version)))
    }
}

impl Comparator {
    fn parse(text: &str) -> Option<Self> {
        let parts = CONSTRAINT.captures(text)?;
        let part = |n| parts.get(n).map_or("", |m| m.as_str());
        let any = |text: &str| matches!(text.trim_start_matches('.'), "" | "x" | "X" | "*");
        let (major, minor, patch, pre) = (part(3), part(4), part(5), part(6));
        let (any_major, any_minor, any_patch) = (any(major), any(minor), any(patch));
        let version = if any_major {
            format!("0.0.0{pre}")
        } else if any_minor {
            format!("{major}.0.0{pre}")
        } else if any_patch {
            format!("{major}{minor}.0{pre}")
        } else {
            part(2).to_string()
        };
        Some(Self {
            operator: match part(1) {
                "" | "=" => Operator::Equal,
                "!=" => Operator::NotEqual,
                ">" => Operator::Greater,
                "<" => Operator::Less,
                ">=" | "=>" => Operator::GreaterEqual,
                "<=" | "=<" => Operator::LessEqual,
                "~" | "~>" => Operator::Tilde,
                "^" => Operator::Caret,
                _ => return None,
            },
            version: version.parse().ok()?,
            partial: any_major || any_minor || any_patch,
            any_minor: any_minor && !any_major,
            any_patch: any_patch && !any_minor && !any_major,
        })
    }

    /// Whether `v` passes; that its being a pre-release is all right has been settled for the group.
    fn matches(&self, v: &Version) -> bool {
        let c = &self.version;
        let order = v.precedence(c);
        match self.operator {
            Operator::Equal if self.partial => self.tilde(v, order),
            Operator::Equal => order.is_eq(),
            Operator::NotEqual => self.not_equal(v, order),
            Operator::Greater => match v.major.cmp(&c.major) {
                // `>11` means from 12 on, `>11.1` from 11.2 on.
                Ordering::Equal if self.any_minor => false,
                Ordering::Equal if self.any_patch => v.minor > c.minor,
                _ => order.is_gt(),
            },
            Operator::Less => order.is_lt(),
            Operator::GreaterEqual => order.is_ge(),
            // `<=11` means before 12, `<=11.1` before 11.2.
            Operator::LessEqual if self.partial => {
                v.major <= c.major && (v.major < c.major || v.minor <= c.minor || self.any_minor)
            }
            Operator::LessEqual => order.is_le(),
            Operator::Tilde => self.tilde(v, order),
            Operator::Caret => self.caret(v, order),
        }
    }

    fn not_equal(&self, v: &Version, order: Ordering) -> bool {
        let c = &self.version;
        if !self.partial {
            return order.is_ne();
        }
        if v.major != c.major || (v.minor != c.minor && !self.any_minor) {
            return true;
        }
        if self.any_minor {
            return false;
        }
        if self.any_patch {
            return v.pre != c.pre;
        }
        // `!=*` compares with 0.0.0.
        order.is_ne()
    }

    fn tilde(&self, v: &Version, order: Ordering) -> bool {
        let c = &self.version;
        if order.is_lt() {
            return false;
        }
        // `~0.0.0` and `*` take everything.
        if (c.major, c.minor, c.patch) == (0, 0, 0) && !self.any_minor && !self.any_patch {
            return true;
        }
        v.major == c.major && (v.minor == c.minor || self.any_minor)
    }

    fn caret(&self, v: &Version, order: Ordering) -> bool {
        let c = &self.version;
        if order.is_lt() {
            return false;
        }
        if c.major > 0 || self.any_minor {
            return v.major == c.major;
        }
        if v.major > 0 {
            return false;
        }
        if c.minor > 0 || self.any_patch {
            return v.minor == c.minor;
        }
        v.minor == 0 && v.patch == c.patch
    }
}

/// How an object chooses among tags: `ref.semver`, `ref.semverFilter`, and whether they are a Helm chart's.
#[derive(Clone, Debug)]
pub struct TagPolicy {
    range: Range,
    filter: Option<Regex>,
    chart: bool,
}

impl TagPolicy {
    /// A policy. An empty filter is none. With `chart`, a tag's `_` stands for the `+` that tags cannot hold.
    pub fn new(range: &str, filter: Option<&str>, chart: bool) -> Result<Self, VersionError> {
        let filter = match filter {
            None | Some("") => None,
            Some(text) if text.len() > MAX_FILTER_BYTES => return Err(VersionError::FilterTooLong),
            Some(text) => Some(
                Regex::new(text)
                    .map_err(|source| VersionError::Filter { filter: text.chars().take(100).collect(), source })?,
            ),
        };
        let mut parsed: Range = if chart { range.replace('_', "+").parse()? } else { range.parse()? };
        parsed.text = range.to_string();
        Ok(Self { range: parsed, filter, chart })
    }

    /// The tag of the highest version that matches, spelled as it is. Among tags of equal precedence (`1.2.3` and
    /// `v1.2.3`, or other build metadata) the last one in byte order is taken, whatever the order of the list.
    pub fn select<'a>(&self, tags: impl IntoIterator<Item = &'a Tag>) -> Result<&'a Tag, VersionError> {
        tags.into_iter()
            .filter(|tag| self.filter.as_ref().is_none_or(|filter| filter.is_match(tag.as_str())))
            .filter_map(|tag| {
                let version =
                    if self.chart { Version::of_tag(&chart_version(tag)) } else { Version::of_tag(tag.as_str()) };
                version.filter(|v| self.range.matches(v)).map(|v| (v, tag))
            })
            .max_by(|(a, s), (b, t)| a.precedence(b).then_with(|| s.cmp(t)))
            .map(|(_, tag)| tag)
            .ok_or_else(|| VersionError::NoMatch(self.range.to_string()))
    }
}

/// The chart version that a tag stands for: `+`, which tags cannot hold, is written `_` in them.
pub fn chart_version(tag: &Tag) -> String {
    tag.as_str().replace('_', "+")
}

/// The tag that a HelmChart's `version` names outright; `None` if it is a range, for which the tags must be listed
/// ([`select_chart`]).
pub fn exact_chart_tag(version: &str) -> Option<Tag> {
    Version::of_tag(version)?;
    version.replace('+', "_").parse().ok()
}

/// The tag for a HelmChart's `version`: the very version, else the highest in the range; empty or `*` is the latest
/// release.
pub fn select_chart<'a>(tags: &'a [Tag], version: &str) -> Result<&'a Tag, VersionError> {
    if let Some(tag) = tags.iter().find(|tag| !version.is_empty() && chart_version(tag) == version) {
        return Ok(tag);
    }
    TagPolicy::new(if version.is_empty() { "*" } else { version }, None, true)?.select(tags)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::oci::golden::unquote_text;

    fn golden() -> Vec<Vec<&'static str>> {
        include_str!("version_golden.txt")
            .split('\n')
            .filter(|l| !l.is_empty() && !l.starts_with('#'))
            .map(|l| l.split('\t').collect())
            .collect()
    }

    #[test]
    fn versions_parse_and_order_as_in_masterminds_semver() {
        let lines: Vec<_> = golden().into_iter().filter(|l| l[0] == "V").collect();
        let versions: Vec<Version> = lines.iter().map(|l| l[1].parse().unwrap()).collect();
        assert!(versions.len() > 40);
        for (line, version) in lines.iter().zip(&versions) {
            let order: String = versions
                .iter()
                .map(|o| match version.precedence(o) {
                    Ordering::Less => '<',
                    Ordering::Equal => '=',
                    Ordering::Greater => '>',
                })
                .collect();
            assert_eq!(order, line[2], "{}", line[1]);
        }
        for line in golden().iter().filter(|l| l[0] == "P") {
            let got = line[1].parse::<Version>().map_or("error".to_string(), |v| v.to_string());
            assert_eq!(got, line[2], "{}", line[1]);
        }
    }

    #[test]
    fn ranges_match_as_in_masterminds_semver() {
        let golden = golden();
        let versions: Vec<Version> = golden.iter().filter(|l| l[0] == "V").map(|l| l[1].parse().unwrap()).collect();
        let mut seen = 0;
        for line in golden.iter().filter(|l| l[0] == "C") {
            seen += 1;
            let text = unquote_text(line[1]);
            let got = match text.parse::<Range>() {
                Err(_) => "error".to_string(),
                Ok(range) => versions.iter().map(|v| if range.matches(v) { '1' } else { '0' }).collect(),
            };
            assert_eq!(got, line[2], "{}", line[1]);
        }
        assert!(seen > 800, "{seen}");
    }

    fn tags(list: &str) -> Vec<Tag> {
        list.split_whitespace().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn selects_the_tag_that_flux_selects() {
        const PODINFO: &str = "6.1.4 6.1.5 6.1.6-rc.1 6.1.6 latest main-1234 6.1 v6";
        for (list, range, filter, chart, want) in [
            (PODINFO, ">= 6.1 <= 6.1.5", None, false, "6.1.5"),
            (PODINFO, ">= 6.1.5", None, false, "6.1.6"),
            (PODINFO, ">= 6.1.x-0", Some(".*-rc.*"), false, "6.1.6-rc.1"),
            (PODINFO, "*", Some(""), false, "6.1.6"),
            ("v1.0.0 v1.1.0 1.0.5", "^1", None, false, "v1.1.0"),
            ("1.0.0 v1.0.0", "1.0.0", None, false, "v1.0.0"),
            ("v1.0.0 1.0.0", "1.0.0", None, false, "v1.0.0"),
            ("v2025.02.03-rc.1 2025.1.9", ">=2025.0.0-0", None, false, "v2025.02.03-rc.1"),
            ("6.1.0 6.2.1_ref.1234567", ">=6.2.0", None, true, "6.2.1_ref.1234567"),
            ("6.1.0 6.2.1_ref.1234567", "6.2.1_ref.1234567", None, true, "6.2.1_ref.1234567"),
            ("6.1.0 6.2.1_ref.1234567", "6.2.1+ref.1234567", None, true, "6.2.1_ref.1234567"),
            ("6.1.0 6.2.1_ref.1234567", ">=6.1.0", None, false, "6.1.0"),
        ] {
            let list = tags(list);
            let policy = TagPolicy::new(range, filter, chart).unwrap();
            assert_eq!(policy.select(&list).unwrap().as_str(), want, "{range} {filter:?}");
        }
    }

    #[test]
    fn says_what_matches_nothing_or_cannot_be_read() {
        let list = tags("6.1.4 6.1.5 6.1.6-rc.1 1.0 latest");
        let select = |range, filter| {
            let result = TagPolicy::new(range, filter, false).and_then(|p| p.select(&list).cloned());
            result.map_err(|e| (e.to_string(), e.class()))
        };
        assert_eq!(select("<= 6.1.0", None), Err(("no match found for semver: <= 6.1.0".into(), Class::NotFound)));
        assert_eq!(select("1.0", None), Err(("no match found for semver: 1.0".into(), Class::NotFound)));
        assert_eq!(
            select(">= 6.1.x-0", Some(".*-alpha.*")),
            Err(("no match found for semver: >= 6.1.x-0".into(), Class::NotFound))
        );
        let (message, class) = select("six", None).unwrap_err();
        assert!(message.starts_with("semver 'six' parse error: improper constraint: \"six\""), "{message}");
        assert_eq!(class, Class::Spec);
        let (message, class) = select("*", Some("(")).unwrap_err();
        assert_eq!(message, "semverFilter \"(\" is not a regular expression");
        assert_eq!(class, Class::Spec);
        assert_eq!(select("*", Some(&"a".repeat(4097))).unwrap_err().1, Class::Spec);
    }

    #[test]
    fn selects_the_chart_version_that_flux_selects() {
        let list = tags("0.1.0 0.2.0 0.9.0 0.10.0 1.0.0 1.1.0-rc.1 latest 1.1");
        for (version, want) in [
            ("", Some("1.0.0")),
            ("*", Some("1.0.0")),
            ("<1.0.0", Some("0.10.0")),
            ("0.*", Some("0.10.0")),
            ("0.2.0", Some("0.2.0")),
            ("1.1", Some("1.1")),
            (">2.0.0", None),
        ] {
            assert_eq!(select_chart(&list, version).ok().map(Tag::as_str), want, "{version}");
        }
        let want: BTreeMap<&str, Option<&str>> = [
            ("1.2.3", Some("1.2.3")),
            ("v1.2.3", Some("v1.2.3")),
            ("6.2.1+ref.1", Some("6.2.1_ref.1")),
            ("1.2", None),
            ("1.2.x", None),
            ("^1.2.3", None),
            ("", None),
        ]
        .into();
        for (version, want) in want {
            assert_eq!(exact_chart_tag(version).as_ref().map(Tag::as_str), want, "{version}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(range in "\\PC{0,40}", version in "\\PC{0,40}") {
            if let (Ok(range), Ok(version)) = (range.parse::<Range>(), version.parse::<Version>()) {
                range.matches(&version);
            }
        }

        #[test]
        fn what_a_version_prints_parses_to_itself(text in "v?[0-9]{1,3}(\\.[0-9]{1,3}){0,2}(-[a-z0-9.-]{1,8})?(\\+[a-z0-9]{1,4})?") {
            if let Ok(version) = text.parse::<Version>() {
                prop_assert_eq!(version.to_string().parse::<Version>().unwrap(), version);
            }
        }
    }
}
