//! The grammar's place in one reply: which tokens may come next.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

pub use llguidance::CancellationHandle;
use llguidance::TokenParser;
use llguidance::api::StopReason;
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::SimpleVob;

use super::GrammarReason;
use super::vocabulary::Vocabulary;
use crate::error::Result;
use crate::memory::Secret;

/// How many Earley items accepted tokens may add in all, at 8 to 16 bytes each: a hostile grammar has up to
/// [`super::compile::MAX_ITEMS_IN_ROW`] of them for every byte, JSON some ten for every word.
const MAX_ITEMS: usize = 4 << 20;

/// What the lexer may cost a reply in all, compiling included: [`super::compile::MASK_FUEL`] for each of forty masks.
const MAX_LEXER_FUEL: u64 = 8_000_000;

/// A compiled grammar and how far the reply has come in it. Belongs to one sequence; may be moved to another thread.
///
/// After an error other than [`GrammarReason::Rejected`] it answers every call with [`GrammarReason::Failed`].
pub struct Matcher {
    parser: TokenParser,
    vocabulary: Arc<Vocabulary>,
    items: usize,
    /// An end token was accepted: nothing follows.
    ended: bool,
    failed: bool,
}

impl Matcher {
    /// At the start of a reply.
    pub(super) fn new(mut parser: TokenParser, vocabulary: Arc<Vocabulary>) -> Result<Self> {
        parser.start_without_prompt();
        parser.enable_cancellation();
        let mut this = Self { parser, vocabulary, items: 0, ended: false, failed: false };
        this.guarded(|this| this.parser.check_stop().is_ok().then_some(()))?;
        Ok(this)
    }

    /// Writes which tokens may come next: bit `id % 32` of word `id / 32`, in ceil(vocabulary / 32) words. All end
    /// tokens are allowed where the grammar is complete, none elsewhere. No bit is set at all once the grammar is
    /// complete, nothing can follow and the checkpoint has no end token: see [`Matcher::is_stopped`].
    ///
    /// # Errors
    /// The grammar became too complex, or no token of the vocabulary can continue it.
    pub fn mask(&mut self, out: &mut Secret<[u32]>) -> Result<()> {
        if self.is_stopped() {
            self.check()?;
            out.refill(self.vocabulary.only_ends().iter().copied());
            return Ok(());
        }
        let (raw, accepting) = self.guarded(|this| {
            let accepting = this.parser.is_accepting();
            match this.parser.compute_mask() {
                Ok(mask) => Some((this.without_strays(mask)?, accepting)),
                // Complete, and the vocabulary has nothing that follows, not even an end token.
                Err(_) if accepting && this.parser.stop_reason() == StopReason::NoExtensionBias => {
                    Some((Secret::new(vec![0; this.vocabulary.mask_words()]), true))
                }
                Err(_) => None,
            }
        })?;
        let mask = out.refill(self.vocabulary.mask(raw.expose(), accepting));
        if !accepting && mask.iter().all(|&word| word == 0) {
            self.failed = true;
            return Err(GrammarReason::DeadEnd.into());
        }
        Ok(())
    }

    /// Takes the token that was drawn.
    ///
    /// # Errors
    /// The grammar does not allow it; then nothing has changed. Or the grammar became too complex.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        self.check()?;
        if self.vocabulary.is_end(token) {
            let complete = !self.ended && self.is_complete()?;
            self.ended |= complete;
            return if complete { Ok(()) } else { Err(GrammarReason::Rejected.into()) };
        }
        if self.is_stopped() || !self.vocabulary.is_drawable(token) {
            return Err(GrammarReason::Rejected.into());
        }
        let allowed = self.guarded(|this| this.parser.validate_token(token).ok())?;
        if !allowed {
            return Err(GrammarReason::Rejected.into());
        }
        let before = self.parser.parser_stats().all_items;
        self.guarded(|this| {
            this.parser.consume_token(token).ok()?;
            this.parser.check_stop().ok()
        })?;
        let stats = self.parser.parser_stats();
        self.items += stats.all_items.saturating_sub(before);
        if self.items > MAX_ITEMS || stats.lexer_cost > MAX_LEXER_FUEL {
            self.failed = true;
            return Err(GrammarReason::TooComplex.into());
        }
        Ok(())
    }

    /// Ends a call that another thread is in, and all later ones, with an error.
    pub fn canceller(&self) -> Option<CancellationHandle> {
        self.parser.cancellation_handle()
    }

    /// What its lexer has cost so far.
    #[cfg(test)]
    pub(super) fn fuel(&self) -> u64 {
        self.parser.parser_stats().lexer_cost
    }

    /// How many of these tokens, from the first on, could be accepted one after another. Changes nothing.
    ///
    /// Lark's `max_tokens=` is not counted here; [`Matcher::accept`] does.
    ///
    /// # Errors
    /// The grammar became too complex.
    pub fn validate(&mut self, tokens: &[u32]) -> Result<usize> {
        self.check()?;
        if self.is_stopped() {
            let end = tokens.first().is_some_and(|&token| !self.ended && self.vocabulary.is_end(token));
            return Ok(usize::from(end));
        }
        let vocabulary = &self.vocabulary;
        let known = |&&token: &&u32| vocabulary.is_drawable(token) || vocabulary.is_end(token);
        let known = tokens.iter().take_while(known).count();
        self.guarded(|this| this.parser.validate_tokens_raw(&tokens[..known]).ok())
    }

    /// Whether the reply may end here.
    ///
    /// # Errors
    /// Returns the errors of [`Matcher::mask`].
    pub fn is_complete(&mut self) -> Result<bool> {
        self.check()?;
        if self.is_stopped() {
            return Ok(true);
        }
        self.guarded(|this| Some(this.parser.is_accepting()))
    }

    /// A mask of all tokens but those that end a reply, for what comes before the grammar.
    pub fn no_ends(&self) -> Secret<[u32]> {
        Secret::new(self.vocabulary.only_ends().iter().map(|ends| !ends).collect::<Vec<_>>())
    }

    /// Whether the reply is complete and nothing but an end token can follow: the sequence can end now. Also true
    /// after an error.
    pub fn is_stopped(&self) -> bool {
        self.failed || self.ended || self.parser.stopped()
    }

    /// Without special tokens that the grammar does not name: an expression that matches any byte, as complements do,
    /// matches the mark before their names in the trie.
    fn without_strays(&mut self, mut mask: SimpleVob) -> Option<Secret<[u32]>> {
        let vocabulary = self.vocabulary.clone();
        for &id in vocabulary.specials() {
            if mask.is_allowed(id) && !self.parser.validate_token(id).ok()? {
                mask.disallow_token(id);
            }
        }
        Some(Secret::new(Vec::<u32>::from(mask)))
    }

    fn check(&self) -> Result<()> {
        if self.failed { Err(GrammarReason::Failed.into()) } else { Ok(()) }
    }

    /// Runs `work`; none and panics are errors, after which the parser is not used any more.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Option<T>) -> Result<T> {
        self.check()?;
        // llguidance's own: while it runs, the panic hook prints no message, which could quote the reply.
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let value = work(self);
            // Some calls answer no where they ran out of fuel. (After a panic, this would be another.)
            Ok((value, self.parser.parser.get_error().is_some()))
        }));
        let reason = match (ran, self.parser.stop_reason()) {
            (Ok((Some(value), false)), reason) if reason.is_ok() => return Ok(value),
            (Ok((_, true)), _) | (_, StopReason::LexerTooComplex | StopReason::ParserTooComplex) => {
                GrammarReason::TooComplex
            }
            (_, StopReason::NoExtensionBias) => GrammarReason::DeadEnd,
            _ => GrammarReason::Failed,
        };
        self.failed = true;
        Err(reason.into())
    }

    /// A second matcher at the same place. They share nothing that either changes: what the one has matched shows neither
    /// in the other's masks nor in when it runs out of fuel.
    pub fn fork(&self) -> Self {
        let parser = self.parser.deep_clone();
        let Self { vocabulary, items, ended, failed, .. } = self;
        Self { parser, vocabulary: vocabulary.clone(), items: *items, ended: *ended, failed: *failed }
    }
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher").field("tokens", &self.parser.num_tokens()).finish_non_exhaustive()
    }
}
