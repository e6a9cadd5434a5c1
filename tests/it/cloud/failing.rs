//! Logins that fail or must not be: what the conditions say, and where nothing is sent.

use serde_json::json;

use super::{
    ACCESS, ACR_USER, ASSERTION, Bench, KIND, NAMESPACE, REFRESH, acr, artifact_registry, entra, file_with, metadata,
};
use crate::{
    hardening::upstream::Upstream,
    support::{
        fixtures::files,
        larder::{condition_of, text, write_objects},
        registry::{Auth, Options},
        services::Services,
    },
};

#[test]
fn a_token_service_that_refuses_is_an_authentication_that_failed() {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };
    let works = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&works);
    // It repeats what it was sent, as a proxy's error page may.
    let services = Services::start(move |asked| match now.load(Ordering::SeqCst) {
        true => entra(asked),
        false => {
            let description = format!("AADSTS700016: no such application; you sent {} and {}", ASSERTION, asked.body);
            (401, json!({ "error": "unauthorized_client", "error_description": description }).to_string())
        }
    });
    let up = acr();
    let (_folder, token) = file_with(ASSERTION);
    let bench = Bench::start(
        &[],
        &[
            ("AZURE_CLIENT_ID", "client-id"),
            ("AZURE_TENANT_ID", "tenant-id"),
            ("AZURE_FEDERATED_TOKEN_FILE", &token),
            ("AZURE_AUTHORITY_HOST", &services.origin()),
        ],
    );
    bench.apply("app", &up.url(), &json!({ "provider": "azure" }));
    let message = bench.refused("app");
    for part in [
        "failed to get credential from azure",
        "/tenant-id/oauth2/v2.0/token: 401 unauthorized_client: AADSTS700016: no such application",
    ] {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    bench.keeps(&[ASSERTION]);
    assert!(up.seen().iter().all(|seen| seen.header("authorization").is_none()));
    works.store(true, Ordering::SeqCst);
    bench.larder.reconcile(KIND, NAMESPACE, "app");
    bench.ready("app");
    bench.keeps(&[ASSERTION, ACCESS, REFRESH]);
}

#[test]
fn a_token_service_that_is_away_or_talks_nonsense_is_an_authentication_that_failed() {
    let up = artifact_registry();
    let away = Services::start(|_| (200, String::new())).address.to_string();
    let nonsense = Services::start(|_| (200, format!("{{\"access_token\": 1, \"echo\": \"{ACCESS}\"")));
    for (host, says) in [(away, "cannot connect"), (nonsense.address.to_string(), "not the JSON that was asked for")] {
        let bench = Bench::start(&[], &[("GCE_METADATA_HOST", &host)]);
        bench.apply("app", &up.url(), &json!({ "provider": "gcp" }));
        let message = bench.refused("app");
        assert!(message.contains("failed to get credential from gcp") && message.contains(says), "{message}");
        bench.keeps(&[ACCESS]);
    }
}

#[test]
fn a_process_without_an_identity_says_what_is_missing() {
    let bench = Bench::start(&[], &[]);
    let up = acr();
    bench.apply("app", &up.url(), &json!({ "provider": "azure" }));
    let message = bench.refused("app");
    assert!(message.contains("AZURE_FEDERATED_TOKEN_FILE"), "{message}");
    bench.apply("aws", "oci://public.ecr.aws/a/b", &json!({ "provider": "aws", "insecure": false }));
    let message = bench.refused("aws");
    assert!(message.contains("AWS_WEB_IDENTITY_TOKEN_FILE"), "{message}");
    assert_eq!(up.requests(), 0);
}

/// Row 10 of Flux's own table.
#[test]
fn a_secret_goes_before_a_provider() {
    let services = Services::start(entra);
    let auth = Auth::Token { user: Some(("user", "password")), realm: None, expires_in: None };
    let up = Upstream::start_with(Options { auth, ..Options::default() });
    up.push_files(&files(&[("a.yaml", "a: 1")]));
    let (_folder, token) = file_with(ASSERTION);
    let bench = Bench::start(
        &[],
        &[
            ("AZURE_CLIENT_ID", "client-id"),
            ("AZURE_TENANT_ID", "tenant-id"),
            ("AZURE_FEDERATED_TOKEN_FILE", &token),
            ("AZURE_AUTHORITY_HOST", &services.origin()),
        ],
    );
    let config = json!({ "auths": { up.authority(): { "username": "user", "password": "password" } } });
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
        "metadata": { "name": "login", "namespace": NAMESPACE },
        "stringData": { ".dockerconfigjson": config.to_string() },
    });
    write_objects(bench.root.path(), "login.yaml", &[secret]);
    bench.apply("app", &up.url(), &json!({ "provider": "azure", "secretRef": { "name": "login" } }));
    bench.ready("app");
    assert_eq!(services.asked().len(), 0);
}

#[test]
fn of_all_secrets_the_one_with_the_longest_path_counts() {
    let up = Upstream::start_with(Options { auth: Auth::Basic("team", "password"), ..Options::default() });
    up.push_files(&files(&[("a.yaml", "a: 1")]));
    let bench = Bench::start(&[], &[]);
    let entry = |user: &str| json!({ "username": user, "password": "password" });
    let secret = |name: &str, kind: &str, key: &str, config: serde_json::Value| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": format!("kubernetes.io/{kind}"),
            "metadata": { "name": name, "namespace": NAMESPACE }, "stringData": { key: config.to_string() },
        })
    };
    let hosts = json!({ "auths": { up.authority(): entry("host") } });
    let older = json!({ format!("{}/team", up.authority()): entry("team") });
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "imagePullSecrets": [{ "name": "older" }],
        "metadata": { "name": "puller", "namespace": NAMESPACE },
    });
    let all = [
        secret("own", "dockerconfigjson", ".dockerconfigjson", hosts),
        secret("older", "dockercfg", ".dockercfg", older),
        account,
    ];
    write_objects(bench.root.path(), "secrets.yaml", &all);
    // With a provider they count as without one.
    for (name, provider) in [("plain", "generic"), ("cloud", "gcp")] {
        let spec = json!({ "provider": provider, "secretRef": { "name": "own" }, "serviceAccountName": "puller" });
        bench.apply(name, &up.url(), &spec);
        bench.ready(name);
    }
}

/// Row 25 of Flux's own table.
#[test]
fn an_account_may_log_in_only_where_its_gate_is_on() {
    let host = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {
            "name": "puller", "namespace": NAMESPACE,
            "annotations": { "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/puller" },
        },
    });
    let spec = json!({ "provider": "aws", "serviceAccountName": "puller", "insecure": false });
    let bench = Bench::start(&[], &[]);
    write_objects(bench.root.path(), "puller.yaml", std::slice::from_ref(&account));
    bench.apply("app", &format!("oci://{host}/a"), &spec);
    let failed = bench.larder.wait_failed(KIND, NAMESPACE, "app", "FetchFailed", "FeatureGateDisabled");
    let stalled = condition_of(&failed, "Stalled");
    assert_eq!((text(stalled, "/status"), text(stalled, "/reason")), ("True", "FeatureGateDisabled"));
    assert!(text(stalled, "/message").contains("ObjectLevelWorkloadIdentity"), "{stalled}");

    // Without a cluster nobody issues the account's token.
    let bench = Bench::start(&["--feature-gates", "ObjectLevelWorkloadIdentity=true"], &[]);
    write_objects(bench.root.path(), "puller.yaml", &[account]);
    bench.apply("app", &format!("oci://{host}/a"), &spec);
    let message = bench.refused("app");
    assert!(message.contains("there is no cluster here"), "{message}");
    bench.apply("missing", &format!("oci://{host}/a"), &json!({ "provider": "aws", "serviceAccountName": "absent" }));
    assert!(bench.refused("missing").contains("'apps/absent' not found"));
}

#[test]
fn the_controllers_own_identity_is_shown_to_nobody_else() {
    let services = metadata(3600);
    let bench =
        Bench::start(&["--token-realms", "registry.example"], &[("GCE_METADATA_HOST", &services.address.to_string())]);
    let secret = |name: &str, data: serde_json::Value| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": NAMESPACE },
            "stringData": data,
        })
    };
    let ca = crate::support::certificates::Ca::new();
    write_objects(
        bench.root.path(),
        "secrets.yaml",
        &[secret("ca", json!({ "ca.crt": ca.pem() })), secret("proxy", json!({ "address": "http://192.0.2.1:3128" }))],
    );
    let google = "oci://europe-docker.pkg.dev/project/repository";
    for (name, url, spec, says) in [
        ("stranger", "oci://evil.example/a", json!({ "insecure": false }), "is no registry of gcp"),
        (
            "lookalike",
            "oci://europe-docker.pkg.dev.evil.example/a",
            json!({ "insecure": false }),
            "is no registry of gcp",
        ),
        ("insecure", google, json!({ "insecure": true }), "without verified TLS"),
        (
            "listened-to",
            google,
            json!({ "insecure": false, "certSecretRef": { "name": "ca" }, "proxySecretRef": { "name": "proxy" } }),
            "a proxy whose certificates the same object vouches for",
        ),
    ] {
        let mut spec = spec;
        spec["provider"] = json!("gcp");
        bench.apply(name, url, &spec);
        let message = bench.refused(name);
        assert!(message.contains(says), "{name}: {message}");
    }
    assert_eq!(services.asked().len(), 0);
}

#[test]
fn a_registry_that_takes_no_refresh_token_by_a_form_gets_the_pair() {
    use crate::support::registry::{Fault, Kind, Seen};
    let services = Services::start(entra);
    let up = acr();
    up.fault(|seen: &Seen| seen.kind == Kind::Token && seen.method == "POST", usize::MAX, Fault::status(405));
    let (_folder, token) = file_with(ASSERTION);
    let bench = Bench::start(
        &[],
        &[
            ("AZURE_CLIENT_ID", "client-id"),
            ("AZURE_TENANT_ID", "tenant-id"),
            ("AZURE_FEDERATED_TOKEN_FILE", &token),
            ("AZURE_AUTHORITY_HOST", &services.origin()),
        ],
    );
    bench.apply("app", &up.url(), &json!({ "provider": "azure" }));
    bench.ready("app");
    let pair = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(format!("{ACR_USER}:{REFRESH}"))
    };
    let basic = format!("Basic {pair}");
    assert!(up.seen_of(Kind::Token).iter().any(|seen| seen.header("authorization") == Some(&basic)));
    bench.keeps(&[REFRESH, &pair]);
}
