//! The rows of experts through their matrices.
#![expect(unsafe_code, reason = "kernels on raw pointers; the job's maker vouches for sizes")]

use super::kernels::Kernels;
use super::linear::{GatedJob, Input, LinearJob};
use super::team::Part;
use super::weight::{Weight, bias_of};
use crate::backend::{Activation, Expert, OperandType};

/// The rows of each expert through it. All experts are one job: their parts go to threads in turn, so that what does
/// not divide evenly falls on all of them.
pub struct ExpertsJob<'a> {
    pub experts: &'a [Expert<Weight>],
    /// Experts of a token.
    pub count: usize,
    pub places: *const u32,
    pub starts: *const u32,
    pub tokens: *const u8,
    pub kernels: Kernels,
    /// The forms of x and of what is inside.
    pub forms: [OperandType; 2],
    pub activation: Activation,
    pub x: *mut u8,
    pub x_stride: usize,
    pub inner: *mut u8,
    pub inner_stride: usize,
    pub out: *mut f32,
}

// SAFETY: the parts of a job write disjoint columns of an expert's rows; the rest is read.
unsafe impl Sync for ExpertsJob<'_> {}

impl ExpertsJob<'_> {
    /// The experts that have rows, their first ones and how many, and which part of each this is.
    ///
    /// # Safety
    /// `starts` has one more than there are experts.
    unsafe fn of_part(&self, part: Part) -> impl Iterator<Item = (&Expert<Weight>, usize, usize, Part)> {
        // SAFETY: the caller's contract.
        let starts = unsafe { std::slice::from_raw_parts(self.starts, self.experts.len() + 1) };
        let with_rows = self.experts.iter().zip(starts.windows(2)).filter(|(_, rows)| rows[0] < rows[1]);
        with_rows.enumerate().map(move |(turn, (expert, rows))| {
            (expert, rows[0] as usize, (rows[1] - rows[0]) as usize, part.turned(turn))
        })
    }

    fn input(
        &self,
        x: *const u8,
        x_stride: usize,
        form: OperandType,
        tokens: usize,
        weight: &Weight,
    ) -> Input {
        let format = weight.format().expect("products are with matrices");
        Input { x, x_stride, tokens, tile: self.kernels.tile(format, form), at_once: self.kernels.tokens }
    }

    /// Copies each token to its experts' rows.
    ///
    /// # Safety
    /// The buffers have the rows that `places` names, each once.
    pub unsafe fn order(&self, pairs: usize, part: Part) {
        for pair in part.range(pairs, 1) {
            // SAFETY: the caller's contract.
            unsafe {
                let to = self.x.add(*self.places.add(pair) as usize * self.x_stride);
                let from = self.tokens.add(pair / self.count * self.x_stride);
                std::ptr::copy_nonoverlapping(from, to, self.x_stride);
            }
        }
    }

    /// # Safety
    /// The buffers have the rows that `starts` names; the instruction set is there.
    pub unsafe fn first(&self, part: Part) {
        // SAFETY: the caller's contract is ours.
        unsafe {
            for (expert, start, rows, part) in self.of_part(part) {
                let [gate, up] = [&expert.gate, &expert.up];
                let x = self.x.add(start * self.x_stride);
                let job = GatedJob {
                    input: self.input(x, self.x_stride, self.forms[0], rows, &gate.weight),
                    activation: self.activation,
                    gate: gate.weight.matrix(bias_of(&gate.weight, gate.bias.as_ref())),
                    up: Some(up.weight.matrix(bias_of(&up.weight, up.bias.as_ref()))),
                    operand: self.forms[1],
                    out: self.inner.add(start * self.inner_stride),
                    out_stride: self.inner_stride,
                };
                (self.kernels.gated)(&job, part);
            }
        }
    }

    /// # Safety
    /// The caller keeps the contract of [`ExpertsJob::first`].
    pub unsafe fn second(&self, part: Part) {
        // SAFETY: the caller's contract is ours.
        unsafe {
            for (expert, start, rows, part) in self.of_part(part) {
                let weight = &expert.down.weight;
                let x = self.inner.add(start * self.inner_stride);
                let job = LinearJob {
                    input: self.input(x, self.inner_stride, self.forms[1], rows, weight),
                    weight: weight.matrix(bias_of(weight, expert.down.bias.as_ref())),
                    out: self.out.add(start * weight.rows),
                    out_stride: weight.rows,
                    add: None,
                };
                (self.kernels.linear)(&job, part);
            }
        }
    }
}
