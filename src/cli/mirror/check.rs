//! `larder mirror check`: does a client's pull reach the mirror?
//!
//! Files first, then the mirror itself as containerd would ask it, and whether it reaches its upstreams, then containerd:
//! what its configuration says, and with `--image` a pull by it, during which the mirror must have been called. A
//! containerd that does not run here is not judged.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use http::{Method, StatusCode};
use serde::Serialize;
use tokio::process::Command;

use super::{
    super::{
        admin,
        output::{self, Format},
        redacted, usage,
    },
    CERTS_D, Mirror, client, containerd,
    hosts::{self, FILE, Local, Owner},
    install::Certificates,
};
use crate::{
    class::chain,
    config::{Config, UpstreamSettings},
    digest::Digest,
    oci::{Document, Reference, Selector},
};

/// For a pull by containerd: a large image from far away.
const PULL: Duration = Duration::from_secs(600);
/// For the metrics of a daemon on this machine.
const METRICS: Duration = Duration::from_secs(5);
/// A name for a repository that nobody has.
const PROBED: &str = "larder-check";
/// containerd's namespace for the test's image, so that it is no other's.
const NAMESPACE: &str = "larder-check";

/// `check`
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    mirror: Mirror,
    /// The folder to which containerd's config_path points
    #[arg(long, value_name = "DIR", default_value = CERTS_D)]
    dir: PathBuf,
    #[command(flatten)]
    certificates: Certificates,
    /// Pull this image: from the mirror as containerd would, and by containerd itself where it runs
    #[arg(long, value_name = "REF")]
    image: Option<String>,
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
    /// containerd's socket: where it is not, containerd is not judged
    #[arg(long, value_name = "FILE", default_value = "/run/containerd/containerd.sock")]
    containerd_socket: PathBuf,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    what: String,
    result: Verdict,
    detail: String,
    /// It is about a pull that came this far, not about whether clients find the way.
    #[serde(skip)]
    pull: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Verdict {
    Good,
    Bad,
    /// Not judged.
    Skipped,
}

impl Verdict {
    fn text(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Bad => "WRONG",
            Self::Skipped => "-",
        }
    }
}

impl Finding {
    fn new(what: impl Into<String>, result: Verdict, detail: impl Into<String>) -> Self {
        Self { what: what.into(), result, detail: detail.into(), pull: false }
    }

    fn of_a_pull(self) -> Self {
        Self { pull: true, ..self }
    }

    /// Good with what came of it, or bad with why.
    fn from(what: impl Into<String>, outcome: anyhow::Result<String>) -> Self {
        match outcome {
            Ok(detail) => Self::new(what, Verdict::Good, detail),
            Err(error) => Self::new(what, Verdict::Bad, chain(error.as_ref())),
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    checks: &'a [Finding],
}

/// Runs the command.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.mirror.read()?;
    let local = arguments.certificates.local(&config)?;
    let image = arguments.image.as_deref().map(|text| named(&config, text)).transpose()?;
    let spinner = output::spinner("asking the mirror");
    let mut findings = Vec::new();
    for upstream in &config.upstreams {
        findings.push(file(&arguments.dir, upstream, &local)?);
    }
    for upstream in &config.upstreams {
        let what = format!("the mirror, asked for {}", upstream.host);
        let found = Finding::from(what, answers(&config, &local, upstream).await);
        let answers = found.result == Verdict::Good;
        findings.push(found);
        if answers {
            spinner.set_message(format!("asking {} through the mirror", upstream.host));
            let what = format!("{}, asked by the mirror", upstream.host);
            findings.push(Finding::from(what, reaches(&local, upstream).await).of_a_pull());
        }
    }
    if let Some((reference, upstream)) = &image {
        spinner.set_message("pulling from the mirror");
        let what = format!("a pull of {reference} from the mirror");
        findings.push(Finding::from(what, pull(&local, reference, upstream).await).of_a_pull());
    }
    if arguments.containerd_socket.exists() {
        findings.extend(configuration(&arguments).await);
        if let Some((reference, _)) = &image {
            spinner.set_message("pulling by containerd");
            findings.push(containerd_pull(&arguments, &config, reference).await);
        }
    } else {
        let detail = format!(
            "not judged: {} is not there, so it does not run, or is not visible here",
            arguments.containerd_socket.display()
        );
        findings.push(Finding::new("containerd", Verdict::Skipped, detail));
    }
    spinner.finish_and_clear();
    let bad: Vec<&Finding> = findings.iter().filter(|f| f.result == Verdict::Bad).collect();
    if arguments.output == Format::Table {
        let rows: Vec<Vec<String>> =
            findings.iter().map(|f| vec![f.what.clone(), f.result.text().into(), f.detail.clone()]).collect();
        output::print_table(&["CHECK", "RESULT", "DETAIL"], &rows)?;
    } else {
        output::print_document(&Report { ok: bad.is_empty(), checks: &findings }, arguments.output)?;
    }
    match bad.first() {
        None => Ok(()),
        Some(first) if first.pull => bail!("a pull through the mirror fails: {}: {}", first.what, first.detail),
        Some(first) => bail!("the mirror is not being called: {}: {}", first.what, first.detail),
    }
}

/// The reference, and the upstream whose it is.
fn named<'a>(config: &'a Config, text: &str) -> anyhow::Result<(Reference, &'a UpstreamSettings)> {
    let reference = Reference::parse(text).map_err(|error| usage(format!("--image {}: {error}", redacted(text))))?;
    if reference.selector.is_none() {
        return Err(usage(format!("--image {text}: add a tag or a digest")));
    }
    let whose = |upstream: &&UpstreamSettings| {
        upstream.host.to_string().parse().is_ok_and(|registry: crate::oci::Registry| registry == reference.registry)
    };
    match config.upstreams.iter().find(whose) {
        Some(upstream) => Ok((reference, upstream)),
        None => Err(usage(format!("--image {text}: {} is no upstream of this mirror", reference.registry))),
    }
}

/// Whether the file is there and leads to the mirror.
fn file(dir: &Path, upstream: &UpstreamSettings, local: &Local) -> anyhow::Result<Finding> {
    let path = dir.join(hosts::folder(upstream)).join(FILE);
    let what = path.display().to_string();
    let bad = |why: &str| Ok(Finding::new(what.clone(), Verdict::Bad, why));
    let there = match std::fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return bad("is not there: run `larder mirror install`");
        }
        Err(error) => return bad(&format!("cannot be read: {error}")),
    };
    let leads_here = there.lines().map(str::trim).filter(|line| line.starts_with("[host.")).any(|line| {
        let url = line.trim_start_matches("[host.").split(']').next().unwrap_or_default();
        url.trim_matches(['"', '\'']).trim_end_matches('/') == local.url
    });
    match hosts::owner(&there) {
        _ if there == hosts::text(upstream, local)? => Ok(Finding::new(what, Verdict::Good, "as install writes it")),
        Owner::Larder if !leads_here => bad("was written for another listener: run `larder mirror install`"),
        Owner::Larder => bad("was written for another configuration: run `larder mirror install`"),
        _ if leads_here => Ok(Finding::new(what, Verdict::Good, "not as install writes it, but it names the mirror")),
        _ => bad(&format!("does not name {}: run `larder mirror install --force`, or add it by hand", local.url)),
    }
}

/// What the daemon counted so far at its registry listener; `None` where it cannot be asked.
async fn counted(config: &Config) -> Option<u64> {
    let address = hosts::reach(&config.admin_listen, "adminListen").ok()?;
    let (status, text) = admin::fetch(&format!("http://{address}/metrics"), METRICS).await.ok()?;
    let text = std::str::from_utf8(&text).ok().filter(|_| status == StatusCode::OK)?;
    Some(total(text))
}

/// The sum of `larder_served_requests_total` of the registry listener.
fn total(metrics: &str) -> u64 {
    let lines = metrics
        .lines()
        .filter(|l| l.starts_with("larder_served_requests_total{") && l.contains("listener=\"registry\""));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Whether this daemon answers for an upstream as containerd's first request finds it.
async fn answers(config: &Config, local: &Local, upstream: &UpstreamSettings) -> anyhow::Result<String> {
    let before = counted(config).await;
    let asked = client::ask(local, Method::GET, &format!("/v2/?ns={}", upstream.host)).await;
    let answer = asked.with_context(|| format!("{} does not answer: is `larder serve` running?", local.url))?;
    if !matches!(answer.status, StatusCode::OK | StatusCode::UNAUTHORIZED) {
        let said = String::from_utf8_lossy(&answer.body);
        bail!("{} answered {}: {}", local.url, answer.status, said.chars().take(200).collect::<String>());
    }
    match (before, counted(config).await) {
        (Some(before), Some(after)) if after > before => Ok(format!("{} answers", local.url)),
        (Some(_), Some(_)) => bail!(
            "{} answers, but the daemon whose admin listener is {} did not see the request: another program has the port",
            local.url,
            config.admin_listen
        ),
        _ => Ok(format!("{} answers (its admin listener does not, so that it is Larder is not certain)", local.url)),
    }
}

/// Whether the mirror has an answer from the upstream, whatever that is: the tags of a repository that need not exist.
/// That fetches nothing, and is a question that no registry counts as a pull.
async fn reaches(local: &Local, upstream: &UpstreamSettings) -> anyhow::Result<String> {
    let name = match upstream.repositories.first() {
        Some(pattern) => pattern.to_string().replace('*', PROBED),
        None => format!("{PROBED}/none"),
    };
    let answer = client::ask(local, Method::GET, &format!("/v2/{name}/tags/list?ns={}", upstream.host)).await?;
    let said = serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap_or_default();
    let said = said["errors"][0]["message"].as_str().unwrap_or_default();
    let by_upstream = said.starts_with("upstream said ") || said.starts_with("the upstream's token service said ");
    match answer.status {
        StatusCode::OK => Ok("answers".into()),
        StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED if by_upstream => Ok("answers".into()),
        status => bail!("{} answered {status}: {}", local.url, said.chars().take(300).collect::<String>()),
    }
}

/// The requests of a pull: the manifest's digest, the manifest, this machine's image, its config.
async fn pull(local: &Local, reference: &Reference, upstream: &UpstreamSettings) -> anyhow::Result<String> {
    let base = format!("/v2/{}", reference.repository);
    let selector = match &reference.selector {
        Some(Selector::Tag(tag)) => tag.to_string(),
        Some(Selector::Digest(digest)) => digest.to_string(),
        None => bail!("{reference} has neither a tag nor a digest"),
    };
    let ns = &upstream.host;
    let head = client::ask(local, Method::HEAD, &format!("{base}/manifests/{selector}?ns={ns}")).await?;
    if head.status != StatusCode::OK {
        let said = client::ask(local, Method::GET, &format!("{base}/manifests/{selector}?ns={ns}")).await?;
        let said = String::from_utf8_lossy(&said.body).chars().take(300).collect::<String>();
        bail!("HEAD of its manifest was answered {}: {said}", head.status);
    }
    let status = head.header("cache-status").to_owned();
    let digest = head.header("docker-content-digest").parse::<Digest>();
    let mut digest = digest.map_err(|error| anyhow::anyhow!("the answer has no Docker-Content-Digest: {error}"))?;
    let mut depth = 0;
    let config = loop {
        let answer = get(local, &format!("{base}/manifests/{digest}?ns={ns}"), &digest).await?;
        let document = Document::parse(&answer.body, Some(answer.header("content-type")).filter(|t| !t.is_empty()))?;
        match document {
            Document::Image(image) => break image.config.digest,
            Document::Index(index) if depth < 2 => {
                depth += 1;
                let own = |child: &&crate::oci::Descriptor| {
                    child.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == architecture())
                };
                let child = index.manifests.iter().find(own).or(index.manifests.first());
                digest = child.context("its index names no image")?.digest;
            }
            Document::Index(_) => bail!("its indexes lie too deep"),
        }
    };
    get(local, &format!("{base}/blobs/{config}?ns={ns}"), &config).await?;
    Ok(format!("manifest and config came, {status}"))
}

/// A GET whose bytes must be what the digest says.
async fn get(local: &Local, path: &str, digest: &Digest) -> anyhow::Result<client::Answer> {
    let answer = client::ask(local, Method::GET, path).await?;
    if answer.status != StatusCode::OK {
        let said = String::from_utf8_lossy(&answer.body).chars().take(300).collect::<String>();
        bail!("GET {path} was answered {}: {said}", answer.status);
    }
    if Digest::of(digest.algorithm(), &answer.body) != *digest {
        bail!("GET {path} was answered with bytes that are not {digest}");
    }
    Ok(answer)
}

/// Go's name for this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What containerd's configuration says, as it dumps it where it can.
async fn configuration(arguments: &Arguments) -> Vec<Finding> {
    let file = &arguments.containerd_config;
    let mut dump = Command::new("containerd");
    dump.arg("--config").arg(file).args(["config", "dump"]);
    let text = match output_of(dump, METRICS).await {
        Ok(text) => text,
        Err(_) => match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => {
                let detail = format!("not judged: {} cannot be read: {error}", file.display());
                return vec![Finding::new("containerd's configuration", Verdict::Skipped, detail)];
            }
        },
    };
    let found = containerd::obstacles(&text, &arguments.dir);
    if found.is_empty() {
        let detail = format!("reads {}", arguments.dir.display());
        return vec![Finding::new("containerd's configuration", Verdict::Good, detail)];
    }
    found.into_iter().map(|why| Finding::new(file.display().to_string(), Verdict::Bad, why)).collect()
}

/// A pull by containerd, during which the mirror must be called.
async fn containerd_pull(arguments: &Arguments, config: &Config, reference: &Reference) -> Finding {
    let socket = arguments.containerd_socket.display().to_string();
    let image = reference.to_string();
    // crictl goes the kubelet's way; ctr reads the folder itself.
    let cri = format!("unix://{socket}");
    let mut crictl = Command::new("crictl");
    crictl.args(["--runtime-endpoint", &cri, "--image-endpoint", &cri, "pull", &image]);
    let mut ctr = Command::new("ctr");
    ctr.args(["--address", &socket, "--namespace", NAMESPACE, "images", "pull", "--hosts-dir"]);
    ctr.arg(&arguments.dir).arg(&image);
    let before = counted(config).await;
    let (program, outcome) = match output_of(crictl, PULL).await {
        Err(Failed::Absent) => ("ctr", output_of(ctr, PULL).await),
        outcome => ("crictl", outcome),
    };
    let after = counted(config).await;
    if program == "ctr" {
        for words in [&["images", "rm", "--sync", &image][..], &["namespaces", "rm", NAMESPACE]] {
            let mut tidy = Command::new("ctr");
            tidy.args(["--address", &socket, "--namespace", NAMESPACE]).args(words);
            let _ = output_of(tidy, METRICS).await;
        }
    }
    let what = format!("a pull of {image} by {program}");
    match (outcome, before.zip(after)) {
        (Err(Failed::Absent), _) => {
            Finding::new(what, Verdict::Skipped, "not tried: neither crictl nor ctr is installed")
        }
        (Err(Failed::Said(why)), _) => Finding::new(what, Verdict::Bad, why).of_a_pull(),
        (Ok(_), None) => {
            Finding::new(what, Verdict::Skipped, "succeeded; the admin listener cannot be asked whether by the mirror")
        }
        (Ok(_), Some((before, after))) if after > before => {
            Finding::new(what, Verdict::Good, format!("succeeded, with {} requests to the mirror", after - before))
        }
        (Ok(_), Some(_)) => Finding::new(
            what,
            Verdict::Bad,
            "succeeded without a request to the mirror; if its image is there already, give another --image",
        ),
    }
}

enum Failed {
    Absent,
    Said(String),
}

/// A program's standard output.
async fn output_of(mut command: Command, patience: Duration) -> Result<String, Failed> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(patience, command.output()).await {
        Err(_) => return Err(Failed::Said(format!("it did not end within {} s", patience.as_secs()))),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return Err(Failed::Absent),
        Ok(Err(error)) => return Err(Failed::Said(error.to_string())),
        Ok(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failed::Said(said.lines().last().unwrap_or("it failed and does not say why").chars().take(300).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn a_file_is_good_if_it_leads_to_the_mirror() {
        let config = config::check("upstreams: [{host: quay.io}]").unwrap();
        let other = config::check("upstreams: [{host: quay.io}]\nregistryListen: '127.0.0.1:5999'").unwrap();
        let local = Local::of(&config, None, None).unwrap();
        let text =
            |config: &Config| hosts::text(&config.upstreams[0], &Local::of(config, None, None).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let verdict = || file(dir.path(), &config.upstreams[0], &local).unwrap();
        assert_eq!(verdict().result, Verdict::Bad);
        std::fs::create_dir(dir.path().join("quay.io")).unwrap();
        for (text, result, part) in [
            (text(&config), Verdict::Good, "as install writes it"),
            (text(&other), Verdict::Bad, "another listener"),
            ("[host.\"http://127.0.0.1:5000\"]\n".into(), Verdict::Good, "names the mirror"),
            ("  [host.'http://127.0.0.1:5000/']\n".into(), Verdict::Good, "names the mirror"),
            ("# [host.\"http://127.0.0.1:5000\"]\n".into(), Verdict::Bad, "does not name"),
            ("server = \"http://127.0.0.1:5000\"\n".into(), Verdict::Bad, "does not name"),
        ] {
            std::fs::write(dir.path().join("quay.io").join(FILE), &text).unwrap();
            let found = verdict();
            assert_eq!(found.result, result, "{text}");
            assert!(found.detail.contains(part), "{text}: {}", found.detail);
        }
    }

    #[test]
    fn an_image_has_to_be_an_upstreams() {
        let config = config::check("upstreams: [{host: docker.io}, {host: quay.io}]").unwrap();
        assert_eq!(named(&config, "busybox:1.36").unwrap().1.host.to_string(), "docker.io");
        assert_eq!(named(&config, "quay.io/a/b:v1").unwrap().1.host.to_string(), "quay.io");
        for wrong in ["quay.io/a/b", "ghcr.io/a/b:v1", "::"] {
            assert!(named(&config, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn requests_to_the_registry_listener_are_counted_whatever_became_of_them() {
        let metrics = "# TYPE larder_served_requests_total counter\n\
             larder_served_requests_total{listener=\"registry\",outcome=\"ok\"} 3\n\
             larder_served_requests_total{listener=\"registry\",outcome=\"notfound\"} 2\n\
             larder_served_requests_total{listener=\"admin\",outcome=\"ok\"} 50\n";
        assert_eq!(total(metrics), 5);
    }
}
