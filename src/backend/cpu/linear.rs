//! Matrix products, and what is done to a result while it is still at hand: bias, residual, the gate of an MLP.
#![expect(unsafe_code, reason = "kernels on raw pointers; the job's maker vouches for sizes")]

use super::activation::{activate, gated_by};
use super::format::GROUP;
use super::kernels::TileFn;
use super::operand::write_group;
use super::team::Part;
use super::tile::{BLOCKS, MOST, ROWS, Tile};
use super::vector::{LANES, Vector};
use crate::backend::{Activation, OperandType};

/// A packed matrix, and how it is multiplied.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub data: *const u8,
    pub block_bytes: usize,
    /// Where in a block the scales are.
    pub line_bytes: usize,
    /// Output columns.
    pub rows: usize,
    /// Input columns, padded to whole groups.
    pub cols: usize,
    pub bias: Option<&'a [f32]>,
}

impl Matrix<'_> {
    /// The matrix of `head`, of several below each other with `rows` rows each, a multiple of [`LANES`].
    pub fn of_head(self, head: usize, rows: usize) -> Self {
        Self { data: self.data.wrapping_add(head * rows / LANES * self.block_bytes), rows, ..self }
    }

    /// The lines and the scales of block `index`; the last one where there is none.
    fn block(&self, index: usize) -> (*const u8, *const u8) {
        let index = index.min(self.rows.div_ceil(LANES) - 1);
        let lines = self.data.wrapping_add(index * self.block_bytes);
        (lines, lines.wrapping_add(self.line_bytes))
    }
}

/// Lines and scales of the blocks of a tile.
type Blocks = [(*const u8, *const u8); BLOCKS];

/// Up to this many rows of x meet the weights in one or two passes: these then come from memory as fast as it gives
/// them, and there is no time left in which to ask for the next.
const FEW: usize = 6;

/// The rows of x that a job multiplies, and with what.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    pub x: *const u8,
    pub x_stride: usize,
    pub tokens: usize,
    pub tile: TileFn,
    /// Rows of x at once.
    pub at_once: usize,
}

impl Input {
    /// Multiplies up to `at_once` rows from `token` on with four blocks; returns how many.
    ///
    /// # Safety
    /// The blocks and x have `cols` columns; the instruction set is there.
    unsafe fn multiply(
        &self,
        blocks: Blocks,
        ahead: Blocks,
        cols: usize,
        token: usize,
        out: &mut [f32; MOST * ROWS],
    ) -> usize {
        let tile = Tile {
            weights: blocks.map(|block| block.0),
            scales: blocks.map(|block| block.1),
            cols,
            x: self.x.wrapping_add(token * self.x_stride),
            x_stride: self.x_stride,
            tokens: self.at_once.min(self.tokens - token),
            before: token,
            ahead: if self.tokens > FEW { Some(ahead.map(|block| block.0)) } else { None },
            out: out.as_mut_ptr(),
            add: false,
        };
        // SAFETY: the caller's contract; `out` holds MOST rows.
        unsafe { (self.tile)(&tile) };
        tile.tokens
    }
}

/// `out[t][n] = sum_k x[t][k] * weight[n][k] (+ bias[n])`, or `out[t][n] += scale *` that.
#[derive(Clone, Copy, Debug)]
pub struct LinearJob<'a> {
    pub input: Input,
    pub weight: Matrix<'a>,
    /// (tokens, rows of the weight).
    pub out: *mut f32,
    /// Values from one row of `out` to the next.
    pub out_stride: usize,
    /// Added to what is there, times this.
    pub add: Option<f32>,
}

// SAFETY: the parts of a job write disjoint columns of `out`; the rest is read.
unsafe impl Sync for LinearJob<'_> {}

/// Computes this part's columns of the output.
///
/// # Safety
/// The caller keeps the contract of [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn linear(job: &LinearJob<'_>, part: Part) {
    let weight = &job.weight;
    let mut results = [0.0; MOST * ROWS];
    for row in part.range(weight.rows, ROWS).step_by(ROWS) {
        let blocks = |row: usize| std::array::from_fn(|i| weight.block(row / LANES + i));
        let (blocks, ahead) = (blocks(row), blocks(row + ROWS));
        let count = ROWS.min(weight.rows - row);
        let bias = weight.bias.map(|bias| &bias[row..row + count]);
        let mut token = 0;
        while token < job.input.tokens {
            // SAFETY: the caller's contract; columns `row..row + count` are this part's.
            unsafe {
                let tokens = job.input.multiply(blocks, ahead, weight.cols, token, &mut results);
                for t in 0..tokens {
                    let out = job.out.add((token + t) * job.out_stride + row);
                    let out = std::slice::from_raw_parts_mut(out, count);
                    let sums = &results[t * ROWS..][..count];
                    match (bias, job.add) {
                        (None, None) => out.copy_from_slice(sums),
                        (None, Some(scale)) => {
                            out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum * scale)
                        }
                        (Some(bias), None) => {
                            for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
                                *out = sum + bias;
                            }
                        }
                        (Some(bias), Some(scale)) => {
                            for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
                                *out += (sum + bias) * scale;
                            }
                        }
                    }
                }
                token += tokens;
            }
        }
    }
}

/// `out[t][n] = activation(x[t] * gate[n]) * (x[t] * up[n])`, written as an operand; without `up` the first factor only.
#[derive(Clone, Copy, Debug)]
pub struct GatedJob<'a> {
    pub input: Input,
    pub activation: Activation,
    pub gate: Matrix<'a>,
    pub up: Option<Matrix<'a>>,
    pub operand: OperandType,
    pub out: *mut u8,
    pub out_stride: usize,
}

// SAFETY: the parts of a job write disjoint groups of `out`; the rest is read.
unsafe impl Sync for GatedJob<'_> {}

/// Computes this part's columns of the output.
///
/// # Safety
/// The caller keeps the contract of [`super::kernels::Kernels`].
#[inline(always)]
pub unsafe fn gated<V: Vector>(job: &GatedJob<'_>, part: Part) {
    let Some(up) = &job.up else {
        // SAFETY: the caller's contract is ours.
        return unsafe { activated::<V>(job, part) };
    };
    let gate = &job.gate;
    let mut results = [0.0; MOST * ROWS];
    for row in part.range(gate.rows, GROUP).step_by(GROUP) {
        let blocks =
            |block: usize| [gate.block(block), gate.block(block + 1), up.block(block), up.block(block + 1)];
        let (blocks, ahead) = (blocks(row / LANES), blocks((row + GROUP) / LANES));
        let mut token = 0;
        while token < job.input.tokens {
            // SAFETY: the caller's contract; group `row / GROUP` is this part's.
            unsafe {
                let tokens = job.input.multiply(blocks, ahead, gate.cols, token, &mut results);
                for t in 0..tokens {
                    let sums = results.as_ptr().add(t * ROWS);
                    let out = job.out.add((token + t) * job.out_stride);
                    let values = [half::<V>(job, up, sums, row, 0), half::<V>(job, up, sums, row, 1)];
                    write_group(job.operand, out, row / GROUP, values);
                }
                token += tokens;
            }
        }
    }
}

/// Without `up`: a tile's rows are two groups.
#[inline(always)]
unsafe fn activated<V: Vector>(job: &GatedJob<'_>, part: Part) {
    let gate = &job.gate;
    let mut results = [0.0; MOST * ROWS];
    for row in part.range(gate.rows, ROWS).step_by(ROWS) {
        let blocks = |row: usize| std::array::from_fn(|i| gate.block(row / LANES + i));
        let (blocks, ahead) = (blocks(row), blocks(row + ROWS));
        let mut token = 0;
        while token < job.input.tokens {
            // SAFETY: the caller's contract; the groups of this tile are this part's.
            unsafe {
                let tokens = job.input.multiply(blocks, ahead, gate.cols, token, &mut results);
                for (t, first) in (0..tokens)
                    .flat_map(|t| (row..gate.rows.min(row + ROWS)).step_by(GROUP).map(move |at| (t, at)))
                {
                    let sums = results.as_ptr().add(t * ROWS + first - row);
                    let out = job.out.add((token + t) * job.out_stride);
                    // no closure: it would not have the instruction set, and every lane operation would be a call
                    let values =
                        [activated_half::<V>(job, sums, first, 0), activated_half::<V>(job, sums, first, 1)];
                    write_group(job.operand, out, first / GROUP, values);
                }
                token += tokens;
            }
        }
    }
}

/// Sixteen columns of the group that starts at `row`.
#[inline(always)]
unsafe fn activated_half<V: Vector>(job: &GatedJob<'_>, sums: *const f32, row: usize, index: usize) -> V {
    let at = row + index * LANES;
    // SAFETY: the caller's contract.
    unsafe {
        if at >= job.gate.rows {
            return V::splat(0.0); // no such block: zeros pad the operand
        }
        activate(job.activation, biased::<V>(sums.add(index * LANES), job.gate.bias, at))
    }
}

/// Sixteen columns of the group that starts at `row`: the gate's sums are first, those of `up` a group further.
#[inline(always)]
unsafe fn half<V: Vector>(
    job: &GatedJob<'_>,
    up: &Matrix<'_>,
    sums: *const f32,
    row: usize,
    index: usize,
) -> V {
    let at = row + index * LANES;
    // SAFETY: the caller's contract.
    unsafe {
        let gate = activated_half::<V>(job, sums, row, index);
        if at >= up.rows {
            return gate;
        }
        gate.mul(gated_by(job.activation, biased::<V>(sums.add(GROUP + index * LANES), up.bias, at)))
    }
}

#[inline(always)]
unsafe fn biased<V: Vector>(sums: *const f32, bias: Option<&[f32]>, at: usize) -> V {
    // SAFETY: the caller has sixteen sums; the bias is read to its end.
    unsafe {
        let sums = V::load(sums);
        match bias {
            None => sums,
            Some(bias) => sums.add(V::load_part(bias[at..].as_ptr(), bias.len() - at)),
        }
    }
}
