//! Where the arithmetic happens: one narrow trait, a room behind it per kind of device.
//!
//! Lives here: [`Backend`], the verbs that the decoder calls, and what they work on: [`Buf`]s planned in the
//! backend's arena, weights that it took in, a [`Batch`] that names tokens. **Invariant:** if the decoder, the
//! sampler or the arena does not call it, it is not in the trait; and every verb gives a row the same bits whatever
//! other rows are in the batch (**batch invariance**): each row's reductions run in one fixed order.
//!
//! Buffers are regions with offsets, not pointers, so that a backend may record a step into one command buffer.

pub mod cpu;
pub mod cuda;
pub mod sample_batch;

use self::sample_batch::SampleBatch;
use crate::error::Result;
use crate::memory::ledger::NotCovered;
use crate::memory::{Layout, Region, Scrubbed, arena::Closed};
use crate::weights::Tensor;

/// Positions in a KV block. A block is what attention takes at once; with 16 instead, the running softmax is renewed
/// four times as often, for tiles a quarter as long.
pub const BLOCK: usize = 64;

/// Rows of packed matrices, the cache's planes among them, come in blocks of this many.
pub const LANES: usize = 16;

/// To how many bits weights are quantized as they are loaded; activations then enter products as int8.
///
/// Both formats have a half-precision scale for each 32 weights of a row. What they cost in quality is measured in the
/// repository's `docs/quality.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantize {
    /// Eight bits: 8.5 for each weight, with its scale.
    Q8,
    /// Four bits: 4.5 for each weight, with its scale. The embedding and the output matrix have eight.
    Q4,
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    F32,
    F16,
    Bf16,
    /// Signed bytes with an f32 scale for each position, head and side.
    Int8,
}

impl KvType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 => 1,
        }
    }
}

/// A planned activation buffer: (rows, cols), row-major, at most `rows` of them in use in a step.
///
/// Most hold f32. Those planned as operands are what [`Backend::norm`], [`Backend::attention`] and
/// [`Backend::gated`] write and [`Backend::linear`] and [`Backend::gated`] read, in an [`OperandType`] for who reads it.
#[derive(Clone, Copy, Debug)]
pub struct Buf {
    /// How the values of an operand are written.
    pub form: OperandType,
    region: Region,
    /// Values per row.
    pub cols: usize,
    /// Values of f32 that a row has room for.
    stride: usize,
}

impl Buf {
    /// Columns of an operand come in groups of this many.
    pub const GROUP: usize = 32;
    /// Rows that kernels may read behind the last row of an operand.
    pub const SPARE_ROWS: usize = 16;

    /// Plans a buffer of f32; none when the sizes overflow.
    pub fn plan(layout: &mut Layout, rows: usize, cols: usize) -> Option<Self> {
        Self::with_stride(layout, rows, cols, cols)
    }

    /// Plans an operand of matrix products; none when the sizes overflow.
    pub fn plan_operand(layout: &mut Layout, rows: usize, cols: usize) -> Option<Self> {
        let stride = cols.checked_next_multiple_of(Self::GROUP)?;
        Self::with_stride(layout, rows.checked_add(Self::SPARE_ROWS)?, cols, stride)
    }

    fn with_stride(layout: &mut Layout, rows: usize, cols: usize, stride: usize) -> Option<Self> {
        let bytes = rows.checked_mul(stride)?.checked_mul(size_of::<f32>())?;
        Some(Self { form: OperandType::F32, region: layout.region(bytes)?, cols, stride })
    }

    /// This operand in another form.
    pub fn of(self, form: OperandType) -> Self {
        Self { form, ..self }
    }

    /// This buffer without its first `rows` rows.
    pub fn skip(self, rows: usize) -> Self {
        let bytes = match self.form {
            OperandType::F32 => self.stride * size_of::<f32>(),
            form => form.row_bytes(self.cols),
        };
        let start = rows * bytes;
        Self { region: self.region.part(start, self.region.bytes() - start), ..self }
    }

    /// The memory of a buffer for rows of fewer values.
    pub fn narrow(self, cols: usize) -> Self {
        assert!(cols <= self.cols, "a buffer of {} columns for {cols}", self.cols);
        let stride = if self.stride == self.cols { cols } else { cols.next_multiple_of(Self::GROUP) };
        Self { cols, stride, ..self }
    }

    /// Values of f32 from one row to the next; of an operand, in that form only.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The region of the first `rows` rows.
    pub fn rows(&self, rows: usize) -> Region {
        self.region.part(0, rows * self.stride * size_of::<f32>())
    }

    /// The region of one row's values.
    pub fn row(&self, row: usize) -> Region {
        let bytes = size_of::<f32>();
        self.region.part(row * self.stride * bytes, self.cols * bytes)
    }
}

/// How an operand's values are written, for the matrices that they are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperandType {
    /// Single precision.
    F32,
    /// bf16.
    Bf16,
    /// IEEE 754 half precision.
    F16,
    /// Signed bytes in groups, each with a scale.
    Bytes,
}

/// The paged KV cache: (blocks, layers, 2, kv_heads) planes of one head's keys or values, all keys before all values.
///
/// A block holds all layers of its positions, so that one contiguous overwrite forgets it. Planes are packed like
/// weights: keys as (position, dimension), values as (dimension, position), in blocks of 16 rows that are interleaved
/// so that 64 bytes (32 for f16) give each of the rows its next one, two or four columns.
#[derive(Clone, Copy, Debug)]
pub struct Kv {
    /// Where it lies.
    pub region: Region,
    /// Element type.
    pub cache: KvType,
    /// Layers.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers in a head's key.
    pub head_dim: usize,
    /// Numbers in a head's value.
    pub value_dim: usize,
}

impl Kv {
    /// Bytes of one head's keys or values in a block; none on overflow.
    fn plane_bytes(cache: KvType, dim: usize) -> Option<usize> {
        let values = dim.checked_next_multiple_of(LANES)?.checked_mul(BLOCK)?.checked_mul(cache.bytes())?;
        let scales = if cache == KvType::Int8 { BLOCK * size_of::<f32>() } else { 0 };
        values.checked_add(scales)
    }

    /// Bytes of one block of heads whose keys and values have so many numbers; none on overflow.
    pub fn block_bytes(cache: KvType, layers: usize, kv_heads: usize, dims: [usize; 2]) -> Option<usize> {
        let [keys, values] = dims.map(|dim| Self::plane_bytes(cache, dim));
        keys?.checked_add(values?)?.checked_mul(layers)?.checked_mul(kv_heads)
    }

    /// Bytes of one head's keys or values in a block.
    fn bytes_of(&self, side: Side) -> usize {
        Self::plane_bytes(self.cache, self.dim(side)).expect("planned, so it did not overflow")
    }

    /// Bytes of a layer in a block.
    fn layer_bytes(&self) -> usize {
        self.kv_heads * (self.bytes_of(Side::K) + self.bytes_of(Side::V))
    }

    /// Numbers in a head's key or value.
    pub fn dim(&self, side: Side) -> usize {
        match side {
            Side::K => self.head_dim,
            Side::V => self.value_dim,
        }
    }

    /// The region of one block.
    pub fn block(&self, block: u32) -> Region {
        let bytes = self.layers * self.layer_bytes();
        self.region.part(block as usize * bytes, bytes)
    }

    /// Numbers in a head's key or value with the zeros behind them.
    pub fn padded_dim(&self, side: Side) -> usize {
        self.dim(side).next_multiple_of(LANES)
    }

    /// Byte at which a head's keys or values start in a block.
    pub fn plane(&self, block: u32, layer: usize, side: Side, head: usize) -> usize {
        let first = match side {
            Side::K => 0,
            Side::V => self.kv_heads * self.bytes_of(Side::K),
        };
        let layer = block as usize * self.layers + layer;
        layer * self.layer_bytes() + first + head * self.bytes_of(side)
    }

    /// Byte of an element in its plane.
    pub fn element(&self, side: Side, offset: usize, dim: usize) -> usize {
        let (row, col, cols) = match side {
            Side::K => (offset, dim, self.padded_dim(side)),
            Side::V => (dim, offset, BLOCK),
        };
        let bytes = self.cache.bytes();
        // columns that a row has in a line
        let step = if self.cache == KvType::F16 { 1 } else { 4 / bytes };
        let (block, line) = (row / LANES * LANES * cols, col / step * LANES * step);
        (block + line + row % LANES * step + col % step) * bytes
    }

    /// Byte of a position's scale in its plane: for int8 only.
    pub fn scale(&self, side: Side, offset: usize) -> usize {
        self.padded_dim(side) * BLOCK + offset * size_of::<f32>()
    }
}

/// The scale of int8 values, and what to multiply them with before rounding.
pub fn int8_scale(values: &[f32]) -> (f32, f32) {
    int8_scale_of(values.iter().fold(0.0_f32, |most, value| most.max(value.abs())))
}

/// The scale of int8 values whose largest magnitude is `largest`; below 1e-30 they become zeros.
#[inline(always)] // into kernels
pub fn int8_scale_of(largest: f32) -> (f32, f32) {
    if largest < 1e-30 { (0.0, 0.0) } else { (largest / 127.0, 127.0 / largest) }
}

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Keys, rotated.
    K,
    /// Values.
    V,
}

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
}

/// One step's input: tokens of several requests behind one another.
#[derive(Clone, Copy, Debug)]
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
}

impl Batch<'_> {
    /// The slot of a row whose keys and values are not stored, since it is another one's copy.
    pub const NOWHERE: u32 = u32::MAX;

    /// Rows that are no copies.
    pub fn tokens(&self) -> usize {
        self.slots.iter().filter(|&&slot| slot != Self::NOWHERE).count()
    }
}

/// One product of a [`Backend::linear`]: `out = x * weight^T + bias`, or `out += ...`.
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

/// How tokens choose experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts of a token.
    pub per_token: usize,
    /// How logits become weights.
    pub scoring: Scoring,
    /// Whether the weights of the chosen are divided by their sum.
    pub normalized: bool,
    /// Choose from the best groups only.
    pub groups: Option<Groups>,
    /// Factor on the weights.
    pub scale: f32,
}

/// How a router's logits become weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scoring {
    /// Their softmax.
    Softmax,
    /// The softmax of the chosen ones.
    Chosen,
    /// Their sigmoid.
    Sigmoid,
    /// For each choice in turn the softmax of those near the best (Liu et al. 2024, arXiv 2409.12136, at inference).
    Mixer {
        /// Those at most twice this below the best, as a part of their magnitude, are near.
        jitter: f32,
    },
}

/// Groups of experts, of neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Groups.
    pub count: usize,
    /// Groups that are chosen from.
    pub chosen: usize,
    /// A group's score is the sum of so many of its best experts'.
    pub best: usize,
}

impl Groups {
    /// So many groups at most.
    pub const MOST: usize = 64;
}

/// The buffers of a mixture of E experts, of which each of T tokens goes to K.
#[derive(Clone, Copy, Debug)]
pub struct Routed {
    /// The router's logits: (T, E).
    pub scores: Buf,
    /// The chosen ones' numbers, best first, as u32: (T, K).
    pub experts: Buf,
    /// Their weights: (T, K).
    pub weights: Buf,
    /// Their rows in the buffers below, as u32: (T, K).
    pub places: Buf,
    /// Where the rows of each expert start in the buffers below, and where they end, as u32: (1, E + 1).
    pub starts: Buf,
    /// The tokens, in the experts' order, as an operand: (T * K, hidden).
    pub x: Buf,
    /// Inside the experts, as an operand: (T * K, inner).
    pub inner: Buf,
    /// What they give: (T * K, hidden).
    pub out: Buf,
}

impl Routed {
    /// Plans the buffers; none when the sizes overflow.
    pub fn plan(
        layout: &mut Layout,
        tokens: usize,
        experts: usize,
        per_token: usize,
        hidden: usize,
        inner: usize,
    ) -> Option<Self> {
        let pairs = tokens.checked_mul(per_token)?;
        Some(Self {
            scores: Buf::plan(layout, tokens, experts)?,
            experts: Buf::plan(layout, tokens, per_token)?,
            weights: Buf::plan(layout, tokens, per_token)?,
            places: Buf::plan(layout, tokens, per_token)?,
            starts: Buf::plan(layout, 1, experts + 1)?,
            x: Buf::plan_operand(layout, pairs, hidden)?,
            inner: Buf::plan_operand(layout, pairs, inner)?,
            out: Buf::plan(layout, pairs, hidden)?,
        })
    }

    /// Every buffer, with the rows of it that `tokens` tokens use.
    pub fn used(&self, tokens: usize) -> [(Buf, usize); 8] {
        let pairs = tokens * self.experts.cols;
        let Self { scores, experts, weights, places, starts, x, inner, out } = *self;
        let of_tokens = [scores, experts, weights, places].map(|buf| (buf, tokens));
        let [a, b, c, d] = of_tokens;
        [a, b, c, d, (starts, 1), (x, pairs), (inner, pairs), (out, pairs)]
    }
}

/// A gated MLP, one of several.
#[derive(Debug)]
pub struct Expert<W> {
    /// (inner, hidden).
    pub gate: Linear<W>,
    /// (inner, hidden).
    pub up: Linear<W>,
    /// (hidden, inner).
    pub down: Linear<W>,
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

/// Rotary embedding of a layer.
#[derive(Debug)]
pub struct Rope<W> {
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
    /// Whether rows see positions up to their own only; else all of their request, which must then be in one batch.
    pub causal: bool,
    /// Positions to look back over, itself included, and ahead over where that is not causal; none for all.
    pub window: Option<usize>,
    /// Factor on the scores.
    pub scale: f32,
    /// Soft-cap: scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
}

impl Attention {
    /// The first and the last position that the row at `position` sees.
    pub fn sees(&self, span: &Span, position: usize) -> (usize, usize) {
        let last = if self.causal { position } else { span.position + span.rows - 1 };
        match self.window {
            None => (0, last),
            Some(window) => ((position + 1).saturating_sub(window), last.min(position + window - 1)),
        }
    }

    /// What kernels rely on. `sinks`: how many there are; `reach`: of the distances.
    ///
    /// # Panics
    /// If it does not hold.
    fn check(
        &self,
        batch: &Batch<'_>,
        kv: &Kv,
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
            assert!(self.causal || span.position == 0, "attention: half of a text");
            // from the last row back to the first, and on to the end of the last row's block
            assert!(reach.is_none_or(|reach| last + BLOCK <= reach), "attention: distances are too short");
        }
    }
}

/// The values of one head in a [`Backend::per_head_linear`].
struct HeadSizes {
    /// That are multiplied.
    ins: usize,
    /// That come of them.
    outs: usize,
    /// In x.
    from: usize,
    /// In `out`.
    to: usize,
}

impl HeadSizes {
    /// Checks them. `weight`: its rows and columns.
    ///
    /// # Panics
    /// If they do not fit together.
    fn of(heads: usize, [rows, ins]: [usize; 2], x: Buf, pieces: Buf, out: Buf) -> Self {
        let outs = rows / heads;
        let [from, to] = [x, out].map(|buf| buf.cols / heads);
        assert!(rows == heads * outs && outs.is_multiple_of(LANES), "heads: rows differ");
        assert!(x.cols == heads * from && out.cols == heads * to, "heads: columns differ");
        assert!(pieces.cols == ins && from >= ins && from - ins + outs == to, "heads: columns differ");
        assert!(x.form == OperandType::F32, "heads: x is not of f32");
        Self { ins, outs, from, to }
    }
}

/// What comes to the scores of an attention besides the products.
#[derive(Debug)]
pub struct AttentionBias<'a, W> {
    /// (heads): a score of each head that takes its part of the softmax and gives no value. Not with a soft-cap.
    pub sinks: Option<&'a W>,
    /// (heads, 2 * reach): what is added to the score of a key so many positions behind the query, from `-reach` on.
    /// The reach is at least a request's length and a block. Not with a soft-cap.
    pub distances: Option<&'a W>,
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

/// What a step did, counted where it is done. Metadata: no content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Forward passes.
    pub steps: u64,
    /// Tokens that went through them.
    pub tokens: u64,
    /// Bytes of weights that the matrix kernels and the embedding read from memory.
    pub weight_bytes: u64,
}

/// A matrix and its bias.
#[derive(Debug)]
pub struct Linear<W> {
    /// (out cols, in cols).
    pub weight: W,
    /// (out cols).
    pub bias: Option<W>,
}

/// A device that runs the forward pass. See the module for the rules.
pub trait Backend: Send {
    /// A weight that it took in.
    type Weight: Send;

    /// Its name for people: device and instruction set.
    fn name(&self) -> String;

    /// Bytes of memory that [`Backend::upload`] takes for a tensor.
    fn weight_bytes(tensor: &Tensor, quantize: Option<Quantize>) -> u64;

    /// Takes in a tensor: a matrix in its stored type or quantized, a vector as f32. Leaves no page of the file in
    /// this process's memory, unless it uses the file itself.
    ///
    /// # Errors
    /// A value is not finite, or too large to be quantized; the memory is not to be had.
    fn upload(&mut self, tensor: &Tensor, quantize: Option<Quantize>) -> Result<Self::Weight>;

    /// Takes in a table of f32 that the decoder computed: (rows, cols).
    ///
    /// # Errors
    /// The memory is not to be had.
    fn upload_table(&mut self, values: Vec<f32>, cols: usize) -> Result<Self::Weight>;

    /// How an operand has to be written that all of these matrices read. Whole numbers and floating point have no form in
    /// common.
    fn form(&self, readers: &[&Self::Weight]) -> OperandType;

    /// Bytes of what [`Backend::reserve`] takes besides the planned memory, at most. `logits`: rows and columns of those
    /// that tokens are chosen from.
    fn scratch_bytes(logits: Option<(usize, usize)>) -> u64 {
        let _ = logits;
        0
    }

    /// Maps the planned memory, with what scratch it needs itself: for [`Backend::sample_on_device`] too, if there are `logits`.
    /// Called once, after all uploads and before any verb below.
    ///
    /// # Errors
    /// The memory is not to be had.
    fn reserve(&mut self, layout: Layout, kv: Kv, logits: Option<Buf>) -> Result<()>;

    /// Padded number of rows of a step of `rows` sequences with one token each, chosen so that recorded steps are reused. The
    /// rows added are copies of the last one.
    fn padded_rows(&self, rows: usize) -> usize {
        rows
    }

    /// A step of the decoder begins, whose verbs read this batch. False: it is like one before, and was done just now as
    /// that was; then its verbs are not called.
    fn begin(&mut self, batch: &Batch<'_>) -> bool {
        let _ = batch;
        true
    }

    /// Its last verb was called.
    fn end(&mut self) {}

    /// `out[row] = table[ids[row]] * scale`.
    fn embed(&mut self, ids: &[u32], table: &Self::Weight, scale: f32, out: Buf);

    /// `out[row] = table[ids[row]]`, of the batch's ids and a table that is not the model's own: no step begins with it.
    fn look_up(&mut self, ids: &[u32], table: &Self::Weight, out: Buf);

    /// `out[row] += table[ids[row]]`.
    fn add_embed(&mut self, ids: &[u32], table: &Self::Weight, out: Buf);

    /// `out = norm(x)`, row by row; `out` is an operand.
    fn norm(&mut self, rows: usize, x: Buf, norm: &Norm<Self::Weight>, out: Buf);

    /// `out += norm(x) * scale`, row by row.
    fn add_norm(&mut self, rows: usize, x: Buf, norm: &Norm<Self::Weight>, scale: f32, out: Buf);

    /// Normalises each `width` values of a row by themselves, in place.
    fn group_norm_in_place(&mut self, rows: usize, x: Buf, norm: &Norm<Self::Weight>, width: usize);

    /// Every projection of `rows` rows of the operand `x`.
    fn linear(&mut self, rows: usize, x: Buf, projections: &[Projection<'_, Self::Weight>]);

    /// Products of the pieces of rows, each with a matrix of its own: what folds queries into the space of latents, and
    /// unfolds values from it (DeepSeek-V2, arXiv 2405.04434). `weight` has the matrices of `heads` heads below each
    /// other, (heads * outs, ins), with a multiple of [`LANES`] rows each. Of each head's piece of x the first `ins` values are
    /// multiplied, and come to the end of its piece of `out`; those behind them are copied before them.
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

    /// `out = activation(x * up^T)`; `x` and `out` are operands.
    fn activated(&mut self, rows: usize, x: Buf, activation: Activation, up: &Linear<Self::Weight>, out: Buf);

    /// `out = activation(x * gate^T) * (x * up^T)`; `x` and `out` are operands.
    fn gated(
        &mut self,
        rows: usize,
        x: Buf,
        activation: Activation,
        gate: &Linear<Self::Weight>,
        up: &Linear<Self::Weight>,
        out: Buf,
    );

    /// `out = activation(gate) * up`, or without `up` the first factor; `out` is an operand. The same bits as
    /// [`Backend::gated`] and [`Backend::activated`] give for those products.
    fn act_and_mul(&mut self, rows: usize, activation: Activation, gate: Buf, up: Option<Buf>, out: Buf);

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

    /// `out += sigmoid(gate) * x * scale`; `gate` has one column.
    fn add_gated(&mut self, rows: usize, x: Buf, gate: Buf, scale: f32, out: Buf);

    /// Rotates q and k in place.
    fn rope(&mut self, batch: &Batch<'_>, q: Buf, k: Buf, rope: &Rope<Self::Weight>);

    /// Rotates q in place, and k on its way into the cache, if there is a rope; stores k and v.
    fn rope_store(
        &mut self,
        batch: &Batch<'_>,
        layer: usize,
        q: Buf,
        k: Buf,
        v: Buf,
        rope: Option<&Rope<Self::Weight>>,
    );

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

    /// `x * scale`, then bounded; in place.
    fn scale(&mut self, rows: usize, x: Buf, scale: f32, cap: Cap);

    /// `activation(x)`, in place.
    fn activate(&mut self, rows: usize, x: Buf, activation: Activation);

    /// Rows of x to one: `out[i]` from rows `texts[i]`, none of which is empty.
    fn pool(&mut self, texts: &[std::ops::Range<u32>], pooling: Pooling, x: Buf, out: Buf);

    /// `out[i] = x[rows[i]]`.
    fn gather(&mut self, rows: &[u32], x: Buf, out: Buf);

    /// One row of a buffer, for the sampler to read.
    fn read(&mut self, buf: Buf, row: usize) -> &[f32];

    /// Whether [`Backend::sample_on_device`] does anything.
    fn samples_on_device(&self) -> bool {
        false
    }

    /// Answers questions about rows of logits: chooses tokens, looks up log probabilities. To the bit as `sample::Sampler`
    /// does it, which does it where this is not called.
    fn sample_on_device(&mut self, logits: Buf, questions: &mut SampleBatch) {
        let _ = (logits, questions);
    }

    /// Overwrites what steps left outside the cache: the first rows of each of these buffers, the stacks of its own threads, and
    /// the scratch that those keep. Returns when that is done, with the number of regions.
    fn scrub_steps(&mut self, used: impl Iterator<Item = (Buf, usize)>) -> (u64, Scrubbed);

    /// Copies one KV block to another.
    fn copy_block(&mut self, from: u32, to: u32);

    /// Lends the bytes of a KV block, to be encrypted in place. Not where they are out of this process's reach.
    fn with_block(&mut self, _block: u32, _act: &mut dyn FnMut(&mut [u8])) {}

    /// Names what its results depend on: backends and instruction sets of one name give the same bits.
    fn arithmetic(&self) -> &'static str;

    /// Overwrites KV blocks. Returns when that is done; nothing, where there are none.
    fn scrub_blocks(&mut self, blocks: &[u32]) -> Option<Scrubbed>;

    /// Overwrites all memory it reserved. Returns when that is done; nothing, where it reserved none.
    fn scrub_all(&mut self) -> Option<Scrubbed>;

    /// What was done so far.
    fn counters(&self) -> Counters;

    /// Bytes of what it reserved that are locked in memory, and what the platform refused.
    fn protection(&self) -> (u64, Vec<NotCovered>);

    /// Whether the device failed: then nothing that it gives means anything, and what it holds cannot be overwritten.
    fn failed(&self) -> bool {
        false
    }

    /// Overwrites everything, reads it back, and gives it up.
    fn close(self) -> Option<Closed>;
}
