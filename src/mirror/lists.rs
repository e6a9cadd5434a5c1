//! Lists: tags and referrers, as the upstream gives them, kept for a tag's time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    Ask, CacheStatus, IMPATIENCE, Inner, Mirror, Miss, PATIENCE,
    clock::{lasts, millis},
    once::Once,
    reader::Reader,
    readers::Hash,
    repository::Mirrored,
};
use crate::{
    class::Class,
    digest::Digest,
    pull::PullError,
    registry::{Budget, Page, Referrers},
};

/// How many bytes of lists are kept; past it all go.
const MAX_BYTES: usize = 8 << 20;

/// A page of tags.
#[derive(Clone, Debug)]
pub struct TagsAnswer {
    /// As the upstream gave it.
    pub page: Arc<Page>,
    /// How it came.
    pub status: CacheStatus,
}

/// A page of referrers.
#[derive(Clone, Debug)]
pub struct ReferrersAnswer {
    /// As the upstream gave it.
    pub page: Arc<Referrers>,
    /// How it came.
    pub status: CacheStatus,
}

#[derive(Clone)]
enum List {
    Tags(Arc<Page>),
    Referrers(Arc<Referrers>),
}

impl List {
    fn bytes(&self) -> usize {
        128 + match self {
            Self::Tags(page) => page.tags.iter().map(|tag| tag.as_str().len() + 32).sum::<usize>(),
            Self::Referrers(page) => page.index.len(),
        }
    }
}

/// Which list.
#[derive(Clone, Copy)]
enum Which<'a> {
    Tags,
    Referrers(&'a Digest),
}

/// Lists as they were, by reader and query, with the time at which they were so.
#[derive(Default)]
pub(super) struct Lists {
    kept: Mutex<Kept>,
    asking: Once<Hash, Result<List, Miss>>,
}

#[derive(Default)]
struct Kept {
    lists: HashMap<Hash, (u64, List)>,
    bytes: usize,
}

impl Lists {
    fn get(&self, key: &Hash) -> Option<(u64, List)> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).lists.get(key).cloned()
    }

    fn put(&self, key: Hash, when: u64, list: &List) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + list.bytes() > MAX_BYTES {
            *kept = Kept::default();
        }
        kept.bytes += list.bytes();
        if let Some((_, old)) = kept.lists.insert(key, (when, list.clone())) {
            kept.bytes -= old.bytes();
        }
    }

    /// Forgets all lists.
    pub(super) fn clear(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Kept::default();
    }
}

impl Mirror {
    /// A page of tags; `query` as the client wrote it, without `ns`.
    pub async fn tags(&self, ask: &Ask<'_>, query: &str) -> Result<TagsAnswer, Miss> {
        match self.list(ask, Which::Tags, query).await? {
            (List::Tags(page), status) => Ok(TagsAnswer { page, status }),
            (List::Referrers(_), _) => Err(Miss::here("a list of another kind", Class::Limit)),
        }
    }

    /// A page of what refers to a manifest; `query` as the client wrote it, without `ns`.
    pub async fn referrers(&self, ask: &Ask<'_>, subject: &Digest, query: &str) -> Result<ReferrersAnswer, Miss> {
        match self.list(ask, Which::Referrers(subject), query).await? {
            (List::Referrers(page), status) => Ok(ReferrersAnswer { page, status }),
            (List::Tags(_), _) => Err(Miss::here("a list of another kind", Class::Limit)),
        }
    }

    async fn list(&self, ask: &Ask<'_>, which: Which<'_>, query: &str) -> Result<(List, CacheStatus), Miss> {
        let inner = &self.0;
        let (repository, reader) = inner.enter(ask).await?;
        let upstream = &repository.upstream;
        let now = inner.clock.now();
        let name = match which {
            Which::Tags => String::from("tags"),
            Which::Referrers(subject) => subject.to_string(),
        };
        let key = inner.readers.hash(&[b"list", &reader.id, name.as_bytes(), query.as_bytes()]);
        let ttl = upstream.list_ttl();
        let kept = inner.lists.get(&key);
        if let Some((when, list)) = &kept
            && lasts(*when, ttl, now)
        {
            return Ok((list.clone(), CacheStatus::Hit));
        }
        let what = inner.what(&repository, b"list", &name);
        if let Some(miss) = inner.negatives.get(&what, &reader.id, now) {
            return Err(miss);
        }
        let stale = kept.filter(|(when, _)| lasts(*when, ttl.saturating_add(upstream.stale_if_error()), now));
        let overdue = |when: u64| (now.saturating_sub(when.saturating_add(ttl)) / 1000).max(1);
        if let Some((when, list)) = &stale
            && upstream.health.is_failing()
            && !upstream.health.may_probe(now)
        {
            return Ok((list.clone(), CacheStatus::HitStale(overdue(*when))));
        }
        let patience = if stale.is_some() { IMPATIENCE } else { PATIENCE };
        let subject = match which {
            Which::Tags => None,
            Which::Referrers(subject) => Some(*subject),
        };
        let (asked, query) = (Arc::clone(inner), query.to_string());
        let work = || async move {
            let asking = Asking { repository, reader, subject, query, what, key };
            asked.ask_list(asking, Budget::within(patience)).await
        };
        let (result, began) = inner.lists.asking.run(key, work).await;
        match result.unwrap_or_else(|| Err(Miss::here("the question to the upstream failed", Class::Limit))) {
            Ok(list) => Ok((list, if began { CacheStatus::Stored } else { CacheStatus::Collapsed })),
            Err(miss) => match stale {
                Some((_, list)) if miss.is_failure() => Ok((list, miss.as_stale())),
                _ => Err(miss),
            },
        }
    }
}

struct Asking {
    repository: Arc<Mirrored>,
    reader: Reader,
    subject: Option<Digest>,
    query: String,
    what: Hash,
    key: Hash,
}

impl Inner {
    async fn ask_list(self: &Arc<Self>, asking: Asking, budget: Budget) -> Result<List, Miss> {
        let Asking { repository, reader, subject, query, what, key } = asking;
        let way = self.way(&repository, &reader).await?;
        let list: Result<List, PullError> = match subject {
            None => self.puller.tags_page(&way, &query, budget).await.map(|page| List::Tags(Arc::new(page))),
            Some(subject) => {
                let page = self.puller.referrers(&way, &subject, &query, budget).await;
                page.map(|page| List::Referrers(Arc::new(page)))
            }
        };
        match list {
            Ok(list) => {
                repository.upstream.health.worked();
                self.lists.put(key, self.clock.now(), &list);
                Ok(list)
            }
            Err(error) => Err(self.refused(&repository, &reader, what, false, &error).await),
        }
    }
}

impl super::Upstream {
    /// For how many milliseconds a list is good: as long as a tag that no pattern names.
    fn list_ttl(&self) -> u64 {
        millis(self.default_tag_ttl())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(length: usize) -> List {
        let index = bytes::Bytes::from(vec![b' '; length]);
        List::Referrers(Arc::new(Referrers { index, filters_applied: None, next: None }))
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let lists = Lists::default();
        for n in 0..=255u8 {
            lists.put([n; 16], n.into(), &list(100 << 10));
            lists.put([n; 16], n.into(), &list(90 << 10));
        }
        let kept = lists.kept.lock().unwrap();
        assert!(kept.bytes <= MAX_BYTES && kept.lists.len() < 100, "{} {}", kept.bytes, kept.lists.len());
        assert_eq!(kept.bytes, kept.lists.values().map(|(_, list)| list.bytes()).sum::<usize>());
        drop(kept);
        assert_eq!(lists.get(&[255; 16]).map(|(when, _)| when), Some(255));
        lists.clear();
        assert!(lists.get(&[255; 16]).is_none());
    }
}
