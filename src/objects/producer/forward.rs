//! What is heard: the backend's changes, the ExternalArtifacts of the cluster, and whose turn it is to write.

use std::{collections::HashSet, pin::pin, sync::Arc};

use futures_util::TryStreamExt as _;
use kube::{
    Api,
    api::{ApiResource, DynamicObject},
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::sync::mpsc;

use super::{
    Inner, Listed, NO_KIND,
    wanted::{KINDS, Live, MANAGED_BY, Name, Source},
};
use crate::{
    class::chain,
    objects::{Change, Key, Object, Status, external_artifact},
};

/// Passes the backend's changes on, and keeps what counts of them.
pub async fn changes(inner: Arc<Inner>, mut from: mpsc::Receiver<Change>, to: mpsc::Sender<Change>) {
    let mut listed = inner.listed.subscribe();
    while let Some(change) = from.recv().await {
        // What was kept is served in any case. Of what the cluster tells counts, from the first object on, what another
        // replica published.
        if inner.settings.owned && !matches!(change, Change::Recalled(_) | Change::Away) {
            let _ = listed.wait_for(|listed| *listed != Listed::NotYet).await;
        }
        let change = match change {
            Change::Applied(object, status) if KINDS.contains(&object.key.kind) => {
                let status = applied(&inner, &object, *status);
                Change::Applied(object, Box::new(status))
            }
            Change::Deleted(key) => {
                inner.state().sources.remove(&key);
                Change::Deleted(key)
            }
            change => change,
        };
        if to.send(change).await.is_err() {
            return;
        }
    }
}

fn applied(inner: &Inner, object: &Object, mut status: Status) -> Status {
    let key = &object.key;
    let mut state = inner.state();
    let uid = object.metadata.uid.clone();
    let going = object.metadata.deletion_timestamp.is_some();
    if let Some(known) = state.sources.get(key).filter(|source| source.uid == uid) {
        // What was taken over or kept since the backend told of the object.
        status = known.status.clone();
    } else {
        if let Some(digest) = status.artifact.as_ref().map(|a| a.digest) {
            state.assumed.insert(key.clone(), digest);
        }
        let published = if inner.settings.owned { state.artifact_of(key) } else { None };
        if let Some(published) = published.filter(|p| status.artifact.as_ref().is_none_or(|a| a.digest != p.digest)) {
            // Another replica's, or this one's before it lost its disk.
            status = Status { artifact: Some(published), ..Status::default() };
        }
    }
    state.sources.insert(key.clone(), Source { uid, going, status: status.clone() });
    status
}

/// Follows the ExternalArtifacts that Larders made, until it is aborted.
pub async fn live(inner: Arc<Inner>, client: kube::Client, to: mpsc::Sender<Change>) {
    let resource = ApiResource {
        group: "source.toolkit.fluxcd.io".into(),
        version: "v1".into(),
        api_version: "source.toolkit.fluxcd.io/v1".into(),
        kind: external_artifact::KIND.into(),
        plural: external_artifact::PLURAL.into(),
    };
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let config = watcher::Config::default().labels(&format!("{}={}", MANAGED_BY.0, MANAGED_BY.1));
    let mut stream = pin!(watcher(api, config).default_backoff());
    let mut failing = false;
    let mut seen: HashSet<Name> = HashSet::new();
    loop {
        let event = match stream.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                let hint = refused(&inner, &error);
                // A watch that ends because it is old is no failure.
                let old = matches!(&error, watcher::Error::WatchError(status) if status.code == 410);
                if !old && !std::mem::replace(&mut failing, true) {
                    tracing::warn!(error = chain(&error), "cannot watch ExternalArtifacts{hint}; it is tried again");
                }
                continue;
            }
        };
        if std::mem::take(&mut failing) {
            tracing::info!("watching ExternalArtifacts again");
        }
        match event {
            watcher::Event::Init => {
                seen.clear();
                inner.state().gone.clear();
            }
            watcher::Event::InitApply(object) => seen.extend(there(&inner, object, &to).await),
            watcher::Event::InitDone => {
                inner.state().live.retain(|name, _| seen.contains(name));
                seen = HashSet::new();
                inner.listed.send_replace(Listed::All);
                inner.look_at_all();
            }
            watcher::Event::Apply(object) => _ = there(&inner, object, &to).await,
            watcher::Event::Delete(object) => {
                let (name, live) = Live::read(object);
                let mut state = inner.state();
                // Only this very one: it may have been made anew since.
                if state.live.get(&name).is_some_and(|known| known.uid == live.uid) {
                    state.live.remove(&name);
                }
                state.gone.insert(name.clone(), live.uid.clone());
                let wanting = state.wanting(&name);
                drop(state);
                wanting.into_iter().chain(live.source()).for_each(|key| inner.look_at(key));
            }
        }
    }
}

/// Tells what it means that they cannot be listed; for people, what to do.
fn refused(inner: &Inner, error: &watcher::Error) -> String {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status,
        _ => return String::new(),
    };
    let now = match status.code {
        // There are none.
        404 => Listed::All,
        401 | 403 => Listed::Refused(format!("cannot publish ExternalArtifacts: {}", status.message)),
        _ => return String::new(),
    };
    let hint = if now == Listed::All { format!(": {NO_KIND}") } else { String::new() };
    inner.listed.send_if_modified(|listed| {
        let changed = *listed == Listed::NotYet && *listed != now;
        if changed {
            *listed = now;
        }
        changed
    });
    hint
}

/// Keeps an ExternalArtifact in mind, and has looked at whether it is as it should be.
async fn there(inner: &Arc<Inner>, object: DynamicObject, to: &mpsc::Sender<Change>) -> Option<Name> {
    let (name, live) = Live::read(object);
    let (source, artifact) = (live.source(), live.status.artifact.clone());
    inner.note(name.clone(), live);
    if let Some(key) = source.as_ref().filter(|_| !inner.is_leading()) {
        observed(inner, key, artifact, to).await;
    }
    if *inner.listed.borrow() == Listed::All {
        let wanting = inner.state().wanting(&name);
        wanting.into_iter().chain(source).for_each(|key| inner.look_at(key));
    }
    Some(name)
}

/// Takes over what the replica that leads has published.
async fn observed(inner: &Inner, key: &Key, artifact: Option<super::Artifact>, to: &mpsc::Sender<Change>) {
    let Some(artifact) = artifact else { return };
    let status = {
        let mut state = inner.state();
        let Some(source) = state.sources.get_mut(key) else { return };
        if source.status.artifact.as_ref().is_some_and(|a| a.digest == artifact.digest && a.url == artifact.url) {
            return;
        }
        source.status = Status { artifact: Some(artifact), ..Status::default() };
        source.status.clone()
    };
    if let Err(error) = inner.backend.patch_status(key, &status).await {
        tracing::warn!(%key, %error, "cannot keep what another replica published");
    }
    let _ = to.send(Change::Observed(key.clone(), Box::new(status))).await;
}

/// Looks at everything when this replica begins to lead, and when it may write at all.
pub async fn turns(inner: Arc<Inner>) {
    let mut leadership = inner.backend.leadership();
    let mut listed = inner.listed.subscribe();
    loop {
        let changed = tokio::select! {
            changed = leadership.changed() => changed.is_ok(),
            Ok(()) = listed.changed() => true,
        };
        if !changed {
            // Who writes does not change here; what can be listed may.
            if listed.changed().await.is_err() {
                return;
            }
        }
        inner.look_at_all();
    }
}
