//! Places among the turns for one registry.
//!
//! So many turns at once ask a registry, and no more: but those that hang must not keep the others from asking
//! (hardening.md, row O9). A turn that has waited [`PATIENCE`] gives its place back and goes on elsewhere, where there is
//! room for many: waiting costs a connection. A group whose last turn failed after waiting takes none of those places the
//! next time but one of few set apart. What has waited for its probe needs a place again before it pulls.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// How long a turn may keep others from asking: registries answer within it, or are about to fail.
const PATIENCE: Duration = Duration::from_secs(2);
/// For each place, how many may wait for an answer elsewhere.
const WAITING: usize = 8;
/// Of how many places one is set apart for those that hung.
const SET_APART: usize = 4;

/// The places for one registry.
pub struct Lanes {
    turns: Arc<Semaphore>,
    hung: Arc<Semaphore>,
    probing: Arc<Semaphore>,
    pulling: Arc<Semaphore>,
    patience: Duration,
}

/// What a turn does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Waits for an answer of a few bytes.
    Probe,
    /// Waits for layers, perhaps large ones: no more of these at once than there are places.
    Pull,
}

/// A place, until it is dropped.
#[must_use]
pub struct Place {
    lanes: Arc<Lanes>,
    hung: bool,
    permit: OwnedSemaphorePermit,
    waited: bool,
    /// Given to others meanwhile.
    away: bool,
}

impl Lanes {
    /// For `places` turns at once.
    pub fn new(places: usize) -> Self {
        let of = |places: usize| Arc::new(Semaphore::new(places.max(1)));
        Self {
            turns: of(places),
            hung: of(places / SET_APART),
            probing: of(places * WAITING),
            pulling: of(places),
            patience: PATIENCE,
        }
    }

    /// A place for a turn; `hung` is what [`Place::has_waited`] said of the last one, if that failed.
    pub async fn enter(self: &Arc<Self>, hung: bool) -> Place {
        let permit = acquire(if hung { &self.hung } else { &self.turns }).await;
        Place { lanes: Arc::clone(self), hung, permit, waited: false, away: false }
    }
}

impl Place {
    /// Does `work` here, or elsewhere from when it has taken too long; from here if it is elsewhere already.
    pub async fn hold<T>(&mut self, what: Work, work: impl Future<Output = T>) -> T {
        if self.away {
            self.permit = acquire(if self.hung { &self.lanes.hung } else { &self.lanes.turns }).await;
            self.away = false;
        }
        let mut work = pin!(work);
        if let Ok(done) = timeout(self.lanes.patience, work.as_mut()).await {
            return done;
        }
        self.waited = true;
        let elsewhere = match what {
            Work::Probe => &self.lanes.probing,
            Work::Pull => &self.lanes.pulling,
        };
        tokio::select! {
            biased;
            done = &mut work => return done,
            permit = acquire(elsewhere) => {
                self.permit = permit;
                self.away = true;
            }
        }
        work.await
    }

    /// Whether any of its work took too long.
    pub fn has_waited(&self) -> bool {
        self.waited
    }
}

async fn acquire(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    match Arc::clone(semaphore).acquire_owned().await {
        Ok(permit) => permit,
        Err(_) => unreachable!("the semaphore is never closed"),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::{
        task::JoinSet,
        time::{Instant, sleep},
    };

    use super::*;

    const PATIENT: Duration = Duration::from_millis(200);

    fn lanes(places: usize) -> Arc<Lanes> {
        Arc::new(Lanes { patience: PATIENT, ..Lanes::new(places) })
    }

    /// Begins so many turns that hang.
    async fn hang(lanes: &Arc<Lanes>, turns: usize, hung: bool, what: Work, all: &mut JoinSet<()>) {
        for _ in 0..turns {
            let lanes = Arc::clone(lanes);
            all.spawn(async move { lanes.enter(hung).await.hold(what, pending()).await });
        }
        sleep(PATIENT / 10).await;
    }

    #[tokio::test]
    async fn turns_that_hang_give_their_places_back_in_a_moment() {
        let (lanes, mut all) = (lanes(16), JoinSet::new());
        hang(&lanes, 40, false, Work::Probe, &mut all).await;
        let place = timeout(3 * PATIENT, lanes.enter(false)).await;
        assert!(!place.unwrap().has_waited());
    }

    #[tokio::test]
    async fn those_known_to_hang_keep_nobody_else_waiting() {
        let (lanes, mut all) = (lanes(16), JoinSet::new());
        hang(&lanes, 1000, true, Work::Probe, &mut all).await;
        for _ in 0..10 {
            timeout(PATIENT / 2, async { lanes.enter(false).await.hold(Work::Probe, async {}).await }).await.unwrap();
            sleep(PATIENT / 2).await;
        }
    }

    #[tokio::test]
    async fn long_pulls_are_twice_as_many_as_places_and_no_more() {
        let (lanes, mut all) = (lanes(2), JoinSet::new());
        hang(&lanes, 3, false, Work::Pull, &mut all).await;
        sleep(3 * PATIENT).await;
        assert!(timeout(PATIENT, lanes.enter(false)).await.is_ok(), "three pull, one place is left");
        hang(&lanes, 1, false, Work::Pull, &mut all).await;
        assert!(timeout(3 * PATIENT, lanes.enter(false)).await.is_err());
    }

    #[tokio::test]
    async fn who_has_waited_for_its_probe_pulls_in_a_place_of_its_own() {
        let (lanes, mut all) = (lanes(1), JoinSet::new());
        let mut slow = lanes.enter(false).await;
        slow.hold(Work::Probe, sleep(2 * PATIENT)).await;
        assert!(slow.has_waited());
        hang(&lanes, 1, false, Work::Probe, &mut all).await;
        let begun = Instant::now();
        slow.hold(Work::Pull, async {}).await;
        assert!(begun.elapsed() > PATIENT / 2, "another has its place: {:?}", begun.elapsed());
    }
}
