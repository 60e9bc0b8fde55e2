//! Matrix products with weights in f32, f16 or bf16 and activations in f32.
//!
//! Each (weight row, token) pair has one accumulator of 16 lanes that runs over the columns in order, whatever the
//! tile: so a row's result does not depend on how many tokens share the tile (batch invariance), nor on threads.
//!
//! Weights are widened in registers. A panel of weight rows that fits the second-level cache meets all tokens
//! before the next panel is read: memory gives each weight once per step, whatever the batch.
#![expect(unsafe_code, reason = "kernels on raw pointers; the job's maker vouches for sizes")]
#![expect(clippy::needless_range_loop, reason = "tile indices run over several arrays at once")]

use super::team::Part;
use super::vector::{Bf16, Element, F16, F32, LANES, Vector};
use crate::weights::Dtype;

/// Weight bytes that meet all tokens while they stay in the second-level cache.
const PANEL_BYTES: usize = 192 * 1024;

/// How many rows ahead weights are asked for when a single token streams them. Batch 1 in tokens/s, with and without,
/// medians of four runs in turn (AMD Zen 5, 2 vCPUs, 2026-11-23): 0.5B shape 41 and 33, 1B shape 17.2 and 14.3.
const PREFETCH_ROWS: usize = 8;

/// `out[t][n] = sum_k x[t][k] * weight[n][k] (+ bias[n]) (+ out[t][n])`.
#[derive(Clone, Copy, Debug)]
pub struct LinearJob {
    pub weight: *const u8,
    pub dtype: Dtype,
    /// Weight rows: output columns.
    pub outs: usize,
    /// Weight columns: input columns.
    pub ins: usize,
    pub x: *const f32,
    pub tokens: usize,
    pub bias: Option<*const f32>,
    pub out: *mut f32,
    pub accumulate: bool,
}

// SAFETY: the parts of a job write disjoint columns of `out`; the rest is read.
unsafe impl Sync for LinearJob {}

/// Computes this part's columns of the output.
///
/// # Safety
/// As [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn run<V: Vector, const R: usize, const T: usize, const R1: usize>(job: &LinearJob, part: Part) {
    // SAFETY: the caller's contract is ours.
    unsafe {
        match job.dtype {
            Dtype::F32 => columns::<V, F32, R, T, R1>(job, part),
            Dtype::F16 => columns::<V, F16, R, T, R1>(job, part),
            Dtype::Bf16 => columns::<V, Bf16, R, T, R1>(job, part),
        }
    }
}

#[inline(always)]
unsafe fn columns<V: Vector, E: Element, const R: usize, const T: usize, const R1: usize>(
    job: &LinearJob,
    part: Part,
) {
    let mine = part.range(job.outs, 16);
    let panel = (PANEL_BYTES / (job.ins * E::BYTES).max(1)).max(16).next_multiple_of(16);
    let mut start = mine.start;
    while start < mine.end {
        let end = (start + panel).min(mine.end);
        let mut token = 0;
        while token < job.tokens {
            let left = job.tokens - token;
            // SAFETY: tokens and rows stay inside the job's.
            token += unsafe {
                match left {
                    1 => rows::<V, E, R1, 1>(job, token, start, end),
                    _ if left >= T => rows::<V, E, R, T>(job, token, start, end),
                    _ if left >= 4 => rows::<V, E, R, 4>(job, token, start, end),
                    _ => rows::<V, E, R, 2>(job, token, start, end),
                }
            };
        }
        start = end;
    }
}

/// All weight rows `start..end` for `T` tokens; returns `T`.
#[inline(always)]
unsafe fn rows<V: Vector, E: Element, const R: usize, const T: usize>(
    job: &LinearJob,
    token: usize,
    start: usize,
    end: usize,
) -> usize {
    let mut row = start;
    // SAFETY: the caller's contract is ours.
    unsafe {
        while row + R <= end {
            tile::<V, E, R, T>(job, token, row);
            row += R;
        }
        while row < end {
            tile::<V, E, 1, T>(job, token, row);
            row += 1;
        }
    }
    T
}

/// `R` weight rows times `T` tokens, accumulated in registers over all columns.
#[inline(always)]
unsafe fn tile<V: Vector, E: Element, const R: usize, const T: usize>(
    job: &LinearJob,
    token: usize,
    row: usize,
) {
    // SAFETY: rows `row..row + R` and tokens `token..token + T` are in the job; loads stay inside `ins` columns.
    unsafe {
        let row_bytes = job.ins * E::BYTES;
        let weight = job.weight.add(row * row_bytes);
        let x = job.x.add(token * job.ins);
        let mut sums = [[V::splat(0.0); T]; R];
        let whole = job.ins / LANES * LANES;
        let mut k = 0;
        while k < whole {
            let mut inputs = [V::splat(0.0); T];
            for t in 0..T {
                inputs[t] = V::load(x.add(t * job.ins + k));
            }
            for r in 0..R {
                let at = weight.add(r * row_bytes + k * E::BYTES);
                if T == 1 {
                    V::prefetch(at.wrapping_add(PREFETCH_ROWS * row_bytes));
                }
                let weights: V = E::load(at);
                for t in 0..T {
                    sums[r][t] = weights.fma(inputs[t], sums[r][t]);
                }
            }
            k += LANES;
        }
        let rest = job.ins - whole;
        if rest > 0 {
            for r in 0..R {
                let weights = V::load_part::<E>(weight.add(r * row_bytes + whole * E::BYTES), rest);
                for t in 0..T {
                    let inputs = V::load_part::<F32>(x.add(t * job.ins + whole).cast(), rest);
                    sums[r][t] = weights.fma(inputs, sums[r][t]);
                }
            }
        }
        for r in 0..R {
            let bias = job.bias.map_or(0.0, |bias| *bias.add(row + r));
            for t in 0..T {
                let out = job.out.add((token + t) * job.outs + row + r);
                let sum = sums[r][t].sum() + bias;
                *out = if job.accumulate { *out + sum } else { sum };
            }
        }
    }
}
