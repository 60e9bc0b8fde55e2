//! The paged KV cache, as the model and the engine know it: its shape, and which region holds a block. How keys and values lie
//! in a block is the backend's affair.

use super::memory::DeviceMemory;
use crate::memory::{Layout, layout::Blocks};

/// Positions in a KV block. A block is what attention takes at once; with 16 instead, the running softmax is renewed
/// four times as often, for tiles a quarter as long.
pub const BLOCK: usize = 64;

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

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Keys, rotated.
    K,
    /// Values.
    V,
}

/// The shape of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
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

impl KvShape {
    /// A cache of next to nothing, where nothing is cached.
    #[cfg(any(test, feature = "testing"))]
    pub const SMALLEST: Self =
        Self { cache: KvType::Bf16, layers: 1, kv_heads: 1, head_dim: 16, value_dim: 16 };

    /// Numbers in a head's key or value.
    pub fn dim(&self, side: Side) -> usize {
        match side {
            Side::K => self.head_dim,
            Side::V => self.value_dim,
        }
    }
}

/// A planned KV cache. A block holds all layers of its [`BLOCK`] positions, so that one contiguous overwrite forgets it.
#[derive(Clone, Copy, Debug)]
pub struct Kv {
    /// Where its blocks lie: each has the bytes that [`super::DeviceMemory::kv_block_bytes`] says.
    pub blocks: Blocks,
    /// Its shape.
    pub shape: KvShape,
}

impl Kv {
    /// Plans a cache of so many blocks for a device; none when the sizes overflow, or a block is larger than a buffer can be.
    pub fn plan<B: DeviceMemory>(layout: &mut Layout, shape: KvShape, blocks: usize) -> Option<Self> {
        Some(Self { blocks: layout.blocks(blocks, B::kv_block_bytes(&shape)?)?, shape })
    }
}
