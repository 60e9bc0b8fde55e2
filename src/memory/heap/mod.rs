//! The heap for secrets: locked, out of core dumps, zeros in forked children, overwritten when freed.
//!
//! [`super::Secret`] allocates here, whatever the program's global allocator is. With [`crate::alloc::Scrubbing`] as that
//! allocator, everything else that the session's own threads allocate comes from here too ([`enter`]): temporaries of the
//! tokenizer, templates, the state of grammars.
//!
//! Blocks of up to [`LARGEST_SMALL`] bytes come from slabs of one size class each; larger ones are runs of slabs of their
//! own, whose memory goes back to the system when they are freed. One process has one such heap: a range of addresses
//! reserved at first use, of which as much is accessible as was ever needed at once. Guarded by a spin lock, which is held
//! for a few instructions or, where it grows, a few system calls: an allocator cannot use a lock that allocates.
//!
//! Free blocks are linked through their first word. In a forked child all of them read as zeros, so that these lists end
//! early: memory is lost there, and nothing else.
#![expect(unsafe_code, reason = "an allocator")]

mod pages;

use std::cell::{Cell, UnsafeCell};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::scrub::{Scrubbed, scrub};
use pages::{Pages, SLAB};

/// The largest block that comes from a slab which it shares.
const LARGEST_SMALL: usize = SLAB / 4;

/// Four classes for each doubling, from 16 bytes on.
const CLASSES: usize = 4 * (LARGEST_SMALL.ilog2() - 4) as usize + 1;

/// Every block is aligned to this at least.
const ALIGN: usize = 16;

struct Heap {
    pages: Pages,
    /// The first free block of each class, or null.
    free: [*mut u8; CLASSES],
}

struct Shared {
    held: AtomicBool,
    heap: UnsafeCell<Heap>,
}

// SAFETY: `with` gives out the heap to one thread at a time.
unsafe impl Sync for Shared {}

static SHARED: Shared = Shared {
    held: AtomicBool::new(false),
    heap: UnsafeCell::new(Heap { pages: Pages::new(), free: [std::ptr::null_mut(); CLASSES] }),
};

/// Bytes of secrets that had to be put on the ordinary heap, at the most at once so far.
static ELSEWHERE: AtomicUsize = AtomicUsize::new(0);

impl Shared {
    fn lock(&self) {
        while self.held.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            // the holder may be in a system call, or not running
            std::thread::yield_now();
        }
    }

    fn unlock(&self) {
        self.held.store(false, Ordering::Release);
    }

    fn with<R>(&self, act: impl FnOnce(&mut Heap) -> R) -> R {
        self.lock();
        // SAFETY: the lock is held, and `act` cannot come back here: it allocates nothing.
        let result = act(unsafe { &mut *self.heap.get() });
        self.unlock();
        result
    }
}

/// The class of blocks of `bytes` (from 1 to [`LARGEST_SMALL`]), and the bytes of its blocks.
fn class(bytes: usize) -> (usize, usize) {
    if bytes <= ALIGN {
        return (0, ALIGN);
    }
    // 2^n < bytes <= 2^(n + 1), in four steps of a quarter of 2^n each
    let n = (bytes - 1).ilog2();
    let step = (bytes - 1 - (1 << n)) >> (n - 2);
    (4 * (n as usize - 4) + step + 1, (1 << n) + ((step + 1) << (n - 2)))
}

/// What is set aside for a block of this size and alignment; none where that is too much.
fn rounded(bytes: usize, align: usize) -> Option<usize> {
    match align {
        ..=ALIGN if bytes > ALIGN * 4 => Some(bytes),
        // a power of two is aligned to itself in its slab; small classes between are multiples of 4 bytes only
        ..=SLAB => bytes.max(align).max(1).checked_next_power_of_two(),
        _ => None,
    }
}

/// A block of zeros; none if the system has no memory for it, or the alignment is above a slab's.
///
/// In debug builds a block that is used again is checked to be zero still: somebody who wrote to it after it was freed
/// is noticed, and the process ends.
pub fn allocate(bytes: usize, align: usize) -> Option<NonNull<u8>> {
    let bytes = rounded(bytes, align)?;
    if bytes > LARGEST_SMALL {
        return SHARED.with(|heap| heap.pages.take(bytes.div_ceil(SLAB)));
    }
    let (class, size) = class(bytes);
    let block = SHARED.with(|heap| heap.small(class, size))?;
    // SAFETY: a free block of `size` bytes that nobody else knows any more.
    unsafe {
        block.cast::<*mut u8>().write(std::ptr::null_mut());
        #[cfg(debug_assertions)]
        crate::alloc::check_still_zero(std::slice::from_raw_parts(block.as_ptr(), size));
        #[cfg(not(debug_assertions))]
        let _ = size;
    }
    Some(block)
}

/// Overwrites a block and takes it back.
///
/// # Safety
/// The block came from [`allocate`] with the same size and alignment, and nobody uses it any more.
#[cfg_attr(feature = "testing", track_caller)]
pub unsafe fn free(block: NonNull<u8>, bytes: usize, align: usize) -> Scrubbed {
    // SAFETY: the caller gives up this many bytes.
    let scrubbed = scrub(unsafe { std::slice::from_raw_parts_mut(block.as_ptr(), bytes) });
    let bytes = rounded(bytes, align).expect("it was allocated with this alignment");
    if bytes > LARGEST_SMALL {
        SHARED.with(|heap| heap.pages.give_back(block, bytes.div_ceil(SLAB)));
        return scrubbed;
    }
    let (class, _) = class(bytes);
    SHARED.with(|heap| {
        // SAFETY: the block is ours again, and at least a word long.
        unsafe { block.cast::<*mut u8>().write(heap.free[class]) };
        heap.free[class] = block.as_ptr();
    });
    scrubbed
}

impl Heap {
    fn small(&mut self, class: usize, size: usize) -> Option<NonNull<u8>> {
        if let Some(block) = NonNull::new(self.free[class]) {
            // SAFETY: a free block begins with the address of the next one.
            self.free[class] = unsafe { block.cast::<*mut u8>().read() };
            return Some(block);
        }
        let slab = self.pages.take(1)?;
        // Linked from the last to the first, so that they are handed out in order.
        for index in (0..SLAB / size).rev() {
            // SAFETY: inside the slab, which is ours alone.
            unsafe {
                let block = slab.add(index * size);
                block.cast::<*mut u8>().write(self.free[class]);
                self.free[class] = block.as_ptr();
            }
        }
        self.small(class, size)
    }
}

/// Whether a block is from here.
pub fn contains(block: *const u8) -> bool {
    pages::contains(block)
}

/// What the system granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Bytes in use or kept for use.
    pub bytes: u64,
    /// How many of them could not be locked.
    pub unlocked: u64,
    /// Bytes of secrets that are on the ordinary heap, for want of memory here: most at once.
    pub elsewhere: u64,
    /// Whether it stays out of core dumps.
    pub undumpable: bool,
    /// Whether forked children see zeros.
    pub wiped_on_fork: bool,
}

/// What the system granted so far.
pub fn status() -> Status {
    let elsewhere = ELSEWHERE.load(Ordering::Relaxed) as u64;
    SHARED.with(|heap| Status { elsewhere, ..heap.pages.status() })
}

/// A secret of so many bytes is on the ordinary heap.
pub fn put_elsewhere(bytes: usize) {
    ELSEWHERE.fetch_add(bytes, Ordering::Relaxed);
}

thread_local! {
    /// Whether what this thread allocates may hold content. Needs no destructor: an allocator may ask.
    static PRIVATE: Cell<bool> = const { Cell::new(false) };
}

/// From now on what this thread allocates comes from here, if [`crate::alloc::Scrubbing`] is installed.
pub fn enter() {
    PRIVATE.set(true);
}

/// Whether it does.
pub fn is_private() -> bool {
    PRIVATE.get()
}

/// Runs `act`, which touches no content, with the ordinary heap: for what is large, public and stays.
pub fn outside<R>(act: impl FnOnce() -> R) -> R {
    struct Back(bool);
    impl Drop for Back {
        fn drop(&mut self) {
            PRIVATE.set(self.0);
        }
    }
    let _back = Back(PRIVATE.replace(false));
    act()
}

/// Before a fork: nobody else holds the lock while the process is copied.
extern "C" fn before_fork() {
    SHARED.lock();
}

/// After it, in both processes.
extern "C" fn after_fork() {
    SHARED.unlock();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::scrub::is_zero;

    fn bytes<'a>(block: NonNull<u8>, len: usize) -> &'a mut [u8] {
        // SAFETY: tests ask for what they allocated.
        unsafe { std::slice::from_raw_parts_mut(block.as_ptr(), len) }
    }

    #[test]
    fn classes_hold_what_is_asked_and_waste_a_quarter_at_most() {
        let mut last = 0;
        for size in 1..=LARGEST_SMALL {
            let (class, held) = class(size);
            assert!(held >= size && class < CLASSES && class >= last, "{size}");
            assert!(size <= ALIGN || held <= size + size / 4 + 4, "{size} in {held}");
            last = class;
        }
        assert_eq!(last, CLASSES - 1);
    }

    #[test]
    fn blocks_are_zero_aligned_and_apart() {
        let mut blocks = Vec::new();
        for round in 0..3 {
            for (size, align) in
                [(1, 1), (8, 8), (24, 8), (72, 16), (100, 64), (5000, 8), (20_000, 4096), (300_000, 16)]
            {
                let block = allocate(size, align).unwrap();
                assert!(contains(block.as_ptr()) && block.as_ptr().addr().is_multiple_of(align));
                assert!(is_zero(bytes(block, size)), "{size} bytes in round {round}");
                bytes(block, size).fill(0xa5);
                blocks.push((block, size, align));
            }
            if round == 1 {
                for (block, size, align) in blocks.drain(..) {
                    assert!(bytes(block, size).iter().all(|&byte| byte == 0xa5), "somebody else wrote to it");
                    // SAFETY: allocated above.
                    let scrubbed = unsafe { free(block, size, align) };
                    assert!(scrubbed.bytes() == size as u64 && !scrubbed.is_dirty());
                }
            }
        }
    }

    #[test]
    fn what_is_freed_is_overwritten_and_used_again() {
        let first = allocate(3000, 8).unwrap();
        bytes(first, 3000).fill(1);
        // SAFETY: allocated above.
        let _ = unsafe { free(first, 3000, 8) };
        // behind the word that links free blocks; another test may have it by now, and then it is zero or that test's 0xa5
        assert!(bytes(first, 3000)[8..].iter().all(|&byte| byte != 1));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_kernel_knows_the_protections() {
        let block = allocate(100_000, 16).unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        let mut flags = None;
        for line in smaps.lines() {
            if let Some((from, to)) = line.split(' ').next().and_then(|range| range.split_once('-')) {
                let [from, to] = [from, to].map(|edge| usize::from_str_radix(edge, 16).unwrap_or(0));
                inside = (from..to).contains(&block.as_ptr().addr());
            } else if inside && line.starts_with("VmFlags:") {
                flags = Some(line.to_owned());
            }
        }
        let flags = flags.unwrap();
        let locked = (status().unlocked == 0).then_some("lo");
        for flag in ["dd", "wf"].into_iter().chain(locked) {
            assert!(flags.split_whitespace().any(|word| word == flag), "{flag} is missing in {flags}");
        }
        // SAFETY: allocated above.
        let _ = unsafe { free(block, 100_000, 16) };
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_forked_child_reads_zeros_and_can_allocate() {
        let block = allocate(1000, 16).unwrap();
        bytes(block, 1000).fill(0xaa);
        // SAFETY: the child makes system calls, reads memory, and uses this heap, whose lock is free in it.
        let status = unsafe {
            let child = libc::fork();
            if child == 0 {
                let clean = is_zero(bytes(block, 1000)) && allocate(64, 8).is_some();
                libc::_exit(i32::from(!clean));
            }
            let mut status = -1;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            status
        };
        assert_eq!(status, 0, "the child saw the parent's bytes");
        assert!(bytes(block, 1000).iter().all(|&byte| byte == 0xaa), "the parent keeps them");
    }

    #[test]
    fn many_threads_share_it() {
        let work = |seed: usize| {
            let mut held = Vec::new();
            for i in 0..2000_usize {
                let size = 1 + (i * 7919 + seed * 104_729) % 3000;
                let block = allocate(size, 8).unwrap();
                bytes(block, size).fill(seed as u8);
                held.push((block, size));
                if held.len() > 40 {
                    let (block, size) = held.swap_remove(i % 40);
                    assert!(bytes(block, size).iter().all(|&byte| byte == seed as u8));
                    // SAFETY: allocated above.
                    let _ = unsafe { free(block, size, 8) };
                }
            }
            // SAFETY: allocated above.
            held.into_iter().for_each(|(block, size)| drop(unsafe { free(block, size, 8) }));
        };
        std::thread::scope(|scope| (1..5).for_each(|seed| drop(scope.spawn(move || work(seed)))));
    }
}
