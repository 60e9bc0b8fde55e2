//! AVX2 with FMA and F16C: two registers of eight lanes; with AVX-VNNI where the processor has it.
#![expect(unsafe_code, reason = "implements a trait of unsafe methods; see its contract")]
#![expect(clippy::undocumented_unsafe_blocks, reason = "one contract for all methods, stated above the impl")]

use std::arch::x86_64::*;

use crate::backend::cpu::vector::Vector;

/// Sixteen f32 in two 256-bit registers. `VNNI`: that AVX-VNNI may be used.
#[derive(Clone, Copy)]
pub struct Avx2<const VNNI: bool>(__m256, __m256);

/// Lanes 4 apart, then 2, then 1.
#[inline(always)]
pub unsafe fn sum8(lanes: __m256) -> f32 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Lanes 4 apart, then 2, then 1.
#[inline(always)]
pub unsafe fn max8(lanes: __m256) -> f32 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let four = _mm_max_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// The largest, as bits.
#[inline(always)]
pub unsafe fn max_bits8(lanes: __m256i) -> f32 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let four = _mm_max_epu32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256::<1>(lanes));
        let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        let one = _mm_max_epu32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
        f32::from_bits(_mm_cvtsi128_si32(one) as u32)
    }
}

#[inline(always)]
unsafe fn exp2_whole8(whole: __m256) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let biased = _mm256_add_epi32(_mm256_cvttps_epi32(whole), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}

// SAFETY (all): the trait's contract, AVX2, FMA and F16C proven by the caller.
impl<const VNNI: bool> Vector for Avx2<VNNI> {
    type Ints = [__m256i; 2];
    type Line = [__m256i; 2];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        let lanes = unsafe { _mm256_set1_ps(value) };
        Self(lanes, lanes)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        unsafe {
            let (low, high) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast()));
            Self(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        unsafe {
            Self(_mm256_fmadd_ps(self.0, factor.0, addend.0), _mm256_fmadd_ps(self.1, factor.1, addend.1))
        }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { Self(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }
    #[inline(always)]
    unsafe fn exp2_whole(self) -> Self {
        unsafe { Self(exp2_whole8(self.0), exp2_whole8(self.1)) }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_far(from: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { sum8(_mm256_add_ps(self.0, self.1)) }
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        unsafe { max8(_mm256_max_ps(self.0, self.1)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u8) {
        unsafe {
            let (low, high) = (bf16_bits8(self.0), bf16_bits8(self.1));
            // packing works within 128 bits: put the quarters in order again
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
            _mm256_storeu_si256(to.cast(), packed);
        }
    }
    #[inline(always)]
    unsafe fn magnitude(pair: [Self; 2]) -> f32 {
        unsafe {
            // as bits, what is not a number is larger than infinity
            let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff));
            let [a, b] = pair;
            let low = _mm256_max_epu32(
                _mm256_castps_si256(_mm256_and_ps(a.0, mask)),
                _mm256_castps_si256(_mm256_and_ps(a.1, mask)),
            );
            let high = _mm256_max_epu32(
                _mm256_castps_si256(_mm256_and_ps(b.0, mask)),
                _mm256_castps_si256(_mm256_and_ps(b.1, mask)),
            );
            max_bits8(_mm256_max_epu32(low, high))
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(pair: [Self; 2], to: *mut u8) -> i32 {
        unsafe {
            let (a, b) = (_mm256_cvtps_epi32(pair[0].0), _mm256_cvtps_epi32(pair[0].1));
            let (c, d) = (_mm256_cvtps_epi32(pair[1].0), _mm256_cvtps_epi32(pair[1].1));
            // packing works within 128 bits: put the pieces of four in order again
            let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_storeu_si256(to.cast(), _mm256_permutevar8x32_epi32(bytes, order));
            let sum = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
            let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
            _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum)))
        }
    }

    #[inline(always)]
    unsafe fn line(from: *const u8) -> Self::Line {
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn weights(from: *const u8) -> Self::Line {
        unsafe { Self::line(from) }
    }
    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [Self::Line; 2] {
        unsafe {
            let ([a, b], low) = (Self::line(from), _mm256_set1_epi8(15));
            let (high_a, high_b) = (_mm256_srli_epi16::<4>(a), _mm256_srli_epi16::<4>(b));
            [
                [_mm256_and_si256(a, low), _mm256_and_si256(b, low)],
                [_mm256_and_si256(high_a, low), _mm256_and_si256(high_b, low)],
            ]
        }
    }
    #[inline(always)]
    unsafe fn spread(from: *const u8) -> Self::Line {
        [unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }; 2]
    }
    #[inline(always)]
    unsafe fn pairs([a, b]: Self::Line) -> [Self; 2] {
        unsafe {
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let even = Self(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
            );
            let odd = Self(
                _mm256_castsi256_ps(_mm256_and_si256(a, high)),
                _mm256_castsi256_ps(_mm256_and_si256(b, high)),
            );
            [even, odd]
        }
    }
    #[inline(always)]
    unsafe fn quads([a, b]: Self::Line) -> [Self; 4] {
        unsafe {
            [
                Self(signed_bytes8::<24>(a), signed_bytes8::<24>(b)),
                Self(signed_bytes8::<16>(a), signed_bytes8::<16>(b)),
                Self(signed_bytes8::<8>(a), signed_bytes8::<8>(b)),
                Self(signed_bytes8::<0>(a), signed_bytes8::<0>(b)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn ints(value: i32) -> Self::Ints {
        [unsafe { _mm256_set1_epi32(value) }; 2]
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: Self::Ints, weights: Self::Line, x: Self::Line) -> Self::Ints {
        unsafe {
            if VNNI {
                return [
                    _mm256_dpbusd_avx_epi32(sum[0], weights[0], x[0]),
                    _mm256_dpbusd_avx_epi32(sum[1], weights[1], x[1]),
                ];
            }
            [dot_bytes8(sum[0], weights[0], x[0]), dot_bytes8(sum[1], weights[1], x[1])]
        }
    }
    #[inline(always)]
    unsafe fn from_ints(ints: Self::Ints) -> Self {
        unsafe { Self(_mm256_cvtepi32_ps(ints[0]), _mm256_cvtepi32_ps(ints[1])) }
    }
}

/// The upper halves of eight f32, rounded to nearest, ties to even; what is not a number is kept, made quiet.
#[inline(always)]
unsafe fn bf16_bits8(lanes: __m256) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let bits = _mm256_castps_si256(lanes);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(lanes, lanes));
        _mm256_srli_epi32::<16>(_mm256_blendv_epi8(up, quiet, nan))
    }
}

/// One signed byte of each lane: the one that a shift to the left by `LEFT` brings to the top.
#[inline(always)]
unsafe fn signed_bytes8<const LEFT: i32>(lanes: __m256i) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_slli_epi32::<LEFT>(lanes))) }
}

/// `maddubs` would saturate: widens to 16 bits, even and odd bytes apart.
#[inline(always)]
unsafe fn dot_bytes8(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let even = _mm256_and_si256(weights, _mm256_set1_epi16(0xff));
        let odd = _mm256_srli_epi16::<8>(weights);
        let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
        let x_odd = _mm256_srai_epi16::<8>(x);
        let both = _mm256_add_epi32(_mm256_madd_epi16(even, x_even), _mm256_madd_epi16(odd, x_odd));
        _mm256_add_epi32(sum, both)
    }
}

/// AVX2 alone.
pub mod plain {
    crate::backend::cpu::kernels::kernels!(
        super::Avx2<false>, 12, KERNELS, #[target_feature(enable = "avx2,fma,f16c")]
    );
}

/// With AVX-VNNI: recent processors of desktops.
pub mod vnni {
    crate::backend::cpu::kernels::kernels!(
        super::Avx2<true>, 12, KERNELS, #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    );
}
