//! What a session shows of itself while it runs.

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
