//! Users and the hashes of their passwords, as `htpasswd -B` writes them: `name:hash` a line, `#` comments.

use std::collections::HashMap;

use super::{ANONYMOUS, EVERY_USER, TOKEN_USER};

/// The most that one check may cost: 2^17 rounds, about eight seconds, are the most that `htpasswd` writes.
const MAX_COST: u32 = 17;
/// What a check of a user who does not exist costs where there are no users: as much as `htpasswd -B` writes.
const DEFAULT_COST: u32 = 5;
/// The most bytes of a user's name.
const MAX_NAME: usize = 255;

/// The users of one file.
#[derive(Clone, PartialEq, Eq)]
pub struct Users {
    hashes: HashMap<String, String>,
    /// Hashes no password, at the cost of the costliest user's.
    decoy: String,
}

/// What is wrong with a file, and in which line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct HtpasswdError {
    line: usize,
    problem: Problem,
}

/// What is wrong with a line. A hash is never shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("not of the form name:hash")]
    Form,
    #[error(
        "{0:?} cannot be a user's name: {ANONYMOUS:?}, {EVERY_USER:?} and {TOKEN_USER:?} have a meaning of their own, and a name has no control characters"
    )]
    Name(String),
    #[error("user {0:?} is there twice")]
    Twice(String),
    #[error("the hash of user {0:?} is {1}; only bcrypt is taken: htpasswd -B")]
    Scheme(String, &'static str),
    #[error("the bcrypt hash of user {0:?} is damaged; write it anew with htpasswd -B")]
    Damaged(String),
    #[error("the bcrypt hash of user {0:?} has cost {1}; 4 to {MAX_COST} are taken")]
    Cost(String, u32),
}

/// Whether a text can be a user's name.
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(|c| c == ':' || c.is_control())
}

impl Users {
    /// Reads a file's text.
    ///
    /// # Errors
    /// The first line that is not taken.
    pub fn parse(text: &str) -> Result<Self, HtpasswdError> {
        let mut hashes = HashMap::new();
        let mut highest = None;
        for (n, line) in text.lines().enumerate() {
            let line = line.trim_end_matches([' ', '\t', '\r']);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, hash, cost) = entry(line).map_err(|problem| HtpasswdError { line: n + 1, problem })?;
            highest = highest.max(Some(cost));
            if hashes.insert(name.to_owned(), hash.to_owned()).is_some() {
                return Err(HtpasswdError { line: n + 1, problem: Problem::Twice(name.to_owned()) });
            }
        }
        let decoy = format!("$2y${:02}${}", highest.unwrap_or(DEFAULT_COST), ".".repeat(53));
        Ok(Self { hashes, decoy })
    }

    /// Whether there is such a user.
    pub fn contains(&self, name: &str) -> bool {
        self.hashes.contains_key(name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether that is the user's password. Takes as long for users who do not exist. Burns a core meanwhile.
    pub fn verify(&self, name: &str, password: &str) -> bool {
        let hash = self.hashes.get(name);
        let right = bcrypt::verify(password, hash.unwrap_or(&self.decoy)).unwrap_or(false);
        right && hash.is_some()
    }
}

/// A line's name, hash and cost.
fn entry(line: &str) -> Result<(&str, &str, u32), Problem> {
    let (name, hash) = line.split_once(':').ok_or(Problem::Form)?;
    if !is_name(name) || matches!(name, ANONYMOUS | EVERY_USER | TOKEN_USER) {
        return Err(Problem::Name(name.chars().take(80).collect()));
    }
    let scheme = |what| Problem::Scheme(name.to_owned(), what);
    if !["$2y$", "$2b$", "$2a$"].iter().any(|prefix| hash.starts_with(prefix)) {
        return Err(match hash {
            _ if hash.starts_with("$apr1$") || hash.starts_with("$1$") => scheme("MD5"),
            _ if hash.starts_with("{SHA}") => scheme("SHA-1"),
            _ if hash.starts_with("$5$") || hash.starts_with("$6$") => scheme("SHA-2 crypt"),
            _ if hash.starts_with("$argon2") => scheme("Argon2"),
            _ if hash.len() == 13 => scheme("crypt"),
            _ => scheme("of an unknown kind, or the password itself"),
        });
    }
    let parts: bcrypt::HashParts = hash.parse().map_err(|_| Problem::Damaged(name.to_owned()))?;
    match parts.get_cost() {
        cost @ 4..=MAX_COST => Ok((name, hash, cost)),
        cost => Err(Problem::Cost(name.to_owned(), cost)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(password: &str) -> String {
        bcrypt::hash(password, 4).unwrap()
    }

    #[test]
    fn the_right_password_of_a_user_is_right_and_nothing_else() {
        let php = hash("carol's").replacen("$2b$", "$2y$", 1);
        let text = format!("# users\n\nalice:{}\nbob:{}  \r\ncarol:{php}\n", hash("wonder"), hash(""));
        let users = Users::parse(&text).unwrap();
        assert_eq!((users.len(), users.contains("alice"), users.contains("dave")), (3, true, false));
        for (name, password, expected) in [
            ("alice", "wonder", true),
            ("alice", "Wonder", false),
            ("alice", "", false),
            ("bob", "", true),
            ("carol", "carol's", true),
            ("dave", "wonder", false),
            ("", "", false),
        ] {
            assert_eq!(users.verify(name, password), expected, "{name} {password}");
        }
        assert!(Users::parse("").unwrap().is_empty());
        assert!(!Users::parse("").unwrap().verify("a", "b"));
    }

    #[test]
    fn a_check_of_nobody_costs_as_much_as_the_costliest_user() {
        let text = format!("a:{}\nb:{}\n", hash("x"), bcrypt::hash("y", 6).unwrap());
        assert!(Users::parse(&text).unwrap().decoy.starts_with("$2y$06$"));
        assert!(Users::parse("").unwrap().decoy.parse::<bcrypt::HashParts>().is_ok());
    }

    #[test]
    fn other_hashes_and_damaged_lines_are_refused_by_line_and_name_without_the_hash() {
        let good = hash("x");
        for (text, expected) in [
            ("alice\n".to_string(), "line 1: not of the form name:hash"),
            (format!("a:{good}\na:{good}"), "line 2: user \"a\" is there twice"),
            ("a:$apr1$x$SECRET".into(), "line 1: the hash of user \"a\" is MD5; only bcrypt is taken: htpasswd -B"),
            ("a:{SHA}SECRET=".into(), "line 1: the hash of user \"a\" is SHA-1; only bcrypt is taken: htpasswd -B"),
            ("a:$6$SECRET".into(), "line 1: the hash of user \"a\" is SHA-2 crypt; only bcrypt is taken: htpasswd -B"),
            ("a:SECRETSECRET!".into(), "line 1: the hash of user \"a\" is crypt; only bcrypt is taken: htpasswd -B"),
            (
                "a:SECRET".into(),
                "line 1: the hash of user \"a\" is of an unknown kind, or the password itself; only bcrypt is taken: htpasswd -B",
            ),
            (
                format!("a:{}", &good[..50]),
                "line 1: the bcrypt hash of user \"a\" is damaged; write it anew with htpasswd -B",
            ),
            (
                format!("\na:{}", good.replacen("$04$", "$31$", 1)),
                "line 2: the bcrypt hash of user \"a\" has cost 31; 4 to 17 are taken",
            ),
        ] {
            let error = Users::parse(&text).err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), Some(expected));
        }
        for name in ["anonymous", "*", "token", "", "a\u{7}"] {
            let error = Users::parse(&format!("{name}:{good}")).err().unwrap().to_string();
            assert!(error.contains("cannot be a user's name") && !error.contains(&good), "{error}");
        }
    }
}
