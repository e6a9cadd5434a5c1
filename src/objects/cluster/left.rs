//! Objects that were Larder's and are not any more: GitRepositories whose URL is not `oci://` now.
//!
//! What Larder wrote of one is taken back: nobody else may do so where no source-controller of Flux runs, and a deletion
//! would wait for good. Flux's finalizer has the same name, so an object counts only as long as its status names an
//! artifact that Larder made; it is left alone afterwards.

use std::{sync::Arc, time::Duration};

use super::{Inner, known::Known, write};
use crate::{
    class::chain,
    objects::{Artifact, Key},
};

/// How soon what failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Whether an object is not Larder's, and yet has what Larder wrote.
pub fn is_left(known: &Known) -> bool {
    !known.object.is_ours() && known.status.artifact.as_ref().is_some_and(Artifact::is_larders)
}

/// Keeps in mind an object that is not Larder's, where there is something to take back.
pub fn note(inner: &Inner, known: &Known) {
    if !inner.settings.only_read && is_left(known) {
        inner.state().left.insert(known.object.key.clone());
        inner.leaving.notify_one();
    }
}

/// Takes back what was written, wherever this replica leads, until it is aborted.
pub async fn take_back(inner: Arc<Inner>) {
    let mut leadership = inner.leadership.clone();
    loop {
        let mut failed = false;
        if inner.is_leading() {
            // What is seen of one from now on counts anew.
            let keys = std::mem::take(&mut inner.state().left);
            for key in keys {
                failed |= !has_taken_back(&inner, &key).await;
            }
        }
        tokio::select! {
            () = inner.leaving.notified() => {}
            Ok(()) = leadership.changed() => {}
            () = tokio::time::sleep(AGAIN), if failed => {}
        }
    }
}

async fn has_taken_back(inner: &Inner, key: &Key) -> bool {
    match write::take_back(inner, key).await {
        Ok(false) => true,
        Ok(true) => {
            tracing::info!(%key, "its URL is not oci:// any more: what was written of it is taken back");
            true
        }
        Err(error) => {
            tracing::warn!(%key, error = chain(&error), "what was written of it cannot be taken back yet; again soon");
            inner.state().left.insert(key.clone());
            false
        }
    }
}
