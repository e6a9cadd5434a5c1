//! Who may use the local repositories, and for what (contract section 2: `registry: {htpasswd, token, access}`).
//!
//! A caller is a user of the htpasswd file with the right password, the holder of the token, or anonymous. Rules say
//! per repository who may read and who may write; the first whose pattern matches counts, and what no rule matches
//! nobody may use. Whoever may write may read. Without rules users may do everything and anonymous callers nothing;
//! without users and without rules everybody may read, and callers on this machine may write.
//!
//! A repository that a caller may not read answers as one that does not exist: anonymous callers are asked for
//! credentials (401) for whatever they may not read, there or not, users get the 404 of an absent one. A write that is
//! not allowed answers 401 or 403, whether or not the repository exists.
//!
//! The files are read at the start, where anything wrong in them is an error, and again when they change; then a file
//! with something wrong in it is logged and what was read before stays. Any number of requests may ask at once;
//! `verify` bounds what they can cost. Nothing is kept on disk.

pub mod authorization;
pub mod htpasswd;
mod pattern;
mod verify;

use std::{path::PathBuf, str::FromStr, sync::Arc};

use http::{HeaderMap, Method, header::AUTHORIZATION};

use self::verify::{Passwords, Verdict};
pub use self::{
    pattern::{Pattern, PatternError},
    verify::FileError,
};
use super::failure::Failure;
use crate::{
    class::Class,
    oci::{Repository, error_body::ErrorCode},
    server::{listener::Peer, route::Route},
};

/// The name under which rules know the holder of the token, and the user name with which clients that know no bearer
/// tokens send it as a password.
pub const TOKEN_USER: &str = "token";
/// The word of rules for everybody, with or without credentials.
pub const ANONYMOUS: &str = "anonymous";
/// The word of rules for every user.
pub const EVERY_USER: &str = "*";

/// Where the users are, and what they may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Users with bcrypt hashes of their passwords.
    pub htpasswd: Option<PathBuf>,
    /// The token.
    pub token: Option<PathBuf>,
    /// In their order.
    pub rules: Vec<Rule>,
}

/// What may be done with some repositories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which.
    pub repositories: Pattern,
    /// Who may read.
    pub read: Vec<Subject>,
    /// Who may write, and read.
    pub write: Vec<Subject>,
}

/// Whom a rule names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Everybody, with or without credentials: `anonymous`.
    Anybody,
    /// Every user: `*`.
    EveryUser,
    /// One.
    User(String),
}

/// Why a text names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a user's name: write one without colons and control characters, * for every user, anonymous for everybody"
)]
pub struct SubjectError(String);

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        match text {
            ANONYMOUS => Ok(Self::Anybody),
            EVERY_USER => Ok(Self::EveryUser),
            name if htpasswd::is_name(name) => Ok(Self::User(name.to_owned())),
            other => Err(SubjectError(other.chars().take(80).collect())),
        }
    }
}

impl Subject {
    fn is(&self, caller: &Caller) -> bool {
        match (self, caller) {
            (Self::Anybody, _) | (Self::EveryUser, Caller::User(_)) => true,
            (Self::User(name), Caller::User(user)) => **name == **user,
            (_, Caller::Anonymous { .. }) => false,
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Somebody without credentials.
    Anonymous {
        /// On this machine.
        loopback: bool,
    },
    /// Somebody who proved to be this user.
    User(Arc<str>),
}

impl Caller {
    /// The user, if it is one: what tells one caller's uploads from another's.
    pub fn user(&self) -> Option<&Arc<str>> {
        match self {
            Self::User(name) => Some(name),
            Self::Anonymous { .. } => None,
        }
    }
}

/// What a caller wants to do with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Read,
    Write,
}

impl Need {
    /// What a request to `route` with `method` needs, and of which repository.
    pub fn of<'a>(route: &'a Route, method: &Method) -> Option<(&'a Repository, Self)> {
        let by_method = match *method {
            Method::GET | Method::HEAD => Self::Read,
            _ => Self::Write,
        };
        match route {
            Route::Base | Route::Catalog => None,
            Route::Tags(repository) | Route::Referrers(repository, _) => Some((repository, Self::Read)),
            Route::Blob(repository, _) | Route::Manifest(repository, _) => Some((repository, by_method)),
            // How far an upload is concerns those who may go on with it.
            Route::Uploads(repository) | Route::Upload(repository, _) => Some((repository, Self::Write)),
        }
    }
}

/// Tells callers apart and decides what they may do.
#[derive(Default)]
pub struct Access {
    passwords: Option<Arc<Passwords>>,
    rules: Vec<Rule>,
}

impl Access {
    /// Reads the files; waits for the disk.
    ///
    /// # Errors
    /// A file that cannot be read or has something in it that is not taken.
    pub fn open(config: Config) -> Result<Self, FileError> {
        let Config { htpasswd, token, rules } = config;
        let passwords = match (&htpasswd, &token) {
            (None, None) => None,
            _ => Some(Arc::new(Passwords::open(htpasswd, token)?)),
        };
        if let Some(passwords) = &passwords {
            for name in rules.iter().flat_map(|rule| rule.read.iter().chain(&rule.write)) {
                if let Subject::User(name) = name
                    && !passwords.knows(name)
                {
                    tracing::warn!(user = name, "registry.access names a user who is not in registry.htpasswd");
                }
            }
        }
        Ok(Self { passwords, rules })
    }

    /// Whether there are users at all.
    pub(super) fn has_users(&self) -> bool {
        self.passwords.is_some()
    }

    /// Who sent these headers. Where there are no users, credentials are not looked at: clients send what they have.
    ///
    /// # Errors
    /// 401 for credentials that are not right, 503 where too many are being checked.
    pub(super) async fn caller(&self, headers: &HeaderMap, peer: Peer) -> Result<Caller, Failure> {
        let anonymous = Caller::Anonymous { loopback: peer.is_loopback() };
        let Some(passwords) = &self.passwords else { return Ok(anonymous) };
        let mut sent = headers.get_all(AUTHORIZATION).iter();
        let verdict = match (sent.next(), sent.next()) {
            (None, _) => Verdict::Anonymous,
            (Some(header), None) => passwords.verify(header, peer.address).await.map_err(|_busy| {
                let failure = Failure::new(ErrorCode::Unavailable, Class::Limit);
                failure.message("too many passwords are being checked; try again in a moment")
            })?,
            (Some(_), Some(_)) => Verdict::Wrong,
        };
        match verdict {
            Verdict::User(name) => Ok(Caller::User(name)),
            Verdict::Anonymous => Ok(anonymous),
            Verdict::Wrong => Err(unauthorized("the user name, password or token is not right")),
        }
    }

    /// Whether `caller` may do it.
    pub(super) fn may(&self, caller: &Caller, repository: &Repository, need: Need) -> bool {
        if self.rules.is_empty() {
            return match caller {
                Caller::User(_) => true,
                Caller::Anonymous { loopback } => !self.has_users() && (need == Need::Read || *loopback),
            };
        }
        let rule = self.rules.iter().find(|rule| rule.repositories.matches(repository.as_str()));
        rule.is_some_and(|rule| {
            let granted = |to: &[Subject]| to.iter().any(|subject| subject.is(caller));
            granted(&rule.write) || (need == Need::Read && granted(&rule.read))
        })
    }

    /// Refuses what `caller` may not do. Not being allowed to read is an error only where credentials may help: to a
    /// user the repository is an absent one (`Ok(false)`).
    pub(super) fn check(&self, caller: &Caller, repository: &Repository, need: Need) -> Result<bool, Failure> {
        if self.may(caller, repository, need) {
            return Ok(true);
        }
        match (caller, need) {
            (Caller::Anonymous { .. }, _) if self.has_users() => Err(unauthorized("log in to use this repository")),
            (_, Need::Read) => Ok(false),
            (Caller::User(name), Need::Write) => Err(Failure::new(ErrorCode::Denied, Class::Auth)
                .message(format!("user {name} may not write to repository {repository}"))),
            (Caller::Anonymous { .. }, Need::Write) => {
                let rule = if self.rules.is_empty() {
                    "without users only callers on the registry's own machine may push: set registry.htpasswd or \
                     registry.token, or let anonymous write in registry.access"
                } else {
                    "registry.access does not let anonymous callers write to this repository"
                };
                Err(Failure::new(ErrorCode::Denied, Class::Auth).message(rule))
            }
        }
    }

    /// Refuses to greet anonymous callers where there are users: `docker login`, and every client that learns from
    /// `/v2/` how to authenticate, rely on it.
    pub(super) fn greet(&self, caller: &Caller) -> Result<(), Failure> {
        match caller {
            Caller::Anonymous { .. } if self.has_users() => Err(unauthorized("log in to use this registry")),
            _ => Ok(()),
        }
    }

    /// Refuses a list to anonymous callers who could not see any of it.
    pub(super) fn check_list(&self, caller: &Caller) -> Result<(), Failure> {
        let shown = |rule: &Rule| rule.read.iter().chain(&rule.write).any(|subject| *subject == Subject::Anybody);
        if self.rules.iter().any(shown) { Ok(()) } else { self.greet(caller) }
    }
}

fn unauthorized(message: &str) -> Failure {
    Failure::new(ErrorCode::Unauthorized, Class::Auth).message(message).challenge()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(matches: &str, read: &[&str], write: &[&str]) -> Rule {
        let subjects = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        Rule { repositories: matches.parse().unwrap(), read: subjects(read), write: subjects(write) }
    }

    fn users() -> Option<Arc<Passwords>> {
        Some(Arc::new(Passwords::of("", Some("secret")).unwrap()))
    }

    const LOCAL: Caller = Caller::Anonymous { loopback: true };
    const REMOTE: Caller = Caller::Anonymous { loopback: false };

    fn user(name: &str) -> Caller {
        Caller::User(name.into())
    }

    /// 0 nothing, 1 read, 2 read and write.
    fn rights(access: &Access, caller: &Caller, repository: &str) -> u8 {
        let repository = repository.parse().unwrap();
        let (read, write) = (access.may(caller, &repository, Need::Read), access.may(caller, &repository, Need::Write));
        assert!(read || !write, "whoever may write may read");
        u8::from(read) + u8::from(write)
    }

    #[test]
    fn without_rules_users_may_do_everything_and_without_users_whoever_is_on_this_machine() {
        for (passwords, caller, expected) in
            [(None, LOCAL, 2), (None, REMOTE, 1), (users(), LOCAL, 0), (users(), REMOTE, 0), (users(), user("a"), 2)]
        {
            let access = Access { passwords, rules: Vec::new() };
            assert_eq!(rights(&access, &caller, "any/thing"), expected, "{caller:?} {}", access.has_users());
        }
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let rules = vec![
            rule("team/secret", &[], &["alice"]),
            rule("team/*", &["*"], &["alice", "bob"]),
            rule("public/*", &["anonymous"], &["token"]),
            rule("open", &[], &["anonymous"]),
        ];
        let access = Access { passwords: users(), rules };
        for (repository, alice, bob, carol, token, anonymous) in [
            ("team/secret", 2, 0, 0, 0, 0),
            ("team/app", 2, 2, 1, 1, 0),
            ("team/a/b", 2, 2, 1, 1, 0),
            ("team", 0, 0, 0, 0, 0),
            ("public/x", 1, 1, 1, 2, 1),
            ("open", 2, 2, 2, 2, 2),
            ("other", 0, 0, 0, 0, 0),
        ] {
            for (caller, expected) in [
                (user("alice"), alice),
                (user("bob"), bob),
                (user("carol"), carol),
                (user(TOKEN_USER), token),
                (LOCAL, anonymous),
                (REMOTE, anonymous),
            ] {
                assert_eq!(rights(&access, &caller, repository), expected, "{caller:?} {repository}");
            }
        }
    }

    #[test]
    fn a_refusal_tells_nothing_but_what_the_caller_may_do() {
        let repository: Repository = "a/b".parse().unwrap();
        let guarded = Access { passwords: users(), rules: vec![rule("a/*", &["bob"], &["alice"])] };
        let open = Access::default();
        let ruled = Access { passwords: None, rules: vec![rule("x", &["anonymous"], &[])] };
        for (access, caller, need, expected) in [
            (&guarded, user("alice"), Need::Write, Ok(true)),
            (&guarded, user("bob"), Need::Read, Ok(true)),
            (&guarded, user("bob"), Need::Write, Err(403)),
            (&guarded, user("carol"), Need::Read, Ok(false)),
            (&guarded, user("carol"), Need::Write, Err(403)),
            (&guarded, LOCAL, Need::Read, Err(401)),
            (&guarded, LOCAL, Need::Write, Err(401)),
            (&open, REMOTE, Need::Read, Ok(true)),
            (&open, REMOTE, Need::Write, Err(403)),
            (&open, LOCAL, Need::Write, Ok(true)),
            (&ruled, LOCAL, Need::Read, Ok(false)),
            (&ruled, LOCAL, Need::Write, Err(403)),
        ] {
            let found = access.check(&caller, &repository, need).map_err(|f| f.into_response().status().as_u16());
            assert_eq!(found, expected, "{caller:?} {need:?}");
        }
    }

    #[test]
    fn names_are_read_as_written() {
        for (text, expected) in [
            ("anonymous", Some(Subject::Anybody)),
            ("*", Some(Subject::EveryUser)),
            ("alice", Some(Subject::User("alice".into()))),
            ("Anonymous", Some(Subject::User("Anonymous".into()))),
            ("", None),
            ("a:b", None),
            ("a\n", None),
        ] {
            assert_eq!(text.parse::<Subject>().ok(), expected, "{text:?}");
        }
    }
}
