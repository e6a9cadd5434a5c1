//! What an upstream says to those who come to its door, `GET /v2/` (distribution-spec 1.1, end-1).
//!
//! skopeo, podman and Docker learn there, and nowhere else, how to show who they are. So where one upstream is meant, and
//! only in pass-through, its own answer is passed on: its challenge to whoever shows nothing, for a token comes from its
//! token service, not from here; a welcome to whom it welcomes. While it cannot be asked, the last challenge is good:
//! whoever had been let in is let in for a while, and has to be asked to show who they are.
//!
//! In memory only: after a restart it is asked again, and while it is down everybody is welcome at the door.

use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderValue, StatusCode};

use super::{
    Caller, IMPATIENCE, Inner, Mirror, Miss, Mode, Upstream,
    clock::lasts,
    reader::{GRANTED_FOR, Reader, Who, credentials},
    readers::{Hash, Mark},
    repository::Mirrored,
    silence::is_timeout,
};
use crate::{
    class::{Class, chain},
    registry::{Budget, Credentials},
};

/// How an upstream asks who it is; no challenge where it welcomes everybody.
#[derive(Default)]
pub(super) struct Door(Mutex<Option<Said>>);

#[derive(Clone)]
struct Said {
    when: u64,
    challenges: Arc<[HeaderValue]>,
}

impl Door {
    fn last(&self) -> Option<Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, when: u64, challenges: Arc<[HeaderValue]>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Said { when, challenges });
    }
}

impl Mirror {
    /// Whether the caller is welcome at the upstream's door; else [`Miss::Unauthorized`].
    pub async fn greet(&self, upstream: &Arc<Upstream>, caller: Caller<'_>) -> Result<(), Miss> {
        let inner = &self.0;
        // Nobody is asked for a credential where it would travel in the clear, or is not looked at.
        let Some(site) = inner.sites.get(upstream.number()) else { return Ok(()) };
        if upstream.mode() != Mode::PassThrough || !caller.private {
            return Ok(());
        }
        let now = inner.clock.now();
        let shown = caller.authorization.filter(|value| credentials(value).is_some());
        let who = shown.map_or(&[][..], HeaderValue::as_bytes);
        let id = inner.readers.hash(&[b"greeting", upstream.name().as_bytes(), who]);
        let known = match shown {
            None => {
                site.door.last().filter(|said| lasts(said.when, GRANTED_FOR, now)).map(|said| wants(&said.challenges))
            }
            Some(_) if inner.readers.get(&id).is_some_and(|mark| mark.is_fresh(now)) => Some(Ok(())),
            Some(_) => inner.negatives.get(&id, &id, now).map(Err),
        };
        if let Some(known) = known {
            return known;
        }
        if upstream.health.is_failing() && !upstream.health.may_probe(now) {
            return inner.greet_offline(upstream, shown.is_some());
        }
        let (asked, upstream, shown) = (Arc::clone(inner), Arc::clone(upstream), shown.cloned());
        let work = || async move { asked.ask_door(&upstream, shown, id).await };
        let (result, _) = inner.greetings.run(id, work).await;
        result.unwrap_or_else(|| Err(Miss::here("the question to the upstream failed", Class::Limit)))
    }
}

impl Inner {
    async fn ask_door(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        shown: Option<HeaderValue>,
        id: Hash,
    ) -> Result<(), Miss> {
        let silence = &upstream.health.silence;
        if silence.enter(self.clock.now()).is_err() {
            return self.greet_offline(upstream, shown.is_some());
        }
        let endpoint = upstream.endpoint(Credentials::Anonymous);
        let asked = self.puller.greeting(&endpoint, shown.as_ref(), Budget::within(IMPATIENCE)).await;
        let now = self.clock.now();
        let failure = match asked {
            Ok(said) if !said.status.is_server_error() && said.status != StatusCode::REQUEST_TIMEOUT => {
                upstream.health.worked();
                let refused = matches!(said.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
                let door = &self.sites[upstream.number()].door;
                let mut challenges: Arc<[HeaderValue]> = if refused { said.challenges.into() } else { Arc::default() };
                if shown.is_none() {
                    door.note(now, Arc::clone(&challenges));
                    return wants(&challenges);
                }
                if !refused {
                    let mark = Mark { when: now, until: now.saturating_add(GRANTED_FOR) };
                    self.mark(id, mark.of_repository(false)).await;
                    return Ok(());
                }
                if challenges.is_empty()
                    && let Some(said) = door.last()
                {
                    challenges = said.challenges;
                }
                let miss = Miss::unauthorized(format!("upstream said {}", said.status.as_u16()), &challenges);
                self.negatives.put(id, id, &miss, upstream.negative_ttl(), now);
                return Err(miss);
            }
            Ok(said) => {
                silence.end();
                format!("it said {}", said.status.as_u16())
            }
            Err(error) => {
                if is_timeout(&error) {
                    silence.begin(now);
                }
                chain(&error)
            }
        };
        if !upstream.health.is_failing() {
            tracing::warn!(upstream = upstream.name(), error = failure, "the upstream fails at GET /v2/");
        }
        upstream.health.failed(now);
        self.greet_offline(upstream, shown.is_some())
    }

    /// While the upstream cannot be asked.
    fn greet_offline(&self, upstream: &Upstream, shown: bool) -> Result<(), Miss> {
        match self.sites[upstream.number()].door.last() {
            Some(said) if !shown => wants(&said.challenges),
            // What a credential may read is settled with each repository.
            _ => Ok(()),
        }
    }

    /// In pass-through, the failure of an upstream that had asked who it is, to somebody who shows nothing: whoever had
    /// been let in may be let in still, and clients show who they are only when they are asked.
    pub(super) fn who_asks(&self, repository: &Mirrored, reader: &Reader, miss: Miss) -> Miss {
        let upstream = &repository.upstream;
        let asks = upstream.mode() == Mode::PassThrough && matches!(reader.who, Who::Everybody);
        if !asks || !matches!(miss.class(), Class::Net | Class::Rate) {
            return miss;
        }
        let door = || self.sites.get(upstream.number())?.door.last().map(|said| said.challenges);
        match repository.challenge().or_else(door) {
            Some(challenges) if !challenges.is_empty() => Miss::unauthorized(miss.to_string(), &challenges),
            _ => miss,
        }
    }
}

/// What a challenge means for somebody who shows nothing.
fn wants(challenges: &Arc<[HeaderValue]>) -> Result<(), Miss> {
    match challenges.is_empty() {
        true => Ok(()),
        false => Err(Miss::unauthorized("the upstream wants to know who asks", challenges)),
    }
}
