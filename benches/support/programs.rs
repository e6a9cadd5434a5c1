//! Programs that are started to be measured: the daemon, nginx, docker-registry.
#![allow(dead_code)]

use std::{
    io::{BufRead as _, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::http::Client;

/// Where a program is, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port()
}

/// Waits until somebody listens on a port of loopback.
pub fn wait_for_port(port: u16) {
    let begin = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(10), "nobody listens on port {port}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A child that ends with the value.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id() as i32) {
            // So that its own children end too.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let begin = Instant::now();
        while self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            if begin.elapsed() > Duration::from_secs(10) {
                let _ = self.0.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The program under test: `LARDER_BIN`, else the one built with this bench.
pub fn larder() -> PathBuf {
    std::env::var_os("LARDER_BIN").map_or_else(|| env!("CARGO_BIN_EXE_larder").into(), PathBuf::from)
}

/// `larder serve`, from its start to its ready line and beyond.
pub struct Daemon {
    child: Running,
    /// When it was started.
    pub started: Instant,
    /// When it was ready.
    pub ready: Instant,
    /// Its registry listener.
    pub registry: String,
    /// Its artifact listener.
    pub artifacts: String,
    /// Its admin listener.
    pub admin: String,
}

impl Daemon {
    /// Starts it on ports of its own.
    pub fn start(data: &Path, objects: Option<&Path>) -> Self {
        Self::start_with(data, objects, None)
    }

    /// The same, with a configuration file.
    pub fn start_with(data: &Path, objects: Option<&Path>, config: Option<&Path>) -> Self {
        let mut command = Command::new(larder());
        command.arg("serve");
        if let Some(objects) = objects {
            command.arg("--objects").arg(objects);
        }
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        Self::launch(command, data)
    }

    /// The same on a cluster.
    pub fn start_on(data: &Path, kubeconfig: &Path) -> Self {
        let mut command = Command::new(larder());
        command.arg("serve").arg("--kubernetes").env("KUBECONFIG", kubeconfig);
        Self::launch(command, data)
    }

    fn launch(mut command: Command, data: &Path) -> Self {
        command.arg("--data").arg(data);
        for listener in ["--registry-listen", "--artifact-listen", "--admin-listen"] {
            command.args([listener, "127.0.0.1:0"]);
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(data.with_extension("log"));
        command.stdout(Stdio::piped()).stderr(log.expect("a log"));
        let started = Instant::now();
        let mut child = Running(command.spawn().expect("larder starts"));
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().expect("piped")).read_line(&mut line).expect("the ready line");
        let ready = Instant::now();
        let said: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("larder does not start: see {}", data.with_extension("log").display()));
        let address = |key: &str| said[key].as_str().expect("an address").to_owned();
        Self {
            child,
            started,
            ready,
            registry: address("registry"),
            artifacts: address("artifacts"),
            admin: address("admin"),
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Its objects, each with whether it is Ready.
    pub fn objects(&self, client: &mut Client) -> Vec<Value> {
        let listing: Value = serde_json::from_slice(&client.get("/v1/objects")).expect("JSON");
        match listing {
            Value::Object(mut map) => match map.remove("items") {
                Some(Value::Array(items)) => items,
                _ => panic!("no items"),
            },
            _ => panic!("no listing"),
        }
    }

    /// Waits until so many objects are Ready, looking every `pause`; gives them.
    pub fn wait_ready(&self, count: usize, pause: Duration) -> Vec<Value> {
        let mut client = Client::new(&self.admin);
        let begin = Instant::now();
        loop {
            let items = self.objects(&mut client);
            if items.iter().filter(|item| is_ready(item)).count() == count {
                return items;
            }
            let other = items.iter().find(|item| !is_ready(item));
            assert!(begin.elapsed() < Duration::from_secs(60), "not Ready after 60 s: {other:?}");
            std::thread::sleep(pause);
        }
    }

    /// The sum of a metric's samples whose labels hold all of `labels` (each as `name="value"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = String::from_utf8(Client::new(&self.admin).get("/metrics")).expect("UTF-8");
        let samples = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|l| line.contains(l))
        });
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

fn is_ready(object: &Value) -> bool {
    let ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
    object["status"]["conditions"].as_array().is_some_and(|conditions| conditions.iter().any(ready))
}

/// A process's anonymous memory in use, in MiB (RssAnon).
pub fn rss_anon(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
}

/// The CPU seconds that a process has used (user and system).
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().expect("utime") + fields[12].parse::<f64>().expect("stime");
    // USER_HZ, the same on every Linux that Rust runs on.
    ticks / 100.0
}

/// The CPU milliseconds that a process's threads have used, finer than [`cpu_seconds`]: for what uses less than a tenth of a
/// second. A thread that has ended is not in it any longer, so it is for moments in which none does.
pub fn cpu_milliseconds(pid: u32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    let used = threads.filter_map(|thread| {
        let said = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        said.split(' ').next()?.parse::<f64>().ok()
    });
    used.sum::<f64>() / 1e6
}

/// Watches a process's anonymous memory for its peak.
pub struct Peak {
    stop: Arc<AtomicBool>,
    watcher: JoinHandle<f64>,
}

impl Peak {
    /// Looks every 5 ms.
    pub fn of(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let watcher = std::thread::spawn(move || {
            let mut peak = 0f64;
            while !told.load(Ordering::Relaxed) {
                peak = peak.max(rss_anon(pid));
                std::thread::sleep(Duration::from_millis(5));
            }
            peak
        });
        Self { stop, watcher }
    }

    /// The highest figure seen, in MiB.
    pub fn finish(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        self.watcher.join().expect("the watcher")
    }
}

/// docker-registry (CNCF distribution), its storage below `root`.
pub struct DockerRegistry {
    child: Running,
    /// Host and port.
    pub host: String,
}

impl DockerRegistry {
    /// Starts it; `None` if it is not installed.
    pub fn start(root: &Path) -> Option<Self> {
        let program = find("docker-registry")?;
        std::fs::create_dir_all(root).expect("folder");
        let port = free_port();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  cache:\n    blobdescriptor: \
             inmemory\n  filesystem:\n    rootdirectory: {}\n    maxthreads: 200\nhttp:\n  addr: 127.0.0.1:{port}\n",
            root.join("storage").display()
        );
        let file = root.join("config.yml");
        std::fs::write(&file, config).expect("config");
        let log = std::fs::File::create(root.join("log")).expect("a log");
        let child = Command::new(program)
            .arg("serve")
            .arg(&file)
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("docker-registry starts");
        wait_for_port(port);
        Some(Self { child: Running(child), host: format!("127.0.0.1:{port}") })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }
}

/// nginx over a folder, set up to be fast.
pub struct Nginx {
    _child: Running,
    /// Host and port.
    pub host: String,
}

impl Nginx {
    /// Serves `root`; its own files lie in `folder`. `None` if it is not installed.
    pub fn start(folder: &Path, root: &Path) -> Option<Self> {
        Self::start_with(folder, root, None)
    }

    /// The same over TLS, with a certificate and its key where they are given.
    pub fn start_with(folder: &Path, root: &Path, tls: Option<(&Path, &Path)>) -> Option<Self> {
        let program = find("nginx")?;
        let (ssl, settings) = match tls {
            None => ("", String::new()),
            Some((cert, key)) => {
                let files = format!("ssl_certificate {}; ssl_certificate_key {};", cert.display(), key.display());
                (" ssl", format!("{files} ssl_protocols TLSv1.2 TLSv1.3;"))
            }
        };
        let port = free_port();
        std::fs::create_dir_all(folder).expect("folder");
        let here = folder.display();
        let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
        let config = format!(
            "{user}worker_processes 2;\ndaemon off;\npid {here}/pid;\nerror_log {here}/error.log;\n\
             events {{ worker_connections 1024; }}\nhttp {{\n  sendfile on;\n  tcp_nopush on;\n  tcp_nodelay on;\n  \
             access_log off;\n  keepalive_requests 1000000000;\n  keepalive_timeout 95s;\n  \
             open_file_cache max=1000 inactive=600s;\n  open_file_cache_valid 600s;\n  open_file_cache_min_uses 1;\n  \
             default_type application/gzip;\n  client_body_temp_path {here}/t1;\n  proxy_temp_path {here}/t2;\n  \
             fastcgi_temp_path {here}/t3;\n  uwsgi_temp_path {here}/t4;\n  scgi_temp_path {here}/t5;\n  \
             server {{ listen 127.0.0.1:{port}{ssl} backlog=1024; {settings} root {}; }}\n}}\n",
            root.display()
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, config).expect("config");
        let child = Command::new(program)
            .arg("-c")
            .arg(&file)
            .arg("-p")
            .arg(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx starts");
        wait_for_port(port);
        Some(Self { _child: Running(child), host: format!("127.0.0.1:{port}") })
    }
}

/// Runs a program to its end; its output is shown only if it fails.
pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {} {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}
