//! NEON: four registers of four lanes; with the dot products of bytes and of bf16 where the processor has them.
#![expect(unsafe_code, reason = "implements a trait of unsafe methods; see its contract")]
#![expect(clippy::undocumented_unsafe_blocks, reason = "one contract for all methods, stated above the impl")]

use std::arch::aarch64::*;
use std::arch::asm;

use crate::backend::cpu::vector::Vector;

/// Sixteen f32 in four 128-bit registers. `DOT` and `BF16`: that FEAT_DotProd and FEAT_BF16 may be used.
#[derive(Clone, Copy)]
pub struct Neon<const DOT: bool, const BF16: bool>([float32x4_t; 4]);

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
impl<const DOT: bool, const HAS_BF16: bool> Vector for Neon<DOT, HAS_BF16> {
    type Ints = [int32x4_t; 4];
    type Line = [uint8x16_t; 4];
    const BF16: bool = HAS_BF16;
    /// Products are of signed bytes: [`Vector::weights`] takes the stored zero off.
    const ZERO: i32 = 0;

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
    unsafe fn load_f16(from: *const u8) -> Self {
        unsafe {
            let (low, high) =
                (vreinterpretq_f16_u8(vld1q_u8(from)), vreinterpretq_f16_u8(vld1q_u8(from.add(16))));
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
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        unsafe {
            let four = max4(max4(self.0[0], self.0[2]), max4(self.0[1], self.0[3]));
            let two = max4(four, vextq_f32::<2>(four, four));
            vgetq_lane_f32::<0>(max4(two, vdupq_laneq_f32::<1>(two)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u8) {
        for (i, register) in self.0.into_iter().enumerate() {
            unsafe { vst1_u16(to.add(8 * i).cast(), bf16_bits4(register)) }
        }
    }
    #[inline(always)]
    unsafe fn magnitude(pair: [Self; 2]) -> f32 {
        unsafe {
            // as bits, what is not a number is larger than infinity
            let mut largest = vdupq_n_u32(0);
            for register in pair.into_iter().flat_map(|lanes| lanes.0) {
                largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(register)));
            }
            f32::from_bits(vmaxvq_u32(largest))
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(pair: [Self; 2], to: *mut u8) -> i32 {
        let mut all = 0;
        for (i, lanes) in pair.into_iter().enumerate() {
            unsafe {
                let [a, b, c, d] = lanes.0;
                let [a, b, c, d] = [vcvtq_s32_f32(a), vcvtq_s32_f32(b), vcvtq_s32_f32(c), vcvtq_s32_f32(d)];
                let low = vcombine_s16(vmovn_s32(a), vmovn_s32(b));
                let high = vcombine_s16(vmovn_s32(c), vmovn_s32(d));
                vst1q_s8(to.add(16 * i).cast(), vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
                all += vaddvq_s32(vaddq_s32(vaddq_s32(a, b), vaddq_s32(c, d)));
            }
        }
        all
    }

    #[inline(always)]
    unsafe fn line(from: *const u8) -> Self::Line {
        unsafe { [vld1q_u8(from), vld1q_u8(from.add(16)), vld1q_u8(from.add(32)), vld1q_u8(from.add(48))] }
    }
    #[inline(always)]
    unsafe fn weights(from: *const u8) -> Self::Line {
        unsafe {
            let ([a, b, c, d], zero) = (Self::line(from), vdupq_n_u8(128));
            [veorq_u8(a, zero), veorq_u8(b, zero), veorq_u8(c, zero), veorq_u8(d, zero)]
        }
    }
    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [Self::Line; 2] {
        unsafe {
            let ([a, b, c, d], low) = (Self::line(from), vdupq_n_u8(15));
            [
                [vandq_u8(a, low), vandq_u8(b, low), vandq_u8(c, low), vandq_u8(d, low)],
                [vshrq_n_u8::<4>(a), vshrq_n_u8::<4>(b), vshrq_n_u8::<4>(c), vshrq_n_u8::<4>(d)],
            ]
        }
    }
    #[inline(always)]
    unsafe fn spread(from: *const u8) -> Self::Line {
        [unsafe { vreinterpretq_u8_u32(vdupq_n_u32(from.cast::<u32>().read_unaligned())) }; 4]
    }
    #[inline(always)]
    unsafe fn pairs(line: Self::Line) -> [Self; 2] {
        unsafe {
            let mut pairs = [[vdupq_n_f32(0.0); 4]; 2];
            for (i, bytes) in line.into_iter().enumerate() {
                let words = vreinterpretq_u32_u8(bytes);
                pairs[0][i] = vreinterpretq_f32_u32(vshlq_n_u32::<16>(words));
                pairs[1][i] = vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xffff_0000)));
            }
            pairs.map(Self)
        }
    }
    #[inline(always)]
    unsafe fn quads(line: Self::Line) -> [Self; 4] {
        unsafe {
            let mut quads = [[vdupq_n_f32(0.0); 4]; 4];
            for (i, bytes) in line.into_iter().enumerate() {
                let words = vreinterpretq_s32_u8(bytes);
                quads[0][i] = vcvtq_f32_s32(vshrq_n_s32::<24>(vshlq_n_s32::<24>(words)));
                quads[1][i] = vcvtq_f32_s32(vshrq_n_s32::<24>(vshlq_n_s32::<16>(words)));
                quads[2][i] = vcvtq_f32_s32(vshrq_n_s32::<24>(vshlq_n_s32::<8>(words)));
                quads[3][i] = vcvtq_f32_s32(vshrq_n_s32::<24>(words));
            }
            quads.map(Self)
        }
    }
    #[inline(always)]
    unsafe fn ints(value: i32) -> Self::Ints {
        [unsafe { vdupq_n_s32(value) }; 4]
    }
    #[inline(always)]
    unsafe fn dot_bytes(mut sum: Self::Ints, weights: Self::Line, x: Self::Line) -> Self::Ints {
        for i in 0..4 {
            unsafe {
                if DOT {
                    // the intrinsic is not stable
                    asm!(
                        ".arch_extension dotprod",
                        "sdot {sum:v}.4s, {weights:v}.16b, {x:v}.16b",
                        sum = inout(vreg) sum[i],
                        weights = in(vreg) weights[i],
                        x = in(vreg) x[i],
                        options(pure, nomem, nostack, preserves_flags),
                    );
                    continue;
                }
                let (weights, x) = (vreinterpretq_s8_u8(weights[i]), vreinterpretq_s8_u8(x[i]));
                let low = vmull_s8(vget_low_s8(weights), vget_low_s8(x));
                let high = vmull_high_s8(weights, x);
                sum[i] = vaddq_s32(sum[i], vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
            }
        }
        sum
    }
    #[inline(always)]
    unsafe fn from_ints(ints: Self::Ints) -> Self {
        let [a, b, c, d] = ints;
        Self(unsafe { [vcvtq_f32_s32(a), vcvtq_f32_s32(b), vcvtq_f32_s32(c), vcvtq_f32_s32(d)] })
    }
    #[inline(always)]
    unsafe fn dot_pairs(mut self, weights: Self::Line, x: Self::Line) -> Self {
        for i in 0..4 {
            // SAFETY: FEAT_BF16 is there. The intrinsic is not stable.
            unsafe {
                asm!(
                    ".arch_extension bf16",
                    "bfdot {sum:v}.4s, {weights:v}.8h, {x:v}.8h",
                    sum = inout(vreg) self.0[i],
                    weights = in(vreg) weights[i],
                    x = in(vreg) x[i],
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
        }
        self
    }
}

/// The upper halves of four f32, rounded to nearest, ties to even; what is not a number is kept, made quiet.
#[inline(always)]
unsafe fn bf16_bits4(lanes: float32x4_t) -> uint16x4_t {
    // SAFETY: NEON.
    unsafe {
        let bits = vreinterpretq_u32_f32(lanes);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
        vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(lanes, lanes), up, quiet))
    }
}

/// NEON alone.
pub mod plain {
    crate::backend::cpu::kernels::kernels!(
        super::Neon<false, false>, 12, KERNELS, #[target_feature(enable = "neon")]
    );
}

/// With the dot product of bytes: Armv8.4, most since 2018.
pub mod dot {
    crate::backend::cpu::kernels::kernels!(
        super::Neon<true, false>, 12, KERNELS, #[target_feature(enable = "neon,dotprod")]
    );
}

/// With that of bf16 too: Armv8.6, Graviton 3, Apple M2 and later.
pub mod bf16 {
    crate::backend::cpu::kernels::kernels!(
        super::Neon<true, true>, 12, KERNELS, #[target_feature(enable = "neon,dotprod,bf16")]
    );
}
