//! What a model's layers give for each token of a text.

use crate::memory::Secret;
use crate::outcome::{RequestId, Timing, Usage};
use crate::privacy::ScrubReceipt;

/// Hidden states of texts, in their order: for each token, special ones and those of a prompt included, what the last layer
/// and the norm behind it give, before anything is pooled. In transformers that is `last_hidden_state` without padding, in
/// sentence-transformers `output_value="token_embeddings"`.
///
/// They are the caller's: the session holds nothing of them any more. Overwritten when they drop; `Debug` prints counts only.
pub struct HiddenStates {
    /// (tokens of all texts, width)
    pub(crate) values: Secret<[f32]>,
    /// Tokens of each text.
    pub(crate) tokens: Vec<usize>,
    pub(crate) width: usize,
    /// Texts that were cut: they were longer than the model takes.
    pub truncated: usize,
    /// Tokens used: of all texts, special ones included.
    pub usage: Usage,
    /// How long it took; the first token is none's.
    pub timing: Timing,
    /// The request's name in logs.
    pub request_id: RequestId,
    /// What was overwritten before these were handed over.
    pub receipt: ScrubReceipt,
}

impl HiddenStates {
    /// How many texts there are.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Values of each token: the model's `hidden_size`.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Tokens of the text at `index`.
    pub fn tokens(&self, index: usize) -> Option<usize> {
        self.tokens.get(index).copied()
    }

    /// Those of the text at `index`: (tokens, width), row-major.
    ///
    /// ```no_run
    /// # fn main() -> amnesic::Result<()> {
    /// let session = amnesic::Session::open("all-MiniLM-L6-v2")?;
    /// let states = session.hidden_states(amnesic::EmbedRequest::new(["Ownership is Rust's"]))?;
    /// let rows = states.get(0).expect("one text").chunks(states.width());
    /// assert_eq!(Some(rows.len()), states.tokens(0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn get(&self, index: usize) -> Option<&[f32]> {
        let tokens = self.tokens(index)?;
        let first: usize = self.tokens[..index].iter().sum();
        Some(&self.values.expose()[first * self.width..][..tokens * self.width])
    }
}

impl std::fmt::Debug for HiddenStates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HiddenStates")
            .field("len", &self.len())
            .field("width", &self.width)
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}
