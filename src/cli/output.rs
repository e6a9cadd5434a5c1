//! What commands print: tables and JSON on stdout, progress on a terminal's stderr.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use indicatif::ProgressBar;
use serde::Serialize;

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
}

/// `-o` of what is no table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DocumentFormat {
    /// Documents.
    #[default]
    Yaml,
    /// One document: several are a List.
    Json,
}

impl From<DocumentFormat> for Format {
    fn from(format: DocumentFormat) -> Self {
        match format {
            DocumentFormat::Yaml => Self::Yaml,
            DocumentFormat::Json => Self::Json,
        }
    }
}

/// Prints `value` as one JSON or YAML document.
pub fn print_document(value: &impl Serialize, format: Format) -> anyhow::Result<()> {
    let text = match format {
        Format::Yaml => crate::apply::yaml_text::write(&serde_json::to_value(value)?),
        _ => serde_json::to_string_pretty(value)? + "\n",
    };
    print(&text)
}

/// Writes to stdout. A reader that has gone away (`larder … | head`) has seen what it wanted: no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints rows under a header, columns aligned; control characters in foreign text are shown escaped.
pub fn print_table(header: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    let clean = |text: &str| -> String {
        text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
    };
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
    let width =
        |n: usize| rows.iter().map(|row| row[n].chars().count()).chain([header[n].len()]).max().unwrap_or_default();
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut all = String::new();
    let mut line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (n, cell) in cells.iter().enumerate() {
            text.push_str(cell);
            if n + 1 < cells.len() {
                text.extend(std::iter::repeat_n(' ', widths[n] + 3 - cell.chars().count()));
            }
        }
        all.push_str(text.trim_end());
        all.push('\n');
    };
    line(header.to_vec());
    for row in &rows {
        line(row.iter().map(String::as_str).collect());
    }
    print(&all)
}

/// A number of bytes for people: `5.7 MB`.
pub fn bytes(n: u64) -> String {
    indicatif::DecimalBytes(n).to_string()
}

/// A spinner with a message, shown on a terminal only; finish it with `finish_and_clear`.
pub fn spinner(message: impl Into<String>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner().with_message(message.into());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
