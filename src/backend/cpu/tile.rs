//! The inner products that everything stands on: 64 packed weight rows times a few rows of `x`.
//!
//! Lanes are weight rows. A line of a block gives 16 rows their next one, two or four columns; the columns of `x` are
//! spread over the lanes. So each (weight row, x row) pair has one accumulator that runs over the columns in order,
//! nothing is added across lanes, and a result does not depend on how many rows of `x` share the tile (**batch
//! invariance**). Weights and the KV cache are packed alike, so attention is made of the same tiles.
//!
//! Tried, in GFLOP/s on both of two virtual CPUs of an AMD Zen 5 (2026-11-23), 504 rows of x, bf16 with `vdpbf16ps`,
//! for (out, in) columns of (4864, 896) and (896, 4864):
//! - weights as stored, row-major, lanes along the columns, 4 x 6 accumulators that are added across at the end: 709, 495
//! - packed, 4 blocks x 6 rows (this): 809, 815
//! - packed, 2 blocks x 12 rows: 784, 692
//! - packed, 4 x 6, columns cut into pieces of 256 so that weights stay in the first-level cache: 804, 811; worth 10 %
//!   only from 14336 columns on, so it is not done
//!
//! So weights are packed once, at loading. int8 in GOP/s, groups of 32: 4 blocks x 3 rows 1,260 and 1,320 (Q4), 2 x 6
//! 1,210 and 1,300.
#![expect(unsafe_code, reason = "kernels on raw pointers; the job's maker vouches for sizes")]
#![expect(clippy::needless_range_loop, reason = "tile indices run over several arrays at once")]

use super::format::GROUP;
use super::vector::{LANES, LINE, STORED_ZERO, Vector};
use crate::backend::Buf;
use crate::backend::packed::RECORD;

/// Blocks of 16 rows in a tile.
pub const BLOCKS: usize = 4;

/// Weight rows of a tile.
pub const ROWS: usize = BLOCKS * LANES;

/// Rows of x that one call takes at most.
pub const MOST: usize = 16;

const _: () = assert!(MOST <= Buf::SPARE_ROWS, "AMX reads that many rows from any row on");

/// `out[t][n] (+)= sum_k x[t][k] * weights[n][k]` for 64 rows n.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    /// Packed blocks of 16 rows.
    pub weights: [*const u8; BLOCKS],
    /// Their scales, f16, (groups, 16) each; for formats that have them.
    pub scales: [*const u8; BLOCKS],
    /// Columns; whole groups, for formats that have them.
    pub cols: usize,
    /// The first row of x, in the operand format that the kernel is for.
    pub x: *const u8,
    /// Bytes from a row of x to the next.
    pub x_stride: usize,
    /// Rows of x: at most [`MOST`].
    pub tokens: usize,
    /// Rows of x that met these weights in earlier calls.
    pub before: usize,
    /// What will be multiplied after these weights: it is asked for while they meet x, a block for each pass over
    /// them. None when they meet x only once: then they are themselves asked for a little ahead.
    pub ahead: Option<[*const u8; BLOCKS]>,
    /// (tokens, [`ROWS`]).
    pub out: *mut f32,
    /// Start from what is there, not from zero.
    pub add: bool,
}

/// How a format's lines are multiplied.
///
/// # Safety
/// Pointers have the columns that `cols` names; the instruction set is there.
pub trait Product<V: Vector> {
    /// Rows of x whose accumulators fit the registers beside those of the blocks: 3 or 6.
    const TOKENS: usize = 6;

    unsafe fn run<const R: usize, const T: usize>(rows: &Rows<R, T>, sums: &mut [[V; R]; T]);
}

/// Some rows of x and some blocks of a tile: one pass over these blocks.
#[derive(Clone, Copy, Debug)]
pub struct Rows<const R: usize, const T: usize> {
    cols: usize,
    weights: [*const u8; R],
    scales: [*const u8; R],
    x: [*const u8; T],
    ahead: *const u8,
    once: bool,
}

impl<const R: usize, const T: usize> Rows<R, T> {
    /// The lines at `offset` of each block, after asking for what comes later.
    #[inline(always)]
    unsafe fn lines<V: Vector>(&self, offset: usize) -> [*const u8; R] {
        let lines = self.weights.map(|block| block.wrapping_add(offset));
        // SAFETY: any address may be asked for.
        unsafe {
            if self.once {
                for line in lines {
                    V::prefetch(line.wrapping_add(AHEAD));
                }
            } else {
                V::prefetch_far(self.ahead.wrapping_add(offset));
            }
        }
        lines
    }
}

/// Bytes ahead of their use at which weights are asked for that meet x only once. Batch 1 at the 0.5B shape in tokens/s,
/// row-major weights, with and without: 41 and 33 (AMD Zen 5, 2 virtual CPUs, 2026-11-23).
const AHEAD: usize = 1024;

/// Computes a tile.
///
/// # Safety
/// The caller keeps the contract of [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn run<V: Vector, P: Product<V>>(tile: &Tile) {
    let mut token = 0;
    while token < tile.tokens {
        // SAFETY: the caller's contract; the rows taken are left.
        token += unsafe {
            match (tile.tokens - token, P::TOKENS) {
                (1, _) => rows::<V, P, 1>(tile, token),
                (2, _) => rows::<V, P, 2>(tile, token),
                (4, 3) => rows::<V, P, 2>(tile, token),
                (3 | 5, _) | (_, 3) => rows::<V, P, 3>(tile, token),
                // two rows have too few sums to hide the latency of adding: 8 is 4 and 4, not 6 and 2
                (4 | 7 | 8 | 11, _) => rows::<V, P, 4>(tile, token),
                _ => rows::<V, P, 6>(tile, token),
            }
        };
    }
}

/// `T` rows of x from `token` on; returns `T`.
#[inline(always)]
unsafe fn rows<V: Vector, P: Product<V>, const T: usize>(tile: &Tile, token: usize) -> usize {
    // SAFETY: the caller's contract is ours.
    unsafe {
        if V::WIDE {
            blocks::<V, P, BLOCKS, T>(tile, token, 0);
        } else {
            for block in 0..BLOCKS {
                blocks::<V, P, 1, T>(tile, token, block);
            }
        }
    }
    T
}

#[inline(always)]
unsafe fn blocks<V: Vector, P: Product<V>, const R: usize, const T: usize>(
    tile: &Tile,
    token: usize,
    block: usize,
) {
    // SAFETY: the caller's contract is ours.
    unsafe {
        let x = std::array::from_fn(|t| tile.x.add((token + t) * tile.x_stride));
        let out = |t: usize, r: usize| tile.out.add((token + t) * ROWS + (block + r) * LANES);
        let mut sums = [[V::splat(0.0); R]; T];
        if tile.add {
            for t in 0..T {
                for r in 0..R {
                    sums[t][r] = V::load(out(t, r));
                }
            }
        }
        let pass = (tile.before + token) / P::TOKENS;
        let ahead = tile.ahead.and_then(|blocks| blocks.get(pass).copied());
        let rows = Rows {
            cols: tile.cols,
            weights: std::array::from_fn(|r| tile.weights[block + r]),
            scales: std::array::from_fn(|r| tile.scales[block + r]),
            x,
            // where nothing is to be asked for, it is what is there already
            ahead: ahead.unwrap_or(tile.weights[block]),
            once: tile.ahead.is_none(),
        };
        P::run::<R, T>(&rows, &mut sums);
        for t in 0..T {
            for r in 0..R {
                sums[t][r].store(out(t, r));
            }
        }
    }
}

/// Formats that are widened to f32: `COLS` columns in each `BYTES` of a block.
pub trait Widen<V: Vector> {
    const COLS: usize;
    const BYTES: usize;
    /// One vector for each column; the rest is not looked at.
    ///
    /// # Safety
    /// The caller keeps the contract of [`Vector`].
    unsafe fn widen(from: *const u8) -> [V; 4];
}

/// f32.
#[derive(Debug)]
pub struct F32;
/// f16.
#[derive(Debug)]
pub struct F16;
/// bf16.
#[derive(Debug)]
pub struct Bf16;
/// Signed bytes without scales: the int8 cache.
#[derive(Debug)]
pub struct Bytes;

impl<V: Vector> Widen<V> for F32 {
    const COLS: usize = 1;
    const BYTES: usize = LINE;
    #[inline(always)]
    unsafe fn widen(from: *const u8) -> [V; 4] {
        // SAFETY: the caller's contract is ours.
        [unsafe { V::load(from.cast()) }; 4]
    }
}

impl<V: Vector> Widen<V> for F16 {
    const COLS: usize = 1;
    const BYTES: usize = LINE / 2;
    #[inline(always)]
    unsafe fn widen(from: *const u8) -> [V; 4] {
        // SAFETY: the caller's contract is ours.
        [unsafe { V::load_f16(from) }; 4]
    }
}

impl<V: Vector> Widen<V> for Bf16 {
    const COLS: usize = 2;
    const BYTES: usize = LINE;
    #[inline(always)]
    unsafe fn widen(from: *const u8) -> [V; 4] {
        // SAFETY: the caller's contract is ours.
        let [even, odd] = unsafe { V::pairs(V::line(from)) };
        [even, odd, odd, odd]
    }
}

impl<V: Vector> Widen<V> for Bytes {
    const COLS: usize = 4;
    const BYTES: usize = LINE;
    #[inline(always)]
    unsafe fn widen(from: *const u8) -> [V; 4] {
        // SAFETY: the caller's contract is ours.
        unsafe { V::quads(V::line(from)) }
    }
}

/// Weights that are widened, and f32 x.
#[derive(Debug)]
pub struct Widened<W>(std::marker::PhantomData<W>);

impl<V: Vector, W: Widen<V>> Product<V> for Widened<W> {
    #[inline(always)]
    unsafe fn run<const R: usize, const T: usize>(rows: &Rows<R, T>, sums: &mut [[V; R]; T]) {
        for line in 0..rows.cols / W::COLS {
            // SAFETY: the caller's contract: the blocks and x have `cols` columns.
            unsafe {
                let at = rows.lines::<V>(line * W::BYTES);
                let mut lines = [[V::splat(0.0); 4]; R];
                for r in 0..R {
                    lines[r] = W::widen(at[r]);
                }
                for t in 0..T {
                    for col in 0..W::COLS {
                        let value = V::splat(*rows.x[t].cast::<f32>().add(line * W::COLS + col));
                        for r in 0..R {
                            sums[t][r] = lines[r][col].fma(value, sums[t][r]);
                        }
                    }
                }
            }
        }
    }
}

/// bf16 weights and bf16 x, multiplied in pairs.
#[derive(Debug)]
pub struct Bf16Pairs;

impl<V: Vector> Product<V> for Bf16Pairs {
    #[inline(always)]
    unsafe fn run<const R: usize, const T: usize>(rows: &Rows<R, T>, sums: &mut [[V; R]; T]) {
        for line in 0..rows.cols / 2 {
            // SAFETY: the caller's contract: the blocks and x have `cols` columns.
            unsafe {
                let at = rows.lines::<V>(line * LINE);
                let mut lines = [V::spread(at[0]); R];
                for r in 0..R {
                    lines[r] = V::line(at[r]);
                }
                for t in 0..T {
                    let pair = V::spread(rows.x[t].add(4 * line));
                    for r in 0..R {
                        sums[t][r] = sums[t][r].dot_pairs(lines[r], pair);
                    }
                }
            }
        }
    }
}

/// Eight-bit (or, `FOUR`, four-bit) weights in groups with scales, and int8 records of x.
///
/// Products within a group are exact integers; groups are added up in order, in f32.
#[derive(Debug)]
pub struct Quantized<const FOUR: bool>;

impl<V: Vector, const FOUR: bool> Product<V> for Quantized<FOUR> {
    const TOKENS: usize = 3;

    #[inline(always)]
    unsafe fn run<const R: usize, const T: usize>(rows: &Rows<R, T>, sums: &mut [[V; R]; T]) {
        let zero = match FOUR {
            true => STORED_ZERO / 16, // a nibble is the value plus eight, on every instruction set
            false => V::ZERO,
        };
        let halves = if FOUR { 2 } else { 1 };
        let group_lines = GROUP / 4 / halves;
        for group in 0..rows.cols / GROUP {
            // SAFETY: the caller's contract: the blocks and x have that many groups.
            unsafe {
                let mut x = rows.x;
                let mut ints = [[V::ints(0); R]; T];
                for t in 0..T {
                    x[t] = x[t].add(group * RECORD);
                    ints[t] = [V::ints(-zero * x[t].add(4).cast::<i32>().read_unaligned()); R];
                }
                // One line of bytes at a time, or the two of a line of nibbles: more would not fit the registers.
                for line in 0..group_lines {
                    let at = rows.lines::<V>((group * group_lines + line) * LINE);
                    let mut lines = [[V::spread(x[0]); 2]; R];
                    for r in 0..R {
                        if FOUR {
                            lines[r] = V::nibbles(at[r]);
                        } else {
                            lines[r][0] = V::weights(at[r]);
                        }
                    }
                    for half in 0..halves {
                        for t in 0..T {
                            let quad = V::spread(x[t].add(8 + 4 * (halves * line + half)));
                            for r in 0..R {
                                ints[t][r] = V::dot_bytes(ints[t][r], lines[r][half], quad);
                            }
                        }
                    }
                }
                for r in 0..R {
                    let scale = V::load_f16(rows.scales[r].add(group * 2 * LANES));
                    for t in 0..T {
                        let both = scale.mul(V::splat(x[t].cast::<f32>().read_unaligned()));
                        sums[t][r] = V::from_ints(ints[t][r]).fma(both, sums[t][r]);
                    }
                }
            }
        }
    }
}
