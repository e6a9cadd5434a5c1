//! Larder: a content-addressed cache and artifact server for configuration that travels as OCI images.
//!
//! CI pushes a folder of manifests to a registry; in each cluster Flux polls the tag, pulls, unpacks and applies. Larder
//! does the polling, pulling and unpacking once for all who name the same thing, keeps every blob once, and serves the
//! artifacts that Flux's controllers ask for.
//!
//! # Promises
//!
//! - No complete response carries bytes that do not hash to their name: from a registry, from the disk, ever.
//! - A bad upstream never takes away what worked: the last good artifact stays in its status, and is served.
//! - A status names an artifact only when it is durable and can be fetched.
//! - Nothing in an artifact writes outside the store.
//! - After SIGKILL or power loss no hand is needed: what was complete is held, the rest is fetched again.
//! - Credentials go to the registry they belong to and its token service, and into no log, error or status.
//!
//! # The map
//!
//! | module | what it is |
//! | --- | --- |
//! | [`digest`], [`oci`] | the specs' nouns as types; pure |
//! | [`store`] | the content-addressed store: blobs, shared files, links, leases, collection |
//! | [`registry`] | the client of an upstream registry |
//! | [`unpack`] | from a layer's bytes to a checked index of entries, and to a tree; synchronous |
//! | [`flight`] | one worker for all who want the same at once |
//! | [`trust`] | signature policy: who must have signed a manifest; pure |
//! | [`pull`] | the one way content enters the store from a registry |
//! | [`artifact`] | from layers to the artifact that is served; packing for `larder push` |
//! | [`apply`] | from an artifact's tree to the documents of a Kustomization |
//! | [`objects`] | Flux's kinds, conditions, statuses; where they come from |
//! | [`reconciler`] | from objects as desired to artifacts as served |
//! | [`mirror`] | who may read what of which upstream, tags and their freshness, what is served while an upstream fails |
//! | [`server`] | the registry, artifact and admin listeners |
//! | [`node`] | builds, starts and drains a daemon; the only module that knows all |
//! | [`cli`], [`config`] | the command line and the configuration |
//! | [`class`], [`secret`], [`metrics`], [`blocking`], [`shutdown`], [`telemetry`] | leaves that anybody may use |
//!
//! # The dependency rule
//!
//! `main → cli → node → {server, reconciler} → {mirror, apply, artifact} → pull → {registry, store, unpack, trust, flight} →
//! {oci, digest}`. [`store`] and [`registry`] meet only in [`pull`]; [`server`] never calls [`registry`]. A test reads every
//! module's imports against this.

pub mod apply;
pub mod artifact;
pub mod blocking;
pub mod class;
pub mod cli;
pub mod config;
pub mod digest;
pub mod flight;
pub mod metrics;
pub mod mirror;
pub mod node;
pub mod objects;
pub mod oci;
pub mod pull;
pub mod reconciler;
pub mod registry;
pub mod secret;
pub mod server;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod trust;
pub mod unpack;
