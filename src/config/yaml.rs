//! The configuration file's YAML: read whole, and where that fails, in parts, so that every mistake is told at once.

use super::{ConfigError, Settings};
use crate::objects::documents::yaml_options;

/// How many mistakes are told.
const MAX_ERRORS: usize = 20;
/// How deep a part is taken apart: `registry`, `access`, one rule, one of its keys.
const MAX_DEPTH: usize = 5;

/// The settings in a text, or everything that is wrong with it, at least one thing.
pub(super) fn parse(text: &str) -> Result<Settings, Vec<ConfigError>> {
    let whole = match read(text) {
        Ok(settings) => return Ok(settings),
        Err(error) => error,
    };
    let lines: Vec<(usize, &str)> = text.lines().enumerate().map(|(n, line)| (n + 1, line)).collect();
    let mut errors = Vec::new();
    // A part does not know the anchors of another.
    if !text.contains('&') {
        in_parts(&mut Vec::new(), &lines, MAX_DEPTH, &mut errors);
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

/// Adds what is wrong with each part of `lines`, which stand below the keys of `above`.
fn in_parts<'a>(
    above: &mut Vec<(usize, &'a str)>,
    lines: &[(usize, &'a str)],
    depth: usize,
    errors: &mut Vec<ConfigError>,
) {
    let whole: Vec<(usize, &str)> = above.iter().chain(lines).copied().collect();
    let text: String = whole.iter().flat_map(|(_, line)| [line, "\n"]).collect();
    let Err(mut error) = read(&text) else { return };
    error.line = error.line.and_then(|line| whole.get(line - 1)).map(|(number, _)| *number);
    if errors.len() >= MAX_ERRORS {
        return;
    }
    let parts = parts(lines);
    if depth > 0 && parts.len() > 1 {
        for part in parts {
            in_parts(above, part, depth - 1, errors);
        }
        return;
    }
    // One key: what stands below it may have several mistakes, if the key itself has none.
    if let Some(first) = lines.iter().position(|(_, line)| !is_blank(line))
        && let below = &lines[first + 1..]
        && depth > 0
        && lines[first].1.trim_end().ends_with(':')
        && error.line != Some(lines[first].0)
    {
        let (length, before) = (above.len(), errors.len());
        above.push(lines[first]);
        in_parts(above, below, depth - 1, errors);
        above.truncate(length);
        if errors.len() > before {
            return;
        }
    }
    if !errors.contains(&error) {
        errors.push(error);
    }
}

/// The keys or the entries of a block, each with what belongs to it.
fn parts<'a, 'b>(lines: &'b [(usize, &'a str)]) -> Vec<&'b [(usize, &'a str)]> {
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
        let line = error.location().and_then(|at| usize::try_from(at.line()).ok()).filter(|line| *line > 0);
        ConfigError { line, message: say(error.without_snippet()) }
    })
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
        Error::MultipleDocuments { .. } => "more than one document: a configuration file has one".into(),
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
            "2: expected a text",
            "4: expected a whole number from 1 to 65535",
            "5: \"xml\" is none of text, json",
            "7: unknown key \"tokn\"; did you mean \"token\"?",
            "10: \"A\" matches no repository",
            "12: expected a list",
            "15: the key \"host\" is missing here",
            "17: \"no\" is none of public, passThrough, shared",
            "18: expected true or false",
        ];
        let found = wrong(text);
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found:?} for {expected:?}");
        }
    }

    #[test]
    fn says_it_in_the_words_of_who_writes_the_file() {
        for (text, expected) in [
            ("data: /a\ndata: /b\n", &["2: the key \"data\" is there twice"][..]),
            (
                "data: /a\ndata: /b\nconcurrency: x\n",
                &["2: the key \"data\" is there twice", "3: expected a whole number from 1 to 65535"],
            ),
            ("concurrency: 70000\n", &["1: expected a whole number from 1 to 65535"]),
            ("concurrency: 1.5\n", &["1: expected a whole number from 1 to 65535"]),
            ("store: 5\n", &["1: expected keys with values"]),
            ("hello\n", &["1: expected keys with values"]),
            ("upstreams: {a: b}\n", &["1: expected a list"]),
            ("registry: {access: [{match: *}]}\n", &["1: "]),
            ("registry: {access: [{match: *x}]}\n", &["1: a value that begins with * needs quotes"]),
            (
                "registry: {\n  htpasswd: a,\n  tokn: b\n}\nconcurrency: 0\n",
                &["3: unknown key \"tokn\"; did you mean \"token\"?", "5: expected a whole"],
            ),
            ("data: /a\n  b: c\n", &["2: mapping values are not allowed in this context"]),
        ] {
            let found = wrong(text);
            assert_eq!(found.len(), expected.len(), "{text:?}: {found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.starts_with(expected), "{text:?}: {found:?}");
                for word in ["Policy", "u16", "scalar", "at line", "serde", "sequence"] {
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
