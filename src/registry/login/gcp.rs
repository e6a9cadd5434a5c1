//! Google Cloud: an access token, which its registries take as the password of user `oauth2accesstoken`.
//!
//! The controller's own comes from the metadata server, or from a file of type external_account (workload identity
//! federation) that `GOOGLE_APPLICATION_CREDENTIALS` names. A ServiceAccount's token is exchanged at STS, for the pool of
//! the GKE cluster or the one in its annotation `gcp.auth.fluxcd.io/workload-identity-provider`; with the annotation
//! `iam.gke.io/gcp-service-account` it then stands for that service account.

use std::{path::PathBuf, time::Duration};

use http::{HeaderName, HeaderValue, Method, header::AUTHORIZATION};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Account, Grant, LoginError,
    environment::GcpEnvironment,
    exchange::{Ask, At, Exchange, below, is_local_service, named_url, own_url, read_file, read_token, setup, until},
};
use crate::{
    registry::{Credentials, error::RegistryError, target::Target},
    secret::Secret,
};

const EMAIL: &str = "iam.gke.io/gcp-service-account";
const POOL_PROVIDER: &str = "gcp.auth.fluxcd.io/workload-identity-provider";
/// The metadata server, where the environment names none ("About VM metadata"); an address, so that no name server counts.
const METADATA: &str = "169.254.169.254";
const STS: &str = "https://sts.googleapis.com";
const IAM: &str = "https://iamcredentials.googleapis.com";
/// What Artifact Registry asks for.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// An access token's life where its service states none.
const DEFAULT_LIFE: Duration = Duration::from_secs(600);
const CREDENTIALS: &str = "GOOGLE_APPLICATION_CREDENTIALS";

/// As whom a login is, in words; `Err` where there is nobody.
pub(super) fn identity(environment: &GcpEnvironment, account: Option<&Account>) -> Result<String, LoginError> {
    let Some(account) = account else {
        return Ok(match (&environment.credentials_file, &environment.metadata_host) {
            (Some(file), _) => format!("credentials in {}", file.display()),
            (None, host) => format!("metadata of {}", host.as_deref().unwrap_or(METADATA)),
        });
    };
    let email = account.annotation(EMAIL).unwrap_or_default();
    let provider = account.annotation(POOL_PROVIDER).unwrap_or_default();
    // They become parts of a URL and of an audience.
    if !email.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.@:".contains(&b)) {
        return Err(LoginError::Identity(format!("{account}: annotation {EMAIL} is not a service account's address")));
    }
    let named = provider.starts_with("projects/") && provider.contains("/workloadIdentityPools/");
    if !provider.is_empty() && !named {
        let what = "is not projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER";
        return Err(LoginError::Identity(format!("{account}: annotation {POOL_PROVIDER} {what}")));
    }
    Ok(format!("{email} by {provider}"))
}

/// An access token and how long it is good.
struct Access {
    token: Secret,
    life: Duration,
}

pub(super) async fn log_in(exchange: Exchange<'_>) -> Result<Grant, RegistryError> {
    let environment = &exchange.inner.logins.config.environment.gcp;
    let access = match (&exchange.login.account, &environment.credentials_file) {
        (Some(account), _) => of_account(&exchange, environment, account).await?,
        (None, Some(file)) => of_file(&exchange, environment, file.clone()).await?,
        (None, None) => {
            #[derive(Deserialize)]
            struct Answer {
                access_token: Secret,
                expires_in: Option<f64>,
            }
            let ask = metadata(environment, "instance/service-accounts/default/token")?;
            let answer: Answer = exchange.ask_json(ask).await?;
            Access { token: answer.access_token, life: life(answer.expires_in) }
        }
    };
    let credentials = Credentials::Basic { username: "oauth2accesstoken".to_owned(), password: access.token };
    Ok(Grant::new(credentials, access.life))
}

fn life(seconds: Option<f64>) -> Duration {
    seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or(DEFAULT_LIFE)
}

/// A question to the metadata server.
fn metadata<'a>(environment: &GcpEnvironment, path: &str) -> Result<Ask<'a>, RegistryError> {
    let host = environment.metadata_host.as_deref().unwrap_or(METADATA);
    let url = below(&named_url("GCE_METADATA_HOST", &format!("http://{host}"))?, &format!("computeMetadata/v1/{path}"));
    let flavor = (HeaderName::from_static("metadata-flavor"), HeaderValue::from_static("Google"));
    Ok(Ask::new(At::Metadata, Method::GET, url).header(flavor.0, flavor.1))
}

async fn metadata_text(
    exchange: &Exchange<'_>,
    environment: &GcpEnvironment,
    path: &str,
) -> Result<String, RegistryError> {
    let answer = exchange.ask(metadata(environment, path)?).await?;
    Ok(String::from_utf8_lossy(&answer).trim().to_owned())
}

/// A ServiceAccount's own token, exchanged.
async fn of_account(
    exchange: &Exchange<'_>,
    environment: &GcpEnvironment,
    account: &Account,
) -> Result<Access, RegistryError> {
    let (audience_of_token, audience) = match account.annotation(POOL_PROVIDER) {
        Some(provider) => {
            let audience = format!("//iam.googleapis.com/{provider}");
            (audience.clone(), audience)
        }
        // On GKE the cluster itself is the provider of its project's pool.
        None => {
            let project = metadata_text(exchange, environment, "project/project-id").await?;
            let location = metadata_text(exchange, environment, "instance/attributes/cluster-location").await?;
            let name = metadata_text(exchange, environment, "instance/attributes/cluster-name").await?;
            let pool = format!("{project}.svc.id.goog");
            let cluster = format!("projects/{project}/locations/{location}/clusters/{name}");
            (pool.clone(), format!("identitynamespace:{pool}:https://container.googleapis.com/v1/{cluster}"))
        }
    };
    let subject = exchange.account_token(account, &audience_of_token).await?;
    let url = below(&service(&environment.sts_url, "CLOUDSDK_API_ENDPOINT_OVERRIDES_STS", STS)?, "v1/token");
    let access = at_sts(exchange, url, &audience, JWT, &subject).await?;
    match account.annotation(EMAIL) {
        None => Ok(access),
        Some(email) => {
            let iam = service(&environment.iam_url, "CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS", IAM)?;
            let url = below(&iam, &format!("v1/projects/-/serviceAccounts/{email}:generateAccessToken"));
            impersonate(exchange, url, &access, None).await
        }
    }
}

fn service(other: &Option<String>, variable: &'static str, own: &str) -> Result<Target, RegistryError> {
    match other {
        Some(url) => named_url(variable, url),
        None => own_url(own),
    }
}

/// A file of type external_account ("Workload identity federation", AIP-4117).
#[derive(Deserialize)]
struct ExternalAccount {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    audience: String,
    #[serde(default)]
    subject_token_type: String,
    token_url: Option<String>,
    service_account_impersonation_url: Option<String>,
    service_account_impersonation: Option<Impersonation>,
    credential_source: Option<CredentialSource>,
}

#[derive(Deserialize)]
struct Impersonation {
    token_lifetime_seconds: Option<u32>,
}

#[derive(Deserialize)]
struct CredentialSource {
    file: Option<PathBuf>,
    url: Option<String>,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
    format: Option<Format>,
}

#[derive(Deserialize)]
struct Format {
    #[serde(rename = "type")]
    kind: Option<String>,
    subject_token_field_name: Option<String>,
}

async fn of_file(
    exchange: &Exchange<'_>,
    environment: &GcpEnvironment,
    file: PathBuf,
) -> Result<Access, RegistryError> {
    let text = read_file(CREDENTIALS, &file).await?;
    let wrong = |why: &str| setup(CREDENTIALS, format!("{}: {why}", file.display()));
    let config: ExternalAccount =
        serde_json::from_str(text.expose()).map_err(|_| wrong("it is not the JSON of a credential configuration"))?;
    if config.kind != "external_account" {
        return Err(wrong(&format!(
            "type {:?} is not external_account; keys of service accounts are not taken, name a secretRef for these",
            config.kind.chars().take(40).collect::<String>()
        )));
    }
    let source = config.credential_source.ok_or_else(|| wrong("it has no credential_source"))?;
    let subject = match (&source.file, &source.url) {
        (Some(path), _) => read_token("credential_source.file", path).await?,
        (None, Some(url)) => {
            let url = named_url("credential_source.url", url)?;
            let at = if is_local_service(&url.host) { At::Metadata } else { At::Service };
            let mut ask = Ask::new(at, Method::GET, url);
            for (name, value) in &source.headers {
                let name = HeaderName::try_from(name).map_err(|_| wrong("credential_source.headers has no header"))?;
                ask = ask.secret_header(name, value.clone())?;
            }
            let answer = exchange.ask(ask).await?;
            Secret::new(String::from_utf8_lossy(&answer).trim())
        }
        (None, None) => return Err(wrong("credential_source is neither a file nor a url")),
    };
    let subject = match &source.format {
        Some(format) if format.kind.as_deref() == Some("json") => {
            let field = format.subject_token_field_name.as_deref().unwrap_or("access_token");
            let value: Value =
                serde_json::from_str(subject.expose()).map_err(|_| wrong("the subject token is not JSON"))?;
            let token = value.get(field).and_then(Value::as_str);
            Secret::new(token.ok_or_else(|| wrong("the subject token's JSON has not the field that format names"))?)
        }
        _ => subject,
    };
    let url = match (&config.token_url, &environment.sts_url) {
        (Some(url), _) => named_url("token_url", url)?,
        (None, other) => below(&service(other, "CLOUDSDK_API_ENDPOINT_OVERRIDES_STS", STS)?, "v1/token"),
    };
    let access = at_sts(exchange, url, &config.audience, &config.subject_token_type, &subject).await?;
    match &config.service_account_impersonation_url {
        None => Ok(access),
        Some(url) => {
            let url = named_url("service_account_impersonation_url", url)?;
            let seconds = config.service_account_impersonation.and_then(|i| i.token_lifetime_seconds);
            impersonate(exchange, url, &access, seconds).await
        }
    }
}

/// OAuth 2.0 token exchange (RFC 8693).
async fn at_sts(
    exchange: &Exchange<'_>,
    url: Target,
    audience: &str,
    subject_type: &str,
    subject: &Secret,
) -> Result<Access, RegistryError> {
    let ask = Ask::new(At::Service, Method::POST, url).hides(subject).form(&[
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("audience", audience),
        ("scope", SCOPE),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ("subject_token_type", if subject_type.is_empty() { JWT } else { subject_type }),
        ("subject_token", subject.expose()),
    ]);
    #[derive(Deserialize)]
    struct Answer {
        access_token: Secret,
        expires_in: Option<f64>,
    }
    let answer: Answer = exchange.ask_json(ask).await?;
    Ok(Access { token: answer.access_token, life: life(answer.expires_in) })
}

/// IAM credentials API, `generateAccessToken`.
async fn impersonate(
    exchange: &Exchange<'_>,
    url: Target,
    access: &Access,
    seconds: Option<u32>,
) -> Result<Access, RegistryError> {
    let body = json!({ "scope": [SCOPE], "lifetime": format!("{}s", seconds.unwrap_or(3600)) });
    let ask = Ask::new(At::Service, Method::POST, url)
        .secret_header(AUTHORIZATION, format!("Bearer {}", access.token.expose()))?
        .hides(&access.token)
        .body("application/json", body.to_string());
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        access_token: Secret,
        expire_time: Option<String>,
    }
    let answer: Answer = exchange.ask_json(ask).await?;
    let expires = answer.expire_time.and_then(|time| time.parse::<Timestamp>().ok());
    Ok(Access { token: answer.access_token, life: expires.map_or(DEFAULT_LIFE, until) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_tell_identities_apart_and_are_checked() {
        let account = |annotations: &[(&str, &str)]| Account {
            namespace: "ns".into(),
            name: "sa".into(),
            annotations: annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        let of = |annotations: &[(&str, &str)]| identity(&GcpEnvironment::default(), Some(&account(annotations)));
        let email = (EMAIL, "larder@project.iam.gserviceaccount.com");
        let pool = (POOL_PROVIDER, "projects/1/locations/global/workloadIdentityPools/a/providers/b");
        assert!(of(&[]).is_ok());
        assert_ne!(of(&[email]), of(&[]));
        assert_ne!(of(&[email, pool]), of(&[email]));
        assert!(of(&[(EMAIL, "a/../b")]).is_err());
        assert!(of(&[(POOL_PROVIDER, "b")]).is_err());
        assert_eq!(identity(&GcpEnvironment::default(), None).unwrap(), "metadata of 169.254.169.254");
    }
}
