//! Many slow readers of one blob that is held: what they cost in memory.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::{
    Options,
    http::Client,
    programs::{Daemon, Peak, rss_anon},
    support::{folder, noise},
    table::{Table, Target, Unit},
};

const READERS: usize = 1000;

pub fn run(_: &Options, table: &mut Table) {
    let data = folder().join("data");
    std::fs::create_dir(&data).expect("folder");
    let daemon = Daemon::start(&data, None);
    let digest = Client::new(&daemon.registry).push_artifact("bench", "large", &noise(32 << 20, 32));
    let path = format!("/v2/bench/blobs/{digest}");
    let before = rss_anon(daemon.pid());
    let peak = Peak::of(daemon.pid());
    let mut readers: Vec<TcpStream> = (0..READERS)
        .map(|_| {
            let mut stream = TcpStream::connect(&daemon.registry).expect("connected");
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").as_bytes()).expect("asked");
            stream
        })
        .collect();
    // 4 KiB a second each.
    let begin = Instant::now();
    let mut buffer = [0; 4 << 10];
    for second in 0..5 {
        thread::sleep(Duration::from_secs(second).saturating_sub(begin.elapsed()));
        for reader in &mut readers {
            assert_ne!(reader.read(&mut buffer).expect("the body goes on"), 0, "a slow reader was cut off");
            assert!(second > 0 || buffer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&buffer));
        }
    }
    let peak = peak.finish();
    table.figure("1,000 slow readers of a held blob of 32 MB: peak RssAnon", Unit::Mebibytes, peak, Target::None);
    table.figure("… before them, the blob just pushed", Unit::Mebibytes, before, Target::None);
}
