//! What a kustomization reaches: every file and folder that it and the kustomizations below it name, judged before
//! the program sees them. Whatever leads to the network, out of the artifact or to another program is refused.
//!
//! The confinement holds without this; this says why, and holds where the kernel confines less.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{
    render::RenderError,
    tree::{self, MAX_FILES, relative_join},
    yaml::{self, Budget},
};

/// Lists of references, each a file, a folder, or (where it has several lines) a document itself.
const REFERENCES: [&str; 9] = [
    "resources",
    "bases",
    "components",
    "crds",
    "configurations",
    "generators",
    "transformers",
    "validators",
    "patchesStrategicMerge",
];

/// Lists of mappings with a `path`.
const PATHS: [&str; 3] = ["patches", "patchesJson6902", "replacements"];

/// What runs helm, which kustomize does only when told to, and Flux never tells it.
const HELM: [&str; 2] = ["helmCharts", "helmChartInflationGenerator"];

/// Judges the kustomization `first`, which stands for the file of `folder`, and all that it reaches. `folder` is
/// relative to `root`.
pub fn judge(root: &Path, folder: &Path, first: &Map<String, Value>) -> Result<(), RenderError> {
    let mut budget = Budget::default();
    let mut seen = HashSet::from([folder.to_path_buf()]);
    let mut pending = kustomization(root, folder, &folder.join("kustomization.yaml"), first)?;
    while let Some(folder) = pending.pop() {
        let Some(file) = tree::kustomization_file(&root.join(&folder)) else { continue };
        if !seen.insert(folder.clone()) {
            continue;
        }
        if seen.len() > MAX_FILES {
            return Err(RenderError::TooLarge { what: format!("more than {MAX_FILES} kustomizations are reached") });
        }
        let relative = file.strip_prefix(root).unwrap_or(&file).to_path_buf();
        let map = read(&file, &relative, &mut budget)?;
        pending.extend(kustomization(root, &folder, &relative, &map)?);
    }
    Ok(())
}

/// Reads a kustomization file; an empty one is an empty mapping.
pub fn read(file: &Path, shown: &Path, budget: &mut Budget) -> Result<Map<String, Value>, RenderError> {
    let unreadable = |source| RenderError::Disk { path: file.to_path_buf(), source };
    let shown = shown.display().to_string();
    if fs::metadata(file).map_err(unreadable)?.len() > tree::MAX_BYTES {
        return Err(RenderError::TooLarge { what: format!("{shown} is larger than {} MiB", tree::MAX_BYTES >> 20) });
    }
    let wrong = |why: &str| RenderError::Kustomization { file: shown.clone(), why: why.to_owned() };
    let text = String::from_utf8(fs::read(file).map_err(unreadable)?).map_err(|_| wrong("it is not UTF-8"))?;
    let mut documents = yaml::documents(&text.replace("\r\n", "\n"), budget).map_err(|source| RenderError::Yaml {
        place: shown.clone(),
        source: Box::new(source),
        hint: "correct it",
    })?;
    match (documents.pop(), documents.is_empty()) {
        (None, _) => Ok(Map::new()),
        (Some((_, Value::Object(map))), true) => Ok(map),
        (Some(_), true) => Err(wrong("it is not a mapping")),
        (Some(_), false) => Err(wrong("it holds more than one document")),
    }
}

/// Judges one kustomization and returns the folders that it names.
fn kustomization(
    root: &Path,
    folder: &Path,
    file: &Path,
    map: &Map<String, Value>,
) -> Result<Vec<PathBuf>, RenderError> {
    let judge = Judge { root, folder, file };
    let mut folders = Vec::new();
    for field in HELM {
        if map.get(field).is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
            return Err(RenderError::Kustomization {
                file: file.display().to_string(),
                why: format!("{field} runs helm, which is not allowed; ship the rendered chart"),
            });
        }
    }
    for field in REFERENCES {
        for entry in strings(map.get(field)).filter(|entry| !entry.trim_end().contains('\n')) {
            let target = judge.local(field, entry)?;
            if root.join(&target).is_dir() {
                folders.push(target);
            }
        }
    }
    let paths = |field: &'static str| {
        elements(map.get(field)).filter_map(move |item| Some((field, item.get("path")?.as_str()?)))
    };
    let openapi = map.get("openapi").and_then(|o| o.get("path")?.as_str()).map(|path| ("openapi", path));
    for (field, entry) in PATHS.into_iter().flat_map(paths).chain(openapi) {
        judge.local(field, entry)?;
    }
    for generator in ["configMapGenerator", "secretGenerator"] {
        for item in elements(map.get(generator)) {
            let files = strings(item.get("files")).map(|entry| entry.split_once('=').map_or(entry, |(_, path)| path));
            let env = item.get("env").and_then(Value::as_str);
            for entry in files.chain(strings(item.get("envs"))).chain(env) {
                judge.local(generator, entry)?;
            }
        }
    }
    Ok(folders)
}

fn elements(list: Option<&Value>) -> impl Iterator<Item = &Value> {
    list.and_then(Value::as_array).into_iter().flatten()
}

fn strings(list: Option<&Value>) -> impl Iterator<Item = &str> {
    elements(list).filter_map(Value::as_str)
}

struct Judge<'a> {
    root: &'a Path,
    folder: &'a Path,
    file: &'a Path,
}

impl Judge<'_> {
    /// The path that `entry` stands for, relative to the root.
    fn local(&self, field: &str, entry: &str) -> Result<PathBuf, RenderError> {
        let target = relative_join(self.folder, entry);
        // A path that is there is a path, whatever it looks like.
        let there = target.as_ref().is_some_and(|target| self.root.join(target).exists());
        if !there && is_remote(entry) {
            return Err(RenderError::Remote {
                file: self.file.display().to_string(),
                field: field.to_owned(),
                entry: without_credentials(entry),
            });
        }
        target.ok_or_else(|| RenderError::Outside {
            file: self.file.display().to_string(),
            field: field.to_owned(),
            entry: entry.chars().take(200).collect(),
        })
    }
}

/// Whether kustomize would take `entry` for a URL or a git repository.
pub fn is_remote(entry: &str) -> bool {
    let lower = entry.trim().to_ascii_lowercase();
    let forced = ["git::", "gh:", "git@", "github.com:", "github.com/", "hg::", "s3::", "gcs::"];
    // `user@host:path`, as scp writes it.
    let scp = lower.split_once(':').is_some_and(|(host, _)| host.contains('@') && !host.contains('/'));
    lower.contains("://")
        || scp
        || forced.iter().any(|prefix| lower.starts_with(prefix))
        || lower.contains("?ref=")
        || lower.contains("?version=")
        || lower.contains("&ref=")
        || lower.contains(".git//")
}

fn without_credentials(entry: &str) -> String {
    let entry: String = entry.chars().filter(|c| !c.is_control()).take(200).collect();
    let (scheme, rest) = entry.split_once("://").map_or(("", entry.as_str()), |(s, r)| (s, r));
    let rest = rest.split('?').next().unwrap_or_default();
    let host_end = rest.find('/').unwrap_or(rest.len());
    let rest = match rest[..host_end].rfind('@') {
        Some(at) => &rest[at + 1..],
        None => rest,
    };
    if scheme.is_empty() { rest.to_owned() } else { format!("{scheme}://{rest}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn remote_bases_are_known_in_all_their_spellings() {
        for (entry, remote) in [
            ("https://github.com/org/repo//path?ref=v1", true),
            ("HTTP://example.org/a.yaml", true),
            ("github.com/org/repo", true),
            ("GitHub.com:org/repo", true),
            ("git@github.com:org/repo.git", true),
            ("git::https://example.org/a", true),
            ("gh:org/repo", true),
            ("ssh://git@example.org/a", true),
            ("file:///etc", true),
            ("me@example.org:a/b", true),
            ("example.org/org/repo.git//path", true),
            ("org/repo?ref=main", true),
            ("oci://example.org/a", true),
            ("./a.yaml", false),
            ("../base", false),
            ("a@b/c.yaml", false),
            ("c:/a.yaml", false),
        ] {
            assert_eq!(is_remote(entry), remote, "{entry}");
        }
    }

    #[test]
    fn a_refused_reference_shows_no_credentials() {
        for (entry, shown) in [
            ("https://me:pass@example.org/a@b?token=x", "https://example.org/a@b"),
            ("git@github.com:org/repo", "github.com:org/repo"),
            ("https://example.org", "https://example.org"),
        ] {
            assert_eq!(without_credentials(entry), shown);
        }
    }

    fn judged(files: &[(&str, Value)]) -> Result<(), String> {
        let root = tempfile::tempdir().unwrap();
        for (file, content) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content.to_string()).unwrap();
        }
        let first =
            read(&root.path().join("app/kustomization.yaml"), Path::new("app"), &mut Budget::default()).unwrap();
        judge(root.path(), Path::new("app"), &first).map_err(|e| e.to_string())
    }

    #[test]
    fn everything_that_is_reached_is_judged() {
        let app = |value: Value| [("app/kustomization.yaml", value)];
        for value in [
            json!({"resources": ["./a.yaml", "../base", "missing"]}),
            json!({"patchesStrategicMerge": ["kind: A\nurl: https://x"], "patches": [{"patch": "- op: add\n  value: http://x"}]}),
            json!({"configMapGenerator": [{"literals": ["url=https://x"], "files": ["k=a.txt"]}]}),
            json!({"helmCharts": []}),
            json!({}),
        ] {
            assert_eq!(judged(&app(value.clone())), Ok(()), "{value}");
        }
        for (value, why) in [
            (json!({"resources": ["https://x.org/a"]}), "resources refers to \"https://x.org/a\", and remote bases"),
            (json!({"bases": ["github.com/a/b"]}), "remote bases"),
            (json!({"components": ["git@x:a"]}), "remote bases"),
            (json!({"patches": [{"path": "https://x.org/a"}]}), "patches refers"),
            (json!({"openapi": {"path": "https://x.org/a"}}), "openapi refers"),
            (json!({"configMapGenerator": [{"files": ["k=https://x.org/a"]}]}), "configMapGenerator refers"),
            (json!({"secretGenerator": [{"envs": ["/etc/passwd"]}]}), "outside the artifact"),
            (json!({"resources": ["../../x"]}), "outside the artifact"),
            (json!({"resources": ["/etc"]}), "outside the artifact"),
            (json!({"helmCharts": [{"name": "x"}]}), "runs helm"),
        ] {
            let error = judged(&app(value.clone())).unwrap_err();
            assert!(error.contains(why) && error.contains("app/kustomization.yaml"), "{value}: {error}");
        }
        let error = judged(&[
            ("app/kustomization.yaml", json!({"resources": ["../base"]})),
            ("base/kustomization.yml", json!({"components": ["../app", "../part"]})),
            ("part/Kustomization", json!({"resources": ["https://x.org/deep"]})),
        ])
        .unwrap_err();
        assert!(error.starts_with("part/Kustomization: resources"), "{error}");
    }
}
