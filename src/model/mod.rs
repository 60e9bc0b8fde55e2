//! The model: its shape ([`arch`]), how checkpoints spell it ([`families`]) and the one forward pass ([`decoder`]),
//! which gives logits or, with what is behind it ([`encoder`], as [`sentence`] says), embeddings.
//!
//! **Invariant:** an architecture is a row of data, not code. Nothing here knows threads, instruction sets or
//! devices: those are behind [`crate::backend::Backend`].

pub mod arch;
pub mod decoder;
pub mod encoder;
pub mod families;
mod gguf;
pub mod latent;
mod rope;
pub mod sentence_transformers;
#[cfg(test)]
mod tests;
pub mod weights;
