//! A growable buffer of plain numbers on the heap for secrets: what is behind a [`super::Secret`].
#![expect(unsafe_code, reason = "owns a block of the heap for secrets")]

use std::alloc::{Layout, handle_alloc_error};
use std::ptr::NonNull;

use super::heap;
use super::scrub::{Plain, Scrubbed, scrub};

/// Values up to `len` are set; the rest of the block may hold anything that was there before. Never moves by itself.
pub struct Buffer<T: Plain> {
    start: NonNull<T>,
    len: usize,
    capacity: usize,
}

// SAFETY: it owns its values alone, and `T: Plain` may go to any thread.
unsafe impl<T: Plain> Send for Buffer<T> {}
// SAFETY: as above; `&Buffer` only reads.
unsafe impl<T: Plain> Sync for Buffer<T> {}

impl<T: Plain> Buffer<T> {
    /// No values, and no block.
    pub const fn new() -> Self {
        Self { start: NonNull::dangling(), len: 0, capacity: 0 }
    }

    /// Room for `capacity` values. All zeros, which are values of every `T`.
    ///
    /// # Panics
    /// If that is more than there are addresses. Where memory is short the process ends, as with `Vec`.
    pub fn with_capacity(capacity: usize) -> Self {
        let layout = Layout::array::<T>(capacity).expect("a buffer is smaller than the address space");
        if layout.size() == 0 {
            return Self::new();
        }
        let start = heap::allocate(layout.size(), layout.align()).unwrap_or_else(|| {
            heap::put_elsewhere(layout.size());
            // SAFETY: the size is not zero.
            let block = unsafe { std::alloc::alloc_zeroed(layout) };
            NonNull::new(block).unwrap_or_else(|| handle_alloc_error(layout))
        });
        Self { start: start.cast(), len: 0, capacity }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The values.
    pub fn values(&self) -> &[T] {
        // SAFETY: `len` values are set, in a block that this owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The values, to change.
    pub fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Appends values that fit.
    ///
    /// # Panics
    /// If they do not.
    pub fn append(&mut self, values: &[T]) {
        assert!(values.len() <= self.capacity - self.len, "a buffer grows only when it is told to");
        // SAFETY: the room was just checked; `values` cannot lie in this block, which is borrowed mutably.
        unsafe {
            let end = self.start.as_ptr().add(self.len);
            std::ptr::copy_nonoverlapping(values.as_ptr(), end, values.len());
        }
        self.len += values.len();
    }

    /// Replaces the values by others that fit.
    ///
    /// # Panics
    /// If they do not.
    pub fn refill(&mut self, values: impl ExactSizeIterator<Item = T>) {
        let count = values.len();
        self.len = 0;
        self.block()[..count].iter_mut().zip(values).for_each(|(place, value)| *place = value);
        self.len = count; // fewer than promised leave older values, never what is not set
    }

    /// Drops the values from `len` on. They stay in the block.
    pub fn shorten(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The whole block: what is set and what is not.
    fn block(&mut self) -> &mut [T] {
        // SAFETY: blocks are zero when they are allocated, so all of it is initialised.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.capacity) }
    }

    /// Overwrites the whole block, and drops the values.
    #[cfg_attr(amnesic_faults, track_caller)]
    pub fn wipe(&mut self) -> Scrubbed {
        self.len = 0;
        scrub(self.block())
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.capacity == 0 {
            return;
        }
        let (block, layout) = (self.start.cast::<u8>(), Layout::for_value(self.block()));
        if heap::contains(block.as_ptr()) {
            // SAFETY: allocated there with this layout, and nobody borrows it any more.
            let _ = unsafe { heap::free(block, layout.size(), layout.align()) };
        } else {
            let _ = scrub(self.block());
            // SAFETY: allocated by the global allocator with this layout.
            unsafe { std::alloc::dealloc(block.as_ptr(), layout) };
        }
    }
}
