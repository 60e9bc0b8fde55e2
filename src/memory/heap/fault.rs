//! What a program did wrong with a block of this heap: it ends there and then.
//!
//! A block that is freed twice, or written to after it was freed, would hold content that nobody overwrites. So the process
//! is ended rather than served from: no unwinding, no allocation, one constant line on the standard error stream.
#![expect(unsafe_code, reason = "writes its last words by a system call")]

/// What was done to a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It was freed, and is free.
    FreedTwice,
    /// The address is not the one that was allocated.
    NotABlock,
    /// It was allocated with another size or alignment.
    WrongSize,
    /// It is not zero any more when it is used again.
    WrittenAfterFree,
    /// What lies between its end and its neighbour, or before it, is not zero.
    WrittenOutside,
    /// A forked child could not be given memory of its own in the place of what its parent keeps.
    NotReplaced,
}

impl Fault {
    pub const fn message(self) -> &'static str {
        match self {
            Self::FreedTwice => "amnesic: a block of the heap for secrets was freed twice\n",
            Self::NotABlock => "amnesic: what was freed is no block of the heap for secrets\n",
            Self::WrongSize => {
                "amnesic: a block of the heap for secrets was freed with another size than it has\n"
            }
            Self::WrittenAfterFree => "amnesic: a block of memory was written to after it had been freed\n",
            Self::WrittenOutside => "amnesic: memory beside a block of the heap for secrets was written to\n",
            Self::NotReplaced => "amnesic: no memory for the heap for secrets of a forked child\n",
        }
    }
}

/// Ends the process.
#[cold]
pub fn end(fault: Fault) -> ! {
    let message = fault.message();
    // SAFETY: writes a constant; nothing here may allocate or unwind.
    unsafe { libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len()) };
    std::process::abort();
}

/// Ends the process with `fault` if one of these bytes is not zero. In a build with faults, not while a test leaves out
/// scrubs: then none of them need be.
pub fn check_zero(bytes: &[u8], fault: Fault) {
    if crate::memory::scrub::is_zero(bytes) {
        return;
    }
    #[cfg(amnesic_faults)]
    if crate::memory::scrub::faults::are_in_use() {
        return;
    }
    end(fault)
}
