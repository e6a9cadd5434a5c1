//! From an artifact's tree to the objects that a Kustomization stands for.
//!
//! [`render`](render::render) is the interface. Behind it, in the order in which a rendering passes through:
//! `tree` finds the folder and its files, `documents` reads the objects of a plain folder, `transform` does to them
//! what a generated kustomization would (namespace, images), or `overlay` writes the kustomization, `reach` judges
//! what it refers to and `program` has it built, confined by [`confine`]; `object` and `validate` look at what came
//! out, `order` sorts it. `yaml`, `scalar` and `emit` read and write YAML as the tools around Kubernetes do.
//!
//! Everything here is synchronous and keeps no state but the versions of the programs that were asked. Nothing is
//! written outside the scratch directory, and nothing is left there, except after a crash.

pub mod cluster;
pub mod confine;
mod documents;
mod emit;
pub mod health;
pub mod inventory;
pub mod managers;
pub mod marks;
pub mod object;
pub mod order;
mod overlay;
mod program;
mod reach;
pub mod render;
mod scalar;
pub mod substitute;
mod transform;
mod tree;
mod validate;
mod variables;
mod yaml;
pub mod yaml_text;

#[cfg(test)]
mod differential;
