//! Which instruction set to use, decided once at run time.

use super::attention::AttentionJob;
use super::linear::LinearJob;
use super::rows::{EmbedJob, NormJob, RopeJob, SiluJob};

/// This thread's share of a job: part `index` of `count`.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub index: usize,
    pub count: usize,
}

impl Part {
    /// The contiguous range of `0..total` that falls to this part, in whole units.
    pub fn range(self, total: usize, unit: usize) -> std::ops::Range<usize> {
        let units = total.div_ceil(unit);
        let edge = |index: usize| (units * index / self.count * unit).min(total);
        edge(self.index)..edge(self.index + 1)
    }
}

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
        pub const KERNELS: $crate::backend::cpu::detect::Kernels = {
            use $crate::backend::cpu::{attention, detect::{Kernels, Part}, linear, rows};
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

/// An instruction set that this machine has: holding the value proves it.
#[derive(Clone, Copy, Debug)]
pub struct Isa {
    /// Its name.
    pub name: &'static str,
    kernels: Kernels,
}

impl Isa {
    /// Every instruction set that this machine has, best first. The last, `portable`, is always there.
    pub fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use super::x86_64::{avx2, avx512};
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2 && is_x86_feature_detected!("avx512f") {
                all.push(Isa { name: "avx512", kernels: avx512::KERNELS });
            }
            if avx2 {
                all.push(Isa { name: "avx2", kernels: avx2::KERNELS });
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            all.push(Isa { name: "neon", kernels: super::aarch64::neon::KERNELS });
        }
        all.push(Isa { name: "portable", kernels: super::generic::KERNELS });
        all
    }

    /// The best one.
    pub fn best() -> Isa {
        Self::available()[0]
    }

    /// The one called `name`, if this machine has it.
    pub fn named(name: &str) -> Option<Isa> {
        Self::available().into_iter().find(|isa| isa.name == name)
    }

    /// Its kernels.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }
}

#[cfg(test)]
mod tests {
    use super::Part;

    #[test]
    fn parts_cover_everything_once() {
        for total in [0, 1, 7, 16, 100, 129] {
            for count in [1, 2, 3, 8] {
                let all: Vec<usize> =
                    (0..count).flat_map(|index| Part { index, count }.range(total, 4)).collect();
                assert_eq!(all, (0..total).collect::<Vec<_>>());
            }
        }
    }
}
