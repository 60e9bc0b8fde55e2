//! The CPU: [`Cpu`], the fast backend, and [`Reference`], the dull one that it is held against.
//!
//! Kernels are written once over [`vector::Vector`] (16 lanes of f32) in `linear.rs`, `attention.rs` and `rows.rs`;
//! `generic.rs`, `x86_64/` and `aarch64/` give the lanes; [`detect`] chooses once at run time. Every instruction set
//! does the same operations in the same order with fused multiply-adds, so all of them give the same bits.

mod attention;
mod detect;
mod fast;
mod generic;
mod kernels;
mod linear;
mod memory;
mod reference;
mod rows;
mod team;
#[cfg(test)]
mod tests;
mod vector;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use detect::Isa;
pub use fast::Cpu;
pub use reference::Reference;
