//! Logs: one line an event, to stderr, as text for people or as JSON for collectors. Stdout belongs to what a
//! command prints.
//!
//! [`init`] is called once, by the binary, before anything is logged; the library only emits. Levels follow
//! `LARDER_LOG`, in the directives of tracing's `EnvFilter` (`debug`, `larder::server=trace,info`), which the caller
//! reads: nothing here looks at the environment.

use std::io::IsTerminal as _;

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
    let builder = fmt().with_env_filter(filter(level)?).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    }
    .map_err(|_| LogError::Twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_level_it_does_not_know() {
        for good in [None, Some(""), Some(" "), Some("debug"), Some("larder::server=trace,info")] {
            assert!(filter(good).is_ok(), "{good:?}");
        }
        assert!(matches!(filter(Some("larder=loud")), Err(LogError::Level { .. })));
    }
}
