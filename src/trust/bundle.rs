//! Sigstore bundles (protobuf-specs, `sigstore_bundle.proto`, as JSON), as far as a key needs them: what is signed, and the
//! signature. Certificates, log entries and timestamps are for who goes by identities.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;

use super::quoted;

/// The artifact type of a referrer with a bundle in it, and the media type of the bundle.
pub const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// The same in the older spelling.
const OLDER_MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle+json;version=0.3";

/// What a bundle's signature is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The manifest itself.
    Message {
        /// The signature.
        signature: Vec<u8>,
    },
    /// A DSSE envelope.
    Envelope {
        /// What the payload is.
        payload_type: String,
        /// The payload.
        payload: Vec<u8>,
        /// The signature over DSSE's pre-authentication encoding of both.
        signature: Vec<u8>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    media_type: String,
    message_signature: Option<WireMessage>,
    dsse_envelope: Option<WireEnvelope>,
}

#[derive(Deserialize)]
struct WireMessage {
    signature: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireEnvelope {
    payload: String,
    payload_type: String,
    signatures: Vec<WireSignature>,
}

#[derive(Deserialize)]
struct WireSignature {
    sig: String,
}

impl Content {
    /// Reads a bundle of version 0.3.
    pub fn parse(bundle: &[u8]) -> Result<Self, String> {
        let wire: Wire = serde_json::from_slice(bundle)
            .map_err(|e| format!("a bundle cannot be read: {}", quoted(&e.to_string())))?;
        if ![MEDIA_TYPE, OLDER_MEDIA_TYPE].contains(&wire.media_type.as_str()) {
            return Err(format!("a bundle is of type {:?}, not {MEDIA_TYPE:?}", quoted(&wire.media_type)));
        }
        match (wire.message_signature, wire.dsse_envelope) {
            (Some(message), None) => Ok(Self::Message { signature: decoded("signature", &message.signature)? }),
            (None, Some(envelope)) => {
                // What vouches for a bundle vouches for one signature.
                let [signature] = envelope.signatures.as_slice() else {
                    let count = envelope.signatures.len();
                    return Err(format!("a bundle's envelope has {count} signatures, it must have one"));
                };
                Ok(Self::Envelope {
                    payload: decoded("payload", &envelope.payload)?,
                    signature: decoded("sig", &signature.sig)?,
                    payload_type: envelope.payload_type,
                })
            }
            _ => Err("a bundle has not exactly one of messageSignature and dsseEnvelope".to_owned()),
        }
    }
}

fn decoded(field: &str, text: &str) -> Result<Vec<u8>, String> {
    BASE64_STANDARD.decode(text).map_err(|_| format!("a bundle's {field} is not base64"))
}

/// What the signature of an envelope is over (DSSE's pre-authentication encoding).
pub fn signed_bytes(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}
