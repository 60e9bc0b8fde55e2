//! Overwriting memory so that the compiler cannot leave it out.
//!
//! `fill(0)` compiles to the C library's `memset`, which runs at memory speed (it streams past the caches above
//! their size) and takes 64-bit lengths; the empty `asm!` behind it takes the pointer as an input and may read all
//! memory, so the stores must have happened by then. Volatile stores would do the same a word at a time: 3 to 5
//! times slower on regions larger than the cache (`benches/scrub.rs` prints the rate of this one).
#![expect(unsafe_code, reason = "an optimisation barrier, and the view of plain numbers as bytes")]

#[cfg(amnesic_faults)]
pub mod faults;

use std::arch::asm;

/// Proof that bytes were overwritten with zeros, and of what was seen when some of them were read back. Only this file
/// makes one, once they are.
#[must_use = "hand it to whoever releases the memory, or to the ledger"]
#[derive(Debug)]
pub struct Scrubbed {
    bytes: u64,
    samples: u64,
    dirty: bool,
}

impl Scrubbed {
    /// How many bytes were overwritten.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many places of up to [`SAMPLE_BYTES`] were read back.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Whether one of them was not zero.
    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// One proof for two: both memories were overwritten.
    pub fn and(self, other: Scrubbed) -> Scrubbed {
        Scrubbed {
            bytes: self.bytes + other.bytes,
            samples: self.samples + other.samples,
            dirty: self.dirty || other.dirty,
        }
    }

    /// One proof for all of these; none if there are none.
    pub fn sum(proofs: impl IntoIterator<Item = Scrubbed>) -> Option<Scrubbed> {
        proofs.into_iter().reduce(Scrubbed::and)
    }

    /// The proof that a device gives when it is done, which overwrites and looks by itself: `samples` places were read back,
    /// and whether one was not zero. A device that failed cannot tell: that is dirty.
    pub fn by_device(bytes: u64, samples: u64, dirty: bool) -> Scrubbed {
        Scrubbed { bytes, samples, dirty }
    }
}

/// Bytes of one place that is read back.
pub const SAMPLE_BYTES: usize = 64;

/// Numbers without padding, pointers or invalid bit patterns: their memory may be read and written as bytes.
///
/// # Safety
/// Implementors promise exactly that.
pub unsafe trait Plain: Copy + Default + Send + Sync + 'static {}

// SAFETY: integers and floats have no padding and every bit pattern is a value.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for f64 {}

/// Overwrites `values` with zeros and reads three places back: the first, the last, and one that nobody can foresee.
#[cfg_attr(amnesic_faults, track_caller)]
pub fn scrub<T: Plain>(values: &mut [T]) -> Scrubbed {
    let bytes = size_of_val(values) as u64;
    #[cfg(amnesic_faults)]
    if faults::is_left_out(std::panic::Location::caller()) {
        return Scrubbed { bytes, samples: 0, dirty: false };
    }
    // SAFETY: `T: Plain`, so its memory is `size_of_val` initialised bytes, borrowed mutably here.
    let raw =
        unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), size_of_val(values)) };
    fill(raw);
    let (samples, dirty) = sample(raw);
    Scrubbed { bytes, samples, dirty }
}

/// Overwrites `bytes` with zeros. No proof: for memory that is not the session's.
#[cfg_attr(amnesic_faults, track_caller)]
#[inline]
pub fn overwrite(bytes: &mut [u8]) {
    #[cfg(amnesic_faults)]
    if faults::is_left_out(std::panic::Location::caller()) {
        return;
    }
    fill(bytes);
}

#[inline]
fn fill(bytes: &mut [u8]) {
    #[cfg(amnesic_faults)]
    if faults::are_no_ops() {
        return;
    }
    bytes.fill(0);
    barrier(bytes.as_ptr());
}

/// Reads places of `bytes` back; returns how many, and whether one was not zero.
fn sample(bytes: &[u8]) -> (u64, bool) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    /// A Weyl sequence: steps by the golden ratio, so that places spread evenly over regions of any size.
    static PLACE: AtomicUsize = AtomicUsize::new(0);
    const STEP: usize = 0x9e37_79b9_7f4a_7c15_u64 as usize;
    let Some(spare) = bytes.len().checked_sub(SAMPLE_BYTES) else {
        return (u64::from(!bytes.is_empty()), !is_zero(bytes));
    };
    // the upper half of a product: a place from 0 to `spare`, without a division
    let place = PLACE.fetch_add(STEP, Ordering::Relaxed);
    let middle = ((place as u128 * (spare as u128 + 1)) >> usize::BITS) as usize;
    let dirty = [0, middle, spare].iter().fold(false, |dirty, &at| {
        let words = bytes[at..at + SAMPLE_BYTES].as_chunks::<8>().0;
        dirty | (words.iter().fold(0, |any, word| any | u64::from_ne_bytes(*word)) != 0)
    });
    (3, dirty)
}

/// Whether every byte of `bytes` is zero, read back from memory.
pub fn is_zero(bytes: &[u8]) -> bool {
    barrier(bytes.as_ptr());
    // Sixteen words at a time without a branch inside: the compiler makes wide loads of it.
    let (head, words, tail) = split_words(bytes);
    let wide = words.chunks(1024).all(|chunk| chunk.iter().fold(0, |any, word| any | word) == 0);
    wide && head.iter().chain(tail).all(|&byte| byte == 0)
}

fn split_words(bytes: &[u8]) -> (&[u8], &[u64], &[u8]) {
    // SAFETY: every bit pattern is a u64; `align_to` keeps the middle aligned.
    unsafe { bytes.align_to::<u64>() }
}

/// What was stored in `value` before is in memory from here on, also where it is freed right away: else the compiler
/// leaves out stores that it can see nobody read.
pub fn keep_stores<T>(value: &T) {
    barrier(std::ptr::from_ref(value).cast());
}

/// Empties a list that stays and overwrites what was in it, of numbers that are no content but tell something of it: clearing
/// it would only shorten it.
pub fn empty<T: Copy + Default>(list: &mut Vec<T>) {
    list.fill(T::default());
    list.first().into_iter().for_each(keep_stores);
    list.clear();
}

/// Makes the compiler believe that the memory at `start` is read here.
fn barrier(start: *const u8) {
    // SAFETY: no instruction; without `nomem` it counts as a reader of all memory.
    unsafe { asm!("/* {0} */", in(reg) start, options(nostack, preserves_flags)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrub_overwrites_every_byte_and_counts_in_bytes() {
        for len in [0, 1, 7, 8, 9, 63, 64, 4097] {
            let mut values = vec![0x5a5a_5a5a_u32; len];
            assert_eq!(scrub(&mut values).bytes(), 4 * len as u64);
            assert!(values.iter().all(|&value| value == 0));
        }
    }

    #[test]
    fn is_zero_sees_one_byte_anywhere() {
        let mut bytes = vec![0_u8; 3001];
        assert!(is_zero(&bytes));
        for at in [0, 1, 7, 8, 1500, 2999, 3000] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "missed the byte at {at}");
            bytes[at] = 0;
        }
    }
}
