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

use clap::{
    Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};
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

/// The arguments that the process was started with. Where they are wrong it says so and ends the process: exit 2.
pub fn parse() -> Arguments {
    Arguments::try_parse().unwrap_or_else(|error| without_passwords(error).exit())
}

/// The same error with nothing in what it repeats that may be a password.
fn without_passwords(mut error: clap::Error) -> clap::Error {
    let mut changed = Vec::new();
    for (kind, value) in error.context() {
        // Of other errors this is the name of an argument that there is.
        if kind == ContextKind::InvalidArg && error.kind() != ErrorKind::UnknownArgument {
            continue;
        }
        let shown = match value {
            ContextValue::String(text) => ContextValue::String(redacted(text)),
            ContextValue::Strings(texts) => ContextValue::Strings(texts.iter().map(|text| redacted(text)).collect()),
            _ => continue,
        };
        if shown != *value {
            changed.push((kind, shown));
        }
    }
    if !changed.is_empty() {
        // What is suggested may repeat it too.
        error.remove(ContextKind::Suggested);
    }
    for (kind, shown) in changed {
        error.insert(kind, shown);
    }
    error
}

/// A reference, or something like one, as it may be shown: what stands before an `@` may be a password, unless a digest
/// follows.
fn redacted(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => (Some(scheme), rest),
        _ => (None, text),
    };
    let is_digest = |text: &str| text.starts_with("sha256:") || text.starts_with("sha512:");
    let name = match rest.rsplit_once('@') {
        Some((name, behind)) if is_digest(behind) => name,
        _ => rest,
    };
    let Some(at) = name.rfind('@') else { return text.to_owned() };
    let scheme = scheme.map_or(String::new(), |scheme| format!("{scheme}://"));
    format!("{scheme}[redacted]{}", &rest[at..])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_password_is_not_repeated() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (text, shown) in [
            ("oci://u:PW@h/x", "oci://[redacted]@h/x".to_owned()),
            ("oci://u:P@W/W@h/x:v1", "oci://[redacted]@h/x:v1".to_owned()),
            ("u:PW@h/x", "[redacted]@h/x".to_owned()),
            ("u:PW://@h/x", "[redacted]@h/x".to_owned()),
            ("h.example=https://u:PW@h", "[redacted]@h".to_owned()),
            (&format!("oci://u:PW@h/x@{digest}"), format!("oci://[redacted]@h/x@{digest}")),
            (&format!("oci://h/x@{digest}"), format!("oci://h/x@{digest}")),
            ("oci://h/X:v1", "oci://h/X:v1".to_owned()),
            ("--frobnicate", "--frobnicate".to_owned()),
        ] {
            assert_eq!(redacted(text), shown);
        }
        for arguments in [
            &["list", "oci://u:PW@h/x"][..],
            &["pull", "oci://u:PW@h/x"],
            &["push", "u:PW@h/x:v1", "--path", "."],
            &["tag", "u:PW@h/x:v1", "v2"],
            &["tag", "h/x:v1", "u:PW@v2"],
            &["list", "h/x", "oci://u:PW@h/x"],
            &["oci://u:PW@h/x"],
            &["list", "--oci://u:PW@h/x"],
            &["serve", "--upstream", "a=https://u:PW@h"],
        ] {
            let error = Arguments::try_parse_from([&["larder"], arguments].concat()).unwrap_err();
            let told = without_passwords(error).to_string();
            assert!(told.contains("[redacted]@") && !told.contains("PW"), "{arguments:?}: {told}");
        }
        for arguments in [&["pull", "--output", "x"][..], &["pull", "h/x@y", "--output", "x"]] {
            let told = without_passwords(Arguments::try_parse_from([&["larder"], arguments].concat()).unwrap_err());
            assert!(told.to_string().contains("<oci://HOST/REPO[:TAG|@DIGEST]>"), "{arguments:?}: {told}");
        }
    }
}
