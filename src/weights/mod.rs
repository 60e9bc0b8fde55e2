//! A checkpoint's files: tensors, memory-mapped and never written, and JSON.
//!
//! Lives here: the mapping ([`map`]), the set of shards with its checks ([`checkpoint`]), the pass that finds what is
//! not finite ([`check`]), element types ([`dtype`]) and JSON fields with errors that name them ([`json`]). What never
//! will: a copy of all weights in another type.

pub mod check;
pub mod checkpoint;
pub mod dtype;
pub mod json;
pub mod map;

pub use checkpoint::{Checkpoint, Tensor};
pub use dtype::Dtype;
