//! What commands print: tables and JSON on stdout, progress on a terminal's stderr.

use std::{
    fmt::Display,
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
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
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot write to stdout"),
        _ => Ok(()),
    }
}

/// Says a line on stderr, beside what the command prints. Where nobody can read it, it is lost: no error.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
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

/// What a bar shows: what is done, how far it is, how fast.
const BAR: &str = "{spinner} {msg} [{wide_bar}] {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}";
/// How often a bar is drawn.
const DRAWN: Duration = Duration::from_millis(100);

/// Does the work; meanwhile the spinner is a bar of the bytes done, of `total`.
pub async fn with_bar<T>(
    spinner: &ProgressBar,
    total: u64,
    done: impl Fn() -> u64,
    work: impl Future<Output = T>,
) -> T {
    let mut work = Box::pin(work);
    if spinner.is_hidden() {
        return work.await;
    }
    if let Ok(style) = ProgressStyle::with_template(BAR) {
        spinner.set_style(style.progress_chars("=> "));
    }
    spinner.set_length(total);
    let result = loop {
        spinner.set_position(done().min(total));
        tokio::select! {
            result = &mut work => break result,
            () = tokio::time::sleep(DRAWN) => {}
        }
    };
    spinner.set_position(done().min(total));
    spinner.set_style(ProgressStyle::default_spinner());
    result
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        sync::{Arc, Mutex},
    };

    use indicatif::{ProgressDrawTarget, TermLike};

    use super::*;

    /// A terminal that keeps what is written.
    #[derive(Clone, Debug, Default)]
    struct Terminal(Arc<Mutex<String>>);

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            120
        }

        fn move_cursor_up(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> std::io::Result<()> {
            self.write_str(text)
        }

        fn write_str(&self, text: &str) -> std::io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }

        fn clear_line(&self) -> std::io::Result<()> {
            self.write_str("\n")
        }

        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_bar_shows_how_much_is_done_of_how_much() {
        let terminal = Terminal::default();
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal.clone()), 255);
        let bar = ProgressBar::with_draw_target(None, target).with_message("pulling");
        let done = Cell::new(0);
        let work = async {
            for _ in 0..3 {
                tokio::time::sleep(2 * DRAWN).await;
                done.set(done.get() + 1_000_000);
            }
            7
        };
        assert_eq!(with_bar(&bar, 3_000_000, || done.get(), work).await, 7);
        bar.set_message("unpacking");
        let shown = terminal.0.lock().unwrap().clone();
        for part in ["pulling [=====", "1.00 MB of 3.00 MB", "2.00 MB of 3.00 MB"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let last = shown.lines().last().unwrap();
        assert!(last.contains("unpacking") && !last.contains("MB"), "{shown}");
    }
}
