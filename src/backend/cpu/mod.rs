//! The CPU: [`Cpu`], the fast backend, and [`Reference`], the dull one that it is held against.
//!
//! Weights and the KV cache are packed so that lanes are their rows (`format.rs`); activations are written as the
//! products want them (`operand.rs`); all products are tiles (`tile.rs`), in `linear.rs` and `attention.rs` alike.
//! Kernels are written once over [`vector::Vector`] (16 lanes of f32); `generic.rs`, `x86_64/` and `aarch64/` give the
//! lanes; [`detect`] chooses once at run time.
//!
//! **Invariant:** on an instruction set, a row's result is the same bits whatever else is in the batch and however many
//! threads there are. All of them give the same bits but those that multiply bf16 by bf16, whose rounding is the
//! processor's: they differ where weights or cache are bf16.

mod activation;
mod attention;
mod detect;
mod device;
mod experts;
pub mod exponential;
mod fast;
pub(super) mod format;
mod generic;
mod heads;
mod kernels;
mod linear;
mod memory;
pub(super) mod operand;
mod pool;
mod reference;
mod route;
mod rows;
mod team;
#[cfg(test)]
mod tests;
mod tile;
mod vector;
mod weight;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use detect::Isa;
pub use fast::Cpu;
pub use reference::Reference;
