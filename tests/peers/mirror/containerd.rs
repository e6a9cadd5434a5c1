//! A containerd of the test's own: its root, its socket, no plugin that touches the machine.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::support::{eventually, fixtures::hex_of, larder::finish};

/// A running containerd; ended when dropped.
pub struct Containerd {
    child: Child,
    content: PathBuf,
    socket: PathBuf,
}

impl Containerd {
    /// Starts it below `root`.
    pub fn start(root: &Path) -> Self {
        std::fs::create_dir_all(root).expect("folder");
        // A socket's path is short.
        let socket = root.join("c.sock");
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.internal.v1.opt\", \"io.containerd.snapshotter.v1.aufs\", \
             \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \
             \"io.containerd.snapshotter.v1.zfs\"]\n[grpc]\n  address = {socket:?}\n[ttrpc]\n  address = {:?}\n",
            root.join("root"),
            root.join("state"),
            root.join("t.sock"),
        );
        std::fs::write(root.join("config.toml"), config).expect("configuration");
        let log = std::fs::File::create(root.join("log")).expect("log");
        // `timeout` ends it also where this process could not.
        let mut child = Command::new("timeout")
            .args(["600", "containerd", "--config"])
            .arg(root.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("timeout runs");
        eventually("containerd", || {
            if let Some(status) = child.try_wait().expect("our own child") {
                panic!("containerd ended with {status}: {}", std::fs::read_to_string(root.join("log")).expect("log"));
            }
            let mut version = Command::new("ctr");
            version.arg("--address").arg(&socket).arg("version");
            if finish(version).status.success() { Ok(()) } else { Err("it does not answer".to_owned()) }
        });
        Self { child, content: root.join("root/io.containerd.content.v1.content"), socket }
    }

    fn ctr(&self) -> Command {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(&self.socket).args(["--namespace", "peers"]);
        ctr
    }

    /// Pulls an image by the `hosts.toml` files below `hosts`.
    pub fn pull(&self, hosts: &Path, image: &str, more: &[&str]) -> Result<(), String> {
        let mut ctr = self.ctr();
        ctr.args(["images", "pull", "--snapshotter", "native", "--hosts-dir"]).arg(hosts).args(more).arg(image);
        let output = finish(ctr);
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    /// The bytes that it keeps under a digest.
    pub fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        std::fs::read(self.content.join("blobs/sha256").join(hex_of(digest))).ok()
    }

    /// Whether it has written a part of a blob that is not whole yet.
    pub fn has_part_of(&self, digest: &str) -> bool {
        let ingests = std::fs::read_dir(self.content.join("ingest")).into_iter().flatten().flatten();
        let of_it = ingests
            .map(|ingest| ingest.path())
            .filter(|ingest| std::fs::read_to_string(ingest.join("ref")).is_ok_and(|name| name.ends_with(digest)));
        of_it.filter_map(|ingest| std::fs::metadata(ingest.join("data")).ok()).any(|data| data.len() > 0)
    }

    /// Removes an image and all of its content.
    pub fn forget(&self, image: &str) {
        let mut ctr = self.ctr();
        ctr.args(["images", "rm", "--sync", image]);
        let output = finish(ctr);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // SIGTERM, since `timeout` passes that on.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}
