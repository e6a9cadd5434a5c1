//! What Flux leaves out of an artifact: `.sourceignore` files, `spec.ignore`, and its own lists.
//!
//! Promise: [`IgnoreRules::excludes`] says of each path what Flux's matcher would say (go-git's gitignore matcher, of
//! which Flux keeps a copy; `source_ignore/golden.txt`, written by it, holds the proof). So, unlike git:
//!
//! - patterns of a `.sourceignore` count only below its directory; deeper and later ones, and then `spec.ignore`, win;
//!   the last pattern that matches decides, `!` takes back in, also below a directory that is left out;
//! - `**` is special only as a whole segment, the rest is Go's glob (`source_ignore/glob.rs`);
//! - if any `.sourceignore` or `spec.ignore` has a pattern, Flux's default list is dropped, while the version control
//!   list stays; a file of comments, or an empty `spec.ignore`, drops nothing;
//! - a line of 64 KiB ends its file, as Go's scanner does; directories named `.git` are not searched for files.
//!
//! Bounds: [`MAX_TEXT_BYTES`] of text, [`MAX_STEPS`] of matching over all paths, after which every answer is an error.
//! Names and `*name` suffixes, all there is in the default lists, cost a hash per component and eight comparisons.
//!
//! Rules are immutable but for the step count, and may be asked from many threads at once. Nothing is written anywhere.

mod glob;

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use self::glob::NoAnswer;
use crate::class::Class;

/// The file that holds patterns for its directory.
pub const FILE_NAME: &str = ".sourceignore";
/// The most text of all `.sourceignore` files and `spec.ignore` of one artifact, in bytes.
pub const MAX_TEXT_BYTES: usize = 1 << 20;
/// The most work for one artifact: a step is one character of a pattern looked at; a pattern tried counts
/// [`STEPS_PER_PATTERN`]. At 1.4 ns a step, as measured on a 2-core machine over several kinds of patterns, this is about
/// 1.5 s, so a core a third as fast still ends within 5 s.
pub const MAX_STEPS: u64 = 1_000_000_000;
/// What trying one pattern on one path costs at least, in steps.
pub const STEPS_PER_PATTERN: u64 = 4;
/// The longest line that Go's `bufio.Scanner` takes, in bytes, without its newline.
const MAX_LINE_BYTES: usize = 65_535;

/// Left out whatever else is said (it may be taken back in).
const VERSION_CONTROL: [&str; 4] = [".git/", ".gitignore", ".gitmodules", ".gitattributes"];
/// Left out where nothing else is said.
const DEFAULTS: [&str; 20] = [
    "*.jpg",
    "*.jpeg",
    "*.gif",
    "*.png",
    "*.wmv",
    "*.flv",
    "*.tar.gz",
    "*.zip",
    ".github/",
    ".circleci/",
    ".travis.yml",
    ".gitlab-ci.yml",
    "appveyor.yml",
    ".drone.yml",
    "cloudbuild.yaml",
    "codeship-services.yml",
    "codeship-steps.yml",
    "**/.goreleaser.yml",
    "**/.sops.yaml",
    "**/.flux.yaml",
];

/// Why the rules cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// More text than is read.
    #[error(
        "the ignore rules (.sourceignore files and spec.ignore) have {0} bytes, at most {MAX_TEXT_BYTES} are taken"
    )]
    TooLong(usize),
    /// The budget is spent.
    #[error(
        "matching the ignore rules (.sourceignore files and spec.ignore) takes too long: \
         use fewer patterns or patterns with fewer '*'"
    )]
    TooMuchWork,
}

impl IgnoreError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::TooLong(_) | Self::TooMuchWork => Class::Limit,
        }
    }
}

/// The rules of one artifact.
#[derive(Debug)]
pub struct IgnoreRules {
    patterns: Arc<Patterns>,
    budget: u64,
    spent: AtomicU64,
}

static DEFAULT_PATTERNS: LazyLock<Arc<Patterns>> = LazyLock::new(|| {
    let mut patterns = Patterns::default();
    patterns.version_control();
    for text in DEFAULTS {
        patterns.add(text.as_bytes(), &Arc::default());
    }
    Arc::new(patterns)
});

impl Default for IgnoreRules {
    /// The rules where nothing is said.
    fn default() -> Self {
        Self { patterns: Arc::clone(&DEFAULT_PATTERNS), budget: MAX_STEPS, spent: AtomicU64::new(0) }
    }
}

impl IgnoreRules {
    /// The rules for a tree: each `.sourceignore` in it as (path of its directory, text), in any order, and
    /// `spec.ignore`. The root's path is empty.
    pub fn build<'t, P: AsRef<[u8]>>(
        source_ignores: impl IntoIterator<Item = (P, &'t [u8])>,
        spec_ignore: Option<&str>,
    ) -> Result<Self, IgnoreError> {
        let mut bytes = spec_ignore.map_or(0, str::len);
        let mut files: Vec<(Domain, &[u8])> = Vec::new();
        for (directory, text) in source_ignores {
            bytes = bytes.saturating_add(text.len());
            let domain: Domain = components(directory.as_ref()).map(Box::from).collect();
            if !domain.iter().any(|name| **name == *b".git") {
                files.push((domain, text));
            }
        }
        if bytes > MAX_TEXT_BYTES {
            return Err(IgnoreError::TooLong(bytes));
        }
        // The order of a walk that visits a directory before its children, and those by name.
        files.sort_by(|(a, _), (b, _)| a.cmp(b));
        if let Some(text) = spec_ignore {
            files.push((Arc::default(), text.as_bytes()));
        }
        let mut patterns = Patterns::default();
        patterns.version_control();
        let fixed = patterns.all.len();
        for (domain, text) in &files {
            for line in lines(text) {
                patterns.add(line, domain);
            }
        }
        if patterns.all.len() == fixed {
            return Ok(Self::default());
        }
        Ok(Self { patterns: Arc::new(patterns), ..Self::default() })
    }

    /// Whether an entry is left out. The path is relative to the tree's root; what is said of a directory is said of its
    /// own entry only, ask for each of its children too. The root itself is never left out.
    pub fn excludes(&self, path: impl AsRef<[u8]>, is_dir: bool) -> Result<bool, IgnoreError> {
        let path: Vec<&[u8]> = components(path.as_ref()).collect();
        let left = self.budget.saturating_sub(self.spent.load(Ordering::Relaxed));
        let mut meter = Meter { left };
        let result = self.patterns.excludes(&path, is_dir, &mut meter);
        self.spent.fetch_add(left - meter.left, Ordering::Relaxed);
        result.map_err(|_| IgnoreError::TooMuchWork)
    }
}

/// The names that a path consists of. Empty ones and `.` say nothing.
fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".")
}

/// The lines of a file that are patterns.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| *b == b'\n')
        .take_while(|line| line.len() <= MAX_LINE_BYTES)
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.starts_with(b"#") && !std::str::from_utf8(line).is_ok_and(|line| line.trim().is_empty()))
}

/// The steps that are left.
struct Meter {
    left: u64,
}

impl Meter {
    fn take(&mut self, steps: u64) -> Result<(), NoAnswer> {
        match self.left.checked_sub(steps) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(NoAnswer::Spent)
            }
        }
    }
}

/// The names of the directories down to the one below which a pattern counts.
type Domain = Arc<[Box<[u8]>]>;

/// Patterns, the later of higher priority.
#[derive(Debug, Default)]
struct Patterns {
    all: Vec<Pattern>,
    /// Those that are a plain name, by that name.
    named: HashMap<Box<[u8]>, Vec<usize>>,
    /// All others.
    others: Vec<usize>,
}

#[derive(Debug)]
struct Pattern {
    /// The directory below which it counts.
    domain: Domain,
    include: bool,
    dir_only: bool,
    form: Form,
}

#[derive(Debug, PartialEq, Eq)]
enum Form {
    /// A name without wildcards, at any depth; found by the map.
    Name,
    /// `*` and this, at any depth.
    Suffix(Box<[u8]>),
    /// A glob for a name, at any depth.
    Glob(Box<[u8]>),
    /// Segments between slashes, from the domain down.
    Path(Box<[u8]>),
}

fn is_plain(text: &[u8]) -> bool {
    !text.iter().any(|b| matches!(b, b'*' | b'?' | b'[' | b'\\'))
}

fn has_double_star(text: &[u8]) -> bool {
    text.windows(2).any(|pair| pair == b"**")
}

impl Patterns {
    fn version_control(&mut self) {
        for text in VERSION_CONTROL {
            self.add(text.as_bytes(), &Arc::default());
        }
    }

    /// Reads one line.
    fn add(&mut self, line: &[u8], domain: &Domain) {
        let (include, mut text) = match line {
            [b'!', rest @ ..] => (true, rest),
            _ => (false, line),
        };
        if !text.ends_with(b"\\ ") {
            while let [rest @ .., b' '] = text {
                text = rest;
            }
        }
        let mut dir_only = false;
        if let [rest @ .., b'/'] = text {
            dir_only = true;
            text = rest;
        }
        // `**/name` means what `name` means.
        if let Some(name) = text.strip_prefix(b"**/")
            && !name.is_empty()
            && !name.contains(&b'/')
            && !has_double_star(name)
        {
            text = name;
        }
        let index = self.all.len();
        let form = match text {
            _ if text.contains(&b'/') => Form::Path(text.into()),
            _ if is_plain(text) => Form::Name,
            [b'*', rest @ ..] if is_plain(rest) => Form::Suffix(rest.into()),
            _ => Form::Glob(text.into()),
        };
        if form == Form::Name {
            self.named.entry(text.into()).or_default().push(index);
        } else {
            self.others.push(index);
        }
        self.all.push(Pattern { domain: Arc::clone(domain), include, dir_only, form });
    }

    fn excludes(&self, path: &[&[u8]], is_dir: bool, meter: &mut Meter) -> Result<bool, NoAnswer> {
        // The place behind the last pattern that matches.
        let mut decided = 0;
        for (at, name) in path.iter().enumerate() {
            meter.take(1)?;
            for index in self.named.get(*name).into_iter().flatten().rev() {
                meter.take(1)?;
                if *index < decided {
                    break;
                }
                let pattern = &self.all[*index];
                let file = !is_dir && at + 1 == path.len();
                if at >= pattern.domain.len() && pattern.is_above(path, meter)? && !(pattern.dir_only && file) {
                    decided = index + 1;
                    break;
                }
            }
        }
        for index in self.others.iter().rev() {
            if *index < decided {
                break;
            }
            if self.all[*index].matches(path, is_dir, meter)? {
                decided = index + 1;
                break;
            }
        }
        Ok(decided > 0 && !self.all[decided - 1].include)
    }
}

impl Pattern {
    /// Whether the path lies below the pattern's directory.
    fn is_above(&self, path: &[&[u8]], meter: &mut Meter) -> Result<bool, NoAnswer> {
        meter.take(self.domain.len() as u64)?;
        Ok(path.len() > self.domain.len() && self.domain.iter().zip(path).all(|(name, part)| **name == **part))
    }

    /// Whether the pattern, which is not a plain name, matches.
    fn matches(&self, path: &[&[u8]], is_dir: bool, meter: &mut Meter) -> Result<bool, NoAnswer> {
        meter.take(STEPS_PER_PATTERN)?;
        if !self.is_above(path, meter)? {
            return Ok(false);
        }
        let path = &path[self.domain.len()..];
        let found = match &self.form {
            Form::Name => return Ok(false),
            Form::Suffix(end) => {
                meter.take(path.len() as u64)?;
                path.iter().position(|name| name.ends_with(end))
            }
            Form::Glob(pattern) => {
                let mut found = None;
                for (at, name) in path.iter().enumerate() {
                    match glob::matches(pattern, name, meter) {
                        Ok(false) => {}
                        Ok(true) => {
                            found = Some(at);
                            break;
                        }
                        Err(NoAnswer::BadPattern) => return Ok(false),
                        Err(spent) => return Err(spent),
                    }
                }
                found
            }
            Form::Path(pattern) => return self.matches_path(pattern, path, is_dir, meter),
        };
        Ok(found.is_some_and(|at| !(self.dir_only && !is_dir && at + 1 == path.len())))
    }

    /// Segment by segment. After `**` the next segment takes the first name that it matches, with no second thought.
    fn matches_path(
        &self,
        pattern: &[u8],
        mut path: &[&[u8]],
        is_dir: bool,
        meter: &mut Meter,
    ) -> Result<bool, NoAnswer> {
        let matches = |segment: &[u8], name: &[u8], meter: &mut Meter| match glob::matches(segment, name, meter) {
            Err(NoAnswer::BadPattern) => Ok(None),
            Ok(matched) => Ok(Some(matched)),
            Err(spent) => Err(spent),
        };
        let mut matched = false;
        let mut traverse = false;
        let mut segments = pattern.split(|b| *b == b'/').peekable();
        while let Some(segment) = segments.next() {
            meter.take(1 + segment.len() as u64)?;
            if segment.is_empty() {
                traverse = false;
                continue;
            }
            if segment == b"**" {
                if segments.peek().is_none() {
                    break;
                }
                traverse = true;
                continue;
            }
            if has_double_star(segment) || path.is_empty() {
                return Ok(false);
            }
            if traverse {
                traverse = false;
                while let [name, rest @ ..] = path {
                    path = rest;
                    match matches(segment, name, meter)? {
                        None => return Ok(false),
                        Some(true) => {
                            matched = true;
                            break;
                        }
                        Some(false) if path.is_empty() => matched = false,
                        Some(false) => {}
                    }
                }
            } else {
                let [name, rest @ ..] = path else { return Ok(false) };
                if matches(segment, name, meter)? != Some(true) {
                    return Ok(false);
                }
                matched = true;
                path = rest;
            }
        }
        Ok(matched && !(self.dir_only && !is_dir && path.is_empty()))
    }
}

#[cfg(test)]
mod tests;
