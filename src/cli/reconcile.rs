//! `larder reconcile`

use std::time::Duration;

use anyhow::bail;
use http::{Method, StatusCode};
use serde_json::Value;

use super::{
    admin::{Server, message},
    get::find_kind,
    output::{self, Format},
    usage,
};

/// Longer than any pass: the daemon itself ends one at spec.timeout.
const PATIENCE: Duration = Duration::from_secs(3_600);

/// Reconcile an object now and wait for the result
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status 0 only if the object is Ready.\n\nExamples:\n  larder reconcile ocirepository/podinfo\n  larder reconcile ks/my-app-kustomization -n flux-system"
)]
pub struct Arguments {
    /// Which object
    #[arg(value_name = "KIND/NAME")]
    object: String,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    server: Server,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (kind, name) =
        arguments.object.split_once('/').ok_or_else(|| usage("write KIND/NAME, such as ocirepository/podinfo"))?;
    let kind = find_kind(kind)?;
    for part in [name, &arguments.namespace] {
        if part.is_empty()
            || !part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
        {
            return Err(usage(format!("{part:?} is not a Kubernetes name: lower-case letters, digits, '-' and '.'")));
        }
    }
    let path = format!("/v1/reconcile?kind={kind}&namespace={}&name={name}", arguments.namespace);
    let spinner = output::spinner(format!("reconciling {kind} {}/{name}", arguments.namespace));
    let answer = arguments.server.ask(Method::POST, &path, PATIENCE).await;
    spinner.finish_and_clear();
    let (status, object) = answer?;
    let called = format!("{kind} {}/{name}", arguments.namespace);
    match status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => bail!("there is no {called} at this daemon; `larder get` lists what there is"),
        StatusCode::CONFLICT => bail!("{called} is suspended; set spec.suspend to false first"),
        StatusCode::GATEWAY_TIMEOUT => bail!("{called} was not done within its spec.timeout"),
        StatusCode::SERVICE_UNAVAILABLE => bail!("{}", message(&object)),
        _ => bail!("the daemon answered {status}: {}", message(&object)),
    }
    if arguments.output != Format::Table {
        output::print_document(&object, arguments.output)?;
    }
    let ready = object["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
    let said = ready.and_then(|c| c["message"].as_str()).unwrap_or_default();
    // A static object (a HelmRepository) has no conditions, and nothing to wait for.
    let is_static = ready.is_none() && object["status"] == Value::Null;
    if is_static || ready.is_some_and(|c| c["status"] == "True") {
        if arguments.output == Format::Table {
            let said = if is_static { "static, nothing to reconcile" } else { said };
            output::print(&format!("{called} is Ready: {said}\n"))?;
        }
        return Ok(());
    }
    bail!("{called} is not Ready: {said}")
}
