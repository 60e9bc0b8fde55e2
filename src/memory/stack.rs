//! Cleaning the stack below the caller: spilled registers and dead frames hold activations and text.
#![expect(unsafe_code, reason = "overwrites the unused part of this thread's own stack")]

use super::scrub::Scrubbed;

/// How far below the caller the library's own threads clean. Their deepest call chains (a kernel; the tokenizer)
/// stay well inside it, and their stacks are larger ([`THREAD_STACK_BYTES`]).
pub const DEPTH_BYTES: usize = 448 * 1024;

/// The stack size of every thread that the library starts.
pub const THREAD_STACK_BYTES: usize = 1024 * 1024;

/// Overwrites [`DEPTH_BYTES`] of dead stack below the caller's frame.
///
/// Only for threads started with [`THREAD_STACK_BYTES`] and called near the bottom of them: the memory must exist.
#[cfg_attr(amnesic_faults, track_caller)]
#[inline(never)]
pub fn scrub_below() -> Scrubbed {
    overwrite::<{ DEPTH_BYTES / 8 }>()
}

/// Overwrites a frame of `WORDS` words, and clears the vector registers.
#[cfg_attr(amnesic_faults, track_caller)]
#[inline(never)]
fn overwrite<const WORDS: usize>() -> Scrubbed {
    #[cfg(amnesic_faults)]
    if super::scrub::faults::is_left_out(std::panic::Location::caller()) {
        return super::scrub::faults::proof_of_nothing(); // with the frame's zeros and the registers
    }
    let mut frame = std::mem::MaybeUninit::<[u64; WORDS]>::uninit();
    // SAFETY: zero is a value of every integer; the frame is written whole before it is read.
    let words: &mut [u64] = unsafe {
        frame.as_mut_ptr().write_bytes(0, 1);
        frame.assume_init_mut()
    };
    super::registers::clear();
    super::scrub(words)
}

/// The stack size of the thread that runs parsers: templates, tokenizers and grammars recurse.
pub const DEEP_STACK_BYTES: usize = 4 * 1024 * 1024;

/// How far below the caller [`scrub_deep`] cleans.
pub const DEEP_BYTES: usize = 3 * 1024 * 1024;

/// Does what [`scrub_below`] does for threads started with [`DEEP_STACK_BYTES`].
#[cfg_attr(amnesic_faults, track_caller)]
#[inline(never)]
pub fn scrub_deep() -> Scrubbed {
    overwrite::<{ DEEP_BYTES / 8 }>()
}

/// How far below the caller [`tidy`] cleans.
const TIDY_BYTES: usize = 4 * 1024;

/// Overwrites what bookkeeping left just below the caller's frame, for threads that wait after they were cleaned: it holds no
/// content, but it would hide some that is left from whoever looks. It calls nothing, so it leaves nothing itself.
#[inline(never)]
pub fn tidy() {
    let mut frame = std::mem::MaybeUninit::<[u64; TIDY_BYTES / 8]>::uninit();
    let words = frame.as_mut_ptr().cast::<u64>();
    for word in 0..TIDY_BYTES / 8 {
        // SAFETY: a word of the frame, each once. Volatile, or the compiler would call a function for all of them.
        unsafe { words.add(word).write_volatile(0) };
    }
}

/// How far below the caller [`scrub_shallow`] cleans.
const SHALLOW_BYTES: usize = 16 * 1024;

/// Does what [`scrub_below`] does on any thread, for what a cipher leaves: the application's threads have no more stack than
/// they need.
#[cfg_attr(amnesic_faults, track_caller)]
#[inline(never)]
pub fn scrub_shallow() -> Scrubbed {
    overwrite::<{ SHALLOW_BYTES / 8 }>()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What is left of a mark in a dead frame after `clean`, on a thread of its own.
    pub(crate) fn left_after(clean: impl FnOnce() + Send + 'static) -> u64 {
        let run = || {
            let at = leave_mark();
            clean();
            // SAFETY: the address is in this thread's stack, which is mapped; nothing else writes it now.
            unsafe { (at as *const u64).read_volatile() }
        };
        std::thread::Builder::new().stack_size(THREAD_STACK_BYTES).spawn(run).unwrap().join().unwrap()
    }

    /// Leaves a mark in a dead frame and returns its address.
    #[inline(never)]
    fn leave_mark() -> usize {
        let mut mark = [0x5ec2_e75e_c2e7_5ec2_u64; 64];
        std::hint::black_box(&mut mark).as_ptr() as usize
    }

    #[test]
    fn what_bookkeeping_leaves_is_overwritten() {
        assert_eq!(left_after(tidy), 0);
        assert_ne!(left_after(|| ()), 0, "the test would see nothing");
    }

    #[test]
    fn a_dead_frame_is_overwritten() {
        let run = || {
            let at = leave_mark();
            let scrubbed = scrub_below().bytes();
            // SAFETY: the address is in this thread's stack, which is mapped; nothing else writes it now.
            (scrubbed, unsafe { (at as *const u64).read_volatile() })
        };
        let (scrubbed, word) =
            std::thread::Builder::new().stack_size(THREAD_STACK_BYTES).spawn(run).unwrap().join().unwrap();
        assert_eq!((scrubbed, word), (DEPTH_BYTES as u64, 0));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn registers_are_cleared_too() {
        extern "C" fn clean() {
            let _ = scrub_below();
        }
        let cleared = super::super::registers::tests::registers_after(clean);
        assert!(cleared.is_none_or(|registers| registers == ([0; 4], [0; 8])), "{cleared:x?}");
    }
}
