//! The D rows: a disk that is full, fails or changes under the daemon, and a process without descriptors.
//!
//! Faults of system calls are injected by strace into the running daemon, and end when strace is taken away.

use std::{
    fs,
    io::Write as _,
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use super::{
    upstream::Upstream,
    world::{NAMESPACE, World, blobs_below, has_tool, is_root, object, quarantined, verify},
};
use crate::support::{
    eventually,
    fixtures::{Files, files, files_in, hex_of, sha256},
    http,
    larder::{Larder, condition_of, fetch_artifact, is_ready, text},
};

const KIND: &str = "OCIRepository";
const SF: &str = "ArchiveOperationFailed";

/// Bytes that do not compress.
pub fn noise(seed: u64, length: usize) -> String {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.alphanumeric()).take(length).collect()
}

fn large(seed: u64) -> Files {
    files(&[("large", &noise(seed, 7 << 20))])
}

/// A small file system, gone when dropped.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    pub fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        mount(&["-t", "tmpfs", "-o", "size=4m,mode=0700", "larder-test", at.to_str().unwrap()]);
        Self(at.to_owned())
    }

    fn remount(&self, options: &str) {
        mount(&["-o", &format!("remount,{options}"), self.0.to_str().unwrap()]);
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(arguments: &[&str]) {
    let status = Command::new("mount").args(arguments).status().unwrap();
    assert!(status.success(), "mount {arguments:?}: {status}");
}

/// Fails system calls of a running process.
struct Injection(Child);

impl Injection {
    fn into(pid: u32, what: &[&str]) -> Self {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-q", "-o", "/dev/null", "-p", &pid.to_string()]);
        let calls: Vec<&str> = what.iter().map(|inject| inject.split(':').next().unwrap()).collect();
        strace.args(["-e", &format!("trace={}", calls.join(","))]);
        for inject in what {
            strace.args(["-e", &format!("inject={inject}")]);
        }
        let child = strace.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("strace to hold all threads", || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            let free = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
            match free.filter(|status| status.contains("TracerPid:\t0\n")).count() {
                0 => Ok(()),
                n => Err(format!("{n} threads are free")),
            }
        });
        Self(child)
    }

    /// Ends it; the process goes on by itself.
    fn end(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let _ = self.0.wait();
    }
}

/// An object with a good artifact in a world.
struct Held {
    name: &'static str,
    up: Upstream,
    object: Value,
    bytes: Vec<u8>,
}

impl Held {
    fn new(world: &World, name: &'static str) -> Self {
        let up = Upstream::start();
        up.push_files(&files(&[("good", name)]));
        world.apply(&object(KIND, NAMESPACE, name, &up.url(), &json!({})));
        let object = world.larder.wait_ready(KIND, NAMESPACE, name);
        let bytes = fetch_artifact(&object);
        Self { name, up, object, bytes }
    }

    /// U1
    fn is_held(&self, larder: &Larder) {
        let now = larder.object(KIND, NAMESPACE, self.name).unwrap();
        assert_eq!(now["status"]["artifact"], self.object["status"]["artifact"], "{}: U1", self.name);
        assert!(fetch_artifact(&now) == self.bytes, "{}: U1", self.name);
    }

    fn fails_to_store(&self, larder: &Larder) {
        larder.reconcile(KIND, NAMESPACE, self.name);
        let now = larder.wait_failed(KIND, NAMESPACE, self.name, "StorageOperationFailed", SF);
        assert!(text(condition_of(&now, "Ready"), "/message").contains("is still served"), "{now}");
        self.is_held(larder);
    }

    /// Converges with no hand, on `wanted`.
    fn converges(&self, larder: &Larder, wanted: &Files) {
        let object = larder.wait(KIND, NAMESPACE, self.name, |object| {
            is_ready(object) && object["status"]["artifact"] != self.object["status"]["artifact"]
        });
        assert_eq!(files_in(&fetch_artifact(&object)), *wanted);
    }
}

#[test]
fn a_full_disk_takes_nothing_away_and_needs_no_restart() {
    if !is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let disk = Tmpfs::mount(&data);
    let world = World::start_in(root, &[], &[]);
    let held = Held::new(&world, "app");
    let disk_failures = world.outcomes("disk");

    // One artifact too many.
    let wanted = large(1);
    held.up.push_files(&wanted);
    held.fails_to_store(&world.larder);
    assert!(world.outcomes("disk") > disk_failures);
    world.canary_reconciles();

    // Nothing left at all: not even for a status.
    let filler = data.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write(&[0; 4096]).is_ok_and(|n| n > 0) {}
    drop(file);
    let small = files(&[("small", &noise(2, 100_000))]);
    held.up.push_files(&small);
    world.larder.reconcile(KIND, NAMESPACE, "app");
    held.fails_to_store(&world.larder);
    fs::remove_file(&filler).unwrap();
    held.converges(&world.larder, &small);

    // No inodes.
    let held = Held::new(&world, "inodes");
    let used = rustix::fs::statvfs(&data).unwrap();
    disk.remount(&format!("nr_inodes={}", used.f_files - used.f_ffree));
    let other = files(&[("other", "content")]);
    held.up.push_files(&other);
    world.larder.reconcile(KIND, NAMESPACE, "inodes");
    held.fails_to_store(&world.larder);
    disk.remount("nr_inodes=1000000");
    held.converges(&world.larder, &other);

    // And room for what had none.
    disk.remount("size=64m");
    let held = Held::new(&world, "room");
    held.up.push_files(&wanted);
    world.larder.reconcile(KIND, NAMESPACE, "room");
    held.converges(&world.larder, &wanted);
    world.finish();
    drop(disk);
}

#[test]
fn a_failing_disk_publishes_nothing() {
    if !has_tool("strace") {
        return;
    }
    let world = World::start(&[]);
    for (n, what) in [
        vec!["fsync:error=EIO:when=1"],
        vec!["linkat:error=EIO"],
        vec!["pwrite64:error=EIO"],
        vec!["pwrite64:error=ENOSPC"],
        vec!["fsync:error=EIO"],
        vec!["rename,renameat,renameat2:error=EIO"],
        vec!["fsync:error=EIO", "rename,renameat,renameat2:error=ENOSPC", "linkat:error=EROFS"],
    ]
    .into_iter()
    .enumerate()
    {
        let name: &'static str = format!("d2-{n}").leak();
        let held = Held::new(&world, name);
        let injection = Injection::into(world.larder.pid(), &what);
        let wanted = files(&[("new", name)]);
        let pushed = held.up.push_files(&wanted);
        world.larder.reconcile(KIND, NAMESPACE, name);
        held.is_held(&world.larder);
        let object = world.larder.object(KIND, NAMESPACE, name).unwrap();
        let failed = condition_of(&object, "StorageOperationFailed");
        assert_eq!((&failed["status"], &failed["reason"]), (&json!("True"), &json!(SF)), "{what:?}: {object}");
        let url = format!("{}/ocirepository/{NAMESPACE}/{name}/{}.tar.gz", world.larder.artifacts, pushed.layer.hex());
        if what.len() == 1 && !what[0].starts_with("rename") {
            assert_eq!(http::get(&url).status, 404, "{what:?}: what is not durable is not published");
        }
        injection.end();
        held.converges(&world.larder, &wanted);
    }
    world.finish();
}

/// Changes a blob with its times put back.
fn damage(path: &Path, how: &str) {
    let before = fs::metadata(path).unwrap();
    let mut permissions = before.permissions();
    permissions.set_mode(0o644);
    fs::set_permissions(path, permissions.clone()).unwrap();
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    use std::os::unix::fs::FileExt as _;
    match how {
        "flip" => {
            let mut byte = [0];
            let at = before.len() / 2;
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        }
        "truncate" => file.set_len(0).unwrap(),
        "grow" => file.write_all_at(b"x", before.len()).unwrap(),
        "unlink" => fs::remove_file(path).unwrap(),
        _ => unreachable!(),
    }
    file.set_modified(before.modified().unwrap()).unwrap();
    permissions.set_mode(0o444);
    file.set_permissions(permissions).unwrap();
}

fn blob(data: &Path, digest: &str) -> PathBuf {
    let hex = hex_of(digest);
    data.join("blobs/sha256").join(&hex[..2]).join(hex)
}

/// GET of the artifact gives the right bytes or an error, never anything else.
fn right_or_error(object: &Value, larder: &Larder, what: &str) {
    let path = text(object, "/status/artifact/path");
    if let Ok(response) = http::send("GET", &format!("{}/{path}", larder.artifacts), &[], b"")
        && response.status == 200
    {
        assert_eq!(sha256(&response.body), text(object, "/status/artifact/digest"), "{what}: wrong bytes");
    }
}

#[test]
fn damage_is_put_aside_and_fetched_again() {
    let ways = ["flip", "truncate", "grow", "unlink"];
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    let ups: Vec<Upstream> = (0..2 * ways.len()).map(|_| Upstream::start()).collect();
    let all: Vec<Value> = ups
        .iter()
        .enumerate()
        .map(|(n, up)| {
            up.push_files(&files(&[("content", &noise(n as u64, 50_000))]));
            object(KIND, NAMESPACE, &format!("d5-{n}"), &up.url(), &json!({}))
        })
        .collect();
    crate::support::larder::write_objects(root.path(), "all.yaml", &all);
    let mut larder = Larder::reconciling(root.path(), &[]);
    let ready: Vec<Value> = (0..ups.len()).map(|n| larder.wait_ready(KIND, NAMESPACE, &format!("d5-{n}"))).collect();
    let digest = |n: usize| text(&ready[n], "/status/artifact/digest").to_owned();

    for (n, how) in ways.iter().enumerate() {
        damage(&blob(&data, &digest(n)), how);
        right_or_error(&ready[n], &larder, how);
        let answer = larder.reconcile(KIND, NAMESPACE, &format!("d5-{n}"));
        assert_eq!(answer.status, 200, "{how}");
        assert!(is_ready(&answer.json()), "{how}: {}", answer.text());
        fetch_artifact(&answer.json());
        assert_eq!(ups[n].count(crate::support::registry::Kind::BlobGet), 2, "{how}: fetched again");
    }
    assert_eq!(larder.ended(), None, "U9");
    assert_eq!(quarantined(&data).len(), 3, "{:?}", quarantined(&data));

    assert_eq!(larder.stop(), Some(0));
    for (n, how) in ways.iter().enumerate() {
        damage(&blob(&data, &digest(ways.len() + n)), how);
    }
    let larder = Larder::reconciling(root.path(), &[]);
    for (n, how) in ways.iter().enumerate() {
        let n = ways.len() + n;
        right_or_error(&ready[n], &larder, how);
        let answer = larder.reconcile(KIND, NAMESPACE, &format!("d5-{n}"));
        assert!(is_ready(&answer.json()), "{how}, stopped: {}", answer.text());
        fetch_artifact(&answer.json());
    }
    assert_eq!(quarantined(&data).len(), 6, "{:?}", quarantined(&data));
    blobs_below(&data);
    assert_eq!(larder.stop(), Some(0));
    verify(root.path());
}

#[test]
fn a_blob_that_cannot_be_read_is_right_or_an_error() {
    if !has_tool("strace") {
        return;
    }
    let world = World::start(&[]);
    for (n, what) in
        ["pread64:error=EIO", "pread64:retval=7", "mmap:error=ENOMEM", "madvise:error=EIO"].into_iter().enumerate()
    {
        let name: &'static str = format!("d3-{n}").leak();
        let held = Held::new(&world, name);
        // Looks touched, so that it is read again before it is trusted.
        let path = blob(&world.larder.data, text(&held.object, "/status/artifact/digest"));
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::File::open(&path).unwrap().set_modified(modified).unwrap();
        let injection = Injection::into(world.larder.pid(), &[what]);
        right_or_error(&held.object, &world.larder, what);
        injection.end();
        let answer = world.larder.reconcile(KIND, NAMESPACE, name);
        assert!(is_ready(&answer.json()), "{what}: {}", answer.text());
        fetch_artifact(&answer.json());
    }
    // Some were put aside for errors that were not theirs, which costs a fetch and nothing else.
    let World { larder, .. } = &world;
    blobs_below(&larder.data);
    world.check_secrecy();
}

#[test]
fn without_descriptors_accepting_pauses_and_goes_on() {
    if !has_tool("prlimit") {
        return;
    }
    let world = World::start_in(tempfile::tempdir().unwrap(), &["prlimit", "--nofile=64"], &[]);
    let held = Held::new(&world, "app");
    let addresses = [&world.larder.artifacts, &world.larder.registry, &world.larder.admin];
    let mut crowd = Vec::new();
    for n in 0..150 {
        let address = addresses[n % 3].trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).unwrap();
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n");
        crowd.push(stream);
    }
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| held.is_held(&world.larder));
        }
    });
    held.up.push_files(&files(&[("under", "load")]));
    world.larder.reconcile(KIND, NAMESPACE, "app");
    drop(crowd);
    held.converges(&world.larder, &files(&[("under", "load")]));
    assert!(!world.larder.log().contains("panicked"), "{}", world.larder.log());
    world.finish();
}
