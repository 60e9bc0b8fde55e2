//! The arguments of attention and of what turns its queries and keys.

use super::batch::{Batch, Mask, Span};
use super::buffer::Buf;
use super::kv::BLOCK;
use super::packed::PackedKv;

/// Rotary embedding of a layer.
#[derive(Debug)]
pub struct RopeTable<W> {
    /// (context, dims): cosines, then sines.
    pub table: W,
    /// How many of a head's values turn: its first ones.
    pub dims: usize,
    /// Whether neighbours turn together, else values half of `dims` apart.
    pub interleaved: bool,
}

/// The shape of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Which layer's cache.
    pub layer: usize,
    /// Query heads.
    pub heads: usize,
    /// Positions to look back over, itself included, and ahead over where the mask is bidirectional; none for all.
    pub window: Option<usize>,
    /// Factor on the scores.
    pub scale: f32,
    /// Soft-cap: scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
}

impl Attention {
    /// The first and the last position that the row at `position` sees.
    pub fn sees(&self, span: &Span, position: usize) -> (usize, usize) {
        let last = match span.mask {
            Mask::Causal => position,
            Mask::Bidirectional => span.position + span.rows - 1,
        };
        match self.window {
            None => (0, last),
            Some(window) => ((position + 1).saturating_sub(window), last.min(position + window - 1)),
        }
    }

    /// What kernels rely on. `sinks`: how many there are; `reach`: of the distances.
    ///
    /// # Panics
    /// If it does not hold.
    pub(super) fn check(
        &self,
        batch: &Batch<'_>,
        kv: &PackedKv,
        [q, out]: [Buf; 2],
        sinks: Option<usize>,
        reach: Option<usize>,
    ) {
        let rows = batch.ids.len();
        assert!(
            sinks.is_none_or(|sinks| sinks == self.heads && self.softcap.is_none()),
            "attention: sinks differ"
        );
        assert!(reach.is_none() || self.softcap.is_none(), "attention: distances and a soft-cap");
        let cols = [kv.head_dim, kv.value_dim].map(|dim| self.heads * dim);
        assert!([q.cols, out.cols] == cols, "attention: columns differ");
        for span in batch.spans {
            let last = span.position + span.rows;
            for &block in &batch.blocks[span.table..span.table + last.div_ceil(BLOCK)] {
                let _ = kv.block(block); // panics outside the cache
            }
            assert!(
                span.row + span.rows <= rows && self.layer < kv.layers,
                "attention: rows or layer differ"
            );
            assert!(span.mask == Mask::Causal || span.position == 0, "attention: half of a text");
            // from the last row back to the first, and on to the end of the last row's block
            assert!(reach.is_none_or(|reach| last + BLOCK <= reach), "attention: distances are too short");
        }
    }
}

/// What comes to the scores of an attention besides the products.
#[derive(Debug)]
pub struct AttentionBias<'a, W> {
    /// (heads): a score of each head that takes its part of the softmax and gives no value. Not with a soft-cap.
    pub sinks: Option<&'a W>,
    /// (heads, 2 * reach): what is added to the score of a key so many positions behind the query, from `-reach` on.
    /// The reach is at least a request's length and a block. Not with a soft-cap.
    pub relative_bias: Option<&'a W>,
}
