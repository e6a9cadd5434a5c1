//! What the integration tests share: fixtures, real data where it is at hand, the built binary, a small HTTP client.
//!
//! `tests/it` and `tests/peers` both include this folder, and neither uses all of it.
#![allow(dead_code)]

pub mod api_script;
pub mod api_server;
pub mod certificates;
pub mod corpus;
pub mod fixtures;
pub mod http;
pub mod kubernetes;
pub mod larder;
pub mod packed;
pub mod proxy;
pub mod registry;
pub mod services;
/// Signatures as cosign writes them.
#[path = "../../../src/trust/testing.rs"]
pub mod signing;
pub mod upstream;

use std::{
    io::Write,
    time::{Duration, Instant},
};

/// How long [`eventually`] waits: far beyond what any step takes on a busy 2-core machine, so that only a hang ends it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `probe` until it has an answer; panics with `what` and the last refusal when [`PATIENCE`] ends.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        let refusal = match probe() {
            Ok(value) => return value,
            Err(refusal) => refusal,
        };
        assert!(Instant::now() < end, "waited {PATIENCE:?} in vain for {what}; last seen: {refusal}");
        std::thread::sleep(Duration::from_millis(25));
    }
}

/// Says `text` on standard error past the test harness's capture, so that it is seen when the test passes.
pub fn announce(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
