//! What a session shows of itself while it runs.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::scheduler::Id;
use crate::backend::Counters;
use crate::memory::poison::Poison;

/// What a session has to do at the moment. Metadata: no content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Load {
    /// Choices that take part in steps.
    pub running: usize,
    /// Choices that wait for memory or for their turn.
    pub waiting: usize,
    /// Blocks of the KV cache that hold something: of running requests, conversations and public prompts.
    pub kv_blocks_used: usize,
    /// Blocks of the KV cache.
    pub kv_blocks: usize,
    /// How often a choice lost its blocks to others before it ended, and was computed again.
    pub preemptions: u64,
}

/// What the session's handle can see while the worker runs.
#[derive(Debug, Default)]
pub struct Shared {
    pub poison: Poison,
    pub counters: Mutex<Counters>,
    pub load: Mutex<Load>,
    /// Requests that came, were not refused, and have not ended.
    pub requests: AtomicUsize,
    /// Tokens computed: where the scheduler's order begins for those that come now.
    pub tokens: AtomicU64,
    /// Grammars compiled.
    #[cfg(feature = "testing")]
    pub compiled: std::sync::Arc<AtomicU64>,
    /// Requests that were given an id, in whatever way they ended.
    ids: AtomicU64,
    /// Sequences that were given a name.
    sequences: AtomicU64,
}

impl Shared {
    /// Counts for the ids of the next `count` requests, of which this is the first: from 1 on.
    pub fn next_ids(&self, count: usize) -> u64 {
        self.ids.fetch_add(count as u64, Ordering::SeqCst) + 1
    }

    /// Names for `count` sequences, of which this is the first. They rise.
    pub fn new_ids(&self, count: usize) -> Id {
        self.sequences.fetch_add(count as u64, Ordering::SeqCst) + 1
    }
}
