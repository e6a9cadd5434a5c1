//! A registry that is as slow as a link: what it holds, at so many bytes a second for all who ask together.
#![allow(dead_code)]

use std::{
    collections::HashMap,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// What is written between two looks at the clock.
const PIECE: usize = 16 << 10;

/// A running one. Its threads end with the process, or with the connections that they serve.
pub struct Upstream {
    /// Host and port.
    pub host: String,
    state: Arc<State>,
}

struct State {
    /// By the path that is asked: the media type and the bytes.
    content: HashMap<String, (String, Arc<Vec<u8>>)>,
    bytes_per_second: f64,
    /// How long a blob's first byte takes.
    latency: Duration,
    /// When the link is free again.
    free: Mutex<Instant>,
    gets: AtomicU64,
    bytes: AtomicU64,
}

impl Upstream {
    /// Serves `content`, by path, until the process ends.
    pub fn start(content: HashMap<String, (String, Arc<Vec<u8>>)>, bytes_per_second: f64, latency: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let host = listener.local_addr().expect("an address").to_string();
        let state = Arc::new(State {
            content,
            bytes_per_second,
            latency,
            free: Mutex::new(Instant::now()),
            gets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A client that goes away ends its connection, which is no fault here.
                thread::spawn(move || state.serve(stream));
            }
        });
        Self { host, state }
    }

    /// The GETs of blobs, and the bytes sent for them, since this was asked last.
    pub fn asked(&self) -> (u64, u64) {
        (self.state.gets.swap(0, Ordering::Relaxed), self.state.bytes.swap(0, Ordering::Relaxed))
    }
}

impl State {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let mut words = line.split(' ');
            let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let get = method == "GET";
            let path = target.split('?').next().unwrap_or_default().to_owned();
            loop {
                line.clear();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                if line.trim_end().is_empty() {
                    break;
                }
            }
            self.answer(reader.get_mut(), &path, get)?;
        }
    }

    fn answer(&self, stream: &mut TcpStream, path: &str, get: bool) -> io::Result<()> {
        if path == "/v2/" {
            return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
        }
        let Some((media_type, bytes)) = self.content.get(path) else {
            return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        };
        let mut head = format!("HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n", bytes.len());
        if path.contains("/manifests/") {
            head += &format!("Docker-Content-Digest: {}\r\n", larder::digest::Digest::sha256(bytes));
        }
        head += "\r\n";
        let blob = path.contains("/blobs/");
        if blob && get {
            self.gets.fetch_add(1, Ordering::Relaxed);
            thread::sleep(self.latency);
        }
        stream.write_all(head.as_bytes())?;
        if !get {
            return Ok(());
        }
        for piece in bytes.chunks(PIECE) {
            if blob {
                self.wait_for(piece.len());
                self.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            stream.write_all(piece)?;
        }
        Ok(())
    }

    /// Waits for the link's turn of so many bytes. A time that was not used is lost, but for 20 ms.
    fn wait_for(&self, len: usize) {
        let until = {
            let mut free = self.free.lock().expect("the link's clock");
            let begin = (*free).max(Instant::now() - Duration::from_millis(20));
            *free = begin + Duration::from_secs_f64(len as f64 / self.bytes_per_second);
            *free
        };
        thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}
