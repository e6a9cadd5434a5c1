//! Logins to the clouds' registries: from the identity of a workload to credentials that the registry takes.
//!
//! | cloud | identity | exchanges |
//! | --- | --- | --- |
//! | `aws` | a role (IRSA), EKS Pod Identity, access keys | STS AssumeRoleWithWebIdentity, ECR GetAuthorizationToken |
//! | `azure` | a federated application | Entra ID client assertion, ACR `/oauth2/exchange` |
//! | `gcp` | the metadata server's, a workload identity pool's | STS, generateAccessToken |
//!
//! **Promise.** [`Credentials::Login`] says only as whom to log in, so it stays equal while tokens come and go, and two
//! identities never share what depends on credentials. The token is fetched when a call needs it, once however many calls
//! do, kept for 80 % of its life, and forgotten when the registry refuses it. It goes to a registry of its own cloud, to
//! one that `tokenRealms` lists, or to this machine; see [`Client::login`]. No message carries a token, also where a token
//! service repeats it. The metadata addresses are reachable from here alone, and only where an identity comes from there.
//!
//! **Concurrency.** Any number of calls at once. **After a crash** nothing remains.

// Each cloud is a feature; without all of them some of what they share has no use.
#![cfg_attr(
    not(all(feature = "aws", feature = "azure", feature = "gcp")),
    allow(dead_code, unused_imports, unused_variables)
)]

#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "azure")]
mod azure;
mod environment;
mod exchange;
#[cfg(feature = "gcp")]
mod gcp;
#[cfg(feature = "aws")]
mod sigv4;

use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use moka::future::Cache;

pub use self::environment::{AwsEnvironment, AwsKeys, AzureEnvironment, Environment, GcpEnvironment};
use self::exchange::Exchange;
use super::{
    Client, Credentials, Inner, Transport,
    call::{Call, Session},
    connect::{Profile, lock},
    error::RegistryError,
    target::Target,
};
use crate::{oci::Registry, secret::Secret};

/// The user whose password is an ACR refresh token (Azure's documentation, "az acr login --expose-token").
pub(super) const ACR_USER: &str = "00000000-0000-0000-0000-000000000000";
/// How many logins are remembered.
const MAX_GRANTS: u64 = 16_384;
/// A login is not kept longer than this, whatever its service says.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// A cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Amazon's: ECR.
    Aws,
    /// Microsoft's: ACR.
    Azure,
    /// Google's: Artifact Registry, Container Registry.
    Gcp,
}

impl Provider {
    /// The provider that `spec.provider` names.
    pub fn find(text: &str) -> Option<Self> {
        [Self::Aws, Self::Azure, Self::Gcp].into_iter().find(|provider| provider.name() == text)
    }

    /// Its name, as in `spec.provider`; the Cargo feature is called the same.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Azure => "azure",
            Self::Gcp => "gcp",
        }
    }

    /// How the names of the annotations begin by which a ServiceAccount stands for something in this cloud.
    const fn annotations(self) -> &'static [&'static str] {
        match self {
            Self::Aws => &["eks.amazonaws.com/"],
            Self::Azure => &["azure.workload.identity/"],
            Self::Gcp => &["iam.gke.io/", "gcp.auth.fluxcd.io/"],
        }
    }

    /// Whether this program was built with it.
    pub const fn is_built_in(self) -> bool {
        match self {
            Self::Aws => cfg!(feature = "aws"),
            Self::Azure => cfg!(feature = "azure"),
            Self::Gcp => cfg!(feature = "gcp"),
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A ServiceAccount whose token is exchanged, instead of the controller's own identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Account {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its annotations: which role, client or service account it stands for.
    pub annotations: BTreeMap<String, String>,
}

impl Account {
    fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceAccount '{}/{}'", self.namespace, self.name)
    }
}

/// As whom to log in, and where. Made by [`Client::login`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Login {
    provider: Provider,
    registry: Registry,
    /// `None`: the controller itself.
    account: Option<Account>,
    /// The role, client or service account.
    identity: String,
}

/// Why there can be no login.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The program has no such login.
    #[error("this program was built without logins to {0} (Cargo feature `{0}`); name a secretRef")]
    NotBuiltIn(Provider),
    /// The registry is not one of the cloud's.
    #[error("{registry} is no registry of {provider}, which would be {wanted}")]
    Host {
        /// The cloud.
        provider: Provider,
        /// The registry.
        registry: String,
        /// What its registries are called.
        wanted: &'static str,
    },
    /// The credentials of the installation could be seen by others on the way.
    #[error("the controller's own identity is not shown over {0}; use a secretRef, or a serviceAccountName")]
    Exposed(&'static str),
    /// There is nobody to log in as.
    #[error("{0}")]
    Identity(String),
}

/// What an [`AccountTokens`] answers; `None` where there is no such ServiceAccount.
pub type AccountToken<'a> =
    Pin<Box<dyn Future<Output = Result<Option<Secret>, Box<dyn std::error::Error + Send + Sync>>> + Send + 'a>>;

/// Who issues tokens of ServiceAccounts: the cluster's TokenRequest API.
pub trait AccountTokens: fmt::Debug + Send + Sync {
    /// A fresh token of a ServiceAccount for `audiences`.
    fn token<'a>(&'a self, namespace: &'a str, name: &'a str, audiences: &'a [String]) -> AccountToken<'a>;
}

/// What logins need of an installation.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// What the environment says of the controller's own identity.
    pub environment: Environment,
    /// Who issues tokens of ServiceAccounts, if anybody.
    pub accounts: Option<Arc<dyn AccountTokens>>,
}

/// What a login came to.
#[derive(Clone)]
pub(super) struct Grant {
    credentials: Arc<Credentials>,
    keep: Duration,
}

impl Grant {
    /// Of credentials that are good for `life`.
    fn new(credentials: Credentials, life: Duration) -> Self {
        Self { credentials: Arc::new(credentials), keep: life.min(LONGEST_LIFE) * 4 / 5 }
    }
}

/// Keeps each grant for as long as it says.
struct GrantLife;

impl moka::Expiry<u64, Grant> for GrantLife {
    fn expire_after_create(&self, _: &u64, grant: &Grant, _: Instant) -> Option<Duration> {
        Some(grant.keep)
    }
}

/// All logins of a client.
pub(super) struct Logins {
    config: Config,
    /// By session: registry, transport and identity.
    grants: Cache<u64, Grant>,
    /// Connections to metadata addresses, once an identity comes from there.
    metadata: OnceLock<Arc<Profile>>,
}

impl Logins {
    pub(super) fn new(config: Config) -> Self {
        let grants = Cache::builder().max_capacity(MAX_GRANTS).expire_after(GrantLife).build();
        Self { config, grants, metadata: OnceLock::new() }
    }
}

impl Client {
    /// Credentials that log in at `provider`'s registry `registry`, as `account` or as the controller itself. Nothing is
    /// sent before a call uses them.
    ///
    /// # Errors
    /// Where there is nobody to log in as, or the registry must not see the login: credentials of a cloud go to that
    /// cloud's registries, to hosts that `tokenRealms` lists, and to this machine itself (aws: to ECR alone, whose names
    /// say where to log in). The controller's own go over verified TLS only, and not where the same object names both
    /// the proxy and the certificate authorities.
    pub fn login(
        &self,
        provider: Provider,
        mut account: Option<Account>,
        registry: &Registry,
        transport: &Transport,
    ) -> Result<Credentials, LoginError> {
        if !provider.is_built_in() {
            return Err(LoginError::NotBuiltIn(provider));
        }
        let listed = registry.is_loopback_literal() || self.0.is_token_realm(registry.host(), &registry.to_string());
        check_host(provider, registry, listed)?;
        if account.is_none() && !registry.is_loopback_literal() {
            if transport.insecure || transport.plain_http || transport.skip_tls_verify {
                return Err(LoginError::Exposed("connections without verified TLS"));
            }
            if transport.ca.is_some() && transport.proxy.is_some() {
                return Err(LoginError::Exposed("a proxy whose certificates the same object vouches for"));
            }
        }
        if let Some(account) = &mut account {
            // The others may change without making it somebody else.
            account.annotations.retain(|name, _| provider.annotations().iter().any(|prefix| name.starts_with(prefix)));
        }
        let identity = identity(&self.0.logins.config.environment, provider, account.as_ref())?;
        Ok(Credentials::Login(Arc::new(Login { provider, registry: registry.clone(), account, identity })))
    }
}

/// As whom a login is, in words.
fn identity(environment: &Environment, provider: Provider, account: Option<&Account>) -> Result<String, LoginError> {
    match provider {
        #[cfg(feature = "aws")]
        Provider::Aws => aws::identity(&environment.aws, account),
        #[cfg(feature = "azure")]
        Provider::Azure => azure::identity(&environment.azure, account),
        #[cfg(feature = "gcp")]
        Provider::Gcp => gcp::identity(&environment.gcp, account),
        #[cfg(not(all(feature = "aws", feature = "azure", feature = "gcp")))]
        _ => Err(LoginError::NotBuiltIn(provider)),
    }
}

/// Whether a login at `provider` may be shown to `registry`.
fn check_host(provider: Provider, registry: &Registry, listed: bool) -> Result<(), LoginError> {
    let host = registry.host();
    let standard = registry.port().is_none_or(|port| port == 443);
    let below = |domains: &[&str]| {
        standard && domains.iter().any(|domain| host.strip_suffix(domain).is_some_and(|head| !head.is_empty()))
    };
    let (good, wanted) = match provider {
        #[cfg(feature = "aws")]
        Provider::Aws => {
            (standard && aws::Ecr::parse(host).is_some(), "ACCOUNT.dkr.ecr.REGION.amazonaws.com or public.ecr.aws")
        }
        Provider::Azure => {
            (listed || below(&[".azurecr.io", ".azurecr.cn", ".azurecr.us", ".azurecr.de"]), "NAME.azurecr.io")
        }
        Provider::Gcp => (
            listed || below(&["-docker.pkg.dev", ".gcr.io"]) || (standard && host == "gcr.io"),
            "LOCATION-docker.pkg.dev or gcr.io; tokenRealms may permit another",
        ),
        #[cfg(not(feature = "aws"))]
        Provider::Aws => (false, "one of ECR"),
    };
    if good { Ok(()) } else { Err(LoginError::Host { provider, registry: registry.to_string(), wanted }) }
}

impl Inner {
    /// Logs the session in, where it has a login: after this its credentials are those that the registry takes.
    pub(super) async fn log_in(
        &self,
        session: &Arc<Session>,
        call: &Call<'_>,
        base: &Target,
    ) -> Result<(), RegistryError> {
        let Credentials::Login(login) = &session.endpoint.credentials else { return Ok(()) };
        let exchange = Exchange { inner: self, session, call, base, login };
        let grant = self.logins.grants.try_get_with(session.id, Box::pin(exchange.run())).await.map_err(|source| {
            RegistryError::Login { provider: login.provider, registry: login.registry.to_string(), source }
        })?;
        *lock(&session.credentials) = grant.credentials;
        Ok(())
    }

    /// Forgets what a login came to, since the registry refused it; the next call logs in anew.
    pub(super) async fn log_out(&self, session: &Session) {
        // Another call may have logged in again already.
        let kept = self.logins.grants.get(&session.id).await;
        if kept.is_some_and(|kept| Arc::ptr_eq(&kept.credentials, &session.credentials())) {
            self.logins.grants.invalidate(&session.id).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_shown_to_the_clouds_own_registries_only() {
        for (provider, registry, listed, good) in [
            (Provider::Azure, "name.azurecr.io", false, true),
            (Provider::Azure, "name.azurecr.cn", false, true),
            (Provider::Azure, "name.azurecr.us:443", false, true),
            (Provider::Azure, "name.azurecr.io:8443", false, false),
            (Provider::Azure, "azurecr.io", false, false),
            (Provider::Azure, "name.azurecr.io.evil.example", false, false),
            (Provider::Azure, "evil-azurecr.io", false, false),
            (Provider::Azure, "registry.example", false, false),
            (Provider::Azure, "registry.example", true, true),
            (Provider::Gcp, "europe-docker.pkg.dev", false, true),
            (Provider::Gcp, "gcr.io", false, true),
            (Provider::Gcp, "eu.gcr.io", false, true),
            (Provider::Gcp, "evilgcr.io", false, false),
            (Provider::Gcp, "docker.pkg.dev", false, false),
            (Provider::Gcp, "127.0.0.1:5000", true, true),
            (Provider::Aws, "123456789012.dkr.ecr.eu-west-1.amazonaws.com", false, cfg!(feature = "aws")),
            (Provider::Aws, "public.ecr.aws", false, cfg!(feature = "aws")),
            (Provider::Aws, "127.0.0.1:5000", true, false),
        ] {
            let checked = check_host(provider, &registry.parse().unwrap(), listed);
            assert_eq!(checked.is_ok(), good, "{provider} {registry}: {checked:?}");
        }
    }
}
