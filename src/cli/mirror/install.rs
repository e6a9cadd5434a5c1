//! `larder mirror install|uninstall`
//!
//! Each file appears whole or not at all: it is written beside its place and renamed. Two installs at once end with the
//! files of one of them. Killed in between, some upstreams have their file and some not; installing again does the rest.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::{
    super::output::{self, Format},
    CERTS_D, Mirror,
    hosts::{self, ASIDE, FILE, Local, Owner},
};

/// `install`
#[derive(Debug, clap::Args)]
pub struct Install {
    #[command(flatten)]
    mirror: Mirror,
    /// The folder to which containerd's config_path points
    #[arg(long, value_name = "DIR", default_value = CERTS_D)]
    dir: PathBuf,
    #[command(flatten)]
    certificates: Certificates,
    /// For a mirror that does not run as root, but in this group: it may take the files away again, and write to its data
    /// folder, which is made
    #[arg(long, value_name = "GID")]
    group: Option<u32>,
    /// Replace files of another's making too; they are put aside as hosts.toml.before-larder
    #[arg(long)]
    force: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// How clients know a listener with TLS, and are known to it.
#[derive(Debug, Default, clap::Args)]
pub struct Certificates {
    /// The authorities of the registry listener's certificate, PEM [default: registry.tls.cert]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The certificate that containerd shows to the registry listener, PEM
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
}

impl Certificates {
    /// Where the mirror is, known by these.
    pub fn local(&self, config: &crate::config::Config) -> anyhow::Result<Local> {
        Local::of(config, self.ca.clone(), self.client_cert.clone().zip(self.client_key.clone()))
    }
}

/// `uninstall`
#[derive(Debug, clap::Args)]
pub struct Uninstall {
    /// Taken as install takes it; what is removed is whatever install wrote, whichever configuration it had
    #[arg(long, value_name = "FILE", env = "LARDER_CONFIG")]
    config: Option<PathBuf>,
    /// The folder that install wrote to
    #[arg(long, value_name = "DIR", default_value = CERTS_D)]
    dir: PathBuf,
    /// Remove files that were changed since, too
    #[arg(long)]
    force: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What became of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Done {
    file: PathBuf,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Outcome {
    Written,
    Unchanged,
    /// Written; what was there is aside.
    Replaced,
    Removed,
    /// Removed; what was aside is back.
    Restored,
    /// Not of install's making, and left alone.
    Other,
    /// Changed since install wrote it, and left alone.
    Changed,
}

impl Outcome {
    fn text(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Unchanged => "unchanged",
            Self::Replaced => "written; what was there is now hosts.toml.before-larder",
            Self::Removed => "removed",
            Self::Restored => "removed; what was there before is back",
            Self::Other => "left alone: Larder did not write it",
            Self::Changed => "left alone: it was changed since Larder wrote it",
        }
    }

    fn left_alone(self) -> bool {
        matches!(self, Self::Other | Self::Changed)
    }
}

/// Writes a file for each upstream.
pub fn install(arguments: &Install) -> anyhow::Result<()> {
    let config = arguments.mirror.read()?;
    let local = arguments.certificates.local(&config)?;
    let mut wanted = Vec::new();
    for upstream in &config.upstreams {
        wanted.push((arguments.dir.join(hosts::folder(upstream)), hosts::text(upstream, &local)?));
    }
    let mut done = Vec::new();
    for (folder, text) in &wanted {
        done.push(put(folder, text, arguments.force)?);
        if let Some(group) = arguments.group {
            share(folder, group, 0o2775)?;
        }
    }
    if let Some(group) = arguments.group {
        fs::create_dir_all(&config.data).with_context(|| format!("cannot make {}", config.data.display()))?;
        share(&config.data, group, 0o2770)?;
    }
    for folder in folders(&arguments.dir)? {
        if !wanted.iter().any(|(wanted, _)| *wanted == folder) {
            done.extend(remove(&folder, false)?);
        }
    }
    report(&done, arguments.output, "--force replaces them, and puts aside what is not of its own making")
}

/// Removes every file that install wrote.
pub fn uninstall(arguments: &Uninstall) -> anyhow::Result<()> {
    let mut done = Vec::new();
    for folder in folders(&arguments.dir)? {
        done.extend(remove(&folder, arguments.force)?);
    }
    if done.is_empty() && arguments.output == Format::Table {
        return output::print(&format!("there is nothing in {} that Larder wrote\n", arguments.dir.display()));
    }
    report(&done, arguments.output, "--force removes them all the same")
}

fn report(done: &[Done], format: Format, hint: &str) -> anyhow::Result<()> {
    if format == Format::Table {
        let rows: Vec<Vec<String>> =
            done.iter().map(|d| vec![d.file.display().to_string(), d.outcome.text().into()]).collect();
        output::print_table(&["FILE", "WHAT"], &rows)?;
    } else {
        output::print_document(&done, format)?;
    }
    let left: Vec<String> =
        done.iter().filter(|d| d.outcome.left_alone()).map(|d| d.file.display().to_string()).collect();
    if left.is_empty() {
        return Ok(());
    }
    bail!("left alone, since they are not as Larder wrote them: {}; look at them, then {hint}", left.join(", "));
}

/// The folders in `dir`, sorted; none where it does not exist.
fn folders(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot list {}", dir.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(file: &Path) -> anyhow::Result<Option<String>> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

fn put(folder: &Path, text: &str, force: bool) -> anyhow::Result<Done> {
    let file = folder.join(FILE);
    let done = |outcome| Ok(Done { file: file.clone(), outcome });
    let there = read(&file)?;
    let outcome = match there.as_deref().map(|there| (there == text, hosts::owner(there))) {
        Some((true, _)) => return done(Outcome::Unchanged),
        None | Some((_, Owner::Larder)) => Outcome::Written,
        Some((_, Owner::Changed)) if !force => return done(Outcome::Changed),
        Some((_, Owner::Other)) if !force => return done(Outcome::Other),
        Some((_, Owner::Changed)) => Outcome::Written,
        Some((_, Owner::Other)) => {
            let aside = folder.join(ASIDE);
            // By a link, which fails where the name is taken: what was put aside once is not lost to a second time.
            fs::hard_link(&file, &aside).with_context(|| {
                format!("cannot put {} aside as {}; move that away first", file.display(), aside.display())
            })?;
            Outcome::Replaced
        }
    };
    write(folder, text).with_context(|| match folder.ancestors().find(|path| leads_nowhere(path)) {
        Some(link) => format!("cannot write {}: {} is a link to nothing; remove it", file.display(), link.display()),
        None => format!("cannot write {}", file.display()),
    })?;
    done(outcome)
}

/// Whether there is a symbolic link here, and nothing where it leads.
fn leads_nowhere(path: &Path) -> bool {
    path.is_symlink() && matches!(path.try_exists(), Ok(false))
}

/// Lets a group write to a folder. Its owner needs no privilege for this where the group is one of its own.
fn share(folder: &Path, group: u32, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
    let give = || -> io::Result<()> {
        let there = fs::metadata(folder)?;
        if there.gid() != group {
            chown(folder, None, Some(group))?;
        }
        if there.gid() != group || there.mode() & mode & 0o777 != mode & 0o777 {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    };
    give().with_context(|| format!("cannot give {} to group {group}", folder.display()))
}

/// The file, whole or not at all.
fn write(folder: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new()
        .prefix(".hosts.toml.")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(folder.join(FILE))?;
    fs::File::open(folder)?.sync_all()
}

/// Takes away what install wrote to a folder; nothing where that is none of its own.
fn remove(folder: &Path, force: bool) -> anyhow::Result<Option<Done>> {
    let file = folder.join(FILE);
    let done = |outcome| Ok(Some(Done { file: file.clone(), outcome }));
    let Some(there) = read(&file)? else { return Ok(None) };
    match hosts::owner(&there) {
        Owner::Other => return Ok(None),
        Owner::Changed if !force => return done(Outcome::Changed),
        Owner::Changed | Owner::Larder => {}
    }
    let aside = folder.join(ASIDE);
    if aside.exists() {
        fs::rename(&aside, &file).with_context(|| format!("cannot put {} back", aside.display()))?;
        return done(Outcome::Restored);
    }
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    // Where certificates or anything else lie beside it the folder stays.
    let _ = fs::remove_dir(folder);
    done(Outcome::Removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn text(host: &str) -> String {
        let config = config::check(&format!("upstreams: [{{host: {host}}}]")).unwrap();
        hosts::text(&config.upstreams[0], &Local::of(&config, None, None).unwrap()).unwrap()
    }

    #[test]
    fn writing_again_changes_nothing_and_removing_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("quay.io");
        assert_eq!(put(&folder, &text("quay.io"), false).unwrap().outcome, Outcome::Written);
        assert_eq!(fs::read_to_string(folder.join(FILE)).unwrap(), text("quay.io"));
        assert_eq!(put(&folder, &text("quay.io"), false).unwrap().outcome, Outcome::Unchanged);
        assert_eq!(put(&folder, &text("ghcr.io"), false).unwrap().outcome, Outcome::Written);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        assert_eq!(remove(&folder, false).unwrap().unwrap().outcome, Outcome::Removed);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(remove(&folder, false).unwrap(), None);
    }

    #[test]
    fn a_link_to_nothing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("certs.d");
        std::os::unix::fs::symlink(dir.path().join("gone"), &link).unwrap();
        let error = put(&link.join("quay.io"), &text("quay.io"), false).unwrap_err().to_string();
        assert!(error.ends_with(&format!("{} is a link to nothing; remove it", link.display())), "{error}");
    }

    #[test]
    fn a_group_may_write_to_what_is_shared_with_it_and_what_it_may_already_is_left_as_it_is() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        let dir = tempfile::tempdir().unwrap();
        let own = fs::metadata(dir.path()).unwrap().gid();
        for (before, after) in [(0o755, 0o2775), (0o700, 0o2775), (0o777, 0o777), (0o775, 0o775)] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(before)).unwrap();
            share(dir.path(), own, 0o2775).unwrap();
            assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o7777, after, "{before:o}");
        }
        let absent = share(&dir.path().join("absent"), own, 0o2775).unwrap_err();
        assert!(absent.to_string().ends_with(&format!("absent to group {own}")), "{absent}");
    }

    #[test]
    fn what_another_wrote_is_left_alone_unless_forced_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("quay.io");
        fs::create_dir(&folder).unwrap();
        let file = folder.join(FILE);
        fs::write(&file, "server = \"https://mine\"\n").unwrap();
        assert_eq!(put(&folder, &text("quay.io"), false).unwrap().outcome, Outcome::Other);
        assert_eq!(remove(&folder, true).unwrap(), None);
        assert_eq!(fs::read_to_string(&file).unwrap(), "server = \"https://mine\"\n");
        assert_eq!(put(&folder, &text("quay.io"), true).unwrap().outcome, Outcome::Replaced);
        assert_eq!(fs::read_to_string(&file).unwrap(), text("quay.io"));
        assert_eq!(remove(&folder, false).unwrap().unwrap().outcome, Outcome::Restored);
        assert_eq!(fs::read_to_string(&file).unwrap(), "server = \"https://mine\"\n");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn what_was_put_aside_once_is_not_lost_to_a_second_time() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("quay.io");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(FILE), "second\n").unwrap();
        fs::write(folder.join(ASIDE), "first\n").unwrap();
        assert!(put(&folder, &text("quay.io"), true).is_err());
        assert_eq!(fs::read_to_string(folder.join(ASIDE)).unwrap(), "first\n");
        assert_eq!(fs::read_to_string(folder.join(FILE)).unwrap(), "second\n");
    }

    #[test]
    fn what_was_changed_since_is_left_alone_unless_forced() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("quay.io");
        put(&folder, &text("quay.io"), false).unwrap();
        fs::write(folder.join(FILE), format!("{}# mine\n", text("quay.io"))).unwrap();
        fs::write(folder.join("ca.crt"), "").unwrap();
        assert_eq!(put(&folder, &text("ghcr.io"), false).unwrap().outcome, Outcome::Changed);
        assert_eq!(remove(&folder, false).unwrap().unwrap().outcome, Outcome::Changed);
        assert_eq!(remove(&folder, true).unwrap().unwrap().outcome, Outcome::Removed);
        assert!(folder.join("ca.crt").exists());
    }
}
