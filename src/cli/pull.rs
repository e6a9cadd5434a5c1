//! `larder pull`

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, bail};
use serde_json::json;

use super::{
    output::{self, Format},
    remote::{Remote, reference},
};
use crate::{
    artifact::{
        build::{self, Caps},
        choose::{self, Choice},
    },
    blocking,
    oci::{Reference, Selector},
    pull::{Puller, Wanted, Way},
    store::Store,
};

/// Pull, verify and unpack: the directory is complete or untouched
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  larder pull oci://ghcr.io/org/my-app-config:v1.0.0 --output ./my-app-config\n  larder pull oci://ghcr.io/org/my-app-config@sha256:… --output ./my-app-config")]
pub struct Arguments {
    /// What to pull; `latest` if neither tag nor digest is named
    #[arg(value_name = "oci://HOST/REPO[:TAG|@DIGEST]", value_parser = reference)]
    reference: Reference,
    /// Where to; replaced if it is a directory that an earlier pull made or that is empty, else refused
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// How to print what was pulled
    #[arg(short = 'o', long = "format", value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    remote: Remote,
}
