//! A checkpoint's files: tensors, memory-mapped and never written, and JSON.
//!
//! Lives here: the mapping ([`map`]), the set of shards with its checks ([`checkpoint`]), element types ([`dtype`]),
//! published quantized formats ([`coded`]), adapters of low rank ([`adapter`]),
//! JSON fields with errors that name them ([`json`]), which files there are ([`store`], [`shards`]), where a model looks for its
//! tensors ([`tensors`]), the hashes of all that was read ([`files`]) and what a progress bar is told ([`progress`]). What never will: arithmetic, or the layout that a backend packs weights into.

pub mod adapter;
pub mod checkpoint;
pub mod dtype;
pub mod files;
pub mod gguf;
pub mod json;
pub mod map;
mod merged;
mod names;
mod patterns;
pub mod progress;
pub mod quantized;
pub mod shards;
pub mod store;
pub mod tensors;

pub use checkpoint::{Checkpoint, Tensor};
pub use dtype::Dtype;
