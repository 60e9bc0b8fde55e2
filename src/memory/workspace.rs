//! Activation buffers and how much of them is dirty.
//!
//! Nothing in the workspace outlives a step: every step writes what it reads. So when a request ends, between
//! steps, all rows written since the last scrub can go, whoever wrote them, and other requests notice nothing.

/// The high-water marks of rows written since the last scrub.
#[derive(Debug, Default)]
pub struct Dirty {
    tokens: usize,
    outputs: usize,
}

impl Dirty {
    /// A step wrote `tokens` rows of activations and `outputs` rows of logits.
    pub fn mark(&mut self, tokens: usize, outputs: usize) {
        self.tokens = self.tokens.max(tokens);
        self.outputs = self.outputs.max(outputs);
    }

    /// The rows (activations, logits) to overwrite now; the marks start again from none.
    pub fn take(&mut self) -> (usize, usize) {
        let Self { tokens, outputs } = std::mem::take(self);
        (tokens, outputs)
    }
}
