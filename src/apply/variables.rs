//! What `spec.postBuild` gives names to, and which of it must not be shown.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use crate::secret::Secret;

/// A Secret's value that is shorter, in bytes, keeps nothing to itself, and would hide letters of any text.
const MIN_HIDDEN: usize = 4;
/// How much is remembered of what expressions made of Secrets' values, in bytes.
pub(super) const MAX_DERIVED: usize = 1 << 20;

/// What the variables are; never shown, since a part of them may come from Secrets.
#[derive(Clone, Default)]
pub struct Variables {
    values: BTreeMap<String, String>,
    /// Those of them that come from Secrets.
    secret: BTreeSet<String>,
    /// The values of Secrets, as they are and as Go quotes them.
    hidden: BTreeSet<String>,
    derived: Derived,
}

/// What expressions made of Secrets' values in the last rendering; clones share it.
#[derive(Clone, Default)]
pub struct Derived(Arc<Mutex<Made>>);

#[derive(Default)]
struct Made {
    hidden: BTreeSet<String>,
    bytes: usize,
    /// There was more.
    lost: bool,
}

/// The texts by which a value is known in a message: its lines, as they are and as Go quotes them.
fn forms(value: &str) -> impl Iterator<Item = String> {
    let lines = value.split('\n').map(str::trim).filter(|line| line.len() >= MIN_HIDDEN);
    lines.flat_map(|line| {
        let quoted = format!("{line:?}");
        [quoted[1..quoted.len() - 1].to_owned(), line.to_owned()]
    })
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Variables({})", self.values.len())
    }
}

impl Variables {
    /// None yet; what is made of the values of Secrets is remembered in `derived`.
    pub fn new(derived: &Derived) -> Self {
        Self { derived: derived.clone(), ..Self::default() }
    }

    /// Sets a variable; a later value wins. Line feeds are left out, as in Flux: a value stands within one line of YAML.
    pub fn set(&mut self, name: &str, value: &str) {
        self.values.insert(name.to_owned(), value.replace('\n', ""));
        self.secret.remove(name);
    }

    /// Sets a variable that comes from a Secret.
    pub fn set_secret(&mut self, name: &str, value: &Secret) {
        self.set(name, value.expose());
        self.secret.insert(name.to_owned());
        self.hidden.extend(forms(value.expose()));
        if let Some(value) = self.values.get(name).filter(|value| value.len() >= MIN_HIDDEN) {
            self.hidden.insert(value.clone());
        }
    }

    /// `text` without the values of Secrets, and without what the last rendering made of them: who refuses an object quotes
    /// what stands in it.
    pub fn hide(&self, text: &str) -> String {
        let made = self.derived.0.lock().unwrap_or_else(PoisonError::into_inner);
        if made.lost {
            return "the message is not shown: expressions made more of the values of Secrets than is remembered"
                .into();
        }
        // The longest first: one may be a part of another.
        let mut hidden: Vec<&String> = self.hidden.iter().chain(&made.hidden).collect();
        hidden.sort_by_key(|value| std::cmp::Reverse(value.len()));
        hidden.into_iter().fold(text.to_owned(), |text, value| text.replace(value.as_str(), "[redacted]"))
    }

    /// A rendering begins: of those before it nothing can be in a message any more.
    pub fn begin(&self) {
        *self.derived.0.lock().unwrap_or_else(PoisonError::into_inner) = Made::default();
    }

    /// Remembers what an expression made of a variable, if that comes from a Secret.
    pub(super) fn made(&self, name: &str, result: &str) {
        if !self.secret.contains(name) {
            return;
        }
        let mut made = self.derived.0.lock().unwrap_or_else(PoisonError::into_inner);
        if made.bytes.saturating_add(result.len()) > MAX_DERIVED {
            made.lost = true;
            return;
        }
        for form in forms(result) {
            let size = form.len();
            if made.hidden.insert(form) {
                made.bytes += size;
            }
        }
    }

    /// A value.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Names and values in their order, for a fingerprint.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The first name that no expression could have.
    pub fn bad_name(&self) -> Option<&str> {
        let fits = |name: &str| {
            let mut bytes = name.bytes();
            bytes.next().is_some_and(|b| b == b'_' || b.is_ascii_alphabetic())
                && bytes.all(|b| b == b'_' || b.is_ascii_alphanumeric())
        };
        self.values.keys().map(String::as_str).find(|name| !fits(name))
    }
}
