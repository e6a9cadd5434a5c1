//! Logs: one line an event, to stderr, as text for people or as JSON for collectors. Stdout belongs to what a
//! command prints.
//!
//! [`init`] is called once, by the binary, before anything is logged; the library only emits. Levels follow
//! `LARDER_LOG`, in the directives of tracing's `EnvFilter` (`debug`, `larder::server=trace,info`), which the caller
//! reads: nothing here looks at the environment.

use std::io::{self, IsTerminal as _, Write};

use schemars::JsonSchema;
use serde::Deserialize;
use tracing_subscriber::{EnvFilter, filter::ParseError, fmt};

/// What a log line looks like: `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level directives do not parse.
    #[error("log level {directives:?} is not understood; write for example \"info\" or \"larder=debug,info\"")]
    Level {
        /// What was given.
        directives: String,
        /// Why.
        #[source]
        source: ParseError,
    },
    /// Something else in this process had set up logging before.
    #[error("logging is already set up in this process")]
    Twice,
}

/// The default level: what an operator wants to see of a daemon that works. What the client of the API server logs as an
/// error is returned to its caller too, who knows whether it is one.
pub const DEFAULT_LEVEL: &str = "info,kube_client=off,kube_runtime=off";

/// Parses level directives; empty or none is [`DEFAULT_LEVEL`].
fn filter(directives: Option<&str>) -> Result<EnvFilter, LogError> {
    let directives = directives.map(str::trim).filter(|d| !d.is_empty()).unwrap_or(DEFAULT_LEVEL);
    EnvFilter::builder()
        .parse(directives)
        .map_err(|source| LogError::Level { directives: directives.to_string(), source })
}

/// Sets up logging for this process; `level` is what `LARDER_LOG` holds.
pub fn init(format: LogFormat, level: Option<&str>) -> Result<(), LogError> {
    // A line that cannot be written is lost: to tell of that on stderr, as it would by itself, panics.
    let builder = fmt().with_env_filter(filter(level)?).with_writer(io::stderr).log_internal_errors(false);
    match format {
        LogFormat::Text => {
            builder.with_writer(|| OneLine(io::stderr())).with_ansi(io::stderr().is_terminal()).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    }
    .map_err(|_| LogError::Twice)
}

/// Writes an event, which comes as one piece with a line's end, as one line: what it quotes (a kustomize's complaint, an
/// API server's message) may have several.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let (text, end) = match event.split_last() {
            Some((b'\n', text)) => (text, &b"\n"[..]),
            _ => (event, &b""[..]),
        };
        if !text.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            self.0.write_all(event)?;
            return Ok(event.len());
        }
        let mut line = Vec::with_capacity(event.len() + 16);
        for byte in text {
            match byte {
                b'\n' => line.extend_from_slice(b"\\n"),
                b'\r' => line.extend_from_slice(b"\\r"),
                byte => line.push(*byte),
            }
        }
        line.extend_from_slice(end);
        self.0.write_all(&line)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        for (event, line) in [
            ("a b\n", "a b\n"),
            ("a\nb\r\nc\n", "a\\nb\\r\\nc\n"),
            ("a\n\n", "a\\n\n"),
            ("a", "a"),
            ("\n", "\n"),
            ("", ""),
        ] {
            let mut written = Vec::new();
            OneLine(&mut written).write_all(event.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(written).unwrap(), line, "{event:?}");
        }
    }

    #[test]
    fn refuses_a_level_it_does_not_know() {
        for good in [None, Some(""), Some(" "), Some("debug"), Some("larder::server=trace,info")] {
            assert!(filter(good).is_ok(), "{good:?}");
        }
        assert!(matches!(filter(Some("larder=loud")), Err(LogError::Level { .. })));
    }
}
