//! `larder push`

use std::{io::Read as _, path::PathBuf};

use anyhow::{Context as _, bail};
use indicatif::ProgressBar;
use serde_json::json;

use super::{
    output::{self, Format},
    remote::{Opened, Remote, reference},
    usage,
};
use crate::{
    artifact::pack::{self, ArtifactKind, Compression, Input, Packed},
    blocking,
    oci::{Reference, Selector, media_type},
};

/// Package a directory or file and push it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  larder push oci://ghcr.io/org/my-app-config:v1.0.0 --path ./deploy \\\n      --source https://github.com/org/app --revision main@sha1:0123abcd\n  larder push --plain-http oci://127.0.0.1:5000/my-app-config:v1.0.0 --path my-app-config\n  kustomize build . | larder push oci://ghcr.io/org/app:latest --path -\n\nLeft out of a directory: version control files, images and archives (as flux push does), and what .sourceignore says.\n\nEqual content gives equal bytes, whatever the machine, the time or the files' owner."
)]
pub struct Arguments {
    /// Where to
    #[arg(value_name = "oci://HOST/REPO:TAG", value_parser = reference)]
    reference: Reference,
    /// A directory, a file, or - for one YAML file from stdin
    #[arg(long, value_name = "DIR|FILE|-")]
    path: PathBuf,
    /// Where the content comes from (annotation org.opencontainers.image.source)
    #[arg(long, value_name = "URL")]
    source: Option<String>,
    /// Which version of it this is, such as main@sha1:… (annotation org.opencontainers.image.revision)
    #[arg(long, value_name = "REV")]
    revision: Option<String>,
    /// A further annotation; may be given several times
    #[arg(short, long = "annotation", value_name = "KEY=VALUE", value_parser = annotation)]
    annotations: Vec<(String, String)>,
    /// Flux's media types, or a plain OCI image that Argo CD and image volumes take
    #[arg(long, value_enum, default_value_t)]
    artifact: ArtifactKind,
    /// How the layer is compressed
    #[arg(long, value_enum, default_value_t)]
    compression: Compression,
    /// Push an artifact without files
    #[arg(long)]
    allow_empty: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    remote: Remote,
}

fn annotation(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("write KEY=VALUE".into()),
    }
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Some(Selector::Tag(tag)) = arguments.reference.selector.clone() else {
        return Err(usage("name the tag to push to: oci://HOST/REPO:TAG"));
    };
    if arguments.path.as_os_str() == "-" && arguments.remote.takes_stdin() {
        return Err(usage("--path - and --creds-stdin both want stdin; give the credentials another way"));
    }
    let spinner = output::spinner(format!("packaging {}", arguments.path.display()));
    let options = pack::Options {
        kind: arguments.artifact,
        compression: arguments.compression,
        source: arguments.source.clone(),
        revision: arguments.revision.clone(),
        annotations: arguments.annotations.iter().cloned().collect(),
        ..pack::Options::default()
    };
    let path = arguments.path.clone();
    let packed = blocking::io(move || {
        if path.as_os_str() != "-" {
            return pack::pack(Input::Path(&path), &options).map_err(anyhow::Error::from);
        }
        let mut text = Vec::new();
        std::io::stdin().lock().read_to_end(&mut text).context("cannot read stdin")?;
        // What fed the pipe has failed, and an empty artifact means to delete everything.
        if text.trim_ascii().is_empty() {
            bail!("stdin is empty, so there is nothing to push");
        }
        Ok(pack::pack(Input::Stdin(&text), &options)?)
    });
    let packed = packed.await.with_context(|| format!("cannot package {}", arguments.path.display()))?;
    if packed.left_out > 0 {
        output::say(format_args!(
            "warning: left {} entries out: symlinks and special files; an artifact holds none",
            packed.left_out
        ));
    }
    if packed.files == 0 && !arguments.allow_empty {
        bail!(
            "{} has no files to push; with an empty artifact a Kustomization prunes everything: give --allow-empty if \
             that is meant",
            arguments.path.display()
        );
    }
    let at = arguments.remote.open(&arguments.reference).await?;
    spinner.set_message(format!("pushing to {}/{}", at.endpoint.registry, at.repository));
    upload(&at, &packed, &Selector::Tag(tag.clone()), &spinner).await?;
    spinner.finish_and_clear();
    let (repository, digest) = (format!("{}/{}", at.endpoint.registry, at.repository), packed.manifest_digest);
    let url = format!("oci://{repository}@{digest}");
    if arguments.output != Format::Table {
        let pushed = json!({"url": url, "repository": repository, "tag": tag.as_str(), "digest": digest});
        return output::print_document(&pushed, arguments.output);
    }
    super::output::print(&format!("pushed {url} as {tag}\n"))?;
    Ok(())
}

/// Uploads config, layer and manifest, in the order that no reader ever sees a manifest without its blobs. The spinner
/// shows how much of the layer is sent.
pub async fn upload(at: &Opened, packed: &Packed, to: &Selector, spinner: &ProgressBar) -> anyhow::Result<()> {
    let (client, endpoint, repository, budget) = (&at.client, &at.endpoint, &at.repository, at.budget);
    let (config, layer) = (packed.config.clone().into(), packed.layer.clone().into());
    client.push_blob(endpoint, repository, &packed.config_descriptor.digest, config, budget).await?;
    let sending = client.push_blob(endpoint, repository, &packed.layer_descriptor.digest, layer, budget);
    output::with_bar(spinner, packed.layer.len() as u64, || client.traffic().sent(), sending).await?;
    let manifest = packed.manifest.clone().into();
    client.push_manifest(endpoint, repository, to, media_type::OCI_MANIFEST, manifest, budget).await?;
    Ok(())
}
