//! Who an object is to its registry: what its Secrets hold, else whoever logs in at the registry's cloud, else nobody.

use std::sync::Arc;

use super::{
    Shared,
    desired::{Asked, Refused, has_tls, secret},
};
use crate::{
    class::Class,
    objects::{Object, ServiceAccount},
    oci::{Reference, Registry},
    registry::{
        Credentials, DockerConfig, Transport, docker_config,
        login::{Account, LoginError, Provider},
    },
};

/// What an object names of credentials.
pub(super) enum Found {
    /// These.
    Given(Credentials),
    /// A login, as a ServiceAccount or as the controller itself.
    Login(Provider, Option<Account>),
}

impl Found {
    /// The credentials for a registry that is reached by `transport`.
    pub(super) fn settle(
        self,
        shared: &Shared,
        registry: &Registry,
        transport: &Transport,
    ) -> Result<Credentials, Refused> {
        match self {
            Self::Given(credentials) => Ok(credentials),
            Self::Login(provider, account) => {
                shared.puller.login(provider, account, registry, transport).map_err(refused)
            }
        }
    }
}

fn refused(error: LoginError) -> Refused {
    match error {
        LoginError::NotBuiltIn(_) => {
            Refused::spec("FeatureGateDisabled", Class::Policy, format!("spec.provider: {error}"))
        }
        _ => Refused::authentication(format!("spec.provider: {error}")),
    }
}

/// Reads what an object names of credentials.
pub(super) async fn find(
    shared: &Arc<Shared>,
    object: &Object,
    asked: &Asked<'_>,
    reference: &Reference,
) -> Result<Found, Refused> {
    let gate = shared.config.object_level_identity;
    let cloud = asked.provider != "generic";
    let mut as_account = None;
    let mut secrets = Vec::new();
    if let Some(named) = asked.secret {
        secrets.push(("secretRef".to_string(), secret(shared, object, "secretRef", named).await?, named.to_string()));
    }
    if let Some(account) = asked.service_account {
        let found = shared.backend.references().service_account(&object.key.namespace, account).await;
        let found = found.map_err(|e| Refused::authentication(format!("spec.serviceAccountName: {e}")))?;
        let found = match found {
            Some(found) => found,
            // Whether it is there is of no use as long as it may not log in.
            None if cloud && !gate => ServiceAccount::default(),
            None => {
                let message =
                    format!("spec.serviceAccountName: ServiceAccount '{}/{account}' not found", object.key.namespace);
                return Err(Refused::authentication(message));
            }
        };
        for name in found.image_pull_secrets {
            let field = format!("serviceAccountName: imagePullSecrets of {account}");
            let pulled = secret(shared, object, &field, &name).await?;
            secrets.push((field, pulled, name));
        }
        as_account = Some(Account {
            namespace: object.key.namespace.to_string(),
            name: account.to_owned(),
            annotations: found.annotations,
        });
    }
    if cloud && secrets.is_empty() {
        return login(asked.provider, as_account, gate);
    }
    let mut config = DockerConfig::default();
    for (field, secret, name) in secrets {
        let named = |what: &str| {
            Refused::authentication(format!("spec.{field}: Secret '{}/{name}' {what}", object.key.namespace))
        };
        let data = |key: &str| secret.data.get(key);
        for (key, kind) in PULL_SECRETS {
            if data(key).is_some() && secret.kind != kind {
                let found = &secret.kind;
                return Err(named(&format!(
                    "has a {key} and is of type {found}: its type has to be {kind}; make it with \
                     `kubectl create secret docker-registry`"
                )));
            }
        }
        if let Some(text) = data(".dockerconfigjson") {
            let more = docker_config::parse(text.expose().as_bytes())
                .map_err(|e| named(&format!("has a .dockerconfigjson that cannot be used: {e}")))?;
            config.merge(more);
        } else if let Some(text) = data(".dockercfg") {
            let more = docker_config::parse_legacy(text.expose().as_bytes())
                .map_err(|e| named(&format!("has a .dockercfg that cannot be used: {e}")))?;
            config.merge(more);
        } else if asked.plain_secret && (data("username").is_some() || data("password").is_some()) {
            let (Some(username), Some(password)) = (data("username"), data("password")) else {
                return Err(named("must have both username and password"));
            };
            return Ok(Found::Given(Credentials::Basic {
                username: username.expose().to_string(),
                password: password.clone(),
            }));
        } else if !(asked.plain_secret && has_tls(&secret)) {
            let what = "has neither .dockerconfigjson nor what else this kind takes; make it with \
                        `kubectl create secret docker-registry`";
            return Err(named(what));
        }
    }
    // As in a kubelet's keychain the longest path counts, whichever Secret it stands in. Where they name only other registries:
    // anonymous, but no cloud login.
    Ok(Found::Given(config.lookup(&reference.registry, &reference.repository)))
}

/// What logs in at registries, and the type of Secret that has it: kubelets and Flux take it from no other.
const PULL_SECRETS: [(&str, &str); 2] =
    [(".dockerconfigjson", "kubernetes.io/dockerconfigjson"), (".dockercfg", "kubernetes.io/dockercfg")];

/// What a spec alone shows, of [`find`].
pub(super) fn acceptable(asked: &Asked<'_>) -> Result<(), Refused> {
    // With either there may be a Secret, and then there is no login.
    if asked.provider == "generic" || asked.secret.is_some() || asked.service_account.is_some() {
        return Ok(());
    }
    login(asked.provider, None, false).map(drop)
}

fn login(provider: &str, account: Option<Account>, gate: bool) -> Result<Found, Refused> {
    let disabled = |message: String| Refused::spec("FeatureGateDisabled", Class::Policy, message);
    let known = Provider::find(provider)
        .ok_or_else(|| disabled(format!("spec.provider: {provider} is no login at registries; name a secretRef")))?;
    if !known.is_built_in() {
        return Err(refused(LoginError::NotBuiltIn(known)));
    }
    if account.is_some() && !gate {
        let message = "spec.serviceAccountName: to log in with it enable the feature gate ObjectLevelWorkloadIdentity \
                       (--feature-gates ObjectLevelWorkloadIdentity=true)";
        return Err(disabled(message.to_owned()));
    }
    Ok(Found::Login(known, account))
}
