//! Azure: a federated token → Entra ID's access token → ACR's refresh token, which its token service takes.
//!
//! The identity is the workload identity webhook's: `AZURE_CLIENT_ID`, `AZURE_TENANT_ID` and
//! `AZURE_FEDERATED_TOKEN_FILE`. A ServiceAccount stands for the application in its annotations
//! `azure.workload.identity/client-id` and `…/tenant-id`.

use std::time::Duration;

use http::Method;
use serde::Deserialize;

use super::{
    ACR_USER, Account, Grant, LoginError,
    environment::AzureEnvironment,
    exchange::{Ask, At, Exchange, below, expiry_of_jwt, named_url, read_token, setup, until},
};
use crate::{
    registry::{Credentials, error::RegistryError, target::Target},
    secret::Secret,
};

const CLIENT: &str = "azure.workload.identity/client-id";
const TENANT: &str = "azure.workload.identity/tenant-id";
/// What tokens of ServiceAccounts are for ("Workload identity federation").
const AUDIENCE: &str = "api://AzureADTokenExchange";
/// Of registries only: a token for Azure Resource Manager would do too, and much more besides.
const SCOPE: &str = "https://containerregistry.azure.net/.default";
/// A refresh token's life where it does not say so itself.
const DEFAULT_LIFE: Duration = Duration::from_secs(3600);

/// Tenant and client.
fn parts<'a>(
    environment: &'a AzureEnvironment,
    account: Option<&'a Account>,
) -> Result<(&'a str, &'a str), LoginError> {
    let missing = |what: String| Err(LoginError::Identity(what));
    let found = match account {
        Some(account) => {
            let tenant = account.annotation(TENANT).or(environment.tenant.as_deref());
            match (tenant, account.annotation(CLIENT)) {
                (Some(tenant), Some(client)) => (tenant, client),
                (None, _) => return missing(format!("{account} has no annotation {TENANT}")),
                (_, None) => return missing(format!("{account} has no annotation {CLIENT}")),
            }
        }
        None => match (&environment.tenant, &environment.client, &environment.token_file) {
            (Some(tenant), Some(client), Some(_)) => (tenant.as_str(), client.as_str()),
            _ => {
                return missing(
                    "this process has no identity in Azure: AZURE_CLIENT_ID, AZURE_TENANT_ID and \
                     AZURE_FEDERATED_TOKEN_FILE are not all set; the workload identity webhook sets them when a pod is made"
                        .to_owned(),
                );
            }
        },
    };
    // They become part of a URL and of an identity that is compared.
    let good = |id: &str| id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if good(found.0) && good(found.1) {
        Ok(found)
    } else {
        missing("the ids of tenant and client may hold letters, digits, '-', '.' and '_'".to_owned())
    }
}

/// As whom a login is, in words; `Err` where there is nobody.
pub(super) fn identity(environment: &AzureEnvironment, account: Option<&Account>) -> Result<String, LoginError> {
    parts(environment, account).map(|(tenant, client)| format!("{tenant}/{client}"))
}

pub(super) async fn log_in(exchange: Exchange<'_>) -> Result<Grant, RegistryError> {
    let environment = &exchange.inner.logins.config.environment.azure;
    let login = exchange.login;
    let (tenant, client) =
        parts(environment, login.account.as_ref()).map_err(|error| setup("login", error.to_string()))?;
    let assertion = match (&login.account, &environment.token_file) {
        (Some(account), _) => exchange.account_token(account, AUDIENCE).await?,
        (None, Some(file)) => read_token("AZURE_FEDERATED_TOKEN_FILE", file).await?,
        (None, None) => return Err(setup("AZURE_FEDERATED_TOKEN_FILE", "it is not set")),
    };
    let access = access_token(&exchange, environment, tenant, client, &assertion).await?;
    refresh_token(&exchange, &access).await
}

/// Where Entra ID is asked, unless the environment says so: by the registry's cloud.
fn authority(registry: &str) -> &'static str {
    match registry.rsplit('.').next() {
        Some("cn") => "https://login.chinacloudapi.cn/",
        Some("us") => "https://login.microsoftonline.us/",
        _ => "https://login.microsoftonline.com/",
    }
}

/// The client credentials flow with a federated credential (Microsoft identity platform).
async fn access_token(
    exchange: &Exchange<'_>,
    environment: &AzureEnvironment,
    tenant: &str,
    client: &str,
    assertion: &Secret,
) -> Result<Secret, RegistryError> {
    let host = environment.authority.as_deref().unwrap_or_else(|| authority(exchange.login.registry.host()));
    let host = if host.contains("://") { host.to_owned() } else { format!("https://{host}") };
    let url = below(&named_url("AZURE_AUTHORITY_HOST", &host)?, &format!("{tenant}/oauth2/v2.0/token"));
    let ask = Ask::new(At::Service, Method::POST, url).hides(assertion).form(&[
        ("grant_type", "client_credentials"),
        ("client_id", client),
        ("scope", SCOPE),
        ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
        ("client_assertion", assertion.expose()),
    ]);
    #[derive(Deserialize)]
    struct Answer {
        access_token: Secret,
    }
    Ok(exchange.ask_json::<Answer>(ask).await?.access_token)
}

/// The registry's own exchange ("Azure Container Registry, AAD integration").
async fn refresh_token(exchange: &Exchange<'_>, access: &Secret) -> Result<Grant, RegistryError> {
    let url = below(&Target { path_and_query: "/".to_owned(), ..exchange.base.clone() }, "oauth2/exchange");
    let service = exchange.login.registry.to_string();
    let ask = Ask::new(At::Registry, Method::POST, url).hides(access).form(&[
        ("grant_type", "access_token"),
        ("service", &service),
        ("access_token", access.expose()),
    ]);
    #[derive(Deserialize)]
    struct Answer {
        refresh_token: Secret,
    }
    let token = exchange.ask_json::<Answer>(ask).await?.refresh_token;
    let life = expiry_of_jwt(&token).map_or(DEFAULT_LIFE, until);
    Ok(Grant::new(Credentials::Basic { username: ACR_USER.to_owned(), password: token }, life))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_tenant_and_client() {
        let environment = AzureEnvironment {
            client: Some("client".into()),
            tenant: Some("tenant".into()),
            token_file: Some("/token".into()),
            authority: None,
        };
        let account = |annotations: &[(&str, &str)]| Account {
            namespace: "ns".into(),
            name: "sa".into(),
            annotations: annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        assert_eq!(identity(&environment, None).unwrap(), "tenant/client");
        assert_eq!(identity(&environment, Some(&account(&[(CLIENT, "c"), (TENANT, "t")]))).unwrap(), "t/c");
        assert_eq!(identity(&environment, Some(&account(&[(CLIENT, "c")]))).unwrap(), "tenant/c");
        for (environment, account) in [
            (AzureEnvironment::default(), None),
            (AzureEnvironment { token_file: None, ..environment.clone() }, None),
            (AzureEnvironment { tenant: Some("../x".into()), ..environment.clone() }, None),
            (environment.clone(), Some(account(&[]))),
            (AzureEnvironment::default(), Some(account(&[(CLIENT, "c")]))),
        ] {
            assert!(identity(&environment, account.as_ref()).is_err(), "{environment:?} {account:?}");
        }
    }

    #[test]
    fn each_cloud_has_its_own_authority() {
        for (registry, host) in [
            ("a.azurecr.io", "https://login.microsoftonline.com/"),
            ("a.azurecr.cn", "https://login.chinacloudapi.cn/"),
            ("a.azurecr.us", "https://login.microsoftonline.us/"),
        ] {
            assert_eq!(authority(registry), host);
        }
    }
}
