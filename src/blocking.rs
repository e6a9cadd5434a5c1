//! The two doors out of async: everything that waits for a disk goes through [`io`], everything that burns a core
//! goes through [`cpu`]. A tokio worker does neither itself; a rayon worker never waits on tokio.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

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
    let (send, receive) = tokio::sync::oneshot::channel();
    rayon::spawn(move || {
        let _ = send.send(catch_unwind(AssertUnwindSafe(f)));
    });
    match receive.await {
        Ok(Ok(value)) => value,
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => unreachable!("the job above always sends"),
    }
}
