//! The one way content enters the store.
