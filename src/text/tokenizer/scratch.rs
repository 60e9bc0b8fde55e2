//! Working memory of one call: all of it in `Secret`s, gone with the call.

use super::merges::Merges;
use crate::memory::Secret;

/// What the steps write to.
#[derive(Default)]
pub struct Scratch {
    /// Forms of the text that normalizers make, one after another.
    pub normalized: [Secret<[u8]>; 2],
    /// Forms that pre-tokenizers make.
    pub rewritten: [Secret<[u8]>; 2],
    /// Pieces as pairs of start and end, before and after a step.
    pub pieces: [Secret<[u32]>; 2],
    /// Characters that are being put in order.
    pub pending: Secret<[u64]>,
    pub model: ModelScratch,
}

/// What models write to.
#[derive(Default)]
pub struct ModelScratch {
    /// What a piece consists of.
    pub symbols: Secret<[u32]>,
    /// The neighbours of each symbol; or where the best path to each place comes from, and by which token.
    pub links: Secret<[u32]>,
    /// Merges to be done.
    pub queue: Secret<[u64]>,
    /// The score of the best path to each place.
    pub scores: Secret<[f64]>,
}

impl ModelScratch {
    /// The symbols, merged.
    #[inline]
    pub fn merged(&mut self, merges: &Merges) -> &[u32] {
        let len = merges.run(self.symbols.expose_mut(), &mut self.links, &mut self.queue);
        &self.symbols.expose()[..len]
    }
}
