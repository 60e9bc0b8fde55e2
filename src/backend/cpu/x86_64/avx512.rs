//! AVX-512 (F, BW, DQ, VL): one register of sixteen lanes; with VNNI and BF16 where the processor has them.
#![expect(unsafe_code, reason = "implements a trait of unsafe methods; see its contract")]
#![expect(clippy::undocumented_unsafe_blocks, reason = "one contract for all methods, stated above the impl")]

use std::arch::x86_64::*;

use crate::backend::cpu::vector::Vector;

/// Sixteen f32 in a 512-bit register. `VNNI` and `BF16`: that instructions of these names may be used.
#[derive(Clone, Copy)]
pub struct Avx512<const VNNI: bool, const BF16: bool>(__m512);

// SAFETY (all): the trait's contract, AVX-512 (and AVX2, FMA and F16C, which come with it) proven by the caller.
impl<const VNNI: bool, const HAS_BF16: bool> Vector for Avx512<VNNI, HAS_BF16> {
    type Ints = __m512i;
    type Line = __m512i;
    const WIDE: bool = true;
    const BF16: bool = HAS_BF16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    unsafe fn exp2_whole(self) -> Self {
        let biased = unsafe { _mm512_add_epi32(_mm512_cvttps_epi32(self.0), _mm512_set1_epi32(127)) };
        Self(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)) })
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
        let high = unsafe { _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0))) };
        unsafe { super::avx2::sum8(_mm256_add_ps(_mm512_castps512_ps256(self.0), high)) }
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        let high = unsafe { _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0))) };
        unsafe { super::avx2::max8(_mm256_max_ps(_mm512_castps512_ps256(self.0), high)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u8) {
        unsafe {
            let halves = if HAS_BF16 {
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(self.0))
            } else {
                // to nearest, ties to even; what is not a number keeps its upper half, made quiet
                let bits = _mm512_castps_si512(self.0);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
                let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(up, nan, quiet)))
            };
            _mm256_storeu_si256(to.cast(), halves);
        }
    }
    #[inline(always)]
    unsafe fn magnitude(pair: [Self; 2]) -> f32 {
        unsafe {
            // as bits, what is not a number is larger than infinity
            let mask = _mm512_set1_epi32(0x7fff_ffff);
            let low = _mm512_and_si512(_mm512_castps_si512(pair[0].0), mask);
            let high = _mm512_and_si512(_mm512_castps_si512(pair[1].0), mask);
            let lanes = _mm512_max_epu32(low, high);
            let half = _mm512_extracti64x4_epi64::<1>(lanes);
            super::avx2::max_bits8(_mm256_max_epu32(_mm512_castsi512_si256(lanes), half))
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(pair: [Self; 2], to: *mut u8) -> i32 {
        unsafe {
            let (low, high) = (_mm512_cvtps_epi32(pair[0].0), _mm512_cvtps_epi32(pair[1].0));
            _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(low));
            _mm_storeu_si128(to.add(16).cast(), _mm512_cvtepi32_epi8(high));
            _mm512_reduce_add_epi32(_mm512_add_epi32(low, high))
        }
    }

    #[inline(always)]
    unsafe fn line(from: *const u8) -> Self::Line {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn weights(from: *const u8) -> Self::Line {
        unsafe { Self::line(from) }
    }
    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [Self::Line; 2] {
        unsafe {
            let (line, low) = (Self::line(from), _mm512_set1_epi8(15));
            [_mm512_and_si512(line, low), _mm512_and_si512(_mm512_srli_epi16::<4>(line), low)]
        }
    }
    #[inline(always)]
    unsafe fn spread(from: *const u8) -> Self::Line {
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn pairs(line: Self::Line) -> [Self; 2] {
        unsafe {
            let high = _mm512_and_si512(line, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(line))), Self(_mm512_castsi512_ps(high))]
        }
    }
    #[inline(always)]
    unsafe fn quads(line: Self::Line) -> [Self; 4] {
        unsafe {
            let first = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(line));
            let second = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(line));
            let third = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<8>(line));
            [
                Self(_mm512_cvtepi32_ps(first)),
                Self(_mm512_cvtepi32_ps(second)),
                Self(_mm512_cvtepi32_ps(third)),
                Self(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(line))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn ints(value: i32) -> Self::Ints {
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: Self::Ints, weights: Self::Line, x: Self::Line) -> Self::Ints {
        unsafe {
            if VNNI {
                return _mm512_dpbusd_epi32(sum, weights, x);
            }
            // `maddubs` would saturate: widen to 16 bits, even and odd bytes apart
            let even = _mm512_and_si512(weights, _mm512_set1_epi16(0xff));
            let odd = _mm512_srli_epi16::<8>(weights);
            let x_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x));
            let x_odd = _mm512_srai_epi16::<8>(x);
            let both = _mm512_add_epi32(_mm512_madd_epi16(even, x_even), _mm512_madd_epi16(odd, x_odd));
            _mm512_add_epi32(sum, both)
        }
    }
    #[inline(always)]
    unsafe fn from_ints(ints: Self::Ints) -> Self {
        Self(unsafe { _mm512_cvtepi32_ps(ints) })
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, weights: Self::Line, x: Self::Line) -> Self {
        unsafe {
            let [weights, x] = [weights, x].map(|line| std::mem::transmute::<__m512i, __m512bh>(line));
            Self(_mm512_dpbf16_ps(self.0, weights, x))
        }
    }
}

/// AVX-512 alone: Skylake servers.
pub mod plain {
    crate::backend::cpu::kernels::kernels!(
        super::Avx512<false, false>, 12, KERNELS,
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    );
}

/// With VNNI: Cascade Lake, Ice Lake.
pub mod vnni {
    crate::backend::cpu::kernels::kernels!(
        super::Avx512<true, false>, 12, KERNELS,
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    );
}

/// With VNNI and BF16: Cooper Lake, Sapphire Rapids, Zen 4 and later.
pub mod bf16 {
    crate::backend::cpu::kernels::kernels!(
        super::Avx512<true, true>, 12, KERNELS,
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
    );
}
