//! The command line: one file a command. Exit 0 done, 1 failed, 2 wrong usage.

mod admin;
mod config;
mod crds;
mod get;
mod list;
mod migrate;
mod mirror;
mod output;
mod pull;
mod push;
mod quickstart;
mod reconcile;
mod remote;
mod serve;
mod store;
mod tag;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    class::{self, Class},
    registry::RegistryError,
};

/// A content-addressed cache and artifact server for configuration shipped as OCI images.
#[derive(Debug, Parser)]
#[command(
    name = "larder",
    version,
    propagate_version = true,
    max_term_width = 110,
    after_help = "Examples:\n  larder quickstart\n  larder serve --objects ./objects --data ./larder-data\n  larder push oci://registry.example.com/team/app:v1 --path ./manifests\n\nEach command has examples of its own: larder COMMAND --help"
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Quickstart(quickstart::Arguments),
    Serve(Box<serve::Arguments>),
    Push(push::Arguments),
    Pull(pull::Arguments),
    Tag(tag::Arguments),
    List(list::Arguments),
    Get(get::Arguments),
    Reconcile(reconcile::Arguments),
    #[command(subcommand)]
    Store(store::Command),
    #[command(subcommand)]
    Mirror(mirror::Command),
    #[command(subcommand)]
    Config(config::Command),
    Crds(crds::Arguments),
    #[command(subcommand)]
    Migrate(migrate::Command),
}

/// Runs the command that the process was started with.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Serve(arguments) => serve::run(*arguments),
        Command::Quickstart(arguments) => quickstart::run(arguments),
        Command::Push(arguments) => block_on(push::run(arguments)),
        Command::Pull(arguments) => block_on(pull::run(arguments)),
        Command::Tag(arguments) => block_on(tag::run(arguments)),
        Command::List(arguments) => block_on(list::run(arguments)),
        Command::Get(arguments) => block_on(get::run(arguments)),
        Command::Reconcile(arguments) => block_on(reconcile::run(arguments)),
        Command::Store(command) => block_on(store::run(command)),
        Command::Mirror(command) => block_on(mirror::run(command)),
        Command::Config(command) => config::run(command),
        Command::Crds(arguments) => crds::run(&arguments),
        Command::Migrate(command) => block_on(migrate::run(command)),
    }
}

/// The command line says something that cannot be meant.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// A wrong use: exit 2.
fn usage(what: impl Into<String>) -> anyhow::Error {
    Usage(what.into()).into()
}

/// Whether the command was used wrongly.
pub fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<Usage>()
}

/// What Go's clients take and rustls does not (RFC 5280, section 4.2.1.9).
const OWN_AUTHORITY: &str = "the server shows an authority's certificate as its own: let that authority sign one for the \
                             server, or make a self-signed one with -addext basicConstraints=critical,CA:FALSE";

/// An error for a person: with its causes, and what to do where that is known.
pub fn explain(error: &anyhow::Error) -> String {
    let mut text = class::chain(error.as_ref());
    let auth = error.chain().filter_map(|e| e.downcast_ref::<RegistryError>()).any(|e| e.class() == Class::Auth);
    let hint = if auth {
        "give --creds or --creds-stdin, or log in with your container tool"
    } else if text.contains("InvalidContentType") {
        "if the registry speaks plain http, give --plain-http"
    } else if text.contains("CaUsedAsEndEntity") {
        OWN_AUTHORITY
    } else if text.contains("UnknownIssuer") {
        "give the registry's CA with --ca FILE"
    } else {
        return text;
    };
    text.push_str("; ");
    text.push_str(hint);
    text
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Ended by a signal, a command still takes its temporary files away: dropping the work does.
    let result = runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            result = work => result,
            _ = terminate.recv() => Err(anyhow::anyhow!("ended by SIGTERM")),
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        }
    });
    // What still blocks (a read of a hung disk) must not keep a command that is done.
    runtime.shutdown_background();
    result
}
