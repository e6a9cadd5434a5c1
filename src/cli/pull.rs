//! `larder pull`

use std::{
    ffi::CString,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
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
    digest::Digest,
    oci::{Reference, Selector},
    pull::{Puller, Wanted, Way},
    store::Store,
};

/// Marks a directory as made by a pull, so that the next one may replace it: the digest, and the time of the newest change
/// in it as that pull left it.
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
    let target = std::path::absolute(&arguments.output)?;
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
    let digest = found.digest;
    blocking::io(move || put_in_place(&tree, &target, &digest)).await?;
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
    let is_empty = fs::read_dir(target).with_context(|| format!("cannot read {}", target.display()))?.next().is_none();
    if is_empty || force {
        return Ok(());
    }
    let why = match marked(target) {
        None => "is not empty and was not made by a pull",
        Some(mark) if newest_change(target)? != mark => "was changed since a pull made it",
        Some(_) => return Ok(()),
    };
    bail!("{} {why}; name another directory, or give --force to replace it", target.display())
}

/// The time in the mark of an earlier pull.
fn marked(directory: &Path) -> Option<i128> {
    let mut value = [0u8; 256];
    let len = rustix::fs::getxattr(directory, MARK, &mut value[..]).ok()?;
    std::str::from_utf8(value.get(..len)?).ok()?.rsplit_once(' ')?.1.parse().ok()
}

/// When something in a tree was last written, made or removed: nanoseconds since 1970, of the file system's clock.
fn newest_change(directory: &Path) -> std::io::Result<i128> {
    let mut newest = i128::MIN;
    let mut directories = vec![directory.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let mut note = |metadata: &fs::Metadata| {
            newest = newest.max(i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()));
        };
        note(&fs::symlink_metadata(&directory)?);
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            note(&metadata);
            if metadata.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(newest)
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

/// Puts `tree` where `target` is, in one step, and removes what was there.
fn put_in_place(tree: &Path, target: &Path, digest: &Digest) -> anyhow::Result<()> {
    // Where the filesystem keeps no attributes, the next pull asks for --force.
    if let Ok(newest) = newest_change(tree) {
        let _ = rustix::fs::setxattr(tree, MARK, format!("{digest} {newest}").as_bytes(), XattrFlags::empty());
    }
    let context = || format!("cannot put the contents in place at {}", target.display());
    if !target.exists() {
        return fs::rename(tree, target).with_context(context);
    }
    let path = |p: &Path| CString::new(p.as_os_str().as_bytes());
    let (from, to) = (path(tree)?, path(target)?);
    match rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::EXCHANGE) {
        // What was there lies in the working directory now, and goes with it.
        Ok(()) => Ok(()),
        // A mount of the same file system.
        Err(Errno::BUSY) => {
            bail!("{} is a mount point, which cannot be replaced in one step; name a directory in it", target.display())
        }
        Err(error) => Err(std::io::Error::from(error)).with_context(context),
    }
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
    }
}
