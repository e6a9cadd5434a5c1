//! `larder store info|verify|gc`

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use http::{Method, StatusCode};
use serde_json::Value;

use super::{
    admin::{Server, message},
    output::{self, Format},
};
use crate::{
    blocking,
    store::{Holder, Store, StoreError, UNREFERENCED_FOR},
};

/// A collection may have much to look at.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// Look at, check or clean a data directory
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  larder store info --data /var/lib/larder")]
pub enum Command {
    /// What is kept, and what keeping it once saves
    #[command(after_help = "Example:\n  larder store info --data /var/lib/larder -o json")]
    Info(Info),
    /// Hash everything again; exit 1 and a list if anything is wrong
    #[command(
        after_help = "Works beside a running daemon; --repair needs it stopped.\n\nExample:\n  larder store verify --data /var/lib/larder --repair"
    )]
    Verify(Verify),
    /// Collect garbage, through the daemon where one holds the data
    #[command(
        after_help = "Removes what nothing has named for 24 hours.\n\nExample:\n  larder store gc --data /var/lib/larder"
    )]
    Gc(Gc),
}

/// `info`
#[derive(Debug, clap::Args)]
pub struct Info {
    #[command(flatten)]
    data: Data,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// `verify`
#[derive(Debug, clap::Args)]
pub struct Verify {
    #[command(flatten)]
    data: Data,
    /// Put bad files aside, so that they are fetched again
    #[arg(long)]
    repair: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// `gc`
#[derive(Debug, clap::Args)]
pub struct Gc {
    #[command(flatten)]
    data: Data,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, clap::Args)]
struct Data {
    /// The data directory
    #[arg(long, value_name = "DIR", env = "LARDER_DATA")]
    data: PathBuf,
}

impl Data {
    fn existing(&self) -> anyhow::Result<PathBuf> {
        if !self.data.join("format").exists() {
            bail!("{} is not a larder's data directory: it has no file named format", self.data.display());
        }
        Ok(self.data.clone())
    }
}

/// Runs the command.
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Info(arguments) => info(arguments).await,
        Command::Verify(arguments) => verify(arguments).await,
        Command::Gc(arguments) => gc(arguments).await,
    }
}

async fn info(arguments: Info) -> anyhow::Result<()> {
    let root = arguments.data.existing()?;
    let spinner = output::spinner("counting");
    let usage = blocking::io(move || Store::open_read_only(&root)?.usage()).await?;
    spinner.finish_and_clear();
    if arguments.output != Format::Table {
        return output::print_document(&usage, arguments.output);
    }
    let row = |what: &str, count: u64, bytes: u64| vec![what.into(), count.to_string(), output::bytes(bytes)];
    output::print_table(
        &["WHAT", "COUNT", "BYTES"],
        &[row("blobs", usage.blobs.count, usage.blobs.bytes), row("files", usage.files.count, usage.files.bytes)],
    )?;
    let (kept, named) = (output::bytes(usage.physical), output::bytes(usage.logical));
    output::print(&if usage.logical < usage.physical {
        format!(
            "kept {kept} in all; the published trees and local repositories name at most {named} of it: the rest is \
             cached, or nothing refers to it\n"
        )
    } else {
        format!(
            "kept {kept} in all; the published trees and local repositories would take {named} if they shared nothing\n"
        )
    })
}

async fn verify(arguments: Verify) -> anyhow::Result<()> {
    let (root, repair) = (arguments.data.existing()?, arguments.repair);
    let spinner = output::spinner("hashing");
    let bar = spinner.clone();
    let report = blocking::io(move || {
        let store = if repair { Store::open(&root)? } else { Store::open_read_only(&root)? };
        let progress = |p: crate::store::verify::Progress| {
            bar.set_message(format!("hashing: {} files, {}", p.checked, output::bytes(p.bytes)));
        };
        store.verify(progress, repair)
    });
    let report = report.await;
    spinner.finish_and_clear();
    let report = report?;
    if arguments.output != Format::Table {
        output::print_document(&report, arguments.output)?;
    } else {
        let mut text = String::new();
        for problem in &report.problems {
            let done = if problem.repaired { " (put aside)" } else { "" };
            text.push_str(&format!("{}: {}{done}\n", problem.path.display(), problem.what));
        }
        text.push_str(&format!("hashed {} files, {}\n", report.checked, output::bytes(report.bytes)));
        output::print(&text)?;
    }
    match report.problems.len() {
        0 => Ok(()),
        n => {
            bail!("{n} of them are not what their names say{}", if repair { "" } else { "; --repair puts them aside" })
        }
    }
}

async fn gc(arguments: Gc) -> anyhow::Result<()> {
    let root = arguments.data.existing()?;
    let spinner = output::spinner("collecting");
    let opened = {
        let root = root.clone();
        blocking::io(move || Store::open(&root)).await
    };
    let collected: Value = match opened {
        Ok(store) => {
            let collected = blocking::io(move || {
                let roots = crate::objects::kept_artifacts(store.root())?;
                anyhow::Ok(store.collect(|| roots, UNREFERENCED_FOR)?)
            });
            serde_json::to_value(collected.await?)?
        }
        Err(StoreError::Locked { .. }) => {
            let holder = Holder::of(&root).and_then(|h| h.admin).with_context(|| {
                format!("{} is held by a process that says no admin address; stop it first", root.display())
            })?;
            let (status, answer) = Server::at(&holder).ask(Method::POST, "/v1/store/gc", PATIENCE).await?;
            if status != StatusCode::OK {
                bail!("the daemon answered {status}: {}", message(&answer));
            }
            answer
        }
        Err(error) => return Err(error.into()),
    };
    spinner.finish_and_clear();
    if arguments.output != Format::Table {
        return output::print_document(&collected, arguments.output);
    }
    let number = |name: &str| collected[name].as_u64().unwrap_or_default();
    let (blobs, files, bytes) = (number("blobs"), number("files"), output::bytes(number("bytes")));
    output::print(&format!("removed {blobs} blobs and {files} files, {bytes}\n"))
}
