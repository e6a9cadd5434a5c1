//! Public keys, and signatures by them.

use aws_lc_rs::{
    digest,
    signature::{self as algorithms, ParsedPublicKey, VerificationAlgorithm},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};

use super::{
    Evidence, SIGNATURE_ANNOTATION,
    bundle::{Content, signed_bytes},
    payload::{signed_by_layer, signed_by_statement},
};
use crate::digest::{Algorithm, Digest};

type Scheme = (&'static dyn VerificationAlgorithm, Option<&'static digest::Algorithm>);

/// The ways to sign that are known, by kind of key. Cosign signs with SHA-256 whatever the key is, but with the hash of the
/// curve's size in bundles.
static KINDS: &[&[Scheme]] = &[
    &[(&algorithms::ECDSA_P256_SHA256_ASN1, Some(&digest::SHA256))],
    &[
        (&algorithms::ECDSA_P384_SHA384_ASN1, Some(&digest::SHA384)),
        (&algorithms::ECDSA_P384_SHA256_ASN1, Some(&digest::SHA256)),
    ],
    &[
        (&algorithms::ECDSA_P521_SHA512_ASN1, Some(&digest::SHA512)),
        (&algorithms::ECDSA_P521_SHA256_ASN1, Some(&digest::SHA256)),
    ],
    &[(&algorithms::ED25519, None)],
    &[
        (&algorithms::RSA_PKCS1_2048_8192_SHA256, Some(&digest::SHA256)),
        (&algorithms::RSA_PKCS1_2048_8192_SHA512, Some(&digest::SHA512)),
    ],
];

/// A public key.
#[derive(Clone)]
pub struct PublicKey {
    der: Vec<u8>,
    ways: Vec<(ParsedPublicKey, Option<&'static digest::Algorithm>)>,
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl PublicKey {
    /// Reads `-----BEGIN PUBLIC KEY-----`.
    pub fn from_pem(pem: &str) -> Result<Self, String> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| "is not a PEM file with a PUBLIC KEY".to_owned())?
            .to_vec();
        let parsed = |(algorithm, hash): &Scheme| Some((ParsedPublicKey::new(*algorithm, &der).ok()?, *hash));
        let mut kinds = KINDS.iter().map(|kind| kind.iter().filter_map(parsed).collect::<Vec<_>>());
        match kinds.find(|ways| !ways.is_empty()) {
            Some(ways) => Ok(Self { der, ways }),
            None => Err("is no key of ECDSA (P-256, P-384, P-521), Ed25519 or RSA (2048 to 8192 bits)".to_owned()),
        }
    }

    fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        self.ways.iter().any(|(key, _)| key.verify_sig(message, signature).is_ok())
    }

    /// The same of a message of which the hash is known. Not for Ed25519, which signs no hashes.
    fn signed_hash(&self, message: &Digest, signature: &[u8]) -> bool {
        let hash = match message.algorithm() {
            Algorithm::Sha256 => &digest::SHA256,
            Algorithm::Sha512 => &digest::SHA512,
        };
        let Ok(hashed) = digest::Digest::import_less_safe(message.bytes(), hash) else { return false };
        let mut ways = self.ways.iter().filter(|(_, of)| *of == Some(hash));
        ways.any(|(key, _)| key.verify_digest_sig(&hashed, signature).is_ok())
    }
}

/// Whether `evidence` is a signature of `digest` by one of `keys`.
pub fn judge(keys: &[PublicKey], digest: &Digest, evidence: &Evidence) -> Result<(), String> {
    let by_others = |what: &str| format!("{what} is by no trusted key");
    match evidence {
        Evidence::Layer { payload, annotations } => {
            let signature = layer_signature(annotations)?;
            if !keys.iter().any(|key| key.signed(payload, &signature)) {
                return Err(by_others("a signature"));
            }
            signed_by_layer(payload, digest)
        }
        Evidence::Bundle(bundle) => match Content::parse(bundle)? {
            Content::Envelope { payload_type, payload, signature } => {
                let message = signed_bytes(&payload_type, &payload);
                if !keys.iter().any(|key| key.signed(&message, &signature)) {
                    return Err(by_others("a bundle's signature"));
                }
                signed_by_statement(&payload_type, &payload, digest)
            }
            Content::Message { signature } => {
                if !keys.iter().any(|key| key.signed_hash(digest, &signature)) {
                    return Err(by_others("a bundle's signature over the manifest"));
                }
                Ok(())
            }
        },
        Evidence::Unusable(why) => Err(why.clone()),
    }
}

/// The signature of a layer.
pub(super) fn layer_signature(annotations: &std::collections::BTreeMap<String, String>) -> Result<Vec<u8>, String> {
    let text = annotations
        .get(SIGNATURE_ANNOTATION)
        .ok_or_else(|| format!("a layer has no annotation {SIGNATURE_ANNOTATION}"))?;
    BASE64_STANDARD.decode(text).map_err(|_| format!("a layer's annotation {SIGNATURE_ANNOTATION} is not base64"))
}
