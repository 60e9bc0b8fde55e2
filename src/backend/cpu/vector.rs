//! Sixteen lanes of f32 and what kernels do with them.
//!
//! The operations are those whose results IEEE 754 fixes (fused multiply-add included), and [`Vector::sum`] adds
//! lanes in one given order: 8 apart, 4, 2, 1. So a kernel over `Vector` gives the same bits on each instruction set.
#![expect(
    unsafe_code,
    reason = "lanes are loaded through raw pointers, on instruction sets proven by the caller"
)]

use half::{bf16, f16};

/// The number of lanes.
pub const LANES: usize = 16;

/// Sixteen f32.
///
/// # Safety
/// Every method needs the instruction set of its implementor, proven by [`super::detect::Isa`]; loads and stores
/// need [`LANES`] elements at the pointer, of any alignment.
pub trait Vector: Copy {
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_bf16(from: *const u16) -> Self;
    unsafe fn load_f16(from: *const u16) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// The larger; `other` where the two do not compare.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `other` where the two do not compare.
    unsafe fn min(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once.
    unsafe fn fma(self, factor: Self, addend: Self) -> Self;
    /// To the nearest whole number, ties to even.
    unsafe fn round(self) -> Self;
    /// `2^self` for whole numbers from -127 (which gives 0) to 127.
    unsafe fn exp2_whole(self) -> Self;
    /// The sum of the lanes: those 8 apart first, then 4, 2, 1.
    unsafe fn sum(self) -> f32;

    /// Asks for the cache line at `from` ahead of its use. Any address will do.
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        let _ = from;
    }

    /// `e^self`: exactly 0 below -87.68, and clamped above 88.37 so that it stays finite; error under 2 ulp between.
    /// What is not a number stays so: an overflow must reach the logits, where it is an error, not vanish.
    ///
    /// Range reduction by Cody and Waite, polynomial of Cephes' `expf` (Moshier).
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: the caller's contract is ours.
        unsafe {
            // The bounds come first: `min` and `max` give their second operand where it is not a number.
            let x = Self::splat(-88.37).max(Self::splat(88.37).min(self));
            let whole = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            let whole = Self::splat(-127.0).max(whole);
            let rest = whole.fma(Self::splat(-0.693_359_4), x);
            let rest = whole.fma(Self::splat(2.121_944_4e-4), rest);
            let mut poly = Self::splat(1.987_569_1e-4);
            for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
                poly = poly.fma(rest, Self::splat(coefficient));
            }
            let value = poly.fma(rest.mul(rest), rest.add(Self::splat(1.0)));
            value.mul(whole.exp2_whole())
        }
    }

    /// The first `count` of up to [`LANES`] elements, zeros behind them.
    #[inline(always)]
    unsafe fn load_part<E: Element>(from: *const u8, count: usize) -> Self {
        let mut lanes = [0.0_f32; LANES];
        for (i, lane) in lanes.iter_mut().enumerate().take(count) {
            // SAFETY: the caller vouches for `count` elements.
            *lane = unsafe { E::scalar(from.add(i * E::BYTES)) };
        }
        // SAFETY: the array has the lanes.
        unsafe { Self::load(lanes.as_ptr()) }
    }

    /// Stores the first `count` lanes.
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        let mut lanes = [0.0_f32; LANES];
        // SAFETY: the array has the lanes; the caller vouches for `count` elements at `to`.
        unsafe {
            self.store(lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, count.min(LANES));
        }
    }
}

/// An element type that vectors are loaded from.
///
/// # Safety
/// As [`Vector`]: pointers must have the elements; any alignment will do.
pub trait Element {
    /// Bytes of one.
    const BYTES: usize;
    unsafe fn load<V: Vector>(from: *const u8) -> V;
    unsafe fn scalar(from: *const u8) -> f32;
    unsafe fn store_scalar(value: f32, to: *mut u8);
}

/// f32 elements.
#[derive(Debug)]
pub struct F32;
/// f16 elements.
#[derive(Debug)]
pub struct F16;
/// bf16 elements.
#[derive(Debug)]
pub struct Bf16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's contract is ours.
        unsafe { V::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn scalar(from: *const u8) -> f32 {
        // SAFETY: as above.
        unsafe { from.cast::<f32>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_scalar(value: f32, to: *mut u8) {
        // SAFETY: as above.
        unsafe { to.cast::<f32>().write_unaligned(value) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's contract is ours.
        unsafe { V::load_f16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn scalar(from: *const u8) -> f32 {
        // SAFETY: as above.
        f16::from_bits(unsafe { from.cast::<u16>().read_unaligned() }).to_f32()
    }
    #[inline(always)]
    unsafe fn store_scalar(value: f32, to: *mut u8) {
        // SAFETY: as above.
        unsafe { to.cast::<u16>().write_unaligned(f16::from_f32(value).to_bits()) }
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Vector>(from: *const u8) -> V {
        // SAFETY: the caller's contract is ours.
        unsafe { V::load_bf16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn scalar(from: *const u8) -> f32 {
        // SAFETY: as above.
        bf16::from_bits(unsafe { from.cast::<u16>().read_unaligned() }).to_f32()
    }
    #[inline(always)]
    unsafe fn store_scalar(value: f32, to: *mut u8) {
        // SAFETY: as above.
        unsafe { to.cast::<u16>().write_unaligned(bf16::from_f32(value).to_bits()) }
    }
}
