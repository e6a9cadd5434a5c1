//! Logins at clouds' registries: the built daemon against token services on loopback, and a registry that takes nothing but
//! what they give.

mod accounts;
mod aws;
mod failing;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    hardening::{
        upstream::{REPOSITORY, Upstream},
        world::object,
    },
    support::{
        fixtures::{files, files_below, files_in},
        http,
        larder::{Larder, fetch_artifact, write_objects},
        registry::{Auth, Fault, Kind, Options, Seen, of},
        services::{Asked, Services},
    },
};

const KIND: &str = "OCIRepository";
const NAMESPACE: &str = "apps";
/// Stand in for the tokens on the way, and must never be told.
const ASSERTION: &str = "canary-assertion-of-the-pod";
const ACCESS: &str = "canary-access-token";
const REFRESH: &str = "canary-refresh-token";
const ACR_USER: &str = "00000000-0000-0000-0000-000000000000";

/// A daemon with identities from `environment`, which is all that it has.
struct Bench {
    root: TempDir,
    larder: Larder,
}

impl Bench {
    fn start(flags: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), flags, environment)
    }

    fn start_in(root: TempDir, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let objects = root.path().join("objects");
        std::fs::create_dir_all(&objects).unwrap();
        let mut all = vec!["--objects", objects.to_str().unwrap(), "--log-format", "json"];
        all.extend_from_slice(flags);
        let mut variables = vec![("LARDER_LOG", "trace,mio=info,notify=info")];
        variables.extend_from_slice(environment);
        let larder = Larder::start_with(root.path(), &all, &variables);
        Self { root, larder }
    }

    fn apply(&self, name: &str, url: &str, spec: &Value) {
        let object = object(KIND, NAMESPACE, name, url, spec);
        write_objects(self.root.path(), &format!("{name}.yaml"), &[object]);
    }

    fn ready(&self, name: &str) -> Value {
        self.larder.wait_ready(KIND, NAMESPACE, name)
    }

    /// The message of AuthenticationFailed.
    fn refused(&self, name: &str) -> String {
        let failed = self.larder.wait_failed(KIND, NAMESPACE, name, "FetchFailed", "AuthenticationFailed");
        crate::support::larder::text(crate::support::larder::condition_of(&failed, "FetchFailed"), "/message")
            .to_owned()
    }

    /// None of `secrets` stands anywhere that people or programs look.
    fn keeps(&self, secrets: &[&str]) {
        let mut told = vec![
            ("the log".to_owned(), self.larder.log()),
            ("the metrics".to_owned(), http::get(&format!("{}/metrics", self.larder.admin)).text()),
            ("the listing".to_owned(), self.larder.listing().to_string()),
        ];
        for (name, content) in files_below(&self.larder.data.join("objects")) {
            told.push((name, String::from_utf8_lossy(&content).into_owned()));
        }
        for (place, said) in told {
            for secret in secrets {
                assert!(!said.contains(secret), "{place} tells {secret}");
            }
        }
    }
}

/// A file with `content` in a folder of its own.
fn file_with(content: &str) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, format!("{content}\n")).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

/// Entra ID, for whoever shows [`ASSERTION`].
fn entra(asked: &Asked) -> (u16, String) {
    if asked.field("client_assertion").as_deref() == Some(ASSERTION) {
        (200, json!({ "token_type": "Bearer", "expires_in": 3599, "access_token": ACCESS }).to_string())
    } else {
        (401, json!({ "error": "invalid_client", "error_description": "AADSTS700021" }).to_string())
    }
}

/// A registry that lets in whoever has [`REFRESH`], which it gives for [`ACCESS`].
fn acr() -> Upstream {
    let auth = Auth::Token { user: Some((ACR_USER, REFRESH)), realm: None, expires_in: None };
    let up = Upstream::start_with(Options { auth, ..Options::default() });
    up.push_files(&files(&[("a.yaml", "a: 1")]));
    let exchange = |seen: &Seen| seen.path == "/oauth2/exchange";
    let body = json!({ "refresh_token": REFRESH }).to_string();
    up.fault(exchange, usize::MAX, Fault::Answer { status: 200, headers: Vec::new(), body });
    up
}

/// A metadata server that gives [`ACCESS`] for so many seconds.
fn metadata(seconds: u64) -> Services {
    Services::start(move |asked| match asked.header("metadata-flavor") {
        Some("Google") => {
            (200, json!({ "access_token": ACCESS, "expires_in": seconds, "token_type": "Bearer" }).to_string())
        }
        _ => (403, "Metadata-Flavor is missing".to_owned()),
    })
}

/// A registry that takes [`ACCESS`] as Google's do.
fn artifact_registry() -> Upstream {
    let auth = Auth::Basic("oauth2accesstoken", ACCESS);
    let up = Upstream::start_with(Options { auth, ..Options::default() });
    up.push_files(&files(&[("a.yaml", "a: 1")]));
    up
}

#[test]
fn azure_exchanges_the_federated_token_for_the_registrys_refresh_token() {
    let (services, up) = (Services::start(entra), acr());
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
    let ready = bench.ready("app");
    assert_eq!(files_in(&fetch_artifact(&ready)), files(&[("a.yaml", "a: 1")]));

    let asked = services.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].method.as_str(), asked[0].path.as_str()), ("POST", "/tenant-id/oauth2/v2.0/token"));
    for (field, value) in [
        ("grant_type", "client_credentials"),
        ("client_id", "client-id"),
        ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
        ("client_assertion", ASSERTION),
        ("scope", "https://containerregistry.azure.net/.default"),
    ] {
        assert_eq!(asked[0].field(field).as_deref(), Some(value));
    }
    let exchanged: Vec<_> = up.seen().into_iter().filter(|seen| seen.path == "/oauth2/exchange").collect();
    assert_eq!(exchanged.len(), 1);
    let form = String::from_utf8_lossy(&exchanged[0].body).into_owned();
    let service = up.authority().replace(':', "%3A");
    assert_eq!(form, format!("grant_type=access_token&service={service}&access_token={ACCESS}"));
    assert!(up.seen_of(Kind::Token).iter().all(|seen| seen.method == "POST"), "a refresh token goes by a form");
    bench.keeps(&[ASSERTION, ACCESS, REFRESH]);
    assert_eq!(bench.larder.stop(), Some(0));
}

#[test]
fn many_objects_need_one_token_of_the_metadata_server() {
    let (services, up) = (metadata(3600), artifact_registry());
    let bench = Bench::start(&[], &[("GCE_METADATA_HOST", &services.address.to_string())]);
    let manifest = up.manifest(REPOSITORY, "latest").unwrap();
    for n in 0..20 {
        up.add_manifest(REPOSITORY, Some(&format!("v{n}")), crate::hardening::upstream::MANIFEST, &manifest);
    }
    for n in 0..20 {
        bench.apply(&format!("app{n}"), &up.url(), &json!({ "provider": "gcp", "ref": { "tag": format!("v{n}") } }));
    }
    for n in 0..20 {
        bench.ready(&format!("app{n}"));
    }
    let asked = services.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].path, "/computeMetadata/v1/instance/service-accounts/default/token");
    bench.keeps(&[ACCESS]);
}

#[test]
fn a_token_that_ran_out_is_renewed_and_nothing_is_fetched_again() {
    let (services, up) = (metadata(1), artifact_registry());
    let bench = Bench::start(&[], &[("GCE_METADATA_HOST", &services.address.to_string())]);
    bench.apply("app", &up.url(), &json!({ "provider": "gcp" }));
    let first = bench.ready("app");
    let blobs = up.count(Kind::BlobGet);
    std::thread::sleep(Duration::from_millis(1000));
    let before = services.asked().len();
    assert_eq!(bench.larder.reconcile(KIND, NAMESPACE, "app").status, 200);
    let again = bench.ready("app");
    assert!(services.asked().len() > before);
    assert_eq!(again["status"]["artifact"], first["status"]["artifact"]);
    assert_eq!(up.count(Kind::BlobGet), blobs);
}

#[test]
fn a_token_that_the_registry_refuses_is_replaced_within_the_call() {
    let (services, up) = (metadata(3600), artifact_registry());
    let bench = Bench::start(&[], &[("GCE_METADATA_HOST", &services.address.to_string())]);
    bench.apply("app", &up.url(), &json!({ "provider": "gcp" }));
    bench.ready("app");
    assert_eq!(services.asked().len(), 1);
    up.fault(of(Kind::ManifestHead), 1, Fault::challenge("Basic realm=\"scripted\""));
    let answer = bench.larder.reconcile(KIND, NAMESPACE, "app");
    assert!(crate::support::larder::is_ready(&answer.json()), "{}", answer.text());
    assert_eq!(services.asked().len(), 2);
    // One that goes on refusing is not asked for ever.
    up.fault(of(Kind::ManifestHead), usize::MAX, Fault::challenge("Basic realm=\"scripted\""));
    let begun = Instant::now();
    bench.larder.reconcile(KIND, NAMESPACE, "app");
    bench.larder.wait_failed(KIND, NAMESPACE, "app", "FetchFailed", "OCIArtifactPullFailed");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(services.asked().len() <= 5, "{}", services.asked().len());
}

#[test]
fn an_external_account_is_exchanged_and_impersonates() {
    const SUBJECT: &str = "canary-subject-token";
    const FEDERATED: &str = "canary-federated-token";
    let services = Services::start(|asked| match asked.path.as_str() {
        "/subject" => (200, json!({ "value": SUBJECT }).to_string()),
        "/v1/token" if asked.field("subject_token").as_deref() == Some(SUBJECT) => {
            (200, json!({ "access_token": FEDERATED, "expires_in": 3600 }).to_string())
        }
        path if path.ends_with(":generateAccessToken")
            && asked.header("authorization") == Some(&format!("Bearer {FEDERATED}")) =>
        {
            (200, json!({ "accessToken": ACCESS, "expireTime": "2099-01-01T00:00:00Z" }).to_string())
        }
        _ => (400, json!({ "error": { "status": "INVALID", "message": "not that" } }).to_string()),
    });
    let up = artifact_registry();
    let at = services.origin();
    let config = json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("{at}/v1/token"),
        "service_account_impersonation_url": format!("{at}/v1/projects/-/serviceAccounts/a@b:generateAccessToken"),
        "credential_source": {
            "url": format!("{at}/subject"),
            "format": { "type": "json", "subject_token_field_name": "value" },
        },
    });
    let (_folder, path) = file_with(&config.to_string());
    let bench = Bench::start(&[], &[("GOOGLE_APPLICATION_CREDENTIALS", &path)]);
    bench.apply("app", &up.url(), &json!({ "provider": "gcp" }));
    bench.ready("app");
    assert_eq!(services.asked().len(), 3);
    bench.keeps(&[SUBJECT, FEDERATED, ACCESS]);
}
