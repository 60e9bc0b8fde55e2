//! A step's input, built in buffers that are allocated once.

use crate::backend::{BLOCK, Batch, Span};
use crate::memory::{Scrubbed, Secret, scrub};
use crate::model::decoder::{Limits, blocks_for};

/// The buffers behind a [`Batch`]. Token ids are content. The rest are numbers of rows and blocks: how many guesses were
/// right can be told from the positions, so they are overwritten, too.
#[derive(Debug)]
pub struct Builder {
    ids: Secret<[u32]>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    spans: Vec<Span>,
    blocks: Vec<u32>,
    outputs: Vec<u32>,
    /// Rows at most, of which each may be a request with logits.
    most: usize,
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
            most: limits.step_tokens.min(limits.sequences).min(limits.outputs),
        }
    }

    /// Starts over.
    pub fn clear(&mut self) {
        self.ids.truncate(0);
        self.empty_lists();
    }

    fn empty_lists(&mut self) {
        let Self { positions, slots, blocks, outputs, spans, .. } = self;
        for list in [positions, slots, blocks, outputs] {
            scrub::empty(list);
        }
        scrub::empty(spans);
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

    /// Fills a step in which each request has one token and a row of logits up to as many rows as `filled` says, with
    /// copies of the last one: nothing of them is stored, and nobody reads their logits.
    pub fn fill(&mut self, filled: impl Fn(usize) -> usize) {
        let rows = self.spans.len();
        let Some(&last) = self.spans.last() else { return };
        let single = self.spans.iter().all(|span| span.rows == 1 && span.adapter.is_none());
        if !single || self.outputs.len() != rows {
            return;
        }
        let id = self.ids.expose()[last.row];
        for row in rows..filled(rows).min(self.most) {
            self.ids.push(id);
            self.positions.push(last.position as u32);
            self.slots.push(Batch::NOWHERE);
            self.spans.push(Span { row, ..last });
            self.outputs.push(row as u32);
        }
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

    /// Overwrites all of it.
    pub fn scrub(&mut self) -> Scrubbed {
        self.empty_lists();
        self.ids.wipe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_single_tokens_are_filled_up_with_copies() {
        let limits = Limits { step_tokens: 8, sequences: 6, outputs: 8, blocks: 10, context: 640 };
        let add = |builder: &mut Builder, id: u32, position: usize| {
            builder.add(&[id], &[], position, &[2, 9], position, None);
        };
        let mut builder = Builder::new(limits);
        builder.fill(|_| 4);
        assert_eq!(builder.batch().ids.len(), 0);
        (0..3).for_each(|i| add(&mut builder, 10 + i, 60 + i as usize));
        builder.fill(|rows| rows + 1);
        let batch = builder.batch();
        assert_eq!(
            (batch.ids, batch.positions, batch.tokens()),
            (&[10, 11, 12, 12][..], &[60, 61, 62, 62][..], 3)
        );
        assert_eq!((batch.slots[2], batch.slots[3]), (2 * 64 + 62, Batch::NOWHERE));
        assert_eq!((batch.outputs, batch.spans.len()), (&[0, 1, 2, 3][..], 4));
        assert_eq!((batch.spans[3].row, batch.spans[3].table), (3, batch.spans[2].table));
        builder.clear();
        (0..3).for_each(|i| add(&mut builder, i, 5));
        builder.fill(|_| 100);
        assert_eq!(builder.batch().ids.len(), 6, "no more than sequences");
        builder.clear();
        add(&mut builder, 1, 5);
        builder.add(&[1, 2], &[], 5, &[2], 5, None);
        builder.fill(|_| 6);
        assert_eq!(builder.batch().ids.len(), 3, "a prompt is not copied");
    }
}
