//! Kernels that go row by row: norm, rope with the store into the cache, conversion of an operand.
#![expect(unsafe_code, reason = "kernels on raw pointers; the job's maker vouches for sizes")]

use half::{bf16, f16};

use super::format::GROUP;
use super::operand::{Operand, write_group};
use super::team::Part;
use super::vector::{LANES, Vector};
use crate::backend::{BLOCK, Kv, KvType, Side, int8_scale};

/// `out = x / sqrt(mean(x^2) + eps) * weight`, written as an operand.
#[derive(Clone, Copy, Debug)]
pub struct NormJob<'a> {
    pub rows: usize,
    pub x: *const f32,
    pub weight: &'a [f32],
    pub eps: f32,
    pub operand: Operand,
    pub out: *mut u8,
    pub out_stride: usize,
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

/// Rewrites rows of padded f32 as an operand, in place. Rows become shorter, so they are taken in order, by one thread.
#[derive(Clone, Copy, Debug)]
pub struct ConvertJob {
    pub rows: usize,
    pub cols: usize,
    pub at: *mut u8,
    pub operand: Operand,
}

// SAFETY: the parts of each job write disjoint rows; the rest is read.
unsafe impl Sync for NormJob<'_> {}
// SAFETY: as above.
unsafe impl Sync for RopeJob<'_> {}

/// # Safety
/// As [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn rms_norm<V: Vector>(job: &NormJob<'_>, part: Part) {
    let cols = job.weight.len();
    let weight = job.weight.as_ptr();
    for row in part.range(job.rows, 1) {
        // SAFETY: the caller's contract.
        unsafe {
            let (x, out) = (job.x.add(row * cols), job.out.add(row * job.out_stride));
            let mut squares = V::splat(0.0);
            for col in (0..cols).step_by(LANES) {
                let values = V::load_from(x, col, cols);
                squares = values.fma(values, squares);
            }
            let factor = V::splat(1.0 / (squares.sum() / cols as f32 + job.eps).sqrt());
            for group in 0..cols.div_ceil(GROUP) {
                let mut values = [factor; 2];
                for (i, value) in values.iter_mut().enumerate() {
                    let col = group * GROUP + i * LANES;
                    *value = V::load_from(x, col, cols).mul(factor).mul(V::load_from(weight, col, cols));
                }
                write_group(job.operand, out, group, values);
            }
        }
    }
}

/// # Safety
/// As [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn convert<V: Vector>(job: &ConvertJob) {
    let strides = [Operand::F32, job.operand].map(|operand| operand.row_bytes(job.cols));
    for row in 0..job.rows {
        for group in 0..job.cols.div_ceil(GROUP) {
            // SAFETY: the caller's contract. What is written ends before what is yet to be read.
            unsafe {
                let from = job.at.add(row * strides[0]).cast::<f32>().add(group * GROUP);
                let values = [V::load(from), V::load(from.add(LANES))];
                write_group(job.operand, job.at.add(row * strides[1]), group, values);
            }
        }
    }
}

/// # Safety
/// As [`super::kernels::Kernels`]; positions are inside the rope table, slots inside the cache.
#[inline(always)]
pub unsafe fn rope_store(job: &RopeJob<'_>, part: Part) {
    let (dim, kv_cols) = (job.kv.head_dim, job.kv.kv_heads * job.kv.head_dim);
    for row in part.range(job.positions.len(), 1) {
        let turn = &job.rope[job.positions[row] as usize * dim..][..dim];
        // SAFETY: the caller's contract; this part alone touches this row and its slot.
        unsafe {
            let q = std::slice::from_raw_parts_mut(job.q.add(row * job.q_cols), job.q_cols);
            let k = std::slice::from_raw_parts_mut(job.k.add(row * kv_cols), kv_cols);
            let v = std::slice::from_raw_parts(job.v.add(row * kv_cols), kv_cols);
            q.chunks_exact_mut(dim).for_each(|head| rotate(head, turn));
            k.chunks_exact_mut(dim).for_each(|head| rotate(head, turn));
            for (head, (k, v)) in k.chunks_exact_mut(dim).zip(v.chunks_exact(dim)).enumerate() {
                match job.kv.cache {
                    KvType::F32 => store::<f32>(job, row, head, k, v, [1.0; 2]),
                    KvType::F16 => store::<f16>(job, row, head, k, v, [1.0; 2]),
                    KvType::Bf16 => store::<bf16>(job, row, head, k, v, [1.0; 2]),
                    KvType::Int8 => store_int8(job, row, head, k, v),
                }
            }
        }
    }
}

/// `x * e^(i angle)` for each pair of a value and the one half a head further.
#[inline(always)]
fn rotate(head: &mut [f32], turn: &[f32]) {
    let half = head.len() / 2;
    let (cos, sin) = turn.split_at(half);
    let (first, second) = head.split_at_mut(half);
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// An element of the cache.
trait Element: Copy {
    fn of(value: f32) -> Self;
    fn finite(self) -> bool;
}

impl Element for f32 {
    #[inline(always)]
    fn of(value: f32) -> Self {
        value
    }
    #[inline(always)]
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Element for f16 {
    #[inline(always)]
    fn of(value: f32) -> Self {
        f16::from_f32(value)
    }
    #[inline(always)]
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn of(value: f32) -> Self {
        bf16::from_f32(value)
    }
    #[inline(always)]
    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Element for i8 {
    #[inline(always)]
    fn of(value: f32) -> Self {
        value.round_ties_even() as i8
    }
    #[inline(always)]
    fn finite(self) -> bool {
        true
    }
}

/// Stores one head's keys and values of one position, times `inverses`.
///
/// Attention multiplies the values of masked positions with zero, so they must be finite. Where they are not, zeros are
/// stored, and keys that are not numbers: who may attend to the position gets an error, who may not is untouched.
#[inline(always)]
unsafe fn store<E: Element>(
    job: &RopeJob<'_>,
    row: usize,
    head: usize,
    k: &mut [f32],
    v: &[f32],
    inverses: [f32; 2],
) {
    let slot = job.slots[row];
    let (block, offset) = (slot / BLOCK as u32, slot as usize % BLOCK);
    let finite = v.iter().fold(true, |all, &value| all & E::of(value * inverses[1]).finite());
    if !finite {
        k.fill(f32::NAN);
    }
    for (side, values, inverse) in [(Side::K, &*k, inverses[0]), (Side::V, v, inverses[1])] {
        let plane = job.kv.plane(block, job.layer, side, head);
        for (dim, &value) in values.iter().enumerate() {
            let value = if side == Side::V && !finite { 0.0 } else { value * inverse };
            // SAFETY: the caller's contract: the slot is in the cache, and this is one of its elements.
            unsafe {
                let at = job.cache.add(plane + job.kv.element(side, offset, dim));
                at.cast::<E>().write_unaligned(E::of(value));
            }
        }
    }
}

/// Stores as signed bytes with a scale for each position, head and side.
#[inline(always)]
unsafe fn store_int8(job: &RopeJob<'_>, row: usize, head: usize, k: &mut [f32], v: &[f32]) {
    let slot = job.slots[row];
    let (block, offset) = (slot / BLOCK as u32, slot as usize % BLOCK);
    let finite = k.iter().chain(v).all(|value| value.is_finite());
    let mut inverses = [0.0; 2];
    for (side, values) in [(Side::K, &*k), (Side::V, v)] {
        let (scale, inverse) = int8_scale(values);
        inverses[side as usize] = inverse;
        let scale = match (finite, side) {
            (true, _) => scale,
            (false, Side::K) => f32::NAN,
            (false, Side::V) => 0.0,
        };
        let plane = job.kv.plane(block, job.layer, side, head);
        // SAFETY: the caller's contract: the slot is in the cache.
        unsafe { job.cache.add(plane + job.kv.scale(offset)).cast::<f32>().write_unaligned(scale) };
    }
    // SAFETY: as above.
    unsafe { store::<i8>(job, row, head, k, v, inverses) };
}
