//! K3: the power fails. The data lies on a file system in a file; that file is copied while the daemon works, so the copy
//! has what had reached the device at that moment and nothing of what was only in memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use super::{
    upstream::{REPOSITORY, Upstream},
    world::{NAMESPACE, blobs_below, has_tool, is_root, object, verify},
};
use crate::support::{
    announce, eventually,
    fixtures::{Files, files, files_below, files_in, hex_of, sha256},
    larder::{Larder, fetch_artifact, is_ready, text, write_objects},
};

const KIND: &str = "OCIRepository";
const OBJECTS: usize = 6;

/// A file system in a file, mounted; unmounted when dropped.
struct Image {
    at: PathBuf,
}

impl Image {
    fn mount(image: &Path, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        run("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        Self { at: at.to_owned() }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// A container may have none whatever is installed, so this is no error anywhere.
fn has_loop_devices() -> bool {
    let there = Path::new("/dev/loop-control").exists();
    if !there {
        announce("SKIPPED after_a_power_loss…: this kernel gives no loop devices");
    }
    there
}

fn run(program: &str, arguments: &[&str]) {
    let out = Command::new(program).args(arguments).output().unwrap();
    assert!(out.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Does it while the process stands still: a copy takes a while, and one whose parts are of different moments is of none.
fn at_one_moment(pid: u32, act: impl FnOnce()) {
    use rustix::process::{Pid, Signal, kill_process};
    let process = Pid::from_raw(pid.cast_signed()).unwrap();
    kill_process(process, Signal::STOP).unwrap();
    eventually("all threads to stand", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().filter_map(|task| task.ok());
        let states = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
        match states.filter(|status| !status.contains("State:\tT")).count() {
            0 => Ok(()),
            moving => Err(format!("{moving} are moving")),
        }
    });
    act();
    kill_process(process, Signal::CONT).unwrap();
}

fn content(object: usize, version: u64) -> Files {
    let mut random = fastrand::Rng::with_seed(version * 1000 + object as u64);
    let large: String = std::iter::repeat_with(|| random.alphanumeric()).take(300_000).collect();
    files(&[("same", "in all versions"), ("large", &large), ("version", &format!("{object} {version}"))])
}

fn name(number: usize) -> String {
    format!("app-{number}")
}

/// Every artifact that a kept status names lies there, with the right bytes.
fn statuses_name_what_is_there(data: &Path) -> usize {
    let mut named = 0;
    for number in 0..OBJECTS {
        let record = data.join("objects/ocirepository").join(NAMESPACE).join(format!("{}.json", name(number)));
        let Ok(bytes) = fs::read(&record) else { continue };
        let record: Value = serde_json::from_slice(&bytes).expect("a whole record");
        let Some(digest) = record["status"]["artifact"]["digest"].as_str() else { continue };
        let hex = hex_of(digest);
        let blob = fs::read(data.join("blobs/sha256").join(&hex[..2]).join(hex));
        assert_eq!(blob.map(|bytes| sha256(&bytes)).ok().as_deref(), Some(digest), "K3: {} names it", name(number));
        named += 1;
    }
    named
}

/// Starts on a machine that has just booted, as far as the daemon can see.
fn after_a_boot(root: &Path) -> Larder {
    let id = root.join("boot_id");
    fs::write(&id, format!("{}\n", root.display())).unwrap();
    let script = format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"", id.display());
    let objects = root.join("objects");
    let flags = ["--objects", objects.to_str().unwrap()];
    let wrapper = ["unshare", "-m", "sh", "-c", &script, "sh"];
    Larder::launch(root, &wrapper, &flags, &[]).unwrap_or_else(|(_, why)| panic!("{why}"))
}

#[test]
fn after_a_power_loss_statuses_name_what_is_there_and_the_rest_is_fetched_again() {
    if !is_root() || !has_tool("mkfs.ext4") || !has_loop_devices() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let disk = root.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(128 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", disk.to_str().unwrap()]);
    let ups: Vec<Upstream> = (0..OBJECTS).map(|_| Upstream::start()).collect();
    let objects: Vec<Value> = (0..OBJECTS)
        .map(|n| {
            ups[n].push_files(&content(n, 0));
            // Every third is rewritten, so that artifacts are made here too.
            let ignore = if n % 3 == 0 { "large\n" } else { "# nothing\n" };
            object(KIND, NAMESPACE, &name(n), &ups[n].url(), &json!({ "interval": "1s", "ignore": ignore }))
        })
        .collect();

    let first = root.path().join("first");
    fs::create_dir_all(&first).unwrap();
    let mounted = Image::mount(&disk, &first.join("data"));
    write_objects(&first, "all.yaml", &objects);
    let larder = Larder::reconciling(&first, &[]);
    let mut copies = Vec::new();
    for version in 1..=4 {
        // Copies lie at different moments of the work: when one, two … objects have got the newest version.
        for (n, up) in ups.iter().enumerate() {
            up.push_files(&content(n, version));
        }
        let wanted = OBJECTS.min(version as usize);
        eventually("some objects to follow", || {
            let follows = |n: &usize| {
                let pushed = sha256(&ups[*n].manifest(REPOSITORY, "latest").unwrap());
                larder
                    .object(KIND, NAMESPACE, &name(*n))
                    .is_some_and(|object| object["status"]["artifact"]["revision"] == format!("latest@{pushed}"))
            };
            match (0..OBJECTS).filter(follows).count() {
                there if there >= wanted => Ok(()),
                there => Err(format!("{there} of {wanted}")),
            }
        });
        let copy = root.path().join(format!("copy-{version}"));
        at_one_moment(larder.pid(), || assert!(fs::copy(&disk, &copy).unwrap() > 0));
        copies.push(copy);
    }
    larder.kill();
    drop(mounted);

    let mut named = 0;
    for (n, copy) in copies.iter().enumerate() {
        let world = root.path().join(format!("again-{n}"));
        fs::create_dir_all(&world).unwrap();
        let _mounted = Image::mount(copy, &world.join("data"));
        named += statuses_name_what_is_there(&world.join("data"));
        write_objects(&world, "all.yaml", &objects);
        let larder = after_a_boot(&world);
        for (number, up) in ups.iter().enumerate() {
            let pushed = sha256(&up.manifest(REPOSITORY, "latest").unwrap());
            let object = larder.wait(KIND, NAMESPACE, &name(number), |object| {
                is_ready(object) && object["status"]["artifact"]["revision"] == format!("latest@{pushed}")
            });
            let mut wanted = content(number, 4);
            if number % 3 == 0 {
                wanted.remove("large");
            }
            assert_eq!(files_in(&fetch_artifact(&object)), wanted, "{}", name(number));
            let hex = hex_of(text(&object, "/status/artifact/digest")).to_owned();
            let tree = larder.data.join("source").join(NAMESPACE).join(name(number)).join(hex).join("contents");
            eventually("a tree that was torn to be built again", || {
                let there = std::panic::catch_unwind(|| files_below(&tree)).unwrap_or_default();
                let sizes: Vec<_> = there.iter().map(|(name, bytes)| (name.clone(), bytes.len())).collect();
                if there == wanted { Ok(()) } else { Err(format!("copy {n}, {}: {sizes:?}", name(number))) }
            });
        }
        blobs_below(&larder.data);
        assert_eq!(larder.stop(), Some(0));
        // Torn files that no tree has any more lie there until they are collected, or put aside now.
        let data = world.join("data");
        crate::support::larder::run(&world, ["store", "verify", "--repair", "--data", data.to_str().unwrap()]);
        verify(&world);
    }
    assert!(named >= 1 + 2 + 3 + 4, "the copies have statuses to look at: {named}");
}
