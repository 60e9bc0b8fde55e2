//! The `tokenizers` crate itself, for the rare `tokenizer.json` that is not done here.
//!
//! What differs from calling `Tokenizer::encode`: nothing is encoded while a logger would take the crate's `trace!` of every
//! character; its caches of words (thread-local, up to 10,000 of them, that stay until the thread ends) are off from
//! before the first use; and no `Encoding` with a plain vector of all ids is made.
//!
//! **Not kept to:** the crate frees copies of the text without overwriting them, which [`crate::alloc::Scrubbing`] does,
//! and expressions that are searched leave their state until the session ends.

use tokenizers::{Model as _, OffsetReferential, OffsetType, PreTokenizer as _, Tokenizer};

use crate::error::{Error, Result};
use crate::memory::Secret;

/// Where the crate logs every character that it normalizes or spells in bytes, at level `trace`.
const SPOKEN: &str = "tokenizers::tokenizer::normalizer";

/// The crate's tokenizer, and why it is used.
pub struct Fallback {
    tokenizer: Tokenizer,
    /// The component that is not done here.
    pub component: String,
}

impl Fallback {
    pub fn new(mut tokenizer: Tokenizer, component: String) -> Self {
        let mut model = tokenizer.get_model().clone();
        model.resize_cache(0);
        tokenizer.with_model(model);
        Self { tokenizer, component }
    }

    /// Appends the ids of `text`.
    ///
    /// # Errors
    /// The tokenizer cannot encode it, or it would be logged. The error holds none of it.
    pub fn encode(&self, text: &str, ids: &mut Secret<[u32]>) -> Result<()> {
        if log::log_enabled!(target: SPOKEN, log::Level::Trace) {
            return Err(Error::Logged { target: SPOKEN });
        }
        let failed = |_| super::unencodable();
        let tokenizer = &self.tokenizer;
        let mut pieces =
            tokenizer.get_added_vocabulary().extract_and_normalize(tokenizer.get_normalizer(), text);
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(failed)?;
        }
        pieces.tokenize(|piece| tokenizer.get_model().tokenize(piece.get())).map_err(failed)?;
        for (_, _, tokens) in pieces.get_splits(OffsetReferential::Original, OffsetType::None) {
            tokens.iter().flatten().for_each(|token| ids.push(token.id));
        }
        Ok(())
    }
}
