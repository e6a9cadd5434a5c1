//! The table that comes out, and the figures in it.

use std::time::{Duration, Instant};

use crate::plot::Bar;

/// What a row is measured against.
#[derive(Clone, Copy)]
pub enum Target {
    /// The ratio is at least this.
    RatioAtLeast(f64),
    /// The ratio is at most this.
    RatioAtMost(f64),
    /// Larder's own figure is at most this.
    AtMost(f64),
    /// Larder's own figure is within so many hundredths of this.
    Within(f64, f64),
    /// For information.
    None,
}

struct Row {
    what: String,
    larder: String,
    peer: String,
    ratio: Option<f64>,
    target: Target,
    met: Option<bool>,
}

/// Rows, and what was left out.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
    notes: Vec<String>,
}

/// In which unit a figure is.
#[derive(Clone, Copy)]
pub enum Unit {
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Requests a second.
    PerSecond,
    /// MiB.
    Mebibytes,
    /// Bytes.
    Bytes,
    /// A plain number.
    Count,
    /// How many there are of one thing for each of another.
    Each,
}

impl Unit {
    fn show(self, figure: f64) -> String {
        match self {
            Self::Milliseconds if figure < 10.0 => format!("{figure:.2} ms"),
            Self::Milliseconds => format!("{figure:.0} ms"),
            Self::Seconds => format!("{figure:.2} s"),
            Self::PerSecond if figure < 1000.0 => format!("{figure:.1}/s"),
            Self::PerSecond => format!("{figure:.0}/s"),
            Self::Mebibytes => format!("{figure:.1} MiB"),
            Self::Bytes => format!("{figure:.0} B"),
            Self::Count => format!("{figure:.0}"),
            Self::Each => format!("{figure:.2}"),
        }
    }
}

impl Table {
    /// Larder's turns beside the peer's. `ratio` says what is divided: for times and for rates alike it is given as the
    /// target reads.
    pub fn compare(
        &mut self,
        what: &str,
        unit: Unit,
        larder: &[f64],
        peer: (&str, &[f64]),
        ratio: Ratio,
        target: Target,
    ) {
        let ratios: Vec<f64> = larder
            .iter()
            .zip(peer.1)
            .map(|(larder, peer)| match ratio {
                Ratio::LarderByPeer => larder / peer,
                Ratio::PeerByLarder => peer / larder,
            })
            .collect();
        let peer = format!("{}: {}", peer.0, unit.show(median(peer.1)));
        self.push(what, unit.show(median(larder)), peer, Some(median(&ratios)), target, median(larder));
    }

    /// A figure of Larder's alone.
    pub fn figure(&mut self, what: &str, unit: Unit, figure: f64, target: Target) {
        self.push(what, unit.show(figure), String::new(), None, target, figure);
    }

    /// Something that was not measured, and why.
    pub fn skipped(&mut self, what: &str, why: &str) {
        eprintln!("SKIPPED: {what}: {why}");
        self.notes.push(format!("skipped: {what}: {why}"));
    }

    /// Something that a reader of the table should know.
    pub fn note(&mut self, note: String) {
        eprintln!("{note}");
        self.notes.push(note);
    }

    /// The same, from groups of which each may be the first to know.
    pub fn note_once(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.note(note);
        }
    }

    fn push(&mut self, what: &str, larder: String, peer: String, ratio: Option<f64>, target: Target, figure: f64) {
        let met = match target {
            Target::RatioAtLeast(least) => ratio.map(|ratio| ratio >= least),
            Target::RatioAtMost(most) => ratio.map(|ratio| ratio <= most),
            Target::AtMost(most) => Some(figure <= most),
            Target::Within(wanted, percent) => Some((figure - wanted).abs() <= wanted * percent / 100.0),
            Target::None => None,
        };
        let row = Row { what: what.to_owned(), larder, peer, ratio, target, met };
        eprintln!("  {}", line(&row));
        self.rows.push(row);
    }

    /// Prints all of it as Markdown.
    pub fn print(&self) {
        println!("| what | Larder | peer | ratio | target | |\n| --- | --- | --- | --- | --- | --- |");
        for row in &self.rows {
            println!("{}", line(row));
        }
        for note in &self.notes {
            println!("\n{note}");
        }
        let missed = self.rows.iter().filter(|row| row.met == Some(false)).count();
        println!("\n{} rows, {missed} targets missed", self.rows.len());
    }
}

impl Table {
    /// The rows that have a peer and a target, as bars: a row that goes on the one above says so.
    pub fn bars(&self) -> Vec<Bar> {
        let mut above = "";
        let mut bars = Vec::new();
        for row in &self.rows {
            let what = match row.what.strip_prefix("… ") {
                Some(rest) => format!("{above}: {rest}"),
                None => {
                    above = row.what.split([',', ':']).next().unwrap_or_default();
                    row.what.clone()
                }
            };
            let (Some(ratio), Some((peer, _))) = (row.ratio, row.peer.rsplit_once(": ")) else { continue };
            let (times, wanted) = match row.target {
                Target::RatioAtLeast(least) => (ratio, least),
                Target::RatioAtMost(most) => (1.0 / ratio, 1.0 / most),
                _ => continue,
            };
            bars.push(Bar { what, peer: peer.to_owned(), times, wanted });
        }
        bars
    }
}

fn line(row: &Row) -> String {
    let target = match row.target {
        Target::RatioAtLeast(least) => format!("≥ {least}"),
        Target::RatioAtMost(most) => format!("≤ {most}"),
        Target::AtMost(most) => format!("≤ {most}"),
        Target::Within(wanted, percent) => format!("{wanted} ± {percent} %"),
        Target::None => String::new(),
    };
    let ratio = row.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
    let met = row.met.map_or("", |met| if met { "met" } else { "**missed**" });
    format!("| {} | {} | {} | {ratio} | {target} | {met} |", row.what, row.larder, row.peer)
}

/// What is divided by what.
#[derive(Clone, Copy)]
pub enum Ratio {
    /// Larder's figure by the peer's.
    LarderByPeer,
    /// The peer's figure by Larder's.
    PeerByLarder,
}

/// The middle one.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// How many milliseconds `f` lasts, and what it gives.
pub fn timed<T>(f: impl FnOnce() -> T) -> (f64, T) {
    let begin = Instant::now();
    let value = f();
    (milliseconds(begin.elapsed()), value)
}

/// As a number.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
