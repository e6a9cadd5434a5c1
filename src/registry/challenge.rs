//! `WWW-Authenticate` (RFC 9110, section 11.6.1), as registries send it.

/// One challenge: a scheme, and its parameters in the order sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The scheme in lower case: `bearer`, `basic`, …
    pub scheme: String,
    /// Names in lower case, values unquoted; the first of a name counts.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// At most this many challenges and parameters are read from one header; a registry sends one or two.
const MAX: usize = 32;

/// Parses one header's challenges. Never fails: what makes no sense is skipped, so a broken challenge is one that is
/// missing.
pub fn parse(header: &str) -> Vec<Challenge> {
    let mut rest = header;
    let mut challenges: Vec<Challenge> = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() || challenges.len() > MAX {
            return challenges;
        }
        let (word, after) = token(rest);
        if word.is_empty() {
            // Not a token: skip this character, which is at least one byte.
            rest = skip_one(rest);
            continue;
        }
        let spaced = after.trim_start_matches([' ', '\t']);
        match spaced.strip_prefix('=') {
            // `name=value`, but not a token68's padding.
            Some(value) if !challenges.is_empty() => {
                let (value, after) = read_value(value.trim_start_matches([' ', '\t']));
                if let Some(challenge) = challenges.last_mut()
                    && challenge.parameters.len() < MAX
                {
                    challenge.parameters.push((word.to_ascii_lowercase(), value));
                }
                rest = after;
            }
            Some(value) => rest = value,
            None => {
                challenges.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                rest = after;
            }
        }
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))).unwrap_or(text.len());
    text.split_at(end)
}

fn skip_one(text: &str) -> &str {
    let mut chars = text.chars();
    chars.next();
    chars.as_str()
}

fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        // Real registries leave values such as URLs unquoted: up to the comma.
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return (value, chars.as_str()),
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(header: &str) -> Vec<(String, Vec<(String, String)>)> {
        parse(header).into_iter().map(|c| (c.scheme, c.parameters)).collect()
    }

    fn expect(scheme: &str, parameters: &[(&str, &str)]) -> (String, Vec<(String, String)>) {
        (scheme.to_owned(), parameters.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn reads_what_registries_send() {
        let bearer = expect(
            "bearer",
            &[
                ("realm", "https://auth.docker.io/token"),
                ("service", "registry.docker.io"),
                ("scope", "repository:a/b:pull,push"),
            ],
        );
        for (header, challenges) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![bearer.clone()],
            ),
            (r#"Basic realm="Registry Realm""#, vec![expect("basic", &[("realm", "Registry Realm")])]),
            (r#"basic REALM = "a \"quoted\", realm""#, vec![expect("basic", &[("realm", "a \"quoted\", realm")])]),
            (
                r#"Basic realm="x", Bearer realm=https://a.example/token, service=s"#,
                vec![
                    expect("basic", &[("realm", "x")]),
                    expect("bearer", &[("realm", "https://a.example/token"), ("service", "s")]),
                ],
            ),
            ("Negotiate", vec![expect("negotiate", &[])]),
            ("", vec![]),
            (r#"Bearer realm="unterminated"#, vec![expect("bearer", &[("realm", "unterminated")])]),
        ] {
            assert_eq!(read(header), challenges, "{header}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_always_ends(header in ".{0,200}") {
            let _ = parse(&header);
        }
    }
}
