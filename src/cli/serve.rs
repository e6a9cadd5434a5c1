//! `larder serve`

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::output;
use crate::{
    config::{self, Config, Settings, Surroundings},
    node::{self, Node, NodeError},
    shutdown, telemetry,
};

/// The daemon: registry, artifacts, reconciler
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  larder serve --objects ./objects\n  larder serve --config /etc/larder/larder.yaml\n  larder serve --objects ./objects --insecure-registry 127.0.0.1:5001\n  larder serve --objects ./objects --external-artifacts\n\nThe environment's LARDER_LOG says how much is logged: error, warn, info (the default), debug, trace, or that for a part\nof Larder, such as info,larder::mirror=debug."
)]
pub struct Arguments {
    #[command(flatten)]
    settings: Settings,
}

/// As many as wait for the disk at once.
const BLOCKING_THREADS: usize = 16;

/// Raises the number of files that may be open to what the system allows: each open blob is one.
fn allow_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// Runs the command.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let file = match &arguments.settings.config {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            config::parse_file(path, &text)?
        }
        None => Settings::default(),
    };
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let surroundings = Surroundings {
        root: rustix::process::geteuid().is_root(),
        xdg_data_home: variable("XDG_DATA_HOME"),
        home: variable("HOME"),
        directory: Some(std::env::current_dir().context("there is no working directory")?),
    };
    let config = Config::resolve(arguments.settings, file, &surroundings)?;
    // One that is not there may come; one that cannot be executed is a mistake.
    if let Some(program) = config.kustomize_program.as_deref().filter(|program| program.exists())
        && let Some(why) = config::cannot_run(program)
    {
        bail!("--kustomize-program: {why}");
    }
    telemetry::init(config.log_format, std::env::var("LARDER_LOG").ok().as_deref())?;
    allow_open_files();
    // Each thread that waits for the disk keeps memory of its own; more of them than a disk has use for only cost.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_background();
    result
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let signals = shutdown::Signals::catch()?;
    let (trigger, listening) = shutdown::channel();
    let mut forced = std::pin::pin!(shutdown::on_signals(signals, &trigger, shutdown::DRAIN));
    let ending = |forced| tracing::warn!(?forced, "ending without waiting for what is under way");
    let node = tokio::select! {
        node = Node::start(config, node::Surroundings::of_this_process()?, listening) => match node {
            Err(NodeError::Stopped) => return Ok(()),
            node => node?,
        },
        reason = &mut forced => {
            ending(reason);
            return Ok(());
        }
    };
    output::print(&format!("{}\n", node.ready_line()))?;
    tokio::select! {
        reason = &mut forced => ending(reason),
        () = node.drained() => {}
    }
    Ok(())
}
