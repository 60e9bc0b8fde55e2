//! The kernels of an instruction set, as a table of function pointers.

use std::borrow::Cow;

use super::attention::AttentionJob;
use super::format::{Format, TooLarge};
use super::linear::{GatedJob, LinearJob};
use super::rows::{ActAndMulJob, ActivateJob, ConvertJob, MoeCombineJob, NormJob, RopeJob, ScaleJob};
use super::team::Part;
use super::tile::Tile;
use crate::backend::{KvType, OperandType};
use crate::weights::Dtype;

/// Multiplies a tile.
pub type TileFn = unsafe fn(&Tile);
/// What is done on each thread before tiles, and after them.
pub type Around = (unsafe fn(), unsafe fn());
/// Packs rows of a matrix into a block: [`Format::pack`].
pub type PackFn = unsafe fn(Format, Dtype, usize, &[Cow<'_, [u8]>], &mut [u8]) -> Result<(), TooLarge>;

/// The kernels of one instruction set.
///
/// # Safety
/// Each needs its instruction set and a job whose pointers have the sizes it names, disjoint where written.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    /// Rows of x that a tile takes best.
    pub tokens: usize,
    pub f32: TileFn,
    pub f16: TileFn,
    pub bf16: TileFn,
    /// bf16 by bf16, where the processor has it.
    pub bf16_pairs: Option<TileFn>,
    pub bytes: TileFn,
    pub q8: TileFn,
    pub q4: TileFn,
    /// Readies the processor for tiles, and cleans up behind them, on each thread of a job.
    pub around: Option<Around>,
    pub linear: unsafe fn(&LinearJob<'_>, Part),
    pub gated: unsafe fn(&GatedJob<'_>, Part),
    pub attention: unsafe fn(&AttentionJob<'_>, Part),
    pub norm: unsafe fn(&NormJob<'_>, Part),
    pub scale: unsafe fn(&ScaleJob, Part),
    pub moe_combine: unsafe fn(&MoeCombineJob, Part),
    pub activate: unsafe fn(&ActivateJob, Part),
    pub act_and_mul: unsafe fn(&ActAndMulJob, Part),
    pub rope_store: unsafe fn(&RopeJob<'_>, Part),
    pub convert: unsafe fn(&ConvertJob),
    pub pack: PackFn,
}

impl Kernels {
    /// What x has to be for weights of `format`.
    pub fn operand(&self, format: Format) -> OperandType {
        match format {
            Format::Bf16 if self.bf16_pairs.is_some() => OperandType::Bf16,
            Format::F32 | Format::F16 | Format::Bf16 => OperandType::F32,
            Format::Q8 | Format::Q4 => OperandType::Bytes,
        }
    }

    /// The tile for weights of `format` and x in `operand`.
    pub fn tile(&self, format: Format, operand: OperandType) -> TileFn {
        match (format, operand) {
            (Format::F32, OperandType::F32) => self.f32,
            (Format::F16, OperandType::F32) => self.f16,
            (Format::Bf16, OperandType::F32) => self.bf16,
            (Format::Bf16, OperandType::Bf16) => self.bf16_pairs.expect("an operand of bf16 is for its tile"),
            (Format::Q8, OperandType::Bytes) => self.q8,
            (Format::Q4, OperandType::Bytes) => self.q4,
            _ => unreachable!("no tile for {format:?} weights and {operand:?}"),
        }
    }

    /// The tile for cached keys and values, and what their other side has to be.
    pub fn cache_tile(&self, cache: KvType) -> (TileFn, OperandType) {
        match (cache, self.bf16_pairs) {
            (KvType::F32, _) => (self.f32, OperandType::F32),
            (KvType::F16, _) => (self.f16, OperandType::F32),
            (KvType::Bf16, Some(tile)) => (tile, OperandType::Bf16),
            (KvType::Bf16, None) => (self.bf16, OperandType::F32),
            (KvType::Int8, _) => (self.bytes, OperandType::F32),
        }
    }
}

/// Compiles every kernel for one `Vector`; `$tokens`: rows of x that a tile takes best.
macro_rules! kernels {
    ($vector:ty, $tokens:literal, $name:ident $(, #[$feature:meta])?) => {
        /// The kernels on these lanes.
        pub const $name: $crate::backend::cpu::kernels::Kernels = {
            use $crate::backend::cpu::vector::Vector;
            use $crate::backend::cpu::{attention, format, kernels::Kernels, linear, rows, team::Part, tile};
            macro_rules! tiles {
                ($tile:ident, $product:ty) => {
                    $(#[$feature])?
                    unsafe fn $tile(job: &tile::Tile) {
                        // SAFETY (all): the caller's contract is ours.
                        unsafe { tile::run::<$vector, $product>(job) }
                    }
                };
            }
            macro_rules! jobs {
                ($kernel:ident, $job:ty, $run:expr) => {
                    $(#[$feature])?
                    unsafe fn $kernel(job: &$job, part: Part) {
                        unsafe { $run(job, part) }
                    }
                };
            }
            tiles!(f32, tile::Widened<tile::F32>);
            tiles!(f16, tile::Widened<tile::F16>);
            tiles!(bf16, tile::Widened<tile::Bf16>);
            tiles!(bf16_pairs, tile::Bf16Pairs);
            tiles!(bytes, tile::Widened<tile::Bytes>);
            tiles!(q8, tile::Quantized<false>);
            tiles!(q4, tile::Quantized<true>);
            jobs!(linear, linear::LinearJob<'_>, linear::linear);
            jobs!(gated, linear::GatedJob<'_>, linear::gated::<$vector>);
            jobs!(attention, attention::AttentionJob<'_>, attention::run::<$vector>);
            jobs!(norm, rows::NormJob<'_>, rows::norm::<$vector>);
            jobs!(scale, rows::ScaleJob, rows::scale::<$vector>);
            jobs!(moe_combine, rows::MoeCombineJob, rows::moe_combine::<$vector>);
            jobs!(activate, rows::ActivateJob, rows::activate_rows::<$vector>);
            jobs!(act_and_mul, rows::ActAndMulJob, rows::act_and_mul::<$vector>);
            jobs!(rope_store, rows::RopeJob<'_>, rows::rope_store);
            $(#[$feature])?
            unsafe fn convert(job: &rows::ConvertJob) {
                unsafe { rows::convert::<$vector>(job) }
            }
            $(#[$feature])?
            unsafe fn pack(
                format: format::Format,
                dtype: $crate::weights::Dtype,
                cols: usize,
                rows: &[std::borrow::Cow<'_, [u8]>],
                block: &mut [u8],
            ) -> Result<(), format::TooLarge> {
                format.pack(dtype, cols, rows, block)
            }
            Kernels {
                tokens: $tokens,
                f32,
                f16,
                bf16,
                bf16_pairs: if <$vector as Vector>::BF16 { Some(bf16_pairs) } else { None },
                bytes,
                q8,
                q4,
                around: None,
                linear,
                gated,
                attention,
                norm,
                scale,
                moe_combine,
                activate,
                act_and_mul,
                rope_store,
                convert,
                pack,
            }
        };
    };
}
pub(super) use kernels;
