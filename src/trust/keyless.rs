//! Signatures by identity: a certificate that an OIDC login was given for minutes, and what proves that it signed then.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use regex::Regex;
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde::Deserialize;
use serde_json::{Value, json};
use sigstore_verify::{
    VerificationPolicy, VerificationResult, Verifier,
    trust_root::TrustedRoot,
    types::{Artifact, ArtifactDigest, Bundle, HashAlgorithm, MediaType, SignatureContent},
};

use super::{
    Evidence, Identity, TrustError,
    key::layer_signature,
    payload::{signed_by_layer, signed_by_statement},
    quoted,
};
use crate::digest::{Algorithm, Digest};

/// The annotations of a layer beside its signature: PEM, PEM, JSON, JSON.
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const LOG_ENTRY: &str = "dev.sigstore.cosign/bundle";
const TIMESTAMP: &str = "dev.sigstore.cosign/rfc3161timestamp";

/// The most bytes that an identity's expression compiles to.
const MAX_COMPILED: usize = 1 << 20;

/// Identities, and the authorities that vouch for them.
#[derive(Clone)]
pub struct Keyless {
    identities: Vec<(Regex, Regex)>,
    /// As it was given: what two policies are compared by.
    root: Arc<str>,
    verifier: Arc<Verifier>,
    policy: Arc<VerificationPolicy>,
}

impl PartialEq for Keyless {
    fn eq(&self, other: &Self) -> bool {
        let patterns = |k: &Self| -> Vec<(String, String)> {
            k.identities.iter().map(|(i, s)| (i.as_str().to_owned(), s.as_str().to_owned())).collect()
        };
        self.root == other.root && patterns(self) == patterns(other)
    }
}

/// The entry of a transparency log, as cosign writes it beside a signature.
#[derive(Deserialize)]
struct LogEntry {
    #[serde(rename = "SignedEntryTimestamp")]
    promise: String,
    #[serde(rename = "Payload")]
    payload: LogPayload,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogPayload {
    body: String,
    integrated_time: i64,
    log_index: i64,
    #[serde(rename = "logID")]
    log_id: String,
}

/// What an entry says that it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogBody {
    kind: String,
    api_version: String,
}

#[derive(Deserialize)]
struct Timestamp {
    #[serde(rename = "SignedRFC3161Timestamp")]
    token: String,
}

impl Keyless {
    pub fn new(identities: &[Identity<'_>], trusted_root: &str) -> Result<Self, TrustError> {
        let compiled = |index: usize, field: &'static str, pattern: &str| {
            let built = regex::RegexBuilder::new(pattern).size_limit(MAX_COMPILED).build();
            built.map_err(|why| TrustError::Pattern {
                index,
                field,
                pattern: quoted(pattern),
                why: quoted(&why.to_string()),
            })
        };
        let identities = identities
            .iter()
            .enumerate()
            .map(|(n, of)| Ok((compiled(n, "issuer", of.issuer)?, compiled(n, "subject", of.subject)?)))
            .collect::<Result<Vec<_>, TrustError>>()?;
        let wrong = |why: &str| TrustError::Root(quoted(why));
        let root = TrustedRoot::from_json(trusted_root).map_err(|e| wrong(&e.to_string()))?;
        if root.certificate_authorities.is_empty() {
            return Err(wrong("it names no certificate authority"));
        }
        if root.tlogs.is_empty() && root.timestamp_authorities.is_empty() {
            return Err(wrong(
                "it names neither a transparency log nor a timestamp authority, so no time of signing can be trusted",
            ));
        }
        // What the root has nobody for cannot be asked of a signature. A time is needed in any case.
        let mut policy = VerificationPolicy::any_identity();
        if root.ctlogs.is_empty() {
            policy = policy.skip_sct();
        }
        if root.tlogs.is_empty() {
            policy = policy.skip_tlog_unsafe();
        }
        let verifier = Verifier::new(&root).map_err(|e| wrong(&e.to_string()))?;
        Ok(Self { identities, root: trusted_root.into(), verifier: Arc::new(verifier), policy: Arc::new(policy) })
    }

    /// Whether `evidence` is a signature of `digest` by one of the identities.
    pub fn judge(&self, digest: &Digest, evidence: &Evidence) -> Result<(), String> {
        match evidence {
            Evidence::Layer { payload, annotations } => {
                let bundle = of_layer(payload, annotations)?;
                self.verify(Artifact::from_blob(payload), &bundle)?;
                signed_by_layer(payload, digest)
            }
            Evidence::Bundle(bytes) => {
                let text = std::str::from_utf8(bytes).map_err(|_| "a bundle is not UTF-8".to_owned())?;
                let bundle = Bundle::from_json(text)
                    .map_err(|e| format!("a bundle cannot be read: {}", quoted(&e.to_string())))?;
                if bundle.media_type() != MediaType::Bundle0_3 {
                    return Err(format!("a bundle is of type {:?}", bundle.media_type().as_str()));
                }
                let algorithm = match digest.algorithm() {
                    Algorithm::Sha256 => HashAlgorithm::Sha2256,
                    Algorithm::Sha512 => HashAlgorithm::Sha2512,
                };
                let artifact = ArtifactDigest::new(algorithm, digest.bytes().to_vec()).map_err(|e| e.to_string())?;
                self.verify(Artifact::from_digest(artifact), &bundle)?;
                match &bundle.content {
                    SignatureContent::DsseEnvelope(envelope) => {
                        signed_by_statement(&envelope.payload_type, envelope.payload.as_bytes(), digest)
                    }
                    // Over the manifest, whose digest was compared.
                    SignatureContent::MessageSignature(_) => Ok(()),
                    _ => Err("a bundle holds neither an envelope nor a signature".to_owned()),
                }
            }
            Evidence::Unusable(why) => Err(why.clone()),
        }
    }

    fn verify(&self, artifact: Artifact<'_>, bundle: &Bundle) -> Result<(), String> {
        let result = self
            .verifier
            .verify(artifact, bundle, &*self.policy)
            .map_err(|e| format!("a signature is not accepted: {}", quoted(&crate::class::chain(&e))))?;
        self.authorizes(&result)
    }

    /// Whether one of the identities signed. The certificate is known to be an authority's.
    fn authorizes(&self, result: &VerificationResult) -> Result<(), String> {
        let subject = result.identity().map(|subject| subject.as_str()).unwrap_or_default();
        let issuer = result.issuer().unwrap_or_default();
        if !result.certificate_verified() || subject.is_empty() || issuer.is_empty() {
            return Err("a signature's certificate names no issuer and subject".to_owned());
        }
        let fits = |(i, s): &(Regex, Regex)| i.is_match(issuer) && s.is_match(subject);
        if self.identities.is_empty() || self.identities.iter().any(fits) {
            return Ok(());
        }
        Err(format!("a signature is by {:?} of {:?}, whom no matchOIDCIdentity names", quoted(subject), quoted(issuer)))
    }
}

/// The same as a bundle of the first version, which had what a layer's annotations have.
fn of_layer(payload: &[u8], annotations: &BTreeMap<String, String>) -> Result<Bundle, String> {
    let wrong = |annotation: &str, why: String| format!("a layer's annotation {annotation} cannot be read: {why}");
    let Some(certificate) = annotations.get(CERTIFICATE) else {
        return Err("a signature has no certificate, so it is by a key".to_owned());
    };
    let mut certificates = Vec::new();
    for (annotation, pem) in [(CERTIFICATE, Some(certificate)), (CHAIN, annotations.get(CHAIN))] {
        for found in CertificateDer::pem_slice_iter(pem.map(String::as_bytes).unwrap_or_default()) {
            let found = found.map_err(|e| wrong(annotation, quoted(&e.to_string())))?;
            certificates.push(json!({ "rawBytes": BASE64_STANDARD.encode(&found) }));
        }
    }
    let mut material = json!({ "x509CertificateChain": { "certificates": certificates }, "tlogEntries": [] });
    if let Some(text) = annotations.get(LOG_ENTRY) {
        let entry: LogEntry = serde_json::from_str(text).map_err(|e| wrong(LOG_ENTRY, quoted(&e.to_string())))?;
        material["tlogEntries"] = json!([log_entry(&entry).map_err(|why| wrong(LOG_ENTRY, why))?]);
    }
    if let Some(text) = annotations.get(TIMESTAMP) {
        let stamp: Timestamp = serde_json::from_str(text).map_err(|e| wrong(TIMESTAMP, quoted(&e.to_string())))?;
        material["timestampVerificationData"] = json!({ "rfc3161Timestamps": [{ "signedTimestamp": stamp.token }] });
    }
    // The first version needs a log's promise; without one only a timestamp can vouch, as later versions have it.
    let version = if annotations.contains_key(LOG_ENTRY) { MediaType::Bundle0_1 } else { MediaType::Bundle0_2 };
    let hash = Digest::sha256(payload);
    let bundle = json!({
        "mediaType": version.as_str(),
        "verificationMaterial": material,
        "messageSignature": {
            "messageDigest": { "algorithm": "SHA2_256", "digest": BASE64_STANDARD.encode(hash.bytes()) },
            "signature": BASE64_STANDARD.encode(layer_signature(annotations)?),
        },
    });
    Bundle::from_json(&bundle.to_string())
        .map_err(|e| format!("a signature's annotations cannot be read: {}", quoted(&e.to_string())))
}

fn log_entry(entry: &LogEntry) -> Result<Value, String> {
    let body = BASE64_STANDARD.decode(&entry.payload.body).map_err(|_| "its body is not base64".to_owned())?;
    let said: LogBody = serde_json::from_slice(&body).map_err(|e| quoted(&e.to_string()))?;
    let id = hex::decode(&entry.payload.log_id).map_err(|_| "its logID is not hexadecimal".to_owned())?;
    Ok(json!({
        "logIndex": entry.payload.log_index.to_string(),
        "logId": { "keyId": BASE64_STANDARD.encode(id) },
        "kindVersion": { "kind": said.kind, "version": said.api_version },
        "integratedTime": entry.payload.integrated_time.to_string(),
        "inclusionPromise": { "signedEntryTimestamp": entry.promise },
        "canonicalizedBody": entry.payload.body,
    }))
}
