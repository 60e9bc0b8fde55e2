//! What is tested with the system's allocator: no line of this program installs the scrubbing one.

#[path = "../common/mod.rs"]
mod common;
mod heap;
mod lockdown;
#[cfg(feature = "testing")]
mod tokenizers;
