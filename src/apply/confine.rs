//! Running a foreign program on foreign input, confined.
//!
//! **How.** A process cannot confine its child before the child's program starts without unsafe code, so this program
//! starts itself again with the hidden word [`WORD`] first; `main` passes that to [`enter`] before it does anything
//! else. [`enter`] reads a [`Job`] as JSON from its standard input, confines itself, and becomes the program.
//!
//! **What confines.** An empty environment but HOME and TMPDIR; limits on CPU time, memory, file size and open files;
//! a network namespace of its own, where the kernel grants one; and Landlock as far as the kernel has it: files can be
//! read below the folders of the job and the system's programs and libraries, written below HOME only, no TCP from
//! ABI 4 on, no abstract sockets and no signals to others from ABI 6 on. Where the kernel grants neither namespace nor
//! Landlock, the limits, the empty environment and what the `reach` module refuses beforehand remain.
//!
//! **The parent** bounds the time, and kills the whole process group in every case, so that nothing outlives a run.
//!
//! **Concurrency.** Runs share nothing. After a crash of the parent, the CPU limit ends the program.

use std::{
    convert::Infallible,
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, Scope, path_beneath_rules,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};

/// The first argument that leads `main` to [`enter`].
pub const WORD: &str = "__confined";

/// The exit code of a run that could not be confined, or whose program could not be started.
const NOT_STARTED: i32 = 125;

/// Go programs reserve far more address space than they use, so what is bounded is memory that can be written.
const MAX_MEMORY: u64 = 1 << 30;
/// CPU seconds. kube-prometheus through kustomize takes 0.5.
const MAX_CPU: u64 = 30;
/// Bytes in each file that the program writes, its output among them.
pub const MAX_OUTPUT: u64 = 64 << 20;
/// A kustomization opens one file after the other.
const MAX_OPEN_FILES: u64 = 256;

/// How to start this program again.
#[derive(Clone, Debug)]
pub struct Launcher {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Launcher {
    /// Starts `program`, which is this one (`std::env::current_exe()`), with [`WORD`].
    pub fn own(program: PathBuf) -> Self {
        Self { program, arguments: vec![WORD.into()] }
    }

    /// Another way in, for a test binary.
    #[cfg(test)]
    pub(super) fn test(name: &str) -> Self {
        let program = std::env::current_exe().unwrap();
        let arguments = [name, "--exact", "--ignored", "--nocapture"];
        Self { program, arguments: arguments.map(OsString::from).to_vec() }
    }
}

/// What to run, and what it may touch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where it starts.
    pub directory: PathBuf,
    /// Files and folders that it may read, besides itself and the system's.
    pub readable: Vec<PathBuf>,
    /// The only folder that it may write to: its HOME and TMPDIR.
    pub home: PathBuf,
    /// The file that its standard output becomes.
    pub stdout: PathBuf,
    /// The file that its standard error becomes.
    pub stderr: PathBuf,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The program ended with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It did not start.
    NotStarted,
    /// The time was over; it was killed.
    TimedOut,
}

/// Runs `job`, at most for `time`.
pub fn run(launcher: &Launcher, job: &Job, time: Duration) -> io::Result<Ended> {
    let input = serde_json::to_vec(job)?;
    let stderr = OpenOptions::new().create(true).append(true).open(&job.stderr)?;
    let mut command = Command::new(&launcher.program);
    command.args(&launcher.arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(stderr).process_group(0);
    let mut child = Group(command.spawn()?);
    // A stage that ends without reading is seen by its exit code, not here.
    if let Some(mut pipe) = child.0.stdin.take() {
        let _ = pipe.write_all(&input);
    }
    let pid = Pid::from_child(&child.0);
    let (ended, end) = mpsc::channel();
    // The process stays a zombie until `Group` has killed what is left of it: its id cannot be another's meanwhile.
    let waiter = thread::Builder::new().name("confined".into()).spawn(move || {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(rustix::process::waitid(WaitId::Pid(pid), options), Err(rustix::io::Errno::INTR)) {}
        let _ = ended.send(());
    })?;
    let timed_out = end.recv_timeout(time).is_err();
    let status = child.end()?;
    let _ = waiter.join();
    Ok(if timed_out { Ended::TimedOut } else { how(status) })
}

fn how(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(NOT_STARTED), _) => Ended::NotStarted,
        (Some(code), _) => Ended::Code(code),
        (None, signal) => Ended::Signal(signal.unwrap_or_default()),
    }
}

/// A child that leads a process group; no member outlives it.
struct Group(Child);

impl Group {
    fn end(&mut self) -> io::Result<ExitStatus> {
        // Until `wait`, the leader's id is taken. No process left in the group is fine.
        let _ = rustix::process::kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        self.0.wait()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // After a first `end`, `try_wait` knows the status and nothing is killed.
        if let Ok(None) = self.0.try_wait() {
            let _ = self.end();
        }
    }
}

/// Confines this process and becomes the program of the job on standard input. To be called with one thread.
pub fn enter() -> ! {
    let error = match become_program() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    // Nothing else is to be done if even this cannot be written.
    let _ = writeln!(io::stderr(), "{error}");
    std::process::exit(NOT_STARTED)
}

fn become_program() -> io::Result<Infallible> {
    let mut input = Vec::new();
    // A job is a few hundred bytes; paths are at most 4 KiB.
    io::stdin().lock().take(1 << 20).read_to_end(&mut input)?;
    let job: Job = serde_json::from_slice(&input)?;
    let stdout = File::create(&job.stdout)?;
    limit()?;
    leave_network();
    restrict(&job).map_err(io::Error::other)?;
    let error = Command::new(&job.program)
        .args(&job.arguments)
        .current_dir(&job.directory)
        .env_clear()
        .env("HOME", &job.home)
        .env("TMPDIR", &job.home)
        .stdin(Stdio::null())
        .stdout(stdout)
        .exec();
    Err(io::Error::new(error.kind(), format!("{} cannot be started: {error}", job.program.display())))
}

fn limit() -> io::Result<()> {
    for (resource, most) in [
        (Resource::Cpu, MAX_CPU),
        (Resource::Data, MAX_MEMORY),
        (Resource::Fsize, MAX_OUTPUT),
        (Resource::Nofile, MAX_OPEN_FILES),
        (Resource::Core, 0),
    ] {
        // A limit that is lower already stays.
        let most = rustix::process::getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    Ok(())
}

/// Moves to a network namespace with nothing in it: as root, or in a user namespace of its own.
fn leave_network() {
    use rustix::thread::UnshareFlags as Flags;
    for flags in [Flags::NEWNET, Flags::NEWUSER | Flags::NEWNET] {
        // Deprecated because another flag, FILES, is unsound with threads; these two are not.
        #[allow(deprecated)]
        if rustix::thread::unshare(flags).is_ok() {
            return;
        }
    }
}

fn restrict(job: &Job) -> Result<(), landlock::RulesetError> {
    let abi = ABI::V6;
    let read = AccessFs::from_read(abi);
    // The system's programs and libraries: a program may be a script or linked dynamically.
    let system = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache"];
    let devices = ["/dev/urandom", "/dev/random", "/dev/zero"];
    let program = std::fs::canonicalize(&job.program).unwrap_or_else(|_| job.program.clone());
    // A program may call another that lies beside it, as some distributions' kubectl does. Only a folder for
    // programs: beside one in a home directory lie other things.
    let beside = program.parent().filter(|folder| {
        folder.file_name().is_some_and(|name| ["bin", "sbin", "libexec"].iter().any(|known| name == *known))
    });
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules(system.iter().chain(&devices), read))?
        .add_rules(path_beneath_rules(["/dev/null"], AccessFs::from_file(abi)))?
        .add_rules(path_beneath_rules(&job.readable, AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rules(path_beneath_rules([program.as_path(), &job.program], read))?
        .add_rules(path_beneath_rules(beside, read))?
        .add_rules(path_beneath_rules([&job.home], AccessFs::from_all(abi) & !AccessFs::Execute))?
        .restrict_self()?;
    Ok(())
}

/// The path as a text, since jobs travel as JSON and the program's messages are text.
pub fn as_text(path: &Path) -> io::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not UTF-8", path.display())))
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, time::Instant};

    use super::*;

    /// Not a test: what the launcher of tests starts.
    #[test]
    #[ignore = "the confined part of other tests"]
    fn stage() {
        enter()
    }

    /// A launcher for tests of this crate's library.
    pub fn launcher() -> Launcher {
        Launcher::test("apply::confine::tests::stage")
    }

    struct Place {
        _folder: tempfile::TempDir,
        job: Job,
    }

    /// A job that runs `script` in the shell, with a file `tree/file`.
    fn shell(script: &str) -> Place {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_path_buf();
        for name in ["tree", "home", "outside"] {
            fs::create_dir(path.join(name)).unwrap();
            fs::write(path.join(name).join("file"), name).unwrap();
        }
        let job = Job {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            directory: path.join("tree"),
            readable: vec![path.join("tree")],
            home: path.join("home"),
            stdout: path.join("stdout"),
            stderr: path.join("stderr"),
        };
        Place { _folder: folder, job }
    }

    fn outcome(place: &Place, time: Duration) -> (Ended, String) {
        let ended = run(&launcher(), &place.job, time).unwrap();
        (ended, fs::read_to_string(&place.job.stdout).unwrap_or_default())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_program_gets_its_arguments_and_next_to_no_environment() {
        let place =
            shell("cat file; echo; env | cut -d= -f1 | grep -v -e '^_$' -e PWD -e SHLVL -e OLDPWD | sort; exit 3");
        let (ended, output) = outcome(&place, LONG);
        assert_eq!((ended, output.as_str()), (Ended::Code(3), "tree\nHOME\nTMPDIR\n"));
    }

    #[test]
    fn a_program_that_is_not_there_did_not_start() {
        let mut place = shell("");
        place.job.program = "/nowhere/kustomize".into();
        assert_eq!(outcome(&place, LONG).0, Ended::NotStarted);
        assert!(fs::read_to_string(&place.job.stderr).unwrap().contains("/nowhere/kustomize cannot be started"));
    }

    #[test]
    fn time_ends_a_program_and_all_that_it_started() {
        let place = shell("sleep 600 & echo $! > \"$HOME/pid\"; sleep 600");
        assert_eq!(outcome(&place, Duration::from_secs(3)).0, Ended::TimedOut);
        let pid: i32 = fs::read_to_string(place.job.home.join("pid")).unwrap().trim().parse().unwrap();
        // Killed, but whoever inherited it may not have reaped it, nor the kernel have come to end it.
        let is_over = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        let patience = Instant::now() + LONG;
        while !is_over() {
            assert!(Instant::now() < patience, "{pid} lives on");
            thread::yield_now();
        }
    }

    #[test]
    fn output_and_memory_are_bounded() {
        let place = shell("dd if=/dev/zero of=\"$HOME/big\" bs=1048576 count=80 2>/dev/null");
        assert_ne!(outcome(&place, LONG).0, Ended::Code(0));
        assert!(fs::metadata(place.job.home.join("big")).unwrap().len() <= MAX_OUTPUT);
        let place = shell("dd if=/dev/zero of=/dev/null bs=2000M count=1 2>/dev/null");
        assert_ne!(outcome(&place, LONG).0, Ended::Code(0));
    }

    fn has_landlock() -> bool {
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V4));
        let there = status.is_ok_and(|ruleset| ruleset.create().is_ok());
        if !there {
            assert!(std::env::var_os("LARDER_REQUIRE_PEERS").is_none(), "Landlock is required");
            eprintln!("SKIPPED: this kernel has no Landlock of ABI 4");
        }
        there
    }

    #[test]
    fn files_outside_can_be_neither_read_nor_written() {
        if !has_landlock() {
            return;
        }
        let place = shell("cat file && echo ok > \"$HOME/new\" && echo allowed");
        assert_eq!(outcome(&place, LONG), (Ended::Code(0), "treeallowed\n".into()));
        for script in [
            "cat ../outside/file",
            "cat /etc/passwd",
            "ls /proc/1",
            "echo x > ../outside/file",
            "echo x > file",
            "echo x > new",
        ] {
            let place = shell(&format!("{script} || exit 9"));
            let (ended, output) = outcome(&place, LONG);
            assert_eq!((ended, output.as_str()), (Ended::Code(9), ""), "{script}");
            assert_eq!(fs::read_to_string(place.job.directory.join("file")).unwrap(), "tree");
        }
        // What lies in HOME cannot be run.
        let place = shell("\"$HOME/tool\" || exit 9");
        fs::write(place.job.home.join("tool"), "#!/bin/sh\nexit 0\n").unwrap();
        fs::set_permissions(place.job.home.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(outcome(&place, LONG).0, Ended::Code(9));
    }

    #[test]
    fn no_connection_leaves() {
        if !has_landlock() || !Path::new("/bin/bash").exists() {
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut place = shell(&format!("exec 3<>/dev/tcp/127.0.0.1/{port} || exit 9"));
        place.job.program = "/bin/bash".into();
        assert_ne!(outcome(&place, LONG).0, Ended::Code(0));
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
