//! The opt-in global allocator that overwrites what is freed.
#![expect(unsafe_code, reason = "implements GlobalAlloc around the system's allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

/// Overwrites every heap block with zeros when it is freed, whoever allocated it. Extends the session's guarantee to
/// temporaries inside third-party crates, such as the tokenizer's copies of the prompt.
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: amnesic::alloc::Scrubbing = amnesic::alloc::Scrubbing;
/// # fn main() {}
/// ```
///
/// Covers Rust allocations of the whole program. Not covered: memory that C libraries allocate themselves, and
/// memory that is leaked.
#[derive(Debug)]
pub struct Scrubbing;

static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Whether this program allocates through [`Scrubbing`].
pub fn is_installed() -> bool {
    INSTALLED.load(Ordering::Relaxed)
}

// SAFETY: every call goes on to the system's allocator with the caller's layout; blocks are written only while they
// are still ours: before they are freed, within their size.
unsafe impl GlobalAlloc for Scrubbing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        INSTALLED.store(true, Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        INSTALLED.store(true, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller gives the block up with its own layout: that many bytes are ours to write.
        let bytes = unsafe { std::slice::from_raw_parts_mut(block, layout.size()) };
        crate::memory::scrub::overwrite(bytes);
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    // `realloc` is the trait's own: allocate, copy, `dealloc` above. The system's may move a block and leave the old
    // one as it was.
}
