//! AArch64 lanes.

pub mod neon;
