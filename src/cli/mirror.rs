//! `larder mirror …`: sets a node's clients up, tests that they call, and tells a running mirror what to do.

mod check;
mod client;
mod containerd;
mod hosts;
mod install;
mod operate;
mod print;

use std::path::PathBuf;

use anyhow::Context as _;

use crate::config::{self, Address, Config, MirrorListen, Settings, Surroundings, UpstreamFlag};

/// Where containerd looks by default for what it is told about registries.
const CERTS_D: &str = "/etc/containerd/certs.d";

/// Set up what pulls through this mirror, test that it does, and say what is to be held
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  larder mirror check --config /etc/larder/larder.yaml")]
pub enum Command {
    /// Write containerd's hosts.toml for every upstream
    #[command(
        after_help = "A file of another's making is left alone and named, exit 1; --force puts it aside, and uninstall puts it back.\nWhat an earlier install wrote for an upstream that is none any more is removed. containerd reads the files at each\npull, and goes on to the upstream itself where the mirror does not answer.\n\nExamples:\n  larder mirror install --config /etc/larder/larder.yaml\n  larder mirror install --upstream docker.io=https://registry-1.docker.io --dir ./certs.d"
    )]
    Install(install::Install),
    /// Remove what install wrote, and put back what it put aside
    #[command(
        after_help = "Run it before the mirror goes away for good. What was changed since stays, and is named; --force removes it.\n\nExample:\n  larder mirror uninstall"
    )]
    Uninstall(install::Uninstall),
    /// Test that clients reach the mirror: the files, containerd's configuration, and a pull
    #[command(
        after_help = "Exit 1 if anything keeps clients from the mirror.\n\nExamples:\n  larder mirror check --config /etc/larder/larder.yaml\n  larder mirror check --config /etc/larder/larder.yaml --image docker.io/library/busybox:1.36 -o json"
    )]
    Check(check::Arguments),
    /// Print what other clients need in their own configuration
    #[command(
        after_help = "Examples:\n  larder mirror print podman --config larder.yaml > /etc/containers/registries.conf.d/larder.conf\n  larder mirror print docker --config larder.yaml"
    )]
    Print(print::Arguments),
    /// Forget where a tag leads: the next pull asks the upstream
    #[command(after_help = "Example:\n  larder mirror forget docker.io/library/nginx:latest")]
    Forget(operate::Forget),
    /// Fetch an image ahead of those who will pull it
    #[command(
        after_help = "Examples:\n  larder mirror prefetch ghcr.io/your-org/app:v2\n  larder mirror prefetch ghcr.io/your-org/app:v2 --platform linux/arm64 --platform linux/amd64"
    )]
    Prefetch(operate::Prefetch),
    /// Keep an image from eviction; fetches what is missing of it first
    #[command(
        after_help = "A tag that moves on later does not move the pin: pin it again.\n\nExamples:\n  larder mirror pin registry.k8s.io/pause:3.10\n  larder mirror pin registry.k8s.io/pause:3.10 --remove"
    )]
    Pin(operate::Pin),
}

/// Runs the command.
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Install(arguments) => install::install(&arguments),
        Command::Uninstall(arguments) => install::uninstall(&arguments),
        Command::Check(arguments) => check::run(arguments).await,
        Command::Print(arguments) => print::run(&arguments),
        Command::Forget(arguments) => operate::forget(arguments).await,
        Command::Prefetch(arguments) => operate::prefetch(arguments).await,
        Command::Pin(arguments) => operate::pin(arguments).await,
    }
}

/// What the mirror is, as `larder serve` is told it.
#[derive(Debug, clap::Args)]
struct Mirror {
    /// The configuration file of `larder serve`
    #[arg(long, value_name = "FILE", env = "LARDER_CONFIG")]
    config: Option<PathBuf>,
    /// An upstream that is not in the file (repeatable)
    #[arg(long, value_name = "HOST=URL", env = "LARDER_UPSTREAM", value_delimiter = ',')]
    upstream: Vec<UpstreamFlag>,
    /// The registry listener, where the file does not say it [default: 127.0.0.1:5000]
    #[arg(long, value_name = "ADDR", env = "LARDER_REGISTRY_LISTEN")]
    registry_listen: Option<Address>,
    /// A listener for one upstream that is not in the file (repeatable)
    #[arg(long, value_name = "ADDR=HOST", env = "LARDER_MIRROR_LISTEN", value_delimiter = ',')]
    mirror_listen: Vec<MirrorListen>,
}

impl Mirror {
    /// The whole configuration, with an upstream at least.
    fn read(&self) -> anyhow::Result<Config> {
        let file = match &self.config {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                config::parse_file(path, &text)?
            }
            None => Settings::default(),
        };
        let flags = Settings {
            upstream: self.upstream.clone(),
            registry_listen: self.registry_listen.clone(),
            mirror_listen: self.mirror_listen.clone(),
            ..Settings::default()
        };
        let config = Config::resolve(flags, file, &Surroundings::default())?;
        if config.upstreams.is_empty() {
            return Err(super::usage(match &self.config {
                Some(path) => format!("{} names no upstream: add one under upstreams", path.display()),
                None => "there is no upstream: give --config FILE, or --upstream HOST=URL".into(),
            }));
        }
        Ok(config)
    }
}
