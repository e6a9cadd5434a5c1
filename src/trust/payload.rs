//! What a signature is about: cosign's simple signing payload, and in-toto statements in DSSE envelopes.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::quoted;
use crate::digest::Digest;

/// The kind of statement that `cosign sign` makes.
pub const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
/// `critical.type` of a simple signing payload.
const SIMPLE_SIGNING: &str = "cosign container image signature";
/// The payload type of an envelope with a statement.
pub(super) const STATEMENT: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPES: [&str; 2] = ["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"];

#[derive(Deserialize)]
struct SimpleSigning {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

/// Whether a simple signing payload is about `digest`; else what it is.
pub fn signed_by_layer(payload: &[u8], digest: &Digest) -> Result<(), String> {
    let parsed: SimpleSigning = serde_json::from_slice(payload)
        .map_err(|e| format!("a signature's payload cannot be read: {}", quoted(&e.to_string())))?;
    if parsed.critical.kind != SIMPLE_SIGNING {
        return Err(format!("a signature is of type {:?}, not {SIMPLE_SIGNING:?}", quoted(&parsed.critical.kind)));
    }
    if parsed.critical.image.digest != *digest {
        return Err(format!("a signature is about {}", parsed.critical.image.digest));
    }
    Ok(())
}

/// Whether the statement in an envelope of this type is a signature of `digest`; else what it is.
pub fn signed_by_statement(payload_type: &str, payload: &[u8], digest: &Digest) -> Result<(), String> {
    if payload_type != STATEMENT {
        return Err(format!("an envelope holds {:?}, not {STATEMENT:?}", quoted(payload_type)));
    }
    let parsed: Statement = serde_json::from_slice(payload)
        .map_err(|e| format!("a bundle's statement cannot be read: {}", quoted(&e.to_string())))?;
    if !STATEMENT_TYPES.contains(&parsed.kind.as_str()) {
        return Err(format!("a bundle's statement is of type {:?}", quoted(&parsed.kind)));
    }
    if parsed.predicate_type != PREDICATE {
        return Err(not_a_signature(&parsed.predicate_type));
    }
    let about = |subject: &Subject| {
        subject.digest.get(digest.algorithm().name()).is_some_and(|hex| hex.eq_ignore_ascii_case(&digest.hex()))
    };
    if !parsed.subject.iter().any(about) {
        return Err("a bundle's statement is about something else".to_owned());
    }
    Ok(())
}

/// What is said of a statement of another kind.
pub fn not_a_signature(predicate: &str) -> String {
    format!("an attestation of type {:?} is no signature", quoted(predicate))
}
