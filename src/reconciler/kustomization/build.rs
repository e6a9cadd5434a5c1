//! What a Kustomization's source holds, rendered: to a file where there is no cluster.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::Value;

use super::{Blocked, Wanted, timeout};
use crate::{
    apply::{
        object::Id,
        render::{self, Rendered},
    },
    artifact::build::{self, Caps, Ignoring},
    blocking,
    digest::Digest,
    objects::{InventoryEntry, Key, Spec},
    reconciler::Shared,
    store::Store,
};

/// Where a Kustomization is rendered to.
pub fn rendered_file(root: &Path, key: &Key) -> PathBuf {
    root.join("rendered").join(&*key.namespace).join(format!("{}.yaml", key.name))
}

/// Renders to the file; what is in it.
pub async fn to_file(shared: &Arc<Shared>, wanted: &Wanted<'_>) -> Result<Vec<InventoryEntry>, Blocked> {
    let file = rendered_file(shared.puller.store().root(), &wanted.object.key);
    let rendered = build(shared, wanted, move |request, in_time| {
        let rendered = render::render(request).map_err(Blocked::Render)?;
        if in_time() {
            write(&file, &rendered).map_err(Blocked::Write)?;
        }
        Ok(rendered)
    });
    Ok(rendered.await?.inventory)
}

/// Renders to objects, in apply order.
pub async fn to_objects(shared: &Arc<Shared>, wanted: &Wanted<'_>) -> Result<Vec<(Id, Value)>, Blocked> {
    build(shared, wanted, |request, _| render::objects(request).map_err(Blocked::Render)).await
}

/// Unpacks the artifact and has `render` look at it, for at most `spec.timeout`; `render` can ask whether that is over.
async fn build<T: Send + 'static>(
    shared: &Arc<Shared>,
    wanted: &Wanted<'_>,
    render: impl FnOnce(&render::Request<'_>, &dyn Fn() -> bool) -> Result<T, Blocked> + Send + 'static,
) -> Result<T, Blocked> {
    let (of, variables) = (Arc::clone(wanted.object), wanted.variables.clone());
    let rendering = shared.config.rendering.clone();
    let (store, digest, caps) = (shared.puller.store().clone(), wanted.artifact.digest, shared.config.caps);
    let (limit, late) = (timeout(wanted.spec), Arc::new(AtomicBool::new(false)));
    let too_late = Arc::clone(&late);
    let work = blocking::io(move || {
        let Spec::Kustomization(spec) = &of.spec else { unreachable!("only Kustomizations come here") };
        // Out of the verified blob: the published tree is for others to read, and nobody hashes it first.
        let folder = unpack(&store, &digest, caps)?;
        let request = render::Request {
            name: &of.key.name,
            namespace: &of.key.namespace,
            spec,
            root: folder.path().to_path_buf(),
            variables: variables.as_ref(),
            scratch: store.root().join("spool"),
            program: rendering.program,
            search: rendering.search,
            launcher: rendering.launcher,
        };
        render(&request, &|| !too_late.load(Ordering::SeqCst))
    });
    tokio::time::timeout(limit, work).await.map_err(|_| {
        late.store(true, Ordering::SeqCst);
        Blocked::Timeout(limit)
    })?
}

/// The artifact's contents in a folder of their own, which goes with the value.
fn unpack(store: &Store, digest: &Digest, caps: Caps) -> Result<tempfile::TempDir, Blocked> {
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
