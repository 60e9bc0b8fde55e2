//! Kernels that go row by row: embedding, norm, activation, rope with the store into the cache.
#![expect(unsafe_code, reason = "kernels on raw pointers; the job's maker vouches for sizes")]

use super::team::Part;
use super::vector::{Bf16, Element, F16, F32, LANES, Vector};
use crate::backend::{BLOCK, Kv, Side};
use crate::weights::Dtype;

/// `out[row] = table[ids[row]]`.
#[derive(Clone, Copy, Debug)]
pub struct EmbedJob<'a> {
    pub ids: &'a [u32],
    pub table: *const u8,
    pub dtype: Dtype,
    pub cols: usize,
    pub out: *mut f32,
}

/// `out = x / sqrt(mean(x^2) + eps) * weight`.
#[derive(Clone, Copy, Debug)]
pub struct NormJob<'a> {
    pub rows: usize,
    pub x: *const f32,
    pub weight: &'a [f32],
    pub eps: f32,
    pub out: *mut f32,
}

/// `gate = silu(gate) * up` over `len` values.
#[derive(Clone, Copy, Debug)]
pub struct SiluJob {
    pub len: usize,
    pub gate: *mut f32,
    pub up: *const f32,
}

/// Rotates q and k; stores k and v in the cache.
#[derive(Clone, Copy, Debug)]
pub struct RopeJob<'a> {
    pub positions: &'a [u32],
    pub slots: &'a [u32],
    pub q: *mut f32,
    pub q_cols: usize,
    pub k: *mut f32,
    pub v: *const f32,
    /// (context, 2, head_dim / 2), cosines first.
    pub rope: &'a [f32],
    pub kv: Kv,
    pub cache: *mut u8,
    pub layer: usize,
}

// SAFETY: the parts of each job write disjoint rows (values, for silu); the rest is read.
unsafe impl Sync for EmbedJob<'_> {}
// SAFETY: as above.
unsafe impl Sync for NormJob<'_> {}
// SAFETY: as above.
unsafe impl Sync for SiluJob {}
// SAFETY: as above.
unsafe impl Sync for RopeJob<'_> {}

/// # Safety
/// As [`super::kernels::Kernels`]; ids are inside the table.
#[inline(always)]
pub unsafe fn embed<V: Vector>(job: &EmbedJob<'_>, part: Part) {
    // SAFETY: the caller's contract is ours.
    unsafe {
        match job.dtype {
            Dtype::F32 => embed_rows::<V, F32>(job, part),
            Dtype::F16 => embed_rows::<V, F16>(job, part),
            Dtype::Bf16 => embed_rows::<V, Bf16>(job, part),
        }
    }
}

#[inline(always)]
unsafe fn embed_rows<V: Vector, E: Element>(job: &EmbedJob<'_>, part: Part) {
    for row in part.range(job.ids.len(), 1) {
        // SAFETY: the caller's contract.
        unsafe {
            let from = job.table.add(job.ids[row] as usize * job.cols * E::BYTES);
            widen::<V, E>(from, job.out.add(row * job.cols), job.cols);
        }
    }
}

/// Widens `count` elements to f32.
///
/// # Safety
/// Both pointers have `count` elements.
#[inline(always)]
pub unsafe fn widen<V: Vector, E: Element>(from: *const u8, to: *mut f32, count: usize) {
    let whole = count / LANES * LANES;
    // SAFETY: the caller's contract.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            E::load::<V>(from.add(i * E::BYTES)).store(to.add(i));
        }
        for i in whole..count {
            *to.add(i) = E::scalar(from.add(i * E::BYTES));
        }
    }
}

/// # Safety
/// As [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn rms_norm<V: Vector>(job: &NormJob<'_>, part: Part) {
    let cols = job.weight.len();
    let whole = cols / LANES * LANES;
    for row in part.range(job.rows, 1) {
        // SAFETY: the caller's contract.
        unsafe {
            let (x, out) = (job.x.add(row * cols), job.out.add(row * cols));
            let mut squares = V::splat(0.0);
            for i in (0..whole).step_by(LANES) {
                let values = V::load(x.add(i));
                squares = values.fma(values, squares);
            }
            let rest = V::load_part::<F32>(x.add(whole).cast(), cols - whole);
            squares = rest.fma(rest, squares);
            let factor = 1.0 / (squares.sum() / cols as f32 + job.eps).sqrt();
            for i in 0..cols {
                *out.add(i) = *x.add(i) * factor * job.weight[i];
            }
        }
    }
}

/// # Safety
/// As [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn silu_mul<V: Vector>(job: &SiluJob, part: Part) {
    let mine = part.range(job.len, LANES);
    let mut i = mine.start;
    while i < mine.end {
        let count = (mine.end - i).min(LANES);
        // SAFETY: the caller's contract.
        unsafe {
            let (gate, up) = (job.gate.add(i), job.up.add(i));
            let full = count == LANES;
            let x = if full { V::load(gate) } else { V::load_part::<F32>(gate.cast_const().cast(), count) };
            let y = if full { V::load(up) } else { V::load_part::<F32>(up.cast(), count) };
            let divisor = V::splat(0.0).sub(x).exp().add(V::splat(1.0));
            let product = x.div(divisor).mul(y);
            if full { product.store(gate) } else { product.store_part(gate, count) }
        }
        i += LANES;
    }
}

/// # Safety
/// As [`super::kernels::Kernels`]; positions are inside the rope table, slots inside the cache.
#[inline(always)]
pub unsafe fn rope_store(job: &RopeJob<'_>, part: Part) {
    // SAFETY: the caller's contract is ours.
    unsafe {
        match job.kv.dtype {
            Dtype::F32 => rope_store_rows::<F32>(job, part),
            Dtype::F16 => rope_store_rows::<F16>(job, part),
            Dtype::Bf16 => rope_store_rows::<Bf16>(job, part),
        }
    }
}

#[inline(always)]
unsafe fn rope_store_rows<E: Element>(job: &RopeJob<'_>, part: Part) {
    let (dim, kv_cols) = (job.kv.head_dim, job.kv.kv_heads * job.kv.head_dim);
    for row in part.range(job.positions.len(), 1) {
        let turn = &job.rope[job.positions[row] as usize * dim..][..dim];
        let (block, offset) = (job.slots[row] / BLOCK as u32, job.slots[row] as usize % BLOCK);
        // SAFETY: the caller's contract; this part alone touches this row and its slot.
        unsafe {
            let q = std::slice::from_raw_parts_mut(job.q.add(row * job.q_cols), job.q_cols);
            let k = std::slice::from_raw_parts_mut(job.k.add(row * kv_cols), kv_cols);
            let v = std::slice::from_raw_parts(job.v.add(row * kv_cols), kv_cols);
            q.chunks_exact_mut(dim).for_each(|head| rotate(head, turn));
            k.chunks_exact_mut(dim).for_each(|head| rotate(head, turn));
            for (side, values) in [(Side::K, &*k), (Side::V, v)] {
                for (head, values) in values.chunks_exact(dim).enumerate() {
                    let at = job.kv.at(block, job.layer, side, head) + offset * dim;
                    let to = job.cache.add(at * E::BYTES);
                    for (i, &value) in values.iter().enumerate() {
                        E::store_scalar(value, to.add(i * E::BYTES));
                    }
                }
            }
        }
    }
}

/// Turns the pairs (i, i + dim / 2) of a head.
#[inline(always)]
fn rotate(head: &mut [f32], turn: &[f32]) {
    let (cos, sin) = turn.split_at(turn.len() / 2);
    let (left, right) = head.split_at_mut(cos.len());
    for (((a, b), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
