//! What a source names, and how it is reached: the cases of Flux's own tests (their numbers in `flux.md` section 6 stand in
//! brackets).

use std::collections::BTreeMap;

use rcgen::KeyPair;
use serde_json::{Value, json};

use super::{Kubernetes, NAMESPACE, Stage, object, path_of};
use crate::support::{
    certificates::{self, Ca},
    eventually,
    fixtures::{files, gzip, tar_of},
    http,
    larder::{condition_of, fetch_artifact, is_ready, text},
    registry::{Fault, Kind, Options},
    signing::{layer_by_key, simple_signing},
    upstream::{MANIFEST, descriptor},
};

/// What comes of an object.
enum Comes {
    /// Ready, at this revision (`@` stands for the digest of the tag's manifest).
    At(&'static str, &'static str),
    /// Not Ready: the condition, its reason, a part of its message, whether it is stalled.
    To(&'static str, &'static str, &'static str, bool),
}

fn check<K: Kubernetes>(stage: &Stage<'_, K>, name: &str, path: &str, comes: &Comes, digests: &BTreeMap<&str, String>) {
    match comes {
        Comes::At(revision, tag) => {
            let ready = stage.ready(path);
            let revision = revision.replace('@', &format!("@{}", digests[tag])).replace("=digest", &digests[tag]);
            assert_eq!(text(&ready, "/status/artifact/revision"), revision, "{name}");
            fetch_artifact(&ready);
        }
        Comes::To(condition, reason, part, stalled) => {
            let failed = stage.failed(path, condition, reason);
            let message = text(condition_of(&failed, condition), "/message").to_owned();
            assert!(message.contains(part), "{name}: {message}");
            assert_eq!(condition_of(&failed, "Stalled")["status"] == "True", *stalled, "{name}: {failed}");
            let observed = failed["status"]["observedGeneration"] == failed["metadata"]["generation"];
            assert_eq!(observed, *stalled, "{name}: observed only where nothing but a new spec helps");
        }
    }
}

pub fn references_lead_where_fluxs_do(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let tags = ["latest", "6.1.4", "6.1.5", "6.1.6-rc.1", "6.2.0", "6.2.1", "v7.0.0"];
    let push = |tag| (tag, stage.push("team/app", tag, &files(&[("a.yaml", tag)])));
    let digests: BTreeMap<&str, String> = tags.into_iter().map(push).collect();
    let digest = digests["6.2.0"].clone();
    let reference = |fields: Value| json!({ "ref": fields });
    let failed = |reason, part| Comes::To("FetchFailed", reason, part, false);
    let rows = [
        ("none", json!({}), Comes::At("latest@", "latest")), // [12]
        ("tag", reference(json!({ "tag": "6.1.4" })), Comes::At("6.1.4@", "6.1.4")), // [1]
        ("digest", reference(json!({ "digest": digest })), Comes::At("=digest", "6.2.0")), // [13]
        ("absent", reference(json!({ "tag": "none" })), failed("OCIArtifactPullFailed", "MANIFEST_UNKNOWN")), // [14]
        ("semver", reference(json!({ "semver": ">= 6.1 <= 6.1.5" })), Comes::At("6.1.5@", "6.1.5")), // [2]
        ("no-match", reference(json!({ "semver": "<= 0.1" })), failed("ReadOperationFailed", "no match found")), // [15]
        ("over-tag", reference(json!({ "semver": "6.2.x", "tag": "latest" })), Comes::At("6.2.1@", "6.2.1")), // [17]
        ("over-semver", reference(json!({ "digest": digest, "semver": "6.1.x" })), Comes::At("=digest", "6.2.0")), // [17]
        (
            "filter",
            reference(json!({ "semver": ">= 6.1.x-0", "semverFilter": ".*-rc.*" })),
            Comes::At("6.1.6-rc.1@", "6.1.6-rc.1"),
        ), // [23]
        (
            "filtered-out",
            reference(json!({ "semver": ">= 6.1.x-0", "semverFilter": ".*-alpha.*" })),
            failed("ReadOperationFailed", "no match found"),
        ), // [23]
        (
            "selector",
            json!({ "layerSelector": { "mediaType": "application/vnd.none" } }),
            failed("OCIArtifactLayerOperationFailed", "media type"),
        ), // [5]
        (
            "notation",
            json!({ "verify": { "provider": "notation" } }),
            Comes::To("FetchFailed", "VerificationError", "notation", true),
        ),
    ];
    let stalls = [
        ("digest-none", reference(json!({ "digest": "invalid" })), "OCIArtifactPullFailed", "digest"), // [16]
        ("tagged", json!({ "url": format!("{}:v1", stage.url("team/app")) }), "URLInvalid", "spec.url"), // [24]
        (
            "gate",
            json!({ "provider": "aws", "serviceAccountName": "sa", "insecure": false,
                "url": "oci://123456789012.dkr.ecr.eu-west-1.amazonaws.com/app" }),
            "FeatureGateDisabled",
            "ObjectLevelWorkloadIdentity",
        ), // [25]
    ];
    let stalls = stalls.map(|(name, spec, reason, part)| (name, spec, Comes::To("FetchFailed", reason, part, true)));
    api.create(
        &json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "sa", "namespace": NAMESPACE } }),
    );
    let rows: Vec<_> = rows.into_iter().chain(stalls).collect();
    let sources: Vec<Value> =
        rows.iter().map(|(name, spec, _)| stage.oci_repository(name, "team/app", spec.clone())).collect();
    sources.iter().for_each(|source| api.create(source));
    let _larder = stage.serve(&[]);
    for ((name, _, comes), source) in rows.iter().zip(&sources) {
        // A refusal's condition may be another than a failed fetch's; SourceVerified tells of signatures.
        let comes = match comes {
            Comes::To("FetchFailed", "VerificationError", part, stalled) => {
                &Comes::To("SourceVerified", "VerificationError", part, *stalled)
            }
            other => other,
        };
        check(&stage, name, &path_of(source), comes, &digests);
    }
}

fn secret(name: &str, data: &[(&str, &str)]) -> Value {
    use base64::Engine as _;
    let packed = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let data: BTreeMap<&str, String> = data.iter().map(|(key, value)| (*key, packed(value))).collect();
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": NAMESPACE }, "data": data })
}

pub fn certificates_come_from_secrets(api: &impl Kubernetes) {
    let ca = Ca::new();
    let tls = Some(certificates::server(&ca.issue(&["127.0.0.1"]), Some(&ca)));
    let stage = Stage::with_registry(api, Options { tls, ..Options::default() });
    stage.push("team/app", "latest", &files(&[("a.yaml", "1")]));
    let (mine, other) = (ca.issue(&["client"]), ca.issue(&["client"]));
    let whole = [("tls.crt", mine.certificate.as_str()), ("tls.key", &mine.key)];
    let pull = "OCIArtifactPullFailed";
    // [8], [9], [11]
    // A Secret's name and data, and how it fails where it does.
    type Row<'a> = (&'a str, Vec<(&'a str, &'a str)>, Option<&'a str>);
    let rows: [Row<'_>; 6] = [
        ("ca", [&whole[..], &[("ca.crt", ca.pem())]].concat(), None),
        ("legacy", vec![("certFile", &mine.certificate), ("keyFile", &mine.key), ("caFile", ca.pem())], None),
        ("both", [&whole[..], &[("ca.crt", ca.pem()), ("caFile", "garbage")]].concat(), None),
        ("garbage", [&whole[..], &[("ca.crt", "garbage")]].concat(), Some("AuthenticationFailed")),
        ("no-client", vec![("ca.crt", ca.pem())], Some(pull)),
        (
            "wrong-key",
            vec![("ca.crt", ca.pem()), ("tls.crt", &mine.certificate), ("tls.key", &other.key)],
            Some("AuthenticationFailed"),
        ),
    ];
    for (name, data, _) in &rows {
        api.create(&secret(name, data));
        let spec = json!({ "insecure": false, "certSecretRef": { "name": name } });
        api.create(&stage.oci_repository(name, "team/app", spec));
    }
    let plain = stage.oci_repository("plain", "team/app", json!({ "insecure": false }));
    api.create(&plain);
    let _larder = stage.serve(&[]);
    for (name, _, reason) in &rows {
        let path = path_of(&stage.oci_repository(name, "team/app", json!({})));
        match reason {
            None => drop(stage.ready(&path)),
            Some(reason) => drop(stage.failed(&path, "FetchFailed", reason)),
        }
    }
    stage.failed(&path_of(&plain), "FetchFailed", pull);
}

pub fn a_proxy_comes_from_a_secret(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &files(&[("a.yaml", "1")]));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let proxy = runtime.block_on(crate::support::proxy::TestProxy::http(None));
    api.create(&secret("alive", &[("address", &format!("http://{}", proxy.address))]));
    api.create(&secret("dead", &[("address", "http://127.0.0.1:1")]));
    let through = |name: &str| stage.oci_repository(name, "team/app", json!({ "proxySecretRef": { "name": name } }));
    ["alive", "dead"].into_iter().for_each(|name| api.create(&through(name)));
    // A proxy on loopback is nothing that an object may ask for by itself.
    let _larder = stage.serve(&["--egress-allow", "127.0.0.0/8"]);
    stage.ready(&path_of(&through("alive")));
    assert!(proxy.asked().iter().any(|line| line.contains("/team/app/manifests/latest")), "{:?}", proxy.asked());
    stage.failed(&path_of(&through("dead")), "FetchFailed", "OCIArtifactPullFailed");
}

/// [26], [28]
pub fn records_are_kept_as_told_and_the_url_follows_the_host(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let source = stage.oci_repository("app", "team/app", json!({}));
    let path = path_of(&source);
    stage.push("team/app", "latest", &files(&[("a.yaml", "a")]));
    api.create(&source);
    let larder = stage.serve(&["--artifact-retention-ttl", "0s", "--artifact-retention-records", "2"]);
    let mut artifacts = vec![stage.ready(&path)["status"]["artifact"].clone()];
    for version in ["b", "c", "d"] {
        stage.push("team/app", "latest", &files(&[("a.yaml", version)]));
        artifacts.push(stage.request(&path, version)["status"]["artifact"].clone());
    }
    let found = || artifacts.iter().map(|a| http::get(text(a, "/url")).status).collect::<Vec<_>>();
    eventually("the two oldest to go", || {
        if found() == [404, 404, 200, 200] { Ok(()) } else { Err(format!("{:?}", found())) }
    });
    assert_eq!(larder.stop(), Some(0));
    let asked = stage.registry.requests();
    let _larder = stage.serve(&["--artifact-advertise", "elsewhere.example:8080"]);
    let moved = api.wait(&path, |object| {
        object["status"]["artifact"]["url"]
            .as_str()
            .is_some_and(|url| url.starts_with("http://elsewhere.example:8080/"))
    });
    for same in ["digest", "revision", "path", "size", "lastUpdateTime"] {
        assert_eq!(moved["status"]["artifact"][same], artifacts[3][same], "{same}");
    }
    assert!(text(&moved, "/status/url").starts_with("http://elsewhere.example:8080/ocirepository/default/app/latest"));
    assert_eq!(stage.registry.requests(), asked, "the registry is asked for nothing that is held");
}

/// [27]
pub fn what_is_lost_on_disk_comes_back(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    stage.push("team/app", "latest", &files(&[("a.yaml", "1")]));
    let source = stage.oci_repository("app", "team/app", json!({}));
    let path = path_of(&source);
    api.create(&source);
    let larder = stage.serve(&[]);
    let ready = stage.ready(&path);
    let hex = text(&ready, "/status/artifact/digest").trim_start_matches("sha256:").to_owned();
    let blob = larder.data.join("blobs/sha256").join(&hex[..2]).join(&hex);
    std::fs::remove_file(&blob).expect("the blob");
    stage.request(&path, "1");
    assert_eq!(fetch_artifact(&stage.ready(&path)), std::fs::read(&blob).expect("it is there again"));
    // While the registry is away it is not said to be served.
    let kept = std::fs::read(&blob).expect("the blob");
    std::fs::remove_file(&blob).expect("the blob");
    stage.registry.fault(|_| true, 1_000, Fault::status(403));
    let told = |token: &str, part: &str| {
        stage.request(&path, token);
        let failed = stage.failed(&path, "FetchFailed", "OCIArtifactPullFailed");
        let message = text(condition_of(&failed, "FetchFailed"), "/message").to_owned();
        assert!(message.contains(part), "{message}");
    };
    told("lost", "was lost here, and cannot be served before it is fetched again");
    assert_eq!(http::get(text(&ready, "/status/artifact/url")).status, 503);
    std::fs::write(&blob, kept).expect("the blob");
    told("found", "is still served");
    assert_eq!(http::get(text(&ready, "/status/artifact/url")).status, 200);
    stage.registry.heal();
    // A bit of it flips: never served, and fetched again.
    let mut bytes = std::fs::read(&blob).expect("the blob");
    bytes[20] ^= 1;
    let spoilt = blob.with_extension("spoilt");
    std::fs::write(&spoilt, &bytes).expect("a file");
    std::fs::rename(&spoilt, &blob).expect("in its place");
    stage.request(&path, "2");
    eventually("the right bytes", || {
        let answer = http::get(text(&ready, "/status/artifact/url"));
        let right = crate::support::fixtures::sha256(&answer.body) == text(&ready, "/status/artifact/digest");
        assert!(answer.status != 200 || right, "wrong bytes are served");
        if right { Ok(()) } else { Err(answer.status.to_string()) }
    });
}

/// [30]
pub fn signatures_decide_what_is_published(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    let key = KeyPair::generate().expect("a key");
    api.create(&secret("keys", &[("cosign.pub", &key.public_key_pem())]));
    let sign = |digest: &str| {
        let payload = simple_signing(digest);
        let layer = stage.registry.add_blob("team/app", &payload);
        let config = stage.registry.add_blob("team/app", b"{}");
        let mut layer = descriptor("application/vnd.dev.cosign.simplesigning.v1+json", &layer, payload.len());
        layer["annotations"] = json!(layer_by_key(&key, &payload));
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "layers": [layer],
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config, 2) });
        let tag = format!("{}.sig", digest.replace(':', "-"));
        stage.registry.add_manifest("team/app", Some(&tag), MANIFEST, manifest.to_string().as_bytes());
    };
    let first = stage.push("team/app", "latest", &files(&[("a.yaml", "1")]));
    let verify = json!({ "verify": { "provider": "cosign", "secretRef": { "name": "keys" } } });
    let source = stage.oci_repository("app", "team/app", verify);
    let path = path_of(&source);
    api.create(&source);
    let _larder = stage.serve(&[]);
    let failed = api.wait(&path, |o| condition_of(o, "SourceVerified")["reason"] == "VerificationError");
    assert!(failed["status"]["artifact"].is_null(), "{failed}");
    sign(&first);
    stage.request(&path, "1");
    let ready = stage.ready(&path);
    assert_eq!(
        condition_of(&ready, "SourceVerified")["message"],
        format!("verified signature of revision latest@{first}")
    );
    let asked = stage.registry.count(Kind::ManifestGet);
    stage.request(&path, "2");
    assert_eq!(stage.registry.count(Kind::ManifestGet), asked, "it is not verified again");
    stage.push("team/app", "latest", &files(&[("a.yaml", "2")]));
    stage.request(&path, "3");
    let failed = api.wait(&path, |o| condition_of(o, "SourceVerified")["status"] == "False");
    assert_eq!(failed["status"]["artifact"], ready["status"]["artifact"]);
    fetch_artifact(&failed);
    api.patch(&path, &json!({ "spec": { "verify": null } }));
    let ready = api.wait(&path, |o| is_ready(o) && condition_of(o, "SourceVerified").is_null());
    assert_ne!(ready["status"]["artifact"], failed["status"]["artifact"]);
}

/// [45], [46]
pub fn versions_of_charts_are_chosen_as_helm_does(api: &impl Kubernetes) {
    let stage = Stage::new(api);
    for version in ["0.2.0", "0.10.0", "1.0.0", "1.1.0-rc.1"] {
        let about = format!("apiVersion: v2\nname: app\nversion: {version}\n");
        let bytes = gzip(&tar_of(&files(&[
            ("app/Chart.yaml", &about),
            ("app/values.yaml", "a: 1\n"),
            ("app/more.yaml", "a: 2\n"),
        ])));
        let layer = stage.registry.add_blob("charts/app", &bytes);
        let config = stage.registry.add_blob("charts/app", b"{}");
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor("application/vnd.cncf.helm.config.v1+json", &config, 2),
            "layers": [descriptor("application/vnd.cncf.helm.chart.content.v1.tar+gzip", &layer, bytes.len())] });
        stage.registry.add_manifest("charts/app", Some(version), MANIFEST, manifest.to_string().as_bytes());
    }
    let url = format!("{}/", stage.url("charts"));
    api.create(&object(
        "HelmRepository",
        "charts",
        json!({ "type": "oci", "url": url, "insecure": true, "interval": "1m" }),
    ));
    let chart = |name: &str, version: &str| {
        let reference = json!({ "kind": "HelmRepository", "name": "charts" });
        object(
            "HelmChart",
            name,
            json!({ "chart": "app", "version": version, "interval": "1m", "sourceRef": reference }),
        )
    };
    let rows =
        [("any", "*", "1.0.0"), ("below", "<1.0.0", "0.10.0"), ("exact", "0.2.0", "0.2.0"), ("zero", "0.*", "0.10.0")];
    rows.iter().for_each(|(name, version, _)| api.create(&chart(name, version)));
    api.create(&chart("none", ">2.0.0"));
    let _larder = stage.serve(&[]);
    for (name, _, revision) in rows {
        let ready = stage.ready(&path_of(&chart(name, "")));
        assert_eq!(text(&ready, "/status/artifact/revision"), revision, "{name}");
        assert_eq!(condition_of(&ready, "Ready")["reason"], "ChartPullSucceeded", "{name}");
    }
    let failed = api.wait(&path_of(&chart("none", "")), |o| condition_of(o, "Ready")["status"] == "False");
    assert!(
        ["ChartPullError", "ReadOperationFailed"].contains(&text(condition_of(&failed, "Ready"), "/reason")),
        "{failed}"
    );
    let path = path_of(&chart("exact", ""));
    api.patch(&path, &json!({ "spec": { "valuesFiles": ["more.yaml"] } }));
    let packed = api.wait(&path, |o| is_ready(o) && condition_of(o, "Ready")["reason"] == "ChartPackageSucceeded");
    assert_eq!(text(&packed, "/status/artifact/revision"), "0.2.0+2");
    api.patch(&path, &json!({ "spec": { "valuesFiles": ["none.yaml"] } }));
    let failed = api.wait(&path, |o| condition_of(o, "Ready")["reason"] == "ValuesFilesError");
    assert_eq!(condition_of(&failed, "Stalled")["status"], "True");
}
