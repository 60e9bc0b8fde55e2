//! Checkpoints against what other engines make of them, on every instruction set; and what files and spellings they come in.

#[cfg(feature = "testing")]
mod adapters;
#[cfg(all(feature = "candle", feature = "testing"))]
mod candle;
#[path = "../common/mod.rs"]
mod common;
mod embeddings;
#[cfg(feature = "testing")]
mod expected;
#[cfg(feature = "testing")]
mod families;
#[cfg(feature = "testing")]
mod files_in_memory;
#[cfg(feature = "testing")]
mod fixtures;
#[cfg(feature = "testing")]
mod gguf;
#[cfg(feature = "testing")]
mod invariance;
#[cfg(feature = "testing")]
mod ropes;
#[cfg(feature = "testing")]
mod spellings;

amnesic::install_scrubbing_allocator!();
