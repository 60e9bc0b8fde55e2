//! Taps and faults for this crate's own tests and benches (feature `testing`); outside semver. An application does not need it:
//! what it proves its own binary with is [`crate::forensics`].
//!
//! Each acts on the request or the session that a test asked it of, or on the process whose test called it, and on nothing
//! unless a test does. No scrub has a switch by this feature: those are in a build with `--cfg amnesic_faults` alone, which
//! `build.rs` explains. So a binary that has the feature, since features unify, scrubs as one without it.
//! Unasked it does two things, and neither touches content: a session on a CUDA device loads one kernel more, which [`device`] alone
//! launches, and a session counts the grammars that it compiles.
//!
//! Lives here: [`device`], what CUDA devices hold and how fast they are; faults that a request or a session is asked to have;
//! the tokenizer and the model by themselves. Never will: anything that a session without the feature depends on.

pub mod device;
pub(crate) mod taps;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::backend::cpu::Cpu;
use crate::backend::{Batch, Mask, Span};
use crate::builder::Builder;
use crate::clock::SystemClock;
use crate::error::Result;
use crate::forensics::Gate;
use crate::memory::{BufferLimits, Secret};
use crate::model::decoder::{Decoder, blocks_for};
use crate::outcome::{RequestId, Timing, Usage};
use crate::privacy::trace::{OnEvent, Telemetry};
use crate::privacy::{Alias, FinishReasons, Prices};
use crate::request::Request;
use crate::session::Session;
use crate::testing::taps::Act;
pub use crate::testing::taps::LogitsTap;
use crate::text::{Detokenizer, Text};

impl Request {
    /// Copies the logits of every step into `tap`.
    pub fn tap_logits(mut self, tap: &LogitsTap) -> Self {
        self.taps.logits = Some(tap.clone());
        self
    }

    /// Panics when the logits of token `token` of the reply, counted from 0, are there, and nothing was made of them yet: the
    /// session is poisoned.
    pub fn panic_at(self, token: usize) -> Self {
        self.act(token, Act::Panic)
    }

    /// Ends at that moment with [`crate::Error::NotFinite`], as if the logits were not.
    pub fn fail_at(self, token: usize) -> Self {
        self.act(token, Act::NotFinite)
    }

    /// Stands still at `gate` when it is about to be read: templates, tokenizer, grammar.
    pub fn stop_reading(mut self, gate: &Gate) -> Self {
        self.taps.reading = Some(gate.clone());
        self
    }

    /// Stands still at `gate` when grammar mask `mask` of its first choice is about to be computed beside the model,
    /// counted from 0: the first token's is computed with the grammar, and is none of them.
    pub fn stop_mask(mut self, mask: usize, gate: &Gate) -> Self {
        self.taps.mask = Some((mask, gate.clone()));
        self
    }

    /// Has its grammar taken for one whose masks take long, from the first token on.
    pub fn slow_grammar(mut self) -> Self {
        self.taps.slow_grammar = true;
        self
    }

    fn act(mut self, token: usize, act: Act) -> Self {
        self.taps.acts.push((token, act));
        self
    }
}

impl Session {
    /// Grammars compiled so far.
    pub fn grammars_compiled(&self) -> u64 {
        self.client.shared.compiled.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl Builder {
    /// Panics inside the `steps`-th step, between the forward pass and the sampling.
    pub fn panic_in_step(mut self, steps: usize) -> Self {
        self.faults.panic_in = Some(steps.max(1));
        self
    }
}

impl Builder {
    /// Has [`Device::CudaEmulated`](crate::Device::CudaEmulated) fail for good after so many calls.
    pub fn device_fails_in(mut self, calls: i64) -> Self {
        self.faults.device_fails_in = Some(calls);
        self
    }

    /// Has an emulated device count the bytes that are copied to the host.
    pub fn count_read_bytes(mut self, count: &'static AtomicU64) -> Self {
        self.faults.read_bytes = Some(count);
        self
    }

    /// Has the host choose all tokens, as it does where a device cannot.
    pub fn sample_on_host(mut self) -> Self {
        self.faults.sample_on_host = true;
        self
    }
}

/// All known `model_type`s.
pub fn model_types() -> impl Iterator<Item = &'static str> {
    crate::model::families::FAMILIES.iter().map(|family| family.model_type)
}

#[doc(hidden)]
pub use crate::memory::blocks::{BlockPool, CleanBlocks, DeadBlocks};

/// The library's scrub with its proof, for the examples of [`BlockPool`].
#[doc(hidden)]
pub fn scrub_proof(bytes: &mut [u8]) -> crate::memory::Scrubbed {
    crate::memory::scrub(bytes)
}

/// The library's scrub, for benches. Returns the bytes overwritten.
pub fn scrub(bytes: &mut [u8]) -> u64 {
    crate::memory::scrub(bytes).bytes()
}

/// From now on this process's heap for secrets behaves as on a kernel without `memfd_secret`. What is there stays.
pub fn without_secret_memory() {
    crate::memory::heap::secretmem::do_without();
}

/// Bytes of the heap for secrets that are `memfd_secret`: 0 where the kernel has none to give.
pub fn secret_memory_bytes() -> u64 {
    crate::memory::heap::status().secret
}

/// A block of the heap for secrets by itself, for benches.
#[derive(Debug)]
pub struct SecretBytes(Secret<[u8]>);

impl SecretBytes {
    /// A secret of so many bytes, all zero.
    pub fn new(len: usize) -> Self {
        Self(Secret::with_capacity(len))
    }

    /// Writes a cache line of it, or all.
    pub fn touch(&mut self) {
        let count = self.len().min(64);
        self.0.refill(std::iter::repeat_n(7, count));
    }

    /// Bytes that it can hold.
    #[expect(clippy::len_without_is_empty, reason = "none is")]
    pub fn len(&self) -> usize {
        self.0.capacity()
    }
}

/// Encrypts bytes in place as an idle conversation's part of the KV cache is encrypted, for benches.
pub fn seal_block(key: &crate::SealingKey, count: u64, bytes: &mut [u8]) {
    key.mask(count, 0, bytes);
}

/// Telemetry without a session, for benches.
#[derive(Debug)]
pub struct Telling(Arc<Telemetry>);

impl Telling {
    /// Telemetry of a model called `llama`; `on_event` is told, too, if there is one.
    pub fn new(on_event: Option<OnEvent>) -> Self {
        let model = Alias::new("llama").expect("a name");
        let clock = Arc::new(SystemClock);
        Self(Arc::new(Telemetry { model, session: 1, prices: Some(Prices::default()), on_event, clock }))
    }

    /// Tells all of a request that ends well: its span, three events, the metrics.
    pub fn emit(&self, request: &Request) {
        let (trace, id) = (self.0.trace(request, false), RequestId { session: 1, count: 1 });
        trace.accepted(id, 9, 7);
        trace.first_token(id, 0);
        let usage = Usage { prompt_tokens: 9, completion_tokens: 5, ..Usage::default() };
        trace.ended(id, &usage, &Timing::default(), FinishReasons::default());
    }
}

/// A checkpoint's tokenizer and detokenizer by themselves.
#[derive(Debug)]
pub struct Tokenizer(Text);

impl Tokenizer {
    /// Opens the tokenizer in `folder`, or in a GGUF file, for a model of `vocab` tokens.
    ///
    /// # Errors
    /// Returns the errors of [`crate::Session::open`].
    ///
    /// # Panics
    /// If there is none.
    pub fn open(folder: &Path, vocab: usize) -> Result<Self> {
        Ok(Self(crate::source::CheckpointSource::open(folder)?.text(vocab)?.expect("a tokenizer")))
    }

    /// Opens the tokenizer in `folder`, or in a GGUF file, for a model that only reads: its decoder may be of any kind.
    ///
    /// # Errors
    /// Returns the errors of [`crate::Session::open`].
    ///
    /// # Panics
    /// If there is none.
    pub fn open_to_read(folder: &Path, vocab: usize) -> Result<Self> {
        Ok(Self(crate::source::CheckpointSource::open(folder)?.text_to_read(vocab)?.expect("a tokenizer")))
    }

    /// The ids of `text`, with special tokens around them if asked.
    ///
    /// # Panics
    /// If it cannot be encoded.
    pub fn encode(&self, text: &str, specials: bool) -> Vec<u32> {
        let mut ids = Secret::default();
        self.0.encode(text, specials, &mut ids).expect("a text that can be encoded");
        ids.into_exposed()
    }

    /// The ids of `text`, without special tokens around them.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn try_encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Secret::default();
        self.0.encode(text, false, &mut ids)?;
        Ok(ids.into_exposed())
    }

    /// How many ids `text` has. They are forgotten.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn count(&self, text: &str) -> Result<usize> {
        let mut ids = Secret::default();
        self.0.encode(text, false, &mut ids)?;
        Ok(ids.expose().len())
    }

    /// The component of `tokenizer.json` for which the `tokenizers` crate encodes all texts; none if it is not used.
    pub fn fallback(&self) -> Option<&str> {
        self.0.fallback()
    }

    /// The ids of `text`, in which nothing is a control token, without special tokens around them.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn encode_literal(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Secret::default();
        self.0.encode_literal(text, false, &mut ids)?;
        Ok(ids.into_exposed())
    }

    /// The text of `ids`, without special tokens, pushed one by one.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, true)
    }

    /// The text of `ids`, with or without special tokens.
    pub fn decode_with(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        let text = Detokenizer::decode(self.0.pieces(), ids, skip_special_tokens);
        Secret::from_utf8(text).expect("whole characters").into_exposed()
    }

    /// What each of `ids` adds to the text, and what is left at the end.
    pub fn decode_streamed(&self, ids: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(self.0.pieces(), true, Default::default());
        let mut pieces = Vec::new();
        let mut take = |text: Secret<[u8]>| {
            pieces.push(Secret::from_utf8(text).expect("whole characters").into_exposed());
        };
        for &id in ids {
            let mut text = Secret::default();
            detokenizer.push(self.0.pieces(), id, &mut text);
            take(text);
        }
        let mut text = Secret::default();
        detokenizer.finish(&mut text);
        take(text);
        pieces
    }
}

/// The model by itself: logits of every position of a sequence, on the CPU.
pub struct Scorer {
    backend: Cpu,
    decoder: Decoder<Cpu>,
    weights_bytes: u64,
}

impl Scorer {
    /// Opens with the builder's settings, for sequences of up to `tokens` tokens.
    ///
    /// # Errors
    /// Returns the errors of [`Builder::open`].
    pub fn open(builder: Builder, tokens: usize) -> Result<Self> {
        let builder = builder.max_sequences(tokens).step_tokens(tokens).kv_tokens(tokens);
        let parts = builder.parts()?;
        let weights_bytes = parts.weights.bytes::<Cpu>(builder.quantize);
        let mut backend = Cpu::new(builder.thread_count()?, builder.instruction_set()?)?;
        let plan = parts.plan::<Cpu>(BufferLimits::default())?;
        let decoder = Decoder::new(parts.arch, &parts.weights, plan, builder.quantize, &mut backend, |_| ())?;
        Ok(Self { backend, decoder, weights_bytes })
    }

    /// Bytes of the packed weights.
    pub fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    /// The logits of each position: (tokens, vocab), one row after another to `take`.
    ///
    /// # Panics
    /// If there are more tokens than it was opened for, or one is outside the vocabulary.
    pub fn score(&mut self, ids: &[u32], mut take: impl FnMut(usize, &[f32])) {
        let blocks: Vec<u32> = (0..blocks_for(ids.len()) as u32).collect();
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        let spans =
            [Span { row: 0, rows: ids.len(), position: 0, table: 0, adapter: None, mask: Mask::Causal }];
        let batch = Batch {
            ids,
            positions: &positions,
            slots: &positions, // blocks in order: position i has slot i
            spans: &spans,
            blocks: &blocks,
            outputs: &positions,
            position_types: &[],
        };
        let fence = self.decoder.forward(&mut self.backend, &batch);
        for row in 0..ids.len() {
            take(row, self.decoder.logits(&mut self.backend, &fence, row));
        }
    }
}

impl std::fmt::Debug for Scorer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scorer").finish_non_exhaustive()
    }
}
