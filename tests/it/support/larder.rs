//! Running the built binary: single commands, and `larder serve` with what its listeners show.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{PATIENCE, eventually, fixtures::sha256, http};

/// The binary under test, with an environment that holds nothing of the machine's: no proxy, no credentials, no `LARDER_…`.
pub fn command(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.env_clear().env("HOME", home).stdin(Stdio::null());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// Runs `larder` with `arguments` to its end, [`PATIENCE`] at most.
pub fn run<A: AsRef<OsStr>>(home: &Path, arguments: impl IntoIterator<Item = A>) -> Output {
    let mut command = command(home);
    command.args(arguments);
    finish(command)
}

/// Runs `larder` and takes its standard output as JSON; panics unless it exits 0.
pub fn run_json<A: AsRef<OsStr>>(home: &Path, arguments: impl IntoIterator<Item = A>) -> Value {
    let mut command = command(home);
    command.args(arguments);
    let out = stdout_of(command);
    serde_json::from_slice(&out).unwrap_or_else(|e| panic!("not JSON ({e}): {}", String::from_utf8_lossy(&out)))
}

/// Runs any command to its end and gives its standard output; panics unless it exits 0.
pub fn stdout_of(command: Command) -> Vec<u8> {
    let shown = format!("{command:?}");
    let output = finish(command);
    assert!(
        output.status.success(),
        "{shown} ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    output.stdout
}

/// Runs any command to its end; panics, after killing it, where that takes longer than [`PATIENCE`].
pub fn finish(mut command: Command) -> Output {
    let shown = format!("{command:?}");
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {shown}: {error}"));
    let read = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.read_to_end(&mut bytes);
            bytes
        })
    };
    let stdout = read(Box::new(child.stdout.take().expect("piped")));
    let stderr = read(Box::new(child.stderr.take().expect("piped")));
    let Some(status) = wait_for_exit(&mut child, PATIENCE) else {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{shown} did not end in {PATIENCE:?}: {}", String::from_utf8_lossy(&stderr.join().expect("reader")));
    };
    Output { status, stdout: stdout.join().expect("reader"), stderr: stderr.join().expect("reader") }
}

fn wait_for_exit(child: &mut Child, patience: Duration) -> Option<std::process::ExitStatus> {
    let end = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A running `larder serve`; killed when dropped.
pub struct Larder {
    child: Child,
    log: PathBuf,
    /// `--data`.
    pub data: PathBuf,
    /// The registry listener, `http://…`.
    pub registry: String,
    /// The artifact listener, `http://…`.
    pub artifacts: String,
    /// The admin listener, `http://…`.
    pub admin: String,
    /// The listeners for one upstream each, `http://…`, by its name.
    pub mirrors: HashMap<String, String>,
}

impl Larder {
    /// Starts `larder serve` on `root/data` with free ports and `flags`, and waits until it is ready.
    pub fn start(root: &Path, flags: &[&str]) -> Self {
        Self::start_with(root, flags, &[])
    }

    /// Like [`Larder::start`], reconciling `root/objects`.
    pub fn reconciling(root: &Path, flags: &[&str]) -> Self {
        let objects = root.join("objects");
        std::fs::create_dir_all(&objects).expect("folder");
        let mut all = vec!["--objects", objects.to_str().expect("UTF-8")];
        all.extend_from_slice(flags);
        Self::start_with(root, &all, &[])
    }

    /// Like [`Larder::start`], with more environment.
    pub fn start_with(root: &Path, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::launch(root, &[], flags, environment).unwrap_or_else(|(_, why)| panic!("{why}"))
    }

    /// Like [`Larder::start_with`], through the program and arguments of `wrapper`, which must become the daemon (as
    /// `prlimit` does). Where no ready line comes: how the process ended, and its log.
    pub fn launch(
        root: &Path,
        wrapper: &[&str],
        flags: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self, (ExitStatus, String)> {
        let data = root.join("data");
        let log = root.join("larder.log");
        let stderr = std::fs::File::options().create(true).append(true).open(&log).expect("log file");
        let plain = command(root);
        let mut command = match wrapper {
            [] => plain,
            [program, arguments @ ..] => {
                let mut wrapped = Command::new(program);
                wrapped.args(arguments).arg(plain.get_program()).env_clear().stdin(Stdio::null());
                wrapped.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
                wrapped
            }
        };
        command.arg("serve").arg("--data").arg(&data).stdout(Stdio::piped()).stderr(stderr);
        for listener in ["--registry-listen", "--artifact-listen", "--admin-listen"] {
            command.args([listener, "127.0.0.1:0"]);
        }
        command.args(flags).envs(environment.iter().copied());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let (send, receive) = std::sync::mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        // Goes on after the ready line, so that the daemon never finds its standard output full.
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).for_each(|line| drop(send.send(line))));
        let ready = receive.recv_timeout(PATIENCE).ok().and_then(|line| serde_json::from_str::<Value>(&line).ok());
        let at = |listener: &str| {
            let address = ready.as_ref().filter(|line| line["ready"] == true)?[listener].as_str()?;
            Some(format!("http://{address}"))
        };
        let (Some(registry), Some(artifacts), Some(admin)) = (at("registry"), at("artifacts"), at("admin")) else {
            let _ = child.kill();
            let status = child.wait().expect("our own child");
            return Err((status, format!("no ready line from larder serve, but {ready:?}; its log:\n{}", tail(&log))));
        };
        let mirrors = ready.as_ref().and_then(|line| line["mirrors"].as_object()).into_iter().flatten();
        let mirrors =
            mirrors.filter_map(|(name, at)| Some((name.clone(), format!("http://{}", at.as_str()?)))).collect();
        Ok(Self { child, log, data, registry, artifacts, admin, mirrors })
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Host and port of the registry listener.
    pub fn registry_host(&self) -> &str {
        self.registry.trim_start_matches("http://")
    }

    /// All it has written to standard error, starts before this one included.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).expect("log file")).into_owned()
    }

    /// `GET /v1/objects`, whole.
    pub fn listing(&self) -> Value {
        let response = http::get(&format!("{}/v1/objects", self.admin));
        assert_eq!(response.status, 200, "/v1/objects: {}", response.text());
        response.json()
    }

    /// The object, as `/v1/objects` shows it.
    pub fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        self.listing()["items"].as_array()?.iter().find(|object| is(object, kind, namespace, name)).cloned()
    }

    /// Waits until the object is as `wanted` says; panics with its status otherwise.
    pub fn wait(&self, kind: &str, namespace: &str, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("{kind}/{namespace}/{name}"), || match self.object(kind, namespace, name) {
            Some(object) if wanted(&object) => Ok(object),
            Some(object) => Err(format!("{}\n{}", object["status"], tail(&self.log))),
            None => Err(format!("no such object\n{}", tail(&self.log))),
        })
    }

    /// Waits until the object is Ready.
    pub fn wait_ready(&self, kind: &str, namespace: &str, name: &str) -> Value {
        self.wait(kind, namespace, name, is_ready)
    }

    /// Waits until the object's condition `condition` is True with `reason`, and it is not Ready.
    pub fn wait_failed(&self, kind: &str, namespace: &str, name: &str, condition: &str, reason: &str) -> Value {
        self.wait(kind, namespace, name, |object| {
            let failed = condition_of(object, condition);
            let ready = condition_of(object, "Ready");
            failed["status"] == "True"
                && failed["reason"] == reason
                && ready["status"] == "False"
                && ready["reason"] == reason
        })
    }

    /// Waits until `/v1/objects` no longer shows the object.
    pub fn wait_gone(&self, kind: &str, namespace: &str, name: &str) {
        eventually(&format!("{kind}/{namespace}/{name} to go"), || {
            self.object(kind, namespace, name).map_or(Ok(()), |object| Err(object.to_string()))
        });
    }

    /// `POST /v1/reconcile`; gives the answer when the pass has ended.
    pub fn reconcile(&self, kind: &str, namespace: &str, name: &str) -> http::Response {
        let url = format!("{}/v1/reconcile?kind={kind}&namespace={namespace}&name={name}", self.admin);
        http::send("POST", &url, &[], b"").unwrap_or_else(|error| panic!("POST {url}: {error}"))
    }

    /// The sum of a metric's samples that carry all of `labels`.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let text = http::get(&format!("{}/metrics", self.admin)).text();
        assert!(text.contains(name), "no metric {name} in:\n{text}");
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| series.split('{').next() == Some(name))
            .filter(|(series, _)| labels.iter().all(|(key, value)| series.contains(&format!("{key}=\"{value}\""))))
            .map(|(_, value)| value.parse::<f64>().expect("a number") as u64)
            .sum()
    }

    /// SIGTERM, then the exit code; panics where it does not end.
    pub fn stop(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("our own child");
        let status = wait_for_exit(&mut self.child, PATIENCE);
        status.unwrap_or_else(|| panic!("larder serve ignores SIGTERM:\n{}", tail(&self.log))).code()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }
}

impl Drop for Larder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The end of a log, for messages.
fn tail(log: &Path) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

fn is(object: &Value, kind: &str, namespace: &str, name: &str) -> bool {
    object["kind"] == kind && object["metadata"]["namespace"] == namespace && object["metadata"]["name"] == name
}

/// The object's condition of that type, or null.
pub fn condition_of<'a>(object: &'a Value, kind: &str) -> &'a Value {
    object["status"]["conditions"]
        .as_array()
        .and_then(|all| all.iter().find(|c| c["type"] == kind))
        .unwrap_or(&Value::Null)
}

/// Whether the object is Ready at its present generation.
pub fn is_ready(object: &Value) -> bool {
    condition_of(object, "Ready")["status"] == "True"
        && object["status"]["observedGeneration"] == object["metadata"]["generation"]
}

/// The text at a path of keys; panics where there is none.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no text at {pointer} of {value}"))
}

/// Fetches `status.artifact.url` and compares the bytes with `status.artifact.digest` and `size`.
pub fn fetch_artifact(object: &Value) -> Vec<u8> {
    let response = http::get(text(object, "/status/artifact/url"));
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(sha256(&response.body), text(object, "/status/artifact/digest"));
    assert_eq!(object["status"]["artifact"]["size"], response.body.len());
    assert_eq!(response.header("content-encoding"), None, "a client would decode it and the digest would fail");
    response.body
}

/// Replaces `root/objects/<file>` by these documents, as an editor does: written beside it, then renamed.
pub fn write_objects(root: &Path, file: &str, objects: &[Value]) {
    let folder = root.join("objects");
    std::fs::create_dir_all(&folder).expect("folder");
    let text: Vec<String> = objects.iter().map(Value::to_string).collect();
    let beside = folder.join(format!(".{file}.new"));
    std::fs::write(&beside, text.join("\n---\n")).expect("file");
    std::fs::rename(beside, folder.join(file)).expect("rename");
}
