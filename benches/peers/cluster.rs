//! A real API server on the same cores: a thousand OCIRepositories, and a thousand Kustomizations of five objects each.
//!
//! Each turn has an API server of its own, whose objects are there before the controller is. Flux's controllers do the same
//! work beside it, with as many passes at once as Larder has, and with the limits of their calls lifted as Flux advises for
//! many objects.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    Options,
    api_server::{ApiServer, Call, Watched, asset, counted, is_ready},
    http::Client,
    programs::{Daemon, DockerRegistry, Peak, Running, cpu_seconds, find, free_port},
    support::{folder, gzip, small_layer, tar_of},
    table::{Ratio, Table, Target, Unit, median},
};

const OBJECTS: usize = 1000;
/// Of the OCIRepositories: longer than a first pass may last.
const SOURCE_INTERVAL: Duration = Duration::from_secs(60);
/// Of the Kustomizations, likewise.
const INTERVAL: Duration = Duration::from_secs(120);
/// Sources of the Kustomizations: ten repositories of a fleet, each with a hundred folders. With one, Flux would unpack a
/// thousand folders a thousand times; with a thousand it would be a bench of sources.
const SOURCES: usize = 10;
/// Objects of a Kustomization.
const APPLIED: usize = 5;
/// How many changes of one object are timed.
const CHANGES: usize = 5;
/// What nobody should need.
const LIMIT: Duration = Duration::from_secs(900);

const REPOSITORIES: &str = "/apis/source.toolkit.fluxcd.io/v1/namespaces/default/ocirepositories";
const KUSTOMIZATIONS: &str = "/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/default/kustomizations";

/// What is measured of either.
#[derive(Default)]
struct Measured(BTreeMap<&'static str, Vec<f64>>);

impl Measured {
    fn add(&mut self, what: &'static str, figure: f64) {
        self.0.entry(what).or_default().push(figure);
    }

    fn of(&self, what: &str) -> &[f64] {
        self.0.get(what).map(Vec::as_slice).unwrap_or_default()
    }
}

pub fn run(options: &Options, table: &mut Table) {
    let missing: Vec<&str> =
        ["etcd", "kube-apiserver"].into_iter().filter(|program| asset(program).is_none()).collect();
    if !missing.is_empty() {
        return table.skipped("a real API server", &format!("not in KUBEBUILDER_ASSETS: {}", missing.join(", ")));
    }
    if find("docker-registry").is_none() {
        return table.skipped("a real API server", "docker-registry is not installed");
    }
    let folder = folder();
    let Some(registry) = DockerRegistry::start(&folder.join("registry")) else { return };
    let flux = |controller: &str, table: &mut Table| {
        let here = asset("source-controller").is_some() && asset(controller).is_some();
        if !here {
            table.skipped(&format!("{controller} beside Larder"), "not in KUBEBUILDER_ASSETS");
        }
        here
    };
    let peer = flux("source-controller", table);
    sources(options, table, &folder, &registry, peer);
    let peer = flux("kustomize-controller", table);
    kustomizations(options, table, &folder, &registry, peer);
}

/// A row with the peer's figure beside Larder's where there is one.
fn row(
    table: &mut Table,
    what: &str,
    unit: Unit,
    key: &str,
    (ours, peer): (&Measured, (&str, &Measured)),
    target: Target,
) {
    match peer.1.of(key) {
        [] => table.figure(what, unit, median(ours.of(key)), target),
        theirs => table.compare(what, unit, ours.of(key), (peer.0, theirs), Ratio::LarderByPeer, target),
    }
}

fn writes(calls: &[Call]) -> f64 {
    calls.iter().filter(|call| call.writes()).count() as f64
}

/// Lists and watches stay what they are with more objects; nobody counts those of the start as an object's.
fn per_object(calls: f64) -> f64 {
    calls / OBJECTS as f64
}

fn oci_repository(name: &str, url: &str, interval: Duration) -> Value {
    json!({
        "apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "OCIRepository",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "url": url, "insecure": true, "interval": format!("{}s", interval.as_secs()), "ref": { "tag": "latest" } },
    })
}

/// source-controller, and the seconds of its start are its own.
fn source_controller(server: &ApiServer, folder: &Path) -> Running {
    let storage = folder.join("storage");
    std::fs::create_dir_all(&storage).expect("folder");
    let artifacts = free_port();
    let mut arguments = flags();
    arguments.push(format!("--storage-path={}", storage.display()));
    arguments.extend(["--storage-addr", "--storage-adv-addr"].map(|flag| format!("{flag}=127.0.0.1:{artifacts}")));
    server.controller("source-controller", &arguments)
}

/// What Flux's documentation advises for many objects, and sixteen passes at once, as Larder has them.
fn flags() -> Vec<String> {
    [
        "--concurrent=16",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        "--requeue-dependency=5s",
        "--metrics-addr=127.0.0.1:0",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([format!("--health-addr=127.0.0.1:{}", free_port())])
    .collect()
}

fn sources(options: &Options, table: &mut Table, folder: &Path, registry: &DockerRegistry, peer: bool) {
    let mut client = Client::new(&registry.host);
    for number in 0..OBJECTS {
        client.push_artifact(&format!("apps/app-{number}"), "latest", &small_layer(number));
    }
    let stage = |turn: usize, whose: &str| {
        let folder = folder.join(format!("sources-{turn}-{whose}"));
        let server = ApiServer::start(&folder.join("cluster"));
        let url = |number| format!("oci://{}/apps/app-{number}", registry.host);
        let objects = (0..OBJECTS).map(|n| oci_repository(&format!("o-{n}"), &url(n), SOURCE_INTERVAL));
        server.create(REPOSITORIES, objects.collect());
        let watched = server.watch("source.toolkit.fluxcd.io", "OCIRepository", "ocirepositories");
        watched.wait(OBJECTS, LIMIT, |_| true);
        (folder, server, watched)
    };
    let (mut ours, mut theirs) = (Measured::default(), Measured::default());
    for turn in 0..options.rounds(1) {
        let (folder, server, watched) = stage(turn, "larder");
        larder_sources(&mut ours, &folder, &server, &watched, &mut client);
        drop((watched, server));
        if peer {
            let (folder, server, watched) = stage(turn, "flux");
            flux_sources(&mut theirs, &folder, &server, &watched, &mut client);
        }
    }
    let both = (&ours, ("source-controller", &theirs));
    let mut row = |what, unit, key, target| row(table, what, unit, key, both, target);
    row(
        "1,000 OCIRepositories on an API server: ready line to all Ready",
        Unit::Seconds,
        "ready",
        Target::AtMost(15.0),
    );
    row("… exec to all Ready", Unit::Seconds, "exec", Target::None);
    row("… peak RssAnon", Unit::Mebibytes, "memory", Target::AtMost(80.0));
    row("… CPU of the controller", Unit::Seconds, "cpu", Target::None);
    row("… API writes an object", Unit::Each, "writes", Target::AtMost(3.0));
    row("… no-change pass over all: API writes", Unit::Count, "idle writes", Target::AtMost(0.0));
    row("… CPU of an interval of 60 s", Unit::Seconds, "idle cpu", Target::None);
    row("… one of them changes: request to Ready with it", Unit::Milliseconds, "change", Target::None);
}

fn larder_sources(measured: &mut Measured, folder: &Path, server: &ApiServer, watched: &Watched, client: &mut Client) {
    let data = folder.join("data");
    std::fs::create_dir(&data).expect("folder");
    let since = server.now();
    let daemon = Daemon::start_on(&data, &server.kubeconfig("larder"));
    let peak = Peak::of(daemon.pid());
    let done = watched.wait(OBJECTS, LIMIT, is_ready);
    measured.add("ready", (done - daemon.ready).as_secs_f64());
    measured.add("exec", (done - daemon.started).as_secs_f64());
    measured.add("cpu", cpu_seconds(daemon.pid()));
    server.wait_quiet();
    measured.add("memory", peak.finish());
    let calls = server.calls(since);
    eprintln!("  Larder's first pass: {}", counted(&calls));
    measured.add("writes", per_object(writes(&calls)));

    let (since, cpu, begin) = (server.now(), cpu_seconds(daemon.pid()), Instant::now());
    passes(&daemon, "OCIRepository", OBJECTS);
    let calls = server.calls(since);
    eprintln!("  Larder's no-change pass: {}", counted(&calls));
    measured.add("idle writes", writes(&calls));
    let share = SOURCE_INTERVAL.as_secs_f64() / begin.elapsed().as_secs_f64();
    measured.add("idle cpu", (cpu_seconds(daemon.pid()) - cpu) * share);
    changes(measured, server, watched, client, "larder");
}

fn flux_sources(measured: &mut Measured, folder: &Path, server: &ApiServer, watched: &Watched, client: &mut Client) {
    let (since, started) = (server.now(), Instant::now());
    let controller = source_controller(server, folder);
    let peak = Peak::of(controller.0.id());
    let done = watched.wait(OBJECTS, LIMIT, is_ready);
    measured.add("exec", (done - started).as_secs_f64());
    measured.add("cpu", cpu_seconds(controller.0.id()));
    server.wait_quiet();
    measured.add("memory", peak.finish());
    let calls = server.calls(since);
    eprintln!("  source-controller's first pass: {}", counted(&calls));
    measured.add("writes", per_object(writes(&calls)));
    let (since, cpu) = (server.now(), cpu_seconds(controller.0.id()));
    std::thread::sleep(SOURCE_INTERVAL);
    let calls = server.calls(since);
    eprintln!("  source-controller's no-change interval: {}", counted(&calls));
    measured.add("idle writes", writes(&calls));
    measured.add("idle cpu", cpu_seconds(controller.0.id()) - cpu);
    changes(measured, server, watched, client, "flux");
}

/// Waits until so many passes over objects of a kind have ended.
fn passes(daemon: &Daemon, kind: &str, count: usize) {
    let ended = || daemon.metric("larder_reconcile_total", &[&format!("kind=\"{kind}\"")]);
    let (before, begin) = (ended(), Instant::now());
    while ended() < before + count as f64 {
        assert!(begin.elapsed() < LIMIT, "{} of {count} passes after {LIMIT:?}", ended() - before);
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// One object after another gets a new artifact and is asked to look.
fn changes(measured: &mut Measured, server: &ApiServer, watched: &Watched, client: &mut Client, whose: &str) {
    let times: Vec<f64> = (0..CHANGES)
        .map(|number| {
            let name = format!("o-{number}");
            let before = watched.text(&name, "/status/artifact/revision");
            client.push_artifact(&format!("apps/app-{number}"), "latest", &small_layer(unique()));
            let begin = Instant::now();
            server.request(&format!("{REPOSITORIES}/{name}"), &format!("{whose}-{number}"));
            let changed = |object: &Value| {
                object["metadata"]["name"] == *name
                    && object["status"]["artifact"]["revision"] != *before
                    && is_ready(object)
            };
            (watched.wait(1, LIMIT, changed) - begin).as_secs_f64() * 1000.0
        })
        .collect();
    measured.add("change", median(&times));
}

/// A number that no artifact was made from yet.
fn unique() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(OBJECTS);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A fleet's repository: a folder for each of its Kustomizations, with five ConfigMaps in a file each.
fn fleet(source: usize, version: usize) -> Vec<u8> {
    let mut files = BTreeMap::new();
    for app in (source..OBJECTS).step_by(SOURCES) {
        for map in 0..APPLIED {
            // A version is another text of one ConfigMap.
            let stamp = if app == source && map == 0 { version } else { 0 };
            let text = format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: app-{app}-{map}\n  namespace: apps\n  labels:\n    \
                 app: app-{app}\ndata:\n  level: info\n  stamp: \"{stamp}\"\n  address: app-{app}.apps.svc:8080\n"
            );
            files.insert(format!("app-{app}/map-{map}.yaml"), text.into_bytes());
        }
    }
    gzip(&tar_of(&files))
}

fn kustomization(number: usize) -> Value {
    json!({
        "apiVersion": "kustomize.toolkit.fluxcd.io/v1", "kind": "Kustomization",
        "metadata": { "name": format!("app-{number}"), "namespace": "default" },
        "spec": {
            "interval": format!("{}s", INTERVAL.as_secs()), "prune": true, "path": format!("./app-{number}"),
            "sourceRef": { "kind": "OCIRepository", "name": format!("fleet-{}", number % SOURCES) },
        },
    })
}

/// Whether a Kustomization was applied once. Not whether it is Ready, as who is behind with a thousand has some under way at
/// any time.
fn is_applied(object: &Value) -> bool {
    object["status"]["lastAppliedRevision"].as_str().is_some_and(|revision| !revision.is_empty())
}

fn kustomizations(options: &Options, table: &mut Table, folder: &Path, registry: &DockerRegistry, peer: bool) {
    let mut client = Client::new(&registry.host);
    let mut stage = |turn: usize, whose: &str| {
        for source in 0..SOURCES {
            client.push_artifact(&format!("fleet-{source}"), "latest", &fleet(source, 0));
        }
        let folder = folder.join(format!("kustomizations-{turn}-{whose}"));
        let server = ApiServer::start(&folder.join("cluster"));
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "apps" } });
        server.create("/api/v1/namespaces", vec![namespace]);
        let url = |source| format!("oci://{}/fleet-{source}", registry.host);
        let sources = (0..SOURCES).map(|n| oci_repository(&format!("fleet-{n}"), &url(n), Duration::from_secs(3600)));
        server.create(REPOSITORIES, sources.collect());
        server.create(KUSTOMIZATIONS, (0..OBJECTS).map(kustomization).collect());
        let watched = server.watch("kustomize.toolkit.fluxcd.io", "Kustomization", "kustomizations");
        watched.wait(OBJECTS, LIMIT, |_| true);
        (folder, server, watched)
    };
    let (mut ours, mut theirs) = (Measured::default(), Measured::default());
    for turn in 0..options.rounds(1) {
        let (folder, server, watched) = stage(turn, "larder");
        larder_kustomizations(&mut ours, &folder, &server, &watched, registry);
        drop((watched, server));
        if peer {
            let (folder, server, watched) = stage(turn, "flux");
            flux_kustomizations(&mut theirs, &folder, &server, &watched, registry);
        }
    }
    let both = (&ours, ("Flux", &theirs));
    let mut row = |what, unit, key, target| row(table, what, unit, key, both, target);
    row("1,000 Kustomizations of 5 ConfigMaps: exec to all applied", Unit::Seconds, "exec", Target::AtMost(90.0));
    row("… peak RssAnon", Unit::Mebibytes, "memory", Target::None);
    row("… CPU of the controllers", Unit::Seconds, "cpu", Target::None);
    row("… API calls an object", Unit::Each, "calls", Target::None);
    row("… no-change passes over all, asked for at once", Unit::Seconds, "idle", Target::AtMost(5.0));
    row("… API calls an object in it", Unit::Each, "idle calls", Target::AtMost(0.1));
    row("… API writes in it", Unit::Count, "idle writes", Target::AtMost(0.0));
    row("… API calls an object in an interval without a change", Unit::Each, "interval calls", Target::AtMost(0.1));
    row("… CPU of an interval of 120 s", Unit::Seconds, "interval cpu", Target::None);
    row("… a source changes one object: request to its 100 applied", Unit::Seconds, "change", Target::None);
}

fn larder_kustomizations(
    measured: &mut Measured,
    folder: &Path,
    server: &ApiServer,
    watched: &Watched,
    registry: &DockerRegistry,
) {
    let data = folder.join("data");
    std::fs::create_dir(&data).expect("folder");
    let since = server.now();
    let daemon = Daemon::start_on(&data, &server.kubeconfig("larder"));
    let peak = Peak::of(daemon.pid());
    let done = watched.wait(OBJECTS, LIMIT, is_applied);
    measured.add("exec", (done - daemon.started).as_secs_f64());
    measured.add("cpu", cpu_seconds(daemon.pid()));
    server.wait_quiet();
    measured.add("memory", peak.finish());
    let calls = server.calls(since);
    eprintln!("  Larder's first apply: {}", counted(&calls));
    measured.add("calls", per_object(calls.len() as f64));

    let since = server.now();
    measured.add("idle", pass_over_all(&daemon));
    let calls = server.calls(since);
    eprintln!("  Larder's no-change passes at once: {}", counted(&calls));
    measured.add("idle calls", per_object(calls.len() as f64));
    measured.add("idle writes", writes(&calls));

    let (since, cpu, begin) = (server.now(), cpu_seconds(daemon.pid()), Instant::now());
    passes(&daemon, "Kustomization", OBJECTS);
    let calls = server.calls(since);
    eprintln!("  Larder's interval: {:.0} s, {}", begin.elapsed().as_secs_f64(), counted(&calls));
    measured.add("interval calls", per_object(calls.len() as f64));
    let share = INTERVAL.as_secs_f64() / begin.elapsed().as_secs_f64();
    measured.add("interval cpu", (cpu_seconds(daemon.pid()) - cpu) * share);
    source_change(measured, server, watched, registry, "larder");
}

/// A pass over every Kustomization, all asked for at once; the seconds until the last has ended.
fn pass_over_all(daemon: &Daemon) -> f64 {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..OBJECTS {
            scope.spawn(move || {
                let path = format!("/v1/reconcile?kind=Kustomization&namespace=default&name=app-{number}");
                let answer = Client::new(&daemon.admin).send("POST", &path, &[], &[]);
                assert_eq!(answer.status, 200, "{}", answer.text());
            });
        }
    });
    begin.elapsed().as_secs_f64()
}

fn flux_kustomizations(
    measured: &mut Measured,
    folder: &Path,
    server: &ApiServer,
    watched: &Watched,
    registry: &DockerRegistry,
) {
    let sources = server.watch("source.toolkit.fluxcd.io", "OCIRepository", "ocirepositories");
    let since = server.now();
    let source = source_controller(server, folder);
    // Its start is not held against the other one.
    sources.wait(SOURCES, LIMIT, is_ready);
    let started = Instant::now();
    let controller = server.controller("kustomize-controller", &flags());
    let pids = [source.0.id(), controller.0.id()];
    let cpu = || pids.iter().map(|pid| cpu_seconds(*pid)).sum::<f64>();
    let peaks = pids.map(Peak::of);
    let done = watched.wait(OBJECTS, LIMIT, is_applied);
    measured.add("exec", (done - started).as_secs_f64());
    measured.add("cpu", cpu());
    // It may be in its next interval already, in which it is never quiet.
    std::thread::sleep(Duration::from_secs(1));
    measured.add("memory", peaks.map(Peak::finish).iter().sum());
    let calls = server.calls(since);
    eprintln!("  Flux's first apply: {}", counted(&calls));
    measured.add("calls", per_object(calls.len() as f64));
    let (since, before) = (server.now(), cpu());
    std::thread::sleep(INTERVAL);
    let calls = server.calls(since);
    eprintln!("  Flux's interval: {}", counted(&calls));
    measured.add("interval calls", per_object(calls.len() as f64));
    measured.add("interval cpu", cpu() - before);
    source_change(measured, server, watched, registry, "flux");
}

/// One source gets a new artifact in which one ConfigMap is another, and is asked to look.
fn source_change(
    measured: &mut Measured,
    server: &ApiServer,
    watched: &Watched,
    registry: &DockerRegistry,
    whose: &str,
) {
    let before = watched.text("app-0", "/status/lastAppliedRevision");
    assert!(!before.is_empty(), "app-0 is applied");
    Client::new(&registry.host).push_artifact("fleet-0", "latest", &fleet(0, unique()));
    let (since, begin) = (server.now(), Instant::now());
    server.request(&format!("{REPOSITORIES}/fleet-0"), whose);
    let changed = |object: &Value| {
        let number =
            object["metadata"]["name"].as_str().and_then(|name| name.strip_prefix("app-")?.parse::<usize>().ok());
        number.is_some_and(|n| n % SOURCES == 0) && object["status"]["lastAppliedRevision"] != *before
    };
    measured.add("change", (watched.wait(OBJECTS / SOURCES, LIMIT, changed) - begin).as_secs_f64());
    eprintln!("  {whose}'s change: {}", counted(&server.calls(since)));
}
