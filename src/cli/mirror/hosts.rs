//! containerd's `hosts.toml` (containerd, docs/hosts.md): the text for an upstream, and whose a file is.
//!
//! The first line says who wrote a file and the hash of what follows it, so that a file which somebody changed, or wrote
//! by hand, is told from one that may be replaced.

use std::path::{Path, PathBuf};

use anyhow::bail;

use super::super::usage;
use crate::{
    config::{Address, Config, UpstreamSettings},
    oci::Registry,
};

/// The file's name.
pub const FILE: &str = "hosts.toml";
/// What was there before, put aside.
pub const ASIDE: &str = "hosts.toml.before-larder";

/// How the first line begins; the hash of the rest follows.
const MARK: &str = "# Written by `larder mirror install`; `larder mirror uninstall` removes it. Hash: ";
/// How many digits of the hash stand there: against changes by hand, not by an attacker.
const DIGITS: usize = 16;

/// Where the mirror is, for a client on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// `http://127.0.0.1:5000`
    pub url: String,
    /// The authorities, or the certificate itself, by which clients know it.
    pub ca: Option<PathBuf>,
    /// Certificate and key for a listener that asks its clients for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl Local {
    /// Where the registry listener is. `ca` and `client` go before what the configuration tells.
    pub fn of(config: &Config, ca: Option<PathBuf>, client: Option<(PathBuf, PathBuf)>) -> anyhow::Result<Self> {
        let authority = reach(&config.registry_listen, "registryListen")?;
        let Some(tls) = &config.registry.tls else {
            if ca.is_some() || client.is_some() {
                return Err(usage("certificates are for a listener with TLS, and registry.tls is not set"));
            }
            return Ok(Self { url: format!("http://{authority}"), ca: None, client: None });
        };
        if tls.client_ca.is_some() && client.is_none() {
            return Err(usage(
                "registry.tls.clientCA is set, so clients need a certificate: give --client-cert FILE and --client-key FILE",
            ));
        }
        // A Go client takes the server's own certificate as an authority, so its file does where no other is named.
        let ca = Some(ca.unwrap_or_else(|| tls.cert.clone()));
        Ok(Self { url: format!("https://{authority}"), ca, client })
    }
}

/// HOST:PORT by which a client on this machine reaches a listener.
///
/// # Errors
/// Port 0, which is another one at each start.
pub fn reach(address: &Address, setting: &str) -> anyhow::Result<String> {
    if address.port == 0 {
        return Err(usage(format!(
            "{setting} is {address}, a port that changes with each start: set one, such as {}",
            Address::new("127.0.0.1", 5000)
        )));
    }
    let host = match address.host.as_str() {
        "0.0.0.0" | "" => "127.0.0.1",
        "::" => "::1",
        host => host,
    };
    Ok(Address::new(host, address.port).to_string())
}

/// The folder for a registry below `certs.d`: `host`, or `host_port_` (containerd's hostPaths, which takes that first,
/// since a colon is no part of a path everywhere).
pub fn folder(upstream: &UpstreamSettings) -> String {
    let host = &upstream.host;
    match host.port {
        Some(port) => {
            let whole = host.to_string();
            let name = whole.strip_suffix(&format!(":{port}")).unwrap_or(&whole).to_owned();
            format!("{name}_{port}_")
        }
        None => host.to_string(),
    }
}

/// Where clients go when the mirror does not answer: the registry as they reach it without Larder, by its own name. Of
/// the `url` only that counts which says how to speak to that name: one that leads elsewhere, to an address inside or to
/// another cache, is Larder's way, which clients may not have, or may not use with their credentials.
pub fn server(upstream: &UpstreamSettings) -> String {
    let host = upstream.host.to_string();
    let Ok(registry) = host.parse::<Registry>() else { return format!("https://{host}") };
    let plain = match &upstream.url {
        Some(url) if names_host(upstream) => url.starts_with("http://"),
        // As containerd speaks to a registry on its own machine unless told otherwise.
        Some(_) => registry.is_loopback_literal() && registry.port().is_some_and(|port| port != 443),
        None => false,
    };
    format!("{}://{}", if plain { "http" } else { "https" }, registry.api_authority())
}

/// Whether Larder asks the registry by its own name, too.
fn names_host(upstream: &UpstreamSettings) -> bool {
    let Some(url) = &upstream.url else { return true };
    let at = url.split_once("://").map_or(url.as_str(), |(_, at)| at).trim_end_matches('/');
    let named = |text: &str| text.strip_suffix(":443").unwrap_or(text).parse::<Registry>().ok();
    named(at) == named(&upstream.host.to_string())
}

/// The whole text of the file for an upstream.
pub fn text(upstream: &UpstreamSettings, local: &Local) -> anyhow::Result<String> {
    let mut rest = String::new();
    rest.push_str(&format!("# Pulls from {} go to the mirror on this machine first, and to the\n", upstream.host));
    rest.push_str("# server below where the mirror does not answer within the time of dial_timeout, or says that it cannot help.\n");
    rest.push_str(&format!("server = {}\n", quoted(&server(upstream))?));
    // It is for the server that Larder asks.
    if let Some(ca) = upstream.ca.as_ref().filter(|_| names_host(upstream)) {
        rest.push_str(&format!("ca = {}\n", quoted_path(ca)?));
    }
    rest.push_str(&format!("\n[host.{}]\n", quoted(&local.url)?));
    rest.push_str("  capabilities = [\"pull\", \"resolve\"]\n");
    rest.push_str("  dial_timeout = \"200ms\"\n");
    if let Some(ca) = &local.ca {
        rest.push_str(&format!("  ca = {}\n", quoted_path(ca)?));
    }
    if let Some((cert, key)) = &local.client {
        rest.push_str(&format!("  client = [[{}, {}]]\n", quoted_path(cert)?, quoted_path(key)?));
    }
    Ok(format!("{MARK}{}\n{rest}", hash(&rest)))
}

/// Whose a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// As install wrote it.
    Larder,
    /// Install wrote it, and somebody changed it.
    Changed,
    /// Not of install's making.
    Other,
}

/// Whose a file with this text is.
pub fn owner(text: &str) -> Owner {
    let Some((said, rest)) = text.strip_prefix(MARK).and_then(|text| text.split_once('\n')) else {
        return Owner::Other;
    };
    if said.trim_end() == hash(rest) { Owner::Larder } else { Owner::Changed }
}

fn hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().chars().take(DIGITS).collect()
}

/// A path that means the same wherever it is read: containerd takes relative ones from the file's folder.
fn quoted_path(path: &Path) -> anyhow::Result<String> {
    let whole = std::path::absolute(path)?;
    match whole.to_str() {
        Some(text) => quoted(text),
        None => bail!("{} cannot be written into a hosts.toml: it is not UTF-8", whole.display()),
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> anyhow::Result<String> {
    if text.chars().any(char::is_control) {
        bail!("{text:?} cannot be written into a hosts.toml: it holds a control character");
    }
    Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn config(text: &str) -> Config {
        config::check(text).unwrap()
    }

    #[test]
    fn a_folder_is_named_as_containerd_looks_for_it() {
        let named = |host: &str| folder(&UpstreamSettings::new(host.parse().unwrap(), String::new()));
        assert_eq!(named("docker.io"), "docker.io");
        assert_eq!(named("127.0.0.1:5001"), "127.0.0.1_5001_");
        assert_eq!(named("[::1]:5001"), "[::1]_5001_");
        assert_eq!(named("Registry.Example:443"), "registry.example_443_");
    }

    #[test]
    fn fallback_leads_to_where_clients_go_without_a_mirror() {
        for (yaml, expected) in [
            ("upstreams: [{host: ghcr.io}]", "https://ghcr.io"),
            ("upstreams: [{host: docker.io}]", "https://registry-1.docker.io"),
            ("upstreams: [{host: docker.io, url: 'https://hub.example'}]", "https://registry-1.docker.io"),
            ("upstreams: [{host: docker.io, url: 'https://registry-1.docker.io/'}]", "https://registry-1.docker.io"),
            ("upstreams: [{host: ghcr.io, url: 'https://ghcr.io:443'}]", "https://ghcr.io"),
            ("upstreams: [{host: ghcr.io, url: 'http://10.0.0.7:5000'}]", "https://ghcr.io"),
            ("upstreams: [{host: 'r.example:5000', url: 'https://10.0.0.7:5000'}]", "https://r.example:5000"),
            ("upstreams: [{host: 'r.example:5000', url: 'http://r.example:5000'}]", "http://r.example:5000"),
            ("upstreams: [{host: 'r.example:5000', url: 'http://r.example'}]", "https://r.example:5000"),
            ("upstreams: [{host: '127.0.0.1:5001', url: 'https://10.0.0.7'}]", "http://127.0.0.1:5001"),
            ("upstreams: [{host: '127.0.0.1:5001', url: 'http://127.0.0.1:5001/'}]", "http://127.0.0.1:5001"),
        ] {
            assert_eq!(server(&config(yaml).upstreams[0]), expected, "{yaml}");
        }
    }

    #[test]
    fn a_file_tells_containerd_to_ask_the_mirror_first() {
        let plain = config("upstreams: [{host: quay.io, ca: /etc/ssl/corp.pem}]\nregistryListen: '0.0.0.0:5005'");
        let written = text(&plain.upstreams[0], &Local::of(&plain, None, None).unwrap()).unwrap();
        let body: Vec<&str> = written.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            body,
            [
                "server = \"https://quay.io\"",
                "ca = \"/etc/ssl/corp.pem\"",
                "",
                "[host.\"http://127.0.0.1:5005\"]",
                "  capabilities = [\"pull\", \"resolve\"]",
                "  dial_timeout = \"200ms\"",
            ]
        );
        let elsewhere = config("upstreams: [{host: quay.io, url: 'https://10.0.0.7', ca: /etc/ssl/corp.pem}]");
        let written = text(&elsewhere.upstreams[0], &Local::of(&elsewhere, None, None).unwrap()).unwrap();
        assert!(!written.contains("corp.pem"), "an authority for another server: {written}");
        let tls =
            config("upstreams: [{host: quay.io}]\nregistry: {tls: {cert: /c.pem, key: /k.pem, clientCA: /a.pem}}");
        assert!(Local::of(&tls, None, None).is_err());
        let local = Local::of(&tls, None, Some(("/x.pem".into(), "/y.pem".into()))).unwrap();
        let written = text(&tls.upstreams[0], &local).unwrap();
        for line in ["[host.\"https://127.0.0.1:5000\"]", "  ca = \"/c.pem\"", "  client = [[\"/x.pem\", \"/y.pem\"]]"]
        {
            assert!(written.lines().any(|l| l == line), "{line}: {written}");
        }
    }

    #[test]
    fn a_port_that_changes_cannot_be_written_down() {
        let any = config("upstreams: [{host: quay.io}]\nregistryListen: '127.0.0.1:0'");
        assert!(Local::of(&any, None, None).unwrap_err().to_string().contains("registryListen"));
        let six = config("upstreams: [{host: quay.io}]\nregistryListen: '[::]:5000'");
        assert_eq!(Local::of(&six, None, None).unwrap().url, "http://[::1]:5000");
    }

    #[test]
    fn whose_a_file_is_shows_in_its_first_line() {
        let config = config("upstreams: [{host: quay.io}]");
        let written = text(&config.upstreams[0], &Local::of(&config, None, None).unwrap()).unwrap();
        assert_eq!(owner(&written), Owner::Larder);
        assert_eq!(owner(&written.replace("200ms", "5s")), Owner::Changed);
        assert_eq!(owner(&format!("{written}\n")), Owner::Changed);
        for other in ["", "server = \"https://quay.io\"\n", "# Written by hand\n", &written[1..]] {
            assert_eq!(owner(other), Owner::Other, "{other}");
        }
    }

    #[test]
    fn nothing_breaks_out_of_a_string() {
        assert_eq!(quoted(r#"a"b\c"#).unwrap(), r#""a\"b\\c""#);
        assert!(quoted("a\nb").is_err());
    }
}
