//! HQQ (Half-Quadratic Quantization, Badri and Shaji 2023), as `HQQLinear.state_dict` has it for safetensors: below a module
//! `W_q`, `scale`, `zero`, and a small tensor for each setting: `nbits`, `group_size`, `axis`, `shape`, and `packing`, whose
//! values are the characters of its name.
//!
//! A matrix is reshaped to groups: (numbers / group, group) along axis 1, with a scale for each row of that; or (group,
//! numbers / group) along axis 0, with a scale for each column. Its rows are packed: a byte of `4bit_u8` has one of the first
//! half of them in the high bits and one of the second half in the low ones, and so on with `2bit_u8` and `1bit_u8`; a word
//! of `3bit_32` has ten, from bit 27 down. `weight = (number - zero) * scale`, where zero is seldom whole: so values are
//! rounded to eight bits, unless all zeros are whole.

use std::sync::Arc;

use safetensors::Dtype as D;

use super::{Found, GROUP, QuantizedMatrix, Row};
use crate::weights::Dtype;
use crate::weights::checkpoint::{Checkpoint, Raw};

/// What is saved beside and says nothing of the values: how they were found, and how the reference computes.
const BESIDE: [&str; 12] = [
    "nbits",
    "unpack_view_dtype",
    "view_as_float",
    "quant_scale",
    "quant_zero",
    "compute_dtype",
    "offload_meta",
    "encoded_state_dict",
    "stores_quant_config",
    "channel_wise",
    "optimize",
    "round_zero",
];

#[derive(Debug)]
struct Matrix {
    numbers: Raw,
    scales: Raw,
    zeros: Raw,
    packing: Packing,
    /// Rows that are packed together are so many apart.
    step: usize,
    /// Numbers in a row of groups.
    width: usize,
    /// Groups are rows of what was packed, else columns.
    along_rows: bool,
    cols: usize,
    /// Whether no 32 columns have two scales, and zeros are whole.
    exact: bool,
}

/// Bits of a number, and how many share a byte or a word.
#[derive(Clone, Copy, Debug)]
struct Packing {
    bits: usize,
    each: usize,
    bytes: usize,
}

impl Packing {
    fn of(name: &[u8]) -> Option<Self> {
        let (bits, each, bytes) = match name {
            b"8bit_u8" => (8, 1, 1),
            b"4bit_u8" => (4, 2, 1),
            b"3bit_32" => (3, 10, 4),
            b"2bit_u8" => (2, 4, 1),
            b"1bit_u8" => (1, 8, 1),
            _ => return None,
        };
        Some(Self { bits, each, bytes })
    }
}

/// The matrix `name`, if it is there in this format.
///
/// # Errors
/// A tensor of it is missing, or of another shape or type, or a setting is not known.
pub fn find(checkpoint: &Checkpoint, name: &str, rows: usize, cols: usize) -> Found {
    let part = |part: &str| format!("{name}.{part}");
    if !checkpoint.has(&part("W_q")) {
        return Ok(None);
    }
    BESIDE.iter().for_each(|beside| checkpoint.ask(&part(beside)));
    let quantized = ["quant_zero", "quant_scale"].into_iter().find(|flag| {
        let flag = checkpoint.has(&part(flag)).then(|| checkpoint.raw_any(&part(flag)));
        flag.is_some_and(|flag| flag.is_ok_and(|flag| flag.bytes().iter().any(|byte| *byte != 0)))
    });
    if let Some(flag) = quantized {
        return Err(checkpoint
            .raw_any(&part(flag))?
            .wrong("be 0: quantized scales and zeros are not supported"));
    }
    let packing = checkpoint.raw_any(&part("packing"))?;
    let names = "name one of 8bit_u8, 4bit_u8, 3bit_32, 2bit_u8 and 1bit_u8 by its characters";
    let packing = Packing::of(packing.bytes()).ok_or_else(|| packing.wrong(names))?;
    let shape = checkpoint.raw_any(&part("shape"))?;
    if wholes(&shape) != Some(vec![rows, cols]) {
        return Err(shape.wrong(format!("be [{rows}, {cols}], as config.json says")));
    }
    let axis = checkpoint.raw_any(&part("axis"))?;
    let along_rows = match wholes(&axis).as_deref() {
        Some([0]) => false,
        Some([1]) => true,
        _ => return Err(axis.wrong("be 0 or 1")),
    };
    let count = rows.checked_mul(cols).unwrap_or_default();
    let size = checkpoint.raw_any(&part("group_size"))?;
    let group = match wholes(&size).as_deref() {
        Some(&[group]) if group > 0 && count.is_multiple_of(group) => group,
        _ => return Err(size.wrong(format!("be a whole number that divides {count}, the number of weights"))),
    };
    let groups = count / group;
    let (packed_rows, width) = if along_rows { (groups, group) } else { (group, groups) };
    let step = packed_rows.div_ceil(packing.each);
    // the bytes may be viewed as another type
    let numbers = checkpoint.raw_any(&part("W_q"))?;
    if numbers.bytes().len() != step * width * packing.bytes {
        return Err(
            numbers.wrong(format!("have {} bytes, as its settings say", step * width * packing.bytes))
        );
    }
    let scale_shape = if along_rows { [groups, 1] } else { [1, groups] };
    let scales = checkpoint.raw_floats(&part("scale"), &scale_shape)?;
    let zeros = checkpoint.raw_floats(&part("zero"), &scale_shape)?;
    let whole = (0..groups).all(|at| zeros.float(at).fract() == 0.0);
    let exact = whole && along_rows && group.is_multiple_of(GROUP) && cols.is_multiple_of(GROUP);
    let matrix = Matrix { numbers, scales, zeros, packing, step, width, along_rows, cols, exact };
    Ok(Some((Arc::new(matrix), Dtype::Q8)))
}

/// Whole numbers from 0; none where they are of another type, or too many for a setting.
fn wholes(raw: &Raw) -> Option<Vec<usize>> {
    let bytes = raw.bytes();
    let numbers: Vec<i64> = match raw.dtype() {
        D::U8 if bytes.len() <= 2 => bytes.iter().map(|byte| i64::from(*byte)).collect(),
        D::I32 if bytes.len() <= 8 => {
            bytes.as_chunks().0.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes))).collect()
        }
        D::I64 if bytes.len() <= 16 => {
            bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
        }
        _ => return None,
    };
    numbers.into_iter().map(|number| usize::try_from(number).ok()).collect()
}

impl Matrix {
    /// The group of a column, and its number.
    fn at(&self, row: usize, col: usize) -> (usize, i32) {
        let Packing { bits, each, bytes } = self.packing;
        let index = row * self.cols + col;
        let (down, across) = (index / self.width, index % self.width);
        let shift = bits * (each - 1 - down / self.step);
        let packed = (down % self.step * self.width + across) * bytes;
        let word = match bytes {
            1 => u32::from(self.numbers.bytes()[packed]),
            _ => self.numbers.u32(packed / 4),
        };
        let number = (word >> shift & ((1 << bits) - 1)) as i32;
        (if self.along_rows { down } else { across }, number)
    }
}

impl QuantizedMatrix for Matrix {
    fn row(&self, row: usize, out: &mut Row<'_>) {
        if self.exact {
            return out.numbers(|first, numbers| {
                for (i, number) in numbers.iter_mut().enumerate() {
                    let (group, found) = self.at(row, first + i);
                    *number = found - self.zeros.float(group) as i32;
                }
                self.scales.float(self.at(row, first).0)
            });
        }
        out.values(|first, values| {
            for (i, value) in values.iter_mut().enumerate() {
                let (group, number) = self.at(row, first + i);
                *value = (number as f32 - self.zeros.float(group)) * self.scales.float(group);
            }
        });
    }

    fn parts(&self) -> Vec<&Raw> {
        vec![&self.numbers, &self.scales, &self.zeros]
    }
}
