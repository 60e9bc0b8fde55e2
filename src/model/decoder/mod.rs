//! The one forward pass of causal language models: this module says which weights and buffers a decoder has,
//! [`plan`] how large its buffers are, [`load`] takes its weights in, and [`forward`] runs a step. [`moe`] has the
//! layers of experts and [`lora`] what adapters add, each with its loading, its buffers and its part of a step.
//!
//! Buffers, all planned before the first request (T tokens of a step, R rows of logits):
//! ```text
//! x      (T, hidden)              the residual stream
//! xb     (T, hidden)              a normed copy inside a branch, as an operand
//! q      (T, heads * head_dim)    queries
//! att    (T, heads * value_dim)   attention output, as an operand
//! k      (T, kv_heads * head_dim) keys on their way into the cache
//! v      (T, kv_heads * value_dim) values likewise
//! inner  (T, intermediate)        the MLP's activations, as an operand
//! branch (T, hidden)              what attention or the MLP gives, where that is normed before it is added
//! deciding (T, hidden)            the normed copy once more, for the router
//! routed                          the tokens at their experts, where there are any: [`crate::backend::Routed`]
//! shared, gate, gated             the same as inner, (T, 1) and (T, hidden) for the expert that all share
//! low, low operand (T, rank)     what an adapter makes of the rows that run with it
//! products (T, intermediate), twice  gate and up, where an adapter changes them or the backend does not fuse them
//! scaled (T, hidden)              what a branch gives, where an adapter scales it before it is added
//! of latents: [`super::latent::LatentBuffers`]
//! last   (R, hidden)              the rows whose logits are wanted
//! logits (R, vocab)
//! ```
//! Operands are written by one op for the matrix product of the next, in the form that the backend's kernels want.

mod forward;
mod load;
mod lora;
mod moe;
mod plan;

use self::lora::LowRank;
use self::moe::Moe;
use self::plan::Buffers;
use super::arch::{Arch, LayerShape, PositionTypeShape};
use super::latent::Latent;
use super::weights::Site;
use crate::backend::sample_batch::SampleBatch;
use crate::backend::{Backend, Buf, Fence, Linear, Mask, Norm, OperandType, RopeTable};

pub(super) use self::load::Loader;
pub use self::load::for_tables;
pub(super) use self::plan::too_large;
pub use self::plan::{Limits, Plan, blocks_for};

/// A decoder on a backend: weights taken in, buffers planned. See the module.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    arch: Arch,
    embed: B::Weight,
    /// What is added to embeddings: see [`Decoder::position_type`].
    position_type: Option<B::Weight>,
    embed_norm: Option<Norm<B::Weight>>,
    /// (heads, 2 * reach): [`crate::backend::AttentionBias`].
    relative_bias: Option<B::Weight>,
    layers: Vec<Layer<B::Weight>>,
    norm: Norm<B::Weight>,
    head: Option<B::Weight>,
    head_bias: Option<B::Weight>,
    ropes: Vec<RopeTable<B::Weight>>,
    /// What reads the last operand.
    head_form: OperandType,
    /// What adapters add to embeddings: the first matrix is a table.
    embed_adapters: Vec<Option<LowRank<B::Weight>>>,
    /// What adapters add to logits.
    head_adapters: Vec<Option<LowRank<B::Weight>>>,
    buffers: Buffers,
    /// Whether all layers use the same cache, one after the other.
    one_layer: bool,
}

impl<B: Backend> Decoder<B> {
    /// Where [`Decoder::hidden`] leaves its rows.
    pub fn hidden_rows(&self) -> Buf {
        self.buffers.x
    }

    /// What is added to the embedding of a token at `position` in a `part` of a pair of texts: a row of a table that the
    /// checkpoint has in two.
    pub fn position_type(&self, position: usize, part: usize) -> u32 {
        let Some(PositionTypeShape { positions, types, .. }) = self.arch.position_type else { return 0 };
        let part = part.min(types.unwrap_or(1) - 1);
        positions.map_or(part, |positions| part * positions + position) as u32
    }

    /// Which positions the rows of a sequence see.
    pub fn mask(&self) -> Mask {
        if self.arch.causal { Mask::Causal } else { Mask::Bidirectional }
    }

    /// The logits of output `row` of a step: (vocab).
    pub fn logits<'a>(&self, backend: &'a mut B, fence: &Fence, row: usize) -> &'a [f32] {
        backend.read(fence, self.buffers.logits, row)
    }

    /// Has the device answer questions about the logits of a step.
    pub fn sample_on_device(&self, backend: &mut B, fence: &Fence, queries: &mut SampleBatch) {
        backend.sample_on_device(fence, self.buffers.logits, queries);
    }

    /// The embedding table.
    #[cfg(feature = "forensics")]
    pub fn embedding(&self) -> &B::Weight {
        &self.embed
    }

    /// The buffers that a step of `tokens` rows, of which `outputs` have logits, writes to, each with its rows.
    pub fn used(&self, tokens: usize, outputs: usize) -> impl Iterator<Item = (Buf, usize)> {
        self.buffers.used(tokens, outputs, self.arch.heads)
    }
}

#[derive(Debug)]
struct Layer<W> {
    forms: Forms,
    attention_norm: Norm<W>,
    /// Where keys and values are those of a latent, `k` gives the part of the key that turns, `v` the latent.
    latent: Option<Latent<W>>,
    q: Linear<W>,
    k: Linear<W>,
    v: Linear<W>,
    /// The norms of each head of q, then of k.
    head_norms: Option<[Norm<W>; 2]>,
    o: Linear<W>,
    /// One score for each head.
    sinks: Option<W>,
    /// The norm of what attention adds.
    attention_post: Option<Norm<W>>,
    /// None where the MLP takes the input of the attention.
    mlp_norm: Option<Norm<W>>,
    feed: FeedForward<W>,
    /// The norm of what the MLP adds.
    mlp_post: Option<Norm<W>>,
    shape: LayerShape,
    /// What adapters add, by adapter and [`Site`].
    adapters: Vec<[Option<LowRank<W>>; Site::COUNT]>,
}

/// What reads the operands of a layer.
#[derive(Clone, Copy, Debug)]
struct Forms {
    /// q, k and v.
    attention: OperandType,
    /// q: of the latent of queries, where they have one.
    q: OperandType,
    o: OperandType,
    /// The first products of the MLP or of experts.
    feed: OperandType,
    /// The last ones.
    down: OperandType,
}

/// What is behind the attention.
#[derive(Debug)]
enum FeedForward<W> {
    One(Mlp<W>),
    Moe(Moe<W>),
}

#[derive(Debug)]
struct Mlp<W> {
    /// None where the MLP is not gated.
    gate: Option<Linear<W>>,
    up: Linear<W>,
    down: Linear<W>,
}
