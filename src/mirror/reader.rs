//! Who asks, as far as an upstream's rules can tell them apart.

use base64::Engine as _;
use http::HeaderValue;

use super::{
    readers::{Hash, Mark, Readers},
    repository::Mirrored,
    upstream::Mode,
};
use crate::{digest::Digest, registry::Credentials, secret::Secret};

/// For how many milliseconds an upstream's yes is good (hardening.md section 5.2).
pub(super) const GRANTED_FOR: u64 = 5 * 60_000;
/// For how many milliseconds beyond that a credential is let in while the upstream fails (hardening.md section 5.3).
const GRACE: u64 = 60 * 60_000;
/// The longest Authorization that is passed on, in bytes: more than any registry's tokens have.
const MAX_AUTHORIZATION: usize = 8 << 10;

/// What a request shows of its sender. Not for printing: it holds a credential.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// `Authorization`.
    pub authorization: Option<&'a HeaderValue>,
    /// The connection is encrypted or does not leave the machine, so that credentials may be asked for.
    pub private: bool,
}

/// Somebody who reads one repository.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    /// Reader and repository: what marks are kept under.
    pub id: Hash,
    pub who: Who,
}

#[derive(Clone, Debug)]
pub(super) enum Who {
    /// Anybody, without credentials.
    Everybody,
    /// Anybody, by the operator's credential.
    Operator,
    /// The caller, by their own.
    Own(Credentials),
}

impl Reader {
    /// Who `caller` is to a repository. Only pass-through looks at the caller's credential.
    pub fn of(caller: Caller<'_>, repository: &Mirrored, readers: &Readers) -> Self {
        let everybody = |who| Self { id: repository.everybody, who };
        match (repository.upstream.mode(), caller.authorization) {
            (Mode::Shared, _) => everybody(Who::Operator),
            (Mode::PassThrough, Some(value)) => match credentials(value) {
                Some(own) => {
                    let (upstream, name) = (repository.upstream.name(), repository.name.as_str());
                    let parts = [b"credential", upstream.as_bytes(), name.as_bytes(), value.as_bytes()];
                    Self { id: readers.hash(&parts), who: Who::Own(own) }
                }
                None => everybody(Who::Everybody),
            },
            (Mode::Public | Mode::PassThrough, _) => everybody(Who::Everybody),
        }
    }

    /// What a mark for one blob is kept under.
    pub fn blob(&self, readers: &Readers, digest: &Digest) -> Hash {
        readers.hash(&[b"blob", &self.id, digest.algorithm().name().as_bytes(), digest.bytes()])
    }

    /// What the time is kept under at which this reader was last refused: marks for single blobs from before it are void.
    pub fn refused(&self, readers: &Readers) -> Hash {
        readers.hash(&[b"refused", &self.id])
    }

    /// The mark of a yes that was said just now.
    pub fn mark(&self, now: u64) -> Mark {
        let until = now.saturating_add(GRANTED_FOR);
        let expires = match &self.who {
            Who::Own(Credentials::RegistryToken(token)) => expiry(token.expose()),
            _ => None,
        };
        // A token may run out sooner; what it says of itself can only shorten the time.
        Mark { when: now, until: expires.map_or(until, |expires| until.min(expires.max(now))) }
    }

    /// Whether a mark is good while the upstream cannot be asked.
    pub fn may_read_offline(&self, mark: Mark, now: u64) -> bool {
        match self.who {
            Who::Everybody | Who::Operator => true,
            Who::Own(_) => mark.is_within(GRACE, now),
        }
    }
}

/// A caller's Authorization as a credential for the upstream: a token as it is, or user and password.
pub(super) fn credentials(value: &HeaderValue) -> Option<Credentials> {
    if value.len() > MAX_AUTHORIZATION {
        return None;
    }
    let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
    let rest = rest.trim();
    if rest.is_empty() {
        return None;
    }
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Credentials::RegistryToken(Secret::new(rest)));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = base64::engine::general_purpose::STANDARD.decode(rest).ok()?;
    let pair = String::from_utf8(pair).ok()?;
    let (username, password) = pair.split_once(':')?;
    Some(Credentials::Basic { username: username.to_string(), password: Secret::new(password) })
}

/// When a JSON web token says that it runs out (RFC 7519, section 4.1.4), in milliseconds since 1970. It is not verified.
fn expiry(token: &str) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Claims {
        exp: f64,
    }
    let payload = token.split('.').nth(1)?;
    let json = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&json).ok()?;
    // A number out of range is cut to the range.
    Some((claims.exp * 1000.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> HeaderValue {
        HeaderValue::from_str(text).unwrap()
    }

    fn jwt(claims: &str) -> String {
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.sig", encode(r#"{"alg":"none"}"#), encode(claims))
    }

    #[test]
    fn an_authorization_is_a_token_a_pair_or_nothing() {
        let pair = |user: &str, password: &str| {
            Some(Credentials::Basic { username: user.into(), password: Secret::new(password) })
        };
        let token = |text: &str| Some(Credentials::RegistryToken(Secret::new(text)));
        for (value, expected) in [
            ("Bearer abc", token("abc")),
            ("bearer  abc ", token("abc")),
            ("Basic dTpw", pair("u", "p")),
            ("BASIC dTpwOnE=", pair("u", "p:q")),
            ("Basic dTo=", pair("u", "")),
            ("Basic dXA=", None),
            ("Basic ???", None),
            ("Basic /w==", None),
            ("Bearer", None),
            ("Bearer ", None),
            ("Digest x", None),
            ("", None),
        ] {
            assert_eq!(credentials(&header(value)), expected, "{value}");
        }
        assert_eq!(credentials(&header(&format!("Bearer {}", "a".repeat(MAX_AUTHORIZATION)))), None);
    }

    #[test]
    fn a_token_is_let_in_for_five_minutes_or_until_it_runs_out() {
        let now = 1_000_000_000;
        let until = |who| Reader { id: [0; 16], who }.mark(now).until;
        let token = |text: String| Who::Own(Credentials::RegistryToken(Secret::new(text)));
        for (who, expected) in [
            (Who::Everybody, now + GRANTED_FOR),
            (token("opaque".into()), now + GRANTED_FOR),
            (token(jwt(r#"{"exp":1000060}"#)), 1_000_060_000),
            (token(jwt(r#"{"exp":99999999999}"#)), now + GRANTED_FOR),
            (token(jwt(r#"{"exp":1}"#)), now),
            (token(jwt(r#"{"exp":-5e300}"#)), now),
            (token(jwt(r#"{"exp":"soon"}"#)), now + GRANTED_FOR),
            (token("a.b.c".into()), now + GRANTED_FOR),
        ] {
            assert_eq!(until(who.clone()), expected, "{who:?}");
        }
    }

    #[test]
    fn while_the_upstream_is_down_everybody_stays_and_a_credential_has_an_hour() {
        let mark = Mark { when: 1000, until: 1000 + GRANTED_FOR };
        let own = Who::Own(Credentials::RegistryToken(Secret::new("x")));
        for (who, now, expected) in [
            (Who::Everybody, u64::MAX, true),
            (Who::Operator, u64::MAX, true),
            (own.clone(), 1000 + GRANTED_FOR + GRACE - 1, true),
            (own.clone(), 1000 + GRANTED_FOR + GRACE, false),
            (own, 999, false),
        ] {
            assert_eq!(Reader { id: [0; 16], who }.may_read_offline(mark, now), expected, "{now}");
        }
    }
}
