//! The leader is killed at random moments, while what the tags name changes all the time.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Kubernetes, Stage, path_of,
    replicas::{at, filled, holder},
};
use crate::support::{
    announce, eventually,
    fixtures::{Files, files, files_in, sha256},
    larder::{Larder, run, text},
    registry::{Fault, Kind, of},
};

const SOURCES: usize = 4;
const NAMES: [&str; 2] = ["one", "two"];
/// How soon another leads (README).
const LEADS_WITHIN: Duration = Duration::from_secs(20);
/// How soon a replica has what a status names: the status has to come to it, and then the artifact.
const HERE_WITHIN: Duration = Duration::from_secs(10);

fn rounds() -> u32 {
    std::env::var("LARDER_LEADER_KILLS").map_or(2, |text| text.parse().expect("LARDER_LEADER_KILLS is a number"))
}

fn content(source: usize, version: u64) -> Files {
    let mut random = fastrand::Rng::with_seed(version * 100 + source as u64);
    let large: String = std::iter::repeat_with(|| random.alphanumeric()).take(200_000).collect();
    files(&[("large", &large), ("rest", "r"), ("version", &format!("{source} {version}"))])
}

/// What was seen so far.
#[derive(Default)]
struct Seen {
    /// The artifact of each revision of each source: there is one.
    made: Mutex<HashMap<String, String>>,
    slowest: Mutex<Duration>,
}

impl Seen {
    /// What the statuses name now is served by a replica, as soon as it can have heard of it.
    fn look(&self, api: &impl Kubernetes, sources: &[Value], larder: &Larder) {
        for source in sources {
            let began = Instant::now();
            eventually("the artifact that a status names", || {
                let object = api.get(&path_of(source)).expect("nobody deletes it");
                let answer = at(larder, &object);
                if answer.status == 200 {
                    let digest = text(&object, "/status/artifact/digest");
                    assert_eq!(sha256(&answer.body), digest);
                    let revision =
                        format!("{} {}", text(&object, "/metadata/name"), text(&object, "/status/artifact/revision"));
                    let before = self.made.lock().expect("no panic").insert(revision.clone(), digest.to_owned());
                    assert!(before.is_none_or(|before| before == digest), "{revision} has two artifacts");
                    return Ok(());
                }
                assert!(began.elapsed() < HERE_WITHIN, "{} of {}", answer.status, object["status"]["artifact"]);
                Err(answer.status.to_string())
            });
            let mut slowest = self.slowest.lock().expect("no panic");
            *slowest = slowest.max(began.elapsed());
        }
    }
}

pub fn whenever_the_leader_is_killed_the_other_leads_and_nothing_is_lost(api: &(impl Kubernetes + Sync)) {
    let stage = Stage::new(api);
    stage.registry.fault(of(Kind::BlobGet), usize::MAX, Fault::Delay(Duration::from_millis(30)));
    let sources: Vec<Value> = (0..SOURCES)
        .map(|n| {
            stage.push(&format!("team/app-{n}"), "latest", &content(n, 0));
            // Every second is rewritten, so that artifacts are made here too.
            let ignore = if n % 2 == 0 { "rest\n" } else { "# nothing\n" };
            stage.oci_repository(
                &format!("app-{n}"),
                &format!("team/app-{n}"),
                json!({ "interval": "1s", "ignore": ignore }),
            )
        })
        .collect();
    sources.iter().for_each(|source| api.create(source));
    let flags = ["--artifact-retention-ttl", "1s"];
    let mut larders = NAMES.map(|name| Some(stage.serve_in(name, &flags)));
    sources.iter().for_each(|source| _ = stage.ready(&path_of(source)));
    larders.iter().flatten().for_each(filled);
    let (seen, end, version) = (Seen::default(), AtomicBool::new(false), AtomicU64::new(0));
    let mut took: Vec<Duration> = Vec::new();
    std::thread::scope(|scope| {
        // Ends with a panic here, too.
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let ending = End(&end);
        scope.spawn(|| {
            while !end.load(Ordering::SeqCst) {
                let next = version.load(Ordering::SeqCst) + 1;
                for n in 0..SOURCES {
                    stage.push(&format!("team/app-{n}"), "latest", &content(n, next));
                }
                version.store(next, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(fastrand::u64(50..800)));
            }
        });
        for round in 0..rounds() {
            let leader = eventually("a leader", || {
                let holder = holder(api);
                NAMES.iter().position(|name| holder.starts_with(&format!("{name}_"))).ok_or(holder)
            });
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..3_000)));
            let killed = Instant::now();
            larders[leader].take().expect("it runs").kill();
            let survivor = larders[1 - leader].as_ref().expect("it runs");
            let next = NAMES[1 - leader];
            while !holder(api).starts_with(&format!("{next}_")) {
                seen.look(api, &sources, survivor);
                assert!(killed.elapsed() < LEADS_WITHIN, "round {round}: {next} does not lead");
            }
            took.push(killed.elapsed());
            // It does not only hold the Lease.
            let before = api.get(&path_of(&sources[0])).expect("there")["status"]["artifact"].clone();
            api.wait(&path_of(&sources[0]), |object| object["status"]["artifact"]["revision"] != before["revision"]);
            seen.look(api, &sources, survivor);
            let back = stage.serve_in(NAMES[leader], &flags);
            filled(&back);
            seen.look(api, &sources, &back);
            larders[leader] = Some(back);
        }
        drop(ending);
    });
    let last = version.load(Ordering::SeqCst);
    for (n, source) in sources.iter().enumerate() {
        let object = api.wait(&path_of(source), |object| {
            let answer = larders.iter().flatten().map(|larder| at(larder, object)).find(|answer| answer.status == 200);
            answer.is_some_and(|answer| files_in(&answer.body)["version"] == format!("{n} {last}").as_bytes())
        });
        assert_eq!(object["status"]["conditions"][0]["type"], "Ready");
    }
    for (name, larder) in NAMES.iter().zip(larders.iter().flatten()) {
        seen.look(api, &sources, larder);
        for n in 0..SOURCES {
            // The current one and the one before it.
            let folder = larder.data.join(format!("source/default/app-{n}"));
            eventually(&format!("what was superseded to go from {name}"), || {
                let trees = std::fs::read_dir(&folder).map_or(0, |entries| entries.flatten().count());
                if trees <= 2 { Ok(()) } else { Err(format!("{trees} trees in {}", folder.display())) }
            });
        }
    }
    for larder in larders.into_iter().flatten() {
        let data = larder.data.clone();
        assert_eq!(larder.stop(), Some(0));
        let verified = run(stage.root(), ["store", "verify", "--data", data.to_str().expect("UTF-8")]);
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
    }
    took.sort_unstable();
    if took.len() > 2 {
        announce(&format!(
            "{} kills of the leader: the other led after {:?} to {:?}, median {:?}; {} revisions seen; the slowest artifact \
             came after {:?}",
            took.len(),
            took[0],
            took[took.len() - 1],
            took[took.len() / 2],
            seen.made.lock().expect("no panic").len(),
            seen.slowest.lock().expect("no panic"),
        ));
    }
}
