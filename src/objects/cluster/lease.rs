//! Which replica writes: leader election by a Lease (`coordination.k8s.io/v1`), as client-go has it.
//!
//! The holder renews every [`RETRY`]; who could not for [`RENEW`] stops writing, well before the [`DURATION`] is over after
//! which another takes the Lease. Clocks are not compared: another's Lease has run out when it did not change for as long as
//! it says. A replica that loses it goes on serving, and stands again.

use std::time::{Duration, Instant};

use http::{Method, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Settings;
use crate::{
    class::chain,
    metrics,
    objects::{
        Leadership,
        api::{CallError, Calls, Identity, read, segment},
    },
};

/// How long a Lease is good.
const DURATION: Duration = Duration::from_secs(15);
/// How long its holder may fail to renew it.
const RENEW: Duration = Duration::from_secs(10);
/// How often it is looked at.
const RETRY: Duration = Duration::from_secs(2);
/// How long one look may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Where the holder's artifacts are.
const ARTIFACTS: &str = "larder.dev/artifacts";

/// One candidate.
pub struct Election {
    calls: Calls,
    collection: String,
    name: String,
    identity: String,
    replica: Option<String>,
    told: watch::Sender<Leadership>,
    stop: watch::Receiver<bool>,
    /// The Lease as it was last seen to change, and when.
    seen: Option<(Value, Instant)>,
    /// When it was last renewed here.
    renewed: Option<Instant>,
}

impl Election {
    /// A candidate that tells of its fortune.
    pub fn new(
        calls: Calls,
        settings: &Settings,
        told: watch::Sender<Leadership>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let mut name = "larder-leader-election".to_owned();
        if let Some(selector) = &settings.selector {
            // Each shard has a leader of its own.
            let hash = blake3::hash(selector.as_bytes()).to_hex();
            name.push_str(&format!("-{}", &hash[..8]));
        }
        Self {
            calls,
            collection: format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", segment(&settings.namespace)),
            name,
            identity: format!("{}_{:08x}", settings.identity, fastrand::u32(..)),
            replica: settings.replica.clone(),
            told,
            stop,
            seen: None,
            renewed: None,
        }
    }

    /// Stands until it is told to stop, and then gives the Lease back.
    pub async fn run(mut self) {
        let mut stop = self.stop.clone();
        tokio::select! {
            () = self.stand() => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        if self.is_leading() {
            self.tell(Leadership::Leaderless);
            match tokio::time::timeout(TIMEOUT, self.resign()).await {
                Ok(Ok(())) => tracing::info!("gave the Lease back"),
                _ => tracing::warn!("could not give the Lease back; another replica takes it when it has run out"),
            }
        }
    }

    async fn stand(&mut self) {
        let mut failing = false;
        loop {
            let began = Instant::now();
            match tokio::time::timeout(TIMEOUT, self.look()).await {
                Ok(Ok(())) => failing = false,
                Ok(Err(error)) if error.is_conflict() => {}
                Ok(Err(error)) => self.failed(&mut failing, &chain(&error)),
                Err(_) => self.failed(&mut failing, "no answer"),
            }
            if self.is_leading() && self.renewed.is_none_or(|at| at.elapsed() >= RENEW) {
                self.tell(Leadership::Leaderless);
                tracing::warn!("the Lease could not be renewed; another replica may lead now");
            }
            tokio::time::sleep(RETRY.saturating_sub(began.elapsed()).max(RETRY / 4)).await;
        }
    }

    fn failed(&self, failing: &mut bool, error: &str) {
        if !std::mem::replace(failing, true) {
            tracing::warn!(lease = %format_args!("{}/{}", self.collection, self.name), error, "cannot look at the Lease");
        }
    }

    fn is_leading(&self) -> bool {
        *self.told.borrow() == Leadership::Leading
    }

    fn tell(&self, leadership: Leadership) {
        metrics::leading(leadership == Leadership::Leading);
        self.told.send_if_modified(|told| {
            let changed = *told != leadership;
            *told = leadership;
            changed
        });
    }

    async fn look(&mut self) -> Result<(), CallError> {
        let asked = Instant::now();
        let path = format!("{}/{}", self.collection, self.name);
        let accept = [(header::ACCEPT, "application/json")];
        let found = match self.calls.call(&Method::GET, &path, &Identity::default(), &accept, &[]).await {
            Ok((_, body)) => Some(read::<Value>(&body)?),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        let Some(found) = found else {
            let lease = self.written(json!({"metadata": {"name": self.name}}), true);
            self.send(&Method::POST, &self.collection.clone(), &lease).await?;
            self.won(asked);
            return Ok(());
        };
        let holder = found["spec"]["holderIdentity"].as_str().unwrap_or_default();
        if holder == self.identity {
            let lease = self.written(found, false);
            self.send(&Method::PUT, &path, &lease).await?;
            self.won(asked);
            return Ok(());
        }
        if self.is_leading() {
            tracing::warn!(holder, "another replica took the Lease");
        }
        let good = found["spec"]["leaseDurationSeconds"].as_u64().map_or(DURATION, Duration::from_secs);
        let since = match &self.seen {
            Some((spec, since)) if *spec == found["spec"] => *since,
            _ => {
                self.seen = Some((found["spec"].clone(), asked));
                asked
            }
        };
        if !holder.is_empty() && since.elapsed() < good {
            let artifacts = found["metadata"]["annotations"][ARTIFACTS].as_str().map(str::to_owned);
            self.tell(Leadership::Following(artifacts));
            return Ok(());
        }
        let lease = self.written(found, true);
        self.send(&Method::PUT, &path, &lease).await?;
        self.won(asked);
        Ok(())
    }

    async fn resign(&self) -> Result<(), CallError> {
        let path = format!("{}/{}", self.collection, self.name);
        let accept = [(header::ACCEPT, "application/json")];
        let (_, body) = self.calls.call(&Method::GET, &path, &Identity::default(), &accept, &[]).await?;
        let mut lease: Value = read(&body)?;
        if lease["spec"]["holderIdentity"] != *self.identity {
            return Ok(());
        }
        lease["spec"]["holderIdentity"] = "".into();
        lease["spec"]["leaseDurationSeconds"] = 1.into();
        self.send(&Method::PUT, &path, &lease).await
    }

    fn won(&mut self, asked: Instant) {
        self.renewed = Some(asked);
        if !self.is_leading() {
            tracing::info!(identity = self.identity, "leading");
            self.tell(Leadership::Leading);
        }
    }

    /// The Lease with this candidate as its holder; `new` where it was not before.
    fn written(&self, mut lease: Value, new: bool) -> Value {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        lease["apiVersion"] = "coordination.k8s.io/v1".into();
        lease["kind"] = "Lease".into();
        let spec = &mut lease["spec"];
        if new {
            let transitions = spec["leaseTransitions"].as_u64().map_or(0, |n| n + 1);
            spec["leaseTransitions"] = transitions.into();
            spec["acquireTime"] = now.clone().into();
        }
        spec["holderIdentity"] = self.identity.clone().into();
        spec["leaseDurationSeconds"] = DURATION.as_secs().into();
        spec["renewTime"] = now.into();
        if let Some(replica) = &self.replica {
            lease["metadata"]["annotations"][ARTIFACTS] = replica.clone().into();
        } else if let Some(annotations) = lease["metadata"]["annotations"].as_object_mut() {
            annotations.remove(ARTIFACTS);
        }
        lease
    }

    async fn send(&self, method: &Method, path: &str, lease: &Value) -> Result<(), CallError> {
        let headers = [(header::ACCEPT, "application/json"), (header::CONTENT_TYPE, "application/json")];
        self.calls.call(method, path, &Identity::default(), &headers, lease.to_string().as_bytes()).await.map(drop)
    }
}
