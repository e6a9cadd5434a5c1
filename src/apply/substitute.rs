//! `${variables}` in text, as Flux's post-build substitution knows them (fluxcd/pkg `envsubst`).
//!
//! ```text
//! ${v}  ${#v}                     value, its length in bytes
//! ${v:=d} ${v:-d} ${v=d}          d where v is unset or empty; d may hold variables. `:+` and `:?` do the same, as in Flux
//! ${v:n} ${v:n:m}                 from byte n (from the end if negative), at most m bytes
//! ${v^} ${v^^} ${v,} ${v,,}       first letter, or all, to upper or lower case
//! ${v#p} ${v##p} ${v%p} ${v%%p}   without the shortest or longest match of p at the start or end
//! ${v/a/b} ${v//a/b} ${v/#a/b} ${v/%a/b}   a replaced once, everywhere, at the start, at the end
//! $$                              a dollar
//! ```
//!
//! A variable that is not set is an error unless its expression has a default.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::secret::Secret;

/// How deep expressions may nest.
const MAX_DEPTH: usize = 32;
/// A Secret's value that is shorter, in bytes, keeps nothing to itself, and would hide letters of any text.
const MIN_HIDDEN: usize = 4;

/// What the variables are; never shown, since a part of them may come from Secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Variables {
    values: BTreeMap<String, String>,
    /// The values of Secrets, as they are and as Go quotes them.
    hidden: BTreeSet<String>,
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Variables({})", self.values.len())
    }
}

impl Variables {
    /// Sets a variable; a later value wins. Line feeds are left out, as in Flux: a value stands within one line of YAML.
    pub fn set(&mut self, name: &str, value: &str) {
        self.values.insert(name.to_owned(), value.replace('\n', ""));
    }

    /// Sets a variable that comes from a Secret.
    pub fn set_secret(&mut self, name: &str, value: &Secret) {
        self.set(name, value.expose());
        for line in value.expose().split('\n').map(str::trim).filter(|line| line.len() >= MIN_HIDDEN) {
            let quoted = format!("{line:?}");
            self.hidden.insert(quoted[1..quoted.len() - 1].to_owned());
            self.hidden.insert(line.to_owned());
        }
        if let Some(value) = self.values.get(name).filter(|value| value.len() >= MIN_HIDDEN) {
            self.hidden.insert(value.clone());
        }
    }

    /// `text` without the values of Secrets: who refuses an object quotes what stands in it.
    pub fn hide(&self, text: &str) -> String {
        // The longest first: one may be a part of another.
        let mut hidden: Vec<&String> = self.hidden.iter().collect();
        hidden.sort_by_key(|value| std::cmp::Reverse(value.len()));
        hidden.into_iter().fold(text.to_owned(), |text, value| text.replace(value.as_str(), "[redacted]"))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Names and values in their order, for a fingerprint.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The first name that no expression could have.
    pub fn bad_name(&self) -> Option<&str> {
        let fits = |name: &str| {
            let mut bytes = name.bytes();
            bytes.next().is_some_and(|b| b == b'_' || b.is_ascii_alphabetic())
                && bytes.all(|b| b == b'_' || b.is_ascii_alphanumeric())
        };
        self.values.keys().map(String::as_str).find(|name| !fits(name))
    }
}

/// Why a text cannot be substituted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SubstituteError {
    /// Not an expression.
    #[error("`{text}` is not an expression: {why}; write $${{ for a literal ${{")]
    Malformed {
        /// Where it begins.
        text: String,
        /// What is wrong.
        why: &'static str,
    },
    /// No value and no default.
    #[error("variable not set: {name:?}; set it in spec.postBuild, or give it a default as in ${{{name}:=value}}")]
    Unset {
        /// The variable.
        name: String,
    },
    /// Nested too deep.
    #[error("expressions nest more than {MAX_DEPTH} deep")]
    Deep,
}

/// `text` with its expressions replaced.
///
/// # Errors
/// Any expression that is none, or that has no value.
pub fn substitute(text: &str, variables: &Variables) -> Result<String, SubstituteError> {
    let mut parser = Parser { text, at: 0, variables };
    let mut out = String::with_capacity(text.len());
    while let Some(dollar) = parser.rest().find('$') {
        out.push_str(&parser.rest()[..dollar]);
        parser.at += dollar;
        match parser.rest().as_bytes().get(1) {
            Some(b'$') => {
                out.push('$');
                parser.at += 2;
            }
            Some(b'{') => out.push_str(&parser.expression(0)?),
            _ => {
                out.push('$');
                parser.at += 1;
            }
        }
    }
    out.push_str(parser.rest());
    Ok(out)
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    variables: &'t Variables,
}

impl<'t> Parser<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    /// Takes `word` if it is next.
    fn take(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    fn name(&mut self) -> &'t str {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    /// From `${` to its `}`.
    fn expression(&mut self, depth: usize) -> Result<String, SubstituteError> {
        let start = self.at;
        let wrong = |why: &'static str| {
            let text: String = self.text[start..].chars().take_while(|c| *c != '\n').take(60).collect();
            SubstituteError::Malformed { text, why }
        };
        if depth >= MAX_DEPTH {
            return Err(SubstituteError::Deep);
        }
        self.at += 2;
        if self.rest().starts_with('#') {
            self.at += 1;
            let name = self.name();
            if name.is_empty() || !self.take("}") {
                return Err(wrong("after ${# stands the name of a variable and }"));
            }
            return Ok(self.value(name)?.len().to_string());
        }
        let name = self.name();
        if name.is_empty() {
            return Err(wrong("after ${ stands the name of a variable"));
        }
        const CLOSE: &str = "it is not closed by }";
        if self.take("}") {
            return Ok(self.value(name)?.to_owned());
        }
        if [":=", ":-", ":?", ":+", "="].iter().any(|operator| self.take(operator)) {
            let default = self.argument("}", false, depth)?;
            if !self.take("}") {
                return Err(wrong(CLOSE));
            }
            let value = self.variables.values.get(name).map(String::as_str).unwrap_or_default();
            return Ok(if value.is_empty() { default } else { value.to_owned() });
        }
        // All others read the value, so it has to be there.
        let result = if self.take(":") {
            let from = self.argument(":}", false, depth)?;
            let length = if self.take(":") { Some(self.argument("}", false, depth)?) } else { None };
            slice(self.value(name)?, &from, length.as_deref())
        } else if let Some(operator) = ["//", "/#", "/%", "/"].into_iter().find(|o| self.take(o)) {
            let pattern = self.argument("/", true, depth)?;
            if !self.take("/") {
                return Err(wrong("a / stands between what is replaced and what replaces it"));
            }
            let by = self.argument("}", true, depth)?;
            replace(operator, self.value(name)?, &pattern, &by)
        } else if let Some(operator) = ["##", "#", "%%", "%"].into_iter().find(|o| self.take(o)) {
            let pattern = self.argument("}", false, depth)?;
            trim(operator, self.value(name)?, &pattern)
        } else if let Some(operator) = ["^^", "^", ",,", ","].into_iter().find(|o| self.take(o)) {
            recase(operator, self.value(name)?)
        } else {
            return Err(wrong(CLOSE));
        };
        if !self.take("}") {
            return Err(wrong(CLOSE));
        }
        Ok(result)
    }

    /// Text up to one of `ends`, with what variables it holds.
    fn argument(&mut self, ends: &str, escapes: bool, depth: usize) -> Result<String, SubstituteError> {
        let mut out = String::new();
        while let Some(next) = self.rest().chars().next() {
            if self.rest().starts_with("${") {
                out.push_str(&self.expression(depth + 1)?);
                continue;
            }
            if ends.contains(next) {
                break;
            }
            let escaped = escapes && ["\\/", "\\\\", "$$"].iter().any(|pair| self.rest().starts_with(pair));
            if escaped {
                self.at += 1;
            }
            let Some(c) = self.rest().chars().next() else { break };
            out.push(c);
            self.at += c.len_utf8();
        }
        Ok(out)
    }

    fn value(&self, name: &str) -> Result<&'t str, SubstituteError> {
        let found = self.variables.values.get(name);
        found.map(String::as_str).ok_or_else(|| SubstituteError::Unset { name: name.chars().take(80).collect() })
    }
}

/// By bytes, as Go counts them; numbers that are none leave the value as it is, as in bash.
fn slice(value: &str, from: &str, length: Option<&str>) -> String {
    let (Ok(from), Ok(length)) = (from.parse::<i64>(), length.map(str::parse::<i64>).transpose()) else {
        return value.to_owned();
    };
    let size = i64::try_from(value.len()).unwrap_or(i64::MAX);
    let start = if from < 0 { (size + from).max(0) } else { from.min(size) };
    let end = length.map_or(size, |length| start.saturating_add(length).clamp(start, size));
    let place = |at: i64| usize::try_from(at).unwrap_or(0);
    String::from_utf8_lossy(&value.as_bytes()[place(start)..place(end)]).into_owned()
}

fn replace(operator: &str, value: &str, pattern: &str, by: &str) -> String {
    match operator {
        "//" => value.replace(pattern, by),
        "/#" => value.strip_prefix(pattern).map_or_else(|| value.to_owned(), |rest| format!("{by}{rest}")),
        "/%" => value.strip_suffix(pattern).map_or_else(|| value.to_owned(), |rest| format!("{rest}{by}")),
        _ => value.replacen(pattern, by, 1),
    }
}

fn recase(operator: &str, value: &str) -> String {
    let first = |change: fn(char) -> String| {
        let mut chars = value.chars();
        chars.next().map_or_else(String::new, |c| change(c) + chars.as_str())
    };
    match operator {
        "^^" => value.to_uppercase(),
        ",," => value.to_lowercase(),
        "^" => first(|c| c.to_uppercase().collect()),
        _ => first(|c| c.to_lowercase().collect()),
    }
}

/// Without what matches at the start (`#`) or the end (`%`): the longest match if the sign is doubled.
fn trim(operator: &str, value: &str, pattern: &str) -> String {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = value.chars().collect();
    let at_start = operator.starts_with('#');
    // An empty match takes nothing away, so it is not looked for.
    let mut lengths: Vec<usize> = (1..=text.len()).collect();
    if operator.len() == 2 {
        lengths.reverse();
    }
    for length in lengths {
        let (part, rest) = if at_start {
            text.split_at(length)
        } else {
            let (rest, part) = text.split_at(text.len() - length);
            (part, rest)
        };
        if matches(&pattern, part) {
            return rest.iter().collect();
        }
    }
    value.to_owned()
}

/// `*`, `?`, `[a-z]`, `[^a]` and `\c`, against the whole text.
fn matches(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last star stood, and how much it has taken.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            None if t == text.len() => return true,
            None => None,
            Some(_) => text.get(t).and_then(|c| one(&pattern[p..], *c)),
        };
        match (step, star) {
            (Some(width), _) => {
                p += width;
                t += 1;
            }
            (None, Some((after, taken))) if taken < text.len() => {
                star = Some((after, taken + 1));
                (p, t) = (after, taken + 1);
            }
            _ => return false,
        }
    }
}

/// How much of the pattern stands for `c`, if it does.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', escaped, ..] => (*escaped == c).then_some(2),
        ['[', class @ ..] => {
            let end = class.iter().position(|c| *c == ']')?;
            let (negated, set) = match &class[..end] {
                ['^', set @ ..] => (true, set),
                set => (false, set),
            };
            let mut found = false;
            let mut set = set;
            while let Some(first) = set.first() {
                if let [low, '-', high, ..] = set {
                    found |= (*low..=*high).contains(&c);
                    set = &set[3..];
                } else {
                    found |= *first == c;
                    set = &set[1..];
                }
            }
            (found != negated).then_some(end + 2)
        }
        [literal, ..] => (*literal == c).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        let mut variables = Variables::default();
        for (name, value) in
            [("v", "world"), ("empty", ""), ("path", "a/b/c.tar.gz"), ("lines", "a\nb\n"), ("_x1", "1"), ("u", "ÄbC")]
        {
            variables.set(name, value);
        }
        variables
    }

    #[test]
    fn what_comes_from_a_secret_is_hidden_however_it_is_quoted() {
        let mut variables = variables();
        variables.set_secret("password", &Secret::new("hunter2\n"));
        variables.set_secret("pair", &Secret::new("say \"hi\"\nhunter2-too"));
        variables.set_secret("short", &Secret::new("on"));
        for (text, shown) in [
            ("Invalid value: \"hunter2\": must be a number", "Invalid value: \"[redacted]\": must be a number"),
            ("hunter2-too and hunter2", "[redacted] and [redacted]"),
            (r#"quoted \"say \"hi\"\", plain say "hi""#, r#"quoted \"[redacted]\", plain [redacted]"#),
            ("joined say \"hi\"hunter2-too", "joined [redacted]"),
            ("world on a short", "world on a short"),
        ] {
            assert_eq!(variables.hide(text), shown);
        }
    }

    #[test]
    fn expressions_mean_what_flux_takes_them_for() {
        for (text, expected) in [
            ("", ""),
            ("no $variable {here} } $", "no $variable {here} } $"),
            ("hello ${v}!", "hello world!"),
            ("$${v} $$v $$$${v}", "${v} $v $${v}"),
            ("$$${v}", "$world"),
            ("${_x1}${v}", "1world"),
            ("[${empty}]", "[]"),
            ("${lines}", "ab"),
            ("${#v}${#empty}", "50"),
            ("${n:=d} ${n:-d} ${n=d} ${empty:=d} ${v:=d} ${v:-d}", "d d d d world world"),
            ("${n:=}", ""),
            ("${n:=a b: {c}", "a b: {c"),
            ("${n:=${m:-${v}}-x}", "world-x"),
            ("${n:=$$}", "$$"),
            ("${n:+d} ${n:?d}", "d d"),
            ("${v^} ${v^^} ${u,} ${u,,}", "World WORLD äbC äbc"),
            ("${v:1}|${v:1:3}|${v:9}|${v:0:99}|${v:-2}", "orld|orl||world|world"),
            ("${v:x} ${v:1:x}", "world world"),
            ("${path#*/}|${path##*/}|${path%.*}|${path%%.*}", "b/c.tar.gz|c.tar.gz|a/b/c.tar|a/b/c"),
            ("${v#w?[a-r]}|${v#[^w]}|${v%\\d}|${v#nothing}", "ld|world|worl|world"),
            ("${v/o/0} ${path//a/X} ${v/#wo/W} ${v/%ld/L} ${v/#x/y}", "w0rld X/b/c.tXr.gz Wrld worL world"),
            ("${path/\\//-}", "a-b/c.tar.gz"),
            ("${v/o/}", "wrld"),
        ] {
            assert_eq!(substitute(text, &variables()).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_or_not_set_is_an_error() {
        for text in
            ["${", "${}", "${v", "${v-d}", "${v:=d", "${.v}", "${v/a}", "${v^", "${#}", "${#v", "${ v }", "${n:=$${v}"]
        {
            let error = substitute(text, &variables()).unwrap_err();
            assert!(matches!(error, SubstituteError::Malformed { .. }), "{text}: {error}");
        }
        for text in ["${n}", "${#n}", "${n^^}", "${n:1}", "${n/a/b}", "${n#a}", "a ${v:-${n}} ${n:=${m}}"] {
            let error = substitute(text, &variables()).unwrap_err();
            assert!(matches!(error, SubstituteError::Unset { .. }), "{text}: {error}");
        }
        let deep = format!("{}x{}", "${n:=".repeat(100), "}".repeat(100));
        assert_eq!(substitute(&deep, &variables()), Err(SubstituteError::Deep));
    }

    #[test]
    fn names_are_checked_and_values_never_shown() {
        let mut variables = variables();
        assert_eq!(variables.bad_name(), None);
        variables.set("a-b", "secret");
        assert_eq!(variables.bad_name(), Some("a-b"));
        assert!(!format!("{variables:?}").contains("secret"));
    }
}
