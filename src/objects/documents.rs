//! From bytes to documents: YAML streams and JSON, as Kubernetes' own tools read them.
//!
//! A stream is split at the lines that begin with `---` before anything is parsed, so that a document that cannot be
//! read does not take its neighbours with it. YAML is read as `sigs.k8s.io/yaml` does: `yes`, `no`, `on`, `off` are
//! booleans, `0755` is octal, a key may not appear twice. What a document may cost is bounded ([`MAX_FILE`], and the
//! parser's budgets for depth, nodes and aliases); nothing here panics on any input.

use serde_json::Value;

/// The largest file that is read, in bytes: eight times what an API server takes as one object.
pub const MAX_FILE: usize = 8 << 20;

/// What an alias may repeat, in nodes over a whole document: real manifests repeat a few dozen.
const MAX_REPLAYED: usize = 20_000;

/// One document of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// From 1; empty documents do not count.
    pub index: usize,
    /// The line on which it begins, from 1.
    pub line: usize,
    /// What it says.
    pub value: Result<Value, Fault>,
}

/// Why a document could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// The line of the file, from 1, where it is known.
    pub line: Option<usize>,
    /// What is wrong. Never a part of the document, if that may be a Secret.
    pub message: String,
}

impl Fault {
    fn new(line: Option<usize>, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

/// Reads all documents of a file: a YAML stream, or one or more JSON values. A file without any gives none.
pub fn parse_documents(bytes: &[u8]) -> Vec<Document> {
    let whole = |line, message: String| vec![Document { index: 1, line: 1, value: Err(Fault::new(line, message)) }];
    if bytes.len() > MAX_FILE {
        return whole(None, format!("the file has {} bytes, more than the {MAX_FILE} that are read", bytes.len()));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count();
            return whole(Some(line), "not UTF-8".into());
        }
    };
    // JSON is nearly a part of YAML, but a stream of values without `---`, as kubectl reads it, is not.
    if text.trim_start().starts_with('{')
        && let Some(values) = parse_json(text)
    {
        return values;
    }
    split(text)
        .into_iter()
        .enumerate()
        .map(|(i, (line, chunk))| Document { index: i + 1, line, value: parse_yaml(chunk, line) })
        .collect()
}

/// The values of a JSON stream; `None` if it is not one, and perhaps YAML.
fn parse_json(text: &str) -> Option<Vec<Document>> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut documents = Vec::new();
    let mut at = 0;
    let mut line = 1;
    while let Some(value) = stream.next() {
        let value = value.ok()?;
        let start = at + text.get(at..)?.find(|c: char| !c.is_whitespace())?;
        line += text.get(at..start)?.matches('\n').count();
        documents.push(Document { index: documents.len() + 1, line, value: Ok(value) });
        at = stream.byte_offset();
        line += text.get(start..at)?.matches('\n').count();
    }
    Some(documents)
}

/// Whether a line is a document marker: exactly `---` (or `...`), then nothing or a blank.
fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// The chunks of a stream that hold something, each with the number of its first line.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut chunks = Vec::new();
    let (mut start, mut first, mut filled) = (0, 1, false);
    let mut offset = 0;
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let ends = is_marker(line, "...");
        if ends || is_marker(line, "---") {
            if filled {
                chunks.push((first, &text[start..offset]));
            }
            // What stands behind `---` on its line belongs to the document, `...` does not.
            start = if ends { offset + line.len() } else { offset };
            first = if ends { i + 2 } else { i + 1 };
            let rest = line[3..].trim();
            filled = !ends && !rest.is_empty() && !rest.starts_with('#');
        } else if !filled {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') || line.starts_with('%') {
                // Directives and comments before a document's start are no document.
                if line.starts_with('%') {
                    start = offset + line.len();
                    first = i + 2;
                }
            } else {
                filled = true;
            }
        }
        offset += line.len();
    }
    if filled {
        chunks.push((first, &text[start..]));
    }
    chunks
}

/// The options of every YAML parse here. Snippets would quote the document.
pub(crate) fn yaml_options() -> serde_saphyr::Options {
    let mut limits = serde_saphyr::options::AliasLimits::default();
    limits.max_total_replayed_events = MAX_REPLAYED;
    let mut budget = serde_saphyr::budget::Budget::default();
    budget.max_documents = 1;
    budget.max_total_scalar_bytes = 2 * MAX_FILE;
    budget.max_recorded_anchor_bytes = MAX_FILE;
    serde_saphyr::options! {
        budget: Some(budget),
        alias_limits: limits,
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

/// Whether a text may be a Secret, however broken: then nothing of it may be repeated.
fn may_hold_secrets(text: &str) -> bool {
    text.match_indices("kind").any(|(at, word)| {
        let rest = text[at + word.len()..].trim_start_matches(['"', '\'']).trim_start();
        rest.strip_prefix(':').is_some_and(|v| v.trim_start().trim_start_matches(['"', '\'']).starts_with("Secret"))
    }) || ["stringData", "dockerconfigjson"].iter().any(|word| text.contains(word))
}

fn parse_yaml(chunk: &str, first_line: usize) -> Result<Value, Fault> {
    serde_saphyr::from_str_with_options::<Value>(chunk, yaml_options()).map_err(|error| {
        let line = error
            .location()
            .and_then(|at| usize::try_from(at.line()).ok())
            .filter(|line| *line > 0)
            .map(|line| first_line + line - 1);
        if may_hold_secrets(chunk) {
            return Fault::new(line, "not valid YAML (what is there is not shown: the document may be a Secret)");
        }
        // The message may quote a key or a scalar, on one line and not at length.
        let message: String = error
            .without_snippet()
            .render_with_options(serde_saphyr::render_options! {
                snippets: serde_saphyr::SnippetMode::Off,
                line_offset: first_line as u64 - 1,
            })
            // What the library says to who calls it.
            .replace(", set DuplicateKeyPolicy in Options if acceptable", "")
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(300)
            .collect();
        Fault::new(line, format!("not valid YAML: {message}"))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn values(text: &str) -> Vec<(usize, Value)> {
        parse_documents(text.as_bytes()).into_iter().map(|d| (d.line, d.value.unwrap())).collect()
    }

    #[test]
    fn splits_streams_as_kubernetes_does() {
        let table: &[(&str, &[(usize, Value)])] = &[
            ("", &[]),
            ("---\n", &[]),
            ("# nothing\n---\n# here\n\n---\n", &[]),
            ("a: 1", &[(1, json!({"a": 1}))]),
            ("---\na: 1\n---\nb: 2\n", &[(1, json!({"a": 1})), (3, json!({"b": 2}))]),
            ("# c\n---\na: 1\n...\n---\n--- # again\nb: 2\n", &[(2, json!({"a": 1})), (6, json!({"b": 2}))]),
            ("--- {a: 1}\n--- {b: 2}\n", &[(1, json!({"a": 1})), (2, json!({"b": 2}))]),
            ("%YAML 1.2\n---\na: 1\n", &[(2, json!({"a": 1}))]),
            ("a: |\n  ---\n  x\n", &[(1, json!({"a": "---\nx\n"}))]),
            ("a: ---x\n", &[(1, json!({"a": "---x"}))]),
            ("\u{feff}a: 1\r\n---\r\nb: 2\r\n", &[(1, json!({"a": 1})), (2, json!({"b": 2}))]),
            ("{\"a\": 1}\n\n{\"b\":\n2}", &[(1, json!({"a": 1})), (3, json!({"b": 2}))]),
            ("{a: 1}\n", &[(1, json!({"a": 1}))]),
        ];
        for (text, expected) in table {
            assert_eq!(values(text), *expected, "{text:?}");
        }
    }

    #[test]
    fn reads_scalars_as_kubernetes_does() {
        let text = "{a: yes, b: 'yes', c: off, d: 1e3, e: 0755, f: ~, g: 1.0, h: v1.0.0, i: 5m, j: \"0755\"}";
        let expected = json!({"a": true, "b": "yes", "c": false, "d": 1000.0, "e": 493, "f": null, "g": 1.0,
            "h": "v1.0.0", "i": "5m", "j": "0755"});
        assert_eq!(values(text), [(1, expected)]);
    }

    #[test]
    fn a_bad_document_leaves_the_others() {
        let documents = parse_documents(b"a: 1\n---\nb: [1\n---\nc: {x: 1, x: 2}\n---\nd: 4\n");
        let read: Vec<_> = documents.iter().map(|d| (d.index, d.line, d.value.is_ok())).collect();
        assert_eq!(read, [(1, 1, true), (2, 2, false), (3, 4, false), (4, 6, true)]);
        let fault = documents[2].value.as_ref().unwrap_err();
        assert_eq!(fault.line, Some(5));
        assert!(fault.message.contains("duplicate mapping key: x") && !fault.message.contains("Policy"), "{fault}");
    }

    #[test]
    fn refuses_alias_bombs_and_what_is_too_large() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..9 {
            bomb += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", "));
        }
        let mut heavy = format!("a: &a {}\nb:\n", "x".repeat(1 << 20));
        heavy += &"- *a\n".repeat(90);
        let deep = "[".repeat(100_000);
        let long = vec![b' '; MAX_FILE + 1];
        for bad in [bomb.as_bytes(), heavy.as_bytes(), deep.as_bytes(), &long, b"a: *nowhere", b"\xff"] {
            let documents = parse_documents(bad);
            assert_eq!(documents.len(), 1);
            assert!(documents[0].value.is_err(), "{}", String::from_utf8_lossy(&bad[..bad.len().min(20)]));
        }
    }

    #[test]
    fn never_repeats_what_may_be_a_secret() {
        for text in [
            "kind: Secret\nstringData:\n  password: hunter2\n  password: hunter2x\n",
            "{\"kind\" : \"Secret\", \"data\": {\"hunter2\": \"x\", \"hunter2\": *hunter2}}",
            "kind: Secret\ndata:\n  a: hunter2: hunter2\n",
            "kind: 'Secret'\ndata: [*hunter2]\n",
            "data:\n  .dockerconfigjson: hunter2\n  .dockerconfigjson: *hunter2\n",
        ] {
            let documents = parse_documents(text.as_bytes());
            let fault = documents[0].value.as_ref().unwrap_err();
            assert!(!format!("{fault:?}").contains("hunter2"), "{fault:?}");
        }
    }

    proptest! {
        #[test]
        fn survives_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse_documents(&bytes);
        }

        #[test]
        fn survives_anything_that_looks_like_yaml(text in "([-:{}\\[\\]&*!|>%#'\"a \n]|---\n|\\.\\.\\.\n|a: ){0,60}") {
            for document in parse_documents(text.as_bytes()) {
                prop_assert!(document.line >= 1 && document.index >= 1);
            }
        }
    }
}
