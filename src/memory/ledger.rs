//! The account: what was scrubbed, what was verified, what the platform refused.

use super::Scrubbed;

/// What the guarantee does not cover in this process, as far as the library can tell.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotCovered {
    /// The kernel refused to lock the arena (`RLIMIT_MEMLOCK`): under memory pressure it may be swapped out.
    NotLocked {
        /// Bytes that are not locked.
        bytes: u64,
    },
    /// The platform cannot keep the arena out of core dumps.
    InCoreDumps {
        /// Bytes concerned.
        bytes: u64,
    },
    /// The platform cannot hide the arena from forked children.
    VisibleAfterFork {
        /// Bytes concerned.
        bytes: u64,
    },
    /// Heap temporaries inside third-party crates are freed, not overwritten: the tokenizer's copies of the text, what
    /// chat templates render, the state of grammars. [`crate::alloc::Scrubbing`] is not this process's global allocator.
    HeapTemporaries,
}

impl std::fmt::Display for NotCovered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotLocked { bytes } => write!(f, "{bytes} bytes are not locked in memory (RLIMIT_MEMLOCK)"),
            Self::InCoreDumps { bytes } => write!(f, "{bytes} bytes may appear in a core dump"),
            Self::VisibleAfterFork { bytes } => write!(f, "{bytes} bytes are visible to forked children"),
            Self::HeapTemporaries => {
                f.write_str("heap temporaries of third-party crates (install alloc::Scrubbing)")
            }
        }
    }
}

/// What [`crate::Session::close`] returns: what was overwritten, and what is not covered. Holds no content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScrubReport {
    /// Requests that ended, in whatever way.
    pub requests: u64,
    /// Regions overwritten: KV blocks, activation buffers, stacks, and at the close the arenas themselves.
    pub regions: u64,
    /// Bytes overwritten, each time counted.
    pub bytes: u64,
    /// Bytes read back at the close and found zero: all arena bytes if all is well.
    pub verified: u64,
    /// Bytes of arena that were locked in memory.
    pub mlocked: u64,
    /// What the guarantee does not cover here.
    pub not_covered: Vec<NotCovered>,
}

impl std::fmt::Display for ScrubReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} requests; scrubbed {} regions, {} bytes; {} bytes read back as zero; {} bytes were locked in memory",
            self.requests, self.regions, self.bytes, self.verified, self.mlocked
        )?;
        for gap in &self.not_covered {
            write!(f, "\nnot covered: {gap}")?;
        }
        Ok(())
    }
}

/// The running account behind a [`ScrubReport`].
#[derive(Debug, Default)]
pub struct Ledger {
    report: ScrubReport,
}

impl Ledger {
    /// Enters `regions` overwritten together.
    pub fn scrubbed(&mut self, regions: u64, proof: &Scrubbed) {
        self.report.regions += regions;
        self.report.bytes += proof.bytes();
    }

    /// Enters the end of one request.
    pub fn request_ended(&mut self) {
        self.report.requests += 1;
    }

    /// Enters an arena's last scrub.
    pub fn arena_closed(&mut self, closed: super::arena::Closed) {
        self.report.regions += closed.regions;
        self.report.bytes += closed.scrubbed.bytes();
        self.report.verified += closed.verified;
        self.report.mlocked += closed.mlocked;
        self.report.not_covered.extend(closed.not_covered);
    }

    /// Enters a gap in the guarantee.
    pub fn not_covered(&mut self, gap: NotCovered) {
        self.report.not_covered.push(gap);
    }

    /// The account as it stands.
    pub fn report(self) -> ScrubReport {
        self.report
    }
}
