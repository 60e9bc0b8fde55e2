//! Kernels that go row by row: norms, rope with the store into the cache, scaling, conversion of an operand.
#![expect(unsafe_code, reason = "kernels on raw pointers; the job's maker vouches for sizes")]

use half::{bf16, f16};

use super::activation::{activate, gated_by, tanh};
use super::format::GROUP;
use super::operand::write_group;
use super::team::Part;
use super::vector::{LANES, Vector};
use crate::backend::packed::{PackedKv, int8_scale};
use crate::backend::{Activation, BLOCK, Cap, KvType, NormKind, OperandType, Side};

/// Normalises pieces of rows: [`crate::backend::Norm`].
#[derive(Clone, Copy, Debug)]
pub struct NormJob<'a> {
    pub rows: usize,
    pub cols: usize,
    /// Values of a piece; divides `cols`.
    pub width: usize,
    pub x: *const f32,
    /// Values from one row of x to the next.
    pub x_stride: usize,
    pub kind: NormKind,
    pub eps: f32,
    /// As many as a row has, or a piece; so `bias`.
    pub weight: Option<&'a [f32]>,
    pub bias: Option<&'a [f32]>,
    pub to: NormTo,
}

/// Where a normalised row goes.
#[derive(Clone, Copy, Debug)]
pub enum NormTo {
    /// Rows of an operand; then a piece is a whole row.
    Operand { operand: OperandType, out: *mut u8, stride: usize },
    /// Added to rows of `cols`, times `scale`.
    Sum { out: *mut f32, scale: f32 },
    /// Written to rows of `cols`, which may be those of x.
    Rows { out: *mut f32 },
}

/// `x * scale`, then bounded; in place.
#[derive(Clone, Copy, Debug)]
pub struct ScaleJob {
    pub rows: usize,
    pub cols: usize,
    pub x: *mut f32,
    pub scale: f32,
    pub cap: Cap,
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
    /// (context, dims): cosines, then sines. None: nothing turns.
    pub rope: Option<&'a [f32]>,
    /// Values of a head that turn.
    pub dims: usize,
    /// Whether neighbours turn together, else values half of `dims` apart.
    pub interleaved: bool,
    pub kv: PackedKv,
    /// None: nothing is stored.
    pub cache: Option<*mut u8>,
    pub layer: usize,
}

/// `out = sum of weight * from`, or `out += scale *` that: rows of several experts to one.
#[derive(Clone, Copy, Debug)]
pub struct MoeCombineJob {
    pub rows: usize,
    pub cols: usize,
    /// Rows that make one.
    pub count: usize,
    pub from: *const f32,
    /// (rows, count): which rows; none for a row's own.
    pub places: Option<*const u32>,
    /// (rows, count)
    pub weights: *const f32,
    /// Whether weights are before the sigmoid.
    pub sigmoid: bool,
    pub add: Option<f32>,
    pub out: *mut f32,
}

/// Rewrites rows of padded f32 as an operand, in place. Rows become shorter, so they are taken in order, by one thread.
#[derive(Clone, Copy, Debug)]
pub struct ConvertJob {
    pub rows: usize,
    pub cols: usize,
    pub at: *mut u8,
    pub operand: OperandType,
}

/// An activation of values, in place.
#[derive(Clone, Copy, Debug)]
pub struct ActivateJob {
    pub rows: usize,
    pub cols: usize,
    pub x: *mut f32,
    pub activation: Activation,
}

/// `activation(gate) * up`, as an operand.
#[derive(Clone, Copy, Debug)]
pub struct ActAndMulJob {
    pub rows: usize,
    pub cols: usize,
    pub gate: *const f32,
    pub up: Option<*const f32>,
    pub activation: Activation,
    pub operand: OperandType,
    pub out: *mut u8,
    pub out_stride: usize,
}

// SAFETY: the parts of each job write disjoint rows; the rest is read.
unsafe impl Sync for NormJob<'_> {}
// SAFETY: as above.
unsafe impl Sync for RopeJob<'_> {}
// SAFETY: as above.
unsafe impl Sync for ScaleJob {}
// SAFETY: as above.
unsafe impl Sync for MoeCombineJob {}
// SAFETY: as above.
unsafe impl Sync for ActivateJob {}
// SAFETY: as above.
unsafe impl Sync for ActAndMulJob {}

/// # Safety
/// The caller keeps the contract of [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn norm<V: Vector>(job: &NormJob<'_>, part: Part) {
    for row in part.range(job.rows, 1) {
        for start in (0..job.cols).step_by(job.width) {
            // SAFETY: the caller's contract.
            unsafe { norm_piece::<V>(job, row, start) };
        }
    }
}

#[inline(always)]
unsafe fn norm_piece<V: Vector>(job: &NormJob<'_>, row: usize, start: usize) {
    let (cols, width) = (job.cols, job.width);
    // SAFETY: the caller's contract.
    unsafe {
        let x = job.x.add(row * job.x_stride + start);
        let (centre, factor) = statistics::<V>(job, x);
        let table = |table: Option<&[f32]>| table.map(|table| table[start % table.len()..].as_ptr());
        let (weight, bias) = (table(job.weight), table(job.bias));
        let piece = Piece { x, width, kind: job.kind, centre, factor, weight, bias };
        match job.to {
            NormTo::Operand { operand, out, stride } => {
                let out = out.add(row * stride);
                for group in 0..width.div_ceil(GROUP) {
                    let col = group * GROUP;
                    let mut values = [piece.normalised(col), piece.normalised(col + LANES)];
                    if job.kind == NormKind::Layer && col + GROUP > width {
                        values = keep(values, width - col);
                    }
                    write_group(operand, out, group, values);
                }
            }
            NormTo::Sum { out, scale } => {
                let out = out.add(row * cols + start);
                for col in (0..width).step_by(LANES) {
                    let sum = V::load_from(out, col, width).add(piece.normalised(col).mul(V::splat(scale)));
                    store_to(sum, out, col, width);
                }
            }
            NormTo::Rows { out } => {
                let out = out.add(row * cols + start);
                for col in (0..width).step_by(LANES) {
                    store_to(piece.normalised(col), out, col, width);
                }
            }
        }
    }
}

/// A piece of a row, and what is done to it. Not a closure: that would not have the instruction set, and every lane
/// operation in it would be a call.
struct Piece<V> {
    x: *const f32,
    width: usize,
    kind: NormKind,
    centre: V,
    factor: V,
    weight: Option<*const f32>,
    bias: Option<*const f32>,
}

impl<V: Vector> Piece<V> {
    /// Sixteen values from `col` on.
    #[inline(always)]
    unsafe fn normalised(&self, col: usize) -> V {
        // SAFETY: the caller's contract.
        unsafe {
            let mut value = V::load_from(self.x, col, self.width);
            if self.kind == NormKind::Layer {
                value = value.sub(self.centre);
            }
            if self.kind != NormKind::Identity {
                value = value.mul(self.factor);
            }
            if let Some(weight) = self.weight {
                value = value.mul(V::load_from(weight, col, self.width));
            }
            match self.bias {
                Some(bias) => value.add(V::load_from(bias, col, self.width)),
                None => value,
            }
        }
    }
}

/// What is taken away from each value of a piece, and what it is multiplied by then.
#[inline(always)]
unsafe fn statistics<V: Vector>(job: &NormJob<'_>, x: *const f32) -> (V, V) {
    let width = job.width;
    // SAFETY: the caller's contract.
    unsafe {
        let (mut centre, one) = (V::splat(0.0), V::splat(1.0));
        if job.kind == NormKind::Identity {
            return (centre, one);
        }
        if job.kind == NormKind::Layer {
            let mut sum = V::splat(0.0);
            for col in (0..width).step_by(LANES) {
                sum = sum.add(V::load_from(x, col, width));
            }
            centre = V::splat(sum.sum() / width as f32);
        }
        let mut squares = V::splat(0.0);
        for col in (0..width).step_by(LANES) {
            let mut value = V::load_from(x, col, width);
            if job.kind == NormKind::Layer {
                // behind the end, zeros stay zeros
                let [centred, _] = keep([value.sub(centre), one], width - col);
                value = centred;
            }
            squares = value.fma(value, squares);
        }
        (centre, V::splat(1.0 / (squares.sum() / width as f32 + job.eps).sqrt()))
    }
}

/// The first `count` values, zeros behind them.
#[inline(always)]
unsafe fn keep<V: Vector>(values: [V; 2], count: usize) -> [V; 2] {
    if count >= GROUP {
        return values;
    }
    let mut lanes = [0.0; GROUP];
    // SAFETY: the caller has the instruction set; the array has the lanes.
    unsafe {
        values[0].store(lanes.as_mut_ptr());
        values[1].store(lanes.as_mut_ptr().add(LANES));
        lanes[count..].fill(0.0);
        [V::load(lanes.as_ptr()), V::load(lanes.as_ptr().add(LANES))]
    }
}

/// Stores sixteen values from `col` on of `cols` at `to`; what is behind them stays.
#[inline(always)]
unsafe fn store_to<V: Vector>(values: V, to: *mut f32, col: usize, cols: usize) {
    // SAFETY: the caller vouches for `cols` elements.
    unsafe {
        if col + LANES <= cols {
            return values.store(to.add(col));
        }
        let mut lanes = [0.0; LANES];
        values.store(lanes.as_mut_ptr());
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), to.add(col), cols - col);
    }
}

/// # Safety
/// The caller keeps the contract of [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn scale<V: Vector>(job: &ScaleJob, part: Part) {
    for row in part.range(job.rows, 1) {
        for col in (0..job.cols).step_by(LANES) {
            // SAFETY: the caller's contract.
            unsafe {
                let x = job.x.add(row * job.cols);
                let mut value = V::load_from(x, col, job.cols).mul(V::splat(job.scale));
                match job.cap {
                    Cap::None => {}
                    Cap::Soft(cap) => value = tanh(value.div(V::splat(cap))).mul(V::splat(cap)),
                    // the bounds come first: what is not a number stays so
                    Cap::Hard(cap) => value = V::splat(-cap).max(V::splat(cap).min(value)),
                }
                store_to(value, x, col, job.cols);
            }
        }
    }
}

/// # Safety
/// The caller keeps the contract of [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn activate_rows<V: Vector>(job: &ActivateJob, part: Part) {
    for row in part.range(job.rows, 1) {
        for col in (0..job.cols).step_by(LANES) {
            // SAFETY: the caller's contract.
            unsafe {
                let x = job.x.add(row * job.cols);
                store_to(activate(job.activation, V::load_from(x, col, job.cols)), x, col, job.cols);
            }
        }
    }
}

/// # Safety
/// The caller keeps the contract of [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn act_and_mul<V: Vector>(job: &ActAndMulJob, part: Part) {
    for row in part.range(job.rows, 1) {
        for group in 0..job.cols.div_ceil(GROUP) {
            let col = group * GROUP;
            // SAFETY: the caller's contract.
            unsafe {
                let values = [combined::<V>(job, row, col), combined::<V>(job, row, col + LANES)];
                write_group(job.operand, job.out.add(row * job.out_stride), group, values);
            }
        }
    }
}

/// Sixteen values; zeros behind the last.
#[inline(always)]
unsafe fn combined<V: Vector>(job: &ActAndMulJob, row: usize, col: usize) -> V {
    // SAFETY: the caller's contract.
    unsafe {
        if col >= job.cols {
            return V::splat(0.0);
        }
        let gate = activate(job.activation, V::load_from(job.gate.add(row * job.cols), col, job.cols));
        match job.up {
            None => gate,
            Some(up) => {
                gate.mul(gated_by(job.activation, V::load_from(up.add(row * job.cols), col, job.cols)))
            }
        }
    }
}

/// # Safety
/// The caller keeps the contract of [`super::kernels::Kernels`]; places are rows of `from`.
#[inline(always)]
pub unsafe fn moe_combine<V: Vector>(job: &MoeCombineJob, part: Part) {
    for row in part.range(job.rows, 1) {
        // SAFETY: the caller's contract.
        unsafe {
            let out = job.out.add(row * job.cols);
            for col in (0..job.cols).step_by(LANES) {
                let mut sum = V::splat(0.0);
                for slot in row * job.count..(row + 1) * job.count {
                    let place = job.places.map_or(slot, |places| *places.add(slot) as usize);
                    let weight = *job.weights.add(slot);
                    let weight = if job.sigmoid { 1.0 / (1.0 + (-weight).exp()) } else { weight };
                    let from = V::load_from(job.from.add(place * job.cols), col, job.cols);
                    sum = from.fma(V::splat(weight), sum);
                }
                if let Some(scale) = job.add {
                    sum = sum.fma(V::splat(scale), V::load_from(out, col, job.cols));
                }
                store_to(sum, out, col, job.cols);
            }
        }
    }
}

/// # Safety
/// The caller keeps the contract of [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn convert<V: Vector>(job: &ConvertJob) {
    let strides = [OperandType::F32, job.operand].map(|operand| operand.row_bytes(job.cols));
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
/// The caller keeps the contract of [`super::kernels::Kernels`]; positions are inside the rope table, slots inside the cache.
#[inline(always)]
pub unsafe fn rope_store(job: &RopeJob<'_>, part: Part) {
    let [dim, value_dim] = [job.kv.head_dim, job.kv.value_dim];
    let [k_cols, v_cols] = [job.kv.kv_heads * dim, job.kv.kv_heads * value_dim];
    for row in part.range(job.positions.len(), 1) {
        let turn = job.rope.map(|rope| &rope[job.positions[row] as usize * job.dims..][..job.dims]);
        // SAFETY: the caller's contract; this part alone touches this row and its slot.
        unsafe {
            let q = std::slice::from_raw_parts_mut(job.q.add(row * job.q_cols), job.q_cols);
            let k = std::slice::from_raw_parts_mut(job.k.add(row * k_cols), k_cols);
            if let Some(turn) = turn {
                for head in q.chunks_exact_mut(dim).chain(k.chunks_exact_mut(dim)) {
                    rotate(&mut head[..job.dims], turn, job.interleaved);
                }
            }
            let Some(cache) = job.cache else { continue };
            let v = std::slice::from_raw_parts(job.v.add(row * v_cols), v_cols);
            for (head, (k, v)) in k.chunks_exact_mut(dim).zip(v.chunks_exact(value_dim)).enumerate() {
                match job.kv.cache {
                    KvType::F32 => store::<f32>(job, cache, row, head, k, v, [1.0; 2]),
                    KvType::F16 => store::<f16>(job, cache, row, head, k, v, [1.0; 2]),
                    KvType::Bf16 => store::<bf16>(job, cache, row, head, k, v, [1.0; 2]),
                    KvType::Int8 => store_int8(job, cache, row, head, k, v),
                }
            }
        }
    }
}

/// `x * e^(i angle)` for each pair of a value and the one half a head further, or next to it.
#[inline(always)]
fn rotate(head: &mut [f32], turn: &[f32], interleaved: bool) {
    let half = head.len() / 2;
    let (cos, sin) = turn.split_at(half);
    if interleaved {
        for ((pair, cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
            let [a, b] = *pair;
            *pair = [a * cos - b * sin, b * cos + a * sin];
        }
        return;
    }
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
    cache: *mut u8,
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
                let at = cache.add(plane + job.kv.element(side, offset, dim));
                at.cast::<E>().write_unaligned(E::of(value));
            }
        }
    }
}

/// Stores as signed bytes with a scale for each position, head and side.
#[inline(always)]
unsafe fn store_int8(job: &RopeJob<'_>, cache: *mut u8, row: usize, head: usize, k: &mut [f32], v: &[f32]) {
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
        unsafe { cache.add(plane + job.kv.scale(side, offset)).cast::<f32>().write_unaligned(scale) };
    }
    // SAFETY: as above.
    unsafe { store::<i8>(job, cache, row, head, k, v, inverses) };
}
