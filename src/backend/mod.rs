//! Where the arithmetic happens: one narrow trait, a room behind it per kind of device.
//!
//! Lives here: [`Backend`], the verbs that the decoder calls, and what they work on: [`Buf`]s planned in the
//! backend's arena, weights that it took in, a [`Batch`] that names tokens. **Invariant:** if the decoder, the
//! sampler or the arena does not call it, it is not in the trait; and every verb gives a row the same bits whatever
//! other rows are in the batch (**batch invariance**): each row's reductions run in one fixed order.
//!
//! Buffers are regions with offsets, not pointers, so that a backend may record a step into one command buffer.

pub mod cpu;

use crate::error::Result;
use crate::memory::{Layout, Region, Scrubbed, arena::Closed};
use crate::weights::{Dtype, Tensor};

/// Positions in a KV block.
pub const BLOCK: usize = 16;

/// A planned activation buffer of f32: (rows, cols), row-major, at most `rows` of them in use in a step.
#[derive(Clone, Copy, Debug)]
pub struct Buf {
    region: Region,
    /// Values per row.
    pub cols: usize,
}

impl Buf {
    /// Plans a buffer; none when the sizes overflow.
    pub fn plan(layout: &mut Layout, rows: usize, cols: usize) -> Option<Self> {
        let bytes = rows.checked_mul(cols)?.checked_mul(size_of::<f32>())?;
        Some(Self { region: layout.region(bytes)?, cols })
    }

    /// The region of the first `rows` rows.
    pub fn rows(&self, rows: usize) -> Region {
        self.region.part(0, rows * self.cols * size_of::<f32>())
    }

    /// The region of one row.
    pub fn row(&self, row: usize) -> Region {
        let bytes = self.cols * size_of::<f32>();
        self.region.part(row * bytes, bytes)
    }
}

/// The paged KV cache: (blocks, layers, 2, kv_heads, BLOCK, head_dim) of `dtype`, keys before values.
///
/// A block holds all layers of its positions, so that one contiguous overwrite forgets it.
#[derive(Clone, Copy, Debug)]
pub struct Kv {
    /// Where it lies.
    pub region: Region,
    /// Element type: that of the checkpoint.
    pub dtype: Dtype,
    /// Layers.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
}

impl Kv {
    /// Bytes of one block for this shape; none on overflow.
    pub fn block_bytes(dtype: Dtype, layers: usize, kv_heads: usize, head_dim: usize) -> Option<usize> {
        [2, kv_heads, BLOCK, head_dim, dtype.bytes()]
            .iter()
            .try_fold(layers, |bytes, &n| bytes.checked_mul(n))
    }

    /// The region of one block.
    pub fn block(&self, block: u32) -> Region {
        let bytes = Self::block_bytes(self.dtype, self.layers, self.kv_heads, self.head_dim)
            .expect("planned, so it did not overflow");
        self.region.part(block as usize * bytes, bytes)
    }

    /// Element index of the first value of a head in a block; `BLOCK * head_dim` values follow each other.
    pub fn at(&self, block: u32, layer: usize, side: Side, head: usize) -> usize {
        let plane = (block as usize * self.layers + layer) * 2 + side as usize;
        (plane * self.kv_heads + head) * BLOCK * self.head_dim
    }
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
}

/// One step's input: tokens of several requests behind one another.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Token ids: (rows).
    pub ids: &'a [u32],
    /// Positions: (rows).
    pub positions: &'a [u32],
    /// KV slot of each row: block * BLOCK + offset: (rows).
    pub slots: &'a [u32],
    /// The requests.
    pub spans: &'a [Span],
    /// Block tables.
    pub blocks: &'a [u32],
    /// Rows whose logits are wanted.
    pub outputs: &'a [u32],
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
    /// Add to what is there: the residual.
    pub accumulate: bool,
}

/// The shape of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Which layer's cache.
    pub layer: usize,
    /// Query heads.
    pub heads: usize,
    /// Positions to look back over, itself included; none for all.
    pub window: Option<usize>,
    /// Factor on the scores.
    pub scale: f32,
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

/// A device that runs the forward pass. See the module for the rules.
pub trait Backend: Send {
    /// A weight that it took in.
    type Weight: Send;

    /// Its name for people: device and instruction set.
    fn name(&self) -> String;

    /// Takes in a tensor: a matrix stays in its stored type, a vector becomes f32.
    fn upload(&mut self, tensor: &Tensor) -> Self::Weight;

    /// Takes in a table of f32 that the decoder computed: (rows, cols).
    fn upload_table(&mut self, values: Vec<f32>, cols: usize) -> Self::Weight;

    /// Maps the planned memory, with what scratch it needs itself for `heads` query heads. Called once, before any
    /// verb below.
    ///
    /// # Errors
    /// The memory is not to be had.
    fn reserve(&mut self, layout: Layout, kv: Kv, heads: usize) -> Result<()>;

    /// `out[row] = table[ids[row]]`.
    fn embed(&mut self, ids: &[u32], table: &Self::Weight, out: Buf);

    /// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row.
    fn rms_norm(&mut self, rows: usize, x: Buf, weight: &Self::Weight, eps: f32, out: Buf);

    /// Every projection of `rows` rows of `x`.
    fn linear(&mut self, rows: usize, x: Buf, projections: &[Projection<'_, Self::Weight>]);

    /// Rotates q in place, and k on its way into the cache; stores v. `rope`: (context, 2, head_dim / 2).
    fn rope_store(&mut self, batch: &Batch<'_>, layer: usize, q: Buf, k: Buf, v: Buf, rope: &Self::Weight);

    /// Causal softmax attention of every row over its request's cache. `q`, `out`: (rows, heads * head_dim).
    fn attention(&mut self, batch: &Batch<'_>, shape: Attention, q: Buf, out: Buf);

    /// `gate = silu(gate) * up`.
    fn silu_mul(&mut self, rows: usize, gate: Buf, up: Buf);

    /// `out[i] = x[rows[i]]`.
    fn gather(&mut self, rows: &[u32], x: Buf, out: Buf);

    /// One row of a buffer, for the sampler to read.
    fn read(&mut self, buf: Buf, row: usize) -> &[f32];

    /// Overwrites the first `rows` rows of a buffer.
    fn scrub(&mut self, buf: Buf, rows: usize) -> Scrubbed;

    /// Overwrites KV blocks.
    fn scrub_blocks(&mut self, blocks: &[u32]) -> Scrubbed;

    /// Overwrites all memory it reserved.
    fn scrub_all(&mut self) -> Scrubbed;

    /// Cleans the stacks of its own threads, and what scratch they keep.
    fn scrub_threads(&mut self) -> Scrubbed;

    /// What was done so far.
    fn counters(&self) -> Counters;

    /// Overwrites everything, reads it back, and gives it up.
    fn close(self) -> Option<Closed>;
}
