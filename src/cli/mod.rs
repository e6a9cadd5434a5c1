//! The command line: one file a command. Exit 0 done, 1 failed, 2 wrong usage.

mod admin;
mod config;
mod get;
mod list;
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

/// A content-addressed cache and artifact server for configuration shipped as OCI images.
#[derive(Debug, Parser)]
#[command(name = "larder", version, propagate_version = true, max_term_width = 110)]
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
    Config(config::Command),
}

/// Runs the command that the process was started with.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Command::Serve(arguments) => serve::run(*arguments),
        Command::Quickstart(arguments) => block_on(quickstart::run(arguments)),
        Command::Push(arguments) => block_on(push::run(arguments)),
        Command::Pull(arguments) => block_on(pull::run(arguments)),
        Command::Tag(arguments) => block_on(tag::run(arguments)),
        Command::List(arguments) => block_on(list::run(arguments)),
        Command::Get(arguments) => block_on(get::run(arguments)),
        Command::Reconcile(arguments) => block_on(reconcile::run(arguments)),
        Command::Store(command) => block_on(store::run(command)),
        Command::Config(command) => config::run(command),
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // What still blocks (a read of a hung disk) must not keep a command that is done.
    runtime.shutdown_background();
    result
}
