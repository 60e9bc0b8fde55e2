//! x86-64 lanes and tiles.

pub mod amx;
#[cfg(all(test, target_os = "linux"))]
pub mod amx_emulated;
#[cfg(all(test, target_os = "linux"))]
mod amx_tests;
pub mod amx_tiles;
pub mod avx2;
pub mod avx512;
