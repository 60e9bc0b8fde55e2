//! Small blocks: slabs of one size class each, and a bit for each block in the slab's record.
//!
//! Which of a slab's free blocks is handed out is drawn: who frees a block and goes on using it cannot foresee whose it
//! is next, and who writes past the end of one cannot choose what he meets.

use std::ptr::NonNull;

use super::ALIGN;
use super::fault::{self, Fault};
use super::pages::{Pages, SLAB, state};

/// The largest block that comes from a slab which it shares.
pub const LARGEST_SMALL: usize = SLAB / 4;

/// Four classes for each doubling, from 16 bytes on.
pub const CLASSES: usize = 4 * (LARGEST_SMALL.ilog2() - 4) as usize + 1;

/// The class of blocks of `bytes` (from 1 to [`LARGEST_SMALL`]), and the bytes of its blocks.
pub fn class(bytes: usize) -> (usize, usize) {
    if bytes <= ALIGN {
        return (0, ALIGN);
    }
    // 2^n < bytes <= 2^(n + 1), in four steps of a quarter of 2^n each
    let n = (bytes - 1).ilog2();
    let step = (bytes - 1 - (1 << n)) >> (n - 2);
    (4 * (n as usize - 4) + step + 1, (1 << n) + ((step + 1) << (n - 2)))
}

/// A small block: which slab it is in, and the how manieth.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    slab: usize,
    index: usize,
}

pub struct Slabs {
    /// The first slab of each class that has free blocks; 0, which is a guard, where none has.
    with_free: [u32; CLASSES],
    /// The state of a generator whose numbers only choose blocks. Zero until first use.
    random: u64,
}

impl Slabs {
    pub const fn new() -> Self {
        Self { with_free: [0; CLASSES], random: 0 }
    }

    /// A free block of a class whose blocks have `size` bytes. Nobody else knows it any more; it should be zero.
    pub fn take(&mut self, pages: &mut Pages, class: usize, size: usize) -> Option<NonNull<u8>> {
        let slab = match self.with_free[class] {
            0 => self.add(pages, class, size)?,
            slab => slab as usize,
        };
        let (count, drawn) = (SLAB / size, self.draw());
        let record = pages.record(slab);
        let words = count.div_ceil(64);
        // the upper bits choose a word to begin with, the lower ones a bit in it
        let first = (((drawn >> 32) * words as u64) >> 32) as usize;
        let (word, bit) = (first..words).chain(0..first).find_map(|word| {
            let free = !record.taken[word];
            let turn = drawn as u32 % 64;
            (free != 0).then(|| (word, (free.rotate_right(turn).trailing_zeros() + turn) % 64))
        })?;
        record.taken[word] |= 1 << bit;
        record.free -= 1;
        if record.free == 0 {
            self.with_free[class] = record.next;
        }
        let at = first_byte(size) + (64 * word + bit as usize) * size;
        NonNull::new(pages.start(slab).wrapping_add(at))
    }

    /// Finds a block that is to be freed; ends the process where it is none.
    pub fn find(&self, pages: &mut Pages, block: *const u8, class: usize, size: usize) -> Slot {
        let slab = pages.slab_of(block);
        if pages.state(slab) != state::SMALL {
            fault::end(match pages.state(slab) {
                state::LARGE | state::INSIDE => Fault::WrongSize,
                _ => Fault::NotABlock,
            });
        }
        let at = (block.addr() - pages.start(slab).addr()).checked_sub(first_byte(size));
        let record = pages.record(slab);
        if usize::from(record.class) != class {
            fault::end(Fault::WrongSize);
        }
        let Some(at) = at.filter(|at| at.is_multiple_of(size)) else { fault::end(Fault::NotABlock) };
        let index = at / size;
        if record.taken[index / 64] & (1 << (index % 64)) == 0 {
            fault::end(Fault::FreedTwice);
        }
        Slot { slab, index }
    }

    /// Takes a block back, which was overwritten.
    pub fn give_back(&mut self, pages: &mut Pages, slot: Slot) {
        let record = pages.record(slot.slab);
        let bit = 1 << (slot.index % 64);
        if record.taken[slot.index / 64] & bit == 0 {
            fault::end(Fault::FreedTwice); // by another thread at the same time
        }
        record.taken[slot.index / 64] &= !bit;
        record.free += 1;
        if record.free == 1 {
            let first = &mut self.with_free[usize::from(record.class)];
            (record.next, *first) = (*first, slot.slab as u32);
        }
    }

    /// A new slab of a class, whose blocks are all free.
    fn add(&mut self, pages: &mut Pages, class: usize, size: usize) -> Option<usize> {
        let (slab, _) = pages.take(SLAB, state::SMALL)?;
        let (record, count) = (pages.record(slab), SLAB / size);
        (record.class, record.free, record.next) = (class as u8, count as u16, 0);
        record.taken.fill(0);
        // there are no blocks behind the last
        if count % 64 > 0 {
            record.taken[count / 64] = !0 << (count % 64);
        }
        self.with_free[class] = slab as u32;
        Some(slab)
    }

    /// Marsaglia's xorshift: cheap, and nobody outside sees its numbers.
    fn draw(&mut self) -> u64 {
        if self.random == 0 {
            self.random = getrandom::u64().unwrap_or(0) | 1;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// Where a slab's first block begins: its last one ends where the guard does begin.
fn first_byte(size: usize) -> usize {
    SLAB % size
}
