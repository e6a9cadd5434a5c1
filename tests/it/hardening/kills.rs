//! The K rows: the daemon is killed at chosen system calls and at random moments; each time it starts again within 5 s,
//! serves nothing wrong and goes on by itself.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    upstream::{REPOSITORY, Upstream},
    world::{NAMESPACE, blobs_below, has_tool, object, quarantined, verify},
};
use crate::support::{
    announce, eventually,
    fixtures::{Files, files, files_below, files_in, write_files},
    http,
    larder::{Larder, condition_of, fetch_artifact, is_ready, write_objects},
    registry::{Fault, Kind, of},
};

const KIND: &str = "OCIRepository";
/// Contract of every start, whatever the last end was.
const READY_WITHIN: Duration = Duration::from_secs(5);

struct Crash {
    root: TempDir,
    ups: Vec<Upstream>,
}

fn content(object: usize, version: u64) -> Files {
    let mut random = fastrand::Rng::with_seed(version * 100 + object as u64);
    let large: String = std::iter::repeat_with(|| random.alphanumeric()).take(200_000).collect();
    files(&[
        ("shared.yaml", "the same in all versions of all objects"),
        ("large", &large),
        ("folder/version", &format!("{object} {version}")),
    ])
}

impl Crash {
    fn new(objects: usize) -> Self {
        let crash = Self { root: tempfile::tempdir().unwrap(), ups: (0..objects).map(|_| Upstream::start()).collect() };
        write_files(&crash.root.path().join("outside"), &files(&[("canary", "untouched")]));
        let all: Vec<Value> = crash
            .ups
            .iter()
            .enumerate()
            .map(|(n, up)| {
                up.push_files(&content(n, 0));
                // Every third is rewritten, so that artifacts are made here too.
                let ignore = if n % 3 == 0 { "large\n" } else { "# nothing\n" };
                let spec = json!({ "interval": "1s", "ignore": ignore });
                object(KIND, NAMESPACE, &format!("app-{n}"), &up.url(), &spec)
            })
            .collect();
        write_objects(crash.root.path(), "all.yaml", &all);
        crash
    }

    fn path(&self) -> &Path {
        self.root.path()
    }

    fn start(&self) -> Larder {
        self.start_with(&[])
    }

    fn start_with(&self, flags: &[&str]) -> Larder {
        let started = Instant::now();
        let larder = Larder::reconciling(self.path(), &[&["--artifact-retention-ttl", "1s"], flags].concat());
        let took = started.elapsed();
        assert!(took < READY_WITHIN, "ready after {took:?}");
        larder
    }

    /// Starts under strace, which injects `what` and leaves when the daemon does.
    fn start_under(&self, what: &str) -> Option<Larder> {
        let calls = what.split(':').next().unwrap();
        let (trace, inject) = (format!("trace={calls}"), format!("inject={what}"));
        let wrapper = ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        let objects = self.path().join("objects");
        Larder::launch(self.path(), &wrapper, &["--objects", objects.to_str().unwrap()], &[]).ok()
    }

    /// K4: whatever a status names is there, with the right bytes; nothing under a final name is wrong.
    fn is_sound(&self, larder: &Larder) {
        for n in 0..self.ups.len() {
            let name = format!("app-{n}");
            eventually("an object that does not change while it is looked at", || {
                let object = larder.object(KIND, NAMESPACE, &name).ok_or("not loaded")?;
                if object["status"]["artifact"].is_null() {
                    return Ok(());
                }
                let fetched = std::panic::catch_unwind(|| fetch_artifact(&object));
                let again = larder.object(KIND, NAMESPACE, &name).ok_or("gone")?;
                match fetched {
                    Ok(_) => Ok(()),
                    Err(_) if again["status"]["artifact"] != object["status"]["artifact"] => Err("it changed".into()),
                    Err(_) => panic!("K4: a status names what cannot be fetched: {object}"),
                }
            });
        }
    }

    /// All objects come to this version with no hand.
    fn converges(&self, larder: &Larder, version: u64) {
        for (n, up) in self.ups.iter().enumerate() {
            let pushed = up.manifest(REPOSITORY, "latest").unwrap();
            let revision = format!("latest@{}", crate::support::fixtures::sha256(&pushed));
            let object = larder.wait(KIND, NAMESPACE, &format!("app-{n}"), |object| {
                is_ready(object) && object["status"]["artifact"]["revision"] == revision
            });
            let mut wanted = content(n, version);
            if n % 3 == 0 {
                wanted.remove("large");
            }
            assert_eq!(files_in(&fetch_artifact(&object)), wanted, "app-{n}");
        }
    }

    /// Ends it in order; then nothing is wrong with what it keeps, and nothing is left of what it did not finish.
    fn finish(self, larder: Larder) {
        assert_eq!(larder.stop(), Some(0));
        verify(self.path());
        let data = self.path().join("data");
        blobs_below(&data);
        assert_eq!(files_below(&data.join("spool")), Files::new(), "U3");
        assert_eq!(quarantined(&data), Vec::<String>::new(), "a kill is no damage");
        let kept = files_below(&data.join("objects")).into_keys();
        let other: Vec<String> = kept.filter(|name| !name.ends_with(".json")).collect();
        assert!(other.is_empty(), "U3: {other:?}");
        assert_eq!(files_below(&self.path().join("outside")), files(&[("canary", "untouched")]), "U6");
    }
}

#[test]
fn killed_while_a_body_arrives_nothing_of_it_is_seen() {
    let crash = Crash::new(2);
    for up in &crash.ups {
        up.fault(of(Kind::BlobGet), 1, Fault::Stall { after: 100_000 });
    }
    let larder = crash.start();
    eventually("both bodies to be under way", || {
        if crash.ups.iter().all(|up| up.count(Kind::BlobGet) == 1) { Ok(()) } else { Err("not yet".into()) }
    });
    // The bytes that were sent have most likely arrived; where not, the kill comes the earlier.
    std::thread::sleep(Duration::from_millis(200));
    larder.kill();
    let layers = blobs_below(&crash.path().join("data")).len();
    assert_eq!(layers, 2, "the manifests and no layer");
    let larder = crash.start();
    crash.converges(&larder, 0);
    crash.finish(larder);
}

/// How many kills of the long run are asked for, if it is.
fn long_run() -> Option<u32> {
    std::env::var("LARDER_KILLS").ok().map(|text| text.parse().expect("LARDER_KILLS is a number"))
}

#[test]
fn killed_at_each_step_of_publishing_it_goes_on() {
    if !has_tool("strace") {
        return;
    }
    let last = if long_run().is_some() { 40 } else { 3 };
    for calls in ["linkat", "fsync", "rename,renameat,renameat2", "pwrite64", "fchmod", "mkdirat,mkdir"] {
        for n in 1..=last {
            let crash = Crash::new(1);
            let mut survived = false;
            if let Some(mut larder) = crash.start_under(&format!("{calls}:signal=KILL:when={n}")) {
                // strace counts a thread's calls, so the n-th may never come.
                survived = eventually("an end, or Ready", || match larder.ended() {
                    Some(_) => Ok(false),
                    None => match http::send("GET", &format!("{}/v1/objects", larder.admin), &[], b"") {
                        Ok(answer) if answer.status == 200 => {
                            let ready = answer.json()["items"].as_array().is_some_and(|items| {
                                items.iter().any(|item| condition_of(item, "Ready")["status"] == "True")
                            });
                            if ready { Ok(true) } else { Err(answer.text()) }
                        }
                        other => Err(format!("{other:?}")),
                    },
                });
                larder.kill();
            }
            blobs_below(&crash.path().join("data"));
            let larder = crash.start();
            crash.is_sound(&larder);
            crash.converges(&larder, 0);
            crash.finish(larder);
            if survived {
                break;
            }
        }
    }
}

/// Makes all blobs look old and forgotten, so that a collection removes those that nothing names.
fn age(data: &Path) {
    let old = SystemTime::now() - Duration::from_secs(72 * 60 * 60);
    for name in files_below(&data.join("blobs")).into_keys() {
        fs::File::open(data.join("blobs").join(name)).unwrap().set_modified(old).unwrap();
    }
    let _ = fs::remove_file(data.join("journal"));
}

#[test]
fn killed_while_collecting_it_keeps_what_a_status_names() {
    if !has_tool("strace") {
        return;
    }
    let crash = Crash::new(2);
    let mut larder = crash.start();
    let last = if long_run().is_some() { 20 } else { 4 };
    for n in 1..=last {
        crash.converges(&larder, n - 1);
        for (object, up) in crash.ups.iter().enumerate() {
            up.push_files(&content(object, n));
        }
        crash.converges(&larder, n);
        // The last version's artifacts are superseded, and go from the listener after a second.
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(larder.stop(), Some(0));
        age(&crash.path().join("data"));
        let before = blobs_below(&crash.path().join("data")).len();
        if let Some(under) = crash.start_under(&format!("unlinkat:signal=KILL:when={n}")) {
            let _ = http::send("POST", &format!("{}/v1/store/gc", under.admin), &[], b"");
            under.kill();
        }
        larder = crash.start();
        crash.is_sound(&larder);
        let answer = http::send("POST", &format!("{}/v1/store/gc", larder.admin), &[], b"").unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let after = blobs_below(&crash.path().join("data")).len();
        assert!(after < before, "the leftovers are collected: {before}, then {after}");
        crash.is_sound(&larder);
    }
    crash.converges(&larder, last);
    crash.finish(larder);
}

#[test]
fn killed_at_random_under_pulls_collection_and_eviction_it_always_comes_back() {
    let kills = long_run().unwrap_or(20);
    let seed = fastrand::u64(..);
    announce(&format!("{kills} kills at moments of seed {seed}"));
    let mut random = fastrand::Rng::with_seed(seed);
    let crash = Crash::new(6);
    // Room for what statuses name and keep for a second, but not for a third version of everything.
    let budget = ["--store-max-bytes", "1500kB"];
    let mut version = 0;
    for kill in 0..kills {
        let larder = crash.start_with(&budget);
        crash.is_sound(&larder);
        version += 1;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (n, up) in crash.ups.iter().enumerate() {
                up.push_files(&content(n, version));
                let (larder, over) = (&larder, &over);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let _ = http::send(
                            "POST",
                            &format!("{}/v1/reconcile?kind={KIND}&namespace={NAMESPACE}&name=app-{n}", larder.admin),
                            &[],
                            b"",
                        );
                        if n == 0 {
                            let _ = http::send("POST", &format!("{}/v1/store/gc", larder.admin), &[], b"");
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(random.u64(1..250)));
            let pid = rustix::process::Pid::from_raw(i32::try_from(larder.pid()).unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            over.store(true, Ordering::Relaxed);
        });
        larder.kill();
        if kill % 3 == 0 {
            age(&crash.path().join("data"));
        }
        if kill % 10 == 9 {
            verify(crash.path());
        }
    }
    let larder = crash.start_with(&budget);
    crash.converges(&larder, version);
    let kept = larder.metric("larder_store_bytes", &[("kind", "blob")]);
    assert!(kept <= 1_500_000 + 160_000, "{kept}");
    crash.finish(larder);
}
