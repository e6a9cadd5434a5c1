//! `larder config schema|check`

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use crate::config;

/// The configuration file of `larder serve`
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print its JSON schema
    #[command(after_help = "Example:\n  larder config schema > larder.schema.json")]
    Schema,
    /// Check a file: every mistake with its line
    #[command(after_help = "Example:\n  larder config check /etc/larder/larder.yaml")]
    Check {
        /// The file
        file: PathBuf,
    },
}

/// Runs the command.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Schema => {
            super::output::print_document(&config::schema(), super::output::Format::Json)?;
        }
        Command::Check { file } => {
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            if let Err(error) = config::check(&text) {
                bail!("{}: {error}", file.display());
            }
            println!("{} is a valid configuration", file.display());
        }
    }
    Ok(())
}
