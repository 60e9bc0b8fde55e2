//! Softmax attention over the paged cache, for prefill, decode and encoders alike.
//!
//! One item of work is a kv head and a few query rows (tokens times the heads that share the kv head). The cache is
//! packed as weights are: a block's keys are 64 rows over the dimensions of a head, its values are rows for the
//! dimensions over 64 positions. So scores and the mix of values are tiles, in the cache's own type, and nothing is
//! unpacked. Scores, running maximum, sum and mixed values follow the online softmax (Milakov and Gimelshein 2018;
//! Dao et al. 2022). Blocks are counted from position 0, and a row takes no part in a block that it may not see: so it
//! does the same whatever else is in its tile, its chunk or its batch.
#![expect(unsafe_code, reason = "kernels on raw pointers; the job's maker vouches for sizes")]

use super::activation::tanh;
use super::format::GROUP;
use super::kernels::TileFn;
use super::operand::write_group;
use super::team::Part;
use super::tile::{BLOCKS, MOST, ROWS, Tile};
use super::vector::{LANES, Vector};
use crate::backend::packed::PackedKv;
use crate::backend::{Attention, BLOCK, KvType, OperandType, Side, Span};

const _: () = assert!(BLOCK == ROWS, "the scores of a block are one tile");

/// The whole of an attention call.
#[derive(Clone, Copy, Debug)]
pub struct AttentionJob<'a> {
    pub spans: &'a [Span],
    pub blocks: &'a [u32],
    pub kv: PackedKv,
    pub cache: *const u8,
    pub shape: Attention,
    /// One score for each head.
    pub sinks: Option<&'a [f32]>,
    /// (heads, 2 * reach): see [`crate::backend::AttentionBias`].
    pub relative_bias: Option<&'a [f32]>,
    pub q: *const f32,
    /// Written as this.
    pub operand: OperandType,
    pub out: *mut u8,
    pub out_stride: usize,
    /// The tile for the cache, and what its other side has to be.
    pub tile: TileFn,
    pub tile_operand: OperandType,
    pub at_once: usize,
    /// [`scratch_bytes`] for each part.
    pub scratch: *mut u8,
}

// SAFETY: the parts write disjoint rows and heads of `out` and their own scratch; the rest is read.
unsafe impl Sync for AttentionJob<'_> {}

/// Whether rows of values this long can be written as `operand` at once: a group of int8 must not span two heads.
pub fn writes(operand: OperandType, value_dim: usize) -> bool {
    operand != OperandType::Bytes || value_dim.is_multiple_of(GROUP)
}

/// Bytes of scratch that one part needs.
pub fn scratch_bytes(kv: &PackedKv) -> usize {
    let planes = kv.value_dim.div_ceil(ROWS);
    // tiles may read MOST rows from any row on
    let operands = 2 * MOST * (OperandType::F32.row_bytes(kv.head_dim) + OperandType::F32.row_bytes(BLOCK));
    operands + MOST * (ROWS + planes * ROWS + 1 + LANES) * size_of::<f32>()
}

/// Computes this part's items: every `count`-th one.
///
/// # Safety
/// The caller keeps the contract of [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn run<V: Vector>(job: &AttentionJob<'_>, part: Part) {
    let group = job.shape.heads / job.kv.kv_heads;
    // SAFETY: the caller's contract is ours.
    unsafe {
        let scratch = Scratch::carve(job, part);
        let mut item = 0;
        for span in job.spans {
            for head in 0..job.kv.kv_heads {
                // tiles of one height, as far as that goes: nobody waits for a high one at the end
                let all = span.rows * group;
                let height = all.div_ceil(all.div_ceil(job.at_once));
                for first in (0..all).step_by(height) {
                    if item % part.count == part.index {
                        let rows = height.min(all - first);
                        attend::<V>(job, &scratch, span, Rows { first, rows, head, group });
                    }
                    item += 1;
                }
            }
        }
    }
}

/// Query rows `first..first + rows` of a span for one kv head; row i is token i / group, head i % group.
#[derive(Clone, Copy)]
struct Rows {
    first: usize,
    rows: usize,
    head: usize,
    group: usize,
}

/// A part's scratch, carved up.
struct Scratch {
    /// (2 * MOST, head_dim) operands.
    q: *mut u8,
    q_stride: usize,
    /// (2 * MOST, BLOCK) operands: the weights of a block's positions.
    p: *mut u8,
    p_stride: usize,
    /// (MOST, BLOCK)
    scores: *mut f32,
    /// (planes, MOST, ROWS): the values mixed so far, not yet divided.
    mixed: *mut f32,
    planes: usize,
    max: *mut f32,
    /// (MOST, LANES): added across only at the end.
    sum: *mut f32,
}

impl Scratch {
    /// # Safety
    /// The job's scratch has [`scratch_bytes`] for each part.
    unsafe fn carve(job: &AttentionJob<'_>, part: Part) -> Self {
        let dim = job.kv.head_dim;
        let planes = job.kv.value_dim.div_ceil(ROWS);
        // SAFETY: the pieces add up to `scratch_bytes`.
        unsafe {
            let q = job.scratch.add(part.index * scratch_bytes(&job.kv));
            let p = q.add(2 * MOST * OperandType::F32.row_bytes(dim));
            let scores = p.add(2 * MOST * OperandType::F32.row_bytes(BLOCK)).cast::<f32>();
            let mixed = scores.add(MOST * ROWS);
            let max = mixed.add(planes * MOST * ROWS);
            let q_stride = job.tile_operand.row_bytes(dim);
            let p_stride = job.tile_operand.row_bytes(BLOCK);
            Self { q, q_stride, p, p_stride, scores, mixed, planes, max, sum: max.add(MOST) }
        }
    }
}

#[inline(always)]
unsafe fn attend<V: Vector>(job: &AttentionJob<'_>, scratch: &Scratch, span: &Span, tile: Rows) {
    // the positions that each row may see, worked out once: divisions would cost as much as the tiles
    let mut sees = [(0, 0); MOST];
    for (row, sees) in sees.iter_mut().enumerate().take(tile.rows) {
        let position = span.position + (tile.first + row) / tile.group;
        let (first, last) = job.shape.sees(span, position);
        *sees = (first, last + 1);
    }
    let sees = &sees[..tile.rows];
    let (first, last) = (sees[0].0 / BLOCK, (sees[tile.rows - 1].1 - 1) / BLOCK);
    // SAFETY: rows of the span, heads of the kv head, scratch of this part: all inside the job's buffers.
    unsafe {
        start::<V>(job, scratch, span, tile);
        for block in first..=last {
            let base = block * BLOCK;
            // later rows see later positions: those that see some of this block follow each other
            let mut rows = 0..tile.rows;
            while rows.start < rows.end && sees[rows.start].1 <= base {
                rows.start += 1;
            }
            while rows.start < rows.end && sees[rows.end - 1].0 >= base + BLOCK {
                rows.end -= 1;
            }
            if rows.is_empty() {
                continue;
            }
            let block = job.blocks[span.table + block];
            let planes = [Side::K, Side::V].map(|side| job.kv.plane(block, job.shape.layer, side, tile.head));
            scores(job, scratch, planes[0], &rows);
            for row in rows.clone() {
                let (from, to) = sees[row];
                let seen = from.max(base) - base..(to - base).min(BLOCK);
                let relative_bias = job.relative_bias.map(|relative_bias| {
                    let reach = relative_bias.len() / job.shape.heads / 2;
                    let head = tile.head * tile.group + (tile.first + row) % tile.group;
                    let position = span.position + (tile.first + row) / tile.group;
                    relative_bias.as_ptr().add((2 * head + 1) * reach + base - position)
                });
                let planes = planes.map(|plane| job.cache.add(plane));
                online_softmax::<V>(job, scratch, row, seen, relative_bias, planes);
            }
            mix(job, scratch, planes[1], &rows);
        }
        for row in 0..tile.rows {
            finish::<V>(job, scratch, span, tile, row);
        }
    }
}

/// Queries as operands; nothing mixed yet.
#[inline(always)]
unsafe fn start<V: Vector>(job: &AttentionJob<'_>, scratch: &Scratch, span: &Span, tile: Rows) {
    let dim = job.kv.head_dim;
    // SAFETY: as in `attend`.
    unsafe {
        std::ptr::write_bytes(scratch.mixed, 0, scratch.planes * MOST * ROWS);
        for row in 0..tile.rows {
            let (token, head) = ((tile.first + row) / tile.group, (tile.first + row) % tile.group);
            let head = tile.head * tile.group + head;
            let from = job.q.add(((span.row + token) * job.shape.heads + head) * dim);
            for group in 0..dim.div_ceil(GROUP) {
                let col = group * GROUP;
                let pair = [V::load_from(from, col, dim), V::load_from(from, col + LANES, dim)];
                write_group(job.tile_operand, scratch.q.add(row * scratch.q_stride), group, pair);
            }
            V::splat(0.0).store(scratch.sum.add(row * LANES));
            *scratch.max.add(row) = match job.sinks {
                None => f32::NEG_INFINITY,
                // as if a position with this score and no value had been seen
                Some(sinks) => {
                    *scratch.sum.add(row * LANES) = 1.0;
                    sinks[head] * std::f32::consts::LOG2_E
                }
            };
        }
    }
}

/// `scores[row][position] = q[row] * k[position]` for a block.
#[inline(always)]
unsafe fn scores(job: &AttentionJob<'_>, scratch: &Scratch, keys: usize, rows: &std::ops::Range<usize>) {
    let cols = job.kv.padded_dim(Side::K);
    // SAFETY: the plane is in the cache: four blocks of 16 keys.
    unsafe {
        let weights = std::array::from_fn(|i| job.cache.add(keys + i * LANES * cols * job.kv.cache.bytes()));
        (job.tile)(&Tile {
            weights,
            scales: weights,
            cols,
            x: scratch.q.add(rows.start * scratch.q_stride),
            x_stride: scratch.q_stride,
            tokens: rows.len(),
            before: 0,
            ahead: Some(weights),
            out: scratch.scores.add(rows.start * ROWS),
            add: false,
        });
    }
}

/// Takes positions `seen` of a block into one query row's running softmax.
#[inline(always)]
unsafe fn online_softmax<V: Vector>(
    job: &AttentionJob<'_>,
    scratch: &Scratch,
    row: usize,
    seen: std::ops::Range<usize>,
    relative_bias: Option<*const f32>,
    planes: [*const u8; 2],
) {
    // SAFETY: the scratch has the row.
    unsafe {
        let scores = scratch.scores.add(row * ROWS);
        let int8 = job.kv.cache == KvType::Int8;
        let scales = [
            planes[0].add(job.kv.scale(Side::K, 0)).cast::<f32>(),
            planes[1].add(job.kv.scale(Side::V, 0)).cast::<f32>(),
        ];
        // as powers of two, which are cheaper than those of e
        let scale = match job.shape.softcap {
            None => job.shape.scale * std::f32::consts::LOG2_E,
            Some(cap) => job.shape.scale / cap,
        };
        let mut values = [V::splat(0.0); BLOCKS];
        for (i, value) in values.iter_mut().enumerate() {
            *value = V::load(scores.add(i * LANES)).mul(V::splat(scale));
            if int8 {
                *value = value.mul(V::load(scales[0].add(i * LANES)));
            }
            if let Some(relative_bias) = relative_bias {
                *value =
                    V::load(relative_bias.add(i * LANES)).fma(V::splat(std::f32::consts::LOG2_E), *value);
            }
            if let Some(cap) = job.shape.softcap {
                *value = tanh(*value).mul(V::splat(cap * std::f32::consts::LOG2_E));
            }
        }
        if seen != (0..BLOCK) {
            let mut lanes = [0.0; BLOCK];
            for (i, value) in values.iter().enumerate() {
                value.store(lanes.as_mut_ptr().add(i * LANES));
            }
            lanes[..seen.start].fill(f32::NEG_INFINITY);
            lanes[seen.end..].fill(f32::NEG_INFINITY);
            for (i, value) in values.iter_mut().enumerate() {
                *value = V::load(lanes.as_ptr().add(i * LANES));
            }
        }
        let [a, b, c, d] = values;
        let (max, sum) = (scratch.max.add(row), scratch.sum.add(row * LANES));
        let largest = a.max(b).max(c.max(d)).max_lane();
        let new_max = if largest > *max { largest } else { *max };
        let shrink = if new_max == *max { 1.0 } else { V::splat(*max - new_max).exp2_falling().max_lane() };
        let mut weights = values;
        for weight in &mut weights {
            *weight = weight.sub(V::splat(new_max)).exp2_falling();
        }
        let [a, b, c, d] = weights;
        V::load(sum).fma(V::splat(shrink), a.add(b).add(c.add(d))).store(sum);
        *max = new_max;
        if int8 {
            for (i, weight) in weights.iter_mut().enumerate() {
                *weight = weight.mul(V::load(scales[1].add(i * LANES)));
            }
        }
        let p = scratch.p.add(row * scratch.p_stride);
        let [a, b, c, d] = weights;
        write_group(job.tile_operand, p, 0, [a, b]);
        write_group(job.tile_operand, p, 1, [c, d]);
        if shrink != 1.0 {
            for plane in 0..scratch.planes {
                let mixed = scratch.mixed.add((plane * MOST + row) * ROWS);
                for i in (0..ROWS).step_by(LANES) {
                    V::load(mixed.add(i)).mul(V::splat(shrink)).store(mixed.add(i));
                }
            }
        }
    }
}

/// `mixed[row] += p[row] * v` for a block.
#[inline(always)]
unsafe fn mix(job: &AttentionJob<'_>, scratch: &Scratch, values: usize, rows: &std::ops::Range<usize>) {
    let blocks = job.kv.padded_dim(Side::V) / LANES;
    for plane in 0..scratch.planes {
        // SAFETY: the plane is in the cache: a block of 16 for each 16 dimensions, over the positions.
        unsafe {
            let weights = std::array::from_fn(|i| {
                let block = (plane * BLOCKS + i).min(blocks - 1);
                job.cache.add(values + block * LANES * BLOCK * job.kv.cache.bytes())
            });
            (job.tile)(&Tile {
                weights,
                scales: weights,
                cols: BLOCK,
                x: scratch.p.add(rows.start * scratch.p_stride),
                x_stride: scratch.p_stride,
                tokens: rows.len(),
                before: 0,
                ahead: Some(weights),
                out: scratch.mixed.add((plane * MOST + rows.start) * ROWS),
                add: true,
            });
        }
    }
}

/// Divides by the sum and writes the row out.
#[inline(always)]
unsafe fn finish<V: Vector>(job: &AttentionJob<'_>, scratch: &Scratch, span: &Span, tile: Rows, row: usize) {
    let (dim, heads) = (job.kv.value_dim, job.shape.heads);
    let (token, head) = ((tile.first + row) / tile.group, (tile.first + row) % tile.group);
    let head = tile.head * tile.group + head;
    // SAFETY: as in `attend`; the head's columns of the row are this part's, padding is the last head's.
    unsafe {
        let out = job.out.add((span.row + token) * job.out_stride);
        let factor = V::splat(1.0 / V::load(scratch.sum.add(row * LANES)).sum());
        if job.operand == OperandType::Bytes {
            for col in (0..dim).step_by(GROUP) {
                let values = [mixed(scratch, row, col, factor), mixed(scratch, row, col + LANES, factor)];
                write_group(job.operand, out, (head * dim + col) / GROUP, values);
            }
            return;
        }
        let bytes = if job.operand == OperandType::Bf16 { 2 } else { 4 };
        for col in (0..dim).step_by(LANES) {
            let mut lanes = [0_u8; LANES * 4];
            let values = mixed(scratch, row, col, factor);
            match job.operand {
                OperandType::Bf16 => values.store_bf16(lanes.as_mut_ptr()),
                _ => values.store(lanes.as_mut_ptr().cast()),
            }
            let count = LANES.min(dim - col) * bytes;
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), out.add((head * dim + col) * bytes), count);
        }
        if head == heads - 1 {
            let end = heads * dim * bytes;
            std::ptr::write_bytes(out.add(end), 0, job.operand.row_bytes(heads * dim) - end);
        }
    }
}

/// Sixteen of a row's mixed values, times `factor`.
#[inline(always)]
unsafe fn mixed<V: Vector>(scratch: &Scratch, row: usize, col: usize, factor: V) -> V {
    // SAFETY: as in `attend`.
    unsafe { V::load(scratch.mixed.add((col / ROWS * MOST + row) * ROWS + col % ROWS)).mul(factor) }
}
