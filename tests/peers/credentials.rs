//! Private registries: Secrets and Docker configs, right, wrong and missing; TLS with an own CA and client certificates.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    docker_registry::{DockerRegistry, Setup},
    documents::{NAMESPACE, docker_config, docker_secret, oci_repository, secret},
    need::need,
    support::{
        fixtures::files,
        larder::{Larder, condition_of, fetch_artifact, finish, run, run_json, stdout_of, text, write_objects},
    },
};

const USER: &str = "tester";
/// Looked for in every log and status afterwards.
const PASSWORD: &str = "canary-7c1f0f9e";
const WRONG: &str = "canary-wrong-51d2";

fn private(root: &Path) -> DockerRegistry {
    let user = Some((USER.to_owned(), PASSWORD.to_owned()));
    DockerRegistry::start_with(&root.join("registry"), Setup { user, ..Setup::default() })
}

#[test]
fn a_private_registry_opens_to_the_right_secret_only() {
    need!("docker-registry", "htpasswd");
    let root = tempfile::tempdir().expect("folder");
    let registry = private(root.path());
    let host = registry.host();
    registry.push_files("app", "latest", &files(&[("v", "1")]));
    let url = format!("oci://{host}/app");
    let object = |name: &str, spec: Value| {
        let mut object = oci_repository(name, &url, spec);
        object["spec"]["insecure"] = json!(true);
        object
    };
    let with = |name: &str| object(name, json!({ "secretRef": { "name": name } }));
    let encoded = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(docker_config(&host, USER, PASSWORD))
    };
    let in_data = |name: &str, value: &str| {
        json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
                "metadata": { "name": name, "namespace": NAMESPACE }, "data": { ".dockerconfigjson": value } })
    };
    let git = {
        let spec = json!({ "interval": "1h", "url": url, "secretRef": { "name": "user" } });
        json!({ "apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "GitRepository", "spec": spec,
                "metadata": { "name": "git", "namespace": NAMESPACE } })
    };
    write_objects(
        root.path(),
        "objects.yaml",
        &[
            docker_secret("right", &host, USER, PASSWORD),
            with("right"),
            docker_secret("wrong", &host, USER, WRONG),
            with("wrong"),
            with("missing"),
            docker_secret("other-host", "registry.example.com", USER, PASSWORD),
            with("other-host"),
            secret("malformed", "kubernetes.io/dockerconfigjson", &[(".dockerconfigjson", PASSWORD)]),
            with("malformed"),
            secret("opaque", "Opaque", &[("password", PASSWORD)]),
            with("opaque"),
            object("none", json!({})),
            in_data("base64", &encoded),
            with("base64"),
            // As the user's own document has it.
            in_data("plain", &docker_config(&host, USER, PASSWORD)),
            with("plain"),
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "imagePullSecrets": [{ "name": "right" }],
                    "metadata": { "name": "puller", "namespace": NAMESPACE } }),
            object("account", json!({ "serviceAccountName": "puller" })),
            secret("user", "Opaque", &[("username", USER), ("password", PASSWORD)]),
            git,
        ],
    );
    let larder = Larder::reconciling(root.path(), &["--insecure-registry", &host]);
    for name in ["right", "base64", "plain", "account"] {
        fetch_artifact(&larder.wait_ready("OCIRepository", NAMESPACE, name));
    }
    fetch_artifact(&larder.wait_ready("GitRepository", NAMESPACE, "git"));
    // A registry's own refusal is OCIArtifactPullFailed; what fails before it was asked is AuthenticationFailed.
    for (name, reason) in [
        ("wrong", "OCIArtifactPullFailed"),
        ("none", "OCIArtifactPullFailed"),
        ("other-host", "OCIArtifactPullFailed"),
        ("missing", "AuthenticationFailed"),
        ("malformed", "AuthenticationFailed"),
        ("opaque", "AuthenticationFailed"),
    ] {
        let object = larder.wait_failed("OCIRepository", NAMESPACE, name, "FetchFailed", reason);
        assert!(object["status"].get("artifact").is_none(), "{name} sees what another's secret has opened: {object}");
    }
    let missing = larder.object("OCIRepository", NAMESPACE, "missing").expect("listed");
    assert!(text(condition_of(&missing, "Ready"), "/message").contains("missing"), "the message names the secret");
    let shown = format!("{}{}", larder.log(), larder.listing());
    for canary in [PASSWORD, WRONG, &encoded] {
        assert!(!shown.contains(canary), "{canary} is in a log or a status");
    }
    let log = larder.log();
    assert!(log.contains("plain") && log.contains("base64"), "the plain Secret is warned of:\n{log}");
}

#[test]
fn commands_take_credentials_from_flags_standard_input_and_the_docker_config() {
    need!("docker-registry", "htpasswd");
    let root = tempfile::tempdir().expect("folder");
    let registry = private(root.path());
    registry.push_files("app", "v1", &files(&[("v", "1")]));
    let url = format!("oci://{}/app", registry.host());
    let creds = format!("{USER}:{PASSWORD}");
    let list = ["list", &url, "--plain-http", "-o", "json"];
    let listed = run_json(root.path(), list.iter().copied().chain(["--creds", &creds]));
    assert_eq!(listed[0]["tag"], "v1");

    let mut command = crate::support::larder::command(root.path());
    std::fs::write(root.path().join("creds"), &creds).expect("file");
    command.args(list).arg("--creds-stdin").stdin(std::fs::File::open(root.path().join("creds")).expect("file"));
    assert!(finish(command).status.success(), "--creds-stdin");

    let folder = root.path().join("docker");
    std::fs::create_dir(&folder).expect("folder");
    std::fs::write(folder.join("config.json"), docker_config(&registry.host(), USER, PASSWORD)).expect("file");
    let mut command = crate::support::larder::command(root.path());
    command.args(list).env("DOCKER_CONFIG", &folder);
    assert!(finish(command).status.success(), "DOCKER_CONFIG");

    for arguments in [list.to_vec(), [&list[..], &["--creds", &format!("{USER}:{WRONG}")]].concat()] {
        let refused = run(root.path(), &arguments);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains(&registry.host()), "the message names the registry: {said}");
        assert!(!said.contains(WRONG), "{said}");
    }
}

/// Certificates of an own CA: `ca.crt`, a server's and a client's pair, and a stranger's CA.
struct Certificates(PathBuf);

impl Certificates {
    fn new(root: &Path) -> Self {
        let folder = root.join("certificates");
        std::fs::create_dir(&folder).expect("folder");
        let openssl = |arguments: &str| {
            let mut command = Command::new("openssl");
            command.args(arguments.split(' ')).current_dir(&folder);
            stdout_of(command);
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        for ca in ["ca", "stranger"] {
            openssl(&format!("req -x509 {key} -keyout {ca}.key -out {ca}.crt -days 2 -subj /CN={ca}"));
        }
        let extensions =
            "basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
        std::fs::write(folder.join("extensions"), extensions).expect("file");
        for (leaf, ca) in [("server", "ca"), ("client", "ca"), ("intruder", "stranger")] {
            openssl(&format!("req {key} -keyout {leaf}.key -out {leaf}.csr -subj /CN={leaf}"));
            openssl(&format!(
                "x509 -req -in {leaf}.csr -CA {ca}.crt -CAkey {ca}.key -CAcreateserial -out {leaf}.crt -days 2 -extfile extensions"
            ));
        }
        Self(folder)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.path(file)).expect("PEM file")
    }

    fn server(&self) -> Option<(PathBuf, PathBuf)> {
        Some((self.path("server.crt"), self.path("server.key")))
    }
}

#[test]
fn a_registry_with_an_own_ca_is_trusted_only_through_the_secret() {
    need!("docker-registry", "openssl");
    let root = tempfile::tempdir().expect("folder");
    let certificates = Certificates::new(root.path());
    let storage = root.path().join("registry");
    let plain = DockerRegistry::start(&storage);
    plain.push_files("app", "latest", &files(&[("v", "1")]));
    let tls = DockerRegistry::start_with(&storage, Setup { tls: certificates.server(), ..Setup::default() });
    let client_ca = Some(certificates.path("ca.crt"));
    let mutual =
        DockerRegistry::start_with(&storage, Setup { tls: certificates.server(), client_ca, ..Setup::default() });
    let ca = certificates.text("ca.crt");
    let stranger = certificates.text("stranger.crt");
    let pair = |leaf: &str| (certificates.text(&format!("{leaf}.crt")), certificates.text(&format!("{leaf}.key")));
    let (client, client_key) = pair("client");
    let (intruder, intruder_key) = pair("intruder");
    // name, registry, the Secret's data, the reason of the failure
    type Row<'a> = (&'a str, &'a DockerRegistry, Vec<(&'a str, &'a str)>, Option<&'a str>);
    let rows: Vec<Row<'_>> = vec![
        ("ca", &tls, vec![("ca.crt", &ca)], None),
        ("legacy", &tls, vec![("caFile", &ca)], None),
        ("both", &tls, vec![("ca.crt", &ca), ("caFile", "garbage")], None),
        ("garbage", &tls, vec![("ca.crt", "garbage")], Some("AuthenticationFailed")),
        ("stranger", &tls, vec![("ca.crt", &stranger)], Some("OCIArtifactPullFailed")),
        ("system", &tls, vec![], Some("OCIArtifactPullFailed")),
        ("mutual", &mutual, vec![("ca.crt", &ca), ("tls.crt", &client), ("tls.key", &client_key)], None),
        ("mutual-none", &mutual, vec![("ca.crt", &ca)], Some("OCIArtifactPullFailed")),
        (
            "mutual-intruder",
            &mutual,
            vec![("ca.crt", &ca), ("tls.crt", &intruder), ("tls.key", &intruder_key)],
            Some("OCIArtifactPullFailed"),
        ),
        (
            "mismatch",
            &mutual,
            vec![("ca.crt", &ca), ("tls.crt", &client), ("tls.key", &intruder_key)],
            Some("AuthenticationFailed"),
        ),
    ];
    let mut objects = Vec::new();
    for (name, registry, data, _) in &rows {
        let mut spec = json!({});
        if !data.is_empty() {
            spec = json!({ "certSecretRef": { "name": name } });
            objects.push(secret(name, "Opaque", data));
        }
        objects.push(oci_repository(name, &format!("oci://{}/app", registry.host()), spec));
    }
    // Https only, loopback included, and no way from TLS to cleartext.
    objects.push(oci_repository("cleartext", &format!("oci://{}/app", plain.host()), json!({})));
    let insecure = json!({ "insecure": true });
    objects.push(oci_repository("unverified", &format!("oci://{}/app", tls.host()), insecure));
    write_objects(root.path(), "objects.yaml", &objects);
    let asked = plain.requests().len();
    let larder = Larder::reconciling(root.path(), &[]);
    for (name, _, _, reason) in &rows {
        match reason {
            None => drop(fetch_artifact(&larder.wait_ready("OCIRepository", NAMESPACE, name))),
            Some(reason) => drop(larder.wait_failed("OCIRepository", NAMESPACE, name, "FetchFailed", reason)),
        }
    }
    fetch_artifact(&larder.wait_ready("OCIRepository", NAMESPACE, "unverified"));
    larder.wait_failed("OCIRepository", NAMESPACE, "cleartext", "FetchFailed", "OCIArtifactPullFailed");
    assert_eq!(plain.requests().len(), asked, "nothing was asked in cleartext");

    let url = format!("oci://{}/app", tls.host());
    let file = certificates.path("ca.crt");
    let listed = run_json(root.path(), ["list", &url, "-o", "json", "--ca", file.to_str().expect("UTF-8")]);
    assert_eq!(listed[0]["tag"], "latest");
    assert_eq!(run(root.path(), ["list", &url]).status.code(), Some(1), "an unknown CA");
    assert!(run(root.path(), ["list", &url, "--insecure-skip-tls-verify"]).status.success());
    let cleartext = format!("oci://{}/app", plain.host());
    assert_eq!(run(root.path(), ["list", &cleartext]).status.code(), Some(1), "no cleartext unless asked");
}
