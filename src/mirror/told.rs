//! What was logged of an upstream a moment ago: whoever asks again and again does not fill the log.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::clock::lasts;

/// For how many milliseconds the same is not logged again.
const QUIET: u64 = 5 * 60 * 1000;
/// How many reasons are told in that time; they may have numbers in them.
const MOST: usize = 16;

/// The reasons that were told, and when.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<HashMap<String, u64>>);

impl Told {
    /// Whether `reason` is to be told now.
    pub fn is_news(&self, reason: &str, now: u64) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(reason).is_some_and(|when| lasts(*when, QUIET, now)) {
            return false;
        }
        told.retain(|_, when| lasts(*when, QUIET, now));
        if told.len() >= MOST {
            return false;
        }
        told.insert(reason.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_in_a_while_and_not_too_many_of_them() {
        let told = Told::default();
        let now = 10_000_000;
        assert!(told.is_news("a", now) && told.is_news("b", now + 1));
        assert!(!told.is_news("a", now + QUIET - 1) && !told.is_news("b", now + QUIET));
        assert!(told.is_news("a", now + QUIET), "again");
        assert!(told.is_news("b", now - 3_600_000), "the clock was set back");
        let many = (0..100).filter(|n| told.is_news(&n.to_string(), now)).count();
        assert!(many <= MOST, "{many}");
        assert!(told.is_news("c", now + 2 * QUIET));
    }
}
