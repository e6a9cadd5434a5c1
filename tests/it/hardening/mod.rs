//! The table of bad inputs (registry, manifests, layers, tars, objects, clients, disk, crashes) against the built daemon.
//!
//! Every row states the condition's reason and the class, and in every row the invariants hold: the last good artifact
//! stays in the status and is served byte for byte, an object in another namespace goes on being reconciled, the same
//! process stays ready, no secret is told, nobody connects to the honeypot, nothing temporary remains.
//!
//! What a row demands and the daemon cannot show from outside in a test's time is shown elsewhere:
//!
//! | row | where |
//! | --- | --- |
//! | R3 (slow for 30 s, three resumes), R16 (https to http), R17 (private and metadata addresses, one checked IP) | `tests/it/registry.rs`, `src/registry/address.rs` |
//! | R12 (`tokenRealms`), R19 (client certificates), O12 (transports share nothing) | `tests/it/registry.rs` |
//! | L1 with less memory, L5 windows one by one, T1-T10 entry by entry | `src/unpack/{decompress,entries,tree}/tests.rs` |
//! | T6 (equal trees give equal bytes), T5 (modes) | `src/artifact/build/tests.rs` |
//! | O8 (a pattern's time) | `src/unpack/source_ignore/tests.rs` |
//! | C4, C5 with short limits, D7 by connections, smuggling | `tests/it/server/connections.rs` |
//! | D5 in flight | `tests/it/server/artifacts.rs` |
//! | D2 and D3 in the store, K2 | `src/store/tests.rs`, `src/store/model.rs` |
//! | TLS 1.1 | nowhere: rustls has none |

mod budget;
mod clients;
mod content;
mod disk;
mod kills;
mod objects;
mod power;
mod tars;
mod transport;
pub mod world;

pub use crate::support::upstream;
