//! Objects that name the same thing the same way, and so share one schedule, one probe and one pull.
//!
//! A group is one way to a registry, one repository and one reference. Its task probes once per shortest interval among the
//! members and hands what it found to each of them. A requested pass probes afresh; requests that come while that probe still
//! waits to be sent share it. A group without members ends.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::{
    Shared,
    backoff::{Backoff, NEVER, jittered, periodic},
    failure::Failure,
    lanes::Work,
    source,
};
use crate::{
    class::{Class, Retry},
    objects::Key,
    pull::{PullError, Target, Wanted, Way},
    registry::Budget,
};

/// What the members have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// How, as whom, and which repository.
    pub way: Arc<Way>,
    /// Which manifest.
    pub wanted: Wanted,
}

/// One member's demands on the schedule.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// `spec.interval`.
    pub interval: Duration,
    /// `spec.timeout`.
    pub timeout: Duration,
}

/// What a probe found.
pub type Outcome = Result<Target, Arc<PullError>>;

/// A group of objects.
pub struct Group {
    route: Route,
    inner: Mutex<Inner>,
    wake: Notify,
}

#[derive(Default)]
struct Inner {
    members: BTreeMap<Key, Member>,
    /// Somebody asked for a probe that has not been sent yet.
    requested: bool,
    waiters: Vec<(Key, oneshot::Sender<()>)>,
    /// The last probe's result, for members that join between probes.
    last: Option<Target>,
    ended: bool,
}

struct Member {
    demand: Demand,
    /// New or changed, and not judged since.
    pending: bool,
}

/// All groups by what their members have in common.
#[derive(Default)]
pub struct Groups(Mutex<HashMap<Route, Arc<Group>>>);

impl Groups {
    /// Makes `key` a member of the group for `route`, with a pass to come; `requested` asks for a fresh probe.
    pub fn join(&self, shared: &Arc<Shared>, route: &Route, key: &Key, demand: Demand, requested: bool) -> Arc<Group> {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = groups.get(route) {
            let mut inner = group.lock();
            if !inner.ended {
                inner.members.insert(key.clone(), Member { demand, pending: true });
                inner.requested |= requested;
                drop(inner);
                group.wake.notify_one();
                return Arc::clone(group);
            }
        }
        let members = BTreeMap::from([(key.clone(), Member { demand, pending: true })]);
        let group = Arc::new(Group {
            route: route.clone(),
            inner: Mutex::new(Inner { members, requested, ..Inner::default() }),
            wake: Notify::new(),
        });
        groups.insert(route.clone(), Arc::clone(&group));
        tokio::spawn(run(Arc::clone(shared), Arc::clone(&group)));
        group
    }

    fn remove(&self, group: &Arc<Group>) {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if groups.get(&group.route).is_some_and(|g| Arc::ptr_eq(g, group)) {
            groups.remove(&group.route);
        }
    }
}

impl Group {
    /// Takes `key` out; its waiters are told by the end of their channel.
    pub fn leave(&self, key: &Key) {
        let mut inner = self.lock();
        inner.members.remove(key);
        inner.waiters.retain(|(k, _)| k != key);
        drop(inner);
        self.wake.notify_one();
    }

    /// Asks for a fresh probe and a pass over `key`; the receiver hears of its end.
    pub fn request(&self, key: &Key) -> oneshot::Receiver<()> {
        let (send, receive) = oneshot::channel();
        let mut inner = self.lock();
        inner.requested = true;
        inner.waiters.push((key.clone(), send));
        drop(inner);
        self.wake.notify_one();
        receive
    }

    /// A pass over `key`, with what the last probe found.
    pub fn wake_for(&self, key: &Key) {
        if let Some(member) = self.lock().members.get_mut(key) {
            member.pending = true;
        }
        self.wake.notify_one();
    }

    /// What the members have in common.
    pub fn route(&self) -> &Route {
        &self.route
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One turn's work, taken from the group at the moment its probe is sent.
struct Turn {
    requested: bool,
    waiters: Vec<(Key, oneshot::Sender<()>)>,
    members: Vec<(Key, bool)>,
    timeout: Duration,
    last: Option<Target>,
}

/// The group's task, which lives as long as it has members. A thousand of them wait at any time: what a probe or a look at
/// references needs is allocated while it lasts (with both inside the task a group took 37 KB).
async fn run(shared: Arc<Shared>, group: Arc<Group>) {
    shared.synced().await;
    let mut backoff = Backoff::default();
    let mut due = kept(&shared, &group);
    // Whether the last turn kept others from asking the registry, and for nothing.
    let mut hung = false;
    loop {
        {
            let mut inner = group.lock();
            if inner.members.is_empty() {
                inner.ended = true;
                drop(inner);
                shared.probes.forget(shared.puller.grants(), &group.route);
                return shared.groups.remove(&group);
            }
        }
        let idle = {
            let inner = group.lock();
            !inner.requested && !inner.members.values().any(|m| m.pending)
        };
        if idle {
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = group.wake.notified() => {
                    if Instant::now() < due {
                        continue;
                    }
                }
                () = shared.shutdown.wait() => return,
            }
        }
        let is_due = Instant::now() >= due;
        if is_due && !shared.backend.references().are_told() {
            Box::pin(refresh(&shared, &group)).await;
        }
        let mut place = shared.lanes(&group.route.way.endpoint.registry).enter(hung).await;
        let is_due = is_due || Instant::now() >= due;
        let Some(turn) = take_turn(&group) else { continue };
        let started = Instant::now();
        let fresh = is_due || turn.requested || turn.last.is_none();
        // What is asked for after the probe is sent, that probe has not answered.
        let token = |key: &Key| fresh.then(|| requested_at(&shared, key)).flatten();
        let members: Vec<(Key, Option<String>)> = turn
            .members
            .into_iter()
            .filter(|(_, pending)| fresh || *pending)
            .map(|(key, _)| (key.clone(), token(&key)))
            .collect();
        let outcome = match (fresh, turn.last) {
            (false, Some(target)) => Ok(target),
            _ => place.hold(Work::Probe, Box::pin(probe(&shared, &group, turn.requested, turn.timeout))).await,
        };
        let deadline = started + turn.timeout;
        let pass = |budget: Budget| {
            let budget = budget.requested(turn.requested);
            source::pass_over(&shared, &group.route, members, &outcome, budget, started)
        };
        let failure = match &outcome {
            Ok(_) => {
                // The time that it waits for a place again is not the registry's.
                let left = deadline.saturating_duration_since(Instant::now());
                place.hold(Work::Pull, async { Box::pin(pass(Budget::within(left))).await }).await
            }
            Err(_) => Box::pin(pass(Budget::until(deadline.into_std()))).await,
        };
        hung = place.has_waited() && failure.as_deref().is_some_and(|failure| failure.class() == Class::Net);
        drop(place);
        let last = outcome.ok().map(Target::without_bytes);
        if fresh {
            shared.probes.note(shared.puller.grants(), &group.route, last.as_ref());
        }
        group.lock().last = last;
        let next = started + next(&group, failure.as_deref(), &mut backoff);
        // A turn without a probe brings the next one nearer, where an interval became shorter, and never puts it off.
        due = if fresh { next } else { due.min(next) };
        for (_, waiter) in turn.waiters {
            let _ = waiter.send(());
        }
    }
}

/// Looks up again what the members refer to, where nobody tells of its changes; who goes another way now leaves the group.
async fn refresh(shared: &Arc<Shared>, group: &Arc<Group>) {
    let members: Vec<Key> = group.lock().members.keys().cloned().collect();
    for key in members {
        let refers = {
            let state = shared.lock();
            state.objects.get(&key).and_then(|e| e.desired.as_ref()).is_some_and(|d| d.refers)
        };
        if refers {
            shared.admit(&key).await;
        }
    }
}

/// When the first probe is due: at once, unless the process before this one probed within the interval; the members get
/// what it found.
fn kept(shared: &Shared, group: &Group) -> Instant {
    let now = Instant::now();
    let Some((target, age)) = shared.probes.take(shared.puller.grants(), &group.route) else { return now };
    let rest = interval(group).unwrap_or_default().saturating_sub(age);
    if rest.is_zero() {
        return now;
    }
    group.lock().last = Some(target);
    now + jittered(rest)
}

/// The word by which somebody asked for a pass over an object.
fn requested_at(shared: &Shared, key: &Key) -> Option<String> {
    shared.lock().objects.get(key).and_then(|e| e.object.requested_at().map(str::to_owned))
}

fn take_turn(group: &Group) -> Option<Turn> {
    let mut inner = group.lock();
    if inner.members.is_empty() {
        return None;
    }
    let members =
        inner.members.iter_mut().map(|(key, m)| (key.clone(), std::mem::replace(&mut m.pending, false))).collect();
    Some(Turn {
        requested: std::mem::take(&mut inner.requested),
        waiters: std::mem::take(&mut inner.waiters),
        members,
        timeout: inner.members.values().map(|m| m.demand.timeout).max().unwrap_or_default(),
        last: inner.last.clone(),
    })
}

async fn probe(shared: &Shared, group: &Group, requested: bool, timeout: Duration) -> Outcome {
    let Route { way, wanted } = &group.route;
    // The group's lock is let go first: others take it while they hold the one of all objects.
    let members: Vec<Key> = group.lock().members.keys().cloned().collect();
    let held = shared.holds_something_for(&members);
    let budget = Budget::until((Instant::now() + timeout).into_std()).requested(requested);
    shared.puller.resolve(way, wanted, held, budget).await.map_err(Arc::new)
}

/// How long until the next probe.
fn next(group: &Group, failure: Option<&Failure>, backoff: &mut Backoff) -> Duration {
    let interval = interval(group);
    match failure {
        Some(failure) if failure.class().retry() == Retry::Backoff => {
            let wait = backoff.next_delay();
            failure.retry_after().map_or(wait, |stated| stated.max(wait))
        }
        // A signature may follow in a moment. Others on the same tag are not kept waiting for it.
        Some(failure) if failure.is_verification() => backoff.next_delay().min(interval.map_or(NEVER, jittered)),
        // No interval brings the next one.
        Some(failure) if interval.is_none() && !failure.is_stalled() => backoff.next_delay(),
        _ => {
            backoff.reset();
            interval.map_or(NEVER, jittered)
        }
    }
}

/// The shortest among the members, of those that have one.
fn interval(group: &Group) -> Option<Duration> {
    group.lock().members.values().filter_map(|m| periodic(m.demand.interval)).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How large a future is, without making one.
    fn size_of_future<A, B, F: Future>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_group_that_waits_is_small() {
        let size = size_of_future(run);
        assert!(
            size <= 4096,
            "{size} bytes, of which a thousand references have one each: box what a turn alone needs"
        );
    }
}
