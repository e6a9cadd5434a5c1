//! `larder config schema|check`

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;

use super::output::{self, DocumentFormat, Format};
use crate::config;

/// The configuration file of `larder serve`
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  larder config check /etc/larder/larder.yaml")]
pub enum Command {
    /// Print its JSON schema
    #[command(after_help = "Example:\n  larder config schema > larder.schema.json")]
    Schema {
        /// How to print
        #[arg(short, long, value_enum, default_value_t = DocumentFormat::Json)]
        output: DocumentFormat,
    },
    /// Check a file, and the files that it names: what is wrong, and where
    #[command(
        after_help = "Exit 1 if `larder serve` would not start with it.\n\nExamples:\n  larder config check /etc/larder/larder.yaml\n  larder config check larder.yaml -o json"
    )]
    Check {
        /// The file
        file: PathBuf,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
}

/// Runs the command.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Schema { output } => {
            output::print_document(&config::schema(), output.into())?;
        }
        Command::Check { file, output } => {
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let result = config::check_with_files(&text).map_err(|errors| errors.of(&file));
            if output != Format::Table {
                let wrong = result.as_ref().err().map_or(&[][..], |errors| &errors.errors);
                let wrong: Vec<_> = wrong.iter().map(|e| json!({ "line": e.line, "message": e.message })).collect();
                output::print_document(&json!({ "file": file, "valid": result.is_ok(), "errors": wrong }), output)?;
            }
            result?;
            if output == Format::Table {
                output::print(&format!("{} is a valid configuration\n", file.display()))?;
            }
        }
    }
    Ok(())
}
