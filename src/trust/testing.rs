//! Signatures as cosign writes them, made by tests: with keys, and by a small Sigstore of a test's own.
//!
//! Texts and bytes only, so that the tests of the whole program use it, too.
#![allow(missing_docs, reason = "for tests")]
#![cfg_attr(not(feature = "keyless"), allow(dead_code))]

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, PublicKeyData as _, SanType, SerialNumber, SigningKey as _,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";
pub const STATEMENT: &str = "application/vnd.in-toto+json";
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// When the small Sigstore signs: within its certificates' day, which is long past.
const SIGNED_AT: i64 = 1_735_693_200;

pub type Annotations = BTreeMap<String, String>;

fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

pub fn sign(key: &KeyPair, message: &[u8]) -> Vec<u8> {
    key.sign(message).unwrap()
}

/// The payload of a layer that signs `digest`.
pub fn simple_signing(digest: &str) -> Vec<u8> {
    json!({
        "critical": {
            "identity": { "docker-reference": "registry.example/team/app" },
            "image": { "docker-manifest-digest": digest },
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string()
    .into_bytes()
}

/// The annotations of a layer with this payload.
pub fn layer_by_key(key: &KeyPair, payload: &[u8]) -> Annotations {
    BTreeMap::from([("dev.cosignproject.cosign/signature".to_owned(), base64(sign(key, payload)))])
}

/// What a bundle states about `digest`.
pub fn statement(digest: &str, predicate: &str) -> Vec<u8> {
    let (algorithm, hex) = digest.split_once(':').unwrap();
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "digest": { algorithm: hex } }],
        "predicateType": predicate,
        "predicate": {},
    });
    statement.to_string().into_bytes()
}

/// What a signature of an envelope is over.
pub fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

fn envelope(payload: &[u8], signature: &[u8]) -> Value {
    json!({
        "payload": base64(payload),
        "payloadType": STATEMENT,
        "signatures": [{ "sig": base64(signature) }],
    })
}

/// A bundle with a statement, signed by a key.
pub fn bundle_by_key(key: &KeyPair, statement: &[u8]) -> Value {
    let signature = sign(key, &pre_authentication(STATEMENT, statement));
    json!({
        "mediaType": BUNDLE,
        "verificationMaterial": { "publicKey": { "hint": "" } },
        "dsseEnvelope": envelope(statement, &signature),
    })
}

/// A certificate authority, a certificate transparency log and a transparency log.
pub struct Sigstore {
    authority: Issuer<'static, KeyPair>,
    certificate: Vec<u8>,
    certificate_log: KeyPair,
    log: KeyPair,
}

/// A certificate that somebody was given, and its key.
pub struct Login {
    key: KeyPair,
    der: Vec<u8>,
    pem: String,
}

impl Default for Sigstore {
    fn default() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        Self {
            authority: Issuer::new(params, key),
            certificate,
            certificate_log: KeyPair::generate().unwrap(),
            log: KeyPair::generate().unwrap(),
        }
    }
}

impl Sigstore {
    /// `trusted_root.json`.
    pub fn trusted_root(&self) -> Value {
        let log = |key: &KeyPair| {
            let spki = key.subject_public_key_info();
            json!({
                "baseUrl": "https://log.example",
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": base64(&spki),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": { "start": "2020-01-01T00:00:00Z" },
                },
                "logId": { "keyId": base64(Sha256::digest(&spki)) },
            })
        };
        json!({
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(&self.log)],
            "certificateAuthorities": [{
                "subject": { "organization": "example", "commonName": "fulcio" },
                "uri": "https://fulcio.example",
                "certChain": { "certificates": [{ "rawBytes": base64(&self.certificate) }] },
                "validFor": { "start": "2020-01-01T00:00:00Z" },
            }],
            "ctlogs": [log(&self.certificate_log)],
            "timestampAuthorities": [],
        })
    }

    /// A certificate for `subject`, a URI, whom `issuer` knows.
    pub fn login(&self, issuer: &str, subject: &str) -> Login {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from(7_u64));
        params.not_before = rcgen::date_time_ymd(2025, 1, 1);
        params.not_after = rcgen::date_time_ymd(2025, 1, 2);
        params.subject_alt_names = vec![SanType::URI(subject.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        // Fulcio's "Issuer (V2)", a UTF8String.
        let named = [&[0x0c, u8::try_from(issuer.len()).unwrap()], issuer.as_bytes()].concat();
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 57264, 1, 8], named)];
        let before = params.clone().signed_by(&key, &self.authority).unwrap();
        params.custom_extensions.push(self.logged_certificate(to_be_signed(before.der())));
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        Login { key, der: certificate.der().to_vec(), pem: certificate.pem() }
    }

    /// The certificate log's promise for a certificate without it (RFC 6962, section 3.2).
    fn logged_certificate(&self, to_be_signed: &[u8]) -> CustomExtension {
        let (key, at) = (&self.certificate_log, u64::try_from(SIGNED_AT).unwrap() * 1000);
        let issuer = Sha256::digest(self.authority.key().subject_public_key_info());
        let length = u32::try_from(to_be_signed.len()).unwrap().to_be_bytes();
        // Version, kind of signature, time, kind of entry; then the entry, and no extensions.
        let signed = [&[0, 0][..], &at.to_be_bytes(), &[0, 1], &issuer, &length[1..], to_be_signed, &[0, 0]].concat();
        let signature = sign(key, &signed);
        let id = Sha256::digest(key.subject_public_key_info());
        let stamp = [&[0][..], &id, &at.to_be_bytes(), &[0, 0, 4, 3], &length16(&signature), &signature].concat();
        let list = [&length16(&stamp)[..], &stamp].concat();
        let list = [&length16(&list)[..], &list].concat();
        let content = [&[0x04, 0x81, u8::try_from(list.len()).unwrap()][..], &list].concat();
        let content = if list.len() < 128 { [&[0x04, content[2]][..], &list].concat() } else { content };
        CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 11129, 2, 4, 2], content)
    }

    /// The transparency log's promise for an entry, whose body this is.
    fn promise(&self, body: &str) -> String {
        let id = hex::encode(Sha256::digest(self.log.subject_public_key_info()));
        // Canonical JSON: keys in order, no spaces.
        let entry =
            format!(r#"{{"body":"{}","integratedTime":{SIGNED_AT},"logID":"{id}","logIndex":0}}"#, base64(body));
        base64(sign(&self.log, entry.as_bytes()))
    }

    /// The annotations of a layer with this payload, logged.
    pub fn layer(&self, login: &Login, payload: &[u8]) -> Annotations {
        let signature = sign(&login.key, payload);
        let body = json!({
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": { "hash": { "algorithm": "sha256", "value": hex::encode(Sha256::digest(payload)) } },
                "signature": { "content": base64(&signature), "publicKey": { "content": base64(&login.pem) } },
            },
        })
        .to_string();
        let entry = json!({
            "SignedEntryTimestamp": self.promise(&body),
            "Payload": {
                "body": base64(&body),
                "integratedTime": SIGNED_AT,
                "logIndex": 0,
                "logID": hex::encode(Sha256::digest(self.log.subject_public_key_info())),
            },
        });
        BTreeMap::from([
            ("dev.cosignproject.cosign/signature".to_owned(), base64(&signature)),
            ("dev.sigstore.cosign/certificate".to_owned(), login.pem.clone()),
            ("dev.sigstore.cosign/bundle".to_owned(), entry.to_string()),
        ])
    }

    /// A bundle with a statement, logged.
    pub fn bundle(&self, login: &Login, statement: &[u8]) -> Value {
        let signature = sign(&login.key, &pre_authentication(STATEMENT, statement));
        let envelope = envelope(statement, &signature);
        let body = json!({
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": { "algorithm": "sha256", "value": hex::encode(Sha256::digest(envelope.to_string())) },
                "payloadHash": { "algorithm": "sha256", "value": hex::encode(Sha256::digest(statement)) },
                "signatures": [{ "signature": base64(&signature), "verifier": base64(&login.pem) }],
            },
        })
        .to_string();
        let id = Sha256::digest(self.log.subject_public_key_info());
        // A tree of one leaf is its root (RFC 6962, section 2.1).
        let root = Sha256::digest([&[0], body.as_bytes()].concat());
        let note = format!("log.example\n1\n{}\n", base64(root));
        let signed = base64([&id[..4], &sign(&self.log, note.as_bytes())].concat());
        json!({
            "mediaType": BUNDLE,
            "verificationMaterial": {
                "certificate": { "rawBytes": base64(&login.der) },
                "tlogEntries": [{
                    "logIndex": "0",
                    "logId": { "keyId": base64(id) },
                    "kindVersion": { "kind": "dsse", "version": "0.0.1" },
                    "integratedTime": SIGNED_AT.to_string(),
                    "inclusionPromise": { "signedEntryTimestamp": self.promise(&body) },
                    "inclusionProof": {
                        "logIndex": "0",
                        "rootHash": base64(root),
                        "treeSize": "1",
                        "hashes": [],
                        "checkpoint": { "envelope": format!("{note}\n\u{2014} log.example {signed}\n") },
                    },
                    "canonicalizedBody": base64(&body),
                }],
            },
            "dsseEnvelope": envelope,
        })
    }
}

fn length16(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).unwrap().to_be_bytes()
}

/// The part of a certificate that is signed: the first element of the outer sequence.
fn to_be_signed(certificate: &[u8]) -> &[u8] {
    // Both lengths take two bytes: a certificate has more than 255 and less than 65536.
    assert_eq!((certificate[1], certificate[5]), (0x82, 0x82));
    let length = usize::from(certificate[6]) << 8 | usize::from(certificate[7]);
    &certificate[4..8 + length]
}
