//! An image of eight layers, made by `image.sh`: one thread and two, beside `umoci unpack` and containerd's.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use larder::{
    artifact::build::{Caps, Ignoring, unpack},
    digest::Digest,
    oci::{Document, ImageConfig, ImageManifest},
    store::{Blob, Durability, Store},
    unpack::{
        data::{Budget, Limits},
        entries::Allowance,
        overlay::open_all,
    },
};
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};

use crate::{
    Options,
    containerd::Containerd,
    programs::{DockerRegistry, find, larder, run as run_program},
    support::folder,
    table::{Ratio, Table, Target, Unit, timed},
};

pub fn run(options: &Options, table: &mut Table) {
    let Some(layout) = layout(table) else { return };
    let folder = folder();
    let image = Image::open(&layout, &folder.join("store"));
    threads(options, table, &folder, &image);
    peers(options, table, &folder, &layout, &image);
    pull(options, table, &folder, &layout);
}

/// The image as an OCI layout, tagged `latest`; it is made once and kept. `None`, and said, where it cannot be made.
pub fn layout(table: &mut Table) -> Option<PathBuf> {
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image-8");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/image.sh");
    if let Err(why) = run_program(Command::new("sh").arg(script).arg(&made)) {
        table.skipped("the image of eight layers", &why);
        return None;
    }
    let said = std::fs::read_to_string(made.join("complete")).unwrap_or_default();
    let (bytes, files) = said.trim().split_once(' ').unwrap_or_default();
    table.note_once(format!("the image of eight layers has {bytes} bytes as tars, {files} files"));
    Some(made.join("layout"))
}

/// `skopeo copy` from or to a registry on loopback.
pub fn skopeo(from: &str, to: &str) -> Result<(), String> {
    let mut command = Command::new("skopeo");
    command.args(["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", "-q"]);
    run_program(command.arg(from).arg(to))
}

struct Image {
    store: Store,
    layers: Vec<Blob>,
    diff_ids: Vec<Digest>,
}

impl Image {
    fn open(layout: &Path, root: &Path) -> Self {
        let read = |hex: &str| std::fs::read(layout.join("blobs/sha256").join(hex)).expect("a blob");
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json")).expect("index")).expect("JSON");
        let digest: Digest = index["manifests"][0]["digest"].as_str().and_then(|d| d.parse().ok()).expect("a digest");
        let manifest: ImageManifest = match Document::parse(&read(&digest.hex()), None).expect("a manifest") {
            Document::Image(manifest) => manifest,
            Document::Index(_) => panic!("an index"),
        };
        let config = ImageConfig::parse(&read(&manifest.config.digest.hex())).expect("a config");
        let store = Store::open(root).expect("a store");
        let keep = |hex: &str, digest| store.put(digest, &read(hex), Durability::Soon).expect("kept");
        let layers = manifest.layers.iter().map(|layer| keep(&layer.digest.hex(), layer.digest)).collect();
        Self { layers, store, diff_ids: config.diff_ids }
    }
}

/// A name that was not given before. What lies there stays to the end: see `support::folder`.
fn fresh(folder: &Path) -> PathBuf {
    static TURN: AtomicU32 = AtomicU32::new(0);
    folder.join(format!("turn-{}", TURN.fetch_add(1, Ordering::Relaxed)))
}

fn pool(threads: usize) -> ThreadPool {
    ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool")
}

/// Decompress, hash, index.
fn open(image: &Image) {
    let caps = Caps::default();
    let budget = Budget::new(caps.total_bytes);
    let limits = Limits { bytes: caps.layer_bytes, shared: Some(&budget), spool: Some(&image.store), diff_id: true };
    let allowance = Allowance::new(caps.entries);
    let opened = open_all(&image.layers, &image.diff_ids, limits, true, &allowance);
    assert_eq!(opened.map_err(|(_, error)| error).expect("opened").len(), image.layers.len());
}

/// Decompress, index, lay over each other, write as a published tree into a store that has none of the files.
fn tree(image: &Image, root: &Path) -> (f64, PathBuf) {
    let store = Store::open(root).expect("a store");
    timed(|| {
        let unpacked = unpack(&image.layers, true, Ignoring::Nothing, Caps::default(), Some(&store)).expect("unpacked");
        let writer = store.begin_tree("default", "image", &image.diff_ids[0].hex()).expect("a tree");
        unpacked.tree.write_published(&store, writer.contents()).expect("written");
        writer.publish().expect("published")
    })
}

fn threads(options: &Options, table: &mut Table, folder: &Path, image: &Image) {
    let (one, two) = (pool(1), pool(2));
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds(5) {
        alone.push(timed(|| one.install(|| open(image))).0);
        together.push(timed(|| two.install(|| open(image))).0);
    }
    let peer = ("1 thread", &alone[..]);
    let what = "8 layers: decompress, hash, index, 2 threads";
    table.compare(what, Unit::Milliseconds, &together, peer, Ratio::PeerByLarder, Target::RatioAtLeast(1.7));
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds(3) {
        for (pool, times) in [(&one, &mut alone), (&two, &mut together)] {
            let root = fresh(folder);
            times.push(pool.install(|| tree(image, &root)).0);
        }
    }
    let peer = ("1 thread", &alone[..]);
    let what = "… decompress, index, with the tree written";
    table.compare(what, Unit::Milliseconds, &together, peer, Ratio::PeerByLarder, Target::RatioAtLeast(1.4));
}

fn peers(options: &Options, table: &mut Table, folder: &Path, layout: &Path, image: &Image) {
    let two = pool(2);
    // As the peers do: the blobs are hashed too.
    let whole = || {
        let root = fresh(folder);
        let (hashed, ()) = timed(|| {
            two.install(|| {
                image.layers.par_iter().for_each(|layer| {
                    assert_eq!(Digest::sha256(&layer.to_vec().expect("readable")), layer.digest());
                });
            });
        });
        let (time, _) = two.install(|| tree(image, &root));
        hashed + time
    };
    let what = |peer| format!("… hashed, unpacked, tree written, beside {peer}");
    if find("umoci").is_none() {
        table.skipped("umoci unpack", "umoci is not installed");
    } else {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds(3) {
            ours.push(whole());
            let bundle = fresh(folder);
            match timed(|| umoci(layout, &bundle)) {
                (time, Ok(())) => theirs.push(time),
                (_, Err(why)) => return table.skipped("umoci unpack", &why),
            }
        }
        let peer = ("umoci unpack", &theirs[..]);
        let target = Target::RatioAtLeast(3.0);
        table.compare(&what("umoci"), Unit::Milliseconds, &ours, peer, Ratio::PeerByLarder, target);
    }
    if find("containerd").is_none() || find("ctr").is_none() {
        return table.skipped("ctr snapshots unpack", "containerd and ctr are not both installed");
    }
    let archive = folder.join("image.tar");
    if let Err(why) = run_program(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(layout).arg(".")) {
        return table.skipped("ctr snapshots unpack", &why);
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds(3) {
        ours.push(whole());
        match ctr(&fresh(folder), &archive, layout) {
            Ok(time) => theirs.push(time),
            Err(why) => return table.skipped("ctr snapshots unpack", &why),
        }
    }
    let peer = ("ctr snapshots unpack", &theirs[..]);
    table.compare(&what("ctr"), Unit::Milliseconds, &ours, peer, Ratio::PeerByLarder, Target::RatioAtLeast(2.0));
}

fn umoci(layout: &Path, bundle: &Path) -> Result<(), String> {
    let mut command = Command::new("umoci");
    command.arg("unpack");
    if !rustix::process::geteuid().is_root() {
        command.arg("--rootless");
    }
    run_program(command.arg("--image").arg(format!("{}:latest", layout.display())).arg(bundle))
}

/// A containerd of its own, whose store has the image already; the time for unpacking it.
fn ctr(folder: &Path, archive: &Path, layout: &Path) -> Result<f64, String> {
    let containerd = Containerd::start(folder)?;
    run_program(containerd.ctr().args(["images", "import", "--no-unpack", "--base-name", "bench"]).arg(archive))?;
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).map_err(|e| e.to_string())?)
            .map_err(|e| e.to_string())?;
    let digest = index["manifests"][0]["digest"].as_str().unwrap_or_default();
    let (time, done) = timed(|| run_program(containerd.ctr().args(["snapshots", "unpack", digest])));
    done?;
    Ok(time)
}

/// From a registry to a folder: what a user does by hand with skopeo and umoci.
fn pull(options: &Options, table: &mut Table, folder: &Path, layout: &Path) {
    let what = "… larder pull beside skopeo copy + umoci unpack";
    if find("skopeo").is_none() || find("umoci").is_none() || find("docker-registry").is_none() {
        return table.skipped(what, "skopeo, umoci and docker-registry are not all installed");
    }
    let Some(registry) = DockerRegistry::start(&folder.join("registry")) else { return };
    let image = format!("{}/image:latest", registry.host);
    if let Err(why) = skopeo(&format!("oci:{}:latest", layout.display()), &format!("docker://{image}")) {
        return table.skipped(what, &why);
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds(3) {
        let output = fresh(folder);
        let mut command = Command::new(larder());
        command.args(["pull", "--plain-http", &format!("oci://{image}"), "--output"]).arg(&output);
        match timed(|| run_program(&mut command)) {
            (time, Ok(())) => ours.push(time),
            (_, Err(why)) => return table.skipped(what, &why),
        }
        let (copy, bundle) = (fresh(folder), fresh(folder));
        let (time, done) = timed(|| {
            skopeo(&format!("docker://{image}"), &format!("oci:{}:latest", copy.display()))?;
            umoci(&copy, &bundle)
        });
        match done {
            Ok(()) => theirs.push(time),
            Err(why) => return table.skipped(what, &why),
        }
    }
    let peer = ("skopeo + umoci", &theirs[..]);
    table.compare(what, Unit::Milliseconds, &ours, peer, Ratio::PeerByLarder, Target::None);
}
