//! What one step computes: worked out once from the scheduler's choice, and only read afterwards, by the model, the sampler and
//! the worker. Its buffers are allocated when the session opens.

use super::scheduler::Id;
use crate::backend::{BLOCK, Batch, Mask, Span};
use crate::memory::{Scrubbed, Secret, scrub};
use crate::model::decoder::{Limits, blocks_for};

/// The rows of one sequence that go into a step.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The sequence; any number where nobody asks for [`StepPlan::sequence`].
    pub id: Id,
    /// Known tokens, then guesses: one for each row.
    pub ids: &'a [u32],
    /// How many of them are guesses.
    pub guesses: usize,
    /// Position of the first row.
    pub position: usize,
    /// The sequence's blocks: entry i holds positions `i * BLOCK..`.
    pub table: &'a [u32],
    /// Rows at this position and behind it get logits.
    pub logits_from: usize,
    /// The adapter that it runs with.
    pub adapter: Option<u32>,
    /// Which positions its rows see.
    pub mask: Mask,
}

/// A sequence's part in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScheduledSeq {
    pub id: Id,
    /// Position of its first row.
    pub position: usize,
    /// Rows of known tokens: one while it decodes.
    pub tokens: usize,
    /// Rows of guesses, which follow them.
    pub guesses: usize,
    /// The first of its rows of logits, and how many it has: they belong to its last rows.
    pub first_logits: usize,
    pub logits: usize,
}

impl ScheduledSeq {
    /// Position behind its known tokens.
    pub fn end(&self) -> usize {
        self.position + self.tokens
    }

    /// Position of its first row that has logits.
    pub fn logits_from(&self) -> usize {
        self.end() + self.guesses - self.logits
    }

    /// The row of logits of the last known token. Those of guesses follow it.
    pub fn token_row(&self) -> usize {
        self.first_logits + self.logits - self.guesses - 1
    }
}

/// A step. Token ids are content. The rest are numbers of rows and blocks: how many guesses were right can be told from the
/// positions, so they are overwritten, too.
#[derive(Debug)]
pub struct StepPlan {
    sequences: Vec<ScheduledSeq>,
    ids: Secret<[u32]>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    spans: Vec<Span>,
    blocks: Vec<u32>,
    logits_rows: Vec<u32>,
    position_types: Vec<u32>,
    /// Rows at most, of which each may be a sequence with logits.
    most: usize,
}

impl StepPlan {
    /// For steps within `limits`.
    pub fn new(limits: Limits) -> Self {
        Self {
            sequences: Vec::with_capacity(limits.sequences),
            ids: Secret::<[u32]>::with_capacity(limits.step_tokens),
            positions: Vec::with_capacity(limits.step_tokens),
            slots: Vec::with_capacity(limits.step_tokens),
            spans: Vec::with_capacity(limits.sequences),
            blocks: Vec::with_capacity(limits.blocks),
            logits_rows: Vec::with_capacity(limits.outputs),
            position_types: Vec::with_capacity(limits.step_tokens),
            most: limits.step_tokens.min(limits.sequences).min(limits.outputs),
        }
    }

    /// Begins the plan of another step.
    pub fn clear(&mut self) {
        self.ids.truncate(0);
        self.empty_lists();
    }

    fn empty_lists(&mut self) {
        let Self { sequences, positions, slots, blocks, logits_rows, position_types, spans, .. } = self;
        for list in [positions, slots, blocks, logits_rows, position_types] {
            scrub::empty(list);
        }
        scrub::empty(spans);
        scrub::empty(sequences);
    }

    /// Adds rows of a sequence.
    pub fn add(&mut self, add: Rows<'_>) {
        let Rows { id, ids, guesses, position, table, logits_from, adapter, mask } = add;
        let (row, rows) = (self.positions.len(), ids.len());
        let end = position + rows;
        let logits = end.saturating_sub(logits_from.max(position));
        let first_logits = self.logits_rows.len();
        let tokens = rows - guesses;
        self.sequences.push(ScheduledSeq { id, position, tokens, guesses, first_logits, logits });
        self.spans.push(Span { row, rows, position, table: self.blocks.len(), adapter, mask });
        self.ids.extend(ids);
        self.blocks.extend(&table[..blocks_for(end)]);
        for position in position..end {
            self.positions.push(position as u32);
            self.slots.push(table[position / BLOCK] * BLOCK as u32 + (position % BLOCK) as u32);
        }
        self.logits_rows.extend((row + rows - logits..row + rows).map(|row| row as u32));
    }

    /// Adds the rows of the table of positions and parts that the rows added last get, where the model has such a table.
    pub fn add_position_types(&mut self, rows: impl Iterator<Item = u32>) {
        self.position_types.extend(rows);
    }

    /// Pads a step in which each sequence has one token and a row of logits to as many rows as `padded_rows` says, with
    /// copies of the last one: nothing of them is stored, and nobody reads their logits.
    pub fn pad(&mut self, padded_rows: impl Fn(usize) -> usize) {
        let rows = self.spans.len();
        let Some(&last) = self.spans.last() else { return };
        let single = self.spans.iter().all(|span| span.rows == 1 && span.adapter.is_none());
        if !single || self.logits_rows.len() != rows {
            return;
        }
        let id = self.ids.expose()[last.row];
        for row in rows..padded_rows(rows).min(self.most) {
            self.ids.push(id);
            self.positions.push(last.position as u32);
            self.slots.push(Batch::NOWHERE);
            self.spans.push(Span { row, ..last });
            self.logits_rows.push(row as u32);
        }
    }

    /// How many sequences take part.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// The part of one of them, by its place in the step.
    pub fn sequence(&self, place: usize) -> ScheduledSeq {
        self.sequences[place]
    }

    /// What the model reads.
    pub fn batch(&self) -> Batch<'_> {
        Batch {
            ids: self.ids.expose(),
            positions: &self.positions,
            slots: &self.slots,
            spans: &self.spans,
            blocks: &self.blocks,
            outputs: &self.logits_rows,
            position_types: &self.position_types,
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

    const LIMITS: Limits = Limits { step_tokens: 8, sequences: 6, outputs: 8, blocks: 10, context: 640 };

    fn single(id: &u32, position: usize) -> Rows<'_> {
        let (ids, table) = (std::slice::from_ref(id), &[2, 9]);
        Rows {
            id: 0,
            ids,
            guesses: 0,
            position,
            table,
            logits_from: position,
            adapter: None,
            mask: Mask::Causal,
        }
    }

    #[test]
    fn rows_and_logits_are_worked_out_once() {
        let mut plan = StepPlan::new(LIMITS);
        let table = [2, 9];
        // positions 62 to 66, of which the last is a guess; logits from 64 on
        let ids = [5, 6, 7, 8, 9];
        plan.add(Rows {
            id: 4,
            ids: &ids,
            guesses: 1,
            position: 62,
            table: &table,
            logits_from: 64,
            adapter: None,
            mask: Mask::Causal,
        });
        // half of a prompt has no logits
        let ids = [1, 2];
        plan.add(Rows {
            id: 7,
            ids: &ids,
            guesses: 0,
            position: 0,
            table: &table,
            logits_from: 9,
            adapter: Some(3),
            mask: Mask::Bidirectional,
        });
        let expected =
            ScheduledSeq { id: 4, position: 62, tokens: 4, guesses: 1, first_logits: 0, logits: 3 };
        assert_eq!((plan.len(), plan.sequence(0)), (2, expected));
        assert_eq!((expected.end(), expected.logits_from(), expected.token_row()), (66, 64, 1));
        assert_eq!((plan.sequence(1).first_logits, plan.sequence(1).logits), (3, 0));
        let batch = plan.batch();
        assert_eq!(batch.slots, [190, 191, 576, 577, 578, 128, 129]);
        assert_eq!((batch.positions, batch.outputs), (&[62, 63, 64, 65, 66, 0, 1][..], &[2, 3, 4][..]));
        assert_eq!(
            (batch.blocks, batch.spans[1].table, batch.spans[1].adapter),
            (&[2, 9, 2][..], 2, Some(3))
        );
        assert_eq!([0, 1].map(|span| batch.spans[span].mask), [Mask::Causal, Mask::Bidirectional]);
    }

    #[test]
    fn steps_of_single_tokens_are_padded_with_copies() {
        let mut plan = StepPlan::new(LIMITS);
        plan.pad(|_| 4);
        assert_eq!(plan.batch().ids.len(), 0);
        (0..3).for_each(|i| plan.add(single(&(10 + i), 60 + i as usize)));
        plan.pad(|rows| rows + 1);
        let batch = plan.batch();
        assert_eq!(
            (batch.ids, batch.positions, batch.tokens()),
            (&[10, 11, 12, 12][..], &[60, 61, 62, 62][..], 3)
        );
        assert_eq!((batch.slots[2], batch.slots[3]), (2 * 64 + 62, Batch::NOWHERE));
        assert_eq!((batch.outputs, batch.spans.len(), plan.len()), (&[0, 1, 2, 3][..], 4, 3));
        assert_eq!((batch.spans[3].row, batch.spans[3].table), (3, batch.spans[2].table));
        plan.clear();
        (0..3).for_each(|i| plan.add(single(&i, 5)));
        plan.pad(|_| 100);
        assert_eq!(plan.batch().ids.len(), 6, "no more than sequences");
        plan.clear();
        plan.add(single(&1, 5));
        plan.add(Rows { ids: &[1, 2], ..single(&1, 5) });
        plan.pad(|_| 6);
        assert_eq!(plan.batch().ids.len(), 3, "a prompt is not copied");
    }
}
