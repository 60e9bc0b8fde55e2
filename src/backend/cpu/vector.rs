//! Sixteen lanes of f32, and lines of 64 bytes that hold four bytes for each lane.
//!
//! The operations on f32 are those whose results IEEE 754 fixes (fused multiply-add included), those on integers are
//! exact, and [`Vector::sum`] adds lanes in one given order: 8 apart, 4, 2, 1. So a kernel over `Vector` gives the
//! same bits on each instruction set. The one exception is [`Vector::dot_pairs`], where [`Vector::BF16`] says that
//! the processor has it: its rounding is the processor's own.
#![expect(
    unsafe_code,
    reason = "lanes are loaded through raw pointers, on instruction sets proven by the caller"
)]

use std::f32::consts::{LN_2, LOG2_E};

/// The number of lanes.
pub use crate::backend::packed::LANES;

/// Bytes of a line: four for each lane.
pub const LINE: usize = 64;

/// Sixteen f32.
///
/// # Safety
/// Every method needs the instruction set of its implementor, proven by [`super::detect::Isa`]; loads and stores
/// need [`LANES`] elements (of a line, [`LINE`] bytes) at the pointer, of any alignment.
pub trait Vector: Copy {
    /// Sixteen i32.
    type Ints: Copy;
    /// A line.
    type Line: Copy;
    /// Blocks of 16 weight rows that a tile keeps in registers at once: 1 or 4.
    const WIDE: bool = false;
    /// Whether [`Vector::dot_pairs`] is there.
    const BF16: bool = false;
    /// What [`Vector::dot_bytes`] takes a stored byte of a weight for: its value plus this.
    const ZERO: i32 = 128;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const u8) -> Self;
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
    /// The largest of the lanes, compared as [`Vector::max`] does: those 8 apart first, then 4, 2, 1.
    unsafe fn max_lane(self) -> f32;
    /// Sixteen bf16, rounded to nearest, ties to even. Denormals may become zeros.
    unsafe fn store_bf16(self, to: *mut u8);
    /// The largest magnitude of all lanes; not a number if one is not.
    unsafe fn magnitude(pair: [Self; 2]) -> f32;
    /// 32 whole numbers within ±127, as signed bytes; their sum.
    unsafe fn store_bytes(pair: [Self; 2], to: *mut u8) -> i32;

    /// A line.
    unsafe fn line(from: *const u8) -> Self::Line;
    /// A line of weights stored with [`STORED_ZERO`] added, as [`Vector::dot_bytes`] wants them.
    unsafe fn weights(from: *const u8) -> Self::Line;
    /// The low and the high nibbles of a line.
    unsafe fn nibbles(from: *const u8) -> [Self::Line; 2];
    /// Four bytes for all lanes.
    unsafe fn spread(from: *const u8) -> Self::Line;
    /// The lower and the upper halves of the lanes, as bf16.
    unsafe fn pairs(line: Self::Line) -> [Self; 2];
    /// The four signed bytes of each lane.
    unsafe fn quads(line: Self::Line) -> [Self; 4];

    unsafe fn ints(value: i32) -> Self::Ints;
    /// Adds, lane by lane, the four products of `weights` (see [`Vector::ZERO`]) with the signed bytes of `x`. Exact.
    unsafe fn dot_bytes(sum: Self::Ints, weights: Self::Line, x: Self::Line) -> Self::Ints;
    unsafe fn from_ints(ints: Self::Ints) -> Self;

    /// Adds, lane by lane, the two products of bf16 pairs.
    #[inline(always)]
    unsafe fn dot_pairs(self, weights: Self::Line, x: Self::Line) -> Self {
        let _ = (weights, x);
        unreachable!("asked for where BF16 is false")
    }

    /// Asks for the cache line at `from` ahead of its use. Any address will do.
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        let _ = from;
    }

    /// Fetches a line into the second-level cache.
    #[inline(always)]
    unsafe fn prefetch_far(from: *const u8) {
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
            let whole = x.mul(Self::splat(LOG2_E)).round();
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

    /// `2^self` for what is not above zero: exactly 1 at zero and 0 below -126.5; error under 2 ulp between. What is not
    /// a number stays so. Taylor's polynomial of the sixth degree in [-0.5, 0.5].
    #[inline(always)]
    unsafe fn exp2_falling(self) -> Self {
        // SAFETY: the caller's contract is ours.
        unsafe {
            let x = Self::splat(-127.0).max(self);
            let whole = x.round();
            let rest = x.sub(whole);
            let mut poly = Self::splat(1.540_353e-4);
            for coefficient in [1.333_355_8e-3, 9.618_129e-3, 5.550_411e-2, 0.240_226_5, LN_2, 1.0] {
                poly = poly.fma(rest, Self::splat(coefficient));
            }
            poly.mul(whole.exp2_whole())
        }
    }

    /// Sixteen values from `col` on of `cols` at `from`, zeros behind them.
    #[inline(always)]
    unsafe fn load_from(from: *const f32, col: usize, cols: usize) -> Self {
        // SAFETY: the caller vouches for `cols` elements.
        unsafe {
            if col + LANES <= cols {
                Self::load(from.add(col))
            } else if col < cols {
                Self::load_part(from.add(col), cols - col)
            } else {
                Self::splat(0.0)
            }
        }
    }

    /// The first `count` values, zeros behind them.
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        let mut lanes = [0.0_f32; LANES];
        // SAFETY: the caller vouches for `count` elements; the array has the lanes.
        unsafe {
            std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), count.min(LANES));
            Self::load(lanes.as_ptr())
        }
    }
}

/// What is added to the value of an eight-bit weight where it is stored.
pub const STORED_ZERO: i32 = 128;
