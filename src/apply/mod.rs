//! From an artifact's tree to the objects that a Kustomization stands for.

pub mod render;
