//! Where the arithmetic happens: memory apart from arithmetic, a room behind them per kind of device.
//!
//! [`DeviceMemory`] is the life of what a device holds; [`Ops`] are the ops that the decoder calls; a [`Backend`] is both. They work on
//! [`Buf`]s and a [`Kv`] cache that are planned before the first request, on weights that the device took in, and on a [`Batch`]
//! that names tokens. **Invariant:** if the decoder, the sampler or the engine does not call it, it is in neither trait; and
//! every op gives a row the same bits whatever other rows are in the batch (**batch invariance**).
//!
//! How matrices, caches and operands lie in memory is a backend's own affair: the CPU and CUDA share `packed.rs`. One suite
//! holds every backend against the reference: `conformance/`.

mod attention;
mod batch;
mod buffer;
#[cfg(test)]
mod conformance;
pub mod cpu;
pub mod cuda;
mod kv;
mod memory;
mod moe;
mod ops;
pub mod packed;
pub mod sample_batch;

pub use self::attention::{Attention, AttentionBias, RopeTable};
pub use self::batch::{Batch, Mask, Span};
pub use self::buffer::Buf;
pub use self::kv::{BLOCK, Kv, KvShape, KvType, Side};
pub use self::memory::{Counters, DeviceMemory, Fence, Quantize};
pub use self::moe::{Expert, Groups, Routed, Routing, Scoring};
pub use self::ops::{
    Activation, Cap, EmbedBy, GateUp, Linear, Norm, NormKind, Ops, Pointwise, Pooling, Projection,
};
pub use self::packed::OperandType;

/// A device that runs the forward pass.
pub trait Backend: Ops {}

impl<B: Ops> Backend for B {}
