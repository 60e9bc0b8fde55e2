//! A step's input, built in buffers that are allocated once.

use super::sequence::Sequence;
use crate::backend::{BLOCK, Batch, Span};
use crate::memory::{Scrubbed, Secret};
use crate::model::decoder::{Limits, blocks_for};

/// The buffers behind a [`Batch`]. Token ids are content; the rest are numbers of rows and blocks.
#[derive(Debug)]
pub struct Builder {
    ids: Secret<Vec<u32>>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    spans: Vec<Span>,
    blocks: Vec<u32>,
    outputs: Vec<u32>,
}

impl Builder {
    /// For steps within `limits`.
    pub fn new(limits: Limits) -> Self {
        Self {
            ids: Secret::<Vec<u32>>::with_capacity(limits.step_tokens),
            positions: Vec::with_capacity(limits.step_tokens),
            slots: Vec::with_capacity(limits.step_tokens),
            spans: Vec::with_capacity(limits.sequences),
            blocks: Vec::with_capacity(limits.blocks),
            outputs: Vec::with_capacity(limits.sequences),
        }
    }

    /// The next `turns[i]` tokens of sequence i, for each i. A sequence whose tokens are all in after this step gets
    /// an output row, in order.
    pub fn build(&mut self, sequences: &[Sequence], turns: &[usize]) -> Batch<'_> {
        self.ids.truncate(0);
        self.positions.clear();
        self.slots.clear();
        self.spans.clear();
        self.blocks.clear();
        self.outputs.clear();
        for (sequence, &turn) in sequences.iter().zip(turns).filter(|(_, turn)| **turn > 0) {
            let end = sequence.cached + turn;
            let span = Span {
                row: self.positions.len(),
                rows: turn,
                position: sequence.cached,
                table: self.blocks.len(),
            };
            self.spans.push(span);
            self.ids.extend(&sequence.ids.expose()[sequence.cached..end]);
            self.blocks.extend(&sequence.table[..blocks_for(end)]);
            for position in sequence.cached..end {
                self.positions.push(position as u32);
                self.slots.push(sequence.table[position / BLOCK] * BLOCK as u32 + (position % BLOCK) as u32);
            }
            if turn == sequence.left() {
                self.outputs.push(self.positions.len() as u32 - 1);
            }
        }
        Batch {
            ids: self.ids.expose(),
            positions: &self.positions,
            slots: &self.slots,
            spans: &self.spans,
            blocks: &self.blocks,
            outputs: &self.outputs,
        }
    }

    /// Overwrites the ids.
    pub fn scrub(&mut self) -> Scrubbed {
        self.ids.wipe()
    }
}
