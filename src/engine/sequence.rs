//! One choice of a request as it runs.

use std::sync::Arc;

use super::mailbox::Outbox;
use super::masks::GrammarState;
use super::scheduler::Id;
use crate::memory::Secret;
use crate::outcome::FinishReason;
use crate::request::Speculation;
use crate::sample::{Context, LogitBias, Logprobs, Sampling};
use crate::text::{Detokenizer, Pieces, Stops};

/// What all choices of a request have in common.
#[derive(Debug)]
pub struct Common {
    /// How many ids are the prompt.
    pub prompt_tokens: usize,
    pub max_tokens: usize,
    /// End tokens of the checkpoint and of the request.
    pub end_tokens: Secret<[u32]>,
    pub bias: LogitBias,
    /// Tokens at which DRY stops, rising.
    pub breakers: Arc<Secret<[u32]>>,
    pub stops: Arc<Vec<Secret<str>>>,
    /// Special tokens that stay in the text: marks of tool calls and of reasoning.
    pub visible: Arc<Vec<u32>>,
    pub logprobs: bool,
    pub prompt_logprobs: bool,
    pub speculation: Option<Speculation>,
    /// Which of the session's adapters it runs with.
    pub adapter: Option<u32>,
    /// Whether the prompt is special tokens only: then a reply starts as a text does.
    pub starts: bool,
}

/// A choice from acceptance to its end.
#[derive(Debug)]
pub struct Sequence {
    /// The request that it belongs to: the id of its first choice.
    pub job: Id,
    pub choice: usize,
    /// Prompt and reply so far; behind them, while a step runs, guesses at what follows.
    ids: Secret<[u32]>,
    /// How many of `ids` are guesses.
    guesses: usize,
    pub sampling: Sampling,
    pub common: Arc<Common>,
    /// How many of its tokens are in the draft model's cache.
    pub draft_cached: usize,
    /// How often it had been admitted when that was counted.
    pub admissions: u64,
    /// The grammar that the reply follows. Boxed: it moves to the thread that computes masks and back.
    pub guide: Option<Box<GrammarState>>,
    /// Whether it is with those threads at the moment: until it is back no token is chosen.
    pub away: bool,
    /// Whether, when it is back, it says if the token drawn last ends the reply.
    pub settles: bool,
    #[cfg(feature = "forensics")]
    pub(crate) gates: crate::forensics::gate::Gates,
    #[cfg(feature = "testing")]
    pub(crate) taps: crate::testing::taps::Taps,
    stops: Stops,
    detokenizer: Option<Detokenizer>,
}

impl Sequence {
    /// For a prompt. `pieces` is none where the checkpoint has no tokenizer.
    pub fn new(ids: Secret<[u32]>, sampling: Sampling, common: Arc<Common>, pieces: Option<&Pieces>) -> Self {
        Self {
            job: 0,
            choice: 0,
            ids,
            guesses: 0,
            sampling,
            draft_cached: 0,
            admissions: 0,
            guide: None,
            away: false,
            settles: false,
            #[cfg(feature = "forensics")]
            gates: crate::forensics::gate::Gates::default(),
            #[cfg(feature = "testing")]
            taps: crate::testing::taps::Taps::default(),
            stops: Stops::new(common.stops.clone()),
            detokenizer: pieces.map(|pieces| Detokenizer::new(pieces, common.starts, common.visible.clone())),
            common,
        }
    }

    /// Another choice of the same request, before either has a token.
    pub fn fork(&self, choice: usize, guide: Option<Box<GrammarState>>, pieces: Option<&Pieces>) -> Self {
        let mut ids = Secret::<[u32]>::default();
        ids.reserve(self.most_tokens());
        ids.extend(self.ids());
        let mut fork = Self::new(ids, self.sampling_of(choice), self.common.clone(), pieces);
        (fork.job, fork.choice, fork.guide) = (self.job, choice, guide);
        fork
    }

    /// How another choice of the same request is sampled.
    pub fn sampling_of(&self, choice: usize) -> Sampling {
        Sampling { seed: self.sampling.seed.wrapping_add(choice as u64), ..self.sampling }
    }

    /// Makes room for all that it may become, so that nothing of it moves while it runs.
    pub fn reserve(&mut self) {
        self.ids.reserve(self.most_tokens());
    }

    /// Prompt and reply so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids.expose()[..self.known()]
    }

    /// How many those are.
    pub fn known(&self) -> usize {
        self.ids.expose().len() - self.guesses
    }

    /// Guesses at what follows.
    pub fn guesses(&self) -> &[u32] {
        &self.ids.expose()[self.known()..]
    }

    /// Prompt, reply and guesses.
    pub fn ids_with_guesses(&self) -> &[u32] {
        self.ids.expose()
    }

    /// Guesses one token more. There are never more guesses than tokens that it may still generate.
    pub fn guess(&mut self, id: u32) {
        self.ids.push(id);
        self.guesses += 1;
    }

    /// Takes guesses back, but for the first `most`.
    pub fn keep_guesses(&mut self, most: usize) {
        let known = self.known();
        self.guesses = self.guesses.min(most);
        self.ids.truncate(known + self.guesses);
    }

    /// Positions that it may come to hold.
    pub fn most_tokens(&self) -> usize {
        self.common.prompt_tokens + self.common.max_tokens
    }

    /// Tokens generated.
    pub fn generated(&self) -> usize {
        self.known() - self.common.prompt_tokens
    }

    /// What the sampler looks at where the next token is chosen.
    pub fn context(&self) -> Context<'_> {
        self.context_behind(0)
    }

    /// What the sampler looks at behind the first `guesses` guesses, as if they were right; with the mask of the next token.
    pub fn context_behind(&self, guesses: usize) -> Context<'_> {
        let common = &self.common;
        Context {
            ids: &self.ids.expose()[..self.known() + guesses],
            prompt: common.prompt_tokens,
            end_tokens: common.end_tokens.expose(),
            bias: Some(&common.bias),
            mask: self.guide.as_ref().and_then(|guide| guide.mask()),
            breakers: common.breakers.expose(),
        }
    }

    /// Takes a new token in, as the first guess if that was right; otherwise all guesses are taken back. Says whether the choice
    /// ends with it. `logprobs` is told where to put the token's.
    pub fn take(
        &mut self,
        token: u32,
        pieces: Option<&Pieces>,
        outbox: &Outbox,
        logprobs: impl FnOnce(&mut Logprobs),
    ) -> Option<FinishReason> {
        if self.common.end_tokens.expose().contains(&token) {
            self.flush(outbox);
            return Some(FinishReason::Stop);
        }
        match self.guesses().first() == Some(&token) {
            true => self.guesses -= 1,
            false => {
                self.keep_guesses(0);
                self.ids.push(token);
            }
        }
        let stopped = outbox.output(self.choice, |output| {
            output.tokens.push(token);
            logprobs(&mut output.logprobs);
            let (Some(detokenizer), Some(pieces)) = (&mut self.detokenizer, pieces) else { return false };
            detokenizer.push(pieces, token, self.stops.held());
            self.stops.release(false, &mut output.text)
        });
        if stopped {
            return Some(FinishReason::Stop);
        }
        if self.guide.as_ref().is_some_and(|guide| guide.is_pending()) {
            return None; // whether the token ends the reply is known with the next mask
        }
        self.ends(outbox)
    }

    /// Whether the choice ends with the token that was taken in last, by its grammar or its length.
    pub fn ends(&mut self, outbox: &Outbox) -> Option<FinishReason> {
        if self.guide.as_ref().is_some_and(|guide| guide.is_over()) {
            self.flush(outbox);
            return Some(FinishReason::Stop);
        }
        if self.generated() == self.common.max_tokens {
            let stopped = self.flush(outbox);
            return Some(if stopped { FinishReason::Stop } else { FinishReason::Length });
        }
        None
    }

    /// Gives what was held back; true if a stop string ended in it.
    pub fn flush(&mut self, outbox: &Outbox) -> bool {
        let Some(detokenizer) = &mut self.detokenizer else { return false };
        detokenizer.finish(self.stops.held());
        outbox.output(self.choice, |output| self.stops.release(true, &mut output.text))
    }
}
