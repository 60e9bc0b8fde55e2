//! Floating point of four bits (e2m1), two codes in a byte, the first in the low bits. NVFP4 has scales of eight bits
//! (e4m3) for each 16 columns, and one of f32 for all; MXFP4 powers of two for each 32 columns.
//!
//! MXFP4 becomes eight bits without loss. Two groups of NVFP4 share a group of ours, so that it is rounded to eight bits.

use std::sync::Arc;

use super::mxfp4::TWICE;
use super::{Found, QuantizedMatrix, Row, one_of};
use crate::weights::Dtype;
use crate::weights::checkpoint::{Checkpoint, Raw};
use crate::weights::dtype::f8_e4m3;

/// Columns that share a scale.
pub const NV_GROUP: usize = 16;
pub const MX_GROUP: usize = 32;

/// What writers call the parts.
#[derive(Clone, Copy, Debug)]
pub enum Names {
    /// compressed-tensors: `weight_packed`, and `weight_global_scale`, which scales are divided by.
    Compressed,
    /// ModelOpt and Quark: `weight`, and `weight_scale_2`, which scales are multiplied by.
    Plain,
}

impl Names {
    fn codes(self) -> &'static str {
        match self {
            Self::Compressed => "weight_packed",
            Self::Plain => "weight",
        }
    }
}

#[derive(Debug)]
pub struct Matrix {
    /// (rows, cols / 2)
    pub codes: Raw,
    /// (rows, groups), or [`blocked`].
    pub scales: Raw,
    /// The factor of all scales of NVFP4.
    pub factor: Option<f32>,
    /// Groups of a row, where scales are [`blocked`].
    pub blocked: Option<usize>,
}

/// Where the scale of a group is in the layout for tensor cores that cuBLAS documents ("1D Block Scaling Factors Layout"): tiles
/// of 128 rows by 4 groups, in each of which every fourth of the rows is beside the others.
pub fn blocked(row: usize, group: usize, groups: usize) -> usize {
    let tile = row / 128 * groups.div_ceil(4) + group / 4;
    tile * 512 + row % 32 * 16 + row % 128 / 32 * 4 + group % 4
}

/// The shape of scales in that layout.
pub fn blocked_shape(rows: usize, groups: usize) -> [usize; 2] {
    [rows.div_ceil(128) * 32, groups.div_ceil(4) * 16]
}

/// The matrix `name` in NVFP4.
///
/// # Errors
/// A tensor of it is missing or of another shape or type.
pub fn nvfp4(names: Names, checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Found {
    use safetensors::Dtype as D;
    let codes = format!("{name}.{}", names.codes());
    if checkpoint.dtype(&codes) != Some(D::U8) {
        return Ok(None);
    }
    let scales =
        checkpoint.raw(&format!("{name}.weight_scale"), &[rows, cols.div_ceil(NV_GROUP)], &[D::F8_E4M3])?;
    let all = match names {
        Names::Compressed => format!("{name}.weight_global_scale"),
        Names::Plain => format!("{name}.weight_scale_2"),
    };
    let all = checkpoint.raw_floats(&all, &one_of(checkpoint, &all, &[&[1], &[], &[1, 1]]))?;
    let factor = match names {
        Names::Compressed => 1.0 / all.float(0),
        Names::Plain => all.float(0),
    };
    if !factor.is_finite() {
        return Err(all.wrong("hold a finite number that is not 0"));
    }
    let codes = checkpoint.raw(&codes, &[rows, cols.div_ceil(2)], &[D::U8])?;
    Ok(Some((Arc::new(Matrix { codes, scales, factor: Some(factor), blocked: None }), Dtype::Q8)))
}

/// The matrix `name` in MXFP4.
///
/// # Errors
/// Returns the errors of [`nvfp4`].
pub fn mxfp4(names: Names, checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Found {
    use safetensors::Dtype as D;
    let codes = format!("{name}.{}", names.codes());
    if checkpoint.dtype(&codes) != Some(D::U8) {
        return Ok(None);
    }
    let shape = [rows, cols.div_ceil(MX_GROUP)];
    let scales = checkpoint.raw(&format!("{name}.weight_scale"), &shape, &[D::U8, D::F8_E8M0])?;
    let codes = checkpoint.raw(&codes, &[rows, cols.div_ceil(2)], &[D::U8])?;
    Ok(Some((Arc::new(Matrix { codes, scales, factor: None, blocked: None }), Dtype::Q8)))
}

impl QuantizedMatrix for Matrix {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        let codes = &self.codes.bytes()[row * self.codes.shape[1]..];
        let twice = |col: usize| TWICE[usize::from(codes[col / 2] >> (col % 2 * 4) & 15)];
        let scales = self.scales.bytes();
        let scale = |group: usize| match self.blocked {
            None => scales[row * self.scales.shape[1] + group],
            Some(groups) => scales[blocked(row, group, groups)],
        };
        match self.factor {
            None => out.numbers(|first, numbers| {
                numbers.iter_mut().enumerate().for_each(|(i, number)| *number = twice(first + i));
                f32::powi(2.0, i32::from(scale(first / MX_GROUP)) - 128)
            }),
            Some(factor) => out.values(|first, values| {
                for (i, value) in values.iter_mut().enumerate() {
                    let scale = f8_e4m3(scale((first + i) / NV_GROUP)) * factor;
                    *value = scale * 0.5 * twice(first + i) as f32;
                }
            }),
        }
    }

    fn parts(&self) -> Vec<&Raw> {
        vec![&self.codes, &self.scales]
    }
}
