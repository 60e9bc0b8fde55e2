//! One request as it runs.

use std::path::PathBuf;
use std::time::Instant;

use super::mailbox::{End, Outbox};
use crate::error::{Error, Result};
use crate::memory::Secret;
use crate::request::{Prompt, Request};
use crate::response::{FinishReason, RequestId, Timing, Usage};
use crate::sample::Sampling;
use crate::text::{Detokenizer, Stops, Text};

/// What the checkpoint and the session say where a request is silent.
#[derive(Debug)]
pub struct Defaults {
    /// From generation_config.json, if that samples; else greedy.
    pub sampling: Sampling,
    /// End tokens from both config files.
    pub eos: Vec<u32>,
    /// Positions of one request.
    pub context: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Where a tokenizer was looked for.
    pub tokenizer_file: PathBuf,
}

/// A request from acceptance to its end.
#[derive(Debug)]
pub struct Sequence {
    pub id: RequestId,
    /// Prompt and reply so far.
    pub ids: Secret<Vec<u32>>,
    /// How many of `ids` are in the cache.
    pub cached: usize,
    /// Its KV blocks; entry i holds positions `i * BLOCK..`.
    pub table: Vec<u32>,
    pub sampling: Sampling,
    pub outbox: Outbox,
    #[cfg(feature = "testing")]
    pub logits: Option<crate::engine::taps::LogitsTap>,
    prompt_tokens: usize,
    max_tokens: usize,
    accepted: Instant,
    timing: Timing,
    /// End tokens of the checkpoint and of the request.
    end_tokens: Secret<Vec<u32>>,
    stops: Stops,
    detokenizer: Option<Detokenizer>,
}

impl Sequence {
    /// Encodes the prompt and fills in what the request left open.
    ///
    /// # Errors
    /// No tokenizer for a text; ids outside the vocabulary; longer than the context.
    pub fn new(
        request: Request,
        id: RequestId,
        text: Option<&Text>,
        defaults: &Defaults,
        outbox: Outbox,
    ) -> Result<Self> {
        let mut ids = encode(&request.prompt, text, defaults)?;
        let prompt_tokens = ids.expose().len();
        let asked = request.max_tokens.unwrap_or(1);
        if prompt_tokens.checked_add(asked).is_none_or(|tokens| tokens > defaults.context) {
            let context = defaults.context;
            return Err(Error::ContextLength { prompt_tokens, max_tokens: asked, context });
        }
        let room = defaults.context - prompt_tokens;
        let max_tokens = request.max_tokens.unwrap_or(Request::DEFAULT_MAX_TOKENS).min(room);
        ids.reserve(prompt_tokens + max_tokens);
        outbox.reserve(max_tokens);
        let fresh = || getrandom::u64().unwrap_or(0);
        let base = &defaults.sampling;
        let sampling = Sampling {
            temperature: request.temperature.unwrap_or(base.temperature),
            top_k: request.top_k.unwrap_or(base.top_k),
            top_p: request.top_p.unwrap_or(base.top_p),
            min_p: request.min_p.unwrap_or(base.min_p),
            seed: request.seed.unwrap_or_else(fresh),
            ..*base
        };
        let mut end_tokens = request.stop_tokens;
        end_tokens.extend(&defaults.eos);
        let detokenizer = text.map(|text| {
            let starts = ids.expose().iter().all(|&id| text.pieces().is_special(id));
            Detokenizer::new(text.pieces(), starts)
        });
        Ok(Self {
            id,
            ids,
            cached: 0,
            table: Vec::new(),
            sampling,
            outbox,
            #[cfg(feature = "testing")]
            logits: request.logits,
            prompt_tokens,
            max_tokens,
            accepted: Instant::now(),
            timing: Timing::default(),
            end_tokens,
            stops: Stops::new(request.stop),
            detokenizer,
        })
    }

    /// Positions that it may come to hold.
    pub fn most_tokens(&self) -> usize {
        self.prompt_tokens + self.max_tokens
    }

    /// Tokens that are not in the cache yet: 1 while it decodes.
    pub fn left(&self) -> usize {
        self.ids.expose().len() - self.cached
    }

    /// Tokens generated.
    pub fn generated(&self) -> usize {
        self.ids.expose().len() - self.prompt_tokens
    }

    /// Takes a new token in; says whether the request ends with it.
    pub fn take(&mut self, token: u32, text: Option<&Text>) -> Option<FinishReason> {
        self.timing.total = self.accepted.elapsed();
        if self.generated() == 0 {
            self.timing.first_token = self.timing.total;
        }
        if self.end_tokens.expose().contains(&token) {
            self.flush();
            return Some(FinishReason::Stop);
        }
        self.ids.push(token);
        self.outbox.token(token);
        if let (Some(detokenizer), Some(text)) = (&mut self.detokenizer, text) {
            detokenizer.push(text.pieces(), token, self.stops.held());
            if self.outbox.text(|out| self.stops.settle(false, out)) {
                return Some(FinishReason::Stop);
            }
        }
        if self.generated() == self.max_tokens {
            let stopped = self.flush();
            return Some(if stopped { FinishReason::Stop } else { FinishReason::Length });
        }
        None
    }

    /// Gives what was held back; true if a stop string ended in it.
    fn flush(&mut self) -> bool {
        let Some(detokenizer) = &mut self.detokenizer else { return false };
        detokenizer.finish(self.stops.held());
        self.outbox.text(|out| self.stops.settle(true, out))
    }

    /// How it ended, for its caller.
    pub fn end(&self, finish_reason: FinishReason) -> End {
        let usage = Usage { prompt_tokens: self.prompt_tokens, completion_tokens: self.generated() };
        End { finish_reason, usage, timing: self.timing, request_id: self.id, seed: self.sampling.seed }
    }

    /// Overwrites its content and gives the outbox back, to tell the caller.
    pub fn wipe(self) -> Outbox {
        self.outbox // the rest drops here: every field with content is a Secret
    }
}

fn encode(prompt: &Prompt, text: Option<&Text>, defaults: &Defaults) -> Result<Secret<Vec<u32>>> {
    let mut ids = Secret::<Vec<u32>>::default();
    match (prompt, text) {
        (Prompt::Text(prompt), Some(text)) => text.encode(prompt.expose(), true, &mut ids)?,
        (Prompt::Text(_), None) => return Err(Error::NoTokenizer { file: defaults.tokenizer_file.clone() }),
        (Prompt::Tokens(given), _) => ids.extend(given.expose()),
    }
    if ids.expose().is_empty() {
        return Err(Error::request("prompt", "a text that gives at least one token"));
    }
    if ids.expose().iter().any(|&id| id as usize >= defaults.vocab) {
        return Err(Error::request("prompt", format!("token ids below {}", defaults.vocab)));
    }
    Ok(ids)
}
