//! What no message may repeat: servers echo what they were sent, and the text of their errors goes into statuses and
//! logs.

use base64::Engine as _;
use http::HeaderValue;

use super::{Credentials, target::encode_component};

/// Who repeats a token may cut it off: with so many bytes of its begin it is taken for it.
const BEGIN: usize = 16;

/// The texts that are hidden, and how many bytes tell each of them.
#[derive(Default)]
pub(super) struct Hidden(Vec<(String, usize)>);

impl Hidden {
    /// A secret, as it is and as it is written in a form.
    pub(super) fn secret(&mut self, secret: &str) {
        for form in [secret.to_owned(), encode_component(secret)] {
            let begin = (0..=BEGIN.min(form.len())).rev().find(|at| form.is_char_boundary(*at)).unwrap_or_default();
            self.add(form, begin);
        }
    }

    /// A text of which only the whole is secret.
    pub(super) fn whole(&mut self, text: &str) {
        self.add(text.to_owned(), text.len());
    }

    /// Whoever asked.
    pub(super) fn credentials(&mut self, credentials: &Credentials) {
        match credentials {
            Credentials::Anonymous | Credentials::Login(_) => {}
            Credentials::Basic { username, password } => self.pair(&format!("{username}:{}", password.expose())),
            Credentials::IdentityToken(token) | Credentials::RegistryToken(token) => self.secret(token.expose()),
        }
    }

    /// An Authorization: what follows its scheme, and the password in it.
    pub(super) fn header(&mut self, value: &HeaderValue) {
        let Ok(value) = std::str::from_utf8(value.as_bytes()) else { return };
        let (scheme, sent) = value.split_once(' ').unwrap_or(("", value));
        let pair = base64::engine::general_purpose::STANDARD.decode(sent);
        match pair.ok().and_then(|pair| String::from_utf8(pair).ok()) {
            Some(pair) if scheme.eq_ignore_ascii_case("basic") => self.pair(&pair),
            _ => self.secret(sent),
        }
    }

    /// `user:password`: the password, and both as Basic sends them.
    fn pair(&mut self, pair: &str) {
        self.secret(pair.split_once(':').map_or(pair, |(_, password)| password));
        self.secret(base64::engine::general_purpose::STANDARD.encode(pair).trim_end_matches('='));
    }

    fn add(&mut self, text: String, begin: usize) {
        if begin > 0 && !self.0.iter().any(|(known, _)| *known == text) {
            self.0.push((text, begin));
        }
    }

    /// `text` without them.
    pub(super) fn out_of(mut self, text: &str) -> String {
        // The longest first: one may be part of another.
        self.0.sort_by_key(|(secret, _)| std::cmp::Reverse(secret.len()));
        self.0.iter().fold(text.to_owned(), |text, (secret, begin)| without(&text, secret, &secret[..*begin]))
    }
}

fn without(text: &str, secret: &str, begin: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, at)) = rest.find(begin).map(|at| rest.split_at(at)) {
        out.push_str(before);
        out.push_str("[redacted]");
        let same = at.chars().zip(secret.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        rest = &at[same..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn hidden(add: impl Fn(&mut Hidden), text: &str) -> String {
        let mut hidden = Hidden::default();
        add(&mut hidden);
        hidden.out_of(text)
    }

    #[test]
    fn a_secret_is_hidden_in_every_form_that_it_is_sent_in() {
        let basic = Credentials::Basic { username: "user".into(), password: Secret::new("S3cr3t/Passw0rd") };
        for said in [
            "bad Basic dXNlcjpTM2NyM3QvUGFzc3cwcmQ= which is user:S3cr3t/Passw0rd",
            "bad dXNlcjpTM2NyM3QvUGFzc3cwcmQ",
            "bad dXNlcjpTM2NyM3QvUGFzc…",
            "bad password=S3cr3t%2FPassw0rd&x=y",
        ] {
            let text = hidden(|hidden| hidden.credentials(&basic), said);
            assert!(text.starts_with("bad ") && text.contains("[redacted]"), "{text}");
            assert!(!text.contains("dXNl") && !text.contains("S3cr3t"), "{text}");
            let sent = HeaderValue::from_static("basic dXNlcjpTM2NyM3QvUGFzc3cwcmQ=");
            assert_eq!(hidden(|hidden| hidden.header(&sent), said), text);
        }
        let bearer = HeaderValue::from_static("Bearer eyJhbGciOiJSUzI1NiJ9.abc.def");
        for (said, text) in [
            ("bad token Bearer eyJhbGciOiJSUzI1NiJ9.abc.def!", "bad token Bearer [redacted]!"),
            ("eyJhbGciOiJSUzI1NiJ9.abc… eyJhbGciOiJSUzI1NiJ9.abc.def", "[redacted]… [redacted]"),
            ("a token begins with eyJ", "a token begins with eyJ"),
        ] {
            assert_eq!(hidden(|hidden| hidden.header(&bearer), said), text);
        }
    }

    #[test]
    fn what_holds_another_goes_first_and_nothing_hides_nothing() {
        let both = |hidden: &mut Hidden| {
            hidden.secret("abc");
            hidden.whole("the abc of a long text");
        };
        assert_eq!(hidden(both, "the abc of a long text, the abc of it"), "[redacted], the [redacted] of it");
        assert_eq!(hidden(|hidden| hidden.secret(""), "text"), "text");
        assert_eq!(hidden(|hidden| hidden.secret("päß"), "päßpä"), "[redacted]pä");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_taken(secret in ".{0,40}", before in ".{0,20}", after in ".{0,20}") {
            let _ = hidden(|hidden| hidden.secret(&secret), &format!("{before}{secret}{after}"));
        }
    }
}
