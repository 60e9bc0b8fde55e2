//! What a session's memory goes to.

/// What a session's memory goes to, planned before anything is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// The weights, packed for the device and quantized where that is asked for. No page of the files stays in memory.
    pub weights_bytes: u64,
    /// The KV cache.
    pub kv_bytes: u64,
    /// Activations, logits and the table of rope angles.
    pub workspace_bytes: u64,
    /// Tokens that the KV cache holds, over all requests.
    pub kv_tokens: usize,
}

impl MemoryPlan {
    /// The sum.
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes + self.kv_bytes + self.workspace_bytes
    }
}
