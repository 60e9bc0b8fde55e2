//! What an [`Arch`](super::Arch) is made of.

use crate::backend::{NormKind, Pooling, Routing};
use crate::model::families::MixtureRow;

/// What one layer has that others may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// How many positions it looks back over, itself included; none for all.
    pub window: Option<usize>,
    /// Which of [`Arch::ropes`](super::Arch::ropes) turns its queries and keys; none for none.
    pub rope: Option<usize>,
    /// Whether it has experts.
    pub mixture: bool,
}

/// Multi-head latent attention. What is cached for a position is one key for all heads, the part that turns and the latent,
/// and one value, the latent: the matrices that would make keys and values of heads of it are multiplied with queries and
/// with what attention gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// Numbers in the latent of queries, where they have one.
    pub q_rank: Option<usize>,
    /// Numbers in the latent of keys and values.
    pub rank: usize,
    /// Values of a head's query that do not turn.
    pub nope_dim: usize,
    /// And those that do.
    pub rope_dim: usize,
    /// Numbers in a head's value.
    pub value: usize,
}

/// A norm of the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct NormShape {
    /// What is divided by.
    pub kind: NormKind,
    /// Added below the root.
    pub eps: f32,
    /// Whether one is added to stored weights.
    pub plus_one: bool,
    /// Whether there are weights.
    pub weight: bool,
    /// Whether there are biases.
    pub bias: bool,
}

/// A norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadNormShape {
    /// A norm of each head, with one weight for all: (head_dim).
    Head {
        /// Whether there is a bias too.
        bias: bool,
    },
    /// A norm of each head, with weights of its own: (heads, head_dim).
    Heads,
    /// A norm of each head, in a tensor for each.
    HeadsApart,
    /// One norm over all heads together: (heads * head_dim).
    Whole,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug)]
pub struct Moe {
    /// Its row in the table of families.
    pub row: MixtureRow,
    /// Experts.
    pub experts: usize,
    /// Values per token inside one.
    pub inner: usize,
    /// How tokens choose them.
    pub routing: Routing,
    /// Values per token inside the expert that all share.
    pub shared: Option<usize>,
}

/// The tables that are added to embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PositionTypeShape {
    /// Rows before that of the first position.
    pub skipped: usize,
    /// Positions; none where that table is not there.
    pub positions: Option<usize>,
    /// Parts of a pair of texts; none where that table is not there.
    pub types: Option<usize>,
}

/// What a checkpoint for classifying texts has behind its layers.
#[derive(Clone, Debug)]
pub struct ClassifierShape {
    /// Which rows count.
    pub pooling: Pooling,
    /// Scores of a text.
    pub labels: usize,
    /// Whether each step has a bias.
    pub biases: Vec<bool>,
}
