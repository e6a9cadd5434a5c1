//! kustomize as a program: found, asked for its version once, run confined.
//!
//! Two programs serve: `kustomize` from version 5 and `kubectl` from 1.27, whose `kustomize` command is of that
//! generation. What a program is, it says itself; its name only decides which question comes first, so wrappers and
//! renamed files work.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use serde_json::Value;

use super::{
    confine::{self, Ended, Job, Launcher, MAX_OUTPUT},
    render::Request,
};
use crate::class::Class;

const WANTED: &str = "install kustomize 5 or later, or kubectl 1.27 or later, on PATH, or name one with \
                      --kustomize-program";

/// A question for a version takes a few tenths of a second on a loaded machine.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Why the program gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// There is none, or none that is new enough.
    #[error("this Kustomization needs kustomize to be built, and {found}: {WANTED}")]
    Missing {
        /// What was found instead.
        found: String,
    },
    /// It ran and refused.
    #[error("kustomize build failed: {message}")]
    Build {
        /// The program's own words.
        message: String,
    },
    /// It ran into a limit.
    #[error("kustomize build failed: {what}")]
    Limit {
        /// Which.
        what: String,
    },
    /// It could not be run.
    #[error("cannot run {}: {source}", .program.display())]
    Run {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ProgramError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Missing { .. } => Class::NotFound,
            Self::Build { .. } => Class::Layer,
            Self::Limit { .. } => Class::Limit,
            Self::Run { .. } => Class::Disk,
        }
    }
}

/// Which of the two a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Kustomize,
    Kubectl,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Kustomize => "kustomize",
            Self::Kubectl => "kubectl",
        }
    }

    fn least(self) -> (u64, u64) {
        match self {
            Self::Kustomize => (5, 0),
            Self::Kubectl => (1, 27),
        }
    }

    fn question(self) -> &'static [&'static str] {
        match self {
            Self::Kustomize => &["version"],
            Self::Kubectl => &["version", "--client", "-o", "json"],
        }
    }
}

/// What a program said that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    kind: Kind,
    version: String,
    /// Whether it is new enough.
    serves: bool,
}

/// A program's answer holds as long as its file does.
type Known = HashMap<(PathBuf, u64, Option<SystemTime>), Answer>;
static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

/// Folders that one run uses, all in the caller's scratch folder.
pub struct Workspace<'a> {
    /// The working copy of the artifact.
    pub tree: &'a Path,
    /// A folder for the run's own files; `home` in it is made here.
    pub own: &'a Path,
}

/// Builds the kustomization in `folder`, which lies in the working copy, and returns its YAML.
pub fn build(
    request: &Request<'_>,
    place: &Workspace<'_>,
    folder: &Path,
    time: Duration,
) -> Result<String, ProgramError> {
    let home = place.own.join("home");
    let broken = |source| ProgramError::Run { program: home.clone(), source };
    match fs::create_dir(&home) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(broken(error)),
        _ => {}
    }
    let (program, kind) = find(request, place.own)?;
    let unable = |source| ProgramError::Run { program: program.clone(), source };
    let mut arguments = vec![if kind == Kind::Kubectl { "kustomize" } else { "build" }.to_owned()];
    arguments.extend(["--load-restrictor", "LoadRestrictionsNone"].map(str::to_owned));
    arguments.push(confine::as_text(folder).map_err(unable)?);
    let job = job(&program, arguments, place.own, vec![place.tree.to_path_buf()]);
    let ended = confine::run(&request.launcher, &job, time).map_err(unable)?;
    let size = fs::metadata(&job.stdout).map_or(0, |m| m.len());
    match ended {
        Ended::TimedOut => Err(ProgramError::Limit {
            what: format!("it took longer than {} s; raise spec.timeout if it needs more", time.as_secs()),
        }),
        _ if size >= MAX_OUTPUT => {
            Err(ProgramError::Limit { what: format!("its output is larger than {} MiB", MAX_OUTPUT >> 20) })
        }
        // The limit on CPU time ends a program by a signal, which none of ours sends otherwise.
        Ended::Signal(signal) => Err(ProgramError::Limit {
            what: format!("signal {signal} ended it, as when it needs too much CPU time or memory"),
        }),
        Ended::Code(0) => fs::read_to_string(&job.stdout).map_err(unable),
        Ended::NotStarted => Err(unable(io::Error::other(message(&job.stderr, place)))),
        Ended::Code(_) => Err(ProgramError::Build { message: message(&job.stderr, place) }),
    }
}

fn job(program: &Path, arguments: Vec<String>, own: &Path, readable: Vec<PathBuf>) -> Job {
    let home = own.join("home");
    Job {
        program: program.to_path_buf(),
        arguments,
        directory: home.clone(),
        readable,
        home,
        stdout: own.join("stdout"),
        stderr: own.join("stderr"),
    }
}

/// What the program said, short: its first lines without warnings, our own paths and dumped objects, which may be
/// Secrets.
fn message(stderr: &Path, place: &Workspace<'_>) -> String {
    let bytes = fs::read(stderr).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(64 << 10)]);
    let shortened = text.replace(&place.tree.display().to_string(), "").replace(&place.own.display().to_string(), "");
    let mut message = String::new();
    for line in shortened.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("# Warning")).take(3) {
        let line = without_log_header(line);
        let line = line.strip_prefix("Error: ").or(line.strip_prefix("error: ")).unwrap_or(line);
        let cut = ["map[", "{\"", "&{", "object {", "apiVersion:"].iter().filter_map(|mark| line.find(mark)).min();
        if !message.is_empty() {
            message.push(' ');
        }
        message.extend(cut.map_or(line, |at| &line[..at]).chars().filter(|c| !c.is_control()).take(500));
        if cut.is_some() {
            message.push('…');
            break;
        }
    }
    if message.is_empty() { "it did not say why".into() } else { message }
}

/// A line without the header of Kubernetes' log library, `E1123 12:00:00.000000    1234 file.go:12] `: time and process
/// differ on each try, and a condition whose message changes is news each time.
fn without_log_header(line: &str) -> &str {
    let is_header = |header: &str| {
        let mut bytes = header.bytes();
        matches!(bytes.next(), Some(b'E' | b'W' | b'I' | b'F')) && bytes.take(4).all(|b| b.is_ascii_digit())
    };
    match line.split_once("] ") {
        Some((header, rest)) if header.len() > 5 && is_header(header) && header.contains(".go:") => rest,
        _ => line,
    }
}

/// The program to use.
fn find(request: &Request<'_>, own: &Path) -> Result<(PathBuf, Kind), ProgramError> {
    let candidates = match &request.program {
        Some(program) => vec![program.clone()],
        None => [Kind::Kustomize, Kind::Kubectl]
            .into_iter()
            .filter_map(|kind| on_path(request.search.as_deref(), kind.name()))
            .collect(),
    };
    let mut found = Vec::new();
    for program in candidates {
        match ask(&request.launcher, &program, own)? {
            Some(answer) if answer.serves => return Ok((program, answer.kind)),
            Some(Answer { kind, version, .. }) => {
                found.push(format!("{} is {} {version}", program.display(), kind.name()));
            }
            None if !program.is_file() => found.push(format!("{} is not there", program.display())),
            None => found.push(format!("{} is neither, or does not say which version it is", program.display())),
        }
    }
    if found.is_empty() {
        found.push("neither kustomize nor kubectl is on PATH".into());
    }
    Err(ProgramError::Missing { found: found.join(", ") })
}

/// The first executable file of that name on `search`.
fn on_path(search: Option<&OsStr>, name: &str) -> Option<PathBuf> {
    std::env::split_paths(search?)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|program| fs::metadata(program).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}

fn ask(launcher: &Launcher, program: &Path, own: &Path) -> Result<Option<Answer>, ProgramError> {
    let Ok(metadata) = fs::metadata(program) else {
        return Ok(None);
    };
    let key = (program.to_path_buf(), metadata.len(), metadata.modified().ok());
    if let Some(answer) = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
        return Ok(Some(answer.clone()));
    }
    let mut order = [Kind::Kustomize, Kind::Kubectl];
    if program.file_name().is_some_and(|name| name.to_string_lossy().contains("kubectl")) {
        order.reverse();
    }
    let mut answer = None;
    for kind in order {
        let question = kind.question().iter().map(|word| (*word).to_owned()).collect();
        let job = job(program, question, own, Vec::new());
        let ended = confine::run(launcher, &job, ANSWER_TIME)
            .map_err(|source| ProgramError::Run { program: program.to_path_buf(), source })?;
        let said = if ended == Ended::Code(0) { fs::read(&job.stdout).unwrap_or_default() } else { Vec::new() };
        let _ = fs::remove_file(&job.stderr);
        answer = understand(kind, &String::from_utf8_lossy(&said));
        if answer.is_some() {
            break;
        }
    }
    // No answer may be the moment's fault; it is asked for again.
    if let Some(answer) = &answer {
        KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(key, answer.clone());
    }
    Ok(answer)
}

/// kustomize prints `v5.4.3`, or in older versions `{Version:kustomize/v3.8.1 …}`; kubectl prints JSON.
fn understand(kind: Kind, said: &str) -> Option<Answer> {
    let version = match kind {
        Kind::Kustomize => {
            let line = said.lines().map(str::trim).find(|line| !line.is_empty())?;
            let word = line.split_whitespace().next()?;
            word.rsplit(['/', ':']).next()?.to_owned()
        }
        Kind::Kubectl => {
            let value: Value = serde_json::from_str(said).ok()?;
            value.get("clientVersion")?.get("gitVersion")?.as_str()?.to_owned()
        }
    };
    let mut parts = version.strip_prefix('v').unwrap_or(&version).split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    Some(Answer { kind, serves: (major, minor) >= kind.least(), version })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_a_log_line_is_left_out_and_nothing_else() {
        for (line, rest) in [
            ("E1123 23:38:00.123456   12345 run.go:72] \"command failed\" err=\"x\"", "\"command failed\" err=\"x\""),
            ("Error: accumulating resources [a] b", "Error: accumulating resources [a] b"),
            ("E1123] b", "E1123] b"),
            ("Ecru 1 x.go:1] b", "Ecru 1 x.go:1] b"),
            ("", ""),
        ] {
            assert_eq!(without_log_header(line), rest);
        }
    }

    #[test]
    fn a_version_is_understood_as_the_programs_print_it() {
        let client =
            |version: &str| format!(r#"{{"clientVersion":{{"gitVersion":"{version}"}},"kustomizeVersion":"v5.5.0"}}"#);
        for (kind, said, version, serves) in [
            (Kind::Kustomize, "v5.4.3\n".to_owned(), "v5.4.3", true),
            (Kind::Kustomize, "5.0.0".to_owned(), "5.0.0", true),
            (Kind::Kustomize, "{kustomize/v4.5.7  2022-08-02T16:35:54Z  }".to_owned(), "v4.5.7", false),
            (Kind::Kustomize, "{Version:kustomize/v3.8.1 GitCommit:0b359d0 }".to_owned(), "v3.8.1", false),
            (Kind::Kubectl, client("v1.37.1"), "v1.37.1", true),
            (Kind::Kubectl, client("v1.32.4-dispatcher"), "v1.32.4-dispatcher", true),
            (Kind::Kubectl, client("v1.26.9"), "v1.26.9", false),
            (Kind::Kubectl, client("v2.0.0"), "v2.0.0", true),
        ] {
            let answer = understand(kind, &said).unwrap();
            assert_eq!((answer.version.as_str(), answer.serves), (version, serves), "{said}");
        }
        for (kind, said) in
            [(Kind::Kustomize, "(devel)"), (Kind::Kustomize, ""), (Kind::Kubectl, "{}"), (Kind::Kubectl, "v1.30")]
        {
            assert_eq!(understand(kind, said), None, "{said}");
        }
    }

    #[test]
    fn a_message_is_short_and_shows_no_object() {
        let folder = tempfile::tempdir().unwrap();
        let stderr = folder.path().join("stderr");
        let place = Workspace { tree: Path::new("/scratch/x/tree"), own: folder.path() };
        for (said, shown) in [
            ("", "it did not say why"),
            (
                "# Warning: 'bases' is deprecated\nError: no such file /scratch/x/tree/a/b.yaml\n",
                "no such file /a/b.yaml",
            ),
            ("error: map[string]interface {}{\"password\":\"x\"}\n", "…"),
            ("Error: bad {\"stringData\":{\"password\":\"x\"}}\nmore: secret", "bad …"),
            ("Error: a\n\n\u{1b}[1mb\nc\nd\n", "a [1mb c"),
        ] {
            fs::write(&stderr, said).unwrap();
            assert_eq!(message(&stderr, &place), shown);
        }
    }

    #[test]
    fn a_program_is_found_on_path_only_where_it_can_be_run() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        for (place, mode) in [(&first, 0o644), (&second, 0o755)] {
            fs::create_dir(place).unwrap();
            fs::write(place.join("kustomize"), "").unwrap();
            fs::set_permissions(place.join("kustomize"), fs::Permissions::from_mode(mode)).unwrap();
        }
        let search = std::env::join_paths([&first, &second]).unwrap();
        assert_eq!(on_path(Some(&search), "kustomize"), Some(second.join("kustomize")));
        assert_eq!(on_path(Some(&search), "kubectl"), None);
        assert_eq!(on_path(None, "kustomize"), None);
    }
}
