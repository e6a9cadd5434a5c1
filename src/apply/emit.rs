//! JSON values into YAML that every reader takes for the same.
//!
//! Text is written plain only where YAML 1.1, YAML 1.2 and go-yaml all read it back as that text; text of several
//! lines becomes a literal block where that keeps every character, else a double-quoted scalar. Keys come sorted, in
//! an object's first level `apiVersion`, `kind` and `metadata` before the others. Equal values give equal bytes.

use std::fmt::Write as _;

use serde_json::{Map, Number, Value};

/// YAML documents, `---` between them; nothing for none.
pub fn documents<'a>(values: impl IntoIterator<Item = &'a Value>) -> String {
    let mut out = String::new();
    for value in values {
        if !out.is_empty() {
            out.push_str("---\n");
        }
        document(value, Style::Plain, &mut out);
    }
    out
}

/// One document whose variables are to be replaced in the text: what holds a dollar is quoted only where go-yaml would
/// quote it, and as it would, so that a value takes the type that it has with kustomize (`replicas: ${n}` is a number).
pub fn template(value: &Value) -> String {
    let mut out = String::new();
    document(value, Style::Template, &mut out);
    out
}

/// How text with a dollar is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// As any other.
    Plain,
    /// As go-yaml writes it.
    Template,
}

fn document(value: &Value, style: Style, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            let first = ["apiVersion", "kind", "metadata"];
            let named = first.iter().filter_map(|name| map.get_key_value(*name));
            let others = map.iter().filter(|(name, _)| !first.contains(&name.as_str()));
            entries(named.chain(others), 0, false, style, out);
        }
        Value::Array(items) if !items.is_empty() => sequence(items, 0, false, style, out),
        other => {
            scalar(other, 2, style, out);
            out.push('\n');
        }
    }
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// `inline`: the first line's indentation is there already, after a `- `.
fn entries<'a>(
    map: impl Iterator<Item = (&'a String, &'a Value)>,
    indent: usize,
    inline: bool,
    style: Style,
    out: &mut String,
) {
    for (nth, (key, value)) in map.enumerate() {
        if nth > 0 || !inline {
            pad(indent, out);
        }
        let start = out.len();
        if plain_is_safe(key) {
            out.push_str(key)
        } else if style == Style::Template && key.contains('$') {
            as_go_yaml(key, indent + 2, out)
        } else {
            quoted(key, out)
        }
        // YAML looks for the colon of a simple key within 1,024 characters only.
        if out.len() - start > 1000 {
            out.insert_str(start, "? ");
            out.push('\n');
            pad(indent, out);
        }
        out.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                entries(map.iter(), indent + 2, false, style, out);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                sequence(items, indent, false, style, out);
            }
            other => {
                out.push(' ');
                scalar(other, indent + 2, style, out);
                out.push('\n');
            }
        }
    }
}

fn sequence(items: &[Value], indent: usize, inline: bool, style: Style, out: &mut String) {
    for (nth, item) in items.iter().enumerate() {
        if nth > 0 || !inline {
            pad(indent, out);
        }
        out.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => entries(map.iter(), indent + 2, true, style, out),
            Value::Array(items) if !items.is_empty() => sequence(items, indent + 2, true, style, out),
            other => {
                scalar(other, indent + 2, style, out);
                out.push('\n');
            }
        }
    }
}

fn scalar(value: &Value, indent: usize, style: Style, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(value) => number(value, out),
        Value::String(text) if style == Style::Template && text.contains('$') => as_go_yaml(text, indent, out),
        Value::String(text) if plain_is_safe(text) => out.push_str(text),
        Value::String(text) if literal_is_safe(text) => literal(text, indent, out),
        Value::String(text) => quoted(text, out),
        Value::Array(_) => out.push_str("[]"),
        Value::Object(_) => out.push_str("{}"),
    }
}

/// YAML 1.1 knows a float with an exponent only by a dot and the exponent's sign.
fn number(value: &Number, out: &mut String) {
    let text = value.to_string();
    match text.split_once('e') {
        None => out.push_str(&text),
        Some((mantissa, exponent)) => {
            let dot = if mantissa.contains('.') { "" } else { ".0" };
            let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
            let _ = write!(out, "{mantissa}{dot}e{sign}{exponent}");
        }
    }
}

fn plain_is_safe(text: &str) -> bool {
    let Some(first) = text.bytes().next() else {
        return false;
    };
    if !(first.is_ascii_alphabetic() || matches!(first, b'/' | b'_')) {
        return false;
    }
    let usual = |b: u8| b.is_ascii_alphanumeric() || b"_-./@+=,:$()%~<>;^ ".contains(&b);
    if !text.bytes().all(usual) || text.contains(": ") || text.ends_with([':', ' ']) {
        return false;
    }
    // What YAML 1.1 takes for a boolean or null, in any case.
    text.len() > 5
        || !["y", "n", "yes", "no", "on", "off", "true", "false", "null"]
            .iter()
            .any(|word| word.eq_ignore_ascii_case(text))
}

/// Text with a dollar, which nobody takes for anything but text: plain, literal, single-quoted or double-quoted, the first
/// that can hold it.
fn as_go_yaml(text: &str, indent: usize, out: &mut String) {
    let indicator = |c: char| "#,[]{}&*!|>'\"%@`".contains(c);
    let one_line = text.chars().all(printable);
    let plain = one_line
        && !text.starts_with(|c: char| indicator(c) || c == ' ')
        && !["- ", "? ", ": ", "---", "..."].iter().any(|start| text.starts_with(start))
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.ends_with([':', ' ']);
    if plain {
        out.push_str(text);
    } else if literal_is_safe(text) {
        literal(text, indent, out);
    } else if one_line {
        out.push('\'');
        out.push_str(&text.replace('\'', "''"));
        out.push('\'');
    } else {
        quoted(text, out);
    }
}

/// Whether every YAML reader prints `c` as it is.
fn printable(c: char) -> bool {
    !matches!(c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

fn literal_is_safe(text: &str) -> bool {
    if !text.contains('\n') || !text.chars().all(|c| matches!(c, '\n' | '\t') || printable(c)) {
        return false;
    }
    // A reader finds the indentation by the first line that is not empty; lines of blanks alone would confuse it.
    let first = text.trim_start_matches('\n');
    !first.is_empty()
        && !first.starts_with([' ', '\t'])
        && !text.lines().any(|line| !line.is_empty() && line.chars().all(|c| matches!(c, ' ' | '\t')))
}

fn literal(text: &str, indent: usize, out: &mut String) {
    let body = text.trim_end_matches('\n');
    out.push_str(match text.len() - body.len() {
        0 => "|-",
        1 => "|",
        _ => "|+",
    });
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(indent, out);
            out.push_str(line);
        }
    }
    // The caller ends the last line; with `+`, the others follow here.
    for _ in 1..text.len() - body.len() {
        out.push('\n');
    }
}

fn quoted(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if printable(c) => out.push(c),
            c if u32::from(c) <= 0xff => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
        }
    }
    out.push('"');
}

/// A mapping as a YAML document.
pub fn mapping(map: Map<String, Value>) -> String {
    documents([&Value::Object(map)])
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::{prelude::*, strategy::ValueTree as _};
    use serde_json::json;

    use super::*;
    use crate::apply::{scalar::from_float, yaml};

    fn read(text: &str) -> Vec<Value> {
        let found = yaml::documents(text, &mut yaml::Budget::default());
        found.unwrap_or_else(|e| panic!("{e}:\n{text}")).into_iter().map(|(_, value)| value).collect()
    }

    #[test]
    fn writes_objects_as_people_write_them() {
        let deployment = json!({
            "spec": {"replicas": 1, "args": ["--a=b", "on", "1.25", "0644", ""], "empty": {}, "none": null, "list": []},
            "kind": "Deployment", "metadata": {"name": "a", "labels": {"app": "x"}}, "apiVersion": "apps/v1",
            "nested": [[1, 2], [{"a": [{}]}]], "text": "a\n  b\n", "open": "a\nb", "kept": "a\n\n\n", "time": "a: b"
        });
        let text = documents([&deployment, &json!({"a": 1e-8, "b": 1e300})]);
        assert_eq!(
            text,
            "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  labels:\n    app: x\n  name: a\n\
             kept: |+\n  a\n\n\nnested:\n- - 1\n  - 2\n- - a:\n    - {}\nopen: |-\n  a\n  b\nspec:\n  args:\n  \
             - \"--a=b\"\n  - \"on\"\n  - \"1.25\"\n  - \"0644\"\n  - \"\"\n  empty: {}\n  list: []\n  none: null\n  \
             replicas: 1\ntext: |\n  a\n    b\ntime: \"a: b\"\n---\na: 1.0e-8\nb: 1.0e+300\n"
        );
        assert_eq!(read(&text)[0], deployment);
        assert_eq!(documents([]), "");
    }

    #[test]
    fn a_template_quotes_text_with_a_dollar_as_go_yaml_does() {
        for (text, expected) in [
            ("${n}", "a: ${n}\n"),
            ("x-${n}:8080/{b}", "a: x-${n}:8080/{b}\n"),
            ("$x, y", "a: $x, y\n"),
            ("a: ${n}", "a: 'a: ${n}'\n"),
            ("it's ${n} #1", "a: 'it''s ${n} #1'\n"),
            ("{${n}}", "a: '{${n}}'\n"),
            ("${n}:", "a: '${n}:'\n"),
            ("${n} ", "a: '${n} '\n"),
            ("if ${n}\n  x\n", "a: |\n  if ${n}\n    x\n"),
            ("\t${n}\u{7}", "a: \"\\t${n}\\x07\"\n"),
            ("1.25", "a: \"1.25\"\n"),
        ] {
            let value = json!({"a": text});
            assert_eq!(template(&value), expected);
            assert_eq!(read(&template(&value))[0], value, "{text}");
        }
        assert_eq!(template(&json!({"${k}": [{"${l}": "${m}"}]})), "${k}:\n- ${l}: ${m}\n");
    }

    /// Texts that YAML readers are known to take for something else, and any others.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            prop::sample::select(vec![
                "yes",
                "NO",
                "On",
                "y",
                "~",
                "null",
                "1e3",
                "1_000",
                "0x1f",
                "0o7",
                "010",
                "1:30",
                "1:30.5",
                ".5",
                "-",
                "- a",
                "? a",
                ": a",
                "a: b",
                "a #b",
                "#",
                "!x",
                "&a",
                "*a",
                "<<",
                "=",
                "%",
                "@a",
                "`",
                "|",
                ">",
                "{a",
                "[a",
                "'",
                "\"",
                "\\",
                "2001-01-01",
                "---",
                "...",
                " a",
                "a ",
                "a:",
                "\n",
                "\n\n",
                "a\n",
                "\na",
                " \na",
                "a\n \nb",
                "a\tb\n",
                "\ta\n",
                "a\r\nb",
                "a\n\n\n",
                "a\n  b",
                "#a\nb",
                "- a\n- b\n",
                "\u{85}",
                "\u{2028}",
                "\u{feff}a",
                "é\nü",
                "🙂",
                "\u{7f}",
                "\0",
                "a\n---\nb\n",
                "a,b",
                "1.0",
                "+1",
                ".inf",
                ".NaN",
                "0b1",
                "a\n\t\nb\n",
                "---\na\n",
                "a \nb \n",
                "\u{fffe}",
                "a  #  b\n",
                "0",
                "-0",
                "00",
                "1e400",
            ])
            .prop_map(String::from),
            "\\PC{0,12}",
            "[ a\n\t:#'\"-]{0,12}",
            any::<String>(),
        ]
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(|v| from_float(v).unwrap_or(Value::Null)),
            text().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(text(), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_was_written_reads_back_as_it_was(values in prop::collection::vec(value(), 1..4)) {
            let values: Vec<_> = values.into_iter().filter(|v| !v.is_null()).collect();
            prop_assert_eq!(read(&documents(&values)), values);
        }
    }

    #[test]
    fn a_very_long_key_reads_back() {
        let map = json!({"k".repeat(3000): {"a": [1]}, "x\n".repeat(900): "b"});
        assert_eq!(read(&documents([&map])), std::slice::from_ref(&map));
        assert_eq!(read(&documents([&json!([map])])), [json!([map])]);
    }

    /// serde_json reads floats to the last bit but one.
    fn rounded(value: &Value) -> Value {
        match value {
            Value::Number(n) if n.is_f64() => Value::from(format!("{:.12e}", n.as_f64().unwrap())),
            Value::Array(items) => items.iter().map(rounded).collect(),
            Value::Object(map) => Value::Object(map.iter().map(|(k, v)| (k.clone(), rounded(v))).collect()),
            other => other.clone(),
        }
    }

    /// PyYAML reads YAML 1.1: what go-yaml leaves as text it may take for something else.
    #[test]
    fn a_reader_of_yaml_1_1_reads_the_same() {
        let python = |script: &str| {
            let mut command = Command::new("python3");
            command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        };
        if !python("import yaml").output().is_ok_and(|o| o.status.success()) {
            assert!(std::env::var_os("LARDER_REQUIRE_PEERS").is_none(), "python3 with PyYAML is required");
            eprintln!("SKIPPED: there is no python3 with PyYAML here");
            return;
        }
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let values: Vec<Value> = (0..200)
            .map(|_| value().new_tree(&mut runner).unwrap().current())
            // PyYAML refuses these two non-characters whatever their notation.
            .filter(|v| !v.is_null() && !v.to_string().contains(['\u{fffe}', '\u{ffff}']))
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("values.yaml");
        std::fs::write(&file, documents(&values)).unwrap();
        let script = "import yaml,json,sys\nprint(json.dumps(list(yaml.safe_load_all(open(sys.argv[1],encoding='utf-8',newline='')))))";
        let output = python(script).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let seen: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        for (seen, value) in seen.iter().zip(&values) {
            assert_eq!(rounded(seen), rounded(value));
        }
        assert_eq!(seen.len(), values.len());
    }
}
