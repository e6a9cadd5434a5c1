//! `larder get`

use std::time::Duration;

use anyhow::bail;
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    admin::{Server, message},
    output::{self, Format},
    usage,
};
use crate::objects::Kind;

/// Show the objects and their state
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  larder get\n  larder get ocirepositories -o json\n  larder get ks --server http://127.0.0.1:9440"
)]
pub struct Arguments {
    /// Only this kind: its name, plural or short name
    kind: Option<String>,
    /// Only this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    server: Server,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let kind = match &arguments.kind {
        Some(text) => Some(find_kind(text)?),
        None => None,
    };
    let (status, listing) = arguments.server.ask(Method::GET, "/v1/objects", Duration::from_secs(60)).await?;
    if status != StatusCode::OK {
        bail!("the daemon answered {status}: {}", message(&listing));
    }
    let wanted = |item: &&Value| {
        kind.is_none_or(|k| item["kind"] == k.name())
            && arguments.namespace.as_ref().is_none_or(|n| item["metadata"]["namespace"] == **n)
    };
    let items: Vec<Value> = listing["items"].as_array().into_iter().flatten().filter(wanted).cloned().collect();
    for error in listing["errors"].as_array().into_iter().flatten() {
        output::say(format_args!(
            "warning: {}: {}",
            error["place"].as_str().unwrap_or("?"),
            error["error"].as_str().unwrap_or("?")
        ));
    }
    if arguments.output != Format::Table {
        return output::print_document(&items, arguments.output);
    }
    if items.is_empty() {
        output::say("no objects");
        return Ok(());
    }
    let rows: Vec<Vec<String>> = items.iter().map(row).collect();
    output::print_table(&["KIND", "NAMESPACE", "NAME", "READY", "REVISION", "AGE", "STATUS"], &rows)
}

/// Finds a kind by what the user wrote.
pub fn find_kind(text: &str) -> anyhow::Result<Kind> {
    Kind::find(text).ok_or_else(|| usage(format!("there is no kind {text:?}; the kinds are {}", Kind::names())))
}

fn row(item: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let status = &item["status"];
    let ready = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
    let revision = [&status["artifact"]["revision"], &status["lastAppliedRevision"]].map(text);
    let revision = revision.into_iter().find(|r| !r.is_empty()).unwrap_or_default();
    let shown = if item["spec"]["suspend"] == true {
        "Suspended".into()
    } else {
        ready.map_or("".into(), |c| text(&c["status"]))
    };
    vec![
        text(&item["kind"]),
        text(&item["metadata"]["namespace"]),
        text(&item["metadata"]["name"]),
        shown,
        shorten(&revision),
        item["metadata"]["creationTimestamp"].as_str().map_or(String::new(), age),
        ready.map_or(String::new(), |c| text(&c["message"])),
    ]
}

/// `v1.0.0@sha256:0123456789ab`: enough of a digest to tell two apart.
fn shorten(revision: &str) -> String {
    match revision.find("sha256:").or_else(|| revision.find("sha512:")) {
        Some(at) => revision.chars().take(at + 19).collect(),
        None => revision.to_string(),
    }
}

fn age(since: &str) -> String {
    let Ok(since) = since.parse::<Timestamp>() else { return String::new() };
    let seconds = u64::try_from(Timestamp::now().duration_since(since).as_secs()).unwrap_or_default();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}
