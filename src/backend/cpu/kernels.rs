//! The kernels of an instruction set, as a table of function pointers.

use super::attention::AttentionJob;
use super::linear::LinearJob;
use super::rows::{EmbedJob, NormJob, RopeJob, SiluJob};
use super::team::Part;

/// The kernels of one instruction set.
///
/// # Safety
/// Each needs its instruction set and a job whose pointers have the sizes it names, disjoint where written.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    pub linear: unsafe fn(&LinearJob, Part),
    pub attention: unsafe fn(&AttentionJob<'_>, Part),
    pub rms_norm: unsafe fn(&NormJob<'_>, Part),
    pub silu_mul: unsafe fn(&SiluJob, Part),
    pub rope_store: unsafe fn(&RopeJob<'_>, Part),
    pub embed: unsafe fn(&EmbedJob<'_>, Part),
}

/// Compiles every kernel for one `Vector`, with the register tile of its `linear`: weight rows and tokens, and the
/// weight rows for a single token.
macro_rules! kernels {
    ($vector:ty, $rows:literal, $tokens:literal, $single:literal $(, #[$feature:meta])?) => {
        /// The kernels on these lanes.
        pub const KERNELS: $crate::backend::cpu::kernels::Kernels = {
            use $crate::backend::cpu::{attention, kernels::Kernels, linear, rows, team::Part};
            $(#[$feature])?
            unsafe fn linear(job: &linear::LinearJob, part: Part) {
                // SAFETY (all): the caller's contract is ours.
                unsafe { linear::run::<$vector, $rows, $tokens, $single>(job, part) }
            }
            $(#[$feature])?
            unsafe fn attention(job: &attention::AttentionJob<'_>, part: Part) {
                unsafe { attention::run::<$vector>(job, part) }
            }
            $(#[$feature])?
            unsafe fn rms_norm(job: &rows::NormJob<'_>, part: Part) {
                unsafe { rows::rms_norm::<$vector>(job, part) }
            }
            $(#[$feature])?
            unsafe fn silu_mul(job: &rows::SiluJob, part: Part) {
                unsafe { rows::silu_mul::<$vector>(job, part) }
            }
            $(#[$feature])?
            unsafe fn rope_store(job: &rows::RopeJob<'_>, part: Part) {
                unsafe { rows::rope_store(job, part) }
            }
            $(#[$feature])?
            unsafe fn embed(job: &rows::EmbedJob<'_>, part: Part) {
                unsafe { rows::embed::<$vector>(job, part) }
            }
            Kernels { linear, attention, rms_norm, silu_mul, rope_store, embed }
        };
    };
}
pub(super) use kernels;
