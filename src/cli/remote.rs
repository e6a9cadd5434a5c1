//! What every command that talks to a registry has in common: its flags, and the client they make.

use std::{io::Read as _, path::PathBuf, time::Instant};

use anyhow::Context as _;

use super::usage;
use crate::{
    objects::FluxDuration,
    oci::{Reference, Repository},
    registry::{self, Budget, Client, Credentials, Endpoint, ProxyEnvironment, Transport, docker_config::DockerConfig},
    secret::Secret,
};

/// Flags of a command that talks to a registry.
#[derive(Debug, clap::Args)]
pub struct Remote {
    /// Credentials as USER:PASSWORD (seen by others on this machine in the process list; prefer --creds-stdin)
    #[arg(long, value_name = "USER:PASSWORD", conflicts_with = "creds_stdin", hide_env_values = true)]
    creds: Option<String>,
    /// Read USER:PASSWORD from stdin
    #[arg(long)]
    creds_stdin: bool,
    /// Speak plain http to the registry
    #[arg(long)]
    plain_http: bool,
    /// Do not verify the registry's certificate
    #[arg(long, conflicts_with = "plain_http")]
    insecure_skip_tls_verify: bool,
    /// Trust the CA certificates in this PEM file too
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Give up after this long
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    timeout: FluxDuration,
}

/// A registry, ready to be asked.
pub struct Opened {
    /// The client.
    pub client: Client,
    /// How and as whom.
    pub endpoint: Endpoint,
    /// The repository.
    pub repository: Repository,
    /// The command's budget.
    pub budget: Budget,
}

impl Remote {
    /// Whether stdin is taken by the credentials.
    pub fn takes_stdin(&self) -> bool {
        self.creds_stdin
    }

    /// Connects nothing yet: reads credentials and certificates, and makes the client.
    pub async fn open(&self, reference: &Reference) -> anyhow::Result<Opened> {
        let ca = match &self.ca {
            Some(path) => {
                let pem =
                    std::fs::read_to_string(path).with_context(|| format!("cannot read --ca {}", path.display()))?;
                Some(pem.into())
            }
            None => None,
        };
        let transport = Transport {
            ca,
            plain_http: self.plain_http,
            skip_tls_verify: self.insecure_skip_tls_verify,
            // Whoever types a command may name this machine.
            allow_loopback: true,
            ..Transport::default()
        };
        let given = self.given()?;
        // A person who writes a password takes no time of the registry's, a helper that is asked for one does.
        let begun = Instant::now();
        let credentials = match given {
            Some(given) => given,
            None => self.looked_up(reference).await?,
        };
        let client = Client::new(registry::Config {
            // So may a name that leads to it, such as localhost.
            egress_allow: ["127.0.0.0/8", "::1/128"].map(String::from).to_vec(),
            proxies: ProxyEnvironment::read(|name| std::env::var(name).ok()),
            ..registry::Config::default()
        })?;
        let endpoint = Endpoint { registry: reference.registry.clone(), transport, credentials };
        let budget = Budget::until(begun + self.timeout.get()).requested(true);
        Ok(Opened { client, endpoint, repository: reference.repository.clone(), budget })
    }

    /// Those of the flags.
    fn given(&self) -> anyhow::Result<Option<Credentials>> {
        let given = match (&self.creds, self.creds_stdin) {
            (Some(given), _) => Some(given.clone()),
            (None, true) => {
                let mut text = String::new();
                std::io::stdin().take(64 << 10).read_to_string(&mut text).context("--creds-stdin")?;
                Some(text.trim_end_matches(['\r', '\n']).to_string())
            }
            (None, false) => None,
        };
        let Some(given) = given else { return Ok(None) };
        let Some((username, password)) = given.split_once(':') else {
            return Err(usage("credentials are written USER:PASSWORD; there is no colon in what was given"));
        };
        Ok(Some(Credentials::Basic { username: username.into(), password: Secret::new(password) }))
    }

    /// Those of the Docker config and its helpers.
    async fn looked_up(&self, reference: &Reference) -> anyhow::Result<Credentials> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let (directory, home) = (variable("DOCKER_CONFIG"), variable("HOME"));
        let Some(path) = DockerConfig::path(directory.as_deref(), home.as_deref()) else {
            return Ok(Credentials::Anonymous);
        };
        let found = async {
            let config = DockerConfig::load(&path).await?;
            config.lookup_with_helpers(&reference.registry, &reference.repository, self.timeout.get()).await
        };
        found.await.with_context(|| format!("cannot take credentials from {}", path.display()))
    }
}

/// Parses a reference given on the command line.
pub fn reference(text: &str) -> Result<Reference, String> {
    Reference::parse(text).map_err(|e| e.to_string())
}
