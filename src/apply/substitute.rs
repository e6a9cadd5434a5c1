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
//!
//! **Bounds.** An expression yields 4 MiB at most, the expressions of one rendering write 64 MiB together, and look at 2^28
//! bytes or so, a second's work: what is written is known before there is room made for it. Whoever renders can give it up.

pub use super::variables::{Derived, Variables};

/// How deep expressions may nest.
const MAX_DEPTH: usize = 32;
/// What one expression may yield, in bytes: an API server takes no object that is larger.
const MAX_RESULT: usize = 4 << 20;
/// What all expressions of a rendering may write together, what they hold in between included.
const MAX_WRITTEN: usize = 64 << 20;
/// What they may look at.
const MAX_STEPS: usize = 1 << 28;
/// How many steps lie between two questions whether it is still wanted.
const ASK_EVERY: usize = 1 << 20;
/// What an expression costs by itself, in steps.
const EXPRESSION: usize = 16;

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
    /// Over a bound.
    #[error("variable {name:?}: {why}")]
    TooLarge {
        /// The variable.
        name: String,
        /// Which bound.
        why: Over,
    },
    /// The rendering is not wanted any more.
    #[error("it was given up")]
    GivenUp,
}

impl SubstituteError {
    /// Whether a bound was passed, in contrast to a text that is wrong.
    pub fn is_limit(&self) -> bool {
        matches!(self, Self::Deep | Self::TooLarge { .. } | Self::GivenUp)
    }
}

/// Which bound was passed.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Over {
    /// Of one expression.
    #[error("its expression yields more than {} MiB", MAX_RESULT >> 20)]
    Result,
    /// Of all together.
    #[error("the expressions up to this one yield more than {} MiB together", MAX_WRITTEN >> 20)]
    Written,
    /// Of time.
    #[error("the expressions up to this one take too much work, {MAX_STEPS} steps")]
    Steps,
    /// None: it is not wanted any more.
    #[error("it was given up")]
    GivenUp,
}

impl Over {
    fn at(self, name: &str) -> SubstituteError {
        match self {
            Self::GivenUp => SubstituteError::GivenUp,
            why => SubstituteError::TooLarge { name: name.chars().take(80).collect(), why },
        }
    }
}

/// What the expressions of one rendering may still do.
pub struct Work<'a> {
    bytes: usize,
    steps: usize,
    ask_below: usize,
    given_up: &'a dyn Fn() -> bool,
}

impl<'a> Work<'a> {
    /// All of it, as long as it is not given up.
    pub fn new(given_up: &'a dyn Fn() -> bool) -> Self {
        Self { bytes: MAX_WRITTEN, steps: MAX_STEPS, ask_below: MAX_STEPS, given_up }
    }

    /// Before `more` bytes are added to a text of `size`.
    fn write(&mut self, size: usize, more: usize) -> Result<(), Over> {
        if size.saturating_add(more) > MAX_RESULT {
            return Err(Over::Result);
        }
        self.bytes = self.bytes.checked_sub(more).ok_or(Over::Written)?;
        self.step(more)
    }

    /// Before `steps` bytes are looked at.
    fn step(&mut self, steps: usize) -> Result<(), Over> {
        self.steps = self.steps.checked_sub(steps).ok_or(Over::Steps)?;
        if self.steps < self.ask_below {
            self.ask_below = self.steps.saturating_sub(ASK_EVERY);
            if (self.given_up)() {
                return Err(Over::GivenUp);
            }
        }
        Ok(())
    }
}

/// `text` with its expressions replaced.
///
/// # Errors
/// Any expression that is none, that has no value, or that passes a bound.
pub fn substitute(text: &str, variables: &Variables, work: &mut Work<'_>) -> Result<String, SubstituteError> {
    let mut parser = Parser { text, at: 0, variables, work };
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

struct Parser<'t, 'w, 'a> {
    text: &'t str,
    at: usize,
    variables: &'t Variables,
    work: &'w mut Work<'a>,
}

impl<'t> Parser<'t, '_, '_> {
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
        let over = |over: Over| over.at(name);
        self.work.step(EXPRESSION).map_err(over)?;
        if self.take("}") {
            return self.copy(name);
        }
        if [":=", ":-", ":?", ":+", "="].iter().any(|operator| self.take(operator)) {
            let default = self.argument(name, "}", false, depth)?;
            if !self.take("}") {
                return Err(wrong(CLOSE));
            }
            let is_set = self.variables.get(name).is_some_and(|value| !value.is_empty());
            return if is_set { self.copy(name) } else { Ok(default) };
        }
        // All others read the value, so it has to be there.
        let result = if self.take(":") {
            let from = self.argument(name, ":}", false, depth)?;
            let length = if self.take(":") { Some(self.argument(name, "}", false, depth)?) } else { None };
            slice(self.value(name)?, &from, length.as_deref(), self.work)
        } else if let Some(operator) = ["//", "/#", "/%", "/"].into_iter().find(|o| self.take(o)) {
            let pattern = self.argument(name, "/", true, depth)?;
            if !self.take("/") {
                return Err(wrong("a / stands between what is replaced and what replaces it"));
            }
            let by = self.argument(name, "}", true, depth)?;
            replace(operator, self.value(name)?, &pattern, &by, self.work)
        } else if let Some(operator) = ["##", "#", "%%", "%"].into_iter().find(|o| self.take(o)) {
            let pattern = self.argument(name, "}", false, depth)?;
            trim(operator, self.value(name)?, &pattern, self.work)
        } else if let Some(operator) = ["^^", "^", ",,", ","].into_iter().find(|o| self.take(o)) {
            recase(operator, self.value(name)?, self.work)
        } else {
            return Err(wrong(CLOSE));
        };
        let result = result.map_err(over)?;
        if !self.take("}") {
            return Err(wrong(CLOSE));
        }
        self.variables.made(name, &result);
        Ok(result)
    }

    /// Text up to one of `ends`, with what variables it holds; `of` is the variable whose expression it belongs to.
    fn argument(&mut self, of: &str, ends: &str, escapes: bool, depth: usize) -> Result<String, SubstituteError> {
        let mut out = String::new();
        while let Some(next) = self.rest().chars().next() {
            if self.rest().starts_with("${") {
                let inner = self.expression(depth + 1)?;
                self.work.write(out.len(), inner.len()).map_err(|over| over.at(of))?;
                out.push_str(&inner);
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
            self.work.write(out.len(), c.len_utf8()).map_err(|over| over.at(of))?;
            out.push(c);
            self.at += c.len_utf8();
        }
        Ok(out)
    }

    /// The value as it is.
    fn copy(&mut self, name: &str) -> Result<String, SubstituteError> {
        let value = self.value(name)?;
        self.work.write(0, value.len()).map_err(|over| over.at(name))?;
        Ok(value.to_owned())
    }

    fn value(&self, name: &str) -> Result<&'t str, SubstituteError> {
        self.variables.get(name).ok_or_else(|| SubstituteError::Unset { name: name.chars().take(80).collect() })
    }
}

/// By bytes, as Go counts them; numbers that are none leave the value as it is, as in bash.
fn slice(value: &str, from: &str, length: Option<&str>, work: &mut Work<'_>) -> Result<String, Over> {
    work.write(0, value.len())?;
    let (Ok(from), Ok(length)) = (from.parse::<i64>(), length.map(str::parse::<i64>).transpose()) else {
        return Ok(value.to_owned());
    };
    let size = i64::try_from(value.len()).unwrap_or(i64::MAX);
    let start = if from < 0 { (size + from).max(0) } else { from.min(size) };
    let end = length.map_or(size, |length| start.saturating_add(length).clamp(start, size));
    let place = |at: i64| usize::try_from(at).unwrap_or(0);
    Ok(String::from_utf8_lossy(&value.as_bytes()[place(start)..place(end)]).into_owned())
}

fn replace(operator: &str, value: &str, pattern: &str, by: &str, work: &mut Work<'_>) -> Result<String, Over> {
    work.step(value.len() + pattern.len())?;
    let times = match operator {
        "//" => value.matches(pattern).count(),
        "/#" => usize::from(value.starts_with(pattern)),
        "/%" => usize::from(value.ends_with(pattern)),
        _ => usize::from(value.contains(pattern)),
    };
    work.write(value.len() - times * pattern.len(), times.saturating_mul(by.len()))?;
    work.write(0, value.len() - times * pattern.len())?;
    Ok(match operator {
        "//" => value.replace(pattern, by),
        "/#" => value.strip_prefix(pattern).map_or_else(|| value.to_owned(), |rest| format!("{by}{rest}")),
        "/%" => value.strip_suffix(pattern).map_or_else(|| value.to_owned(), |rest| format!("{rest}{by}")),
        _ => value.replacen(pattern, by, 1),
    })
}

fn recase(operator: &str, value: &str, work: &mut Work<'_>) -> Result<String, Over> {
    // A letter's other case may be three times as long.
    work.write(0, value.len())?;
    let first = |change: fn(char) -> String| {
        let mut chars = value.chars();
        chars.next().map_or_else(String::new, |c| change(c) + chars.as_str())
    };
    let result = match operator {
        "^^" => value.to_uppercase(),
        ",," => value.to_lowercase(),
        "^" => first(|c| c.to_uppercase().collect()),
        _ => first(|c| c.to_lowercase().collect()),
    };
    work.write(value.len(), result.len().saturating_sub(value.len()))?;
    Ok(result)
}

/// Without what matches at the start (`#`) or the end (`%`): the longest match if the sign is doubled.
fn trim(operator: &str, value: &str, pattern: &str, work: &mut Work<'_>) -> Result<String, Over> {
    work.write(0, value.len())?;
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = value.chars().collect();
    let (at_start, longest) = (operator.starts_with('#'), operator.len() == 2);
    // An empty match takes nothing away, so it is not looked for.
    for nth in 0..text.len() {
        let length = if longest { text.len() - nth } else { nth + 1 };
        let (part, rest) = if at_start {
            text.split_at(length)
        } else {
            let (rest, part) = text.split_at(text.len() - length);
            (part, rest)
        };
        if matches(&pattern, part, work)? {
            return Ok(rest.iter().collect());
        }
    }
    Ok(value.to_owned())
}

/// `*`, `?`, `[a-z]`, `[^a]` and `\c`, against the whole text.
fn matches(pattern: &[char], text: &[char], work: &mut Work<'_>) -> Result<bool, Over> {
    let (mut p, mut t) = (0, 0);
    // Where the last star stood, and how much it has taken.
    let mut star: Option<(usize, usize)> = None;
    loop {
        // The end of a class is looked for.
        work.step(if pattern.get(p) == Some(&'[') { pattern.len() - p } else { 1 })?;
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            None if t == text.len() => return Ok(true),
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
            _ => return Ok(false),
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
    use super::{super::variables::MAX_DERIVED, *};
    use crate::secret::Secret;

    fn substitute(text: &str, variables: &Variables) -> Result<String, SubstituteError> {
        super::substitute(text, variables, &mut Work::new(&|| false))
    }

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
    fn what_expressions_make_of_a_secret_is_hidden_too() {
        let derived = Derived::default();
        let mut variables = Variables::new(&derived);
        variables.set("open", "visible");
        variables.set_secret("p", &Secret::new("hunterTWOsecret"));
        variables.set_secret("given", &Secret::new("canary"));
        variables.set("given", "set again");
        for (text, made) in [
            ("${p^^}", "HUNTERTWOSECRET"),
            ("${p,,}", "huntertwosecret"),
            ("${p^}", "HunterTWOsecret"),
            ("${p:0:9}", "hunterTWO"),
            ("${p/TWO/\"2\"}", "hunter\"2\"secret"),
            ("${p#hunter}", "TWOsecret"),
            ("${p%%TWO*}", "hunter"),
            ("${unset:-${p:6}}", "TWOsecret"),
            ("${open/e/${p^^}}", "visiblHUNTERTWOSECRET"),
        ] {
            variables.begin();
            assert_eq!(substitute(text, &variables).as_deref(), Ok(made));
            // A later pass that renders nothing has to know it as well.
            let mut later = Variables::new(&derived);
            later.set_secret("p", &Secret::new("hunterTWOsecret"));
            for variables in [&variables, &later] {
                for quoted in [made.to_owned(), format!("{made:?}")] {
                    let shown = variables.hide(&format!("Unsupported value: {quoted}"));
                    assert!(shown.contains("[redacted]") && !shown.to_lowercase().contains("hunter"), "{shown}");
                    assert!(!shown.contains("secret"), "{shown}");
                }
            }
        }
        for (text, made) in [("${open^^}", "VISIBLE"), ("${unset:-default}", "default"), ("${given^^}", "SET AGAIN")] {
            variables.begin();
            assert_eq!(substitute(text, &variables).as_deref(), Ok(made));
            assert_eq!(variables.hide(made), made);
        }
        // More of it than is remembered: better no message than one that tells.
        variables.set_secret("large", &Secret::new("x".repeat(MAX_DERIVED)));
        substitute("${large:1}${large:2}", &variables).unwrap();
        assert!(variables.hide("quoted").contains("not shown"));
    }

    #[test]
    fn what_expressions_yield_is_bounded_before_it_is_made() {
        let mut variables = Variables::default();
        for (name, value) in [("x", "a".repeat(10)), ("m", "A".repeat(200_000)), ("y", "b".repeat(100_000))] {
            variables.set(name, &value);
        }
        let nested = (0..10).fold("a".to_owned(), |by, _| format!("${{x//a/{by}}}"));
        let over = |name: &str, why| Err(SubstituteError::TooLarge { name: name.into(), why });
        for (text, result) in [
            (nested, over("x", Over::Result)),
            ("${m//A/${y}}".to_owned(), over("m", Over::Result)),
            ("${m//A/${y}".to_owned() + &"x".repeat(5 << 20) + "}", over("m", Over::Result)),
            ("${n:-".to_owned() + &"x".repeat(5 << 20) + "}", over("n", Over::Result)),
            ("${n:-".to_owned() + &"${y}".repeat(50) + "}", over("n", Over::Result)),
            ("${y}".repeat(1000), over("y", Over::Written)),
        ] {
            let started = std::time::Instant::now();
            assert_eq!(substitute(&text, &variables), result, "{}", text.chars().take(60).collect::<String>());
            assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
        }
        assert_eq!(substitute(&"${m//A/}".repeat(10), &variables).as_deref(), Ok(""));
        assert!(
            over("x", Over::Result).unwrap_err().to_string().contains("\"x\": its expression yields more than 4 MiB")
        );
    }

    #[test]
    fn what_takes_long_ends_by_its_steps_or_by_being_given_up() {
        let mut variables = Variables::default();
        variables.set("v", &"a".repeat(50_000));
        // Each star tries every place for each length.
        let text = "${v##*a*a*a*b}";
        let few = &mut Work { steps: 1 << 20, ..Work::new(&|| false) };
        let steps = SubstituteError::TooLarge { name: "v".into(), why: Over::Steps };
        assert_eq!(super::substitute(text, &variables, few), Err(steps));
        let asked = std::cell::Cell::new(0);
        let third = || asked.replace(asked.get() + 1) == 2;
        let error = super::substitute(text, &variables, &mut Work::new(&third));
        assert_eq!((error, asked.get()), (Err(SubstituteError::GivenUp), 3));
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
