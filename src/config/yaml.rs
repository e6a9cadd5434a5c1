//! The configuration file's YAML: read whole, and where that fails, in parts, so that every mistake is told at once.

use serde_saphyr::budget::BudgetBreach;

use super::{ConfigError, Settings};
use crate::objects::documents::yaml_options;

/// How many mistakes are told.
const MAX_ERRORS: usize = 20;
/// How deep a part is taken apart: for each block its parts, and what stands below each. An upstream's `tags` lie deepest.
const MAX_DEPTH: usize = 12;

/// A line with its number in the file, from 1.
type Line<'a> = (usize, &'a str);

/// The settings in a text, or everything that is wrong with it, at least one thing.
pub(super) fn parse(text: &str) -> Result<Settings, Vec<ConfigError>> {
    let whole = match read(text) {
        Ok(settings) => return Ok(settings),
        Err(error) => error,
    };
    let lines: Vec<Line<'_>> = text.lines().enumerate().map(|(n, line)| (n + 1, line)).collect();
    let mut errors = Vec::new();
    // A part does not know the anchors of another.
    if !text.contains('&') {
        in_parts(&mut Vec::new(), &lines, MAX_DEPTH, &mut Vec::new(), &mut errors);
    }
    // What only shows in the whole, a key that is there twice for one. If no part shows it, taking apart may have broken
    // what is right as a whole, as with braces over several lines: then the parts prove nothing.
    if !errors.contains(&whole) {
        let same_kind = matches!(whole.message.split_once(" is there twice"), Some((_, "")));
        if !same_kind {
            return Err(vec![whole]);
        }
        errors.push(whole);
    }
    errors.sort_by_key(|error| error.line);
    errors.truncate(MAX_ERRORS);
    Err(errors)
}

/// Adds what is wrong with each part of `lines`, which stand below the keys of `above`. In `beside` are the keys that
/// stand beside these, or beside what they stand below.
fn in_parts<'a>(
    above: &mut Vec<Line<'a>>,
    lines: &[Line<'a>],
    depth: usize,
    beside: &mut Vec<String>,
    errors: &mut Vec<ConfigError>,
) {
    let Err(error) = read_lines(above, lines) else { return };
    // What is missing to the part alone is there in the whole.
    let elsewhere = missing(&error).is_some_and(|key| beside.iter().any(|there| there == key));
    if elsewhere || errors.len() >= MAX_ERRORS {
        return;
    }
    let parts = parts(lines);
    if depth > 0 && parts.len() > 1 {
        let (known, told) = (beside.len(), errors.len());
        beside.extend(parts.iter().filter_map(|part| first_line(part)).filter_map(|(_, line)| key_of(line)));
        let mut right = Vec::new();
        for part in &parts {
            let before = errors.len();
            in_parts(above, part, depth - 1, beside, errors);
            if errors.len() == before {
                right.extend_from_slice(part);
            }
        }
        if beside.len() > known {
            once(errors, told, &parts);
        }
        beside.truncate(known);
        // What no part shows alone.
        if let Err(twice) = read_lines(above, &right)
            && twice.message.ends_with(" is there twice")
            && !errors.contains(&twice)
        {
            errors.push(twice);
        }
        return;
    }
    let before = errors.len();
    if let Some(first) = lines.iter().position(|(_, line)| !is_blank(line))
        && depth > 0
    {
        let ((number, line), below) = (lines[first], &lines[first + 1..]);
        if let Some(dash) = line.find('-').filter(|at| line[..*at].trim().is_empty() && line[at + 1..].starts_with(' '))
        {
            // An entry: its first key stands beside the others.
            let key = format!("{} {}", &line[..dash], &line[dash + 1..]);
            let mut above: Vec<Line<'_>> = above.iter().copied().chain([(number, &line[..=dash])]).collect();
            let keys: Vec<Line<'_>> = [(number, &*key)].into_iter().chain(below.iter().copied()).collect();
            in_parts(&mut above, &keys, depth - 1, beside, errors);
        } else if line.trim_end().ends_with(':') && error.line != Some(number) {
            // One key: what stands below it may have several mistakes, if the key itself has none.
            above.push(lines[first]);
            in_parts(above, below, depth - 1, beside, errors);
            above.pop();
        }
    }
    if errors.len() == before && !errors.contains(&error) {
        errors.push(error);
    }
}

/// Of the keys of one block each misses what is missing beside them: told once.
fn once(errors: &mut Vec<ConfigError>, told: usize, parts: &[&[Line<'_>]]) {
    let begins = |error: &ConfigError| {
        parts.iter().any(|part| first_line(part).is_some_and(|(number, _)| error.line == Some(number)))
    };
    let mut seen: Vec<String> = Vec::new();
    let mut n = 0;
    errors.retain(|error| {
        n += 1;
        if n <= told || missing(error).is_none() || !begins(error) {
            return true;
        }
        let first = !seen.contains(&error.message);
        seen.push(error.message.clone());
        first
    });
}

/// The first line of a part that says something.
fn first_line<'a>(part: &[Line<'a>]) -> Option<Line<'a>> {
    part.iter().copied().find(|(_, line)| !is_blank(line))
}

/// The key that a line begins with.
fn key_of(line: &str) -> Option<String> {
    let key = line.split_once(':')?.0.trim().trim_matches(['"', '\'']);
    (!key.is_empty() && key.chars().all(char::is_alphanumeric)).then(|| key.to_owned())
}

/// The key that is missing, where that is what is wrong.
fn missing(error: &ConfigError) -> Option<&str> {
    error.message.strip_prefix("the key \"")?.strip_suffix("\" is missing here")
}

/// Reads lines that stand below others; the error has the line's number in the file.
fn read_lines(above: &[Line<'_>], lines: &[Line<'_>]) -> Result<Settings, ConfigError> {
    let whole: Vec<Line<'_>> = above.iter().chain(lines).copied().collect();
    let text: String = whole.iter().flat_map(|(_, line)| [line, "\n"]).collect();
    read(&text).map_err(|error| {
        let line = error.line.and_then(|line| whole.get(line - 1)).map(|(number, _)| *number);
        ConfigError { line, ..error }
    })
}

/// The keys or the entries of a block, each with what belongs to it.
fn parts<'a, 'b>(lines: &'b [Line<'a>]) -> Vec<&'b [Line<'a>]> {
    let indent = |line: &str| line.len() - line.trim_start_matches(' ').len();
    let Some(level) = lines.iter().filter(|(_, line)| !is_blank(line)).map(|(_, line)| indent(line)).min() else {
        return Vec::new();
    };
    let first = |line: &'a str| {
        let at_level = !is_blank(line) && indent(line) == level;
        line[level.min(line.len())..].chars().next().filter(|_| at_level)
    };
    let is_key = |c: char| c.is_alphanumeric() || matches!(c, '"' | '\'');
    // A list may be indented as much as its key: then its entries belong to that.
    let keys = lines.iter().any(|(_, line)| first(line).is_some_and(is_key));
    let begins = |line: &'a str| first(line).is_some_and(|c| if keys { is_key(c) } else { c == '-' });
    let starts: Vec<usize> = (0..lines.len()).filter(|n| begins(lines[*n].1)).collect();
    let ends = starts.iter().skip(1).copied().chain([lines.len()]);
    starts.iter().zip(ends).map(|(start, end)| &lines[*start..end]).collect()
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line == "---"
}

fn read(text: &str) -> Result<Settings, ConfigError> {
    if text.lines().all(is_blank) {
        return Ok(Settings::default());
    }
    serde_saphyr::from_str_with_options(text, yaml_options()).map_err(|error| {
        let at = error.location();
        let place = |n: u64| usize::try_from(n).ok().filter(|n| *n > 0);
        let line = at.as_ref().and_then(|at| place(at.line()));
        let column = at.as_ref().and_then(|at| place(at.column()));
        let message = say(error.without_snippet());
        let text = line.and_then(|line| text.lines().nth(line - 1));
        // A number that does not fit is told where its key begins, other values where they themselves do.
        let key = match error.without_snippet() {
            serde_saphyr::Error::SerdeInvalidValue { .. } => key_at,
            _ => key_before,
        };
        match text.zip(column).and_then(|(line, column)| key(line, column)) {
            Some(key) if message.starts_with("expected ") => ConfigError { line, message: format!("{key}: {message}") },
            _ => ConfigError { line, message },
        }
    })
}

/// The key whose value begins at a column, from 1.
fn key_before(line: &str, column: usize) -> Option<String> {
    let before: String = line.chars().take(column - 1).collect();
    let before = before.trim_end();
    before.ends_with(':').then(|| key_of(before.trim_start_matches([' ', '-']))).flatten()
}

/// The key that begins at a column, from 1.
fn key_at(line: &str, column: usize) -> Option<String> {
    key_of(&line.chars().skip(column - 1).collect::<String>())
}

/// What is wrong, in the words of who writes such a file.
fn say(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    let clean = |text: &str| -> String { text.chars().filter(|c| !c.is_control()).take(80).collect() };
    match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            let field = clean(field);
            match nearest(&field, expected) {
                Some(known) => format!("unknown key {field:?}; did you mean {known:?}?"),
                None => format!("unknown key {field:?}; known here: {}", expected.join(", ")),
            }
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            format!("{:?} is none of {}", clean(variant), expected.join(", "))
        }
        Error::SerdeMissingField { field, .. } => format!("the key {field:?} is missing here"),
        Error::DuplicateMappingKey { key, .. } => match key {
            Some(key) => format!("the key {:?} is there twice", clean(key)),
            None => "a key is there twice".into(),
        },
        // Every number that is no size is a u16 (see `Settings`).
        Error::InvalidScalar { ty: "u16", .. } => "expected a whole number from 1 to 65535".into(),
        Error::SerdeInvalidValue { expected, .. } if expected == "a nonzero u16" => {
            "expected a whole number from 1 to 65535".into()
        }
        Error::InvalidScalar { ty: "boolean" | "bool", .. } | Error::InvalidBooleanStrict { .. } => {
            "expected true or false".into()
        }
        Error::SerdeInvalidType { unexpected, expected, .. } => {
            format!("expected {expected}, found {}", clean(unexpected))
        }
        Error::Unexpected { expected, .. } => match *expected {
            "string scalar" | "scalar" => "expected a text".into(),
            "mapping start" => "expected keys with values".into(),
            "sequence start" => "expected a list".into(),
            other => format!("expected {other}"),
        },
        Error::UnknownAnchor { .. } => "a value that begins with * needs quotes".into(),
        Error::MultipleDocuments { .. } | Error::Budget { breach: BudgetBreach::Documents { .. }, .. } => {
            "more than one document: a configuration file has one".into()
        }
        other => {
            let text = other.render_with_options(serde_saphyr::render_options! {
                snippets: serde_saphyr::SnippetMode::Off,
            });
            // The line stands before the message already.
            text.rsplit_once(" at line ").map_or(text.as_str(), |(before, _)| before).to_owned()
        }
    }
}

/// The known name that differs least, if it differs little.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, best) = known.iter().map(|k| (distance(&name.to_lowercase(), &k.to_lowercase()), *k)).min()?;
    (distance <= name.len().div_ceil(3)).then_some(best)
}

/// Levenshtein's distance: letters to change, insert or remove.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> Vec<String> {
        let errors = parse(text).err().unwrap_or_default();
        errors.iter().map(|e| format!("{}: {}", e.line.unwrap_or(0), e.message)).collect()
    }

    #[test]
    fn every_mistake_is_told_with_its_line() {
        let text = "# a file\ndata: [x]\n\nconcurrency: 0\nlogFormat: xml\nregistry:\n  tokn: a\n  # why\n  access:\n  \
            - match: A\n  - match: a\n    read: x\n    writ: [b]\nupstreams:\n- url: https://a\n- host: b\n  mode: no\nkubernetes: maybe\n";
        let expected = [
            "2: data: expected a text",
            "4: concurrency: expected a whole number from 1 to 65535",
            "5: \"xml\" is none of text, json",
            "7: unknown key \"tokn\"; did you mean \"token\"?",
            "10: \"A\" matches no repository",
            "12: read: expected a list",
            "13: unknown key \"writ\"; did you mean \"write\"?",
            "15: the key \"host\" is missing here",
            "17: \"no\" is none of public, passThrough, shared",
            "18: kubernetes: expected true or false",
        ];
        let found = wrong(text);
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found:?} for {expected:?}");
        }
    }

    #[test]
    fn every_key_of_an_entry_is_looked_at() {
        for (text, expected) in [
            (
                "upstreams:\n- host: x\n  mode: foo\n  tagTTL: 5\n  listen: y\n",
                &["3: \"foo\" is none of", "4: \"5\" is not a duration", "5: \"y\" is not an address"][..],
            ),
            (
                "upstreams:\n  - mode: foo\n    host: 'a b'\n  - url: x\n    tagTTL: 5s\n    mdoe: public\n",
                &[
                    "2: \"foo\" is none of",
                    "3: \"a b\" is not",
                    "4: the key \"host\" is missing",
                    "6: unknown key \"mdoe\"",
                ],
            ),
            (
                "upstreams:\n- host: x\n  tags:\n  - pattern: v\n    ttl: 5x\n    tll: 1s\n  - ttl: 1s\n  mode: foo\n",
                &[
                    "5: \"5x\" is not a duration",
                    "6: unknown key \"tll\"",
                    "7: the key \"pattern\" is missing",
                    "8: \"foo\" is none of",
                ],
            ),
            (
                "registry:\n  tls:\n    cert: a\n    key: [x]\n  htpaswd: b\n",
                &["4: key: expected a text", "5: unknown key \"htpaswd\""],
            ),
            ("registry:\n  tls:\n    cert: a\n    clientCA: b\n", &["4: the key \"key\" is missing"]),
            (
                "registry:\n  token: a\n  token: b\n  htpaswd: c\n",
                &["3: the key \"token\" is there twice", "4: unknown key \"htpaswd\""],
            ),
        ] {
            let found = wrong(text);
            assert_eq!(found.len(), expected.len(), "{text:?}: {found:#?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.starts_with(expected), "{text:?}: {found:?} for {expected:?}");
            }
        }
    }

    #[test]
    fn says_it_in_the_words_of_who_writes_the_file() {
        for (text, expected) in [
            ("data: /a\ndata: /b\n", &["2: the key \"data\" is there twice"][..]),
            (
                "data: /a\ndata: /b\nconcurrency: x\n",
                &["2: the key \"data\" is there twice", "3: concurrency: expected a whole number from 1 to 65535"],
            ),
            ("concurrency: 70000\n", &["1: concurrency: expected a whole number from 1 to 65535"]),
            ("concurrency: 1.5\n", &["1: concurrency: expected a whole number from 1 to 65535"]),
            ("store: 5\n", &["1: store: expected keys with values"]),
            ("hello\n", &["1: expected keys with values"]),
            ("upstreams: {a: b}\n", &["1: upstreams: expected a list"]),
            ("registry: {access: [{match: *}]}\n", &["1: "]),
            ("registry: {access: [{match: *x}]}\n", &["1: a value that begins with * needs quotes"]),
            (
                "registry: {\n  htpasswd: a,\n  tokn: b\n}\nconcurrency: 0\n",
                &["3: unknown key \"tokn\"; did you mean \"token\"?", "5: concurrency: expected a whole"],
            ),
            ("data: /a\n---\ndata: /b\n", &["2: more than one document: a configuration file has one"]),
            ("data: /a\n  b: c\n", &["2: mapping values are not allowed in this context"]),
        ] {
            let found = wrong(text);
            assert_eq!(found.len(), expected.len(), "{text:?}: {found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.starts_with(expected), "{text:?}: {found:?}");
                for word in ["Policy", "u16", "scalar", "at line", "serde", "sequence", "budget"] {
                    assert!(!found.contains(word), "{text:?}: {found:?}");
                }
            }
        }
        for text in ["", "# only\n---\n", "data: /a # x\n"] {
            assert_eq!(wrong(text), [] as [&str; 0], "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_does_not_parse_has_an_error(text in "(data|store|registry|access|- |: |\\[|\\{|\\}|\n|  |x|&a|\\*a|'|\"|#){0,30}") {
            match parse(&text) {
                Ok(settings) => assert_eq!(read(&text), Ok(settings)),
                Err(errors) => assert!(!errors.is_empty() && read(&text).is_err()),
            }
        }
    }
}
