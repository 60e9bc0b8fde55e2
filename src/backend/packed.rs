//! What the CPU and CUDA backends share and no contract has: how matrices, caches and operands lie in memory. Lanes are rows of
//! weights: matrices come in blocks of [`LANES`] rows that are interleaved, and the cache is packed in the same way, so that
//! attention's products are those of any other matrix.

use std::ops::Deref;

use super::buffer::Buf;
use super::kv::{BLOCK, Kv, KvShape, KvType, Side};
use crate::memory::Region;

/// Rows of packed matrices, the cache's planes among them, come in blocks of this many.
pub const LANES: usize = 16;

/// Columns of operands and of quantized matrices come in groups of this many.
pub const GROUP: usize = Buf::GROUP;

/// Bytes of a group of int8 in an operand: the scale, the sum of the numbers, the numbers.
pub const RECORD: usize = 8 + GROUP;

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

impl OperandType {
    /// Bytes of a row of `cols` columns: never more than those of padded f32.
    pub fn row_bytes(self, cols: usize) -> usize {
        let groups = cols.div_ceil(GROUP);
        match self {
            Self::F32 => groups * GROUP * 4,
            Self::Bf16 | Self::F16 => groups * GROUP * 2,
            Self::Bytes => groups * RECORD,
        }
    }
}

/// A KV cache: (blocks, layers, 2, kv_heads) planes of one head's keys or values, all keys before all values.
///
/// Planes are packed like weights: keys as (position, dimension), values as (dimension, position), in blocks of 16 rows that are
/// interleaved so that 64 bytes (32 for f16) give each of the rows its next one, two or four columns.
#[derive(Clone, Copy, Debug)]
pub struct PackedKv(Kv);

impl Deref for PackedKv {
    type Target = KvShape;

    fn deref(&self) -> &KvShape {
        &self.0.shape
    }
}

impl PackedKv {
    /// Bytes of one head's keys or values in a block; none on overflow.
    fn plane_bytes(cache: KvType, dim: usize) -> Option<usize> {
        let values = dim.checked_next_multiple_of(LANES)?.checked_mul(BLOCK)?.checked_mul(cache.bytes())?;
        let scales = if cache == KvType::Int8 { BLOCK * size_of::<f32>() } else { 0 };
        values.checked_add(scales)
    }

    /// Bytes of one block; none on overflow.
    pub fn block_bytes(shape: &KvShape) -> Option<usize> {
        let [keys, values] = [Side::K, Side::V].map(|side| Self::plane_bytes(shape.cache, shape.dim(side)));
        keys?.checked_add(values?)?.checked_mul(shape.layers)?.checked_mul(shape.kv_heads)
    }

    /// A planned cache, so packed.
    ///
    /// # Panics
    /// If its blocks were planned with other sizes, or lie in several buffers.
    pub fn of(kv: Kv) -> Self {
        assert_eq!(Some(kv.blocks.stride()), Self::block_bytes(&kv.shape), "blocks of another size");
        let _ = kv.blocks.whole(); // panics over several buffers
        Self(kv)
    }

    /// All of it.
    pub fn region(&self) -> Region {
        self.0.blocks.whole()
    }

    /// Bytes of one head's keys or values in a block.
    pub fn bytes_of(&self, side: Side) -> usize {
        Self::plane_bytes(self.cache, self.dim(side)).expect("planned, so it did not overflow")
    }

    /// Bytes of a layer in a block.
    pub fn layer_bytes(&self) -> usize {
        self.kv_heads * (self.bytes_of(Side::K) + self.bytes_of(Side::V))
    }

    /// The region of one block.
    ///
    /// # Panics
    /// If it is outside the cache.
    pub fn block(&self, block: u32) -> Region {
        self.0.blocks.block(block)
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

/// The values of one head in a [`super::Ops::per_head_linear`].
pub(super) struct HeadSizes {
    /// That are multiplied.
    pub ins: usize,
    /// That come of them.
    pub outs: usize,
    /// In x.
    pub from: usize,
    /// In `out`.
    pub to: usize,
}

impl HeadSizes {
    /// Checks them. `weight`: its rows and columns.
    ///
    /// # Panics
    /// If they do not fit together.
    pub fn of(heads: usize, [rows, ins]: [usize; 2], x: Buf, pieces: Buf, out: Buf) -> Self {
        let outs = rows / heads;
        let [from, to] = [x, out].map(|buf| buf.cols / heads);
        assert!(rows == heads * outs && outs.is_multiple_of(LANES), "heads: rows differ");
        assert!(x.cols == heads * from && out.cols == heads * to, "heads: columns differ");
        assert!(pieces.cols == ins && from >= ins && from - ins + outs == to, "heads: columns differ");
        assert!(x.form == OperandType::F32, "heads: x is not of f32");
        Self { ins, outs, from, to }
    }
}
