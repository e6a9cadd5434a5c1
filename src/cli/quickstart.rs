//! `larder quickstart`: the whole story on one machine.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use http::{Method, StatusCode};
use indicatif::ProgressBar;
use serde_json::Value;

use super::{admin::Server, output, push, remote};
use crate::{
    artifact::pack,
    blocking,
    config::{Address, Config, Settings, Surroundings},
    digest::Digest,
    node::{self, Node},
    oci::{Reference, Selector},
    registry::{Budget, Client, Credentials, Endpoint, Transport},
    shutdown, telemetry,
};

/// The bundled example: the folder that is packaged.
const DEPLOYMENT: &str = include_str!("../../deploy/example/my-app-config/deployment.yaml");
/// The objects that are reconciled; REGISTRY, TAG are filled in.
const OBJECTS: &str = include_str!("../../deploy/example/objects.yaml");
/// The image of the first version, and of the second.
const IMAGES: [&str; 2] = ["nginx:1.25.3", "nginx:1.27.0"];
/// How long a step may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);
const NAMESPACE: &str = "flux-system";

/// The whole story on one machine: registry, push, reconcile, serve, update
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Nothing else needs to be installed. Exit status 0 only if every step was really observed.\n\nExamples:\n  larder quickstart\n  larder quickstart --keep --data ./larder-data"
)]
pub struct Arguments {
    /// Keep the data here, instead of in a temporary directory
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Go on serving when the story is told, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// Tells the story, a numbered line a step.
struct Teller {
    step: usize,
}

impl Teller {
    fn step(&mut self, what: impl std::fmt::Display) -> anyhow::Result<()> {
        self.step += 1;
        output::print(&format!("{:>2}. {what}\n", self.step))
    }

    fn detail(&self, what: impl std::fmt::Display) -> anyhow::Result<()> {
        output::print(&format!("    {what}\n"))
    }
}

/// Runs the command.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    // The daemon's own signals end this one.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(quickstart(arguments));
    runtime.shutdown_background();
    result
}

async fn quickstart(arguments: Arguments) -> anyhow::Result<()> {
    let temporary;
    let data = match &arguments.data {
        Some(data) => data.clone(),
        None => {
            temporary = temporary_directory("larder-quickstart-")?;
            temporary.path().join("data")
        }
    };
    // Beside the data, not in it: these are the user's files, which Larder only reads.
    let objects = temporary_directory("larder-objects-")?;
    let signals = shutdown::Signals::catch()?;
    let (trigger, listening) = shutdown::channel();
    // Free ports, so that the story can be told beside a daemon that runs; with --keep the usual ones.
    let any = || (!arguments.keep).then(|| Address::new("127.0.0.1", 0));
    let settings = Settings {
        data: Some(data),
        objects: Some(objects.path().to_path_buf()),
        registry_listen: any(),
        artifact_listen: any(),
        admin_listen: any(),
        ..Settings::default()
    };
    let config = Config::resolve(settings, Settings::default(), &Surroundings::default())?;
    telemetry::init(telemetry::LogFormat::Text, Some("warn"))?;
    let node = Node::start(config, node::Surroundings::of_this_process()?, listening).await?;
    let story = tokio::select! {
        story = tell(&node, objects.path(), arguments.keep) => story,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if story.is_ok() && arguments.keep {
        tokio::select! {
            _ = shutdown::on_signals(signals, &trigger, shutdown::DRAIN) => {}
            () = node.shutdown_begun() => {}
        }
    }
    trigger.begin();
    node.drained().await;
    story
}

fn temporary_directory(prefix: &str) -> anyhow::Result<tempfile::TempDir> {
    let made = tempfile::Builder::new().prefix(prefix).tempdir();
    made.context("cannot make a temporary directory; TMPDIR has to name one that can be written to")
}

async fn tell(node: &Node, objects: &Path, keep: bool) -> anyhow::Result<()> {
    let mut teller = Teller { step: 0 };
    let registry = node.registry().to_string();
    let server = Server::at(&node.admin().to_string());
    teller.step(format_args!("started a daemon: registry on {registry}, artifacts on {}", node.artifacts()))?;

    let folder = temporary_directory("larder-example-")?;
    let first = push_version(&registry, folder.path(), "v1.0.0", IMAGES[0]).await?;
    teller.step(format_args!("packaged and pushed oci://{registry}/my-app-config:v1.0.0, also tagged stable"))?;
    teller.detail(first)?;

    write_objects(objects, &registry, "v1.0.0")?;
    teller.step("wrote a GitRepository with an oci:// URL, an OCIRepository and a Kustomization")?;
    let git = settled(&server, "GitRepository", "my-app-oci", |o| revision(o) == format!("v1.0.0@{first}")).await?;
    let oci = settled(&server, "OCIRepository", "my-app", |o| revision(o) == format!("stable@{first}")).await?;
    teller.step(format_args!("reconciled: both sources are Ready at {}", revision(&git)))?;
    for source in [&git, &oci] {
        let url = fetch_and_check(source).await?;
        teller.step(format_args!("fetched the {}'s artifact, its digest is right", text(&source["kind"])))?;
        teller.detail(url)?;
    }
    let (file, yaml) = rendered(node, &server, &format!("v1.0.0@{first}"), IMAGES[0]).await?;
    teller.step(format_args!("rendered the Kustomization: {} lines in {}", yaml.lines().count(), file.display()))?;

    let second = push_version(&registry, folder.path(), "v1.0.1", IMAGES[1]).await?;
    teller
        .step("pushed v1.0.1: named it in the GitRepository; the OCIRepository follows the tag stable, which moved")?;
    write_objects(objects, &registry, "v1.0.1")?;
    let wanted = format!("v1.0.1@{second}");
    reconcile(&server, "OCIRepository", "my-app").await?;
    let updated = settled(&server, "OCIRepository", "my-app", |o| revision(o) == format!("stable@{second}")).await?;
    settled(&server, "GitRepository", "my-app-oci", |o| revision(o) == wanted).await?;
    fetch_and_check(&updated).await?;
    ensure!(digest_of(&updated) != digest_of(&oci), "the update has the digest of the version before");
    rendered(node, &server, &wanted, IMAGES[1]).await?;
    teller.step(format_args!("updated: sources, artifact and rendered manifests are at {wanted}"))?;

    let (status, usage) = server.ask(Method::GET, "/v1/store", PATIENCE).await?;
    ensure!(status == StatusCode::OK, "GET /v1/store answered {status}");
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let (logical, physical) = (number(&usage["logical"]), number(&usage["physical"]));
    ensure!(physical > 0 && physical < logical, "nothing was deduplicated: {usage}");
    teller.step(format_args!(
        "deduplicated: {} kept for {} served, in {} blobs and {} files",
        output::bytes(physical),
        output::bytes(logical),
        number(&usage["blobs"]["count"]),
        number(&usage["files"]["count"]),
    ))?;
    output::print("\nEvery step was observed. Next: larder serve --help\n")?;
    if keep {
        output::print(&format!(
            "\nServing on; Ctrl-C ends it. Try, in another terminal:\n    larder get --server http://{}\n",
            node.admin()
        ))?;
    }
    Ok(())
}

/// Packages the example with `image`, pushes it over HTTP, and gives the manifest's digest.
async fn push_version(registry: &str, folder: &Path, tag: &str, image: &str) -> anyhow::Result<Digest> {
    std::fs::write(folder.join("deployment.yaml"), DEPLOYMENT.replace(IMAGES[0], image))?;
    let options = pack::Options {
        source: Some("https://example.com/my-app-config".into()),
        revision: Some(tag.into()),
        ..pack::Options::default()
    };
    let from = folder.to_path_buf();
    let packed = blocking::io(move || pack::pack(pack::Input::Path(&from), &options)).await?;
    let reference = Reference::parse(&format!("oci://{registry}/my-app-config:{tag}"))?;
    let transport = Transport { plain_http: true, allow_loopback: true, ..Transport::default() };
    let at = remote::Opened {
        client: Client::new(Default::default())?,
        endpoint: Endpoint { registry: reference.registry, transport, credentials: Credentials::Anonymous },
        repository: reference.repository,
        budget: Budget::within(PATIENCE).requested(true),
    };
    for tag in [tag, "stable"] {
        push::upload(&at, &packed, &Selector::Tag(tag.parse()?), &ProgressBar::hidden()).await?;
    }
    Ok(packed.manifest_digest)
}

fn write_objects(directory: &Path, registry: &str, tag: &str) -> anyhow::Result<()> {
    let text = OBJECTS.replace("REGISTRY", registry).replace("TAG", tag);
    let file = directory.join("objects.yaml");
    // Written beside and renamed: the daemon never sees half a file.
    let part = directory.join(".objects.yaml.part");
    std::fs::write(&part, text)?;
    std::fs::rename(&part, &file).context("cannot write the objects")
}

async fn object(server: &Server, kind: &str, name: &str) -> anyhow::Result<Option<Value>> {
    let (status, listing) = server.ask(Method::GET, "/v1/objects", PATIENCE).await?;
    ensure!(status == StatusCode::OK, "GET /v1/objects answered {status}");
    let of_name = |o: &&Value| o["kind"] == kind && o["metadata"]["name"] == name;
    Ok(listing["items"].as_array().into_iter().flatten().find(of_name).cloned())
}

/// Waits until the object is Ready and as wanted.
async fn settled(server: &Server, kind: &str, name: &str, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let end = Instant::now() + PATIENCE;
    let mut last = None;
    while Instant::now() < end {
        last = object(server, kind, name).await?;
        if let Some(object) = last.as_ref().filter(|o| is_ready(o) && wanted(o)) {
            return Ok(object.clone());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let said = last.map_or("it is not there".into(), |o| o["status"]["conditions"].to_string());
    bail!("{kind} {name} did not become what it should within {} s: {said}", PATIENCE.as_secs())
}

async fn reconcile(server: &Server, kind: &str, name: &str) -> anyhow::Result<()> {
    let path = format!("/v1/reconcile?kind={kind}&namespace={NAMESPACE}&name={name}");
    let (status, answer) = server.ask(Method::POST, &path, PATIENCE).await?;
    ensure!(status == StatusCode::OK, "POST {path} answered {status}: {}", super::admin::message(&answer));
    Ok(())
}

/// Fetches the artifact over HTTP as a consumer does, and compares digest and size.
async fn fetch_and_check(source: &Value) -> anyhow::Result<String> {
    let url = text(&source["status"]["artifact"]["url"]);
    let (status, body) = super::admin::fetch(&url, PATIENCE).await?;
    ensure!(status == StatusCode::OK, "GET {url} answered {status}");
    let digest = Digest::sha256(&body).to_string();
    ensure!(
        digest == digest_of(source),
        "GET {url}: the bytes hash to {digest}, the status says {}",
        digest_of(source)
    );
    ensure!(source["status"]["artifact"]["size"] == body.len(), "GET {url}: the size is not the status's");
    Ok(url)
}

async fn rendered(node: &Node, server: &Server, revision: &str, image: &str) -> anyhow::Result<(PathBuf, String)> {
    let applied = |o: &Value| o["status"]["lastAppliedRevision"] == revision;
    settled(server, "Kustomization", "my-app-kustomization", applied).await?;
    let file = node.data().join("rendered").join(NAMESPACE).join("my-app-kustomization.yaml");
    let mut yaml = String::new();
    std::fs::File::open(&file)
        .and_then(|mut f| f.read_to_string(&mut yaml))
        .with_context(|| file.display().to_string())?;
    ensure!(
        yaml.contains("kind: Deployment") && yaml.contains(image),
        "{} lacks the Deployment of {image}",
        file.display()
    );
    Ok((file, yaml))
}

fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
        && object["status"]["observedGeneration"] == object["metadata"]["generation"]
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

fn revision(object: &Value) -> String {
    text(&object["status"]["artifact"]["revision"])
}

fn digest_of(object: &Value) -> String {
    text(&object["status"]["artifact"]["digest"])
}
