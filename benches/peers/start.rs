//! Starting with a full store: how soon the first hit is answered.

use std::{path::Path, time::Duration};

use larder::digest::Digest;
use rayon::prelude::*;

use crate::{
    Options,
    http::Client,
    programs::{Daemon, rss_anon},
    support::{folder, noise},
    table::{Table, Target, Unit, median, milliseconds},
};

pub fn run(options: &Options, table: &mut Table) {
    measure(options, table, 100_000, "100,000");
    if options.million {
        measure(options, table, 1_000_000, "1,000,000");
    } else {
        table.skipped("start with 1,000,000 blobs", "only with --million: it makes as many files");
    }
}

fn measure(options: &Options, table: &mut Table, count: u64, name: &str) {
    let folder = folder();
    let data = folder.join("data");
    std::fs::create_dir(&data).expect("folder");
    let wanted: Vec<String> = {
        // The store makes its own shape, and blobs that somebody may ask for.
        let daemon = Daemon::start(&data, None);
        let mut client = Client::new(&daemon.registry);
        (0..16).map(|n| client.push_blob("bench", &noise(4096, n))).collect()
    };
    fill(&data.join("blobs/sha256"), count - wanted.len() as u64);
    let (mut times, mut anonymous) = (Vec::new(), Vec::new());
    for (_, digest) in (0..options.rounds(9)).zip(wanted.iter().cycle()) {
        let daemon = Daemon::start(&data, None);
        let body = Client::new(&daemon.registry).get(&format!("/v2/bench/blobs/{digest}"));
        times.push(milliseconds(daemon.started.elapsed()));
        assert_eq!(body.len(), 4096);
        std::thread::sleep(Duration::from_millis(500));
        anonymous.push(rss_anon(daemon.pid()));
    }
    let what = format!("start with {name} blobs: exec to first hit");
    table.figure(&what, Unit::Milliseconds, median(&times), Target::AtMost(200.0));
    table.figure("… RssAnon", Unit::Mebibytes, median(&anonymous), Target::AtMost(20.0));
}

/// Writes files of 16 bytes under their right names.
fn fill(blobs: &Path, count: u64) {
    for prefix in 0..=255u8 {
        std::fs::create_dir_all(blobs.join(format!("{prefix:02x}"))).expect("folder");
    }
    (0..count).into_par_iter().for_each(|number| {
        let bytes = format!("{number:016x}");
        let hex = Digest::sha256(bytes.as_bytes()).hex();
        std::fs::write(blobs.join(&hex[..2]).join(&hex), bytes).expect("a blob");
    });
}
