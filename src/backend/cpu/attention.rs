//! Causal softmax attention over the paged cache, for prefill and decode alike.
//!
//! One item of work is a kv head and a tile of query rows (tokens times the heads that share the kv head). Blocks of
//! 16 positions are widened once per tile; scores, running maximum, sum and mixed values follow the online softmax
//! (Milakov and Gimelshein 2018). Blocks are counted from position 0, so a row meets the same blocks in the same order
//! whatever else is in its tile, its chunk or its batch.
#![expect(unsafe_code, reason = "kernels on raw pointers; the job's maker vouches for sizes")]

use super::rows::widen;
use super::team::Part;
use super::vector::{Bf16, Element, F16, F32, LANES, Vector};
use crate::backend::{BLOCK, Kv, Side, Span};
use crate::weights::Dtype;

const _: () = assert!(BLOCK == LANES, "the scores of a block are one vector");

/// Query rows of a tile, at least; one token's group of heads may be larger.
const TILE_ROWS: usize = 16;

/// The whole of an attention call.
#[derive(Clone, Copy, Debug)]
pub struct AttentionJob<'a> {
    pub spans: &'a [Span],
    pub blocks: &'a [u32],
    pub kv: Kv,
    pub cache: *const u8,
    pub layer: usize,
    pub heads: usize,
    pub window: Option<usize>,
    pub scale: f32,
    pub q: *const f32,
    pub out: *mut f32,
    /// [`scratch_len`] values for each part.
    pub scratch: *mut f32,
}

// SAFETY: the parts write disjoint rows and heads of `out` and their own scratch; the rest is read.
unsafe impl Sync for AttentionJob<'_> {}

/// Values of scratch that one part needs.
pub fn scratch_len(heads: usize, kv_heads: usize, head_dim: usize) -> usize {
    let rows = tile_tokens(heads / kv_heads) * (heads / kv_heads);
    (2 * rows + 2 * BLOCK) * head_dim.next_multiple_of(LANES) + 2 * rows
}

fn tile_tokens(group: usize) -> usize {
    (TILE_ROWS / group).max(1)
}

/// Computes this part's items: every `count`-th one.
///
/// # Safety
/// As [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn run<V: Vector>(job: &AttentionJob<'_>, part: Part) {
    let tokens = tile_tokens(job.heads / job.kv.kv_heads);
    let mut item = 0;
    for span in job.spans {
        for first in (0..span.rows).step_by(tokens) {
            for head in 0..job.kv.kv_heads {
                if item % part.count == part.index {
                    let tile = Tile { first, tokens: tokens.min(span.rows - first), head };
                    // SAFETY: the caller's contract is ours.
                    unsafe {
                        match job.kv.dtype {
                            Dtype::F32 => attend::<V, F32>(job, part, span, tile),
                            Dtype::F16 => attend::<V, F16>(job, part, span, tile),
                            Dtype::Bf16 => attend::<V, Bf16>(job, part, span, tile),
                        }
                    }
                }
                item += 1;
            }
        }
    }
}

/// Tokens `first..first + tokens` of a span, for one kv head.
#[derive(Clone, Copy)]
struct Tile {
    first: usize,
    tokens: usize,
    head: usize,
}

/// A part's scratch, carved up. `dim` values per row, padded with zeros to whole vectors.
struct Scratch {
    dim: usize,
    q: *mut f32,
    mixed: *mut f32,
    k: *mut f32,
    v: *mut f32,
    max: *mut f32,
    sum: *mut f32,
}

impl Scratch {
    /// # Safety
    /// The job's scratch has [`scratch_len`] values for each part.
    unsafe fn carve(job: &AttentionJob<'_>, part: Part) -> Self {
        let (group, dim) = (job.heads / job.kv.kv_heads, job.kv.head_dim.next_multiple_of(LANES));
        let rows = tile_tokens(group) * group;
        let each = scratch_len(job.heads, job.kv.kv_heads, job.kv.head_dim);
        // SAFETY: the pieces add up to `scratch_len`.
        unsafe {
            let q = job.scratch.add(part.index * each);
            let mixed = q.add(rows * dim);
            let k = mixed.add(rows * dim);
            let v = k.add(BLOCK * dim);
            let max = v.add(BLOCK * dim);
            Self { dim, q, mixed, k, v, max, sum: max.add(rows) }
        }
    }
}

#[inline(always)]
unsafe fn attend<V: Vector, E: Element>(job: &AttentionJob<'_>, part: Part, span: &Span, tile: Tile) {
    let (dim, group) = (job.kv.head_dim, job.heads / job.kv.kv_heads);
    let width = job.heads * dim;
    let rows = tile.tokens * group;
    // SAFETY: rows of the span, heads of the kv head, scratch of this part: all inside the job's buffers.
    unsafe {
        let scratch = Scratch::carve(job, part);
        let place = |row: usize| {
            (span.row + tile.first + row / group) * width + (tile.head * group + row % group) * dim
        };
        std::ptr::write_bytes(scratch.q, 0, rows * scratch.dim);
        std::ptr::write_bytes(scratch.mixed, 0, rows * scratch.dim);
        std::ptr::write_bytes(scratch.k, 0, 2 * BLOCK * scratch.dim);
        for row in 0..rows {
            std::ptr::copy_nonoverlapping(job.q.add(place(row)), scratch.q.add(row * scratch.dim), dim);
            *scratch.max.add(row) = f32::NEG_INFINITY;
            *scratch.sum.add(row) = 0.0;
        }
        let position = span.position + tile.first;
        let last = position + tile.tokens - 1;
        let look_back =
            |position: usize| job.window.map_or(0, |window| (position + 1).saturating_sub(window));
        for block in look_back(position) / BLOCK..=last / BLOCK {
            let base = block * BLOCK;
            let filled = (last + 1 - base).min(BLOCK);
            load_block::<V, E>(job, &scratch, job.blocks[span.table + block], tile.head, filled);
            for row in 0..rows {
                let at = position + row / group;
                let from = look_back(at).max(base) - base;
                let to = (at + 1).saturating_sub(base).min(BLOCK);
                if from < to {
                    online_softmax::<V>(&scratch, row, from, to, job.scale);
                }
            }
        }
        for row in 0..rows {
            let factor = 1.0 / *scratch.sum.add(row);
            for i in 0..dim {
                *job.out.add(place(row) + i) = *scratch.mixed.add(row * scratch.dim + i) * factor;
            }
        }
    }
}

/// Widens the first `filled` keys and values of a block.
#[inline(always)]
unsafe fn load_block<V: Vector, E: Element>(
    job: &AttentionJob<'_>,
    scratch: &Scratch,
    block: u32,
    head: usize,
    filled: usize,
) {
    let dim = job.kv.head_dim;
    for (side, to) in [(Side::K, scratch.k), (Side::V, scratch.v)] {
        let at = job.kv.at(block, job.layer, side, head);
        for i in 0..filled {
            // SAFETY: the caller's contract: the block is in the cache, the scratch holds BLOCK rows.
            unsafe { widen::<V, E>(job.cache.add((at + i * dim) * E::BYTES), to.add(i * scratch.dim), dim) };
        }
    }
}

/// Takes positions `from..to` of the loaded block into one query row's running softmax.
#[inline(always)]
unsafe fn online_softmax<V: Vector>(scratch: &Scratch, row: usize, from: usize, to: usize, scale: f32) {
    let dim = scratch.dim;
    // SAFETY: the scratch has the row, and BLOCK keys and values.
    unsafe {
        let (q, mixed) = (scratch.q.add(row * dim), scratch.mixed.add(row * dim));
        let mut scores = [f32::NEG_INFINITY; LANES];
        for quad in (from / 4 * 4..to).step_by(4) {
            // Four keys at once hide the latency of the additions; rows that are not filled are masked below.
            let mut sums = [V::splat(0.0); 4];
            for i in (0..dim).step_by(LANES) {
                let query = V::load(q.add(i));
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = query.fma(V::load(scratch.k.add((quad + j) * dim + i)), *sum);
                }
            }
            for (j, sum) in sums.iter().enumerate() {
                if (from..to).contains(&(quad + j)) {
                    scores[quad + j] = sum.sum() * scale;
                }
            }
        }
        let (max, sum) = (scratch.max.add(row), scratch.sum.add(row));
        let new_max = scores[from..to].iter().fold(*max, |max, &score| max.max(score));
        let weights = V::load(scores.as_ptr()).sub(V::splat(new_max)).exp();
        let correction = V::splat(*max - new_max).exp();
        let mut shrink = [0.0; LANES];
        correction.store(shrink.as_mut_ptr());
        *sum = *sum * shrink[0] + weights.sum();
        *max = new_max;
        weights.store(scores.as_mut_ptr());
        for i in (0..dim).step_by(LANES) {
            let mut value = V::load(mixed.add(i)).mul(correction);
            for (j, &weight) in scores.iter().enumerate().take(to).skip(from) {
                value = V::splat(weight).fma(V::load(scratch.v.add(j * dim + i)), value);
            }
            value.store(mixed.add(i));
        }
    }
}
