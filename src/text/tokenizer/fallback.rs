//! The `tokenizers` crate itself, for the rare `tokenizer.json` that is not done here.
//!
//! What differs from calling `Tokenizer::encode`: nothing is encoded while a logger would take the crate's `trace!` of every
//! character; its caches of words (thread-local, up to 10,000 of them, that stay until the thread ends) are off from
//! before the first use; and no `Encoding` with a plain vector of all ids is made.
//!
//! **Not kept to:** the crate frees copies of the text without overwriting them, which [`crate::alloc::Scrubbing`] does,
//! and expressions that are searched leave their state until the session ends.

use tokenizers::{Model as _, OffsetReferential, OffsetType, PreTokenizer as _, Tokenizer};

use super::literal::Literal;
use crate::error::{Error, Result};
use crate::memory::Secret;

/// Where the crate logs every character that it normalizes or spells in bytes, at level `trace`.
const SPOKEN: &str = "tokenizers::tokenizer::normalizer";

/// The crate's tokenizer, and why it is used.
pub struct Fallback {
    tokenizer: Tokenizer,
    /// The tokenizer that takes special tokens for text.
    literal: Tokenizer,
    /// The component that is not done here.
    pub component: String,
}

impl Fallback {
    pub fn new(mut tokenizer: Tokenizer, component: String) -> Self {
        let mut model = tokenizer.get_model().clone();
        model.resize_cache(0);
        tokenizer.with_model(model);
        let mut literal = tokenizer.clone();
        literal.set_encode_special_tokens(true);
        Self { tokenizer, literal, component }
    }

    /// Appends the ids of `text`, in which `literal` parts are text alone: those are encoded apart, if the whole has a
    /// control token that may come from them.
    ///
    /// # Errors
    /// The tokenizer cannot encode it, literal parts without control tokens that is; or it would be logged. The error holds
    /// none of it.
    pub fn encode(&self, text: &str, literal: Option<Literal<'_>>, ids: &mut Secret<[u32]>) -> Result<()> {
        let before = ids.expose().len();
        Self::encode_with(&self.tokenizer, text, ids)?;
        let Some(literal) = literal.filter(|literal| literal.touched(0, text.len()).is_some()) else {
            return Ok(());
        };
        let found = literal.count(&ids.expose()[before..]);
        if found == 0 {
            return Ok(());
        }
        let (mut written, mut typed) = (0, 0);
        let mut alone = Secret::<[u32]>::default();
        for (from, to, is_literal) in literal.runs(0, text.len()) {
            alone.truncate(0);
            Self::encode_with(&self.tokenizer, &text[from..to], &mut alone)?;
            *(if is_literal { &mut typed } else { &mut written }) += literal.count(alone.expose());
        }
        if typed == 0 && written == found {
            return Ok(());
        }
        ids.truncate(before);
        for (from, to, is_literal) in literal.runs(0, text.len()) {
            let before = ids.expose().len();
            let tokenizer = if is_literal { &self.literal } else { &self.tokenizer };
            Self::encode_with(tokenizer, &text[from..to], ids)?;
            if is_literal && literal.count(&ids.expose()[before..]) > 0 {
                return Err(super::unencodable());
            }
        }
        Ok(())
    }

    fn encode_with(tokenizer: &Tokenizer, text: &str, ids: &mut Secret<[u32]>) -> Result<()> {
        if log::log_enabled!(target: SPOKEN, log::Level::Trace) {
            return Err(Error::Logged { target: SPOKEN });
        }
        let failed = |_| super::unencodable();
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
