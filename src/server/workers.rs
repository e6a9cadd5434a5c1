//! Threads that serve connections, each with a runtime of its own.
//!
//! A connection stays on its thread: nobody is woken on another core to steal it, and what its requests touch stays
//! in that core's cache. There is a thread for every second core: a mirror's clients run on the same machine, and so do
//! hashing and decompression. With two threads on two cores, wrk beside them, GETs of 4 KB were 1.01 to 1.06 times
//! nginx's, with one 1.17 to 1.36 times (`cargo bench --bench peers -- --only serve`).
//!
//! Any thread may call [`Workers::spawn`]. What is spawned must not block: others wait for the same thread. The threads
//! end, with whatever still runs on them, when the last handle is dropped.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::{runtime, sync::oneshot};

/// More threads than this serve nothing faster than a disk or a network card delivers it.
const MAX_THREADS: usize = 16;
/// How many threads of one worker's runtime may wait for the disk. They are started when there is something to wait
/// for, and end when there is not.
const BLOCKING_THREADS: usize = 8;

/// Threads for connections.
#[derive(Debug)]
pub struct Workers(Vec<Worker>);

#[derive(Debug)]
struct Worker {
    runtime: runtime::Handle,
    /// How many connections it has.
    load: Arc<AtomicUsize>,
    /// Dropped to end it.
    _stop: oneshot::Sender<()>,
}

/// One connection's share of a worker's load.
struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Workers {
    /// One thread for every second core that this process may use, at most 16.
    pub fn start() -> io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, usize::from).div_ceil(2).min(MAX_THREADS);
        (0..count).map(Worker::start).collect::<io::Result<_>>().map(Self)
    }

    /// Runs what `make` makes, on the thread that has the least to do and in its runtime.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(&self, make: impl FnOnce() -> F + Send + 'static) {
        let Some(worker) = self.0.iter().min_by_key(|worker| worker.load.load(Relaxed)) else { return };
        worker.load.fetch_add(1, Relaxed);
        let load = Load(Arc::clone(&worker.load));
        worker.runtime.spawn(async move {
            make().await;
            drop(load);
        });
    }
}

impl Worker {
    fn start(number: usize) -> io::Result<Self> {
        let runtime =
            runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        std::thread::Builder::new().name(format!("serve-{number}")).spawn(move || {
            // An error is what dropping the sender makes of it.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, load: Arc::default(), _stop: stop })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_are_spread_evenly_and_stay_on_their_thread() {
        let workers = Workers((0..2).map(|n| Worker::start(n).unwrap()).collect());
        let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        for _ in 0..6 {
            let (send, gate) = (send.clone(), Arc::clone(&gate));
            workers.spawn(move || async move {
                let before = std::thread::current().id();
                let _ = gate.acquire().await;
                assert_eq!(before, std::thread::current().id());
                send.send(before).unwrap();
            });
        }
        assert_eq!(workers.0.iter().map(|w| w.load.load(Relaxed)).collect::<Vec<_>>(), [3, 3]);
        gate.close();
        drop(send);
        let mut threads = std::collections::HashMap::new();
        while let Some(thread) = receive.recv().await {
            *threads.entry(thread).or_insert(0) += 1;
        }
        assert_eq!(threads.into_values().collect::<Vec<_>>(), [3, 3]);
    }
}
