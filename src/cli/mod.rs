//! The command line: one file a command. Exit 0 done, 1 failed, 2 wrong usage.
// These panic where nobody reads: what is printed goes through `output`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

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
    registry::{RegistryError, docker_config::DockerConfigError},
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

/// An error for a person: with its causes, and what to do where that is known.
pub fn explain(error: &anyhow::Error) -> String {
    let mut text = class::chain(error.as_ref());
    if let Some(hint) = hint(error, &text) {
        text.push_str("; ");
        text.push_str(hint);
    }
    text
}

fn hint(error: &anyhow::Error, text: &str) -> Option<&'static str> {
    let registry = || error.chain().filter_map(|cause| cause.downcast_ref::<RegistryError>());
    let config = error.chain().find_map(|cause| cause.downcast_ref::<DockerConfigError>());
    Some(match config {
        Some(DockerConfigError::Helper { .. }) => {
            "install or mend that program, take it out of the file, or give --creds or --creds-stdin"
        }
        Some(_) => "mend the file, or give --creds or --creds-stdin",
        // The message says what is wrong with which material; credentials are none of it.
        None if registry().any(|error| matches!(error, RegistryError::Setup(_))) => {
            if !text.contains("CA certificate") {
                return None;
            }
            "--ca takes a file of certificates in PEM"
        }
        None if registry().any(|error| error.class() == Class::Auth) => {
            "give --creds or --creds-stdin, or log in with your container tool"
        }
        None if registry().any(RegistryError::may_be_http_to_tls) => "if TLS answers there, leave out --plain-http",
        None if text.contains("InvalidContentType") => "if the registry speaks plain http, give --plain-http",
        // Go's clients take it from any authority that they know, WebPKI does not (RFC 5280, section 4.2.1.9).
        None if text.contains("CaUsedAsEndEntity") => {
            "the server shows an authority's certificate as its own: if it is the right one, give exactly it with --ca FILE"
        }
        None if text.contains("UnknownIssuer") => "give the registry's CA with --ca FILE",
        None => return None,
    })
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
