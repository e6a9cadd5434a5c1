//! `larder mirror forget|prefetch|pin`: asks the daemon.

use std::{convert::Infallible, time::Duration};

use anyhow::bail;
use http::{Method, StatusCode};
use indicatif::ProgressBar;
use serde_json::Value;

use super::super::{
    admin::{Server, message},
    output::{self, Format},
    redacted, usage,
};
use crate::oci::Reference;

/// A large image from far away.
const PATIENCE: Duration = Duration::from_secs(3_600);
/// For the metrics of a daemon.
const METRICS: Duration = Duration::from_secs(5);
/// How often somebody who waits is told how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// `forget`
#[derive(Debug, clap::Args)]
pub struct Forget {
    #[command(flatten)]
    image: Image,
}

/// `prefetch`
#[derive(Debug, clap::Args)]
pub struct Prefetch {
    #[command(flatten)]
    image: Image,
    #[command(flatten)]
    platforms: Platforms,
}

/// `pin`
#[derive(Debug, clap::Args)]
pub struct Pin {
    #[command(flatten)]
    image: Image,
    #[command(flatten)]
    platforms: Platforms,
    /// Let it go again
    #[arg(long, conflicts_with_all = ["platform", "all_platforms"])]
    remove: bool,
}

#[derive(Debug, clap::Args)]
struct Image {
    /// The image, with its tag or digest
    #[arg(value_name = "REF")]
    reference: String,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, clap::Args)]
struct Platforms {
    /// For which platform, as os/architecture[/variant] (repeatable) [default: the daemon's own]
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<String>,
    /// For all platforms
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
}

impl Platforms {
    /// What follows `?ref=…`.
    fn query(&self) -> anyhow::Result<String> {
        if self.all_platforms {
            return Ok("&platform=all".into());
        }
        let mut out = String::new();
        for platform in &self.platform {
            if !platform.contains('/') || !platform.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b)) {
                return Err(usage(format!("--platform {platform:?}: write os/architecture, such as linux/arm64")));
            }
            out.push_str("&platform=");
            out.push_str(platform);
        }
        Ok(out)
    }
}

impl Image {
    /// Asks; the answer and the reference as the daemon knows it.
    async fn ask(&self, method: Method, what: &str, more: &str, doing: &str) -> anyhow::Result<(String, Value)> {
        let wrong = |why: String| usage(format!("{:?}: {why}", redacted(&self.reference)));
        let reference = Reference::parse(&self.reference).map_err(|error| wrong(error.to_string()))?;
        if reference.selector.is_none() {
            return Err(wrong("add a tag or a digest".into()));
        }
        let reference = reference.to_string();
        let spinner = output::spinner(format!("{doing} {reference}"));
        let path = format!("/v1/{what}?ref={}{more}", reference.replace('%', "%25").replace('+', "%2B"));
        let (registry, shown) = (reference.split('/').next().unwrap_or_default(), format!("{doing} {reference}"));
        let answer = tokio::select! {
            answer = self.server.ask(method, &path, PATIENCE) => answer,
            never = self.show_bytes(&spinner, registry, &shown) => match never {},
        };
        spinner.finish_and_clear();
        match answer? {
            (StatusCode::OK, value) => Ok((reference, value)),
            (status, value) => bail!("{reference}: the daemon answered {status}: {}", message(&value)),
        }
    }

    /// While somebody looks: how much has come from the upstream since, whoever asked for it.
    async fn show_bytes(&self, spinner: &ProgressBar, registry: &str, doing: &str) -> Infallible {
        let mut begin = None;
        while !spinner.is_hidden() {
            if let Ok(now) = self.server.upstream_bytes(registry, METRICS).await {
                let came = now - *begin.get_or_insert(now);
                spinner.set_message(format!("{doing}: {} came from {registry}", output::bytes(came)));
            }
            tokio::time::sleep(LOOK).await;
        }
        std::future::pending().await
    }

    fn print(&self, value: &Value, text: &str) -> anyhow::Result<()> {
        match self.output {
            Format::Table => output::print(&format!("{text}\n")),
            format => output::print_document(value, format),
        }
    }
}

/// Forgets.
pub async fn forget(arguments: Forget) -> anyhow::Result<()> {
    let image = &arguments.image;
    let (reference, answer) = image.ask(Method::POST, "forget", "", "forgetting").await?;
    let text = match answer["forgotten"].as_bool() {
        Some(true) => format!("{reference} is forgotten: the next pull asks the upstream"),
        _ => format!("nothing was known of {reference}"),
    };
    image.print(&answer, &text)
}

/// Fetches ahead.
pub async fn prefetch(arguments: Prefetch) -> anyhow::Result<()> {
    let image = &arguments.image;
    let more = arguments.platforms.query()?;
    let (reference, answer) = image.ask(Method::POST, "prefetch", &more, "fetching").await?;
    image.print(&answer, &format!("{reference} is held: {}", held(&answer)))
}

/// Pins, or lets go.
pub async fn pin(arguments: Pin) -> anyhow::Result<()> {
    let image = &arguments.image;
    if arguments.remove {
        let (reference, answer) = image.ask(Method::DELETE, "pin", "", "letting go of").await?;
        let text = match answer["removed"].as_bool() {
            Some(true) => format!("{reference} may be evicted again"),
            _ => format!("{reference} was not pinned"),
        };
        return image.print(&answer, &text);
    }
    let more = arguments.platforms.query()?;
    let (reference, answer) = image.ask(Method::POST, "pin", &more, "fetching").await?;
    image.print(&answer, &format!("{reference} is held and stays: {}", held(&answer)))
}

fn counted(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn held(answer: &Value) -> String {
    let number = |name: &str| answer[name].as_u64().unwrap_or_default();
    format!(
        "{}, {} and {}, {}; fetched {} of it now",
        answer["digest"].as_str().unwrap_or_default(),
        counted(number("manifests"), "manifest"),
        counted(number("blobs"), "blob"),
        output::bytes(number("bytes")),
        output::bytes(number("fetched"))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_kind_is_told_as_one() {
        let told = |manifests: u64, blobs: u64| {
            held(&serde_json::json!({"digest": "d", "manifests": manifests, "blobs": blobs, "bytes": 0, "fetched": 0}))
        };
        assert!(told(1, 2).starts_with("d, 1 manifest and 2 blobs, "), "{}", told(1, 2));
        assert!(told(0, 1).starts_with("d, 0 manifests and 1 blob, "), "{}", told(0, 1));
    }
}
