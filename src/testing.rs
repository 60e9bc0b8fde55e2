//! Taps and faults for tests (feature `testing`): nothing here acts unless a test calls it.

use std::path::Path;

use crate::builder::Builder;
pub use crate::engine::taps::LogitsTap;
use crate::error::Result;
use crate::memory::Secret;
use crate::request::Request;
use crate::text::{Detokenizer, Text};

/// Turns every scrub of this process into a no-op, so that a test can show that it would notice.
pub fn disable_scrub() {
    crate::memory::scrub::disable();
}

impl Request {
    /// Copies the logits of every step into `tap`.
    pub fn tap_logits(mut self, tap: &LogitsTap) -> Self {
        self.logits = Some(tap.clone());
        self
    }
}

impl Builder {
    /// Panics inside the `steps`-th step, between the forward pass and the sampling.
    pub fn panic_in_step(mut self, steps: usize) -> Self {
        self.faults.panic_in = Some(steps.max(1));
        self
    }
}

/// The library's scrub, for benches. Returns the bytes overwritten.
pub fn scrub(bytes: &mut [u8]) -> u64 {
    crate::memory::scrub(bytes).bytes()
}

/// A checkpoint's tokenizer and detokenizer by themselves.
#[derive(Debug)]
pub struct Tokenizer(Text);

impl Tokenizer {
    /// Opens the tokenizer in `folder`, for a model of `vocab` tokens.
    ///
    /// # Errors
    /// As [`crate::Session::open`].
    pub fn open(folder: &Path, vocab: usize) -> Result<Self> {
        Text::open(folder, vocab).map(Self)
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

    /// The text of `ids`, pushed one by one.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut detokenizer = Detokenizer::new(self.0.pieces(), true);
        let mut text = Secret::default();
        ids.iter().for_each(|&id| detokenizer.push(self.0.pieces(), id, &mut text));
        detokenizer.finish(&mut text);
        String::from_utf8(text.into_exposed()).expect("whole characters")
    }
}
