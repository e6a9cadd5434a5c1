//! The artifact's tree: where a Kustomization's path leads, and which files lie there. The tree is read-only, holds
//! no symlinks, and nobody changes it meanwhile, so names are enough.

use std::{
    fs::{self, FileType},
    io,
    path::{Component, Path, PathBuf},
};

use super::render::RenderError;

/// The names that make a folder a kustomization, in the order in which they are looked for.
pub const KUSTOMIZATION_FILES: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// No artifact of configuration comes near these; a container image's tree may.
pub const MAX_FILES: usize = 50_000;
/// All manifests of a plain folder together, and one kustomization file.
pub const MAX_BYTES: u64 = 64 << 20;
/// All files of a working copy together: more than an artifact may unpack to.
const MAX_COPY: u64 = 512 << 20;

/// `path` below `root`, where `..` at the root stays there, as with securejoin.
pub fn secure_join(root: &Path, path: &str) -> PathBuf {
    let mut joined = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => joined.push(name),
            Component::ParentDir => {
                joined.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    root.join(joined)
}

/// `entry` as seen from `folder`, both relative to the root; `None` where it leads out of the root.
pub fn relative_join(folder: &Path, entry: &str) -> Option<PathBuf> {
    let mut joined = folder.to_path_buf();
    for component in Path::new(entry).components() {
        match component {
            Component::Normal(name) => joined.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !joined.pop() {
                    return None;
                }
            }
            Component::Prefix(_) | Component::RootDir => return None,
        }
    }
    Some(joined)
}

/// The kustomization file of a folder.
pub fn kustomization_file(folder: &Path) -> Option<PathBuf> {
    KUSTOMIZATION_FILES.iter().map(|name| folder.join(name)).find(|file| file.is_file())
}

/// The entries of a folder, sorted by name.
pub fn entries(folder: &Path) -> Result<Vec<(PathBuf, FileType)>, RenderError> {
    let unreadable = |source: io::Error| RenderError::Disk { path: folder.to_path_buf(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        found.push((entry.path(), entry.file_type().map_err(unreadable)?));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// What a plain folder holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Manifests {
    /// Files of YAML and folders with a kustomization file of their own, which are not entered; in lexical order,
    /// depth first.
    pub resources: Vec<PathBuf>,
    /// Whether one of them is such a folder.
    pub has_kustomization: bool,
}

/// The manifests below `folder`, as Flux's generator finds them.
pub fn manifests(folder: &Path) -> Result<Manifests, RenderError> {
    let mut found = Manifests::default();
    let mut seen = 0;
    let mut pending = entries(folder)?;
    pending.reverse();
    while let Some((path, kind)) = pending.pop() {
        seen += 1;
        if seen > MAX_FILES {
            return Err(RenderError::TooLarge { what: format!("the folder holds more than {MAX_FILES} files") });
        }
        if kind.is_dir() {
            if kustomization_file(&path).is_some() {
                found.has_kustomization = true;
                found.resources.push(path);
            } else {
                let mut inner = entries(&path)?;
                inner.reverse();
                pending.append(&mut inner);
            }
        } else if kind.is_file() && is_yaml(&path) {
            found.resources.push(path);
        }
    }
    Ok(found)
}

/// How large the files of YAML below `folder` are together; what cannot be read counts for nothing.
pub fn yaml_bytes(folder: &Path) -> u64 {
    let (mut bytes, mut seen) = (0, 0);
    let mut pending = vec![folder.to_path_buf()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten().take(MAX_FILES - seen) {
            seen += 1;
            match entry.metadata() {
                Ok(found) if found.is_dir() => pending.push(entry.path()),
                Ok(found) if found.is_file() && is_yaml(&entry.path()) => bytes += found.len(),
                _ => {}
            }
        }
    }
    bytes
}

/// By Go's `filepath.Ext`, to which `.yaml` alone is an extension too.
fn is_yaml(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.as_encoded_bytes()).unwrap_or_default();
    name.ends_with(b".yaml") || name.ends_with(b".yml")
}

/// Copies the files of `from` to `to`, which must not exist. A file that the program writes to by mistake is then
/// not the published one, as a hard link would be.
pub fn copy(from: &Path, to: &Path) -> Result<(), RenderError> {
    let mut budget = (MAX_FILES, MAX_COPY);
    let mut pending = vec![(from.to_path_buf(), to.to_path_buf())];
    while let Some((from, to)) = pending.pop() {
        fs::create_dir(&to).map_err(|source| RenderError::Disk { path: to.clone(), source })?;
        for (path, kind) in entries(&from)? {
            let target = to.join(path.file_name().unwrap_or_default());
            budget.0 = budget.0.checked_sub(1).ok_or_else(|| RenderError::TooLarge {
                what: format!("the artifact holds more than {MAX_FILES} files"),
            })?;
            if kind.is_dir() {
                pending.push((path, target));
            } else if kind.is_file() {
                let size = fs::copy(&path, &target).map_err(|source| RenderError::Disk { path, source })?;
                budget.1 = budget.1.checked_sub(size).ok_or_else(|| RenderError::TooLarge {
                    what: format!("the artifact's files are larger than {} MiB together", MAX_COPY >> 20),
                })?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_never_leaves_the_root() {
        for (path, joined) in [
            ("", "/r"),
            ("./", "/r"),
            ("/a", "/r/a"),
            ("a/../b", "/r/b"),
            ("../../etc", "/r/etc"),
            ("a/../../..", "/r"),
        ] {
            assert_eq!(secure_join(Path::new("/r"), path), Path::new(joined).join(""), "{path}");
        }
        for (entry, joined) in [
            ("a", Some("x/a")),
            ("../a", Some("a")),
            ("../../a", None),
            ("/a", None),
            ("./a/../b/", Some("x/b")),
            ("../../x/a", None),
        ] {
            assert_eq!(relative_join(Path::new("x"), entry), joined.map(PathBuf::from), "{entry}");
        }
    }

    #[test]
    fn finds_manifests_and_does_not_enter_a_kustomization() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for file in
            ["b.yaml", "a/z.yml", "a/.yaml", "a/readme.md", "a/c.json", "k/Kustomization", "k/in.yaml", "c.yaml/d.yaml"]
        {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), "").unwrap();
        }
        fs::create_dir_all(root.join("odd/kustomization.yaml")).unwrap();
        let found = manifests(root).unwrap();
        let names: Vec<_> = found.resources.iter().map(|p| p.strip_prefix(root).unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a/.yaml", "a/z.yml", "b.yaml", "c.yaml/d.yaml", "k"]);
        assert!(found.has_kustomization);
        fs::write(root.join("b.yaml"), "12345").unwrap();
        fs::write(root.join("k/in.yaml"), "678").unwrap();
        assert_eq!((yaml_bytes(root), yaml_bytes(&root.join("k")), yaml_bytes(&root.join("none"))), (8, 3, 0));

        let copied = root.join("copy-of-a");
        copy(&root.join("a"), &copied).unwrap();
        assert_eq!(entries(&copied).unwrap().len(), 4);
    }
}
