//! The range of addresses behind the heap, handed out in runs of slabs, and what is known of each slab.
//!
//! All that is known of blocks is in tables of their own, between guards: nothing that is written to a block, in its bounds or
//! out of them, changes what the heap does. Before and behind each run lies a slab that nobody may touch, so that who walks
//! out of a run ends the process.
//!
//! A run is memory of [`secretmem`] where the kernel grants that, and else private memory that is locked, out of core dumps
//! and zeros in forked children.
#![expect(unsafe_code, reason = "maps and protects memory")]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::fault::{self, Fault};
use super::{Status, after_fork_child, after_fork_parent, before_fork, secretmem};

/// The unit of addresses that is handed out.
pub const SLAB: usize = 64 * 1024;

/// Addresses to reserve: the first of these that the system grants. They cost nothing until they are used.
const RESERVATIONS: [usize; 5] = [64 << 30, 8 << 30, 1 << 30, 128 << 20, 16 << 20];

/// Runs that were given back and wait to be used again, inaccessible: pages of [`secretmem`] cost ten times as much to make
/// as to keep (measured: 2 to 10 µs for each 4 KiB). At most so many, and so many bytes.
const KEPT_RUNS: usize = 32;
const KEPT_BYTES: usize = 4 << 20;

/// The range, for those who only ask whether a block is inside: no lock.
static BASE: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

/// Whether an address is in the range.
pub fn contains(address: *const u8) -> bool {
    let address = address.addr();
    // END is 0 until both are known
    address < END.load(Ordering::Acquire) && address >= BASE.load(Ordering::Relaxed)
}

/// What a slab is used for: a byte in a table.
pub mod state {
    /// For nothing, or it is a guard. Zero, as the table is at first.
    pub const FREE: u8 = 0;
    /// For blocks of one class.
    pub const SMALL: u8 = 1;
    /// The first slab of a run that is one block.
    pub const LARGE: u8 = 2;
    /// Another slab of such a run.
    pub const INSIDE: u8 = 3;
    /// The first slab of a run that nobody has, whose pages are kept.
    pub const KEPT: u8 = 4;
    /// A run that could not be unmapped: overwritten, and never used again.
    pub const LOST: u8 = 5;
}

/// What is known of a run, at its first slab. All zeros is a value.
#[repr(C)]
pub struct Record {
    /// Bytes that are mapped, which end where the run ends.
    mapped: usize,
    secret: bool,
    locked: bool,
    /// A slab of small blocks has their class, how many are free, and the next slab of the class that has free ones.
    pub class: u8,
    pub free: u16,
    pub next: u32,
    /// A block that is a run has its size.
    pub bytes: usize,
    /// A slab of small blocks has a bit for each that is taken.
    pub taken: [u64; SLAB / super::ALIGN / 64],
}

pub struct Pages {
    /// Null until first use.
    base: *mut u8,
    slabs: usize,
    page: usize,
    /// A byte of [`state`] for each slab.
    states: *mut u8,
    /// A record for each slab; those below `records_open` are accessible, and so many bytes of them.
    records: *mut Record,
    records_open: usize,
    record_bytes_open: usize,
    /// No run can begin below.
    lowest: usize,
    kept: [u32; KEPT_RUNS],
    kept_count: usize,
    kept_bytes: usize,
    in_use: usize,
    secret: usize,
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
            page: 4096,
            states: std::ptr::null_mut(),
            records: std::ptr::null_mut(),
            records_open: 0,
            record_bytes_open: 0,
            lowest: 1,
            kept: [0; KEPT_RUNS],
            kept_count: 0,
            kept_bytes: 0,
            in_use: 0,
            secret: 0,
            unlocked: 0,
            most_unlocked: 0,
            undumpable: false,
            wiped_on_fork: false,
        }
    }

    pub fn status(&self) -> Status {
        Status {
            bytes: self.in_use as u64,
            secret: self.secret as u64,
            unlocked: self.most_unlocked as u64,
            elsewhere: 0,
            undumpable: self.undumpable,
            wiped_on_fork: self.wiped_on_fork,
        }
    }

    /// The slab that an address of the range lies in.
    pub fn slab_of(&self, address: *const u8) -> usize {
        (address.addr() - self.base.addr()) / SLAB
    }

    /// The first byte of a slab.
    pub fn start(&self, slab: usize) -> *mut u8 {
        // SAFETY: slabs are inside the range.
        unsafe { self.base.add(slab * SLAB) }
    }

    /// Where the run that begins with `first` ends.
    pub fn end(&mut self, first: usize) -> *mut u8 {
        let count = self.record(first).mapped.div_ceil(SLAB);
        self.start(first + count)
    }

    /// What a slab is used for: a value of [`state`].
    pub fn state(&self, slab: usize) -> u8 {
        self.states()[slab]
    }

    /// What is known of the run that begins with `slab`.
    pub fn record(&mut self, slab: usize) -> &mut Record {
        assert!(slab < self.records_open, "a slab that was used");
        // SAFETY: accessible, inside the table, and all zeros or set since; borrowed with `self`.
        unsafe { &mut *self.records.add(slab) }
    }

    /// A run of zeros that ends where its last slab ends, of at least `bytes` bytes; its first slab, and its end. None if
    /// addresses or memory are short.
    pub fn take(&mut self, bytes: usize, used_for: u8) -> Option<(usize, NonNull<u8>)> {
        if self.base.is_null() {
            self.reserve()?;
        }
        let mapped = rounded_pages(bytes.div_ceil(self.page)).checked_mul(self.page)?;
        let first = match self.take_kept(mapped) {
            Some(first) => first,
            None => self.map_run(mapped).or_else(|| {
                self.forget_kept();
                self.map_run(mapped)
            })?,
        };
        let count = mapped.div_ceil(SLAB);
        self.states_mut()[first] = used_for;
        self.states_mut()[first + 1..first + count].fill(state::INSIDE);
        NonNull::new(self.start(first + count)).map(|end| (first, end))
    }

    /// Takes a run back, all of which was overwritten: it is inaccessible from now on. Its memory goes to the system, now or
    /// later; its addresses stay.
    pub fn give_back(&mut self, first: usize) {
        let bytes = self.record(first).mapped;
        if bytes <= KEPT_BYTES / 2 {
            while self.kept_count == KEPT_RUNS || self.kept_bytes + bytes > KEPT_BYTES {
                self.forget_oldest();
            }
            if self.protect(first, libc::PROT_NONE) {
                self.states_mut()[first] = state::KEPT;
                self.kept[self.kept_count] = first as u32;
                self.kept_count += 1;
                self.kept_bytes += bytes;
                return;
            }
        }
        self.unmap_run(first);
    }

    /// A run that was kept and has just this many bytes, the last one first: its pages may still be in the caches.
    fn take_kept(&mut self, bytes: usize) -> Option<usize> {
        let mut runs = (0..self.kept_count).rev();
        let place = runs.find(|&place| self.record(self.kept[place] as usize).mapped == bytes)?;
        let first = self.kept[place] as usize;
        self.protect(first, libc::PROT_READ | libc::PROT_WRITE).then(|| self.remove_kept(place))
    }

    /// The addresses of the first run that is kept for later behind `address`; none behind the last.
    #[cfg(all(feature = "forensics", target_os = "linux"))]
    pub fn kept_behind(&mut self, address: usize) -> Option<std::ops::Range<usize>> {
        let firsts = self.kept;
        let ranges = firsts[..self.kept_count].iter().map(|&first| self.range(first as usize));
        ranges.filter(|range| range.start >= address).min_by_key(|range| range.start)
    }

    /// Copies bytes from an address of a run that is kept for later, which is readable meanwhile and no longer; how many, and none
    /// if no such run has it.
    #[cfg(all(feature = "forensics", target_os = "linux"))]
    pub fn read_kept(&mut self, address: usize, into: &mut [u8]) -> Option<usize> {
        let firsts = self.kept;
        let kept = firsts[..self.kept_count].iter().map(|&first| first as usize);
        let (place, first) = kept.enumerate().find(|(_, first)| self.range(*first).contains(&address))?;
        if !self.protect(first, libc::PROT_READ) {
            return None;
        }
        let range = self.range(first);
        let count = into.len().min(range.end - address);
        // SAFETY: pages of a run of ours that may be read now, and that nobody writes to: whoever takes it has the lock first.
        // `into` is no part of the run, which nobody uses.
        unsafe {
            let from = self.base.add(address - self.base.addr());
            std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), count);
        }
        if !self.protect(first, libc::PROT_NONE) {
            self.remove_kept(place);
            self.unmap_run(first);
        }
        Some(count)
    }

    /// Where the pages of a run are.
    #[cfg(all(feature = "forensics", target_os = "linux"))]
    fn range(&mut self, first: usize) -> std::ops::Range<usize> {
        let mapped = self.record(first).mapped;
        let start = self.mapping(first, mapped).addr();
        start..start + mapped
    }

    fn remove_kept(&mut self, place: usize) -> usize {
        let first = self.kept[place] as usize;
        self.kept.copy_within(place + 1..self.kept_count, place);
        self.kept_count -= 1;
        self.kept_bytes -= self.record(first).mapped;
        first
    }

    fn forget_oldest(&mut self) {
        let first = self.remove_kept(0);
        self.unmap_run(first);
    }

    fn forget_kept(&mut self) {
        while self.kept_count > 0 {
            self.forget_oldest();
        }
    }

    /// Finds addresses and memory for a run.
    fn map_run(&mut self, bytes: usize) -> Option<usize> {
        let count = bytes.div_ceil(SLAB);
        let first = self.find(count)?;
        self.open_records(first + 1)?;
        let (start, rights) = (self.mapping(first, bytes), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: pages of a free run of ours.
        let mut secret = unsafe { map_secret(start, bytes) };
        if !secret && self.kept_count > 0 && !secretmem::is_known_missing() {
            self.forget_kept(); // what it holds counts against the same limit
            // SAFETY: as above.
            secret = unsafe { map_secret(start, bytes) };
        }
        // SAFETY: as above.
        if !secret && unsafe { libc::mprotect(start.cast(), bytes, rights) } != 0 {
            return None;
        }
        // SAFETY: as above; a refusal is counted.
        let locked = secret || unsafe { libc::mlock(start.cast(), bytes) } == 0;
        self.in_use += bytes;
        self.secret += if secret { bytes } else { 0 };
        if !locked {
            self.unlocked += bytes;
            self.most_unlocked = self.most_unlocked.max(self.unlocked);
        }
        if count == 1 && first >= self.lowest {
            self.lowest = first + 2; // behind the guard: all before was searched for a single slab
        }
        let record = self.record(first);
        (record.mapped, record.secret, record.locked) = (bytes, secret, locked);
        Some(first)
    }

    /// Gives the memory of a run to the system.
    fn unmap_run(&mut self, first: usize) {
        let Record { mapped, secret, locked, .. } = *self.record(first);
        let start = self.mapping(first, mapped);
        let gone = if secret {
            self.map_anonymous(start, mapped, libc::PROT_NONE)
        } else {
            // SAFETY: pages of a run of ours that nobody uses.
            unsafe {
                libc::munlock(start.cast(), mapped);
                libc::madvise(start.cast(), mapped, libc::MADV_DONTNEED);
                libc::mprotect(start.cast(), mapped, libc::PROT_NONE) == 0
            }
        };
        let count = mapped.div_ceil(SLAB);
        if !gone {
            return self.states_mut()[first..first + count].fill(state::LOST);
        }
        self.states_mut()[first..first + count].fill(state::FREE);
        self.in_use -= mapped;
        self.secret -= if secret { mapped } else { 0 };
        self.unlocked -= if locked { 0 } else { mapped };
        self.lowest = self.lowest.min(first.saturating_sub(1).max(1)); // together with a free slab before it
    }

    /// In a forked child: what its parent has in [`secretmem`] is not there; zeros take its place, and the child goes on
    /// with what was allocated before as its own. What was private memory is zeros already. Nothing is locked.
    pub fn in_child(&mut self) {
        if self.base.is_null() {
            return;
        }
        for first in 0..self.records_open {
            let rights = match self.state(first) {
                state::SMALL | state::LARGE | state::LOST => libc::PROT_READ | libc::PROT_WRITE,
                state::KEPT => libc::PROT_NONE,
                _ => continue,
            };
            let Record { mapped, secret, .. } = *self.record(first);
            let start = self.mapping(first, mapped);
            if secret && !self.map_anonymous(start, mapped, rights) {
                fault::end(Fault::NotReplaced); // who maps something there would have it overwritten
            }
            let record = self.record(first);
            (record.secret, record.locked) = (false, false);
        }
        (self.secret, self.unlocked, self.most_unlocked) = (0, self.in_use, self.in_use);
    }

    /// Puts private memory in the place of a mapping, with the protections of the range.
    fn map_anonymous(&self, start: *mut u8, bytes: usize, rights: libc::c_int) -> bool {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: pages of the range, of a run that nobody uses or whose pages are gone.
        let mapped = unsafe { libc::mmap(start.cast(), bytes, rights, flags, -1, 0) } != libc::MAP_FAILED;
        if mapped {
            advise(start, bytes);
        }
        mapped
    }

    fn protect(&mut self, first: usize, rights: libc::c_int) -> bool {
        let mapped = self.record(first).mapped;
        // SAFETY: pages of a run of ours that nobody uses.
        unsafe { libc::mprotect(self.mapping(first, mapped).cast(), mapped, rights) == 0 }
    }

    /// Where the pages of a run begin: they end where its last slab does.
    fn mapping(&self, first: usize, bytes: usize) -> *mut u8 {
        // SAFETY: inside the run.
        unsafe { self.start(first).add(bytes.next_multiple_of(SLAB) - bytes) }
    }

    /// The first free slabs in a row that have a free one on either side, which stays free: guards may be shared.
    fn find(&self, count: usize) -> Option<usize> {
        let mut free = 0;
        for (slab, &used_for) in self.states().iter().enumerate().skip(self.lowest - 1) {
            free = if used_for == state::FREE { free + 1 } else { 0 };
            if free == count + 2 {
                return Some(slab - count);
            }
        }
        None
    }

    fn states(&self) -> &[u8] {
        // SAFETY: the table has a byte for each slab.
        unsafe { std::slice::from_raw_parts(self.states, self.slabs) }
    }

    fn states_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.states, self.slabs) }
    }

    /// Makes the first `count` records accessible.
    fn open_records(&mut self, count: usize) -> Option<()> {
        if count <= self.records_open {
            return Some(());
        }
        let open = (count * size_of::<Record>()).next_multiple_of(SLAB);
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: inside the table, and inaccessible until now.
        unsafe {
            let start = self.records.cast::<u8>().add(self.record_bytes_open);
            if libc::mprotect(start.cast(), open - self.record_bytes_open, rights) != 0 {
                return None;
            }
        }
        self.record_bytes_open = open;
        self.records_open = (open / size_of::<Record>()).min(self.slabs);
        Some(())
    }

    /// Reserves the range, and has its protections put on all of it.
    fn reserve(&mut self) -> Option<()> {
        let (base, bytes) =
            RESERVATIONS.into_iter().find_map(|bytes| Some((reserve_addresses(bytes)?, bytes)))?;
        let slabs = bytes / SLAB;
        let states = reserve_addresses(slabs.next_multiple_of(SLAB))?;
        let records = reserve_addresses((slabs * size_of::<Record>()).next_multiple_of(SLAB))?;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: our own table, which nobody knows yet.
        if unsafe { libc::mprotect(states.cast(), slabs.next_multiple_of(SLAB), rights) } != 0 {
            return None;
        }
        (self.undumpable, self.wiped_on_fork) = advise(base, bytes);
        // SAFETY: asks for a constant.
        self.page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        // SAFETY: handlers that take and give a lock, and map memory. A refusal (no memory) leaves forked children without
        // what is in `secretmem`, and those that allocate here at the moment of a fork to wait for ever.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_parent), Some(after_fork_child)) };
        BASE.store(base.addr(), Ordering::Relaxed);
        END.store(base.addr() + bytes, Ordering::Release);
        (self.slabs, self.states, self.records, self.base) = (slabs, states, records.cast(), base);
        Some(())
    }
}

/// Pages that are mapped where so many are needed: a little more where there are many, so that runs are used again.
fn rounded_pages(pages: usize) -> usize {
    const STEPS: usize = 8;
    let step = pages.max(1).next_power_of_two() / (2 * STEPS);
    if step > 1 { pages.next_multiple_of(step) } else { pages }
}

/// Out of core dumps, and zeros in forked children: what was granted of the two.
fn advise(start: *mut u8, bytes: usize) -> (bool, bool) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: advice about our own mapping.
        let advise = |advice| unsafe { libc::madvise(start.cast(), bytes, advice) } == 0;
        (advise(libc::MADV_DONTDUMP), advise(libc::MADV_WIPEONFORK))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (start, bytes);
        (false, false)
    }
}

/// # Safety
/// The caller keeps the contract of [`secretmem::map_over`].
unsafe fn map_secret(start: *mut u8, bytes: usize) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: the caller's promise.
    return unsafe { secretmem::map_over(start, bytes) };
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (start, bytes, secretmem::is_known_missing());
        false
    }
}

/// Reserves addresses that begin at a slab and are inaccessible, as is a slab on either side.
fn reserve_addresses(bytes: usize) -> Option<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let all = bytes.checked_add(3 * SLAB)?;
    // SAFETY: a new private mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), all, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    let skip = start.addr().next_multiple_of(SLAB) - start.addr() + SLAB;
    // SAFETY: less than two slabs of the three that were asked for beyond `bytes`.
    Some(unsafe { start.cast::<u8>().add(skip) })
}
