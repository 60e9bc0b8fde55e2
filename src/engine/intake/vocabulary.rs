//! What reading requests needs to know of all tokens at once.

use std::sync::Arc;

use super::Intake;
use crate::grammar::Grammars;
use crate::memory::Secret;
use crate::text::{Pieces, stop};

/// Where DRY's repetitions begin anew, as in llama.cpp.
const BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

/// What reading requests needs to know of all tokens at once. Worked out when the session opens: if the first request
/// that needs it did that, the next one could tell from its own time that there had been one.
#[derive(Debug)]
pub struct Vocabulary {
    pub(super) grammars: Grammars,
    /// Tokens at which DRY stops when a request names none.
    breakers: Arc<Secret<[u32]>>,
}

impl Vocabulary {
    /// For a model of `vocab` tokens, of which `end_tokens` end a reply. Takes some 0.2 s for 150,000.
    pub fn new(pieces: &Pieces, vocab: usize, end_tokens: &[u32]) -> Self {
        let grammars = Grammars::new(pieces, vocab, end_tokens);
        Self { grammars, breakers: Arc::new(tokens_with(pieces, vocab, &BREAKERS)) }
    }

    /// Counts grammars that are compiled in `count`.
    #[cfg(feature = "testing")]
    pub fn count_compiled(&mut self, count: &Arc<std::sync::atomic::AtomicU64>) {
        self.grammars.compiled = count.clone();
    }
}

impl Intake {
    /// Tokens at which DRY stops: those whose text holds one of `texts`.
    pub(super) fn breakers(&self, texts: Option<&[Secret<str>]>) -> Arc<Secret<[u32]>> {
        let (Some(text), Some(vocabulary)) = (&self.text, &self.vocabulary) else { return Arc::default() };
        let Some(texts) = texts else { return vocabulary.breakers.clone() };
        let texts: Vec<&str> = texts.iter().map(Secret::expose).collect();
        Arc::new(tokens_with(text.pieces(), self.defaults.vocab, &texts))
    }
}

/// Tokens whose text holds one of `texts`, rising.
fn tokens_with(pieces: &Pieces, vocab: usize, texts: &[&str]) -> Secret<[u32]> {
    let holds = |id: &u32| {
        let bytes = pieces.bytes(*id);
        texts.iter().any(|text| stop::find(bytes, text.as_bytes()).is_some())
    };
    let mut ids = Secret::<[u32]>::default();
    (0..vocab as u32).filter(holds).for_each(|id| ids.push(id));
    ids
}
