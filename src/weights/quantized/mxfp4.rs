//! MXFP4 (Open Compute Project, Microscaling Formats 1.0) as gpt-oss has it for experts: `_blocks` (experts, rows, groups,
//! 16) with two codes in a byte, the first in the low bits, and `_scales` (experts, rows, groups), powers of two for
//! each 32 columns. And the same experts as they are when they are not quantized.

use super::{QuantizedMatrix, Row};
use crate::weights::checkpoint::Raw;

/// Twice the values of the codes.
pub(super) const TWICE: [i32; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// One expert's matrix.
#[derive(Debug)]
pub struct Mxfp4 {
    /// (experts, rows, groups, 16)
    pub blocks: Raw,
    /// (experts, rows, groups)
    pub scales: Raw,
    pub expert: usize,
}

/// One expert's matrix, stored as it is but transposed: (experts, cols, rows).
#[derive(Debug)]
pub struct Transposed {
    pub all: Raw,
    pub expert: usize,
}

impl QuantizedMatrix for Transposed {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let (cols, rows) = (self.all.shape[1], self.all.shape[2]);
        out.values(|first, values| {
            for (i, value) in values.iter_mut().enumerate() {
                *value = self.all.float((self.expert * cols + first + i) * rows + row);
            }
        });
    }

    fn parts(&self) -> Vec<&Raw> {
        vec![&self.all]
    }
}

impl QuantizedMatrix for Mxfp4 {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let (rows, groups) = (self.scales.shape[1], self.scales.shape[2]);
        let start = (self.expert * rows + row) * groups;
        out.numbers(|first, numbers| {
            let group = start + first / super::GROUP;
            for (i, number) in numbers.iter_mut().enumerate() {
                let codes = self.blocks.bytes()[group * 16 + i / 2];
                *number = TWICE[usize::from(if i % 2 == 0 { codes & 15 } else { codes >> 4 })];
            }
            f32::powi(2.0, i32::from(self.scales.bytes()[group]) - 128)
        });
    }

    fn parts(&self) -> Vec<&Raw> {
        vec![&self.blocks, &self.scales]
    }
}
