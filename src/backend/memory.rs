//! [`DeviceMemory`]: what a device holds, from taking weights in to the last overwrite.

use super::batch::Batch;
use super::buffer::Buf;
use super::kv::{Kv, KvShape};
use super::packed::OperandType;
use crate::error::Result;
use crate::memory::ledger::NotCovered;
use crate::memory::{Layout, Scrubbed, arena::Closed};
use crate::weights::adapter::rounded;
use crate::weights::{Dtype, Tensor};

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

/// Says that a step was submitted. What the step gives can be read with its fence only, and only until the next step is
/// submitted, which writes to the same buffers.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what a step gives is read with its fence"]
pub struct Fence(
    /// The step's number.
    u64,
);

impl Counters {
    /// A step on `batch` is submitted.
    pub(super) fn submitted(&mut self, batch: &Batch<'_>) -> Fence {
        self.steps += 1;
        self.tokens += batch.tokens() as u64;
        Fence(self.steps)
    }

    /// Checks that a fence is that of the latest step.
    ///
    /// # Panics
    /// If another step was submitted since: its results lie where those of this fence lay.
    pub(super) fn check(&self, fence: &Fence) {
        assert_eq!(fence.0, self.steps, "the fence of an earlier step");
    }
}

/// The memory of a device, and the life of what it holds: weights come in, buffers and cache are reserved once, steps are submitted
/// and read, and what they leave is overwritten. Each overwrite returns when it is done, with its proof.
pub trait DeviceMemory: Send {
    /// A weight that it took in.
    type Weight: Send;

    /// Its name for people: device and instruction set.
    fn name(&self) -> String;

    /// Names what its results depend on: backends and instruction sets of one name give the same bits.
    fn arithmetic(&self) -> &'static str;

    /// Bytes of memory that [`DeviceMemory::upload`] takes for a tensor.
    fn weight_bytes(tensor: &Tensor, quantize: Option<Quantize>) -> u64;

    /// Bytes of a block of such a cache, packed as the device's kernels read it; none on overflow.
    fn kv_block_bytes(shape: &KvShape) -> Option<usize>;

    /// Bytes of what [`DeviceMemory::reserve`] takes besides the planned memory, at most. `logits`: rows and columns of those
    /// that tokens are chosen from.
    fn scratch_bytes(logits: Option<(usize, usize)>) -> u64 {
        let _ = logits;
        0
    }

    /// Takes in a tensor: a matrix in its stored type or quantized, a vector as f32. Leaves no page of the file in
    /// this process's memory, unless it uses the file itself.
    ///
    /// # Errors
    /// A value is not finite, or too large to be quantized; the memory is not to be had.
    fn upload(&mut self, tensor: &Tensor, quantize: Option<Quantize>) -> Result<Self::Weight>;

    /// Takes in a matrix that reads such operands, whatever its stored type.
    ///
    /// # Errors
    /// Returns the errors of [`DeviceMemory::upload`].
    fn upload_reader(&mut self, tensor: &Tensor, operand: OperandType) -> Result<Self::Weight> {
        match operand {
            OperandType::F32 => self.upload(&rounded(tensor, Dtype::F32), None),
            OperandType::Bf16 => self.upload(&rounded(tensor, Dtype::Bf16), None),
            OperandType::F16 => self.upload(&rounded(tensor, Dtype::F16), None),
            OperandType::Bytes => self.upload(tensor, Some(Quantize::Q8)),
        }
    }

    /// Takes in a table of f32 that the decoder computed: (rows, cols).
    ///
    /// # Errors
    /// The memory is not to be had.
    fn upload_table(&mut self, values: Vec<f32>, cols: usize) -> Result<Self::Weight>;

    /// Maps the planned memory, with what scratch it needs itself: for [`super::Ops::sample_on_device`] too, if there are
    /// `logits`. Called once, after all uploads and before the first step.
    ///
    /// # Errors
    /// The memory is not to be had.
    fn reserve(&mut self, layout: Layout, kv: Kv, logits: Option<Buf>) -> Result<()>;

    /// Padded number of rows of a step of `rows` sequences with one token each, chosen so that recorded steps are reused. The
    /// rows added are copies of the last one.
    fn padded_rows(&self, rows: usize) -> usize {
        rows
    }

    /// Submits a step on `batch`. `record` calls its ops; a device that recorded an equal step before may do that one again
    /// instead, since all that differs between the two is the batch.
    fn submit(&mut self, batch: &Batch<'_>, record: impl FnOnce(&mut Self)) -> Fence;

    /// One row of a buffer that the step of `fence` wrote, once the step is done.
    ///
    /// # Panics
    /// If another step was submitted since.
    fn read(&mut self, fence: &Fence, buf: Buf, row: usize) -> &[f32];

    /// Copies one KV block to another.
    fn copy_block(&mut self, from: u32, to: u32);

    /// Lends the bytes of a KV block, to be encrypted in place. Not where they are out of this process's reach.
    fn with_block(&mut self, _block: u32, _act: &mut dyn FnMut(&mut [u8])) {}

    /// Overwrites what steps left outside the cache: the first rows of each of these buffers, the stacks of its own threads, and
    /// the scratch that those keep. Returns when that is done, with the number of regions.
    fn scrub_steps(&mut self, used: impl Iterator<Item = (Buf, usize)>) -> (u64, Scrubbed);

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
