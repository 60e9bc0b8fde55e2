//! The range of addresses behind the heap, handed out in slabs.
#![expect(unsafe_code, reason = "maps and protects memory")]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Status, after_fork, before_fork};

/// The unit of memory that is handed out; every run begins at a multiple of it.
pub const SLAB: usize = 64 * 1024;

/// Addresses to reserve: the first of these that the system grants. They cost nothing until they are used.
const RESERVATIONS: [usize; 5] = [64 << 30, 8 << 30, 1 << 30, 128 << 20, 16 << 20];

/// Slabs that become accessible together.
const STEP: usize = 16;

/// The range, for those who only ask whether a block is inside: no lock.
static BASE: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

/// Whether an address is in the range.
pub fn contains(address: *const u8) -> bool {
    let address = address.addr();
    // END is 0 until both are known
    address < END.load(Ordering::Acquire) && address >= BASE.load(Ordering::Relaxed)
}

const FREE: u8 = 0;
const LOCKED: u8 = 1;
const UNLOCKED: u8 = 2;

pub struct Pages {
    /// Null until first use.
    base: *mut u8,
    slabs: usize,
    /// Slabs from the base on that are accessible.
    open: usize,
    /// A byte for each slab: [`FREE`] or how it is taken. No slab below `lowest` is free.
    taken: *mut u8,
    lowest: usize,
    in_use: usize,
    unlocked: usize,
    most_unlocked: usize,
    undumpable: bool,
    wiped_on_fork: bool,
}

impl Pages {
    pub const fn new() -> Self {
        Self {
            base: std::ptr::null_mut(),
            slabs: 0,
            open: 0,
            taken: std::ptr::null_mut(),
            lowest: 0,
            in_use: 0,
            unlocked: 0,
            most_unlocked: 0,
            undumpable: false,
            wiped_on_fork: false,
        }
    }

    pub fn status(&self) -> Status {
        Status {
            bytes: (self.in_use * SLAB) as u64,
            unlocked: self.most_unlocked as u64,
            elsewhere: 0,
            undumpable: self.undumpable,
            wiped_on_fork: self.wiped_on_fork,
        }
    }

    /// A run of zeros; none if addresses or memory are short.
    pub fn take(&mut self, count: usize) -> Option<NonNull<u8>> {
        if self.base.is_null() {
            self.reserve()?;
        }
        let first = self.find(count)?;
        self.open_to(first + count)?;
        // SAFETY: `find` gave slabs of the range.
        let start = unsafe { self.base.add(first * SLAB) };
        // SAFETY: accessible pages of ours. A refusal is counted.
        let locked = unsafe { libc::mlock(start.cast(), count * SLAB) } == 0;
        if !locked {
            self.unlocked += count * SLAB;
            self.most_unlocked = self.most_unlocked.max(self.unlocked);
        }
        // SAFETY: the table has a place for each slab.
        unsafe { self.taken.add(first).write_bytes(if locked { LOCKED } else { UNLOCKED }, count) };
        if first == self.lowest {
            self.lowest = first + count;
        }
        self.in_use += count;
        NonNull::new(start)
    }

    /// Takes a run back; it was overwritten. Its memory goes to the system, its addresses stay.
    pub fn give_back(&mut self, start: NonNull<u8>, count: usize) {
        let first = (start.as_ptr().addr() - self.base.addr()) / SLAB;
        // SAFETY: a run that `take` gave: pages of ours, and a place in the table.
        let was = unsafe {
            libc::munlock(start.as_ptr().cast(), count * SLAB);
            libc::madvise(start.as_ptr().cast(), count * SLAB, libc::MADV_DONTNEED);
            let was = self.taken.add(first).read();
            self.taken.add(first).write_bytes(FREE, count);
            was
        };
        if was == UNLOCKED {
            self.unlocked -= count * SLAB;
        }
        self.lowest = self.lowest.min(first);
        self.in_use -= count;
    }

    /// The first run of free slabs that is long enough.
    fn find(&self, count: usize) -> Option<usize> {
        // SAFETY: the table has a byte for each slab.
        let taken = unsafe { std::slice::from_raw_parts(self.taken, self.slabs) };
        let mut free = 0;
        for (slab, &is_taken) in taken.iter().enumerate().skip(self.lowest) {
            free = if is_taken == FREE { free + 1 } else { 0 };
            if free == count {
                return Some(slab + 1 - count);
            }
        }
        None
    }

    /// Makes the first `slabs` slabs accessible.
    fn open_to(&mut self, slabs: usize) -> Option<()> {
        if slabs > self.open {
            let open = slabs.next_multiple_of(STEP).min(self.slabs);
            // SAFETY: inside the range, and inaccessible until now.
            let opened = unsafe {
                let start = self.base.add(self.open * SLAB).cast();
                libc::mprotect(start, (open - self.open) * SLAB, libc::PROT_READ | libc::PROT_WRITE)
            };
            if opened != 0 {
                return None;
            }
            self.open = open;
        }
        Some(())
    }

    /// Reserves the range, and has its protections put on all of it.
    fn reserve(&mut self) -> Option<()> {
        let (base, bytes) = RESERVATIONS.into_iter().find_map(|bytes| Some((map(bytes)?, bytes)))?;
        self.slabs = bytes / SLAB;
        self.taken = map_table(self.slabs)?;
        #[cfg(target_os = "linux")]
        {
            // SAFETY: advice about our own mapping.
            let advise = |advice| unsafe { libc::madvise(base.cast(), bytes, advice) } == 0;
            self.undumpable = advise(libc::MADV_DONTDUMP);
            self.wiped_on_fork = advise(libc::MADV_WIPEONFORK);
        }
        // SAFETY: handlers that only take and give a lock. A refusal (no memory) leaves forked children that allocate
        // here at the moment of a fork to wait for ever, and nothing worse.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork)) };
        BASE.store(base.addr(), Ordering::Relaxed);
        END.store(base.addr() + bytes, Ordering::Release);
        self.base = base;
        Some(())
    }
}

/// Reserves addresses that begin at a slab.
fn map(bytes: usize) -> Option<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new private mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes + SLAB, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    let skip = start.addr().next_multiple_of(SLAB) - start.addr();
    // SAFETY: `skip` is less than the slab that was asked for beyond `bytes`.
    Some(unsafe { start.cast::<u8>().add(skip) })
}

/// A table of zeros. It holds no content, so it is no part of the range: forked children keep it.
fn map_table(bytes: usize) -> Option<*mut u8> {
    let (flags, rights) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: a new private mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, rights, flags, -1, 0) };
    (start != libc::MAP_FAILED).then_some(start.cast())
}
