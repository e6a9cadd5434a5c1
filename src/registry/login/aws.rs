//! AWS: a workload's identity → keys of a role → ECR's password for user `AWS`, good for twelve hours.
//!
//! The first of these that there is: access keys, a web identity token for a role (IRSA), an agent's credentials (EKS Pod
//! Identity, ECS). A ServiceAccount stands for the role in its annotation `eks.amazonaws.com/role-arn`.

use std::time::Duration;

use base64::Engine as _;
use http::{HeaderName, Method, header::AUTHORIZATION};
use jiff::Timestamp;
use serde::Deserialize;

use super::{
    Account, Grant, LoginError,
    environment::{AwsEnvironment, AwsKeys},
    exchange::{Ask, At, Exchange, element, is_local_service, named_url, own_url, read_token, setup, until},
    sigv4,
};
use crate::{
    registry::{Credentials, error::RegistryError},
    secret::Secret,
};

const ROLE: &str = "eks.amazonaws.com/role-arn";
/// What tokens of ServiceAccounts are for (EKS, "IAM roles for service accounts").
const AUDIENCE: &str = "sts.amazonaws.com";
/// A password's life where ECR states none: ECR's documentation says twelve hours.
const DEFAULT_LIFE: Duration = Duration::from_secs(3600);
const AMZ_JSON: &str = "application/x-amz-json-1.1";

/// The domains below which AWS has its services, one for each partition, and the beginning of its regions' names.
const PARTITIONS: &[(&str, &str)] = &[
    ("amazonaws.com.cn", "cn-"),
    ("c2s.ic.gov", "us-iso-"),
    ("sc2s.sgov.gov", "us-isob-"),
    ("cloud.adc-e.uk", "eu-isoe-"),
    ("csp.hci.ic.gov", "us-isof-"),
    ("amazonaws.eu", "eusc-"),
    ("amazonaws.com", ""),
];

/// What the name of one of ECR's registries says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ecr {
    region: String,
    /// Where `GetAuthorizationToken` is asked.
    api: String,
    public: bool,
}

impl Ecr {
    /// Reads a registry's name: `<account>.dkr.ecr[-fips].<region>.<domain of a partition>`, the dual-stack
    /// `<account>.dkr-ecr[-fips].<region>.on.aws`, or `public.ecr.aws`.
    pub(super) fn parse(host: &str) -> Option<Self> {
        if host == "public.ecr.aws" {
            // The one region in which it is asked ("Registry authentication in Amazon ECR public").
            let api = "api.ecr-public.us-east-1.amazonaws.com".to_owned();
            return Some(Self { region: "us-east-1".to_owned(), api, public: true });
        }
        let (account, rest) = host.split_once(".dkr")?;
        if account.is_empty() || !account.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let (dual, rest) = match rest.strip_prefix(".ecr") {
            Some(rest) => (false, rest),
            None => (true, rest.strip_prefix("-ecr")?),
        };
        let (fips, rest) = match rest.strip_prefix("-fips.") {
            Some(rest) => (true, rest),
            None => (false, rest.strip_prefix('.')?),
        };
        let (region, domain) = rest.split_once('.')?;
        let good = !region.is_empty() && region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let known = if dual { domain == "on.aws" } else { PARTITIONS.iter().any(|(known, _)| *known == domain) };
        let api = match (dual, fips) {
            (true, true) => format!("ecr-fips.{region}.api.aws"),
            (true, false) => format!("ecr.{region}.api.aws"),
            (false, true) => format!("ecr-fips.{region}.{domain}"),
            (false, false) => format!("api.ecr.{region}.{domain}"),
        };
        (good && known).then(|| Self { region: region.to_owned(), api, public: false })
    }
}

/// Where STS is asked in a region.
fn sts_host(region: &str) -> String {
    let domain = PARTITIONS.iter().find(|(_, prefix)| region.starts_with(prefix)).map_or("amazonaws.com", |p| p.0);
    format!("sts.{region}.{domain}")
}

/// As whom a login is, in words; `Err` where there is nobody.
pub(super) fn identity(environment: &AwsEnvironment, account: Option<&Account>) -> Result<String, LoginError> {
    if let Some(account) = account {
        return match account.annotation(ROLE) {
            Some(role) if role.starts_with("arn:") => Ok(role.to_owned()),
            Some(_) => Err(LoginError::Identity(format!("{account}: annotation {ROLE} is not the ARN of a role"))),
            None => Err(LoginError::Identity(format!("{account} has no annotation {ROLE}"))),
        };
    }
    if let Some(keys) = &environment.keys {
        return Ok(format!("access key {}", keys.id));
    }
    if let (Some(role), Some(_)) = (&environment.role, &environment.token_file) {
        return Ok(role.clone());
    }
    if let Some(uri) = &environment.container_uri {
        return Ok(format!("credentials of {uri}"));
    }
    Err(LoginError::Identity(
        "this process has no identity in AWS: neither AWS_ROLE_ARN with AWS_WEB_IDENTITY_TOKEN_FILE, nor \
         AWS_CONTAINER_CREDENTIALS_FULL_URI, nor AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY is set; a pod gets them \
         when it is made"
            .to_owned(),
    ))
}

pub(super) async fn log_in(exchange: Exchange<'_>) -> Result<Grant, RegistryError> {
    let environment = &exchange.inner.logins.config.environment.aws;
    let login = exchange.login;
    let ecr = Ecr::parse(login.registry.host())
        .ok_or_else(|| setup("spec.provider", format!("{} is no registry of ECR", login.registry)))?;
    let keys = match (&login.account, &environment.keys) {
        (Some(account), _) => {
            let token = exchange.account_token(account, AUDIENCE).await?;
            let session = format!("larder.{}.{}", account.namespace, account.name);
            assume_role(&exchange, environment, &ecr, &login.identity, &session, &token).await?
        }
        (None, Some(keys)) => keys.clone(),
        (None, None) => match (&environment.role, &environment.token_file) {
            (Some(role), Some(file)) => {
                let token = read_token("AWS_WEB_IDENTITY_TOKEN_FILE", file).await?;
                let session = environment.session_name.as_deref().unwrap_or("larder");
                assume_role(&exchange, environment, &ecr, role, session, &token).await?
            }
            _ => from_agent(&exchange, environment).await?,
        },
    };
    authorization_token(&exchange, environment, &ecr, &keys).await
}

/// STS `AssumeRoleWithWebIdentity` (API version 2011-06-15).
async fn assume_role(
    exchange: &Exchange<'_>,
    environment: &AwsEnvironment,
    ecr: &Ecr,
    role: &str,
    session: &str,
    token: &Secret,
) -> Result<AwsKeys, RegistryError> {
    let region = environment.region.as_deref().unwrap_or(&ecr.region);
    let url = match &environment.sts_url {
        Some(url) => named_url("AWS_ENDPOINT_URL_STS", url)?,
        None => own_url(&format!("https://{}/", sts_host(region)))?,
    };
    // The API takes 2 to 64 of these characters.
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(*c);
    let session: String = session.chars().filter(allowed).take(64).collect();
    let ask = Ask::new(At::Service, Method::POST, url.clone()).hides(token).form(&[
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", "2011-06-15"),
        ("RoleArn", role),
        ("RoleSessionName", &session),
        ("WebIdentityToken", token.expose()),
    ]);
    let answer = exchange.ask(ask).await?;
    let text = String::from_utf8_lossy(&answer);
    keys_of(&text).ok_or_else(|| RegistryError::Protocol {
        what: url.to_string(),
        why: "the answer to AssumeRoleWithWebIdentity has no Credentials".to_owned(),
    })
}

/// The keys in an answer of STS: XML, or JSON of the same names where somebody answers so.
fn keys_of(text: &str) -> Option<AwsKeys> {
    let part = |name: &str| {
        let json = || {
            let value: serde_json::Value = serde_json::from_str(text).ok()?;
            let at = "/AssumeRoleWithWebIdentityResponse/AssumeRoleWithWebIdentityResult/Credentials";
            Some(value.pointer(at)?.get(name)?.as_str()?.to_owned())
        };
        element(text, name).map(str::to_owned).or_else(json)
    };
    Some(AwsKeys {
        id: part("AccessKeyId")?,
        secret: Secret::new(part("SecretAccessKey")?),
        session: part("SessionToken").map(Secret::new),
    })
}

/// The credentials of an agent beside the workload (AWS SDKs, "Container credential provider").
async fn from_agent(exchange: &Exchange<'_>, environment: &AwsEnvironment) -> Result<AwsKeys, RegistryError> {
    const URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
    let text = environment.container_uri.as_deref().ok_or_else(|| setup(URI, "it is not set"))?;
    let url = named_url(URI, text)?;
    let local = is_local_service(&url.host);
    if !local && !url.https {
        return Err(setup(URI, format!("{url} is neither https nor an agent's address on this machine")));
    }
    let token = match (&environment.container_token_file, &environment.container_token) {
        (Some(file), _) => Some(read_token("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file).await?),
        (None, token) => token.clone(),
    };
    let mut ask = Ask::new(if local { At::Metadata } else { At::Service }, Method::GET, url.clone());
    if let Some(token) = &token {
        ask = ask.secret_header(AUTHORIZATION, token.expose().to_owned())?.hides(token);
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        access_key_id: String,
        secret_access_key: Secret,
        token: Option<Secret>,
    }
    let answer: Answer = exchange.ask_json(ask).await?;
    Ok(AwsKeys { id: answer.access_key_id, secret: answer.secret_access_key, session: answer.token })
}

/// ECR `GetAuthorizationToken`.
async fn authorization_token(
    exchange: &Exchange<'_>,
    environment: &AwsEnvironment,
    ecr: &Ecr,
    keys: &AwsKeys,
) -> Result<Grant, RegistryError> {
    const BODY: &[u8] = b"{}";
    let (service, target, variable, other) = match ecr.public {
        true => ("ecr-public", "SpencerFrontendService", "AWS_ENDPOINT_URL_ECR_PUBLIC", &environment.ecr_public_url),
        false => ("ecr", "AmazonEC2ContainerRegistry_V20150921", "AWS_ENDPOINT_URL_ECR", &environment.ecr_url),
    };
    let target = format!("{target}.GetAuthorizationToken");
    let url = match other {
        Some(url) => named_url(variable, url)?,
        None => own_url(&format!("https://{}/", ecr.api))?,
    };
    let headers = [("content-type", AMZ_JSON), ("x-amz-target", target.as_str())];
    let scope = sigv4::Scope { region: &ecr.region, service };
    let signed = sigv4::sign(keys, scope, "POST", &url, &headers, BODY, Timestamp::now())
        .ok_or_else(|| setup("AWS credentials", "they hold characters that no header may have"))?;
    let mut ask = Ask::new(At::Service, Method::POST, url.clone()).body(AMZ_JSON, BODY).hides(&keys.secret);
    if let Some(session) = &keys.session {
        ask = ask.hides(session);
    }
    let target = http::HeaderValue::try_from(&target).map_err(|_| setup("login", "not a header"))?;
    ask = ask.header(HeaderName::from_static("x-amz-target"), target);
    for (name, value) in signed {
        ask = ask.header(name, value);
    }
    let answer: Answer = exchange.ask_json(ask).await?;
    let protocol = |why: &str| RegistryError::Protocol { what: url.to_string(), why: why.to_owned() };
    let data = answer.first().ok_or_else(|| protocol("GetAuthorizationToken's answer has no authorizationData"))?;
    let (username, password) = pair(&data.authorization_token)
        .ok_or_else(|| protocol("GetAuthorizationToken's answer is not user and password in base64"))?;
    let expires = data.expires_at.as_ref().and_then(when);
    Ok(Grant::new(Credentials::Basic { username, password }, expires.map_or(DEFAULT_LIFE, until)))
}

/// A list from a private registry, one from the public one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Private {
        #[serde(rename = "authorizationData")]
        data: Vec<Data>,
    },
    Public {
        #[serde(rename = "authorizationData")]
        data: Data,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    authorization_token: Secret,
    expires_at: Option<serde_json::Value>,
}

impl Answer {
    fn first(&self) -> Option<&Data> {
        match self {
            Self::Private { data } => data.first(),
            Self::Public { data } => Some(data),
        }
    }
}

/// Seconds since 1970, or RFC 3339.
fn when(value: &serde_json::Value) -> Option<Timestamp> {
    match value {
        serde_json::Value::String(text) => text.parse().ok(),
        value => Timestamp::from_second(value.as_f64()? as i64).ok(),
    }
}

fn pair(token: &Secret) -> Option<(String, Secret)> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(token.expose()).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    Some((username.to_owned(), Secret::new(password)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_say_region_and_api_by_their_names() {
        for (host, found) in [
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", Some(("eu-west-1", "api.ecr.eu-west-1.amazonaws.com"))),
            (
                "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
                Some(("us-gov-west-1", "ecr-fips.us-gov-west-1.amazonaws.com")),
            ),
            (
                "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
                Some(("cn-north-1", "api.ecr.cn-north-1.amazonaws.com.cn")),
            ),
            (
                "123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov",
                Some(("us-iso-east-1", "api.ecr.us-iso-east-1.c2s.ic.gov")),
            ),
            (
                "123456789012.dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
                Some(("us-isob-east-1", "api.ecr.us-isob-east-1.sc2s.sgov.gov")),
            ),
            ("123456789012.dkr-ecr.us-east-1.on.aws", Some(("us-east-1", "ecr.us-east-1.api.aws"))),
            ("123456789012.dkr-ecr-fips.us-east-1.on.aws", Some(("us-east-1", "ecr-fips.us-east-1.api.aws"))),
            ("public.ecr.aws", Some(("us-east-1", "api.ecr-public.us-east-1.amazonaws.com"))),
            ("dkr.ecr.eu-west-1.amazonaws.com", None),
            ("x123.dkr.ecr.eu-west-1.amazonaws.com", None),
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example", None),
            ("123456789012.dkr.ecr.eu-west-1.evil.example", None),
            ("123456789012.dkr.ecr.eu-west-1.on.aws", None),
            ("123456789012.dkr.ecr..amazonaws.com", None),
            ("123456789012.dkr.ecr.evil.example.amazonaws.com", None),
            ("ghcr.io", None),
            ("127.0.0.1", None),
        ] {
            let parsed = Ecr::parse(host);
            assert_eq!(parsed.as_ref().map(|e| (e.region.as_str(), e.api.as_str())), found, "{host}");
        }
    }

    #[test]
    fn sts_is_asked_in_the_regions_partition() {
        for (region, host) in [
            ("eu-west-1", "sts.eu-west-1.amazonaws.com"),
            ("cn-north-1", "sts.cn-north-1.amazonaws.com.cn"),
            ("us-iso-east-1", "sts.us-iso-east-1.c2s.ic.gov"),
            ("us-isob-east-1", "sts.us-isob-east-1.sc2s.sgov.gov"),
        ] {
            assert_eq!(sts_host(region), host);
        }
    }

    #[test]
    fn keys_are_read_from_the_answers_of_sts() {
        let xml = "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">
            <AssumeRoleWithWebIdentityResult><Credentials><SessionToken>session</SessionToken>
            <SecretAccessKey>secret</SecretAccessKey><AccessKeyId>ASIA</AccessKeyId></Credentials>
            </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>";
        let json = r#"{"AssumeRoleWithWebIdentityResponse":{"AssumeRoleWithWebIdentityResult":{"Credentials":
            {"AccessKeyId":"ASIA","SecretAccessKey":"secret","SessionToken":"session"}}}}"#;
        let wanted =
            AwsKeys { id: "ASIA".into(), secret: Secret::new("secret"), session: Some(Secret::new("session")) };
        for text in [xml, json] {
            assert_eq!(keys_of(text), Some(wanted.clone()), "{text}");
        }
        assert_eq!(keys_of("<Error/>"), None);
    }

    #[test]
    fn the_first_identity_that_there_is_counts() {
        let keys = AwsKeys { id: "AKIA".into(), secret: Secret::new("s"), session: None };
        let environment = AwsEnvironment {
            role: Some("arn:aws:iam::1:role/r".into()),
            token_file: Some("/token".into()),
            container_uri: Some("http://169.254.170.23/v1/credentials".into()),
            ..AwsEnvironment::default()
        };
        let with_keys = AwsEnvironment { keys: Some(keys), ..environment.clone() };
        assert_eq!(identity(&with_keys, None).unwrap(), "access key AKIA");
        assert_eq!(identity(&environment, None).unwrap(), "arn:aws:iam::1:role/r");
        let agent = AwsEnvironment { token_file: None, ..environment.clone() };
        assert_eq!(identity(&agent, None).unwrap(), "credentials of http://169.254.170.23/v1/credentials");
        assert!(identity(&AwsEnvironment::default(), None).is_err());
        let account = |role: Option<&str>| Account {
            namespace: "ns".into(),
            name: "sa".into(),
            annotations: role.map(|role| (ROLE.to_owned(), role.to_owned())).into_iter().collect(),
        };
        assert_eq!(
            identity(&with_keys, Some(&account(Some("arn:aws:iam::1:role/o")))).unwrap(),
            "arn:aws:iam::1:role/o"
        );
        let message = identity(&with_keys, Some(&account(None))).unwrap_err().to_string();
        assert_eq!(message, "ServiceAccount 'ns/sa' has no annotation eks.amazonaws.com/role-arn");
    }
}
