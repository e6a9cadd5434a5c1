//! `larder list`

use std::sync::Arc;

use serde::Serialize;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    output::{self, Format},
    remote::{Remote, reference},
};
use crate::oci::{Document, Reference, Selector, Tag};

/// How many manifests are asked for at once.
const AT_ONCE: usize = 8;

/// List a repository's tags with digest, source and revision
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  larder list oci://ghcr.io/org/my-app-config\n  larder list --plain-http oci://127.0.0.1:5000/my-app-config -o json"
)]
pub struct Arguments {
    /// The repository
    #[arg(value_name = "oci://HOST/REPO", value_parser = reference)]
    reference: Reference,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Serialize)]
struct Row {
    tag: String,
    digest: String,
    source: String,
    revision: String,
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if let Some(selector) = &arguments.reference.selector {
        let without = Reference { selector: None, ..arguments.reference.clone() };
        return Err(super::usage(format!(
            "list shows every tag of a repository, so {selector} has no meaning here: write oci://{without}"
        )));
    }
    let at = Arc::new(arguments.remote.open(&arguments.reference).await?);
    let spinner = output::spinner("listing tags");
    let mut tags = at.client.tags(&at.endpoint, &at.repository, at.budget).await?;
    tags.sort_by(|a, b| b.cmp(a));
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut asking = JoinSet::new();
    for (n, tag) in tags.into_iter().enumerate() {
        let (at, places) = (Arc::clone(&at), Arc::clone(&places));
        asking.spawn(async move {
            let _place = places.acquire().await;
            (n, row(&at, tag).await)
        });
    }
    let mut rows = Vec::new();
    while let Some(joined) = asking.join_next().await {
        let (n, row) = joined?;
        rows.push((n, row?));
        spinner.set_message(format!("{} tags", rows.len()));
    }
    spinner.finish_and_clear();
    rows.sort_by_key(|(n, _)| *n);
    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    if arguments.output != Format::Table {
        return output::print_document(&rows, arguments.output);
    }
    let cells: Vec<_> = rows.into_iter().map(|r| vec![r.tag, r.digest, r.source, r.revision]).collect();
    output::print_table(&["TAG", "DIGEST", "SOURCE", "REVISION"], &cells)
}

async fn row(at: &super::remote::Opened, tag: Tag) -> anyhow::Result<Row> {
    let selector = Selector::Tag(tag);
    let manifest = at.client.manifest(&at.endpoint, &at.repository, &selector, at.budget).await?;
    // A tag may name what Larder cannot use; it is listed all the same.
    let annotations = match Document::parse(&manifest.bytes, manifest.content_type.as_deref()) {
        Ok(Document::Image(image)) => image.annotations,
        Ok(Document::Index(index)) => index.annotations,
        Err(_) => Default::default(),
    };
    let annotation =
        |name: &str| annotations.get(&format!("org.opencontainers.image.{name}")).cloned().unwrap_or_default();
    Ok(Row {
        tag: selector.to_string(),
        digest: manifest.digest.to_string(),
        source: annotation("source"),
        revision: annotation("revision"),
    })
}
