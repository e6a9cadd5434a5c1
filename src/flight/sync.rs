//! The locks that [`fill`](super::fill) is built on. Its tests put Shuttle's in their place and play interleavings.

pub(super) use std::sync::Mutex;
