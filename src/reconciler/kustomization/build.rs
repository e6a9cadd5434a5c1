//! What a Kustomization's source holds, rendered: to a file where there is no cluster.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use super::{Blocked, Wanted, timeout, turn::Turn};
use crate::{
    apply::{
        object::Id,
        render::{self, Rendered},
    },
    artifact::build::{self, Caps, Ignoring},
    blocking,
    digest::Digest,
    objects::{InventoryEntry, Key, Spec},
    reconciler::{Entry, Shared},
    store::Store,
};

/// Where a Kustomization is rendered to.
pub fn rendered_file(root: &Path, key: &Key) -> PathBuf {
    root.join("rendered").join(&*key.namespace).join(format!("{}.yaml", key.name))
}

/// Renders to the file; what is in it.
pub async fn to_file(shared: &Arc<Shared>, wanted: &Wanted<'_>) -> Result<Vec<InventoryEntry>, Blocked> {
    let (of, key) = (Arc::clone(shared), wanted.object.key.clone());
    let file = rendered_file(of.puller.store().root(), &key);
    let gate = move || of.lock().objects.get(&key).map(|entry| Arc::clone(&entry.gate));
    let begun = gate();
    let rendered = build(shared, wanted, move |request| {
        let lives = || matches!((&begun, gate()), (Some(begun), Some(now)) if Arc::ptr_eq(begun, &now));
        let rendered = render::render(request).map_err(Blocked::Render)?;
        if !(request.given_up)() && lives() {
            write(&file, &rendered).map_err(Blocked::Write)?;
            // Deleted at this moment: whoever removed the file may have come before it.
            if gate().is_none() {
                let _ = std::fs::remove_file(&file);
            }
        }
        Ok(rendered)
    });
    Ok(rendered.await?.0.inventory)
}

/// Renders to objects, in apply order; and the room that they have.
pub async fn to_objects(shared: &Arc<Shared>, wanted: &Wanted<'_>) -> Result<(Vec<(Id, Value)>, Turn), Blocked> {
    build(shared, wanted, |request| render::objects(request).map_err(Blocked::Render)).await
}

/// Says when it goes that nobody waits any more.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Unpacks the artifact and has `render` look at it when it is its turn, for at most `spec.timeout` without the wait for that.
/// What goes on after it, or after the Kustomization is gone, is given up as soon as it asks.
async fn build<T: Send + 'static>(
    shared: &Arc<Shared>,
    wanted: &Wanted<'_>,
    render: impl FnOnce(&render::Request<'_>) -> Result<T, Blocked> + Send + 'static,
) -> Result<(T, Turn), Blocked> {
    let (of, variables) = (Arc::clone(wanted.object), wanted.variables.cloned());
    let rendering = shared.config.rendering.clone();
    let (store, digest) = (shared.puller.store().clone(), wanted.artifact.digest);
    let scratch = store.root().join("spool");
    let (limit, begun) = (timeout(wanted.spec), Instant::now());
    let late = |_| Blocked::Timeout(limit);

    let unpacked = async {
        let folder = shared.folders.get(&store, digest, shared.config.caps).await?;
        let (root, path) = (folder.path().to_path_buf(), wanted.spec.path.clone().unwrap_or_default());
        Ok::<_, Blocked>((folder, blocking::io(move || render::input(&root, &path)).await))
    };
    let (folder, size) = tokio::time::timeout(limit, unpacked).await.map_err(late)??;
    let left = limit.saturating_sub(begun.elapsed());
    let turn = shared.turns.take(size).await;

    let over = Arc::new(AtomicBool::new(false));
    let _waiting = Waiting(Arc::clone(&over));
    let all = Arc::clone(shared);
    let work = turn.render(move || {
        let Spec::Kustomization(spec) = &of.spec else { unreachable!("only Kustomizations come here") };
        let here = |entry: &Entry| {
            entry.object.metadata.uid == of.metadata.uid && entry.object.metadata.deletion_timestamp.is_none()
        };
        let given_up = || over.load(Ordering::SeqCst) || !all.lock().objects.get(&of.key).is_some_and(here);
        if given_up() {
            // Nobody waits for it any more, and others wait for the thread.
            return Err(Blocked::Timeout(limit));
        }
        let request = render::Request {
            name: &of.key.name,
            namespace: &of.key.namespace,
            spec,
            root: folder.path().to_path_buf(),
            variables: variables.as_ref(),
            scratch,
            program: rendering.program,
            search: rendering.search,
            launcher: rendering.launcher,
            given_up: &given_up,
        };
        render(&request)
    });
    tokio::time::timeout(left, work).await.map_err(late)?
}

type Slot = Arc<tokio::sync::Mutex<Weak<TempDir>>>;

/// Artifacts that are unpacked to be rendered. Those who render the same one at a time share its folder, which goes with the
/// last of them: a new artifact wakes all Kustomizations of its source at once, and to write all of its files for each of them
/// is more work than everything else.
#[derive(Default)]
pub struct Folders(Mutex<HashMap<Digest, Slot>>);

impl Folders {
    async fn get(&self, store: &Store, digest: Digest, caps: Caps) -> Result<Arc<TempDir>, Blocked> {
        let slot = {
            let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let in_use = |slot: &Slot| {
                Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|folder| folder.strong_count() > 0)
            };
            slots.retain(|_, slot| in_use(slot));
            Arc::clone(slots.entry(digest).or_default())
        };
        let mut shared = slot.lock().await;
        if let Some(folder) = shared.upgrade() {
            return Ok(folder);
        }
        let store = store.clone();
        let folder = Arc::new(blocking::io(move || unpack(&store, &digest, caps)).await?);
        *shared = Arc::downgrade(&folder);
        Ok(folder)
    }
}

/// The artifact's contents in a folder, which goes with the value. Out of the verified blob: the published tree is for others
/// to read, and nobody hashes it first.
fn unpack(store: &Store, digest: &Digest, caps: Caps) -> Result<TempDir, Blocked> {
    let gone = || Blocked::Waiting { reason: "ArtifactFailed", message: format!("artifact {digest} is not held now") };
    let blob = store.get(digest).map_err(|e| Blocked::Artifact(e.into()))?.ok_or_else(gone)?;
    let unpacked = build::unpack(&[blob], false, Ignoring::Nothing, caps, Some(store));
    let unpacked = unpacked.map_err(|e| Blocked::Artifact(e.of(&[*digest])))?;
    let folder = tempfile::Builder::new().prefix("render-").tempdir_in(store.root().join("spool"));
    let folder = folder.map_err(Blocked::Write)?;
    let opened = cap_std::fs::Dir::open_ambient_dir(folder.path(), cap_std::ambient_authority());
    unpacked.tree.write_plain(&opened.map_err(Blocked::Write)?).map_err(|e| Blocked::Artifact(e.into()))?;
    Ok(folder)
}

/// Replaces the file unless it says the same.
fn write(path: &Path, rendered: &Rendered) -> std::io::Result<()> {
    if std::fs::read(path).is_ok_and(|now| now == rendered.yaml.as_bytes()) {
        return Ok(());
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    std::io::Write::write_all(&mut file, rendered.yaml.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    std::fs::File::open(directory)?.sync_all()
}
