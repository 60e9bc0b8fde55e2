//! Weights: files of tensors, memory-mapped and never written.
//!
//! Lives here: the mapping ([`map`]), the set of shards with its checks ([`checkpoint`]) and the element types
//! ([`dtype`]). What never will: a copy of all weights in another type.

pub mod checkpoint;
pub mod dtype;
pub mod map;

pub use checkpoint::{Checkpoint, Tensor};
pub use dtype::Dtype;
