//! Plain arrays: what every machine can do.
#![expect(unsafe_code, reason = "implements a trait of unsafe methods; see its contract")]
#![expect(clippy::undocumented_unsafe_blocks, reason = "one contract for all methods, stated above the impl")]

use half::{bf16, f16};

use super::vector::{LANES, LINE, Vector};

/// Sixteen f32 in an array.
#[derive(Clone, Copy)]
pub struct Generic([f32; LANES]);

impl Generic {
    #[inline(always)]
    fn zip(self, other: Self, op: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| op(self.0[i], other.0[i])))
    }
}

// SAFETY (all): pointers have the lanes, by the trait's contract; nothing else is unsafe here.
impl Vector for Generic {
    type Ints = [i32; LANES];
    type Line = [u8; LINE];

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        let halves = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(halves.map(|bits| f16::from_bits(bits).to_f32()))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(factor.0[i], addend.0[i])))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    unsafe fn exp2_whole(self) -> Self {
        Self(self.0.map(|whole| f32::from_bits(((whole as i32 + 127) << 23) as u32)))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut lanes = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
        }
        lanes[0]
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        let mut lanes = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = if lanes[i] > lanes[i + half] { lanes[i] } else { lanes[i + half] };
            }
        }
        lanes[0]
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut u8) {
        let bits = self.0.map(|value| bf16::from_f32(value).to_bits());
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn magnitude(pair: [Self; 2]) -> f32 {
        // as bits, what is not a number is larger than infinity
        let bits = pair.iter().flat_map(|lanes| lanes.0).map(|value| value.to_bits() & 0x7fff_ffff);
        f32::from_bits(bits.fold(0, u32::max))
    }
    #[inline(always)]
    unsafe fn store_bytes(pair: [Self; 2], to: *mut u8) -> i32 {
        let bytes = pair.map(|lanes| lanes.0.map(|value| value as i8));
        unsafe { to.cast::<[[i8; LANES]; 2]>().write_unaligned(bytes) };
        bytes.as_flattened().iter().map(|&byte| i32::from(byte)).sum()
    }

    #[inline(always)]
    unsafe fn line(from: *const u8) -> Self::Line {
        unsafe { from.cast::<[u8; LINE]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn weights(from: *const u8) -> Self::Line {
        unsafe { Self::line(from) }
    }
    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [Self::Line; 2] {
        let line = unsafe { Self::line(from) };
        [line.map(|byte| byte & 15), line.map(|byte| byte >> 4)]
    }
    #[inline(always)]
    unsafe fn spread(from: *const u8) -> Self::Line {
        let bytes = unsafe { from.cast::<[u8; 4]>().read_unaligned() };
        std::array::from_fn(|i| bytes[i % 4])
    }
    #[inline(always)]
    unsafe fn pairs(line: Self::Line) -> [Self; 2] {
        let half = |lane: usize, at: usize| {
            f32::from_bits(
                u32::from(u16::from_le_bytes([line[4 * lane + at], line[4 * lane + at + 1]])) << 16,
            )
        };
        [0, 2].map(|at| Self(std::array::from_fn(|lane| half(lane, at))))
    }
    #[inline(always)]
    unsafe fn quads(line: Self::Line) -> [Self; 4] {
        [0, 1, 2, 3].map(|at| Self(std::array::from_fn(|lane| f32::from(line[4 * lane + at] as i8))))
    }
    #[inline(always)]
    unsafe fn ints(value: i32) -> Self::Ints {
        [value; LANES]
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: Self::Ints, weights: Self::Line, x: Self::Line) -> Self::Ints {
        let product = |i: usize| i32::from(weights[i]) * i32::from(x[i] as i8);
        std::array::from_fn(|lane| sum[lane] + (4 * lane..4 * lane + 4).map(product).sum::<i32>())
    }
    #[inline(always)]
    unsafe fn from_ints(ints: Self::Ints) -> Self {
        Self(ints.map(|value| value as f32))
    }
}

super::kernels::kernels!(Generic, 12, KERNELS);
