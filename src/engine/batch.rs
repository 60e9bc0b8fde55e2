//! A step's input, built in buffers that are allocated once.

use crate::backend::{BLOCK, Batch, Span};
use crate::memory::{Scrubbed, Secret};
use crate::model::decoder::{Limits, blocks_for};

/// The buffers behind a [`Batch`]. Token ids are content; the rest are numbers of rows and blocks.
#[derive(Debug)]
pub struct Builder {
    ids: Secret<[u32]>,
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
            ids: Secret::<[u32]>::with_capacity(limits.step_tokens),
            positions: Vec::with_capacity(limits.step_tokens),
            slots: Vec::with_capacity(limits.step_tokens),
            spans: Vec::with_capacity(limits.sequences),
            blocks: Vec::with_capacity(limits.blocks),
            outputs: Vec::with_capacity(limits.outputs),
        }
    }

    /// Starts over.
    pub fn clear(&mut self) {
        self.ids.truncate(0);
        self.positions.clear();
        self.slots.clear();
        self.spans.clear();
        self.blocks.clear();
        self.outputs.clear();
    }

    /// Adds tokens of one sequence: `ids`, then `drafts`, from `position` on, in the blocks of `table`. Those at
    /// position `outputs_from` and behind get a row of logits each; returns how many. All run with `adapter`.
    pub fn add(
        &mut self,
        ids: &[u32],
        drafts: &[u32],
        position: usize,
        table: &[u32],
        outputs_from: usize,
        adapter: Option<u32>,
    ) -> usize {
        let (row, rows) = (self.positions.len(), ids.len() + drafts.len());
        let end = position + rows;
        self.spans.push(Span { row, rows, position, table: self.blocks.len(), adapter });
        self.ids.extend(ids);
        self.ids.extend(drafts);
        self.blocks.extend(&table[..blocks_for(end)]);
        for position in position..end {
            self.positions.push(position as u32);
            self.slots.push(table[position / BLOCK] * BLOCK as u32 + (position % BLOCK) as u32);
        }
        let first = outputs_from.saturating_sub(position).min(rows);
        self.outputs.extend((row + first..row + rows).map(|row| row as u32));
        rows - first
    }

    /// All that was added.
    pub fn batch(&self) -> Batch<'_> {
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
