//! Threads of the application that touch content: protected as the session's own are.

use std::cell::Cell;
use std::panic::resume_unwind;

use crate::error::{Error, Result};
use crate::memory::stack;
use crate::memory::thread::{self, Depth};

thread_local! {
    /// The address of a frame near the upper end of this thread's stack, while it runs in [`protected`].
    static TOP: Cell<Option<usize>> = const { Cell::new(None) };
}

/// How much of the stack may be in use where [`clean_stack`] works: beside it there is room for what it overwrites.
const IN_USE_BYTES: usize = 256 * 1024;

/// Runs `act` on a thread of its own, protected as the session's threads are, and waits for its result. For an
/// application that handles content itself: a server's connections and the JSON that they bring, a file of prompts.
///
/// With [`alloc::Scrubbing`](crate::alloc::Scrubbing) as the global allocator everything that the thread allocates comes
/// from the heap for secrets: locked where `RLIMIT_MEMLOCK` allows, out of core dumps, zeros in forked children,
/// overwritten when it is freed, whoever frees it. That holds for buffers that grow too, of any crate. Without it only
/// the stack is protected. The stack has 1 MiB, has the same protections, and is overwritten when `act` is done; see
/// [`clean_stack`] for one that goes on for long. The thread costs some tens of microseconds.
///
/// Not covered: threads that `act` starts, unless they run in `protected` too; what `act` owns or refers to that was
/// allocated elsewhere; thread-local variables. `act` must not fork: the child would find its stack zeroed.
///
/// ```no_run,standalone_crate
/// amnesic::install_scrubbing_allocator!();
///
/// # fn main() -> amnesic::Result<()> {
/// let characters = amnesic::privacy::protected(|| {
///     let mut line = String::new(); // as it grows, and all that comes of it: on the heap for secrets
///     std::io::stdin().read_line(&mut line).map(|_| line.chars().count())
/// })?;
/// # let _ = characters;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::Thread`] if the system starts no thread.
///
/// # Panics
///
/// If `act` panics.
pub fn protected<T: Send>(act: impl FnOnce() -> T + Send) -> Result<T> {
    let run = || {
        thread::confined(Depth::Kernels, || {
            let frame = 0_u8;
            TOP.set(Some((&raw const frame).addr()));
            act()
        })
    };
    std::thread::scope(|scope| {
        let thread = thread::builder("amnesic-protected", Depth::Kernels).spawn_scoped(scope, run);
        thread.map_err(Error::Thread)?.join().map_err(|panic| resume_unwind(panic))
    })
}

/// Overwrites 448 KiB of the calling thread's stack below the caller's frame: what functions that have returned left
/// there. For a thread that stays in [`protected`] for long: call it when a request is over, near the bottom of the
/// calls. About twenty microseconds.
///
/// Returns whether it did: it does nothing elsewhere than in [`protected`], nor more than 256 KiB below it.
///
/// ```no_run
/// # fn main() -> amnesic::Result<()> {
/// amnesic::privacy::protected(|| {
///     for line in std::io::stdin().lines().map_while(Result::ok) {
///         println!("{}", line.len());
///         drop(line);
///         assert!(amnesic::privacy::clean_stack());
///     }
/// })?;
/// assert!(!amnesic::privacy::clean_stack(), "this thread's stack is the application's");
/// # Ok(())
/// # }
/// ```
pub fn clean_stack() -> bool {
    let frame = 0_u8;
    let here = (&raw const frame).addr();
    let near = TOP.get().is_some_and(|top| top.abs_diff(here) <= IN_USE_BYTES);
    if near {
        let _ = stack::scrub_below();
    }
    near
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::heap;

    #[test]
    fn what_is_allocated_in_it_is_on_the_heap_for_secrets() {
        let here = heap::is_private();
        let grown = protected(|| {
            assert!(heap::is_private());
            let mut text = String::new();
            (0..10_000).for_each(|_| text.push('x'));
            text
        });
        // only with the allocator installed, which a unit test's program need not have
        let expected = crate::alloc::is_installed();
        assert_eq!(heap::contains(grown.unwrap().as_ptr()), expected);
        assert_eq!(heap::is_private(), here, "the caller's thread is as it was");
    }

    #[test]
    fn a_panic_goes_to_the_caller() {
        let panic = std::panic::catch_unwind(|| protected(|| -> () { std::panic::panic_any(7_u8) }));
        assert_eq!(panic.unwrap_err().downcast_ref::<u8>(), Some(&7));
    }

    /// Leaves a mark in a dead frame and returns its address.
    #[inline(never)]
    fn leave_mark() -> usize {
        let mut mark = [0x5ec2_e75e_c2e7_5ec2_u64; 64];
        std::hint::black_box(&mut mark).as_ptr() as usize
    }

    #[inline(never)]
    fn deeper<T>(levels: usize, act: fn() -> T) -> T {
        let mut room = [0_u8; 64 * 1024];
        std::hint::black_box(&mut room);
        let result = if levels == 0 { act() } else { deeper(levels - 1, act) };
        std::hint::black_box(&mut room);
        result
    }

    #[test]
    fn a_stack_is_cleaned_where_there_is_room_for_it() {
        assert!(!clean_stack());
        let (cleaned, word) = protected(|| {
            let at = leave_mark();
            (clean_stack(), word_at(at))
        })
        .unwrap();
        assert_eq!((cleaned, word), (true, 0));
        assert!(protected(|| deeper(2, clean_stack)).unwrap());
        assert!(!protected(|| deeper(8, clean_stack)).unwrap(), "beyond that it would run off the stack");
    }

    #[expect(unsafe_code, reason = "reads a dead frame")]
    fn word_at(at: usize) -> u64 {
        // SAFETY: an address in this thread's stack, which is mapped; nothing else writes it now.
        unsafe { (at as *const u64).read_volatile() }
    }
}
