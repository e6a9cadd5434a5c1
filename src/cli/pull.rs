//! `larder pull`

use std::{
    ffi::CString,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, anyhow, bail};
use rustix::{
    fs::{CWD, RenameFlags, XattrFlags},
    io::Errno,
};
use serde_json::json;

use super::{
    output::{self, Format},
    remote::{Remote, reference},
};
use crate::{
    artifact::{
        build::{self, Caps, Ignoring},
        choose::{self, Choice},
    },
    blocking,
    digest::{Algorithm, Digest, Hasher},
    oci::{Reference, Selector},
    pull::{Puller, Wanted, Way},
    store::Store,
};

/// Marks a directory as made by a pull, so that the next one may replace it: the digest, and the state in which it was
/// left.
const MARK: &str = "user.larder.pull";
/// What every pull's working directory begins with.
const WORK: &str = ".larder-pull-";

/// Pull, verify and unpack: the directory is complete or untouched
#[derive(Debug, clap::Args)]
#[command(
    after_help = "DIR is made, or replaced if it is empty or what an earlier pull made; any other is refused unless --force is given.\n\nExamples:\n  larder pull oci://ghcr.io/org/my-app-config:v1.0.0 --output ./my-app-config\n  larder pull oci://ghcr.io/org/my-app-config@sha256:… --output ./my-app-config"
)]
pub struct Arguments {
    /// What to pull; `latest` if neither tag nor digest is named
    #[arg(value_name = "oci://HOST/REPO[:TAG|@DIGEST]", value_parser = reference)]
    reference: Reference,
    /// Where to unpack it
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Replace DIR whatever it holds
    #[arg(long)]
    force: bool,
    /// How to print what was pulled
    #[arg(short = 'o', long = "format", value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    remote: Remote,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let target = target_of(&arguments.output)?;
    refuse_what_is_not_ours(&target, arguments.force)?;
    let parent = target.parent().context("--output must not be the root directory")?.to_path_buf();
    fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
    // Beside the target: so that the last step is a rename, and the disk that fills up is the one meant.
    remove_what_was_left(&parent);
    let work = tempfile::Builder::new().prefix(WORK).tempdir_in(&parent)?;
    let wanted = match &arguments.reference.selector {
        Some(Selector::Tag(tag)) => Wanted::Tag(tag.clone()),
        Some(Selector::Digest(digest)) => Wanted::Digest(*digest),
        None => Wanted::Tag("latest".parse()?),
    };
    let at = arguments.remote.open(&arguments.reference).await?;
    let (registry, repository) = (at.endpoint.registry.to_string(), at.repository.to_string());
    let way = Arc::new(Way { endpoint: at.endpoint, repository: at.repository });
    let spinner = output::spinner(format!("resolving {registry}/{repository}"));
    let store = {
        let root = work.path().join("store");
        blocking::io(move || Store::open(&root)).await?
    };
    let (client, puller) = (at.client.clone(), Puller::new(store.clone(), at.client)?);
    let found = puller.resolve(&way, &wanted, false, at.budget).await?;
    let manifest = puller.manifest(&way, &found, at.budget).await?;
    if let Some(warning) = &manifest.warning {
        output::say(format_args!("warning: {warning}"));
    }
    let chosen = choose::choose(&manifest.manifest, &Choice { all_layers_of_images: true, ..Choice::default() })?;
    let mut layers = Vec::new();
    let (mut whole, total) = (0, chosen.layers.iter().map(|layer| layer.size).sum());
    for (n, layer) in chosen.layers.iter().enumerate() {
        spinner.set_message(format!("pulling layer {} of {}", n + 1, chosen.layers.len()));
        let before = client.traffic().received();
        let done = || whole + client.traffic().received() - before;
        let (blob, _) = output::with_bar(&spinner, total, done, puller.blob(&way, layer, at.budget)).await?;
        layers.push(blob);
        whole += layer.size;
    }
    spinner.set_message("unpacking");
    let tree = work.path().join("tree");
    let (files, dropped) = {
        let (tree, store) = (tree.clone(), store.clone());
        blocking::cpu(move || -> anyhow::Result<_> {
            let digests: Vec<Digest> = layers.iter().map(|l| l.digest()).collect();
            let unpacked = build::unpack(&layers, chosen.image, Ignoring::Nothing, Caps::default(), Some(&store))
                .map_err(|e| e.of(&digests))?;
            fs::create_dir(&tree)?;
            let directory = cap_std::fs::Dir::open_ambient_dir(&tree, cap_std::ambient_authority())?;
            unpacked.tree.write_plain(&directory)?;
            let files = unpacked.tree.nodes().iter().filter(|n| !n.is_dir()).count();
            Ok((files, unpacked.dropped))
        })
        .await?
    };
    let (digest, force) = (found.digest, arguments.force);
    blocking::io(move || put_in_place(&tree, &target, &digest, force)).await?;
    spinner.finish_and_clear();
    if dropped > 0 {
        output::say(format_args!(
            "warning: left {dropped} entries out: symlinks, and of an image also devices, fifos and sockets"
        ));
    }
    let annotation = |name: &str| {
        manifest.manifest.annotations.get(&format!("org.opencontainers.image.{name}")).cloned().unwrap_or_default()
    };
    let (source, revision) = (annotation("source"), annotation("revision"));
    let shown = arguments.output.display().to_string();
    if arguments.format != Format::Table {
        let pulled = json!({
            "url": format!("oci://{registry}/{repository}@{digest}"),
            "digest": digest, "source": source, "revision": revision, "output": shown, "files": files,
        });
        return output::print_document(&pulled, arguments.format);
    }
    let counted = if files == 1 { "file" } else { "files" };
    let mut text = format!("pulled oci://{registry}/{repository}@{digest} into {shown}, {files} {counted}\n");
    for (name, value) in [("source", source), ("revision", revision)] {
        if !value.is_empty() {
            text.push_str(&format!("{name}: {}\n", value.escape_debug()));
        }
    }
    output::print(&text)
}

/// The directory to put the contents at, as an absolute path without a slash at its end, behind which a symbolic link
/// would be followed.
fn target_of(output: &Path) -> anyhow::Result<PathBuf> {
    let target: PathBuf = std::path::absolute(output)?.components().collect();
    if target.file_name().is_none() {
        bail!("--output {} must name a directory, not the root directory, and not end in `..`", output.display());
    }
    Ok(target)
}

/// A directory with content that no pull put there is somebody's.
fn refuse_what_is_not_ours(target: &Path, force: bool) -> anyhow::Result<()> {
    let metadata = match fs::symlink_metadata(target) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("cannot look at {}", target.display()))?,
    };
    if metadata.is_symlink() {
        bail!("{} is a symbolic link; name the directory itself", target.display());
    }
    if !metadata.is_dir() {
        bail!("{} exists and is not a directory; name another", target.display());
    }
    if target.parent().and_then(|parent| fs::metadata(parent).ok()).is_some_and(|parent| parent.dev() != metadata.dev())
    {
        bail!(
            "{} is a mount point, which cannot be replaced in one step; name a directory in it, such as {}",
            target.display(),
            target.join("contents").display()
        );
    }
    // Whoever stands in it, a shell, would stand in a directory that is gone.
    let here = std::env::current_dir().unwrap_or_default();
    let is_it = |at: &Path| fs::metadata(at).is_ok_and(|at| (at.dev(), at.ino()) == (metadata.dev(), metadata.ino()));
    if here.ancestors().any(is_it) {
        bail!(
            "{} is the working directory, or holds it, and would be replaced as a whole; go elsewhere first, or name a \
             directory in it, such as {}",
            target.display(),
            target.join("contents").display()
        );
    }
    match whose(target).with_context(|| format!("cannot read {}", target.display()))? {
        Some(why) if !force => {
            bail!("{} {why}; name another directory, or give --force to replace it", target.display())
        }
        _ => Ok(()),
    }
}

/// Why a directory is somebody's; `None` where it is empty, or as a pull made it.
fn whose(directory: &Path) -> std::io::Result<Option<&'static str>> {
    if fs::read_dir(directory)?.next().is_none() {
        return Ok(None);
    }
    Ok(match marked(directory) {
        None => Some("is not empty and was not made by a pull"),
        Some(mark) if state(directory)? != mark => Some("was changed since a pull made it"),
        Some(_) => None,
    })
}

/// The state in the mark of an earlier pull.
fn marked(directory: &Path) -> Option<Digest> {
    let mut value = [0u8; 256];
    let len = rustix::fs::getxattr(directory, MARK, &mut value[..]).ok()?;
    std::str::from_utf8(value.get(..len)?).ok()?.rsplit_once(' ')?.1.parse().ok()
}

/// All entries of a tree with their sizes, and when each was last written and last changed in any way, which nobody can
/// set back. Of the tree itself only when it was written: it is marked and renamed after this.
fn state(directory: &Path) -> std::io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut note = |path: &[u8], times: &[i64]| {
        hasher.update(path);
        times.iter().for_each(|time| hasher.update(&time.to_le_bytes()));
    };
    let root = fs::symlink_metadata(directory)?;
    note(b"", &[root.mtime(), root.mtime_nsec()]);
    let mut directories = vec![directory.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let mut entries = fs::read_dir(&directory)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_unstable_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let of = entry.metadata()?;
            let size = i64::try_from(of.size()).unwrap_or(i64::MAX);
            let name = [entry.file_name().as_bytes(), b"\0"].concat();
            note(&name, &[size, of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()]);
            if of.is_dir() {
                directories.push(entry.path());
            }
        }
        note(b"/", &[]);
    }
    Ok(hasher.finish())
}

/// Removes working directories of pulls that were killed: their stores are nobody's.
fn remove_what_was_left(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten().filter(|e| e.file_name().as_bytes().starts_with(WORK.as_bytes())) {
        let root = entry.path().join("store");
        // One without a store is about to be somebody's, or is not worth the risk.
        if root.is_dir() && Store::open(&root).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Puts `tree` where `target` is, in one step, and removes what was there; what appeared there meanwhile is somebody's.
fn put_in_place(tree: &Path, target: &Path, digest: &Digest, force: bool) -> anyhow::Result<()> {
    // Where the filesystem keeps no attributes, the next pull asks for --force.
    if let Ok(state) = state(tree) {
        let _ = rustix::fs::setxattr(tree, MARK, format!("{digest} {state}").as_bytes(), XattrFlags::empty());
    }
    // This replaces nothing but an empty directory.
    match fs::rename(tree, target) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {}
        Err(error) if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => {}
        other => return other.map_err(|error| not_in_place(target, error)),
    }
    refuse_what_is_not_ours(target, force)?;
    replace(tree, target, force)
}

/// Exchanges the two, and once more where what comes out is somebody's.
fn replace(tree: &Path, target: &Path, force: bool) -> anyhow::Result<()> {
    exchange(tree, target)?;
    // What was there lies in the working directory now, and goes with it.
    let why = if force { None } else { whose(tree).unwrap_or(Some("cannot be read any more")) };
    let Some(why) = why else { return Ok(()) };
    exchange(tree, target)?;
    bail!("{} {why}; nothing was replaced; name another directory, or give --force to replace it", target.display())
}

fn exchange(tree: &Path, target: &Path) -> anyhow::Result<()> {
    let path = |p: &Path| CString::new(p.as_os_str().as_bytes());
    let (from, to) = (path(tree)?, path(target)?);
    rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE)
        .map_err(|error| not_in_place(target, error.into()))
}

fn not_in_place(target: &Path, error: std::io::Error) -> anyhow::Error {
    // A mount of the same file system.
    if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) {
        let target = target.display();
        return anyhow!("{target} is a mount point, which cannot be replaced in one step; name a directory in it");
    }
    anyhow::Error::new(error).context(format!("cannot put the contents in place at {}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_replaced_is_told_before_anything_is_pulled() {
        let root = tempfile::tempdir().unwrap();
        let [empty, file, link] = ["empty", "file", "link"].map(|name| root.path().join(name));
        fs::create_dir(&empty).unwrap();
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&empty, &link).unwrap();
        let said = |target: &Path| refuse_what_is_not_ours(target, true).map_err(|error| error.to_string());
        assert_eq!(said(&empty), Ok(()));
        assert_eq!(said(&root.path().join("none")), Ok(()));
        assert!(said(&file).unwrap_err().contains("is not a directory"));
        assert!(said(&link).unwrap_err().contains("is a symbolic link"));
        assert!(said(Path::new("/proc")).unwrap_err().contains("is a mount point"));
        let here = std::env::current_dir().unwrap();
        assert!(here.ancestors().all(|at| said(at).is_err()));
        let told = said(&here).unwrap_err();
        assert!(told.contains("is the working directory") || told.contains("is a mount point"), "{told}");
        let link = target_of(&root.path().join("link/")).unwrap();
        assert!(said(&link).unwrap_err().contains("is a symbolic link"));
        for none in ["/", "..", "x/.."] {
            assert!(target_of(Path::new(none)).is_err(), "{none}");
        }
    }

    fn made(root: &Path, name: &str, files: &[&str]) -> PathBuf {
        let directory = root.join(name);
        fs::create_dir_all(directory.join("sub")).unwrap();
        files.iter().for_each(|file| fs::write(directory.join(file), file).unwrap());
        directory
    }

    #[test]
    fn a_pulled_tree_is_replaced_until_somebody_changes_anything_in_it() {
        let (root, digest) = (tempfile::tempdir().unwrap(), Digest::sha256(b""));
        let target = root.path().join("target");
        let set_back = |path: &Path, to: &fs::Metadata| {
            fs::File::open(path).unwrap().set_times(fs::FileTimes::new().set_modified(to.modified().unwrap())).unwrap();
        };
        type Change<'a> = &'a dyn Fn(&Path);
        let changes: [(&str, Change<'_>); 5] = [
            ("an edit", &|at| fs::write(at.join("a"), "b").unwrap()),
            ("another file", &|at| fs::write(at.join("sub/c"), "c").unwrap()),
            ("a file less", &|at| fs::remove_file(at.join("a")).unwrap()),
            ("rights", &|at| {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
                fs::set_permissions(at.join("sub/b"), mode).unwrap();
            }),
            ("another name", &|at| fs::rename(at.join("sub/b"), at.join("sub/d")).unwrap()),
        ];
        for (n, (what, change)) in changes.iter().enumerate() {
            let tree = made(root.path(), &format!("first{n}"), &["a", "sub/b"]);
            put_in_place(&tree, &target, &digest, true).unwrap();
            let tree = made(root.path(), &format!("second{n}"), &["a", "sub/b"]);
            put_in_place(&tree, &target, &digest, false).unwrap();
            // The file system's clock has moved on.
            std::thread::sleep(std::time::Duration::from_millis(30));
            let kept = ["", "a", "sub", "sub/b"].map(|name| (name, fs::metadata(target.join(name)).unwrap()));
            change(&target);
            for (name, was) in kept.iter().rev().filter(|(name, _)| target.join(name).exists()) {
                set_back(&target.join(name), was);
            }
            let third = made(root.path(), &format!("third{n}"), &["a"]);
            let said = put_in_place(&third, &target, &digest, false).unwrap_err().to_string();
            assert!(said.contains("was changed since a pull made it"), "{what}: {said}");
        }
    }

    #[test]
    fn what_comes_out_in_exchange_and_is_somebodys_goes_back() {
        let root = tempfile::tempdir().unwrap();
        let (tree, target) = (made(root.path(), "tree", &["new"]), made(root.path(), "target", &["mine"]));
        let said = replace(&tree, &target, false).unwrap_err().to_string();
        assert!(said.contains("was not made by a pull; nothing was replaced"), "{said}");
        assert!(target.join("mine").exists() && tree.join("new").exists());
        replace(&tree, &target, true).unwrap();
        assert!(target.join("new").exists());
    }
}
