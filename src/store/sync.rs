//! The locks and atomics of what decides who stays: [`super::shards`] and [`super::quota`] take them from here, so
//! that the tests of interleavings can compile the same files over a scheduler's own.

pub(super) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicUsize, Ordering},
};

pub(super) use super::layout::lock;
