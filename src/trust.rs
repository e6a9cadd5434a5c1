//! Who must have signed a manifest, judged on bytes alone.
//!
//! **Promise.** [`Policy::judge`] says yes only where one piece of [`Evidence`] is a signature that the policy accepts and
//! that names exactly the digest asked about. Everything else is a no that says why: evidence that cannot be read, by
//! somebody else, or about something else never helps and never hurts what else there is.
//!
//! **Formats.** Cosign's, both: a layer with a simple signing payload and the signature in its annotations (the manifest
//! under the tag `sha256-<hex>.sig`), and the Sigstore bundle v0.3 of a referrer, with a DSSE envelope about an in-toto
//! statement, or with a signature over the manifest itself. Of statements only [`SIGNED`] counts: that somebody attested an
//! SBOM or a scan of an image does not mean that they approve of it.
//!
//! **By key** any key of the policy will do, and transparency logs are not looked at: ECDSA on P-256, P-384 and P-521,
//! Ed25519, RSA from 2048 bits. **By identity** (feature `keyless`) the certificate chains to a Fulcio of the given
//! trusted root at a time that a log or a timestamp authority of that root vouches for, with what else the root has
//! authorities for: a certificate transparency log's timestamp, an entry in a transparency log. Nothing is fetched.
//!
//! Pure and synchronous: no I/O, no state, any number of threads at once. A judgement costs public key operations, so it
//! belongs behind `blocking::cpu`.

mod bundle;
mod key;
#[cfg(feature = "keyless")]
mod keyless;
mod payload;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;

pub use self::{
    bundle::{Content, MEDIA_TYPE as BUNDLE},
    payload::{PREDICATE as SIGNED, not_a_signature, signed_by_layer, signed_by_statement},
};
use crate::{class::Class, digest::Digest};
use key::PublicKey;

/// The annotation of a referrer that says which kind of statement its bundle makes.
pub const PREDICATE_ANNOTATION: &str = "dev.sigstore.bundle.predicateType";
/// The annotation of a layer that holds its signature.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// The file name's end of a public key in a Secret.
const KEY_SUFFIX: &str = ".pub";
/// The most keys of a policy: each is tried on each signature.
const MAX_KEYS: usize = 64;
/// How many different reasons a refusal tells.
const MAX_REASONS: usize = 4;
/// How much of a foreign text a reason quotes, in characters.
const MAX_QUOTED: usize = 200;

/// Something that may be a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// A layer of the manifest under the tag `sha256-<hex>.sig`.
    Layer {
        /// The layer: a simple signing payload.
        payload: Bytes,
        /// The layer's annotations: signature, certificate, log entry.
        annotations: BTreeMap<String, String>,
    },
    /// A Sigstore bundle, JSON.
    Bundle(Bytes),
    /// Something that could not be fetched for what it is, and why.
    Unusable(String),
}

/// What a source's signatures must be.
#[derive(Clone, PartialEq)]
pub struct Policy(Rule);

#[derive(Clone, PartialEq)]
enum Rule {
    Keys {
        keys: Vec<PublicKey>,
        /// What else looked like a key, and why it is none.
        unusable: Vec<String>,
    },
    #[cfg(feature = "keyless")]
    Identities(keyless::Keyless),
}

/// One identity that may sign; expressions that match anywhere in the text unless they are anchored.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// An expression for the OIDC issuer.
    pub issuer: &'a str,
    /// An expression for the subject: an e-mail address or a URI.
    pub subject: &'a str,
}

/// Why a policy cannot be had, or why it says no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Nothing is signed.
    #[error(
        "{0} is not signed: there is neither a bundle among its referrers nor a tag with signatures; sign it with `cosign sign`"
    )]
    Unsigned(Digest),
    /// Nothing of what there is will do.
    #[error("no signature of {digest} is accepted: {}", .why.join("; "))]
    Refused {
        /// Of which manifest.
        digest: Digest,
        /// The different reasons, the first few.
        why: Vec<String>,
    },
    /// No key to check signatures with.
    #[error("{}", no_key(.0))]
    NoKey(Vec<String>),
    /// More keys than are tried.
    #[error("{0} keys, at most {MAX_KEYS} are tried")]
    TooManyKeys(usize),
    /// A trusted root that cannot be used.
    #[error("trusted_root.json cannot be used: {0}; make one with `cosign trusted-root create`")]
    Root(String),
    /// An identity's expression.
    #[error("matchOIDCIdentity[{index}].{field}: {pattern:?} is not a regular expression: {why}")]
    Pattern {
        /// Which identity, from 0.
        index: usize,
        /// `issuer` or `subject`.
        field: &'static str,
        /// The expression, cut short.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// A build without the feature.
    #[error("this build of Larder checks no signatures by identity: use a build with the feature `keyless`, or keys")]
    NotBuilt,
}

impl TrustError {
    /// The class of failure.
    pub fn class(&self) -> Class {
        match self {
            Self::Unsigned(_) => Class::NotFound,
            Self::Refused { .. } | Self::NoKey(_) | Self::TooManyKeys(_) | Self::Root(_) => Class::Auth,
            Self::Pattern { .. } => Class::Spec,
            Self::NotBuilt => Class::Policy,
        }
    }
}

fn no_key(unusable: &[String]) -> String {
    let wanted = "put the public key into it as NAME.pub, PEM, as `cosign generate-key-pair` and \
                  `openssl pkey -pubout` write it";
    match unusable {
        [] => format!("has no *{KEY_SUFFIX}: {wanted}"),
        _ => format!("has no usable key ({}): {wanted}", unusable.join("; ")),
    }
}

impl Policy {
    /// Any of the keys among `files` (name and content), which are those whose name ends in `.pub`. What looks like a key
    /// and is none is passed over as long as there is another, and named in refusals.
    pub fn keys<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, TrustError> {
        let (mut keys, mut unusable) = (Vec::new(), Vec::new());
        for (name, pem) in files.into_iter().filter(|(name, _)| name.ends_with(KEY_SUFFIX)) {
            match PublicKey::from_pem(pem) {
                Ok(key) => keys.push(key),
                Err(why) => unusable.push(format!("{}: {why}", quoted(name))),
            }
        }
        match keys.len() {
            0 => Err(TrustError::NoKey(unusable)),
            count if count > MAX_KEYS => Err(TrustError::TooManyKeys(count)),
            _ => Ok(Self(Rule::Keys { keys, unusable })),
        }
    }

    /// Any of `identities`, or whoever has a certificate where there are none, as the authorities of `trusted_root` (the
    /// text of a Sigstore `trusted_root.json`) say.
    #[cfg(feature = "keyless")]
    pub fn keyless(identities: &[Identity<'_>], trusted_root: &str) -> Result<Self, TrustError> {
        keyless::Keyless::new(identities, trusted_root).map(|keyless| Self(Rule::Identities(keyless)))
    }

    /// Not in this build.
    #[cfg(not(feature = "keyless"))]
    pub fn keyless(_: &[Identity<'_>], _: &str) -> Result<Self, TrustError> {
        Err(TrustError::NotBuilt)
    }

    /// Whether some of `evidence` is a signature of the manifest `digest` that this policy accepts.
    pub fn judge(&self, digest: &Digest, evidence: &[Evidence]) -> Result<(), TrustError> {
        let mut why: Vec<String> = Vec::new();
        for item in evidence {
            let judged = match (&self.0, item) {
                (_, Evidence::Unusable(why)) => Err(why.clone()),
                (Rule::Keys { keys, .. }, item) => key::judge(keys, digest, item),
                #[cfg(feature = "keyless")]
                (Rule::Identities(keyless), item) => keyless.judge(digest, item),
            };
            match judged {
                Ok(()) => return Ok(()),
                Err(reason) if why.len() < MAX_REASONS && !why.contains(&reason) => why.push(reason),
                Err(_) => {}
            }
        }
        if why.is_empty() {
            return Err(TrustError::Unsigned(*digest));
        }
        match &self.0 {
            Rule::Keys { unusable, .. } => why.extend(unusable.iter().take(MAX_REASONS).cloned()),
            #[cfg(feature = "keyless")]
            Rule::Identities(_) => {}
        }
        Err(TrustError::Refused { digest: *digest, why })
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Rule::Keys { keys, .. } => write!(f, "Policy({} keys)", keys.len()),
            #[cfg(feature = "keyless")]
            Rule::Identities(_) => f.write_str("Policy(identities)"),
        }
    }
}

/// A foreign text for a message: cut short, control characters escaped.
fn quoted(text: &str) -> String {
    text.chars()
        .take(MAX_QUOTED)
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}
