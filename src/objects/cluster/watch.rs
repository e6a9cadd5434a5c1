//! Follows one kind: a list, then a watch, and what became of each object is told.

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use futures_util::TryStreamExt as _;
use kube::{
    Api,
    api::{ApiResource, DynamicObject},
    runtime::watcher,
};

use super::{Inner, check, known, left};
use crate::{
    class::chain,
    metrics,
    objects::{Change, DocumentError, Key, Kind, Metadata},
};

/// How soon a watch that failed is tried again, at first and at the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// Follows a kind's objects until it is aborted.
pub async fn follow(inner: Arc<Inner>, kind: Kind) {
    let resource = ApiResource {
        group: kind.group().into(),
        version: "v1".into(),
        api_version: format!("{}/v1", kind.group()),
        kind: kind.name().into(),
        plural: kind.other_names()[0].into(),
    };
    let api: Api<DynamicObject> = Api::all_with(inner.client.clone(), &resource);
    let mut config = watcher::Config::default();
    if let Some(selector) = &inner.settings.selector {
        config = config.labels(selector);
    }
    let mut stream = pin!(watcher(api, config));
    let mut delay = RETRY.0;
    let mut told = false;
    let mut failing = false;
    // Those seen in a list that is under way: what is not in it is gone.
    let mut listed: HashSet<Key> = HashSet::new();
    loop {
        match stream.try_next().await {
            Ok(Some(event)) => {
                // A list that begins says nothing yet of whether it will come.
                if !matches!(event, watcher::Event::Init) {
                    delay = RETRY.0;
                    if std::mem::take(&mut failing) {
                        tracing::info!(%kind, "watching again");
                    }
                }
                match event {
                    watcher::Event::Init => listed.clear(),
                    watcher::Event::InitApply(object) => {
                        let key = key_of(kind, &object);
                        applied(&inner, kind, object).await;
                        listed.insert(key);
                    }
                    watcher::Event::InitDone => {
                        for key in gone(&inner, kind, &listed) {
                            deleted(&inner, &key).await;
                        }
                        listed = HashSet::new();
                        if !std::mem::replace(&mut told, true) {
                            inner.told().await;
                        }
                    }
                    watcher::Event::Apply(object) => applied(&inner, kind, object).await,
                    watcher::Event::Delete(object) => deleted(&inner, &key_of(kind, &object)).await,
                }
            }
            Ok(None) => return,
            Err(error) => {
                // A watch that ends because it is old is no failure.
                let is_old = matches!(&error, watcher::Error::WatchError(status) if status.code == 410);
                if !is_old {
                    metrics::watch_failed(kind.name());
                }
                if !is_old && !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%kind, error = chain(&error), "cannot watch; what is published stays, and it is tried again");
                }
                // A kind that is not installed, or not allowed, holds up no other.
                if let Some(code) = refused(&error).filter(|_| !told) {
                    if code == 404 && check::is_absent(&inner.calls, kind).await {
                        // What was recalled of it went with it.
                        for key in gone(&inner, kind, &HashSet::new()) {
                            deleted(&inner, &key).await;
                        }
                    }
                    told = true;
                    inner.told().await;
                }
                if !is_old {
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(RETRY.1);
                }
            }
        }
    }
}

/// 403 or 404, where that is what the API server says to a list or watch.
fn refused(error: &watcher::Error) -> Option<u16> {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status,
        _ => return None,
    };
    matches!(status.code, 403 | 404).then_some(status.code)
}

fn key_of(kind: Kind, object: &DynamicObject) -> Key {
    let (namespace, name) = (&object.metadata.namespace, &object.metadata.name);
    Key::new(kind, namespace.as_deref().unwrap_or_default(), name.as_deref().unwrap_or_default())
}

fn gone(inner: &Inner, kind: Kind, listed: &HashSet<Key>) -> Vec<Key> {
    let mut state = inner.state();
    state.errors.retain(|key, _| key.kind != kind || listed.contains(key));
    state.objects.keys().filter(|key| key.kind == kind && !listed.contains(*key)).cloned().collect()
}

/// What counts of the metadata: not who holds the object back.
fn differs(a: &Metadata, b: &Metadata) -> bool {
    let without = |m: &Metadata| Metadata { finalizers: Vec::new(), ..m.clone() };
    a.generation != b.generation || without(a) != without(b)
}

async fn applied(inner: &Inner, kind: Kind, object: DynamicObject) {
    let known = match known::read(kind, object) {
        Ok(known) => known,
        Err((key, error)) => {
            let place = key.to_string();
            let new = DocumentError { place, error };
            let mut state = inner.state();
            if state.errors.get(&key) != Some(&new) {
                tracing::error!(%key, "{}; what was published before stays", new.error);
                state.errors.insert(key, new);
            }
            return;
        }
    };
    let key = known.object.key.clone();
    if !known.object.is_ours() {
        deleted(inner, &key).await;
        return left::note(inner, &known);
    }
    let changes = {
        let mut state = inner.state();
        state.errors.remove(&key);
        state.left.remove(&key);
        let (object, status) = (Arc::clone(&known.object), known.status.clone());
        let whole = || Change::Applied(Arc::clone(&object), Box::new(status.clone()));
        let changes = match state.objects.get(&key) {
            None => vec![whole()],
            Some(before) if before.is_newer_than(&known.version) => return,
            Some(before) if before.object.metadata.uid != object.metadata.uid => {
                vec![Change::Deleted(key.clone()), whole()]
            }
            Some(before) if differs(&before.object.metadata, &object.metadata) => vec![whole()],
            Some(before) if before.status != status => vec![Change::Observed(key.clone(), Box::new(status.clone()))],
            Some(_) => Vec::new(),
        };
        drop(object);
        state.objects.insert(key.clone(), known);
        changes
    };
    if !changes.is_empty() {
        inner.keep(&key);
    }
    for change in changes {
        inner.tell(change).await;
    }
}

async fn deleted(inner: &Inner, key: &Key) {
    let known = {
        let mut state = inner.state();
        state.errors.remove(key);
        state.left.remove(key);
        state.objects.remove(key)
    };
    if known.is_some() {
        inner.keep(key);
        inner.tell(Change::Deleted(key.clone())).await;
    }
}
