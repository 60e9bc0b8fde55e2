//! [`Ops`]: the arithmetic of a forward pass. Fifteen ops are required; those that fuse several have defaults made of these, so
//! that a new backend is right early and fast later. The defaults stand as functions of their own in [`primitive`], which tests
//! hold the fused ops against, bit by bit.

use std::ops::Range;

use super::attention::{Attention, AttentionBias, RopeTable};
use super::batch::Batch;
use super::buffer::Buf;
use super::memory::{DeviceMemory, Fence};
use super::moe::{Expert, Routed, Routing};
use super::packed::OperandType;
use super::sample_batch::SampleBatch;

/// A matrix and its bias.
#[derive(Debug)]
pub struct Linear<W> {
    /// (out cols, in cols).
    pub weight: W,
    /// (out cols).
    pub bias: Option<W>,
}

impl<W> Linear<W> {
    /// The product that replaces what is in `out`.
    pub fn to(&self, out: Buf) -> Projection<'_, W> {
        Projection { weight: &self.weight, bias: self.bias.as_ref(), out, add: None }
    }
}

/// The first products of an MLP.
#[derive(Debug)]
pub struct GateUp<'a, W> {
    /// What is done to the gate's product, or to the other one where there is no gate.
    pub activation: Activation,
    /// None where the MLP is not gated.
    pub gate: Option<&'a Linear<W>>,
    /// What the gate is multiplied with.
    pub up: &'a Linear<W>,
}

/// One product of a [`Ops::linear`]: `out = x * weight^T + bias`, or `out += ...`.
#[derive(Debug)]
pub struct Projection<'a, W> {
    /// (out cols, in cols), row-major as stored.
    pub weight: &'a W,
    /// (out cols).
    pub bias: Option<&'a W>,
    /// Where the result goes: (rows, out cols).
    pub out: Buf,
    /// Add it to what is there, times this: the residual. None: it replaces what is there.
    pub add: Option<f32>,
}

/// How a row is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Not at all.
    Identity,
    /// `x / sqrt(mean(x^2) + eps)`.
    Rms,
    /// `(x - mean(x)) / sqrt(variance(x) + eps)`.
    Layer,
}

/// A norm: of a row or of pieces of it, then times `weight`, then plus `bias`.
#[derive(Debug)]
pub struct Norm<W> {
    /// What is divided by.
    pub kind: NormKind,
    /// Added below the root.
    pub eps: f32,
    /// One for each value of a row; or for each value of a piece, the same for all.
    pub weight: Option<W>,
    /// What is added; it has as many values as `weight`.
    pub bias: Option<W>,
}

impl<W> Norm<W> {
    /// No norm: it copies, in the form of who reads.
    pub fn identity() -> Self {
        Self { kind: NormKind::Identity, eps: 0.0, weight: None, bias: None }
    }
}

/// What an MLP does to the values of its first product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x * (1 + erf(x / sqrt(2))) / 2`.
    Gelu,
    /// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))) / 2`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    ReluSquared,
    /// `tanh(x)`.
    Tanh,
    /// `g / (1 + e^(-alpha * g))` with `g = min(x, limit)`; `up` is bounded by `-limit` and `limit`, and one is added.
    Clamped {
        /// Factor on the exponent.
        alpha: f32,
        /// The bound.
        limit: f32,
    },
}

/// A bound on values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cap {
    /// None.
    None,
    /// `cap * tanh(x / cap)`.
    Soft(f32),
    /// From `-cap` to `cap`.
    Hard(f32),
}

/// How the rows of a text become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first row.
    First,
    /// The last one.
    Last,
    /// Their mean.
    Mean,
    /// Their sum over the root of their number.
    MeanSqrtLen,
    /// The largest of each value.
    Max,
    /// Their mean, row i weighing `from + i`.
    Weighted {
        /// Weight of the first row; at least 1.
        from: u32,
    },
}

/// Which of a batch's numbers choose the rows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbedBy {
    /// [`Batch::ids`].
    Token,
    /// [`Batch::position_types`].
    PositionType,
}

/// What is done to each value of a buffer by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pointwise {
    /// `x * scale`, then bounded.
    Scale(f32, Cap),
    /// `activation(x)`.
    Activate(Activation),
}

/// The arithmetic of a forward pass. Every op gives a row the same bits whatever other rows are in the batch: each row's reductions
/// run in one fixed order (**batch invariance**).
pub trait Ops: DeviceMemory {
    /// Whether [`Ops::gated`] is one op of the backend's own, which needs no room for the two products.
    const FUSES_GATED: bool = false;

    /// How an operand has to be written that all of these matrices read. Whole numbers and floating point have no form in
    /// common.
    fn operand_type(&self, readers: &[&Self::Weight]) -> OperandType;

    /// `out[row] = table[id] * scale`, or with `add` `out[row] += table[id] * scale`, for each row's id in the batch. What is added
    /// comes from a table of [`DeviceMemory::upload_table`].
    fn embed(
        &mut self,
        batch: &Batch<'_>,
        by: EmbedBy,
        table: &Self::Weight,
        scale: f32,
        add: bool,
        out: Buf,
    );

    /// Normalises each `width` values of a row by themselves. `out` is `x` itself, or an operand; then `width` is a row.
    fn norm(&mut self, rows: usize, x: Buf, norm: &Norm<Self::Weight>, width: usize, out: Buf);

    /// `out += x * scale`, or with a `gate` of one column `out += sigmoid(gate) * x * scale`, row by row.
    fn add(&mut self, rows: usize, x: Buf, gate: Option<Buf>, scale: f32, out: Buf);

    /// Every projection of `rows` rows of the operand `x`.
    fn linear(&mut self, rows: usize, x: Buf, projections: &[Projection<'_, Self::Weight>]);

    /// Multiplies each head's piece of a row with a matrix of its own: the weight absorption of DeepSeek-V2's attention
    /// (arXiv 2405.04434). `weight` has the matrices of `heads` heads below each other, (heads * outs, ins), with a multiple of 16
    /// rows each. Of each head's piece of x the first `ins` values are multiplied, and come to the end of its piece of `out`;
    /// those behind them are copied before them.
    ///
    /// x and `out` are of f32. `pieces`, an operand in the weight's form with `ins` columns and `heads` rows for each, is
    /// what the product reads.
    fn per_head_linear(
        &mut self,
        rows: usize,
        x: Buf,
        heads: usize,
        weight: &Self::Weight,
        pieces: Buf,
        out: Buf,
    );

    /// `out = [a, b]`, row by row.
    fn concat(&mut self, rows: usize, parts: [Buf; 2], out: Buf);

    /// `out = activation(gate) * up`, or without `up` the first factor; `out` is an operand.
    fn act_and_mul(&mut self, rows: usize, activation: Activation, gate: Buf, up: Option<Buf>, out: Buf);

    /// Applies a function to each value, in place.
    fn pointwise(&mut self, rows: usize, x: Buf, function: Pointwise);

    /// Chooses experts for each row from `with.scores`, into all the buffers of `with` before `x`. `correction` (experts)
    /// is added to scores where they are compared; weights are without it. Of equals the first is chosen.
    fn route(&mut self, rows: usize, routing: &Routing, correction: Option<&Self::Weight>, with: &Routed);

    /// What the chosen experts make of the rows of the operand `x`, into `with.out`. Reads no other experts.
    fn experts(
        &mut self,
        rows: usize,
        x: Buf,
        activation: Activation,
        experts: &[Expert<Self::Weight>],
        with: &Routed,
    );

    /// `out = sum of weight * what the expert gives`, or `out += scale *` that, in the order of the choice.
    fn moe_combine(&mut self, rows: usize, with: &Routed, add: Option<f32>, out: Buf);

    /// Rotates q and k in place.
    fn rope(&mut self, batch: &Batch<'_>, q: Buf, k: Buf, rope: &RopeTable<Self::Weight>);

    /// Stores k and v in the cache, in each row's slot.
    fn store(&mut self, batch: &Batch<'_>, layer: usize, k: Buf, v: Buf);

    /// Softmax attention of every row over its request's cache. `q`: (rows, heads * head_dim); `out`, an operand:
    /// (rows, heads * value_dim).
    fn attention(
        &mut self,
        batch: &Batch<'_>,
        shape: Attention,
        biases: AttentionBias<'_, Self::Weight>,
        q: Buf,
        out: Buf,
    );

    /// Rows of x to one: `out[i]` from rows `texts[i]`, none of which is empty.
    fn pool(&mut self, texts: &[Range<u32>], pooling: Pooling, x: Buf, out: Buf);

    /// `out += norm(x) * scale`, row by row. Nobody reads `x` after that.
    fn add_norm(&mut self, rows: usize, x: Buf, norm: &Norm<Self::Weight>, scale: f32, out: Buf) {
        primitive::add_norm(self, rows, x, norm, scale, out);
    }

    /// `out = activation(x * gate^T) * (x * up^T)`, or without a gate `activation(x * up^T)`; `x` and `out` are operands. The two
    /// `products` (rows, columns of `out`) are there unless [`Ops::FUSES_GATED`].
    fn gated(
        &mut self,
        rows: usize,
        x: Buf,
        mlp: GateUp<'_, Self::Weight>,
        products: Option<[Buf; 2]>,
        out: Buf,
    ) {
        let products = products.expect("planned where gated products are not fused");
        primitive::gated(self, rows, x, mlp, products, out);
    }

    /// Rotates q in place, and k on its way into the cache, if there is a rope; stores k and v.
    fn rope_store(
        &mut self,
        batch: &Batch<'_>,
        layer: usize,
        q: Buf,
        k: Buf,
        v: Buf,
        rope: Option<&RopeTable<Self::Weight>>,
    ) {
        primitive::rope_store(self, batch, layer, q, k, v, rope);
    }

    /// `out[i] = x[rows[i]]`.
    fn gather(&mut self, rows: &[u32], x: Buf, out: Buf) {
        primitive::gather(self, rows, x, out);
    }

    /// Whether [`Ops::sample_on_device`] does anything.
    fn samples_on_device(&self) -> bool {
        false
    }

    /// Answers questions about the logits of the step of `fence`: chooses tokens, looks up log probabilities. To the bit as
    /// `sample::Sampler` does it, which does it where this is not called.
    fn sample_on_device(&mut self, fence: &Fence, logits: Buf, questions: &mut SampleBatch) {
        let _ = (fence, logits, questions);
    }
}

/// Fused ops, made of required ones.
pub mod primitive {
    use super::*;

    /// [`Ops::add_norm`].
    pub fn add_norm<B: Ops + ?Sized>(
        backend: &mut B,
        rows: usize,
        x: Buf,
        norm: &Norm<B::Weight>,
        scale: f32,
        out: Buf,
    ) {
        backend.norm(rows, x, norm, x.cols, x);
        backend.add(rows, x, None, scale, out);
    }

    /// [`Ops::gated`].
    pub fn gated<B: Ops + ?Sized>(
        backend: &mut B,
        rows: usize,
        x: Buf,
        GateUp { activation, gate, up }: GateUp<'_, B::Weight>,
        [of_gate, of_up]: [Buf; 2],
        out: Buf,
    ) {
        match gate {
            Some(gate) => {
                backend.linear(rows, x, &[gate.to(of_gate), up.to(of_up)]);
                backend.act_and_mul(rows, activation, of_gate, Some(of_up), out);
            }
            None => {
                backend.linear(rows, x, &[up.to(of_up)]);
                backend.act_and_mul(rows, activation, of_up, None, out);
            }
        }
    }

    /// [`Ops::rope_store`].
    pub fn rope_store<B: Ops + ?Sized>(
        backend: &mut B,
        batch: &Batch<'_>,
        layer: usize,
        q: Buf,
        k: Buf,
        v: Buf,
        rope: Option<&RopeTable<B::Weight>>,
    ) {
        if let Some(rope) = rope {
            backend.rope(batch, q, k, rope);
        }
        backend.store(batch, layer, k, v);
    }

    /// [`Ops::gather`].
    pub fn gather<B: Ops + ?Sized>(backend: &mut B, rows: &[u32], x: Buf, out: Buf) {
        let rows: Vec<_> = rows.iter().map(|&row| row..row + 1).collect();
        backend.pool(&rows, Pooling::First, x, out);
    }
}
