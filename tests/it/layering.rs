//! Dependencies between modules run one way. This reads the sources against the table of the architecture page
//! (`src/lib.rs`): who may use whom, where `unsafe` and `kube` may stand, how long a file may be.
//!
//! Only code counts: comments, strings and `#[cfg(test)]` parts are left out.

use std::{collections::BTreeSet, path::Path};

/// Modules that everybody may use. They use each other only.
const LEAVES: &[&str] = &["blocking", "class", "digest", "metrics", "secret", "shutdown"];

/// Which modules, besides the leaves, a module may use.
const TABLE: &[(&str, &[&str])] = &[
    ("oci", &[]),
    ("objects", &["oci"]),
    ("telemetry", &[]),
    ("flight", &["oci"]),
    ("registry", &["oci"]),
    ("store", &["oci"]),
    ("trust", &["oci"]),
    ("unpack", &["oci", "store"]),
    ("pull", &["flight", "oci", "registry", "store", "trust", "unpack"]),
    ("artifact", &["oci", "pull", "store", "unpack"]),
    ("apply", &["objects", "oci", "pull", "store", "unpack"]),
    ("mirror", &["flight", "oci", "pull", "registry", "store", "trust"]),
    (
        "reconciler",
        &["apply", "artifact", "flight", "mirror", "objects", "oci", "pull", "registry", "store", "trust", "unpack"],
    ),
    ("server", &["artifact", "flight", "mirror", "objects", "oci", "pull", "store"]),
    (
        "config",
        &[
            "apply",
            "artifact",
            "mirror",
            "objects",
            "oci",
            "pull",
            "reconciler",
            "registry",
            "server",
            "store",
            "telemetry",
            "trust",
            "unpack",
        ],
    ),
    (
        "node",
        &[
            "apply",
            "artifact",
            "config",
            "flight",
            "mirror",
            "objects",
            "oci",
            "pull",
            "reconciler",
            "registry",
            "server",
            "store",
            "telemetry",
            "trust",
            "unpack",
        ],
    ),
    (
        "cli",
        &[
            "apply",
            "artifact",
            "config",
            "flight",
            "mirror",
            "node",
            "objects",
            "oci",
            "pull",
            "reconciler",
            "registry",
            "server",
            "store",
            "telemetry",
            "trust",
            "unpack",
        ],
    ),
    // The binary's own crate, which names the library as `larder`. `apply`, since the child that confines a rendering
    // program is this binary again and must branch off before anything else runs.
    ("main", &["apply", "cli"]),
];

/// Who may hold the registry's client: content enters the store through `pull` alone, so to the reconciler and
/// the mirror `registry` is only what says how and as whom to ask. `node` builds all parts, `cli` pushes.
const CLIENT: &[&str] = &["registry", "pull", "node", "cli"];

/// Who may know Kubernetes' client.
const KUBE: &[&str] = &["node", "objects", "reconciler", "apply"];

/// The one file with `unsafe` in it.
const UNSAFE: &str = "store/blob.rs";

/// The most lines that a file has without its tests.
const LINES: usize = 500;

#[test]
fn the_sources_keep_the_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    read(&root, &root, &mut sources);
    assert!(sources.len() > 30, "only {} files below {}", sources.len(), root.display());
    let found = violations(&sources);
    assert!(found.is_empty(), "{} rules broken:\n  {}", found.len(), found.join("\n  "));
}

fn read(root: &Path, at: &Path, sources: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(at).expect("src") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            read(root, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).expect("below src").to_str().expect("UTF-8").to_owned();
            sources.push((name, std::fs::read_to_string(&path).expect("source")));
        }
    }
    sources.sort();
}

/// All rules that `sources` (path below `src/`, text) break, one line each.
fn violations(sources: &[(String, String)]) -> Vec<String> {
    let mut found = Vec::new();
    let tests: Vec<String> = sources.iter().flat_map(|(path, text)| test_files(path, text)).collect();
    for (path, text) in sources {
        let module = module_of(path);
        if module == "lib" || tests.iter().any(|test| path == test || path.starts_with(test)) {
            continue;
        }
        let code = code_of(text);
        if code.lines > LINES {
            found.push(format!("src/{path}: {} lines without its tests; split it, {LINES} is the limit", code.lines));
        }
        if path != UNSAFE && code.tokens.iter().any(|token| token == "unsafe") {
            found.push(format!("src/{path}: `unsafe` stands only in src/{UNSAFE}"));
        }
        if !KUBE.contains(&module) && code.tokens.windows(2).any(|two| is_kube(&two[0]) && two[1] == "::") {
            found.push(format!("src/{path}: kube is known only to {}", KUBE.join(", ")));
        }
        if !CLIENT.contains(&module) && names_client(&code.tokens) {
            found.push(format!("src/{path}: `registry::Client` is held only by {}", CLIENT.join(", ")));
        }
        let used = used_modules(&code.tokens, module == "main");
        let Some(allowed) = allowed(module) else {
            found
                .push(format!("src/{path}: `{module}` is not in the table: put it there and on the architecture page"));
            continue;
        };
        for name in used.iter().filter(|name| *name != module) {
            if !LEAVES.contains(&name.as_str()) && !allowed.contains(&name.as_str()) {
                found.push(format!(
                    "src/{path}: `{module}` must not use `{name}`; it may use [{}] and the leaves",
                    allowed.join(", ")
                ));
            }
        }
    }
    found
}

/// `store/blob.rs` and `store.rs` are of `store`.
fn module_of(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// The files that `path` declares under `#[cfg(test)]`, as `#[path = "FILE"] mod NAME;` or plain `mod NAME;`: the file, and
/// the folder (ending in a slash) for what it declares in turn.
fn test_files(path: &str, text: &str) -> Vec<String> {
    let folder = path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let below = match path.strip_suffix(".rs") {
        Some("lib" | "main") => String::new(),
        Some(stem) => stem.strip_suffix("/mod").unwrap_or(stem).to_owned() + "/",
        None => return Vec::new(),
    };
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line != "#[cfg(test)]" {
            continue;
        }
        let mut named = None;
        for line in lines.by_ref() {
            if let Some(file) = line.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]")) {
                named = Some(format!("{folder}{file}"));
            } else if let Some((_, name)) = line.strip_suffix(';').and_then(|item| item.split_once("mod ")) {
                let stem = named
                    .as_deref()
                    .and_then(|file| file.strip_suffix(".rs"))
                    .map_or(format!("{below}{name}"), str::to_owned);
                found.extend([format!("{stem}.rs"), format!("{stem}/")]);
                break;
            } else if !line.starts_with("#[") {
                break;
            }
        }
    }
    found
}

fn allowed(module: &str) -> Option<&'static [&'static str]> {
    let row = TABLE.iter().find(|(name, _)| *name == module).map(|(_, allowed)| *allowed);
    row.or_else(|| LEAVES.contains(&module).then_some(&[]))
}

fn is_kube(token: &str) -> bool {
    matches!(token, "kube" | "k8s_openapi")
}

/// `registry::Client`, also out of a group.
fn names_client(tokens: &[String]) -> bool {
    let after = |at: usize| first_names(tokens.get(at + 2..).unwrap_or_default());
    (0..tokens.len()).any(|at| {
        tokens[at] == "registry"
            && tokens.get(at + 1).is_some_and(|next| next == "::")
            && after(at).contains(&"Client".into())
    })
}

/// The first names of all paths that begin at the crate's root: `crate::NAME`, `crate::{NAME…, NAME…}`, `super::…::NAME`
/// where NAME is a module of the table; in the binary's own crate also `larder::NAME`.
fn used_modules(tokens: &[String], binary: bool) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, token) in tokens.iter().enumerate() {
        let root = token == "crate" || (binary && token == "larder");
        if (root || token == "super") && tokens.get(at + 1).is_some_and(|next| next == "::") {
            for name in first_names(&tokens[at + 2..]) {
                let known = allowed(&name).is_some();
                if root || known {
                    used.insert(name);
                }
            }
        }
    }
    used.retain(|name| name.chars().next().is_some_and(char::is_lowercase) && name != "self" && name != "super");
    used
}

/// The names that a path goes on with: one, or those of a `{…}` group.
fn first_names(tokens: &[String]) -> Vec<String> {
    let Some(first) = tokens.first() else { return Vec::new() };
    if first != "{" {
        return vec![first.clone()];
    }
    let mut names = Vec::new();
    let mut depth = 0;
    let mut begins = false;
    for token in tokens {
        match token.as_str() {
            "{" => {
                depth += 1;
                begins = depth == 1;
            }
            "}" => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            "," => begins = depth == 1,
            name if begins => {
                names.push(name.to_owned());
                begins = false;
            }
            _ => {}
        }
    }
    names
}

/// A file's code: its tokens, and how many lines it has, both without `#[cfg(test)]` modules.
struct Code {
    tokens: Vec<String>,
    lines: usize,
}

/// Whether a line, attributes apart, begins a module.
fn is_module(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("#[path") || line.trim_start_matches("pub ").trim_start_matches("pub(crate) ").starts_with("mod ")
}

fn code_of(text: &str) -> Code {
    let blank = without_comments_and_literals(text);
    let mut kept = String::new();
    let mut lines = 0;
    let mut rest = blank.split_inclusive('\n').peekable();
    while let Some(line) = rest.next() {
        let test_module = line.trim() == "#[cfg(test)]" && rest.peek().is_some_and(|next| is_module(next));
        if !test_module {
            kept.push_str(line);
            lines += 1;
            continue;
        }
        // The module: up to its `;`, or to the brace that closes it.
        let mut depth = 0_usize;
        for line in rest.by_ref() {
            depth += line.matches('{').count();
            let closed = line.matches('}').count();
            let done = (depth > 0 && depth == closed) || (depth == 0 && line.trim_end().ends_with(';'));
            depth = depth.saturating_sub(closed);
            if done {
                break;
            }
        }
    }
    Code { tokens: tokens_of(&kept), lines }
}

/// The text with comments and the insides of literals replaced by spaces; lines stay lines.
fn without_comments_and_literals(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let blank = |out: &mut String, part: &[char]| {
        part.iter().for_each(|c| out.push(if *c == '\n' { '\n' } else { ' ' }));
    };
    let find = |from: usize, wanted: &str| {
        let wanted: Vec<char> = wanted.chars().collect();
        (from..chars.len()).find(|start| chars[*start..].starts_with(&wanted)).map_or(chars.len(), |s| s + wanted.len())
    };
    while at < chars.len() {
        let rest = &chars[at..];
        let previous = at.checked_sub(1).map_or(' ', |before| chars[before]);
        let in_word = previous.is_alphanumeric() || previous == '_';
        let end = if rest.starts_with(&['/', '/']) {
            find(at, "\n").saturating_sub(1).max(at + 2)
        } else if rest.starts_with(&['/', '*']) {
            block_comment_end(&chars, at)
        } else if let (false, Some(hashes)) = (in_word, raw_string(rest)) {
            let open = rest.iter().position(|c| *c == '"').unwrap_or(0);
            find(at + open + 1, &format!("\"{}", "#".repeat(hashes)))
        } else if rest[0] == '"' {
            string_end(&chars, at)
        } else if rest[0] == '\'' && (rest.get(1) == Some(&'\\') || rest.get(2) == Some(&'\'')) {
            // A character, not a lifetime.
            let from = if rest.get(1) == Some(&'\\') { at + 3 } else { at + 2 };
            find(from, "'")
        } else {
            out.push(rest[0]);
            at += 1;
            continue;
        };
        let end = end.min(chars.len());
        blank(&mut out, &chars[at..end]);
        at = end;
    }
    out
}

/// `r"`, `r#"`, `br##"`: how many hashes.
fn raw_string(rest: &[char]) -> Option<usize> {
    let mut at = usize::from(rest.first() == Some(&'b'));
    if rest.get(at) != Some(&'r') {
        return None;
    }
    at += 1;
    let hashes = rest[at..].iter().take_while(|c| **c == '#').count();
    (rest.get(at + hashes) == Some(&'"')).then_some(hashes)
}

fn string_end(chars: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut at = start;
    while at < chars.len() {
        if chars[at..].starts_with(&['/', '*']) {
            depth += 1;
            at += 2;
        } else if chars[at..].starts_with(&['*', '/']) {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// Words, `::` and single punctuation marks.
fn tokens_of(code: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut chars = code.chars().peekable();
    while let Some(first) = chars.next() {
        if first.is_whitespace() {
            continue;
        }
        let mut token = first.to_string();
        if first.is_alphanumeric() || first == '_' {
            while let Some(next) = chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                token.push(next);
            }
        } else if first == ':' && chars.next_if_eq(&':').is_some() {
            token.push(':');
        }
        tokens.push(token);
    }
    tokens
}

mod the_checker {
    use super::violations;

    fn judge(path: &str, text: &str) -> Vec<String> {
        violations(&[(path.to_owned(), text.to_owned())])
    }

    #[test]
    fn accepts_what_the_table_allows() {
        for (path, text) in [
            ("pull.rs", "use crate::{registry::Client, store::{Ingest, Store}, unpack};\n"),
            ("store/blob.rs", "use crate::digest::Digest;\nunsafe { map() }\n"),
            ("store/mod.rs", "use crate::store::blob::Blob;\n// use crate::registry::Client;\n"),
            ("server/mod.rs", "/// See [`crate::registry::Client`].\nfn f() { log(\"crate::registry::x unsafe\") }\n"),
            ("reconciler/mod.rs", "use crate::{registry::{Budget, Endpoint}, store::Store};\n"),
            ("objects/cluster.rs", "use kube::Client;\n"),
            ("node.rs", "use crate::{registry::Client, server, store::Store};\n"),
            ("main.rs", "use larder::cli;\n"),
            ("oci/reference.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::store::Store;\n}\n"),
            ("flight.rs", "fn f<'a>(x: &'a str) -> char { '\"' }\nuse super::digest::Digest;\n"),
        ] {
            assert_eq!(judge(path, text), Vec::<String>::new(), "{path}: {text}");
        }
    }

    #[test]
    fn leaves_out_the_files_of_tests_and_no_others() {
        let text = "#[cfg(test)]\n#[path = \"reference_tests.rs\"]\nmod tests;\n#[cfg(test)]\npub(crate) mod golden;\nmod plain;\n";
        let sources = |declaring: &str, file: &str| {
            let forbidden = "use crate::store::Store;\n".to_owned();
            violations(&[(declaring.to_owned(), text.to_owned()), (file.to_owned(), forbidden)]).len()
        };
        assert_eq!(sources("oci/reference.rs", "oci/reference_tests.rs"), 0);
        assert_eq!(sources("oci/mod.rs", "oci/golden.rs"), 0);
        assert_eq!(sources("oci/mod.rs", "oci/golden/more.rs"), 0);
        assert_eq!(sources("oci/reference.rs", "oci/golden.rs"), 1);
        assert_eq!(sources("oci/mod.rs", "oci/plain.rs"), 1);
    }

    #[test]
    fn names_what_the_table_forbids() {
        for (path, text, part) in [
            ("store/mod.rs", "use crate::registry::Budget;\n", "`store` must not use `registry`"),
            ("server/registry.rs", "fn f() { crate::registry::get() }\n", "`server` must not use `registry`"),
            (
                "oci/mod.rs",
                "use crate::{\n    digest::Digest,\n    store::{Store, Blob},\n};\n",
                "must not use `store`",
            ),
            ("flight.rs", "use super::store::Store;\n", "`flight` must not use `store`"),
            ("store/gc.rs", "use super::super::pull::Puller;\n", "`store` must not use `pull`"),
            ("digest.rs", "use crate::oci::Tag;\n", "`digest` must not use `oci`"),
            ("reconciler/mod.rs", "use crate::registry::{Budget, Client};\n", "`registry::Client` is held only by"),
            ("artifact/mod.rs", "use crate::registry::Budget;\n", "`artifact` must not use `registry`"),
            ("node.rs", "use crate::cli::Arguments;\n", "`node` must not use `cli`"),
            ("main.rs", "use larder::store::Store;\n", "`main` must not use `store`"),
            ("server/mod.rs", "use kube::Client;\n", "kube is known only to"),
            ("store/mod.rs", "fn f() { unsafe { map() } }\n", "`unsafe` stands only in"),
            ("utils.rs", "fn f() {}\n", "`utils` is not in the table"),
            ("oci/mod.rs", "use crate::helpers::x;\n", "must not use `helpers`"),
            ("oci/mod.rs", &"fn f() {}\n".repeat(501), "501 lines"),
            ("oci/mod.rs", "#[cfg(test)]\nmod tests {\n}\nuse crate::store::Store;\n", "must not use `store`"),
        ] {
            let found = judge(path, text);
            assert!(found.len() == 1 && found[0].contains(part), "{path}: {text}: {found:?}");
        }
    }

    #[test]
    fn does_not_count_the_lines_of_tests() {
        let text =
            format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", "fn f() {}\n".repeat(500), "    fn g() {}\n".repeat(100));
        assert_eq!(judge("oci/mod.rs", &text), Vec::<String>::new());
    }
}
