//! The pieces of rows through the matrices of their heads.
#![expect(unsafe_code, reason = "kernels on raw pointers; the job's maker vouches for sizes")]

use super::kernels::Kernels;
use super::linear::{Input, LinearJob, Matrix};
use super::rows::{NormJob, NormTo};
use super::team::Part;
use crate::backend::{NormKind, OperandType};

/// The pieces of rows, each through its head's matrix: [`crate::backend::Ops::per_head_linear`]. All heads are one job, as all experts are.
pub struct HeadsJob<'a> {
    pub rows: usize,
    pub heads: usize,
    pub x: *const f32,
    pub x_stride: usize,
    /// Values of a head's piece of x, and those of them that are multiplied.
    pub from: usize,
    pub ins: usize,
    /// (heads, rows) operands.
    pub input: Input,
    pub operand: OperandType,
    pub pieces: *mut u8,
    pub weight: Matrix<'a>,
    pub outs: usize,
    pub out: *mut f32,
    pub out_stride: usize,
    /// Values of a head's piece of `out`.
    pub to: usize,
    pub kernels: Kernels,
}

// SAFETY: the parts of a job write disjoint rows or columns of a head; the rest is read.
unsafe impl Sync for HeadsJob<'_> {}

impl HeadsJob<'_> {
    /// Writes the pieces as operands, and copies what is not multiplied.
    ///
    /// # Safety
    /// The buffers have the sizes that are named; the instruction set is there.
    pub unsafe fn cut(&self, part: Part) {
        let stride = self.input.x_stride;
        for (head, part) in (0..self.heads).map(|head| (head, part.turned(head))) {
            // SAFETY: the caller's contract.
            unsafe {
                let x = self.x.add(head * self.from);
                let out = self.pieces.add(head * self.rows * stride);
                let job = NormJob {
                    rows: self.rows,
                    cols: self.ins,
                    width: self.ins,
                    x,
                    x_stride: self.x_stride,
                    kind: NormKind::Identity,
                    eps: 0.0,
                    weight: None,
                    bias: None,
                    to: NormTo::Operand { operand: self.operand, out, stride },
                };
                (self.kernels.norm)(&job, part);
                for row in part.range(self.rows, 1) {
                    let kept = x.add(row * self.x_stride + self.ins);
                    let out = self.out.add(row * self.out_stride + head * self.to);
                    std::ptr::copy_nonoverlapping(kept, out, self.from - self.ins);
                }
            }
        }
    }

    /// # Safety
    /// The caller keeps the contract of [`HeadsJob::cut`].
    pub unsafe fn multiply(&self, part: Part) {
        let kept = self.from - self.ins;
        for (head, part) in (0..self.heads).map(|head| (head, part.turned(head))) {
            // SAFETY: the caller's contract.
            unsafe {
                let x = self.input.x.add(head * self.rows * self.input.x_stride);
                let job = LinearJob {
                    input: Input { x, tokens: self.rows, ..self.input },
                    weight: self.weight.of_head(head, self.outs),
                    out: self.out.add(head * self.to + kept),
                    out_stride: self.out_stride,
                    add: None,
                };
                (self.kernels.linear)(&job, part);
            }
        }
    }
}
