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
    /// Check a file: what is wrong in it, and where
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
            let config = config::check(&text).map_err(|errors| errors.of(&file))?;
            let unsupported = config.unsupported();
            if !unsupported.is_empty() {
                bail!("{}: valid, but this version does not do: {}", file.display(), unsupported.join(", "));
            }
            super::output::print(&format!("{} is a valid configuration\n", file.display()))?;
        }
    }
    Ok(())
}
