//! Many clients of the mirror that want one blob at once, which it does not hold yet.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use larder::digest::Digest;
use serde_json::json;

use crate::{
    Options,
    http::Client,
    programs::{Daemon, Peak},
    support::{flux_artifact, folder, noise},
    table::{Ratio, Table, Target, Unit, milliseconds},
    upstream::Upstream,
};

const LINK: f64 = 10e6;
const LARGE: usize = 32 << 20;
const SMALL: usize = 64 << 10;
/// What the first client reads before it is killed.
const KILLED_AT: usize = 1 << 20;

pub fn run(_: &Options, table: &mut Table) {
    let folder = folder();
    large(table, &folder);
    small(table, &folder);
}

/// A blob of the upstream, whose repository is of the same name.
struct Wanted {
    name: &'static str,
    digest: Digest,
    bytes: Arc<Vec<u8>>,
}

impl Wanted {
    fn path(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.name)
    }

    fn blob(&self) -> String {
        self.path(&format!("blobs/{}", self.digest))
    }
}

fn upstream(names: &[&'static str], size: usize, latency: Duration) -> (Upstream, Vec<Wanted>) {
    let mut content = HashMap::new();
    let mut made = Vec::new();
    for (seed, name) in names.iter().enumerate() {
        let bytes = Arc::new(noise(size, 9000 + seed as u64));
        let wanted = Wanted { name, digest: Digest::sha256(&bytes), bytes: Arc::clone(&bytes) };
        let manifest = Arc::new(flux_artifact(&bytes).1);
        let kind = "application/vnd.oci.image.manifest.v1+json".to_owned();
        content.insert(wanted.path("manifests/latest"), (kind.clone(), Arc::clone(&manifest)));
        let by_digest = wanted.path(&format!("manifests/{}", Digest::sha256(&manifest)));
        content.insert(by_digest, (kind, manifest));
        content.insert(wanted.blob(), ("application/octet-stream".to_owned(), bytes));
        made.push(wanted);
    }
    (Upstream::start(content, LINK, latency), made)
}

/// A daemon that mirrors it and holds the manifests, none of the blobs.
fn mirror(folder: &Path, name: &str, upstream: &Upstream, wanted: &[Wanted]) -> Daemon {
    let config = folder.join(format!("{name}.yaml"));
    let upstreams = json!([{ "host": "upstream.example", "url": format!("http://{}", upstream.host) }]);
    std::fs::write(&config, json!({ "upstreams": upstreams }).to_string()).expect("a configuration");
    let data = folder.join(name);
    std::fs::create_dir(&data).expect("folder");
    let daemon = Daemon::start_with(&data, None, Some(&config));
    let mut client = Client::new(&daemon.registry);
    for wanted in wanted {
        client.get(&through(&wanted.path("manifests/latest")));
    }
    upstream.asked();
    daemon
}

fn through(path: &str) -> String {
    format!("{path}?ns=upstream.example")
}

/// Asks for `path` on a connection of its own and compares what comes; closes it after `limit` bytes.
fn fetch(mut stream: TcpStream, path: &str, wanted: &[u8], limit: usize) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: upstream.example\r\n\r\n").as_bytes())?;
    let mut buffer = vec![0; 64 << 10];
    let mut have = 0;
    let body = loop {
        let read = stream.read(&mut buffer[have..])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        have += read;
        if let Some(end) = buffer[..have].windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    if !buffer.starts_with(b"HTTP/1.1 200 ") {
        return Err(io::Error::other(String::from_utf8_lossy(&buffer[..have]).into_owned()));
    }
    let mut at = 0;
    let mut piece = body..have;
    loop {
        let bytes = &buffer[piece];
        if wanted.get(at..at + bytes.len()) != Some(bytes) {
            return Err(io::Error::other(format!("other bytes at {at}")));
        }
        at += bytes.len();
        if at >= limit.min(wanted.len()) {
            return Ok(());
        }
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::Error::other(format!("ended at {at}")));
        }
        piece = 0..read;
    }
}

/// The milliseconds until all clients have all; with `killed`, but for one that begins first and goes away early.
fn together(host: &str, count: usize, path: &str, wanted: &[u8], killed: bool) -> f64 {
    let ready = Barrier::new(count + 1);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..count)
            .map(|number| {
                let ready = &ready;
                let client = move || {
                    let stream = TcpStream::connect(host);
                    ready.wait();
                    let first = killed && number == 0;
                    if killed && !first {
                        thread::sleep(Duration::from_millis(20));
                    }
                    stream.and_then(|stream| fetch(stream, path, wanted, if first { KILLED_AT } else { usize::MAX }))
                };
                thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, client).expect("a thread")
            })
            .collect();
        ready.wait();
        let begin = Instant::now();
        for client in clients {
            client.join().expect("a client").unwrap_or_else(|error| panic!("GET {path}: {error}"));
        }
        milliseconds(begin.elapsed())
    })
}

fn large(table: &mut Table, folder: &Path) {
    let (upstream, wanted) = upstream(&["hundred", "killed"], LARGE, Duration::ZERO);
    let daemon = mirror(folder, "large", &upstream, &wanted);
    let alone = together(&upstream.host, 1, &wanted[0].blob(), &wanted[0].bytes, false);
    upstream.asked();
    let whats = ["100 clients, one cold blob of 32 MB, 10 MB/s", "… the first of them killed at 1 MiB"];
    for ((what, wanted), killed) in whats.iter().zip(&wanted).zip([false, true]) {
        let time = together(&daemon.registry, 100, &through(&wanted.blob()), &wanted.bytes, killed);
        let (gets, bytes) = upstream.asked();
        let peer = ("one client of the upstream itself", &[alone][..]);
        table.compare(what, Unit::Milliseconds, &[time], peer, Ratio::LarderByPeer, Target::RatioAtMost(1.1));
        table.figure("… GETs of the upstream", Unit::Count, gets as f64, Target::AtMost(1.0));
        table.figure("… bytes from the upstream", Unit::Bytes, bytes as f64, Target::AtMost(LARGE as f64));
    }
}

fn small(table: &mut Table, folder: &Path) {
    // So that all are there before the first byte is.
    let (upstream, wanted) = upstream(&["thousand"], SMALL, Duration::from_millis(500));
    let daemon = mirror(folder, "small", &upstream, &wanted);
    let peak = Peak::of(daemon.pid());
    let time = together(&daemon.registry, 1000, &through(&wanted[0].blob()), &wanted[0].bytes, false);
    let peak = peak.finish();
    let (gets, _) = upstream.asked();
    let what = "1,000 clients, one cold blob of 64 KB, first byte after 500 ms";
    table.figure(what, Unit::Milliseconds, time, Target::None);
    table.figure("… GETs of the upstream", Unit::Count, gets as f64, Target::AtMost(1.0));
    table.figure("… peak RssAnon", Unit::Mebibytes, peak, Target::AtMost(64.0 + 62.5));
}
