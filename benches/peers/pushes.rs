//! skopeo's push of an image of eight layers to an empty registry. Both sync what they take before they answer.

use crate::{
    Options,
    image::{layout, skopeo},
    programs::{Daemon, DockerRegistry, cpu_milliseconds, find},
    support::folder,
    table::{Ratio, Table, Target, Unit, timed},
};

pub fn run(options: &Options, table: &mut Table) {
    let what = "pushes by skopeo";
    if find("skopeo").is_none() || find("docker-registry").is_none() {
        return table.skipped(what, "skopeo and docker-registry are not both installed");
    }
    if let Err(why) = measure(options, table) {
        table.skipped(what, &why);
    }
}

fn measure(options: &Options, table: &mut Table) -> Result<(), String> {
    let Some(layout) = layout(table) else { return Ok(()) };
    let folder = folder();
    let from = format!("oci:{}:latest", layout.display());
    let (mut ours, mut theirs) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for turn in 0..options.rounds(5) {
        // New servers each time: skopeo remembers what a registry has, and mounts it from there.
        let data = folder.join(format!("larder-{turn}"));
        std::fs::create_dir(&data).expect("folder");
        let daemon = Daemon::start(&data, None);
        let (time, cpu) = push(&from, &daemon.registry, daemon.pid())?;
        ours.0.push(time);
        ours.1.push(cpu);
        drop(daemon);
        let registry = DockerRegistry::start(&folder.join(format!("registry-{turn}")));
        let registry = registry.ok_or("docker-registry does not start")?;
        let (time, cpu) = push(&from, &registry.host, registry.pid())?;
        theirs.0.push(time);
        theirs.1.push(cpu);
    }
    for (what, ours, theirs) in
        [("skopeo pushes an image of 8 layers", &ours.0, &theirs.0), ("… CPU of the server", &ours.1, &theirs.1)]
    {
        let peer = ("docker-registry", &theirs[..]);
        table.compare(what, Unit::Milliseconds, ours, peer, Ratio::LarderByPeer, Target::RatioAtMost(1.0));
    }
    Ok(())
}

/// The milliseconds of one push, and those of the server's CPU.
fn push(from: &str, host: &str, server: u32) -> Result<(f64, f64), String> {
    let before = cpu_milliseconds(server);
    let (time, done) = timed(|| skopeo(from, &format!("docker://{host}/bench/image:latest")));
    let cpu = cpu_milliseconds(server) - before;
    done?;
    Ok((time, cpu))
}
