//! The doors out of async: everything that waits for a disk goes through [`io`], everything that burns a core
//! goes through [`cpu`], and what takes much memory for a moment through [`alone`]. A tokio worker does neither itself; a rayon worker never waits on tokio.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::LazyLock,
};

/// Runs `f`, which may block on the disk, on tokio's blocking pool. A panic in `f` goes on in the caller.
pub async fn io<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(f).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // Only a runtime that is being torn down cancels a blocking task that has not begun.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Runs `f`, which computes, on rayon's pool: as many at once as there are cores, the rest wait their turn.
/// A panic in `f` goes on in the caller.
pub async fn cpu<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    on(rayon::spawn, f).await
}

/// Runs `f`, which may block, on a thread that is there for such work alone: the rest wait their turn. What one frees is what the
/// next one takes; freed on many threads, each would keep its own. A panic in `f` goes on in the caller.
pub async fn alone<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    static ALONE: LazyLock<Option<rayon::ThreadPool>> =
        LazyLock::new(|| rayon::ThreadPoolBuilder::new().num_threads(1).build().ok());
    match &*ALONE {
        Some(pool) => on(|job| pool.spawn(job), f).await,
        None => io(f).await,
    }
}

async fn on<T: Send + 'static>(
    spawn: impl FnOnce(Box<dyn FnOnce() + Send>),
    f: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (send, receive) = tokio::sync::oneshot::channel();
    spawn(Box::new(move || {
        let _ = send.send(catch_unwind(AssertUnwindSafe(f)));
    }));
    match receive.await {
        Ok(Ok(value)) => value,
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => unreachable!("the job above always sends"),
    }
}
