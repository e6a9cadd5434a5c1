//! Sixty versions of one configuration: what the store counts beside what is distinct in them.

use std::{collections::BTreeMap, time::Duration};

use larder::digest::Digest;
use rayon::prelude::*;
use serde_json::json;

use crate::{
    Options,
    http::Client,
    programs::{Daemon, DockerRegistry, find},
    support::{flux_artifact, folder, gzip, kube_prometheus, tar_of},
    table::{Ratio, Table, Target, Unit},
};

pub fn run(_: &Options, table: &mut Table) {
    if find("docker-registry").is_none() {
        return table.skipped("60 versions", "docker-registry is not installed");
    }
    let folder = folder();
    let Some(registry) = DockerRegistry::start(&folder.join("registry")) else { return };
    let versions = kube_prometheus();
    let layers: Vec<Vec<u8>> = versions.par_iter().map(|version| gzip(&tar_of(version))).collect();
    let mut client = Client::new(&registry.host);
    let (mut blobs, mut files, mut documents) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    let mut logical = 0u64;
    for (number, (version, layer)) in versions.iter().zip(&layers).enumerate() {
        client.push_artifact("kp", &format!("v{number}"), layer);
        let manifest = flux_artifact(layer).1;
        for bytes in [layer, &manifest] {
            blobs.insert(Digest::sha256(bytes), bytes.len() as u64);
        }
        for content in version.values() {
            files.insert(Digest::sha256(content), content.len() as u64);
            logical += content.len() as u64;
        }
        documents.push(
            json!({
                "apiVersion": "source.toolkit.fluxcd.io/v1",
                "kind": "OCIRepository",
                "metadata": { "name": format!("v{number}"), "namespace": "default" },
                "spec": {
                    "url": format!("oci://{}/kp", registry.host),
                    "insecure": true,
                    "interval": "1h",
                    "ref": { "tag": format!("v{number}") },
                },
            })
            .to_string(),
        );
    }
    let (data, objects) = (folder.join("data"), folder.join("objects"));
    std::fs::create_dir(&data).expect("folder");
    std::fs::create_dir(&objects).expect("folder");
    std::fs::write(objects.join("objects.yaml"), documents.join("\n---\n")).expect("objects");
    let daemon = Daemon::start(&data, Some(&objects));
    daemon.wait_ready(versions.len(), Duration::from_millis(100));
    let time = daemon.ready.elapsed().as_secs_f64();
    let kept = daemon.metric("larder_store_bytes", &["kind=\"blob\""])
        + daemon.metric("larder_store_bytes", &["kind=\"file\""]);
    let distinct = (blobs.values().sum::<u64>() + files.values().sum::<u64>()) as f64;
    let all = blobs.values().sum::<u64>() + logical;
    let count = versions.len();
    let what = format!("{count} versions of kube-prometheus: larder_store_bytes");
    let target = if kept == distinct { Target::RatioAtMost(1.0) } else { Target::Within(distinct, 0.0) };
    table.compare(&what, Unit::Bytes, &[kept], ("distinct blobs + files", &[distinct]), Ratio::LarderByPeer, target);
    let peer = ("all files and blobs", &[all as f64 / f64::from(1 << 20)][..]);
    let kept = [kept / f64::from(1 << 20)];
    table.compare("… beside every version on its own", Unit::Mebibytes, &kept, peer, Ratio::LarderByPeer, Target::None);
    table.figure(&format!("… ready line to all {count} Ready"), Unit::Seconds, time, Target::None);
}
