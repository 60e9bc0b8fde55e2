//! x86-64 lanes.

pub mod avx2;
pub mod avx512;
