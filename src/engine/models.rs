//! The model that a session serves, and the draft model that guesses for it, each with the memory of its steps.

use super::batch::Builder;
use super::scheduler::Store;
use crate::backend::{Backend, Counters};
use crate::memory::ledger::Ledger;
use crate::memory::{Scrubbed, arena::Closed, workspace::Dirty};
use crate::model::decoder::{Decoder, Limits};

/// A decoder on its backend.
pub struct Model<B: Backend> {
    backend: B,
    decoder: Decoder<B>,
    /// The step at hand.
    pub batch: Builder,
    dirty: Dirty,
}

impl<B: Backend> Model<B> {
    /// Ready for its first step.
    pub fn new(backend: B, decoder: Decoder<B>, limits: Limits) -> Self {
        Self { backend, decoder, batch: Builder::new(limits), dirty: Dirty::default() }
    }

    /// Runs the batch.
    pub fn forward(&mut self) {
        let batch = self.batch.batch();
        self.dirty.mark(batch.ids.len(), batch.outputs.len());
        self.decoder.forward(&mut self.backend, &batch);
    }

    /// The logits of output `row` of the last step: (vocab).
    pub fn logits(&mut self, row: usize) -> &[f32] {
        self.decoder.logits(&mut self.backend, row)
    }

    /// What was computed so far.
    pub fn counters(&self) -> Counters {
        self.backend.counters()
    }

    /// Overwrites all that steps since the last scrub left outside the cache.
    fn scrub_steps(&mut self, ledger: &mut Ledger) {
        let (tokens, outputs) = self.dirty.take();
        let (regions, proof) = self.decoder.scrub(&mut self.backend, tokens, outputs);
        ledger.scrubbed(regions, &proof);
        ledger.scrubbed(1, &self.batch.scrub());
        ledger.scrubbed(1, &self.backend.scrub_threads());
    }
}

/// Both models. They share block numbers: block i of the one's cache and of the other's hold the same positions.
pub struct Models<B: Backend> {
    pub main: Model<B>,
    pub draft: Option<Model<B>>,
    pub ledger: Ledger,
}

impl<B: Backend> Models<B> {
    fn each(&mut self) -> impl Iterator<Item = &mut Model<B>> {
        [&mut self.main].into_iter().chain(&mut self.draft)
    }

    /// Overwrites all that steps since the last scrub left outside the caches.
    pub fn scrub_steps(&mut self) {
        let Self { main, draft, ledger } = self;
        [main].into_iter().chain(draft).for_each(|model| model.scrub_steps(ledger));
    }

    /// Overwrites all memory of both.
    pub fn scrub_all(&mut self) {
        let proof = self.each().fold(Scrubbed::nothing(), |sum, model| sum.and(model.backend.scrub_all()));
        self.ledger.scrubbed(1, &proof);
    }

    /// Overwrites everything, reads it back, and gives it up.
    pub fn close(self) -> (Ledger, Vec<Closed>) {
        let models = [Some(self.main), self.draft].into_iter().flatten();
        (self.ledger, models.filter_map(|model| model.backend.close()).collect())
    }
}

impl<B: Backend> Store for Models<B> {
    fn scrub(&mut self, blocks: &[u32]) -> Scrubbed {
        let scrubs = self.each().map(|model| model.backend.scrub_blocks(blocks));
        let proof = scrubs.fold(Scrubbed::nothing(), Scrubbed::and);
        self.ledger.scrubbed(blocks.len() as u64, &proof);
        proof
    }

    fn copy(&mut self, from: u32, to: u32) {
        self.each().for_each(|model| model.backend.copy_block(from, to));
    }
}
