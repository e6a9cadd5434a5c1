//! `larder tag`

use anyhow::bail;
use serde_json::json;

use super::{
    output::{self, Format},
    remote::{Remote, reference},
};
use crate::oci::{Reference, ReferenceError, Selector, Tag};

/// Give a manifest further tags in its repository, moving no blobs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  larder tag oci://ghcr.io/org/my-app-config:v1.0.0 stable latest")]
pub struct Arguments {
    /// The manifest
    #[arg(value_name = "oci://HOST/REPO:TAG", value_parser = reference)]
    reference: Reference,
    /// The new tags
    #[arg(required = true, value_name = "NEWTAG", value_parser = tag)]
    tags: Vec<Tag>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    remote: Remote,
}

fn tag(text: &str) -> Result<Tag, String> {
    // A whole reference in its place may hold a password; no tag has an `@`.
    super::redacted(text).parse().map_err(|error: ReferenceError| error.to_string())
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Some(selector) = &arguments.reference.selector else {
        bail!(
            "{}/{} names no tag or digest; write oci://HOST/REPO:TAG",
            arguments.reference.registry,
            arguments.reference.repository
        );
    };
    let at = arguments.remote.open(&arguments.reference).await?;
    let manifest = at.client.manifest(&at.endpoint, &at.repository, selector, at.budget).await?;
    let media_type = manifest.content_type.as_deref().unwrap_or(crate::oci::media_type::OCI_MANIFEST);
    for tag in &arguments.tags {
        let to = Selector::Tag(tag.clone());
        at.client
            .push_manifest(&at.endpoint, &at.repository, &to, media_type, manifest.bytes.clone(), at.budget)
            .await?;
    }
    let repository = format!("{}/{}", at.endpoint.registry, at.repository);
    if arguments.output != Format::Table {
        let tagged: Vec<_> = arguments
            .tags
            .iter()
            .map(|tag| json!({"repository": repository, "tag": tag.as_str(), "digest": manifest.digest}))
            .collect();
        return output::print_document(&tagged, arguments.output);
    }
    for tag in &arguments.tags {
        output::print(&format!("{repository}:{tag} is {}\n", manifest.digest))?;
    }
    Ok(())
}
