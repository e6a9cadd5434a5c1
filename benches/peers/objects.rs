//! A thousand objects: how soon they are Ready, with how much memory, and what an interval without news costs.

use std::{collections::BTreeMap, path::Path, time::Duration};

use serde_json::{Value, json};

use crate::{
    Options,
    http::Client,
    programs::{Daemon, DockerRegistry, Peak, cpu_seconds, find},
    support::{folder, small_layer},
    table::{Table, Target, Unit, median},
};

const OBJECTS: usize = 1000;
const REFERENCES: usize = 100;
const INTERVAL: u64 = 10;
/// Requests are counted over so many intervals, for each has its own jitter.
const INTERVALS: u64 = 3;

pub fn run(options: &Options, table: &mut Table) {
    if find("docker-registry").is_none() {
        return table.skipped("1,000 objects", "docker-registry is not installed");
    }
    let folder = folder();
    let Some(registry) = DockerRegistry::start(&folder.join("registry")) else { return };
    let mut client = Client::new(&registry.host);
    for number in 0..OBJECTS {
        client.push_artifact(&format!("apps/app-{number}"), "latest", &small_layer(number));
    }
    first_pass(options, table, &folder, &registry);
    no_change(table, &folder, &registry);
}

fn object(number: usize, repository: usize, host: &str, interval: &str) -> Value {
    json!({
        "apiVersion": "source.toolkit.fluxcd.io/v1",
        "kind": "OCIRepository",
        "metadata": { "name": format!("o-{number}"), "namespace": "default" },
        "spec": {
            "url": format!("oci://{host}/apps/app-{repository}"),
            "insecure": true,
            "interval": interval,
            "ref": { "tag": "latest" },
        },
    })
}

fn write(folder: &Path, objects: impl Iterator<Item = Value>) {
    std::fs::create_dir_all(folder).expect("folder");
    let text: Vec<String> = objects.map(|object| object.to_string()).collect();
    std::fs::write(folder.join("objects.yaml"), text.join("\n---\n")).expect("objects");
}

/// Everything new: each object pulls an artifact of its own.
fn first_pass(options: &Options, table: &mut Table, folder: &Path, registry: &DockerRegistry) {
    let objects = folder.join("own");
    write(&objects, (0..OBJECTS).map(|n| object(n, n, &registry.host, "1h")));
    let (mut times, mut peaks, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    // The first turn warms the registry and does not count.
    for turn in 0..=options.rounds(3) {
        let data = folder.join(format!("data-{turn}"));
        std::fs::create_dir(&data).expect("folder");
        let daemon = Daemon::start(&data, Some(&objects));
        let peak = Peak::of(daemon.pid());
        daemon.wait_ready(OBJECTS, Duration::from_millis(100));
        let time = daemon.ready.elapsed().as_secs_f64();
        let used = cpu_seconds(daemon.pid());
        std::thread::sleep(Duration::from_millis(300));
        let peak = peak.finish();
        eprintln!("  turn {turn}: {time:.2} s, {peak:.1} MiB, {used:.2} s of CPU");
        if turn > 0 {
            times.push(time);
            peaks.push(peak);
            cpu.push(used);
        }
    }
    table.figure(
        "1,000 objects, own artifacts: ready line to all Ready",
        Unit::Seconds,
        median(&times),
        Target::AtMost(4.0),
    );
    table.figure("… peak RssAnon", Unit::Mebibytes, median(&peaks), Target::AtMost(64.0));
    table.figure("… CPU of the whole run", Unit::Seconds, median(&cpu), Target::None);
}

/// Ten objects on each reference, nothing new.
fn no_change(table: &mut Table, folder: &Path, registry: &DockerRegistry) {
    let objects = folder.join("shared");
    write(&objects, (0..OBJECTS).map(|n| object(n, n % REFERENCES, &registry.host, &format!("{INTERVAL}s"))));
    let data = folder.join("data-shared");
    std::fs::create_dir(&data).expect("folder");
    let daemon = Daemon::start(&data, Some(&objects));
    daemon.wait_ready(OBJECTS, Duration::from_millis(250));
    // The first interval still has the burst of the start.
    std::thread::sleep(Duration::from_secs(INTERVAL));
    let before = requests(&daemon);
    let cpu = cpu_seconds(daemon.pid());
    std::thread::sleep(Duration::from_secs(INTERVAL * INTERVALS));
    let cpu = (cpu_seconds(daemon.pid()) - cpu) / INTERVALS as f64;
    let after = requests(&daemon);
    let sent: BTreeMap<&String, f64> =
        after.iter().map(|(kind, n)| (kind, n - before.get(kind).unwrap_or(&0.0))).filter(|(_, n)| *n > 0.0).collect();
    let heads = sent.get(&"manifest_head".to_owned()).copied().unwrap_or(0.0) / INTERVALS as f64;
    let others: f64 = sent.iter().filter(|(kind, _)| kind.as_str() != "manifest_head").fold(0.0, |sum, (_, n)| sum + n);
    let what = "1,000 objects on 100 references: manifest_head an interval";
    table.figure(what, Unit::Count, heads, Target::Within(REFERENCES as f64, 6.0));
    table.figure("… other upstream requests", Unit::Count, others, Target::AtMost(0.0));
    table.figure(&format!("… CPU of an interval of {INTERVAL} s"), Unit::Seconds, cpu, Target::AtMost(0.3));
}

/// Upstream requests by kind.
fn requests(daemon: &Daemon) -> BTreeMap<String, f64> {
    let text = String::from_utf8(Client::new(&daemon.admin).get("/metrics")).expect("UTF-8");
    let mut kinds = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("larder_upstream_requests_total{")) {
        let kind = line.split("kind=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a kind");
        let figure: f64 = line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number");
        *kinds.entry(kind.to_owned()).or_default() += figure;
    }
    kinds
}
