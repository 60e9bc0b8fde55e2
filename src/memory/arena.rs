//! One locked mapping per session and device: all activations, KV blocks and logits live in it.
//!
//! Sizes are planned first ([`Layout`]), mapped once, used by [`Region`]s; buffers of the plan lie behind one another. The
//! mapping has a guard page on
//! either side, stays out of core dumps (`MADV_DONTDUMP`), reads as zeros in forked children (`MADV_WIPEONFORK`),
//! and is locked in memory where the limits allow. Dropping it overwrites every byte before it is unmapped.
#![expect(unsafe_code, reason = "maps memory and hands out slices of it")]

use std::io;
use std::ops::Range;
use std::ptr::NonNull;

use super::layout::{Layout, Region};
use super::ledger::{Memory, NotCovered};
use super::scrub::{Plain, Scrubbed, is_zero, scrub};

/// What an arena reports when it is closed.
#[derive(Debug)]
pub struct Closed {
    /// Regions it held.
    pub regions: u64,
    /// Proof of the last overwrite.
    pub scrubbed: Scrubbed,
    /// Bytes read back and found zero.
    pub verified: u64,
}

/// A locked, undumpable mapping. See the module.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    bytes: usize,
    /// Where each buffer of the plan lies.
    buffers: Vec<Range<usize>>,
    regions: usize,
    guard: usize,
    mlocked: bool,
    not_covered: Vec<NotCovered>,
}

// SAFETY: the arena owns its mapping alone; `&Arena` gives out shared slices only.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps, protects and locks the planned bytes, all zero.
    ///
    /// # Errors
    /// The mapping itself failed. A refused lock is no error: it is reported by [`Arena::close`].
    pub fn new(layout: &Layout) -> io::Result<Self> {
        let guard = page_bytes();
        let bytes = layout.bytes().max(1).next_multiple_of(guard);
        let all = bytes.checked_add(2 * guard).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), all, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: inside the mapping just made; the pages before and after it stay inaccessible.
        let base = unsafe { start.cast::<u8>().add(guard) };
        // SAFETY: `base..base + bytes` is page-aligned and inside that mapping.
        if unsafe { libc::mprotect(base.cast(), bytes, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            let error = io::Error::last_os_error();
            // SAFETY: the mapping made above, which nobody else has seen.
            unsafe { libc::munmap(start, all) };
            return Err(error);
        }
        let base = NonNull::new(base).expect("mmap never returns a mapping at null");
        let (buffers, regions) = (layout.ranges(), layout.regions());
        let mut arena =
            Self { base, bytes, buffers, regions, guard, mlocked: false, not_covered: Vec::new() };
        arena.protect();
        Ok(arena)
    }

    /// Asks the kernel for what it can do, and records what it refuses.
    fn protect(&mut self) {
        let (start, bytes) = (self.base.as_ptr().cast::<libc::c_void>(), self.bytes as u64);
        let memory = Memory::Arena;
        #[cfg(target_os = "linux")]
        {
            // SAFETY: advice about our own mapping; none of it moves or unmaps.
            let advise = |advice| unsafe { libc::madvise(start, self.bytes, advice) } == 0;
            // Large pages save TLB misses on the KV cache; refused is fine.
            advise(libc::MADV_HUGEPAGE);
            if !advise(libc::MADV_DONTDUMP) {
                self.not_covered.push(NotCovered::InCoreDumps { memory, bytes });
            }
            if !advise(libc::MADV_WIPEONFORK) {
                self.not_covered.push(NotCovered::VisibleAfterFork { memory, bytes });
            }
        }
        #[cfg(not(target_os = "linux"))]
        self.not_covered.extend([
            NotCovered::InCoreDumps { memory, bytes },
            NotCovered::VisibleAfterFork { memory, bytes },
        ]);
        // SAFETY: our own mapping.
        self.mlocked = unsafe { libc::mlock(start, self.bytes) } == 0;
        if !self.mlocked {
            self.not_covered.push(NotCovered::NotLocked { memory, bytes });
        }
    }

    /// Bytes that are locked in memory: all or none.
    pub fn locked_bytes(&self) -> u64 {
        if self.mlocked { self.bytes as u64 } else { 0 }
    }

    /// What the platform refused.
    pub fn not_covered(&self) -> &[NotCovered] {
        &self.not_covered
    }

    /// The values of a region.
    ///
    /// # Panics
    /// If the region is not of this arena's size.
    pub fn slice<T: Plain>(&self, region: Region) -> &[T] {
        // SAFETY: `pointer` checked the bounds and the alignment; the arena is borrowed shared.
        unsafe { std::slice::from_raw_parts(self.pointer(region), region.bytes() / size_of::<T>()) }
    }

    /// The values of a region, to write.
    ///
    /// # Panics
    /// Panics where [`Arena::slice`] does.
    pub fn slice_mut<T: Plain>(&mut self, region: Region) -> &mut [T] {
        // SAFETY: as above, and the arena is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(region), region.bytes() / size_of::<T>()) }
    }

    /// One region to read and another to write at once.
    ///
    /// # Panics
    /// If they overlap, and as [`Arena::slice`].
    pub fn read_write<R: Plain, W: Plain>(&mut self, read: Region, write: Region) -> (&[R], &mut [W]) {
        assert!(!read.overlaps(&write), "the regions overlap");
        // SAFETY: both inside the mapping and disjoint; the arena is borrowed mutably for both.
        unsafe {
            (
                std::slice::from_raw_parts(self.pointer(read), read.bytes() / size_of::<R>()),
                std::slice::from_raw_parts_mut(self.pointer(write), write.bytes() / size_of::<W>()),
            )
        }
    }

    /// The first value's address; kernels that split a region between threads start from it.
    ///
    /// # Panics
    /// Panics where [`Arena::slice`] does.
    pub fn pointer<T: Plain>(&self, region: Region) -> *mut T {
        let start = self.buffers.get(region.buffer()).and_then(|buffer| {
            let end = region.offset().checked_add(region.bytes())?;
            (end <= buffer.len()).then_some(buffer.start + region.offset())
        });
        let start = start.filter(|start| start.is_multiple_of(align_of::<T>()));
        let start = start.expect("the region is not of this arena");
        // SAFETY: just checked to be inside a buffer, and so inside the mapping.
        unsafe { self.base.as_ptr().add(start).cast() }
    }

    /// All bytes of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: all of the mapping, which is initialised; the arena is borrowed shared.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.bytes) }
    }

    /// All bytes of it, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: all of the mapping, which is initialised; the arena is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.bytes) }
    }

    /// Overwrites a region.
    #[cfg_attr(amnesic_faults, track_caller)]
    pub fn scrub(&mut self, region: Region) -> Scrubbed {
        scrub(self.slice_mut::<u8>(region))
    }

    /// Overwrites the whole arena.
    #[cfg_attr(amnesic_faults, track_caller)]
    pub fn scrub_all(&mut self) -> Scrubbed {
        scrub(self.bytes_mut())
    }

    /// Whether all of it is zeros.
    #[cfg(test)]
    pub fn is_zero(&self) -> bool {
        self.bytes().iter().all(|&byte| byte == 0)
    }

    /// Overwrites the whole arena, reads it back, and gives the memory up.
    pub fn close(mut self) -> Closed {
        let scrubbed = self.scrub_all();
        let all = self.bytes();
        // By chunks, so that the report says how much is zero when not all is.
        let verified =
            all.chunks(1 << 20).filter(|chunk| is_zero(chunk)).map(|chunk| chunk.len() as u64).sum();
        Closed { regions: self.regions as u64, scrubbed, verified }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let _ = self.scrub_all();
        // SAFETY: the whole mapping with its guards, made in `new`; no slice of it can outlive the arena.
        unsafe { libc::munmap(self.base.as_ptr().sub(self.guard).cast(), self.bytes + 2 * self.guard) };
    }
}

fn page_bytes() -> usize {
    // SAFETY: asks for a constant.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout::BufferLimits;

    fn arena() -> (Arena, Region, Region) {
        let mut layout = Layout::default();
        let one = layout.region(100).unwrap();
        let two = layout.region(4096).unwrap();
        (Arena::new(&layout).unwrap(), one, two)
    }

    #[test]
    fn regions_are_disjoint_aligned_and_zero() {
        let (mut arena, one, two) = arena();
        assert!(!one.overlaps(&two) && two.offset() % 64 == 0);
        assert!(is_zero(arena.slice::<u8>(two)));
        arena.slice_mut::<u8>(one).fill(1);
        assert!(is_zero(arena.slice::<u8>(two)));
    }

    #[test]
    fn closing_scrubs_verifies_and_reports() {
        let (mut arena, _, two) = arena();
        arena.slice_mut::<u8>(two).fill(0xff);
        let refused =
            arena.not_covered().contains(&NotCovered::NotLocked { memory: Memory::Arena, bytes: 8192 });
        assert!((arena.locked_bytes() == 8192) ^ refused);
        let closed = arena.close();
        assert_eq!((closed.regions, closed.scrubbed.bytes(), closed.verified), (2, 8192, 8192));
    }

    #[test]
    #[should_panic(expected = "not of this arena")]
    fn a_region_of_another_arena_is_refused() {
        let (arena, ..) = arena();
        let mut layout = Layout::default();
        layout.region(1 << 20).unwrap();
        let far = layout.region(8).unwrap();
        arena.slice::<u8>(far);
    }

    #[test]
    fn buffers_of_a_plan_lie_behind_one_another() {
        let mut layout = Layout::new(BufferLimits { alignment: 64, largest_bytes: 128 });
        let [one, two] = [100, 128].map(|bytes| layout.region(bytes).unwrap());
        let mut arena = Arena::new(&layout).unwrap();
        arena.slice_mut::<u8>(two).fill(1);
        assert!(two.buffer() == 1 && is_zero(arena.slice::<u8>(one)));
        assert_eq!(arena.bytes().iter().position(|&byte| byte == 1), Some(128));
        assert!(!arena.scrub(two).is_dirty() && arena.is_zero());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_kernel_knows_the_protections() {
        let (arena, one, _) = arena();
        let start = arena.pointer::<u8>(one) as usize;
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&format!("{start:x}-")));
        assert!(lines.next().unwrap().contains("rw-p"));
        let flags = lines.find(|line| line.starts_with("VmFlags:")).unwrap();
        for flag in ["dd", "wf"].into_iter().chain(arena.mlocked.then_some("lo")) {
            assert!(flags.split_whitespace().any(|word| word == flag), "{flag} is missing in {flags}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn guard_pages_stand_on_both_sides() {
        let (arena, one, _) = arena();
        let start = arena.pointer::<u8>(one) as usize;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let closed = |address: usize| {
            maps.lines().any(|line| {
                let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
                let [from, to] = [from, to].map(|edge| usize::from_str_radix(edge, 16).unwrap());
                (from..to).contains(&address) && line.contains("---p")
            })
        };
        assert!(closed(start - 1) && closed(start + arena.bytes) && !closed(start));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_forked_child_reads_zeros() {
        let (mut arena, _, two) = arena();
        arena.slice_mut::<u8>(two).fill(0xaa);
        // SAFETY: the child only reads memory and exits, both allowed after a fork of a threaded process.
        let status = unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::_exit(i32::from(!is_zero(arena.slice::<u8>(two))));
            }
            let mut status = -1;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            status
        };
        assert_eq!(status, 0, "the child saw the parent's bytes");
        assert!(arena.slice::<u8>(two).iter().all(|&byte| byte == 0xaa), "the parent keeps them");
    }
}
