//! What an upstream said no to, for a short while, so that one client's mistake does not ask it a hundred times.
//!
//! In memory only, and bounded. A no is remembered for the one who was told so: another may be told something else.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::{Miss, clock::lasts, readers::Hash};

/// How many things are remembered; past it everything is forgotten, which costs questions only.
const MAX: usize = 16_384;
/// How many callers are remembered for one thing.
const MAX_CALLERS: usize = 64;

#[derive(Clone)]
struct No {
    caller: Hash,
    when: u64,
    span: u64,
    miss: Miss,
    /// What it was said of, where that is something that this led to.
    of: Option<Hash>,
}

/// What was said no to; keys are hashes of what was asked for.
#[derive(Default)]
pub(super) struct Negatives(Mutex<HashMap<Hash, Vec<No>>>);

impl Negatives {
    /// What the caller was told a moment ago.
    pub fn get(&self, what: &Hash, caller: &Hash, now: u64) -> Option<Miss> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let list = all.get_mut(what)?;
        list.retain(|no| lasts(no.when, no.span, now));
        let no = list.iter().find(|no| no.caller == *caller).cloned();
        if list.is_empty() {
            all.remove(what);
        }
        // What it was said of may have been forgotten by itself.
        no.filter(|no| no.of.is_none_or(|of| all.contains_key(&of))).map(|no| no.miss)
    }

    /// Remembers what the caller was told, for `span` milliseconds.
    pub fn put(&self, what: Hash, caller: Hash, miss: &Miss, span: u64, now: u64) {
        if span == 0 {
            return;
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        insert(&mut all, what, No { caller, when: now, span, miss: miss.clone(), of: None }, now);
    }

    /// What the caller was told of `of` counts for `what` too, which led there, and for no longer.
    pub fn extend(&self, of: &Hash, what: Hash, caller: &Hash, now: u64) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let no = all.get(of).and_then(|list| list.iter().find(|no| no.caller == *caller).cloned());
        if let Some(no) = no {
            insert(&mut all, what, No { of: Some(*of), ..no }, now);
        }
    }

    /// Forgets a no, whoever was told, and what it was said of; whether there was one.
    pub fn forget(&self, what: &Hash) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(list) = all.remove(what) else { return false };
        for of in list.into_iter().filter_map(|no| no.of) {
            all.remove(&of);
        }
        true
    }
}

fn insert(all: &mut HashMap<Hash, Vec<No>>, what: Hash, no: No, now: u64) {
    if all.len() >= MAX && !all.contains_key(&what) {
        all.clear();
    }
    let list = all.entry(what).or_default();
    list.retain(|other| other.caller != no.caller && lasts(other.when, other.span, now));
    if list.len() >= MAX_CALLERS {
        list.remove(0);
    }
    list.push(no);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_no_is_for_its_time_and_its_caller() {
        let negatives = Negatives::default();
        let (what, other, me, you) = ([1; 16], [2; 16], [3; 16], [4; 16]);
        negatives.put(what, me, &Miss::not_found("no"), 10, 100);
        for (what, caller, now, known) in [
            (&what, &me, 100, true),
            (&what, &me, 109, true),
            (&what, &you, 100, false),
            (&other, &me, 100, false),
            (&what, &me, 110, false),
        ] {
            assert_eq!(negatives.get(what, caller, now).is_some(), known, "{now}");
        }
        assert!(!negatives.forget(&what), "it was past its time, and gone");
        negatives.put(what, me, &Miss::not_found("no"), 10, 200);
        negatives.put(what, you, &Miss::not_found("no"), 10, 200);
        assert!(negatives.get(&what, &me, 200).is_some());
        assert!(negatives.forget(&what));
        assert!(negatives.get(&what, &you, 200).is_none());
        negatives.put(what, me, &Miss::not_found("no"), 0, 200);
        assert!(negatives.get(&what, &me, 200).is_none(), "a TTL of nothing remembers nothing");
    }

    #[test]
    fn a_no_counts_for_what_led_there_as_long_as_it_lasts_and_both_are_forgotten_at_once() {
        let negatives = Negatives::default();
        let (tag, digest, me, you) = ([1; 16], [2; 16], [3; 16], [4; 16]);
        negatives.extend(&digest, tag, &me, 100);
        assert!(negatives.get(&tag, &me, 100).is_none(), "nothing was said of it");
        negatives.put(digest, me, &Miss::not_found("no"), 10, 100);
        negatives.extend(&digest, tag, &you, 105);
        negatives.extend(&digest, tag, &me, 105);
        assert!(negatives.get(&tag, &me, 109).is_some());
        assert!(negatives.get(&tag, &you, 109).is_none(), "another was told");
        assert!(negatives.forget(&tag));
        assert!(negatives.get(&digest, &me, 109).is_none());
        negatives.put(digest, me, &Miss::not_found("no"), 10, 100);
        negatives.extend(&digest, tag, &me, 105);
        assert!(negatives.forget(&digest));
        assert!(negatives.get(&tag, &me, 109).is_none());
        negatives.put(digest, me, &Miss::not_found("no"), 10, 100);
        negatives.extend(&digest, tag, &me, 105);
        assert!(negatives.get(&tag, &me, 110).is_none(), "and no longer");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let negatives = Negatives::default();
        for n in 0..2 * MAX as u64 {
            let mut what = [0; 16];
            what[..8].copy_from_slice(&n.to_le_bytes());
            negatives.put(what, [0; 16], &Miss::not_found("no"), 10, 0);
        }
        for n in 0..2 * MAX_CALLERS as u8 {
            negatives.put([9; 16], [n; 16], &Miss::not_found("no"), 10, 0);
        }
        let all = negatives.0.lock().unwrap();
        assert!(all.len() <= MAX, "{}", all.len());
        assert_eq!(all[&[9; 16]].len(), MAX_CALLERS);
    }
}
