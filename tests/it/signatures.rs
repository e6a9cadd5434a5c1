//! `spec.verify` from outside: what a signed, an unsigned and a wrongly signed artifact do to an object, its artifact and
//! the registry.

use larder::digest::Digest;
use rcgen::KeyPair;
use serde_json::{Value, json};

use crate::{
    hardening::{
        upstream::{MANIFEST, Pushed, REPOSITORY, Upstream, descriptor},
        world::{NAMESPACE, World, object},
    },
    support::{
        fixtures::{files, files_in, gzip, tar_of},
        larder::{condition_of, fetch_artifact, is_ready, text},
        registry::Kind,
        signing::{Annotations, BUNDLE, SIGN, bundle_by_key, layer_by_key, simple_signing, statement},
    },
};

const KIND: &str = "OCIRepository";
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Puts signatures of `digest` under its tag, as cosign up to 2 does.
fn attach_layers(up: &Upstream, digest: &Digest, signatures: &[Annotations]) {
    let payload = simple_signing(&digest.to_string());
    let layer = up.add_blob(REPOSITORY, &payload);
    let layers: Vec<Value> = signatures
        .iter()
        .map(|annotations| {
            let mut layer = descriptor(SIMPLE_SIGNING, &layer, payload.len());
            layer["annotations"] = json!(annotations);
            layer
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &Digest::sha256(b"{}"), 2),
        "layers": layers,
    });
    let tag = format!("sha256-{}.sig", digest.hex());
    up.add_manifest(REPOSITORY, Some(&tag), MANIFEST, manifest.to_string().as_bytes());
}

fn sign_layer(up: &Upstream, digest: &Digest, key: &KeyPair) {
    attach_layers(up, digest, &[layer_by_key(key, &simple_signing(&digest.to_string()))]);
}

/// Puts a bundle there that refers to `digest`, as cosign 3 does; its descriptor.
fn attach_bundle(up: &Upstream, digest: &Digest, bundle: &Value, predicate: &str) -> Value {
    let bundle = bundle.to_string();
    let layer = up.add_blob(REPOSITORY, bundle.as_bytes());
    up.add_blob(REPOSITORY, b"{}");
    let annotations =
        json!({ "dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": predicate });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": BUNDLE,
        "config": descriptor(EMPTY, &Digest::sha256(b"{}"), 2),
        "layers": [descriptor(BUNDLE, &layer, bundle.len())],
        "subject": descriptor(MANIFEST, digest, 1),
        "annotations": annotations,
    })
    .to_string();
    let own = up.add_manifest(REPOSITORY, None, MANIFEST, manifest.as_bytes());
    let mut listed = descriptor(MANIFEST, &own, manifest.len());
    listed["artifactType"] = json!(BUNDLE);
    listed["annotations"] = annotations;
    listed
}

fn sign_bundle(up: &Upstream, digest: &Digest, key: &KeyPair) -> Value {
    attach_bundle(up, digest, &bundle_by_key(key, &statement(&digest.to_string(), SIGN)), SIGN)
}

/// The index that stands for the referrers API where a registry has none.
fn index_by_tag(up: &Upstream, digest: &Digest, referrers: &[Value]) {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": referrers });
    let tag = format!("sha256-{}", digest.hex());
    up.add_manifest(REPOSITORY, Some(&tag), INDEX, index.to_string().as_bytes());
}

fn key_secret(world: &World, name: &str, keys: &[(&str, &KeyPair)]) {
    let data: serde_json::Map<String, Value> =
        keys.iter().map(|(name, key)| ((*name).to_owned(), json!(key.public_key_pem()))).collect();
    world.apply_secret(name, "Opaque", &Value::Object(data));
}

fn by_keys(secret: &str) -> Value {
    json!({ "verify": { "provider": "cosign", "secretRef": { "name": secret } } })
}

fn apply(world: &World, name: &str, up: &Upstream, spec: &Value) {
    world.apply(&object(KIND, NAMESPACE, name, &up.url(), spec));
}

fn push(up: &Upstream, version: &str) -> Pushed {
    up.push_files(&files(&[("version", version)]))
}

/// Waits for SourceVerified=False and Ready=False with `reason`; the object.
fn refused(world: &World, kind: &str, name: &str, reason: &str, says: &str) -> Value {
    let object = world.larder.wait(kind, NAMESPACE, name, |object| {
        let verified = condition_of(object, "SourceVerified");
        let ready = condition_of(object, "Ready");
        verified["status"] == "False" && ready["status"] == "False" && text(verified, "/message").contains(says)
    });
    for condition in ["SourceVerified", "Ready"] {
        let condition = condition_of(&object, condition);
        assert_eq!(
            (&condition["reason"], &condition["status"]),
            (&json!(reason), &json!("False")),
            "{name}: {condition}"
        );
    }
    object
}

fn verified(world: &World, name: &str, pushed: &Pushed) -> Value {
    let revision = format!("latest@{}", pushed.manifest);
    let object = world.larder.wait(KIND, NAMESPACE, name, |object| {
        is_ready(object) && object["status"]["artifact"]["revision"] == json!(revision)
    });
    let condition = condition_of(&object, "SourceVerified");
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("Succeeded")), "{name}");
    assert_eq!(text(condition, "/message"), format!("verified signature of revision {revision}"), "{name}");
    assert_eq!(condition["observedGeneration"], object["metadata"]["generation"], "{name}");
    object
}

/// Requests for signatures: for the tag, and for what refers.
fn looked_for(up: &Upstream) -> usize {
    up.seen().iter().filter(|seen| seen.path.ends_with(".sig") || seen.path.contains("/referrers/")).count()
}

#[test]
fn artifacts_signed_by_a_key_in_either_form_are_verified_and_published() {
    let world = World::start(&[]);
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap());
    key_secret(&world, "one", &[("cosign.pub", &key)]);
    key_secret(&world, "several", &[("a.pub", &other), ("b.pub", &key), ("c.txt", &other)]);

    let by_layer = Upstream::start();
    let pushed_layer = push(&by_layer, "layer");
    sign_layer(&by_layer, &pushed_layer.manifest, &key);
    apply(&world, "layer", &by_layer, &by_keys("one"));
    apply(&world, "layer-several", &by_layer, &by_keys("several"));

    let by_referrer = Upstream::start();
    by_referrer.know_referrers();
    let pushed_referrer = push(&by_referrer, "referrer");
    // Not a signature, and what cannot be read: neither hides the good one.
    let scan = bundle_by_key(&key, &statement(&pushed_referrer.manifest.to_string(), "https://example/scan"));
    attach_bundle(&by_referrer, &pushed_referrer.manifest, &scan, "https://example/scan");
    attach_bundle(&by_referrer, &pushed_referrer.manifest, &json!({}), SIGN);
    sign_bundle(&by_referrer, &pushed_referrer.manifest, &key);
    apply(&world, "referrer", &by_referrer, &by_keys("one"));

    let by_tag = Upstream::start();
    let pushed_tag = push(&by_tag, "tag");
    let referrer = sign_bundle(&by_tag, &pushed_tag.manifest, &key);
    index_by_tag(&by_tag, &pushed_tag.manifest, &[referrer]);
    apply(&world, "referrers-tag", &by_tag, &by_keys("one"));

    for (name, pushed, version) in [
        ("layer", &pushed_layer, "layer"),
        ("layer-several", &pushed_layer, "layer"),
        ("referrer", &pushed_referrer, "referrer"),
        ("referrers-tag", &pushed_tag, "tag"),
    ] {
        let object = verified(&world, name, pushed);
        assert_eq!(files_in(&fetch_artifact(&object)), files(&[("version", version)]), "{name}");
    }
    let query = by_referrer.seen().into_iter().find(|seen| seen.path.contains("/referrers/")).unwrap().query;
    assert_eq!(query, "artifactType=application%2Fvnd.dev.sigstore.bundle.v0.3%2Bjson");
    world.finish();
}

#[test]
fn what_is_not_signed_as_asked_is_never_pulled_nor_published() {
    let world = World::start(&[]);
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    key_secret(&world, "key", &[("cosign.pub", &key)]);

    let unsigned = Upstream::start();
    let pushed = push(&unsigned, "unsigned");
    apply(&world, "unsigned", &unsigned, &by_keys("key"));
    let stranger = Upstream::start();
    sign_layer(&stranger, &push(&stranger, "stranger").manifest, &other);
    apply(&world, "stranger", &stranger, &by_keys("key"));
    // A signature of another manifest under this one's tag.
    let borrowed = Upstream::start();
    let (mine, theirs) = (push(&borrowed, "mine"), Digest::sha256(b"theirs"));
    sign_layer(&borrowed, &theirs, &key);
    let manifest = borrowed.manifest(REPOSITORY, &format!("sha256-{}.sig", theirs.hex())).unwrap();
    borrowed.add_manifest(REPOSITORY, Some(&format!("sha256-{}.sig", mine.manifest.hex())), MANIFEST, &manifest);
    apply(&world, "borrowed", &borrowed, &by_keys("key"));
    let scanned = Upstream::start();
    scanned.know_referrers();
    let scan = push(&scanned, "scanned").manifest;
    attach_bundle(&scanned, &scan, &bundle_by_key(&key, &statement(&scan.to_string(), "https://example/scan")), SIGN);
    apply(&world, "scanned", &scanned, &by_keys("key"));
    let attested = Upstream::start();
    attested.know_referrers();
    let attest = push(&attested, "attested").manifest;
    attach_bundle(&attested, &attest, &json!({}), "https://example/attestation");
    apply(&world, "attested", &attested, &by_keys("key"));

    for (name, up, says) in [
        ("unsigned", &unsigned, "is not signed"),
        ("stranger", &stranger, "is by no trusted key"),
        ("borrowed", &borrowed, "a signature is about sha256:"),
        ("scanned", &scanned, "an attestation of type \"https://example/scan\" is no signature"),
        ("attested", &attested, "an attestation of type \"https://example/attestation\" is no signature"),
    ] {
        let object = refused(&world, KIND, name, "VerificationError", says);
        assert!(object["status"]["artifact"].is_null(), "{name}: {}", object["status"]);
        assert_eq!(condition_of(&object, "Reconciling")["reason"], "ProgressingWithRetry", "{name}");
        let layer = up.seen_of(Kind::BlobGet).into_iter().find(|seen| seen.path.ends_with(&pushed.layer.to_string()));
        assert!(layer.is_none(), "{name}: {layer:?}");
    }
    assert!(!world.blobs().contains(&pushed.layer.to_string()));
    let source = world.larder.data.join("source").join(NAMESPACE);
    assert!(!source.exists() || std::fs::read_dir(source).unwrap().next().is_none(), "something is published");
    assert_eq!(world.classes()[&format!("{KIND}/{NAMESPACE}/unsigned")], "notfound");
    assert_eq!(world.classes()[&format!("{KIND}/{NAMESPACE}/stranger")], "auth");

    // The signature follows: it is found soon, though the interval is ten minutes.
    sign_layer(&unsigned, &pushed.manifest, &key);
    verified(&world, "unsigned", &pushed);
    world.finish();
}

#[test]
fn a_revision_is_verified_once_for_a_generation_and_an_unsigned_one_leaves_the_old_artifact() {
    let world = World::start(&[]);
    let key = KeyPair::generate().unwrap();
    key_secret(&world, "key", &[("cosign.pub", &key)]);
    let up = Upstream::start();
    let first = push(&up, "1");
    sign_layer(&up, &first.manifest, &key);
    apply(&world, "app", &up, &by_keys("key"));
    let object = verified(&world, "app", &first);
    let bytes = fetch_artifact(&object);
    let looked = looked_for(&up);
    assert_eq!(looked, 2, "the referrers and the tag");
    for _ in 0..3 {
        assert_eq!(world.larder.reconcile(KIND, NAMESPACE, "app").status, 200);
    }
    assert_eq!(looked_for(&up), looked, "the revision is known to be signed");

    let second = push(&up, "2");
    world.larder.reconcile(KIND, NAMESPACE, "app");
    let object = refused(&world, KIND, "app", "VerificationError", "is not signed");
    assert_eq!(text(&object, "/status/artifact/revision"), format!("latest@{}", first.manifest));
    let message = text(condition_of(&object, "Ready"), "/message");
    assert!(message.contains(&format!("'latest@{}' is still served", first.manifest)), "{message}");
    assert!(fetch_artifact(&object) == bytes);
    assert!(!world.blobs().contains(&second.layer.to_string()));

    sign_layer(&up, &second.manifest, &key);
    let object = verified(&world, "app", &second);
    assert_eq!(files_in(&fetch_artifact(&object)), files(&[("version", "2")]));

    // Another spec is another question, of the same revision.
    let looked = looked_for(&up);
    let mut spec = by_keys("key");
    spec["interval"] = json!("11m");
    apply(&world, "app", &up, &spec);
    world.larder.wait(KIND, NAMESPACE, "app", |object| is_ready(object) && object["metadata"]["generation"] == 2);
    verified(&world, "app", &second);
    assert!(looked_for(&up) > looked);

    // No policy, no condition.
    apply(&world, "app", &up, &json!({}));
    let object =
        world.larder.wait(KIND, NAMESPACE, "app", |object| is_ready(object) && object["metadata"]["generation"] == 3);
    assert!(condition_of(&object, "SourceVerified").is_null(), "{object}");
    // And with one again, whose key is another, the artifact stays, too.
    key_secret(&world, "other", &[("cosign.pub", &KeyPair::generate().unwrap())]);
    apply(&world, "app", &up, &by_keys("other"));
    let object = refused(&world, KIND, "app", "VerificationError", "is by no trusted key");
    assert_eq!(text(&object, "/status/artifact/revision"), format!("latest@{}", second.manifest));
    fetch_artifact(&object);
    world.finish();
}

#[test]
fn objects_on_one_tag_are_judged_each_by_its_own_policy() {
    let world = World::start(&[]);
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    key_secret(&world, "key", &[("cosign.pub", &key)]);
    key_secret(&world, "other", &[("cosign.pub", &other)]);
    let up = Upstream::start();
    let pushed = push(&up, "1");
    sign_layer(&up, &pushed.manifest, &key);
    apply(&world, "free", &up, &json!({}));
    apply(&world, "fails", &up, &by_keys("other"));
    for n in 0..3 {
        apply(&world, &format!("passes-{n}"), &up, &by_keys("key"));
    }
    for n in 0..3 {
        verified(&world, &format!("passes-{n}"), &pushed);
    }
    let object = world.larder.wait_ready(KIND, NAMESPACE, "free");
    assert!(condition_of(&object, "SourceVerified").is_null(), "{object}");
    let object = refused(&world, KIND, "fails", "VerificationError", "is by no trusted key");
    assert!(object["status"]["artifact"].is_null());
    // Still so when all are passed over again, and one layer served all.
    world.larder.reconcile(KIND, NAMESPACE, "free");
    world.larder.wait_ready(KIND, NAMESPACE, "free");
    let layers = up.seen_of(Kind::BlobGet).into_iter().filter(|s| s.path.ends_with(&pushed.layer.to_string())).count();
    assert_eq!(layers, 1);
    world.finish();
}

#[test]
fn policies_that_cannot_be_had_are_refused_and_say_what_to_do() {
    let world = World::start(&[]);
    let up = Upstream::start();
    push(&up, "1");
    world.apply_secret("keyless", "Opaque", &json!({ "cosign.key": crate::hardening::world::SECRET }));
    world.apply_secret("rootless", "Opaque", &json!({ "root.json": "{}" }));
    let identity = json!([{ "issuer": "^https://example$", "subject": ".*" }]);
    for (name, verify, says, stalled) in [
        (
            "notation",
            json!({ "provider": "notation", "secretRef": { "name": "keyless" } }),
            "signatures of notation are not checked by this version",
            true,
        ),
        (
            "missing",
            json!({ "provider": "cosign", "secretRef": { "name": "absent" } }),
            "'rows/absent' not found",
            false,
        ),
        (
            "no-keys",
            json!({ "provider": "cosign", "secretRef": { "name": "keyless" } }),
            "'rows/keyless' has no *.pub",
            false,
        ),
        (
            "unrooted",
            json!({ "provider": "cosign", "matchOIDCIdentity": identity }),
            "name a trustedRootSecretRef",
            true,
        ),
        (
            "no-root",
            json!({ "provider": "cosign", "matchOIDCIdentity": identity, "trustedRootSecretRef": { "name": "rootless" } }),
            "'rows/rootless' has no trusted_root.json",
            false,
        ),
    ] {
        apply(&world, name, &up, &json!({ "verify": verify }));
        let object = refused(&world, KIND, name, "VerificationError", says);
        let condition = condition_of(&object, "Stalled");
        assert_eq!(condition["status"] == "True", stalled, "{name}: {condition}");
        if stalled {
            assert_eq!(condition["reason"], "VerificationError", "{name}");
            assert!(text(condition, "/message").contains(says), "{name}: {condition}");
            assert_eq!(object["status"]["observedGeneration"], object["metadata"]["generation"], "{name}");
        }
        assert!(object["status"]["artifact"].is_null(), "{name}");
    }
    assert_eq!(up.requests(), 0, "nothing is asked before it is known what for");
    // The Secret comes: its object goes on by itself.
    let key = KeyPair::generate().unwrap();
    let pushed = push(&up, "2");
    sign_layer(&up, &pushed.manifest, &key);
    key_secret(&world, "absent", &[("cosign.pub", &key)]);
    verified(&world, "missing", &pushed);
    world.finish();
}

#[test]
fn a_registry_that_cannot_tell_what_is_signed_is_asked_again() {
    let world = World::start(&[]);
    let key = KeyPair::generate().unwrap();
    key_secret(&world, "key", &[("cosign.pub", &key)]);
    let up = Upstream::start();
    let pushed = push(&up, "1");
    sign_layer(&up, &pushed.manifest, &key);
    up.fault(|seen| seen.path.ends_with(".sig"), usize::MAX, crate::support::registry::Fault::status(503));
    apply(&world, "app", &up, &by_keys("key"));
    let object = refused(&world, KIND, "app", "VerificationError", "failed to look for signatures of sha256:");
    assert!(object["status"]["artifact"].is_null());
    up.heal();
    verified(&world, "app", &pushed);
    world.finish();
}

#[test]
fn charts_are_verified_by_their_manifests_digest() {
    const LAYER: &str = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
    const CONFIG: &str = "application/vnd.cncf.helm.config.v1+json";
    let world = World::start(&[]);
    let key = KeyPair::generate().unwrap();
    key_secret(&world, "key", &[("cosign.pub", &key)]);
    let up = Upstream::start();
    let chart = gzip(&tar_of(&files(&[
        ("app/Chart.yaml", "apiVersion: v2\nname: app\nversion: 1.2.3\n"),
        ("app/values.yaml", "a: 1\n"),
    ])));
    let layer = up.add_blob(REPOSITORY, &chart);
    let config = up.add_blob(REPOSITORY, b"{\"name\":\"app\",\"version\":\"1.2.3\"}");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config, 33),
        "layers": [descriptor(LAYER, &layer, chart.len())],
    });
    let digest = up.add_manifest(REPOSITORY, Some("1.2.3"), MANIFEST, manifest.to_string().as_bytes());
    let (parent, name) = REPOSITORY.rsplit_once('/').unwrap();
    let repository = json!({
        "apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "HelmRepository",
        "metadata": { "name": "charts", "namespace": NAMESPACE },
        "spec": { "type": "oci", "url": format!("oci://{}/{parent}", up.authority()), "insecure": true },
    });
    world.apply(&repository);
    let chart = |verify: Value| {
        json!({
            "apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "HelmChart",
            "metadata": { "name": "chart", "namespace": NAMESPACE },
            "spec": {
                "chart": name, "version": "1.2.3", "interval": "10m",
                "sourceRef": { "kind": "HelmRepository", "name": "charts" },
                "verify": verify,
            },
        })
    };
    world.apply(&chart(json!({ "provider": "cosign", "secretRef": { "name": "key" } })));
    let object = refused(&world, "HelmChart", "chart", "ChartVerificationError", "is not signed");
    let failed = condition_of(&object, "BuildFailed");
    assert_eq!((&failed["status"], &failed["reason"]), (&json!("True"), &json!("ChartVerificationError")));
    assert!(object["status"]["artifact"].is_null());
    sign_layer(&up, &digest, &key);
    let object = world.larder.wait_ready("HelmChart", NAMESPACE, "chart");
    assert_eq!(text(condition_of(&object, "SourceVerified"), "/message"), "verified signature of version 1.2.3");
    assert!(condition_of(&object, "BuildFailed").is_null(), "{object}");
    fetch_artifact(&object);
    let looked = looked_for(&up);
    world.larder.reconcile("HelmChart", NAMESPACE, "chart");
    assert_eq!(looked_for(&up), looked);
    world.apply(&chart(json!({ "provider": "notation" })));
    let object = refused(&world, "HelmChart", "chart", "ChartVerificationError", "signatures of notation");
    assert_eq!(condition_of(&object, "Stalled")["status"], "True");
    fetch_artifact(&object);
    world.finish();
}

#[test]
#[cfg(feature = "keyless")]
fn artifacts_signed_by_an_identity_of_a_given_sigstore_are_verified() {
    use crate::support::{eventually, signing::Sigstore};

    const ISSUER: &str = "https://token.actions.example";
    const SUBJECT: &str = "https://git.example/team/app@refs/heads/main";
    let world = World::start(&[]);
    let sigstore = Sigstore::default();
    let login = sigstore.login(ISSUER, SUBJECT);
    world.apply_secret("root", "Opaque", &json!({ "trusted_root.json": sigstore.trusted_root().to_string() }));
    let other = Sigstore::default().trusted_root().to_string();
    world.apply_secret("other-root", "Opaque", &json!({ "trusted_root.json": other }));
    let by_identity = |root: &str, subjects: &[&str]| {
        let identities: Vec<Value> = subjects
            .iter()
            .map(|subject| json!({ "issuer": "^https://token.actions.example$", "subject": subject }))
            .collect();
        json!({ "verify": {
            "provider": "cosign", "matchOIDCIdentity": identities, "trustedRootSecretRef": { "name": root },
        } })
    };
    let ups = [Upstream::start(), Upstream::start()];
    ups[1].know_referrers();
    for (n, up) in ups.iter().enumerate() {
        let pushed = push(up, "1");
        let digest = pushed.manifest.to_string();
        if n == 0 {
            attach_layers(up, &pushed.manifest, &[sigstore.layer(&login, &simple_signing(&digest))]);
        } else {
            attach_bundle(up, &pushed.manifest, &sigstore.bundle(&login, &statement(&digest, SIGN)), SIGN);
        }
        apply(
            &world,
            &format!("right-{n}"),
            up,
            &by_identity("root", &["team/other", "^https://git.example/team/app@"]),
        );
        apply(&world, &format!("wrong-{n}"), up, &by_identity("root", &["team/other"]));
        apply(&world, &format!("elsewhere-{n}"), up, &by_identity("other-root", &[".*"]));
        verified(&world, &format!("right-{n}"), &pushed);
        refused(&world, KIND, &format!("wrong-{n}"), "VerificationError", "whom no matchOIDCIdentity names");
        refused(&world, KIND, &format!("elsewhere-{n}"), "VerificationError", "a signature is not accepted");
    }
    let bad = json!({ "verify": {
        "provider": "cosign", "matchOIDCIdentity": [{ "issuer": "(", "subject": "x" }], "trustedRootSecretRef": { "name": "root" },
    } });
    apply(&world, "pattern", &ups[0], &bad);
    let object = refused(&world, KIND, "pattern", "VerificationError", "spec.verify: matchOIDCIdentity[0].issuer:");
    assert_eq!(condition_of(&object, "Stalled")["status"], "True");
    eventually("the failures to be counted", || {
        let failed = world.outcomes("auth");
        if failed >= 4 { Ok(()) } else { Err(failed.to_string()) }
    });
    world.finish();
}
