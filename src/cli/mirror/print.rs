//! `larder mirror print podman|docker`: what other clients need, for the user to put where it belongs. Their files hold
//! more than mirrors, so none is written here.

use anyhow::bail;
use serde::Serialize;
use serde_json::json;

use super::{
    super::output::{self, Format},
    Mirror,
    hosts::{self, reach},
};
use crate::config::{Address, Config, HostPort, UpstreamMode};

/// `print`
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// For which client: podman (also skopeo, buildah and CRI-O) or docker
    #[arg(value_enum)]
    client: Client,
    #[command(flatten)]
    mirror: Mirror,
    /// How to print; as a table: in the form of the client's own file
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Client {
    /// A drop-in for /etc/containers/registries.conf.d/, TOML
    Podman,
    /// Keys for /etc/docker/daemon.json, JSON
    Docker,
}

/// Prints it.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.mirror.read()?;
    match arguments.client {
        Client::Podman => match arguments.output {
            Format::Table => output::print(&podman(&config)?),
            format => output::print_document(&json!({ "registry": registries(&config)? }), format),
        },
        // It is JSON as it is.
        Client::Docker => match arguments.output {
            Format::Table => output::print_document(&docker(&config)?, Format::Json),
            format => output::print_document(&docker(&config)?, format),
        },
    }
}

/// One of `[[registry]]` (containers-registries.conf(5)).
#[derive(Debug, Serialize)]
struct Registry {
    prefix: String,
    location: String,
    insecure: bool,
    mirror: Vec<Place>,
    /// What the user has to know of it.
    #[serde(skip)]
    hint: Option<String>,
}

/// One of `[[registry.mirror]]`.
#[derive(Debug, Serialize)]
struct Place {
    location: String,
    insecure: bool,
}

/// These clients rewrite the name's prefix instead of sending `ns=`, and learn from `/v2/` of a mirror's host alone whether
/// to send a credential: an upstream in pass-through needs a listener of its own.
fn registries(config: &Config) -> anyhow::Result<Vec<Registry>> {
    let authority = reach(&config.registry_listen, "registryListen")?;
    let plain = config.registry.tls.is_none();
    let mut all = Vec::new();
    for upstream in &config.upstreams {
        let host = upstream.host.to_string();
        // The location names where the registry itself is, where that is not what its name says.
        let server = hosts::server(upstream);
        let (insecure, place) = match server.strip_prefix("http://") {
            Some(place) => (true, place),
            None => (false, server.trim_start_matches("https://")),
        };
        let place = if host == "docker.io" && upstream.url.is_none() { "docker.io" } else { place };
        let passes = upstream.mode == UpstreamMode::PassThrough;
        let own = listeners(config).find(|(_, of)| passes && **of == upstream.host);
        let location = match own {
            Some((address, _)) => reach(address, &format!("the listener for {host}"))?,
            None => format!("{authority}/{}", host.replace(':', "_")),
        };
        let blind = passes && own.is_none() && config.upstreams.len() > 1;
        all.push(Registry {
            hint: blind.then(|| {
                format!(
                    "# {host} is in mode passThrough: podman and skopeo send it credentials only through a listener of its \
                     own\n# (`listen` in the configuration).\n"
                )
            }),
            location: place.to_owned(),
            prefix: host,
            insecure,
            mirror: vec![Place { location, insecure: plain }],
        });
    }
    Ok(all)
}

/// The same as `registries.conf`.
fn podman(config: &Config) -> anyhow::Result<String> {
    let mut out = String::from(
        "# From `larder mirror print podman`. Put it into /etc/containers/registries.conf.d/larder.conf.\n\
         # A mirror that does not answer is passed over: the pull goes on to the registry itself.\n",
    );
    if config.registry.tls.is_some() {
        let authority = reach(&config.registry_listen, "registryListen")?;
        out.push_str(&format!(
            "# The listener speaks TLS: put its authority into /etc/containers/certs.d/{authority}/ca.crt.\n"
        ));
        if config.registry.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()) {
            out.push_str(
                "# It asks clients for a certificate: put one, and its key, there as client.cert and client.key.\n",
            );
        }
    }
    let place = |table: &str, location: &str, insecure: bool| {
        let insecure = if insecure { "insecure = true\n" } else { "" };
        format!("{table}location = \"{location}\"\n{insecure}")
    };
    for registry in registries(config)? {
        let table = format!("\n[[registry]]\nprefix = \"{}\"\n", registry.prefix);
        out.push_str(&place(&table, &registry.location, registry.insecure));
        out.push_str(registry.hint.as_deref().unwrap_or_default());
        for mirror in &registry.mirror {
            out.push_str(&place("\n[[registry.mirror]]\n", &mirror.location, mirror.insecure));
        }
    }
    Ok(out)
}

/// The listeners of one upstream each.
fn listeners(config: &Config) -> impl Iterator<Item = (&Address, &HostPort)> {
    let of_upstreams = config.upstreams.iter().filter_map(|u| Some((u.listen.as_ref()?, &u.host)));
    of_upstreams.chain(config.mirror_listen.iter().map(|listen| (&listen.address, &listen.host)))
}

/// `daemon.json`. Docker mirrors Docker Hub alone, and takes only a host's root: a listener of its own.
fn docker(config: &Config) -> anyhow::Result<serde_json::Value> {
    let Some((address, _)) = listeners(config).find(|(_, host)| host.to_string() == "docker.io") else {
        bail!(
            "Docker mirrors docker.io only, by a listener for it alone, and there is none: start `larder serve` with \
             --upstream docker.io=https://registry-1.docker.io --mirror-listen 127.0.0.1:5001=docker.io, or set \
             `listen` of that upstream in the configuration"
        );
    };
    let authority = reach(address, "the listener for docker.io")?;
    if config.registry.tls.is_none() {
        // Docker trusts plain http on loopback; elsewhere it has to be told.
        let loopback = ["127.", "[::1]", "localhost:"].iter().any(|own| authority.starts_with(own));
        let mut keys = json!({ "registry-mirrors": [format!("http://{authority}")] });
        if !loopback {
            keys["insecure-registries"] = json!([authority]);
        }
        return Ok(keys);
    }
    Ok(json!({ "registry-mirrors": [format!("https://{authority}")] }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn podman_is_told_prefix_place_and_mirror_of_each_upstream() {
        let yaml =
            "upstreams: [{host: docker.io}, {host: quay.io}, {host: '127.0.0.1:5001', url: 'http://127.0.0.1:5001'}]";
        let printed = podman(&config::check(yaml).unwrap()).unwrap();
        let lines: Vec<&str> = printed.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "[[registry]]",
                "prefix = \"docker.io\"",
                "location = \"docker.io\"",
                "[[registry.mirror]]",
                "location = \"127.0.0.1:5000/docker.io\"",
                "insecure = true",
                "[[registry]]",
                "prefix = \"quay.io\"",
                "location = \"quay.io\"",
                "[[registry.mirror]]",
                "location = \"127.0.0.1:5000/quay.io\"",
                "insecure = true",
                "[[registry]]",
                "prefix = \"127.0.0.1:5001\"",
                "location = \"127.0.0.1:5001\"",
                "insecure = true",
                "[[registry.mirror]]",
                "location = \"127.0.0.1:5000/127.0.0.1_5001\"",
                "insecure = true",
            ]
        );
    }

    #[test]
    fn podman_goes_to_the_listener_of_an_upstream_that_asks_who_it_is() {
        let yaml = "upstreams: [{host: quay.io, mode: passThrough, listen: '127.0.0.1:5003'}, \
                    {host: ghcr.io, mode: passThrough}, {host: docker.io, listen: '127.0.0.1:5001'}]";
        let printed = podman(&config::check(yaml).unwrap()).unwrap();
        let mirrors: Vec<&str> = printed.lines().filter(|line| line.contains("127.0.0.1:")).collect();
        let location = |place: &str| format!("location = \"{place}\"");
        assert_eq!(mirrors, ["127.0.0.1:5003", "127.0.0.1:5000/ghcr.io", "127.0.0.1:5000/docker.io"].map(location));
        assert!(printed.contains("# ghcr.io is in mode passThrough") && !printed.contains("# quay.io"), "{printed}");
    }

    #[test]
    fn podman_is_told_what_a_listener_with_tls_wants() {
        let printed = |tls: &str| {
            let yaml = format!("upstreams: [{{host: quay.io}}]\nregistry: {{tls: {{cert: /c, key: /k{tls}}}}}");
            podman(&config::check(&yaml).unwrap()).unwrap()
        };
        assert!(printed("").contains("/certs.d/127.0.0.1:5000/ca.crt") && !printed("").contains("client"));
        assert!(printed(", clientCA: /a").contains("there as client.cert and client.key"));
    }

    #[test]
    fn docker_gets_the_listener_that_is_docker_hubs_alone() {
        for (yaml, expected) in [
            (
                "upstreams: [{host: docker.io, listen: '127.0.0.1:5001'}]",
                Some(json!({"registry-mirrors": ["http://127.0.0.1:5001"]})),
            ),
            (
                "upstreams: [{host: docker.io}]\nmirrorListen: ['10.0.0.7:5001=docker.io']",
                Some(json!({"registry-mirrors": ["http://10.0.0.7:5001"], "insecure-registries": ["10.0.0.7:5001"]})),
            ),
            (
                "upstreams: [{host: docker.io, listen: ':5001'}]\nregistry: {tls: {cert: /c, key: /k}}",
                Some(json!({"registry-mirrors": ["https://[::1]:5001"]})),
            ),
            ("upstreams: [{host: docker.io}]", None),
            ("upstreams: [{host: quay.io, listen: '127.0.0.1:5001'}]", None),
            ("upstreams: [{host: docker.io, listen: '127.0.0.1:0'}]", None),
        ] {
            assert_eq!(docker(&config::check(yaml).unwrap()).ok(), expected, "{yaml}");
        }
    }
}
