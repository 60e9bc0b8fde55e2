//! The global allocator that overwrites what is freed: what a session asks for before it opens.
#![expect(unsafe_code, reason = "implements GlobalAlloc around the system's allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::NonNull;

use crate::memory::heap;

/// Overwrites every heap block with zeros when it is freed, whoever allocated it. Extends the session's guarantee to
/// temporaries inside third-party crates, such as the tokenizer's copies of the prompt. What the session's own threads
/// allocate comes from the heap for secrets: locked where the system allows, out of core dumps, zeros in forked children.
///
/// On that heap a block that is freed twice, at a wrong address or with a wrong size, and one that is written to after it
/// was freed, end the process. So does a write after a free elsewhere, in debug builds: they keep freed blocks a while, and
/// check that they are zero still when they are used again.
///
/// A session opens only where this is the program's global allocator, or where
/// [`Builder::accept_unscrubbed_heap`](crate::Builder::accept_unscrubbed_heap) says that it need not be. One line
/// installs it:
///
/// ```standalone_crate
/// amnesic::install_scrubbing_allocator!();
/// # fn main() {}
/// ```
///
/// Covers Rust allocations of the whole program. Not covered: memory that C libraries allocate themselves, and
/// memory that is leaked.
#[derive(Debug)]
pub struct Scrubbing;

/// Whether this program allocates through [`Scrubbing`].
pub fn is_installed() -> bool {
    heap::is_allocator_installed()
}

/// Makes [`Scrubbing`](crate::alloc::Scrubbing) the program's global allocator: one line at the top of the program's
/// main file (of a test, a bench or an example too), beside its `use` lines. A program has one global allocator, so a
/// second one is an error of the compiler's.
///
/// ```standalone_crate
/// amnesic::install_scrubbing_allocator!();
///
/// fn main() {
///     assert!(amnesic::alloc::is_installed());
/// }
/// ```
#[macro_export]
macro_rules! install_scrubbing_allocator {
    () => {
        #[global_allocator]
        static AMNESIC_SCRUBBING_ALLOCATOR: $crate::alloc::Scrubbing = $crate::alloc::Scrubbing;
    };
}

// SAFETY: every block comes from one of two heaps and goes back to the same one, told apart by its address; blocks are
// written only while they are still ours: before they are freed, within their size.
unsafe impl GlobalAlloc for Scrubbing {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // a load is free; a store on each call would have all threads fight for one cache line
        heap::note_allocator();
        if heap::is_private() {
            if let Some(block) = heap::allocate(layout.size(), layout.align()) {
                return block.as_ptr();
            }
            heap::put_elsewhere(layout.size());
        }
        #[cfg(debug_assertions)]
        if let Some(block) = quarantine::take(layout) {
            return block;
        }
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !heap::is_private() {
            // SAFETY: the caller's contract is the same. The system's pages are zero already.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: as above; a block that is not null has so many bytes.
        unsafe {
            let block = self.alloc(layout);
            if !block.is_null() {
                block.write_bytes(0, layout.size());
            }
            block
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if heap::contains(block) {
            let block = NonNull::new(block).expect("no heap contains null");
            // SAFETY: allocated there, by `alloc` above or by one that asked that heap itself, with this layout.
            let _ = unsafe { heap::free(block, layout.size(), layout.align()) };
            return;
        }
        // SAFETY: the caller gives the block up with its own layout: that many bytes are ours to write.
        let bytes = unsafe { std::slice::from_raw_parts_mut(block, layout.size()) };
        crate::memory::scrub::overwrite(bytes);
        #[cfg(debug_assertions)]
        let (block, layout) = match quarantine::put(block, layout) {
            None => return,
            Some(older) => older,
        };
        // SAFETY: a block of the system's with its layout, which nobody uses any more.
        unsafe { System.dealloc(block, layout) }
    }

    // `realloc` is the trait's own: allocate, copy, `dealloc` above. The system's may move a block and leave the old
    // one as it was.
}

/// Debug builds: blocks that were freed stay here a while, to be used again by who asks for the same size, and are
/// checked to be zero still when they leave.
#[cfg(debug_assertions)]
mod quarantine {
    use std::alloc::Layout;
    use std::cell::UnsafeCell;
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::memory::heap::fault::{Fault, check_zero};

    const PLACES: usize = 1024;
    /// Larger blocks go back to the system at once.
    const LARGEST: usize = 64 * 1024;

    struct Place {
        held: AtomicBool,
        block: UnsafeCell<Option<(*mut u8, Layout)>>,
    }

    // SAFETY: `with` gives out the block to one thread at a time.
    unsafe impl Sync for Place {}

    static ALL: [Place; PLACES] =
        [const { Place { held: AtomicBool::new(false), block: UnsafeCell::new(None) } }; PLACES];

    /// None where another thread is at the same place, or the block is too large: nobody waits.
    fn with<R>(layout: Layout, act: impl FnOnce(&mut Option<(*mut u8, Layout)>) -> R) -> Option<R> {
        if layout.size() > LARGEST {
            return None;
        }
        let place = &ALL[(layout.size() * 31 + layout.align()) % PLACES];
        if place.held.swap(true, Ordering::Acquire) {
            return None;
        }
        // SAFETY: `held` was false and is true now, so nobody else is here.
        let result = act(unsafe { &mut *place.block.get() });
        place.held.store(false, Ordering::Release);
        Some(result)
    }

    /// A block of just this layout that was freed before.
    pub fn take(layout: Layout) -> Option<*mut u8> {
        let (block, layout) = with(layout, |place| place.take_if(|(_, held)| *held == layout))??;
        check(block, layout);
        Some(block)
    }

    /// Keeps an overwritten block; returns the one to free for it, if any.
    pub fn put(block: *mut u8, layout: Layout) -> Option<(*mut u8, Layout)> {
        let older = match with(layout, |place| place.replace((block, layout))) {
            None => return Some((block, layout)),
            Some(older) => older?,
        };
        check(older.0, older.1);
        Some(older)
    }

    fn check(block: *mut u8, layout: Layout) {
        // SAFETY: a block of the system's that is ours alone, all of which was overwritten.
        let block = unsafe { std::slice::from_raw_parts(block, layout.size()) };
        // what was written to it would be content that nobody overwrites
        check_zero(block, Fault::WrittenAfterFree);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_private_thread_allocates_is_on_the_heap_for_secrets() {
        let layout = Layout::from_size_align(777, 8).unwrap();
        let run = move || {
            // SAFETY: the layout has a size; both blocks are freed as they were allocated.
            unsafe {
                let outside = heap::outside(|| Scrubbing.alloc(layout));
                let (inside, zeroed) = (Scrubbing.alloc(layout), Scrubbing.alloc_zeroed(layout));
                inside.write_bytes(0x77, 777);
                let found = [outside, inside, zeroed].map(|block| heap::contains(block));
                [outside, inside, zeroed].into_iter().for_each(|block| Scrubbing.dealloc(block, layout));
                found
            }
        };
        let thread = crate::memory::thread::spawn("private", crate::memory::thread::Depth::Kernels, run);
        assert_eq!(thread.unwrap().join().unwrap(), [false, true, true]);
    }

    /// Runs this test again as a process of its own that writes to a block which it has freed.
    #[cfg(debug_assertions)]
    #[test]
    fn a_write_after_free_ends_the_process() {
        if std::env::var_os("AMNESIC_WRITE_AFTER_FREE").is_some() {
            let layout = Layout::from_size_align(4321, 8).unwrap();
            // SAFETY: none: the write is the fault that is to be noticed. The block is in the quarantine, so mapped.
            unsafe {
                let block = Scrubbing.alloc(layout);
                Scrubbing.dealloc(block, layout);
                block.add(99).write_volatile(1);
                Scrubbing.alloc(layout);
            }
            return;
        }
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "alloc::tests::a_write_after_free_ends_the_process", "--nocapture"])
            .env("AMNESIC_WRITE_AFTER_FREE", "1")
            .output()
            .unwrap();
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("written to after it had been freed"));
    }
}
