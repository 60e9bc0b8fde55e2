//! The heap for secrets: where the kernel can, out of the kernel's own reach; locked, out of core dumps, zeros in forked
//! children, overwritten when freed.
//!
//! [`super::Secret`] allocates here, whatever the program's global allocator is. With [`crate::alloc::Scrubbing`] as that
//! allocator, everything else that the session's own threads allocate comes from here too ([`enter`]): temporaries of the
//! tokenizer, templates, the state of grammars.
//!
//! Blocks of up to [`LARGEST_SMALL`] bytes come from slabs of one size class each ([`slabs`]); a larger one is a run of slabs
//! of its own, at whose end it lies. One process has one such heap: a range of addresses reserved at first use, of which as
//! much is accessible as is needed ([`pages`]). Guarded by a spin lock, which is held for a few instructions or, where it
//! grows, a few system calls: an allocator cannot use a lock that allocates.
//!
//! **Invariant:** all that the heap knows is out of the blocks' reach, and each fault that it can see ends the process
//! ([`fault`]): a block that is freed twice, at an address inside it or with another size; one that is written to after it
//! was freed, or beside its bounds, or out of its run. In hardened_malloc's way, at the cost that `benches/heap.rs` prints.
//! What it cannot see: a write from one block into the middle of its neighbour, and a wrong size of the same class.
//!
//! A forked child has zeros where its parent has secrets, and goes on with a heap of its own at the same addresses. A child
//! that a bare `clone` made, past the C library's handlers, has nothing there where the parent's is [`secretmem`], and ends if
//! it touches it.
#![expect(unsafe_code, reason = "an allocator")]

pub(crate) mod fault;
mod pages;
pub mod secretmem;
mod slabs;
#[cfg(test)]
mod tests;

use std::cell::{Cell, UnsafeCell};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::scrub::{Scrubbed, scrub};
use fault::Fault;
use pages::{Pages, SLAB, state};
use slabs::{LARGEST_SMALL, Slabs, Slot, class};

/// Every block is aligned to this at least.
const ALIGN: usize = 16;

struct Heap {
    pages: Pages,
    slabs: Slabs,
}

struct Shared {
    held: AtomicBool,
    heap: UnsafeCell<Heap>,
}

// SAFETY: `with` gives out the heap to one thread at a time.
unsafe impl Sync for Shared {}

static SHARED: Shared = Shared {
    held: AtomicBool::new(false),
    heap: UnsafeCell::new(Heap { pages: Pages::new(), slabs: Slabs::new() }),
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

    fn hold(&self) -> Held<'_> {
        self.lock();
        Held(self)
    }

    fn with<R>(&self, act: impl FnOnce(&mut Heap) -> R) -> R {
        act(&mut self.hold())
    }
}

/// The heap, while nobody else has it. Whoever has it allocates nothing.
struct Held<'a>(&'a Shared);

impl std::ops::Deref for Held<'_> {
    type Target = Heap;

    fn deref(&self) -> &Heap {
        // SAFETY: the lock is held as long as this is.
        unsafe { &*self.0.heap.get() }
    }
}

impl std::ops::DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Heap {
        // SAFETY: as above; this is borrowed mutably.
        unsafe { &mut *self.0.heap.get() }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.unlock();
    }
}

/// Where a block of a size and an alignment belongs.
#[derive(Clone, Copy)]
enum Room {
    Small {
        class: usize,
        /// Bytes of the class's blocks.
        size: usize,
    },
    /// In a run of its own, so many bytes before its end.
    Large(usize),
}

impl Room {
    /// None where the alignment is above a slab's, or the size more than there are addresses.
    fn of(bytes: usize, align: usize) -> Option<Self> {
        let small = match align {
            ..=ALIGN if bytes > ALIGN * 4 => bytes,
            // a power of two is aligned to itself in its slab; small classes between are multiples of 4 bytes only
            ..=SLAB => bytes.max(align).max(1).checked_next_power_of_two()?,
            _ => return None,
        };
        if small <= LARGEST_SMALL {
            let (class, size) = class(small);
            return Some(Self::Small { class, size });
        }
        bytes.max(1).checked_next_multiple_of(align.max(ALIGN)).map(Self::Large)
    }
}

/// A block of zeros; none if the system has no memory for it, or the alignment is above a slab's.
///
/// A block that is used again is checked to be zero still: if somebody wrote to it after it was freed, the process ends.
pub fn allocate(bytes: usize, align: usize) -> Option<NonNull<u8>> {
    match Room::of(bytes, align)? {
        Room::Small { class, size } => {
            let block = SHARED.with(|heap| heap.slabs.take(&mut heap.pages, class, size))?;
            // SAFETY: a free block of `size` bytes that nobody else knows any more.
            let held = unsafe { std::slice::from_raw_parts(block.as_ptr(), size) };
            fault::check_zero(held, Fault::WrittenAfterFree);
            Some(block)
        }
        Room::Large(room) => SHARED.with(|heap| {
            let (first, end) = heap.pages.take(room, state::LARGE)?;
            heap.pages.record(first).bytes = bytes;
            // SAFETY: the run is at least that long.
            Some(unsafe { end.sub(room) })
        }),
    }
}

/// A block of this heap that is to be freed.
enum Found {
    Small(Slot),
    /// The first slab of its run.
    Large(usize),
}

/// Overwrites a block and takes it back.
///
/// # Safety
/// The block came from [`allocate`] with the same size and alignment, and nobody uses it any more. What can be seen not to be
/// so ends the process.
#[cfg_attr(amnesic_faults, track_caller)]
pub unsafe fn free(block: NonNull<u8>, bytes: usize, align: usize) -> Scrubbed {
    let Some(room) = Room::of(bytes, align) else { fault::end(Fault::WrongSize) };
    /// So few bytes are overwritten sooner than a lock is taken twice.
    const BRIEF: usize = 1024;
    let mut heap = SHARED.hold();
    let found = heap.find(block.as_ptr(), bytes, room);
    let held = (bytes <= BRIEF).then_some(heap);
    if let Room::Small { size, .. } = room {
        // SAFETY: the block has `size` bytes, and is the caller's until it is given back below.
        let spare = unsafe { std::slice::from_raw_parts(block.as_ptr().add(bytes), size - bytes) };
        fault::check_zero(spare, Fault::WrittenOutside);
    }
    // SAFETY: the caller gives up this many bytes.
    let scrubbed = scrub(unsafe { std::slice::from_raw_parts_mut(block.as_ptr(), bytes) });
    let mut held = held.unwrap_or_else(|| SHARED.hold());
    let heap = &mut *held;
    match found {
        Found::Small(slot) => heap.slabs.give_back(&mut heap.pages, slot),
        Found::Large(first) => match heap.pages.state(first) {
            state::LARGE => heap.pages.give_back(first),
            _ => fault::end(Fault::FreedTwice), // by another thread at the same time
        },
    }
    scrubbed
}

impl Heap {
    /// Ends the process if the block is not one that was allocated so.
    fn find(&mut self, block: *const u8, bytes: usize, room: Room) -> Found {
        let Self { pages, slabs } = self;
        let room = match room {
            Room::Small { class, size } => return Found::Small(slabs.find(pages, block, class, size)),
            Room::Large(room) => room,
        };
        let mut first = pages.slab_of(block);
        while pages.state(first) == state::INSIDE {
            first -= 1;
        }
        match pages.state(first) {
            state::LARGE => {}
            state::SMALL => fault::end(Fault::WrongSize),
            state::KEPT | state::FREE => fault::end(Fault::FreedTwice), // most likely: somebody had this address
            _ => fault::end(Fault::NotABlock),
        }
        if pages.record(first).bytes != bytes {
            fault::end(Fault::WrongSize);
        }
        if pages.end(first).addr() - room != block.addr() {
            fault::end(Fault::NotABlock);
        }
        Found::Large(first)
    }
}

/// Whether a block is from here.
pub fn contains(block: *const u8) -> bool {
    pages::contains(block)
}

/// The addresses of the first run behind `address` that nobody has and that is kept for later, inaccessible; none behind the last.
/// A search of this process asks, which reads them too: they must be zero.
#[cfg(all(feature = "forensics", target_os = "linux"))]
pub fn kept_behind(address: usize) -> Option<std::ops::Range<usize>> {
    SHARED.with(|heap| heap.pages.kept_behind(address))
}

/// Copies bytes from an address of such a run; how many, and none if nothing is kept there any more. The run is readable as
/// long as this takes: it is the search that goes where nobody may, and not the run that is open to all.
#[cfg(all(feature = "forensics", target_os = "linux"))]
pub fn read_kept(address: usize, into: &mut [u8]) -> Option<usize> {
    SHARED.with(|heap| heap.pages.read_kept(address, into))
}

/// What the system granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Bytes in use or kept for use.
    pub bytes: u64,
    /// How many of them the kernel itself cannot reach ([`secretmem`]).
    pub secret: u64,
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

/// Whether the program's global allocator is [`crate::alloc::Scrubbing`]. Set when that is first called.
static ALLOCATOR: AtomicBool = AtomicBool::new(false);

/// The program allocates through [`crate::alloc::Scrubbing`].
#[inline]
pub fn note_allocator() {
    if !ALLOCATOR.load(Ordering::Relaxed) {
        ALLOCATOR.store(true, Ordering::Relaxed); // once: all threads read it
    }
}

/// Whether it does.
pub fn is_allocator_installed() -> bool {
    // the allocator notes that it is there when it is first called, so it is called
    if !ALLOCATOR.load(Ordering::Relaxed) {
        drop(std::hint::black_box(Box::new(1_u8)));
    }
    ALLOCATOR.load(Ordering::Relaxed)
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

/// After it, in the process that goes on.
extern "C" fn after_fork_parent() {
    SHARED.unlock();
}

/// After it, in the child.
extern "C" fn after_fork_child() {
    // SAFETY: the thread that forked holds the lock, and there is no other in the child.
    unsafe { (*SHARED.heap.get()).pages.in_child() };
    SHARED.unlock();
}
