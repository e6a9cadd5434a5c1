//! AWS: roles and agents, and ECR's names, which a proxy leads to a registry of the test's.

use serde_json::json;

use super::{Bench, KIND, NAMESPACE, file_with};
use crate::{
    hardening::upstream::{REPOSITORY, Upstream},
    support::{
        certificates::{self, Ca},
        fixtures::files,
        larder::write_objects,
        proxy::TestProxy,
        registry::{Auth, Options},
        services::{Asked, Services},
    },
};

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const WEB_IDENTITY: &str = "canary-web-identity-token";
const SECRET_KEY: &str = "canary-secret-access-key";
const SESSION: &str = "canary-session-token";
const PASSWORD: &str = "canary-ecr-password";
const AGENT_TOKEN: &str = "canary-agent-token";

/// STS, an agent, and ECR's API.
fn services() -> Services {
    Services::start(|asked| {
        let form = asked.field("Action");
        match (asked.path.as_str(), form.as_deref(), asked.header("x-amz-target")) {
            ("/", Some("AssumeRoleWithWebIdentity"), _)
                if asked.field("WebIdentityToken").as_deref() == Some(WEB_IDENTITY) =>
            {
                let keys = format!(
                    "<AccessKeyId>ASIAEXAMPLE</AccessKeyId><SecretAccessKey>{SECRET_KEY}</SecretAccessKey>\
                     <SessionToken>{SESSION}</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>"
                );
                (
                    200,
                    format!(
                        "<R><AssumeRoleWithWebIdentityResult><Credentials>{keys}</Credentials></AssumeRoleWithWebIdentityResult></R>"
                    ),
                )
            }
            ("/v1/credentials", ..) if asked.header("authorization") == Some(AGENT_TOKEN) => {
                let keys = json!({
                    "AccessKeyId": "ASIAAGENT", "SecretAccessKey": SECRET_KEY, "Token": SESSION,
                    "Expiration": "2099-01-01T00:00:00Z", "AccountId": "123456789012",
                });
                (200, keys.to_string())
            }
            ("/", _, Some("AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken")) if is_signed(asked) => {
                let data =
                    json!({ "authorizationToken": pair(), "expiresAt": 4_070_908_800.0_f64, "proxyEndpoint": "" });
                (200, json!({ "authorizationData": [data] }).to_string())
            }
            _ => (403, json!({ "__type": "AccessDeniedException", "message": "not so" }).to_string()),
        }
    })
}

fn pair() -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(format!("AWS:{PASSWORD}"))
}

fn is_signed(asked: &Asked) -> bool {
    let authorization = asked.header("authorization").unwrap_or_default();
    authorization.starts_with("AWS4-HMAC-SHA256 Credential=ASIA")
        && authorization.contains("/eu-west-1/ecr/aws4_request, ")
        && authorization
            .contains("SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, Signature=")
        && asked.header("x-amz-security-token") == Some(SESSION)
}

/// A registry that has ECR's name, and a proxy by which it is reached.
struct Ecr {
    up: Upstream,
    ca: Ca,
    proxy: TestProxy,
    _runtime: tokio::runtime::Runtime,
}

fn ecr() -> Ecr {
    let ca = Ca::new();
    let tls = Some(certificates::server(&ca.issue(&[HOST]), None));
    let up = Upstream::start_with(Options { tls, auth: Auth::Basic("AWS", PASSWORD) });
    up.push_files(&files(&[("a.yaml", "a: 1")]));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let proxy = runtime.block_on(TestProxy::leading_to(up.address));
    Ecr { up, ca, proxy, _runtime: runtime }
}

fn pulls_with(environment: &[(&str, &str)], services: &Services) {
    let Ecr { up, ca, proxy, _runtime } = ecr();
    let proxy_url = format!("http://{}", proxy.address);
    let origin = services.origin();
    let mut all = vec![
        ("HTTPS_PROXY", proxy_url.as_str()),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ENDPOINT_URL_STS", &origin),
        ("AWS_ENDPOINT_URL_ECR", &origin),
    ];
    all.extend_from_slice(environment);
    let bench = Bench::start(&[], &all);
    let ca = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "ca", "namespace": NAMESPACE },
        "stringData": { "ca.crt": ca.pem() },
    });
    write_objects(bench.root.path(), "ca.yaml", &[ca]);
    let spec = json!({ "provider": "aws", "insecure": false, "certSecretRef": { "name": "ca" } });
    bench.apply("app", &format!("oci://{HOST}/{REPOSITORY}"), &spec);
    bench.ready("app");
    assert!(up.requests() > 0);
    assert!(proxy.asked().iter().all(|asked| asked == &format!("CONNECT {HOST}:443")), "{:?}", proxy.asked());
    bench.keeps(&[WEB_IDENTITY, SECRET_KEY, SESSION, PASSWORD, AGENT_TOKEN]);
    assert_eq!(bench.larder.stop(), Some(0));
}

#[test]
fn a_role_is_assumed_and_ecr_gives_a_password() {
    let services = services();
    let (_folder, token) = file_with(WEB_IDENTITY);
    let role = "arn:aws:iam::123456789012:role/larder";
    pulls_with(&[("AWS_ROLE_ARN", role), ("AWS_WEB_IDENTITY_TOKEN_FILE", &token)], &services);
    let asked = services.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!(asked[0].field("RoleArn").as_deref(), Some(role));
    assert_eq!(asked[0].field("Version").as_deref(), Some("2011-06-15"));
}

#[test]
fn an_agent_gives_the_keys_of_a_pod_identity() {
    let services = services();
    let (_folder, token) = file_with(AGENT_TOKEN);
    let uri = format!("{}/v1/credentials", services.origin());
    pulls_with(
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri), ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token)],
        &services,
    );
    assert_eq!(services.asked_for("/v1/credentials").len(), 1);
}

#[test]
fn keys_are_used_as_they_are() {
    let services = services();
    pulls_with(
        &[("AWS_ACCESS_KEY_ID", "ASIAEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY), ("AWS_SESSION_TOKEN", SESSION)],
        &services,
    );
    assert_eq!(services.asked().len(), 1);
}

#[test]
fn a_registry_that_is_none_of_ecrs_gets_no_login() {
    let services = services();
    let origin = services.origin();
    let bench = Bench::start(
        &[],
        &[("AWS_ACCESS_KEY_ID", "ASIAEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY), ("AWS_ENDPOINT_URL", &origin)],
    );
    let up = Upstream::start();
    bench.apply("app", &up.url(), &json!({ "provider": "aws" }));
    let message = bench.refused("app");
    assert!(message.contains("is no registry of aws"), "{message}");
    assert!(message.contains("ACCOUNT.dkr.ecr.REGION.amazonaws.com"), "{message}");
    assert_eq!((up.requests(), services.asked().len()), (0, 0));
    let object = bench.larder.object(KIND, NAMESPACE, "app").unwrap();
    let stalled = crate::support::larder::condition_of(&object, "Stalled");
    assert!(stalled.is_null(), "it is tried again: {stalled}");
}
