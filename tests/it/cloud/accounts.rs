//! Logins as ServiceAccounts, by the client itself: a cluster that issues tokens stands behind a trait.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use larder::{
    oci::{Registry, Selector},
    registry::{
        Budget, Client, Config, Credentials, Endpoint, Transport,
        login::{self, Account, AccountToken, AccountTokens, Environment, LoginError, Provider},
    },
    secret::Secret,
};
use serde_json::json;

use super::{ACCESS, ACR_USER, REFRESH};
use crate::support::{
    registry::{Auth, Fault, Options, ScriptedRegistry, Seen},
    services::Services,
};

/// Issues `token of NAMESPACE/NAME`, and notes for whom.
#[derive(Debug, Default)]
struct Cluster(Mutex<Vec<String>>);

impl AccountTokens for Cluster {
    fn token<'a>(&'a self, namespace: &'a str, name: &'a str, audiences: &'a [String]) -> AccountToken<'a> {
        self.0.lock().unwrap().push(format!("{namespace}/{name} for {}", audiences.join(",")));
        let known = name != "absent";
        Box::pin(async move { Ok(known.then(|| Secret::new(format!("token of {namespace}/{name}")))) })
    }
}

fn account(name: &str, annotations: &[(&str, &str)]) -> Account {
    Account {
        namespace: "apps".into(),
        name: name.into(),
        annotations: annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    }
}

fn client(cluster: &Arc<Cluster>, variables: &[(&str, String)]) -> Client {
    let environment = Environment::read(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone()));
    let accounts: Arc<dyn AccountTokens> = cluster.clone();
    let login = login::Config { environment, accounts: Some(accounts) };
    Client::new(Config { retry_base: Duration::from_millis(1), login, ..Config::default() }).unwrap()
}

fn transport() -> Transport {
    Transport { plain_http: true, allow_loopback: true, ..Transport::default() }
}

async fn resolves(client: &Client, registry: &Registry, credentials: Credentials) -> Result<(), String> {
    let at = Endpoint { registry: registry.clone(), transport: transport(), credentials };
    let what = Selector::Tag("v1".parse().unwrap());
    let budget = Budget::within(Duration::from_secs(20));
    let found = client.resolve(&at, &"team/app".parse().unwrap(), &what, budget).await;
    found.map(drop).map_err(|error| larder::class::chain(&error))
}

async fn started(auth: Auth) -> ScriptedRegistry {
    let registry = ScriptedRegistry::start_with(Options { auth, ..Options::default() }).await;
    registry.add_manifest("team/app", Some("v1"), "application/vnd.oci.image.manifest.v1+json", b"{}");
    registry
}

#[tokio::test(flavor = "multi_thread")]
async fn each_account_logs_in_as_itself_once() {
    const IDENTITIES: [(&str, &str); 2] =
        [("azure.workload.identity/tenant-id", "tenant"), ("azure.workload.identity/client-id", "client")];
    let services = Services::start(|asked| {
        let assertion = asked.field("client_assertion").unwrap_or_default();
        (200, json!({ "access_token": format!("{ACCESS} {assertion}") }).to_string())
    });
    let auth = Auth::Token { user: Some((ACR_USER, REFRESH)), realm: None, expires_in: None };
    let registry = started(auth).await;
    let body = json!({ "refresh_token": REFRESH }).to_string();
    registry.fault(
        |seen: &Seen| seen.path == "/oauth2/exchange",
        usize::MAX,
        Fault::Answer { status: 200, headers: Vec::new(), body },
    );
    let cluster = Arc::new(Cluster::default());
    let client = client(&cluster, &[("AZURE_AUTHORITY_HOST", services.origin())]);
    let name: Registry = registry.authority().parse().unwrap();
    let login = |name_of: &str, extra: &[(&str, &str)]| {
        let annotations: Vec<_> = IDENTITIES.iter().chain(extra).copied().collect();
        client.login(Provider::Azure, Some(account(name_of, &annotations)), &name, &transport()).unwrap()
    };
    let one = login("one", &[]);
    assert_eq!(one, login("one", &[("kubectl.kubernetes.io/last-applied-configuration", "{}")]));
    assert_ne!(one, login("other", &[]));
    assert_ne!(one, login("one", &[("azure.workload.identity/client-id", "another")]));

    let calls = (0..8).map(|_| resolves(&client, &name, one.clone()));
    for outcome in futures(calls).await {
        outcome.unwrap();
    }
    resolves(&client, &name, login("other", &[])).await.unwrap();
    let issued = cluster.0.lock().unwrap().clone();
    let audience = "api://AzureADTokenExchange";
    assert_eq!(issued, [format!("apps/one for {audience}"), format!("apps/other for {audience}")]);
    let shown: Vec<_> = services.asked().iter().filter_map(|asked| asked.field("client_assertion")).collect();
    assert_eq!(shown, ["token of apps/one", "token of apps/other"]);
    let error = resolves(&client, &name, login("absent", &[])).await.unwrap_err();
    assert!(error.contains("ServiceAccount 'apps/absent' not found"), "{error}");
}

/// All of them at once.
async fn futures<T: Send + 'static>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = all.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = running.iter().map(|_| None).collect();
    std::future::poll_fn(move |context| {
        for (future, slot) in running.iter_mut().zip(&mut done) {
            if slot.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *slot = Some(value);
            }
        }
        match done.iter().all(Option::is_some) {
            true => std::task::Poll::Ready(done.iter_mut().filter_map(Option::take).collect()),
            false => std::task::Poll::Pending,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_of_a_gke_cluster_is_exchanged_in_its_projects_pool() {
    let services = Services::start(|asked| match asked.path.as_str() {
        "/computeMetadata/v1/project/project-id" => (200, "project".to_owned()),
        "/computeMetadata/v1/instance/attributes/cluster-location" => (200, "europe-west1".to_owned()),
        "/computeMetadata/v1/instance/attributes/cluster-name" => (200, "cluster".to_owned()),
        "/v1/token" => (200, json!({ "access_token": "federated", "expires_in": 3600 }).to_string()),
        "/v1/projects/-/serviceAccounts/puller@project.iam.gserviceaccount.com:generateAccessToken"
            if asked.header("authorization") == Some("Bearer federated") =>
        {
            (200, json!({ "accessToken": ACCESS, "expireTime": "2099-01-01T00:00:00Z" }).to_string())
        }
        _ => (404, String::new()),
    });
    let registry = started(Auth::Basic("oauth2accesstoken", ACCESS)).await;
    let cluster = Arc::new(Cluster::default());
    let origin = services.origin();
    let client = client(
        &cluster,
        &[
            ("GCE_METADATA_HOST", services.address.to_string()),
            ("CLOUDSDK_API_ENDPOINT_OVERRIDES_STS", origin.clone()),
            ("CLOUDSDK_API_ENDPOINT_OVERRIDES_IAMCREDENTIALS", origin),
        ],
    );
    let name: Registry = registry.authority().parse().unwrap();
    let account = account("sa", &[("iam.gke.io/gcp-service-account", "puller@project.iam.gserviceaccount.com")]);
    let credentials = client.login(Provider::Gcp, Some(account), &name, &transport()).unwrap();
    resolves(&client, &name, credentials).await.unwrap();
    assert_eq!(*cluster.0.lock().unwrap(), ["apps/sa for project.svc.id.goog"]);
    let exchanged = &services.asked_for("/v1/token")[0];
    assert_eq!(
        exchanged.field("audience").as_deref(),
        Some(
            "identitynamespace:project.svc.id.goog:https://container.googleapis.com/v1/projects/project/locations/europe-west1/clusters/cluster"
        )
    );
    assert_eq!(exchanged.field("subject_token").as_deref(), Some("token of apps/sa"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_stands_for_the_role_in_its_annotation() {
    let cluster = Arc::new(Cluster::default());
    let services = Services::start(|asked| {
        let role = asked.field("RoleArn").unwrap_or_default();
        (403, format!("<Error><Code>AccessDenied</Code><Message>not {role}</Message></Error>"))
    });
    let client = client(&cluster, &[("AWS_ENDPOINT_URL", services.origin())]);
    let ecr: Registry = "123456789012.dkr.ecr.eu-west-1.amazonaws.com".parse().unwrap();
    let role = account("sa", &[("eks.amazonaws.com/role-arn", "arn:aws:iam::1:role/r")]);
    let way = Transport::default();
    let credentials = client.login(Provider::Aws, Some(role), &ecr, &way).unwrap();
    let error = resolves(&client, &ecr, credentials).await.unwrap_err();
    assert!(error.contains("AccessDenied: not arn:aws:iam::1:role/r"), "{error}");
    assert_eq!(services.asked()[0].field("RoleSessionName").as_deref(), Some("larder.apps.sa"));
    assert_eq!(*cluster.0.lock().unwrap(), ["apps/sa for sts.amazonaws.com"]);
    let nobody = client.login(Provider::Aws, Some(account("sa", &[])), &ecr, &way);
    assert!(matches!(nobody, Err(LoginError::Identity(_))), "{nobody:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_login_reaches_where_clouds_give_identities() {
    let cluster = Arc::new(Cluster::default());
    // An object's own address, and a token service that the environment names, stay forbidden.
    let variables = [("AWS_ENDPOINT_URL_STS", "http://169.254.169.254/".to_owned())];
    let client = client(&cluster, &variables);
    let metadata: Registry = "169.254.169.254".parse().unwrap();
    assert!(client.permits(&metadata).is_err());
    let ecr: Registry = "123456789012.dkr.ecr.eu-west-1.amazonaws.com".parse().unwrap();
    let role = account("sa", &[("eks.amazonaws.com/role-arn", "arn:aws:iam::1:role/r")]);
    let credentials = client.login(Provider::Aws, Some(role), &ecr, &Transport::default()).unwrap();
    let error = resolves(&client, &ecr, credentials).await.unwrap_err();
    assert!(error.contains("a cloud's metadata service is never contacted"), "{error}");
}
