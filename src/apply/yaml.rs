//! YAML into JSON values, bounded.
//!
//! Documents are read as kustomize reads them (see [`scalar`](super::scalar)): keys are text and unique, aliases and
//! merge keys are expanded, tags other than YAML's own count for nothing but make a scalar text; an annotation of an object is
//! the text that is written, whatever it means (`scrape: true`, `mode: 0644`), since kustomize makes text of it. What an alias
//! stands for is paid for each time from one [`Budget`], so that a small file cannot grow without bound, and
//! nesting is bounded, so that values can be walked by recursion.

use std::{
    borrow::Cow,
    collections::{HashMap, hash_map::Entry},
};

use base64::Engine as _;
use granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Tag};
use serde_json::{Map, Value};

use super::scalar::{self, Plain};

/// How deep collections may nest: CRDs reach about 40.
pub const MAX_DEPTH: usize = 128;

/// What may still be read: shared by all files of one rendering.
#[derive(Debug)]
pub struct Budget {
    nodes: usize,
    bytes: usize,
}

impl Default for Budget {
    /// A million nodes (kube-prometheus has 110,000) and 64 MiB of text, aliases expanded.
    fn default() -> Self {
        Self { nodes: 1_000_000, bytes: 64 << 20 }
    }
}

impl Budget {
    fn charge(&mut self, nodes: usize, bytes: usize) -> Result<(), Problem> {
        match (self.nodes.checked_sub(nodes), self.bytes.checked_sub(bytes)) {
            (Some(nodes), Some(bytes)) => {
                *self = Self { nodes, bytes };
                Ok(())
            }
            _ => Err(Problem::TooLarge),
        }
    }
}

/// Why a text cannot be read, and where.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct YamlError {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    #[source]
    pub problem: Problem,
}

/// What is wrong with a text.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Not YAML.
    #[error("{0}")]
    Syntax(ScanError),
    /// A key twice in one mapping.
    #[error("the key {0:?} is already there")]
    Duplicate(String),
    /// A key that is not text.
    #[error("a key is not text: quote it")]
    Key,
    /// An alias for something that is not complete, so for itself.
    #[error("an alias stands for something that contains it")]
    Recursion,
    /// `<<` with something that is not a mapping.
    #[error("only a mapping, or a list of mappings, can be merged")]
    Merge,
    /// `.inf` and the like.
    #[error("infinity and NaN cannot be written as JSON")]
    NotFinite,
    /// A tag that the value does not fit.
    #[error("the value is not what its tag {0} says")]
    Tag(String),
    /// Too deep.
    #[error("collections nest more than {MAX_DEPTH} deep")]
    Deep,
    /// Over the budget.
    #[error("the documents are too large once their aliases are expanded")]
    TooLarge,
}

impl YamlError {
    /// Whether a bound was passed, in contrast to a text that is wrong.
    pub fn is_limit(&self) -> bool {
        matches!(self.problem, Problem::Deep | Problem::TooLarge)
    }
}

/// The documents of `text` in their order, the line on which each begins, and its value. Empty ones are left out.
pub fn documents(text: &str, budget: &mut Budget) -> Result<Vec<(usize, Value)>, YamlError> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.flow_nesting_limit = MAX_DEPTH;
    options.block_nesting_limit = MAX_DEPTH;
    // As libyaml, from which go-yaml comes: no line feed that is not there.
    options.block_scalar_eof_without_line_feed = true;
    let mut composer =
        Composer { budget, anchors: HashMap::new(), stack: Vec::new(), line: 0, written: false, root: None };
    let mut found = Vec::new();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|e| YamlError { line: e.marker().line(), problem: Problem::Syntax(e) })?;
        let line = span.start.line();
        if let Event::DocumentEnd = event {
            composer.anchors.clear();
            if let Some(value) = composer.root.take().filter(|value| !value.is_null()) {
                found.push((composer.line, value));
            }
            continue;
        }
        composer.written = span.start.index() < span.end.index();
        composer.take(event, line).map_err(|problem| YamlError { line, problem })?;
    }
    Ok(found)
}

/// A collection that is not complete yet.
enum Frame {
    Sequence { items: Vec<Value>, anchor: usize },
    Mapping { entries: Map<String, Value>, key: Option<Key>, merges: Vec<Map<String, Value>>, anchor: usize },
}

enum Key {
    Text(String),
    Merge,
}

/// What an anchor stands for, and what an alias for it costs.
struct Anchored {
    value: Value,
    size: Size,
}

#[derive(Clone, Copy, Default)]
struct Size {
    nodes: usize,
    bytes: usize,
    depth: usize,
}

struct Composer<'b> {
    budget: &'b mut Budget,
    anchors: HashMap<usize, Anchored>,
    stack: Vec<Frame>,
    /// Where the document's value begins.
    line: usize,
    /// Whether what comes is there at all: the parser has a `~` for a value that is left out.
    written: bool,
    root: Option<Value>,
}

impl Composer<'_> {
    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), Problem> {
        if self.stack.is_empty() && event.is_node() {
            self.line = line;
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.budget.charge(1, text.len())?;
                if self.is_annotation() {
                    let text = if self.written { text.into_owned() } else { String::new() };
                    return self.complete(Value::String(text), anchor);
                }
                let plain = resolve(&text, style, tag.as_deref())?;
                let value = match plain {
                    Plain::Value(value) => value,
                    Plain::NotFinite => return Err(Problem::NotFinite),
                    Plain::Merge => {
                        if let Some(Frame::Mapping { key: key @ None, .. }) = self.stack.last_mut() {
                            *key = Some(Key::Merge);
                            return Ok(());
                        }
                        Value::String(text.into_owned())
                    }
                };
                self.complete(value, anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.open(Frame::Sequence { items: Vec::new(), anchor }),
            Event::MappingStart(_, anchor, _) => {
                self.open(Frame::Mapping { entries: Map::new(), key: None, merges: Vec::new(), anchor })
            }
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some(Frame::Sequence { items, anchor }) => self.complete(Value::Array(items), anchor),
                Some(Frame::Mapping { mut entries, merges, anchor, .. }) => {
                    for merge in merges {
                        for (key, value) in merge {
                            entries.entry(key).or_insert(value);
                        }
                    }
                    self.complete(Value::Object(entries), anchor)
                }
                None => Ok(()),
            },
            Event::Alias(id) => {
                let Some(Anchored { value, size }) = self.anchors.get(&id) else {
                    return Err(Problem::Recursion);
                };
                if self.stack.len() + size.depth > MAX_DEPTH {
                    return Err(Problem::Deep);
                }
                self.budget.charge(size.nodes, size.bytes)?;
                let value = value.clone();
                self.complete(value, 0)
            }
            _ => Ok(()),
        }
    }

    /// Whether what comes is the value of one of the document's annotations.
    fn is_annotation(&self) -> bool {
        let named = |frame: &Frame, name: &str| matches!(frame, Frame::Mapping { key: Some(Key::Text(key)), .. } if key == name);
        match self.stack.as_slice() {
            [object, metadata, Frame::Mapping { key: Some(Key::Text(_)), .. }] => {
                named(object, "metadata") && named(metadata, "annotations")
            }
            _ => false,
        }
    }

    fn open(&mut self, frame: Frame) -> Result<(), Problem> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(Problem::Deep);
        }
        self.budget.charge(1, 0)?;
        self.stack.push(frame);
        Ok(())
    }

    fn complete(&mut self, value: Value, anchor: usize) -> Result<(), Problem> {
        if anchor != 0 {
            // The copy that the anchor holds is paid for like one that an alias makes.
            let size = size(&value);
            self.budget.charge(size.nodes, size.bytes)?;
            match self.anchors.entry(anchor) {
                Entry::Vacant(place) => place.insert(Anchored { value: value.clone(), size }),
                Entry::Occupied(_) => return Err(Problem::Recursion),
            };
        }
        match self.stack.last_mut() {
            None => self.root = Some(value),
            Some(Frame::Sequence { items, .. }) => items.push(value),
            Some(Frame::Mapping { entries, key, merges, .. }) => match (key.take(), value) {
                (None, Value::String(text)) => {
                    if entries.contains_key(&text) {
                        return Err(Problem::Duplicate(text.chars().take(80).collect()));
                    }
                    *key = Some(Key::Text(text));
                }
                (None, _) => return Err(Problem::Key),
                (Some(Key::Text(name)), value) => {
                    entries.insert(name, value);
                }
                (Some(Key::Merge), Value::Object(map)) => merges.push(map),
                (Some(Key::Merge), Value::Array(list)) => {
                    for item in list {
                        match item {
                            Value::Object(map) => merges.push(map),
                            _ => return Err(Problem::Merge),
                        }
                    }
                }
                (Some(Key::Merge), _) => return Err(Problem::Merge),
            },
        }
        Ok(())
    }
}

fn size(value: &Value) -> Size {
    fn add(mut sum: Size, part: Size) -> Size {
        sum.nodes += part.nodes;
        sum.bytes += part.bytes;
        sum.depth = sum.depth.max(part.depth + 1);
        sum
    }
    let one = Size { nodes: 1, bytes: 0, depth: 1 };
    match value {
        Value::String(text) => Size { nodes: 1, bytes: text.len(), depth: 0 },
        Value::Array(items) => items.iter().map(size).fold(one, add),
        Value::Object(map) => map.iter().fold(one, |sum, (key, value)| {
            let mut sum = add(sum, size(value));
            sum.nodes += 1;
            sum.bytes += key.len();
            sum
        }),
        _ => Size { nodes: 1, bytes: 0, depth: 0 },
    }
}

/// A scalar's value by its notation and tag.
fn resolve(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Plain, Problem> {
    let string = || Ok(Plain::Value(Value::String(text.to_owned())));
    let Some(tag) = tag else {
        return if style == ScalarStyle::Plain { Ok(scalar::plain(text)) } else { string() };
    };
    let name = tag.suffix_in_namespace("tag:yaml.org,2002:");
    let wrong = |name: &str| Problem::Tag(format!("!!{name}"));
    let Some(name) = name.map(Cow::into_owned) else {
        // `!` alone says nothing; any other tag belongs to another program.
        let alone = style == ScalarStyle::Plain && tag.original() == "!";
        return if alone { Ok(scalar::plain(text)) } else { string() };
    };
    match (name.as_str(), scalar::plain(text)) {
        ("str", _) => string(),
        ("binary", _) => base64::engine::general_purpose::STANDARD
            .decode(text.split_ascii_whitespace().collect::<String>())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .map(|text| Plain::Value(Value::String(text)))
            .ok_or_else(|| wrong(&name)),
        ("int", Plain::Value(value)) if value.is_i64() || value.is_u64() => Ok(Plain::Value(value)),
        ("float", Plain::Value(value)) if value.is_number() => Ok(Plain::Value(value)),
        ("bool", Plain::Value(value)) if value.is_boolean() => Ok(Plain::Value(value)),
        ("null", Plain::Value(value)) if value.is_null() => Ok(Plain::Value(value)),
        ("timestamp", Plain::Value(value)) if value.is_string() => Ok(Plain::Value(value)),
        ("merge", Plain::Merge) => Ok(Plain::Merge),
        ("float", Plain::NotFinite) => Ok(Plain::NotFinite),
        _ => Err(wrong(&name)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Result<Vec<Value>, String> {
        documents(text, &mut Budget::default())
            .map(|found| found.into_iter().map(|(_, value)| value).collect())
            .map_err(|e| e.to_string())
    }

    #[test]
    fn an_annotation_is_the_text_that_is_written() {
        let text = "metadata:\n  annotations: {a: true, b: 0x10, c: ~, d: 1e3, e: .inf, f: !!int 5, g: , h: [1], 5: x}\n  \
                    labels: {a: 1}\nspec: {metadata: {annotations: {a: 1}}}\n";
        let error = read(text).unwrap_err();
        assert!(error.contains("not text"), "{error}");
        assert_eq!(
            read(&text.replace(", 5: x", "")).unwrap(),
            [json!({
                "metadata": {"annotations": {"a": "true", "b": "0x10", "c": "~", "d": "1e3", "e": ".inf", "f": "5", "g": "", "h": [1]},
                             "labels": {"a": 1}},
                "spec": {"metadata": {"annotations": {"a": 1}}}
            })]
        );
    }

    #[test]
    fn reads_documents_and_leaves_empty_ones_out() {
        let text = "---\na: 1\n---\n# nothing\n---\n- b\n---\n~\n...\n---\n\"text\"\n";
        assert_eq!(read(text).unwrap(), [json!({"a": 1}), json!(["b"]), json!("text")]);
        assert_eq!(read("").unwrap(), Vec::<Value>::new());
        let text = "# a\na:\n  b: 1\n---\n\n- c\n- d\n";
        let lines: Vec<_> = documents(text, &mut Budget::default()).unwrap().into_iter().map(|found| found.0).collect();
        assert_eq!(lines, [2, 6]);
    }

    #[test]
    fn reads_scalars_by_notation_and_tag() {
        for (text, value) in [
            ("a: \"0644\"", json!({"a": "0644"})),
            ("a: '12'", json!({"a": "12"})),
            ("a: !!str 12", json!({"a": "12"})),
            ("a: !!int \"3\"", json!({"a": 3})),
            ("a: !!binary aGVsbG8=", json!({"a": "hello"})),
            ("a: !Foo 12", json!({"a": "12"})),
            ("a: ! 12", json!({"a": 12})),
            ("a: !Foo [b]", json!({"a": ["b"]})),
            ("a: |+\n  x\n    y\n\n", json!({"a": "x\n  y\n\n"})),
            ("a: >-\n  x\n  y\n", json!({"a": "x y"})),
            ("a: |\n  x", json!({"a": "x"})),
            ("y: 1\non: 2", json!({"y": 1, "on": 2})),
            ("a:\nb: ~", json!({"a": null, "b": null})),
            ("a: <<", json!({"a": "<<"})),
            ("a: &x {b: c}\nd: {<<: *x, e: f}", json!({"a": {"b": "c"}, "d": {"b": "c", "e": "f"}})),
            (
                "x: &x {a: 1, b: 1}\ny: &y {b: 2}\nz:\n  b: 3\n  <<: [*x, *y]",
                json!({
                    "x": {"a": 1, "b": 1}, "y": {"b": 2}, "z": {"a": 1, "b": 3}
                }),
            ),
            ("{\"a\": [1, {\"b\": null}]}", json!({"a": [1, {"b": null}]})),
        ] {
            assert_eq!(read(text).unwrap(), [value], "{text}");
        }
    }

    #[test]
    fn refuses_what_has_no_json_meaning() {
        for (text, why) in [
            ("a: 1\na: 2", "line 2: the key \"a\" is already there"),
            ("1: a", "line 1: a key is not text: quote it"),
            ("true: a", "line 1: a key is not text: quote it"),
            ("? [a]\n: b", "line 1: a key is not text: quote it"),
            ("a: .inf", "line 1: infinity and NaN cannot be written as JSON"),
            ("a: !!bool \"yes\"", "line 1: the value is not what its tag !!bool says"),
            ("a: &x [*x]", "line 1: an alias stands for something that contains it"),
            ("a: {<<: 1}", "line 1: only a mapping, or a list of mappings, can be merged"),
        ] {
            assert_eq!(read(text).unwrap_err(), why, "{text}");
        }
        for text in ["a: [", "a: \"", "a: *nobody", "a: b: c", "%YAML 9.9 9\n---\n", "@", "\u{0}"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bomb_of_aliases_ends_at_the_budget() {
        let mut bomb = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 9].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        let error = documents(&bomb, &mut Budget::default()).unwrap_err();
        assert!(error.is_limit(), "{error}");

        let long = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 100].join(", "));
        assert!(documents(&long, &mut Budget::default()).unwrap_err().is_limit());
    }

    #[test]
    fn nesting_ends_at_its_bound_also_by_aliases() {
        assert!(read(&format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH))).is_ok());
        for text in [
            "[".repeat(100_000),
            "- ".repeat(100_000),
            "{a: ".repeat(MAX_DEPTH + 1),
            format!("a: &a {}{}\nb: {}*a{}", "[".repeat(70), "]".repeat(70), "[".repeat(70), "]".repeat(70)),
        ] {
            assert!(read(&text).is_err(), "{}", &text[..20]);
        }
    }
}
