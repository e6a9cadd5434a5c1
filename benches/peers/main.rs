//! Larder beside what a user would pick instead, side by side in one run:
//!
//! ```text
//! cargo bench --bench peers                        # everything that is installed
//! cargo bench --bench peers -- --only serve        # one group; may be repeated
//! cargo bench --bench peers -- --million           # also a start with 1,000,000 blobs
//! cargo bench --bench peers -- --plot FILE         # the rows that have a peer and a target, also as an SVG
//! ```
//!
//! Two that are compared take turns; a figure is the median of its turns, a ratio the median of the turns' ratios, so what
//! else the machine does meanwhile meets both. `LARDER_BIN` names another build of the daemon to measure.

#[path = "../support/api_server.rs"]
mod api_server;
mod build;
mod cluster;
#[path = "../support/containerd.rs"]
mod containerd;
mod guarded;
#[path = "../support/http.rs"]
mod http;
mod image;
mod objects;
mod plot;
mod prefetch;
#[path = "../support/programs.rs"]
mod programs;
mod pulls;
mod pushes;
mod readers;
mod serve;
mod stampede;
mod start;
#[path = "../support/mod.rs"]
mod support;
mod table;
#[path = "../support/upstream.rs"]
mod upstream;
mod versions;

use std::time::Instant;

use table::Table;

type Group = (&'static str, fn(&Options, &mut Table));

const GROUPS: [Group; 13] = [
    ("serve", serve::run),
    ("cold", serve::run_cold),
    ("objects", objects::run),
    ("cluster", cluster::run),
    ("build", build::run),
    ("image", image::run),
    ("versions", versions::run),
    ("start", start::run),
    ("stampede", stampede::run),
    ("readers", readers::run),
    ("pulls", pulls::run),
    ("pushes", pushes::run),
    ("prefetch", prefetch::run),
];

/// What was asked for.
pub struct Options {
    million: bool,
    rounds: Option<usize>,
}

impl Options {
    /// How many turns each takes.
    pub fn rounds(&self, default: usize) -> usize {
        self.rounds.unwrap_or(default)
    }
}

fn main() {
    let mut options = Options { million: false, rounds: None };
    let mut only = Vec::new();
    let mut plot = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--only" => only.extend(arguments.next()),
            "--plot" => plot = arguments.next(),
            "--million" => options.million = true,
            "--rounds" => options.rounds = arguments.next().and_then(|n| n.parse().ok()),
            // What cargo adds.
            "--bench" => {}
            "--test" => return,
            other => {
                eprintln!("{other}? --only GROUP, --rounds N, --million, --plot FILE; the groups are {}", names());
                std::process::exit(2);
            }
        }
    }
    if let Some(unknown) = only.iter().find(|name| GROUPS.iter().all(|(group, _)| group != name)) {
        eprintln!("no group {unknown}; there are {}", names());
        std::process::exit(2);
    }
    let _folders = support::Folders;
    let mut table = Table::default();
    for (name, run) in GROUPS {
        if only.is_empty() || only.iter().any(|wanted| wanted == name) {
            let begin = Instant::now();
            eprintln!("{name} …");
            run(&options, &mut table);
            eprintln!("{name}: {:.0} s", begin.elapsed().as_secs_f64());
        }
    }
    table.print();
    if let Some(file) = plot {
        std::fs::write(&file, plot::svg(&table.bars())).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}

fn names() -> String {
    GROUPS.map(|(name, _)| name).join(", ")
}
