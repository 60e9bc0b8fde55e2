//! NEON: four registers of four lanes.
#![expect(unsafe_code, reason = "implements a trait of unsafe methods; see its contract")]
#![expect(clippy::undocumented_unsafe_blocks, reason = "one contract for all methods, stated above the impl")]

use std::arch::aarch64::*;

use crate::backend::cpu::vector::Vector;

/// Sixteen f32 in four 128-bit registers.
#[derive(Clone, Copy)]
pub struct Neon([float32x4_t; 4]);

/// Lane by lane over the registers. A macro, since a closure would not carry the target feature.
macro_rules! each {
    ($op:ident, $($operand:expr),+) => {
        // SAFETY: the trait's contract; NEON is part of every AArch64 that Rust's std runs on.
        unsafe { Self([$op($($operand[0]),+), $op($($operand[1]),+), $op($($operand[2]),+), $op($($operand[3]),+)]) }
    };
}

#[inline(always)]
unsafe fn exp2_whole4(whole: float32x4_t) -> float32x4_t {
    // SAFETY: NEON.
    unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(whole), vdupq_n_s32(127)))) }
}

#[inline(always)]
unsafe fn fma4(a: float32x4_t, factor: float32x4_t, addend: float32x4_t) -> float32x4_t {
    // SAFETY: NEON. The intrinsic takes the addend first.
    unsafe { vfmaq_f32(addend, a, factor) }
}

// Not `vmaxq_f32` and `vminq_f32`, which pass NaN on from either side and order the zeros.
#[inline(always)]
unsafe fn max4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: NEON.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

#[inline(always)]
unsafe fn min4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: NEON.
    unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
}

// SAFETY (all): the trait's contract.
impl Vector for Neon {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([unsafe { vdupq_n_f32(value) }; 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe {
            Self([vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))])
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        unsafe {
            let (low, high) = (vld1q_u16(from), vld1q_u16(from.add(8)));
            Self([
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(low))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(low)),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(high))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(high)),
            ])
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        unsafe {
            let (low, high) =
                (vreinterpretq_f16_u16(vld1q_u16(from)), vreinterpretq_f16_u16(vld1q_u16(from.add(8))));
            Self([
                vcvt_f32_f16(vget_low_f16(low)),
                vcvt_high_f32_f16(low),
                vcvt_f32_f16(vget_low_f16(high)),
                vcvt_high_f32_f16(high),
            ])
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for (i, register) in self.0.into_iter().enumerate() {
            unsafe { vst1q_f32(to.add(4 * i), register) }
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        each!(vaddq_f32, self.0, other.0)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        each!(vsubq_f32, self.0, other.0)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        each!(vmulq_f32, self.0, other.0)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        each!(vdivq_f32, self.0, other.0)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        each!(max4, self.0, other.0)
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        each!(min4, self.0, other.0)
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        each!(fma4, self.0, factor.0, addend.0)
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        each!(vrndnq_f32, self.0)
    }
    #[inline(always)]
    unsafe fn exp2_whole(self) -> Self {
        each!(exp2_whole4, self.0)
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let four = vaddq_f32(vaddq_f32(self.0[0], self.0[2]), vaddq_f32(self.0[1], self.0[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
}

// 2 x 2 accumulators of four registers each: half of the 32 registers.
crate::backend::cpu::kernels::kernels!(Neon, 2, 2, 4, #[target_feature(enable = "neon")]);
