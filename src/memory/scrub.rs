//! Overwriting memory so that the compiler cannot leave it out.
//!
//! `fill(0)` compiles to the C library's `memset`, which runs at memory speed (it streams past the caches above
//! their size) and takes 64-bit lengths; the empty `asm!` behind it takes the pointer as an input and may read all
//! memory, so the stores must have happened by then. Volatile stores would do the same a word at a time: 3 to 5
//! times slower on regions larger than the cache (`benches/scrub.rs` prints the rate of this one).
#![expect(unsafe_code, reason = "an optimisation barrier, and the view of plain numbers as bytes")]

use std::arch::asm;

/// Proof that bytes were overwritten with zeros. Only this file makes one.
#[must_use = "hand it to whoever releases the memory, or to the ledger"]
#[derive(Debug)]
pub struct Scrubbed {
    bytes: u64,
}

impl Scrubbed {
    /// How many bytes were overwritten.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// One proof for two: both memories were overwritten.
    pub fn and(self, other: Scrubbed) -> Scrubbed {
        Scrubbed { bytes: self.bytes + other.bytes }
    }

    /// The proof for no memory at all, from which sums start.
    pub fn nothing() -> Scrubbed {
        Scrubbed { bytes: 0 }
    }
}

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

/// Overwrites `values` with zeros; returns the proof.
pub fn scrub<T: Plain>(values: &mut [T]) -> Scrubbed {
    let bytes = size_of_val(values) as u64;
    #[cfg(feature = "testing")]
    if DISABLED.load(std::sync::atomic::Ordering::Relaxed) {
        return Scrubbed { bytes };
    }
    // SAFETY: `T: Plain`, so its memory is `size_of_val` initialised bytes, borrowed mutably here.
    let raw =
        unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), size_of_val(values)) };
    raw.fill(0);
    barrier(raw.as_ptr());
    Scrubbed { bytes }
}

/// Set by tests that show that they would notice.
#[cfg(feature = "testing")]
static DISABLED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Turns every scrub of this process into a no-op.
#[cfg(feature = "testing")]
pub fn disable() {
    DISABLED.store(true, std::sync::atomic::Ordering::Relaxed);
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
