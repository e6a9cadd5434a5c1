//! The classes of failure that Larder tells apart, each with one word for the outside: the log, the metric label
//! `outcome`, and the HTTP error body all carry it. Every module's error enum maps its variants to a class once,
//! in `class()`; retry, HTTP status and condition reason are decided from the class alone.

use std::fmt;

/// What went wrong, by what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The network or the other side's server: refused, timed out, 5xx, cut short. Transient.
    Net,
    /// The other side asks for fewer requests (429). Transient, after the stated time.
    Rate,
    /// The local disk: full, read-only, failing. Transient.
    Disk,
    /// Credentials missing, refused or malformed.
    Auth,
    /// The other side says that there is no such thing (404).
    NotFound,
    /// The other side breaks its protocol.
    Proto,
    /// Bytes that do not hash to their name.
    Digest,
    /// A size over a bound, or not the one that was promised.
    Size,
    /// A manifest or index that cannot be used.
    Manifest,
    /// A layer that is not what it claims to be, or that is missing.
    Layer,
    /// A tar entry that must not be unpacked.
    Tar,
    /// A cap on expansion, entries, depth, time or memory.
    Limit,
    /// The object's own spec is wrong; only a new spec helps.
    Spec,
    /// A rule of this installation forbids it; only another spec or another rule helps.
    Policy,
    /// The client's request is wrong.
    Client,
}

/// When trying again makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Soon, with backoff and jitter.
    Backoff,
    /// At the next interval, or when the spec changes.
    Interval,
    /// Only when the spec or the rule changes.
    Never,
}

impl Class {
    /// The lower-case word used in logs, metrics and error bodies.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Rate => "rate",
            Self::Disk => "disk",
            Self::Auth => "auth",
            Self::NotFound => "notfound",
            Self::Proto => "proto",
            Self::Digest => "digest",
            Self::Size => "size",
            Self::Manifest => "manifest",
            Self::Layer => "layer",
            Self::Tar => "tar",
            Self::Limit => "limit",
            Self::Spec => "spec",
            Self::Policy => "policy",
            Self::Client => "client",
        }
    }

    /// When trying again makes sense.
    pub const fn retry(self) -> Retry {
        match self {
            Self::Net | Self::Rate | Self::Disk => Retry::Backoff,
            Self::Spec | Self::Policy | Self::Client => Retry::Never,
            _ => Retry::Interval,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// An error with everything that caused it: `a: b: c`. Where a cause is quoted by what it caused already, it is not said twice.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
