//! containerd's pull of an image of eight layers: from docker-registry itself, and through Larder, cold and warm.
//!
//! `ctr --debug images pull` is what a user runs: resolve, all blobs at once into containerd's content store, unpack them,
//! which is the longest part of it. `content fetch` leaves that out, and so shows what a mirror in between costs where
//! nothing else takes time: upstream, mirror and client share the machine's cores, and no network holds any of them up.
//! Without `--debug` ctr shows its progress ten times a second, and ends with the tick after the last byte: a hundred
//! milliseconds more or less. containerd's store is in memory where the system has such a file system, since it syncs
//! every blob that it keeps.

use std::path::Path;

use serde_json::json;

use crate::{
    Options,
    containerd::Containerd,
    image::{layout, skopeo},
    programs::{Daemon, DockerRegistry, cpu_milliseconds, find, run as run_program},
    support::{folder, memory},
    table::{Ratio, Table, Target, Unit, timed},
};

const IMAGE: &str = "upstream.example/bench/image:latest";
const FETCH: [&str; 2] = ["content", "fetch"];
const PULL: [&str; 2] = ["images", "pull"];

pub fn run(options: &Options, table: &mut Table) {
    let what = "an image through the mirror by containerd";
    if ["containerd", "ctr", "skopeo", "docker-registry"].iter().any(|program| find(program).is_none()) {
        return table.skipped(what, "containerd, ctr, skopeo and docker-registry are not all installed");
    }
    if let Err(why) = measure(options, table) {
        table.skipped(what, &why);
    }
}

fn measure(options: &Options, table: &mut Table) -> Result<(), String> {
    let Some(layout) = layout(table) else { return Ok(()) };
    let folder = folder();
    let registry = DockerRegistry::start(&folder.join("registry")).ok_or("docker-registry does not start")?;
    let from = format!("oci:{}:latest", layout.display());
    skopeo(&from, &format!("docker://{}/bench/image:latest", registry.host))?;
    let containerd = Containerd::start(&memory())?;
    let direct = hosts(&folder, "direct", &registry.host);
    let bytes = size(&layout.join("blobs/sha256"));

    // By a new daemon, which ends with it.
    let cold = |name: &str, command| {
        let daemon = mirror(&folder, name, &registry.host);
        let empty = hosts(&folder, &format!("{name}-hosts"), &daemon.registry);
        pull(&containerd, command, &empty, daemon.pid())
    };

    // Holds the image after its first pull.
    let settled = mirror(&folder, "settled", &registry.host);
    let through = hosts(&folder, "settled-hosts", &settled.registry);
    pull(&containerd, FETCH, &direct, registry.pid())?;
    pull(&containerd, FETCH, &through, settled.pid())?;
    let fetched = settled.metric("larder_upstream_bytes_total", &[]);
    let (mut directs, mut colds, mut warms) = (Vec::new(), Vec::new(), Vec::new());
    let turns = options.rounds(15);
    for turn in 0..turns {
        colds.push(cold(&format!("cold-{turn}"), FETCH)?);
        directs.push(pull(&containerd, FETCH, &direct, registry.pid())?);
        warms.push(pull(&containerd, FETCH, &through, settled.pid())?);
    }
    assert_eq!(settled.metric("larder_upstream_bytes_total", &[]), fetched, "a warm pull asks for no blob");
    let served = settled.metric("larder_served_bytes_total", &[]);
    assert!(served >= (1 + turns) as f64 * bytes, "{served} bytes went through the mirror, an image has {bytes}");
    let row = |table: &mut Table, what: &str, larder: &[Pull], direct: &[Pull], figure: fn(&Pull) -> f64, most: f64| {
        let (larder, direct): (Vec<f64>, Vec<f64>) =
            (larder.iter().map(figure).collect(), direct.iter().map(figure).collect());
        let (peer, target) = (("docker-registry itself", &direct[..]), Target::RatioAtMost(most));
        table.compare(what, Unit::Milliseconds, &larder, peer, Ratio::LarderByPeer, target);
    };
    row(table, "containerd fetches an image of 8 layers, cold", &colds, &directs, |pull| pull.time, 1.15);
    row(table, "… warm", &warms, &directs, |pull| pull.time, 1.0);
    row(table, "… CPU of the server for a warm fetch", &warms, &directs, |pull| pull.cpu, 0.25);

    let (mut directs, mut colds) = (Vec::new(), Vec::new());
    for turn in 0..options.rounds(5) {
        colds.push(cold(&format!("unpacked-{turn}"), PULL)?);
        directs.push(pull(&containerd, PULL, &direct, registry.pid())?);
    }
    row(table, "containerd pulls it, which is to unpack it too, cold", &colds, &directs, |pull| pull.time, 1.15);
    Ok(())
}

/// One pull, in milliseconds.
struct Pull {
    time: f64,
    /// Of the server.
    cpu: f64,
}

/// A daemon with an empty store that mirrors the registry.
pub fn mirror(folder: &Path, name: &str, upstream: &str) -> Daemon {
    let config = folder.join(format!("{name}.yaml"));
    let upstreams = json!([{ "host": "upstream.example", "url": format!("http://{upstream}") }]);
    std::fs::write(&config, json!({ "upstreams": upstreams }).to_string()).expect("a configuration");
    let data = folder.join(name);
    std::fs::create_dir(&data).expect("folder");
    Daemon::start_with(&data, None, Some(&config))
}

/// A `--hosts-dir` by which the image comes from `host` and from nowhere else.
fn hosts(folder: &Path, name: &str, host: &str) -> String {
    let hosts = folder.join(name);
    let of = hosts.join("upstream.example");
    std::fs::create_dir_all(&of).expect("folder");
    let text =
        format!("server = \"http://{host}\"\n[host.\"http://{host}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
    std::fs::write(of.join("hosts.toml"), text).expect("hosts.toml");
    hosts.display().to_string()
}

/// One pull by this command of ctr's, after which containerd holds nothing of it.
fn pull(containerd: &Containerd, command: [&str; 2], hosts: &str, server: u32) -> Result<Pull, String> {
    let mut fetch = containerd.ctr();
    fetch.arg("--debug").args(command).args(["--hosts-dir", hosts, IMAGE]);
    let before = cpu_milliseconds(server);
    let (time, done) = timed(|| run_program(&mut fetch));
    let cpu = cpu_milliseconds(server) - before;
    done?;
    run_program(containerd.ctr().args(["images", "rm", "--sync", IMAGE]))?;
    Ok(Pull { time, cpu })
}

/// The bytes of the files in a folder.
fn size(folder: &Path) -> f64 {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    entries.map(|entry| entry.metadata().expect("a file").len()).sum::<u64>() as f64
}
