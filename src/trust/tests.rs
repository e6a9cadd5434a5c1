use std::collections::BTreeMap;

use rcgen::KeyPair;
use serde_json::{Value, json};

use super::{
    testing::{SIGN, bundle_by_key, layer_by_key, sign, simple_signing, statement},
    *,
};

const MANIFEST: &[u8] = b"the manifest";

fn digest() -> Digest {
    Digest::sha256(MANIFEST)
}

fn layer(payload: &[u8], annotations: BTreeMap<String, String>) -> Evidence {
    Evidence::Layer { payload: Bytes::copy_from_slice(payload), annotations }
}

fn bundle(document: &Value) -> Evidence {
    Evidence::Bundle(document.to_string().into())
}

fn by_key(key: &KeyPair) -> [Evidence; 2] {
    let payload = simple_signing(&digest().to_string());
    let statement = statement(&digest().to_string(), SIGN);
    [layer(&payload, layer_by_key(key, &payload)), bundle(&bundle_by_key(key, &statement))]
}

fn keys(keys: &[&KeyPair]) -> Policy {
    let pems: Vec<(String, String)> =
        keys.iter().enumerate().map(|(n, key)| (format!("{n}.pub"), key.public_key_pem())).collect();
    Policy::keys(pems.iter().map(|(name, pem)| (name.as_str(), pem.as_str()))).unwrap()
}

fn why(result: Result<(), TrustError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn accepts_both_forms_by_every_kind_of_key() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let (key, other) = (KeyPair::generate_for(algorithm).unwrap(), KeyPair::generate_for(algorithm).unwrap());
        for evidence in by_key(&key) {
            keys(&[&key]).judge(&digest(), std::slice::from_ref(&evidence)).unwrap();
            keys(&[&other, &key]).judge(&digest(), std::slice::from_ref(&evidence)).unwrap();
            assert!(why(keys(&[&other]).judge(&digest(), &[evidence])).contains("is by no trusted key"));
        }
    }
}

/// A payload for [`MANIFEST`], as text.
const GOLDEN_PAYLOAD: &str = r#"{"critical":{"identity":{"docker-reference":"registry.example/team/app"},"image":{"docker-manifest-digest":"sha256:b802ab9f53cad6bd4004f3c99d9ae71d7a8ff28686bbdc04a30862ee255374dc"},"type":"cosign container image signature"},"optional":null}"#;

/// Public keys, and their signatures of it.
const GOLDEN: &[(&str, &str)] = &[
    (
        "-----BEGIN PUBLIC KEY-----\n\
         MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAED0adU0juq3u8HCQrTKaHiMHm6nhX\n\
         wIjvWjTVD3MPRCI3g3+N00vrR/JgtpLmReQoVBCrw5qCQ7g9QO0KmJDi/g==\n\
         -----END PUBLIC KEY-----",
        "MEQCID9X6yD5M7tdwkk/nu3GHNmbLBt7J3jDB+N9ddzTNUsjAiBpRC6xSFoCBdy41N6bc3v5rze/hnUZ45wex5nqSfc4Mw==",
    ),
    (
        "-----BEGIN PUBLIC KEY-----\n\
         MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEFUCwRnwfDUkNNioOgRt3HQKKmWuCyPnY\n\
         gySFJVvL/Nl7Mv8xkSQHjohOqm1lmjGCiHI+3Q6vaj0fXrvTea/SOf3IW6qViuD3\n\
         4mYDknkO8R6ckxmPPQYvJ7RGcHhaEmep\n\
         -----END PUBLIC KEY-----",
        "MGUCMFSOkO+UY8A9z6XUkOr4thRE6XI3c2jpdgZeJ4zggbMw2BsRBCB/rBnuOgeq/HeZsAIxAJhS+oo4P/Mqj+V7LwmY8b/nEZ2v1SLCQX873ka2GkkqThlcI4MWfDmTqeIRtMVezw==",
    ),
    (
        "-----BEGIN PUBLIC KEY-----\n\
         MCowBQYDK2VwAyEA3Jb3sW31yaHOLvqE8NFidESTZDyIVuWYSK87z+QPoWk=\n\
         -----END PUBLIC KEY-----",
        "tvcGMPEAmifnBigeeaxXF/qy7zUjTmVHtQjgxpsqA+idabkHiOH+DkzFo6tN2oYFw7hV8l8UvUnCbgRiDE7TAw==",
    ),
    (
        "-----BEGIN PUBLIC KEY-----\n\
         MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAu0ebGzykxmtGUKoIFQFe\n\
         fofDTHlNxxMxdLfU+7TfCLr9UAcHrbWGtx35YMHe/ygAotBCf/jHSJgPBusfUNMK\n\
         e7OHU88kJriCZa5OOSN1ts60n6SmY/iZNO+EN5BH/peI7rbUcXveMiMuDnmLxww9\n\
         jmuh+QQ33zff2y9Wcwg5qY3oOhax3M+hmNKrUnORf76I61A+U1vIv40TrjAmigN+\n\
         WwsFUzb8jZWO85CxLn+3jamRRKd+0zliTv0C0iVYF8cUtFQmJQ+wE0gpKUIjTq88\n\
         7L+j/+r9CHwTPBfrCTNejtM/C4NcjfOfeaSdAAgZtBBfU3VisWlR++IwSCi5OatA\n\
         nQIDAQAB\n\
         -----END PUBLIC KEY-----",
        "A5pY4fPtPbIiJJKA1zlaqEFLhV/tIHmLZ61mk83bzDFWUVKP219RbRCyKjwUzNf9ETLAK4FYGxdqdTUn8rqwiefgr/DGcjc77vqsTFvwesQ0PBokHCyWClr+kdiNvO/+NbsvdMLxjCVGP5DfUaGdKvlgdnU7ns8C7GX+wTnT69zvhvkar34FCRcGQy0U+QYX/4gQrDhHijAZ0Kms3EpNyOSnieDtQuLotiNA2vZJ+xYU3sU3epJJkudeZDPy3r4peTrtFqYyx052vFiz9cfuMzxpUkYY5PG2N3C5EB8sV94bqJUOzBvGYtPC6s2o0o1FSzODQVTa8nK7jzJE8yj42Q==",
    ),
];

/// Made with openssl 3.0 (`dgst -sha256 -sign`, `pkeyutl -sign -rawin`): P-256, P-384 as cosign signs layers, Ed25519, RSA.
#[test]
fn accepts_what_another_program_signed() {
    for (pem, signature) in GOLDEN {
        let policy = Policy::keys([("cosign.pub", *pem)]).unwrap();
        let annotations = BTreeMap::from([(SIGNATURE_ANNOTATION.to_owned(), (*signature).to_owned())]);
        policy.judge(&digest(), &[layer(GOLDEN_PAYLOAD.as_bytes(), annotations.clone())]).unwrap();
        let other = GOLDEN_PAYLOAD.replace("team/app", "team/apq");
        policy.judge(&digest(), &[layer(other.as_bytes(), annotations)]).unwrap_err();
    }
}

#[test]
fn accepts_a_signature_over_the_manifest_itself() {
    let key = KeyPair::generate().unwrap();
    let document = |signature: &[u8]| {
        use base64::{Engine as _, prelude::BASE64_STANDARD};
        json!({
            "mediaType": BUNDLE,
            "verificationMaterial": { "publicKey": { "hint": "x" } },
            "messageSignature": { "signature": BASE64_STANDARD.encode(signature) },
        })
    };
    keys(&[&key]).judge(&digest(), &[bundle(&document(&sign(&key, MANIFEST)))]).unwrap();
    assert!(
        why(keys(&[&key]).judge(&digest(), &[bundle(&document(&sign(&key, b"other")))])).contains("by no trusted key")
    );
}

#[test]
fn one_good_signature_among_bad_ones_is_enough() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let [good, _] = by_key(&key);
    let [stranger, strange_bundle] = by_key(&other);
    let bad = [Evidence::Bundle("{".into()), Evidence::Unusable("gone".into()), layer(b"{}", BTreeMap::new())];
    let all: Vec<Evidence> = bad.into_iter().chain([stranger, strange_bundle, good]).collect();
    keys(&[&key]).judge(&digest(), &all).unwrap();
    let refusal = why(keys(&[&key]).judge(&digest(), &all[..5]));
    for part in [
        "a bundle cannot be read",
        "gone",
        "a layer has no annotation dev.cosignproject.cosign/signature",
        "a signature is by no trusted key",
    ] {
        assert!(refusal.contains(part), "{part:?}: {refusal}");
    }
}

#[test]
fn refuses_what_is_signed_but_not_a_signature_of_this_manifest() {
    let key = KeyPair::generate().unwrap();
    let signed = |payload: &[u8]| layer(payload, layer_by_key(&key, payload));
    let stated = |payload: &[u8]| bundle(&bundle_by_key(&key, payload));
    let (own, other) = (digest().to_string(), Digest::sha256(b"another").to_string());
    let mut typed: Value = serde_json::from_slice(&simple_signing(&own)).unwrap();
    typed["critical"]["type"] = json!("atomic container signature");
    let mut upper = simple_signing(&own);
    upper.make_ascii_uppercase();
    for (evidence, part) in [
        (signed(&simple_signing(&other)), "a signature is about sha256:"),
        (signed(typed.to_string().as_bytes()), "\"atomic container signature\""),
        (signed(b"{}"), "payload cannot be read"),
        (signed(&upper), "payload cannot be read"),
        (stated(&statement(&other, SIGN)), "is about something else"),
        (
            stated(&statement(&own, "https://cosign.sigstore.dev/attestation/vuln/v1")),
            "an attestation of type \"https://cosign.sigstore.dev/attestation/vuln/v1\" is no signature",
        ),
        (stated(b"{}"), "statement cannot be read"),
    ] {
        let refusal = why(keys(&[&key]).judge(&digest(), &[evidence]));
        assert!(refusal.contains(part), "{part:?}: {refusal}");
    }
    // The signature of an envelope is over its type, too.
    let mut document = bundle_by_key(&key, &statement(&own, SIGN));
    document["dsseEnvelope"]["payloadType"] = json!("text/plain");
    keys(&[&key]).judge(&digest(), &[bundle(&document)]).unwrap_err();
    let mut document = bundle_by_key(&key, &statement(&own, SIGN));
    let twice = document["dsseEnvelope"]["signatures"][0].clone();
    document["dsseEnvelope"]["signatures"] = json!([twice, twice]);
    assert!(why(keys(&[&key]).judge(&digest(), &[bundle(&document)])).contains("has 2 signatures"));
}

#[test]
fn says_what_is_missing_or_wrong_and_what_to_do() {
    let key = KeyPair::generate().unwrap();
    let unsigned = keys(&[&key]).judge(&digest(), &[]).unwrap_err();
    assert_eq!(unsigned, TrustError::Unsigned(digest()));
    assert_eq!(unsigned.class(), Class::NotFound);
    let pem = key.public_key_pem();
    let none = Policy::keys([("cosign.key", "secret"), ("README", "x")]).unwrap_err();
    assert!(none.to_string().starts_with("has no *.pub: put the public key into it"), "{none}");
    let bad = Policy::keys([("a.pub", "ssh-ed25519 AAAA"), ("b.pub", "")]).unwrap_err().to_string();
    assert!(bad.contains("a.pub: is not a PEM file with a PUBLIC KEY; b.pub: is not"), "{bad}");
    // A bad one beside a good one is named where it may have been the one that was wanted.
    let policy = Policy::keys([("a.pub", "ssh-ed25519 AAAA"), ("b.pub", &pem)]).unwrap();
    policy.judge(&digest(), &by_key(&key)).unwrap();
    let other = KeyPair::generate().unwrap();
    assert!(why(policy.judge(&digest(), &by_key(&other))).contains("a.pub: is not a PEM file"));
    let many: Vec<(String, &str)> = (0..65).map(|n| (format!("{n}.pub"), pem.as_str())).collect();
    assert_eq!(Policy::keys(many.iter().map(|(name, pem)| (name.as_str(), *pem))), Err(TrustError::TooManyKeys(65)));
}

#[test]
fn policies_are_equal_where_their_keys_are() {
    let (a, b) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    assert_eq!(keys(&[&a, &b]), keys(&[&a, &b]));
    assert_ne!(keys(&[&a]), keys(&[&a, &b]));
}

#[cfg(feature = "keyless")]
mod by_identity {
    use super::{
        testing::{Login, Sigstore},
        *,
    };

    const ISSUER: &str = "https://token.actions.example";
    const SUBJECT: &str = "https://git.example/team/app/.github/workflows/release.yaml@refs/heads/main";

    fn policy(sigstore: &Sigstore, identities: &[(&str, &str)]) -> Policy {
        let identities: Vec<Identity<'_>> =
            identities.iter().map(|(issuer, subject)| Identity { issuer, subject }).collect();
        Policy::keyless(&identities, &sigstore.trusted_root().to_string()).unwrap()
    }

    fn both(sigstore: &Sigstore, login: &Login) -> [Evidence; 2] {
        let payload = simple_signing(&digest().to_string());
        let statement = statement(&digest().to_string(), SIGN);
        [layer(&payload, sigstore.layer(login, &payload)), bundle(&sigstore.bundle(login, &statement))]
    }

    #[test]
    fn accepts_both_forms_by_any_of_the_identities() {
        let sigstore = Sigstore::default();
        let login = sigstore.login(ISSUER, SUBJECT);
        for evidence in both(&sigstore, &login) {
            let evidence = std::slice::from_ref(&evidence);
            for identities in [
                &[("^https://token.actions.example$", "^https://git.example/team/app/")][..],
                &[("nobody", "nothing"), ("actions", "team/app")],
                &[("^https://token.actions.example$", "team/other"), ("example", ".*")],
                &[],
            ] {
                policy(&sigstore, identities).judge(&digest(), evidence).unwrap();
            }
            for identities in [
                &[("^https://token.actions.example$", "team/other")][..],
                &[("accounts", "team/app")],
                // Issuer and subject of one and the same identity.
                &[("actions", "nobody"), ("nobody", "team/app")],
            ] {
                let refusal = why(policy(&sigstore, identities).judge(&digest(), evidence));
                assert!(refusal.contains("whom no matchOIDCIdentity names") && refusal.contains(SUBJECT), "{refusal}");
            }
        }
    }

    #[test]
    fn refuses_another_sigstore_and_what_was_changed() {
        let (sigstore, other) = (Sigstore::default(), Sigstore::default());
        let login = sigstore.login(ISSUER, SUBJECT);
        let mine = policy(&sigstore, &[]);
        for evidence in both(&other, &other.login(ISSUER, SUBJECT)) {
            assert!(why(mine.judge(&digest(), &[evidence])).contains("is not accepted"));
        }
        // A certificate of ours, logged elsewhere.
        for evidence in both(&other, &login) {
            assert!(why(mine.judge(&digest(), &[evidence])).contains("is not accepted"));
        }
        // About something else, both properly signed and logged.
        let elsewhere = Digest::sha256(b"another").to_string();
        let payload = simple_signing(&elsewhere);
        let stated = sigstore.bundle(&login, &statement(&elsewhere, SIGN));
        for evidence in [layer(&payload, sigstore.layer(&login, &payload)), bundle(&stated)] {
            mine.judge(&digest(), &[evidence]).unwrap_err();
        }
        let attested = sigstore.bundle(&login, &statement(&digest().to_string(), "https://spdx.dev/Document"));
        assert!(why(mine.judge(&digest(), &[bundle(&attested)])).contains("is no signature"));
        // Each part that vouches is needed.
        let payload = simple_signing(&digest().to_string());
        for gone in ["certificate", "bundle"] {
            let mut annotations = sigstore.layer(&login, &payload);
            annotations.remove(&format!("dev.sigstore.cosign/{gone}")).unwrap();
            mine.judge(&digest(), &[layer(&payload, annotations)]).unwrap_err();
        }
        let good = sigstore.bundle(&login, &statement(&digest().to_string(), SIGN));
        mine.judge(&digest(), &[bundle(&good)]).unwrap();
        let entry = "/verificationMaterial/tlogEntries/0";
        for (place, changed) in [
            ("/verificationMaterial/tlogEntries".to_owned(), json!([])),
            (format!("{entry}/integratedTime"), json!("1735693201")),
            (format!("{entry}/inclusionProof/treeSize"), json!("2")),
            (format!("{entry}/inclusionPromise/signedEntryTimestamp"), json!("AAAA")),
            ("/dsseEnvelope/signatures/0/sig".to_owned(), json!("AAAA")),
            ("/mediaType".to_owned(), json!("application/vnd.dev.sigstore.bundle+json;version=0.2")),
        ] {
            let mut document = good.clone();
            *document.pointer_mut(&place).unwrap() = changed;
            assert!(mine.judge(&digest(), &[bundle(&document)]).is_err(), "{place}");
        }
    }

    #[test]
    fn a_key_does_not_do_for_an_identity_nor_an_identity_for_a_key() {
        let sigstore = Sigstore::default();
        let key = KeyPair::generate().unwrap();
        let refusal = why(policy(&sigstore, &[]).judge(&digest(), &by_key(&key)));
        assert!(refusal.contains("a signature has no certificate, so it is by a key"), "{refusal}");
        let refusal = why(keys(&[&key]).judge(&digest(), &both(&sigstore, &sigstore.login(ISSUER, SUBJECT))));
        assert!(refusal.contains("by no trusted key"), "{refusal}");
    }

    #[test]
    fn asks_of_a_signature_what_the_root_has_authorities_for() {
        let sigstore = Sigstore::default();
        let evidence = both(&sigstore, &sigstore.login(ISSUER, SUBJECT));
        let with = |change: &dyn Fn(&mut Value)| {
            let mut root = sigstore.trusted_root();
            change(&mut root);
            Policy::keyless(&[], &root.to_string())
        };
        with(&|root| root["ctlogs"] = json!([])).unwrap().judge(&digest(), &evidence[..1]).unwrap();
        let other = Sigstore::default().trusted_root();
        with(&|root| root["ctlogs"] = other["ctlogs"].clone()).unwrap().judge(&digest(), &evidence).unwrap_err();
        with(&|root| root["tlogs"] = other["tlogs"].clone()).unwrap().judge(&digest(), &evidence).unwrap_err();
        for (error, part) in [
            (with(&|root| root["tlogs"] = json!([])), "no time of signing can be trusted"),
            (with(&|root| root["certificateAuthorities"] = json!([])), "it names no certificate authority"),
            (with(&|root| *root = json!({})), "trusted_root.json cannot be used: "),
            (
                with(&|root| root["tlogs"][0]["publicKey"]["rawBytes"] = json!("AAAA")),
                "trusted_root.json cannot be used: ",
            ),
        ] {
            let error = error.unwrap_err();
            assert!(error.to_string().contains(part), "{part:?}: {error}");
            assert_eq!(error.class(), Class::Auth);
        }
        let error = Policy::keyless(
            &[Identity { issuer: ".*", subject: "a" }, Identity { issuer: "(", subject: "a" }],
            &sigstore.trusted_root().to_string(),
        )
        .unwrap_err();
        assert!(error.to_string().starts_with("matchOIDCIdentity[1].issuer: \"(\" is not a regular"), "{error}");
        assert_eq!(error.class(), Class::Spec);
    }

    #[test]
    fn the_root_of_the_public_instance_can_be_used() {
        use sigstore_verify::trust_root::SIGSTORE_PRODUCTION_TRUSTED_ROOT as ROOT;
        let policy = Policy::keyless(&[], ROOT).unwrap();
        assert_eq!(policy, Policy::keyless(&[], ROOT).unwrap());
        assert_ne!(policy, Policy::keyless(&[Identity { issuer: "a", subject: "b" }], ROOT).unwrap());
    }
}
