//! Lists: tags and referrers, as the upstream gives them, kept for a tag's time, and over a restart for as long as they may
//! be shown while the upstream fails. A list is good for no longer than its reader's right.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    Ask, CacheStatus, IMPATIENCE, Inner, Mirror, Miss, PATIENCE,
    clock::{lasts, millis},
    once::Once,
    reader::{GRANTED_FOR, Reader},
    readers::{Hash, Mark},
    repository::Mirrored,
    shelf::{Kept, KeptList, Shelf},
};
use crate::{
    blocking,
    class::Class,
    digest::Digest,
    oci::Tag,
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
    fn kept(&self, when: u64) -> Option<Kept> {
        let (next, list) = match self {
            Self::Tags(page) => {
                (&page.next, KeptList::Tags(page.tags.iter().map(|tag| tag.as_str().to_owned()).collect()))
            }
            Self::Referrers(page) => {
                let index = std::str::from_utf8(&page.index).ok()?.to_owned();
                (&page.next, KeptList::Referrers { index, filters: page.filters_applied.clone() })
            }
        };
        Some(Kept { when, next: next.clone(), list })
    }

    /// The list that was kept, if it is of this kind.
    fn of(kept: Kept, which: Which<'_>) -> Option<(u64, Self)> {
        let Kept { when, next, list } = kept;
        let list = match (list, which) {
            (KeptList::Tags(tags), Which::Tags) => {
                let tags: Result<Vec<Tag>, _> = tags.iter().map(|tag| tag.parse()).collect();
                Self::Tags(Arc::new(Page { tags: tags.ok()?, next }))
            }
            (KeptList::Referrers { index, filters }, Which::Referrers(_)) => {
                Self::Referrers(Arc::new(Referrers { index: index.into(), filters_applied: filters, next }))
            }
            _ => return None,
        };
        Some((when, list))
    }

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
pub(super) struct Lists {
    kept: Mutex<InMemory>,
    shelf: Shelf,
    asking: Once<Hash, Result<List, Miss>>,
}

#[derive(Default)]
struct InMemory {
    lists: HashMap<Hash, (u64, List)>,
    bytes: usize,
}

impl Lists {
    /// Those of the data directory `root`.
    pub(super) fn of(root: &Path) -> Self {
        Self { kept: Mutex::default(), shelf: Shelf::of(root), asking: Once::default() }
    }

    fn get(&self, key: &Hash) -> Option<(u64, List)> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).lists.get(key).cloned()
    }

    fn put(&self, key: Hash, when: u64, list: &List) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + list.bytes() > MAX_BYTES {
            *kept = InMemory::default();
        }
        kept.bytes += list.bytes();
        if let Some((_, old)) = kept.lists.insert(key, (when, list.clone())) {
            kept.bytes -= old.bytes();
        }
    }

    fn remove(&self, key: &Hash) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, old)) = kept.lists.remove(key) {
            kept.bytes -= old.bytes();
        }
    }

    /// Forgets all lists; blocks on the disk.
    pub(super) fn clear(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = InMemory::default();
        if let Err(error) = self.shelf.clear() {
            tracing::warn!(%error, "lists of tags that were to be forgotten may be shown again while their upstream is down");
        }
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
        let ttl = upstream.list_ttl().min(GRANTED_FOR);
        // What was shown before its reader was refused is not shown again.
        let refused = inner.readers.get(&reader.refused(&inner.readers));
        let kept = inner.kept_list(&key, which).await;
        let kept = kept.filter(|(when, _)| refused.is_none_or(|refused| *when > refused.when));
        if let Some((when, list)) = &kept
            && lasts(*when, ttl, now)
        {
            return Ok((list.clone(), CacheStatus::Hit));
        }
        let what = inner.what(&repository, b"list", &name);
        if let Some(miss) = inner.negatives.get(&what, &reader.id, now) {
            return Err(miss);
        }
        let stale = kept.filter(|(when, _)| {
            let mark = Mark { when: *when, until: when.saturating_add(GRANTED_FOR) };
            lasts(*when, ttl.saturating_add(upstream.stale_if_error()), now) && reader.may_read_offline(mark, now)
        });
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
            asked.ask_list(asking, patience).await
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
    /// The list as it was last, from memory or else from the disk.
    async fn kept_list(self: &Arc<Self>, key: &Hash, which: Which<'_>) -> Option<(u64, List)> {
        if let Some(kept) = self.lists.get(key) {
            return Some(kept);
        }
        let (inner, key) = (Arc::clone(self), *key);
        let read = blocking::io(move || inner.lists.shelf.get(&key, &inner.readers)).await?;
        let (when, list) = List::of(read, which)?;
        self.lists.put(key, when, &list);
        Some((when, list))
    }

    async fn ask_list(self: &Arc<Self>, asking: Asking, patience: Duration) -> Result<List, Miss> {
        let Asking { repository, reader, subject, query, what, key } = asking;
        let way = self.way(&repository, &reader).await?;
        let budget = Budget::within(patience);
        let question = async {
            match subject {
                None => self.puller.tags_page(&way, &query, budget).await.map(|page| List::Tags(Arc::new(page))),
                Some(subject) => {
                    let page = self.puller.referrers(&way, &subject, &query, budget).await;
                    page.map(|page| List::Referrers(Arc::new(page)))
                }
            }
        };
        match self.put(&repository.upstream, patience, question).await? {
            Ok(list) => {
                repository.upstream.health.worked();
                let now = self.clock.now();
                self.lists.put(key, now, &list);
                if let Some(kept) = list.kept(now) {
                    let inner = Arc::clone(self);
                    let put = blocking::io(move || inner.lists.shelf.put(&key, &kept, &inner.readers)).await;
                    if let Err(error) = put {
                        tracing::debug!(%error, "a list is not kept over a restart");
                    }
                }
                Ok(list)
            }
            Err(error) => {
                let miss = self.refused(&repository, &reader, what, false, &error).await;
                if !miss.is_failure() {
                    self.lists.remove(&key);
                    let inner = Arc::clone(self);
                    if let Err(error) = blocking::io(move || inner.lists.shelf.remove(&key)).await {
                        tracing::warn!(%error, "a list that is gone may be shown again while its upstream is down");
                    }
                }
                Err(miss)
            }
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
        let root = tempfile::tempdir().unwrap();
        let lists = Lists::of(root.path());
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
