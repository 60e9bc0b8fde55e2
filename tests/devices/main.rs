//! What needs a GPU. Without one, what can be done on the emulated device is, and the rest says that it is skipped.

#[path = "../common/mod.rs"]
mod common;
mod memory;
mod products;

use std::sync::{Mutex, MutexGuard, PoisonError};

amnesic::install_scrubbing_allocator!();

/// Whoever searches or fills a device has it alone.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
