//! A containerd that is started to be measured: its own root and socket, no plugin that touches the machine.
#![allow(dead_code)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::programs::Running;

/// A running one; ended when dropped.
pub struct Containerd {
    _child: Running,
    address: PathBuf,
}

impl Containerd {
    /// Starts it below `folder`, whose path is short enough for a socket's.
    pub fn start(folder: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(folder).map_err(|e| e.to_string())?;
        let address = folder.join("sock");
        let config = folder.join("config.toml");
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = {address:?}\n",
            folder.join("root"),
            folder.join("state"),
        );
        std::fs::write(&config, text).map_err(|e| e.to_string())?;
        let log = std::fs::File::create(folder.join("log")).map_err(|e| e.to_string())?;
        let mut command = Command::new("containerd");
        command.arg("-c").arg(&config).stdout(Stdio::null()).stderr(log);
        let child = Running(command.spawn().map_err(|e| e.to_string())?);
        let begin = Instant::now();
        while !address.exists() {
            if begin.elapsed() > Duration::from_secs(5) {
                let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
                return Err(format!("containerd does not start here: {}", log.lines().last().unwrap_or_default()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { _child: child, address })
    }

    /// Its client, without a command.
    pub fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&self.address);
        command
    }
}
