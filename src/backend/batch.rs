//! What a step computes, as a backend reads it.

use super::ops::EmbedBy;

/// The rows of one request in a batch: consecutive positions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Span {
    /// First row in the batch.
    pub row: usize,
    /// Rows.
    pub rows: usize,
    /// Position of the first row.
    pub position: usize,
    /// Where its block table starts in [`Batch::blocks`]; entry i holds positions `i * BLOCK..`.
    pub table: usize,
    /// Which adapter it runs with.
    pub adapter: Option<u32>,
    /// Which positions its rows see.
    pub mask: Mask,
}

/// Which positions of its own request a row of attention sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mask {
    /// Those up to its own.
    #[default]
    Causal,
    /// All of them; they must then be in one batch.
    Bidirectional,
}

/// One step's input: tokens of several requests behind one another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch<'a> {
    /// Token ids: (rows).
    pub ids: &'a [u32],
    /// Positions: (rows).
    pub positions: &'a [u32],
    /// KV slot of each row: block * BLOCK + offset, or [`Batch::NOWHERE`]: (rows).
    pub slots: &'a [u32],
    /// The requests.
    pub spans: &'a [Span],
    /// Block tables.
    pub blocks: &'a [u32],
    /// Rows whose logits are wanted.
    pub outputs: &'a [u32],
    /// For models that add learned embeddings of positions and of parts of a text: which row of that table each token gets.
    /// (rows), or empty.
    pub position_types: &'a [u32],
}

impl<'a> Batch<'a> {
    /// The slot of a row whose keys and values are not stored, since it is another one's copy.
    pub const NOWHERE: u32 = u32::MAX;

    /// Rows that are no copies.
    pub fn tokens(&self) -> usize {
        self.slots.iter().filter(|&&slot| slot != Self::NOWHERE).count()
    }

    /// Which row of a table each row of the batch gets.
    pub(super) fn rows_of_table(&self, by: EmbedBy) -> &'a [u32] {
        match by {
            EmbedBy::Token => self.ids,
            EmbedBy::PositionType => self.position_types,
        }
    }
}
