//! The text of single tokens, for log probabilities and `echo`.

use amnesic::Session;

/// The tokens of a session's model.
#[derive(Clone, Copy)]
pub struct Tokens<'a>(pub &'a Session);

impl<'a> Tokens<'a> {
    /// A token's bytes, which need not be whole characters; none for a checkpoint without a tokenizer.
    pub fn bytes(self, id: u32) -> &'a [u8] {
        self.0.token_bytes(id).unwrap_or_default()
    }

    /// What a token adds to the text: nothing if it is special.
    pub fn visible(self, id: u32) -> &'a [u8] {
        if self.0.is_special_token(id) { &[] } else { self.bytes(id) }
    }

    /// The bytes of a text's tokens, without special ones.
    pub fn join(self, ids: impl IntoIterator<Item = u32>) -> Vec<u8> {
        ids.into_iter().flat_map(|id| self.visible(id)).copied().collect()
    }

    /// A token as text; what is no character stands as U+FFFD.
    pub fn lossy(self, id: u32) -> String {
        String::from_utf8_lossy(self.bytes(id)).into_owned()
    }
}
